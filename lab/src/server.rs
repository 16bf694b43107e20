//! The boot server of a lab: the real program, inside the lab's network.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drophammer_control::client::Client;
use drophammer_protocol::erase::Policy;
use drophammer_protocol::sign::PublicKey;
use drophammer_pxe_server::config::{Config, NetworkConfig, Ports, Range};
pub use drophammer_pxe_server::config::{ImportConfig, Mode};

use crate::kit::Kit;
use crate::net::{self, Namespace, Process};
use crate::{console, socket};

/// Name of the operators' socket in a lab's directory.
pub const API_SOCKET: &str = "api.sock";
const BOOT: &str = "server";
const CONTROL: &str = "control";
/// What a server says when everything is bound and about to be served.
pub(crate) const READY: &str = " ready ";
/// Where the control API is if it's a program of its own.
const CONTROL_ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 8443);
const HOOK: &str = "power-hook";

/// Failed boots in a row before the lab's server gives a machine up.
const MAX_FAILURES: u32 = 3;
const START_LIMIT: Duration = Duration::from_secs(60);
/// `sun_path` of unix(7), with its terminating zero.
const MAX_SOCKET_PATH: usize = 107;

#[derive(Debug)]
pub struct Server {
    dir: PathBuf,
    /// The one that machines boot from.
    boot: Program,
    /// The control API, if it's a program of its own.
    control: Option<Program>,
}

/// `drophammer serve` with one configuration.
#[derive(Debug)]
struct Program {
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
    namespace: Namespace,
    process: Mutex<Option<Process>>,
}

/// What a lab's server is told beyond what every lab has in common.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// The `drophammer` program.
    pub binary: PathBuf,
    pub boot_dir: PathBuf,
    pub images_dir: PathBuf,
    pub image_keys: Vec<PublicKey>,
    /// Failed boots in a row after which a machine is quarantined.
    pub max_failures: u32,
    pub erase_policy: Policy,
    /// The boot server runs alone: its control API is another program, on the loopback, where machines can't reach it.
    pub alone: bool,
    /// What it does about DHCP.
    pub dhcp: Mode,
    /// Others' images that it compiles.
    pub imports: Vec<ImportConfig>,
}

impl ServerSpec {
    /// One that serves what is in the kit, with its control API in it.
    pub fn new(binary: PathBuf, kit: &Kit) -> Self {
        Self {
            binary,
            boot_dir: kit.boot_dir.clone(),
            images_dir: kit.images_dir.clone(),
            image_keys: vec![kit.image_key],
            max_failures: MAX_FAILURES,
            erase_policy: Policy::Purge,
            alone: false,
            dhcp: Mode::Server,
            imports: vec![],
        }
    }
}

impl Server {
    pub(crate) fn start(spec: &ServerSpec, dir: &Path, namespace: &Namespace) -> Result<Self> {
        let api = dir.join(API_SOCKET);
        ensure!(
            api.as_os_str().len() <= MAX_SOCKET_PATH,
            "{} is too long for a Unix socket ({MAX_SOCKET_PATH} bytes at most): put the lab somewhere shorter",
            api.display()
        );
        write_hook(&spec.binary, dir)?;
        let program = |config: &Config, name: &str| -> Result<Program> {
            let text = toml::to_string(config).context("writing the server's configuration")?;
            let path = dir.join(format!("{name}.toml"));
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(Program {
                binary: spec.binary.clone(),
                config: path,
                log: dir.join(format!("{name}.log")),
                namespace: namespace.clone(),
                process: Mutex::default(),
            })
        };
        let whole = config(spec, dir);
        let (boot, control) = if spec.alone {
            let (boot, control) = apart(whole, dir);
            (program(&boot, BOOT)?, Some(program(&control, CONTROL)?))
        } else {
            (program(&whole, BOOT)?, None)
        };
        let server = Self { dir: dir.to_owned(), boot, control };
        match &server.control {
            Some(control) => {
                control.start(&[])?;
                let token = server.client()?.join_token()?.token;
                server.boot.start(&["--join", &token])?;
            }
            None => server.boot.start(&[])?,
        }
        Ok(server)
    }

    /// SIGKILL: it gets no chance to save anything.
    pub fn kill(&self) {
        self.boot.kill();
    }

    /// Kills it if it runs, starts it, and waits until it's ready.
    pub fn restart(&self) -> Result<()> {
        self.boot.start(&[])
    }

    /// SIGKILL for the control API, if it's a program of its own.
    pub fn kill_control(&self) {
        self.control.iter().for_each(Program::kill);
    }

    pub fn restart_control(&self) -> Result<()> {
        self.control.iter().try_for_each(|control| control.start(&[]))
    }

    pub fn is_running(&self) -> bool {
        self.boot.is_running()
    }

    /// An operator at the server's own socket.
    pub fn client(&self) -> Result<Client> {
        client(&self.dir)
    }

    pub fn log_path(&self) -> PathBuf {
        self.boot.log.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        self.kill_control();
    }
}

