//! depmod's tables and a device's modalias.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| drophammer_agent::fuzz::modules(text));
