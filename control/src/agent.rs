//! What agents ask and tell. Each call speaks for one boot of one machine, and only the machine's present boot counts.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use drophammer_protocol::api::{Enrol, Enrolled, Events, EventsStored, IMAGES, InventoryTold, PhonedHome};
use drophammer_protocol::erase::{Depth, Psid};
use drophammer_protocol::event::{Event, Phase, Step};
use drophammer_protocol::hardware::Hardware;
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::{DiskId, Inventory};
use drophammer_protocol::layout::Layout;
use drophammer_protocol::machine::State;
use drophammer_protocol::order::{Erase, Fresh, Install, Kept, Order, Task};
use drophammer_protocol::provisioning::ProvisioningEvent;
use drophammer_protocol::system::System;
use drophammer_protocol::ticket::PhoneHome;
use uuid::Uuid;

use crate::Control;
use crate::denied::Denied;
use crate::differences;
use crate::erasure;
use crate::gpu;
use crate::install;
use crate::lifecycle::Input;
use crate::pool::Known;
use crate::records::{
    Boot, BootInventory, Enrolment, Erasing, Pending, PhoneHomeDue, Record, What, boot_key, inventories_prefix,
    inventory_key, machine_key,
};
use crate::rested;
use crate::secret::{Purpose, Token};
use crate::store::{MOST_CHANGES, Txn};
use crate::timeline::{self, Said};

/// Differences that a timeline has room for.
const MOST_NOTES: usize = MOST_CHANGES / 4;
/// Inventories of a machine that were different from the one before.
const MOST_INVENTORIES: usize = 20;

/// Stored in one commit, with room for what each replaces and pushes out.
const MOST_EVENTS: usize = MOST_CHANGES / 4;

impl Control {
    pub(crate) fn enrol(&self, bearer: &str, enrol: &Enrol, now: u64) -> Result<Enrolled, Denied> {
        let unknown =
            || Denied::stranger("this boot ticket isn't known: it's used, too old or not of this server; reboot");
        let token = Token::parse(bearer).ok_or_else(unknown)?;
        let boot = BootId(token.holder);
        let machine: MachineId = self.store().get(&boot_key(boot))?.ok_or_else(unknown)?;
        self.change(machine, |txn, record| {
            let ticket = record.boot_of(boot).filter(|b| b.token.is_of(&token)).ok_or_else(unknown)?;
            if ticket.expires_ms <= now {
                return Err(unknown());
            }
            if enrol.machine != machine {
                let detail = format!("the ticket is of machine {machine}, not of {}", enrol.machine);
                return Err(Denied::new(StatusCode::FORBIDDEN, detail));
            }
            let credential = self.inner.key.derive(Purpose::Agent, boot.0);
            if let Some(enrolment) = &ticket.enrolled {
                // An agent whose answer was lost on the way asks again. Until its inventory is here, nobody else can
                // know the key that it made for this boot.
                let silent = txn.get::<BootInventory>(&inventory_key(machine))?.is_none_or(|i| i.boot != boot);
                let again = silent && enrolment.key == enrol.key && record.boot == Some(boot);
                return if again { Ok(Enrolled { credential: credential.to_string() }) } else { Err(unknown()) };
            }
            let last_failure = timeline::last_failure(txn, machine, record.boot)?;
            record.boot = Some(boot);
            record.answered.clear();
            let enrolment = Enrolment { at_ms: now, key: enrol.key, credential: credential.hash() };
            record.boots.iter_mut().filter(|b| b.id == boot).for_each(|b| b.enrolled = Some(enrolment.clone()));
            enrol.macs.iter().for_each(|mac| record.learn_mac(*mac));
            self.advance(txn, record, Input::Enrol { last_failure }, now)?;
            let message = format!("an agent enrolled, version {}", enrol.agent_version);
            timeline::append(txn, machine, [Said::new(now, Some(boot), Phase::Enrol, Step::Note, message)])?;
            Ok(Enrolled { credential: credential.to_string() })
        })
        .inspect(|_| self.saw(machine, now))
    }

