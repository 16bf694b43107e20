//! What a boot server alone keeps over a restart, in one file.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use drophammer_control::unix_ms;
use drophammer_protocol::boot_server::{MAX_REPORTS, Numbered, OwnDisks, Report};
use drophammer_protocol::id::{BootId, MachineId};
use drophammer_protocol::ticket::Reach;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
const TICKETS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("tickets");
const REPORTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("reports");

const OWN_DISKS: &str = "own-disks";

/// Some hundred megabytes: days of a large site. Beyond it the oldest go.
const MAX_WAITING: u64 = 200_000;

#[derive(Debug)]
pub(super) struct Ledger {
    file: Database,
    /// The number of the last report that was ever written.
    last: AtomicU64,
    waiting: AtomicU64,
}

/// A ticket that is out, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ticket {
    pub(super) machine: MachineId,
    pub(super) reach: Reach,
    pub(super) expires_ms: u64,
}

impl Ledger {
    pub(super) fn open(path: &Path) -> Result<(Self, HashSet<MachineId>)> {
        let open = || -> Result<_> {
            let file = Database::create(path)?;
            let txn = file.begin_write()?;
            let (own_disks, last, waiting);
            {
                let facts = txn.open_table(FACTS)?;
                let set: Option<OwnDisks> =
                    facts.get(OWN_DISKS)?.map(|text| serde_json::from_slice(text.value())).transpose()?;
                own_disks = set.unwrap_or_default().machines.into_iter().collect();
                txn.open_table(TICKETS)?;
                let reports = txn.open_table(REPORTS)?;
                waiting = reports.len()?;
                last = reports.last()?.map(|(number, _)| number.value());
            }
            txn.commit()?;
            // Numbers are never used again, even if this file was lost: no server reports more than one in a millisecond.
            let last = AtomicU64::new(last.unwrap_or(0).max(unix_ms()));
            Ok((Self { file, last, waiting: AtomicU64::new(waiting) }, own_disks))
        };
        open().with_context(|| format!("opening the boot server's records in {}", path.display()))
    }

    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Up to where nothing has to be waited for.
    pub(super) fn delivered(&self) -> u64 {
        if self.waiting() == 0 { self.last() } else { 0 }
    }

