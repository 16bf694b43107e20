//! The TFTP server's loop: wait, receive, let transfers decide, send.
//!
//! One thread does all of it, for all addresses: a packet costs little more than the two system calls that move it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::body::Bytes;
use drophammer_protocol::event::{Phase, Step};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tracing::{debug, warn};

use super::files::Files;
use super::pace::Pace;
use super::packet::{self, ErrorCode, Mode, Packet, Request};
use super::report::Ended;
use super::table::{Admission, Asked, Full, MOST_PER_HOST, MOST_TRANSFERS, Table};
use super::transfer::{Action, End, Transfer};
use super::wire::{Listener, Port, Received};
use crate::files;
use crate::live::Live;
use crate::observe::{Observer, Told};

/// How often the loop looks whether it should end.
const STOP_CHECK: Duration = Duration::from_millis(250);
const EVENTS: usize = 256;
/// New requests that are taken between two looks at the running transfers: a flood of them is to slow nobody down.
const REQUESTS: usize = 16;
/// Packets of one transfer that are read in a row.
const PACKETS: usize = 64;
/// What marks an event as one of a listener: clients take 48 bits.
const LISTENER: u64 = 1 << 63;

const LOG_EVERY: Duration = Duration::from_secs(10);
const NOTES_PER_SECOND: u32 = 100;

#[derive(Debug)]
pub struct Tftp {
    listeners: Vec<Listener>,
    transfers: Transfers,
}

#[derive(Debug)]
struct Transfers {
    live: Live,
    epoll: Epoll,
    table: Table<Port>,
    refusals: Pace,
    notes: Pace,
}

impl Tftp {
    /// Binds the port on each address, or says what to look at. `None` if there are no addresses.
    pub(crate) fn bind(addresses: &[(Ipv4Addr, &str)], port: u16, live: Live) -> Result<Option<Self>> {
        if addresses.is_empty() {
            return Ok(None);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("preparing to wait for TFTP")?;
        let mut listeners = vec![];
        for ((address, interface), token) in addresses.iter().zip(LISTENER..) {
            let listener = Listener::bind(*address, port, interface)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
            epoll.add(&listener, event).context("preparing to wait for TFTP requests")?;
            listeners.push(listener);
        }
        let now = Instant::now();
        let transfers = Transfers {
            live,
            epoll,
            table: Table::new(most_transfers(files::open_files()?)),
            refusals: Pace::new(1, LOG_EVERY, now),
            notes: Pace::new(NOTES_PER_SECOND, Duration::from_secs(1), now),
        };
        Ok(Some(Self { listeners, transfers }))
    }

    /// Serves until `stop`. An error is one that no client caused and that trying again wouldn't mend.
    pub fn run(self, stop: &AtomicBool, observer: &Observer) -> Result<()> {
        let Self { listeners, mut transfers } = self;
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            let ready = transfers.wait(&mut events)?;
            let ready = events.get(..ready).unwrap_or_default();
            let now = Instant::now();
            for event in ready {
                if let Some(client) = client(event.data()) {
                    transfers.attend(client, &mut buffer, now, observer);
                }
            }
            transfers.wake(now, observer);
            // Last, for requests can wait: whoever sent them does nothing else until they are answered.
            for (listener, token) in listeners.iter().zip(LISTENER..) {
                if ready.iter().any(|event| event.data() == token) {
                    transfers.take_requests(listener, &mut buffer, now, observer)?;
                }
            }
        }
        Ok(())
    }
}

impl Transfers {
    /// Awake for a moment if that is all it takes: firmware that has nothing else to do answers sooner than a processor wakes
    /// up, and in lock-step a file is as fast as that. Otherwise asleep.
    fn wait(&self, events: &mut [EpollEvent]) -> Result<usize> {
        let mut now = Instant::now();
        let awake_until = self.table.awake_until().unwrap_or(now);
        while now < awake_until {
            let ready = self.wait_until(now, now, events)?;
            if ready > 0 {
                return Ok(ready);
            }
            // Whoever has work goes first.
            thread::yield_now();
            now = Instant::now();
        }
        let until = now + STOP_CHECK;
        let until = self.table.next_timer().map_or(until, |timer| timer.min(until));
        self.wait_until(until, now, events)
    }

    fn wait_until(&self, until: Instant, now: Instant, events: &mut [EpollEvent]) -> Result<usize> {
        match self.epoll.wait(events, milliseconds(until, now)) {
            Ok(ready) => Ok(ready),
            Err(Errno::EINTR) => Ok(0),
            Err(e) => Err(e).context("waiting for TFTP"),
        }
    }

