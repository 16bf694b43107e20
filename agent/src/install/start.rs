//! How the installed system is started: by kexec where nothing speaks against it, through the firmware otherwise.
//!
//! Either way the firmware knows the disk before the machine is left, and starts it the next time, whatever happens: a
//! kernel that hangs after kexec ends in the installed system, too, once somebody or something resets the machine.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::inventory::DiskId;
use drophammer_protocol::manifest::{BootBy, BootFiles};
use drophammer_protocol::order::Install;
use nix::mount::MsFlags;
use uuid::Uuid;

use super::drivers::{self, Device, Drivers, Drives, Has};
use super::layout::{Plan, Role};
use super::preflight::{self, Header};
use super::root::Root;
use super::uplink::Uplink;
use super::{ESP_PROGRAM, bootloader};
use crate::efi::{self, Loader};
use crate::inventory::{disks, sysfs};
use crate::kexec;
use crate::net;
use crate::reporter::Reporter;
use crate::signatures;
use crate::sys::block;

const ROOT: &str = "/";

/// The way into the installed system.
#[derive(Debug)]
pub(crate) enum Start {
    /// Its kernel is in memory. The watchdog may run until that takes it over; or why not.
    Kexec { kernel: kexec::Loaded, watchdog: Result<(), String> },
    /// The machine is rebooted, for this reason.
    Firmware(String),
}

/// Looks at everything that could stop the new system from coming up, and gets its kernel into memory unless there is a
/// reason for a reboot. An error is about a system that wouldn't come up either way.
pub(crate) fn prepare(
    root: &Root,
    order: &Install,
    boot: &BootFiles,
    command_line: &str,
    uplink: &Uplink,
    reporter: &Reporter,
) -> anyhow::Result<Start> {
    let kernel = bootloader::verified(root, &boot.kernel)?;
    let initrd = boot.initrd.as_ref().map(|file| bootloader::verified(root, file)).transpose()?;
    let header = Header::parse(&head(&kernel).with_context(|| format!("reading {}", boot.kernel.path))?);
    let release = header.as_ref().and_then(|header| header.release.as_deref());

    let lists = release.map_or(Ok(None), |release| Drivers::read(root, release)).unwrap_or_else(|error| {
        reporter.note(Phase::Kexec, format!("which drivers the image's kernel has isn't known: {error:#}"));
        None
    });
    let kernel_name = release.map_or_else(|| boot.kernel.path.clone(), |release| format!("kernel {release}"));
    let there = Path::new(ROOT);
    let to_server = uplink.mac.and_then(|mac| net::ports(there).into_iter().find(|port| port.mac == mac));
    let to_server = to_server.map(|port| drivers::of_port(there, &port.name)).unwrap_or_default();
    let to_server = drivers::drives(lists.as_ref(), &to_server);
    let mut notes = BTreeSet::new();
    for id in order.drives.values() {
        let disk = disks::disks(there).into_iter().find(|disk| disk.id().as_ref() == Some(id));
        let to_disk = disk.map(|disk| drivers::of_disk(there, &disk.name)).unwrap_or_default();
        let to_disk = drivers::drives(lists.as_ref(), &to_disk);
        notes.extend(verdict(&kernel_name, id, initrd.is_some(), &to_disk, &to_server).map_err(anyhow::Error::msg)?);
    }
    notes.into_iter().for_each(|note| reporter.note(Phase::Kexec, note));

    if order.boot.or(boot.by).unwrap_or_default() == BootBy::Reboot {
        let who = if order.boot.is_some() { "the order" } else { "the image" };
        return Ok(Start::Firmware(format!("{who} asks for it")));
    }
    let length = |file: &File| file.metadata().map_or(0, |metadata| metadata.len());
    let facts = preflight::Facts {
        kernel: &boot.kernel.path,
        header,
        kernel_bytes: length(&kernel),
        initrd_bytes: initrd.as_ref().map_or(0, length),
        available_bytes: preflight::available(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        uefi: Path::new("/sys/firmware/efi").exists(),
    };
    let loaded = match preflight::obstacle(&facts) {
        Some(obstacle) => Err(obstacle),
        None => kexec::load(&kernel, initrd.as_ref(), command_line).map_err(|error| {
            let locked = preflight::locked_down(lockdown().as_deref());
            [Some(format!("{error:#}")), locked].into_iter().flatten().collect::<Vec<_>>().join("; ")
        }),
    };
    match loaded {
        Ok(kernel) => {
            let watchdog = Timer {
                devices: drivers::of_watchdog(there),
                survives: sysfs::text(&there.join("sys/module/watchdog/parameters/stop_on_reboot")).as_deref()
                    == Some("0"),
            };
            let mut loads_modules = false;
            for udev in ["/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/usr/bin/udevadm"] {
                loads_modules |= root.exists(udev)?;
            }
            Ok(Start::Kexec { kernel, watchdog: takes_over(lists.as_ref(), loads_modules, &watchdog) })
        }
        Err(why) => {
            reporter.note(Phase::Kexec, format!("the kernel can't be started by kexec, a reboot will do it: {why}"));
            Ok(Start::Firmware(format!("its kernel can't be started by kexec: {why}")))
        }
    }
}

/// The watchdog of this machine.
struct Timer {
    devices: Vec<Device>,
    /// Its driver leaves it running when the kernel ends.
    survives: bool,
}

/// Drivers that have the hardware count the whole timeout, where others have the kernel feed it in between; and that, when
/// they are loaded, stop a timer that runs (`i6300esb`) or feed it until somebody else does (`iTCO_wdt`).
const TAKE_OVER: [&str; 2] = ["i6300esb", "iTCO_wdt"];

/// Whether the new system is sure to take a running watchdog over, before that resets it.
fn takes_over(lists: Option<&Drivers>, loads_modules: bool, timer: &Timer) -> Result<(), String> {
    let Some(device) = timer.devices.first() else { return Err("it's no hardware, and ends with its kernel".into()) };
    if !TAKE_OVER.contains(&device.module.as_str()) {
        return Err(format!("{} isn't known to go well with a kernel that starts while it runs", device.module));
    }
    if !timer.survives {
        return Err("the running kernel stops it before it ends".into());
    }
    let Some(lists) = lists else { return Err("the image has no lists of its kernel's drivers".into()) };
    if let Some(without) = timer.devices.iter().find(|device| !lists.loads_for(device)) {
        return Err(format!("the image's kernel doesn't load a driver for it ({})", without.modalias));
    }
    let built_in = timer.devices.iter().all(|device| lists.has_for(device) == Has::BuiltIn);
    if !loads_modules && !built_in {
        return Err("nothing in the image loads drivers".into());
    }
    Ok(())
}

/// The beginning of a file; where it is read from next stays as it is.
fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; preflight::HEAD_BYTES];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// What the kernel says of its lockdown. It says so in a file system that nobody else here needs.
fn lockdown() -> Option<String> {
    let place = Path::new("/sys/kernel/security");
    let file = place.join("lockdown");
    if !file.exists() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(Some("securityfs"), place, Some("securityfs"), flags, None::<&str>).ok()?;
    }
    sysfs::text(&file)
}

