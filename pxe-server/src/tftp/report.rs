//! What the timeline of a boot says about a transfer.

use std::time::Duration;

use drophammer_protocol::event::{Phase, Progress, Step};
use drophammer_protocol::sight::{self, File, Sight};
use drophammer_protocol::words;

use super::transfer::{End, First};
use crate::observe::Told;

/// A transfer at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub name: &'static str,
    pub end: End,
    /// The same host asked for the same file once more before this ended.
    pub asked_again: bool,
    pub acknowledged_bytes: u64,
    pub total_bytes: u64,
    /// From the request until the client was last heard of.
    pub took: Duration,
}

impl Ended {
    /// `None` for what was no transfer.
    pub fn told(&self) -> Option<Told> {
        let Self { name, acknowledged_bytes, total_bytes, took, .. } = self;
        let (acknowledged, total) = (words::bytes(*acknowledged_bytes), words::bytes(*total_bytes));
        let (step, message, done_bytes, end) = match &self.end {
            End::Declined | End::Displaced => return None,
            // Some firmware just goes away with the size, and asks for the file from another port.
            End::Unanswered(First::Oack) if self.asked_again => return None,
            End::Complete => (
                Step::Done,
                format!("sent {name}, {total}, in {}", speed(*total_bytes, *took)),
                *total_bytes,
                sight::End::Complete,
            ),
            End::Unconfirmed => {
                let message = format!(
                    "sent {name}, {total}, of which {acknowledged} were acknowledged in {}; the last ones never \
                     were, as is the way of many ROMs: probably complete",
                    speed(*acknowledged_bytes, *took)
                );
                (Step::Done, message, *total_bytes, sight::End::Complete)
            }
            End::Unanswered(first) => {
                let first = match first {
                    First::Oack => {
                        "the offered options, the first packet of the answer: does UDP from any port of this \
                                    server reach the machine?"
                    }
                    First::Block => "the first block: do packets of full size reach the machine?",
                };
                (
                    Step::Failed,
                    format!("the machine asked for {name} and never acknowledged {first}"),
                    0,
                    sight::End::Unanswered,
                )
            }
            End::Silence => {
                let message = format!(
                    "the machine stopped answering while {name} was sent: {acknowledged} of {total} acknowledged"
                );
                (Step::Failed, message, *acknowledged_bytes, sight::End::Stopped)
            }
            End::Aborted { code, message } => {
                let said = if message.is_empty() { String::new() } else { format!(": {message:?}") };
                let message =
                    format!("the machine gave {name} up after {acknowledged} of {total}, with TFTP error {code}{said}");
                (Step::Failed, message, *acknowledged_bytes, sight::End::GivenUp)
            }
        };
        let progress = Some(Progress { done_bytes, total_bytes: Some(*total_bytes) });
        let sight = Some(Sight::Fetched { file: File::Loader, end });
        Some(Told { phase: Phase::Tftp, step, message, progress, sight })
    }
}

/// `40 ms (5.9 MiB/s)`
fn speed(n: u64, took: Duration) -> String {
    let per_second = u128::from(n) * 1_000_000 / took.as_micros().max(1);
    format!("{} ms ({}/s)", took.as_millis(), words::bytes(u64::try_from(per_second).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_how_a_transfer_ended() {
        let ended = Ended {
            name: "snponly.efi",
            end: End::Complete,
            asked_again: false,
            acknowledged_bytes: 250_000,
            total_bytes: 250_000,
            took: Duration::from_millis(40),
        };
        let aborted = |message: &str| End::Aborted { code: 3, message: message.into() };
        for (end, acknowledged_bytes, asked_again, want) in [
            (End::Complete, 250_000, false, Some((Step::Done, "sent snponly.efi, 244.1 KiB, in 40 ms (5.9 MiB/s)"))),
            (End::Unconfirmed, 249_000, false, Some((Step::Done, "of which 243.1 KiB were acknowledged in 40 ms"))),
            (End::Declined, 0, false, None),
            (End::Displaced, 0, false, None),
            (End::Unanswered(First::Oack), 0, true, None),
            (
                End::Unanswered(First::Oack),
                0,
                false,
                Some((Step::Failed, "asked for snponly.efi and never acknowledged the offered options")),
            ),
            (
                End::Unanswered(First::Block),
                0,
                true,
                Some((Step::Failed, "asked for snponly.efi and never acknowledged the first block")),
            ),
            (End::Silence, 1468, false, Some((Step::Failed, "1.4 KiB of 244.1 KiB acknowledged"))),
            (aborted("disk full"), 0, false, Some((Step::Failed, "with TFTP error 3: \"disk full\""))),
            (aborted(""), 0, false, Some((Step::Failed, "with TFTP error 3"))),
        ] {
            let ended = Ended { end, acknowledged_bytes, asked_again, ..ended.clone() };
            let told = ended.told();
            assert_eq!(told.as_ref().map(|told| told.step), want.map(|(step, _)| step), "{ended:?}");
            if let (Some(told), Some((_, part))) = (told, want) {
                assert!(told.message.contains(part), "{}", told.message);
            }
        }
    }

    #[test]
    fn no_time_at_all_is_a_speed() {
        assert_eq!(speed(1024, Duration::ZERO), "0 ms (976.5 MiB/s)");
    }
}
