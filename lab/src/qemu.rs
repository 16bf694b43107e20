//! What a virtual server is made of, and the QEMU command that is it.

use drophammer_protocol::id::{Mac, MachineId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accel::Accel;
use crate::console;
use crate::nbd::Vice;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Also its system serial number, so that this is what the server calls it.
    pub name: String,
    pub firmware: Firmware,
    pub card: Card,
    pub rom: Rom,
    pub memory_mb: u32,
    pub disks: Vec<DiskSpec>,
    pub mac: Mac,
    pub uuid: MachineId,
    /// What its clock says at power-on, as `2001-02-03T04:05:06`; `None` is the right time.
    pub clock: Option<String>,
}

impl MachineSpec {
    /// The `n`th machine of a lab, from 1: `m1` with one 8 GiB drive.
    pub fn numbered(n: u8, firmware: Firmware) -> Self {
        let name = format!("m{n}");
        Self {
            firmware,
            card: Card::Virtio,
            rom: Rom::Native,
            memory_mb: 384,
            disks: vec![DiskSpec::new(&format!("{name}-nvme0"), 8 << 30)],
            mac: Mac([0x52, 0x54, 0x00, 0x77, 0x00, n]),
            uuid: MachineId(Uuid::from_u128(0x6472_6f70_6861_4d6d_a572_0000_0000_0000 + u128::from(n))),
            clock: None,
            name,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// SeaBIOS; its PXE is iPXE in the network card's ROM.
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF that starts only what the owner of [`SNAKEOIL_KEY`] signed.
    SecureBoot,
}

impl Firmware {
    /// `None` for a BIOS.
    pub fn ovmf(self) -> Option<Ovmf> {
        match self {
            Self::Bios => None,
            Self::Uefi => {
                Some(Ovmf { code: "/usr/share/OVMF/OVMF_CODE_4M.fd", vars: "/usr/share/OVMF/OVMF_VARS_4M.fd" })
            }
            Self::SecureBoot => Some(Ovmf {
                code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                vars: "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd",
            }),
        }
    }
}

/// Network cards, by QEMU's names of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Card {
    Virtio,
    E1000,
    E1000e,
    Rtl8139,
    Vmxnet3,
}

impl Card {
    fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Rtl8139 => "rtl8139",
            Self::Vmxnet3 => "vmxnet3",
        }
    }
}

/// What network-boots a UEFI machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rom {
    /// The firmware's own PXE, as in a real server: DHCP, then iPXE by TFTP, then HTTP.
    Native,
    /// The firmware's own HTTP boot, with no PXE before it: DHCP, then the agent as one program.
    Http,
    /// iPXE in the card's ROM: half as long to the kernel.
    Ipxe,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Also of a further namespace, which in its drive has none: it's what the lab calls it.
    pub serial: String,
    pub size: u64,
    pub kind: DiskKind,
    pub bus: DiskBus,
    /// The unit of its addresses: 512 or 4096.
    pub block: u32,
    /// How many paths lead to it, if it's a SCSI drive.
    pub paths: u8,
}

impl DiskSpec {
    /// A sound NVMe drive.
    pub fn new(serial: &str, size: u64) -> Self {
        Self { serial: serial.to_owned(), size, kind: DiskKind::Plain, bus: DiskBus::Nvme, block: 512, paths: 1 }
    }
}

/// How a drive is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    Nvme,
    /// No drive of its own: a further namespace of the NVMe drive before it, attached to its controller or not.
    Namespace {
        attached: bool,
    },
    /// At most four.
    Ata,
    Scsi,
    /// It reads and writes, and knows nothing else.
    Virtio,
}

/// Drives, sound or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    Plain,
    /// Format NVM ends with an error status; everything else works.
    FailsErase,
    /// Format NVM reports success, and every byte is still there.
    KeepsData,
    /// Reads work, all writes fail: a worn-out SSD.
    ReadOnly,
    /// Writes that contain [`POISON`](crate::nbd::POISON) fail; everything else works.
    Choosy,
    /// An overwrite takes long enough to be interrupted: some seconds for each 10 MiB.
    Slow,
    /// Sound until it's told otherwise while it runs: see [`Machine::frailty`](crate::vm::Machine::frailty).
    Frail,
}

