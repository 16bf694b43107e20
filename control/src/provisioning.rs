//! What provisioning events add up to, by the rules that metal-stack's users know. Pure.
//!
//! An event that isn't expected after the one before is never guessed away: it's kept as the last error, and a boot that
//! begins where none should is a crash loop, until it gets on. What ends well, or is ordered, clears both.

use drophammer_protocol::machine::State;
use drophammer_protocol::provisioning::{Liveliness, Provisioning, ProvisioningEvent as Event, Told};

/// As many as metal-stack keeps.
const MOST_KEPT: usize = 100;
/// A system that was told to go may still call for as long.
const RECLAIM_MS: u64 = 5 * 60 * 1000;
const DEAD_MS: u64 = 5 * 60 * 1000;

/// What becomes of it with one more event.
#[must_use]
pub(crate) fn after(mut road: Provisioning, event: Event, at_ms: u64, message: &str) -> Provisioning {
    let before = road.last.as_ref().map(|last| (last.event, last.at_ms));
    let told = |message: String| Told { event, at_ms, message };
    match verdict(before, event, at_ms) {
        // It's a sign of life, and no step.
        Verdict::Alive => return road,
        Verdict::Swallowed => {}
        Verdict::Expected => {
            match event {
                Event::PhonedHome | Event::PlannedReboot | Event::MachineReclaim => {
                    (road.crash_loop, road.last_error) = (false, None);
                }
                Event::PxeBooting | Event::Preparing => road.failed_reclaim = false,
                // It got on, whatever was before: metal-stack's users would have to clear that by hand.
                Event::Waiting => road.crash_loop = false,
                _ => {}
            }
            road.last = Some(told(message.to_owned()));
        }
        Verdict::Crashed => {
            road.crash_loop = true;
            road.last_error = Some(told(message.to_owned()));
        }
        Verdict::StillThere => {
            road.failed_reclaim = true;
            road.last_error = Some(told(format!("{message} [its old system still calls]")));
        }
        Verdict::Unexpected => {
            let place = before.map_or("Initial", |(event, _)| event.name());
            road.last_error = Some(told(format!("{message} [unexpectedly received in {place}]")));
            if matches!(event, Event::PxeBooting | Event::Preparing) {
                road.crash_loop = true;
                // Where it is doesn't depend on whether it should be there.
                road.last = Some(told(message.to_owned()));
            }
        }
    }
    road.log.push(told(message.to_owned()));
    let excess = road.log.len().saturating_sub(MOST_KEPT);
    road.log.drain(..excess);
    road
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Expected,
    Alive,
    Swallowed,
    Crashed,
    Unexpected,
    /// A machine that was taken back phones home.
    StillThere,
}

fn verdict(before: Option<(Event, u64)>, event: Event, at_ms: u64) -> Verdict {
    use Event as E;
    let Some((last, since_ms)) = before else {
        return match event {
            E::Alive => Verdict::Alive,
            E::Crashed => Verdict::Crashed,
            _ => Verdict::Expected,
        };
    };
    let is_expected = match event {
        E::Alive => return Verdict::Alive,
        E::Crashed => return Verdict::Crashed,
        E::PlannedReboot | E::MachineReclaim => true,
        E::PxeBooting => matches!(last, E::PlannedReboot | E::MachineReclaim | E::PxeBooting),
        E::Preparing => matches!(last, E::PxeBooting | E::PlannedReboot | E::MachineReclaim),
        E::Registering => last == E::Preparing,
        E::Waiting => last == E::Registering,
        E::Installing => matches!(last, E::Registering | E::Waiting),
        E::BootingNewKernel => last == E::Installing,
        E::PhonedHome => match last {
            E::MachineReclaim if at_ms.saturating_sub(since_ms) > RECLAIM_MS => return Verdict::StillThere,
            E::MachineReclaim
            | E::PlannedReboot
            | E::PhonedHome
            | E::PxeBooting
            | E::Preparing
            | E::Registering
            | E::Waiting => return Verdict::Swallowed,
            last => last == E::BootingNewKernel,
        },
    };
    if is_expected { Verdict::Expected } else { Verdict::Unexpected }
}

