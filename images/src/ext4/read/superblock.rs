//! What the file system says of itself, and whether it can be read at all.

use anyhow::{Result, bail, ensure};
use uuid::Uuid;

use super::super::checksum::{Checksum, Fields};

pub(super) const SUPERBLOCK_AT: u64 = 1024;
/// Where on a disk is what only an ext2, ext3 or ext4 file system has there.
pub(crate) const MAGIC_AT: usize = 1024 + 0x38;
pub(crate) const MAGIC: [u8; 2] = [0x53, 0xef];

const CLEAN: u16 = 1;
const HAS_ERRORS: u16 = 2;

// Of features, compatible ones are nothing to whoever reads. With the exception of those that are refused below, so are
// "read-only compatible" ones.
const SPARSE_SUPER_2: u32 = 0x200;
const SPARSE_SUPER: u32 = 0x1;
const GROUP_CHECKSUMS: u32 = 0x10;
const CHECKSUMS: u32 = 0x400;
const SHARED_BLOCKS: u32 = 0x4000;
const FILE_TYPES: u32 = 0x2;
const RECOVER: u32 = 0x4;
const META_GROUPS: u32 = 0x10;
const EXTENTS: u32 = 0x40;
const WIDE: u32 = 0x80;
const MULTIPLE_MOUNT_PROTECTION: u32 = 0x100;
const FLEXIBLE_GROUPS: u32 = 0x200;
const ATTRIBUTES_IN_INODES: u32 = 0x400;
const CHECKSUM_SEED: u32 = 0x2000;
const LARGE_DIRECTORIES: u32 = 0x4000;
const INLINE_DATA: u32 = 0x8000;
const READABLE: u32 = FILE_TYPES
    | META_GROUPS
    | EXTENTS
    | WIDE
    | MULTIPLE_MOUNT_PROTECTION
    | FLEXIBLE_GROUPS
    | ATTRIBUTES_IN_INODES
    | CHECKSUM_SEED
    | LARGE_DIRECTORIES
    | INLINE_DATA;

/// Incompatible features that aren't read, as mke2fs calls them.
const REFUSED: [(u32, &str); 5] =
    [(0x1, "compression"), (0x8, "journal_dev"), (0x1000, "dirdata"), (0x1_0000, "encrypt"), (0x2_0000, "casefold")];

/// Of what there are checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    Nothing,
    /// Of groups, with 16 bits.
    Groups,
    Everything,
}

#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) uuid: Uuid,
    pub(super) label: Vec<u8>,
    /// Its size in bytes.
    pub(super) block: usize,
    pub(super) blocks: u64,
    /// Where the superblock is.
    pub(super) first_block: u32,
    pub(super) blocks_per_group: u32,
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_bytes: usize,
    pub(super) descriptor_bytes: usize,
    /// The block of descriptors from which on they are in the groups that they describe (`meta_bg`).
    pub(super) first_in_groups: Option<u64>,
    pub(super) copies: Copies,
    pub(super) wide: bool,
    pub(super) large_directories: bool,
    pub(super) checked: Checked,
    pub(super) seed: Checksum,
}

/// Which groups have a copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copies {
    All,
    Sparse,
    Two([u32; 2]),
}

