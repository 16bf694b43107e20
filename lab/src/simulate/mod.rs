//! `drophammer lab simulate`: thousands of machines in one process against a real server.
//!
//! ```text
//!            network namespace, ours alone
//!   ┌───────────────────────────────────────────────────────────────┐
//!   │  drophammer serve ◀── HTTP, TLS ── N machines, one address    │   machine, wire, hardware, plan
//!   │    └─ a file, or 3 × etcd      ◀── operators     each (crowd) │   operator
//!   └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! The machines speak the agents' real protocol, and what they say is signed and chained as an agent does it; only the
//! hardware is made up. Measured is what they and the operators see ([`calls`]); in the end the server is asked for
//! everything, and what isn't where it should be is an error ([`verdict`]), whatever has befallen the server meanwhile
//! ([`drill`]). Server, machines and operators are one child
//! process in a network of their own ([`inside`]), which the benchmarks use as well ([`Simulator`]).

mod calls;
mod crowd;
mod drill;
mod files;
mod hardware;
mod inside;
mod line;
mod machine;
mod operator;
mod plan;
mod report;
mod verdict;
mod wire;
mod world;

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub use self::calls::Figures;
pub use self::drill::Drill;
pub use self::inside::inside;
pub(crate) use self::inside::{Answer, Ask};
pub use self::report::Report;
pub use self::world::Usage;
use crate::net::{Namespace, Process};
use crate::up;

/// How the simulation's own process is called.
pub const INSIDE_COMMAND: &str = "simulate-inside";
/// All addresses that machines have.
const NETWORK: &str = "10.80.0.0/14";
const MOST_MACHINES: u32 = 50_000;
const MOST_CLIENTS: u16 = 1000;

/// What is simulated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub machines: u32,
    /// The time that they come in; all at once, if it's none.
    pub arrival_s: u64,
    /// Percent of them that something befalls: the erase fails, the connection is cut, the machine vanishes.
    pub failures: u8,
    /// Percent of them that lose their power once while they wait.
    pub reboots: u8,
    /// How long the server is watched while all of them wait.
    pub wait_s: u64,
    /// Percent of them that are allocated.
    pub allocate: u8,
    /// How many do it at once.
    pub clients: u16,
    /// How long an install takes.
    pub install_s: u64,
    /// The server's state is on three members of etcd.
    pub etcd: bool,
    /// What befalls the server while machines come, and once more while they are allocated.
    pub drill: Option<Drill>,
}

impl Options {
    pub fn check(&self) -> Result<()> {
        ensure!(
            (1..=MOST_MACHINES).contains(&self.machines),
            "--machines is 1 to {MOST_MACHINES}, and not {}",
            self.machines
        );
        for (name, percent) in
            [("--failures", self.failures), ("--reboots", self.reboots), ("--allocate", self.allocate)]
        {
            ensure!(percent <= 100, "{name} is in percent, up to 100, and not {percent}");
        }
        ensure!(
            (1..=MOST_CLIENTS).contains(&self.clients),
            "--clients is 1 to {MOST_CLIENTS}, and not {}",
            self.clients
        );
        if let Some(drill) = self.drill.filter(|drill| drill.is_of_etcd() && !self.etcd) {
            bail!("{drill} is something that befalls etcd: say --etcd");
        }
        Ok(())
    }

    fn arrival(&self) -> Duration {
        Duration::from_secs(self.arrival_s)
    }

    fn install(&self) -> Duration {
        Duration::from_secs(self.install_s)
    }

    /// The longest time that nothing may be heard of anybody though all is well.
    fn slowest_step(&self) -> Duration {
        self.arrival().max(self.install())
    }
}

/// Simulates all of it and says what came of it.
pub fn simulate(options: &Options) -> Result<Report> {
    options.check()?;
    match Simulator::start()?.answer(&Ask::Whole(options.clone()))? {
        Answer::Whole(report) => Ok(*report),
        answer => bail!("the simulation answered something else than its report: {answer:?}"),
    }
}

/// The process that simulates; it and all that it started are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Simulator {
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    _process: Process,
    _namespace: Namespace,
}

impl Simulator {
    pub(crate) fn start() -> Result<Self> {
        let namespace = Namespace::create()?;
        namespace.build()?;
        namespace.ip(&format!("route add local {NETWORK} dev lo\n")).context("giving machines their addresses")?;
        let mut command = Command::new(up::program()?);
        command.args(["lab", INSIDE_COMMAND]);
        let mut command = namespace.enter(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command).context("starting the simulation")?;
        let (asks, answers) = process.pipes().context("talking to the simulation")?;
        Ok(Self { asks, answers: BufReader::new(answers), _process: process, _namespace: namespace })
    }

    pub(crate) fn figure(&mut self, ask: &Ask) -> Result<f64> {
        match self.answer(ask)? {
            Answer::Figure(figure) => Ok(figure),
            answer => bail!("the simulation answered something else than a figure: {answer:?}"),
        }
    }

    fn answer(&mut self, ask: &Ask) -> Result<Answer> {
        let mut text = serde_json::to_string(ask).context("asking the simulation")?;
        text.push('\n');
        self.asks.write_all(text.as_bytes()).context("asking the simulation")?;
        let mut line = String::new();
        self.answers.read_line(&mut line).context("hearing of the simulation")?;
        ensure!(!line.is_empty(), "the simulation ended by itself; what it said is above");
        match serde_json::from_str(&line).context("understanding the simulation")? {
            Answer::Failed(why) => bail!("{why}"),
            answer => Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const OPTIONS: Options = Options {
        machines: 100,
        arrival_s: 0,
        failures: 0,
        reboots: 0,
        wait_s: 0,
        allocate: 50,
        clients: 20,
        install_s: 0,
        etcd: false,
        drill: None,
    };

    #[test]
    fn what_cannot_be_simulated_is_said_before_anything_starts() {
        for (name, options, want) in [
            ("usual", OPTIONS, None),
            ("nobody", Options { machines: 0, ..OPTIONS }, Some("--machines is 1 to 50000, and not 0")),
            ("too many", Options { machines: 50_001, ..OPTIONS }, Some("not 50001")),
            ("more than all fail", Options { failures: 101, ..OPTIONS }, Some("--failures is in percent")),
            ("more than all reboot", Options { reboots: 101, ..OPTIONS }, Some("--reboots is in percent")),
            ("more than all are given", Options { allocate: 101, ..OPTIONS }, Some("--allocate is in percent")),
            (
                "no etcd",
                Options { drill: Some(Drill::QuorumLost), ..OPTIONS },
                Some("quorum-lost is something that befalls etcd"),
            ),
            ("no operator", Options { clients: 0, ..OPTIONS }, Some("--clients is 1 to 1000, and not 0")),
        ] {
            let error = options.check().err().map(|error| error.to_string());
            assert_eq!(error.is_some(), want.is_some(), "{name}: {error:?}");
            assert!(error.unwrap_or_default().contains(want.unwrap_or_default()), "{name}");
        }
    }
}
