//! Tools that the project needs and few hosts have: the host's, or one that is built once and kept in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub(crate) fn cargo_deny(say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    // It reads one file and lists of licences: optimising it takes longer than all it will ever do.
    cargo_tool("cargo-deny", "^0.20", &["--debug", "--config", "profile.dev.debug=false"], say)
}

pub(crate) fn cargo_deb(say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    cargo_tool("cargo-deb", "^3.6", &[], say)
}

/// A fuzzer of interfaces that describe themselves, in an environment of Python's own.
pub fn schemathesis() -> Result<PathBuf> {
    let tools = drophammer_images::cache_dir()?.join("tools/schemathesis-4.32");
    let program = tools.join("bin/schemathesis");
    if !answers(&program) {
        let run = |command: &mut Command| {
            let output = command.output().context("starting python3 (Debian and Ubuntu have it in python3-venv)")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "getting schemathesis from PyPI: {}", said.trim());
            Ok(())
        };
        run(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
        run(Command::new(tools.join("bin/pip")).args(["install", "--quiet", "schemathesis==4.32.*"]))?;
    }
    Ok(program)
}

fn answers(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn cargo_tool(name: &str, version: &str, how: &[&str], say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let own = PathBuf::from(name);
    if answers(&own) {
        return Ok(own);
    }
    let tools = drophammer_images::cache_dir()?.join("tools");
    let kept = tools.join("bin").join(name);
    if !answers(&kept) {
        say(&format!("building {name}, once (some minutes)"));
        let output = Command::new("cargo")
            .args(["install", "--quiet", "--locked", "--version", version, "--root"])
            .arg(&tools)
            .args(how)
            .arg(name)
            .output()
            .context("starting cargo")?;
        if !output.status.success() {
            bail!(
                "building {name}: {}\ninstall it yourself (`cargo install --locked {name}`) and try again",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(kept)
}
