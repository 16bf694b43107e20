//! How results look: tables for people, JSON for programs; and where the log goes.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::ValueEnum;
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
