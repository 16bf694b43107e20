//! A program for UEFI firmware, to which sections and a signature are added.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_initramfs::fuzz::pe(bytes));
