//! The leases on disk. A crash at any moment loses none that a client was told of.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use drophammer_control::StateFile;
use drophammer_protocol::id::Mac;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::leases::{Entry, Holder};

/// Address → holder and end. A holder of zeros is nobody: the address was declined.
const LEASES: TableDefinition<'_, u32, ([u8; 6], u64)> = TableDefinition::new("leases");
const NOBODY: [u8; 6] = [0; 6];

#[derive(Debug)]
pub struct Store {
    file: StateFile,
}

impl Store {
    /// Opens the file, or makes it, and returns what it holds.
    pub fn open(path: &Path) -> Result<(Self, Vec<(Ipv4Addr, Entry)>)> {
        let file = StateFile::open(path)?;
        let rows = file.with(read).with_context(|| format!("reading the leases in {}", path.display()))?;
        Ok((Self { file }, rows))
    }

    /// When this returns, all of `rows` are on the disk, or none and there's an error.
    pub fn write(&self, rows: &BTreeMap<Ipv4Addr, Option<Entry>>) -> Result<()> {
        let store = |db: &Database| {
            let change = db.begin_write()?;
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
        self.file.with(store).with_context(|| format!("storing leases in {}", self.file.path().display()))
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
    use super::super::leases::Row;
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
        let write = |rows: &[Row]| store.write(&rows.iter().copied().collect()).expect("written");
        write(&[(ip(10), Some(bound)), (ip(11), Some(bound)), (ip(12), Some(declined))]);
        write(&[(ip(10), None)]);
        drop(store);
        let (_store, rows) = Store::open(&path).expect("the same file");
        assert_eq!(rows, [(ip(11), bound), (ip(12), declined)]);
    }
}
