//! The server's settings: what the file says, and what is left to use once it has been checked.
//!
//! [`Config`] is the file, key by key. [`Config::check`] is the only way to a [`Settings`], which holds nothing that
//! would have to be questioned again. Every complaint names its key.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::sign::PublicKey;
use serde::{Deserialize, Serialize};

use crate::dhcp::leases::Pool;

const SOCKET: &str = "control.sock";

/// Where the operators' socket of a server with default settings is.
pub fn default_socket() -> PathBuf {
    default_state_dir().join(SOCKET)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Machines, leases, the certificate authority: everything that has to survive a restart.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Published images, `NAME/VERSION/…`. Default: `images` in `state_dir`.
    #[serde(default)]
    pub images_dir: Option<PathBuf>,
    /// Who may sign images: public keys as 64 hex digits, or files that hold one.
    #[serde(default)]
    pub image_keys: Vec<String>,
    /// `vmlinuz`, `initramfs`, `undionly.kpxe`, `snponly.efi` (or `ipxe.efi`). Default: `boot` in `state_dir`.
    #[serde(default)]
    pub boot_dir: Option<PathBuf>,
    pub network: Network,
    #[serde(default)]
    pub ports: Ports,
    /// Unix socket for operators on this host; the file's mode 0600 is the authorisation. Default: `control.sock` in
    /// `state_dir`.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// More kernel arguments for the agent, such as `console=ttyS0,115200`.
    #[serde(default)]
    pub agent_cmdline: String,
    /// More kernel arguments for installed systems.
    #[serde(default)]
    pub install_cmdline: String,
    /// A program that is called as `HOOK cycle MACHINE_ID` to switch a machine off and on.
    #[serde(default)]
    pub power_hook: Option<PathBuf>,
    /// Failed boots in a row after which a machine is quarantined.
    #[serde(default = "default_max_failures")]
    pub max_failures: u32,
    /// Answer IPv6 router solicitations with "no router here". iPXE of Debian 12 waits 16 s for such an answer before it
    /// uses its IPv4 address.
    #[serde(default = "default_true")]
    pub router_advertisements: bool,
}

/// The one network that machines boot from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The interface that the machines are behind. DHCP is spoken here and nowhere else.
    pub interface: String,
    /// This server's address on it; it must have been set already.
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub pool: Range,
    #[serde(default)]
    pub router: Option<Ipv4Addr>,
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    #[serde(default)]
    pub ntp: Vec<Ipv4Addr>,
    #[serde(default = "default_lease_seconds")]
    pub lease_seconds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    pub dhcp: u16,
    pub tftp: u16,
    pub http: u16,
    pub https: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { dhcp: 67, tftp: 69, http: 80, https: 443 }
    }
}

fn default_state_dir() -> PathBuf {
    "/var/lib/drophammer".into()
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

/// A configuration that was found to make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub state_dir: PathBuf,
    pub images_dir: PathBuf,
    pub boot_dir: PathBuf,
    pub socket: PathBuf,
    pub image_keys: Vec<PublicKey>,
    pub interface: String,
    pub subnet: Subnet,
    pub pool: Pool,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub lease_seconds: u32,
    pub ports: Ports,
    pub agent_cmdline: String,
    pub install_cmdline: String,
    pub power_hook: Option<PathBuf>,
    pub max_failures: u32,
    pub router_advertisements: bool,
}

impl Settings {
    /// Where firmware, iPXE and the agent's first step find this server.
    pub fn boot_url(&self) -> String {
        match self.ports.http {
            80 => format!("http://{}", self.subnet.server),
            port => format!("http://{}:{port}", self.subnet.server),
        }
    }

    /// Where agents and operators find it.
    pub fn server_url(&self) -> String {
        format!("https://{}:{}", self.subnet.server, self.ports.https)
    }
}

/// This server's address and the subnet that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub server: Ipv4Addr,
    pub prefix: u8,
}

