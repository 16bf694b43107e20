//! The server's settings: what the file says, and what is left to use once it has been checked.
//!
//! [`Config`] is the file, key by key. [`Config::check`] is the only way to a [`Settings`], which holds nothing that
//! would have to be questioned again. Every complaint names its key and its line.

mod check;
mod complaint;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use drophammer_protocol::erase::Policy;
use drophammer_protocol::id::Mac;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use check::MOST_SERVERS;
pub use complaint::Complaints;
pub use settings::{Backup, ControlAt, Dhcp, ImportOrder, Leasing, Network, RelayMatch, Reservation, Settings, Who};

const SOCKET: &str = "control.sock";

/// Where the operators' socket of a server with default settings is.
pub fn default_socket() -> PathBuf {
    default_state_dir().join(SOCKET)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What operators know this server by. Default: the host's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Boot servers of one partition are close to each other; those with the same subnet are on one segment.
    #[serde(default = "default_partition")]
    pub partition: String,
    /// `https://host:port` of the control API that this boot server belongs to. Default: one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// More addresses, `address:port`, where the control API is served over HTTPS: for boot servers that run alone and for
    /// operators. The networks' own have it at `ports.https`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<SocketAddr>,
    /// Where Prometheus finds `/metrics`, over HTTP: `address:port`. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// More names and addresses that this server is called by over HTTPS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_names: Vec<String>,
    /// Machines, leases, the certificate authority: everything that has to survive a restart.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// An etcd cluster that has the control API's state instead of a file in `state_dir`, so that several servers can share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdConfig>,
    /// Published images, `NAME/VERSION/…`. Default: `images` in `state_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_dir: Option<PathBuf>,
    /// Who may sign images: public keys as 64 hex digits, or files that hold one.
    #[serde(default)]
    pub image_keys: Vec<String>,
    /// Kernel, initramfs and boot loaders, as `drophammer initramfs build` makes them. Default: `boot` in `state_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_dir: Option<PathBuf>,
    /// Unix socket for operators on this host; the file's mode 0600 is the authorisation. Default: `control.sock` in
    /// `state_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// More kernel arguments for the agent, such as `console=ttyS0,115200`.
    #[serde(default)]
    pub agent_cmdline: String,
    /// More kernel arguments for installed systems.
    #[serde(default)]
    pub install_cmdline: String,
    /// Models that are rebooted into their installed system instead of starting it by kexec: patterns of the product's name,
    /// or of vendor and product, such as `PowerEdge R7*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reboot_models: Vec<String>,
    /// A program that is called as `HOOK cycle MACHINE_ID` to switch a machine off and on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_hook: Option<PathBuf>,
    /// Backups of the control API's state, made by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupConfig>,
    /// An OpenID Connect provider, by whose tokens people are known to the control API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcConfig>,
    /// Requests that one operator's token may make in a second.
    #[serde(default = "default_requests_per_second")]
    pub requests_per_second: NonZeroU32,
    /// Failed boots in a row after which a machine is quarantined.
    #[serde(default = "default_max_failures")]
    pub max_failures: u32,
    /// Which erasures are good enough: `purge`, `clear` or `rekey-only`.
    #[serde(default)]
    pub erase_policy: Policy,
    /// How old the proof of an erased drive may become before it's erased again, though nobody had it and nobody wrote to
    /// it; 0 erases at every boot.
    #[serde(default = "default_erase_again_after_days")]
    pub erase_again_after_days: u16,
    /// Whom machines are allocated for, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub projects: BTreeMap<String, ProjectConfig>,
    /// Answer IPv6 router solicitations with "no router here". iPXE of Debian 12 waits 16 s for such an answer before it
    /// uses its IPv4 address.
    #[serde(default = "default_true")]
    pub router_advertisements: bool,
    #[serde(default)]
    pub ports: Ports,
    /// Others' images that this server makes its own, each once.
    #[serde(default, rename = "import", skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<ImportConfig>,
    #[serde(default, rename = "network")]
    pub networks: Vec<NetworkConfig>,
}

