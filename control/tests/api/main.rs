//! The control API as agents and operators meet it: real routers, real sockets, real signatures.

mod backup;
mod boot_servers;
mod drives;
mod fuzzed;
mod gate;
mod policy;
mod pool;
mod reinstall;
mod rest;
pub(crate) mod rig;
mod rights;
mod sources;
mod whole;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use drophammer_control::client::Client;
use drophammer_protocol::api::*;
use drophammer_protocol::boot_server::Seen;
use drophammer_protocol::event::{Event, Phase, Recorded, Step};
use drophammer_protocol::id::Mac;
use drophammer_protocol::inventory::{Disk, DiskId, Inventory};
use drophammer_protocol::layout::SYSTEM;
use drophammer_protocol::machine::{Allocation, State, TakeBack};
use drophammer_protocol::order::{Outcome, Task};
use drophammer_protocol::sight::{Asker, Sight};
use drophammer_protocol::system::network::{Ip, Network, Port};
use drophammer_protocol::system::{PasswordHash, System, User, UserData};
use drophammer_protocol::ticket::BootDecision;
use reqwest::Method as Verb;
use uuid::Uuid;

use self::rig::*;

/// From the first packet to a tenant, back, and to the next install; with and without a server that dies in between.
#[test]
fn the_whole_road_with_a_server_that_restarts_between_all_steps() {
    for restarts in [false, true] {
        let mut rig = Rig::new();
        let next = |rig: &mut Rig| {
            if restarts {
                rig.restart();
            }
        };
        rig.control().observe(seen("DISCOVER")).expect("is noted");
        let mut agent = rig.boot(1);
        assert_eq!(rig.state(1), State::Discovered);
        next(&mut rig);
        assert_eq!(rig.control().ticket(agent.ticket.boot).expect("reads"), Some(agent.ticket.clone()));
        agent.enrol(&rig).expect("enrols");
        assert_eq!(rig.state(1), State::Enrolled);
        assert_eq!(rig.control().ticket(agent.ticket.boot).expect("reads"), None, "a used ticket is given to nobody");
        next(&mut rig);
        assert_eq!(agent.order(&rig, 0).expect("answers"), None);
        agent.inventory(&rig).expect("takes the inventory");
        next(&mut rig);
        let order = agent.order(&rig, 0).expect("answers").expect("an erase order");
        let disks = vec![DiskId::new("big-1", 100 << 30), DiskId::new("small-1", 10 << 30)];
        let Task::Erase(task) = &order.task else { panic!("an erase order, not {order:?}") };
        assert_eq!(task.disks, disks);
        agent.inventory(&rig).expect("a repeated inventory is as good as one");
        next(&mut rig);
        assert_eq!(agent.order(&rig, 0).expect("answers"), Some(order.clone()), "the same until its outcome is in");
        assert_eq!(rig.state(1), State::Erasing);
        agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
        next(&mut rig);
        agent.outcome(&rig, order.id, &agent.erased(&order)).expect("twice is as good as once");
        let other = Outcome::Failed { reason: "changed my mind".into() };
        assert_eq!(agent.outcome(&rig, order.id, &other).expect_err("contradicts itself").status, 409);
        assert_eq!(rig.state(1), State::Waiting);
        assert_eq!(rig.operator().certificates("SN-1").expect("lists").certificates.len(), 2);

        let machine = rig.allocate(1).expect("allocates");
        assert_eq!(
            (machine.state, machine.allocation.map(|a| a.image)),
            (State::Allocated, Some("debian/12.2".into()))
        );
        next(&mut rig);
        let (id, install) = agent.install_order(&rig);
        assert_eq!(rig.state(1), State::Installing);
        next(&mut rig);
        assert_eq!(agent.install_order(&rig), (id, install.clone()), "the same order with the same token");
        assert_eq!(install.drives[SYSTEM].serial, "small-1", "the smallest that fits");
        assert_eq!(install.stores, ["http://10.77.0.1:8080/images"]);
        assert_eq!((install.system, install.cmdline.as_str()), (allocation().system, "console=ttyS0"));
        agent.outcome(&rig, id, &installed()).expect("takes the outcome");
        next(&mut rig);
        agent.outcome(&rig, id, &installed()).expect("twice is as good as once");
        assert_eq!(rig.state(1), State::Booting);
        assert_eq!(rig.net_boot(1), BootDecision::LocalDisk);
        phone_home(&rig, 1, &install.phone_home.token).expect("is heard");
        next(&mut rig);
        phone_home(&rig, 1, &install.phone_home.token).expect("a caller that got no answer hears that it was heard");
        let machine = rig.machine(1);
        assert_eq!((machine.state, machine.ssh_host_keys.len(), machine.name.as_str()), (State::Running, 1, "SN-1"));
        assert_eq!(rig.net_boot(1), BootDecision::LocalDisk);

        let machine = rig.operator().reprovision("web-1", TakeBack::default()).expect("takes it back");
        assert_eq!((machine.state, machine.allocation.is_some()), (State::Releasing, true));
        assert!(machine.reason.expect("a reason").contains("by hand"), "there is no power hook");
        assert_eq!(phone_home(&rig, 1, &install.phone_home.token).expect_err("its install is history").status, 410);
        next(&mut rig);
        let agent = rig.waiting(1);
        assert_eq!(rig.state(1), State::Allocated, "it had an allocation");
        next(&mut rig);
        let (_, again) = agent.install_order(&rig);
        assert_ne!(again.phone_home.token, install.phone_home.token);
        assert_eq!((again.image, again.drives), (install.image, install.drives));
        let machine = rig.operator().release("web-1", TakeBack::default()).expect("takes it back");
        assert_eq!((machine.state, machine.allocation), (State::Releasing, None));

        next(&mut rig);
        let events = rig.operator().events("SN-1", 0, 0).expect("lists");
        assert_eq!(events.first().map(|e| e.message.as_str()), Some("DISCOVER"), "seen before it was known");
        assert!(events.is_sorted_by(|a, b| a.position < b.position));
        let after = events[3].position;
        assert_eq!(rig.operator().events("SN-1", after, 0).expect("lists"), events[4..]);
    }
}

