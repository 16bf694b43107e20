//! What is different about a machine since it last told what it's made of. Pure.

use std::collections::BTreeMap;

use drophammer_protocol::inventory::{Dimm, Disk, Inventory, Nic};
use drophammer_protocol::words::bytes;

/// Sentences, none if nothing is: what changes by itself, as temperatures and links do, doesn't count.
pub(crate) fn between(before: &Inventory, now: &Inventory) -> Vec<String> {
    let mut told = Vec::new();
    values(&mut told, "the firmware's version", before.firmware.version.as_ref(), now.firmware.version.as_ref());
    values(&mut told, "the system's serial", before.system.serial.as_ref(), now.system.serial.as_ref());
    values(&mut told, "the board's serial", before.system.board_serial.as_ref(), now.system.board_serial.as_ref());
    let cpus = |inventory: &Inventory| {
        let models = inventory.cpus.iter().map(|cpu| format!("{} with {} cores", cpu.model, cpu.cores));
        Some(models.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    };
    values(&mut told, "the processors", cpus(before).as_ref(), cpus(now).as_ref());
    let dimm = |dimm: &Dimm| format!("DIMM {}", dimm.locator);
    parts(&mut told, &before.dimms, &now.dimms, dimm, |dimm| {
        vec![
            ("size", bytes(dimm.bytes)),
            ("serial", text(dimm.serial.as_ref())),
            ("part", text(dimm.part_number.as_ref())),
        ]
    });
    // A drive without a serial is known by where it is.
    let disk = |disk: &Disk| match disk.id() {
        Some(id) => {
            format!("drive {}", id.serial)
                + &if id.namespace == 1 { String::new() } else { format!(" namespace {}", id.namespace) }
        }
        None => format!("drive {} without a serial", disk.name),
    };
    parts(&mut told, &before.disks, &now.disks, disk, |disk| {
        vec![
            ("firmware", text(disk.firmware.as_ref())),
            ("size", bytes(disk.size_bytes)),
            ("model", text(disk.model.as_ref())),
        ]
    });
    let nic = |nic: &Nic| format!("port {}", nic.mac);
    parts(&mut told, &before.nics, &now.nics, nic, |nic| vec![("firmware", text(nic.firmware.as_ref()))]);
    let functions = |inventory: &Inventory| {
        let mut count: BTreeMap<(u16, u16), usize> = BTreeMap::new();
        inventory.pci.iter().for_each(|pci| *count.entry((pci.vendor, pci.device)).or_default() += 1);
        count
    };
    let (had, has) = (functions(before), functions(now));
    for (id @ (vendor, device), many) in &had {
        let left = has.get(id).copied().unwrap_or(0);
        if left < *many {
            told.push(format!("{} of {many} PCI functions {vendor:04x}:{device:04x} gone", many - left));
        }
    }
    for (id @ (vendor, device), many) in &has {
        let before = had.get(id).copied().unwrap_or(0);
        if before < *many {
            told.push(format!("{} PCI functions {vendor:04x}:{device:04x} new", many - before));
        }
    }
    told
}

fn text(value: Option<&String>) -> String {
    value.map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn values(told: &mut Vec<String>, what: &str, before: Option<&String>, now: Option<&String>) {
    let (before, now) = (text(before), text(now));
    if before != now && !before.is_empty() && !now.is_empty() {
        told.push(format!("{what}: {before}, now {now}"));
    }
}

fn parts<T>(
    told: &mut Vec<String>,
    before: &[T],
    now: &[T],
    name: impl Fn(&T) -> String,
    facts: impl Fn(&T) -> Vec<(&'static str, String)>,
) {
    let by_name =
        |parts| -> BTreeMap<String, &T> { Iterator::map(<[T]>::iter(parts), |part| (name(part), part)).collect() };
    let (had, has) = (by_name(before), by_name(now));
    told.extend(had.keys().filter(|name| !has.contains_key(*name)).map(|name| format!("{name} gone")));
    for (name, part) in &has {
        let Some(old) = had.get(name) else {
            told.push(format!("{name} new"));
            continue;
        };
        for ((what, before), (_, now)) in facts(old).into_iter().zip(facts(part)) {
            values(told, &format!("{name} {what}"), Some(&before), Some(&now));
        }
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::fixtures::{disk, inventory};
    use drophammer_protocol::inventory::PciFunction;

    use super::*;

    fn machine() -> Inventory {
        let dimm = |locator: &str| Dimm {
            locator: locator.into(),
            bytes: 32 << 30,
            kind: None,
            speed_mts: None,
            manufacturer: None,
            part_number: None,
            serial: Some(format!("S-{locator}")),
        };
        let gpu = PciFunction {
            address: "0000:01:00.0".into(),
            class: 0x03_0200,
            vendor: 0x10de,
            device: 0x2331,
            subsystem_vendor: None,
            subsystem_device: None,
            driver: None,
            numa_node: None,
        };
        let drive = |serial: &str| Disk { firmware: Some("1.0".into()), ..disk(serial, 1 << 40) };
        let mut machine = inventory(vec![drive("A"), drive("B")]);
        machine.firmware.version = Some("2.1".into());
        machine.dimms = vec![dimm("A1"), dimm("A3")];
        machine.pci = vec![gpu.clone(), gpu];
        machine
    }

    #[test]
    fn what_is_told() {
        type Change = fn(&mut Inventory);
        let cases: [(&str, Change, &[&str]); 9] = [
            ("nothing", |_| (), &[]),
            ("a module is gone", |m| drop(m.dimms.pop()), &["DIMM A3 gone"]),
            ("a module was replaced", |m| m.dimms[0].serial = Some("X".into()), &["DIMM A1 serial: S-A1, now X"]),
            ("a drive's firmware", |m| m.disks[1].firmware = Some("1.1".into()), &["drive B firmware: 1.0, now 1.1"]),
            ("another drive", |m| m.disks[1].serial = Some("C".into()), &["drive B gone", "drive C new"]),
            ("the firmware", |m| m.firmware.version = Some("2.2".into()), &["the firmware's version: 2.1, now 2.2"]),
            ("a graphics card less", |m| drop(m.pci.pop()), &["1 of 2 PCI functions 10de:2331 gone"]),
            ("what wasn't told before", |m| m.firmware.version = None, &[]),
            ("another name of the kernel's", |m| m.disks.swap(0, 1), &[]),
        ];
        for (name, change, want) in cases {
            let mut now = machine();
            change(&mut now);
            assert_eq!(between(&machine(), &now), want, "{name}");
        }
    }
}
