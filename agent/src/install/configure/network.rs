//! Who configures the network of an installed system, and what it's told.
//!
//! Systems differ in what they do that with. What the image has is looked for, in this order: what is sure to be in
//! charge, then what could be.

mod ifupdown;
mod keyfile;
mod netplan;
mod networkd;

use std::net::IpAddr;

use anyhow::Context;
use drophammer_protocol::system::System;
use drophammer_protocol::system::network::{Ip, Network, Port};
use drophammer_protocol::words::count;

use super::super::root::Root;
use super::super::systemd;
use super::super::uplink::Uplink;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVED_DROP_IN: &str = "/etc/systemd/resolved.conf.d/50-drophammer.conf";
const DHCLIENT_CONF: &str = "/etc/dhcp/dhclient.conf";

/// The first line of everything that is written here.
const HEAD: &str = "# Written when this system was installed.\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Configurer {
    Netplan,
    Networkd,
    NetworkManager,
    Ifupdown,
    /// Whatever it is, cloud-init knows it: it gets the configuration with its other data.
    CloudInit,
}

impl Configurer {
    fn name(self) -> &'static str {
        match self {
            Self::Netplan => "netplan",
            Self::Networkd => "systemd-networkd",
            Self::NetworkManager => "NetworkManager",
            Self::Ifupdown => "ifupdown",
            Self::CloudInit => "cloud-init",
        }
    }
}

/// What an image has of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Absent,
    /// It's there, and nothing starts it.
    Idle,
    Enabled,
}

/// What an image has to configure a network with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    netplan: bool,
    networkd: Presence,
    network_manager: Presence,
    ifupdown: Presence,
    cloud_init: bool,
}

/// Everything that is to be written, whoever it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted<'a> {
    network: Network,
    dns: &'a [IpAddr],
    search: &'a [String],
    /// Time servers of DHCP don't count.
    own_ntp: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) notes: Vec<String>,
    /// For cloud-init, if that is who configures the network.
    pub(super) cloud_init: Option<String>,
}

pub(super) fn configure(root: &Root, system: &System, uplink: &Uplink, systemd: bool) -> anyhow::Result<Written> {
    let resolver = resolver(root, system, uplink, systemd)?;
    let found = found(root, systemd)?;
    let asked = !system.network.is_empty();
    let names = !system.network.bonds.is_empty() || !system.network.vlans.is_empty();
    let wanted = Wanted {
        network: if asked { system.network.clone() } else { by_default(uplink) },
        dns: &system.dns,
        search: &system.search,
        own_ntp: !system.ntp.is_empty(),
    };
    let configurer = match choose(found, names) {
        Some(configurer) => configurer,
        None if asked => anyhow::bail!(
            "the image has nothing that configures {} (looked for: netplan, systemd-networkd, NetworkManager, ifupdown, \
             cloud-init); use another image, or leave `network` out",
            if names { "bonds and VLANs" } else { "a network" }
        ),
        None => {
            let note = "the image has no systemd-networkd, or anything else that is known: its network is what it was \
                        built with";
            let notes = if systemd { vec![note.to_owned()] } else { Vec::new() };
            return Ok(Written { notes, cloud_init: None });
        }
    };
    if !asked && configurer != Configurer::Networkd && (uplink.mac.is_none() || configurer == Configurer::CloudInit) {
        let note = format!("{} configures the network as the image has it", configurer.name());
        return Ok(Written { notes: vec![note], cloud_init: None });
    }
    let mut written = Written::default();
    match configurer {
        Configurer::Networkd => {
            if asked || uplink.mac.is_some() {
                for (name, text) in networkd::files(&wanted) {
                    root.put_text(&format!("/etc/systemd/network/{name}"), 0o644, &text)?;
                }
            } else {
                root.put_text("/etc/systemd/network/10-drophammer.network", 0o644, &networkd::any_port(&wanted))?;
            }
            systemd::enable(root, "systemd-networkd.service")?;
            if found.ifupdown == Presence::Enabled {
                root.put_text(ifupdown::PATH, 0o644, ifupdown::LOOPBACK)?;
                written.notes.push("the image's own /etc/network/interfaces made way".into());
            }
        }
        Configurer::Netplan => {
            if asked {
                // All of these count at once, and they are of the image's builder.
                let others = root.names("/etc/netplan")?;
                for name in others.iter().filter_map(|name| name.to_str()).filter(|name| name.ends_with(".yaml")) {
                    root.remove(&format!("/etc/netplan/{name}"))?;
                    written.notes.push(format!("the image's own /etc/netplan/{name} made way"));
                }
            }
            let renderer = if found.networkd == Presence::Absent { "NetworkManager" } else { "networkd" };
            root.put_text("/etc/netplan/10-drophammer.yaml", 0o600, &netplan::text(&wanted, Some(renderer)))?;
        }
        Configurer::NetworkManager => {
            for (name, text) in keyfile::files(&wanted)? {
                root.put_text(&format!("/etc/NetworkManager/system-connections/{name}"), 0o600, &text)?;
            }
            systemd::enable(root, "NetworkManager.service")?;
        }
        Configurer::Ifupdown => {
            root.put_text(ifupdown::PATH, 0o644, &ifupdown::text(&wanted))?;
            systemd::enable(root, "networking.service")?;
            if !resolver && wanted.network.ports.iter().any(|port| port.ip.is_dhcp()) {
                let existing = root.text(DHCLIENT_CONF)?.unwrap_or_default();
                if let Some(text) = ifupdown::dhclient(&existing, &wanted) {
                    root.put_text(DHCLIENT_CONF, 0o644, &text)?;
                }
            }
        }
        Configurer::CloudInit => written.cloud_init = Some(netplan::text(&wanted, None)),
    }
    written.notes.insert(0, format!("{} configures the network: {}", configurer.name(), in_words(&wanted.network)));
    Ok(written)
}