    fn wake(&mut self, now: Instant, observer: &Observer) {
        while let Some((client, action)) = self.table.wake(now) {
            self.act(client, action, observer);
        }
    }

    fn take_requests(&mut self, at: &Listener, buffer: &mut [u8], now: Instant, observer: &Observer) -> Result<()> {
        for _ in 0..REQUESTS {
            let Some((request, client)) = at.receive(buffer)? else { break };
            self.request(at, client, request, now, observer);
        }
        Ok(())
    }

    fn request(&mut self, at: &Listener, client: SocketAddrV4, datagram: &[u8], now: Instant, observer: &Observer) {
        let request = match packet::parse(datagram) {
            Some(Packet::Read(request)) => request,
            Some(Packet::Write) => return at.refuse(client, ErrorCode::Forbidden, "nothing can be written here"),
            Some(Packet::Garbled) => {
                return at.refuse(client, ErrorCode::Illegal, "the request has no name or no mode");
            }
            Some(Packet::Ack(_) | Packet::Error { .. }) | None => return,
        };
        let Some((name, bytes)) = find(&self.live.borrow().files, &request) else {
            if self.notes.allows(now).is_some() {
                let asked = String::from_utf8_lossy(request.name);
                let message = format!("{asked:?} was asked for by TFTP; there is no such file");
                let told = Told { phase: Phase::Tftp, step: Step::Note, message, progress: None, sight: None };
                observer.observe_at((*client.ip()).into(), told);
            }
            return at.refuse(client, ErrorCode::NotFound, "there is no such file");
        };
        // The files are binaries, which a client that translates line ends would ruin.
        if request.mode != Mode::Octet {
            return at.refuse(client, ErrorCode::Other, "boot files are binary: ask for them in mode octet");
        }
        let asked = Asked { server: at.address, name, options: request.options };
        match self.table.admit(client, &asked, now) {
            Admission::Begin { instead_of } => {
                match instead_of {
                    Some(old) if old == client => self.hang_up(client, observer),
                    Some(other) => self.end(other, End::Displaced, observer),
                    None => {}
                }
                self.begin(at, client, asked, bytes, now, observer);
            }
            Admission::Repeat => {
                let action = self.table.change(client, |entry| entry.transfer.answer(now));
                self.act(client, action.unwrap_or(Action::Nothing), observer);
            }
            Admission::Straggler => {}
            Admission::Full(full) => {
                let message = match full {
                    Full::Server => "too many transfers are running: ask again later".to_owned(),
                    Full::Host => format!("{MOST_PER_HOST} transfers to this address are running: ask again later"),
                };
                self.no_room(at, client, &message, now);
            }
        }
    }

    fn begin(
        &mut self,
        at: &Listener,
        client: SocketAddrV4,
        asked: Asked,
        file: Bytes,
        now: Instant,
        observer: &Observer,
    ) {
        let port = Port::open(at.address, client).and_then(|port| {
            self.epoll.add(&port, EpollEvent::new(EpollFlags::EPOLLIN, token(client)))?;
            Ok(port)
        });
        match port {
            Ok(mut port) => {
                debug!(%client, file = asked.name, options = ?asked.options, "tftp");
                let mut transfer = Transfer::new(file, &asked.options, port.block_size(), now);
                port.segment(&transfer);
                let action = transfer.answer(now);
                self.table.insert(client, asked, transfer, port, now);
                self.act(client, action, observer);
            }
            Err(error) => {
                self.no_room(at, client, &format!("the server can't open one more port: {error}"), now);
            }
        }
    }

    fn no_room(&mut self, at: &Listener, client: SocketAddrV4, message: &str, now: Instant) {
        if let Some(unsaid) = self.refusals.allows(now) {
            warn!(%client, unsaid, "a TFTP client was sent away: {message}");
        }
        at.refuse(client, ErrorCode::Other, message);
    }

