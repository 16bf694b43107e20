//! RAID 0 and 1 of the kernel's md driver, without `mdadm`.
//!
//! [`plan`] decides every byte of every member, [`make`] writes them and starts the array. What is made is what
//! `mdadm --create` of Debian 12 makes, so that whoever looks after the installed system finds nothing unusual: version 1
//! superblocks, the same room in front of the data, a write-intent bitmap on a mirror of more than 100 GiB.

mod bitmap;
mod existing;
mod kernel;
mod place;
mod superblock;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use anyhow::Context as _;
use drophammer_protocol::words;
use uuid::Uuid;

use super::Contents;
use super::device::{Member, Piece, Writes};
pub(crate) use existing::{Existing, find};
pub(crate) use kernel::Array;
use kernel::Copying;
use place::{Place, data_offset};
use superblock::{BITMAP, IN_SYNC, RAID0_LAYOUT, Role, SECTOR, Superblock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Stripes: as fast and as large as all members together, and gone with the first of them.
    Raid0,
    /// Every member a copy.
    Raid1,
}

/// Where the superblock lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metadata {
    /// Version 1.0, at the end of each member: whoever doesn't know of arrays takes a member of a mirror for a file system
    /// of its own. For what firmware reads, an EFI system partition, and for nothing else.
    V1_0,
    /// Version 1.2, 4 KiB behind the start.
    V1_2,
}

/// The array that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) uuid: Uuid,
    /// Without a host.
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) metadata: Metadata,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) spares: Vec<Member>,
    pub(crate) contents: Contents,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) uuid: Uuid,
    /// As the superblocks have it, with the host.
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) metadata: Metadata,
    /// Of the array.
    pub(crate) bytes: u64,
    /// Whether the kernel has copies to make.
    pub(crate) resync: bool,
    /// Of each member, and behind them of each spare.
    pub(crate) writes: Vec<Writes>,
    spares: usize,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Misfit {
    #[error("the array {name:?} has one member or none: a {level} has two or more")]
    Alone { name: String, level: Level },
    #[error("the array {name:?} has {devices} members and spares, {MOST_DEVICES} is the most that is possible")]
    Many { name: String, devices: usize },
    #[error(
        "the array {name:?} has spares, but a RAID 0 has no use for them: make them members, or the array a RAID 1"
    )]
    Spares { name: String },
    #[error("{} is in the array {name:?} twice", .path.display())]
    Twice { name: String, path: PathBuf },
    #[error("the array {name:?} would have more bytes than a device can have")]
    Large { name: String },
    #[error("{name:?} can't be the name of an array: it takes 1 to 32 bytes without blanks, slashes and colons")]
    Name { name: String },
    #[error(
        "{} is too small for the array {name:?}: it has {}, of which {} are for the array's own use",
        .path.display(), words::bytes(*.bytes), words::bytes(*.own)
    )]
    Small { name: String, path: PathBuf, bytes: u64, own: u64 },
}

/// As `mdadm` of Debian 12 makes room for, and as fit into one sector together with the superblock.
const MOST_DEVICES: usize = 128;

/// `mdadm`'s default: 512 KiB.
const CHUNK_SECTORS: u64 = 1024;

/// `mdadm` rounds the size of a mirror's members down to this, so that a member that is a little smaller can replace one.
const ROUND_SECTORS: u64 = 128;

/// `RAID0_ORIG_LAYOUT` of the kernel's drivers/md/raid0.h, which is what `mdadm` takes.
const ORIGINAL_LAYOUT: u32 = 1;

/// As `mdadm` writes UUIDs, in its configuration and on the kernel's command line.
pub(crate) fn written(uuid: Uuid) -> String {
    let hex = uuid.simple().to_string();
    let words: Vec<&str> = (0..4).filter_map(|word| hex.get(8 * word..8 * word + 8)).collect();
    words.join(":")
}

/// With `any` as its host an array has the same name wherever it's put together: the installed system's host name isn't
/// what `mdadm` would compare it to in an initramfs.
fn with_host(name: &str) -> Result<String, Misfit> {
    const ROOM: usize = 32;
    let strange = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    if name.is_empty() || name.len() > ROOM || name.contains(strange) {
        return Err(Misfit::Name { name: name.to_owned() });
    }
    // `mdadm` wants room for a NUL when there is a host.
    let whole = format!("any:{name}");
    Ok(if whole.len() < ROOM { whole } else { name.to_owned() })
}

