//! Kernel package and agent to a reproducible kernel and initramfs: all that a server's firmware loads.
//!
//! ```text
//! Debian packages ─ kernel, mke2fs, iPXE ─┐
//! source tree ────── agent ───────────────┼─ build ─▶ OUT/{vmlinuz, initramfs, undionly.kpxe, snponly.efi}
//! modules.list ───── closed over needs ───┘
//! ```
//!
//! The same packages and the same source give the same bytes, on any machine and in any directory. All that changes from
//! boot to boot (addresses, keys, one-time tokens) comes in a [`cpio::segment`] that the boot server appends.

mod agent;
mod closure;
mod contents;
pub mod cpio;
mod elf;
mod kernel;
pub mod modules;
mod output;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use drophammer_images::debian::{Archive, Package};
use sha2::{Digest as _, Sha256};

pub use agent::{build_agent, repository};
pub use kernel::Flavour;
pub use modules::Set;

use contents::Contents;
use kernel::Kernel;
use output::{Output, Record};

pub const KERNEL: &str = "vmlinuz";
pub const INITRAMFS: &str = "initramfs";

/// Besides the kernel: iPXE, mke2fs and the libraries that it is linked against.
const PACKAGES: [&str; 7] = ["ipxe", "e2fsprogs", "libblkid1", "libc6", "libcom-err2", "libext2fs2", "libuuid1"];

/// What firmware loads before it can load a kernel, with the place it has in Debian's package.
const IPXE: [(&str, &str); 2] =
    [("undionly.kpxe", "usr/lib/ipxe/undionly.kpxe"), ("snponly.efi", "usr/lib/ipxe/snponly.efi")];

/// Smaller isn't worth the wait, and what is bigger needs more memory to unpack than a small machine has.
const ZSTD_LEVEL: i32 = 19;

/// What this crate does is as much an input of a build as what it does it to.
const SOURCES: [&str; 8] = [
    include_str!("lib.rs"),
    include_str!("closure.rs"),
    include_str!("contents.rs"),
    include_str!("cpio.rs"),
    include_str!("elf.rs"),
    include_str!("kernel.rs"),
    include_str!("modules.rs"),
    modules::LIST,
];

#[derive(Debug, Clone)]
pub struct Options {
    pub flavour: Flavour,
    pub set: Set,
    /// A static agent; without one it is built from the source tree.
    pub agent: Option<PathBuf>,
    /// The boot directory to make.
    pub out: PathBuf,
}

/// A complete boot directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// What `uname -r` says on a machine that booted it.
    pub kernel_release: String,
    /// Whether everything was there already.
    pub fresh: bool,
    pub sizes: Sizes,
    /// Modules of the list that are part of this kernel itself.
    pub builtin: Vec<String>,
    /// Modules of the list that this kernel doesn't have in any form.
    pub absent: Vec<String>,
}

/// In bytes; the parts of the initramfs as they are before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    pub kernel: u64,
    pub initramfs: u64,
    pub unpacked: u64,
    pub agent: u64,
    pub modules: u64,
    pub tools: u64,
}

/// Makes `options.out` a boot directory: kernel, initramfs, iPXE, licences. What is there and up to date is left alone.
pub fn build(options: &Options) -> Result<Built> {
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => build_agent(&repository()?)?,
    };
    let agent = fs::read(&agent).with_context(|| format!("reading the agent {}", agent.display()))?;
    elf::require_static(&agent).context("the agent cannot be the first program of a machine")?;

    let output = Output::open(&options.out)?;
    let archive = Archive::open()?;
    let packages = archive.kernel_and(options.flavour.debian(), &PACKAGES)?;
    let inputs = digest_of_inputs(&agent, options.set, &packages);
    if let Some(record) = output.up_to_date(&inputs)? {
        return Ok(built(&options.out, record, true));
    }

    let unpacked = archive.unpack(&packages)?;
    drop(archive);
    let kernel_package = unpacked.first().context("apt knows of no packages at all")?;
    let kernel = Kernel::in_tree(&kernel_package.tree)?;
    let agent_bytes = agent.len() as u64;
    let contents = contents::gather(agent, options.set, &kernel, &unpacked)?;
    tracing::info!(release = kernel.release, modules = contents.selection.modules.len(), "compressing the initramfs");
    let initramfs = compress(&contents)?;

    let image = fs::read(&kernel.image).with_context(|| format!("reading {}", kernel.image.display()))?;
    let sizes = Sizes {
        kernel: image.len() as u64,
        initramfs: initramfs.len() as u64,
        unpacked: contents.archive.content_bytes(),
        agent: agent_bytes,
        modules: contents.module_bytes,
        tools: contents.tool_bytes,
    };
    let mut files = BTreeMap::from([(KERNEL.to_owned(), image), (INITRAMFS.to_owned(), initramfs)]);
    for (name, path) in IPXE {
        let content = closure::read(&unpacked, path)?.with_context(|| format!("no package has {path}"))?;
        files.insert(name.to_owned(), content);
    }
    files.insert("NOTICE".to_owned(), contents.notice.into_bytes());
    files.extend(contents.licences.into_iter().map(|(package, text)| (format!("licences/{package}"), text)));
    let record = Record {
        inputs,
        kernel_release: kernel.release,
        sizes,
        builtin: contents.selection.builtin,
        absent: contents.selection.absent,
        files: BTreeMap::new(),
    };
    Ok(built(&options.out, output.write(record, &files)?, false))
}

fn built(out: &Path, record: Record, fresh: bool) -> Built {
    Built {
        kernel: out.join(KERNEL),
        initramfs: out.join(INITRAMFS),
        kernel_release: record.kernel_release,
        fresh,
        sizes: record.sizes,
        builtin: record.builtin,
        absent: record.absent,
    }
}

fn digest_of_inputs(agent: &[u8], set: Set, packages: &[Package]) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    SOURCES.iter().for_each(|source| add(source.as_bytes()));
    add(format!("{set:?}").as_bytes());
    packages
        .iter()
        .for_each(|package| add(format!("{} {} {}", package.name, package.version, package.sha256).as_bytes()));
    add(agent);
    hex::encode(hash.finalize())
}

fn compress(contents: &Contents) -> Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL).context("setting up zstd")?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // The number of threads does not show in the result as long as it isn't zero.
    encoder.multithread(u32::try_from(threads).unwrap_or(1)).context("setting up zstd")?;
    encoder.include_checksum(true).context("setting up zstd")?;
    contents.archive.write_to(&mut encoder).context("compressing the initramfs")?;
    let mut bytes = encoder.finish().context("compressing the initramfs")?;
    // Where this ends, the boot server's segment begins.
    bytes.extend_from_slice(cpio::padding(bytes.len() as u64));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_counts() {
        let package = |version: &str| Package {
            name: "linux".into(),
            version: version.into(),
            sha256: "00".into(),
            file: String::new(),
        };
        let one = digest_of_inputs(b"agent", Set::Vm, &[package("1")]);
        assert_eq!(one, digest_of_inputs(b"agent", Set::Vm, &[package("1")]));
        for (case, other) in [
            ("agent", digest_of_inputs(b"Agent", Set::Vm, &[package("1")])),
            ("set", digest_of_inputs(b"agent", Set::Metal, &[package("1")])),
            ("version", digest_of_inputs(b"agent", Set::Vm, &[package("2")])),
            ("number of packages", digest_of_inputs(b"agent", Set::Vm, &[package("1"), package("1")])),
        ] {
            assert_ne!(one, other, "{case}");
        }
    }
}
