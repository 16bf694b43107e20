//! Where the state is kept: a small seam, and the transactions that everything else is written in.
//!
//! [`Engine`] is what etcd offers: revisioned values, ranges by prefix, a commit that only happens if what was read is still
//! so, news of every commit from a revision on, and keys that are held for as long as their holder lives. The embedded
//! engine ([`redb`]) offers the same on one file. [`Store::transact`] builds optimistic transactions on it: a closure reads
//! and writes, and runs again if somebody else was faster. It returns once the changes are durable, so whatever is answered
//! afterwards survives a power cut.

pub(crate) mod etcd;
mod redb;
#[cfg(test)]
mod suite;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Grows with every commit; 0 stands for a key that isn't there.
pub(crate) type Revision = u64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// Of the commit that wrote this value.
    pub(crate) revision: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    Durable(Revision),
    /// Some key's revision wasn't the expected one; nothing was written.
    Conflict,
}

/// The revisions that a commit relies on.
pub(crate) type Expected = BTreeMap<Vec<u8>, Revision>;

/// `None` deletes.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// As many as etcd takes at once by default, less some that the engine needs itself. Transactions whose size depends on
/// how much there is to do are cut in pieces of half of this.
pub(crate) const MOST_CHANGES: usize = 120;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Changes of one commit, or of several that are told as one: what is told later is newer.
    Changed { revision: Revision, changes: Changes },
    /// What happened after the revision that was asked for isn't kept any more, and nothing else is told: everything has
    /// to be read anew.
    Lost,
}

/// Called in order, one at a time. It must neither wait nor use the store. `false` ends it.
pub(crate) type Tell = Box<dyn FnMut(News) -> bool + Send>;

/// Something that is this process's for as long as it lives and is connected. Dropped, it's free again.
pub(crate) trait Hold: Send + Sync + fmt::Debug {
    /// Whether it's certainly still held.
    fn is_held(&self) -> bool;
}

pub(crate) trait Engine: Send + Sync + fmt::Debug {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>>;
    /// Entries whose key begins with `prefix` and is `from` or later, in order, at most `limit`: all as they were at the
    /// revision that comes with them.
    fn range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<(Vec<Entry>, Revision)>;
    /// All entries in order, as they were at one moment.
    fn all(&self, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()>;
    /// All of `changes` or none, durable when this returns.
    fn commit(&self, expect: Expected, changes: Changes) -> Result<Committed>;
    /// Tells of every commit after a revision, those of others too.
    fn watch(&self, after: Revision, tell: Tell) -> Result<()>;
    /// Takes what is called `name` and says who has it; `None` if somebody else does. It's free again `life` after its
    /// holder was last heard of.
    fn hold(&self, name: &str, who: &str, life: Duration) -> Result<Option<Box<dyn Hold>>>;
    /// What is held at the moment and begins with `prefix`.
    fn held(&self, prefix: &str) -> Result<Vec<String>>;
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    engine: Arc<dyn Engine>,
    followed: Arc<Followed>,
}

/// How far somebody in this process has followed the store. Its own commits are answered when they are seen, so that
/// whoever changed something finds it changed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    /// `None` if nobody follows.
    revision: Mutex<Option<Revision>>,
    grown: Condvar,
}

impl Followed {
    /// Everything up to this is seen.
    pub(crate) fn until(&self, revision: Revision) {
        *self.lock() = Some(revision);
        self.grown.notify_all();
    }

