//! From an order and an empty disk to a machine that starts its own system.
//!
//! ```text
//! manifest (signature, hash, fit) → layout (partitions, arrays, volumes) → fetch ‖ verify ‖ decompress ‖ write → read back
//!   → name, grow → (its installer) → configure → boot files → kernel into memory → unmount → backup GPT → primary GPT → boot sector
//!   → read back → firmware's boot entry
//! ```
//!
//! Up to `Assembly::take` nothing is touched and a refusal is the worst that happens. From there on the drives hold no
//! partition table until everything on them is complete and durable: whatever goes wrong, and whenever, nothing boots.

mod assembly;
pub mod bench;
mod blocks;
mod bootloader;
mod configure;
mod drivers;
mod esp;
mod fetch;
mod gpt;
mod kept;
mod layout;
mod metal;
mod mkfs;
mod preflight;
mod pull;
mod root;
mod sources;
mod start;
mod stream;
mod systemd;
mod target;
mod unpack;
mod uplink;
mod yaml;

#[cfg(fuzzing)]
pub(crate) use self::{
    bootloader::fuzz as fuzz_bootloader, configure::fuzz as fuzz_accounts, fetch::fuzz as fuzz_fetch,
    gpt::fuzz as fuzz_gpt, metal::fuzz as fuzz_metal, preflight::fuzz as fuzz_kernel, systemd::fuzz as fuzz_systemd,
    unpack::fuzz as fuzz_archive, yaml::fuzz as fuzz_yaml,
};

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::id::Mac;
use drophammer_protocol::inventory::{DiskId, FirmwareKind};
use drophammer_protocol::manifest::{self, BiosBoot, BlockForm, Manifest, TarForm};
use drophammer_protocol::order::{self, Install, Installed};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use drophammer_protocol::space::root_bytes;
use drophammer_protocol::words::{bytes, count, list};
use sha2::{Digest, Sha256};

use self::assembly::Assembly;
use self::configure::By;
use self::esp::EspFile;
use self::fetch::Patience;
use self::gpt::ActiveFlag;
use self::kept::Kept;
use self::layout::{Circumstances, Found, Geometry, Role, Seed, Table};
use self::sources::Sources;
pub(crate) use self::start::Start;
use crate::disk::{self, Access, OpenDisk, OpenError};
use crate::efi::Loader;
use crate::modules;
use crate::net;
use crate::reporter::Reporter;
use crate::sys::{block, ext4};
use crate::untouched::Watched;
use crate::volumes::{lvm, md};

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

/// A complete, bootable disk and a way to start it. The report should be safe on the server before the machine is left.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) report: Installed,
    pub(crate) start: Start,
    /// Where the firmware knows the disk by an entry of its own.
    pub(crate) loader: Option<Loader>,
}

/// Installs as ordered. Reports what it's going to do before it does it. Nothing becomes bootable unless every one of the
/// `watched` drives is proven to be as it was.
pub(crate) fn carry_out(
    order: &Install,
    trust: &Trust,
    watched: &[Watched],
    reporter: &Reporter,
) -> Result<Ready, InstallError> {
    let interrupted = |what: String| reporter.note(Phase::Image, what);
    let sources = Sources::new(&trust.http, &order.stores, Patience::ORDINARY, &interrupted);
    let manifest = manifest(order, trust, &sources)?;
    let (disks, plan) = plan(order, &manifest, watched)?;
    reporter.started(
        Phase::Layout,
        format!("{} on {}: {}{}", manifest.reference(), drives(order, &disks), plan.layout, plan.kept),
    );
    load_drivers(&plan.layout, reporter)?;
    let mut assembly = Assembly::take(disks, plan.layout.clone(), order.disk_key.as_ref())?;
    match build(&mut assembly, order, &manifest, &plan, &sources, reporter) {
        Ok(built) => {
            let kept = match watched.iter().map(Watched::prove).collect::<anyhow::Result<Vec<String>>>() {
                Ok(kept) => kept,
                Err(e) => return Err(InstallError::Failed(assembly.abandon(e))),
            };
            let bootable = assembly.finish(&built.tables)?;
            reporter.done(Phase::Configure, "the disk is bootable, its tables were read back");
            let loader = start::tell_firmware(&plan.layout, reporter);
            let report = Installed {
                root_uuid: plan.layout.root().format.uuid(),
                kernel: built.kernel,
                cmdline: built.command_line,
                bytes_fetched: sources.fetched(),
                bytes_written: bootable.bytes_written,
                peak_memory_bytes: peak_memory_bytes(),
                kept,
            };
            Ok(Ready { report, start: built.start, loader })
        }
        Err(e) => Err(InstallError::Failed(assembly.abandon(e))),
    }
}

