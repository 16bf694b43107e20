//! What to answer, and to whom: RFC 2131 §4.1 and §4.3 as one function from values to a value.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption};
use drophammer_protocol::id::Mac;

use super::boot;
use super::leases::{Change, Leases, Standing};
use super::request::{Kind, Request};
use crate::config::{Settings, Subnet};

/// How long an offered address is kept for the client. iPXE of Debian 12 takes up to 20 s to come back.
const OFFER_SECONDS: u64 = 120;
/// How long an address isn't used after a client found somebody else on it.
const QUARANTINE_SECONDS: u64 = 1800;

/// What is the same for every client.
#[derive(Clone, Debug)]
pub struct Policy {
    pub subnet: Subnet,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub lease_seconds: u32,
    pub site: boot::Site,
}

impl Policy {
    pub fn of(settings: &Settings, uefi_file: &'static str, http_file: boot::HttpFile) -> Self {
        Self {
            subnet: settings.subnet,
            router: settings.router,
            dns: settings.dns.clone(),
            ntp: settings.ntp.clone(),
            lease_seconds: settings.lease_seconds,
            site: boot::Site { url: settings.boot_url(), uefi_file, http_file },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub change: Option<Change>,
    pub verdict: Verdict,
    pub answer: Option<Answer>,
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
    Nak(&'static str),
    Released(Ipv4Addr),
    Declined(Ipv4Addr),
    /// Not answered, and why.
    Silent(&'static str),
}

pub const POOL_IS_FULL: &str = "every address of network.pool is in use";

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
}

pub fn decide(request: &Request, policy: &Policy, leases: &Leases, now: u64) -> Decision {
    if !request.giaddr.is_unspecified() && !policy.subnet.contains(request.giaddr) {
        return silent("it came through a relay in a network that isn't ours");
    }
    match request.kind {
        Kind::Discover => discover(request, policy, leases, now),
        Kind::Request => match request.server {
            Some(server) if server != policy.subnet.server => Decision {
                change: Some(Change::Withdraw { mac: request.mac }),
                ..silent("the client took another server's offer")
            },
            Some(_) => selecting(request, policy, leases, now),
            None if request.ciaddr.is_unspecified() => init_reboot(request, policy, leases, now),
            None => renewing(request, policy, leases, now),
        },
        Kind::Decline => match (request.server, request.wanted) {
            (Some(server), Some(address))
                if server == policy.subnet.server && leases.standing(request.mac, address, now) == Standing::Own =>
            {
                let change = Change::Quarantine { address, until: now.saturating_add(QUARANTINE_SECONDS) };
                Decision { change: Some(change), verdict: Verdict::Declined(address), answer: None }
            }
            _ => silent("it declines an address that it doesn't have from us"),
        },
        Kind::Release => {
            let (mac, address) = (request.mac, request.ciaddr);
            if leases.standing(mac, address, now) == Standing::Own {
                let change = Change::Release { mac, address, now };
                Decision { change: Some(change), verdict: Verdict::Released(address), answer: None }
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
            Decision { change: None, verdict: Verdict::Inform, answer: Some(Answer { message, to }) }
        }
    }
}

fn discover(request: &Request, policy: &Policy, leases: &Leases, now: u64) -> Decision {
    let Some(address) = leases.pick(request.mac, request.wanted, now) else {
        return silent(POOL_IS_FULL);
    };
    let message = describe(request, policy, MessageType::Offer, Some(address));
    Decision {
        change: Some(Change::Offer { mac: request.mac, address, until: now.saturating_add(OFFER_SECONDS) }),
        verdict: Verdict::Offer(address),
        answer: Some(Answer { message, to: destination(request, address) }),
    }
}

/// The client answers our offer.
fn selecting(request: &Request, policy: &Policy, leases: &Leases, now: u64) -> Decision {
    let Some(address) = request.wanted else {
        return silent("it accepts an offer without saying which address");
    };
    match leases.standing(request.mac, address, now) {
        Standing::Own | Standing::Free => ack(request, policy, address, now, Verdict::Ack(address)),
        Standing::Taken => nak(request, policy, "the address is another client's"),
        Standing::Outside => nak(request, policy, "the address isn't in our pool"),
    }
}

/// The client starts up and remembers an address.
fn init_reboot(request: &Request, policy: &Policy, leases: &Leases, now: u64) -> Decision {
    let Some(address) = request.wanted else {
        return silent("it requests a lease without saying which address");
    };
    if !policy.subnet.contains(address) {
        return nak(request, policy, "the address is of another network");
    }
    match leases.standing(request.mac, address, now) {
        Standing::Own => ack(request, policy, address, now, Verdict::Ack(address)),
        Standing::Taken => nak(request, policy, "the address is another client's"),
        // Nobody else hands out our pool, so we gave it away before our own memory begins; it's still this client's.
        Standing::Free if leases.address_of(request.mac).is_none() => {
            ack(request, policy, address, now, Verdict::Ack(address))
        }
        Standing::Free => nak(request, policy, "the client has another address here"),
        // RFC 2131 §4.3.2: without a record of the client, MUST remain silent.
        Standing::Outside => silent("it remembers an address that isn't from us"),
    }
}

fn renewing(request: &Request, policy: &Policy, leases: &Leases, now: u64) -> Decision {
    let address = request.ciaddr;
    if !policy.subnet.contains(address) {
        return nak(request, policy, "the address is of another network");
    }
    match leases.standing(request.mac, address, now) {
        Standing::Own | Standing::Free => ack(request, policy, address, now, Verdict::Renew(address)),
        Standing::Taken => nak(request, policy, "the address is another client's"),
        Standing::Outside => silent("it renews an address that isn't from us"),
    }
}

fn ack(request: &Request, policy: &Policy, address: Ipv4Addr, now: u64, verdict: Verdict) -> Decision {
    let until = now.saturating_add(u64::from(lease_seconds(request, policy)));
    let message = describe(request, policy, MessageType::Ack, Some(address));
    Decision {
        change: Some(Change::Bind { mac: request.mac, address, until }),
        verdict,
        answer: Some(Answer { message, to: destination(request, address) }),
    }
}

fn nak(request: &Request, policy: &Policy, why: &'static str) -> Decision {
    let mut message = blank(request, policy, MessageType::Nak);
    message.opts_mut().insert(DhcpOption::Message(why.into()));
    let to = if request.giaddr.is_unspecified() {
        Destination::Broadcast
    } else {
        // RFC 2131 §4.3.2: the client has no address that the relay could send it to.
        message.set_flags(Flags::from(request.flags | 0x8000));
        Destination::Relay(request.giaddr)
    };
    Decision { change: None, verdict: Verdict::Nak(why), answer: Some(Answer { message, to }) }
}

fn silent(why: &'static str) -> Decision {
    Decision { change: None, verdict: Verdict::Silent(why), answer: None }
}

fn destination(request: &Request, given: Ipv4Addr) -> Destination {
    match () {
        () if !request.giaddr.is_unspecified() => Destination::Relay(request.giaddr),
        () if !request.ciaddr.is_unspecified() => Destination::Configured(request.ciaddr),
        () if request.wants_broadcast() => Destination::Broadcast,
        () => Destination::Unconfigured(request.mac, given),
    }
}

fn lease_seconds(request: &Request, policy: &Policy) -> u32 {
    request.lease_seconds.unwrap_or(policy.lease_seconds).clamp(60.min(policy.lease_seconds), policy.lease_seconds)
}

/// An answer with everything that a client may want to know; `given` comes with a lease, none without.
fn describe(request: &Request, policy: &Policy, kind: MessageType, given: Option<Ipv4Addr>) -> Message {
    let mut message = blank(request, policy, kind);
    if let Some(address) = given {
        message.set_yiaddr(address);
        let seconds = lease_seconds(request, policy);
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
    let options = message.opts_mut();
    options.insert(DhcpOption::SubnetMask(policy.subnet.mask()));
    options.insert(DhcpOption::BroadcastAddr(policy.subnet.broadcast()));
    if let Some(router) = policy.router {
        options.insert(DhcpOption::Router(vec![router]));
    }
    if !policy.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(policy.dns.clone()));
    }
    if !policy.ntp.is_empty() {
        options.insert(DhcpOption::NtpServers(policy.ntp.clone()));
    }
    if let Some(next) = boot::next(request.loader, &policy.site) {
        boot::describe(&next, request, policy.subnet.server, &mut message);
    }
    message
}

fn blank(request: &Request, policy: &Policy, kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(request.xid, none, none, none, request.giaddr, &request.mac.0);
    message.set_opcode(Opcode::BootReply).set_flags(Flags::from(request.flags));
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(policy.subnet.server));
    if let Some(data) = &request.relay_option {
        options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::RelayAgentInformation, data.clone())));
    }
    message
}

#[cfg(test)]
mod tests;
