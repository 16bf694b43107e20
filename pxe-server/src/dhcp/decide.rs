//! What a full DHCP server answers, and to whom: RFC 2131 §4.1 and §4.3 as one function from values to a value.

use std::net::Ipv4Addr;

use dhcproto::v4::relay::RelayAgentInformation;
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption};
use drophammer_protocol::id::Mac;
use ipnet::Ipv4Net;

use super::boot::{self, Role, Site, Unbootable};
use super::leases::{Change, Leases, OFFER_SECONDS, Standing};
use super::request::{Kind, Request};
use crate::config::{Leasing, Network};

/// How long an address isn't used after a client found somebody else on it.
pub const QUARANTINE_SECONDS: u64 = 1800;

/// What is the same for every client of a network.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    pub network: &'a Network,
    pub leasing: &'a Leasing,
    pub site: &'a Site,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub change: Option<Change>,
    pub verdict: Verdict,
    pub answer: Option<Answer>,
    /// The address is new for this client: before it is told, somebody has to look whether another host uses it.
    pub probe: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub message: Message,
    pub to: Destination,
}

/// The decision in a word, for people and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Offer(Ipv4Addr),
    /// A new lease.
    Ack(Ipv4Addr),
    /// A lease that goes on.
    Renew(Ipv4Addr),
    /// Options without a lease, for a client with an address of its own.
    Inform,
    /// Where to boot from, without a lease, for a client of another DHCP server.
    Guide,
    Nak(&'static str),
    Released(Ipv4Addr),
    Declined(Ipv4Addr),
    /// Not answered, because it can't be booted from here.
    Unbootable(Unbootable),
    /// Not answered, and why.
    Silent(&'static str),
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Offer(_) => "offer",
            Self::Ack(_) => "ack",
            Self::Renew(_) => "renew",
            Self::Inform => "inform",
            Self::Guide => "guide",
            Self::Nak(_) => "nak",
            Self::Released(_) => "released",
            Self::Declined(_) => "declined",
            Self::Unbootable(_) => "unbootable",
            Self::Silent(_) => "silent",
        }
    }
}

pub const POOL_IS_FULL: &str = "every address of the network's pool is in use";

/// RFC 2131 §4.1: where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the relay, at the server port.
    Relay(Ipv4Addr),
    /// To a client that has an address and answers ARP for it.
    Configured(Ipv4Addr),
    Broadcast,
    /// To a client that was given this address just now and doesn't answer ARP for it yet.
    Unconfigured(Mac, Ipv4Addr),
    /// To where the request came from.
    Sender,
}

pub fn decide(request: &Request, policy: Policy<'_>, leases: &Leases, now: u64) -> Decision {
    let client = policy.leasing.client(request);
    let own = |address| leases.standing(client, address, now) == Standing::Own;
    match request.kind {
        Kind::Discover => discover(request, policy, leases, now),
        Kind::Request => match request.server {
            Some(server) if server != server_id(request, policy.network) => Decision {
                change: Some(Change::Withdraw { mac: request.mac }),
                ..silent("the client took another server's offer")
            },
            Some(_) => selecting(request, policy, leases, now),
            None if request.ciaddr.is_unspecified() => init_reboot(request, policy, leases, now),
            None => renewing(request, policy, leases, now),
        },
        Kind::Decline => match (request.server, request.wanted) {
            (Some(server), Some(address)) if server == server_id(request, policy.network) && own(address) => {
                let change = Change::Quarantine { address, until: now.saturating_add(QUARANTINE_SECONDS) };
                Decision { change: Some(change), ..unanswered(Verdict::Declined(address)) }
            }
            _ => silent("it declines an address that it doesn't have from us"),
        },
        Kind::Release => {
            let (mac, address) = (request.mac, request.ciaddr);
            if own(address) {
                let change = Change::Release { mac, address, now };
                Decision { change: Some(change), ..unanswered(Verdict::Released(address)) }
            } else {
                silent("it releases an address that it doesn't have from us")
            }
        }
        Kind::Inform => {
            if request.ciaddr.is_unspecified() {
                return silent("it wants options but says no address to send them to");
            }
            let message = describe(request, policy, MessageType::Ack, None);
            let to = destination(request, Ipv4Addr::UNSPECIFIED);
            Decision { answer: Some(Answer { message, to }), ..unanswered(Verdict::Inform) }
        }
    }
}