/// Whether what a reinstall needs to find is on the drives that it keeps: before anything else is erased for it.
pub(crate) fn find_kept(kept: &order::Kept, watched: &[Watched]) -> Result<(), String> {
    kept::read(&kept.layout, &kept.drives, watched).map(drop)
}

/// `disk S1 (1073741824 bytes) (nvme0n1)`, and what it is in the layout if there are several.
fn drives(order: &Install, disks: &[OpenDisk]) -> String {
    let one = |(name, id): (&String, &DiskId)| {
        let disk = disks.iter().find(|disk| disk.facts.id().as_ref() == Some(id));
        let kernel_name = disk.map_or("", |disk| disk.facts.name.as_str());
        if order.drives.len() == 1 {
            format!("{id} ({kernel_name})")
        } else {
            format!("{id} ({kernel_name}, as {name})")
        }
    };
    list(order.drives.iter().map(one))
}

/// `drive S1`: what is on its label.
fn by_serial(order: &Install) -> String {
    list(order.drives.values().map(|id| format!("drive {}", id.serial)))
}

/// Nothing asks for these by itself: the devices that they drive are yet to be made.
fn load_drivers(layout: &layout::Plan, reporter: &Reporter) -> anyhow::Result<()> {
    let levels = layout.arrays.iter().map(|(_, array)| match array.level {
        md::Level::Raid0 => "raid0",
        md::Level::Raid1 => "raid1",
    });
    let mirrored = layout.groups.iter().flat_map(|group| &group.wanted.volumes).any(|v| v.layout == lvm::Layout::Raid1);
    let mapper = (!layout.groups.is_empty()).then_some("dm_mod").into_iter().chain(mirrored.then_some("dm_raid"));
    let formats = layout.made.iter().filter_map(|made| match made.format {
        mkfs::Format::Xfs(_) => Some("xfs"),
        mkfs::Format::Vfat(_) => Some("vfat"),
        mkfs::Format::Ext3(_) | mkfs::Format::Ext4(_) | mkfs::Format::Swap(_) => None,
    });
    let crypt = (!layout.encrypted.is_empty()).then_some("dm_crypt");
    for module in levels.chain(mapper).chain(crypt).chain(formats) {
        modules::load(module, reporter).with_context(|| format!("loading {module}, which the layout needs"))?;
    }
    Ok(())
}

