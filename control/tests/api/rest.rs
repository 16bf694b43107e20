//! Drives that were erased, given to nobody since, and show no write: they aren't worn out by another erase.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use drophammer_protocol::certificate::{ErasureCertificate, Rest, Seal, Unwritten};
use drophammer_protocol::chain;
use drophammer_protocol::erase::Policy;
use drophammer_protocol::machine::{State, TakeBack};
use drophammer_protocol::order::{Erase, Order};

use super::rig::*;

fn rest() -> Rest {
    let seal = Seal { namespace: 1, offset: 1 << 29, sha256: "00".into() };
    Rest { write_commands: 7, data_units_written: 1, seals: vec![seal] }
}

/// A machine whose drives were erased and sealed.
fn sealed(rig: &Rig, n: u8) {
    let (agent, order) = rig.erasing(n);
    assert!(erase_task(&order).fresh.is_empty(), "nothing is known of them yet");
    let finished = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let sealed = |c| ErasureCertificate { rest: Some(rest()), finished, ..c };
    let certificates = agent.certificates(&order).into_iter().map(sealed);
    agent.outcome(rig, order.id, &agent.sealed(certificates.collect())).expect("takes the proof");
    assert_eq!(rig.state(n), State::Waiting);
}

/// What an agent says that left everything alone for which it was offered to.
fn left_alone(agent: &Agent, order: &Order) -> Vec<ErasureCertificate> {
    let task: &Erase = erase_task(order);
    let alone = |c: ErasureCertificate| match task.fresh.get(&c.drive.serial) {
        Some(fresh) => ErasureCertificate {
            attempts: vec![],
            verification: None,
            unwritten: Some(fresh.unwritten.clone()),
            rest: Some(fresh.rest.clone()),
            ..c
        },
        None => c,
    };
    agent.certificates(order).into_iter().map(alone).collect()
}

#[test]
fn a_drive_that_nobody_wrote_to_stays_erased() {
    let rig = Rig::new();
    sealed(&rig, 1);
    for _ in 0..2 {
        let (agent, order) = rig.erasing(1);
        let offered: Vec<u64> = erase_task(&order).fresh.values().map(|fresh| fresh.unwritten.number).collect();
        assert_eq!(offered, [1, 2], "always the certificates of the erase itself");
        agent.outcome(&rig, order.id, &agent.sealed(left_alone(&agent, &order))).expect("takes the proof");
        assert_eq!(rig.state(1), State::Waiting);
    }
    let chain = rig.operator().certificates("SN-1").expect("the chain");
    let report = chain::verify(&chain, None).expect("nothing is wrong with it");
    assert_eq!(report.certificates.len(), 6);
}

#[test]
fn nothing_is_offered_of_drives_that_somebody_had_or_that_are_too_old() {
    type Since = fn(&mut Rig);
    let cases: [(&str, Since, usize); 5] = [
        ("nothing happened", |_| (), 2),
        ("a restart of the server", Rig::restart, 2),
        ("too old", |rig| rig.reload(|policy| policy.erase_again_after = Duration::ZERO), 0),
        (
            "it was handed out, but never given an order",
            |rig| {
                rig.allocate(1).expect("allocates");
                rig.operator().release("SN-1", TakeBack::default()).expect("is taken back");
            },
            2,
        ),
        (
            "somebody had it",
            |rig| {
                let agent = rig.enrolled(1);
                agent.inventory(rig).expect("takes the inventory");
                let order = agent.order(rig, 0).expect("answers").expect("an erase order");
                agent.outcome(rig, order.id, &agent.sealed(left_alone(&agent, &order))).expect("takes the proof");
                rig.allocate(1).expect("allocates");
                let _ = agent.install_order(rig);
                rig.operator().release("SN-1", TakeBack::default()).expect("is taken back");
            },
            0,
        ),
    ];
    for (name, since, offered) in cases {
        let mut rig = Rig::new();
        sealed(&rig, 1);
        since(&mut rig);
        let (_, order) = rig.erasing(1);
        assert_eq!(erase_task(&order).fresh.len(), offered, "{name}");
    }
}

#[test]
fn lies_about_being_left_alone_quarantine_the_machine() {
    type Lie = fn(&mut ErasureCertificate);
    let cases: [(&str, Lie); 5] = [
        ("it counts more writes", |c| c.rest.iter_mut().for_each(|rest| rest.write_commands += 1)),
        ("its seals are others", |c| c.rest.iter_mut().for_each(|rest| rest.seals.clear())),
        ("it tells nothing of how it is", |c| c.rest = None),
        ("it refers to another drive's erase", |c| c.drive.serial.push('x')),
        ("it refers to what isn't there", |c| {
            c.unwritten = Some(Unwritten { number: 9, certificate: "00".into() });
        }),
    ];
    for (name, lie) in cases {
        let rig = Rig::new();
        sealed(&rig, 1);
        let (agent, order) = rig.erasing(1);
        let mut certificates = left_alone(&agent, &order);
        lie(&mut certificates[0]);
        agent.outcome(&rig, order.id, &agent.sealed(certificates)).expect("even a lie is stored");
        assert_eq!(rig.state(1), State::Quarantined, "{name}");
        let again =
            rig.operator().release("SN-1", TakeBack { despite_quarantine: true }).expect("an explicit decision");
        assert_eq!(again.state, State::Releasing);
        let (_, order) = rig.erasing(1);
        assert!(erase_task(&order).fresh.is_empty(), "{name}: nothing is left to rest after that");
    }
    // Never offered, but claimed.
    let rig = Rig::new();
    let (agent, order) = rig.erasing(1);
    let unwritten = Some(Unwritten { number: 1, certificate: "00".into() });
    let certificates = agent.certificates(&order).into_iter();
    let claimed = certificates.map(|c| ErasureCertificate { unwritten: unwritten.clone(), rest: Some(rest()), ..c });
    agent.outcome(&rig, order.id, &agent.sealed(claimed.collect())).expect("even a lie is stored");
    assert_eq!(rig.state(1), State::Quarantined);
    assert!(rig.machine(1).reason.expect("a reason").contains("nobody wrote to it since an earlier one"));
    assert_eq!(erase_task(&order).policy, Policy::Purge);
}
