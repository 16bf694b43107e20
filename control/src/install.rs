//! What exactly is to be installed: an allocation, an image and an inventory in, a plan or a sentence out.

use std::collections::BTreeMap;

use drophammer_protocol::faults::Faults;
use drophammer_protocol::glob::glob;
use drophammer_protocol::id::Mac;
use drophammer_protocol::inventory::{DiskId, Inventory};
use drophammer_protocol::layout::{Needs, Select, Unmatched};
use drophammer_protocol::machine::Allocation;
use drophammer_protocol::manifest::BootBy;
use drophammer_protocol::space::root_bytes;
use drophammer_protocol::words::bytes;
use serde::{Deserialize, Serialize};

use crate::images::Image;

/// All decisions of an install order that aren't in the allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// By their names in the layout; those that are written to.
    pub(crate) drives: BTreeMap<String, DiskId>,
    /// Those that stay as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) kept: BTreeMap<String, DiskId>,
    /// `name/version`.
    pub(crate) image: String,
    pub(crate) manifest_sha256: String,
    /// `None` leaves it to the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) boot: Option<BootBy>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("{0}")]
    System(Faults),
    #[error("the machine has no port {wanted}, which the network is to have; it has {}", ports(.have))]
    NoSuchPort { wanted: Mac, have: Vec<Mac> },
    #[error("the layout can't be: {0}")]
    Layout(Faults),
    #[error("the order says both which disk and which layout: a layout says itself which drives it's for")]
    DiskAndLayout,
    #[error("{0}")]
    Start(String),
    #[error("{0}")]
    Drives(Unmatched),
    #[error("{image} needs {} of memory, and the machine has {}", bytes(*.needed), bytes(*.have))]
    Memory { image: String, needed: u64, have: u64 },
}

/// `kept` are drives of the layout that stay as they are.
pub(crate) fn plan(
    allocation: &Allocation,
    image: &Image,
    inventory: &Inventory,
    kept: &BTreeMap<String, DiskId>,
    reboot_models: &[String],
) -> Result<Plan, Unfit> {
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
    if allocation.disk.is_some() && allocation.layout.is_some() {
        return Err(Unfit::DiskAndLayout);
    }
    let mut layout = allocation.layout();
    layout.check().map_err(Unfit::Layout)?;
    layout.start(inventory.firmware.kind).map_err(Unfit::Start)?;
    // The agent has the last word; here is seen to it that hopeless orders are never written.
    let needs = Needs {
        root_bytes: root_bytes(image.summary.installed_bytes),
        disk_bytes: image.summary.minimum.and_then(|minimum| minimum.disk_bytes).unwrap_or(0),
    };
    for drive in &mut layout.drives {
        if let Some(id) = kept.get(&drive.name) {
            drive.select = Select { serial: Some(id.serial.clone()), ..Select::default() };
        }
    }
    let mut drives = layout.choose(&inventory.disks, needs).map_err(Unfit::Drives)?;
    drives.retain(|name, _| !kept.contains_key(name));
    Ok(Plan {
        drives,
        kept: kept.clone(),
        image: image.reference(),
        manifest_sha256: image.manifest_sha256.clone(),
        boot: allocation.boot.or_else(|| boot_of(inventory, reboot_models)),
    })
}

