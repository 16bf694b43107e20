//! The port through which the server is reached: the one that the installed system shall use, too.

use std::fs;
use std::net::{IpAddr, UdpSocket};

use drophammer_protocol::id::Mac;
use nix::ifaddrs::getifaddrs;

/// What this boot found out about its network and the installed system needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// `None` where it can't be told: then every Ethernet port is configured.
    pub(crate) mac: Option<Mac>,
    pub(crate) nameservers: Vec<IpAddr>,
}

pub(crate) fn find(server: &str) -> Uplink {
    let nameservers = nameservers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    Uplink { mac: local_address(server).and_then(mac_of), nameservers }
}

/// Asks the routing table; a UDP socket that is connected sends nothing.
fn local_address(server: &str) -> Option<IpAddr> {
    let address = reqwest::Url::parse(server).ok()?.socket_addrs(|| None).ok()?.into_iter().next()?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(address).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn mac_of(address: IpAddr) -> Option<Mac> {
    let port = getifaddrs().ok()?.find(|port| {
        let here = port.address.as_ref();
        match address {
            IpAddr::V4(v4) => here.and_then(|a| a.as_sockaddr_in()).is_some_and(|a| a.ip() == v4),
            IpAddr::V6(v6) => here.and_then(|a| a.as_sockaddr_in6()).is_some_and(|a| a.ip() == v6),
        }
    })?;
    let mac: Mac =
        fs::read_to_string(format!("/sys/class/net/{}/address", port.interface_name)).ok()?.trim().parse().ok()?;
    // The loopback has no address of its own.
    (mac != Mac([0; 6])).then_some(mac)
}

/// resolv.conf(5)
fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_as_written() {
        let text =
            "# none\nsearch example.org\nnameserver 192.0.2.1\n nameserver\t2001:db8::1\nnameserver fe80::1%eth0\n";
        assert_eq!(nameservers(text), ["192.0.2.1".parse::<IpAddr>().expect("v4"), "2001:db8::1".parse().expect("v6")]);
    }

    #[test]
    fn a_server_on_the_loopback_has_no_port() {
        assert_eq!(find("http://127.0.0.1:1").mac, None);
        assert_eq!(find("not a url").mac, None);
    }
}