#[test]
fn machines_whose_disks_cannot_be_named_stay_out() {
    let rig = Rig::new();
    for (n, name, disks, want) in [
        (1, "no disks", vec![], "no disk that could hold data"),
        (2, "no serial", vec![Disk { serial: None, ..disk("x", 1) }], "tells no serial number"),
        (3, "twins", vec![disk("x", 1), disk("x", 1)], "can't tell them apart"),
    ] {
        let agent = rig.enrolled(n);
        let inventory = Inventory { disks, ..inventory(n) };
        agent.inventory_of(&rig, &inventory).expect("is taken");
        let machine = rig.machine(n);
        assert_eq!(machine.state, State::Quarantined, "{name}");
        assert!(machine.reason.expect("a reason").contains(want), "{name}");
        assert_eq!(agent.order(&rig, 0).expect("answers"), None, "{name}");
    }
}

/// Every agent call, with everything that isn't the credential of this machine's present boot.
#[test]
fn credentials_open_one_boot_of_one_machine() {
    let rig = Rig::new();
    let old = rig.enrolled(1);
    let (present, order) = rig.erasing(1);
    let (stranger, _) = rig.erasing(2);
    let mut forged = present.credential.clone();
    let last = if forged.pop() == Some('0') { '1' } else { '0' };
    forged.push(last);
    // The stranger's secret under the name of the present boot.
    let (holder, secret) = (present.credential.split('.').next(), stranger.credential.split('.').nth(1));
    let crossed = format!("{}.{}", holder.expect("a holder"), secret.expect("a secret"));
    let outcome = serde_json::to_vec(&present.erased(&order)).expect("serializes");
    let inventory = serde_json::to_vec(&inventory(1)).expect("serializes");
    let events = serde_json::to_vec(&Events { uptime_ms: 1, events: vec![] }).expect("serializes");
    let outcome_path = format!("{AGENT_ORDERS}/{}/outcome", order.id);
    let calls = [
        (Verb::PUT, AGENT_INVENTORY, &inventory),
        (Verb::POST, AGENT_EVENTS, &events),
        (Verb::GET, AGENT_ORDER, &Vec::new()),
        (Verb::POST, outcome_path.as_str(), &outcome),
    ];
    for (verb, path, body) in calls {
        for (name, credential, status) in [
            ("nothing", "", 401),
            ("nonsense", "nonsense", 401),
            ("a changed one", &forged, 401),
            ("another's secret", &crossed, 401),
            ("a ticket's token", &present.ticket.token, 401),
            ("an earlier boot's", &old.credential, 410),
        ] {
            let refused = rig.agent_raw(verb.clone(), path, credential, body.clone()).expect_err(name);
            assert_eq!(refused.status, status, "{path} with {name}: {}", refused.detail);
        }
    }
    // Another machine's credential is good, but only for that machine.
    let of_another = rig.agent_raw(Verb::PUT, AGENT_INVENTORY, &stranger.credential, inventory.clone());
    assert_eq!(of_another.expect_err("another's inventory").status, 403);
    let of_another = rig.agent_raw(Verb::POST, &outcome_path, &stranger.credential, outcome.clone());
    assert_eq!(of_another.expect_err("another's order").status, 404);
    let theirs = stranger.order(&rig, 0).expect("answers").expect("its own order");
    assert_eq!((theirs.machine, rig.state(1), rig.state(2)), (machine(2), State::Erasing, State::Erasing));
    present.outcome(&rig, order.id, &present.erased(&order)).expect("the right one still works");
}

