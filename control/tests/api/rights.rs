//! Who may do what.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL;
use drophammer_control::Oidc;
use drophammer_protocol::api::{AGENT_ENROL, Enrol, Problem};
use drophammer_protocol::machine::State;
use drophammer_protocol::sign::PublicKey;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::Method as Verb;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use super::rig::*;

/// Two tenants with a project each, and what their people are.
fn declare(rig: &Rig) {
    let put = |path: &str, body: Value| rig.ask(Verb::PUT, &format!("/v1/{path}"), &body, &[]).expect("declares");
    put("tenants/acme", json!({"name": "acme", "members": {"boss@acme": "owner"}}));
    put("tenants/umbrella", json!({"name": "umbrella"}));
    let members = json!({"ed@acme": "editor", "vi@acme": "viewer", "gus@acme": "guest"});
    put("projects/web", json!({"name": "web", "tenant": "acme", "members": members, "most_machines": 3}));
    put("projects/other", json!({"name": "other", "tenant": "umbrella"}));
    put(
        "sizes/any",
        json!({"name": "any", "constraints": [
            {"type": "memory", "min": 1, "max": "1TiB"}, {"type": "storage", "min": 1, "max": "100TiB"},
        ]}),
    );
    let reservation = |project: &str| json!({"name": project, "project": project, "size": "any", "partitions": ["default"], "amount": 1});
    put("partitions/default", json!({"name": "default"}));
    put("image-sources/prod", json!({"name": "prod", "image": "debian", "store": "s3://images/prod"}));
    put("reservations/other", reservation("other"));
    put("reservations/web", reservation("web"));
}

fn token(rig: &Rig, wish: &Value) -> String {
    let (_, made) = rig.ask(Verb::POST, "/v1/tokens", wish, &[]).expect("makes a token");
    made["token"].as_str().expect("told once").to_owned()
}

