//! From what the file says to what it means.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_control::{EtcdAt, EtcdLogin, EtcdTls, Oidc, backup};
use drophammer_images::{Hash, Import, S3Options};
use drophammer_protocol::sign::PublicKey;
use ipnet::Ipv4Net;

use super::complaint::{Complaints, Key};
use super::settings::{
    Backup, ControlAt, Dhcp, ImportOrder, Leasing, Network, RelayMatch, Reservation, Settings, Who, has_host,
};
use super::{
    BackupConfig, Config, EtcdConfig, Mode, NetworkConfig, OidcConfig, Ports, RelayConfig, ReservationConfig, SOCKET,
};
use crate::dhcp::leases::Pool;

/// Every answer has to fit into the 576 bytes that any DHCP client takes (RFC 2131 §2), with a boot URL in it.
pub(crate) const MOST_SERVERS: usize = 8;
const MOST_ROUTES: usize = 8;
const LONGEST_SEARCH: usize = 100;

impl Config {
    /// What this configuration means, or what is wrong with it.
    pub fn check(&self) -> Result<Settings, Complaints> {
        let mut wrong = Complaints::default();
        let networks: Vec<_> = self
            .networks
            .iter()
            .enumerate()
            .filter_map(|(n, network)| check_network(network, &Key::of("network").item(n), &mut wrong))
            .collect();
        let only_control = !self.listen.is_empty() && self.control.is_none();
        wrong.unless(!self.networks.is_empty() || only_control, &Key::of("network"), || {
            "there is no [[network]]: a boot server needs one to boot machines from (a control API for boot servers \
             elsewhere needs `listen`)"
                .into()
        });
        let control = match self.control.as_deref().map(|url| ControlAt::new(url, None)).transpose() {
            Ok(control) => control,
            Err(why) => {
                wrong.add(Key::of("control"), why);
                None
            }
        };
        wrong.unless(self.listen.is_empty() || self.control.is_none(), &Key::of("listen"), || {
            "a boot server with `control` serves no control API that anybody could be listened for".into()
        });
        for (n, address) in self.listen.iter().enumerate() {
            // The networks' addresses are bound one by one.
            let taken = address.port() == self.ports.https
                && (address.ip().is_unspecified()
                    || self.networks.iter().any(|n| IpAddr::V4(n.address) == address.ip()));
            wrong.unless(!taken || self.networks.is_empty(), &Key::of("listen").item(n), || {
                format!(
                    "{address} is served already, by ports.https on the networks' addresses; give the others one by one"
                )
            });
        }
        let name = self.name.clone().unwrap_or_else(host_name);
        for (key, text) in [("name", &name), ("partition", &self.partition)] {
            wrong.unless(is_word(text), &Key::of(key), || not_a_word(text));
        }
        check_together(&networks, &mut wrong);
        check_ports(self.ports, &mut wrong);
        for (key, text) in [("agent_cmdline", &self.agent_cmdline), ("install_cmdline", &self.install_cmdline)] {
            // iPXE would take `${` for a setting and a line break for the next command.
            let plain = !text.contains("${") && !text.chars().any(char::is_control) && text.is_ascii();
            wrong.unless(plain, &Key::of(key), || {
                format!("kernel arguments are one line of ASCII without ${{…}}, not {text:?}")
            });
        }
        for (n, model) in self.reboot_models.iter().enumerate() {
            wrong.unless(!model.trim().is_empty(), &Key::of("reboot_models").item(n), || {
                "this pattern is empty, so that it fits no model".into()
            });
        }
        if let Some(hook) = &self.power_hook {
            wrong.unless(hook.is_file(), &Key::of("power_hook"), || format!("{} is not a file", hook.display()));
        }
        let mut projects = BTreeMap::new();
        for (name, project) in &self.projects {
            wrong.unless(is_word(name), &Key::of("projects").then(name), || not_a_word(name));
            projects.insert(name.clone(), project.erase_policy.unwrap_or(self.erase_policy));
        }
        let mut image_keys = vec![];
        for (n, key) in self.image_keys.iter().enumerate() {
            match image_key(key) {
                Ok(key) => image_keys.push(key),
                Err(error) => wrong.add(Key::of("image_keys").item(n), format!("{key:?}: {error:#}")),
            }
        }
        let imports = self.check_imports(&mut wrong);
        let oidc = self.oidc.as_ref().and_then(|oidc| check_oidc(oidc, &mut wrong));
        let backup = self.backup.as_ref().and_then(|backup| check_backup(backup, &mut wrong));
        wrong.unless(self.backup.is_none() || self.control.is_none(), &Key::of("backup"), || {
            "a boot server with `control` has no state of machines that could be backed up".into()
        });
        let etcd = self.etcd.as_ref().and_then(|etcd| check_etcd(etcd, &mut wrong));
        wrong.unless(self.etcd.is_none() || self.control.is_none(), &Key::of("etcd"), || {
            "a boot server with `control` has no state of machines that could be in etcd".into()
        });
        let within = |path: &Option<PathBuf>, name| path.clone().unwrap_or_else(|| self.state_dir.join(name));
        wrong.or(|| Settings {
            name,
            partition: self.partition.clone(),
            control,
            listen: self.listen.clone(),
            host_names: self.host_names.clone(),
            metrics: self.metrics,
            images_dir: within(&self.images_dir, "images"),
            boot_dir: within(&self.boot_dir, "boot"),
            socket: within(&self.socket, SOCKET),
            state_dir: self.state_dir.clone(),
            etcd,
            image_keys,
            imports,
            networks,
            ports: self.ports,
            agent_cmdline: self.agent_cmdline.trim().to_owned(),
            install_cmdline: self.install_cmdline.trim().to_owned(),
            reboot_models: self.reboot_models.iter().map(|model| model.trim().to_owned()).collect(),
            power_hook: self.power_hook.clone(),
            backup,
            oidc,
            requests_per_second: self.requests_per_second,
            max_failures: self.max_failures.max(1),
            erase_policy: self.erase_policy,
            erase_again_after: Duration::from_secs(u64::from(self.erase_again_after_days) * 24 * 3600),
            projects,
            router_advertisements: self.router_advertisements,
        })
    }
}

