//! Promise 1: a failed, skipped or unverifiable erase quarantines the machine, and nothing turns it into "clean".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::common::{self, Rig, allocation};
use drophammer_lab::qemu::{DiskBus, DiskKind, DiskSpec, Firmware, MachineSpec};
use drophammer_lab::server::ServerSpec;
use drophammer_lab::vm::Machine;
use drophammer_protocol::certificate::{ErasureCertificate, Verdict};
use drophammer_protocol::chain;
use drophammer_protocol::erase::{Method, Policy};
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::inventory::DiskId;
use drophammer_protocol::machine::{State, TakeBack};

/// What a former tenant left on its drive.
const SECRET: &[u8] = b"the former tenant's only copy of its private key ------------------------------------";

/// Of machine `m1`, oldest first. Whatever the server keeps has to be a chain that an auditor can verify.
fn certificates(rig: &Rig) -> Vec<ErasureCertificate> {
    let chain = rig.client.certificates("m1").expect("certificates");
    let key = rig.client.certificate_key().expect("the server's key");
    let report = chain::verify(&chain, Some(&[key])).expect("nothing wrong with it");
    report.certificates.into_iter().map(|checked| checked.certificate).collect()
}

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

    let certificates = certificates(&rig);
    let [certificate] = certificates.as_slice() else { panic!("one drive, one certificate: {certificates:?}") };
    assert!(certificate.proves_erasure(), "{certificate:?}");
    assert_eq!(certificate.drive.disks, [DiskId::new(&*disk.serial, disk.size)]);

    // Said first: the plan came before the verdict.
    let said: Vec<_> = rig.events(&machine).into_iter().filter(|e| e.phase == Phase::Erase).collect();
    assert_eq!(said.first().map(|e| e.step), Some(Step::Started));
    assert!(said.iter().any(|e| e.message.contains(&disk.serial)), "the plan names the drive: {said:?}");
}

/// Everything that QEMU can pretend to be, in one machine.
#[test]
fn every_kind_of_drive_is_erased() {
    let rig = Rig::of(1, ServerSpec { erase_policy: Policy::Clear, ..common::server() });
    let disk = |serial: &str, bus, block| DiskSpec { bus, block, ..DiskSpec::new(serial, 64 << 20) };
    let disks = vec![
        disk("m1-plain", DiskBus::Nvme, 512),
        disk("m1-big-blocks", DiskBus::Nvme, 4096),
        disk("m1-parted", DiskBus::Nvme, 512),
        disk("m1-parted-2", DiskBus::Namespace { attached: true }, 4096),
        disk("m1-parted-3", DiskBus::Namespace { attached: false }, 512),
        disk("m1-ata", DiskBus::Ata, 512),
        DiskSpec { paths: 2, ..disk("m1-scsi", DiskBus::Scsi, 512) },
        disk("m1-virtio", DiskBus::Virtio, 512),
    ];
    let spec = MachineSpec { disks, ..MachineSpec::numbered(1, Firmware::Bios) };
    let machine = rig.lab.add_machine(spec).expect("a machine");
    let places = |disk: &DiskSpec| -> Vec<u64> {
        (0..16).map(|n| n * (disk.size / 16) + n * 4096 + 512).chain([0, disk.size - 512]).collect()
    };
    for disk in &machine.spec.disks {
        for place in places(disk) {
            machine.write_disk(&disk.serial, place, SECRET).expect("written");
        }
    }
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    for disk in &machine.spec.disks {
        for place in places(disk) {
            let found = machine.read_disk(&disk.serial, place, SECRET.len().min(512)).expect("read");
            assert!(!SECRET.starts_with(&found), "{}: the secret is still there at {place}", disk.serial);
        }
    }
    let certificates: BTreeMap<String, ErasureCertificate> =
        certificates(&rig).into_iter().map(|c| (c.drive.serial.clone(), c)).collect();
    let zeroes = [("m1-ata", Method::Discard), ("m1-scsi", Method::WriteZeroes), ("m1-virtio", Method::Overwrite)];
    let formats = ["m1-plain", "m1-big-blocks", "m1-parted"].map(|serial| (serial, Method::NvmeFormatUserData));
    let said: BTreeMap<&str, Verdict> = certificates.iter().map(|(s, c)| (s.as_str(), c.verdict.clone())).collect();
    let want = formats.into_iter().chain(zeroes).map(|(serial, method)| (serial, Verdict::Erased { method })).collect();
    assert_eq!(said, want, "{}", rig.story(&machine));
    let inventory = rig.show(&machine).and_then(|m| m.inventory).expect("an inventory");
    let paths = inventory.disks.iter().find(|disk| disk.serial.as_deref() == Some("m1-scsi")).map(|d| d.paths.len());
    assert_eq!(paths, Some(1), "two paths are one drive: {:?}", inventory.disks);
    let parts: Vec<u32> = certificates["m1-parted"].drive.disks.iter().map(|disk| disk.namespace).collect();
    assert_eq!(parts, [1, 2, 3], "also the one that nobody could see");
    for (serial, certificate) in &certificates {
        let seen = certificate.verification.as_ref().expect("verified");
        assert_eq!((seen.canaries_surviving, seen.samples_surviving, seen.unexpected), (0, 0, 0), "{serial}");
        assert!(seen.canaries_planted >= 129 && seen.at_most_left() < 0.01, "{serial}: {seen:?}");
        let can_be_forced = !["m1-ata", "m1-virtio"].contains(&serial.as_str());
        assert_eq!(seen.forced_unit_access, can_be_forced, "{serial}");
    }
}

