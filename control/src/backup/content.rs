//! What is in a backup: lines of JSON, packed by zstd. The first says what it is, the last that nothing is missing.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Contents;

const VERSION: u32 = 1;
const LEVEL: i32 = 3;
/// Longer than anything that the store takes.
const LONGEST_LINE: u64 = 96 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Begin { version: u32, taken_ms: u64 },
    File { name: String, text: String },
    Entry { key: String, value: Box<RawValue> },
    End { files: u64, entries: u64 },
}

/// What is restored.
#[derive(Debug)]
pub(super) enum Piece {
    File { name: String, text: String },
    Entry { key: String, value: Box<RawValue> },
}

/// Without [`Writer::finish`] what it wrote is no backup.
pub(super) struct Writer<W: Write> {
    to: zstd::Encoder<'static, W>,
    contents: Contents,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W, taken_ms: u64) -> Result<Self> {
        let to = zstd::Encoder::new(to, LEVEL)?;
        let mut writer = Self { to, contents: Contents { taken_ms, ..Contents::default() } };
        writer.line(&Line::Begin { version: VERSION, taken_ms })?;
        Ok(writer)
    }

    pub(super) fn file(&mut self, name: &str, text: String) -> Result<()> {
        self.contents.files += 1;
        self.line(&Line::File { name: name.into(), text })
    }

    /// In the order of their keys.
    pub(super) fn entry(&mut self, key: String, value: Box<RawValue>) -> Result<()> {
        self.contents.count(&key);
        self.line(&Line::Entry { key, value })
    }

    pub(super) fn finish(mut self) -> Result<Contents> {
        let Contents { files, entries, .. } = self.contents;
        self.line(&Line::End { files, entries })?;
        self.to.finish()?.flush()?;
        Ok(self.contents)
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        serde_json::to_writer(&mut self.to, line)?;
        Ok(self.to.write_all(b"\n")?)
    }
}

/// All of it in order. What was given to `each` before an error is worth nothing.
pub(super) fn read(from: impl Read, mut each: impl FnMut(Piece) -> Result<()>) -> Result<Contents> {
    let unpacked = zstd::Decoder::new(from).context("unpacking it")?;
    let mut lines = Lines { from: BufReader::new(unpacked), line: Vec::new() };
    let mut contents = match lines.next()? {
        Some(Line::Begin { version: VERSION, taken_ms }) => Contents { taken_ms, ..Contents::default() },
        Some(Line::Begin { version, .. }) => {
            bail!("its content is of format {version}; this program knows format {VERSION}")
        }
        _ => bail!("it doesn't say what it is"),
    };
    let (mut names, mut last) = (BTreeSet::new(), None::<String>);
    loop {
        match lines.next()?.context("it ends in the middle")? {
            Line::Begin { .. } => bail!("it begins twice"),
            Line::File { name, text } => {
                ensure!(names.insert(name.clone()), "it has the file {name:?} twice");
                contents.files += 1;
                each(Piece::File { name, text })?;
            }
            Line::Entry { key, value } => {
                ensure!(last.as_ref().is_none_or(|last| *last < key), "its entry {key:?} isn't where it belongs");
                contents.count(&key);
                last = Some(key.clone());
                each(Piece::Entry { key, value })?;
            }
            Line::End { files, entries } => {
                ensure!(
                    (files, entries) == (contents.files, contents.entries),
                    "it says that it has {entries} entries and {files} files, and has {} and {}",
                    contents.entries,
                    contents.files
                );
                ensure!(lines.next()?.is_none(), "it goes on behind its end");
                return Ok(contents);
            }
        }
    }
}

struct Lines<R> {
    from: R,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<Line>> {
        self.line.clear();
        self.from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.line)?;
        match self.line.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(serde_json::from_slice(&self.line).context("a line of it isn't understood")?)),
            Some(_) => bail!("a line of it has no end"),
        }
    }
}

/// Nothing that is read goes out of order or beyond what it says of itself.
#[cfg(fuzzing)]
pub(super) fn fuzz(lines: &[u8]) {
    let packed = zstd::encode_all(lines, 1).expect("packs");
    for bytes in [lines, packed.as_slice()] {
        let mut pieces = 0;
        let done = read(bytes, |_| {
            pieces += 1;
            Ok(())
        });
        assert!(done.is_err() || done.is_ok_and(|contents| contents.files + contents.entries == pieces));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(lines: &[&str]) -> Vec<u8> {
        zstd::encode_all(lines.join("\n").as_bytes(), LEVEL).expect("packs")
    }

    #[test]
    fn what_was_written_is_read() {
        let value = |text: &str| RawValue::from_string(text.into()).expect("JSON");
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, 5).expect("begins");
        writer.file("ca.pem", "a\nb".into()).expect("writes");
        writer.entry("machine/a".into(), value("{\"a\":1.50}")).expect("writes");
        writer.entry("turn".into(), value("3")).expect("writes");
        let wrote = writer.finish().expect("ends");
        let mut found = Vec::new();
        let told = |piece: Piece| {
            found.push(match piece {
                Piece::File { name, text } => format!("{name}={text}"),
                Piece::Entry { key, value } => format!("{key}={value}"),
            });
            Ok(())
        };
        assert_eq!(read(file.as_slice(), told).expect("reads"), wrote);
        assert_eq!(wrote, Contents { taken_ms: 5, files: 1, entries: 2, machines: 1 });
        assert_eq!(found, ["ca.pem=a\nb", "machine/a={\"a\":1.50}", "turn=3"]);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        const BEGIN: &str = r#"{"begin":{"version":1,"taken_ms":5}}"#;
        const A: &str = r#"{"entry":{"key":"a","value":1}}"#;
        const B: &str = r#"{"entry":{"key":"b","value":1}}"#;
        const FILE: &str = r#"{"file":{"name":"ca.key","text":""}}"#;
        const TWO: &str = r#"{"end":{"files":0,"entries":2}}"#;
        for (name, lines, want) in [
            ("empty", vec![""], "doesn't say what it is"),
            ("no beginning", vec![A, TWO, ""], "doesn't say what it is"),
            ("a later format", vec![r#"{"begin":{"version":2,"taken_ms":5}}"#, ""], "format 2"),
            ("no end", vec![BEGIN, A, B, ""], "ends in the middle"),
            ("one too few", vec![BEGIN, A, TWO, ""], "2 entries and 0 files, and has 1 and 0"),
            ("twice the same", vec![BEGIN, A, A, TWO, ""], "isn't where it belongs"),
            ("out of order", vec![BEGIN, B, A, TWO, ""], "isn't where it belongs"),
            ("a file twice", vec![BEGIN, FILE, FILE, TWO, ""], "twice"),
            ("begins twice", vec![BEGIN, BEGIN, TWO, ""], "begins twice"),
            ("goes on", vec![BEGIN, A, B, TWO, A, ""], "behind its end"),
            ("the last line cut", vec![BEGIN, A, B, TWO], "no end"),
            ("no JSON", vec![BEGIN, "x", ""], "isn't understood"),
            ("a line of another kind", vec![BEGIN, r#"{"key":"a"}"#, ""], "isn't understood"),
        ] {
            let why = format!("{:#}", read(packed(&lines).as_slice(), |_| Ok(())).expect_err(name));
            assert!(why.contains(want), "{name}: {why}");
        }
        let whole = packed(&[BEGIN, A, B, TWO, ""]);
        read(whole.as_slice(), |_| Ok(())).expect("whole");
        for cut in 0..whole.len() {
            read(&whole[..cut], |_| Ok(())).expect_err("cut short");
        }
    }
}
