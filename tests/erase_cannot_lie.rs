//! Promise 1: a failed, skipped or unverifiable erase quarantines the machine, and nothing turns it into "clean".

mod common;

use common::allocation;
use drophammer_lab::qemu::{DiskKind, DiskSpec, Firmware, MachineSpec};
use drophammer_protocol::certificate::{ErasureCertificate, Verdict};
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::machine::State;

/// What a former tenant left on its drive.
const SECRET: &[u8] = b"the former tenant's only copy of its private key ------------------------------------";

#[test]
fn what_a_tenant_left_is_gone_from_the_medium() {
    let rig = common::rig(1);
    let machine = rig.machine(1, Firmware::Bios);
    let disk = machine.spec.disks[0].clone();
    let places: Vec<u64> = (0..64).map(|n| n * (disk.size / 64) + n * 4096 + 512).chain([0, disk.size - 512]).collect();
    for place in &places {
        machine.write_disk(&disk.serial, *place, SECRET).expect("written");
    }
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    for place in &places {
        let found = machine.read_disk(&disk.serial, *place, SECRET.len()).expect("read");
        assert_ne!(found, SECRET, "the secret is still there at {place}");
    }

    let certificates = rig.client.certificates("m1").expect("certificates");
    let [stored] = certificates.as_slice() else { panic!("one drive, one certificate: {certificates:?}") };
    let certificate: ErasureCertificate = serde_json::from_str(&stored.certificate.payload).expect("a certificate");
    assert!(certificate.proves_erasure(), "{certificate:?}");
    assert_eq!(certificate.disk.serial, disk.serial);
    assert_eq!(certificate.disk.size_bytes, disk.size);
    stored.certificate.open(&[stored.certificate.key]).expect("the signature matches");

    // Said first: the plan came before the verdict.
    let said: Vec<_> = rig.events(&machine).into_iter().filter(|e| e.phase == Phase::Erase).collect();
    assert_eq!(said.first().map(|e| e.step), Some(Step::Started));
    assert!(said.iter().any(|e| e.message.contains(&disk.serial)), "the plan names the drive: {said:?}");
}

#[test]
fn a_drive_that_fails_or_lies_quarantines_the_machine() {
    for (kind, words) in [(DiskKind::FailsErase, "m1-nvme1"), (DiskKind::KeepsData, "m1-nvme1")] {
        let rig = common::rig(1);
        // The first drive is sound: one bad drive is enough.
        let mut spec = MachineSpec::numbered(1, Firmware::Bios);
        spec.disks.push(DiskSpec { serial: "m1-nvme1".into(), size: 1 << 30, kind });
        let machine = rig.lab.add_machine(spec).expect("a machine");
        machine.write_disk("m1-nvme1", 1 << 20, SECRET).expect("written");
        machine.power_on().expect("switched on");

        let quarantined = rig.wait_state(&machine, State::Quarantined);
        let reason = quarantined.reason.expect("a reason");
        assert!(reason.contains(words), "{kind:?}: {reason}");
        let text = machine.wait_console("NOT erased", rig.limit(20)).expect("the console says it too");
        assert!(text.contains("m1-nvme1"), "{text}");

        // The certificates tell the drives apart.
        let verdicts: Vec<_> = rig
            .client
            .certificates("m1")
            .expect("certificates")
            .iter()
            .map(|s| serde_json::from_str::<ErasureCertificate>(&s.certificate.payload).expect("a certificate"))
            .map(|c| (c.disk.serial, matches!(c.verdict, Verdict::Erased { .. })))
            .collect();
        assert!(verdicts.contains(&("m1-nvme0".into(), true)), "{kind:?}: {verdicts:?}");
        assert!(verdicts.contains(&("m1-nvme1".into(), false)), "{kind:?}: {verdicts:?}");

        // Nobody gets it, and a restart of either side changes nothing.
        let error = rig.client.allocate("m1", &allocation("tiny", "x")).expect_err("not for anybody");
        assert!(error.to_string().contains("quarantined"), "{error:#}");
        rig.lab.server.restart().expect("the server is back");
        machine.power_cycle().expect("on again");
        let boot = quarantined.boot;
        rig.wait_event(&machine, rig.position(&machine), Phase::Enrol, Step::Done);
        let again = rig.wait_state(&machine, State::Quarantined);
        assert_ne!(again.boot, boot, "it booted anew");

        // An operator can let it try again, and it fails again.
        let before = rig.position(&machine);
        rig.client.release("m1").expect("an explicit decision");
        rig.wait_event(&machine, before, Phase::Erase, Step::Failed);
        rig.wait_state(&machine, State::Quarantined);
        assert!(rig.events(&machine).iter().all(|e| e.phase != Phase::Waiting), "{}", rig.story(&machine));
    }
}

#[test]
fn a_drive_that_cannot_be_written_is_no_obstacle_and_no_hole() {
    let rig = common::rig(1);
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    spec.disks.push(DiskSpec { serial: "m1-worn".into(), size: 1 << 30, kind: DiskKind::ReadOnly });
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    let quarantined = rig.wait_state(&machine, State::Quarantined);
    assert!(quarantined.reason.expect("a reason").contains("m1-worn"));
}
