//! Kernel package and agent to a reproducible kernel and initramfs: all that a server's firmware loads.
//!
//! ```text
//! Debian packages ─ kernel, mkfs, iPXE ───┐
//! source tree ────── agent ───────────────┼─ build ─▶ OUT/{vmlinuz, initramfs, undionly.kpxe, snponly.efi}
//! modules.list ───── closed over needs ───┘                └───────┴─ with systemd's stub ─▶ OUT/agent.efi, signed
//! ```
//!
//! The same packages and the same source give the same bytes, on any machine and in any directory. All that changes from
//! boot to boot (addresses, keys, one-time tokens) comes in a [`cpio::segment`] that the boot server appends.

mod agent;
mod authenticode;
pub mod closure;
mod contents;
pub mod cpio;
mod elf;
#[cfg(fuzzing)]
pub mod fuzz;
mod kernel;
pub mod modules;
mod output;
mod pe;
mod uki;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use drophammer_images::debian::{Archive, Package};
use sha2::{Digest as _, Sha256};

pub use agent::{build_agent, build_install_bench, repository};
pub use authenticode::Signer;
pub use kernel::Flavour;
pub use modules::Set;
pub use uki::{Signing, Uki, UkiOptions};

use contents::Contents;
use kernel::Kernel;
use output::{Output, Record};
use uki::Recipe;

pub const KERNEL: &str = "vmlinuz";
pub const INITRAMFS: &str = "initramfs";
/// The unified kernel image, for UEFI firmware that boots by HTTP or from a disk.
pub const UKI: &str = "agent.efi";

/// What the kernel of every agent is told: one that dies leaves its last words on the screen for a while, then the machine
/// starts over. What an ATA drive hides by a host protected area is shown, and its security subsystem may be spoken to.
pub const AGENT_ARGUMENTS: &str = "panic=30 libata.ignore_hpa=1 libata.allow_tpm=1";

/// Besides the kernel: iPXE, mke2fs, mkfs.xfs and the libraries that those are linked against.
const PACKAGES: [&str; 10] = [
    "ipxe",
    "e2fsprogs",
    "libblkid1",
    "libc6",
    "libcom-err2",
    "libext2fs2",
    "libinih1",
    "liburcu8",
    "libuuid1",
    "xfsprogs",
];

/// What firmware loads before it can load a kernel, with the place it has in Debian's package.
const IPXE: [(&str, &str); 2] =
    [("undionly.kpxe", "usr/lib/ipxe/undionly.kpxe"), ("snponly.efi", "usr/lib/ipxe/snponly.efi")];

/// Smaller isn't worth the wait, and what is bigger needs more memory to unpack than a small machine has.
const ZSTD_LEVEL: i32 = 19;

/// What this crate does is as much an input of a build as what it does it to.
const SOURCES: [&str; 11] = [
    include_str!("lib.rs"),
    include_str!("authenticode.rs"),
    include_str!("closure.rs"),
    include_str!("contents.rs"),
    include_str!("cpio.rs"),
    include_str!("elf.rs"),
    include_str!("kernel.rs"),
    include_str!("modules.rs"),
    include_str!("pe.rs"),
    include_str!("uki.rs"),
    modules::LIST,
];

#[derive(Debug, Clone)]
pub struct Options {
    pub flavour: Flavour,
    pub set: Set,
    /// A static agent; without one it is built from the source tree.
    pub agent: Option<PathBuf>,
    /// Make a unified kernel image, too.
    pub uki: Option<UkiOptions>,
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
    pub uki: Option<Uki>,
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
    let recipe = options.uki.as_ref().map(Recipe::of).transpose()?;
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => agent::agent()?,
    };
    let agent = fs::read(&agent).with_context(|| format!("reading the agent {}", agent.display()))?;
    elf::require_static(&agent).context("the agent cannot be the first program of a machine")?;

    let output = Output::open(&options.out)?;
    let archive = Archive::open()?;
    let names: Vec<&str> = PACKAGES.into_iter().chain(recipe.as_ref().map(|_| uki::PACKAGE)).collect();
    let packages = archive.kernel_and(options.flavour.debian(), &names)?;
    let inputs = digest_of_inputs(&agent, options.set, recipe.as_ref(), &packages);
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
    let packaged = |path| closure::read(&unpacked, path)?.with_context(|| format!("no package has {path}"));
    let mut files = BTreeMap::new();
    for (name, path) in IPXE {
        files.insert(name.to_owned(), packaged(path)?);
    }
    let mut made = None;
    if let Some(recipe) = recipe {
        let stub = packaged(uki::STUB)?;
        let parts = uki::Parts { stub: &stub, kernel: &image, kernel_release: &kernel.release, initramfs: &initramfs };
        let program = recipe.join(&parts)?;
        made = Some(Uki {
            bytes: program.len() as u64,
            command_line: recipe.command_line,
            signed_by: recipe.signer.as_ref().map(Signer::subject),
        });
        files.insert(UKI.to_owned(), program);
    }
    files.extend([(KERNEL.to_owned(), image), (INITRAMFS.to_owned(), initramfs)]);
    files.insert("NOTICE".to_owned(), contents.notice.into_bytes());
    files.extend(contents.licences.into_iter().map(|(package, text)| (format!("licences/{package}"), text)));
    let record = Record {
        inputs,
        kernel_release: kernel.release,
        sizes,
        uki: made,
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
        uki: record.uki,
        builtin: record.builtin,
        absent: record.absent,
    }
}

fn digest_of_inputs(agent: &[u8], set: Set, uki: Option<&Recipe>, packages: &[Package]) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    SOURCES.iter().for_each(|source| add(source.as_bytes()));
    add(format!("{set:?}").as_bytes());
    if let Some(Recipe { command_line, signer }) = uki {
        add(command_line.as_bytes());
        add(signer.as_ref().map_or(&[], Signer::certificate_der));
    }
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
        let recipe = |arguments: &str| Some(Recipe { command_line: arguments.into(), signer: None });
        let digest = |agent: &[u8], set, uki: Option<Recipe>, packages: &[Package]| {
            digest_of_inputs(agent, set, uki.as_ref(), packages)
        };
        let one = digest(b"agent", Set::Vm, recipe("a"), &[package("1")]);
        assert_eq!(one, digest(b"agent", Set::Vm, recipe("a"), &[package("1")]));
        for (case, other) in [
            ("agent", digest(b"Agent", Set::Vm, recipe("a"), &[package("1")])),
            ("set", digest(b"agent", Set::Metal, recipe("a"), &[package("1")])),
            ("no unified kernel image", digest(b"agent", Set::Vm, None, &[package("1")])),
            ("kernel arguments", digest(b"agent", Set::Vm, recipe("b"), &[package("1")])),
            ("version", digest(b"agent", Set::Vm, recipe("a"), &[package("2")])),
            ("number of packages", digest(b"agent", Set::Vm, recipe("a"), &[package("1"), package("1")])),
        ] {
            assert_ne!(one, other, "{case}");
        }
    }
}