/// A machine whose only drive takes some twenty seconds to be overwritten, with a secret on it.
fn slow(rig: &Rig) -> Arc<Machine> {
    let disk = DiskSpec { kind: DiskKind::Slow, bus: DiskBus::Virtio, ..DiskSpec::new("m1-slow", 64 << 20) };
    let spec = MachineSpec { disks: vec![disk], ..MachineSpec::numbered(1, Firmware::Bios) };
    let machine = rig.lab.add_machine(spec).expect("a machine");
    for place in [1 << 20, 63 << 20] {
        machine.write_disk("m1-slow", place, SECRET).expect("written");
    }
    machine
}

fn holds_the_secret(machine: &Machine) -> bool {
    let content = machine.read_disk("m1-slow", 0, 64 << 20).expect("read");
    content.windows(32).any(|part| part == &SECRET[..32])
}

#[test]
fn power_is_cut_in_the_middle_of_an_erase_twice() {
    let rig = Rig::of(1, ServerSpec { erase_policy: Policy::Clear, ..common::server() });
    let machine = slow(&rig);
    machine.power_on().expect("switched on");
    let mut after = 0;
    for _ in 0..2 {
        rig.wait_event(&machine, after, Phase::Erase, Step::Started);
        thread::sleep(Duration::from_secs(2));
        machine.power_cut();
        after = rig.position(&machine);
        assert!(holds_the_secret(&machine), "in the middle");
        assert!(certificates(&rig).is_empty(), "nothing is certified yet");
        assert_ne!(rig.show(&machine).expect("known").state, State::Waiting);
        machine.power_on().expect("on again");
    }
    rig.wait_state(&machine, State::Waiting);
    assert!(!holds_the_secret(&machine));
    assert_eq!(certificates(&rig).len(), 1, "{}", rig.story(&machine));
}

