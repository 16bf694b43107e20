//! What NVMe drives say of themselves and what they can be told: pages, logs, status codes and commands.
//!
//! Total functions: whatever a drive sends, the answer is a value. Fields are where the NVM Express Base Specification
//! 1.4 puts them (figures 245, 247, 194 and 469); later revisions only added to them.

use std::fmt;
use std::time::Duration;

use drophammer_protocol::inventory::Health;

use super::{QUICK, Sanitize, SanitizeKind, Written};

/// Every page of Identify is this long.
pub(crate) const IDENTIFY_BYTES: usize = 4096;
pub(crate) const SMART_BYTES: usize = 512;
pub(crate) const SANITIZE_LOG_BYTES: usize = 512;
/// The namespace id that means all of them.
pub(crate) const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// One admin command, as far as we use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) nsid: u32,
    pub(crate) cdw10: u32,
    pub(crate) cdw11: u32,
    pub(crate) timeout: Duration,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) status: Status,
    pub(crate) result: u32,
}

impl Completion {
    /// `Err` is what the drive answered instead of success.
    pub(crate) fn check(self) -> Result<(), Status> {
        if self.status.is_success() { Ok(()) } else { Err(self.status) }
    }
}

impl Command {
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const NAMESPACE_ATTACHMENT: u8 = 0x15;
    pub(crate) const FORMAT_NVM: u8 = 0x80;
    pub(crate) const SECURITY_SEND: u8 = 0x81;
    pub(crate) const SECURITY_RECEIVE: u8 = 0x82;
    pub(crate) const SANITIZE: u8 = 0x84;

    fn admin(opcode: u8) -> Self {
        Self { opcode, nsid: 0, cdw10: 0, cdw11: 0, timeout: QUICK }
    }

    pub(crate) fn identify(page: IdentifyPage) -> Self {
        let (cns, nsid) = match page {
            IdentifyPage::Namespace(nsid) => (0x00, nsid),
            IdentifyPage::Controller => (0x01, 0),
            IdentifyPage::ActiveNamespaces => (0x02, 0),
            IdentifyPage::AllocatedNamespaces => (0x10, 0),
        };
        Self { nsid, cdw10: cns, ..Self::admin(Self::IDENTIFY) }
    }

    /// Get Log Page, SMART / Health Information, for the whole controller.
    pub(crate) fn smart() -> Self {
        Self::log(0x02, SMART_BYTES)
    }

    /// Get Log Page, Sanitize Status.
    pub(crate) fn sanitize_log() -> Self {
        Self::log(0x81, SANITIZE_LOG_BYTES)
    }

    fn log(page: u32, bytes: usize) -> Self {
        // Bits 31:16 are the number of dwords, counted from 0.
        let dwords = u32::try_from(bytes / 4).unwrap_or(1).saturating_sub(1);
        Self { nsid: ALL_NAMESPACES, cdw10: (dwords << 16) | page, ..Self::admin(Self::GET_LOG_PAGE) }
    }

    /// Format NVM that keeps the namespace's LBA format, metadata and protection settings as they are.
    pub(crate) fn format(nsid: u32, keep: LbaFormat, erase: SecureErase, timeout: Duration) -> Self {
        let ses = match erase {
            SecureErase::UserData => 1,
            SecureErase::Crypto => 2,
        };
        Self { nsid, cdw10: keep.cdw10() | (ses << 9), timeout, ..Self::admin(Self::FORMAT_NVM) }
    }

    /// Sanitize. The drive answers at once and goes on by itself; see [`SanitizeLog`]. After a failure the drive may be
    /// told to take other commands again (AUSE), so that the next method has its chance.
    pub(crate) fn sanitize(action: SanitizeAction) -> Self {
        const UNRESTRICTED_EXIT: u32 = 1 << 3;
        const ONE_PASS: u32 = 1 << 4;
        const KEEP_ALLOCATED: u32 = 1 << 9;
        let cdw10 = match action {
            SanitizeAction::ExitFailure => 1,
            SanitizeAction::Block => 2 | UNRESTRICTED_EXIT,
            // What was overwritten stays addressable, so that it can be read and compared.
            SanitizeAction::Overwrite => 3 | UNRESTRICTED_EXIT | ONE_PASS | KEEP_ALLOCATED,
            SanitizeAction::Crypto => 4 | UNRESTRICTED_EXIT,
        };
        // The pattern of an overwrite is dword 11: zeros.
        Self { cdw10, ..Self::admin(Self::SANITIZE) }
    }

