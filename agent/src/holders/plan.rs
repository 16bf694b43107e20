//! In which order whatever holds a drive is taken apart, or why it mustn't be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::claims::Claimant;
use super::mounts::{Mount, Tree};
use super::processes::{Process, Users};
use super::stack::{Device, Kind, Stack};

/// One thing to let go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Unmount {
        place: PathBuf,
    },
    SwapOff {
        path: PathBuf,
    },
    DetachLoop {
        device: String,
        file: PathBuf,
    },
    RemoveMapping {
        device: String,
        name: String,
        uuid: String,
    },
    StopArray {
        device: String,
    },
    /// `device` is the one that has the switch in sysfs.
    StopBcache {
        device: String,
    },
    StopCacheSet {
        uuid: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmount { place } => write!(f, "unmount {}", place.display()),
            Self::SwapOff { path } => write!(f, "stop swapping to {}", path.display()),
            Self::DetachLoop { device, file } => write!(f, "detach {device} from {}", file.display()),
            Self::RemoveMapping { device, name, uuid } => {
                write!(f, "remove the {} {name} ({device})", sort(uuid))
            }
            Self::StopArray { device } => write!(f, "stop the array {device}"),
            Self::StopBcache { device } => write!(f, "stop bcache on {device}"),
            Self::StopCacheSet { uuid } => write!(f, "stop the cache set {uuid}"),
        }
    }
}

/// What a mapping is, by the prefix that its maker gives its UUID.
fn sort(uuid: &str) -> &'static str {
    if is_multipath(uuid) {
        "multipath device"
    } else if uuid.starts_with("part") {
        "partition"
    } else if uuid.starts_with("LVM-") {
        "logical volume"
    } else if uuid.starts_with("CRYPT-") {
        "encrypted volume"
    } else {
        "mapping"
    }
}

/// All that a multipath device is made of is one drive.
fn is_multipath(uuid: &str) -> bool {
    uuid.starts_with("mpath-")
}

/// Why drives aren't let go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Held {
    #[error("there is no drive {0}")]
    Missing(String),
    #[error(
        "{drive} holds {}, which the running system lives on; boot this machine from the network to erase it",
        place.display()
    )]
    System { drive: String, place: PathBuf },
    #[error(
        "{holder} is on {drive} and also on {others}, not to be erased; erase them together or take {holder} apart"
    )]
    Spans { drive: String, holder: String, others: String },
    #[error(
        "{} has to be unmounted before {}, but it's the only place where {drive} is mounted, not to be erased; unmount it",
        place.display(),
        above.display()
    )]
    Below { place: PathBuf, above: PathBuf, drive: String },
    #[error(
        "{drive} is mounted at {}, hidden beneath what is mounted at {}; unmount that first",
        place.display(),
        cover.display()
    )]
    Covered { drive: String, place: PathBuf, cover: PathBuf },
    #[error("{drive} is mounted at {} in the mount namespace of {process}; stop it", place.display())]
    Elsewhere { drive: String, place: PathBuf, process: Process },
    #[error("{drive} belongs to the ZFS pool {pool}; type `zpool export {pool}`")]
    Pool { drive: String, pool: String },
    #[error("{drive} is used by DRBD; type `drbdadm down {resource}`")]
    Drbd { drive: String, resource: String },
    #[error("{holder} is on {drive}, and how to take it apart isn't known here; do it by hand")]
    Stranger { drive: String, holder: String },
    #[error("another program has claimed {device} for itself; stop it{users}")]
    Claimed { device: String, users: Users },
    #[error("trying to {step}: {cause}{users}")]
    Failed { step: Step, cause: io::Error, users: Users },
    #[error("to {step} worked {times} times, but it's still there or was made again; stop whatever does so{users}")]
    Returns { step: Step, times: u32, users: Users },
}

/// What nobody takes away from beneath a running system.
const SYSTEM: [&str; 11] =
    ["/", "/usr", "/boot", "/boot/efi", "/efi", "/etc", "/var", "/bin", "/sbin", "/lib", "/lib64"];

