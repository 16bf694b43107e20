//! What a layout comes to on this machine's drives: a plan that can be printed, compared and refused before anything is
//! written.
//!
//! Every name in it comes from a seed, so that a repeated install of the same order writes the same bytes. Sizes are known
//! all the way up, from the drives to the file systems, since arrays and volume groups are planned as well: what doesn't fit
//! is found here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use drophammer_protocol::inventory::FirmwareKind;
use drophammer_protocol::layout::{self, Amount, Filesystem, Kind, Layout, Spread, mounting_order, place};
use drophammer_protocol::space::MIB;
use drophammer_protocol::words::bytes;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::mkfs;
use crate::volumes::{Contents, Member, luks, lvm, md};

/// What a drive says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) bytes: u64,
    pub(crate) logical_block: u32,
}

/// A drive of the layout, as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// In the layout.
    pub(crate) name: String,
    /// The kernel's name.
    pub(crate) kernel_name: String,
    pub(crate) geometry: Geometry,
}

/// What a partition is used for, which is what its type in the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    BiosBoot,
    /// With FAT's volume id, which is what `UUID=` means for it.
    Esp(u32),
    Root,
    Data,
    Swap,
    Raid,
    Lvm,
}

/// First and last block, both included, as the GPT has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) number: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) guid: Uuid,
}

/// The partition table of one drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// In the layout.
    pub(crate) drive: String,
    pub(crate) geometry: Geometry,
    pub(crate) guid: Uuid,
    pub(crate) partitions: Vec<Partition>,
    /// Whether the firmware starts from it.
    pub(crate) starts: bool,
}

/// A file system, and how it's made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    /// Name of the device in the layout.
    pub(crate) on: String,
    /// Of the device.
    pub(crate) bytes: u64,
    pub(crate) format: mkfs::Format,
    pub(crate) wanted: Filesystem,
    pub(crate) making: mkfs::Making,
}

/// Everything, from the drives up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) tables: Vec<Table>,
    /// With their names in the layout.
    pub(crate) arrays: Vec<(String, md::Plan)>,
    pub(crate) groups: Vec<Group>,
    pub(crate) encrypted: Vec<Encrypted>,
    pub(crate) made: Vec<Made>,
    /// Those that are on nothing.
    pub(crate) tmpfs: Vec<Filesystem>,
    root: usize,
    boot: usize,
}

/// A volume group. Where its arrays will be is known when they run, so the plan for its members is made once more then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) wanted: lvm::Wanted,
    /// Its devices by their names in the layout, in the order of [`lvm::Wanted::members`].
    pub(crate) devices: Vec<String>,
    pub(crate) plan: lvm::Plan,
}

/// An encrypted volume, by its name in the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encrypted {
    pub(crate) name: String,
    /// Name of the device in the layout.
    pub(crate) on: String,
    pub(crate) new: luks::New,
}

/// What all names of one install are derived from.
#[derive(Clone, Debug)]
pub(crate) struct Seed([u8; 32]);

impl Seed {
    pub(crate) fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new_with_prefix("drophammer layout 2");
        for part in parts {
            // With its length, so that ("ab", "c") and ("a", "bc") differ.
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    pub(crate) fn uuid(&self, what: &str) -> Uuid {
        let hash: [u8; 32] = Sha256::new_with_prefix(self.0).chain_update(what).finalize().into();
        let (bytes, _) = hash.split_first_chunk::<16>().expect("32 is more than 16");
        uuid::Builder::from_random_bytes(*bytes).into_uuid()
    }

    fn u32(&self, what: &str) -> u32 {
        let (a, _, _, _) = self.uuid(what).as_fields();
        a
    }
}

/// What an install knows beside the layout and the drives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances<'a> {
    pub(crate) firmware: FirmwareKind,
    pub(crate) seed: &'a Seed,
    pub(crate) hostname: &'a str,
    /// Seconds since 1970.
    pub(crate) now: u64,
    pub(crate) tools: &'a mkfs::Tools,
}

