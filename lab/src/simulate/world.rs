//! The server that the machines talk to: the real program with a state directory of its own, an image that can be given
//! out but that nobody unpacks, and an etcd cluster if one is wanted.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drophammer_images::cache_dir;
use drophammer_protocol::fixtures;
use drophammer_protocol::manifest::{MANIFEST_FILE, Manifest, PACKS};
use drophammer_protocol::sign::{PublicKey, Signed};
use drophammer_pxe_server::config::{Config, EtcdConfig, Mode, NetworkConfig};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::etcd::Etcd;
use crate::net::{BRIDGE, PREFIX, Process, SERVER_ADDRESS, outside};
use crate::server::READY;
use crate::setup::FAKE_TIME;
use crate::{console, process, up};

const START_LIMIT: Duration = Duration::from_secs(60);
const HTTP: u16 = 80;
const HTTPS: u16 = 443;
const CONFIG: &str = "config.toml";
const LOG: &str = "log";
const CLOCK: &str = "clock";
pub(super) const MEMBERS: usize = 3;
/// What machines are given.
pub(super) const IMAGE: &str = "simulated";
pub(super) const PARTITION: &str = "default";
/// Simulated machines vanish, which isn't what is looked at.
const MAX_FAILURES: u32 = 10;

#[derive(Debug)]
pub(super) struct World {
    /// `None` while it's killed.
    server: Option<Process>,
    pub(super) etcd: Option<Etcd>,
    /// Its server has a clock that can be set.
    has_own_clock: bool,
    /// After what has its files open.
    dir: TempDir,
}

/// What a process took so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub resident_mb: f64,
    pub peak_mb: f64,
    pub cpu_s: f64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            resident_mb: process::memory(pid, "VmRSS")?,
            peak_mb: process::memory(pid, "VmHWM")?,
            cpu_s: process::seconds(pid)?,
        })
    }
}

impl World {
    /// In the network that this process is in. It answers when this returns.
    pub(super) fn start(on_etcd: bool, has_own_clock: bool) -> Result<Self> {
        // Where commits are really written to a disk; /tmp may be memory.
        let place = cache_dir()?.join("simulate");
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        let dir = tempfile::tempdir_in(&place).with_context(|| format!("making a directory in {}", place.display()))?;
        let etcd = on_etcd.then(|| Etcd::start_apart(MEMBERS, &place, BRIDGE)).transpose().context("starting etcd")?;
        let config = config(dir.path(), etcd.as_ref())?;
        let mut world = Self { server: None, etcd, has_own_clock, dir };
        let text = toml::to_string(&config).context("writing the server's configuration")?;
        world.write(CONFIG, &text)?;
        world.set_clock(0)?;
        world.start_server()?;
        Ok(world)
    }

