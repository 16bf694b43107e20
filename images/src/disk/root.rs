//! Which of a disk's partitions is the root, and which others belong to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::words;

use super::fstab::{self, Device, Mount};
use super::kind::{HEAD_BYTES, Holds};
use super::partitions::{self, Partition};
use crate::ext4::read::{Filesystem, Kind};
use crate::window::Window;

const FSTAB: &str = "etc/fstab";

/// The root, and what is mounted in it.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) root: Filesystem,
    pub(super) mounts: BTreeMap<PathBuf, Filesystem>,
}

#[derive(Debug)]
struct Found {
    partition: Partition,
    holds: Holds,
    /// If it's one that can be read.
    filesystem: Option<Filesystem>,
}

pub(super) fn choose(disk: &Window) -> Result<Chosen> {
    let head = disk.head(HEAD_BYTES)?;
    let Some(partitions) = partitions::read(disk, &head)? else {
        ensure!(Holds::by(&head) == Holds::Ext, "it has neither a partition table nor an ext4 file system");
        return Ok(Chosen { root: Filesystem::open(disk.clone())?, mounts: BTreeMap::new() });
    };
    let mut found = partitions.into_iter().map(look).collect::<Result<Vec<_>>>()?;
    let root = root(&found)?;
    let mounts = mounts(&found, root)?;
    let mut taken = BTreeMap::new();
    for (place, index) in mounts {
        // Of two places, only one can be what the disk has.
        let filesystem = found[index].filesystem.take();
        let filesystem = filesystem.with_context(|| format!("its fstab mounts {} twice", found[index].words()))?;
        taken.insert(place, filesystem);
    }
    let root = found[root].filesystem.take().context("its fstab mounts the root in itself")?;
    Ok(Chosen { root, mounts: taken })
}

fn look(partition: Partition) -> Result<Found> {
    let reading = || format!("reading partition {}", partition.number);
    let holds = Holds::by(&partition.window.head(HEAD_BYTES).with_context(reading)?);
    let filesystem = match holds {
        Holds::Ext => Some(Filesystem::open(partition.window.clone()).with_context(reading)?),
        _ => None,
    };
    Ok(Found { partition, holds, filesystem })
}

impl Found {
    fn words(&self) -> String {
        let label = self.filesystem.as_ref().map(|filesystem| String::from_utf8_lossy(filesystem.label()).into_owned());
        let label = label.filter(|label| !label.is_empty()).map(|label| format!(" {label:?}")).unwrap_or_default();
        let (number, bytes) = (self.partition.number, words::bytes(self.partition.window.bytes()));
        format!("partition {number} ({}{label}, {bytes})", self.holds.words())
    }

    /// Whether it's what a line of fstab means.
    fn is(&self, device: &Device) -> bool {
        let filesystem = self.filesystem.as_ref();
        match device {
            Device::Label(label) => filesystem.is_some_and(|filesystem| filesystem.label() == label.as_bytes()),
            Device::Uuid(uuid) => filesystem.is_some_and(|filesystem| filesystem.uuid().to_string() == *uuid),
            Device::PartitionLabel(name) => self.partition.name == *name,
            Device::PartitionUuid(uuid) => self.partition.uuid == *uuid,
            Device::Number(number) => self.partition.number == *number,
            Device::Other => false,
        }
    }

    fn is_there(&self, path: &str, kind: Kind) -> Result<bool> {
        let Some(filesystem) = &self.filesystem else { return Ok(false) };
        let there =
            filesystem.find(Path::new(path)).with_context(|| format!("looking for /{path} in {}", self.words()))?;
        Ok(there.is_some_and(|inode| inode.kind == kind))
    }

    fn fstab(&self) -> Result<Vec<Mount>> {
        let Some(filesystem) = &self.filesystem else { return Ok(Vec::new()) };
        let reading = || format!("reading /{FSTAB} in {}", self.words());
        match filesystem.find(Path::new(FSTAB)).with_context(reading)? {
            Some(inode) if inode.kind == Kind::File => {
                let text = filesystem.whole(&inode).with_context(reading)?;
                Ok(fstab::parse(&String::from_utf8_lossy(&text)))
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// By its place in `found`.
fn root(found: &[Found]) -> Result<usize> {
    let having = |paths: &[(&str, Kind)]| -> Result<Vec<usize>> {
        let mut having = Vec::new();
        for (index, found) in found.iter().enumerate().filter(|(_, found)| found.filesystem.is_some()) {
            let mut all = true;
            for (path, kind) in paths {
                all = all && found.is_there(path, *kind)?;
            }
            having.extend(all.then_some(index));
        }
        Ok(having)
    };
    let mut roots = having(&[(FSTAB, Kind::File)])?;
    if roots.is_empty() {
        roots = having(&[("etc", Kind::Directory), ("usr", Kind::Directory)])?;
    } else if roots.len() > 1 {
        // Others may be copies: the root is the one that says so of itself.
        let mut themselves = Vec::new();
        for index in roots.iter().copied() {
            let says = |mount: &Mount| mount.place.as_os_str().is_empty() && found[index].is(&mount.device);
            themselves.extend(found[index].fstab()?.iter().any(says).then_some(index));
        }
        roots = if themselves.is_empty() { roots } else { themselves };
    }
    let list = |indexes: &mut dyn Iterator<Item = usize>| {
        indexes.map(|index| found[index].words()).collect::<Vec<_>>().join(", ")
    };
    match roots.as_slice() {
        [root] => Ok(*root),
        [] if found.is_empty() => bail!("its partition table has no partitions"),
        [] if found.iter().all(|found| found.filesystem.is_none()) => bail!(
            "it has no ext4 file system, and only a root in ext4, ext3 or ext2 can be read: there is {}; pack a tar of the \
             root instead",
            list(&mut (0..found.len()))
        ),
        [] => bail!(
            "which of its partitions is the root isn't known, for none has /{FSTAB}, or /etc and /usr: there is {}",
            list(&mut (0..found.len()))
        ),
        several => bail!(
            "which of its partitions is the root isn't known: it may be {}; pack a tar of the root instead",
            list(&mut several.iter().copied())
        ),
    }
}

/// Where others belong, by the root's fstab. What isn't on this disk was none of its files either.
fn mounts(found: &[Found], root: usize) -> Result<BTreeMap<PathBuf, usize>> {
    let mut mounts = BTreeMap::new();
    for mount in found[root].fstab()?.into_iter().filter(|mount| !mount.place.as_os_str().is_empty()) {
        let meant = found.iter().position(|found| found.is(&mount.device));
        // Labels and UUIDs are known of what can be read; of others, what they are has to do.
        let holds = meant.map(|index| found[index].holds);
        let holds = holds.or_else(|| found.iter().map(|found| found.holds).find(|holds| holds.words() == mount.kind));
        match (meant, holds) {
            (Some(index), Some(Holds::Ext)) => {
                mounts.insert(mount.place, index);
            }
            // Machines are given their own.
            (_, None | Some(Holds::Ext | Holds::Fat | Holds::Swap)) => {}
            (_, Some(holds)) => bail!(
                "its fstab mounts {} at /{}, which is {}, and only ext4, ext3 and ext2 can be read: pack a tar of the root \
                 instead",
                mount.source,
                mount.place.display(),
                holds.words()
            ),
        }
    }
    Ok(mounts)
}