    /// Whose credential this is, if what is known in memory is enough to say so. It may be a moment behind what another
    /// server wrote, so nothing follows from it but that the caller is listened to.
    pub(crate) fn known_caller(&self, bearer: &str, now: u64) -> Option<MachineId> {
        let token = Token::parse(bearer)?;
        let machine = {
            let tables = self.inner.pool.read();
            let record = &tables.by_boot(BootId(token.holder))?.record;
            authenticate(record, &token).ok()?;
            record.id
        };
        self.saw(machine, now);
        Some(machine)
    }

    /// Whether an order for the machine could be there: most of those who ask are told that there is none, again and again.
    /// Whatever makes one wakes whoever waits for it, after it's seen here.
    pub(crate) fn could_have_order(&self, machine: MachineId) -> bool {
        let known = self.inner.pool.machine(machine);
        known.is_none_or(|Known { record, .. }| {
            record.order.is_some() || !matches!(record.state, State::Waiting | State::Quarantined)
        })
    }

    /// Whose credential this is, if that boot still counts.
    pub(crate) fn caller(&self, bearer: &str, now: u64) -> Result<MachineId, Denied> {
        let (token, machine) = self.claimed(bearer)?;
        let record: Record = self.store().get(&machine_key(machine))?.ok_or_else(unknown_credential)?;
        authenticate(&record, &token)?;
        self.saw(machine, now);
        Ok(machine)
    }

    pub(crate) fn take_inventory(&self, bearer: &str, inventory: &Inventory, now: u64) -> Result<(), Denied> {
        self.as_agent(bearer, now, |txn, record, boot| {
            if inventory.id.is_some_and(|id| !same_uuid(id.0, record.id.0)) {
                let theirs = inventory.id.map(|id| id.to_string()).unwrap_or_default();
                let detail = format!("this inventory is of machine {theirs}, and the credential of {}", record.id);
                return Err(Denied::new(StatusCode::FORBIDDEN, detail));
            }
            let disks = erasure::disks_to_erase(inventory, record.kept().values());
            let before = txn.get::<BootInventory>(&inventory_key(record.id))?;
            agent_step(self, txn, record, Input::Inventory(disks), now)?;
            let gone = before.as_ref().map(|b| missing_disks(&b.inventory, inventory)).unwrap_or_default();
            let gone =
                gone.into_iter().map(|disk| format!("{disk} is no longer there; whatever it held leaves with it"));
            let changes = before.as_ref().map(|b| differences::between(&b.inventory, inventory)).unwrap_or_default();
            let notes = gone.chain(changes.iter().cloned()).take(MOST_NOTES).map(timeline::shortened);
            let notes = notes.map(|text| Said::new(now, Some(boot), Phase::Inventory, Step::Note, text));
            timeline::append(txn, record.id, notes)?;
            if before.is_none() || !changes.is_empty() {
                let told = InventoryTold { at_ms: now, boot, changes, inventory: inventory.clone() };
                keep_inventory(txn, record.id, &told)?;
            }
            let neighbours = inventory.nics.iter().flat_map(|nic| &nic.lldp);
            let switches: BTreeSet<String> = neighbours.filter_map(|neighbour| neighbour.system_name.clone()).collect();
            record.switches = switches.into_iter().collect();
            record.hardware = Some(Hardware::of(inventory, gpu::of));
            record.serial = serial(inventory.system.serial.as_deref());
            record.name = record.serial.clone().or(record.mac.map(|m| m.to_string())).unwrap_or(record.id.to_string());
            inventory.nics.iter().for_each(|nic| record.learn_mac(nic.mac));
            txn.put(&inventory_key(record.id), &BootInventory { boot, inventory: inventory.clone() })?;
            Ok(())
        })
    }

    pub(crate) fn add_events(&self, bearer: &str, events: &Events, now: u64) -> Result<EventsStored, Denied> {
        let Events { uptime_ms, events } = events;
        let mut events: Vec<&Event> = events.iter().collect();
        events.sort_by_key(|event| event.seq);
        let mut pieces = events.chunks(MOST_EVENTS);
        let first = pieces.next().unwrap_or_default();
        let take = |piece: &[&Event]| {
            let events = Events { uptime_ms: *uptime_ms, events: piece.iter().copied().cloned().collect() };
            self.as_agent(bearer, now, |txn, record, boot| {
                let began_ms = record.boot_of(boot).map_or(0, |b| b.minted_ms);
                let seq = timeline::append_agent(txn, record.id, boot, began_ms, now, events.clone())?;
                Ok(EventsStored { seq })
            })
        };
        pieces.try_fold(take(first)?, |_, piece| take(piece))
    }