/// Steps from the top down, after which nothing that is known holds the drives. None of them touches a drive that isn't
/// among `drives`.
pub(super) fn plan(stack: &Stack, drives: &[&str]) -> Result<Vec<Step>, Held> {
    if let Some(missing) = drives.iter().find(|drive| !stack.devices.contains_key(**drive)) {
        return Err(Held::Missing((*missing).to_owned()));
    }
    let doomed = doomed(stack, drives);
    let hit: Vec<&Mount> = stack.mounts.iter().filter(|mount| touches(&mount.on, &doomed)).collect();
    keep_the_system(stack, &hit, &doomed)?;
    keep_other_drives(stack, &hit, drives, &doomed)?;
    keep_strangers(stack, drives, &doomed)?;
    let steps = order(stack, drives, &doomed)?;
    for elsewhere in stack.elsewhere.iter().filter(|elsewhere| touches(&elsewhere.on, &doomed)) {
        // Seen from a container, the system is elsewhere.
        if elsewhere.process.id == 1 && is_system(&elsewhere.place) {
            let (drive, place) = (drive_of(stack, &elsewhere.on, &doomed), elsewhere.place.clone());
            return Err(Held::System { drive, place });
        }
        // What is unmounted here goes away there too, where namespaces share their mounts.
        if !hit.iter().any(|mount| !mount.on.is_disjoint(&elsewhere.on)) {
            let (place, process) = (elsewhere.place.clone(), elsewhere.process.clone());
            return Err(Held::Elsewhere { drive: drive_of(stack, &elsewhere.on, &doomed), place, process });
        }
    }
    Ok(steps)
}

/// Those of the steps that are taken because of these drives.
pub(super) fn concerning(stack: &Stack, drives: &[&str], mut steps: Vec<Step>) -> Vec<Step> {
    let (doomed, tree) = (doomed(stack, drives), Tree::new(&stack.mounts));
    let hit = stack.mounts.iter().filter(|mount| touches(&mount.on, &doomed));
    let places: BTreeSet<&Path> =
        hit.flat_map(|mount| tree.subtree(mount)).map(|below| below.place.as_path()).collect();
    steps.retain(|step| match step {
        Step::Unmount { place } => places.contains(place.as_path()),
        Step::SwapOff { path } => stack.swaps.iter().any(|swap| swap.path == *path && touches(&swap.on, &doomed)),
        Step::DetachLoop { device: name, .. }
        | Step::RemoveMapping { device: name, .. }
        | Step::StopArray { device: name }
        | Step::StopBcache { device: name }
        | Step::StopCacheSet { uuid: name } => doomed.contains(name.as_str()),
    });
    steps
}