/// A device of the layout, before there is one.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    bytes: u64,
    logical_block: u32,
}

/// `found` has every drive of the layout. What is refused is refused in a sentence.
pub(crate) fn plan(layout: &Layout, found: &[Found], around: &Circumstances<'_>) -> Result<Plan, String> {
    layout.check().map_err(|faults| format!("the layout can't be: {faults}"))?;
    let start = layout.start(around.firmware)?;
    let mut places = BTreeMap::new();
    let mut tables = Vec::new();
    for drive in layout.drives.iter().filter(|drive| !drive.partitions.is_empty()) {
        let found = found.iter().find(|found| found.name == drive.name);
        let found = found.ok_or_else(|| format!("the order doesn't say which drive is {:?}", drive.name))?;
        // BIOS calls and GRUB's boot.img count in sectors of 512 bytes and fail on anything else.
        let readable = around.firmware == FirmwareKind::Uefi || found.geometry.logical_block == 512;
        let starts = readable && start.from.iter().any(|from| from.name == drive.name);
        let table = table(layout, drive, found, starts, around.seed).map_err(|e| e.to_string())?;
        for partition in &table.partitions {
            let place = Place {
                path: partition_node(&found.kernel_name, partition.number),
                bytes: table.length_bytes(partition),
                logical_block: found.geometry.logical_block,
            };
            places.insert(format!("{}/{}", drive.name, partition.name), place);
        }
        tables.push(table);
    }
    if !tables.iter().any(|table| table.starts) {
        return Err("this machine has a BIOS, which can't start from a disk with blocks of 4096 bytes".into());
    }
    let mut arrays = Vec::new();
    for raid in &layout.raids {
        let plan = array(raid, start.plain_to_grub == Some(raid.name.as_str()), &places, around)?;
        let logical_block = largest_block(&raid.devices, &places);
        // The kernel gives it another number; nobody looks at this path.
        let path = Path::new("/dev/md").join(&raid.name);
        places.insert(raid.name.clone(), Place { path, bytes: plan.bytes, logical_block });
        arrays.push((raid.name.clone(), plan));
    }
    let mut groups = Vec::new();
    for group in &layout.groups {
        let planned = volume_group(group, &places, around)?;
        let logical_block = largest_block(&group.devices, &places);
        for volume in &group.volumes {
            let made = planned.plan.group.logical.iter().find(|logical| logical.visible && logical.name == volume.name);
            let bytes = made.map_or(0, |logical| logical.extents() * planned.plan.group.extent_sectors * 512);
            let path = Path::new("/dev").join(&group.name).join(&volume.name);
            places.insert(format!("{}/{}", group.name, volume.name), Place { path, bytes, logical_block });
        }
        groups.push(planned);
    }
    let mut encrypted = Vec::new();
    for wanted in &layout.encrypted {
        let place = places.get(&wanted.on).ok_or_else(|| format!("the layout has no {}", wanted.on))?;
        let uuid = around.seed.uuid(&format!("the encrypted volume {}", wanted.name));
        let new = luks::New { uuid, label: wanted.name.clone(), bytes: place.bytes };
        new.check().map_err(|e| format!("the encrypted volume {}: {e}", wanted.name))?;
        let inside = Place {
            path: Path::new("/dev/mapper").join(&wanted.name),
            bytes: new.inner_bytes(),
            logical_block: place.logical_block.max(new.sector()),
        };
        encrypted.push(Encrypted { name: wanted.name.clone(), on: wanted.on.clone(), new });
        places.insert(wanted.name.clone(), inside);
    }
    let mut made = Vec::new();
    let mut tmpfs = Vec::new();
    for filesystem in &layout.filesystems {
        match &filesystem.on {
            None => tmpfs.push(filesystem.clone()),
            Some(on) => made.push(make(filesystem, on, &places, around)?),
        }
    }
    let position = |place: &str| made.iter().position(|made: &Made| made.wanted.mount.as_deref() == Some(place));
    let root = position("/").ok_or("the layout mounts nothing at /")?;
    let boot = position("/boot").unwrap_or(root);
    Ok(Plan { tables, arrays, groups, encrypted, made, tmpfs, root, boot })
}

