//! The leases on disk. A crash at any moment loses none that a client was told of.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use drophammer_protocol::id::Mac;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::leases::{Entry, Holder, Row};

/// Address → holder and end. A holder of zeros is nobody: the address was declined.
const LEASES: TableDefinition<'_, u32, ([u8; 6], u64)> = TableDefinition::new("leases");
const NOBODY: [u8; 6] = [0; 6];

#[derive(Debug)]
pub struct Store {
    db: Database,
}

impl Store {
    /// Opens the file, or makes it, and returns what it holds.
    pub fn open(path: &Path) -> Result<(Self, Vec<(Ipv4Addr, Entry)>)> {
        let what = || format!("opening the leases in {} (one server at a time can have them)", path.display());
        let db = Database::create(path).with_context(what)?;
        let rows = read(&db).with_context(what)?;
        Ok((Self { db }, rows))
    }

    /// When this returns, all of `rows` are on the disk, or none and there's an error.
    pub fn write(&self, rows: &[Row]) -> Result<()> {
        let store = || -> Result<(), redb::Error> {
            let change = self.db.begin_write()?;
            {
                let mut table = change.open_table(LEASES)?;
                for (address, entry) in rows {
                    match entry.map(|e| (e.holder, e.until)) {
                        // An offer isn't a lease yet.
                        None | Some((Holder::Offered(_), _)) => table.remove(address.to_bits())?,
                        Some((Holder::Bound(mac), until)) => table.insert(address.to_bits(), (mac.0, until))?,
                        Some((Holder::Declined, until)) => table.insert(address.to_bits(), (NOBODY, until))?,
                    };
                }
            }
            change.commit()?;
            Ok(())
        };
        store().context("storing leases")
    }
}

fn read(db: &Database) -> Result<Vec<(Ipv4Addr, Entry)>, redb::Error> {
    let change = db.begin_write()?;
    change.open_table(LEASES)?;
    change.commit()?;
    let table = db.begin_read()?.open_table(LEASES)?;
    let mut rows = vec![];
    for row in table.iter()? {
        let (address, lease) = row?;
        let (mac, until) = lease.value();
        let holder = if mac == NOBODY { Holder::Declined } else { Holder::Bound(Mac(mac)) };
        rows.push((Ipv4Addr::from_bits(address.value()), Entry { holder, until }));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::leases::tests::{ip, mac};
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("leases.redb");
        let bound = Entry { holder: Holder::Bound(mac(1)), until: 500 };
        let declined = Entry { holder: Holder::Declined, until: 600 };
        let (store, rows) = Store::open(&path).expect("a new file");
        assert_eq!(rows, []);
        store.write(&[(ip(10), Some(bound)), (ip(11), Some(bound)), (ip(12), Some(declined))]).expect("written");
        store.write(&[(ip(10), None)]).expect("written");
        drop(store);
        let (_store, rows) = Store::open(&path).expect("the same file");
        assert_eq!(rows, [(ip(11), bound), (ip(12), declined)]);
    }
}
