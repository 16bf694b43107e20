//! The gate: nothing but a proof of this boot under this order makes a machine free, and all of it can be checked later.

use drophammer_control::unix_ms;
use drophammer_protocol::api::{AGENT_ORDERS, Events, MACHINES};
use drophammer_protocol::certificate::{ErasureCertificate, Link, Verdict};
use drophammer_protocol::chain::{self, CertificateChain, Receipt, Report, Voucher};
use drophammer_protocol::erase::{Method, Policy};
use drophammer_protocol::event::{Event, Phase, Step};
use drophammer_protocol::id::{BootId, OrderId};
use drophammer_protocol::machine::{State, TakeBack};
use drophammer_protocol::order::{Order, Outcome};
use drophammer_protocol::sign::{PublicKey, Signable, Signed};
use ed25519_dalek::SigningKey;
use reqwest::Method as Verb;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::rig::*;

#[test]
fn lies_about_erasing_quarantine_the_machine() {
    type Lie = fn(&Rig, &Agent, &Order) -> Outcome;
    let lies: [(&str, Lie, &str, usize); 18] = [
        ("no certificates", |_, _, _| Outcome::Erased { certificates: vec![] }, "has no certificate", 0),
        (
            "one disk left out",
            |_, agent, order| agent.sealed(agent.certificates(order)[..1].to_vec()),
            "disk small-1 (10737418240 bytes) has no certificate",
            1,
        ),
        (
            "signed by another key",
            |_, agent, order| {
                let other = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
                let certificates = agent.certificates(order).iter().map(|c| Signed::seal(c, &other)).collect();
                Outcome::Erased { certificates }
            },
            "none of the trusted keys",
            0,
        ),
        (
            "altered after signing",
            |_, agent, order| {
                let Outcome::Erased { mut certificates } = agent.erased(order) else { unreachable!() };
                certificates[1].payload = certificates[1].payload.replace("\"finished\":2", "\"finished\":3");
                Outcome::Erased { certificates }
            },
            "was altered",
            1,
        ),
        (
            "of another machine",
            |_, agent, order| changed(agent, order, |c| c.machine = machine(9)),
            "is of machine 09090909",
            0,
        ),
        (
            "of another boot",
            |_, agent, order| changed(agent, order, |c| c.boot = BootId(Uuid::nil())),
            "of another boot",
            0,
        ),
        (
            "of another order",
            |_, agent, order| changed(agent, order, |c| c.order = OrderId(Uuid::nil())),
            "of another order",
            0,
        ),
        (
            "a canary survived",
            |_, agent, order| changed(agent, order, |c| c.verification.as_mut().expect("there").canaries_surviving = 1),
            "doesn't prove it",
            2,
        ),
        (
            "honest about a failure",
            |_, agent, order| {
                changed(agent, order, |c| c.verdict = Verdict::NotErased { reason: "the drive is locked".into() })
            },
            "the drive is locked",
            2,
        ),
        (
            "by a method that isn't good enough",
            |_, agent, order| {
                changed(agent, order, |c| {
                    c.attempts[0].method = Method::Overwrite;
                    c.verdict = Verdict::Erased { method: Method::Overwrite };
                })
            },
            "doesn't prove it",
            2,
        ),
        (
            "by a weaker policy than ordered",
            |_, agent, order| changed(agent, order, |c| c.policy = Policy::Clear),
            "is of an erase by policy clear, and purge was ordered",
            2,
        ),
        (
            "a hole in the chain",
            |_, agent, order| changed(agent, order, |c| c.link = Link { number: 2, previous: Some("00".repeat(32)) }),
            "says that it is number 2 of this machine's chain, and isn't",
            0,
        ),
        (
            "a chain of its own",
            |_, agent, order| changed(agent, order, |c| c.link.previous = Some("00".repeat(32))),
            "says that it is number 1 of this machine's chain, and isn't",
            0,
        ),
        (
            "an older agent's",
            |_, agent, order| changed_text::<Older>(agent, order, |c| drop(c.insert("disk".into(), "A".into()))),
            "was altered",
            0,
        ),
        (
            "a field that nobody knows",
            |_, agent, order| changed_text::<Newer>(agent, order, |c| drop(c.insert("clean".into(), true.into()))),
            "unknown field `clean`",
            0,
        ),
        (
            "a field that is missing",
            |_, agent, order| changed_text::<Newer>(agent, order, |c| drop(c.remove("policy"))),
            "missing field `policy`",
            0,
        ),
        ("failed", |_, _, _| Outcome::Failed { reason: "nvme: timed out".into() }, "nvme: timed out", 0),
        ("installed instead", |_, _, _| installed(), "installed something instead", 0),
    ];
    let rig = Rig::new();
    for (n, (name, lie, want, stored)) in (1..).zip(lies) {
        // The table's sentences are about machine 1.
        let rig = if name == "one disk left out" { &Rig::new() } else { &rig };
        let n = if name == "one disk left out" { 1 } else { n };
        let (agent, order) = rig.erasing(n);
        agent.outcome(rig, order.id, &lie(rig, &agent, &order)).expect("even a lie is stored");
        let machine = rig.machine(n);
        let reason = machine.reason.unwrap_or_default();
        assert_eq!(machine.state, State::Quarantined, "{name}");
        assert!(reason.contains(want), "{name}: {reason}");
        let kept = rig.operator().certificates(&machine.id.to_string()).expect("lists").certificates;
        assert_eq!(kept.len(), stored, "{name}: what is authentic is kept");
        assert_eq!(agent.order(rig, 0).expect("answers"), None, "{name}: no orders");
        assert_eq!(
            agent.outcome(rig, order.id, &agent.erased(&order)).expect_err("too late").status,
            409,
            "{name}: no second thoughts"
        );
        let refused = rig.allocate(n).expect_err(name).to_string();
        assert!(refused.contains("the machine is quarantined"), "{name}: {refused}");
        let agent = rig.enrolled(n);
        agent.inventory(rig).expect("is looked at");
        assert_eq!(agent.order(rig, 0).expect("answers"), None, "{name}: another boot changes nothing");
        assert_eq!(rig.state(n), State::Quarantined, "{name}");
    }
    let id = machine(1).to_string();
    let anyway = TakeBack { despite_quarantine: true };
    assert_eq!(rig.operator().release(&id, anyway).expect("an operator may").state, State::Releasing);
    rig.waiting(1);
    assert_eq!(rig.state(1), State::Waiting);
}

