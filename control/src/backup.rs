//! Backups: everything that a control API must not lose, as it was at one moment, and back again.
//!
//! A backup is the state and the files that belong to it: the server's keys, its certificate authority, its first tokens.
//! It's taken while the server works, is the same for both engines, and so is also how the state moves from one to the
//! other. What's in it is secret, so it only lies about encrypted ([`Sealer`]).
//!
//! A restored state is of the past. Machines may have got tenants since whom it doesn't know, and whoever believes it
//! erases them. So a restore takes nothing for granted: machines whose agent would erase are quarantined, drives that
//! were proven erased have to be erased again, and until an operator says that all is right ([`Control::settle`]) a machine
//! that the state doesn't know is quarantined too, and nobody takes a tenant's machine back without saying that it's
//! despite that.

mod content;
mod file;
mod restore;
mod sealed;

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::api::{BackupFailed, BackupMade, BackupStatus, Restored};
use drophammer_protocol::machine::State;
use serde_json::value::RawValue;

pub use self::file::{create, read, verify, verify_at};
pub use self::restore::{Destination, restore};
pub use self::sealed::Key;
use self::sealed::{Opened, Sealer};
use crate::audit::{self, Change, Who};
use crate::denied::Denied;
use crate::keep;
use crate::presence::PRESENCE;
use crate::records::{MACHINES, Record};
use crate::store::{Store, unpacked};
use crate::{Control, StateAt, open_store, unix_ms};

/// What belongs to the state and isn't in it, as far as it's there.
const FILES: [&str; 7] =
    ["admin.token", "ca.key", "ca.pem", "certificate.key", "imports.key", "server.key", "viewer.token"];

/// [`Restored`], until somebody says that all is right.
pub(crate) const RESTORED: &str = "restored";
/// How the servers' own backups go.
const STATUS: &str = "backup-status";
/// There from the beginning of a restore to its end.
const RESTORING: &str = "restoring";

/// What a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub taken_ms: u64,
    pub files: u64,
    pub entries: u64,
    pub machines: u64,
}

impl Contents {
    fn count(&mut self, key: &str) {
        self.entries += 1;
        self.machines += u64::from(key.starts_with(MACHINES));
    }
}

/// Reads all of a backup's content, and whether this program understands it.
fn check(from: impl Read) -> Result<Contents> {
    content::read(from, |piece| restore::understand(&piece))
}

/// What is in the state directory and in the state, of a server that isn't running.
pub fn take_offline(state_dir: &Path, state: &StateAt, to: impl Write) -> Result<Contents> {
    let store = open_store(state_dir, state)?;
    refuse_half_restored(&store)?;
    write(&store, state_dir, to)
}

fn write(store: &Store, state_dir: &Path, to: impl Write) -> Result<Contents> {
    let mut writer = content::Writer::new(to, unix_ms())?;
    for name in FILES {
        if let Some(text) = keep::read(&state_dir.join(name))? {
            writer.file(name, text)?;
        }
    }
    store.all(&mut |entry| {
        let key = String::from_utf8(entry.key).context("reading a key of the store")?;
        // What others heard a few seconds ago is no news after a restore.
        if key.starts_with(PRESENCE) {
            return Ok(());
        }
        let json = String::from_utf8(unpacked(&entry.value)?.into_owned()).with_context(|| format!("reading {key}"))?;
        let value = RawValue::from_string(json).with_context(|| format!("reading {key}"))?;
        writer.entry(key, value)
    })?;
    writer.finish()
}

/// A state that a restore didn't get through with is neither the old nor the new one.
pub(crate) fn refuse_half_restored(store: &Store) -> Result<()> {
    let half: Option<Restored> = store.get(RESTORING)?;
    ensure!(
        half.is_none(),
        "a restore into this state was cut off, so it's neither the old one nor the new one: run `drophammer backup restore` \
         again"
    );
    Ok(())
}

/// Whoever starts a server on a restored state is told what is different.
pub(crate) fn warn_of_the_past(store: &Store) -> Result<()> {
    if let Some(restored) = store.get::<Restored>(RESTORED)? {
        tracing::warn!(
            "the state was restored from a backup of {}: machines that it doesn't know are quarantined until \
             `drophammer backup settle`",
            moment(restored.taken_ms)
        );
    }
    Ok(())
}

/// What a machine is that nobody can be sure of: looked at, never erased. `None` if it boots its own disk anyway.
pub(crate) fn doubted(record: &Record, restored: &Restored) -> Option<String> {
    let taken = moment(restored.taken_ms);
    match record.state {
        State::Booting | State::Running => None,
        _ => Some(format!(
            "the state was restored from a backup of {taken}, and it may have got a tenant since. Look at what is on it; \
             `drophammer machine release --despite-quarantine` lets it be erased"
        )),
    }
}

/// To the minute, in UTC.
fn moment(ms: u64) -> String {
    let at = i64::try_from(ms / 1000).ok().and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok());
    at.map_or_else(|| "an unknown time".into(), |at| format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute()))
}

impl Control {
    /// All of it as it's now, to somebody who may have it.
    pub(crate) fn back_up(&self, who: &Who, to: impl Write) -> Result<Contents> {
        let change = Change { who, at_ms: unix_ms(), action: "backup", object: "all" };
        self.store().transact(|txn| audit::record::<()>(txn, change, None, None))?;
        self.back_up_unasked(to)
    }

    /// For the server itself.
    pub fn back_up_unasked(&self, to: impl Write) -> Result<Contents> {
        write(self.store(), &self.config().state_dir, to)
    }

    /// Whether it's this server, of those on the state, that makes backups by itself.
    pub fn makes_backups(&self) -> bool {
        self.inner.backups.is_mine()
    }

    /// How an attempt of a server's own ended.
    pub fn note_backup(&self, ended: Result<BackupMade, BackupFailed>) -> Result<()> {
        self.store().transact(|txn| {
            let mut status: BackupStatus = txn.get(STATUS)?.unwrap_or_default();
            match &ended {
                Ok(made) => (status.last, status.failed) = (Some(made.clone()), None),
                Err(failed) => status.failed = Some(failed.clone()),
            }
            txn.put(STATUS, &status)
        })
    }

    pub fn backup_status(&self) -> Result<BackupStatus> {
        let status: BackupStatus = self.store().get(STATUS)?.unwrap_or_default();
        Ok(BackupStatus { restored: self.store().get(RESTORED)?, ..status })
    }

    /// An operator has compared: from here on what is known counts. What is quarantined stays so.
    pub(crate) fn settle(&self, who: &Who, now: u64) -> Result<(), Denied> {
        self.store().transact(|txn| {
            let Some(restored) = txn.get::<Restored>(RESTORED)? else {
                return Err(Denied::not_found("the state isn't one that was restored, or that was settled already"));
            };
            txn.delete(RESTORED);
            let change = Change { who, at_ms: now, action: "settle", object: RESTORED };
            Ok(audit::record(txn, change, Some(&restored), None)?)
        })
    }
}

/// Nobody takes a machine from a tenant by what an old state says.
pub(crate) fn refuse_old_news(restored: Option<&Restored>, record: &Record) -> Result<(), Denied> {
    let Some(restored) = restored.filter(|_| matches!(record.state, State::Booting | State::Running)) else {
        return Ok(());
    };
    Err(Denied::conflict(format!(
        "the state was restored from a backup of {}, so it isn't sure whose the machine is now: look at it and say \
         --despite-quarantine, or `drophammer backup settle` if all machines are as they are listed",
        moment(restored.taken_ms)
    )))
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    content::fuzz(bytes);
    sealed::fuzz(bytes);
}