impl DiskKind {
    /// What is wrong with it, if an NBD server plays it.
    pub(crate) fn vice(self) -> Option<Vice> {
        match self {
            Self::KeepsData => Some(Vice::KeepsData),
            Self::Choosy => Some(Vice::Choosy),
            Self::Slow => Some(Vice::Slow),
            Self::Frail => Some(Vice::Frail),
            Self::Plain | Self::FailsErase | Self::ReadOnly => None,
        }
    }
}

/// What the next power-on starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootFrom {
    /// The network, then the drives in order: how a server stands in its rack.
    Network,
    /// The drives only.
    Disk,
    /// Kernel and initramfs that lie in the machine's directory; see [`rescue`](crate::rescue).
    Rescue,
}

/// OVMF's two halves, from Debian's package ovmf: code, and the template of what a machine remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ovmf {
    pub code: &'static str,
    pub vars: &'static str,
}

/// Everybody has this key, which is why it's for tests only; its passphrase is [`SNAKEOIL_PASSPHRASE`].
pub const SNAKEOIL_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
pub const SNAKEOIL_CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";
pub const SNAKEOIL_PASSPHRASE: &str = "snakeoil";

pub(crate) const MONITOR: &str = "monitor.sock";
pub(crate) const CONSOLE: &str = "console.sock";
pub(crate) const CONSOLE_LOG: &str = "console.log";
pub(crate) const VARS: &str = "vars.fd";
pub(crate) const RESCUE_KERNEL: &str = "rescue.vmlinuz";
pub(crate) const RESCUE_INITRAMFS: &str = "rescue.initramfs";
/// In the initramfs, the program that runs first.
pub(crate) const RESCUE_INIT: &str = "rescue/init";

pub(crate) fn image(disk: usize) -> String {
    format!("disk{disk}.raw")
}

pub(crate) fn nbd_socket(disk: usize) -> String {
    format!("disk{disk}.nbd")
}

