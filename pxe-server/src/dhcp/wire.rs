//! How an answer gets onto the wire: through UDP where the client can be reached by it, else as a frame.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use dhcproto::v4::Message;
use dhcproto::{Encodable, Encoder};
use drophammer_protocol::id::Mac;
use etherparse::{EtherType, PacketBuilder};
use nix::errno::Errno;

use super::decide::{Answer, Destination};

const CLIENT_PORT: u16 = 68;
/// RFC 1542 §2.1: BOOTP messages are never shorter, and some ROMs drop what is.
const SHORTEST: usize = 300;

pub(super) const EVERYBODY: Mac = Mac([0xff; 6]);

/// The answer as the payload of a UDP datagram.
pub(super) fn datagram(message: &Message) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(576);
    message.encode(&mut Encoder::new(&mut bytes)).context("encoding a DHCP answer")?;
    bytes.resize(bytes.len().max(SHORTEST), 0);
    Ok(bytes)
}

/// Sends into one interface.
#[derive(Debug)]
pub(super) struct Wire {
    frames: OwnedFd,
    interface: libc::c_int,
    server_port: u16,
}

impl Wire {
    pub(super) fn new(interface: libc::c_int, server_port: u16) -> Result<Self> {
        let frames = packet_socket(None).context("opening a packet socket (needs root or CAP_NET_RAW)")?;
        Ok(Self { frames, interface, server_port })
    }

    /// `socket` is the one that the request came to, from `sender`.
    pub(super) fn send(
        &self,
        answer: &Answer,
        socket: &UdpSocket,
        sender: SocketAddrV4,
        server: Ipv4Addr,
    ) -> Result<()> {
        let bytes = datagram(&answer.message)?;
        let to = |address| socket.send_to(&bytes, address).map(drop);
        match answer.to {
            Destination::Relay(relay) => to(SocketAddrV4::new(relay, self.server_port)),
            Destination::Configured(client) => to(SocketAddrV4::new(client, CLIENT_PORT)),
            Destination::Sender => to(sender),
            // As a frame as well: the kernel would take its source address from a route, which there may be none for.
            Destination::Broadcast => self.send_unrouted(EVERYBODY, server, Ipv4Addr::BROADCAST, &bytes),
            // The kernel would ask by ARP for an address that nobody has yet.
            Destination::Unconfigured(mac, address) => self.send_unrouted(mac, server, address, &bytes),
        }
        .with_context(|| format!("sending a DHCP answer to {:?}", answer.to))
    }

    fn send_unrouted(&self, mac: Mac, server: Ipv4Addr, address: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        const HOPS: u8 = 64;
        let builder = PacketBuilder::ipv4(server.octets(), address.octets(), HOPS).udp(self.server_port, CLIENT_PORT);
        let mut packet = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut packet, payload).map_err(io::Error::other)?;
        send_frame(&self.frames, self.interface, mac, EtherType::IPV4, &packet)
    }
}

/// A socket for frames without their Ethernet header. It hears one protocol on one interface, or only sends.
#[allow(unsafe_code)] // No safe wrapper binds a socket to a link-layer protocol.
pub(super) fn packet_socket(hears: Option<(EtherType, libc::c_int)>) -> io::Result<OwnedFd> {
    // SAFETY: a system call on numbers; what it returns is checked before it is owned.
    let socket = Errno::result(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    if let Some((protocol, interface)) = hears {
        let address = link_address(interface, EVERYBODY, protocol);
        // SAFETY: `address` lives across the call and is passed with its own size; the kernel only reads it.
        Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH) })?;
    }
    Ok(socket)
}

/// Has the socket hear what comes in, and not what this host sends.
#[allow(unsafe_code)] // No safe wrapper sets this option.
pub(super) fn ignore_outgoing(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    #[expect(clippy::cast_possible_truncation, reason = "a size of 4")]
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` lives across the call and is passed with its own size; the kernel only reads it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size,
        )
    };
    Errno::result(set).map(drop).map_err(io::Error::from)
}

/// Sends an Ethernet frame with this payload.
#[allow(unsafe_code)] // No safe wrapper makes a link-layer address.
pub(super) fn send_frame(
    socket: &OwnedFd,
    interface: libc::c_int,
    to: Mac,
    protocol: EtherType,
    payload: &[u8],
) -> io::Result<()> {
    let address = link_address(interface, to, protocol);
    // SAFETY: `payload` and `address` live across the call and are passed with their own sizes; the kernel only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            ADDRESS_LENGTH,
        )
    };
    Errno::result(sent).map(drop).map_err(io::Error::from)
}

#[expect(clippy::cast_possible_truncation, reason = "a length of 20")]
const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn link_address(interface: libc::c_int, mac: Mac, protocol: EtherType) -> libc::sockaddr_ll {
    let [a, b, c, d, e, f] = mac.0;
    #[expect(clippy::cast_possible_truncation, reason = "a family of 17")]
    let family = libc::AF_PACKET as libc::sa_family_t;
    libc::sockaddr_ll {
        sll_family: family,
        sll_protocol: protocol.0.to_be(),
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    }
}
