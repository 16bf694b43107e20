//! What has had its time is removed, by one of the servers.

use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_protocol::api::AuditEntry;

use crate::audit::AUDIT;
use crate::duty::Duty;
use crate::every::Every;
use crate::http::once;
use crate::store::{MOST_CHANGES, Store, decode};
use crate::unix_ms;

const BETWEEN_ROUNDS: Duration = Duration::from_secs(10 * 60);
/// Auditors come once a year.
const AUDIT_LIFE_MS: u64 = 400 * 24 * 60 * 60 * 1000;

/// Works until it's dropped.
pub(crate) fn start(store: Store, duty: Duty) -> Result<Every> {
    Every::start("janitor", BETWEEN_ROUNDS, move || {
        if duty.is_mine()
            && let Err(error) = round(&store, unix_ms())
        {
            tracing::warn!("removing what has had its time, which is tried again: {error:#}");
        }
    })
}

fn round(store: &Store, now: u64) -> Result<()> {
    let (answers, _) = store.entries(once::KEPT)?;
    let mut over = Vec::new();
    for entry in answers {
        let kept: once::Kept = decode(&entry.key, &entry.value)?;
        if now.saturating_sub(kept.at_ms) > once::LIFE_MS {
            over.push(String::from_utf8(entry.key).context("reading a key of the store")?);
        }
    }
    remove(store, &over)?;
    // They are in the order of time.
    loop {
        let oldest: Vec<AuditEntry> = store.page(AUDIT, None, MOST_CHANGES / 2)?;
        let old = oldest.iter().filter(|entry| now.saturating_sub(entry.at_ms) > AUDIT_LIFE_MS);
        let over: Vec<String> = old.map(|entry| format!("{AUDIT}{}", entry.id)).collect();
        if over.is_empty() {
            return Ok(());
        }
        remove(store, &over)?;
    }
}

fn remove(store: &Store, keys: &[String]) -> Result<()> {
    for some in keys.chunks(MOST_CHANGES / 2) {
        store.transact(|txn| -> Result<()> {
            some.iter().for_each(|key| txn.delete(key));
            Ok(())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{self, Change};
    use crate::auth::Caller;

    #[test]
    fn what_has_had_its_time_goes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        let who = Caller::at_the_socket().who;
        let day = 24 * 60 * 60 * 1000;
        for at_ms in (0..500).map(|n| n * day) {
            let change = Change { who: &who, at_ms, action: "put", object: "o" };
            store.transact(|txn| audit::record::<()>(txn, change, None, None)).expect("writes");
            let kept = once::Kept { at_ms, ..once::Kept::default() };
            store.transact(|txn| txn.put(&format!("{}{at_ms}", once::KEPT), &kept)).expect("writes");
        }
        round(&store, 500 * day).expect("removes");
        let left: Vec<AuditEntry> = store.list(AUDIT, None).expect("lists");
        assert_eq!((left.len(), left[0].at_ms), (400, 100 * day));
        assert_eq!(store.list::<once::Kept>(once::KEPT, None).expect("lists").len(), 1);
    }
}