/// Whether anything is heard of a machine that should be heard of. `heard_ms` is when it last was.
pub(crate) fn liveliness(state: State, heard_ms: u64, now_ms: u64) -> Liveliness {
    match state {
        State::Discovered | State::Booting | State::Running => Liveliness::Unknown,
        State::Enrolled
        | State::Erasing
        | State::Waiting
        | State::Allocated
        | State::Installing
        | State::Releasing
        | State::Quarantined => {
            if now_ms.saturating_sub(heard_ms) > DEAD_MS {
                Liveliness::Dead
            } else {
                Liveliness::Alive
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_event_after_every_other() {
        // columns: as in `ALL`; rows: what was before. `+` is expected, `!` isn't, `x` crashes, `.` leaves it as it is.
        let want = "\
Initial            . x + + + + + + + + +
Alive              . x + + + + + + + + +
Crashed            . x + + + + + + + + +
PXE Booting        . x + + + ! ! ! ! . +
Planned Reboot     . x + + + ! ! ! ! . +
Preparing          . x ! + ! + ! ! ! . +
Registering        . x ! + ! ! + + ! . +
Waiting            . x ! + ! ! ! + ! . +
Installing         . x ! + ! ! ! ! + ! +
Booting New Kernel . x ! + ! ! ! ! ! + +
Phoned Home        . x ! + ! ! ! ! ! . +
Machine Reclaim    . x + + + ! ! ! ! . +";
        let befores = std::iter::once(None).chain(Event::ALL.map(Some));
        let rows = befores.map(|before| {
            // Neither a sign of life nor a crash is a place to be in.
            let road = before.map_or_else(Provisioning::default, |e| after(Provisioning::default(), e, 0, ""));
            let cells =
                Event::ALL.map(|event| match verdict(road.last.as_ref().map(|l| (l.event, l.at_ms)), event, 0) {
                    Verdict::Expected => " +",
                    Verdict::Unexpected => " !",
                    Verdict::Crashed => " x",
                    Verdict::Alive | Verdict::Swallowed => " .",
                    Verdict::StillThere => " ?",
                });
            format!("{:<18}{}", before.map_or("Initial", Event::name), cells.concat())
        });
        let got = rows.collect::<Vec<_>>().join("\n");
        assert_eq!(got, want, "\n{got}");
    }

    #[test]
    fn what_they_add_up_to() {
        use Event as E;
        let minute = 60_000;
        for (name, events, last, crash_loop, failed_reclaim, error) in [
            (
                "the road",
                vec![
                    E::PxeBooting,
                    E::Preparing,
                    E::Registering,
                    E::Waiting,
                    E::Installing,
                    E::BootingNewKernel,
                    E::PhonedHome,
                ],
                E::PhonedHome,
                false,
                false,
                None,
            ),
            (
                "firmware that asks twice",
                vec![E::PxeBooting, E::PxeBooting, E::Preparing],
                E::Preparing,
                false,
                false,
                None,
            ),
            (
                "it boots again and again",
                vec![E::PxeBooting, E::Preparing, E::PxeBooting],
                E::PxeBooting,
                true,
                false,
                Some("m [unexpectedly received in Preparing]"),
            ),
            (
                "until it gets there",
                vec![
                    E::PxeBooting,
                    E::Preparing,
                    E::PxeBooting,
                    E::Preparing,
                    E::Registering,
                    E::Installing,
                    E::BootingNewKernel,
                    E::PhonedHome,
                ],
                E::PhonedHome,
                false,
                false,
                None,
            ),
            (
                "until it waits",
                vec![E::PxeBooting, E::Preparing, E::PxeBooting, E::Preparing, E::Registering, E::Waiting],
                E::Waiting,
                false,
                false,
                Some("m [unexpectedly received in Preparing]"),
            ),
            ("its agent crashes", vec![E::PxeBooting, E::Preparing, E::Crashed], E::Preparing, true, false, Some("m")),
            (
                "a step that was left out",
                vec![E::PxeBooting, E::Preparing, E::Waiting],
                E::Preparing,
                false,
                false,
                Some("m [unexpectedly received in Preparing]"),
            ),
            (
                "taken back, calling at once",
                vec![E::PhonedHome, E::MachineReclaim, E::PhonedHome],
                E::MachineReclaim,
                false,
                false,
                None,
            ),
            (
                "taken back, calling ten minutes later",
                vec![
                    E::PhonedHome,
                    E::MachineReclaim,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::PhonedHome,
                ],
                E::MachineReclaim,
                false,
                true,
                Some("m [its old system still calls]"),
            ),
            (
                "and gone at last",
                vec![
                    E::MachineReclaim,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::Alive,
                    E::PhonedHome,
                    E::PxeBooting,
                ],
                E::PxeBooting,
                false,
                false,
                Some("m [its old system still calls]"),
            ),
        ] {
            let mut road = Provisioning::default();
            for (n, event) in events.into_iter().enumerate() {
                road = after(road, event, n as u64 * minute, "m");
            }
            assert_eq!(road.last.as_ref().map(|last| last.event), Some(last), "{name}");
            assert_eq!((road.crash_loop, road.failed_reclaim), (crash_loop, failed_reclaim), "{name}");
            assert_eq!(road.last_error.map(|error| error.message).as_deref(), error, "{name}");
        }
    }

    #[test]
    fn who_should_call_and_does_not() {
        let minute = 60_000;
        for (state, silent, want) in [
            (State::Waiting, 4 * minute, Liveliness::Alive),
            (State::Waiting, 6 * minute, Liveliness::Dead),
            (State::Erasing, 6 * minute, Liveliness::Dead),
            (State::Running, 600 * minute, Liveliness::Unknown),
            (State::Discovered, 600 * minute, Liveliness::Unknown),
        ] {
            assert_eq!(liveliness(state, 1000, 1000 + silent), want, "{state}");
        }
        assert_eq!(liveliness(State::Waiting, 5000, 1000), Liveliness::Alive, "a clock that was set back");
    }

    proptest! {
        #[test]
        fn any_events_are_kept_within_bounds(events in prop::collection::vec(prop::sample::select(Event::ALL.to_vec()), 0..300)) {
            let told = events.iter().filter(|event| **event != Event::Alive).count();
            let mut road = Provisioning::default();
            for event in events {
                road = after(road, event, 0, "m");
            }
            prop_assert_eq!(road.log.len(), told.min(MOST_KEPT));
        }
    }
}
