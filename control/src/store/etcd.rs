//! The engine for several servers: an etcd cluster of version 3.4 or later.
//!
//! What etcd itself promises is all that is relied on: reads and commits are linearizable, watches miss nothing, a lease
//! that isn't kept alive ends. What's left to do here is to survive its members: whoever doesn't answer is left for the
//! next one, until [`PATIENCE`] is over.
//!
//! A commit whose answer was lost may have happened or not, and asking again could do it twice. So each commit also writes
//! what no other writes, into one of this server's *slots*, and depends on the slot being as it was. Sent again, it either
//! happens for the first time or finds its own writing there.

mod link;
mod wire;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use self::link::Link;
pub(crate) use self::link::Unanswered;
pub use self::link::{At, Login, Tls};
use self::wire::{
    Compare, DeleteRangeRequest, KeyValue, Kind, LeaseGrantRequest, LeaseRequest, LeaseResponse, Nothing, Operand,
    PutRequest, RangeRequest, RangeResponse, Relation, Request, RequestOp, Target, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::{Changes, Committed, Engine, Entry, Expected, Hold, News, Revision, Tell};
use crate::unix_ms;

/// Read at once; more in several pieces of one moment.
const PAGE: usize = 1000;
/// A new leader takes a few seconds, a member that is restarted some more.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);
const FORGETFUL: &str =
    "etcd forgets its history faster than it can be read: let it keep some minutes (--auto-compaction-retention)";
/// Slots of servers that were gone for as long are removed.
const SLOT_LIFE_MS: u64 = 24 * 60 * 60 * 1000;

pub(crate) struct Cluster {
    inner: Arc<Inner>,
    /// `None` when it's dropped.
    runtime: Option<Runtime>,
}

struct Inner {
    link: Link,
    keys: Keys,
    slots: Mutex<Slots>,
    closed: AtomicBool,
}

/// How our keys are called in the cluster, which may have others as well.
struct Keys {
    data: Vec<u8>,
    held: Vec<u8>,
    slots: Vec<u8>,
}

/// Those that no commit has at the moment.
struct Slots {
    free: Vec<Slot>,
    made: u64,
    server: Uuid,
}

struct Slot {
    key: Vec<u8>,
    /// 0 if it was never written.
    revision: i64,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({})", self.inner.link)
    }
}

impl Cluster {
    pub(super) fn connect(at: &At) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()
            .context("starting the runtime that talks to etcd")?;
        let _inside = runtime.enter();
        let link = Link::new(at)?;
        let below = |name: &str| format!("{}/{name}/", at.prefix.trim_end_matches('/')).into_bytes();
        let keys = Keys { data: below("data"), held: below("held"), slots: below("slots") };
        let slots = Mutex::new(Slots { free: vec![], made: 0, server: Uuid::new_v4() });
        let inner = Arc::new(Inner { link, keys, slots, closed: AtomicBool::new(false) });
        let cluster = Self { inner, runtime: Some(runtime) };
        cluster.wait(|inner| async move { inner.remove_old_slots().await }).context("opening the state in etcd")?;
        Ok(cluster)
    }

    /// Does `work` in the runtime and waits for it: callers may have one of their own.
    fn wait<R, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Result<R>
    where
        R: Send + 'static,
        F: Future<Output = Result<R>> + Send + 'static,
    {
        let (done, ended) = mpsc::sync_channel(1);
        let work = work(Arc::clone(&self.inner));
        self.runtime()?.spawn(async move {
            // The receiver waits below.
            let _ = done.send(work.await);
        });
        ended.recv().context("talking to etcd has no end")?
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.runtime.as_ref().context("the connection to etcd is closed")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.inner.closed.store(true, Ordering::Relaxed);
        // It may be dropped where nobody may wait.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Engine for Cluster {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        let key = [&self.inner.keys.data, key].concat();
        self.wait(|inner| async move {
            let asked = RangeRequest { key, ..RangeRequest::default() };
            let found: RangeResponse = inner.link.ask("KV/Range", asked, PATIENCE).await?;
            found.kvs.into_iter().next().map(|kv| inner.keys.entry(kv)).transpose()
        })
    }

    fn range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<(Vec<Entry>, Revision)> {
        let (prefix, from) = (prefix.to_vec(), from.to_vec());
        self.wait(|inner| async move { inner.range(&prefix, &from, limit).await })
    }

    fn all(&self, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut next = Some(Place { key: self.inner.keys.data.clone(), revision: 0 });
        while let Some(place) = next {
            let page = self.wait(|inner| async move {
                let got = inner.page(&place, &after_prefix(&inner.keys.data), PAGE).await;
                got.map_err(|e| if link::is_compacted(&e) { e.context(FORGETFUL) } else { e })
            })?;
            page.entries.into_iter().try_for_each(&mut *each)?;
            next = page.next;
        }
        Ok(())
    }

    fn commit(&self, expect: Expected, changes: Changes) -> Result<Committed> {
        self.wait(|inner| async move { inner.commit(expect, changes).await })
    }

    fn watch(&self, after: Revision, tell: Tell) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        let after = i64::try_from(after).context("watching etcd")?;
        self.runtime()?.spawn(async move { inner.watch(after, tell).await });
        Ok(())
    }

    fn hold(&self, name: &str, who: &str, life: Duration) -> Result<Option<Box<dyn Hold>>> {
        let (key, value) = ([&self.inner.keys.held, name.as_bytes()].concat(), who.as_bytes().to_vec());
        let Some(held) = self.wait(|inner| async move { inner.hold(key, value, life).await })? else {
            return Ok(None);
        };
        let held = Arc::new(held);
        self.runtime()?.spawn(Arc::clone(&held).keep_alive());
        Ok(Some(Box::new(Holding(held))))
    }

    fn held(&self, prefix: &str) -> Result<Vec<String>> {
        let key = [&self.inner.keys.held, prefix.as_bytes()].concat();
        self.wait(|inner| async move {
            let range_end = after_prefix(&key);
            let asked = RangeRequest { key, range_end, ..RangeRequest::default() };
            let found: RangeResponse = inner.link.ask("KV/Range", asked, PATIENCE).await?;
            let name =
                |kv: KeyValue| String::from_utf8_lossy(kv.key.get(inner.keys.held.len()..).unwrap_or_default()).into();
            Ok(found.kvs.into_iter().map(name).collect())
        })
    }
}

