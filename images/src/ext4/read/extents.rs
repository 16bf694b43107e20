//! A tree of extents: which blocks hold a file.

use anyhow::{Context, Result, ensure};

use super::super::checksum::Fields;
use super::runs::Runs;
use super::superblock::Checked;
use super::{Filesystem, Inode};

const MAGIC: u16 = 0xf30a;
const ENTRY: usize = 12;
/// With blocks of 1 KiB, a tree as deep as this holds more than a file can have.
const DEEPEST: u16 = 5;
/// Longer ones have been allocated and not been written: they are zeros.
const LONGEST: u16 = 1 << 15;

pub(super) fn collect(filesystem: &Filesystem, inode: &Inode, runs: &mut Runs<'_>) -> Result<()> {
    let depth = inode.map.get16(6);
    ensure!(depth <= DEEPEST, "its extents are nested {depth} deep");
    node(filesystem, inode, &inode.map, depth, runs)
}

fn node(filesystem: &Filesystem, inode: &Inode, bytes: &[u8], depth: u16, runs: &mut Runs<'_>) -> Result<()> {
    let (count, most) = (usize::from(bytes.get16(2)), usize::from(bytes.get16(4)));
    ensure!(
        bytes.get16(0) == MAGIC
            && bytes.get16(6) == depth
            && count <= most
            && ENTRY * (1 + most) <= bytes.len()
            && (count > 0 || depth == 0),
        "its extents are damaged"
    );
    for entry in bytes[ENTRY..ENTRY * (1 + count)].chunks_exact(ENTRY) {
        if depth == 0 {
            leaf(entry, runs)?;
            continue;
        }
        let place = u64::from(entry.get16(8)) << 32 | u64::from(entry.get32(4));
        runs.claims.take(1)?;
        let block = filesystem.block(place).context("reading its extents")?;
        if filesystem.superblock.checked == Checked::Everything {
            let tail = ENTRY * (1 + usize::from(block.get16(4)));
            let covered = block.get(..tail).filter(|_| tail + 4 <= block.len());
            let right = covered.is_some_and(|covered| inode.checksum.over(covered).value() == block.get32(tail));
            ensure!(right, "its extents in block {place} are damaged: the checksum doesn't match");
        }
        node(filesystem, inode, &block, depth - 1, runs)?;
    }
    Ok(())
}

fn leaf(entry: &[u8], runs: &mut Runs<'_>) -> Result<()> {
    let (logical, length) = (u64::from(entry.get32(0)), entry.get16(4));
    let physical = u64::from(entry.get16(6)) << 32 | u64::from(entry.get32(8));
    if length > LONGEST {
        return runs.skip(logical, physical, u64::from(length - LONGEST));
    }
    runs.push(logical, physical, length.into())
}
