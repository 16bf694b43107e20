//! What a disk says when a command didn't work, or works on by itself: status and sense data.

use std::fmt;

use super::Completion;

impl Completion {
    const GOOD: u8 = 0x00;
    const CHECK_CONDITION: u8 = 0x02;

    pub(crate) fn sense(&self) -> Option<Sense> {
        if self.status == Self::CHECK_CONDITION { Sense::parse(&self.sense) } else { None }
    }

    /// Errors that the drive got over by itself are none.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let sense = self.sense();
        let recovered = sense.is_some_and(|s| matches!(s.key, Sense::NO_SENSE | Sense::RECOVERED_ERROR));
        if self.status == Self::GOOD || recovered { Ok(()) } else { Err(Failure { status: self.status, sense }) }
    }
}

/// Why the drive didn't do as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: u8,
    pub(crate) sense: Option<Sense>,
}

impl Failure {
    /// Something happened of which the drive wants to tell first; the command wasn't looked at.
    pub(crate) fn is_attention(&self) -> bool {
        self.sense.is_some_and(|sense| sense.key == Sense::UNIT_ATTENTION)
    }

    /// The drive is becoming ready, or isn't for a reason that it doesn't give.
    pub(crate) fn is_start(&self) -> bool {
        self.sense.is_some_and(|sense| matches!((sense.asc, sense.ascq), (0x04, 0x00 | 0x01)))
    }

    /// The drive, or who speaks for it, doesn't know this command or a field of it.
    pub(crate) fn is_refusal(&self) -> bool {
        self.sense.is_some_and(|sense| matches!(sense.key, Sense::ILLEGAL_REQUEST | Sense::ABORTED_COMMAND))
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(sense) = self.sense {
            return write!(f, "{sense}");
        }
        let words = match self.status {
            0x02 => "it didn't work, and the drive doesn't say why",
            0x08 => "the drive is busy",
            0x18 => "another host holds a reservation",
            0x28 => "the drive has too much to do",
            0x40 => "aborted",
            _ => "a status that this agent has no words for",
        };
        write!(f, "{words} (SCSI status {:02x}h)", self.status)
    }
}

/// Sense data, of the present command or of an earlier one, in either format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sense {
    pub(crate) key: u8,
    pub(crate) asc: u8,
    pub(crate) ascq: u8,
    /// How far something is that the drive is at, in 65536ths.
    pub(crate) progress: Option<u16>,
}

impl Sense {
    pub(crate) const NO_SENSE: u8 = 0x0;
    pub(crate) const RECOVERED_ERROR: u8 = 0x1;
    pub(crate) const ILLEGAL_REQUEST: u8 = 0x5;
    pub(crate) const UNIT_ATTENTION: u8 = 0x6;
    pub(crate) const ABORTED_COMMAND: u8 = 0xb;

    pub(crate) fn parse(sense: &[u8]) -> Option<Self> {
        let nibble = |byte: &u8| byte & 0xf;
        match sense.first()? & 0x7f {
            // SPC-4, table 53: some drives send no more than the key.
            0x70 | 0x71 => Some(Self {
                key: nibble(sense.get(2)?),
                asc: sense.get(12).copied().unwrap_or(0),
                ascq: sense.get(13).copied().unwrap_or(0),
                progress: sense.get(15..).and_then(progress),
            }),
            // SPC-4, table 28.
            0x72 | 0x73 => {
                const SENSE_KEY_SPECIFIC: u8 = 0x02;
                Some(Self {
                    key: nibble(sense.get(1)?),
                    asc: *sense.get(2)?,
                    ascq: *sense.get(3)?,
                    progress: descriptor(sense, SENSE_KEY_SPECIFIC).and_then(|d| progress(d.get(4..)?)),
                })
            }
            _ => None,
        }
    }

    pub(crate) fn is_sanitizing(&self) -> bool {
        (self.asc, self.ascq) == (0x04, 0x1b)
    }

    pub(crate) fn is_failed_sanitize(&self) -> bool {
        (self.asc, self.ascq) == (0x31, 0x03)
    }
}

/// The sense-key-specific field, if it's valid (SKSV): for what lasts, its last two bytes are the progress.
fn progress(specific: &[u8]) -> Option<u16> {
    let &[flags, high, low, ..] = specific else { return None };
    (flags & 0x80 != 0).then(|| u16::from_be_bytes([high, low]))
}

/// The descriptor of this type, with its header of two bytes, among descriptor format sense data.
pub(crate) fn descriptor(sense: &[u8], kind: u8) -> Option<&[u8]> {
    const HEADER: usize = 8;
    if !matches!(sense.first()? & 0x7f, 0x72 | 0x73) {
        return None;
    }
    let length = usize::from(*sense.get(7)?);
    let mut rest = sense.get(HEADER..)?;
    rest = rest.get(..length).unwrap_or(rest);
    while let &[found, length, ..] = rest {
        let whole = (2 + usize::from(length)).min(rest.len());
        let (one, others) = rest.split_at(whole);
        if found == kind {
            return Some(one);
        }
        rest = others;
    }
    None
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match (self.key, self.asc, self.ascq) {
            (_, 0x04, 0x01) => "the drive is becoming ready",
            (_, 0x04, 0x02) => "the drive has to be started first",
            (_, 0x04, 0x04) => "the drive is busy formatting",
            (_, 0x04, 0x1b) => "the drive is busy sanitizing",
            (_, 0x04, _) => "the drive isn't ready",
            (_, 0x0c, _) => "write error",
            (_, 0x11, _) => "unrecovered read error",
            (_, 0x20, 0x02) => "access denied",
            (_, 0x20, _) => "the drive doesn't know this command",
            (_, 0x21, _) => "block address out of range",
            (_, 0x24, _) => "the drive doesn't accept a field of this command",
            (_, 0x26, _) => "the drive doesn't accept a field of this command's data",
            (_, 0x27, _) => "the drive is write-protected",
            (_, 0x29, _) => "the drive started anew",
            (_, 0x2c, _) => "command sequence error",
            (_, 0x31, 0x03) => "the last sanitize failed",
            (_, 0x31, _) => "the drive's format is corrupt",
            (_, 0x3a, _) => "no medium",
            (_, 0x44, _) => "internal error of the drive",
            (_, 0x74, 0x71) => "the drive is locked (TCG Opal)",
            (0x2, ..) => "the drive isn't ready",
            (0x3, ..) => "medium error",
            (0x4, ..) => "hardware error",
            (0x5, ..) => "the drive refuses this request",
            (0x6, ..) => "the drive's state changed",
            (0x7, ..) => "the drive protects its data",
            (0xb, ..) => "the drive aborted the command",
            _ => "sense data that this agent has no words for",
        };
        write!(f, "{words} (SCSI sense key {:x}h, code {:02x}h/{:02x}h)", self.key, self.asc, self.ascq)
    }
}
