//! Names in directories. They're read one block after the other: to whoever doesn't follow it, the tree by the names'
//! hashes (`dir_index`) is a few entries that lead nowhere.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result, bail, ensure};

use super::super::checksum::{Checksum, Fields};
use super::inode::{INDEXED, INLINE};
use super::superblock::Checked;
use super::{Claims, Filesystem, Inode, attributes};

/// What precedes a name.
const HEAD: usize = 8;
/// The entry without a name that ends a block and holds its checksum.
const TAIL: usize = 12;
/// Larger directories are refused: names are held in memory.
const MAX_BYTES: u64 = 256 << 20;

/// A name, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) inode: u32,
}

impl Filesystem {
    /// In the order of their names' bytes, without `.` and `..`.
    pub(crate) fn entries(&self, inode: &Inode, claims: &mut Claims) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if inode.is(INLINE) {
            // Four bytes are the number of the directory above.
            self.list(&inode.map[4..], &mut entries)?;
            self.list(&attributes::inline_data(inode)?, &mut entries)?;
        } else {
            self.list_blocks(inode, claims, &mut entries)?;
        }
        entries.sort();
        let twice = entries.iter().zip(entries.iter().skip(1)).find(|(a, b)| a.name == b.name);
        if let Some((entry, _)) = twice {
            bail!("the directory is damaged: it has two entries {:?}", entry.name);
        }
        Ok(entries)
    }

    fn list_blocks(&self, inode: &Inode, claims: &mut Claims, entries: &mut Vec<Entry>) -> Result<()> {
        let length = self.superblock.block as u64;
        ensure!(
            inode.bytes.is_multiple_of(length) && inode.bytes <= MAX_BYTES,
            "the directory has {} bytes, which aren't whole blocks or too many",
            inode.bytes
        );
        let data = self.data(inode, claims)?;
        let content = data.content(inode.bytes);
        ensure!(content.segments.is_none(), "the directory is damaged: it has a hole");
        let mut stored = data.stored(self);
        let mut block = vec![0; self.superblock.block];
        for number in 0..inode.bytes / length {
            stored.read_exact(&mut block).context("reading the directory")?;
            if self.superblock.checked == Checked::Everything {
                let right = is_right(&block, inode, number);
                ensure!(right, "block {number} of the directory is damaged: the checksum doesn't match");
            }
            self.list(&block, entries)?;
        }
        Ok(())
    }

    fn list(&self, block: &[u8], entries: &mut Vec<Entry>) -> Result<()> {
        let mut at = 0;
        while at < block.len() {
            let entry = &block[at..];
            // In blocks of 64 KiB, a length that 16 bits can't say is all of them.
            let length = match usize::from(entry.get16(4)) {
                0 | 0xffff if block.len() == 65536 => 65536,
                length => length,
            };
            let name = usize::from(entry.get(6).copied().unwrap_or(0));
            ensure!(
                length.is_multiple_of(4) && length >= HEAD && HEAD + name <= length && length <= entry.len(),
                "the directory is damaged: it has an entry of {length} bytes with a name of {name}"
            );
            let (inode, name) = (entry.get32(0), &entry[HEAD..HEAD + name]);
            if inode != 0 && !matches!(name, b"." | b"..") {
                ensure!(
                    !name.is_empty() && !name.iter().any(|byte| matches!(byte, 0 | b'/')),
                    "the directory is damaged: {:?} can't be a name",
                    String::from_utf8_lossy(name)
                );
                entries.push(Entry { name: OsString::from_vec(name.to_vec()), inode });
            }
            at += length;
        }
        Ok(())
    }
}

fn is_right(block: &[u8], inode: &Inode, number: u64) -> bool {
    match index_at(block).filter(|_| inode.is(INDEXED)) {
        Some(at) => is_index_right(block, at, inode.checksum),
        None if number == 0 && inode.is(INDEXED) => false,
        None => is_leaf_right(block, inode.checksum),
    }
}

/// Where hashes are listed in a block that has no names: behind the dots in the root of a tree, behind one unused entry in
/// the nodes below.
fn index_at(block: &[u8]) -> Option<usize> {
    let reaches = |at: usize, length: usize| {
        let said = usize::from(block.get16(at + 4));
        said == length || (block.len() == 65536 && length == 65536 && matches!(said, 0 | 0xffff))
    };
    if block.get32(0) == 0 && reaches(0, block.len()) {
        return Some(8);
    }
    const DESCRIPTION: u8 = 8;
    (reaches(0, 12) && reaches(12, block.len() - 12) && block.get(29) == Some(&DESCRIPTION)).then_some(32)
}

fn is_index_right(block: &[u8], at: usize, checksum: Checksum) -> bool {
    let (most, count) = (usize::from(block.get16(at)), usize::from(block.get16(at + 2)));
    let tail = at + 8 * most;
    let covered = block.get(..at + 8 * count).filter(|_| count <= most);
    let (Some(covered), Some(tail)) = (covered, block.get(tail..tail + 8)) else { return false };
    checksum.over(covered).over(&tail[..4]).over(&[0; 4]).value() == tail.get32(4)
}

fn is_leaf_right(block: &[u8], checksum: Checksum) -> bool {
    let (names, tail) = block.split_at(block.len() - TAIL);
    tail[..8] == [0, 0, 0, 0, 12, 0, 0, 0xde] && checksum.over(names).value() == tail.get32(8)
}
