//! What is declared, and who gets which machine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use drophammer_protocol::api::{ALLOCATIONS, AuditEntry, CAPACITY, Capacity, Page, Problem, SizeVerdict};
use drophammer_protocol::machine::{Machine, State};
use reqwest::Method as Verb;
use serde_json::{Value, json};

use super::rig::*;

/// Anything with some memory and some drives, as all machines of the rig are.
fn size(name: &str, most_memory: &str) -> Value {
    json!({
        "name": name,
        "constraints": [
            {"type": "memory", "min": 1, "max": most_memory},
            {"type": "storage", "min": 1, "max": "100TiB"},
        ],
    })
}

fn put(rig: &Rig, kind: &str, document: &Value) -> Result<Value, Problem> {
    let name = document["name"].as_str().unwrap_or_default();
    rig.ask(Verb::PUT, &format!("/v1/{kind}/{name}"), document, &[]).map(|(_, body)| body)
}

/// Two projects of one tenant, a size that all machines are of, and the partition that they are in.
fn declare(rig: &Rig) {
    put(rig, "tenants", &json!({"name": "acme"})).expect("a tenant");
    put(rig, "projects", &json!({"name": "web", "tenant": "acme"})).expect("a project");
    put(rig, "projects", &json!({"name": "db", "tenant": "acme"})).expect("a project");
    put(rig, "partitions", &json!({"name": "default"})).expect("a partition");
    put(rig, "sizes", &size("small", "2GiB")).expect("a size");
}

fn allot(rig: &Rig, project: &str, select: Value) -> Result<Machine, Problem> {
    let allocation = json!({"image": "debian", "system": {"hostname": "h"}, "project": project});
    let body = json!({"select": select, "allocation": allocation});
    rig.ask(Verb::POST, ALLOCATIONS, &body, &[]).map(|(_, body)| serde_json::from_value(body).expect("a machine"))
}

fn capacity(rig: &Rig) -> Capacity {
    let (_, body) = rig.ask(Verb::GET, CAPACITY, &Value::Null, &[]).expect("answers");
    let all: Vec<Capacity> = serde_json::from_value(body).expect("capacities");
    all.into_iter().find(|capacity| capacity.size.as_deref() == Some("small")).expect("is declared")
}

#[test]
fn documents_have_generations_and_agree_with_each_other() {
    let rig = Rig::new();
    let path = "/v1/sizes/small";
    let ask = |verb: Verb, body: &Value, headers: &[(&str, &str)]| rig.ask(verb, path, body, headers);
    let status =
        |asked: Result<(reqwest::header::HeaderMap, Value), Problem>| asked.err().map(|problem| problem.status);
    let small = size("small", "2GiB");
    let (headers, stored) = ask(Verb::PUT, &small, &[("if-none-match", "*")]).expect("is new");
    assert_eq!((headers["etag"].to_str().expect("text"), &stored["meta"]["generation"]), ("\"1\"", &json!(1)));
    assert_eq!(status(ask(Verb::PUT, &small, &[("if-none-match", "*")])), Some(412), "it's there");
    let (headers, _) = ask(Verb::PUT, &small, &[]).expect("the same again");
    assert_eq!(headers["etag"], "\"1\"", "nothing has changed");
    let (headers, mut changed) = ask(Verb::PUT, &size("small", "3GiB"), &[("if-match", "\"1\"")]).expect("as read");
    assert_eq!(headers["etag"], "\"2\"");
    assert_eq!(status(ask(Verb::PUT, &small, &[("if-match", "\"1\"")])), Some(412), "it has changed");
    assert_eq!(status(ask(Verb::PUT, &small, &[("if-match", "yesterday's")])), Some(400));
    changed["description"] = json!("edited");
    ask(Verb::PUT, &changed, &[]).expect("read, edited and sent");
    changed["description"] = json!("edited by somebody who read it earlier");
    assert_eq!(status(ask(Verb::PUT, &changed, &[])), Some(412));

    declare(&rig);
    let reservation =
        |size: &str| json!({"name": "r", "project": "db", "size": size, "partitions": ["default"], "amount": 1});
    for (name, kind, document, field, why) in [
        ("overlaps", "sizes", size("other", "1GiB"), "constraints", "of small as well"),
        ("of nothing", "reservations", reservation("large"), "size", "there is no size \"large\""),
        ("nobody's", "projects", json!({"name": "x", "tenant": "nobody"}), "tenant", "there is no tenant"),
        ("a slash", "tenants", json!({"name": "a/b"}), "name", "is not a name"),
        (
            "backwards",
            "sizes",
            json!({"name": "x", "constraints": [{"type": "cores", "min": 2, "max": 1}]}),
            "constraints[0].max",
            "less than min",
        ),
        ("unknown fields", "tenants", json!({"name": "x", "colour": "red"}), "colour", "unknown field"),
        ("wrong types", "tenants", json!({"name": "x", "labels": [1]}), "labels", "invalid type"),
    ] {
        let name_in_path = document["name"].as_str().unwrap_or_default().replace('/', "%2F");
        let asked = rig.ask(Verb::PUT, &format!("/v1/{kind}/{name_in_path}"), &document, &[]);
        let problem = asked.expect_err(name);
        assert!(problem.errors.iter().any(|e| e.field == field && e.detail.contains(why)), "{name}: {problem:?}");
    }
    put(&rig, "reservations", &reservation("small")).expect("agrees");
    for (needed, by) in
        [("sizes/small", "reservation r"), ("partitions/default", "reservation r"), ("tenants/acme", "project")]
    {
        let problem = rig.ask(Verb::DELETE, &format!("/v1/{needed}"), &Value::Null, &[]).expect_err("is needed");
        assert!(problem.status == 409 && problem.detail.contains(by), "{needed}: {problem:?}");
    }
    for gone in ["reservations/r", "sizes/small", "partitions/default", "projects/web", "projects/db", "tenants/acme"] {
        rig.ask(Verb::DELETE, &format!("/v1/{gone}"), &Value::Null, &[]).expect("isn't needed any more");
        assert_eq!(rig.ask(Verb::GET, &format!("/v1/{gone}"), &Value::Null, &[]).expect_err("gone").status, 404);
    }
    let (_, audit) = rig.ask(Verb::GET, "/v1/audit?limit=3", &Value::Null, &[]).expect("lists");
    let audit: Page<AuditEntry> = serde_json::from_value(audit).expect("a page");
    let told: Vec<_> = audit.items.iter().map(|entry| (entry.action.as_str(), entry.object.as_str())).collect();
    assert_eq!(told, [("put", "size/small"); 3]);
    assert_eq!((&audit.items[0].before, &audit.items[1].before), (&Value::Null, &audit.items[0].after));
    assert!(audit.next.is_some(), "there is more");
}

