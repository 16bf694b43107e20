//! Who was heard of when, by this server and by others on the same store.
//!
//! It changes all the time and is worth little, so it's kept in memory. Where several servers share a store, each says
//! every few seconds what it heard since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use drophammer_protocol::boot_server::Health;
use drophammer_protocol::id::{BootServerId, MachineId};
use serde::{Deserialize, Serialize};

use crate::duty::{Duty, SERVING};
use crate::every::Every;
use crate::store::Store;

/// What a server says of what it heard: each key is one server's.
pub(crate) const PRESENCE: &str = "presence/";
const BETWEEN_REPORTS: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    machines: HashMap<MachineId, u64>,
    boot_servers: HashMap<BootServerId, (u64, Option<Health>)>,
    /// Since the last report.
    news: Report,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    machines: HashMap<MachineId, u64>,
    boot_servers: HashMap<BootServerId, (u64, Option<Health>)>,
}

impl Presence {
    pub(crate) fn machine(&self, id: MachineId) -> u64 {
        self.lock().machines.get(&id).copied().unwrap_or(0)
    }

    pub(crate) fn boot_server(&self, id: BootServerId) -> (u64, Option<Health>) {
        self.lock().boot_servers.get(&id).cloned().unwrap_or_default()
    }

    pub(crate) fn saw_machine(&self, id: MachineId, now: u64) {
        let mut heard = self.lock();
        heard.machines.insert(id, now);
        heard.news.machines.insert(id, now);
    }

    /// Without news of its health the last counts.
    pub(crate) fn saw_boot_server(&self, id: BootServerId, now: u64, health: Option<Health>) {
        let mut heard = self.lock();
        let entry = heard.boot_servers.entry(id).or_default();
        entry.0 = now;
        if health.is_some() {
            entry.1 = health;
        }
        let said = entry.clone();
        heard.news.boot_servers.insert(id, said);
    }

    pub(crate) fn forget_boot_server(&self, id: BootServerId) {
        self.lock().boot_servers.remove(&id);
    }

    /// What is new since it was asked for last, if anything is.
    pub(crate) fn report(&self) -> Option<Report> {
        let news = std::mem::take(&mut self.lock().news);
        (!news.machines.is_empty() || !news.boot_servers.is_empty()).then_some(news)
    }

    /// What another server heard. Clocks differ, so the later of two counts.
    pub(crate) fn learn(&self, report: Report) {
        let mut heard = self.lock();
        for (id, at) in report.machines {
            let known = heard.machines.entry(id).or_default();
            *known = at.max(*known);
        }
        for (id, said) in report.boot_servers {
            let known = heard.boot_servers.entry(id).or_default();
            if said.0 >= known.0 {
                *known = said;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the other servers on the store, until it's dropped.
pub(crate) fn tell(store: Store, presence: Arc<Presence>, id: BootServerId) -> Result<Every> {
    let serving = Duty::new(store.clone(), &format!("{SERVING}{id}"), id.to_string());
    serving.is_mine();
    Every::start("presence", BETWEEN_REPORTS, move || {
        // After a kill it's some seconds until what it held is free again.
        serving.is_mine();
        let Some(report) = presence.report() else { return };
        let told: Result<()> = store.transact(|txn| txn.put(&format!("{PRESENCE}{id}"), &report));
        if let Err(error) = told {
            tracing::warn!("telling the other servers who was heard of: {error:#}");
        }
    })
}