/// Whether the new system finds its root; and what else is worth a note.
fn verdict(
    kernel: &str,
    disk: &DiskId,
    has_initrd: bool,
    to_disk: &Drives,
    to_server: &Drives,
) -> Result<Vec<String>, String> {
    let mut notes = Vec::new();
    match to_disk {
        Drives::Not(without) => {
            return Err(format!(
                "the image's {kernel} has no driver for the disk {disk}, so it would never find its root ({}): install an \
                 image with a kernel for this hardware",
                drivers::in_words(without)
            ));
        }
        Drives::All { modules } if !modules.is_empty() && !has_initrd => {
            return Err(format!(
                "the image's {kernel} has the driver for the disk {disk} in the module {}, and the image has no initrd to \
                 load it from: build the image with an initrd, or with a kernel that has the driver built in",
                modules.join(", ")
            ));
        }
        Drives::All { modules } if !modules.is_empty() => notes.push(format!(
            "the image's {kernel} drives the disk with the module {}, which its initrd has to bring; what is in there wasn't \
             looked at",
            modules.join(", ")
        )),
        Drives::All { .. } => {}
        Drives::Unknown(why) => notes.push(format!("whether the image's {kernel} drives the disk isn't known: {why}")),
    }
    if let Drives::Not(without) = to_server {
        notes.push(format!(
            "the image's {kernel} has no driver for the port that the server is reached through ({}): the installed system \
             won't be heard of",
            drivers::in_words(without)
        ));
    }
    Ok(notes)
}

/// Has the firmware know the disks, which can be started by now; the first of them comes first. Firmware that doesn't want to
/// is no reason to do without the installed system: it's told what that means.
pub(crate) fn tell_firmware(plan: &Plan, reporter: &Reporter) -> Option<Loader> {
    let starting = plan.tables.iter().filter(|table| table.starts).flat_map(|table| &table.partitions);
    let loaders: Vec<Loader> = starting
        .filter(|partition| matches!(partition.role, Role::Esp(_)))
        .map(|esp| Loader {
            partition: esp.number,
            guid: esp.guid,
            first_block: esp.first,
            blocks: esp.last - esp.first + 1,
            file: ESP_PROGRAM,
        })
        .collect();
    // Each goes to the front.
    loaders.into_iter().rev().fold(None, |_, loader| remember(loader, reporter))
}

fn remember(loader: Loader, reporter: &Reporter) -> Option<Loader> {
    let root = Path::new(ROOT);
    match efi::remember(root, &loader, partitions(root).as_ref()) {
        Ok(None) => None,
        Ok(Some(order)) => {
            reporter.note(Phase::Configure, format!("the firmware's boot order, read back: {order}"));
            Some(loader)
        }
        Err(error) => {
            reporter.note(
                Phase::Configure,
                format!(
                    "the firmware has no boot entry for the disk: {error:#}. It starts the disk all the same where it looks \
                     for /EFI/BOOT/BOOTX64.EFI by itself; if it doesn't, add an entry in its set-up"
                ),
            );
            None
        }
    }
}

