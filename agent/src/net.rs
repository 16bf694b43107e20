//! From bare network ports to an address: every port is switched on and asks by DHCP; the one that answers is used,
//! with the port that the firmware booted from going first, and before all the port on which there is this boot's ticket,
//! if that is wanted.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::event::Phase;
use drophammer_protocol::id::Mac;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::dhcp::{Action, Client, Lease};
use crate::reporter::Reporter;
use crate::sys::linux;

/// A rack that was switched on at once has switches that boot slower than its servers.
const GIVE_UP: Duration = Duration::from_secs(15 * 60);
/// How long another port's lease waits for one on the port that is wished for.
const PREFERENCE: Duration = Duration::from_secs(20);
/// New ports and carriers are looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const SAY_EVERY: Duration = Duration::from_secs(15);
/// RFC 2131 §2: what a client must be able to take, and jumbo frames are no exception.
const LARGEST_PACKET: usize = 9216;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) mac: Mac,
}

/// The Ethernet ports that are hardware (or a hypervisor's idea of it), by name.
pub(crate) fn ports(root: &Path) -> Vec<Port> {
    let folder = root.join("sys/class/net");
    let read = |name: &str, file: &str| fs::read_to_string(folder.join(name).join(file)).unwrap_or_default();
    let mut ports: Vec<Port> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        // ARPHRD_ETHER; bridges, bonds and VLANs have no device behind them.
        .filter(|name| read(name, "type").trim() == "1" && folder.join(name).join("device").exists())
        .filter_map(|name| Some(Port { mac: read(&name, "address").trim().parse().ok()?, name }))
        .collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    ports
}

/// Which port is better than the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The one that we booted from.
    pub(crate) mac: Option<Mac>,
    /// One whose DHCP server says where this boot's ticket is.
    pub(crate) ticket: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) mac: Mac,
    pub(crate) ticket_url: Option<String>,
}

/// A port that is asking.
struct Asking {
    port: Port,
    socket: UdpSocket,
    client: Client,
    carrier: bool,
    lease: Option<(Lease, Instant)>,
}

/// Gets this machine onto the network and keeps its lease from then on, in a thread. Returns when there is an address.
pub(crate) fn bring_up(wish: Wish, reporter: &Reporter) -> anyhow::Result<Uplink> {
    let began = Instant::now();
    let root = Path::new("/");
    linux::link_up("lo")?;
    let mut asking: Vec<Asking> = Vec::new();
    let mut refused: Vec<String> = Vec::new();
    let mut said = began;
    let mut looked: Option<Instant> = None;
    let chosen = loop {
        let now = Instant::now();
        if looked.is_none_or(|at| now >= at + LOOK_EVERY) {
            looked = Some(now);
            for port in ports(root) {
                if asking.iter().any(|a| a.port == port) || refused.contains(&port.name) {
                    continue;
                }
                match start(port.clone(), now) {
                    Ok(port) => asking.push(port),
                    Err(error) => {
                        reporter.note(Phase::Agent, format!("leaving {} out: {error:#}", port.name));
                        refused.push(port.name);
                    }
                }
            }
            for a in &mut asking {
                let carrier = has_carrier(root, &a.port.name);
                if carrier && !a.carrier {
                    // From the beginning, without the waits that grew while nobody could hear.
                    a.client = Client::new(a.port.mac, random_xid()?, now);
                }
                a.carrier = carrier;
            }
        }
        for a in asking.iter_mut().filter(|a| a.carrier) {
            while let Some(news) = step(&a.socket, &mut a.client) {
                a.lease = news.ok().map(|lease| (lease, now));
            }
        }
        let held =
            |a: &Asking| a.lease.as_ref().map(|(lease, at)| Held { since: *at, ticket: lease.ticket_url.is_some() });
        let leases: Vec<_> = asking.iter().map(|a| (a.port.mac, held(a))).collect();
        if let Some(index) = choose(&leases, wish, now) {
            break asking.swap_remove(index);
        }
        if now >= said + SAY_EVERY {
            said = now;
            let waiting = describe(asking.iter().map(|a| (a.port.name.as_str(), a.carrier, a.lease.is_some())));
            reporter.note(Phase::Agent, format!("waiting for a DHCP server: {waiting}"));
        }
        if now >= began + GIVE_UP {
            let waiting = describe(asking.iter().map(|a| (a.port.name.as_str(), a.carrier, a.lease.is_some())));
            anyhow::bail!(
                "no DHCP server gave this machine an address in {} min ({waiting}); check the cable, the switch port's \
                 VLAN and that a DHCP server serves it",
                GIVE_UP.as_secs() / 60
            );
        }
        wait(asking.iter().filter(|a| a.carrier).map(|a| (&a.socket, &a.client)), now + LOOK_EVERY)?;
    };
    drop(asking);
    let Asking { port, socket, client, lease, .. } = chosen;
    let (lease, _) = lease.context("only a port with a lease is chosen")?;
    apply(&port.name, &lease)?;
    reporter.note(Phase::Agent, format!("{} ({}): {}", port.name, port.mac, in_words(&lease)));
    let uplink = Uplink { mac: port.mac, ticket_url: lease.ticket_url.clone() };
    let reporter = reporter.clone();
    thread::spawn(move || keep(&port, &socket, client, lease, &reporter));
    Ok(uplink)
}

