//! How many virtual machines run at once, over all labs of this user.
//!
//! Emulated machines want a processor each; more of them than this only make each other slow enough to miss their
//! timeouts. A slot is a locked file, so that it is free again however its owner ends.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Machines at once.
pub const SLOTS: usize = 3;

const POLL: Duration = Duration::from_millis(200);
const QUIET: Duration = Duration::from_secs(3);

/// The right to run some machines, until it is dropped.
#[derive(Debug)]
pub struct Slots {
    held: Vec<Flock<File>>,
}

impl Slots {
    /// Waits until `count` machines may run. All are taken in one go by one process at a time: two labs that each hold
    /// one slot and wait for a second would wait for ever.
    pub fn take(dir: &Path, count: usize) -> Result<Self> {
        ensure!(count <= SLOTS, "a lab can run at most {SLOTS} machines at once, not {count}");
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut held = Vec::new();
        if count == 0 {
            return Ok(Self { held });
        }
        let waiting = Waiting { since: Instant::now(), told: false };
        let (_turn, mut waiting) = wait_for(waiting, || lock(dir, "turn"))?;
        while held.len() < count {
            let free = || {
                for n in 0..SLOTS {
                    if let Some(slot) = lock(dir, &n.to_string())? {
                        return Ok(Some(slot));
                    }
                }
                Ok(None)
            };
            let (slot, still) = wait_for(waiting, free)?;
            waiting = still;
            held.push(slot);
        }
        Ok(Self { held })
    }

    pub fn count(&self) -> usize {
        self.held.len()
    }
}

struct Waiting {
    since: Instant,
    told: bool,
}

fn wait_for(
    mut waiting: Waiting,
    mut free: impl FnMut() -> Result<Option<Flock<File>>>,
) -> Result<(Flock<File>, Waiting)> {
    loop {
        if let Some(lock) = free()? {
            return Ok((lock, waiting));
        }
        if !waiting.told && waiting.since.elapsed() > QUIET {
            waiting.told = true;
            eprintln!(
                "waiting for a free place: {SLOTS} virtual machines run already, in other tests or labs (`drophammer lab \
                 down` ends the one in the background)"
            );
        }
        thread::sleep(POLL);
    }
}

/// The lock, or `None` while somebody else has it.
pub(crate) fn lock(dir: &Path, name: &str) -> Result<Option<Flock<File>>> {
    let path = dir.join(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_somebodys_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = Slots::take(dir.path(), SLOTS).expect("all of them");
        assert_eq!(held.count(), SLOTS);
        for n in 0..SLOTS {
            assert!(lock(dir.path(), &n.to_string()).expect("a file").is_none(), "slot {n}");
        }
        drop(held);
        assert_eq!(Slots::take(dir.path(), 1).expect("one").count(), 1);
        let error = Slots::take(dir.path(), SLOTS + 1).expect_err("too many");
        assert!(error.to_string().contains("at most 3"), "{error}");
    }
}
