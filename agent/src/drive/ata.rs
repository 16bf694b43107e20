//! The language of ATA, in the clothes of SCSI in which the kernel and every controller pass it on (SAT-3, ATA PASS-THROUGH
//! (16)): commands, what their registers say afterwards, and why a drive refused.
//!
//! Total functions: whatever a drive or a translator sends, the answer is a value. Commands are those of ACS-3, and of ACS-2
//! where that one made them obsolete.

mod identify;
mod statistics;

use std::fmt;
use std::time::Duration;

use super::scsi::{self, descriptor};
use super::{QUICK, SanitizeKind};

pub(crate) use identify::{Identity, Security, highest_factory_sector};
pub(crate) use statistics::{LOG_DIRECTORY, STATISTICS, STATISTICS_GENERAL, has_statistics, written};

/// Every block of data that an ATA command carries here.
pub(crate) const SECTOR_BYTES: usize = 512;

/// What goes into a drive's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) feature: u16,
    pub(crate) count: u16,
    pub(crate) lba: u64,
    /// Whether it has 48 bits of address and 16 of everything else.
    extended: bool,
    carries: Carries,
    timeout: Duration,
}

/// Which way the data of a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carries {
    Nothing,
    In,
    Out,
}

impl Command {
    pub(crate) const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub(crate) const READ_LOG_EXT: u8 = 0x2f;
    pub(crate) const TRUSTED_RECEIVE: u8 = 0x5c;
    pub(crate) const TRUSTED_SEND: u8 = 0x5e;
    pub(crate) const MAX_ADDRESS_CONFIGURATION: u8 = 0x78;
    pub(crate) const DEVICE_CONFIGURATION: u8 = 0xb1;
    pub(crate) const SANITIZE_DEVICE: u8 = 0xb4;
    pub(crate) const IDENTIFY_DEVICE: u8 = 0xec;
    pub(crate) const SECURITY_SET_PASSWORD: u8 = 0xf1;
    pub(crate) const SECURITY_UNLOCK: u8 = 0xf2;
    pub(crate) const SECURITY_ERASE_PREPARE: u8 = 0xf3;
    pub(crate) const SECURITY_ERASE_UNIT: u8 = 0xf4;
    pub(crate) const SECURITY_DISABLE_PASSWORD: u8 = 0xf6;
    pub(crate) const READ_NATIVE_MAX: u8 = 0xf8;

    fn plain(opcode: u8) -> Self {
        let carries = Carries::Nothing;
        Self { opcode, feature: 0, count: 0, lba: 0, extended: false, carries, timeout: QUICK }
    }

    fn extended(opcode: u8, feature: u16) -> Self {
        Self { feature, extended: true, ..Self::plain(opcode) }
    }

    fn input(opcode: u8) -> Self {
        Self { count: 1, carries: Carries::In, ..Self::plain(opcode) }
    }

    /// The data has one sector.
    fn output(opcode: u8) -> Self {
        Self { count: 1, carries: Carries::Out, ..Self::plain(opcode) }
    }

    pub(crate) fn identify() -> Self {
        Self::input(Self::IDENTIFY_DEVICE)
    }

    /// READ LOG EXT: one page of a log.
    pub(crate) fn read_log(log: u8, page: u8) -> Self {
        let lba = u64::from(page) << 8 | u64::from(log);
        Self { lba, extended: true, ..Self::input(Self::READ_LOG_EXT) }
    }

    /// The highest sector that a host protected area leaves out, or doesn't; by 48 bits or by 28.
    pub(crate) fn native_max(extended: bool) -> Self {
        if extended { Self::extended(Self::READ_NATIVE_MAX_EXT, 0) } else { Self::plain(Self::READ_NATIVE_MAX) }
    }

    /// GET NATIVE MAX ADDRESS EXT, which came in place of the host protected area.
    pub(crate) fn accessible_native_max() -> Self {
        Self::extended(Self::MAX_ADDRESS_CONFIGURATION, 0x0000)
    }

    /// What the drive could do when it left the factory.
    pub(crate) fn factory_configuration() -> Self {
        Self { feature: 0xc2, ..Self::input(Self::DEVICE_CONFIGURATION) }
    }

    /// SANITIZE STATUS EXT
    pub(crate) fn sanitize_status() -> Self {
        Self::extended(Self::SANITIZE_DEVICE, 0x0000)
    }

    /// SANITIZE STATUS EXT that has the drive forget that a sanitize failed.
    pub(crate) fn leave_failed_sanitize() -> Self {
        const CLEAR_FAILED: u16 = 1 << 0;
        Self { count: CLEAR_FAILED, ..Self::sanitize_status() }
    }

