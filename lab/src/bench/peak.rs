//! Looking for the highest rate that a server bears.

use anyhow::{Result, bail};

/// From one rate to the next while the answers are all alike.
const STRIDE: f64 = 1.25;
/// The search ends when the lowest rate that was too high is no further than this from the highest that wasn't.
const CLOSE: f64 = 1.06;
const LEAST: f64 = 10.0;
const MOST: f64 = 1e6;

/// The highest rate at which `bears` says how many came through, to about five percent: up or down from `start` until the
/// answer changes, and then halfway in between.
pub(super) fn find(start: f64, mut bears: impl FnMut(f64) -> Result<Option<f64>>) -> Result<f64> {
    let mut rate = start;
    let (mut good, mut bad) = (None, None);
    loop {
        match bears(rate)? {
            Some(through) => good = Some((rate, through)),
            None => bad = Some(rate),
        }
        rate = match (good, bad) {
            (Some((low, through)), Some(high)) if high / low < CLOSE => return Ok(through),
            (Some((low, _)), Some(high)) => f64::sqrt(low * high),
            (Some((low, _)), None) => low * STRIDE,
            (None, Some(high)) => high / STRIDE,
            // One of them was just set.
            (None, None) => rate,
        };
        if rate < LEAST {
            bail!("it loses requests even at {LEAST} a second");
        }
        if rate > MOST {
            bail!("it loses nothing even at {MOST} a second, which can't be");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_is_found_from_anywhere() {
        for (name, start, edge, most_probes) in [
            ("from there", 1000.0, 1000.0, 4),
            ("from below", 1000.0, 5000.0, 12),
            ("from far above", 20_000.0, 300.0, 24),
            ("from a little above", 1000.0, 900.0, 5),
        ] {
            let mut probes = 0;
            let found = find(start, |rate| {
                probes += 1;
                Ok((rate <= edge).then_some(rate))
            });
            let found = found.expect(name);
            assert!(found <= edge && found * CLOSE > edge, "{name}: {found}");
            assert!(probes <= most_probes, "{name}: {probes}");
        }
    }

    #[test]
    fn a_search_without_end_ends() {
        let dead = find(1000.0, |_| Ok(None)).expect_err("bears nothing").to_string();
        assert_eq!(dead, "it loses requests even at 10 a second");
        find(1000.0, |rate| Ok(Some(rate))).expect_err("bears everything");
        let failed = find(1000.0, |_| bail!("no network")).expect_err("can't be measured").to_string();
        assert_eq!(failed, "no network");
    }
}
