//! Sockets: where requests come in, and the port of one transfer.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::debug;

use super::packet::{self, ErrorCode};
use super::transfer::{MOST_BLOCK_SIZE, Outgoing, Transfer};

/// For requests that all machines of a room send at once.
const REQUEST_BUFFER: usize = 4 << 20;
/// Acknowledgements are small; thousands of these sockets are the kernel's to keep when strangers fill them.
const RECEIVE_BUFFER: usize = 8 << 10;
/// What one UDP datagram can hold, which also bounds what is handed to the kernel in one piece.
const MOST_AT_ONCE: u64 = 65507;
const MOST_SEGMENTS: u64 = 64;
/// Of IPv4, UDP and TFTP.
const HEADERS: libc::c_int = 20 + 8 + 4;

/// Where requests to one of our addresses come in.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: Ipv4Addr,
    socket: UdpSocket,
}

impl Listener {
    pub(super) fn bind(address: Ipv4Addr, port: u16, interface: &str) -> Result<Self> {
        let socket = UdpSocket::bind((address, port)).with_context(|| {
            format!(
                "binding UDP {address}:{port} for TFTP (ports.tftp) (is another TFTP server running? `lsof -i :{port}`; \
                 has {interface} that address? `ip address show {interface}`; below port 1024 it needs root)"
            )
        })?;
        socket.set_nonblocking(true).context("preparing the TFTP socket")?;
        if setsockopt(&socket, sockopt::RcvBufForce, &REQUEST_BUFFER).is_err() {
            // Without privilege there is as much as the host allows everybody.
            setsockopt(&socket, sockopt::RcvBuf, &REQUEST_BUFFER).context("enlarging the TFTP socket's buffer")?;
        }
        Ok(Self { address, socket })
    }

    /// `None` when there is nothing more for now.
    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<(&'a [u8], SocketAddrV4)>> {
        loop {
            return match self.socket.recv_from(buffer) {
                Ok((length, SocketAddr::V4(client))) => Ok(Some((buffer.get(..length).unwrap_or_default(), client))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                // The kernel gives no IPv4 socket an IPv6 address.
                Ok((_, SocketAddr::V6(_))) => continue,
                Err(error) if is_passing(&error) => continue,
                Err(error) => Err(error).context("receiving TFTP requests"),
            };
        }
    }

    /// An answer to what is no transfer.
    pub(super) fn refuse(&self, client: SocketAddrV4, code: ErrorCode, message: &str) {
        forgive(client, self.socket.send_to(&packet::error(code, message), client));
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The port that one transfer has to itself (RFC 1350 §4). It is its client's alone: to anybody else the kernel says that it
/// is closed.
#[derive(Debug)]
pub(super) struct Port {
    client: SocketAddrV4,
    socket: UdpSocket,
    /// How many DATA packets the kernel takes in one call.
    at_once: u64,
}

/// What was to be read at a port.
pub(super) enum Received<'a> {
    Datagram(&'a [u8]),
    /// The client's host says that nobody is there any more.
    Closed,
    Nothing,
}

impl Port {
    pub(super) fn open(server: Ipv4Addr, client: SocketAddrV4) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&SocketAddrV4::new(server, 0).into())?;
        socket.connect(&client.into())?;
        Ok(Self { client, socket: socket.into(), at_once: 1 })
    }

    /// The largest block that gets to the client in one piece, as far as the kernel knows the way.
    pub(super) fn block_size(&self) -> u16 {
        let mtu = getsockopt(&self.socket, sockopt::IpMtu).ok();
        mtu.and_then(|mtu| u16::try_from(mtu.saturating_sub(HEADERS)).ok()).unwrap_or(MOST_BLOCK_SIZE)
    }

    /// Lets the kernel cut windows into packets, if it can.
    pub(super) fn segment(&mut self, transfer: &Transfer) {
        let (packet, window) = transfer.burst();
        let most = window.min(MOST_SEGMENTS).min(MOST_AT_ONCE / u64::from(packet));
        if most > 1 && setsockopt(&self.socket, sockopt::UdpGsoSegment, &packet.into()).is_ok() {
            self.at_once = most;
        }
    }

    pub(super) fn send(&mut self, transfer: &Transfer, outgoing: &Outgoing) {
        let blocks = match outgoing {
            Outgoing::Oack => return forgive(self.client, self.socket.send(transfer.oack())),
            Outgoing::Blocks(blocks) => blocks,
        };
        let mut next = blocks.start;
        while next < blocks.end {
            let until = (next + self.at_once).min(blocks.end);
            match self.send_blocks(transfer, next..until) {
                Err(error) if self.at_once > 1 && is_about_segments(&error) && self.stop_segmenting() => {}
                sent => {
                    forgive(self.client, sent);
                    next = until;
                }
            }
        }
    }

    fn send_blocks(&self, transfer: &Transfer, blocks: Range<u64>) -> io::Result<usize> {
        let packets: Vec<([u8; 4], &[u8])> = blocks.map(|block| transfer.block(block)).collect();
        let pieces: Vec<_> = packets.iter().flat_map(|(head, body)| [IoSlice::new(head), IoSlice::new(body)]).collect();
        SockRef::from(&self.socket).send_vectored(&pieces)
    }

    fn stop_segmenting(&mut self) -> bool {
        self.at_once = 1;
        setsockopt(&self.socket, sockopt::UdpGsoSegment, &0).is_ok()
    }

    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> Received<'a> {
        loop {
            return match self.socket.recv(buffer) {
                Ok(length) => Received::Datagram(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Received::Closed,
                Err(error) if is_passing(&error) => continue,
                Err(_) => Received::Nothing,
            };
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What an earlier packet ran into is reported by any later call, once.
fn is_passing(error: &io::Error) -> bool {
    let passing = [
        Errno::EINTR,
        Errno::ECONNREFUSED,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
        Errno::ENETDOWN,
        Errno::EMSGSIZE,
        Errno::EPROTO,
    ];
    errno(error).is_some_and(|errno| passing.contains(&errno))
}

/// Segmentation isn't for every device, route and kernel; what else goes wrong has nothing to do with it.
fn is_about_segments(error: &io::Error) -> bool {
    let about = [Errno::EIO, Errno::EINVAL, Errno::EMSGSIZE, Errno::EOPNOTSUPP, Errno::ENOPROTOOPT];
    errno(error).is_some_and(|errno| about.contains(&errno))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// A packet that can't be sent is like one that is lost on its way: a timer, here or at the client, takes care of both.
fn forgive(to: SocketAddrV4, sent: io::Result<usize>) {
    if let Err(error) = sent {
        debug!(%to, %error, "tftp: a packet wasn't sent");
    }
}
