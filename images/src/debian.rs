//! Where Debian packages come from, and how they are fetched without touching the host's own apt.
//!
//! [`Sources`] finds the archive: a mirror that was named, else the one that this host uses for its own Debian
//! packages, else mmdebstrap's default. [`Apt`] is a private apt over it, with its own lists and cache, that believes
//! Debian's archive keys and nobody else's. [`Archive`] unpacks packages into the cache, and [`Programs`] runs what is in
//! them from there.

mod apt;
mod programs;
mod sources;
mod unpacked;

use std::path::{Path, PathBuf};

use anyhow::Result;

#[cfg(fuzzing)]
pub(crate) use self::{apt::fuzz as fuzz_apt, sources::fuzz as fuzz_sources};
pub(crate) use apt::host_acquire_options as acquire_options;
pub use apt::{Apt, Package};
pub use programs::Programs;
pub use sources::{KEYRING, Sources};
pub use unpacked::{Archive, Unpacked};

/// The Debian release that kernels and images come from unless a recipe says otherwise.
pub const SUITE: &str = "bookworm";

/// Fetches `packages` of [`SUITE`] into `dest`, one path for each in the same order, checked against Debian's keys.
/// A kernel metapackage such as `linux-image-cloud-amd64` stands for the kernel that it depends on.
pub fn download(packages: &[&str], dest: &Path) -> Result<Vec<PathBuf>> {
    Apt::open(&Sources::for_suite(SUITE)?)?.download(packages, dest)
}

/// The package that `linux-image-{flavour}` stands for at present, e.g. `linux-image-6.1.0-40-cloud-amd64`.
pub fn resolve_kernel(flavour: &str) -> Result<String> {
    Apt::open(&Sources::for_suite(SUITE)?)?.resolve_kernel(flavour)
}
