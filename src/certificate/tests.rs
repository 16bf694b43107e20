use drophammer_protocol::certificate::{Link, Promise};
use drophammer_protocol::chain::{Head, Receipt, verify};
use drophammer_protocol::erase::{Method, Policy};
use drophammer_protocol::fixtures;
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::DiskId;
use drophammer_protocol::sign::Signed;
use ed25519_dalek::SigningKey;
use uuid::Uuid;

use super::*;

fn agent() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn certificate(change: impl Fn(&mut ErasureCertificate)) -> ErasureCertificate {
    let (machine, boot, order) = (MachineId(Uuid::nil()), BootId(Uuid::nil()), OrderId(Uuid::nil()));
    let mut made = fixtures::certificate(machine, boot, order, Link::FIRST, &DiskId::new("A", 1 << 30));
    change(&mut made);
    made
}

fn chain(change: impl Fn(&mut ErasureCertificate)) -> CertificateChain {
    CertificateChain::without_server(vec![Signed::seal(&certificate(change), &agent())])
}

/// As a server gives it out.
fn served() -> CertificateChain {
    let server = SigningKey::from_bytes(&[1; 32]);
    let mut chain = chain(|_| ());
    let hash = Link::hash(&chain.certificates[0].certificate);
    let receipt = Receipt {
        machine: MachineId(Uuid::nil()),
        boot: BootId(Uuid::nil()),
        number: 1,
        certificate: hash.clone(),
        agent_key: PublicKey::of(&agent()),
        ordered: Policy::Clear,
        stored_ms: 1_700_000_000_123,
    };
    chain.certificates[0].receipt = Some(Signed::seal(&receipt, &server));
    let head = Head { machine: MachineId(Uuid::nil()), number: 1, certificate: Some(hash), at_ms: 1_800_000_000_000 };
    chain.head = Some(Signed::seal(&head, &server));
    chain
}

#[test]
fn what_a_server_received_is_told_with_its_times() {
    let key = PublicKey::of(&SigningKey::from_bytes(&[1; 32]));
    let report = verify(&served(), Some(&[key])).expect("nothing is wrong");
    assert_eq!(row(&report.certificates[0])[1], "2023-11-14 22:13:20");
    let page = page::page(&report, &findings(&report), &[]);
    for (name, value) in [
        ("the server's key", key.to_string()),
        (
            "the agent's announced key",
            format!("<tr><th>Key announced for this boot</th><td>{}", PublicKey::of(&agent())),
        ),
        ("when it was stored", "<td>2023-11-14 22:13:20 UTC</td>".into()),
        ("as of when", "<tr><th>As of</th><td>2027-01-15 08:00:00 UTC</td>".into()),
        ("what was ordered", "<tr><th>Policy that was ordered</th><td>clear</td>".into()),
        ("where it comes from", "drophammer machine certificate 00000000-0000-0000-0000-000000000000 --json".into()),
    ] {
        assert!(page.contains(&value), "{name}: {page}");
    }
}

#[test]
fn a_proof_reads_as_what_it_is() {
    let seen = |change: fn(&mut Verification)| {
        let mut verification = certificate(|_| ()).verification.expect("verified");
        change(&mut verification);
        proof(Some(&verification))
    };
    for (name, said, want) in [
        ("nothing", proof(None), "nothing verified"),
        ("as it should be", seen(|_| ()), "129 canaries, 6905 samples, none survived; at most 0.1 % left at 99.9 %"),
        (
            "just enough",
            seen(|v| v.samples = Verification::LEAST_SAMPLES),
            "129 canaries, 688 samples, none survived; at most 1 % left at 99.9 %",
        ),
        (
            "many",
            seen(|v| v.samples = 1_000_000),
            "129 canaries, 1000000 samples, none survived; at most 0.01 % left at 99.9 %",
        ),
        ("all", seen(|v| v.full = true), "129 canaries, every block read, none survived"),
        (
            "something survived",
            seen(|v| v.samples_surviving = 3),
            "129 canaries, 6905 samples, 3 survived, 0 not as promised",
        ),
        (
            "not as promised",
            seen(|v| (v.promise, v.unexpected) = (Promise::Zeroes, 2)),
            "129 canaries, 6905 samples, 0 survived, 2 not as promised",
        ),
    ] {
        assert_eq!(said, want, "{name}");
    }
}

