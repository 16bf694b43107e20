//! metal-stack's install contract: an image that brings its own installer gets `/etc/metal`, is run, and says what to boot.
//!
//! Nothing of an image is run to install it. The one exception is this: an image that has `/install-go`, `/install.sh` or an
//! os-installer was built to be finished by that, and it's as signed as the rest of it. It runs as root and sees the
//! machine's devices, because installing a boot loader takes that. So this isn't a prison for hostile code: it can write to
//! any disk, use the network, and as root it can mount what it likes. What holds is that it finds only the installed system
//! at `/`, that it doesn't see the agent's processes, can't load modules, start another kernel or reboot the machine, and
//! that nothing it started outlives it, which is at the latest when its time is up.

use std::collections::VecDeque;
use std::io::{PipeReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::manifest::BootFiles;
use drophammer_protocol::order::Install;
use drophammer_protocol::system::UserData;
use drophammer_protocol::system::metal_stack::{MetalNetwork, NetworkKind, Role};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::bootloader;
use super::root::Root;
use super::yaml;
use crate::net::Port;
use crate::reporter::Reporter;
use crate::sys::confine;

const INSTALL_YAML: &str = "/etc/metal/install.yaml";
const MACHINE_DETAILS: &str = "/etc/metal/machine-details.yaml";
const MACHINE_ALLOCATION: &str = "/etc/metal/machine-allocation.yaml";
const USER_DATA: &str = "/etc/metal/userdata";
const OS_INSTALLER_CONFIG: &str = "/etc/metal/os-installer.yaml";
const BOOT_INFO: &str = "/etc/metal/boot-info.yaml";

/// The first that is there is the one.
const INSTALLERS: [&str; 5] =
    ["/install-go", "/install.sh", "/os-installer", "/usr/bin/os-installer", "/usr/local/bin/os-installer"];

/// What they mount by themselves or expect to find.
const MOUNT_POINTS: [&str; 4] = ["/proc", "/sys", "/dev", "/tmp"];

/// Longer than any of them takes, and shorter than the agent's own watchdog waits.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(20 * 60);
/// What is killed is gone at once, unless it waits for a device that doesn't answer.
const TO_DIE: Duration = Duration::from_secs(30);

/// What of its output is told as it comes; of the rest, the end.
const MAX_LINES: usize = 200;
const MAX_LINE_BYTES: usize = 500;
const LAST_LINES: usize = 10;

/// What an image expects of whoever installs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contract {
    run: Option<Program>,
    /// The program makes the whole system, and says what is to be booted.
    whole: bool,
    bootloader_id: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    path: String,
    workdir: String,
}

/// What the installer says is to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootInfo {
    pub(crate) kernel: String,
    pub(crate) initrd: Option<String>,
    pub(crate) cmdline: String,
    pub(crate) bootloader_id: Option<String>,
}

/// What it's told besides the order.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) root_uuid: String,
    /// Whether there are arrays.
    pub(crate) raid: bool,
    pub(crate) ports: &'a [Port],
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandedOver {
    pub(crate) boot: Option<BootInfo>,
}

impl Contract {
    /// What the image expects, if it expects anything.
    pub(crate) fn of(root: &Root) -> anyhow::Result<Option<Self>> {
        let config = match root.text(OS_INSTALLER_CONFIG)? {
            Some(text) => Some(
                yaml::scalars(&text).with_context(|| format!("understanding {OS_INSTALLER_CONFIG} of the image"))?,
            ),
            None => None,
        };
        let setting = |key: &str| config.as_ref().and_then(|config| config.get(key)).filter(|v| !v.is_empty()).cloned();
        let bootloader_id = setting("overwrites.bootloader_id");
        for path in INSTALLERS {
            if runs(root, path)? {
                let run = Some(Program { path: path.into(), workdir: "/".into() });
                return Ok(Some(Self { run, whole: true, bootloader_id }));
            }
        }
        let run = setting("custom_script.executable_path")
            .map(|path| Program { path, workdir: setting("custom_script.workdir").unwrap_or_else(|| "/".into()) });
        Ok(config.is_some().then_some(Self { run, whole: false, bootloader_id }))
    }

    /// Whether it does what is otherwise done for it.
    pub(crate) fn makes_the_system(&self) -> bool {
        self.whole
    }

