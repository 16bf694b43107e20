//! A server going from power-on to a running operating system, watched as it happens.
//!
//! The demo plays the operator too: when a machine waits, erased and proven so, it is allocated.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use drophammer_control::client::Client;
use drophammer_images::cache_dir;
use drophammer_initramfs::KERNEL;
use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::machine::{Allocation, Machine, State};
use drophammer_protocol::system::System;
use nix::fcntl::Flock;

use crate::accel;
use crate::kit::{self, Image};
use crate::lab::{self, Lab};
use crate::live::Display;
use crate::qemu::{self, Firmware, MachineSpec, Rom};
use crate::up::{self, UpOptions};
use crate::{console, server, setup, slots, socket, timeline};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoOptions {
    pub firmware: Firmware,
    pub machines: u8,
    pub image: Image,
    /// Leave the lab running in the background.
    pub keep: bool,
}

/// Runs it and prints what it sees. Fails if not every machine ends up running.
pub fn demo(options: &DemoOptions) -> Result<()> {
    let begun = Instant::now();
    let mut say = |line: &str| println!("{line}");
    let lab = Stage::build(options, &mut say)?;
    say(&format!("set up in {:.0} s; {}", begun.elapsed().as_secs_f64(), accel_sentence()?));
    let start_ms = lab.switch_on()?;

    let client = server::client(&lab.dir)?;
    let allocation = |machine: &MachineSpec| Allocation {
        image: options.image.name().into(),
        system: System { hostname: machine.name.clone(), ssh_keys: vec![lab.ssh_key.clone()], ..System::default() },
        ..Allocation::default()
    };
    let display = Display::new();
    let results: Vec<(&MachineSpec, Result<Vec<Recorded>>)> = thread::scope(|scope| {
        let watching: Vec<_> = lab
            .machines
            .iter()
            .map(|spec| {
                let watch = Watch { lab: &lab.dir, client: &client, spec, allocation: allocation(spec), start_ms };
                let line = display.line(&spec.name, start_ms);
                (spec, scope.spawn(move || watch.follow(|event| line.show(event))))
            })
            .collect();
        watching
            .into_iter()
            .map(|(spec, thread)| (spec, thread.join().unwrap_or_else(|_| bail!("watching {} panicked", spec.name))))
            .collect()
    });
    display.finish();

    let mut failures = Vec::new();
    for (spec, result) in results {
        match result {
            Ok(events) => {
                let rows = timeline::rows(&events, start_ms);
                let end = rows.last().map_or(start_ms, |row| row.end_ms);
                println!(
                    "\n{}: from power-on to a running {} in {}\n",
                    spec.name,
                    options.image.name(),
                    since(start_ms, end)
                );
                print!("{}", timeline::table(&rows, start_ms));
            }
            Err(error) => failures.push(format!("{}: {error:#}", spec.name)),
        }
    }
    if options.keep {
        println!("\nThe lab runs on. Try:\n{}", next_commands(&program(), &lab.machines));
    } else if failures.is_empty() {
        println!("\n`cargo demo --keep` leaves it running, to log in and look around.");
    }
    ensure!(failures.is_empty(), "the demo failed\n{}", failures.join("\n"));
    Ok(())
}

/// A lab that is ready, and whatever keeps it alive.
struct Stage {
    dir: PathBuf,
    machines: Vec<MachineSpec>,
    ssh_key: String,
    life: Life,
}

enum Life {
    /// Ends with us.
    Ours { lab: Lab, _lock: Flock<File> },
    /// Stays.
    Background { start_ms: u64 },
}

