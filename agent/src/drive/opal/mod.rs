//! Erasing drives by TCG Opal and its kin: new keys for media that are encrypted.
//!
//! A drive that nobody owns takes its published factory password; one that somebody owns takes the PSID from its label.
//! Either way it ends in its factory state. What a drive reports is believed as far as the record goes and no further:
//! one that says it has new keys and hasn't can't be told from here, but only by what's still readable afterwards.
//!
//! TCG Storage Opal SSC 2.02, PSID feature set 1.00; the wire is that of the Core Specification 2.01.

mod discovery;
mod error;
pub(in crate::drive) mod method;
pub(in crate::drive) mod packet;
mod session;
pub(in crate::drive) mod tokens;

use std::time::Duration;

use anyhow::Context;

pub(crate) use self::discovery::Opal;
use self::discovery::{DISCOVERY_BYTES, Ssc};
pub(crate) use self::error::OpalError;
use self::error::Step;
use self::method::{
    ACTIVATE, ACTIVE_KEY, ADMIN_SP, C_PIN_MSID, GEN_KEY, GLOBAL_RANGE, LIFE_CYCLE_STATE, LOCKING_SP, MANUFACTURED,
    MANUFACTURED_INACTIVE, PIN, REVERT, Status, Uid,
};
use self::session::{Login, SILENCE, Session, Wire, garbled, pauses};
use self::tokens::Value;

/// The way to a drive's security subsystem: NVMe Security Send and Receive, ATA TRUSTED SEND and RECEIVE, SCSI SECURITY
/// PROTOCOL OUT and IN.
pub(crate) trait Security {
    /// `data` is a multiple of 512 bytes.
    fn send(&mut self, protocol: u8, com_id: u16, data: &[u8]) -> anyhow::Result<()>;
    fn receive(&mut self, protocol: u8, com_id: u16, data: &mut [u8]) -> anyhow::Result<()>;
    /// Lets time pass before the answer is asked for again. The simulator's clock is this.
    fn wait(&mut self, time: Duration);
}

/// The security protocol that lists the others (SPC-4, supported security protocols list).
const PROTOCOLS: u8 = 0;
/// The security protocol of discovery and of methods.
const METHODS: u8 = 1;
const DISCOVERY: u16 = 1;
/// Passwords have up to 32 bytes (Core 5.1.3, type `password`); some drives' public ones are longer.
const MSID_MAX: usize = 128;
const PSID_MAX: usize = 32;

/// What security subsystem a drive has, if it's one that's known here.
///
/// To be asked of drives that claim to take security commands; if such a drive fails the command, that's an error. But
/// many take it for other protocols only, and say so in protocol 0's list: they have no Opal, and that isn't an error.
pub(crate) fn discover(drive: &mut impl Security) -> anyhow::Result<Option<Opal>> {
    let mut list = [0; 512];
    // The list is mandatory, but an Opal drive without it is still one.
    if drive.receive(PROTOCOLS, 0, &mut list).is_ok() {
        let length = usize::from(u16::from_be_bytes([list[6], list[7]]));
        let protocols = list.get(8..8 + length).unwrap_or(&list[8..]);
        if !protocols.is_empty() && !protocols.contains(&METHODS) {
            return Ok(None);
        }
    }
    read_discovery(drive)
}

fn read_discovery(drive: &mut impl Security) -> anyhow::Result<Option<Opal>> {
    let mut page = [0; DISCOVERY_BYTES];
    drive.receive(METHODS, DISCOVERY, &mut page).context("reading the drive's TCG Level 0 Discovery")?;
    Ok(Opal::parse(&page))
}