/// The names of all partitions that this machine has. `None` if a drive can't be read.
fn partitions(root: &Path) -> Option<BTreeSet<Uuid>> {
    let mut all = BTreeSet::new();
    for disk in disks::disks(root).into_iter().filter(|disk| disk.size_bytes > 0) {
        let file = File::open(sysfs::node(&disk.name)).ok()?;
        let (size, block) = (block::size_bytes(&file).ok()?, block::logical_block(&file).ok()?);
        let mut read = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
        let guids = signatures::partition_guids(&mut read, size, block)?;
        all.extend(guids.iter().filter_map(|guid| guid.parse::<Uuid>().ok()));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_runs_on_only_where_it_is_taken_over() {
        let base = tempfile::tempdir().expect("a directory");
        let folder = base.path().join("lib/modules/6.1");
        fs::create_dir_all(&folder).expect("made");
        let alias = "alias pci:v00008086d000025ABsv* i6300esb\nalias platform:iTCO_wdt iTCO_wdt\n";
        fs::write(folder.join("modules.alias"), alias).expect("written");
        fs::write(folder.join("modules.dep"), "kernel/i6300esb.ko:\nkernel/iTCO_wdt.ko:\n").expect("written");
        fs::write(folder.join("modules.builtin"), "kernel/hpwdt.ko\n").expect("written");
        let lists = Drivers::read(&Root::open(base.path()).expect("opened"), "6.1").expect("read").expect("lists");
        let device = |modalias: &str, module: &str| Device { modalias: modalias.into(), module: module.into() };
        let esb = || vec![device("pci:v00008086d000025ABsv0", "i6300esb")];
        let tco = || vec![device("platform:iTCO_wdt", "iTCO_wdt"), device("pci:v00008086d00001E44", "lpc_ich")];
        for (name, lists, loads_modules, devices, survives, want) in [
            ("all is well", Some(&lists), true, esb(), true, None),
            ("softdog", Some(&lists), true, vec![], true, Some("it's no hardware")),
            ("another driver", Some(&lists), true, vec![device("acpi:X", "hpwdt")], true, Some("hpwdt isn't known")),
            ("its driver stops it", Some(&lists), true, esb(), false, Some("the running kernel stops it")),
            ("no lists", None, true, esb(), true, Some("no lists")),
            ("no driver for what it hangs on", Some(&lists), true, tco(), true, Some("(pci:v00008086d00001E44)")),
            ("no udev", Some(&lists), false, esb(), true, Some("nothing in the image loads drivers")),
        ] {
            let said = takes_over(lists, loads_modules, &Timer { devices, survives }).err();
            assert_eq!(said.is_some(), want.is_some(), "{name}: {said:?}");
            assert!(said.as_deref().unwrap_or_default().contains(want.unwrap_or_default()), "{name}: {said:?}");
        }
    }

    #[test]
    fn a_system_that_wouldnt_find_its_root_is_refused() {
        let disk = DiskId::new("S1", 1 << 30);
        let sas = Device { modalias: "pci:v1000".into(), module: "mpt3sas".into() };
        let not = Drives::Not(vec![sas]);
        let built_in = Drives::All { modules: vec![] };
        let module = Drives::All { modules: vec!["nvme".into()] };
        let unknown = Drives::Unknown("the image has no lists of its kernel's drivers");
        for (name, initrd, to_disk, to_server, want) in [
            ("all built in", false, &built_in, &built_in, Ok(vec![])),
            ("modules for the port", false, &built_in, &module, Ok(vec![])),
            (
                "a module in the initrd",
                true,
                &module,
                &built_in,
                Ok(vec!["the image's kernel 6.1 drives the disk with the module nvme, which its initrd has to bring"]),
            ),
            ("a module and no initrd", false, &module, &built_in, Err("and the image has no initrd to load it from")),
            ("no driver", true, &not, &built_in, Err("(pci:v1000, driven by mpt3sas here)")),
            (
                "no driver for the port",
                true,
                &built_in,
                &not,
                Ok(vec![
                    "the image's kernel 6.1 has no driver for the port that the server is reached through (pci:v1000",
                ]),
            ),
            (
                "nothing is known",
                false,
                &unknown,
                &unknown,
                Ok(vec!["whether the image's kernel 6.1 drives the disk isn't known: the image has no lists"]),
            ),
        ] {
            match (verdict("kernel 6.1", &disk, initrd, to_disk, to_server), want) {
                (Ok(said), Ok(want)) => {
                    assert_eq!(said.len(), want.len(), "{name}: {said:?}");
                    assert!(said.iter().zip(&want).all(|(said, want)| said.starts_with(want)), "{name}: {said:?}");
                }
                (Err(said), Err(want)) => assert!(said.contains(want), "{name}: {said}"),
                (said, _) => panic!("{name}: {said:?}"),
            }
        }
    }
}
