//! What DHCP, TFTP and HTTP see of machines, on its way into their timelines.
//!
//! A machine is seen by its MAC before anybody knows which machine it is, so observations of strangers wait here, in
//! bounded memory, until a boot script is asked for with a machine's id. Those who observe never wait for a disk: one
//! thread writes, many observations in one commit.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::event::Recorded;
use drophammer_protocol::id::{Mac, MachineId};

use crate::pool::Pool;
use crate::records::Record;
use crate::store::{MOST_CHANGES, Store};
use crate::timeline::{self, Said};

const MAX_READY: usize = 8192;
const MAX_STRANGERS: usize = 1024;
const MAX_PER_STRANGER: usize = 64;
/// In one commit, with room for what each replaces and where its history then stands.
const MOST_AT_ONCE: usize = MOST_CHANGES / 4;
/// Between attempts while the store can't be written.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Observed {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    strangers: Strangers,
    /// Whose machine is known, in the order seen.
    ready: VecDeque<(MachineId, Said)>,
    closing: bool,
}

impl Observed {
    pub(crate) fn start(store: Store, pool: Arc<Pool>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("observations".into())
            .spawn(move || write(&ours, &store))
            .context("starting the thread that writes observations")?;
        Ok(Self { shared, pool, writer: Some(writer) })
    }

    pub(crate) fn add(&self, mac: Mac, machine: Option<MachineId>, said: Said) -> Result<()> {
        let owner = self.pool.owner(mac, machine);
        let mut state = self.shared.lock();
        match owner {
            Some(machine) => {
                ensure!(
                    state.ready.len() < MAX_READY,
                    "{MAX_READY} observations wait to be written already; what was seen of {mac} is left out of its timeline"
                );
                state.ready.push_back((machine, said));
                self.shared.changed.notify_one();
            }
            None => state.strangers.remember(mac, said),
        }
        Ok(())
    }

    /// Everything that was seen of this machine and isn't written yet; the caller writes it.
    pub(crate) fn claim(&self, mac: Mac, machine: MachineId) -> Vec<Said> {
        let mut state = self.shared.lock();
        let mut claimed: Vec<Said> = state.strangers.claim(mac);
        let (ours, others): (VecDeque<_>, VecDeque<_>) = state.ready.drain(..).partition(|(m, _)| *m == machine);
        state.ready = others;
        claimed.extend(ours.into_iter().map(|(_, said)| said));
        claimed
    }

