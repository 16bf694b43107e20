//! What a running server takes up when its configuration is read again: pools, options, reservations, boot files, kernel
//! arguments, keys; and what operators declare. What it's bound to stays as it is until a restart.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::sync::watch;

use crate::config::{Dhcp, MOST_SERVERS, Network, Settings};
use crate::declared::Declared;
use crate::tftp;

/// A configuration and the boot files that it names, as they were when it was read, and what is declared.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    pub(crate) files: tftp::Files,
    pub(crate) declared: Declared,
}

/// For whoever looks at the present one each time that it's needed.
pub(crate) type Live = watch::Receiver<Arc<Loaded>>;

impl Loaded {
    /// With the boot files read anew.
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        // A control API for boot servers elsewhere boots nobody itself.
        let files =
            if settings.networks.is_empty() { tftp::Files::none() } else { tftp::Files::read(&settings.boot_dir)? };
        Ok(Self { settings, files, declared: Declared::default() })
    }

    /// The same server with a new configuration, if it can be taken up.
    pub(crate) fn replaced_by(&self, new: Settings) -> Result<Self> {
        let bound = bound_to_a_restart(&self.settings, &new);
        if !bound.is_empty() {
            bail!("{} can only change with a restart; everything stays as it was", bound.join(", "));
        }
        Ok(Self { declared: self.declared.clone(), ..Self::new(new)? })
    }

    /// The networks, with the partition's servers for clients of those that are configured with none.
    pub(crate) fn networks(&self) -> Vec<Network> {
        let Declared { dns, ntp, .. } = &self.declared;
        let v4 = |address: IpAddr| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let dns: Vec<_> = dns.iter().copied().filter_map(v4).take(MOST_SERVERS).collect();
        // RFC 2132 §8.3 has no room for names, and looking them up here would make answers depend on yet another server.
        let ntp: Vec<_> = ntp.iter().filter_map(|server| server.parse::<Ipv4Addr>().ok()).take(MOST_SERVERS).collect();
        let mut networks = self.settings.networks.clone();
        for network in &mut networks {
            let Dhcp::Server(leasing) = &mut network.dhcp else { continue };
            for (its, partitions) in [(&mut leasing.dns, &dns), (&mut leasing.ntp, &ntp)] {
                if its.is_empty() {
                    its.clone_from(partitions);
                }
            }
        }
        networks
    }
}

/// What differs of what the server is bound to, by the configuration's keys.
fn bound_to_a_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let place = |n: &Network| {
        (n.name.clone(), n.interface.clone(), n.address, n.subnet, n.relayed, n.relay.clone(), n.dhcp.word())
    };
    let places = |settings: &Settings| settings.networks.iter().map(place).collect::<Vec<_>>();
    let url = |settings: &Settings| settings.control.as_ref().map(|control| control.url.clone());
    [
        ("name", old.name != new.name),
        ("partition", old.partition != new.partition),
        ("control", url(old) != url(new)),
        ("listen", old.listen != new.listen),
        ("metrics", old.metrics != new.metrics),
        ("host_names", old.host_names != new.host_names),
        ("state_dir", old.state_dir != new.state_dir),
        ("etcd", old.etcd != new.etcd),
        ("oidc", old.oidc != new.oidc),
        ("requests_per_second", old.requests_per_second != new.requests_per_second),
        ("images_dir", old.images_dir != new.images_dir),
        ("boot_dir", old.boot_dir != new.boot_dir),
        ("socket", old.socket != new.socket),
        ("power_hook", old.power_hook != new.power_hook),
        ("router_advertisements", old.router_advertisements != new.router_advertisements),
        ("ports", old.ports != new.ports),
        ("the networks' names, interfaces, addresses, subnets, relays and kind of dhcp", places(old) != places(new)),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const TEXT: &str = r#"
        agent_cmdline = "quiet"
        [[network]]
        interface = "eth1"
        address = "10.0.1.1"
        subnet = "10.0.1.0/24"
        pool = [{ first = "10.0.1.100", last = "10.0.1.199" }]
        "#;

    fn settings(text: &str) -> Settings {
        toml::from_str::<Config>(text).expect("TOML").check().expect("makes sense")
    }

    #[test]
    fn what_the_server_is_bound_to_needs_a_restart() {
        let old = settings(TEXT);
        for (name, from, to, want) in [
            ("nothing", "", "", vec![]),
            ("a pool", "10.0.1.199", "10.0.1.220", vec![]),
            ("options", "pool =", "dns = [\"10.0.1.1\"]\npool =", vec![]),
            ("kernel arguments", "quiet", "debug", vec![]),
            ("an interface", "eth1", "eth2", vec!["the networks'"]),
            ("the mode", "pool =", "dhcp = \"proxy\"\n#", vec!["the networks'"]),
            (
                "a directory",
                "agent_cmdline",
                "state_dir = \"/x\"\nagent_cmdline",
                vec!["state_dir", "images_dir", "boot_dir", "socket"],
            ),
        ] {
            let got = bound_to_a_restart(&old, &settings(&TEXT.replacen(from, to, 1)));
            assert_eq!(got.len(), want.len(), "{name}: {got:?}");
            assert!(got.iter().zip(&want).all(|(got, want)| got.starts_with(want)), "{name}: {got:?}");
        }
    }
}