#[test]
fn a_ticket_is_good_once_and_for_its_machine() {
    let rig = Rig::new();
    let mut agent = rig.boot(1);
    let mut thief = Agent { ticket: agent.ticket.clone(), ..rig.boot(2) };
    thief.ticket.machine = machine(2);
    assert_eq!(thief.enrol(&rig).expect_err("of another machine").status, 403);
    agent.enrol(&rig).expect("the refused call used nothing up");
    let first = agent.credential.clone();
    let mut thief = Agent { ticket: agent.ticket.clone(), ..rig.boot(2) };
    assert_eq!(thief.enrol(&rig).expect_err("used, by the holder of another key").status, 401);
    agent.enrol(&rig).expect("the answer was lost, so it asks again");
    assert_eq!(agent.credential, first);
    agent.inventory(&rig).expect("is the one that enrolled");
    assert_eq!(agent.enrol(&rig).expect_err("it had its answer").status, 401);
    let mut forged = rig.boot(1);
    forged.ticket.token = forged.ticket.token.replace(['0', '1', '2'], "3");
    assert_eq!(forged.enrol(&rig).expect_err("forged").status, 401);
    assert_eq!(rig.state(1), State::Erasing);
}

#[test]
fn a_machine_with_a_tenant_takes_no_agent() {
    let rig = Rig::new();
    let mut late = rig.boot(1);
    let (agent, install) = rig.booting(1);
    assert_eq!(late.enrol(&rig).expect_err("its ticket is void").status, 401);
    assert_eq!(agent.order(&rig, 0).expect_err("its work is done").status, 410);
    assert_eq!(agent.inventory(&rig).expect_err("its work is done").status, 410);
    assert_eq!(agent.events(&rig, Events { uptime_ms: 1, events: vec![event(1, "kexec")] }), Ok(1), "last words");
    let reason = || rig.operator().machine(&machine(1).to_string()).expect("is there").reason;
    assert_eq!((rig.net_boot(1), rig.net_boot(1)), (BootDecision::LocalDisk, BootDecision::LocalDisk));
    assert!(
        reason().is_some_and(|why| why.contains("hasn't phoned home") && why.contains("2 times")),
        "{:?}",
        reason()
    );
    phone_home(&rig, 1, &install.phone_home.token).expect("is heard");
    let changed = || rig.operator().machine(&machine(1).to_string()).expect("is there").changed_ms;
    let since = changed();
    assert_eq!((rig.state(1), rig.net_boot(1)), (State::Running, BootDecision::LocalDisk));
    assert_eq!((reason(), changed()), (None, since), "its tenant's boots are no news");
    let refused = rig.allocate(1).expect_err("taken").to_string();
    assert_eq!(refused, "the machine is running: it is taken already; release it first");
    let other = format!("{}.{}", Uuid::nil().simple(), "0".repeat(64));
    assert_eq!(phone_home(&rig, 1, &other).expect_err("not its token").status, 401);
    assert_eq!(phone_home(&rig, 2, &install.phone_home.token).expect_err("not its machine").status, 401);
}

