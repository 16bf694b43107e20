//! An SMBIOS entry point, in 24 bytes, and the table behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_agent::fuzz::smbios(bytes));
