//! A lab in the background, and what can be done with it: `drophammer lab up`, `down`, `status`, `console`, `ssh`.
//!
//! It is one process, started again from our own program. Its directory is locked as long as it runs, so a lab that was
//! killed is never taken for one that runs.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drophammer_images::cache_dir;
use drophammer_protocol::machine::Machine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::kit::{self, Image, Kit};
use crate::lab::{self, Lab, LabSpec};
use crate::net::{self, Namespace};
use crate::qemu::{self, Firmware, MachineSpec, Rom};
use crate::server::{self, ServerSpec};
use crate::socket::{self, Request, Status};
use crate::{console, setup, slots};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpOptions {
    pub firmware: Firmware,
    pub rom: Rom,
    pub machines: u8,
    /// What the server will have to install.
    pub images: Vec<Image>,
}

/// What the process in the background is told.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    options: UpOptions,
    kit: Kit,
}

const LOCK: &str = "lock";
const PLAN: &str = "plan.json";
const LOG: &str = "lab.log";
const START_LIMIT: Duration = Duration::from_secs(180);
const END_LIMIT: Duration = Duration::from_secs(20);

/// The background lab's directory.
pub fn dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join("lab"))
}

/// The operators' socket of the background lab; it exists while the lab does.
pub fn socket() -> Result<PathBuf> {
    Ok(dir()?.join(server::API_SOCKET))
}

