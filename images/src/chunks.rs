//! Cutting bytes into chunks: compressed on all cores, written in order, with never more in memory than a few chunks for
//! each core. The bytes don't depend on how many cores there are.
//!
//! Where a chunk ends is decided by what is in it, so that what two versions of an image have in common is cut in the same
//! places, wherever it lies; and a chunk that is in the store already is neither compressed nor written again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use drophammer_protocol::manifest::{Chunk, MAX_CHUNK_BYTES, Manifest, Pack};
use sha2::{Digest, Sha256};

const MOST: usize = MAX_CHUNK_BYTES as usize;
/// Shorter only at the end of what is cut.
const LEAST: usize = MOST / 4;
/// How many bytes follow the least, on average.
const MORE: usize = MOST / 2;

type Hash = [u8; 32];

/// Chunks of images that were published before, by their content.
#[derive(Debug, Default)]
pub(crate) struct Known {
    packs: Vec<Pack>,
    chunks: HashMap<String, Chunk>,
}

impl Known {
    /// What this image has brought: for those that we signed ourselves, for nobody looks at their chunks again.
    pub(crate) fn add(&mut self, manifest: &Manifest) {
        let indices: Vec<u32> = manifest.packs.iter().map(|pack| index_of(&mut self.packs, pack)).collect();
        for chunk in manifest.chunks() {
            let pack = indices.get(chunk.pack as usize).copied().unwrap_or(u32::MAX);
            self.chunks.entry(chunk.content_sha256.clone()).or_insert_with(|| Chunk { pack, ..chunk.clone() });
        }
    }
}

fn index_of(packs: &mut Vec<Pack>, pack: &Pack) -> u32 {
    let index = packs.iter().position(|known| known == pack).unwrap_or_else(|| {
        packs.push(pack.clone());
        packs.len() - 1
    });
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The pack that is being written, with the chunks that it needn't hold.
#[derive(Debug)]
pub(crate) struct Packer<'a> {
    out: BufWriter<&'a File>,
    hash: Sha256,
    bytes: u64,
    known: &'a Known,
    /// Chunks of this pack by their content.
    own: HashMap<String, Chunk>,
    level: i32,
}

/// In [`Chunk::pack`], while the pack has no name yet.
const OWN: u32 = u32::MAX - 1;

impl<'a> Packer<'a> {
    pub(crate) fn new(out: &'a File, known: &'a Known, level: i32) -> Self {
        let out = BufWriter::with_capacity(1 << 20, out);
        Self { out, hash: Sha256::new(), bytes: 0, known, own: HashMap::new(), level }
    }

    /// Cuts what `feed` is given into chunks.
    pub(crate) fn cut<T>(
        &mut self,
        unit: usize,
        progress: &(dyn Fn(u64) + Sync),
        feed: impl FnOnce(&mut Feed) -> Result<T>,
    ) -> Result<(Vec<(u64, Chunk)>, T)> {
        let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (jobs, todo) = sync_channel::<Job>(workers);
        // Each piece's answer is awaited in the order in which the pieces were cut; this queue's length bounds the memory.
        let (order, answers) = sync_channel::<(u64, Receiver<Answer>)>(2 * workers);
        let todo = Mutex::new(todo);
        let (known, level) = (self.known, self.level);
        let this = self;
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| work(&todo, known, level));
            }
            let writer = scope.spawn(move || this.write(&answers, progress));
            let mut feeder = Feed { unit, at: 0, piece: Vec::with_capacity(MOST), jobs, order };
            let fed = feed(&mut feeder).and_then(|found| feeder.end().map(|()| found));
            drop(feeder);
            let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // The writer's error comes first: it is why the reader could not go on.
            Ok((written?, fed?))
        })
    }

    /// Closes the pack. The chunks of all forms are told which of the packs they're in.
    pub(crate) fn finish(mut self, forms: &mut [&mut [Chunk]]) -> Result<(Option<Pack>, Vec<Pack>)> {
        self.out.flush().context("writing the pack")?;
        let own = (self.bytes > 0).then(|| Pack { sha256: hex::encode(self.hash.finalize()), bytes: self.bytes });
        let mut packs = Vec::new();
        for chunk in forms.iter_mut().flat_map(|form| form.iter_mut()) {
            let pack = if chunk.pack == OWN { own.as_ref() } else { self.known.packs.get(chunk.pack as usize) };
            chunk.pack = index_of(&mut packs, pack.context("a chunk is in a pack that isn't there")?);
        }
        Ok((own, packs))
    }

    fn write(
        &mut self,
        answers: &Receiver<(u64, Receiver<Answer>)>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<(u64, Chunk)>> {
        let mut chunks = Vec::new();
        for (at, answer) in answers {
            let chunk = match answer.recv().map_err(|_| anyhow!("a compressing thread ended early"))?? {
                Made::Known(chunk) => chunk,
                Made::New { frame, content, unpacked } => self.keep(&frame, &content, unpacked)?,
            };
            progress(chunk.unpacked.into());
            chunks.push((at, chunk));
        }
        Ok(chunks)
    }

    fn keep(&mut self, frame: &[u8], content: &Hash, unpacked: u32) -> Result<Chunk> {
        let content_sha256 = hex::encode(content);
        if let Some(there) = self.own.get(&content_sha256) {
            return Ok(there.clone());
        }
        self.out.write_all(frame).context("writing a chunk")?;
        self.hash.update(frame);
        let length = u32::try_from(frame.len()).context("counting a chunk")?;
        let sha256 = hex::encode(Sha256::digest(frame));
        let chunk =
            Chunk { pack: OWN, offset: self.bytes, length, sha256, unpacked, content_sha256: content_sha256.clone() };
        self.bytes += u64::from(length);
        self.own.insert(content_sha256, chunk.clone());
        Ok(chunk)
    }
}