fn default_requests_per_second() -> NonZeroU32 {
    const { NonZeroU32::new(1000).expect("more than nothing") }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupConfig {
    /// A directory, or `s3://BUCKET/PREFIX`, that is for this alone.
    pub to: String,
    /// File with the key, as `drophammer backup key` makes it.
    pub key_file: PathBuf,
    #[serde(default = "default_backup_hours")]
    pub every_hours: NonZeroU16,
    /// So many are kept; older ones are removed when a new one is there.
    #[serde(default = "default_backups")]
    pub keep: NonZeroU16,
    /// Of an S3-compatible service: its URL, the bucket's region, a file of access keys as the tools of AWS have it. Default:
    /// what the AWS variables of the environment say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
}

fn default_backup_hours() -> NonZeroU16 {
    const { NonZeroU16::new(24).expect("more than nothing") }
}

fn default_backups() -> NonZeroU16 {
    const { NonZeroU16::new(14).expect("more than nothing") }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// `https://…`, exactly as its tokens have it.
    pub issuer: String,
    /// What its tokens call this server.
    pub audience: String,
    /// File with the certificates, in PEM, that the provider's own is signed with.
    pub ca: PathBuf,
    /// The claim that says who somebody is. Default: `email`.
    #[serde(default = "default_user_claim")]
    pub user_claim: String,
    /// The claim that says in which groups somebody is. Default: `groups`.
    #[serde(default = "default_groups_claim")]
    pub groups_claim: String,
    /// Groups whose members may do everything.
    #[serde(default)]
    pub admins: Vec<String>,
    /// Groups whose members may see everything.
    #[serde(default)]
    pub viewers: Vec<String>,
}

fn default_user_claim() -> String {
    "email".into()
}

fn default_groups_claim() -> String {
    "groups".into()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// `https://host:port` or `http://host:port` of the members.
    pub endpoints: Vec<String>,
    /// What all keys begin with. Default: `/drophammer`.
    #[serde(default = "default_etcd_prefix")]
    pub prefix: String,
    /// File with the certificates, in PEM, that the members' own are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Files with the certificate and the key that this server shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Whom etcd knows this server as, and the file with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

fn default_etcd_prefix() -> String {
    "/drophammer".into()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportConfig {
    /// http:// or https:// address of a tar of a root file system, or an absolute path.
    pub url: String,
    /// What the image is called, and which build of it this is. Default: what metal-stack's addresses say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it has to hash to. Default: what lies beside it, `.sha256` or else `.md5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Take it as it comes.
    #[serde(default)]
    pub unchecked: bool,
    /// Kernel arguments that the image needs, without `root=`.
    #[serde(default)]
    pub cmdline: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectConfig {
    /// The least that its machines are erased by when it's through with them. Default: what `erase_policy` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase_policy: Option<Policy>,
}

/// A network that machines boot from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Default: the interface's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The interface that the machines, or their relays, are behind.
    pub interface: String,
    /// This server's address, as the machines reach it; it must have been set already.
    pub address: Ipv4Addr,
    pub subnet: Ipv4Net,
    #[serde(default)]
    pub dhcp: Mode,
    /// Other DHCP servers that are meant to be on this network. Any more that are heard are reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Ipv4Addr>,
    /// The machines' requests come through DHCP relays. Default: they come from the interface's own wire.
    #[serde(default)]
    pub relayed: bool,
    /// Only clients of whom their relay says this.
    #[serde(default, skip_serializing_if = "RelayConfig::is_empty")]
    pub relay: RelayConfig,
    #[serde(default)]
    pub pool: Vec<Range>,
    /// Which part of the pool is this server's, if others have the same pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    #[serde(default = "default_lease_seconds")]
    pub lease_seconds: u32,
    /// How long the server listens for somebody on an address before it offers it to a new client; 0 doesn't.
    #[serde(default = "default_probe_ms")]
    pub probe_ms: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Ipv4Addr>,
    /// Default: those of the partition, if it's declared with some. So for `ntp`.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    #[serde(default)]
    pub ntp: Vec<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Domains that names are looked up in; the first is the clients' own.
    #[serde(default)]
    pub search: Vec<String>,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub reservations: Vec<ReservationConfig>,
}

impl NetworkConfig {
    /// A network on the wire, with nothing to give out yet.
    pub fn new(interface: &str, address: Ipv4Addr, prefix: u8) -> Self {
        Self {
            name: None,
            interface: interface.to_owned(),
            address,
            subnet: Ipv4Net::new_assert(address, prefix).trunc(),
            dhcp: Mode::Server,
            others: vec![],
            relayed: false,
            relay: RelayConfig::default(),
            pool: vec![],
            share: None,
            lease_seconds: default_lease_seconds(),
            probe_ms: default_probe_ms(),
            router: None,
            dns: vec![],
            ntp: vec![],
            mtu: None,
            search: vec![],
            routes: vec![],
            reservations: vec![],
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Addresses and where to boot from.
    #[default]
    Server,
    /// Where to boot from, beside a server that gives out addresses.
    Proxy,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

/// One of `of` equal shares of a pool, counted from 1. Servers with different shares never give out the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    pub part: u32,
    pub of: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub to: Ipv4Net,
    pub via: Ipv4Addr,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_id: Option<Octets>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_id: Option<Octets>,
}

impl RelayConfig {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservationConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<Octets>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_id: Option<Octets>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_id: Option<Octets>,
    pub address: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// An identifier that clients and relays make up: in the file text, or `0x` and hex digits where it isn't one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Octets(pub Vec<u8>);

impl FromStr for Octets {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        text.strip_prefix("0x").map_or_else(|| Ok(text.as_bytes().to_vec()), hex::decode).map(Self)
    }
}

impl TryFrom<String> for Octets {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|e| format!("{text:?} begins with 0x but isn't hexadecimal: {e}"))
    }
}

impl From<Octets> for String {
    fn from(octets: Octets) -> Self {
        octets.to_string()
    }
}

impl fmt::Display for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.starts_with("0x") && !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "0x{}", hex::encode(&self.0)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    pub dhcp: u16,
    /// Where PXE clients ask a ProxyDHCP server again.
    pub proxy_dhcp: u16,
    pub tftp: u16,
    pub http: u16,
    pub https: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { dhcp: 67, proxy_dhcp: 4011, tftp: 69, http: 80, https: 443 }
    }
}

fn default_state_dir() -> PathBuf {
    "/var/lib/drophammer".into()
}

fn default_partition() -> String {
    "default".into()
}

fn default_erase_again_after_days() -> u16 {
    30
}

fn default_max_failures() -> u32 {
    3
}

fn default_true() -> bool {
    true
}

fn default_lease_seconds() -> u32 {
    3600
}

fn default_probe_ms() -> u16 {
    100
}

/// Reads a configuration file to what it means, or to all that is wrong with it.
pub fn read(path: &Path) -> Result<Settings> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let understand = || format!("the configuration in {} makes no sense", path.display());
    let config: Config = toml::from_str(&text).with_context(understand)?;
    config.check().map_err(|complaints| complaints.located(&text)).with_context(understand)
}

/// The text of a configuration file: what it means is written as it is read, and what is wrong with it is on one of its lines.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let Ok(mut config) = toml::from_str::<Config>(text) else { return };
    // These two would have it look at files of this host.
    config.power_hook = None;
    config.image_keys.retain(|key| key.len() == 64);
    let again = toml::to_string(&config).expect("what was read can be written");
    assert_eq!(toml::from_str::<Config>(&again).expect("what was written can be read"), config);
    match config.check() {
        Ok(settings) => {
            assert!(settings.networks.iter().all(|network| (12..=30).contains(&network.subnet.prefix_len())))
        }
        Err(complaints) => assert!(!complaints.located(text).to_string().is_empty()),
    }
}
