use std::collections::HashMap;

use proptest::prelude::*;

use super::super::leases::tests::{ip, mac, pool};
use super::super::leases::{Entry, Holder};
use super::super::request::Firmware;
use super::super::request::tests::packet;
use super::*;
use crate::config::{Config, Dhcp};

const NOW: u64 = 1000;

/// A network with every option, whose pool is .10 to .13, and a site with everything but ARM32's loader.
struct Fixture {
    network: Network,
    site: Site,
}

impl Fixture {
    fn new() -> Self {
        let text = r#"
            [[network]]
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
            reservations = [{ uuid = "12345678-9abc-4ef0-9234-56789abcdef0", address = "10.77.0.20", hostname = "db1" }]
        "#;
        let config: Config = toml::from_str(text).expect("TOML");
        Self { network: config.check().expect("makes sense").networks.remove(0), site: boot::tests::site() }
    }

    fn decide(&self, request: &Request, leases: &Leases, now: u64) -> Decision {
        let Dhcp::Server(leasing) = &self.network.dhcp else { panic!("a server") };
        decide(request, Policy { network: &self.network, leasing, site: &self.site }, leases, now)
    }
}

/// The address pool is .10 to .12; client 2 holds .11 and client 3 has .12 declined.
fn leases() -> Leases {
    let rows = [
        (ip(11), Entry { holder: Holder::Bound(mac(2)), until: 5000 }),
        (ip(12), Entry { holder: Holder::Declined, until: 5000 }),
    ];
    Leases::new(pool(10, 12), rows)
}

fn ask(client: u8, kind: u8, options: &[(u8, &[u8])]) -> Request {
    let kind = [kind];
    let all: Vec<_> = [(53, &kind[..])].into_iter().chain(options.iter().copied()).collect();
    Request::parse(&packet(mac(client).0, &all)).expect("a request")
}

fn verdict(request: &Request) -> Verdict {
    Fixture::new().decide(request, &leases(), NOW).verdict
}

/// Option 97 of the machine that .20 is kept for.
const DB1: &[u8] = &[0, 0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xf0, 0x4e, 0x92, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0];

