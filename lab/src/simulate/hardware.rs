//! What the simulated machines are made of: three models of servers, with as many modules, drives, ports and PCI functions
//! as such servers tell of, in racks that are known by their switches. Pure: a machine is always the same.

use drophammer_protocol::id::{Mac, MachineId};
use drophammer_protocol::inventory::{
    Bmc, Bus, Cpu, Dimm, Disk, Firmware, FirmwareKind, Health, Inventory, Neighbour, Nic, NumaNode, PciFunction,
    System, Tpm,
};
use drophammer_protocol::resource::{Constraint, Partition, Rack, Resource, Size};
use uuid::Uuid;

const GIB: u64 = 1 << 30;
/// Servers of a rack, two of whose ports lead to each of its two switches.
const IN_A_RACK: u32 = 40;
/// Where ids of simulated machines begin.
const FIRST: u128 = 0x6472_6f70_6861_4d8d_9000_0000_0000_0000;

#[derive(Debug)]
struct Model {
    size: &'static str,
    manufacturer: &'static str,
    product: &'static str,
    cpu: (&'static str, &'static str),
    sockets: u32,
    cores: u32,
    dimms: u32,
    dimm_gib: u64,
    drives: u32,
    drive: (&'static str, u64),
    gpus: u32,
}

const MODELS: [Model; 3] = [
    Model {
        size: "c1-large",
        manufacturer: "Dell Inc.",
        product: "PowerEdge R6615",
        cpu: ("AuthenticAMD", "AMD EPYC 9354P 32-Core Processor"),
        sockets: 1,
        cores: 32,
        dimms: 12,
        dimm_gib: 32,
        drives: 2,
        drive: ("Dell Ent NVMe PM1735a MU 1.6TB", 1_600_321_314_816),
        gpus: 0,
    },
    Model {
        size: "m1-xlarge",
        manufacturer: "Supermicro",
        product: "SYS-621C-TN12R",
        cpu: ("GenuineIntel", "Intel(R) Xeon(R) Gold 6430"),
        sockets: 2,
        cores: 32,
        dimms: 16,
        dimm_gib: 64,
        drives: 6,
        drive: ("SAMSUNG MZQL23T8HCLS-00A07", 3_840_755_982_336),
        gpus: 0,
    },
    Model {
        size: "g1-xlarge",
        manufacturer: "HPE",
        product: "ProLiant DL380a Gen11",
        cpu: ("GenuineIntel", "Intel(R) Xeon(R) Platinum 8480+"),
        sockets: 2,
        cores: 56,
        dimms: 32,
        dimm_gib: 64,
        drives: 8,
        drive: ("KIOXIA KCD8XPUG3T84", 3_840_755_982_336),
        gpus: 4,
    },
];

fn model(machine: u32) -> &'static Model {
    &MODELS[machine as usize % MODELS.len()]
}

pub(super) fn id(machine: u32) -> MachineId {
    MachineId(Uuid::from_u128(FIRST + u128::from(machine)))
}

/// Which machine it is, if it's one of ours.
pub(super) fn number(id: MachineId) -> Option<u32> {
    id.0.as_u128().checked_sub(FIRST).and_then(|number| u32::try_from(number).ok())
}

/// Of the port that it boots from.
pub(super) fn mac(machine: u32) -> Mac {
    port(machine, 0)
}

/// What the label on it says.
pub(super) fn serial(machine: u32) -> String {
    format!("SIM{machine:06}")
}

fn port(machine: u32, port: u8) -> Mac {
    let [_, b, c, d] = machine.to_be_bytes();
    Mac([0x02, 0x51, port, b, c, d])
}

