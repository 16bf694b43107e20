//! The parsers here, as `tests/fuzz` calls them: each takes any bytes, and panics if what has to hold of them doesn't.

/// A program or a kernel module.
pub fn elf(bytes: &[u8]) {
    crate::elf::fuzz(bytes);
}

/// A program for firmware.
pub fn pe(bytes: &[u8]) {
    crate::pe::fuzz(bytes);
}
