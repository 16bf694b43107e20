//! IDENTIFY DEVICE and DEVICE CONFIGURATION IDENTIFY: what an ATA drive says it is (ACS-3, table 45; ATA8-ACS, table 29).

use std::time::Duration;

use super::SECTOR_BYTES;
use crate::drive::{Sanitize, rotation, typed};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) firmware: String,
    pub(crate) size_bytes: u64,
    /// The unit of its addresses.
    pub(crate) block_bytes: u32,
    pub(crate) rotations_per_minute: Option<u16>,
    pub(crate) sanitize: Sanitize,
    pub(crate) security: Option<Security>,
    /// TRUSTED SEND and RECEIVE, which is how TCG Opal is spoken.
    pub(crate) trusted: bool,
    /// READ LOG EXT.
    pub(crate) logs: bool,
    /// How long each kind of security erase takes, as the drive reckons: words 89 and 90.
    pub(crate) erase_takes: Option<Duration>,
    pub(crate) enhanced_erase_takes: Option<Duration>,
    /// 48 bits of address.
    pub(crate) long_addresses: bool,
    /// Feature sets that can hide a part of it: the host protected area, what came in its place, and the device
    /// configuration overlay.
    pub(crate) protected_area: bool,
    pub(crate) accessible_max: bool,
    pub(crate) configuration_overlay: bool,
}

/// The Security feature set, as word 128 has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Security {
    pub(crate) enhanced: bool,
    /// Firmware froze it at power-on: no security command until the next power-on.
    pub(crate) frozen: bool,
    /// Somebody's password is set.
    pub(crate) enabled: bool,
    pub(crate) locked: bool,
    /// Too many wrong passwords since power-on.
    pub(crate) expired: bool,
}

impl Identity {
    /// `None` if the page is short or damaged, isn't a disk's, has no serial, or describes impossible blocks: then nobody
    /// knows what drive this is.
    pub(crate) fn parse(page: &[u8]) -> Option<Self> {
        let page = Words::of(page)?;
        // Word 0 bit 15: a packet device. All ones: nobody answered.
        if page.has(0, 15) {
            return None;
        }
        let serial = typed(page.text(10, 20).as_bytes());
        let block_bytes = page.block_bytes();
        let size_bytes = page.sectors().checked_mul(u64::from(block_bytes)).filter(|&size| size > 0)?;
        let possible = block_bytes.is_power_of_two() && (512..=65536).contains(&block_bytes);
        let supported = |word, bit| page.is_valid(83) && page.has(word, bit);
        (possible && !serial.is_empty()).then(|| Self {
            serial,
            model: page.text(27, 47),
            firmware: page.text(23, 27),
            size_bytes,
            block_bytes,
            rotations_per_minute: rotation(page.word(217)),
            sanitize: page.sanitize(),
            security: supported(82, 1).then(|| page.security()).flatten(),
            trusted: page.is_valid(48) && page.has(48, 0),
            logs: page.is_valid(84) && page.has(84, 5),
            erase_takes: page.takes(89),
            enhanced_erase_takes: page.takes(90),
            long_addresses: supported(83, 10),
            protected_area: supported(82, 10),
            accessible_max: page.is_valid(119) && page.has(119, 8),
            configuration_overlay: supported(83, 11),
        })
    }
}

/// The highest sector of DEVICE CONFIGURATION IDENTIFY: words 3 to 6.
pub(crate) fn highest_factory_sector(page: &[u8]) -> Option<u64> {
    let page = Words::of(page)?;
    Some(page.number(3..7)).filter(|&highest| highest > 0)
}

/// A page of 256 words.
struct Words([u16; SECTOR_BYTES / 2]);

impl Words {
    /// `None` if it's short, or carries a checksum that isn't its own (word 255).
    fn of(page: &[u8]) -> Option<Self> {
        let page: &[u8; SECTOR_BYTES] = page.first_chunk()?;
        let (pairs, _) = page.as_chunks::<2>();
        let mut words = [0; SECTOR_BYTES / 2];
        words.iter_mut().zip(pairs).for_each(|(word, pair)| *word = u16::from_le_bytes(*pair));
        let sum = page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let signed = words.last().is_some_and(|word| word & 0xff == 0xa5);
        (!signed || sum == 0).then_some(Self(words))
    }

    fn word(&self, at: usize) -> u16 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn has(&self, word: usize, bit: u8) -> bool {
        self.word(word) >> bit & 1 == 1
    }

    /// Words that are only to be believed where bit 15 is 0 and bit 14 is 1. Word 83 speaks for 82 as well.
    fn is_valid(&self, word: usize) -> bool {
        self.word(word) >> 14 == 0b01
    }

    /// The lowest word first.
    fn number(&self, words: std::ops::Range<usize>) -> u64 {
        words.rev().fold(0, |number, at| number << 16 | u64::from(self.word(at)))
    }

    /// Two letters a word, the first in the upper half.
    fn text(&self, from: usize, to: usize) -> String {
        let letters = (from..to).flat_map(|at| self.word(at).to_be_bytes());
        let printable: String = letters.map(|b| if b.is_ascii_graphic() { char::from(b) } else { ' ' }).collect();
        printable.trim().to_owned()
    }

    /// Words 106, 117 and 118.
    fn block_bytes(&self) -> u32 {
        let longer = self.is_valid(106) && self.has(106, 12);
        let words = if longer { self.number(117..119) } else { 256 };
        u32::try_from(words).unwrap_or(0).saturating_mul(2)
    }

    /// How many sectors can be addressed: words 60 and 61, 100 to 103, or 230 to 233.
    fn sectors(&self) -> u64 {
        let (long, longest) = (self.is_valid(83) && self.has(83, 10), self.has(69, 3));
        let told = if longest { self.number(230..234) } else { 0 };
        let told = if told == 0 && long { self.number(100..104) } else { told };
        if told == 0 { self.number(60..62) } else { told }
    }

    /// Word 59.
    fn sanitize(&self) -> Sanitize {
        let supported = |bit| self.has(59, 12) && self.has(59, bit);
        Sanitize { crypto: supported(13), overwrite: supported(14), block: supported(15) }
    }

    /// Word 128, which repeats in bit 0 what word 82 says.
    fn security(&self) -> Option<Security> {
        let is = |bit| self.has(128, bit);
        is(0).then(|| Security { enabled: is(1), locked: is(2), frozen: is(3), expired: is(4), enhanced: is(5) })
    }

    /// Pairs of minutes, in 8 bits, or in 15 where bit 15 says so. 0 says nothing, and the highest number nothing but
    /// that it takes longer.
    fn takes(&self, word: usize) -> Option<Duration> {
        let most = if self.has(word, 15) { 0x7fff } else { 0xff };
        let pairs = self.word(word) & most;
        (pairs > 0 && pairs < most).then(|| Duration::from_secs(u64::from(pairs) * 120))
    }
}

/// Whatever a drive sends: a serial that can be typed, and a size that is one.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Some(identity) = Identity::parse(bytes) {
        assert!(!identity.serial.is_empty() && identity.serial.bytes().all(|b| b.is_ascii_graphic()));
        assert!(identity.size_bytes > 0 && identity.size_bytes % u64::from(identity.block_bytes) == 0);
    }
    assert!(highest_factory_sector(bytes) != Some(0));
}
