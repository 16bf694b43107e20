//! Promise 3: no unverified byte is executed, and a half-written disk never boots.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::{self, Rig, allocation, is_bootable, kit};
use drophammer_images::PackOptions;
use drophammer_lab::frailty::{self, Ailment};
use drophammer_lab::nbd::POISON;
use drophammer_lab::qemu::{DiskKind, Firmware, MachineSpec};
use drophammer_lab::vm::Machine;
use drophammer_protocol::event::Phase;
use drophammer_protocol::machine::{Allocation, State, TakeBack};
use drophammer_protocol::manifest::{Manifest, PACKS};
use drophammer_protocol::order::ReadBack;
use drophammer_protocol::sign::Signed;

/// A store of one's own with the kit's tiny image in it; returns the store and the image's directory.
fn store(dir: &Path) -> (PathBuf, PathBuf) {
    let store = dir.join("store");
    let newest = newest(&kit().images_dir.join("tiny"));
    let image = store.join("tiny").join(newest.file_name().expect("a version"));
    fs::create_dir_all(&image).expect("made");
    fs::create_dir_all(store.join(PACKS)).expect("made");
    let packs = manifest(&newest).packs.into_iter().map(|pack| kit().images_dir.join(PACKS).join(pack.sha256));
    let packs = packs.map(|path| (path, store.join(PACKS)));
    let beside = fs::read_dir(&newest).expect("the tiny image").map(|entry| entry.expect("an entry").path());
    for (path, to) in beside.map(|path| (path, image.clone())).chain(packs) {
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
    (store, image)
}

fn newest(image: &Path) -> PathBuf {
    let versions = fs::read_dir(image).expect("the tiny image").map(|e| e.expect("an entry").path());
    versions.filter(|p| p.join("manifest.json").exists()).max().expect("a version")
}

fn manifest(image: &Path) -> Manifest {
    let text = fs::read(image.join("manifest.json")).expect("read");
    let signed: Signed<Manifest> = serde_json::from_slice(&text).expect("a manifest");
    serde_json::from_str(&signed.payload).expect("a manifest")
}

#[test]
fn a_damaged_image_ends_in_words_and_an_unbootable_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, image) = store(dir.path());
    let manifest = manifest(&image);
    let form = manifest.block.as_ref().expect("a block form");
    // Of the pack that it brought; what it shares with other images is in theirs.
    let own = form.chunks().last().expect("chunks").pack;
    let path = store.join(PACKS).join(&manifest.packs[own as usize].sha256);
    let good = fs::read(&path).expect("read");
    // One failure is enough, so that each kind of damage costs one install.
    let rig = Rig::start(1, 1, &store);
    let machine = rig.waiting(1, Firmware::Bios);

    let chunks: Vec<_> = form.chunks().filter(|chunk| chunk.pack == own).collect();
    let middle = chunks[chunks.len() / 2];
    let last = chunks.last().expect("chunks");
    let flipped = |at: u64| {
        let mut bad = good.clone();
        bad[usize::try_from(at).expect("small")] ^= 1;
        bad
    };
    // As long as it should be: what is shorter isn't even offered.
    let cut = |to: u64| {
        let mut bad = good.clone();
        bad[usize::try_from(to).expect("small")..].fill(0);
        bad
    };
    for (name, bad) in [
        ("a bit in the middle", flipped(middle.offset + u64::from(middle.length) / 2)),
        ("a bit in the last chunk", flipped(last.offset + 1)),
        ("zeros from the middle of a chunk on", cut(middle.offset + 100)),
        ("zeros from a chunk's edge on", cut(last.offset)),
    ] {
        fs::write(&path, bad).expect("damaged");
        rig.allocate(&machine, "tiny");
        let quarantined = rig.wait_state(&machine, State::Quarantined);
        let reason = quarantined.reason.expect("a reason");
        assert!(reason.contains("chunk"), "{name}: {reason}");
        assert!(!is_bootable(&machine), "{name}: the disk would boot");
        assert!(rig.events(&machine).iter().all(|e| e.phase != Phase::Kexec), "{name}: nothing was started");

        // Back to the start for the next one.
        rig.client.release("m1", TakeBack { despite_quarantine: true }).expect("released");
        rig.wait_state(&machine, State::Waiting);
    }

    // And the good one still installs: the machine is none the worse.
    fs::write(&path, &good).expect("mended");
    rig.allocate(&machine, "tiny");
    rig.wait_state(&machine, State::Running);
    assert!(is_bootable(&machine));
}

