//! How every part of the agent says what it's doing: to the console and, once enrolled, to the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use drophammer_protocol::event::{Phase, Progress, Step};

/// What somebody in the agent said. The receiver gives it its number and its time.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) phase: Phase,
    pub(crate) step: Step,
    pub(crate) message: String,
    pub(crate) progress: Option<Progress>,
}

/// Cheap to clone and to hand to threads. Saying something never blocks and never fails: the receiving end outlives
/// all work, and what it can't deliver it keeps.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    sink: Sender<Said>,
    said: Arc<AtomicU64>,
}

impl Reporter {
    pub(crate) fn new(sink: Sender<Said>) -> Self {
        Self { sink, said: Arc::default() }
    }

    pub(crate) fn started(&self, phase: Phase, message: impl Into<String>) {
        self.say(phase, Step::Started, message.into(), None);
    }

    pub(crate) fn done(&self, phase: Phase, message: impl Into<String>) {
        self.say(phase, Step::Done, message.into(), None);
    }

    pub(crate) fn failed(&self, phase: Phase, message: impl Into<String>) {
        self.say(phase, Step::Failed, message.into(), None);
    }

    pub(crate) fn note(&self, phase: Phase, message: impl Into<String>) {
        self.say(phase, Step::Note, message.into(), None);
    }

    pub(crate) fn progress(&self, phase: Phase, done_bytes: u64, total_bytes: Option<u64>) {
        self.say(phase, Step::Progress, String::new(), Some(Progress { done_bytes, total_bytes }));
    }

    /// How many things were said so far, through this reporter and its clones.
    pub(crate) fn said(&self) -> u64 {
        self.said.load(Ordering::SeqCst)
    }

    fn say(&self, phase: Phase, step: Step, message: String, progress: Option<Progress>) {
        self.said.fetch_add(1, Ordering::SeqCst);
        // The receiver is gone only while the process ends; there is nobody left to tell.
        let _ = self.sink.send(Said { phase, step, message, progress });
    }
}