    /// Attaches a namespace to this controller; the list of controllers is the data.
    pub(crate) fn attach(nsid: u32) -> Self {
        Self { nsid, ..Self::admin(Self::NAMESPACE_ATTACHMENT) }
    }

    pub(crate) fn security_send(protocol: u8, specific: u16, bytes: u32) -> Self {
        Self { cdw10: security(protocol, specific), cdw11: bytes, ..Self::admin(Self::SECURITY_SEND) }
    }

    pub(crate) fn security_receive(protocol: u8, specific: u16, bytes: u32) -> Self {
        Self { cdw10: security(protocol, specific), cdw11: bytes, ..Self::admin(Self::SECURITY_RECEIVE) }
    }
}

fn security(protocol: u8, specific: u16) -> u32 {
    u32::from(protocol) << 24 | u32::from(specific) << 8
}

/// The data of a Namespace Attachment: one controller.
pub(crate) fn controller_list(controller: u16) -> Vec<u8> {
    let mut list = vec![0; IDENTIFY_BYTES];
    list.splice(..4, [1, 0].into_iter().chain(controller.to_le_bytes()));
    list
}

/// SES of Format NVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecureErase {
    UserData,
    Crypto,
}

/// SANACT of Sanitize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SanitizeAction {
    /// Lets a drive whose sanitize failed take commands again.
    ExitFailure,
    Block,
    Overwrite,
    Crypto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdentifyPage {
    Namespace(u32),
    Controller,
    /// Namespaces that are attached to the controller.
    ActiveNamespaces,
    /// Namespaces that exist, attached or not.
    AllocatedNamespaces,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Controller {
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) firmware: String,
    /// CNTLID.
    pub(crate) id: u16,
    oacs: u16,
    fna: u8,
    sanicap: u32,
}

impl Controller {
    /// `None` if the page is short or carries no serial: then nobody knows what drive this is.
    pub(crate) fn parse(page: &[u8]) -> Option<Self> {
        let serial = text(page.get(4..24)?);
        if serial.is_empty() {
            return None;
        }
        Some(Self {
            serial,
            model: text(page.get(24..64)?),
            firmware: text(page.get(64..72)?),
            id: u16::from_le_bytes(array(page, 78)?),
            oacs: u16::from_le_bytes(array(page, 256)?),
            sanicap: u32::from_le_bytes(array(page, 328)?),
            fna: *page.get(524)?,
        })
    }

    /// Security Send and Receive, which is how TCG Opal is spoken.
    pub(crate) fn has_security(&self) -> bool {
        self.oacs & 1 << 0 != 0
    }

    pub(crate) fn can_format(&self) -> bool {
        self.oacs & 1 << 1 != 0
    }

    /// Whether namespaces can be created and attached, so that some may exist that nobody sees.
    pub(crate) fn can_manage_namespaces(&self) -> bool {
        self.oacs & 1 << 3 != 0
    }

    pub(crate) fn formats_all_namespaces(&self) -> bool {
        self.fna & 1 << 0 != 0
    }

    pub(crate) fn erases_all_namespaces(&self) -> bool {
        self.fna & 1 << 1 != 0
    }

    pub(crate) fn can_crypto_erase(&self) -> bool {
        self.fna & 1 << 2 != 0
    }

    pub(crate) fn refuses_broadcast_format(&self) -> bool {
        self.fna & 1 << 3 != 0
    }

    /// SANICAP.
    pub(crate) fn sanitize(&self) -> Sanitize {
        let has = |bit: u32| self.sanicap & 1 << bit != 0;
        Sanitize { crypto: has(0), block: has(1), overwrite: has(2) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) format: LbaFormat,
    pub(crate) deallocated: Deallocated,
}

/// What blocks read as that hold nothing, as DLFEAT says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Deallocated {
    #[default]
    Unsaid,
    Zeroes,
    Ones,
}

/// How a namespace is formatted now: FLBAS and DPS, as Identify Namespace has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LbaFormat {
    flbas: u8,
    dps: u8,
}