impl Subnet {
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.server.to_bits() & self.mask().to_bits())
    }

    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.server.to_bits() | !self.mask().to_bits())
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask().to_bits() == self.network().to_bits()
    }

    /// Whether a host can have this address: neither the network's own nor its broadcast address.
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network() && address != self.broadcast()
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("reading the configuration in {}", path.display()))
    }

    /// What this configuration means, or what is wrong with it.
    pub fn check(&self) -> Result<Settings> {
        let net = &self.network;
        ensure!(
            !net.interface.is_empty() && net.interface.len() < libc::IFNAMSIZ,
            "network.interface: {:?} is not the name of a network interface",
            net.interface
        );
        ensure!(
            (16..=30).contains(&net.prefix),
            "network.prefix: {} is outside 16 to 30: a boot network of more than 65534 or less than 2 hosts isn't \
             supported",
            net.prefix
        );
        let subnet = Subnet { server: net.address, prefix: net.prefix };
        ensure!(
            subnet.has_host(net.address),
            "network.address: {} can't be a host's address in a /{} network",
            net.address,
            net.prefix
        );
        for (key, address) in [("first", net.pool.first), ("last", net.pool.last)] {
            ensure!(
                subnet.has_host(address),
                "network.pool.{key}: {address} is not a host's address in {}/{}",
                subnet.network(),
                net.prefix
            );
        }
        ensure!(
            net.pool.first <= net.pool.last,
            "network.pool: first ({}) comes after last ({})",
            net.pool.first,
            net.pool.last
        );
        if let Some(router) = net.router {
            ensure!(subnet.has_host(router), "network.router: {router} is not in {}/{}", subnet.network(), net.prefix);
        }
        // Every answer has to fit into the 576 bytes that any DHCP client takes (RFC 2131 §2).
        for (key, list) in [("dns", &net.dns), ("ntp", &net.ntp)] {
            ensure!(list.len() <= 8, "network.{key}: at most 8 servers fit into an answer, not {}", list.len());
        }
        ensure!(
            net.lease_seconds >= 60,
            "network.lease_seconds: {} is less than a minute, which a slow boot loader outlives",
            net.lease_seconds
        );
        let ports = self.ports;
        for (key, port) in [("dhcp", ports.dhcp), ("tftp", ports.tftp), ("http", ports.http), ("https", ports.https)] {
            ensure!(port != 0, "ports.{key}: 0 is not a port");
        }
        ensure!(ports.http != ports.https, "ports.https: {} is already ports.http", ports.https);
        ensure!(ports.dhcp != ports.tftp, "ports.tftp: {} is already ports.dhcp", ports.tftp);
        for (key, text) in [("agent_cmdline", &self.agent_cmdline), ("install_cmdline", &self.install_cmdline)] {
            // iPXE would take `${` for a setting and a line break for the next command.
            if text.contains("${") || text.chars().any(char::is_control) || !text.is_ascii() {
                bail!("{key}: kernel arguments are one line of ASCII without ${{…}}, not {text:?}");
            }
        }
        if let Some(hook) = &self.power_hook {
            ensure!(hook.is_file(), "power_hook: {} is not a file", hook.display());
        }
        let image_keys = self
            .image_keys
            .iter()
            .map(|key| image_key(key).with_context(|| format!("image_keys: {key:?}")))
            .collect::<Result<_>>()?;
        let within = |path: &Option<PathBuf>, name| path.clone().unwrap_or_else(|| self.state_dir.join(name));
        Ok(Settings {
            images_dir: within(&self.images_dir, "images"),
            boot_dir: within(&self.boot_dir, "boot"),
            socket: within(&self.socket, SOCKET),
            state_dir: self.state_dir.clone(),
            image_keys,
            interface: net.interface.clone(),
            subnet,
            pool: Pool {
                first: net.pool.first,
                last: net.pool.last,
                reserved: [Some(net.address), net.router].into_iter().flatten().collect(),
            },
            router: net.router,
            dns: net.dns.clone(),
            ntp: net.ntp.clone(),
            lease_seconds: net.lease_seconds,
            ports,
            agent_cmdline: self.agent_cmdline.trim().to_owned(),
            install_cmdline: self.install_cmdline.trim().to_owned(),
            power_hook: self.power_hook.clone(),
            max_failures: self.max_failures.max(1),
            router_advertisements: self.router_advertisements,
        })
    }
}

fn image_key(text: &str) -> Result<PublicKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let content = fs::read_to_string(text).context("neither 64 hex digits nor a file that can be read")?;
    Ok(content.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        [network]
        interface = "br0"
        address = "10.77.0.1"
        prefix = 24
        pool = { first = "10.77.0.100", last = "10.77.0.199" }
    "#;

    fn small() -> Config {
        toml::from_str(SMALL).expect("the smallest configuration")
    }

    #[test]
    fn the_smallest_file_is_enough() {
        let settings = small().check().expect("makes sense");
        assert_eq!(settings.boot_url(), "http://10.77.0.1");
        assert_eq!(settings.server_url(), "https://10.77.0.1:443");
        assert_eq!(settings.images_dir, Path::new("/var/lib/drophammer/images"));
        assert_eq!(settings.ports, Ports { dhcp: 67, tftp: 69, http: 80, https: 443 });
        assert!(settings.pool.reserved.contains(&Ipv4Addr::new(10, 77, 0, 1)));
    }

    #[test]
    fn complaints_name_their_key() {
        let key = "network.pool.last";
        for (want, change) in [
            ("network.interface", (|c| c.network.interface = "an-interface-too-long".into()) as fn(&mut Config)),
            ("network.prefix", |c| c.network.prefix = 33),
            ("network.address", |c| c.network.address = Ipv4Addr::new(10, 77, 0, 255)),
            (key, |c| c.network.pool.last = Ipv4Addr::new(10, 78, 0, 9)),
            (key, |c| c.network.pool.last = Ipv4Addr::new(10, 77, 0, 255)),
            ("network.pool", |c| c.network.pool.last = Ipv4Addr::new(10, 77, 0, 9)),
            ("network.router", |c| c.network.router = Some(Ipv4Addr::new(192, 168, 0, 1))),
            ("network.dns", |c| c.network.dns = vec![Ipv4Addr::LOCALHOST; 9]),
            ("network.lease_seconds", |c| c.network.lease_seconds = 5),
            ("ports.http", |c| c.ports.http = 0),
            ("ports.https", |c| c.ports.https = 80),
            ("agent_cmdline", |c| c.agent_cmdline = "quiet\nreboot".into()),
            ("install_cmdline", |c| c.install_cmdline = "${net0/mac}".into()),
            ("power_hook", |c| c.power_hook = Some("/nonexistent/hook".into())),
            ("image_keys", |c| c.image_keys = vec!["/nonexistent/key".into()]),
        ] {
            let mut config = small();
            change(&mut config);
            let complaint = format!("{:#}", config.check().expect_err(want));
            assert!(complaint.starts_with(want), "{want}: {complaint}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let wrong = SMALL.replace("prefix", "netmask");
        assert!(toml::from_str::<Config>(&wrong).is_err());
    }
}
