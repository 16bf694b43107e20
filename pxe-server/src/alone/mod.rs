//! The boot server alone: what it needs instead of a control API in its own process.
//!
//! It decides by itself, from what it was last told, and never waits: machines boot while the control API is gone. What it
//! did and saw is on disk before anybody relies on it, and is reported when it can be, in order.
//!
//! | file | what it is about |
//! |---|---|
//! | `mod` | decisions and tickets |
//! | `membership` | joining, and the certificate that it's known by |
//! | `ledger` | what is kept over a restart: who boots their own disk, tickets, reports |
//! | `link` | the calls to the control API |
//! | `errands` | what goes on behind: reports, news, heartbeat, renewal |
//! | `relay` | what machines say to the control API, and images that aren't here yet |

mod errands;
mod ledger;
mod link;
mod membership;
pub(crate) mod relay;

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drophammer_control::{BootKey, unix_ms};
use drophammer_protocol::boot_server::{Asked, Briefing, OwnDisks, Registration, Report, Seen};
use drophammer_protocol::id::{BootId, Mac, MachineId};
use drophammer_protocol::ticket::{BootDecision, BootTicket, Reach};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use self::ledger::{Ledger, Ticket};
use self::link::Link;
use self::membership::Membership;
use crate::config::{ControlAt, Settings};
use crate::declared::Declared;
use crate::tls::Identity;

/// From the script to the agent's request for its initramfs. How long the ticket in it is good for is the control API's
/// decision, and counts from when it hears of it.
const TICKET_LIFE_MS: u64 = 10 * 60 * 1000;
/// Reports that wait for the disk.
const MAX_PENDING: usize = 8192;

#[derive(Debug)]
pub(crate) struct Alone {
    link: Link,
    identity: Arc<Identity>,
    membership: Mutex<Membership>,
    /// What it serves, for the control API.
    registration: watch::Sender<Registration>,
    /// Whether the control API has heard it since the start.
    registered: watch::Sender<bool>,
    /// Changes with what the control API said last.
    briefed: watch::Sender<()>,
    own_disks: RwLock<HashSet<MachineId>>,
    ledger: Ledger,
    /// Seen, and not on disk yet.
    pending: Mutex<VecDeque<Report>>,
    /// Held while reports are taken from `pending` and written, so that they stay in order.
    writing: Mutex<()>,
    /// Something is pending.
    news: Notify,
    /// The last report that is on disk.
    written: watch::Sender<u64>,
    /// The last report that the control API has.
    delivered: watch::Sender<u64>,
    lost: AtomicU64,
    /// Images that are being got.
    fetching: Mutex<HashSet<String>>,
    /// Sentences for the operators, each as long as it's true.
    trouble: Mutex<Vec<(&'static str, String)>>,
}

impl Alone {
    /// Joins if it hasn't yet, and registers if the control API can be reached. If it can't, what was learnt last time will
    /// do.
    pub(crate) async fn start(settings: &Settings, at: &ControlAt) -> Result<Arc<Self>> {
        let registration = settings.registration();
        let membership = membership::open(settings, at, &registration.name).await?;
        let identity = Identity::new(&membership.key()?, &membership.certified.certificate, &membership.ca)?;
        let link = Link::new(&at.url, &membership.ca, Arc::clone(&identity))?;
        let (ledger, own_disks) = Ledger::open(&settings.state_dir.join("boot-server.redb"))?;
        let alone = Arc::new(Self {
            link,
            identity,
            membership: Mutex::new(membership),
            registration: watch::Sender::new(registration),
            registered: watch::Sender::new(false),
            briefed: watch::Sender::new(()),
            own_disks: RwLock::new(own_disks),
            delivered: watch::Sender::new(ledger.delivered()),
            written: watch::Sender::new(ledger.last()),
            ledger,
            pending: Mutex::default(),
            writing: Mutex::default(),
            news: Notify::new(),
            lost: AtomicU64::new(0),
            fetching: Mutex::default(),
            trouble: Mutex::default(),
        });
        match alone.register(&settings.state_dir).await {
            Ok(()) => {}
            Err(error) if error.is_passing() && alone.membership().briefing.is_some() => {
                tracing::warn!(
                    "going on without the control API, by what it said last: {:#}",
                    anyhow::Error::new(error)
                );
            }
            Err(error) => return Err(error).context("registering this boot server"),
        }
        Ok(alone)
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity)
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.membership().ca.clone()
    }

    /// Decides what this machine boots, and keeps it for the control API.
    pub(crate) fn boot_asked(
        &self,
        mac: Mac,
        machine: MachineId,
        address: IpAddr,
        reach: &Reach,
    ) -> Result<BootDecision> {
        let now = unix_ms();
        let asked = |boot| Asked { at_ms: now, mac, machine, address, boot, reach: reach.clone() };
        if self.boots_own_disk(machine) {
            self.write(Some(Report::Asked(asked(None))), None)?;
            return Ok(BootDecision::LocalDisk);
        }
        let boot = BootId(Uuid::new_v4());
        let ticket = Ticket { machine, reach: reach.clone(), expires_ms: now.saturating_add(TICKET_LIFE_MS) };
        let written = self.write_ticket(boot, &ticket)?;
        self.write(Some(Report::Asked(asked(Some(boot)))), Some((boot, ticket)))?;
        Ok(BootDecision::Agent(written))
    }

