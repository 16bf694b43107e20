//! How results look: tables for people, JSON for programs; and where the log goes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: an object a line.
    Json,
}

/// How a result is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// With all columns there are.
    Wide,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Shown {
    /// How the answer is shown.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// The same as `--output json`.
    #[arg(long, global = true, conflicts_with = "output")]
    json: bool,
}

impl Shown {
    pub(crate) fn format(self) -> Format {
        if self.json { Format::Json } else { self.output.unwrap_or_default() }
    }
}

/// The log goes to standard error; `RUST_LOG` says in what detail.
pub(crate) fn log(default: LevelFilter, format: LogFormat) {
    let filter = EnvFilter::builder().with_default_directive(default.into()).from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

pub(crate) fn json(value: &(impl Serialize + ?Sized)) -> Result<()> {
    line(&serde_json::to_string_pretty(value).context("writing the answer as JSON")?)
}

/// How far something is that takes a while, on a terminal and nowhere else.
#[derive(Debug)]
pub(crate) struct Meter(ProgressBar);

impl Meter {
    pub(crate) fn new(what: &'static str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bytes} {msg}, {bytes_per_sec}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Of something that says itself how far it is.
    pub(crate) fn at(&self, bytes: u64, what: &'static str) {
        self.0.set_message(what);
        self.0.set_position(bytes);
    }

    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// `YYYY-MM-DD HH:MM:SS`, UTC.
pub(crate) fn moment(unix_ms: u64) -> String {
    format!("{} {}", date(unix_ms), clock(unix_ms).get(..8).unwrap_or_default())
}

/// `YYYY-MM-DD`, UTC.
pub(crate) fn date(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(seconds).map_or_else(|_| String::new(), |at| at.date().to_string())
}

/// `HH:MM:SS.mmm`, UTC.
pub(crate) fn clock(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// Columns as wide as their widest cell; the last one isn't padded.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Result<()> {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let format = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        text.trim_end().to_owned()
    };
    line(&format(head))?;
    rows.iter().try_for_each(|row| line(&format(row.each_ref().map(String::as_str))))
}

/// A reader that went away (`| head`) is the end of our work, not an error of it.
pub(crate) fn line(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("writing to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (ms, want) in [
            (0, ("1970-01-01 00:00:00", "00:00:00.000")),
            (86_399_999, ("1970-01-01 23:59:59", "23:59:59.999")),
            (1_700_000_000_123, ("2023-11-14 22:13:20", "22:13:20.123")),
        ] {
            assert_eq!((moment(ms).as_str(), clock(ms).as_str()), want);
        }
        assert!(!moment(u64::MAX).is_empty(), "whatever a drive's agent says");
    }
}
