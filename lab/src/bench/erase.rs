//! What a proven erase costs, beside the tools that erase and don't look: the same drives of the same machine, in the rescue
//! system, timed by the machine's own clock.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::chain::{self, CertificateChain};
use drophammer_protocol::erase::{Method, Policy};
use tempfile::TempDir;

use super::{Contest, Side, limited};
use crate::kit;
use crate::lab::{Lab, LabSpec};
use crate::qemu::{DiskBus, DiskSpec, Firmware, MachineSpec};
use crate::rescue::{AGENT, Rescue};
use crate::server::ServerSpec;
use crate::up;
use crate::vm::Machine;

/// On the machine's memory disk.
const CERTIFICATES: &str = "/run/certificates.json";
/// On real hardware.
const LIMIT: Duration = Duration::from_secs(300);
const DRIVES: usize = 8;
const DRIVE_BYTES: u64 = 4 << 30;
const OVERWRITTEN_BYTES: u64 = 2 << 30;
/// What a proven erase may take longer than the drive itself.
const ALLOWANCE_SECONDS: f64 = 3.0;
const PROOF_SECONDS: f64 = 2.0;

pub(super) fn eight_at_once() -> Result<Contest> {
    let arena = Arena::new(nvme(DRIVES))?;
    Ok(Box::new(move |side| {
        let each = serials(DRIVES);
        let one_by_one = || each.iter().map(|serial| erase(&[serial])).collect::<Vec<_>>().join(" && ");
        arena.seconds(&match side {
            Side::Ours => erase(&each),
            Side::Rival => one_by_one(),
        })
    }))
}

pub(super) fn beside_nvme_cli() -> Result<Contest> {
    let arena = Arena::new(nvme(DRIVES))?;
    Ok(Box::new(move |side| match side {
        Side::Ours => arena.seconds(&erase(&serials(DRIVES))),
        Side::Rival => {
            let begin = |n| format!("nvme format /dev/nvme{n}n1 --ses=1 --force >/dev/null & pids=\"$pids $!\"\n");
            let begun: String = (0..DRIVES).map(begin).collect();
            let all = format!("pids=\n{begun}for pid in $pids; do wait \"$pid\" || exit; done");
            Ok(arena.seconds(&all)? + ALLOWANCE_SECONDS)
        }
    }))
}

pub(super) fn proof() -> Result<Contest> {
    let arena = Arena::new(nvme(1))?;
    Ok(limited(PROOF_SECONDS, move || {
        let erased = arena.erased(Policy::Purge, Method::NvmeFormatUserData)?;
        Ok(erased.all_seconds - erased.drive_seconds)
    }))
}

pub(super) fn overwrite() -> Result<Contest> {
    let disk = DiskSpec { bus: DiskBus::Virtio, ..DiskSpec::new("m1-0", OVERWRITTEN_BYTES) };
    let arena = Arena::new(vec![disk])?;
    let dd = format!(
        "/bin/dd if=/dev/zero of=/dev/vda bs=4M count={} oflag=direct conv=fsync 2>/dev/null",
        OVERWRITTEN_BYTES >> 22
    );
    // The first time, the host allocates what the drive is made of.
    arena.seconds(&dd)?;
    Ok(Box::new(move |side| {
        let seconds = match side {
            Side::Ours => arena.erased(Policy::Clear, Method::Overwrite)?.drive_seconds,
            Side::Rival => arena.seconds(&dd)?,
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = OVERWRITTEN_BYTES as f64 / 1e6 / seconds;
        Ok(rate)
    }))
}

fn nvme(count: usize) -> Vec<DiskSpec> {
    serials(count).iter().map(|serial| DiskSpec::new(serial, DRIVE_BYTES)).collect()
}

fn serials(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("m1-{n}")).collect()
}

fn erase(serials: &[impl AsRef<str>]) -> String {
    let drives: String = serials.iter().map(|serial| format!(" --yes-destroy {}", serial.as_ref())).collect();
    format!("{AGENT} erase{drives} >{CERTIFICATES}")
}

/// How long the erase of one drive took.
struct Erased {
    all_seconds: f64,
    /// Of that, what the drive did by itself.
    drive_seconds: f64,
}

struct Arena {
    machine: Arc<Machine>,
    rescue: Rescue,
    // Machines go before the lab, and the lab before its directory.
    lab: Lab,
    _dir: TempDir,
}

impl Arena {
    fn new(disks: Vec<DiskSpec>) -> Result<Self> {
        let kit = kit::prepare(&[], &mut |_| {})?;
        let rescue = Rescue::prepare(&kit, &["nvme-cli", "coreutils"], &["usr/sbin/nvme", "bin/dd"], &[])?;
        let dir = tempfile::Builder::new().prefix("drophammer-").tempdir().context("making a directory")?;
        let server = ServerSpec::new(up::program()?, &kit);
        let lab = Lab::start(LabSpec { dir: dir.path().join("lab"), server, machines: 1 })?;
        let spec = MachineSpec { disks, memory_mb: 768, ..MachineSpec::numbered(1, Firmware::Bios) };
        let machine = lab.add_machine(spec)?;
        Ok(Self { machine, rescue, lab, _dir: dir })
    }

    /// Erases the machine's first drive.
    fn erased(&self, policy: Policy, method: Method) -> Result<Erased> {
        let command = format!("{} --policy {policy}", erase(&serials(1)));
        let (all_seconds, said) = self.timed(&command, &format!("cat {CERTIFICATES}"))?;
        let ends = said.find('{').zip(said.rfind('}'));
        let chain = ends.and_then(|(from, to)| said.get(from..=to)).context("there is no certificate")?;
        let chain: CertificateChain = serde_json::from_str(chain).context("understanding the certificate")?;
        let (report, _) = chain::examine(&chain, None);
        let mut attempts = report.certificates.iter().flat_map(|checked| &checked.certificate.attempts);
        let attempt = attempts.next().context("nothing was tried")?;
        ensure!(attempt.method == method, "it was done by {}, not by {}", attempt.method.name(), method.name());
        ensure!(attempt.millis > 0, "the drive took no time at all");
        Ok(Erased { all_seconds, drive_seconds: Duration::from_millis(attempt.millis).as_secs_f64() })
    }

    /// How long a command takes in the machine. It has to succeed.
    fn seconds(&self, command: &str) -> Result<f64> {
        self.timed(command, "").map(|(seconds, _)| seconds)
    }

    /// The same, and what another one says after it.
    fn timed(&self, command: &str, then: &str) -> Result<(f64, String)> {
        self.rescue.timed(&self.machine, command, then, self.lab.accel.patience(LIMIT))
    }
}