impl Config {
    fn check_imports(&self, wrong: &mut Complaints) -> Vec<ImportOrder> {
        wrong.unless(self.imports.is_empty() || self.control.is_none(), &Key::of("import"), || {
            "a boot server with `control` has its images from there, and imports none".into()
        });
        let mut orders: Vec<ImportOrder> = vec![];
        for (n, wanted) in self.imports.iter().enumerate() {
            let key = Key::of("import").item(n);
            let hash = match (&wanted.sha256, wanted.unchecked) {
                (Some(_), true) => {
                    wrong.add(key.then("unchecked"), "it can't be unchecked and have a sha256".to_owned());
                    continue;
                }
                (Some(sha256), false) => Hash::Sha256(sha256.clone()),
                (None, true) => Hash::None,
                (None, false) => Hash::Beside,
            };
            let somewhere = wanted.url.contains("://") || wanted.url.starts_with('/');
            if !wrong.unless(somewhere, &key.then("url"), || {
                format!("{:?} is neither an address nor an absolute path", wanted.url)
            }) {
                continue;
            }
            match Import::new(&wanted.url, wanted.name.as_deref(), wanted.version.as_deref(), hash) {
                Ok(import) if orders.iter().any(|known| known.import.reference() == import.reference()) => {
                    wrong.add(key, format!("{} is imported already", import.reference()));
                }
                Ok(import) => orders.push(ImportOrder { import, cmdline: wanted.cmdline.trim().to_owned() }),
                Err(why) => wrong.add(key, format!("{why:#}")),
            }
        }
        orders
    }
}

fn check_backup(backup: &BackupConfig, wrong: &mut Complaints) -> Option<Backup> {
    let key = |name| Key::of("backup").then(name);
    let s3 = S3Options {
        endpoint: backup.endpoint.clone(),
        region: backup.region.clone(),
        credentials: backup.credentials.clone(),
    };
    let somewhere = backup.to.starts_with('/') || backup.to.starts_with("s3://");
    wrong.unless(somewhere, &key("to"), || {
        format!("{:?} is neither an absolute path nor s3://BUCKET/PREFIX", backup.to)
    });
    let secret = fs::read_to_string(&backup.key_file).map_err(anyhow::Error::new);
    if let Err(error) = secret.and_then(|text| backup::Key::read(&text)) {
        wrong.add(key("key_file"), format!("reading {}: {error:#}", backup.key_file.display()));
        return None;
    }
    let every = Duration::from_secs(u64::from(backup.every_hours.get()) * 3600);
    let (to, key_file, keep) = (backup.to.clone(), backup.key_file.clone(), usize::from(backup.keep.get()));
    somewhere.then_some(Backup { to, s3, key_file, every, keep })
}

