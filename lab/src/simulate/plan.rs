//! Which machine comes when, and what befalls it. Pure: the same for the same figures, so that a run can be had again.

use std::time::Duration;

/// What goes wrong with a machine, if anything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Smooth,
    /// Its drives can't be erased: it's quarantined.
    EraseFails,
    /// Its connection is cut in the middle of its inventory, and it goes on with another one.
    CutOff,
    /// It's gone in the middle of its erase, without a word, and boots again.
    Vanishes,
}

/// So many in a hundred fail, in each of the three ways about as often.
pub(super) fn fate(machine: u32, percent: u8) -> Fate {
    match chosen(machine, percent) {
        None => Fate::Smooth,
        Some(place) => match place % 3 {
            0 => Fate::EraseFails,
            1 => Fate::CutOff,
            _ => Fate::Vanishes,
        },
    }
}

/// Whether a machine loses its power once while it waits.
pub(super) fn reboots(machine: u32, percent: u8) -> bool {
    chosen(machine, percent).is_some()
}

/// When a machine is switched on: all of them spread evenly.
pub(super) fn arrival(machine: u32, machines: u32, spread: Duration) -> Duration {
    spread.mul_f64(f64::from(machine) / f64::from(machines.max(1)))
}

/// `percent` of every hundred, spread evenly: the how-manieth of them this is.
fn chosen(machine: u32, percent: u8) -> Option<u64> {
    let up_to = |machine: u64| machine * u64::from(percent) / 100;
    let before = up_to(machine.into());
    (up_to(u64::from(machine) + 1) > before).then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_so_many_fail_and_each_way_in_turn() {
        for (percent, machines, want) in
            [(0, 1000, [0, 0, 0]), (3, 100, [1, 1, 1]), (20, 30, [2, 2, 2]), (50, 12, [2, 2, 2]), (100, 9, [3, 3, 3])]
        {
            let fates: Vec<Fate> = (0..machines).map(|machine| fate(machine, percent)).collect();
            let many = [Fate::EraseFails, Fate::CutOff, Fate::Vanishes]
                .map(|wanted| fates.iter().filter(|fate| **fate == wanted).count());
            assert_eq!(many, want, "{percent} % of {machines}");
        }
        assert_eq!((0..50).filter(|machine| reboots(*machine, 10)).count(), 5);
    }

    #[test]
    fn arrivals_are_spread() {
        for (name, machine, machines, spread, want) in [
            ("all at once", 999, 1000, 0, 0),
            ("the first", 0, 10, 100, 0),
            ("in the middle", 5, 10, 100, 50),
            ("the last", 9, 10, 100, 90),
            ("nobody", 0, 0, 100, 0),
        ] {
            let came = arrival(machine, machines, Duration::from_secs(spread));
            assert_eq!(came, Duration::from_secs(want), "{name}");
        }
    }
}