fn start(port: Port, now: Instant) -> anyhow::Result<Asking> {
    linux::link_up(&port.name)?;
    let socket = linux::dhcp_socket(&port.name)?;
    let client = Client::new(port.mac, random_xid()?, now);
    Ok(Asking { port, socket, client, carrier: false, lease: None })
}

/// A lease, as far as the choice goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    since: Instant,
    ticket: bool,
}

/// Which port to use: one that is all that's wished for as soon as it has a lease, the next best if that takes too long.
fn choose(leases: &[(Mac, Option<Held>)], wish: Wish, now: Instant) -> Option<usize> {
    // The port we booted from may belong to another operating system's idea of the machine: then nobody goes first.
    let mac = wish.mac.filter(|wished| leases.iter().any(|(mac, _)| mac == wished));
    let held = || leases.iter().enumerate().filter_map(|(index, (mac, held))| Some((index, *mac, (*held)?)));
    let (index, suits) = held()
        .map(|(index, of, held)| {
            let suits = (held.ticket || !wish.ticket, mac.is_none_or(|wished| wished == of));
            (index, suits, held.since)
        })
        .max_by_key(|(index, suits, since)| (*suits, Reverse((*since, *index))))
        .map(|(index, suits, _)| (index, suits))?;
    let waited = held().any(|(.., held)| now >= held.since + PREFERENCE);
    (suits == (true, true) || waited).then_some(index)
}

/// Why there is no lease any more.
type Lost = &'static str;

/// Does what the client wants done now. `Some` when that changed what we hold.
fn step(socket: &UdpSocket, client: &mut Client) -> Option<Result<Lease, Lost>> {
    let mut buffer = [0; LARGEST_PACKET];
    loop {
        let action = match socket.recv(&mut buffer) {
            Ok(length) => client.on_packet(buffer.get(..length).unwrap_or_default(), Instant::now()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match client.poll(Instant::now()) {
                None => return None,
                some => some,
            },
            // The link went down, or an ICMP error came back for an earlier packet: the client repeats itself.
            Err(_) => None,
        };
        let (to, packet) = match action {
            None => continue,
            Some(Action::Bound(lease)) => return Some(Ok(lease)),
            Some(Action::Lost(why)) => return Some(Err(why)),
            Some(Action::Broadcast(packet)) => (Ipv4Addr::BROADCAST, packet),
            Some(Action::Unicast(to, packet)) => (to, packet),
        };
        // As above: what can't be sent now is sent again.
        let _ = socket.send_to(&packet, (to, 67));
    }
}

/// Renews the lease for as long as the agent runs.
fn keep(port: &Port, socket: &UdpSocket, mut client: Client, mut lease: Lease, reporter: &Reporter) {
    loop {
        match step(socket, &mut client) {
            Some(Ok(new)) if new != lease => {
                match apply(&port.name, &new) {
                    Ok(()) => reporter.note(Phase::Agent, format!("{} now: {}", port.name, in_words(&new))),
                    Err(error) => reporter.failed(Phase::Agent, format!("using a renewed DHCP lease: {error:#}")),
                }
                lease = new;
            }
            // An erase or an installation that is under way is worth more than a tidy address: it stays until there is
            // another one.
            Some(Err(why)) => reporter.note(
                Phase::Agent,
                format!("{}: {why}; keeping {} until another lease is there", port.name, lease.address),
            ),
            Some(Ok(_)) | None => {}
        }
        if wait([(socket, &client)].into_iter(), Instant::now() + Duration::from_secs(3600)).is_err() {
            thread::sleep(LOOK_EVERY);
        }
    }
}

fn wait<'a>(clients: impl Iterator<Item = (&'a UdpSocket, &'a Client)>, until: Instant) -> anyhow::Result<()> {
    let (sockets, wakes): (Vec<_>, Vec<_>) = clients.map(|(socket, client)| (socket, client.wake_at())).unzip();
    let until = wakes.into_iter().flatten().chain([until]).min().unwrap_or(until);
    // Rounded up: waking a fraction early would spin.
    let millis = until.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    let mut fds: Vec<_> = sockets.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("waiting for a DHCP answer"),
    }
}

