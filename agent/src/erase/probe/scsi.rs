//! SCSI drives, and whatever else looks like one and is nothing more.

use anyhow::{Context as _, bail};
use drophammer_protocol::erase::Method;
use drophammer_protocol::inventory::{Disk, DiskId};

use super::{Condition, Probed, Volume, medium};
use crate::drive::scsi::{self, Capacity, Page};
use crate::drive::{Drive, Sanitize, SanitizeKind};
use crate::erase::ask;
use crate::erase::plan::{self, Commands};

pub(super) fn probe(drive: &mut dyn Drive, disk: &Disk, id: &DiskId) -> anyhow::Result<Probed> {
    let capacity = check(drive, id)?;
    let rotations = if has_page(drive, Page::Characteristics) {
        ask::page(drive, Page::Characteristics).ok().and_then(|page| scsi::rotations_per_minute(&page))
    } else {
        None
    };
    let sanitize = Sanitize::of(|kind| ask::reports_sanitize(drive, kind));
    let block_bytes = capacity.map_or(disk.logical_block, |capacity| capacity.block_bytes);
    let volumes = vec![Volume::new(id.clone(), block_bytes, None)];
    let commands = Commands::Scsi(plan::Scsi { sanitize, security: ask::has_security(drive) });
    Ok(Probed {
        model: disk.model.clone(),
        firmware: disk.firmware.clone(),
        ..Probed::new(volumes, commands, medium(rotations))
    })
}

/// Whether this is the drive that was ordered. One that's too busy sanitizing to say how large it is will be asked again.
pub(super) fn check(drive: &mut dyn Drive, id: &DiskId) -> anyhow::Result<Option<Capacity>> {
    let page = ask::page(drive, Page::Serial)?;
    let serial = scsi::serial(&page).context("page 80h of vital product data tells no serial number")?;
    let capacity = ask::capacity(drive)?;
    super::check(id, &serial, capacity.map_or(id.size_bytes, |capacity| capacity.size_bytes))?;
    Ok(capacity)
}

pub(super) fn has_page(drive: &mut dyn Drive, page: Page) -> bool {
    ask::page(drive, Page::Supported).is_ok_and(|list| scsi::has_page(&list, page))
}

pub(super) fn condition(drive: &mut dyn Drive, capable: &plan::Scsi) -> anyhow::Result<Condition> {
    match ask::readiness(drive)? {
        None => Ok(Condition::Ready),
        Some(sense) if sense.is_failed_sanitize() => Ok(Condition::SanitizeFailed),
        Some(sense) if sense.is_sanitizing() => Ok(Condition::Sanitizing {
            method: capable.sanitize.only().map(sanitize_method),
            done: f64::from(sense.progress.unwrap_or(0)) / 65536.0,
        }),
        Some(sense) => bail!("{sense}"),
    }
}

fn sanitize_method(kind: SanitizeKind) -> Method {
    match kind {
        SanitizeKind::Crypto => Method::ScsiSanitizeCrypto,
        SanitizeKind::Block => Method::ScsiSanitizeBlock,
        SanitizeKind::Overwrite => Method::ScsiSanitizeOverwrite,
    }
}
