//! Other servers on our wires: a DHCP server that nobody knows of, or a second one that says where to boot from.
//!
//! Answers to clients that have no address go to everybody, so they can be heard; and every few minutes a question of our own
//! finds servers that nobody has asked meanwhile. A thread of its own listens, behind a filter in the kernel, and the answers
//! to our clients don't wait for it.

use std::collections::BTreeMap;
use std::io;
use std::iter;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, borrowed};
use drophammer_protocol::id::Mac;
use etherparse::{EtherType, PacketBuilder, SlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{SockFilter, SockRef};
use tracing::warn;

use super::serve;
use super::wire::{self, EVERYBODY};
use crate::config::{Dhcp, Network, Settings};
use crate::live::Live;

/// After the first question. That one is too early for a server that starts together with us, and the second one for a switch
/// port on which spanning tree isn't done yet.
const ASK_AGAIN: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(35)];
const ASK_EVERY: Duration = Duration::from_secs(300);
/// Who hasn't been heard for this long isn't there any more.
const FORGET_AFTER: Duration = Duration::from_secs(900);
/// As many as anybody would read of.
const MOST: usize = 64;
/// How often the thread looks whether it should end.
const PATIENCE: u16 = 250;

/// Those that were heard and shouldn't be there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Others(Arc<Mutex<BTreeMap<Other, Instant>>>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Other {
    interface: String,
    server: Ipv4Addr,
    mac: Mac,
    wrong: &'static str,
}

impl Others {
    /// A sentence about each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut others = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        others.retain(|_, heard| heard.elapsed() < FORGET_AFTER);
        others.keys().map(Other::sentence).collect()
    }

    fn heard(&self, other: Other) {
        let mut others = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if others.len() >= MOST && !others.contains_key(&other) {
            return;
        }
        let before = others.insert(other.clone(), Instant::now());
        if before.is_none_or(|before| before.elapsed() >= FORGET_AFTER) {
            warn!("{}", other.sentence());
        }
    }
}

impl Other {
    fn sentence(&self) -> String {
        let Self { interface, server, mac, wrong } = self;
        format!(
            "DHCP server {server} ({mac}) on {interface} {wrong}; if it's meant to be there, name it in the network's `others`"
        )
    }
}

/// What another server said, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    server: Ipv4Addr,
    gives_addresses: bool,
    boots: bool,
}

impl Answer {
    /// From an IP packet. `None` for everything that isn't a DHCP server's answer.
    fn parse(packet: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { return None };
        let message = borrowed::Message::new(udp.payload()).ok()?;
        if message.opcode() != Opcode::BootReply {
            return None;
        }
        let (mut kind, mut server, mut boots) = (None, None, false);
        for option in message.opts() {
            let data = option.data();
            match option.code() {
                OptionCode::MessageType => kind = data.first().map(|&n| MessageType::from(n)),
                OptionCode::ServerIdentifier => server = <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from),
                OptionCode::BootfileName => boots = true,
                OptionCode::ClassIdentifier => {
                    boots |= data.starts_with(b"PXEClient") || data.starts_with(b"HTTPClient")
                }
                _ => {}
            }
        }
        boots |= message.fname().first().is_some_and(|byte| *byte != 0);
        let gives_addresses = match kind? {
            MessageType::Offer | MessageType::Ack => !message.yiaddr().is_unspecified(),
            MessageType::Nak => true,
            _ => return None,
        };
        Some(Self { server: server?, gives_addresses, boots })
    }

    /// What is wrong with it on this network, where `network` does what it does.
    fn wrong_on(self, network: &Network) -> Option<&'static str> {
        if self.server == network.address || network.others.contains(&self.server) {
            return None;
        }
        match (&network.dhcp, self) {
            (Dhcp::Server(_), Self { gives_addresses: true, .. }) => {
                Some("gives out addresses, and clients that take them don't come here to boot")
            }
            (Dhcp::Server(_) | Dhcp::Proxy, Self { boots: true, .. }) => {
                Some("says where to boot from as well, and machines may follow it instead")
            }
            _ => None,
        }
    }
}

