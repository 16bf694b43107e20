//! Pages of ATA drives, word by word, for the tests of whoever talks to them.

use super::SECTOR_BYTES;

/// A page of IDENTIFY DEVICE, or of its like.
#[derive(Clone, Debug)]
pub(crate) struct Words([u16; SECTOR_BYTES / 2]);

impl Words {
    pub(crate) fn new() -> Self {
        Self([0; SECTOR_BYTES / 2])
    }

    /// By ACS-3, table 45: a disk of 512-byte sectors with 48 bits of address, and nothing else.
    pub(crate) fn disk(serial: &str, sectors: u64, rotation: u16) -> Self {
        let mut page = Self::new();
        page.text(10, &format!("{serial:<20}")).text(23, "FW01    ").text(27, &format!("{:<40}", "Simulated ATA Disk"));
        page.set(0, 0x0040).set(83, 1 << 14 | 1 << 10).set(84, 1 << 14).set(87, 1 << 14).set(106, 1 << 14);
        page.number(60, 2, sectors.min(0x0fff_ffff)).number(100, 4, sectors).set(217, rotation);
        page
    }

    pub(crate) fn set(&mut self, at: usize, word: u16) -> &mut Self {
        self.0[at] = word;
        self
    }

    pub(crate) fn bits(&mut self, at: usize, bits: &[(u8, bool)]) -> &mut Self {
        self.0[at] |= bits.iter().map(|(bit, on)| u16::from(*on) << bit).sum::<u16>();
        self
    }

    /// The lowest word first.
    pub(crate) fn number(&mut self, at: usize, words: usize, number: u64) -> &mut Self {
        for word in 0..words {
            #[expect(clippy::cast_possible_truncation, reason = "one word at a time")]
            self.set(at + word, (number >> (16 * word)) as u16);
        }
        self
    }

    /// The first of two letters is in the upper half.
    pub(crate) fn text(&mut self, at: usize, text: &str) -> &mut Self {
        for (word, letters) in text.as_bytes().chunks(2).enumerate() {
            self.set(at + word, u16::from_be_bytes([letters[0], letters[1]]));
        }
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// With the integrity word: the bytes of the page add up to nothing.
    pub(crate) fn signed(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes[510] = 0xa5;
        let sum = bytes[..511].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[511] = sum.wrapping_neg();
        bytes
    }
}

/// An SSD: words 0 to 59 are those of the Seagate 600 SSD (product manual, revision A, table 9: no sanitize but block
/// erase), the others what ACS-3 has for a drive of 240 GB.
pub(crate) fn ssd() -> Words {
    let mut page = Words::new();
    page.set(0, 0x0040).set(1, 0x3fff).set(2, 0xc837).set(3, 0x0010).set(6, 0x003f).set(47, 0x8010).set(48, 0x4000);
    page.set(49, 0x2f00).set(50, 0x4000).set(53, 0x0006).set(54, 0x3fff).set(55, 0x0010).set(56, 0x003f);
    page.set(57, 0xfc10).set(58, 0x00fb).set(59, 0x9110);
    page.text(10, "            Z1F0A1B2").text(23, "B660    ").text(27, &format!("{:<40}", "ST240HM000-1G5142"));
    page.number(60, 2, 0x0fff_ffff).set(69, 1 << 14 | 1 << 5).set(75, 31);
    page.set(82, 0x346b).set(83, 0x7d09).set(84, 0x6163).set(85, 0x3469).set(86, 0xbc01).set(87, 0x6163);
    page.set(89, 1).set(90, 1).set(92, 0xfffe).number(100, 4, 468_862_128).set(106, 0x6003);
    page.number(108, 4, 0xb2a1_0f0c_0050_5000).set(128, 0x0021).set(217, 0x0001);
    page
}

/// A hard disk of 10 TB: words 0 to 59 are those of the Seagate BarraCuda Pro (product manual, revision A, table 13: no
/// sanitize but overwrite), the others what ACS-3 has for a drive that was frozen at power-on and takes long to erase.
pub(crate) fn hard_disk() -> Words {
    let mut page = Words::new();
    page.set(0, 0x0c5a).set(1, 16383).set(2, 0xc837).set(3, 16).set(6, 0x003f).set(47, 0x8010).set(48, 0x4000);
    page.set(49, 0x2f00).set(50, 0x4000).set(59, 0x5d10);
    page.text(10, "            ZA20ABCD").text(23, "CC93    ").text(27, &format!("{:<40}", "ST10000DM0004-1ZC101"));
    page.number(60, 2, 0x0fff_ffff).set(75, 31);
    page.set(82, 0x306b).set(83, 0x7561).set(84, 0x6173).set(85, 0x3069).set(86, 0xb441).set(87, 0x6173);
    page.set(89, 0x8000 | 498).set(90, 0x8000 | 498).set(92, 0xfffe).number(100, 4, 19_532_873_728).set(106, 0x6003);
    page.set(119, 0x41de)
        .set(120, 0x409c)
        .set(128, 0x0029)
        .set(217, 7200)
        .number(230, 4, 19_532_873_728)
        .set(69, 1 << 3);
    page
}

/// DEVICE CONFIGURATION IDENTIFY, as the Hitachi Travelstar C4K40 has it (specification, table 7.5).
pub(crate) fn factory_configuration(highest: u64) -> Vec<u8> {
    let mut page = Words::new();
    page.set(0, 2).set(1, 7).set(2, 0x3f).number(3, 4, highest).set(7, 0x198f);
    page.signed()
}

/// ACS-3, A.5.4: eight bytes for each statistic.
pub(crate) fn general_statistics(write_commands: u64, sectors_written: u64) -> Vec<u8> {
    const SUPPORTED_AND_VALID: u64 = 0b11 << 62;
    let mut page = vec![0; SECTOR_BYTES];
    page[..3].copy_from_slice(&[1, 0, 1]);
    for (at, count) in [(8, 12), (16, 4711), (24, sectors_written), (32, write_commands)] {
        page[at..at + 8].copy_from_slice(&(SUPPORTED_AND_VALID | count).to_le_bytes());
    }
    page
}

/// ACS-3, A.2: the number of pages of each log; here of one.
pub(crate) fn log_directory(pages_of_statistics: u16) -> Vec<u8> {
    let mut page = vec![0; SECTOR_BYTES];
    page[0] = 1;
    page[8..10].copy_from_slice(&pages_of_statistics.to_le_bytes());
    page
}
