//! Events as they come: lines that stay, and on a terminal one line for each machine that says what it is doing now.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::Duration;

use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::words::bytes;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::timeline::{is_network, seconds};

#[derive(Debug)]
pub(crate) struct Display {
    /// `None` where there is no terminal.
    bars: Option<MultiProgress>,
}

/// One machine's part of it.
#[derive(Debug)]
pub(crate) struct Line {
    name: String,
    start_ms: u64,
    live: Option<(MultiProgress, ProgressBar)>,
    /// When the phase with progress began, for its rate.
    since: Mutex<Option<(Phase, u64)>>,
}

impl Display {
    pub(crate) fn new() -> Self {
        Self { bars: io::stdout().is_terminal().then(MultiProgress::new) }
    }

    pub(crate) fn line(&self, name: &str, start_ms: u64) -> Line {
        let live = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_prefix(name.to_owned());
            bar.set_style(style(SPINNER));
            bar.set_message("waiting for its firmware");
            bar.enable_steady_tick(Duration::from_millis(120));
            (bars.clone(), bar)
        });
        Line { name: name.to_owned(), start_ms, live, since: Mutex::new(None) }
    }

    pub(crate) fn finish(&self) {
        if let Some(bars) = &self.bars {
            // What stays was printed above the moving lines; a terminal that can't be cleared loses nothing.
            bars.clear().ok();
        }
    }
}

const SPINNER: &str = "{spinner} {prefix}  {msg}";
const BAR: &str = "{spinner} {prefix}  {msg} {bar:30} {binary_bytes}/{binary_total_bytes}";

impl Line {
    pub(crate) fn show(&self, event: &Recorded) {
        let begun = self.begun(event);
        let text = sentence(&self.name, event, self.start_ms, begun);
        let Some((bars, bar)) = &self.live else {
            if event.step != Step::Progress {
                println!("{text}");
            }
            return;
        };
        if event.step != Step::Progress {
            // A terminal that has gone away is no reason to stop.
            bars.println(text).ok();
        }
        match event.progress {
            Some(progress) if event.step == Step::Progress => {
                if let Some(total) = progress.total_bytes {
                    bar.set_style(style(BAR));
                    bar.set_length(total);
                }
                bar.set_position(progress.done_bytes);
            }
            _ => bar.set_style(style(SPINNER)),
        }
        bar.set_message(event.phase.name());
    }

    fn begun(&self, event: &Recorded) -> u64 {
        let mut since = self.since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match *since {
            Some((phase, begun)) if phase == event.phase && event.step != Step::Started => begun,
            _ => {
                *since = Some((event.phase, event.at_ms));
                event.at_ms
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// `  12.3 s  m1  image        unpacked (102.4 MiB, 41.0 MiB/s)`
fn sentence(name: &str, event: &Recorded, start_ms: u64, begun_ms: u64) -> String {
    let at = seconds(event.at_ms.saturating_sub(start_ms));
    let phase = if event.phase == Phase::Lifecycle { "·" } else { event.phase.name() };
    let mark = if event.step == Step::Failed { "FAILED: " } else { "" };
    let took = event.at_ms.saturating_sub(begun_ms);
    let amount = match event.progress {
        // What the server sends says so itself.
        _ if is_network(event.phase) => String::new(),
        Some(progress) if took >= 100 => {
            let per_second = progress.done_bytes.saturating_mul(1000) / took;
            format!(" ({}, {}/s)", bytes(progress.done_bytes), bytes(per_second))
        }
        Some(progress) => format!(" ({})", bytes(progress.done_bytes)),
        None => String::new(),
    };
    format!("{at:>8}  {name:<4} {phase:<12} {mark}{}{amount}", event.message)
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::event::Progress;

    use super::*;

    #[test]
    fn lines() {
        let event = |phase, step, done: Option<u64>| Recorded {
            position: 1,
            at_ms: 3000,
            boot: None,
            phase,
            step,
            message: "said".into(),
            progress: done.map(|done_bytes| Progress { done_bytes, total_bytes: None }),
            sight: None,
        };
        for (name, event, begun, want) in [
            ("a note", event(Phase::Dhcp, Step::Note, None), 3000, "   2.0 s  m1   dhcp         said"),
            (
                "with a rate",
                event(Phase::Image, Step::Done, Some(2 << 20)),
                2000,
                "   2.0 s  m1   image        said (2.0 MiB, 2.0 MiB/s)",
            ),
            (
                "too quick for one",
                event(Phase::Layout, Step::Done, Some(5)),
                2990,
                "   2.0 s  m1   layout       said (5 B)",
            ),
            (
                "a transfer, with its own figures",
                event(Phase::Http, Step::Done, Some(5)),
                2000,
                "   2.0 s  m1   http         said",
            ),
            ("a failure", event(Phase::Erase, Step::Failed, None), 3000, "   2.0 s  m1   erase        FAILED: said"),
            ("somebody's doing", event(Phase::Lifecycle, Step::Note, None), 3000, "   2.0 s  m1   ·            said"),
        ] {
            assert_eq!(sentence("m1", &event, 1000, begun), want, "{name}");
        }
    }
}
