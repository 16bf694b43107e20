//! The plainest valid value of each large type, for other rooms' tests: `Disk { read_only: true, ..disk("A", 1) }`.

use crate::inventory::{Bus, Disk, Firmware, FirmwareKind, Inventory, System};
use crate::manifest::{BootFiles, Chunk, Chunks, ImageFile, Manifest};

/// An NVMe drive.
pub fn disk(serial: &str, size_bytes: u64) -> Disk {
    Disk {
        name: "nvme0n1".into(),
        model: None,
        serial: Some(serial.into()),
        firmware: None,
        wwn: None,
        size_bytes,
        logical_block: 512,
        physical_block: 512,
        bus: Bus::Nvme,
        rotational: false,
        removable: false,
        read_only: false,
        health: None,
    }
}

/// A machine with UEFI, 1 GiB of memory and these disks.
pub fn inventory(disks: Vec<Disk>) -> Inventory {
    Inventory {
        id: None,
        system: System::default(),
        firmware: Firmware { kind: FirmwareKind::Uefi, vendor: None, version: None, date: None, secure_boot: None },
        memory_bytes: 1 << 30,
        cpus: vec![],
        dimms: vec![],
        disks,
        nics: vec![],
        pci: vec![],
        numa_nodes: vec![],
        tpm: None,
        bmc: None,
        gaps: vec![],
    }
}

/// An image of these frames, which together unpack to `tar_bytes`.
pub fn manifest(name: &str, version: &str, frames: Vec<Chunk>, tar_bytes: u64) -> Manifest {
    Manifest {
        name: name.into(),
        version: version.into(),
        description: format!("{name} {version}"),
        arch: "x86_64".into(),
        created: 0,
        installed_bytes: 1 << 20,
        chunks: Chunks { file: "rootfs.tar.zst".into(), tar_bytes, tar_sha256: String::new(), frames },
        boot: BootFiles {
            kernel: ImageFile { path: "/boot/vmlinuz".into(), sha256: String::new() },
            initrd: None,
            cmdline: String::new(),
            bios: None,
            uefi: None,
        },
    }
}
