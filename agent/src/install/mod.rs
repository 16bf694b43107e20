//! From an order and an empty disk to a machine that starts its own system.
//!
//! ```text
//! manifest (signature, hash, fit) → layout → fetch ‖ verify ‖ decompress ‖ write → read back → name, grow
//!   → (its installer) → configure → boot files → kernel into memory → unmount → backup GPT → primary GPT → boot sector
//!   → read back
//! ```
//!
//! Up to `Target::take` nothing is touched and a refusal is the worst that happens. From there on the disk holds no
//! partition table until everything on it is complete and durable: whatever goes wrong, and whenever, it doesn't boot.

mod blocks;
mod bootloader;
mod configure;
mod esp;
mod fetch;
mod gpt;
mod layout;
mod metal;
mod mkfs;
mod pull;
mod root;
mod sources;
mod stream;
mod systemd;
mod target;
mod unpack;
mod uplink;
mod yaml;

#[cfg(fuzzing)]
pub(crate) use self::{
    bootloader::fuzz as fuzz_bootloader, configure::fuzz as fuzz_accounts, fetch::fuzz as fuzz_fetch,
    metal::fuzz as fuzz_metal, systemd::fuzz as fuzz_systemd, unpack::fuzz as fuzz_archive, yaml::fuzz as fuzz_yaml,
};

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::id::Mac;
use drophammer_protocol::inventory::FirmwareKind;
use drophammer_protocol::manifest::{self, BlockForm, Manifest, TarForm};
use drophammer_protocol::order::{Install, Installed};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use drophammer_protocol::words::{bytes, count};
use sha2::{Digest, Sha256};

use self::configure::By;
use self::esp::EspFile;
use self::fetch::Patience;
use self::gpt::ActiveFlag;
use self::layout::{Geometry, Layout, Seed};
use self::sources::Sources;
use self::target::Target;
use crate::disk::{self, Access, OpenDisk, OpenError};
use crate::kexec;
use crate::net;
use crate::reporter::Reporter;
use crate::sys::{block, ext4};

/// Whom to believe. The client trusts the ticket's CA alone; plain HTTP is as good, for nothing is used unverified.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    pub(crate) image_keys: Vec<PublicKey>,
    /// Without a time limit on whole answers: an image takes as long as it takes. One on single reads is what notices
    /// a server that fell silent (reqwest's blocking client has 30 seconds by default).
    pub(crate) http: reqwest::blocking::Client,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// Nothing was touched.
    #[error("{0}")]
    Refused(String),
    /// The disk has been left without a partition table, if it was touched at all.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// A complete, bootable disk and a kernel ready to run. The report should be safe on the server before [`Ready::boot`].
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) report: Installed,
    start: anyhow::Result<kexec::Loaded>,
}

impl Ready {
    /// Starts the installed system. Returns only if that can't be done by kexec: the disk is complete all the same, and
    /// an ordinary reboot is the way left.
    pub(crate) fn boot(self) -> anyhow::Error {
        match self.start {
            Ok(loaded) => loaded.start(),
            Err(e) => {
                e.context("the installed system's kernel couldn't be loaded by kexec; a reboot starts it from disk")
            }
        }
    }
}

/// Installs as ordered. Reports what it's going to do before it does it.
pub(crate) fn carry_out(order: &Install, trust: &Trust, reporter: &Reporter) -> Result<Ready, InstallError> {
    let interrupted = |what: String| reporter.note(Phase::Image, what);
    let sources = Sources::new(&trust.http, &order.stores, Patience::ORDINARY, &interrupted);
    let manifest = manifest(order, trust, &sources)?;
    let (disk, plan) = plan(order, &manifest)?;
    reporter.started(
        Phase::Layout,
        format!("{} on {} ({}): {}", manifest.reference(), order.disk, disk.facts.name, plan.layout),
    );
    let target = Target::take(disk, plan.layout.clone())?;
    match build(&target, order, &manifest, &plan, &sources, reporter) {
        Ok(built) => {
            let bootable = target.finish(&built.tables)?;
            reporter.done(Phase::Configure, "the disk is bootable, its tables were read back");
            let report = Installed {
                root_uuid: plan.layout.root_uuid.to_string(),
                kernel: manifest.boot.kernel.path.clone(),
                cmdline: plan.command_line,
                bytes_fetched: sources.fetched(),
                bytes_written: bootable.bytes_written,
                peak_memory_bytes: peak_memory_bytes(),
            };
            Ok(Ready { report, start: built.start })
        }
        Err(e) => Err(InstallError::Failed(target.abandon(e))),
    }
}