/// Listens to all networks that are on a wire of ours.
#[derive(Debug)]
pub(crate) struct Watch {
    wires: Vec<Listener>,
    live: Live,
    others: Others,
}

#[derive(Debug)]
struct Listener {
    interface: String,
    index: libc::c_int,
    mac: Mac,
    socket: OwnedFd,
}

impl Watch {
    /// `None` if there is nothing to listen to.
    pub(crate) fn bind(settings: &Settings, live: Live, others: Others) -> Result<Option<Self>> {
        let watched = settings.networks.iter().filter(|n| !n.relayed && n.dhcp != Dhcp::Off);
        let mut names: Vec<_> = watched.map(|n| n.interface.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let wires = names.into_iter().map(Listener::bind).collect::<Result<Vec<_>>>()?;
        Ok((!wires.is_empty()).then_some(Self { wires, live, others }))
    }

    /// Until `stop`.
    pub(crate) fn run(self, stop: &AtomicBool) -> Result<()> {
        let mut pauses = ASK_AGAIN.into_iter().chain(iter::repeat(ASK_EVERY));
        let mut due = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            if Instant::now() >= due {
                due = Instant::now() + pauses.next().unwrap_or(ASK_EVERY);
                for wire in &self.wires {
                    if let Err(error) = wire.ask() {
                        warn!(wire.interface, "asking whether there are other DHCP servers: {error}");
                    }
                }
            }
            let mut fds: Vec<_> = self.wires.iter().map(|w| PollFd::new(w.socket.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::from(PATIENCE)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("waiting for other DHCP servers' answers"),
            }
            for wire in &self.wires {
                while let Some((answer, mac)) = wire.next()? {
                    self.judge(&wire.interface, answer, mac);
                }
            }
        }
        Ok(())
    }

    fn judge(&self, interface: &str, answer: Answer, mac: Mac) {
        let live = self.live.borrow();
        let here = |n: &&Network| n.interface == interface && !n.relayed;
        let networks: Vec<_> = live.settings.networks.iter().filter(here).collect();
        // Of several networks on one wire, it may be meant for any.
        let wrong: Option<Vec<_>> = networks.iter().map(|network| answer.wrong_on(network)).collect();
        if let Some(wrong) = wrong.and_then(|wrong| wrong.first().copied()) {
            self.others.heard(Other { interface: interface.to_owned(), server: answer.server, mac, wrong });
        }
    }
}

impl Listener {
    fn bind(interface: String) -> Result<Self> {
        let index = serve::index(&interface)?;
        let mac = serve::mac(&interface)?;
        let open = || -> io::Result<OwnedFd> {
            let socket = wire::packet_socket(Some((EtherType::IPV4, index)))?;
            SockRef::from(&socket).set_nonblocking(true)?;
            wire::ignore_outgoing(&socket)?;
            SockRef::from(&socket).attach_filter(&to_clients())?;
            Ok(socket)
        };
        let socket = open().context("opening a packet socket for DHCP answers (needs root or CAP_NET_RAW)")?;
        Ok(Self { interface, index, mac, socket })
    }

    fn ask(&self) -> io::Result<()> {
        let packet = question(self.mac).map_err(io::Error::other)?;
        wire::send_frame(&self.socket, self.index, EVERYBODY, EtherType::IPV4, &packet)
    }

    /// The next answer of a server, and whose card it came from.
    fn next(&self) -> Result<Option<(Answer, Mac)>> {
        let mut buffer = [0; 1500];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    let mac = from.and_then(|from| from.addr()).map(Mac);
                    if let Some(heard) = buffer.get(..length).and_then(Answer::parse).zip(mac) {
                        return Ok(Some(heard));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(e) => return Err(e).with_context(|| format!("listening for DHCP servers on {}", self.interface)),
            }
        }
    }
}

