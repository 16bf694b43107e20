//! A file on its way to one reader: what is to be sent of it, and who wants to hear how it went.
//!
//! Handlers put a [`Parcel`] into the extensions of their answer and leave the body empty. Whoever holds the connection
//! carries it: with sendfile where nothing is between file and socket ([`crate::plain`]), piece by piece where a cipher
//! or HTTP/2's frames are ([`Parcel::load`]).

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::mem;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream::{self, Stream};
use tracing::error;

/// Read and handed on at once. Small pieces cost a thread switch each.
const PIECE: u64 = 512 << 10;

/// Which content a file has: two that are equal, of one path, are of the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edition {
    pub(crate) length: u64,
    pub(crate) modified: Option<SystemTime>,
    /// Files of the same length are put in each other's place with the time they had elsewhere.
    inode: u64,
}

impl Edition {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { length: metadata.len(), modified: metadata.modified().ok(), inode: metadata.ino() }
    }

    /// As an entity tag, with its quotes.
    pub(crate) fn tag(&self) -> String {
        let modified = self.modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default().as_nanos();
        format!("\"{:x}-{modified:x}-{:x}\"", self.length, self.inode)
    }
}

#[derive(Clone)]
pub(crate) struct Parcel {
    pub(crate) file: Arc<File>,
    pub(crate) path: Arc<Path>,
    /// What was announced to the reader.
    pub(crate) edition: Edition,
    /// Of the file.
    pub(crate) range: Range<u64>,
    /// What follows it.
    pub(crate) tail: Bytes,
    /// As many bytes as there are of file and tail, wanted or not.
    pub(crate) total: u64,
    pub(crate) ended: Arc<dyn Fn(Sent) + Send + Sync>,
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} and {} bytes", self.path.display(), self.range, self.tail.len())
    }
}

/// What became of a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Taken by the socket, or by what is between us and it.
    pub(crate) bytes: u64,
    /// As many as were asked for.
    pub(crate) wanted: u64,
    /// As many as there are.
    pub(crate) total: u64,
    pub(crate) took: Duration,
}

/// Tells its end when it's dropped, which is when all was sent or the reader went away.
pub(crate) struct Sending {
    pub(crate) bytes: u64,
    wanted: u64,
    total: u64,
    since: Instant,
    ended: Arc<dyn Fn(Sent) + Send + Sync>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        // A reader that was gone before the first byte has fetched nothing.
        if self.bytes > 0 {
            let Self { bytes, wanted, total, .. } = *self;
            (self.ended)(Sent { bytes, wanted, total, took: self.since.elapsed() });
        }
    }
}

impl Parcel {
    pub(crate) fn start(&self) -> Sending {
        let wanted = self.range.end - self.range.start + self.tail.len() as u64;
        Sending { bytes: 0, wanted, total: self.total, since: Instant::now(), ended: Arc::clone(&self.ended) }
    }

    /// Whoever writes into a file that is being sent makes something of it that never was. To be asked before the reader can
    /// take what it has for the whole.
    pub(crate) fn unchanged(&self) -> io::Result<()> {
        if Edition::of(&self.file.metadata()?) == self.edition {
            return Ok(());
        }
        Err(io::Error::other("it was written to while it was sent"))
    }

    /// The reader is cut off, as there's no way to tell it why; the operator is told here.
    pub(crate) fn broken(&self, error: &io::Error) {
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it became shorter while it was sent".to_owned(),
            _ => error.to_string(),
        };
        error!("sending {}: {why}; the reader was cut off", self.path.display());
    }

    /// Puts an answer's parcel into its body.
    pub(crate) fn load(mut answer: Response) -> Response {
        if let Some(parcel) = answer.extensions_mut().remove::<Self>() {
            *answer.body_mut() = Body::from_stream(parcel.pieces());
        }
        answer
    }

    fn pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::try_unfold((self.start(), self), |(mut sending, mut parcel)| async move {
            let piece = if !parcel.range.is_empty() {
                parcel.read().await.inspect_err(|error| parcel.broken(error))?
            } else if !parcel.tail.is_empty() {
                mem::take(&mut parcel.tail)
            } else {
                return Ok(None);
            };
            sending.bytes += piece.len() as u64;
            Ok(Some((piece, (sending, parcel))))
        })
    }

    /// The next piece of the file.
    async fn read(&mut self) -> io::Result<Bytes> {
        let at = self.range.start;
        let length = PIECE.min(self.range.end - at);
        self.range.start += length;
        let parcel = self.clone();
        let read = move || {
            let mut piece = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            parcel.file.read_exact_at(&mut piece, at)?;
            if parcel.range.is_empty() {
                parcel.unchanged()?;
            }
            Ok(Bytes::from(piece))
        };
        tokio::task::spawn_blocking(read).await?
    }
}
