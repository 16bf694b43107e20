//! LVM without `lvm2`: volume groups with linear, striped and mirrored volumes.
//!
//! [`plan`] decides every byte that is written, [`make`] writes them and has the device mapper make the volumes. What is made
//! is what `vgcreate` and `lvcreate` of Debian 12 make with their defaults: extents of 4 MiB from the first MiB on, stripes
//! of 64 KiB over all physical volumes, mirrors of the kind `raid1` with two copies.

mod allocate;
mod area;
mod config;
mod existing;
mod id;
mod kernel;
mod mapping;
mod metadata;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use anyhow::Context as _;
use drophammer_protocol::words;
use uuid::Uuid;

use super::device::{Member, Piece, Writes, number};
use super::{Contents, device};
use allocate::{Full, Space};
pub(crate) use existing::find;
pub(crate) use id::Id;
pub(crate) use kernel::Active;
pub(crate) use mapping::device_name;
use mapping::{Below, mappings};
use metadata::{Kind, Origin};
pub(crate) use metadata::{Logical, VolumeGroup};

/// How a volume uses the physical volumes of its group. With a single one there is no choice, and every volume is linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Linear,
    Striped,
    Raid1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Rounded up to whole extents, and to as many on each physical volume if it's striped.
    Bytes(u64),
    /// What the others leave.
    Rest,
}

/// The logical volume that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedVolume {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) size: Size,
    pub(crate) layout: Layout,
}

/// The volume group that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) tags: Vec<String>,
    /// Who makes it, for whoever asks LVM later.
    pub(crate) host: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) volumes: Vec<WantedVolume>,
    pub(crate) contents: Contents,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) group: VolumeGroup,
    /// Whether the kernel has copies to make.
    pub(crate) resync: bool,
    /// Of each physical volume, in their order.
    pub(crate) writes: Vec<Writes>,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Misfit {
    #[error(
        "{name:?} can't be the name of a {what}: it takes letters, digits and the characters + _ . -, doesn't begin with a dash \
         or have a name that LVM uses itself, and is no longer than {LONGEST_NAME} bytes"
    )]
    Name { what: &'static str, name: String },
    #[error(
        "{tag:?} can't be a tag of the volume group {group:?}: it takes letters, digits and the characters _+.-/=!:#&"
    )]
    Tag { group: String, tag: String },
    #[error("the volume group {group:?} has no devices")]
    Empty { group: String },
    #[error("{} is in the volume group {group:?} twice", .path.display())]
    Twice { group: String, path: PathBuf },
    #[error("the volume group {group:?} has two logical volumes {name:?}")]
    SameName { group: String, name: String },
    #[error("{} has {}, too few for the volume group {group:?}: 1 MiB is for LVM's own use, and the rest is used in pieces of 4 MiB", .path.display(), words::bytes(*.bytes))]
    Small { group: String, path: PathBuf, bytes: u64 },
    #[error("{} is larger than LVM can count", .path.display())]
    Large { path: PathBuf },
    #[error("the logical volumes {one:?} and {other:?} are both to have the rest of the volume group {group:?}")]
    Rests { group: String, one: String, other: String },
    #[error("the logical volume {name:?} has no size")]
    Nothing { name: String },
    #[error(
        "the logical volume {name:?} doesn't fit into the volume group {group:?}: it needs {}{}, and {} free",
        words::bytes(*.need), each(*.sides), left(*.have)
    )]
    Full { group: String, name: String, need: u64, have: u64, sides: usize },
    #[error("the volume group {group:?} has too many logical volumes")]
    Long {
        group: String,
        #[source]
        source: area::Long,
    },
}

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const EXTENT_SECTORS: u64 = 8192;
const EXTENT: u64 = EXTENT_SECTORS * SECTOR;

/// A device of the device mapper has a name of at most 127 bytes, with those of group and volume in it, in which dashes are
/// written twice.
const LONGEST_NAME: usize = 55;

/// `lvm2` counts extents with 32 bits.
const MOST_EXTENTS: u64 = u32::MAX as u64;

fn each(sides: usize) -> String {
    if sides > 1 { format!(" on each of {sides} sets of devices") } else { String::new() }
}

fn left(bytes: u64) -> String {
    if bytes == 0 { "nothing is".to_owned() } else { format!("{} are", words::bytes(bytes)) }
}

