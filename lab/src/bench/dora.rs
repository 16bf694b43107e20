//! How many clients get a lease in a second.
//!
//! The rate is raised until anything is lost, for every server alike, from an empty state at every step. A rate that loses
//! something is tried again: on a machine that others use as well, so may any rate. What the load generator itself lost
//! isn't held against a server, as long as nearly all of the load got through.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::arena::{Arena, Who};
use super::perfdhcp::{Exchange, Length, Load, Report};
use super::{Contest, Side, peak};

const LENGTH: Duration = Duration::from_secs(2);
/// Of the exchanges that are begun, the server may leave this many unfinished.
const LOSS: f64 = 1e-4;
/// Of the load that is wanted, so much has to get through, or nothing was said about that load.
const THROUGH: f64 = 0.9;
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

/// What is finished in a second while `peak` is asked for, and while twice that is.
pub(super) fn overload() -> Result<Contest> {
    let arena = Arena::new(Exchange::Dora, &[])?;
    let peak = find_peak(&arena, Exchange::Dora, Who::Ours, 8000.0)?;
    Ok(Box::new(move |side| {
        let rate = if side == Side::Ours { 2.0 * peak } else { peak };
        let (report, finished) = offer(&arena, Exchange::Dora, Who::Ours, rate)?;
        ensure!(
            asked(&report) >= THROUGH * rate,
            "perfdhcp asks only {:.0} times a second here, not {rate:.0}",
            asked(&report)
        );
        Ok(finished)
    }))
}

fn find_peak(arena: &Arena, exchange: Exchange, who: Who, start: f64) -> Result<f64> {
    peak::find(start, |rate| {
        for _ in 0..TRIES {
            let (report, finished) = offer(arena, exchange, who, rate)?;
            let unanswered = per_second(report.unanswered(exchange));
            if unanswered < LOSS * rate && finished > THROUGH * rate {
                return Ok(Some(finished));
            }
        }
        Ok(None)
    })
}

/// A server of its own for one rate: what was seen, and how many exchanges it finished in a second.
fn offer(arena: &Arena, exchange: Exchange, who: Who, rate: f64) -> Result<(Report, f64)> {
    let server = arena.start(who)?;
    let report = arena.load(&Load { exchange, rate, length: Length::Time(LENGTH) })?;
    drop(server);
    Ok((report, per_second(report.finished(exchange))))
}

fn asked(report: &Report) -> f64 {
    per_second(report.discovers)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn per_second(count: u64) -> f64 {
    count as f64 / LENGTH.as_secs_f64()
}
