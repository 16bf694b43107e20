//! The DHCP server's loop: read what has come, decide, store, then answer.
//!
//! It has a thread of its own and talks to nobody but the disk and the network, so no slow part of the server delays an
//! answer. What came in together is stored together: under load one flush to disk carries many leases.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use drophammer_protocol::event::{Phase, Step};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, error, info, warn};

use super::boot::{self, Next};
use super::decide::{Decision, POOL_IS_FULL, Policy, Verdict, decide};
use super::leases::{Entry, Leases};
use super::request::{Kind, Loader, Request};
use super::store::Store;
use super::wire::Wire;
use crate::config::Settings;
use crate::identity;
use crate::observe::Observer;

/// Requests that are decided on before one flush to disk.
const BATCH: usize = 64;
/// How often the loop looks whether it should end.
const PATIENCE_MS: u16 = 250;

#[derive(Debug)]
pub struct Dhcp {
    socket: UdpSocket,
    wire: Wire,
    policy: Policy,
    store: Store,
    leases: Leases,
    unsaved: Unsaved,
}

/// Changes that aren't on disk, and so were told to nobody: none, but for a disk that is full or failing.
#[derive(Debug, Default)]
struct Unsaved {
    rows: BTreeMap<Ipv4Addr, Option<Entry>>,
    since: Option<Instant>,
}

impl Dhcp {
    pub fn bind(settings: &Settings, uefi_file: &'static str) -> Result<Self> {
        let policy = Policy::of(settings, uefi_file, boot::HttpFile::in_dir(&settings.boot_dir));
        let (interface, port) = (&settings.interface, settings.ports.dhcp);
        let index = if_nametoindex(interface.as_str())
            .with_context(|| format!("looking for the network interface {interface} (network.interface)"))?;
        let socket = open(interface, port).with_context(|| {
            format!(
                "binding UDP port {port} on {interface} for DHCP (is another DHCP server running? `lsof -i :{port}`; \
                 below port 1024 it needs root)"
            )
        })?;
        let out = socket.try_clone().context("duplicating the DHCP socket")?;
        let wire = Wire::new(out, index, SocketAddrV4::new(settings.subnet.server, port))?;
        let (store, rows) = Store::open(&settings.state_dir.join("leases.redb"))?;
        let leases = Leases::new(settings.pool.clone(), rows);
        Ok(Self { socket, wire, policy, store, leases, unsaved: Unsaved::default() })
    }

    /// Serves until `stop`. An error is one that no client caused and that trying again wouldn't mend.
    pub fn run(mut self, stop: &AtomicBool, observer: &Observer) -> Result<()> {
        let mut buffer = vec![0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if !self.wait()? {
                continue;
            }
            let mut batch = vec![];
            while batch.len() < BATCH {
                match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => batch.extend(buffer.get(..length).and_then(Request::parse)),
                    Err(Errno::EAGAIN) => break,
                    // What an earlier answer ran into is reported here (ICMP unreachable, link down).
                    Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::ENETDOWN | Errno::EHOSTUNREACH) => {}
                    Err(e) => return Err(e).context("receiving DHCP requests"),
                }
            }
            self.answer(&batch, observer)?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<bool> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(PATIENCE_MS)) {
            Ok(n) => Ok(n > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(e) => Err(e).context("waiting for DHCP requests"),
        }
    }

    fn answer(&mut self, batch: &[Request], observer: &Observer) -> Result<()> {
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock: it is before 1970")?.as_secs();
        let mut decisions = Vec::with_capacity(batch.len());
        for request in batch {
            let decision = decide(request, &self.policy, &self.leases, now);
            if let Some(change) = decision.change {
                self.unsaved.rows.extend(self.leases.apply(change));
            }
            decisions.push((request, decision));
        }
        let saved = self.save();
        for (request, decision) in decisions {
            // RFC 2131 §4.3.1 asks for it, and without it two machines would share an address after a crash.
            if decision.change.is_some() && !saved {
                continue;
            }
            if let Some(answer) = &decision.answer
                && let Err(error) = self.wire.send(answer)
            {
                warn!(mac = %request.mac, "{error:#}");
            }
            report(request, &decision, &self.policy, observer);
        }
        Ok(())
    }

    /// Whether everything is on disk. What can't be written now is written with the next change: clients ask again.
    fn save(&mut self) -> bool {
        let Unsaved { rows, since } = &mut self.unsaved;
        if rows.is_empty() {
            return true;
        }
        match self.store.write(rows) {
            Ok(()) => {
                rows.clear();
                if let Some(since) = since.take() {
                    info!("leases can be stored again, after {} s", since.elapsed().as_secs());
                }
                true
            }
            Err(error) => {
                if since.is_none() {
                    error!("no client is given an address until leases can be stored: {error:#}");
                    *since = Some(Instant::now());
                }
                false
            }
        }
    }
}

