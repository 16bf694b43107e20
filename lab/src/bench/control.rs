//! How much the control API bears: thousands of simulated machines ([`crate::simulate`]) against a real server, in figures
//! that are held against limits.
//!
//! Ten thousand machines take a while to come to where they wait, so rows that need them share them: each is measured on
//! the machines that the rows before it left waiting, and in the end of each that changes anything it's seen to that
//! everything is where it should be.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{Contest, limited};
use crate::simulate::{Ask, Options, Simulator};

const MANY: u32 = 10_000;
const SOME: u32 = 1000;
const CLIENTS: usize = 200;
const ALLOCATIONS: usize = 1000;
/// More than one round of the agents' long polls, of 30 s each.
const IDLE_SECONDS: u64 = 60;
const LOOKS: usize = 50;
/// In which ten thousand machines come: a data centre after a power cut.
const ARRIVAL_S: u64 = 120;
/// Longer than what is measured: real installs don't end in the middle of it either.
const INSTALL_S: u64 = 20;

pub(super) fn waiting_memory() -> Result<Contest> {
    contest(On::File, 600.0, |simulator| simulator.figure(&Ask::Memory))
}

pub(super) fn waiting_cpu() -> Result<Contest> {
    contest(On::File, 3.0, |simulator| simulator.figure(&Ask::Processor { seconds: IDLE_SECONDS }))
}

pub(super) fn list() -> Result<Contest> {
    contest(On::File, 50.0, |simulator| simulator.figure(&Ask::List { times: LOOKS }))
}

pub(super) fn capacity() -> Result<Contest> {
    contest(On::File, 20.0, |simulator| simulator.figure(&Ask::Capacity { times: LOOKS }))
}

pub(super) fn order() -> Result<Contest> {
    contest(On::File, 500.0, |simulator| {
        let ask = Ask::Orders { many: ALLOCATIONS, clients: CLIENTS };
        and_all_is_well(simulator, &ask)
    })
}

pub(super) fn allocate_on_file() -> Result<Contest> {
    allocate(On::File, 300.0)
}

pub(super) fn allocate_on_etcd() -> Result<Contest> {
    allocate(On::Etcd, 100.0)
}

fn allocate(on: On, limit: f64) -> Result<Contest> {
    contest(on, limit, |simulator| {
        let ask = Ask::Allocate { many: ALLOCATIONS, clients: CLIENTS };
        and_all_is_well(simulator, &ask)
    })
}

pub(super) fn failover() -> Result<Contest> {
    contest(On::Etcd, 5.0, |simulator| {
        let seconds = and_all_is_well(simulator, &Ask::Failover { clients: CLIENTS })?;
        // An answer may come before it's noticed that there is a leader again.
        Ok(seconds.max(0.001))
    })
}

/// Machines of its own: these have to be new to the server.
pub(super) fn burst() -> Result<Contest> {
    let mut simulator = Simulator::start()?;
    Ok(limited(2.0, move || {
        simulator.figure(&Ask::AtTheGate(Options { install_s: 0, ..options(SOME, On::File) }))?;
        simulator.figure(&Ask::Burst)
    }))
}

fn and_all_is_well(simulator: &mut Simulator, ask: &Ask) -> Result<f64> {
    let figure = simulator.figure(ask)?;
    simulator.figure(&Ask::Verify).context("after what was measured")?;
    Ok(figure)
}

/// Where the server has its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    File,
    Etcd,
}

/// Ten thousand machines that wait, for as long as rows in a row want the same.
static SHARED: Mutex<Option<(On, Simulator)>> = Mutex::new(None);

fn contest(on: On, limit: f64, measure: fn(&mut Simulator) -> Result<f64>) -> Result<Contest> {
    with(on, |_| Ok(()))?;
    Ok(limited(limit, move || with(on, measure)))
}

fn with<R>(on: On, work: impl FnOnce(&mut Simulator) -> Result<R>) -> Result<R> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut simulator = match shared.take() {
        Some((is_on, simulator)) if is_on == on => simulator,
        other => {
            // Its server and its machines take the processor and the memory from those that come.
            drop(other);
            let mut simulator = Simulator::start()?;
            simulator.figure(&Ask::Machines(options(MANY, on))).context("having machines come")?;
            simulator
        }
    };
    let done = work(&mut simulator);
    // After an error nobody knows what it has.
    *shared = done.is_ok().then_some((on, simulator));
    done
}

fn options(machines: u32, on: On) -> Options {
    Options {
        machines,
        arrival_s: if machines == MANY { ARRIVAL_S } else { 0 },
        failures: 0,
        reboots: 0,
        wait_s: 0,
        allocate: 0,
        clients: 1,
        install_s: INSTALL_S,
        etcd: on == On::Etcd,
        drill: None,
    }
}
