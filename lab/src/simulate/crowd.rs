//! All simulated machines: how far each is, and how it's waited for them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drophammer_protocol::id::MachineId;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Options;
use super::calls::{Call, Calls};
use super::hardware;
use super::verdict::{Own, Stage};

/// Machines have addresses of their own, from here on; [`super::NETWORK`] is all of them.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// When nothing has happened to anybody for as long, nothing will.
const STALLED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) options: Options,
    pub(super) calls: Calls,
    /// The server's own authority and what believes it, so that not each of thousands has to read it.
    pub(super) ca: String,
    pub(super) tls: Arc<ClientConfig>,
    standings: Vec<Mutex<Standing>>,
    /// Counts everything that happened to anybody.
    changes: AtomicU64,
    /// Machines with a ticket go on when it's open.
    gate: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Standing {
    stage: Stage,
    /// What went wrong last.
    trouble: Option<String>,
    /// When somebody was told to have it.
    given: Option<Instant>,
    /// For which system its install order was, and when it came.
    ordered: Option<(String, Instant)>,
}

impl Crowd {
    pub(super) fn new(options: Options, ca: String, tls: Arc<ClientConfig>, is_open: bool) -> Self {
        let standings = (0..options.machines).map(|_| Mutex::default()).collect();
        let (gate, calls, changes) = (watch::Sender::new(is_open), Calls::default(), AtomicU64::new(0));
        Self { options, calls, ca, tls, standings, changes, gate }
    }

    pub(super) fn address(machine: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + machine)
    }

    pub(super) fn gate(&self) -> watch::Receiver<bool> {
        self.gate.subscribe()
    }

    pub(super) fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Machines that have a ticket and wait for the gate to open.
    pub(super) fn at_the_gate(&self) -> usize {
        self.gate.receiver_count()
    }

    pub(super) fn is_now(&self, machine: u32, stage: Stage) {
        self.change(machine, |standing| standing.stage = stage);
    }

    pub(super) fn had_trouble(&self, machine: u32, trouble: String) {
        self.change(machine, |standing| standing.trouble = Some(trouble));
    }

    /// Somebody was told to have this machine.
    pub(super) fn was_given(&self, id: MachineId, at: Instant) {
        if let Some(machine) = hardware::number(id) {
            self.change(machine, |standing| standing.given = Some(at));
        }
    }

    pub(super) fn was_ordered(&self, machine: u32, hostname: &str, at: Instant) {
        self.change(machine, |standing| standing.ordered = Some((hostname.to_owned(), at)));
    }

    fn change(&self, machine: u32, change: impl FnOnce(&mut Standing)) {
        if let Some(mut standing) = self.standing(machine) {
            let both = |standing: &Standing| standing.given.zip(standing.ordered.as_ref().map(|(_, at)| *at));
            let before = both(&standing);
            change(&mut standing);
            // Whoever allocated it may hear of it before or after the machine does.
            if let (None, Some((given, ordered))) = (before, both(&standing)) {
                self.calls.took(Call::OrderGiven, given, ordered.max(given));
            }
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn standing(&self, machine: u32) -> Option<MutexGuard<'_, Standing>> {
        self.standings.get(machine as usize).map(lock)
    }

    /// How many machines are in each stage.
    pub(super) fn tally(&self) -> BTreeMap<&'static str, usize> {
        let mut tally = BTreeMap::new();
        self.standings.iter().for_each(|standing| *tally.entry(lock(standing).stage.name()).or_default() += 1);
        tally
    }

    /// Until every machine waits or has got elsewhere where it stays.
    pub(super) async fn all_wait(&self) {
        let is_there = |standing: &Standing| {
            !matches!(standing.stage, Stage::Off | Stage::Booting | Stage::Registered) || standing.ordered.is_some()
        };
        self.until(|| self.standings.iter().all(|standing| is_there(&lock(standing)))).await;
    }

    /// Until every machine that was given to somebody has its order.
    pub(super) async fn all_ordered(&self) {
        let is_there = |standing: &Standing| standing.given.is_none() || standing.ordered.is_some();
        self.until(|| self.standings.iter().all(|standing| is_there(&lock(standing)))).await;
    }

    /// Until nobody is on the way.
    pub(super) async fn all_settled(&self) {
        let is_there = |standing: &Standing| match standing.stage {
            Stage::Waiting | Stage::Quarantined => standing.given.is_none(),
            Stage::Running | Stage::Lost(_) => true,
            Stage::Off | Stage::Booting | Stage::Registered | Stage::Installing => false,
        };
        self.until(|| self.standings.iter().all(|standing| is_there(&lock(standing)))).await;
    }

    /// Until it's so, or nothing happens any more: who isn't there then is told as lost.
    pub(super) async fn until(&self, is_so: impl Fn() -> bool) {
        let patience = STALLED + self.options.slowest_step();
        let (mut known, mut since) = (self.changes.load(Ordering::Relaxed), Instant::now());
        while !is_so() {
            sleep(BETWEEN_LOOKS).await;
            let now = self.changes.load(Ordering::Relaxed);
            if now != known {
                (known, since) = (now, Instant::now());
            }
            if since.elapsed() > patience {
                return;
            }
        }
    }

    /// Every machine, by itself. One that is on its way where nobody should be is lost.
    pub(super) fn own(&self) -> Vec<Own> {
        let mut own = Vec::with_capacity(self.standings.len());
        for (machine, standing) in (0..).zip(&self.standings) {
            let Standing { stage, trouble, given, ordered } = &*lock(standing);
            let stuck = match stage {
                Stage::Off | Stage::Booting | Stage::Registered | Stage::Installing => true,
                Stage::Waiting | Stage::Quarantined => given.is_some(),
                Stage::Running | Stage::Lost(_) => false,
            };
            let stage = if stuck {
                let trouble = trouble.as_deref().unwrap_or("it met no trouble");
                Stage::Lost(format!("it's {} and nothing happens any more; {trouble}", stage.name()))
            } else {
                stage.clone()
            };
            let ordered = ordered.as_ref().map(|(hostname, _)| hostname.clone());
            own.push(Own { id: hardware::id(machine), name: hardware::serial(machine), stage, ordered });
        }
        own
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
