//! What holds for all of the operators' interface: one description, requests that are sent twice, many at once, and news.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use drophammer_protocol::machine::State;
use reqwest::Method as Verb;
use serde_json::{Value, json};

use super::rig::*;

#[test]
fn every_path_is_described() {
    let rig = Rig::new();
    let (_, api) = rig.ask(Verb::GET, "/v1/openapi.json", &Value::Null, &[]).expect("describes itself");
    assert_eq!(api["openapi"], "3.1.0");
    let paths = api["paths"].as_object().expect("paths");
    for path in
        ["/v1/machines", "/v1/machines/{ref}/allocate", "/v1/sizes/{name}", "/v1/watch", "/v1/bulk", "/v1/tokens"]
    {
        assert!(paths.contains_key(path), "{path}");
    }
    for (path, item) in paths {
        for (verb, operation) in item.as_object().expect("operations") {
            let what = format!("{verb} {path}");
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{what} has no summary");
            let answers = operation["responses"].as_object().expect("answers");
            assert!(
                answers.contains_key("default") || path == "/v1/certificate-key" || verb == "get",
                "{what}: errors"
            );
            assert!(answers.keys().any(|status| status.starts_with('2')), "{what}: nothing good comes of it");
            let named = path.matches('{').count();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            assert_eq!(parameters.iter().filter(|p| p["in"] == "path").count(), named, "{what}");
        }
    }
}

#[test]
fn what_is_sent_twice_happens_once() {
    let mut rig = Rig::new();
    (1..=3).for_each(|n| drop(rig.waiting(n)));
    let body = |hostname: &str| json!({"allocation": {"image": "debian", "system": {"hostname": hostname}}});
    let send = |rig: &Rig, key: &str, hostname: &str| {
        rig.ask(Verb::POST, "/v1/allocations", &body(hostname), &[("idempotency-key", key)]).map(|(_, machine)| machine)
    };
    let first = send(&rig, "k1", "a").expect("allocates");
    rig.restart();
    assert_eq!(send(&rig, "k1", "a").expect("the same answer"), first);
    let waiting = |rig: &Rig| rig.operator().machines_like(&[("state", "waiting")]).expect("lists").len();
    assert_eq!(waiting(&rig), 2);
    assert_eq!(send(&rig, "k1", "b").expect_err("another request").status, 422);
    send(&rig, "k2", "a").expect("another key");
    assert_eq!(waiting(&rig), 1);
    send(&rig, "k3", "not a name").expect_err("refused");
    assert_eq!(send(&rig, "k3", "not a name").expect_err("in the same words").status, 422);
    assert_eq!(
        rig.ask(Verb::POST, "/v1/allocations", &body("a"), &[("idempotency-key", "")]).expect_err("no key").status,
        400
    );
}

#[test]
fn many_requests_in_one() {
    let rig = Rig::new();
    let put = |name: &str| json!({"method": "PUT", "path": format!("/v1/tenants/{name}"), "body": {"name": name}});
    let bulk = |stop: bool, requests: Vec<Value>| {
        let body = json!({"requests": requests, "stop_at_failure": stop});
        let (_, answers) = rig.ask(Verb::POST, "/v1/bulk", &body, &[]).expect("answers");
        answers.as_array().expect("a list").iter().map(|a| a["status"].as_u64().unwrap_or(0)).collect::<Vec<_>>()
    };
    let bad = || json!({"method": "PUT", "path": "/v1/tenants/x", "body": {"name": "y"}});
    assert_eq!(bulk(false, vec![put("a"), bad(), put("b")]), [201, 422, 201]);
    assert_eq!(bulk(true, vec![put("c"), bad(), put("d")]), [201, 422]);
    let get = json!({"method": "GET", "path": "/v1/tenants/d"});
    let inner = json!({"method": "POST", "path": "/v1/bulk", "body": {"requests": []}});
    assert_eq!(bulk(false, vec![get, inner]), [404, 404], "and none within one");
    let refused = rig.ask(Verb::POST, "/v1/bulk", &json!({"requests": vec![bad(); 300]}), &[]).expect_err("too many");
    assert_eq!(refused.status, 422);
    let token = rig.token("viewer");
    let body = json!({"requests": [put("e")]});
    let answers = rig.ask_as(&token, Verb::POST, "/v1/bulk", &body).expect("answers");
    assert_eq!(answers[0]["status"], 403, "each by the caller's own rights");
}