#[test]
fn everybody_may_what_they_may_and_no_more() {
    let rig = Rig::new();
    declare(&rig);
    (1..=4).for_each(|n| drop(rig.waiting(n)));
    let allocation = |project: &str| json!({"select": {}, "allocation": {"image": "debian", "system": {"hostname": "h"}, "project": project}});
    let give = |project: &str| {
        let (_, machine) = rig.ask(Verb::POST, "/v1/allocations", &allocation(project), &[]).expect("allocates");
        machine["name"].as_str().expect("a name").to_owned()
    };
    let (ours, theirs) = (give("web"), give("other"));
    let user = |name: &str| token(&rig, &json!({"name": "t", "user": name}));
    let callers = [
        ("admin", rig.token("admin")),
        ("viewer", rig.token("viewer")),
        ("owner", user("boss@acme")),
        ("editor", user("ed@acme")),
        ("member", user("vi@acme")),
        ("guest", user("gus@acme")),
        ("stranger", user("nobody@acme")),
        ("scoped", token(&rig, &json!({"name": "ci", "projects": {"web": "editor"}}))),
    ];
    let (get, put, post, patch, delete) = (Verb::GET, Verb::PUT, Verb::POST, Verb::PATCH, Verb::DELETE);
    let web = json!({"name": "web", "tenant": "acme", "most_machines": 3, "members": {
        "ed@acme": "editor", "vi@acme": "viewer", "gus@acme": "guest"}, "description": "ours"});
    let richer = json!({"name": "web", "tenant": "acme", "most_machines": 300});
    // Who may: admin, viewer, owner, editor, member, guest, stranger, scoped.
    for (what, verb, path, body, want) in [
        ("its machine", &get, format!("/v1/machines/{ours}"), Value::Null, "y y y y y 404 404 y"),
        ("its history", &get, format!("/v1/machines/{ours}/events"), Value::Null, "y y y y y 404 404 y"),
        ("its proofs", &get, format!("/v1/machines/{ours}/certificates"), Value::Null, "y y y y y 404 404 y"),
        ("another's machine", &get, format!("/v1/machines/{theirs}"), Value::Null, "y y 404 404 404 404 404 404"),
        (
            "another's history",
            &get,
            format!("/v1/machines/{theirs}/events"),
            Value::Null,
            "y y 404 404 404 404 404 404",
        ),
        (
            "taking another's",
            &post,
            format!("/v1/machines/{theirs}/release"),
            Value::Null,
            "- 403 404 404 404 404 404 404",
        ),
        (
            "installing another's",
            &post,
            format!("/v1/machines/{theirs}/reinstall"),
            json!({}),
            "- 403 404 404 404 404 404 404",
        ),
        ("a label", &patch, format!("/v1/machines/{ours}"), json!({"note": "n"}), "y 403 403 403 403 403 403 403"),
        ("for another", &post, "/v1/allocations".into(), allocation("other"), "- 403 403 403 403 403 403 403"),
        (
            "for nobody",
            &post,
            "/v1/allocations".into(),
            json!({"allocation": {"image": "debian", "system": {"hostname": "h"}}}),
            "- 403 403 403 403 403 403 403",
        ),
        (
            "a quarantine",
            &post,
            format!("/v1/machines/{ours}/release?despite_quarantine=true"),
            Value::Null,
            "- 403 403 403 403 403 403 403",
        ),
        ("sizes", &get, "/v1/sizes/any".into(), Value::Null, "y y y y y y y y"),
        (
            "declaring",
            &put,
            "/v1/sizes/x".into(),
            json!({"name": "x", "constraints": [{"type": "memory", "min": "2TiB", "max": "3TiB"}]}),
            "y 403 403 403 403 403 403 403",
        ),
        ("withdrawing", &delete, "/v1/sizes/x".into(), Value::Null, "y 403 403 403 403 403 403 403"),
        ("where images are from", &get, "/v1/image-sources/prod".into(), Value::Null, "y y 404 404 404 404 404 404"),
        (
            "another image",
            &put,
            "/v1/image-sources/tar".into(),
            json!({"name": "tar", "image": "tar/1", "url": "https://images.example.org/a.tar"}),
            "y 403 403 403 403 403 403 403",
        ),
        ("no image", &delete, "/v1/image-sources/tar".into(), Value::Null, "y 403 403 403 403 403 403 403"),
        ("a backup", &get, "/v1/backup".into(), Value::Null, "- 403 403 403 403 403 403 403"),
        ("how backups go", &get, "/v1/backup/status".into(), Value::Null, "y y 403 403 403 403 403 403"),
        ("a restore's end", &post, "/v1/backup/settle".into(), Value::Null, "- 403 403 403 403 403 403 403"),
        ("its project", &get, "/v1/projects/web".into(), Value::Null, "y y y y y y 404 y"),
        ("another project", &get, "/v1/projects/other".into(), Value::Null, "y y 404 404 404 404 404 404"),
        ("its reservation", &get, "/v1/reservations/web".into(), Value::Null, "y y y y y y 404 y"),
        ("another's reservation", &get, "/v1/reservations/other".into(), Value::Null, "y y 404 404 404 404 404 404"),
        ("changing its project", &put, "/v1/projects/web".into(), web, "y 403 y 403 403 403 403 403"),
        ("more for its project", &put, "/v1/projects/web".into(), richer, "- 403 403 403 403 403 403 403"),
        ("the audit", &get, "/v1/audit".into(), Value::Null, "y y 403 403 403 403 403 403"),
        ("boot servers", &get, "/v1/boot-servers".into(), Value::Null, "y y 403 403 403 403 403 403"),
        (
            "a boot server's token",
            &post,
            "/v1/boot-servers/tokens".into(),
            Value::Null,
            "y 403 403 403 403 403 403 403",
        ),
        ("labels of drives", &get, "/v1/psids".into(), Value::Null, "y y 403 403 403 403 403 403"),
        (
            "an admin's token",
            &post,
            "/v1/tokens".into(),
            json!({"name": "a", "role": "admin"}),
            "y 403 403 403 403 403 403 403",
        ),
        (
            "a token for its project",
            &post,
            "/v1/tokens".into(),
            json!({"name": "a", "projects": {"web": "editor"}}),
            "y 403 y y 403 403 403 y",
        ),
        (
            "a token for another",
            &post,
            "/v1/tokens".into(),
            json!({"name": "a", "projects": {"other": "viewer"}}),
            "y y 403 403 403 403 403 403",
        ),
        (
            "another's name",
            &post,
            "/v1/tokens".into(),
            json!({"name": "a", "user": "boss@acme"}),
            "y 403 y 403 403 403 403 403",
        ),
        ("allocating for it", &post, "/v1/allocations".into(), allocation("web"), "- 403 - y 403 403 403 -"),
        ("taking it", &post, format!("/v1/machines/{ours}/release"), Value::Null, "- 403 - y 404 404 404 -"),
    ] {
        for ((who, token), want) in callers.iter().zip(want.split(' ')).filter(|(_, want)| *want != "-") {
            let got = rig
                .ask_as(token, verb.clone(), &path, &body)
                .map_or_else(|problem| problem.status.to_string(), |_| "y".into());
            assert_eq!(got, want, "{what}, by {who}");
        }
    }
    let listed = |token: &str, path: &str| {
        let page = rig.ask_as(token, Verb::GET, path, &Value::Null).expect("lists");
        page["items"].as_array().expect("items").len()
    };
    for (who, machines, projects) in
        [("admin", 4, 2), ("viewer", 4, 2), ("editor", 1, 1), ("guest", 0, 1), ("stranger", 0, 0)]
    {
        let (_, token) = callers.iter().find(|(name, _)| *name == who).expect("is there");
        assert_eq!((listed(token, "/v1/machines"), listed(token, "/v1/projects")), (machines, projects), "{who}");
    }
}

