//! Arrays that are there already: found by what their members say, and started as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use uuid::Uuid;

use super::super::device::Source;
use super::superblock::{self, Role, SECTOR, Superblock};
use crate::signatures::{self, Kind, Read, Region};

/// What was found on some devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) arrays: Vec<Existing>,
    /// In words: members that can't be used, and why.
    pub(crate) unusable: Vec<String>,
}

/// An array that may run or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Existing {
    pub(crate) uuid: Uuid,
    /// With its host, if it has one: `any:root`.
    pub(crate) name: String,
    pub(crate) level: i32,
    pub(crate) minor_version: u8,
    pub(crate) raid_disks: u32,
    /// Those that are up to date, by what they do; the spares are last.
    pub(crate) members: Vec<(Role, PathBuf)>,
    /// Those that have missed changes.
    pub(crate) stale: Vec<PathBuf>,
}

/// One device's part in an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) minor_version: u8,
    pub(super) role: Role,
    pub(super) superblock: Superblock,
}

impl Existing {
    /// What it's called where it's put together: the name without the host.
    pub(crate) fn own_name(&self) -> &str {
        self.name.rsplit_once(':').map_or(&self.name, |(_, name)| name)
    }

    /// Places of members that hold data and aren't there.
    pub(crate) fn missing(&self) -> Vec<u16> {
        let there = |place: &u16| self.members.iter().any(|(role, _)| *role == Role::Active(*place));
        let places = u16::try_from(self.raid_disks).unwrap_or(u16::MAX);
        (0..places).filter(|place| !there(place)).collect()
    }
}

/// Reads the superblocks on these devices. Nothing is written.
pub(crate) fn find(paths: &[&Path]) -> Found {
    let (mut parts, mut unusable) = (Vec::new(), Vec::new());
    for path in paths {
        let found = Source::open(path).and_then(|source| {
            let mut read = |offset: u64, buffer: &mut [u8]| source.read(offset, buffer);
            part(path, &mut read, source.bytes, source.logical_block)
        });
        match found {
            Ok(part) => parts.extend(part),
            Err(e) => unusable.push(format!("{}: {e:#}", path.display())),
        }
    }
    let mut found = arrays(parts);
    unusable.append(&mut found.unusable);
    Found { unusable, ..found }
}

/// What a device says of itself, if it's a member of anything.
pub(super) fn part(path: &Path, read: &mut Read<'_>, bytes: u64, logical_block: u32) -> anyhow::Result<Option<Part>> {
    let contents = signatures::in_one(read, bytes, logical_block);
    if let Some(at) = contents.unreadable.first() {
        anyhow::bail!("byte {at} can't be read, so it isn't known whether this belongs to an array");
    }
    let mut found = contents.signatures.iter().filter_map(|signature| match signature.kind {
        Kind::Md { format, .. } => Some((format, signature.offset)),
        _ => None,
    });
    let Some((format, offset)) = found.next() else { return Ok(None) };
    if let Some((other, _)) = found.next() {
        anyhow::bail!(
            "there are superblocks of two arrays, metadata {format} and {other}: which one counts isn't known"
        );
    }
    let minor_version = match format {
        "1.0" => 0,
        "1.1" => 1,
        "1.2" => 2,
        _ => anyhow::bail!("it belongs to an array with metadata {format}, only 1.0, 1.1 and 1.2 are known here"),
    };
    let mut unreadable = BTreeSet::new();
    let mut region = Region::new(read, 0..bytes, bytes, logical_block, &mut unreadable);
    let block = region.bytes(offset, superblock::BYTES);
    let block = block.with_context(|| format!("the superblock at byte {offset} can't be read"))?;
    let damaged = || format!("the superblock at byte {offset} can't be used");
    let superblock = Superblock::parse(&block, offset / SECTOR).with_context(damaged)?;
    let role = superblock.role().unwrap_or(Role::Spare);
    Ok(Some(Part { path: path.to_owned(), minor_version, role, superblock }))
}

/// Who belongs together.
pub(super) fn arrays(parts: Vec<Part>) -> Found {
    let mut by_uuid: BTreeMap<Uuid, Vec<Part>> = BTreeMap::new();
    for part in parts {
        by_uuid.entry(part.superblock.array).or_default().push(part);
    }
    let mut found = Found::default();
    for (uuid, mut parts) in by_uuid {
        parts.sort_by(|a, b| (a.role, &a.path).cmp(&(b.role, &b.path)));
        let twice = parts.iter().zip(parts.iter().skip(1)).find(|(a, b)| a.superblock.number == b.superblock.number);
        if let Some((one, other)) = twice {
            found.unusable.push(format!(
                "{} and {} both say that they are device {} of the array {}: one is a copy of the other, and which one \
                 counts isn't known",
                one.path.display(),
                other.path.display(),
                one.superblock.number,
                one.superblock.name,
            ));
            continue;
        }
        let Some(newest) = parts.iter().max_by_key(|part| part.superblock.events).cloned() else { continue };
        let Superblock { events, name, level, raid_disks, .. } = newest.superblock;
        // When an array is stopped, the last event may reach some members only; the kernel takes them all.
        let fresh = |part: &Part| part.superblock.events.saturating_add(1) >= events;
        let (fresh, stale): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(fresh);
        found.arrays.push(Existing {
            uuid,
            name,
            level,
            minor_version: newest.minor_version,
            raid_disks,
            members: fresh.into_iter().map(|part| (part.role, part.path)).collect(),
            stale: stale.into_iter().map(|part| part.path).collect(),
        });
    }
    found
}
