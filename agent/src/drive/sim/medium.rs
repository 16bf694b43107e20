//! What a simulated drive keeps, and what it does to it when it's told to erase.

use std::io;
use std::ops::Range;

/// How much of an erase really happens. All but the first report success all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lie {
    #[default]
    None,
    KeepsAll,
    /// The last so many bytes stay.
    KeepsTail(usize),
    KeepsHead(usize),
    /// One sector that the host wrote stays, this one in order.
    KeepsOneWritten(usize),
    /// What the host wrote since power-on goes, and the last tenant's data stays.
    KeepsOld,
    /// The medium is erased, and a cache in front of it goes on answering.
    CacheKeeps,
    /// The cache in front of the medium is erased, and the medium isn't.
    MediumKeeps,
}

/// All of them, for tables.
pub(crate) const LIES: [(&str, Lie); 9] = [
    ("keeps everything", Lie::KeepsAll),
    ("keeps the tail", Lie::KeepsTail(4096)),
    ("keeps the last sector", Lie::KeepsTail(512)),
    ("keeps the head", Lie::KeepsHead(512)),
    ("keeps one sector of the first canary", Lie::KeepsOneWritten(0)),
    ("keeps one sector of some canary", Lie::KeepsOneWritten(77)),
    ("keeps the old tenant's data", Lie::KeepsOld),
    ("goes on answering from its cache", Lie::CacheKeeps),
    ("erases its cache only", Lie::MediumKeeps),
];

/// What an erase leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    Fill(u8),
    /// Another key: noise.
    Noise,
}

/// The blocks of one namespace, full of old content.
#[derive(Clone, Debug)]
pub(crate) struct Medium {
    bytes: Vec<u8>,
    /// What a cache shows instead.
    cache: Option<Vec<u8>>,
    written: Vec<Range<usize>>,
    pub(crate) drops_writes: bool,
    noise: u64,
}

const SECTOR: usize = 512;

impl Medium {
    /// With old content, different in each sector and in each medium.
    pub(crate) fn full(size: usize, seed: u64) -> Self {
        let bytes =
            (0..size as u64 / 8).flat_map(|n| (n ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        Self { bytes: bytes.collect(), cache: None, written: Vec::new(), drops_writes: false, noise: seed }
    }

    pub(crate) fn filled(size: usize, byte: u8) -> Self {
        Self { bytes: vec![byte; size], ..Self::full(0, 1) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let shown = self.cache.as_ref().unwrap_or(&self.bytes);
        buffer.copy_from_slice(&shown[range(buffer.len(), offset)]);
        Ok(())
    }

    pub(crate) fn read_medium(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.copy_from_slice(&self.bytes[range(buffer.len(), offset)]);
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) {
        let at = range(bytes.len(), offset);
        if !self.drops_writes {
            self.bytes[at.clone()].copy_from_slice(bytes);
        }
        self.written.push(at);
    }

    pub(crate) fn was_written(&self) -> bool {
        !self.written.is_empty()
    }

    /// What was written since is no different from what was there before.
    pub(crate) fn power_cycle(&mut self) {
        self.written.clear();
        self.cache = None;
    }

    /// Erases `part` of it, from the beginning, as `lie` has it.
    pub(crate) fn erase(&mut self, leaves: Leaves, lie: Lie, part: f64) {
        let before = self.bytes.clone();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small"
        )]
        let end = (self.len() as f64 * part) as usize;
        self.fill(0..end, leaves);
        let keep = |medium: &mut Self, kept: Range<usize>| medium.bytes[kept.clone()].copy_from_slice(&before[kept]);
        let size = self.len();
        match lie {
            Lie::None => {}
            Lie::KeepsAll => keep(self, 0..size),
            Lie::KeepsTail(bytes) => keep(self, size - bytes..size),
            Lie::KeepsHead(bytes) => keep(self, 0..bytes),
            Lie::KeepsOneWritten(nth) => {
                if let Some(written) = self.written.get(nth % self.written.len().max(1)).cloned() {
                    keep(self, written.start..written.start + SECTOR);
                }
            }
            Lie::KeepsOld => {
                keep(self, 0..size);
                for written in self.written.clone() {
                    self.fill(written, leaves);
                }
            }
            Lie::CacheKeeps => self.cache = Some(before),
            Lie::MediumKeeps => {
                self.cache = Some(self.bytes.clone());
                self.bytes = before;
            }
        }
    }

    fn fill(&mut self, at: Range<usize>, leaves: Leaves) {
        match leaves {
            Leaves::Fill(byte) => self.bytes[at].fill(byte),
            Leaves::Noise => {
                for byte in &mut self.bytes[at] {
                    // xorshift64
                    self.noise |= 1;
                    self.noise ^= self.noise << 13;
                    self.noise ^= self.noise >> 7;
                    self.noise ^= self.noise << 17;
                    *byte = self.noise.to_le_bytes()[3];
                }
            }
        }
    }
}

fn range(length: usize, offset: u64) -> Range<usize> {
    let at = usize::try_from(offset).expect("a small drive");
    at..at + length
}
