//! The embedded engine: one redb file. Every commit is on disk before it is answered; those that come while the disk is
//! busy share the next write.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition,
};

use super::{Changes, Committed, Engine, Entry, Expected, Revision};
use crate::secret::sync_directory;

/// Values carry the revision of their commit in their first eight bytes.
const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";

/// Inventories and timelines are small; the default of 1 GiB would be this program's largest use of memory by far.
const CACHE_BYTES: usize = 64 << 20;

pub(super) struct File {
    database: Database,
    path: PathBuf,
    waiting: Mutex<Vec<Waiting>>,
    writing: Mutex<()>,
}

impl File {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|e| explain(path, e))
            .with_context(|| format!("opening the state file {}", path.display()))?;
        sync_directory(path)?;
        let file = Self { database, path: path.to_owned(), waiting: Mutex::default(), writing: Mutex::default() };
        // Tables exist from here on, so that reading needs no special case for a new file.
        file.commit(Expected::new(), Changes::new())?;
        Ok(file)
    }

    fn reading(&self) -> String {
        format!("reading the state file {}", self.path.display())
    }

    /// Everything that waits, in one durable commit.
    fn commit_all(&self, waiting: &[Waiting]) -> Result<Vec<Committed>, redb::Error> {
        let mut txn = self.database.begin_write()?;
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

    fn try_get(&self, key: &[u8]) -> Result<Option<Entry>, redb::Error> {
        let entries = self.database.begin_read()?.open_table(ENTRIES)?;
        Ok(entries.get_owned(key)?.map(|v| entry(key, v.value())))
    }

    fn try_range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Entry>, redb::Error> {
        let entries = self.database.begin_read()?.open_table(ENTRIES)?;
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
        self.try_get(key).with_context(|| self.reading())
    }

    fn range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Entry>> {
        self.try_range(prefix, from, limit).with_context(|| self.reading())
    }

    fn commit(&self, expect: Expected, changes: Changes) -> Result<Committed> {
        let (answer, answered) = mpsc::channel();
        lock(&self.waiting).push(Waiting { expect, changes, answer });
        // Whoever gets here first commits for all who came while the commit before was on its way to the disk.
        let writing = lock(&self.writing);
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        if !waiting.is_empty() {
            let done = self.commit_all(&waiting).map_err(Arc::new);
            for (index, commit) in waiting.iter().enumerate() {
                let mine = done.as_ref().map_err(Arc::clone).map(|d| d.get(index).copied());
                // The receiver is on the stack of a thread that waits for the lock we hold.
                let _ = commit.answer.send(mine);
            }
        }
        drop(writing);
        let doing = || format!("writing the state file {}", self.path.display());
        answered.recv().with_context(doing)?.with_context(doing)?.context("a commit without an answer")
    }
}

/// A commit that somebody waits for.
struct Waiting {
    expect: Expected,
    changes: Changes,
    answer: mpsc::Sender<Result<Option<Committed>, Arc<redb::Error>>>,
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

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

fn explain(path: &Path, error: DatabaseError) -> anyhow::Error {
    let what_to_do = match &error {
        DatabaseError::DatabaseAlreadyOpen => {
            "another server uses it; stop that one, or give this one another directory"
        }
        DatabaseError::Storage(StorageError::Corrupted(_)) => "it is damaged; restore it from a backup",
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
            "it is no state file, or damaged; restore it from a backup, or move it away to start with no machines"
        }
        DatabaseError::UpgradeRequired(_) => "an older version of this program wrote it; start that version once",
        _ => return anyhow::Error::new(error),
    };
    let size = std::fs::metadata(path).map_or(0, |m| m.len());
    anyhow!("{error} ({size} bytes): {what_to_do}")
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
    fn a_file_that_cannot_be_used_says_why_and_what_to_do() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| dir.path().join(name);
        let held = File::open(&path("held")).expect("opens");
        std::fs::write(path("garbage"), vec![0x5a; 100_000]).expect("writes");
        std::fs::write(path("short"), b"no").expect("writes");
        drop(File::open(&path("cut")).expect("opens"));
        let whole = std::fs::read(path("cut")).expect("reads");
        std::fs::write(path("cut"), &whole[..5000]).expect("writes");
        for (name, want) in [
            ("held", "another server uses it"),
            ("garbage", "no state file"),
            ("short", "no state file"),
            ("cut", "damaged"),
            ("no/such/directory", "No such file or directory"),
        ] {
            let error = format!("{:#}", File::open(&path(name)).expect_err(name));
            assert!(error.contains(want) && error.contains(name), "{name}: {error}");
        }
        drop(held);
        File::open(&path("held")).expect("free again");
    }

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
