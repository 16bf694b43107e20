//! The Security feature set of a simulated drive: its password, its states, and SECURITY ERASE UNIT.

use std::io;
use std::time::Duration;

use super::{ABORTED, Answer, AtaDrive};
use crate::drive::Data;
use crate::drive::ata::{Command, Password};
use crate::drive::sim::medium::{Leaves, Lie};

/// A password that isn't ours.
pub(crate) const THEIRS: [u8; 32] = [b'x'; 32];

/// The Security feature set.
#[derive(Clone, Debug)]
pub(crate) struct Security {
    pub(crate) enhanced: bool,
    pub(crate) frozen: bool,
    /// The firmware freezes it whenever power comes back.
    pub(crate) gets_frozen: bool,
    pub(crate) password: Option<[u8; 32]>,
    pub(crate) locked: bool,
    pub(crate) tries_left: u32,
    /// ERASE PREPARE was the last command.
    pub(crate) prepared: bool,
    pub(crate) erase: Erase,
    /// Only the enhanced erase lies.
    pub(crate) normal_is_honest: bool,
}

/// What becomes of SECURITY ERASE UNIT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Erase {
    Ends,
    /// It's aborted, with this part of the medium erased.
    FailsAt(f64),
    /// Power is lost with this part of the medium erased.
    LosesPowerAt(f64),
    /// No answer ever comes.
    Hangs,
    /// It ends, and the password stays.
    KeepsPassword,
    /// The password is set, and the answer to that is lost.
    LosesAnswer,
    /// It fails, and so does every attempt to remove the password.
    Jams,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            enhanced: true,
            frozen: false,
            gets_frozen: false,
            password: None,
            locked: false,
            tries_left: 5,
            prepared: false,
            erase: Erase::Ends,
            normal_is_honest: false,
        }
    }
}

/// As another agent left it that lost its power: locked, with the password that they all use.
pub(crate) fn locked() -> Security {
    Security { password: Some(Password::OURS), locked: true, ..Security::default() }
}

impl AtaDrive {
    /// The commands of Security, by table 10 of ACS-3.
    pub(super) fn secure(
        &mut self,
        opcode: u8,
        prepared: bool,
        timeout: Duration,
        data: &Data<'_>,
    ) -> io::Result<Result<Answer, Answer>> {
        let security = self.security.as_mut().expect("Security isn't claimed");
        assert!(!security.frozen, "a frozen drive got command {opcode:#x}");
        let told = |data: &Data<'_>| -> [u8; 32] {
            let Data::Out(sector) = data else { panic!("no password") };
            assert_eq!(sector[0] & 1, 0, "that's the master password");
            sector[2..34].try_into().expect("32 bytes")
        };
        let may = match opcode {
            Command::SECURITY_SET_PASSWORD if !security.locked => {
                security.password = Some(told(data));
                if security.erase == Erase::LosesAnswer {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                true
            }
            Command::SECURITY_UNLOCK if security.locked && security.tries_left > 0 => {
                let right = security.password == Some(told(data));
                security.tries_left -= u32::from(!right);
                security.locked = !right;
                right
            }
            Command::SECURITY_ERASE_PREPARE => {
                security.prepared = true;
                true
            }
            Command::SECURITY_DISABLE_PASSWORD if !security.locked && security.erase != Erase::Jams => {
                let right = security.password == Some(told(data));
                security.password = security.password.filter(|_| !right);
                right
            }
            Command::SECURITY_ERASE_UNIT => {
                assert!(prepared, "an erase without its preparation");
                let Data::Out(sector) = data else { panic!("no password") };
                let enhanced = sector[0] & 2 != 0;
                assert!(security.enhanced || !enhanced, "an enhanced erase isn't claimed");
                return self.erase_unit(told(data), enhanced, timeout);
            }
            _ => false,
        };
        Ok(if may { Ok(Answer::default()) } else { Err(ABORTED) })
    }

    fn erase_unit(
        &mut self,
        password: [u8; 32],
        enhanced: bool,
        timeout: Duration,
    ) -> io::Result<Result<Answer, Answer>> {
        let security = self.security.as_mut().expect("asked before");
        let leaves = if enhanced { Leaves::Fill(0xff) } else { Leaves::Fill(0) };
        if security.password != Some(password) {
            return Ok(Err(ABORTED));
        }
        match security.erase {
            Erase::Ends | Erase::KeepsPassword => {
                if security.erase == Erase::Ends {
                    (security.password, security.locked) = (None, false);
                }
                if security.normal_is_honest && !enhanced {
                    self.body.lie = Lie::None;
                }
                self.body.clock += Duration::from_secs(30);
                self.body.erase(leaves, 1.0);
                Ok(Ok(Answer::default()))
            }
            Erase::FailsAt(part) => {
                self.body.medium.erase(leaves, Lie::None, part);
                Ok(Err(ABORTED))
            }
            Erase::Jams | Erase::LosesAnswer => Ok(Err(ABORTED)),
            Erase::LosesPowerAt(part) => {
                security.erase = Erase::Ends;
                self.body.medium.erase(leaves, Lie::None, part);
                self.power_cycle();
                Err(io::Error::other("the machine is off"))
            }
            Erase::Hangs => {
                self.body.clock += timeout;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}
