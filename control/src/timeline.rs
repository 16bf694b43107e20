//! A machine's history: numbered, on the server's clock, and bounded.
//!
//! Progress is only worth its newest value: within a phase each progress event replaces the one before. Beyond
//! [`MAX_EVENTS`] the oldest go.

use std::collections::BTreeMap;

use anyhow::Result;
use drophammer_protocol::api::Events;
use drophammer_protocol::boot_server::Seen;
use drophammer_protocol::event::{Phase, Progress, Recorded, Step};
use drophammer_protocol::id::{BootId, MachineId};
use drophammer_protocol::machine::State;
use drophammer_protocol::sight::Sight;
use serde::{Deserialize, Serialize};

use crate::records::Record;
use crate::store::{MOST_CHANGES, Store, Txn};

const MAX_EVENTS: u64 = 2000;
/// A chain of causes fits; a log file doesn't.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Something to be recorded.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) at_ms: u64,
    pub(crate) boot: Option<BootId>,
    pub(crate) phase: Phase,
    pub(crate) step: Step,
    pub(crate) message: String,
    pub(crate) progress: Option<Progress>,
    pub(crate) sight: Option<Sight>,
}

impl Said {
    pub(crate) fn new(at_ms: u64, boot: Option<BootId>, phase: Phase, step: Step, message: impl Into<String>) -> Self {
        Self { at_ms, boot, phase, step, message: message.into(), progress: None, sight: None }
    }

    /// What a boot server saw, not later than now, whatever its clock says.
    pub(crate) fn seen(seen: &Seen, now: u64) -> Self {
        let Seen { at_ms, phase, step, progress, .. } = *seen;
        Self {
            progress,
            sight: seen.sight.clone(),
            ..Self::new(at_ms.min(now), None, phase, step, seen.message.clone())
        }
    }

    pub(crate) fn at(self, position: u64) -> Recorded {
        let Self { at_ms, boot, phase, step, message, progress, sight } = self;
        Recorded { position, at_ms, boot, phase, step, message: shortened(message), progress, sight }
    }
}

/// Where a machine's history stands. It changes with every event, so two writers can't take the same position.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Cursor {
    last: u64,
    count: u64,
    /// Position of the newest progress of each phase that is under way.
    progress: BTreeMap<Phase, u64>,
    agent: Option<AgentCursor>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AgentCursor {
    boot: BootId,
    /// Highest `seq` that is stored.
    seq: u64,
    /// When its kernel started, by the server's clock.
    started_ms: u64,
    /// The last failure that it reported.
    failure: Option<String>,
}

pub(crate) fn append(txn: &mut Txn<'_>, machine: MachineId, said: impl IntoIterator<Item = Said>) -> Result<()> {
    let mut said = said.into_iter().peekable();
    if said.peek().is_none() {
        return Ok(());
    }
    let mut cursor: Cursor = txn.get(&cursor_key(machine))?.unwrap_or_default();
    for said in said {
        record(txn, machine, &mut cursor, said)?;
    }
    finish(txn, machine, &mut cursor)
}

/// Records what an agent sent and returns the highest `seq` that is stored. What was stored before is left out, so an
/// agent may send again whatever it got no answer for. `boot_began_ms` is when the server handed this boot its script.
pub(crate) fn append_agent(
    txn: &mut Txn<'_>,
    machine: MachineId,
    boot: BootId,
    boot_began_ms: u64,
    now: u64,
    mut sent: Events,
) -> Result<u64> {
    let mut cursor: Cursor = txn.get(&cursor_key(machine))?.unwrap_or_default();
    let mut agent = cursor.agent.take().filter(|a| a.boot == boot).unwrap_or(AgentCursor {
        boot,
        seq: 0,
        started_ms: u64::MAX,
        failure: None,
    });
    // Every request was under way for a while, so the earliest estimate is the best one.
    agent.started_ms = agent.started_ms.min(now.saturating_sub(sent.uptime_ms)).clamp(boot_began_ms.min(now), now);
    sent.events.sort_by_key(|e| e.seq);
    for event in sent.events {
        if event.seq <= agent.seq {
            continue;
        }
        agent.seq = event.seq;
        if event.step == Step::Failed {
            agent.failure = Some(event.message.clone());
        }
        let at_ms = agent.started_ms.saturating_add(event.uptime_ms).min(now);
        let (phase, step, message, progress) = (of_agent(event.phase), event.step, event.message, event.progress);
        record(txn, machine, &mut cursor, Said { progress, ..Said::new(at_ms, Some(boot), phase, step, message) })?;
    }
    let seq = agent.seq;
    cursor.agent = Some(agent);
    finish(txn, machine, &mut cursor)?;
    Ok(seq)
}

