//! The DHCP server's loop: read what has come, decide, have it stored, then answer.
//!
//! It has a thread of its own and talks to nobody but the network, so no slow part of the server delays an answer. An
//! acknowledgement waits for the disk, and nothing else waits with it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use drophammer_protocol::id::Mac;
use nix::errno::Errno;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{error, info, warn};

use super::boot::Site;
use super::decide::{Decision, Policy, QUARANTINE_SECONDS, decide};
use super::leases::{Change, Leases};
use super::network;
use super::probe::{Arp, Held, Ping};
use super::proxy::{self, Port};
use super::report;
use super::request::{Kind, Request};
use super::saving::{Outcome, Unsaved, Writer};
use super::store::Store;
use super::wire::Wire;
use crate::config::{Dhcp as Mode, Network};
use crate::live::{Live, Loaded};
use crate::observe::Observer;

/// Requests that are read before any is answered.
const BATCH: usize = 4096;
/// DISCOVERs that are answered before the sockets are looked at again.
const TURN: usize = 128;
/// DISCOVERs that wait for their turn; of more than that the oldest are forgotten, and their clients ask again.
const MOST_NEWCOMERS: usize = 2048;
/// How often the loop looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often leases are counted, for whoever watches.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Room for what comes in while others are answered.
const RECEIVE_BUFFER: usize = 4 << 20;

#[derive(Debug)]
pub struct Dhcp {
    live: Live,
    interfaces: Vec<Interface>,
    doors: Vec<Door>,
    networks: Vec<Network>,
    /// For each network.
    sites: Vec<Site>,
    /// For each network; those that give out no addresses have none.
    leases: Vec<Leases>,
    writer: Writer,
    unsaved: Unsaved<(Asked, Decision)>,
    /// Whoever has an offer already is served first: under more load than the server can bear, every exchange that was
    /// begun would otherwise be likely to end unfinished.
    newcomers: VecDeque<Asked>,
    ping: Option<Ping>,
    held: Held<(Asked, Decision)>,
}

#[derive(Debug)]
struct Interface {
    name: String,
    wire: Wire,
    arp: Option<Arp>,
}

/// A socket that requests come to.
#[derive(Debug)]
struct Door {
    socket: UdpSocket,
    interface: usize,
    port: Port,
}

/// A request, how it came, and the place of its network.
#[derive(Clone, Debug)]
struct Asked {
    request: Request,
    door: usize,
    sender: SocketAddrV4,
    network: usize,
}

