//! What the sanitizes of NVMe, ATA and SCSI have in common: once begun, they go on by themselves, and are watched.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use drophammer_protocol::erase::Method;

use super::{Going, Progress, patience, wait_for};
use crate::drive::nvme::SanitizeAction;
use crate::drive::{Data, Drive, SanitizeKind, ata, nvme, scsi};
use crate::erase::ask;
use crate::erase::plan::Commands;
use crate::erase::probe::{self, Condition, Probed};

/// Waits for a sanitize that the drive is at, whoever began it.
pub(in crate::erase) fn finish_sanitize(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Option<Method>,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let limit = patience(estimate(drive, probed, method.and_then(kind))?);
    let mut furthest = 0.0;
    wait_for(drive, limit, progress, |drive| match probe::condition(drive, probed)? {
        Condition::Sanitizing { done, .. } => {
            furthest = done;
            Ok(Going::On(done))
        }
        Condition::Ready | Condition::PasswordSet => Ok(Going::Done),
        Condition::SanitizeFailed => bail!("the drive says that it failed at {:.0} %", furthest * 100.0),
    })
}

/// What the drive reckons, or what drives of its size take.
fn estimate(drive: &mut dyn Drive, probed: &Probed, kind: Option<SanitizeKind>) -> anyhow::Result<Duration> {
    let told = match (&probed.capabilities.commands, kind) {
        (Commands::Nvme(_), Some(kind)) => ask::sanitize_log(drive)?.estimate(kind),
        _ => None,
    };
    Ok(told.unwrap_or_else(|| usual(kind, probed.size_bytes())))
}

fn usual(kind: Option<SanitizeKind>, bytes: u64) -> Duration {
    const BLOCK_ERASE: Duration = Duration::from_secs(3600);
    match kind {
        Some(SanitizeKind::Crypto) => Duration::from_secs(60),
        Some(SanitizeKind::Block) => BLOCK_ERASE,
        Some(SanitizeKind::Overwrite) => overwriting(bytes),
        None => overwriting(bytes).max(BLOCK_ERASE),
    }
}

/// How long a slow drive takes to write everything it has.
pub(super) fn overwriting(bytes: u64) -> Duration {
    const SLOW_WRITES_PER_SECOND: u64 = 50_000_000;
    Duration::from_secs(bytes / SLOW_WRITES_PER_SECOND)
}

/// A drive whose sanitize failed takes nothing but another one until it's told to go on.
pub(in crate::erase) fn leave_failed_sanitize(drive: &mut dyn Drive, probed: &Probed) -> anyhow::Result<()> {
    match &probed.capabilities.commands {
        Commands::Nvme(_) => ask::nvme(drive, &nvme::Command::sanitize(SanitizeAction::ExitFailure), Data::None),
        Commands::Ata(_) => ask::ata(drive, &ata::Command::leave_failed_sanitize(), Data::None).map(drop),
        Commands::Scsi(_) => ask::scsi(drive, &scsi::Command::leave_failed_sanitize(), Data::None).map(drop),
        Commands::None(_) => Ok(()),
    }
    .context("leaving the state of a failed sanitize")?;
    let stays = probe::condition(drive, probed)? == Condition::SanitizeFailed;
    ensure!(!stays, "the drive stays in the state of a failed sanitize");
    Ok(())
}

/// What kind of sanitize a method is, if it's one.
pub(super) fn kind(method: Method) -> Option<SanitizeKind> {
    match method {
        Method::NvmeSanitizeCrypto | Method::AtaSanitizeCrypto | Method::ScsiSanitizeCrypto => {
            Some(SanitizeKind::Crypto)
        }
        Method::NvmeSanitizeBlock | Method::AtaSanitizeBlock | Method::ScsiSanitizeBlock => Some(SanitizeKind::Block),
        Method::NvmeSanitizeOverwrite | Method::AtaSanitizeOverwrite | Method::ScsiSanitizeOverwrite => {
            Some(SanitizeKind::Overwrite)
        }
        _ => None,
    }
}
