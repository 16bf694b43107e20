//! The heart of the tests: what becomes of NVMe drives that lie, and of honest ones.

use drophammer_protocol::certificate::{Promise, Verdict};
use drophammer_protocol::erase::Method::{
    NvmeFormatCrypto, NvmeFormatUserData, NvmeSanitizeBlock, NvmeSanitizeCrypto, NvmeSanitizeOverwrite, OpalRevert,
    Overwrite, WriteZeroes,
};
use drophammer_protocol::erase::{Policy, Psid};
use drophammer_protocol::fixtures;
use drophammer_protocol::inventory::{Bus, Disk};

use super::super::plan::{Blocks, Unable, plan};
use super::super::probe::probe;
use super::*;
use crate::drive::nvme::{ALL_NAMESPACES, Command, Deallocated};
use crate::drive::sim::ata::AtaDrive;
use crate::drive::sim::medium::{LIES, Lie, Medium};
use crate::drive::sim::nvme::{FORMAT, MANAGEMENT, Namespace, NvmeDrive, OtherPath, SECURITY, SIZE};
use crate::drive::sim::opal::{Fault, PSID, Tper};
use crate::drive::sim::scsi::ScsiDrive;
use crate::drive::sim::{self, Body};

const BLOCKS: Blocks = Blocks { write_zeroes: true, discard: true };

/// What becomes of a drive that is ordered as `SN-1` with its attached namespaces: the same steps as for a real one.
fn run(drive: &mut NvmeDrive, policy: Policy, depth: Depth) -> Account {
    let attached = drive.namespaces.iter().filter(|n| n.attached);
    let disks: Vec<Disk> =
        attached.map(|n| Disk { namespace: n.id, ..fixtures::disk("SN-1", n.medium.len() as u64) }).collect();
    let probed = match probe(drive, &disks, BLOCKS, None) {
        Ok(probed) => probed,
        Err(e) => return Account::untouched(format!("{e:#}")),
    };
    match plan(&probed.capabilities, policy, false) {
        Ok(plan) => erase(drive, &probed, &task(&plan, depth), &mut |_| ()),
        Err(unable) => Account::untouched(unable.to_string()),
    }
}

fn task(plan: &Plan, depth: Depth) -> Task<'_> {
    Task { plan, depth, fresh: None, seed: [7; 32] }
}

fn formats() -> NvmeDrive {
    NvmeDrive::default()
}

fn sanitizes() -> NvmeDrive {
    NvmeDrive { oacs: 0, ..NvmeDrive::with_sanitize(false, true, false) }
}

fn rekeys() -> NvmeDrive {
    NvmeDrive { oacs: 0, ..NvmeDrive::with_sanitize(true, false, false) }
}

fn two_namespaces() -> Vec<Namespace> {
    vec![Namespace::full(1), Namespace::full(2)]
}

#[test]
fn every_liar_is_caught() {
    type Make = fn() -> NvmeDrive;
    let ways: [(&str, Make, &str); 4] = [
        ("format", formats, "NVMe Format, user data erase (SES=1)"),
        ("crypto format", || NvmeDrive { fna: 0b100, ..formats() }, "NVMe Format, cryptographic erase (SES=2)"),
        ("block sanitize", sanitizes, "NVMe Sanitize, block erase"),
        ("crypto sanitize", rekeys, "NVMe Sanitize, cryptographic erase"),
    ];
    for depth in [Depth::Sampled, Depth::Full] {
        for (way, drive, method) in ways {
            for (name, lie) in LIES {
                let mut drive = NvmeDrive { lie, ..drive() };
                let account = run(&mut drive, Policy::Purge, depth);
                let Verdict::NotErased { reason } = account.verdict() else { panic!("{way}, {name}: believed") };
                let words = format!("the drive reported success for {method}, but");
                assert!(reason.contains(&words), "{way}, {name}: {reason}");
                assert_eq!(account.attempts.len(), 1, "{way}, {name}: a liar isn't asked again");
            }
        }
    }
}

