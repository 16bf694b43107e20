//! Leaving for another kernel without a trip through the firmware.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::reboot::{RebootMode, reboot};

use crate::sys;

/// A kernel that lies in memory, ready to be jumped to. What it was read from may be gone by now.
#[derive(Debug)]
pub(crate) struct Loaded(());

/// Whether the files are the right ones is for the caller to have checked: without Secure Boot the running kernel
/// looks at nothing.
pub(crate) fn load(kernel: &File, initrd: Option<&File>, cmdline: &str) -> anyhow::Result<Loaded> {
    let text = CString::new(cmdline).context("the kernel command line has a NUL byte")?;
    let nothing = no_initrd().context("making an empty initrd")?;
    let initrd = initrd.unwrap_or(&nothing);
    sys::kexec::file_load(kernel.as_fd(), initrd.as_fd(), &text).map_err(|e| match hint(&e) {
        Some(hint) => anyhow::Error::new(e).context(hint),
        None => e.into(),
    })?;
    Ok(Loaded(()))
}

/// An archive without a file (Documentation/driver-api/early-userspace/buffer-format.rst), in place of no initrd at all.
///
/// On UEFI machines the EFI stub of this kernel left a table that says where its own initrd was. A kernel that is given
/// none believes that table after kexec, finds what has overwritten it, and panics ("Cannot find place for new RAMDISK
/// of size 7310594991672619630", Linux 6.1).
fn no_initrd() -> anyhow::Result<File> {
    const FIELDS_AFTER_MAGIC: usize = 13;
    const NAME: &[u8] = b"TRAILER!!!\0";
    let mut archive = b"070701".to_vec();
    for field in 0..FIELDS_AFTER_MAGIC {
        let value = if field == 11 { NAME.len() } else { 0 };
        archive.extend(format!("{value:08x}").bytes());
    }
    archive.extend(NAME);
    archive.resize(archive.len().next_multiple_of(512), 0);
    let mut file = File::from(memfd_create(c"no initrd", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&archive)?;
    Ok(file)
}

impl Loaded {
    /// Jumps. Nothing is synced or unmounted here; returns only if the kernel refuses.
    pub(crate) fn start(self) -> anyhow::Error {
        match reboot(RebootMode::RB_KEXEC) {
            Ok(never) => match never {},
            Err(e) => anyhow::Error::new(e).context("starting the loaded kernel"),
        }
    }
}

/// What the bare error number means for the person who reads it.
fn hint(error: &std::io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::ENOKEY => Some("Secure Boot is on and the key that signed this kernel isn't in the firmware's db"),
        libc::ENODATA => Some("Secure Boot is on and this kernel isn't signed"),
        libc::EPERM => Some("this kernel doesn't allow kexec (locked down, or not running as root)"),
        libc::ENOSYS => Some("this kernel was built without kexec_file_load"),
        libc::ENOEXEC => Some("this isn't a kernel that can be started by kexec"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn an_archive_without_a_file() {
        let mut file = no_initrd().expect("made");
        let mut bytes = Vec::new();
        file.rewind().expect("rewound");
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len(), 512);
        let mut cpio = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio runs; it is in the Debian package cpio");
        cpio.stdin.take().expect("a pipe").write_all(&bytes).expect("written");
        let output = cpio.wait_with_output().expect("cpio ends");
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
}
