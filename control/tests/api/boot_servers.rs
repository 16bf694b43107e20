//! What boot servers that run alone are told.

use std::net::{IpAddr, SocketAddr};

use axum::Extension;
use drophammer_control::{ClientCertificate, Point, fingerprint};
use drophammer_protocol::boot_server::{
    Briefing, Certifiable, HEALTH, Health, JOIN, Join, Joined, REGISTRATION, Registration,
};
use drophammer_protocol::sign::PublicKey;
use ed25519_dalek::SigningKey;
use rcgen::KeyPair;
use reqwest::Method as Verb;
use serde::Serialize;
use serde_json::{Value, json};

use super::rig::*;

/// A boot server that joined. Over TLS it would be known by its certificate; here whoever comes by this address is it.
struct BootServer(SocketAddr);

impl BootServer {
    fn join(rig: &Rig, name: &str) -> Self {
        let door = rig.serve(rig.control().boot_server_router());
        let token = rig.operator().join_token().expect("makes a token").token;
        let (bearer, _) = token.rsplit_once('.').expect("three parts");
        let key = Point::of(&KeyPair::generate().expect("a key")).to_hex();
        let join = Join { name: name.into(), certifiable: Certifiable { key, addresses: vec![] } };
        let body = serde_json::to_vec(&join).expect("serializes");
        let joined: Joined = ask(Verb::POST, door, JOIN, Some(bearer), body).expect("joins").expect("a body");
        let sha256 = hex::decode(fingerprint(&joined.certified.certificate).expect("PEM")).expect("hexadecimal");
        let certificate = ClientCertificate(sha256.try_into().expect("32 bytes"));
        Self(rig.serve(rig.control().boot_server_router().layer(Extension(certificate))))
    }

    fn briefed(&self, verb: Verb, path: &str, body: &impl Serialize) -> Briefing {
        let body = serde_json::to_vec(body).expect("serializes");
        ask(verb, self.0, path, None, body).expect("is known").expect("a briefing")
    }

    fn register(&self, partition: &str) -> Briefing {
        let registration =
            Registration { name: "b".into(), partition: partition.into(), version: String::new(), networks: vec![] };
        self.briefed(Verb::PUT, REGISTRATION, &registration)
    }

    fn beat(&self) -> Briefing {
        self.briefed(Verb::POST, HEALTH, &Health::default())
    }
}

fn declare(rig: &Rig, partition: &str, dns: &Value, ntp: &Value) {
    let body = json!({"name": partition, "dns": dns, "ntp": ntp});
    rig.ask(Verb::PUT, &format!("/v1/partitions/{partition}"), &body, &[]).expect("declares");
}

#[test]
fn each_heartbeat_is_answered_with_what_is_declared_by_then() {
    let rig = Rig::new();
    declare(&rig, "row-1", &json!(["10.0.1.53", "2001:db8::53"]), &json!(["time.example.org", "10.0.1.123"]));
    declare(&rig, "row-2", &json!(["10.0.2.53"]), &json!([]));
    let server = BootServer::join(&rig, "b1");
    let servers = |briefing: &Briefing| (briefing.dns.clone(), briefing.ntp.clone());
    let dns = |all: &[&str]| all.iter().map(|one| one.parse().expect("an address")).collect::<Vec<IpAddr>>();
    let ntp = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();

    let first = server.register("row-1");
    let row_1 = (dns(&["10.0.1.53", "2001:db8::53"]), ntp(&["time.example.org", "10.0.1.123"]));
    assert_eq!(servers(&first), row_1);
    assert_eq!(server.beat(), first, "nothing has changed");
    declare(&rig, "row-1", &json!([]), &json!(["10.0.1.124"]));
    assert_eq!(servers(&server.beat()), (dns(&[]), ntp(&["10.0.1.124"])), "it was changed");
    let elsewhere = (dns(&["10.0.2.53"]), ntp(&[]));
    assert_eq!((servers(&server.register("row-2")), servers(&server.beat())), (elsewhere.clone(), elsewhere));
    rig.ask(Verb::DELETE, "/v1/partitions/row-2", &Value::Null, &[]).expect("nothing is in it");
    assert_eq!(servers(&server.beat()), (dns(&[]), ntp(&[])), "it was withdrawn");
    let other = PublicKey::of(&SigningKey::from_bytes(&[7; 32]));
    rig.reload(|policy| policy.image_keys = vec![other]);
    assert_eq!(server.beat().image_keys, [other], "and so with whom it's to believe");
}
