//! How many bytes of a file a server sends for a second of processor time, user and system, of all its processes.
//!
//! Both servers have the same file in the same page cache, the same network, and the congestion control that this host has,
//! which decides more than anything else: sendfile costs what the bursts cost that TCP makes of it. The client is curl for
//! both, on the same processors, and isn't counted.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drophammer_images::cache_dir;
use drophammer_images::debian::Programs;
use tempfile::TempDir;

use super::{Contest, Side};
use crate::net::{BRIDGE, Namespace, Process, spawn};
use crate::process::seconds_of_all;
use crate::up;

const LENGTH: u64 = 256 << 20;
/// What an agent asks for at once.
const RANGE: u64 = 4 << 20;
const PATH: &str = "images/bench/1/root.frames";
const OURS: &str = "10.77.0.1:80";
const NGINX: &str = "10.77.0.1:8080";
const START_LIMIT: Duration = Duration::from_secs(20);

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
struct Load {
    clients: usize,
    /// Over all clients.
    requests: u64,
    bytes: u64,
}

pub(super) fn one_client() -> Result<Contest> {
    contest(Load { clients: 1, requests: 16, bytes: LENGTH })
}

pub(super) fn many_clients() -> Result<Contest> {
    contest(Load { clients: 64, requests: 64, bytes: LENGTH })
}

pub(super) fn many_ranges() -> Result<Contest> {
    contest(Load { clients: 64, requests: 4096, bytes: RANGE })
}

fn contest(load: Load) -> Result<Contest> {
    let arena = Arena::new()?;
    Ok(Box::new(move |side| arena.measure(side, load)))
}

struct Arena {
    ours: Process,
    nginx: Process,
    programs: Programs,
    namespace: Namespace,
    dir: TempDir,
}

impl Arena {
    fn new() -> Result<Self> {
        let programs =
            Programs::of(&["nginx-light", "curl"]).context("getting nginx and curl from Debian's archive")?;
        let namespace = Namespace::create()?;
        namespace.build()?;
        let place = cache_dir()?.join("bench");
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        let dir = tempfile::tempdir_in(&place).with_context(|| format!("making a directory in {}", place.display()))?;
        fill(&dir.path().join(PATH))?;
        let ours = start(&namespace, ours(dir.path())?, dir.path(), "ours.log")?;
        let nginx = start(&namespace, nginx(&programs, dir.path(), dir.path(), NGINX)?, dir.path(), "nginx.log")?;
        let arena = Self { ours, nginx, programs, namespace, dir };
        for address in [OURS, NGINX] {
            arena.until_it_answers(address)?;
        }
        Ok(arena)
    }

    fn until_it_answers(&self, address: &str) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        // Also brings the file into memory.
        while let Err(error) = self.put(address, Load { clients: 1, requests: 1, bytes: LENGTH }) {
            ensure!(
                Instant::now() < deadline,
                "{address} doesn't answer: {error:#}; see {}",
                self.dir.path().display()
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// In MB for each second of the processor.
    fn measure(&self, side: Side, load: Load) -> Result<f64> {
        let (process, address) = match side {
            Side::Ours => (&self.ours, OURS),
            Side::Rival => (&self.nginx, NGINX),
        };
        let before = seconds_of_all(process.id())?;
        self.put(address, load)?;
        let took = seconds_of_all(process.id())? - before;
        ensure!(took > 0.0, "the server at {address} did nothing");
        #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
        let megabytes = (load.requests * load.bytes) as f64 / 1e6;
        Ok(megabytes / took)
    }

    fn put(&self, address: &str, load: Load) -> Result<()> {
        let mut command = self.namespace.enter(self.programs.command("/usr/bin/curl")?);
        command.args([
            "--disable",
            "--noproxy",
            "*",
            "--silent",
            "--show-error",
            "--fail",
            "--fail-early",
            "--parallel",
        ]);
        command.args(["--parallel-max", &load.clients.to_string(), "--config", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut curl = spawn(&mut command).context("starting curl")?;
        let transfers: Vec<_> = (0..load.requests)
            .map(|n| {
                let first = n * load.bytes % LENGTH;
                let last = first + load.bytes - 1;
                format!(
                    "url = http://{address}/{PATH}\nrange = {first}-{last}\noutput = /dev/null\n\
                     write-out = \"%{{size_download}}\\n\"\n"
                )
            })
            .collect();
        let mut stdin = curl.stdin.take().context("writing to curl")?;
        stdin.write_all(transfers.join("next\nfail\n").as_bytes()).context("writing to curl")?;
        drop(stdin);
        let output = curl.wait_with_output().context("waiting for curl")?;
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr).trim());
        let got: u64 =
            String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse::<u64>().ok()).sum();
        ensure!(got == load.requests * load.bytes, "curl got {got} bytes instead of {}", load.requests * load.bytes);
        Ok(())
    }
}

fn fill(path: &Path) -> Result<()> {
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        let mut file = File::create(path)?;
        // Not a hole: those are cheaper.
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..LENGTH >> 20 {
            file.write_all(&piece)?;
        }
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

fn start(namespace: &Namespace, command: Command, dir: &Path, log: &str) -> Result<Process> {
    let log = dir.join(log);
    let stderr = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let stdout = stderr.try_clone().context("sharing a log")?;
    let mut command = namespace.enter(command);
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    Process::start(&mut command).with_context(|| format!("starting what logs to {}", log.display()))
}

fn ours(dir: &Path) -> Result<Command> {
    let boot_dir = dir.join("boot");
    fs::create_dir(&boot_dir).with_context(|| format!("making {}", boot_dir.display()))?;
    for name in ["vmlinuz", "initramfs", "snponly.efi"] {
        written(&boot_dir, name, "never booted")?;
    }
    let (state, images) = (dir.join("state"), dir.join("images"));
    let config = format!(
        "state_dir = {state:?}\nimages_dir = {images:?}\nboot_dir = {boot_dir:?}\nrouter_advertisements = false\n\
         [[network]]\ninterface = {BRIDGE:?}\naddress = \"10.77.0.1\"\nsubnet = \"10.77.0.0/24\"\ndhcp = \"off\"\n"
    );
    let mut command = Command::new(up::program()?);
    command.args(["serve", "--config"]).arg(written(dir, "config.toml", &config)?);
    Ok(command)
}

/// As Debian configures it, with a worker for each processor, sendfile and tcp_nopush. It logs no requests, as ours doesn't.
pub(super) fn nginx(programs: &Programs, dir: &Path, root: &Path, listen: &str) -> Result<Command> {
    let place = dir.display();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path {place}/{of};"));
    let config = format!(
        "user root;\nworker_processes auto;\ndaemon off;\npid {place}/nginx.pid;\nerror_log {place}/nginx.log;\n\
         events {{ worker_connections 768; }}\n\
         http {{\naccess_log off;\nsendfile on;\ntcp_nopush on;\n{}\nserver {{ listen {listen}; root {}; }}\n}}\n",
        temporary.join("\n"),
        root.display()
    );
    let program = programs.command("/usr/sbin/nginx")?;
    // Its workers outlive it if it's killed, unless they are in a process namespace that ends with it.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--"]).arg(program.get_program()).args(program.get_args());
    command.arg("-p").arg(dir).arg("-c").arg(written(dir, "nginx.conf", &config)?);
    Ok(command)
}

pub(super) fn written(dir: &Path, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