fn check_oidc(oidc: &OidcConfig, wrong: &mut Complaints) -> Option<Oidc> {
    let key = |name| Key::of("oidc").then(name);
    wrong.unless(oidc.issuer.starts_with("https://"), &key("issuer"), || {
        format!("{:?} is not a provider's address: it looks like https://login.example.org", oidc.issuer)
    });
    wrong.unless(!oidc.audience.is_empty(), &key("audience"), || "a token for nobody is for everybody".into());
    let ca = match fs::read_to_string(&oidc.ca) {
        Ok(ca) => ca,
        Err(error) => {
            wrong.add(key("ca"), format!("reading {}: {error}", oidc.ca.display()));
            return None;
        }
    };
    Some(Oidc {
        issuer: oidc.issuer.clone(),
        audience: oidc.audience.clone(),
        ca,
        user_claim: oidc.user_claim.clone(),
        groups_claim: oidc.groups_claim.clone(),
        admins: oidc.admins.clone(),
        viewers: oidc.viewers.clone(),
    })
}

fn check_etcd(etcd: &EtcdConfig, wrong: &mut Complaints) -> Option<EtcdAt> {
    let key = |name| Key::of("etcd").then(name);
    wrong.unless(!etcd.endpoints.is_empty(), &key("endpoints"), || "there is no member".into());
    let is_secure = |endpoint: &String| endpoint.starts_with("https://");
    for (n, endpoint) in etcd.endpoints.iter().enumerate() {
        let host = endpoint.strip_prefix("https://").or(endpoint.strip_prefix("http://"));
        wrong.unless(host.is_some_and(|host| host.contains(':')), &key("endpoints").item(n), || {
            format!("{endpoint:?} is not the address of a member: it looks like https://10.0.0.1:2379")
        });
    }
    wrong.unless(etcd.prefix.starts_with('/') && etcd.prefix.len() > 1, &key("prefix"), || {
        format!("{:?} is not a prefix such as \"/drophammer\"", etcd.prefix)
    });
    let mut read = |name, path: &Option<PathBuf>| {
        let path = path.as_ref()?;
        match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) => {
                wrong.add(key(name), format!("reading {}: {error}", path.display()));
                None
            }
        }
    };
    let (ca, certificate) = (read("ca", &etcd.ca), read("certificate", &etcd.certificate));
    let (secret, password) = (read("key", &etcd.key), read("password_file", &etcd.password_file));
    wrong.unless(etcd.certificate.is_some() == etcd.key.is_some(), &key("certificate"), || {
        "a certificate needs its key, and a key its certificate".into()
    });
    wrong.unless(etcd.user.is_some() == etcd.password_file.is_some(), &key("user"), || {
        "a user needs a password_file, and a password its user".into()
    });
    let secure = etcd.endpoints.iter().any(is_secure);
    wrong.unless(etcd.ca.is_some() == secure, &key("ca"), || {
        "members at https:// are known by a `ca`, and those at http:// by nothing".into()
    });
    Some(EtcdAt {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone(),
        tls: ca.map(|ca| EtcdTls { ca, identity: certificate.zip(secret) }),
        login: etcd
            .user
            .clone()
            .zip(password)
            .map(|(user, password)| EtcdLogin { user, password: password.trim_end_matches(['\r', '\n']).to_owned() }),
    })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

fn not_a_word(text: &str) -> String {
    format!("{text:?} is not a word of 64 characters or less")
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "boot-server".into())
}

fn check_ports(ports: Ports, wrong: &mut Complaints) {
    let key = |name| Key::of("ports").then(name);
    let udp = [("dhcp", ports.dhcp), ("proxy_dhcp", ports.proxy_dhcp), ("tftp", ports.tftp)];
    for taken in [&udp[..], &[("http", ports.http), ("https", ports.https)]] {
        for (n, (name, port)) in taken.iter().enumerate() {
            wrong.unless(*port != 0, &key(name), || "0 is not a port".into());
            let other = taken.iter().take(n).find(|(_, other)| other == port);
            if let Some((other, _)) = other {
                wrong.add(key(name), format!("{port} is already ports.{other}"));
            }
        }
    }
}

