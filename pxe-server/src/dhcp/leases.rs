//! Who holds which address, as plain data. Time is an argument (seconds since 1970); nothing here waits, sends or saves.
//!
//! The promise: an address has one holder at a time, and a holder one address. What was bound once is remembered past its
//! end, so that a machine finds its old address again as long as nobody else needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use drophammer_protocol::id::Mac;

/// The addresses that may be handed out to anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// From first to last. They don't overlap.
    pub ranges: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// `(part, of)`: this server's part, from 1, if as many servers share the pool.
    pub share: Option<(u32, u32)>,
    /// Addresses that aren't clients' at all: this server's own, the router's.
    pub taken: BTreeSet<Ipv4Addr>,
    /// Addresses kept for one client each, whether they are in between or not; the client's card if it is known by that.
    pub reserved: BTreeMap<Ipv4Addr, Option<Mac>>,
}

impl Pool {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let shared = self.share.is_none_or(|(part, of)| address.to_bits() % of.max(1) == part.saturating_sub(1));
        shared
            && self.ranges.iter().any(|(a, z)| (a..=z).contains(&&address))
            && !self.taken.contains(&address)
            && !self.reserved.contains_key(&address)
    }

    fn keeps_for_another(&self, client: Client, address: Ipv4Addr) -> bool {
        client.reserved != Some(address)
            && self.reserved.get(&address).is_some_and(|card| card.is_some_and(|mac| mac != client.mac))
    }

    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.ranges
            .iter()
            .flat_map(|(a, z)| (a.to_bits()..=z.to_bits()).map(Ipv4Addr::from_bits))
            .filter(|a| self.contains(*a))
    }
}

/// Who asks, as far as addresses go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub mac: Mac,
    /// The address that is kept for this client and nobody else.
    pub reserved: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Promised, not taken yet. Forgotten in a restart, which at worst makes a client ask again.
    Offered(Mac),
    Bound(Mac),
    /// A client found somebody else using it.
    Declined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub holder: Holder,
    pub until: u64,
}

/// How long an offered address is kept for the client. iPXE of Debian 12 takes up to 20 s to come back.
pub const OFFER_SECONDS: u64 = 120;
/// After this long an offer that nobody took gives way to a client that would get nothing otherwise.
const OFFER_GRACE_SECONDS: u64 = 30;

impl Entry {
    fn reusable_from(&self) -> u64 {
        match self.holder {
            Holder::Offered(_) => self.until.saturating_sub(OFFER_SECONDS - OFFER_GRACE_SECONDS),
            Holder::Bound(_) | Holder::Declined => self.until,
        }
    }
}

/// What a decision does to the leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Offer {
        mac: Mac,
        address: Ipv4Addr,
        until: u64,
    },
    Bind {
        mac: Mac,
        address: Ipv4Addr,
        until: u64,
    },
    /// The client took another server's offer.
    Withdraw {
        mac: Mac,
    },
    Release {
        mac: Mac,
        address: Ipv4Addr,
        now: u64,
    },
    Quarantine {
        address: Ipv4Addr,
        until: u64,
    },
}

/// One line of what has to be on disk before anybody is told: the address with its entry, or with none.
pub type Row = (Ipv4Addr, Option<Entry>);

/// How an address stands towards one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Own,
    Free,
    Taken,
    /// Not ours to give.
    Outside,
}

#[derive(Clone, Debug)]
pub struct Leases {
    pool: Pool,
    entries: HashMap<Ipv4Addr, Entry>,
    by_mac: HashMap<Mac, Ipv4Addr>,
    /// Of the pool, never given to anybody.
    unused: BTreeSet<Ipv4Addr>,
    /// Of the pool, given to somebody, by the time from which it may go to somebody else if there is no better one.
    reusable: BTreeSet<(u64, Ipv4Addr)>,
    /// Leases of addresses that aren't ours to give now. They may be again, and still be somebody's.
    uncovered: Vec<(Ipv4Addr, Entry)>,
}

