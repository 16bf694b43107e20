//! The agent at a command line: the same inventory, plan and erase, on whatever host it's started.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use drophammer_protocol::certificate::{Link, Verdict};
use drophammer_protocol::chain::CertificateChain;
use drophammer_protocol::erase::{Depth, Policy, Psid};
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::{Disk, DiskId, FirmwareKind, Inventory};
use drophammer_protocol::order::{Erase, Kept, Outcome};
use drophammer_protocol::sign::PublicKey;
use ed25519_dalek::SigningKey;

use crate::erase::{self, Coverage, DrivePlan};
use crate::events;
use crate::inventory;

/// Which drives are meant.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only this drive, by serial (`serial:S5GXNF0R` or just the serial). May be repeated; without it, all drives.
    #[arg(long = "disk", value_name = "serial:SERIAL")]
    disks: Vec<Serial>,
    /// Which erasures are good enough: `purge` (NIST SP 800-88 Purge), `clear`, or `rekey-only` for those that throw an
    /// encryption key away and take seconds.
    #[arg(long, default_value_t)]
    policy: Policy,
    /// What is printed on the labels of self-encrypting drives, for those that somebody has locked: a file with a line
    /// `SERIAL PSID` for each.
    #[arg(long, value_name = "FILE")]
    psids: Option<PathBuf>,
    /// The plan as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EraseArgs {
    #[command(flatten)]
    selection: Selection,
    /// Print the plan and stop, which is also what happens without `--yes-destroy`.
    #[arg(long, conflicts_with = "yes_destroy")]
    dry_run: bool,
    /// Destroy all data on the drive with this serial, typed in full. Repeat it for each drive.
    #[arg(long, value_name = "SERIAL")]
    yes_destroy: Vec<String>,
    /// Read every block after the erase, not only samples.
    #[arg(long)]
    verify_all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Serial(String);

impl FromStr for Serial {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.strip_prefix("serial:").unwrap_or(text).trim().to_owned()))
    }
}

pub(crate) fn inventory(json: bool) -> anyhow::Result<()> {
    let found = inventory::read(Path::new("/"), None);
    if json {
        println!("{}", serde_json::to_string_pretty(&found).context("writing the inventory as JSON")?);
    } else {
        print!("{}", in_words(&found));
    }
    Ok(())
}

pub(crate) fn plan(selection: &Selection) -> anyhow::Result<()> {
    let here = inventory::disks::disks(Path::new("/"));
    let ids = here.iter().filter_map(Disk::id).filter(|id| selection.disks.iter().any(|serial| serial.0 == id.serial));
    let order = order(selection, Depth::Sampled, ids.collect())?;
    let plans = select(erase::survey(Path::new("/"), &order), &selection.disks)?;
    if selection.json {
        println!("{}", serde_json::to_string_pretty(&plans).context("writing the plan as JSON")?);
        return Ok(());
    }
    if plans.is_empty() {
        println!("this machine has no drives");
    }
    for plan in plans {
        println!("{plan}");
    }
    Ok(())
}

pub(crate) fn erase(args: &EraseArgs) -> anyhow::Result<()> {
    if args.yes_destroy.is_empty() {
        plan(&args.selection)?;
        eprintln!("nothing was touched; to erase a drive, add --yes-destroy with its serial");
        return Ok(());
    }
    let drives = named(&inventory::disks::disks(Path::new("/")), &args.selection.disks, &args.yes_destroy)?;
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("getting random bytes")?;
    let key = SigningKey::from_bytes(&secret);
    let signer = PublicKey::of(&key);
    let context = erase::Context {
        // A host without an SMBIOS UUID has no name of its own here.
        machine: inventory::read(Path::new("/"), None).id.unwrap_or(MachineId(uuid::Uuid::nil())),
        boot: BootId(uuid::Uuid::new_v4()),
        order: OrderId(uuid::Uuid::new_v4()),
        key,
    };
    let depth = if args.verify_all { Depth::Full } else { Depth::Sampled };
    let order = order(&args.selection, depth, drives)?;
    let (reporter, console) = events::to_stderr();
    let outcome = erase::carry_out(&context, &order, Coverage::NamedDrives, &reporter);
    drop(reporter);
    if console.join().is_err() {
        eprintln!("drophammer-agent: the console output broke off");
    }
    let certificates = match outcome {
        Outcome::Erased { certificates } => certificates,
        Outcome::Refused { reason } => anyhow::bail!("refused, nothing was erased: {reason}"),
        Outcome::Failed { reason } => anyhow::bail!("{reason}"),
        Outcome::Installed(_) => anyhow::bail!("an erase ended as an installation; this is a bug"),
    };
    // What `drophammer certificate verify` takes.
    let chain = CertificateChain::without_server(certificates.clone());
    println!("{}", serde_json::to_string_pretty(&chain).context("writing the certificates as JSON")?);
    eprintln!("signed with a key made for this run: {signer}");
    let mut dirty = Vec::new();
    for signed in &certificates {
        let certificate = signed.open(&[signer]).context("reading our own certificate")?;
        if let Verdict::NotErased { reason } = &certificate.verdict {
            dirty.push(format!("disk {} is not erased: {reason}", certificate.drive.serial));
        }
    }
    anyhow::ensure!(dirty.is_empty(), "{}", dirty.join("; "));
    Ok(())
}

