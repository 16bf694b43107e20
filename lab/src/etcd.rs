//! An etcd cluster on this host's loopback, with members that can be killed and stopped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::net::{Process, outside};

const PATIENCE: Duration = Duration::from_secs(60);

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
    process: Option<Process>,
}

impl Etcd {
    /// Of as many members; ready when it returns.
    pub fn start(members: usize) -> Result<Self> {
        Self::start_with(members, None, &std::env::temp_dir())
    }

    /// The same with its data below `place`: on a disk, if that is.
    pub(crate) fn start_in(members: usize, place: &Path) -> Result<Self> {
        Self::start_with(members, None, place)
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
            process: None,
        });
        let dir = tempfile::tempdir_in(place).context("making a directory for etcd")?;
        let mut etcd = Self { members: members.collect(), dir, certificates };
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
        let process = Process::start(
            outside("etcd")
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