#[test]
fn installs_that_fail_are_tried_again_but_not_forever() {
    let rig = Rig::new();
    let (mut agent, mut order, _) = rig.installing(1);
    for boot in 1..=3 {
        agent.outcome(&rig, order, &Outcome::Failed { reason: format!("chunk {boot} is corrupt") }).expect("is stored");
        let machine = rig.machine(1);
        let reason = machine.reason.unwrap_or_default();
        assert_eq!(machine.failures, boot);
        assert!(reason.contains(&format!("chunk {boot} is corrupt")), "{reason}");
        if boot == 3 {
            assert_eq!(machine.state, State::Quarantined);
            break;
        }
        assert_eq!(machine.state, State::Allocated);
        let reboot = agent.order(&rig, 0).expect("answers").expect("an order");
        assert!(matches!(reboot.task, Task::Reboot { .. }), "{reboot:?}");
        agent = rig.waiting(1);
        (order, _) = agent.install_order(&rig);
    }
    let anyway = TakeBack { despite_quarantine: true };
    let machine = rig.operator().release("SN-1", anyway).expect("releases");
    assert_eq!((machine.state, machine.failures, machine.allocation), (State::Releasing, 0, None));
}

#[test]
fn boots_that_die_quarantine_the_machine_with_their_last_words() {
    let rig = Rig::new();
    for boot in 1..=3 {
        let (agent, _) = rig.erasing(1);
        assert_eq!(rig.machine(1).failures, boot - 1);
        let said = Event { step: Step::Failed, ..event(1, "the disk vanished") };
        agent.events(&rig, Events { uptime_ms: 1, events: vec![said] }).expect("is stored");
    }
    rig.enrolled(1);
    let machine = rig.machine(1);
    assert_eq!(machine.state, State::Quarantined);
    assert_eq!(
        machine.reason.as_deref(),
        Some("3 boots in a row got no further than erasing; the last one: the disk vanished")
    );
}

#[test]
fn of_two_who_want_a_machine_one_gets_it() {
    let rig = Rig::new();
    rig.waiting(1);
    let wants: Vec<_> = std::thread::scope(|s| {
        let asked: Vec<_> = (0..4)
            .map(|i| {
                let (rig, wanted) = (&rig, Allocation { system: system(&format!("web-{i}")), ..allocation() });
                s.spawn(move || rig.operator().allocate("SN-1", &wanted))
            })
            .collect();
        asked.into_iter().map(|a| a.join().expect("ends")).collect()
    });
    let won: Vec<_> = wants.iter().flatten().filter_map(|m| m.allocation.clone()).collect();
    assert_eq!((won.len(), rig.machine(1).allocation.as_ref()), (1, won.first()));
    for lost in wants.iter().filter_map(|w| w.as_ref().err()) {
        assert!(lost.to_string().contains("it is taken already"), "{lost}");
    }
}

#[test]
fn wishes_that_cannot_be_met_are_refused_with_a_sentence() {
    let rig = Rig::new();
    let refused = |wanted: &Allocation| rig.operator().allocate("SN-1", wanted).expect_err("refused").to_string();
    rig.waiting(1);
    for (name, wanted, want) in [
        ("image", Allocation { image: "debian/13".into(), ..allocation() }, "image debian/13 isn't among"),
        ("hostname", Allocation { system: system("web_1"), ..allocation() }, "is not a hostname"),
        (
            "key",
            Allocation { system: System { ssh_keys: vec!["hunter2".into()], ..allocation().system }, ..allocation() },
            "SSH key 1 is not",
        ),
        (
            "a port",
            Allocation { system: System { network: on(Mac([8; 6])), ..allocation().system }, ..allocation() },
            "the machine has no port 08:08:08:08:08:08",
        ),
        ("disk", Allocation { disk: Some("other".into()), ..allocation() }, "has another serial"),
    ] {
        let why = refused(&wanted);
        assert!(why.contains(want), "{name}: {why}");
        assert_eq!((rig.state(1), rig.machine(1).allocation), (State::Waiting, None), "{name}: nothing changed");
    }
    rig.erasing(1);
    assert!(refused(&allocation()).contains("the machine is erasing: only a waiting machine"));
    let unknown = rig.operator().machine("nobody/../x").expect_err("unknown").to_string();
    assert!(unknown.contains("no machine is called \"nobody/../x\""), "{unknown}");
}

fn on(mac: Mac) -> Network {
    let ip = Ip { dhcp4: true, ..Ip::default() };
    Network { ports: vec![Port { mac, mtu: None, ip }], ..Network::default() }
}

