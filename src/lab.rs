//! `drophammer lab`: virtual servers to see it all on.

use std::path::PathBuf;
use std::process::exit;

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use drophammer_lab::bench::tftp;
use drophammer_lab::bench::{self, Row};
use drophammer_lab::demo::{self, DemoOptions};
use drophammer_lab::fuzz;
use drophammer_lab::kit::Image;
use drophammer_lab::package::{self, Profile};
use drophammer_lab::qemu;
use drophammer_lab::simulate::{self, Drill};
use drophammer_lab::socket::{self, PowerAction};
use drophammer_lab::up::{self, ConsoleView, UpOptions};
use drophammer_lab::verify;
use drophammer_protocol::words;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a machine going from power-on to a running OS, live, with all set-up done (`cargo demo`).
    Demo {
        /// What the machines' firmware is.
        #[arg(long, value_enum, default_value_t = Firmware::Uefi)]
        firmware: Firmware,
        /// How many machines, 1 to 3.
        #[arg(long, default_value_t = 1)]
        machines: u8,
        /// What they get: debian-12, or tiny for a quick look.
        #[arg(long, default_value = "debian-12")]
        image: Image,
        /// Leave everything running when it's over, for `lab status`, `lab ssh`, `machine …`.
        #[arg(long)]
        keep: bool,
    },
    /// Run every check and test, with all set-up done (`cargo verify`).
    Verify {
        /// Only the tests whose names contain this.
        filter: Option<String>,
    },
    /// Measure this beside what others use for it, on this machine, now (`cargo bench-all`).
    Bench {
        /// Only the benchmarks whose names start with this: boot., control., erase., install., …
        #[arg(default_value = "")]
        filter: String,
        /// Measure so many rounds instead of those that each benchmark takes by itself.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        rounds: Option<u16>,
        /// Print each row as a line of JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Have thousands of machines talk to a real server, measure it, and see that none is lost or given out twice.
    ///
    /// The machines are simulated, and what they say is what real ones say: they ask for their boot script and take the ticket
    /// out of the initramfs, enrol over TLS, send inventories and events, answer their erase order with certificates that are
    /// signed and chained, and wait for orders; those that are allocated install, boot and phone home. The server is this
    /// program's own, in a network and with a state of its own. It takes a few seconds for a hundred machines and a few
    /// minutes for ten thousand; each needs an open file on either side.
    ///
    /// What is told: for every kind of call how often, how fast, and what went wrong in words; what the server and the
    /// simulation took in memory and processor time; and in the end whether the server has every machine where it should be.
    /// If not, that is an error.
    Simulate {
        /// How many machines.
        #[arg(long, value_name = "N", default_value_t = 100)]
        machines: u32,
        /// The time that they're switched on in, evenly; 0 is all at once.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        arrival: u64,
        /// How many of a hundred something befalls: an erase that fails, a connection that is cut in the middle of a request, a
        /// machine that vanishes and boots again; a third each.
        #[arg(long, value_name = "PERCENT", default_value_t = 0)]
        failures: u8,
        /// How many of a hundred lose their power once while they wait.
        #[arg(long, value_name = "PERCENT", default_value_t = 0)]
        reboots: u8,
        /// How long the server is watched while all machines wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
        /// How many of a hundred are allocated.
        #[arg(long, value_name = "PERCENT", default_value_t = 50)]
        allocate: u8,
        /// How many operators allocate at once.
        #[arg(long, value_name = "N", default_value_t = 20)]
        clients: u16,
        /// How long an install takes.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        install: u64,
        /// Have the server keep its state on three members of etcd, which are started for it.
        #[arg(long)]
        etcd: bool,
        /// What befalls the server while machines come, and once more while they are allocated: server-killed, clock-jumps; with
        /// --etcd also leader-killed, member-cut-off, quorum-lost. What comes of it is the same as without.
        #[arg(long)]
        drill: Option<Drill>,
        /// Print JSON instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Look for bytes that break a parser; `cargo verify` does it for a short time, with the same bytes every time.
    Fuzz {
        /// Only this target, such as dhcp.
        name: Option<String>,
        /// For how long, each.
        #[arg(long, value_name = "N", default_value_t = fuzz::SECONDS)]
        seconds: u32,
    },
    /// Make the package for Debian and Ubuntu (`cargo package-deb`): server, tools, agent, systemd unit.
    Package {
        /// The directory that drophammer.deb goes to.
        #[arg(long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
        /// With the program as it's built for tests: quick to make, slow to run.
        #[arg(long)]
        dev: bool,
    },
    /// Start a lab in the background: a boot server and machines that are switched on.
    Up {
        /// What the machines' firmware is.
        #[arg(long, value_enum, default_value_t = Firmware::Uefi)]
        firmware: Firmware,
        /// How many machines, 1 to 3.
        #[arg(long, default_value_t = 1)]
        machines: u8,
        /// What can be installed. Can be given several times.
        #[arg(long = "image", default_values = ["debian-12", "tiny"])]
        images: Vec<Image>,
        /// What network-boots UEFI machines.
        #[arg(long, value_enum, default_value_t = Rom::Native)]
        rom: Rom,
    },
    /// Switch everything off and forget it.
    Down,
    /// Show what runs.
    Status {
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Sit at the serial console of a machine; Ctrl-] leaves.
    Console {
        /// Its name, such as m1.
        machine: String,
        /// Print what it has said so far instead.
        #[arg(long)]
        log: bool,
    },
    /// Log in to an installed machine as root, or run a command there.
    Ssh {
        /// Its name, such as m1.
        machine: String,
        /// What to run there; without it, a login.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Press a machine's power switch.
    Power {
        /// Its name, such as m1.
        machine: String,
        /// What to do with it.
        #[arg(value_enum)]
        action: Switch,
    },
    /// Print the public SSH key of the lab, for `machine allocate --ssh-key`.
    SshKey,
    /// The lab itself.
    #[command(hide = true)]
    RunDetached,
    /// A simulation, in the network that it runs in.
    #[command(hide = true, name = simulate::INSIDE_COMMAND)]
    SimulateInside,
    /// What the benchmarks of TFTP put on a server.
    #[command(hide = true, name = tftp::LOAD_COMMAND)]
    TftpLoad { load: String },
    /// What the lab's boot server calls to switch machines.
    #[command(hide = true)]
    PowerHook { socket: PathBuf, action: Switch, machine: String, name: Option<String> },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

impl From<Firmware> for qemu::Firmware {
    fn from(firmware: Firmware) -> Self {
        match firmware {
            Firmware::Bios => Self::Bios,
            Firmware::Uefi => Self::Uefi,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rom {
    /// The firmware's own PXE: iPXE by TFTP.
    Native,
    /// The firmware's own HTTP boot: the agent as one program, with no iPXE.
    Http,
    /// iPXE in the network card: half as long to the kernel.
    Ipxe,
}

impl From<Rom> for qemu::Rom {
    fn from(rom: Rom) -> Self {
        match rom {
            Rom::Native => Self::Native,
            Rom::Http => Self::Http,
            Rom::Ipxe => Self::Ipxe,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    /// Switch it on.
    On,
    /// Pull the plug.
    Off,
    /// Off and on; it boots from the network first.
    Cycle,
    /// The reset button.
    Reset,
}

impl From<Switch> for PowerAction {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::On => Self::On,
            Switch::Off => Self::Off,
            Switch::Cycle => Self::Cycle,
            Switch::Reset => Self::Reset,
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let mut say = |line: &str| eprintln!("{line}");
    match args.command {
        Command::Demo { firmware, machines, image, keep } => {
            demo::demo(&DemoOptions { firmware: firmware.into(), machines, image, keep })
        }
        Command::TftpLoad { load } => {
            let load = serde_json::from_str(&load).context("reading what load is wanted")?;
            output::json(&tftp::run_load(&load)?)
        }
        Command::Simulate {
            machines,
            arrival: arrival_s,
            failures,
            reboots,
            wait: wait_s,
            allocate,
            clients,
            install: install_s,
            etcd,
            drill,
            json,
        } => {
            let options = simulate::Options {
                machines,
                arrival_s,
                failures,
                reboots,
                wait_s,
                allocate,
                clients,
                install_s,
                etcd,
                drill,
            };
            told(&simulate::simulate(&options)?, json)
        }
        Command::SimulateInside => simulate::inside(),
        Command::Package { output, dev } => {
            let profile = if dev { Profile::Dev } else { Profile::Release };
            let say = &mut |line: &str| eprintln!("{line}");
            let output = output.canonicalize().with_context(|| format!("looking for {}", output.display()))?;
            let path = package::package(profile, &output, say)?;
            output::line(&path.display().to_string())
        }
        Command::Verify { filter } => verify::verify(filter.as_deref()),
        Command::Fuzz { name, seconds } => fuzz::fuzz(name.as_deref(), seconds, fuzz::Luck::Fresh, &mut say),
        Command::Bench { filter, rounds, json } => measure(&filter, rounds.map(usize::from), json, &mut say),
        Command::Up { firmware, machines, images, rom } => {
            let options = UpOptions { firmware: firmware.into(), rom: rom.into(), machines, images };
            let status = up::up(&options, &mut say)?;
            show(&status)?;
            output::line("`drophammer machine list` shows how far they are; `drophammer lab down` ends it")
        }
        Command::Down => match up::down()? {
            true => output::line("the lab is down"),
            false => bail!("no lab runs"),
        },
        Command::Status { json } => match up::status()? {
            Some(status) if json => output::json(&status),
            Some(status) => show(&status),
            None => bail!("no lab runs; `drophammer lab up` starts one"),
        },
        Command::Console { machine, log } => {
            up::console(&machine, if log { ConsoleView::Log } else { ConsoleView::Attach })
        }
        Command::Ssh { machine, command } => {
            let status = up::ssh(&machine, &command)?;
            // ssh has said what there is to say; its status is that of the command.
            exit(status.code().context("ssh was killed")?)
        }
        Command::Power { machine, action } => up::power(&machine, action.into()),
        Command::SshKey => output::line(&up::public_ssh_key()?),
        Command::RunDetached => up::run_detached(),
        Command::PowerHook { socket, action, machine, name: _ } => socket::power_hook(&socket, action.into(), &machine),
    }
}

fn measure(filter: &str, rounds: Option<usize>, json: bool, say: &mut dyn FnMut(&str)) -> Result<()> {
    let mut rows = vec![];
    bench::run(filter, rounds, say, &mut |row| {
        if json {
            output::line(&serde_json::to_string(&row).context("writing a row as JSON")?)?;
        }
        rows.push(row);
        Ok(())
    })?;
    if json {
        return Ok(());
    }
    output::table(Row::HEAD, &rows.iter().map(Row::cells).collect::<Vec<_>>())?;
    for row in &rows {
        if let Some(why) = &row.why {
            output::line(&format!("\n{} wasn't measured: {why}", row.name))?;
        }
    }
    Ok(())
}

fn told(report: &simulate::Report, json: bool) -> Result<()> {
    if json {
        output::json(report)?;
    } else {
        output::table(simulate::Report::HEAD, &report.rows())?;
        report.lines().iter().try_for_each(|line| output::line(line))?;
    }
    match report.verdict() {
        Some(wrong) => bail!("{wrong}"),
        None => Ok(()),
    }
}

fn show(status: &socket::Status) -> Result<()> {
    let server = if status.server_running { "running" } else { "not running" };
    output::line(&format!("boot server {server}; virtual machines are {}", status.accel.words()))?;
    let rows: Vec<_> = status
        .machines
        .iter()
        .map(|m| {
            [
                m.spec.name.clone(),
                if m.on { "on" } else { "off" }.to_owned(),
                format!("{:?}", m.spec.firmware).to_lowercase(),
                format!("{} MiB", m.spec.memory_mb),
                m.spec
                    .disks
                    .iter()
                    .map(|d| format!("{} {}", d.serial, words::bytes(d.size)))
                    .collect::<Vec<_>>()
                    .join(", "),
                m.spec.mac.to_string(),
            ]
        })
        .collect();
    output::table(["NAME", "POWER", "FIRMWARE", "MEMORY", "DRIVES", "MAC"], &rows)
}
