//! What came of a simulation: as an object for programs, and as tables for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::calls::Figures;
use super::world::Usage;

/// Discrepancies that are told by name; of more it's told how many.
const MOST_TOLD: usize = 10;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub machines: u32,
    pub etcd: bool,
    pub took_s: f64,
    /// How many machines ended how, by themselves.
    pub ended: BTreeMap<String, usize>,
    pub calls: Vec<Figures>,
    /// Of the server while all machines waited.
    pub waiting_resident_mb: f64,
    pub waiting_cpu_percent: Option<f64>,
    pub server: Usage,
    pub simulator: Usage,
    /// What isn't where it should be, in sentences.
    pub discrepancies: Vec<String>,
}

impl Report {
    pub const HEAD: [&'static str; 8] = ["CALL", "COUNT", "PER SECOND", "P50", "P99", "P99.9", "MAX", "ERRORS"];

    pub fn rows(&self) -> Vec<[String; 8]> {
        let ms = |figure: f64| if figure < 10.0 { format!("{figure:.2} ms") } else { format!("{figure:.0} ms") };
        let row = |call: &Figures| {
            let [p50, p99, p999, max] = if call.count == 0 {
                ["", "", "", ""].map(str::to_owned)
            } else {
                [call.p50_ms, call.p99_ms, call.p999_ms, call.max_ms].map(ms)
            };
            let errors = call.errors.values().sum::<u64>().to_string();
            let per_second = format!("{:.0}", call.per_second);
            [call.call.clone(), call.count.to_string(), per_second, p50, p99, p999, max, errors]
        };
        self.calls.iter().map(row).collect()
    }

    /// Everything that the table has no column for.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for call in &self.calls {
            lines.extend(call.errors.iter().map(|(why, many)| format!("{}: {many} × {why}", call.call)));
        }
        let ended: Vec<String> = self.ended.iter().map(|(stage, many)| format!("{many} {stage}")).collect();
        let on = if self.etcd { "three members of etcd" } else { "a file" };
        lines.push(format!(
            "{} machines on a server with its state in {on}, {:.1} s: {}",
            self.machines,
            self.took_s,
            ended.join(", ")
        ));
        let cpu = self.waiting_cpu_percent.map(|percent| format!(" and {percent:.1} % of a processor"));
        lines.push(format!(
            "while all of them waited the server had {:.0} MB{}",
            self.waiting_resident_mb,
            cpu.unwrap_or_default()
        ));
        for (name, Usage { resident_mb, peak_mb, cpu_s }) in [("server", self.server), ("simulator", self.simulator)] {
            lines.push(format!(
                "{name}: {resident_mb:.0} MB resident, {peak_mb:.0} MB at its peak, {cpu_s:.1} s of processor time"
            ));
        }
        lines
    }

    /// One sentence, if anything isn't as it should be.
    pub fn verdict(&self) -> Option<String> {
        let many = self.discrepancies.len();
        if many == 0 {
            return None;
        }
        let told: Vec<&str> = self.discrepancies.iter().take(MOST_TOLD).map(String::as_str).collect();
        let more = many.saturating_sub(MOST_TOLD);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Some(format!("not everything is where it should be: {}{more}", told.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(discrepancies: usize) -> Report {
        let usage = Usage { resident_mb: 1.4, peak_mb: 2.6, cpu_s: 0.31 };
        let (count, per_second) = (7, 3.5);
        let errors = BTreeMap::from([("no connection within 10 s".to_owned(), 2)]);
        let figures = Figures {
            call: "enrol".into(),
            count,
            per_second,
            p50_ms: 1.234,
            p99_ms: 12.34,
            p999_ms: 123.4,
            max_ms: 1234.0,
            errors,
        };
        Report {
            machines: 9,
            etcd: false,
            took_s: 2.25,
            ended: [("running".to_owned(), 5), ("waiting".to_owned(), 4)].into(),
            calls: vec![figures],
            waiting_resident_mb: 31.2,
            waiting_cpu_percent: Some(1.04),
            server: usage,
            simulator: usage,
            discrepancies: (0..discrepancies).map(|n| format!("m{n} is gone")).collect(),
        }
    }

    #[test]
    fn people_see_all_of_it() {
        let report = report(0);
        let row = ["enrol", "7", "4", "1.23 ms", "12 ms", "123 ms", "1234 ms", "2"];
        assert_eq!(report.rows(), [row.map(str::to_owned)]);
        assert_eq!(
            report.lines(),
            [
                "enrol: 2 × no connection within 10 s",
                "9 machines on a server with its state in a file, 2.2 s: 5 running, 4 waiting",
                "while all of them waited the server had 31 MB and 1.0 % of a processor",
                "server: 1 MB resident, 3 MB at its peak, 0.3 s of processor time",
                "simulator: 1 MB resident, 3 MB at its peak, 0.3 s of processor time",
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_one_sentence() {
        for (many, want) in [
            (0, None),
            (2, Some("not everything is where it should be: m0 is gone; m1 is gone")),
            (12, Some("m9 is gone; and 2 more")),
        ] {
            let verdict = report(many).verdict();
            assert_eq!(verdict.is_some(), want.is_some(), "{many}");
            assert!(verdict.unwrap_or_default().ends_with(want.unwrap_or_default()), "{many}");
        }
    }
}
