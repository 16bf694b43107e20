//! Erasing one drive: remember, plant, erase, look. The only place from which `Verdict::Erased` comes.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use drophammer_protocol::certificate::{Attempt, Promise, Rest, Unwritten, Verdict, Verification};
use drophammer_protocol::erase::{Depth, Method};
use drophammer_protocol::order::Fresh;

use super::methods::{self, Expectation, Progress};
use super::plan::Plan;
use super::probe::{self, Condition, Probed};
use super::prove::{Evidence, Findings};
use super::rest;
use crate::drive::Drive;

/// That a method reported success and that nothing of what was on the drive could be found afterwards, now or earlier with
/// nothing written since. [`Run`] alone makes one, so holding it is the proof.
#[derive(Debug)]
pub(super) struct Erased {
    method: Method,
}

/// Everything that was done to one drive, and what came of it.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) attempts: Vec<Attempt>,
    pub(super) verification: Option<Verification>,
    pub(super) unwritten: Option<Unwritten>,
    pub(super) rest: Option<Rest>,
    /// What else there is to know, in words.
    pub(super) remarks: Vec<String>,
    pub(super) result: Result<Erased, String>,
}

impl Account {
    /// Nothing could be tried.
    pub(super) fn untouched(reason: String) -> Self {
        Self {
            attempts: Vec::new(),
            verification: None,
            unwritten: None,
            rest: None,
            remarks: Vec::new(),
            result: Err(reason),
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        match &self.result {
            Ok(erased) => Verdict::Erased { method: erased.method },
            Err(reason) => Verdict::NotErased { reason: reason.clone() },
        }
    }
}

/// What is to be done with a drive.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub(super) plan: &'a Plan,
    pub(super) depth: Depth,
    /// How its last erase left it.
    pub(super) fresh: Option<&'a Fresh>,
    /// Decides where we look; the drive must not know it.
    pub(super) seed: [u8; 32],
}

/// Carries out a task on a drive that was probed through the same handle.
pub(super) fn erase(drive: &mut dyn Drive, probed: &Probed, task: &Task<'_>, progress: Progress<'_>) -> Account {
    let depth = task.depth;
    let mut run = Run { drive, probed, depth, progress, attempts: Vec::new(), verification: None, remarks: Vec::new() };
    if let Some(fresh) = task.fresh {
        match run.left_alone(task.plan, fresh) {
            Ok(erased) => {
                let (unwritten, rest) = (Some(fresh.unwritten.clone()), Some(fresh.rest.clone()));
                return Account { unwritten, rest, result: Ok(erased), ..Account::untouched(String::new()) };
            }
            Err(e) => run.remarks.push(format!("erased again: {e:#}")),
        }
    }
    let result = run.erase(task.plan, task.seed);
    let rest = result.as_ref().ok().and_then(|_| run.seal());
    Account {
        attempts: run.attempts,
        verification: run.verification,
        unwritten: None,
        rest,
        remarks: run.remarks,
        result: result.map_err(|e| format!("{e:#}")),
    }
}

struct Run<'a> {
    drive: &'a mut dyn Drive,
    probed: &'a Probed,
    depth: Depth,
    progress: Progress<'a>,
    attempts: Vec<Attempt>,
    verification: Option<Verification>,
    remarks: Vec<String>,
}