impl Program {
    fn kill(&self) {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn is_running(&self) -> bool {
        let mut slot = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_mut().is_some_and(|process| process.status().is_none())
    }

    fn start(&self, arguments: &[&str]) -> Result<()> {
        let mut slot = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take();
        let opening = || format!("opening {}", self.log.display());
        let log = File::options().create(true).append(true).open(&self.log).with_context(opening)?;
        let before = log.metadata().with_context(opening)?.len();
        let stdout = log.try_clone().context("sharing the server's log")?;
        let mut process = Process::start(
            self.namespace
                .command(&self.binary)
                .args(["serve", "--config"])
                .arg(&self.config)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(log),
        )
        .with_context(|| format!("starting {}", self.binary.display()))?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = process.status() {
                bail!("the server ended with {status}; its last words:\n  {}", self.last_words());
            }
            let said = fs::read(&self.log).with_context(opening)?;
            let since = said.get(usize::try_from(before)?..).unwrap_or_default();
            if console::plain(since).lines().any(|line| line.contains(READY)) {
                break;
            }
            ensure!(Instant::now() < deadline, "the server isn't ready; its last words:\n  {}", self.last_words());
            thread::sleep(Duration::from_millis(50));
        }
        *slot = Some(process);
        Ok(())
    }

    fn last_words(&self) -> String {
        let raw = fs::read(&self.log).unwrap_or_default();
        console::last_lines(&console::plain(&raw), 15).join("\n  ")
    }
}

/// An operator at the socket of the lab in `dir`.
pub fn client(dir: &Path) -> Result<Client> {
    Client::connect(&format!("unix:{}", dir.join(API_SOCKET).display()), None, None)
}

fn config(spec: &ServerSpec, dir: &Path) -> Config {
    let [a, b, c, d] = net::SERVER_ADDRESS;
    let console = console::ARGUMENT.to_owned();
    let pool = Range { first: Ipv4Addr::new(a, b, c, 100), last: Ipv4Addr::new(a, b, c, 199) };
    Config {
        name: Some("lab".into()),
        partition: "default".into(),
        control: None,
        listen: vec![],
        host_names: vec![],
        metrics: None,
        state_dir: dir.join("state"),
        etcd: None,
        backup: None,
        oidc: None,
        requests_per_second: NonZeroU32::MAX,
        images_dir: Some(spec.images_dir.clone()),
        image_keys: spec.image_keys.iter().map(PublicKey::to_string).collect(),
        boot_dir: Some(spec.boot_dir.clone()),
        networks: vec![NetworkConfig {
            dhcp: spec.dhcp,
            pool: if spec.dhcp == Mode::Server { vec![pool] } else { vec![] },
            ..NetworkConfig::new(net::BRIDGE, Ipv4Addr::new(a, b, c, d), net::PREFIX)
        }],
        ports: Ports::default(),
        socket: Some(dir.join(API_SOCKET)),
        agent_cmdline: console.clone(),
        install_cmdline: console,
        reboot_models: vec![],
        power_hook: Some(dir.join(HOOK)),
        max_failures: spec.max_failures,
        erase_policy: spec.erase_policy,
        erase_again_after_days: 30,
        projects: [].into(),
        imports: spec.imports.clone(),
        router_advertisements: true,
    }
}

/// One server's configuration as that of two: a boot server alone and its control API.
fn apart(whole: Config, dir: &Path) -> (Config, Config) {
    let (address, port) = CONTROL_ADDRESS;
    let control = Config {
        name: Some("control".into()),
        state_dir: dir.join("control"),
        listen: vec![(address, port).into()],
        networks: vec![],
        ..whole.clone()
    };
    let boot = Config {
        control: Some(format!("https://{address}:{port}")),
        image_keys: vec![],
        images_dir: None,
        socket: None,
        imports: vec![],
        power_hook: None,
        ..whole
    };
    (boot, control)
}

/// The server calls `HOOK cycle MACHINE_ID MACHINE_NAME`; the lab's own program takes it from there.
fn write_hook(binary: &Path, dir: &Path) -> Result<()> {
    let path = dir.join(HOOK);
    let text = format!(
        "#!/bin/sh\nexec {} lab power-hook {} \"$1\" \"$2\"\n",
        quoted(binary),
        quoted(&dir.join(socket::SOCKET))
    );
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", path.display()))
}

/// For sh: nothing in single quotes means anything but the quote itself.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_is_safe_from_strange_paths() {
        for (path, want) in [("/a/b", "'/a/b'"), ("/a b/$c", "'/a b/$c'"), ("/it's", r"'/it'\''s'")] {
            assert_eq!(quoted(Path::new(path)), want);
        }
    }

    #[test]
    fn the_configuration_is_one_that_the_server_takes() {
        let dir = tempfile::tempdir().expect("a directory");
        let spec = ServerSpec {
            binary: "/usr/bin/drophammer".into(),
            boot_dir: "/boot-files".into(),
            images_dir: "/images".into(),
            image_keys: Vec::new(),
            max_failures: 3,
            erase_policy: Policy::Clear,
            alone: false,
            dhcp: Mode::Server,
            imports: vec![],
        };
        write_hook(&spec.binary, dir.path()).expect("a hook");
        let text = toml::to_string(&config(&spec, dir.path())).expect("TOML");
        let read: Config = toml::from_str(&text).expect("reads back");
        let settings = read.check().expect("makes sense");
        assert_eq!(settings.addresses(), [(Ipv4Addr::new(10, 77, 0, 1), net::BRIDGE)]);
        fs::create_dir(dir.path().join("state")).expect("made");
        let (boot, control) = apart(read, dir.path());
        assert!(boot.check().expect("makes sense").control.is_some());
        assert_eq!(control.check().expect("makes sense").addresses(), []);
    }
}
