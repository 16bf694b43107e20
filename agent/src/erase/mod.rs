//! The erase that can't lie.
//!
//! Nothing is touched before the whole order fits this machine and the plan has been said. Then every drive gets its own
//! verdict and its own signed certificate, and "erased" is only ever said of a drive on which everything planted and
//! sampled beforehand was looked for and not found. See [`plan`] for what is chosen and `run` for what is done.

mod canary;
mod drive;
pub(crate) mod plan;
mod run;
mod survey;

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use drophammer_protocol::certificate::{ErasureCertificate, Verdict};
use drophammer_protocol::event::Phase;
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::{Bus, Disk, DiskId};
use drophammer_protocol::order::Outcome;
use drophammer_protocol::sign::Signed;
use drophammer_protocol::words::count;
use ed25519_dalek::SigningKey;

use crate::disk::{self, Access, OpenDisk, OpenError};
use crate::inventory::disks;
use crate::reporter::Reporter;
use crate::sys::{block, nvme};
use drive::Probed;
use plan::{Capabilities, Plan};
use run::Account;

pub(crate) use plan::Coverage;
pub(crate) use survey::{DrivePlan, survey};

/// On whose behalf drives are erased: what certificates say besides the drives.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) machine: MachineId,
    pub(crate) boot: BootId,
    pub(crate) order: OrderId,
    pub(crate) key: SigningKey,
}

/// While drives work in silence, the server hears this often that we're alive.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Erases exactly these drives, all at once.
pub(crate) fn carry_out(ctx: &Context, disks: &[DiskId], coverage: Coverage, reporter: &Reporter) -> Outcome {
    let subjects = match prepare(disks, coverage) {
        Ok(subjects) => subjects,
        Err(reason) => {
            reporter.failed(Phase::Erase, format!("refused, nothing was touched: {reason}"));
            return Outcome::Refused { reason };
        }
    };
    reporter.started(Phase::Erase, say(&subjects));
    let certificates = erase_all(ctx, subjects, reporter);
    let failed: Vec<String> = certificates
        .iter()
        .filter_map(|certificate| match &certificate.verdict {
            Verdict::Erased { .. } => None,
            Verdict::NotErased { reason } => Some(format!("{} is NOT erased: {reason}", certificate.disk)),
        })
        .collect();
    if failed.is_empty() {
        reporter.done(Phase::Erase, format!("{} erased and verified", count(certificates.len(), "drive")));
    } else {
        reporter.failed(Phase::Erase, failed.join(". "));
    }
    Outcome::Erased { certificates: certificates.iter().map(|c| Signed::seal(c, &ctx.key)).collect() }
}

/// One drive of the order, opened and understood, or the reason why it can't be.
struct Subject {
    id: DiskId,
    facts: Disk,
    capabilities: Vec<String>,
    ready: Result<Ready, String>,
}

struct Ready {
    disk: OpenDisk,
    probed: Probed,
    plan: Plan,
}

/// Opens and probes every drive. `Err` is a refusal of the whole order.
fn prepare(order: &[DiskId], coverage: Coverage) -> Result<Vec<Subject>, String> {
    let root = Path::new("/");
    let here = disks::disks(root);
    let named = plan::check(order, &here, coverage).map_err(|refusal| refusal.to_string())?;
    let mut subjects = Vec::new();
    for (id, facts) in order.iter().zip(named) {
        let opened = match disk::open(id, Access::Direct) {
            Ok(disk) => Ok(disk),
            // The drive itself can't be opened: it alone isn't erased, and that's what its certificate will say.
            Err(e @ OpenError::Open { .. }) => Err(format!("{:#}", anyhow::Error::new(e))),
            Err(refusal) => return Err(refusal.to_string()),
        };
        let subject = understand(id.clone(), facts.clone(), opened, &visible_namespaces(root, &here, facts));
        if let Ok(ready) = &subject.ready {
            plan::check_reach(order, &here, facts, &ready.probed.capabilities)
                .map_err(|refusal| refusal.to_string())?;
        }
        subjects.push(subject);
    }
    Ok(subjects)
}

fn understand(id: DiskId, facts: Disk, opened: Result<OpenDisk, String>, visible: &[u32]) -> Subject {
    let unready = |capabilities: Vec<String>, reason| (capabilities, Err(reason));
    let (capabilities, ready) = match opened {
        Err(reason) => unready(Vec::new(), reason),
        Ok(mut disk) => match capabilities_of(&mut disk.file, &facts, &id, visible) {
            Err(e) => unready(Vec::new(), format!("{e:#}")),
            Ok((capabilities, probed)) => match (plan::plan(&capabilities), probed) {
                (Ok(plan), Some(probed)) => (capabilities.words(), Ok(Ready { disk, probed, plan })),
                (Ok(_), None) => unready(capabilities.words(), "the drive wasn't probed".to_owned()),
                (Err(unable), _) => unready(capabilities.words(), unable.to_string()),
            },
        },
    };
    Subject { id, facts, capabilities, ready }
}

