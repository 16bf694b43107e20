//! The parsers here, as `tests/fuzz` calls them: each takes any bytes, and panics if what has to hold of them doesn't.

/// Tokens and keys.
pub fn secrets(text: &str) {
    crate::secret::fuzz(text);
}

/// Backups, sealed and open.
pub fn backup(bytes: &[u8]) {
    crate::backup::fuzz(bytes);
}
