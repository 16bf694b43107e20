//! What lies on a drive: partition tables, file systems, members of arrays and pools, told by their signatures.
//!
//! Everything is taken from bytes that anybody may have written. It's a description for people, and it says where to look;
//! no decision rests on what a drive claims to be.

mod filesystems;
mod members;
mod region;
mod tables;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;

pub(crate) use region::{Region, array, le16, le32, le64, text};

/// Reads a whole buffer at an offset; both are multiples of the logical block.
pub(crate) type Read<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

/// More partitions than a GPT usually has room for aren't looked into.
const MAX_PARTITIONS: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) kind: Kind,
    /// From the start of the drive.
    pub(crate) offset: u64,
    /// `None` if it belongs to the whole drive.
    pub(crate) partition: Option<u32>,
    /// The name of the file system, array, pool, volume group.
    pub(crate) label: Option<String>,
    pub(crate) uuid: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gpt,
    GptBackup,
    Mbr,
    ProtectiveMbr,
    Ext2,
    Ext3,
    Ext4,
    ExtJournal,
    Xfs,
    Btrfs,
    Bcachefs,
    Fat,
    ExFat,
    Ntfs,
    BitLocker,
    Iso9660,
    Swap,
    Hibernation,
    Luks1,
    Luks2,
    LuksSecondHeader,
    LvmPhysicalVolume,
    /// As `mdadm` counts formats (0.90, 1.0, 1.1, 1.2) and levels.
    Md {
        format: &'static str,
        level: i32,
    },
    IntelRaid,
    Ddf,
    BcacheBacking,
    BcacheCache,
    Zfs,
    BlueStore,
    Drbd,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpt => "GPT partition table",
            Self::GptBackup => "backup of a GPT partition table",
            Self::Mbr => "MBR partition table",
            Self::ProtectiveMbr => "protective MBR",
            Self::Ext2 => "ext2 file system",
            Self::Ext3 => "ext3 file system",
            Self::Ext4 => "ext4 file system",
            Self::ExtJournal => "journal of an ext4 file system",
            Self::Xfs => "XFS file system",
            Self::Btrfs => "btrfs file system",
            Self::Bcachefs => "bcachefs file system",
            Self::Fat => "FAT file system",
            Self::ExFat => "exFAT file system",
            Self::Ntfs => "NTFS file system",
            Self::BitLocker => "BitLocker volume",
            Self::Iso9660 => "ISO 9660 file system",
            Self::Swap => "swap space",
            Self::Hibernation => "image of a hibernated system",
            Self::Luks1 => "LUKS1 volume",
            Self::Luks2 => "LUKS2 volume",
            Self::LuksSecondHeader => "second header of a LUKS2 volume",
            Self::LvmPhysicalVolume => "LVM physical volume",
            Self::Md { format, level } => {
                let other;
                let level = match level {
                    -4 => "multipath",
                    -1 => "linear",
                    _ => {
                        other = format!("raid{level}");
                        &other
                    }
                };
                return write!(f, "Linux RAID member ({level}, metadata {format})");
            }
            Self::IntelRaid => "member of an Intel RAID",
            Self::Ddf => "member of a DDF RAID",
            Self::BcacheBacking => "bcache backing device",
            Self::BcacheCache => "bcache cache",
            Self::Zfs => "member of a ZFS pool",
            Self::BlueStore => "Ceph OSD (BlueStore)",
            Self::Drbd => "DRBD device",
        })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(label) = &self.label {
            let what = match self.kind {
                Kind::Md { .. } => "of the array ",
                Kind::LvmPhysicalVolume => "of the volume group ",
                _ => "",
            };
            write!(f, " {what}{label:?}")?;
        }
        if let Some(uuid) = &self.uuid {
            write!(f, ", UUID {uuid}")?;
        }
        match self.partition {
            Some(number) => write!(f, ", in partition {number} at byte {}", self.offset),
            None => write!(f, ", at byte {}", self.offset),
        }
    }
}

/// What was found, and where reading failed: what lies there isn't known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) signatures: Vec<Signature>,
    pub(crate) unreadable: BTreeSet<u64>,
}

/// One thing to look for, and where.
struct Probe {
    /// Of a device with so many bytes. Offsets may lie behind its end.
    at: fn(u64) -> Vec<u64>,
    parse: fn(&mut Region, u64) -> Option<Found>,
}

/// What a parser recognised.
struct Found {
    kind: Kind,
    label: Option<String>,
    uuid: Option<String>,
}