/// Starts a lab with machines that are switched on, and returns when it stands.
pub fn up(options: &UpOptions, say: &mut dyn FnMut(&str)) -> Result<Status> {
    ensure!(
        (1..=slots::SLOTS).contains(&usize::from(options.machines)),
        "a lab has 1 to {} machines, not {}",
        slots::SLOTS,
        options.machines
    );
    let dir = dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    // Let go of right away: preparing can take minutes, and the lab itself is to hold it.
    let free = || match slots::lock(&dir, LOCK)? {
        Some(lock) => Ok(lock),
        None => bail!("a lab runs already: `drophammer lab status` shows it, `drophammer lab down` ends it"),
    };
    drop(free()?);
    setup::ensure_host(setup::Purpose::Lab, say)?;
    let kit = kit::prepare(&options.images, say)?;
    {
        let _ours = free()?;
        clear(&dir)?;
        ssh_key(&dir)?;
        let plan = Plan { options: options.clone(), kit };
        let text = serde_json::to_vec(&plan).context("writing the lab's plan")?;
        fs::write(dir.join(PLAN), text).with_context(|| format!("writing {}", dir.join(PLAN).display()))?;
    }
    say("starting the lab");
    let mut child = detach(&dir)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Ok(status) = socket::status(&dir)
            && status.machines.len() == usize::from(options.machines)
            && status.machines.iter().all(|m| m.on)
        {
            return Ok(status);
        }
        let words = || last_words(&dir);
        if let Some(status) = child.try_wait().context("watching the lab's process")? {
            bail!("the lab ended with {status}; its last words:\n  {}", words());
        }
        if Instant::now() > deadline {
            child.kill().and_then(|()| child.wait()).context("ending a lab that doesn't come up")?;
            bail!("the lab doesn't come up within {} s; its last words:\n  {}", START_LIMIT.as_secs(), words());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Removes what an earlier lab left, but for the lock that we hold.
fn clear(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        if path.file_name().is_some_and(|name| name == LOCK) {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn detach(dir: &Path) -> Result<Child> {
    let program = program()?;
    let log = File::create(dir.join(LOG)).with_context(|| format!("creating {}", dir.join(LOG).display()))?;
    let stdout = log.try_clone().context("sharing the lab's log")?;
    let mut command = Command::new(&program);
    command.args(["lab", "run-detached"]).stdin(Stdio::null()).stdout(stdout).stderr(log).current_dir(dir);
    net::in_own_session(&mut command);
    command.spawn().with_context(|| format!("starting {}", program.display()))
}

/// Our own program; the one that took its place, if it was built anew since we were started.
pub(crate) fn program() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding our own program")?;
    let replaced = program.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.filter(|path| path.exists()).unwrap_or(program))
}

/// The hidden `drophammer lab run-detached`: the lab itself, until it's asked to end.
pub fn run_detached() -> Result<()> {
    let dir = dir()?;
    let Some(mut ours) = slots::lock(&dir, LOCK)? else { bail!("another lab runs in {}", dir.display()) };
    // For whoever has to end us when we don't answer.
    ours.set_len(0).and_then(|()| write!(ours, "{}", std::process::id())).context("writing our pid to the lock")?;
    let text = fs::read(dir.join(PLAN)).with_context(|| format!("reading {}", dir.join(PLAN).display()))?;
    let plan: Plan = serde_json::from_slice(&text).context("understanding the lab's plan")?;
    let lab = start(&dir, &plan.options, plan.kit)?;
    for machine in lab.machines() {
        machine.power_on()?;
    }
    lab.wait_down();
    drop(lab);
    clear(&dir)
}

/// A lab in `dir` with its machines, all switched off.
pub(crate) fn start(dir: &Path, options: &UpOptions, kit: Kit) -> Result<Lab> {
    let server = ServerSpec::new(program()?, &kit);
    let lab = Lab::start(LabSpec { dir: dir.to_owned(), server, machines: options.machines.into() })?;
    for n in 1..=options.machines {
        lab.add_machine(MachineSpec { rom: options.rom, ..MachineSpec::numbered(n, options.firmware) })?;
    }
    Ok(lab)
}

/// Ends the background lab. Whether there was one.
pub fn down() -> Result<bool> {
    let dir = dir()?;
    if !dir.exists() || slots::lock(&dir, LOCK)?.is_some() {
        return Ok(false);
    }
    // One that is stuck doesn't answer, and is killed instead.
    if socket::ask(&dir, &Request::Down).is_err() || !wait_for_lock(&dir)? {
        let lock = dir.join(LOCK);
        let pid = fs::read_to_string(&lock).with_context(|| format!("reading {}", lock.display()))?;
        let pid: i32 = pid.trim().parse().with_context(|| format!("understanding the pid in {}", lock.display()))?;
        // The lock is still held, so this pid is still the lab's.
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("killing a lab that doesn't answer")?;
        ensure!(wait_for_lock(&dir)?, "the lab was killed and doesn't end: process {pid}");
    }
    clear(&dir)?;
    Ok(true)
}

fn wait_for_lock(dir: &Path) -> Result<bool> {
    let deadline = Instant::now() + END_LIMIT;
    while Instant::now() < deadline {
        if slots::lock(dir, LOCK)?.is_some() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// The background lab, if there is one.
pub fn status() -> Result<Option<Status>> {
    let dir = dir()?;
    if !dir.exists() || slots::lock(&dir, LOCK)?.is_some() {
        return Ok(None);
    }
    socket::status(&dir).map(Some)
}

fn running() -> Result<(PathBuf, Status)> {
    let status = status()?.context("no lab runs; `drophammer lab up` starts one")?;
    Ok((dir()?, status))
}

/// Switches a machine of the background lab.
pub fn power(machine: &str, action: socket::PowerAction) -> Result<()> {
    let (dir, _) = running()?;
    socket::ask(&dir, &Request::Power { machine: machine.to_owned(), action }).map(drop)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleView {
    /// Sit at it.
    Attach,
    /// What it has said so far.
    Log,
}

pub fn console(machine: &str, view: ConsoleView) -> Result<()> {
    let (dir, status) = running()?;
    let names: Vec<_> = status.machines.iter().map(|m| m.spec.name.as_str()).collect();
    ensure!(names.contains(&machine), "the lab has no machine {machine:?}; it has {}", names.join(", "));
    let place = lab::machine_dir(&dir, machine);
    match view {
        ConsoleView::Log => {
            let path = place.join(qemu::CONSOLE_LOG);
            let raw = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            io::stdout().write_all(console::plain(&raw).as_bytes()).context("writing to standard output")
        }
        ConsoleView::Attach => {
            let stream = net::connect(&place, qemu::CONSOLE)
                .with_context(|| format!("connecting to the console of {machine}: is it on?"))?;
            eprintln!("console of {machine}; Ctrl-] leaves");
            console::attach(stream)
        }
    }
}

/// Runs the host's ssh inside the lab's network, as root on the machine. The status is that of ssh.
pub fn ssh(machine: &str, command: &[String]) -> Result<ExitStatus> {
    let (dir, status) = running()?;
    let found = server::client(&dir)?.machine(machine)?;
    let known_hosts = dir.join(format!("known_hosts.{}", found.id));
    let text = known_hosts_of(&found)?;
    fs::write(&known_hosts, text).with_context(|| format!("writing {}", known_hosts.display()))?;
    let address = found.address.with_context(|| format!("{} has no address yet", found.name))?;
    let mut ssh = Namespace::of(&status.namespaces)?.command("ssh");
    // `-F none`: inside the lab we are root, and root's configuration isn't ours to read.
    ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"])
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
        .arg("-i")
        .arg(dir.join(SSH_KEY))
        .arg(format!("root@{address}"))
        .args(command);
    let mut child = net::spawn(&mut ssh).context("starting ssh, from the package openssh-client")?;
    child.wait().context("waiting for ssh")
}

/// The host keys that the machine told the server over its authenticated way: no key is taken on trust.
fn known_hosts_of(machine: &Machine) -> Result<String> {
    let address = machine.address.with_context(|| format!("{} has no address yet", machine.name))?;
    ensure!(
        !machine.ssh_host_keys.is_empty(),
        "{} is {} and hasn't told its SSH host keys: an installed system that runs sshd tells them when it phones home",
        machine.name,
        machine.state
    );
    Ok(machine.ssh_host_keys.iter().map(|key| format!("{address} {}\n", key.trim())).collect())
}

/// The key that logs in to the lab's machines, without its `.pub`.
pub(crate) const SSH_KEY: &str = "ssh_key";

/// Makes the key and returns its public half.
pub(crate) fn ssh_key(dir: &Path) -> Result<String> {
    let path = dir.join(SSH_KEY);
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "drophammer-lab", "-f"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .context("starting ssh-keygen, from the package openssh-client")?;
    ensure!(output.status.success(), "making an SSH key: {}", String::from_utf8_lossy(&output.stderr).trim());
    let public = path.with_extension("pub");
    let text = fs::read_to_string(&public).with_context(|| format!("reading {}", public.display()))?;
    Ok(text.trim().to_owned())
}

/// Public half of the background lab's key, for allocations.
pub fn public_ssh_key() -> Result<String> {
    let path = dir()?.join(SSH_KEY).with_extension("pub");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn last_words(dir: &Path) -> String {
    const TAIL: u64 = 16 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(dir.join(LOG))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text)
    };
    console::last_lines(&console::plain(&read().unwrap_or_default()), 15).join("\n  ")
}
