//! The erase that can't lie.
//!
//! Nothing is touched before the whole order fits this machine ([`order`]) and the plan has been said ([`plan`]). Then
//! every drive gets its own verdict and its own signed certificate, and "erased" is only ever said of a drive on which
//! everything planted and sampled beforehand was looked for and not found: see [`methods`] for what is done, [`run`] for
//! the order of things, and [`prove`] for the proof.

mod ask;
mod canary;
mod door;
mod methods;
mod order;
mod plan;
mod probe;
mod prove;
mod rest;
mod run;
mod subject;
mod survey;

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use drophammer_protocol::certificate::{ErasureCertificate, Verdict};
use drophammer_protocol::event::Phase;
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::Disk;
use drophammer_protocol::order::{Erase, Outcome};
use drophammer_protocol::sign::Signed;
use drophammer_protocol::words::count;
use ed25519_dalek::SigningKey;

use crate::disk::{self, Access, OpenDisk, OpenError};
use crate::drive::kernel::KernelDrive;
use crate::holders;
use crate::inventory::disks;
use crate::reporter::Reporter;
use crate::sys::block;
use run::{Account, Task};
use subject::{Ready, Subject, Volume};

pub(crate) use order::Coverage;
pub(crate) use survey::{DrivePlan, survey};

/// On whose behalf drives are erased: what certificates say besides the drives.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) machine: MachineId,
    pub(crate) boot: BootId,
    pub(crate) order: OrderId,
    pub(crate) key: SigningKey,
}

thread_local! {
    static ONE_DRIVE: Cell<bool> = const { Cell::new(false) };
}

/// Whether what this thread does is about one drive: a panic in it condemns that drive and nothing else.
pub(crate) fn is_about_one_drive() -> bool {
    ONE_DRIVE.get()
}

/// While drives work in silence, the server hears this often that we're alive.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Erases exactly the drives of the order, all at once.
pub(crate) fn carry_out(ctx: &Context, order: &Erase, coverage: Coverage, reporter: &Reporter) -> Outcome {
    let here = disks::disks(Path::new("/"));
    let subjects = match prepare(order, coverage, &here, reporter) {
        Ok(subjects) => subjects,
        Err(reason) => {
            reporter.failed(Phase::Erase, format!("refused, nothing was erased: {reason}"));
            return Outcome::Refused { reason };
        }
    };
    let kept = order.kept.drives.iter().map(|(name, id)| format!("{id} is kept as it is, as {name}"));
    reporter.started(Phase::Erase, say(&subjects, &kept.chain(passed_by(&here)).collect::<Vec<_>>()));
    let (certificates, failed) = erase_all(ctx, order, subjects, reporter);
    if failed.is_empty() {
        reporter.done(Phase::Erase, format!("{} erased and verified", count(certificates.len(), "drive")));
    } else {
        reporter.failed(Phase::Erase, failed.join(". "));
    }
    Outcome::Erased { certificates }
}

/// Has every drive let go, opens it and asks it. `Err` is a refusal of the whole order.
fn prepare(order: &Erase, coverage: Coverage, here: &[Disk], reporter: &Reporter) -> Result<Vec<Subject>, String> {
    let root = Path::new("/");
    let named = order::check(&order.disks, &order.kept, here, coverage).map_err(|refusal| refusal.to_string())?;
    for disk in &named {
        order::check_reach(&order.disks, here, disk).map_err(|refusal| refusal.to_string())?;
    }
    let names: Vec<&str> = named.iter().copied().flat_map(subject::names).collect();
    holders::let_go(&names, &mut |step| reporter.note(Phase::Erase, step)).map_err(|held| held.to_string())?;
    let mut subjects = Vec::new();
    for volumes in subject::drives(&order.disks, named) {
        let opened = open(&volumes)?;
        subjects.push(Subject::of(root, &volumes, opened, order));
    }
    Ok(subjects)
}

