//! A new system for the same tenant, beside the drives that its layout keeps.

use drophammer_protocol::inventory::{DiskId, Inventory};
use drophammer_protocol::layout::{Drive, Encrypted, Layout, Partition, Select};
use drophammer_protocol::machine::{Allocation, Reinstall, State, TakeBack};
use drophammer_protocol::order::{Install, Kept, Outcome};

use super::rig::*;

fn kept() -> DiskId {
    DiskId::new("big-1", 100 << 30)
}

/// The system where it always goes, and the large drive for the tenant, encrypted.
fn layout() -> Layout {
    let mut layout = Layout::single(None);
    layout.drives.push(Drive {
        name: "data".into(),
        select: Select { serial: Some("big-1".into()), ..Select::default() },
        keep: true,
        partitions: vec![Partition { name: "own".into(), size: None, kind: Default::default() }],
    });
    layout.encrypted = vec![Encrypted { name: "safe".into(), on: "data/own".into() }];
    layout
}

fn running(rig: &Rig, layout: Layout) -> Install {
    let agent = rig.waiting(1);
    let wanted = Allocation { layout: Some(layout), ..allocation() };
    rig.operator().allocate("SN-1", &wanted).expect("allocates");
    finish(rig, &agent)
}

fn finish(rig: &Rig, agent: &Agent) -> Install {
    let (id, install) = agent.install_order(rig);
    agent.outcome(rig, id, &installed()).expect("takes the outcome");
    phone_home(rig, 1, &install.phone_home.token).expect("is heard");
    install
}

fn reinstall(rig: &Rig) -> anyhow::Result<State> {
    Ok(rig.operator().reinstall("SN-1", &Reinstall::default())?.state)
}

#[test]
fn a_new_system_and_the_same_data() {
    let mut rig = Rig::new();
    let first = running(&rig, layout());
    assert_eq!(first.drives.len(), 2, "the first time everything is made");
    assert_eq!(rig.machine(1).keeps, [("data".to_owned(), kept())].into(), "what a reinstall would keep");
    for round in 0..2 {
        assert_eq!(reinstall(&rig).expect("accepted"), State::Releasing, "round {round}");
        rig.restart();
        let (agent, order) = rig.erasing(1);
        let erase = erase_task(&order);
        assert_eq!((&erase.disks[..], &erase.kept.drives["data"]), (&[DiskId::new("small-1", 10 << 30)][..], &kept()));
        let on_it = &erase.kept.layout;
        assert_eq!(
            (on_it.drives.len(), on_it.encrypted.len(), on_it.filesystems.len()),
            (1, 1, 0),
            "what must be there"
        );
        agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
        assert_eq!(rig.state(1), State::Allocated);
        let again = finish(&rig, &agent);
        assert_eq!((again.drives["system"].serial.as_str(), again.drives.len()), ("small-1", 1));
        assert_eq!(again.kept["data"], kept());
        assert_eq!(again.disk_key, first.disk_key, "what is encrypted on it opens with the key that it was made with");
        assert_eq!(rig.state(1), State::Running);
    }
    // A whole new beginning has new keys, and a new tenant gets nothing of the old one.
    rig.operator().reprovision("SN-1", TakeBack::default()).expect("accepted");
    let (agent, order) = rig.erasing(1);
    assert_eq!((erase_task(&order).disks.len(), erase_task(&order).kept.drives.len()), (2, 0));
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
    let anew = finish(&rig, &agent);
    assert_ne!(anew.disk_key, first.disk_key);

    reinstall(&rig).expect("accepted");
    let (agent, order) = rig.erasing(1);
    rig.operator().release("SN-1", TakeBack::default()).expect("its tenant leaves in the middle of it");
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect_err("too late");
    let (agent, order) = rig.erasing(1);
    assert_eq!(erase_task(&order).kept, Kept::default(), "everything of the tenant's goes");
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
    assert_eq!(rig.state(1), State::Waiting);
}

#[test]
fn failures_on_the_way_change_nothing_about_what_is_kept() {
    let rig = Rig::new();
    running(&rig, layout());
    reinstall(&rig).expect("accepted");
    for boot in 1..3 {
        let (agent, order) = rig.erasing(1);
        assert!(erase_task(&order).kept.has(&kept()), "boot {boot}");
        agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
        let (id, _) = agent.install_order(&rig);
        let failed = Outcome::Failed { reason: "bad chunk".into() };
        agent.outcome(&rig, id, &failed).expect("is stored");
    }
    // The third boot doesn't see the drive that it is to keep.
    let agent = rig.enrolled(1);
    let all = inventory(1);
    let less = Inventory { disks: vec![disk("small-1", 10)], ..all };
    agent.inventory_of(&rig, &less).expect("is taken");
    let machine = rig.machine(1);
    assert_eq!(machine.state, State::Quarantined);
    let reason = machine.reason.unwrap_or_default();
    assert!(reason.contains("which the reinstall is to keep, isn't there: put it back"), "{reason}");

    assert!(reinstall(&rig).expect_err("quarantined").to_string().contains("--despite-quarantine"));
    let how = Reinstall { despite_quarantine: true, ..Reinstall::default() };
    rig.operator().reinstall("SN-1", &how).expect("somebody put it back");
    let (agent, order) = rig.erasing(1);
    assert!(erase_task(&order).kept.has(&kept()));
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
    finish(&rig, &agent);
    assert_eq!(rig.state(1), State::Running);
}

#[test]
fn what_would_lose_something_is_refused() {
    let rig = Rig::new();
    running(&rig, Layout::single(Some("small-1")));
    let said = reinstall(&rig).expect_err("nothing is kept").to_string();
    assert!(said.contains("its layout keeps no drive"), "{said}");
    assert_eq!(rig.state(1), State::Running);

    let rig = Rig::new();
    let agent = rig.waiting(1);
    let said = reinstall(&rig).expect_err("nobody has it").to_string();
    assert!(said.contains("it has no allocation"), "{said}");
    let wanted = Allocation { layout: Some(layout()), ..allocation() };
    rig.operator().allocate("SN-1", &wanted).expect("allocates");
    let said = reinstall(&rig).expect_err("nothing is installed yet").to_string();
    assert!(said.contains("reprovision it"), "{said}");
    finish(&rig, &agent);

    let with = |image: &str| Reinstall { image: Some(image.into()), ..Reinstall::default() };
    let said = rig.operator().reinstall("SN-1", &with("nonesuch")).expect_err("no such image").to_string();
    assert!(said.contains("image nonesuch isn't among those"), "{said}");
    assert_eq!(rig.state(1), State::Running, "nothing has changed");
    rig.operator().reinstall("SN-1", &with("debian/12.1")).expect("accepted");
    let agent = rig.waiting(1);
    assert_eq!(finish(&rig, &agent).image, "debian/12.1", "another version, as asked for");
}

/// An agent can't make a proof of its own that leaves something out.
#[test]
fn only_what_the_order_keeps_is_left_out() {
    let rig = Rig::new();
    running(&rig, layout());
    rig.operator().reprovision("SN-1", TakeBack::default()).expect("accepted");
    let (agent, order) = rig.erasing(1);
    let mut certificates = agent.certificates(&order);
    certificates.retain(|certificate| certificate.drive.serial != "big-1");
    agent.outcome(&rig, order.id, &agent.sealed(certificates)).expect("is stored");
    let machine = rig.machine(1);
    assert_eq!(machine.state, State::Quarantined);
    assert!(machine.reason.unwrap_or_default().contains("disk big-1 (107374182400 bytes) has no certificate"));
}
