//! Bytes of a device or a part of it, read in whole blocks, and the numbers and names in them.

use std::collections::BTreeSet;
use std::ops::Range;

use uuid::Uuid;

use super::Read;

/// Most of what is looked for lies in front of this; it's read once.
const HEAD: u64 = 68 << 10;

pub(crate) struct Region<'a> {
    read: &'a mut Read<'a>,
    bytes: Range<u64>,
    drive: u64,
    block: u64,
    unreadable: &'a mut BTreeSet<u64>,
    head: Option<Vec<u8>>,
}

impl<'a> Region<'a> {
    /// The bytes `bytes` of a drive of `drive` bytes.
    pub(crate) fn new(
        read: &'a mut Read<'_>,
        bytes: Range<u64>,
        drive: u64,
        logical_block: u32,
        unreadable: &'a mut BTreeSet<u64>,
    ) -> Self {
        let block = u64::from(logical_block.max(1));
        let drive = drive / block * block;
        let bytes = bytes.start.min(drive)..bytes.end.min(drive);
        Self { read, bytes, drive, block, unreadable, head: None }
    }

    pub(super) fn start(&self) -> u64 {
        self.bytes.start
    }

    pub(super) fn size(&self) -> u64 {
        self.bytes.end.saturating_sub(self.bytes.start)
    }

    pub(super) fn block(&self) -> u64 {
        self.block
    }

    /// `length` bytes at `offset`, if all of them are within the region and can be read.
    pub(crate) fn bytes(&mut self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(u64::try_from(length).ok()?).filter(|end| *end <= self.size())?;
        if end > HEAD {
            return self.fetch(offset..end);
        }
        if self.head.is_none() {
            let head = self.fetch(0..HEAD.min(self.size()));
            self.head = Some(head.unwrap_or_default());
        }
        let range = usize::try_from(offset).ok()?..usize::try_from(end).ok()?;
        match self.head.as_ref()?.get(range) {
            Some(bytes) => Some(bytes.to_vec()),
            // A block of the head can't be read; perhaps this one can.
            None => self.fetch(offset..end),
        }
    }

    fn fetch(&mut self, range: Range<u64>) -> Option<Vec<u8>> {
        let (from, to) = (self.bytes.start.checked_add(range.start)?, self.bytes.start.checked_add(range.end)?);
        let first = from / self.block * self.block;
        let end = to.checked_next_multiple_of(self.block).filter(|end| *end <= self.drive)?;
        let mut buffer = vec![0; usize::try_from(end.checked_sub(first)?).ok()?];
        if (self.read)(first, &mut buffer).is_err() {
            self.unreadable.insert(first);
            return None;
        }
        let range = usize::try_from(from - first).ok()?..usize::try_from(to - first).ok()?;
        Some(buffer.get(range)?.to_vec())
    }
}

pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

pub(crate) fn le16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

pub(crate) fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

pub(crate) fn le64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

pub(super) fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_be_bytes)
}

pub(super) fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_be_bytes)
}

pub(super) fn has(bytes: &[u8], offset: usize, magic: &[u8]) -> bool {
    bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

/// A name of at most `length` bytes that ends with them or with a NUL; `None` if nothing can be seen of it.
pub(crate) fn text(bytes: &[u8], offset: usize, length: usize) -> Option<String> {
    let field = bytes.get(offset..offset.checked_add(length)?)?;
    let name = field.split(|b| *b == 0).next()?;
    let name: String = String::from_utf8_lossy(name).chars().filter(|c| !c.is_control()).collect();
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// A UUID whose bytes are in the order in which they're written; `None` if there is none.
pub(super) fn uuid(bytes: &[u8], offset: usize) -> Option<String> {
    Some(Uuid::from_bytes(array(bytes, offset)?)).filter(|uuid| !uuid.is_nil()).map(|uuid| uuid.to_string())
}

/// The same with the first three groups in little-endian order (UEFI, appendix A).
pub(super) fn guid(bytes: &[u8], offset: usize) -> Option<String> {
    Some(Uuid::from_bytes_le(array(bytes, offset)?)).filter(|uuid| !uuid.is_nil()).map(|uuid| uuid.to_string())
}