impl Dhcp {
    /// `None` if DHCP is off in every network.
    pub(crate) fn bind(loaded: &Loaded, live: Live) -> Result<Option<Self>> {
        let settings = &loaded.settings;
        let networks = networks(loaded);
        if networks.is_empty() {
            return Ok(None);
        }
        let mut names: Vec<_> = networks.iter().map(|n| n.interface.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let mut interfaces = vec![];
        let mut doors = vec![];
        for name in names {
            let probes = |n: &Network| n.interface == name && !n.relayed && leasing_probe(n).is_some();
            let (port, proxy_port) = (settings.ports.dhcp, settings.ports.proxy_dhcp);
            for (port, kind) in [(port, Port::Dhcp), (proxy_port, Port::ProxyDhcp)] {
                let socket = open(&name, port).with_context(|| {
                    format!(
                        "binding UDP port {port} on {name} for DHCP (is another DHCP server running? `lsof -i :{port}`; \
                         below port 1024 it needs root or CAP_NET_BIND_SERVICE)"
                    )
                })?;
                doors.push(Door { socket, interface: interfaces.len(), port: kind });
            }
            let index = index(&name)?;
            let arp = networks.iter().any(probes).then(|| Arp::bind(index, mac(&name)?)).transpose()?;
            interfaces.push(Interface { wire: Wire::new(index, port)?, arp, name });
        }
        let pings = |n: &Network| n.relayed && leasing_probe(n).is_some();
        let ping = networks.iter().any(pings).then(Ping::open).transpose()?;
        let (store, rows) = Store::open(&settings.state_dir.join("leases.redb"))?;
        let leases = networks
            .iter()
            .map(|network| match &network.dhcp {
                Mode::Server(leasing) => Leases::new(leasing.pool.clone(), rows.iter().copied()),
                Mode::Proxy | Mode::Off => Leases::none(),
            })
            .collect();
        let sites = sites(&networks, loaded);
        let (writer, unsaved, held) = (Writer::start(store)?, Unsaved::default(), Held::default());
        let newcomers = VecDeque::new();
        Ok(Some(Self { live, interfaces, doors, networks, sites, leases, writer, unsaved, newcomers, ping, held }))
    }

    /// Serves until `stop`. An error is one that no client caused and that trying again wouldn't mend.
    pub fn run(mut self, stop: &AtomicBool, observer: &Observer) -> Result<()> {
        let mut buffer = vec![0; 2048];
        let mut counted: Option<Instant> = None;
        // Who fetches something now may have been given the address before a restart.
        let now = unix_seconds()?;
        for (address, mac) in self.leases.iter().flat_map(|leases| leases.running(now)) {
            observer.saw(address.into(), mac, None);
        }
        while !stop.load(Ordering::Relaxed) {
            self.take_up();
            if counted.is_none_or(|counted| counted.elapsed() >= COUNT_EVERY) {
                counted = Some(Instant::now());
                self.count(observer)?;
            }
            self.wait()?;
            let saved = self.saved()?;
            self.answer(saved, observer);
            let conflicts = self.hear()?;
            let batch = if self.unsaved.is_full() { vec![] } else { self.receive(&mut buffer)? };
            let batch = self.in_turn(batch);
            let mut ready = self.held.due(Instant::now());
            if !(conflicts.is_empty() && batch.is_empty()) {
                ready.extend(self.decide_all(conflicts, batch)?);
            }
            let ready =
                ready.into_iter().filter_map(|(asked, decision)| self.unless_unsaved(asked, decision)).collect();
            if let Some(rows) = self.unsaved.flush() {
                self.writer.write(rows)?;
            }
            self.answer(ready, observer);
        }
        Ok(())
    }

    /// A new configuration, if there is one. The networks are the same ones, in the same order.
    fn take_up(&mut self) {
        if !self.live.has_changed().unwrap_or(false) {
            return;
        }
        let loaded = Arc::clone(&self.live.borrow_and_update());
        self.networks = networks(&loaded);
        self.sites = sites(&self.networks, &loaded);
        for (network, leases) in self.networks.iter().zip(&mut self.leases) {
            if let Mode::Server(leasing) = &network.dhcp {
                leases.cover(leasing.pool.clone());
            }
        }
    }

    fn count(&self, observer: &Observer) -> Result<()> {
        let now = unix_seconds()?;
        for (network, leases) in self.networks.iter().zip(&self.leases) {
            observer.metrics().leases(&network.name, leases.running(now).count());
        }
        Ok(())
    }

    /// What is answered now.
    fn in_turn(&mut self, batch: Vec<Asked>) -> Vec<Asked> {
        let (new, mut now): (Vec<_>, Vec<_>) = batch.into_iter().partition(|a| a.request.kind == Kind::Discover);
        self.newcomers.extend(new);
        self.newcomers.drain(..self.newcomers.len().saturating_sub(MOST_NEWCOMERS));
        now.extend(self.newcomers.drain(..self.newcomers.len().min(TURN)));
        now
    }

    /// Until there is something to read, an offer to make, or it's time to look whether to stop.
    fn wait(&self) -> Result<()> {
        // With nothing to be read from, they fill up, and that is where what is too much gets lost.
        let open = !self.unsaved.is_full();
        let doors = self.doors.iter().filter(|_| open).map(|door| door.socket.as_fd());
        let arps = self.interfaces.iter().filter_map(|i| i.arp.as_ref()).map(AsFd::as_fd);
        let ping = self.ping.iter().map(AsFd::as_fd);
        let fds = doors.chain(arps).chain(ping).chain([self.writer.as_fd()]);
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let until = self.held.next().map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()).min(PATIENCE));
        let until = if self.newcomers.is_empty() { until } else { Duration::ZERO };
        // Rounded up: waking a moment early would be waking again and again.
        let ms = u16::try_from(until.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(ms)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e).context("waiting for DHCP requests"),
        }
    }

    /// Reads who has which address, and takes back the offers of addresses that turn out to be in use.
    fn hear(&mut self) -> Result<Vec<(Asked, Ipv4Addr, Option<Mac>)>> {
        let mut conflicts = vec![];
        let Self { interfaces, ping, held, .. } = self;
        let mut heard = |address, mac: Option<Mac>| {
            // A client may still have the address that it is about to be offered.
            if let Some((asked, decision)) = held.take(address) {
                if mac == Some(asked.request.mac) {
                    held.hold(address, (asked, decision), Instant::now(), Duration::ZERO);
                } else {
                    conflicts.push((asked, address, mac));
                }
            }
        };
        for arp in interfaces.iter().filter_map(|i| i.arp.as_ref()) {
            while let Some((address, mac)) = arp.heard()? {
                heard(address, Some(mac));
            }
        }
        if let Some(ping) = ping {
            while let Some(address) = ping.heard()? {
                heard(address, None);
            }
        }
        Ok(conflicts)
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<Vec<Asked>> {
        let mut batch = vec![];
        for (door, Door { socket, interface, .. }) in self.doors.iter().enumerate() {
            let interface = self.interfaces.get(*interface).map(|i| i.name.as_str()).unwrap_or_default();
            while batch.len() < BATCH {
                let (length, sender) = match socket.recv_from(buffer) {
                    Ok((length, std::net::SocketAddr::V4(sender))) => (length, sender),
                    Ok(_) => continue,
                    Err(e) => match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
                        Errno::EAGAIN => break,
                        // What an earlier answer ran into is reported here (ICMP unreachable, link down).
                        Errno::EINTR | Errno::ECONNREFUSED | Errno::ENETDOWN | Errno::EHOSTUNREACH => continue,
                        _ => return Err(e).with_context(|| format!("receiving DHCP requests on {interface}")),
                    },
                };
                let Some(request) = buffer.get(..length).and_then(Request::parse) else { continue };
                match network::find(&request, interface, &self.networks) {
                    Some(network) => batch.push(Asked { request, door, sender, network }),
                    None => report::stranger(&request, interface),
                }
            }
        }
        Ok(batch)
    }

    /// The decisions that are ready to be told, as far as their addresses go.
    fn decide_all(
        &mut self,
        conflicts: Vec<(Asked, Ipv4Addr, Option<Mac>)>,
        batch: Vec<Asked>,
    ) -> Result<Vec<(Asked, Decision)>> {
        let now = unix_seconds()?;
        let mut ready = vec![];
        let mut again = vec![];
        for (asked, address, mac) in conflicts {
            report::conflict(&asked.request, address, mac);
            self.change(asked.network, Change::Quarantine { address, until: now.saturating_add(QUARANTINE_SECONDS) });
            again.push(asked);
        }
        for asked in again.into_iter().chain(batch) {
            let decision = self.decide(&asked, now);
            if let Some(change) = decision.change {
                self.change(asked.network, change);
            }
            ready.extend(self.unless_held(asked, decision));
        }
        Ok(ready)
    }

    fn answer(&self, ready: Vec<(Asked, Decision)>, observer: &Observer) {
        for (asked, decision) in ready {
            let Some((network, site)) = self.networks.get(asked.network).zip(self.sites.get(asked.network)) else {
                continue;
            };
            if let Some(answer) = &decision.answer
                && let Some(door) = self.doors.get(asked.door)
                && let Some(interface) = self.interfaces.get(door.interface)
                && let Err(error) = interface.wire.send(answer, &door.socket, asked.sender, network.address)
            {
                warn!(mac = %asked.request.mac, "{error:#}");
            }
            report::decided(&asked.request, &decision, network, site, observer);
        }
    }

    fn decide(&self, asked: &Asked, now: u64) -> Decision {
        let Asked { request, door, network: place, .. } = asked;
        let (network, site, leases) = (&self.networks[*place], &self.sites[*place], &self.leases[*place]);
        let port = self.doors.get(*door).map_or(Port::Dhcp, |door| door.port);
        match (&network.dhcp, port) {
            (Mode::Server(leasing), Port::Dhcp) => decide(request, Policy { network, leasing, site }, leases, now),
            _ => proxy::decide(request, port, network, site),
        }
    }

    fn change(&mut self, network: usize, change: Change) {
        if let Some(leases) = self.leases.get_mut(network) {
            self.unsaved.add(leases.apply(change));
        }
    }

    /// Holds an offer back while somebody may still say that its address is in use.
    fn unless_held(&mut self, asked: Asked, decision: Decision) -> Option<(Asked, Decision)> {
        let network = self.networks.get(asked.network)?;
        let (Some(patience), Some(Change::Offer { address, .. })) = (leasing_probe(network), decision.change) else {
            return Some((asked, decision));
        };
        if decision.probe && !self.held.is_full() {
            let door = self.doors.get(asked.door)?;
            let arp = self.interfaces.get(door.interface).and_then(|i| i.arp.as_ref());
            let sent = match (&self.ping, arp) {
                (Some(ping), _) if network.relayed => ping.ask(address),
                (_, Some(arp)) => arp.ask(network.address, address),
                _ => return Some((asked, decision)),
            };
            if let Err(error) = sent {
                warn!(%address, "looking whether an address is in use, before it is offered: {error}");
                return Some((asked, decision));
            }
        } else if !self.held.has(address) {
            return Some((asked, decision));
        }
        self.held.hold(address, (asked, decision), Instant::now(), patience);
        None
    }

    /// Has what promises a lease wait until it is on disk. RFC 2131 §4.3.1 asks for it, and without it two machines would
    /// share an address after a crash. While nothing can be stored, nothing is offered either.
    fn unless_unsaved(&mut self, asked: Asked, decision: Decision) -> Option<(Asked, Decision)> {
        match decision.change {
            Some(Change::Bind { .. }) => {}
            Some(_) if self.unsaved.is_failing() => {}
            _ => return Some((asked, decision)),
        }
        self.unsaved.wait((asked, decision));
        None
    }

    /// What was waiting for a flush to disk that has ended.
    fn saved(&mut self) -> Result<Vec<(Asked, Decision)>> {
        let Some((rows, written)) = self.writer.ended()? else { return Ok(vec![]) };
        let (outcome, answers) = self.unsaved.flushed(rows, written.is_ok(), Instant::now());
        match (outcome, written) {
            (Outcome::SavedAgain(since), _) => {
                info!("leases can be stored again, after {} s", since.elapsed().as_secs());
            }
            (Outcome::Failed, Err(error)) => {
                error!("no client is given an address until leases can be stored: {error:#}")
            }
            _ => {}
        }
        Ok(answers)
    }
}

