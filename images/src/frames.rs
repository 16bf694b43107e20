//! Cutting a stream into frames: compressed on all cores, written in order, with never more in memory than a few frames
//! for each core. The bytes don't depend on how many cores there are.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use drophammer_protocol::manifest::{Chunk, MAX_CHUNK_BYTES};
use sha2::{Digest, Sha256};

const PIECE: usize = MAX_CHUNK_BYTES as usize;

/// What was written.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) tar_bytes: u64,
    pub(crate) tar_sha256: String,
    pub(crate) frames: Vec<Chunk>,
}

/// Lets `scan` read `tar` to its end, and writes all that it reads to `out` as frames.
pub(crate) fn cut<R, T>(
    tar: R,
    out: impl Write + Send,
    level: i32,
    scan: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<(Frames, T)>
where
    R: Read,
{
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let (jobs, todo) = sync_channel::<Job>(workers);
    // Each piece's answer is awaited in the order in which the pieces were cut; this queue's length bounds the memory.
    let (order, answers) = sync_channel::<Receiver<Frame>>(2 * workers);
    let todo = Mutex::new(todo);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| compress(&todo, level));
        }
        let writer = scope.spawn(move || write(&answers, out));
        let mut cutter =
            Cutter { tar, piece: Vec::with_capacity(PIECE), hash: Sha256::new(), bytes: 0, line: Line { jobs, order } };
        let scanned = scan(&mut cutter).and_then(|found| {
            let finished = cutter.finish()?;
            Ok((finished, found))
        });
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The writer's error comes first: it is why the reader could not go on.
        let frames = written?;
        let ((tar_bytes, tar_sha256), found) = scanned?;
        Ok((Frames { tar_bytes, tar_sha256, frames }, found))
    })
}

struct Job {
    piece: Vec<u8>,
    answer: SyncSender<Frame>,
}

type Frame = Result<(Vec<u8>, u32)>;

fn compress(todo: &Mutex<Receiver<Job>>, level: i32) {
    let mut compressor = None;
    loop {
        let job = todo.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(Job { piece, answer }) = job else { return };
        let frame = (|| {
            let compressor = match &mut compressor {
                Some(compressor) => compressor,
                empty => empty.insert(zstd::bulk::Compressor::new(level)?),
            };
            let unpacked = u32::try_from(piece.len()).context("counting a frame")?;
            Ok((compressor.compress(&piece)?, unpacked))
        })();
        // Nobody waits any more when the writer has failed. Its error is the one that counts, and the queue must still
        // be emptied, for the reader may be waiting for room in it.
        let _ = answer.send(frame.map_err(|e: anyhow::Error| e.context("compressing a frame")));
    }
}

fn write(answers: &Receiver<Receiver<Frame>>, mut out: impl Write) -> Result<Vec<Chunk>> {
    let mut frames = Vec::new();
    let mut offset = 0u64;
    for answer in answers {
        let (frame, unpacked) = answer.recv().map_err(|_| anyhow!("a compressing thread ended early"))??;
        out.write_all(&frame).context("writing a frame")?;
        let length = u32::try_from(frame.len()).context("counting a frame")?;
        frames.push(Chunk { offset, length, unpacked, sha256: hex::encode(Sha256::digest(&frame)) });
        offset += u64::from(length);
    }
    out.flush().context("writing the last frame")?;
    Ok(frames)
}

struct Line {
    jobs: SyncSender<Job>,
    order: SyncSender<Receiver<Frame>>,
}

impl Line {
    fn send(&self, piece: Vec<u8>) -> io::Result<()> {
        let (answer, awaited) = sync_channel(1);
        let stopped = || io::Error::other("the frames can't be written any more");
        self.order.send(awaited).map_err(|_| stopped())?;
        self.jobs.send(Job { piece, answer }).map_err(|_| stopped())
    }
}

struct Cutter<R> {
    tar: R,
    piece: Vec<u8>,
    hash: Sha256,
    bytes: u64,
    line: Line,
}

impl<R> Cutter<R> {
    fn finish(mut self) -> Result<(u64, String)> {
        if !self.piece.is_empty() {
            self.line.send(std::mem::take(&mut self.piece))?;
        }
        Ok((self.bytes, hex::encode(self.hash.finalize())))
    }
}

impl<R: Read> Read for Cutter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.tar.read(buffer)?;
        let mut part = &buffer[..n];
        self.hash.update(part);
        self.bytes += part.len() as u64;
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            part = later;
            if self.piece.len() == PIECE {
                self.line.send(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE)))?;
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_hold_what_went_in() -> Result<()> {
        for (name, length) in [("nothing", 0), ("one byte", 1), ("one frame", PIECE), ("and a byte", PIECE + 1)] {
            let data: Vec<u8> = (0..length).map(|i| u8::try_from(i * i % 251).unwrap_or(0)).collect();
            let mut out = Vec::new();
            let (cut, read) = cut(data.as_slice(), &mut out, 3, |tar| Ok(io::copy(tar, &mut io::sink())?))?;
            assert_eq!((cut.tar_bytes, read), (length as u64, length as u64), "{name}");
            assert_eq!(cut.frames.len(), length.div_ceil(PIECE), "{name}");
            if length > 0 {
                assert!(zstd::decode_all(out.as_slice())? == data, "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_full_disk_is_what_is_reported() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        // More than all queues hold, so that the reader meets the closed queue.
        let endless = io::repeat(7).take(1 << 30);
        let error = cut(endless, Full, 1, |tar| Ok(io::copy(tar, &mut io::sink())?)).map(|_| ());
        let said = error.map_err(|e| format!("{e:#}"));
        assert!(said.as_ref().is_err_and(|e| e.starts_with("writing a frame: ")), "{said:?}");
    }
}