/// The manifest that the order means, and no other.
fn manifest(order: &Install, trust: &Trust, sources: &Sources<'_>) -> Result<Verified<Manifest>, InstallError> {
    let refused = |why: String| InstallError::Refused(format!("image {}: {why}", order.image));
    // All that a server can have altered is judged while another can still be asked.
    let manifest = sources
        .manifest(&order.image, |bytes| {
            let signed: Signed<Manifest> =
                serde_json::from_slice(bytes).map_err(|e| format!("what lies there isn't a signed manifest: {e}"))?;
            let got = hex::encode(Sha256::digest(&signed.payload));
            if !got.eq_ignore_ascii_case(&order.manifest_sha256) {
                return Err(format!("the manifest there has SHA-256 {got}, the order says {}", order.manifest_sha256));
            }
            manifest::open_signed(&signed, &trust.image_keys).map_err(|e| format!("the manifest there: {e}"))
        })
        .map_err(|e| refused(format!("{e:#}")))?;
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
    layout: layout::Plan,
    kept: Kept,
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
    Tar(&'a TarForm),
}

/// The drives in the layout's order, and what becomes of them.
fn plan<'a>(
    order: &Install,
    manifest: &'a Verified<Manifest>,
    watched: &[Watched],
) -> Result<(Vec<OpenDisk>, Plan<'a>), InstallError> {
    let ports: Vec<Mac> = net::ports(Path::new("/")).into_iter().map(|port| port.mac).collect();
    configure::check(order, &ports).map_err(InstallError::Refused)?;
    order.layout.check().map_err(|faults| InstallError::Refused(format!("the layout can't be: {faults}")))?;
    let (made, stays) = order.layout.apart(&order.kept.keys().map(String::as_str).collect());
    let kept = kept::read(&stays, &order.kept, watched).map_err(InstallError::Refused)?;
    let (mut disks, mut found) = (Vec::new(), Vec::new());
    // One without partitions is the tenant's to use.
    for drive in made.drives.iter().filter(|drive| !drive.partitions.is_empty()) {
        let id = order.drives.get(&drive.name).ok_or_else(|| {
            InstallError::Refused(format!("the order doesn't say which of this machine's drives is {:?}", drive.name))
        })?;
        let disk = open(id)?;
        let logical_block = block::logical_block(&disk.file).context("asking the disk for the size of its blocks")?;
        let geometry = Geometry { bytes: disk.facts.size_bytes, logical_block };
        found.push(Found { name: drive.name.clone(), kernel_name: disk.facts.name.clone(), geometry });
        disks.push(disk);
    }
    let firmware = if Path::new("/sys/firmware/efi").exists() { FirmwareKind::Uefi } else { FirmwareKind::Bios };
    let machine = order.phone_home.machine.to_string();
    let serials = order.drives.values().map(|id| id.serial.as_str());
    let seed: Vec<&str> = [machine.as_str(), &order.manifest_sha256].into_iter().chain(serials).collect();
    let around = Circumstances {
        firmware,
        seed: &Seed::of(&seed),
        hostname: &order.system.hostname,
        now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        tools: &mkfs::Tools::find(),
    };
    let layout = layout::plan(&made, &found, &around).map_err(InstallError::Refused)?;
    bootloader::check(&manifest.boot, firmware).map_err(InstallError::Refused)?;
    let command_line =
        bootloader::command_line(&layout, &manifest.boot, &order.cmdline).map_err(InstallError::Refused)?;
    let root = root_from(manifest, &layout).map_err(InstallError::Refused)?;
    let uplink = uplink::find(&order.phone_home.server);
    Ok((disks, Plan { layout, kept, command_line, firmware, root, uplink }))
}

fn open(id: &DiskId) -> Result<OpenDisk, InstallError> {
    disk::open(id, Access::Buffered).map_err(|e| match e {
        OpenError::Open { .. } => InstallError::Failed(e.into()),
        _ => InstallError::Refused(e.to_string()),
    })
}

/// The block form wherever the root can be what was published: it's what was made for this. Where other file systems are
/// mounted in places that images fill, only a tar is unpacked into both.
fn root_from<'a>(manifest: &'a Manifest, layout: &layout::Plan) -> Result<RootFrom<'a>, String> {
    let root = layout.root();
    let need = match &manifest.block {
        Some(form)
            if matches!(root.format, mkfs::Format::Ext4(_)) && (manifest.tar.is_none() || !layout.divides_image()) =>
        {
            if form.bytes <= root.bytes {
                return Ok(RootFrom::Blocks(form));
            }
            form.bytes
        }
        _ => root_bytes(manifest.installed_bytes),
    };
    match &manifest.tar {
        Some(form) if root_bytes(manifest.installed_bytes) <= root.bytes || layout.divides_image() => {
            Ok(RootFrom::Tar(form))
        }
        None if manifest.block.is_none() => Err("the image has neither a block form nor a tar form".to_owned()),
        None if !matches!(root.format, mkfs::Format::Ext4(_)) => Err(format!(
            "the image was published as an ext4 only, and the layout wants {} at /: publish it with a tar form",
            root.format
        )),
        _ => Err(format!(
            "the image's files need {}, and the file system at / would have {}: choose a larger disk for this machine or a \
             smaller image",
            bytes(need),
            bytes(root.bytes)
        )),
    }
}

/// Drives on which everything is in its place but the tables.
struct Built {
    /// Of each drive, in the layout's order.
    tables: Vec<[gpt::Piece; 3]>,
    start: Start,
    kernel: String,
    command_line: String,
}