#[test]
fn lists_come_in_pages() {
    let rig = Rig::new();
    for n in 0..7 {
        put(&rig, "tenants", &json!({"name": format!("t{n}")})).expect("a tenant");
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/tenants?limit=3{after}");
        let (_, page) = rig.ask(Verb::GET, &path, &Value::Null, &[]).expect("lists");
        let page: Page<Value> = serde_json::from_value(page).expect("a page");
        assert!(page.items.len() <= 3);
        seen.extend(page.items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()));
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["t0", "t1", "t2", "t3", "t4", "t5", "t6"]);
}

#[test]
fn a_machine_knows_its_size_and_why_it_has_none() {
    let rig = Rig::new();
    rig.waiting(1);
    let verdict = || {
        let (_, body) = rig.ask(Verb::GET, "/v1/machines/SN-1/size", &Value::Null, &[]).expect("answers");
        serde_json::from_value::<SizeVerdict>(body).expect("a verdict")
    };
    put(&rig, "sizes", &size("tiny", "1MiB")).expect("a size");
    let none = verdict();
    assert_eq!((none.size, none.others.len()), (None, 1));
    assert!(none.others[0].why[0].contains("memory has to be"), "{:?}", none.others);
    put(
        &rig,
        "sizes",
        &json!({"name": "small", "constraints": [
            {"type": "memory", "min": "2MiB", "max": "2GiB"}, {"type": "storage", "min": 1, "max": "100TiB"},
        ]}),
    )
    .expect("a size");
    assert_eq!(verdict().size.as_deref(), Some("small"));
    assert_eq!(rig.machine(1).size.as_deref(), Some("small"));
}

