//! The simulated operators: they allocate many at once, list and count, over HTTPS with an admin's token.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use drophammer_protocol::api::{ALLOCATIONS, CAPACITY, Capacity, MACHINES, Page};
use drophammer_protocol::id::MachineId;
use drophammer_protocol::machine::{Allocation, Machine, Select, State, Wanted};
use drophammer_protocol::resource::Kind;
use drophammer_protocol::system::System;
use hyper::Method;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::calls::Call;
use super::crowd::Crowd;
use super::verdict::{self, Listed};
use super::wire::{Asked, NoAnswer, Wire};
use super::{hardware, world};

const BETWEEN_ALLOCATIONS: Duration = Duration::from_millis(150);
const AFTER_AN_ERROR: Duration = Duration::from_millis(200);
/// Tries to have a question answered that changes nothing.
const TRIES: usize = 5;

#[derive(Debug)]
pub(super) struct Operators {
    crowd: Arc<Crowd>,
    token: String,
    hostnames: AtomicUsize,
    asked: Mutex<verdict::Asked>,
    /// When each allocation was answered.
    answered: Mutex<Vec<Instant>>,
}

impl Operators {
    pub(super) fn new(crowd: Arc<Crowd>, token: String) -> Self {
        let (asked, answered) = (Mutex::default(), Mutex::default());
        Self { crowd, token, hostnames: AtomicUsize::new(0), asked, answered }
    }

    /// What the machines are known by: sizes, and a partition with racks.
    pub(super) async fn declare(&self) -> Result<()> {
        for size in hardware::sizes() {
            self.put(&size).await?;
        }
        self.put(&hardware::partition(world::PARTITION, self.crowd.options.machines)).await
    }

    async fn put<T: Kind>(&self, document: &T) -> Result<()> {
        let (kind, name) = (T::NAME, document.name());
        let path = format!("/v1/{}/{name}", T::PLURAL);
        let body: Bytes = serde_json::to_vec(document).context("writing a document")?.into();
        let mut wire = self.wire().await.map_err(|e| anyhow!("{e}"))?;
        let asked = Asked { method: Method::PUT, bearer: Some(self.token.clone()), body, ..Asked::get(path) };
        wire.ask(asked).await.map(drop).map_err(|e| anyhow!("declaring {kind} {name}: {e}"))
    }

    /// So many allocations by so many clients at once, each as soon as its last one is answered. How long it took.
    pub(super) async fn allocate(self: &Arc<Self>, many: usize, clients: usize) -> Result<Duration> {
        let asked = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let goes_on = move || asked.fetch_add(1, Ordering::Relaxed) < many;
        self.clients(clients, goes_on).await?;
        Ok(began.elapsed())
    }

    /// The same until it's told to stop.
    pub(super) async fn allocate_until(self: &Arc<Self>, stop: Arc<AtomicBool>, clients: usize) -> Result<()> {
        self.clients(clients, move || !stop.load(Ordering::Relaxed)).await
    }

    /// One after the other, until as many were asked for and something else `is_over`.
    pub(super) async fn allocate_slowly(self: &Arc<Self>, many: usize, is_over: &AtomicBool) -> Result<()> {
        let asked = || {
            let asked = lock(&self.asked);
            asked.given.len() + asked.unanswered.len()
        };
        let mut wire = None;
        loop {
            let left = asked() < many;
            if !left && is_over.load(Ordering::Relaxed) {
                return Ok(());
            }
            if left {
                self.allocate_one(&mut wire).await;
            }
            sleep(BETWEEN_ALLOCATIONS).await;
        }
    }

    async fn clients(
        self: &Arc<Self>,
        clients: usize,
        goes_on: impl Fn() -> bool + Clone + Send + 'static,
    ) -> Result<()> {
        let mut all = JoinSet::new();
        for _ in 0..clients {
            let (us, goes_on) = (Arc::clone(self), goes_on.clone());
            all.spawn(async move {
                let mut wire = None;
                while goes_on() {
                    if !us.allocate_one(&mut wire).await {
                        sleep(AFTER_AN_ERROR).await;
                    }
                }
            });
        }
        while let Some(ended) = all.join_next().await {
            ended.context("a simulated operator broke")?;
        }
        Ok(())
    }

    /// Whether it was answered with a machine.
    async fn allocate_one(&self, wire: &mut Option<Wire>) -> bool {
        let number = self.hostnames.fetch_add(1, Ordering::Relaxed);
        let hostname = format!("sim{number:06}");
        let began = Instant::now();
        let given = self.try_allocate(wire, &hostname, number).await;
        let now = Instant::now();
        match given {
            Ok(machine) => {
                self.crowd.calls.took(Call::Allocate, began, now);
                self.crowd.was_given(machine, now);
                lock(&self.answered).push(now);
                lock(&self.asked).given.push((machine, hostname));
                true
            }
            Err(why) => {
                self.crowd.calls.failed(Call::Allocate, &why.to_string());
                if matches!(why, NoAnswer::Passing(_)) {
                    // It may have happened all the same. Asked for again, it would be another one.
                    lock(&self.asked).unanswered.insert(hostname);
                    *wire = None;
                }
                false
            }
        }
    }