impl Keys {
    fn entry(&self, kv: KeyValue) -> Result<Entry> {
        let key = kv.key.strip_prefix(self.data.as_slice()).context("etcd answered with a key of somebody else")?;
        Ok(Entry { key: key.to_vec(), value: kv.value, revision: u64::try_from(kv.mod_revision)? })
    }
}

impl Inner {
    async fn remove_old_slots(&self) -> Result<()> {
        let key = self.keys.slots.clone();
        let range_end = after_prefix(&key);
        let found: RangeResponse =
            self.link.ask("KV/Range", RangeRequest { key, range_end, ..RangeRequest::default() }, PATIENCE).await?;
        let now = unix_ms();
        for slot in found.kvs {
            let written = String::from_utf8(slot.value).ok().and_then(|v| v.split_once(' ')?.0.parse::<u64>().ok());
            if written.is_none_or(|at| now.saturating_sub(at) > SLOT_LIFE_MS) {
                let _: Nothing =
                    self.link.ask("KV/DeleteRange", DeleteRangeRequest { key: slot.key }, PATIENCE).await?;
            }
        }
        Ok(())
    }

    async fn range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<(Vec<Entry>, Revision)> {
        let start = [&self.keys.data, prefix.max(from)].concat();
        let range_end = after_prefix(&[&self.keys.data, prefix].concat());
        'anew: for _ in 0..3 {
            let mut found = Vec::new();
            let mut next = Some(Place { key: start.clone(), revision: 0 });
            let mut revision = 0;
            while let Some(place) = next {
                let got = match self.page(&place, &range_end, limit.saturating_sub(found.len()).min(PAGE)).await {
                    Ok(got) => got,
                    // Others may have had etcd forget the moment that we're reading.
                    Err(error) if place.revision != 0 && link::is_compacted(&error) => continue 'anew,
                    Err(error) => return Err(error),
                };
                found.extend(got.entries);
                revision = got.revision;
                next = got.next.filter(|_| found.len() < limit);
            }
            return Ok((found, u64::try_from(revision)?));
        }
        bail!(FORGETFUL)
    }

    async fn page(&self, at: &Place, range_end: &[u8], limit: usize) -> Result<Page> {
        let (key, revision) = (at.key.clone(), at.revision);
        let asked = RangeRequest { key, range_end: range_end.to_vec(), limit: i64::try_from(limit)?, revision };
        let got: RangeResponse = self.link.ask("KV/Range", asked, PATIENCE).await?;
        let revision = match revision {
            0 => got.header.context("etcd didn't say of which revision its answer is")?.revision,
            revision => revision,
        };
        let last = got.kvs.last().map(|kv| [kv.key.as_slice(), b"\0"].concat());
        let entries = got.kvs.into_iter().map(|kv| self.keys.entry(kv)).collect::<Result<_>>()?;
        let next = last.filter(|_| got.more).map(|key| Place { key, revision });
        Ok(Page { entries, revision, next })
    }

    async fn commit(&self, expect: Expected, changes: Changes) -> Result<Committed> {
        let mut slot = lock(&self.slots).take(&self.keys);
        let done = self.commit_with(&mut slot, expect, changes).await;
        // A slot of which it isn't known what is in it is never used again.
        if done.is_ok() {
            lock(&self.slots).free.push(slot);
        }
        done
    }

    async fn commit_with(&self, slot: &mut Slot, expect: Expected, changes: Changes) -> Result<Committed> {
        let mine = format!("{} {}", unix_ms(), Uuid::new_v4()).into_bytes();
        let data = |key: &[u8]| [&self.keys.data, key].concat();
        let mut compare = vec![as_it_was(slot.key.clone(), slot.revision)];
        for (key, revision) in &expect {
            compare.push(as_it_was(data(key), i64::try_from(*revision)?));
        }
        let mut success = vec![put(slot.key.clone(), mine.clone())];
        for (key, value) in changes {
            success.push(match value {
                Some(value) => put(data(&key), value),
                None => RequestOp { request: Some(Request::Delete(DeleteRangeRequest { key: data(&key) })) },
            });
        }
        let look = RangeRequest { key: slot.key.clone(), ..RangeRequest::default() };
        let failure = vec![RequestOp { request: Some(Request::Range(look)) }];
        let many = success.len();
        let asked = TxnRequest { compare, success, failure };
        let answer: TxnResponse = self.link.ask("KV/Txn", asked, PATIENCE).await.map_err(|e| link::explain(e, many))?;
        if answer.succeeded {
            slot.revision = answer.header.context("etcd didn't say at which revision it committed")?.revision;
            return Ok(Committed::Durable(u64::try_from(slot.revision)?));
        }
        let found = answer.responses.into_iter().find_map(|r| r.range).and_then(|r| r.kvs.into_iter().next());
        match found {
            // It had happened before, and the answer was lost.
            Some(kv) if kv.value == mine => {
                slot.revision = kv.mod_revision;
                Ok(Committed::Durable(u64::try_from(slot.revision)?))
            }
            Some(kv) if kv.mod_revision == slot.revision => Ok(Committed::Conflict),
            None if slot.revision == 0 => Ok(Committed::Conflict),
            _ => bail!(
                "somebody else wrote to this server's keys in etcd: look before you try again, the change may be in or not"
            ),
        }
    }

    async fn watch(&self, mut after: i64, mut tell: Tell) {
        while !self.closed.load(Ordering::Relaxed) {
            match self.watch_once(&mut after, &mut tell).await {
                Ok(Ended::NotWanted) => return,
                Ok(Ended::Lost) => {
                    tell(News::Lost);
                    return;
                }
                Err(error) => {
                    tracing::warn!("watching etcd, which goes on with another member: {error:#}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Until the connection ends, and then with an error.
    async fn watch_once(&self, after: &mut i64, tell: &mut Tell) -> Result<Ended> {
        let create = WatchCreateRequest {
            key: self.keys.data.clone(),
            range_end: after_prefix(&self.keys.data),
            start_revision: *after + 1,
        };
        let mut answers = self.link.converse("Watch/Watch", WatchRequest { create: Some(create) }).await?;
        loop {
            let answer: WatchResponse = answers.next().await?;
            if answer.canceled {
                if answer.compact_revision > 0 {
                    return Ok(Ended::Lost);
                }
                bail!("etcd ended the watch: {}", answer.cancel_reason);
            }
            let mut events = answer.events.into_iter().peekable();
            while let Some(first) = events.peek() {
                let revision = first.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                let mut changes = Changes::new();
                while let Some(event) = events.next_if(|e| e.kv.as_ref().map_or(0, |kv| kv.mod_revision) == revision) {
                    let is_put = event.kind == Kind::Put as i32;
                    let entry = self.keys.entry(event.kv.context("etcd told of a change of nothing")?)?;
                    changes.insert(entry.key, is_put.then_some(entry.value));
                }
                *after = revision;
                if !tell(News::Changed { revision: u64::try_from(revision)?, changes }) {
                    return Ok(Ended::NotWanted);
                }
            }
        }
    }

    async fn hold(self: Arc<Self>, key: Vec<u8>, value: Vec<u8>, life: Duration) -> Result<Option<Held>> {
        let ttl = i64::try_from(life.as_secs().max(1))?;
        let asked = Instant::now();
        let lease: LeaseResponse = self
            .link
            .ask("Lease/LeaseGrant", LeaseGrantRequest { ttl }, PATIENCE)
            .await
            .context("asking for a lease")?;
        ensure!(lease.id != 0, "etcd gave no lease");
        let look = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let take = Request::Put(PutRequest { key: key.clone(), value, lease: lease.id });
        let asking = TxnRequest {
            compare: vec![as_it_was(key, 0)],
            success: vec![RequestOp { request: Some(take) }],
            failure: vec![RequestOp { request: Some(Request::Range(look)) }],
        };
        let answer: TxnResponse = self.link.ask("KV/Txn", asking, PATIENCE).await?;
        let by = answer.responses.into_iter().find_map(|r| r.range).and_then(|r| r.kvs.into_iter().next());
        if answer.succeeded || by.is_some_and(|kv| kv.lease == lease.id) {
            let life = Duration::from_secs(u64::try_from(lease.ttl)?);
            let until = Mutex::new(asked + life);
            return Ok(Some(Held { inner: self, lease: lease.id, life, until, dropped: AtomicBool::new(false) }));
        }
        let _: Nothing = self.link.ask("Lease/LeaseRevoke", LeaseRequest { id: lease.id }, PATIENCE).await?;
        Ok(None)
    }
}

/// Where reading goes on, and of which moment; 0 for now.
struct Place {
    key: Vec<u8>,
    revision: i64,
}

struct Page {
    entries: Vec<Entry>,
    revision: i64,
    next: Option<Place>,
}

enum Ended {
    NotWanted,
    Lost,
}

#[derive(Debug)]
struct Holding(Arc<Held>);

struct Held {
    inner: Arc<Inner>,
    lease: i64,
    life: Duration,
    until: Mutex<Instant>,
    dropped: AtomicBool,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held(lease {:x})", self.lease)
    }
}

impl Hold for Holding {
    fn is_held(&self) -> bool {
        Instant::now() < *lock(&self.0.until)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Relaxed);
    }
}

impl Held {
    /// Until it isn't wanted any more, or is lost.
    async fn keep_alive(self: Arc<Self>) {
        let request = LeaseRequest { id: self.lease };
        let mut next = Instant::now() + self.life / 3;
        loop {
            if self.dropped.load(Ordering::Relaxed) {
                let revoked: Result<Nothing> = self.inner.link.ask("Lease/LeaseRevoke", request, self.life).await;
                // It ends by itself then.
                drop(revoked);
                return;
            }
            tokio::time::sleep(PAUSE.min(self.life / 10)).await;
            let asked = Instant::now();
            if asked < next {
                continue;
            }
            let kept = async { self.inner.link.converse("Lease/LeaseKeepAlive", request).await?.next().await };
            match tokio::time::timeout(self.life / 3, kept).await {
                Ok(Ok(LeaseResponse { ttl: 0, .. })) => {
                    *lock(&self.until) = asked;
                    tracing::warn!("a lease of this server in etcd ended: it wasn't reached for {:?}", self.life);
                    return;
                }
                Ok(Ok(_)) => {
                    *lock(&self.until) = asked + self.life;
                    next = asked + self.life / 3;
                }
                Ok(Err(error)) => tracing::warn!("keeping a lease in etcd alive, which is tried again: {error:#}"),
                Err(_) => tracing::warn!("keeping a lease in etcd alive took too long; it's tried again"),
            }
        }
    }
}

impl Slots {
    fn take(&mut self, keys: &Keys) -> Slot {
        self.free.pop().unwrap_or_else(|| {
            self.made += 1;
            let key = [keys.slots.as_slice(), format!("{}/{}", self.server.simple(), self.made).as_bytes()].concat();
            Slot { key, revision: 0 }
        })
    }
}

fn as_it_was(key: Vec<u8>, revision: i64) -> Compare {
    let operand = Some(Operand::ModRevision(revision));
    Compare { result: Relation::Equal as i32, target: Target::Mod as i32, key, operand }
}

fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Request::Put(PutRequest { key, value, lease: 0 })) }
}

/// The first key that doesn't begin with `prefix` any more. Ours are text, so the last byte isn't the last possible one.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    end.iter_mut().last().into_iter().for_each(|last| *last += 1);
    end
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
