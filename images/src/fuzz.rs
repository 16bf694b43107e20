//! The parsers here, as `tests/fuzz` calls them: each takes any bytes, and panics if what has to hold of them doesn't.

/// A host's apt sources, and what apt's programs print.
pub fn apt(text: &str) {
    crate::debian::fuzz_apt(text);
    crate::debian::fuzz_sources(text);
}

/// A kernel module.
pub fn module(bytes: &[u8]) {
    crate::modules::fuzz(bytes);
}

/// Whether it's a tar that machines are given to unpack.
pub fn tar(bytes: &[u8]) -> bool {
    crate::scan::fuzz(bytes)
}

/// Where somebody says that an image is, and what is said beside it that it hashes to.
pub fn import(text: &str) {
    crate::import::fuzz(text);
}

/// A document of an OCI image, and the name of a file in one.
pub fn oci(bytes: &[u8]) {
    crate::oci::fuzz(bytes);
}

/// The image of a disk.
pub fn disk(bytes: &[u8]) {
    crate::disk::fuzz(bytes);
}