#[test]
fn a_row_tells_of_one_certificate() {
    let reason = || Verdict::NotErased { reason: "locked\u{1b}[2J".into() };
    for (name, change, want) in [
        (
            "erased",
            Box::new(|_: &mut ErasureCertificate| ()) as Box<dyn Fn(&mut ErasureCertificate)>,
            ["NVMe Format, user data erase (SES=1) (NIST Purge)", "erased"],
        ),
        (
            "not erased",
            Box::new(move |c| c.verdict = reason()),
            ["tried last: NVMe Format, user data erase (SES=1)", "NOT erased: locked\u{fffd}[2J"],
        ),
        (
            "nothing tried",
            Box::new(move |c| {
                c.attempts.clear();
                c.verdict = reason();
            }),
            ["none was tried", "NOT erased: locked\u{fffd}[2J"],
        ),
        (
            "a lie",
            Box::new(|c| {
                c.policy = Policy::RekeyOnly;
                c.verdict = Verdict::Erased { method: Method::NvmeFormatUserData };
            }),
            ["NVMe Format, user data erase (SES=1) (NIST Purge)", "NOT proven: says erased without proving it"],
        ),
    ] {
        let (report, _) = examine(&chain(change), None);
        let cells = row(&report.certificates[0]);
        assert_eq!([cells[5].as_str(), cells[7].as_str()], want, "{name}");
        assert_eq!(cells[1], "1970-01-01 00:00:02", "{name}: when the agent was through");
    }
}

#[test]
fn what_cannot_be_known_is_said() {
    let server = SigningKey::from_bytes(&[1; 32]);
    let head = Head { machine: MachineId(Uuid::nil()), number: 0, certificate: None, at_ms: 0 };
    let served = CertificateChain { certificates: vec![], head: Some(Signed::seal(&head, &server)) };
    let by_hand = chain(|c| c.verdict = Verdict::NotErased { reason: "locked".into() });
    for (name, chain, key, want) in [
        (
            "a server's, with its key",
            &served,
            Some(&server),
            vec!["valid: 0", "as of 1970-01-01 00:00:00", "the trusted key"],
        ),
        ("a server's, without", &served, None, vec!["valid: 0", "as of", "not known: whose server"]),
        (
            "an agent's, with its key",
            &by_hand,
            Some(&agent()),
            vec![
                "valid: 1 certificate of 1 drive",
                "1 certificate says that the drive was NOT",
                "the trusted key",
                "not known",
            ],
        ),
        (
            "an agent's, without",
            &by_hand,
            None,
            vec!["valid: 1", "NOT erased", "not known: who made them", "not known: whether there are later ones"],
        ),
    ] {
        let keys = key.map(|key| [PublicKey::of(key)]);
        let report = verify(chain, keys.as_ref().map(<[_; 1]>::as_slice)).expect(name);
        let said = findings(&report);
        assert_eq!(said.len(), want.len(), "{name}: {said:#?}");
        assert!(said.iter().zip(&want).all(|(said, want)| said.contains(want)), "{name}: {said:#?}");
    }
}

#[test]
fn a_page_holds_every_field_and_no_foreign_markup() {
    let evil = "<script>alert('&\"1')</script>\u{1b}";
    let chain = chain(|c| {
        c.drive.model = Some(format!("model {evil}"));
        c.drive.firmware = Some(format!("firmware {evil}"));
        c.drive.wwn = Some(format!("wwn {evil}"));
        c.ordered_by = format!("ordered {evil}");
        c.agent_version = format!("version {evil}");
        c.capabilities = vec![format!("can {evil}")];
        c.found = vec![format!("found {evil}")];
        c.attempts[0].because = format!("because {evil}");
        c.attempts[0].error = Some(format!("status {evil}"));
        c.verdict = Verdict::NotErased { reason: format!("reason {evil}") };
    });
    let (report, faults) = examine(&chain, None);
    let page = page::page(&report, &findings(&report), &faults);
    let shown = "&lt;script&gt;alert(&#39;&amp;&quot;1&#39;)&lt;/script&gt;\u{fffd}";
    for field in ["model", "firmware", "wwn", "ordered", "version", "can", "found", "because", "status", "reason"] {
        assert!(page.contains(&format!("{field} {shown}")), "{field} is missing");
    }
    for (name, value) in [
        ("the hash", report.certificates[0].hash.as_str()),
        ("the key", &PublicKey::of(&agent()).to_string()),
        ("canaries", "<td>129</td>"),
        ("samples", "6,905"),
        ("how to verify it", "drophammer certificate verify chain.json"),
        ("what holds", "valid: 1 certificate"),
        ("what can't be known", "not known: who made them"),
    ] {
        assert!(page.contains(value), "{name}");
    }
    for foreign in ["<script", "http://", "https://", "src=", "url(", "@import", "<link", "<img", "\u{1b}"] {
        assert!(!page.contains(foreign), "{foreign} has no place here");
    }
    // Every element that is opened is closed, once.
    for element in ["html", "head", "body", "table", "tr", "td", "th", "ul", "li", "section", "h2", "h3", "p", "pre"] {
        let count = |text: &str| page.matches(text).count();
        let opened = count(&format!("<{element}>")) + count(&format!("<{element} "));
        assert_eq!(opened, count(&format!("</{element}>")), "{element}");
    }
}

#[test]
fn a_page_of_a_chain_with_faults_says_so_first() {
    let mut broken = chain(|_| ());
    broken.certificates[0].certificate.payload.push(' ');
    let (report, faults) = examine(&broken, None);
    let page = page::page(&report, &findings(&report), &faults);
    assert!(page.contains("<li>certificate 1 isn&#39;t believed") && !page.contains("valid:"), "{page}");
}