/// A reader of server-sent events that knows nothing of us.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(rig: &Rig, token: &str, path: &str, last: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(rig.operators()).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let last = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\n{last}\r\n").expect("asks");
        let mut events = Self(BufReader::new(stream));
        while !events.line().is_empty() {}
        events
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        line.trim_end().to_owned()
    }

    /// Its name, its id and its data. Lengths of chunks and signs of life are between them.
    fn next(&mut self) -> (String, String, Value) {
        let (mut name, mut id) = (String::new(), String::new());
        loop {
            let line = self.line();
            if let Some(text) = line.strip_prefix("event: ") {
                name = text.into();
            } else if let Some(text) = line.strip_prefix("id: ") {
                id = text.into();
            } else if let Some(text) = line.strip_prefix("data: ") {
                return (name, id, serde_json::from_str(text).expect("JSON"));
            }
        }
    }

    /// Until a change of this is told, and what it's told to be.
    fn until(&mut self, kind: &str, name: &str) -> (String, Value) {
        loop {
            let (_, id, news) = self.next();
            let changes = news["changes"].as_array().expect("changes");
            if let Some(change) = changes.iter().find(|change| change["kind"] == kind && change["name"] == name) {
                return (id, change["object"].clone());
            }
        }
    }
}

#[test]
fn whoever_watches_hears_of_everything_and_goes_on_where_it_was() {
    let mut rig = Rig::new();
    let admin = rig.token("admin");
    let mut events = Events::open(&rig, &admin, "/v1/watch", None);
    assert_eq!(events.next().0, "ready");
    let put = |rig: &Rig, name: &str| {
        let path = format!("/v1/tenants/{name}");
        rig.ask(Verb::PUT, &path, &json!({"name": name}), &[]).expect("declares");
    };
    put(&rig, "a");
    let (id, tenant) = events.until("tenant", "a");
    assert_eq!(tenant["name"], "a");
    rig.enrolled(1);
    let (_, seen) = events.until("machine", &machine(1).to_string());
    assert_eq!(seen["state"], State::Discovered.name());
    drop(events);

    put(&rig, "b");
    rig.ask(Verb::DELETE, "/v1/tenants/a", &Value::Null, &[]).expect("withdraws");
    rig.restart();
    let mut events = Events::open(&rig, &admin, "/v1/watch?kinds=tenant", Some(&id));
    assert_eq!(events.next().0, "ready");
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let (_, _, news) = events.next();
        for change in news["changes"].as_array().expect("changes") {
            assert_eq!(change["kind"], "tenant");
            heard.push((change["name"].as_str().unwrap_or_default().to_owned(), change["object"].is_null()));
        }
    }
    heard.sort();
    assert_eq!(heard, [("a".into(), true), ("b".into(), false)]);

    let mut lost = Events::open(&rig, &admin, "/v1/watch", Some("999999999"));
    assert_eq!(lost.next().0, "ready");
    if rig.is_a_file() {
        assert_eq!(lost.next().0, "lost", "a future that isn't ours");
    }
}

#[test]
fn members_hear_of_their_own() {
    let rig = Rig::new();
    let put = |path: &str, body: Value| rig.ask(Verb::PUT, &format!("/v1/{path}"), &body, &[]).expect("declares");
    put("tenants/t", json!({"name": "t"}));
    put("projects/p", json!({"name": "p", "tenant": "t", "members": {"me": "viewer"}}));
    let (_, made) = rig.ask(Verb::POST, "/v1/tokens", &json!({"name": "me", "user": "me"}), &[]).expect("a token");
    let mut events = Events::open(&rig, made["token"].as_str().expect("a token"), "/v1/watch?kinds=machine", None);
    assert_eq!(events.next().0, "ready");
    rig.waiting(1);
    rig.waiting(2);
    let allocation = json!({"image": "debian", "system": {"hostname": "h"}, "project": "p"});
    rig.ask(Verb::POST, "/v1/machines/SN-2/allocate", &allocation, &[]).expect("allocates");
    let (_, _, news) = events.next();
    let first = &news["changes"][0];
    assert_eq!((&first["name"], &first["object"]["state"]), (&json!(machine(2).to_string()), &json!("allocated")));
    rig.ask(Verb::POST, "/v1/machines/SN-2/release", &Value::Null, &[]).expect("releases");
    let (_, gone) = events.until("machine", &machine(2).to_string());
    assert!(gone.is_null(), "it isn't theirs any more");
}
