//! What a comparison came to: pure arithmetic over its rounds, as a line for programs and a row for people.

use serde::Serialize;

use super::Bench;

/// One round's two measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    pub ours: f64,
    pub rival: f64,
}

/// Which way a measurement is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
}

impl Round {
    /// How many times as good as the rival we are: above 1 is better, whatever is measured.
    fn ratio(self, better: Better) -> f64 {
        match better {
            Better::More => self.ours / self.rival,
            Better::Less => self.rival / self.ours,
        }
    }
}

/// A benchmark's result. One that couldn't be measured has no ratio, says why, and holds nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: &'static str,
    pub rival: &'static str,
    /// The median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// The least and the greatest of them.
    pub range: Option<[f64; 2]>,
    pub goal: f64,
    pub holds: bool,
    pub rounds: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The medians themselves and their unit: for people to see the order of magnitude, and comparable with nothing that was
    /// measured elsewhere.
    #[serde(skip)]
    pub medians: Option<(Round, &'static str)>,
}

impl Row {
    pub fn new(bench: &Bench, rounds: &[Round]) -> Self {
        let ratios: Vec<_> = rounds.iter().map(|round| round.ratio(bench.better)).collect();
        let Some(ratio) = median(&ratios).map(rounded) else {
            return Self::unmeasured(bench, "no round was run".into());
        };
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let side = |of: fn(&Round) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
        let medians = side(|r| r.ours).zip(side(|r| r.rival));
        Self {
            ratio: Some(ratio),
            range: Some([rounded(least), rounded(greatest)]),
            // By the figure that is shown: nobody should have to wonder about 1.5 that isn't 1.5.
            holds: ratio >= bench.goal,
            rounds: rounds.len(),
            why: None,
            medians: medians.map(|(ours, rival)| (Round { ours, rival }, bench.unit)),
            ..Self::unmeasured(bench, String::new())
        }
    }

    pub fn unmeasured(bench: &Bench, why: String) -> Self {
        let Bench { name, rival, goal, .. } = *bench;
        Self { name, rival, ratio: None, range: None, goal, holds: false, rounds: 0, why: Some(why), medians: None }
    }

    pub const HEAD: [&'static str; 9] =
        ["NAME", "RIVAL", "OURS", "RIVAL'S", "RATIO", "RANGE", "GOAL", "HOLDS", "ROUNDS"];

    pub fn cells(&self) -> [String; 9] {
        let medians =
            self.medians.map(|(round, unit)| [round.ours, round.rival].map(|n| format!("{} {unit}", short(n))));
        let [ours, rivals] = medians.unwrap_or_default();
        let range = self.range.map(|[least, greatest]| format!("{least:.2} to {greatest:.2}"));
        [
            self.name.to_owned(),
            self.rival.to_owned(),
            ours,
            rivals,
            self.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
            range.unwrap_or_default(),
            format!("{:.2}", self.goal),
            if self.holds { "yes" } else { "no" }.to_owned(),
            self.rounds.to_string(),
        ]
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let lower = if sorted.len().is_multiple_of(2) { *sorted.get(middle - 1)? } else { upper };
    Some(f64::midpoint(lower, upper))
}

/// To two decimals: the third is noise.
fn rounded(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}

/// Three digits, or all that are before the point.
fn short(n: f64) -> String {
    match n.abs() {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(better: Better, goal: f64) -> Bench {
        Bench {
            name: "boot.test",
            what: "nothing",
            rival: "nobody",
            unit: "/s",
            better,
            goal,
            rounds: 5,
            contest: || anyhow::bail!("there is none"),
        }
    }

    fn rounds(pairs: &[(f64, f64)]) -> Vec<Round> {
        pairs.iter().map(|&(ours, rival)| Round { ours, rival }).collect()
    }

    #[test]
    fn a_row_is_the_median_of_its_rounds_with_their_range() {
        use Better::{Less, More};
        for (name, better, goal, pairs, ratio, range, holds) in [
            ("one round", More, 1.5, vec![(30.0, 20.0)], 1.5, [1.5, 1.5], true),
            ("odd", More, 2.0, vec![(30.0, 10.0), (10.0, 10.0), (20.0, 10.0)], 2.0, [1.0, 3.0], true),
            ("even", More, 2.0, vec![(10.0, 10.0), (20.0, 10.0)], 1.5, [1.0, 2.0], false),
            ("paired, not medians of sides", More, 1.0, vec![(10.0, 20.0), (40.0, 80.0)], 0.5, [0.5, 0.5], false),
            ("less is better", Less, 1.0, vec![(20.0, 30.0)], 1.5, [1.5, 1.5], true),
            ("as it is shown", More, 1.5, vec![(1.4951, 1.0)], 1.5, [1.5, 1.5], true),
            ("just missed", More, 1.5, vec![(1.494, 1.0)], 1.49, [1.49, 1.49], false),
        ] {
            let row = Row::new(&bench(better, goal), &rounds(&pairs));
            assert_eq!((row.ratio, row.range, row.holds), (Some(ratio), Some(range), holds), "{name}");
            assert_eq!(row.rounds, pairs.len(), "{name}");
        }
    }

    #[test]
    fn a_line_of_json_for_each_row() {
        let bench = bench(Better::More, 1.5);
        for (name, row, want) in [
            (
                "measured",
                Row::new(&bench, &rounds(&[(30.0, 10.0), (20.0, 10.0)])),
                r#"{"name":"boot.test","rival":"nobody","ratio":2.5,"range":[2.0,3.0],"goal":1.5,"holds":true,"rounds":2}"#,
            ),
            (
                "not measured",
                Row::unmeasured(&bench, "no package has \"it\"".into()),
                r#"{"name":"boot.test","rival":"nobody","ratio":null,"range":null,"goal":1.5,"holds":false,"rounds":0,"why":"no package has \"it\""}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&row).expect("JSON"), want, "{name}");
        }
    }

    #[test]
    fn people_see_figures_with_their_unit() {
        let bench = bench(Better::More, 1.5);
        for (name, row, want) in [
            (
                "measured",
                Row::new(&bench, &rounds(&[(9123.4, 12.34), (9123.4, 12.34)])),
                ["9123 /s", "12.3 /s", "739.34", "739.34 to 739.34", "1.50", "yes", "2"],
            ),
            ("not measured", Row::unmeasured(&bench, "no such program".into()), ["", "", "-", "", "1.50", "no", "0"]),
        ] {
            assert_eq!(row.cells()[2..], want, "{name}");
        }
    }
}