impl Stage {
    fn build(options: &DemoOptions, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let up = UpOptions {
            firmware: options.firmware,
            rom: Rom::Native,
            machines: options.machines,
            images: vec![options.image],
        };
        if options.keep {
            let status = up::up(&up, say)?;
            return Ok(Self {
                dir: up::dir()?,
                machines: status.machines.into_iter().map(|m| m.spec).collect(),
                ssh_key: up::public_ssh_key()?,
                life: Life::Background { start_ms: now_ms() },
            });
        }
        ensure!(
            (1..=slots::SLOTS).contains(&usize::from(options.machines)),
            "the demo has 1 to {} machines, not {}",
            slots::SLOTS,
            options.machines
        );
        setup::ensure_host(setup::Purpose::Lab, say)?;
        let dir = cache_dir()?.join("demo");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let Some(lock) = slots::lock(&dir, "lock")? else { bail!("a demo runs already") };
        // Its logs stay until the next demo, for whoever wants to know what went wrong.
        let run = dir.join("run");
        if run.exists() {
            fs::remove_dir_all(&run)
                .with_context(|| format!("removing what the last demo left in {}", run.display()))?;
        }
        fs::create_dir_all(&run).with_context(|| format!("creating {}", run.display()))?;
        let ssh_key = up::ssh_key(&run)?;
        let kit = kit::prepare(&up.images, say)?;
        let lab = up::start(&run, &up, kit)?;
        let machines = lab.machines().iter().map(|m| m.spec.clone()).collect();
        Ok(Self { dir: run, machines, ssh_key, life: Life::Ours { lab, _lock: lock } })
    }

    /// When they were switched on, in milliseconds since 1970.
    fn switch_on(&self) -> Result<u64> {
        match &self.life {
            Life::Background { start_ms } => Ok(*start_ms),
            Life::Ours { lab, .. } => {
                let start_ms = now_ms();
                lab.machines().iter().try_for_each(|machine| machine.power_on())?;
                Ok(start_ms)
            }
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let Self::Ours { lab, .. } = self else { return };
        for machine in lab.machines() {
            machine.power_cut();
            // Gigabytes. The logs stay; if a drive can't be removed, the next demo says so.
            machine.spec.disks.iter().filter_map(|d| machine.disk_path(&d.serial).ok()).for_each(|path| {
                fs::remove_file(path).ok();
            });
        }
    }
}

/// One machine on its way.
struct Watch<'a> {
    lab: &'a Path,
    client: &'a Client,
    spec: &'a MachineSpec,
    allocation: Allocation,
    start_ms: u64,
}

/// How long a machine may be silent, on real hardware. The longest silences are firmware and an operating system
/// starting.
const SILENCE: Duration = Duration::from_secs(90);
/// Seconds that the server holds a request for events.
const WAIT: u64 = 2;
const CONSOLE_LINES: usize = 12;

impl Watch<'_> {
    /// Shows every event until the machine runs; all of them, or what went wrong and where.
    fn follow(&self, mut show: impl FnMut(&Recorded)) -> Result<Vec<Recorded>> {
        let mut events = vec![self.power_on()];
        let mut heard = Instant::now();
        let patience = socket::status(self.lab)?.accel.patience(SILENCE);
        let id = self.spec.uuid.to_string();
        loop {
            let after = events.last().map_or(0, |e| e.position);
            let status = socket::status(self.lab)?;
            let on = status.machines.iter().any(|m| m.spec.name == self.spec.name && m.on);
            // Unknown to the server until its boot loader asks for a script.
            let Some(machine) = self.client.machines()?.into_iter().find(|m| m.id.to_string() == id) else {
                self.check(&events, None, on, heard, patience)?;
                thread::sleep(Duration::from_millis(200));
                continue;
            };
            let new = self.client.events(&id, after, WAIT)?;
            for event in new {
                heard = Instant::now();
                show(&event);
                events.push(event);
            }
            let machine = if machine.state == State::Waiting && machine.allocation.is_none() {
                self.client.allocate(&id, &self.allocation).context("allocating the machine")?
            } else {
                self.client.machine(&id)?
            };
            if machine.state == State::Running && self.phoned_home(&events) {
                return Ok(events);
            }
            self.check(&events, Some(&machine), on, heard, patience)?;
        }
    }

    /// The first thing on the road, which no server sees.
    fn power_on(&self) -> Recorded {
        Recorded {
            position: 0,
            at_ms: self.start_ms,
            boot: None,
            phase: Phase::Firmware,
            step: Step::Started,
            message: match self.spec.firmware {
                Firmware::Bios => "power-on, BIOS".into(),
                Firmware::Uefi => "power-on, UEFI".into(),
                Firmware::SecureBoot => "power-on, UEFI with Secure Boot".into(),
            },
            progress: None,
            sight: None,
        }
    }

    fn phoned_home(&self, events: &[Recorded]) -> bool {
        events.iter().any(|e| e.phase == Phase::PhonedHome)
    }

    fn check(
        &self,
        events: &[Recorded],
        machine: Option<&Machine>,
        on: bool,
        heard: Instant,
        patience: Duration,
    ) -> Result<()> {
        let said = machine.and_then(|m| m.reason.clone());
        let why = if machine.is_some_and(|m| m.state == State::Quarantined) {
            format!("quarantined: {}", said.unwrap_or_else(|| "no reason was given".into()))
        } else if !on {
            "the machine went off".to_owned()
        } else if heard.elapsed() > patience {
            format!("nothing happened for {} s", heard.elapsed().as_secs())
        } else {
            return Ok(());
        };
        Err(anyhow!(failure(&why, events, &self.console())))
    }

    fn console(&self) -> String {
        let log = lab::machine_dir(self.lab, &self.spec.name).join(qemu::CONSOLE_LOG);
        console::plain(&fs::read(log).unwrap_or_default())
    }
}

