//! Debian packages, unpacked once per version into the cache: what is made from them is the same on every host, and
//! nothing is installed on any.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Apt, Package, SUITE, Sources};
use anyhow::{Context as _, Result, ensure};

/// What an unpacked tree is called while it isn't whole.
const PARTIAL: &str = ".unpacking-";

/// A package and the directory that stands for `/` in it.
#[derive(Debug, Clone)]
pub struct Unpacked {
    pub package: Package,
    pub tree: PathBuf,
}

/// Debian's archive, and what was unpacked from it before.
#[derive(Debug)]
pub struct Archive {
    apt: Apt,
    cache: PathBuf,
}

impl Archive {
    pub fn open() -> Result<Self> {
        let cache = crate::cache_dir()?.join("unpacked");
        fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
        Ok(Self { apt: Apt::open(&Sources::for_suite(SUITE)?)?, cache })
    }

    /// The package that `linux-image-{flavour}` stands for at present, and `others`, in this order.
    pub fn kernel_and(&self, flavour: &str, others: &[&str]) -> Result<Vec<Package>> {
        let kernel = self.apt.resolve_kernel(flavour)?;
        let names: Vec<&str> = [kernel.as_str()].into_iter().chain(others.iter().copied()).collect();
        self.apt.candidates(&names)
    }

    /// `packages` and everything that they depend on.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<Package>> {
        self.apt.closure(packages)
    }

    pub fn unpack(&self, packages: &[Package]) -> Result<Vec<Unpacked>> {
        let unpacked = packages
            .iter()
            .map(|package| Ok(Unpacked { package: package.clone(), tree: self.cache.join(tree_name(package)?) }))
            .collect::<Result<Vec<_>>>()?;
        let missing: Vec<&Unpacked> = unpacked.iter().filter(|one| !one.tree.is_dir()).collect();
        if missing.is_empty() {
            return Ok(unpacked);
        }
        let partial = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(&self.cache)
            .with_context(|| format!("making a directory in {}", self.cache.display()))?;
        let names: Vec<&str> = missing.iter().map(|one| one.package.name.as_str()).collect();
        let files = self.apt.download(&names, &partial.path().join("download"))?;
        ensure!(files.len() == missing.len(), "apt fetched {} packages instead of {}", files.len(), missing.len());
        for (Unpacked { package, tree }, deb) in missing.into_iter().zip(files) {
            ensure!(
                deb.file_name().is_some_and(|file| *file == *package.file),
                "the archive changed while {} was fetched: try again",
                package.file
            );
            tracing::info!("unpacking {}", package.file);
            let fresh = partial.path().join(tree_name(package)?);
            extract(&deb, &fresh)?;
            match fs::rename(&fresh, tree) {
                // Somebody else was faster; what they unpacked is the same.
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                renamed => renamed.with_context(|| format!("naming {}", tree.display()))?,
            }
        }
        Ok(unpacked)
    }
}

/// The hash is part of it: an archive that changed a package without changing its version gets another tree.
fn tree_name(package: &Package) -> Result<String> {
    let digest = package.sha256.get(..16).with_context(|| format!("apt gave no hash for {}", package.file))?;
    // Lists of directories are separated by colons.
    Ok(format!("{}_{}_{digest}", package.name, package.version.replace(':', "%3a")))
}

fn extract(deb: &Path, tree: &Path) -> Result<()> {
    let output = Command::new("dpkg-deb").arg("-x").arg(deb).arg(tree).output().map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            anyhow::anyhow!("dpkg-deb isn't installed: install the Debian package dpkg")
        } else {
            anyhow::Error::new(error).context("running dpkg-deb")
        }
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "dpkg-deb could not unpack {}: {}", deb.display(), said.trim());
    Ok(())
}

/// Where a package goes in the cache.
#[cfg(fuzzing)]
pub(super) fn fuzz(package: &Package) -> Option<String> {
    tree_name(package).ok()
}
