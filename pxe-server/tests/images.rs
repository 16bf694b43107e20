//! Images that operators register while the server runs: fetched over HTTP, mirrored, compiled, and given to a machine.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use drophammer_control::client::Client;
use drophammer_images::{PackOptions, keygen, load_key, pack};
use drophammer_protocol::api::{AGENT_ENROL, AGENT_INVENTORY, AGENT_ORDER, AGENT_ORDERS, Enrol, Enrolled, ImportState};
use drophammer_protocol::fixtures;
use drophammer_protocol::inventory::Inventory;
use drophammer_protocol::machine::{Allocation, State};
use drophammer_protocol::order::{Order, Outcome, Task};
use drophammer_protocol::sign::{PublicKey, Signed};
use drophammer_protocol::system::System;
use drophammer_protocol::ticket::{BootDecision, BootTicket};
use ed25519_dalek::SigningKey;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use common::{configure, curl, in_a_network, operate, run, start, try_curl};

#[test]
fn images_are_registered_while_the_server_runs() {
    in_a_network("images_are_registered_while_the_server_runs", || {}, inside());
}

const WEB: &str = "http://127.0.0.1:8099";
const MACHINE: &str = "12345678-9abc-4ef0-9234-56789abcdef0";

async fn inside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    run("ip link add server0 type veth peer name client0");
    run("ip link set client0 up");
    run("ip link set server0 up");
    run("ip address add 10.77.0.1/24 dev server0");
    let web = Web::start(dir);
    let sha256 = hex::encode(Sha256::digest(root()));
    for (store, image, seed) in [
        ("store", "published/1", "builder"),
        ("store", "published/2", "builder"),
        ("store", "newest/7", "builder"),
        ("strange", "strange/1", "stranger"),
    ] {
        web.publish(store, image, seed);
    }
    let files: [(&str, &[u8]); 3] = [("vmlinuz", b"kernel"), ("initramfs", b"initramfs"), ("undionly.kpxe", b"BIOS")];
    let network = "[[network]]\ninterface = \"server0\"\naddress = \"10.77.0.1\"\nsubnet = \"10.77.0.0/24\"\n\
                   pool = [{ first = \"10.77.0.100\", last = \"10.77.0.199\" }]";
    let mut settings = configure(dir, &files, network);
    settings.image_keys = vec![PublicKey::of(&web.key("builder"))];
    let server = start(&settings).await;
    let registry = Registry { state: settings.state_dir.clone() };

    // It boots before anything is declared, and is given what is declared later.
    let agent = Agent::waiting().await;
    registry
        .declare(json!({"name": "tar", "image": "tarball/1", "url": format!("{WEB}/root.tar"), "sha256": sha256}))
        .await;
    registry.gets("tarball/1").await;
    let ours = agent.ticket.image_keys.clone();
    let signed_by = registry.images().await.into_iter().find(|(image, _)| image == "tarball/1").expect("is there").1;
    assert!(ours.contains(&signed_by) && !settings.image_keys.contains(&signed_by), "by the server's own key");
    registry.is_allocated("tarball/1").await;

    registry.declare(json!({"name": "one", "image": "published/1", "store": format!("{WEB}/store")})).await;
    registry.gets("published/1").await;
    registry.declare(json!({"name": "newest", "image": "newest", "store": web.0.join("store")})).await;
    registry.gets("newest/7").await;
    let known = ["newest/7", "published/1", "tarball/1"];
    assert_eq!(registry.references().await, known, "and nothing else of that store");

    let tar = |name: &str, url: String, sha256: &str| json!({"name": name, "image": format!("{name}/1"), "url": url, "sha256": sha256});
    let stored = |name: &str, store: String| json!({"name": name, "image": format!("{name}/1"), "store": store});
    for (name, source, want) in [
        ("another signature", stored("strange", format!("{WEB}/strange")), "which is none of the trusted keys"),
        ("another digest", tar("altered", format!("{WEB}/root.tar"), &"0".repeat(64)), "it hashes to"),
        ("nobody is there", tar("gone", "http://127.0.0.1:9/root.tar".into(), &sha256), "127.0.0.1:9/root.tar"),
        ("nothing is there", stored("missing", format!("{WEB}/store")), "missing/1/manifest.json isn't there"),
        ("no image", tar("text", format!("{WEB}/text"), &hex::encode(Sha256::digest(b"text"))), "importing text/1"),
    ] {
        registry.declare(source.clone()).await;
        registry.fails(&source, want, name).await;
        assert_eq!(registry.references().await, known, "{name}");
        registry.withdraw(&source).await;
    }
    // Put right, it isn't waited for.
    let wrong = tar("fixed", format!("{WEB}/root.tar"), &"0".repeat(64));
    registry.declare(wrong.clone()).await;
    registry.fails(&wrong, "it hashes to", "wrong at first").await;
    registry.declare(tar("fixed", format!("{WEB}/root.tar"), &sha256)).await;
    registry.gets("fixed/1").await;

    // What is gone from there is here, and what isn't declared any more isn't believed any more, though it's kept.
    drop(web);
    registry.withdraw(&json!({"name": "fixed"})).await;
    assert_eq!(registry.references().await, known);
    assert!(settings.images_dir.join("fixed/1/manifest.json").exists());
    server.stop().await;
    // Its importer would end with its process; here it may still be asking who is gone.
    let is_idle = || {
        let images = fs::File::open(&settings.images_dir).expect("opens");
        Flock::lock(images, FlockArg::LockExclusiveNonblock).is_ok()
    };
    let ended = async {
        while !is_idle() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), ended).await.expect("it ends");
    let server = start(&settings).await;
    for image in known {
        registry.gets(image).await;
    }
    server.stop().await;
}

