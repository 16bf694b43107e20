//! NVMe drives: what the controller and each of its namespaces say.

use anyhow::{Context as _, ensure};
use drophammer_protocol::erase::{Medium, Method};
use drophammer_protocol::inventory::{Disk, DiskId};

use super::{Condition, Probed, Volume};
use crate::drive::Drive;
use crate::drive::nvme::{self, Controller, Deallocated, IdentifyPage, Namespace, SanitizeAction, SanitizeState};
use crate::erase::ask;
use crate::erase::plan::{self, Commands};

pub(super) fn probe(drive: &mut dyn Drive, disks: &[Disk]) -> anyhow::Result<Probed> {
    let controller = identify(drive)?;
    let (mut volumes, mut deallocated) = (Vec::new(), Vec::new());
    for disk in disks {
        let id = disk.id().context("the drive tells no serial number")?;
        let namespace = check_namespace(drive, &controller, &id)?;
        deallocated.push(namespace.deallocated);
        volumes.push(Volume::new(id, namespace.block_bytes, Some(namespace.format)));
    }
    let mut unseen = nvme::namespace_list(&ask::identify_nvme(drive, IdentifyPage::ActiveNamespaces)?);
    if controller.can_manage_namespaces() {
        unseen.extend(nvme::namespace_list(&ask::identify_nvme(drive, IdentifyPage::AllocatedNamespaces)?));
    }
    unseen.retain(|existing| volumes.iter().all(|volume| volume.id.namespace != *existing));
    unseen.sort_unstable();
    unseen.dedup();
    deallocated.dedup();
    let deallocated = if let [all] = deallocated.as_slice() { *all } else { Deallocated::Unsaid };
    let commands = Commands::Nvme(plan::Nvme {
        format: controller.can_format(),
        crypto_erase: controller.can_crypto_erase(),
        formats_all: controller.formats_all_namespaces(),
        erases_all: controller.erases_all_namespaces(),
        no_broadcast: controller.refuses_broadcast_format(),
        sanitize: controller.sanitize(),
        security: controller.has_security(),
        deallocated,
        unseen_namespaces: unseen,
    });
    Ok(Probed {
        model: Some(controller.model),
        firmware: Some(controller.firmware),
        ..Probed::new(volumes, commands, Medium::Flash)
    })
}

fn identify(drive: &mut dyn Drive) -> anyhow::Result<Controller> {
    let page = ask::identify_nvme(drive, IdentifyPage::Controller)?;
    Controller::parse(&page).context("Identify Controller tells no serial")
}

fn check_namespace(drive: &mut dyn Drive, controller: &Controller, id: &DiskId) -> anyhow::Result<Namespace> {
    ensure!(controller.serial == id.serial, "the drive that answers has the serial {}", controller.serial);
    let nsid = id.namespace;
    let page = ask::identify_nvme(drive, IdentifyPage::Namespace(nsid))?;
    let namespace =
        Namespace::parse(&page).with_context(|| format!("Identify Namespace {nsid} describes no usable namespace"))?;
    ensure!(namespace.size_bytes == id.size_bytes, "the drive that answers has {} bytes", namespace.size_bytes);
    Ok(namespace)
}

/// Whether this is the drive that was ordered, with all its volumes.
pub(super) fn check(drive: &mut dyn Drive, volumes: &[Volume]) -> anyhow::Result<()> {
    let controller = identify(drive)?;
    volumes.iter().try_for_each(|volume| check_namespace(drive, &controller, &volume.id).map(drop))
}

pub(super) fn condition(drive: &mut dyn Drive) -> anyhow::Result<Condition> {
    let log = ask::sanitize_log(drive)?;
    let method = match log.action {
        Some(SanitizeAction::Crypto) => Some(Method::NvmeSanitizeCrypto),
        Some(SanitizeAction::Block) => Some(Method::NvmeSanitizeBlock),
        Some(SanitizeAction::Overwrite) => Some(Method::NvmeSanitizeOverwrite),
        Some(SanitizeAction::ExitFailure) | None => None,
    };
    Ok(match log.state {
        SanitizeState::Never | SanitizeState::Done => Condition::Ready,
        SanitizeState::Running(done) => Condition::Sanitizing { method, done: f64::from(done) / 65536.0 },
        SanitizeState::Failed => Condition::SanitizeFailed,
    })
}