impl Leases {
    /// `rows` are what was stored; those that neither the pool nor a reservation covers are set aside.
    pub fn new(pool: Pool, rows: impl IntoIterator<Item = (Ipv4Addr, Entry)>) -> Self {
        let unused = pool.addresses().collect();
        let mut leases = Self {
            pool,
            entries: HashMap::new(),
            by_mac: HashMap::new(),
            unused,
            reusable: BTreeSet::new(),
            uncovered: vec![],
        };
        let ordered: BTreeMap<(u64, Ipv4Addr), Entry> =
            rows.into_iter().map(|(address, entry)| ((entry.until, address), entry)).collect();
        for ((_, address), entry) in ordered {
            if leases.pool.contains(address) || leases.pool.reserved.contains_key(&address) {
                leases.put(address, entry);
            } else {
                leases.uncovered.push((address, entry));
            }
        }
        leases
    }

    /// The same leases with another pool.
    pub fn cover(&mut self, pool: Pool) {
        let before = self.uncovered.drain(..).chain(self.entries.drain());
        *self = Self::new(pool, before.collect::<Vec<_>>());
    }

    /// Of a network without a pool.
    pub fn none() -> Self {
        Self::new(Pool { ranges: vec![], share: None, taken: BTreeSet::new(), reserved: BTreeMap::new() }, [])
    }

    /// An address for this client: the one reserved for it, its own, the one that it wants, one that was never used, the
    /// one whose time ran out first. `None` when the pool is full.
    pub fn pick(&self, client: Client, wanted: Option<Ipv4Addr>, now: u64) -> Option<Ipv4Addr> {
        let usable =
            |address: &Ipv4Addr| matches!(self.standing(client, *address, now), Standing::Own | Standing::Free);
        let oldest = || self.reusable.first().filter(|(from, _)| *from <= now).map(|(_, address)| *address);
        client
            .reserved
            .filter(usable)
            .or_else(|| self.address_of(client.mac).filter(usable))
            .or_else(|| wanted.filter(usable))
            .or_else(|| self.any_unused(client.mac))
            .or_else(oldest)
    }

    /// Each machine starts looking at its own place: after the loss of all state it most likely finds its old address.
    fn any_unused(&self, mac: Mac) -> Option<Ipv4Addr> {
        let (first, last) = (self.unused.first()?.to_bits(), self.unused.last()?.to_bits());
        let span = u64::from(last - first) + 1;
        let offset = mac.0.iter().fold(0_u64, |sum, byte| (sum * 257 + u64::from(*byte)) % span);
        let start = Ipv4Addr::from_bits(first.saturating_add(u32::try_from(offset).unwrap_or(0)));
        self.unused.range(start..).next().or_else(|| self.unused.first()).copied()
    }

    pub fn standing(&self, client: Client, address: Ipv4Addr, now: u64) -> Standing {
        let entry = self.entries.get(&address).map(|e| (e.holder, e.until));
        match entry {
            _ if self.pool.keeps_for_another(client, address) => Standing::Taken,
            // Known by its UUID when firmware asked, the client may be known by its card alone when its system does.
            Some((Holder::Offered(holder) | Holder::Bound(holder), _)) if holder == client.mac => Standing::Own,
            Some((_, until)) if until > now => Standing::Taken,
            _ if client.reserved == Some(address) => Standing::Free,
            _ if self.pool.reserved.contains_key(&address) => Standing::Taken,
            _ if self.pool.contains(address) => Standing::Free,
            _ => Standing::Outside,
        }
    }