#[test]
fn secrets_of_a_system_reach_its_machine_and_nobody_else() {
    const HASH: &str = "$5$saltsalt$KvGFuXKTHlFN2YNq7ErIXpsUT9E8Ai5b9m7i9TFRpR9";
    const DATA: &str = "#cloud-config\npassword: hunter2\n";
    let rig = Rig::new();
    let agent = rig.waiting(1);
    let user = User { name: "ann".into(), password: Some(PasswordHash::new(HASH)), ..User::default() };
    let system = System { users: vec![user], user_data: Some(UserData::CloudInit(DATA.into())), ..system("web-1") };
    let answer = rig.operator().allocate("SN-1", &Allocation { system: system.clone(), ..allocation() });
    let answer = answer.expect("allocates");
    let (_, install) = agent.install_order(&rig);
    assert_eq!(install.system, system);
    let told = [
        serde_json::to_string(&answer).expect("JSON"),
        serde_json::to_string(&rig.operator().machines().expect("lists")).expect("JSON"),
        serde_json::to_string(&rig.operator().events("SN-1", 0, 0).expect("lists")).expect("JSON"),
        format!("{install:?}"),
    ];
    for text in told {
        assert!(!text.contains(HASH) && !text.contains("hunter2"), "{text}");
        assert!(text.contains("web-1"), "it is about that machine: {text}");
    }
}

#[test]
fn an_image_that_is_gone_is_waited_for() {
    let rig = Rig::new();
    let agent = rig.waiting(1);
    rig.allocate(1).expect("allocates");
    let (here, away) = (rig.path().join("images/debian/12.2"), rig.path().join("away"));
    fs::rename(&here, &away).expect("moves");
    assert_eq!(agent.order(&rig, 0).expect("answers"), None);
    let reason = rig.machine(1).reason.unwrap_or_default();
    assert!(reason.contains("image debian/12.2 isn't among"), "{reason}");
    fs::rename(&away, &here).expect("moves back");
    agent.install_order(&rig);
    assert_eq!(rig.machine(1).reason, Some(reason), "kept until the install got past it");
}

#[test]
fn a_revoked_image_is_neither_offered_nor_installed() {
    let mut rig = Rig::new();
    let agent = rig.waiting(1);
    rig.allocate(1).expect("allocates");
    rig.revoke("debian/12.2", "it has a back door");
    assert_eq!(agent.order(&rig, 0).expect("answers"), None, "though it was allocated before");
    let why = "image debian/12.2 was revoked on 2023-11-14: it has a back door; choose another version";
    let reason = rig.machine(1).reason.unwrap_or_default();
    assert!(reason.contains(why), "{reason}");

    let _other = rig.waiting(2);
    let named = Allocation { image: "debian/12.2".into(), ..allocation() };
    let denied = rig.operator().allocate("SN-2", &named).expect_err("revoked");
    assert!(format!("{denied:#}").contains(why), "{denied:#}");
    rig.allocate(2).expect("allocates");
    assert_eq!(rig.machine(2).allocation.map(|a| a.image).as_deref(), Some("debian/12.1"), "the newest that is left");

    fs::remove_file(rig.path().join("images/revoked.json")).expect("removes");
    rig.restart();
    let offered: Vec<String> = rig.operator().images().expect("lists").into_iter().map(|image| image.version).collect();
    assert_eq!(offered, ["12.1"], "whoever removes the list, and whoever restarts");
}

#[test]
fn taking_a_machine_back_ends_what_its_agent_does() {
    let rig = Rig::new();
    let (agent, order, _) = rig.installing(1);
    rig.operator().release("SN-1", TakeBack::default()).expect("releases");
    assert_eq!(agent.outcome(&rig, order, &installed()).expect_err("must not be started").status, 410);
    let reboot = agent.order(&rig, 0).expect("answers").expect("an order");
    assert!(matches!(reboot.task, Task::Reboot { .. }), "{reboot:?}");
    assert_eq!(agent.inventory(&rig).expect_err("over").status, 410);
    assert_eq!(rig.state(1), State::Releasing);
    let why = rig.operator().reprovision("SN-1", TakeBack::default()).expect_err("nothing is allocated").to_string();
    assert!(why.contains("no allocation"), "{why}");
    let never = rig.boot(2);
    assert_eq!(never.ticket.machine, machine(2));
    let why =
        rig.operator().release(&machine(2).to_string(), TakeBack::default()).expect_err("never enrolled").to_string();
    assert!(why.contains("never enrolled"), "{why}");
}

