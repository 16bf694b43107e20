//! The story of one boot, in order: network, ticket, time, enrol, inventory, then one order after the other.
//!
//! It returns how to leave the machine and leaves it to nobody but `main`. What can't go on ends in a reboot with its
//! reason; the server counts boots that get nowhere.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use drophammer_protocol::api::{AGENT_VENDOR_CLASS, BOOT_TICKET, Enrol};
use drophammer_protocol::event::Phase;
use drophammer_protocol::id::{Mac, OrderId};
use drophammer_protocol::inventory::Inventory;
use drophammer_protocol::order::{Erase, Kept, Order, Outcome, Task};
use drophammer_protocol::sign::PublicKey;
use drophammer_protocol::ticket::{BootDecision, BootTicket, TICKET_PATH};
use ed25519_dalek::SigningKey;

use crate::cmdline::Cmdline;
use crate::drive::namespaces;
use crate::erase::{self, Coverage};
use crate::events::Events;
use crate::init::Exit;
use crate::install::{self, InstallError};
use crate::modules::{self, Coldplug};
use crate::net::{self, Uplink, Wish};
use crate::reporter::Reporter;
use crate::server::{self, CallError, Outage, Server};
use crate::sys::linux;
use crate::untouched::Watched;
use crate::watchdog::Watchdog;
use crate::{efi, inventory};

/// Longest silences of the steps that make them. Each has limits of its own inside; these are for when those fail.
const SILENCE_AT_START: Duration = Duration::from_secs(30 * 60);
/// A day without an order, and without a server for three, are both ordinary.
const SILENCE_WHILE_WAITING: Duration = Duration::from_secs(73 * 3600);
/// A large drive that overwrites itself.
const SILENCE_WHILE_ERASING: Duration = Duration::from_secs(48 * 3600);
const SILENCE_WHILE_INSTALLING: Duration = Duration::from_secs(3600);

/// A server that takes no events for this long gets the outcome all the same.
const BEFORE_AN_OUTCOME: Duration = Duration::from_secs(10);

/// Controllers announce their disks when they are ready; a disk that isn't in the inventory isn't erased.
const QUIET_BEFORE_INVENTORY: Duration = Duration::from_secs(1);
const LONGEST_SETTLING: Duration = Duration::from_secs(60);

pub(crate) fn boot(events: &Events, watchdog: &Watchdog) -> Exit {
    until_exit(events, watchdog).unwrap_or_else(|error| match error.downcast_ref::<CallError>() {
        // Whatever we were asking for: the machine has gone on without this boot.
        Some(over @ CallError::Over(_)) => Exit::Reboot { reason: over.to_string() },
        _ => Exit::StartOver { reason: format!("{error:#}") },
    })
}

fn until_exit(events: &Events, watchdog: &Watchdog) -> anyhow::Result<Exit> {
    let reporter = events.reporter();
    watchdog.step(SILENCE_AT_START);
    let coldplug = Coldplug::start(reporter);
    coldplug.first_pass();
    start_watchdog(watchdog, reporter);
    crate::init::mount_efivars(reporter);

    let carried = read_ticket(Path::new(TICKET_PATH))?;
    let cmdline = Cmdline::parse(&fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?);
    let wish = Wish {
        mac: cmdline.boot_mac.or_else(|| efi::booted_from(Path::new("/"))),
        ticket: carried.is_none() && cmdline.boot_server.is_none(),
    };
    let uplink = net::bring_up(wish, reporter)?;
    let decision = match carried {
        Some(ticket) => BootDecision::Agent(ticket),
        None => ask_ticket(&cmdline, &uplink, reporter)?,
    };
    let BootDecision::Agent(ticket) = decision else { return Ok(Exit::OwnDisk) };
    set_clock(&ticket, reporter)?;
    let (server, key) = enrol(&ticket, reporter)?;
    events.deliver_to(server.clone());
    if !coldplug.settled(QUIET_BEFORE_INVENTORY, LONGEST_SETTLING) {
        reporter.note(Phase::Inventory, "devices keep appearing; the inventory is of those that are there now");
    }
    namespaces::attach_all(reporter);
    let found = inventory::read(Path::new("/"), Some(reporter));
    check_identity(&ticket, &found, reporter);
    server.store_inventory(&found).context("storing the inventory")?;

    let mut boot = Boot { ticket, key, server, inventory: found, kept: Vec::new(), answered: HashMap::new() };
    reporter.note(Phase::Agent, "ready for orders");
    loop {
        watchdog.step(SILENCE_WHILE_WAITING);
        let Some(order) = boot.server.order().context("asking for an order")? else { continue };
        if let Some(exit) = boot.obey(order, events, watchdog)? {
            return Ok(exit);
        }
    }
}