fn table(
    layout: &Layout,
    drive: &layout::Drive,
    found: &Found,
    starts: bool,
    seed: &Seed,
) -> Result<Table, layout::Misplaced> {
    let Geometry { bytes, logical_block } = found.geometry;
    let block = u64::from(logical_block);
    let extents = place(drive, bytes, logical_block)?;
    let partitions = (1..).zip(&drive.partitions).zip(extents).map(|((number, partition), extent)| {
        let name = format!("{}/{}", drive.name, partition.name);
        Partition {
            name: partition.name.clone(),
            role: role(layout, partition.kind, &name, seed),
            number,
            first: extent.start / block,
            last: (extent.start + extent.bytes) / block - 1,
            guid: seed.uuid(&format!("partition {name}")),
        }
    });
    Ok(Table {
        drive: drive.name.clone(),
        geometry: found.geometry,
        guid: seed.uuid(&format!("drive {}", drive.name)),
        partitions: partitions.collect(),
        starts,
    })
}

fn role(layout: &Layout, kind: Kind, name: &str, seed: &Seed) -> Role {
    let uses = |list: &[String]| list.iter().any(|used| used == name);
    let on_it = layout.filesystems.iter().find(|filesystem| filesystem.on.as_deref() == Some(name));
    match kind {
        Kind::Bios => Role::BiosBoot,
        Kind::Esp => Role::Esp(seed.u32(&format!("volume {name}"))),
        Kind::Linux if layout.raids.iter().any(|raid| uses(&raid.devices) || uses(&raid.spares)) => Role::Raid,
        Kind::Linux if layout.groups.iter().any(|group| uses(&group.devices)) => Role::Lvm,
        Kind::Linux => match on_it {
            Some(root) if root.mount.as_deref() == Some("/") => Role::Root,
            Some(swap) if swap.format == layout::Format::Swap => Role::Swap,
            _ => Role::Data,
        },
    }
}

/// As the kernel calls them.
pub(super) fn partition_node(drive: &str, number: u32) -> PathBuf {
    let between = if drive.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    PathBuf::from(format!("/dev/{drive}{between}{number}"))
}

fn members(names: &[String], places: &BTreeMap<String, Place>, what: &str, seed: &Seed) -> Result<Vec<Member>, String> {
    let member = |name: &String| {
        let place = places.get(name).ok_or_else(|| format!("there is no {name} for {what}"))?;
        let uuid = seed.uuid(&format!("{name} in {what}"));
        Ok(Member { path: place.path.clone(), bytes: place.bytes, uuid })
    };
    names.iter().map(member).collect()
}

fn largest_block(names: &[String], places: &BTreeMap<String, Place>) -> u32 {
    names.iter().filter_map(|name| places.get(name)).map(|place| place.logical_block).max().unwrap_or(512)
}

fn array(
    raid: &layout::Raid,
    plain_to_grub: bool,
    places: &BTreeMap<String, Place>,
    around: &Circumstances<'_>,
) -> Result<md::Plan, String> {
    let what = format!("the array {}", raid.name);
    let wanted = md::Wanted {
        uuid: around.seed.uuid(&what),
        name: raid.name.clone(),
        level: if raid.level == 0 { md::Level::Raid0 } else { md::Level::Raid1 },
        metadata: if plain_to_grub { md::Metadata::V1_0 } else { md::Metadata::V1_2 },
        created: around.now,
        members: members(&raid.devices, places, &what, around.seed)?,
        spares: members(&raid.spares, places, &what, around.seed)?,
        // They were erased, but only some of it was looked at.
        contents: Contents::Unknown,
    };
    md::plan(&wanted).map_err(|e| e.to_string())
}