fn apply(interface: &str, lease: &Lease) -> anyhow::Result<()> {
    linux::set_address(interface, lease.address, lease.mask)?;
    if let Some(mtu) = lease.mtu {
        linux::set_mtu(interface, mtu)?;
    }
    for route in &lease.routes {
        linux::add_route(interface, route.destination, route.mask, route.gateway)?;
    }
    fs::create_dir_all("/etc").context("making /etc")?;
    fs::write("/etc/resolv.conf", resolv_conf(lease)).context("writing /etc/resolv.conf")
}

fn resolv_conf(lease: &Lease) -> String {
    let mut text = String::new();
    if let Some(domain) = &lease.domain {
        let _ = writeln!(text, "search {domain}");
    }
    for server in &lease.dns {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

fn in_words(lease: &Lease) -> String {
    let mut text = lease.address.to_string();
    if let Some(mask) = lease.mask {
        let _ = write!(text, "/{}", u32::from(mask).count_ones());
    }
    for route in lease.routes.iter().filter(|r| r.mask.is_unspecified()) {
        let _ = write!(text, ", gateway {}", route.gateway);
    }
    let _ = write!(text, ", by DHCP from {}", lease.server);
    if let Some(times) = lease.times {
        let _ = write!(text, " for {} s", times.expire.as_secs());
    }
    text
}

fn describe<'a>(ports: impl Iterator<Item = (&'a str, bool, bool)>) -> String {
    let words: Vec<String> = ports
        .map(|(name, carrier, lease)| match (carrier, lease) {
            (false, _) => format!("{name} has no link"),
            (true, false) => format!("{name} has a link, nobody answers"),
            (true, true) => format!("{name} has a lease, but another port may be the right one"),
        })
        .collect();
    if words.is_empty() {
        "no network port was found; is its driver in the initramfs?".into()
    } else {
        words.join("; ")
    }
}

fn has_carrier(root: &Path, interface: &str) -> bool {
    fs::read_to_string(root.join("sys/class/net").join(interface).join("carrier")).is_ok_and(|c| c.trim() == "1")
}

fn random_xid() -> anyhow::Result<u32> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).context("getting random bytes")?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_that_booted_goes_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (a, b) = (Mac([1; 6]), Mac([2; 6]));
        let plain = |seconds| Some(Held { since: at(seconds), ticket: false });
        let ticket = |seconds| Some(Held { since: at(seconds), ticket: true });
        let booted = |mac| Wish { mac: Some(mac), ticket: false };
        let (any, wanting, both) =
            (Wish::default(), Wish { mac: None, ticket: true }, Wish { mac: Some(a), ticket: true });
        for (name, leases, wish, now, want) in [
            ("nobody answered", vec![(a, None), (b, None)], any, 9, None),
            ("the only one", vec![(a, None), (b, plain(1))], any, 1, Some(1)),
            ("the first one", vec![(a, plain(2)), (b, plain(1))], any, 2, Some(1)),
            ("the one that booted, though later", vec![(a, plain(2)), (b, plain(1))], booted(a), 2, Some(0)),
            ("another one waits", vec![(a, None), (b, plain(1))], booted(a), 20, None),
            ("but not for ever", vec![(a, None), (b, plain(1))], booted(a), 21, Some(1)),
            ("booted from what isn't there", vec![(b, plain(1))], booted(a), 1, Some(0)),
            ("without a ticket it waits", vec![(a, plain(1)), (b, None)], wanting, 20, None),
            ("the one with the ticket", vec![(a, plain(1)), (b, ticket(2))], wanting, 2, Some(1)),
            ("no ticket anywhere", vec![(a, plain(1)), (b, plain(2))], wanting, 21, Some(0)),
            ("booted, and the ticket", vec![(a, ticket(3)), (b, ticket(1))], both, 3, Some(0)),
            ("the ticket is elsewhere", vec![(a, plain(1)), (b, ticket(2))], both, 20, None),
            ("the ticket counts for more", vec![(a, plain(1)), (b, ticket(2))], both, 21, Some(1)),
        ] {
            assert_eq!(choose(&leases, wish, at(now)), want, "{name}");
        }
    }

    #[test]
    fn a_lease_becomes_a_resolver_file() {
        let lease = Lease {
            address: Ipv4Addr::new(10, 0, 0, 5),
            mask: Some(Ipv4Addr::new(255, 255, 252, 0)),
            routes: vec![],
            dns: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
            domain: Some("lab.test".into()),
            mtu: None,
            server: Ipv4Addr::new(10, 0, 0, 1),
            ticket_url: None,
            times: None,
        };
        assert_eq!(resolv_conf(&lease), "search lab.test\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n");
        assert_eq!(in_words(&lease), "10.0.0.5/22, by DHCP from 10.0.0.1");
    }
}
