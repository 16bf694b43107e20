//! Methods: calls, their answers, the statuses, and the ids of everything that's called here.

use std::fmt;

use super::tokens::{self, Malformed, Reader, Value, encode_list};

/// Objects and methods have the same kind of name, eight bytes (Core 6.3, assigned UIDs; Opal SSC 4.2 and 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uid(pub(crate) u64);

/// Methods of the session manager are called outside of sessions (Core 5.2).
pub(crate) const SESSION_MANAGER: Uid = Uid(0x0000_0000_0000_00ff);
pub(crate) const PROPERTIES: Uid = Uid(0x0000_0000_0000_ff01);
pub(crate) const START_SESSION: Uid = Uid(0x0000_0000_0000_ff02);
pub(crate) const SYNC_SESSION: Uid = Uid(0x0000_0000_0000_ff03);
pub(crate) const CLOSE_SESSION: Uid = Uid(0x0000_0000_0000_ff06);

pub(crate) const GEN_KEY: Uid = Uid(0x0000_0006_0000_0010);
pub(crate) const GET: Uid = Uid(0x0000_0006_0000_0016);
pub(crate) const REVERT: Uid = Uid(0x0000_0006_0000_0202);
pub(crate) const ACTIVATE: Uid = Uid(0x0000_0006_0000_0203);

/// Security providers, as rows of the Admin SP's SP table.
pub(crate) const ADMIN_SP: Uid = Uid(0x0000_0205_0000_0001);
pub(crate) const LOCKING_SP: Uid = Uid(0x0000_0205_0000_0002);

/// The drive's owner.
pub(crate) const SID: Uid = Uid(0x0000_0009_0000_0006);
/// Whoever holds the drive in hand (PSID feature set).
pub(crate) const PSID: Uid = Uid(0x0000_0009_0001_ff01);
pub(crate) const ADMIN1: Uid = Uid(0x0000_0009_0001_0001);

/// The owner's password as the factory set it, for everybody to read.
pub(crate) const C_PIN_MSID: Uid = Uid(0x0000_000b_0000_8402);
/// All of the medium that isn't in a range of its own.
pub(crate) const GLOBAL_RANGE: Uid = Uid(0x0000_0802_0000_0001);

/// Columns: C_PIN.PIN, SP.LifeCycleState, Locking.ActiveKey.
pub(crate) const PIN: u64 = 0x03;
pub(crate) const LIFE_CYCLE_STATE: u64 = 0x06;
pub(crate) const ACTIVE_KEY: u64 = 0x0a;

/// Life cycle states (Opal SSC 5.2.2).
pub(crate) const MANUFACTURED_INACTIVE: u64 = 8;
pub(crate) const MANUFACTURED: u64 = 9;

impl Uid {
    pub(crate) fn value(self) -> Value {
        Value::Bytes(self.0.to_be_bytes().to_vec())
    }

    pub(crate) fn of(value: &Value) -> Option<Self> {
        let Value::Bytes(bytes) = value else { return None };
        Some(Self(u64::from_be_bytes(bytes.as_slice().try_into().ok()?)))
    }
}

/// What became of a method (Core 5.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0x00);
    pub(crate) const NOT_AUTHORIZED: Self = Self(0x01);
    pub(crate) const SP_BUSY: Self = Self(0x03);
    pub(crate) const SP_FROZEN: Self = Self(0x06);
    pub(crate) const NO_SESSIONS_AVAILABLE: Self = Self(0x07);
    pub(crate) const INVALID_PARAMETER: Self = Self(0x0c);
    pub(crate) const AUTHORITY_LOCKED_OUT: Self = Self(0x12);

    /// What an operator can do about it.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::NOT_AUTHORIZED => "give the PSID from the drive's label",
            Self::SP_BUSY | Self::NO_SESSIONS_AVAILABLE => {
                "somebody else talks to the drive; power-cycle it and try again"
            }
            Self::SP_FROZEN => "the firmware froze it; power-cycle the drive and try again",
            Self::INVALID_PARAMETER => "the drive doesn't have what was asked for; use another method",
            Self::AUTHORITY_LOCKED_OUT => "there were too many wrong passwords; power-cycle the drive and try again",
            _ => "power-cycle the drive and try again, and if that doesn't help use another method",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            0x00 => "success",
            0x01 => "not authorized",
            0x03 => "the security provider is busy",
            0x04 => "the security provider failed",
            0x05 => "the security provider is disabled",
            0x06 => "the security provider is frozen",
            0x07 => "no session is free",
            0x08 => "uniqueness conflict",
            0x09 => "insufficient space",
            0x0a => "insufficient rows",
            0x0c => "invalid parameter",
            0x0f => "the drive's security subsystem malfunctions",
            0x10 => "transaction failure",
            0x11 => "the response is too long",
            0x12 => "the authority is locked out",
            0x3f => "failure",
            _ => "a status that this agent has no words for",
        };
        write!(f, "{words} (TCG status {:02x}h)", self.0)
    }
}

