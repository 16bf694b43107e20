//! Where things that can be made again are kept.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// `$DROPHAMMER_CACHE`, `$XDG_CACHE_HOME/drophammer` or `~/.cache/drophammer`: packages, kernels, built images.
pub fn cache_dir() -> Result<PathBuf> {
    choose(|name| std::env::var_os(name))
        .context("finding a cache directory: set DROPHAMMER_CACHE, XDG_CACHE_HOME or HOME to an absolute path")
}

fn choose(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // The XDG base directory specification: relative paths are to be ignored.
    let absolute = |name| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("DROPHAMMER_CACHE")
        .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("drophammer")))
        .or_else(|| absolute("HOME").map(|path| path.join(".cache/drophammer")))
}

/// Waits until no other process holds `path`; held until dropped.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("locking {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_absolute_directory_counts() {
        for (name, env, want) in [
            ("ours first", vec![("DROPHAMMER_CACHE", "/c"), ("HOME", "/h")], Some("/c")),
            ("then the desktop's", vec![("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/x/drophammer")),
            ("then home", vec![("HOME", "/h")], Some("/h/.cache/drophammer")),
            ("empty is unset", vec![("DROPHAMMER_CACHE", ""), ("HOME", "/h")], Some("/h/.cache/drophammer")),
            ("relative is ignored", vec![("XDG_CACHE_HOME", "x"), ("HOME", "/h")], Some("/h/.cache/drophammer")),
            ("nothing", vec![], None),
        ] {
            let got = choose(|name| env.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)));
            assert_eq!(got, want.map(PathBuf::from), "{name}");
        }
    }
}
