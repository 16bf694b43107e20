//! A layout on real drives: partitions, arrays, volumes and mounts, put together from the bottom up, and taken apart again.
//!
//! Whatever fails, and whenever, [`Assembly::abandon`] takes everything apart that was put together, and leaves no drive
//! with a partition table.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use drophammer_protocol::order::DiskKey;
use nix::mount::{MntFlags, MsFlags};
use zeroize::Zeroizing;

use super::layout::{Encrypted, Made, Partition, Plan, Role, Table};
use super::mkfs;
use super::root::Root;
use super::target::Target;
use super::{esp, gpt};
use crate::disk::OpenDisk;
use crate::volumes::luks::Secret;
use crate::volumes::{luks, lvm, md};

pub(crate) const MOUNT_POINT: &str = "/run/install/root";

#[derive(Debug)]
pub(crate) struct Assembly {
    plan: Plan,
    /// In the order of the plan's tables.
    targets: Vec<Target>,
    arrays: Vec<md::Array>,
    volumes: Vec<lvm::Active>,
    opened: Vec<luks::Opened>,
    /// Device nodes by their names in the layout.
    nodes: BTreeMap<String, PathBuf>,
    /// In the order in which they were mounted; the root is first.
    mounts: Vec<Mount>,
}

#[derive(Debug)]
struct Mount {
    at: PathBuf,
    node: PathBuf,
    /// Open as long as it's mounted: the kernel writes files in the background, and only who held the file system open
    /// meanwhile is told of a write that failed.
    held: File,
}

/// Drives that are complete, and the proof that their tables were read back from them.
#[derive(Debug)]
pub(crate) struct Bootable {
    pub(crate) bytes_written: u64,
}

impl Assembly {
    /// Destroys what tables the drives have, and makes what the plan has up to the volumes. `disks` are in the order of the
    /// plan's tables.
    pub(crate) fn take(disks: Vec<OpenDisk>, plan: Plan, key: Option<&DiskKey>) -> anyhow::Result<Self> {
        let mut assembly = Self {
            plan,
            targets: Vec::new(),
            arrays: Vec::new(),
            volumes: Vec::new(),
            opened: Vec::new(),
            nodes: BTreeMap::new(),
            mounts: Vec::new(),
        };
        match assembly.build(disks, key) {
            Ok(()) => Ok(assembly),
            Err(e) => Err(assembly.abandon(e)),
        }
    }

    fn build(&mut self, disks: Vec<OpenDisk>, key: Option<&DiskKey>) -> anyhow::Result<()> {
        for (disk, table) in disks.into_iter().zip(&self.plan.tables) {
            // Among them from the start, so that whatever fails from here on takes it apart again.
            self.targets.push(Target::take(disk, table.clone())?);
        }
        for (target, table) in self.targets.iter().zip(&self.plan.tables) {
            for partition in &table.partitions {
                self.nodes.insert(format!("{}/{}", table.drive, partition.name), target.node(partition)?);
            }
        }
        for (name, plan) in &self.plan.arrays {
            let array = md::make(plan)?;
            self.nodes.insert(name.clone(), array.node.clone());
            self.arrays.push(array);
        }
        for group in &self.plan.groups {
            let mut wanted = group.wanted.clone();
            for (member, device) in wanted.members.iter_mut().zip(&group.devices) {
                member.path.clone_from(self.nodes.get(device).context("a device of a volume group got lost")?);
            }
            let plan = lvm::plan(&wanted)?;
            let active = lvm::make(&plan)?;
            let names = wanted.volumes.iter().map(|volume| format!("{}/{}", wanted.name, volume.name));
            self.nodes.extend(names.zip(active.iter().map(|volume| volume.node.clone())));
            self.volumes.extend(active);
        }
        for Encrypted { name, on, new } in &self.plan.encrypted {
            let key = key.context("the layout has encrypted volumes, and the order no key for them")?;
            let secret = Secret::random(Zeroizing::new(key.of_volume(name)));
            let node = self.node(on)?;
            let make = || -> anyhow::Result<luks::Opened> {
                let device = File::options().read(true).write(true).open(node)?;
                luks::make(&device, new, &secret)?;
                // As the installed system will: what lies on the drive opens with this key, or it's of no use to anybody.
                let header = luks::read(&device)?;
                let unlocked = luks::unlock(&device, &header, &secret, luks::spare_memory())?;
                Ok(unlocked.map(&device, new.bytes, name)?)
            };
            let opened = make().with_context(|| format!("making the encrypted volume {name} on {}", node.display()))?;
            self.nodes.insert(name.clone(), opened.node.clone());
            self.opened.push(opened);
        }
        Ok(())
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device node of something in the layout.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<&Path> {
        self.nodes.get(name).map(PathBuf::as_path).with_context(|| format!("{name} of the layout has no device"))
    }

    /// Each drive's table, with the nodes of its partitions.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (&Table, &Partition, anyhow::Result<&Path>)> {
        self.plan.tables.iter().flat_map(move |table| {
            let node = |partition: &Partition| self.node(&format!("{}/{}", table.drive, partition.name));
            table.partitions.iter().map(move |partition| (table, partition, node(partition)))
        })
    }

