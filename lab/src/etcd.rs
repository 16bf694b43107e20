//! An etcd cluster on this host's loopback, with members that can be killed and stopped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::net::{self, Namespace, Process, outside};

const PATIENCE: Duration = Duration::from_secs(60);
/// Members that have networks of their own have addresses from here on.
const FIRST_HOME: u8 = 240;

#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    dir: TempDir,
    certificates: Option<Certificates>,
}

/// Files in PEM. The certificate is for `127.0.0.1`, as a server and as a client.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug)]
struct Member {
    name: String,
    client: String,
    peer: String,
    /// The network that it's in, if that isn't this process's own.
    home: Option<Home>,
    process: Option<Process>,
}

#[derive(Debug)]
struct Home {
    network: Namespace,
    address: Ipv4Addr,
}

impl Etcd {
    /// Of as many members; ready when it returns.
    pub fn start(members: usize) -> Result<Self> {
        Self::start_with(members, None, &std::env::temp_dir())
    }

    /// The same with its data below `place`, and each member in a network of its own on a bridge of the network that this
    /// process is in.
    pub(crate) fn start_apart(members: usize, place: &Path, bridge: &str) -> Result<Self> {
        let here = Namespace::own()?;
        let member = |index: usize| -> Result<Member> {
            let [a, b, c, _] = net::SERVER_ADDRESS;
            let address = Ipv4Addr::new(a, b, c, FIRST_HOME + u8::try_from(index)?);
            let cable = format!("etcd{index}");
            let network = here.joined([&cable, "eth0"]).context("making a network for a member of etcd")?;
            here.ip(&format!("link set {cable} master {bridge}\nlink set {cable} up\n"))?;
            network
                .ip(&format!("link set lo up\naddress add {address}/{} dev eth0\nlink set eth0 up\n", net::PREFIX))?;
            let (client, peer) = (format!("http://{address}:2379"), format!("http://{address}:2380"));
            Ok(Member { name: format!("m{index}"), client, peer, home: Some(Home { network, address }), process: None })
        };
        Self::of((0..members).map(member).collect::<Result<_>>()?, None, place)
    }

    /// One member, which only talks to who has a certificate of the same authority as its own.
    pub fn start_secure(certificates: &Certificates) -> Result<Self> {
        Self::start_with(1, Some(certificates.clone()), &std::env::temp_dir())
    }

    fn start_with(members: usize, certificates: Option<Certificates>, place: &Path) -> Result<Self> {
        let ports = free_ports(2 * members)?;
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let members = ports.chunks(2).enumerate().map(|(index, ports)| Member {
            name: format!("m{index}"),
            client: ports.first().map(|port| format!("{scheme}://127.0.0.1:{port}")).unwrap_or_default(),
            peer: ports.last().map(|port| format!("http://127.0.0.1:{port}")).unwrap_or_default(),
            home: None,
            process: None,
        });
        Self::of(members.collect(), certificates, place)
    }

    fn of(members: Vec<Member>, certificates: Option<Certificates>, place: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(place).context("making a directory for etcd")?;
        let mut etcd = Self { members, dir, certificates };
        for member in 0..etcd.members.len() {
            etcd.run(member)?;
        }
        etcd.wait_until_ready()?;
        Ok(etcd)
    }

