//! Where images are declared to come from.

use drophammer_control::Imports;
use drophammer_protocol::api::Problem;
use drophammer_protocol::machine::{State, TakeBack};
use drophammer_protocol::sign::PublicKey;
use ed25519_dalek::SigningKey;
use reqwest::Method as Verb;
use serde_json::{Value, json};

use super::rig::*;

fn put(rig: &Rig, source: &Value) -> Result<Value, Problem> {
    let name = source["name"].as_str().unwrap_or_default();
    rig.ask(Verb::PUT, &format!("/v1/image-sources/{name}"), source, &[]).map(|(_, body)| body)
}

fn withdraw(rig: &Rig, name: &str) -> Result<(), Problem> {
    rig.ask(Verb::DELETE, &format!("/v1/image-sources/{name}"), &Value::Null, &[]).map(drop)
}

/// The key that this server signs with what it compiles.
fn own_key() -> SigningKey {
    SigningKey::from_bytes(&[2; 32])
}

/// A server whose configuration has an import of `configured/1`.
fn rig() -> Rig {
    let imports = Imports { key: PublicKey::of(&own_key()), references: vec!["configured/1".into()] };
    Rig::with(|config, _| config.policy.imports = Some(imports))
}

#[test]
fn each_image_has_one_source() {
    let rig = rig();
    let tar = |name: &str, image: &str| json!({"name": name, "image": image, "url": "https://h/a.tar"});
    let store = |name: &str, image: &str| json!({"name": name, "image": image, "store": "s3://b/prod"});
    for (name, source, field, why) in [
        ("from nowhere", json!({"name": "x", "image": "a/1"}), "store", "say where it's from"),
        ("no version", json!({"name": "x", "image": "a", "url": "https://h/a.tar"}), "image", "NAME/VERSION"),
        ("no hash", json!({"name": "x", "image": "a/1", "url": "/a.tar", "sha256": "1"}), "sha256", "64"),
        ("the configuration's", tar("x", "configured/1"), "image", "configuration has an [[import]] of configured/1"),
        ("perhaps the configuration's", store("x", "configured"), "image", "an [[import]] of configured/1"),
        ("unknown fields", json!({"name": "x", "image": "a/1", "colour": "red"}), "colour", "unknown field"),
    ] {
        let problem = put(&rig, &source).expect_err(name);
        let at_fault = problem.errors.iter().any(|e| e.field == field && e.detail.contains(why));
        assert!(at_fault, "{name}: {problem:?}");
    }
    put(&rig, &tar("one", "debian/12.3")).expect("is declared");
    put(&rig, &tar("one", "debian/12.4")).expect("is changed");
    put(&rig, &store("two", "ubuntu")).expect("is declared");
    put(&rig, &store("three", "ubuntu/24")).expect("is declared, and stays when there is a newer one");
    for (name, source, of) in [
        ("the same", tar("four", "debian/12.4"), "one"),
        ("perhaps the same", store("four", "debian"), "one"),
        ("from elsewhere", json!({"name": "four", "image": "ubuntu", "store": "/srv"}), "three"),
    ] {
        let problem = put(&rig, &source).expect_err(name);
        assert_eq!(problem.errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), ["image"], "{name}");
        assert!(problem.detail.contains(&format!("image source {of} may bring the same")), "{name}: {problem:?}");
    }
    withdraw(&rig, "one").expect("nothing needs it");
    put(&rig, &tar("four", "debian/12.4")).expect("it was withdrawn");
}

/// Its own signature is believed for what is declared, as long as it is.
#[test]
fn what_is_declared_to_be_compiled_here_is_believed() {
    let rig = rig();
    for (reference, created) in [("debian/13", 300), ("debian/14", 400), ("configured/1", 100)] {
        publish(&rig.config.images_dir, reference, created, &own_key());
    }
    let listed = || {
        let all = rig.operator().images().expect("lists");
        all.into_iter().map(|image| format!("{}/{}", image.name, image.version)).collect::<Vec<_>>()
    };
    let usual = ["configured/1", "debian/12.2", "debian/12.1"];
    assert_eq!(listed(), usual);
    let agent = rig.waiting(1);
    assert!(agent.ticket.image_keys.contains(&PublicKey::of(&own_key())), "for what is declared after its boot");
    put(&rig, &json!({"name": "store", "image": "debian/14", "store": "s3://b"})).expect("is declared");
    assert_eq!(listed(), usual, "what is in a store has to be signed by somebody else");
    withdraw(&rig, "store").expect("nothing needs it");
    put(&rig, &json!({"name": "tar", "image": "debian/13", "url": "https://h/a.tar"})).expect("is declared");
    assert_eq!(listed(), ["configured/1", "debian/13", "debian/12.2", "debian/12.1"]);

    assert_eq!(rig.allocate(1).expect("allocates").allocation.map(|a| a.image).as_deref(), Some("debian/13"));
    let problem = withdraw(&rig, "tar").expect_err("is needed");
    assert!(problem.status == 409 && problem.detail.contains("about to be installed on machine SN-1"), "{problem:?}");
    let (order, install) = agent.install_order(&rig);
    assert_eq!(install.image, "debian/13");
    withdraw(&rig, "tar").expect("the order says which image it is");
    assert_eq!(agent.install_order(&rig), (order, install));
    agent.outcome(&rig, order, &installed()).expect("takes the outcome");
    assert_eq!((rig.state(1), listed()), (State::Booting, usual.map(str::to_owned).to_vec()));
    rig.operator().release("SN-1", TakeBack::default()).expect("is taken back");
}
