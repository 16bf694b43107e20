//! Network interfaces, PCI functions, TPM and BMC, from a sysfs tree.

use std::path::Path;

use drophammer_protocol::inventory::{Bmc, Nic, PciFunction, Tpm};

use super::sysfs;

/// Ethernet interfaces with hardware under them: not `lo`, bridges, bonds or tunnels.
pub(super) fn nics(root: &Path) -> Vec<Nic> {
    const ARPHRD_ETHER: u32 = 1;
    let class = root.join("sys/class/net");
    sysfs::names(&class)
        .into_iter()
        .filter_map(|name| {
            let dir = class.join(&name);
            let device = dir.join("device");
            if !device.exists() || sysfs::number(&dir.join("type")) != Some(ARPHRD_ETHER) {
                return None;
            }
            Some(Nic {
                mac: sysfs::text(&dir.join("address"))?.parse().ok()?,
                driver: sysfs::link_name(&device.join("driver")),
                pci_address: sysfs::pci_address(&sysfs::device_path(&device)),
                firmware: None,
                mtu: sysfs::number(&dir.join("mtu")).unwrap_or(0),
                link: sysfs::flag(&dir.join("carrier")),
                // -1 without a link, and an error while the interface is down.
                speed_mbit: sysfs::number(&dir.join("speed")),
                lldp: Vec::new(),
                name,
            })
        })
        .collect()
}

pub(super) fn pci(root: &Path) -> Vec<PciFunction> {
    let devices = root.join("sys/bus/pci/devices");
    sysfs::names(&devices)
        .into_iter()
        .filter_map(|address| {
            let dir = devices.join(&address);
            let id = |file: &str| sysfs::hex(&dir.join(file)).and_then(|n| u16::try_from(n).ok());
            Some(PciFunction {
                class: sysfs::hex(&dir.join("class"))?,
                vendor: id("vendor")?,
                device: id("device")?,
                subsystem_vendor: id("subsystem_vendor").filter(|&n| n != 0),
                subsystem_device: id("subsystem_device").filter(|&n| n != 0),
                driver: sysfs::link_name(&dir.join("driver")),
                // -1 where there is only one node.
                numa_node: sysfs::number(&dir.join("numa_node")),
                address,
            })
        })
        .collect()
}

pub(super) fn tpm(root: &Path) -> Option<Tpm> {
    let class = root.join("sys/class/tpm");
    let device = sysfs::names(&class).into_iter().next()?;
    // The attribute is younger than TPM 2.0 support; drivers for 1.2 have `caps` instead.
    let version = match sysfs::text(&class.join(&device).join("tpm_version_major")).as_deref() {
        Some("2") => "2.0",
        Some("1") => "1.2",
        Some(_) => "unknown",
        None if class.join(&device).join("device/caps").exists() => "1.2",
        None => "unknown",
    };
    Some(Tpm { version: version.to_owned(), device })
}

/// A BMC that a driver talks to.
pub(super) fn ipmi(root: &Path) -> Option<Bmc> {
    let bmc = root.join("sys/devices/platform/ipmi_bmc.0");
    let firmware = sysfs::text(&bmc.join("firmware_revision"));
    let present = firmware.is_some() || !sysfs::names(&root.join("sys/class/ipmi")).is_empty();
    present.then(|| Bmc { interface: "IPMI".to_owned(), address: None, firmware })
}
