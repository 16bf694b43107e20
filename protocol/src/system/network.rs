//! The network of an installed system: ports by their MAC, bonds of them, VLANs on either.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::faults::{Findings, shown};
use crate::id::Mac;

/// Nothing at all means DHCP on the port that the machine was installed through. As soon as anything is said, it's all
/// that is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Network {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bonds: Vec<Bond>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<Vlan>,
}

/// An Ethernet port. Members of bonds aren't listed here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub mac: Mac,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Ip::is_empty")]
    pub ip: Ip,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Bond {
    pub name: String,
    /// The bond has the first one's MAC.
    pub members: Vec<Mac>,
    #[serde(default)]
    pub mode: BondMode,
    /// Only with 802.3ad: how often the partner is asked to speak; slow (every 30 s) if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    /// Only with modes that spread by a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_policy: Option<HashPolicy>,
    /// Only with 802.3ad: how many links must be up before the bond is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_links: Option<u32>,
    /// Only with active-backup: the member that is used while it can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<Mac>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Ip::is_empty")]
    pub ip: Ip,
}

/// linux, Documentation/networking/bonding.rst
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum BondMode {
    #[default]
    #[serde(rename = "802.3ad")]
    Lacp,
    #[serde(rename = "active-backup")]
    ActiveBackup,
    #[serde(rename = "balance-xor")]
    BalanceXor,
    #[serde(rename = "balance-rr")]
    BalanceRr,
    #[serde(rename = "balance-tlb")]
    BalanceTlb,
    #[serde(rename = "balance-alb")]
    BalanceAlb,
    #[serde(rename = "broadcast")]
    Broadcast,
}

impl BondMode {
    /// As the kernel has it, and everything that configures it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lacp => "802.3ad",
            Self::ActiveBackup => "active-backup",
            Self::BalanceXor => "balance-xor",
            Self::BalanceRr => "balance-rr",
            Self::BalanceTlb => "balance-tlb",
            Self::BalanceAlb => "balance-alb",
            Self::Broadcast => "broadcast",
        }
    }

    fn hashes(self) -> bool {
        matches!(self, Self::Lacp | Self::BalanceXor | Self::BalanceTlb)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LacpRate {
    Slow,
    Fast,
}

impl LacpRate {
    pub fn name(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Fast => "fast",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HashPolicy {
    #[serde(rename = "layer2")]
    Layer2,
    #[serde(rename = "layer2+3")]
    Layer23,
    #[serde(rename = "layer3+4")]
    Layer34,
    #[serde(rename = "encap2+3")]
    Encap23,
    #[serde(rename = "encap3+4")]
    Encap34,
}

impl HashPolicy {
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer2 => "layer2",
            Self::Layer23 => "layer2+3",
            Self::Layer34 => "layer3+4",
            Self::Encap23 => "encap2+3",
            Self::Encap34 => "encap3+4",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    pub id: u16,
    pub on: Under,
    /// `vlan100` if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Ip::is_empty")]
    pub ip: Ip,
}

impl Vlan {
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("vlan{}", self.id))
    }
}

/// What a VLAN lies on: a port by its MAC, or a bond by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Under {
    Port(Mac),
    Bond(String),
}

/// Addresses and ways out. Nothing means a link without any.
///
/// Router advertisements are heeded as the system does by itself, unless there is an IPv6 gateway here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Ip {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dhcp4: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dhcp6: bool,
    /// With the length of their network: `192.0.2.5/24`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub addresses: Vec<IpNet>,
    /// Default routes, one for each version of IP at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Route {
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub to: IpNet,
    pub via: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// The gateway is on this link though no address here says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_link: bool,
}

impl Ip {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn is_dhcp(&self) -> bool {
        self.dhcp4 || self.dhcp6
    }

    /// Whether router advertisements are to be heeded.
    pub fn heeds_advertisements(&self) -> bool {
        !self.gateways.iter().any(IpAddr::is_ipv6)
    }

    /// All of them, with the gateways as what they are.
    pub fn all_routes(&self) -> Vec<Route> {
        let default = |via: &IpAddr| Route { to: default_route(*via), via: *via, metric: None, on_link: false };
        self.gateways.iter().map(default).chain(self.routes.iter().cloned()).collect()
    }
}

