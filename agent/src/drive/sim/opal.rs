//! A TPer, the drive's side of TCG Opal: what it has to do by the specifications, and what drives do instead.
//!
//! It shares the codec with the host's side; what keeps both from being wrong in the same way are the fixtures by hand
//! next to the codec. States, access control and effects are its own, from Opal SSC 2.02 4 and 5, the PSID feature set 1.00
//! and the Block SID feature set 1.01.

mod faults;

use std::time::Duration;

use anyhow::ensure;

pub(crate) use self::faults::{Fault, Misdeed};
use crate::drive::opal::Security;
use crate::drive::opal::method::{
    ACTIVATE, ACTIVE_KEY, ADMIN_SP, ADMIN1, C_PIN_MSID, GEN_KEY, GET, GLOBAL_RANGE, LIFE_CYCLE_STATE, LOCKING_SP,
    Message, PIN, PROPERTIES, PSID as PSID_AUTHORITY, REVERT, SESSION_MANAGER, SID, START_SESSION, SYNC_SESSION,
    Status, Uid,
};
use crate::drive::opal::packet::{Numbers, Received, decode, encode};
use crate::drive::opal::tokens::Value;

pub(crate) const COM_ID: u16 = 0x1004;
pub(crate) const MSID: &[u8] = b"the-published-factory-password";
pub(crate) const PSID: &[u8] = b"PSIDPSIDPSIDPSIDPSIDPSIDPSIDPSID";
/// Wrong passwords before an authority is locked out until the next power cycle (C_PIN.TryLimit).
const TRY_LIMIT: usize = 5;

#[derive(Default)]
enum Answer {
    #[default]
    Nothing,
    Ready(Vec<u8>),
    /// After so many polls.
    Later(u32, Vec<u8>),
    /// In a buffer of so many bytes.
    Room(u32, Vec<u8>),
    Never,
}

struct Session {
    numbers: Numbers,
    sp: Uid,
    authority: Option<Uid>,
}

/// What only the drive itself changes.
#[derive(Default)]
pub(crate) struct Works {
    key_generation: u64,
    /// Wrong passwords, by whose they were to be.
    tries: Vec<Uid>,
    session: Option<Session>,
    answer: Answer,
    sessions: u32,
    away: u32,
    dropped: bool,
    removing: u32,
    interrupted: bool,
    reset: bool,
}

pub(crate) struct Tper {
    /// The SSC's feature code.
    pub(crate) ssc: u16,
    pub(crate) encrypts: bool,
    /// Whether it has the Block SID feature set, and tells how the owner stands.
    pub(crate) tells_sid: bool,
    pub(crate) sid_blocked: bool,
    pub(crate) sid: Vec<u8>,
    pub(crate) admin1: Vec<u8>,
    /// Locking SP activated.
    pub(crate) active: bool,
    /// Ranges locked: the medium can neither be read nor written.
    pub(crate) locked: bool,
    pub(crate) key: Uid,
    pub(crate) faults: Vec<Fault>,
    /// Methods called, in order.
    pub(crate) called: Vec<Uid>,
    pub(crate) waited: Duration,
    pub(crate) works: Works,
}

impl Default for Tper {
    /// A drive of Opal 2 as it's sold.
    fn default() -> Self {
        Self {
            ssc: 0x0203,
            encrypts: true,
            tells_sid: true,
            sid_blocked: false,
            sid: MSID.to_vec(),
            admin1: vec![],
            active: false,
            locked: false,
            key: Uid(0x0000_0806_0000_0001),
            faults: vec![],
            called: vec![],
            waited: Duration::ZERO,
            works: Works::default(),
        }
    }
}

impl Tper {
    /// A drive that somebody uses and has locked.
    pub(crate) fn owned() -> Self {
        Self { sid: b"owner".to_vec(), admin1: b"admin".to_vec(), active: true, locked: true, ..Self::default() }
    }

    /// Counts the keys of the medium: what was written under another one than the present is noise.
    pub(crate) fn key_generation(&self) -> u64 {
        self.works.key_generation
    }

    pub(crate) fn power_cycle(&mut self) {
        let works = std::mem::take(&mut self.works);
        self.works = Works { key_generation: works.key_generation, sessions: works.sessions, ..Works::default() };
        self.sid_blocked = false;
        self.locked = self.active && self.sid != MSID;
    }

