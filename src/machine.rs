//! `drophammer machine`: what operators do with machines.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use drophammer_control::client::Client;
use drophammer_protocol::api::{Explanation, SizeVerdict};
use drophammer_protocol::event::{Phase, Recorded, Step, boots};
use drophammer_protocol::machine::{Allocation, Machine, Reinstall, Remarks, Select, TakeBack, Wanted};
use drophammer_protocol::manifest::BootBy;
use drophammer_protocol::order::ReadBack;
use drophammer_protocol::resource::Labels;
use drophammer_protocol::words;

use crate::certificate;
use crate::layout;
use crate::output::{self, Format, clock, date};
use crate::server;
use crate::system;

pub(crate) type Args = server::Args<Command>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The machines and where they stand.
    List {
        #[command(flatten)]
        like: Like,
        /// Go on showing what changes.
        #[arg(short, long)]
        watch: bool,
    },
    /// Which size a machine is of, and why it's of no other.
    Size(Which),
    /// Say something about a machine, by which it's found or passed by.
    Label {
        #[command(flatten)]
        which: Which,
        /// `key=value`, or `key-` to take one away.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Leave a note with a machine; an empty one takes it away.
    Note {
        #[command(flatten)]
        which: Which,
        /// What to say.
        note: String,
    },
    /// Have a machine given to nobody.
    Lock {
        #[command(flatten)]
        which: Which,
        /// Why, for whoever wants it.
        reason: String,
    },
    /// Have it given to whoever wants it again.
    Unlock(Which),
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
    /// Install an image on a waiting machine: on the one that is named, or on whichever fits.
    #[command(after_long_help = system::EXAMPLE)]
    Allocate {
        /// Its id, the beginning of one, its name, serial number or MAC.
        #[arg(required_unless_present_any = ["size", "partition", "label", "reservation"])]
        machine: Option<String>,
        #[command(flatten)]
        select: Box<Selection>,
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

/// Which machines; those that fit all of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Like {
    /// Where they stand: waiting, running, quarantined, ….
    #[arg(long)]
    state: Option<String>,
    /// Where their boot servers say that they are.
    #[arg(long)]
    partition: Option<String>,
    /// Where their partition says that they are.
    #[arg(long)]
    rack: Option<String>,
    /// What they're made of.
    #[arg(long)]
    size: Option<String>,
    /// Whom they're allocated for.
    #[arg(long)]
    project: Option<String>,
    /// What they run, with or without its version.
    #[arg(long)]
    image: Option<String>,
    /// What they're labelled with: `key=value`. Can be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
}

impl Like {
    fn query(&self) -> Vec<(&'static str, String)> {
        let Self { state, partition, rack, size, project, image, labels } = self;
        let label = (!labels.is_empty()).then(|| labels.join(","));
        let all = [("state", state), ("partition", partition), ("rack", rack), ("size", size), ("project", project)];
        let all = all.into_iter().chain([("image", image)]).filter_map(|(name, value)| Some((name, value.clone()?)));
        all.chain(label.map(|label| ("label", label))).collect()
    }
}

/// Which machine will do.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Selection {
    /// Any of this size.
    #[arg(long)]
    size: Option<String>,
    /// Any in this partition.
    #[arg(long)]
    partition: Option<String>,
    /// Any with this label. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Use up this reservation of the project's.
    #[arg(long, value_name = "NAME")]
    reservation: Option<String>,
    /// Spread the project's machines that are alike in this over racks. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    placement: Vec<String>,
}

impl Selection {
    fn select(self, machine: Option<String>) -> Result<Select> {
        let Self { size, partition, label, reservation, placement } = self;
        Ok(Select { machine, size, partition, labels: labels(&label)?, placement: labels(&placement)?, reservation })
    }
}

