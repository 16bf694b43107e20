//! Exchanges with the drive's session manager, and sessions with its security providers.
//!
//! TCG Storage Architecture Core Specification 2.01, 3.3.10.2.1 (the synchronous protocol: one command, then asking until its
//! answer is there) and 5.2. Every wait has an end. Whatever goes wrong, no session is left open behind: one that isn't
//! closed would keep everybody else out until a power cycle.

use std::time::Duration;

use super::discovery::Opal;
use super::error::{OpalError, Step, Who};
use super::method::{
    ADMIN_SP, ADMIN1, CLOSE_SESSION, GET, LOCKING_SP, Message, PROPERTIES, PSID, SESSION_MANAGER, SID, START_SESSION,
    SYNC_SESSION, Status, Uid,
};
use super::packet::{self, COM_PACKET_MAX, Numbers, Received};
use super::tokens::{Malformed, Value};
use super::{METHODS, Security};

/// Where ComIDs are managed (Core 3.3.4.7).
const COM_ID_MANAGEMENT: u8 = 2;
const STACK_RESET: [u8; 4] = [0, 0, 0, 2];
/// How long a drive may have nothing to say, or be away for a restart, before its answer counts as lost.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// Removing data may take as long as the drive says it does, within reason.
const REVERT_MAX: Duration = Duration::from_secs(4 * 3600);

/// Waits between questions: short ones for the many methods that take milliseconds, then up to a second.
pub(super) fn pauses() -> impl Iterator<Item = Duration> {
    (0..).map(|n: u32| Duration::from_millis(10 << n.min(7)).min(Duration::from_secs(1)))
}

/// Who opens a session, with the password.
pub(super) enum Login<'p> {
    Anybody,
    Psid(&'p [u8]),
    Sid(&'p [u8]),
    Admin1(&'p [u8]),
}

impl Login<'_> {
    fn who(&self) -> Who {
        match self {
            Self::Anybody => Who::Anybody,
            Self::Psid(_) => Who::Psid,
            Self::Sid(_) => Who::Sid,
            Self::Admin1(_) => Who::Admin1,
        }
    }

    /// StartSession's parameters (Core 5.2.3.1). Drives need not have sessions that only read.
    fn parameters(&self, host: u32) -> Vec<Value> {
        let (sp, proof) = match *self {
            Self::Anybody => (ADMIN_SP, None),
            Self::Psid(pin) => (ADMIN_SP, Some((PSID, pin))),
            Self::Sid(pin) => (ADMIN_SP, Some((SID, pin))),
            Self::Admin1(pin) => (LOCKING_SP, Some((ADMIN1, pin))),
        };
        let mut parameters = vec![Value::Uint(host.into()), sp.value(), Value::Uint(1)];
        if let Some((authority, pin)) = proof {
            parameters.push(Value::named(0, Value::Bytes(pin.to_vec())));
            parameters.push(Value::named(3, authority.value()));
        }
        parameters
    }
}

/// The connection with a drive's security subsystem.
pub(super) struct Wire<'d, S> {
    drive: &'d mut S,
    com_id: u16,
    revert_patience: Duration,
    sessions: u32,
}

impl<'d, S: Security> Wire<'d, S> {
    pub(super) fn start(drive: &'d mut S, opal: &Opal) -> Result<Self, OpalError> {
        let removal = opal.removal.map(|removal| removal.longest).unwrap_or_default();
        let revert_patience = (Step::Revert.patience() + removal).min(REVERT_MAX);
        let mut wire = Self { drive, com_id: opal.com_id, revert_patience, sessions: 0 };
        wire.reset();
        wire.agree()?;
        Ok(wire)
    }

    pub(super) fn drive(&mut self) -> &mut S {
        self.drive
    }

