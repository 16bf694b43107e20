use dhcproto::{Decodable, Decoder};
use proptest::prelude::*;

use super::*;

const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// What happens at a moment of a scripted exchange.
enum At {
    Poll,
    Answer(Answer),
}

#[derive(Clone, Copy)]
struct Answer {
    kind: MessageType,
    address: Ipv4Addr,
    server: Ipv4Addr,
    mac: Mac,
    /// How many exchanges after the first one it belongs to.
    exchange: u32,
}

const OFFER: Answer = Answer { kind: MessageType::Offer, address: US, server: SERVER, mac: MAC, exchange: 0 };
const ACK: Answer = Answer { kind: MessageType::Ack, ..OFFER };
const NAK: Answer = Answer { kind: MessageType::Nak, address: Ipv4Addr::UNSPECIFIED, ..OFFER };

impl Answer {
    /// A lease of 1000 s.
    fn bytes(self) -> Vec<u8> {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootReply).set_xid(self.exchange).set_yiaddr(self.address).set_chaddr(&self.mac.0);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(self.kind));
        options.insert(DhcpOption::ServerIdentifier(self.server));
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        options.insert(DhcpOption::Router(vec![SERVER, OTHER]));
        options.insert(DhcpOption::AddressLeaseTime(1000));
        encode(&message)
    }
}

/// What an action does, short enough for a table.
fn seen(action: Option<Action>) -> String {
    let packet = |bytes: &[u8]| {
        let m = Message::decode(&mut Decoder::new(bytes)).expect("we send what can be read");
        assert!(bytes.len() >= 300, "a BOOTP message has at least 300 bytes");
        format!("{:?} xid={} ciaddr={}", m.opts().msg_type().expect("a type"), m.xid(), m.ciaddr())
    };
    match action {
        None => "-".into(),
        Some(Action::Broadcast(bytes)) => format!("all: {}", packet(&bytes)),
        Some(Action::Unicast(to, bytes)) => format!("{to}: {}", packet(&bytes)),
        Some(Action::Bound(lease)) => format!("bound {}", lease.address),
        Some(Action::Lost(_)) => "lost".into(),
    }
}