    /// Writes what it reads, runs it, and reads what it left. `at` is where the root is mounted.
    pub(crate) fn fulfil(
        &self,
        root: &Root,
        at: &Path,
        order: &Install,
        facts: &Facts<'_>,
        limit: Duration,
        reporter: &Reporter,
    ) -> anyhow::Result<HandedOver> {
        let password = password()?;
        let now = OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).context("writing the time")?;
        for (path, text) in files(order, facts, &password, &now) {
            root.put_text(path, 0o600, &text)?;
        }
        // One that came with the image says nothing about this machine.
        root.remove(BOOT_INFO)?;
        let Some(program) = &self.run else { return Ok(HandedOver { boot: None }) };
        for place in MOUNT_POINTS {
            if !root.exists(place)? {
                root.make_directory(place, 0o755)?;
            }
        }
        let name = &program.path;
        reporter.note(Phase::Configure, format!("running the image's own installer {name}, as it was built for"));
        let mut say = |line: String| reporter.note(Phase::Configure, format!("{name}: {line}"));
        run(program, at, limit, &password, &mut say)
            .with_context(|| format!("running the image's installer {name}"))?;
        let boot = match root.text(BOOT_INFO)? {
            Some(text) => Some(
                BootInfo::parse(&text, self.bootloader_id.as_deref())
                    .map_err(anyhow::Error::msg)
                    .with_context(|| format!("understanding {BOOT_INFO}, which {name} left"))?,
            ),
            None if self.whole => {
                anyhow::bail!("the image's installer {name} left no {BOOT_INFO}, so nothing says what to boot")
            }
            None => None,
        };
        if let Some(boot) = &boot {
            reporter.note(Phase::Configure, format!("{name} wants {} booted with {:?}", boot.kernel, boot.cmdline));
        }
        Ok(HandedOver { boot })
    }
}

impl BootInfo {
    /// Total: whatever an image left there.
    fn parse(text: &str, bootloader_id: Option<&str>) -> Result<Self, String> {
        let found = yaml::scalars(text).map_err(|e| e.to_string())?;
        let value = |key: &str| found.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let path = |key: &str| match value(key) {
            None => Ok(None),
            Some(path) if is_plain_path(path) => Ok(Some(path.to_owned())),
            Some(path) => Err(format!("its {key} {path:?} is not a plain absolute path")),
        };
        let cmdline = value("cmdline").unwrap_or_default().trim();
        // COMMAND_LINE_SIZE of x86, with its NUL.
        if cmdline.len() >= 2048 || cmdline.contains(char::is_control) {
            return Err("its cmdline isn't one line of 2047 bytes at most".into());
        }
        let id = bootloader_id.or(value("bootloader_id"));
        if id.is_some_and(|id| id.len() > 128 || id.contains(char::is_control) || id.contains(['/', '\\'])) {
            return Err("its bootloader_id isn't the name of a directory".into());
        }
        Ok(Self {
            kernel: path("kernel")?.ok_or("it names no kernel")?,
            initrd: path("initrd")?,
            cmdline: cmdline.to_owned(),
            bootloader_id: id.map(str::to_owned),
        })
    }
}

impl BootInfo {
    /// What starts the system that the installer made. The firmware's programs are those that the image was published with.
    pub(crate) fn files(&self, root: &Root, published: &BootFiles) -> anyhow::Result<BootFiles> {
        let made =
            |path: &str| bootloader::made(root, path).with_context(|| format!("looking for what {BOOT_INFO} names"));
        let (kernel, initrd) = (made(&self.kernel)?, self.initrd.as_deref().map(made).transpose()?);
        // Which root it is, and how it's mounted, is said for every system alike.
        let ours = |word: &&str| {
            !matches!(*word, "ro" | "rw")
                && !["root=", "initrd=", "BOOT_IMAGE="].iter().any(|key| word.starts_with(key))
        };
        let cmdline = self.cmdline.split_whitespace().filter(ours).collect::<Vec<_>>().join(" ");
        Ok(BootFiles { kernel, initrd, cmdline, ..published.clone() })
    }
}

/// A leftover of some build that happens to have the name isn't an installer.
fn runs(root: &Root, path: &str) -> anyhow::Result<bool> {
    let Some(file) = root.file(path)? else { return Ok(false) };
    let metadata = file.metadata().with_context(|| format!("examining {path} of the image"))?;
    Ok(metadata.mode() & 0o111 != 0)
}

fn is_plain_path(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'+' | b'~');
    path.len() <= 4096 && path.starts_with('/') && !path.split('/').any(|part| part == "..") && path.bytes().all(plain)
}

/// For the account `metal`, which the contract wants to have one. Nobody is told, so that nobody can use it.
fn password() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("getting random bytes")?;
    Ok(hex::encode(bytes))
}

fn files(order: &Install, facts: &Facts<'_>, password: &str, now: &str) -> Vec<(&'static str, String)> {
    let mut files = vec![
        (INSTALL_YAML, yaml::text(&install(order, facts, password, now))),
        (MACHINE_DETAILS, yaml::text(&details(order, facts, password))),
        (MACHINE_ALLOCATION, yaml::text(&allocation(order))),
    ];
    files.extend(order.system.user_data.as_ref().map(|data| (USER_DATA, data.text().to_owned())));
    files
}