    fn wait_for(&self, revision: Revision) {
        let late = |seen: &mut Option<Revision>| seen.is_some_and(|seen| seen < revision);
        // Its answer is as good: what it says is durable.
        let _ = self.grown.wait_timeout_while(self.lock(), LATE, late);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Revision>> {
        self.revision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody waits longer than this for what they did to be seen here.
const LATE: Duration = Duration::from_secs(1);

/// Each attempt loses only to a commit that won, so this many in a row is a fault, not a busy day.
const MAX_ATTEMPTS: u32 = 1000;

impl Store {
    /// The embedded engine: one file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { engine: Arc::new(redb::File::open(path)?), followed: Arc::default() })
    }

    /// An etcd cluster, which other servers may use as well.
    pub(crate) fn connect(at: &etcd::At) -> Result<Self> {
        Ok(Self { engine: Arc::new(etcd::Cluster::connect(at)?), followed: Arc::default() })
    }

    /// For whoever follows it.
    pub(crate) fn followed(&self) -> Arc<Followed> {
        Arc::clone(&self.followed)
    }

    pub(crate) fn transact<R, E: From<anyhow::Error>>(
        &self,
        mut body: impl FnMut(&mut Txn<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        for _ in 0..MAX_ATTEMPTS {
            let mut txn = Txn { engine: &*self.engine, read: BTreeMap::new(), changes: Changes::new() };
            let result = body(&mut txn)?;
            if let Committed::Durable(revision) = txn.commit()? {
                self.followed.wait_for(revision);
                return Ok(result);
            }
        }
        Err(anyhow!("the state changed under {MAX_ATTEMPTS} attempts in a row to change it").into())
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(entry) = self.engine.get(key.as_bytes())? else { return Ok(None) };
        decode(key.as_bytes(), &entry.value).map(Some)
    }

    /// The first records whose key begins with `prefix` and comes after `after`.
    pub(crate) fn page<T: DeserializeOwned>(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<T>> {
        // The next possible key in byte order.
        let from = after.map(|key| [key.as_bytes(), b"\0"].concat()).unwrap_or_default();
        let (entries, _) = self.engine.range(prefix.as_bytes(), &from, limit)?;
        entries.iter().map(|e| decode(&e.key, &e.value)).collect()
    }

    /// All whose key begins with `prefix`, and at which revision that was so.
    pub(crate) fn entries(&self, prefix: &str) -> Result<(Vec<Entry>, Revision)> {
        self.engine.range(prefix.as_bytes(), &[], usize::MAX)
    }

    /// See [`Engine::all`].
    pub(crate) fn all(&self, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        self.engine.all(each)
    }

    /// The first keys that begin with `prefix`.
    pub(crate) fn keys(&self, prefix: &str, limit: usize) -> Result<Vec<String>> {
        let (entries, _) = self.engine.range(prefix.as_bytes(), &[], limit)?;
        entries.into_iter().map(|e| String::from_utf8(e.key).context("reading a key of the store")).collect()
    }

    /// See [`Engine::held`].
    pub(crate) fn held(&self, prefix: &str) -> Result<Vec<String>> {
        self.engine.held(prefix)
    }

    /// See [`Engine::hold`].
    pub(crate) fn hold(&self, name: &str, who: &str, life: Duration) -> Result<Option<Box<dyn Hold>>> {
        self.engine.hold(name, who, life)
    }

    /// See [`Engine::watch`].
    pub(crate) fn watch(&self, after: Revision, tell: Tell) -> Result<()> {
        self.engine.watch(after, tell)
    }

    /// Of the commit that wrote what is there.
    #[cfg(test)]
    pub(crate) fn revision(&self, key: &str) -> Result<Option<Revision>> {
        Ok(self.engine.get(key.as_bytes())?.map(|entry| entry.revision))
    }

    /// All records whose key begins with `prefix` and comes after `after`.
    pub(crate) fn list<T: DeserializeOwned>(&self, prefix: &str, after: Option<&str>) -> Result<Vec<T>> {
        self.page(prefix, after, usize::MAX)
    }
}

/// One attempt of a transaction. Sees its own writes in `get`, not in `keys`.
#[derive(Debug)]
pub(crate) struct Txn<'a> {
    engine: &'a dyn Engine,
    read: BTreeMap<Vec<u8>, Option<Entry>>,
    changes: Changes,
}

impl Txn<'_> {
    pub(crate) fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        let key = key.as_bytes();
        let value = match self.changes.get(key) {
            Some(written) => written.as_deref(),
            None => {
                if !self.read.contains_key(key) {
                    self.read.insert(key.to_vec(), self.engine.get(key)?);
                }
                self.read.get(key).and_then(|e| e.as_ref()).map(|e| e.value.as_slice())
            }
        };
        value.map(|v| decode(key, v)).transpose()
    }

    pub(crate) fn put(&mut self, key: &str, value: &impl Serialize) -> Result<()> {
        let value = encode(value).with_context(|| format!("writing {key} to the store"))?;
        self.changes.insert(key.as_bytes().to_vec(), Some(value));
        Ok(())
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.changes.insert(key.as_bytes().to_vec(), None);
    }

    /// Does `work`, which an error leaves undone.
    pub(crate) fn attempt<R, E>(&mut self, work: impl FnOnce(&mut Self) -> Result<R, E>) -> Result<R, E> {
        let before = self.changes.clone();
        let done = work(self);
        if done.is_err() {
            self.changes = before;
        }
        done
    }

    /// All records with this prefix, as the store has them. Not compared when committing.
    pub(crate) fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>> {
        let (entries, _) = self.engine.range(prefix.as_bytes(), &[], usize::MAX)?;
        entries.iter().map(|e| decode(&e.key, &e.value)).collect()
    }

    /// The first keys with this prefix that are in the store and not deleted here. Not compared when committing: good
    /// for keys that only change together with a record that was read.
    pub(crate) fn keys(&self, prefix: &str, limit: usize) -> Result<Vec<String>> {
        let deleted = self.changes.values().filter(|v| v.is_none()).count();
        let (entries, _) = self.engine.range(prefix.as_bytes(), &[], limit.saturating_add(deleted))?;
        let left = entries.into_iter().map(|e| e.key).filter(|k| self.changes.get(k) != Some(&None)).take(limit);
        left.map(|k| String::from_utf8(k).context("reading a key of the store")).collect()
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    fn commit(self) -> Result<Committed> {
        if !self.has_changes() {
            return Ok(Committed::Durable(0));
        }
        let expect = self.read.into_iter().map(|(key, entry)| (key, entry.map_or(0, |e| e.revision))).collect();
        self.engine.commit(expect, self.changes)
    }
}

/// Values of this size and more are compressed: inventories and certificates become a tenth, and etcd takes 1.5 MiB at once.
const LARGE: usize = 4 << 10;
const LEVEL: i32 = 1;
/// What agents may send is a fraction of this.
const MOST_BYTES: u64 = 64 << 20;

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(value)?;
    if json.len() < LARGE {
        return Ok(json);
    }
    Ok(zstd::bulk::compress(&json, LEVEL)?)
}

pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    let read = || -> Result<T> { Ok(serde_json::from_slice(&unpacked(value)?)?) };
    read().with_context(|| {
        let key = String::from_utf8_lossy(key);
        format!("reading {key} from the store, which another version of this program may have written")
    })
}

pub(crate) fn unpacked(value: &[u8]) -> Result<Cow<'_, [u8]>> {
    // No JSON begins like a zstd frame.
    if !value.starts_with(&zstd::zstd_safe::MAGICNUMBER.to_le_bytes()) {
        return Ok(value.into());
    }
    let mut json = Vec::new();
    zstd::Decoder::with_buffer(value)?.take(MOST_BYTES).read_to_end(&mut json)?;
    Ok(json.into())
}