/// What is the server's to say isn't said by an agent: what becomes of its machine, and who decided it.
fn of_agent(phase: Phase) -> Phase {
    match phase {
        Phase::Waiting | Phase::Allocated | Phase::PhonedHome | Phase::Lifecycle => Phase::Agent,
        phase => phase,
    }
}

/// The last failure that the agent of this boot reported.
pub(crate) fn last_failure(txn: &mut Txn<'_>, machine: MachineId, boot: Option<BootId>) -> Result<Option<String>> {
    let cursor: Option<Cursor> = txn.get(&cursor_key(machine))?;
    Ok(cursor.and_then(|c| c.agent).filter(|a| Some(a.boot) == boot).and_then(|a| a.failure))
}

/// How a state that was reached reads in the timeline.
pub(crate) fn told(before: State, record: &Record, now: u64) -> Vec<Said> {
    let say = |phase, step, message: String| Said::new(now, record.boot, phase, step, message);
    let after = record.state;
    let why = record.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    let mut told = Vec::new();
    if before == State::Waiting && after != State::Waiting {
        told.push(say(Phase::Waiting, Step::Done, "waited".into()));
    }
    if before != after {
        told.push(match (before, after) {
            (_, State::Quarantined) => say(Phase::Lifecycle, Step::Failed, format!("quarantined{why}")),
            (State::Installing, State::Allocated) => {
                say(Phase::Lifecycle, Step::Failed, format!("allocated again{why}"))
            }
            _ => say(Phase::Lifecycle, Step::Note, format!("{before}, now {after}{why}")),
        });
    }
    match (&record.allocation, after) {
        (None, State::Waiting) => told.push(say(Phase::Waiting, Step::Started, "waiting to be allocated".into())),
        (Some(a), State::Allocated) if before != State::Installing => {
            told.push(say(Phase::Allocated, Step::Started, format!("allocated to {}: {}", a.system.hostname, a.image)));
        }
        (Some(_), State::Installing) => {
            told.push(say(Phase::Allocated, Step::Done, "the agent has its install order".into()));
        }
        _ => {}
    }
    told
}

pub(crate) fn read(store: &Store, machine: MachineId, after: u64) -> Result<Vec<Recorded>> {
    store.list(&events_prefix(machine), Some(&event_key(machine, after)))
}

/// Deletes the whole history, piece by piece.
pub(crate) fn forget(store: &Store, machine: MachineId) -> Result<()> {
    loop {
        let is_done = store.transact(|txn| -> Result<bool> {
            let keys = txn.keys(&events_prefix(machine), MOST_CHANGES / 2)?;
            keys.iter().for_each(|key| txn.delete(key));
            if keys.is_empty() {
                txn.delete(&cursor_key(machine));
            }
            Ok(keys.is_empty())
        })?;
        if is_done {
            return Ok(());
        }
    }
}

fn record(txn: &mut Txn<'_>, machine: MachineId, cursor: &mut Cursor, said: Said) -> Result<()> {
    let position = cursor.last + 1;
    let replaced = match said.step {
        Step::Progress => cursor.progress.insert(said.phase, position),
        Step::Started | Step::Done | Step::Failed => {
            cursor.progress.remove(&said.phase);
            None
        }
        Step::Note => None,
    };
    if let Some(old) = replaced {
        let key = event_key(machine, old);
        if txn.get::<Recorded>(&key)?.is_some() {
            txn.delete(&key);
            cursor.count = cursor.count.saturating_sub(1);
        }
    }
    txn.put(&event_key(machine, position), &said.at(position))?;
    cursor.last = position;
    cursor.count += 1;
    Ok(())
}

fn finish(txn: &mut Txn<'_>, machine: MachineId, cursor: &mut Cursor) -> Result<()> {
    let excess = usize::try_from(cursor.count.saturating_sub(MAX_EVENTS)).unwrap_or(usize::MAX);
    if excess > 0 {
        for key in txn.keys(&events_prefix(machine), excess)? {
            txn.delete(&key);
            cursor.count -= 1;
        }
    }
    txn.put(&cursor_key(machine), cursor)
}

/// Sentences may come from agents, and be of any length.
pub(crate) fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

fn cursor_key(machine: MachineId) -> String {
    format!("cursor/{machine}")
}

fn events_prefix(machine: MachineId) -> String {
    format!("event/{machine}/")
}

