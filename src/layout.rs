//! `drophammer layout`: what a layout would make of a machine's drives, without touching any.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use drophammer_protocol::inventory::{DiskId, Inventory};
use drophammer_protocol::layout::{Encrypted, Filesystem, Kind, Layout, Needs, place};
use drophammer_protocol::machine::Machine;
use drophammer_protocol::space::root_bytes;
use drophammer_protocol::words::{self, bytes};
use serde::Serialize;

use crate::image::size;
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether a layout is sound and, with a machine's inventory, what it makes of that machine's drives: `-` is what goes,
    /// `+` what comes, and what has no mark stays. Drives that aren't in the layout go as well: no tenant gets a drive that isn't
    /// proven erased.
    #[command(after_long_help = EXAMPLE)]
    Check {
        /// The layout, as TOML.
        file: PathBuf,
        /// A machine's inventory, as `drophammer-agent inventory --json` or `drophammer machine show --json` print it.
        #[arg(long, value_name = "FILE")]
        inventory: Option<PathBuf>,
        /// How much the image's files take once they are installed, such as "2 GiB"; see `drophammer image list`.
        #[arg(long, value_name = "SIZE", requires = "inventory", value_parser = size, default_value = "0MiB")]
        installed: u64,
        /// What `drophammer machine reinstall` makes of them, which leaves those with keep = true as they are.
        #[arg(long, requires = "inventory")]
        reinstall: bool,
    },
}

pub(crate) const EXAMPLE: &str = r#"A layout, with everything that can be in one:

  [[drive]]                                # one of the machine's drives, all of it
  name = "first"
  select = { bus = "nvme", rotational = false, min_size = "200 GiB", max_size = "2 TiB" } # or serial, wwn, model = "SAMSUNG*"
  partitions = [                           # of several that fit it's the smallest; select.prefer = "largest" turns that around
    { name = "bios", kind = "bios" },      # what a BIOS starts from, with /boot or / as the third partition
    { name = "esp", kind = "esp" },        # what UEFI starts from; all that there are hold the same
    { name = "root", size = "40 GiB" },    # or "25 %", or "rest", which is also what is meant when nothing is said
    { name = "swap", size = "8 GiB" },
    { name = "more", size = "rest" },
  ]

  [[drive]]
  name = "second"
  select = { bus = "nvme" }
  partitions = [
    { name = "bios", kind = "bios" },
    { name = "esp", kind = "esp" },
    { name = "root", size = "40 GiB" },
    { name = "more", size = "rest" },
  ]

  [[drive]]
  name = "archive"
  select = { min_size = "500 GiB", prefer = "largest" }
  keep = true                              # `machine reinstall` leaves it as it is; without partitions it's the tenant's to use
  partitions = [{ name = "own" }]

  [[raid]]                                 # drive/partition is how a partition is called
  name = "system"
  level = 1                                # or 0; spares = […] stand by
  devices = ["first/root", "second/root"]

  [[volume_group]]
  name = "vg0"
  devices = ["first/more", "second/more"]  # partitions and arrays
  tags = ["tenant"]
  volumes = [
    { name = "srv", size = "100 GiB", spread = "raid1" }, # or "striped", or "linear", which is the default
    { name = "vault", size = "rest" },
  ]

  [[encrypted]]                            # LUKS2; the server gives the key, the installed system keeps it in its root
  name = "vault"
  on = "vg0/vault"

  [[filesystem]]
  on = "system"
  format = "ext4"                          # or ext3, xfs, vfat, swap, tmpfs
  mount = "/"
  label = "root"
  options = ["errors=remount-ro"]          # for fstab

  [[filesystem]]
  on = "first/swap"
  format = "swap"

  [[filesystem]]
  on = "vg0/srv"
  format = "xfs"
  mount = "/srv"
  create_options = ["-m reflink=1"]        # for the program that makes it

  [[filesystem]]
  on = "vault"
  format = "ext4"
  mount = "/vault"

  [[filesystem]]
  on = "archive/own"
  format = "xfs"
  mount = "/archive"

  [[filesystem]]
  format = "tmpfs"
  mount = "/tmp"
  options = ["size=2G"]

