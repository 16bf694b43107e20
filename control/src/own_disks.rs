//! Which machines boot their own disk, for boot servers that decide by themselves.
//!
//! It follows from the machines' states. Here is what was last seen of it, so that nobody has to look through thousands of
//! records to hear that nothing has changed.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use drophammer_protocol::boot_server::OwnDisks;
use drophammer_protocol::id::MachineId;
use tokio::sync::Notify;

use crate::lifecycle::{self, NetBoot};
use crate::records::Record;
use crate::unix_ms;

#[derive(Debug)]
pub(crate) struct Watched {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug)]
struct State {
    version: u64,
    machines: HashSet<MachineId>,
}

impl Default for Watched {
    fn default() -> Self {
        // Another number than before the restart, so that everybody gets the whole set once.
        Self { state: Mutex::new(State { version: unix_ms(), machines: HashSet::new() }), news: Notify::new() }
    }
}

impl Watched {
    /// From here on it's these machines.
    pub(crate) fn are<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        let machines = records.filter(|record| boots_own_disk(record)).map(|record| record.id).collect();
        let mut state = self.lock();
        if state.machines != machines {
            state.machines = machines;
            state.version += 1;
            self.news.notify_waiters();
        }
    }

    /// This is how the machine is now, if it's still there.
    pub(crate) fn is(&self, machine: MachineId, record: Option<&Record>) {
        let mut state = self.lock();
        let own_disk = record.is_some_and(boots_own_disk);
        let changed = if own_disk { state.machines.insert(machine) } else { state.machines.remove(&machine) };
        if changed {
            state.version += 1;
            self.news.notify_waiters();
        }
    }

    /// Enable a `notified()` of it before asking for the set, so that nothing falls in between.
    pub(crate) fn news(&self) -> &Notify {
        &self.news
    }

    /// The set, for somebody who knows that of `version`.
    pub(crate) fn after(&self, version: u64) -> Option<OwnDisks> {
        let state = self.lock();
        (state.version != version)
            .then(|| OwnDisks { version: state.version, machines: state.machines.iter().copied().collect() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn boots_own_disk(record: &Record) -> bool {
    lifecycle::net_boot(record.state) == NetBoot::LocalDisk
}
