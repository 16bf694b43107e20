//! Secrets of single drives: what is printed on the label of a self-encrypting one, kept until its machine is erased.
//!
//! They go to the agents of machines that have such a drive and to nobody else; operators put them in and see for which
//! drives there are any.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use axum::http::StatusCode;
use drophammer_protocol::erase::Psid;
use drophammer_protocol::inventory::DiskId;
use serde::{Deserialize, Serialize};

use crate::Control;
use crate::audit::{self, Change, Who};
use crate::denied::Denied;
use crate::store::Txn;

const PSIDS: &str = "psid/";
/// ATA has 20 characters, NVMe 20, SCSI more; none has as many as this.
const LONGEST_SERIAL: usize = 128;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    serial: String,
    /// By the server's key: the store alone doesn't give it away.
    sealed: String,
}

fn psid_key(serial: &str) -> String {
    format!("{PSIDS}{serial}")
}

/// Of the secret itself nothing is told.
fn told(txn: &mut Txn<'_>, serial: &str, action: &str, who: &Who, now: u64) -> Result<()> {
    let object = psid_key(serial);
    audit::record::<()>(txn, Change { who, at_ms: now, action, object: &object }, None, None)
}

impl Control {
    pub(crate) fn keep_psid(&self, serial: &str, psid: &Psid, who: &Who, now: u64) -> Result<(), Denied> {
        let serial = serial.trim();
        if serial.is_empty() || serial.len() > LONGEST_SERIAL || serial.chars().any(char::is_control) {
            let detail = format!("{serial:?} is no drive's serial number");
            return Err(Denied::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
        }
        let sealed = self.inner.key.seal(serial, psid.bytes())?;
        self.store().transact(|txn| {
            let kept = Kept { serial: serial.to_owned(), sealed: sealed.clone() };
            txn.put(&psid_key(serial), &kept)?;
            Ok(told(txn, serial, "keep", who, now)?)
        })
    }

    /// The drives of which one is kept.
    pub(crate) fn psid_serials(&self) -> Result<Vec<String>, Denied> {
        let kept: Vec<Kept> = self.store().list(PSIDS, None)?;
        Ok(kept.into_iter().map(|kept| kept.serial).collect())
    }

    pub(crate) fn forget_psid(&self, serial: &str, who: &Who, now: u64) -> Result<(), Denied> {
        let serial = serial.trim();
        self.store().transact(|txn| {
            if txn.get::<Kept>(&psid_key(serial))?.is_none() {
                let detail = format!("no PSID is kept of a drive with serial {serial:?}");
                return Err(Denied::new(StatusCode::NOT_FOUND, detail));
            }
            txn.delete(&psid_key(serial));
            Ok(told(txn, serial, "forget", who, now)?)
        })
    }

    /// Those of a machine's drives, by serial.
    pub(crate) fn psids(&self, txn: &mut Txn<'_>, disks: &[DiskId]) -> Result<BTreeMap<String, Psid>> {
        let mut psids = BTreeMap::new();
        for serial in disks.iter().map(|disk| &disk.serial) {
            let Some(kept) = txn.get::<Kept>(&psid_key(serial))? else { continue };
            match self.inner.key.unseal(serial, &kept.sealed) {
                Some(bytes) => {
                    let text = String::from_utf8(bytes).ok().context("reading a PSID")?;
                    psids.insert(serial.clone(), text.parse().context("reading a PSID")?);
                }
                None => tracing::warn!(
                    serial,
                    "the PSID of this drive was kept under another server key and can't be read: put it in again"
                ),
            }
        }
        Ok(psids)
    }
}
