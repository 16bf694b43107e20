//! A configuration that was found to make sense. Nothing here has to be questioned again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use drophammer_control::{EtcdAt, Oidc};
use drophammer_images::{Import, S3Options};
use drophammer_protocol::boot_server::{NetworkSummary, Registration};
use drophammer_protocol::erase::Policy;
use drophammer_protocol::id::Mac;
use drophammer_protocol::sign::PublicKey;
use ipnet::Ipv4Net;
use reqwest::Url;
use uuid::Uuid;

use super::{Octets, Ports, Route};
use crate::dhcp::leases::Pool;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    pub partition: String,
    /// The control API, if it's elsewhere.
    pub control: Option<ControlAt>,
    pub listen: Vec<SocketAddr>,
    pub host_names: Vec<String>,
    pub metrics: Option<SocketAddr>,
    pub state_dir: PathBuf,
    /// Where the control API's state is, if not in the state directory.
    pub etcd: Option<EtcdAt>,
    pub images_dir: PathBuf,
    pub boot_dir: PathBuf,
    pub socket: PathBuf,
    pub image_keys: Vec<PublicKey>,
    /// Others' images that this server compiles.
    pub imports: Vec<ImportOrder>,
    /// At least one, unless this is only a control API for boot servers elsewhere.
    pub networks: Vec<Network>,
    pub ports: Ports,
    pub agent_cmdline: String,
    pub install_cmdline: String,
    pub reboot_models: Vec<String>,
    pub power_hook: Option<PathBuf>,
    pub backup: Option<Backup>,
    pub oidc: Option<Oidc>,
    pub requests_per_second: NonZeroU32,
    pub max_failures: u32,
    pub erase_policy: Policy,
    pub erase_again_after: Duration,
    /// Each with what it's promised.
    pub projects: BTreeMap<String, Policy>,
    pub router_advertisements: bool,
}

/// When the control API's state is backed up, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    pub to: String,
    pub s3: S3Options,
    pub key_file: PathBuf,
    pub every: Duration,
    pub keep: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportOrder {
    pub import: Import,
    /// Kernel arguments that the image needs.
    pub cmdline: String,
}

impl Settings {
    /// The addresses that machines come to, each with the interface that has it.
    pub fn addresses(&self) -> Vec<(Ipv4Addr, &str)> {
        let mut addresses: Vec<_> = self.networks.iter().map(|n| (n.address, n.interface.as_str())).collect();
        addresses.sort_unstable();
        addresses.dedup_by_key(|(address, _)| *address);
        addresses
    }

    /// What the control API is told of this boot server.
    pub fn registration(&self) -> Registration {
        let summary = |network: &Network| {
            let pool = match &network.dhcp {
                Dhcp::Server(leasing) => Some(&leasing.pool),
                Dhcp::Proxy | Dhcp::Off => None,
            };
            NetworkSummary {
                name: network.name.clone(),
                address: network.address,
                subnet: network.subnet,
                dhcp: network.dhcp.word().to_owned(),
                relayed: network.relayed,
                pool: pool.map(|pool| pool.ranges.clone()).unwrap_or_default(),
                share: pool.and_then(|pool| pool.share),
            }
        };
        Registration {
            name: self.name.clone(),
            partition: self.partition.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            networks: self.networks.iter().map(summary).collect(),
        }
    }
}

/// A control API that isn't in this process.
#[derive(Clone, PartialEq, Eq)]
pub struct ControlAt {
    pub url: Url,
    /// For the first time.
    pub join: Option<String>,
}

impl fmt::Debug for ControlAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControlAt({})", self.url)
    }
}

impl ControlAt {
    pub fn new(url: &str, join: Option<String>) -> Result<Self, String> {
        let example = "it looks like https://10.0.0.1:443";
        let url =
            url.parse::<Url>().map_err(|e| format!("{url:?} is not the address of a control API ({e}): {example}"))?;
        if url.scheme() != "https" || url.host().is_none() || !matches!(url.path(), "" | "/") {
            return Err(format!("{url} is not the address of a control API: {example}"));
        }
        Ok(Self { url, join })
    }
}

/// A network that machines boot from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    /// Where its packets come in.
    pub interface: String,
    /// This server's own address, as its machines use it.
    pub address: Ipv4Addr,
    pub subnet: Ipv4Net,
    /// It is behind relays, not on the interface itself.
    pub relayed: bool,
    /// Which relayed clients are of this network.
    pub relay: RelayMatch,
    pub dhcp: Dhcp,
    /// DHCP servers that are meant to be there as well.
    pub others: Vec<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dhcp {
    /// Somebody else says where to boot from.
    Off,
    /// Somebody else gives out addresses.
    Proxy,
    Server(Box<Leasing>),
}

impl Dhcp {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Proxy => "proxy",
            Self::Server(_) => "server",
        }
    }
}

/// What a full DHCP server gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leasing {
    pub pool: Pool,
    pub reservations: Vec<Reservation>,
    pub lease_seconds: u32,
    /// How long an address is listened for before it is offered to somebody new.
    pub probe: Option<Duration>,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub mtu: Option<u16>,
    pub search: Vec<String>,
    pub routes: Vec<Route>,
}

/// An address that only one client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub who: Who,
    pub address: Ipv4Addr,
    pub hostname: Option<String>,
}

/// How a client is recognised; all that is given has to fit, and something is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    pub mac: Option<Mac>,
    pub uuid: Option<Uuid>,
    pub client_id: Option<Octets>,
    pub relay: RelayMatch,
}

/// What a relay says about where a client is (option 82); nothing given fits everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayMatch {
    pub circuit_id: Option<Octets>,
    pub remote_id: Option<Octets>,
}

impl RelayMatch {
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a host can have this address: neither the network's own nor its broadcast address.
pub(super) fn has_host(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}
