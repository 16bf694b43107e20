//! A DHCP server in one network namespace and its clients in another, joined by a virtual cable.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drophammer_images::cache_dir;
use drophammer_images::debian::Programs;
use drophammer_pxe_server::config::{Config, Mode, NetworkConfig, Range};
use serde_json::json;
use tempfile::TempDir;

use super::perfdhcp::{self, Exchange, Length, Load, Report};
use super::tftp;
use crate::net::{Namespace, Process, spawn};
use crate::{console, process, up};

const SERVER: [u8; 4] = [10, 64, 0, 1];
const SERVER_TEXT: &str = "10.64.0.1";
const CLIENT: &str = "10.64.0.2";
const CABLE: [&str; 2] = ["server0", "client0"];
const PREFIX: u8 = 12;
const LEASE_SECONDS: u32 = 3600;
/// About as many addresses as dnsmasq takes into one pool, and more than the longest run gives out. Not a power of two:
/// dnsmasq's hash would then offer the same address to clients with similar cards.
const POOL: [[u8; 4]; 2] = [[10, 65, 0, 0], [10, 65, 250, 0]];
const START_LIMIT: Duration = Duration::from_secs(10);

/// Who gives out addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Ours,
    Kea,
    Dnsmasq,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "drophammer serve",
            Self::Kea => "Kea",
            Self::Dnsmasq => "dnsmasq",
        }
    }

    /// The Debian packages that it comes in.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Ours => &[],
            Self::Kea => &["kea-dhcp4-server"],
            Self::Dnsmasq => &["dnsmasq-base"],
        }
    }
}

#[derive(Debug)]
pub(super) struct Arena {
    server: Namespace,
    clients: Namespace,
    programs: Programs,
    exchange: Exchange,
}

impl Arena {
    /// With everything to run `rivals` and to put load on them.
    pub(super) fn new(exchange: Exchange, rivals: &[Who]) -> Result<Self> {
        let rivals = rivals.iter().flat_map(|who| who.packages());
        let packages: Vec<_> = [perfdhcp::PACKAGE].iter().chain(rivals).copied().collect();
        let programs = Programs::of(&packages)
            .with_context(|| format!("getting {} from Debian's archive", packages.join(", ")))?;
        let server = Namespace::create()?;
        let clients = server.joined(CABLE)?;
        for (namespace, name, address) in [(&server, CABLE[0], SERVER_TEXT), (&clients, CABLE[1], CLIENT)] {
            namespace
                .ip(&format!("link set lo up\naddress add {address}/{PREFIX} dev {name}\nlink set {name} up\n"))?;
        }
        clients.ip(&tftp::machines(CABLE[1], PREFIX))?;
        Ok(Self { server, clients, programs, exchange })
    }

    /// A server that answers, without a single lease.
    pub(super) fn start(&self, who: Who) -> Result<Running> {
        // Where leases are really written to a disk; /tmp may be memory.
        let place = cache_dir()?.join("bench");
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        let dir = tempfile::tempdir_in(&place).with_context(|| format!("making a directory in {}", place.display()))?;
        let mut command = self.server.enter(match who {
            Who::Ours => self.ours(dir.path())?,
            Who::Kea => self.kea(dir.path())?,
            Who::Dnsmasq => self.dnsmasq(dir.path())?,
        });
        let log = dir.path().join("log");
        let stderr = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let stdout = stderr.try_clone().context("sharing a log")?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let process = Process::start(&mut command).with_context(|| format!("starting {}", who.name()))?;
        let mut running = Running { process, dir };
        self.until_it_answers(&mut running).with_context(|| format!("starting {}", who.name()))?;
        Ok(running)
    }

