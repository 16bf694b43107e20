//! A lab per test, and the few things that every test asks of one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use drophammer_control::client::Client;
use drophammer_lab::kit::{self, Image, Kit};
use drophammer_lab::lab::{Lab, LabSpec};
use drophammer_lab::qemu::{Firmware, MachineSpec};
use drophammer_lab::server::ServerSpec;
use drophammer_lab::vm::Machine;
use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::machine::{self, Allocation, State};
use drophammer_protocol::system::System;
use tempfile::TempDir;

pub(crate) const DROPHAMMER: &str = env!("CARGO_BIN_EXE_drophammer");

/// Boot files, a signing key and a store with the tiny image; made by the first test that needs them.
pub(crate) fn kit() -> &'static Kit {
    static KIT: OnceLock<Kit> = OnceLock::new();
    KIT.get_or_init(|| {
        kit::prepare(&[Image::Tiny], &mut |line| eprintln!("{line}")).expect("the lab's boot files and image")
    })
}

pub(crate) struct Rig {
    pub(crate) lab: Lab,
    pub(crate) client: Client,
    pub(crate) dir: TempDir,
}

/// A lab with a running boot server and room for `machines`.
pub(crate) fn rig(machines: usize) -> Rig {
    Rig::start(machines, 3, &kit().images_dir)
}

/// What every lab's server is told.
pub(crate) fn server() -> ServerSpec {
    ServerSpec::new(PathBuf::from(DROPHAMMER), kit())
}

impl Rig {
    pub(crate) fn start(machines: usize, max_failures: u32, images_dir: &Path) -> Self {
        Self::of(machines, ServerSpec { max_failures, images_dir: images_dir.to_owned(), ..server() })
    }

    pub(crate) fn of(machines: usize, server: ServerSpec) -> Self {
        let dir = tempfile::Builder::new().prefix("drophammer-").tempdir().expect("a directory for the lab");
        let lab = Lab::start(LabSpec { dir: dir.path().join("lab"), server, machines }).expect("a lab");
        let client = lab.client().expect("an operator");
        Self { lab, client, dir }
    }

    /// Machine `n`, switched off.
    pub(crate) fn machine(&self, n: u8, firmware: Firmware) -> Arc<Machine> {
        self.lab.add_machine(MachineSpec::numbered(n, firmware)).expect("a machine")
    }

    /// A machine that was switched on, erased, and waits.
    pub(crate) fn waiting(&self, n: u8, firmware: Firmware) -> Arc<Machine> {
        let machine = self.machine(n, firmware);
        machine.power_on().expect("switched on");
        self.wait_state(&machine, State::Waiting);
        machine
    }

    /// A machine that runs the tiny image.
    pub(crate) fn running(&self, n: u8, firmware: Firmware) -> Arc<Machine> {
        let machine = self.waiting(n, firmware);
        self.allocate(&machine, "tiny");
        self.wait_state(&machine, State::Running);
        machine
    }

    pub(crate) fn allocate(&self, machine: &Machine, image: &str) {
        let name = &machine.spec.name;
        self.client.allocate(name, &allocation(image, &format!("{name}-host"))).expect("allocated");
    }

    pub(crate) fn limit(&self, seconds: u64) -> Duration {
        self.lab.accel.patience(Duration::from_secs(seconds))
    }

    pub(crate) fn show(&self, machine: &Machine) -> Option<machine::Machine> {
        self.client.machine(&machine.spec.name).ok()
    }

    /// Waits until the server says that the machine is in `state`. A machine that is quarantined instead has failed.
    pub(crate) fn wait_state(&self, machine: &Machine, state: State) -> machine::Machine {
        self.wait_for(machine, &format!("{state}"), |now, _| {
            assert!(
                state == State::Quarantined || now.state != State::Quarantined,
                "{} was quarantined: {}\n{}",
                now.name,
                now.reason.as_deref().unwrap_or("for no reason"),
                self.story(machine)
            );
            now.state == state
        })
    }