/// The drives and everything that is made of them.
fn doomed<'a>(stack: &'a Stack, drives: &[&'a str]) -> BTreeSet<&'a str> {
    let (mut doomed, mut todo) = (BTreeSet::new(), drives.to_vec());
    while let Some(name) = todo.pop() {
        if doomed.insert(name) {
            todo.extend(stack.above(name));
        }
    }
    doomed
}

fn touches(on: &BTreeSet<String>, doomed: &BTreeSet<&str>) -> bool {
    on.iter().any(|name| doomed.contains(name.as_str()))
}

/// A drive to be erased that lies beneath one of these devices.
fn drive_of(stack: &Stack, on: &BTreeSet<String>, doomed: &BTreeSet<&str>) -> String {
    let mut below = on.iter().flat_map(|name| stack.drives_below(name));
    below.find(|drive| doomed.contains(drive)).unwrap_or("the drive").to_owned()
}

fn keep_the_system(stack: &Stack, hit: &[&Mount], doomed: &BTreeSet<&str>) -> Result<(), Held> {
    let program = stack.program.as_ref().and_then(|program| Tree::new(&stack.mounts).at(program, |_| true));
    for mount in hit {
        if is_system(&mount.place) || program.is_some_and(|program| program.id == mount.id) {
            let drive = drive_of(stack, &mount.on, doomed);
            return Err(Held::System { drive, place: mount.place.clone() });
        }
    }
    Ok(())
}

fn is_system(place: &Path) -> bool {
    SYSTEM.iter().any(|system| Path::new(system) == place)
}

/// Refuses what would take something from a drive that nobody named: an array, a volume, a file system on both.
fn keep_other_drives(stack: &Stack, hit: &[&Mount], drives: &[&str], doomed: &BTreeSet<&str>) -> Result<(), Held> {
    let others = |on: &BTreeSet<String>| -> Option<String> {
        let foreign = on.iter().filter(|name| !doomed.contains(name.as_str()));
        let drives: BTreeSet<&str> = foreign.flat_map(|name| stack.drives_below(name)).collect();
        Some(drives.into_iter().collect::<Vec<_>>().join(", ")).filter(|others| !others.is_empty())
    };
    let devices = stack.devices.iter().filter(|(name, device)| {
        let paths = matches!(&device.kind, Kind::Mapping { uuid, .. } if is_multipath(uuid));
        doomed.contains(name.as_str()) && !drives.contains(&name.as_str()) && !paths
    });
    let devices = devices.map(|(name, device)| (title(name, device), &device.on));
    let mounts = hit.iter().map(|mount| (format!("the {} at {}", mount.kind, mount.place.display()), &mount.on));
    let swaps = stack.swaps.iter().filter(|swap| touches(&swap.on, doomed));
    let swaps = swaps.map(|swap| (format!("the swap at {}", swap.path.display()), &swap.on));
    for (holder, on) in devices.chain(mounts).chain(swaps) {
        if let Some(others) = others(on) {
            return Err(Held::Spans { drive: drive_of(stack, on, doomed), holder, others });
        }
    }
    Ok(())
}

/// Refuses what this agent can't take apart.
fn keep_strangers(stack: &Stack, drives: &[&str], doomed: &BTreeSet<&str>) -> Result<(), Held> {
    for (name, device) in stack.devices.iter().filter(|(name, _)| doomed.contains(name.as_str())) {
        let drive = || drive_of(stack, &device.on, doomed);
        match &device.kind {
            Kind::Drbd { resource } => {
                let resource = resource.clone().unwrap_or_else(|| format!("RESOURCE, the one of {name}"));
                return Err(Held::Drbd { drive: drive(), resource });
            }
            Kind::Stranger if !drives.contains(&name.as_str()) => {
                return Err(Held::Stranger { drive: drive(), holder: name.clone() });
            }
            _ => {}
        }
    }
    drives.iter().try_for_each(|drive| unexplained(stack, drive))
}

/// A drive is claimed as soon as one of its partitions is, and each partition if the drive is. What remains when that is
/// taken away, and whatever stands on the part is known, is the work of somebody who leaves no trace in sysfs.
fn unexplained(stack: &Stack, drive: &str) -> Result<(), Held> {
    let used = |part: &str| {
        let is_holder = |name: &str| stack.devices.get(name).is_some_and(|above| above.kind != Kind::Partition);
        let on = |on: &BTreeSet<String>| on.contains(part);
        stack.above(part).any(is_holder)
            || stack.mounts.iter().any(|mount| on(&mount.on))
            || stack.swaps.iter().any(|swap| on(&swap.on))
            || stack.elsewhere.iter().any(|elsewhere| on(&elsewhere.on))
    };
    if used(drive) {
        return Ok(());
    }
    let partitions: Vec<&str> = stack.parts(drive).skip(1).collect();
    let mut open = partitions.iter().filter(|part| stack.claims.contains_key(**part) && !used(part)).peekable();
    let whole_is_explained = partitions.iter().any(|part| used(part)) || open.peek().is_some();
    let part = open.next().copied().or_else(|| Some(drive).filter(|_| !whole_is_explained));
    match part.and_then(|part| Some((part, stack.claims.get(part)?))) {
        None => Ok(()),
        Some((_, Claimant::Pool(pool))) => Err(Held::Pool { drive: drive.to_owned(), pool: pool.clone() }),
        Some((_, Claimant::Drbd)) => Err(Held::Drbd { drive: drive.to_owned(), resource: "RESOURCE".to_owned() }),
        Some((part, Claimant::Unknown)) => Err(Held::Claimed { device: part.to_owned(), users: Users::default() }),
    }
}

/// A device is taken apart when nothing stands on it any more.
fn order(stack: &Stack, drives: &[&str], doomed: &BTreeSet<&str>) -> Result<Vec<Step>, Held> {
    let mut mounted = Mounted { stack, doomed, tree: Tree::new(&stack.mounts), gone: BTreeSet::new() };
    // Nothing stands on swap.
    let swaps = stack.swaps.iter().filter(|swap| touches(&swap.on, doomed));
    let mut steps: Vec<Step> = swaps.map(|swap| Step::SwapOff { path: swap.path.clone() }).collect();
    let mut left: BTreeMap<&str, BTreeSet<&str>> = doomed.iter().map(|name| (*name, mounted.before(name))).collect();
    while !left.is_empty() {
        let is_free = |before: &BTreeSet<&str>| !before.iter().any(|name| left.contains_key(name));
        let Some(name) = left.iter().find(|(_, before)| is_free(before)).map(|(name, _)| *name) else {
            let holder = left.keys().next().copied().unwrap_or_default().to_owned();
            return Err(Held::Stranger { drive: drives.join(", "), holder });
        };
        left.remove(name);
        mounted.unmount(name, &mut steps)?;
        if let Some(device) = stack.devices.get(name).filter(|_| !drives.contains(&name)) {
            steps.extend(take_apart(name, device));
        }
    }
    Ok(steps)
}

fn take_apart(name: &str, device: &Device) -> Option<Step> {
    let own = name.to_owned();
    match &device.kind {
        Kind::Mapping { name, uuid } => {
            Some(Step::RemoveMapping { device: own, name: name.clone(), uuid: uuid.clone() })
        }
        Kind::Array => Some(Step::StopArray { device: own }),
        Kind::Loop { file } => Some(Step::DetachLoop { device: own, file: file.clone() }),
        Kind::Bcache { stop } => Some(Step::StopBcache { device: stop.clone() }),
        Kind::CacheSet => Some(Step::StopCacheSet { uuid: own }),
        Kind::Drive | Kind::Partition | Kind::Drbd { .. } | Kind::Stranger => None,
    }
}

struct Mounted<'a> {
    stack: &'a Stack,
    doomed: &'a BTreeSet<&'a str>,
    tree: Tree<'a>,
    gone: BTreeSet<u32>,
}