fn open(interface: &str, port: u16) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    // Any address, because clients without one send to 255.255.255.255.
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket.into())
}

fn report(request: &Request, decision: &Decision, policy: &Policy, observer: &Observer) {
    let mac = request.mac;
    debug!(%mac, kind = ?request.kind, loader = ?request.loader, verdict = ?decision.verdict, "dhcp");
    match (decision.verdict, request.server) {
        (Verdict::Silent(POOL_IS_FULL), _) => warn!(%mac, "no address for a client: {POOL_IS_FULL}"),
        (Verdict::Silent(_), Some(other)) if request.kind == Kind::Request && other != policy.subnet.server => {
            warn!(%mac, %other, "another DHCP server is active on the boot network, and this client took its offer");
        }
        (Verdict::Declined(address), _) => {
            warn!(%mac, %address, "a client found its address in use by somebody else; it isn't handed out for a while");
        }
        (Verdict::Ack(address), _) => info!(%mac, %address, loader = ?request.loader, "leased"),
        _ => {}
    }
    if let Verdict::Ack(address) | Verdict::Renew(address) = decision.verdict {
        observer.saw(address.into(), mac, request.uuid().and_then(identity::of_uuid));
    }
    if let Some((phase, step, message)) = event(request, decision.verdict, policy) {
        observer.observe(mac, request.uuid().and_then(identity::of_uuid), phase, step, message);
    }
}

/// What the timeline of a boot says about this exchange. Operating systems aren't booting any more, nor is our agent, and
/// report themselves.
fn event(request: &Request, verdict: Verdict, policy: &Policy) -> Option<(Phase, Step, String)> {
    let who = match request.loader {
        Loader::None | Loader::Agent => return None,
        Loader::Pxe(firmware) => format!("{} firmware", firmware.name()),
        Loader::UefiHttp(firmware) => format!("{} firmware (HTTP boot)", firmware.name()),
        Loader::Ipxe(firmware) => format!("iPXE on {}", firmware.name()),
    };
    match verdict {
        Verdict::Offer(address) => {
            Some((Phase::Dhcp, Step::Started, format!("{who} asks for an address: offered {address}")))
        }
        Verdict::Ack(address) => Some(match boot::next(request.loader, &policy.site) {
            Some(next) => {
                let next = match next {
                    Next::Tftp { file, .. } => format!("{file} by TFTP"),
                    Next::Http { url } => url,
                    Next::Script { .. } => "the boot script".into(),
                    Next::Ticket { .. } => "its ticket".into(),
                };
                (Phase::Dhcp, Step::Done, format!("{who} has {address}; next is {next}"))
            }
            None => (Phase::Dhcp, Step::Failed, format!("{who} has {address}, but there is no boot file for it")),
        }),
        Verdict::Nak(why) => Some((Phase::Dhcp, Step::Failed, format!("{who} was refused its address: {why}"))),
        Verdict::Silent(POOL_IS_FULL) => {
            Some((Phase::Dhcp, Step::Failed, format!("{who} gets no address: {POOL_IS_FULL}")))
        }
        Verdict::Renew(_) | Verdict::Inform | Verdict::Released(_) | Verdict::Declined(_) | Verdict::Silent(_) => None,
    }
}
