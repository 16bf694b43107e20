//! Partition tables: what they are, and which bytes they call a partition.

use std::ops::Range;

use super::region::{Region, guid, has, le32, le64};
use super::{Kind, MAX_PARTITIONS, Signature};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) number: u32,
    pub(super) bytes: Range<u64>,
    /// Its own name, in a GPT.
    pub(super) guid: Option<String>,
}

/// A drive may have been partitioned through an adapter that showed blocks of another size.
const BLOCKS: [u64; 2] = [512, 4096];

pub(super) fn places(size: u64) -> Vec<u64> {
    let mut places = vec![0];
    for block in BLOCKS {
        // The header and 16 KiB of entries, at both ends.
        for piece in (0..=16 << 10).step_by(4096) {
            places.push(block + piece);
            places.extend(size.checked_sub(block + piece));
        }
    }
    places
}

/// Every table, and every partition that one of them has, once.
pub(super) fn read(drive: &mut Region) -> (Vec<Signature>, Vec<Partition>) {
    let (mut tables, mut partitions) = (Vec::new(), Vec::<Partition>::new());
    let mut add = |more: Vec<Partition>| {
        for partition in more {
            if partitions.len() < MAX_PARTITIONS && partitions.iter().all(|known| known.bytes != partition.bytes) {
                partitions.push(partition);
            }
        }
    };
    if let Some((kind, more)) = mbr(drive) {
        tables.push(Signature { kind, offset: 0, partition: None, label: None, uuid: None });
        add(more);
    }
    let size = drive.size();
    for block in BLOCKS {
        let backup = size.checked_sub(block).filter(|at| *at > block);
        for (kind, at) in [(Kind::Gpt, Some(block)), (Kind::GptBackup, backup)] {
            if let Some((uuid, more)) = at.and_then(|at| gpt(drive, at, block)) {
                tables.push(Signature { kind, offset: at.unwrap_or_default(), partition: None, label: None, uuid });
                add(more);
            }
        }
    }
    (tables, partitions)
}

/// UEFI 2.10, 5.3.2 and 5.3.3. Checksums don't matter here: a table that is damaged still says what was there.
fn gpt(drive: &mut Region, at: u64, block: u64) -> Option<(Option<String>, Vec<Partition>)> {
    let header = drive.bytes(at, 92)?;
    if !has(&header, 0, b"EFI PART") || le64(&header, 24)? != at / block {
        return None;
    }
    let (count, length) = (usize::try_from(le32(&header, 80)?).ok()?, usize::try_from(le32(&header, 84)?).ok()?);
    let mut partitions = Vec::new();
    if (128..=512).contains(&length) {
        let bytes = count.min(MAX_PARTITIONS).checked_mul(length)?;
        let entries = le64(&header, 72)?.checked_mul(block).and_then(|at| drive.bytes(at, bytes)).unwrap_or_default();
        for (number, entry) in (1..).zip(entries.chunks_exact(length)) {
            let used = guid(entry, 0).is_some();
            let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
            let bytes = last.checked_add(1).and_then(|end| span(drive, first, end, block)).filter(|_| used);
            partitions.extend(bytes.map(|bytes| Partition { number, bytes, guid: guid(entry, 16) }));
        }
    }
    Some((guid(&header, 56), partitions))
}

/// The table in a boot sector (UEFI 2.10, 5.2.1), and the chain of tables in an extended partition.
fn mbr(drive: &mut Region) -> Option<(Kind, Vec<Partition>)> {
    let block = drive.block();
    let entries = entries(&drive.bytes(0, 512)?)?;
    if entries.iter().any(|entry| entry.kind == 0xee) {
        return Some((Kind::ProtectiveMbr, Vec::new()));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(&entries) {
        if entry.is_extended() {
            partitions.extend(logical(drive, entry.first, block));
        } else if let Some(bytes) = entry.bytes(drive, 0, block) {
            partitions.push(Partition { number, bytes, guid: None });
        }
    }
    partitions.sort_by_key(|partition| partition.number);
    Some((Kind::Mbr, partitions))
}

/// Each table of the chain has one partition, counted from the table, and the next table, counted from the first.
fn logical(drive: &mut Region, first: u64, block: u64) -> Vec<Partition> {
    let (mut partitions, mut table) = (Vec::new(), first);
    for number in (5..).take(MAX_PARTITIONS) {
        let Some(sector) = table.checked_mul(block).and_then(|at| drive.bytes(at, 512)) else { break };
        let Some(entries) = entries(&sector) else { break };
        let here = entries.iter().find(|entry| entry.kind != 0 && !entry.is_extended());
        let bytes = here.and_then(|entry| entry.bytes(drive, table, block));
        partitions.extend(bytes.map(|bytes| Partition { number, bytes, guid: None }));
        match entries.iter().find(|entry| entry.is_extended()) {
            Some(next) if first.saturating_add(next.first) != table => table = first.saturating_add(next.first),
            _ => break,
        }
    }
    partitions
}

struct Entry {
    kind: u8,
    first: u64,
    count: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn bytes(&self, drive: &Region, from: u64, block: u64) -> Option<Range<u64>> {
        let first = from.checked_add(self.first)?;
        span(drive, first, first.checked_add(self.count)?, block).filter(|_| self.kind != 0)
    }
}

/// `None` if this is the boot sector of something else: its code would make strange partitions.
fn entries(sector: &[u8]) -> Option<Vec<Entry>> {
    if !has(sector, 510, &[0x55, 0xaa]) {
        return None;
    }
    let table = sector.get(446..510)?;
    let mut entries = Vec::new();
    for entry in table.chunks_exact(16) {
        let (status, kind) = (*entry.first()?, *entry.get(4)?);
        let (first, count) = (u64::from(le32(entry, 8)?), u64::from(le32(entry, 12)?));
        if status & 0x7f != 0 || (kind != 0 && (first == 0 || count == 0)) {
            return None;
        }
        entries.push(Entry { kind, first, count });
    }
    entries.iter().any(|entry| entry.kind != 0).then_some(entries)
}

/// From block `first` up to `end`, as far as the drive goes.
fn span(drive: &Region, first: u64, end: u64, block: u64) -> Option<Range<u64>> {
    let bytes = first.checked_mul(block)?..end.saturating_mul(block).min(drive.size());
    (!bytes.is_empty()).then_some(bytes)
}