pub(crate) fn changed(agent: &Agent, order: &Order, change: fn(&mut ErasureCertificate)) -> Outcome {
    let mut certificates = agent.certificates(order);
    certificates.iter_mut().for_each(change);
    agent.sealed(certificates)
}

type Fields = serde_json::Map<String, serde_json::Value>;

/// What an agent before the present certificates signed.
#[derive(Serialize, Deserialize)]
struct Older(Fields);
impl Signable for Older {
    const CONTEXT: &'static str = "drophammer erasure certificate 1";
}

/// What calls itself a present certificate.
#[derive(Serialize, Deserialize)]
struct Newer(Fields);
impl Signable for Newer {
    const CONTEXT: &'static str = ErasureCertificate::CONTEXT;
}

trait Statement: Signable + From<Fields> {}
impl From<Fields> for Older {
    fn from(fields: Fields) -> Self {
        Self(fields)
    }
}
impl From<Fields> for Newer {
    fn from(fields: Fields) -> Self {
        Self(fields)
    }
}
impl Statement for Older {}
impl Statement for Newer {}

/// Certificates with other fields than they have, rightly signed.
fn changed_text<T: Statement>(agent: &Agent, order: &Order, change: fn(&mut Fields)) -> Outcome {
    let seal = |certificate: &ErasureCertificate| {
        let text = serde_json::to_string(certificate).expect("serializes");
        let mut fields: Fields = serde_json::from_str(&text).expect("is an object");
        change(&mut fields);
        let signed = serde_json::to_string(&Signed::seal(&T::from(fields), &agent.key)).expect("serializes");
        serde_json::from_str(&signed).expect("all envelopes look alike")
    };
    Outcome::Erased { certificates: agent.certificates(order).iter().map(seal).collect() }
}

#[test]
fn certificates_of_an_earlier_boot_prove_nothing() {
    let rig = Rig::new();
    let (first, order) = rig.erasing(1);
    let replay = first.erased(&order);
    first.outcome(&rig, order.id, &replay).expect("takes the proof");
    let (second, order) = rig.erasing(1);
    second.outcome(&rig, order.id, &replay).expect("is stored");
    assert_eq!(rig.state(1), State::Quarantined);
}