    pub(crate) fn make(&self, made: &Made) -> anyhow::Result<()> {
        made.making
            .carry_out(self.node(&made.on)?)
            .with_context(|| format!("making the {} on {} of the layout", made.format, made.on))
    }

    pub(crate) fn mount_root(&mut self) -> anyhow::Result<Root> {
        let at = PathBuf::from(MOUNT_POINT);
        fs::create_dir_all(&at).with_context(|| format!("making {MOUNT_POINT}"))?;
        let made = self.plan.root().clone();
        self.mount(&made, at)?;
        Root::open(Path::new(MOUNT_POINT))
    }

    /// Everything that the layout mounts inside the root. Refuses to hide what is there already.
    pub(crate) fn mount_others(&mut self, root: &Root) -> anyhow::Result<()> {
        let mounted: Vec<Made> = self.plan.mounted().into_iter().skip(1).cloned().collect();
        for made in mounted {
            let place = made.wanted.mount.as_deref().unwrap_or_default();
            let dir = root
                .directories(Path::new(place.trim_start_matches('/')))
                .with_context(|| format!("making {place} in the installed system"))?;
            let mut hidden = root.names(place)?;
            hidden.retain(|name| name != "lost+found");
            anyhow::ensure!(
                hidden.is_empty(),
                "the image has {} in {place}, where the layout has another file system: publish it with a tar form, which \
                 is unpacked into both",
                hidden.first().unwrap_or(&"something".into()).display()
            );
            self.mount(&made, real_path(&dir)?)?;
        }
        Ok(())
    }

    /// Does `work` while the first EFI system partition is mounted where the system will have it: empty, and made anew
    /// afterwards.
    pub(crate) fn with_esp<T>(&mut self, root: &Root, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let esp = self.partitions().find_map(|(table, partition, node)| match partition.role {
            Role::Esp(volume) => Some((table.clone(), partition.clone(), volume, node.map(Path::to_owned))),
            _ => None,
        });
        let Some((table, partition, volume, node)) = esp else { return work() };
        let node = node?;
        esp::fill(&node, table.length_bytes(&partition), table.geometry.logical_block, volume, &[])?;
        let dir = root.directories(Path::new("boot/efi")).context("making /boot/efi in the installed system")?;
        self.mount_as(node, real_path(&dir)?, "vfat", None)?;
        let done = work()?;
        self.unmount_last()?;
        Ok(done)
    }

    fn mount(&mut self, made: &Made, at: PathBuf) -> anyhow::Result<()> {
        let node = self.node(&made.on)?.to_owned();
        let (kind, options) = match made.format {
            // What lazy_itable_init left to do is for the installed system; here it would compete with the image.
            mkfs::Format::Ext4(_) => ("ext4", Some("noinit_itable")),
            mkfs::Format::Ext3(_) => ("ext4", None),
            mkfs::Format::Xfs(_) => ("xfs", None),
            mkfs::Format::Vfat(_) => ("vfat", None),
            mkfs::Format::Swap(_) => anyhow::bail!("swap can't be mounted"),
        };
        self.mount_as(node, at, kind, options)
    }

