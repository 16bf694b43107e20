//! What exactly is to be installed: an allocation, an image and an inventory in, a plan or a sentence out.

use drophammer_protocol::id::Mac;
use drophammer_protocol::inventory::{Disk, DiskId, Inventory};
use drophammer_protocol::machine::Allocation;
use drophammer_protocol::space::needed_bytes;
use drophammer_protocol::system::Faults;
use drophammer_protocol::words::bytes;
use serde::{Deserialize, Serialize};

use crate::images::Image;

/// All decisions of an install order that aren't in the allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) disk: DiskId,
    /// `name/version`.
    pub(crate) image: String,
    pub(crate) manifest_sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("{0}")]
    System(Faults),
    #[error("the machine has no port {wanted}, which the network is to have; it has {}", ports(.have))]
    NoSuchPort { wanted: Mac, have: Vec<Mac> },
    #[error("the machine has no disk with serial {wanted:?} that can be installed on; it has {}", list(.have))]
    NoSuchDisk { wanted: String, have: Vec<DiskId> },
    #[error("{image} needs {} of memory, and the machine has {}", bytes(*.needed), bytes(*.have))]
    Memory { image: String, needed: u64, have: u64 },
    #[error("{disk} is too small for {image}, which needs {needed} bytes with its file system and boot partitions")]
    TooSmall { disk: DiskId, image: String, needed: u64 },
    #[error("no disk is large enough for {image}, which needs {needed} bytes; the machine has {}", list(.have))]
    NoneFits { image: String, needed: u64, have: Vec<DiskId> },
}

pub(crate) fn plan(allocation: &Allocation, image: &Image, inventory: &Inventory) -> Result<Plan, Unfit> {
    allocation.system.check().map_err(Unfit::System)?;
    let have: Vec<Mac> = inventory.nics.iter().map(|nic| nic.mac).collect();
    if let Some(wanted) = allocation.system.network.macs().into_iter().find(|mac| !have.contains(mac)) {
        return Err(Unfit::NoSuchPort { wanted, have });
    }
    if let Some(needed) = image.summary.minimum.and_then(|minimum| minimum.memory_bytes) {
        // What the kernel keeps for itself is missing from the one, modules that nobody described from the other.
        let modules = inventory.dimms.iter().map(|dimm| dimm.bytes).sum();
        let have = inventory.memory_bytes.max(modules);
        if have < needed {
            return Err(Unfit::Memory { image: image.reference(), needed, have });
        }
    }
    Ok(Plan {
        disk: choose_disk(allocation.disk.as_deref(), image, inventory)?,
        image: image.reference(),
        manifest_sha256: image.manifest_sha256.clone(),
    })
}

/// The named drive, or the smallest that fits: large ones are for data.
fn choose_disk(serial: Option<&str>, image: &Image, inventory: &Inventory) -> Result<DiskId, Unfit> {
    // The agent has the last word; here is seen to it that hopeless orders are never written.
    let least = image.summary.minimum.and_then(|minimum| minimum.disk_bytes).unwrap_or(0);
    let needed =
        |disk: &Disk| needed_bytes(image.summary.installed_bytes, disk.size_bytes, disk.logical_block).max(least);
    let usable = inventory.disks.iter().filter(|d| d.holds_data()).filter_map(|d| Some((d.id()?, needed(d))));
    let mut have: Vec<(DiskId, u64)> = usable.collect();
    have.sort_by(|(a, _), (b, _)| (a.size_bytes, &a.serial).cmp(&(b.size_bytes, &b.serial)));
    let all = || have.iter().map(|(id, _)| id.clone()).collect();
    match serial.map(str::trim) {
        Some(wanted) => match have.iter().find(|(id, _)| id.serial == wanted) {
            Some((disk, needed)) if disk.size_bytes >= *needed => Ok(disk.clone()),
            Some((disk, needed)) => {
                Err(Unfit::TooSmall { disk: disk.clone(), image: image.reference(), needed: *needed })
            }
            None => Err(Unfit::NoSuchDisk { wanted: wanted.to_owned(), have: all() }),
        },
        None => match have.iter().find(|(disk, needed)| disk.size_bytes >= *needed) {
            Some((disk, _)) => Ok(disk.clone()),
            None => {
                let needed = have.last().map_or(image.summary.installed_bytes, |(_, needed)| *needed);
                Err(Unfit::NoneFits { image: image.reference(), needed, have: all() })
            }
        },
    }
}