    /// It answers when this returns.
    pub(super) fn start_server(&mut self) -> Result<()> {
        let path = self.dir.path().join(LOG);
        let log = File::options().create(true).append(true).open(&path);
        let stderr = log.with_context(|| format!("opening {}", path.display()))?;
        let before = stderr.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
        let stdout = stderr.try_clone().context("sharing a log")?;
        let mut command = outside(up::program()?);
        command.args(["serve", "--config"]).arg(self.dir.path().join(CONFIG));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        if self.has_own_clock {
            // Of a clock that is set, what counts from the start goes on as it was.
            let clock = self.dir.path().join(CLOCK);
            command.env("LD_PRELOAD", FAKE_TIME).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.server = Some(Process::start(&mut command).context("starting `drophammer serve`")?);
        let deadline = Instant::now() + START_LIMIT;
        let is_ready = |log: &[u8]| console::plain(log).lines().any(|line| line.contains(READY));
        while !is_ready(self.raw_log().get(usize::try_from(before)?..).unwrap_or_default()) {
            self.must_run()?;
            ensure!(Instant::now() < deadline, "the server doesn't answer; its last words:\n  {}", self.last_words());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// SIGKILL: it gets no chance to save anything.
    pub(super) fn kill_server(&mut self) {
        self.server = None;
    }

    /// By how much the server's clock is ahead of this host's.
    pub(super) fn set_clock(&self, ahead_s: i64) -> Result<()> {
        ensure!(ahead_s == 0 || self.has_own_clock, "this server has the host's clock");
        self.write(CLOCK, &format!("{ahead_s:+}\n"))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.path().join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    pub(super) fn must_run(&mut self) -> Result<()> {
        match self.server.as_mut().map(Process::status) {
            Some(None) => Ok(()),
            Some(Some(status)) => bail!("the server ended with {status}; its last words:\n  {}", self.last_words()),
            None => bail!("the server was killed and not started again"),
        }
    }

    fn last_words(&self) -> String {
        console::last_lines(&self.log(), 10).join("\n  ")
    }

    fn log(&self) -> String {
        console::plain(&self.raw_log())
    }

    fn raw_log(&self) -> Vec<u8> {
        fs::read(self.dir.path().join(LOG)).unwrap_or_default()
    }

    /// Lines of its log that say that something went wrong there.
    pub(super) fn complaints(&self) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| line.contains(" ERROR ") || line.contains("panicked"))
            .map(str::to_owned)
            .collect()
    }

    pub(super) fn ca(&self) -> Result<String> {
        self.state("ca.pem")
    }

    pub(super) fn admin_token(&self) -> Result<String> {
        Ok(self.state("admin.token")?.trim().to_owned())
    }

    fn state(&self, name: &str) -> Result<String> {
        let path = self.dir.path().join("state").join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.server.as_ref().context("the server was killed")?.id())
    }
}

/// What this process took so far.
pub(super) fn own_usage() -> Result<Usage> {
    Usage::of(std::process::id())
}

pub(super) fn http() -> SocketAddrV4 {
    SocketAddrV4::new(SERVER_ADDRESS.into(), HTTP)
}

pub(super) fn https() -> SocketAddrV4 {
    SocketAddrV4::new(SERVER_ADDRESS.into(), HTTPS)
}

fn config(dir: &Path, etcd: Option<&Etcd>) -> Result<Config> {
    let boot_dir = dir.join("boot");
    fs::create_dir(&boot_dir).with_context(|| format!("making {}", boot_dir.display()))?;
    for name in ["vmlinuz", "initramfs", "snponly.efi"] {
        let path = boot_dir.join(name);
        fs::write(&path, "never booted").with_context(|| format!("writing {}", path.display()))?;
    }
    let key = SigningKey::from_bytes(&[1; 32]);
    let images_dir = publish(dir, &key)?;
    let mut network = NetworkConfig::new(BRIDGE, Ipv4Addr::from(SERVER_ADDRESS), PREFIX);
    network.dhcp = Mode::Off;
    // The file's defaults, which this shouldn't have a second list of.
    let defaults: Config = toml::from_str("").context("an empty configuration")?;
    Ok(Config {
        state_dir: dir.join("state"),
        boot_dir: Some(boot_dir),
        images_dir: Some(images_dir),
        image_keys: vec![PublicKey::of(&key).to_string()],
        networks: vec![network],
        partition: PARTITION.into(),
        requests_per_second: NonZeroU32::MAX,
        max_failures: MAX_FAILURES,
        router_advertisements: false,
        etcd: etcd.map(|etcd| EtcdConfig {
            endpoints: etcd.endpoints(),
            prefix: "/simulated".into(),
            ca: None,
            certificate: None,
            key: None,
            user: None,
            password_file: None,
        }),
        ..defaults
    })
}

/// An image that is signed as one should be, and that has nothing in it.
fn publish(dir: &Path, key: &SigningKey) -> Result<PathBuf> {
    let images = dir.join("images");
    let (place, packs) = (images.join(IMAGE).join("1"), images.join(PACKS));
    for dir in [&place, &packs] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let manifest = Manifest { installed_bytes: 1 << 30, ..fixtures::manifest(IMAGE, "1") };
    for pack in &manifest.packs {
        let path = packs.join(&pack.sha256);
        let file = File::create(&path).and_then(|file| file.set_len(pack.bytes));
        file.with_context(|| format!("making {}", path.display()))?;
    }
    let signed = serde_json::to_string(&Signed::seal(&manifest, key)).context("writing a manifest")?;
    let path = place.join(MANIFEST_FILE);
    fs::write(&path, signed).with_context(|| format!("writing {}", path.display()))?;
    Ok(images)
}
