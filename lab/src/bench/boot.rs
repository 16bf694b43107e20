//! How long a machine takes from its DISCOVER to its agent's first line: the same firmware, the same boot files, two ways to
//! serve them.
//!
//! The rival is what people put together from packages: dnsmasq for DHCP and TFTP, nginx for the rest. Neither server is
//! told anything about the machine. The clock starts with the packet on the wire, as the kernel has it, and not with the
//! power switch: what firmware does before is nobody's merit.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use drophammer_images::debian::Programs;
use drophammer_initramfs::AGENT_ARGUMENTS;
use tempfile::TempDir;

use super::{Contest, Side, http};
use crate::console::ARGUMENT as CONSOLE;
use crate::kit::{self, Kit};
use crate::lab::{Lab, LabSpec};
use crate::net::{BRIDGE, PREFIX, Process, SERVER_ADDRESS, spawn};
use crate::qemu::{Firmware, MachineSpec};
use crate::server::ServerSpec;
use crate::up;
use crate::vm::Machine;

/// How the agent begins each line that it says, after the time.
const AGENT: &str = "] agent  ";
/// On real hardware.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// The switched-off machines of a benchmark are no failures.
const MOST_FAILURES: u32 = 1000;
const SCRIPT: &str = "boot.ipxe";
/// What nginx serves, in the arena's directory.
const ROOT: &str = "root";

pub(super) fn bios() -> Result<Contest> {
    contest(Firmware::Bios)
}

pub(super) fn uefi() -> Result<Contest> {
    contest(Firmware::Uefi)
}

fn contest(firmware: Firmware) -> Result<Contest> {
    let arena = Arena::new(firmware)?;
    Ok(Box::new(move |side| arena.boot(side)))
}

struct Arena {
    machine: Arc<Machine>,
    lab: Lab,
    kit: Kit,
    programs: Programs,
    dir: TempDir,
}

impl Arena {
    fn new(firmware: Firmware) -> Result<Self> {
        let programs = Programs::of(&["dnsmasq-base", "nginx-light", "tcpdump"])
            .context("getting dnsmasq, nginx and tcpdump from Debian's archive")?;
        let kit = kit::prepare(&[], &mut |_| {})?;
        let dir = tempfile::Builder::new().prefix("drophammer-").tempdir().context("making a directory")?;
        let server = ServerSpec { max_failures: MOST_FAILURES, ..ServerSpec::new(up::program()?, &kit) };
        fill(&dir.path().join(ROOT), &kit)?;
        let lab = Lab::start(LabSpec { dir: dir.path().join("lab"), server, machines: 1 })?;
        let machine = lab.add_machine(MachineSpec::numbered(1, firmware))?;
        Ok(Self { machine, lab, kit, programs, dir })
    }

    /// In seconds.
    fn boot(&self, side: Side) -> Result<f64> {
        let _rival = match side {
            Side::Ours => {
                self.lab.server.restart()?;
                None
            }
            Side::Rival => {
                self.lab.server.kill();
                Some([self.dnsmasq()?, self.nginx()?])
            }
        };
        let asked = self.first_discover()?;
        self.machine.power_on()?;
        let started = self.machine.wait_console(AGENT, self.lab.accel.patience(BOOT_LIMIT));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock")?;
        self.machine.power_cut();
        started?;
        Ok(now.as_secs_f64() - seconds(asked)?)
    }

    /// Waits for the first DISCOVER from now on; its last word is when that was.
    fn first_discover(&self) -> Result<Child> {
        let mut command = self.lab.namespace().enter(self.programs.command("/usr/bin/tcpdump")?);
        command.args(["-i", BRIDGE, "-Z", "root", "-n", "-tt", "-c", "1", "udp dst port 67"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command).context("starting tcpdump")?;
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().context("reading from tcpdump")?);
        while !said.contains("listening on") {
            let more = stderr.read_line(&mut said).context("reading from tcpdump")?;
            ensure!(more > 0, "tcpdump: {}", said.trim());
        }
        Ok(child)
    }

    /// An address, and for each kind of firmware the loader that it takes; loaders are sent to nginx. Without a ping before
    /// an offer, which would add three seconds.
    fn dnsmasq(&self) -> Result<Process> {
        let mut command = self.lab.namespace().enter(self.programs.command("/usr/sbin/dnsmasq")?);
        let [a, b, c, _] = SERVER_ADDRESS;
        command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--bind-interfaces", "--no-ping"]);
        command.args(["--interface", BRIDGE, "--enable-tftp", "--dhcp-authoritative"]);
        command.arg(format!("--tftp-root={}", self.kit.boot_dir.display()));
        command.arg(format!("--dhcp-leasefile={}", self.dir.path().join("leases").display()));
        command
            .arg(format!("--dhcp-range={a}.{b}.{c}.100,{a}.{b}.{c}.199,{}", Ipv4Addr::from_bits(!0 << (32 - PREFIX))));
        command.args(["--dhcp-match=set:ipxe,175", "--dhcp-match=set:efi,option:client-arch,7"]);
        command.arg("--dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe");
        command.arg("--dhcp-boot=tag:!ipxe,tag:efi,snponly.efi");
        command.arg(format!("--dhcp-boot=tag:ipxe,{}/{SCRIPT}", url()));
        Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
            .context("starting dnsmasq")
    }

    fn nginx(&self) -> Result<Process> {
        let root = self.dir.path().join(ROOT);
        let address = format!("{}:80", Ipv4Addr::from(SERVER_ADDRESS));
        let mut command = self.lab.namespace().enter(http::nginx(&self.programs, self.dir.path(), &root, &address)?);
        Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
            .context("starting nginx")
    }
}

fn fill(root: &Path, kit: &Kit) -> Result<()> {
    fs::create_dir(root).with_context(|| format!("making {}", root.display()))?;
    for file in ["vmlinuz", "initramfs"] {
        let (from, to) = (kit.boot_dir.join(file), root.join(file));
        fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    }
    http::written(root, SCRIPT, &script()).map(drop)
}

fn script() -> String {
    let url = url();
    format!(
        "#!ipxe\n\
         kernel --name vmlinuz {url}/vmlinuz initrd=initramfs {AGENT_ARGUMENTS} drophammer.mac=${{netX/mac}} {CONSOLE}\n\
         initrd --name initramfs {url}/initramfs\n\
         boot\n"
    )
}

fn url() -> String {
    format!("http://{}", Ipv4Addr::from(SERVER_ADDRESS))
}

/// When tcpdump saw what it was waiting for, since 1970.
fn seconds(tcpdump: Child) -> Result<f64> {
    let output = tcpdump.wait_with_output().context("waiting for tcpdump")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let time = said.split_whitespace().next().and_then(|time| time.parse().ok());
    time.with_context(|| format!("the machine booted and tcpdump saw no DISCOVER: {:?}", said.trim()))
}
