//! The receiving end of every [`Reporter`]: numbers what was said, prints it, and brings it to the server in order.
//!
//! One thread listens and prints, so nobody who reports ever waits. Another delivers once there is a server; until then,
//! and while the server is away, events wait in a queue whose size is bounded.

use std::collections::{HashMap, VecDeque};
use std::io::Write as _;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use drophammer_protocol::event::{Event, Phase, Progress, Step};

use crate::reporter::{Reporter, Said};
use crate::server::{CallError, Server};
use crate::watchdog::Watchdog;

/// Events that wait for a server. Beyond that the least telling ones go, and the loss is stated.
const MOST_WAITING: usize = 2000;
const MOST_PER_REQUEST: usize = 200;
/// Progress that comes faster is left out; the last of a phase never is.
const PROGRESS_TO_SERVER: Duration = Duration::from_millis(500);
const PROGRESS_TO_CONSOLE: Duration = Duration::from_secs(2);
/// Whoever reports is alive, and may now be silent for this long.
const SILENCE_AFTER_A_WORD: Duration = Duration::from_secs(10 * 60);

#[derive(Clone, Debug)]
pub(crate) struct Events {
    shared: Arc<Shared>,
    reporter: Reporter,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    /// How many reports were heard, whatever became of them.
    heard: u64,
    delivery: Delivery,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Delivery {
    /// There is no server yet that would take anything.
    #[default]
    NotYet,
    Going,
    /// The server refused; it won't take anything any more.
    Ended,
}

impl Events {
    pub(crate) fn start(watchdog: Watchdog) -> Self {
        let (sink, said) = mpsc::channel();
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let events = Self { shared, reporter: Reporter::new(sink) };
        let ours = Arc::clone(&events.shared);
        thread::spawn(move || listen(&said, &ours, &watchdog));
        events
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// From now on events go to `server`, beginning with what was said before there was one.
    pub(crate) fn deliver_to(&self, server: Server) {
        let shared = Arc::clone(&self.shared);
        shared.lock().delivery = Delivery::Going;
        thread::spawn(move || deliver(&shared, &server));
    }

    /// Waits until everything that this thread has said is printed and, if there is a server, stored by it; for at most
    /// `limit`.
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let said = self.reporter.said();
        let state = self.shared.lock();
        let waiting = |s: &mut State| s.heard < said || (s.delivery == Delivery::Going && !s.queue.is_empty());
        match self.shared.changed.wait_timeout_while(state, limit, waiting) {
            Ok((_, timeout)) => !timeout.timed_out(),
            Err(_) => false,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reporter for a person at a command line. The thread ends when the last clone of the reporter is gone.
pub(crate) fn to_stderr() -> (Reporter, JoinHandle<()>) {
    let (sink, said) = mpsc::channel();
    let printing = thread::spawn(move || {
        let (began, mut console) = (Instant::now(), Console::default());
        for said in said {
            if let Some(line) = console.line(&said, began.elapsed(), began.elapsed()) {
                eprintln!("{line}");
            }
        }
    });
    (Reporter::new(sink), printing)
}

fn listen(said: &Receiver<Said>, shared: &Shared, watchdog: &Watchdog) {
    let began = Instant::now();
    let mut console = Console::default();
    let mut to_server = Throttle::every(PROGRESS_TO_SERVER);
    while let Ok(said) = said.recv() {
        watchdog.alive(SILENCE_AFTER_A_WORD);
        let (now, uptime) = (began.elapsed(), uptime());
        if let Some(line) = console.line(&said, uptime, now) {
            // A console that is gone mustn't stop the work; the server hears it all the same.
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }
        let wanted = said.progress.is_none_or(|p| to_server.lets_pass(said.phase, p, now));
        let mut state = shared.lock();
        state.heard += 1;
        if wanted {
            state.queue.push(said, uptime);
        }
        shared.changed.notify_all();
    }
}

fn deliver(shared: &Shared, server: &Server) {
    loop {
        let batch = {
            let state = shared.lock();
            let state =
                shared.changed.wait_while(state, |s| s.queue.is_empty()).unwrap_or_else(PoisonError::into_inner);
            state.queue.first(MOST_PER_REQUEST)
        };
        match server.store_events(uptime(), &batch) {
            Ok(stored) => {
                shared.lock().queue.forget(stored);
                // A server that takes nothing of a batch gets it again, but not in a tight loop.
                if batch.first().is_some_and(|e| stored < e.seq) {
                    thread::sleep(Duration::from_secs(1));
                }
            }
            Err(error) => {
                shared.lock().delivery = Delivery::Ended;
                shared.changed.notify_all();
                let what = match error {
                    CallError::Over(why) => format!("this boot is over for the server ({why})"),
                    other => format!("the server takes no more events: {:#}", anyhow::Error::new(other)),
                };
                // It can't be delivered, so it isn't reported: only the console is left.
                let _ = writeln!(std::io::stdout().lock(), "[{:>9.3}] agent       {what}", uptime().as_secs_f64());
                return;
            }
        }
        shared.changed.notify_all();
    }
}

/// Time since the kernel started; no time-setting moves it.
pub(crate) fn uptime() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Events that no server has stored yet, in order.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Event>,
    last_seq: u64,
    lost: u64,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push(&mut self, said: Said, uptime: Duration) {
        if said.progress.is_some() {
            // Only the newest matters.
            self.waiting.retain(|e| e.phase != said.phase || e.progress.is_none());
        }
        if self.waiting.len() >= MOST_WAITING {
            self.drop_one();
        }
        self.append(said, uptime);
    }

    fn append(&mut self, said: Said, uptime: Duration) {
        self.last_seq += 1;
        self.waiting.push_back(Event {
            seq: self.last_seq,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            phase: said.phase,
            step: said.step,
            message: said.message,
            progress: said.progress,
        });
    }

    /// Makes room: a note before what starts, ends or breaks something.
    fn drop_one(&mut self) {
        let note = self.waiting.iter().position(|e| matches!(e.step, Step::Note | Step::Progress)).unwrap_or(0);
        self.waiting.remove(note);
        self.lost += 1;
    }

    fn first(&self, most: usize) -> Vec<Event> {
        self.waiting.iter().take(most).cloned().collect()
    }

    /// The server has everything up to `seq`.
    fn forget(&mut self, seq: u64) {
        self.waiting.retain(|e| e.seq > seq);
        if self.lost > 0 && self.waiting.len() < MOST_WAITING / 2 {
            let message = format!("{} notes were dropped while the server couldn't be reached", self.lost);
            self.lost = 0;
            self.append(Said { phase: Phase::Agent, step: Step::Note, message, progress: None }, uptime());
        }
    }
}

/// Lets progress of each phase pass once in a while, and always when it's complete.
#[derive(Debug)]
struct Throttle {
    every: Duration,
    last: HashMap<Phase, Duration>,
}

impl Throttle {
    fn every(every: Duration) -> Self {
        Self { every, last: HashMap::new() }
    }

    fn lets_pass(&mut self, phase: Phase, progress: Progress, now: Duration) -> bool {
        let complete = progress.total_bytes == Some(progress.done_bytes);
        let due = self.last.get(&phase).is_none_or(|last| now >= *last + self.every);
        if complete || due {
            self.last.insert(phase, now);
        }
        complete || due
    }
}

/// One line per report, for the person in front of the machine.
#[derive(Debug)]
struct Console {
    throttle: Throttle,
    /// What was shown last of each phase, to tell the rate.
    shown: HashMap<Phase, (u64, Duration)>,
}

impl Default for Console {
    fn default() -> Self {
        Self { throttle: Throttle::every(PROGRESS_TO_CONSOLE), shown: HashMap::new() }
    }
}

impl Console {
    fn line(&mut self, said: &Said, uptime: Duration, now: Duration) -> Option<String> {
        let text = match said.progress {
            Some(progress) => {
                if !self.throttle.lets_pass(said.phase, progress, now) {
                    return None;
                }
                let (bytes, at) = self.shown.insert(said.phase, (progress.done_bytes, now)).unwrap_or((0, now));
                in_words(progress, progress.done_bytes.saturating_sub(bytes), now.saturating_sub(at))
            }
            None => {
                if said.step == Step::Started {
                    self.shown.insert(said.phase, (0, now));
                }
                let mark = match said.step {
                    Step::Started | Step::Note | Step::Progress => "",
                    Step::Done => "done: ",
                    Step::Failed => "FAILED: ",
                };
                format!("{mark}{}", said.message)
            }
        };
        // A message with several lines stays one report.
        let text = text.replace('\n', "\n            ");
        Some(format!("[{:>9.3}] {:<11} {text}", uptime.as_secs_f64(), said.phase.name()))
    }
}

fn in_words(progress: Progress, since: u64, during: Duration) -> String {
    const MB: u64 = 1_000_000;
    let mut text = match progress.total_bytes {
        Some(total) => {
            let percent = u128::from(progress.done_bytes) * 100 / u128::from(total.max(1));
            format!("{percent:>3} % of {} MB", total.div_ceil(MB))
        }
        None => format!("{} MB", progress.done_bytes / MB),
    };
    // Bytes per millisecond are thousands of bytes per second.
    if let Some(tenths) = (u128::from(since) / 100).checked_div(during.as_millis()) {
        text.push_str(&format!(", {}.{} MB/s", tenths / 10, tenths % 10));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(phase: Phase, step: Step, message: &str, done_bytes: Option<u64>) -> Said {
        let progress = done_bytes.map(|done_bytes| Progress { done_bytes, total_bytes: Some(400 * 1_000_000) });
        Said { phase, step, message: message.into(), progress }
    }

    fn note(message: &str) -> Said {
        said(Phase::Agent, Step::Note, message, None)
    }

    fn contents(queue: &Queue) -> Vec<(u64, String)> {
        let text = |e: &Event| e.progress.map_or_else(|| e.message.clone(), |p| p.done_bytes.to_string());
        queue.first(usize::MAX).iter().map(|e| (e.seq, text(e))).collect()
    }

    #[test]
    fn the_queue_keeps_order_and_what_was_not_stored() {
        let mut queue = Queue::default();
        for said in [
            note("a"),
            said(Phase::Image, Step::Progress, "", Some(10)),
            said(Phase::Erase, Step::Progress, "", Some(1)),
            said(Phase::Image, Step::Progress, "", Some(20)),
            note("b"),
        ] {
            queue.push(said, Duration::ZERO);
        }
        let kept = |list: &[(u64, &str)]| list.iter().map(|(seq, text)| (*seq, (*text).to_owned())).collect::<Vec<_>>();
        assert_eq!(contents(&queue), kept(&[(1, "a"), (3, "1"), (4, "20"), (5, "b")]), "older progress is replaced");
        queue.forget(3);
        assert_eq!(contents(&queue), kept(&[(4, "20"), (5, "b")]), "stored events are forgotten");
        queue.forget(3);
        assert_eq!(contents(&queue), kept(&[(4, "20"), (5, "b")]), "hearing it twice changes nothing");
    }

    #[test]
    fn a_full_queue_gives_up_notes_first_and_says_so() {
        let mut queue = Queue::default();
        queue.push(said(Phase::Agent, Step::Started, "start", None), Duration::ZERO);
        for _ in 0..MOST_WAITING + 2 {
            queue.push(note("n"), Duration::ZERO);
        }
        assert_eq!(queue.waiting.len(), MOST_WAITING);
        assert_eq!(contents(&queue).first(), Some(&(1, "start".to_owned())));
        queue.forget(u64::try_from(MOST_WAITING).expect("fits"));
        let last = contents(&queue).pop().expect("the statement of loss");
        assert_eq!(last.1, "3 notes were dropped while the server couldn't be reached");
    }

    #[test]
    fn the_console_says_each_thing_once() {
        let mut console = Console::default();
        let progress = |mb: u64| said(Phase::Image, Step::Progress, "", Some(mb * 1_000_000));
        for (name, millis, said, want) in [
            (
                "a start",
                0,
                said(Phase::Image, Step::Started, "fetching debian", None),
                Some("image       fetching debian"),
            ),
            ("progress", 1000, progress(100), Some("image        25 % of 400 MB, 100.0 MB/s")),
            ("too soon", 2000, progress(150), None),
            ("since the last line", 3000, progress(201), Some("image        50 % of 400 MB, 50.5 MB/s")),
            ("the end always", 3001, progress(400), Some("image       100 % of 400 MB, 199000.0 MB/s")),
            ("a failure", 4000, said(Phase::Erase, Step::Failed, "no", None), Some("erase       FAILED: no")),
            ("two lines", 4000, note("a\nb"), Some("agent       a\n            b")),
        ] {
            let now = Duration::from_millis(millis);
            let want = want.map(|w| format!("[{:>9.3}] {w}", 61.5));
            assert_eq!(console.line(&said, Duration::from_millis(61_500), now), want, "{name}");
        }
    }
}
