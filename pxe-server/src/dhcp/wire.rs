//! How an answer gets onto the wire: through UDP where the client can be reached by it, else as a frame.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use dhcproto::v4::Message;
use dhcproto::{Encodable, Encoder};
use drophammer_protocol::id::Mac;
use etherparse::PacketBuilder;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::decide::{Answer, Destination};

pub(super) const CLIENT_PORT: u16 = 68;
/// RFC 1542 §2.1: BOOTP messages are never shorter, and some ROMs drop what is.
const SHORTEST: usize = 300;

/// The answer as the payload of a UDP datagram.
pub(super) fn datagram(message: &Message) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(576);
    message.encode(&mut Encoder::new(&mut bytes)).context("encoding a DHCP answer")?;
    bytes.resize(bytes.len().max(SHORTEST), 0);
    Ok(bytes)
}

#[derive(Debug)]
pub(super) struct Wire {
    udp: UdpSocket,
    frames: OwnedFd,
    interface: libc::c_int,
    server: SocketAddrV4,
}

impl Wire {
    pub(super) fn new(udp: UdpSocket, interface: u32, server: SocketAddrV4) -> Result<Self> {
        // No protocol: this socket only sends.
        let frames = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a packet socket (needs root or CAP_NET_RAW)")?;
        Ok(Self { udp, frames, interface: libc::c_int::try_from(interface)?, server })
    }

    pub(super) fn send(&self, answer: &Answer) -> Result<()> {
        let bytes = datagram(&answer.message)?;
        let to = |address, port| self.udp.send_to(&bytes, SocketAddrV4::new(address, port)).map(drop);
        match answer.to {
            Destination::Relay(relay) => to(relay, self.server.port()),
            Destination::Configured(client) => to(client, CLIENT_PORT),
            Destination::Broadcast => to(Ipv4Addr::BROADCAST, CLIENT_PORT),
            Destination::Unconfigured(mac, address) => self.send_frame(mac, address, &bytes),
        }
        .with_context(|| format!("sending a DHCP answer to {:?}", answer.to))
    }

    /// The kernel would ask by ARP for an address that nobody has yet, so the packet is addressed by hand.
    fn send_frame(&self, mac: Mac, address: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        const HOPS: u8 = 64;
        let builder =
            PacketBuilder::ipv4(self.server.ip().octets(), address.octets(), HOPS).udp(self.server.port(), CLIENT_PORT);
        let mut packet = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut packet, payload).map_err(io::Error::other)?;
        send_to_hardware(&self.frames, self.interface, mac, &packet)
    }
}

#[allow(unsafe_code)] // No safe wrapper makes a link-layer address.
#[expect(clippy::cast_possible_truncation, reason = "a family of 17 and a length of 20")]
fn send_to_hardware(socket: &OwnedFd, interface: libc::c_int, mac: Mac, packet: &[u8]) -> io::Result<()> {
    let mut hardware = [0; 8];
    for (to, from) in hardware.iter_mut().zip(mac.0) {
        *to = from;
    }
    const ETH_P_IP: u16 = 0x0800;
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::sa_family_t,
        sll_protocol: ETH_P_IP.to_be(),
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: hardware,
    };
    // SAFETY: `packet` and `to` live across the call and are passed with their own sizes; the kernel only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
