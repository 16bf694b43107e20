//! Promise 5: kill either side, cut the power, drop the network at any moment; the next boot continues, and N failures
//! quarantine the machine instead of looping.

use std::thread;
use std::time::Duration;

use crate::common::{self, Rig, kit};
use drophammer_lab::qemu::Firmware;
use drophammer_lab::vm::Cable;
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::machine::State;

const STRETCHES: [Phase; 4] = [Phase::Inventory, Phase::Erase, Phase::Image, Phase::Configure];

#[test]
fn the_server_is_killed_in_every_phase() {
    let rig = common::rig(1);
    let machine = rig.machine(1, Firmware::Bios);
    machine.power_on().expect("switched on");
    let mut allocated = false;
    for phase in STRETCHES {
        if phase > Phase::Waiting && !allocated {
            rig.wait_state(&machine, State::Waiting);
            kill_and_restart(&rig);
            rig.wait_state(&machine, State::Waiting);
            rig.allocate(&machine, "tiny");
            allocated = true;
        }
        rig.wait_event(&machine, 0, phase, Step::Started);
        kill_and_restart(&rig);
    }
    rig.wait_state(&machine, State::Running);
    assert_eq!(rig.fetch(&machine, "boots").lines().count(), 1, "installed and started once");
    // Nothing that was told to the server is lost or doubled.
    let events = rig.events(&machine);
    let erased = events.iter().filter(|e| e.phase == Phase::Erase && e.step == Step::Done).count();
    assert_eq!(erased, 1, "{}", rig.story(&machine));
    assert!(events.windows(2).all(|w| w[0].position < w[1].position));
}

fn kill_and_restart(rig: &Rig) {
    rig.lab.server.kill();
    // Long enough for the machine to notice.
    thread::sleep(Duration::from_secs(1));
    rig.lab.server.restart().expect("the server is back");
}

#[test]
fn the_machine_loses_power_in_every_phase() {
    // Each cut is a boot that got no further; this many are to be survived here.
    let rig = Rig::start(1, 10, &kit().images_dir);
    let machine = rig.machine(1, Firmware::Bios);
    machine.power_on().expect("switched on");
    let mut after = 0;
    for phase in STRETCHES {
        if phase > Phase::Waiting && rig.show(&machine).is_none_or(|m| m.allocation.is_none()) {
            rig.wait_state(&machine, State::Waiting);
            rig.allocate(&machine, "tiny");
        }
        rig.wait_event(&machine, after, phase, Step::Started);
        machine.power_cut();
        after = rig.position(&machine);
        machine.power_on().expect("on again");
    }
    rig.wait_state(&machine, State::Running);
    assert_eq!(rig.fetch(&machine, "boots").lines().count(), 1, "installed and started once");
}

#[test]
fn a_machine_that_never_gets_further_is_quarantined() {
    let rig = Rig::start(1, 2, &kit().images_dir);
    let machine = rig.machine(1, Firmware::Bios);
    machine.power_on().expect("switched on");
    let mut after = 0;
    for _ in 0..2 {
        rig.wait_event(&machine, after, Phase::Enrol, Step::Done);
        machine.power_cut();
        after = rig.position(&machine);
        machine.power_on().expect("on again");
    }
    let quarantined = rig.wait_state(&machine, State::Quarantined);
    let reason = quarantined.reason.expect("a reason");
    assert!(reason.contains("2 boots in a row"), "{reason}");
}

#[test]
fn the_network_goes_away_in_the_middle_of_an_image() {
    let rig = common::rig(1);
    let machine = rig.waiting(1, Firmware::Bios);
    let before = rig.position(&machine);
    rig.allocate(&machine, "tiny");
    rig.wait_event(&machine, before, Phase::Image, Step::Started);
    machine.cable(Cable::Pulled).expect("pulled");
    thread::sleep(rig.limit(3));
    machine.cable(Cable::Plugged).expect("plugged in");
    rig.wait_state(&machine, State::Running);
    let boots = rig.events(&machine).iter().filter(|e| e.phase == Phase::Enrol && e.step == Step::Done).count();
    assert_eq!(boots, 1, "it went on where it was: {}", rig.story(&machine));
}

#[test]
fn one_packet_in_twenty_is_lost() {
    let rig = common::rig(1);
    let machine = rig.machine(1, Firmware::Bios);
    let _loss = machine.lose_packets(5).expect("a bad cable");
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    rig.allocate(&machine, "tiny");
    rig.wait_state(&machine, State::Running);
}
