//! Looking whether an address is in use before somebody new is offered it: by ARP on the wire, by ping behind a relay.
//!
//! Nothing waits for it: the offer is held back for a moment while other requests are answered.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use drophammer_protocol::id::Mac;
use etherparse::{
    ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, IcmpEchoHeader, Icmpv4Header, Icmpv4Type,
    Ipv4Slice,
};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};

use super::wire;

/// Offers held back at a time. Beyond that clients are answered at once: a flood must not become a queue.
const MOST_HELD: usize = 4096;

/// What is waiting for its address to stay silent.
#[derive(Debug)]
pub(super) struct Held<T> {
    by_deadline: BTreeMap<(Instant, Ipv4Addr), T>,
    deadlines: BTreeMap<Ipv4Addr, Instant>,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { by_deadline: BTreeMap::new(), deadlines: BTreeMap::new() }
    }
}

impl<T> Held<T> {
    pub(super) fn has(&self, address: Ipv4Addr) -> bool {
        self.deadlines.contains_key(&address)
    }

    pub(super) fn is_full(&self) -> bool {
        self.deadlines.len() >= MOST_HELD
    }

    /// What was held for the same address is replaced, and the time that is left stays: its client has asked again.
    pub(super) fn hold(&mut self, address: Ipv4Addr, item: T, now: Instant, patience: Duration) {
        let deadline = *self.deadlines.entry(address).or_insert(now + patience);
        self.by_deadline.insert((deadline, address), item);
    }

    /// Takes back what waits for this address.
    pub(super) fn take(&mut self, address: Ipv4Addr) -> Option<T> {
        let deadline = self.deadlines.remove(&address)?;
        self.by_deadline.remove(&(deadline, address))
    }

    /// Takes out everything that has waited long enough.
    pub(super) fn due(&mut self, now: Instant) -> Vec<T> {
        let mut due = vec![];
        while let Some(entry) = self.by_deadline.first_entry()
            && entry.key().0 <= now
        {
            self.deadlines.remove(&entry.key().1);
            due.push(entry.remove());
        }
        due
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.by_deadline.first_key_value().map(|((deadline, _), _)| *deadline)
    }
}

/// Hears who uses which address on one wire.
#[derive(Debug)]
pub(super) struct Arp {
    socket: OwnedFd,
    interface: libc::c_int,
    mac: Mac,
}

impl Arp {
    pub(super) fn bind(interface: libc::c_int, mac: Mac) -> Result<Self> {
        let socket = wire::packet_socket(Some((EtherType::ARP, interface)))
            .context("opening a packet socket for ARP (needs root or CAP_NET_RAW)")?;
        Ok(Self { socket, interface, mac })
    }

    pub(super) fn ask(&self, own: Ipv4Addr, address: Ipv4Addr) -> io::Result<()> {
        let question = ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: self.mac.0,
            sender_ipv4: own.octets(),
            target_mac: [0; 6],
            target_ipv4: address.octets(),
        };
        let packet = etherparse::ArpPacket::from(question).to_bytes();
        wire::send_frame(&self.socket, self.interface, wire::EVERYBODY, EtherType::ARP, &packet)
    }

    /// The next host that says of itself that it has an address; `None` when all that has come was read.
    pub(super) fn heard(&self) -> Result<Option<(Ipv4Addr, Mac)>> {
        hear(self.socket.as_fd(), "ARP packets", arp_sender)
    }
}

impl AsFd for Arp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads packets until one says something.
fn hear<T>(socket: BorrowedFd<'_>, what: &str, read: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
    let mut buffer = [0; 1500];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                if let Some(said) = buffer.get(..length).and_then(&read) {
                    return Ok(Some(said));
                }
            }
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(e) => return Err(e).with_context(|| format!("receiving {what}")),
        }
    }
}

fn arp_sender(packet: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let arp = ArpPacketSlice::from_slice(packet).ok()?;
    let address = <[u8; 4]>::try_from(arp.sender_protocol_addr()).ok().map(Ipv4Addr::from)?;
    let mac = <[u8; 6]>::try_from(arp.sender_hw_addr()).ok().map(Mac)?;
    let usable = arp.hw_addr_type() == ArpHardwareId::ETHERNET && arp.proto_addr_type() == EtherType::IPV4;
    (usable && !address.is_unspecified()).then_some((address, mac))
}

