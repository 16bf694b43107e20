//! Who decides behind the boot server: the control API in the same process, or what stands in for one that is elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use drophammer_control::Control;
use drophammer_protocol::boot_server::Seen;
use drophammer_protocol::id::{BootId, Mac, MachineId};
use drophammer_protocol::resource::Partition;
use drophammer_protocol::ticket::{BootDecision, BootTicket, Reach};
use tokio::sync::watch;

use crate::alone::Alone;
use crate::declared::Declared;

#[derive(Clone, Debug)]
pub(crate) enum Behind {
    Here(Control),
    Alone(Arc<Alone>),
}

impl Behind {
    pub(crate) fn boot_asked(
        &self,
        mac: Mac,
        machine: MachineId,
        address: IpAddr,
        reach: &Reach,
    ) -> Result<BootDecision> {
        match self {
            Self::Here(control) => control.boot_asked(mac, machine, address, reach),
            Self::Alone(alone) => alone.boot_asked(mac, machine, address, reach),
        }
    }

    /// Whether [`Behind::boot_asked`] would send this machine to its own disk.
    pub(crate) fn boots_own_disk(&self, machine: MachineId) -> Result<bool> {
        match self {
            Self::Here(control) => control.boots_own_disk(machine),
            Self::Alone(alone) => Ok(alone.boots_own_disk(machine)),
        }
    }

    pub(crate) fn ticket(&self, boot: BootId) -> Result<Option<BootTicket>> {
        match self {
            Self::Here(control) => control.ticket(boot),
            Self::Alone(alone) => alone.ticket(boot),
        }
    }

    /// What is declared by now, for a boot server of this partition.
    pub(crate) fn declared(&self, partition: &str) -> Declared {
        match self {
            Self::Here(control) => {
                let Partition { dns, ntp, .. } = control.partition(partition).unwrap_or_default();
                Declared { dns, ntp, images: control.image_sources() }
            }
            Self::Alone(alone) => alone.declared(),
        }
    }

    /// Changes when [`Behind::declared`] may have.
    pub(crate) fn declarations(&self) -> watch::Receiver<()> {
        match self {
            Self::Here(control) => control.declared(),
            Self::Alone(alone) => alone.briefed(),
        }
    }

    /// Doesn't wait for a disk; an error says that it's left out.
    pub(crate) fn observe(&self, seen: Seen) -> Result<()> {
        match self {
            Self::Here(control) => control.observe(seen),
            Self::Alone(alone) => alone.observe(seen),
        }
    }
}