/// All that its agent would find.
pub(super) fn inventory(machine: u32) -> Inventory {
    let model = model(machine);
    let serial = serial(machine);
    let (vendor, name) = model.cpu;
    let cpu = |socket| Cpu {
        socket,
        vendor: vendor.into(),
        model: name.into(),
        cores: model.cores,
        threads: 2 * model.cores,
    };
    let dimm = |n: u32| Dimm {
        locator: format!("DIMM {}{}", if n.is_multiple_of(2) { 'A' } else { 'B' }, n / 2 + 1),
        bytes: model.dimm_gib * GIB,
        kind: Some("DDR5".into()),
        speed_mts: Some(4800),
        manufacturer: Some("Samsung".into()),
        part_number: Some("M321R4GA3BB6-CQKET".into()),
        serial: Some(format!("{:08X}", machine.wrapping_mul(64).wrapping_add(n))),
    };
    let threads = 2 * model.cores * model.sockets;
    let node = |node: u32| NumaNode {
        node,
        cpus: format!("{}-{}", node * threads / model.sockets, (node + 1) * threads / model.sockets - 1),
        memory_bytes: memory(model) / u64::from(model.sockets),
    };
    Inventory {
        id: Some(id(machine)),
        system: System {
            manufacturer: Some(model.manufacturer.into()),
            product: Some(model.product.into()),
            serial: Some(serial.clone()),
            board_manufacturer: Some(model.manufacturer.into()),
            board_product: Some(format!("{} board", model.product)),
            board_serial: Some(format!("{serial}-B")),
            chassis_serial: Some(format!("{serial}-C")),
            asset_tag: None,
        },
        firmware: Firmware {
            kind: FirmwareKind::Uefi,
            vendor: Some(model.manufacturer.into()),
            version: Some("2.14.1".into()),
            date: Some("03/18/2026".into()),
            secure_boot: Some(false),
        },
        memory_bytes: memory(model) - GIB,
        cpus: (0..model.sockets).map(cpu).collect(),
        dimms: (0..model.dimms).map(dimm).collect(),
        disks: (0..model.drives).map(|n| disk(machine, model, n)).collect(),
        nics: (0..4).map(|n| nic(machine, n)).collect(),
        pci: pci(model),
        numa_nodes: (0..model.sockets).map(node).collect(),
        tpm: Some(Tpm { version: "2.0".into(), device: "tpm0".into() }),
        bmc: Some(Bmc {
            interface: "KCS".into(),
            address: Some(format!("10.{}.{}.{}", 200 + machine / 65_000, machine / 250 % 256, machine % 250 + 1)),
            firmware: Some("7.10.30".into()),
        }),
        gaps: vec![],
    }
}

fn memory(model: &Model) -> u64 {
    u64::from(model.dimms) * model.dimm_gib * GIB
}

fn disk(machine: u32, model: &Model, n: u32) -> Disk {
    let (name, size_bytes) = model.drive;
    Disk {
        name: format!("nvme{n}n1"),
        paths: vec![],
        model: Some(name.into()),
        serial: Some(format!("S{machine:07}N{n:02}")),
        firmware: Some("GDC5602Q".into()),
        wwn: Some(format!("eui.{machine:08x}{n:08x}")),
        namespace: 1,
        size_bytes,
        logical_block: 512,
        physical_block: 4096,
        bus: Bus::Nvme,
        rotational: false,
        removable: false,
        read_only: false,
        health: Some(Health {
            percentage_used: 3,
            available_spare: 100,
            critical_warning: 0,
            media_errors: 0,
            power_on_hours: 9000 + u64::from(machine % 1000),
            temperature_celsius: 34,
        }),
    }
}

fn nic(machine: u32, n: u8) -> Nic {
    let leaf = leaf(machine / IN_A_RACK, n % 2);
    let neighbour = Neighbour {
        chassis_id: format!("02:52:00:00:00:{:02x}", machine / IN_A_RACK % 256),
        port_id: format!("Ethernet{}", 4 * (machine % IN_A_RACK)),
        port_description: Some(format!("server {} port {n}", machine % IN_A_RACK + 1)),
        system_name: Some(leaf),
        system_description: Some("SONiC Software Version: SONiC.202311 HwSku: Accton-AS7726-32X".into()),
    };
    let cabled = n < 2;
    Nic {
        name: format!("enp{}s0f{}np{}", 65 + n / 2, n % 2, n % 2),
        mac: port(machine, n),
        driver: Some("mlx5_core".into()),
        pci_address: Some(format!("0000:{:02x}:00.{}", 0x41 + n / 2, n % 2)),
        firmware: Some("26.36.1010 (DEL0000000031)".into()),
        mtu: 1500,
        link: cabled,
        speed_mbit: cabled.then_some(25_000),
        lldp: cabled.then_some(neighbour).into_iter().collect(),
    }
}

