//! The proof: what is remembered and planted before an erase, and looked for after it.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use drophammer_protocol::certificate::{Promise, Verification};
use drophammer_protocol::erase::Depth;

use super::canary::{Eye, Places, Trace};
use super::methods::{Expectation, Progress, part};
use super::probe::{Probed, Volume};
use crate::drive::{Buffer, Drive};
use crate::signatures;

/// How long samples are taken before the first erase. What a slow drive can't do in this time, it does in fewer rounds.
const SAMPLING: Duration = Duration::from_millis(700);
/// At once, where everything is read.
const READ_BYTES: usize = 4 << 20;

/// What is known of a drive's contents before an erase.
#[derive(Debug)]
pub(super) struct Evidence {
    eye: Eye,
    volumes: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    places: Places,
    samples: Vec<Trace>,
    canaries: Vec<Trace>,
}

/// What was found after an erase.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) verification: Verification,
    /// The first byte of the first block that isn't as it has to be.
    pub(super) first_wrong: Option<u64>,
}

impl Evidence {
    /// What is on the drive now. `seed` decides where we look; the drive must not know it. A block that can't be read can't
    /// be recognised later, but it will have to be readable then.
    pub(super) fn gather(drive: &mut dyn Drive, probed: &Probed, seed: [u8; 32]) -> anyhow::Result<Self> {
        let eye = Eye::default();
        let mut volumes = Vec::with_capacity(probed.volumes.len());
        let begun = drive.now();
        for (index, volume) in probed.volumes.iter().enumerate() {
            let places = places(volume, seed)?;
            let mut block = Buffer::new(places.block_bytes as usize);
            let mut samples = Vec::new();
            for (round, offsets) in places.samples.iter().enumerate() {
                if round > 0 && drive.now().saturating_sub(begun) > SAMPLING {
                    break;
                }
                samples.extend(offsets.iter().map(|&offset| match drive.read(index, block.bytes(), offset) {
                    Ok(()) => eye.trace(offset, block.bytes()),
                    Err(_) => Trace::unread(offset),
                }));
            }
            volumes.push(Known { places, samples, canaries: Vec::new() });
        }
        Ok(Self { eye, volumes })
    }

    /// Nothing is known, as of a drive that comes out of an erase that somebody else began; but the places to look at are.
    pub(super) fn none(probed: &Probed, seed: [u8; 32]) -> anyhow::Result<Self> {
        let mut volumes = Vec::with_capacity(probed.volumes.len());
        for volume in &probed.volumes {
            let places = places(volume, seed)?;
            let all = places.samples.concat().into_iter().chain(places.canaries.iter().copied());
            let samples = all.map(Trace::unread).collect();
            volumes.push(Known { places, samples, canaries: Vec::new() });
        }
        Ok(Self { eye: Eye::default(), volumes })
    }

    /// Writes random content to every place and makes sure that the drive has taken it. Anew for each method: what a
    /// failed one erased must not speak for the next.
    pub(super) fn plant(&mut self, drive: &mut dyn Drive) -> anyhow::Result<()> {
        for (index, known) in self.volumes.iter_mut().enumerate() {
            let mut block = Buffer::new(known.places.block_bytes as usize);
            known.canaries.clear();
            for &offset in &known.places.canaries {
                getrandom::fill(block.bytes()).context("drawing random bytes")?;
                drive
                    .write(index, block.bytes(), offset)
                    .with_context(|| format!("writing a test block at byte {offset}: the erase couldn't be proven"))?;
                known.canaries.push(self.eye.trace(offset, block.bytes()));
            }
        }
        drive.flush().context("flushing the test blocks to the drive")?;
        for (index, known) in self.volumes.iter().enumerate() {
            let mut block = Buffer::new(known.places.block_bytes as usize);
            for canary in &known.canaries {
                drive
                    .read(index, block.bytes(), canary.offset)
                    .with_context(|| format!("reading a test block back at byte {}", canary.offset))?;
                ensure!(
                    self.eye.trace(canary.offset, block.bytes()) == *canary,
                    "the drive doesn't return what was written at byte {}: it is broken, replace it",
                    canary.offset
                );
                for path in 0..drive.other_paths(index) {
                    drive.read_by(path, index, block.bytes(), canary.offset).context("reading by another path")?;
                    ensure!(
                        self.eye.trace(canary.offset, block.bytes()) == *canary,
                        "two drives call themselves the same one: what was written to this isn't on what looks like \
                         another path to it; take one of them out"
                    );
                }
            }
        }
        Ok(())
    }

    /// Looks for everything that was on the drive, and whether it is what it has to be now. `Err` if it can't be looked at.
    pub(super) fn look(
        &self,
        drive: &mut dyn Drive,
        probed: &Probed,
        expected: Expectation,
        depth: Depth,
        progress: Progress<'_>,
    ) -> anyhow::Result<Findings> {
        drive.flush().context("dropping caches after the erase")?;
        let mut search = Search::new(expected);
        for (index, known) in self.volumes.iter().enumerate() {
            let mut block = Buffer::new(known.places.block_bytes as usize);
            for canary in &known.canaries {
                // What the next tenant would be shown, and what is really there.
                for medium in [false, true] {
                    search.read(drive, index, block.bytes(), canary.offset, medium)?;
                    if self.eye.sees(canary, block.bytes()) {
                        search.canaries.insert((index, canary.offset));
                    }
                }
            }
            for sample in &known.samples {
                search.read(drive, index, block.bytes(), sample.offset, true)?;
                if self.eye.sees(sample, block.bytes()) {
                    search.samples.insert((index, sample.offset));
                }
            }
        }
        if depth == Depth::Full {
            self.look_everywhere(drive, probed, &mut search, progress)?;
        }
        Ok(self.findings(probed, search, depth))
    }

