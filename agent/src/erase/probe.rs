//! What a drive says of itself, asked before anything is touched and again after everything.

mod ata;
mod nvme;
mod scsi;

use anyhow::{Context as _, bail, ensure};
use drophammer_protocol::erase::{Medium, Method, Psid};
use drophammer_protocol::inventory::{Bus, Disk, DiskId};

use super::door::Door;
use super::plan::{self, Blocks, Capabilities, Commands};
use crate::drive::nvme::LbaFormat;
use crate::drive::{Drive, opal};

/// A drive that was asked, and whose answers fit the names that it was ordered by.
#[derive(Clone, Debug)]
pub(super) struct Probed {
    pub(super) model: Option<String>,
    pub(super) firmware: Option<String>,
    pub(super) volumes: Vec<Volume>,
    pub(super) capabilities: Capabilities,
    /// What was found that no choice depends on, in words.
    pub(super) remarks: Vec<String>,
    /// The secret on the drive's label, if somebody gave it.
    pub(super) psid: Option<Psid>,
}

/// A namespace, or the whole of a drive that has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) id: DiskId,
    pub(super) block_bytes: u32,
    /// How NVMe has formatted it.
    pub(super) format: Option<LbaFormat>,
    /// Bytes at which something of interest lies.
    pub(super) marks: Vec<u64>,
}

impl Volume {
    /// Nothing is known of what lies on it.
    fn new(id: DiskId, block_bytes: u32, format: Option<LbaFormat>) -> Self {
        Self { id, block_bytes, format, marks: Vec::new() }
    }
}

impl Probed {
    /// What the drive's own language tells. The rest is asked alike of all drives.
    fn new(volumes: Vec<Volume>, commands: Commands, medium: Medium) -> Self {
        let capabilities = Capabilities { commands, blocks: Blocks::default(), medium, opal: None };
        Self { model: None, firmware: None, volumes, capabilities, remarks: Vec::new(), psid: None }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.id.size_bytes).fold(0, u64::saturating_add)
    }
}

/// Asks the drive who it is and what it can do; touches nothing. `disks` are its volumes as the kernel shows them, in the
/// order in which `drive` has them.
pub(super) fn probe(
    drive: &mut dyn Drive,
    disks: &[Disk],
    blocks: Blocks,
    psid: Option<&Psid>,
) -> anyhow::Result<Probed> {
    let first = disks.first().context("a drive without volumes can't be asked")?;
    let mut probed = match first.bus {
        Bus::Nvme => nvme::probe(drive, disks)?,
        // Behind a controller for both, either may turn out to be the other. Bridges from USB are too easily upset.
        Bus::Ata | Bus::Scsi => {
            let (disk, id) = only(disks)?;
            match ata::probe(drive, disk, &id)? {
                Some(probed) => probed,
                None => scsi::probe(drive, disk, &id)?,
            }
        }
        Bus::Virtio | Bus::Usb | Bus::Other => probe_blocks(disks, first.bus)?,
    };
    probed.psid = psid.cloned();
    probed.capabilities.blocks = blocks;
    ask_opal(drive, &mut probed);
    Ok(probed)
}

/// Drives that don't encrypt have nothing that could be thrown away, but may be locked all the same.
fn ask_opal(drive: &mut dyn Drive, probed: &mut Probed) {
    let Some(mut door) = Door::of(drive, &probed.capabilities.commands) else { return };
    match opal::discover(&mut door) {
        Ok(None) => {}
        Ok(Some(opal)) => {
            probed.remarks.extend(opal.words());
            probed.capabilities.opal = Some(plan::Opal {
                locked: opal.locking.locked,
                owned: opal.sid.is_some_and(|sid| sid.owned),
                encrypts: opal.can_rekey(),
            });
        }
        Err(e) => probed.remarks.push(format!("whether it has TCG Opal couldn't be asked: {e:#}")),
    }
}

/// Whether the drive that answers now is the one that was asked before: with the same name, and as large.
pub(super) fn still_the_same(drive: &mut dyn Drive, probed: &Probed) -> anyhow::Result<()> {
    match probed.capabilities.commands {
        Commands::Nvme(_) => nvme::check(drive, &probed.volumes),
        Commands::Ata(_) => probed.volumes.iter().try_for_each(|volume| ata::check(drive, &volume.id)),
        Commands::Scsi(_) => probed.volumes.iter().try_for_each(|volume| scsi::check(drive, &volume.id).map(drop)),
        Commands::None(_) => Ok(()),
    }
}

/// What a drive is at, and what keeps it from being erased.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Condition {
    Ready,
    /// By itself, and on through every loss of power. `method` if it's known: drives of ATA and SCSI that can do several
    /// don't say.
    Sanitizing {
        method: Option<Method>,
        done: f64,
    },
    SanitizeFailed,
    /// One of ATA, which locks the drive at its next power-on if it doesn't now.
    PasswordSet,
}

/// Asks the drive what it's at. Only drives that claim to sanitize, or to take passwords, are asked.
pub(super) fn condition(drive: &mut dyn Drive, probed: &Probed) -> anyhow::Result<Condition> {
    match &probed.capabilities.commands {
        Commands::Nvme(capable) if capable.sanitize.any() => nvme::condition(drive),
        Commands::Ata(capable) => ata::condition(drive, capable),
        Commands::Scsi(capable) if capable.sanitize.any() => scsi::condition(drive, capable),
        Commands::Nvme(_) | Commands::Scsi(_) | Commands::None(_) => Ok(Condition::Ready),
    }
}

/// A drive that has no namespaces.
fn only(disks: &[Disk]) -> anyhow::Result<(&Disk, DiskId)> {
    let [disk] = disks else { bail!("a drive of this kind has one volume, and this has {}", disks.len()) };
    Ok((disk, disk.id().context("the drive tells no serial number")?))
}

/// Both as the drive tells it now. Who translates for a drive may pad its serial, so blanks don't count.
fn check(id: &DiskId, serial: &str, size_bytes: u64) -> anyhow::Result<()> {
    let known = id.serial.split_whitespace();
    ensure!(known.collect::<String>() == serial, "the drive that answers has the serial {serial}");
    ensure!(size_bytes == id.size_bytes, "the drive that answers has {size_bytes} bytes");
    Ok(())
}

fn medium(rotations_per_minute: Option<u16>) -> Medium {
    if rotations_per_minute.is_some() { Medium::Magnetic } else { Medium::Flash }
}

fn probe_blocks(disks: &[Disk], bus: Bus) -> anyhow::Result<Probed> {
    let (disk, id) = only(disks)?;
    // Whatever it says of turning, it lies on something that nobody knows.
    let volumes = vec![Volume::new(id, disk.logical_block, None)];
    Ok(Probed {
        model: disk.model.clone(),
        firmware: disk.firmware.clone(),
        ..Probed::new(volumes, Commands::None(bus), Medium::Flash)
    })
}