    /// The order of the caller's boot. An allocated machine's install order is written when it's asked for: from the
    /// allocation, the inventory and the images as they are then.
    pub(crate) fn take_order(&self, bearer: &str, now: u64) -> Result<Option<Order>, Denied> {
        // Outside of the transaction: looking at the images may take a while.
        let machine = self.caller(bearer, now)?;
        let record: Option<Record> = self.store().get(&machine_key(machine))?;
        let Some(record) = record else { return Err(unknown_credential()) };
        if matches!(record.state, State::Booting | State::Running) {
            return Err(Denied::gone(format!("the machine is {}: its own system is to be started", record.state)));
        }
        let due = record.state == State::Allocated && record.order.is_none();
        if record.order.is_none() && !due {
            return match record.state {
                State::Releasing => Err(Denied::gone("the machine was taken back; reboot into the network")),
                _ => Ok(None),
            };
        }
        let wanted = record.allocation.as_ref().filter(|_| due).map(|a| a.image.clone());
        let image = match &wanted {
            Some(reference) => self.find_image(reference, now)?,
            None => None,
        };
        self.as_agent(bearer, now, |txn, record, boot| {
            if record.order.is_none() && record.state == State::Allocated {
                let inventory = txn.get::<BootInventory>(&inventory_key(record.id))?.filter(|i| i.boot == boot);
                let plan = match (&record.allocation, &image, inventory) {
                    (Some(a), Some(image), Some(i)) if a.image == image.reference() => {
                        install::plan(a, image, &i.inventory, &record.kept(), &self.policy().reboot_models)
                            .map_err(|why| why.to_string())
                    }
                    (Some(a), _, Some(_)) => Err(self.no_such_image(&a.image)),
                    _ => return Ok(None),
                };
                match plan {
                    Ok(plan) => {
                        let id = OrderId(Uuid::new_v4());
                        record.order = Some(Pending { id, what: What::Install(plan) });
                        let token = self.inner.key.derive(Purpose::PhoneHome, id.0).hash();
                        agent_step(self, txn, record, Input::InstallOrdered, now)?;
                        record.phone_home = Some(PhoneHomeDue { order: id, token });
                    }
                    Err(why) => {
                        let why = format!("can't be installed yet: {why}");
                        if record.reason.as_ref() != Some(&why) {
                            let said = Said::new(now, Some(boot), Phase::Allocated, Step::Failed, why.clone());
                            timeline::append(txn, record.id, [said])?;
                            record.reason = Some(why);
                        }
                    }
                }
            }
            let Some((pending, boot)) = record.order.as_ref().zip(record.boot_of(boot)) else { return Ok(None) };
            let (psids, fresh) = match &pending.what {
                What::Erase(erasing) => {
                    let rested = rested::load(txn, record, self.policy().erase_again_after, now)?;
                    (self.psids(txn, &erasing.disks)?, rested::fresh(&rested)?)
                }
                What::Install(_) | What::Reboot { .. } => (BTreeMap::new(), BTreeMap::new()),
            };
            Ok(self.write_order(record, boot, pending, psids, fresh))
        })
    }

