//! A DHCPv4 client (RFC 2131 §4.4) without a socket or a clock: packets and instants in, actions out.
//!
//! It takes the first offer that carries an address. Whoever drives it sends what it asks to send, applies the leases
//! that it announces and calls [`Client::poll`] at [`Client::wake_at`].

mod reply;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, DhcpOptions, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Encodable, Encoder};
use drophammer_protocol::api::{AGENT_VENDOR_CLASS, BOOT_TICKET};
use drophammer_protocol::id::Mac;

use self::reply::{Options, Reply};

/// RFC 2131 §4.1 suggests 4 s to 64 s for a network of 1997; a switch port that has just come up is ready in one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(16);
/// Requests for one offer before looking for another one.
const REQUESTS: u32 = 4;
/// RFC 2131 §4.4.5: never renew more often than this.
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// A server that leases for less would have us do nothing but renew.
const SHORTEST_LEASE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    pub(crate) mask: Option<Ipv4Addr>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Vec<Ipv4Addr>,
    pub(crate) domain: Option<String>,
    pub(crate) mtu: Option<u16>,
    pub(crate) server: Ipv4Addr,
    /// Where this boot's ticket is, for an agent that came without one.
    pub(crate) ticket_url: Option<String>,
    /// After how long to renew, to ask anybody, and to stop using the address; `None` never.
    pub(crate) times: Option<Times>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) renew: Duration,
    pub(crate) rebind: Duration,
    pub(crate) expire: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Addr,
    pub(crate) mask: Ipv4Addr,
    /// Unspecified: on this link.
    pub(crate) gateway: Ipv4Addr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Broadcast(Vec<u8>),
    Unicast(Ipv4Addr, Vec<u8>),
    /// A new lease, or a renewed one.
    Bound(Lease),
    /// The lease ran out or was taken back; the search for another one has begun.
    Lost(&'static str),
}

#[derive(Debug)]
pub(crate) struct Client {
    mac: Mac,
    xid: u32,
    began: Instant,
    wake_at: Option<Instant>,
    tries: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Selecting,
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    Bound { lease: Lease, since: Instant },
}

impl Client {
    /// `xid` is random, so that two machines switched on together don't take each other's answers.
    pub(crate) fn new(mac: Mac, xid: u32, now: Instant) -> Self {
        Self { mac, xid, began: now, wake_at: Some(now), tries: 0, state: State::Selecting }
    }

