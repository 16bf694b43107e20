//! How long each kind of call took and how it failed: counted while a simulation runs, told at its end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a machine or an operator does, in the order of the road.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Script,
    Ticket,
    Time,
    Handshake,
    Enrol,
    Inventory,
    Events,
    /// All of it, from the handshake until events and inventory are stored.
    Registered,
    EraseOrder,
    EraseOutcome,
    /// From the answer to whoever allocated the machine until the machine has its order.
    OrderGiven,
    InstallOutcome,
    PhoneHome,
    Allocate,
    List,
    Capacity,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Script => "boot script",
            Self::Ticket => "ticket",
            Self::Time => "signed time",
            Self::Handshake => "TLS handshake",
            Self::Enrol => "enrol",
            Self::Inventory => "inventory",
            Self::Events => "events",
            Self::Registered => "handshake to registered",
            Self::EraseOrder => "erase order",
            Self::EraseOutcome => "erase outcome",
            Self::OrderGiven => "order given to order there",
            Self::InstallOutcome => "install outcome",
            Self::PhoneHome => "phone home",
            Self::Allocate => "allocate",
            Self::List => "list, filtered",
            Self::Capacity => "capacity",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<BTreeMap<Call, Counted>>);

#[derive(Debug, Default)]
struct Counted {
    micros: Vec<u32>,
    /// When the first was begun and the last had ended.
    between: Option<(Instant, Instant)>,
    errors: BTreeMap<String, u64>,
}

impl Calls {
    /// A call that was answered now.
    pub(super) fn answered(&self, call: Call, began: Instant) {
        self.took(call, began, Instant::now());
    }

    pub(super) fn took(&self, call: Call, began: Instant, ended: Instant) {
        let micros = u32::try_from(ended.saturating_duration_since(began).as_micros()).unwrap_or(u32::MAX);
        let mut all = self.lock();
        let counted = all.entry(call).or_default();
        counted.micros.push(micros);
        let (first, last) = counted.between.unwrap_or((began, ended));
        counted.between = Some((first.min(began), last.max(ended)));
    }

    /// One that had no answer, or not the one that was wanted: a sentence without what is different for each machine.
    pub(super) fn failed(&self, call: Call, why: &str) {
        *self.lock().entry(call).or_default().errors.entry(why.to_owned()).or_default() += 1;
    }

    /// From here on is counted anew.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    pub(super) fn figures(&self) -> Vec<Figures> {
        self.lock().iter().map(|(call, counted)| counted.figures(call.name())).collect()
    }

    /// The worst of 99 in a hundred, if there was any.
    pub(super) fn p99(&self, call: Call) -> Option<Duration> {
        let mut micros = self.lock().get(&call)?.micros.clone();
        micros.sort_unstable();
        percentile(&micros, 990).map(|micros| Duration::from_micros(micros.into()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Call, Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of one kind of call. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub call: String,
    pub count: usize,
    /// Between the first one's beginning and the last one's end.
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// How often which went wrong; those that were tried again are among them.
    pub errors: BTreeMap<String, u64>,
}

impl Counted {
    fn figures(&self, call: &str) -> Figures {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let ms = |per_mille| percentile(&sorted, per_mille).map_or(0.0, |micros| f64::from(micros) / 1000.0);
        let seconds = self.between.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "counts of a few minutes")]
        let count = sorted.len() as f64;
        Figures {
            call: call.to_owned(),
            count: sorted.len(),
            per_second: if seconds > 0.0 { count / seconds } else { 0.0 },
            p50_ms: ms(500),
            p99_ms: ms(990),
            p999_ms: ms(999),
            max_ms: ms(1000),
            errors: self.errors.clone(),
        }
    }
}

/// The least value that so many of a thousand don't exceed: the nearest rank.
fn percentile(sorted: &[u32], per_mille: usize) -> Option<u32> {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let thousand: Vec<u32> = (1..=1000).collect();
        for (name, sorted, per_mille, want) in [
            ("nothing", &[][..], 500, None),
            ("one", &[7], 999, Some(7)),
            ("the lower of two", &[1, 9], 500, Some(1)),
            ("the upper of two", &[1, 9], 501, Some(9)),
            ("half of many", &thousand, 500, Some(500)),
            ("99 in a hundred", &thousand, 990, Some(990)),
            ("999 in a thousand", &thousand, 999, Some(999)),
            ("the greatest", &thousand, 1000, Some(1000)),
            ("the least", &thousand, 0, Some(1)),
        ] {
            assert_eq!(percentile(sorted, per_mille), want, "{name}");
        }
    }

    #[test]
    fn what_failed_is_counted_by_why() {
        let calls = Calls::default();
        let began = Instant::now();
        for millis in [3, 1, 2] {
            calls.took(Call::Enrol, began, began + Duration::from_millis(millis));
        }
        for why in ["no answer", "409 Conflict", "no answer"] {
            calls.failed(Call::Enrol, why);
        }
        calls.failed(Call::List, "403 Forbidden");
        let [enrol, list] = &calls.figures()[..] else { panic!("two kinds") };
        assert_eq!((enrol.count, enrol.p50_ms, enrol.max_ms, enrol.per_second), (3, 2.0, 3.0, 1000.0));
        assert_eq!(enrol.errors, BTreeMap::from([("no answer".into(), 2), ("409 Conflict".into(), 1)]));
        assert_eq!((list.count, list.errors.len()), (0, 1));
        assert_eq!(calls.p99(Call::Enrol), Some(Duration::from_millis(3)));
        calls.forget();
        assert_eq!(calls.figures(), []);
    }
}