    /// SANITIZE DEVICE. The drive answers at once and goes on by itself. After a failure it may be told to take other
    /// commands again (FAILURE MODE), so that the next method has its chance. An overwrite is one pass of zeros.
    pub(crate) fn sanitize(kind: SanitizeKind) -> Self {
        const FAILURE_MODE: u16 = 1 << 4;
        const ONE_PASS: u16 = 1;
        let (feature, key, count) = match kind {
            SanitizeKind::Crypto => (0x0011, 0x4372_7970, 0),
            SanitizeKind::Block => (0x0012, 0x426b_4572, 0),
            // The pattern is in bits 31:0.
            SanitizeKind::Overwrite => (0x0014, 0x4f57 << 32, ONE_PASS),
        };
        Self { lba: key, count: FAILURE_MODE | count, ..Self::extended(Self::SANITIZE_DEVICE, feature) }
    }

    /// SECURITY SET PASSWORD; its data is [`Password::tell`], as of the next two.
    pub(crate) fn set_password() -> Self {
        Self::output(Self::SECURITY_SET_PASSWORD)
    }

    pub(crate) fn unlock() -> Self {
        Self::output(Self::SECURITY_UNLOCK)
    }

    pub(crate) fn disable_password() -> Self {
        Self::output(Self::SECURITY_DISABLE_PASSWORD)
    }

    /// SECURITY ERASE PREPARE: the very next command has to be the erase.
    pub(crate) fn erase_prepare() -> Self {
        Self::plain(Self::SECURITY_ERASE_PREPARE)
    }

    /// SECURITY ERASE UNIT; its data is [`Password::erase`]. The drive answers when it's done.
    pub(crate) fn erase_unit(timeout: Duration) -> Self {
        Self { timeout, ..Self::output(Self::SECURITY_ERASE_UNIT) }
    }

    /// libata lets this and the next through only with `libata.allow_tpm=1`.
    pub(crate) fn trusted_receive(protocol: u8, specific: u16, sectors: u16) -> Self {
        Self { carries: Carries::In, ..Self::trusted(Self::TRUSTED_RECEIVE, protocol, specific, sectors) }
    }

    pub(crate) fn trusted_send(protocol: u8, specific: u16, sectors: u16) -> Self {
        Self { carries: Carries::Out, ..Self::trusted(Self::TRUSTED_SEND, protocol, specific, sectors) }
    }

    /// ACS-3, TRUSTED RECEIVE: the length's upper byte is in LBA bits 7:0, what is specific to the protocol in 23:8.
    fn trusted(opcode: u8, protocol: u8, specific: u16, sectors: u16) -> Self {
        let lba = u64::from(specific) << 8 | u64::from(sectors >> 8);
        Self { feature: protocol.into(), count: sectors & 0xff, lba, ..Self::plain(opcode) }
    }

    /// ATA PASS-THROUGH (16), SAT-3 table 150. Commands without data ask for the drive's registers as well (CK_COND);
    /// with the others some translators forget the data over it.
    pub(crate) fn clothed(&self) -> scsi::Command {
        const IN_SECTORS_BY_COUNT: u8 = 1 << 2 | 0b10;
        const FROM_DRIVE: u8 = 1 << 3;
        const CHECK_CONDITION: u8 = 1 << 5;
        const LBA_MODE: u8 = 1 << 6;
        let (protocol, transfer) = match self.carries {
            Carries::Nothing => (3, CHECK_CONDITION),
            Carries::In => (4, IN_SECTORS_BY_COUNT | FROM_DRIVE),
            Carries::Out => (5, IN_SECTORS_BY_COUNT),
        };
        let [feature_high, feature] = self.feature.to_be_bytes();
        let [count_high, count] = self.count.to_be_bytes();
        let [a, b, c, d, e, f, ..] = self.lba.to_le_bytes();
        // Where there are 28 bits of address, the upper four are in the device register.
        let (device, d) = if self.extended { (LBA_MODE, d) } else { (LBA_MODE | d & 0xf, 0) };
        let cdb = vec![
            scsi::Command::ATA_PASS_THROUGH_16,
            protocol << 1 | u8::from(self.extended),
            transfer,
            feature_high,
            feature,
            count_high,
            count,
            d,
            a,
            e,
            b,
            f,
            c,
            device,
            self.opcode,
            0,
        ];
        scsi::Command { cdb, timeout: self.timeout }
    }
}

/// What stands in a drive's registers after a command: the ATA Status Return descriptor of SAT-3, table 155.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) error: u8,
    pub(crate) status: u8,
    pub(crate) count: u16,
    pub(crate) lba: u64,
    pub(crate) device: u8,
}

impl Registers {
    const DESCRIPTOR: u8 = 0x09;

    pub(crate) fn parse(sense: &[u8]) -> Option<Self> {
        let &[_, _, extend, error, count_high, count, d, a, e, b, f, c, device, status, ..] =
            descriptor(sense, Self::DESCRIPTOR)?
        else {
            return None;
        };
        let [count_high, d, e, f] = if extend & 1 == 1 { [count_high, d, e, f] } else { [0; 4] };
        Some(Self {
            error,
            status,
            count: u16::from_be_bytes([count_high, count]),
            lba: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
            device,
        })
    }