fn default_route(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

const MAX_PORTS: usize = 64;
const MAX_BONDS: usize = 16;
const MAX_MEMBERS: usize = 16;
const MAX_VLANS: usize = 256;
const MAX_ADDRESSES: usize = 64;
const MAX_ROUTES: usize = 256;
/// RFC 791 and RFC 8200 §5.
const MIN_MTU: u32 = 68;
const MIN_MTU_V6: u32 = 1280;
const MAX_MTU: u32 = 65_535;

impl Network {
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.bonds.is_empty() && self.vlans.is_empty()
    }

    /// Every port that is named anywhere, in the order of their MACs.
    pub fn macs(&self) -> Vec<Mac> {
        let ports = self.ports.iter().map(|port| port.mac);
        let members = self.bonds.iter().flat_map(|bond| bond.members.iter().copied());
        let under = self.vlans.iter().filter_map(|vlan| match vlan.on {
            Under::Port(mac) => Some(mac),
            Under::Bond(_) => None,
        });
        let mut macs: Vec<Mac> = ports.chain(members).chain(under).collect();
        macs.sort();
        macs.dedup();
        macs
    }

    /// Ports, with those that only carry VLANs.
    pub fn all_ports(&self) -> Vec<Port> {
        let members: Vec<Mac> = self.bonds.iter().flat_map(|bond| bond.members.iter().copied()).collect();
        let mut ports = self.ports.clone();
        for mac in self.macs() {
            if !members.contains(&mac) && !ports.iter().any(|port| port.mac == mac) {
                ports.push(Port { mac, mtu: None, ip: Ip::default() });
            }
        }
        ports
    }

    pub fn vlans_on<'a>(&'a self, under: &'a Under) -> impl Iterator<Item = &'a Vlan> {
        self.vlans.iter().filter(move |vlan| vlan.on == *under)
    }

    pub(super) fn check(&self, found: &mut Findings) {
        found.at_most(MAX_PORTS, self.ports.len(), "network.ports");
        found.at_most(MAX_BONDS, self.bonds.len(), "network.bonds");
        found.at_most(MAX_VLANS, self.vlans.len(), "network.vlans");
        let members = self.bonds.iter().flat_map(|bond| bond.members.iter());
        found.once(self.ports.iter().map(|port| &port.mac).chain(members), "network", |mac| format!("the port {mac}"));
        let names = self.bonds.iter().map(|bond| bond.name.clone()).chain(self.vlans.iter().map(Vlan::name));
        found.once(names, "network", |name| shown(name));
        let addresses = self.links().flat_map(|(ip, ..)| ip.addresses.iter().map(IpNet::addr));
        found.once(addresses, "network", |address| format!("the address {address}"));

        for port in &self.ports {
            let at = format!("network.ports.{}", port.mac);
            let multicast = port.mac.0.first().is_some_and(|byte| byte & 1 == 1);
            found.unless(!multicast && port.mac != Mac([0; 6]), &at, || "no port has such a MAC".into());
            check_link(port.mtu, &port.ip, &at, found);
        }
        for bond in &self.bonds {
            bond.check(found);
        }
        for vlan in &self.vlans {
            self.check_vlan(vlan, found);
        }
    }

    fn check_vlan(&self, vlan: &Vlan, found: &mut Findings) {
        let name = vlan.name();
        let at = format!("network.vlans.{name}");
        check_name(&name, "network.vlans", found);
        found.unless((1..=4094).contains(&vlan.id), &at, || format!("{} isn't a VLAN's number: 1 to 4094", vlan.id));
        check_link(vlan.mtu, &vlan.ip, &at, found);
        let under = match &vlan.on {
            Under::Port(mac) => {
                let member = self.bonds.iter().find(|bond| bond.members.contains(mac));
                found.unless(member.is_none(), &at, || {
                    let bond = member.map(|bond| bond.name.as_str()).unwrap_or_default();
                    format!("{mac} is a member of {bond}: put the VLAN on that")
                });
                self.ports.iter().find(|port| port.mac == *mac).and_then(|port| port.mtu)
            }
            Under::Bond(name) => {
                let bond = self.bonds.iter().find(|bond| bond.name == *name);
                found.unless(bond.is_some(), &at, || format!("{} is neither a MAC nor one of the bonds", shown(name)));
                bond.and_then(|bond| bond.mtu)
            }
        };
        if let (Some(mtu), Some(under)) = (vlan.mtu, under) {
            found.unless(mtu <= under, &at, || format!("an MTU of {mtu} doesn't fit in the {under} of what it's on"));
        }
    }

    fn links(&self) -> impl Iterator<Item = (&Ip, Option<u32>)> {
        let ports = self.ports.iter().map(|port| (&port.ip, port.mtu));
        let bonds = self.bonds.iter().map(|bond| (&bond.ip, bond.mtu));
        ports.chain(bonds).chain(self.vlans.iter().map(|vlan| (&vlan.ip, vlan.mtu)))
    }
}

