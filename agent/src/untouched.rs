//! Drives that a reinstall keeps, and the proof that nothing was written to them.
//!
//! From before the erase of the others until the machine is left, each is held exclusively, so that nothing here can mount,
//! assemble or erase it, and is read-only as far as the kernel is concerned. At the end two things are looked at: what the
//! kernel counted of writes to it, and bytes of it at random places, with those that every format writes to among them.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::inventory::DiskId;
use drophammer_protocol::words::{bytes, count};
use sha2::{Digest, Sha256};

use crate::disk::{self, Access, OpenDisk};
use crate::sys::block;

/// Read at each place.
const SAMPLE: u64 = 64 << 10;
/// Besides the edges.
const RANDOM_PLACES: usize = 254;

#[derive(Debug)]
pub(crate) struct Watched {
    id: DiskId,
    disk: OpenDisk,
    places: BTreeSet<u64>,
    before: Look,
}

#[derive(Debug, PartialEq, Eq)]
struct Look {
    writes: Writes,
    sha256: [u8; 32],
}

/// What the kernel has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Writes {
    writes: u64,
    sectors: u64,
    discards: u64,
    sectors_discarded: u64,
}

impl Watched {
    pub(crate) fn take(id: &DiskId) -> Result<Self> {
        let disk = disk::open(id, Access::ReadOnly)?;
        let take = || -> Result<(BTreeSet<u64>, Look)> {
            for path in std::iter::once(&disk).chain(&disk.others) {
                block::set_read_only(path.file.as_fd()).context("making it read-only")?;
            }
            let mut random = vec![0; RANDOM_PLACES * size_of::<u64>()];
            getrandom::fill(&mut random).context("drawing random bytes")?;
            let numbers = random.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            let places = places(id.size_bytes, numbers);
            let before = look(&disk, &places)?;
            Ok((places, before))
        };
        let (places, before) = take().with_context(|| format!("holding {id}, which is to be kept"))?;
        Ok(Self { id: id.clone(), disk, places, before })
    }

    pub(crate) fn id(&self) -> &DiskId {
        &self.id
    }

    pub(crate) fn disk(&self) -> &OpenDisk {
        &self.disk
    }

    /// In a sentence, how it's known that the drive is as it was.
    pub(crate) fn prove(&self) -> Result<String> {
        let now = look(&self.disk, &self.places).with_context(|| format!("looking at {} once more", self.id))?;
        ensure!(
            now.writes == self.before.writes,
            "{} was to be kept, and something wrote to it: the kernel counts {:?} now and counted {:?} before",
            self.id,
            now.writes,
            self.before.writes
        );
        ensure!(
            now.sha256 == self.before.sha256,
            "{} was to be kept, and reads different from how it did before, though the kernel wrote nothing to it: \
             another machine writes to it, or it's failing",
            self.id
        );
        Ok(format!(
            "{} was kept: the kernel wrote nothing to it, and {} of it, {}, read as they did before the others were erased",
            self.id,
            count(self.places.len(), "place"),
            bytes(self.places.len() as u64 * SAMPLE)
        ))
    }
}

/// The first and the last one, and some between.
fn places(size: u64, random: impl Iterator<Item = u64>) -> BTreeSet<u64> {
    let slots = size / SAMPLE;
    let Some(last) = slots.checked_sub(1) else { return BTreeSet::new() };
    let between = random.filter_map(|number| number.checked_rem(slots));
    [0, last].into_iter().chain(between).map(|slot| slot * SAMPLE).collect()
}

fn look(disk: &OpenDisk, places: &BTreeSet<u64>) -> Result<Look> {
    let mut hash = Sha256::new();
    let direct = block::direct(&disk.file, false).context("opening it past the cache")?;
    let mut room = block::Aligned::new(usize::try_from(SAMPLE)?);
    for place in places {
        let at = || format!("reading {} at byte {place}", disk.path.display());
        std::os::unix::fs::FileExt::read_exact_at(&direct, &mut room, *place).with_context(at)?;
        hash.update(&*room);
    }
    let mut writes = Writes::default();
    for path in std::iter::once(disk).chain(&disk.others) {
        let stat = format!("/sys/block/{}/stat", path.facts.name);
        let text = fs::read_to_string(&stat).with_context(|| format!("reading {stat}"))?;
        let of = counted(&text).with_context(|| format!("{stat} is not what a kernel writes: {text:?}"))?;
        writes.writes += of.writes;
        writes.sectors += of.sectors;
        writes.discards += of.discards;
        writes.sectors_discarded += of.sectors_discarded;
    }
    Ok(Look { writes, sha256: hash.finalize().into() })
}

/// Documentation/block/stat.rst; kernels before 4.18 don't count discards.
fn counted(stat: &str) -> Option<Writes> {
    let fields: Vec<u64> = stat.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let later = |index: usize| fields.get(index).copied().unwrap_or(0);
    Some(Writes {
        writes: *fields.get(4)?,
        sectors: *fields.get(6)?,
        discards: later(11),
        sectors_discarded: later(13),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_are_always_looked_at() {
        for (name, size, random, want) in [
            ("a large drive", 10 * SAMPLE, vec![3, 13, u64::MAX], vec![0, 3, 5, 9]),
            ("a bit more than a whole number", 2 * SAMPLE + 1, vec![], vec![0, 1]),
            ("one place", SAMPLE, vec![7], vec![0]),
            ("less than one", SAMPLE - 1, vec![7], vec![]),
        ] {
            let got: Vec<u64> = places(size, random.into_iter()).into_iter().map(|place| place / SAMPLE).collect();
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn writes_and_discards_are_counted() {
        let writes = |writes, sectors, discards, sectors_discarded| {
            Some(Writes { writes, sectors, discards, sectors_discarded })
        };
        for (name, stat, want) in [
            ("today's", " 9 0 72 1 5 1 40 2 0 8 3 6 0 48 1 7 2\n", writes(5, 40, 6, 48)),
            ("of an old kernel", "9 0 72 1 5 1 40 2 0 8 3", writes(5, 40, 0, 0)),
            ("cut short", "9 0 72 1 5", None),
            ("something else", "9 0 72 1 5 1 forty", None),
            ("nothing", "", None),
        ] {
            assert_eq!(counted(stat), want, "{name}");
        }
    }
}