#[test]
fn rfc_2131_4_3_case_by_case() {
    use Verdict::*;
    let ours: (u8, &[u8]) = (54, &[10, 77, 0, 1]);
    let other: (u8, &[u8]) = (54, &[10, 77, 0, 2]);
    let want10: (u8, &[u8]) = (50, &[10, 77, 0, 10]);
    let want11: (u8, &[u8]) = (50, &[10, 77, 0, 11]);
    let want12: (u8, &[u8]) = (50, &[10, 77, 0, 12]);
    let want99: (u8, &[u8]) = (50, &[10, 77, 0, 99]);
    let elsewhere: (u8, &[u8]) = (50, &[192, 168, 0, 5]);
    let at = |request: Request, last| Request { ciaddr: ip(last), ..request };
    let taken = Nak("the address is another client's");
    for (name, request, want) in [
        ("discover", ask(1, 1, &[]), Offer(ip(10))),
        ("discover by a holder", ask(2, 1, &[]), Offer(ip(11))),
        ("discover, wanting another's", ask(1, 1, &[want11]), Offer(ip(10))),
        ("selecting", ask(1, 3, &[ours, want10]), Ack(ip(10))),
        ("selecting another's", ask(1, 3, &[ours, want11]), taken),
        ("selecting a declined one", ask(1, 3, &[ours, want12]), taken),
        ("selecting outside the pool", ask(1, 3, &[ours, want99]), Nak("the address isn't in our pool")),
        ("selecting another server", ask(1, 3, &[other, want10]), Silent("the client took another server's offer")),
        ("selecting nothing", ask(1, 3, &[ours]), Silent("it accepts an offer without saying which address")),
        ("rebooting", ask(2, 3, &[want11]), Ack(ip(11))),
        ("rebooting with another's", ask(1, 3, &[want11]), taken),
        ("rebooting, unknown to us", ask(1, 3, &[want10]), Ack(ip(10))),
        ("rebooting, known for another", ask(2, 3, &[want10]), Nak("the client has another address here")),
        ("rebooting from elsewhere", ask(1, 3, &[elsewhere]), Nak("the address is of another network")),
        ("rebooting outside the pool", ask(1, 3, &[want99]), Silent("it remembers an address that isn't from us")),
        ("renewing", at(ask(2, 3, &[]), 11), Renew(ip(11))),
        ("renewing another's", at(ask(1, 3, &[]), 11), taken),
        ("renewing after our loss", at(ask(1, 3, &[]), 10), Renew(ip(10))),
        ("declining", ask(2, 4, &[ours, want11]), Declined(ip(11))),
        (
            "declining another's",
            ask(1, 4, &[ours, want11]),
            Silent("it declines an address that it doesn't have from us"),
        ),
        ("releasing", at(ask(2, 7, &[]), 11), Released(ip(11))),
        ("releasing another's", at(ask(1, 7, &[]), 11), Silent("it releases an address that it doesn't have from us")),
        ("informing", at(ask(1, 8, &[]), 77), Inform),
        ("discover with what is kept for it", ask(1, 1, &[(97, DB1)]), Offer(ip(20))),
        ("discover, wanting what is kept for another", ask(1, 1, &[(50, &[10, 77, 0, 20])]), Offer(ip(10))),
        ("selecting what is kept for another", ask(1, 3, &[ours, (50, &[10, 77, 0, 20])]), taken),
        (
            "selecting by the name that the relay gave us",
            ask(1, 3, &[(54, &[10, 77, 0, 200]), want10, (82, &[11, 4, 10, 77, 0, 200])]),
            Ack(ip(10)),
        ),
        (
            "discover by what has no boot file",
            ask(1, 1, &[(60, b"PXEClient"), (93, &[0, 10])]),
            Unbootable(boot::Unbootable::NoLoader(Firmware::UefiArm32)),
        ),
    ] {
        assert_eq!(verdict(&request), want, "{name}");
    }
}

#[test]
fn a_full_pool_is_said_so() {
    let rows = (10..=12).map(|n| (ip(n), Entry { holder: Holder::Bound(mac(n)), until: 5000 }));
    let decision = Fixture::new().decide(&ask(1, 1, &[]), &Leases::new(pool(10, 12), rows), NOW);
    assert_eq!(decision.verdict, Verdict::Silent(POOL_IS_FULL));
}

#[test]
fn answers_go_where_the_client_hears_them() {
    let ours: (u8, &[u8]) = (54, &[10, 77, 0, 1]);
    let want10: (u8, &[u8]) = (50, &[10, 77, 0, 10]);
    let select = || ask(1, 3, &[ours, want10]);
    let steal = || ask(1, 3, &[ours, (50, &[10, 77, 0, 11])]);
    for (name, request, want) in [
        ("no address yet", select(), Destination::Unconfigured(mac(1), ip(10))),
        ("no address yet, can't hear unicast", Request { flags: 0x8000, ..select() }, Destination::Broadcast),
        ("has an address", Request { ciaddr: ip(11), ..ask(2, 3, &[]) }, Destination::Configured(ip(11))),
        ("behind a relay", Request { giaddr: ip(200), ..select() }, Destination::Relay(ip(200))),
        ("a refusal", steal(), Destination::Broadcast),
        ("a refusal to one with an address", Request { ciaddr: ip(11), ..ask(1, 3, &[]) }, Destination::Broadcast),
        ("a refusal behind a relay", Request { giaddr: ip(200), ..steal() }, Destination::Relay(ip(200))),
        ("options only", Request { ciaddr: ip(77), ..ask(1, 8, &[]) }, Destination::Configured(ip(77))),
    ] {
        let answer = Fixture::new().decide(&request, &leases(), NOW).answer.expect(name);
        assert_eq!(answer.to, want, "{name}");
    }
}