struct Job {
    piece: Vec<u8>,
    answer: SyncSender<Answer>,
}

type Answer = Result<Made>;

enum Made {
    Known(Chunk),
    New { frame: Vec<u8>, content: Hash, unpacked: u32 },
}

fn work(todo: &Mutex<Receiver<Job>>, known: &Known, level: i32) {
    let mut compressor = None;
    loop {
        let job = todo.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(Job { piece, answer }) = job else { return };
        let made = make(&piece, known, level, &mut compressor).context("compressing a chunk");
        // Nobody waits any more when the writer has failed. Its error is the one that counts, and the queue must still
        // be emptied, for the reader may be waiting for room in it.
        let _ = answer.send(made);
    }
}

fn make(
    piece: &[u8],
    known: &Known,
    level: i32,
    compressor: &mut Option<zstd::bulk::Compressor<'static>>,
) -> Result<Made> {
    let content: Hash = Sha256::digest(piece).into();
    let unpacked = u32::try_from(piece.len()).context("counting a chunk")?;
    if let Some(chunk) = known.chunks.get(&hex::encode(content)).filter(|chunk| chunk.unpacked == unpacked) {
        return Ok(Made::Known(chunk.clone()));
    }
    let compressor = match compressor {
        Some(compressor) => compressor,
        empty => empty.insert(zstd::bulk::Compressor::new(level)?),
    };
    Ok(Made::New { frame: compressor.compress(piece)?, content, unpacked })
}

/// Takes the bytes that are to be cut.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Chunks end at multiples of this.
    unit: usize,
    /// Where the next byte lies.
    at: u64,
    piece: Vec<u8>,
    jobs: SyncSender<Job>,
    order: SyncSender<(u64, Receiver<Answer>)>,
}