/// Decides everything, from sizes alone.
pub(crate) fn plan(wanted: &Wanted) -> Result<Plan, Misfit> {
    refuse(wanted)?;
    let mut group = VolumeGroup {
        name: wanted.name.clone(),
        id: Id::of(wanted.uuid, "volume group"),
        sequence: 1,
        extent_sectors: EXTENT_SECTORS,
        tags: wanted.tags.clone(),
        elsewhere: None,
        physical: physical(wanted)?,
        logical: Vec::new(),
    };
    let mut logical = logical(wanted, &mut Space::of(&group.physical))?;
    // Parts of volumes are listed behind all volumes.
    logical.sort_by_key(|logical| !logical.visible);
    group.logical = logical;
    let origin = Origin { host: wanted.host.clone(), created: wanted.created };
    let text = group.to_text(&origin);
    let mut writes = Vec::new();
    for (member, physical) in wanted.members.iter().zip(&group.physical) {
        let long = |source| Misfit::Long { group: group.name.clone(), source };
        let head = area::to_bytes(physical.id, member.bytes, &text).map_err(long)?;
        let mut here = Writes::clearing(&member.path, member.bytes);
        here.zeros.extend(notes(&group, &physical.name));
        here.pieces.push(Piece { offset: 0, bytes: head });
        writes.push(here);
    }
    let mirrors = group.logical.iter().any(is_mirror);
    Ok(Plan { group, resync: mirrors && wanted.contents == Contents::Unknown, writes })
}

/// Refuses what can't be, whatever the sizes are.
fn refuse(wanted: &Wanted) -> Result<(), Misfit> {
    let group = || wanted.name.clone();
    if !is_name(&wanted.name) {
        return Err(Misfit::Name { what: "volume group", name: group() });
    }
    if let Some(tag) = wanted.tags.iter().find(|tag| !is_tag(tag)) {
        return Err(Misfit::Tag { group: group(), tag: tag.clone() });
    }
    if wanted.members.is_empty() {
        return Err(Misfit::Empty { group: group() });
    }
    let mut paths = BTreeSet::new();
    if let Some(member) = wanted.members.iter().find(|member| !paths.insert(&member.path)) {
        return Err(Misfit::Twice { group: group(), path: member.path.clone() });
    }
    let (mut names, mut rest) = (BTreeSet::new(), None);
    for WantedVolume { name, size, .. } in &wanted.volumes {
        if !is_name(name) || is_reserved(name) {
            return Err(Misfit::Name { what: "logical volume", name: name.clone() });
        }
        if !names.insert(name) {
            return Err(Misfit::SameName { group: group(), name: name.clone() });
        }
        if *size == Size::Rest
            && let Some(one) = rest.replace(name)
        {
            return Err(Misfit::Rests { group: group(), one: one.clone(), other: name.clone() });
        }
        if *size == Size::Bytes(0) {
            return Err(Misfit::Nothing { name: name.clone() });
        }
    }
    Ok(())
}

/// lvm(8), VALID NAMES. Group and volume share the name of a device, so both are kept short enough for the other.
fn is_name(name: &str) -> bool {
    let fits = name.len() + name.matches('-').count() <= LONGEST_NAME;
    let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || "+_.-".contains(c));
    fits && letters && !name.is_empty() && !name.starts_with('-') && name != "." && name != ".."
}

fn is_reserved(name: &str) -> bool {
    const STARTS: [&str; 2] = ["snapshot", "pvmove"];
    const PARTS: [&str; 15] = [
        "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage",
        "_rmeta", "_tdata", "_tmeta", "_vorigin",
    ];
    let ends = name.ends_with("_vdata") || name.ends_with("_wcorig");
    ends || STARTS.iter().any(|start| name.starts_with(start)) || PARTS.iter().any(|part| name.contains(part))
}

fn is_tag(tag: &str) -> bool {
    let letters = tag.chars().all(|c| c.is_ascii_alphanumeric() || "_+.-/=!:#&".contains(c));
    letters && !tag.is_empty() && tag.len() <= 1024 && !tag.starts_with('-')
}

/// What volumes can have of these together.
pub(crate) fn usable_bytes(members: &[Member]) -> u64 {
    members.iter().map(|member| extents(member) * EXTENT).sum()
}

fn extents(member: &Member) -> u64 {
    member.bytes.saturating_sub(area::DATA_AT) / EXTENT
}

