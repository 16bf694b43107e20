//! Which machines boot their own disk, for boot servers that decide by themselves.
//!
//! It follows from the machines' states, which are in the store. Here is what was last seen of it, so that nobody has to
//! read thousands of records to hear that nothing has changed.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use drophammer_protocol::boot_server::OwnDisks;
use drophammer_protocol::id::MachineId;
use tokio::sync::Notify;

use crate::lifecycle::{self, NetBoot};
use crate::records::{Record, machine_key};
use crate::store::Store;
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

impl Watched {
    pub(crate) fn new(records: &[Record]) -> Self {
        let machines = records.iter().filter(|r| boots_own_disk(r)).map(|r| r.id).collect();
        // Another number than before the restart, so that everybody gets the whole set once.
        Self { state: Mutex::new(State { version: unix_ms(), machines }), news: Notify::new() }
    }

    /// Call it after every commit that may have changed the machine's state. The store is read under the lock: of two
    /// changes at once, whoever comes last sees both.
    pub(crate) fn look_again(&self, store: &Store, machine: MachineId) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let own_disk = store.get::<Record>(&machine_key(machine))?.is_some_and(|r| boots_own_disk(&r));
        let changed = if own_disk { state.machines.insert(machine) } else { state.machines.remove(&machine) };
        if changed {
            state.version += 1;
            self.news.notify_waiters();
        }
        Ok(())
    }

    /// Enable a `notified()` of it before asking for the set, so that nothing falls in between.
    pub(crate) fn news(&self) -> &Notify {
        &self.news
    }

    /// The set, for somebody who knows that of `version`.
    pub(crate) fn after(&self, version: u64) -> Option<OwnDisks> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.version != version)
            .then(|| OwnDisks { version: state.version, machines: state.machines.iter().copied().collect() })
    }
}

fn boots_own_disk(record: &Record) -> bool {
    lifecycle::net_boot(record.state) == NetBoot::LocalDisk
}
