//! Sanitize and Format NVM.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use drophammer_protocol::erase::Method;

use super::{Progress, finish_sanitize};
use crate::drive::nvme::{ALL_NAMESPACES, Command, SanitizeAction, SecureErase};
use crate::drive::{Data, Drive};
use crate::erase::ask;
use crate::erase::plan::Commands;
use crate::erase::probe::{Probed, Volume};

pub(super) fn carry_out(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Method,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    match method {
        Method::NvmeSanitizeCrypto => sanitize(drive, probed, method, SanitizeAction::Crypto, progress),
        Method::NvmeSanitizeBlock => sanitize(drive, probed, method, SanitizeAction::Block, progress),
        Method::NvmeSanitizeOverwrite => sanitize(drive, probed, method, SanitizeAction::Overwrite, progress),
        Method::NvmeFormatCrypto => format(drive, probed, SecureErase::Crypto, progress),
        Method::NvmeFormatUserData => format(drive, probed, SecureErase::UserData, progress),
        other => bail!("{} isn't NVMe's", other.name()),
    }
}

fn sanitize(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Method,
    action: SanitizeAction,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    ask::nvme(drive, &Command::sanitize(action), Data::None)?;
    let log = ask::sanitize_log(drive)?;
    ensure!(
        log.action == Some(action),
        "the drive accepted it, and its sanitize log knows nothing of it (the last one there is {:?})",
        log.action
    );
    finish_sanitize(drive, probed, Some(method), progress)
}

/// Each namespace, or all at once where the drive knows nothing smaller.
fn format(drive: &mut dyn Drive, probed: &Probed, erase: SecureErase, progress: Progress<'_>) -> anyhow::Result<()> {
    let Commands::Nvme(nvme) = &probed.capabilities.commands else { bail!("only NVMe drives have Format NVM") };
    let volumes: &[Volume] = &probed.volumes;
    // Drives that can only format everything want the command addressed to everything, unless they say that they don't.
    // FNA bit 1 alone widens the erase whatever the address, and the format of other namespaces isn't to change.
    let everything = nvme.formats_all && !nvme.no_broadcast;
    let addressed = if nvme.formats_all { volumes.get(..1).unwrap_or(volumes) } else { volumes };
    for (done, volume) in (0u32..).zip(addressed) {
        progress(f64::from(done) / addressed.len() as f64);
        let nsid = if everything { ALL_NAMESPACES } else { volume.id.namespace };
        let format = volume.format.with_context(|| format!("how {} is formatted isn't known", volume.id))?;
        let limit = format_limit(if nvme.formats_all { probed.size_bytes() } else { volume.id.size_bytes });
        ask::nvme(drive, &Command::format(nsid, format, erase, limit), Data::None)
            .with_context(|| format!("namespace {nsid}"))?;
    }
    Ok(())
}

/// Ten minutes for the command itself, and a second per GiB for drives that erase by overwriting all they have.
fn format_limit(size_bytes: u64) -> Duration {
    Duration::from_secs(600 + (size_bytes >> 30))
}