/// Where it failed, why, and what the machine's screen showed.
fn failure(why: &str, events: &[Recorded], console: &str) -> String {
    let on_the_road = |e: &&Recorded| e.phase != Phase::Lifecycle;
    let phase = events.iter().rev().find(on_the_road).map_or("before the first step", |e| e.phase.name());
    let mut text = format!("in {phase}: {why}");
    if let Some(failed) = events.iter().rev().find(|e| e.step == Step::Failed) {
        text.push_str(&format!("\n  last failure, in {}: {}", failed.phase.name(), failed.message));
    }
    text.push_str("\n  the last lines of its console:");
    for line in console::last_lines(console, CONSOLE_LINES) {
        text.push_str(&format!("\n  | {line}"));
    }
    text
}

fn next_commands(program: &str, machines: &[MachineSpec]) -> String {
    let first = machines.first().map_or("m1", |m| &m.name);
    let commands = [
        (format!("lab ssh {first} uname -a"), "log in, or run something there"),
        (format!("machine show {first}"), "everything known about it"),
        (format!("machine certificate {first}"), "the proof that its drives were erased"),
        (format!("machine reprovision {first}"), "power-cycle, erase, install again"),
        (format!("machine events {first} --follow"), "watch it"),
        ("lab down".into(), "switch everything off"),
    ];
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    commands.map(|(command, what)| format!("  {program} {command:<width$}  # {what}")).join("\n")
}

/// Our own program as it would be called from here.
fn program() -> String {
    let (Ok(program), Ok(here)) = (up::program(), std::env::current_dir()) else {
        return "drophammer".into();
    };
    program.strip_prefix(here).unwrap_or(&program).display().to_string()
}

fn accel_sentence() -> Result<String> {
    let found = accel::choose(&cache_dir()?, &kit::boot_dir()?.join(KERNEL))?;
    Ok(format!("machines are {} ({})", found.accel.words(), found.because))
}

fn since(start_ms: u64, end_ms: u64) -> String {
    timeline::seconds(end_ms.saturating_sub(start_ms))
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(phase: Phase, step: Step, message: &str) -> Recorded {
        Recorded {
            position: 1,
            at_ms: 1,
            boot: None,
            phase,
            step,
            message: message.into(),
            progress: None,
            sight: None,
        }
    }

    #[test]
    fn a_failure_says_where_and_why() {
        for (name, events, want) in [
            ("silence", vec![], "in before the first step: off\n  the last lines of its console:\n  | panic"),
            (
                "a failed step",
                vec![
                    event(Phase::Image, Step::Started, "fetching"),
                    event(Phase::Image, Step::Failed, "chunk 3 is corrupt"),
                    event(Phase::Lifecycle, Step::Note, "quarantined"),
                ],
                "in image: off\n  last failure, in image: chunk 3 is corrupt\n  the last lines of its console:\n  | panic",
            ),
        ] {
            assert_eq!(failure("off", &events, "\npanic\n\n"), want, "{name}");
        }
    }

    #[test]
    fn the_next_commands_name_the_machine() {
        let text = next_commands("drophammer", &[MachineSpec::numbered(2, Firmware::Bios)]);
        assert!(text.contains("drophammer lab ssh m2 uname -a ") && text.contains("drophammer lab down"), "{text}");
    }
}