    /// What was seen of somebody whom nobody knows.
    pub(crate) fn of_stranger(&self, mac: Mac) -> Vec<Recorded> {
        self.shared.lock().strangers.look_at(mac)
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes observations panicked; the last observations may be lost");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was seen of machines that nobody knows yet. Of too many of them, those not seen for the longest are forgotten.
#[derive(Debug, Default)]
struct Strangers {
    seen: HashMap<Mac, Stranger>,
    by_turn: BTreeMap<u64, Mac>,
    turn: u64,
}

#[derive(Debug, Default)]
struct Stranger {
    /// In which this one was last seen.
    turn: u64,
    said: VecDeque<Said>,
    /// How much was said before that and is gone.
    gone: u64,
}

impl Strangers {
    fn remember(&mut self, mac: Mac, said: Said) {
        self.turn += 1;
        let stranger = self.seen.entry(mac).or_default();
        self.by_turn.remove(&stranger.turn);
        self.by_turn.insert(self.turn, mac);
        stranger.turn = self.turn;
        if stranger.said.len() >= MAX_PER_STRANGER {
            stranger.said.pop_front();
            stranger.gone += 1;
        }
        stranger.said.push_back(said);
        if self.seen.len() > MAX_STRANGERS
            && let Some((_, oldest)) = self.by_turn.pop_first()
        {
            self.seen.remove(&oldest);
        }
    }

    fn claim(&mut self, mac: Mac) -> Vec<Said> {
        let Some(stranger) = self.seen.remove(&mac) else { return vec![] };
        self.by_turn.remove(&stranger.turn);
        stranger.said.into()
    }

    fn look_at(&self, mac: Mac) -> Vec<Recorded> {
        let Some(stranger) = self.seen.get(&mac) else { return vec![] };
        (stranger.gone + 1..).zip(&stranger.said).map(|(position, said)| said.clone().at(position)).collect()
    }
}

/// Until the server closes, and then what is left.
fn write(shared: &Shared, store: &Store) {
    let mut state = shared.lock();
    loop {
        if state.ready.is_empty() {
            if state.closing {
                return;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let many = state.ready.len().min(MOST_AT_ONCE);
        let batch: Vec<_> = state.ready.drain(..many).collect();
        drop(state);
        let written = commit(store, &batch);
        state = shared.lock();
        if let Err(error) = written {
            tracing::error!(observations = batch.len(), "writing observations: {error:#}");
            if state.closing {
                return;
            }
            for item in batch.into_iter().rev() {
                state.ready.push_front(item);
            }
            state = shared.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn commit(store: &Store, batch: &[(MachineId, Said)]) -> Result<()> {
    let mut machines: HashMap<MachineId, Vec<&Said>> = HashMap::new();
    for (machine, said) in batch {
        machines.entry(*machine).or_default().push(said);
    }
    store.transact(|txn| {
        for (machine, said) in &machines {
            // It may have been forgotten meanwhile.
            if Record::load(txn, *machine)?.is_some() {
                timeline::append(txn, *machine, said.iter().map(|s| (*s).clone()))?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::event::{Phase, Step};
    use uuid::Uuid;

    use super::*;

    const MACHINE: MachineId = MachineId(Uuid::from_u128(1));

    fn mac(n: u64) -> Mac {
        let [.., a, b, c, d, e, f] = n.to_be_bytes();
        Mac([a, b, c, d, e, f])
    }

    fn said(at_ms: u64) -> Said {
        Said::new(at_ms, None, Phase::Dhcp, Step::Note, at_ms.to_string())
    }

    fn times(said: &[Said]) -> Vec<u64> {
        said.iter().map(|s| s.at_ms).collect()
    }

    #[test]
    fn strangers_wait_in_bounded_memory() {
        let mut strangers = Strangers::default();
        for n in 0..10_000 {
            strangers.remember(mac(n), said(n));
            strangers.remember(mac(0), said(n));
        }
        assert_eq!((strangers.seen.len(), strangers.by_turn.len()), (MAX_STRANGERS, MAX_STRANGERS));
        for at in 20_000..20_100 {
            strangers.remember(mac(9_999), said(at));
        }
        let looked_at = strangers.look_at(mac(9_999));
        assert_eq!(looked_at.first().map(|event| (event.position, event.at_ms)), Some((38, 20_036)));
        let kept = strangers.claim(mac(9_999));
        assert_eq!((kept.len(), times(&kept).first().copied()), (MAX_PER_STRANGER, Some(20_036)));
        assert_eq!(strangers.claim(mac(0)).len(), MAX_PER_STRANGER, "first seen first, and still there");
        assert!(strangers.claim(mac(1)).is_empty(), "forgotten");
        assert_eq!((strangers.seen.len(), strangers.by_turn.len()), (MAX_STRANGERS - 2, MAX_STRANGERS - 2));
    }

    #[test]
    fn what_was_seen_goes_to_its_machine_and_survives_the_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        let mut record = Record::discovered(MACHINE, mac(1), 0);
        let saved: Result<()> = store.transact(|t| record.save(t));
        saved.expect("saves");
        let pool = Pool::start(store.clone(), Arc::default(), Arc::default(), Arc::default()).expect("starts");
        let observed = Observed::start(store.clone(), Arc::new(pool)).expect("starts");
        let other = MachineId(Uuid::from_u128(2));
        for (name, from, machine, at) in [
            ("by its MAC", mac(1), None, 1),
            ("by its id, from another MAC", mac(7), Some(MACHINE), 2),
            ("a stranger", mac(2), None, 3),
            ("a stranger with an id that isn't known yet", mac(2), Some(other), 4),
        ] {
            observed.add(from, machine, said(at)).expect(name);
        }
        assert_eq!(times(&observed.claim(mac(2), other)), [3, 4], "the stranger's, once somebody knows who it is");
        assert_eq!(times(&observed.claim(mac(2), other)), [] as [u64; 0], "and only once");
        drop(observed);
        let written = timeline::read(&store, MACHINE, 0).expect("reads");
        assert_eq!(written.iter().map(|e| e.at_ms).collect::<Vec<_>>(), [1, 2]);
    }
}