#[test]
fn drives_that_fail_are_not_erased() {
    let failing: Vec<(&str, NvmeDrive, &str)> = vec![
        (
            "fails",
            NvmeDrive { answers: [0x4006].into(), ..formats() },
            "internal error of the drive (NVMe status type 0h, code 06h)",
        ),
        ("is locked", NvmeDrive { answers: [0x4015].into(), ..formats() }, "the drive is locked by a password or TCG"),
        ("hangs", NvmeDrive { hangs: true, ..formats() }, "no answer within 600 s"),
        ("can't be read afterwards", NvmeDrive { unreadable_after: true, ..formats() }, "can't be read since"),
        (
            "erases the first namespace only",
            NvmeDrive { namespaces: two_namespaces(), fna: 0b11, first_only: true, ..formats() },
            "reported success for NVMe Format, user data erase (SES=1), but",
        ),
        (
            "sanitizes the first namespace only",
            NvmeDrive { namespaces: two_namespaces(), first_only: true, ..sanitizes() },
            "reported success for NVMe Sanitize, block erase, but",
        ),
        (
            "crypto erase fails half-way, user data erase does nothing",
            NvmeDrive { fna: 0b100, half_then: Some(0x4006), lie: Lie::KeepsTail(SIZE / 2), ..formats() },
            "reported success for NVMe Format, user data erase (SES=1), but",
        ),
        (
            "sanitize fails at 87 %",
            NvmeDrive { fails_at: Some(0.87), ..sanitizes() },
            "the drive says that it failed at",
        ),
        (
            "sanitize fails and can't be left",
            NvmeDrive { oacs: FORMAT, fails_at: Some(0.5), no_way_out: true, ..sanitizes() },
            "leaving the state of a failed sanitize",
        ),
        (
            "sanitize gets stuck",
            NvmeDrive { stuck_at: Some(0.87), ..sanitizes() },
            "not finished within 840 s; it says it's 87 % done",
        ),
        (
            "sanitize gets stuck, and nothing else is taken",
            NvmeDrive { oacs: FORMAT, stuck_at: Some(0.5), ..sanitizes() },
            "the drive is still sanitizing, 50 % done",
        ),
        ("sanitize is accepted and forgotten", NvmeDrive { forgets: true, ..rekeys() }, "knows nothing of it"),
        (
            "claims nothing",
            NvmeDrive { oacs: 0, ..formats() },
            "the policy purge asks for more than this drive offers: write zeroes, offloaded to the drive (Clear); discard",
        ),
        (
            "hides a namespace",
            NvmeDrive {
                namespaces: vec![Namespace::full(1), Namespace { attached: false, ..Namespace::full(2) }],
                ..formats()
            },
            "namespaces that can't be reached here (2)",
        ),
        (
            "is another drive once opened",
            NvmeDrive { serial: "SN-2", ..formats() },
            "the drive that answers has the serial SN-2",
        ),
        (
            "is another drive after a reset",
            NvmeDrive { wants_reset: true, serial_after_reset: Some("SN-2"), ..formats() },
            "the drive isn't what it was before the erase: the drive that answers has the serial SN-2",
        ),
        (
            "is two drives of one name",
            NvmeDrive { other_path: Some(OtherPath::ToATwin), ..formats() },
            "two drives call themselves the same one",
        ),
        (
            "takes no writes",
            {
                let mut drive = formats();
                drive.namespaces[0].medium.drops_writes = true;
                drive
            },
            "the drive doesn't return what was written at byte",
        ),
    ];
    for (name, mut drive, words) in failing {
        match run(&mut drive, Policy::Purge, Depth::Sampled).verdict() {
            Verdict::NotErased { reason } => assert!(reason.contains(words), "{name}: {reason}"),
            Verdict::Erased { .. } => panic!("{name}: believed"),
        }
    }
}