    /// Reads every block, and looks for anything that is known wherever it may have gone.
    fn look_everywhere(
        &self,
        drive: &mut dyn Drive,
        probed: &Probed,
        search: &mut Search,
        progress: Progress<'_>,
    ) -> anyhow::Result<()> {
        let traces = self.volumes.iter().flat_map(|known| known.canaries.iter().chain(&known.samples));
        let wanted: HashSet<u64> = traces.flat_map(Trace::pieces).collect();
        let mut buffer = Buffer::new(READ_BYTES);
        let (mut done, total) = (0u64, probed.size_bytes());
        for (index, volume) in probed.volumes.iter().enumerate() {
            let mut at = 0;
            while at < volume.id.size_bytes {
                let length = usize::try_from(volume.id.size_bytes - at).unwrap_or(READ_BYTES).min(READ_BYTES);
                let bytes = buffer.bytes().get_mut(..length).context("reading nothing")?;
                search.read(drive, index, bytes, at, false)?;
                if self.eye.fingerprints(bytes).flatten().any(|piece| wanted.contains(&piece)) {
                    search.samples.insert((index, at));
                }
                at += length as u64;
                done = done.saturating_add(length as u64);
                progress(part(done, total));
            }
        }
        Ok(())
    }

    fn findings(&self, probed: &Probed, search: Search, depth: Depth) -> Findings {
        let sum = |of: fn(&Known) -> usize| self.volumes.iter().map(of).sum::<usize>() as u64;
        let (planted, samples) = (sum(|k| k.canaries.len()), sum(|k| k.samples.len()));
        let whole: u64 = self.volumes.iter().zip(&probed.volumes).map(|(k, v)| blocks(k, v)).sum();
        let (promise, unexpected) = match search.expected {
            Expectation::Must(promise) => (promise, search.unexpected.len() as u64),
            Expectation::Should(promise) if search.unexpected.is_empty() => (promise, 0),
            Expectation::Should(_) => (Promise::Changed, 0),
        };
        let wrong = if unexpected > 0 { search.unexpected.first() } else { None };
        let first_wrong = search.canaries.iter().chain(&search.samples).chain(wrong).map(|(_, offset)| *offset).min();
        Findings {
            verification: Verification {
                promise,
                block_bytes: self.volumes.iter().map(|known| known.places.block_bytes).max().unwrap_or_default(),
                canaries_planted: planted,
                canaries_surviving: search.canaries.len() as u64,
                samples,
                samples_telling: sum(|k| k.samples.iter().filter(|s| s.tells()).count()),
                samples_surviving: search.samples.len() as u64,
                unexpected,
                read_bytes: search.read_bytes,
                full: depth == Depth::Full || planted + samples >= whole,
                forced_unit_access: search.forced,
            },
            first_wrong,
        }
    }
}

fn places(volume: &Volume, seed: [u8; 32]) -> anyhow::Result<Places> {
    // Where partition tables, file systems and members of arrays are told from, whether there are any or not.
    let usual = signatures::places(volume.id.size_bytes, volume.block_bytes);
    let marked = [volume.marks.as_slice(), &usual].concat();
    Places::choose(volume.id.size_bytes, volume.block_bytes, &marked, seed)
        .with_context(|| format!("{} is too small for an erase to be proven", volume.id))
}

fn blocks(known: &Known, volume: &Volume) -> u64 {
    volume.id.size_bytes.div_ceil(known.places.block_bytes.max(1).into())
}

/// A block of a volume.
type Spot = (usize, u64);

/// What has been seen so far.
struct Search {
    expected: Expectation,
    canaries: BTreeSet<Spot>,
    samples: BTreeSet<Spot>,
    /// Blocks that aren't what the drive promises.
    unexpected: BTreeSet<Spot>,
    read_bytes: u64,
    /// Whether the drive can be told to read its medium.
    forced: bool,
}

impl Search {
    fn new(expected: Expectation) -> Self {
        Self { expected, canaries: [].into(), samples: [].into(), unexpected: [].into(), read_bytes: 0, forced: true }
    }

    fn read(
        &mut self,
        drive: &mut dyn Drive,
        volume: usize,
        block: &mut [u8],
        offset: u64,
        medium: bool,
    ) -> anyhow::Result<()> {
        let forced = medium && self.forced && self.read_medium(drive, volume, block, offset)?;
        if !forced {
            drive.read(volume, block, offset).with_context(|| unreadable(offset))?;
        }
        self.read_bytes = self.read_bytes.saturating_add(block.len() as u64);
        let (Expectation::Must(promise) | Expectation::Should(promise)) = self.expected;
        if !is(block, promise) {
            self.unexpected.insert((volume, offset));
        }
        Ok(())
    }

    /// `false` if there is no way to ask the drive for it.
    fn read_medium(
        &mut self,
        drive: &mut dyn Drive,
        volume: usize,
        block: &mut [u8],
        offset: u64,
    ) -> anyhow::Result<bool> {
        match drive.read_medium(volume, block, offset) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                self.forced = false;
                Ok(false)
            }
            read => read.map(|()| true).with_context(|| unreadable(offset)),
        }
    }
}

fn unreadable(offset: u64) -> String {
    format!("byte {offset} can't be read since; what is left on the drive is unknown")
}

/// Whether a block is what was promised.
fn is(block: &[u8], promise: Promise) -> bool {
    let fill = match promise {
        Promise::Changed => return true,
        Promise::Zeroes => 0x00,
        Promise::Ones => 0xff,
    };
    block.iter().all(|byte| *byte == fill)
}
