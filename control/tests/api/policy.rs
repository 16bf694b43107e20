//! Which erasures are good enough: the server's policy, and what a project was promised.

use drophammer_protocol::certificate::Verdict;
use drophammer_protocol::erase::{Method, Policy};
use drophammer_protocol::machine::{Allocation, State, TakeBack};
use drophammer_protocol::order::{Order, Outcome};

use super::gate::changed;
use super::rig::*;

/// What a project was promised is owed until it's proven, whatever the configuration says meanwhile.
#[test]
fn a_project_gets_the_erase_that_it_was_promised() {
    let mut rig = Rig::new();
    let ordered = |order: &Order| erase_task(order).policy;
    let wanted = |project: &str| Allocation { project: Some(project.into()), ..allocation() };
    let give = |rig: &Rig| {
        rig.operator().allocate("SN-1", &wanted("strict")).expect("allocates");
    };
    rig.waiting(1);
    let refused = rig.operator().allocate("SN-1", &wanted("nobody")).expect_err("unknown").to_string();
    assert!(refused.contains("there is no project \"nobody\""), "{refused}");
    assert_eq!(rig.state(1), State::Waiting);
    give(&rig);
    assert_eq!(rig.machine(1).allocation.and_then(|a| a.project).as_deref(), Some("strict"));

    // The project is gone from the configuration, and the server restarted; a boot erases for a tenant, too.
    rig.restart();
    rig.reload(|policy| policy.projects.clear());
    let (agent, order) = rig.erasing(1);
    assert_eq!(ordered(&order), Policy::RekeyOnly);
    agent.outcome(&rig, order.id, &rekeyed(&agent, &order)).expect("takes the proof");
    assert_eq!(rig.state(1), State::Allocated, "the tenant has it still, and is owed the same again");

    rig.operator().release("SN-1", TakeBack::default()).expect("releases");
    let (agent, order) = rig.erasing(1);
    assert_eq!(ordered(&order), Policy::RekeyOnly);
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("is stored");
    let reason = rig.machine(1).reason.unwrap_or_default();
    assert!(reason.contains("is of an erase by policy purge, and rekey-only was ordered"), "{reason}");

    rig.operator().release("SN-1", TakeBack { despite_quarantine: true }).expect("releases");
    rig.restart();
    let (agent, order) = rig.erasing(1);
    assert_eq!(ordered(&order), Policy::RekeyOnly, "a decision forgives nothing");
    agent.outcome(&rig, order.id, &rekeyed(&agent, &order)).expect("takes the proof");
    assert_eq!(rig.state(1), State::Waiting);
    let (_, order) = rig.erasing(1);
    assert_eq!(ordered(&order), Policy::Purge, "nobody is owed anything");
}

#[test]
fn an_order_is_judged_by_the_policy_that_it_was_given_out_with() {
    let rig = Rig::new();
    let (agent, order) = rig.erasing(1);
    rig.reload(|policy| policy.erase = Policy::RekeyOnly);
    assert_eq!(agent.order(&rig, 0).expect("answers"), Some(order.clone()), "the same until its outcome is in");
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
    assert_eq!(rig.state(1), State::Waiting);
    let (_, order) = rig.erasing(1);
    assert_eq!(erase_task(&order).policy, Policy::RekeyOnly, "from the next one on");
    rig.reload(|policy| policy.erase = Policy::Clear);
    let (agent, order) = rig.erasing(2);
    rig.reload(|policy| policy.erase = Policy::Purge);
    agent.inventory(&rig).expect("a repeated inventory");
    let again = agent.order(&rig, 0).expect("answers").expect("an order");
    assert_eq!((erase_task(&order).policy, erase_task(&again).policy), (Policy::Clear, Policy::Purge));
    let old = agent.outcome(&rig, order.id, &agent.erased(&order));
    assert_eq!(old.expect_err("is no order any more").status, 404);
}

/// Proven under the strictest policy.
fn rekeyed(agent: &Agent, order: &Order) -> Outcome {
    changed(agent, order, |c| {
        c.policy = Policy::RekeyOnly;
        c.attempts[0].method = Method::NvmeFormatCrypto;
        c.verdict = Verdict::Erased { method: Method::NvmeFormatCrypto };
    })
}