#[test]
fn an_image_that_nobody_trusted_signed_is_not_offered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, image) = store(dir.path());
    let manifest_path = image.join("manifest.json");
    let stranger = dir.path().join("stranger");
    drophammer_images::keygen(&stranger).expect("a key");
    let stranger = drophammer_images::load_key(&stranger).expect("a key");
    let forged = Signed::seal(&manifest(&image), &stranger);
    fs::write(&manifest_path, serde_json::to_vec(&forged).expect("JSON")).expect("replaced");

    let rig = Rig::start(1, 1, &store);
    let machine = rig.waiting(1, Firmware::Bios);
    assert_eq!(rig.client.images().expect("a list"), []);
    let error = rig.client.allocate("m1", &allocation("tiny", "x")).expect_err("not trusted");
    assert!(error.to_string().contains("tiny"), "{error:#}");
    assert_eq!(rig.show(&machine).expect("known").state, State::Waiting);
    assert!(!is_bootable(&machine));
}

#[test]
fn a_cut_in_the_middle_leaves_nothing_to_boot() {
    let rig = common::rig(1);
    let machine = rig.waiting(1, Firmware::Bios);
    let before = rig.position(&machine);
    rig.allocate(&machine, "tiny");
    rig.wait_event(&machine, before, Phase::Image, drophammer_protocol::event::Step::Started);
    machine.power_cut();
    assert!(!is_bootable(&machine), "cut while it was written");
    // The old table of a tenant before can't come back either.
    let disk = File::open(machine.disk_path("m1-nvme0").expect("its image")).expect("open");
    let mut head = vec![0; 1 << 20];
    disk.read_exact_at(&mut head, 0).expect("read");
    assert!(head.iter().all(|b| *b == 0), "the first MiB comes last");

    machine.power_on().expect("on again");
    rig.wait_state(&machine, State::Running);
    assert!(is_bootable(&machine));
}

/// A file's content is written in the background; that it failed is heard by whoever asks, and by nobody else.
#[test]
fn a_drive_that_loses_a_write_never_boots() {
    let rig = Rig::start(1, 1, &kit().images_dir);
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    spec.disks[0].kind = DiskKind::Choosy;
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    rig.client.allocate("m1", &allocation("tiny", POISON)).expect("allocated");
    let quarantined = rig.wait_state(&machine, State::Quarantined);
    let reason = quarantined.reason.expect("a reason");
    assert!(reason.contains("the drive"), "{reason}");
    assert!(!is_bootable(&machine));
}

fn frail(rig: &Rig) -> Arc<Machine> {
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    spec.disks[0].kind = DiskKind::Frail;
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    machine
}

/// Numbers that are others in every run, from a seed that is told.
fn random() -> impl FnMut(usize) -> usize {
    let mut state = RandomState::new().build_hasher().finish() | 1;
    println!("seed: {state}");
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 16).expect("48 bits") % below.max(1)
    }
}

/// How many large writes an image takes at least: its chunks are written past every cache.
fn large_writes() -> usize {
    let manifest = manifest(&newest(&kit().images_dir.join("tiny")));
    manifest.block.expect("a block form").chunks().filter(|chunk| chunk.unpacked as usize >= frailty::LARGE).count()
}

