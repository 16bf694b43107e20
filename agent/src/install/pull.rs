//! Chunks on their way from a server to wherever they go: fetched, checked and unpacked on several threads at once, each of
//! which sees one chunk through to its end. So network, processor and drive are all busy, and what is held in memory is a
//! chunk for each thread, however large the image.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::manifest::{Chunk, Pack};

use super::sources::Sources;
use crate::reporter::Reporter;
use crate::sys::block::Aligned;

/// Twice the processors, so that one can wait for the network or the drive; six chunks, packed and unpacked, are 48 MiB.
pub(crate) fn threads() -> usize {
    (2 * thread::available_parallelism().map_or(1, NonZeroUsize::get)).clamp(3, 6)
}

/// Who gets the chunks, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// As they're ready, several at a time.
    Any,
    /// One after the other, as they are listed.
    InOrder,
}

/// What is to be pulled.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) sources: &'a Sources<'a>,
    pub(crate) packs: &'a [Pack],
    pub(crate) chunks: &'a [&'a Chunk],
    pub(crate) turn: Turn,
}

/// What is handed a chunk by its number in the list. It may keep the memory, leaving another in its place, and say that it
/// needs no more.
pub(crate) type Sink<'a> = &'a (dyn Fn(usize, &mut Aligned) -> anyhow::Result<ControlFlow<()>> + Sync);

impl Load<'_> {
    /// Pulls all of it. Ends with the first error.
    pub(crate) fn pull(&self, reporter: &Reporter, sink: Sink<'_>) -> anyhow::Result<()> {
        let total = self.chunks.iter().map(|chunk| u64::from(chunk.unpacked)).sum();
        let state = Mutex::new(State { next: 0, passed: 0, done: 0, total, told: Instant::now(), end: None });
        let line = Line { state, moved: Condvar::new() };
        thread::scope(|scope| {
            for _ in 0..threads().min(self.chunks.len()) {
                scope.spawn(|| {
                    if let Err(error) = self.work(&line, reporter, sink) {
                        line.end(Err(error));
                    }
                });
            }
        });
        line.state.into_inner().unwrap_or_else(PoisonError::into_inner).end.unwrap_or(Ok(()))
    }

    fn work(&self, line: &Line, reporter: &Reporter, sink: Sink<'_>) -> anyhow::Result<()> {
        let mut decompressor = zstd::bulk::Decompressor::new().context("starting zstd")?;
        let (mut frame, mut content) = (Vec::new(), Aligned::default());
        loop {
            let mut state = line.state();
            let index = state.next;
            let Some(chunk) = self.chunks.get(index).filter(|_| state.end.is_none()) else { return Ok(()) };
            state.next += 1;
            // One after the other where there's one stream for all.
            let held = self.sources.know_no_ranges().then_some(state);
            let name = format!("chunk {index} of {}", self.chunks.len());
            let pack = self.packs.get(chunk.pack as usize).with_context(|| format!("{name} is of no pack"))?;
            let fetched = self.sources.chunk(pack, chunk, &name, &mut frame);
            drop(held);
            fetched?;

            let want = usize::try_from(chunk.unpacked)?;
            // A slice of exactly the size that was promised: zstd can't write past it, whatever the frame says.
            content.resize(want);
            let got = decompressor
                .decompress_to_buffer(&frame, &mut content[..])
                .with_context(|| format!("decompressing {name} into {want} bytes"))?;
            anyhow::ensure!(got == want, "{name} decompresses to {got} bytes, the manifest says {want}");
            if self.turn == Turn::InOrder && !line.wait_for(index) {
                return Ok(());
            }
            let goes_on = sink(index, &mut content)?;
            line.passed(reporter, want as u64);
            if goes_on.is_break() {
                line.end(Ok(()));
            }
        }
    }
}

struct Line {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// The chunk to be taken up next.
    next: usize,
    /// Chunks that are through.
    passed: usize,
    done: u64,
    total: u64,
    told: Instant,
    /// How it ended, if before its end.
    end: Option<anyhow::Result<()>>,
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` if it won't come any more.
    fn wait_for(&self, index: usize) -> bool {
        let waiting = |state: &mut State| state.passed != index && state.end.is_none();
        let state = self.moved.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner);
        state.end.is_none()
    }

    fn passed(&self, reporter: &Reporter, bytes: u64) {
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut state = self.state();
        state.passed += 1;
        state.done += bytes;
        if state.done == state.total || state.told.elapsed() >= INTERVAL {
            state.told = Instant::now();
            reporter.progress(Phase::Image, state.done, Some(state.total));
        }
        drop(state);
        self.moved.notify_all();
    }

    fn end(&self, how: anyhow::Result<()>) {
        self.state().end.get_or_insert(how);
        self.moved.notify_all();
    }
}