/// Refuses what can't be, whatever the sizes are.
fn refuse(wanted: &Wanted) -> Result<(), Misfit> {
    let Wanted { level, ref members, ref spares, .. } = *wanted;
    let (name, devices) = (wanted.name.clone(), members.len() + spares.len());
    if members.len() < 2 {
        return Err(Misfit::Alone { name, level });
    }
    if devices > MOST_DEVICES {
        return Err(Misfit::Many { name, devices });
    }
    if level == Level::Raid0 && !spares.is_empty() {
        return Err(Misfit::Spares { name });
    }
    let mut paths = BTreeSet::new();
    match members.iter().chain(spares).find(|member| !paths.insert(&member.path)) {
        Some(member) => Err(Misfit::Twice { name, path: member.path.clone() }),
        None => Ok(()),
    }
}

/// Decides everything, from sizes alone.
pub(crate) fn plan(wanted: &Wanted) -> Result<Plan, Misfit> {
    refuse(wanted)?;
    let Wanted { uuid, level, metadata, created, ref members, ref spares, .. } = *wanted;
    let (name, set_name) = (wanted.name.clone(), with_host(&wanted.name)?);
    let all: Vec<&Member> = members.iter().chain(spares).collect();
    let smallest = all.iter().map(|member| member.bytes / SECTOR).min().unwrap_or_default();
    let offset = data_offset(metadata, level, smallest);
    let has_bitmap = level == Level::Raid1 && bitmap::WORTH_SECTORS.contains(&smallest.saturating_sub(offset));
    let bitmap_room = bitmap::room(smallest);
    let bitmap_sectors = match level {
        Level::Raid0 => 0,
        Level::Raid1 if has_bitmap => bitmap::sectors(smallest, bitmap_room),
        // For one that is added later.
        Level::Raid1 => bitmap_room / SECTOR,
    };
    let places = all.iter().map(|member| {
        let place = Place::of(member.bytes / SECTOR, metadata, offset, bitmap_sectors);
        place.filter(|place| place.data >= smallest_data(level)).ok_or_else(|| Misfit::Small {
            name: name.clone(),
            path: member.path.clone(),
            bytes: member.bytes,
            own: (offset + smallest_data(level)) * SECTOR,
        })
    });
    let places = places.collect::<Result<Vec<Place>, Misfit>>()?;
    let least = places.iter().map(|place| place.data).min().unwrap_or_default();
    let used = least / ROUND_SECTORS * ROUND_SECTORS;
    let uneven = places.iter().any(|place| place.data != least);
    let resync = level == Level::Raid1 && wanted.contents == Contents::Unknown;

    let mut roles = vec![Role::Spare; MOST_DEVICES];
    for (place, role) in (0..).take(members.len()).zip(&mut roles) {
        *role = Role::Active(place);
    }
    let raid_disks = u32::try_from(members.len()).unwrap_or(u32::MAX);
    let writes = (0..).zip(&all).zip(&places).map(|((number, member), place)| {
        let mut superblock = Superblock {
            features: 0,
            array: uuid,
            name: set_name.clone(),
            created,
            level: level.number(),
            layout: 0,
            size: 0,
            chunk: 0,
            raid_disks,
            bitmap_offset: 0,
            data_offset: offset,
            data_size: place.data,
            super_offset: place.superblock,
            number,
            member: member.uuid,
            bad_blocks: place::BAD_BLOCKS,
            bad_blocks_offset: place.bad_blocks,
            updated: created,
            events: 0,
            resync_offset: if resync { 0 } else { IN_SYNC },
            roles: roles.clone(),
        };
        match level {
            Level::Raid1 => superblock.size = used,
            Level::Raid0 => {
                superblock.chunk = u32::try_from(CHUNK_SECTORS).unwrap_or_default();
                if uneven {
                    superblock.features |= RAID0_LAYOUT;
                    superblock.layout = ORIGINAL_LAYOUT;
                }
            }
        }
        let mut writes = Writes::clearing(&member.path, member.bytes);
        // There may be a list of bad blocks of an array that was here before.
        if let Some(at) = place.superblock.checked_add_signed(place.bad_blocks.into()) {
            writes.zeros.push((at * SECTOR, usize::from(place::BAD_BLOCKS) * 512));
        }
        if has_bitmap && let Some(at) = place.superblock.checked_add_signed(place.bitmap.into()) {
            superblock.features |= BITMAP;
            superblock.bitmap_offset = place.bitmap;
            writes.pieces.push(Piece { offset: at * SECTOR, bytes: bitmap::to_bytes(uuid, used, bitmap_room, resync) });
        }
        writes.pieces.push(Piece { offset: place.superblock * SECTOR, bytes: superblock.to_bytes() });
        writes
    });
    let writes = writes.collect();
    let bytes = match level {
        Level::Raid1 => Some(used * SECTOR),
        Level::Raid0 => places
            .iter()
            .map(|place| place.data / CHUNK_SECTORS * CHUNK_SECTORS * SECTOR)
            .try_fold(0, u64::checked_add)
            .filter(|bytes| i64::try_from(*bytes).is_ok()),
    };
    let bytes = bytes.ok_or(Misfit::Large { name })?;
    Ok(Plan { uuid, name: set_name, level, metadata, bytes, resync, writes, spares: spares.len() })
}

