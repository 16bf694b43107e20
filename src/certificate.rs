//! `drophammer certificate`: erase certificates as an auditor looks at them, with the server or without.

mod page;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use drophammer_control::client::Client;
use drophammer_protocol::certificate::{CONFIDENCE_PERCENT, ErasureCertificate, Verdict, Verification};
use drophammer_protocol::chain::{CertificateChain, Checked, Fault, Report, Voucher, examine};
use drophammer_protocol::sign::PublicKey;
use drophammer_protocol::words::{self, count};
use serde::Serialize;

use crate::output::{self, moment};
use crate::server;

pub(crate) type Args = server::Args<Command>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a machine's certificates, without any server: every signature, every place in the chain, every proof.
    ///
    /// FILE is what `drophammer machine certificate MACHINE --json` or `drophammer-agent erase` printed.
    Verify {
        /// The file; `-` is standard input.
        file: PathBuf,
        /// Whose word counts: the key that `drophammer certificate key` prints, or, for what an agent printed, the one that
        /// it told. 64 hex digits, or a file that holds them. Can be given several times.
        #[arg(long = "key", value_name = "KEY")]
        keys: Vec<String>,
        /// One page of HTML to print or to keep, which needs nothing else.
        #[arg(long, conflicts_with = "json")]
        html: bool,
    },
    /// Print the key that this server signs receipts of certificates with: publish it, and anybody can check them.
    Key,
}

/// Which of a machine's certificates are shown, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Shown {
    /// Only those of the drive with this serial number.
    #[arg(long, value_name = "SERIAL")]
    disk: Option<String>,
    /// One page of HTML to print or to keep, which needs nothing else.
    #[arg(long, conflicts_with = "json")]
    html: bool,
    /// A key that the server had before it lost it: 64 hex digits, or a file that holds them. Can be given several times.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json();
    match args.command {
        Command::Verify { file, keys, html } => {
            let style = match (html, json) {
                (true, _) => Style::Page,
                (false, true) => Style::Json,
                (false, false) => Style::Table,
            };
            verify(&file, &keys, style)
        }
        Command::Key => {
            let key = args.server.connect()?.certificate_key()?;
            if json { output::json(&key) } else { output::line(&key.to_string()) }
        }
    }
}

/// `drophammer machine certificate`.
pub(crate) fn of_machine(client: &Client, machine: &str, shown: &Shown, json: bool) -> Result<()> {
    let chain = client.certificates(machine)?;
    if json {
        ensure!(
            shown.disk.is_none(),
            "a chain can only be verified whole, with all drives: leave out --disk or --json"
        );
        return output::json(&chain);
    }
    let mut keys = read_keys(&shown.keys)?;
    keys.push(client.certificate_key()?);
    let (mut report, faults) = examine(&chain, Some(&keys));
    let findings = findings(&report);
    if let Some(serial) = &shown.disk {
        report.certificates.retain(|checked| checked.certificate.drive.serial == *serial);
        ensure!(!report.certificates.is_empty(), "{machine} has no certificate of a drive with serial {serial:?}");
    }
    if shown.html {
        output::line(&page::page(&report, &findings, &faults))?;
    } else {
        table(&report)?;
    }
    sound(&faults)
}

#[derive(Serialize)]
struct Answer<'a> {
    valid: bool,
    faults: Vec<String>,
    #[serde(flatten)]
    report: &'a Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Table,
    Json,
    Page,
}

fn verify(file: &Path, keys: &[String], style: Style) -> Result<()> {
    let chain = read(file)?;
    let keys = read_keys(keys)?;
    let (report, faults) = examine(&chain, (!keys.is_empty()).then_some(&keys));
    let findings = findings(&report);
    match style {
        Style::Json => {
            let said = faults.iter().map(ToString::to_string).collect();
            output::json(&Answer { valid: faults.is_empty(), faults: said, report: &report })?;
        }
        Style::Page => output::line(&page::page(&report, &findings, &faults))?,
        Style::Table => {
            table(&report)?;
            if faults.is_empty() {
                findings.iter().try_for_each(|finding| output::line(finding))?;
            }
        }
    }
    sound(&faults)
}

fn sound(faults: &[Fault]) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    let said: Vec<_> = faults.iter().map(|fault| format!("\n  {fault}")).collect();
    bail!("these certificates aren't to be believed as they are: {}{}", count(faults.len(), "fault"), said.concat())
}

fn read(file: &Path) -> Result<CertificateChain> {
    let (name, text) = if file == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).context("reading standard input")?;
        ("standard input".to_owned(), text)
    } else {
        let name = file.display().to_string();
        let text = fs::read(file).with_context(|| format!("reading the certificates in {name}"))?;
        (name, text)
    };
    serde_json::from_slice(&text).with_context(|| format!("{name} is no chain of certificates, or not all of one"))
}

