//! A real control API behind real sockets, and an agent that plays by a script.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use drophammer_control::client::Client;
use drophammer_control::{Auth, Config, Control, EtcdAt, Policy, StateAt};
use drophammer_lab::etcd::Etcd;
use drophammer_protocol::api::*;
use drophammer_protocol::certificate::{ErasureCertificate, Link};
use drophammer_protocol::erase;
use drophammer_protocol::fixtures;
use drophammer_protocol::id::{Mac, MachineId, OrderId};
use drophammer_protocol::inventory::{Disk, Inventory, System};
use drophammer_protocol::machine::{Allocation, Machine, State};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, Manifest, PACKS};
use drophammer_protocol::order::{Erase, Install, Installed, Order, Outcome, Task};
use drophammer_protocol::revocation::{REVOKED_FILE, Revocations, Revoked};
use drophammer_protocol::sign::{PublicKey, Signed};
use drophammer_protocol::system;
use drophammer_protocol::ticket::{BootDecision, BootTicket, Reach};
use ed25519_dalek::SigningKey;
use reqwest::Method as Verb;
use reqwest::header::HeaderMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

pub(crate) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 9));

/// These tests are built twice: for a file, and for etcd, which is there for as long as somebody holds it.
fn state() -> (StateAt, Option<Arc<Etcd>>) {
    static RIGS: AtomicUsize = AtomicUsize::new(0);
    if env!("CARGO_CRATE_NAME") != "api_on_etcd" {
        return (StateAt::File, None);
    }
    let etcd = Etcd::shared().expect("etcd runs");
    let prefix = format!("/rig{}", RIGS.fetch_add(1, Ordering::Relaxed));
    let at = EtcdAt { endpoints: etcd.endpoints(), prefix, tls: None, login: None };
    (StateAt::Etcd(at), Some(etcd))
}

pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) running: Option<Running>,
    pub(crate) _etcd: Option<Arc<Etcd>>,
}