/// What the kernel is told to talk to, without `console=`.
fn console(order: &Install) -> String {
    let mut words = order.cmdline.split_whitespace().filter_map(|word| word.strip_prefix("console="));
    words.rfind(|console| !console.starts_with("tty0")).unwrap_or("ttyS0").to_owned()
}

fn nics(facts: &Facts<'_>) -> Vec<Value> {
    let nic = |port: &Port| json!({ "mac": port.mac, "name": port.name, "identifier": port.mac, "neighbors": [] });
    facts.ports.iter().map(nic).collect()
}

/// What installers before os-installer read, and other programs of metal-stack's images still do.
fn install(order: &Install, facts: &Facts<'_>, password: &str, now: &str) -> Value {
    let system = &order.system;
    let metal = system.metal_stack.clone().unwrap_or_default();
    let mut primary = true;
    let networks: Vec<Value> =
        metal.networks.iter().map(|network| old_network(network, &metal.project, &mut primary)).collect();
    let dns: Vec<Value> = system.dns.iter().map(|server| json!({ "ip": server })).collect();
    let ntp: Vec<Value> = system.ntp.iter().map(|server| json!({ "address": server })).collect();
    json!({
        "hostname": system.hostname,
        "networks": networks,
        "machineuuid": order.phone_home.machine,
        "sshpublickey": keys(order).join("\n"),
        "password": password,
        "console": console(order),
        "timestamp": now,
        "nics": nics(facts),
        "vpn": null,
        "role": role(metal.role),
        "raidenabled": facts.raid,
        "root_uuid": facts.root_uuid,
        "firewall_rules": null,
        "dns_servers": dns,
        "ntp_servers": ntp,
    })
}

fn keys(order: &Install) -> Vec<String> {
    order.system.ssh_keys.iter().map(|key| key.trim().to_owned()).collect()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Machine => "machine",
        Role::Firewall => "firewall",
    }
}

/// The first network of a project is what a machine is mainly in; that is told by names of their own.
fn old_network(network: &MetalNetwork, project: &str, primary: &mut bool) -> Value {
    let MetalNetwork { kind, .. } = network;
    let private = matches!(kind, NetworkKind::Child | NetworkKind::ChildShared);
    let first = private && std::mem::take(primary);
    let old = match (kind, first) {
        (NetworkKind::External, _) => "external",
        (NetworkKind::Underlay, _) => "underlay",
        (NetworkKind::ChildShared, true) => "privateprimaryshared",
        (NetworkKind::ChildShared, false) => "privatesecondaryshared",
        (NetworkKind::Child, _) => "privateprimaryunshared",
    };
    json!({
        "asn": network.asn,
        "destinationprefixes": network.destination_prefixes,
        "ips": network.ips,
        "nat": network.nat,
        "nattypev2": if network.nat { "ipv4-masq" } else { "none" },
        "networkid": network.network,
        "networktype": old,
        "networktypev2": kind_name(*kind),
        "prefixes": network.prefixes,
        "private": private,
        "projectid": network.project.as_deref().unwrap_or(if private { project } else { "" }),
        "underlay": *kind == NetworkKind::Underlay,
        "vrf": network.vrf,
    })
}

fn kind_name(kind: NetworkKind) -> &'static str {
    match kind {
        NetworkKind::Child => "child",
        NetworkKind::ChildShared => "child-shared",
        NetworkKind::External => "external",
        NetworkKind::Underlay => "underlay",
    }
}

/// What os-installer is told of the machine.
fn details(order: &Install, facts: &Facts<'_>, password: &str) -> Value {
    json!({
        "id": order.phone_home.machine,
        "nics": nics(facts),
        "password": password,
        "console": console(order),
        "raidenabled": facts.raid,
        "root_uuid": facts.root_uuid,
    })
}

/// `metalstack.api.v2.MachineAllocation`, with the names that protobuf has in JSON.
fn allocation(order: &Install) -> Value {
    let system = &order.system;
    let metal = system.metal_stack.clone().unwrap_or_default();
    let upper = |prefix: &str, name: &str| format!("{prefix}_{}", name.to_ascii_uppercase().replace('-', "_"));
    let networks: Vec<Value> = metal
        .networks
        .iter()
        .map(|network| {
            json!({
                "network": network.network,
                "prefixes": network.prefixes,
                "destinationPrefixes": network.destination_prefixes,
                "ips": network.ips,
                "networkType": upper("NETWORK_TYPE", kind_name(network.kind)),
                "natType": if network.nat { "NAT_TYPE_IPV4_MASQUERADE" } else { "NAT_TYPE_NONE" },
                "vrf": network.vrf,
                "asn": network.asn,
                "project": network.project.as_ref().unwrap_or(&metal.project),
            })
        })
        .collect();
    let (image, version) = order.image.split_once('/').unwrap_or((&order.image, ""));
    json!({
        "uuid": order.phone_home.machine,
        "name": system.hostname,
        "project": metal.project,
        "image": { "id": format!("{image}-{version}"), "url": order.stores.first().map(|store| format!("{store}/{}", order.image)).unwrap_or_default() },
        "networks": networks,
        "hostname": system.hostname,
        "sshPublicKeys": keys(order),
        "userdata": system.user_data.as_ref().map(UserData::text).unwrap_or_default(),
        "allocationType": upper("MACHINE_ALLOCATION_TYPE", role(metal.role)),
        "dnsServers": system.dns.iter().map(|server| json!({ "ip": server })).collect::<Vec<_>>(),
        "ntpServers": system.ntp.iter().map(|server| json!({ "address": server })).collect::<Vec<_>>(),
    })
}

