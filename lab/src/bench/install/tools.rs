//! Other people's tools by their names, each from the Debian package that it comes in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use drophammer_images::debian::Programs;
use tempfile::TempDir;

const PACKAGES: [&str; 9] =
    ["bmap-tools", "coreutils", "curl", "e2fsprogs", "lz4", "nginx-light", "python3-minimal", "tar", "zstd"];
const TOOLS: [&str; 8] = [
    "/bin/dd",
    "/bin/tar",
    "/sbin/mke2fs",
    "/usr/bin/curl",
    "/usr/bin/lz4",
    "/usr/bin/md5sum",
    "/usr/bin/python3.11",
    "/usr/bin/zstd",
];
const BMAPTOOL: &str = "bmaptool";
/// Where Python looks for its own modules and those of packages.
const PYTHON: [&str; 3] = ["/usr/lib/python3.11", "/usr/lib/python3.11/lib-dynload", "/usr/lib/python3/dist-packages"];

#[derive(Debug)]
pub(super) struct Tools {
    programs: Programs,
    /// A script for each.
    dir: TempDir,
}

impl Tools {
    pub(super) fn new() -> Result<Self> {
        let programs = programs()?;
        let dir = tempfile::Builder::new().prefix("drophammer-").tempdir().context("making a directory")?;
        let tools = Self { programs, dir };
        for path in TOOLS {
            let name = path.rsplit('/').next().unwrap_or(path);
            tools.script(name, &tools.started(path)?)?;
        }
        let modules = PYTHON.iter().flat_map(|path| tools.programs.directories(path));
        let modules = std::env::join_paths(modules).context("putting together where Python looks for modules")?;
        let bmaptool = format!(
            "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={} exec {} {} \"$@\"",
            quoted(modules.as_ref()),
            tools.started("/usr/bin/python3.11")?,
            quoted(&tools.programs.file("/usr/bin/bmaptool")?)
        );
        tools.write(BMAPTOOL, &bmaptool)?;
        Ok(tools)
    }

    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// A script with all of them in reach, in a mount namespace of its own. Any command of it that fails makes it fail.
    pub(super) fn bash(&self, script: &str) -> Result<Command> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "bash", "-euo", "pipefail", "-c", script]);
        let host = std::env::var_os("PATH").unwrap_or_default();
        let places = std::iter::once(self.dir.path().to_owned()).chain(std::env::split_paths(&host));
        command.env("PATH", std::env::join_paths(places).context("putting together where tools are")?);
        Ok(command)
    }

    /// The words with which a tool is started.
    fn started(&self, path: &str) -> Result<String> {
        let command = self.programs.command(path)?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        Ok(words.map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" "))
    }

    fn script(&self, name: &str, started: &str) -> Result<()> {
        self.write(name, &format!("exec {started} \"$@\""))
    }

    fn write(&self, name: &str, line: &str) -> Result<()> {
        let path = self.dir.path().join(name);
        let write = || -> std::io::Result<()> {
            fs::write(&path, format!("#!/bin/sh\n{line}\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

/// Asking apt for them takes seconds, so it's done once in a process.
fn programs() -> Result<Programs> {
    static KNOWN: Mutex<Option<Programs>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(programs) = &*known {
        return Ok(programs.clone());
    }
    let programs =
        Programs::of(&PACKAGES).with_context(|| format!("getting {} from Debian's archive", PACKAGES.join(", ")))?;
    Ok(known.insert(programs).clone())
}

/// As a shell takes it for one word.
pub(super) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_any_path_for_one_word() {
        for path in ["/plain", "/with blank", "/it's", "/$HOME/`x`\"y\""] {
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(Path::new(path)))).output();
            assert_eq!(String::from_utf8_lossy(&output.expect("runs").stdout), path, "{path}");
        }
    }
}
