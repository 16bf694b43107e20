//! Promise 4: every failure reaches the operator in words, with its chain of causes, on the server and on the console.

use std::process::{Command, Output};

use crate::common::{self, DROPHAMMER, allocation};
use drophammer_lab::qemu::{DiskKind, DiskSpec, Firmware, MachineSpec};
use drophammer_protocol::event::Step;
use drophammer_protocol::machine::State;

#[test]
fn an_image_that_does_not_fit_is_told_on_both_sides() {
    let rig = common::Rig::start(1, 1, &common::kit().images_dir);
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    // Too small for any system, large enough to be a drive.
    spec.disks = vec![DiskSpec::new("m1-small", 32 << 20)];
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    let asked = rig.client.allocate("m1", &allocation("tiny", "x"));
    // Refused at once, by somebody who says which drive is too small for what.
    let error = asked.expect_err("it can't fit").to_string();
    assert!(error.contains("m1") || error.contains("fit"), "{error}");
    assert_eq!(rig.show(&machine).expect("known").state, State::Waiting);
}

#[test]
fn a_failed_erase_says_the_same_on_console_server_and_command_line() {
    let rig = common::rig(1);
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    spec.disks[0].kind = DiskKind::FailsErase;
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    let quarantined = rig.wait_state(&machine, State::Quarantined);
    let reason = quarantined.reason.expect("a reason");
    let failed = rig.events(&machine).into_iter().find(|e| e.step == Step::Failed).expect("a failed event");
    assert!(failed.message.contains("m1-nvme0"), "{}", failed.message);
    // What the drive itself said is in the chain.
    assert!(reason.contains("status"), "{reason}");
    machine.wait_console(&failed.message, rig.limit(10)).expect("the same sentence on the console");

    let listed = drophammer(&rig, &["machine", "list"]);
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(text.contains("quarantined") && text.contains(&reason), "{text}");
    let refused = drophammer(&rig, &["machine", "allocate", "m1", "--image", "tiny"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("quarantined"), "{said}");
}

fn drophammer(rig: &common::Rig, args: &[&str]) -> Output {
    Command::new(DROPHAMMER)
        .env("DROPHAMMER_SERVER", format!("unix:{}", rig.lab.dir().join("api.sock").display()))
        .args(args)
        .output()
        .expect("started")
}