#[test]
fn machines_are_given_out_by_size_label_and_reservation() {
    let rig = Rig::new();
    declare(&rig);
    (1..=4).for_each(|n| drop(rig.waiting(n)));
    rig.ask(Verb::PATCH, "/v1/machines/SN-2", &json!({"labels": {"disk": "fast"}}), &[]).expect("labels");
    rig.ask(Verb::PATCH, "/v1/machines/SN-4", &json!({"lock": "its fan rattles"}), &[]).expect("locks");
    let reservation = json!({"name": "r", "project": "db", "size": "small", "partitions": ["default"], "amount": 1});
    put(&rig, "reservations", &reservation).expect("reserves");

    let labelled = allot(&rig, "web", json!({"labels": {"disk": "fast"}})).expect("there is one");
    assert_eq!((labelled.name.as_str(), labelled.state), ("SN-2", State::Allocated));
    allot(&rig, "web", json!({"size": "small"})).expect("two wait, and one is reserved");
    for (name, project, select, want) in [
        ("the reserved one", "web", json!({"size": "small"}), "reserved for other projects"),
        ("the locked one", "db", json!({"machine": "SN-4"}), "its fan rattles"),
        ("another size", "db", json!({"size": "huge"}), "no machine is like that"),
        ("another's reservation", "web", json!({"reservation": "r"}), "is for project db"),
        ("a stranger", "nobody", json!({"size": "small"}), "there is no project"),
        ("one that is taken", "db", json!({"machine": "SN-2"}), "it is taken already"),
    ] {
        let problem = allot(&rig, project, select).expect_err(name);
        assert!(problem.detail.contains(want), "{name}: {problem:?}");
    }
    let want = Capacity {
        partition: "default".into(),
        size: Some("small".into()),
        total: 4,
        free: 1,
        allocated: 2,
        reserved: 1,
        faulty: 1,
        ..Capacity::default()
    };
    assert_eq!(capacity(&rig), want);
    allot(&rig, "db", json!({"reservation": "r"})).expect("its own");
    assert_eq!(capacity(&rig), Capacity { free: 0, allocated: 3, used_reservations: 1, ..want });
    rig.ask(Verb::PATCH, "/v1/machines/SN-4", &json!({"lock": ""}), &[]).expect("unlocks");
    allot(&rig, "web", json!({"size": "small"})).expect("nothing is reserved any more");
}

#[test]
fn many_at_once_get_one_each() {
    const MACHINES: u8 = 40;
    const CLIENTS: usize = 200;
    let rig = Rig::new();
    declare(&rig);
    let racks: Vec<Value> = (0..4)
        .map(|rack| {
            let machines: Vec<String> = (1..=MACHINES).filter(|n| n % 4 == rack).map(|n| format!("SN-{n}")).collect();
            json!({"name": format!("rack{rack}"), "machines": machines})
        })
        .collect();
    put(&rig, "partitions", &json!({"name": "default", "racks": racks})).expect("racks");
    (1..=MACHINES).for_each(|n| drop(rig.waiting(n)));
    let reservation = json!({"name": "r", "project": "db", "size": "small", "partitions": ["default"], "amount": 10});
    put(&rig, "reservations", &reservation).expect("reserves");
    let refused = AtomicUsize::new(0);
    let got: Vec<Machine> = thread::scope(|s| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                s.spawn(|| match allot(&rig, "web", json!({"size": "small"})) {
                    Ok(machine) => Some(machine),
                    Err(problem) => {
                        assert!(problem.detail.contains("reserved for other projects"), "{problem:?}");
                        refused.fetch_add(1, Ordering::Relaxed);
                        None
                    }
                })
            })
            .collect();
        clients.into_iter().filter_map(|client| client.join().expect("no panic")).collect()
    });
    let each_once: std::collections::BTreeSet<_> = got.iter().map(|machine| machine.id).collect();
    assert_eq!((got.len(), each_once.len(), refused.into_inner()), (30, 30, CLIENTS - 30));
    let mut per_rack: BTreeMap<String, usize> = BTreeMap::new();
    got.iter().for_each(|machine| *per_rack.entry(machine.rack.clone().unwrap_or_default()).or_default() += 1);
    assert!(per_rack.len() == 4 && per_rack.values().all(|many| (7..=8).contains(many)), "{per_rack:?}");
    assert_eq!(capacity(&rig).free, 10);
    for n in 0..10 {
        allot(&rig, "db", json!({"size": "small"})).unwrap_or_else(|problem| panic!("its {n}: {problem:?}"));
    }
}

#[test]
fn the_road_is_told_in_metal_stacks_words() {
    let rig = Rig::new();
    let road = |n: u8| rig.machine(n).provisioning;
    let last = |n: u8| road(n).last.map(|told| told.event.name());
    let agent = rig.waiting(1);
    assert_eq!((last(1), road(1).crash_loop, road(1).last_error), (Some("Waiting"), false, None));
    rig.allocate(1).expect("allocates");
    let (order, install) = agent.install_order(&rig);
    agent.outcome(&rig, order, &installed()).expect("takes the outcome");
    phone_home(&rig, 1, &install.phone_home.token).expect("is heard");
    let names: Vec<_> = road(1).log.iter().map(|told| told.event.name()).collect();
    let all = ["PXE Booting", "Preparing", "Registering", "Waiting", "Installing", "Booting New Kernel", "Phoned Home"];
    assert_eq!(names, all);
    rig.operator().release("SN-1", drophammer_protocol::machine::TakeBack::default()).expect("releases");
    let refused = phone_home(&rig, 1, &install.phone_home.token).expect_err("its old system is heard, and not wanted");
    assert_eq!(refused.status, 410);
    assert_eq!((last(1), road(1).failed_reclaim), (Some("Machine Reclaim"), false), "a moment later it may");
    assert_eq!(rig.state(1), State::Releasing, "and changes nothing");
    // A machine that boots again and again.
    (0..2).for_each(|_| drop(rig.enrolled(2)));
    assert!(
        road(2).crash_loop
            && road(2).last_error.is_some_and(|told| told.message.contains("unexpectedly received in Preparing"))
    );
    assert!(rig.operator().machines().expect("lists").iter().all(|machine| machine.provisioning.log.is_empty()));
}