#[test]
fn leases_are_as_long_as_asked_within_limits() {
    for (name, asked, want) in [
        ("nothing asked", None, 3600),
        ("less", Some(600), 600),
        ("more", Some(u32::MAX), 3600),
        ("silly", Some(1), 60),
    ] {
        let request = Request { lease_seconds: asked, ..ask(1, 1, &[]) };
        let answer = Fixture::new().decide(&request, &leases(), NOW).answer.expect(name);
        let got = answer.message.opts().get(OptionCode::AddressLeaseTime);
        assert_eq!(got, Some(&DhcpOption::AddressLeaseTime(want)), "{name}");
    }
}

#[test]
fn relays_and_pxe_clients_see_their_options_again() {
    let machine: Vec<u8> = (0..17).collect();
    let options: [(u8, &[u8]); 4] = [(60, b"PXEClient"), (93, &[0, 7]), (97, &machine), (82, &[1, 2, 3, 4])];
    let request = Request { giaddr: ip(200), ..ask(1, 1, &options) };
    let answer = Fixture::new().decide(&request, &leases(), NOW).answer.expect("an offer").message;
    let bytes = super::super::wire::datagram(&answer).expect("encodes");
    let back = dhcproto::v4::borrowed::Message::new(&bytes).expect("decodes");
    // RFC 3396 §7 has a reader glue together what comes more than once.
    let all = |code: u8| back.opts().filter(move |o| u8::from(o.code()) == code).map(|o| o.data().to_vec());
    for (name, code, want) in
        [("machine", 97, &*machine), ("relay", 82, &[1, 2, 3, 4]), ("boot file", 67, b"snponly.efi")]
    {
        assert_eq!(all(code).collect::<Vec<_>>(), [want], "{name}");
    }
    assert_eq!(back.fname(), b"snponly.efi");
    assert_eq!(back.siaddr(), ip(1));
}

#[test]
fn clients_hear_what_they_ask_for() {
    let options = |asks: &[u8]| {
        let request = ask(1, 1, &[(97, DB1), (55, asks)]);
        let answer = Fixture::new().decide(&request, &leases(), NOW).answer.expect("an offer").message;
        let bytes = super::super::wire::datagram(&answer).expect("encodes");
        let back = dhcproto::v4::borrowed::Message::new(&bytes).expect("decodes");
        let all = back.opts().map(|o| (u8::from(o.code()), o.data().to_vec()));
        all.collect::<HashMap<_, _>>()
    };
    let everything = options(&[12, 15, 26, 42, 119, 121]);
    for (name, code, want) in [
        ("netmask", 1, vec![255, 255, 255, 0]),
        ("router", 3, vec![10, 77, 0, 254]),
        ("DNS", 6, vec![10, 77, 0, 1]),
        ("host name", 12, b"db1".to_vec()),
        ("domain", 15, b"rack.example.org".to_vec()),
        ("MTU", 26, 9000_u16.to_be_bytes().to_vec()),
        ("NTP", 42, vec![10, 77, 0, 2]),
        ("search", 119, b"\x04rack\x07example\x03org\0\x07example\x03org\0".to_vec()),
        ("routes, and the router among them", 121, vec![8, 10, 10, 77, 0, 253, 0, 10, 77, 0, 254]),
    ] {
        assert_eq!(everything.get(&code), Some(&want), "{name}");
    }
    let little = options(&[1, 3]);
    assert!([12, 15, 26, 42, 119, 121].iter().all(|code| !little.contains_key(code)), "{little:?}");
    assert!(little.contains_key(&1) && little.contains_key(&3));
}

#[test]
fn only_an_address_that_is_new_for_the_client_is_looked_for_first() {
    for (name, request, want) in [
        ("a stranger", ask(1, 1, &[]), true),
        ("a holder", ask(2, 1, &[]), false),
        ("a stranger with a reservation", ask(1, 1, &[(97, DB1)]), true),
        ("a request", ask(1, 3, &[(54, &[10, 77, 0, 1]), (50, &[10, 77, 0, 10])]), false),
    ] {
        assert_eq!(Fixture::new().decide(&request, &leases(), NOW).probe, want, "{name}");
    }
}

