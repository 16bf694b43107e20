//! Whether the installed system's kernel can drive what it needs first: the disk that its root is on, and the port that the
//! server is reached through.
//!
//! Devices say what they are (`modalias`), and which module of the running kernel drives them; the image's own lists say
//! what its kernel has for the one or by the name of the other. What isn't listed isn't guessed: a kernel without modules
//! has no lists, and may drive everything.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::root::Root;
use crate::inventory::sysfs;
use crate::modules::Catalogue;

/// `modules.alias` of a kernel with everything has 2 MiB.
const MAX_LIST_BYTES: u64 = 32 << 20;

/// One device on the way to what is needed, such as a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) modalias: String,
    /// The module that drives it now.
    pub(crate) module: String,
}

/// What the image's kernel has for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    BuiltIn,
    Modules(Vec<String>),
    Nothing,
}

/// What the image says about its kernel's drivers.
#[derive(Debug)]
pub(crate) struct Drivers {
    catalogue: Catalogue,
    /// Modules that nothing loads by itself.
    blacklisted: Vec<String>,
}

impl Drivers {
    /// `None` if the image has no lists for this kernel.
    pub(crate) fn read(root: &Root, release: &str) -> anyhow::Result<Option<Self>> {
        let folder = format!("/lib/modules/{release}");
        let (Some(dep), Some(builtin)) =
            (list(root, &format!("{folder}/modules.dep"))?, list(root, &format!("{folder}/modules.builtin"))?)
        else {
            return Ok(None);
        };
        let alias = list(root, &format!("{folder}/modules.alias"))?.unwrap_or_default();
        let mut blacklisted = Vec::new();
        for place in ["/etc/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"] {
            for name in root.names(place)? {
                let name = name.to_string_lossy();
                if name.ends_with(".conf") {
                    let text = list(root, &format!("{place}/{name}"))?.unwrap_or_default();
                    blacklisted.extend(blacklist(&text));
                }
            }
        }
        Ok(Some(Self { catalogue: Catalogue::parse(&alias, &dep, "", &builtin), blacklisted }))
    }

    pub(crate) fn has_for(&self, device: &Device) -> Has {
        if self.catalogue.is_built_in(&device.module) {
            return Has::BuiltIn;
        }
        let by_alias = self.catalogue.modules_for(&device.modalias);
        let mut modules: Vec<String> = by_alias.map(str::to_owned).collect();
        if modules.iter().any(|module| self.catalogue.is_built_in(module)) {
            return Has::BuiltIn;
        }
        modules.push(device.module.clone());
        modules.retain(|module| self.catalogue.is_module(module));
        modules.dedup();
        if modules.is_empty() { Has::Nothing } else { Has::Modules(modules) }
    }

    /// Whether something that loads modules for devices, such as udev, would load one for this device.
    pub(crate) fn loads_for(&self, device: &Device) -> bool {
        let mut loaded = self.catalogue.modules_for(&device.modalias);
        self.catalogue.is_built_in(&device.module)
            || loaded.any(|module| {
                self.catalogue.is_built_in(module)
                    || (self.catalogue.is_module(module) && !self.blacklisted.iter().any(|no| no == module))
            })
    }
}

/// modprobe.d(5)
fn blacklist(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["blacklist", module, ..] | ["install", module, "/bin/true" | "/bin/false", ..] => {
            Some(module.replace('-', "_"))
        }
        _ => None,
    })
}

fn list(root: &Root, path: &str) -> anyhow::Result<Option<String>> {
    let Some(file) = root.file(path)? else { return Ok(None) };
    text(file).map(Some).with_context(|| format!("reading {path} of the image"))
}

fn text(file: File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_LIST_BYTES + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_LIST_BYTES, "it is larger than such a list can be");
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A disk with all that leads to it, nearest first; empty if it isn't known what that is.
pub(crate) fn of_disk(root: &Path, name: &str) -> Vec<Device> {
    leading_to(root, &root.join("sys/block").join(name))
}

/// The same of a network port.
pub(crate) fn of_port(root: &Path, name: &str) -> Vec<Device> {
    leading_to(root, &root.join("sys/class/net").join(name))
}

