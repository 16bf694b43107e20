//! How many clients get a lease in a second.
//!
//! The rate is raised until the server leaves a request without an answer, for every server alike, from an empty state at
//! every step. A rate at which it does is tried again: on a machine that others use as well, anything may be lost once. What
//! counts is what the server answered; answers that the load generator had no room for are counted by the kernel.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::arena::{Arena, Who};
use super::perfdhcp::{Exchange, Length, Load, Report};
use super::{Contest, Side, peak};

const LENGTH: Duration = Duration::from_secs(2);
/// Of what it is asked, the server may leave this much without an answer.
const LOSS: f64 = 1e-4;
/// Of the load that is wanted, so much has to be there, or nothing was learnt about that load.
const THERE: f64 = 0.95;
const TRIES: usize = 3;

pub(super) fn against_kea() -> Result<Contest> {
    contest(Exchange::Dora, Who::Kea, 6000.0)
}

pub(super) fn against_dnsmasq() -> Result<Contest> {
    contest(Exchange::Dora, Who::Dnsmasq, 500.0)
}

/// Peak against peak, each searched from where it was found the last time.
pub(super) fn contest(exchange: Exchange, rival: Who, rivals_start: f64) -> Result<Contest> {
    let arena = Arena::new(exchange, &[rival])?;
    let (mut ours, mut rivals) = (8000.0, rivals_start);
    Ok(Box::new(move |side| {
        let (who, last) = match side {
            Side::Ours => (Who::Ours, &mut ours),
            Side::Rival => (rival, &mut rivals),
        };
        *last = find_peak(&arena, exchange, who, *last)?;
        Ok(*last)
    }))
}

fn find_peak(arena: &Arena, exchange: Exchange, who: Who, start: f64) -> Result<f64> {
    peak::find(start, |rate| {
        for _ in 0..TRIES {
            let report = offer(arena, exchange, who, rate)?;
            if report.loss() < LOSS && per_second(report.discovers) >= THERE * rate {
                return Ok(Some(report.exchanges(exchange) / LENGTH.as_secs_f64()));
            }
        }
        Ok(None)
    })
}

/// A server of its own for one rate.
fn offer(arena: &Arena, exchange: Exchange, who: Who, rate: f64) -> Result<Report> {
    let mut tries = 1;
    let report = loop {
        let _server = arena.start(who)?;
        match arena.load(&Load { exchange, rate, length: Length::Time(LENGTH) }) {
            // perfdhcp ends when an answer comes before it has noted down its question, which it takes for impossible.
            Err(_) if tries < TRIES => tries += 1,
            done => break done?,
        }
    };
    ensure!(report.twice == 0, "the server gave {} addresses to two clients each", report.twice);
    Ok(report)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn per_second(count: u64) -> f64 {
    count as f64 / LENGTH.as_secs_f64()
}