fn labels(texts: &[String]) -> Result<Labels> {
    let label = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => bail!("{text:?} is no label: it looks like key=value"),
    };
    texts.iter().map(label).collect()
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
    let (format, json) = (args.shown.format(), args.json());
    match args.command {
        Command::List { like, watch } => list(&client, &like, watch, format),
        Command::Size(Which { machine }) => size(&client.size(&machine)?, json),
        Command::Label { which: Which { machine }, labels: changes } => {
            let machine = client.machine(&machine)?;
            let mut all = machine.labels.clone();
            for change in &changes {
                match change.strip_suffix('-').filter(|key| !key.contains('=')) {
                    Some(key) => drop(all.remove(key)),
                    None => all.extend(labels(std::slice::from_ref(change))?),
                }
            }
            let remarks = Remarks { labels: Some(all), ..Remarks::default() };
            remarked(&client.remark(&machine.id.to_string(), &remarks, Some(machine.generation))?, json)
        }
        Command::Note { which: Which { machine }, note } => {
            let remarks = Remarks { note: Some(note), ..Remarks::default() };
            remarked(&client.remark(&machine, &remarks, None)?, json)
        }
        Command::Lock { which: Which { machine }, reason } => {
            ensure!(!reason.trim().is_empty(), "say why it's locked");
            let remarks = Remarks { lock: Some(reason), ..Remarks::default() };
            remarked(&client.remark(&machine, &remarks, None)?, json)
        }
        Command::Unlock(Which { machine }) => {
            let remarks = Remarks { lock: Some(String::new()), ..Remarks::default() };
            remarked(&client.remark(&machine, &remarks, None)?, json)
        }
        Command::Show(Which { machine }) => show(&client.machine(&machine)?, json),
        Command::Events { which: Which { machine }, follow } => events(&client, &machine, follow, json),
        Command::Timeline { which: Which { machine }, all } => timeline(&client, &machine, all, json),
        Command::Explain(Which { machine }) => explain(&client.explanation(&machine)?, json),
        Command::Certificate { which: Which { machine }, shown } => {
            certificate::of_machine(&client, &machine, &shown, json)
        }
        Command::Allocate { machine, select, image, wish, disk, layout, boot, verify, project } => {
            let system = wish.read(|| match &machine {
                Some(machine) => Ok(client.machine(machine)?.name),
                None => bail!("say with --hostname what whichever machine it becomes is to be called"),
            })?;
            let layout = layout.as_deref().map(layout::read).transpose()?;
            let allocation = Allocation { image, system, disk, layout, boot, read_back: verify, project };
            changed(&client.allot(&Wanted { select: select.select(machine)?, allocation })?, json)
        }
        Command::Release { which: Which { machine }, how } => {
            changed(&client.release(&machine, how.take_back())?, json)
        }
        Command::Reinstall { which: Which { machine }, image, how } => {
            let how = Reinstall { image, despite_quarantine: how.despite_quarantine };
            changed(&client.reinstall(&machine, &how)?, json)
        }
        Command::Reprovision { which: Which { machine }, how } => {
            changed(&client.reprovision(&machine, how.take_back())?, json)
        }
    }
}

fn list(client: &Client, like: &Like, watch: bool, format: Format) -> Result<()> {
    let query = like.query();
    let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // What happens between the two is told.
    let news = watch.then(|| client.watch("machine")).transpose()?;
    let machines = client.machines_like(&query)?;
    match format {
        Format::Json if watch => machines.iter().try_for_each(|machine| output::line(&as_line(machine)?))?,
        Format::Json => output::json(&machines)?,
        Format::Table => {
            output::table(HEAD, &machines.iter().map(row).collect::<Vec<_>>())?;
        }
        Format::Wide => {
            output::table(WIDE_HEAD, &machines.iter().map(wide_row).collect::<Vec<_>>())?;
        }
    }
    for news in news.into_iter().flatten() {
        for change in news?.changes {
            let Some(object) = change.object else {
                output::line(&format!("{}  is gone", change.name))?;
                continue;
            };
            let machine: Machine = serde_json::from_value(object).context("reading what changed")?;
            output::line(&match format {
                Format::Json => as_line(&machine)?,
                Format::Table => row(&machine).join("  "),
                Format::Wide => wide_row(&machine).join("  "),
            })?;
        }
    }
    Ok(())
}