impl LbaFormat {
    /// The fields of Format NVM's dword 10 that repeat this format: LBAFL, MSET, PI, PIL and LBAFU.
    fn cdw10(self) -> u32 {
        let (flbas, dps) = (u32::from(self.flbas), u32::from(self.dps));
        (flbas & 0xf) | (flbas >> 4 & 1) << 4 | (dps & 0b111) << 5 | (dps >> 3 & 1) << 8 | (flbas >> 5 & 0b11) << 12
    }

    fn index(self) -> usize {
        usize::from((self.flbas & 0xf) | (self.flbas >> 5 & 0b11) << 4)
    }
}

impl Namespace {
    /// `None` if the page is short, or describes no namespace (all zeros: inactive), or one with impossible blocks.
    pub(crate) fn parse(page: &[u8]) -> Option<Self> {
        let blocks = u64::from_le_bytes(array(page, 0)?);
        let format = LbaFormat { flbas: *page.get(26)?, dps: *page.get(29)? };
        let [_, _, lbads, _]: [u8; 4] = array(page, 128 + 4 * format.index())?;
        // LBADS is a power of two of at least 512; 2^16 is the most that any kernel takes.
        let block_bytes = (9..=16).contains(&lbads).then(|| 1u32 << lbads)?;
        let size_bytes = blocks.checked_mul(u64::from(block_bytes)).filter(|&size| size > 0)?;
        let deallocated = match page.get(33)? & 0b111 {
            1 => Deallocated::Zeroes,
            2 => Deallocated::Ones,
            _ => Deallocated::Unsaid,
        };
        Some(Self { size_bytes, block_bytes, format, deallocated })
    }
}

/// Ids in a namespace list: ascending, ended by a zero or by the end of the page.
pub(crate) fn namespace_list(page: &[u8]) -> Vec<u32> {
    let (ids, _) = page.as_chunks::<4>();
    ids.iter().map(|id| u32::from_le_bytes(*id)).take_while(|&id| id != 0).take(IDENTIFY_BYTES / 4).collect()
}

/// The SMART / Health Information log.
pub(crate) fn health(page: &[u8]) -> Option<Health> {
    let kelvin = i32::from(u16::from_le_bytes(array(page, 1)?));
    Some(Health {
        critical_warning: *page.first()?,
        temperature_celsius: kelvin - 273,
        available_spare: *page.get(3)?,
        percentage_used: *page.get(5)?,
        power_on_hours: counter(page, 128)?,
        media_errors: counter(page, 160)?,
    })
}

/// From the same log: Data Units Written, in thousands of 512 bytes, and Host Write Commands.
pub(crate) fn written(page: &[u8]) -> Option<Written> {
    Some(Written { data_units: counter(page, 48)?, commands: counter(page, 80)? })
}

/// The counters have 128 bits; a drive whose upper half isn't zero has counted further than anything built.
fn counter(page: &[u8], at: usize) -> Option<u64> {
    array(page, at).map(u128::from_le_bytes).map(|n| u64::try_from(n).unwrap_or(u64::MAX))
}

/// The Sanitize Status log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SanitizeLog {
    pub(crate) state: SanitizeState,
    /// What the last sanitize was; `None` if there was none.
    pub(crate) action: Option<SanitizeAction>,
    /// No user data was written since the last one.
    pub(crate) untouched_since: bool,
    /// How long each kind takes, as the drive reckons.
    pub(crate) block: Option<Duration>,
    pub(crate) overwrite: Option<Duration>,
    pub(crate) crypto: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SanitizeState {
    Never,
    Done,
    /// How far it is, in 65536ths.
    Running(u16),
    Failed,
}

impl SanitizeLog {
    /// `None` if the page is short or says what no revision knows.
    pub(crate) fn parse(page: &[u8]) -> Option<Self> {
        let status = u16::from_le_bytes(array(page, 2)?);
        let state = match status & 0b111 {
            0 => SanitizeState::Never,
            // 4: done, and deallocated although it wasn't asked for.
            1 | 4 => SanitizeState::Done,
            2 => SanitizeState::Running(u16::from_le_bytes(array(page, 0)?)),
            3 => SanitizeState::Failed,
            _ => return None,
        };
        let action = match u32::from_le_bytes(array(page, 4)?) & 0b111 {
            2 => Some(SanitizeAction::Block),
            3 => Some(SanitizeAction::Overwrite),
            4 => Some(SanitizeAction::Crypto),
            _ => None,
        };
        let seconds = |at: usize| {
            let told = u32::from_le_bytes(array(page, at)?);
            Some((told != u32::MAX).then(|| Duration::from_secs(told.into())))
        };
        Some(Self {
            state,
            action,
            untouched_since: status & 1 << 8 != 0,
            overwrite: seconds(8)?,
            block: seconds(12)?,
            crypto: seconds(16)?,
        })
    }

