//! Backups of the control API's state that it makes by itself, as `[backup]` says.
//!
//! Of several servers on one state, one makes them. What was made is read again from where it lies before older ones are
//! removed. How it went is told by `drophammer backup status`, and by a metric for whoever wants to be woken.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_control::backup::{self, Contents, Key};
use drophammer_control::{Control, unix_ms};
use drophammer_images::Files;
use drophammer_protocol::api::{BackupFailed, BackupMade};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use tracing::{error, info, warn};

use crate::config::Backup;
use crate::live::Live;

/// In the state directory, while one is made.
const DRAFT: &str = "backup.draft";
/// After one that failed; and how soon it's noticed that another server, which made them, is gone.
const AGAIN_AFTER: Duration = Duration::from_secs(300);
const NAME: &[BorrowedFormatItem<'_>] =
    format_description!("drophammer-[year][month][day]T[hour][minute][second]Z.backup");

/// As long as the server runs.
pub(crate) async fn run(control: Control, mut live: Live) -> Result<()> {
    loop {
        let settings = live.borrow_and_update().settings.clone();
        let pause = match settings.backup {
            Some(backup) => {
                let control = control.clone();
                let round = move || round(&control, &backup, &settings.state_dir);
                Some(tokio::task::spawn_blocking(round).await.context("the thread that makes backups panicked")?)
            }
            None => None,
        };
        let rest = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = rest => {}
            changed = live.changed() => if changed.is_err() {
                // The server is ending, and this with it.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Makes one if it's time. How long it is until it may be again.
fn round(control: &Control, wanted: &Backup, state_dir: &Path) -> Duration {
    if !control.makes_backups() {
        return AGAIN_AFTER;
    }
    let (ended, pause) = match attempt(control, wanted, state_dir) {
        Ok(Round::NotYet(pause)) => return pause,
        Ok(Round::Made(made)) => {
            info!(at = made.at, bytes = made.bytes, machines = made.machines, "backup made");
            (Ok(made), wanted.every)
        }
        Err(why) => {
            error!("no backup was made, which is tried again: {why:#}");
            (Err(BackupFailed { at_ms: unix_ms(), why: format!("{why:#}") }), AGAIN_AFTER)
        }
    };
    if let Err(error) = control.note_backup(ended) {
        error!("noting how a backup went: {error:#}");
    }
    pause
}

enum Round {
    NotYet(Duration),
    Made(BackupMade),
}

fn attempt(control: &Control, wanted: &Backup, state_dir: &Path) -> Result<Round> {
    let files = Files::parse(&wanted.to, &wanted.s3)?;
    let there = files.names().with_context(|| format!("looking for the backups in {files}"))?;
    let now = OffsetDateTime::now_utc();
    let newest = there.iter().filter_map(|name| taken(name)).filter(|taken| *taken <= now).max();
    let age = newest.map_or(wanted.every, |taken| (now - taken).unsigned_abs());
    if age < wanted.every {
        return Ok(Round::NotYet(wanted.every - age));
    }
    let key = fs::read_to_string(&wanted.key_file).map_err(anyhow::Error::new).and_then(|text| Key::read(&text));
    let key = key.with_context(|| format!("reading the key {}", wanted.key_file.display()))?;
    let name = now.format(NAME).context("naming a backup")?;
    let draft = state_dir.join(DRAFT);
    remove(&draft)?;
    let made = make(control, &files, &name, &draft, &key);
    remove(&draft)?;
    let (contents, bytes) = made?;
    for old in to_remove(&there, wanted.keep.saturating_sub(1)) {
        // There is a new one all the same.
        if let Err(error) = files.remove(old) {
            warn!("an old backup stays: {error:#}");
        }
    }
    let at = files.at(&name);
    Ok(Round::Made(BackupMade { at_ms: contents.taken_ms, at, bytes, machines: contents.machines }))
}

fn make(control: &Control, files: &Files, name: &str, draft: &Path, key: &Key) -> Result<(Contents, u64)> {
    let contents = backup::create(draft, key, |to| control.back_up_unasked(to).map(drop))?;
    files.put(name, draft)?;
    let verify = || backup::verify_at(files.open(name)?, key);
    let read = verify().with_context(|| format!("reading {} again", files.at(name)))?;
    anyhow::ensure!(read == contents, "{} isn't what was written there", files.at(name));
    Ok((contents, fs::metadata(draft).map_or(0, |draft| draft.len())))
}

fn remove(draft: &Path) -> Result<()> {
    match fs::remove_file(draft) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("removing {}", draft.display())),
        _ => Ok(()),
    }
}

/// When a backup of this name was made; `None` if it isn't one of ours.
fn taken(name: &str) -> Option<OffsetDateTime> {
    PrimitiveDateTime::parse(name, NAME).ok().map(PrimitiveDateTime::assume_utc)
}

/// The oldest, but for so many. Nothing that is called otherwise.
fn to_remove(there: &[String], keep: usize) -> Vec<&str> {
    let mut ours: Vec<_> = there.iter().filter_map(|name| Some((taken(name)?, name.as_str()))).collect();
    ours.sort_unstable();
    ours.truncate(ours.len().saturating_sub(keep));
    ours.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_of_ours_go() {
        let names = |days: &[u8]| days.iter().map(|day| format!("drophammer-202601{day:02}T030000Z.backup")).collect();
        let with = |mut names: Vec<String>, more: &str| {
            names.push(more.into());
            names
        };
        for (name, there, keep, want) in [
            ("none", vec![], 2, vec![]),
            ("fewer", names(&[1]), 2, vec![]),
            ("as many", names(&[1, 2]), 2, vec![]),
            ("more", names(&[3, 1, 2]), 2, names(&[1])),
            ("all but the new one", names(&[1, 2]), 0, names(&[1, 2])),
            ("somebody else's", with(names(&[2, 3]), "drophammer-20250101T000000Z.backup.old"), 2, vec![]),
            ("no date", with(names(&[2, 3]), "drophammer-20259901T000000Z.backup"), 2, vec![]),
        ] {
            assert_eq!(to_remove(&there, keep), want, "{name}");
        }
    }
}