fn check_network(net: &NetworkConfig, key: &Key, wrong: &mut Complaints) -> Option<Network> {
    let subnet = net.subnet;
    wrong.unless(!net.interface.is_empty() && net.interface.len() < libc::IFNAMSIZ, &key.then("interface"), || {
        format!("{:?} is not the name of a network interface", net.interface)
    });
    let sane = wrong.unless(subnet == subnet.trunc(), &key.then("subnet"), || {
        format!("{subnet} is an address in a network; the network is {}", subnet.trunc())
    }) & wrong.unless((12..=30).contains(&subnet.prefix_len()), &key.then("subnet"), || {
        format!("{subnet} has a prefix outside 12 to 30: more than a million or less than 2 hosts aren't supported")
    });
    if !sane {
        return None;
    }
    wrong.unless(net.relayed || has_host(subnet, net.address), &key.then("address"), || {
        format!("{} is not a host's address in {subnet} (for a network behind relays: `relayed = true`)", net.address)
    });
    let relay = relay_match(&net.relay);
    wrong.unless(net.relayed || relay.is_any(), &key.then("relay"), || {
        "only relays say where a client is: it needs `relayed = true`".into()
    });
    let dhcp = match net.dhcp {
        Mode::Server => Dhcp::Server(Box::new(check_leasing(net, key, wrong))),
        mode => {
            let unused = [
                ("pool", net.pool.is_empty()),
                ("share", net.share.is_none()),
                ("reservations", net.reservations.is_empty()),
            ];
            for (name, _) in unused.into_iter().filter(|(_, unused)| !unused) {
                wrong.add(key.then(name), "only `dhcp = \"server\"` gives out addresses".to_owned());
            }
            if mode == Mode::Proxy { Dhcp::Proxy } else { Dhcp::Off }
        }
    };
    Some(Network {
        name: net.name.clone().unwrap_or_else(|| net.interface.clone()),
        interface: net.interface.clone(),
        address: net.address,
        subnet,
        relayed: net.relayed,
        relay,
        dhcp,
        others: net.others.clone(),
    })
}

fn check_leasing(net: &NetworkConfig, key: &Key, wrong: &mut Complaints) -> Leasing {
    let subnet = net.subnet;
    let here = |address: Ipv4Addr, key: &Key, wrong: &mut Complaints| {
        wrong.unless(has_host(subnet, address), key, || format!("{address} is not a host's address in {subnet}"))
    };
    wrong.unless(!net.pool.is_empty() || !net.reservations.is_empty(), &key.then("pool"), || {
        "there is neither a pool nor a reservation: nobody could be given an address".into()
    });
    for (n, range) in net.pool.iter().enumerate() {
        let key = key.then("pool").item(n);
        here(range.first, &key.then("first"), wrong);
        here(range.last, &key.then("last"), wrong);
        wrong.unless(range.first <= range.last, &key, || {
            format!("first ({}) comes after last ({})", range.first, range.last)
        });
    }
    if let Some(share) = net.share {
        wrong.unless((1..=64).contains(&share.of) && (1..=share.of).contains(&share.part), &key.then("share"), || {
            format!("part {} of {} is not a share: of 1 to 64 servers, each has a part from 1", share.part, share.of)
        });
    }
    if let Some(router) = net.router {
        here(router, &key.then("router"), wrong);
    }
    for (name, list) in [("dns", &net.dns), ("ntp", &net.ntp)] {
        wrong.unless(list.len() <= MOST_SERVERS, &key.then(name), || {
            format!("at most {MOST_SERVERS} servers fit into an answer, not {}", list.len())
        });
    }
    wrong.unless(net.routes.len() <= MOST_ROUTES, &key.then("routes"), || {
        format!("at most {MOST_ROUTES} routes fit into an answer, not {}", net.routes.len())
    });
    for (n, route) in net.routes.iter().enumerate() {
        here(route.via, &key.then("routes").item(n).then("via"), wrong);
    }
    for (n, domain) in net.search.iter().enumerate() {
        wrong.unless(is_domain(domain), &key.then("search").item(n), || format!("{domain:?} is not a domain name"));
    }
    wrong.unless(net.search.iter().map(|d| d.len() + 2).sum::<usize>() <= LONGEST_SEARCH, &key.then("search"), || {
        format!("the domains are more than the {LONGEST_SEARCH} bytes that fit into an answer")
    });
    if let Some(mtu) = net.mtu {
        // RFC 791: what every host takes. RFC 2132 §5.1 allows 68, with which nothing boots.
        wrong.unless(mtu >= 576, &key.then("mtu"), || format!("{mtu} is less than the 576 that IPv4 needs"));
    }
    wrong.unless(net.lease_seconds >= 60, &key.then("lease_seconds"), || {
        format!("{} is less than a minute, which a slow boot loader outlives", net.lease_seconds)
    });
    wrong.unless(net.probe_ms <= 2000, &key.then("probe_ms"), || {
        format!("{} is longer than boot loaders wait for an offer; 2000 is the most", net.probe_ms)
    });
    let mut reservations: Vec<Reservation> = vec![];
    for (n, reservation) in net.reservations.iter().enumerate() {
        let key = key.then("reservations").item(n);
        here(reservation.address, &key.then("address"), wrong);
        wrong.unless(reservation.address != net.address, &key.then("address"), || {
            format!("{} is this server's own address", reservation.address)
        });
        wrong.unless(reservations.iter().all(|r| r.address != reservation.address), &key.then("address"), || {
            format!("{} is reserved twice", reservation.address)
        });
        let who = who(reservation);
        wrong.unless(who != Who::default(), &key, || {
            "it says nothing about whom the address is for: mac, uuid, client_id, circuit_id or remote_id".into()
        });
        wrong.unless(reservations.iter().all(|r| r.who != who), &key, || {
            format!("another reservation is for the same client; {} would never be used", reservation.address)
        });
        if let Some(hostname) = &reservation.hostname {
            wrong.unless(is_domain(hostname), &key.then("hostname"), || format!("{hostname:?} is not a host name"));
        }
        reservations.push(Reservation { who, address: reservation.address, hostname: reservation.hostname.clone() });
    }
    let own = [Some(net.address), net.router].into_iter().flatten();
    Leasing {
        pool: Pool {
            ranges: net.pool.iter().map(|range| (range.first, range.last)).collect(),
            share: net.share.map(|share| (share.part, share.of)),
            taken: own.collect(),
            reserved: reservations.iter().map(|r| (r.address, r.who.mac)).collect(),
        },
        reservations,
        lease_seconds: net.lease_seconds,
        probe: (net.probe_ms > 0).then(|| Duration::from_millis(net.probe_ms.into())),
        router: net.router,
        dns: net.dns.clone(),
        ntp: net.ntp.clone(),
        mtu: net.mtu,
        search: net.search.clone(),
        routes: net.routes.clone(),
    }
}