fn build(
    assembly: &mut Assembly,
    order: &Install,
    manifest: &Verified<Manifest>,
    plan: &Plan<'_>,
    sources: &Sources<'_>,
    reporter: &Reporter,
) -> anyhow::Result<Built> {
    let layout = &plan.layout;
    for made in layout.made.iter().filter(|made| *made != layout.root()) {
        assembly.make(made)?;
    }
    let root = match &plan.root {
        RootFrom::Blocks(form) => write_blocks(assembly, order, manifest, form, sources, reporter)?,
        RootFrom::Tar(form) => unpack_tar(assembly, order, manifest, form, sources, reporter)?,
    };

    let system = &order.system;
    reporter.started(Phase::Configure, format!("{} with {}", system.hostname, count(system.ssh_keys.len(), "SSH key")));
    let contract = metal::Contract::of(&root)?;
    let mut by = By::Us;
    let (mut boot, mut command_line) = (manifest.boot.clone(), plan.command_line.clone());
    if let Some(contract) = &contract {
        let ports = net::ports(Path::new("/"));
        let root_uuid = layout.root().format.uuid();
        let facts = metal::Facts { root_uuid, raid: !layout.arrays.is_empty(), ports: &ports };
        let at = Path::new(assembly::MOUNT_POINT);
        let fulfil = || contract.fulfil(&root, at, order, &facts, metal::TIME_LIMIT, reporter);
        let handed_over = if contract.makes_the_system() {
            by = By::ItsInstaller;
            // Its grub-install takes no mere directory for an EFI system partition.
            modules::load("vfat", reporter).context("loading vfat, which the image's own installer needs")?;
            assembly.with_esp(&root, fulfil)?
        } else {
            fulfil()?
        };
        if let Some(info) = handed_over.boot {
            boot = info.files(&root, &manifest.boot)?;
            command_line = bootloader::command_line(layout, &boot, &order.cmdline).map_err(anyhow::Error::msg)?;
        }
    }
    let mut agent = File::open("/proc/self/exe").context("opening the agent's own program")?;
    let notes = configure::configure(&root, order, layout, &plan.kept, &plan.uplink, &mut agent, by)
        .with_context(|| format!("configuring {}", system.hostname))?;
    for note in notes {
        reporter.note(Phase::Configure, note);
    }
    bootloader::configure(&root, layout, &boot, &manifest.description, &order.cmdline)
        .context("configuring the boot loader")?;
    let tables = boot_files(assembly, manifest, plan.firmware, &root)?;

    assembly.flush().with_context(|| {
        format!("the {} didn't take everything that was written to it: replace it", by_serial(order))
    })?;
    let start = start::prepare(&root, order, &boot, &command_line, &plan.uplink, reporter)?;
    drop(root);
    assembly.unmount()?;
    Ok(Built { tables, start, kernel: boot.kernel.path, command_line })
}

/// The root file system as it was published, with a name of its own, and as large as its device.
fn write_blocks(
    assembly: &mut Assembly,
    order: &Install,
    manifest: &Manifest,
    form: &BlockForm,
    sources: &Sources<'_>,
    reporter: &Reporter,
) -> anyhow::Result<root::Root> {
    let made = assembly.plan().root().clone();
    reporter.started(
        Phase::Image,
        format!("{} as a file system, in {}", manifest.reference(), pieces(form.pieces.len(), order)),
    );
    blocks::image(manifest, form, sources, assembly.node(&made.on)?, order.read_back, reporter)
        .with_context(|| format!("writing image {} to {}", manifest.reference(), by_serial(order)))?;
    let root = assembly.mount_root()?;
    let name = || -> anyhow::Result<()> {
        if let mkfs::Format::Ext4(uuid) = made.format {
            ext4::set_uuid(root.handle(), uuid)?;
        }
        if let Some(label) = &made.wanted.label {
            ext4::set_label(root.handle(), label)?;
        }
        let blocks = made.bytes / ext4::block_bytes(root.handle())?;
        Ok(ext4::grow(root.handle(), blocks)?)
    };
    name().context("making the image's file system this machine's own")?;
    reporter.done(Phase::Image, format!("{} written and verified, grown to {}", bytes(form.bytes), bytes(made.bytes)));
    assembly.mount_others(&root)?;
    Ok(root)
}

