//! What becomes of ATA and SCSI drives that an earlier boot, or somebody else, left in the middle of an erase.

use drophammer_protocol::certificate::Verdict;
use drophammer_protocol::erase::Method::{
    self, AtaSanitizeCrypto, AtaSanitizeOverwrite, AtaSecurityEraseEnhanced, ScsiSanitizeBlock, ScsiSanitizeCrypto,
    ScsiSanitizeOverwrite,
};
use drophammer_protocol::erase::Policy;

use super::scsi_tests::{Simulated, kept, run};
use crate::drive::ata::Password;
use crate::drive::sim::ata::{AtaDrive, Erase, SECTORS, Security};
use crate::drive::sim::medium::Lie;
use crate::drive::sim::scsi::ScsiDrive;
use crate::drive::sim::{Body, State};
use crate::drive::{Sanitize, SanitizeKind};

/// A sanitize that somebody else began, half-way through a loss of power.
#[test]
fn an_interrupted_sanitize_is_picked_up() {
    use SanitizeKind::{Block, Crypto, Overwrite as Writes};
    let begun = |kind| Body { state: State::Running { kind, done: 0.4, exit: true }, ..Body::default() };
    let everything = Sanitize { crypto: true, block: true, overwrite: true };
    let only = |kind| Sanitize::of(|other| other == kind);
    for (kind, claims, want) in [
        // A drive that overwrites promises zeros, and that they're there is proof enough.
        (Writes, only(Writes), &[(ScsiSanitizeOverwrite, true)][..]),
        (Block, only(Block), &[(ScsiSanitizeBlock, true), (ScsiSanitizeBlock, false)]),
        (Crypto, only(Crypto), &[(ScsiSanitizeCrypto, true), (ScsiSanitizeCrypto, false)]),
        // Which one it was, it doesn't say.
        (Writes, everything, &[(ScsiSanitizeCrypto, false)]),
    ] {
        let mut drive = ScsiDrive { body: begun(kind), sanitize: claims, ..ScsiDrive::default() };
        drive.power_cycle();
        let account = run(&mut drive, Policy::Purge);
        let attempts: Vec<(Method, bool)> = account.attempts.iter().map(|a| (a.method, a.resumed)).collect();
        assert_eq!(attempts, want, "{kind:?}");
        assert!(matches!(account.verdict(), Verdict::Erased { .. }), "{kind:?}: {account:?}");
        assert_eq!(drive.told.len(), want.iter().filter(|(_, resumed)| !resumed).count(), "{kind:?}");
    }
    for (kind, claims, want) in [
        (Writes, only(Writes), &[(AtaSanitizeOverwrite, true)][..]),
        (Crypto, only(Crypto), &[(AtaSanitizeCrypto, true), (AtaSanitizeCrypto, false)]),
        (Block, everything, &[(AtaSanitizeCrypto, false)]),
    ] {
        let mut drive = AtaDrive { body: begun(kind), sanitize: claims, ..AtaDrive::default() };
        drive.power_cycle();
        let account = run(&mut drive, Policy::Purge);
        let attempts: Vec<(Method, bool)> = account.attempts.iter().map(|a| (a.method, a.resumed)).collect();
        assert_eq!(attempts, want, "{kind:?}");
        assert!(matches!(account.verdict(), Verdict::Erased { .. }), "{kind:?}: {account:?}");
    }
}

#[test]
fn a_resumed_overwrite_that_left_something_is_done_again() {
    let state = State::Running { kind: SanitizeKind::Overwrite, done: 0.4, exit: true };
    let body = Body { state, lie: Lie::KeepsHead(512), ..Body::default() };
    let mut drive = ScsiDrive { body, ..ScsiDrive::with(false, false, true) };
    let account = run(&mut drive, Policy::Purge);
    let Verdict::NotErased { reason } = account.verdict() else { panic!("believed") };
    assert!(reason.contains("the drive reported success for SCSI Sanitize, overwrite, but"), "{reason}");
    assert_eq!(account.attempts.iter().map(|a| a.resumed).collect::<Vec<_>>(), [true, false]);
}

/// While it sanitizes, it doesn't say how large it is.
#[test]
fn what_comes_out_of_a_sanitize_is_looked_at_again() {
    let state = State::Running { kind: SanitizeKind::Crypto, done: 0.4, exit: true };
    let body = Body { state, ..Body::default() };
    let mut drive = ScsiDrive { body, blocks: SECTORS - 8, ..ScsiDrive::default() };
    let Verdict::NotErased { reason } = run(&mut drive, Policy::Purge).verdict() else { panic!("believed") };
    let words = "the drive isn't what it was before the erase: the drive that answers has 2093056 bytes";
    assert!(reason.contains(words), "{reason}");
    assert!(drive.told.is_empty() && !drive.body.medium.was_written());
}

#[test]
fn a_failed_sanitize_is_left_first() {
    for exit in [true, false] {
        let body = || Body { state: State::Failed { exit }, ..Body::default() };
        let mut scsi = ScsiDrive { body: body(), ..ScsiDrive::default() };
        let mut ata = AtaDrive { body: body(), ..AtaDrive::default() };
        for (drive, method) in [(&mut scsi as &mut dyn Simulated, ScsiSanitizeCrypto), (&mut ata, AtaSanitizeCrypto)] {
            match run(drive, Policy::Purge).verdict() {
                Verdict::Erased { method: done } => assert!(exit && done == method, "{method:?}"),
                Verdict::NotErased { reason } => {
                    assert!(!exit && reason.contains("leaving the state of a failed sanitize"), "{method:?}: {reason}");
                }
            }
        }
    }
}

#[test]
fn an_interrupted_security_erase_is_gone_on_with() {
    let security = Security { erase: Erase::LosesPowerAt(0.3), ..Security::default() };
    let mut drive = AtaDrive { rotation: 7200, ..AtaDrive::with_security(security) };
    let before = drive.body.medium.clone();
    let first = run(&mut drive, Policy::Purge);
    assert!(matches!(first.verdict(), Verdict::NotErased { .. }), "{first:?}");
    // As the next boot finds it whose predecessor died in the middle.
    let security = drive.security.get_or_insert_default();
    (security.password, security.locked) = (Some(Password::OURS), true);
    drive.power_cycle();
    let second = run(&mut drive, Policy::Purge);
    assert_eq!(second.verdict(), Verdict::Erased { method: AtaSecurityEraseEnhanced }, "{second:?}");
    assert_eq!(kept(&before, &drive.body.medium), 0);
}