    /// IF-SEND. False if the drive fails the command.
    pub(crate) fn send(&mut self, protocol: u8, com_id: u16, data: &[u8]) -> bool {
        assert!(!data.is_empty() && data.len().is_multiple_of(512), "whole blocks");
        if self.is_away() || self.works.dropped || com_id != COM_ID {
            return false;
        }
        match protocol {
            1 => self.take(data),
            2 if self.faults.contains(&Fault::NoStackReset) => return false,
            2 => {
                assert_eq!(data[..8], [0x10, 0x04, 0, 0, 0, 0, 0, 2], "no other request is made");
                (self.works.session, self.works.answer, self.works.reset) = (None, Answer::Nothing, true);
            }
            _ => return false,
        }
        true
    }

    /// IF-RECV. False if the drive fails the command.
    pub(crate) fn receive(&mut self, protocol: u8, com_id: u16, data: &mut [u8]) -> bool {
        if self.is_away() {
            return false;
        }
        let answer = match (protocol, com_id) {
            (0, 0) if self.faults.contains(&Fault::NoProtocolList) => return false,
            (0, 0) => {
                let other = self.faults.iter().find_map(|fault| match fault {
                    Fault::Protocols(list) => Some(*list),
                    _ => None,
                });
                let list = other.unwrap_or(&[0x00, 0x01, 0x02]);
                [&[0, 0, 0, 0, 0, 0, 0, u8::try_from(list.len()).expect("a short list")], list].concat()
            }
            (1, 1) => self.discovery(),
            (_, COM_ID) if self.works.dropped => return false,
            (1, COM_ID) => self.give(data.len()),
            (2, COM_ID) if self.works.reset => vec![0x10, 0x04, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0],
            _ => return false,
        };
        assert!(answer.len() <= data.len());
        data.fill(0);
        data[..answer.len()].copy_from_slice(&answer);
        true
    }

    fn is_away(&mut self) -> bool {
        let away = self.works.away > 0;
        self.works.away = self.works.away.saturating_sub(1);
        away
    }

    /// Core 3.3.6, Opal SSC 3.1.1.
    fn discovery(&mut self) -> Vec<u8> {
        let (processing, interrupted) = (self.works.removing > 0, self.works.removing == 0 && self.works.interrupted);
        self.works.removing = self.works.removing.saturating_sub(1);
        let flag = |is: bool, bit: u8| u8::from(is) << bit;
        let locking = 1 | flag(self.active, 1) | flag(self.locked, 2) | flag(self.encrypts, 3);
        let mut page = "00".repeat(48);
        page += &format!("0002100c{locking:02x}{:0>22}", "");
        page += &format!("{:04x}1010{COM_ID:04x}0001{:0>24}", self.ssc, "");
        if self.tells_sid {
            let sid = flag(self.sid != MSID, 0) | flag(self.sid_blocked, 1);
            page += &format!("0402200c{sid:02x}{:0>22}", "");
        }
        if self.faults.iter().any(|fault| matches!(fault, Fault::Removes { .. })) {
            // By new keys and by block erase, which takes 8 min.
            let state = flag(processing, 0) | flag(interrupted, 1);
            page += &format!("0404102000{state:02x}0600000000f0{:0>48}", "");
        }
        let mut page = hex::decode(page).expect("hex");
        page[3] = u8::try_from(page.len() - 4).expect("a short page");
        page
    }

    fn give(&mut self, room: usize) -> Vec<u8> {
        // A ComPacket of nothing, with OutstandingData and MinTransfer.
        let empty = |outstanding: u8, min: u32| {
            [&[0, 0, 0, 0, 0x10, 0x04, 0, 0, 0, 0, 0, outstanding][..], &min.to_be_bytes(), &[0; 4]].concat()
        };
        match std::mem::take(&mut self.works.answer) {
            Answer::Nothing => empty(0, 0),
            Answer::Never => {
                self.works.answer = Answer::Never;
                empty(1, 0)
            }
            Answer::Later(polls @ 1.., transfer) => {
                self.works.answer = Answer::Later(polls - 1, transfer);
                empty(1, 0)
            }
            Answer::Room(needed, transfer) if room < needed as usize => {
                self.works.answer = Answer::Room(needed, transfer);
                empty(1, needed)
            }
            Answer::Ready(transfer) | Answer::Later(0, transfer) | Answer::Room(_, transfer) => transfer,
        }
    }