/// What a builder has on its web server, served until this is dropped.
struct Web(PathBuf, Child);

impl Web {
    fn start(dir: &Path) -> Self {
        let www = dir.join("www");
        fs::create_dir_all(&www).expect("made");
        fs::write(www.join("root.tar"), root()).expect("written");
        fs::write(www.join("text"), b"text").expect("written");
        let arguments = ["httpd", "-f", "-p", "127.0.0.1:8099", "-h"];
        let served = Command::new("busybox").args(arguments).arg(&www).spawn().expect("starts");
        Self(www, served)
    }

    /// The key of this name.
    fn key(&self, name: &str) -> SigningKey {
        let path = self.0.join(name);
        if !path.exists() {
            keygen(&path).expect("a key");
        }
        load_key(&path).expect("a key")
    }

    fn publish(&self, store: &str, image: &str, key: &str) {
        let (name, version) = image.split_once('/').expect("NAME/VERSION");
        let options = PackOptions::new(name, version, "");
        pack(&self.0.join("root.tar"), &self.0.join(store), &options, &self.key(key), &|_| {}).expect("packed");
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.1.kill();
        let _ = self.1.wait();
    }
}

/// A system that UEFI could start.
fn root() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["boot/vmlinuz-6.1", "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, name, &b"test"[..]).expect("written");
    }
    tar.into_inner().expect("a tar")
}

/// The server, as an operator sees it.
struct Registry {
    state: PathBuf,
}

