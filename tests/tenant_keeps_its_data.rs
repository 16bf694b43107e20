//! Promise 2: a machine with a tenant that comes by the boot server boots its own disk and keeps its data.

use drophammer_lab::qemu::Firmware;
use drophammer_protocol::machine::State;

use crate::common;

#[test]
fn bios_comes_by_and_keeps_its_data() {
    comes_by(Firmware::Bios);
}

#[test]
fn uefi_comes_by_and_keeps_its_data() {
    comes_by(Firmware::Uefi);
}

fn comes_by(firmware: Firmware) {
    let rig = common::rig(1);
    let machine = rig.running(1, firmware);
    let certificates = rig.client.certificates("m1").expect("certificates").certificates.len();
    for (boots, how) in [(2, "reset"), (3, "power cut")] {
        let mark = machine.console_mark();
        match how {
            "reset" => machine.reset().expect("reset"),
            _ => machine.power_cycle().expect("power-cycled"),
        }
        // It asked the network first: the script that sends it to its disk is in its history.
        machine.wait_console_since(mark, "tiny: up m1-host", rig.limit(90)).expect("its own system");
        assert_eq!(
            rig.fetch(&machine, "boots").lines().count(),
            boots,
            "after the {how}: all boots of the same system"
        );
        assert_eq!(rig.show(&machine).expect("known").state, State::Running);
    }
    assert_eq!(
        rig.client.certificates("m1").expect("certificates").certificates.len(),
        certificates,
        "nothing was erased"
    );

    // A server that forgot its decisions in memory has them on disk.
    rig.lab.server.kill();
    rig.lab.server.restart().expect("the server is back");
    let mark = machine.console_mark();
    machine.reset().expect("reset");
    machine.wait_console_since(mark, "tiny: up m1-host", rig.limit(90)).expect("its own system");
    assert_eq!(rig.fetch(&machine, "boots").lines().count(), 4);
}