    /// The address that this client has, was promised, or had last.
    pub fn address_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
    }

    pub fn entry(&self, address: Ipv4Addr) -> Option<Entry> {
        self.entries.get(&address).copied()
    }

    /// The leases that run.
    pub fn running(&self, now: u64) -> impl Iterator<Item = (Ipv4Addr, Mac)> {
        self.entries.iter().filter(move |(_, entry)| entry.until > now).filter_map(|(address, entry)| {
            match entry.holder {
                Holder::Bound(mac) => Some((*address, mac)),
                Holder::Offered(_) | Holder::Declined => None,
            }
        })
    }

    /// Carries out `change` and says what has to be stored for it.
    pub fn apply(&mut self, change: Change) -> Vec<Row> {
        match change {
            Change::Offer { mac, address, until } => {
                // A running lease isn't turned into a mere offer.
                let bound = Entry { holder: Holder::Bound(mac), until };
                if self.entry(address).is_some_and(|e| e.holder == bound.holder) {
                    return vec![];
                }
                self.put(address, Entry { holder: Holder::Offered(mac), until })
            }
            Change::Bind { mac, address, until } => {
                let mut rows = self.put(address, Entry { holder: Holder::Bound(mac), until });
                rows.push((address, self.entry(address)));
                rows
            }
            Change::Withdraw { mac } => {
                if let Some(address) = self.address_of(mac)
                    && self.entry(address).is_some_and(|e| e.holder == Holder::Offered(mac))
                {
                    self.remove(address);
                }
                vec![]
            }
            Change::Release { mac, address, now } => match self.entry(address) {
                Some(Entry { holder: Holder::Bound(holder), until }) if holder == mac => {
                    self.put(address, Entry { holder: Holder::Bound(mac), until: until.min(now) });
                    vec![(address, self.entry(address))]
                }
                _ => vec![],
            },
            Change::Quarantine { address, until } => {
                let mut rows = self.put(address, Entry { holder: Holder::Declined, until });
                rows.push((address, self.entry(address)));
                rows
            }
        }
    }

    /// Makes `entry` the only one of its address and of its holder; returns the rows of those that it displaced.
    fn put(&mut self, address: Ipv4Addr, entry: Entry) -> Vec<Row> {
        self.remove(address);
        let mut displaced = vec![];
        if let Holder::Offered(mac) | Holder::Bound(mac) = entry.holder
            && let Some(previous) = self.by_mac.get(&mac).copied()
        {
            self.remove(previous);
            displaced.push((previous, None));
        }
        if let Holder::Offered(mac) | Holder::Bound(mac) = entry.holder {
            self.by_mac.insert(mac, address);
        }
        self.unused.remove(&address);
        if self.pool.contains(address) {
            self.reusable.insert((entry.reusable_from(), address));
        }
        self.entries.insert(address, entry);
        displaced
    }

    fn remove(&mut self, address: Ipv4Addr) {
        let Some(entry) = self.entries.remove(&address) else { return };
        if let Holder::Offered(mac) | Holder::Bound(mac) = entry.holder {
            self.by_mac.remove(&mac);
        }
        self.reusable.remove(&(entry.reusable_from(), address));
        if self.pool.contains(address) {
            self.unused.insert(address);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The server has .1; .20 is kept for some UUID, .21 for the card of client 21.
    pub(crate) fn pool(first: u8, last: u8) -> Pool {
        Pool {
            ranges: vec![(ip(first), ip(last))],
            share: None,
            taken: [ip(1)].into(),
            reserved: [(ip(20), None), (ip(21), Some(mac(21)))].into(),
        }
    }

    /// A client without a reservation.
    pub(crate) fn client(n: u8) -> Client {
        Client { mac: mac(n), reserved: None }
    }

    pub(crate) fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, last)
    }

    pub(crate) fn mac(last: u8) -> Mac {
        Mac([0x52, 0x54, 0, 0x77, 0, last])
    }

    fn bound(n: u8, until: u64) -> Entry {
        Entry { holder: Holder::Bound(mac(n)), until }
    }

    #[test]
    fn addresses_are_picked_in_order_of_preference() {
        let declined = Entry { holder: Holder::Declined, until: 200 };
        let offered = |n, at| Entry { holder: Holder::Offered(mac(n)), until: at + OFFER_SECONDS };
        let all = |until| (10..=12).map(|n| (ip(n), bound(n, until))).collect::<Vec<_>>();
        let nine = client(9);
        let reserved = Client { reserved: Some(ip(20)), ..nine };
        for (name, rows, client, wanted, want) in [
            ("its own", all(200), client(11), None, Some(11)),
            ("its own though it wants another", all(50), client(11), Some(12), Some(11)),
            ("what it wants", vec![], nine, Some(12), Some(12)),
            (
                "not what another holds",
                vec![(ip(12), bound(12, 200)), (ip(11), bound(11, 200))],
                nine,
                Some(12),
                Some(10),
            ),
            ("not what the server has", vec![(ip(11), bound(11, 200)), (ip(12), declined)], nine, Some(1), Some(10)),
            ("never used before expired", vec![(ip(10), bound(10, 5)), (ip(11), bound(11, 6))], nine, None, Some(12)),
            (
                "longest expired",
                vec![(ip(10), bound(10, 9)), (ip(11), bound(11, 6)), (ip(12), declined)],
                nine,
                None,
                Some(11),
            ),
            ("none left", all(200), nine, None, None),
            (
                "an old offer before none",
                vec![(ip(10), bound(10, 200)), (ip(11), offered(11, 60)), (ip(12), offered(12, 90))],
                nine,
                None,
                Some(11),
            ),
            ("what is reserved for it", all(200), reserved, Some(12), Some(20)),
            ("what is reserved for it, though it has another", vec![(ip(10), bound(9, 200))], reserved, None, Some(20)),
            ("not what is reserved for another", vec![], nine, Some(20), Some(11)),
            ("not its reserved one while another holds it", vec![(ip(20), bound(7, 200))], reserved, None, Some(11)),
            ("its reserved one, known by its card alone", vec![(ip(20), bound(9, 50))], nine, None, Some(20)),
            ("not its old one, reserved for another card since", vec![(ip(21), bound(9, 200))], nine, None, Some(11)),
        ] {
            let leases = Leases::new(pool(10, 12), rows);
            assert_eq!(leases.pick(client, wanted.map(ip), 100), want.map(ip), "{name}");
        }
    }

    #[test]
    fn shares_of_a_pool_are_all_of_it_and_nothing_twice() {
        let whole: Vec<_> = pool(10, 40).addresses().collect();
        let share = |part| Pool { share: Some((part, 3)), ..pool(10, 40) };
        let mut parts: Vec<_> = (1..=3).flat_map(|part| share(part).addresses().collect::<Vec<_>>()).collect();
        parts.sort_unstable();
        assert_eq!(parts, whole);
        assert!((1..=3).all(|part| share(part).addresses().count() >= 9));
    }

    #[test]
    fn a_client_that_moves_gives_its_old_address_back() {
        let mut leases = Leases::new(pool(10, 12), []);
        leases.apply(Change::Bind { mac: mac(1), address: ip(10), until: 200 });
        let rows = leases.apply(Change::Bind { mac: mac(1), address: ip(11), until: 300 });
        assert_eq!(rows, [(ip(10), None), (ip(11), Some(bound(1, 300)))]);
        assert_eq!(leases.standing(client(2), ip(10), 100), Standing::Free);
        assert_eq!(leases.standing(client(2), ip(11), 100), Standing::Taken);
    }

    #[test]
    fn a_lease_outlives_an_offer_to_its_holder() {
        let mut leases = Leases::new(pool(10, 12), [(ip(10), bound(1, 200))]);
        leases.apply(Change::Offer { mac: mac(1), address: ip(10), until: 130 });
        leases.apply(Change::Withdraw { mac: mac(1) });
        assert_eq!(leases.entry(ip(10)), Some(bound(1, 200)));
    }

    #[test]
    fn leases_run_until_their_end() {
        let declined = Entry { holder: Holder::Declined, until: 200 };
        let mut leases =
            Leases::new(pool(10, 14), [(ip(10), bound(1, 200)), (ip(11), bound(2, 100)), (ip(12), declined)]);
        leases.apply(Change::Offer { mac: mac(3), address: ip(13), until: 200 });
        for (now, want) in [(99, &[(ip(10), mac(1)), (ip(11), mac(2))][..]), (100, &[(ip(10), mac(1))])] {
            assert_eq!(leases.running(now).collect::<BTreeMap<_, _>>(), want.iter().copied().collect(), "at {now}");
        }
    }

    #[test]
    fn stored_rows_outside_the_pool_are_left_out() {
        let leases = Leases::new(pool(10, 12), [(ip(50), bound(1, 200))]);
        assert_eq!(leases.address_of(mac(1)), None);
        assert_eq!(leases.standing(client(1), ip(50), 100), Standing::Outside);
    }
}