/// What the rest of the boot needs to know.
struct Boot {
    ticket: BootTicket,
    key: SigningKey,
    server: Server,
    /// As the server has it.
    inventory: Inventory,
    /// Drives that no order of this boot may touch any more.
    kept: Vec<Watched>,
    answered: HashMap<OrderId, Outcome>,
}

/// What an order deserves, before anything is done about it.
#[derive(Debug, PartialEq)]
enum Judgement {
    CarryOut,
    /// It was carried out before, and the answer didn't reach the server.
    AnswerAgain(Outcome),
    Refuse(String),
}

fn judge(order: &Order, ticket: &BootTicket, answered: &HashMap<OrderId, Outcome>) -> Judgement {
    if let Some(outcome) = answered.get(&order.id) {
        return Judgement::AnswerAgain(outcome.clone());
    }
    if order.machine != ticket.machine {
        return Judgement::Refuse(format!("the order is for machine {}, this is {}", order.machine, ticket.machine));
    }
    if order.boot != ticket.boot {
        return Judgement::Refuse(format!("the order is for boot {}, this is boot {}", order.boot, ticket.boot));
    }
    Judgement::CarryOut
}

impl Boot {
    /// Carries an order out and has its outcome stored. `Some` when the machine is to be left.
    fn obey(&mut self, order: Order, events: &Events, watchdog: &Watchdog) -> anyhow::Result<Option<Exit>> {
        let reporter = events.reporter();
        let mut start = None;
        let outcome = match judge(&order, &self.ticket, &self.answered) {
            Judgement::AnswerAgain(outcome) => outcome,
            Judgement::Refuse(reason) => {
                reporter.failed(Phase::Agent, format!("refusing the {} order: {reason}", order.task.name()));
                Outcome::Refused { reason }
            }
            Judgement::CarryOut => match &order.task {
                // The reboot itself is the answer: the next boot has orders of its own.
                Task::Reboot { reason } => return Ok(Some(Exit::Reboot { reason: format!("ordered: {reason}") })),
                Task::Erase(task) => {
                    watchdog.step(SILENCE_WHILE_ERASING);
                    self.erase(order.id, task, reporter)?
                }
                Task::Install(task) => {
                    watchdog.step(SILENCE_WHILE_INSTALLING);
                    let trust =
                        install::Trust { image_keys: self.ticket.image_keys.clone(), http: self.server.http().clone() };
                    match install::carry_out(task, &trust, &self.kept, reporter) {
                        Ok(ready) => {
                            let outcome = Outcome::Installed(Box::new(ready.report.clone()));
                            start = Some(Exit::Installed(Box::new(ready)));
                            outcome
                        }
                        Err(InstallError::Refused(reason)) => {
                            reporter.failed(Phase::Layout, format!("refusing the install order: {reason}"));
                            Outcome::Refused { reason }
                        }
                        Err(InstallError::Failed(error)) => {
                            reporter.failed(Phase::Image, format!("{error:#}"));
                            Outcome::Failed { reason: format!("{error:#}") }
                        }
                    }
                }
            },
        };
        watchdog.step(SILENCE_WHILE_WAITING);
        self.answered.insert(order.id, outcome.clone());
        // The story is told before its end, so that a cause stands before what follows from it.
        events.flush(BEFORE_AN_OUTCOME);
        let stored = self.server.store_outcome(order.id, &outcome);
        stored.with_context(|| format!("storing the outcome of the {} order", order.task.name()))?;
        Ok(start)
    }