impl Found {
    fn plain(kind: Kind) -> Self {
        Self { kind, label: None, uuid: None }
    }
}

/// Looks at a drive and into each partition of every table on it.
pub(crate) fn find(read: &mut Read, size: u64, logical_block: u32) -> Contents {
    let mut contents = Contents::default();
    let mut drive = Region::new(read, 0..size, size, logical_block, &mut contents.unreadable);
    let (tables, mut partitions) = tables::read(&mut drive);
    partitions.truncate(MAX_PARTITIONS);
    let mut signatures = tables;
    signatures.extend(look(&mut drive, None));
    for partition in &partitions {
        let mut region = Region::new(read, partition.bytes.clone(), size, logical_block, &mut contents.unreadable);
        signatures.extend(look(&mut region, Some(partition.number)));
    }
    contents.signatures = signatures;
    contents
}

/// The names of a drive's GPT partitions, in small letters. `None` if it couldn't be read where tables are.
pub(crate) fn partition_guids(read: &mut Read, size: u64, logical_block: u32) -> Option<BTreeSet<String>> {
    let mut unreadable = BTreeSet::new();
    let mut drive = Region::new(read, 0..size, size, logical_block, &mut unreadable);
    let (_, partitions) = tables::read(&mut drive);
    let guids = partitions.into_iter().filter_map(|partition| partition.guid).collect();
    unreadable.is_empty().then_some(guids)
}

/// Looks at a single device: a partition, or a drive without its partitions.
pub(crate) fn in_one(read: &mut Read, size: u64, logical_block: u32) -> Contents {
    let mut contents = Contents::default();
    let mut device = Region::new(read, 0..size, size, logical_block, &mut contents.unreadable);
    contents.signatures = look(&mut device, None);
    contents
}

/// Where on a whole drive any of this would lie: blocks of `block` bytes that don't overlap. They're counted from the start
/// in the first half and from the end in the second, so that they fit a drive of any size.
pub(crate) fn places(size: u64, block: u32) -> Vec<u64> {
    let unit = u64::from(block.max(1));
    let probes = filesystems::PROBES.iter().chain(members::PROBES).flat_map(|probe| (probe.at)(size));
    let offsets: BTreeSet<u64> = probes.chain(tables::places(size)).filter(|offset| *offset < size).collect();
    let mut places: Vec<u64> = Vec::new();
    for offset in offsets {
        let place = if offset < size / 2 {
            Some(offset / unit * unit)
        } else {
            (size - offset).checked_next_multiple_of(unit).and_then(|back| size.checked_sub(back))
        };
        let fits = |place: &u64| {
            let after = places.last().is_none_or(|last| last + unit <= *place);
            after && place.checked_add(unit).is_some_and(|end| end <= size)
        };
        places.extend(place.filter(fits));
    }
    places
}

fn look(region: &mut Region, partition: Option<u32>) -> Vec<Signature> {
    let size = region.size();
    let mut signatures = Vec::new();
    for probe in filesystems::PROBES.iter().chain(members::PROBES) {
        for at in (probe.at)(size) {
            if let Some(Found { kind, label, uuid }) = (probe.parse)(region, at) {
                signatures.push(Signature { kind, offset: region.start() + at, partition, label, uuid });
            }
        }
    }
    signatures
}

/// Whatever is on a drive: what is found lies within it, and the same bytes are always the same things.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some((size, mut read)) = fuzz_device(bytes) else { return };
    let found = find(&mut read, size, 512);
    assert!(found.signatures.iter().all(|found| found.offset < size));
    assert_eq!(find(&mut read, size, 512), found);
}

/// A device of any size, which comes first. Its start is at the start of the rest, its end at the end.
#[cfg(fuzzing)]
pub(crate) fn fuzz_device(bytes: &[u8]) -> Option<(u64, impl FnMut(u64, &mut [u8]) -> io::Result<()>)> {
    let (size, content) = bytes.split_first_chunk::<8>()?;
    let size = u64::from_le_bytes(*size);
    let read = move |offset: u64, buffer: &mut [u8]| {
        assert!(offset.is_multiple_of(512) && buffer.len().is_multiple_of(512), "whole blocks");
        assert!(offset + buffer.len() as u64 <= size, "within the device");
        let shift = if offset < size / 2 { 0 } else { content.len() as i128 - i128::from(size) };
        for (place, byte) in (i128::from(offset) + shift..).zip(buffer) {
            *byte = usize::try_from(place).ok().and_then(|place| content.get(place)).copied().unwrap_or_default();
        }
        Ok(())
    };
    Some((size, read))
}
