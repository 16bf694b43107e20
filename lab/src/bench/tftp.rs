//! How fast boot loaders are fetched by TFTP, by one machine and by many at once.
//!
//! The load is ours: no packaged client drives many transfers, has windows and costs less than a server. It is told apart
//! from the servers by a process and a network of its own, compares every byte, and sleeps when it has nothing to do: one that
//! polls takes the processor from the server that it measures. It fetches again and again for a while, so that a start
//! doesn't count.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drophammer_images::debian::Programs;
use drophammer_pxe_server::config::{Config, Mode, NetworkConfig};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{Contest, Side};
use crate::net::{Namespace, Process, spawn};
use crate::{console, up};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// The first machine's; the others follow.
const MACHINES: Ipv4Addr = Ipv4Addr::new(10, 64, 1, 1);
const ADDRESSES: u32 = 64;
const CABLE: [&str; 2] = ["server0", "client0"];
const PREFIX: u8 = 16;
const PORT: u16 = 69;
const START_LIMIT: Duration = Duration::from_secs(10);
const LENGTH: Duration = Duration::from_secs(2);

const BLOCK: u16 = 1428;
/// What is fetched: about an initramfs, and about iPXE.
const FILES: [(&str, usize); 2] = [(LARGE, 32 << 20), (SMALL, 1 << 20)];
const LARGE: &str = "snponly.efi";
pub(super) const SMALL: &str = "undionly.kpxe";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ours,
    Dnsmasq,
    Atftpd,
}

/// One machine, one packet at a time.
pub(super) fn lock_step_dnsmasq() -> Result<Contest> {
    contest(Who::Dnsmasq, LARGE, 1, 1)
}

pub(super) fn lock_step_atftpd() -> Result<Contest> {
    contest(Who::Atftpd, LARGE, 1, 1)
}

/// One machine that asks for windows of 16 packets; dnsmasq has none.
pub(super) fn windows_dnsmasq() -> Result<Contest> {
    contest(Who::Dnsmasq, LARGE, 1, 16)
}

pub(super) fn windows_atftpd() -> Result<Contest> {
    contest(Who::Atftpd, LARGE, 1, 16)
}

/// 64 machines, one packet each at a time.
pub(super) fn many_dnsmasq() -> Result<Contest> {
    contest(Who::Dnsmasq, SMALL, 64, 1)
}

pub(super) fn many_atftpd() -> Result<Contest> {
    contest(Who::Atftpd, SMALL, 64, 1)
}

/// 64 machines that ask for windows of 16 packets.
pub(super) fn many_windows_dnsmasq() -> Result<Contest> {
    contest(Who::Dnsmasq, SMALL, 64, 16)
}

pub(super) fn many_windows_atftpd() -> Result<Contest> {
    contest(Who::Atftpd, SMALL, 64, 16)
}

/// In MB/s, over all machines.
fn contest(rival: Who, file: &str, machines: u32, window: u16) -> Result<Contest> {
    let arena = Arena::new(rival)?;
    let load = Load { file: file.to_owned(), machines, block_size: BLOCK, window, length: LENGTH };
    Ok(Box::new(move |side| {
        let _server = arena.start(if side == Side::Ours { Who::Ours } else { rival })?;
        let report = put(&load, &arena.machines)?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of a few seconds")]
        Ok(report.bytes as f64 / 1e6 / report.took.as_secs_f64())
    }))
}

/// A server in one network namespace and machines in another, joined by a virtual cable.
#[derive(Debug)]
struct Arena {
    server: Namespace,
    machines: Namespace,
    programs: Programs,
    boot_dir: TempDir,
}

impl Arena {
    fn new(rival: Who) -> Result<Self> {
        let package = match rival {
            Who::Ours => bail!("ours is no rival"),
            Who::Dnsmasq => "dnsmasq-base",
            Who::Atftpd => "atftpd",
        };
        let programs = Programs::of(&[package]).with_context(|| format!("getting {package} from Debian's archive"))?;
        let server = Namespace::create()?;
        let machines = server.joined(CABLE)?;
        server.ip(&format!(
            "link set lo up\naddress add {SERVER}/{PREFIX} dev {}\nlink set {} up\n",
            CABLE[0], CABLE[0]
        ))?;
        machines.ip(&format!("link set lo up\n{}link set {} up\n", self::machines(CABLE[1], PREFIX), CABLE[1]))?;
        let boot_dir = tempfile::tempdir().context("making a directory for boot loaders")?;
        fill(boot_dir.path(), &[LARGE, SMALL])?;
        Ok(Self { server, machines, programs, boot_dir })
    }

