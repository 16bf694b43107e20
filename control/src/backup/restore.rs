//! A backup back into a state, of either engine, while no server works on it.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::api::Restored;
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::machine::State;
use drophammer_protocol::words;
use serde_json::value::RawValue;

use super::content::{self, Piece};
use super::{Contents, FILES, RESTORED, RESTORING, doubted, moment};
use crate::boot_servers;
use crate::duty::{self, SERVING};
use crate::keep;
use crate::records::{MACHINES, Record, boot_key};
use crate::store::{MOST_CHANGES, Store, decode};
use crate::timeline::{self, Said};
use crate::{StateAt, open_store, unix_ms};

/// In one commit. Etcd takes 1.5 MiB by default, and what is packed becomes no larger.
const MOST_BYTES: usize = 512 << 10;
const PAUSE: Duration = Duration::from_secs(1);
const MOST_AT_ONCE: usize = MOST_CHANGES / 2;

/// Where a backup goes to.
pub struct Destination<'a> {
    pub state_dir: &'a Path,
    pub state: &'a StateAt,
    /// What is there may go.
    pub replace: bool,
    /// Somebody answers for it that no server worked on the state since the backup was taken, so that all of it still holds.
    pub nothing_happened_since: bool,
}

impl fmt::Debug for Destination<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination")
            .field("state_dir", &self.state_dir)
            .field("replace", &self.replace)
            .finish_non_exhaustive()
    }
}

/// `read` gives the backup from its beginning, each time that it's called: once to look at all of it, and once to restore
/// it. Nothing is changed before it's known to be whole. A restore that was cut off is begun again; until then no server
/// starts on what it left.
pub fn restore<R: Read>(read: impl Fn() -> Result<R>, into: &Destination<'_>) -> Result<Contents> {
    let contents = super::check(read()?)?;
    let Destination { state_dir, state, .. } = into;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    made.with_context(|| format!("making {}", state_dir.display()))?;
    let store = open_store(state_dir, state)?;
    wait_for_servers_to_stop(&store)?;
    refuse_to_replace(&store, state_dir, into, &read)?;

    let now = unix_ms();
    let restored = Restored { at_ms: now, taken_ms: contents.taken_ms };
    store.transact(|txn| txn.put(RESTORING, &restored))?;
    clear(&store)?;
    let mut batch = Batch::new(&store);
    let mut files = Vec::new();
    let done = content::read(read()?, |piece| match piece {
        Piece::File { name, text } => {
            files.push((name, text));
            Ok(())
        }
        Piece::Entry { key, .. } if [RESTORED, RESTORING].contains(&key.as_str()) => Ok(()),
        Piece::Entry { key, value } => batch.add(key, value),
    })?;
    batch.flush()?;
    ensure!(done == contents, "the backup changed while it was restored: run it again");
    for (name, text) in files {
        let mode = if name == "ca.pem" { keep::PUBLIC } else { keep::PRIVATE };
        keep::write(&state_dir.join(name), &text, mode)?;
    }
    boot_servers::forget_embedded(&store)?;
    if !into.nothing_happened_since {
        take_nothing_for_granted(&store, &restored)?;
        store.transact(|txn| txn.put(RESTORED, &restored))?;
    }
    store.transact(|txn| -> Result<()> {
        txn.delete(RESTORING);
        Ok(())
    })?;
    Ok(contents)
}

/// One that was stopped a moment ago holds its duties for a few seconds more.
fn wait_for_servers_to_stop(store: &Store) -> Result<()> {
    let since = Instant::now();
    loop {
        let serving = store.held(SERVING)?.len();
        if serving == 0 {
            return Ok(());
        }
        if since.elapsed() > duty::LIFE + PAUSE * 2 {
            bail!("there is still {} on this state: stop all of them first", words::count(serving, "working server"));
        }
        thread::sleep(PAUSE);
    }
}

/// Whether this program will know what to do with it.
pub(super) fn understand(piece: &Piece) -> Result<()> {
    match piece {
        Piece::File { name, .. } => {
            ensure!(FILES.contains(&name.as_str()), "it has a file {name:?}, which this program doesn't know");
        }
        Piece::Entry { key, value } if key.starts_with(MACHINES) => {
            decode::<Record>(key.as_bytes(), value.get().as_bytes())?;
        }
        Piece::Entry { .. } => {}
    }
    Ok(())
}

