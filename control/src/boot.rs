//! For the boot server: what a machine boots, its ticket, and what is seen of it from outside.

use std::net::IpAddr;
use std::sync::PoisonError;

use anyhow::Result;
use drophammer_protocol::api::Restored;
use drophammer_protocol::boot_server::{Asked, Seen};
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::id::{BootId, Mac, MachineId};
use drophammer_protocol::machine::State;
use drophammer_protocol::provisioning::ProvisioningEvent;
use drophammer_protocol::ticket::{BootDecision, BootTicket, Reach};
use uuid::Uuid;

use crate::backup::{self, RESTORED};
use crate::denied::Denied;
use crate::lifecycle::{self, Input, NetBoot};
use crate::records::{self, Boot, Record, boot_key};
use crate::secret::{Hash, Purpose, Token};
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
        let partition = self.inner.partition.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let decided = self.met(mac, machine, address, now, |txn, record, _| {
            record.partition.clone_from(&partition);
            match lifecycle::net_boot(record.state) {
                NetBoot::LocalDisk => {
                    self.advance(txn, record, Input::OwnDisk, now)?;
                    Ok(BootDecision::LocalDisk)
                }
                NetBoot::Agent => {
                    let boot = BootId(Uuid::new_v4());
                    let token = self.inner.key.derive(Purpose::Boot, boot.0);
                    let minted = ticket_of(boot, now, reach, token.hash(), now);
                    let ticket = self.write_ticket(machine, &minted, &token);
                    record.add_boot(txn, minted)?;
                    record.tell(ProvisioningEvent::PxeBooting, now, "it was sent the agent");
                    Ok(BootDecision::Agent(ticket))
                }
            }
        });
        Ok(decided?)
    }

    /// A boot server that decides by itself says what it told this machine, and from what its ticket's token can be known.
    /// If meanwhile something else would be right, the timeline says so, and there is no ticket: an agent without one
    /// reboots.
    pub(crate) fn was_sent(
        &self,
        txn: &mut Txn<'_>,
        record: &mut Record,
        asked: &Asked,
        token: Option<Hash>,
        told: &mut Vec<Said>,
        now: u64,
    ) -> Result<(), Denied> {
        let note = |said: &str| Said::new(now, None, Phase::Lifecycle, Step::Note, said);
        match (asked.boot.zip(token), lifecycle::net_boot(record.state)) {
            (None, NetBoot::LocalDisk) => self.advance(txn, record, Input::OwnDisk, now)?,
            (Some((boot, token)), NetBoot::Agent) => {
                // Nobody else's boot, whatever a boot server says.
                if txn.get::<MachineId>(&boot_key(boot))?.is_none() {
                    record.add_boot(txn, ticket_of(boot, asked.at_ms.min(now), &asked.reach, token, now))?;
                    record.tell(ProvisioningEvent::PxeBooting, now, "its boot server sent it the agent");
                }
            }
            (Some(_), NetBoot::LocalDisk) => told.push(note(
                "its boot server didn't know yet that it boots its own disk, and sent it the agent, which will be turned \
                 away",
            )),
            (None, NetBoot::Agent) => told.push(note(
                "its boot server didn't know yet that it gets the agent, and sent it to its own disk; reboot it into the \
                 network",
            )),
        }
        Ok(())
    }

    /// A machine's firmware was here just now. `body` does what follows, and may tell the timeline of it.
    pub(crate) fn met<R>(
        &self,
        mac: Mac,
        machine: MachineId,
        address: IpAddr,
        now: u64,
        mut body: impl FnMut(&mut Txn<'_>, &mut Record, &mut Vec<Said>) -> Result<R, Denied>,
    ) -> Result<R, Denied> {
        let seen = self.inner.observed.claim(mac, machine);
        if self.inner.pool.machine(machine).is_none() {
            self.make_room()?;
        }
        self.store()
            .transact(|txn| {
                let mut told = seen.clone();
                let mut record = match Record::load(txn, machine)? {
                    Some(record) => record,
                    None => {
                        told.push(Said::new(now, None, Phase::Lifecycle, Step::Note, "seen for the first time"));
                        let mut record = Record::discovered(machine, mac, now);
                        // To whoever wrote the state that was restored it may have been no stranger later on.
                        if let Some(restored) = txn.get::<Restored>(RESTORED)? {
                            record.reason = backup::doubted(&record, &restored);
                            record.state = State::Quarantined;
                        }
                        record
                    }
                };
                record.mac = Some(mac);
                record.address = Some(address);
                record.learn_mac(mac);
                record.last_seen_ms = now;
                let result = body(txn, &mut record, &mut told)?;
                timeline::append(txn, machine, told)?;
                record.save(txn)?;
                Ok(result)
            })
            .inspect(|_| self.saw(machine, now))
    }

    /// Forgets a machine that never enrolled if there are too many of them.
    fn make_room(&self) -> Result<()> {
        let oldest = {
            let pool = self.inner.pool.read();
            if pool.discovered().count() < MAX_DISCOVERED {
                return Ok(());
            }
            pool.discovered().min_by_key(|record| record.last_seen_ms).map(|record| record.id)
        };
        let Some(oldest) = oldest else { return Ok(()) };
        let gone = self.store().transact(|txn| -> Result<bool> {
            let Some(record) = Record::load(txn, oldest)?.filter(|record| record.state == State::Discovered) else {
                return Ok(false);
            };
            record.boots.iter().for_each(|boot| txn.delete(&boot_key(boot.id)));
            txn.delete(&records::machine_key(oldest));
            Ok(true)
        })?;
        if gone {
            timeline::forget(self.store(), oldest)?;
        }
        Ok(())
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
    pub fn observe(&self, seen: Seen) -> Result<()> {
        self.inner.observed.add(seen.mac, seen.machine, Said::seen(&seen, seen.at_ms))
    }

    fn write_ticket(&self, machine: MachineId, boot: &Boot, token: &Token) -> BootTicket {
        BootTicket {
            server: boot.reach.server.clone(),
            boot_server: boot.reach.boot_server.clone(),
            ca: self.ca_pem().to_owned(),
            time_key: boot.reach.time_key,
            image_keys: self.policy().all_image_keys(),
            machine,
            boot: boot.id,
            token: token.to_string(),
        }
    }
}

fn ticket_of(id: BootId, minted_ms: u64, reach: &Reach, token: Hash, now: u64) -> Boot {
    let expires_ms = now.saturating_add(TICKET_LIFE_MS);
    Boot { id, minted_ms, expires_ms, reach: reach.clone(), token, enrolled: None }
}
