//! What drives do instead of what they're told.

use crate::drive::opal::method::{Status, Uid};

/// What a drive does wrong, or out of the ordinary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// GenKey and Revert report success, do all they're to do, and the key is the old one.
    KeepsKey,
    /// Revert reports success and does nothing.
    KeepsAll,
    /// A revert gives the owner a password of the maker's own.
    PrivatePin,
    /// The Locking SP doesn't let GenKey be called by Admin1.
    WithholdsGenKey,
    /// Data is being removed for so many looks at Level 0 Discovery after a revert, and then it's interrupted or done.
    Removes { looks: u32, interrupted: bool },
    /// Doesn't know STACK_RESET.
    NoStackReset,
    /// Protocol 0's list fails.
    NoProtocolList,
    /// What protocol 0's list has instead of TCG's protocols.
    Protocols(&'static [u8]),
    /// Has no password to publish.
    NoMsid,
    /// Something at every call of a method; SyncSession stands for StartSession to be as its answer is.
    At(Uid, Misdeed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misdeed {
    /// Works at it for ever.
    NeverAnswers,
    /// Does nothing and says nothing.
    IsMute,
    AnswersNoise,
    /// Does it, but only so many bytes of the answer's tokens come.
    Truncates(usize),
    /// Does it, and takes so many polls.
    IsBusy(u32),
    /// Does it, and wants a longer buffer for the answer first.
    WantsRoom(u32),
    EndsSession,
    Refuses(Status),
    /// Does it, and answers as if in another session.
    MixesUpSessions,
    /// The ComID isn't one any more, for good.
    DropsComId,
    /// Does it, forgets the answer and is away for so many commands.
    Restarts(u32),
    /// Does it, is away for so many commands and answers then.
    IsAway(u32),
}