#[test]
fn what_is_different_is_told_and_kept() {
    let rig = Rig::new();
    rig.waiting(1);
    let agent = rig.enrolled(1);
    let mut changed = inventory(1);
    changed.disks[0].firmware = Some("2.0".into());
    changed.disks.pop();
    agent.inventory_of(&rig, &changed).expect("takes the inventory");
    let (_, told) = rig.ask(Verb::GET, "/v1/machines/SN-1/inventories", &Value::Null, &[]).expect("lists");
    let told = told.as_array().expect("a list");
    assert_eq!((told.len(), &told[0]["changes"]), (2, &json!([])));
    assert_eq!(told[1]["changes"], json!(["drive small-1 gone"]), "what wasn't told before is no change");
    let events = rig.operator().events("SN-1", 0, 0).expect("lists");
    assert!(events.iter().any(|event| event.message == "drive small-1 gone"));
    let agent = rig.enrolled(1);
    agent.inventory_of(&rig, &changed).expect("takes the inventory");
    let (_, same) = rig.ask(Verb::GET, "/v1/machines/SN-1/inventories", &Value::Null, &[]).expect("lists");
    assert_eq!(same.as_array().expect("a list").len(), 2, "nothing is different");
}

#[test]
fn policies_say_which_images_are_installed() {
    let rig = Rig::new();
    declare(&rig);
    (1..=2).for_each(|n| drop(rig.waiting(n)));
    let policy = |name: &str, versions: &str, class: &str| json!({"name": name, "images": {"image": "debian", "versions": versions}, "classification": class});
    put(&rig, "image-policies", &policy("new", ">= 12.2", "preview")).expect("a policy");
    put(&rig, "image-policies", &policy("old", "< 12.2", "deprecated")).expect("a policy");
    let allocate = |image: &str| {
        let body = json!({"allocation": {"image": image, "system": {"hostname": "h"}, "project": "web"}});
        rig.ask(Verb::POST, ALLOCATIONS, &body, &[]).map(|(_, machine)| machine)
    };
    assert_eq!(allocate("debian").expect_err("none is for everybody").status, 422);
    let machine = allocate("debian/12.1").expect("by its version");
    let name = machine["name"].as_str().expect("a name");
    let events = rig.operator().events(name, 0, 0).expect("lists");
    assert!(events.iter().any(|event| event.message.contains("debian/12.1 is deprecated")));
    rig.ask(Verb::DELETE, "/v1/image-policies/new", &Value::Null, &[]).expect("withdraws");
    let machine = allocate("debian").expect("the newest that is supported");
    assert_eq!(machine["allocation"]["image"], "debian/12.2");
    let runs = |image: &str| rig.operator().machines_like(&[("image", image)]).expect("lists").len();
    assert_eq!((runs("debian"), runs("debian/12.1"), runs("debian/12.3")), (2, 1, 0));
    let expired = json!({"name": "gone", "images": {"image": "debian"}, "expires": 1});
    put(&rig, "image-policies", &expired).expect("a policy");
    assert_eq!(allocate("debian/12.2").expect_err("expired").status, 422);
}

#[test]
fn a_partitions_servers_reach_the_installed_system() {
    let rig = Rig::new();
    let partition = json!({"name": "default", "dns": ["10.0.0.53"], "ntp": ["10.0.0.123", "ntp.example.org"]});
    put(&rig, "partitions", &partition).expect("a partition");
    for (n, own, want) in [(1, None, "10.0.0.53"), (2, Some("10.9.9.9"), "10.9.9.9")] {
        let agent = rig.waiting(n);
        let mut wanted = allocation();
        wanted.system.dns.extend(own.map(|address| address.parse::<std::net::IpAddr>().expect("an address")));
        rig.operator().allocate(&machine(n).to_string(), &wanted).expect("allocates");
        let (_, install) = agent.install_order(&rig);
        assert_eq!(install.system.dns, [want.parse::<std::net::IpAddr>().expect("an address")]);
        assert_eq!(install.system.ntp, ["10.0.0.123", "ntp.example.org"]);
    }
}
