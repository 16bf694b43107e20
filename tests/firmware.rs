//! Firmware of every kind boots from here: with the cards that machines have, beside other people's DHCP servers, over a
//! network that loses packets, and through a restart of the server.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;

use crate::common::{self, Rig};
use drophammer_images::debian::Programs;
use drophammer_lab::net::{BRIDGE, Namespace, Process};
use drophammer_lab::qemu::{Card, Firmware, MachineSpec, Rom};
use drophammer_lab::server::{Mode, ServerSpec};
use drophammer_lab::vm::Machine;
use drophammer_protocol::sight::{End, File, Sight};
use serde_json::json;

#[test]
fn every_card_boots_bios() {
    for card in [Card::Virtio, Card::E1000, Card::E1000e, Card::Rtl8139, Card::Vmxnet3] {
        boots(&common::rig(1), MachineSpec { card, ..MachineSpec::numbered(1, Firmware::Bios) });
    }
}

/// OVMF itself drives virtio; the others have iPXE in their ROM.
#[test]
fn every_card_boots_uefi() {
    for (card, rom) in [
        (Card::Virtio, Rom::Native),
        (Card::Virtio, Rom::Ipxe),
        (Card::E1000, Rom::Ipxe),
        (Card::E1000e, Rom::Ipxe),
        (Card::Rtl8139, Rom::Ipxe),
        (Card::Vmxnet3, Rom::Ipxe),
    ] {
        boots(&common::rig(1), MachineSpec { card, rom, ..MachineSpec::numbered(1, Firmware::Uefi) });
    }
}

#[test]
fn firmware_boots_beside_another_dhcp_server() {
    for neighbour in [dnsmasq, kea] {
        for firmware in [Firmware::Bios, Firmware::Uefi] {
            let rig = Rig::of(1, ServerSpec { dhcp: Mode::Proxy, ..common::server() });
            let _neighbour = neighbour(&rig);
            boots(&rig, MachineSpec::numbered(1, firmware));
        }
    }
}

#[test]
fn lost_packets_delay_a_boot_and_do_not_end_it() {
    for percent in [1, 5] {
        let rig = common::rig(1);
        let machine = rig.machine(1, Firmware::Uefi);
        let _loss = machine.lose_packets(percent).expect("a lossy network");
        machine.power_on().expect("switched on");
        fetches_all(&rig, &machine);
    }
}

#[test]
fn a_restart_in_the_middle_ends_no_boot() {
    let rig = common::rig(1);
    let machine = rig.machine(1, Firmware::Uefi);
    machine.power_on().expect("switched on");
    saw(&rig, &machine, "the first offer", |sight| matches!(sight, Sight::Offered { .. }));
    rig.lab.server.restart().expect("is back");
    saw(&rig, &machine, "iPXE", |sight| *sight == Sight::Fetched { file: File::Loader, end: End::Complete });
    rig.lab.server.restart().expect("is back");
    saw(&rig, &machine, "a decision", |sight| matches!(sight, Sight::Told { .. }));
    rig.lab.server.restart().expect("is back");
    fetches_all(&rig, &machine);
}

fn boots(rig: &Rig, spec: MachineSpec) {
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    fetches_all(rig, &machine);
}

/// As far as firmware goes: the initramfs is there.
fn fetches_all(rig: &Rig, machine: &Arc<Machine>) {
    saw(rig, machine, "the initramfs", |sight| *sight == Sight::Fetched { file: File::Initramfs, end: End::Complete });
}

fn saw(rig: &Rig, machine: &Machine, what: &str, wanted: impl Fn(&Sight) -> bool) {
    let story = || format!("{what}, by {:?}\n{}", machine.spec, rig.story(machine));
    // By its id: what it's called is known once its agent has enrolled, and not every agent here has a driver.
    let id = machine.spec.uuid.to_string();
    common::until_or(rig.limit(90), story, || {
        let events = rig.client.events(&id, 0, 0).unwrap_or_default();
        events.iter().any(|event| event.sight.as_ref().is_some_and(&wanted))
    });
}

/// Servers that only give out addresses, as a data centre has one already.
fn dnsmasq(rig: &Rig) -> Process {
    let programs = Programs::of(&["dnsmasq-base"]).expect("unpacked");
    let mut command = neighbourhood(rig).enter(programs.command("/usr/sbin/dnsmasq").expect("is in the package"));
    command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0"]);
    command.args(["--interface=eth0", "--dhcp-range=10.77.0.50,10.77.0.59"]);
    command.arg(format!("--dhcp-leasefile={}", rig.dir.path().join("dnsmasq.leases").display()));
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null())).expect("starts")
}

fn kea(rig: &Rig) -> Process {
    let dir = rig.dir.path();
    let config = json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": ["eth0"] },
        "lease-database": { "type": "memfile", "lfc-interval": 0, "name": dir.join("kea.leases") },
        "subnet4": [{ "subnet": "10.77.0.0/24", "pools": [{ "pool": "10.77.0.50 - 10.77.0.59" }] }],
    }});
    let path = dir.join("kea.json");
    fs::write(&path, config.to_string()).expect("written");
    let programs = Programs::of(&["kea-dhcp4-server"]).expect("unpacked");
    let mut command = neighbourhood(rig).enter(programs.command("/usr/sbin/kea-dhcp4").expect("is in the package"));
    command.arg("-c").arg(path).env("KEA_PIDFILE_DIR", dir).env("KEA_LOCKFILE_DIR", "none");
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null())).expect("starts")
}

/// Another host's network, on the machines' wire.
fn neighbourhood(rig: &Rig) -> Namespace {
    let here = rig.lab.namespace();
    let there = here.joined(["neighbour", "eth0"]).expect("another network");
    here.ip(&format!("link set neighbour master {BRIDGE}\nlink set neighbour up\n")).expect("joined");
    there.ip("link set lo up\nlink set eth0 up\naddress add 10.77.0.2/24 dev eth0\n").expect("an address");
    there
}
