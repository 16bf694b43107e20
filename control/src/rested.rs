//! Drives that were proven erased and given to nobody since: what is known of how they were left, so that idle machines
//! don't wear them out by an erase at every boot.
//!
//! A drive is offered to the agent only while its machine was never handed out since the proof. That nobody wrote to it
//! all the same is for the drive to show, and for [`erasure::judge`](crate::erasure::judge) to believe.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_protocol::certificate::{ErasureCertificate, Link, Unwritten, Verdict};
use drophammer_protocol::chain::Entry;
use drophammer_protocol::order::Fresh;
use drophammer_protocol::sign::Signed;

use crate::records::{Record, certificate_key};
use crate::store::Txn;

/// The certificates of the last real erase of a machine's drives, by serial.
pub(crate) type Rested = BTreeMap<String, Signed<ErasureCertificate>>;

/// Those that aren't older than `limit`.
pub(crate) fn load(txn: &mut Txn<'_>, record: &Record, limit: Duration, now_ms: u64) -> Result<Rested> {
    let mut rested = Rested::new();
    for (serial, number) in &record.rested {
        let Some(entry) = txn.get::<Entry>(&certificate_key(record.id, *number))? else { continue };
        let age = Duration::from_millis(now_ms).saturating_sub(Duration::from_secs(open(&entry.certificate)?.finished));
        if age < limit {
            rested.insert(serial.clone(), entry.certificate);
        }
    }
    Ok(rested)
}

/// What the agent is told of them.
pub(crate) fn fresh(rested: &Rested) -> Result<BTreeMap<String, Fresh>> {
    let mut fresh = BTreeMap::new();
    for (serial, signed) in rested {
        let certificate = open(signed)?;
        let (Verdict::Erased { method }, Some(rest)) = (certificate.verdict, certificate.rest) else { continue };
        let unwritten = Unwritten { number: certificate.link.number, certificate: Link::hash(signed) };
        fresh.insert(serial.clone(), Fresh { unwritten, method, rest });
    }
    Ok(fresh)
}

/// What is left to rest after a run that was believed, given its certificates.
pub(crate) fn after(certificates: &[Signed<ErasureCertificate>]) -> Result<BTreeMap<String, u64>> {
    let mut rested = BTreeMap::new();
    for signed in certificates {
        let certificate = open(signed)?;
        let number = match (&certificate.unwritten, &certificate.rest) {
            (Some(unwritten), _) => unwritten.number,
            (None, Some(_)) => certificate.link.number,
            (None, None) => continue,
        };
        rested.insert(certificate.drive.serial, number);
    }
    Ok(rested)
}

fn open(signed: &Signed<ErasureCertificate>) -> Result<ErasureCertificate> {
    // Judged before it was kept: here is only read what it says.
    Ok(signed.open(&[signed.key]).context("reading a certificate that was kept")?.into_inner())
}