    fn until_it_answers(&self, running: &mut Running) -> Result<()> {
        let length = match self.exchange {
            Exchange::Dora => Length::Exchanges(1),
            // It can't count exchanges that end with the offer.
            Exchange::PxeOffer => Length::Time(Duration::from_secs(1)),
        };
        let a_little = Load { exchange: self.exchange, rate: 10.0, length };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // Before there is a socket perfdhcp may be told that nobody is there, and fails.
            if self.load(&a_little).is_ok_and(|report| report.offers > 0) {
                return Ok(());
            }
            if let Some(status) = running.process.status() {
                bail!("it ended with {status}; its last words:\n  {}", running.last_words());
            }
            ensure!(Instant::now() < deadline, "it doesn't answer; its last words:\n  {}", running.last_words());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Puts load on the server that runs.
    pub(super) fn load(&self, load: &Load) -> Result<Report> {
        let before = self.overruns()?;
        let mut command = self.clients.enter(self.programs.command(perfdhcp::PROGRAM)?);
        command.args(load.arguments(CLIENT, SERVER_TEXT));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = spawn(&mut command).context("starting perfdhcp")?;
        let output = child.wait_with_output().context("waiting for perfdhcp")?;
        // It ends with 3 if anything got lost, which its report says in more detail.
        let mut report = Report::parse(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("perfdhcp: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
        report.overrun = self.overruns()?.saturating_sub(before);
        Ok(report)
    }

    /// Files on their way to so many machines at once.
    pub(super) fn transfers(&self, count: u32) -> Result<()> {
        tftp::put(&tftp::Load::of_many(count), &self.clients).map(drop)
    }

    fn overruns(&self) -> Result<u64> {
        let mut command = self.clients.command("cat");
        command.arg("/proc/net/snmp").stdout(Stdio::piped());
        let output = spawn(&mut command).and_then(std::process::Child::wait_with_output);
        perfdhcp::overruns(&String::from_utf8_lossy(&output.context("reading /proc/net/snmp")?.stdout))
    }

    /// As a user would have it: with a probe before a new address is offered, and with every lease on the disk before it is
    /// acknowledged.
    fn ours(&self, dir: &Path) -> Result<Command> {
        let boot_dir = dir.join("boot");
        fs::create_dir(&boot_dir).with_context(|| format!("making {}", boot_dir.display()))?;
        tftp::fill(&boot_dir, &[tftp::SMALL])?;
        let mut network = NetworkConfig::new(CABLE[0], SERVER.into(), PREFIX);
        match self.exchange {
            Exchange::Dora => {
                let [first, last] = POOL.map(Into::into);
                network.pool = vec![Range { first, last }];
                network.router = Some(SERVER.into());
                network.dns = vec![SERVER.into()];
                network.lease_seconds = LEASE_SECONDS;
            }
            Exchange::PxeOffer => network.dhcp = Mode::Proxy,
        }
        let defaults: Config = toml::from_str("").context("making a configuration of defaults")?;
        let config = Config {
            state_dir: dir.join("state"),
            boot_dir: Some(boot_dir),
            networks: vec![network],
            router_advertisements: false,
            ..defaults
        };
        let text = toml::to_string(&config).context("writing the server's configuration")?;
        let mut command = Command::new(up::program()?);
        command.args(["serve", "--config"]).arg(written(dir, "config.toml", &text)?);
        Ok(command)
    }

    /// Persistent, as it is by default, which is a file that is written but not flushed; one thread, with which it loses less
    /// at its peak beside a load generator on two processors, while two threads finish more far beyond it; UDP sockets, as
    /// its manual has it for relayed clients. It looks for nobody on an address. Its log goes to a file, in the default
    /// detail.
    fn kea(&self, dir: &Path) -> Result<Command> {
        ensure!(self.exchange == Exchange::Dora, "Kea doesn't do ProxyDHCP");
        let [first, last] = POOL.map(std::net::Ipv4Addr::from);
        let options = [("routers", SERVER_TEXT), ("domain-name-servers", SERVER_TEXT)];
        let config = json!({ "Dhcp4": {
            "interfaces-config": { "interfaces": [CABLE[0]], "dhcp-socket-type": "udp" },
            "lease-database": {
                "type": "memfile", "persist": true, "lfc-interval": 0, "name": dir.join("leases.csv"),
            },
            "multi-threading": { "enable-multi-threading": false },
            "valid-lifetime": LEASE_SECONDS,
            "subnet4": [{
                "subnet": format!("10.64.0.0/{PREFIX}"),
                "pools": [{ "pool": format!("{first} - {last}") }],
                "option-data": options.map(|(name, data)| json!({ "name": name, "data": data })),
            }],
            "loggers": [{
                "name": "kea-dhcp4", "severity": "INFO", "output_options": [{ "output": dir.join("kea.log") }],
            }],
        }});
        let mut command = self.programs.command("/usr/sbin/kea-dhcp4")?;
        command.arg("-c").arg(written(dir, "kea.json", &config.to_string())?);
        command.env("KEA_PIDFILE_DIR", dir).env("KEA_LOCKFILE_DIR", "none");
        Ok(command)
    }

    /// With its lease file, which it flushes, and without pings to addresses before it offers them: it would stop for three
    /// seconds at each of the first.
    fn dnsmasq(&self, dir: &Path) -> Result<Command> {
        let mut command = self.programs.command("/usr/sbin/dnsmasq")?;
        command.args(["--no-daemon", "--quiet-dhcp", "--conf-file=/dev/null", "--port=0"]);
        command.args(["--interface", CABLE[0], "--bind-interfaces", "--pid-file"]);
        command.arg(format!("--dhcp-leasefile={}", dir.join("leases").display()));
        match self.exchange {
            Exchange::Dora => {
                let [first, last] = POOL.map(std::net::Ipv4Addr::from);
                command.arg(format!("--dhcp-range={first},{last},255.240.0.0,{LEASE_SECONDS}"));
                command.args(["--no-ping", "--dhcp-authoritative", "--dhcp-lease-max=1000000"]);
            }
            Exchange::PxeOffer => {
                command.arg("--dhcp-range=10.64.0.0,proxy,255.240.0.0");
                command.args(["--pxe-service=BC_EFI,boot,snponly.efi", "--pxe-service=X86-64_EFI,boot,snponly.efi"]);
            }
        }
        Ok(command)
    }
}

fn written(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// A server, gone with its state when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    process: Process,
    dir: TempDir,
}

impl Running {
    /// A line of /proc/PID/status that is in kB, in MB.
    pub(super) fn memory(&self, line: &str) -> Result<f64> {
        process::memory(self.process.id(), line)
    }

    fn last_words(&self) -> String {
        let logs = ["log", "kea.log"].map(|name| fs::read(self.dir.path().join(name)).unwrap_or_default());
        console::last_lines(&console::plain(&logs.concat()), 5).join("\n  ")
    }
}
