//! What tells a file system from other bytes: superblock, descriptors of its groups, an empty journal.
//!
//! Every feature is one that GRUB 2.06 reads and Linux 4.4 and later mount. The seed of all checksums stands by itself, so
//! that an installed copy is given a UUID of its own without another byte being changed.

use uuid::Uuid;

use super::blocks::{BLOCK, BLOCK_BYTES, DESCRIPTOR_BLOCKS, PER_GROUP};
use super::checksum::{Checksum, Fields};
use super::directory;
use super::inode::INODE;

pub(super) const INODES_PER_GROUP: u32 = 8192;
pub(super) const TABLE_BLOCKS: u64 = INODES_PER_GROUP as u64 * INODE as u64 / BLOCK_BYTES;
const DESCRIPTOR: usize = 64;
const DESCRIPTORS_PER_BLOCK: u64 = BLOCK_BYTES / DESCRIPTOR as u64;
pub(super) const FIRST_INODE: u32 = 11;
pub(super) const RESIZE_INODE: u32 = 7;
pub(super) const JOURNAL_INODE: u32 = 8;
/// Groups whose tables and bitmaps the kernel keeps together in what it adds: 16.
const FLEX: u8 = 4;

/// has_journal, ext_attr, resize_inode, dir_index
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x10 | 0x20;
/// filetype, extents, 64bit, flex_bg, metadata_csum_seed
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) uuid: Uuid,
    pub(super) label: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) hash_seed: [u32; 4],
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) free_blocks: u64,
    pub(super) reserved_blocks: u64,
    pub(super) free_inodes: u32,
    /// The journal's extents and size, so that it is found if its inode is lost.
    pub(super) journal_map: [u8; 60],
    pub(super) journal_bytes: u64,
}

/// The seed of everything that has a checksum.
pub(super) fn checksum_seed(uuid: Uuid) -> Checksum {
    Checksum::START.over(uuid.as_bytes())
}

impl Superblock {
    /// As it stands in `group`.
    pub(super) fn encode(&self, group: u64) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        let created = u32::try_from(self.created).unwrap_or(u32::MAX);
        let inodes = u32::try_from(self.groups).unwrap_or(u32::MAX).saturating_mul(INODES_PER_GROUP);
        bytes.put32(0x00, inodes);
        bytes.put_split(0x04, 0x150, self.blocks);
        bytes.put_split(0x08, 0x154, self.reserved_blocks);
        bytes.put_split(0x0c, 0x158, self.free_blocks);
        bytes.put32(0x10, self.free_inodes);
        bytes.put32(0x18, 2); // blocks of 1024 << 2
        bytes.put32(0x1c, 2);
        let per_group = u32::try_from(PER_GROUP).unwrap_or(0);
        bytes.put32(0x20, per_group);
        bytes.put32(0x24, per_group);
        bytes.put32(0x28, INODES_PER_GROUP);
        bytes.put32(0x30, created); // last written
        bytes.put16(0x36, u16::MAX); // mounts until a check: never
        bytes.put16(0x38, 0xef53);
        bytes.put16(0x3a, 1); // clean
        bytes.put16(0x3c, 1); // on errors: go on; fstab says otherwise
        bytes.put32(0x40, created); // last checked
        bytes.put32(0x4c, 1); // revision
        bytes.put32(0x54, FIRST_INODE);
        bytes.put16(0x58, u16::try_from(INODE).unwrap_or(0));
        bytes.put16(0x5a, u16::try_from(group).unwrap_or(u16::MAX));
        bytes.put32(0x5c, COMPATIBLE);
        bytes.put32(0x60, INCOMPATIBLE);
        bytes.put32(0x64, READ_ONLY_COMPATIBLE);
        bytes.put(0x68, self.uuid.as_bytes());
        let label = self.label.as_bytes();
        bytes.put(0x78, label.get(..label.len().min(16)).unwrap_or_default());
        bytes.put16(0xce, u16::try_from(reserved_descriptor_blocks(self.groups)).unwrap_or(0));
        bytes.put32(0xe0, JOURNAL_INODE);
        for (index, word) in self.hash_seed.iter().enumerate() {
            bytes.put32(0xec + 4 * index, *word);
        }
        bytes[0xfc] = directory::HASH_VERSION;
        bytes[0xfd] = 1; // what follows at 0x10c is the journal's map
        bytes.put16(0xfe, u16::try_from(DESCRIPTOR).unwrap_or(0));
        bytes.put32(0x100, 0x4 | 0x8); // mount with user_xattr and acl
        bytes.put32(0x108, created);
        bytes.put(0x10c, &self.journal_map);
        bytes.put_split(0x14c, 0x148, self.journal_bytes);
        bytes.put16(0x15c, 32);
        bytes.put16(0x15e, 32);
        bytes.put32(0x160, 2); // hashes count letters without a sign
        bytes[0x174] = FLEX;
        bytes[0x175] = 1; // CRC32C
        bytes.put32(0x270, checksum_seed(self.uuid).value());
        let sum = Checksum::START.over(&bytes[..0x3fc]);
        bytes.put32(0x3fc, sum.value());
        bytes
    }
}

