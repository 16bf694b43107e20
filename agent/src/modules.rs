//! Loads the kernel modules that this machine's devices ask for, as udev and modprobe would.
//!
//! Every device in /sys has a `modalias`; `modules.alias` says by pattern which module drives it, `modules.dep` what that
//! module needs. [`Coldplug`] looks again whenever the kernel has announced something new, for as long as the agent
//! runs: a controller's disks, and whatever hangs behind them, turn up late and in no particular order.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::glob::glob;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::reporter::Reporter;

/// Needed by what we do rather than by a device. The code pages are those that the kernel's vfat asks for when mounting.
const ALWAYS: [&str; 8] =
    ["af_packet", "efivarfs", "ext4", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"];

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Finds and loads modules until the agent ends.
#[derive(Clone, Debug)]
pub(crate) struct Coldplug {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Settling>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Settling {
    last_change: Instant,
    first_pass_done: bool,
}

impl Coldplug {
    pub(crate) fn start(reporter: &Reporter) -> Self {
        let state = Mutex::new(Settling { last_change: Instant::now(), first_pass_done: false });
        let coldplug = Self { shared: Arc::new(Shared { state, changed: Condvar::new() }) };
        let (ours, reporter) = (coldplug.clone(), reporter.clone());
        thread::spawn(move || ours.run(&reporter));
        coldplug
    }

    /// Waits until the devices that are there from the start have their drivers.
    pub(crate) fn first_pass(&self) {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.shared.changed.wait_while(state, |s| !s.first_pass_done));
    }

    /// Waits until no device has appeared for `quiet`, for at most `limit`. Returns whether it did get quiet.
    pub(crate) fn settled(&self, quiet: Duration, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let now = Instant::now();
            let state = *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            let quiet_at = state.last_change + quiet;
            if state.first_pass_done && now >= quiet_at {
                return true;
            }
            if now >= deadline {
                return false;
            }
            thread::sleep(LOOK_EVERY.max(quiet_at.saturating_duration_since(now)).min(deadline - now));
        }
    }

    fn run(&self, reporter: &Reporter) {
        let mut loader = match Loader::open() {
            Ok(loader) => Some(loader),
            Err(error) => {
                reporter.note(
                    Phase::Agent,
                    format!("no modules can be loaded, only built-in drivers will work: {error:#}"),
                );
                None
            }
        };
        if let Some(loader) = &mut loader {
            for module in ALWAYS {
                loader.load(module, reporter);
            }
        }
        let mut seen = None;
        loop {
            // Without the counter every look counts as the same: one pass, and settled.
            let counter = fs::read_to_string("/sys/kernel/uevent_seqnum").unwrap_or_default();
            if seen.as_ref() != Some(&counter) {
                seen = Some(counter);
                if let Some(loader) = &mut loader {
                    loader.load_for_devices(Path::new("/sys/devices"), reporter);
                }
                self.update(|s| s.last_change = Instant::now());
            } else {
                self.update(|s| s.first_pass_done = true);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn update(&self, change: impl FnOnce(&mut Settling)) {
        change(&mut self.shared.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.changed.notify_all();
    }
}

/// Loads one module that no device asks for.
pub(crate) fn load(module: &str, reporter: &Reporter) -> anyhow::Result<()> {
    Loader::open()?.load(module, reporter);
    Ok(())
}

struct Loader {
    folder: PathBuf,
    catalogue: Catalogue,
    answered: HashSet<String>,
    tried: HashSet<String>,
}

impl Loader {
    fn open() -> anyhow::Result<Self> {
        let kernel = nix::sys::utsname::uname().context("asking for the kernel's version")?;
        let folder = Path::new("/lib/modules").join(kernel.release());
        let dep = folder.join("modules.dep");
        let dep = fs::read_to_string(&dep).with_context(|| format!("reading {}", dep.display()))?;
        // The others may be missing in an initramfs that has no use for them.
        let [alias, softdep, builtin] = ["modules.alias", "modules.softdep", "modules.builtin"]
            .map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default());
        let catalogue = Catalogue::parse(&alias, &dep, &softdep, &builtin);
        Ok(Self { folder, catalogue, answered: HashSet::new(), tried: HashSet::new() })
    }

    fn load_for_devices(&mut self, devices: &Path, reporter: &Reporter) {
        let mut modaliases = BTreeSet::new();
        collect_modaliases(devices, 0, &mut modaliases);
        for modalias in modaliases {
            if self.answered.contains(&modalias) {
                continue;
            }
            let wanted: Vec<String> = self.catalogue.modules_for(&modalias).map(str::to_owned).collect();
            self.answered.insert(modalias);
            for module in wanted {
                self.load(&module, reporter);
            }
        }
    }

    /// Loads a module and what it needs. A driver that fails leaves its device without one, which the inventory shows;
    /// the rest of the machine still works.
    fn load(&mut self, module: &str, reporter: &Reporter) {
        for step in self.catalogue.load_order(module) {
            if !self.tried.insert(step.name.clone()) {
                continue;
            }
            match insert(&self.folder.join(&step.path), parameters(&step.name)) {
                Ok(()) => {}
                // The driver looked and found no hardware of its own.
                Err(Errno::ENODEV) => {}
                Err(error) => {
                    reporter.note(Phase::Agent, format!("kernel module {} doesn't load: {}", step.name, error.desc()));
                }
            }
        }
    }
}

/// Watchdogs are kept running over a reboot, which is what kexec is to their drivers: it's for us to stop them.
fn parameters(module: &str) -> &'static CStr {
    if module == "watchdog" { c"stop_on_reboot=0" } else { c"" }
}

fn insert(path: &Path, parameters: &CStr) -> Result<(), Errno> {
    let file = File::open(path).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    match finit_module(&file, parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Symbolic links aren't followed: /sys/devices is a tree, the links in it are not. Devices come and go while we look,
/// so what can't be read isn't there.
fn collect_modaliases(folder: &Path, depth: u32, into: &mut BTreeSet<String>) {
    const DEEPEST: u32 = 32;
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth < DEEPEST {
                collect_modaliases(&entry.path(), depth + 1, into);
            }
        } else if entry.file_name() == "modalias"
            && let Ok(modalias) = fs::read_to_string(entry.path())
            && !modalias.trim().is_empty()
        {
            into.insert(modalias.trim().to_owned());
        }
    }
}

/// What `depmod` wrote, in a form that answers questions.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    /// By what stands before the colon (`pci`, `virtio`, …): most patterns needn't be tried.
    aliases: HashMap<String, Vec<(String, String)>>,
    modules: HashMap<String, Module>,
    softdeps: HashMap<String, Vec<String>>,
    builtin: HashSet<String>,
}

#[derive(Clone, Debug)]
struct Module {
    path: PathBuf,
    /// In the order of modules.dep: the last one has to be loaded first.
    needs: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LoadStep {
    name: String,
    path: PathBuf,
}

impl Catalogue {
    pub(crate) fn parse(alias: &str, dep: &str, softdep: &str, builtin: &str) -> Self {
        let mut catalogue = Self::default();
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                let entry = (pattern.to_owned(), module_name(module));
                catalogue.aliases.entry(bus(pattern).to_owned()).or_default().push(entry);
            }
        }
        for line in dep.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(module_name).collect();
                catalogue.modules.insert(module_name(path), Module { path: path.trim().into(), needs });
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(module)) = (words.next(), words.next()) {
                let before = words.skip_while(|w| *w != "pre:").skip(1).take_while(|w| *w != "post:");
                catalogue.softdeps.entry(module_name(module)).or_default().extend(before.map(module_name));
            }
        }
        catalogue.builtin = builtin.lines().map(module_name).collect();
        catalogue
    }

    pub(crate) fn is_built_in(&self, module: &str) -> bool {
        self.builtin.contains(module)
    }

    /// Whether there is a file for it.
    pub(crate) fn is_module(&self, module: &str) -> bool {
        self.modules.contains_key(module)
    }

    pub(crate) fn modules_for(&self, modalias: &str) -> impl Iterator<Item = &str> {
        // A pattern may begin with a wildcard, so that it has no bus to be filed under.
        let anywhere = self.aliases.get(NO_BUS);
        let filed = self.aliases.get(bus(modalias)).filter(|_| bus(modalias) != NO_BUS);
        filed
            .into_iter()
            .chain(anywhere)
            .flatten()
            .filter(move |(pattern, _)| glob(pattern.as_bytes(), modalias.as_bytes()))
            .map(|(_, module)| module.as_str())
    }

    /// What to load, first things first; nothing for a module that is built in or doesn't exist.
    fn load_order(&self, module: &str) -> Vec<LoadStep> {
        let mut order = Vec::new();
        self.append(&module_name(module), &mut HashSet::new(), &mut order);
        order
    }

    fn append(&self, name: &str, visited: &mut HashSet<String>, order: &mut Vec<LoadStep>) {
        if self.builtin.contains(name) || !visited.insert(name.to_owned()) {
            return;
        }
        for before in self.softdeps.get(name).into_iter().flatten() {
            self.append(before, visited, order);
        }
        if let Some(module) = self.modules.get(name) {
            for need in module.needs.iter().rev() {
                self.append(need, visited, order);
            }
            order.push(LoadStep { name: name.to_owned(), path: module.path.clone() });
        }
    }
}