fn order(selection: &Selection, depth: Depth, disks: Vec<DiskId>) -> anyhow::Result<Erase> {
    let psids = match &selection.psids {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("reading the PSIDs in {}", path.display()))?;
            labels(&text).with_context(|| format!("understanding the PSIDs in {}", path.display()))?
        }
        None => BTreeMap::new(),
    };
    Ok(Erase {
        kept: Kept::default(),
        disks,
        policy: selection.policy,
        depth,
        psids,
        fresh: BTreeMap::new(),
        link: Link::FIRST,
        ordered_by: "a person at this host".into(),
    })
}

/// Lines of `SERIAL PSID`. What is wrong is said by the line's number, never by what is in it.
fn labels(text: &str) -> anyhow::Result<BTreeMap<String, Psid>> {
    let mut labels = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let (serial, psid) = line
            .trim()
            .rsplit_once(char::is_whitespace)
            .with_context(|| format!("line {number} has no serial and PSID, with a blank between them"))?;
        let psid = psid.parse().with_context(|| format!("line {number}"))?;
        labels.insert(serial.trim().to_owned(), psid);
    }
    Ok(labels)
}

/// The plans of the selected drives; all of them if nothing was selected.
fn select(plans: Vec<DrivePlan>, selection: &[Serial]) -> anyhow::Result<Vec<DrivePlan>> {
    let has = |plan: &DrivePlan, serial: &Serial| plan.serial.as_deref().map(str::trim) == Some(serial.0.as_str());
    for serial in selection {
        anyhow::ensure!(plans.iter().any(|p| has(p, serial)), "no drive here has the serial {}", serial.0);
    }
    Ok(plans.into_iter().filter(|p| selection.is_empty() || selection.iter().any(|s| has(p, s))).collect())
}

/// The drives whose serials were typed, in the form in which orders name them. What was selected and what was typed
/// must be the same: a difference is a mistake, and this is the last moment to notice it.
fn named(here: &[Disk], selection: &[Serial], typed: &[String]) -> anyhow::Result<Vec<DiskId>> {
    for serial in selection {
        anyhow::ensure!(
            typed.contains(&serial.0),
            "{} was selected, but --yes-destroy doesn't name it; nothing was touched",
            serial.0
        );
    }
    let mut drives = Vec::new();
    for serial in typed {
        anyhow::ensure!(
            selection.is_empty() || selection.iter().any(|s| s.0 == *serial),
            "--yes-destroy names {serial}, but --disk selects other drives; nothing was touched"
        );
        // A drive with several namespaces has several disks of one serial.
        let ids = here.iter().filter_map(Disk::id).filter(|id| id.serial == *serial);
        let before = drives.len();
        drives.extend(ids);
        anyhow::ensure!(drives.len() > before, "no drive here has the serial {serial}; nothing was touched");
    }
    Ok(drives)
}

