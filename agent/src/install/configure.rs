//! What makes an image this machine's system: its name, its keys, its network, its mounts, and how it says that it runs.
//!
//! The texts are pure functions; every path is resolved inside the installed system.

use std::fs::File;

use anyhow::Context;
use drophammer_protocol::id::Mac;
use drophammer_protocol::order::Install;
use drophammer_protocol::ticket::{INSTALLED_AGENT_PATH, PHONE_HOME_PATH};

use super::layout::Layout;
use super::root::Root;
use super::systemd;
use super::uplink::Uplink;

const PHONE_HOME_UNIT: &str = "drophammer-phone-home.service";
const HOST_KEYS_UNIT: &str = "drophammer-ssh-host-keys.service";

/// Whether the order asks for a configuration that can be written. Called before anything is touched.
pub(crate) fn check(order: &Install) -> Result<(), String> {
    let name = &order.hostname;
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    // RFC 1123 §2.1; Linux keeps no more than 64 bytes.
    if name.len() > 64 || !name.split('.').all(label) {
        return Err(format!("{name:?} is not a host name: letters, digits and hyphens, 64 at most"));
    }
    for key in &order.ssh_keys {
        let plain = !key.chars().any(char::is_control) && key.split_whitespace().count() >= 2;
        if !plain {
            return Err(format!("{key:?} is not an SSH public key: one line with kind, key and comment"));
        }
    }
    Ok(())
}

/// Writes all of it. Returns what is worth telling the operator.
pub(crate) fn configure(
    root: &Root,
    order: &Install,
    layout: &Layout,
    uplink: &Uplink,
    agent: &mut File,
) -> anyhow::Result<Vec<String>> {
    let systemd = systemd::present(root)?;
    let mut notes = Vec::new();
    identity(root, &order.hostname)?;
    mounts(root, layout)?;
    keys(root, &order.ssh_keys)?;
    notes.extend(host_keys(root, systemd)?);
    notes.extend(network(root, uplink, systemd)?);
    phone_home(root, order, agent, systemd)?;
    Ok(notes)
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

fn mounts(root: &Root, layout: &Layout) -> anyhow::Result<()> {
    let fstab = root.text("/etc/fstab")?.unwrap_or_default();
    root.put_text("/etc/fstab", 0o644, &fstab_text(&fstab, layout))?;
    root.make_directory("/boot/efi", 0o700)
}

/// The image's own authorized keys, if it brought any, were its builder's, not the tenant's.
fn keys(root: &Root, keys: &[String]) -> anyhow::Result<()> {
    root.make_directory("/root/.ssh", 0o700)?;
    let lines: String = keys.iter().map(|key| format!("{}\n", key.trim())).collect();
    root.put_text("/root/.ssh/authorized_keys", 0o600, &lines)
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

fn network(root: &Root, uplink: &Uplink, systemd: bool) -> anyhow::Result<Option<String>> {
    const RESOLV_CONF: &str = "/etc/resolv.conf";
    if systemd && systemd::has(root, "systemd-resolved.service")? {
        systemd::enable(root, "systemd-resolved.service")?;
        root.link(RESOLV_CONF, "../run/systemd/resolve/stub-resolv.conf")?;
    } else if !uplink.nameservers.is_empty() {
        // What the image has is the build host's. A DHCP client of the system replaces it in turn.
        let lines: String = uplink.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
        root.put_text(RESOLV_CONF, 0o644, &lines)?;
    }
    if !systemd {
        return Ok(None);
    }
    if !systemd::has(root, "systemd-networkd.service")? {
        return Ok(Some("the image has no systemd-networkd: its network is what it was built with".into()));
    }
    root.put_text("/etc/systemd/network/10-drophammer.network", 0o644, &network_text(uplink.mac))?;
    systemd::enable(root, "systemd-networkd.service")?;
    Ok(None)
}

fn phone_home(root: &Root, order: &Install, agent: &mut File, systemd: bool) -> anyhow::Result<()> {
    root.put(INSTALLED_AGENT_PATH, 0o755, agent)?;
    let ticket = serde_json::to_string(&order.phone_home).context("writing the phone-home ticket")?;
    root.put_text(PHONE_HOME_PATH, 0o600, &ticket)?;
    if systemd {
        root.put_text(&format!("/etc/systemd/system/{PHONE_HOME_UNIT}"), 0o644, &phone_home_text())?;
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

/// Keeps what the image mounts from nowhere (tmpfs and the like); the devices of the machine it was built on aren't here.
fn fstab_text(existing: &str, layout: &Layout) -> String {
    let mut text = String::from("# <file system> <mount point> <type> <options> <dump> <pass>\n");
    text.push_str(&format!("UUID={} / ext4 errors=remount-ro 0 1\n", layout.root_uuid));
    // nofail: a damaged boot partition is no reason for a server to stop in its emergency shell.
    text.push_str(&format!("UUID={} /boot/efi vfat umask=0077,nofail 0 2\n", layout.esp_uuid()));
    for line in existing.lines() {
        let mut fields = line.split_whitespace();
        let (Some(source), Some(place)) = (fields.next(), fields.next()) else { continue };
        let comment = source.starts_with('#');
        let device = source.starts_with('/') || source.contains('=');
        if !comment && !device && !matches!(place, "/" | "/boot/efi") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn network_text(mac: Option<Mac>) -> String {
    let port = mac.map(|mac| format!("MACAddress={mac}\n")).unwrap_or_default();
    // `Type` and `Kind` leave out what is stacked on the port and inherits its address. By its MAC the machine gets the
    // lease that it had while it was installed.
    format!(
        "# Written when this system was installed.\n[Match]\n{port}Type=ether\nKind=!*\n\n[Network]\nDHCP=yes\n\n\
         [DHCPv4]\nClientIdentifier=mac\n"
    )
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
         RestartSec=5\n\
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