/// The manifest that the order means, and no other.
fn manifest(order: &Install, trust: &Trust, sources: &Sources<'_>) -> Result<Verified<Manifest>, InstallError> {
    let refused = |why: String| InstallError::Refused(format!("image {}: {why}", order.image));
    let bytes = sources
        .manifest(&order.image, |bytes| {
            let signed: Signed<Manifest> =
                serde_json::from_slice(bytes).map_err(|e| format!("what lies there isn't a signed manifest: {e}"))?;
            let got = hex::encode(Sha256::digest(&signed.payload));
            if got.eq_ignore_ascii_case(&order.manifest_sha256) {
                Ok(())
            } else {
                Err(format!("the manifest there has SHA-256 {got}, the order says {}", order.manifest_sha256))
            }
        })
        .map_err(|e| refused(format!("{e:#}")))?;
    let manifest = manifest::open(&bytes, &trust.image_keys).map_err(|e| refused(format!("its manifest: {e}")))?;
    // The clock is the server's, from its signed answer.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    if manifest.has_expired(now) {
        return Err(refused("it has expired: install a newer version".into()));
    }
    if manifest.arch != std::env::consts::ARCH {
        return Err(refused(format!("it is for {}, this machine is {}", manifest.arch, std::env::consts::ARCH)));
    }
    Ok(manifest)
}

/// Everything that was decided before anything was touched.
#[derive(Debug)]
struct Plan<'a> {
    layout: Layout,
    command_line: String,
    firmware: FirmwareKind,
    root: RootFrom<'a>,
    uplink: uplink::Uplink,
}

/// What the root file system is made of.
#[derive(Debug)]
enum RootFrom<'a> {
    /// As it was published.
    Blocks(&'a BlockForm),
    /// A new one, and the tar unpacked into it.
    Tar(&'a TarForm, mkfs::Making),
}

fn plan<'a>(order: &Install, manifest: &'a Verified<Manifest>) -> Result<(OpenDisk, Plan<'a>), InstallError> {
    let ports: Vec<Mac> = net::ports(Path::new("/")).into_iter().map(|port| port.mac).collect();
    configure::check(order, &ports).map_err(InstallError::Refused)?;
    let disk = disk::open(&order.disk, Access::Buffered).map_err(|e| match e {
        OpenError::Open { .. } => InstallError::Failed(e.into()),
        _ => InstallError::Refused(e.to_string()),
    })?;
    let logical_block = block::logical_block(&disk.file).context("asking the disk for the size of its blocks")?;
    let geometry = Geometry { bytes: disk.facts.size_bytes, logical_block };
    let machine = order.phone_home.machine.to_string();
    let seed = Seed::of(&[&machine, &order.disk.serial, &order.manifest_sha256]);
    let layout = layout::plan(geometry, manifest.installed_bytes, &seed)
        .map_err(|e| InstallError::Refused(format!("{} can't take image {}: {e}", order.disk, order.image)))?;
    let firmware = if Path::new("/sys/firmware/efi").exists() { FirmwareKind::Uefi } else { FirmwareKind::Bios };
    bootloader::check(&manifest.boot, firmware, &layout).map_err(InstallError::Refused)?;
    let command_line =
        bootloader::command_line(&layout, &manifest.boot, &order.cmdline).map_err(InstallError::Refused)?;
    let root = root_from(manifest, &layout).map_err(InstallError::Refused)?;
    let uplink = uplink::find(&order.phone_home.server);
    Ok((disk, Plan { layout, command_line, firmware, root, uplink }))
}