/// What the configuration says of this model: by its product's name, or by vendor and product.
fn boot_of(inventory: &Inventory, reboot_models: &[String]) -> Option<BootBy> {
    let product = inventory.system.product.as_deref().unwrap_or_default().trim();
    let vendor = inventory.system.manufacturer.as_deref().unwrap_or_default().trim();
    let names = [product.to_owned(), format!("{vendor} {product}")];
    let is_one = |pattern: &String| names.iter().any(|name| glob(pattern.as_bytes(), name.as_bytes()));
    reboot_models.iter().any(is_one).then_some(BootBy::Reboot)
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
    use drophammer_protocol::inventory::{Dimm, Firmware, FirmwareKind, Nic};
    use drophammer_protocol::layout::{Layout, Raid};
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
            classification: drophammer_protocol::resource::Classification::default(),
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
        Allocation { image: "debian".into(), system, ..Allocation::default() }
    }

    #[test]
    fn drives_that_this_machine_has() {
        let disks = vec![disk("big", 100 * GIB), disk("small", 10 * GIB)];
        let mirrored = |level: u8| {
            let drive = |name: &str| {
                let mut drive = Layout::single(None).drives.remove(0);
                drive.name = name.into();
                drive
            };
            let mut layout = Layout { drives: vec![drive("a"), drive("b")], ..Layout::single(None) };
            layout.filesystems[0].on = Some("r".into());
            let devices = vec!["a/root".into(), "b/root".into()];
            layout.raids = vec![Raid { name: "r".into(), level, devices, spares: vec![] }];
            Allocation { layout: Some(layout), ..allocation() }
        };
        let named = |serial: &str| Allocation { disk: Some(serial.into()), ..allocation() };
        for (name, allocation, installed, want) in [
            ("the smallest", allocation(), GIB, Ok("small")),
            ("the small one is too small", allocation(), 20 * GIB, Ok("big")),
            ("none is large enough", allocation(), 200 * GIB, Err("disk small (10737418240 bytes) is too small")),
            ("named", named("big"), GIB, Ok("big")),
            ("named but not there", named("other"), GIB, Err("disk small (10737418240 bytes) has another serial")),
            ("a layout", mirrored(1), GIB, Ok("small,big")),
            ("one that can't be", mirrored(6), GIB, Err("the layout can't be: raid.r.level: RAID 6 isn't made here")),
            ("both", Allocation { disk: Some("big".into()), ..mirrored(1) }, GIB, Err("says both")),
        ] {
            let got = plan(&allocation, &image(installed), &inventory(disks.clone()), &BTreeMap::new(), &[])
                .map(|plan| plan.drives.into_values().map(|id| id.serial).collect::<Vec<_>>().join(","));
            match (got.map_err(|e| e.to_string()), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
                (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
            }
        }
        let bios = Firmware { kind: FirmwareKind::Bios, ..inventory(vec![]).firmware };
        let machine = Inventory { firmware: bios, ..inventory(disks) };
        let got = plan(&mirrored(0), &image(GIB), &machine, &BTreeMap::new(), &[]).map_err(|e| e.to_string());
        assert!(
            got.as_ref().is_err_and(|e| e.contains("has a BIOS, which starts from the third partition")),
            "{got:?}"
        );
    }

    #[test]
    fn drives_that_are_kept_stay_what_they_were() {
        let mut layout = Layout::single(None);
        let mut data = layout.drives[0].clone();
        (data.name, data.keep, data.partitions) = ("data".into(), true, vec![]);
        layout.drives.push(data);
        let allocation = Allocation { layout: Some(layout), ..allocation() };
        let machine = inventory(vec![disk("A", 100 * GIB), disk("B", 200 * GIB), disk("C", 300 * GIB)]);
        let names = |drives: &BTreeMap<String, DiskId>| {
            drives.iter().map(|(name, id)| format!("{name}={}", id.serial)).collect::<Vec<_>>().join(",")
        };
        let kept = |serial: &str| BTreeMap::from([("data".to_owned(), DiskId::new(serial, 300 * GIB))]);
        for (name, kept, want) in [
            ("the first time", BTreeMap::new(), Ok(("data=B,system=A", ""))),
            ("kept, and another than would be chosen", kept("C"), Ok(("system=A", "data=C"))),
            ("kept, and what the system would have", kept("A"), Ok(("system=B", "data=A"))),
            ("kept and gone", kept("X"), Err("no drive to be the layout's \"data\"")),
        ] {
            let got = plan(&allocation, &image(GIB), &machine, &kept, &[]);
            let got = got.map(|plan| (names(&plan.drives), names(&plan.kept))).map_err(|e| e.to_string());
            match (got, want) {
                (Ok((drives, kept)), Ok(want)) => assert_eq!((drives.as_str(), kept.as_str()), want, "{name}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
                (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn how_it_is_started() {
        use BootBy::{Kexec, Reboot};
        let mut machine = inventory(vec![disk("A", 100 * GIB)]);
        machine.system.manufacturer = Some("Dell Inc.".into());
        machine.system.product = Some("PowerEdge R740 ".into());
        for (name, asked, models, want) in [
            ("nobody says", None, vec![], None),
            ("its model", None, vec!["PowerEdge R7*"], Some(Reboot)),
            ("with its vendor", None, vec!["PowerEdge R6*", "Dell* PowerEdge R7[24]0"], Some(Reboot)),
            ("another model", None, vec!["PowerEdge R7"], None),
            ("the allocation has the last word", Some(Kexec), vec!["*"], Some(Kexec)),
            ("the allocation alone", Some(Reboot), vec![], Some(Reboot)),
        ] {
            let models: Vec<String> = models.into_iter().map(Into::into).collect();
            let allocation = Allocation { boot: asked, ..allocation() };
            let got = plan(&allocation, &image(GIB), &machine, &BTreeMap::new(), &models).map(|plan| plan.boot);
            assert_eq!(got, Ok(want), "{name}");
        }
        machine.system.product = None;
        assert_eq!(boot_of(&machine, &["PowerEdge*".into()]), None, "a machine without a name");
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
            (
                "a larger disk",
                Some((0, 200)),
                &machine,
                Some(
                    "the machine has no drive to be the layout's \"system\": disk A (107374182400 bytes) is too small: the image is for",
                ),
            ),
        ] {
            let minimum = minimum
                .map(|(memory, disk)| Minimum { memory_bytes: Some(memory * GIB), disk_bytes: Some(disk * GIB) });
            let mut image = image(GIB);
            image.summary.minimum = minimum;
            let got = plan(&allocation(), &image, machine, &BTreeMap::new(), &[]).err().map(|e| e.to_string());
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
            let wanted = Allocation { system, ..allocation() };
            let got = plan(&wanted, &image(GIB), &machine, &BTreeMap::new(), &[]).err().map(|e| e.to_string());
            match (&got, want) {
                (None, None) => {}
                (Some(got), Some(want)) => assert!(got.contains(want), "{name}: {got}"),
                _ => panic!("{name}: {got:?}"),
            }
        }
    }
}
