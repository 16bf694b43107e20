//! What makes an image this machine's system: its name, its people, its network, its mounts, and how it says that it runs.
//!
//! The texts are pure functions; every path is resolved inside the installed system. What an order asks for and the image
//! has no way to do is an error in words, never left out silently.

mod accounts;
mod clock;
mod mounts;
mod network;
mod user_data;

use std::fs::File;

use anyhow::Context;
use drophammer_protocol::id::Mac;
use drophammer_protocol::order::Install;
use drophammer_protocol::system::{Console, System};
use drophammer_protocol::ticket::{INSTALLED_AGENT_PATH, PHONE_HOME_PATH};

use super::kept::Kept;
use super::layout::Plan;
use super::root::Root;
use super::systemd;
use super::uplink::Uplink;
use crate::phone_home::{UNIT as PHONE_HOME_UNIT, UNIT_PATH as PHONE_HOME_UNIT_PATH};

#[cfg(fuzzing)]
pub(crate) use self::accounts::fuzz;

const HOST_KEYS_UNIT: &str = "drophammer-ssh-host-keys.service";

/// Whether the order asks for a system that this machine can be; `ports` are those that it has. Called before anything
/// is touched.
pub(crate) fn check(order: &Install, ports: &[Mac]) -> Result<(), String> {
    order.system.check().map_err(|faults| format!("the order's system can't be written down: {faults}"))?;
    let missing = order.system.network.macs().into_iter().find(|mac| !ports.contains(mac));
    match missing {
        None => Ok(()),
        Some(mac) => {
            let have: Vec<String> = ports.iter().map(ToString::to_string).collect();
            Err(format!("the order's network has a port {mac}, which this machine hasn't; it has {}", have.join(", ")))
        }
    }
}

/// Who makes the image a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Everything is done here.
    Us,
    /// The image's own installer has done its part, which is the name, the network and the people that it's told of.
    ItsInstaller,
}

/// Writes all of it. Returns what is worth telling the operator.
pub(crate) fn configure(
    root: &Root,
    order: &Install,
    plan: &Plan,
    kept: &Kept,
    uplink: &Uplink,
    agent: &mut File,
    by: By,
) -> anyhow::Result<Vec<String>> {
    let systemd = systemd::present(root)?;
    let system = &order.system;
    let mut notes = Vec::new();
    mounts::configure(root, plan, kept, order.disk_key.as_ref())?;
    notes.extend(host_keys(root, systemd)?);
    match by {
        By::Us => {
            identity(root, &system.hostname)?;
            let network = network::configure(root, system, uplink, systemd)?;
            notes.extend(network.notes);
            clock::configure(root, system, systemd)?;
            let instance = instance(order);
            let data = system.user_data.as_ref();
            user_data::configure(root, data, network.cloud_init.as_deref(), &instance, &system.hostname)?;
            accounts::configure(root, system)?;
        }
        By::ItsInstaller => {
            anyhow::ensure!(
                system.network.is_empty(),
                "the image's own installer configures its network, from `metal_stack.networks`; leave `network` out"
            );
            clock::configure(root, &System { ntp: Vec::new(), ..system.clone() }, systemd)?;
            accounts::users(root, system)?;
        }
    }
    notes.extend(consoles(root, &system.consoles, systemd)?);
    notes.extend(labels(root)?);
    phone_home(root, order, agent, systemd)?;
    Ok(notes)
}

/// The same for the same order to the same machine, and another for another.
fn instance(order: &Install) -> String {
    let image: String = order.manifest_sha256.chars().take(12).collect();
    format!("drophammer-{}-{image}", order.phone_home.machine)
}

/// A login prompt on each; systemd makes one by itself only where the kernel has its console.
fn consoles(root: &Root, consoles: &[Console], systemd: bool) -> anyhow::Result<Option<String>> {
    if consoles.is_empty() {
        return Ok(None);
    }
    if !systemd || !systemd::has(root, "serial-getty@.service")? {
        let ports: Vec<&str> = consoles.iter().map(|console| console.port.as_str()).collect();
        return Ok(Some(format!(
            "the kernel talks to {}; whether anybody can log in there is the image's own affair, for it has no systemd",
            ports.join(" and ")
        )));
    }
    for console in consoles {
        systemd::want_instance(root, "getty.target", "serial-getty", &console.port)?;
    }
    Ok(None)
}

/// Files that are written here have no SELinux labels. A system that enforces them is told to label itself once.
fn labels(root: &Root) -> anyhow::Result<Option<String>> {
    let config = root.text("/etc/selinux/config")?.unwrap_or_default();
    if !labels_are_enforced(&config) {
        return Ok(None);
    }
    root.put_text("/.autorelabel", 0o644, "")?;
    Ok(Some("the image enforces SELinux: it labels its files at its first boot, and then boots once more".into()))
}

