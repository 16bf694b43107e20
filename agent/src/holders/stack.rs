//! What stands on what on this host: block devices, the file systems and the swap on them, read from sysfs and procfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::claims::{self, Claimant};
use super::mounts::{self, Line, Mount, Tree};
use super::processes::{self, Process};
use crate::inventory::sysfs;

/// Everything that can hold a drive, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stack {
    pub(super) devices: BTreeMap<String, Device>,
    pub(super) mounts: Vec<Mount>,
    /// Mounts that only other processes have.
    pub(super) elsewhere: Vec<Elsewhere>,
    pub(super) swaps: Vec<Swap>,
    /// Drives and partitions of those asked about that can't be opened exclusively.
    pub(super) claims: BTreeMap<String, Claimant>,
    /// The file of this very program.
    pub(super) program: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) kind: Kind,
    /// What it's made of.
    pub(super) on: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made of nothing that is a block device.
    Drive,
    Partition,
    /// Of the device mapper: LVM, LUKS, multipath and more.
    Mapping {
        name: String,
        uuid: String,
    },
    /// Of the md driver.
    Array,
    Loop {
        file: PathBuf,
    },
    /// A cached device, or one that waits for its cache. `stop` has the switch, and isn't the device itself as long as
    /// that waits.
    Bcache {
        stop: String,
    },
    CacheSet,
    Drbd {
        resource: Option<String>,
    },
    /// Made of other devices in a way that isn't known here.
    Stranger,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Swap {
    pub(super) path: PathBuf,
    /// The device, or those of the file system that the file lies on.
    pub(super) on: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    pub(super) place: PathBuf,
    pub(super) on: BTreeSet<String>,
    pub(super) process: Process,
}

impl Stack {
    /// Names of the devices that are made of this one.
    pub(super) fn above<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.devices.iter().filter(move |(_, device)| device.on.contains(name)).map(|(above, _)| above.as_str())
    }

    /// A drive and its partitions.
    pub(super) fn parts<'a>(&'a self, drive: &'a str) -> impl Iterator<Item = &'a str> {
        let is_part = |name: &&str| self.devices.get(*name).is_some_and(|device| device.kind == Kind::Partition);
        std::iter::once(drive).chain(self.above(drive).filter(is_part))
    }

    /// The drives at the bottom of a device.
    pub(super) fn drives_below<'a>(&'a self, name: &'a str) -> BTreeSet<&'a str> {
        let (mut drives, mut seen, mut todo) = (BTreeSet::new(), BTreeSet::new(), vec![name]);
        while let Some(name) = todo.pop() {
            if seen.insert(name) {
                match self.devices.get(name) {
                    Some(device) if !device.on.is_empty() => todo.extend(device.on.iter().map(String::as_str)),
                    _ => {
                        drives.insert(name);
                    }
                }
            }
        }
        drives
    }
}

/// Reads what is below `root`, which is `/` on a machine; `drives` alone are opened, to see whether somebody claims them.
pub(super) fn read(root: &Path, drives: &[&str]) -> Stack {
    let mut devices = Devices::read(root);
    let volumes = btrfs_volumes(root);
    let lines = mounts::parse(&sysfs::bytes(&root.join("proc/self/mountinfo")).unwrap_or_default());
    let mut mounts: Vec<Mount> = lines
        .iter()
        .map(|line| Mount {
            id: line.id,
            parent: line.parent,
            place: line.place.clone(),
            kind: line.kind.clone(),
            on: devices.of(line, &volumes),
        })
        .collect();
    lay_over(&mut mounts, &lines);

    let tree = Tree::new(&mounts);
    let swaps = sysfs::bytes(&root.join("proc/swaps")).unwrap_or_default();
    let swaps = swaps.split(|b| *b == b'\n').skip(1).filter_map(|line| {
        let path = mounts::path(line.split(|b| b.is_ascii_whitespace()).next().filter(|path| !path.is_empty())?);
        let on = match devices.at(&path) {
            Some(name) => BTreeSet::from([name.to_owned()]),
            None => tree.at(&path, |_| true).map(|mount| mount.on.clone()).unwrap_or_default(),
        };
        Some(Swap { path, on })
    });
    let swaps = swaps.collect();
    devices.put_loops(&tree);

    let elsewhere = processes::other_mounts(root)
        .into_iter()
        .map(|(process, line)| Elsewhere { on: devices.of(&line, &volumes), place: line.place, process })
        .filter(|elsewhere| !elsewhere.on.is_empty())
        .collect();
    let program = fs::read_link(root.join("proc/self/exe")).ok();
    let mut stack = Stack { devices: devices.all, mounts, elsewhere, swaps, claims: BTreeMap::new(), program };
    stack.claims = claims::read(root, drives.iter().flat_map(|drive| stack.parts(drive)));
    stack
}