    /// One member, for all who want one at the same time.
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Etcd>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(etcd) = shared.upgrade() {
            return Ok(etcd);
        }
        let etcd = Arc::new(Self::start(1)?);
        *shared = Arc::downgrade(&etcd);
        Ok(etcd)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// Starts a member that doesn't run, with the data that it has.
    pub fn run(&mut self, member: usize) -> Result<()> {
        let cluster = self.members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect::<Vec<_>>().join(",");
        let log = self.log(member);
        let data = self.dir.path().join(format!("m{member}"));
        let Some(it) = self.members.get_mut(member) else { bail!("there is no member {member}") };
        let file = File::options().create(true).append(true).open(&log).context("making etcd's log")?;
        let mut secure: Vec<OsString> = Vec::new();
        if let Some(Certificates { ca, certificate, key }) = &self.certificates {
            secure.push("--client-cert-auth".into());
            for (option, file) in [("--trusted-ca-file", ca), ("--cert-file", certificate), ("--key-file", key)] {
                secure.extend([option.into(), file.as_os_str().to_owned()]);
            }
        }
        let mut command = match &it.home {
            Some(home) => home.network.command("etcd"),
            None => outside("etcd"),
        };
        let process = Process::start(
            command
                .args(secure)
                .args(["--name", &it.name, "--initial-cluster", &cluster, "--initial-cluster-state", "new"])
                .args(["--listen-client-urls", &it.client, "--advertise-client-urls", &it.client])
                .args(["--listen-peer-urls", &it.peer, "--initial-advertise-peer-urls", &it.peer])
                .arg("--data-dir")
                .arg(data)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(file),
        );
        it.process = Some(process.context("starting etcd (Debian and Ubuntu have it in etcd-server)")?);
        Ok(())
    }

    /// Ends a member as a power cut does.
    pub fn kill(&mut self, member: usize) {
        self.members.get_mut(member).into_iter().for_each(|member| member.process = None);
    }

    /// Stops a member in the middle of what it does, as a host that hangs or is cut off.
    pub fn freeze(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGSTOP)
    }

    pub fn thaw(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGCONT)
    }

    fn signal(&self, member: usize, signal: Signal) -> Result<()> {
        match self.members.get(member).and_then(|member| member.process.as_ref()) {
            Some(process) => Ok(kill(Pid::from_raw(i32::try_from(process.id())?), signal).context("signalling etcd")?),
            None => bail!("etcd member {member} doesn't run"),
        }
    }

    /// Takes a member's way to the others, and leaves it the way to whoever else there is.
    pub(crate) fn cut_off(&self, member: usize) -> Result<()> {
        self.ways_to_the_others(member, "add")
    }

    pub(crate) fn rejoin(&self, member: usize) -> Result<()> {
        self.ways_to_the_others(member, "del")
    }

    fn ways_to_the_others(&self, member: usize, verb: &str) -> Result<()> {
        let home = |member: &Member| member.home.as_ref().map(|home| (home.network.clone(), home.address));
        let (network, _) = self.members.get(member).and_then(home).context("this member has no network of its own")?;
        let others = self.members.iter().enumerate().filter(|(index, _)| *index != member);
        let others = others.filter_map(|(_, other)| home(other));
        let nowhere = others.map(|(_, address)| format!("route {verb} blackhole {address}/32\n"));
        network.ip(&nowhere.collect::<String>())
    }

    /// The member that leads the others.
    pub fn leader(&self) -> Result<usize> {
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.process.is_some()) {
            // ID, version, size, leader, ….
            let said = self.ctl(&["--endpoints", &member.client, "endpoint", "status", "--write-out", "simple"]);
            if said.is_ok_and(|said| said.split(", ").nth(4) == Some("true")) {
                return Ok(index);
            }
        }
        bail!("no member of etcd leads")
    }

    /// What `etcdctl` says.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let mut secure: Vec<OsString> = Vec::new();
        if let Some(Certificates { ca, certificate, key }) = &self.certificates {
            for (option, file) in [("--cacert", ca), ("--cert", certificate), ("--key", key)] {
                secure.extend([option.into(), file.as_os_str().to_owned()]);
            }
        }
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(secure)
            .args(["--command-timeout", "3s"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("starting etcdctl (Debian and Ubuntu have it in etcd-client)")?;
        if !output.status.success() {
            bail!("etcdctl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All members answer.
    pub fn wait_until_ready(&self) -> Result<()> {
        let all = self.endpoints().join(",");
        let since = Instant::now();
        while let Err(error) = self.ctl(&["--endpoints", &all, "endpoint", "health"]) {
            if since.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.log(0)).unwrap_or_default();
                bail!("etcd isn't ready after {} s: {error:#}\n{log}", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn log(&self, member: usize) -> PathBuf {
        self.dir.path().join(format!("m{member}.log"))
    }
}

/// Free a moment ago. Nobody else looks for them in the range that the kernel gives out.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>();
    let held = held.context("looking for free ports")?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
