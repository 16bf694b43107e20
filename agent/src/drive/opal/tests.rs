//! Every operation against a drive that does as it's told, and against every way not to.

use anyhow::ensure;
use proptest::prelude::*;

use super::method::{GET, PROPERTIES, START_SESSION};
use super::*;
use crate::drive::sim::opal::Fault::{self, At, KeepsAll, KeepsKey, PrivatePin, Removes, WithholdsGenKey};
use crate::drive::sim::opal::Misdeed::{self, *};
use crate::drive::sim::opal::{MSID, PSID, Tper};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Do {
    Rekey,
    Psid,
}
use Do::{Psid, Rekey};

/// What the operation says, in a sentence either way.
fn run(operation: Do, tper: &mut Tper) -> Result<String, String> {
    let opal = discover(tper).expect("an answer").expect("an Opal drive");
    let done = match operation {
        Rekey => rekey(tper, &opal),
        Psid => revert_by_psid(tper, &opal, PSID),
    };
    done.map(|done| done.join("; ")).map_err(|e| format!("{:#}", anyhow::Error::from(e)))
}

/// A drive as it's sold, and one that somebody uses and has locked, with something about them.
fn sold(fault: Fault) -> Tper {
    Tper { faults: vec![fault], ..Tper::default() }
}

fn used(fault: Fault) -> Tper {
    Tper { faults: vec![fault], ..Tper::owned() }
}

#[test]
fn discovery_goes_by_the_list_of_protocols() {
    let only_rpmb = Fault::Protocols(&[0x00, 0xea]);
    assert_eq!(discover(&mut sold(only_rpmb)).expect("an answer"), None);
    for mut tper in [Tper::default(), sold(Fault::NoProtocolList), sold(Fault::Protocols(&[]))] {
        let opal = discover(&mut tper).expect("an answer").expect("Opal");
        assert!(opal.can_rekey() && opal.ssc == Ssc::Opal2 && opal.com_id == 0x1004);
    }
    let mut away = sold(At(PROPERTIES, Restarts(100)));
    assert!(run(Rekey, &mut away).is_err());
    let error = discover(&mut away).expect_err("it's away");
    assert_eq!(format!("{error:#}"), "reading the drive's TCG Level 0 Discovery: invalid field in command");
}

const ACTIVATED: &str = "activated the Locking SP with the factory's password (Activate); ";
const GENERATED: &str = "made a new key for the global range (GenKey on 0000080600000001); ";
const REVERTED: &str = "reverted the drive to its factory state by the factory's password (Revert): success";
const BY_PSID: &str = "reverted the drive to its factory state by the PSID (Revert): success";
const SEEN: &str = ": the answer was lost in the drive's restart, but its locking isn't active any more";

/// New keys for drives that do what they're told, each in its own way. The last number is how many keys were made.
#[test]
fn drives_get_new_keys() {
    let base = Tper::default;
    let whole = format!("{ACTIVATED}{GENERATED}{REVERTED}");
    let inactive = format!("{BY_PSID}; its locking wasn't active, so the revert left its keys as they were; {whole}");
    let left = |step| format!("{step}: not authorized (TCG status 01h); left to the revert; {REVERTED}");
    let aes_128 = whole.replace("0806", "0805");
    let no_gen_key = format!("{ACTIVATED}{}", left("making a new key for the medium"));
    let (seen, seen_by_psid) = (whole.replace(": success", SEEN), BY_PSID.replace(": success", SEEN));
    let slow = vec![At(REVERT, IsBusy(1000)), Removes { looks: 0, interrupted: false }];
    let denied = At(GET, Refuses(Status::NOT_AUTHORIZED));
    for (name, mut tper, operation, want, keys) in [
        ("as sold", base(), Rekey, &*whole, 2),
        ("without Block SID", Tper { tells_sid: false, ..base() }, Rekey, &whole, 2),
        ("a key of 128 bits", Tper { key: Uid(0x0000_0805_0000_0001), ..base() }, Rekey, &aes_128, 2),
        ("Ruby", Tper { ssc: 0x0304, ..base() }, Rekey, &whole, 2),
        ("active", Tper { active: true, admin1: MSID.into(), ..base() }, Rekey, &format!("{GENERATED}{REVERTED}"), 2),
        (
            "active with a password",
            Tper { active: true, ..base() },
            Rekey,
            &left("opening a session with the Locking SP"),
            1,
        ),
        ("withholds GenKey", sold(WithholdsGenKey), Rekey, &no_gen_key, 1),
        ("no STACK_RESET", sold(Fault::NoStackReset), Rekey, &whole, 2),
        ("four minutes for GenKey", sold(At(GEN_KEY, IsBusy(240))), Rekey, &whole, 2),
        ("nine minutes for Revert", sold(At(REVERT, IsBusy(540))), Rekey, &whole, 2),
        ("wants room for MSID", sold(At(GET, WantsRoom(3000))), Rekey, &whole, 2),
        ("removes data for a while", sold(Removes { looks: 50, interrupted: false }), Rekey, &whole, 2),
        ("says it needs 18 minutes for Revert", Tper { faults: slow, ..base() }, Rekey, &whole, 2),
        ("restarts at Revert", sold(At(REVERT, Restarts(20))), Rekey, &seen, 2),
        ("is away at Revert", sold(At(REVERT, IsAway(20))), Rekey, &whole, 2),
        ("used", Tper::owned(), Psid, BY_PSID, 1),
        ("used and blocked", Tper { sid_blocked: true, ..Tper::owned() }, Psid, BY_PSID, 1),
        ("owned, but never locked", Tper { sid: b"owner".to_vec(), ..base() }, Psid, &inactive, 2),
        ("nobody's and blocked", Tper { sid_blocked: true, ..base() }, Psid, &inactive, 2),
        ("Pyrite, only unlocked", Tper { ssc: 0x0303, encrypts: false, ..Tper::owned() }, Psid, BY_PSID, 0),
        ("Pyrite that won't say", Tper { ssc: 0x0303, encrypts: false, ..used(denied) }, Psid, BY_PSID, 0),
        ("restarts at Revert by PSID", used(At(REVERT, Restarts(20))), Psid, &seen_by_psid, 1),
    ] {
        assert_eq!(run(operation, &mut tper).as_deref(), Ok(want), "{name}");
        assert_eq!(tper.key_generation(), keys, "{name}");
        assert!(!tper.active && !tper.locked && tper.sid == MSID, "{name}: not in its factory state");
        assert!(tper.waited < Duration::from_secs(1100), "{name}: {:?}", tper.waited);
    }
}

