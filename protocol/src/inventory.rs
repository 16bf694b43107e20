//! What a machine is made of, as its agent found it.
//!
//! Nothing here is required beyond what every computer has: a field that firmware or kernel doesn't tell is `None` or
//! an empty list, never a made-up value.

use serde::{Deserialize, Serialize};

use crate::id::{Mac, MachineId};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Inventory {
    /// `None` on hosts whose firmware has no SMBIOS UUID; such a machine is known by its first MAC.
    pub id: Option<MachineId>,
    pub system: System,
    pub firmware: Firmware,
    pub memory_bytes: u64,
    pub cpus: Vec<Cpu>,
    pub dimms: Vec<Dimm>,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    pub pci: Vec<PciFunction>,
    pub numa_nodes: Vec<NumaNode>,
    pub tpm: Option<Tpm>,
    pub bmc: Option<Bmc>,
    /// What couldn't be read, in words; an inventory with gaps says so.
    pub gaps: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct System {
    pub manufacturer: Option<String>,
    pub product: Option<String>,
    pub serial: Option<String>,
    pub board_manufacturer: Option<String>,
    pub board_product: Option<String>,
    pub board_serial: Option<String>,
    pub chassis_serial: Option<String>,
    pub asset_tag: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Firmware {
    pub kind: FirmwareKind,
    pub vendor: Option<String>,
    pub version: Option<String>,
    pub date: Option<String>,
    /// `None` where the firmware has no such switch (BIOS).
    pub secure_boot: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FirmwareKind {
    Bios,
    Uefi,
}

/// One processor package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cpu {
    pub socket: u32,
    pub vendor: String,
    pub model: String,
    pub cores: u32,
    pub threads: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Dimm {
    pub locator: String,
    pub bytes: u64,
    pub kind: Option<String>,
    pub speed_mts: Option<u32>,
    pub manufacturer: Option<String>,
    pub part_number: Option<String>,
    pub serial: Option<String>,
}

/// A whole drive. `name` is the kernel's name for it today; `serial` and `size_bytes` are what orders go by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Disk {
    pub name: String,
    /// Other names under which the kernel shows the same drive, one for each further path that leads to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub firmware: Option<String>,
    pub wwn: Option<String>,
    /// Which part of an NVMe drive it is.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub namespace: u32,
    pub size_bytes: u64,
    pub logical_block: u32,
    pub physical_block: u32,
    pub bus: Bus,
    pub rotational: bool,
    pub removable: bool,
    pub read_only: bool,
    pub health: Option<Health>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Bus {
    Nvme,
    Ata,
    Scsi,
    Virtio,
    Usb,
    Other,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    pub percentage_used: u8,
    pub available_spare: u8,
    pub critical_warning: u8,
    pub media_errors: u64,
    pub power_on_hours: u64,
    pub temperature_celsius: i32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Nic {
    pub name: String,
    pub mac: Mac,
    pub driver: Option<String>,
    pub pci_address: Option<String>,
    pub firmware: Option<String>,
    pub mtu: u32,
    pub link: bool,
    pub speed_mbit: Option<u32>,
    pub lldp: Vec<Neighbour>,
}

/// Who is at the other end of the cable, as an LLDP frame said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Neighbour {
    pub chassis_id: String,
    pub port_id: String,
    pub port_description: Option<String>,
    pub system_name: Option<String>,
    pub system_description: Option<String>,
}

/// Ids only: names come from the server's database, so the agent stays small.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PciFunction {
    pub address: String,
    pub class: u32,
    pub vendor: u16,
    pub device: u16,
    pub subsystem_vendor: Option<u16>,
    pub subsystem_device: Option<u16>,
    pub driver: Option<String>,
    pub numa_node: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NumaNode {
    pub node: u32,
    pub cpus: String,
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tpm {
    pub version: String,
    pub device: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Bmc {
    pub interface: String,
    pub address: Option<String>,
    pub firmware: Option<String>,
}

/// How an order names a drive. Kernel names move between boots, so they aren't part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskId {
    pub serial: String,
    pub size_bytes: u64,
    /// NVMe drives can be divided; their parts share a serial. What isn't divided is its own first part.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub namespace: u32,
}

fn first() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_first(namespace: &u32) -> bool {
    *namespace == 1
}

impl DiskId {
    /// A drive that isn't divided.
    pub fn new(serial: impl Into<String>, size_bytes: u64) -> Self {
        Self { serial: serial.into(), size_bytes, namespace: 1 }
    }
}

impl std::fmt::Display for DiskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = if self.namespace == 1 { String::new() } else { format!(" namespace {}", self.namespace) };
        write!(f, "disk {}{part} ({} bytes)", self.serial, self.size_bytes)
    }
}

impl Disk {
    /// `None` if the drive tells no serial: such a drive can't be named, so nothing destructive can be ordered for it.
    pub fn id(&self) -> Option<DiskId> {
        let serial = self.serial.as_deref().map(str::trim).filter(|s| !s.is_empty())?;
        Some(DiskId { serial: serial.to_owned(), size_bytes: self.size_bytes, namespace: self.namespace })
    }

    /// Whether a tenant's data could be on this drive and has to be erased: fixed media. One that has turned read-only,
    /// as worn-out or write-protected drives do, still shows the next tenant what the last one left.
    pub fn holds_data(&self) -> bool {
        self.passed_by().is_none()
    }

    /// Why an erase passes this drive by, if it does.
    pub fn passed_by(&self) -> Option<&'static str> {
        if self.bus == Bus::Usb {
            Some("it's on USB, as memory sticks and a BMC's virtual media are, so it isn't a part of this machine")
        } else if self.removable {
            Some("its medium can be taken out, so it isn't a part of this machine")
        } else if self.size_bytes == 0 {
            Some("there is nothing in it")
        } else {
            None
        }
    }
}
