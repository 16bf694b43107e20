//! One simulated machine: its firmware asks for a boot, its agent enrols, tells what it's made of, erases and proves it,
//! waits for orders by long poll, installs, and its system phones home. What it sends is what a real agent would, signed and
//! chained; what it does in between takes no time but for the install, if that is said. A refusal makes it boot again.

use std::future::Future;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use drophammer_protocol::api::{
    AGENT_ENROL, AGENT_EVENTS, AGENT_INVENTORY, AGENT_ORDER, AGENT_ORDERS, AGENT_PHONE_HOME, BOOT_INITRAMFS,
    BOOT_SCRIPT, BOOT_TIME, Enrol, Enrolled, Events, EventsStored, PhonedHome, TimeAnswer,
};
use drophammer_protocol::certificate::{Drive, ErasureCertificate, Link};
use drophammer_protocol::event::{Event, Phase, Progress, Step};
use drophammer_protocol::fixtures;
use drophammer_protocol::id::OrderId;
use drophammer_protocol::order::{Erase, Install, Installed, Order, Outcome, Task};
use drophammer_protocol::sign::{PublicKey, Signed};
use drophammer_protocol::ticket::{BootTicket, TICKET_PATH};
use ed25519_dalek::SigningKey;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::calls::Call;
use super::crowd::Crowd;
use super::line::Line;
use super::plan::{Fate, arrival, fate, reboots};
use super::verdict::Stage;
use super::wire::{ANSWER_WITHIN, Answer, Asked, believing};
use super::{hardware, world};

/// How long the server may hold an order request open: the agent's own figure.
const ORDER_WAIT: Duration = Duration::from_secs(30);
/// A machine that boots more often is lost.
const MOST_BOOTS: u32 = 8;
/// Firmware takes longer, and this is long enough for a server to notice.
const BETWEEN_BOOTS: Duration = Duration::from_secs(1);
/// While it waits, until it loses its power.
const BEFORE_REBOOT: Duration = Duration::from_secs(2);
const INSTALLED_BYTES: u64 = 1 << 30;
/// Progress is told this often while an image is written.
const BETWEEN_PROGRESS: Duration = Duration::from_secs(5);

/// From power-on to the running system, or for as long as it's waited for it.
pub(super) async fn live(machine: u32, crowd: Arc<Crowd>) {
    let Simulated { fate, mut reboots } = Simulated::of(machine, &crowd);
    sleep(arrival(machine, crowd.options.machines, crowd.options.arrival())).await;
    for boot in 1..=MOST_BOOTS {
        crowd.is_now(machine, Stage::Booting);
        let fate = if boot == 1 || fate == Fate::EraseFails { fate } else { Fate::Smooth };
        let left = Box::pin(self::boot(machine, &crowd, fate, &mut reboots)).await;
        match left {
            Ok(Left::Running) => return,
            Ok(Left::BootsAgain) => {}
            Err(trouble) => crowd.had_trouble(machine, format!("{trouble:#}")),
        }
        sleep(BETWEEN_BOOTS).await;
    }
    crowd.is_now(machine, Stage::Lost(format!("it booted {MOST_BOOTS} times and never came further")));
}

struct Simulated {
    fate: Fate,
    /// It does once.
    reboots: bool,
}

impl Simulated {
    fn of(machine: u32, crowd: &Crowd) -> Self {
        let fate = fate(machine, crowd.options.failures);
        // A quarantined machine has nothing to come back to.
        Self { fate, reboots: fate != Fate::EraseFails && reboots(machine, crowd.options.reboots) }
    }
}

/// How a boot ended.
enum Left {
    Running,
    BootsAgain,
}

