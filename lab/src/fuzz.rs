//! Every parser of what strangers send, fed with inputs that libFuzzer makes up, for a short time each.
//!
//! The targets are those of `tests/fuzz`, in the layout of cargo-fuzz. That wants a nightly compiler, for the sanitizers.
//! What code with next to no `unsafe` needs of it is coverage, by which libFuzzer knows an input that leads further, and
//! checks of overflow; both are there in stable Rust.

use std::collections::VecDeque;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::words;
use serde::Deserialize;

use crate::kit::repository;

/// For each target, where nobody says otherwise.
pub const SECONDS: u32 = 5;

const PACKAGE: &str = "drophammer-fuzz";
const ROOM: &str = "tests/fuzz";
const TARGET_DIR: &str = "target/fuzz";

/// As `cargo fuzz build --sanitizer none` has them.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// Which inputs are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Luck {
    /// The same ones every time, so that a change is judged by what it changed.
    Fixed,
    /// Others every time.
    Fresh,
}

/// Runs every target, or the one of this name, and fails with all that they found.
pub fn fuzz(name: Option<&str>, seconds: u32, luck: Luck, say: &mut dyn FnMut(&str)) -> Result<()> {
    let repository = repository()?;
    let manifest = repository.join(ROOM).join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let names = chosen(targets(&text).with_context(|| format!("understanding {}", manifest.display()))?, name)?;
    say(&format!("building {} (the first time takes some minutes)", words::count(names.len(), "target")));
    let programs = build(&repository, &names)?;

    let todo = Mutex::new(VecDeque::from(names));
    let (done, verdicts) = mpsc::channel();
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut found = vec![];
    thread::scope(|scope| {
        for _ in 0..workers {
            let (todo, done) = (&todo, done.clone());
            let (repository, programs) = (&repository, &programs);
            scope.spawn(move || {
                loop {
                    let next = todo.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(name) = next else { return };
                    let verdict = run(repository, &programs.join(&name), &name, seconds, luck);
                    if done.send((name, verdict)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for (name, verdict) in verdicts {
            match verdict {
                Ok(said) => say(&format!("{name}: {said}")),
                Err(error) => found.push(format!("{error:#}")),
            }
        }
    });
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// The programs in a cargo-fuzz manifest.
fn targets(manifest: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        bin: Vec<Bin>,
    }
    #[derive(Deserialize)]
    struct Bin {
        name: String,
    }
    let manifest: Manifest = toml::from_str(manifest)?;
    Ok(manifest.bin.into_iter().map(|bin| bin.name).collect())
}

fn chosen(all: Vec<String>, name: Option<&str>) -> Result<Vec<String>> {
    match name {
        None => Ok(all),
        Some(name) if all.iter().any(|known| known == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("there is no target {name} in {ROOM}; there are {}", all.join(", ")),
    }
}

/// Returns the directory with the programs.
fn build(repository: &Path, names: &[String]) -> Result<PathBuf> {
    // With a target that is named, build scripts and macros are built without the flags.
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output().context("starting rustc")?;
    let host = String::from_utf8_lossy(&host.stdout).trim().to_owned();
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repository).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo.args(["build", "--locked", "--quiet", "--package", PACKAGE, "--features", "libfuzzer", "--profile", "fuzz"]);
    cargo.args(["--target", &host, "--target-dir", TARGET_DIR]);
    cargo.args(names.iter().flat_map(|name| ["--bin", name]));
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "building {PACKAGE} failed ({status}): the compiler's own words are above");
    Ok(repository.join(TARGET_DIR).join(host).join("fuzz"))
}

fn run(repository: &Path, program: &Path, name: &str, seconds: u32, luck: Luck) -> Result<String> {
    let found = repository.join(TARGET_DIR).join("found");
    fs::create_dir_all(&found).with_context(|| format!("making {}", found.display()))?;
    // What libFuzzer comes across it adds to its corpus.
    let corpus = tempfile::tempdir().context("making a directory for inputs")?;
    let seeds = repository.join(ROOM).join("corpus").join(name);
    copy(&seeds, corpus.path()).with_context(|| format!("copying {}", seeds.display()))?;
    // To libFuzzer 0 is none.
    let seed = u32::from(luck == Luck::Fixed);
    // Inputs have up to 4 KiB, or are as long as the longest seed.
    let output = Command::new(program)
        .args([format!("-max_total_time={seconds}"), format!("-seed={seed}")])
        .args(["-rss_limit_mb=512", "-timeout=5"])
        .arg(format!("-artifact_prefix={}/{name}-", found.display()))
        .arg(corpus.path())
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    verdict(name, program, output.status, &String::from_utf8_lossy(&output.stderr))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// What a run comes to, from what libFuzzer says: figures, or a sentence with the input.
fn verdict(name: &str, program: &Path, status: ExitStatus, log: &str) -> Result<String> {
    if status.success() {
        let done = log.lines().find_map(|line| line.strip_prefix('#')?.split_once("DONE"));
        let (inputs, figures) = done.with_context(|| format!("fuzzing {name}: it ended before its time"))?;
        let mut figures = figures.split_whitespace().skip_while(|word| *word != "cov:");
        let edges = figures.nth(1).unwrap_or("no");
        let inputs = inputs.trim().parse().map_or(inputs.to_owned(), words::grouped);
        return Ok(format!("{inputs} inputs, {edges} edges"));
    }
    let why = complaint(log).unwrap_or_else(|| status.to_string());
    let Some(input) = log.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path))
    else {
        bail!("fuzzing {name}: {why}");
    };
    bail!(
        "fuzzing {name}: {why}\n  the input is in {input}\n  run it again: {} {input}\n  once that is put right, the input is \
         a good seed for {ROOM}/corpus/{name}",
        program.display()
    )
}

/// The panic's place and words, or libFuzzer's own: out of time, out of memory.
fn complaint(log: &str) -> Option<String> {
    const LONGEST: usize = 400;
    let own = || log.lines().find_map(|line| line.split_once("ERROR: libFuzzer: ")).map(|(_, why)| why.to_owned());
    let panic = log.split_once("panicked at ").map(|(_, panic)| {
        let ends = |line: &&str| {
            !line.starts_with("stack backtrace:") && !line.starts_with("note:") && !line.starts_with("==")
        };
        let lines: Vec<_> = panic.lines().take_while(ends).map(str::trim).collect();
        lines.join(" ").trim().chars().take(LONGEST).collect()
    });
    panic.or_else(own)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const DONE: &str = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 27Mb\n\
        #1072094\tDONE   cov: 469 ft: 2613 corp: 74/8659b lim: 381 exec/s: 18023 rss: 28Mb\n\
        Done 1072094 runs in 6 second(s)\n";
    const PANIC: &str = "INFO: Seed: 1\n\n\
        thread '<unnamed>' (12699) panicked at tests/fuzz/fuzz_targets/dhcp.rs:116:5:\n\
        assertion `left == right` failed\n  left: [1]\n right: []\nstack backtrace:\n   0: main\n\
        ==12699== ERROR: libFuzzer: deadly signal\n    #0 0x1 in main\n\
        artifact_prefix='/r/found/dhcp-'; Test unit written to /r/found/dhcp-crash-11f4\nBase64: DQ==\n";
    const SLOW: &str = "ALARM: working on the last Unit for 5 seconds\n==7== ERROR: libFuzzer: timeout after 5 seconds\n\
        artifact_prefix='/r/found/dhcp-'; Test unit written to /r/found/dhcp-timeout-22\n";

    #[test]
    fn what_was_found_is_said_with_its_input() {
        for (name, code, log, want) in [
            ("nothing", 0, DONE, Ok("1,072,094 inputs, 469 edges")),
            (
                "a panic",
                77,
                PANIC,
                Err(
                    "fuzzing dhcp: tests/fuzz/fuzz_targets/dhcp.rs:116:5: assertion `left == right` failed left: [1] right: []\n  \
                     the input is in /r/found/dhcp-crash-11f4\n  \
                     run it again: /r/dhcp /r/found/dhcp-crash-11f4\n  \
                     once that is put right, the input is a good seed for tests/fuzz/corpus/dhcp",
                ),
            ),
            (
                "no end",
                70,
                SLOW,
                Err("fuzzing dhcp: timeout after 5 seconds\n  \
                     the input is in /r/found/dhcp-timeout-22\n  \
                     run it again: /r/dhcp /r/found/dhcp-timeout-22\n  \
                     once that is put right, the input is a good seed for tests/fuzz/corpus/dhcp"),
            ),
            ("an end with no word", 0, "INFO: Seed: 1\n", Err("fuzzing dhcp: it ended before its time")),
            ("no start", 127, "", Err("fuzzing dhcp: exit status: 127")),
        ] {
            let got = verdict("dhcp", Path::new("/r/dhcp"), ExitStatus::from_raw(code << 8), log);
            assert_eq!(
                got.map_err(|error| error.to_string()),
                want.map(str::to_owned).map_err(str::to_owned),
                "{name}"
            );
        }
    }

    #[test]
    fn targets_are_chosen_by_name() {
        let all =
            || targets("[package]\nname = \"x\"\n[[bin]]\nname = \"a\"\n[[bin]]\nname = \"b\"\n").expect("targets");
        assert_eq!(chosen(all(), None).expect("all"), ["a", "b"]);
        assert_eq!(chosen(all(), Some("b")).expect("one"), ["b"]);
        assert!(chosen(all(), Some("c")).expect_err("none").to_string().contains("there are a, b"));
    }

    #[test]
    fn every_target_is_a_file_and_has_seeds() {
        let room = repository().expect("a source tree").join(ROOM);
        let listed = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
            entries
                .map(|entry| entry.expect("an entry").path().file_stem().expect("a name").display().to_string())
                .collect()
        };
        let mut files = listed(&room.join("fuzz_targets"));
        files.sort();
        let manifest = fs::read_to_string(room.join("Cargo.toml")).expect("a manifest");
        assert_eq!(targets(&manifest).expect("targets"), files);
        for name in files {
            assert!(!listed(&room.join("corpus").join(&name)).is_empty(), "{name}");
        }
    }
}