    /// How long the drive says that it takes.
    pub(crate) fn estimate(&self, kind: SanitizeKind) -> Option<Duration> {
        match kind {
            SanitizeKind::Crypto => self.crypto,
            SanitizeKind::Block => self.block,
            SanitizeKind::Overwrite => self.overwrite,
        }
    }
}

/// What a drive answered: the status field of a completion without its phase bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

impl Status {
    pub(crate) fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }
}

impl std::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.0 >> 8 & 0b111, self.0 & 0xff);
        let words = match (kind, code) {
            (0, 0x00) => "success",
            (0, 0x01) => "the drive doesn't know this command",
            (0, 0x02) => "the drive doesn't accept a field of this command",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "aborted because power was lost",
            (0, 0x06) => "internal error of the drive",
            (0, 0x07) => "aborted on request",
            (0, 0x0b) => "invalid namespace or format",
            (0, 0x0c) => "command sequence error",
            (0, 0x15) => "operation denied (the drive is locked by a password or TCG Opal)",
            (0, 0x1c) => "the last sanitize failed, and the drive takes nothing else before one succeeds",
            (0, 0x1d) => "the drive is busy sanitizing",
            (0, 0x20) => "the namespace is write-protected",
            (0, 0x21) => "interrupted; the drive asks to try again later",
            (0, 0x22) => "transient transport error",
            (0, 0x80) => "block address out of range",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "the namespace isn't ready",
            (0, 0x83) => "another host holds a reservation",
            (0, 0x84) => "the drive is busy formatting",
            (1, 0x0a) => "the drive doesn't offer this format",
            (1, 0x0f) => "a reset is needed first",
            (1, 0x80) => "conflicting attributes",
            (1, 0x82) => "the drive only reads",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            (2, 0x86) => "access denied",
            (3, _) => "path error",
            (7, _) => "a status of the vendor's own",
            _ => "a status that this agent has no words for",
        };
        write!(f, "{words} (NVMe status type {kind}h, code {code:02x}h)")
    }
}

fn array<const N: usize>(page: &[u8], at: usize) -> Option<[u8; N]> {
    page.get(at..)?.first_chunk().copied()
}

/// Text fields are ASCII, padded with blanks; some drives pad with zeros.
fn text(field: &[u8]) -> String {
    let printable: String = field.iter().map(|&b| if b.is_ascii_graphic() { char::from(b) } else { ' ' }).collect();
    printable.trim().to_owned()
}

/// Whatever a drive sends: a size that is one, and a format command that sets nothing but what it is to set.
#[cfg(fuzzing)]
pub(crate) fn fuzz(page: &[u8]) {
    if let Some(controller) = Controller::parse(page) {
        assert!(!controller.serial.is_empty());
        let _ = (controller.sanitize(), controller.can_format());
    }
    let _ = (health(page), written(page));
    if let Some(SanitizeLog { state: SanitizeState::Running(done), .. }) = SanitizeLog::parse(page) {
        assert_eq!(page.first_chunk().map(|done| u16::from_le_bytes(*done)), Some(done));
    }
    assert!(namespace_list(page).len() <= IDENTIFY_BYTES / 4);
    if let Some(namespace) = Namespace::parse(page) {
        assert!(namespace.size_bytes > 0 && namespace.block_bytes.is_power_of_two());
        let command = Command::format(1, namespace.format, SecureErase::Crypto, QUICK);
        assert_eq!((command.cdw10 >> 14, command.cdw10 >> 9 & 0b111), (0, 2));
    }
    if let Some(status) = page.first_chunk() {
        let status = Status(u16::from_le_bytes(*status));
        assert!(!status.to_string().is_empty());
    }
}

#[cfg(test)]
pub(crate) mod fixtures;

#[cfg(test)]
mod tests;