    /// Something happened at a transfer's port.
    fn attend(&mut self, client: SocketAddrV4, buffer: &mut [u8], now: Instant, observer: &Observer) {
        for _ in 0..PACKETS {
            let happened = self.table.change(client, |entry| match entry.port.receive(buffer) {
                Received::Nothing => None,
                Received::Closed => Some((Action::End(entry.transfer.hung_up()), None)),
                Received::Datagram(datagram) => {
                    let was_answered = entry.transfer.answered();
                    let action = entry.transfer.receive(datagram, now);
                    if let Action::Send(outgoing) = &action {
                        entry.port.send(&entry.transfer, outgoing);
                    }
                    let begun = !was_answered && entry.transfer.answered();
                    Some((action, begun.then_some(entry.asked.name)))
                }
            });
            let Some((action, begun)) = happened.flatten() else { return };
            if let Some(name) = begun {
                let message = format!("sending {name}");
                let told = Told { phase: Phase::Tftp, step: Step::Started, message, progress: None, sight: None };
                observer.observe_at((*client.ip()).into(), told);
            }
            match action {
                Action::Nothing => {}
                // Almost always this packet was all there is; if not, the next wait ends at once.
                Action::Send(_) => return,
                Action::End(end) => return self.end(client, end, observer),
            }
        }
    }

    fn act(&mut self, client: SocketAddrV4, action: Action, observer: &Observer) {
        match action {
            Action::Nothing => {}
            Action::Send(outgoing) => {
                self.table.change(client, |entry| entry.port.send(&entry.transfer, &outgoing));
            }
            Action::End(end) => self.end(client, end, observer),
        }
    }

    fn hang_up(&mut self, client: SocketAddrV4, observer: &Observer) {
        if let Some(end) = self.table.get(client).map(|entry| entry.transfer.hung_up()) {
            self.end(client, end, observer);
        }
    }

    fn end(&mut self, client: SocketAddrV4, end: End, observer: &Observer) {
        let Some(entry) = self.table.remove(client) else { return };
        let transfer = &entry.transfer;
        let ended = Ended {
            name: entry.asked.name,
            end,
            asked_again: entry.asked_again,
            acknowledged_bytes: transfer.acknowledged_bytes(),
            total_bytes: transfer.total_bytes(),
            took: transfer.heard_at().saturating_duration_since(entry.began),
        };
        debug!(%client, ?ended, "tftp");
        if let Some(told) = ended.told() {
            observer.observe_at((*client.ip()).into(), told);
        }
    }
}

fn find(files: &Files, request: &Request<'_>) -> Option<(&'static str, Bytes)> {
    // Firmware puts its own idea of a root in front, and some ROMs DHCP's end option (255) behind.
    let name = std::str::from_utf8(request.name.strip_suffix(b"\xff").unwrap_or(request.name)).ok()?;
    files.get(name.trim_start_matches(['/', '\\']))
}

/// Clients by what epoll can carry.
fn token(client: SocketAddrV4) -> u64 {
    u64::from(client.ip().to_bits()) << 16 | u64::from(client.port())
}

fn client(token: u64) -> Option<SocketAddrV4> {
    let address = u32::try_from(token >> 16).ok()?;
    let port = u16::try_from(token & u64::from(u16::MAX)).ok()?;
    Some(SocketAddrV4::new(Ipv4Addr::from_bits(address), port))
}

/// Rounded up: a timer that hasn't run out yet would be looked at in vain.
fn milliseconds(until: Instant, now: Instant) -> EpollTimeout {
    let left = until.saturating_duration_since(now) + Duration::from_micros(999);
    EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO)
}

/// Strangers can't take more than half of the files that the whole server may open.
fn most_transfers(open_files: u64) -> usize {
    usize::try_from(open_files / 2).unwrap_or(usize::MAX).min(MOST_TRANSFERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_tokens_are_the_same() {
        for client_ in ["0.0.0.0:0", "10.77.0.1:2070", "255.255.255.255:65535"] {
            let client_: SocketAddrV4 = client_.parse().expect("an address");
            assert_eq!(client(token(client_)), Some(client_));
        }
        assert_eq!(client(LISTENER), None);
    }

    #[test]
    fn waiting_is_rounded_up_and_not_waiting_is_none() {
        let now = Instant::now();
        for (left, want) in [(0, 0_u8), (1, 1), (1000, 1), (1001, 2)] {
            let until = now + Duration::from_micros(left);
            assert_eq!(milliseconds(until, now), EpollTimeout::from(want), "{left} µs");
        }
    }

    #[test]
    fn the_rest_of_the_server_keeps_half_of_the_files() {
        for (open, want) in [(0, 0), (1024, 512), (8192, 4096), (u64::MAX, 4096)] {
            assert_eq!(most_transfers(open), want);
        }
    }
}
