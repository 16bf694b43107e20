//! A boot entry among the firmware's variables, a whole boot order of them, and the start of a kernel.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_agent::fuzz::efi(bytes));