fn leaf(rack: u32, side: u8) -> String {
    format!("leaf{:02}.rack{rack:03}.example.org", side + 1)
}

/// Bridges and root ports, of which there are most; ports, drives and graphics processors, each with its driver.
fn pci(model: &Model) -> Vec<PciFunction> {
    const BRIDGES: u32 = 96;
    let of = |bus: u32, slot: u32, (class, vendor, device): (u32, u16, u16), driver: &str| PciFunction {
        address: format!("0000:{bus:02x}:{:02x}.{}", slot / 8, slot % 8),
        class,
        vendor,
        device,
        subsystem_vendor: Some(0x1028),
        subsystem_device: Some(0x0a6b),
        driver: Some(driver.into()),
        numa_node: Some(bus % model.sockets),
    };
    let bridges = (0..BRIDGES).map(|n| of(n / 32, n % 32 * 8 + n / 32, (0x06_0400, 0x8086, 0x352a), "pcieport"));
    let ports = (0..4).map(|n| of(0x41 + n / 2, n % 2, (0x02_0000, 0x15b3, 0x101f), "mlx5_core"));
    let drives = (0..model.drives).map(|n| of(0x60 + n, 0, (0x01_0802, 0x144d, 0xa824), "nvme"));
    let gpus = (0..model.gpus).map(|n| of(0x80 + n, 0, (0x03_0200, 0x10de, 0x2331), "vfio-pci"));
    bridges.chain(ports).chain(drives).chain(gpus).collect()
}

/// One for each model.
pub(super) fn sizes() -> Vec<Size> {
    let size = |model: &Model| {
        let exactly = |of, amount, identifier| Constraint { of, min: amount, max: amount, identifier };
        let drives = u64::from(model.drives) * model.drive.1;
        let mut constraints = vec![
            exactly(Resource::Cores, u64::from(model.sockets * model.cores), None),
            exactly(Resource::Memory, memory(model), None),
            exactly(Resource::Storage, drives, Some("/dev/nvme*".into())),
        ];
        if model.gpus > 0 {
            constraints.push(exactly(Resource::Gpu, model.gpus.into(), Some("*H100*".into())));
        }
        Size {
            name: model.size.into(),
            description: model.product.into(),
            labels: [].into(),
            constraints,
            images: vec![],
        }
    };
    MODELS.iter().map(size).collect()
}

/// With a rack for every so many machines.
pub(super) fn partition(name: &str, machines: u32) -> Partition {
    let rack = |rack: u32| Rack {
        name: format!("rack{rack:03}"),
        machines: vec![],
        switches: [0, 1].map(|side| leaf(rack, side)).into(),
        networks: vec![],
    };
    let racks = (0..machines.div_ceil(IN_A_RACK)).map(rack).collect();
    Partition { name: name.into(), racks, ..Partition::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use drophammer_protocol::resource::Kind;

    use super::*;

    #[test]
    fn no_two_machines_are_the_same() {
        let mut seen = BTreeSet::new();
        for machine in 0..500 {
            let inventory = inventory(machine);
            assert_eq!(number(id(machine)), Some(machine));
            let disks = inventory.disks.iter().filter_map(|disk| disk.serial.clone());
            let macs = inventory.nics.iter().map(|nic| nic.mac.to_string());
            for name in disks.chain(macs).chain(inventory.system.serial) {
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
        assert_eq!(number(MachineId(Uuid::nil())), None);
    }

    #[test]
    fn they_are_as_large_as_real_ones() {
        for machine in 0..3 {
            let inventory = serde_json::to_vec(&inventory(machine)).expect("JSON");
            assert!((20_000..80_000).contains(&inventory.len()), "{} bytes", inventory.len());
        }
    }

    #[test]
    fn what_is_declared_of_them_makes_sense() {
        for size in sizes() {
            size.check().unwrap_or_else(|faults| panic!("{}: {faults:?}", size.name));
        }
        for (machines, racks) in [(1, 1), (40, 1), (41, 2), (10_000, 250)] {
            let partition = partition("default", machines);
            assert_eq!(partition.racks.len(), racks);
            partition.check().unwrap_or_else(|faults| panic!("{machines}: {faults:?}"));
        }
    }
}