async fn boot(machine: u32, crowd: &Arc<Crowd>, fate: Fate, reboots: &mut bool) -> Result<Left> {
    let Some(ticket) = ticket(machine, crowd).await? else {
        // Its own disk: the system that was installed there is up already.
        crowd.is_now(machine, Stage::Running);
        return Ok(Left::Running);
    };
    // Nobody who waits here holds the lock on what it waits for.
    crowd.gate().wait_for(|is_open| *is_open).await.context("waiting for all the others")?;
    let began = Instant::now();
    let mut agent = Agent::enrol(machine, crowd, ticket).await?;
    agent.register(fate).await?;
    crowd.calls.answered(Call::Registered, began);
    crowd.is_now(machine, Stage::Registered);
    let order = agent.ask_order(Call::EraseOrder).await?.context("the server has no order after the inventory")?;
    let Task::Erase(erase) = &order.task else { return Ok(Left::BootsAgain) };
    if fate == Fate::Vanishes {
        return Ok(Left::BootsAgain);
    }
    agent.erase(&order, erase, fate).await?;
    if std::mem::take(reboots) {
        let waited = tokio::time::timeout(BEFORE_REBOOT, agent.wait()).await;
        return match waited {
            Err(_) => Ok(Left::BootsAgain),
            Ok(order) => Err(anyhow::anyhow!("an order came before anybody asked for one: {:?}", order?)),
        };
    }
    let stage = if fate == Fate::EraseFails { Stage::Quarantined } else { Stage::Waiting };
    crowd.is_now(machine, stage);
    let order = agent.wait().await?;
    let Task::Install(install) = &order.task else { return Ok(Left::BootsAgain) };
    crowd.was_ordered(machine, &install.system.hostname, Instant::now());
    crowd.is_now(machine, Stage::Installing);
    agent.install(&order, install).await?;
    let install = install.clone();
    // kexec: every connection is gone.
    drop(agent);
    phone_home(machine, crowd, &install).await?;
    crowd.is_now(machine, Stage::Running);
    Ok(Left::Running)
}

/// What the boot script leads to: a ticket that the boot server put behind the initramfs, or the machine's own disk.
async fn ticket(machine: u32, crowd: &Arc<Crowd>) -> Result<Option<BootTicket>> {
    let mut line = Line::plain(machine, crowd, world::http());
    let (mac, id) = (hardware::mac(machine), hardware::id(machine));
    let path = format!("{BOOT_SCRIPT}?mac={mac}&uuid={id}");
    let script = line.ask(Call::Script, Asked::get(path)).await.context("asking for a boot script")?;
    let script = String::from_utf8_lossy(&script.body);
    let Some(url) = script.split_whitespace().find(|word| word.contains(BOOT_INITRAMFS)) else {
        ensure!(script.contains("starting from the local disk"), "the boot script is {script:?}");
        return Ok(None);
    };
    let at = url.find(BOOT_INITRAMFS).unwrap_or_default();
    let path = url.get(at..).unwrap_or_default();
    let initramfs = line.ask(Call::Ticket, Asked::get(path)).await.context("fetching the initramfs")?;
    let ticket = find_ticket(&initramfs.body)?;
    ensure!(ticket.machine == id, "the ticket is of machine {}", ticket.machine);
    check_time(&mut line, &ticket).await?;
    Ok(Some(ticket))
}

/// The answer to this very question, signed by whom the ticket names.
async fn check_time(line: &mut Line, ticket: &BootTicket) -> Result<()> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).context("getting random bytes")?;
    let nonce = hex::encode(random);
    let asked = Asked::get(format!("{BOOT_TIME}?nonce={nonce}"));
    let answer: TimeAnswer = understood(&line.ask(Call::Time, asked).await.context("asking for the time")?)?;
    let time = answer.open(&[ticket.time_key]).context("checking the signed time")?;
    ensure!(time.nonce == nonce, "the signed time answers another question");
    Ok(())
}

/// In the archive behind the initramfs: its name, padding, and then what it says.
fn find_ticket(initramfs: &[u8]) -> Result<BootTicket> {
    let name = TICKET_PATH.trim_start_matches('/').as_bytes();
    let at = initramfs.windows(name.len()).rposition(|window| window == name).context("there is no ticket in it")?;
    let rest = initramfs.get(at..).unwrap_or_default();
    let start = rest.iter().position(|byte| *byte == b'{').context("the ticket in it is empty")?;
    let json = serde_json::Deserializer::from_slice(rest.get(start..).unwrap_or_default());
    json.into_iter().next().context("the ticket in it is cut")?.context("understanding the ticket")
}