#[test]
fn long_polls_end_with_news() {
    let rig = Rig::new();
    let agent = rig.waiting(1);
    std::thread::scope(|s| {
        let order = s.spawn(|| agent.order(&rig, 60));
        rig.allocate(1).expect("allocates");
        let order = order.join().expect("ends").expect("answers").expect("an order before the time is up");
        assert!(matches!(order.task, Task::Install(_)));
    });
    let last = rig.operator().events("SN-1", 0, 0).expect("lists").last().map_or(0, |e| e.position);
    std::thread::scope(|s| {
        let news = s.spawn(|| rig.operator().events("SN-1", last, 60));
        rig.control().observe(seen("REQUEST")).expect("is noted");
        let news = news.join().expect("ends").expect("answers");
        assert_eq!(news.first().map(|e| (e.message.as_str(), e.boot)), Some(("REQUEST", None)));
    });
    assert_eq!(rig.operator().events("SN-1", u64::MAX, 0).expect("lists"), []);
}

#[test]
fn who_never_came_far_is_explained_by_its_mac() {
    let rig = Rig::new();
    let mac = seen("").mac.to_string();
    let explained = |mac: &str| rig.operator().explanation(mac).map(|explanation| explanation.rule);
    assert_eq!(explained(&mac).expect("explains"), "never-seen");
    let sight = Some(Sight::Offered { by: Asker::Bios, address: Ipv4Addr::new(10, 77, 0, 100) });
    for message in ["OFFER", "OFFER again"] {
        rig.control().observe(Seen { sight: sight.clone(), ..seen(message) }).expect("is noted");
    }
    assert_eq!(explained(&mac).expect("explains"), "offer-lost");
    let events = |after| rig.operator().events(&mac, after, 1).expect("lists");
    let messages: Vec<_> = events(0).into_iter().map(|event| event.message).collect();
    assert_eq!(messages, ["OFFER", "OFFER again"]);
    assert_eq!(events(2), [], "nothing new, after a while");
    let other = rig.operator().machine(&mac).expect_err("it's nobody yet").to_string();
    assert!(other.contains("no machine is called"), "{other}");
    explained("SN-9").expect_err("neither a machine nor a MAC");

    rig.boot(1);
    assert_eq!(rig.operator().machine(&mac).expect("somebody now").state, State::Discovered);
    let messages: Vec<_> = events(0).into_iter().map(|event| event.message).collect();
    assert_eq!(messages, ["OFFER", "OFFER again", "seen for the first time"]);
}

#[test]
fn the_power_hook_runs_until_it_has_ended() {
    let hook = |dir: &Path, script: &str| {
        let path = dir.join("hook");
        fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", dir.display())).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("makes it a program");
        path
    };
    // Hangs when it runs for the first time, so that the server is stopped in the middle.
    let script = "if [ -e began ]; then echo \"$*\" > args; else : > began; exec sleep 600; fi";
    let mut rig = Rig::with(|config, dir| config.power_hook = Some(hook(dir, script)));
    rig.waiting(1);
    let machine = rig.operator().release("SN-1", TakeBack::default()).expect("releases");
    assert!(machine.reason.unwrap_or_default().contains("power-cycling"));
    await_that(|| rig.path().join("began").exists());
    rig.restart();
    let cycled = |rig: &Rig| rig.machine(1).reason.is_some_and(|r| r.starts_with("power-cycled"));
    await_that(|| cycled(&rig));
    let args = fs::read_to_string(rig.path().join("args")).expect("it ran again");
    assert_eq!(args.trim(), format!("cycle {} SN-1", rig::machine(1)));

    let rig = Rig::with(|config, dir| config.power_hook = Some(hook(dir, "echo BMC is away >&2; exit 7")));
    rig.waiting(1);
    rig.operator().release("SN-1", TakeBack::default()).expect("releases all the same");
    let failed = |e: &Recorded| e.step == Step::Failed && e.message.contains("BMC is away");
    await_that(|| rig.operator().events("SN-1", 0, 0).expect("lists").iter().any(failed));
    let reason = rig.machine(1).reason.unwrap_or_default();
    assert!(reason.contains("exit status: 7") && reason.contains("by hand"), "{reason}");
}

