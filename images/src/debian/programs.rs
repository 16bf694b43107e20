//! Programs of Debian packages, run from where they were unpacked: other people's clients and servers, to be tested with
//! and measured against.
//!
//! Nothing is installed, so no daemon starts, no root is needed, and the version is Debian's on any host. They run with the
//! libraries that they were built for, down to the loader.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::unpacked::Archive;

const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

#[derive(Clone, Debug)]
pub struct Programs {
    /// One for each package, each standing for `/`.
    trees: Vec<PathBuf>,
    loader: PathBuf,
    libraries: OsString,
}

impl Programs {
    /// Gets these packages and all that they depend on, unless they are in the cache.
    pub fn of(packages: &[&str]) -> Result<Self> {
        let archive = Archive::open()?;
        let closure = archive.closure(packages)?;
        let trees: Vec<_> = archive.unpack(&closure)?.into_iter().map(|unpacked| unpacked.tree).collect();
        let loader = find(&trees, LOADER).with_context(|| format!("no package has {LOADER}"))?;
        let libraries = trees.iter().flat_map(|tree| LIBRARIES.map(|dir| tree.join(dir))).filter(|dir| dir.is_dir());
        let libraries = std::env::join_paths(libraries).context("putting together where libraries are looked for")?;
        Ok(Self { trees, loader, libraries })
    }

    /// A file that one of the packages has at this path.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        find(&self.trees, path.trim_start_matches('/')).with_context(|| format!("no package has {path}"))
    }

    /// All directories that packages have at this path.
    pub fn directories(&self, path: &str) -> Vec<PathBuf> {
        let path = path.trim_start_matches('/');
        self.trees.iter().map(|tree| tree.join(path)).filter(|dir| dir.is_dir()).collect()
    }

    /// Runs the program that one of the packages has at this path.
    pub fn command(&self, path: &str) -> Result<Command> {
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(&self.libraries).arg(self.file(path)?);
        Ok(command)
    }
}

fn find(trees: &[PathBuf], path: &str) -> Option<PathBuf> {
    trees.iter().map(|tree| tree.join(path)).find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_that_is_not_installed() {
        let programs = Programs::of(&["tftp-hpa"]).expect("unpacked");
        let output = programs.command("/usr/bin/tftp").expect("is there").arg("-V").output().expect("runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("tftp-hpa"), "{said}");
        let missing = programs.file("/usr/bin/none").expect_err("isn't there").to_string();
        assert_eq!(missing, "no package has /usr/bin/none");
    }
}