struct Agent {
    line: Line,
    ticket: BootTicket,
    key: SigningKey,
    credential: String,
    began: Instant,
    seq: u64,
}

impl Agent {
    async fn enrol(machine: u32, crowd: &Arc<Crowd>, ticket: BootTicket) -> Result<Self> {
        let began = Instant::now();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).context("getting random bytes for a key")?;
        let key = SigningKey::from_bytes(&seed);
        let tls = if ticket.ca == crowd.ca { Arc::clone(&crowd.tls) } else { believing(&ticket.ca)? };
        let mut line = Line::tls(machine, crowd, address("https://", &ticket.server)?, tls);
        let enrol = Enrol {
            machine: ticket.machine,
            key: PublicKey::of(&key),
            macs: vec![hardware::mac(machine)],
            agent_version: env!("CARGO_PKG_VERSION").into(),
        };
        let body = body(&enrol)?;
        let answer = line.ask(Call::Enrol, sent(Method::POST, AGENT_ENROL, &ticket.token, body)).await;
        let Enrolled { credential } = understood(&answer.context("enrolling")?)?;
        Ok(Self { line, ticket, key, credential, began, seq: 0 })
    }

    /// Inventory and events.
    async fn register(&mut self, fate: Fate) -> Result<()> {
        use Step::{Done, Note, Started};
        let inventory = body(&hardware::inventory(self.line.machine))?;
        let asked = sent(Method::PUT, AGENT_INVENTORY, &self.credential, inventory);
        if fate == Fate::CutOff {
            self.line.cut(asked.clone()).await?;
        }
        self.line.ask(Call::Inventory, asked).await.context("storing the inventory")?;
        let told = self.told(&[
            (Phase::Agent, Started, "drophammer-agent started"),
            (Phase::Agent, Note, "eth0 is up at 25 Gb/s, with an address by DHCP"),
            (Phase::Enrol, Done, "enrolled"),
            (Phase::Inventory, Started, "looking at what this machine is made of"),
            (Phase::Inventory, Note, "all devices have settled"),
            (Phase::Inventory, Done, "the inventory is with the server"),
            (Phase::Agent, Note, "ready for orders"),
        ]);
        self.store(told).await
    }

    fn told(&self, told: &[(Phase, Step, &str)]) -> Vec<Event> {
        told.iter().map(|(phase, step, message)| self.event(*phase, *step, message, None)).collect()
    }

    fn event(&self, phase: Phase, step: Step, message: &str, progress: Option<Progress>) -> Event {
        Event { seq: 0, uptime_ms: self.uptime_ms(), phase, step, message: message.to_owned(), progress }
    }

    async fn store(&mut self, mut events: Vec<Event>) -> Result<()> {
        for event in &mut events {
            self.seq += 1;
            event.seq = self.seq;
        }
        let told = body(&Events { uptime_ms: self.uptime_ms(), events })?;
        let asked = sent(Method::POST, AGENT_EVENTS, &self.credential, told);
        let stored = self.line.ask(Call::Events, asked).await.context("storing events")?;
        let EventsStored { seq } = understood(&stored)?;
        ensure!(seq == self.seq, "the server has events up to {seq}, and was sent {}", self.seq);
        Ok(())
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// One long poll. Only the first is measured: how long it takes is up to whoever gives orders.
    async fn ask_order(&mut self, call: Call) -> Result<Option<Order>> {
        let path = format!("{AGENT_ORDER}?wait={}", ORDER_WAIT.as_secs());
        let (bearer, within) = (Some(self.credential.clone()), ORDER_WAIT + ANSWER_WITHIN);
        let asked = Asked { bearer, within, ..Asked::get(path) };
        let answer = if call == Call::EraseOrder {
            self.line.ask(call, asked).await
        } else {
            self.line.persist(call, asked).await
        };
        let answer = answer.context("asking for an order")?;
        if answer.status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let order: Order = understood(&answer)?;
        let (own, its) = ((self.ticket.machine, self.ticket.boot), (order.machine, order.boot));
        ensure!(own == its, "the order is for {its:?}, and this is {own:?}");
        Ok(Some(order))
    }

    /// Until there is one.
    async fn wait(&mut self) -> Result<Order> {
        loop {
            if let Some(order) = self.ask_order(Call::OrderGiven).await? {
                return Ok(order);
            }
        }
    }

    async fn erase(&mut self, order: &Order, erase: &Erase, fate: Fate) -> Result<()> {
        let bytes = erase.disks.iter().map(|disk| disk.size_bytes).fold(0, u64::saturating_add);
        let progress = Progress { done_bytes: bytes, total_bytes: Some(bytes) };
        let plan = format!("erasing {} drives, each by NVMe Format", erase.disks.len());
        self.store(vec![
            self.event(Phase::Erase, Step::Started, &plan, None),
            self.event(Phase::Erase, Step::Note, "canaries are planted", None),
            self.event(Phase::Erase, Step::Progress, "", Some(progress)),
        ])
        .await?;
        if fate == Fate::EraseFails {
            let reason = "the drive aborted Format NVM with status 0x10a: simulated";
            self.store(self.told(&[(Phase::Erase, Step::Failed, reason)])).await?;
            return self.ended(Call::EraseOutcome, order.id, &Outcome::Failed { reason: reason.into() }).await;
        }
        self.store(self.told(&[(Phase::Erase, Step::Done, "no canary survived on any drive")])).await?;
        let certificates = certificates(self.line.machine, order, erase, &self.key)?;
        self.ended(Call::EraseOutcome, order.id, &Outcome::Erased { certificates }).await
    }

    async fn install(&mut self, order: &Order, install: &Install) -> Result<()> {
        let began = Instant::now();
        let length = self.line.crowd.options.install();
        let told = self.told(&[
            (Phase::Layout, Step::Done, "the drive is divided"),
            (Phase::Image, Step::Started, &format!("writing {}", install.image)),
        ]);
        self.store(told).await?;
        loop {
            let left = length.saturating_sub(began.elapsed());
            let part = if length.is_zero() { 1.0 } else { 1.0 - left.as_secs_f64() / length.as_secs_f64() };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a few GB")]
            #[expect(clippy::cast_precision_loss, reason = "a part of a few GB")]
            let done_bytes = (INSTALLED_BYTES as f64 * part) as u64;
            let progress = Progress { done_bytes, total_bytes: Some(INSTALLED_BYTES) };
            self.store(vec![self.event(Phase::Image, Step::Progress, "", Some(progress))]).await?;
            if left.is_zero() {
                break;
            }
            sleep(left.min(BETWEEN_PROGRESS)).await;
        }
        let told = self.told(&[
            (Phase::Image, Step::Done, "written and read back"),
            (Phase::Configure, Step::Done, "the system is configured"),
            (Phase::Kexec, Step::Started, "starting the installed system"),
        ]);
        self.store(told).await?;
        let installed = Installed {
            root_uuid: install.drives.keys().next().cloned().unwrap_or_default(),
            kernel: "/boot/vmlinuz".into(),
            cmdline: install.cmdline.clone(),
            bytes_fetched: INSTALLED_BYTES / 3,
            bytes_written: INSTALLED_BYTES,
            peak_memory_bytes: 48 << 20,
            kept: vec![],
        };
        self.ended(Call::InstallOutcome, order.id, &Outcome::Installed(Box::new(installed))).await
    }

    async fn ended(&mut self, call: Call, order: OrderId, outcome: &Outcome) -> Result<()> {
        let (path, outcome) = (format!("{AGENT_ORDERS}/{order}/outcome"), body(outcome)?);
        let stored = self.line.ask(call, sent(Method::POST, &path, &self.credential, outcome)).await;
        stored.map(drop).context("storing an outcome")
    }
}