fn networks(loaded: &Loaded) -> Vec<Network> {
    loaded.networks().into_iter().filter(|n| n.dhcp != Mode::Off).collect()
}

fn sites(networks: &[Network], loaded: &Loaded) -> Vec<Site> {
    let Loaded { settings, files, .. } = loaded;
    let uki = settings.boot_dir.join(drophammer_initramfs::UKI).exists();
    let site = |n: &Network| Site::new(n.address, settings.ports.http, files.loaders.clone(), uki);
    networks.iter().map(site).collect()
}

fn unix_seconds() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock: it is before 1970")?;
    Ok(since.as_secs())
}

fn leasing_probe(network: &Network) -> Option<Duration> {
    match &network.dhcp {
        Mode::Server(leasing) => leasing.probe,
        Mode::Proxy | Mode::Off => None,
    }
}

fn open(interface: &str, port: u16) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    // Beyond what net.core.rmem_max allows to everybody, where we may.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind_device(Some(interface.as_bytes()))?;
    // Any address, because clients without one send to 255.255.255.255.
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket.into())
}

pub(super) fn index(interface: &str) -> Result<libc::c_int> {
    let index = if_nametoindex(interface)
        .with_context(|| format!("looking for the network interface {interface} (network.interface)"))?;
    Ok(libc::c_int::try_from(index)?)
}

pub(super) fn mac(interface: &str) -> Result<Mac> {
    let addresses = getifaddrs().context("listing the network interfaces")?;
    let link = |of: InterfaceAddress| of.address.as_ref().and_then(|a| a.as_link_addr()?.addr());
    let mac = addresses.filter(|address| address.interface_name == interface).find_map(link);
    mac.map(Mac).with_context(|| format!("{interface} is not an Ethernet interface (network.interface)"))
}