fn discover(request: &Request, policy: Policy<'_>, leases: &Leases, now: u64) -> Decision {
    if let Err(why) = boot::next(request.loader, policy.site) {
        return unanswered(Verdict::Unbootable(why));
    }
    let client = policy.leasing.client(request);
    let Some(address) = leases.pick(client, request.wanted, now) else {
        return silent(POOL_IS_FULL);
    };
    let message = describe(request, policy, MessageType::Offer, Some(address));
    Decision {
        change: Some(Change::Offer { mac: request.mac, address, until: now.saturating_add(OFFER_SECONDS) }),
        verdict: Verdict::Offer(address),
        answer: Some(Answer { message, to: destination(request, address) }),
        probe: leases.standing(client, address, now) != Standing::Own,
    }
}

/// The client answers our offer.
fn selecting(request: &Request, policy: Policy<'_>, leases: &Leases, now: u64) -> Decision {
    let Some(address) = request.wanted else {
        return silent("it accepts an offer without saying which address");
    };
    match leases.standing(policy.leasing.client(request), address, now) {
        Standing::Own | Standing::Free => ack(request, policy, address, now, Verdict::Ack(address)),
        Standing::Taken => nak(request, policy.network, "the address is another client's"),
        Standing::Outside => nak(request, policy.network, "the address isn't in our pool"),
    }
}

/// The client starts up and remembers an address.
fn init_reboot(request: &Request, policy: Policy<'_>, leases: &Leases, now: u64) -> Decision {
    let Some(address) = request.wanted else {
        return silent("it requests a lease without saying which address");
    };
    if !policy.network.subnet.contains(&address) {
        return nak(request, policy.network, "the address is of another network");
    }
    match leases.standing(policy.leasing.client(request), address, now) {
        Standing::Own => ack(request, policy, address, now, Verdict::Ack(address)),
        Standing::Taken => nak(request, policy.network, "the address is another client's"),
        // Nobody else hands out our pool, so we gave it away before our own memory begins; it's still this client's.
        Standing::Free if leases.address_of(request.mac).is_none() => {
            ack(request, policy, address, now, Verdict::Ack(address))
        }
        Standing::Free => nak(request, policy.network, "the client has another address here"),
        // RFC 2131 §4.3.2: without a record of the client, MUST remain silent.
        Standing::Outside => silent("it remembers an address that isn't from us"),
    }
}

fn renewing(request: &Request, policy: Policy<'_>, leases: &Leases, now: u64) -> Decision {
    let address = request.ciaddr;
    if !policy.network.subnet.contains(&address) {
        return nak(request, policy.network, "the address is of another network");
    }
    match leases.standing(policy.leasing.client(request), address, now) {
        Standing::Own | Standing::Free => ack(request, policy, address, now, Verdict::Renew(address)),
        Standing::Taken => nak(request, policy.network, "the address is another client's"),
        Standing::Outside => silent("it renews an address that isn't from us"),
    }
}

fn ack(request: &Request, policy: Policy<'_>, address: Ipv4Addr, now: u64, verdict: Verdict) -> Decision {
    let until = now.saturating_add(u64::from(lease_seconds(request, policy.leasing)));
    let message = describe(request, policy, MessageType::Ack, Some(address));
    Decision {
        change: Some(Change::Bind { mac: request.mac, address, until }),
        answer: Some(Answer { message, to: destination(request, address) }),
        ..unanswered(verdict)
    }
}

fn nak(request: &Request, network: &Network, why: &'static str) -> Decision {
    let mut message = blank(request, network, MessageType::Nak);
    message.opts_mut().insert(DhcpOption::Message(why.into()));
    let to = if request.giaddr.is_unspecified() {
        Destination::Broadcast
    } else {
        // RFC 2131 §4.3.2: the client has no address that the relay could send it to.
        message.set_flags(Flags::from(request.flags | 0x8000));
        Destination::Relay(request.giaddr)
    };
    Decision { answer: Some(Answer { message, to }), ..unanswered(Verdict::Nak(why)) }
}

pub(super) fn silent(why: &'static str) -> Decision {
    unanswered(Verdict::Silent(why))
}

pub(super) fn unanswered(verdict: Verdict) -> Decision {
    Decision { change: None, verdict, answer: None, probe: false }
}

pub(super) fn destination(request: &Request, given: Ipv4Addr) -> Destination {
    match () {
        () if !request.giaddr.is_unspecified() => Destination::Relay(request.giaddr),
        () if !request.ciaddr.is_unspecified() => Destination::Configured(request.ciaddr),
        () if request.wants_broadcast() || given.is_unspecified() => Destination::Broadcast,
        () => Destination::Unconfigured(request.mac, given),
    }
}