/// A drive that reports success and keeps its key looks from here like one that doesn't: the blocks that were written
/// before, and can or can't be read afterwards, decide between the two.
#[test]
fn a_liar_about_keys_is_not_found_out_here() {
    for (operation, mut tper) in [(Rekey, sold(KeepsKey)), (Psid, used(KeepsKey))] {
        assert!(run(operation, &mut tper).is_ok(), "{operation:?}");
        assert_eq!(tper.key_generation(), 0, "{operation:?}");
    }
}

/// The last number is how many keys were made even so.
#[test]
fn drives_that_get_no_new_keys_say_why() {
    let base = Tper::default;
    let sold_at = |uid, misdeed| sold(At(uid, misdeed));
    let used_at = |uid, misdeed| used(At(uid, misdeed));
    let (private, locked_out) = (Tper { sid: b"x".to_vec(), ..sold(PrivatePin) }, Status::AUTHORITY_LOCKED_OUT);
    let removing = |looks, interrupted| used(Removes { looks, interrupted });
    let owned = "somebody owns the drive, or its maker set a password: its PSID, from the label, is needed";
    let still = "the drive reported success for Revert, but its locking is still active; don't give it to anybody";
    let properties = "agreeing on TCG properties failed: ";
    let opening = "opening a session with the Admin SP failed: ";
    let by_psid = "opening a session with the Admin SP by the PSID failed: ";
    let reading = "reading the factory's password failed: ";
    let activating = "activating the Locking SP failed: ";
    let which = "reading which key the medium has failed: ";
    let making = "making a new key for the medium failed: ";
    let reverting = "reverting the drive to its factory state failed: ";
    let silent = "s; power-cycle the drive and try again";
    let unread = "the drive's answer can't be read; power-cycle the drive and try again: ";
    let untaken = "the drive doesn't take the security command; power-cycle it and try again: invalid field in command";
    for (name, mut tper, operation, want, keys) in [
        ("owned", Tper::owned(), Rekey, owned.to_owned(), 0),
        ("owned, and doesn't tell", Tper { tells_sid: false, ..Tper::owned() }, Rekey, owned.to_owned(), 0),
        ("blocked", Tper { sid_blocked: true, ..base() }, Rekey, OpalError::SidBlocked.to_string(), 0),
        ("Pyrite", Tper { ssc: 0x0302, encrypts: false, ..base() }, Rekey, OpalError::NoKeys.to_string(), 0),
        ("Enterprise", Tper { ssc: 0x0100, ..base() }, Psid, OpalError::Enterprise.to_string(), 0),
        ("a private password", private, Psid, OpalError::PrivateFactoryPin.to_string(), 0),
        ("keeps everything", used(KeepsAll), Psid, still.to_owned(), 0),
        ("keeps all but GenKey's key", sold(KeepsAll), Rekey, still.to_owned(), 1),
        ("lies about Activate", sold_at(ACTIVATE, Refuses(Status(0))), Rekey, OpalError::NotActivated.to_string(), 0),
        ("stops removing data", removing(3, true), Psid, OpalError::Interrupted.to_string(), 1),
        (
            "removes data for ever",
            removing(u32::MAX, false),
            Psid,
            "the drive still removes data 1080 s after its revert; wait for that and try again".to_owned(),
            1,
        ),
        (
            "doesn't come back from Revert",
            used_at(REVERT, Restarts(u32::MAX)),
            Psid,
            "the drive hasn't come back within 60 s of its revert; power-cycle it and try again".to_owned(),
            1,
        ),
        ("restarts with nothing to see", sold_at(REVERT, Restarts(20)), Psid, format!("{reverting}{untaken}"), 0),
        (
            "Properties, for ever",
            sold_at(PROPERTIES, NeverAnswers),
            Rekey,
            format!("{properties}no answer within 30 {silent}"),
            0,
        ),
        ("mute", sold_at(START_SESSION, IsMute), Rekey, format!("{opening}no answer within 30 {silent}"), 0),
        (
            "locked out",
            used_at(START_SESSION, Refuses(locked_out)),
            Psid,
            format!(
                "{by_psid}too many wrong passwords were tried (TCG status 12h); power-cycle the drive and try again"
            ),
            0,
        ),
        (
            "busy with somebody else",
            sold_at(START_SESSION, Refuses(Status::SP_BUSY)),
            Rekey,
            format!(
                "{opening}{}; {}",
                Status::SP_BUSY,
                "somebody else talks to the drive; power-cycle it and try again"
            ),
            0,
        ),
        (
            "has no PSID",
            used_at(START_SESSION, Refuses(Status(0x0c))),
            Psid,
            format!(
                "{by_psid}invalid parameter (TCG status 0ch); the drive doesn't have what was asked for; use another method"
            ),
            0,
        ),
        (
            "mixed up",
            sold_at(GET, MixesUpSessions),
            Rekey,
            format!("{reading}{unread}it belongs to another session"),
            0,
        ),
        ("noise", sold_at(ACTIVATE, AnswersNoise), Rekey, format!("{activating}{unread}it is for another ComID"), 0),
        (
            "ends the session at GenKey, and is reverted",
            sold_at(GEN_KEY, EndsSession),
            Rekey,
            format!("{making}the drive ended the session; power-cycle it and try again"),
            1,
        ),
        (
            "GenKey, for ever",
            sold_at(GEN_KEY, NeverAnswers),
            Rekey,
            format!("{making}no answer within 300 {silent}"),
            1,
        ),
        ("no MSID", sold(Fault::NoMsid), Rekey, format!("{reading}{unread}it isn't a password"), 0),
        ("no key", Tper { key: Uid(0), ..base() }, Rekey, format!("{which}{unread}it isn't a key"), 1),
        ("GenKey, mute", sold_at(GEN_KEY, IsMute), Rekey, format!("{making}no answer within 59 {silent}"), 1),
        ("cut short", used_at(REVERT, Truncates(3)), Psid, format!("{reverting}{unread}it ends too early"), 1),
        (
            "fails Revert",
            used_at(REVERT, Refuses(Status(0x3f))),
            Psid,
            format!("{reverting}failure (TCG status 3fh); {}", Status(0x3f).advice()),
            0,
        ),
        ("drops the ComID", sold_at(GET, DropsComId), Rekey, format!("{reading}{untaken}"), 0),
    ] {
        assert_eq!(run(operation, &mut tper), Err(want), "{name}");
        assert_eq!(tper.key_generation(), keys, "{name}");
    }
}

