//! systemd.network(5) and systemd.netdev(5).

use std::fmt::Write as _;

use drophammer_protocol::id::Mac;
use drophammer_protocol::system::network::{Bond, Ip, Under, Vlan};

use super::{HEAD, Wanted};

/// Name and text of every file. Those whose names begin with 10 are asked before the image's own.
pub(super) fn files(wanted: &Wanted<'_>) -> Vec<(String, String)> {
    let network = &wanted.network;
    let mut files = Vec::new();
    for port in network.all_ports() {
        let head =
            format!("{HEAD}[Match]\nMACAddress={}\n{ONLY_HARDWARE}{}", port.mac, link(port.mtu, !port.ip.is_empty()));
        let vlans = vlans(network.vlans_on(&Under::Port(port.mac)));
        files.push((format!("10-drophammer-{}.network", plain(port.mac)), head + &ip(&port.ip, &vlans, wanted)));
    }
    for bond in &network.bonds {
        files.push((format!("10-drophammer-{}.netdev", bond.name), netdev(bond)));
        for member in &bond.members {
            // In the bond they all have its MAC.
            let primary = if bond.primary == Some(*member) { "PrimarySlave=yes\n" } else { "" };
            let text = format!(
                "{HEAD}[Match]\nPermanentMACAddress={member}\n{ONLY_HARDWARE}\n[Network]\nBond={}\n{primary}",
                bond.name
            );
            files.push((format!("10-drophammer-{}.network", plain(*member)), text));
        }
        let vlans = vlans(network.vlans_on(&Under::Bond(bond.name.clone())));
        files.push(named(&bond.name, bond.mtu, &bond.ip, &vlans, wanted));
    }
    for vlan in &network.vlans {
        let name = vlan.name();
        let text = format!("{HEAD}[NetDev]\nName={name}\nKind=vlan\n\n[VLAN]\nId={}\n", vlan.id);
        files.push((format!("10-drophammer-{name}.netdev"), text));
        files.push(named(&name, vlan.mtu, &vlan.ip, "", wanted));
    }
    files
}

/// For every port, where nobody knows which one it was.
pub(super) fn any_port(wanted: &Wanted<'_>) -> String {
    let dhcp = Ip { dhcp4: true, dhcp6: true, ..Ip::default() };
    format!("{HEAD}[Match]\n{ONLY_HARDWARE}{}", ip(&dhcp, "", wanted))
}

/// Leaves out what is stacked on a port and inherits its MAC.
const ONLY_HARDWARE: &str = "Type=ether\nKind=!*\n";

fn plain(mac: Mac) -> String {
    mac.to_string().replace(':', "")
}

fn named(name: &str, mtu: Option<u32>, address: &Ip, vlans: &str, wanted: &Wanted<'_>) -> (String, String) {
    let head = format!("{HEAD}[Match]\nName={name}\n{}", link(mtu, !address.is_empty()));
    (format!("10-drophammer-{name}.network"), head + &ip(address, vlans, wanted))
}

/// What only carries others never is what systemd-networkd-wait-online calls online.
fn link(mtu: Option<u32>, online: bool) -> String {
    let mut text = String::new();
    if let Some(mtu) = mtu {
        let _ = writeln!(text, "MTUBytes={mtu}");
    }
    if !online {
        text.push_str("RequiredForOnline=no\n");
    }
    if text.is_empty() { text } else { format!("\n[Link]\n{text}") }
}

fn vlans<'a>(vlans: impl Iterator<Item = &'a Vlan>) -> String {
    vlans.map(|vlan| format!("VLAN={}\n", vlan.name())).collect()
}

fn netdev(bond: &Bond) -> String {
    let mut text = format!("{HEAD}[NetDev]\nName={}\nKind=bond\n", bond.name);
    if let Some(first) = bond.members.first() {
        // Otherwise udev makes one up.
        let _ = writeln!(text, "MACAddress={first}");
    }
    let _ = write!(text, "\n[Bond]\nMode={}\nMIIMonitorSec=100ms\n", bond.mode.name());
    if let Some(rate) = bond.lacp_rate {
        let _ = writeln!(text, "LACPTransmitRate={}", rate.name());
    }
    if let Some(policy) = bond.hash_policy {
        let _ = writeln!(text, "TransmitHashPolicy={}", policy.name());
    }
    if let Some(links) = bond.min_links {
        let _ = writeln!(text, "MinLinks={links}");
    }
    text
}

fn ip(ip: &Ip, vlans: &str, wanted: &Wanted<'_>) -> String {
    let dhcp = match (ip.dhcp4, ip.dhcp6) {
        (true, true) => "yes",
        (true, false) => "ipv4",
        (false, true) => "ipv6",
        (false, false) => "no",
    };
    let mut text = format!("\n[Network]\nDHCP={dhcp}\n{vlans}");
    if ip.is_empty() {
        text.push_str("LinkLocalAddressing=no\nIPv6AcceptRA=no\n");
    } else if !ip.heeds_advertisements() {
        text.push_str("IPv6AcceptRA=no\n");
    }
    for address in &ip.addresses {
        let _ = writeln!(text, "Address={address}");
    }
    for route in ip.all_routes() {
        text.push_str("\n[Route]\n");
        if route.to.prefix_len() > 0 {
            let _ = writeln!(text, "Destination={}", route.to);
        }
        let _ = writeln!(text, "Gateway={}", route.via);
        if let Some(metric) = route.metric {
            let _ = writeln!(text, "Metric={metric}");
        }
        if route.on_link {
            text.push_str("GatewayOnLink=yes\n");
        }
    }
    let dns = if wanted.dns.is_empty() { "" } else { "UseDNS=no\n" };
    let ntp = if wanted.own_ntp { "UseNTP=no\n" } else { "" };
    if ip.dhcp4 {
        // By its MAC the machine gets the lease that it had while it was installed.
        let _ = write!(text, "\n[DHCPv4]\nClientIdentifier=mac\n{dns}{ntp}");
    }
    if ip.dhcp6 && !(dns.is_empty() && ntp.is_empty()) {
        let _ = write!(text, "\n[DHCPv6]\n{dns}{ntp}");
    }
    if !ip.is_empty() && ip.heeds_advertisements() && !dns.is_empty() {
        let _ = write!(text, "\n[IPv6AcceptRA]\n{dns}");
    }
    text
}