fn read_keys(keys: &[String]) -> Result<Vec<PublicKey>> {
    let read = |key: &String| {
        if let Ok(key) = key.parse() {
            return Ok(key);
        }
        let text = fs::read_to_string(key)
            .with_context(|| format!("the key {key:?} is neither 64 hex digits nor a file that can be read"))?;
        text.parse().with_context(|| format!("reading the key in {key}"))
    };
    keys.iter().map(read).collect()
}

/// What was checked of a chain without faults, with whose key, and what can't be known: a sentence a line.
fn findings(report: &Report) -> Vec<String> {
    let certificates = &report.certificates;
    let drives: BTreeSet<_> = certificates.iter().map(|checked| &checked.certificate.drive.serial).collect();
    let machine = report.machine.map(|machine| machine.to_string()).unwrap_or_default();
    let mut findings = vec![format!(
        "valid: {} of {} of machine {machine}; each signature is right, none is missing before the last, and what says \
         erased proves it",
        count(certificates.len(), "certificate"),
        count(drives.len(), "drive"),
    )];
    let not_erased = certificates.iter().filter(|checked| checked.certificate.category().is_none()).count();
    if not_erased > 0 {
        findings.push(format!("{} that the drive was NOT erased", says(not_erased)));
    }
    match &report.voucher {
        Voucher::Server { key, head } => {
            if let Some(head) = head {
                findings.push(format!(
                    "the server says that as of {} these are all; later ones it doesn't speak of",
                    moment(head.at_ms)
                ));
            }
            findings.push(if report.trusted {
                format!("every certificate was received by the server with the trusted key {key}")
            } else {
                format!(
                    "not known: whose server this is. Its key says so of itself: {key}. Compare it with what `drophammer \
                     certificate key` prints there, or give that with --key"
                )
            });
        }
        Voucher::Agents { keys } => {
            let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
            let keys = keys.join(", ");
            findings.push(if report.trusted {
                format!("all are signed by the agent with the trusted key {keys}")
            } else {
                format!(
                    "not known: who made them. The key says so of itself: {keys}. Compare it with what the agent told when \
                     it had erased, and give that with --key"
                )
            });
            findings.push(
                "not known: whether there are later ones. No server received them, so nobody says where they end"
                    .into(),
            );
        }
    }
    findings
}

fn says(n: usize) -> String {
    if n == 1 { "1 certificate says".into() } else { format!("{n} certificates say") }
}

fn table(report: &Report) -> Result<()> {
    let rows: Vec<_> = report.certificates.iter().map(row).collect();
    output::table(["NUMBER", "WHEN (UTC)", "SERIAL", "SIZE", "POLICY", "METHOD", "PROOF", "VERDICT"], &rows)
}

fn row(checked: &Checked) -> [String; 8] {
    let c = &checked.certificate;
    [
        c.link.number.to_string(),
        when(checked),
        plain(&c.drive.serial),
        words::bytes(c.drive.size_bytes()),
        c.policy.to_string(),
        method(c),
        proof(c.verification.as_ref()),
        plain(&verdict(c)),
    ]
}

/// What drives and agents say of themselves goes to a terminal without what could move its cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// When the server stored it; without one, when the agent was through, by its clock.
fn when(checked: &Checked) -> String {
    let by_agent = checked.certificate.finished.saturating_mul(1000);
    moment(checked.receipt.as_ref().map_or(by_agent, |receipt| receipt.stored_ms))
}

fn method(c: &ErasureCertificate) -> String {
    match (&c.verdict, c.attempts.last()) {
        (Verdict::Erased { method }, _) => format!("{} (NIST {})", method.name(), method.category(c.drive.medium)),
        (Verdict::NotErased { .. }, Some(last)) => format!("tried last: {}", last.method.name()),
        (Verdict::NotErased { .. }, None) => "none was tried".into(),
    }
}

fn verdict(c: &ErasureCertificate) -> String {
    match &c.verdict {
        Verdict::Erased { .. } if c.proves_erasure() => "erased".into(),
        Verdict::Erased { .. } => "NOT proven: says erased without proving it".into(),
        Verdict::NotErased { reason } => format!("NOT erased: {reason}"),
    }
}

fn proof(verification: Option<&Verification>) -> String {
    let Some(v) = verification else { return "nothing verified".into() };
    let looked = if v.full {
        format!("{} canaries, every block read", v.canaries_planted)
    } else {
        format!("{} canaries, {} samples", v.canaries_planted, v.samples)
    };
    let survived = v.canaries_surviving.saturating_add(v.samples_surviving);
    if survived > 0 || v.unexpected > 0 {
        return format!("{looked}, {survived} survived, {} not as promised", v.unexpected);
    }
    if v.full {
        return format!("{looked}, none survived");
    }
    format!("{looked}, none survived; at most {} % left at {CONFIDENCE_PERCENT} %", percent(v.at_most_left()))
}

/// Rounded up: it's said as a bound.
fn percent(part: f64) -> String {
    let hundredths = (part * 10_000.0 - 1e-6).ceil().max(0.0) / 100.0;
    let text = format!("{hundredths:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
