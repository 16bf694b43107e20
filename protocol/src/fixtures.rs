//! The plainest valid value of each large type, for other rooms' tests: `Disk { read_only: true, ..disk("A", 1) }`.

use ed25519_dalek::SigningKey;

use crate::certificate::{Attempt, Drive, ErasureCertificate, Link, Promise, Verdict, Verification};
use crate::erase::{Depth, Medium, Method, Policy};
use crate::id::{BootId, MachineId, OrderId};
use crate::inventory::{Bus, Disk, DiskId, Firmware, FirmwareKind, Inventory, System};
use crate::layout::{self, Layout};
use crate::manifest::{self, BootFiles, Chunk, ImageFile, Manifest, Pack, TarForm};
use crate::order::{Erase, Install, Kept, ReadBack};
use crate::sign::PublicKey;
use crate::system;
use crate::ticket::PhoneHome;

/// An NVMe drive.
pub fn disk(serial: &str, size_bytes: u64) -> Disk {
    Disk {
        name: "nvme0n1".into(),
        paths: vec![],
        model: None,
        serial: Some(serial.into()),
        firmware: None,
        wwn: None,
        namespace: 1,
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

/// What a machine with these disks is first told to erase.
pub fn erase(disks: Vec<DiskId>) -> Erase {
    Erase {
        disks,
        kept: Kept::default(),
        policy: Policy::Purge,
        depth: Depth::Sampled,
        psids: [].into(),
        fresh: [].into(),
        link: Link::FIRST,
        ordered_by: "test".into(),
    }
}

/// A proof that the drive which is `disk` was erased.
pub fn certificate(machine: MachineId, boot: BootId, order: OrderId, link: Link, disk: &DiskId) -> ErasureCertificate {
    let method = Method::NvmeFormatUserData;
    ErasureCertificate {
        link,
        machine,
        boot,
        order,
        ordered_by: "test".into(),
        drive: Drive {
            serial: disk.serial.clone(),
            model: None,
            firmware: None,
            wwn: None,
            bus: Bus::Nvme,
            medium: Medium::Flash,
            disks: vec![disk.clone()],
        },
        policy: Policy::Purge,
        capabilities: vec![],
        found: vec![],
        attempts: vec![Attempt {
            method,
            because: "the only one".into(),
            resumed: false,
            details: vec![],
            millis: 1,
            error: None,
        }],
        verification: Some(Verification {
            promise: Promise::Changed,
            block_bytes: 4096,
            canaries_planted: 129,
            canaries_surviving: 0,
            samples: 6905,
            samples_telling: 100,
            samples_surviving: 0,
            unexpected: 0,
            read_bytes: 7034 << 12,
            full: false,
            forced_unit_access: true,
        }),
        unwritten: None,
        rest: None,
        verdict: Verdict::Erased { method },
        started: 1,
        finished: 2,
        agent_version: "test".into(),
    }
}

/// An order to install an image on a drive, with a server that isn't there.
pub fn install(image: &str, cmdline: &str, system: system::System) -> Install {
    Install {
        kept: [].into(),
        layout: Layout::single(None),
        drives: [(layout::SYSTEM.into(), DiskId::new("S1", 1 << 30))].into(),
        image: image.into(),
        stores: vec!["http://192.0.2.1/images".into()],
        manifest_sha256: String::new(),
        read_back: ReadBack::Sampled,
        disk_key: None,
        system,
        boot: None,
        cmdline: cmdline.into(),
        phone_home: PhoneHome {
            server: "https://127.0.0.1:1".into(),
            boot_server: "http://127.0.0.1:1".into(),
            ca: "PEM".into(),
            time_key: PublicKey::of(&SigningKey::from_bytes(&[1; 32])),
            machine: MachineId(uuid::Uuid::nil()),
            token: "secret".into(),
        },
    }
}

/// A chunk of the one pack of [`manifest`].
pub fn chunk(offset: u64, length: u32, unpacked: u32) -> Chunk {
    Chunk { pack: 0, offset, length, sha256: "d".repeat(64), unpacked, content_sha256: "e".repeat(64) }
}

/// An image of 100 bytes.
pub fn manifest(name: &str, version: &str) -> Manifest {
    Manifest {
        format: manifest::FORMAT,
        name: name.into(),
        version: version.into(),
        description: format!("{name} {version}"),
        arch: "x86_64".into(),
        created: 0,
        expires: None,
        installed_bytes: 1 << 20,
        packs: vec![Pack { sha256: "c".repeat(64), bytes: 1 << 20 }],
        block: None,
        tar: Some(TarForm { bytes: 100, sha256: "a".repeat(64), chunks: vec![chunk(0, 10, 100)] }),
        boot: BootFiles {
            kernel: ImageFile { path: "/boot/vmlinuz".into(), sha256: String::new() },
            initrd: None,
            cmdline: String::new(),
            bios: None,
            uefi: None,
            by: None,
        },
        sbom: None,
        source: None,
        minimum: None,
    }
}