/// The block form if there is one: it's what was made for this.
fn root_from<'a>(manifest: &'a Manifest, layout: &Layout) -> Result<RootFrom<'a>, String> {
    let bytes = layout.length_bytes(&layout.root);
    match (&manifest.block, &manifest.tar) {
        (Some(form), _) if form.bytes > bytes => Err(format!(
            "the image's file system has {} bytes, and the root partition would have {bytes}: choose a larger disk for this \
             machine or a smaller image",
            form.bytes
        )),
        (Some(form), _) => Ok(RootFrom::Blocks(form)),
        (None, Some(form)) => {
            let root = mkfs::New {
                format: mkfs::Format::Ext4(layout.root_uuid),
                label: "root",
                bytes,
                logical_block: layout.geometry.logical_block,
                options: &[],
            };
            Ok(RootFrom::Tar(form, mkfs::plan(&root, &mkfs::Tools::find())?))
        }
        (None, None) => Err("the image has neither a block form nor a tar form".to_owned()),
    }
}

/// A disk on which everything is in its place but the tables.
struct Built {
    tables: [gpt::Piece; 3],
    start: anyhow::Result<kexec::Loaded>,
}

fn build(
    target: &Target,
    order: &Install,
    manifest: &Verified<Manifest>,
    plan: &Plan<'_>,
    sources: &Sources<'_>,
    reporter: &Reporter,
) -> anyhow::Result<Built> {
    let layout = target.layout();
    let root = match &plan.root {
        RootFrom::Blocks(form) => write_blocks(target, order, manifest, form, sources, reporter)?,
        RootFrom::Tar(form, made) => unpack_tar(target, order, manifest, form, made, sources, reporter)?,
    };

    let system = &order.system;
    reporter.started(Phase::Configure, format!("{} with {}", system.hostname, count(system.ssh_keys.len(), "SSH key")));
    let contract = metal::Contract::of(&root)?;
    let mut by = By::Us;
    if let Some(contract) = &contract {
        let ports = net::ports(Path::new("/"));
        let facts = metal::Facts { root_uuid: layout.root_uuid.to_string(), ports: &ports };
        contract.fulfil(&root, Path::new(target::MOUNT_POINT), order, &facts, metal::TIME_LIMIT, reporter)?;
        if contract.makes_the_system() {
            by = By::ItsInstaller;
        }
    }
    let mut agent = File::open("/proc/self/exe").context("opening the agent's own program")?;
    let notes = configure::configure(&root, order, layout, &plan.uplink, &mut agent, by)
        .with_context(|| format!("configuring {}", system.hostname))?;
    for note in notes {
        reporter.note(Phase::Configure, note);
    }
    bootloader::configure(&root, layout, &manifest.boot, &manifest.description, &order.cmdline)
        .context("configuring the boot loader")?;
    let boot_code = boot_files(target, manifest, &root)?;
    let active = match plan.firmware {
        FirmwareKind::Bios => ActiveFlag::Set,
        FirmwareKind::Uefi => ActiveFlag::Clear,
    };
    let tables = gpt::tables(layout, &boot_code, active)?;

    root.flush().with_context(|| {
        format!("the drive {} didn't take everything that was written to it: replace it", order.disk.serial)
    })?;
    let kernel = bootloader::verified(&root, &manifest.boot.kernel)?;
    let initrd = manifest.boot.initrd.as_ref().map(|file| bootloader::verified(&root, file)).transpose()?;
    let start = kexec::load(&kernel, initrd.as_ref(), &plan.command_line);
    if let Err(e) = &start {
        reporter.note(Phase::Kexec, format!("the kernel can't be started by kexec, a reboot will do it: {e:#}"));
    }
    drop((kernel, initrd, root));
    target.unmount_root()?;
    Ok(Built { tables, start })
}

/// The root file system as it was published, with a name of its own, and as large as its partition.
fn write_blocks(
    target: &Target,
    order: &Install,
    manifest: &Manifest,
    form: &BlockForm,
    sources: &Sources<'_>,
    reporter: &Reporter,
) -> anyhow::Result<root::Root> {
    let layout = target.layout();
    reporter.started(
        Phase::Image,
        format!("{} as a file system, in {}", manifest.reference(), pieces(form.pieces.len(), order)),
    );
    blocks::image(manifest, form, sources, &target.node(&layout.root)?, order.read_back, reporter)
        .with_context(|| format!("writing image {} to drive {}", manifest.reference(), order.disk.serial))?;
    let root = target.mount_root()?;
    let name = || -> anyhow::Result<()> {
        ext4::set_uuid(root.handle(), layout.root_uuid)?;
        let blocks = layout.length_bytes(&layout.root) / ext4::block_bytes(root.handle())?;
        Ok(ext4::grow(root.handle(), blocks)?)
    };
    name().context("making the image's file system this machine's own")?;
    reporter.done(
        Phase::Image,
        format!("{} written and verified, grown to {}", bytes(form.bytes), bytes(layout.length_bytes(&layout.root))),
    );
    Ok(root)
}

