//! The certificates as one page for an auditor: it needs nothing from outside, and prints.

use drophammer_protocol::certificate::{Attempt, CONFIDENCE_PERCENT, Drive, ErasureCertificate, Promise, Verification};
use drophammer_protocol::chain::{Checked, Fault, Head, Receipt, Report, Voucher};
use drophammer_protocol::erase::Medium;
use drophammer_protocol::inventory::Bus;
use drophammer_protocol::sign::Signable;
use drophammer_protocol::words;

use super::{method, percent, proof, verdict, when};
use crate::output::moment;

const STYLE: &str = "
body { font: 10pt/1.4 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; border-top: 2px solid #111; padding-top: .6em; margin-top: 2em; }
h3 { font-size: 1em; margin: 1em 0 .3em; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; }
th { font-weight: 600; } tr { border-bottom: 1px solid #ccc; break-inside: avoid; } .facts th { width: 13em; }
code, pre { font-family: monospace; } td, pre { overflow-wrap: anywhere; } pre { white-space: pre-wrap; }
.good { color: #05601f; } .bad { color: #a30000; font-weight: 600; }
@media print { body { margin: 0; max-width: none; } section { break-before: page; } h3 { break-after: avoid; } }
";

/// `findings` are what holds of the chain if it has no `faults`.
pub(super) fn page(report: &Report, findings: &[String], faults: &[Fault]) -> String {
    let machine = report.machine.map_or_else(|| "unknown".into(), |machine| machine.to_string());
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>Erase certificates of machine {0}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>Erase certificates of machine {0}</h1>\n",
        escaped(&machine)
    );
    page.push_str(&summary(report, findings, faults));
    report.certificates.iter().for_each(|checked| page.push_str(&section(checked)));
    page.push_str(&how_to_verify(report));
    page.push_str("</body>\n</html>");
    page
}

/// Text of any origin, as text of a page.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

fn summary(report: &Report, findings: &[String], faults: &[Fault]) -> String {
    let mut text = String::new();
    if faults.is_empty() {
        text.push_str("<ul>\n");
        findings.iter().for_each(|finding| text.push_str(&format!("<li>{}</li>\n", escaped(finding))));
        text.push_str("</ul>\n");
    } else {
        text.push_str(
            "<p class=\"bad\">These certificates aren't to be believed as they are:</p>\n<ul class=\"bad\">\n",
        );
        faults.iter().for_each(|fault| text.push_str(&format!("<li>{}</li>\n", escaped(&fault.to_string()))));
        text.push_str("</ul>\n");
    }
    let mut facts = vec![("Certificates on this page", report.certificates.len().to_string())];
    match &report.voucher {
        Voucher::Server { key, head } => {
            facts.push(("Received by the server with key", key.to_string()));
            if let Some(head) = head {
                facts.push(("Certificates in the chain", head.number.to_string()));
                facts.push(("Hash of the last one", head.certificate.clone().unwrap_or_else(|| "none".into())));
                facts.push(("As of", moment(head.at_ms) + " UTC"));
            }
        }
        Voucher::Agents { keys } => {
            facts.extend(keys.iter().map(|key| ("Received by no server; signed by key", key.to_string())));
        }
    }
    text.push_str(&table_of(&facts));
    text.push_str(&heads(&["No.", "When (UTC)", "Drive", "Size", "Policy", "Method", "Proof", "Verdict"]));
    for checked in &report.certificates {
        let c = &checked.certificate;
        let class = if c.proves_erasure() { "good" } else { "bad" };
        let number = c.link.number;
        let cells = [
            escaped(&when(checked)),
            escaped(&c.drive.serial),
            words::bytes(c.drive.size_bytes()),
            c.policy.to_string(),
            escaped(&method(c)),
            escaped(&proof(c.verification.as_ref())),
            format!("<span class=\"{class}\">{}</span>", escaped(&verdict(c))),
        ];
        let cells = cells.map(|cell| format!("<td>{cell}</td>")).concat();
        text.push_str(&format!("<tr><td><a href=\"#c{number}\">{number}</a></td>{cells}</tr>\n"));
    }
    text.push_str(
        "</table>\n<p>Clear and Purge are the categories of NIST SP 800-88 Rev. 1: out of reach through the drive's own \
         interface, and out of reach of a laboratory.</p>\n",
    );
    text
}

fn section(checked: &Checked) -> String {
    let c = &checked.certificate;
    let class = if c.proves_erasure() { "good" } else { "bad" };
    let mut text = format!(
        "<section id=\"c{0}\">\n<h2>Certificate {0}: drive {1}</h2>\n<p class=\"{class}\">{2}</p>\n",
        c.link.number,
        escaped(&c.drive.serial),
        escaped(&verdict(c))
    );
    text.push_str(&table_of(&identity(c)));
    text.push_str("<h3>Drive</h3>\n");
    text.push_str(&table_of(&drive(&c.drive)));
    text.push_str(&list("What the drive said it can do", &c.capabilities));
    text.push_str(&list("What was found on it before", &c.found));
    text.push_str("<h3>What was tried, in order</h3>\n");
    text.push_str(&heads(&["Method", "Category", "Why", "Took", "Result"]));
    c.attempts.iter().for_each(|attempt| text.push_str(&tried(attempt, c.drive.medium)));
    text.push_str("</table>\n<h3>Verification</h3>\n");
    text.push_str(&match &c.verification {
        None => "<p class=\"bad\">Nothing was verified.</p>\n".into(),
        Some(verification) => table_of(&seen(verification)),
    });
    text.push_str("<h3>Signatures</h3>\n");
    text.push_str(&table_of(&signatures(checked)));
    text.push_str("</section>\n");
    text
}

fn identity(c: &ErasureCertificate) -> Vec<(&'static str, String)> {
    let time = |seconds: u64| moment(seconds.saturating_mul(1000)) + " UTC";
    vec![
        ("Machine", c.machine.to_string()),
        ("Boot", c.boot.to_string()),
        ("Order", c.order.to_string()),
        ("Ordered by", c.ordered_by.clone()),
        ("Policy", c.policy.to_string()),
        ("Method", method(c)),
        ("NIST SP 800-88 category", c.category().map_or("none: not erased".into(), |category| category.to_string())),
        ("Started", time(c.started)),
        ("Finished", time(c.finished)),
        ("Agent version", c.agent_version.clone()),
    ]
}

fn drive(drive: &Drive) -> Vec<(&'static str, String)> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not told".into());
    let medium = match drive.medium {
        Medium::Magnetic => "magnetic",
        Medium::Flash => "flash, or not known",
    };
    let mut facts = vec![
        ("Serial number", drive.serial.clone()),
        ("Model", text(&drive.model)),
        ("Firmware", text(&drive.firmware)),
        ("WWN", text(&drive.wwn)),
        ("Interface", bus(drive.bus).into()),
        ("Medium", medium.into()),
        ("Size", format!("{} bytes", words::grouped(drive.size_bytes()))),
    ];
    facts.extend(drive.disks.iter().map(|disk| ("Erased", disk.to_string())));
    facts
}

fn bus(bus: Bus) -> &'static str {
    match bus {
        Bus::Nvme => "NVMe",
        Bus::Ata => "ATA",
        Bus::Scsi => "SCSI",
        Bus::Virtio => "virtio",
        Bus::Usb => "USB",
        Bus::Other => "another",
    }
}

fn tried(attempt: &Attempt, medium: Medium) -> String {
    let took = format!("{}.{:03} s", attempt.millis / 1000, attempt.millis % 1000);
    let result = match &attempt.error {
        None => "<span class=\"good\">the drive reported success</span>".into(),
        Some(error) => format!("<span class=\"bad\">{}</span>", escaped(error)),
    };
    let resumed = if attempt.resumed { "; begun by an earlier boot" } else { "" };
    format!(
        "<tr><td>{}</td><td>{}</td><td>{}{resumed}</td><td>{took}</td><td>{result}</td></tr>\n",
        escaped(attempt.method.name()),
        attempt.method.category(medium),
        escaped(&attempt.because),
    )
}

fn seen(v: &Verification) -> Vec<(&'static str, String)> {
    let promise = match v.promise {
        Promise::Changed => "every block is another than before",
        Promise::Zeroes => "every block is zeros",
        Promise::Ones => "every block is ones",
    };
    let left = if v.canaries_surviving > 0 || v.samples_surviving > 0 {
        "data that was there before".into()
    } else {
        format!("{} %, with a confidence of {CONFIDENCE_PERCENT} %", percent(v.at_most_left()))
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    vec![
        ("What has to be so", promise.into()),
        ("Canaries planted", words::grouped(v.canaries_planted)),
        ("Canaries that survived", words::grouped(v.canaries_surviving)),
        ("Blocks sampled", words::grouped(v.samples)),
        ("… that held something to recognise", words::grouped(v.samples_telling)),
        ("… that survived", words::grouped(v.samples_surviving)),
        ("Blocks not as promised", words::grouped(v.unexpected)),
        ("Block size", format!("{} bytes", v.block_bytes)),
        ("Read back", format!("{} bytes", words::grouped(v.read_bytes))),
        ("All of it", yes(v.full)),
        ("Past the drive's cache", yes(v.forced_unit_access)),
        ("Left at most", left),
    ]
}

fn signatures(checked: &Checked) -> Vec<(&'static str, String)> {
    let previous = checked.certificate.link.previous.clone().unwrap_or_else(|| "none: the first".into());
    let mut facts = vec![
        ("Hash of this certificate", checked.hash.clone()),
        ("Hash of the one before", previous),
        ("Signed by the agent with key", checked.signed_by.to_string()),
    ];
    match &checked.receipt {
        None => facts.push(("Receipt of a server", "none".into())),
        Some(receipt) => facts.extend([
            ("Stored by the server", moment(receipt.stored_ms) + " UTC"),
            ("Key announced for this boot", receipt.agent_key.to_string()),
            ("Policy that was ordered", receipt.ordered.to_string()),
        ]),
    }
    facts
}

fn how_to_verify(report: &Report) -> String {
    let (written, key) = match (&report.voucher, report.machine) {
        (Voucher::Server { .. }, Some(machine)) => (
            format!("drophammer machine certificate {machine} --json > chain.json\n"),
            "from where the server's operator publishes it (drophammer certificate key)",
        ),
        _ => ("drophammer-agent erase … > chain.json\n".into(), "that the agent told when it had erased"),
    };
    format!(
        "<section>\n<h2>How to verify this offline</h2>\n<p>This page is for reading. What is signed is the file that the \
         first command writes; the second checks it on any computer, without a server:</p>\n<pre>{}</pre>\n<p>Take the \
         key {key}, not the one on this page.</p>\n<p>Without this program: a statement is <code>payload</code>, <code>key</code> and \
         <code>signature</code>. The signature is Ed25519 (RFC 8032) by the key over the statement's kind, a zero byte, and \
         the payload's bytes; the kinds are <code>{}</code>, <code>{}</code> and <code>{}</code>. A certificate's hash is \
         SHA-256 over key, zero byte, signature, zero byte and payload, as they are written. Each certificate names its \
         number and the hash of the one before; each receipt the hash of its certificate and the key that the boot had \
         announced; the head the number and hash of the last certificate.</p>\n</section>\n",
        escaped(&format!("{written}drophammer certificate verify chain.json --key KEY")),
        escaped(ErasureCertificate::CONTEXT),
        escaped(Receipt::CONTEXT),
        escaped(Head::CONTEXT),
    )
}

fn table_of(facts: &[(&'static str, String)]) -> String {
    let rows =
        facts.iter().map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>\n", escaped(name), escaped(value)));
    format!("<table class=\"facts\">\n{}</table>\n", rows.collect::<String>())
}

fn heads(names: &[&str]) -> String {
    let cells: String = names.iter().map(|name| format!("<th>{}</th>", escaped(name))).collect();
    format!("<table>\n<tr>{cells}</tr>\n")
}

fn list(title: &str, items: &[String]) -> String {
    let items: String = match items {
        [] => "<li>nothing</li>\n".into(),
        items => items.iter().map(|item| format!("<li>{}</li>\n", escaped(item))).collect(),
    };
    format!("<h3>{}</h3>\n<ul>\n{items}</ul>\n", escaped(title))
}