impl Feed {
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.unit - self.piece.len() % self.unit));
            self.piece.extend_from_slice(now);
            self.at += now.len() as u64;
            bytes = later;
            if self.piece.len().is_multiple_of(self.unit) && self.is_full() {
                self.send()?;
            }
        }
        Ok(())
    }

    /// What follows lies elsewhere.
    pub(crate) fn go_on_at(&mut self, at: u64) -> Result<()> {
        if at != self.at {
            self.end()?;
            self.at = at;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.send() }
    }

    fn is_full(&self) -> bool {
        let length = self.piece.len();
        if length < LEAST {
            return false;
        }
        // By its last unit alone, which is so wherever the chunk began.
        let units = u32::try_from(MORE / self.unit).unwrap_or(1);
        let last = &self.piece[length - self.unit..];
        length + self.unit > MOST || crc32c::crc32c(last).is_multiple_of(units)
    }

    fn send(&mut self) -> Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(MOST));
        let at = self.at - piece.len() as u64;
        let (answer, awaited) = sync_channel(1);
        let stopped = || anyhow!("the chunks can't be written any more");
        self.order.send((at, awaited)).map_err(|_| stopped())?;
        self.jobs.send(Job { piece, answer }).map_err(|_| stopped())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Seek};

    use super::*;

    /// Bytes that don't compress away.
    pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ seed;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .flatten()
        .take(length)
        .collect()
    }

    fn cut(data: &[u8], known: &Known) -> (Vec<Chunk>, Option<Pack>, Vec<Pack>, Vec<u8>) {
        let mut file = tempfile::tempfile().expect("a file");
        let mut packer = Packer::new(&file, known, 1);
        let cut = packer.cut(512, &|_| {}, |feed| feed.push(data)).expect("cut");
        let mut at = 0;
        for (place, chunk) in &cut.0 {
            assert_eq!(*place, at);
            at += u64::from(chunk.unpacked);
        }
        let mut chunks: Vec<Chunk> = cut.0.into_iter().map(|(_, chunk)| chunk).collect();
        let (own, packs) = packer.finish(&mut [&mut chunks]).expect("finished");
        let mut written = Vec::new();
        file.rewind().expect("rewound");
        file.read_to_end(&mut written).expect("read");
        (chunks, own, packs, written)
    }

    #[test]
    fn chunks_hold_what_went_in() {
        for (name, length) in
            [("nothing", 0), ("one byte", 1), ("less than a chunk", LEAST), ("one", MOST), ("several", 5 * MOST + 1)]
        {
            let data = noise(length, 0);
            let (chunks, own, packs, written) = cut(&data, &Known::default());
            assert_eq!(packs, own.iter().cloned().collect::<Vec<_>>(), "{name}");
            let mut got = Vec::new();
            for chunk in &chunks {
                let start = usize::try_from(chunk.offset).expect("small");
                let frame = &written[start..start + chunk.length as usize];
                assert_eq!(hex::encode(Sha256::digest(frame)), chunk.sha256, "{name}");
                let part = zstd::bulk::decompress(frame, MOST).expect("a frame");
                assert_eq!(hex::encode(Sha256::digest(&part)), chunk.content_sha256, "{name}");
                assert_eq!(part.len(), chunk.unpacked as usize, "{name}");
                got.extend(part);
            }
            assert!(got == data, "{name}");
            assert!(chunks.iter().rev().skip(1).all(|c| (LEAST..=MOST).contains(&(c.unpacked as usize))), "{name}");
            assert_eq!(
                own.map(|pack| pack.sha256),
                (length > 0).then(|| hex::encode(Sha256::digest(&written))),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_common_is_cut_alike_and_kept_once() {
        let before = noise(12 * MOST, 1);
        let (chunks, own, packs, _) = cut(&before, &Known::default());
        let mut manifest = drophammer_protocol::fixtures::manifest("a", "1");
        manifest.packs = packs;
        let tar = manifest.tar.as_mut().expect("a tar form");
        tar.chunks = chunks.clone();
        let mut known = Known::default();
        known.add(&manifest);

        // The same again brings nothing.
        let (again, nothing, packs, _) = cut(&before, &known);
        assert_eq!((again, nothing, packs), (chunks, None, vec![own.clone().expect("a pack")]));

        // A little more in the middle brings little.
        let middle = 5 * MOST;
        let after = [&before[..middle], &noise(1536, 2), &before[middle..]].concat();
        let (chunks, new, packs, _) = cut(&after, &known);
        assert_eq!(packs.len(), 2);
        let (new, old) = (new.expect("something is new").bytes, own.expect("a pack").bytes);
        assert!(new < old / 4, "{new} of {old} bytes are new");
        assert!(chunks.iter().any(|chunk| chunk.pack == 0) && chunks.iter().any(|chunk| chunk.pack == 1));

        // And what is twice in the same image is written once.
        let (twice, pack, _, _) = cut(&[&before[..], &before].concat(), &Known::default());
        assert!(pack.expect("a pack").bytes < old * 5 / 4, "{} chunks", twice.len());
    }

    #[test]
    fn a_full_disk_is_what_is_reported() {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let known = Known::default();
        let mut packer = Packer::new(&full, &known, 1);
        // More than all queues hold, so that the feeder meets the closed queue.
        let part = noise(1 << 20, 3);
        let fed = packer.cut(512, &|_| {}, |feed| (0..200).try_for_each(|_| feed.push(&part)));
        let said = fed.map(|_| ()).map_err(|e| format!("{e:#}"));
        assert!(said.as_ref().is_err_and(|e| e.starts_with("writing a chunk: ")), "{said:?}");
    }
}