/// Arguments for `qemu-system-x86_64`, run in the machine's own directory: every path of the machine is relative to it.
pub fn arguments(spec: &MachineSpec, tap: &str, accel: Accel, from: BootFrom) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut arg = |name: &str, value: String| args.extend([name.to_owned(), value]);

    arg("-name", spec.name.clone());
    // graphics=off makes SeaBIOS, and with it iPXE and GRUB, speak on the serial port. The chipset's SATA controller has no driver in Debian's kernel for virtual machines; drives behind it would go unseen.
    let machine = "q35,graphics=off,sata=off".to_owned();
    match spec.firmware {
        Firmware::Bios | Firmware::Uefi => arg("-machine", machine),
        // What the firmware remembers is out of the system's reach: only code in system management mode writes it.
        Firmware::SecureBoot => {
            arg("-machine", machine + ",smm=on");
            arg("-global", "driver=cfi.pflash01,property=secure,value=on".into());
        }
    }
    arg("-accel", accel.argument().into());
    arg("-cpu", "max".into());
    // Room for a second processor, which never comes: where there can be only one, the emulator leaves out the guest's
    // memory barriers, although its own devices run beside it. That is the likely cause of an NVMe drive that stopped
    // answering, seen once in some hundred boots.
    arg("-smp", "1,maxcpus=2".into());
    arg("-m", spec.memory_mb.to_string());
    arg("-display", "none".into());
    arg("-rtc", format!("base={}", spec.clock.as_deref().unwrap_or("utc")));
    arg("-smbios", format!("type=1,manufacturer=drophammer,product=lab,serial={},uuid={}", spec.name, spec.uuid));
    // SeaBIOS would otherwise go through floppies and CDs that aren't there.
    arg("-boot", "menu=off,strict=on".into());
    if let Some(Ovmf { code, .. }) = spec.firmware.ovmf() {
        arg("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"));
        arg("-drive", format!("if=pflash,format=raw,unit=1,file={VARS}"));
        // Nobody answers PXE over IPv6 here, and waiting for that is most of a minute before the next boot entry's turn.
        arg("-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n".into());
        if spec.rom == Rom::Http {
            arg("-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n".into());
        }
    }

    arg("-chardev", format!("socket,id=console,path={CONSOLE},server=on,wait=off,logfile={CONSOLE_LOG},logappend=on"));
    arg("-serial", "chardev:console".into());
    arg("-chardev", format!("socket,id=monitor,path={MONITOR},server=on,wait=off"));
    arg("-mon", "chardev=monitor,mode=control".into());
    arg("-object", "rng-random,id=rng0,filename=/dev/urandom".into());
    arg("-device", "virtio-rng-pci,rng=rng0".into());

    if from == BootFrom::Rescue {
        arg("-kernel", RESCUE_KERNEL.into());
        arg("-initrd", RESCUE_INITRAMFS.into());
        arg("-append", format!("{} panic=-1 rdinit=/{RESCUE_INIT}", console::ARGUMENT));
    }

    let mut next_boot_index = 1..;
    let mut boot_index = || next_boot_index.next().map(|n| format!(",bootindex={n}")).unwrap_or_default();
    let nic = match (from, spec.firmware, spec.rom) {
        (BootFrom::Disk | BootFrom::Rescue, ..) => ",romfile=".into(),
        (BootFrom::Network, Firmware::Bios, _) | (_, _, Rom::Ipxe) => boot_index(),
        (BootFrom::Network, Firmware::Uefi | Firmware::SecureBoot, Rom::Native | Rom::Http) => {
            format!(",romfile={}", boot_index())
        }
    };
    arg("-netdev", format!("tap,id={NIC},ifname={tap},script=no,downscript=no"));
    arg("-device", format!("{},id=nic0,netdev={NIC},mac={}{nic}", spec.card.device(), spec.mac));

    for (bus, controller) in [(DiskBus::Ata, "piix4-ide,id=ata"), (DiskBus::Scsi, "virtio-scsi-pci,id=scsi")] {
        if spec.disks.iter().any(|disk| disk.bus == bus) {
            arg("-device", controller.into());
        }
    }
    let mut ata = 0;
    let mut controller = 0;
    for (n, disk) in spec.disks.iter().enumerate() {
        arg("-blockdev", blockdev(n, disk.kind).to_string());
        let block = format!("drive=disk{n},logical_block_size={0},physical_block_size={0}", disk.block);
        let serial = &disk.serial;
        match disk.bus {
            DiskBus::Nvme => {
                controller = n;
                let next = spec.disks.get(n + 1).map(|next| next.bus);
                if let Some(DiskBus::Namespace { .. }) = next {
                    // Namespaces that aren't attached belong to a subsystem.
                    arg("-device", format!("nvme-subsys,id=subsystem{n}"));
                    arg("-device", format!("nvme,id=nvme{n},serial={serial},subsys=subsystem{n}"));
                    arg("-device", format!("nvme-ns,bus=nvme{n},nsid=1,{block}"));
                } else {
                    arg("-device", format!("nvme,id=nvme{n},serial={serial},{block}{}", boot_index()));
                }
            }
            DiskBus::Namespace { attached } => {
                let (nsid, detached) = (n - controller + 1, if attached { "off" } else { "on" });
                arg("-device", format!("nvme-ns,bus=nvme{controller},nsid={nsid},detached={detached},{block}"));
            }
            DiskBus::Ata => {
                let place = format!("bus=ata.{},unit={}", ata / 2, ata % 2);
                arg("-device", format!("ide-hd,{place},serial={serial},{block}{}", boot_index()));
                ata += 1;
            }
            DiskBus::Scsi => {
                // By its world-wide name a drive with several paths is known for one.
                let name = format!("serial={serial},wwn={:#x},share-rw=on", 0x5000_c500_0000_0000_u64 + n as u64);
                for _ in 1..disk.paths {
                    arg("-device", format!("scsi-hd,bus=scsi.0,{name},{block}"));
                }
                arg("-device", format!("scsi-hd,bus=scsi.0,{name},{block}{}", boot_index()));
            }
            DiskBus::Virtio => {
                let plain = "discard=off,write-zeroes=off";
                arg("-device", format!("virtio-blk-pci,serial={serial},{plain},{block}{}", boot_index()));
            }
        }
    }
    args.insert(0, "-nodefaults".into());
    args
}

