//! The private network that a lab lives in: a network namespace with one bridge, and everything that runs inside.
//!
//! No root needed: as anybody else than root the network is owned by a user namespace in which we are root. Both live
//! exactly as long as the file descriptors here and the children inside; nothing has to be cleaned up after a crash.
//!
//! The one file of the lab with `unsafe`: joining a namespace has to happen between fork and exec.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getgid, getppid, getuid, setsid};

pub const BRIDGE: &str = "br0";
pub const SERVER_ADDRESS: [u8; 4] = [10, 77, 0, 1];
pub const PREFIX: u8 = 24;

/// A network of our own. Cheap to clone; gone with its last clone and its last child.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Handles>);

#[derive(Debug)]
struct Handles {
    /// `None` for root, who can own a network without a user namespace around it.
    user: Option<OwnedFd>,
    net: OwnedFd,
}

impl Namespace {
    pub fn create() -> Result<Self> {
        // A container's root may have been left without the right to make a network, but with user namespaces.
        let kinds: &[Kind] = if getuid().is_root() { &[Kind::Net, Kind::UserNet] } else { &[Kind::UserNet] };
        let mut refused = None;
        for kind in kinds {
            match make(*kind) {
                Ok(handles) => return Ok(Self(Arc::new(handles))),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.expect("at least one kind was tried").context(why_not()))
    }

    /// The namespace of a lab that another process runs, for joining it.
    pub fn of(place: &Place) -> Result<Self> {
        let open = |path: &Path| {
            let error = || format!("opening {}: does the lab still run, and is it yours?", path.display());
            File::open(path).map(OwnedFd::from).with_context(error)
        };
        let user = place.user.as_deref().map(open).transpose()?;
        Ok(Self(Arc::new(Handles { user, net: open(&place.net)? })))
    }

    /// The one that this process is in.
    pub(crate) fn own() -> Result<Self> {
        Self::of(&Place { user: None, net: "/proc/self/ns/net".into() })
    }

    /// Where other processes find this namespace while this one lives.
    pub fn place(&self) -> Place {
        let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
        Place { user: self.0.user.as_ref().map(path), net: path(&self.0.net) }
    }

    /// A command that will run inside, and is killed when this process ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.enter(Command::new(program))
    }

    /// The same for a command that has been put together already.
    pub fn enter(&self, mut command: Command) -> Command {
        let handles = Arc::clone(&self.0);
        let parent = Pid::this();
        let enter = move || {
            if let Some(user) = &handles.user {
                setns(user, CloneFlags::CLONE_NEWUSER)?;
            }
            setns(&handles.net, CloneFlags::CLONE_NEWNET)?;
            // After setns: a change of credentials clears it.
            die_with(parent)
        };
        // SAFETY: between fork and exec only setns, prctl and getppid are called, which are plain system calls; nothing
        // is allocated, freed or locked. The descriptors live in `handles`, which the closure owns.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Another network of the same owner, at the other end of a virtual cable: the first end is here, the second there.
    pub fn joined(&self, [here, there]: [&str; 2]) -> Result<Self> {
        let handles = Arc::clone(&self.0);
        let enter = move || {
            if let Some(user) = &handles.user {
                setns(user, CloneFlags::CLONE_NEWUSER)?;
            }
            Ok(unshare(CloneFlags::CLONE_NEWNET)?)
        };
        let first = First::start(enter)?;
        let cable = format!("link add {here} type veth peer name {there} netns {}\n", first.id());
        self.ip(&cable).context("joining two networks")?;
        let user = self.0.user.as_ref().map(OwnedFd::try_clone).transpose().context("sharing a user namespace")?;
        Ok(Self(Arc::new(Handles { user, net: first.namespace("net")? })))
    }

    /// Loopback, and the bridge with the server's address.
    pub fn build(&self) -> Result<()> {
        let [a, b, c, d] = SERVER_ADDRESS;
        // The bridge has an address of its own: by default it takes the lowest of its ports', so that adding a machine
        // would pull the server from under the others. fe80::1 without duplicate detection is usable at once.
        self.ip(&format!(
            "link set lo up\n\
             link add {BRIDGE} address 52:54:00:77:ff:01 type bridge forward_delay 0 mcast_snooping 0\n\
             link set {BRIDGE} addrgenmode none\n\
             address add {a}.{b}.{c}.{d}/{PREFIX} dev {BRIDGE}\n\
             address add fe80::1/64 dev {BRIDGE} nodad\n\
             link set {BRIDGE} up\n"
        ))
        .context("building the lab's network")
    }

    /// A port of the bridge for one machine.
    pub fn add_tap(&self, name: &str) -> Result<()> {
        tun_is_usable()?;
        self.ip(&format!(
            "tuntap add {name} mode tap\n\
             link set {name} addrgenmode none\n\
             link set {name} master {BRIDGE}\n\
             link set {name} up\n"
        ))
        .with_context(|| format!("adding the network port {name}"))
    }

    /// Loses about `percent` of what a machine sends and gets, in bursts, until the answer is dropped.
    ///
    /// The port is down for a part of every tenth of a second, which the guest doesn't see: its own carrier stays. netem
    /// would be finer, but many kernels come without it.
    pub fn lose(&self, tap: &str, percent: u8) -> Result<Loss> {
        ensure!((1..=90).contains(&percent), "losing {percent} percent of the packets: has to be 1 to 90");
        let mut ip = spawn(self.command("ip").args(["-force", "-batch", "-"]).stdin(Stdio::piped()))
            .context("starting ip, from the package iproute2")?;
        let mut orders = ip.stdin.take().context("writing to ip")?;
        let (tap, stop) = (tap.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let worker = thread::spawn(move || {
            let closed = LOSS_PERIOD * u32::from(percent) / 100;
            let mut set = |state: &str| writeln!(orders, "link set {tap} {state}");
            // Left when ip is gone, and that only goes with the namespace.
            while !stopped.load(Ordering::Relaxed) && set("down").is_ok() {
                thread::sleep(closed);
                if set("up").is_err() {
                    break;
                }
                thread::sleep(LOSS_PERIOD - closed);
            }
            drop(orders);
            // Nothing to learn from how it ended; waiting makes sure that the port is open again.
            ip.wait().ok();
        });
        Ok(Loss { stop, worker: Some(worker) })
    }

    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut child = spawn(
            self.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()),
        )
        .context("starting ip, from the package iproute2")?;
        let mut stdin = child.stdin.take().context("writing to ip")?;
        stdin.write_all(batch.as_bytes()).context("writing to ip")?;
        drop(stdin);
        let output = child.wait_with_output().context("waiting for ip")?;
        ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

const LOSS_PERIOD: Duration = Duration::from_millis(100);

/// A lossy port; whole again when this is dropped.
#[derive(Debug)]
pub struct Loss {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Drop for Loss {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.join().ok();
        }
    }
}

/// Paths under /proc that name a lab's namespaces.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    pub user: Option<PathBuf>,
    pub net: PathBuf,
}