    /// Drops whatever sessions and answers there are (STACK_RESET; Core 3.3.4.7.5, Opal SSC 3.3.6). Not every drive knows
    /// this, and what comes next shows whether there was anything in the way: so it may fail.
    fn reset(&mut self) {
        let mut request = [0; 512];
        let [high, low] = self.com_id.to_be_bytes();
        request[..2].copy_from_slice(&[high, low]);
        request[4..8].copy_from_slice(&STACK_RESET);
        if self.drive.send(COM_ID_MANAGEMENT, self.com_id, &request).is_err() {
            return;
        }
        for pause in pauses().take(10) {
            let mut answer = [0; 512];
            let taken = self.drive.receive(COM_ID_MANAGEMENT, self.com_id, &mut answer);
            // Bytes 10 and 11 are how much of an answer there is: none while the drive is at it.
            if taken.is_err() || answer[10..12] != [0, 0] {
                return;
            }
            self.drive.wait(pause);
        }
    }

    /// Properties (Core 5.2.2.1): from here on the drive knows that it's to keep to one packet of 2 KiB at a time.
    fn agree(&mut self) -> Result<(), OpalError> {
        let properties = [
            ("MaxComPacketSize", 2048),
            ("MaxPacketSize", 2028),
            ("MaxIndTokenSize", 1992),
            ("MaxPackets", 1),
            ("MaxSubpackets", 1),
            ("MaxMethods", 1),
        ];
        let properties = properties
            .map(|(name, value)| Value::Named(Box::new((Value::Bytes(name.as_bytes().to_vec()), Value::Uint(value)))));
        let call = Message::call(SESSION_MANAGER, PROPERTIES, vec![Value::named(0, Value::List(properties.to_vec()))]);
        let step = Step::Properties;
        match self.exchange(step, Numbers::default(), &call)? {
            Message::Call { object: SESSION_MANAGER, method: PROPERTIES, status: Status::SUCCESS, .. } => Ok(()),
            Message::Call { status, .. } | Message::Answer { status, .. } if status != Status::SUCCESS => {
                Err(OpalError::Refused { step, status })
            }
            _ => Err(garbled(step, "it isn't an answer to this")),
        }
    }

    /// Opens a session, does `work` in it and closes it, unless it's over by then.
    pub(super) fn session<T>(
        &mut self,
        login: &Login<'_>,
        work: impl FnOnce(&mut Session<'_, 'd, S>) -> Result<T, OpalError>,
    ) -> Result<T, OpalError> {
        let numbers = match self.open(login) {
            Ok(numbers) => numbers,
            Err(e) => {
                self.reset();
                return Err(e);
            }
        };
        let mut session = Session { wire: self, numbers, stands: Stands::Open };
        let done = work(&mut session);
        let stuck = match session.stands {
            // What was done in a session is done, however it's closed.
            Stands::Open => self.exchange(Step::Close, numbers, &Message::EndOfSession).is_err(),
            Stands::Over => false,
            Stands::Unknown => true,
        };
        if stuck {
            self.reset();
        }
        done
    }

    fn open(&mut self, login: &Login<'_>) -> Result<Numbers, OpalError> {
        self.sessions += 1;
        let (host, who) = (self.sessions, login.who());
        let step = Step::Open(who);
        let call = Message::call(SESSION_MANAGER, START_SESSION, login.parameters(host));
        match self.exchange(step, Numbers::default(), &call)? {
            Message::Call { object: SESSION_MANAGER, method: SYNC_SESSION, arguments, status } => match (status, who) {
                (Status::SUCCESS, _) => match *arguments {
                    [Value::Uint(ours), Value::Uint(drive), ..] if ours == u64::from(host) => {
                        match u32::try_from(drive) {
                            Ok(drive @ 1..) => Ok(Numbers { drive, host }),
                            _ => Err(garbled(step, "its session has an impossible number")),
                        }
                    }
                    _ => Err(garbled(step, "it opens another session")),
                },
                (Status::AUTHORITY_LOCKED_OUT, _) => Err(OpalError::LockedOut(step)),
                (Status::NOT_AUTHORIZED, Who::Psid) => Err(OpalError::WrongPsid),
                (Status::NOT_AUTHORIZED, Who::Sid) => Err(OpalError::Owned),
                (status, _) => Err(OpalError::Refused { step, status }),
            },
            Message::Call { method: CLOSE_SESSION, .. } | Message::EndOfSession => Err(OpalError::Ended(step)),
            Message::Answer { status, .. } if status != Status::SUCCESS => Err(OpalError::Refused { step, status }),
            _ => Err(garbled(step, "it isn't an answer to this")),
        }
    }

