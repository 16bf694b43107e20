//! An ext4, ext3 or ext2 file system that somebody else made, read without mounting it and without changing a byte.
//!
//! Total: of any bytes there comes a file system or a sentence about what is wrong with them, in bounded memory. Whatever
//! has a checksum is believed only if that is right; a feature that isn't known, and a journal that hasn't been emptied,
//! are refused, because what was read of such a file system might not be what is in it. No block belongs to two files, so
//! all that is read together is never more than there is ([`Claims`]).

mod attributes;
mod data;
mod directory;
mod extents;
mod groups;
mod indirect;
mod inode;
mod runs;
mod superblock;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

pub(crate) use self::data::Stored;
pub(crate) use self::directory::Entry;
pub(crate) use self::inode::{Inode, Kind};
pub(crate) use self::superblock::{MAGIC, MAGIC_AT};
use self::superblock::{SUPERBLOCK_AT, Superblock};
use super::ROOT_INODE;
use crate::window::Window;

/// What is read as a whole: targets of links, values of attributes, lists of mounts.
const MAX_WHOLE_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub(crate) struct Filesystem {
    window: Window,
    superblock: Superblock,
}

/// How many blocks may still be said to belong to files. Each of them does so once, whatever a damaged file system says.
#[derive(Debug)]
pub(crate) struct Claims(u64);

impl Claims {
    fn take(&mut self, blocks: u64) -> Result<()> {
        let left = self.0.checked_sub(blocks);
        self.0 = left.context("its files together claim more blocks than the file system has")?;
        Ok(())
    }
}

impl Filesystem {
    pub(crate) fn open(window: Window) -> Result<Self> {
        let mut bytes = [0; 1024];
        window.read(SUPERBLOCK_AT, &mut bytes)?;
        let superblock = Superblock::parse(&bytes)?;
        let needed = superblock.blocks.checked_mul(superblock.block as u64);
        ensure!(
            needed.is_some_and(|needed| needed <= window.bytes()),
            "the file system has {} blocks of {} bytes, but there are only {} bytes: the disk was cut short",
            superblock.blocks,
            superblock.block,
            window.bytes()
        );
        Ok(Self { window, superblock })
    }

    pub(crate) fn uuid(&self) -> Uuid {
        self.superblock.uuid
    }

    /// Without the NULs that it's padded with.
    pub(crate) fn label(&self) -> &[u8] {
        &self.superblock.label
    }

    /// For reading every file once.
    pub(crate) fn claims(&self) -> Claims {
        Claims(self.superblock.blocks)
    }

    /// What `path` leads to, if no symbolic link is on the way.
    pub(crate) fn find(&self, path: &Path) -> Result<Option<Inode>> {
        let mut inode = self.inode(ROOT_INODE)?;
        for name in path.iter() {
            if inode.kind != Kind::Directory {
                return Ok(None);
            }
            let entries = self.entries(&inode, &mut self.claims())?;
            let Some(entry) = entries.iter().find(|entry| entry.name == name) else { return Ok(None) };
            inode = self.inode(entry.inode)?;
        }
        Ok(Some(inode))
    }

    /// All of a small file, holes as zeros.
    pub(crate) fn whole(&self, inode: &Inode) -> Result<Vec<u8>> {
        ensure!(inode.bytes <= MAX_WHOLE_BYTES, "it has {} bytes, more than such a file can have", inode.bytes);
        self.data(inode, &mut self.claims())?.whole(self, inode.bytes)
    }

    /// Where a symbolic link leads.
    pub(crate) fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        let target = match inode.short_target() {
            Some(target) => target.to_vec(),
            None => self.whole(inode)?,
        };
        ensure!(!target.is_empty() && !target.contains(&0), "it is a symbolic link to nothing that could be a path");
        Ok(target)
    }

    fn block(&self, number: u64) -> Result<Vec<u8>> {
        ensure!(self.has(number, 1), "block {number} is none of its blocks");
        let mut block = vec![0; self.superblock.block];
        self.window.read(number * self.superblock.block as u64, &mut block)?;
        Ok(block)
    }

    /// Whether blocks are inside, and not where the superblock is.
    fn has(&self, first: u64, length: u64) -> bool {
        let end = first.checked_add(length);
        first > u64::from(self.superblock.first_block) && end.is_some_and(|end| end <= self.superblock.blocks)
    }
}

#[cfg(test)]
pub(crate) mod tests;