/// The same of the watchdog; what only the kernel imagines leads nowhere.
pub(crate) fn of_watchdog(root: &Path) -> Vec<Device> {
    leading_to(root, &root.join("sys/class/watchdog/watchdog0"))
}

fn leading_to(root: &Path, link: &Path) -> Vec<Device> {
    let (Ok(device), Ok(top)) = (fs::canonicalize(link), fs::canonicalize(root.join("sys/devices"))) else {
        return Vec::new();
    };
    device.ancestors().take_while(|place| place.starts_with(&top) && **place != *top).filter_map(device_at).collect()
}

fn device_at(place: &Path) -> Option<Device> {
    let driver: PathBuf = place.join("driver");
    let name = sysfs::link_name(&driver)?;
    let modalias = sysfs::text(&place.join("modalias"))?;
    // Every kernel drives bridges (PCI class 06), and the lists don't say so.
    if modalias.starts_with("pci:") && modalias.contains("bc06") {
        return None;
    }
    let module = sysfs::link_name(&driver.join("module")).unwrap_or(name);
    Some(Device { modalias, module: module.replace('-', "_") })
}

/// What a kernel has to be told of devices that it needs before everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Drives {
    /// All of them, and by which modules.
    All { modules: Vec<String> },
    /// It isn't known what leads there, or what the kernel has.
    Unknown(&'static str),
    /// It has no driver for these.
    Not(Vec<Device>),
}

pub(crate) fn drives(drivers: Option<&Drivers>, devices: &[Device]) -> Drives {
    let Some(drivers) = drivers else { return Drives::Unknown("the image has no lists of its kernel's drivers") };
    if devices.is_empty() {
        return Drives::Unknown("the running kernel doesn't say what drives it");
    }
    let (mut modules, mut without) = (Vec::new(), Vec::new());
    for device in devices {
        match drivers.has_for(device) {
            Has::BuiltIn => {}
            Has::Modules(more) => modules.extend(more),
            Has::Nothing => without.push(device.clone()),
        }
    }
    if without.is_empty() { Drives::All { modules } } else { Drives::Not(without) }
}