    /// Holds what is kept from here on, and makes sure that a reinstall finds on it what it needs.
    fn keep(&mut self, kept: &Kept) -> anyhow::Result<()> {
        for id in kept.drives.values() {
            if !self.kept.iter().any(|watched| watched.id() == id) {
                self.kept.push(Watched::take(id)?);
            }
        }
        install::find_kept(kept, &self.kept).map_err(anyhow::Error::msg)
    }

    fn erase(&mut self, order: OrderId, task: &Erase, reporter: &Reporter) -> anyhow::Result<Outcome> {
        if let Err(e) = self.keep(&task.kept) {
            let reason = format!("{e:#}");
            reporter.failed(Phase::Erase, format!("refused, nothing was erased: {reason}"));
            return Ok(Outcome::Refused { reason });
        }
        let context =
            erase::Context { machine: self.ticket.machine, boot: self.ticket.boot, order, key: self.key.clone() };
        let outcome = erase::carry_out(&context, task, Coverage::WholeMachine, reporter);
        // A drive that turned up after the inventory has no certificate. The server compares the outcome with the
        // inventory that it has, so it must hear of that drive first.
        let now = inventory::disks::disks(Path::new("/"));
        let new: Vec<&str> = now
            .iter()
            .filter(|d| d.holds_data() && !self.inventory.disks.iter().any(|k| k.id() == d.id() && k.name == d.name))
            .map(|d| d.name.as_str())
            .collect();
        if !new.is_empty() {
            let names = new.join(", ");
            reporter.failed(Phase::Erase, format!("{names} appeared after the inventory was taken and wasn't erased"));
            self.inventory = inventory::read(Path::new("/"), Some(reporter));
            self.server.store_inventory(&self.inventory).context("storing the new inventory")?;
        }
        Ok(outcome)
    }
}

fn start_watchdog(watchdog: &Watchdog, reporter: &Reporter) {
    // Only where the hardware has none of its own: the first driver that loads owns the device.
    if !Path::new("/dev/watchdog").exists()
        && let Err(error) = modules::load("softdog", reporter)
    {
        reporter.note(Phase::Agent, format!("loading the software watchdog: {error:#}"));
    }
    reporter.note(Phase::Agent, watchdog.start(reporter));
}

/// `None` in a unified kernel image, which is the same for every machine.
fn read_ticket(path: &Path) -> anyhow::Result<Option<BootTicket>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("reading the boot ticket {}", path.display()))?,
    };
    let ticket = serde_json::from_str(&text);
    ticket.map(Some).with_context(|| format!("understanding the boot ticket {}", path.display()))
}

/// What this machine is to boot, from the server that DHCP or the command line names.
fn ask_ticket(cmdline: &Cmdline, uplink: &Uplink, reporter: &Reporter) -> anyhow::Result<BootDecision> {
    let named = cmdline.boot_server.as_ref().map(|server| format!("{}{BOOT_TICKET}", server.trim_end_matches('/')));
    let url = named.or_else(|| uplink.ticket_url.clone()).with_context(|| {
        format!(
            "this boot brought no ticket, and the DHCP server doesn't say where there is one: let it answer the vendor \
             class {AGENT_VENDOR_CLASS} with http://BOOT-SERVER{BOOT_TICKET} in option 67, or put \
             drophammer.server=http://BOOT-SERVER into the kernel arguments"
        )
    })?;
    reporter.note(Phase::Agent, format!("this boot brought no ticket; asking {url}"));
    let http = server::plain_http()?;
    let outage = Outage::new(reporter.clone(), Phase::Agent);
    let id = inventory::id(Path::new("/"));
    server::persist(server::UNTIL_ENROLLED, &outage, || server::ask_ticket(&http, &url, uplink.mac, id))
        .with_context(|| format!("asking {url} for this boot's ticket"))
}