fn physical(wanted: &Wanted) -> Result<Vec<metadata::Physical>, Misfit> {
    let physical = wanted.members.iter().enumerate().map(|(place, member)| {
        let extents = extents(member);
        if extents == 0 {
            return Err(Misfit::Small { group: wanted.name.clone(), path: member.path.clone(), bytes: member.bytes });
        }
        if extents > MOST_EXTENTS {
            return Err(Misfit::Large { path: member.path.clone() });
        }
        Ok(metadata::Physical {
            name: format!("pv{place}"),
            id: Id::of(member.uuid, "physical volume"),
            hint: member.path.to_string_lossy().into_owned(),
            device_sectors: member.bytes / SECTOR,
            first_sector: area::DATA_AT / SECTOR,
            extents,
        })
    });
    physical.collect()
}

/// The volumes and their parts. The one that gets the rest is laid out last, wherever it stands.
fn logical(wanted: &Wanted, space: &mut Space) -> Result<Vec<Logical>, Misfit> {
    let mut order: Vec<&WantedVolume> = wanted.volumes.iter().collect();
    order.sort_by_key(|volume| volume.size == Size::Rest);
    let mut all: BTreeMap<&str, Vec<Logical>> = BTreeMap::new();
    for volume in order {
        let WantedVolume { name, uuid, size, layout } = volume;
        let extents = match size {
            Size::Bytes(bytes) => Some(bytes.div_ceil(EXTENT)),
            Size::Rest => None,
        };
        let part = |name: String, visible: bool, segments: Vec<metadata::Segment>| Logical {
            id: Id::of(*uuid, &name),
            name,
            visible,
            writable: true,
            not_synced: false,
            segments,
        };
        let full = |Full { need, have, sides }| Misfit::Full {
            group: wanted.name.clone(),
            name: name.clone(),
            need: need.saturating_mul(EXTENT),
            have: have.saturating_mul(EXTENT),
            sides,
        };
        let alone = wanted.members.len() == 1;
        let made = match layout {
            Layout::Striped if !alone => vec![part(name.clone(), true, space.striped(extents).map_err(full)?)],
            Layout::Raid1 if !alone => {
                let copies = space.mirrored(extents).map_err(full)?;
                let [first, _] = &copies;
                let extents = first.image.iter().map(|segment| segment.extents).sum();
                let names = |n: usize| (format!("{name}_rmeta_{n}"), format!("{name}_rimage_{n}"));
                let region_sectors = region_sectors(extents);
                let kind = Kind::Raid1 { region_sectors, copies: (0..copies.len()).map(names).collect() };
                let mut mirror = part(name.clone(), true, vec![metadata::Segment { first: 0, extents, kind }]);
                mirror.not_synced = wanted.contents == Contents::Same;
                let mut made = vec![mirror];
                for (place, copy) in copies.into_iter().enumerate() {
                    let (meta, image) = names(place);
                    made.extend([part(meta, false, copy.meta), part(image, false, copy.image)]);
                }
                made
            }
            _ => vec![part(name.clone(), true, space.linear(extents).map_err(full)?)],
        };
        all.insert(name, made);
    }
    Ok(wanted.volumes.iter().flat_map(|volume| all.remove(volume.name.as_str()).unwrap_or_default()).collect())
}

/// What the kernel notes one bit for: 2 MiB as with `lvm2`, or more if there would be more of them than the kernel keeps.
fn region_sectors(extents: u64) -> u64 {
    const LEAST: u64 = 2 * MIB / SECTOR;
    const MOST_REGIONS: u64 = 1 << 21;
    (extents * EXTENT_SECTORS).div_ceil(MOST_REGIONS).next_power_of_two().max(LEAST)
}

fn is_mirror(logical: &Logical) -> bool {
    logical.segments.iter().any(|segment| matches!(segment.kind, Kind::Raid1 { .. }))
}

/// Where on a physical volume the kernel keeps notes of mirrors. It takes zeros for a mirror that is new, and everything else
/// for one that isn't.
fn notes<'a>(group: &'a VolumeGroup, physical: &'a str) -> impl Iterator<Item = (u64, usize)> + 'a {
    let kinds = group.logical.iter().flat_map(|logical| logical.segments.iter().map(|segment| &segment.kind));
    let notes = kinds.filter_map(|kind| match kind {
        Kind::Raid1 { copies, .. } => Some(copies.iter().map(|(meta, _)| meta)),
        _ => None,
    });
    let parts = notes.flatten().filter_map(|name| group.logical.iter().find(|logical| logical.name == *name));
    parts.flat_map(|part| &part.segments).filter_map(move |segment| match &segment.kind {
        Kind::Striped { stripes, .. } => {
            let (_, first) = stripes.iter().find(|(on, _)| on == physical)?;
            Some((area::DATA_AT + first * EXTENT, usize::try_from(segment.extents * EXTENT).ok()?))
        }
        _ => None,
    })
}

