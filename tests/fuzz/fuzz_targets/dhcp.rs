//! A packet to port 67 or 4011: request, network, decision, answer. As a server on the wire, behind a relay, as a proxy.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use dhcproto::Encodable;
use dhcproto::v4::borrowed;
use drophammer_protocol::id::Mac;
use drophammer_pxe_server::Config;
use drophammer_pxe_server::config::{Dhcp, Network};
use drophammer_pxe_server::dhcp::boot::{LOADERS, Site};
use drophammer_pxe_server::dhcp::decide::{Answer, Decision, Policy, Verdict, decide};
use drophammer_pxe_server::dhcp::leases::{Entry, Holder, Leases};
use drophammer_pxe_server::dhcp::network::find;
use drophammer_pxe_server::dhcp::proxy::{self, Port};
use drophammer_pxe_server::dhcp::request::{Kind, Request};
use libfuzzer_sys::fuzz_target;

const NETWORKS: &str = r#"
    [[network]]
    name = "wire"
    interface = "eth0"
    address = "10.77.0.1"
    subnet = "10.77.0.0/24"
    pool = [{ first = "10.77.0.10", last = "10.77.0.13" }]
    router = "10.77.0.254"
    dns = ["10.77.0.1"]
    ntp = ["10.77.0.2"]
    mtu = 9000
    search = ["rack.example.org", "example.org"]
    routes = [{ to = "10.0.0.0/8", via = "10.77.0.253" }]
    reservations = [
        { uuid = "12345678-9abc-4ef0-9234-56789abcdef0", address = "10.77.0.20", hostname = "db1" },
        { mac = "52:54:00:77:00:09", address = "10.77.0.21" },
        { client_id = "0x01525400770009", address = "10.77.0.22" },
        { circuit_id = "Ethernet7", remote_id = "leaf1", address = "10.77.0.23" },
    ]
    [[network]]
    name = "rack"
    interface = "eth0"
    address = "10.77.0.1"
    subnet = "10.81.0.0/24"
    relayed = true
    pool = [{ first = "10.81.0.100", last = "10.81.0.103" }]
    share = { part = 1, of = 2 }
    [[network]]
    name = "other wire"
    interface = "eth1"
    address = "10.78.0.1"
    subnet = "10.78.0.0/24"
    dhcp = "proxy"
"#;
const NOW: u64 = 1000;

static SERVER: LazyLock<(Vec<Network>, Site)> = LazyLock::new(|| {
    let config: Config = toml::from_str(NETWORKS).expect("TOML");
    let loaders = LOADERS.into_iter().skip(1).map(|(firmware, [best, _])| (firmware, best)).collect();
    (config.check().expect("makes sense").networks, Site::new(Ipv4Addr::new(10, 77, 0, 1), 80, loaders, true))
});

fuzz_target!(|packet: &[u8]| {
    let Some(request) = Request::parse(packet) else { return };
    let (networks, site) = &*SERVER;
    for interface in ["eth0", "eth1"] {
        let Some(network) = find(&request, interface, networks).and_then(|n| networks.get(n)) else { continue };
        match &network.dhcp {
            Dhcp::Server(leasing) => serve(&request, Policy { network, leasing, site }),
            Dhcp::Proxy => {
                for port in [Port::Dhcp, Port::ProxyDhcp] {
                    let decision = proxy::decide(&request, port, network, site);
                    let given = decision.answer.as_ref().map(|answer| check(&request, answer));
                    assert!(decision.change.is_none() && given.is_none_or(|given| given.is_unspecified()));
                }
            }
            Dhcp::Off => {}
        }
    }
});

fn serve(request: &Request, policy: Policy<'_>) {
    let pool = &policy.leasing.pool;
    let bound = Entry { holder: Holder::Bound(Mac([0x52, 0x54, 0, 0x77, 0, 2])), until: 2 * NOW };
    let declined = Entry { holder: Holder::Declined, until: 2 * NOW };
    let first = pool.ranges.first().expect("a pool").0;
    let leases = [(first, bound), (Ipv4Addr::from_bits(first.to_bits() + 2), declined)];
    let mut leases = Leases::new(pool.clone(), leases);
    let Decision { change, verdict, answer, .. } = decide(request, policy, &leases, NOW);
    change.map(|change| leases.apply(change));
    let given = answer.map(|answer| check(request, &answer));
    match verdict {
        Verdict::Offer(address) | Verdict::Ack(address) | Verdict::Renew(address) => {
            assert!(pool.contains(address) || pool.reserved.contains_key(&address), "{address} isn't ours to give");
            assert_eq!((given, leases.address_of(request.mac)), (Some(address), Some(address)));
        }
        _ => assert!(given.is_none_or(|given| given.is_unspecified())),
    }
    // What is offered is given.
    if let Verdict::Offer(address) = verdict {
        let server = request.relay.as_ref().and_then(|relay| relay.server).unwrap_or(policy.network.address);
        let taken = Request { kind: Kind::Request, server: Some(server), wanted: Some(address), ..request.clone() };
        assert_eq!(decide(&taken, policy, &leases, NOW + 1).verdict, Verdict::Ack(address));
    }
}

/// That the client, its relay and any implementation of DHCP can take this answer. The address that it gives.
fn check(request: &Request, answer: &Answer) -> Ipv4Addr {
    let bytes = answer.message.to_vec().expect("an answer that can be sent");
    let echoed = request.relay.as_ref().map_or(0, |relay| relay.raw.len() + 2);
    // RFC 2131 §2: every client takes 576 bytes, with the headers of IP and UDP.
    assert!(bytes.len() <= 548 + echoed, "{} bytes", bytes.len());
    let read = borrowed::Message::new(&bytes).expect("an answer that can be read");
    assert_eq!((read.xid(), read.giaddr(), read.chaddr()), (request.xid, request.giaddr, &request.mac.0[..]));
    let options =
        |code: u8| read.opts().filter(move |option| u8::from(option.code()) == code).map(|o| o.data().to_vec());
    // RFC 3046 §2.0: an empty one is none.
    let relay = request.relay.as_ref().map(|relay| relay.raw.clone()).filter(|raw| !raw.is_empty());
    assert_eq!(options(82).collect::<Vec<_>>(), Vec::from_iter(relay));
    assert_eq!((options(53).count(), options(54).count()), (1, 1));
    read.yiaddr()
}
