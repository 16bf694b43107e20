//! How much memory the boot server takes, against a limit.

use anyhow::{Result, ensure};

use super::arena::{Arena, Who};
use super::perfdhcp::{Exchange, Length, Load};
use super::{Contest, limited};

const LEASES: u32 = 10_000;
const TRANSFERS: u32 = 1000;

pub(super) fn at_rest() -> Result<Contest> {
    let arena = Arena::new(Exchange::Dora, &[])?;
    Ok(limited(30.0, move || arena.start(Who::Ours)?.memory("VmRSS")))
}

pub(super) fn with_leases() -> Result<Contest> {
    let arena = Arena::new(Exchange::Dora, &[])?;
    Ok(limited(200.0, move || {
        let server = arena.start(Who::Ours)?;
        // Some more, because perfdhcp may miss an answer.
        let length = Length::Exchanges(LEASES + LEASES / 20);
        let given = arena.load(&Load { exchange: Exchange::Dora, rate: 1000.0, length })?.acks;
        ensure!(given >= u64::from(LEASES), "only {given} of {LEASES} leases were given out");
        arena.transfers(TRANSFERS)?;
        server.memory("VmHWM")
    }))
}