/// The system's own resolver, or a file. Returns whether it is the former.
fn resolver(root: &Root, system: &System, uplink: &Uplink, systemd: bool) -> anyhow::Result<bool> {
    if systemd && systemd::has(root, "systemd-resolved.service")? {
        systemd::enable(root, "systemd-resolved.service")?;
        root.link(RESOLV_CONF, "../run/systemd/resolve/stub-resolv.conf")?;
        if let Some(text) = resolved(&system.dns, &system.search) {
            root.put_text(RESOLVED_DROP_IN, 0o644, &text)?;
        }
        return Ok(true);
    }
    let servers = if system.dns.is_empty() { &uplink.nameservers } else { &system.dns };
    if !servers.is_empty() || !system.search.is_empty() {
        // What the image has is the build host's. A DHCP client of the system replaces it in turn.
        root.put_text(RESOLV_CONF, 0o644, &resolv_conf(servers, &system.search))?;
    }
    Ok(false)
}

fn resolved(dns: &[IpAddr], search: &[String]) -> Option<String> {
    let mut text = format!("{HEAD}[Resolve]\n");
    if !dns.is_empty() {
        text.push_str(&format!("DNS={}\n", words(dns)));
    }
    if !search.is_empty() {
        text.push_str(&format!("Domains={}\n", search.join(" ")));
    }
    (!dns.is_empty() || !search.is_empty()).then_some(text)
}

fn resolv_conf(servers: &[IpAddr], search: &[String]) -> String {
    let search = if search.is_empty() { String::new() } else { format!("search {}\n", search.join(" ")) };
    servers.iter().fold(search, |text, server| text + &format!("nameserver {server}\n"))
}

fn words(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What the port had while the machine was installed.
fn by_default(uplink: &Uplink) -> Network {
    let ip = Ip { dhcp4: true, dhcp6: true, ..Ip::default() };
    Network { ports: uplink.mac.map(|mac| Port { mac, mtu: None, ip }).into_iter().collect(), ..Network::default() }
}

fn found(root: &Root, systemd: bool) -> anyhow::Result<Found> {
    let any = |paths: &[&str]| paths.iter().map(|path| root.exists(path)).collect::<anyhow::Result<Vec<_>>>();
    let any = |paths: &[&str]| Ok::<_, anyhow::Error>(any(paths)?.contains(&true));
    let unit = |name: &str| -> anyhow::Result<Presence> {
        if !systemd || !systemd::has(root, name)? {
            return Ok(Presence::Absent);
        }
        Ok(if systemd::enabled(root, name)? { Presence::Enabled } else { Presence::Idle })
    };
    let ifupdown = match any(&["/usr/sbin/ifup", "/sbin/ifup"])? && root.exists("/etc/network")? {
        false => Presence::Absent,
        // Without systemd it's one of the things that are started.
        true if !systemd => Presence::Enabled,
        true => unit("networking.service")?,
    };
    let netplan = systemd && any(&["/usr/sbin/netplan", "/usr/bin/netplan"])?;
    Ok(Found {
        netplan,
        networkd: unit("systemd-networkd.service")?,
        network_manager: unit("NetworkManager.service")?,
        // busybox has an ifup as well, of another kind.
        ifupdown: if root.link_target("/sbin/ifup")?.is_some_and(|to| to.to_string_lossy().contains("busybox")) {
            Presence::Absent
        } else {
            ifupdown
        },
        cloud_init: super::user_data::has_cloud_init(root).context("looking for cloud-init")?,
    })
}

/// `names`: there are interfaces that are known by their names, which ifupdown would need for their ports as well.
fn choose(found: Found, names: bool) -> Option<Configurer> {
    let Found { netplan, networkd, network_manager, ifupdown, cloud_init } = found;
    let ifupdown = if names { Presence::Absent } else { ifupdown };
    let all = [
        (networkd, Configurer::Networkd),
        (network_manager, Configurer::NetworkManager),
        (ifupdown, Configurer::Ifupdown),
    ];
    let first = |wanted: Presence| all.iter().find(|(there, _)| *there == wanted).map(|(_, configurer)| *configurer);
    // It configures the others.
    let renders = networkd != Presence::Absent || network_manager != Presence::Absent;
    (netplan && renders)
        .then_some(Configurer::Netplan)
        .or_else(|| first(Presence::Enabled))
        .or_else(|| first(Presence::Idle))
        .or_else(|| cloud_init.then_some(Configurer::CloudInit))
}

fn in_words(network: &Network) -> String {
    let mut parts = Vec::new();
    for port in network.all_ports() {
        parts.push(format!("{} {}", port.mac, ip_in_words(&port.ip)));
    }
    for bond in &network.bonds {
        let members = count(bond.members.len(), "port");
        parts.push(format!("{} of {members} ({}) {}", bond.name, bond.mode.name(), ip_in_words(&bond.ip)));
    }
    for vlan in &network.vlans {
        parts.push(format!("{} {}", vlan.name(), ip_in_words(&vlan.ip)));
    }
    if parts.is_empty() { "every port by DHCP".into() } else { parts.join(", ") }
}

fn ip_in_words(ip: &Ip) -> String {
    let mut parts: Vec<String> = ip.addresses.iter().map(ToString::to_string).collect();
    if ip.is_dhcp() {
        parts.insert(0, "by DHCP".into());
    }
    if parts.is_empty() { "without an address".into() } else { parts.join(" and ") }
}

#[cfg(test)]
mod tests;