/// Starts a child from a thread that lives as long as the process: the kernel kills a child "when its parent dies", and
/// by parent it means the thread (prctl(2), PR_SET_PDEATHSIG).
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    struct Job(Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, todo) = channel::<Job>();
        thread::spawn(move || {
            for Job(mut command, answer) in todo {
                // A caller that no longer waits for its child gets it killed.
                if let Err(unwanted) = answer.send(command.spawn())
                    && let Ok(mut child) = unwanted.0
                {
                    child.kill().and_then(|()| child.wait()).ok();
                }
            }
        });
        jobs
    });
    let (answer, result) = channel();
    let command = std::mem::replace(command, Command::new("false"));
    spawner.send(Job(command, answer)).map_err(|_| io::Error::other("the thread that starts programs has ended"))?;
    result.recv().map_err(|_| io::Error::other("the thread that starts programs has ended"))?
}

/// A command outside the namespace that is killed when this process ends.
pub(crate) fn outside(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let parent = Pid::this();
    // SAFETY: only prctl and getppid are called between fork and exec, which are plain system calls.
    unsafe { command.pre_exec(move || die_with(parent)) };
    command
}

/// Has the command outlive us and our terminal.
pub(crate) fn in_own_session(command: &mut Command) {
    // SAFETY: between fork and exec only setsid is called, a plain system call.
    unsafe { command.pre_exec(|| Ok(setsid().map(drop)?)) };
}

fn die_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before we asked to be told.
    if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Net,
    UserNet,
}

/// Has a child make the namespaces, takes hold of them, and lets it go.
fn make(kind: Kind) -> Result<Handles> {
    let flags = match kind {
        Kind::Net => CloneFlags::CLONE_NEWNET,
        Kind::UserNet => CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET,
    };
    let first = First::start(move || Ok(unshare(flags)?))?;
    let user = match kind {
        Kind::Net => None,
        Kind::UserNet => {
            // setgroups has to be given up before a group may be mapped (user_namespaces(7)).
            for (file, text) in [
                ("setgroups", "deny".to_owned()),
                ("uid_map", format!("0 {} 1", getuid())),
                ("gid_map", format!("0 {} 1", getgid())),
            ] {
                let path = format!("/proc/{}/{file}", first.id());
                fs::write(&path, text).with_context(|| format!("writing {path}"))?;
            }
            Some(first.namespace("user")?)
        }
    };
    Ok(Handles { user, net: first.namespace("net")? })
}

/// The first process of a namespace, which keeps it alive until somebody has taken hold of it.
struct First(Child);

