//! Erasing one drive: remember, plant, erase, look. The only place from which `Verdict::Erased` comes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use drophammer_protocol::certificate::{Attempt, Method, Verdict, Verification};

use super::canary::{Places, Trace};
use super::drive::{Block, Drive, Probed};
use super::plan::Plan;
use crate::sys::nvme_id::AdminCommand;

/// That a method reported success and that nothing of what was on the drive could be found afterwards. [`verify`] alone
/// makes one, so holding it is the proof.
#[derive(Debug)]
pub(super) struct Erased {
    method: Method,
}

/// Everything that was done to one drive, and what came of it.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) attempts: Vec<Attempt>,
    pub(super) verification: Option<Verification>,
    pub(super) result: Result<Erased, String>,
}

impl Account {
    /// Nothing could be tried.
    pub(super) fn untouched(reason: String) -> Self {
        Self { attempts: Vec::new(), verification: None, result: Err(reason) }
    }

    pub(super) fn verdict(&self) -> Verdict {
        match &self.result {
            Ok(erased) => Verdict::Erased { method: erased.method },
            Err(reason) => Verdict::NotErased { reason: reason.clone() },
        }
    }
}

/// Carries out `plan` on a drive that was probed through the same handle. `seed` decides where we look; the drive must
/// not know it.
pub(super) fn erase(drive: &mut impl Drive, probed: &Probed, plan: &Plan, seed: [u8; 32]) -> Account {
    let (mut attempts, mut verification) = (Vec::new(), None);
    let result = try_methods(drive, probed, plan, seed, &mut attempts, &mut verification);
    Account { attempts, verification, result: result.map_err(|e| format!("{e:#}")) }
}

fn try_methods(
    drive: &mut impl Drive,
    probed: &Probed,
    plan: &Plan,
    seed: [u8; 32],
    attempts: &mut Vec<Attempt>,
    verification: &mut Option<Verification>,
) -> anyhow::Result<Erased> {
    let namespace = probed.namespace;
    let places = Places::choose(namespace.size_bytes, namespace.block_bytes, seed)
        .context("the drive is too small for an erase to be proven")?;
    let samples = remember(drive, &places);
    for choice in &plan.methods {
        // Planted anew for each method: what a failed one erased must not speak for the next.
        let canaries = plant(drive, &places)?;
        let deadline = deadline(namespace.size_bytes);
        let nsid = plan.scope.nsid(probed.nsid);
        let command = AdminCommand::format(nsid, namespace.format, choice.method, deadline);
        let begun = Instant::now();
        let error = match drive.submit(&command, &mut []) {
            Ok(status) if status.is_success() => None,
            Ok(status) => Some(status.to_string()),
            Err(e) => Some(format!("no answer within {} s: {e}", deadline.as_secs())),
        };
        let failed = error.is_some();
        attempts.push(Attempt {
            method: choice.method,
            because: choice.because.to_owned(),
            millis: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            error,
        });
        if !failed {
            // A drive that reports success and keeps data isn't given a second chance: what else it reports isn't worth
            // more.
            return verify(drive, choice.method, &places, &canaries, &samples, verification);
        }
    }
    let tried: Vec<String> = attempts
        .iter()
        .map(|attempt| format!("{}: {}", attempt.method.name(), attempt.error.as_deref().unwrap_or("success")))
        .collect();
    bail!("no method worked: {}; replace the drive or erase it with its maker's tool", tried.join("; "))
}

/// What is on the drive now, where it says something. A block that can't be read can't be compared later and isn't
/// counted as a sample.
fn remember(drive: &mut impl Drive, places: &Places) -> Vec<Trace> {
    let mut block = Block::new(places.block_bytes);
    let readable = |&offset: &u64| {
        drive.read_at(block.bytes(), offset).ok()?;
        Some(Trace::of(offset, block.bytes()))
    };
    places.samples.iter().filter_map(readable).filter(Trace::tells).collect()
}

/// Writes random content to every place and makes sure that the drive has taken it.
fn plant(drive: &mut impl Drive, places: &Places) -> anyhow::Result<Vec<Trace>> {
    let mut block = Block::new(places.block_bytes);
    let mut planted = Vec::with_capacity(places.canaries.len());
    for &offset in &places.canaries {
        getrandom::fill(block.bytes()).map_err(|e| anyhow::anyhow!("drawing random bytes: {e}"))?;
        drive
            .write_at(block.bytes(), offset)
            .with_context(|| format!("writing a test block at byte {offset}: the erase couldn't be proven"))?;
        planted.push(Trace::of(offset, block.bytes()));
    }
    drive.flush().context("flushing the test blocks to the drive")?;
    for canary in &planted {
        drive
            .read_at(block.bytes(), canary.offset)
            .with_context(|| format!("reading a test block back at byte {}", canary.offset))?;
        ensure!(
            Trace::of(canary.offset, block.bytes()) == *canary,
            "the drive doesn't return what was written at byte {}: it is broken, replace it",
            canary.offset
        );
    }
    Ok(planted)
}

/// Looks for everything that was on the drive before `method` reported success.
fn verify(
    drive: &mut impl Drive,
    method: Method,
    places: &Places,
    canaries: &[Trace],
    samples: &[Trace],
    verification: &mut Option<Verification>,
) -> anyhow::Result<Erased> {
    drive.flush().context("dropping caches after the erase; what is left on the drive is unknown")?;
    let mut block = Block::new(places.block_bytes);
    let mut survivors = |traces: &[Trace]| -> anyhow::Result<Vec<u64>> {
        let mut survivors = Vec::new();
        for trace in traces {
            drive.read_at(block.bytes(), trace.offset).with_context(|| {
                format!(
                    "{} reported success, but byte {} can't be read since; what is left on the drive is unknown",
                    method.name(),
                    trace.offset
                )
            })?;
            if trace.survives_in(block.bytes()) {
                survivors.push(trace.offset);
            }
        }
        Ok(survivors)
    };
    let (canaries_left, samples_left) = (survivors(canaries)?, survivors(samples)?);
    *verification = Some(Verification {
        canaries_planted: count(canaries.len()),
        canaries_surviving: count(canaries_left.len()),
        samples: count(samples.len()),
        samples_surviving: count(samples_left.len()),
        block_bytes: places.block_bytes,
    });
    if let Some(first) = canaries_left.iter().chain(&samples_left).min() {
        bail!(
            "the drive reported success for {}, but {} of {} test blocks and {} of {} blocks of old content are still \
             readable, the first at byte {first}; don't give this drive to anybody",
            method.name(),
            canaries_left.len(),
            canaries.len(),
            samples_left.len(),
            samples.len(),
        );
    }
    ensure!(!canaries.is_empty(), "no test block was planted, so nothing is proven");
    Ok(Erased { method })
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Ten minutes for the command itself, and a second per GiB for drives that erase by overwriting all they have.
fn deadline(size_bytes: u64) -> Duration {
    Duration::from_secs(600 + (size_bytes >> 30))
}

#[cfg(test)]
#[path = "liars.rs"]
mod tests;