#[test]
fn the_server_dies_while_a_certificate_is_on_its_way() {
    let rig = Rig::of(1, ServerSpec { erase_policy: Policy::Clear, ..common::server() });
    let machine = slow(&rig);
    machine.power_on().expect("switched on");
    rig.wait_event(&machine, 0, Phase::Erase, Step::Started);
    rig.lab.server.kill();
    machine.wait_console("drive erased and verified", rig.limit(120)).expect("it goes on by itself");
    thread::sleep(Duration::from_secs(1));
    assert!(!holds_the_secret(&machine));
    // Back, and gone again as soon as anything was heard; back for good.
    rig.lab.server.restart().expect("the server is back");
    rig.wait_event(&machine, 0, Phase::Erase, Step::Done);
    rig.lab.server.kill();
    rig.lab.server.restart().expect("the server is back");
    rig.wait_state(&machine, State::Waiting);
    assert_eq!(certificates(&rig).len(), 1, "stored once, however often it was sent: {}", rig.story(&machine));
}

#[test]
fn an_idle_machine_does_not_wear_its_drives_out() {
    let rig = common::rig(1);
    let machine = rig.waiting(1, Firmware::Bios);
    let again = |how: &dyn Fn()| {
        let before = rig.position(&machine);
        how();
        rig.wait_event(&machine, before, Phase::Erase, Step::Done);
        rig.wait_state(&machine, State::Waiting);
        certificates(&rig).pop().expect("a certificate")
    };
    // The emulated drive counts what was written to it since the emulator started, so a reset is an idle reboot, and a power
    // cut is a drive whose counters have started over.
    let rested = again(&|| machine.reset().expect("reset"));
    assert!(rested.attempts.is_empty() && rested.verification.is_none(), "{rested:?}");
    assert_eq!(rested.unwritten.map(|unwritten| unwritten.number), Some(1));
    let erased = again(&|| machine.power_cycle().expect("off and on"));
    assert!(erased.unwritten.is_none() && erased.proves_erasure(), "{erased:?}");
    assert!(erased.found.iter().any(|words| words.starts_with("erased again: ")), "{:?}", erased.found);
    // Somebody has it in between: nothing is rested after that.
    rig.allocate(&machine, "tiny");
    rig.wait_state(&machine, State::Running);
    let erased = again(&|| drop(rig.client.release("m1", TakeBack::default()).expect("taken back")));
    assert!(erased.unwritten.is_none() && erased.proves_erasure(), "{erased:?}");
    assert!(!erased.found.is_empty(), "what the tenant left was found: {erased:?}");
}

#[test]
fn a_drive_that_fails_or_lies_quarantines_the_machine() {
    for (kind, words) in [(DiskKind::FailsErase, "m1-nvme1"), (DiskKind::KeepsData, "m1-nvme1")] {
        let rig = common::rig(1);
        // The first drive is sound: one bad drive is enough.
        let mut spec = MachineSpec::numbered(1, Firmware::Bios);
        spec.disks.push(DiskSpec { kind, ..DiskSpec::new("m1-nvme1", 1 << 30) });
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
            .certificates
            .iter()
            .map(|s| serde_json::from_str::<ErasureCertificate>(&s.certificate.payload).expect("a certificate"))
            .map(|c| (c.drive.serial, matches!(c.verdict, Verdict::Erased { .. })))
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
        let error = rig.client.release("m1", TakeBack::default()).expect_err("not by the way");
        assert!(error.to_string().contains("--despite-quarantine"), "{error:#}");
        rig.client.release("m1", TakeBack { despite_quarantine: true }).expect("an explicit decision");
        rig.wait_event(&machine, before, Phase::Erase, Step::Failed);
        rig.wait_state(&machine, State::Quarantined);
        assert!(rig.events(&machine).iter().all(|e| e.phase != Phase::Waiting), "{}", rig.story(&machine));
    }
}

#[test]
fn a_drive_that_cannot_be_written_is_no_obstacle_and_no_hole() {
    let rig = common::rig(1);
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    spec.disks.push(DiskSpec { kind: DiskKind::ReadOnly, ..DiskSpec::new("m1-worn", 1 << 30) });
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    let quarantined = rig.wait_state(&machine, State::Quarantined);
    assert!(quarantined.reason.expect("a reason").contains("m1-worn"));
}