    /// When [`Self::poll`] has something to do; `None` if only a packet can change anything.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// What is due at `now`.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.wake_at.is_none_or(|at| now < at) {
            return None;
        }
        match &self.state {
            State::Selecting => {
                let packet = self.discover(now);
                self.wait(now);
                Some(Action::Broadcast(packet))
            }
            State::Requesting { .. } if self.tries == REQUESTS => {
                self.restart(now);
                self.poll(now)
            }
            State::Requesting { address, server } => {
                let packet = self.request(*address, *server, now);
                self.wait(now);
                Some(Action::Broadcast(packet))
            }
            State::Bound { lease, since } => {
                let times = lease.times?;
                let (address, server, age) = (lease.address, lease.server, now.duration_since(*since));
                if age >= times.expire {
                    self.restart(now);
                    return Some(Action::Lost("the lease ran out before a DHCP server renewed it"));
                }
                // RFC 2131 §4.4.5: half of what is left until the next stage.
                let rebinding = age >= times.rebind;
                let stage_end = if rebinding { times.expire } else { times.rebind };
                let pause = (stage_end.saturating_sub(age) / 2).max(RENEW_PAUSE).min(stage_end.saturating_sub(age));
                if self.tries == 0 {
                    self.begin(now);
                }
                self.tries += 1;
                self.wake_at = Some(now + pause);
                let packet = self.renew(address, now);
                Some(if rebinding { Action::Broadcast(packet) } else { Action::Unicast(server, packet) })
            }
        }
    }

    /// Whatever arrived on the client port; most of it is for others.
    pub(crate) fn on_packet(&mut self, bytes: &[u8], now: Instant) -> Option<Action> {
        let reply = Reply::parse(bytes).filter(|reply| reply.xid == self.xid && reply.mac == self.mac)?;
        let (address, from) = (reply.address, reply.options.server);
        match (&self.state, reply.kind) {
            // A ProxyDHCP server offers boot information and no address.
            (State::Selecting, MessageType::Offer) if !address.is_unspecified() => {
                self.state = State::Requesting { address, server: from? };
                self.tries = 0;
                self.wake_at = Some(now);
                self.poll(now)
            }
            (State::Requesting { server, .. }, MessageType::Ack) => {
                let server = *server;
                if from.is_some_and(|from| from != server) || address.is_unspecified() {
                    return None;
                }
                Some(self.bind(lease(address, server, reply.options), now))
            }
            (State::Requesting { server, .. }, MessageType::Nak) => {
                if from.is_some_and(|from| from != *server) {
                    return None;
                }
                self.restart(now);
                // A server that offers and then refuses must not make us spin.
                self.wake_at = Some(now + FIRST_WAIT);
                None
            }
            // Only an answer to a renewal that was sent.
            (State::Bound { lease: old, .. }, MessageType::Ack) if self.tries > 0 && address == old.address => {
                let server = from.unwrap_or(old.server);
                Some(self.bind(lease(address, server, reply.options), now))
            }
            (State::Bound { .. }, MessageType::Nak) if self.tries > 0 => {
                self.restart(now);
                Some(Action::Lost("a DHCP server took the address back"))
            }
            _ => None,
        }
    }

    fn bind(&mut self, lease: Lease, now: Instant) -> Action {
        self.wake_at = lease.times.map(|t| now + t.renew);
        self.tries = 0;
        self.state = State::Bound { lease: lease.clone(), since: now };
        Action::Bound(lease)
    }

    fn restart(&mut self, now: Instant) {
        self.state = State::Selecting;
        self.tries = 0;
        self.wake_at = Some(now);
        self.begin(now);
    }

    /// A new exchange: late answers to the last one no longer count.
    fn begin(&mut self, now: Instant) {
        self.xid = self.xid.wrapping_add(1);
        self.began = now;
    }

    fn wait(&mut self, now: Instant) {
        let doubled = FIRST_WAIT.saturating_mul(1 << self.tries.min(8)).min(LONGEST_WAIT);
        // A rack that was switched on at once must not ask in step. The xid is the randomness we were given.
        let jitter = Duration::from_millis(u64::from(self.xid.rotate_left(self.tries * 5) % 512));
        self.tries += 1;
        self.wake_at = Some(now + doubled + jitter);
    }

    fn discover(&self, now: Instant) -> Vec<u8> {
        encode(&self.message(MessageType::Discover, now))
    }

    /// RFC 2131 §4.3.2, SELECTING: which offer is taken, for everybody who made one to hear.
    fn request(&self, address: Ipv4Addr, server: Ipv4Addr, now: Instant) -> Vec<u8> {
        let mut message = self.message(MessageType::Request, now);
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
        encode(&message)
    }

    /// RFC 2131 §4.3.2, RENEWING and REBINDING: the address in ciaddr, and neither option 50 nor 54.
    fn renew(&self, address: Ipv4Addr, now: Instant) -> Vec<u8> {
        let mut message = self.message(MessageType::Request, now);
        message.set_flags(Flags::default()).set_ciaddr(address);
        encode(&message)
    }

    fn message(&self, kind: MessageType, now: Instant) -> Message {
        let mut message = Message::default();
        let secs = u16::try_from(now.duration_since(self.began).as_secs()).unwrap_or(u16::MAX);
        // Broadcast: the kernel drops what is sent to an address that it doesn't have yet.
        message
            .set_opcode(Opcode::BootRequest)
            .set_xid(self.xid)
            .set_secs(secs)
            .set_flags(Flags::default().set_broadcast())
            .set_chaddr(&self.mac.0);
        let options: &mut DhcpOptions = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        // As iPXE identifies itself (hardware type, then address): the same machine keeps the same lease.
        options.insert(DhcpOption::ClientIdentifier([&[1], self.mac.0.as_slice()].concat()));
        options.insert(DhcpOption::ClassIdentifier(AGENT_VENDOR_CLASS.as_bytes().to_vec()));
        options.insert(DhcpOption::MaxMessageSize(1472));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            // RFC 3442: before Router, since it replaces it.
            OptionCode::ClasslessStaticRoute,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::DomainName,
            OptionCode::InterfaceMtu,
            OptionCode::BootfileName,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
        ]));
        message
    }
}

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(300);
    message.encode(&mut Encoder::new(&mut bytes)).expect("our own options are short and encode");
    // RFC 1542 §2.1: relays and servers may drop what is shorter than a BOOTP message.
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