    /// Sends a message and asks until what the drive says to it is there.
    fn exchange(&mut self, step: Step, numbers: Numbers, message: &Message) -> Result<Message, OpalError> {
        let patience = if step == Step::Revert { self.revert_patience } else { step.patience() };
        let (mut waited, mut silent, mut failure) = (Duration::ZERO, Duration::ZERO, None);
        let mut transfer = vec![0; COM_PACKET_MAX];
        self.drive
            .send(METHODS, self.com_id, &packet::encode(self.com_id, numbers, &message.encode()))
            .map_err(|source| OpalError::Transport { step, source })?;
        for pause in pauses() {
            transfer.fill(0);
            let received = match self.drive.receive(METHODS, self.com_id, &mut transfer) {
                Ok(()) => {
                    packet::decode(&transfer, self.com_id).map_err(|source| OpalError::Garbled { step, source })?
                }
                Err(e) if step.may_restart() => {
                    failure = Some(e);
                    Received::Nothing
                }
                Err(source) => return Err(OpalError::Transport { step, source }),
            };
            match received {
                // Some drives answer in a session without its numbers.
                Received::Tokens { numbers: theirs, tokens } if theirs == numbers || theirs == Numbers::default() => {
                    return Message::decode(&tokens).map_err(|source| OpalError::Garbled { step, source });
                }
                Received::Tokens { .. } => return Err(garbled(step, "it belongs to another session")),
                // At most a few times: it's longer each time, and no longer than 64 KiB.
                Received::TooLong(bytes) => {
                    transfer.resize(bytes, 0);
                    continue;
                }
                Received::Pending => {}
                Received::Nothing => silent += pause,
            }
            if waited >= patience || silent >= SILENCE {
                break;
            }
            self.drive.wait(pause);
            waited += pause;
        }
        Err(match failure {
            Some(source) => OpalError::Transport { step, source },
            None => OpalError::Silent { step, waited },
        })
    }
}

/// A session with one of the drive's security providers.
pub(super) struct Session<'w, 'd, S> {
    wire: &'w mut Wire<'d, S>,
    numbers: Numbers,
    stands: Stands,
}

/// How a session stands; if something went wrong in it, nobody knows.
enum Stands {
    Open,
    Over,
    Unknown,
}

impl<S: Security> Session<'_, '_, S> {
    pub(super) fn call(
        &mut self,
        step: Step,
        object: Uid,
        method: Uid,
        parameters: Vec<Value>,
    ) -> Result<Vec<Value>, OpalError> {
        let answer = self.wire.exchange(step, self.numbers, &Message::call(object, method, parameters));
        self.stands = match &answer {
            Ok(Message::Answer { status, .. }) if step != Step::Revert || *status != Status::SUCCESS => Stands::Open,
            // A successful Revert ends the session (Opal SSC 5.1.2.2). One without answer may be going on, and a reset
            // would be in its way.
            _ if step == Step::Revert => Stands::Over,
            _ => Stands::Unknown,
        };
        match answer? {
            Message::Answer { results, status: Status::SUCCESS } => Ok(results),
            Message::Answer { status, .. } => Err(OpalError::Refused { step, status }),
            Message::EndOfSession | Message::Call { method: CLOSE_SESSION, .. } => Err(OpalError::Ended(step)),
            Message::Call { .. } => Err(garbled(step, "it isn't an answer to this")),
        }
    }

    /// One cell of a table (Get; Core 5.3.3.6).
    pub(super) fn get(&mut self, step: Step, object: Uid, column: u64) -> Result<Value, OpalError> {
        let columns = [3, 4].map(|bound| Value::named(bound, Value::Uint(column)));
        let results = self.call(step, object, GET, vec![Value::List(columns.to_vec())])?;
        let cell = results.first().and_then(|row| row.under(column));
        cell.cloned().ok_or(garbled(step, "what was asked for isn't in it"))
    }
}

pub(super) fn garbled(step: Step, why: &'static str) -> OpalError {
    OpalError::Garbled { step, source: Malformed(why) }
}