/// Runs it to its end, or to the end of its time.
fn run(program: &Program, at: &Path, limit: Duration, secret: &str, say: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    /// Between two looks at whether it has ended.
    const LOOK: Duration = Duration::from_millis(50);
    let began = Instant::now();
    let (mut child, output) = confine::spawn(at, Path::new(&program.workdir), Path::new(&program.path))
        .context("starting it in the installed system")?;
    let (lines, told) = mpsc::sync_channel(64);
    thread::spawn(move || read_lines(output, &mut |line| lines.send(line).is_ok()));
    let mut heard = Heard::default();
    let mut killed = None;
    let status = loop {
        match told.recv_timeout(LOOK) {
            Ok(line) => heard.line(&line.replace(secret, "(not shown)"), say),
            // What it wrote to is closed; it may run on all the same.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = child.try_wait().context("waiting for it")? {
            break status;
        }
        match killed {
            None if began.elapsed() >= limit => {
                child.kill().context("stopping it")?;
                killed = Some(Instant::now());
            }
            Some(at) if at.elapsed() >= TO_DIE => {
                anyhow::bail!("it was killed after {} s and doesn't go away: it waits for a device", limit.as_secs());
            }
            _ => {}
        }
    };
    // All that could write is dead, so this ends.
    while let Ok(line) = told.recv_timeout(TO_DIE) {
        heard.line(&line.replace(secret, "(not shown)"), say);
    }
    heard.rest(say);
    anyhow::ensure!(
        killed.is_none(),
        "it didn't come to an end in {} s and was killed, with all that it had started; its last words: {}",
        limit.as_secs(),
        heard.last_words()
    );
    anyhow::ensure!(status.success(), "it failed ({status}); its last words: {}", heard.last_words());
    Ok(())
}

/// What was said, as much of it as is worth keeping.
#[derive(Debug, Default)]
struct Heard {
    lines: usize,
    last: VecDeque<String>,
}

impl Heard {
    fn line(&mut self, line: &str, say: &mut dyn FnMut(String)) {
        if line.trim().is_empty() {
            return;
        }
        self.lines += 1;
        if self.lines <= MAX_LINES {
            say(line.to_owned());
        }
        self.last.push_back(line.to_owned());
        if self.last.len() > LAST_LINES {
            self.last.pop_front();
        }
    }

    fn rest(&self, say: &mut dyn FnMut(String)) {
        let more = self.lines.saturating_sub(MAX_LINES);
        if more > 0 {
            let last: Vec<&str> = self.last.iter().map(String::as_str).collect();
            say(format!("({more} more lines, of which the last are) {}", last.join(" | ")));
        }
    }

    fn last_words(&self) -> String {
        if self.last.is_empty() {
            return "none".into();
        }
        self.last.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }
}

/// Lines of any length, of which the beginning is kept; until the end, or until nobody listens.
fn read_lines(mut output: PipeReader, tell: &mut dyn FnMut(String) -> bool) {
    let mut buffer = [0; 4096];
    let mut line: Vec<u8> = Vec::new();
    loop {
        let read = match output.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for byte in buffer.iter().take(read) {
            if *byte == b'\n' {
                if !tell(readable(&line)) {
                    return;
                }
                line.clear();
            } else if line.len() < MAX_LINE_BYTES {
                line.push(*byte);
            }
        }
    }
    if !line.is_empty() {
        tell(readable(&line));
    }
}

/// Without what would move a terminal's cursor.
fn readable(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What is believed of what an installer left.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    if let Ok(boot) = BootInfo::parse(text, None) {
        let paths = [Some(&boot.kernel), boot.initrd.as_ref()];
        assert!(
            paths.into_iter().flatten().all(|path| drophammer_protocol::archive::inside(Path::new(path)).is_ok()),
            "{boot:?}"
        );
        assert!(boot.cmdline.len() < 2048 && boot.cmdline.lines().count() <= 1, "{boot:?}");
    }
}

#[cfg(test)]
mod tests;
