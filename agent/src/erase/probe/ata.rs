//! ATA drives, wherever they are attached: what IDENTIFY DEVICE says, and how much of the drive is hidden.

use drophammer_protocol::erase::Method;
use drophammer_protocol::inventory::{Bus, Disk, DiskId};

use super::{Condition, Probed, Volume, medium, scsi};
use crate::drive::ata::{self, Command, Identity, SECTOR_BYTES, SanitizeState};
use crate::drive::scsi::Page;
use crate::drive::{Data, Drive, Sanitize, SanitizeKind};
use crate::erase::ask;
use crate::erase::plan::{self, Commands};

/// `None` if there is no ATA drive behind this, or none that commands of ATA get through to.
pub(super) fn probe(drive: &mut dyn Drive, disk: &Disk, id: &DiskId) -> anyhow::Result<Option<Probed>> {
    // Real SCSI drives and arrays aren't bothered with commands that they can't know.
    let likely = disk.bus == Bus::Ata || scsi::has_page(drive, Page::AtaInformation);
    let identity = if likely { ask::identity(drive)? } else { None };
    let Some(identity) = identity else { return Ok(None) };
    super::check(id, &identity.serial, identity.size_bytes)?;
    let (sanitize, sanitize_frozen) = sanitize(drive, &identity);
    let (security, trusted) = (identity.security, identity.trusted);
    let hidden_bytes = hidden_bytes(drive, &identity);
    let volumes = vec![Volume::new(id.clone(), identity.block_bytes, None)];
    let commands = Commands::Ata(plan::Ata { sanitize, sanitize_frozen, security, trusted, hidden_bytes });
    Ok(Some(Probed {
        model: Some(identity.model),
        firmware: Some(identity.firmware),
        ..Probed::new(volumes, commands, medium(identity.rotations_per_minute))
    }))
}

/// Whether this is the drive that was ordered.
pub(super) fn check(drive: &mut dyn Drive, id: &DiskId) -> anyhow::Result<()> {
    let identity = ask::identify(drive)?;
    super::check(id, &identity.serial, identity.size_bytes)
}

/// What it claims, and whether that's frozen. A sanitize that can't be watched isn't one that could be begun.
fn sanitize(drive: &mut dyn Drive, identity: &Identity) -> (Sanitize, bool) {
    if !identity.sanitize.any() {
        return (Sanitize::default(), false);
    }
    match ask::sanitize_state(drive) {
        Ok(state) => (identity.sanitize, state == SanitizeState::Frozen),
        Err(_) => (Sanitize::default(), false),
    }
}

/// What lies behind the last address that it gives away. Drives that say no more than that hide nothing that anybody
/// could find.
fn hidden_bytes(drive: &mut dyn Drive, identity: &Identity) -> u64 {
    let mut sectors = Vec::new();
    if identity.protected_area {
        let registers = ask::ata(drive, &Command::native_max(identity.long_addresses), Data::None).ok().flatten();
        sectors.extend(registers.map(|r| if identity.long_addresses { r.lba } else { r.lba_28() }));
    }
    if identity.accessible_max {
        let registers = ask::ata(drive, &Command::accessible_native_max(), Data::None).ok().flatten();
        sectors.extend(registers.map(|r| r.lba));
    }
    if identity.configuration_overlay {
        let mut page = [0; SECTOR_BYTES];
        let answered = ask::ata(drive, &Command::factory_configuration(), Data::In(&mut page)).is_ok();
        sectors.extend(answered.then(|| ata::highest_factory_sector(&page)).flatten());
    }
    let last = sectors.into_iter().max().unwrap_or(0);
    let whole = last.saturating_add(1).saturating_mul(identity.block_bytes.into());
    whole.saturating_sub(identity.size_bytes)
}

pub(super) fn condition(drive: &mut dyn Drive, capable: &plan::Ata) -> anyhow::Result<Condition> {
    let state = if capable.sanitize.any() { Some(ask::sanitize_state(drive)?) } else { None };
    if let Some(SanitizeState::Running(done)) = state {
        let method = capable.sanitize.only().map(sanitize_method);
        return Ok(Condition::Sanitizing { method, done: f64::from(done) / 65536.0 });
    }
    // A locked drive aborts everything, so this comes first.
    let has_password = capable.security.is_some() && ask::identify(drive)?.security.is_some_and(|s| s.enabled);
    Ok(match state {
        _ if has_password => Condition::PasswordSet,
        Some(SanitizeState::Failed) => Condition::SanitizeFailed,
        Some(SanitizeState::Idle { .. } | SanitizeState::Frozen | SanitizeState::Running(_)) | None => Condition::Ready,
    })
}

fn sanitize_method(kind: SanitizeKind) -> Method {
    match kind {
        SanitizeKind::Crypto => Method::AtaSanitizeCrypto,
        SanitizeKind::Block => Method::AtaSanitizeBlock,
        SanitizeKind::Overwrite => Method::AtaSanitizeOverwrite,
    }
}
