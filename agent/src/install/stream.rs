//! The image on its way from the server to the file system: fetch ‖ decompress ‖ unpack.
//!
//! Each stage has its thread and hands on whole frames through a channel with room for one, so the memory in use is a
//! handful of frames whatever the image's size (a frame unpacks to 4 MiB at most). A frame is compared with the signed
//! manifest before a single byte of it reaches the decompressor.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::manifest::{Chunk, Manifest};
use drophammer_protocol::sign::Verified;
use reqwest::blocking::Client;
use sha2::{Digest, Sha256};

use super::fetch::{Download, Patience, file_url};
use super::root::Root;
use super::unpack::{Unpacked, unpack};
use crate::reporter::Reporter;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Streamed {
    pub(crate) bytes_fetched: u64,
    pub(crate) unpacked: Unpacked,
}

/// Bytes whose SHA-256 is the manifest's.
struct Frame {
    bytes: Vec<u8>,
    unpacked: usize,
    index: usize,
}

/// Fetches the image and unpacks it into `root`. Whatever goes wrong in any stage stops all three, and the first cause
/// is what is returned.
pub(crate) fn image(
    manifest: &Verified<Manifest>,
    image_url: &str,
    http: &Client,
    patience: Patience,
    root: &Root,
    reporter: &Reporter,
) -> anyhow::Result<Streamed> {
    let chunks = &manifest.chunks;
    let size = chunks.frames.last().map_or(0, |last| last.offset + u64::from(last.length));
    let interrupted = |what: String| reporter.note(Phase::Image, what);
    let mut download = Download::new(http, file_url(image_url, &chunks.file), size, patience, &interrupted);
    let (frames_in, frames_out) = sync_channel(1);
    let (tar_in, tar_out) = sync_channel(1);
    let (spare_in, spare_out) = sync_channel(2);
    thread::scope(|scope| {
        let fetching = scope.spawn(move || {
            fetch_frames(&chunks.frames, &mut download, &interrupted, &frames_in).map(|()| download.fetched())
        });
        let decompressing = scope.spawn(move || decompress(&frames_out, &tar_in, &spare_out));
        let stream = TarStream {
            incoming: tar_out,
            spare: spare_in,
            buffer: Vec::new(),
            position: 0,
            handed_on: 0,
            total: chunks.tar_bytes,
            reporter,
            reported: Instant::now(),
        };
        let unpacked = unpack(stream, root);
        // A stage whose neighbour is gone stops without an error of its own, so the order of questions is the order of
        // causes: what failed upstream shows downstream as a stream that ends too early.
        let bytes_fetched = join(fetching)?;
        let tar_sha256 = join(decompressing)?;
        let unpacked = unpacked?;
        anyhow::ensure!(
            tar_sha256 == chunks.tar_sha256.to_ascii_lowercase(),
            "the unpacked tar stream has SHA-256 {tar_sha256}, but the manifest says {}: the image was packed wrongly, \
             publish it again",
            chunks.tar_sha256
        );
        Ok(Streamed { bytes_fetched, unpacked })
    })
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn fetch_frames(
    chunks: &[Chunk],
    download: &mut Download<'_>,
    interrupted: &dyn Fn(String),
    out: &SyncSender<Frame>,
) -> anyhow::Result<()> {
    for (index, chunk) in chunks.iter().enumerate() {
        let frame = fetch_frame(index, chunk, download, interrupted)?;
        if out.send(frame).is_err() {
            break;
        }
    }
    Ok(())
}

/// A frame with a wrong hash is fetched once more: a bit that flipped on the way is worth a second look, a damaged file
/// on the server isn't worth a third.
fn fetch_frame(
    index: usize,
    chunk: &Chunk,
    download: &mut Download<'_>,
    interrupted: &dyn Fn(String),
) -> anyhow::Result<Frame> {
    let mut bytes = vec![0; usize::try_from(chunk.length)?];
    for last_try in [false, true] {
        download.fill(chunk.offset, &mut bytes).with_context(|| format!("fetching chunk {index}"))?;
        let got = hex::encode(Sha256::digest(&bytes));
        if got.eq_ignore_ascii_case(&chunk.sha256) {
            return Ok(Frame { bytes, unpacked: usize::try_from(chunk.unpacked)?, index });
        }
        let what = format!("chunk {index} came with SHA-256 {got}, the manifest says {}", chunk.sha256);
        if last_try {
            anyhow::bail!("{what}, twice: the copy on the image server is damaged, publish it again");
        }
        interrupted(format!("{what}; fetching it once more"));
    }
    unreachable!("the second try returns")
}

/// Returns the SHA-256 of everything that was decompressed.
fn decompress(
    frames: &Receiver<Frame>,
    out: &SyncSender<Vec<u8>>,
    spare: &Receiver<Vec<u8>>,
) -> anyhow::Result<String> {
    let mut decompressor = zstd::bulk::Decompressor::new().context("starting zstd")?;
    let mut hash = Sha256::new();
    for frame in frames {
        let mut tar = spare.try_recv().unwrap_or_default();
        // A slice of exactly the size that was promised: zstd can't write past it, whatever the frame says.
        tar.resize(frame.unpacked, 0);
        let got = decompressor
            .decompress_to_buffer(&frame.bytes, tar.as_mut_slice())
            .with_context(|| format!("decompressing chunk {} into {} bytes", frame.index, frame.unpacked))?;
        anyhow::ensure!(
            got == frame.unpacked,
            "chunk {} decompresses to {got} bytes, the manifest says {}",
            frame.index,
            frame.unpacked
        );
        hash.update(&tar);
        if out.send(tar).is_err() {
            break;
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// The decompressed stream as the unpacker reads it.
struct TarStream<'a> {
    incoming: Receiver<Vec<u8>>,
    /// Used buffers go back, so that the allocator isn't asked for 4 MiB per frame.
    spare: SyncSender<Vec<u8>>,
    buffer: Vec<u8>,
    position: usize,
    handed_on: u64,
    total: u64,
    reporter: &'a Reporter,
    reported: Instant,
}

impl Read for TarStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.buffer.len() {
            self.tell();
            let Ok(next) = self.incoming.recv() else { return Ok(0) };
            let used = std::mem::replace(&mut self.buffer, next);
            match self.spare.try_send(used) {
                // Room for it isn't worth waiting for.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
            self.position = 0;
        }
        let mut rest = self.buffer.get(self.position..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.position += count;
        self.handed_on += count as u64;
        Ok(count)
    }
}

impl TarStream<'_> {
    fn tell(&mut self) {
        const INTERVAL: Duration = Duration::from_secs(1);
        if self.handed_on == self.total || self.reported.elapsed() >= INTERVAL {
            self.reported = Instant::now();
            self.reporter.progress(Phase::Image, self.handed_on, Some(self.total));
        }
    }
}

#[cfg(test)]
mod tests;
