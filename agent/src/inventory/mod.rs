//! What this machine is made of. Unknown, odd or broken hardware makes a gap in the answer, never an error: a machine
//! that can't say everything about itself can still say the rest.

mod devices;
pub(crate) mod disks;
mod processors;
mod smbios;
pub(crate) mod sysfs;

#[cfg(fuzzing)]
pub(crate) use self::{disks::fuzz as fuzz_disks, smbios::fuzz as fuzz_smbios};

use std::path::Path;

use drophammer_protocol::event::Phase;
use drophammer_protocol::id::MachineId;
use drophammer_protocol::inventory::{Bmc, Bus, Disk, Firmware, FirmwareKind, Inventory};
use drophammer_protocol::words::{bytes, count};

use crate::drive::{Data, nvme};
use crate::efi;
use crate::reporter::Reporter;
use crate::sys::{self, ethtool};

/// Reads everything below `root`: `/` on a machine, a captured tree in a test. What only the running kernel or the drive
/// itself can tell is asked for on a machine alone.
pub(crate) fn read(root: &Path, reporter: Option<&Reporter>) -> Inventory {
    if let Some(reporter) = reporter {
        reporter.started(Phase::Inventory, "looking at what this machine is made of");
    }
    let mut inventory = from_tree(root);
    if root == Path::new("/") {
        ask_live(&mut inventory);
    }
    if let Some(reporter) = reporter {
        for gap in &inventory.gaps {
            reporter.note(Phase::Inventory, gap.clone());
        }
        reporter.done(Phase::Inventory, summary(&inventory));
    }
    inventory
}

/// What firmware calls this machine.
pub(crate) fn id(root: &Path) -> Option<MachineId> {
    id_of(root, &board(root).unwrap_or_default())
}

fn id_of(root: &Path, board: &smbios::Smbios) -> Option<MachineId> {
    board.id.or_else(|| processors::product_uuid(root))
}

/// `None` if there are no SMBIOS tables.
fn board(root: &Path) -> Option<smbios::Smbios> {
    let tables = root.join("sys/firmware/dmi/tables");
    let table = sysfs::bytes(&tables.join("DMI")).filter(|table| !table.is_empty())?;
    Some(smbios::parse(table, &sysfs::bytes(&tables.join("smbios_entry_point")).unwrap_or_default()))
}

fn from_tree(root: &Path) -> Inventory {
    let mut gaps = Vec::new();
    let board = board(root).unwrap_or_else(|| {
        gaps.push("no SMBIOS tables: system, board and memory modules are unknown".to_owned());
        smbios::Smbios::default()
    });
    let memory_bytes = processors::memory_bytes(root).unwrap_or_else(|| {
        gaps.push("/proc/meminfo can't be read: the size of the memory is unknown".to_owned());
        0
    });
    let cpus = processors::cpus(root);
    if cpus.is_empty() {
        gaps.push("/proc/cpuinfo can't be read: the processors are unknown".to_owned());
    }
    let disks = disks::disks(root);
    for disk in &disks {
        if disk.holds_data() && disk.id().is_none() {
            gaps.push(format!("{} tells no serial number: it can't be named in an order", disk.name));
        }
        if disk.bus == Bus::Nvme && disk.size_bytes == 0 {
            gaps.push(format!("{} shows no capacity: the kernel can't use the way it's formatted", disk.name));
        }
    }
    Inventory {
        id: id_of(root, &board),
        system: board.system,
        firmware: Firmware {
            kind: if root.join("sys/firmware/efi").exists() { FirmwareKind::Uefi } else { FirmwareKind::Bios },
            vendor: board.vendor,
            version: board.version,
            date: board.date,
            secure_boot: efi::secure_boot(root),
        },
        memory_bytes,
        cpus,
        dimms: board.dimms,
        disks,
        nics: devices::nics(root),
        pci: devices::pci(root),
        numa_nodes: processors::numa_nodes(root),
        tpm: devices::tpm(root),
        bmc: bmc(board.bmc, devices::ipmi(root)),
        gaps,
    }
}

/// SMBIOS knows how a BMC is wired before a driver does; the driver knows its firmware.
fn bmc(board: Option<Bmc>, driver: Option<Bmc>) -> Option<Bmc> {
    match (board, driver) {
        (Some(board), Some(driver)) => Some(Bmc { firmware: driver.firmware, ..board }),
        (board, driver) => board.or(driver),
    }
}

fn ask_live(inventory: &mut Inventory) {
    for disk in inventory.disks.iter_mut().filter(|d| d.bus == Bus::Nvme) {
        match ask_health(disk) {
            Ok(health) => disk.health = Some(health),
            Err(e) => inventory.gaps.push(format!("the health of {} is unknown: {e:#}", disk.name)),
        }
    }
    for nic in &mut inventory.nics {
        // Virtual functions and virtio have none, and say so with an error; that's no gap.
        nic.firmware = ethtool::firmware_version(&nic.name).ok().flatten();
    }
}

fn ask_health(disk: &Disk) -> anyhow::Result<drophammer_protocol::inventory::Health> {
    use anyhow::Context as _;
    let path = Path::new("/dev").join(&disk.name);
    let drive = std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let mut page = [0; nvme::SMART_BYTES];
    let what = "asking for the SMART log";
    let answer = sys::nvme::submit(&drive, &nvme::Command::smart(), Data::In(&mut page)).context(what)?;
    answer.check().context(what)?;
    nvme::health(&page).context("the SMART log is cut short")
}

