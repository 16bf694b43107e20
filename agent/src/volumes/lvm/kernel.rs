//! Logical volumes in the running kernel. There is no udev, so the names that it would make are made here.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::super::device::wait_for;
use super::mapping::{Below, Mapping, device_name};
use crate::sys::mapper::{self, Control};

/// A logical volume that can be read and written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Active {
    /// `/dev/mapper/vg-lv`
    pub(crate) node: PathBuf,
    pub(crate) bytes: u64,
    /// `/dev/vg/lv`
    link: PathBuf,
    /// Its mappings by their UUIDs, what lies on others behind those; with the node of each.
    mappings: Vec<(String, PathBuf)>,
}

/// Asked before anything is destroyed. Nobody loads modules for the kernel here.
pub(super) fn check_driver(mirrors: bool) -> anyhow::Result<()> {
    let control = Control::open().context(
        "opening /dev/mapper/control: this kernel has no device mapper, or its module dm_mod isn't loaded; no logical \
         volume can be used",
    )?;
    let kinds = control.kinds().context("asking the device mapper what it knows")?;
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
    let control = Control::open().context("opening /dev/mapper/control")?;
    let mut active = Active {
        node: node(&device_name(group, volume)),
        bytes: mappings.last().map_or(0, Mapping::sectors).saturating_mul(512),
        link: Path::new("/dev").join(group).join(volume),
        mappings: Vec::new(),
    };
    let done = active.make(&control, mappings, slowly, physical);
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
        control: &Control,
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
            let made = control.create(name, uuid);
            let number = match made {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    anyhow::bail!("{name} is there already, or another device has its name or its UUID")
                }
                made => made.with_context(|| format!("making the device {name}"))?,
            };
            self.mappings.push((uuid.clone(), node(name)));
            let this = mapper::Mapping::Uuid(uuid);
            control.load(this, &table, *read_only).with_context(|| {
                let rows: Vec<String> = table.iter().map(|row| format!("{} {}", row.kind, row.parameters)).collect();
                format!("giving {name} its table ({})", rows.join("; "))
            })?;
            control.resume(this).with_context(|| format!("starting {name}"))?;
            let device = format!("dm-{}", number.1);
            wait_for(&Path::new("/dev").join(&device))?;
            link(&Path::new("..").join(device), &node(name))?;
            numbers.push(number);
        }
        link(&self.node, &self.link)
    }

    /// Nobody may use the volume any more.
    pub(crate) fn deactivate(self) -> anyhow::Result<()> {
        let control = Control::open().context("opening /dev/mapper/control")?;
        for (uuid, node) in self.mappings.iter().rev() {
            let removed = control.remove(mapper::Mapping::Uuid(uuid));
            removed.with_context(|| format!("removing {}", node.display()))?;
            unlink(node)?;
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
