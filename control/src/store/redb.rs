//! The embedded engine: one redb file. Every commit is on disk before it is answered; those that come while the disk is
//! busy share the next write. Which keys the last commits changed is kept too, for whoever wants news of them.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{Changes, Committed, Engine, Entry, Expected, Hold, News, Revision, Tell};
use crate::line::Line;
use crate::state_file::StateFile;

/// Values carry the revision of their commit in their first eight bytes.
const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
/// The keys that each commit changed, a byte of zero behind each.
const HISTORY: TableDefinition<'_, Revision, &[u8]> = TableDefinition::new("history");
const MOST_HISTORY: u64 = 20_000;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct File(Arc<Inner>);

struct Inner {
    file: StateFile,
    waiting: Line<Commit, Done>,
    /// Whoever has it writes.
    writing: Mutex<Audience>,
    /// Nobody else has the file, so it's known here what is held.
    held: Mutex<HashSet<String>>,
}

/// Who wants news.
#[derive(Default)]
struct Audience {
    tells: Vec<Tell>,
    /// The last revision that they know of.
    told: Revision,
}

impl Audience {
    fn tell(&mut self, revision: Revision, changes: &Changes) {
        self.told = revision;
        self.tells.retain_mut(|tell| tell(News::Changed { revision, changes: changes.clone() }));
    }

    fn lose(&mut self) {
        for mut tell in self.tells.drain(..) {
            tell(News::Lost);
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("File").field(&self.0.file).finish()
    }
}

impl File {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = Self(Arc::new(Inner {
            file: StateFile::open(path)?,
            waiting: Line::default(),
            writing: Mutex::default(),
            held: Mutex::default(),
        }));
        // Tables exist from here on, so that reading needs no special case for a new file.
        file.commit(Expected::new(), Changes::new())?;
        Ok(file)
    }

    fn reading(&self) -> String {
        format!("reading the state file {}", self.0.file.path().display())
    }

    fn changes(&self, after: Revision) -> Result<Option<(Revision, Changes)>> {
        self.0.file.with(|db| Self::try_changes(db, after)).with_context(|| self.reading())
    }

    /// Tells what nobody was told yet: a commit that failed, for all we knew, may be in the file all the same.
    fn catch_up(&self, audience: &mut Audience) {
        match self.changes(audience.told) {
            Ok(Some((revision, changes))) => audience.tell(revision, &changes),
            Ok(None) => audience.lose(),
            Err(error) => {
                tracing::warn!("what happened meanwhile isn't known, everything is read anew: {error:#}");
                audience.lose();
            }
        }
    }

    /// Everything that waits, and who wants news hears of it before whoever did it.
    fn commit_and_tell(&self, waiting: Vec<Commit>) -> Vec<Done> {
        let mut audience = lock(&self.0.writing);
        let done = self.0.file.with(|db| Self::commit_all(db, &waiting)).map_err(|e| format!("{e:#}"));
        let mut all = Vec::with_capacity(waiting.len());
        for (index, Commit { changes, .. }) in waiting.into_iter().enumerate() {
            let its = done.as_ref().map(|d| d.get(index).copied()).map_err(Clone::clone);
            match its {
                Ok(Some(Committed::Durable(revision))) if revision == audience.told + 1 => {
                    audience.tell(revision, &changes);
                }
                Ok(Some(Committed::Durable(revision))) if revision > audience.told => self.catch_up(&mut audience),
                _ => {}
            }
            all.push(its);
        }
        all
    }

    /// Everything that waits, in one durable commit.
    fn commit_all(database: &Database, waiting: &[Commit]) -> Result<Vec<Committed>, redb::Error> {
        let mut txn = database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        let mut done = Vec::with_capacity(waiting.len());
        {
            let mut entries = txn.open_table(ENTRIES)?;
            let mut history = txn.open_table(HISTORY)?;
            let mut meta = txn.open_table(META)?;
            let mut revision = meta.get(REVISION)?.map_or(0, |v| v.value());
            for Commit { expect, changes } in waiting {
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
                let changed: Vec<u8> = changes.keys().flat_map(|key| [key.as_slice(), b"\0"].concat()).collect();
                history.insert(revision, changed.as_slice())?;
                history.remove(revision.saturating_sub(MOST_HISTORY))?;
                done.push(Committed::Durable(revision));
            }
            meta.insert(REVISION, revision)?;
        }
        if done.iter().any(|done| *done != Committed::Conflict) {
            txn.commit()?;
        }
        Ok(done)
    }

