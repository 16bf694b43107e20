//! A network of our own, the server under test, and running other people's programs against it.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use drophammer_control::client::Client;
use drophammer_pxe_server::{Settings, config, serve_reloading};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const INSIDE: &str = "DROPHAMMER_TEST_INSIDE";
const TOOLS: [(&str, &str); 5] = [
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("busybox", "busybox-static"),
    ("curl", "curl"),
];

/// Runs `test`, the only one called `name` in this program, as root of a network that is gone afterwards. Needs no root where
/// user namespaces are allowed. `outside` is done before, with the host's network.
pub(crate) fn in_a_network(name: &str, outside: impl FnOnce(), test: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip link set lo up");
        return tokio::runtime::Runtime::new().expect("a runtime").block_on(test);
    }
    for (tool, package) in TOOLS {
        let there = Command::new(tool).arg("--help").output().is_ok();
        assert!(there, "{tool} isn't installed; it is in the Debian package {package}");
    }
    outside();
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(done.expect("runs").success(), "see above");
}

/// A boot directory, and a configuration that has `networks` and keeps everything in `dir`.
pub(crate) fn configure(dir: &Path, files: &[(&str, &[u8])], networks: &str) -> Settings {
    let boot = dir.join("boot");
    fs::create_dir_all(&boot).expect("made");
    for (name, content) in files {
        fs::write(boot.join(name), content).expect("written");
    }
    let state = dir.join("state");
    let text = format!(
        "state_dir = {state:?}\nboot_dir = {boot:?}\nagent_cmdline = \"console=ttyS0\"\nrouter_advertisements = false\n\
         {networks}"
    );
    let path = dir.join("config.toml");
    fs::write(&path, text).expect("written");
    config::read(&path).expect("is understood")
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) server: JoinHandle<anyhow::Result<()>>,
    pub(crate) reload: mpsc::Sender<Settings>,
}

impl Server {
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("is running");
        self.server.await.expect("no panic").expect("an orderly end");
    }
}

/// A server that is ready to be talked to.
pub(crate) async fn start(settings: &Settings) -> Server {
    start_and_ask(settings, &[&format!("http://{}/boot/vmlinuz", settings.networks[0].address)]).await
}

async fn start_and_ask(settings: &Settings, ask: &[&str]) -> Server {
    let (stop, stopped) = oneshot::channel::<()>();
    let (reload, reloads) = mpsc::channel(1);
    let server = tokio::spawn(serve_reloading(settings.clone(), reloads, async { drop(stopped.await) }));
    // Ports are bound one after the other and the socket is served last.
    for _ in 0..200 {
        if server.is_finished() || try_curl(ask).await.status.success() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!server.is_finished(), "{:?}", server.await);
    Server { stop, server, reload }
}

/// Where [`start_control`] serves it.
pub(crate) const CONTROL: &str = "https://127.0.0.1:8443";

/// A control API without machines of its own, below `control` in `dir`.
pub(crate) async fn start_control(dir: &Path) -> Server {
    let path = dir.join("control.toml");
    let state = dir.join("control");
    fs::write(&path, format!("state_dir = {state:?}\nlisten = [\"127.0.0.1:8443\"]")).expect("written");
    start_and_ask(&config::read(&path).expect("is understood"), &["--insecure", CONTROL]).await
}

/// An operator at the socket of the server whose state is in `state`, off the runtime's threads: servers run on them.
pub(crate) async fn operate<R: Send + 'static>(state: &Path, work: impl FnOnce(Client) -> R + Send + 'static) -> R {
    let socket = format!("unix:{}", state.join("control.sock").display());
    let work = move || work(Client::connect(&socket, None, None).expect("a client"));
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

pub(crate) async fn curl(arguments: &[&str]) -> Vec<u8> {
    let output = try_curl(arguments).await;
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub(crate) async fn try_curl(arguments: &[&str]) -> Output {
    output(
        Command::new("curl").args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]).args(arguments),
    )
    .await
}

/// Off the runtime's threads: the server under test runs on them.
pub(crate) async fn output(command: &mut Command) -> Output {
    let mut taken = std::mem::replace(command, Command::new("true"));
    tokio::task::spawn_blocking(move || taken.output()).await.expect("no panic").expect("runs")
}

pub(crate) fn run(command: &str) {
    let mut words = command.split(' ');
    let done = Command::new(words.next().expect("a program")).args(words).status();
    assert!(done.expect("runs").success(), "{command}");
}

/// A program of sh, as a file that can be run.
pub(crate) fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("made executable");
    path
}
