//! For the boot server: what a machine boots, its ticket, and what is seen of it from outside.

use std::net::IpAddr;

use anyhow::Result;
use drophammer_protocol::event::{Phase, Progress, Step};
use drophammer_protocol::id::{BootId, Mac, MachineId};
use drophammer_protocol::machine::State;
use drophammer_protocol::ticket::{BootDecision, BootTicket, Reach};
use uuid::Uuid;

use crate::lifecycle::{self, Input, NetBoot};
use crate::records::{self, Boot, Record, boot_key};
use crate::secret::{Purpose, Token};
use crate::store::Txn;
use crate::timeline::{self, Said};
use crate::{Control, unix_ms};

/// From the script to the agent's enrolment: firmware, a download over a slow link, a kernel.
const TICKET_LIFE_MS: u64 = 10 * 60 * 1000;

/// Anybody on the boot network can make machines up. Beyond this many that never enrolled, the longest unseen go.
const MAX_DISCOVERED: usize = 4096;

impl Control {
    /// Decides what this machine boots, for a boot script or for an agent without a ticket. A machine that nobody knew is
    /// known from here on.
    pub fn boot_asked(&self, mac: Mac, machine: MachineId, address: IpAddr, reach: &Reach) -> Result<BootDecision> {
        let now = unix_ms();
        let seen = self.inner.observed.claim(mac, machine);
        let (decision, forgotten) = self.store().transact(|txn| -> Result<_> {
            let mut forgotten = None;
            let mut told = seen.clone();
            let mut record = match Record::load(txn, machine)? {
                Some(record) => record,
                None => {
                    forgotten = make_room(txn)?;
                    told.push(Said::new(now, None, Phase::Lifecycle, Step::Note, "seen for the first time"));
                    Record::discovered(machine, mac, now)
                }
            };
            record.mac = Some(mac);
            record.address = Some(address);
            record.learn_mac(mac);
            record.last_seen_ms = now;
            let decision = match lifecycle::net_boot(record.state) {
                NetBoot::LocalDisk => {
                    self.advance(txn, &mut record, Input::OwnDisk, now)?;
                    BootDecision::LocalDisk
                }
                NetBoot::Agent => {
                    let boot = BootId(Uuid::new_v4());
                    let token = self.inner.key.derive(Purpose::Boot, boot.0);
                    let expires_ms = now.saturating_add(TICKET_LIFE_MS);
                    let minted = Boot {
                        id: boot,
                        minted_ms: now,
                        expires_ms,
                        reach: reach.clone(),
                        token: token.hash(),
                        enrolled: None,
                    };
                    let ticket = self.write_ticket(machine, &minted, &token);
                    record.add_boot(txn, minted)?;
                    BootDecision::Agent(ticket)
                }
            };
            timeline::append(txn, machine, told)?;
            record.save(txn)?;
            Ok((decision, forgotten))
        })?;
        if let Some(forgotten) = forgotten {
            self.inner.observed.forget(forgotten);
        }
        self.inner.observed.learn(machine, &[mac]);
        self.saw(machine, now);
        self.inner.wakes.wake(machine);
        Ok(decision)
    }

    /// Whether [`Control::boot_asked`] would send this machine to its own disk. Changes nothing.
    pub fn boots_own_disk(&self, machine: MachineId) -> Result<bool> {
        let record = self.store().get::<Record>(&records::machine_key(machine))?;
        Ok(record.is_some_and(|record| lifecycle::net_boot(record.state) == NetBoot::LocalDisk))
    }

    /// The ticket of a boot, as long as it can be used: until its agent has enrolled or its time is over.
    pub fn ticket(&self, boot: BootId) -> Result<Option<BootTicket>> {
        self.ticket_at(boot, unix_ms())
    }

    pub(crate) fn ticket_at(&self, boot: BootId, now: u64) -> Result<Option<BootTicket>> {
        let Some(machine) = self.store().get::<MachineId>(&boot_key(boot))? else { return Ok(None) };
        let Some(record) = self.store().get::<Record>(&records::machine_key(machine))? else { return Ok(None) };
        let token = self.inner.key.derive(Purpose::Boot, boot.0);
        let usable = |b: &&Boot| b.enrolled.is_none() && b.expires_ms > now && b.token.is_of(&token);
        Ok(record.boot_of(boot).filter(usable).map(|boot| self.write_ticket(machine, boot, &token)))
    }

    /// Something seen from outside: by DHCP, TFTP or HTTP. Doesn't wait for a disk; an error says that it's left out.
    pub fn observe(
        &self,
        mac: Mac,
        machine: Option<MachineId>,
        phase: Phase,
        step: Step,
        message: impl Into<String>,
        progress: Option<Progress>,
    ) -> Result<()> {
        let said = Said { progress, ..Said::new(unix_ms(), None, phase, step, message) };
        self.inner.observed.add(mac, machine, said)
    }

    fn write_ticket(&self, machine: MachineId, boot: &Boot, token: &Token) -> BootTicket {
        let config = self.config();
        BootTicket {
            server: boot.reach.server.clone(),
            boot_server: boot.reach.boot_server.clone(),
            ca: config.ca_pem.clone(),
            time_key: config.time_key,
            image_keys: config.image_keys.clone(),
            machine,
            boot: boot.id,
            token: token.to_string(),
        }
    }
}

/// Forgets a machine that never enrolled if there are too many of them.
fn make_room(txn: &mut Txn<'_>) -> Result<Option<MachineId>> {
    let mut discovered = Vec::new();
    for record in txn.list::<Record>(records::MACHINES)? {
        if record.state == State::Discovered {
            discovered.push(record);
        }
    }
    if discovered.len() < MAX_DISCOVERED {
        return Ok(None);
    }
    let Some(oldest) = discovered.into_iter().min_by_key(|r| r.last_seen_ms) else { return Ok(None) };
    for boot in &oldest.boots {
        txn.delete(&boot_key(boot.id));
    }
    txn.delete(&records::machine_key(oldest.id));
    timeline::forget(txn, oldest.id)?;
    Ok(Some(oldest.id))
}
