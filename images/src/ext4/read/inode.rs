//! What is known of one file besides its data.

use anyhow::{Context, Result, ensure};
use drophammer_protocol::archive::Time;

use super::super::checksum::{Checksum, Fields};
use super::Filesystem;
use super::superblock::Checked;

const ENCRYPTED: u32 = 0x800;
pub(super) const INDEXED: u32 = 0x1000;
pub(super) const EXTENTS: u32 = 0x8_0000;
pub(super) const HOLDS_ATTRIBUTE: u32 = 0x20_0000;
pub(super) const INLINE: u32 = 0x1000_0000;
const CASEFOLDED: u32 = 0x4000_0000;

/// The part that every inode has; the rest says how long it is.
const BASE: usize = 128;

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    /// Permission bits with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) bytes: u64,
    /// How many names lead here; of a directory it's something else.
    pub(crate) links: u16,
    pub(super) flags: u32,
    /// What checksums of all that belongs to it start from.
    pub(super) checksum: Checksum,
    /// `i_block`: extents, pointers to blocks, the data itself, a short link's target or a device's number.
    pub(super) map: [u8; 60],
    pub(super) attribute_block: u64,
    /// What follows all fields: attributes.
    pub(super) rest: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    Characters,
    Blocks,
    Fifo,
    Socket,
}

impl Kind {
    fn of(mode: u16) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o010_000 => Self::Fifo,
            0o020_000 => Self::Characters,
            0o040_000 => Self::Directory,
            0o060_000 => Self::Blocks,
            0o100_000 => Self::File,
            0o120_000 => Self::Link,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }
}

impl Filesystem {
    /// One that a name leads to.
    pub(crate) fn inode(&self, number: u32) -> Result<Inode> {
        let inode = self.any_inode(number)?;
        ensure!(!inode.is(HOLDS_ATTRIBUTE), "inode {number} is an attribute's value, though a name leads to it");
        Ok(inode)
    }

    pub(super) fn any_inode(&self, number: u32) -> Result<Inode> {
        let bytes = self.inode_bytes(number).with_context(|| format!("reading inode {number}"))?;
        self.parse(number, &bytes).with_context(|| format!("understanding inode {number}"))
    }

    fn inode_bytes(&self, number: u32) -> Result<Vec<u8>> {
        let superblock = &self.superblock;
        let index = number.checked_sub(1).filter(|_| number <= superblock.inodes);
        let index = index.with_context(|| format!("there are {} inodes", superblock.inodes))?;
        let (group, slot) = (index / superblock.inodes_per_group, index % superblock.inodes_per_group);
        let table = self.inode_table(group)?;
        let offset = u64::from(slot) * superblock.inode_bytes as u64;
        let block = table.checked_add(offset / superblock.block as u64).filter(|block| self.has(*block, 1));
        let block = block.context("it would lie outside of the file system")?;
        let mut bytes = vec![0; superblock.inode_bytes];
        self.window.read(block * superblock.block as u64 + offset % superblock.block as u64, &mut bytes)?;
        Ok(bytes)
    }

    fn parse(&self, number: u32, bytes: &[u8]) -> Result<Inode> {
        let extra = if bytes.len() > BASE { usize::from(bytes.get16(0x80)) } else { 0 };
        ensure!(
            extra.is_multiple_of(4) && BASE + extra <= bytes.len(),
            "it is damaged: its fields are longer than itself"
        );
        let checksum = self.superblock.seed.of_inode(number, bytes.get32(0x64));
        if self.superblock.checked == Checked::Everything {
            ensure!(is_right(bytes, extra, checksum), "it is damaged: the checksum doesn't match");
        }
        let kind = Kind::of(bytes.get16(0x00)).context("it is no file of any kind, though a name leads to it")?;
        let flags = bytes.get32(0x20);
        ensure!(flags & ENCRYPTED == 0, "it is encrypted");
        ensure!(flags & CASEFOLDED == 0, "it is a directory that tells no upper from lower case");
        let is_long = kind == Kind::File || (kind == Kind::Directory && self.superblock.large_directories);
        let attribute_block_high = if self.superblock.wide { bytes.get16(0x76) } else { 0 };
        Ok(Inode {
            kind,
            mode: u32::from(bytes.get16(0x00)) & 0o7777,
            uid: u32::from(bytes.get16(0x78)) << 16 | u32::from(bytes.get16(0x02)),
            gid: u32::from(bytes.get16(0x7a)) << 16 | u32::from(bytes.get16(0x18)),
            mtime: time(bytes.get32(0x10), if extra >= 12 { bytes.get32(0x88) } else { 0 }),
            bytes: if is_long { bytes.get_split(0x04, 0x6c) } else { bytes.get32(0x04).into() },
            links: bytes.get16(0x1a),
            flags,
            checksum,
            map: *bytes[0x28..].first_chunk().context("it is cut short")?,
            attribute_block: u64::from(attribute_block_high) << 32 | u64::from(bytes.get32(0x68)),
            rest: bytes[BASE + extra..].to_vec(),
        })
    }
}

impl Inode {
    pub(super) fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The target of a link that stands in place of a map.
    pub(super) fn short_target(&self) -> Option<&[u8]> {
        let length = usize::try_from(self.bytes).ok().filter(|length| *length < self.map.len())?;
        (!self.is(EXTENTS | INLINE)).then_some(&self.map[..length])
    }

    /// Major and minor number, from either of the two forms that the kernel knows (`old_decode_dev`, `new_decode_dev`).
    pub(crate) fn device(&self) -> (u32, u32) {
        let (old, new) = (self.map.get32(0), self.map.get32(4));
        if old != 0 { (old >> 8 & 0xff, old & 0xff) } else { (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00) }
    }
}

/// The upper half of the sum is only there if there are fields for it.
fn is_right(bytes: &[u8], extra: usize, checksum: Checksum) -> bool {
    const LOW: usize = 0x7c;
    const HIGH: usize = 0x82;
    let mut cleared = bytes.to_vec();
    cleared.put16(LOW, 0);
    let has_high = extra >= HIGH + 2 - BASE;
    if has_high {
        cleared.put16(HIGH, 0);
    }
    let (low, high) = checksum.over(&cleared).halves();
    low == bytes.get16(LOW) && (!has_high || high == bytes.get16(HIGH))
}

/// 32 bits of seconds with a sign; two bits more of them, and nanoseconds.
fn time(seconds: u32, extra: u32) -> Time {
    let low = i64::from(i32::from_le_bytes(seconds.to_le_bytes()));
    let nanoseconds = Some(extra >> 2).filter(|nanoseconds| *nanoseconds < 1_000_000_000);
    Time { seconds: low + (i64::from(extra & 3) << 32), nanoseconds: nanoseconds.unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_34_bits() {
        for (name, seconds, extra, want) in [
            ("1970", 0, 0, (0, 0)),
            ("today", 1_700_000_000, 5 << 2, (1_700_000_000, 5)),
            ("before 1970", u32::MAX, 999_999_999 << 2, (-1, 999_999_999)),
            ("after 2038", 1 << 31, 1, (1 << 31, 0)),
            ("the last", 0x7fff_ffff, 3, (15_032_385_535, 0)),
            ("more nanoseconds than a second has", 1, u32::MAX, (1 + (3 << 32), 0)),
        ] {
            let (seconds, nanoseconds) = (time(seconds, extra).seconds, time(seconds, extra).nanoseconds);
            assert_eq!((seconds, nanoseconds), want, "{name}");
        }
    }
}