fn lease_seconds(request: &Request, leasing: &Leasing) -> u32 {
    request.lease_seconds.unwrap_or(leasing.lease_seconds).clamp(60.min(leasing.lease_seconds), leasing.lease_seconds)
}

/// An answer with everything that a client may want to know; `given` comes with a lease, none without.
fn describe(request: &Request, policy: Policy<'_>, kind: MessageType, given: Option<Ipv4Addr>) -> Message {
    let Policy { network, leasing, site } = policy;
    let mut message = blank(request, network, kind);
    if let Some(address) = given {
        message.set_yiaddr(address);
        let seconds = lease_seconds(request, leasing);
        let options = message.opts_mut();
        options.insert(DhcpOption::AddressLeaseTime(seconds));
        // RFC 2131 §4.4.5: half and seven eighths.
        options.insert(DhcpOption::Renewal(seconds / 2));
        options.insert(DhcpOption::Rebinding(seconds - seconds / 8));
    }
    // RFC 2131 table 3: an acknowledgement repeats the address that the client already has.
    if kind == MessageType::Ack {
        message.set_ciaddr(request.ciaddr);
    }
    describe_network(request, network, leasing, &mut message);
    if let Ok(Some(next)) = boot::next(request.loader, site) {
        boot::describe(&next, Role::Server, request, site, &mut message);
    }
    message
}

fn describe_network(request: &Request, network: &Network, leasing: &Leasing, message: &mut Message) {
    let options = message.opts_mut();
    options.insert(DhcpOption::SubnetMask(network.subnet.netmask()));
    options.insert(DhcpOption::BroadcastAddr(network.subnet.broadcast()));
    if let Some(router) = leasing.router {
        options.insert(DhcpOption::Router(vec![router]));
    }
    if !leasing.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(leasing.dns.clone()));
    }
    // From here on only what is asked for: boot ROMs have little room, and no use for it.
    let mut offer = |code: OptionCode, option: Option<DhcpOption>| {
        if let Some(option) = option.filter(|_| request.wants(code)) {
            options.insert(option);
        }
    };
    let some = |list: bool| list.then_some(());
    offer(OptionCode::NtpServers, some(!leasing.ntp.is_empty()).map(|()| DhcpOption::NtpServers(leasing.ntp.clone())));
    offer(OptionCode::InterfaceMtu, leasing.mtu.map(DhcpOption::InterfaceMtu));
    offer(OptionCode::DomainName, leasing.search.first().map(|domain| DhcpOption::DomainName(domain.clone())));
    let search = some(!leasing.search.is_empty())
        .map(|()| DhcpOption::Unknown(UnknownOption::new(OptionCode::DomainSearch, encoded_domains(&leasing.search))));
    offer(OptionCode::DomainSearch, search);
    let hostname = leasing.reservation(request).and_then(|reservation| reservation.hostname.clone());
    offer(OptionCode::Hostname, hostname.map(DhcpOption::Hostname));
    // RFC 3442: whoever takes this option ignores the router, so the router is in it.
    let default = leasing.router.map(|router| (Ipv4Net::default(), router));
    let routes: Vec<_> = leasing.routes.iter().map(|route| (route.to, route.via)).chain(default).collect();
    offer(
        OptionCode::ClasslessStaticRoute,
        some(!leasing.routes.is_empty()).map(|()| DhcpOption::ClasslessStaticRoute(routes)),
    );
}

/// RFC 3397, without its compression. The names were checked with the configuration.
fn encoded_domains(names: &[String]) -> Vec<u8> {
    let mut bytes = vec![];
    for name in names {
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
    }
    bytes
}

/// What the client takes for this server.
fn server_id(request: &Request, network: &Network) -> Ipv4Addr {
    request.relay.as_ref().and_then(|relay| relay.server).unwrap_or(network.address)
}

pub(super) fn blank(request: &Request, network: &Network, kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(request.xid, none, none, none, request.giaddr, &request.mac.0);
    message.set_opcode(Opcode::BootReply).set_flags(Flags::from(request.flags));
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(server_id(request, network)));
    if let Some(relay) = &request.relay {
        let code = OptionCode::RelayAgentInformation;
        // Its bytes as they came, under its own code: under that of an unknown option dhcproto would write them twice, in
        // their place and once more as what has to come last.
        options.insert(DhcpOption::RelayAgentInformation(RelayAgentInformation::default()));
        if let Some(option) = options.get_mut(code) {
            *option = DhcpOption::Unknown(UnknownOption::new(code, relay.raw.clone()));
        }
    }
    message
}

#[cfg(test)]
mod tests;