    /// A server that answers.
    fn start(&self, who: Who) -> Result<Running> {
        let dir = tempfile::tempdir().context("making a directory for a server")?;
        let boot = self.boot_dir.path();
        let mut command = self.server.enter(match who {
            Who::Ours => ours(dir.path(), boot)?,
            Who::Dnsmasq => self.dnsmasq(boot)?,
            Who::Atftpd => self.atftpd(boot)?,
        });
        let log = dir.path().join("log");
        let stderr = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let stdout = stderr.try_clone().context("sharing a log")?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let process = Process::start(&mut command).with_context(|| format!("starting {who:?}"))?;
        let mut running = Running { process, dir };
        self.until_it_answers(&mut running).with_context(|| format!("starting {who:?}"))?;
        Ok(running)
    }

    fn until_it_answers(&self, running: &mut Running) -> Result<()> {
        let once = Duration::from_millis(10);
        let one = Load { length: once, ..Load::of_many(1) };
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = put(&one, &self.machines) {
            if let Some(status) = running.process.status() {
                bail!("it ended with {status}; its last words:\n  {}", running.last_words());
            }
            ensure!(
                Instant::now() < deadline,
                "it doesn't answer ({error:#}); its last words:\n  {}",
                running.last_words()
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// In the foreground as one that drops no privileges: a user namespace doesn't let it. Its log is its standard error.
    fn dnsmasq(&self, boot: &Path) -> Result<Command> {
        let mut command = self.programs.command("/usr/sbin/dnsmasq")?;
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--bind-interfaces",
            "--interface",
            CABLE[0],
        ]);
        command.args(["--enable-tftp", "--quiet-tftp", "--tftp-max=500", "--pid-file="]);
        command.arg(format!("--tftp-root={}", boot.display()));
        Ok(command)
    }

    fn atftpd(&self, boot: &Path) -> Result<Command> {
        let mut command = self.programs.command("/usr/sbin/atftpd")?;
        command.args(["--daemon", "--no-fork", "--user", "root", "--group", "root", "--maxthread", "500"]);
        command.args(["--logfile", "/dev/null", "--port", &PORT.to_string(), "--bind-address", &SERVER.to_string()]);
        command.arg(boot);
        Ok(command)
    }
}

/// The whole boot server, as a user would have it.
fn ours(dir: &Path, boot: &Path) -> Result<Command> {
    let mut network = NetworkConfig::new(CABLE[0], SERVER, PREFIX);
    network.dhcp = Mode::Off;
    // The file's defaults, which `cargo bench-all` shouldn't have a second list of.
    let defaults: Config = toml::from_str("").context("an empty configuration")?;
    let config = Config {
        state_dir: dir.join("state"),
        boot_dir: Some(boot.to_owned()),
        networks: vec![network],
        router_advertisements: false,
        ..defaults
    };
    let text = toml::to_string(&config).context("writing the server's configuration")?;
    let path = dir.join("config.toml");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(up::program()?);
    command.args(["serve", "--config"]).arg(path);
    Ok(command)
}

/// A server, gone with its files when this is dropped.
#[derive(Debug)]
struct Running {
    process: Process,
    dir: TempDir,
}

impl Running {
    fn last_words(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        console::last_lines(&console::plain(&log), 5).join("\n  ")
    }
}

/// Several share an address where there are more than addresses.
fn machine(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(MACHINES.to_bits() + number % ADDRESSES)
}

/// The machines' addresses, as orders for `ip`.
pub(super) fn machines(interface: &str, prefix: u8) -> String {
    (0..ADDRESSES).map(|n| format!("address add {}/{prefix} dev {interface}\n", machine(n))).collect()
}

/// A `boot_dir` with these of [`FILES`].
pub(super) fn fill(boot_dir: &Path, names: &[&str]) -> Result<()> {
    let wanted = FILES.into_iter().filter(|(name, _)| names.contains(name));
    for (name, size) in wanted.chain([("vmlinuz", 1), ("initramfs", 1)]) {
        let path = boot_dir.join(name);
        fs::write(&path, content(size)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Puts load on the server that can be reached from there.
pub(super) fn put(load: &Load, from: &Namespace) -> Result<Report> {
    let mut command = Command::new(up::program()?);
    command.args(["lab", LOAD_COMMAND]).arg(serde_json::to_string(load).context("describing the load")?);
    let mut command = from.enter(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(&mut command).context("starting the load")?;
    let output = child.wait_with_output().context("waiting for the load")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("reading what the load reports")
}

/// Nothing that repeats itself, so that no block can stand for another.
fn content(size: usize) -> Vec<u8> {
    (0..=u32::MAX).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(size).collect()
}

/// What [`run_load`] is told, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    file: String,
    machines: u32,
    block_size: u16,
    /// 1 asks for none.
    window: u16,
    length: Duration,
}

impl Load {
    /// So many machines, with the usual options of today's firmware.
    pub(super) fn of_many(machines: u32) -> Self {
        Self { file: SMALL.to_owned(), machines, block_size: BLOCK, window: 1, length: LENGTH }
    }
}

/// What it says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    bytes: u64,
    took: Duration,
    /// How often a machine had to say something again.
    repeated: u64,
}

/// The hidden subcommand of `drophammer lab` that runs [`run_load`] in the machines' network.
pub const LOAD_COMMAND: &str = "tftp-load";

/// After so much silence a machine says again what it said last.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks for silence.
const CHECK: Duration = Duration::from_millis(100);
/// A server that doesn't answer at all is no measurement.
const MOST_REPEATS: u32 = 3;
const RECEIVE_BUFFER: usize = 1 << 20;

/// Fetches a file by so many machines at once, each again and again, until the time is over.
pub fn run_load(load: &Load) -> Result<Report> {
    let size = FILES.into_iter().find(|(name, _)| *name == load.file).context("no such file")?.1;
    let content = content(size);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("preparing to wait")?;
    let began = Instant::now();
    let mut fetches =
        (0..load.machines).map(|number| Fetch::start(number, load, &epoll, began)).collect::<Result<Vec<_>>>()?;
    let mut report = Report { bytes: 0, took: Duration::ZERO, repeated: 0 };
    let mut events = [EpollEvent::empty(); ADDRESSES as usize];
    let mut buffer = [0; 2048];
    let mut check_at = began + CHECK;
    let until_check = EpollTimeout::try_from(CHECK).context("a time to wait")?;
    loop {
        let ready = epoll.wait(&mut events, until_check).context("waiting")?;
        let now = Instant::now();
        for event in events.iter().take(ready) {
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let Some(fetch) = fetches.get_mut(number) else { continue };
            report.bytes += fetch.receive(&content, &mut buffer, now)?;
            if fetch.done {
                *fetch = Fetch::start(fetch.number, load, &epoll, now)?;
            }
        }
        if now >= check_at {
            check_at = now + CHECK;
            for fetch in &mut fetches {
                report.repeated += u64::from(fetch.repeat_if_due(now)?);
            }
        }
        report.took = now.duration_since(began);
        // Counted to the end of a file, or the first word of a server would do.
        if report.took >= load.length && report.bytes >= size as u64 {
            return Ok(report);
        }
    }
}

/// One file on its way to one machine.
struct Fetch {
    number: u32,
    socket: UdpSocket,
    block_size: usize,
    window: u64,
    /// Whether the server has answered, from the port that it has for this.
    begun: bool,
    blocks: u64,
    acknowledged: u64,
    done: bool,
    said: Vec<u8>,
    heard_at: Instant,
    repeats: u32,
}

impl Fetch {
    fn start(number: u32, load: &Load, epoll: &Epoll, now: Instant) -> Result<Self> {
        let address = machine(number);
        let socket = UdpSocket::bind((address, 0)).with_context(|| format!("opening a port of {address}"))?;
        socket.set_nonblocking(true).context("preparing a port")?;
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER).context("preparing a port")?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, number.into())).context("preparing to wait")?;
        let mut text = format!("\0\x01{}\0octet\0blksize\0{}\0", load.file, load.block_size);
        if load.window > 1 {
            text.push_str(&format!("windowsize\0{}\0", load.window));
        }
        socket.send_to(text.as_bytes(), SocketAddrV4::new(SERVER, PORT)).context("asking for a file")?;
        Ok(Self {
            number,
            socket,
            block_size: load.block_size.into(),
            window: 1,
            begun: false,
            blocks: 0,
            acknowledged: 0,
            done: false,
            said: text.into_bytes(),
            heard_at: now,
            repeats: 0,
        })
    }

