//! One virtual server: its drives, its power switch, its console.
//!
//! A machine keeps its drives and its firmware's memory over power cuts, as a real one does, and loses everything when
//! its directory goes. What a guest wrote before a power cut stays written.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::accel::Accel;
use crate::frailty::Frailty;
use crate::net::{self, Loss, Namespace, Process};
use crate::qemu::{self, BootFrom, MachineSpec, Ovmf};
use crate::qmp::Qmp;
use crate::{QEMU, console, nbd};

#[derive(Debug)]
pub struct Machine {
    pub spec: MachineSpec,
    dir: PathBuf,
    tap: String,
    namespace: Namespace,
    accel: Accel,
    power: Mutex<Power>,
    /// One for each drive.
    frailties: Vec<Arc<Frailty>>,
}

#[derive(Debug, Default)]
struct Power {
    qemu: Option<Process>,
    /// Where in the console's log the last power-on begins.
    log_start: u64,
}

impl Machine {
    /// A machine that is off, with empty drives, in a directory of its own.
    pub(crate) fn create(
        spec: MachineSpec,
        dir: &Path,
        tap: String,
        namespace: &Namespace,
        accel: Accel,
    ) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        namespace.add_tap(&tap)?;
        let frailties: Vec<Arc<Frailty>> = spec.disks.iter().map(|_| Arc::default()).collect();
        for (n, (disk, frailty)) in spec.disks.iter().zip(&frailties).enumerate() {
            let path = dir.join(qemu::image(n));
            File::create(&path)
                .and_then(|file| file.set_len(disk.size))
                .with_context(|| format!("creating the drive {}", path.display()))?;
            if let Some(vice) = disk.kind.vice() {
                nbd::serve(&path, &dir.join(qemu::nbd_socket(n)), vice, Arc::clone(frailty))?;
            }
        }
        if let Some(Ovmf { vars, .. }) = spec.firmware.ovmf() {
            fs::copy(vars, dir.join(qemu::VARS)).with_context(|| format!("copying {vars}, from the package ovmf"))?;
        }
        let namespace = namespace.clone();
        Ok(Self { spec, dir: dir.to_owned(), tap, namespace, accel, power: Mutex::default(), frailties })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    // --- power ----------------------------------------------------------------------------------------------------

    /// Switches it on, if it isn't. It boots from the network first.
    pub fn power_on(&self) -> Result<()> {
        self.start(&mut self.power(), BootFrom::Network)
    }

    /// Pulls the plug: the guest gets no chance to do anything.
    pub fn power_cut(&self) {
        self.power().qemu = None;
    }

    pub fn power_cycle(&self) -> Result<()> {
        self.cold_boot(BootFrom::Network)
    }

    /// Off and on again, this once from where it's told.
    pub fn cold_boot(&self, from: BootFrom) -> Result<()> {
        let mut power = self.power();
        power.qemu = None;
        self.start(&mut power, from)
    }

    /// The reset button.
    pub fn reset(&self) -> Result<()> {
        self.monitor("system_reset", json!({})).with_context(|| format!("resetting {}", self.spec.name))
    }

    pub fn is_on(&self) -> bool {
        self.power().qemu.as_mut().is_some_and(|qemu| qemu.status().is_none())
    }