fn summary(inventory: &Inventory) -> String {
    let system = [&inventory.system.manufacturer, &inventory.system.product].into_iter().flatten();
    let name = system.map(String::as_str).collect::<Vec<_>>().join(" ");
    let threads: u32 = inventory.cpus.iter().map(|cpu| cpu.threads).sum();
    format!(
        "{}: {}, {} of memory, {}, {}",
        if name.is_empty() { "unnamed system" } else { &name },
        count(threads as usize, "CPU thread"),
        bytes(inventory.memory_bytes),
        count(inventory.disks.len(), "disk"),
        count(inventory.nics.len(), "network interface")
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use drophammer_protocol::inventory::{Cpu, NumaNode, Tpm};

    use super::*;

    /// A tree of attribute files, as a machine would show it.
    pub(crate) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        pub(crate) fn root(&self) -> &Path {
            self.0.path()
        }

        pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) {
            fs::write(self.parent_of(path), content).expect("writing a fixture");
        }

        pub(crate) fn link(&self, path: &str, target: &str) {
            fs::create_dir_all(self.root().join(target)).expect("making a directory");
            symlink(self.root().join(target), self.parent_of(path)).expect("linking");
        }

        fn parent_of(&self, path: &str) -> PathBuf {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("making a directory");
            path
        }
    }

    #[test]
    fn an_empty_tree_is_a_machine_with_gaps() {
        let found = read(Tree::new().root(), None);
        assert_eq!((found.id, found.cpus.len(), found.disks.len(), found.gaps.len()), (None, 0, 0, 3));
        assert_eq!(found.firmware.kind, FirmwareKind::Bios);
    }

    #[test]
    fn a_whole_machine() {
        let tree = Tree::new();
        tree.file("sys/firmware/dmi/tables/DMI", smbios::tests::machine());
        tree.file("sys/firmware/dmi/tables/smbios_entry_point", b"_SM3_\0\x18\x03\x02\0");
        tree.file("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", [6, 0, 0, 0, 1]);
        tree.file("proc/meminfo", "MemTotal:        2048 kB\nMemFree:  1 kB\n");
        let one = |n: u32, package: u32| {
            format!("processor\t: {n}\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon  E5\nphysical id\t: {package}\n\n")
        };
        tree.file("proc/cpuinfo", [one(0, 0), one(1, 0), one(2, 1), one(3, 1)].concat());
        for (cpu, package, core) in [(0, 0, 0), (1, 0, 0), (2, 1, 0), (3, 1, 1)] {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            tree.file(&format!("{topology}/physical_package_id"), format!("{package}\n"));
            tree.file(&format!("{topology}/core_id"), format!("{core}\n"));
        }
        tree.file("sys/devices/system/node/node0/cpulist", "0-3\n");
        tree.file("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       2048 kB\n");
        let function = "sys/devices/pci0000:00/0000:00:03.0";
        tree.link("sys/bus/pci/devices/0000:00:03.0", function);
        for (file, value) in [("class", "0x020000"), ("vendor", "0x1af4"), ("device", "0x1000"), ("numa_node", "-1")] {
            tree.file(&format!("{function}/{file}"), value);
        }
        tree.link(&format!("{function}/driver"), "sys/bus/pci/drivers/virtio-pci");
        let nic = "sys/class/net/eth0";
        for (file, value) in [
            ("type", "1\n"),
            ("address", "52:54:00:77:00:01\n"),
            ("mtu", "1500\n"),
            ("carrier", "1\n"),
            ("speed", "-1\n"),
        ] {
            tree.file(&format!("{nic}/{file}"), value);
        }
        tree.link(&format!("{nic}/device"), &format!("{function}/virtio0"));
        tree.link(&format!("{function}/virtio0/driver"), "sys/bus/virtio/drivers/virtio_net");
        tree.file("sys/class/net/lo/address", "00:00:00:00:00:00\n");
        tree.file("sys/class/tpm/tpm0/tpm_version_major", "2\n");
        tree.file("sys/devices/platform/ipmi_bmc.0/firmware_revision", "1.52\n");

        let found = read(tree.root(), None);
        assert_eq!(found.gaps, Vec::<String>::new());
        assert_eq!(found.id.map(|id| id.to_string()).as_deref(), Some("00112233-4455-6677-8899-aabbccddeeff"));
        assert_eq!((found.firmware.kind, found.firmware.secure_boot), (FirmwareKind::Uefi, Some(true)));
        assert_eq!(found.memory_bytes, 2 << 20);
        let cpu =
            |socket, cores| Cpu { socket, vendor: "GenuineIntel".into(), model: "Xeon E5".into(), cores, threads: 2 };
        assert_eq!(found.cpus, [cpu(0, 1), cpu(1, 2)]);
        assert_eq!(found.numa_nodes, [NumaNode { node: 0, cpus: "0-3".into(), memory_bytes: 2 << 20 }]);
        assert_eq!(found.nics.len(), 1);
        let nic = &found.nics[0];
        assert_eq!(
            (nic.driver.as_deref(), nic.pci_address.as_deref(), nic.link, nic.speed_mbit, nic.mtu),
            (Some("virtio_net"), Some("0000:00:03.0"), true, None, 1500)
        );
        assert_eq!(found.pci.len(), 1);
        let pci = &found.pci[0];
        assert_eq!(
            (pci.class, pci.vendor, pci.device, pci.driver.as_deref(), pci.numa_node, pci.subsystem_vendor),
            (0x020000, 0x1af4, 0x1000, Some("virtio-pci"), None, None)
        );
        assert_eq!(found.tpm, Some(Tpm { version: "2.0".into(), device: "tpm0".into() }));
        assert_eq!(found.bmc, Some(Bmc { interface: "KCS".into(), address: None, firmware: Some("1.52".into()) }));
    }
}
