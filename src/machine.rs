//! `drophammer machine`: what operators do with machines.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use drophammer_control::client::Client;
use drophammer_protocol::api::Explanation;
use drophammer_protocol::event::{Phase, Recorded, Step, boots};
use drophammer_protocol::machine::{Allocation, Machine, Reinstall, TakeBack};
use drophammer_protocol::manifest::BootBy;
use drophammer_protocol::order::ReadBack;
use drophammer_protocol::words;

use crate::certificate;
use crate::layout;
use crate::output::{self, clock, date};
use crate::server;
use crate::system;

pub(crate) type Args = server::Args<Command>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All machines and where they stand.
    List,
    /// Everything known about one machine.
    Show(Which),
    /// What happened on a machine, oldest first.
    Events {
        #[command(flatten)]
        which: Which,
        /// Go on printing events as they come.
        #[arg(short, long)]
        follow: bool,
    },
    /// The last boot from its first DHCP request on: every request, transfer and phase, with times, bytes and rates.
    Timeline {
        #[command(flatten)]
        which: Which,
        /// All boots that are still known, not only the last one.
        #[arg(long)]
        all: bool,
    },
    /// Why it isn't where it should be: the likely cause, what that follows from, and what to look at. Also for a MAC that is
    /// no machine's yet, as are `events` and `timeline`.
    Explain(Which),
    /// The erase certificates of a machine, newest last: a table, the signed chain (`--json`, for `drophammer certificate
    /// verify`) or a page for an auditor (`--html`).
    Certificate {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        shown: certificate::Shown,
    },
    /// Install an image on a waiting machine.
    #[command(after_long_help = system::EXAMPLE)]
    Allocate {
        #[command(flatten)]
        which: Which,
        /// Image to install: `name` for the newest version, or `name/version`.
        #[arg(long)]
        image: String,
        #[command(flatten)]
        wish: Box<system::Wish>,
        /// Serial number of the drive to install on; by default the smallest that fits.
        #[arg(long, value_name = "SERIAL")]
        disk: Option<String>,
        /// TOML file that says how the drives are divided: partitions, RAID, LVM, encryption, file systems; `drophammer layout
        /// check --help` shows one. By default everything is on one drive.
        #[arg(long, value_name = "FILE", conflicts_with = "disk")]
        layout: Option<PathBuf>,
        /// How the installed system is started: `kexec`, or `reboot` for hardware that doesn't take kexec well. By default as
        /// the server's configuration says of this model (`reboot_models`), else as the image asks, else by kexec.
        #[arg(long, value_name = "HOW")]
        boot: Option<BootBy>,
        /// How much of what was written is read back from the drives and compared with what was signed: `sampled`, or `full`.
        #[arg(long, value_name = "HOW", default_value = "sampled")]
        verify: ReadBack,
        /// On whose behalf: a project of the server's configuration, which may want the drives erased better than others.
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
    },
    /// Take a machine back: it boots into the agent, is erased, and waits.
    Release {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
    /// Put its system anew on it for the same tenant. Drives that its layout keeps (`keep = true`) stay as they are, which is
    /// proven; all others are erased.
    Reinstall {
        #[command(flatten)]
        which: Which,
        /// Another image, or another version: `name` for the newest, or `name/version`. By default the one that it has.
        #[arg(long)]
        image: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// Take a machine back, erase it, and install what it was allocated to again.
    Reprovision {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct How {
    /// Even if it's quarantined: you have read its reason, and it may be erased again. That is recorded with your name and
    /// the reason; the machine is free only when the erase is proven.
    #[arg(long)]
    despite_quarantine: bool,
}

impl How {
    fn take_back(&self) -> TakeBack {
        TakeBack { despite_quarantine: self.despite_quarantine }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Its id, the beginning of one, its name, serial number, MAC or hostname.
    machine: String,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let client = args.server.connect()?;
    match args.command {
        Command::List => list(&client, args.json),
        Command::Show(Which { machine }) => show(&client.machine(&machine)?, args.json),
        Command::Events { which: Which { machine }, follow } => events(&client, &machine, follow, args.json),
        Command::Timeline { which: Which { machine }, all } => timeline(&client, &machine, all, args.json),
        Command::Explain(Which { machine }) => explain(&client.explanation(&machine)?, args.json),
        Command::Certificate { which: Which { machine }, shown } => {
            certificate::of_machine(&client, &machine, &shown, args.json)
        }
        Command::Allocate { which: Which { machine }, image, wish, disk, layout, boot, verify, project } => {
            let system = wish.read(|| Ok(client.machine(&machine)?.name))?;
            let layout = layout.as_deref().map(layout::read).transpose()?;
            let wanted = Allocation { image, system, disk, layout, boot, read_back: verify, project };
            changed(&client.allocate(&machine, &wanted)?, args.json)
        }
        Command::Release { which: Which { machine }, how } => {
            changed(&client.release(&machine, how.take_back())?, args.json)
        }
        Command::Reinstall { which: Which { machine }, image, how } => {
            let how = Reinstall { image, despite_quarantine: how.despite_quarantine };
            changed(&client.reinstall(&machine, &how)?, args.json)
        }
        Command::Reprovision { which: Which { machine }, how } => {
            changed(&client.reprovision(&machine, how.take_back())?, args.json)
        }
    }
}

fn list(client: &Client, json: bool) -> Result<()> {
    let machines = client.machines()?;
    if json {
        return output::json(&machines);
    }
    let rows: Vec<_> = machines
        .iter()
        .map(|m| {
            let allocation = m.allocation.as_ref();
            [
                m.name.clone(),
                m.state.to_string(),
                allocation.map(|a| a.image.clone()).unwrap_or_default(),
                allocation.map(|a| a.system.hostname.clone()).unwrap_or_default(),
                m.address.map(|a| a.to_string()).unwrap_or_default(),
                m.id.to_string(),
                m.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    output::table(["NAME", "STATE", "IMAGE", "HOSTNAME", "ADDRESS", "ID", "REASON"], &rows)
}

fn show(machine: &Machine, json: bool) -> Result<()> {
    if json {
        return output::json(machine);
    }
    let mut facts =
        vec![("name", machine.name.clone()), ("id", machine.id.to_string()), ("state", machine.state.to_string())];
    let mut fact = |name, value: Option<String>| facts.extend(value.map(|v| (name, v)));
    fact("reason", machine.reason.clone());
    fact("mac", machine.mac.map(|m| m.to_string()));
    fact("address", machine.address.map(|a| a.to_string()));
    if let Some(a) = &machine.allocation {
        fact("image", Some(a.image.clone()));
        fact("hostname", Some(a.system.hostname.clone()));
        fact("boot", a.boot.map(|by| by.name().to_owned()));
        fact("project", a.project.clone());
    }
    for key in &machine.ssh_host_keys {
        fact("host key", Some(key.clone()));
    }
    if let Some(i) = &machine.inventory {
        let system = [&i.system.manufacturer, &i.system.product].into_iter().flatten().cloned().collect::<Vec<_>>();
        fact("system", Some(system.join(" ")));
        fact("memory", Some(words::bytes(i.memory_bytes)));
        for cpu in &i.cpus {
            fact("cpu", Some(format!("{}, {} cores, {} threads", cpu.model, cpu.cores, cpu.threads)));
        }
        for disk in &i.disks {
            let text = |v: &Option<String>| v.clone().unwrap_or_else(|| "?".into());
            let size = words::bytes(disk.size_bytes);
            let kept = machine.keeps.iter().find(|(_, id)| disk.id().as_ref() == Some(id));
            let kept = kept.map(|(name, _)| format!(", {name}, which a reinstall keeps")).unwrap_or_default();
            let (model, serial) = (text(&disk.model), text(&disk.serial));
            fact("disk", Some(format!("{} {size} {model} serial {serial}{kept}", disk.name)));
        }
        for nic in &i.nics {
            let driver = nic.driver.as_deref().unwrap_or("no driver");
            let link = if nic.link { "link up" } else { "no link" };
            fact("nic", Some(format!("{} {} {driver}, {link}", nic.name, nic.mac)));
        }
        for gap in &i.gaps {
            fact("gap", Some(gap.clone()));
        }
    }
    facts.iter().try_for_each(|(name, value)| output::line(&format!("{name:<9} {value}")))
}

fn events(client: &Client, machine: &str, follow: bool, json: bool) -> Result<()> {
    const WAIT_SECONDS: u64 = 30;
    let mut after = 0;
    loop {
        let events = client.events(machine, after, if follow { WAIT_SECONDS } else { 0 })?;
        if json && !follow {
            return output::json(&events);
        }
        for event in &events {
            // One object per line, so that a stream can be read as it comes.
            let text =
                if json { serde_json::to_string(event).context("writing an event as JSON")? } else { sentence(event) };
            output::line(&text)?;
            after = event.position;
        }
        if !follow {
            return Ok(());
        }
    }
}

fn mark(step: Step) -> &'static str {
    match step {
        Step::Started => "…",
        Step::Progress => "·",
        Step::Done => "✓",
        Step::Failed => "✗",
        Step::Note => " ",
    }
}

fn sentence(event: &Recorded) -> String {
    let mark = mark(event.step);
    let progress = event.progress.map(|p| match p.total_bytes {
        Some(total) => format!(" {} of {}", words::bytes(p.done_bytes), words::bytes(total)),
        None => format!(" {}", words::bytes(p.done_bytes)),
    });
    let phase = if event.phase == Phase::Lifecycle { "-" } else { event.phase.name() };
    format!("{} {mark} {phase:<11} {}{}", clock(event.at_ms), event.message, progress.unwrap_or_default())
}

fn timeline(client: &Client, machine: &str, all: bool, json: bool) -> Result<()> {
    let events = client.events(machine, 0, 0)?;
    let boots: Vec<_> = boots(&events).collect();
    let shown = if all { 0 } else { boots.len().saturating_sub(1) };
    let boots = boots.get(shown..).unwrap_or_default();
    if json {
        return output::json(boots);
    }
    if events.is_empty() {
        output::line("nothing was seen of it; `drophammer machine explain` has what to look at")?;
    }
    for boot in boots {
        let Some(first) = boot.first() else { continue };
        output::line(&format!("boot at {} {}", date(first.at_ms), clock(first.at_ms)))?;
        let told = boot.iter().filter(|event| event.step != Step::Progress);
        let rows: Vec<_> = told.map(|event| moment(event, first.at_ms)).collect();
        output::table(["AFTER", "", "PHASE", "BYTES", "WHAT"], &rows)?;
    }
    Ok(())
}

fn moment(event: &Recorded, began_ms: u64) -> [String; 5] {
    let after = event.at_ms.saturating_sub(began_ms);
    let bytes = event.progress.map(|progress| words::bytes(progress.done_bytes)).unwrap_or_default();
    let message = event.message.lines().next().unwrap_or_default().to_owned();
    [
        format!("{}.{:03} s", after / 1000, after % 1000),
        mark(event.step).into(),
        event.phase.name().into(),
        bytes,
        message,
    ]
}

fn explain(explanation: &Explanation, json: bool) -> Result<()> {
    if json {
        return output::json(explanation);
    }
    output::line(&explanation.verdict)?;
    for evidence in &explanation.because {
        output::line(&format!("  because  {} {}", clock(evidence.at_ms), evidence.message))?;
    }
    explanation.advice.iter().try_for_each(|advice| output::line(&format!("  advice   {advice}")))
}

fn changed(machine: &Machine, json: bool) -> Result<()> {
    if json {
        return output::json(machine);
    }
    let reason = machine.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    output::line(&format!("{} is {}{reason}", machine.name, machine.state))
}
