//! The boot server's configuration file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| drophammer_pxe_server::fuzz::config(text));
