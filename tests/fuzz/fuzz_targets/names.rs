//! Names, keys and tokens that strangers send, and words that go on to a machine's screen.
#![no_main]

use std::path::Path;

use drophammer_protocol::id::{BootId, Mac};
use drophammer_protocol::manifest::is_plain_name;
use drophammer_protocol::os_release::pretty_name;
use drophammer_protocol::sign::PublicKey;
use drophammer_pxe_server::{identity, script};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(mac) = text.parse::<Mac>() {
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }
    if let Ok(id) = text.parse::<BootId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
        let _ = identity::of_uuid(id.0);
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text.trim().to_ascii_lowercase());
    }
    if is_plain_name(text) {
        assert_eq!(Path::new("/images").join(text).parent(), Some(Path::new("/images")));
    }
    assert!(pretty_name(text).is_none_or(|name| name.len() <= text.len() && !name.contains('\n')));
    drophammer_control::fuzz::secrets(text);

    // Only what is ours is a command to iPXE.
    let (ours, said) = (script::trouble("", ""), script::trouble("", text));
    assert_eq!(said.matches("${").count(), ours.matches("${").count());
    assert!(said.lines().filter(|line| !ours.lines().any(|own| own == *line)).all(|line| {
        line.starts_with("echo drophammer: ") && !line.contains(['|', '&', '#', '$', '\\', '"', '\''])
    }));
});