#[test]
fn tokens_end_and_are_known_to_their_makers_alone() {
    let rig = Rig::new();
    declare(&rig);
    let mine = token(&rig, &json!({"name": "mine", "user": "ed@acme", "expires_in_s": 1}));
    let other = token(&rig, &json!({"name": "other", "user": "vi@acme"}));
    let names = |token: &str| -> Vec<String> {
        let listed = rig.ask_as(token, Verb::GET, "/v1/tokens", &Value::Null).expect("lists");
        listed.as_array().expect("a list").iter().map(|t| t["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names(&other), ["other"]);
    assert_eq!(names(&rig.token("admin")).len(), 4, "with the first two");
    assert!(!String::from_utf8_lossy(&rig.all_that_is_kept()).contains(other.split('.').nth(1).expect("a secret")));
    await_that(|| {
        rig.ask_as(&mine, Verb::GET, "/v1/sizes", &Value::Null)
            .is_err_and(|problem| problem.detail.contains("has expired"))
    });
    let (_, all) = rig.ask(Verb::GET, "/v1/tokens", &Value::Null, &[]).expect("lists");
    let id = all.as_array().expect("a list").iter().find(|t| t["name"] == "other").expect("is there")["id"].clone();
    let path = format!("/v1/tokens/{}", id.as_str().expect("an id"));
    rig.ask(Verb::DELETE, &path, &Value::Null, &[]).expect("revokes");
    assert_eq!(rig.ask_as(&other, Verb::GET, "/v1/sizes", &Value::Null).expect_err("revoked").status, 401);
    let (_, audit) = rig.ask(Verb::GET, "/v1/audit", &Value::Null, &[]).expect("lists");
    assert!(audit.to_string().contains("\"revoke\"") && !audit.to_string().contains(&other));
}

#[test]
fn who_asks_too_often_waits() {
    let rig = Rig::with(|config, _| config.requests_per_second = 5.try_into().expect("more than nothing"));
    let viewer = rig.token("viewer");
    let asked: Vec<_> = (0..40).map(|_| rig.ask(Verb::GET, "/v1/sizes", &Value::Null, &[])).collect();
    let refused = asked.iter().filter(|answer| answer.as_ref().is_err_and(|problem| problem.status == 429)).count();
    assert!(refused > 0 && refused < 40, "{refused}");
    rig.ask_as(&viewer, Verb::GET, "/v1/sizes", &Value::Null).expect("somebody else doesn't");
}

#[test]
fn no_agent_touches_another_machine() {
    let rig = Rig::new();
    let (ours, our_order) = rig.erasing(1);
    let (theirs, their_order) = rig.erasing(2);
    let (installing, _, install) = rig.installing(3);
    let other_ticket = rig.boot(4).ticket;
    let kept = |n: u8| {
        let machine = rig.machine(n);
        let events = rig.operator().events(&machine.id.to_string(), 0, 0).expect("lists");
        (machine.generation, machine.state, events)
    };
    let before = [2, 3, 4].map(kept);
    let refused = |what: &str, answer: Result<(), Problem>, status: u16| {
        assert_eq!(answer.expect_err(what).status, status, "{what}");
    };
    let enrol = |token: &str, n: u8| {
        let body =
            Enrol { machine: machine(n), key: PublicKey::of(&ours.key), macs: vec![mac(n)], agent_version: "t".into() };
        rig.agent::<Value>(Verb::POST, AGENT_ENROL, token, &body).map(drop)
    };
    refused("enrolling as another", enrol(&other_ticket.token, 1), 403);
    refused("with a ticket that another used", enrol(&theirs.ticket.token, 2), 401);
    refused("with a credential instead of a ticket", enrol(&ours.credential, 4), 401);
    refused("another's inventory", ours.inventory_of(&rig, &inventory(2)), 403);
    refused("another's order", ours.outcome(&rig, their_order.id, &theirs.erased(&their_order)), 404);
    refused(
        "another's proof",
        ours.outcome(&rig, our_order.id, &theirs.erased(&their_order)).and_then(|()| {
            // Taken in, and worth nothing.
            assert_eq!(rig.state(1), State::Quarantined);
            Err(Problem { status: 0, title: String::new(), detail: String::new(), errors: vec![] })
        }),
        0,
    );
    refused("calling home for another", phone_home(&rig, 2, &install.phone_home.token), 401);
    refused("calling home with a credential", phone_home(&rig, 3, &installing.credential), 401);
    assert_eq!(theirs.order(&rig, 0).expect("answers").map(|order| order.id), Some(their_order.id), "each has its own");
    for (what, verb, path) in [
        ("the list", Verb::GET, "/v1/machines".to_owned()),
        ("another's record", Verb::GET, format!("/v1/machines/{}", machine(2))),
        ("taking another back", Verb::POST, format!("/v1/machines/{}/release", machine(2))),
        ("the tokens", Verb::GET, "/v1/tokens".to_owned()),
        ("boot servers' reports", Verb::POST, "/boot-server/v1/reports".to_owned()),
    ] {
        let status = rig.ask_as(&ours.credential, verb, &path, &Value::Null).expect_err(what).status;
        assert!(matches!(status, 401 | 404), "{what}: {status}");
    }
    assert_eq!([2, 3, 4].map(kept), before, "nothing has become of the others");
}

/// An OpenID Connect provider, as far as a server that is shown its tokens meets it.
struct Login {
    url: String,
    ca: String,
    /// By path.
    documents: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Login {
    fn start() -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect("signs").pem();
        let key = KeyPair::generate().expect("a key");
        let own = CertificateParams::new(vec!["localhost".into()]).expect("parameters");
        let own = own.signed_by(&key, &Issuer::new(ca, ca_key)).expect("signs");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a certificate");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
        let documents: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let shown = Arc::clone(&documents);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, config, shown) = (stream.expect("a connection"), Arc::clone(&config), Arc::clone(&shown));
                thread::spawn(move || {
                    let tls = rustls::ServerConnection::new(config).expect("a connection");
                    let mut stream = rustls::StreamOwned::new(tls, stream);
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    let found =
                        shown.lock().expect("no panic").iter().find(|(at, _)| at == path).map(|(_, d)| d.to_string());
                    let (status, body) = found.map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
                    let answer = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    drop(stream.write_all(answer.as_bytes()));
                    stream.conn.send_close_notify();
                    drop(stream.flush());
                });
            }
        });
        let issuer = Self { url, ca: ca_pem, documents };
        issuer.show(
            "/.well-known/openid-configuration",
            json!({"issuer": issuer.url, "jwks_uri": format!("{}/keys", issuer.url)}),
        );
        issuer
    }

    fn show(&self, path: &str, document: Value) {
        let mut documents = self.documents.lock().expect("no panic");
        documents.retain(|(at, _)| at != path);
        documents.push((path.into(), document));
    }
}