/// What a client of the model below does next.
#[derive(Clone, Debug)]
enum Act {
    Discover(Option<u8>),
    /// Takes what it was offered last.
    Select,
    Claim(u8),
    Renew,
    Release,
    Decline,
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        prop::option::of(8_u8..16).prop_map(Act::Discover),
        Just(Act::Select),
        (8_u8..16).prop_map(Act::Claim),
        Just(Act::Renew),
        Just(Act::Release),
        Just(Act::Decline),
        (1_u64..4000).prop_map(Act::Wait),
    ]
}

proptest! {
    /// Clients as they see it themselves: what each was acknowledged and until when. Whatever they do, and if the server
    /// restarts from what it stored, no two of them hold one address at one time.
    #[test]
    fn no_address_has_two_holders(acts in prop::collection::vec((0_u8..6, act(), prop::bool::weighted(0.1)), 1..200)) {
        let fixture = Fixture::new();
        let mut leases = Leases::new(pool(10, 13), []);
        let mut disk: HashMap<Ipv4Addr, Entry> = HashMap::new();
        let mut offered: HashMap<u8, Ipv4Addr> = HashMap::new();
        let mut held: HashMap<u8, (Ipv4Addr, u64)> = HashMap::new();
        let mut now = NOW;
        for (client, act, restart) in acts {
            if restart {
                leases = Leases::new(pool(10, 13), disk.clone());
            }
            let mine = held.get(&client).filter(|(_, until)| *until > now).map(|(address, _)| *address);
            let asking = |kind, options: &[(u8, &[u8])]| ask(client, kind, options);
            let ours: (u8, &[u8]) = (54, &[10, 77, 0, 1]);
            let request = match act {
                Act::Wait(seconds) => { now += seconds; continue }
                Act::Discover(wanted) => Some(Request { wanted: wanted.map(ip), ..asking(1, &[]) }),
                Act::Select => offered.get(&client).map(|a| Request { wanted: Some(*a), ..asking(3, &[ours]) }),
                Act::Claim(address) => Some(Request { wanted: Some(ip(address)), ..asking(3, &[]) }),
                Act::Renew => mine.map(|a| Request { ciaddr: a, ..asking(3, &[]) }),
                Act::Release => mine.map(|a| Request { ciaddr: a, ..asking(7, &[]) }),
                Act::Decline => mine.map(|a| Request { wanted: Some(a), ..asking(4, &[ours]) }),
            };
            let Some(request) = request else { continue };
            let decision = fixture.decide(&request, &leases, now);
            for (address, entry) in decision.change.map(|c| leases.apply(c)).unwrap_or_default() {
                match entry {
                    Some(entry) => disk.insert(address, entry),
                    None => disk.remove(&address),
                };
            }
            match decision.verdict {
                Verdict::Offer(address) => { offered.insert(client, address); }
                Verdict::Ack(address) | Verdict::Renew(address) => {
                    let until = now + 3600;
                    let others = held.iter().filter(|(c, (a, u))| **c != client && *a == address && *u > now);
                    prop_assert_eq!(others.count(), 0, "{} went to two clients", address);
                    prop_assert!((10..=13).map(ip).any(|a| a == address));
                    held.insert(client, (address, until));
                }
                Verdict::Nak(_) | Verdict::Released(_) | Verdict::Declined(_) => { held.remove(&client); }
                Verdict::Inform | Verdict::Guide | Verdict::Unbootable(_) | Verdict::Silent(_) => {}
            }
        }
    }

    #[test]
    fn any_request_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 1_u8..9) {
        let mut raw = packet(mac(1).0, &[(53, &[kind])]);
        raw.pop();
        raw.extend(bytes);
        if let Some(request) = Request::parse(&raw)
            && let Some(answer) = Fixture::new().decide(&request, &leases(), NOW).answer
        {
            prop_assert!(super::super::wire::datagram(&answer.message).is_ok());
        }
    }
}