/// File systems made here, and the tar unpacked into them.
fn unpack_tar(
    assembly: &mut Assembly,
    order: &Install,
    manifest: &Manifest,
    form: &TarForm,
    sources: &Sources<'_>,
    reporter: &Reporter,
) -> anyhow::Result<root::Root> {
    assembly.make(assembly.plan().root())?;
    let root = assembly.mount_root()?;
    assembly.mount_others(&root)?;
    reporter.done(Phase::Layout, "the file systems are made and mounted; no drive has a partition table yet");
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

/// What the firmware's entry leads to: the program that upgrades of the installed system keep new.
const ESP_PROGRAM: &str = "EFI/debian/grubx64.efi";

/// Fills the partitions that firmware reads, and makes each drive's table, with the code for its boot sector.
fn boot_files(
    assembly: &Assembly,
    manifest: &Verified<Manifest>,
    firmware: FirmwareKind,
    root: &root::Root,
) -> anyhow::Result<Vec<[gpt::Piece; 3]>> {
    let program = match &manifest.boot.uefi {
        Some(program) => bootloader::verified_bytes(root, program)?,
        None => Vec::new(),
    };
    let config = bootloader::esp_grub_cfg(&assembly.plan().boot().format.uuid());
    let mut files = Vec::new();
    if !program.is_empty() {
        // Where firmware looks on a disk that it has no boot entry for (UEFI 3.5.1.1), and where Debian's grub-install
        // would put it; the program itself looks for its configuration in the latter.
        files.push(EspFile { path: "EFI/BOOT/BOOTX64.EFI", content: &program });
        files.push(EspFile { path: ESP_PROGRAM, content: &program });
        // Each where its own distribution's build of GRUB looks.
        files.push(EspFile { path: "EFI/debian/grub.cfg", content: config.as_bytes() });
        files.push(EspFile { path: "EFI/ubuntu/grub.cfg", content: config.as_bytes() });
    }
    let mut codes = BTreeMap::new();
    for (table, partition, node) in assembly.partitions() {
        let device = Device { node: node?, bytes: table.length_bytes(partition) };
        match partition.role {
            Role::Esp(volume) => esp::fill(device.node, device.bytes, table.geometry.logical_block, volume, &files)?,
            Role::BiosBoot => {
                if let Some(bios) = manifest.boot.bios.as_ref().filter(|_| table.geometry.logical_block == 512) {
                    codes.insert(&table.drive, write_core(&device, partition.first, bios, root)?);
                }
            }
            Role::Root | Role::Data | Role::Swap | Role::Raid | Role::Lvm => {}
        }
    }
    let active = |table: &Table| match firmware {
        FirmwareKind::Bios if table.starts => ActiveFlag::Set,
        FirmwareKind::Bios | FirmwareKind::Uefi => ActiveFlag::Clear,
    };
    let tables = assembly.plan().tables.iter();
    tables.map(|table| gpt::tables(table, codes.get(&table.drive).unwrap_or(&[0; 440]), active(table))).collect()
}

struct Device<'a> {
    node: &'a Path,
    bytes: u64,
}

/// Returns the code for the boot sector, which is written with the tables.
fn write_core(device: &Device<'_>, sector: u64, bios: &BiosBoot, root: &root::Root) -> anyhow::Result<[u8; 440]> {
    let core = bootloader::verified_bytes(root, &bios.core_img)?;
    let core = bootloader::core_image(&core, sector, device.bytes)?;
    let fill = || -> anyhow::Result<()> {
        let partition = File::options().read(true).write(true).open(device.node)?;
        partition.write_all_at(&core, 0)?;
        partition.sync_all()?;
        block::drop_cache(&partition)?;
        anyhow::ensure!(block::read_direct(&partition, 0, core.len())? == core, "it reads back different");
        Ok(())
    };
    fill().with_context(|| format!("writing GRUB's core image to {}", device.node.display()))?;
    bootloader::boot_code(&bootloader::verified_bytes(root, &bios.boot_img)?, sector)
}

/// The agent's own high-water mark.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