    /// Waits until an event of `phase` with `step` is there, `after` a position in the machine's history.
    pub(crate) fn wait_event(&self, machine: &Machine, after: u64, phase: Phase, step: Step) -> Recorded {
        let mut found = None;
        self.wait_for(machine, &format!("{phase:?} {step:?}"), |_, events| {
            found = events.iter().find(|e| e.position > after && e.phase == phase && e.step == step).cloned();
            found.is_some()
        });
        found.expect("just found")
    }

    /// Where the machine's history ends now.
    pub(crate) fn position(&self, machine: &Machine) -> u64 {
        self.events(machine).last().map_or(0, |e| e.position)
    }

    pub(crate) fn events(&self, machine: &Machine) -> Vec<Recorded> {
        self.client.events(&machine.spec.name, 0, 0).unwrap_or_default()
    }

    pub(crate) fn wait_for(
        &self,
        machine: &Machine,
        what: &str,
        mut done: impl FnMut(&machine::Machine, &[Recorded]) -> bool,
    ) -> machine::Machine {
        let deadline = Instant::now() + self.limit(90);
        loop {
            if let Some(now) = self.show(machine)
                && done(&now, &self.events(machine))
            {
                return now;
            }
            assert!(Instant::now() < deadline, "{} is not {what} in time\n{}", machine.spec.name, self.story(machine));
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a person would want to see when a machine didn't do what it should.
    pub(crate) fn story(&self, machine: &Machine) -> String {
        let state = match self.show(machine) {
            Some(m) => format!("{} {}", m.state, m.reason.unwrap_or_default()),
            None => "unknown to the server".into(),
        };
        let events: Vec<_> = self
            .events(machine)
            .iter()
            .filter(|e| e.step != Step::Progress)
            .map(|e| format!("  {:<11} {:?} {}", e.phase.name(), e.step, e.message))
            .collect();
        let console = machine.console_text().unwrap_or_default();
        let from = console.len().saturating_sub(3000);
        let last = console.get(from..).unwrap_or(&console);
        let log = std::fs::read_to_string(self.lab.server.log_path()).unwrap_or_default();
        let log_from = log.len().saturating_sub(2000);
        format!(
            "state: {state}\nevents:\n{}\nconsole:\n{last}\nserver:\n{}",
            events.join("\n"),
            log.get(log_from..).unwrap_or(&log)
        )
    }

    /// Runs a program on the server's side of the lab's network and returns what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.lab.namespace().command(program).args(args).output().expect(program);
        assert!(
            output.status.success(),
            "{program} {}: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `/data/FILE` of a machine that runs the tiny image.
    pub(crate) fn fetch(&self, machine: &Machine, file: &str) -> String {
        let address = self.show(machine).and_then(|m| m.address).expect("an address");
        self.run(
            "curl",
            &[
                "--silent",
                "--show-error",
                "--fail",
                "--retry",
                "10",
                "--retry-connrefused",
                "--retry-delay",
                "1",
                &format!("http://{address}/{file}"),
            ],
        )
    }
}

pub(crate) fn until(limit: Duration, what: &str, is_so: impl FnMut() -> bool) {
    until_or(limit, || what.to_owned(), is_so);
}

/// `story` is told if it takes too long.
pub(crate) fn until_or(limit: Duration, story: impl Fn() -> String, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {}", story());
        thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) fn allocation(image: &str, hostname: &str) -> Allocation {
    let system = System { hostname: hostname.into(), ..System::default() };
    Allocation { image: image.into(), system, ..Allocation::default() }
}

/// Whether firmware of any kind would find something to start on a disk: a boot sector, or either GPT.
pub(crate) fn is_bootable(machine: &Machine) -> bool {
    const SECTOR: u64 = 512;
    let disk = &machine.spec.disks[0];
    let read = |offset: u64| machine.read_disk(&disk.serial, offset, 512).expect("read");
    read(0).ends_with(&[0x55, 0xaa])
        || read(SECTOR).starts_with(b"EFI PART")
        || read(disk.size - SECTOR).starts_with(b"EFI PART")
}