/// What a machine asks that boots by PXE, so that those answer too that only say where to boot from.
fn question(mac: Mac) -> Result<Vec<u8>> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut xid = [0; 4];
    getrandom::fill(&mut xid).context("getting randomness")?;
    let mut message = Message::new_with_id(u32::from_be_bytes(xid), none, none, none, none, &mac.0);
    message.set_opcode(Opcode::BootRequest).set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Discover));
    options.insert(DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007:UNDI:003016".to_vec()));
    options.insert(DhcpOption::ClientSystemArchitecture(dhcproto::v4::Architecture::BC));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::BootfileName,
        OptionCode::VendorExtensions,
    ]));
    let payload = wire::datagram(&message)?;
    let builder = PacketBuilder::ipv4([0; 4], [255; 4], 64).udp(68, 67);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, &payload).context("putting a DHCP question together")?;
    Ok(packet)
}

/// UDP to port 68, in whole packets or their first parts: everything else would be copied to us for nothing.
fn to_clients() -> [SockFilter; 9] {
    fn step(code: u32, jt: u8, jf: u8, k: u32) -> SockFilter {
        #[expect(clippy::cast_possible_truncation, reason = "codes of 16 bits")]
        let code = code as u16;
        SockFilter::new(code, jt, jf, k)
    }
    use libc::{BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET};
    [
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 9),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 6, 17),
        step(BPF_LD | BPF_H | BPF_ABS, 0, 0, 6),
        step(BPF_JMP | BPF_JSET | BPF_K, 4, 0, 0x1fff),
        step(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0),
        step(BPF_LD | BPF_H | BPF_IND, 0, 0, 2),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 68),
        step(BPF_RET | BPF_K, 0, 0, u32::MAX),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ]
}

/// An IP packet off the wire: an answer has a server, and one that we know is nobody to complain of.
#[cfg(fuzzing)]
pub(crate) fn fuzz(packet: &[u8]) {
    if let Some(answer) = Answer::parse(packet) {
        let mut network = crate::config::Network {
            name: String::new(),
            interface: String::new(),
            address: Ipv4Addr::LOCALHOST,
            subnet: ipnet::Ipv4Net::default(),
            relayed: false,
            relay: crate::config::RelayMatch::default(),
            dhcp: Dhcp::Proxy,
            others: vec![],
        };
        let wrong = answer.wrong_on(&network);
        assert!(wrong.is_none() || answer.boots);
        network.others.push(answer.server);
        assert_eq!(answer.wrong_on(&network), None);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn network(more: &str) -> Network {
        let text =
            format!("[[network]]\ninterface = \"eth0\"\naddress = \"10.0.0.1\"\nsubnet = \"10.0.0.0/24\"\n{more}");
        toml::from_str::<Config>(&text).expect("TOML").check().expect("makes sense").networks.remove(0)
    }

    #[test]
    fn strangers_are_told_from_those_who_belong_there() {
        const POOL: &str = "pool = [{ first = \"10.0.0.100\", last = \"10.0.0.199\" }]";
        let stranger = Answer { server: Ipv4Addr::new(10, 0, 0, 66), gives_addresses: true, boots: false };
        let proxy = Answer { gives_addresses: false, boots: true, ..stranger };
        let ourselves = Answer { server: Ipv4Addr::new(10, 0, 0, 1), ..stranger };
        let known = format!("{POOL}\nothers = [\"10.0.0.66\"]");
        for (name, network, answer, want) in [
            ("another server", network(POOL), stranger, Some("gives out addresses")),
            ("a proxy beside a server", network(POOL), proxy, Some("says where to boot from as well")),
            ("ourselves", network(POOL), ourselves, None),
            ("one that belongs there", network(&known), stranger, None),
            ("the server beside a proxy", network("dhcp = \"proxy\""), stranger, None),
            ("a second proxy", network("dhcp = \"proxy\""), proxy, Some("says where to boot from as well")),
            ("where we do nothing", network("dhcp = \"off\""), stranger, None),
        ] {
            let got = answer.wrong_on(&network);
            assert_eq!(got.is_some(), want.is_some(), "{name}: {got:?}");
            assert!(got.unwrap_or_default().contains(want.unwrap_or_default()), "{name}: {got:?}");
        }
    }

    #[test]
    fn a_question_is_no_answer() {
        let packet = question(Mac([2, 0, 0, 0, 0, 1])).expect("a packet");
        assert_eq!(Answer::parse(&packet), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = Answer::parse(&packet);
        }
    }
}