fn list(disks: &[DiskId]) -> String {
    if disks.is_empty() {
        return "none".into();
    }
    disks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn ports(macs: &[Mac]) -> String {
    if macs.is_empty() {
        return "none".into();
    }
    macs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::api::ImageSummary;
    use drophammer_protocol::fixtures::{disk, inventory};
    use drophammer_protocol::inventory::{Bus, Dimm, Nic};
    use drophammer_protocol::manifest::Minimum;
    use drophammer_protocol::system::System;
    use drophammer_protocol::system::network::{Ip, Network, Port};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn image(installed_bytes: u64) -> Image {
        let key = drophammer_protocol::sign::PublicKey::of(&ed25519_dalek::SigningKey::from_bytes(&[1; 32]));
        let summary = ImageSummary {
            name: "debian".into(),
            version: "12".into(),
            description: String::new(),
            created: 0,
            expires: None,
            download_bytes: 0,
            installed_bytes,
            signed_by: key,
            source: None,
            minimum: None,
        };
        Image { summary, manifest_sha256: "00".into() }
    }

    fn allocation() -> Allocation {
        let system = System { hostname: "web-1".into(), ..System::default() };
        Allocation { image: "debian".into(), system, disk: None, project: None }
    }

    #[test]
    fn the_smallest_disk_that_fits() {
        let usb = Disk { bus: Bus::Usb, ..disk("usb", 8 * GIB) };
        let nameless = Disk { serial: None, ..disk("", 8 * GIB) };
        let two = || vec![disk("big", 100 * GIB), disk("small", 10 * GIB)];
        let id = |serial: &str, size_bytes| DiskId::new(serial, size_bytes);
        let needed = |installed: u64| needed_bytes(installed, 10 * GIB, 512);
        for (name, wanted, installed, disks, want) in [
            ("smallest", None, GIB, two(), Ok("small")),
            ("small one too small", None, 20 * GIB, two(), Ok("big")),
            ("a small disk has a small ESP", None, GIB / 2, vec![disk("tiny", 800 << 20)], Ok("tiny")),
            ("named", Some("big"), GIB, two(), Ok("big")),
            ("named with spaces, as labels have them", Some(" big "), GIB, two(), Ok("big")),
            (
                "named but too small",
                Some("small"),
                20 * GIB,
                two(),
                Err(Unfit::TooSmall {
                    disk: id("small", 10 * GIB),
                    image: "debian/12".into(),
                    needed: needed(20 * GIB),
                }),
            ),
            (
                "named but not there",
                Some("other"),
                GIB,
                vec![disk("small", 10 * GIB)],
                Err(Unfit::NoSuchDisk { wanted: "other".into(), have: vec![id("small", 10 * GIB)] }),
            ),
            (
                "removable and nameless ones don't count",
                None,
                GIB,
                vec![usb, nameless],
                Err(Unfit::NoneFits { image: "debian/12".into(), needed: GIB, have: vec![] }),
            ),
        ] {
            let allocation = Allocation { disk: wanted.map(Into::into), ..allocation() };
            let got = plan(&allocation, &image(installed), &inventory(disks)).map(|p| p.disk.serial);
            assert_eq!(got, want.map(String::from), "{name}");
        }
    }

    fn nic(mac: Mac) -> Nic {
        Nic {
            name: "eth0".into(),
            mac,
            driver: None,
            pci_address: None,
            firmware: None,
            mtu: 1500,
            link: true,
            speed_mbit: None,
            lldp: vec![],
        }
    }

    #[test]
    fn what_the_image_needs_of_a_machine() {
        let dimm = |bytes| Dimm {
            locator: "A1".into(),
            bytes,
            kind: None,
            speed_mts: None,
            manufacturer: None,
            part_number: None,
            serial: None,
        };
        // As much as a machine with 8 GiB says that it has.
        let machine = Inventory { memory_bytes: 8 * GIB - (300 << 20), ..inventory(vec![disk("A", 100 * GIB)]) };
        let modules = Inventory { dimms: vec![dimm(4 * GIB), dimm(4 * GIB)], ..machine.clone() };
        for (name, minimum, machine, want) in [
            ("nothing", None, &machine, None),
            ("less", Some((4, 50)), &machine, None),
            ("its modules", Some((8, 100)), &modules, None),
            (
                "more memory",
                Some((16, 0)),
                &modules,
                Some("debian/12 needs 16.0 GiB of memory, and the machine has 8.0 GiB"),
            ),
            ("a larger disk", Some((0, 200)), &machine, Some("no disk is large enough for debian/12")),
        ] {
            let minimum = minimum
                .map(|(memory, disk)| Minimum { memory_bytes: Some(memory * GIB), disk_bytes: Some(disk * GIB) });
            let mut image = image(GIB);
            image.summary.minimum = minimum;
            let got = plan(&allocation(), &image, machine).err().map(|e| e.to_string());
            match (&got, want) {
                (None, None) => {}
                (Some(got), Some(want)) => assert!(got.starts_with(want), "{name}: {got}"),
                _ => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_system_that_this_machine_can_be() {
        let mac = |n| Mac([2, 0, 0, 0, 0, n]);
        let on = |n| Network {
            ports: vec![Port { mac: mac(n), mtu: None, ip: Ip { dhcp4: true, ..Ip::default() } }],
            ..Network::default()
        };
        let machine = Inventory { nics: vec![nic(mac(1))], ..inventory(vec![disk("A", 100 * GIB)]) };
        for (name, system, want) in [
            ("its own port", System { hostname: "a".into(), network: on(1), ..System::default() }, None),
            (
                "another machine's port",
                System { hostname: "a".into(), network: on(2), ..System::default() },
                Some("has no port 02:00:00:00:00:02, which the network is to have; it has 02:00:00:00:00:01"),
            ),
            ("what can't be at all", System { hostname: "a_b".into(), ..System::default() }, Some("\"a_b\" is not a")),
        ] {
            let got = plan(&Allocation { system, ..allocation() }, &image(GIB), &machine).err().map(|e| e.to_string());
            match (&got, want) {
                (None, None) => {}
                (Some(got), Some(want)) => assert!(got.contains(want), "{name}: {got}"),
                _ => panic!("{name}: {got:?}"),
            }
        }
    }
}