impl First {
    /// `enter` is called between fork and exec: it may do system calls and nothing else.
    fn start(enter: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Result<Self> {
        // `cat` ends when its input does, whatever happens to us.
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // SAFETY: between fork and exec only `enter` is called, and its callers here do plain system calls in it.
        unsafe { command.pre_exec(enter) };
        command.spawn().map(Self).context("making a network namespace")
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn namespace(&self, name: &str) -> Result<OwnedFd> {
        let path = format!("/proc/{}/ns/{name}", self.id());
        File::open(&path).map(OwnedFd::from).with_context(|| format!("opening {path}"))
    }
}

impl Drop for First {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It fails only when the child has been waited for already.
        self.0.wait().ok();
    }
}

/// The usual reasons, each with its way out.
fn why_not() -> String {
    let setting = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let cause = if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "Ubuntu's AppArmor keeps programs from making one; run \
         `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0` to allow it"
    } else if setting("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "user namespaces are switched off here; run `sudo sysctl kernel.unprivileged_userns_clone=1` to allow them"
    } else if setting("/proc/sys/user/max_user_namespaces") == "0" {
        "user namespaces are switched off here; run `sudo sysctl user.max_user_namespaces=10000` to allow them"
    } else {
        "the kernel refused. Inside a container, start it with `--privileged`, or run as root on the host"
    };
    format!("the lab needs a private network, and this host doesn't let it make one: {cause}")
}

fn tun_is_usable() -> Result<()> {
    const TUN: &str = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            bail!("{TUN} is missing, so virtual machines can't be connected; run `sudo modprobe tun`")
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => bail!(
            "{TUN} can only be opened by root here, so virtual machines can't be connected; run \
             `sudo chmod 0666 {TUN}` (Debian's and Ubuntu's own setting), or run the lab as root"
        ),
        Err(e) => Err(e).with_context(|| {
            format!("opening {TUN}. Inside a container, start it with `--device {TUN} --cap-add NET_ADMIN`")
        }),
    }
}

/// A child that doesn't outlive this value.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> io::Result<Self> {
        spawn(command).map(Self)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its standard input and output, if they were piped and nobody has them yet.
    pub(crate) fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        self.0.stdin.take().zip(self.0.stdout.take())
    }

    /// How it ended, or `None` while it runs.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        // The call fails only for a child that isn't ours, and this one is.
        self.0.try_wait().ok().flatten()
    }

    /// SIGKILL; gone when this returns.
    pub(crate) fn kill(&mut self) {
        // Both fail only when the child has been waited for already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Connects to a Unix socket in a directory whose path may be longer than a socket's address allows (108 bytes).
pub(crate) fn connect(dir: &Path, name: &str) -> io::Result<std::os::unix::net::UnixStream> {
    let dir = File::open(dir)?;
    std::os::unix::net::UnixStream::connect(format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd()))
}

nix::ioctl_read_bad!(output_queue, libc::TIOCOUTQ, libc::c_int);

/// Whether the other side has read all that was written to `stream`.
pub(crate) fn is_taken(stream: &std::os::unix::net::UnixStream) -> io::Result<bool> {
    let mut waiting = 0;
    // SAFETY: the descriptor stays open as long as `stream` is borrowed, and the kernel writes one int to `waiting`.
    unsafe { output_queue(stream.as_raw_fd(), &raw mut waiting) }?;
    Ok(waiting == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(command: &mut Command) -> String {
        let child = spawn(command.stdout(Stdio::piped())).expect("starts");
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn children_see_the_bridge_and_the_host_does_not() {
        let namespace = Namespace::create().expect("a namespace");
        namespace.build().expect("a bridge");
        let inside = output(namespace.command("ip").args(["-brief", "address", "show", BRIDGE]));
        assert!(inside.contains("10.77.0.1/24") && inside.contains("fe80::1/64"), "{inside}");
        assert!(!Path::new("/sys/class/net").join(BRIDGE).exists() || !inside.is_empty());
        // From another process, as `lab ssh` does it.
        let again = Namespace::of(&namespace.place()).expect("the same namespace");
        assert_eq!(output(again.command("ip").args(["-brief", "address", "show", BRIDGE])), inside);
    }

    #[test]
    fn two_networks_are_joined_by_a_cable() {
        let one = Namespace::create().expect("a namespace");
        let two = one.joined(["end0", "end1"]).expect("another one");
        for (namespace, there, elsewhere) in [(&one, "end0", "end1"), (&two, "end1", "end0")] {
            let links = output(namespace.command("ip").args(["-brief", "link", "show"]));
            assert!(links.contains(&format!("{there}@")), "{links}");
            assert!(!links.lines().any(|line| line.starts_with(elsewhere)), "{links}");
        }
    }

    #[test]
    fn a_wrong_order_to_ip_is_told() {
        let namespace = Namespace::create().expect("a namespace");
        let error = namespace.ip("link set nonexistent up\n").expect_err("no such link");
        assert!(error.to_string().contains("nonexistent"), "{error:#}");
    }

    #[test]
    fn children_outlive_the_thread_that_asked_for_them() {
        let namespace = Namespace::create().expect("a namespace");
        let command = move || Process::start(namespace.command("sleep").arg("60")).expect("starts");
        let mut child = thread::spawn(command).join().expect("ends");
        assert!(child.status().is_none());
        let pid = child.0.id();
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
