//! A machine's events as the table that the demo ends with. Pure.

use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::words::bytes;

/// One stretch of the road.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub phase: Phase,
    pub start_ms: u64,
    pub end_ms: u64,
    pub bytes: Option<u64>,
    /// The last thing said about it.
    pub what: String,
    pub failed: bool,
}

/// The stretches in order, from the events since `start_ms`.
///
/// A stretch begins with its first event and ends when it says so, or else when the next one begins. While a stretch of
/// the machine's own is under way, what the server sees of it on the network is part of that and no stretch by itself.
pub fn rows(events: &[Recorded], start_ms: u64) -> Vec<Row> {
    let mut open: Vec<Stretch> = Vec::new();
    // What the agent reports comes later than it happened, and what happened meanwhile on the network before it.
    let mut events: Vec<_> = events.iter().filter(|e| e.at_ms >= start_ms && e.phase != Phase::Lifecycle).collect();
    events.sort_by_key(|e| (e.at_ms, e.position));
    for event in events {
        let last = open.last();
        let inside = last.is_some_and(|s| s.row.phase >= Phase::Kernel && !s.ended && s.said_started);
        if is_network(event.phase) && inside {
            continue;
        }
        let same = if event.step == Step::Started {
            open.last_mut().filter(|s| s.row.phase == event.phase && !s.ended)
        } else {
            open.iter_mut().rev().take(2).find(|s| s.row.phase == event.phase)
        };
        match same {
            Some(stretch) => stretch.add(event),
            None => open.push(Stretch::new(event)),
        }
    }
    let starts: Vec<_> = open.iter().map(|s| s.row.start_ms).collect();
    let mut rows: Vec<_> = open.into_iter().map(|s| (s.ended, s.row)).collect();
    for (n, (ended, row)) in rows.iter_mut().enumerate() {
        if let (false, Some(next)) = (*ended, starts.get(n + 1)) {
            row.end_ms = row.end_ms.max(*next);
        }
    }
    let mut rows: Vec<_> = rows.into_iter().map(|(_, row)| row).filter(|row| !is_idle(row)).collect();
    add_kernel(&mut rows);
    rows
}

/// An agent that asks for orders and has one at once wasn't waiting.
fn is_idle(row: &Row) -> bool {
    row.phase == Phase::Waiting && row.end_ms - row.start_ms < 200
}

/// Nobody sees a kernel start; it's what lies between the last file that it was fetched with and its agent.
fn add_kernel(rows: &mut Vec<Row>) {
    let kernel = rows.windows(2).enumerate().find_map(|(n, pair)| match pair {
        [http, agent] if http.phase == Phase::Http && agent.phase == Phase::Agent => {
            let what = "the kernel started".into();
            let (start_ms, end_ms) = (http.end_ms, agent.start_ms);
            Some((n + 1, Row { phase: Phase::Kernel, start_ms, end_ms, bytes: None, what, failed: false }))
        }
        _ => None,
    });
    if let Some((at, row)) = kernel {
        rows.insert(at, row);
    }
}

struct Stretch {
    row: Row,
    ended: bool,
    said_started: bool,
    /// Sum over everything that was completed, where several files are fetched one after the other.
    done_bytes: u64,
}

impl Stretch {
    fn new(event: &Recorded) -> Self {
        let row = Row {
            phase: event.phase,
            start_ms: event.at_ms,
            end_ms: event.at_ms,
            bytes: None,
            what: String::new(),
            failed: false,
        };
        let mut stretch = Self { row, ended: false, said_started: event.step == Step::Started, done_bytes: 0 };
        stretch.add(event);
        stretch
    }

    fn add(&mut self, event: &Recorded) {
        let row = &mut self.row;
        row.end_ms = row.end_ms.max(event.at_ms);
        if event.step != Step::Progress {
            row.what.clone_from(&event.message);
        }
        row.failed = event.step == Step::Failed;
        self.ended = matches!(event.step, Step::Done | Step::Failed);
        if let Some(progress) = event.progress {
            let so_far =
                if is_network(event.phase) { self.done_bytes + progress.done_bytes } else { progress.done_bytes };
            if event.step == Step::Done {
                self.done_bytes = so_far;
            }
            row.bytes = Some(so_far.max(row.bytes.unwrap_or(0)));
        }
    }
}

pub(crate) fn is_network(phase: Phase) -> bool {
    matches!(phase, Phase::Dhcp | Phase::Tftp | Phase::Http)
}

/// What fits a wide terminal beside the other columns. A failure is told in full.
const WHAT: usize = 100;

fn at_most(length: usize, text: &str) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

/// The table as text, with times from `start_ms`.
pub fn table(rows: &[Row], start_ms: u64) -> String {
    let mut text = format!("{:<12} {:>8} {:>8} {:>10}  {}\n", "STEP", "AT", "TOOK", "BYTES", "WHAT");
    for row in rows {
        let bytes = row.bytes.map(bytes).unwrap_or_default();
        let mark = if row.failed { "FAILED: " } else { "" };
        let what = row.what.lines().next().unwrap_or_default();
        let what = if row.failed { what.to_owned() } else { at_most(WHAT, what) };
        text.push_str(&format!(
            "{:<12} {:>8} {:>8} {bytes:>10}  {mark}{what}\n",
            row.phase.name(),
            seconds(row.start_ms.saturating_sub(start_ms)),
            seconds(row.end_ms.saturating_sub(row.start_ms)),
        ));
    }
    text
}

pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::event::Progress;

    use super::*;

    fn at(at_ms: u64, phase: Phase, step: Step, bytes: Option<u64>) -> Recorded {
        Recorded {
            position: at_ms,
            at_ms,
            boot: None,
            phase,
            step,
            message: format!("{} {step:?}", phase.name()),
            progress: bytes.map(|done_bytes| Progress { done_bytes, total_bytes: None }),
            sight: None,
        }
    }

    #[test]
    fn long_words_are_cut_and_failures_are_not() {
        for (words, failed, want) in [
            ("short", false, "short".to_owned()),
            (&"é".repeat(100), false, "é".repeat(100)),
            (&"é".repeat(101), false, "é".repeat(99) + "…"),
            (&"é".repeat(101), true, "FAILED: ".to_owned() + &"é".repeat(101)),
        ] {
            let mut row = rows(&[at(0, Phase::Erase, Step::Done, None)], 0).remove(0);
            (row.what, row.failed) = (words.to_owned(), failed);
            let table = table(&[row], 0);
            assert!(table.ends_with(&format!("  {want}\n")), "{table}");
        }
    }

    #[test]
    fn stretches() {
        use Phase::{Agent, Dhcp, Erase, Firmware, Http, Image, Lifecycle, Tftp};
        use Step::{Done, Failed, Note, Progress, Started};
        for (name, events, want) in [
            ("nothing", vec![], vec![]),
            (
                "one lasts until the next begins",
                vec![at(10, Firmware, Started, None), at(50, Dhcp, Note, None), at(60, Dhcp, Note, None)],
                vec![(Firmware, 10, 50, None, false), (Dhcp, 50, 60, None, false)],
            ),
            (
                "firmware's DHCP, iPXE, iPXE's DHCP",
                vec![
                    at(0, Dhcp, Note, None),
                    at(1, Dhcp, Done, None),
                    at(2, Tftp, Started, None),
                    at(9, Tftp, Done, Some(100)),
                    at(20, Dhcp, Started, None),
                    at(21, Dhcp, Done, None),
                    at(22, Http, Done, Some(7)),
                    at(30, Http, Progress, Some(50)),
                    at(40, Http, Done, Some(90)),
                ],
                vec![
                    (Dhcp, 0, 1, None, false),
                    (Tftp, 2, 9, Some(100), false),
                    (Dhcp, 20, 21, None, false),
                    (Http, 22, 40, Some(97), false),
                ],
            ),
            (
                "the network while the agent works is the agent's",
                vec![
                    at(0, Image, Started, None),
                    at(5, Http, Done, Some(4000)),
                    at(6, Image, Progress, Some(1000)),
                    at(9, Image, Done, Some(9000)),
                ],
                vec![(Image, 0, 9, Some(9000), false)],
            ),
            (
                "failures show, and people's doings don't",
                vec![
                    at(0, Agent, Done, None),
                    at(1, Lifecycle, Note, None),
                    at(2, Erase, Started, None),
                    at(4, Erase, Failed, None),
                ],
                vec![(Agent, 0, 0, None, false), (Erase, 2, 4, None, true)],
            ),
            (
                "an agent asks for orders, erases, and waits",
                vec![
                    at(0, Phase::Waiting, Started, None),
                    at(40, Erase, Started, None),
                    at(300, Erase, Done, None),
                    at(310, Phase::Waiting, Started, None),
                    at(900, Phase::Waiting, Done, None),
                ],
                vec![(Erase, 40, 300, None, false), (Phase::Waiting, 310, 900, None, false)],
            ),
            (
                "the kernel is what nobody sees",
                vec![
                    at(0, Http, Done, Some(9)),
                    at(10, Http, Done, Some(9)),
                    at(70, Agent, Started, None),
                    at(90, Agent, Done, None),
                ],
                vec![
                    (Http, 0, 10, Some(18), false),
                    (Phase::Kernel, 10, 70, None, false),
                    (Agent, 70, 90, None, false),
                ],
            ),
            (
                "again is another stretch",
                vec![
                    at(0, Erase, Started, None),
                    at(1, Erase, Done, None),
                    at(5, Erase, Started, None),
                    at(6, Erase, Done, None),
                ],
                vec![(Erase, 0, 1, None, false), (Erase, 5, 6, None, false)],
            ),
        ] {
            let got: Vec<_> =
                rows(&events, 0).into_iter().map(|r| (r.phase, r.start_ms, r.end_ms, r.bytes, r.failed)).collect();
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn earlier_boots_are_left_out() {
        let events = [at(5, Phase::Dhcp, Step::Done, None), at(50, Phase::Agent, Step::Done, None)];
        assert_eq!(rows(&events, 10).len(), 1);
    }

    #[test]
    fn the_table_has_its_columns() {
        let events = [at(1000, Phase::Tftp, Step::Started, None), at(2500, Phase::Tftp, Step::Done, Some(2 << 20))];
        let text = table(&rows(&events, 0), 0);
        assert_eq!(text.lines().nth(1), Some("tftp            1.0 s    1.5 s    2.0 MiB  tftp Done"), "{text}");
    }
}
