//! A host's apt sources, and what apt's programs print.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| drophammer_images::fuzz::apt(text));