/// Takes a drive back to its factory state, whoever owns and locked it, and gives it new keys if it encrypts. Returns
/// what was done, for the record. On drives that don't encrypt this unlocks and erases nothing: see `Opal::can_rekey`.
pub(crate) fn revert_by_psid(drive: &mut impl Security, opal: &Opal, psid: &[u8]) -> Result<Vec<String>, OpalError> {
    if !(1..=PSID_MAX).contains(&psid.len()) {
        return Err(OpalError::PsidLength(psid.len()));
    }
    if opal.ssc == Ssc::Enterprise {
        return Err(OpalError::Enterprise);
    }
    let mut wire = Wire::start(drive, opal)?;
    let mut active = false;
    let reverted = wire.session(&Login::Psid(psid), |session| {
        active = match session.life_cycle_state() {
            Ok(state) => state != MANUFACTURED_INACTIVE,
            // A drive that won't say counts as one whose locking isn't active: then more is done, not less.
            Err(OpalError::Refused { .. }) => false,
            Err(e) => return Err(e),
        };
        session.revert()
    });
    let mut done = vec![reverted_words("the PSID", settle(wire.drive(), reverted, active)?)];
    // The keys of a drive whose Locking SP isn't active outlive its revert (Opal SSC 5.1.2.2).
    if opal.can_rekey() && !active {
        done.push("its locking wasn't active, so the revert left its keys as they were".to_owned());
        done.extend(rekey_unowned(drive, opal).map_err(|e| match e {
            OpalError::Owned => OpalError::PrivateFactoryPin,
            other => other,
        })?);
    }
    Ok(done)
}

/// Gives a drive that nobody owns new keys, and takes it back to its factory state. Returns what was done, for the record.
pub(crate) fn rekey(drive: &mut impl Security, opal: &Opal) -> Result<Vec<String>, OpalError> {
    match opal.sid {
        _ if !opal.can_rekey() => Err(OpalError::NoKeys),
        // Wrong passwords are counted: none is tried that's known to be wrong.
        Some(sid) if sid.owned => Err(OpalError::Owned),
        Some(sid) if sid.blocked => Err(OpalError::SidBlocked),
        _ => rekey_unowned(drive, opal),
    }
}

fn rekey_unowned(drive: &mut impl Security, opal: &Opal) -> Result<Vec<String>, OpalError> {
    let mut wire = Wire::start(drive, opal)?;
    let msid = wire.session(&Login::Anybody, |session| match session.get(Step::ReadMsid, C_PIN_MSID, PIN)? {
        Value::Bytes(msid) if (1..=MSID_MAX).contains(&msid.len()) => Ok(msid),
        _ => Err(garbled(Step::ReadMsid, "it isn't a password")),
    })?;
    let mut done = Vec::new();
    let state = wire.session(&Login::Sid(&msid), |session| {
        let state = session.life_cycle_state()?;
        if state == MANUFACTURED_INACTIVE {
            session.call(Step::Activate, LOCKING_SP, ACTIVATE, vec![])?;
            done.push("activated the Locking SP with the factory's password (Activate)".to_owned());
        }
        Ok(state)
    })?;
    // A revert gives new keys to all ranges of an active Locking SP (Opal SSC 5.1.2.2), so a drive whose Locking SP has
    // a password of its own, or is frozen, or leaves GenKey to somebody else, isn't lost for that.
    let global = match state {
        MANUFACTURED_INACTIVE | MANUFACTURED => wire.session(&Login::Admin1(&msid), |session| session.gen_key()),
        _ => Ok(format!(
            "the Locking SP is in life cycle state {state}, so its global range's key was left to the revert"
        )),
    };
    let global = match global {
        Err(OpalError::Refused { step, status }) => Ok(format!("{step}: {status}; left to the revert")),
        Err(OpalError::LockedOut(step)) => Ok(format!("{step}: {}; left to the revert", Status::AUTHORITY_LOCKED_OUT)),
        other => other,
    };
    // Whatever became of GenKey: so the drive isn't left with its locking half set up. Without an active Locking SP the
    // revert would change no key, and a drive may have said that it activated it and not done so.
    let reverted = wire.session(&Login::Sid(&msid), |session| match session.life_cycle_state()? {
        MANUFACTURED_INACTIVE => Err(OpalError::NotActivated),
        _ => session.revert(),
    });
    let reverted = settle(wire.drive(), reverted, true);
    done.push(global?);
    done.push(reverted_words("the factory's password", reverted?));
    Ok(done)
}

impl<S: Security> Session<'_, '_, S> {
    fn life_cycle_state(&mut self) -> Result<u64, OpalError> {
        match self.get(Step::ReadState, LOCKING_SP, LIFE_CYCLE_STATE)? {
            Value::Uint(state) => Ok(state),
            _ => Err(garbled(Step::ReadState, "it isn't a state")),
        }
    }

