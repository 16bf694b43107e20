//! Promise 7: nothing secret is handed to whoever asks; a machine gets a one-time token, then credentials for itself.

use std::fs;

use crate::common::{self, Rig};
use drophammer_protocol::api::{AGENT_ENROL, AGENT_EVENTS, AGENT_ORDER, MACHINES};
use drophammer_protocol::id::MachineId;
use drophammer_protocol::ticket::BootTicket;

const SERVER: &str = "10.77.0.1";
const MAC: &str = "52:54:00:99:00:01";
const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// Status and body of a request from the machines' network.
fn ask(rig: &Rig, args: &[&str]) -> (u16, String) {
    let mut all = vec!["--silent", "--insecure", "--write-out", "\n%{http_code}"];
    all.extend(args);
    let said = rig.run("curl", &all);
    let (body, status) = said.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

fn ticket(rig: &Rig) -> BootTicket {
    let (status, script) = ask(rig, &[&format!("http://{SERVER}/boot/script.ipxe?mac={MAC}&uuid={UUID}")]);
    assert_eq!(status, 200, "{script}");
    let url = script.split_whitespace().find(|w| w.contains("/boot/initramfs/")).expect("an initramfs").to_owned();
    let file = rig.dir.path().join("initramfs");
    rig.run("curl", &["--silent", "--fail", "--output", &file.display().to_string(), &url]);
    let bytes = fs::read(file).expect("read");
    let start = bytes.windows(10).rposition(|w| w == b"{\"server\":").expect("a ticket at its end");
    let mut found = serde_json::Deserializer::from_slice(&bytes[start..]).into_iter::<BootTicket>();
    let ticket = found.next().expect("a ticket").expect("a ticket");
    assert!(!script.contains(&ticket.token), "the script shows the token");
    ticket
}

#[test]
fn every_door_wants_its_own_key() {
    let rig = common::rig(1);
    let https = |path: &str| format!("https://{SERVER}{path}");
    for (what, url) in [("operators' list", https(MACHINES)), ("an order", https(AGENT_ORDER))] {
        let (status, body) = ask(&rig, &[&url]);
        assert_eq!(status, 401, "{what}: {body}");
        assert!(!body.contains("token\":"), "{what}: {body}");
    }
    for (what, url) in [
        ("a path out of the images", "/images/../state/admin.token"),
        ("the same, encoded", "/images/%2e%2e/state/admin.token"),
        ("a boot that isn't", "/boot/initramfs/00000000-0000-0000-0000-000000000000"),
        ("what nobody serves", "/certs"),
    ] {
        let (status, body) = ask(&rig, &["--path-as-is", &format!("http://{SERVER}{url}")]);
        assert!((400..500).contains(&status), "{what}: {status} {body}");
    }
}

#[test]
fn a_token_enrols_its_own_machine_once() {
    let rig = common::rig(1);
    let ticket = ticket(&rig);
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let enrol_with = |key: &str, machine: MachineId, token: &str| {
        let body = format!(r#"{{"machine":"{machine}","key":"{key}","macs":["{MAC}"],"agent_version":"0"}}"#);
        let bearer = format!("Authorization: Bearer {token}");
        ask(&rig, &["-H", &bearer, "--json", &body, &format!("https://{SERVER}{AGENT_ENROL}")])
    };
    let enrol = |machine: MachineId, token: &str| enrol_with(key, machine, token);
    let own: MachineId = UUID.parse().expect("an id");
    assert_eq!(ticket.machine, own);
    let other: MachineId = "99999999-2222-3333-4444-555555555555".parse().expect("an id");

    let (status, body) = enrol(own, "wrong");
    assert_eq!(status, 401, "a guess: {body}");
    let (status, body) = enrol(other, &ticket.token);
    assert!(status == 401 || status == 403, "another machine's name: {status} {body}");
    let (status, body) = enrol(own, &ticket.token);
    assert_eq!(status, 200, "its own: {body}");
    let body_of_first = body.clone();
    let enrolled: drophammer_protocol::api::Enrolled = serde_json::from_str(&body).expect("a credential");
    let theirs = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
    let (status, body) = enrol_with(theirs, own, &ticket.token);
    assert_eq!(status, 401, "a second time, by somebody else: {body}");
    let (status, again) = enrol(own, &ticket.token);
    assert_eq!((status, again), (200, body_of_first), "by the same agent, whose answer was lost");

    // An agent's credential opens the agent's doors and no operator's.
    let bearer = format!("Authorization: Bearer {}", enrolled.credential);
    let (status, body) = ask(&rig, &["-H", &bearer, &format!("https://{SERVER}{MACHINES}")]);
    assert!(status == 401 || status == 403, "operators' list: {status} {body}");
    // And the token is no credential.
    let bearer = format!("Authorization: Bearer {}", ticket.token);
    let body = r#"{"uptime_ms":0,"events":[]}"#;
    let (status, said) = ask(&rig, &["-H", &bearer, "--json", body, &format!("https://{SERVER}{AGENT_EVENTS}")]);
    assert_eq!(status, 401, "events: {said}");
    let (status, said) = ask(&rig, &["-H", &bearer, &format!("https://{SERVER}{AGENT_ORDER}")]);
    assert_eq!(status, 401, "an order: {said}");
}
