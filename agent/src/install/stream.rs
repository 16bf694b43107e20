//! The tar form: chunks one after the other, as one stream, into a file system that is there.

use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use drophammer_protocol::manifest::{Chunk, Manifest, TarForm};

use super::pull::{Load, Turn};
use super::root::Root;
use super::sources::Sources;
use super::unpack::{Unpacked, unpack};
use crate::reporter::Reporter;
use crate::sys::block::Aligned;

/// Unpacks the image into `root`. That each chunk is the one that was signed makes the stream what it should be: there is
/// nothing that a hash of all of it could find.
pub(crate) fn image(
    manifest: &Manifest,
    form: &TarForm,
    sources: &Sources<'_>,
    root: &Root,
    reporter: &Reporter,
) -> anyhow::Result<Unpacked> {
    let chunks: Vec<&Chunk> = form.chunks.iter().collect();
    let load = Load { sources, packs: &manifest.packs, chunks: &chunks, turn: Turn::InOrder };
    let (chunks_in, chunks_out) = sync_channel(1);
    let (spare_in, spare_out) = sync_channel(2);
    let spare_out = Mutex::new(spare_out);
    thread::scope(|scope| {
        let pulling = scope.spawn(move || {
            load.pull(reporter, &|_, content| {
                let spare = spare_out.lock().unwrap_or_else(PoisonError::into_inner).try_recv();
                let full = std::mem::replace(content, spare.unwrap_or_default());
                // Who unpacks has stopped, and says why.
                Ok(if chunks_in.send(full).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })
        });
        let stream = TarStream { incoming: chunks_out, spare: spare_in, buffer: Aligned::default(), position: 0 };
        let unpacked = unpack(stream, root);
        // What failed upstream shows downstream as a stream that ends too early.
        pulling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        unpacked
    })
}

/// The decompressed stream as the unpacker reads it.
struct TarStream {
    incoming: Receiver<Aligned>,
    /// Used buffers go back, so that the allocator isn't asked for 4 MiB per chunk.
    spare: SyncSender<Aligned>,
    buffer: Aligned,
    position: usize,
}

impl BufRead for TarStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // Nothing more comes when whoever sends has ended.
        if self.position == self.buffer.len()
            && let Ok(next) = self.incoming.recv()
        {
            let used = std::mem::replace(&mut self.buffer, next);
            match self.spare.try_send(used) {
                // Room for it isn't worth waiting for.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
            self.position = 0;
        }
        // The position is in the buffer or at its end: nobody but `consume` moves it on.
        Ok(self.buffer.get(self.position..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.position = self.buffer.len().min(self.position + count);
    }
}

impl Read for TarStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