/// Whatever goes wrong at whatever method: there's an end, success is only reported for a drive that's in its factory
/// state with new keys, and once the fault is gone and the power was off, the next try succeeds.
#[test]
fn every_misdeed_at_every_method() {
    let misdeeds = [
        [NeverAnswers, IsMute, AnswersNoise, IsBusy(15), MixesUpSessions, EndsSession, DropsComId],
        [Truncates(0), Truncates(5), Truncates(20), WantsRoom(4000), Restarts(1), Restarts(u32::MAX), IsAway(1)],
        [0x00, 0x01, 0x0c, 0x10, 0x12, 0x3f, 0xee].map(|status| Refuses(Status(status))),
    ];
    let close = Uid(0);
    let methods = [PROPERTIES, START_SESSION, GET, ACTIVATE, GEN_KEY, REVERT, close];
    let check = |at: Uid, misdeed: Misdeed, operation: Do, tper: Tper| {
        let mut tper = Tper { faults: vec![At(at, misdeed)], ..tper };
        let (name, outcome) = (format!("{at:x?} {misdeed:?} {operation:?}"), run(operation, &mut tper));
        assert!(tper.waited < Duration::from_secs(2000), "{name}: {:?}", tper.waited);
        let in_order = tper.key_generation() > 0 && !tper.active && tper.sid == MSID;
        assert!(outcome.is_err() || in_order, "{name}: {outcome:?}");
        tper.faults.clear();
        tper.power_cycle();
        let keys = tper.key_generation();
        let again = run(Psid, &mut tper);
        assert!(again.is_ok() && tper.key_generation() > keys, "{name}, again: {again:?}");
    };
    for misdeed in misdeeds.into_iter().flatten() {
        for at in methods {
            check(at, misdeed, Rekey, Tper::default());
            check(at, misdeed, Psid, Tper::default());
            check(at, misdeed, Psid, Tper::owned());
        }
    }
}