#[test]
fn a_drive_that_fails_somewhere_never_boots() {
    let rig = Rig::start(1, 1, &kit().images_dir);
    let machine = frail(&rig);
    let drive = machine.frailty("m1-nvme0").expect("its drive");
    let (mut random, writes) = (random(), large_writes());
    for (ailment, want) in [
        (Ailment::NoWrites, "writing to byte"),
        (Ailment::NoReads, "reading byte"),
        (Ailment::OldData, "reads back different from what was written: the drive is not to be trusted"),
    ] {
        // Behind the first and before the last MiB, where the disk is made unbootable, the chunks are what comes first.
        drive.ail(ailment, 1 << 20..machine.spec.disks[0].size - (1 << 20), random(writes));
        // Looked at all over: what is only sampled may miss it, until somebody needs what is there.
        let wanted = Allocation { read_back: ReadBack::Full, ..allocation("tiny", "m1-host") };
        rig.client.allocate("m1", &wanted).expect("allocated");
        let quarantined = rig.wait_state(&machine, State::Quarantined);
        let reason = quarantined.reason.expect("a reason");
        let place = drive.heal();
        assert!(place.is_some(), "{ailment:?}: it was written to");
        for part in [want, "drive m1-nvme0", "of the root partition"] {
            assert!(reason.contains(part), "{ailment:?} at {place:?}: {reason}");
        }
        assert!(!is_bootable(&machine), "{ailment:?} at {place:?}: the disk would boot");
        assert!(rig.events(&machine).iter().all(|e| e.phase != Phase::Kexec), "{ailment:?}: nothing was started");
        rig.client.release("m1", TakeBack { despite_quarantine: true }).expect("released");
        rig.wait_state(&machine, State::Waiting);
    }
    rig.allocate(&machine, "tiny");
    rig.wait_state(&machine, State::Running);
    assert!(is_bootable(&machine));
}

/// A few cuts that happen, after which it goes on; and then all that could have happened, made up from what was written.
#[test]
fn whenever_the_power_goes_the_disk_is_whole_or_does_not_boot() {
    const CUTS: usize = 3;
    const MIB: u64 = 1 << 20;
    let rig = Rig::start(1, 10, &kit().images_dir);
    let machine = frail(&rig);
    let drive = machine.frailty("m1-nvme0").expect("its drive");
    let manifest = manifest(&newest(&kit().images_dir.join("tiny")));
    let chunks = manifest.block.as_ref().expect("a block form").chunks();
    let bytes: u64 = chunks.map(|chunk| u64::from(chunk.unpacked)).sum();
    let mut random = random();
    drive.record();
    rig.allocate(&machine, "tiny");
    for cut in 1..=CUTS {
        let when = random(usize::try_from(bytes * 3 / 4).expect("small")) as u64;
        common::until_or(rig.limit(90), || rig.story(&machine), || drive.written() >= when);
        machine.power_cut();
        assert!(!is_bootable(&machine), "cut {cut} behind byte {when} of {bytes}");
        drive.record();
        machine.power_on().expect("on again");
    }
    rig.wait_state(&machine, State::Running);
    machine.power_cut();
    assert!(is_bootable(&machine));

    let sectors = machine.spec.disks[0].size / 512;
    let is_last = |at: u64, data: &[u8]| at == 0 && data.get(510..512) == Some(&[0x55, 0xaa][..]);
    let recording = drive.recorded().until(is_last).expect("the boot sector comes last");
    let whole = recording.disk();
    let inner = MIB / 512..sectors - MIB / 512;
    let (mut bootable, mut last_unbootable) = (0, 0);
    let mut moment = 0;
    let moments = recording.moments(8, random, |step, disk| {
        let starts = |sector: u64, with: &[u8]| disk.sector(sector).is_some_and(|s| s.starts_with(with));
        let boots = disk.sector(0).is_some_and(|sector| sector.ends_with(&[0x55, 0xaa]))
            || starts(1, b"EFI PART")
            || starts(sectors - 1, b"EFI PART");
        moment += 1;
        if boots {
            bootable += 1;
            let other = disk.differs_from(&whole, inner.clone());
            assert_eq!(other, None, "a disk cut before step {step} would boot, and this sector isn't as it should be");
        } else {
            last_unbootable = moment;
        }
    });
    assert!(moments > 100 && bootable > 0 && last_unbootable > moments / 2, "{bootable} of {moments} moments boot");
}

#[test]
fn packing_and_checking_agree_on_what_is_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, image) = store(dir.path());
    let kit = kit();
    drophammer_images::verify(&image, &[kit.image_key]).expect("the kit's own image");
    // A name that isn't one doesn't get into a store.
    let key = dir.path().join("key");
    drophammer_images::keygen(&key).expect("a key");
    let key = drophammer_images::load_key(&key).expect("a key");
    let tar = dir.path().join("empty.tar");
    fs::write(&tar, []).expect("written");
    let options = PackOptions::new("../escape", "1", "");
    let error = drophammer_images::pack(&tar, dir.path(), &options, &key, &|_| {}).expect_err("not a name");
    assert!(error.to_string().contains("../escape"), "{error:#}");
}