    /// Carries out what a transfer says, and has the answer ready.
    fn take(&mut self, data: &[u8]) {
        let Ok(Received::Tokens { numbers, tokens }) = decode(data, COM_ID) else { panic!("a host's packet") };
        let message = Message::decode(&tokens).expect("a host's message");
        let method = match &message {
            Message::Call { method, .. } => *method,
            Message::EndOfSession => Uid(0),
            Message::Answer { .. } => panic!("hosts don't answer"),
        };
        self.called.push(method);
        let misdeed = self.faults.iter().find_map(|fault| match fault {
            Fault::At(at, misdeed) if *at == method => Some(*misdeed),
            _ => None,
        });
        let outside = method == PROPERTIES || method == START_SESSION;
        let theirs = if outside { Numbers::default() } else { numbers };
        let transfer = |message: Message| encode(COM_ID, theirs, &message.encode());
        let refused = |status| match method {
            START_SESSION => Message::Call { object: SESSION_MANAGER, method: SYNC_SESSION, arguments: vec![], status },
            PROPERTIES => Message::Call { object: SESSION_MANAGER, method, arguments: vec![], status },
            _ => Message::Answer { results: vec![], status },
        };
        let fine = |tper: &mut Self| tper.carry_out(numbers, &message).unwrap_or_else(refused);
        let Some(misdeed) = misdeed else {
            self.works.answer = Answer::Ready(transfer(fine(self)));
            return;
        };
        self.works.answer = match misdeed {
            Misdeed::NeverAnswers => Answer::Never,
            Misdeed::IsMute => Answer::Nothing,
            Misdeed::AnswersNoise => Answer::Ready((0..500_u32).map(|n| (n * n + 7).to_le_bytes()[0]).collect()),
            Misdeed::Truncates(bytes) => {
                let tokens = fine(self).encode();
                Answer::Ready(encode(COM_ID, theirs, &tokens[..bytes.min(tokens.len() - 1)]))
            }
            Misdeed::IsBusy(polls) => Answer::Later(polls, transfer(fine(self))),
            Misdeed::WantsRoom(bytes) => Answer::Room(bytes, transfer(fine(self))),
            Misdeed::EndsSession => {
                self.works.session = None;
                Answer::Ready(transfer(Message::EndOfSession))
            }
            Misdeed::Refuses(status) => Answer::Ready(transfer(refused(status))),
            Misdeed::MixesUpSessions => {
                Answer::Ready(encode(COM_ID, Numbers { drive: 77, host: 7 }, &fine(self).encode()))
            }
            Misdeed::DropsComId => {
                self.works.dropped = true;
                Answer::Nothing
            }
            Misdeed::IsAway(commands) => {
                self.works.away = commands;
                Answer::Ready(transfer(fine(self)))
            }
            Misdeed::Restarts(commands) => {
                fine(self);
                (self.works.session, self.works.away) = (None, commands);
                Answer::Nothing
            }
        };
    }

    fn carry_out(&mut self, numbers: Numbers, message: &Message) -> Result<Message, Status> {
        let Message::Call { object, method, arguments, .. } = message else {
            let session = self.works.session.take_if(|session| session.numbers == numbers);
            return session.map(|_| Message::EndOfSession).ok_or(Status(0x3f));
        };
        if *object == SESSION_MANAGER {
            assert_eq!(numbers, Numbers::default(), "the session manager is outside of sessions");
            return match *method {
                PROPERTIES => Ok(Message::call(SESSION_MANAGER, PROPERTIES, vec![Value::List(vec![])])),
                START_SESSION => self.start_session(arguments),
                _ => Err(Status::INVALID_PARAMETER),
            };
        }
        let Some(Session { sp, authority, .. }) =
            self.works.session.as_ref().filter(|session| session.numbers == numbers)
        else {
            return Err(Status::NOT_AUTHORIZED);
        };
        let results = match (*object, *method, *sp, *authority) {
            (C_PIN_MSID, GET, ADMIN_SP, _) if self.faults.contains(&Fault::NoMsid) => {
                cell(arguments, PIN, Value::Bytes(vec![]))?
            }
            (C_PIN_MSID, GET, ADMIN_SP, _) => cell(arguments, PIN, Value::Bytes(MSID.to_vec()))?,
            (LOCKING_SP, GET, ADMIN_SP, _) => {
                cell(arguments, LIFE_CYCLE_STATE, Value::Uint(if self.active { 9 } else { 8 }))?
            }
            (LOCKING_SP, ACTIVATE, ADMIN_SP, Some(SID)) => {
                if !self.active {
                    (self.active, self.admin1) = (true, self.sid.clone());
                }
                vec![]
            }
            (GLOBAL_RANGE, GET, LOCKING_SP, Some(ADMIN1)) => cell(arguments, ACTIVE_KEY, self.key.value())?,
            (key, GEN_KEY, LOCKING_SP, Some(ADMIN1))
                if key == self.key && !self.faults.contains(&Fault::WithholdsGenKey) =>
            {
                self.new_keys();
                vec![]
            }
            (ADMIN_SP, REVERT, ADMIN_SP, Some(SID | PSID_AUTHORITY)) => {
                self.revert();
                vec![]
            }
            _ => return Err(Status::NOT_AUTHORIZED),
        };
        Ok(Message::Answer { results, status: Status::SUCCESS })
    }

