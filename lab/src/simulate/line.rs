//! A machine's connection to a server, made anew when it's lost. An answer that doesn't come is asked for again as the agent
//! does it, with the same pauses, and every try that failed is counted.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustls::ClientConfig;
use tokio::time::sleep;

use super::calls::Call;
use super::crowd::Crowd;
use super::wire::{Answer, Asked, NoAnswer, Wire};

/// The pauses of the agent between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An agent waits for days. Nobody waits for days for a simulation.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Line {
    pub(super) machine: u32,
    pub(super) crowd: Arc<Crowd>,
    to: SocketAddrV4,
    tls: Option<Arc<ClientConfig>>,
    wire: Option<Wire>,
}

impl Line {
    pub(super) fn plain(machine: u32, crowd: &Arc<Crowd>, to: SocketAddrV4) -> Self {
        Self { machine, crowd: Arc::clone(crowd), to, tls: None, wire: None }
    }

    pub(super) fn tls(machine: u32, crowd: &Arc<Crowd>, to: SocketAddrV4, tls: Arc<ClientConfig>) -> Self {
        Self { tls: Some(tls), ..Self::plain(machine, crowd, to) }
    }

    /// Asks until there is an answer, and counts how long the one took that came.
    pub(super) async fn ask(&mut self, call: Call, asked: Asked) -> Result<Answer> {
        let (answer, began) = self.tries(call, asked).await?;
        self.crowd.calls.answered(call, began);
        Ok(answer)
    }

    /// The same without counting how long it took.
    pub(super) async fn persist(&mut self, call: Call, asked: Asked) -> Result<Answer> {
        self.tries(call, asked).await.map(|(answer, _)| answer)
    }

    async fn tries(&mut self, call: Call, asked: Asked) -> Result<(Answer, Instant)> {
        let since = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match self.once(asked.clone()).await {
                Ok(answered) => return Ok(answered),
                Err(why) => why,
            };
            self.wire = None;
            self.crowd.calls.failed(call, &why.kind());
            ensure!(matches!(why, NoAnswer::Passing(_)), "{why}");
            ensure!(since.elapsed() + pause < PATIENCE, "no answer for {} s: {why}", PATIENCE.as_secs());
            self.crowd.had_trouble(self.machine, why.to_string());
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// With when it was asked: a connection that had to be made first is told by itself.
    async fn once(&mut self, asked: Asked) -> Result<(Answer, Instant), NoAnswer> {
        let from = Crowd::address(self.machine);
        let wire = match &mut self.wire {
            Some(wire) => wire,
            None => {
                let began = Instant::now();
                let wire = match &self.tls {
                    Some(tls) => Wire::tls(from, self.to, tls).await?,
                    None => Wire::plain(from, self.to).await?,
                };
                if self.tls.is_some() {
                    self.crowd.calls.answered(Call::Handshake, began);
                }
                self.wire.insert(wire)
            }
        };
        let began = Instant::now();
        wire.ask(asked).await.map(|answer| (answer, began))
    }

    /// Half of a request, and then the connection is gone.
    pub(super) async fn cut(&mut self, asked: Asked) -> Result<()> {
        let done = self.once(Asked { cut: true, ..asked }).await;
        self.wire = None;
        ensure!(done.is_err(), "the server answered half of a request");
        Ok(())
    }
}
