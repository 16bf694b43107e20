//! Pointers to blocks, as ext2 and ext3 have them: twelve in the inode, the others in blocks of up to three levels.

use anyhow::{Context, Result, ensure};

use super::super::checksum::Fields;
use super::runs::Runs;
use super::{Filesystem, Inode};

const DIRECT: u64 = 12;
const LEVELS: u32 = 3;

pub(super) fn collect(filesystem: &Filesystem, inode: &Inode, runs: &mut Runs<'_>) -> Result<()> {
    let end = inode.bytes.div_ceil(filesystem.superblock.block as u64);
    let mut first = 0;
    for slot in 0..inode.map.len() / 4 {
        let level = (slot as u64).checked_sub(DIRECT).map_or(0, |above| above + 1);
        let level = u32::try_from(level).unwrap_or(LEVELS);
        pointer(filesystem, inode.map.get32(4 * slot), Reach { level, first, end }, runs)?;
        first += span(filesystem, level);
    }
    ensure!(end <= first, "it has {} bytes, more than its map can hold", inode.bytes);
    Ok(())
}

/// How many blocks of a file a pointer leads to.
fn span(filesystem: &Filesystem, level: u32) -> u64 {
    (filesystem.superblock.block as u64 / 4).pow(level)
}

/// What a pointer stands for: so many levels above the data, from block `first` of the file on, which has `end` blocks.
#[derive(Clone, Copy)]
struct Reach {
    level: u32,
    first: u64,
    end: u64,
}

fn pointer(filesystem: &Filesystem, to: u32, reach: Reach, runs: &mut Runs<'_>) -> Result<()> {
    // Without a block it's a hole, however much of the file that is.
    if to == 0 || reach.first >= reach.end {
        return Ok(());
    }
    let Some(level) = reach.level.checked_sub(1) else { return runs.push(reach.first, to.into(), 1) };
    runs.claims.take(1)?;
    let block = filesystem.block(to.into()).context("reading where its blocks are")?;
    let mut first = reach.first;
    for entry in block.chunks_exact(4) {
        pointer(filesystem, entry.get32(0), Reach { level, first, ..reach }, runs)?;
        first += span(filesystem, level);
    }
    Ok(())
}