/// Destroys what the members hold, and starts the array. If that fails no array is left running.
pub(crate) fn make(plan: &Plan) -> anyhow::Result<Array> {
    let make = || {
        kernel::check_driver(plan.level.number())?;
        for writes in &plan.writes {
            writes.carry_out()?;
        }
        let members: Vec<_> = plan.writes.iter().map(|writes| writes.path.as_path()).collect();
        let copying = if plan.resync { Copying::Later } else { Copying::Now };
        let array = kernel::start(&plan.name, plan.metadata.minor(), &members, copying)?;
        let fresh = || {
            anyhow::ensure!(
                array.bytes == plan.bytes,
                "the kernel made an array of {} bytes of it, and {} were expected",
                array.bytes,
                plan.bytes
            );
            // Where the data begin, old data may begin as well.
            Writes::clearing(&array.node, array.bytes).carry_out()
        };
        match fresh() {
            Ok(()) => Ok(array),
            Err(e) => Err(array.abandon(e)),
        }
    };
    make().with_context(|| format!("making the array {}", plan.name))
}

/// What a member can't have less of.
fn smallest_data(level: Level) -> u64 {
    match level {
        Level::Raid0 => CHUNK_SECTORS,
        Level::Raid1 => ROUND_SECTORS,
    }
}

impl Level {
    fn number(self) -> i32 {
        match self {
            Self::Raid0 => 0,
            Self::Raid1 => 1,
        }
    }
}

impl Metadata {
    pub(crate) fn minor(self) -> u8 {
        match self {
            Self::V1_0 => 0,
            Self::V1_2 => 2,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RAID {}", self.number())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, level, bytes, .. } = self;
        let paths: Vec<_> = self.writes.iter().map(|writes| writes.path.display().to_string()).collect();
        let (members, spares) = paths.split_at(paths.len().saturating_sub(self.spares));
        write!(f, "{level} {name}, UUID {}, metadata 1.{}: ", written(self.uuid), self.metadata.minor())?;
        write!(f, "{} on {}", words::bytes(*bytes), members.join(", "))?;
        if !spares.is_empty() {
            write!(f, ", and {} as spare", spares.join(", "))?;
        }
        if self.resync {
            write!(f, "; the installed system will copy the first to the others")?;
        }
        Ok(())
    }
}

/// A device, and a superblock whose checksum is right: what is understood of it is understood again.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Some((size, mut read)) = crate::signatures::fuzz_device(bytes)
        && let Ok(Some(part)) = existing::part("/dev/x".as_ref(), &mut read, size, 512)
    {
        let found = existing::arrays(vec![part]);
        assert!(found.arrays.iter().all(|array| array.members.len() == 1 && array.stale.is_empty()));
        found.arrays.iter().for_each(|array| assert!(array.missing().len() <= usize::from(u16::MAX)));
    }
    superblock::fuzz(bytes);
}