fn volume_group(
    group: &layout::VolumeGroup,
    places: &BTreeMap<String, Place>,
    around: &Circumstances<'_>,
) -> Result<Group, String> {
    let what = format!("the volume group {}", group.name);
    let members = members(&group.devices, places, &what, around.seed)?;
    let all = lvm::usable_bytes(&members);
    let volumes = group.volumes.iter().map(|volume| lvm::WantedVolume {
        name: volume.name.clone(),
        uuid: around.seed.uuid(&format!("the volume {}/{}", group.name, volume.name)),
        size: match volume.size {
            Amount::Bytes(bytes) => lvm::Size::Bytes(bytes),
            Amount::Percent(percent) => lvm::Size::Bytes(all / 100 * u64::from(percent)),
            Amount::Rest => lvm::Size::Rest,
        },
        layout: match volume.spread {
            Spread::Linear => lvm::Layout::Linear,
            Spread::Striped => lvm::Layout::Striped,
            Spread::Raid1 => lvm::Layout::Raid1,
        },
    });
    let wanted = lvm::Wanted {
        uuid: around.seed.uuid(&what),
        name: group.name.clone(),
        tags: group.tags.clone(),
        host: around.hostname.to_owned(),
        created: around.now,
        volumes: volumes.collect(),
        members,
        contents: Contents::Unknown,
    };
    let plan = lvm::plan(&wanted).map_err(|e| e.to_string())?;
    Ok(Group { wanted, devices: group.devices.clone(), plan })
}

fn make(
    wanted: &Filesystem,
    on: &str,
    places: &BTreeMap<String, Place>,
    around: &Circumstances<'_>,
) -> Result<Made, String> {
    let place = places.get(on).ok_or_else(|| format!("the layout has no {on}"))?;
    let what = format!("the file system on {on}");
    let uuid = around.seed.uuid(&what);
    let format = match wanted.format {
        layout::Format::Ext3 => mkfs::Format::Ext3(uuid),
        layout::Format::Ext4 => mkfs::Format::Ext4(uuid),
        layout::Format::Xfs => mkfs::Format::Xfs(uuid),
        layout::Format::Vfat => mkfs::Format::Vfat(around.seed.u32(&what)),
        layout::Format::Swap => mkfs::Format::Swap(uuid),
        layout::Format::Tmpfs => return Err(format!("a tmpfs can't be on {on}")),
    };
    let new = mkfs::New {
        format,
        label: wanted.label.as_deref().unwrap_or_default(),
        bytes: place.bytes,
        logical_block: place.logical_block,
        options: &wanted.create_options,
    };
    let making = mkfs::plan(&new, around.tools).map_err(|e| format!("{what}: {e}"))?;
    Ok(Made { on: on.to_owned(), bytes: place.bytes, format, wanted: wanted.clone(), making })
}

impl Plan {
    pub(crate) fn root(&self) -> &Made {
        &self.made[self.root]
    }

    /// The file system with the kernel, and with what GRUB reads.
    pub(crate) fn boot(&self) -> &Made {
        &self.made[self.boot]
    }

    /// What is mounted, the root first, each behind what it lies in.
    pub(crate) fn mounted(&self) -> Vec<&Made> {
        let mut mounted: Vec<&Made> = self.made.iter().filter(|made| made.wanted.mount.is_some()).collect();
        mounted.sort_by_key(|made| made.wanted.mount.as_deref().map(mounting_order));
        mounted
    }

    pub(crate) fn boot_is_apart(&self) -> bool {
        self.boot != self.root
    }

    /// `UUID=` of the EFI system partition that the installed system mounts.
    pub(crate) fn esp_uuid(&self) -> Option<String> {
        let volumes =
            self.tables.iter().flat_map(|table| &table.partitions).filter_map(|partition| match partition.role {
                Role::Esp(volume) => Some(mkfs::fat_uuid(volume)),
                _ => None,
            });
        volumes.into_iter().next()
    }