/// One for each drive of the order, and each after the one before.
fn certificates(
    machine: u32,
    order: &Order,
    erase: &Erase,
    key: &SigningKey,
) -> Result<Vec<Signed<ErasureCertificate>>> {
    let inventory = hardware::inventory(machine);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut link: Link = erase.link.clone();
    let mut sealed = Vec::with_capacity(erase.disks.len());
    for id in &erase.disks {
        let disk = inventory.disks.iter().find(|disk| disk.id().as_ref() == Some(id));
        let disk = disk.with_context(|| format!("the order names {id}, which this machine hasn't"))?;
        let plain = fixtures::certificate(order.machine, order.boot, order.id, link.clone(), id);
        let (model, firmware, wwn) = (disk.model.clone(), disk.firmware.clone(), disk.wwn.clone());
        let certificate = ErasureCertificate {
            drive: Drive { model, firmware, wwn, ..plain.drive },
            ordered_by: erase.ordered_by.clone(),
            policy: erase.policy,
            started: now,
            finished: now,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            ..plain
        };
        let signed = Signed::seal(&certificate, key);
        link = link.after(&signed);
        sealed.push(signed);
    }
    Ok(sealed)
}

async fn phone_home(machine: u32, crowd: &Arc<Crowd>, install: &Install) -> Result<()> {
    let home = &install.phone_home;
    let tls = if home.ca == crowd.ca { Arc::clone(&crowd.tls) } else { believing(&home.ca)? };
    let mut line = Line::tls(machine, crowd, address("https://", &home.server)?, tls);
    let said = body(&PhonedHome {
        machine: home.machine,
        hostname: install.system.hostname.clone(),
        os: "Debian GNU/Linux 12 (bookworm)".into(),
        kernel: "6.1.0-28-amd64".into(),
        ssh_host_keys: vec![format!("ssh-ed25519 {}", hardware::serial(machine))],
        uptime_ms: 9000,
    })?;
    let heard = line.ask(Call::PhoneHome, sent(Method::POST, AGENT_PHONE_HOME, &home.token, said)).await;
    heard.map(drop).context("phoning home")
}

