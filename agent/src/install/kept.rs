//! What lies on the drives that a reinstall keeps, as far as the installed system has to find it.
//!
//! It was made by an earlier install and is its tenant's since: it may be larger, have other volumes and another UUID than
//! was planned. So nothing is compared with a plan; what the layout names must be there, and is named to the system by what
//! doesn't change with its contents: partitions by their GUID, arrays by theirs, volumes by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use drophammer_protocol::inventory::DiskId;
use drophammer_protocol::layout::{self, Device, Filesystem, Layout};
use uuid::Uuid;

use super::gpt;
use super::layout::partition_node;
use crate::sys::block;
use crate::untouched::Watched;
use crate::volumes::{lvm, md};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// With their names in the layout.
    pub(crate) drives: Vec<(String, DiskId)>,
    /// With their names in the layout.
    pub(crate) arrays: Vec<(String, md::Existing)>,
    pub(crate) has_groups: bool,
    /// What fstab and crypttab call the device, and what is on it.
    pub(crate) encrypted: Vec<(String, layout::Encrypted)>,
    pub(crate) filesystems: Vec<(String, Filesystem)>,
}

/// A partition of the layout that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct There {
    node: PathBuf,
    guid: Uuid,
}

/// `stays` is the part of the layout that is kept.
pub(crate) fn read(stays: &Layout, drives: &BTreeMap<String, DiskId>, watched: &[Watched]) -> Result<Kept, String> {
    let mut there = BTreeMap::new();
    let mut kept = Kept::default();
    for drive in &stays.drives {
        let id =
            drives.get(&drive.name).ok_or_else(|| format!("the order doesn't say which drive is {:?}", drive.name))?;
        let watched = watched.iter().find(|watched| watched.id() == id).ok_or_else(|| {
            format!("{id} is to be kept as {:?}, and the erase order of this boot didn't say so", drive.name)
        })?;
        let disk = watched.disk();
        kept.drives.push((drive.name.clone(), id.clone()));
        if drive.partitions.is_empty() {
            continue;
        }
        let read = || -> anyhow::Result<BTreeMap<u32, (String, Uuid)>> {
            gpt::read(&mut &disk.file, block::logical_block(&disk.file)?)
        };
        let table = read().map_err(|e| lost(id, &format!("its partition table can't be read ({e:#})")))?;
        for partition in &drive.partitions {
            let mut called = table.iter().filter(|(_, (name, _))| *name == partition.name);
            let (Some((number, (_, guid))), None) = (called.next(), called.next()) else {
                return Err(lost(id, &format!("it hasn't got one partition called {:?}", partition.name)));
            };
            let node = partition_node(&disk.facts.name, *number);
            there.insert(format!("{}/{}", drive.name, partition.name), There { node, guid: *guid });
        }
    }
    kept.arrays = arrays(stays, &there)?;
    kept.has_groups = !stays.groups.is_empty();
    groups(stays, &there)?;
    let source = |on: &str| source(stays, on, &there, &kept.arrays);
    for encrypted in &stays.encrypted {
        kept.encrypted.push((source(&encrypted.on)?, encrypted.clone()));
    }
    for filesystem in &stays.filesystems {
        kept.filesystems.push((source(filesystem.on.as_deref().unwrap_or_default())?, filesystem.clone()));
    }
    Ok(kept)
}

fn lost(id: &DiskId, what: &str) -> String {
    format!(
        "{id} is to be kept, but {what}: put that right, or have everything erased by `drophammer machine reprovision`"
    )
}

fn not_whole(what: &str, devices: &[String], unusable: &[String]) -> String {
    let unusable = if unusable.is_empty() { String::new() } else { format!(" ({})", unusable.join("; ")) };
    format!("the {what}, which is to be kept, isn't whole on {}{unusable}", devices.join(", "))
}

fn arrays(stays: &Layout, there: &BTreeMap<String, There>) -> Result<Vec<(String, md::Existing)>, String> {
    if stays.raids.is_empty() {
        return Ok(Vec::new());
    }
    let paths: Vec<&Path> = there.values().map(|there| there.node.as_path()).collect();
    let found = md::find(&paths);
    let one = |raid: &layout::Raid| {
        let array = found.arrays.iter().find(|array| array.own_name() == raid.name);
        let array = array.filter(|array| array.missing().is_empty() || array.level > 0);
        let why = || not_whole(&format!("array {:?}", raid.name), &raid.devices, &found.unusable);
        array.map(|array| (raid.name.clone(), array.clone())).ok_or_else(why)
    };
    stays.raids.iter().map(one).collect()
}