    fn mount_as(&mut self, node: PathBuf, at: PathBuf, kind: &str, options: Option<&str>) -> anyhow::Result<()> {
        nix::mount::mount(Some(&node), &at, Some(kind), MsFlags::MS_NOATIME, options)
            .with_context(|| format!("mounting {} at {}", node.display(), at.display()))?;
        let held = File::open(&at).inspect_err(|_| {
            // It isn't among the mounts yet; the error that counts is the first.
            unmount_lazily(&at).ok();
        });
        let held = held.with_context(|| format!("opening {}", at.display()))?;
        self.mounts.push(Mount { at, node, held });
        Ok(())
    }

    /// Returns when everything that was written into the mounted file systems is with the drives.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        self.mounts.iter().try_for_each(|Mount { at, held, .. }| {
            nix::unistd::syncfs(held).with_context(|| format!("flushing {}", at.display()))
        })
    }

    /// Every handle into the file systems must be closed by now.
    pub(crate) fn unmount(&mut self) -> anyhow::Result<()> {
        while !self.mounts.is_empty() {
            self.unmount_last()?;
        }
        Ok(())
    }

    fn unmount_last(&mut self) -> anyhow::Result<()> {
        let Some(Mount { at, node, held }) = self.mounts.pop() else { return Ok(()) };
        let device = File::open(&node).with_context(|| format!("opening {}", node.display()))?;
        drop(held);
        if let Err(e) = nix::mount::umount2(&at, MntFlags::empty()) {
            // What comes of that is seen by whoever takes the device away next.
            unmount_lazily(&at).ok();
            return Err(e).with_context(|| format!("unmounting {}", at.display()));
        }
        // Unmounting writes, and doesn't say whether that went well.
        device.sync_all().with_context(|| format!("flushing {}", node.display()))
    }

    fn dissolve(&mut self) -> anyhow::Result<()> {
        while let Some(opened) = self.opened.pop() {
            let name = opened.node.clone();
            opened.close().with_context(|| format!("closing the encrypted volume {}", name.display()))?;
        }
        while let Some(volume) = self.volumes.pop() {
            volume.deactivate()?;
        }
        while let Some(array) = self.arrays.pop() {
            array.stop()?;
        }
        Ok(())
    }

    /// Makes the drives bootable: each with its `tables`, those last from which the firmware starts. Nothing is mounted by now.
    pub(crate) fn finish(mut self, tables: &[[gpt::Piece; 3]]) -> anyhow::Result<Bootable> {
        let done = self.dissolve().and_then(|()| {
            let mut order: Vec<_> = self.plan.tables.iter().zip(&self.targets).zip(tables).collect();
            order.sort_by_key(|((table, _), _)| table.starts);
            order.into_iter().try_for_each(|((_, target), pieces)| target.finish(pieces))
        });
        match done {
            Ok(()) => Ok(Bootable { bytes_written: self.targets.iter().map(Target::bytes_written).sum() }),
            Err(e) => Err(self.abandon(e)),
        }
    }

    /// Leaves the drives unbootable and free for another attempt. Returns `cause`, with whatever of that didn't work.
    pub(crate) fn abandon(mut self, cause: anyhow::Error) -> anyhow::Error {
        let mut left = Vec::new();
        while let Some(Mount { at, held, .. }) = self.mounts.pop() {
            drop(held);
            let unmounted = nix::mount::umount2(&at, MntFlags::empty()).or_else(|e| unmount_lazily(&at).map_err(|_| e));
            left.extend(unmounted.with_context(|| format!("unmounting {}", at.display())).err());
        }
        left.extend(self.dissolve().err());
        for target in &self.targets {
            left.extend(target.abandon());
        }
        left.into_iter()
            .fold(cause, |cause, e| cause.context(format!("cleaning up after a failed install also failed ({e:#})")))
    }
}

/// A failed install must not leave a file system that a later one would write beside.
fn unmount_lazily(at: &Path) -> nix::Result<()> {
    nix::mount::umount2(at, MntFlags::MNT_DETACH)
}

/// Where a directory is, without a link on the way: what has its name may be another one by the time that it's unmounted.
fn real_path(dir: &OwnedFd) -> anyhow::Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    fs::read_link(&link).with_context(|| format!("reading {link}"))
}