impl<'a> Mounted<'a> {
    /// What has to go before a device can: what is made of it, and of whatever is mounted below its mounts.
    fn before(&self, device: &'a str) -> BTreeSet<&'a str> {
        let mounts = self.stack.mounts.iter().filter(|mount| mount.on.contains(device));
        let below: BTreeSet<&str> =
            mounts.flat_map(|mount| self.tree.subtree(mount)).flat_map(|mount| &mount.on).map(String::as_str).collect();
        let is_partition = |name: &&str| self.stack.devices.get(*name).is_some_and(|d| d.kind == Kind::Partition);
        let on_them = below.into_iter().flat_map(|name| self.stack.above(name)).filter(|name| !is_partition(name));
        self.stack.above(device).chain(on_them).filter(|name| *name != device).collect()
    }

    /// Everything that is mounted of a device, and before it what is mounted below.
    fn unmount(&mut self, device: &str, steps: &mut Vec<Step>) -> Result<(), Held> {
        let of_device: Vec<&Mount> = self.stack.mounts.iter().filter(|mount| mount.on.contains(device)).collect();
        // What is laid over it pins it, and what was mounted last lies on top.
        let (over, own): (Vec<&Mount>, Vec<&Mount>) = of_device.into_iter().partition(|mount| mount.kind == "overlay");
        for top in over.into_iter().rev().chain(own.into_iter().rev()) {
            for mount in self.tree.subtree(top) {
                if self.gone.contains(&mount.id) {
                    continue;
                }
                self.check(mount, top)?;
                self.gone.insert(mount.id);
                steps.push(Step::Unmount { place: mount.place.clone() });
            }
        }
        Ok(())
    }

    fn check(&self, mount: &Mount, top: &Mount) -> Result<(), Held> {
        // Unmounting goes by path, and the path must lead to this mount and no other.
        let reached = self.tree.at(&mount.place, |id| !self.gone.contains(&id));
        if reached.map(|reached| reached.id) != Some(mount.id) {
            let cover = reached.map_or_else(|| PathBuf::from("/"), |cover| cover.place.clone());
            let drive = drive_of(self.stack, &mount.on, self.doomed);
            return Err(Held::Covered { drive, place: mount.place.clone(), cover });
        }
        if mount.on.is_empty() || touches(&mount.on, self.doomed) {
            return Ok(());
        }
        let also = |other: &&Mount| other.id != mount.id && other.on == mount.on && !self.gone.contains(&other.id);
        if self.stack.mounts.iter().any(|other| also(&other)) {
            return Ok(());
        }
        let drives: BTreeSet<&str> = mount.on.iter().flat_map(|name| self.stack.drives_below(name)).collect();
        let drive = drives.into_iter().collect::<Vec<_>>().join(", ");
        Err(Held::Below { place: mount.place.clone(), above: top.place.clone(), drive })
    }
}

/// What a device is called where people meet it.
pub(super) fn title(name: &str, device: &Device) -> String {
    match &device.kind {
        Kind::Mapping { name: mapping, uuid } => format!("{} {mapping} ({name})", sort(uuid)),
        Kind::CacheSet => format!("cache set {name}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
