//! Members of arrays and volume groups.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_agent::fuzz::volumes(bytes));