impl Run<'_> {
    /// Whether an erase that was proven before still holds.
    fn left_alone(&mut self, plan: &Plan, fresh: &Fresh) -> anyhow::Result<Erased> {
        let certificate = fresh.unwritten.number;
        let offered = plan.methods.iter().any(|choice| choice.method == fresh.method);
        ensure!(offered, "what certificate {certificate} proves isn't good enough any more");
        rest::look(self.drive, self.probed, fresh)
            .with_context(|| format!("it isn't as certificate {certificate} left it"))?;
        Ok(Erased { method: fresh.method })
    }

    /// That it can't be sealed changes nothing about the erase: the next boot erases it again.
    fn seal(&mut self) -> Option<Rest> {
        rest::seal(self.drive, self.probed).unwrap_or_else(|e| {
            self.remarks.push(format!("not sealed: {e:#}"));
            None
        })
    }

    fn erase(&mut self, plan: &Plan, seed: [u8; 32]) -> anyhow::Result<Erased> {
        if let Some(erased) = self.pick_up(plan, seed)? {
            return Ok(erased);
        }
        self.make_ready()?;
        if self.probed.capabilities.opal.is_some_and(|opal| opal.locked) {
            self.unlock()?;
        }
        let mut evidence = Evidence::gather(self.drive, self.probed, seed)?;
        for choice in &plan.methods {
            self.make_ready()?;
            evidence.plant(self.drive)?;
            let (drive, probed) = (&mut *self.drive, self.probed);
            let begun = drive.now();
            let done = methods::carry_out(drive, probed, choice.method, self.progress);
            if self.noted(choice.method, choice.because, false, begun, done) {
                // A drive that reports success and keeps data isn't given a second chance: what else it reports isn't
                // worth more.
                return self.judge(choice.method, &evidence);
            }
        }
        let tried = self.attempts.iter().filter_map(|a| Some(format!("{}: {}", a.method.name(), a.error.as_deref()?)));
        let tried: Vec<String> = tried.collect();
        bail!("no method worked: {}; replace the drive or erase it with its maker's tool", tried.join("; "))
    }

    /// A sanitize that an earlier boot began, or somebody else, goes on by itself and isn't begun again. What it leaves
    /// proves itself only where the drive promises what that has to be; anything else is erased once more, with canaries.
    fn pick_up(&mut self, plan: &Plan, seed: [u8; 32]) -> anyhow::Result<Option<Erased>> {
        let Condition::Sanitizing { method, .. } = probe::condition(self.drive, self.probed)? else { return Ok(None) };
        let begun = self.drive.now();
        let done = methods::finish_sanitize(self.drive, self.probed, method, self.progress).map(|()| Vec::new());
        let worked = match method {
            Some(method) => self.noted(method, "the drive was at it already when this boot began", true, begun, done),
            None => done.is_ok(),
        };
        if !worked {
            return Ok(None);
        }
        self.settle()?;
        // Nobody knows what it was, so nothing can be said of it.
        let Some(method) = method else { return Ok(None) };
        let wanted = plan.methods.iter().any(|choice| choice.method == method);
        let expected = match methods::expectation(self.probed, method) {
            Expectation::Must(promise) | Expectation::Should(promise) => Expectation::Must(promise),
        };
        // A new key takes seconds, and only by canaries can it be told from the old one.
        if !wanted || method.is_rekeying() || expected == Expectation::Must(Promise::Changed) {
            return Ok(None);
        }
        let evidence = Evidence::none(self.probed, seed)?;
        let found = evidence.look(self.drive, self.probed, expected, self.depth, self.progress)?;
        if found.first_wrong.is_some() {
            return Ok(None);
        }
        self.verification = Some(found.verification);
        Ok(Some(Erased { method }))
    }

    /// What a tenant locked can neither be read nor written, so nothing could be proven of it. The secret on its label takes
    /// the lock away, and on drives that encrypt the data as well; it's proven by what is done after it.
    fn unlock(&mut self) -> anyhow::Result<()> {
        let begun = self.drive.now();
        let done = methods::carry_out(self.drive, self.probed, Method::OpalRevert, self.progress);
        let because = "the drive is locked by TCG Opal, and the secret on its label was given";
        if !self.noted(Method::OpalRevert, because, false, begun, done) {
            bail!("the drive stays locked: {}", self.last_error());
        }
        // The kernel has to see that it can be read again; if that fails, reading it says so.
        let _ = self.drive.reset();
        self.settle()
    }

    /// A drive takes neither test blocks nor another method while it's stuck in a sanitize that failed, or locked by the
    /// password of an erase that never ended.
    fn make_ready(&mut self) -> anyhow::Result<()> {
        const STEPS: u32 = 4;
        for _ in 0..STEPS {
            match probe::condition(self.drive, self.probed)? {
                Condition::Ready => return Ok(()),
                Condition::SanitizeFailed => methods::leave_failed_sanitize(self.drive, self.probed)?,
                Condition::PasswordSet => methods::remove_password(self.drive)?,
                Condition::Sanitizing { done, .. } => {
                    bail!("the drive is still sanitizing, {:.0} % done, and takes nothing else", done * 100.0)
                }
            }
        }
        bail!("the drive goes from one state into another and never becomes ready: it is broken, replace it")
    }

    /// Writes down how a method ended; whether it's said to have worked.
    fn noted(
        &mut self,
        method: Method,
        because: &str,
        resumed: bool,
        begun: Duration,
        done: anyhow::Result<Vec<String>>,
    ) -> bool {
        let (details, error) = match done {
            Ok(details) => (details, None),
            Err(e) => (Vec::new(), Some(format!("{e:#}"))),
        };
        let worked = error.is_none();
        let took = self.drive.now().saturating_sub(begun);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.attempts.push(Attempt { method, because: because.to_owned(), resumed, details, millis, error });
        worked
    }

    fn last_error(&self) -> &str {
        self.attempts.last().and_then(|attempt| attempt.error.as_deref()).unwrap_or("nothing was tried")
    }

    /// Whether the drive is there again, and still itself. Some need a new start after an erase.
    fn settle(&mut self) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(30);
        const PAUSE: Duration = Duration::from_millis(500);
        let begun = self.drive.now();
        let mut was_reset = false;
        loop {
            let Err(error) = probe::still_the_same(self.drive, self.probed) else { return Ok(()) };
            if self.drive.now().saturating_sub(begun) >= PATIENCE {
                return Err(error.context("the drive isn't what it was before the erase"));
            }
            if !was_reset {
                was_reset = true;
                // If it can't be, the next look at the drive says more.
                let _ = self.drive.reset();
            }
            self.drive.wait(PAUSE);
        }
    }

    /// Looks for everything that was on the drive before `method` reported success.
    fn judge(&mut self, method: Method, evidence: &Evidence) -> anyhow::Result<Erased> {
        let name = method.name();
        self.settle().with_context(|| format!("{name} reported success"))?;
        let expected = methods::expectation(self.probed, method);
        let Findings { verification, first_wrong } = evidence
            .look(self.drive, self.probed, expected, self.depth, self.progress)
            .with_context(|| format!("{name} reported success"))?;
        let seen = self.verification.insert(verification);
        if let Some(first) = first_wrong {
            bail!(
                "the drive reported success for {name}, but {} of {} test blocks and {} blocks of old content are still \
                 readable, and {} blocks aren't what they have to be, the first at byte {first}; don't give this drive \
                 to anybody",
                seen.canaries_surviving,
                seen.canaries_planted,
                seen.samples_surviving,
                seen.unexpected,
            );
        }
        ensure!(seen.canaries_planted > 0, "no test block was planted, so nothing is proven");
        Ok(Erased { method })
    }
}

#[cfg(test)]
#[path = "liars.rs"]
mod tests;

#[cfg(test)]
#[path = "liars_scsi.rs"]
mod scsi_tests;

#[cfg(test)]
#[path = "liars_ata.rs"]
mod ata_tests;

#[cfg(test)]
#[path = "liars_interrupted.rs"]
mod interrupted_tests;
