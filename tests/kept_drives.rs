//! A reinstall gives a tenant a new system and leaves the drives that the layout keeps as they were, to the last byte; and
//! doesn't finish if anything wrote to them meanwhile.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use drophammer_lab::qemu::{DiskSpec, Firmware, MachineSpec};
use drophammer_protocol::event::Phase;
use drophammer_protocol::layout::Layout;
use drophammer_protocol::machine::{Allocation, Reinstall, State};

use crate::common;

/// `noauto`: the tenant's system doesn't write to it either, so that every byte can be compared.
const LAYOUT: &str = r#"
    drive = [
        { name = "system", select = { serial = "m1-nvme0" }, partitions = [{ name = "bios", kind = "bios" }, { name = "esp", kind = "esp" }, { name = "root" }] },
        { name = "data", select = { serial = "m1-data" }, keep = true, partitions = [{ name = "own" }] },
        { name = "raw", select = { serial = "m1-raw" }, keep = true },
    ]
    filesystem = [
        { on = "system/root", format = "ext4", mount = "/" },
        { on = "data/own", format = "ext4", mount = "/srv", options = ["noauto"] },
    ]
"#;

const MIB: u64 = 1 << 20;

#[test]
fn a_tenants_drives_outlive_its_system() {
    let rig = common::rig(1);
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    spec.disks.extend([DiskSpec::new("m1-data", 96 * MIB), DiskSpec::new("m1-raw", 64 * MIB)]);
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    let layout: Layout = toml::from_str(LAYOUT).expect("a layout");
    let wanted = Allocation { layout: Some(layout), ..common::allocation("tiny", "m1-host") };
    rig.client.allocate("m1", &wanted).expect("allocated");
    rig.wait_state(&machine, State::Running);

    // What the tenant puts there: a file, and something that only its own programs understand.
    let (data, raw) = (machine.disk_path("m1-data").expect("there"), machine.disk_path("m1-raw").expect("there"));
    let note = rig.dir.path().join("note");
    fs::write(&note, "years of work").expect("written");
    debugfs(&data, &["-w", "-R", &format!("write {} note", note.display())]);
    machine.write_disk("m1-raw", 7 * MIB, b"a format of their own").expect("written");
    let contents = || [&data, &raw].map(|path| fs::read(path).expect("read"));
    let before = contents();
    let certificates = || rig.client.certificates("m1").expect("certificates").certificates.len();
    let erased = certificates();

    // What can't be kept as it should be is told while nothing is erased yet.
    let header = machine.read_disk("m1-data", 512, 512).expect("read");
    machine.write_disk("m1-data", 512, &[0; 512]).expect("written");
    rig.client.reinstall("m1", &Reinstall::default()).expect("accepted");
    let why = rig.wait_state(&machine, State::Quarantined).reason.unwrap_or_default();
    let want = "disk m1-data (100663296 bytes) is to be kept, but its partition table can't be read";
    assert!(why.contains(want), "{why}");
    assert_eq!(certificates(), erased, "nothing was erased");
    machine.write_disk("m1-data", 512, &header).expect("written");

    // Somebody else's hands on one of them, from the start of it to its end: that's found, and nothing becomes bootable.
    let done = AtomicBool::new(false);
    let first = thread::scope(|scope| {
        scope.spawn(|| {
            for count in 0u64.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                machine.write_disk("m1-raw", 0, &count.to_le_bytes()).expect("written");
                thread::sleep(Duration::from_millis(20));
            }
        });
        let anyway = Reinstall { despite_quarantine: true, ..Reinstall::default() };
        rig.client.reinstall("m1", &anyway).expect("accepted");
        let failed = rig.wait_for(&machine, "a failed install", |now, _| now.failures == 1);
        done.store(true, Ordering::Relaxed);
        failed
    });
    let why = first.reason.unwrap_or_default();
    assert!(why.contains("disk m1-raw (67108864 bytes) was to be kept, and reads different"), "{why}");
    assert!(!common::is_bootable(&machine), "an install that failed boots nothing");
    machine.write_disk("m1-raw", 0, &[0; 8]).expect("written");

    // The next boot does it again, and now nobody disturbs it.
    rig.wait_state(&machine, State::Running);
    assert!(contents() == before, "not every byte is what it was");
    assert_eq!(certificates(), erased + 2, "in either boot the system's drive, and no other");
    assert_eq!(rig.fetch(&machine, "boots").lines().count(), 1, "the system is a new one");
    let told = rig.events(&machine);
    for drive in ["disk m1-data (100663296 bytes)", "disk m1-raw (67108864 bytes)"] {
        let proof = format!("{drive} was kept: the kernel wrote nothing to it");
        let proven = told.iter().any(|e| e.phase == Phase::Lifecycle && e.message.starts_with(&proof));
        assert!(proven, "{proof}\n{}", rig.story(&machine));
    }
    assert_eq!(debugfs(&data, &["-R", "cat note"]), "years of work");
    let partition = rig.dir.path().join("partition");
    fs::write(&partition, &before[0][usize::try_from(MIB).expect("fits")..]).expect("written");
    let judged = Command::new("e2fsck").arg("-fn").arg(&partition).output().expect("e2fsck");
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
}

/// On the only partition of a drive.
fn debugfs(drive: &Path, arguments: &[&str]) -> String {
    let output = Command::new("debugfs")
        .args(arguments)
        .arg(format!("{}?offset={MIB}", drive.display()))
        .output()
        .expect("debugfs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