#[test]
fn tokens_have_roles_and_nothing_is_open() {
    let mut rig = Rig::new();
    rig.waiting(1);
    let token = |name: &str| {
        let path = rig.path().join("state").join(name);
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        fs::read_to_string(path).expect("reads").trim().to_owned()
    };
    let (admin, viewer) = (token("admin.token"), token("viewer.token"));
    let credential = rig.enrolled(2).credential;
    rig.restart();
    let allocate = format!("{MACHINES}/SN-1/allocate");
    for (name, token, read, write) in [
        ("none", None, Some(401), Some(401)),
        ("nonsense", Some("nonsense"), Some(401), Some(401)),
        ("an agent's", Some(credential.as_str()), Some(401), Some(401)),
        ("a viewer's", Some(viewer.as_str()), None, Some(403)),
        ("an admin's", Some(admin.as_str()), None, None),
    ] {
        let status = |result: Result<(), Problem>| result.err().map(|p| p.status);
        assert_eq!(status(rig.operator_raw(Verb::GET, MACHINES, token)), read, "{name}");
        assert_eq!(status(rig.operator_raw(Verb::POST, &allocate, token)), write, "{name}");
    }
}

#[test]
fn every_error_is_a_problem_with_a_sentence() {
    let rig = Rig::new();
    let (agent, _) = rig.erasing(1);
    for (name, verb, path, body, status) in [
        ("no such path", Verb::GET, "/nowhere", vec![], 404),
        ("no such path of agents", Verb::GET, "/agent/v2/enrol", vec![], 404),
        ("no such path of operators", Verb::GET, "/v1/nowhere", vec![], 404),
        ("operators need more than an agent's credential", Verb::GET, MACHINES, vec![], 401),
        ("wrong method", Verb::GET, AGENT_ENROL, vec![], 405),
        ("no JSON", Verb::POST, AGENT_EVENTS, b"{".to_vec(), 400),
        ("too large", Verb::POST, AGENT_EVENTS, vec![b' '; 3 << 20], 413),
        ("no order id", Verb::POST, "/agent/v1/orders/x/outcome", b"{}".to_vec(), 400),
        ("no number", Verb::GET, "/agent/v1/order?wait=x", vec![], 400),
    ] {
        let problem = rig.agent_raw(verb, path, &agent.credential, body).expect_err(name);
        assert_eq!(problem.status, status, "{name}: {}", problem.detail);
    }
}

#[test]
fn strangers_are_turned_away_before_they_are_listened_to() {
    let rig = Rig::new();
    let (agent, order) = rig.erasing(1);
    let unknown = format!("{}.{}", Uuid::nil().simple(), "0".repeat(64));
    let outcome = format!("{AGENT_ORDERS}/{}/outcome", order.id);
    for (verb, path) in [(Verb::PUT, AGENT_INVENTORY), (Verb::POST, AGENT_EVENTS), (Verb::POST, outcome.as_str())] {
        let ask = |token: &str| rig.agent_raw(verb.clone(), path, token, b"{".to_vec()).expect_err("no JSON").status;
        assert_eq!((ask(&unknown), ask(&agent.credential)), (401, 400), "{path}");
    }
}

#[test]
fn a_client_says_what_is_wrong_with_its_server() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (token, no_pem) = (dir.path().join("token"), dir.path().join("ca"));
    fs::write(&token, "t").expect("writes");
    fs::write(&no_pem, "no certificate").expect("writes");
    let gone = format!("unix:{}", dir.path().join("gone.sock").display());
    for (name, server, token, ca, want) in [
        ("no scheme", "example", None, None, "is no server"),
        ("no encryption", "http://example", None, None, "is no server"),
        ("no token", "https://example", None, Some(no_pem.as_path()), "needs an operator token"),
        ("no CA", "https://example", Some(token.as_path()), None, "needs an operator token"),
        ("no PEM", "https://example", Some(token.as_path()), Some(no_pem.as_path()), "holds no certificate"),
        ("nobody there", &gone, None, None, "asking the server at unix:"),
    ] {
        let tried = Client::connect(server, token, ca).and_then(|c| c.machines());
        let error = format!("{:#}", tried.expect_err(name));
        assert!(error.contains(want), "{name}: {error}");
    }
}

fn event(seq: u64, message: &str) -> Event {
    Event { seq, uptime_ms: 1, phase: Phase::Kexec, step: Step::Started, message: message.into(), progress: None }
}

/// For what happens in the background; gives up long after it should have happened.
fn seen(message: &str) -> Seen {
    let (mac, phase, step, message) = (mac(1), Phase::Dhcp, Step::Note, message.into());
    Seen { at_ms: 1, mac, machine: None, phase, step, message, progress: None, sight: None }
}
