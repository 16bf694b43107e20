//! All transfers that are under way: who may have one, who has to make room, and whose time has come.
//!
//! Memory and sockets are bounded by counting transfers, in total and per host. Whoever never acknowledged anything (which
//! is all that forged requests can do) goes first, the oldest before the others.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::packet::Options;
use super::transfer::{Action, Transfer};

/// Each has a socket, which takes a file descriptor and a little of the kernel's memory.
pub const MOST_TRANSFERS: usize = 4096;
/// Several machines may share an address behind a router.
pub const MOST_PER_HOST: usize = 16;
/// Transfers that leave a processor idle between two answers.
const FEW: usize = 2;
/// So long after a client was last heard of, the request that it had begun with isn't a straggler on the network any more.
const STRAGGLERS: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Table<P> {
    most: usize,
    entries: HashMap<SocketAddrV4, Entry<P>>,
    by_host: HashMap<Ipv4Addr, Vec<SocketAddrV4>>,
    /// By age.
    unanswered: BTreeSet<(u64, SocketAddrV4)>,
    /// One per transfer, never later than its time but perhaps earlier: most acknowledgements move that time, and this
    /// is put right only when it passes.
    timers: BTreeSet<(Instant, SocketAddrV4)>,
    begun: u64,
}

#[derive(Debug)]
pub struct Entry<P> {
    pub transfer: Transfer,
    pub asked: Asked,
    pub port: P,
    pub began: Instant,
    /// The same host has asked for the same file since, from another port.
    pub asked_again: bool,
    age: u64,
    timer: Instant,
    answered: bool,
}

/// A request, once its file is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The address of ours that was asked.
    pub server: Ipv4Addr,
    pub name: &'static str,
    pub options: Options,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A new transfer, for which this one ends.
    Begin {
        instead_of: Option<SocketAddrV4>,
    },
    /// Asked before; the answer may have been lost.
    Repeat,
    /// A copy of the request that a running transfer began with.
    Straggler,
    Full(Full),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Server,
    Host,
}

