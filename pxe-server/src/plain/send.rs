//! Files out of a socket without a copy of them in this program.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Advice, fadvise, sendfile};
use rustix::io::{ReadWriteFlags, preadv2, retry_on_intr};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::write;
use crate::http::parcel::{Parcel, Sending};

/// As much as is sent without a look at other connections.
const PIECE: u64 = 1 << 20;
/// As much as is asked of the disk at once.
const WINDOW: u64 = 4 << 20;
/// As much as any disk reads ahead.
const STEP: u64 = 128 << 10;

/// Sends a head and what it announces. `false`: the file wasn't good for it, which has been logged, and the reader can
/// only be told by an end of the connection.
pub(super) async fn send(stream: &mut TcpStream, head: &[u8], parcel: &Parcel, patience: Duration) -> io::Result<bool> {
    let mut sending = parcel.start();
    // Without a cork, every piece ends in a small packet of its own, which costs a sixth more.
    SockRef::from(&*stream).set_tcp_cork(true)?;
    write(stream, head, patience).await?;
    match send_file(stream, parcel, &mut sending, patience).await {
        Ok(()) => {}
        Err(error) if is_the_readers(&error) => return Err(error),
        Err(error) => {
            parcel.broken(&error);
            return Ok(false);
        }
    }
    write(stream, &parcel.tail, patience).await?;
    sending.bytes += parcel.tail.len() as u64;
    SockRef::from(&*stream).set_tcp_cork(false)?;
    Ok(true)
}

async fn send_file(stream: &TcpStream, parcel: &Parcel, sending: &mut Sending, patience: Duration) -> io::Result<()> {
    let (mut at, end) = (parcel.range.start, parcel.range.end);
    let mut in_memory = at;
    while at < end {
        if at >= in_memory {
            in_memory = end.min(at + WINDOW);
            if !(is_in_memory(&parcel.file, at) && is_in_memory(&parcel.file, in_memory - 1)) {
                let (file, window) = (Arc::clone(&parcel.file), at..in_memory);
                tokio::task::spawn_blocking(move || fetch(&file, window)).await??;
            }
        }
        // The last byte is held back until the others are known to belong together.
        let until = if end - at == 1 {
            parcel.unchanged()?;
            end
        } else {
            in_memory.min(end - 1)
        };
        let length = usize::try_from(PIECE.min(until - at)).map_err(io::Error::other)?;
        let piece = || Ok(retry_on_intr(|| sendfile(stream, &*parcel.file, Some(&mut at), length))?);
        match timeout(patience, stream.async_io(Interest::WRITABLE, piece)).await?? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            sent => sending.bytes += sent as u64,
        }
    }
    Ok(())
}

/// Whether a byte can be had without waiting for a disk. File systems that can't tell are taken to be slow.
fn is_in_memory(file: &File, at: u64) -> bool {
    let mut byte = [0];
    preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT).is_ok()
}

/// Waits for a window of the file and has the disk go on with the next. Sending waits for the disk as well, but there all
/// other connections of the thread would wait with it.
fn fetch(file: &File, window: Range<u64>) -> io::Result<()> {
    let steps = |bytes: Range<u64>| bytes.step_by(usize::try_from(STEP).unwrap_or(usize::MAX));
    for step in steps(window.start..window.end + WINDOW) {
        let _only_advice = fadvise(file, step, STEP.try_into().ok(), Advice::WillNeed);
    }
    for step in steps(window.clone()) {
        let last = window.end.min(step + STEP) - 1;
        retry_on_intr(|| preadv2(file, &mut [IoSliceMut::new(&mut [0])], last, ReadWriteFlags::empty()))?;
    }
    Ok(())
}

/// Machines reset connections all the time, which is no fault of the file's.
fn is_the_readers(error: &io::Error) -> bool {
    use ErrorKind::*;
    matches!(
        error.kind(),
        BrokenPipe
            | ConnectionReset
            | ConnectionAborted
            | NotConnected
            | TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
    )
}