/// What would be lost, if nobody said that it may go.
fn refuse_to_replace<R: Read>(
    store: &Store,
    state_dir: &Path,
    into: &Destination<'_>,
    read: &impl Fn() -> Result<R>,
) -> Result<()> {
    // What a restore left that was cut off is worth nothing, and who began it was asked.
    if into.replace || store.get::<Restored>(RESTORING)?.is_some() {
        return Ok(());
    }
    if !store.page::<serde_json::Value>("", None, 1)?.is_empty() {
        let what = match into.state {
            StateAt::File => state_dir.display().to_string(),
            StateAt::Etcd(_) => "this etcd, under this prefix".into(),
        };
        bail!("there is a state in {what} already: move it away, or say --replace to lose it");
    }
    content::read(read()?, |piece| {
        let Piece::File { name, text } = piece else { return Ok(()) };
        let path = state_dir.join(&name);
        match fs::read_to_string(&path) {
            Ok(there) if there != text => {
                bail!("{} is another than the backup's: move it away, or say --replace to lose it", path.display())
            }
            _ => Ok(()),
        }
    })?;
    Ok(())
}

fn clear(store: &Store) -> Result<()> {
    loop {
        let found = store.keys("", MOST_AT_ONCE)?;
        let old: Vec<&String> = found.iter().filter(|key| *key != RESTORING).collect();
        if old.is_empty() {
            return Ok(());
        }
        store.transact(|txn| -> Result<()> {
            old.iter().for_each(|key| txn.delete(key));
            Ok(())
        })?;
    }
}

/// Entries that are written in one commit.
struct Batch<'a> {
    store: &'a Store,
    entries: Vec<(String, Box<RawValue>)>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn new(store: &'a Store) -> Self {
        Self { store, entries: Vec::new(), bytes: 0 }
    }

    fn add(&mut self, key: String, value: Box<RawValue>) -> Result<()> {
        let size = key.len() + value.get().len();
        if self.bytes + size > MOST_BYTES || self.entries.len() == MOST_AT_ONCE {
            self.flush()?;
        }
        self.bytes += size;
        self.entries.push((key, value));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.entries);
        self.bytes = 0;
        self.store.transact(|txn| entries.iter().try_for_each(|(key, value)| txn.put(key, value)))
    }
}

/// Every machine may be somewhere else by now.
fn take_nothing_for_granted(store: &Store, restored: &Restored) -> Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page: Vec<Record> = store.page(MACHINES, after.as_deref(), 100)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(crate::records::machine_key(last.id));
        for Record { id, .. } in page {
            store.transact(|txn| {
                let Some(mut record) = Record::load(txn, id)? else { return Ok(()) };
                doubt(&mut record, restored).into_iter().for_each(|boot| txn.delete(&boot));
                let said = format!("the state was restored from a backup of {}", moment(restored.taken_ms));
                let said = Said::new(restored.at_ms, None, Phase::Lifecycle, Step::Note, said);
                timeline::append(txn, id, [said])?;
                record.save(txn)
            })?;
        }
    }
}

/// Leaves of a machine's record what can still be believed. The keys of its boots, whose agents are to reboot, come back.
fn doubt(record: &mut Record, restored: &Restored) -> Vec<String> {
    // Somebody may have written to them since.
    record.rested.clear();
    // Not by what was due then.
    record.cycle_due = false;
    record.boot = None;
    record.order = None;
    record.answered.clear();
    let boots = record.boots.drain(..).map(|boot| boot_key(boot.id)).collect();
    if let Some(why) = doubted(record, restored) {
        record.state = State::Quarantined;
        record.reason = Some(why);
        record.phone_home = None;
        record.ssh_host_keys.clear();
        record.changed_ms = restored.at_ms;
    }
    boots
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::id::{Mac, MachineId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn nothing_is_erased_by_what_an_old_state_says() {
        let restored = Restored { at_ms: 2_000, taken_ms: 1_000 };
        for state in State::ALL {
            let mut record = Record::discovered(MachineId(Uuid::from_u128(1)), Mac([2, 0, 0, 0, 0, 1]), 0);
            record.state = state;
            record.cycle_due = true;
            record.rested.insert("serial".into(), 3);
            doubt(&mut record, &restored);
            let has_a_tenant = matches!(state, State::Booting | State::Running);
            assert_eq!(record.state, if has_a_tenant { state } else { State::Quarantined }, "{state}");
            assert_eq!(record.reason.is_some(), !has_a_tenant, "{state}");
            assert!(!record.cycle_due && record.rested.is_empty() && record.order.is_none(), "{state}");
        }
    }
}
