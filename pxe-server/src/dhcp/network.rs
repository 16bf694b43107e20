//! Which network a request is of, and what is kept there for the client that sent it.

use crate::config::{Leasing, Network, Reservation, Who};

use super::leases::Client;
use super::request::Request;

/// The place in `networks` of the one that a request is of which came in on `interface`.
///
/// A relay names the client's subnet (RFC 2131 §4.3.1, RFC 3527, RFC 3011). A client that has an address is where that is
/// from: it renews past its relay. Everybody else is on the wire that the request came from.
pub fn find(request: &Request, interface: &str, networks: &[Network]) -> Option<usize> {
    let there = |network: &Network| network.interface == interface;
    let relayed = !request.giaddr.is_unspecified();
    let link = request.relay.as_ref().and_then(|relay| relay.link).or(request.subnet).unwrap_or(request.giaddr);
    let on_the_wire = || networks.iter().position(|n| there(n) && !n.relayed);
    if relayed {
        let fits = |n: &Network| there(n) && n.subnet.contains(&link) && n.relay.fits(request.relay.as_ref());
        return networks.iter().position(fits);
    }
    if request.ciaddr.is_unspecified() {
        return on_the_wire();
    }
    networks.iter().position(|n| there(n) && n.subnet.contains(&request.ciaddr)).or_else(on_the_wire)
}

impl Leasing {
    /// What is reserved for whoever sent this.
    pub fn reservation(&self, request: &Request) -> Option<&Reservation> {
        self.reservations.iter().find(|reservation| reservation.who.is(request))
    }

    pub fn client(&self, request: &Request) -> Client {
        Client { mac: request.mac, reserved: self.reservation(request).map(|r| r.address) }
    }
}

impl Who {
    fn is(&self, request: &Request) -> bool {
        self.mac.is_none_or(|mac| mac == request.mac)
            && self.uuid.is_none_or(|uuid| request.uuids().is_some_and(|either| either.contains(&uuid)))
            && self.client_id.as_ref().is_none_or(|id| Some(&id.0) == request.client_id.as_ref())
            && self.relay.fits(request.relay.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::request::tests::packet;
    use super::*;
    use crate::config::{Config, Dhcp};

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];

    fn networks() -> Vec<Network> {
        let text = r#"
            [[network]]
            name = "wire"
            interface = "eth0"
            address = "10.77.0.1"
            subnet = "10.77.0.0/24"
            pool = [{ first = "10.77.0.100", last = "10.77.0.199" }]
            reservations = [
                { mac = "52:54:00:77:00:09", address = "10.77.0.9" },
                { uuid = "12345678-9abc-4ef0-9234-56789abcdef0", address = "10.77.0.10" },
                { client_id = "0x01525400770009", address = "10.77.0.11" },
                { circuit_id = "Ethernet7", remote_id = "leaf1", address = "10.77.0.12" },
            ]
            [[network]]
            name = "other wire"
            interface = "eth1"
            address = "10.78.0.1"
            subnet = "10.78.0.0/24"
            dhcp = "proxy"
            [[network]]
            name = "rack 1"
            interface = "eth0"
            address = "10.77.0.1"
            subnet = "10.81.0.0/24"
            relayed = true
            relay = { remote_id = "leaf1" }
            pool = [{ first = "10.81.0.100", last = "10.81.0.149" }]
            [[network]]
            name = "rack 2"
            interface = "eth0"
            address = "10.77.0.1"
            subnet = "10.81.0.0/24"
            relayed = true
            relay = { remote_id = "leaf2" }
            pool = [{ first = "10.81.0.150", last = "10.81.0.199" }]
        "#;
        let config: Config = toml::from_str(text).expect("TOML");
        config.check().expect("makes sense").networks
    }

    fn discover(options: &[(u8, &[u8])]) -> Request {
        let options = [&[(53, &[1_u8][..])], options].concat();
        Request::parse(&packet(MAC, &options)).expect("a request")
    }

    #[test]
    fn requests_find_their_network() {
        let leaf = |n: u8| vec![2, 5, b'l', b'e', b'a', b'f', b'0' + n];
        let through = |giaddr: [u8; 4], leaf: &[u8]| Request { giaddr: giaddr.into(), ..discover(&[(82, leaf)]) };
        let at = |ciaddr: [u8; 4]| Request { ciaddr: ciaddr.into(), ..discover(&[]) };
        let link = [&leaf(2)[..], &[5, 4, 10, 81, 0, 0]].concat();
        for (name, interface, request, want) in [
            ("from the wire", "eth0", discover(&[]), Some("wire")),
            ("from the other wire", "eth1", discover(&[]), Some("other wire")),
            ("through the relay of rack 1", "eth0", through([10, 81, 0, 254], &leaf(1)), Some("rack 1")),
            ("through the relay of rack 2", "eth0", through([10, 81, 0, 254], &leaf(2)), Some("rack 2")),
            ("through another relay", "eth0", through([10, 81, 0, 254], &leaf(3)), None),
            ("through a relay on the wrong interface", "eth1", through([10, 81, 0, 254], &leaf(1)), None),
            ("through a relay on the wire itself", "eth0", through([10, 77, 0, 2], &leaf(9)), Some("wire")),
            ("a link that isn't giaddr's", "eth0", through([10, 9, 9, 9], &link), Some("rack 2")),
            (
                "a subnet that isn't giaddr's",
                "eth0",
                Request { giaddr: [10, 9, 9, 9].into(), ..discover(&[(118, &[10, 77, 0, 0])]) },
                Some("wire"),
            ),
            ("a relay in a network that isn't ours", "eth0", through([10, 9, 9, 9], &leaf(1)), None),
            ("renewing on the wire", "eth0", at([10, 77, 0, 100]), Some("wire")),
            ("with an address from elsewhere", "eth0", at([192, 168, 0, 1]), Some("wire")),
            ("from nowhere", "eth9", discover(&[]), None),
        ] {
            let networks = networks();
            let found = find(&request, interface, &networks).map(|n| networks[n].name.as_str());
            assert_eq!(found, want, "{name}");
        }
    }

    #[test]
    fn clients_find_what_is_reserved_for_them() {
        let networks = networks();
        let Dhcp::Server(leasing) = &networks[0].dhcp else { panic!("a server") };
        let uuid: uuid::Uuid = "12345678-9abc-4ef0-9234-56789abcdef0".parse().expect("a UUID");
        let option = |bytes: &[u8]| [&[0], bytes].concat();
        let (little, big) = (option(&uuid.to_bytes_le()), option(uuid.as_bytes()));
        for (name, request, want) in [
            ("nothing", discover(&[]), None),
            (
                "a card",
                Request { mac: "52:54:00:77:00:09".parse().expect("a MAC"), ..discover(&[]) },
                Some([10, 77, 0, 9]),
            ),
            ("a UUID", discover(&[(97, &little)]), Some([10, 77, 0, 10])),
            ("a UUID in the other byte order", discover(&[(97, &big)]), Some([10, 77, 0, 10])),
            ("a client id", discover(&[(61, &[1, 0x52, 0x54, 0, 0x77, 0, 9])]), Some([10, 77, 0, 11])),
            ("a port of a switch", discover(&[(82, b"\x01\x09Ethernet7\x02\x05leaf1")]), Some([10, 77, 0, 12])),
            ("a port of another switch", discover(&[(82, b"\x01\x09Ethernet7\x02\x05leaf2")]), None),
        ] {
            assert_eq!(leasing.client(&request).reserved, want.map(Ipv4Addr::from), "{name}");
        }
    }
}
