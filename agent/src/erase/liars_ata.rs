//! What becomes of ATA drives around their passwords.

use drophammer_protocol::certificate::{Unwritten, Verdict};
use drophammer_protocol::erase::Method::{AtaSanitizeBlock, AtaSecurityEraseEnhanced};
use drophammer_protocol::erase::{Depth, Policy};
use drophammer_protocol::fixtures;
use drophammer_protocol::inventory::{Bus, Disk};
use drophammer_protocol::order::Fresh;

use super::super::plan::{Blocks, Unable, plan};
use super::super::probe::probe;
use super::scsi_tests::{carry_out, kept, run, understand, with};
use super::{Task, erase};
use crate::drive::Drive as _;
use crate::drive::ata::Password;
use crate::drive::sim::ata::{AtaDrive, Erase, Security, THEIRS, locked};
use crate::drive::sim::medium::{Lie, Medium};
use crate::drive::sim::{Body, SIZE};

#[test]
fn erases_that_fail() {
    let fails = |erase| Security { erase, ..Security::default() };
    let frozen = Security { frozen: true, password: Some(Password::OURS), ..Security::default() };
    for (name, security, words, told, stays) in [
        (
            "half-way",
            fails(Erase::FailsAt(0.5)),
            "the drive aborted the command (ATA status 51h, error 04h); its password was taken off the drive again",
            &[0xf1, 0xf3, 0xf4, 0xf6][..],
            false,
        ),
        (
            "keeps its password",
            fails(Erase::KeepsPassword),
            "the drive reported success, and its password is still set; its password was taken off the drive again",
            &[0xf1, 0xf3, 0xf4, 0xf6],
            false,
        ),
        (
            "doesn't answer when it gets its password",
            fails(Erase::LosesAnswer),
            "setting a password for it: no answer within 30 s; its password was taken off the drive again",
            &[0xf1, 0xf6],
            false,
        ),
        ("hangs", fails(Erase::Hangs), "no answer within 840 s; its", &[0xf1, 0xf3, 0xf4, 0xf6], false),
        (
            "fails, and the password stays",
            fails(Erase::Jams),
            "taking its password off the drive again failed: the drive aborted the command (ATA status 51h, error 04h); \
             the drive may be locked until this agent erases it",
            &[0xf1, 0xf3, 0xf4, 0xf6],
            true,
        ),
        (
            "loses power, and firmware freezes it then",
            Security { gets_frozen: true, ..fails(Erase::LosesPowerAt(0.3)) },
            "taking its password off the drive again failed: the drive takes no ATA security password, neither to erase \
             itself nor to be unlocked: the firmware froze",
            &[0xf1, 0xf3, 0xf4],
            true,
        ),
        (
            "frozen with a password",
            frozen,
            "neither to erase itself nor to be unlocked: the firmware froze its Security feature set at power-on",
            &[],
            true,
        ),
        (
            "no more attempts",
            Security { tries_left: 0, ..locked() },
            "neither to erase itself nor to be unlocked: too many wrong passwords were tried since power-on",
            &[],
            true,
        ),
    ] {
        // Platters: the enhanced erase is the only way that's good enough.
        let mut drive = AtaDrive { rotation: 7200, ..AtaDrive::with_security(security) };
        let account = run(&mut drive, Policy::Purge);
        match account.verdict() {
            Verdict::NotErased { reason } => assert!(reason.contains(words), "{name}: {reason}"),
            Verdict::Erased { .. } => panic!("{name}: believed"),
        }
        assert_eq!(opcodes(&drive), told, "{name}");
        assert_eq!(drive.security.is_some_and(|security| security.password.is_some()), stays, "{name}");
    }
}

/// Somebody pulls the plug between the plan and the erase, and the firmware's password prompt follows.
#[test]
fn a_drive_that_gets_frozen_meanwhile() {
    let security = Security { gets_frozen: true, ..Security::default() };
    let mut drive = AtaDrive { rotation: 7200, ..AtaDrive::with_security(security) };
    let (probed, plan) = understand(&mut drive, Bus::Ata, Policy::Purge).expect("a plan");
    drive.power_cycle();
    let account = carry_out(&mut drive, &probed, &plan, Depth::Sampled);
    let Verdict::NotErased { reason } = account.verdict() else { panic!("believed") };
    assert!(reason.contains("the firmware froze its Security feature set at power-on"), "{reason}");
    assert!(opcodes(&drive).is_empty());
}

fn opcodes(drive: &AtaDrive) -> Vec<u8> {
    drive.told.iter().map(|(opcode, _)| *opcode).collect()
}