    pub(crate) fn boots_own_disk(&self, machine: MachineId) -> bool {
        self.own_disks.read().unwrap_or_else(PoisonError::into_inner).contains(&machine)
    }

    /// As the control API said it last.
    pub(crate) fn declared(&self) -> Declared {
        let membership = self.membership();
        let Some(Briefing { dns, ntp, .. }) = &membership.briefing else { return Declared::default() };
        Declared { dns: dns.clone(), ntp: ntp.clone(), images: vec![] }
    }

    pub(crate) fn briefed(&self) -> watch::Receiver<()> {
        self.briefed.subscribe()
    }

    pub(crate) fn ticket(&self, boot: BootId) -> Result<Option<BootTicket>> {
        let ticket = self.ledger.ticket(boot, unix_ms())?;
        ticket.map(|ticket| self.write_ticket(boot, &ticket)).transpose()
    }

    /// Something of a boot. Doesn't wait for a disk; an error says that it's left out.
    pub(crate) fn observe(&self, seen: Seen) -> Result<()> {
        let mut pending = self.pending();
        ensure!(
            pending.len() < MAX_PENDING,
            "{MAX_PENDING} observations wait to be written already; what was seen of {} is left out of its timeline",
            seen.mac
        );
        pending.push_back(Report::Seen(seen));
        self.news.notify_one();
        Ok(())
    }

    /// How many reports the control API hasn't got, and how many were given up.
    pub(crate) fn reports(&self) -> (u64, u64) {
        (self.ledger.waiting(), self.lost.load(Ordering::Relaxed))
    }

    /// Whether the control API heard the last heartbeat.
    pub(crate) fn is_known(&self) -> bool {
        *self.registered.borrow() && !self.has_trouble(errands::TELLING)
    }

    /// Puts what is pending on disk, and `asked` with its ticket behind it. If that fails, nothing is lost but `asked`.
    fn write(&self, asked: Option<Report>, ticket: Option<(BootId, Ticket)>) -> Result<()> {
        let _order = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let batch: Vec<_> = self.pending().drain(..).collect();
        if batch.is_empty() && asked.is_none() {
            return Ok(());
        }
        match self.ledger.append(batch.iter().chain(&asked), ticket, unix_ms()) {
            Ok(lost) => {
                self.lost.fetch_add(lost, Ordering::Relaxed);
                self.written.send_replace(self.ledger.last());
                Ok(())
            }
            Err(error) => {
                let mut pending = self.pending();
                batch.into_iter().rev().for_each(|report| pending.push_front(report));
                let given_up = pending.len().saturating_sub(MAX_PENDING);
                pending.truncate(MAX_PENDING);
                self.lost.fetch_add(given_up as u64, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Until the control API has everything that has been reported up to now.
    async fn caught_up(&self, patience: Duration) -> bool {
        let last = self.ledger.last();
        let mut delivered = self.delivered.subscribe();
        let caught_up = delivered.wait_for(|delivered| *delivered >= last);
        matches!(tokio::time::timeout(patience, caught_up).await, Ok(Ok(_)))
    }

    fn learn(&self, own_disks: OwnDisks) -> Result<()> {
        self.ledger.keep_own_disks(&own_disks)?;
        *self.own_disks.write().unwrap_or_else(PoisonError::into_inner) = own_disks.machines.into_iter().collect();
        Ok(())
    }

    fn write_ticket(&self, boot: BootId, ticket: &Ticket) -> Result<BootTicket> {
        let membership = self.membership();
        let briefing = membership.briefing.as_ref().context("this boot server has never been briefed")?;
        let Briefing { ca, image_keys, boot_key, .. } = briefing;
        let key = BootKey::from_hex(boot_key).context("the control API's boot key isn't one")?;
        Ok(BootTicket {
            server: ticket.reach.server.clone(),
            boot_server: ticket.reach.boot_server.clone(),
            ca: ca.clone(),
            time_key: ticket.reach.time_key,
            image_keys: image_keys.clone(),
            machine: ticket.machine,
            boot,
            token: key.token(boot),
        })
    }

    fn membership(&self) -> MutexGuard<'_, Membership> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<Report>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_trouble(&self, what: &str) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(name, _)| *name == what)
    }

    /// Says it in the log when it begins and when it ends, and to operators as long as it lasts.
    fn trouble(&self, what: &'static str, now: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let before = trouble.iter().position(|(name, _)| *name == what).map(|at| trouble.remove(at));
        match (&before, &now) {
            (None, Some(said)) => tracing::error!("{what}: {said}"),
            (Some(_), None) => tracing::info!("{what}: works again"),
            _ => {}
        }
        trouble.extend(now.map(|said| (what, said)));
    }
}