#[test]
fn a_canary_anywhere_is_found() {
    for nth in 0..100 {
        let mut drive = NvmeDrive { lie: Lie::KeepsOneWritten(nth), ..formats() };
        let account = run(&mut drive, Policy::Purge, Depth::Sampled);
        assert!(matches!(account.verdict(), Verdict::NotErased { .. }), "canary {nth}");
        let verification = account.verification.expect("it was looked at");
        assert_eq!(verification.canaries_surviving, 1, "canary {nth}");
    }
}

#[test]
fn honest_drives_are_believed() {
    let format = |nsid, ses: u32| (Command::FORMAT_NVM, nsid, ses << 9);
    let sanitize = |cdw10| (Command::SANITIZE, 0, cdw10);
    let claims_all = || NvmeDrive { fna: 0b100, ..NvmeDrive::with_sanitize(true, true, true) };
    type Told = Vec<(u8, u32, u32)>;
    let cases: Vec<(&str, NvmeDrive, Policy, Method, Told)> = vec![
        ("QEMU", formats(), Policy::Purge, NvmeFormatUserData, vec![format(1, 1)]),
        ("crypto erase", NvmeDrive { fna: 0b100, ..formats() }, Policy::Purge, NvmeFormatCrypto, vec![format(1, 2)]),
        (
            "crypto erase refused",
            NvmeDrive { fna: 0b100, answers: [0x4002].into(), ..formats() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![format(1, 2), format(1, 1)],
        ),
        (
            "formats all namespaces",
            NvmeDrive { fna: 0b001, namespaces: two_namespaces(), ..formats() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![format(ALL_NAMESPACES, 1)],
        ),
        (
            "formats all, but not by that address",
            NvmeDrive { fna: 0b1001, namespaces: two_namespaces(), ..formats() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![format(1, 1)],
        ),
        (
            "formats each of its namespaces",
            NvmeDrive { namespaces: two_namespaces(), ..formats() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![format(1, 1), format(2, 1)],
        ),
        (
            "no namespace management",
            NvmeDrive { oacs: FORMAT, ..formats() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![format(1, 1)],
        ),
        (
            "two paths lead to it",
            NvmeDrive { other_path: Some(OtherPath::ToIt), ..formats() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![format(1, 1)],
        ),
        ("everything", claims_all(), Policy::Purge, NvmeSanitizeCrypto, vec![sanitize(0x00c)]),
        (
            "a new key that reads as noise or as ones",
            NvmeDrive { deallocated: Deallocated::Ones, ..claims_all() },
            Policy::RekeyOnly,
            NvmeSanitizeCrypto,
            vec![sanitize(0x00c)],
        ),
        (
            "sanitize of two namespaces",
            NvmeDrive { namespaces: two_namespaces(), deallocated: Deallocated::Zeroes, ..sanitizes() },
            Policy::Purge,
            NvmeSanitizeBlock,
            vec![sanitize(0x00a)],
        ),
        (
            "overwriting sanitize",
            NvmeDrive { oacs: 0, ..NvmeDrive::with_sanitize(false, false, true) },
            Policy::Purge,
            NvmeSanitizeOverwrite,
            vec![sanitize(0x21b)],
        ),
        (
            "sanitize fails, format works",
            NvmeDrive { oacs: FORMAT | MANAGEMENT, fails_at: Some(0.87), ..sanitizes() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![sanitize(0x00a), sanitize(0x001), format(1, 1)],
        ),
        (
            "wants a new start",
            NvmeDrive { wants_reset: true, ..formats() },
            Policy::Purge,
            NvmeFormatUserData,
            vec![format(1, 1)],
        ),
        ("claims nothing, and clear will do", NvmeDrive { oacs: 0, ..formats() }, Policy::Clear, WriteZeroes, vec![]),
    ];
    for (name, mut drive, policy, method, told) in cases {
        let before: Vec<Vec<u8>> = drive.namespaces.iter().map(|n| n.medium.bytes().to_vec()).collect();
        let account = run(&mut drive, policy, Depth::Sampled);
        assert_eq!(account.verdict(), Verdict::Erased { method }, "{name}");
        assert_eq!(drive.told, told, "{name}");
        for (namespace, before) in drive.namespaces.iter().zip(before) {
            let (now, _) = namespace.medium.bytes().as_chunks::<512>();
            let (then, _) = before.as_chunks::<512>();
            assert!(now.iter().zip(then).all(|(now, then)| now != then), "{name}: something is left");
        }
        let seen = account.verification.expect("it was looked at");
        assert_eq!((seen.canaries_surviving, seen.samples_surviving, seen.unexpected), (0, 0, 0), "{name}");
        assert!(seen.full && seen.forced_unit_access, "{name}: {seen:?}");
        assert!(seen.canaries_planted >= 65 && seen.samples_telling > 100, "{name}: {seen:?}");
    }
}

#[test]
fn a_sanitize_that_runs_is_waited_for_and_not_begun_again() {
    let sanitize = |cdw10| (Command::SANITIZE, 0, cdw10);
    let zeroes = |drive| NvmeDrive { deallocated: Deallocated::Zeroes, ..drive };
    for (name, mut drive, running, method, told, resumed_is_proof) in [
        ("block erase, and zeros are promised", zeroes(sanitizes()), 0x00a, NvmeSanitizeBlock, vec![], true),
        // Nobody can tell a new key's noise from the old one's: a new key more costs seconds and proves itself.
        ("a new key", rekeys(), 0x00c, NvmeSanitizeCrypto, vec![sanitize(0x00c)], false),
        ("block erase, and nothing is promised", sanitizes(), 0x00a, NvmeSanitizeBlock, vec![sanitize(0x00a)], false),
        (
            "overwrite",
            NvmeDrive { oacs: 0, ..NvmeDrive::with_sanitize(false, false, true) },
            0x21b,
            NvmeSanitizeOverwrite,
            vec![],
            true,
        ),
    ] {
        drive.begin_sanitize(running, 0.4);
        drive.power_cycle();
        let account = run(&mut drive, Policy::Purge, Depth::Sampled);
        assert_eq!(account.verdict(), Verdict::Erased { method }, "{name}");
        assert_eq!(drive.told, told, "{name}");
        assert!(account.attempts[0].resumed && account.attempts[0].millis > 1000, "{name}: {:?}", account.attempts);
        let seen = account.verification.expect("it was looked at");
        assert_eq!(seen.canaries_planted == 0, resumed_is_proof, "{name}: {seen:?}");
        assert!(!resumed_is_proof || seen.promise == Promise::Zeroes, "{name}: {seen:?}");
    }
}

#[test]
fn a_sanitize_that_somebody_began_and_that_lies_is_caught() {
    let mut drive = NvmeDrive { deallocated: Deallocated::Zeroes, lie: Lie::KeepsTail(512), ..sanitizes() };
    drive.begin_sanitize(0x00a, 0.4);
    let account = run(&mut drive, Policy::Purge, Depth::Sampled);
    assert!(matches!(account.verdict(), Verdict::NotErased { .. }), "{account:?}");
}

#[test]
fn power_lost_in_the_middle_twice() {
    let mut drive = NvmeDrive { deallocated: Deallocated::Zeroes, stuck_at: Some(0.5), ..sanitizes() };
    for _ in 0..2 {
        assert!(matches!(run(&mut drive, Policy::Purge, Depth::Sampled).verdict(), Verdict::NotErased { .. }));
        assert!(drive.is_sanitizing());
        drive.power_cycle();
    }
    drive.stuck_at = None;
    let account = run(&mut drive, Policy::Purge, Depth::Sampled);
    assert_eq!(account.verdict(), Verdict::Erased { method: NvmeSanitizeBlock });
    assert_eq!(drive.told.len(), 1, "it was begun once: {:?}", drive.told);
}

#[test]
fn a_sanitize_that_failed_before_is_left_first() {
    let mut drive = NvmeDrive { oacs: FORMAT, fails_at: Some(0.2), ..NvmeDrive::with_sanitize(false, true, false) };
    drive.begin_sanitize(0x00a, 0.1);
    let account = run(&mut drive, Policy::Purge, Depth::Sampled);
    assert_eq!(account.verdict(), Verdict::Erased { method: NvmeFormatUserData }, "{account:?}");
}

fn psid(text: &[u8]) -> Psid {
    String::from_utf8(text.to_vec()).expect("text").parse().expect("a PSID")
}

/// As [`run`], for whatever drive, with what is printed on its label.
fn run_with(drive: &mut dyn Drive, bus: Bus, size: usize, label: Option<&Psid>) -> Account {
    let disks = vec![Disk { bus, ..fixtures::disk("SN-1", size as u64) }];
    let probed = match probe(drive, &disks, Blocks::default(), label) {
        Ok(probed) => probed,
        Err(e) => return Account::untouched(format!("{e:#}")),
    };
    match plan(&probed.capabilities, Policy::Purge, label.is_some()) {
        Ok(plan) => erase(drive, &probed, &task(&plan, Depth::Sampled), &mut |_| ()),
        Err(unable) => Account::untouched(unable.to_string()),
    }
}

#[test]
fn opal_is_spoken_in_every_language() {
    let right = psid(PSID);
    let body = |tper| Body { tper: Some(tper), ..Body::default() };
    let nvme = |tper| -> Box<dyn Drive> { Box::new(NvmeDrive::with_opal(tper)) };
    let ata = |tper| -> Box<dyn Drive> {
        Box::new(AtaDrive { body: body(tper), ..AtaDrive::with_sanitize(false, false, false) })
    };
    let scsi =
        |tper| -> Box<dyn Drive> { Box::new(ScsiDrive { body: body(tper), ..ScsiDrive::with(false, false, false) }) };
    type Make<'a> = &'a dyn Fn(Tper) -> Box<dyn Drive>;
    let languages: [(&str, Make<'_>, Bus, usize); 3] =
        [("NVMe", &nvme, Bus::Nvme, SIZE), ("ATA", &ata, Bus::Ata, sim::SIZE), ("SCSI", &scsi, Bus::Scsi, sim::SIZE)];
    for (language, make, bus, size) in languages {
        for (name, tper, label, erased) in [
            ("nobody owns it", Tper::default(), None, true),
            ("locked, by its label", Tper::owned(), Some(&right), true),
            ("locked, no label", Tper::owned(), None, false),
            ("keeps its key", Tper { faults: vec![Fault::KeepsKey], ..Tper::default() }, None, false),
        ] {
            let account = run_with(&mut *make(tper), bus, size, label);
            let want = if erased { Some(OpalRevert) } else { None };
            let got = match account.verdict() {
                Verdict::Erased { method } => Some(method),
                Verdict::NotErased { .. } => None,
            };
            assert_eq!(got, want, "{language}, {name}: {account:?}");
        }
    }
}

#[test]
fn keys_that_are_thrown_away() {
    let (right, wrong) = (psid(PSID), psid(&[b'A'; 32]));
    let unlocked = || Tper { locked: false, ..Tper::owned() };
    let lies = |fault| Tper { faults: vec![fault], ..Tper::default() };
    let erased = Ok(OpalRevert);
    for (name, mut drive, label, want, attempts) in [
        ("nobody owns it", NvmeDrive::with_opal(Tper::default()), None, erased, 1),
        ("owned and open, by its label", NvmeDrive::with_opal(unlocked()), Some(&right), erased, 1),
        ("owned and open, no label", NvmeDrive::with_opal(unlocked()), None, Err("its TCG Opal has an owner"), 0),
        // Unlocking it proves nothing: there was nothing that could be read before.
        ("locked, by its label", NvmeDrive::with_opal(Tper::owned()), Some(&right), erased, 2),
        (
            "locked, and format is better",
            NvmeDrive { oacs: SECURITY | FORMAT, ..NvmeDrive::with_opal(Tper::owned()) },
            Some(&right),
            Ok(NvmeFormatUserData),
            2,
        ),
        ("locked, no label", NvmeDrive::with_opal(Tper::owned()), None, Err("nobody gave the PSID"), 0),
        (
            "locked, another's label",
            NvmeDrive::with_opal(Tper::owned()),
            Some(&wrong),
            Err("the drive stays locked"),
            1,
        ),
        (
            "says it has a new key and keeps the old one",
            NvmeDrive::with_opal(lies(Fault::KeepsKey)),
            None,
            Err("reported success for TCG Opal, new media encryption key and revert, but"),
            1,
        ),
        (
            "says it was reverted and wasn't",
            NvmeDrive::with_opal(lies(Fault::KeepsAll)),
            None,
            Err("no method worked: TCG Opal"),
            1,
        ),
        (
            "rekeys part of the medium",
            NvmeDrive { lie: Lie::KeepsTail(512), ..NvmeDrive::with_opal(Tper::default()) },
            None,
            Err("reported success for TCG Opal, new media encryption key and revert, but"),
            1,
        ),
        (
            "doesn't encrypt",
            NvmeDrive::with_opal(Tper { encrypts: false, ..Tper::default() }),
            None,
            Err("asks for more than this drive offers"),
            0,
        ),
    ] {
        let account = run_with(&mut drive, Bus::Nvme, SIZE, label);
        match (account.verdict(), want) {
            (Verdict::Erased { method }, Ok(want)) => assert_eq!(method, want, "{name}"),
            (Verdict::NotErased { reason }, Err(words)) => assert!(reason.contains(words), "{name}: {reason}"),
            (got, want) => panic!("{name}: {got:?}, not {want:?}"),
        }
        assert_eq!(account.attempts.len(), attempts, "{name}: {:?}", account.attempts);
        if want == erased {
            let details = account.attempts.last().map(|attempt| attempt.details.join("; ")).unwrap_or_default();
            assert!(details.contains("reverted the drive to its factory state"), "{name}: {details}");
        }
    }
}

/// Large enough to be sealed.
fn roomy() -> NvmeDrive {
    let mut drive = formats();
    drive.namespaces[0].medium = Medium::full(4 << 20, 1);
    drive
}

#[test]
fn a_drive_that_nobody_wrote_to_is_left_alone() {
    type Since = fn(&mut NvmeDrive, &mut Fresh);
    let cases: [(&str, Since, Option<&str>); 8] = [
        ("nothing", |_, _| (), None),
        ("a boot", |drive, _| drive.power_cycle(), None),
        ("one write", |drive, _| drive.write(0, &[0; 4096], 0).expect("written"), Some("write commands now")),
        ("counters that start over", |drive, _| drive.written = 0, Some("write commands now")),
        (
            "a write that wasn't counted",
            |drive, fresh| {
                let offset = fresh.rest.seals[5].offset;
                drive.namespaces[0].medium.write(&[0; 512], offset);
            },
            Some("is broken"),
        ),
        ("the seals are forgotten", |_, fresh| fresh.rest.seals.clear(), Some("it has no seals")),
        ("a seal that can't be", |_, fresh| fresh.rest.seals[0].offset = u64::MAX - 4095, Some("doesn't fit on it")),
        (
            "a method that isn't good enough any more",
            |_, fresh| fresh.method = Overwrite,
            Some("isn't good enough any more"),
        ),
    ];
    for (name, since, again) in cases {
        let mut drive = roomy();
        let disks = vec![fixtures::disk("SN-1", 4 << 20)];
        let probed = probe(&mut drive, &disks, Blocks::default(), None).expect("probes");
        let plan = plan(&probed.capabilities, Policy::Purge, false).expect("a plan");
        let first = erase(&mut drive, &probed, &task(&plan, Depth::Sampled), &mut |_| ());
        let rest = first.rest.clone().expect("sealed");
        assert!(first.unwritten.is_none() && rest.seals.len() == 8, "{name}");
        let unwritten = Unwritten { number: 4, certificate: "hash".into() };
        let mut fresh = Fresh { unwritten, method: NvmeFormatUserData, rest };
        since(&mut drive, &mut fresh);
        let told = drive.told.len();
        let task = Task { fresh: Some(&fresh), ..task(&plan, Depth::Sampled) };
        let second = erase(&mut drive, &probed, &task, &mut |_| ());
        assert_eq!(second.verdict(), Verdict::Erased { method: NvmeFormatUserData }, "{name}");
        match again {
            None => {
                assert_eq!((drive.told.len(), &second.rest), (told, &first.rest), "{name}: it was left alone");
                assert_eq!(second.unwritten.map(|unwritten| unwritten.number), Some(4), "{name}");
                assert!(second.attempts.is_empty() && second.verification.is_none(), "{name}");
            }
            Some(words) => {
                assert_eq!((drive.told.len(), &second.unwritten), (told + 1, &None), "{name}: it was erased again");
                assert!(second.remarks.concat().contains(words), "{name}: {:?}", second.remarks);
                assert!(second.verification.is_some(), "{name}: and proven again");
            }
        }
    }
}

#[test]
fn a_blank_drive_is_proven_by_canaries_alone() {
    let mut drive = formats();
    drive.namespaces[0].medium = Medium::filled(SIZE, 0xff);
    let account = run(&mut drive, Policy::Purge, Depth::Sampled);
    assert_eq!(account.verdict(), Verdict::Erased { method: NvmeFormatUserData });
    assert_eq!(account.verification.map(|v| v.samples_telling), Some(0));
}

#[test]
fn zeros_that_are_not_zeros() {
    // Discarded blocks read as ones, and the plan says that zeros will be looked for.
    let mut drive = NvmeDrive { oacs: 0, deallocated: Deallocated::Ones, ..formats() };
    let attached: Vec<Disk> = vec![fixtures::disk("SN-1", SIZE as u64)];
    let probed = probe(&mut drive, &attached, Blocks { write_zeroes: false, discard: true }, None).expect("probes");
    let plan = plan(&probed.capabilities, Policy::Clear, false).expect("a plan");
    let account = erase(&mut drive, &probed, &task(&plan, Depth::Sampled), &mut |_| ());
    let Verdict::NotErased { reason } = account.verdict() else { panic!("believed") };
    assert!(reason.contains("256 blocks aren't what they have to be"), "{reason}");
}

#[test]
fn what_cannot_be_offloaded_is_overwritten() {
    let mut drive = NvmeDrive { oacs: 0, ..formats() };
    let attached: Vec<Disk> = vec![fixtures::disk("SN-1", SIZE as u64)];
    let probed = probe(&mut drive, &attached, Blocks::default(), None).expect("probes");
    let plan = plan(&probed.capabilities, Policy::Clear, false).expect("a plan");
    let mut furthest = 0.0;
    let account = erase(&mut drive, &probed, &task(&plan, Depth::Sampled), &mut |part| furthest = part);
    assert_eq!(account.verdict(), Verdict::Erased { method: Overwrite });
    assert!(drive.namespaces[0].medium.bytes().iter().all(|byte| *byte == 0));
    assert!((furthest - 1.0_f64).abs() < 1e-9, "{furthest}");
}

#[test]
fn a_refusing_plan_touches_nothing() {
    let mut drive = NvmeDrive { oacs: 0, ..formats() };
    let before = drive.namespaces[0].medium.bytes().to_vec();
    let account = run(&mut drive, Policy::Purge, Depth::Sampled);
    assert!(matches!(account.verdict(), Verdict::NotErased { .. }));
    let medium = &drive.namespaces[0].medium;
    assert!(medium.bytes() == before && !medium.was_written() && drive.told.is_empty());
    let hidden = Unable::UnseenNamespaces(vec![2]).to_string();
    assert!(hidden.starts_with("the drive has namespaces that can't be reached here (2)"), "{hidden}");
}
