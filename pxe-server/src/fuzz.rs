//! The parsers here, as `tests/fuzz` calls them: each takes any bytes, and panics if what has to hold of them doesn't.

/// The text of a configuration file.
pub fn config(text: &str) {
    crate::config::fuzz(text);
}

/// What comes over a connection to the plain door.
pub fn http(bytes: &[u8]) {
    if let Some(request) = crate::plain::fuzz(bytes) {
        crate::http::fuzz(request.method(), request.headers());
    }
}

/// Packets that are meant for others, or for nobody in particular.
pub fn overheard(packet: &[u8]) {
    crate::dhcp::fuzz_others(packet);
    crate::dhcp::fuzz_probe(packet);
    crate::ra::fuzz(packet);
}
