//! Who changed what, as it was before and as it was after. Entries are written in the transaction that they speak of.

use std::fmt;

use anyhow::Result;
use drophammer_protocol::api::AuditEntry;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::store::{Store, Txn};

pub(crate) const AUDIT: &str = "audit/";

/// In whose name something is ordered, as it's recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who(String);

impl Who {
    pub(crate) fn named(name: String) -> Self {
        Self(name)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<'a> {
    pub(crate) who: &'a Who,
    pub(crate) at_ms: u64,
    /// `put`, `delete`, `allocate`, …
    pub(crate) action: &'a str,
    /// `size/c1-large`
    pub(crate) object: &'a str,
}

/// `before` and `after` without anything secret in them.
pub(crate) fn record<T: Serialize>(
    txn: &mut Txn<'_>,
    change: Change<'_>,
    before: Option<&T>,
    after: Option<&T>,
) -> Result<()> {
    let value = |side: Option<&T>| side.map(serde_json::to_value).transpose();
    let Change { who, at_ms, action, object } = change;
    let entry = AuditEntry {
        id: key_of(at_ms),
        at_ms,
        who: who.to_string(),
        action: action.to_owned(),
        object: object.to_owned(),
        before: value(before)?.unwrap_or(Value::Null),
        after: value(after)?.unwrap_or(Value::Null),
    };
    txn.put(&format!("{AUDIT}{}", entry.id), &entry)
}

/// In the order of time; two of one moment have different ones.
fn key_of(at_ms: u64) -> String {
    let [a, b, c, d, ..] = *Uuid::new_v4().as_bytes();
    format!("{at_ms:015}-{:08x}", u32::from_be_bytes([a, b, c, d]))
}

/// After the entry with this id, at most so many.
pub(crate) fn read(store: &Store, after: Option<&str>, limit: usize) -> Result<Vec<AuditEntry>> {
    let after = after.map(|id| format!("{AUDIT}{id}"));
    store.page(AUDIT, after.as_deref(), limit)
}