    /// Waits until it has switched itself off.
    pub fn wait_off(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_on() {
            ensure!(Instant::now() < deadline, "{} is still on after {} s", self.spec.name, limit.as_secs());
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn start(&self, power: &mut Power, from: BootFrom) -> Result<()> {
        if power.qemu.as_mut().is_some_and(|qemu| qemu.status().is_none()) {
            return Ok(());
        }
        power.log_start = fs::metadata(self.dir.join(qemu::CONSOLE_LOG)).map_or(0, |m| m.len());
        for socket in [qemu::MONITOR, qemu::CONSOLE] {
            match fs::remove_file(self.dir.join(socket)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("removing the old {socket} of {}", self.spec.name));
                }
                _ => {}
            }
        }
        let log = self.dir.join("qemu.log");
        let log_file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let stdout = log_file.try_clone().context("sharing QEMU's log")?;
        let arguments = qemu::arguments(&self.spec, &self.tap, self.accel, from);
        let mut qemu = Process::start(
            self.namespace
                .command(QEMU)
                .args(&arguments)
                .current_dir(&self.dir)
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(log_file),
        )
        .with_context(|| format!("starting {QEMU}, from the package qemu-system-x86"))?;
        let deadline = Instant::now() + START_LIMIT;
        while Qmp::connect(&self.dir, qemu::MONITOR).is_err() {
            if let Some(status) = qemu.status() {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("switching on {}: QEMU ended with {status}: {}", self.spec.name, said.trim());
            }
            ensure!(Instant::now() < deadline, "switching on {}: QEMU doesn't answer", self.spec.name);
            thread::sleep(Duration::from_millis(20));
        }
        power.qemu = Some(qemu);
        Ok(())
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        // Every change of it is one assignment, so a panic elsewhere can't have left it half done.
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn monitor(&self, command: &str, arguments: serde_json::Value) -> Result<()> {
        ensure!(self.is_on(), "{} is off", self.spec.name);
        Qmp::connect(&self.dir, qemu::MONITOR)?.execute(command, arguments).map(drop)
    }

    // --- console --------------------------------------------------------------------------------------------------

    /// What the console has said since the last power-on, without escape sequences.
    pub fn console_text(&self) -> Result<String> {
        let start = self.power().log_start;
        self.console_since(start)
    }

    /// A place in the console's log: what is said from now on comes after it.
    pub fn console_mark(&self) -> u64 {
        fs::metadata(self.dir.join(qemu::CONSOLE_LOG)).map_or(0, |m| m.len())
    }

    pub fn console_since(&self, mark: u64) -> Result<String> {
        let path = self.dir.join(qemu::CONSOLE_LOG);
        let raw = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.with_context(|| format!("reading {}", path.display()))?,
        };
        let from = usize::try_from(mark).unwrap_or(usize::MAX);
        Ok(console::plain(raw.get(from..).unwrap_or_default()))
    }

    /// Waits until the console says `text`; what it had said since the last power-on counts.
    pub fn wait_console(&self, text: &str, limit: Duration) -> Result<String> {
        let start = self.power().log_start;
        self.wait_console_since(start, text, limit)
    }

    /// Waits until the console says `text` after a mark.
    pub fn wait_console_since(&self, mark: u64, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            // Looked at before the text is, so that the last words of a machine that went off are heard.
            let on = self.is_on();
            let said = self.console_since(mark)?;
            if said.contains(text) {
                return Ok(said);
            }
            let name = &self.spec.name;
            let last = || console::last_lines(&said, 15).join("\n  ");
            ensure!(on, "waiting for {text:?} on the console of {name}: it went off. It had said:\n  {}", last());
            ensure!(
                Instant::now() < deadline,
                "waiting for {text:?} on the console of {name}: not within {} s. It said:\n  {}",
                limit.as_secs(),
                last()
            );
            thread::sleep(POLL);
        }
    }

    /// Types at the console, and waits until the guest's serial port has taken it: QEMU forgets what it hasn't read yet
    /// when a line is hung up.
    pub fn type_in(&self, text: &str) -> Result<()> {
        let typed = || -> Result<()> {
            let mut console = net::connect(&self.dir, qemu::CONSOLE)?;
            console.write_all(text.as_bytes())?;
            let deadline = Instant::now() + TYPE_LIMIT;
            while !net::is_taken(&console)? {
                ensure!(Instant::now() < deadline, "nobody read it for {} s", TYPE_LIMIT.as_secs());
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        };
        typed().with_context(|| format!("typing at the console of {}", self.spec.name))
    }

    // --- drives ---------------------------------------------------------------------------------------------------

    /// The raw image of a drive.
    pub fn disk_path(&self, serial: &str) -> Result<PathBuf> {
        let n = self.spec.disks.iter().position(|d| d.serial == serial);
        let n = n.with_context(|| format!("{} has no drive with the serial {serial}", self.spec.name))?;
        Ok(self.dir.join(qemu::image(n)))
    }

    /// What a drive of the kind [`DiskKind::Frail`](qemu::DiskKind::Frail) is told, and what it has seen.
    pub fn frailty(&self, serial: &str) -> Result<&Frailty> {
        let n = self.spec.disks.iter().position(|disk| disk.serial == serial);
        let frailty = n.and_then(|n| self.frailties.get(n));
        frailty.map(Arc::as_ref).with_context(|| format!("{} has no drive with the serial {serial}", self.spec.name))
    }

    pub fn read_disk(&self, serial: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let path = self.disk_path(serial)?;
        let mut data = vec![0; length];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut data, offset))
            .with_context(|| format!("reading {length} bytes at {offset} of {}", path.display()))?;
        Ok(data)
    }

    /// Writes past the machine, as a failing drive or a former tenant would have.
    pub fn write_disk(&self, serial: &str, offset: u64, data: &[u8]) -> Result<()> {
        let path = self.disk_path(serial)?;
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.write_all_at(data, offset))
            .with_context(|| format!("writing {} bytes at {offset} of {}", data.len(), path.display()))
    }

    // --- network --------------------------------------------------------------------------------------------------

    /// Pulls the network cable, or plugs it in; the guest sees its carrier go and come.
    pub fn cable(&self, cable: Cable) -> Result<()> {
        self.monitor("set_link", json!({ "name": qemu::NIC, "up": cable == Cable::Plugged }))
            .with_context(|| format!("changing the network cable of {}", self.spec.name))
    }

    /// Loses about `percent` of its packets both ways until the answer is dropped.
    pub fn lose_packets(&self, percent: u8) -> Result<Loss> {
        self.namespace.lose(&self.tap, percent)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    Plugged,
    Pulled,
}