/// A root file system made here, and the tar unpacked into it.
fn unpack_tar(
    target: &Target,
    order: &Install,
    manifest: &Manifest,
    form: &TarForm,
    made: &mkfs::Making,
    sources: &Sources<'_>,
    reporter: &Reporter,
) -> anyhow::Result<root::Root> {
    made.carry_out(&target.node(&target.layout().root)?)?;
    let root = target.mount_root()?;
    reporter.done(Phase::Layout, "the root file system is made and mounted; the disk has no partition table yet");
    reporter
        .started(Phase::Image, format!("{} as a tar, in {}", manifest.reference(), pieces(form.chunks.len(), order)));
    let unpacked = stream::image(manifest, form, sources, &root, reporter)
        .with_context(|| format!("writing image {}", manifest.reference()))?;
    reporter.done(
        Phase::Image,
        format!("{} files and directories, {} in files, all verified", unpacked.members, bytes(unpacked.file_bytes)),
    );
    Ok(root)
}

fn pieces(number: usize, order: &Install) -> String {
    format!("{} from {}", count(number, "piece"), order.stores.join(" and "))
}

/// Fills the partitions that firmware reads. Returns the code for the boot sector, which is written with the tables.
fn boot_files(target: &Target, manifest: &Verified<Manifest>, root: &root::Root) -> anyhow::Result<[u8; 440]> {
    let layout = target.layout();
    let program = match &manifest.boot.uefi {
        Some(program) => bootloader::verified_bytes(root, program)?,
        None => Vec::new(),
    };
    let config = bootloader::esp_grub_cfg(layout.root_uuid);
    let mut files = Vec::new();
    if !program.is_empty() {
        // Where firmware looks on a disk that it has no boot entry for (UEFI 3.5.1.1), and where Debian's grub-install
        // would put it; the program itself looks for its configuration in the latter.
        files.push(EspFile { path: "EFI/BOOT/BOOTX64.EFI", content: &program });
        files.push(EspFile { path: "EFI/debian/grubx64.efi", content: &program });
        // Each where its own distribution's build of GRUB looks.
        files.push(EspFile { path: "EFI/debian/grub.cfg", content: config.as_bytes() });
        files.push(EspFile { path: "EFI/ubuntu/grub.cfg", content: config.as_bytes() });
    }
    write_esp(target, &files)?;
    let Some(bios) = manifest.boot.bios.as_ref().filter(|_| layout.bios_can_boot()) else { return Ok([0; 440]) };
    let sector = layout.bios.first;
    let core = bootloader::verified_bytes(root, &bios.core_img)?;
    let core = bootloader::core_image(&core, sector, layout.length_bytes(&layout.bios))?;
    let node = target.node(&layout.bios)?;
    let fill = || -> anyhow::Result<()> {
        let device = File::options().read(true).write(true).open(&node)?;
        device.write_all_at(&core, 0)?;
        device.sync_all()?;
        block::drop_cache(&device)?;
        anyhow::ensure!(block::read_direct(&device, 0, core.len())? == core, "it reads back different");
        Ok(())
    };
    fill().with_context(|| format!("writing GRUB's core image to {}", node.display()))?;
    bootloader::boot_code(&bootloader::verified_bytes(root, &bios.boot_img)?, sector)
}

/// Also without a program to put there: the installed system mounts it.
fn write_esp(target: &Target, files: &[EspFile<'_>]) -> anyhow::Result<()> {
    let layout = target.layout();
    let node = target.node(&layout.esp)?;
    let write = || -> anyhow::Result<()> {
        let mut device = File::options().read(true).write(true).open(&node)?;
        let bytes = layout.length_bytes(&layout.esp);
        esp::write(&mut device, bytes, layout.geometry.logical_block, layout.esp_volume, files)?;
        device.sync_all()?;
        block::drop_cache(&device)?;
        esp::check(&mut device, files)
    };
    write().with_context(|| format!("writing the EFI system partition {}", node.display()))
}

/// The agent's own high-water mark.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