An image is written as it was published where its root is an ext4; otherwise, and where a file system of its own lies at /boot,
/opt, /root, /var or below, its tar is unpacked, which takes longer."#;

pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json;
    match args.command {
        Command::Check { file, inventory, installed, reinstall } => {
            let layout = read(&file)?;
            let Some(path) = inventory else {
                let drives = words::count(layout.drives.len(), "drive");
                return output::line(&format!("{} is sound, for {drives}", file.display()));
            };
            let outlook = outlook(&layout, &read_inventory(&path)?, installed, reinstall)?;
            if json {
                return output::json(&outlook);
            }
            outlook.lines().iter().try_for_each(|line| output::line(line))
        }
    }
}

/// A layout that is sound by itself.
pub(crate) fn read(path: &Path) -> Result<Layout> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let layout: Layout = toml::from_str(&text).with_context(|| format!("understanding {}", path.display()))?;
    layout.check().with_context(|| format!("the layout in {} can't be", path.display()))?;
    Ok(layout)
}

fn read_inventory(path: &Path) -> Result<Inventory> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let inventory = match serde_json::from_str::<Machine>(&text) {
        Ok(machine) => machine.inventory,
        Err(_) => serde_json::from_str(&text).map(Some).with_context(|| {
            format!("understanding {}: give it what `drophammer-agent inventory --json` prints", path.display())
        })?,
    };
    inventory.with_context(|| format!("the machine in {} has told no inventory yet", path.display()))
}