/// Those on partitions must have the layout's volumes. What is inside of an array only who starts it sees, which writes.
fn groups(stays: &Layout, there: &BTreeMap<String, There>) -> Result<(), String> {
    for group in &stays.groups {
        let paths: Option<Vec<&Path>> =
            group.devices.iter().map(|device| there.get(device).map(|there| there.node.as_path())).collect();
        let Some(paths) = paths else { continue };
        let found = lvm::find(&paths);
        let existing = found.groups.iter().find(|existing| existing.group.name == group.name);
        let existing = existing
            .filter(|existing| existing.missing().is_empty())
            .ok_or_else(|| not_whole(&format!("volume group {}", group.name), &group.devices, &found.unusable))?;
        let gone = group.volumes.iter().find(|volume| !existing.volumes().any(|logical| logical.name == volume.name));
        if let Some(volume) = gone {
            return Err(format!(
                "the volume group {}, which is to be kept, has no volume {} any more",
                group.name, volume.name
            ));
        }
    }
    Ok(())
}

/// As fstab and crypttab have it.
fn source(
    stays: &Layout,
    on: &str,
    there: &BTreeMap<String, There>,
    arrays: &[(String, md::Existing)],
) -> Result<String, String> {
    let unknown = || format!("the layout has no {on:?} that is kept");
    match stays.device(on).ok_or_else(unknown)? {
        Device::Partition { .. } => there.get(on).map(|there| format!("PARTUUID={}", there.guid)).ok_or_else(unknown),
        Device::Raid(raid) => {
            let array = arrays.iter().find(|(name, _)| *name == raid.name);
            array.map(|(_, array)| format!("/dev/disk/by-id/md-uuid-{}", md::written(array.uuid))).ok_or_else(unknown)
        }
        Device::Volume { group, volume } => Ok(format!("/dev/mapper/{}", lvm::device_name(&group.name, &volume.name))),
        Device::Encrypted(encrypted) => Ok(format!("/dev/mapper/{}", encrypted.name)),
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, id) in &self.drives {
            write!(f, "; {name} ({id}) is kept")?;
        }
        for (source, filesystem) in &self.filesystems {
            write!(f, ", with {} on {source}", filesystem.format.name())?;
            if let Some(place) = &filesystem.mount {
                write!(f, " at {place}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_calls_it() {
        let stays: Layout = serde_json::from_value(serde_json::json!({
            "drive": [{ "name": "d", "keep": true, "partitions": [{ "name": "own" }, { "name": "pv" }, { "name": "m" }] }],
            "raid": [{ "name": "r", "level": 1, "devices": ["d/m"] }],
            "volume_group": [{ "name": "vg-a", "devices": ["d/pv"], "volumes": [{ "name": "srv", "size": "rest" }] }],
            "encrypted": [{ "name": "safe", "on": "vg-a/srv" }],
            "filesystem": [],
        }))
        .expect("a layout");
        let guid = Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888);
        let there = BTreeMap::from([("d/own".to_owned(), There { node: "/dev/sdb1".into(), guid })]);
        let array = md::Existing {
            uuid: guid,
            name: "any:r".into(),
            level: 1,
            minor_version: 2,
            raid_disks: 1,
            members: vec![],
            stale: vec![],
        };
        let arrays = [("r".to_owned(), array)];
        for (on, want) in [
            ("d/own", Some("PARTUUID=11112222-3333-4444-5555-666677778888")),
            ("r", Some("/dev/disk/by-id/md-uuid-11112222:33334444:55556666:77778888")),
            ("vg-a/srv", Some("/dev/mapper/vg--a-srv")),
            ("safe", Some("/dev/mapper/safe")),
            ("d/pv", None),
            ("x", None),
        ] {
            assert_eq!(source(&stays, on, &there, &arrays).ok().as_deref(), want, "{on}");
        }
    }

    #[test]
    fn nothing_is_kept_that_nobody_watched() {
        let drive = layout::Drive { name: "d".into(), keep: true, select: Default::default(), partitions: vec![] };
        let stays = Layout { drives: vec![drive], ..Layout::default() };
        let drives = BTreeMap::from([("d".to_owned(), DiskId::new("S", 1))]);
        let said = read(&stays, &drives, &[]).expect_err("refused");
        assert!(said.contains("the erase order of this boot didn't say so"), "{said}");
        assert_eq!(read(&Layout::default(), &BTreeMap::new(), &[]), Ok(Kept::default()), "an install like any other");
    }
}