/// Destroys what the members hold, and activates all volumes of the group, in the order in which they were wanted. If that
/// fails none is left active.
pub(crate) fn make(plan: &Plan) -> anyhow::Result<Vec<Active>> {
    let mut active = Vec::new();
    let done = plan.carry_out(&mut active).with_context(|| format!("making the volume group {}", plan.group.name));
    match done {
        Ok(()) => Ok(active),
        Err(mut e) => {
            for volume in active {
                if let Err(more) = volume.deactivate() {
                    e = e.context(format!("cleaning up also failed ({more:#})"));
                }
            }
            Err(e)
        }
    }
}

impl Plan {
    fn carry_out(&self, active: &mut Vec<Active>) -> anyhow::Result<()> {
        let Self { group, resync, writes } = self;
        kernel::check_driver(group.logical.iter().any(is_mirror))?;
        let mut numbers = BTreeMap::new();
        for (writes, physical) in writes.iter().zip(&group.physical) {
            writes.carry_out()?;
            numbers.insert(physical.id, number(&writes.path)?);
        }
        let physical = |below| match below {
            Below::Physical(id) => numbers.get(&id).copied(),
            Below::Mapping(_) => None,
        };
        for volume in group.logical.iter().filter(|logical| logical.visible) {
            let activate = || {
                let mappings = mappings(group, volume)?;
                kernel::activate((&group.name, &volume.name), &mappings, *resync, physical)
            };
            let made = activate().with_context(|| format!("activating the logical volume {}", volume.name))?;
            let (node, bytes) = (made.node.clone(), made.bytes);
            active.push(made);
            // Where the volume lies, old data may lie as well.
            device::Writes::clearing(&node, bytes).carry_out()?;
        }
        Ok(())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Striped => "striped",
            Self::Raid1 => "mirrored",
        })
    }
}

impl Logical {
    fn layout(&self) -> Layout {
        match self.segments.first().map(|segment| &segment.kind) {
            Some(Kind::Raid1 { .. }) => Layout::Raid1,
            Some(Kind::Striped { stripes, .. }) if stripes.len() > 1 => Layout::Striped,
            _ => Layout::Linear,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, resync, writes } = self;
        let paths: Vec<_> = writes.iter().map(|writes| writes.path.display().to_string()).collect();
        write!(f, "volume group {}, UUID {}, on {}", group.name, group.id, paths.join(", "))?;
        if !group.tags.is_empty() {
            write!(f, ", tagged {}", group.tags.join(", "))?;
        }
        for (place, volume) in group.logical.iter().filter(|logical| logical.visible).enumerate() {
            let (between, bytes) = (if place == 0 { ": " } else { ", " }, volume.extents() * EXTENT);
            write!(f, "{between}{} of {} ({})", volume.name, words::bytes(bytes), volume.layout())?;
        }
        if *resync {
            write!(f, "; the installed system will copy the first half of each mirror to the second")?;
        }
        Ok(())
    }
}

/// A device, a label and the header of an area whose checksums are right, and metadata: what is understood of those is
/// understood again, and makes tables.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Some((size, mut read)) = crate::signatures::fuzz_device(bytes)
        && let Ok(Some(device)) = existing::device("/dev/x".as_ref(), &mut read, size, 512)
    {
        let found = existing::groups(vec![device]);
        assert!(found.groups.iter().all(|existing| existing.paths.len() <= 1));
    }
    area::fuzz(bytes);
    let Ok(mut group) = VolumeGroup::parse(&String::from_utf8_lossy(bytes)) else { return };
    for volume in &group.logical {
        if let Ok(mappings) = mappings(&group, volume) {
            assert!(mappings.iter().all(|mapping| mapping.table(true, |_| Some((8, 1))).is_some()));
        }
    }
    group.elsewhere = None;
    let origin = Origin { host: String::new(), created: 0 };
    assert_eq!(VolumeGroup::parse(&group.to_text(&origin)), Ok(group));
}