/// `Err` is a refusal of the whole order. A drive that itself can't be opened isn't one: it alone isn't erased, and
/// that's what its certificate will say.
fn open(volumes: &[Volume<'_>]) -> Result<Result<Vec<OpenDisk>, String>, String> {
    let mut opened = Vec::with_capacity(volumes.len());
    for volume in volumes {
        match disk::open(volume.id, Access::Direct) {
            Ok(disk) => opened.push(disk),
            Err(e @ OpenError::Open { .. }) => return Ok(Err(format!("{:#}", anyhow::Error::new(e)))),
            Err(refusal) => return Err(refusal.to_string()),
        }
    }
    Ok(Ok(opened))
}

fn say(subjects: &[Subject], passed_by: &[String]) -> String {
    let each = subjects.iter().map(|subject| {
        let (serial, bytes) = (&subject.drive.serial, subject.drive.size_bytes());
        let with =
            if subject.found.is_empty() { String::new() } else { format!(", with {}", subject.found.join(", ")) };
        match subject.ready.as_ref().map(|ready| ready.plan.methods.split_first()) {
            Ok(Some((first, others))) => {
                let others: Vec<&str> = others.iter().map(|choice| choice.method.name()).collect();
                let others =
                    if others.is_empty() { String::new() } else { format!(", else {}", others.join(", else ")) };
                let first = format!("{} because {}", first.method.name(), first.because);
                format!("disk {serial} ({bytes} bytes{with}): {first}{others}")
            }
            Ok(None) => format!("disk {serial}: there is no method"),
            Err(reason) => format!("disk {serial}: will NOT be erased: {reason}"),
        }
    });
    let each: Vec<String> = each.chain(passed_by.iter().cloned()).collect();
    format!("erasing {}. {}", count(subjects.len(), "drive"), each.join(". "))
}

/// Drives that are no part of the order and need not be.
fn passed_by(here: &[Disk]) -> Vec<String> {
    let each = here.iter().filter_map(|disk| Some((disk, disk.passed_by()?)));
    each.map(|(disk, why)| format!("{} is left out: {why}", disk.name)).collect()
}

/// All drives at once. The certificates are a chain, in the order in which the drives were done; what wasn't erased comes
/// as sentences as well.
fn erase_all(
    ctx: &Context,
    order: &Erase,
    subjects: Vec<Subject>,
    reporter: &Reporter,
) -> (Vec<Signed<ErasureCertificate>>, Vec<String>) {
    let total: u64 = subjects.iter().map(|s| s.drive.size_bytes()).fold(0, u64::saturating_add);
    let progress: Vec<AtomicU64> = subjects.iter().map(|_| AtomicU64::new(0)).collect();
    let (mut certificates, mut failed) = (Vec::new(), Vec::new());
    let mut link = order.link.clone();
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for (subject, progress) in subjects.into_iter().zip(&progress) {
            let sender = sender.clone();
            scope.spawn(move || {
                let entry = erase_one(ctx, order, subject, progress, reporter);
                // The receiver lives until the last sender is gone.
                let _ = sender.send(entry);
            });
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(HEARTBEAT) {
                Ok(entry) => {
                    let certificate = ErasureCertificate { link: link.clone(), ..entry };
                    if let Verdict::NotErased { reason } = &certificate.verdict {
                        failed.push(format!("disk {} is NOT erased: {reason}", certificate.drive.serial));
                    }
                    let signed = Signed::seal(&certificate, &ctx.key);
                    link = link.after(&signed);
                    certificates.push(signed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let done = progress.iter().map(|p| p.load(Ordering::Relaxed)).fold(0, u64::saturating_add);
            reporter.progress(Phase::Erase, done, Some(total));
        }
    });
    (certificates, failed)
}

/// Erases one drive and writes down what came of it, whatever comes.
fn erase_one(
    ctx: &Context,
    order: &Erase,
    subject: Subject,
    progress: &AtomicU64,
    reporter: &Reporter,
) -> ErasureCertificate {
    let started = unix_seconds();
    let Subject { drive, capabilities, found, ready } = subject;
    let size = drive.size_bytes();
    let account = match ready {
        Err(reason) => Account::untouched(reason),
        Ok(ready) => about_one_drive(|| work(ready, order, size, progress, reporter)),
    };
    progress.store(size, Ordering::Relaxed);
    ErasureCertificate {
        link: order.link.clone(),
        machine: ctx.machine,
        boot: ctx.boot,
        order: ctx.order,
        ordered_by: order.ordered_by.clone(),
        drive,
        policy: order.policy,
        capabilities,
        verdict: account.verdict(),
        found: [found, account.remarks].concat(),
        attempts: account.attempts,
        verification: account.verification,
        unwritten: account.unwritten,
        rest: account.rest,
        started,
        finished: unix_seconds(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// A bug in `work` condemns its drive and not the verdicts of the others.
fn about_one_drive(work: impl FnOnce() -> Account) -> Account {
    ONE_DRIVE.set(true);
    let account = catch_unwind(AssertUnwindSafe(work));
    ONE_DRIVE.set(false);
    account.unwrap_or_else(|panic| Account::untouched(format!("the agent broke off: {}", words_of(&*panic))))
}

fn work(ready: Ready, order: &Erase, size: u64, progress: &AtomicU64, reporter: &Reporter) -> Account {
    let Ready { mut drive, probed, plan } = ready;
    let mut seed = [0; 32];
    if let Err(e) = getrandom::fill(&mut seed) {
        return Account::untouched(format!("drawing random bytes: {e}; nothing was touched"));
    }
    let mut on_progress = |part: f64| {
        #[expect(clippy::cast_precision_loss, reason = "it's for people")]
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a u64, clamped")]
        progress.store((size as f64 * part.clamp(0.0, 1.0)) as u64, Ordering::Relaxed);
    };
    let fresh = probed.volumes.first().and_then(|volume| order.fresh.get(&volume.id.serial));
    let task = Task { plan: &plan, depth: order.depth, fresh, seed };
    let account = run::erase(&mut drive, &probed, &task, &mut on_progress);
    forget_partitions(&drive, reporter);
    account
}

/// The partitions are gone from the drive; the kernel goes on showing them until it's told.
fn forget_partitions(drive: &KernelDrive, reporter: &Reporter) {
    for disk in drive.volumes().iter().flat_map(|disk| std::iter::once(disk).chain(&disk.others)) {
        for number in disks::partitions(Path::new("/"), &disk.facts.name) {
            if let Err(e) = block::delete_partition(&disk.file, number) {
                let name = &disk.facts.name;
                reporter.note(Phase::Erase, format!("the kernel keeps showing partition {number} of {name}: {e}"));
            }
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_condemns_one_drive() {
        let account = about_one_drive(|| {
            assert!(is_about_one_drive(), "the panic hook leaves this thread alone");
            panic!("index out of bounds");
        });
        let reason = "the agent broke off: index out of bounds".to_owned();
        assert_eq!(account.verdict(), Verdict::NotErased { reason });
        assert!(!is_about_one_drive(), "what comes after it ends the boot as ever");
    }
}
