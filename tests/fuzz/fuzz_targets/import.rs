//! Somebody else's image: what its address says of it, and the file of hashes beside it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| drophammer_images::fuzz::import(text));
