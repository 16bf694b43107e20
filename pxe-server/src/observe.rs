//! The flight recorder's eye: what DHCP, TFTP and HTTP see of each boot, told to the control API, which never makes them
//! wait for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_control::unix_ms;
use drophammer_protocol::boot_server::Seen;
use drophammer_protocol::event::{Phase, Progress, Step};
use drophammer_protocol::id::{Mac, MachineId};
use drophammer_protocol::sight::Sight;
use tracing::warn;

use crate::behind::Behind;
use crate::metrics::Metrics;

/// As many hosts as the largest boot network has.
const MOST_CLIENTS: usize = 1 << 16;

#[derive(Clone, Debug)]
pub struct Observer {
    behind: Behind,
    metrics: Metrics,
    clients: Arc<Mutex<HashMap<IpAddr, Client>>>,
}

/// Who was last seen at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    mac: Mac,
    machine: Option<MachineId>,
}

impl Observer {
    pub(crate) fn new(behind: Behind, metrics: Metrics) -> Self {
        Self { behind, metrics, clients: Arc::default() }
    }

    /// Remembers who is at this address.
    pub fn saw(&self, address: IpAddr, mac: Mac, machine: Option<MachineId>) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() < MOST_CLIENTS || clients.contains_key(&address) {
            // A lease renewed by an operating system, which doesn't send its UUID, isn't news about the machine.
            let known = clients.get(&address).filter(|c| c.mac == mac).and_then(|c| c.machine);
            clients.insert(address, Client { mac, machine: machine.or(known) });
        }
    }

    /// Who was last seen at this address. After a restart that is who has a lease of ours, without the machine's id.
    pub fn client_at(&self, address: IpAddr) -> Option<(Mac, Option<MachineId>)> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(&address).map(|client| (client.mac, client.machine))
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn observe(&self, mac: Mac, machine: Option<MachineId>, told: Told) {
        self.metrics.told(&told);
        let Told { phase, step, message, progress, sight } = told;
        let seen = Seen { at_ms: unix_ms(), mac, machine, phase, step, message, progress, sight };
        if let Err(error) = self.behind.observe(seen) {
            self.metrics.lost();
            warn!(%mac, "{error:#}");
        }
    }

    /// Like [`Observer::observe`], for whoever was last seen at `address`. A stranger has no timeline to write to.
    pub fn observe_at(&self, address: IpAddr, told: Told) {
        match self.client_at(address) {
            Some((mac, machine)) => self.observe(mac, machine, told),
            None => self.metrics.told(&told),
        }
    }
}

/// What the timeline of a boot is told: to people, and to programs that look for a cause.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub phase: Phase,
    pub step: Step,
    pub message: String,
    pub progress: Option<Progress>,
    pub sight: Option<Sight>,
}