fn in_words(found: &Inventory) -> String {
    const GB: u64 = 1_000_000_000;
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let mut lines = vec![
        format!("id        {}", found.id.map_or_else(|| "none".into(), |id| id.to_string())),
        format!(
            "system    {} {}, serial {}",
            text(&found.system.manufacturer),
            text(&found.system.product),
            text(&found.system.serial)
        ),
        format!(
            "firmware  {} {} {}",
            match found.firmware.kind {
                FirmwareKind::Bios => "BIOS",
                FirmwareKind::Uefi => "UEFI",
            },
            text(&found.firmware.vendor),
            text(&found.firmware.version)
        ),
        format!("memory    {} MiB in {} modules", found.memory_bytes >> 20, found.dimms.len()),
    ];
    lines.extend(
        found.cpus.iter().map(|cpu| format!("cpu       {} ({} cores, {} threads)", cpu.model, cpu.cores, cpu.threads)),
    );
    lines.extend(found.disks.iter().map(|disk| {
        let size = format!("{}.{} GB", disk.size_bytes / GB, disk.size_bytes % GB / (GB / 10));
        format!("disk      {}: {}, serial {}, {size}", disk.name, text(&disk.model), text(&disk.serial))
    }));
    lines.extend(found.nics.iter().map(|nic| {
        let link = match (nic.link, nic.speed_mbit) {
            (true, Some(speed)) => format!("{speed} Mb/s"),
            (true, None) => "link".into(),
            (false, _) => "no link".into(),
        };
        format!("nic       {}: {}, {}, {link}", nic.name, nic.mac, text(&nic.driver))
    }));
    lines.extend(found.tpm.iter().map(|tpm| format!("tpm       {}", tpm.version)));
    lines.extend(found.bmc.iter().map(|bmc| format!("bmc       {}, {}", bmc.interface, text(&bmc.address))));
    lines.push(format!("pci       {} functions", found.pci.len()));
    lines.extend(found.gaps.iter().map(|gap| format!("unknown   {gap}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use drophammer_protocol::fixtures;

    use super::*;

    fn disk(name: &str, serial: &str, size_bytes: u64) -> Disk {
        Disk { name: name.into(), ..fixtures::disk(serial, size_bytes) }
    }

    #[test]
    fn only_what_was_typed_is_destroyed() {
        let here = [disk("nvme0n1", "A", 10), disk("nvme0n2", "A", 20), disk("nvme1n1", "B", 10)];
        for (name, selected, typed, want) in [
            ("one drive", vec![], vec!["B"], Ok(vec![("B", 10)])),
            ("a drive with two namespaces", vec![], vec!["A"], Ok(vec![("A", 10), ("A", 20)])),
            ("selected and typed", vec!["serial:B"], vec!["B"], Ok(vec![("B", 10)])),
            ("selected, another one typed", vec!["B"], vec!["A"], Err(())),
            ("two selected, one typed", vec!["A", "B"], vec!["A"], Err(())),
            ("one selected, two typed", vec!["A"], vec!["A", "B"], Err(())),
            ("not here", vec![], vec!["C"], Err(())),
            ("part of a serial", vec![], vec![""], Err(())),
        ] {
            let selected: Vec<Serial> = selected.iter().map(|s| s.parse().unwrap_or_else(|e| match e {})).collect();
            let typed: Vec<String> = typed.iter().map(|s| (*s).to_owned()).collect();
            let got = named(&here, &selected, &typed).map_err(|_| ());
            let want = want.map(|ids: Vec<(&str, u64)>| {
                ids.into_iter().map(|(serial, size_bytes)| DiskId::new(serial, size_bytes)).collect()
            });
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn labels_are_read_and_not_told() {
        let psid = "ABCDEFGH12345678ABCDEFGH12345678";
        for (name, text, want) in [
            ("none", "\n".to_owned(), Ok(0)),
            ("two", format!("S-1 {psid}\n\n  S 2\t{psid} \n"), Ok(2)),
            ("no serial", psid.to_owned(), Err("line 1 has no serial and PSID, with a blank between them")),
            ("a short one", format!("S-1 {psid}\nS-2 {}", &psid[1..]), Err("line 2: a PSID has 32 letters and digits")),
        ] {
            match (labels(&text), want) {
                (Ok(labels), Ok(count)) => {
                    assert_eq!(labels.len(), count, "{name}");
                    assert!(count == 0 || labels.contains_key("S 2"), "{name}");
                }
                (Err(e), Err(words)) => {
                    let said = format!("{e:#}");
                    assert!(said.contains(words) && !said.contains("ABCDE"), "{name}: {said}");
                }
                (got, want) => panic!("{name}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        crate::Cli::command().debug_assert();
    }
}