fn sent(method: Method, path: &str, bearer: &str, body: Bytes) -> Asked {
    Asked { method, bearer: Some(bearer.to_owned()), body, ..Asked::get(path) }
}

fn body(value: &impl Serialize) -> Result<Bytes> {
    Ok(serde_json::to_vec(value).context("writing a request")?.into())
}

fn understood<T: DeserializeOwned>(answer: &Answer) -> Result<T> {
    serde_json::from_slice(&answer.body).context("understanding the answer")
}

/// Where a server's URL leads.
fn address(scheme: &str, url: &str) -> Result<SocketAddrV4> {
    let address = url.trim_end_matches('/').strip_prefix(scheme).and_then(|address| address.parse().ok());
    address.with_context(|| format!("{url:?} is no address after {scheme}"))
}

/// Has every machine live its life.
pub(super) fn all(crowd: &Arc<Crowd>) -> impl Iterator<Item = impl Future<Output = ()> + Send + use<>> {
    let crowd = Arc::clone(crowd);
    (0..crowd.options.machines).map(move |machine| live(machine, Arc::clone(&crowd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_found_behind_an_initramfs() {
        let ticket = r#"{"server":"https://10.77.0.1:443","boot_server":"http://10.77.0.1","ca":"PEM","time_key":
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a","image_keys":[],
            "machine":"11111111-2222-3333-4444-555555555555","boot":"11111111-2222-3333-4444-555555555556",
            "token":"secret"}"#;
        let name = TICKET_PATH.trim_start_matches('/');
        for (name, initramfs, want) in [
            ("at its end", format!("kernel{{modules}}{name}\0\0\0{ticket}\0\0TRAILER"), Some("secret")),
            ("without one", "kernel{modules}".to_owned(), None),
            ("cut", format!("{name}\0\0{}", &ticket[..60]), None),
            ("empty", format!("{name}\0\0"), None),
        ] {
            let found = find_ticket(initramfs.as_bytes()).ok().map(|ticket| ticket.token);
            assert_eq!(found.as_deref(), want, "{name}");
        }
    }

    #[test]
    fn addresses_of_servers() {
        for (url, want) in [
            ("https://10.77.0.1:443", Some("10.77.0.1:443")),
            ("https://10.77.0.1:443/", Some("10.77.0.1:443")),
            ("http://10.77.0.1:443", None),
            ("https://host:443", None),
        ] {
            assert_eq!(address("https://", url).ok(), want.and_then(|want| want.parse().ok()), "{url}");
        }
    }
}
