//! Lease changes on their way to the disk, and the answers that wait for them.
//!
//! A thread of its own writes, one flush at a time. What is decided during a flush goes into the next one together: the
//! slower the disk, the more leases each flush carries, and requests that need no disk never wait for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::leases::{Entry, Row};
use super::store::Store;

/// The newest row of each address.
pub(super) type Rows = BTreeMap<Ipv4Addr, Option<Entry>>;

/// Answers that wait for one flush. With a disk that is slower than that, requests are left in the socket.
const MOST_WAITING: usize = 16_384;

/// What isn't on disk yet, and so was told to nobody.
#[derive(Debug)]
pub(super) struct Unsaved<T> {
    rows: Rows,
    /// Told once `rows` are on disk.
    waiting: Vec<T>,
    /// Told once the flush that is under way has ended.
    flushing: Option<Vec<T>>,
    /// Since when the disk has been full or broken.
    failing: Option<Instant>,
}

impl<T> Default for Unsaved<T> {
    fn default() -> Self {
        Self { rows: Rows::new(), waiting: vec![], flushing: None, failing: None }
    }
}

/// What a flush that ended means.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Saved,
    /// For the first time since then.
    SavedAgain(Instant),
    Failed,
    FailedAgain,
}

impl<T> Unsaved<T> {
    pub(super) fn add(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    /// `answer` is told once all that was added up to now is on disk.
    pub(super) fn wait(&mut self, answer: T) {
        self.waiting.push(answer);
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST_WAITING
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// The next flush, if there's something to write and none is under way. What a broken disk refused isn't tried again
    /// until somebody waits for it.
    pub(super) fn flush(&mut self) -> Option<Rows> {
        if self.flushing.is_some() || self.rows.is_empty() || (self.is_failing() && self.waiting.is_empty()) {
            return None;
        }
        self.flushing = Some(std::mem::take(&mut self.waiting));
        Some(std::mem::take(&mut self.rows))
    }

    /// A flush of `rows` has ended: the answers that may go out now. After a failure its rows are written with the next
    /// change, and its answers are never given: clients ask again.
    pub(super) fn flushed(&mut self, rows: Rows, saved: bool, now: Instant) -> (Outcome, Vec<T>) {
        let mut answers = self.flushing.take().unwrap_or_default();
        if saved {
            if self.rows.is_empty() {
                answers.append(&mut self.waiting);
            }
            return (self.failing.take().map_or(Outcome::Saved, Outcome::SavedAgain), answers);
        }
        for (address, entry) in rows {
            self.rows.entry(address).or_insert(entry);
        }
        let outcome = if self.is_failing() { Outcome::FailedAgain } else { Outcome::Failed };
        self.failing.get_or_insert(now);
        (outcome, vec![])
    }
}

/// The thread that writes. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None` only while it is dropped.
    orders: Option<Sender<Rows>>,
    ended: Receiver<(Rows, Result<()>)>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(store: Store) -> Result<Self> {
        let (orders, todo) = channel::<Rows>();
        let (end, ended) = channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let bell = Arc::new(bell.context("making an event descriptor")?);
        let ring = Arc::clone(&bell);
        let work = move || {
            for rows in todo {
                let written = store.write(&rows);
                // Nobody listens any more when the server stops, and a bell that can't be rung rings already.
                end.send((rows, written)).ok();
                ring.write(1).ok();
            }
        };
        let thread = thread::Builder::new().name("dhcp-leases".into()).spawn(work).context("starting a thread")?;
        Ok(Self { orders: Some(orders), ended, bell, thread: Some(thread) })
    }

    pub(super) fn write(&self, rows: Rows) -> Result<()> {
        let sent = self.orders.as_ref().map(|orders| orders.send(rows).is_ok());
        if sent != Some(true) {
            bail!("the thread that stores leases has ended");
        }
        Ok(())
    }

    /// The flush that has ended since the last call, and how.
    pub(super) fn ended(&self) -> Result<Option<(Rows, Result<()>)>> {
        match self.bell.read() {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e).context("hearing that leases are stored"),
        }
        match self.ended.try_recv() {
            Ok(ended) => Ok(Some(ended)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("the thread that stores leases has ended"),
        }
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; what it hadn't written was told to nobody.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::leases::Holder;
    use super::super::leases::tests::{ip, mac};
    use super::*;

    fn row(n: u8, until: u64) -> Row {
        (ip(n), Some(Entry { holder: Holder::Bound(mac(n)), until }))
    }

    fn rows(rows: &[Row]) -> Option<Rows> {
        Some(rows.iter().copied().collect())
    }

    #[test]
    fn an_answer_waits_for_the_flush_that_carries_its_lease() {
        let now = Instant::now();
        let mut unsaved = Unsaved::default();
        assert_eq!(unsaved.flush(), None, "nothing to write");
        unsaved.add(vec![row(1, 10)]);
        unsaved.wait("first");
        let first = unsaved.flush();
        assert_eq!(first, rows(&[row(1, 10)]));
        unsaved.add(vec![row(2, 10), row(3, 10)]);
        unsaved.wait("second");
        unsaved.wait("third");
        assert_eq!(unsaved.flush(), None, "one at a time");
        assert_eq!(unsaved.flushed(first.expect("rows"), true, now), (Outcome::Saved, vec!["first"]));
        let second = unsaved.flush();
        assert_eq!(second, rows(&[row(2, 10), row(3, 10)]), "all that gathered meanwhile");
        assert_eq!(unsaved.flushed(second.expect("rows"), true, now), (Outcome::Saved, vec!["second", "third"]));
        assert_eq!(unsaved.flush(), None);
    }

    #[test]
    fn what_a_full_disk_refused_is_written_later_and_told_to_nobody() {
        let now = Instant::now();
        let mut unsaved = Unsaved::default();
        unsaved.add(vec![row(1, 10), row(2, 10)]);
        unsaved.wait("first");
        let failed = unsaved.flush().expect("rows");
        // Renewed while the disk was still trying.
        unsaved.add(vec![row(1, 20)]);
        assert_eq!(unsaved.flushed(failed, false, now), (Outcome::Failed, vec![]));
        assert_eq!(unsaved.flush(), None, "nobody waits for it");
        unsaved.wait("second");
        let both = unsaved.flush();
        assert_eq!(both, rows(&[row(1, 20), row(2, 10)]), "the newest of each");
        assert_eq!(unsaved.flushed(both.expect("rows"), false, now), (Outcome::FailedAgain, vec![]));
        unsaved.wait("third");
        let again = unsaved.flush().expect("rows");
        unsaved.wait("fourth");
        assert_eq!(unsaved.flushed(again, true, now), (Outcome::SavedAgain(now), vec!["third", "fourth"]));
        assert!(!unsaved.is_failing());
    }

    #[test]
    fn the_thread_writes_and_rings() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("leases.redb");
        let (store, _) = Store::open(&path).expect("a new file");
        let writer = Writer::start(store).expect("a thread");
        assert!(writer.ended().expect("runs").is_none());
        writer.write([row(1, 10)].into()).expect("runs");
        let mut fds = [nix::poll::PollFd::new(writer.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).expect("a bell");
        let (written, result) = writer.ended().expect("runs").expect("a flush");
        assert_eq!(Some(written), rows(&[row(1, 10)]));
        result.expect("written");
        drop(writer);
        assert_eq!(Store::open(&path).expect("nobody has it open").1.len(), 1);
    }
}