/// Hears who answers pings.
#[derive(Debug)]
pub(super) struct Ping(Socket);

impl Ping {
    pub(super) fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        open().map(Self).context("opening a socket for pings (needs root or CAP_NET_RAW)")
    }

    pub(super) fn ask(&self, address: Ipv4Addr) -> io::Result<()> {
        const ID: u16 = 0x6472;
        let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: ID, seq: 1 });
        let packet = Icmpv4Header::with_checksum(echo, &[]).to_bytes();
        self.0.send_to(&packet, &SocketAddrV4::new(address, 0).into()).map(drop)
    }

    pub(super) fn heard(&self) -> Result<Option<Ipv4Addr>> {
        hear(self.0.as_fd(), "answers to pings", echo_sender)
    }
}

impl AsFd for Ping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn echo_sender(packet: &[u8]) -> Option<Ipv4Addr> {
    let ip = Ipv4Slice::from_slice(packet).ok()?;
    let (header, _) = Icmpv4Header::from_slice(ip.payload().payload).ok()?;
    matches!(header.icmp_type, Icmpv4Type::EchoReply(_)).then(|| ip.header().source_addr())
}

/// A packet off the wire: whoever says that an address is in use says which.
#[cfg(fuzzing)]
pub(crate) fn fuzz(packet: &[u8]) {
    assert!(arp_sender(packet).is_none_or(|(address, _)| !address.is_unspecified()));
    let _ = echo_sender(packet);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_held_comes_out_in_time_and_once() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let address = |n| Ipv4Addr::new(10, 77, 0, n);
        let patience = Duration::from_millis(100);
        let mut held = Held::default();
        held.hold(address(1), "a", start, patience);
        held.hold(address(2), "b", after(10), patience);
        held.hold(address(1), "a again", after(50), patience);
        assert_eq!(held.next(), Some(after(100)), "asking again doesn't prolong it");
        assert_eq!(held.due(after(99)), [""; 0]);
        assert_eq!(held.due(after(100)), ["a again"]);
        assert_eq!((held.has(address(1)), held.has(address(2))), (false, true));
        assert_eq!(held.take(address(2)), Some("b"));
        assert_eq!(held.take(address(2)), None);
        assert_eq!((held.next(), held.due(after(1000))), (None, vec![]));
    }

    #[test]
    fn senders_are_read_from_what_they_say() {
        let arp = |sender: [u8; 4]| {
            etherparse::ArpPacket::from(ArpEthIpv4Packet {
                operation: ArpOperation::REPLY,
                sender_mac: [2, 0, 0, 0, 0, 7],
                sender_ipv4: sender,
                target_mac: [2, 0, 0, 0, 0, 1],
                target_ipv4: [10, 77, 0, 1],
            })
            .to_bytes()
            .to_vec()
        };
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        assert_eq!(arp_sender(&arp([10, 77, 0, 9])), Some(([10, 77, 0, 9].into(), mac)));
        assert_eq!(arp_sender(&arp([0; 4])), None, "a host that looks for its own address");
        assert_eq!(arp_sender(&arp([10, 77, 0, 9])[..20]), None, "cut short");

        let echo = |kind| {
            let builder = etherparse::PacketBuilder::ipv4([10, 77, 0, 9], [10, 77, 0, 1], 64).icmpv4(kind);
            let mut packet = vec![];
            builder.write(&mut packet, &[]).expect("written");
            packet
        };
        let header = IcmpEchoHeader { id: 1, seq: 1 };
        assert_eq!(echo_sender(&echo(Icmpv4Type::EchoReply(header))), Some([10, 77, 0, 9].into()));
        assert_eq!(echo_sender(&echo(Icmpv4Type::EchoRequest(header))), None, "somebody pings us");
    }

    proptest! {
        #[test]
        fn any_bytes_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = arp_sender(&bytes);
            let _ = echo_sender(&bytes);
        }
    }
}
