//! Where the partitions of a drive lie.

use super::{Amount, Drive, Kind};
use crate::space::{BIOS_BYTES, MIB, esp_bytes};
use crate::words::bytes;

/// A run of a drive's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub start: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    #[error("the drive {drive:?} has blocks of {block} bytes; only 512 and 4096 are known here")]
    Block { drive: String, block: u32 },
    #[error(
        "the drive {drive:?} is too small for the layout: its partitions need {}, and it has {} for them",
        bytes(*.need), bytes(*.have)
    )]
    Small { drive: String, need: u64, have: u64 },
    #[error(
        "the partition {drive}/{partition} has {}, and an EFI system partition on this drive has {} at least: FAT32 needs them",
        bytes(*.have), bytes(*.need)
    )]
    SmallEsp { drive: String, partition: String, need: u64, have: u64 },
    #[error("the partition {drive}/{partition} has {}, and GRUB's core image needs {}", bytes(*.have), bytes(BIOS_BYTES))]
    SmallBios { drive: String, partition: String, have: u64 },
}

/// Whole MiBs for each partition, one behind the other: that suits every drive's blocks, stripes and erase units. The first
/// MiB of the drive is the primary table's, the last one the backup's.
pub fn place(drive: &Drive, drive_bytes: u64, logical_block: u32) -> Result<Vec<Extent>, Misplaced> {
    let name = || drive.name.clone();
    if !matches!(logical_block, 512 | 4096) {
        return Err(Misplaced::Block { drive: name(), block: logical_block });
    }
    let all = (drive_bytes / MIB).saturating_sub(2);
    let mut sizes = Vec::new();
    for partition in &drive.partitions {
        let mib = match partition.size {
            Some(Amount::Bytes(size)) => Some(size.div_ceil(MIB)),
            Some(Amount::Percent(percent)) => Some(all.saturating_mul(percent.into()) / 100),
            Some(Amount::Rest) => None,
            None => match partition.kind {
                Kind::Bios => Some(BIOS_BYTES / MIB),
                Kind::Esp => Some(esp_bytes(drive_bytes, logical_block) / MIB),
                Kind::Linux => None,
            },
        };
        let have = mib.unwrap_or(0).saturating_mul(MIB);
        match partition.kind {
            Kind::Esp if have < least_esp_bytes(logical_block) => {
                let need = least_esp_bytes(logical_block);
                return Err(Misplaced::SmallEsp { drive: name(), partition: partition.name.clone(), need, have });
            }
            Kind::Bios if have < BIOS_BYTES => {
                return Err(Misplaced::SmallBios { drive: name(), partition: partition.name.clone(), have });
            }
            _ => sizes.push(mib),
        }
    }
    let fixed = sizes.iter().flatten().fold(0u64, |sum, mib| sum.saturating_add(*mib));
    let smallest = sizes.iter().filter(|mib| mib.is_none_or(|mib| mib == 0)).count() as u64;
    if fixed.saturating_add(smallest) > all {
        let need = fixed.saturating_add(smallest).saturating_mul(MIB);
        return Err(Misplaced::Small { drive: name(), need, have: all * MIB });
    }
    let mut start = MIB;
    let extents = sizes.into_iter().map(|mib| {
        let extent = Extent { start, bytes: mib.unwrap_or(all - fixed) * MIB };
        start += extent.bytes;
        extent
    });
    Ok(extents.collect())
}

/// See [`esp_bytes`].
fn least_esp_bytes(logical_block: u32) -> u64 {
    if logical_block == 4096 { 260 * MIB } else { 34 * MIB }
}