#[test]
fn only_the_enhanced_erase_lies() {
    let body = Body { lie: Lie::KeepsTail(512), ..Body::default() };
    let security = Security { normal_is_honest: true, ..Security::default() };
    let mut drive = with(body, AtaDrive::with_security(security));
    let Verdict::NotErased { reason } = run(&mut drive, Policy::Clear).verdict() else { panic!("believed") };
    assert!(reason.contains("the drive reported success for ATA Security Erase Unit, enhanced, but"), "{reason}");
    assert_eq!(opcodes(&drive), [0xf1, 0xf3, 0xf4], "what else it says isn't worth more");
}

#[test]
fn passwords() {
    let erases = [0xf1, 0xf3, 0xf4];

    let mut ours = AtaDrive::with_security(locked());
    let account = run(&mut ours, Policy::Clear);
    assert_eq!(account.verdict(), Verdict::Erased { method: AtaSecurityEraseEnhanced }, "{account:?}");
    assert_eq!(opcodes(&ours), [&[0xf2, 0xf6][..], &erases].concat());
    assert_eq!(ours.security.expect("claimed").password, None);

    let mut open = AtaDrive::with_security(Security { locked: false, ..locked() });
    let account = run(&mut open, Policy::Clear);
    assert_eq!(account.verdict(), Verdict::Erased { method: AtaSecurityEraseEnhanced }, "{account:?}");
    assert_eq!(opcodes(&open), [&[0xf6][..], &erases].concat());

    for is_locked in [true, false] {
        let theirs = Security { password: Some(THEIRS), locked: is_locked, ..Security::default() };
        let mut drive = AtaDrive { security: Some(theirs), ..AtaDrive::default() };
        let before = drive.body.medium.clone();
        let Verdict::NotErased { reason } = run(&mut drive, Policy::Clear).verdict() else { panic!("believed") };
        assert!(reason.contains(&Unable::AtaLocked.to_string()), "{reason}");
        assert_eq!(opcodes(&drive), [if is_locked { 0xf2 } else { 0xf6 }], "it is tried once");
        assert_eq!(drive.security.expect("claimed").tries_left, if is_locked { 4 } else { 5 });
        assert_eq!(kept(&before, &drive.body.medium), SIZE / 512, "nothing was touched");
    }
}

#[test]
fn a_drive_that_nobody_wrote_to_is_left_alone() {
    const ROOM: usize = 4 << 20;
    type Since = fn(&mut AtaDrive);
    let cases: [(&str, Since, Option<&str>); 5] = [
        ("nothing", |_| (), None),
        ("a boot", AtaDrive::power_cycle, None),
        ("one write", |drive| drive.write(0, &[0; 4096], 0).expect("written"), Some("write commands now")),
        ("counters that start over", |drive| drive.written = Some(0), Some("it counts 0 write commands now")),
        ("it doesn't count any more", |drive| drive.written = None, Some("it no longer counts what is written")),
    ];
    for (name, since, again) in cases {
        let body = Body { medium: Medium::full(ROOM, 1), ..Body::default() };
        let mut drive =
            with(body, AtaDrive { sectors: ROOM as u64 / 512, ..AtaDrive::with_sanitize(false, true, false) });
        let disk = Disk { bus: Bus::Ata, ..fixtures::disk("SN-1", ROOM as u64) };
        let probed = probe(&mut drive, &[disk], Blocks::default(), None).expect("probes");
        let plan = plan(&probed.capabilities, Policy::Purge, false).expect("a plan");
        let first = carry_out(&mut drive, &probed, &plan, Depth::Sampled);
        let rest = first.rest.clone().expect("sealed");
        since(&mut drive);
        let unwritten = Unwritten { number: 4, certificate: "hash".into() };
        let fresh = Fresh { unwritten, method: AtaSanitizeBlock, rest };
        let told = drive.told.len();
        let task = Task { plan: &plan, depth: Depth::Sampled, fresh: Some(&fresh), seed: [7; 32] };
        let second = erase(&mut drive, &probed, &task, &mut |_| ());
        assert_eq!(second.verdict(), Verdict::Erased { method: AtaSanitizeBlock }, "{name}");
        match again {
            None => assert_eq!((drive.told.len(), &second.rest), (told, &first.rest), "{name}: it was left alone"),
            Some(words) => {
                assert_eq!((drive.told.len(), &second.unwritten), (told + 1, &None), "{name}: it was erased again");
                assert!(second.remarks.concat().contains(words), "{name}: {:?}", second.remarks);
            }
        }
    }
    let mut silent = AtaDrive { written: None, ..AtaDrive::with_sanitize(false, true, false) };
    let account = run(&mut silent, Policy::Purge);
    assert_eq!((account.verdict(), account.rest), (Verdict::Erased { method: AtaSanitizeBlock }, None));
}
