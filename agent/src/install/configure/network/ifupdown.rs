//! interfaces(5) of Debian's ifupdown. It knows ports by their MACs, but bonds and VLANs only by the names of what they
//! are made of, so it gets plain ports alone.

use std::fmt::Write as _;

use drophammer_protocol::system::network::Ip;
use ipnet::IpNet;

use super::{HEAD, Wanted};

pub(super) const PATH: &str = "/etc/network/interfaces";

pub(super) const LOOPBACK: &str = "# Written when this system was installed: others configure its network.\n\
                                   auto lo\niface lo inet loopback\n";

pub(super) fn text(wanted: &Wanted<'_>) -> String {
    let mut text = format!("{HEAD}auto lo\niface lo inet loopback\n");
    for (index, port) in wanted.network.all_ports().iter().enumerate() {
        let name = format!("port{index}");
        let mtu = port.mtu.map(|mtu| format!("    pre-up ip link set dev \"$IFACE\" mtu {mtu}\n")).unwrap_or_default();
        let _ = write!(text, "\nauto mac/{}={name}\n{}", port.mac, stanzas(&name, &port.ip, &mtu));
    }
    text
}

fn stanzas(name: &str, ip: &Ip, mtu: &str) -> String {
    let mut text = String::new();
    let mut first = |what: &str, rest: &str| {
        let mtu = if text.is_empty() { mtu } else { "" };
        let _ = write!(text, "iface {name} {what}\n{mtu}{rest}");
    };
    if ip.dhcp4 {
        first("inet dhcp", "");
    }
    let advertisements = if ip.heeds_advertisements() { "1" } else { "0" };
    if ip.dhcp6 {
        first("inet6 dhcp", &format!("    accept_ra {advertisements}\n"));
    }
    for address in &ip.addresses {
        match address {
            IpNet::V4(_) => first("inet static", &format!("    address {address}\n")),
            IpNet::V6(_) => {
                first("inet6 static", &format!("    address {address}\n    accept_ra {advertisements}\n"));
            }
        }
    }
    if ip.is_empty() {
        first("inet manual", "    up ip link set dev \"$IFACE\" up\n");
    }
    // In the last stanza, when all addresses are there.
    for route in ip.all_routes() {
        let version = if route.via.is_ipv6() { "-6" } else { "-4" };
        let to = if route.to.prefix_len() == 0 { "default".to_owned() } else { route.to.to_string() };
        let metric = route.metric.map(|metric| format!(" metric {metric}")).unwrap_or_default();
        let on_link = if route.on_link { " onlink" } else { "" };
        let _ =
            writeln!(text, "    up ip {version} route replace {to} via {} dev \"$IFACE\"{metric}{on_link}", route.via);
    }
    text
}

/// dhclient.conf(5), for who writes /etc/resolv.conf from what DHCP says. `None` if there is nothing to say.
pub(super) fn dhclient(existing: &str, wanted: &Wanted<'_>) -> Option<String> {
    const MARK: &str = "# Written when this system was installed:";
    let before = existing.split(MARK).next().unwrap_or_default();
    let list = |values: Vec<String>| values.join(", ");
    let mut text = String::new();
    let v4: Vec<String> = wanted.dns.iter().filter(|server| server.is_ipv4()).map(ToString::to_string).collect();
    if !v4.is_empty() {
        let _ = writeln!(text, "supersede domain-name-servers {};", list(v4));
    }
    let v6: Vec<String> = wanted.dns.iter().filter(|server| server.is_ipv6()).map(ToString::to_string).collect();
    if !v6.is_empty() {
        let _ = writeln!(text, "supersede dhcp6.name-servers {};", list(v6));
    }
    if !wanted.search.is_empty() {
        let quoted = wanted.search.iter().map(|domain| format!("\"{domain}\"")).collect();
        let _ = writeln!(text, "supersede domain-search {};", list(quoted));
    }
    (!text.is_empty()).then(|| format!("{before}{MARK}\n{text}"))
}