    /// What the kernel is told of its root. Without an initrd it's the kernel itself that looks for it, and it knows
    /// partitions by their GPT names only.
    pub(crate) fn root_argument(&self, initrd: bool) -> Result<String, String> {
        let root = self.root();
        let (of, part) = root.on.split_once('/').unwrap_or((&root.on, ""));
        let partition = self.tables.iter().find(|table| table.drive == of);
        let partition = partition.and_then(|table| table.partitions.iter().find(|partition| partition.name == part));
        match partition {
            _ if initrd && self.groups.iter().any(|group| group.wanted.name == of) => {
                // lvm2's scripts in initramfses activate what is called so, and wait in vain for a UUID.
                Ok(format!("root=/dev/mapper/{}", lvm::device_name(of, part)))
            }
            _ if initrd => Ok(format!("root=UUID={}", root.format.uuid())),
            Some(partition) => Ok(format!("root=PARTUUID={} rootwait", partition.guid)),
            None => Err(format!(
                "the image has no initrd, and without one its kernel finds a root on a partition only, not on {}",
                root.on
            )),
        }
    }

    /// Whether a file system of its own lies where images have files (hier(7)), so that they have to be unpacked into both.
    pub(crate) fn divides_image(&self) -> bool {
        const FILLED: [&str; 6] = ["boot", "etc", "opt", "root", "usr", "var"];
        let places = self.made.iter().filter_map(|made| made.wanted.mount.as_deref());
        places.filter_map(|place| place.split('/').nth(1)).any(|first| FILLED.contains(&first))
    }
}

impl Table {
    pub(crate) fn start_bytes(&self, partition: &Partition) -> u64 {
        partition.first * u64::from(self.geometry.logical_block)
    }

    pub(crate) fn length_bytes(&self, partition: &Partition) -> u64 {
        (partition.last - partition.first + 1) * u64::from(self.geometry.logical_block)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, table) in self.tables.iter().enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(f, "{between}{table}")?;
        }
        for (_, plan) in &self.arrays {
            write!(f, "; {plan}")?;
        }
        for group in &self.groups {
            write!(f, "; {}", group.plan)?;
        }
        for Encrypted { name, on, new } in &self.encrypted {
            write!(f, "; LUKS2 {} on {on}, opened as {name}", new.uuid)?;
        }
        for made in &self.made {
            write!(f, "; {} {} of {} on {}", made.format, made.format.uuid(), bytes(made.bytes), made.on)?;
            if let Some(place) = &made.wanted.mount {
                write!(f, " at {place}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { drive, geometry, guid, .. } = self;
        write!(f, "{drive} with GPT {guid} on {} bytes in blocks of {}", geometry.bytes, geometry.logical_block)?;
        for partition in &self.partitions {
            let what = match partition.role {
                Role::BiosBoot => "BIOS boot".to_owned(),
                Role::Esp(volume) => format!("EFI system, FAT32 {}", mkfs::fat_uuid(volume)),
                Role::Root => "root".to_owned(),
                Role::Data => "data".to_owned(),
                Role::Swap => "swap".to_owned(),
                Role::Raid => "of an array".to_owned(),
                Role::Lvm => "of a volume group".to_owned(),
            };
            let mib = self.length_bytes(partition) / MIB;
            write!(f, ", {}: {} ({what}), {mib} MiB at block {}", partition.number, partition.name, partition.first)?;
        }
        Ok(())
    }
}

/// A plan for one drive, as most machines have it.
#[cfg(test)]
pub(super) fn ordinary(bytes: u64, logical_block: u32, firmware: FirmwareKind) -> Result<Plan, String> {
    let found = Found {
        name: layout::SYSTEM.into(),
        kernel_name: "nvme0n1".into(),
        geometry: Geometry { bytes, logical_block },
    };
    let (seed, tools) = (Seed::of(&["test"]), mkfs::Tools::find());
    let around = Circumstances { firmware, seed: &seed, hostname: "web1", now: 0, tools: &tools };
    plan(&Layout::single(None), &[found], &around)
}

#[cfg(test)]
pub(super) mod tests;
