//! `cargo verify`: everything that has to hold before a change goes in. Set-up first, then the quick checks, then tests.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::fuzz::{self, Luck};
use crate::kit::{self, Image};
use crate::{setup, tools};

/// Runs every step, or for a filter the tests whose names contain it. Stops at the first that fails, with its name.
pub fn verify(filter: Option<&str>) -> Result<()> {
    let repository = kit::repository()?;
    let begun = Instant::now();
    for step in steps(filter) {
        println!("── {}", step.name);
        let started = Instant::now();
        run(&step.work, &repository).with_context(|| format!("verify: {}", step.name))?;
        println!("   {:.1} s", started.elapsed().as_secs_f64());
    }
    println!("everything holds, in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Step {
    name: &'static str,
    work: Work,
}

#[derive(Debug, PartialEq, Eq)]
enum Work {
    SetUp,
    Cargo(Vec<String>),
    Dependencies,
    Fuzz,
    Kit,
}

/// What builds, images and the drives of virtual machines take, if nothing is there yet.
const ROOM: u64 = 16 << 30;

fn steps(filter: Option<&str>) -> Vec<Step> {
    let cargo = |name, line: &str| Step { name, work: Work::Cargo(line.split(' ').map(str::to_owned).collect()) };
    let set_up = Step { name: "set-up", work: Work::SetUp };
    let kit = Step { name: "boot files and images", work: Work::Kit };
    match filter {
        Some(filter) => {
            let mut tests = cargo("tests", "test --workspace");
            if let Work::Cargo(line) = &mut tests.work {
                line.push(filter.to_owned());
            }
            vec![set_up, kit, tests]
        }
        None => vec![
            set_up,
            cargo("format", "fmt --all --check"),
            cargo("lints", "clippy --workspace --all-targets --quiet -- -D warnings"),
            Step { name: "dependencies", work: Work::Dependencies },
            Step { name: "fuzz", work: Work::Fuzz },
            kit,
            cargo("tests", "test --workspace"),
        ],
    }
}

fn run(work: &Work, repository: &Path) -> Result<()> {
    let mut say = |line: &str| println!("   {line}");
    match work {
        Work::SetUp => {
            for place in [repository.to_owned(), env::temp_dir(), drophammer_images::cache_dir()?] {
                setup::scarce_room(&place, ROOM)?.iter().for_each(|words| say(words));
            }
            setup::ensure_host(setup::Purpose::Tests, &mut say)
        }
        Work::Cargo(arguments) => cargo(repository, arguments),
        Work::Dependencies => dependencies(repository, &mut say),
        Work::Fuzz => fuzz::fuzz(None, fuzz::SECONDS, Luck::Fixed, &mut say),
        Work::Kit => kit::prepare(&Image::ALL, &mut say).map(drop),
    }
}

fn cargo(repository: &Path, arguments: &[String]) -> Result<()> {
    let line = format!("cargo {}", arguments.join(" "));
    let path = env::join_paths(setup::programs()).context("putting together where programs are looked for")?;
    let status = Command::new("cargo")
        .args(arguments)
        .current_dir(repository)
        .env("PATH", path)
        .status()
        .with_context(|| format!("starting {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// Licences, banned and unknown sources; known vulnerabilities when their database can be had.
fn dependencies(repository: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let deny = tools::cargo_deny(say)?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&deny);
        command.current_dir(repository).args(["--log-level", "error"]).args(arguments);
        command
    };
    let check = |arguments: &[&str]| -> Result<()> {
        let status = deny(arguments).status().context("starting cargo-deny")?;
        ensure!(status.success(), "cargo deny {}: {status}", arguments.join(" "));
        Ok(())
    };
    check(&["check", "bans", "licenses", "sources"])?;
    if !deny(&["fetch", "db"]).output().context("starting cargo-deny")?.status.success() {
        say("known vulnerabilities: not checked, because their database can't be fetched from here");
        return Ok(());
    }
    check(&["check", "--disable-fetch", "advisories"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_or_the_tests_that_were_asked_for() {
        let names = |filter| steps(filter).into_iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(
            names(None),
            ["set-up", "format", "lints", "dependencies", "fuzz", "boot files and images", "tests"]
        );
        assert_eq!(names(Some("erase")), ["set-up", "boot files and images", "tests"]);
        let last = steps(Some("erase")).pop().expect("tests");
        assert_eq!(last.work, Work::Cargo(["test", "--workspace", "erase"].map(str::to_owned).to_vec()));
    }
}