    pub(crate) fn phone_home(&self, bearer: &str, said: &PhonedHome, now: u64) -> Result<(), Denied> {
        let unknown =
            || Denied::stranger("this phone-home token isn't known: it's of an earlier install or not of this machine");
        let token = Token::parse(bearer).ok_or_else(unknown)?;
        if self.store().get::<Record>(&machine_key(said.machine))?.is_none() {
            return Err(unknown());
        }
        let is_wanted = self.change(said.machine, |txn, record| {
            let due = record.phone_home.as_ref().filter(|p| p.order.0 == token.holder && p.token.is_of(&token));
            if due.is_none() {
                return Err(unknown());
            }
            // Once is enough. A system that got no answer calls again and hears that it was heard; nothing changes.
            if record.state == State::Running {
                return Ok(true);
            }
            if record.state == State::Releasing {
                let up = timeline::shortened(format!("{} is up as {}", said.os, said.hostname));
                record.tell(ProvisioningEvent::PhonedHome, now, &up);
                return Ok(false);
            }
            self.advance(txn, record, Input::PhonedHome, now)?;
            record.ssh_host_keys.clone_from(&said.ssh_host_keys);
            let boot = record.boot;
            let up = format!("{} ({}) is up as {}", said.os, said.kernel, said.hostname);
            let started_ms = now.saturating_sub(said.uptime_ms).max(record.boots.last().map_or(0, |b| b.minted_ms));
            let told = [
                Said::new(
                    started_ms.min(now),
                    boot,
                    Phase::Os,
                    Step::Started,
                    format!("kernel {} started", said.kernel),
                ),
                Said::new(now, boot, Phase::Os, Step::Done, up),
                Said::new(now, boot, Phase::PhonedHome, Step::Done, "the installed system phoned home"),
            ];
            timeline::append(txn, record.id, told)?;
            Ok(true)
        })?;
        self.saw(said.machine, now);
        if is_wanted { Ok(()) } else { Err(Denied::gone("this machine was taken back, and is to be erased")) }
    }

    /// With the addresses and the secrets that aren't kept with it. `None` if nobody has the machine that is to be installed.
    fn write_order(
        &self,
        record: &Record,
        boot: &Boot,
        pending: &Pending,
        psids: BTreeMap<String, Psid>,
        fresh: BTreeMap<String, Fresh>,
    ) -> Option<Order> {
        let (machine, reach, policy) = (record.id, &boot.reach, self.policy());
        let task = match &pending.what {
            What::Erase(erasing) => Task::Erase(Box::new(Erase {
                disks: erasing.disks.clone(),
                kept: Kept { layout: stays(record, erasing), drives: erasing.kept.clone() },
                policy: erasing.policy,
                depth: Depth::Sampled,
                psids,
                fresh,
                link: record.link.clone(),
                ordered_by: erasing.ordered_by.clone(),
            })),
            What::Reboot { reason } => Task::Reboot { reason: reason.clone() },
            What::Install(plan) => {
                let allocation = record.allocation.as_ref()?;
                let layout = allocation.layout();
                // What is encrypted on drives that are kept opens with the key that it was made with.
                let standing = record.standing.as_ref().filter(|_| !plan.kept.is_empty());
                let key_of = standing.map_or(pending.id, |standing| standing.key_of);
                Task::Install(Box::new(Install {
                    disk_key: (!layout.encrypted.is_empty()).then(|| self.inner.key.disk_key(key_of)),
                    layout,
                    drives: plan.drives.clone(),
                    kept: plan.kept.clone(),
                    image: plan.image.clone(),
                    stores: vec![format!("{}{IMAGES}", reach.boot_server.trim_end_matches('/'))],
                    manifest_sha256: plan.manifest_sha256.clone(),
                    read_back: allocation.read_back,
                    boot: plan.boot,
                    cmdline: cmdline(&policy.install_cmdline, &allocation.system),
                    system: self.in_its_partition(record, allocation.system.clone()),
                    phone_home: PhoneHome {
                        server: reach.server.clone(),
                        boot_server: reach.boot_server.clone(),
                        ca: self.ca_pem().to_owned(),
                        time_key: reach.time_key,
                        machine,
                        token: self.inner.key.derive(Purpose::PhoneHome, pending.id.0).to_string(),
                    },
                }))
            }
        };
        Some(Order { id: pending.id, machine, boot: boot.id, task })
    }

    /// With the name and time servers of its partition where it has none of its own.
    fn in_its_partition(&self, record: &Record, mut system: System) -> System {
        let Some(partition) = self.partition(&record.partition) else { return system };
        if system.dns.is_empty() {
            system.dns = partition.dns;
        }
        if system.ntp.is_empty() {
            system.ntp = partition.ntp;
        }
        system
    }