pub(crate) struct Running {
    control: Control,
    runtime: tokio::runtime::Runtime,
    agents: SocketAddr,
    operators: SocketAddr,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(crate) fn with(adjust: impl FnOnce(&mut Config, &Path)) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let key = SigningKey::from_bytes(&[1; 32]);
        let (state, etcd) = state();
        let mut config = Config {
            state_dir: dir.path().join("state"),
            state,
            images_dir: dir.path().join("images"),
            addresses: vec![],
            host_names: vec![],
            power_hook: None,
            oidc: None,
            requests_per_second: NonZeroU32::MAX,
            policy: Policy {
                image_keys: vec![PublicKey::of(&key)],
                imports: None,
                install_cmdline: "console=ttyS0".into(),
                reboot_models: vec![],
                max_failures: 3,
                erase: erase::Policy::Purge,
                erase_again_after: Duration::from_secs(86_400),
                projects: [("strict".to_owned(), erase::Policy::RekeyOnly)].into(),
            },
        };
        publish(&config.images_dir, "debian/12.1", 100, &key);
        publish(&config.images_dir, "debian/12.2", 200, &key);
        adjust(&mut config, dir.path());
        let mut rig = Self { dir, config, running: None, _etcd: etcd };
        rig.start();
        rig
    }

    fn start(&mut self) {
        self.start_with(Control::open(self.config.clone()).expect("opens"));
    }

    pub(crate) fn start_with(&mut self, control: Control) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let socket = self.socket();
        let _ = fs::remove_file(&socket);
        let (agents, operators) = runtime.block_on(async {
            let agents = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let operators = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let local = tokio::net::UnixListener::bind(&socket).expect("binds");
            let at = (agents.local_addr().expect("bound"), operators.local_addr().expect("bound"));
            // One HTTPS port serves both.
            let both = control.agent_router().merge(control.operator_router(Auth::Token));
            tokio::spawn(axum::serve(agents, both).into_future());
            tokio::spawn(axum::serve(operators, control.operator_router(Auth::Token)).into_future());
            tokio::spawn(axum::serve(local, control.operator_router(Auth::Socket)).into_future());
            at
        });
        self.running = Some(Running { control, runtime, agents, operators });
    }

    pub(crate) fn is_a_file(&self) -> bool {
        self.config.state == StateAt::File
    }

    /// As somebody has it who has the disk in hand.
    pub(crate) fn all_that_is_kept(&self) -> Vec<u8> {
        match &self.config.state {
            StateAt::File => fs::read(self.path().join("state/control.redb")).expect("reads"),
            StateAt::Etcd(at) => {
                let output = Command::new("etcdctl")
                    .env("ETCDCTL_API", "3")
                    .args(["--endpoints", &at.endpoints.join(","), "get", "--prefix", &at.prefix])
                    .output();
                output.expect("etcdctl runs").stdout
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// Everything in memory is lost.
    pub(crate) fn restart(&mut self) {
        self.running = None;
        self.start();
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("runs")
    }

    pub(crate) fn control(&self) -> &Control {
        &self.running().control
    }

    /// As `image revoke` does it.
    pub(crate) fn revoke(&self, image: &str, reason: &str) {
        let (key, images) = (SigningKey::from_bytes(&[1; 32]), &self.config.images_dir);
        let text = fs::read(images.join(image).join(MANIFEST_FILE)).expect("reads");
        let manifest = manifest::open(&text, &[PublicKey::of(&key)]).expect("ours");
        let list = Revocations::default().with(Revoked {
            manifest_sha256: manifest::payload_sha256(&manifest),
            image: image.into(),
            reason: reason.into(),
            at: 1_700_000_000,
        });
        let signed = serde_json::to_string(&Signed::seal(&list.expect("grows"), &key)).expect("serializes");
        fs::write(images.join(REVOKED_FILE), signed).expect("writes");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn operator(&self) -> Client {
        Client::connect(&format!("unix:{}", self.socket().display()), None, None).expect("connects")
    }

    pub(crate) fn machine(&self, n: u8) -> Machine {
        self.operator().machine(&machine(n).to_string()).expect("is known")
    }

    pub(crate) fn state(&self, n: u8) -> State {
        self.machine(n).state
    }

    pub(crate) fn allocate(&self, n: u8) -> anyhow::Result<Machine> {
        self.operator().allocate(&machine(n).to_string(), &allocation())
    }

    /// The machine's firmware asks what to boot.
    pub(crate) fn net_boot(&self, n: u8) -> BootDecision {
        let reach = Reach {
            server: "https://10.77.0.1:8443".into(),
            boot_server: "http://10.77.0.1:8080".into(),
            time_key: PublicKey::of(&SigningKey::from_bytes(&[1; 32])),
        };
        let own_disk = self.control().boots_own_disk(machine(n)).expect("knows");
        let decision = self.control().boot_asked(mac(n), machine(n), ADDRESS, &reach).expect("decides");
        assert_eq!(own_disk, decision == BootDecision::LocalDisk, "the same, asked in two ways");
        decision
    }

    pub(crate) fn boot(&self, n: u8) -> Agent {
        match self.net_boot(n) {
            BootDecision::Agent(ticket) => {
                let (boot, mut seed) = (ticket.boot.0.as_bytes(), [0; 32]);
                seed[..16].copy_from_slice(boot);
                Agent { n, key: SigningKey::from_bytes(&seed), credential: String::new(), ticket }
            }
            BootDecision::LocalDisk => panic!("machine {n} boots its own disk"),
        }
    }

    pub(crate) fn enrolled(&self, n: u8) -> Agent {
        let mut agent = self.boot(n);
        agent.enrol(self).expect("enrols");
        agent
    }

    pub(crate) fn erasing(&self, n: u8) -> (Agent, Order) {
        let agent = self.enrolled(n);
        agent.inventory(self).expect("takes the inventory");
        let order = agent.order(self, 0).expect("answers").expect("an erase order");
        (agent, order)
    }

    pub(crate) fn waiting(&self, n: u8) -> Agent {
        let (agent, order) = self.erasing(n);
        agent.outcome(self, order.id, &agent.erased(&order)).expect("takes the proof");
        agent
    }

    pub(crate) fn installing(&self, n: u8) -> (Agent, OrderId, Install) {
        let agent = self.waiting(n);
        self.allocate(n).expect("allocates");
        let (id, install) = agent.install_order(self);
        (agent, id, install)
    }

    pub(crate) fn booting(&self, n: u8) -> (Agent, Install) {
        let (agent, order, install) = self.installing(n);
        agent.outcome(self, order, &installed()).expect("takes the outcome");
        (agent, install)
    }

    /// Asks the agents' router.
    pub(crate) fn agent<T: DeserializeOwned>(
        &self,
        verb: Verb,
        path: &str,
        token: &str,
        body: &impl Serialize,
    ) -> Result<Option<T>, Problem> {
        ask(verb, self.running().agents, path, Some(token), serde_json::to_vec(body).expect("serializes"))
    }

    pub(crate) fn agent_raw(&self, verb: Verb, path: &str, token: &str, body: Vec<u8>) -> Result<(), Problem> {
        ask::<serde_json::Value>(verb, self.running().agents, path, Some(token), body).map(|_| ())
    }

    /// Asks the operators' router that wants tokens.
    pub(crate) fn operator_raw(&self, verb: Verb, path: &str, token: Option<&str>) -> Result<(), Problem> {
        self.operator_body(verb, path, token, serde_json::to_vec(&allocation()).expect("serializes"))
    }

    pub(crate) fn operator_body(
        &self,
        verb: Verb,
        path: &str,
        token: Option<&str>,
        body: Vec<u8>,
    ) -> Result<(), Problem> {
        ask::<serde_json::Value>(verb, self.running().operators, path, token, body).map(|_| ())
    }

    /// Asks as an admin, with more headers; the answer's headers and body.
    pub(crate) fn ask(
        &self,
        verb: Verb,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Result<(HeaderMap, Value), Problem> {
        let body = if body.is_null() { vec![] } else { serde_json::to_vec(body).expect("serializes") };
        let (headers, body) = answer(verb, self.running().operators, path, Some(&self.token("admin")), headers, body)?;
        Ok((headers, body.unwrap_or(Value::Null)))
    }

    /// The same, as whoever has that token.
    pub(crate) fn ask_as(&self, token: &str, verb: Verb, path: &str, body: &Value) -> Result<Value, Problem> {
        let body = if body.is_null() { vec![] } else { serde_json::to_vec(body).expect("serializes") };
        ask(verb, self.running().operators, path, Some(token), body).map(|body| body.unwrap_or(Value::Null))
    }

    /// Serves something else as well.
    pub(crate) fn serve(&self, router: axum::Router) -> SocketAddr {
        let listener = self.running().runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("binds");
        let at = listener.local_addr().expect("bound");
        self.running().runtime.spawn(axum::serve(listener, router).into_future());
        at
    }

    /// Where operators come to, over HTTP.
    pub(crate) fn operators(&self) -> SocketAddr {
        self.running().operators
    }

    /// The token of the first operator with this role.
    pub(crate) fn token(&self, role: &str) -> String {
        let path = self.path().join("state").join(format!("{role}.token"));
        fs::read_to_string(path).expect("reads").trim().to_owned()
    }

    /// The configuration is read again.
    pub(crate) fn reload(&self, change: impl FnOnce(&mut Policy)) {
        let mut policy = self.config.policy.clone();
        change(&mut policy);
        self.control().follow(policy);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Connections and long polls end here, and with them their hold on the state file.
        let runtime = std::mem::replace(
            &mut self.runtime,
            tokio::runtime::Builder::new_current_thread().build().expect("an empty runtime"),
        );
        runtime.shutdown_timeout(std::time::Duration::from_secs(10));
    }
}

pub(crate) struct Agent {
    pub(crate) n: u8,
    pub(crate) ticket: BootTicket,
    pub(crate) key: SigningKey,
    pub(crate) credential: String,
}

impl Agent {
    pub(crate) fn enrol(&mut self, rig: &Rig) -> Result<(), Problem> {
        let body = Enrol {
            machine: self.ticket.machine,
            key: PublicKey::of(&self.key),
            macs: vec![mac(self.n)],
            agent_version: "test".into(),
        };
        let enrolled: Enrolled = rig.agent(Verb::POST, AGENT_ENROL, &self.ticket.token, &body)?.expect("a body");
        self.credential = enrolled.credential;
        Ok(())
    }

    pub(crate) fn inventory(&self, rig: &Rig) -> Result<(), Problem> {
        self.inventory_of(rig, &inventory(self.n))
    }

    pub(crate) fn inventory_of(&self, rig: &Rig, inventory: &Inventory) -> Result<(), Problem> {
        rig.agent::<()>(Verb::PUT, AGENT_INVENTORY, &self.credential, inventory).map(|_| ())
    }

    pub(crate) fn events(&self, rig: &Rig, events: Events) -> Result<u64, Problem> {
        let stored: Option<EventsStored> = rig.agent(Verb::POST, AGENT_EVENTS, &self.credential, &events)?;
        Ok(stored.expect("a body").seq)
    }

    pub(crate) fn order(&self, rig: &Rig, wait: u64) -> Result<Option<Order>, Problem> {
        rig.agent(Verb::GET, &format!("{AGENT_ORDER}?wait={wait}"), &self.credential, &())
    }

    pub(crate) fn install_order(&self, rig: &Rig) -> (OrderId, Install) {
        match self.order(rig, 0).expect("answers") {
            Some(Order { id, task: Task::Install(install), .. }) => (id, *install),
            other => panic!("an install order is due, not {other:?}"),
        }
    }

    pub(crate) fn outcome(&self, rig: &Rig, order: OrderId, outcome: &Outcome) -> Result<(), Problem> {
        let path = format!("{AGENT_ORDERS}/{order}/outcome");
        rig.agent::<()>(Verb::POST, &path, &self.credential, outcome).map(|_| ())
    }

    pub(crate) fn certificates(&self, order: &Order) -> Vec<ErasureCertificate> {
        let task = erase_task(order);
        let of = |disk| fixtures::certificate(order.machine, order.boot, order.id, task.link.clone(), disk);
        task.disks.iter().map(of).collect()
    }

    pub(crate) fn erased(&self, order: &Order) -> Outcome {
        self.sealed(self.certificates(order))
    }

    /// As an agent signs them: each says where it stands after the one before.
    pub(crate) fn sealed(&self, certificates: Vec<ErasureCertificate>) -> Outcome {
        let mut link = certificates.first().map_or(Link::FIRST, |first| first.link.clone());
        let seal = |certificate| {
            let signed = Signed::seal(&ErasureCertificate { link: link.clone(), ..certificate }, &self.key);
            link = link.after(&signed);
            signed
        };
        Outcome::Erased { certificates: certificates.into_iter().map(seal).collect() }
    }
}

pub(crate) fn erase_task(order: &Order) -> &Erase {
    match &order.task {
        Task::Erase(task) => task,
        other => panic!("an erase order is due, not {other:?}"),
    }
}

pub(crate) fn phone_home(rig: &Rig, n: u8, token: &str) -> Result<(), Problem> {
    let body = PhonedHome {
        machine: machine(n),
        hostname: "web-1".into(),
        os: "Debian".into(),
        kernel: "6.1".into(),
        ssh_host_keys: vec!["ssh-ed25519 AAAA".into()],
        uptime_ms: 1,
    };
    rig.agent::<()>(Verb::POST, AGENT_PHONE_HOME, token, &body).map(|_| ())
}

pub(crate) fn ask<T: DeserializeOwned>(
    verb: Verb,
    server: SocketAddr,
    path: &str,
    token: Option<&str>,
    body: Vec<u8>,
) -> Result<Option<T>, Problem> {
    answer(verb, server, path, token, &[], body).map(|(_, body)| body)
}

fn answer<T: DeserializeOwned>(
    verb: Verb,
    server: SocketAddr,
    path: &str,
    token: Option<&str>,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<(HeaderMap, Option<T>), Problem> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let http = reqwest::blocking::Client::builder().no_proxy().tls_backend_preconfigured(tls).timeout(None);
    let http = http.build().expect("a client");
    let request = http.request(verb, format!("http://{server}{path}")).body(body);
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.send().expect("answers");
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().expect("a body");
    if !status.is_success() {
        let problem: Problem = serde_json::from_slice(&body).expect("every error is a problem");
        assert_eq!(headers.get("content-type").map(|v| v.as_bytes()), Some(b"application/problem+json".as_slice()));
        assert_eq!(problem.status, status.as_u16());
        assert!(!problem.detail.is_empty());
        return Err(problem);
    }
    let body = (!body.is_empty()).then(|| serde_json::from_slice(&body).expect("the promised body"));
    Ok((headers, body))
}

pub(crate) fn await_that(happened: impl Fn() -> bool) {
    for _ in 0..1200 {
        if happened() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("nothing happened for a minute");
}

pub(crate) fn machine(n: u8) -> MachineId {
    MachineId(Uuid::from_bytes([n; 16]))
}

pub(crate) fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0x77, 0, n])
}

pub(crate) fn allocation() -> Allocation {
    Allocation { image: "debian".into(), system: system("web-1"), ..Allocation::default() }
}

pub(crate) fn system(hostname: &str) -> system::System {
    system::System { hostname: hostname.into(), ..system::System::default() }
}

pub(crate) fn installed() -> Outcome {
    Outcome::Installed(Box::new(Installed {
        root_uuid: "u".into(),
        kernel: "/boot/vmlinuz".into(),
        cmdline: String::new(),
        bytes_fetched: 1,
        bytes_written: 2,
        peak_memory_bytes: 3,
        kept: vec![],
    }))
}

pub(crate) fn disk(serial: &str, gib: u64) -> Disk {
    fixtures::disk(serial, gib << 30)
}

pub(crate) fn inventory(n: u8) -> Inventory {
    let disks = vec![disk(&format!("big-{n}"), 100), disk(&format!("small-{n}"), 10)];
    let system = System { serial: Some(format!("SN-{n}")), ..System::default() };
    Inventory { id: Some(machine(n)), system, ..fixtures::inventory(disks) }
}

pub(crate) fn publish(images: &Path, reference: &str, created: u64, key: &SigningKey) {
    let dir = images.join(reference);
    let (name, version) = reference.split_once('/').expect("NAME/VERSION");
    let manifest = Manifest { created, installed_bytes: 1 << 30, ..fixtures::manifest(name, version) };
    for dir in [&dir, &images.join(PACKS)] {
        fs::create_dir_all(dir).expect("creates");
    }
    let pack = fs::File::create(images.join(PACKS).join(&manifest.packs[0].sha256)).expect("creates");
    pack.set_len(manifest.packs[0].bytes).expect("as long as it should be");
    let signed = serde_json::to_string(&Signed::seal(&manifest, key)).expect("serializes");
    fs::write(dir.join(MANIFEST_FILE), signed).expect("writes");
}
