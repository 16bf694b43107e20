//! One redb file, in which a server keeps what it must not forget, and that gets over a disk that was full for a while.
//!
//! Once reading or writing its file has failed, redb answers nothing more. What had been committed is safe, so the file is
//! then closed, and whoever comes next opens it again.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context, Result, anyhow, bail};
use redb::{Database, DatabaseError, StorageError};

use crate::keep::sync_directory;

/// The default of 1 GiB would be this program's largest use of memory by far.
const CACHE_BYTES: usize = 64 << 20;

pub struct StateFile {
    path: PathBuf,
    /// `None` after a failure.
    database: RwLock<Option<Database>>,
}

impl StateFile {
    /// Opens the file, or makes it. One process at a time can have it.
    pub fn open(path: &Path) -> Result<Self> {
        let database = RwLock::new(Some(create(path)?));
        sync_directory(path)?;
        Ok(Self { path: path.to_owned(), database })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does `work`, which an error leaves undone.
    pub fn with<R>(&self, work: impl FnOnce(&Database) -> Result<R, redb::Error>) -> Result<R> {
        self.reopen()?;
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*open else {
            bail!("{} can't be used at the moment: its disk failed again", self.path.display());
        };
        let done = work(database);
        drop(open);
        if let Err(redb::Error::Io(_) | redb::Error::PreviousIo) = &done {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(done?)
    }

    fn reopen(&self) -> Result<()> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(create(&self.path)?);
        }
        Ok(())
    }
}

impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Looks at all of it: what a disk changed by itself would be believed otherwise.
fn create(path: &Path) -> Result<Database> {
    let open = || -> Result<Database, DatabaseError> {
        let mut database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        if !database.check_integrity()? {
            // It would leave out what it finds no way to.
            return Err(StorageError::Corrupted("its checksums don't agree with what is in it".into()).into());
        }
        Ok(database)
    };
    open().map_err(|e| explain(path, e)).with_context(|| format!("opening the state file {}", path.display()))
}

fn explain(path: &Path, error: DatabaseError) -> anyhow::Error {
    let what_to_do = match &error {
        DatabaseError::DatabaseAlreadyOpen => {
            "another server uses it; stop that one, or give this one another directory"
        }
        DatabaseError::Storage(StorageError::Corrupted(_)) => "it is damaged; restore it from a backup",
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() == ErrorKind::InvalidData => {
            "it is no state file, or damaged; restore it from a backup, or move it away to start without"
        }
        DatabaseError::UpgradeRequired(_) => "an older version of this program wrote it; start that version once",
        _ => return anyhow::Error::new(error),
    };
    let size = fs::metadata(path).map_or(0, |m| m.len());
    anyhow!("{error} ({size} bytes): {what_to_do}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_says_why_and_what_to_do() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| dir.path().join(name);
        let held = StateFile::open(&path("held")).expect("opens");
        fs::write(path("garbage"), vec![0x5a; 100_000]).expect("writes");
        fs::write(path("short"), b"no").expect("writes");
        drop(StateFile::open(&path("cut")).expect("opens"));
        let whole = fs::read(path("cut")).expect("reads");
        fs::write(path("cut"), &whole[..5000]).expect("writes");
        for (name, want) in [
            ("held", "another server uses it"),
            ("garbage", "no state file"),
            ("short", "no state file"),
            ("cut", "damaged"),
            ("no/such/directory", "No such file or directory"),
        ] {
            let error = format!("{:#}", StateFile::open(&path(name)).expect_err(name));
            assert!(error.contains(want) && error.contains(name), "{name}: {error}");
        }
        drop(held);
        StateFile::open(&path("held")).expect("free again");
    }

    /// Whatever a disk makes of it: it's refused, or all there is what was written.
    #[test]
    fn what_a_disk_changed_is_never_believed() {
        use redb::ReadableDatabase as _;
        const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("t");
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, damaged) = (dir.path().join("state"), dir.path().join("damaged"));
        let value = |n: u64| vec![n.to_le_bytes()[0]; 100];
        let file = StateFile::open(&path).expect("opens");
        for from in (0..2000).step_by(200) {
            let put = |database: &Database| {
                let change = database.begin_write()?;
                let mut table = change.open_table(TABLE)?;
                for n in from..from + 200 {
                    table.insert(n, value(n).as_slice())?;
                }
                drop(table);
                Ok(change.commit()?)
            };
            file.with(put).expect("written");
        }
        drop(file);
        let whole = fs::read(&path).expect("reads");
        let (mut refused, mut believed) = (0, 0);
        for at in (0..whole.len()).step_by(whole.len() / 150) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x20;
            fs::write(&damaged, bytes).expect("writes");
            let read = || -> Result<Vec<Vec<u8>>> {
                StateFile::open(&damaged)?.with(|database| {
                    let table = database.begin_read()?.open_table(TABLE)?;
                    (0..2000).map(|n| Ok(table.get(n)?.map(|v| v.value().to_vec()).unwrap_or_default())).collect()
                })
            };
            match read() {
                Ok(values) => {
                    assert!((0..).zip(values).all(|(n, found)| found == value(n)), "changed at byte {at}");
                    believed += 1;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    assert!(error.contains("restore it from a backup"), "changed at byte {at}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 20, "{refused} refused, {believed} as they were");
        eprintln!("{refused} {believed} of {}", whole.len());
    }

    #[test]
    fn a_failure_closes_it_and_the_next_call_opens_it_again() {
        const TABLE: redb::TableDefinition<'_, u8, u8> = redb::TableDefinition::new("t");
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = StateFile::open(&dir.path().join("state")).expect("opens");
        let put = |database: &Database| {
            let change = database.begin_write()?;
            change.open_table(TABLE)?.insert(1, 2)?;
            Ok(change.commit()?)
        };
        file.with(put).expect("written");
        let failed = file.with::<()>(|_| Err(redb::Error::Io(std::io::Error::other("no space left"))));
        assert!(format!("{:#}", failed.expect_err("failed")).contains("no space left"));
        assert!(file.database.read().expect("no panic").is_none(), "closed");
        let read = file.with(|database| {
            use redb::ReadableDatabase as _;
            Ok(database.begin_read()?.open_table(TABLE)?.get(1)?.map(|v| v.value()))
        });
        assert_eq!(read.expect("open again"), Some(2));
    }
}