impl Bond {
    fn check(&self, found: &mut Findings) {
        let at = format!("network.bonds.{}", self.name);
        check_name(&self.name, "network.bonds", found);
        found.unless(!self.members.is_empty(), &at, || "it has no members".into());
        found.at_most(MAX_MEMBERS, self.members.len(), &at);
        let (lacp, mode) = (self.mode == BondMode::Lacp, self.mode.name());
        found.unless(self.lacp_rate.is_none() || lacp, &at, || format!("lacp_rate means nothing in mode {mode}"));
        found.unless(self.min_links.is_none() || lacp, &at, || format!("min_links means nothing in mode {mode}"));
        let links = self.min_links.and_then(|links| usize::try_from(links).ok()).unwrap_or_default();
        found.unless(links <= self.members.len(), &at, || {
            format!("it would need {links} links to be up, and has {}", self.members.len())
        });
        found.unless(self.hash_policy.is_none() || self.mode.hashes(), &at, || {
            format!("hash_policy means nothing in mode {mode}")
        });
        if let Some(primary) = self.primary {
            let backup = self.mode == BondMode::ActiveBackup;
            found.unless(backup, &at, || format!("primary means nothing in mode {mode}"));
            found.unless(self.members.contains(&primary), &at, || format!("its primary {primary} isn't a member"));
        }
        check_link(self.mtu, &self.ip, &at, found);
    }
}

/// Interface names as the kernel takes them (15 bytes, no `/` or space), less those that mean something already.
fn check_name(name: &str, at: &str, found: &mut Findings) {
    let plain = (1..=15).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    found.unless(plain, at, || {
        format!(
            "{} is not an interface name: a letter, then letters, digits, `.`, `-` and `_`, 15 at most",
            shown(name)
        )
    });
    found.unless(!matches!(name, "lo" | "all" | "default"), at, || {
        format!("{name:?} means something else to the kernel already")
    });
}

fn check_link(mtu: Option<u32>, ip: &Ip, at: &str, found: &mut Findings) {
    let v6 = ip.dhcp6 || ip.addresses.iter().any(|address| matches!(address, IpNet::V6(_)));
    if let Some(mtu) = mtu {
        let least = if v6 { MIN_MTU_V6 } else { MIN_MTU };
        found.unless((least..=MAX_MTU).contains(&mtu), at, || {
            format!("an MTU of {mtu}: {least} to {MAX_MTU} are possible")
        });
    }
    found.at_most(MAX_ADDRESSES, ip.addresses.len(), &format!("{at}.ip.addresses"));
    found.at_most(MAX_ROUTES, ip.routes.len(), &format!("{at}.ip.routes"));
    for address in &ip.addresses {
        found.unless(is_hosts(address), &format!("{at}.ip.addresses"), || {
            format!("{address} is not the address of a host in its network")
        });
    }
    let mut per_version: BTreeMap<bool, usize> = BTreeMap::new();
    for gateway in &ip.gateways {
        *per_version.entry(gateway.is_ipv6()).or_default() += 1;
        check_gateway(*gateway, ip, false, &format!("{at}.ip.gateways"), found);
    }
    found.unless(per_version.values().all(|count| *count <= 1), &format!("{at}.ip.gateways"), || {
        "there is more than one for the same version of IP: write routes with metrics".into()
    });
    for route in &ip.routes {
        let at = format!("{at}.ip.routes");
        found.unless(route.to.addr().is_ipv6() == route.via.is_ipv6(), &at, || {
            format!("{} and its gateway {} are of different versions of IP", route.to, route.via)
        });
        found.unless(route.to == route.to.trunc(), &at, || {
            format!("{} has bits behind the length of its network; {} is meant", route.to, route.to.trunc())
        });
        check_gateway(route.via, ip, route.on_link, &at, found);
    }
}

fn check_gateway(gateway: IpAddr, ip: &Ip, on_link: bool, at: &str, found: &mut Findings) {
    let dhcp = if gateway.is_ipv6() { ip.dhcp6 } else { ip.dhcp4 };
    let near = ip.addresses.iter().any(|address| address.contains(&gateway)) || is_link_local(gateway);
    found.unless(near || on_link || dhcp, at, || {
        format!(
            "the gateway {gateway} is in no network of this link's addresses, so it can't be reached; if it can all the \
             same, write a route with on_link = true"
        )
    });
    let own = ip.addresses.iter().any(|address| address.addr() == gateway);
    let odd = gateway.is_unspecified() || gateway.is_multicast() || gateway.is_loopback();
    found.unless(!own && !odd, at, || format!("{gateway} is no gateway's address"));
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn is_hosts(address: &IpNet) -> bool {
    let ip = address.addr();
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || address.prefix_len() == 0 {
        return false;
    }
    match address {
        // In networks of two and one there is nothing to tell apart (RFC 3021).
        IpNet::V4(net) if net.prefix_len() <= 30 => net.addr() != net.network() && net.addr() != net.broadcast(),
        IpNet::V4(_) => true,
        IpNet::V6(net) => net.addr() != Ipv6Addr::LOCALHOST,
    }
}