fn lease(address: Ipv4Addr, server: Ipv4Addr, options: Options) -> Lease {
    let default = |gateway: &Ipv4Addr| Route {
        destination: Ipv4Addr::UNSPECIFIED,
        mask: Ipv4Addr::UNSPECIFIED,
        gateway: *gateway,
    };
    Lease {
        address,
        mask: options.mask,
        // RFC 3442: with option 121 the routers of option 3 are ignored.
        routes: options.routes.unwrap_or_else(|| options.routers.first().map(default).into_iter().collect()),
        dns: options.dns,
        domain: options.domain,
        // RFC 2132 §5.1 allows 68; below 576 (RFC 791) it's a mistake that would cut us off.
        mtu: options.mtu.filter(|mtu| *mtu >= 576),
        server,
        // Servers that know nothing of us name a boot file to everybody.
        ticket_url: options.boot_file.filter(|url| url.starts_with("http://") && url.ends_with(BOOT_TICKET)),
        times: times(options.lease_seconds, options.renew_seconds, options.rebind_seconds),
    }
}

/// RFC 2131 §3.3 (all ones: for ever) and §4.4.5 (half, seven eighths).
fn times(lease: Option<u32>, renew: Option<u32>, rebind: Option<u32>) -> Option<Times> {
    let expire = match lease {
        None | Some(u32::MAX) => return None,
        Some(seconds) => Duration::from_secs(seconds.into()).max(SHORTEST_LEASE),
    };
    let given = |seconds: Option<u32>| seconds.map(|s| Duration::from_secs(s.into()));
    let rebind = given(rebind).filter(|t| *t < expire && !t.is_zero()).unwrap_or(expire * 7 / 8);
    let renew = given(renew).filter(|t| *t < rebind && !t.is_zero()).unwrap_or((expire / 2).min(rebind));
    Some(Times { renew, rebind, expire })
}

/// For any answers at any times: the client never spins, and a lease is one that can be used. `sent` gets what it sends.
#[cfg(fuzzing)]
pub(crate) fn fuzz(mut bytes: &[u8], sent: impl Fn(&[u8])) {
    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
    let mut now = Instant::now();
    let mut client = Client::new(MAC, 0x1234_5678, now);
    // How long nothing comes, whether what comes is for others, its length, itself.
    while let [wait, stray, low, high, rest @ ..] = bytes {
        let (packet, rest) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        bytes = rest;
        now += Duration::from_millis(1 << (wait % 32));
        let mut packet = packet.to_vec();
        if stray & 1 == 0 && packet.len() >= 34 {
            packet[4..8].copy_from_slice(&client.xid.to_be_bytes());
            packet[28..34].copy_from_slice(&MAC.0);
        }
        let actions = [client.poll(now), client.poll(now), client.on_packet(&packet, now), client.poll(now)];
        assert!(client.wake_at().is_none_or(|at| at > now), "{client:?} has something to do at once, again and again");
        for action in actions.into_iter().flatten() {
            match action {
                Action::Broadcast(packet) | Action::Unicast(_, packet) => sent(&packet),
                Action::Bound(lease) => {
                    let is_prefix = |mask: u32| mask.leading_ones() + mask.trailing_zeros() == 32;
                    let usable = !lease.address.is_unspecified()
                        && lease.mtu.is_none_or(|mtu| mtu >= 576)
                        && lease.routes.iter().all(|route| is_prefix(route.mask.to_bits()))
                        && lease.domain.as_ref().is_none_or(|name| !name.contains(char::is_whitespace))
                        && lease
                            .times
                            .is_none_or(|t| !t.renew.is_zero() && t.renew <= t.rebind && t.rebind <= t.expire);
                    assert!(usable, "{lease:?}");
                }
                Action::Lost(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