#[test]
fn exchanges_in_scripted_time() {
    use At::{Answer as Got, Poll};
    const DISCOVER: &str = "all: Discover xid=0 ciaddr=0.0.0.0";
    const REQUEST: &str = "all: Request xid=0 ciaddr=0.0.0.0";
    let bound = || vec![(0, Poll, DISCOVER), (50, Got(OFFER), REQUEST), (60, Got(ACK), "bound 10.0.0.50")];
    let then = |more: Vec<(u64, At, &'static str)>| bound().into_iter().chain(more).collect::<Vec<_>>();
    for (name, script) in [
        ("the usual four packets", bound()),
        (
            "a discover is repeated with longer and longer waits",
            vec![
                (0, Poll, DISCOVER),
                (999, Poll, "-"),
                (1000, Poll, DISCOVER),
                (2999, Poll, "-"),
                (3000, Poll, DISCOVER),
                (7000, Poll, DISCOVER),
                (15_000, Poll, DISCOVER),
                (31_000, Poll, DISCOVER),
                (47_000, Poll, DISCOVER),
            ],
        ),
        (
            "nobody acknowledges: the fifth time it looks for somebody else",
            vec![
                (0, Poll, DISCOVER),
                (0, Got(OFFER), REQUEST),
                (1000, Poll, REQUEST),
                (3000, Poll, REQUEST),
                (7000, Poll, REQUEST),
                (14_999, Poll, "-"),
                (15_000, Poll, "all: Discover xid=1 ciaddr=0.0.0.0"),
            ],
        ),
        (
            "others' packets are not ours",
            vec![
                (0, Poll, DISCOVER),
                (1, Got(Answer { mac: Mac([9; 6]), ..OFFER }), "-"),
                (2, Got(Answer { exchange: 7, ..OFFER }), "-"),
                (3, Got(ACK), "-"),
                (4, Got(Answer { address: Ipv4Addr::UNSPECIFIED, ..OFFER }), "-"),
                (5, Got(OFFER), REQUEST),
                (6, Got(Answer { server: OTHER, ..ACK }), "-"),
                (7, Got(Answer { server: OTHER, ..NAK }), "-"),
                (8, Got(ACK), "bound 10.0.0.50"),
            ],
        ),
        (
            "refused: starts over, after a pause",
            vec![
                (0, Poll, DISCOVER),
                (0, Got(OFFER), REQUEST),
                (10, Got(NAK), "-"),
                (1009, Poll, "-"),
                (1010, Poll, "all: Discover xid=1 ciaddr=0.0.0.0"),
            ],
        ),
        (
            "renewed at half time, from the server that leased it",
            then(vec![
                (500_059, Poll, "-"),
                (500_060, Poll, "10.0.0.1: Request xid=1 ciaddr=10.0.0.50"),
                (500_070, Got(Answer { exchange: 1, ..ACK }), "bound 10.0.0.50"),
                (1_000_069, Poll, "-"),
                (1_000_070, Poll, "10.0.0.1: Request xid=2 ciaddr=10.0.0.50"),
            ]),
        ),
        (
            "nobody renews: asks everybody at seven eighths, then starts over",
            then(vec![
                (500_060, Poll, "10.0.0.1: Request xid=1 ciaddr=10.0.0.50"),
                (687_560, Poll, "10.0.0.1: Request xid=1 ciaddr=10.0.0.50"),
                (781_310, Poll, "10.0.0.1: Request xid=1 ciaddr=10.0.0.50"),
                (841_310, Poll, "10.0.0.1: Request xid=1 ciaddr=10.0.0.50"),
                (875_060, Poll, "all: Request xid=1 ciaddr=10.0.0.50"),
                (937_560, Poll, "all: Request xid=1 ciaddr=10.0.0.50"),
                (997_560, Poll, "all: Request xid=1 ciaddr=10.0.0.50"),
                (1_000_059, Poll, "-"),
                (1_000_060, Poll, "lost"),
                (1_000_060, Poll, "all: Discover xid=2 ciaddr=0.0.0.0"),
            ]),
        ),
        ("a stray refusal while bound means nothing", then(vec![(1000, Got(NAK), "-")])),
        (
            "refused while renewing: the address is gone",
            then(vec![
                (500_060, Poll, "10.0.0.1: Request xid=1 ciaddr=10.0.0.50"),
                (500_070, Got(Answer { exchange: 1, ..NAK }), "lost"),
            ]),
        ),
    ] {
        let start = Instant::now();
        // No jitter: an xid of 0.
        let mut client = Client::new(MAC, 0, start);
        for (millis, at, want) in script {
            let now = start + Duration::from_millis(millis);
            let got = match at {
                Poll => client.poll(now),
                Got(reply) => client.on_packet(&reply.bytes(), now),
            };
            // A small xid gives a small jitter from the second exchange on; the scripts are in its units.
            assert_eq!(seen(got), want, "{name}, at {millis} ms");
        }
    }
}

#[test]
fn lease_times_make_sense_whatever_the_server_says() {
    let t = |renew, rebind, expire| {
        Some(Times {
            renew: Duration::from_secs(renew),
            rebind: Duration::from_secs(rebind),
            expire: Duration::from_secs(expire),
        })
    };
    for (name, lease, renew, rebind, want) in [
        ("defaults", Some(800), None, None, t(400, 700, 800)),
        ("as told", Some(800), Some(100), Some(200), t(100, 200, 800)),
        ("for ever", Some(u32::MAX), Some(100), None, None),
        ("not said", None, None, None, None),
        ("too short", Some(0), Some(0), Some(0), t(30, 52, 60)),
        ("renew after rebind", Some(800), Some(750), Some(600), t(400, 600, 800)),
        ("rebind after the end", Some(800), None, Some(900), t(400, 700, 800)),
        ("early rebind", Some(800), None, Some(100), t(100, 100, 800)),
    ] {
        let got = times(lease, renew, rebind);
        let whole = got.map(|g| Times { rebind: Duration::from_secs(g.rebind.as_secs()), ..g });
        assert_eq!(whole, want, "{name}");
    }
}

#[test]
fn what_a_lease_says() {
    let acknowledged = |options: Vec<DhcpOption>| {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootReply).set_chaddr(&MAC.0);
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Ack));
        for option in options {
            message.opts_mut().insert(option);
        }
        let reply = Reply::parse(&encode(&message)).expect("an answer");
        lease(US, SERVER, reply.options)
    };
    let bare = Lease {
        address: US,
        mask: None,
        routes: vec![],
        dns: vec![],
        domain: None,
        mtu: None,
        server: SERVER,
        ticket_url: None,
        times: None,
    };
    let default = Route { destination: Ipv4Addr::UNSPECIFIED, mask: Ipv4Addr::UNSPECIFIED, gateway: SERVER };
    let inner = Route { destination: Ipv4Addr::new(10, 9, 0, 0), mask: Ipv4Addr::new(255, 255, 0, 0), gateway: OTHER };
    let classless = DhcpOption::ClasslessStaticRoute(vec![("10.9.0.0/16".parse().expect("a network"), OTHER)]);
    for (name, options, want) in [
        ("nothing", vec![], bare.clone()),
        (
            "the first router",
            vec![DhcpOption::Router(vec![SERVER, OTHER])],
            Lease { routes: vec![default], ..bare.clone() },
        ),
        (
            "classless routes replace routers",
            vec![DhcpOption::Router(vec![SERVER]), classless],
            Lease { routes: vec![inner], ..bare.clone() },
        ),
        (
            "where the ticket is",
            vec![DhcpOption::BootfileName(b"http://10.0.0.1:8080/boot/ticket".to_vec())],
            Lease { ticket_url: Some("http://10.0.0.1:8080/boot/ticket".into()), ..bare.clone() },
        ),
        ("a boot file for others", vec![DhcpOption::BootfileName(b"pxelinux.0".to_vec())], bare.clone()),
        ("an MTU", vec![DhcpOption::InterfaceMtu(9000)], Lease { mtu: Some(9000), ..bare.clone() }),
        ("a silly MTU", vec![DhcpOption::InterfaceMtu(68)], bare.clone()),
        ("a domain with a line break", vec![DhcpOption::DomainName("a\nnameserver 6.6.6.6".into())], bare.clone()),
        (
            "a domain",
            vec![DhcpOption::DomainName("lab.test".into())],
            Lease { domain: Some("lab.test".into()), ..bare },
        ),
    ] {
        assert_eq!(acknowledged(options), want, "{name}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let now = Instant::now();
        let mut client = Client::new(MAC, 0, now);
        let _ = client.poll(now);
        let _ = client.on_packet(&bytes, now);
    }

    /// Random bytes hardly ever get past the header; damage to a good packet does.
    #[test]
    fn any_damage_is_survived(at in 0usize..320, byte: u8, cut in 0usize..320, kind in 0usize..3) {
        let now = Instant::now();
        let mut client = Client::new(MAC, 0, now);
        let _ = client.poll(now);
        for reply in [OFFER, [OFFER, ACK, NAK][kind]] {
            let mut bytes = reply.bytes();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = client.on_packet(&bytes, now);
            let _ = client.poll(now + Duration::from_secs(2000));
        }
    }
}
