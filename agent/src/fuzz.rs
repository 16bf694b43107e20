//! The parsers here, as `tests/fuzz` calls them: each takes any bytes, and panics if what has to hold of them doesn't.

use std::path::PathBuf;

/// A tar: where its members go in the root, or why it can't be unpacked.
pub fn archive(bytes: &[u8]) -> Result<Vec<PathBuf>, String> {
    crate::install::fuzz_archive(bytes)
}

/// What comes to the DHCP client, and when; `sent` gets what it sends.
pub fn dhcp(bytes: &[u8], sent: impl Fn(&[u8])) {
    crate::dhcp::fuzz(bytes, sent);
}

/// The pages in which drives say who they are, their sense data, and what lies on them.
pub fn drive(page: &[u8]) {
    crate::drive::ata::fuzz(page);
    crate::drive::nvme::fuzz(page);
    crate::drive::opal::fuzz(page);
    crate::drive::scsi::fuzz(page);
    crate::install::fuzz_gpt(page);
    crate::inventory::fuzz_disks(page);
    crate::signatures::fuzz(page);
    crate::volumes::luks::fuzz(page);
}

/// A boot entry among the firmware's variables, a whole boot order of them, and the start of a kernel.
pub fn efi(bytes: &[u8]) {
    crate::efi::fuzz(bytes);
    crate::install::fuzz_kernel(bytes);
}

/// depmod's four tables and a modalias, separated by NULs.
pub fn modules(text: &str) {
    crate::modules::fuzz(text);
}

/// An SMBIOS entry point, in 24 bytes, and the table.
pub fn smbios(bytes: &[u8]) {
    crate::inventory::fuzz_smbios(bytes);
}

/// A device that is a member of an array or of a volume group, or the bytes in which it says so.
pub fn volumes(bytes: &[u8]) {
    crate::volumes::fuzz(bytes);
}

/// Small texts: kernel command line, lists of mounts, unit files, boot settings, accounts and installers' answers of images,
/// headers of answers.
pub fn words(text: &str) {
    crate::cmdline::fuzz(text);
    crate::holders::fuzz(text);
    crate::install::fuzz_bootloader(text);
    crate::install::fuzz_accounts(text);
    crate::install::fuzz_fetch(text);
    crate::install::fuzz_metal(text);
    crate::install::fuzz_systemd(text);
    crate::install::fuzz_yaml(text);
}
