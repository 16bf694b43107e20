//! Files with holes, in the four ways in which GNU tar has written them (its manual, "Sparse Formats").

use std::io::Read;

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{Archive, ArchiveError};

/// More pieces than this in one file are refused: they are held in memory.
const MAX_SEGMENTS: usize = 1 << 18;

/// A part of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// What PAX records said about holes.
#[derive(Debug, Default)]
pub(super) struct SparseHeaders {
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Version 1.0: the list of segments precedes the data.
    inline: bool,
    numbers: Vec<u64>,
}

impl SparseHeaders {
    pub(super) fn are_there(&self) -> bool {
        self.inline || self.size.is_some()
    }

    /// One record of `GNU.sparse.…`.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = std::str::from_utf8(value);
        let number = || text.ok()?.parse::<u64>().ok();
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"major" => self.inline = number()? >= 1,
            b"offset" | b"numbytes" => self.numbers.push(number()?),
            b"map" => {
                for field in text.ok()?.split(',').filter(|field| !field.is_empty()) {
                    self.numbers.push(field.parse().ok()?);
                    (self.numbers.len() <= 2 * MAX_SEGMENTS).then_some(())?;
                }
            }
            // How many follow, and the rest of the version.
            b"numblocks" | b"minor" => {}
            _ => return None,
        }
        (self.numbers.len() <= 2 * MAX_SEGMENTS).then_some(())
    }
}

impl<R: Read> Archive<R> {
    /// Size and segments of a file that PAX records describe, and how many of the `stored` bytes are its data.
    pub(super) fn pax_sparse(
        &mut self,
        headers: SparseHeaders,
        stored: u64,
    ) -> Result<(u64, Vec<Segment>, u64), ArchiveError> {
        let Some(size) = headers.size else { return Err(self.damaged("a file with holes and without a size")) };
        let (numbers, list_bytes) = if headers.inline { self.inline_list(stored)? } else { (headers.numbers, 0) };
        let segments = self.checked(&numbers, size, stored - list_bytes)?;
        Ok((size, segments, stored - list_bytes))
    }

    /// Decimal numbers, each on a line of its own: how many segments, then offset and length of each; padded to a block.
    fn inline_list(&mut self, stored: u64) -> Result<(Vec<u64>, u64), ArchiveError> {
        let mut numbers: Vec<u64> = Vec::new();
        let (mut wanted, mut read, mut number, mut digits) = (None, 0u64, 0u64, 0u32);
        loop {
            let mut block = [0; 512];
            read += 512;
            if read > stored {
                return Err(self.damaged("a list of segments without an end"));
            }
            if !self.fill(&mut block)? {
                return Err(self.cut());
            }
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits < 20 => {
                        let next = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                        number = next.ok_or_else(|| self.damaged("a segment beyond all sizes"))?;
                        digits += 1;
                    }
                    b'\n' if digits > 0 => {
                        match wanted {
                            None => wanted = usize::try_from(number).ok().filter(|count| *count <= MAX_SEGMENTS),
                            Some(_) => numbers.push(number),
                        }
                        if wanted.is_none() {
                            return Err(self.damaged("a file with more segments than can be"));
                        }
                        (number, digits) = (0, 0);
                        if wanted.is_some_and(|count| numbers.len() == 2 * count) {
                            return Ok((numbers, read));
                        }
                    }
                    _ => return Err(self.damaged("a list of segments that isn't one")),
                }
            }
        }
    }

    /// The same from a header of GNU tar's own format, which may go on in blocks of its own.
    pub(super) fn gnu_sparse(&mut self, header: &Header, stored: u64) -> Result<(u64, Vec<Segment>), ArchiveError> {
        let Some(gnu) = header.as_gnu() else { return Err(self.damaged("a file with holes in a foreign format")) };
        let mut numbers = Vec::new();
        let size = gnu.real_size().map_err(|_| self.damaged("a file with holes and without a size"))?;
        self.add(&gnu.sparse, &mut numbers)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            if !self.fill(extension.as_mut_bytes())? {
                return Err(self.cut());
            }
            self.add(&extension.sparse, &mut numbers)?;
            if numbers.len() > 2 * MAX_SEGMENTS {
                return Err(self.damaged("a file with more segments than can be"));
            }
            more = extension.is_extended();
        }
        Ok((size, self.checked(&numbers, size, stored)?))
    }

    fn add(&self, headers: &[GnuSparseHeader], numbers: &mut Vec<u64>) -> Result<(), ArchiveError> {
        for header in headers.iter().filter(|header| !header.is_empty()) {
            let (Ok(offset), Ok(length)) = (header.offset(), header.length()) else {
                return Err(self.damaged("a segment without numbers"));
            };
            numbers.extend([offset, length]);
        }
        Ok(())
    }

    /// In order, apart, inside the file, and as much as is stored. The last one of GNU tar is often empty: it says where
    /// the file ends.
    fn checked(&self, numbers: &[u64], size: u64, stored: u64) -> Result<Vec<Segment>, ArchiveError> {
        let (pairs, odd) = numbers.as_chunks::<2>();
        let (mut end, mut total, mut segments) = (0u64, 0u64, Vec::new());
        for [offset, length] in pairs {
            let next = offset.checked_add(*length).filter(|next| *next <= size);
            let Some(next) = next.filter(|_| *offset >= end) else {
                return Err(self.damaged("segments that overlap or lie outside of their file"));
            };
            end = next;
            total += length;
            if *length > 0 {
                segments.push(Segment { offset: *offset, length: *length });
            }
        }
        if !odd.is_empty() || total != stored {
            return Err(self.damaged("segments that aren't what is stored of their file"));
        }
        Ok(segments)
    }
}
