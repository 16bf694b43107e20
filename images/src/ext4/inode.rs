//! What is known of one file, and the 256 bytes that say it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use drophammer_protocol::archive::Time;

use super::attributes;
use super::checksum::{Checksum, Fields};
use super::directory;
use super::extents::Extent;

pub(super) const INODE: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// Permission bits with set-id and sticky, without the kind.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    /// Names that lead here. Of a directory they're counted at the end.
    pub(super) names: u32,
    pub(super) body: Body,
    pub(super) inline_attributes: Option<[u8; attributes::IN_INODE]>,
    pub(super) attribute_block: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Directory {
        parent: u32,
        entries: BTreeMap<OsString, u32>,
    },
    File {
        bytes: u64,
        extents: Vec<Extent>,
    },
    /// A link whose target is in the inode, or in a block.
    Link {
        target: Vec<u8>,
        extents: Vec<Extent>,
    },
    Characters {
        major: u32,
        minor: u32,
    },
    Blocks {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// Was replaced by another member of its name.
    Gone,
}

impl Body {
    pub(super) fn entry_kind(&self) -> u8 {
        match self {
            Self::Directory { .. } => directory::DIRECTORY,
            Self::File { .. } | Self::Gone => directory::FILE,
            Self::Link { .. } => directory::LINK,
            Self::Characters { .. } => directory::CHARACTERS,
            Self::Blocks { .. } => directory::BLOCKS,
            Self::Fifo => directory::FIFO,
        }
    }

    fn mode(&self) -> u32 {
        match self {
            Self::Directory { .. } => 0o040_000,
            Self::File { .. } | Self::Gone => 0o100_000,
            Self::Link { .. } => 0o120_000,
            Self::Characters { .. } => 0o020_000,
            Self::Blocks { .. } => 0o060_000,
            Self::Fifo => 0o010_000,
        }
    }

    pub(super) fn extents(&self) -> &[Extent] {
        match self {
            Self::File { extents, .. } | Self::Link { extents, .. } => extents,
            _ => &[],
        }
    }
}

/// What the inode doesn't know of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    pub(super) bytes: u64,
    /// `i_block`: extents, a short link's target, or a device's number.
    pub(super) map: [u8; 60],
    pub(super) mapped: bool,
    pub(super) indexed: bool,
    pub(super) links: u16,
    /// Blocks of data and of the map.
    pub(super) blocks: u64,
}

const EXTENTS: u32 = 0x8_0000;
const INDEX: u32 = 0x1000;

impl Inode {
    /// root's, with one name and no attributes.
    pub(super) fn new(body: Body, mode: u32, mtime: Time) -> Self {
        Self { mode, uid: 0, gid: 0, mtime, names: 1, body, inline_attributes: None, attribute_block: None }
    }

    pub(super) fn encode(&self, content: Content, checksum: Checksum) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        let uid = self.uid.to_le_bytes();
        bytes.put(0x02, &uid[..2]);
        bytes.put(0x78, &uid[2..]);
        let gid = self.gid.to_le_bytes();
        bytes.put(0x18, &gid[..2]);
        bytes.put(0x7a, &gid[2..]);
        bytes.put(0x00, &(self.body.mode() | self.mode & 0o7777).to_le_bytes()[..2]);
        bytes.put_split(0x04, 0x6c, content.bytes);
        let (seconds, extra) = time(self.mtime);
        for (at, extra_at) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88), (0x90, 0x94)] {
            bytes.put32(at, seconds);
            bytes.put32(extra_at, extra);
        }
        bytes.put16(0x1a, content.links);
        // In sectors of 512 bytes, 48 bits of them.
        let blocks = content.blocks + u64::from(self.attribute_block.is_some());
        let sectors = (blocks * 8).to_le_bytes();
        bytes.put(0x1c, &sectors[..4]);
        bytes.put(0x74, &sectors[4..6]);
        let flags = if content.mapped { EXTENTS } else { 0 } | if content.indexed { INDEX } else { 0 };
        bytes.put32(0x20, flags);
        bytes.put(0x28, &content.map);
        let attributes = self.attribute_block.unwrap_or(0).to_le_bytes();
        bytes.put(0x68, &attributes[..4]);
        bytes.put(0x76, &attributes[4..6]);
        bytes.put16(0x80, 32); // how much of the fields above 128 bytes there is
        if let Some(attributes) = &self.inline_attributes {
            bytes.put(0xa0, &attributes::magic());
            bytes.put(0xa4, attributes);
        }
        let (low, high) = checksum.over(&bytes).halves();
        bytes.put16(0x7c, low);
        bytes.put16(0x82, high);
        bytes
    }
}

/// As the kernel's `old_encode_dev` and `new_encode_dev`: the former where it suffices.
pub(super) fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut map = [0; 60];
    if major < 256 && minor < 256 {
        map.put32(0, major << 8 | minor);
    } else {
        map.put32(4, (minor & 0xff) | major << 8 | (minor & !0xff) << 12);
    }
    map
}

/// Seconds in 34 bits and nanoseconds in 30: what lies outside is as early or late as can be, as for the kernel.
fn time(time: Time) -> (u32, u32) {
    const EARLIEST: i64 = i32::MIN as i64;
    const LATEST: i64 = (3 << 32) + i32::MAX as i64;
    let seconds = time.seconds.clamp(EARLIEST, LATEST);
    let nanoseconds = if seconds == time.seconds { time.nanoseconds } else { 0 };
    let low = seconds.to_le_bytes();
    let low = i32::from_le_bytes([low[0], low[1], low[2], low[3]]);
    let epoch = (seconds - i64::from(low)) >> 32;
    (u32::from_le_bytes(low.to_le_bytes()), u32::try_from(epoch & 3).unwrap_or(0) | nanoseconds << 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_34_bits() {
        let at = |seconds, nanoseconds| Time { seconds, nanoseconds };
        for (name, given, want) in [
            ("1970", at(0, 0), (0, 0)),
            ("today", at(1_700_000_000, 5), (1_700_000_000, 5 << 2)),
            ("before 1970", at(-1, 999_999_999), (u32::MAX, 999_999_999 << 2)),
            ("after 2038", at(1 << 31, 0), (1 << 31, 1)),
            ("the last", at(15_032_385_535, 0), (0x7fff_ffff, 3)),
            ("later still", at(i64::MAX, 7), (0x7fff_ffff, 3)),
            ("earlier than all", at(i64::MIN, 7), (1 << 31, 0)),
        ] {
            assert_eq!(time(given), want, "{name}");
        }
    }
}