fn as_line(machine: &Machine) -> Result<String> {
    serde_json::to_string(machine).context("writing a machine as JSON")
}

const HEAD: [&str; 7] = ["NAME", "STATE", "IMAGE", "HOSTNAME", "ADDRESS", "ID", "REASON"];

fn row(m: &Machine) -> [String; 7] {
    let allocation = m.allocation.as_ref();
    let lock = m.lock.as_ref().map(|lock| format!("locked: {}", lock.reason));
    [
        m.name.clone(),
        m.state.to_string(),
        allocation.map(|a| a.image.clone()).unwrap_or_default(),
        allocation.map(|a| a.system.hostname.clone()).unwrap_or_default(),
        m.address.map(|a| a.to_string()).unwrap_or_default(),
        m.id.to_string(),
        lock.or_else(|| m.reason.clone()).unwrap_or_default(),
    ]
}

const WIDE_HEAD: [&str; 13] = [
    "NAME",
    "STATE",
    "SIZE",
    "PARTITION",
    "RACK",
    "HARDWARE",
    "PROJECT",
    "IMAGE",
    "HOSTNAME",
    "ADDRESS",
    "LABELS",
    "ID",
    "REASON",
];

fn wide_row(m: &Machine) -> [String; 13] {
    let [name, state, image, hostname, address, id, reason] = row(m);
    let labels: Vec<String> = m.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let project = m.allocation.as_ref().and_then(|a| a.project.clone()).unwrap_or_default();
    [
        name,
        state,
        m.size.clone().unwrap_or_default(),
        m.partition.clone(),
        m.rack.clone().unwrap_or_default(),
        m.hardware.as_ref().map(ToString::to_string).unwrap_or_default(),
        project,
        image,
        hostname,
        address,
        labels.join(","),
        id,
        reason,
    ]
}

fn size(verdict: &SizeVerdict, json: bool) -> Result<()> {
    if json {
        return output::json(verdict);
    }
    let hardware = verdict.hardware.as_ref().map(|hardware| format!(" ({hardware})")).unwrap_or_default();
    match &verdict.size {
        Some(size) => output::line(&format!("it is of size {size}{hardware}"))?,
        None => output::line(&format!("it is of none of the {} sizes{hardware}", verdict.others.len()))?,
    }
    for other in &verdict.others {
        output::line(&format!("  not {}: {}", other.size, other.why.join("; ")))?;
    }
    Ok(())
}

fn remarked(machine: &Machine, json: bool) -> Result<()> {
    if json {
        return output::json(machine);
    }
    let labels: Vec<String> = machine.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let said = [
        (!labels.is_empty()).then(|| labels.join(" ")),
        (!machine.note.is_empty()).then(|| format!("note: {}", machine.note)),
        machine.lock.as_ref().map(|lock| format!("locked by {}: {}", lock.by, lock.reason)),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    let said = if said.is_empty() { "nothing is said of it".to_owned() } else { said.join("; ") };
    output::line(&format!("{}: {said}", machine.name))
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
    fact("partition", Some(machine.partition.clone()));
    fact("rack", machine.rack.clone());
    fact("size", machine.size.clone());
    for (key, value) in &machine.labels {
        fact("label", Some(format!("{key}={value}")));
    }
    fact("note", Some(machine.note.clone()).filter(|note| !note.is_empty()));
    fact("locked", machine.lock.as_ref().map(|lock| format!("by {}: {}", lock.by, lock.reason)));
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
    facts.iter().try_for_each(|(name, value)| output::line(&format!("{name:<10} {value}")))
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