    fn gen_key(&mut self) -> Result<String, OpalError> {
        // Which table the key is in depends on its length, 128 or 256 bits (Opal SSC 4.3.5).
        let key = Uid::of(&self.get(Step::ReadKey, GLOBAL_RANGE, ACTIVE_KEY)?).filter(|key| *key != Uid(0));
        let key = key.ok_or(garbled(Step::ReadKey, "it isn't a key"))?;
        self.call(Step::GenKey, key, GEN_KEY, vec![])?;
        Ok(format!("made a new key for the global range (GenKey on {:016X})", key.0))
    }

    fn revert(&mut self) -> Result<(), OpalError> {
        self.call(Step::Revert, ADMIN_SP, REVERT, vec![]).map(|_| ())
    }
}

/// How a revert became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reverted {
    Reported,
    /// The answer was lost in a restart of the drive, but the drive is as after a revert.
    Seen,
}

fn reverted_words(by: &str, reverted: Reverted) -> String {
    match reverted {
        Reverted::Reported => format!("reverted the drive to its factory state by {by} (Revert): success"),
        Reverted::Seen => format!(
            "reverted the drive to its factory state by {by} (Revert): the answer was lost in the drive's restart, but \
             its locking isn't active any more"
        ),
    }
}

/// Waits until the drive is back from a revert and done with it, and looks at whether its locking is what it's to be.
fn settle(drive: &mut impl Security, reverted: Result<(), OpalError>, was_active: bool) -> Result<Reverted, OpalError> {
    let lost = match reverted {
        Ok(()) => None,
        // Whether it was reverted can only be seen where there's something to see.
        Err(
            e @ (OpalError::Silent { step: Step::Revert, .. }
            | OpalError::Transport { step: Step::Revert, .. }
            | OpalError::Ended(Step::Revert)),
        ) if was_active => Some(e),
        Err(e) => return Err(e),
    };
    let (mut away, mut at_work) = (Duration::ZERO, Duration::ZERO);
    for pause in pauses() {
        match read_discovery(drive) {
            Ok(Some(now)) => match now.removal {
                Some(removal) if removal.processing && at_work < removal.longest + Step::Revert.patience() => {
                    at_work += pause;
                }
                _ if now.locking.enabled => return Err(lost.unwrap_or(OpalError::StillActive)),
                Some(removal) if removal.processing => return Err(OpalError::StillRemoving(at_work)),
                Some(removal) if removal.interrupted => return Err(OpalError::Interrupted),
                _ => return Ok(if lost.is_some() { Reverted::Seen } else { Reverted::Reported }),
            },
            Ok(None) | Err(_) if away < SILENCE => away += pause,
            Ok(None) | Err(_) => break,
        }
        drive.wait(pause);
    }
    Err(OpalError::Gone(SILENCE))
}

/// Any bytes for an answer, to everything that's ever asked: it ends, and without a panic.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    struct Noise<'a>(&'a [u8]);

    impl Security for Noise<'_> {
        fn send(&mut self, _: u8, _: u16, _: &[u8]) -> anyhow::Result<()> {
            Ok(())
        }

        fn receive(&mut self, _: u8, _: u16, data: &mut [u8]) -> anyhow::Result<()> {
            let (now, later) = self.0.split_at(self.0.len().min(data.len()));
            self.0 = later;
            data[..now.len()].copy_from_slice(now);
            Ok(())
        }

        fn wait(&mut self, _: Duration) {}
    }

    // Packets and messages on their own: noise won't often get past the headers.
    if let Ok(packet::Received::Tokens { tokens, .. }) = packet::decode(bytes, 0x1004) {
        assert!(tokens.len() < bytes.len());
    }
    if let Ok(message) = method::Message::decode(bytes) {
        assert_eq!(method::Message::decode(&message.encode()), Ok(message));
    }
    if let Ok(Some(opal)) = discover(&mut Noise(bytes)) {
        assert!(!opal.words().is_empty());
        let _ = rekey(&mut Noise(bytes), &opal);
        let _ = revert_by_psid(&mut Noise(bytes), &opal, b"PSID");
    }
}

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod tests;