    /// Takes all that has come; how many bytes of the file that were.
    fn receive(&mut self, content: &[u8], buffer: &mut [u8], now: Instant) -> Result<u64> {
        let before = self.bytes(content);
        while !self.done {
            let (length, from) = match self.socket.recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("receiving"),
            };
            let packet = buffer.get(..length).unwrap_or_default();
            let (head, body) = packet.split_first_chunk::<4>().context("a packet without a head")?;
            self.heard_at = now;
            self.repeats = 0;
            if !self.begun {
                self.socket.connect(from).context("staying with a server")?;
                self.begun = true;
            }
            match head {
                [0, 3, block @ ..] => self.data(u16::from_be_bytes(*block), body, content)?,
                [0, 6, ..] => self.accept(packet.get(2..).unwrap_or_default())?,
                [0, 5, code @ ..] => bail!("error {code:?}: {}", String::from_utf8_lossy(body)),
                _ => bail!("a packet that a server doesn't send: {head:?}"),
            }
            // In lock-step there is nothing more to come now, and asking costs as much as a packet.
            if self.window == 1 {
                break;
            }
        }
        Ok(self.bytes(content) - before)
    }

    fn bytes(&self, content: &[u8]) -> u64 {
        (self.blocks * self.block_size as u64).min(content.len() as u64)
    }

    fn accept(&mut self, options: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(options).to_lowercase();
        let words: Vec<&str> = text.split('\0').collect();
        let value = |name| words.chunks(2).find_map(|pair| (pair[0] == name).then(|| pair.get(1)?.parse().ok())?);
        let block_size: u64 = value("blksize").context("the server has no blksize")?;
        ensure!(block_size == self.block_size as u64, "the server wants blocks of {block_size} bytes");
        self.window = value("windowsize").unwrap_or(1);
        self.acknowledge()
    }

    fn data(&mut self, block: u16, body: &[u8], content: &[u8]) -> Result<()> {
        if block != number(self.blocks + 1) {
            // RFC 7440 §4: say once where this is; a lost acknowledgement is repeated by time.
            return if self.acknowledged == self.blocks { Ok(()) } else { self.acknowledge() };
        }
        let at = usize::try_from(self.blocks).unwrap_or(usize::MAX).saturating_mul(self.block_size);
        let want = content.get(at..content.len().min(at.saturating_add(self.block_size)));
        ensure!(want == Some(body), "block {} has the wrong content", self.blocks + 1);
        self.blocks += 1;
        self.done = body.len() < self.block_size;
        if self.done || self.blocks - self.acknowledged >= self.window { self.acknowledge() } else { Ok(()) }
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.acknowledged = self.blocks;
        let [high, low] = number(self.blocks).to_be_bytes();
        self.said = vec![0, 4, high, low];
        self.say()
    }

    fn say(&self) -> Result<()> {
        let sent = if self.begun {
            self.socket.send(&self.said)
        } else {
            self.socket.send_to(&self.said, SocketAddrV4::new(SERVER, PORT))
        };
        match sent {
            Ok(_) => Ok(()),
            // A server that isn't there yet, or a transfer that it has ended: what comes next, if anything, tells.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error).context("sending"),
        }
    }

    fn repeat_if_due(&mut self, now: Instant) -> Result<bool> {
        if now.saturating_duration_since(self.heard_at) < PATIENCE {
            return Ok(false);
        }
        ensure!(self.repeats < MOST_REPEATS, "the server says nothing, after {} blocks", self.blocks);
        self.repeats += 1;
        self.heard_at = now;
        self.say()?;
        Ok(true)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "block numbers roll over from 65535 to 0")]
fn number(block: u64) -> u16 {
    block as u16
}