pub(super) fn descriptor_blocks(groups: u64) -> u64 {
    groups.div_ceil(DESCRIPTORS_PER_BLOCK)
}

pub(super) fn reserved_descriptor_blocks(groups: u64) -> u64 {
    DESCRIPTOR_BLOCKS - descriptor_blocks(groups)
}

/// One group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) number: u64,
    pub(super) block_bitmap: (u64, Vec<u8>),
    pub(super) inode_bitmap: (u64, Vec<u8>),
    pub(super) table: u64,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    pub(super) directories: u32,
    /// Inodes at the end of the table that were never used.
    pub(super) untouched_inodes: u32,
}

impl Group {
    pub(super) fn encode(&self, seed: Checksum) -> [u8; 64] {
        const INODES_UNUSED: u16 = 1;
        let mut bytes = [0; DESCRIPTOR];
        bytes.put_split(0x00, 0x20, self.block_bitmap.0);
        bytes.put_split(0x04, 0x24, self.inode_bitmap.0);
        bytes.put_split(0x08, 0x28, self.table);
        for (low, high, number) in [
            (0x0c, 0x2c, self.free_blocks),
            (0x0e, 0x2e, self.free_inodes),
            (0x10, 0x30, self.directories),
            (0x1c, 0x32, self.untouched_inodes),
        ] {
            let number = number.to_le_bytes();
            bytes.put(low, &number[..2]);
            bytes.put(high, &number[2..]);
        }
        if self.untouched_inodes == INODES_PER_GROUP {
            bytes.put16(0x12, INODES_UNUSED);
        }
        let inode_bits = &self.inode_bitmap.1[..INODES_PER_GROUP as usize / 8];
        for (low, high, sum) in [(0x18, 0x38, seed.over(&self.block_bitmap.1)), (0x1a, 0x3a, seed.over(inode_bits))] {
            let halves = sum.halves();
            bytes.put16(low, halves.0);
            bytes.put16(high, halves.1);
        }
        let number = u32::try_from(self.number).unwrap_or(u32::MAX);
        let (low, _) = seed.over(&number.to_le_bytes()).over(&bytes).halves();
        bytes.put16(0x1e, low);
        bytes
    }
}

/// The first block of an empty journal of `blocks`. What its features are the kernel decides when it first mounts it.
pub(super) fn journal(blocks: u64, uuid: Uuid) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    let fields: [(usize, u32); 7] = [
        (0x00, 0xc03b_3998),
        (0x04, 4), // a superblock of version 2
        (0x0c, u32::try_from(BLOCK).unwrap_or(0)),
        (0x10, blocks),
        (0x14, 1), // the log begins
        (0x18, 1), // with this number
        (0x40, 1), // file systems that use it
    ];
    for (at, value) in fields {
        bytes.put(at, &value.to_be_bytes());
    }
    bytes.put(0x30, uuid.as_bytes());
    bytes
}
