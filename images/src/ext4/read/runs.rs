//! The blocks of a file, in the order in which it has them.

use anyhow::{Result, ensure};

use super::{Claims, Filesystem};

/// Files in more pieces than this are refused: where they are is held in memory, also by whoever reads the tar.
const MAX_RUNS: usize = 1 << 18;

/// Bytes that follow each other in the file and in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(super) offset: u64,
    pub(super) place: u64,
    pub(super) length: u64,
}

/// Gathers the blocks of one file, in the order in which it has them.
pub(super) struct Runs<'a> {
    filesystem: &'a Filesystem,
    pub(super) claims: &'a mut Claims,
    pieces: Vec<Piece>,
    /// Up to which block of the file is known.
    end: u64,
}

impl<'a> Runs<'a> {
    pub(super) fn new(filesystem: &'a Filesystem, claims: &'a mut Claims) -> Self {
        Self { filesystem, claims, pieces: Vec::new(), end: 0 }
    }

    pub(super) fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }

    pub(super) fn push(&mut self, logical: u64, physical: u64, length: u64) -> Result<()> {
        self.skip(logical, physical, length)?;
        let block = self.filesystem.superblock.block as u64;
        let new = Piece { offset: logical * block, place: physical * block, length: length * block };
        let continued =
            |last: &&mut Piece| (last.offset + last.length, last.place + last.length) == (new.offset, new.place);
        if let Some(last) = self.pieces.last_mut().filter(continued) {
            last.length += new.length;
        } else {
            ensure!(self.pieces.len() < MAX_RUNS, "it lies in more than {MAX_RUNS} pieces");
            self.pieces.push(new);
        }
        Ok(())
    }

    /// Blocks that belong to the file and hold nothing.
    pub(super) fn skip(&mut self, logical: u64, physical: u64, length: u64) -> Result<()> {
        ensure!(length > 0 && logical >= self.end, "its blocks are out of order");
        ensure!(self.filesystem.has(physical, length), "its blocks lie outside of the file system");
        self.claims.take(length)?;
        self.end = logical + length;
        Ok(())
    }
}