pub(crate) fn in_words(devices: &[Device]) -> String {
    let words = devices.iter().map(|device| format!("{}, driven by {} here", device.modalias, device.module));
    words.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const NVME: &str = "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02";
    const CARD: &str = "virtio:d00000001v00001AF4";
    const FUNCTION: &str = "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00";

    /// A machine with an NVMe drive behind a bridge, and a virtio card.
    fn machine(root: &Path) {
        let device = |place: &str, modalias: &str, driver: &str, module: Option<&str>| {
            let place = root.join("sys/devices").join(place);
            let drivers = root.join("sys/drivers").join(driver);
            fs::create_dir_all(&place).expect("a device");
            fs::create_dir_all(&drivers).expect("a driver");
            fs::write(place.join("modalias"), format!("{modalias}\n")).expect("its name");
            symlink(&drivers, place.join("driver")).expect("its driver");
            if let Some(module) = module {
                let modules = root.join("sys/module").join(module);
                fs::create_dir_all(&modules).expect("a module");
                symlink(modules, drivers.join("module")).expect("its module");
            }
        };
        device("pci0000:00/0000:00:01.0", "pci:v00001B36d0000000Csv0sd0bc06sc04i00", "pcieport", None);
        device("pci0000:00/0000:00:01.0/0000:01:00.0", NVME, "nvme", Some("nvme"));
        device("pci0000:00/0000:00:02.0", FUNCTION, "virtio-pci", Some("virtio_pci"));
        device("pci0000:00/0000:00:02.0/virtio0", CARD, "virtio_net", None);
        for (class, name, place) in [
            ("block", "nvme0n1", "pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0/nvme0n1"),
            ("class/net", "eth0", "pci0000:00/0000:00:02.0/virtio0/net/eth0"),
            ("block", "loop0", "virtual/block/loop0"),
        ] {
            let place = root.join("sys/devices").join(place);
            fs::create_dir_all(&place).expect("a device");
            fs::create_dir_all(root.join("sys").join(class)).expect("a class");
            symlink(&place, root.join("sys").join(class).join(name)).expect("a link");
        }
    }

    fn device(modalias: &str, module: &str) -> Device {
        Device { modalias: modalias.into(), module: module.into() }
    }

    #[test]
    fn what_leads_to_a_device() {
        let root = tempfile::tempdir().expect("a directory");
        machine(root.path());
        assert_eq!(of_disk(root.path(), "nvme0n1"), [device(NVME, "nvme")]);
        assert_eq!(of_port(root.path(), "eth0"), [device(CARD, "virtio_net"), device(FUNCTION, "virtio_pci")]);
        assert_eq!(of_disk(root.path(), "loop0"), []);
        assert_eq!(of_disk(root.path(), "sdz"), []);
    }

    #[test]
    fn what_the_image_has_for_it() {
        let base = tempfile::tempdir().expect("a directory");
        let folder = base.path().join("usr/lib/modules/6.1.0");
        fs::create_dir_all(&folder).expect("made");
        symlink("usr/lib", base.path().join("lib")).expect("linked");
        fs::create_dir_all(base.path().join("etc/modprobe.d")).expect("made");
        let root = Root::open(base.path()).expect("opened");
        assert!(Drivers::read(&root, "6.1.0").expect("read").is_none(), "no lists");
        let alias = "alias pci:v*d*sv*sd*bc01sc08i02* nvme\nalias virtio:d00000001v* virtio_net\n\
                     alias pci:v00008086d000025ABsv*sd*bc*sc*i* i6300esb\nalias pci:v00001111d* gone\n";
        fs::write(folder.join("modules.alias"), alias).expect("written");
        let dep = "kernel/nvme.ko.xz: kernel/nvme-core.ko.xz\nkernel/virtio_net.ko:\nkernel/i6300esb.ko:\n";
        fs::write(folder.join("modules.dep"), dep).expect("written");
        fs::write(folder.join("modules.builtin"), "kernel/drivers/virtio/virtio_pci.ko\n").expect("written");
        fs::write(base.path().join("etc/modprobe.d/no.conf"), "# x\nblacklist i6300esb\n").expect("written");
        let drivers = Drivers::read(&root, "6.1.0").expect("read").expect("lists");

        let esb = "pci:v00008086d000025ABsv0sd0bc08sc80i00";
        for (name, device, has, loads) in [
            ("by alias", device(NVME, "other"), Has::Modules(vec!["nvme".into()]), true),
            ("built in, by name", device(FUNCTION, "virtio_pci"), Has::BuiltIn, true),
            ("by name alone", device("acpi:X:", "virtio_net"), Has::Modules(vec!["virtio_net".into()]), false),
            ("blacklisted", device(esb, "i6300esb"), Has::Modules(vec!["i6300esb".into()]), false),
            ("a name without a file", device("pci:v00001111d2", "gone"), Has::Nothing, false),
            ("nothing", device("pci:v00001000d2", "mpt3sas"), Has::Nothing, false),
        ] {
            assert_eq!((drivers.has_for(&device), drivers.loads_for(&device)), (has, loads), "{name}");
        }

        let (nvme, pci, sas) = (device(NVME, "nvme"), device(FUNCTION, "virtio_pci"), device("pci:v1", "mpt3sas"));
        for (name, drivers, devices, want) in [
            ("all", Some(&drivers), vec![nvme.clone(), pci.clone()], Drives::All { modules: vec!["nvme".into()] }),
            ("built in", Some(&drivers), vec![pci], Drives::All { modules: vec![] }),
            ("one without", Some(&drivers), vec![nvme.clone(), sas.clone()], Drives::Not(vec![sas])),
            ("no lists", None, vec![nvme], Drives::Unknown("the image has no lists of its kernel's drivers")),
            ("no devices", Some(&drivers), vec![], Drives::Unknown("the running kernel doesn't say what drives it")),
        ] {
            assert_eq!(drives(drivers, &devices), want, "{name}");
        }
    }
}
