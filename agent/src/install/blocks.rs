//! The block form: a file system as it was published, written to a partition past every cache.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::manifest::{BlockForm, Chunk, Manifest, Piece};
use drophammer_protocol::order::ReadBack;
use drophammer_protocol::words::count;
use sha2::{Digest, Sha256};

use super::pull::{self, Load, Turn};
use super::sources::Sources;
use crate::reporter::Reporter;
use crate::sys::block::{self, Aligned};

/// How many chunks are compared with what was signed when only some are.
const SAMPLES: usize = 16;
/// Runs of zeros are read in parts of this size.
const PART: usize = 4 << 20;

/// Writes all of it to `partition`, which holds at least so much, and reads back what is asked for.
pub(crate) fn image(
    manifest: &Manifest,
    form: &BlockForm,
    sources: &Sources<'_>,
    partition: &Path,
    read_back: ReadBack,
    reporter: &Reporter,
) -> anyhow::Result<()> {
    let device = File::options()
        .read(true)
        .write(true)
        .open(partition)
        .with_context(|| format!("opening {}", partition.display()))?;
    let direct = block::direct(&device, true).with_context(|| format!("opening {} again", partition.display()))?;
    let (places, chunks): (Vec<u64>, Vec<&Chunk>) = form
        .pieces
        .iter()
        .filter_map(|piece| match piece {
            Piece::Chunk { at, chunk } => Some((*at, chunk)),
            Piece::Zeros { .. } => None,
        })
        .unzip();
    let load = Load { sources, packs: &manifest.packs, chunks: &chunks, turn: Turn::Any };
    thread::scope(|scope| -> anyhow::Result<()> {
        let zeroing = scope.spawn(|| zero(&device, form));
        let pulled = load.pull(reporter, &|index, content| {
            let at = places.get(index).copied().context("a chunk without a place")?;
            direct.write_all_at(content, at).with_context(|| format!("writing to byte {at} of the root partition"))?;
            Ok(ControlFlow::Continue(()))
        });
        let zeroed = zeroing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        pulled.and(zeroed)
    })?;
    device.sync_all().context("flushing the root partition")?;
    compare(&direct, form, read_back, reporter)
}

/// What has to read as zeros. The drive was erased, but only some of it was looked at: it's told to write them.
fn zero(device: &File, form: &BlockForm) -> anyhow::Result<()> {
    for piece in &form.pieces {
        if let Piece::Zeros { at, length } = piece {
            block::zero_out(device, *at, *length)
                .with_context(|| format!("writing {length} zeros to byte {at} of the root partition"))?;
        }
    }
    Ok(())
}

/// Reads back from the medium and compares with what was signed.
pub(super) fn compare(direct: &File, form: &BlockForm, read_back: ReadBack, reporter: &Reporter) -> anyhow::Result<()> {
    let chosen: Vec<&Piece> = match read_back {
        ReadBack::Full => form.pieces.iter().collect(),
        ReadBack::Sampled => {
            sample(form.pieces.len())?.into_iter().filter_map(|index| form.pieces.get(index)).collect()
        }
    };
    let next = AtomicUsize::new(0);
    let look = || -> anyhow::Result<()> {
        let mut room = Aligned::default();
        while let Some(piece) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let at = piece.at();
            let same = reads_back(direct, piece, &mut room);
            anyhow::ensure!(
                same.with_context(|| format!("reading byte {at} of the root partition back"))?,
                "byte {at} of the root partition and what follows reads back different from what was written: the drive \
                 is not to be trusted, replace it"
            );
        }
        Ok(())
    };
    thread::scope(|scope| {
        let looking: Vec<_> = (0..pull::threads().min(chosen.len())).map(|_| scope.spawn(look)).collect();
        let looked = looking.into_iter().map(|l| l.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        looked.collect::<anyhow::Result<()>>()
    })?;
    let of = if chosen.len() == form.pieces.len() { "all".to_owned() } else { format!("of {}", form.pieces.len()) };
    reporter.note(Phase::Image, format!("{} read back, {of}, and as signed", count(chosen.len(), "piece")));
    Ok(())
}

/// Whether the medium has of this piece what it should.
fn reads_back(direct: &File, piece: &Piece, room: &mut Aligned) -> anyhow::Result<bool> {
    let at = piece.at();
    match piece {
        Piece::Chunk { chunk, .. } => {
            room.resize(usize::try_from(chunk.unpacked)?);
            direct.read_exact_at(room, at)?;
            Ok(hex::encode(Sha256::digest(&**room)) == chunk.content_sha256)
        }
        Piece::Zeros { length, .. } => {
            let mut from = at;
            while from < at + length {
                room.resize(usize::try_from(at + length - from)?.min(PART));
                direct.read_exact_at(room, from)?;
                if room.iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
                from += room.len() as u64;
            }
            Ok(true)
        }
    }
}

/// All of a few; of many the first, the last, and others at random: where a drive fails isn't known beforehand, and
/// shouldn't be.
fn sample(pieces: usize) -> anyhow::Result<Vec<usize>> {
    if pieces <= SAMPLES {
        return Ok((0..pieces).collect());
    }
    let mut random = [0u8; 8 * SAMPLES];
    getrandom::fill(&mut random).map_err(|e| anyhow::anyhow!("getting random bytes: {e}"))?;
    let (numbers, _) = random.as_chunks::<8>();
    let mut chosen: Vec<usize> = numbers
        .iter()
        .filter_map(|bytes| usize::try_from(u64::from_le_bytes(*bytes)).ok()?.checked_rem(pieces))
        .chain([0, pieces - 1])
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

#[cfg(test)]
mod tests;
