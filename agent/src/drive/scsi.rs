//! The language of SCSI, as far as disks are erased with it: commands, and the pages in which a disk says what it is.
//!
//! Total functions: whatever a drive sends, the answer is a value. Layouts are those of SPC-4 and SBC-3.

mod sense;

use std::time::Duration;

use super::{QUICK, SanitizeKind, rotation, typed};

pub(crate) use sense::{Failure, Sense, descriptor};

/// Enough for every page that is asked for here, and the most that a six-byte INQUIRY of old drives can carry.
pub(crate) const PAGE_BYTES: u8 = 252;
pub(crate) const CAPACITY_BYTES: u8 = 32;
const CAPACITY_10_BYTES: usize = 8;
const ZEROS_BYTES: u8 = 8;

/// A command descriptor block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) cdb: Vec<u8>,
    pub(crate) timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    /// 0: good; 2: look at the sense data.
    pub(crate) status: u8,
    pub(crate) sense: Vec<u8>,
    /// Bytes of data that really went either way.
    pub(crate) transferred: usize,
}

impl Command {
    pub(crate) const TEST_UNIT_READY: u8 = 0x00;
    pub(crate) const REQUEST_SENSE: u8 = 0x03;
    pub(crate) const INQUIRY: u8 = 0x12;
    pub(crate) const READ_CAPACITY_10: u8 = 0x25;
    pub(crate) const SANITIZE: u8 = 0x48;
    pub(crate) const ATA_PASS_THROUGH_16: u8 = 0x85;
    pub(crate) const READ_16: u8 = 0x88;
    pub(crate) const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub(crate) const SECURITY_PROTOCOL_IN: u8 = 0xa2;
    pub(crate) const MAINTENANCE_IN: u8 = 0xa3;
    pub(crate) const SECURITY_PROTOCOL_OUT: u8 = 0xb5;

    fn quick(cdb: &[u8]) -> Self {
        Self { cdb: cdb.to_vec(), timeout: QUICK }
    }

    pub(crate) fn test_unit_ready() -> Self {
        Self::quick(&[Self::TEST_UNIT_READY, 0, 0, 0, 0, 0])
    }

    /// What it's busy with, as fixed format sense data among the data.
    pub(crate) fn request_sense() -> Self {
        Self::quick(&[Self::REQUEST_SENSE, 0, 0, 0, PAGE_BYTES, 0])
    }

    /// A page of vital product data.
    pub(crate) fn inquiry(page: Page) -> Self {
        Self::quick(&[Self::INQUIRY, 1, page.code(), 0, PAGE_BYTES, 0])
    }

