//! What goes on behind the boot server: each errand on its own, and none of them is waited for.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_control::HEARTBEAT;
use drophammer_protocol::boot_server::{Health, Reports};
use reqwest::StatusCode;
use tokio::time::sleep;

use super::Alone;
use super::link::CallError;
use crate::config::Settings;
use crate::dhcp::others::Others;
use crate::health;

const REPORTING: &str = "reporting to the control API";
const LEARNING: &str = "learning from the control API what machines boot";
const WRITING: &str = "writing down what this boot server saw";
const REGISTERING: &str = "registering at the control API";
const RENEWING: &str = "renewing this boot server's certificate";
pub(super) const TELLING: &str = "telling the control API that this boot server is up";

/// Between attempts.
struct Patience(Duration);

impl Patience {
    const SHORTEST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self(Self::SHORTEST)
    }

    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

impl Alone {
    /// Ends only if this boot server must not go on.
    pub(crate) async fn run(self: Arc<Self>, settings: Settings, others: Others) -> Result<()> {
        tokio::select! {
            () = self.write_down() => Ok(()),
            () = self.report() => Ok(()),
            () = self.keep_up() => Ok(()),
            done = self.stay_known(&settings, &others) => done,
        }
    }

    /// Puts on disk what is only in memory, before the end.
    pub(crate) fn finish(&self) -> Result<()> {
        self.write(None, None)
    }

    async fn write_down(self: &Arc<Self>) {
        let mut patience = Patience::new();
        loop {
            self.news.notified().await;
            let alone = Arc::clone(self);
            let written = tokio::task::spawn_blocking(move || alone.write(None, None)).await;
            let failed = written.map_err(anyhow::Error::new).and_then(|written| written).err();
            self.trouble(WRITING, failed.as_ref().map(|error| format!("{error:#}")));
            if failed.is_some() {
                patience.wait().await;
                self.news.notify_one();
            } else {
                patience = Patience::new();
            }
        }
    }

    async fn report(self: &Arc<Self>) {
        let mut written = self.written.subscribe();
        let mut patience = Patience::new();
        loop {
            written.mark_unchanged();
            match self.report_oldest().await {
                Ok(true) => {
                    self.trouble(REPORTING, None);
                    patience = Patience::new();
                }
                Ok(false) => {
                    if written.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    self.trouble(REPORTING, Some(format!("{error:#}")));
                    patience.wait().await;
                }
            }
        }
    }

    /// Whether there was anything to report.
    async fn report_oldest(self: &Arc<Self>) -> Result<bool> {
        let alone = Arc::clone(self);
        let reports = tokio::task::spawn_blocking(move || alone.ledger.oldest()).await??;
        if reports.is_empty() {
            return Ok(false);
        }
        let stored = self.link.report(&Reports { reports }).await?.number;
        let alone = Arc::clone(self);
        tokio::task::spawn_blocking(move || alone.ledger.forget_up_to(stored)).await??;
        self.delivered.send_replace(stored);
        Ok(true)
    }

    async fn keep_up(self: &Arc<Self>) {
        let mut version = 0;
        let mut patience = Patience::new();
        loop {
            let learnt = match self.link.own_disks(version).await {
                Ok(Some(news)) => {
                    version = news.version;
                    let alone = Arc::clone(self);
                    let kept = tokio::task::spawn_blocking(move || alone.learn(news)).await;
                    kept.map_err(anyhow::Error::new).and_then(|kept| kept)
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            self.trouble(LEARNING, learnt.as_ref().err().map(|error| format!("{error:#}")));
            match learnt {
                Ok(()) => patience = Patience::new(),
                Err(_) => patience.wait().await,
            }
        }
    }

    async fn stay_known(&self, settings: &Settings, others: &Others) -> Result<()> {
        loop {
            if !*self.registered.borrow() {
                match self.register(&settings.state_dir).await {
                    Ok(()) => self.trouble(REGISTERING, None),
                    // Two servers that give out the same addresses do more harm than none.
                    Err(CallError::Refused { status: StatusCode::CONFLICT, detail }) => {
                        return Err(anyhow::Error::msg(detail)).context(REGISTERING);
                    }
                    Err(error) => self.trouble(REGISTERING, Some(format!("{:#}", anyhow::Error::new(error)))),
                }
            }
            let renewed = self.renew(settings).await.err().map(|error| format!("{error:#}"));
            self.trouble(RENEWING, renewed);
            let told = match self.link.health(&self.health(settings, others)).await {
                Ok(briefing) => {
                    // Before it has registered, what it's told may be for what it was.
                    if *self.registered.borrow() {
                        self.take_briefing(briefing, &settings.state_dir);
                    }
                    None
                }
                Err(error) => Some(format!("{:#}", anyhow::Error::new(error))),
            };
            self.trouble(TELLING, told);
            sleep(HEARTBEAT).await;
        }
    }

    fn health(&self, settings: &Settings, others: &Others) -> Health {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        // What arrives isn't true any more.
        let lasting = trouble.iter().filter(|(what, _)| *what != TELLING);
        let own = lasting.map(|(what, said)| format!("{what}: {said}"));
        let (reports_waiting, reports_lost) = self.reports();
        Health {
            reports_waiting,
            reports_lost,
            problems: own.chain(others.problems()).collect(),
            ..health::of_this_host(&settings.state_dir)
        }
    }
}
