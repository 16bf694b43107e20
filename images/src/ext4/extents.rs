//! Where the blocks of a file are: a few extents in its inode, more of them in blocks of their own.

use super::blocks::{BLOCK, Blocks, Run};
use super::checksum::{Checksum, Fields};

/// Blocks that follow each other both in the file and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) logical: u32,
    pub(super) physical: u64,
    pub(super) length: u16,
}

const LONGEST: u64 = 1 << 15;
const ENTRY: usize = 12;
const MAGIC: u16 = 0xf30a;
/// In the 60 bytes of an inode, and in a block with its checksum.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK - ENTRY - 4) / ENTRY;

/// `runs` hold the file from block `logical` on.
pub(super) fn of_runs(mut logical: u32, runs: &[Run]) -> Vec<Extent> {
    let mut extents = Vec::new();
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            let length = u16::try_from((run.end - start).min(LONGEST)).unwrap_or(1 << 15);
            extents.push(Extent { logical, physical: start, length });
            logical += u32::from(length);
            start += u64::from(length);
        }
    }
    extents
}

/// What goes into the inode, and the blocks that it takes besides, with where they go.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: [u8; 60],
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
}

pub(super) fn tree(extents: &[Extent], blocks: &mut Blocks, checksum: Checksum) -> Tree {
    let mut entries: Vec<(u32, [u8; ENTRY])> = extents.iter().map(|e| (e.logical, leaf(e))).collect();
    let (mut depth, mut written) = (0u16, Vec::new());
    while entries.len() > IN_INODE {
        let mut above = Vec::new();
        for part in entries.chunks(IN_BLOCK) {
            let place = blocks.one();
            let mut block = vec![0; BLOCK];
            fill(&mut block, part, IN_BLOCK, depth);
            let tail = ENTRY * (1 + IN_BLOCK);
            let sum = checksum.over(&block[..tail]);
            block.put32(tail, sum.value());
            written.push((place, block));
            let first = part.first().map_or(0, |(logical, _)| *logical);
            above.push((first, index(first, place)));
        }
        entries = above;
        depth += 1;
    }
    let mut root = [0; 60];
    fill(&mut root, &entries, IN_INODE, depth);
    Tree { root, blocks: written }
}

fn fill(place: &mut [u8], entries: &[(u32, [u8; ENTRY])], most: usize, depth: u16) {
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    place.put16(0, MAGIC);
    place.put16(2, count(entries.len()));
    place.put16(4, count(most));
    place.put16(6, depth);
    for (number, (_, entry)) in entries.iter().enumerate() {
        place.put(ENTRY * (1 + number), entry);
    }
}

fn leaf(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let place = extent.physical.to_le_bytes();
    entry.put32(0, extent.logical);
    entry.put16(4, extent.length);
    entry.put(6, &place[4..6]);
    entry.put(8, &place[..4]);
    entry
}

fn index(first: u32, place: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let place = place.to_le_bytes();
    entry.put32(0, first);
    entry.put(4, &place[..4]);
    entry.put(8, &place[4..6]);
    entry
}