/// `kernel/net/packet/af-packet.ko` → `af_packet`, the name that the kernel uses.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

const NO_BUS: &str = "*";

fn bus(modalias: &str) -> &str {
    let bus = modalias.split(':').next().unwrap_or_default();
    if bus.contains(['*', '?', '[']) || !modalias.contains(':') { NO_BUS } else { bus }
}

/// depmod's four tables and a modalias, separated by NULs: a module is loaded once, from where the table says.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let mut parts = text.splitn(5, '\0');
    let [alias, dep, softdep, builtin, modalias] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let catalogue = Catalogue::parse(alias, dep, softdep, builtin);
    for module in catalogue.modules_for(modalias).chain(catalogue.modules.keys().map(String::as_str)).take(50) {
        let order = catalogue.load_order(module);
        let names: HashSet<_> = order.iter().map(|step| &step.name).collect();
        assert_eq!(names.len(), order.len(), "{order:?}");
        assert!(order.iter().all(|step| catalogue.modules.contains_key(&step.name)), "{order:?}");
        assert!(order.iter().all(|step| !catalogue.builtin.contains(&step.name)), "{order:?}");
    }
    if !modalias.contains(['*', '?', '[']) {
        assert!(glob(modalias.as_bytes(), modalias.as_bytes()));
        assert!(glob(format!("*{modalias}*").as_bytes(), modalias.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEP: &str = "\
kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/net/net_failover.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/lib/crc32c-intel.ko:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
";
    const ALIAS: &str = "\
# Aliases extracted from modules themselves.
alias virtio:d00000001v* virtio_net
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias fs-ext4 ext4
alias *odd loop
";

    fn catalogue() -> Catalogue {
        let softdep = "# comment\nsoftdep ext4 pre: crc32c-intel post: jbd2\n";
        Catalogue::parse(ALIAS, DEP, softdep, "kernel/drivers/nvme/host/nvme.ko\n")
    }

    #[test]
    fn devices_find_their_modules() {
        for (name, modalias, want) in [
            ("a virtio device", "virtio:d00000001v00001AF4", vec!["virtio_net"]),
            ("another one", "virtio:d00000002v00001AF4", vec![]),
            ("by vendor", "pci:v00001AF4d00001000sv0sd0bc02sc00i00", vec!["virtio_pci"]),
            ("by class", "pci:v00008086d00000953sv0sd0bc01sc08i02", vec!["nvme"]),
            ("by vendor and class", "pci:v00001AF4d00000953sv0sd0bc01sc08i02", vec!["virtio_pci", "nvme"]),
            ("a pattern without a bus", "platform:odd", vec!["loop"]),
            ("no bus", "fs-ext4", vec!["ext4"]),
            ("nothing", "", vec![]),
        ] {
            assert_eq!(catalogue().modules_for(modalias).collect::<Vec<_>>(), want, "{name}");
        }
    }

    #[test]
    fn what_is_needed_comes_first() {
        for (name, module, want) in [
            ("a chain", "virtio_net", vec!["failover", "net_failover", "virtio_net"]),
            ("built in", "nvme", vec![]),
            ("unknown", "no_such", vec![]),
            ("softly needed", "ext4", vec!["crc32c_intel", "jbd2", "ext4"]),
            ("by file name", "crc32c-intel", vec!["crc32c_intel"]),
            ("a circle ends", "a", vec!["b", "a"]),
        ] {
            let order: Vec<_> = catalogue().load_order(module).into_iter().map(|s| s.name).collect();
            assert_eq!(order, want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_tables_are_survived(alias: String, dep: String, softdep: String, name: String) {
            let c = Catalogue::parse(&alias, &dep, &softdep, &alias);
            let _ = c.modules_for(&name).count();
            let _ = c.load_order(&name);
        }
    }
}
