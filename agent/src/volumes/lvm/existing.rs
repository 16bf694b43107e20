//! Volume groups that are there already: found by what their physical volumes say, and used as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::super::device::Source;
use super::area::{self, Place};
use super::id::Id;
use super::metadata::{Logical, Physical, VolumeGroup};
use crate::signatures::{self, Read, Region};

/// What was found on some devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) groups: Vec<Existing>,
    /// In words: physical volumes that can't be used, and why.
    pub(crate) unusable: Vec<String>,
}

/// A volume group, and where its physical volumes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Existing {
    pub(crate) group: VolumeGroup,
    pub(crate) paths: BTreeMap<Id, PathBuf>,
}

/// What one device says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    pub(super) id: Id,
    /// From each of its metadata areas.
    pub(super) copies: Vec<VolumeGroup>,
}

impl Existing {
    /// Physical volumes that aren't there.
    pub(crate) fn missing(&self) -> Vec<&Physical> {
        self.group.physical.iter().filter(|physical| !self.paths.contains_key(&physical.id)).collect()
    }

    /// Those that can be mounted, with their names.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = &Logical> {
        self.group.logical.iter().filter(|logical| logical.visible)
    }
}

/// Reads the metadata on these devices. Nothing is written.
pub(crate) fn find(paths: &[&Path]) -> Found {
    let (mut devices, mut unusable) = (Vec::new(), Vec::new());
    for path in paths {
        let found = Source::open(path).and_then(|source| {
            let mut read = |offset: u64, buffer: &mut [u8]| source.read(offset, buffer);
            device(path, &mut read, source.bytes, source.logical_block)
        });
        match found {
            Ok(device) => devices.extend(device),
            Err(e) => unusable.push(format!("{}: {e:#}", path.display())),
        }
    }
    let mut found = groups(devices);
    unusable.append(&mut found.unusable);
    Found { unusable, ..found }
}

/// What a device says, if it's a physical volume.
pub(super) fn device(
    path: &Path,
    read: &mut Read<'_>,
    bytes: u64,
    logical_block: u32,
) -> anyhow::Result<Option<Device>> {
    let contents = signatures::in_one(read, bytes, logical_block);
    if let Some(at) = contents.unreadable.first() {
        anyhow::bail!("byte {at} can't be read, so it isn't known whether this belongs to a volume group");
    }
    // What is at the start of a mirror is at the start of each of its members, if they have their superblocks at the end.
    if contents.signatures.iter().any(|found| matches!(found.kind, signatures::Kind::Md { .. })) {
        return Ok(None);
    }
    let mut labels = contents.signatures.iter().filter(|found| found.kind == signatures::Kind::LvmPhysicalVolume);
    let Some(label) = labels.next() else { return Ok(None) };
    let mut unreadable = BTreeSet::new();
    let mut region = Region::new(read, 0..bytes, bytes, logical_block, &mut unreadable);
    let mut bytes = |at: u64, length: usize| {
        region.bytes(at, length).with_context(|| format!("{length} bytes at byte {at} can't be read"))
    };
    let label = area::read_label(&bytes(label.offset, 512)?, label.offset)?;
    let (mut copies, mut problems) = (Vec::new(), Vec::new());
    for place in label.areas {
        let mut copy = || -> anyhow::Result<Option<VolumeGroup>> {
            let header = bytes(place.0, area::HEADER_BYTES)?;
            let Some(place) = area::read_area(&header, place)? else { return Ok(None) };
            let text = text(&place, &mut bytes)?;
            Ok(Some(VolumeGroup::parse(&text)?))
        };
        match copy() {
            Ok(copy) => copies.extend(copy),
            Err(e) => problems.push(e),
        }
    }
    match problems.pop() {
        Some(problem) if copies.is_empty() => Err(problem),
        _ => Ok(Some(Device { path: path.to_owned(), id: label.id, copies })),
    }
}

fn text(place: &Place, bytes: &mut dyn FnMut(u64, usize) -> anyhow::Result<Vec<u8>>) -> anyhow::Result<String> {
    let mut all = Vec::new();
    for (at, length) in &place.parts {
        all.append(&mut bytes(*at, usize::try_from(*length)?)?);
    }
    Ok(area::read_text(place, &all)?)
}

/// Who belongs together. Of each group the metadata that were written last count.
pub(super) fn groups(devices: Vec<Device>) -> Found {
    let mut found = Found::default();
    let mut newest: BTreeMap<Id, VolumeGroup> = BTreeMap::new();
    for copy in devices.iter().flat_map(|device| &device.copies) {
        if newest.get(&copy.id).is_none_or(|known| known.sequence < copy.sequence) {
            newest.insert(copy.id, copy.clone());
        }
    }
    for group in newest.into_values() {
        let mut paths: BTreeMap<Id, PathBuf> = BTreeMap::new();
        let mut twice = None;
        for physical in &group.physical {
            // One that has metadata of its own must know of this group; it may have been taken into another one.
            let belongs = |device: &&Device| {
                device.id == physical.id
                    && (device.copies.is_empty() || device.copies.iter().any(|copy| copy.id == group.id))
            };
            let mut here = devices.iter().filter(belongs);
            if let Some(device) = here.next() {
                paths.insert(physical.id, device.path.clone());
                twice = twice.or_else(|| here.next().map(|other| (device, other)));
            }
        }
        match twice {
            Some((one, other)) => found.unusable.push(format!(
                "{} and {} both say that they are the physical volume {} of the volume group {}: one is a copy of the other, \
                 and which one counts isn't known",
                one.path.display(),
                other.path.display(),
                one.id,
                group.name
            )),
            None => found.groups.push(Existing { group, paths }),
        }
    }
    found
}