/// What one token stream says (Core 3.2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// From the host, or from the drive's session manager, whose answers are calls as well.
    Call {
        object: Uid,
        method: Uid,
        arguments: Vec<Value>,
        status: Status,
    },
    Answer {
        results: Vec<Value>,
        status: Status,
    },
    EndOfSession,
}

impl Message {
    pub(crate) fn call(object: Uid, method: Uid, arguments: Vec<Value>) -> Self {
        Self::Call { object, method, arguments, status: Status::SUCCESS }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (values, status) = match self {
            Self::Call { object, method, arguments, status } => {
                out.push(tokens::CALL);
                object.value().encode(&mut out);
                method.value().encode(&mut out);
                (arguments, status)
            }
            Self::Answer { results, status } => (results, status),
            Self::EndOfSession => return vec![tokens::END_OF_SESSION],
        };
        encode_list(values, &mut out);
        out.push(tokens::END_OF_DATA);
        // Two more numbers in the status list are reserved.
        encode_list(&[Value::Uint(status.0.into()), Value::Uint(0), Value::Uint(0)], &mut out);
        out
    }

    /// What follows the message isn't looked at: padding, and on some drives a second status list.
    pub(crate) fn decode(tokens: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(tokens);
        let call = match reader.structure()? {
            tokens::END_OF_SESSION => return Ok(Self::EndOfSession),
            tokens::CALL => Some((uid(&mut reader)?, uid(&mut reader)?)),
            tokens::START_LIST => None,
            _ => return Err(Malformed("it is neither a call nor an answer")),
        };
        if call.is_some() && reader.structure()? != tokens::START_LIST {
            return Err(Malformed("a call has no parameters"));
        }
        let values = reader.rest_of_list()?;
        if reader.structure()? != tokens::END_OF_DATA {
            return Err(Malformed("its data doesn't end"));
        }
        let status = match reader.value()? {
            Value::List(status) => match status.first() {
                Some(&Value::Uint(status)) => u8::try_from(status).map(Status).ok(),
                _ => None,
            },
            _ => None,
        };
        let status = status.ok_or(Malformed("it has no status"))?;
        Ok(match call {
            Some((object, method)) => Self::Call { object, method, arguments: values, status },
            None => Self::Answer { results: values, status },
        })
    }
}

