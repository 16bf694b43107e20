//! What comes over a connection to the plain HTTP door: the head of a request, its conditions and ranges.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_pxe_server::fuzz::http(bytes));