const POLL: Duration = Duration::from_millis(100);
const START_LIMIT: Duration = Duration::from_secs(30);
const TYPE_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{DiskKind, DiskSpec, Firmware};

    /// Says a word on the serial port, then halts: `mov dx, 0x3f8; (mov al, c; out dx, al)…; hlt; jmp`.
    fn boot_sector(word: &str) -> Vec<u8> {
        let mut sector = vec![0xba, 0xf8, 0x03];
        word.bytes().for_each(|c| sector.extend([0xb0, c, 0xee]));
        sector.extend([0xf4, 0xeb, 0xfd]);
        sector.resize(510, 0);
        sector.extend([0x55, 0xaa]);
        sector
    }

    #[test]
    fn a_machine_boots_its_drive_and_keeps_it_over_power_cuts() {
        let _slot = crate::slots::Slots::take(&crate::kit::slots_dir().expect("a cache"), 1).expect("a slot");
        let dir = tempfile::tempdir().expect("a directory");
        let namespace = Namespace::create().expect("a namespace");
        namespace.build().expect("a bridge");
        let accel = Accel::Tcg;
        let mut spec = MachineSpec::numbered(1, Firmware::Bios);
        // A second drive that lies goes through the NBD server.
        spec.disks.push(DiskSpec { kind: DiskKind::KeepsData, ..DiskSpec::new("liar", 1 << 20) });
        let machine = Machine::create(spec, &dir.path().join("m1"), "tap1".into(), &namespace, accel).expect("created");
        assert!(!machine.is_on());
        machine.write_disk("m1-nvme0", 0, &boot_sector("FROM-DISK")).expect("written");

        let limit = accel.patience(Duration::from_secs(20));
        machine.cold_boot(BootFrom::Disk).expect("on");
        machine.wait_console("FROM-DISK", limit).expect("its boot sector");
        let mark = machine.console_mark();
        machine.reset().expect("a reset");
        machine.wait_console_since(mark, "FROM-DISK", limit).expect("its boot sector again");
        machine.cable(Cable::Pulled).expect("pulled");
        machine.power_cut();
        assert!(!machine.is_on());
        let error = machine.reset().expect_err("it is off");
        assert!(error.to_string().contains("resetting m1"), "{error:#}");
        assert_eq!(machine.read_disk("m1-nvme0", 510, 2).expect("read"), [0x55, 0xaa]);

        machine.power_on().expect("on again");
        // Nobody answers on this network; that the card's ROM asks at all is the point.
        let wait_port = |state: &str| {
            let deadline = Instant::now() + limit;
            let is = || {
                let mut show = namespace.command("ip");
                let child = net::spawn(show.args(["-brief", "link", "show", "tap1"]).stdout(Stdio::piped()));
                let output = child.and_then(std::process::Child::wait_with_output).expect("ip runs");
                String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == state)
            };
            while !is() {
                assert!(Instant::now() < deadline, "the port is never {state}");
            }
        };
        let loss = machine.lose_packets(50).expect("a lossy port");
        wait_port("DOWN");
        drop(loss);
        wait_port("UP");
        machine.wait_console("Configuring (net0 52:54:00:77:00:01)", limit).expect("a network boot");
        let error = machine.wait_console("never said", Duration::from_millis(300)).expect_err("not said");
        assert!(error.to_string().contains("iPXE"), "{error:#}");
    }

    #[test]
    fn what_qemu_refuses_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let namespace = Namespace::create().expect("a namespace");
        namespace.build().expect("a bridge");
        let mut spec = MachineSpec::numbered(1, Firmware::Bios);
        spec.clock = Some("yesterday".into());
        let machine =
            Machine::create(spec, &dir.path().join("m1"), "tap1".into(), &namespace, Accel::Tcg).expect("made");
        let error = machine.power_on().expect_err("not a date");
        assert!(error.to_string().contains("switching on m1") && error.to_string().contains("date"), "{error:#}");
    }
}