#[test]
fn wrong_passwords_are_counted_and_not_wasted() {
    let mut tper = Tper::owned();
    let opal = discover(&mut tper).expect("an answer").expect("Opal");
    assert!(matches!(rekey(&mut tper, &opal), Err(OpalError::Owned)));
    assert_eq!(tper.called, [], "the drive said that somebody owns it");
    for _ in 0..5 {
        assert!(matches!(revert_by_psid(&mut tper, &opal, b"not it"), Err(OpalError::WrongPsid)));
    }
    assert!(matches!(revert_by_psid(&mut tper, &opal, PSID), Err(OpalError::LockedOut(_))));
    assert_eq!(tper.key_generation(), 0);
    tper.power_cycle();
    assert!(revert_by_psid(&mut tper, &opal, PSID).is_ok());
    assert_eq!(tper.key_generation(), 1);
    for psid in [&b""[..], &[b'x'; 33]] {
        let refused = revert_by_psid(&mut tper, &opal, psid);
        assert!(matches!(refused, Err(OpalError::PsidLength(length)) if length == psid.len()));
    }
}

/// Sessions that somebody left open, as the firmware may have done.
#[test]
fn sessions_of_others_are_dropped() {
    let mut tper = Tper::default();
    let opal = discover(&mut tper).expect("an answer").expect("Opal");
    let parameters = vec![Value::Uint(9), ADMIN_SP.value(), Value::Uint(1)];
    let open = method::Message::call(method::SESSION_MANAGER, START_SESSION, parameters);
    assert!(tper.send(1, 0x1004, &packet::encode(0x1004, packet::Numbers::default(), &open.encode())));
    assert!(rekey(&mut tper, &opal).is_ok());
}

/// A drive that says what it's given, last things first, whatever it's asked.
struct Script(Vec<Vec<u8>>);

impl Security for Script {
    fn send(&mut self, _: u8, _: u16, _: &[u8]) -> anyhow::Result<()> {
        Ok(())
    }

    fn receive(&mut self, protocol: u8, _: u16, data: &mut [u8]) -> anyhow::Result<()> {
        ensure!(protocol == 1, "invalid field in command");
        let tokens = self.0.pop().unwrap_or_default();
        let transfer = packet::encode(0x1004, packet::Numbers::default(), &tokens);
        data.iter_mut().zip(transfer).for_each(|(to, from)| *to = from);
        Ok(())
    }

    fn wait(&mut self, _: Duration) {}
}

/// What a session needs to be one.
#[test]
fn sessions_have_numbers() {
    let opal = discover(&mut Tper::default()).expect("an answer").expect("Opal");
    let from_manager = |method, arguments: &[u64]| {
        let arguments = arguments.iter().map(|n| Value::Uint(*n)).collect();
        method::Message::call(method::SESSION_MANAGER, method, arguments).encode()
    };
    for (numbers, want) in [
        (&[1, 0x1001][..], "reading the factory's password failed: no answer within 30 s"),
        (&[2, 0x1001], "it opens another session"),
        (&[1], "it opens another session"),
        (&[1, 0], "its session has an impossible number"),
        (&[1, 1 << 32], "its session has an impossible number"),
    ] {
        let mut script = Script(vec![from_manager(method::SYNC_SESSION, numbers), from_manager(PROPERTIES, &[])]);
        let error = anyhow::Error::from(rekey(&mut script, &opal).expect_err("no drive"));
        assert!(format!("{error:#}").contains(want), "{numbers:?}: {error:#}");
    }
}

proptest! {
    #[test]
    fn noise_is_no_success(answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let opal = discover(&mut Tper::default()).expect("an answer").expect("Opal");
        prop_assert!(rekey(&mut Script(answers.clone()), &opal).is_err());
        prop_assert!(revert_by_psid(&mut Script(answers), &opal, PSID).is_err());
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(packet::Received::Tokens { tokens, .. }) = packet::decode(&bytes, 0x1004) {
            prop_assert!(tokens.len() < bytes.len());
        }
        if let Ok(message) = method::Message::decode(&bytes) {
            prop_assert_eq!(method::Message::decode(&message.encode()), Ok(message));
        }
    }
}