    /// Core 5.2.3.1; Opal SSC 4.1.1.2.
    fn start_session(&mut self, parameters: &[Value]) -> Result<Message, Status> {
        let [Value::Uint(host), sp, Value::Uint(1), options @ ..] = parameters else {
            return Err(Status::INVALID_PARAMETER);
        };
        let host = u32::try_from(*host).map_err(|_| Status::INVALID_PARAMETER)?;
        let sp = Uid::of(sp).ok_or(Status::INVALID_PARAMETER)?;
        let options = Value::List(options.to_vec());
        let authority = options.under(3).and_then(Uid::of);
        if self.works.session.is_some() {
            return Err(Status::NO_SESSIONS_AVAILABLE);
        }
        if sp == LOCKING_SP && !self.active {
            return Err(Status::INVALID_PARAMETER);
        }
        if let Some(authority) = authority {
            let pin = match (authority, sp) {
                (SID, ADMIN_SP) if self.sid_blocked => return Err(Status::NOT_AUTHORIZED),
                (SID, ADMIN_SP) => &self.sid[..],
                (PSID_AUTHORITY, ADMIN_SP) => PSID,
                (ADMIN1, LOCKING_SP) => &self.admin1,
                _ => return Err(Status::INVALID_PARAMETER),
            };
            let right = matches!(options.under(0), Some(Value::Bytes(challenge)) if challenge == pin);
            let tries = self.works.tries.iter().filter(|by| **by == authority).count();
            match right {
                _ if tries >= TRY_LIMIT => return Err(Status::AUTHORITY_LOCKED_OUT),
                true => self.works.tries.retain(|by| *by != authority),
                false => {
                    self.works.tries.push(authority);
                    return Err(Status::NOT_AUTHORIZED);
                }
            }
        }
        self.works.sessions += 1;
        let drive = 0x1000 + self.works.sessions;
        self.works.session = Some(Session { numbers: Numbers { drive, host }, sp, authority });
        let numbers = vec![Value::Uint(host.into()), Value::Uint(drive.into())];
        Ok(Message::call(SESSION_MANAGER, SYNC_SESSION, numbers))
    }

    /// Opal SSC 5.1.2.2. Only an active Locking SP takes its keys with it.
    fn revert(&mut self) {
        self.works.session = None;
        if self.faults.contains(&Fault::KeepsAll) {
            return;
        }
        if self.active && self.encrypts {
            self.new_keys();
        }
        for fault in &self.faults {
            if let Fault::Removes { looks, interrupted } = *fault {
                (self.works.removing, self.works.interrupted) = (looks, interrupted);
            }
        }
        let private = self.faults.contains(&Fault::PrivatePin);
        self.sid = if private { b"the maker's".to_vec() } else { MSID.to_vec() };
        (self.active, self.locked, self.sid_blocked) = (false, false, false);
        self.works.tries.clear();
    }

    fn new_keys(&mut self) {
        if !self.faults.contains(&Fault::KeepsKey) {
            self.works.key_generation += 1;
        }
    }
}

/// The answer to Get of one column, if that's the one that's asked for.
fn cell(arguments: &[Value], column: u64, value: Value) -> Result<Vec<Value>, Status> {
    let [block] = arguments else { return Err(Status::INVALID_PARAMETER) };
    if [3, 4].map(|bound| block.under(bound)) != [Some(&Value::Uint(column)); 2] {
        return Err(Status::NOT_AUTHORIZED);
    }
    Ok(vec![Value::List(vec![Value::named(column, value)])])
}

impl Security for Tper {
    fn send(&mut self, protocol: u8, com_id: u16, data: &[u8]) -> anyhow::Result<()> {
        ensure!(Tper::send(self, protocol, com_id, data), "invalid field in command");
        Ok(())
    }

    fn receive(&mut self, protocol: u8, com_id: u16, data: &mut [u8]) -> anyhow::Result<()> {
        ensure!(Tper::receive(self, protocol, com_id, data), "invalid field in command");
        Ok(())
    }

    fn wait(&mut self, time: Duration) {
        self.waited += time;
    }
}