impl<P> Table<P> {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            entries: HashMap::new(),
            by_host: HashMap::new(),
            unanswered: BTreeSet::new(),
            timers: BTreeSet::new(),
            begun: 0,
        }
    }

    pub fn admit(&self, client: SocketAddrV4, asked: &Asked, now: Instant) -> Admission {
        if let Some(entry) = self.entries.get(&client) {
            let silent = now.saturating_duration_since(entry.transfer.heard_at());
            return match () {
                () if entry.asked != *asked => Admission::Begin { instead_of: Some(client) },
                () if !entry.answered => Admission::Repeat,
                () if silent < STRAGGLERS => Admission::Straggler,
                // A machine that was reset and has the same port again.
                () => Admission::Begin { instead_of: Some(client) },
            };
        }
        let of_host = self.by_host.get(client.ip()).map_or(&[][..], Vec::as_slice);
        let (full, oldest) = match () {
            () if of_host.len() >= MOST_PER_HOST => (Full::Host, self.oldest_unanswered(of_host)),
            () if self.entries.len() >= self.most => (Full::Server, self.unanswered.first().map(|(_, client)| *client)),
            () => return Admission::Begin { instead_of: None },
        };
        oldest.map_or(Admission::Full(full), |oldest| Admission::Begin { instead_of: Some(oldest) })
    }

    fn oldest_unanswered(&self, clients: &[SocketAddrV4]) -> Option<SocketAddrV4> {
        let entry = |client: &SocketAddrV4| Some((self.entries.get(client)?, *client));
        let unanswered = clients.iter().filter_map(entry).filter(|(entry, _)| !entry.answered);
        unanswered.min_by_key(|(entry, _)| entry.age).map(|(_, client)| client)
    }

    /// The client must have none.
    pub fn insert(&mut self, client: SocketAddrV4, asked: Asked, transfer: Transfer, port: P, now: Instant) {
        let host = self.by_host.entry(*client.ip()).or_default();
        for other in &*host {
            if let Some(other) = self.entries.get_mut(other) {
                other.asked_again |= other.asked.name == asked.name;
            }
        }
        host.push(client);
        self.begun += 1;
        let (age, timer) = (self.begun, transfer.due());
        self.unanswered.insert((age, client));
        self.timers.insert((timer, client));
        let entry = Entry { transfer, asked, port, began: now, asked_again: false, age, timer, answered: false };
        self.entries.insert(client, entry);
    }

    pub fn get(&self, client: SocketAddrV4) -> Option<&Entry<P>> {
        self.entries.get(&client)
    }

    /// What changes a transfer, but for [`Table::wake`], comes through here, so that the orders above stay true.
    pub fn change<R>(&mut self, client: SocketAddrV4, change: impl FnOnce(&mut Entry<P>) -> R) -> Option<R> {
        let entry = self.entries.get_mut(&client)?;
        let result = change(entry);
        if !entry.answered && entry.transfer.answered() {
            entry.answered = true;
            self.unanswered.remove(&(entry.age, client));
        }
        if entry.transfer.due() < entry.timer {
            self.timers.remove(&(entry.timer, client));
            entry.timer = entry.transfer.due();
            self.timers.insert((entry.timer, client));
        }
        Some(result)
    }

    pub fn remove(&mut self, client: SocketAddrV4) -> Option<Entry<P>> {
        let entry = self.entries.remove(&client)?;
        self.timers.remove(&(entry.timer, client));
        self.unanswered.remove(&(entry.age, client));
        if let Some(host) = self.by_host.get_mut(client.ip()) {
            host.retain(|other| *other != client);
            if host.is_empty() {
                self.by_host.remove(client.ip());
            }
        }
        Some(entry)
    }

    /// When to call [`Table::wake`].
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(timer, _)| *timer)
    }

    /// Until when it's worth staying awake: among many clients there is always one that has answered.
    pub fn awake_until(&self) -> Option<Instant> {
        if self.entries.len() > FEW {
            return None;
        }
        self.entries.values().filter_map(|entry| entry.transfer.answer_by()).max()
    }

    /// A transfer whose time has come, and what it does. To be called until there is none; one that ends has to be removed.
    pub fn wake(&mut self, now: Instant) -> Option<(SocketAddrV4, Action)> {
        while let Some((timer, client)) = self.timers.first().copied().filter(|(timer, _)| *timer <= now) {
            self.timers.remove(&(timer, client));
            let Some(entry) = self.entries.get_mut(&client) else { continue };
            let action = entry.transfer.wake(now);
            entry.timer = entry.transfer.due();
            self.timers.insert((entry.timer, client));
            if action != Action::Nothing {
                return Some((client, action));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use proptest::prelude::*;

    use super::super::packet::tests::ack;
    use super::*;

    const ASKED: Asked = Asked {
        server: Ipv4Addr::new(10, 77, 0, 254),
        name: "snponly.efi",
        options: Options { block_size: Some(1468), transfer_size: Some(0), timeout: None, window: None },
    };
    const OTHER: Asked = Asked { name: "undionly.kpxe", ..ASKED };
    const ELSEWHERE: Asked = Asked { server: Ipv4Addr::new(10, 78, 0, 254), ..ASKED };

    fn at(host: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, host), port)
    }

    fn add(table: &mut Table<()>, client: SocketAddrV4, asked: Asked, now: Instant) {
        let mut transfer = Transfer::new(Bytes::from_static(b"x"), &asked.options, 1468, now);
        transfer.answer(now);
        table.insert(client, asked, transfer, (), now);
    }

    fn answer(table: &mut Table<()>, client: SocketAddrV4, now: Instant) {
        table.change(client, |entry| entry.transfer.receive(&ack(0), now)).expect("is there");
    }

    #[test]
    fn requests_are_told_apart() {
        let start = Instant::now();
        let begin = |instead_of| Admission::Begin { instead_of };
        let mut table = Table::new(3);
        add(&mut table, at(1, 1), ASKED, start);
        add(&mut table, at(2, 1), ASKED, start);
        answer(&mut table, at(2, 1), start + Duration::from_millis(100));
        for (name, client, asked, ms, want) in [
            ("somebody new", at(3, 1), ASKED, 200, begin(None)),
            ("another port", at(1, 2), ASKED, 200, begin(None)),
            ("again, nothing acknowledged", at(1, 1), ASKED, 200, Admission::Repeat),
            ("something else", at(1, 1), OTHER, 200, begin(Some(at(1, 1)))),
            ("the same of another address", at(1, 1), ELSEWHERE, 200, begin(Some(at(1, 1)))),
            ("a copy that took its time", at(2, 1), ASKED, 1000, Admission::Straggler),
            ("after a reset", at(2, 1), ASKED, 1100, begin(Some(at(2, 1)))),
            ("something else instead of a running one", at(2, 1), OTHER, 200, begin(Some(at(2, 1)))),
        ] {
            assert_eq!(table.admit(client, &asked, start + Duration::from_millis(ms)), want, "{name}");
        }
    }

    #[test]
    fn whoever_never_answered_makes_room_first() {
        let now = Instant::now();
        let begin = |instead_of| Admission::Begin { instead_of };
        let mut table = Table::new(3);
        for host in [1, 2, 3] {
            add(&mut table, at(host, 1), ASKED, now);
        }
        answer(&mut table, at(1, 1), now);
        assert_eq!(table.admit(at(4, 1), &ASKED, now), begin(Some(at(2, 1))), "the oldest of those");
        for host in [2, 3] {
            answer(&mut table, at(host, 1), now);
        }
        assert_eq!(table.admit(at(4, 1), &ASKED, now), Admission::Full(Full::Server));
        table.remove(at(2, 1));
        assert_eq!(table.admit(at(4, 1), &ASKED, now), begin(None));
    }

    #[test]
    fn one_host_takes_only_its_share() {
        let now = Instant::now();
        let mut table = Table::new(MOST_TRANSFERS);
        add(&mut table, at(2, 1), ASKED, now);
        let ports = 1..=u16::try_from(MOST_PER_HOST).expect("few");
        for port in ports.clone() {
            add(&mut table, at(1, port), ASKED, now);
        }
        answer(&mut table, at(1, 1), now);
        let want = Admission::Begin { instead_of: Some(at(1, 2)) };
        assert_eq!(table.admit(at(1, 100), &ASKED, now), want, "its own oldest, though there is an older one");
        for port in ports {
            answer(&mut table, at(1, port), now);
        }
        assert_eq!(table.admit(at(1, 100), &ASKED, now), Admission::Full(Full::Host));
        assert_eq!(table.admit(at(3, 1), &ASKED, now), Admission::Begin { instead_of: None });
    }

    #[test]
    fn few_quick_clients_are_worth_staying_awake_for() {
        let start = Instant::now();
        let after = |us: u64| start + Duration::from_micros(us);
        let quick = Some(after(300));
        for (name, answers, want) in [
            ("nobody", &[][..], None),
            ("one that hasn't answered", &[None], None),
            ("a quick one", &[Some(50)], quick),
            ("a slow one", &[Some(400)], None),
            ("one of each", &[Some(50), Some(400)], quick),
            ("many", &[Some(50), Some(50), Some(50)], None),
        ] {
            let mut table = Table::new(10);
            for (host, answered) in (1..).zip(answers) {
                add(&mut table, at(host, 1), ASKED, start);
                if let Some(us) = answered {
                    answer(&mut table, at(host, 1), after(*us));
                }
            }
            assert_eq!(table.awake_until(), want, "{name}");
        }
    }

    #[test]
    fn a_host_that_asks_again_is_remembered() {
        let now = Instant::now();
        let mut table = Table::new(10);
        for (client, asked) in [(at(1, 1), ASKED), (at(1, 2), OTHER), (at(2, 1), ASKED), (at(1, 3), ASKED)] {
            add(&mut table, client, asked, now);
        }
        for (client, want) in [(at(1, 1), true), (at(1, 2), false), (at(2, 1), false), (at(1, 3), false)] {
            assert_eq!(table.get(client).expect("is there").asked_again, want, "{client}");
        }
    }

    proptest! {
        /// Whatever comes in whatever order: the limits hold, nobody is forgotten, and every end comes.
        #[test]
        fn the_table_stays_in_order(steps in prop::collection::vec((0_u8..4, 0_u8..4, 0_u16..20, 0_u64..3000), 0..300)) {
            let mut now = Instant::now();
            let mut table = Table::new(30);
            for (step, host, port, ms) in steps {
                now += Duration::from_millis(ms);
                let client = at(host, port);
                let asked = if step == 0 { ASKED } else { OTHER };
                match step {
                    0 | 1 => if let Admission::Begin { instead_of } = table.admit(client, &asked, now) {
                        if let Some(old) = instead_of {
                            prop_assert!(table.remove(old).is_some());
                        }
                        add(&mut table, client, asked, now);
                    },
                    2 => drop(table.change(client, |entry| entry.transfer.receive(&ack(0), now))),
                    _ => while let Some((client, action)) = table.wake(now) {
                        if let Action::End(_) = action {
                            prop_assert!(table.remove(client).is_some());
                        }
                    },
                }
                let count = table.entries.len();
                prop_assert!(count <= 30 && table.by_host.values().all(|ports| ports.len() <= MOST_PER_HOST));
                prop_assert_eq!(table.timers.len(), count);
                prop_assert_eq!(table.by_host.values().map(Vec::len).sum::<usize>(), count);
                let unanswered = table.entries.values().filter(|entry| !entry.transfer.answered()).count();
                prop_assert_eq!(table.unanswered.len(), unanswered);
            }
            while let Some(timer) = table.next_timer() {
                now = now.max(timer);
                while let Some((client, action)) = table.wake(now) {
                    if let Action::End(_) = action {
                        prop_assert!(table.remove(client).is_some());
                    }
                }
            }
            prop_assert!(table.entries.is_empty());
        }
    }
}
