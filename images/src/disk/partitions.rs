//! The parts of a disk, as its GPT or its MBR has them.

use anyhow::{Context, Result, bail, ensure};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::{PartRecord, ProtectiveMBR};

use super::kind::has_gpt;
use crate::window::{Cursor, Window};

/// The `gpt` crate believes what a header says of them.
const MAX_ENTRIES: u32 = 1024;
const ENTRY_BYTES: u32 = 128;

/// Of an MBR, whatever the disk's sectors are.
const SECTOR: u64 = 512;
/// Those in an extended partition are numbered from 5 on.
const FIRST_LOGICAL: u32 = 5;
const MAX_LOGICAL: u32 = 128;

#[derive(Clone, Debug)]
pub(super) struct Partition {
    pub(super) number: u32,
    /// `PARTUUID`, in small letters.
    pub(super) uuid: String,
    /// `PARTLABEL`; an MBR has none.
    pub(super) name: String,
    pub(super) window: Window,
}

/// In the order of their numbers. `None` if there is no table.
pub(super) fn read(disk: &Window, head: &[u8]) -> Result<Option<Vec<Partition>>> {
    if has_gpt(head) {
        return gpt(disk).context("reading its GPT").map(Some);
    }
    mbr(disk).context("reading its MBR")
}

fn gpt(disk: &Window) -> Result<Vec<Partition>> {
    let mut device = Cursor::new(disk);
    let (header, size) = match gpt::header::read_header_from_arbitrary_device(&mut device, LogicalBlockSize::Lb512) {
        Ok(header) => (header, LogicalBlockSize::Lb512),
        Err(first) => match gpt::header::read_header_from_arbitrary_device(&mut device, LogicalBlockSize::Lb4096) {
            Ok(header) => (header, LogicalBlockSize::Lb4096),
            Err(_) => return Err(first).context("it is damaged"),
        },
    };
    ensure!(
        header.part_size == ENTRY_BYTES && header.num_parts <= MAX_ENTRIES,
        "it has {} entries of {} bytes; up to {MAX_ENTRIES} of {ENTRY_BYTES} are understood",
        header.num_parts,
        header.part_size
    );
    let entries = gpt::partition::file_read_partitions(&mut device, &header, size).context("it is damaged")?;
    let sector = u64::from(size);
    let part = |(number, entry): (u32, gpt::partition::Partition)| {
        let sectors = entry.last_lba.checked_sub(entry.first_lba).and_then(|sectors| sectors.checked_add(1));
        let bytes = sectors.and_then(|sectors| sectors.checked_mul(sector));
        let start = entry.first_lba.checked_mul(sector);
        let window = start.zip(bytes).and_then(|(start, bytes)| disk.part(start, bytes));
        Ok(Partition {
            number,
            uuid: entry.part_guid.to_string(),
            name: entry.name,
            window: window.with_context(|| outside(number))?,
        })
    };
    entries.into_iter().filter(|(_, entry)| entry.is_used()).map(part).collect()
}

fn outside(number: u32) -> String {
    format!("partition {number} reaches beyond the end of the disk: it was cut short")
}

/// `None` as well for the boot sector of a file system, which ends as an MBR does.
fn mbr(disk: &Window) -> Result<Option<Vec<Partition>>> {
    const PROTECTIVE: u8 = 0xee;
    let Some(table) = table(disk, 0) else { return Ok(None) };
    let records: Vec<PartRecord> = (0..4).filter_map(|index| table.partition(index)).collect();
    let plausible = |record: &PartRecord| {
        matches!(record.boot_indicator, 0 | 0x80) && (record.os_type == 0 || record.lb_start > 0 && record.lb_size > 0)
    };
    if !records.iter().all(plausible) || records.iter().all(|record| record.os_type == 0) {
        return Ok(None);
    }
    ensure!(
        records.iter().all(|record| record.os_type != PROTECTIVE),
        "it says that the disk has a GPT, and there is none"
    );
    let signature = u32::from_le_bytes(*table.disk_signature());
    let part = |number: u32, start: u64, sectors: u32| -> Result<Partition> {
        let window = disk.part(start * SECTOR, u64::from(sectors) * SECTOR);
        let window = window.with_context(|| outside(number))?;
        Ok(Partition { number, uuid: format!("{signature:08x}-{number:02x}"), name: String::new(), window })
    };
    let mut partitions: Vec<Partition> = Vec::new();
    let mut logical = Vec::new();
    for (number, record) in (1..).zip(&records).filter(|(_, record)| record.os_type != 0) {
        if is_extended(record) {
            logical.extend(logical_in(disk, record.lb_start.into())?);
        } else {
            partitions.push(part(number, record.lb_start.into(), record.lb_size)?);
        }
    }
    for (number, (start, sectors)) in (FIRST_LOGICAL..).zip(logical) {
        partitions.push(part(number, start, sectors)?);
    }
    Ok(Some(partitions))
}

fn table(disk: &Window, sector: u64) -> Option<ProtectiveMBR> {
    let mut bytes = [0; 512];
    disk.read(sector.checked_mul(SECTOR)?, &mut bytes).ok()?;
    ProtectiveMBR::from_bytes(&bytes, LogicalBlockSize::Lb512).ok()
}

fn is_extended(record: &PartRecord) -> bool {
    matches!(record.os_type, 0x05 | 0x0f | 0x85)
}

/// A chain of tables, each with one partition and where the next table is. Start and length of each, in sectors.
fn logical_in(disk: &Window, extended: u64) -> Result<Vec<(u64, u32)>> {
    let (mut found, mut at) = (Vec::new(), extended);
    for _ in 0..MAX_LOGICAL {
        let table = table(disk, at).with_context(|| format!("the extended partition is damaged in sector {at}"))?;
        let records = [table.partition(0), table.partition(1)];
        if let Some(record) = records[0].filter(|record| record.os_type != 0) {
            found.push((at + u64::from(record.lb_start), record.lb_size));
        }
        match records[1].filter(is_extended) {
            // Counted from the first of the tables.
            Some(next) => at = extended + u64::from(next.lb_start),
            None => return Ok(found),
        }
    }
    bail!("the extended partition has more than {MAX_LOGICAL} partitions")
}
