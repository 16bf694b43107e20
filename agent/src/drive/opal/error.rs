//! What can go wrong with a drive's security subsystem, by what the caller decides and the operator does about it.

use std::fmt;
use std::time::Duration;

use super::method::Status;
use super::tokens::Malformed;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpalError {
    #[error("the drive doesn't encrypt as TCG Opal has it, so new keys wouldn't erase it; use another method")]
    NoKeys,
    #[error("a drive of the TCG Enterprise class can't be reverted by this agent; use another method")]
    Enterprise,
    #[error("the PSID has 1 to 32 characters, as printed on the drive's label, and {0} were given")]
    PsidLength(usize),
    #[error("the drive doesn't take this PSID; compare it with the label before trying again, tries are limited")]
    WrongPsid,
    #[error("somebody owns the drive, or its maker set a password: its PSID, from the label, is needed")]
    Owned,
    #[error(
        "the drive is reverted, but its owner's password isn't the factory's public one even so, and its keys, which \
         weren't in use, are the same as before; use another method"
    )]
    PrivateFactoryPin,
    #[error(
        "the firmware blocked the drive's owner (TCG Block SID) until the next power cycle: switch that off in the \
         firmware's settings and power-cycle, or give the PSID from the drive's label"
    )]
    SidBlocked,
    #[error("{0} failed: too many wrong passwords were tried (TCG status 12h); power-cycle the drive and try again")]
    LockedOut(Step),
    #[error("{step} failed: {status}; {advice}", advice = status.advice())]
    Refused { step: Step, status: Status },
    #[error("{0} failed: the drive ended the session; power-cycle it and try again")]
    Ended(Step),
    #[error("{step} failed: no answer within {} s; power-cycle the drive and try again", waited.as_secs())]
    Silent { step: Step, waited: Duration },
    #[error("{step} failed: the drive's answer can't be read; power-cycle the drive and try again")]
    Garbled { step: Step, source: Malformed },
    #[error("{step} failed: the drive doesn't take the security command; power-cycle it and try again")]
    Transport { step: Step, source: anyhow::Error },
    #[error("the drive reported success for Activate, but its Locking SP isn't active; use another method")]
    NotActivated,
    #[error("the drive reported success for Revert, but its locking is still active; don't give it to anybody")]
    StillActive,
    #[error("the drive says that its removal of data was interrupted; revert it again")]
    Interrupted,
    #[error("the drive still removes data {} s after its revert; wait for that and try again", .0.as_secs())]
    StillRemoving(Duration),
    #[error("the drive hasn't come back within {} s of its revert; power-cycle it and try again", .0.as_secs())]
    Gone(Duration),
}

/// One exchange with the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Properties,
    Open(Who),
    ReadMsid,
    ReadState,
    Activate,
    ReadKey,
    GenKey,
    Revert,
    Close,
}

/// Who a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Anybody,
    Psid,
    Sid,
    Admin1,
}

impl Step {
    /// How long a drive may be at it. Reverting gets more where the drive asks for more.
    pub(super) fn patience(self) -> Duration {
        match self {
            Self::Activate | Self::GenKey => Duration::from_secs(300),
            Self::Revert => Duration::from_secs(600),
            Self::Close => Duration::from_secs(5),
            _ => Duration::from_secs(30),
        }
    }

    /// Whether drives are known to restart at it, and to be away and to forget their answer thereby.
    pub(super) fn may_restart(self) -> bool {
        self == Self::Revert
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Properties => "agreeing on TCG properties",
            Self::Open(Who::Anybody) => "opening a session with the Admin SP",
            Self::Open(Who::Psid) => "opening a session with the Admin SP by the PSID",
            Self::Open(Who::Sid) => "opening a session with the Admin SP as the owner",
            Self::Open(Who::Admin1) => "opening a session with the Locking SP",
            Self::ReadMsid => "reading the factory's password",
            Self::ReadState => "reading the state of the Locking SP",
            Self::Activate => "activating the Locking SP",
            Self::ReadKey => "reading which key the medium has",
            Self::GenKey => "making a new key for the medium",
            Self::Revert => "reverting the drive to its factory state",
            Self::Close => "closing the session",
        })
    }
}