fn uid(reader: &mut Reader<'_>) -> Result<Uid, Malformed> {
    Uid::of(&reader.value()?).ok_or(Malformed("a call names no object or method"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex::decode(hex.replace(char::is_whitespace, "")).expect("hex")
    }

    /// By hand from Core 5.2.2, 5.2.3 and 5.3.3 and Opal SSC 5.1, token by token; encoder and decoder are held to them.
    #[test]
    fn messages_by_the_specification() {
        use Value::{Bytes, List, Uint};
        let call = Message::call;
        let property = |name: &str, value| Value::Named(Box::new((Bytes(name.as_bytes().to_vec()), Uint(value))));
        for (name, hex, message) in [
            (
                "Properties with two of the host's",
                "f8 a800000000000000ff a8000000000000ff01 f0 f2 00 f0
                 f2 d010 4d6178436f6d5061636b657453697a65 82 0800 f3  f2 aa 4d61785061636b657473 01 f3
                 f1 f3 f1 f9 f0 00 00 00 f1",
                call(
                    SESSION_MANAGER,
                    PROPERTIES,
                    vec![Value::named(0, List(vec![property("MaxComPacketSize", 2048), property("MaxPackets", 1)]))],
                ),
            ),
            (
                "StartSession, anybody to the Admin SP",
                "f8 a800000000000000ff a8000000000000ff02 f0 01 a80000020500000001 01 f1 f9 f0 00 00 00 f1",
                call(SESSION_MANAGER, START_SESSION, vec![Uint(1), ADMIN_SP.value(), Uint(1)]),
            ),
            (
                "StartSession, Admin1 to the Locking SP with the PIN ABC",
                "f8 a800000000000000ff a8000000000000ff02 f0 01 a80000020500000002 01
                 f2 00 a3 414243 f3 f2 03 a80000000900010001 f3 f1 f9 f0 00 00 00 f1",
                call(
                    SESSION_MANAGER,
                    START_SESSION,
                    vec![
                        Uint(1),
                        LOCKING_SP.value(),
                        Uint(1),
                        Value::named(0, Bytes(b"ABC".to_vec())),
                        Value::named(3, ADMIN1.value()),
                    ],
                ),
            ),
            (
                "SyncSession",
                "f8 a800000000000000ff a8000000000000ff03 f0 01 82 101a f1 f9 f0 00 00 00 f1",
                call(SESSION_MANAGER, SYNC_SESSION, vec![Uint(1), Uint(0x101a)]),
            ),
            (
                "SyncSession that refuses",
                "f8 a800000000000000ff a8000000000000ff03 f0 f1 f9 f0 12 00 00 f1",
                Message::Call {
                    object: SESSION_MANAGER,
                    method: SYNC_SESSION,
                    arguments: vec![],
                    status: Status::AUTHORITY_LOCKED_OUT,
                },
            ),
            (
                "Get of C_PIN_MSID's PIN",
                "f8 a80000000b00008402 a80000000600000016 f0 f0 f2 03 03 f3 f2 04 03 f3 f1 f1 f9 f0 00 00 00 f1",
                call(C_PIN_MSID, GET, vec![List(vec![Value::named(3, Uint(3)), Value::named(4, Uint(3))])]),
            ),
            (
                "its answer",
                "f0 f0 f2 03 a4 4d534944 f3 f1 f1 f9 f0 00 00 00 f1",
                Message::Answer {
                    results: vec![List(vec![Value::named(3, Bytes(b"MSID".to_vec()))])],
                    status: Status::SUCCESS,
                },
            ),
            (
                "Activate",
                "f8 a80000020500000002 a80000000600000203 f0 f1 f9 f0 00 00 00 f1",
                call(LOCKING_SP, ACTIVATE, vec![]),
            ),
            (
                "GenKey of the global range's AES-256 key",
                "f8 a80000080600000001 a80000000600000010 f0 f1 f9 f0 00 00 00 f1",
                call(Uid(0x0000_0806_0000_0001), GEN_KEY, vec![]),
            ),
            (
                "Revert of the Admin SP",
                "f8 a80000020500000001 a80000000600000202 f0 f1 f9 f0 00 00 00 f1",
                call(ADMIN_SP, REVERT, vec![]),
            ),
            ("refused", "f0 f1 f9 f0 01 00 00 f1", Message::Answer { results: vec![], status: Status::NOT_AUTHORIZED }),
            ("end of session", "fa", Message::EndOfSession),
        ] {
            assert_eq!(message.encode(), bytes(hex), "{name}");
            assert_eq!(Message::decode(&bytes(hex)), Ok(message), "{name}");
        }
    }

    #[test]
    fn what_is_no_message() {
        for (name, hex, want) in [
            ("a number", "05", "a value stands where none belongs"),
            ("end of data alone", "f9", "it is neither a call nor an answer"),
            ("a call of nothing", "f8 a0 a0 f0 f1 f9 f0 00 00 00 f1", "a call names no object or method"),
            ("a call without list", "f8 a80000020500000001 a80000000600000202 f9", "a call has no parameters"),
            ("no end of data", "f0 f1 f0 00 00 00 f1", "its data doesn't end"),
            ("no status", "f0 f1 f9 f0 f1", "it has no status"),
            ("status without list", "f0 f1 f9 00", "it has no status"),
            ("a status of two bytes", "f0 f1 f9 f0 82 0100 00 00 f1", "it has no status"),
            ("cut before the status", "f0 f1 f9", "it ends too early"),
        ] {
            assert_eq!(Message::decode(&bytes(hex)), Err(Malformed(want)), "{name}");
        }
    }
}
