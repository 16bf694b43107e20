//! What a file holds, and where that is.

use std::io::{self, Read};
use std::vec;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::archive::{Content, Segment};

use super::inode::{EXTENTS, INLINE};
use super::runs::{Piece, Runs};
use super::{Claims, Filesystem, Inode, attributes, extents, indirect};
use crate::window::Window;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// In the inode itself.
    Inline(Vec<u8>),
    /// In ascending order; what is between them are holes.
    Pieces(Vec<Piece>),
}

impl Filesystem {
    pub(crate) fn data(&self, inode: &Inode, claims: &mut Claims) -> Result<Data> {
        let most = (self.superblock.block as u64) << 32;
        ensure!(inode.bytes <= most, "it has {} bytes, more than a file can have", inode.bytes);
        if inode.is(INLINE) {
            let mut bytes = [&inode.map[..], &attributes::inline_data(inode)?].concat();
            // mke2fs makes files with nothing but a hole so that they're longer than what is there, and Linux reads zeros.
            bytes.truncate(usize::try_from(inode.bytes).unwrap_or(usize::MAX));
            return Ok(Data::Inline(bytes));
        }
        let mut runs = Runs::new(self, claims);
        if inode.is(EXTENTS) {
            extents::collect(self, inode, &mut runs)?;
        } else {
            indirect::collect(self, inode, &mut runs)?;
        }
        let mut pieces = runs.into_pieces();
        // Blocks beyond the end have been allocated for what never came, or for what isn't data (fs-verity).
        pieces.retain_mut(|piece| {
            piece.length = piece.length.min(inode.bytes.saturating_sub(piece.offset));
            piece.length > 0
        });
        Ok(Data::Pieces(pieces))
    }
}

impl Data {
    /// As a tar says it.
    pub(crate) fn content(&self, bytes: u64) -> Content {
        let mut segments: Vec<Segment> = Vec::new();
        match self {
            Self::Inline(inline) => segments.push(Segment { offset: 0, length: inline.len() as u64 }),
            Self::Pieces(pieces) => {
                for piece in pieces {
                    match segments.last_mut() {
                        Some(last) if last.offset + last.length == piece.offset => last.length += piece.length,
                        _ => segments.push(Segment { offset: piece.offset, length: piece.length }),
                    }
                }
            }
        }
        let stored: u64 = segments.iter().map(|segment| segment.length).sum();
        Content { bytes, segments: (stored != bytes).then_some(segments) }
    }

    /// The data itself, one piece after the other, without the holes.
    pub(crate) fn stored(self, filesystem: &Filesystem) -> Stored {
        match self {
            Self::Inline(bytes) => Stored::Inline(io::Cursor::new(bytes)),
            Self::Pieces(pieces) => {
                Stored::Pieces { window: filesystem.window.clone(), pieces: pieces.into_iter(), now: None }
            }
        }
    }

    /// All of it, holes as zeros. `bytes` is no more than fits into memory.
    pub(super) fn whole(&self, filesystem: &Filesystem, bytes: u64) -> Result<Vec<u8>> {
        let mut whole = vec![0; usize::try_from(bytes)?];
        match self {
            Self::Inline(inline) => whole[..inline.len()].copy_from_slice(inline),
            Self::Pieces(pieces) => {
                for piece in pieces {
                    let start = usize::try_from(piece.offset)?;
                    let part = whole.get_mut(start..start + usize::try_from(piece.length)?);
                    filesystem.window.read(piece.place, part.context("its blocks lie beyond its end")?)?;
                }
            }
        }
        Ok(whole)
    }
}

/// A file's data as it's read.
#[derive(Debug)]
pub(crate) enum Stored {
    Inline(io::Cursor<Vec<u8>>),
    Pieces { window: Window, pieces: vec::IntoIter<Piece>, now: Option<Piece> },
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (window, pieces, now) = match self {
            Self::Inline(bytes) => return bytes.read(buffer),
            Self::Pieces { window, pieces, now } => (window, pieces, now),
        };
        let Some(piece) = now.take().or_else(|| pieces.next()) else { return Ok(0) };
        let count = usize::try_from(piece.length).unwrap_or(usize::MAX).min(buffer.len());
        window.read(piece.place, &mut buffer[..count]).map_err(io::Error::other)?;
        let read = count as u64;
        *now = Some(Piece { offset: piece.offset + read, place: piece.place + read, length: piece.length - read })
            .filter(|piece| piece.length > 0);
        Ok(count)
    }
}