fn labels_are_enforced(config: &str) -> bool {
    let last = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUX=")).next_back();
    last.is_some_and(|mode| mode.trim() == "enforcing")
}

fn identity(root: &Root, hostname: &str) -> anyhow::Result<()> {
    root.put_text("/etc/hostname", 0o644, &format!("{hostname}\n"))?;
    let hosts = root.text("/etc/hosts")?.unwrap_or_default();
    root.put_text("/etc/hosts", 0o644, &hosts_text(&hosts, hostname))?;
    // machine-id(5): an empty file is filled with an id of its own at the first boot. Two machines with the id of one
    // image would share DHCP leases and journals.
    if root.exists("/etc/machine-id")? || systemd::present(root)? {
        root.put_text("/etc/machine-id", 0o444, "")?;
    }
    if root.link_target("/var/lib/dbus/machine-id")?.is_none() && root.exists("/var/lib/dbus/machine-id")? {
        root.link("/var/lib/dbus/machine-id", "/etc/machine-id")?;
    }
    // A seed that other machines know, too, is worse than none.
    root.remove("/var/lib/systemd/random-seed")
}

/// Host keys that came with the image are known to everybody who has the image. They are removed where new ones will
/// be made: by a unit of ours, since images differ in whether they have one. Without any in the image it is the image's
/// own affair.
fn host_keys(root: &Root, systemd: bool) -> anyhow::Result<Option<String>> {
    let names = root.names("/etc/ssh")?;
    let found: Vec<_> = names.iter().filter_map(|n| n.to_str()).filter(|n| n.starts_with("ssh_host_")).collect();
    if found.is_empty() {
        return Ok(None);
    }
    if !systemd || !root.exists("/usr/bin/ssh-keygen")? {
        return Ok(Some(
            "the image brings SSH host keys, which all its machines share, and no way to make others: they were left"
                .into(),
        ));
    }
    for name in found {
        root.remove(&format!("/etc/ssh/{name}"))?;
    }
    root.put_text(&format!("/etc/systemd/system/{HOST_KEYS_UNIT}"), 0o644, HOST_KEYS_TEXT)?;
    systemd::enable(root, HOST_KEYS_UNIT)?;
    Ok(None)
}

fn phone_home(root: &Root, order: &Install, agent: &mut File, systemd: bool) -> anyhow::Result<()> {
    root.put(INSTALLED_AGENT_PATH, 0o755, agent)?;
    let ticket = serde_json::to_string(&order.phone_home).context("writing the phone-home ticket")?;
    root.put_text(PHONE_HOME_PATH, 0o600, &ticket)?;
    if systemd {
        root.put_text(PHONE_HOME_UNIT_PATH, 0o644, &phone_home_text())?;
        systemd::enable(root, PHONE_HOME_UNIT)?;
    }
    Ok(())
}

/// Debian's convention: the machine's own name is at 127.0.1.1, so that it resolves without a network.
fn hosts_text(existing: &str, hostname: &str) -> String {
    let mut lines: Vec<String> = existing
        .lines()
        .filter(|line| line.split_whitespace().next() != Some("127.0.1.1"))
        .map(str::to_owned)
        .collect();
    let has = |address: &str, lines: &[String]| lines.iter().any(|l| l.split_whitespace().next() == Some(address));
    if !has("127.0.0.1", &lines) {
        lines.insert(0, "127.0.0.1 localhost".into());
    }
    if !has("::1", &lines) {
        lines.push("::1 localhost ip6-localhost ip6-loopback".into());
    }
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname { hostname.to_owned() } else { format!("{hostname} {short}") };
    lines.push(format!("127.0.1.1 {names}"));
    lines.join("\n") + "\n"
}

fn phone_home_text() -> String {
    format!(
        "[Unit]\n\
         Description=Tell the server that installed this system that it runs\n\
         ConditionPathExists={PHONE_HOME_PATH}\n\
         Wants=network-online.target\n\
         After=network-online.target ssh.service sshd.service\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={INSTALLED_AGENT_PATH} phone-home\n\
         Restart=on-failure\n\
         RestartSec=30\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

const HOST_KEYS_TEXT: &str = "\
[Unit]
Description=Make this machine's SSH host keys
Before=ssh.service sshd.service ssh.socket sshd.socket
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
RequiredBy=ssh.service sshd.service
";

#[cfg(test)]
mod tests;
