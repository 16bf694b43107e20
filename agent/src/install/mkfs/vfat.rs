//! An empty FAT file system, by `fatfs`. FAT32 wherever it can be, for that is what firmware expects to start from.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use fatfs::{FatType, FormatVolumeOptions};

use super::options::{self, Known, Then, Value};
use super::{New, at_least, at_most, label};

const LABEL_BYTES: usize = 11;

/// FAT32 has 65525 clusters at least, of one block at least, and its tables; FAT16 has 4085 of up to two.
const FAT32_BLOCKS: u64 = 72_000;
const FAT16_BLOCKS: u64 = 16_384;

/// Not quite 65525 clusters of 32 KiB with their tables.
const FAT16_MOST: u64 = 2047 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    width: Width,
    /// Padded with blanks.
    label: Option<[u8; LABEL_BYTES]>,
    id: u32,
    blocks: u32,
    block: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Fat16,
    Fat32,
}

const KNOWN: &[Known] = &[
    Known { letter: 'F', value: Value::One, then: Then::Take },
    // Whole disks are formatted like partitions here.
    Known { letter: 'I', value: Value::None, then: Then::Drop },
    Known { letter: 'v', value: Value::None, then: Then::Drop },
    Known { letter: 'i', value: Value::One, then: Then::Refuse("the agent makes FAT's volume ids itself") },
    Known { letter: 'n', value: Value::One, then: Then::Refuse("that is said by the layout itself") },
];

pub(super) fn plan(new: &New, id: u32) -> Result<Volume, String> {
    let block = u16::try_from(new.logical_block).ok().filter(|block| matches!(block, 512 | 1024 | 2048 | 4096));
    let block = block.ok_or_else(|| format!("FAT doesn't know blocks of {} bytes", new.logical_block))?;
    let count = |blocks: u64| blocks * u64::from(block);
    let label = Some(padded(new)?).filter(|label| !label.iter().all(|byte| *byte == b' '));
    let mut width = if new.bytes < count(FAT32_BLOCKS) { Width::Fat16 } else { Width::Fat32 };
    for given in options::read(new.options, KNOWN)? {
        width = match given.value.as_deref() {
            Some("16") => Width::Fat16,
            Some("32") => Width::Fat32,
            other => {
                let other = other.unwrap_or_default();
                return Err(format!("the create option -F is 16 or 32 here, and not {other:?}"));
            }
        };
    }
    match width {
        Width::Fat16 => {
            at_least(new, count(FAT16_BLOCKS))?;
            at_most(new, FAT16_MOST)?;
        }
        Width::Fat32 => at_least(new, count(FAT32_BLOCKS))?,
    }
    at_most(new, count(u64::from(u32::MAX)))?;
    let blocks = u32::try_from(new.bytes / u64::from(block)).map_err(|e| e.to_string())?;
    Ok(Volume { width, label, id, blocks, block })
}

/// In capitals: lower case isn't in the specification (section 7), and no two readers agree on it.
fn padded(new: &New) -> Result<[u8; LABEL_BYTES], String> {
    let label = label(new, LABEL_BYTES)?.to_ascii_uppercase();
    if !label
        .bytes()
        .all(|byte| matches!(byte, b' ' | b'0'..=b'9' | b'A'..=b'Z') || b"!#$%&'()-@^_`{}~".contains(&byte))
    {
        return Err(format!(
            "vfat can't have the label {label:?}: letters, digits, blanks and !#$%&'()-@^_`{{}}~ only"
        ));
    }
    let mut field = [b' '; LABEL_BYTES];
    field.iter_mut().zip(label.bytes()).for_each(|(to, from)| *to = from);
    Ok(field)
}

impl Volume {
    pub(super) fn write(&self, device: &Path) -> anyhow::Result<()> {
        let mut options = FormatVolumeOptions::new()
            .fat_type(match self.width {
                Width::Fat16 => FatType::Fat16,
                Width::Fat32 => FatType::Fat32,
            })
            .bytes_per_sector(self.block)
            .total_sectors(self.blocks)
            .volume_id(self.id);
        if let Some(label) = self.label {
            options = options.volume_label(label);
        }
        let mut device = File::options().read(true).write(true).open(device).context("opening it")?;
        fatfs::format_volume(&mut device, options)?;
        Ok(device.sync_all()?)
    }
}