    /// Adds reports in this order, and a ticket; durable when this returns. How many old reports had to go for it.
    pub(super) fn append<'a>(
        &self,
        reports: impl IntoIterator<Item = &'a Report>,
        ticket: Option<(BootId, Ticket)>,
        now: u64,
    ) -> Result<u64> {
        let write = || -> Result<_> {
            let txn = self.file.begin_write()?;
            let (mut last, mut lost) = (self.last(), 0);
            let waiting;
            {
                let mut table = txn.open_table(REPORTS)?;
                for report in reports {
                    last += 1;
                    table.insert(last, serde_json::to_vec(report)?.as_slice())?;
                }
                while table.len()? > MAX_WAITING && table.pop_first()?.is_some() {
                    lost += 1;
                }
                waiting = table.len()?;
                if let Some((boot, ticket)) = ticket {
                    let mut table = txn.open_table(TICKETS)?;
                    table.retain(|_, text| {
                        serde_json::from_slice::<Ticket>(text).is_ok_and(|ticket| ticket.expires_ms > now)
                    })?;
                    table.insert(boot.0.as_bytes(), serde_json::to_vec(&ticket)?.as_slice())?;
                }
            }
            txn.commit()?;
            Ok((last, waiting, lost))
        };
        let (last, waiting, lost) = write().context("writing down what the boot server did")?;
        self.last.store(last, Ordering::Release);
        self.waiting.store(waiting, Ordering::Relaxed);
        Ok(lost)
    }

    pub(super) fn ticket(&self, boot: BootId, now: u64) -> Result<Option<Ticket>> {
        let table = self.file.begin_read()?.open_table(TICKETS)?;
        let Some(text) = table.get(boot.0.as_bytes())? else { return Ok(None) };
        let ticket: Ticket = serde_json::from_slice(text.value()).context("reading a ticket")?;
        Ok(Some(ticket).filter(|ticket| ticket.expires_ms > now))
    }

    /// The oldest reports that the control API hasn't got.
    pub(super) fn oldest(&self) -> Result<Vec<Numbered>> {
        let table = self.file.begin_read()?.open_table(REPORTS)?;
        let mut reports = vec![];
        for entry in table.iter()?.take(MAX_REPORTS) {
            let (number, text) = entry?;
            let report = serde_json::from_slice(text.value()).with_context(|| {
                format!("reading report {}, which another version may have written", number.value())
            })?;
            reports.push(Numbered { number: number.value(), report });
        }
        Ok(reports)
    }

    /// The control API has all reports up to this one.
    pub(super) fn forget_up_to(&self, number: u64) -> Result<()> {
        let txn = self.file.begin_write()?;
        let waiting;
        {
            let mut table = txn.open_table(REPORTS)?;
            table.retain_in(..=number, |_, _| false)?;
            waiting = table.len()?;
        }
        txn.commit()?;
        self.waiting.store(waiting, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn keep_own_disks(&self, own_disks: &OwnDisks) -> Result<()> {
        let text = serde_json::to_vec(own_disks)?;
        let txn = self.file.begin_write()?;
        txn.open_table(FACTS)?.insert(OWN_DISKS, text.as_slice())?;
        txn.commit().context("writing down who boots their own disk")
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::boot_server::Seen;
    use drophammer_protocol::event::{Phase, Step};
    use drophammer_protocol::id::Mac;
    use drophammer_protocol::sign::PublicKey;
    use ed25519_dalek::SigningKey;
    use uuid::Uuid;

    use super::*;

    fn report(n: u64) -> Report {
        Report::Seen(Seen {
            at_ms: n,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            machine: None,
            phase: Phase::Dhcp,
            step: Step::Note,
            message: String::new(),
            progress: None,
            sight: None,
        })
    }

    #[test]
    fn reports_wait_in_order_and_keep_their_numbers_over_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let (ledger, _) = Ledger::open(&path).expect("made");
        ledger.append(&[report(1), report(2)], None, 0).expect("written");
        ledger.append(&[report(3)], None, 0).expect("written");
        let first = ledger.oldest().expect("read");
        assert_eq!(first.iter().map(|n| n.report.clone()).collect::<Vec<_>>(), [report(1), report(2), report(3)]);
        ledger.forget_up_to(first[1].number).expect("forgotten");
        drop(ledger);
        let (ledger, _) = Ledger::open(&path).expect("opened");
        assert_eq!(ledger.oldest().expect("read"), first[2..]);
        assert_eq!((ledger.waiting(), ledger.delivered()), (1, 0));
        let last = ledger.last();
        assert!(last >= first[2].number);
        ledger.append(&[report(4)], None, 0).expect("written");
        assert_eq!(ledger.last(), last + 1);
        ledger.forget_up_to(u64::MAX).expect("forgotten");
        assert_eq!(ledger.delivered(), ledger.last());
    }

    #[test]
    fn tickets_are_known_until_their_time_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = Ledger::open(&dir.path().join("ledger")).expect("made");
        let reach = Reach {
            server: "https://10.0.0.1".into(),
            boot_server: "http://10.0.0.1".into(),
            time_key: PublicKey::of(&SigningKey::from_bytes(&[1; 32])),
        };
        let ticket = Ticket { machine: MachineId(Uuid::from_u128(1)), reach, expires_ms: 100 };
        let boot = |n| BootId(Uuid::from_u128(n));
        ledger.append([], Some((boot(1), ticket.clone())), 0).expect("written");
        for (name, boot, now, want) in
            [("in time", boot(1), 99, Some(&ticket)), ("too late", boot(1), 100, None), ("another", boot(2), 0, None)]
        {
            assert_eq!(ledger.ticket(boot, now).expect("read").as_ref(), want, "{name}");
        }
    }
}
