//! Logical volumes in the running kernel. There is no udev, so the names that it would make are made here.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::super::device::wait_for;
use super::mapping::{Below, Mapping, device_name};
use crate::sys::dm::{self, Device, Mode};

/// A logical volume that can be read and written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Active {
    /// `/dev/mapper/vg-lv`
    pub(crate) node: PathBuf,
    pub(crate) bytes: u64,
    /// `/dev/vg/lv`
    link: PathBuf,
    /// Names and UUIDs of its mappings, what lies on others behind those.
    mappings: Vec<(String, String)>,
}

/// Asked before anything is destroyed. Nobody loads modules for the kernel here.
pub(super) fn check_driver(mirrors: bool) -> anyhow::Result<()> {
    let kinds =
        dm::kinds().context("asking the device mapper what it knows, without which there are no logical volumes")?;
    for (kind, module, wanted) in
        [("linear", "dm_mod", true), ("striped", "dm_mod", true), ("raid", "dm_raid", mirrors)]
    {
        anyhow::ensure!(
            !wanted || kinds.iter().any(|known| known == kind),
            "the kernel's device mapper doesn't know {kind}: the module {module} isn't loaded"
        );
    }
    Ok(())
}

/// Makes the devices of one volume. If that fails none of them is left.
pub(super) fn activate(
    (group, volume): (&str, &str),
    mappings: &[Mapping],
    slowly: bool,
    physical: impl Fn(Below) -> Option<(u64, u64)>,
) -> anyhow::Result<Active> {
    let mut active = Active {
        node: node(&device_name(group, volume)),
        bytes: mappings.last().map_or(0, Mapping::sectors).saturating_mul(512),
        link: Path::new("/dev").join(group).join(volume),
        mappings: Vec::new(),
    };
    let done = active.make(mappings, slowly, physical);
    match done {
        Ok(()) => Ok(active),
        Err(e) => Err(match active.deactivate() {
            Ok(()) => e,
            Err(more) => e.context(format!("cleaning up also failed ({more:#})")),
        }),
    }
}

impl Active {
    fn make(
        &mut self,
        mappings: &[Mapping],
        slowly: bool,
        physical: impl Fn(Below) -> Option<(u64, u64)>,
    ) -> anyhow::Result<()> {
        let mut numbers = Vec::new();
        for mapping in mappings {
            let Mapping { name, uuid, read_only, .. } = mapping;
            let below = |below| match below {
                Below::Mapping(place) => numbers.get(place).copied(),
                Below::Physical(_) => physical(below),
            };
            let table =
                mapping.table(slowly, below).with_context(|| format!("a device that {name} lies on is missing"))?;
            let mode = if *read_only { Mode::ReadOnly } else { Mode::ReadWrite };
            let device = Device::create(name, uuid, &table, mode).with_context(|| {
                let rows: Vec<String> = table.iter().map(|row| format!("{} {}", row.kind, *row.parameters)).collect();
                format!("making the device {name} ({})", rows.join("; "))
            })?;
            self.mappings.push((name.clone(), uuid.clone()));
            wait_for(&Path::new("/dev").join(format!("dm-{}", device.number.1)))?;
            numbers.push(device.number);
        }
        link(&self.node, &self.link)
    }

    /// Nobody may use the volume any more.
    pub(crate) fn deactivate(self) -> anyhow::Result<()> {
        for (name, uuid) in self.mappings.iter().rev() {
            dm::remove(name, uuid).with_context(|| format!("removing {name}"))?;
        }
        unlink(&self.link)?;
        // Other volumes of the group may have their links there.
        if let Some(group) = self.link.parent() {
            match fs::remove_dir(group) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                    return Err(e).with_context(|| format!("removing {}", group.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn node(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

fn link(to: &Path, at: &Path) -> anyhow::Result<()> {
    unlink(at)?;
    let make = || {
        fs::create_dir_all(at.parent().unwrap_or(at))?;
        symlink(to, at)
    };
    make().with_context(|| format!("making the link {}", at.display()))
}

/// One that isn't there, or leads nowhere since something else took its device away.
fn unlink(at: &Path) -> anyhow::Result<()> {
    match fs::remove_file(at) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("removing {}", at.display())),
        _ => Ok(()),
    }
}
