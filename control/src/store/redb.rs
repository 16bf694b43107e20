//! The embedded engine: one redb file. Every commit is on disk before it is answered; those that come while the disk is
//! busy share the next write.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use anyhow::{Context, Error, Result};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{Changes, Committed, Engine, Entry, Expected, Revision};
use crate::state_file::StateFile;

/// Values carry the revision of their commit in their first eight bytes.
const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";

#[derive(Debug)]
pub(super) struct File {
    file: StateFile,
    waiting: Mutex<Vec<Waiting>>,
    writing: Mutex<()>,
}

impl File {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = Self { file: StateFile::open(path)?, waiting: Mutex::default(), writing: Mutex::default() };
        // Tables exist from here on, so that reading needs no special case for a new file.
        file.commit(Expected::new(), Changes::new())?;
        Ok(file)
    }

    fn reading(&self) -> String {
        format!("reading the state file {}", self.file.path().display())
    }

    /// Everything that waits, in one durable commit.
    fn commit_all(database: &Database, waiting: &[Waiting]) -> Result<Vec<Committed>, redb::Error> {
        let mut txn = database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        let mut done = Vec::with_capacity(waiting.len());
        {
            let mut entries = txn.open_table(ENTRIES)?;
            let mut meta = txn.open_table(META)?;
            let mut revision = meta.get(REVISION)?.map_or(0, |v| v.value());
            for Waiting { expect, changes, .. } in waiting {
                if !holds(&entries, expect)? {
                    done.push(Committed::Conflict);
                    continue;
                }
                revision += 1;
                for (key, value) in changes {
                    match value {
                        Some(value) => {
                            let stored = [revision.to_be_bytes().as_slice(), value].concat();
                            entries.insert(key.as_slice(), stored.as_slice())?;
                        }
                        None => {
                            entries.remove(key.as_slice())?;
                        }
                    }
                }
                done.push(Committed::Durable);
            }
            meta.insert(REVISION, revision)?;
        }
        if done.contains(&Committed::Durable) {
            txn.commit()?;
        }
        Ok(done)
    }

    fn try_get(database: &Database, key: &[u8]) -> Result<Option<Entry>, redb::Error> {
        let entries = database.begin_read()?.open_table(ENTRIES)?;
        Ok(entries.get_owned(key)?.map(|v| entry(key, v.value())))
    }

    fn try_range(database: &Database, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Entry>, redb::Error> {
        let entries = database.begin_read()?.open_table(ENTRIES)?;
        let mut found = Vec::new();
        for item in entries.range_owned(prefix.max(from)..)? {
            let (key, value) = item?;
            if found.len() == limit || !key.value().starts_with(prefix) {
                break;
            }
            found.push(entry(key.value(), value.value()));
        }
        Ok(found)
    }
}

impl Engine for File {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        self.file.with(|db| Self::try_get(db, key)).with_context(|| self.reading())
    }

    fn range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Entry>> {
        self.file.with(|db| Self::try_range(db, prefix, from, limit)).with_context(|| self.reading())
    }

    fn commit(&self, expect: Expected, changes: Changes) -> Result<Committed> {
        let (answer, answered) = mpsc::channel();
        lock(&self.waiting).push(Waiting { expect, changes, answer });
        // Whoever gets here first commits for all who came while the commit before was on its way to the disk.
        let writing = lock(&self.writing);
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        if !waiting.is_empty() {
            let done = self.file.with(|db| Self::commit_all(db, &waiting)).map_err(|e| format!("{e:#}"));
            for (index, commit) in waiting.iter().enumerate() {
                let mine = done.as_ref().map(|d| d.get(index).copied()).map_err(Clone::clone);
                // The receiver is on the stack of a thread that waits for the lock we hold.
                let _ = commit.answer.send(mine);
            }
        }
        drop(writing);
        let doing = || format!("writing the state file {}", self.file.path().display());
        let done = answered.recv().context("the commit has no end").and_then(|done| done.map_err(Error::msg));
        done.with_context(doing)?.context("a commit without an answer")
    }
}

/// A commit that somebody waits for.
#[derive(Debug)]
struct Waiting {
    expect: Expected,
    changes: Changes,
    answer: mpsc::Sender<Result<Option<Committed>, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn holds(entries: &Table<'_, &[u8], &[u8]>, expect: &Expected) -> Result<bool, redb::Error> {
    for (key, revision) in expect {
        if entries.get(key.as_slice())?.map_or(0, |v| split(v.value()).0) != *revision {
            return Ok(false);
        }
    }
    Ok(true)
}

fn entry(key: &[u8], stored: &[u8]) -> Entry {
    let (revision, value) = split(stored);
    Entry { key: key.to_vec(), value: value.to_vec(), revision }
}

/// Nothing but [`File::commit_all`] writes entries, and it always writes the eight bytes.
fn split(stored: &[u8]) -> (Revision, &[u8]) {
    match stored.split_first_chunk() {
        Some((revision, value)) => (Revision::from_be_bytes(*revision), value),
        None => (0, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_survive_and_conflicts_change_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("state");
        let put = |value: &str| Changes::from([(b"k".to_vec(), Some(value.as_bytes().to_vec()))]);
        let expect = |revision| Expected::from([(b"k".to_vec(), revision)]);
        let file = File::open(&path).expect("opens");
        assert_eq!(file.commit(expect(0), put("one")).expect("commits"), Committed::Durable);
        assert_eq!(file.commit(expect(0), put("two")).expect("commits"), Committed::Conflict);
        drop(file);
        let file = File::open(&path).expect("opens again");
        let entry = file.get(b"k").expect("reads").expect("is there");
        assert_eq!(entry.value, b"one");
        assert_eq!(file.commit(expect(entry.revision), put("two")).expect("commits"), Committed::Durable);
        assert_eq!(file.get(b"k").expect("reads").expect("is there").value, b"two");
    }
}