fn openssl(args: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(args).output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A key of another make: its file, and what a provider says of it.
fn signing_key(dir: &Path, kid: &str) -> (String, Value) {
    let file = dir.join(kid).display().to_string();
    openssl(&["genrsa", "-out", &file, "2048"]);
    let modulus = String::from_utf8(openssl(&["rsa", "-in", &file, "-noout", "-modulus"])).expect("text");
    let modulus = modulus.trim().trim_start_matches("Modulus=");
    let bytes: Vec<u8> = (0..modulus.len() / 2)
        .map(|n| u8::from_str_radix(&modulus[2 * n..2 * n + 2], 16).expect("hexadecimal"))
        .collect();
    (file, json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": URL.encode(bytes), "e": "AQAB"}))
}

fn signed(file: &str, header: &Value, claims: &Value) -> String {
    let text = format!("{}.{}", URL.encode(header.to_string()), URL.encode(claims.to_string()));
    let message = format!("{file}.message");
    fs::write(&message, &text).expect("writes");
    format!("{text}.{}", URL.encode(openssl(&["dgst", "-sha256", "-sign", file, &message])))
}

#[test]
fn people_come_by_their_providers_word() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let issuer = Login::start();
    let (file, key) = signing_key(dir.path(), "k1");
    let secret = json!({"kty": "oct", "kid": "shared", "k": URL.encode([7; 32]), "alg": "HS256"});
    issuer.show("/keys", json!({"keys": [key, secret]}));
    let rig = Rig::with(|config, _| {
        config.oidc = Some(Oidc {
            issuer: issuer.url.clone(),
            audience: "drophammer".into(),
            ca: issuer.ca.clone(),
            user_claim: "email".into(),
            groups_claim: "groups".into(),
            admins: vec!["operators".into()],
            viewers: vec!["support".into()],
        });
    });
    declare(&rig);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = json!({
            "iss": issuer.url, "aud": ["drophammer", "another"], "sub": "7", "email": "ed@acme", "exp": now + 300,
        });
        change(&mut claims);
        claims
    };
    let header = json!({"alg": "RS256", "kid": "k1", "typ": "JWT"});
    let good = |change: &dyn Fn(&mut Value)| signed(&file, &header, &claims(change));
    let status = |token: &str, path: &str| {
        rig.ask_as(token, Verb::GET, path, &Value::Null).map_or_else(|problem| problem.status, |_| 200)
    };
    let member = good(&|_| ());
    let mut parts: Vec<String> = member.split('.').map(Into::into).collect();
    parts[1] = URL.encode(claims(&|c| c["groups"] = json!(["operators"])).to_string());
    let unsigned = format!("{}.{}.", URL.encode(json!({"alg": "none"}).to_string()), parts[1]);
    let shared = {
        let text = format!("{}.{}", URL.encode(json!({"alg": "HS256", "kid": "shared"}).to_string()), parts[1]);
        let message = dir.path().join("message").display().to_string();
        fs::write(&message, &text).expect("writes");
        let key = format!("hexkey:{}", "07".repeat(32));
        let mac = openssl(&["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-binary", &message]);
        format!("{text}.{}", URL.encode(mac))
    };
    for (name, token, project, audit) in [
        ("a member of a project", member.clone(), 200, 403),
        ("an operator", good(&|c| c["groups"] = json!(["staff", "operators"])), 200, 200),
        ("support", good(&|c| c["groups"] = json!("support")), 200, 200),
        ("nobody's member", good(&|c| c["email"] = json!("else@acme")), 404, 403),
        ("within the clocks' difference", good(&|c| c["exp"] = json!(now - 30)), 200, 403),
        ("expired", good(&|c| c["exp"] = json!(now - 300)), 401, 401),
        ("not yet", good(&|c| c["nbf"] = json!(now + 300)), 401, 401),
        ("for another server", good(&|c| c["aud"] = json!("another")), 401, 401),
        ("for nobody", good(&|c| drop(c.as_object_mut().expect("claims").remove("aud"))), 401, 401),
        ("for ever", good(&|c| drop(c.as_object_mut().expect("claims").remove("exp"))), 401, 401),
        ("of another provider", good(&|c| c["iss"] = json!("https://evil")), 401, 401),
        ("without a name", good(&|c| c["email"] = json!("")), 401, 401),
        ("an address that nobody checked", good(&|c| c["email_verified"] = json!(false)), 401, 401),
        ("altered", parts.join("."), 401, 401),
        ("unsigned", unsigned, 401, 401),
        ("by a secret that both know", shared, 401, 401),
        ("nonsense", "a.b.c".into(), 401, 401),
        ("endless", format!("{}.{}.{}", "a".repeat(20_000), "b", "c"), 401, 401),
    ] {
        assert_eq!((status(&token, "/v1/projects/web"), status(&token, "/v1/audit")), (project, audit), "{name}");
    }
    // The provider changes its key: the new one is looked for, and the old one isn't believed any more.
    let (new_file, new_key) = signing_key(dir.path(), "k2");
    issuer.show("/keys", json!({"keys": [new_key]}));
    let renewed = signed(&new_file, &json!({"alg": "RS256", "kid": "k2"}), &claims(&|_| ()));
    await_that(|| status(&renewed, "/v1/projects/web") == 200);
    assert_eq!(status(&member, "/v1/projects/web"), 401);
}