    async fn try_allocate(
        &self,
        wire: &mut Option<Wire>,
        hostname: &str,
        number: usize,
    ) -> Result<MachineId, NoAnswer> {
        let role = ["db", "web", "worker"].get(number % 3).map(|role| ("role".to_owned(), (*role).to_owned()));
        let select = Select {
            partition: Some(world::PARTITION.into()),
            placement: role.into_iter().collect(),
            ..Select::default()
        };
        let system = System { hostname: hostname.to_owned(), ..System::default() };
        let allocation = Allocation { image: world::IMAGE.into(), system, ..Allocation::default() };
        let unwritten = |e: serde_json::Error| NoAnswer::Passing(format!("writing a request: {e}"));
        let body = serde_json::to_vec(&Wanted { select, allocation }).map_err(unwritten)?;
        let mut open = match wire.take() {
            Some(open) => open,
            None => self.wire().await?,
        };
        let asked = Asked {
            method: Method::POST,
            bearer: Some(self.token.clone()),
            body: body.into(),
            ..Asked::get(ALLOCATIONS)
        };
        let answer = open.ask(asked).await;
        *wire = Some(open);
        let unclear = |e: serde_json::Error| NoAnswer::Passing(format!("understanding the answer: {e}"));
        let given: Machine = serde_json::from_slice(&answer?.body).map_err(unclear)?;
        Ok(given.id)
    }

    /// Machines that wait and are of one size: the first page of them, so many times.
    pub(super) async fn list(&self, times: usize) -> Result<()> {
        let sizes = hardware::sizes();
        let mut wire = None;
        for time in 0..times {
            let size = sizes.get(time % sizes.len()).map(|size| size.name.as_str()).unwrap_or_default();
            let path = format!("{MACHINES}?state=waiting&size={size}");
            let page: Page<Machine> = self.look(&mut wire, Some(Call::List), &path).await?;
            let wrong = page.items.iter().find(|m| m.state != State::Waiting || m.size.as_deref() != Some(size));
            anyhow::ensure!(wrong.is_none(), "the list of waiting machines of size {size} has {wrong:?} in it");
        }
        Ok(())
    }

    pub(super) async fn capacity(&self, times: usize) -> Result<()> {
        let mut wire = None;
        for _ in 0..times {
            let counted: Vec<Capacity> = self.look(&mut wire, Some(Call::Capacity), CAPACITY).await?;
            let total: usize = counted.iter().map(|count| count.total).sum();
            let machines = self.crowd.options.machines as usize;
            anyhow::ensure!(total <= machines, "{total} machines are counted, and there are {machines}");
        }
        Ok(())
    }

    /// Every machine that the server knows.
    pub(super) async fn all_machines(&self) -> Result<Vec<Listed>> {
        let (mut all, mut after, mut wire) = (Vec::new(), String::new(), None);
        loop {
            let path = format!("{MACHINES}?after={}", after.replace(' ', "%20"));
            let path = if after.is_empty() { MACHINES } else { &path };
            let page: Page<Machine> = self.look(&mut wire, None, path).await?;
            all.extend(page.items.into_iter().map(|machine| Listed {
                id: machine.id,
                state: machine.state,
                hostname: machine.allocation.map(|allocation| allocation.system.hostname),
            }));
            match page.next {
                Some(next) => after = next,
                None => return Ok(all),
            }
        }
    }

    async fn look<T: DeserializeOwned>(&self, wire: &mut Option<Wire>, call: Option<Call>, path: &str) -> Result<T> {
        for tried in 1.. {
            let began = Instant::now();
            match self.try_look(wire, path).await {
                Ok(body) => {
                    call.iter().for_each(|call| self.crowd.calls.answered(*call, began));
                    return serde_json::from_slice(&body).with_context(|| format!("understanding {path}"));
                }
                Err(why) => {
                    call.iter().for_each(|call| self.crowd.calls.failed(*call, &why.kind()));
                    anyhow::ensure!(tried < TRIES && matches!(why, NoAnswer::Passing(_)), "asking for {path}: {why}");
                    *wire = None;
                    sleep(AFTER_AN_ERROR).await;
                }
            }
        }
        unreachable!("it's tried at most {TRIES} times")
    }

    async fn try_look(&self, wire: &mut Option<Wire>, path: &str) -> Result<Bytes, NoAnswer> {
        let open = match wire {
            Some(open) => open,
            None => wire.insert(self.wire().await?),
        };
        Ok(open.ask(Asked { bearer: Some(self.token.clone()), ..Asked::get(path) }).await?.body)
    }

    async fn wire(&self) -> Result<Wire, NoAnswer> {
        Wire::tls(Ipv4Addr::UNSPECIFIED, world::https(), &self.crowd.tls).await
    }

    pub(super) fn asked(&self) -> verdict::Asked {
        lock(&self.asked).clone()
    }

    /// The first allocation that was answered after that.
    pub(super) fn first_answer_after(&self, at: Instant) -> Option<Instant> {
        lock(&self.answered).iter().copied().filter(|answered| *answered >= at).min()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