/// Certificates and what we sign both need the right time; the machine's own clock may say anything.
fn set_clock(ticket: &BootTicket, reporter: &Reporter) -> anyhow::Result<()> {
    let http = server::plain_http()?;
    let outage = Outage::new(reporter.clone(), Phase::Agent);
    let time = server::persist(server::UNTIL_ENROLLED, &outage, || {
        server::ask_time(&http, &ticket.boot_server, ticket.time_key)
    })
    .context("asking the server for the time")?;
    let before = std::time::SystemTime::now();
    let now = time.now();
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, now.into()).context("setting the clock")?;
    let right = std::time::UNIX_EPOCH + now;
    let off = right.duration_since(before).unwrap_or_else(|e| e.duration());
    let direction = if before > right { "ahead" } else { "behind" };
    reporter
        .note(Phase::Agent, format!("clock set from the server's signed time; it was {} s {direction}", off.as_secs()));
    let seconds = i64::try_from(now.as_secs()).context("a time before the year 292 billion")?;
    if let Err(error) = linux::set_rtc(Path::new("/dev/rtc0"), seconds) {
        reporter.note(Phase::Agent, format!("the hardware clock keeps its time: {error:#}"));
    }
    Ok(())
}

fn enrol(ticket: &BootTicket, reporter: &Reporter) -> anyhow::Result<(Server, SigningKey)> {
    reporter.started(Phase::Enrol, format!("enrolling machine {} with {}", ticket.machine, ticket.server));
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("getting random bytes")?;
    let key = SigningKey::from_bytes(&secret);
    let macs: Vec<Mac> = net::ports(Path::new("/")).into_iter().map(|port| port.mac).collect();
    let request = Enrol {
        machine: ticket.machine,
        key: PublicKey::of(&key),
        macs,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let http = server::https(&ticket.ca, std::sync::Arc::new(rustls::time_provider::DefaultTimeProvider))?;
    let server = Server::enrol(http, ticket, &request, reporter).context("enrolling")?;
    reporter.done(Phase::Enrol, "enrolled");
    Ok((server, key))
}

/// Worth knowing, and no more: some firmware changes its mind about its UUID between PXE and SMBIOS. What destroys data
/// names its drives by serial, so a ticket that went to the wrong machine does no harm.
fn check_identity(ticket: &BootTicket, found: &Inventory, reporter: &Reporter) {
    if let Some(id) = found.id.filter(|id| *id != ticket.machine) {
        reporter
            .note(Phase::Inventory, format!("firmware calls this machine {id}, the boot ticket {}", ticket.machine));
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::id::{BootId, MachineId};

    use super::*;

    #[test]
    fn only_our_own_orders_are_carried_out_and_only_once() {
        let uuid = |n: u128| uuid::Uuid::from_u128(n);
        let ticket = BootTicket {
            server: String::new(),
            boot_server: String::new(),
            ca: String::new(),
            time_key: PublicKey::of(&SigningKey::from_bytes(&[1; 32])),
            image_keys: vec![],
            machine: MachineId(uuid(1)),
            boot: BootId(uuid(2)),
            token: String::new(),
        };
        let done = Outcome::Refused { reason: "as before".into() };
        let answered = HashMap::from([(OrderId(uuid(9)), done.clone())]);
        let refuse = |reason: String| Judgement::Refuse(reason);
        for (name, id, machine, boot, want) in [
            ("ours", 3, 1, 2, Judgement::CarryOut),
            ("answered before", 9, 1, 2, Judgement::AnswerAgain(done)),
            (
                "another machine's",
                3,
                7,
                2,
                refuse(format!("the order is for machine {}, this is {}", uuid(7), uuid(1))),
            ),
            ("another boot's", 3, 1, 7, refuse(format!("the order is for boot {}, this is boot {}", uuid(7), uuid(2)))),
        ] {
            let order = Order {
                id: OrderId(uuid(id)),
                machine: MachineId(uuid(machine)),
                boot: BootId(uuid(boot)),
                task: Task::Reboot { reason: String::new() },
            };
            assert_eq!(judge(&order, &ticket, &answered), want, "{name}");
        }
    }
}