/// A packet has to belong to one network, and an address to one pool.
fn check_together(networks: &[Network], wrong: &mut Complaints) {
    for (n, network) in networks.iter().enumerate() {
        let key = Key::of("network").item(n);
        for other in networks.iter().take(n) {
            wrong.unless(network.name != other.name, &key.then("name"), || {
                format!("another network is called {} already", other.name)
            });
            let wires = [network, other].map(|n| (!n.relayed).then_some(&n.interface));
            wrong.unless(wires[0].is_none() || wires[0] != wires[1], &key.then("interface"), || {
                format!("{} is the interface of network {} already", network.interface, other.name)
            });
            let told_apart = network.relayed && other.relayed && !network.relay.is_any() && !other.relay.is_any();
            wrong.unless(told_apart || !overlap(network.subnet, other.subnet), &key.then("subnet"), || {
                format!("{} overlaps {} of network {}", network.subnet, other.subnet, other.name)
            });
            if let (Dhcp::Server(mine), Dhcp::Server(theirs)) = (&network.dhcp, &other.dhcp) {
                let shared = mine.pool.ranges.iter().any(|(first, last)| {
                    theirs
                        .pool
                        .ranges
                        .iter()
                        .any(|(other_first, other_last)| first <= other_last && other_first <= last)
                });
                wrong.unless(!shared, &key.then("pool"), || {
                    format!("it has addresses of the pool of network {}", other.name)
                });
            }
        }
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn who(reservation: &ReservationConfig) -> Who {
    Who {
        mac: reservation.mac,
        uuid: reservation.uuid,
        client_id: reservation.client_id.clone(),
        relay: RelayMatch { circuit_id: reservation.circuit_id.clone(), remote_id: reservation.remote_id.clone() },
    }
}

fn relay_match(relay: &RelayConfig) -> RelayMatch {
    RelayMatch { circuit_id: relay.circuit_id.clone(), remote_id: relay.remote_id.clone() }
}

/// RFC 1035 §2.3.1, as lax as the world is about digits and underscores.
fn is_domain(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(letter))
}

fn image_key(text: &str) -> Result<PublicKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let content = fs::read_to_string(text).context("neither 64 hex digits nor a file that can be read")?;
    Ok(content.parse()?)
}

#[cfg(test)]
mod tests;
