//! What somebody says is a backup: the sealed file, and the lines in it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_control::fuzz::backup(bytes));