/// The network card's name in the monitor.
pub(crate) const NIC: &str = "net0";

fn blockdev(n: usize, kind: DiskKind) -> Value {
    // A power cut kills QEMU, not the host: what QEMU wrote is in the host's cache and stays. Syncing it would only
    // make every test wait for the host's disk.
    let cache = json!({ "no-flush": true });
    let file = json!({ "driver": "file", "filename": image(n), "discard": "unmap" });
    let name = format!("disk{n}");
    let raw = json!({ "driver": "raw", "discard": "unmap", "file": file });
    let broken = |kinds: &[&str]| {
        // No `event` would mean one request in particular; `none` is any.
        let rules: Vec<_> =
            kinds.iter().map(|io| json!({ "event": "none", "iotype": io, "errno": 5, "once": false })).collect();
        json!({ "driver": "blkdebug", "node-name": name, "discard": "unmap", "cache": cache, "inject-error": rules,
                "image": raw })
    };
    match kind {
        DiskKind::Plain => {
            json!({ "driver": "raw", "node-name": name, "discard": "unmap", "cache": cache, "file": file })
        }
        // QEMU's nvme device carries out Format NVM with writes of zeroes.
        DiskKind::FailsErase => broken(&["write-zeroes"]),
        DiskKind::ReadOnly => broken(&["write", "write-zeroes", "discard"]),
        DiskKind::KeepsData | DiskKind::Choosy | DiskKind::Slow | DiskKind::Frail => {
            json!({ "driver": "nbd", "node-name": name, "discard": "unmap",
            "server": { "type": "unix", "path": nbd_socket(n) } })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_says_what_the_spec_says() {
        use BootFrom::{Disk, Network};
        use Firmware::{Bios, SecureBoot, Uefi};
        let nic = "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:77:00:01";
        for (name, firmware, rom, from, want_nic, want_disk, pflash, pxe) in [
            ("bios", Bios, Rom::Native, Network, format!("{nic},bootindex=1"), 2, 0, true),
            ("uefi", Uefi, Rom::Native, Network, format!("{nic},romfile=,bootindex=1"), 2, 2, true),
            ("uefi, http", Uefi, Rom::Http, Network, format!("{nic},romfile=,bootindex=1"), 2, 2, false),
            ("secure boot", SecureBoot, Rom::Http, Network, format!("{nic},romfile=,bootindex=1"), 2, 2, false),
            ("uefi, fast", Uefi, Rom::Ipxe, Network, format!("{nic},bootindex=1"), 2, 2, true),
            ("bios, disk", Bios, Rom::Native, Disk, format!("{nic},romfile="), 1, 0, true),
            ("uefi, disk", Uefi, Rom::Ipxe, Disk, format!("{nic},romfile="), 1, 2, true),
        ] {
            let spec = MachineSpec { rom, ..MachineSpec::numbered(1, firmware) };
            let args = arguments(&spec, "tap1", Accel::Tcg, from);
            assert!(args.contains(&want_nic), "{name}: {args:?}");
            let disk = format!(
                "nvme,id=nvme0,serial=m1-nvme0,drive=disk0,logical_block_size=512,physical_block_size=512,\
                 bootindex={want_disk}"
            );
            assert!(args.contains(&disk), "{name}: {args:?}");
            assert_eq!(args.iter().filter(|a| a.starts_with("if=pflash")).count(), pflash, "{name}");
            assert_eq!(!args.iter().any(|a| a.contains("IPv4PXESupport")), pxe, "{name}");
            let guarded = args.iter().any(|a| a.contains("smm=on")) && args.iter().any(|a| a.contains("=secure,"));
            assert_eq!(guarded, firmware == SecureBoot, "{name}");
            let smbios =
                "type=1,manufacturer=drophammer,product=lab,serial=m1,uuid=64726f70-6861-4d6d-a572-000000000001";
            assert!(args.contains(&smbios.to_owned()), "{name}: {args:?}");
        }
    }

    #[test]
    fn drives_of_every_kind() {
        let disk = |bus, block| DiskSpec { bus, block, ..DiskSpec::new("S", 1 << 20) };
        let (more, hidden) = (DiskBus::Namespace { attached: true }, DiskBus::Namespace { attached: false });
        let disks = vec![
            disk(DiskBus::Nvme, 4096),
            disk(more, 512),
            disk(hidden, 512),
            disk(DiskBus::Ata, 512),
            disk(DiskBus::Scsi, 512),
            disk(DiskBus::Virtio, 512),
        ];
        let spec = MachineSpec { disks, ..MachineSpec::numbered(1, Firmware::Bios) };
        let args = arguments(&spec, "tap1", Accel::Tcg, BootFrom::Network);
        let block =
            |n: usize, bytes: u32| format!("drive=disk{n},logical_block_size={bytes},physical_block_size={bytes}");
        for want in [
            "nvme-subsys,id=subsystem0".to_owned(),
            "nvme,id=nvme0,serial=S,subsys=subsystem0".to_owned(),
            format!("nvme-ns,bus=nvme0,nsid=1,{}", block(0, 4096)),
            format!("nvme-ns,bus=nvme0,nsid=2,detached=off,{}", block(1, 512)),
            format!("nvme-ns,bus=nvme0,nsid=3,detached=on,{}", block(2, 512)),
            "piix4-ide,id=ata".to_owned(),
            format!("ide-hd,bus=ata.0,unit=0,serial=S,{},bootindex=2", block(3, 512)),
            "virtio-scsi-pci,id=scsi".to_owned(),
            format!("scsi-hd,bus=scsi.0,serial=S,wwn=0x5000c50000000004,share-rw=on,{},bootindex=3", block(4, 512)),
            format!("virtio-blk-pci,serial=S,discard=off,write-zeroes=off,{},bootindex=4", block(5, 512)),
        ] {
            assert!(args.contains(&want), "{want}: {args:?}");
        }
    }

    #[test]
    fn every_kind_of_drive_fails_in_its_own_way() {
        for (kind, driver, injected) in [
            (DiskKind::Plain, "raw", vec![]),
            (DiskKind::FailsErase, "blkdebug", vec!["write-zeroes"]),
            (DiskKind::ReadOnly, "blkdebug", vec!["write", "write-zeroes", "discard"]),
            (DiskKind::KeepsData, "nbd", vec![]),
            (DiskKind::Choosy, "nbd", vec![]),
            (DiskKind::Slow, "nbd", vec![]),
            (DiskKind::Frail, "nbd", vec![]),
        ] {
            let node = blockdev(3, kind);
            assert_eq!(node["driver"], driver, "{kind:?}");
            assert_eq!(node["node-name"], "disk3", "{kind:?}");
            let rules = node["inject-error"].as_array().cloned().unwrap_or_default();
            assert_eq!(rules.iter().map(|r| &r["iotype"]).collect::<Vec<_>>(), injected, "{kind:?}");
        }
    }

    #[test]
    fn machines_have_names_of_their_own() {
        let (a, b) = (MachineSpec::numbered(1, Firmware::Bios), MachineSpec::numbered(2, Firmware::Bios));
        assert!(a.name != b.name && a.mac != b.mac && a.uuid != b.uuid && a.disks != b.disks);
        assert_eq!(a.uuid.0.get_version_num(), 4);
    }
}