/// What isn't an outcome, or not one of this order, changes nothing at all; and what is said is no proof.
#[test]
fn words_open_no_gate() {
    let mut rig = Rig::new();
    let (agent, order) = rig.erasing(1);
    let unmoved = |rig: &Rig, name: &str| {
        assert_eq!(rig.state(1), State::Erasing, "{name}");
        assert_eq!(kept(rig, 1).certificates, [], "{name}");
        assert_eq!(agent.order(rig, 0).expect("answers"), Some(order.clone()), "{name}");
        let refused = rig.allocate(1).expect_err(name).to_string();
        assert!(refused.contains("only a waiting machine"), "{name}: {refused}");
    };
    let path = format!("{AGENT_ORDERS}/{}/outcome", order.id);
    for (name, path, body, status) in [
        ("no certificates at all", &path, r#"{"outcome":"erased"}"#, 400),
        ("an outcome that nobody knows", &path, r#"{"outcome":"clean"}"#, 400),
        (
            "certificates that aren't signed",
            &path,
            r#"{"outcome":"erased","certificates":[{"verdict":"erased"}]}"#,
            400,
        ),
        ("nothing", &path, "{}", 400),
        (
            "another order's",
            &format!("{AGENT_ORDERS}/{}/outcome", OrderId(Uuid::nil())),
            r#"{"outcome":"erased","certificates":[]}"#,
            404,
        ),
    ] {
        let refused = rig.agent_raw(Verb::POST, path, &agent.credential, body.into()).expect_err(name);
        assert_eq!(refused.status, status, "{name}: {}", refused.detail);
        unmoved(&rig, name);
    }
    let mut seq = 0;
    for phase in [Phase::Erase, Phase::Waiting, Phase::Allocated, Phase::PhonedHome, Phase::Lifecycle] {
        for step in [Step::Started, Step::Done, Step::Note] {
            seq += 1;
            let message = "erased; operator admin released it".to_owned();
            let event = Event { seq, uptime_ms: 1, phase, step, message, progress: None };
            agent.events(&rig, Events { uptime_ms: 1, events: vec![event] }).expect("is noted");
        }
    }
    unmoved(&rig, "events");
    let events = rig.operator().events("SN-1", 0, 0).expect("lists");
    let said = events.iter().filter(|e| e.message.contains("operator admin")).map(|e| e.phase);
    assert!(said.clone().count() > 0 && said.clone().all(|phase| matches!(phase, Phase::Erase | Phase::Agent)));
    rig.restart();
    unmoved(&rig, "a restart");
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
    for _ in 0..2 {
        agent.outcome(&rig, order.id, &agent.erased(&order)).expect("twice is as good as once");
        rig.restart();
        assert_eq!((rig.state(1), kept(&rig, 1).certificates.len()), (State::Waiting, 2), "and stored once");
    }
}

/// Nothing ends a quarantine but a decision, and that only starts another erase.
#[test]
fn a_quarantine_ends_by_a_recorded_decision_alone() {
    let mut rig = Rig::new();
    let (agent, order) = rig.erasing(1);
    agent.outcome(&rig, order.id, &Outcome::Failed { reason: "the drive is locked".into() }).expect("is stored");
    let no = TakeBack::default();
    type Attempt = fn(&mut Rig, &Agent, &Order);
    let attempts: [(&str, Attempt); 8] = [
        ("a second outcome", |rig, agent, order| {
            assert_eq!(agent.outcome(rig, order.id, &agent.erased(order)).expect_err("too late").status, 409);
        }),
        ("a restart", |rig, _, _| rig.restart()),
        ("another boot with a good inventory", |rig, _, _| {
            let agent = rig.enrolled(1);
            agent.inventory(rig).expect("is looked at");
            assert_eq!(agent.order(rig, 0).expect("answers"), None);
        }),
        ("an outcome of that boot", |rig, _, order| {
            let agent = rig.enrolled(1);
            assert_eq!(agent.outcome(rig, order.id, &agent.erased(order)).expect_err("no such order").status, 404);
        }),
        ("an allocation", |rig, _, _| drop(rig.allocate(1).expect_err("refused"))),
        ("a release by the way", |rig, _, _| {
            let refused = rig.operator().release("SN-1", TakeBack::default()).expect_err("refused").to_string();
            assert!(refused.contains("--despite-quarantine"), "{refused}");
        }),
        ("a release by somebody who may only look", |rig, _, _| {
            let path = format!("{MACHINES}/SN-1/release?despite_quarantine=true");
            let viewer = rig.token("viewer");
            assert_eq!(rig.operator_raw(Verb::POST, &path, Some(&viewer)).expect_err("refused").status, 403);
        }),
        ("a decision that isn't understood", |rig, _, _| {
            let path = format!("{MACHINES}/SN-1/release?despite_quarantine=perhaps");
            let admin = rig.token("admin");
            assert_eq!(rig.operator_raw(Verb::POST, &path, Some(&admin)).expect_err("refused").status, 400);
        }),
    ];
    for (name, attempt) in attempts {
        attempt(&mut rig, &agent, &order);
        let machine = rig.machine(1);
        assert_eq!(machine.state, State::Quarantined, "{name}");
        assert_eq!(machine.reason.as_deref(), Some("not erased: the drive is locked"), "{name}");
    }
    assert!(rig.operator().reprovision("SN-1", no).is_err());

    let path = format!("{MACHINES}/SN-1/release?despite_quarantine=true");
    rig.operator_raw(Verb::POST, &path, Some(&rig.token("admin"))).expect("an operator may");
    assert_eq!(rig.state(1), State::Releasing, "and no further");
    let decision =
        "operator admin, who released it although it was quarantined: not erased: the drive is locked".to_owned();
    let events = rig.operator().events("SN-1", 0, 0).expect("lists");
    let recorded = events.iter().find(|e| e.phase == Phase::Lifecycle && e.message.contains(&decision));
    assert_eq!(recorded.map(|e| e.message.clone()), Some(format!("taken back by {decision}")));
    rig.restart();
    let (agent, order) = rig.erasing(1);
    assert_eq!(erase_task(&order).ordered_by, decision, "which the certificates will say");
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
    assert_eq!(rig.state(1), State::Waiting);
    let (_, order) = rig.erasing(1);
    assert_eq!(erase_task(&order).ordered_by, "the rule that every boot of the agent erases");
}

fn kept(rig: &Rig, n: u8) -> CertificateChain {
    rig.operator().certificates(&machine(n).to_string()).expect("lists")
}

fn verified(rig: &Rig, n: u8) -> Report {
    let key = rig.operator().certificate_key().expect("has one");
    chain::verify(&kept(rig, n), Some(&[key])).expect("nothing is wrong")
}

#[test]
fn the_chain_is_whole_over_boots_and_restarts_and_vouched_for_by_one_key() {
    let mut rig = Rig::new();
    let key = rig.operator().certificate_key().expect("has one");
    rig.boot(1);
    assert_eq!(verified(&rig, 1).certificates, [], "nothing was erased, and that's signed");
    for boots in 1..=3 {
        let (agent, order) = rig.erasing(1);
        let before = unix_ms();
        rig.restart();
        agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
        rig.restart();
        let report = verified(&rig, 1);
        assert_eq!(report.certificates.len(), 2 * boots);
        let Voucher::Server { key: by, head: Some(head) } = report.voucher else { panic!("{:?}", report.voucher) };
        assert_eq!((by, head.number), (key, 2 * boots as u64), "the same key after each restart");
        let last = report.certificates.last().and_then(|c| c.receipt.clone()).expect("a receipt");
        assert_eq!((last.boot, last.agent_key), (order.boot, PublicKey::of(&agent.key)));
        assert!((before..=unix_ms()).contains(&last.stored_ms));
    }
    type Change = fn(&mut CertificateChain, &Rig);
    let changes: [(&str, Change, &str); 4] = [
        (
            "a receipt of somebody else's",
            |chain, _| {
                let stranger = SigningKey::from_bytes(&[9; 32]);
                let forge = |receipt: &Signed<Receipt>| {
                    let said: Receipt = serde_json::from_str(&receipt.payload).expect("a receipt");
                    Signed::seal(&said, &stranger)
                };
                let entry = &mut chain.certificates[1];
                entry.receipt = entry.receipt.as_ref().map(forge);
            },
            "the receipt of certificate 2 is signed by another server key",
        ),
        (
            "another machine's receipt",
            |chain, rig| {
                chain.certificates[0].receipt = kept(rig, 2).certificates[0].receipt.clone();
            },
            "the receipt of certificate 1 is of another certificate",
        ),
        (
            "another machine's end",
            |chain, rig| chain.head = kept(rig, 2).head,
            "certificate 6 comes after the signed end",
        ),
        ("cut", |chain, _| chain.certificates.truncate(4), "the chain was cut: certificates 5 to 6 are missing"),
    ];
    rig.waiting(2);
    for (name, change, want) in changes {
        let mut changed = kept(&rig, 1);
        change(&mut changed, &rig);
        let faults = chain::verify(&changed, Some(&[key])).expect_err(name);
        assert!(faults.iter().any(|fault| fault.to_string().contains(want)), "{name}: {faults:?}");
    }
}