/// An overlay needs what its layers need. Layers may be overlays themselves.
fn lay_over(mounts: &mut [Mount], lines: &[Line]) {
    const DEEPEST: usize = 4;
    for _ in 0..DEEPEST {
        let mut found = Vec::new();
        let tree = Tree::new(mounts);
        for (place, line) in lines.iter().enumerate().filter(|(_, line)| line.kind == "overlay") {
            let below = mounts::layers(&line.options);
            let on = below.iter().filter_map(|layer| tree.at(layer, |id| id != line.id)).flat_map(|m| m.on.clone());
            found.push((place, on.collect::<BTreeSet<_>>()));
        }
        for (place, on) in found {
            if let Some(mount) = mounts.get_mut(place) {
                mount.on.extend(on);
            }
        }
    }
}

/// The members of each mounted btrfs; mountinfo shows one of them at most.
fn btrfs_volumes(root: &Path) -> Vec<BTreeSet<String>> {
    let dir = root.join("sys/fs/btrfs");
    let members = |volume: String| sysfs::names(&dir.join(volume).join("devices")).into_iter().collect();
    sysfs::names(&dir).into_iter().map(members).filter(|members: &BTreeSet<String>| !members.is_empty()).collect()
}

/// Devices, and the other names by which they are known.
struct Devices {
    all: BTreeMap<String, Device>,
    by_number: BTreeMap<String, String>,
    by_node: BTreeMap<PathBuf, String>,
}

impl Devices {
    fn read(root: &Path) -> Self {
        let mut devices = Self { all: BTreeMap::new(), by_number: BTreeMap::new(), by_node: BTreeMap::new() };
        let block = root.join("sys/block");
        let mut held_by = Vec::new();
        for whole in sysfs::names(&block) {
            let dir = block.join(&whole);
            for part in sysfs::names(&dir) {
                let dir = dir.join(&part);
                if dir.join("partition").exists() {
                    devices.put(&dir, &part, Device { kind: Kind::Partition, on: [whole.clone()].into() });
                    held_by.extend(sysfs::names(&dir.join("holders")).into_iter().map(|holder| (holder, part.clone())));
                    devices.put_waiting(&dir, &part);
                }
            }
            held_by.extend(sysfs::names(&dir.join("holders")).into_iter().map(|holder| (holder, whole.clone())));
            let mut on: BTreeSet<String> = sysfs::names(&dir.join("slaves")).into_iter().collect();
            let kind = kind(root, &dir, &whole, &on);
            if kind == Kind::Array {
                on.extend(container(&dir));
            }
            if let Some(Some(node)) = sysfs::text(&dir.join("backing_dev")).map(|node| device_name(Path::new(&node))) {
                // zram writes back to it, and says so nowhere else.
                on.insert(node);
            }
            devices.put(&dir, &whole, Device { kind, on });
            devices.put_waiting(&dir, &whole);
        }
        for (holder, held) in held_by {
            let stranger = || Device { kind: Kind::Stranger, on: BTreeSet::new() };
            devices.all.entry(holder).or_insert_with(stranger).on.insert(held);
        }
        devices.put_cache_sets(root);
        for device in devices.all.values_mut() {
            if device.kind == Kind::Drive && !device.on.is_empty() {
                device.kind = Kind::Stranger;
            }
        }
        devices
    }

    fn put(&mut self, dir: &Path, name: &str, device: Device) {
        if let Some(number) = sysfs::text(&dir.join("dev")) {
            self.by_number.insert(number, name.to_owned());
        }
        self.by_node.insert(sysfs::node(name), name.to_owned());
        if let Kind::Mapping { name: mapping, .. } = &device.kind {
            self.by_node.insert(Path::new("/dev/mapper").join(mapping), name.to_owned());
        }
        self.all.insert(name.to_owned(), device);
    }

    /// A device that bcache has taken and doesn't show yet, since its cache is missing: it has the switch itself.
    fn put_waiting(&mut self, dir: &Path, name: &str) {
        let bcache = dir.join("bcache");
        let shown = bcache.join("dev").exists() || name.starts_with("bcache");
        if bcache.exists() && !shown && fs::symlink_metadata(bcache.join("set")).is_err() {
            let device = Device { kind: Kind::Bcache { stop: name.to_owned() }, on: [name.to_owned()].into() };
            self.all.insert(format!("bcache on {name}"), device);
        }
    }

