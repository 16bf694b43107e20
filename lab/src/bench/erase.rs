//! What a proven erase costs, beside the tools that erase and don't look: the same drives of the same machine, in the rescue
//! system, timed by the machine's own clock.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::{Contest, Side};
use crate::kit;
use crate::lab::{Lab, LabSpec};
use crate::qemu::{DiskBus, DiskSpec, Firmware, MachineSpec};
use crate::rescue::{AGENT, Rescue};
use crate::server::ServerSpec;
use crate::up;
use crate::vm::Machine;

/// On real hardware.
const LIMIT: Duration = Duration::from_secs(300);
const DRIVES: usize = 8;
const DRIVE_BYTES: u64 = 4 << 30;
const OVERWRITTEN_BYTES: u64 = 1 << 30;
/// What a proven erase may take longer than the drive itself.
const ALLOWANCE_SECONDS: f64 = 3.0;

pub(super) fn eight_at_once() -> Result<Contest> {
    let arena = Arena::new(nvme(DRIVES))?;
    Ok(Box::new(move |side| {
        let drives = (0..DRIVES).map(|n| format!("--yes-destroy m1-{n}"));
        let all = match side {
            Side::Ours => format!("{AGENT} erase {} >/dev/null", drives.collect::<Vec<_>>().join(" ")),
            Side::Rival => {
                drives.map(|drive| format!("{AGENT} erase {drive} >/dev/null")).collect::<Vec<_>>().join(" && ")
            }
        };
        arena.seconds(&all)
    }))
}

pub(super) fn beside_nvme_cli() -> Result<Contest> {
    let arena = Arena::new(nvme(DRIVES))?;
    Ok(Box::new(move |side| match side {
        Side::Ours => {
            let drives: Vec<_> = (0..DRIVES).map(|n| format!("--yes-destroy m1-{n}")).collect();
            arena.seconds(&format!("{AGENT} erase {} >/dev/null", drives.join(" ")))
        }
        Side::Rival => {
            let each = (0..DRIVES).map(|n| format!("nvme format /dev/nvme{n}n1 --ses=1 --force >/dev/null &"));
            Ok(arena.seconds(&format!("{} wait", each.collect::<String>()))? + ALLOWANCE_SECONDS)
        }
    }))
}

pub(super) fn overwrite() -> Result<Contest> {
    let disk = DiskSpec { bus: DiskBus::Virtio, ..DiskSpec::new("m1-0", OVERWRITTEN_BYTES) };
    let arena = Arena::new(vec![disk])?;
    Ok(Box::new(move |side| {
        let seconds = arena.seconds(&match side {
            Side::Ours => format!("{AGENT} erase --policy clear --yes-destroy m1-0 >/dev/null"),
            Side::Rival => {
                let blocks = OVERWRITTEN_BYTES >> 22;
                format!("/bin/dd if=/dev/zero of=/dev/vda bs=4M count={blocks} oflag=direct conv=fsync 2>/dev/null")
            }
        })?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = OVERWRITTEN_BYTES as f64 / 1e6 / seconds;
        Ok(rate)
    }))
}

fn nvme(count: usize) -> Vec<DiskSpec> {
    (0..count).map(|n| DiskSpec::new(&format!("m1-{n}"), DRIVE_BYTES)).collect()
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
        let rescue = Rescue::prepare(&kit, &["nvme-cli", "coreutils"], &["usr/sbin/nvme", "bin/dd"])?;
        let dir = tempfile::Builder::new().prefix("drophammer-").tempdir().context("making a directory")?;
        let server = ServerSpec::new(up::program()?, &kit);
        let lab = Lab::start(LabSpec { dir: dir.path().join("lab"), server, machines: 1 })?;
        let spec = MachineSpec { disks, memory_mb: 768, ..MachineSpec::numbered(1, Firmware::Bios) };
        let machine = lab.add_machine(spec)?;
        Ok(Self { machine, rescue, lab, _dir: dir })
    }

    /// How long a command takes in the machine. It has to succeed.
    fn seconds(&self, command: &str) -> Result<f64> {
        let script = format!(
            "read -r begun rest < /proc/uptime\n\
             {{ {command}\n}}\n\
             result=$?\n\
             read -r ended rest < /proc/uptime\n\
             echo \"timed: $begun $ended\"\n\
             exit $result\n"
        );
        let said = self.rescue.run(&self.machine, &script, self.lab.accel.patience(LIMIT))?;
        let times = said.lines().find_map(|line| line.trim().strip_prefix("timed: ")).context("nothing was timed")?;
        let (begun, ended) = times.split_once(' ').context("two times")?;
        let seconds = |text: &str| text.trim().parse::<f64>().with_context(|| format!("{text:?} is no time"));
        let took = seconds(ended)? - seconds(begun)?;
        ensure!(took > 0.0, "it took no time at all");
        Ok(took)
    }
}
