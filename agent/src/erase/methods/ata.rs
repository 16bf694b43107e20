//! The sanitizes and the security erases of ATA.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use drophammer_protocol::erase::Method;

use super::sanitize::{kind, overwriting};
use super::{Progress, finish_sanitize, patience};
use crate::drive::ata::{Command, Failure, Password, SanitizeState, Security};
use crate::drive::{Data, Drive, SanitizeKind};
use crate::erase::ask;
use crate::erase::plan::{Unable, takes_passwords};
use crate::erase::probe::Probed;

const NO_SECURITY: &str = "the drive no longer says that it takes passwords";

pub(super) fn carry_out(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Method,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    match (method, kind(method)) {
        (_, Some(kind)) => sanitize(drive, probed, method, kind, progress),
        (Method::AtaSecurityEraseEnhanced, None) => security_erase(drive, probed, true),
        (Method::AtaSecurityErase, None) => security_erase(drive, probed, false),
        (other, None) => bail!("{} isn't ATA's", other.name()),
    }
}

fn sanitize(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Method,
    kind: SanitizeKind,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    ask::ata(drive, &Command::sanitize(kind), Data::None)?;
    finish_sanitize(drive, probed, Some(method), progress)?;
    let state = ask::sanitize_state(drive)?;
    ensure!(
        state == SanitizeState::Idle { succeeded: true },
        "the drive accepted it, and its sanitize status knows of no success ({state:?})"
    );
    Ok(())
}

/// However the erase ends, the drive isn't left locked if it can be helped.
fn security_erase(drive: &mut dyn Drive, probed: &Probed, enhanced: bool) -> anyhow::Result<()> {
    let identity = ask::identify(drive)?;
    let before = identity.security.context(NO_SECURITY)?;
    // It was so when it was planned, but drives lose their power, and firmware freezes them when it's back.
    takes_passwords(before)?;
    ensure!(!before.enabled, "a password is set that isn't ours");
    let told = if enhanced { identity.enhanced_erase_takes } else { identity.erase_takes };
    let limit = patience(told.unwrap_or_else(|| overwriting(probed.size_bytes())));
    let Err(failed) = erase_unit(drive, enhanced, limit) else { return Ok(()) };
    Err(match take_password_off(drive, |refused| refused) {
        Ok(WasSet::No) => failed,
        Ok(WasSet::Yes) => anyhow!("{failed:#}; its password was taken off the drive again"),
        Err(locked) => anyhow!(
            "{failed:#}; and taking its password off the drive again failed: {locked:#}; the drive may be locked until \
             this agent erases it"
        ),
    })
}

/// Sets our password, without which no drive erases itself, and has the erase remove it.
fn erase_unit(drive: &mut dyn Drive, enhanced: bool, limit: Duration) -> anyhow::Result<()> {
    ask::ata(drive, &Command::set_password(), Data::Out(&Password::tell())).context("setting a password for it")?;
    ensure!(security(drive)?.enabled, "the drive accepted a password, and says that none is set");
    ask::ata(drive, &Command::erase_prepare(), Data::None).context("preparing the drive for it")?;
    ask::ata(drive, &Command::erase_unit(limit), Data::Out(&Password::erase(enhanced)))?;
    ensure!(!security(drive)?.enabled, "the drive reported success, and its password is still set");
    Ok(())
}

/// Takes our password off a drive whose erase never ended. Only ours is tried, and only once: drives count, and after a
/// few wrong ones they take no other before they were switched off and on.
pub(in crate::erase) fn remove_password(drive: &mut dyn Drive) -> anyhow::Result<()> {
    take_password_off(drive, not_ours)?;
    Ok(())
}

enum WasSet {
    Yes,
    No,
}

/// `refused` makes what it has to mean of a drive's answer to the first time that it's told the password.
fn take_password_off(drive: &mut dyn Drive, refused: fn(anyhow::Error) -> anyhow::Error) -> anyhow::Result<WasSet> {
    let before = security(drive)?;
    if !before.enabled {
        return Ok(WasSet::No);
    }
    takes_passwords(before)?;
    let password = Password::tell();
    if before.locked {
        ask::ata(drive, &Command::unlock(), Data::Out(&password)).map_err(refused)?;
    }
    let disabled = ask::ata(drive, &Command::disable_password(), Data::Out(&password));
    if before.locked {
        disabled.context("the drive was unlocked with the password, and keeps it")?;
    } else {
        disabled.map_err(refused)?;
    }
    ensure!(!security(drive)?.enabled, "the drive says that it took its password off, and that it's still set");
    Ok(WasSet::Yes)
}

/// If it's the drive itself that doesn't accept the password.
fn not_ours(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(Failure::Drive(_)) => error.context(Unable::AtaLocked),
        Some(Failure::Translator(_)) | None => error,
    }
}

fn security(drive: &mut dyn Drive) -> anyhow::Result<Security> {
    ask::identify(drive)?.security.context(NO_SECURITY)
}
