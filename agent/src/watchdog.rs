//! The backstop for a machine that hangs: a hardware timer that resets it unless we keep asking it not to.
//!
//! The timer is fed by a thread, but only as long as the main work keeps its promises: with each step it says for how
//! long it may be silent. A step that overstays that has hung, and the machine starts over.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::event::Phase;

use crate::reporter::Reporter;
use crate::sys::linux;

const DEVICE: &str = "/dev/watchdog";
/// Short enough to notice a hang soon, long enough for a machine that is busy erasing.
const TIMEOUT: Duration = Duration::from_secs(60);
/// From kexec until the installed system has loaded the driver: longer than any that isn't hanging.
const FOR_THE_NEXT_KERNEL: Duration = Duration::from_secs(300);
const FEED_EVERY: Duration = Duration::from_secs(5);

/// Where the main work says that it's alive. Cheap to clone; works without a watchdog too.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    alive_until: Instant,
    device: Option<File>,
}

impl Watchdog {
    /// `silence`: how long the first step may take.
    pub(crate) fn new(silence: Duration) -> Self {
        let state = State { alive_until: Instant::now() + silence, device: None };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Starts the timer if the machine has one. Returns what there is, in words.
    pub(crate) fn start(&self, reporter: &Reporter) -> String {
        let device = match linux::open_watchdog(Path::new(DEVICE)) {
            Ok(device) => device,
            Err(error) => return format!("no watchdog ({DEVICE}: {error}): a hang would need a person"),
        };
        let words = match linux::set_watchdog_timeout(&device, TIMEOUT) {
            Ok(timeout) => format!("watchdog: resets the machine after {} s without a sign of life", timeout.as_secs()),
            Err(error) => format!("watchdog with its own timeout (setting it: {error})"),
        };
        self.lock().device = Some(device);
        let (ours, reporter) = (self.clone(), reporter.clone());
        thread::spawn(move || ours.feed(&reporter));
        words
    }

    /// The main work is alive and will say so again within `silence`. Never shortens an earlier promise, since several
    /// threads make them.
    pub(crate) fn alive(&self, silence: Duration) {
        let mut state = self.lock();
        state.alive_until = state.alive_until.max(Instant::now() + silence);
    }

    /// A new step begins: whatever was promised for the last one no longer counts.
    pub(crate) fn step(&self, silence: Duration) {
        self.lock().alive_until = Instant::now() + silence;
    }

    /// Stops the timer, which would otherwise go on under the next kernel and reset it while it boots.
    pub(crate) fn stop(&self) -> anyhow::Result<()> {
        match self.lock().device.take() {
            // Documentation/watchdog/watchdog-api.rst, "magic close".
            Some(mut device) => device.write_all(b"V").context("stopping the watchdog"),
            None => Ok(()),
        }
    }

    /// Leaves the timer to the next kernel, which has so long to take it over. `None` if there is no timer.
    pub(crate) fn hand_over(&self) -> anyhow::Result<Option<Duration>> {
        // Out of reach of the thread that feeds it: this kernel may hang on its way out, too.
        let Some(mut device) = self.lock().device.take() else { return Ok(None) };
        let timeout = linux::set_watchdog_timeout(&device, FOR_THE_NEXT_KERNEL).unwrap_or_default();
        if timeout < FOR_THE_NEXT_KERNEL {
            device.write_all(b"V").context("stopping the watchdog")?;
            anyhow::bail!("the watchdog takes no timeout of {} s and was stopped", FOR_THE_NEXT_KERNEL.as_secs());
        }
        device.write_all(b"+").context("feeding the watchdog")?;
        // Not to be closed: some drivers stop then.
        std::mem::forget(device);
        Ok(Some(timeout))
    }

    pub(crate) fn is_there(&self) -> bool {
        self.lock().device.is_some()
    }

    fn feed(&self, reporter: &Reporter) {
        let mut overdue = false;
        loop {
            {
                let mut state = self.lock();
                let alive = Instant::now() < state.alive_until;
                let Some(device) = &mut state.device else { return };
                if alive {
                    // Anything but 'V'. A timer that can't be fed fires, which is what it's for.
                    let _ = device.write_all(b"+");
                    overdue = false;
                }
                if !alive && !overdue {
                    overdue = true;
                    reporter.failed(
                        Phase::Agent,
                        "the step that is under way should have ended long ago; the watchdog will reset the machine",
                    );
                }
            }
            thread::sleep(FEED_EVERY);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