impl Superblock {
    pub(super) fn parse(bytes: &[u8; 1024]) -> Result<Self> {
        ensure!(bytes.get16(0x38).to_le_bytes() == MAGIC, "it has no superblock of ext4, ext3 or ext2");
        let (compatible, incompatible, read_only) = (bytes.get32(0x5c), bytes.get32(0x60), bytes.get32(0x64));
        if read_only & CHECKSUMS != 0 {
            const CRC32C: u8 = 1;
            ensure!(bytes[0x175] == CRC32C, "its checksums are of kind {}, which isn't known", bytes[0x175]);
            let sum = Checksum::START.over(&bytes[..0x3fc]);
            ensure!(sum.value() == bytes.get32(0x3fc), "its superblock is damaged: the checksum doesn't match");
        }
        refuse_features(incompatible, read_only)?;
        // Inodes that were to be deleted at the next mount (`s_last_orphan`) have no name, so nobody comes by them.
        let state = bytes.get16(0x3a);
        ensure!(
            incompatible & RECOVER == 0 && state & CLEAN != 0,
            "the file system was not unmounted cleanly: run `e2fsck -fy` on a copy of it, and pack that"
        );
        ensure!(
            state & HAS_ERRORS == 0,
            "the file system is marked as having errors: run `e2fsck -fy` on a copy of it, and pack that"
        );
        let uuid = Uuid::from_bytes(*bytes[0x68..].first_chunk().unwrap_or(&[0; 16]));
        let label: Vec<u8> = bytes[0x78..0x88].iter().copied().take_while(|byte| *byte != 0).collect();
        let wide = incompatible & WIDE != 0;
        let first_revision = bytes.get32(0x4c) == 0;
        let parsed = Self {
            uuid,
            label,
            block: 1024usize.checked_shl(bytes.get32(0x18)).unwrap_or(0),
            blocks: if wide { bytes.get_split(0x04, 0x150) } else { bytes.get32(0x04).into() },
            first_block: bytes.get32(0x14),
            blocks_per_group: bytes.get32(0x20),
            inodes: bytes.get32(0x00),
            inodes_per_group: bytes.get32(0x28),
            inode_bytes: if first_revision { 128 } else { bytes.get16(0x58).into() },
            descriptor_bytes: if wide { bytes.get16(0xfe).into() } else { 32 },
            first_in_groups: (incompatible & META_GROUPS != 0).then(|| bytes.get32(0x104).into()),
            copies: match () {
                () if compatible & SPARSE_SUPER_2 != 0 => Copies::Two([bytes.get32(0x24c), bytes.get32(0x250)]),
                () if read_only & SPARSE_SUPER != 0 => Copies::Sparse,
                () => Copies::All,
            },
            wide,
            large_directories: incompatible & LARGE_DIRECTORIES != 0,
            checked: match () {
                () if read_only & CHECKSUMS != 0 => Checked::Everything,
                () if read_only & GROUP_CHECKSUMS != 0 => Checked::Groups,
                () => Checked::Nothing,
            },
            seed: match incompatible & CHECKSUM_SEED {
                0 => Checksum::START.over(uuid.as_bytes()),
                _ => Checksum::stored(bytes.get32(0x270)),
            },
        };
        ensure!(parsed.is_sound(), "its superblock is damaged: its sizes can't be");
        Ok(parsed)
    }

    fn is_sound(&self) -> bool {
        let bits = 8 * self.block as u64;
        (1024..=65536).contains(&self.block)
            && self.first_block <= 1
            && self.blocks > u64::from(self.first_block)
            && self.blocks_per_group > 0
            && (1..=bits).contains(&u64::from(self.inodes_per_group))
            && self.groups() <= u64::from(u32::MAX)
            && u64::from(self.inodes) <= self.groups() * u64::from(self.inodes_per_group)
            && self.inode_bytes.is_power_of_two()
            && (128..=self.block).contains(&self.inode_bytes)
            && self.descriptor_bytes.is_power_of_two()
            && (if self.wide { 64 } else { 32 }..=1024).contains(&self.descriptor_bytes)
    }

    fn groups(&self) -> u64 {
        (self.blocks - u64::from(self.first_block)).div_ceil(self.blocks_per_group.into())
    }
}

fn refuse_features(incompatible: u32, read_only: u32) -> Result<()> {
    let refused = REFUSED.iter().find(|(feature, _)| incompatible & feature != 0).map(|(_, name)| *name);
    if let Some(name) = refused.or((read_only & SHARED_BLOCKS != 0).then_some("shared_blocks")) {
        bail!("the file system has the feature {name}, which can't be read here: pack a tar of it instead");
    }
    let unknown = incompatible & !(READABLE | RECOVER);
    ensure!(
        unknown == 0,
        "the file system has a feature that isn't known here (FEATURE_I{}): pack a tar of it instead",
        unknown.trailing_zeros()
    );
    Ok(())
}