    /// A cache set is no block device; what is cached by it stands on it all the same.
    fn put_cache_sets(&mut self, root: &Path) {
        let dir = root.join("sys/fs/bcache");
        for set in sysfs::names(&dir) {
            let mut on = BTreeSet::new();
            for link in sysfs::names(&dir.join(&set)) {
                // Both kinds of links lead to the directory `bcache` of a device.
                let leads_to = || {
                    let target = fs::read_link(dir.join(&set).join(&link)).ok()?;
                    Some(target.parent()?.file_name()?.to_string_lossy().into_owned())
                };
                let numbered = |prefix| link.strip_prefix(prefix).is_some_and(|n: &str| n.parse::<u32>().is_ok());
                match leads_to() {
                    Some(cache) if numbered("cache") => {
                        on.insert(cache);
                    }
                    Some(backing) if numbered("bdev") => {
                        let cached = self.all.iter_mut().filter(|(_, device)| {
                            matches!(device.kind, Kind::Bcache { .. }) && device.on.contains(&backing)
                        });
                        cached.for_each(|(_, device)| {
                            device.on.insert(set.clone());
                        });
                    }
                    _ => {}
                }
            }
            if !on.is_empty() {
                self.all.insert(set, Device { kind: Kind::CacheSet, on });
            }
        }
    }

    /// A loop device stands on whatever its file lies on.
    fn put_loops(&mut self, tree: &Tree) {
        let mut found = Vec::new();
        for (name, device) in &self.all {
            if let Kind::Loop { file } = &device.kind {
                let on = match self.at(file) {
                    Some(device) => BTreeSet::from([device.to_owned()]),
                    None => tree.at(file, |_| true).map(|mount| mount.on.clone()).unwrap_or_default(),
                };
                found.push((name.clone(), on));
            }
        }
        for (name, on) in found {
            if let Some(device) = self.all.get_mut(&name) {
                device.on.extend(on);
            }
        }
    }

    fn at(&self, path: &Path) -> Option<&str> {
        self.by_node.get(path).map(String::as_str)
    }

    /// The devices that a mounted file system needs.
    fn of(&self, line: &Line, volumes: &[BTreeSet<String>]) -> BTreeSet<String> {
        // bcachefs names all of its members as its source. btrfs and its like show a number of their own, so the source
        // counts as well.
        let sources = line.source.as_os_str().as_bytes().split(|b| *b == b':').map(mounts::path);
        let nodes = sources.chain(mounts::side_devices(&line.options));
        let mut on: BTreeSet<String> = nodes.filter_map(|node| self.at(&node).map(str::to_owned)).collect();
        on.extend(self.by_number.get(&line.number).cloned());
        if line.kind == "btrfs" {
            let members: Vec<_> = volumes.iter().filter(|volume| !volume.is_disjoint(&on)).flatten().cloned().collect();
            on.extend(members);
        }
        on
    }
}

fn device_name(node: &Path) -> Option<String> {
    let name = node.strip_prefix("/dev").ok()?.to_string_lossy().replace('/', "!");
    Some(name).filter(|name| !name.is_empty())
}

fn kind(root: &Path, dir: &Path, name: &str, on: &BTreeSet<String>) -> Kind {
    let numbered = |prefix| name.strip_prefix(prefix).is_some_and(|rest: &str| rest.parse::<u32>().is_ok());
    if dir.join("dm").exists() {
        let text = |file| sysfs::text(&dir.join("dm").join(file)).unwrap_or_default();
        Kind::Mapping { name: text("name"), uuid: text("uuid") }
    } else if dir.join("md").exists() {
        Kind::Array
    } else if let Some(file) = sysfs::bytes(&dir.join("loop/backing_file")) {
        Kind::Loop { file: backing_file(&file) }
    } else if numbered("bcache") {
        Kind::Bcache { stop: name.to_owned() }
    } else if numbered("drbd") {
        Kind::Drbd { resource: claims::drbd_resource(root, name) }
    } else if on.is_empty() {
        Kind::Drive
    } else {
        Kind::Stranger
    }
}

/// A file that was deleted is still used, and still lies where it was.
fn backing_file(text: &[u8]) -> PathBuf {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    mounts::path(text.strip_suffix(b" (deleted)").unwrap_or(text))
}

/// The array that holds the members of this one, if their format is one that the kernel doesn't know (Intel's, DDF):
/// `external:/md127/0`, with a dash as long as it's to be read only.
fn container(dir: &Path) -> Option<String> {
    let version = sysfs::text(&dir.join("md/metadata_version"))?;
    let place = version.strip_prefix("external:")?;
    Some(place.strip_prefix(['/', '-'])?.split_once('/')?.0.to_owned())
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
