//! The flight recorder's eye: what DHCP, TFTP and HTTP see of each boot, told to the control API, which never makes them
//! wait for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_protocol::boot_server::Seen;
use drophammer_protocol::event::{Phase, Progress, Step};
use drophammer_protocol::id::{Mac, MachineId};
use tracing::warn;

use crate::alone::unix_ms;
use crate::behind::Behind;

/// As many hosts as the largest boot network has.
const MOST_CLIENTS: usize = 1 << 16;

#[derive(Clone, Debug)]
pub struct Observer {
    behind: Behind,
    clients: Arc<Mutex<HashMap<IpAddr, Client>>>,
}

/// Who was last seen at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    mac: Mac,
    machine: Option<MachineId>,
}

impl Observer {
    pub(crate) fn new(behind: Behind) -> Self {
        Self { behind, clients: Arc::default() }
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

    /// Who was last seen at this address. Nobody, after a restart, until they ask for an address again.
    pub fn client_at(&self, address: IpAddr) -> Option<(Mac, Option<MachineId>)> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(&address).map(|client| (client.mac, client.machine))
    }

    pub fn observe(&self, mac: Mac, machine: Option<MachineId>, phase: Phase, step: Step, message: String) {
        self.tell(Client { mac, machine }, phase, step, message, None);
    }

    /// Like [`Observer::observe`], for whoever was last seen at `address`. A stranger has no timeline to write to.
    pub fn observe_at(&self, address: IpAddr, phase: Phase, step: Step, message: String, bytes: Option<Progress>) {
        if let Some((mac, machine)) = self.client_at(address) {
            self.tell(Client { mac, machine }, phase, step, message, bytes);
        }
    }

    fn tell(&self, client: Client, phase: Phase, step: Step, message: String, progress: Option<Progress>) {
        let Client { mac, machine } = client;
        if let Err(error) = self.behind.observe(Seen { at_ms: unix_ms(), mac, machine, phase, step, message, progress })
        {
            warn!(%mac, "{error:#}");
        }
    }
}
