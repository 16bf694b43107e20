//! NetworkManager's connections, as nm-settings-keyfile(5) has them.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::Context;
use drophammer_protocol::id::Mac;
use drophammer_protocol::system::network::{Bond, Ip, Under};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{HEAD, Wanted};

/// Name and text of every connection.
pub(super) fn files(wanted: &Wanted<'_>) -> anyhow::Result<Vec<(String, String)>> {
    let network = &wanted.network;
    let mut files = Vec::new();
    for port in network.all_ports() {
        let text = connection(&port_id(port.mac), "ethernet", "") + &ethernet("mac-address", Some(port.mac), port.mtu);
        files.push((port_id(port.mac), text + &both(&port.ip, wanted)));
    }
    for bond in &network.bonds {
        anyhow::ensure!(
            bond.primary.is_none(),
            "NetworkManager knows the primary port of {} by its name only, which isn't known before the system runs; \
             leave `primary` out, or use an image with systemd-networkd",
            bond.name
        );
        let named = format!("interface-name={}\n", bond.name);
        let text = connection(&id(&bond.name), "bond", &named)
            + &options(bond)
            + &ethernet("cloned-mac-address", bond.members.first().copied(), bond.mtu)
            + &both(&bond.ip, wanted);
        files.push((id(&bond.name), text));
        for member in &bond.members {
            let under = format!("master={}\nslave-type=bond\n", uuid(&id(&bond.name)));
            let text =
                connection(&port_id(*member), "ethernet", &under) + &ethernet("mac-address", Some(*member), None);
            files.push((port_id(*member), text));
        }
    }
    for vlan in &network.vlans {
        let name = vlan.name();
        let parent = match &vlan.on {
            Under::Port(mac) => port_id(*mac),
            Under::Bond(name) => id(name),
        };
        let text = connection(&id(&name), "vlan", &format!("interface-name={name}\n"))
            + &ethernet("mac-address", None, vlan.mtu)
            // Bit 0: the kernel takes the tag off before anybody sees the frame, as everywhere else.
            + &format!("\n[vlan]\nflags=1\nid={}\nparent={}\n", vlan.id, uuid(&parent))
            + &both(&vlan.ip, wanted);
        files.push((id(&name), text));
    }
    let files = files.into_iter().map(|(id, text)| (format!("{id}.nmconnection"), HEAD.to_owned() + &text));
    Some(files.collect()).context("there is a connection for everything")
}

fn id(name: &str) -> String {
    format!("drophammer-{name}")
}

fn port_id(mac: Mac) -> String {
    id(&mac.to_string().replace(':', ""))
}

/// Has to differ among the connections of one system only.
fn uuid(id: &str) -> Uuid {
    let digest = Sha256::digest(id.as_bytes());
    let bytes = digest.first_chunk::<16>().copied().unwrap_or_default();
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

fn connection(id: &str, kind: &str, more: &str) -> String {
    // Before what NetworkManager makes up for ports that nobody configured.
    format!("[connection]\nid={id}\nuuid={}\ntype={kind}\nautoconnect-priority=100\n{more}", uuid(id))
}

fn ethernet(key: &str, mac: Option<Mac>, mtu: Option<u32>) -> String {
    let mut text = String::new();
    if let Some(mac) = mac {
        let _ = writeln!(text, "{key}={}", mac.to_string().to_ascii_uppercase());
    }
    if let Some(mtu) = mtu {
        let _ = writeln!(text, "mtu={mtu}");
    }
    if text.is_empty() { text } else { format!("\n[ethernet]\n{text}") }
}

fn options(bond: &Bond) -> String {
    let mut text = format!("\n[bond]\nmiimon=100\nmode={}\n", bond.mode.name());
    if let Some(rate) = bond.lacp_rate {
        let _ = writeln!(text, "lacp_rate={}", rate.name());
    }
    if let Some(policy) = bond.hash_policy {
        let _ = writeln!(text, "xmit_hash_policy={}", policy.name());
    }
    if let Some(links) = bond.min_links {
        let _ = writeln!(text, "min_links={links}");
    }
    text
}

fn both(ip: &Ip, wanted: &Wanted<'_>) -> String {
    let fixed = |v6: bool| ip.addresses.iter().any(|address| matches!(address, IpNet::V6(_)) == v6);
    let v4 = match (ip.dhcp4, fixed(false)) {
        (true, _) => "auto",
        (false, true) => "manual",
        (false, false) => "disabled",
    };
    let v6 = match (ip.heeds_advertisements() || ip.dhcp6, fixed(true)) {
        _ if ip.is_empty() => "disabled",
        // Which does what router advertisements say, DHCP among it.
        (true, _) => "auto",
        (false, true) => "manual",
        (false, false) => "link-local",
    };
    let client = if ip.dhcp4 { "dhcp-client-id=mac\n" } else { "" };
    section("ipv4", v4, ip, wanted, false) + client + &section("ipv6", v6, ip, wanted, true)
}

fn section(name: &str, method: &str, ip: &Ip, wanted: &Wanted<'_>, v6: bool) -> String {
    let mut text = format!("\n[{name}]\nmethod={method}\n");
    if method == "disabled" {
        return text;
    }
    let addresses = ip.addresses.iter().filter(|address| matches!(address, IpNet::V6(_)) == v6);
    for (index, address) in addresses.enumerate() {
        let _ = writeln!(text, "address{}={address}", index + 1);
    }
    for gateway in ip.gateways.iter().filter(|gateway| gateway.is_ipv6() == v6) {
        let _ = writeln!(text, "gateway={gateway}");
    }
    for (index, route) in ip.routes.iter().filter(|route| route.via.is_ipv6() == v6).enumerate() {
        let metric = route.metric.map(|metric| format!(",{metric}")).unwrap_or_default();
        let _ = writeln!(text, "route{}={},{}{metric}", index + 1, route.to, route.via);
        if route.on_link {
            let _ = writeln!(text, "route{}_options=onlink=true", index + 1);
        }
    }
    let servers: Vec<&IpAddr> = wanted.dns.iter().filter(|server| server.is_ipv6() == v6).collect();
    if !servers.is_empty() {
        let _ = writeln!(text, "dns={}", servers.iter().map(|server| format!("{server};")).collect::<String>());
    }
    if !wanted.dns.is_empty() && method == "auto" {
        text.push_str("ignore-auto-dns=true\n");
    }
    if !wanted.search.is_empty() {
        let _ = writeln!(
            text,
            "dns-search={}",
            wanted.search.iter().map(|domain| format!("{domain};")).collect::<String>()
        );
    }
    text
}
