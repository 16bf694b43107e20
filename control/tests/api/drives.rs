//! What is on the labels of drives: kept, given to the right agent, and shown to nobody.

use drophammer_protocol::api::PSIDS;
use drophammer_protocol::erase::Psid;
use reqwest::Method as Verb;

use super::rig::*;

const LABEL: &str = "ABCDEFGH12345678ABCDEFGH12345678";

fn psid() -> Psid {
    LABEL.parse().expect("as on a label")
}

#[test]
fn a_psid_goes_to_the_agent_of_its_drive_and_to_nobody_else() {
    let mut rig = Rig::new();
    let operator = rig.operator();
    for serial in ["small-1", "big-9", " big/9 "] {
        operator.keep_psid(serial, &psid()).expect("is kept");
    }
    rig.restart();
    assert_eq!(rig.operator().psids().expect("lists"), ["big-9", "big/9", "small-1"], "serials, and no more");
    let (_, order) = rig.erasing(1);
    let given: Vec<_> = erase_task(&order).psids.iter().map(|(serial, psid)| (serial.as_str(), psid.clone())).collect();
    assert_eq!(given, [("small-1", psid())]);
    let (agent, other) = rig.erasing(2);
    assert_eq!(erase_task(&other).psids, [].into());
    assert!(!format!("{order:?}").contains(LABEL), "nor to a log");

    // One that is put in late still comes with the order.
    rig.operator().keep_psid("big-2", &psid()).expect("is kept");
    let again = agent.order(&rig, 0).expect("answers").expect("the order");
    assert_eq!((again.id, erase_task(&again).psids.len()), (other.id, 1));

    let events = rig.operator().events("SN-1", 0, 0).expect("lists");
    let machines = rig.operator().machines().expect("lists");
    assert!(!format!("{}{}", json(&events), json(&machines)).contains(LABEL));
    rig.operator().forget_psid("small-1").expect("is forgotten");
    let unknown = rig.operator().forget_psid("small-1").expect_err("is gone").to_string();
    assert!(unknown.contains("no PSID is kept of a drive with serial \"small-1\""), "{unknown}");
    let (_, order) = rig.erasing(1);
    assert_eq!(erase_task(&order).psids, [].into());
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("serializes")
}

#[test]
fn no_answer_and_no_file_tells_a_psid() {
    let rig = Rig::new();
    let (admin, viewer) = (rig.token("admin"), rig.token("viewer"));
    let path = |serial: &str| format!("{PSIDS}/{serial}");
    let wrong = &LABEL[1..];
    for (name, token, serial, body, status) in [
        ("as it should be", Some(&admin), "A", json(&LABEL), None),
        ("nobody", None, "A", json(&LABEL), Some(401)),
        ("somebody who may only look", Some(&viewer), "A", json(&LABEL), Some(403)),
        ("a letter too few", Some(&admin), "A", json(&wrong), Some(400)),
        ("no JSON", Some(&admin), "A", wrong.to_owned(), Some(400)),
        ("another kind of JSON", Some(&admin), "A", json(&[wrong]), Some(400)),
        ("no serial", Some(&admin), "%20", json(&LABEL), Some(422)),
        ("a serial that no terminal should see", Some(&admin), "%1b", json(&LABEL), Some(422)),
        ("more than a serial", Some(&admin), &"A".repeat(200), json(&LABEL), Some(422)),
    ] {
        let answer = rig.operator_body(Verb::PUT, &path(serial), token.map(String::as_str), body.into());
        assert_eq!(answer.as_ref().err().map(|problem| problem.status), status, "{name}");
        let detail = answer.err().map(|problem| problem.detail).unwrap_or_default();
        assert!(!detail.contains(wrong), "{name}: {detail}");
    }
    rig.operator_raw(Verb::GET, PSIDS, Some(&viewer)).expect("which there are is no secret");
    assert_eq!(rig.operator_raw(Verb::DELETE, &path("A"), Some(&viewer)).expect_err("may only look").status, 403);
    assert_eq!(rig.operator_raw(Verb::GET, &path("A"), Some(&admin)).expect_err("not even to an admin").status, 405);
    assert_eq!(rig.operator().psids().expect("lists"), ["A"]);
    let file = rig.all_that_is_kept();
    let found = |what: &[u8]| file.windows(what.len()).any(|window| window == what);
    assert!(found(b"psid/A"), "it's there");
    assert!(!found(LABEL.as_bytes()) && !found(&LABEL.as_bytes()[..8]), "and can't be read");
}
