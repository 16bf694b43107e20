//! Who holds which address, as plain data. Time is an argument (seconds since 1970); nothing here waits, sends or saves.
//!
//! The promise: an address has one holder at a time, and a holder one address. What was bound once is remembered past its
//! end, so that a machine finds its old address again as long as nobody else needs it.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use drophammer_protocol::id::Mac;

/// The addresses that may be handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
    /// Addresses in between that belong to somebody for good.
    pub reserved: Vec<Ipv4Addr>,
}

impl Pool {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address) && !self.reserved.contains(&address)
    }

    fn from(&self, start: Mac) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let (first, last) = (self.first.to_bits(), self.last.to_bits());
        let size = u64::from(last.saturating_sub(first)) + 1;
        // Each machine starts looking at its own place: after the loss of all state it most likely finds its old address.
        let offset = start.0.iter().fold(0_u64, |sum, byte| (sum * 257 + u64::from(*byte)) % size);
        (0..size)
            .filter_map(move |i| u32::try_from((offset + i) % size).ok())
            .map(move |i| Ipv4Addr::from_bits(first.saturating_add(i)))
            .filter(|address| self.contains(*address))
    }
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
}

impl Leases {
    /// `rows` are what was stored; those that the pool no longer covers are left out.
    pub fn new(pool: Pool, rows: impl IntoIterator<Item = (Ipv4Addr, Entry)>) -> Self {
        let mut leases = Self { pool, entries: HashMap::new(), by_mac: HashMap::new() };
        let ordered: BTreeMap<(u64, Ipv4Addr), Entry> =
            rows.into_iter().map(|(address, entry)| ((entry.until, address), entry)).collect();
        for ((_, address), entry) in ordered {
            if leases.pool.contains(address) {
                leases.put(address, entry);
            }
        }
        leases
    }

    /// An address for this client: its own, else the one that it wants, else one that was never used, else the one
    /// whose lease ran out first. `None` when the pool is full.
    pub fn pick(&self, mac: Mac, wanted: Option<Ipv4Addr>, now: u64) -> Option<Ipv4Addr> {
        let usable = |address: &Ipv4Addr| matches!(self.standing(mac, *address, now), Standing::Own | Standing::Free);
        self.address_of(mac)
            .filter(usable)
            .or(wanted.filter(usable))
            .or_else(|| self.pool.from(mac).find(|address| !self.entries.contains_key(address)))
            .or_else(|| {
                let expired = self.entries.iter().filter(|(_, entry)| entry.until <= now);
                expired.min_by_key(|(address, entry)| (entry.until, **address)).map(|(address, _)| *address)
            })
    }

    pub fn standing(&self, mac: Mac, address: Ipv4Addr, now: u64) -> Standing {
        if !self.pool.contains(address) {
            return Standing::Outside;
        }
        match self.entries.get(&address) {
            None => Standing::Free,
            Some(Entry { holder: Holder::Offered(holder) | Holder::Bound(holder), .. }) if *holder == mac => {
                Standing::Own
            }
            Some(entry) if entry.until <= now => Standing::Free,
            Some(_) => Standing::Taken,
        }
    }

    /// The address that this client has, was promised, or had last.
    pub fn address_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
    }

    pub fn entry(&self, address: Ipv4Addr) -> Option<Entry> {
        self.entries.get(&address).copied()
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
                    self.entries.remove(&address);
                    self.by_mac.remove(&mac);
                }
                vec![]
            }
            Change::Release { mac, address, now } => match self.entries.get_mut(&address) {
                Some(entry) if entry.holder == Holder::Bound(mac) => {
                    entry.until = entry.until.min(now);
                    vec![(address, Some(*entry))]
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
        let mut displaced = vec![];
        if let Some(Entry { holder: Holder::Offered(old) | Holder::Bound(old), .. }) = self.entries.remove(&address) {
            self.by_mac.remove(&old);
        }
        if let Holder::Offered(mac) | Holder::Bound(mac) = entry.holder
            && let Some(previous) = self.by_mac.insert(mac, address)
        {
            self.entries.remove(&previous);
            displaced.push((previous, None));
        }
        self.entries.insert(address, entry);
        displaced
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn pool(first: u8, last: u8) -> Pool {
        Pool { first: ip(first), last: ip(last), reserved: vec![ip(1)] }
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
        let all = |until| (10..=12).map(|n| (ip(n), bound(n, until))).collect::<Vec<_>>();
        for (name, rows, client, wanted, want) in [
            ("its own", all(200), 11, None, Some(11)),
            ("its own though it wants another", all(50), 11, Some(12), Some(11)),
            ("what it wants", vec![], 9, Some(12), Some(12)),
            ("not what another holds", vec![(ip(12), bound(12, 200)), (ip(11), bound(11, 200))], 9, Some(12), Some(10)),
            ("not what the server has", vec![(ip(11), bound(11, 200)), (ip(12), declined)], 9, Some(1), Some(10)),
            ("never used before expired", vec![(ip(10), bound(10, 5)), (ip(11), bound(11, 6))], 9, None, Some(12)),
            (
                "longest expired",
                vec![(ip(10), bound(10, 9)), (ip(11), bound(11, 6)), (ip(12), declined)],
                9,
                None,
                Some(11),
            ),
            ("none left", all(200), 9, None, None),
        ] {
            let leases = Leases::new(pool(10, 12), rows);
            assert_eq!(leases.pick(mac(client), wanted.map(ip), 100), want.map(ip), "{name}");
        }
    }

    #[test]
    fn a_client_that_moves_gives_its_old_address_back() {
        let mut leases = Leases::new(pool(10, 12), []);
        leases.apply(Change::Bind { mac: mac(1), address: ip(10), until: 200 });
        let rows = leases.apply(Change::Bind { mac: mac(1), address: ip(11), until: 300 });
        assert_eq!(rows, [(ip(10), None), (ip(11), Some(bound(1, 300)))]);
        assert_eq!(leases.standing(mac(2), ip(10), 100), Standing::Free);
        assert_eq!(leases.standing(mac(2), ip(11), 100), Standing::Taken);
    }

    #[test]
    fn a_lease_outlives_an_offer_to_its_holder() {
        let mut leases = Leases::new(pool(10, 12), [(ip(10), bound(1, 200))]);
        leases.apply(Change::Offer { mac: mac(1), address: ip(10), until: 130 });
        leases.apply(Change::Withdraw { mac: mac(1) });
        assert_eq!(leases.entry(ip(10)), Some(bound(1, 200)));
    }

    #[test]
    fn stored_rows_outside_the_pool_are_left_out() {
        let leases = Leases::new(pool(10, 12), [(ip(50), bound(1, 200))]);
        assert_eq!(leases.address_of(mac(1)), None);
        assert_eq!(leases.standing(mac(1), ip(50), 100), Standing::Outside);
    }
}
