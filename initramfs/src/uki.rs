//! The unified kernel image: kernel, initramfs and command line as one program for UEFI firmware, so that one signature
//! covers all that a machine boots.
//!
//! It is systemd's stub with the parts in sections that the stub knows (the UAPI group's specification of unified kernel
//! images). Nothing in it is for one machine or one boot, and nothing in it is secret: whoever reaches the boot server gets
//! it. What a boot needs besides, the agent asks the boot server for.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::AGENT_ARGUMENTS;
use crate::authenticode::Signer;
use crate::pe::{self, Section};

/// The package that has the stub, and where.
pub(crate) const PACKAGE: &str = "systemd-boot-efi";
pub(crate) const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// `COMMAND_LINE_SIZE` of x86, with its NUL.
const MOST_ARGUMENTS: usize = 2048;

const OS_RELEASE: &str = concat!(
    "NAME=\"drophammer\"\nID=drophammer\nVERSION_ID=\"",
    env!("CARGO_PKG_VERSION"),
    "\"\nPRETTY_NAME=\"drophammer agent ",
    env!("CARGO_PKG_VERSION"),
    "\"\n"
);

/// How to make one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UkiOptions {
    /// Kernel arguments, besides those that every agent gets.
    pub arguments: String,
    pub signing: Option<Signing>,
}

/// PEM files: an RSA key, and the certificate by which firmware knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signing {
    pub key: PathBuf,
    pub certificate: PathBuf,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uki {
    pub bytes: u64,
    pub command_line: String,
    /// The subject of the certificate; `None` if it isn't signed.
    pub signed_by: Option<String>,
}

/// Options that were looked at, before anything is built with them.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) command_line: String,
    pub(crate) signer: Option<Signer>,
}

impl Recipe {
    pub(crate) fn of(options: &UkiOptions) -> Result<Self> {
        let signer = options.signing.as_ref().map(|files| Signer::read(&files.key, &files.certificate)).transpose()?;
        Ok(Self { command_line: command_line(&options.arguments)?, signer })
    }

    /// The program, signed if it's to be.
    pub(crate) fn join(&self, parts: &Parts<'_>) -> Result<Vec<u8>> {
        let sections = [
            Section { name: ".osrel", content: OS_RELEASE.as_bytes() },
            Section { name: ".cmdline", content: self.command_line.as_bytes() },
            Section { name: ".uname", content: parts.kernel_release.as_bytes() },
            Section { name: ".initrd", content: parts.initramfs },
            // Last, with nothing behind it in memory: newer stubs let the kernel unpack itself where it lies.
            Section { name: ".linux", content: parts.kernel },
        ];
        let image = pe::add_sections(parts.stub, &sections).context("adding the kernel to systemd's stub")?;
        match &self.signer {
            Some(signer) => signer.sign(&image).context("signing the unified kernel image"),
            None => Ok(image),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) stub: &'a [u8],
    pub(crate) kernel: &'a [u8],
    pub(crate) kernel_release: &'a str,
    pub(crate) initramfs: &'a [u8],
}

fn command_line(arguments: &str) -> Result<String> {
    let words: Vec<&str> = [AGENT_ARGUMENTS].into_iter().chain(arguments.split_whitespace()).collect();
    let line = words.join(" ");
    ensure!(
        line.bytes().all(|b| b.is_ascii_graphic() || b == b' '),
        "the kernel arguments {line:?} are not plain ASCII"
    );
    ensure!(
        line.len() < MOST_ARGUMENTS,
        "the kernel arguments have {} bytes, the kernel takes {} at most",
        line.len(),
        MOST_ARGUMENTS - 1
    );
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_plain_and_fit() {
        for (name, arguments, want) in [
            ("none", "", Some("")),
            ("one", "console=ttyS0,115200", Some(" console=ttyS0,115200")),
            ("blanks", "  a \n b ", Some(" a b")),
            ("not ASCII", "a=\u{e4}", None),
            ("a NUL", "a\0b", None),
            ("too long", &"a ".repeat(1100), None),
        ] {
            let want = want.map(|more| format!("{AGENT_ARGUMENTS}{more}"));
            assert_eq!(command_line(arguments).ok(), want, "{name}");
        }
    }
}