/// Asks a drive what it can do. There is nothing to probe on drives for which we have no method.
fn capabilities_of(
    file: &mut File,
    facts: &Disk,
    id: &DiskId,
    visible: &[u32],
) -> anyhow::Result<(Capabilities, Option<Probed>)> {
    if facts.bus != Bus::Nvme {
        return Ok((Capabilities::Other(facts.bus), None));
    }
    let nsid = nvme::namespace_id(file).context("asking which namespace this is")?;
    let probed = drive::probe(file, id, nsid, visible)?;
    Ok((Capabilities::Nvme(probed.capabilities.clone()), Some(probed)))
}

/// Namespaces of the same drive, which is known by its serial, that have block devices here.
fn visible_namespaces(root: &Path, here: &[Disk], of: &Disk) -> Vec<u32> {
    here.iter()
        .filter(|disk| disk.bus == Bus::Nvme && disk.serial == of.serial)
        .filter_map(|disk| disks::namespace(root, &disk.name))
        .collect()
}

fn say(subjects: &[Subject]) -> String {
    let each = subjects.iter().map(|subject| match &subject.ready {
        Ok(ready) => {
            let methods: Vec<String> = ready
                .plan
                .methods
                .iter()
                .map(|choice| format!("{} because {}", choice.method.name(), choice.because))
                .collect();
            format!("{}: {}", subject.id, methods.join(", else "))
        }
        Err(reason) => format!("{}: will NOT be erased: {reason}", subject.id),
    });
    let each: Vec<String> = each.collect();
    format!("erasing {}. {}", count(subjects.len(), "drive"), each.join(". "))
}

/// All drives at once; namespaces of one drive after each other, since a drive may erase them together.
fn erase_all(ctx: &Context, subjects: Vec<Subject>, reporter: &Reporter) -> Vec<ErasureCertificate> {
    let total: u64 = subjects.iter().map(|s| s.id.size_bytes).fold(0, u64::saturating_add);
    let mut by_drive: BTreeMap<String, Vec<(usize, Subject)>> = BTreeMap::new();
    for (place, subject) in subjects.into_iter().enumerate() {
        by_drive.entry(subject.id.serial.clone()).or_default().push((place, subject));
    }
    let mut finished = BTreeMap::new();
    let mut done = 0u64;
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for subjects in by_drive.into_values() {
            let sender = sender.clone();
            scope.spawn(move || {
                for (place, subject) in subjects {
                    // The receiver lives until the last sender is gone.
                    let _ = sender.send((place, certify(ctx, subject, reporter)));
                }
            });
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(HEARTBEAT) {
                Ok((place, certificate)) => {
                    done = done.saturating_add(certificate.disk.size_bytes);
                    finished.insert(place, certificate);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            reporter.progress(Phase::Erase, done, Some(total));
        }
    });
    finished.into_values().collect()
}

/// Erases one drive and writes down what came of it, whatever comes.
fn certify(ctx: &Context, subject: Subject, reporter: &Reporter) -> ErasureCertificate {
    let started = unix_seconds();
    let Subject { id, facts, capabilities, ready } = subject;
    let said = ready.as_ref().ok().map(|ready| (ready.probed.model.clone(), ready.probed.firmware.clone()));
    let account = match ready {
        Err(reason) => Account::untouched(reason),
        // By hand, a bug in here condemns this drive and not the verdicts of the others. As PID 1 any panic ends the boot
        // (`init::leave_on_panic`), and the next one begins with the erase again.
        Ok(ready) => catch_unwind(AssertUnwindSafe(|| erase_one(ready, reporter)))
            .unwrap_or_else(|panic| Account::untouched(format!("the agent broke off: {}", words_of(&*panic)))),
    };
    let (model, firmware) = match said {
        Some((model, firmware)) => (Some(model), Some(firmware)),
        None => (facts.model, facts.firmware),
    };
    ErasureCertificate {
        machine: ctx.machine,
        boot: ctx.boot,
        order: ctx.order,
        disk: id,
        model,
        firmware,
        capabilities,
        verdict: account.verdict(),
        attempts: account.attempts,
        verification: account.verification,
        started,
        finished: unix_seconds(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn erase_one(ready: Ready, reporter: &Reporter) -> Account {
    let Ready { mut disk, probed, plan } = ready;
    let mut seed = [0; 32];
    if let Err(e) = getrandom::fill(&mut seed) {
        return Account::untouched(format!("drawing random bytes: {e}; nothing was touched"));
    }
    let account = run::erase(&mut disk.file, &probed, &plan, seed);
    forget_partitions(&disk, reporter);
    account
}

/// The partitions are gone from the drive; the kernel goes on showing them until it's told.
fn forget_partitions(disk: &OpenDisk, reporter: &Reporter) {
    for number in disks::partitions(Path::new("/"), &disk.facts.name) {
        if let Err(e) = block::delete_partition(&disk.file, number) {
            let name = &disk.facts.name;
            reporter.note(Phase::Erase, format!("the kernel keeps showing partition {number} of {name}: {e}"));
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