    /// Runs `body` on the caller's machine if the caller is its present boot.
    pub(crate) fn as_agent<R>(
        &self,
        bearer: &str,
        now: u64,
        mut body: impl FnMut(&mut Txn<'_>, &mut Record, BootId) -> Result<R, Denied>,
    ) -> Result<R, Denied> {
        let (token, machine) = self.claimed(bearer)?;
        let result = self.change(machine, |txn, record| {
            let boot = authenticate(record, &token)?;
            body(txn, record, boot)
        })?;
        self.saw(machine, now);
        Ok(result)
    }

    /// What a credential claims, before anything of it is believed.
    fn claimed(&self, bearer: &str) -> Result<(Token, MachineId), Denied> {
        let token = Token::parse(bearer).ok_or_else(unknown_credential)?;
        let machine = self.store().get(&boot_key(BootId(token.holder)))?.ok_or_else(unknown_credential)?;
        Ok((token, machine))
    }
}

fn keep_inventory(txn: &mut Txn<'_>, machine: MachineId, told: &InventoryTold) -> anyhow::Result<()> {
    let prefix = inventories_prefix(machine);
    let known = txn.keys(&prefix, usize::MAX)?;
    let excess = (known.len() + 1).saturating_sub(MOST_INVENTORIES);
    known.iter().take(excess).for_each(|key| txn.delete(key));
    txn.put(&format!("{prefix}{:015}", told.at_ms), told)
}

/// What the layout has on drives that are kept.
fn stays(record: &Record, erasing: &Erasing) -> Layout {
    let names = erasing.kept.keys().map(String::as_str).collect();
    record.allocation.as_ref().map(|allocation| allocation.layout().apart(&names).1).unwrap_or_default()
}

/// The consoles that somebody asked for come last: the last one is the system's own.
fn cmdline(always: &str, system: &System) -> String {
    let asked = system.kernel_arguments();
    let always = always.split_whitespace().filter(|word| !asked.iter().any(|other| other == word));
    always.map(str::to_owned).chain(asked.iter().cloned()).collect::<Vec<_>>().join(" ")
}

fn unknown_credential() -> Denied {
    Denied::stranger("this credential isn't known: it's of a boot long gone or not of this server; reboot")
}

/// The boot that the token is the credential of, if that's the machine's present one.
fn authenticate(record: &Record, token: &Token) -> Result<BootId, Denied> {
    let boot = record.boot_of(BootId(token.holder)).ok_or_else(unknown_credential)?;
    if !boot.enrolled.as_ref().is_some_and(|e| e.credential.is_of(token)) {
        return Err(unknown_credential());
    }
    if record.boot != Some(boot.id) {
        return Err(Denied::gone("a later boot of this machine has enrolled, so this one's time is over; reboot"));
    }
    Ok(boot.id)
}

/// What the rules refuse an agent because its machine has gone on without it ends that boot.
pub(crate) fn agent_step(
    control: &Control,
    txn: &mut Txn<'_>,
    record: &mut Record,
    input: Input,
    now: u64,
) -> Result<(), Denied> {
    let state = record.state;
    control.advance(txn, record, input, now).map_err(|denied| match (denied, state) {
        (Denied::Refused { detail, .. }, State::Booting | State::Running | State::Releasing) => Denied::gone(detail),
        (denied, _) => denied,
    })
}

/// SMBIOS before 2.6 and option 97 of some firmware have the first three fields in the other byte order.
fn same_uuid(a: Uuid, b: Uuid) -> bool {
    a == b || Uuid::from_bytes_le(*a.as_bytes()) == b
}

fn missing_disks(before: &Inventory, now: &Inventory) -> Vec<DiskId> {
    let present: Vec<_> = now.disks.iter().filter_map(|d| d.id()).collect();
    before.disks.iter().filter(|d| d.holds_data()).filter_map(|d| d.id()).filter(|d| !present.contains(d)).collect()
}

/// The system's serial, unless it's one of the things that vendors leave in that field.
fn serial(text: Option<&str>) -> Option<String> {
    const PLACEHOLDERS: [&str; 10] = [
        "to be filled by o.e.m.",
        "default string",
        "system serial number",
        "not specified",
        "not applicable",
        "not available",
        "unknown",
        "none",
        "n/a",
        "empty",
    ];
    let serial = text?.trim();
    let real = serial.chars().any(|c| c.is_alphanumeric() && c != '0')
        && serial != "0123456789"
        && !PLACEHOLDERS.contains(&serial.to_ascii_lowercase().as_str());
    real.then(|| serial.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use drophammer_protocol::id::Mac;
    use drophammer_protocol::sign::PublicKey;
    use drophammer_protocol::system::Console;
    use drophammer_protocol::ticket::{BootDecision, BootTicket, Reach};
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::{Config, Policy, unix_ms};

    pub(crate) fn control(dir: &std::path::Path) -> Control {
        Control::open(Config {
            state_dir: dir.join("state"),
            state: crate::StateAt::File,
            images_dir: dir.join("images"),
            addresses: vec![],
            host_names: vec![],
            power_hook: None,
            oidc: None,
            requests_per_second: std::num::NonZeroU32::MAX,
            policy: Policy {
                image_keys: vec![],
                imports: None,
                install_cmdline: String::new(),
                reboot_models: vec![],
                max_failures: 3,
                erase: drophammer_protocol::erase::Policy::Purge,
                erase_again_after: std::time::Duration::from_secs(86_400),
                projects: BTreeMap::new(),
            },
        })
        .expect("opens")
    }

    /// The machine's firmware asks, and is sent to the agent.
    pub(crate) fn ticket(control: &Control, machine: MachineId) -> BootTicket {
        let time_key = PublicKey::of(&SigningKey::from_bytes(&[1; 32]));
        let reach = Reach { server: String::new(), boot_server: String::new(), time_key };
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        match control.boot_asked(mac, machine, [10, 0, 0, 1].into(), &reach).expect("decides") {
            BootDecision::Agent(ticket) => ticket,
            BootDecision::LocalDisk => panic!("not the agent's boot"),
        }
    }

    #[test]
    fn a_ticket_is_good_for_ten_minutes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let control = control(dir.path());
        let machine = MachineId(Uuid::from_u128(1));
        let ticket = ticket(&control, machine);
        let key = PublicKey::of(&SigningKey::from_bytes(&[1; 32]));
        let enrol = Enrol { machine, key, macs: vec![], agent_version: String::new() };
        let minute = 60_000;
        for (name, after, good) in [("too late", 11 * minute, false), ("in time", 9 * minute, true)] {
            let now = unix_ms() + after;
            assert_eq!(control.ticket_at(ticket.boot, now).expect("reads").is_some(), good, "{name}");
            assert_eq!(control.enrol(&ticket.token, &enrol, now).is_ok(), good, "{name}");
        }
    }

    #[test]
    fn consoles_that_were_asked_for_come_last() {
        let console = |port: &str| Console { port: port.into(), speed: None };
        for (name, always, asked, want) in [
            ("nobody asked", "console=ttyS0 quiet", vec![], "console=ttyS0 quiet"),
            ("another", "console=ttyS0", vec![console("ttyS1")], "console=ttyS0 console=ttyS1,115200n8"),
            (
                "one that is there",
                "console=ttyS0,115200n8 console=tty0",
                vec![console("ttyS0")],
                "console=tty0 console=ttyS0,115200n8",
            ),
        ] {
            assert_eq!(cmdline(always, &System { consoles: asked, ..System::default() }), want, "{name}");
        }
    }

    #[test]
    fn names_come_from_serials_that_are_serials() {
        for (text, want) in [
            (Some("CZ3451"), Some("CZ3451")),
            (Some(" CZ3451 "), Some("CZ3451")),
            (Some("To be filled by O.E.M."), None),
            (Some("Not Specified"), None),
            (Some("0000000"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(serial(text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn uuids_are_the_same_in_either_byte_order() {
        let of = |s: &str| Uuid::parse_str(s).expect("a uuid");
        let a = of("00112233-4455-6677-8899-aabbccddeeff");
        for (name, b, same) in [
            ("itself", a, true),
            ("swapped", of("33221100-5544-7766-8899-aabbccddeeff"), true),
            ("half swapped", of("33221100-4455-6677-8899-aabbccddeeff"), false),
            ("another", of("00112233-4455-6677-8899-aabbccddee00"), false),
        ] {
            assert_eq!((same_uuid(a, b), same_uuid(b, a)), (same, same), "{name}");
        }
    }
}
