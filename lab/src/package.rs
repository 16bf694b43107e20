//! The package for Debian and Ubuntu.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kit::repository;
use crate::{setup, tools};

/// Of which of cargo's profiles the program in the package is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Release,
    /// For a look at the package; what is built already isn't built again.
    Dev,
}

/// Builds what goes into the package and puts it together in `output`. Returns where it is.
pub fn package(profile: Profile, output: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let repository = repository()?;
    let deb = tools::cargo_deb(say)?;
    say("building the agent");
    drophammer_initramfs::build_agent(&repository)?;
    if profile == Profile::Release {
        say("building drophammer (some minutes)");
        run(Command::new("cargo").args(["build", "--locked", "--release", "--package", "drophammer"]), &repository)?;
    }
    let profile = match profile {
        Profile::Release => "release",
        Profile::Dev => "dev",
    };
    let path = output.join("drophammer.deb");
    let mut command = Command::new(deb);
    command.args(["deb", "--locked", "--no-build", "--quiet", "--profile", profile, "--output"]).arg(&path);
    command.env(
        "PATH",
        std::env::join_paths(setup::programs()).context("putting together where programs are looked for")?,
    );
    run(&mut command, &repository)?;
    Ok(path)
}

fn run(command: &mut Command, repository: &Path) -> Result<()> {
    let line = format!("{command:?}");
    let status = command.current_dir(repository).status().with_context(|| format!("starting {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}