impl Registry {
    async fn ask<R: Send + 'static>(&self, work: impl FnOnce(Client) -> R + Send + 'static) -> R {
        operate(&self.state, work).await
    }

    async fn declare(&self, source: Value) {
        let fields = source.as_object().expect("fields").clone();
        let name = source["name"].as_str().expect("a name").to_owned();
        self.ask(move |client| client.put("image-sources", &name, &fields).map(drop).expect("is declared")).await;
    }

    /// From then on nothing is said of it.
    async fn withdraw(&self, source: &Value) {
        let name = source["name"].as_str().expect("a name").to_owned();
        let image = source["image"].clone();
        self.ask(move |client| client.delete("image-sources", &name).expect("is withdrawn")).await;
        self.until("it's forgotten", async || self.imports().await.iter().all(|(of, ..)| *of != image)).await;
    }

    /// Reference, state and words of each.
    async fn imports(&self) -> Vec<(String, ImportState, String)> {
        let all = self.ask(|client| client.imports().expect("lists")).await;
        all.into_iter().map(|import| (import.reference, import.state, import.words)).collect()
    }

    async fn images(&self) -> Vec<(String, PublicKey)> {
        let all = self.ask(|client| client.images().expect("lists")).await;
        all.into_iter().map(|image| (format!("{}/{}", image.name, image.version), image.signed_by)).collect()
    }

    async fn references(&self) -> Vec<String> {
        self.images().await.into_iter().map(|(reference, _)| reference).collect()
    }

    async fn gets(&self, image: &str) {
        let name = image.split('/').next().unwrap_or_default();
        self.until(image, async || {
            let is_there = self.imports().await.iter().any(|(of, state, words)| {
                (of == image || of == name && words.contains(image)) && *state == ImportState::There
            });
            is_there && self.references().await.iter().any(|reference| reference == image)
        })
        .await;
    }

    async fn fails(&self, source: &Value, want: &str, name: &str) {
        let image = source["image"].as_str().expect("an image");
        self.until(name, async || {
            let all = self.imports().await;
            all.iter().any(|(of, state, _)| of == image && *state == ImportState::Failed)
        })
        .await;
        let all = self.imports().await;
        let (.., words) = all.iter().find(|(of, ..)| of == image).expect("is there");
        assert!(words.contains(want) && words.contains("tried again"), "{name}: {words}");
    }

    async fn is_allocated(&self, image: &str) {
        let system = System { hostname: "web-1".into(), ..System::default() };
        let wanted = Allocation { image: image.to_owned(), system, ..Allocation::default() };
        let machine = self.ask(move |client| client.allocate(MACHINE, &wanted).expect("is allocated")).await;
        assert_eq!(machine.allocation.map(|allocation| allocation.image).as_deref(), Some(image));
        assert_eq!(machine.state, State::Allocated);
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let since = Instant::now();
        while !is_so().await {
            assert!(since.elapsed() < Duration::from_secs(120), "not in time: {what}: {:?}", self.imports().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// One that has proven that its machine is empty.
struct Agent {
    ticket: BootTicket,
}

impl Agent {
    async fn waiting() -> Self {
        let url = format!("http://10.77.0.1/boot/ticket?mac=52-54-00-77-01-01&uuid={MACHINE}");
        let decision = serde_json::from_slice(&curl(&[&url]).await).expect("a decision");
        let BootDecision::Agent(ticket) = decision else { panic!("{decision:?}") };
        let key = SigningKey::from_bytes(&[9; 32]);
        let enrol = Enrol {
            machine: ticket.machine,
            key: PublicKey::of(&key),
            macs: vec!["52:54:00:77:01:01".parse().expect("a MAC")],
            agent_version: "test".into(),
        };
        let enrolled = call("POST", AGENT_ENROL, &ticket.token, &enrol).await;
        let Enrolled { credential } = serde_json::from_slice(&enrolled).expect("a credential");
        let disks = vec![fixtures::disk("a", 10 << 30)];
        let inventory = Inventory { id: Some(ticket.machine), ..fixtures::inventory(disks) };
        call("PUT", AGENT_INVENTORY, &credential, &inventory).await;
        let order: Order = serde_json::from_slice(&call("GET", AGENT_ORDER, &credential, &()).await).expect("an order");
        let Task::Erase(task) = &order.task else { panic!("{order:?}") };
        let proof = fixtures::certificate(order.machine, order.boot, order.id, task.link.clone(), &task.disks[0]);
        let erased = Outcome::Erased { certificates: vec![Signed::seal(&proof, &key)] };
        call("POST", &format!("{AGENT_ORDERS}/{}/outcome", order.id), &credential, &erased).await;
        Self { ticket }
    }
}

async fn call(verb: &str, path: &str, token: &str, body: &impl Serialize) -> Vec<u8> {
    let (url, bearer) = (format!("https://10.77.0.1{path}"), format!("authorization: Bearer {token}"));
    let body = serde_json::to_string(body).expect("JSON");
    let json = "content-type: application/json";
    let arguments = ["--insecure", "--fail-with-body", "-X", verb, "-H", &bearer, "-H", json, "--data", &body, &url];
    let answer = try_curl(&arguments).await;
    assert!(answer.status.success(), "{path}: {}", String::from_utf8_lossy(&answer.stdout));
    answer.stdout
}
