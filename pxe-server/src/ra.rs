//! "There is no IPv6 router here", said to whoever asks (RFC 4861 §6.2.6).
//!
//! iPXE of Debian 12 and other boot loaders of that age hold their IPv4 address back for 16 s while they wait for any
//! router advertisement. This one announces no router (lifetime 0) and no prefix, so it changes no host's configuration.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket as Async;
use tracing::{debug, warn};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

const SOLICITATION: u8 = 133;
/// Type 134; checksum by the kernel; hop limit, flags, router lifetime and both timers are 0: unspecified, or "not a
/// default router".
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[derive(Debug)]
pub struct RouterAdvertisements {
    socket: Async,
    index: u32,
}

impl RouterAdvertisements {
    pub fn bind(interface: &str) -> Result<Self> {
        let index = if_nametoindex(interface)
            .with_context(|| format!("looking for the network interface {interface} (network.interface)"))?;
        let socket = open(interface, index).with_context(|| {
            format!(
                "opening an ICMPv6 socket on {interface} to answer router solicitations (needs root or CAP_NET_RAW, and \
                 IPv6; `router_advertisements = false` does without)"
            )
        })?;
        Ok(Self { socket, index })
    }

    pub async fn run(self) -> Result<()> {
        let mut buffer = [0; 1500];
        let everybody = SocketAddr::V6(SocketAddrV6::new(ALL_NODES, 0, 0, self.index));
        loop {
            let (length, from) = match self.socket.recv_from(&mut buffer).await {
                Ok(got) => got,
                Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => continue,
                Err(e) => return Err(e).context("receiving router solicitations"),
            };
            if !is_solicitation(buffer.get(..length).unwrap_or_default()) {
                continue;
            }
            debug!(%from, "router solicitation");
            if let Err(error) = self.socket.send_to(&ADVERTISEMENT, everybody).await {
                warn!("answering a router solicitation (has the interface an IPv6 link-local address?): {error}");
            }
        }
    }
}

fn open(interface: &str, index: u32) -> io::Result<Async> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    socket.set_multicast_if_v6(index)?;
    // RFC 4861 §6.1.2: what has passed a router isn't believed.
    socket.set_multicast_hops_v6(255)?;
    socket.set_nonblocking(true)?;
    // Only sendto and recvfrom are used, which are the same for datagram and raw sockets.
    Async::from_std(UdpSocket::from(socket))
}

/// RFC 4861 §6.1.1: 8 bytes or more, code 0.
fn is_solicitation(packet: &[u8]) -> bool {
    matches!(packet, [SOLICITATION, 0, _, _, _, _, _, _, ..])
}

/// RFC 4861 §6.1.1.
#[cfg(fuzzing)]
pub(crate) fn fuzz(packet: &[u8]) {
    assert!(!is_solicitation(packet) || packet.len() >= 8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_solicitations_are_answered() {
        for (name, packet, want) in [
            ("the shortest", &[133, 0, 1, 2, 0, 0, 0, 0][..], true),
            ("with a source address option", &[133, 0, 1, 2, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2], true),
            ("cut short", &[133, 0, 1, 2], false),
            ("of another code", &[133, 1, 1, 2, 0, 0, 0, 0], false),
            ("an advertisement", &ADVERTISEMENT, false),
            ("nothing", &[], false),
        ] {
            assert_eq!(is_solicitation(packet), want, "{name}");
        }
    }
}