    fn try_get(database: &Database, key: &[u8]) -> Result<Option<Entry>, redb::Error> {
        let entries = database.begin_read()?.open_table(ENTRIES)?;
        Ok(entries.get_owned(key)?.map(|v| entry(key, v.value())))
    }

    fn try_range(
        database: &Database,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<(Vec<Entry>, Revision), redb::Error> {
        let txn = database.begin_read()?;
        let revision = txn.open_table(META)?.get(REVISION)?.map_or(0, |v| v.value());
        let entries = txn.open_table(ENTRIES)?;
        let mut found = Vec::new();
        for item in entries.range_owned(prefix.max(from)..)? {
            let (key, value) = item?;
            if found.len() == limit || !key.value().starts_with(prefix) {
                break;
            }
            found.push(entry(key.value(), value.value()));
        }
        Ok((found, revision))
    }

    fn try_all(
        database: &Database,
        stopped: &mut Result<()>,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<(), redb::Error> {
        let entries = database.begin_read()?.open_table(ENTRIES)?;
        for item in entries.iter()? {
            let (key, value) = item?;
            if let Err(error) = each(entry(key.value(), value.value())) {
                *stopped = Err(error);
                break;
            }
        }
        Ok(())
    }

    /// What is different from how it was at a revision, if that is known.
    fn try_changes(database: &Database, after: Revision) -> Result<Option<(Revision, Changes)>, redb::Error> {
        let txn = database.begin_read()?;
        let revision = txn.open_table(META)?.get(REVISION)?.map_or(0, |v| v.value());
        if after == revision {
            return Ok(Some((revision, Changes::new())));
        }
        let history = txn.open_table(HISTORY)?;
        // Every commit is in the history, so one that is missing was forgotten, or is of another file's future.
        if after > revision || history.get(after + 1)?.is_none() {
            return Ok(None);
        }
        let entries = txn.open_table(ENTRIES)?;
        let mut changes = Changes::new();
        for item in history.range(after + 1..)? {
            for key in item?.1.value().split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
                if !changes.contains_key(key) {
                    let value = entries.get(key)?.map(|stored| split(stored.value()).1.to_vec());
                    changes.insert(key.to_vec(), value);
                }
            }
        }
        Ok(Some((revision, changes)))
    }
}

impl Engine for File {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        self.0.file.with(|db| Self::try_get(db, key)).with_context(|| self.reading())
    }

    fn range(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<(Vec<Entry>, Revision)> {
        self.0.file.with(|db| Self::try_range(db, prefix, from, limit)).with_context(|| self.reading())
    }

    fn all(&self, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        // One that the file doesn't tell of is no failure of the file.
        let mut stopped = Ok(());
        self.0.file.with(|db| Self::try_all(db, &mut stopped, each)).with_context(|| self.reading())?;
        stopped
    }

    fn commit(&self, expect: Expected, changes: Changes) -> Result<Committed> {
        let done =
            self.0.waiting.have_done(Commit { expect, changes }, usize::MAX, |waiting| self.commit_and_tell(waiting));
        let doing = || format!("writing the state file {}", self.0.file.path().display());
        let done = done.context("the commit has no end").and_then(|done| done.map_err(Error::msg));
        done.with_context(doing)?.context("a commit without an answer")
    }

    fn watch(&self, after: Revision, mut tell: Tell) -> Result<()> {
        // Nothing is committed between what is told here and what is told from here on.
        let mut audience = lock(&self.0.writing);
        let Some((revision, changes)) = self.changes(after)? else {
            tell(News::Lost);
            return Ok(());
        };
        if audience.told < revision {
            self.catch_up(&mut audience);
        }
        if changes.is_empty() || tell(News::Changed { revision, changes }) {
            audience.tells.push(tell);
        }
        Ok(())
    }

    fn hold(&self, name: &str, _: &str, _: Duration) -> Result<Option<Box<dyn Hold>>> {
        let free = lock(&self.0.held).insert(name.to_owned());
        Ok(free.then(|| Box::new(Held { file: self.clone(), name: name.to_owned() }) as Box<dyn Hold>))
    }

    fn held(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(lock(&self.0.held).iter().filter(|name| name.starts_with(prefix)).cloned().collect())
    }
}

#[derive(Debug)]
struct Held {
    file: File,
    name: String,
}

impl Hold for Held {
    fn is_held(&self) -> bool {
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.file.0.held).remove(&self.name);
    }
}

/// A commit that somebody waits for.
#[derive(Debug)]
struct Commit {
    expect: Expected,
    changes: Changes,
}

/// What became of it, or why it isn't known.
type Done = Result<Option<Committed>, String>;

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