/// What becomes of a machine's drives.
#[derive(Debug, Serialize)]
struct Outlook {
    erased: Vec<Affected>,
    kept: Vec<Affected>,
    created: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Affected {
    disk: DiskId,
    model: Option<String>,
    /// In the layout, if it's there.
    name: Option<String>,
}

fn outlook(layout: &Layout, inventory: &Inventory, installed: u64, reinstall: bool) -> Result<Outlook> {
    layout.start(inventory.firmware.kind).map_err(anyhow::Error::msg)?;
    let needs = Needs { root_bytes: root_bytes(installed), disk_bytes: 0 };
    let chosen = layout.choose(&inventory.disks, needs)?;
    let disk = |id: &DiskId| inventory.disks.iter().find(|disk| disk.id().as_ref() == Some(id));
    let mut outlook = Outlook { erased: Vec::new(), kept: Vec::new(), created: Vec::new() };
    let keep = layout.drives.iter().filter(|drive| reinstall && drive.keep).map(|drive| drive.name.as_str()).collect();
    let (made, _) = layout.apart(&keep);
    for disk in inventory.disks.iter().filter(|disk| disk.holds_data()) {
        let Some(id) = disk.id() else { continue };
        let name = chosen.iter().find(|(_, taken)| **taken == id).map(|(name, _)| name.clone());
        let stays = name.as_ref().is_some_and(|name| keep.contains(name.as_str()));
        let list = if stays { &mut outlook.kept } else { &mut outlook.erased };
        list.push(Affected { disk: id, model: disk.model.clone(), name });
    }
    for drive in &made.drives {
        let id = chosen.get(&drive.name).with_context(|| format!("no drive is {:?}", drive.name))?;
        let disk = disk(id).with_context(|| format!("{id} isn't in the inventory"))?;
        let extents = place(drive, disk.size_bytes, disk.logical_block)?;
        ensure!(extents.len() == drive.partitions.len(), "partitions got lost");
        for ((number, partition), extent) in (1..).zip(&drive.partitions).zip(extents) {
            let what = match partition.kind {
                Kind::Bios => ", for a BIOS",
                Kind::Esp => ", the EFI system partition",
                Kind::Linux => "",
            };
            let size = bytes(extent.bytes);
            outlook.created.push(format!("{}/{} is partition {number}, {size}{what}", drive.name, partition.name));
        }
    }
    outlook.created.extend(stacked(&made));
    Ok(outlook)
}

/// What lies on partitions.
fn stacked(layout: &Layout) -> Vec<String> {
    let mut lines = Vec::new();
    for raid in &layout.raids {
        let spares = if raid.spares.is_empty() { String::new() } else { format!(", spare {}", raid.spares.join(", ")) };
        lines.push(format!("{} is RAID {} of {}{spares}", raid.name, raid.level, raid.devices.join(", ")));
    }
    for group in &layout.groups {
        lines.push(format!("{} is a volume group of {}", group.name, group.devices.join(", ")));
        for volume in &group.volumes {
            let spread = format!("{:?}", volume.spread).to_lowercase();
            lines.push(format!("{}/{} is a volume, {spread}, {}", group.name, volume.name, volume.size));
        }
    }
    for Encrypted { name, on } in &layout.encrypted {
        lines.push(format!("{name} is {on}, encrypted"));
    }
    for Filesystem { on, format, mount, .. } in &layout.filesystems {
        let what = match on {
            Some(on) => format!("{on} holds {}", format.name()),
            None => format.name().to_owned(),
        };
        let at = mount.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
        lines.push(format!("{what}{at}"));
    }
    lines
}

impl Outlook {
    fn lines(&self) -> Vec<String> {
        let model = |model: &Option<String>| model.as_ref().map(|model| format!(", {model}")).unwrap_or_default();
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let erased = self.erased.iter().map(|affected| {
            let becomes = match &affected.name {
                Some(name) => format!("becomes {name}"),
                None => "isn't in the layout".to_owned(),
            };
            format!("- everything on {}{}, which {becomes}", affected.disk, model(&affected.model))
        });
        let created = self.created.iter().map(|line| format!("+ {line}"));
        let kept = self.kept.iter().map(|affected| {
            format!("  {}{} stays as it is, as {}", affected.disk, model(&affected.model), name(&affected.name))
        });
        erased.chain(created).chain(kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::fixtures::{disk, inventory};

    use super::*;

    fn example() -> Layout {
        let text: String = EXAMPLE.lines().filter_map(|l| l.strip_prefix("  ")).map(|l| format!("{l}\n")).collect();
        toml::from_str(&text).expect("understood")
    }

    #[test]
    fn the_example_in_the_help_is_right() {
        let layout = example();
        assert_eq!(layout.check(), Ok(()));
        // Nothing that can be said is left out of it.
        let json = serde_json::to_value(&layout).expect("JSON");
        for key in ["drive", "raid", "volume_group", "encrypted", "filesystem"] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn what_goes_and_what_comes() {
        const GIB: u64 = 1 << 30;
        let disks = || vec![disk("A", 300 * GIB), disk("B", 500 * GIB), disk("C", 9 * GIB), disk("D", 600 * GIB)];
        let said = outlook(&example(), &inventory(disks()), 2 * GIB, false).expect("fits").lines();
        for want in [
            "- everything on disk A (322122547200 bytes), which becomes first",
            "- everything on disk B (536870912000 bytes), which becomes second",
            "+ first/esp is partition 2, 256.0 MiB, the EFI system partition",
            "+ system is RAID 1 of first/root, second/root",
            "+ vault is vg0/vault, encrypted",
            "+ vg0/srv holds xfs at /srv",
            "- everything on disk D (644245094400 bytes), which becomes archive",
            "+ archive/own holds xfs at /archive",
            "- everything on disk C (9663676416 bytes), which isn't in the layout",
        ] {
            assert!(said.iter().any(|line| line == want), "{want}: {said:#?}");
        }
        let again = outlook(&example(), &inventory(disks()), 2 * GIB, true).expect("fits").lines();
        let differs: Vec<&String> = said.iter().filter(|line| !again.contains(line)).collect();
        assert_eq!(
            differs,
            [
                "- everything on disk D (644245094400 bytes), which becomes archive",
                "+ archive/own is partition 1, 599.9 GiB",
                "+ archive/own holds xfs at /archive",
            ]
        );
        let stays = "  disk D (644245094400 bytes) stays as it is, as archive";
        assert!(again.iter().any(|line| line == stays), "{again:#?}");
        let said = outlook(&example(), &inventory(vec![disk("A", 300 * GIB)]), 0, false).map(|o| o.lines());
        let said = said.map_err(|e| e.to_string());
        assert!(said.as_ref().is_err_and(|e| e.contains("no drive to be the layout's \"second\"")), "{said:?}");
    }
}
