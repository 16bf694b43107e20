//! Where the state is kept: a small seam, and the transactions that everything else is written in.
//!
//! [`Engine`] is what etcd offers too: revisioned values, ranges by prefix, and a commit that only happens if what was
//! read is still so. [`Store::transact`] builds optimistic transactions on it: a closure reads and writes, and runs again
//! if somebody else was faster. It returns once the changes are durable, so whatever is answered afterwards survives
//! a power cut.

mod redb;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

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
    Durable,
    /// Some key's revision wasn't the expected one; nothing was written.
    Conflict,
}

/// The revisions that a commit relies on.
pub(crate) type Expected = BTreeMap<Vec<u8>, Revision>;

/// `None` deletes.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

pub(crate) trait Engine: Send + Sync + fmt::Debug {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>>;
    /// Entries whose key begins with `prefix` and is `from` or later, in order, at most `limit`.
    fn range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Entry>>;
    /// All of `changes` or none, durable when this returns.
    fn commit(&self, expect: Expected, changes: Changes) -> Result<Committed>;
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    engine: Arc<dyn Engine>,
}

/// Each attempt loses only to a commit that won, so this many in a row is a fault, not a busy day.
const MAX_ATTEMPTS: u32 = 1000;

impl Store {
    /// The embedded engine: one file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { engine: Arc::new(redb::File::open(path)?) })
    }

    pub(crate) fn transact<R, E: From<anyhow::Error>>(
        &self,
        mut body: impl FnMut(&mut Txn<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        for _ in 0..MAX_ATTEMPTS {
            let mut txn = Txn { engine: &*self.engine, read: BTreeMap::new(), changes: Changes::new() };
            let result = body(&mut txn)?;
            if txn.commit()? == Committed::Durable {
                return Ok(result);
            }
        }
        Err(anyhow!("the state changed under {MAX_ATTEMPTS} attempts in a row to change it").into())
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(entry) = self.engine.get(key.as_bytes())? else { return Ok(None) };
        decode(key.as_bytes(), &entry.value).map(Some)
    }

    /// Of the commit that wrote what is there.
    #[cfg(test)]
    pub(crate) fn revision(&self, key: &str) -> Result<Option<Revision>> {
        Ok(self.engine.get(key.as_bytes())?.map(|entry| entry.revision))
    }

    /// All records whose key begins with `prefix` and comes after `after`.
    pub(crate) fn list<T: DeserializeOwned>(&self, prefix: &str, after: Option<&str>) -> Result<Vec<T>> {
        // The next possible key in byte order.
        let from = after.map(|key| [key.as_bytes(), b"\0"].concat()).unwrap_or_default();
        let entries = self.engine.range(prefix.as_bytes(), &from, usize::MAX)?;
        entries.iter().map(|e| decode(&e.key, &e.value)).collect()
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
        let json = serde_json::to_vec(value).with_context(|| format!("writing {key} as JSON"))?;
        self.changes.insert(key.as_bytes().to_vec(), Some(json));
        Ok(())
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.changes.insert(key.as_bytes().to_vec(), None);
    }

    /// All records with this prefix, as the store has them. Not compared when committing.
    pub(crate) fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>> {
        let entries = self.engine.range(prefix.as_bytes(), &[], usize::MAX)?;
        entries.iter().map(|e| decode(&e.key, &e.value)).collect()
    }

    /// The first keys with this prefix that are in the store and not deleted here. Not compared when committing: good
    /// for keys that only change together with a record that was read.
    pub(crate) fn keys(&self, prefix: &str, limit: usize) -> Result<Vec<String>> {
        let deleted = self.changes.values().filter(|v| v.is_none()).count();
        let entries = self.engine.range(prefix.as_bytes(), &[], limit.saturating_add(deleted))?;
        let left = entries.into_iter().map(|e| e.key).filter(|k| self.changes.get(k) != Some(&None)).take(limit);
        left.map(|k| String::from_utf8(k).context("reading a key of the store")).collect()
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    fn commit(self) -> Result<Committed> {
        if !self.has_changes() {
            return Ok(Committed::Durable);
        }
        let expect = self.read.into_iter().map(|(key, entry)| (key, entry.map_or(0, |e| e.revision))).collect();
        self.engine.commit(expect, self.changes)
    }
}

fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).with_context(|| {
        let key = String::from_utf8_lossy(key);
        format!("reading {key} from the store, which another version of this program may have written")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        (dir, store)
    }

    #[test]
    fn concurrent_transactions_lose_no_update() {
        let (_dir, store) = store();
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..25 {
                        let added: Result<()> = store.transact(|t| {
                            let n: u64 = t.get("n")?.unwrap_or(0);
                            t.put("n", &(n + 1))
                        });
                        added.expect("counts");
                    }
                });
            }
        });
        assert_eq!(store.get::<u64>("n").expect("reads"), Some(100));
    }

    #[test]
    fn a_failed_transaction_writes_nothing() {
        let (_dir, store) = store();
        let failed: Result<()> = store.transact(|t| {
            t.put("a", &1)?;
            Err(anyhow!("changed my mind"))
        });
        assert_eq!(failed.expect_err("fails").to_string(), "changed my mind");
        assert_eq!(store.get::<u64>("a").expect("reads"), None);
    }

    #[test]
    fn lists_are_ordered_and_stay_in_their_prefix() {
        let (_dir, store) = store();
        let written: Result<()> = store.transact(|t| {
            for key in ["a/1", "a/2", "a/3", "b/1"] {
                t.put(key, &key)?;
            }
            Ok(())
        });
        written.expect("writes");
        for (name, prefix, after, want) in [
            ("all", "a/", None, vec!["a/1", "a/2", "a/3"]),
            ("after one", "a/", Some("a/1"), vec!["a/2", "a/3"]),
            ("after one that isn't there", "a/", Some("a/15"), vec!["a/2", "a/3"]),
            ("after the last", "a/", Some("a/3"), vec![]),
            ("before the prefix", "b/", Some("a/1"), vec!["b/1"]),
            ("none", "c/", None, vec![]),
        ] {
            assert_eq!(store.list::<String>(prefix, after).expect("lists"), want, "{name}");
        }
        let left: Result<Vec<String>> = store.transact(|t| {
            t.delete("a/1");
            t.keys("a/", 1)
        });
        assert_eq!(left.expect("keys"), ["a/2"], "what is deleted here is not seen");
    }
}