    /// READ CAPACITY (10), for drives that don't know the long one.
    pub(crate) fn capacity_10() -> Self {
        Self::quick(&[Self::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// READ CAPACITY (16)
    pub(crate) fn capacity_16() -> Self {
        const READ_CAPACITY: u8 = 0x10;
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (Self::SERVICE_ACTION_IN_16, READ_CAPACITY, CAPACITY_BYTES);
        Self::quick(&cdb)
    }

    /// REPORT SUPPORTED OPERATION CODES about this one way to sanitize.
    pub(crate) fn reports_sanitize(kind: SanitizeKind) -> Self {
        const SUPPORTED_CODES: u8 = 0x0c;
        const WITH_SERVICE_ACTION: u8 = 0b010;
        let mut cdb = [0; 12];
        (cdb[0], cdb[1], cdb[2]) = (Self::MAINTENANCE_IN, SUPPORTED_CODES, WITH_SERVICE_ACTION);
        (cdb[3], cdb[5], cdb[9]) = (Self::SANITIZE, service_action(kind), PAGE_BYTES);
        Self::quick(&cdb)
    }

    /// SANITIZE. The drive answers at once (IMMED) and goes on by itself. After a failure it may be told to take other
    /// commands again (AUSE), so that the next method has its chance. An overwrite wants [`zeros`] as its data.
    pub(crate) fn sanitize(kind: SanitizeKind) -> Self {
        const IMMEDIATE: u8 = 1 << 7;
        const UNRESTRICTED_EXIT: u8 = 1 << 5;
        let length = if kind == SanitizeKind::Overwrite { ZEROS_BYTES } else { 0 };
        let how = IMMEDIATE | UNRESTRICTED_EXIT | service_action(kind);
        Self::quick(&[Self::SANITIZE, how, 0, 0, 0, 0, 0, 0, length, 0])
    }

    /// SANITIZE, EXIT FAILURE MODE
    pub(crate) fn leave_failed_sanitize() -> Self {
        const EXIT_FAILURE_MODE: u8 = 0x1f;
        Self::quick(&[Self::SANITIZE, EXIT_FAILURE_MODE, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// READ (16) with FUA: what is on the medium, not what a cache has.
    pub(crate) fn read_medium(block: u64, blocks: u32) -> Self {
        const FORCE_UNIT_ACCESS: u8 = 1 << 3;
        let mut cdb = vec![Self::READ_16, FORCE_UNIT_ACCESS];
        cdb.extend(block.to_be_bytes());
        cdb.extend(blocks.to_be_bytes());
        cdb.extend([0, 0]);
        Self { cdb, timeout: QUICK }
    }

    /// SECURITY PROTOCOL IN
    pub(crate) fn security_in(protocol: u8, specific: u16, bytes: u32) -> Self {
        Self::security(Self::SECURITY_PROTOCOL_IN, protocol, specific, bytes)
    }

    /// SECURITY PROTOCOL OUT
    pub(crate) fn security_out(protocol: u8, specific: u16, bytes: u32) -> Self {
        Self::security(Self::SECURITY_PROTOCOL_OUT, protocol, specific, bytes)
    }

    /// Lengths are in bytes (INC_512 is 0).
    fn security(opcode: u8, protocol: u8, specific: u16, bytes: u32) -> Self {
        let mut cdb = vec![opcode, protocol];
        cdb.extend(specific.to_be_bytes());
        cdb.extend([0, 0]);
        cdb.extend(bytes.to_be_bytes());
        cdb.extend([0, 0]);
        Self { cdb, timeout: QUICK }
    }
}

/// SBC-3, table 88.
fn service_action(kind: SanitizeKind) -> u8 {
    match kind {
        SanitizeKind::Overwrite => 0x01,
        SanitizeKind::Block => 0x02,
        SanitizeKind::Crypto => 0x03,
    }
}

/// The parameters of an overwriting sanitize: one pass of a pattern of zeros. SAT wants four bytes of pattern.
pub(crate) fn zeros() -> [u8; ZEROS_BYTES as usize] {
    [1, 0, 0, 4, 0, 0, 0, 0]
}

/// Vital product data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Supported,
    Serial,
    /// That an ATA drive is behind this, and what it said of itself.
    AtaInformation,
    Characteristics,
}

impl Page {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Supported => 0x00,
            Self::Serial => 0x80,
            Self::AtaInformation => 0x89,
            Self::Characteristics => 0xb1,
        }
    }

    /// What the page says behind its header of four bytes. `None` if it's another page.
    pub(crate) fn content(self, page: &[u8]) -> Option<&[u8]> {
        let &[_, code, high, low, ref rest @ ..] = page else { return None };
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        if code == self.code() { rest.get(..length) } else { None }
    }
}

/// Whether the list of pages names this one.
pub(crate) fn has_page(list: &[u8], page: Page) -> bool {
    Page::Supported.content(list).is_some_and(|codes| codes.contains(&page.code()))
}

/// The serial number of page 80h, without what can't be typed.
pub(crate) fn serial(page: &[u8]) -> Option<String> {
    let serial = typed(Page::Serial.content(page)?);
    if serial.is_empty() { None } else { Some(serial) }
}

/// How fast it turns, from page B1h. `None` if it doesn't, or doesn't say.
pub(crate) fn rotations_per_minute(page: &[u8]) -> Option<u16> {
    rotation(u16::from_be_bytes(*Page::Characteristics.content(page)?.first_chunk()?))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
}

impl Capacity {
    /// READ CAPACITY (16); `None` if the page is short or describes impossible blocks.
    pub(crate) fn parse(page: &[u8]) -> Option<Self> {
        let last = u64::from_be_bytes(*page.first_chunk()?);
        Self::of(last, u32::from_be_bytes(*page.get(8..)?.first_chunk()?))
    }

    /// READ CAPACITY (10); `None` as well if the drive has more blocks than it can say in this way.
    pub(crate) fn parse_10(page: &[u8]) -> Option<Self> {
        let page = page.first_chunk::<CAPACITY_10_BYTES>()?;
        let last = u32::from_be_bytes(*page.first_chunk()?);
        if last == u32::MAX { None } else { Self::of(last.into(), u32::from_be_bytes(*page.last_chunk()?)) }
    }

    fn of(last: u64, block_bytes: u32) -> Option<Self> {
        let possible = block_bytes.is_power_of_two() && (512..=65536).contains(&block_bytes);
        let size_bytes = last.checked_add(1)?.checked_mul(u64::from(block_bytes))?;
        possible.then_some(Self { size_bytes, block_bytes })
    }
}

/// Whether REPORT SUPPORTED OPERATION CODES says that a command is there as the standard has it. What is there in the
/// vendor's own manner doesn't count.
pub(crate) fn is_supported(report: &[u8]) -> bool {
    const CONFORMING: u8 = 0b011;
    report.get(1).is_some_and(|byte| byte & 0b111 == CONFORMING)
}

/// Whatever a drive sends: sizes that are some, serials that can be typed, and words for everything.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Some(serial) = serial(bytes) {
        assert!(!serial.is_empty() && serial.bytes().all(|b| b.is_ascii_graphic()));
    }
    for capacity in [Capacity::parse(bytes), Capacity::parse_10(bytes)].into_iter().flatten() {
        assert!(capacity.size_bytes > 0 && capacity.size_bytes % u64::from(capacity.block_bytes) == 0);
    }
    let _ = (rotations_per_minute(bytes), is_supported(bytes));
    let _ = has_page(bytes, Page::AtaInformation);
    if let Some(sense) = Sense::parse(bytes) {
        assert!(sense.key <= 0xf && !sense.to_string().is_empty());
    }
    assert!(descriptor(bytes, 0x09).is_none_or(|d| d.len() >= 2 && d.starts_with(&[0x09])));
}

#[cfg(test)]
mod tests;