pub(crate) fn event_key(machine: MachineId, position: u64) -> String {
    format!("event/{machine}/{position:020}")
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::event::Event;
    use uuid::Uuid;

    use super::*;

    const MACHINE: MachineId = MachineId(Uuid::from_u128(1));

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        (dir, store)
    }

    fn say(store: &Store, said: &[(Phase, Step, &str)]) {
        let done: Result<()> = store.transact(|t| {
            append(t, MACHINE, said.iter().map(|(phase, step, message)| Said::new(0, None, *phase, *step, *message)))
        });
        done.expect("appends");
    }

    fn messages(store: &Store, after: u64) -> Vec<String> {
        read(store, MACHINE, after).expect("reads").into_iter().map(|e| e.message).collect()
    }

    #[test]
    fn progress_replaces_progress_of_its_phase_and_position_never_repeats() {
        use Phase::{Erase, Image};
        use Step::{Done, Progress, Started};
        let (_dir, store) = store();
        say(&store, &[(Erase, Started, "s"), (Erase, Progress, "p1"), (Image, Progress, "i1")]);
        say(&store, &[(Erase, Progress, "p2")]);
        assert_eq!(messages(&store, 0), ["s", "i1", "p2"], "p2 replaced p1, and left the image alone");
        assert_eq!(messages(&store, 3), ["p2"], "somebody who had seen p1 sees p2");
        say(&store, &[(Erase, Done, "d"), (Erase, Started, "s2"), (Erase, Progress, "p3")]);
        assert_eq!(messages(&store, 0), ["s", "i1", "p2", "d", "s2", "p3"], "a new run leaves the old one alone");
        let positions: Vec<u64> = read(&store, MACHINE, 0).expect("reads").iter().map(|e| e.position).collect();
        assert_eq!(positions, [1, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn the_oldest_go() {
        let (_dir, store) = store();
        for round in 0..5 {
            let texts: Vec<String> = (0..500).map(|i| (round * 500 + i).to_string()).collect();
            say(&store, &texts.iter().map(|t| (Phase::Agent, Step::Note, t.as_str())).collect::<Vec<_>>());
        }
        let left = messages(&store, 0);
        assert_eq!((left.len(), left.first().map(String::as_str)), (2000, Some("500")));
    }

    #[test]
    fn resent_events_are_stored_once() {
        let (_dir, store) = store();
        let (one, two) = (BootId(Uuid::from_u128(1)), BootId(Uuid::from_u128(2)));
        let event = |seq: u64| Event {
            seq,
            uptime_ms: seq,
            phase: Phase::Agent,
            step: Step::Note,
            message: seq.to_string(),
            progress: None,
        };
        for (name, boot, seqs, stored, want) in [
            ("the first", one, vec![1, 2], 2, vec!["1", "2"]),
            ("again, and one more, in any order", one, vec![3, 1, 2], 3, vec!["1", "2", "3"]),
            ("nothing", one, vec![], 3, vec!["1", "2", "3"]),
            ("another boot counts anew", two, vec![1], 1, vec!["1", "2", "3", "1"]),
        ] {
            let sent = Events { uptime_ms: 10, events: seqs.into_iter().map(event).collect() };
            let got = store.transact(|t| append_agent(t, MACHINE, boot, 0, 100, sent.clone()));
            assert_eq!(got.expect("appends"), stored, "{name}");
            assert_eq!(messages(&store, 0), want, "{name}");
        }
    }

    #[test]
    fn events_stand_on_the_servers_clock() {
        for (name, began, now, sent_uptime, event_uptime, want) in [
            ("plain", 1_000, 11_000, 5_000, 4_000, 10_000),
            ("an uptime from before the boot's script", 1_000, 11_000, 50_000, 500, 1_500),
            ("an event from the future", 1_000, 11_000, 5_000, 60_000, 11_000),
            ("nonsense", 1_000, 11_000, u64::MAX, u64::MAX, 11_000),
            ("the server's clock was set back", 99_000, 11_000, 5_000, 4_000, 11_000),
        ] {
            let (_dir, store) = store();
            let event = Event {
                seq: 1,
                uptime_ms: event_uptime,
                phase: Phase::Agent,
                step: Step::Note,
                message: String::new(),
                progress: None,
            };
            let sent = Events { uptime_ms: sent_uptime, events: vec![event] };
            let boot = BootId(Uuid::from_u128(1));
            store.transact(|t| append_agent(t, MACHINE, boot, began, now, sent.clone())).expect("appends");
            assert_eq!(read(&store, MACHINE, 0).expect("reads").first().map(|e| e.at_ms), Some(want), "{name}");
        }
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        for (name, message, bytes) in [
            ("short", "ö".into(), 2),
            ("at the limit", "x".repeat(4096), 4096),
            ("over it", "x".repeat(5000), 4096 + 3),
            ("inside a character", format!("x{}", "ö".repeat(3000)), 4095 + 3),
        ] {
            assert_eq!(shortened(message).len(), bytes, "{name}");
        }
    }
}