    /// Bits ERR and DF.
    pub(crate) fn failed(&self) -> bool {
        self.status & (1 << 0 | 1 << 5) != 0
    }

    /// The 28 bits of address of the older commands.
    pub(crate) fn lba_28(&self) -> u64 {
        self.lba & 0xff_ffff | u64::from(self.device & 0xf) << 24
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |bit: u8| self.error & 1 << bit != 0;
        let words = match () {
            () if self.status & 1 << 5 != 0 => "device fault: the drive is broken",
            () if has(6) => "uncorrectable error",
            () if has(4) => "address not found",
            () if has(7) => "transfer error on the cable",
            () if has(2) => "the drive aborted the command",
            () => "it didn't work, and the drive doesn't say why",
        };
        write!(f, "{words} (ATA status {:02x}h, error {:02x}h)", self.status, self.error)
    }
}

/// Why a command didn't work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The drive says so.
    #[error("{0}")]
    Drive(Registers),
    /// Who translates for it says so.
    #[error("{0}")]
    Translator(scsi::Failure),
}

/// What became of a command that travelled as [`Command::clothed`]. Translators that don't pass registers on give none.
pub(crate) fn outcome(completion: &scsi::Completion) -> Result<Option<Registers>, Failure> {
    match Registers::parse(&completion.sense) {
        Some(registers) if registers.failed() => Err(Failure::Drive(registers)),
        Some(registers) => Ok(Some(registers)),
        None => completion.check().map(|()| None).map_err(Failure::Translator),
    }
}

/// The password that this agent sets for an erase and that the erase removes.
///
/// It is no secret, and everybody's: a drive that loses power while it erases itself comes back locked, and whichever
/// agent finds it then has to be able to go on.
pub(crate) struct Password;

impl Password {
    pub(crate) const OURS: [u8; 32] = *b"drophammer erases this drive    ";

    /// The user's password, as a command's data. Where it's set, the master password's capability is high (word 0 bit 8 is
    /// 0): who has the maker's can unlock the drive as well.
    pub(crate) fn tell() -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[2..34].copy_from_slice(&Self::OURS);
        sector
    }

    pub(crate) fn erase(enhanced: bool) -> [u8; SECTOR_BYTES] {
        let mut sector = Self::tell();
        sector[0] = u8::from(enhanced) << 1;
        sector
    }
}

/// What SANITIZE STATUS EXT says (ACS-3, table 137).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SanitizeState {
    /// Nothing runs; `succeeded`: the last one that did.
    Idle { succeeded: bool },
    /// How far it is, in 65536ths.
    Running(u16),
    /// No sanitize before the next power-on.
    Frozen,
    /// The last one failed.
    Failed,
}

impl SanitizeState {
    pub(crate) fn of(outcome: Result<Option<Registers>, Failure>) -> Result<Self, SanitizeUnknown> {
        let registers = match outcome {
            Ok(registers) => registers.ok_or(SanitizeUnknown::NoRegisters)?,
            // The reason is in LBA bits 7:0: 1 is "unsuccessful", 0 isn't said.
            Err(Failure::Drive(registers)) if registers.lba & 0xff <= 1 => return Ok(Self::Failed),
            Err(failure) => return Err(SanitizeUnknown::Failure(failure)),
        };
        let has = |bit: u8| registers.count & 1 << bit != 0;
        Ok(match (has(14), has(13)) {
            #[expect(clippy::cast_possible_truncation, reason = "the progress is in LBA bits 15:0")]
            (true, _) => Self::Running(registers.lba as u16),
            (false, true) => Self::Frozen,
            (false, false) => Self::Idle { succeeded: has(15) },
        })
    }
}

/// Why nobody knows how a sanitize is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SanitizeUnknown {
    #[error("the controller doesn't pass on what the drive says about it; attach the drive to another one")]
    NoRegisters,
    #[error(transparent)]
    Failure(Failure),
}

/// Whatever a drive or a translator sends has a meaning and words.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    identify::fuzz(bytes);
    if let Some(written) = written(bytes) {
        assert!(written.commands >> 48 == 0 && written.data_units >> 48 == 0);
    }
    assert!(!has_statistics(bytes) || bytes.len() >= 10);
    let completion = scsi::Completion { status: 2, sense: bytes.to_vec(), transferred: 0 };
    let outcome = outcome(&completion);
    match &outcome {
        Ok(registers) => assert!(registers.is_none_or(|r| !r.failed() && r.lba >> 48 == 0 && r.lba_28() >> 28 == 0)),
        Err(failure) => assert!(!failure.to_string().is_empty()),
    }
    let _ = SanitizeState::of(outcome);
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
