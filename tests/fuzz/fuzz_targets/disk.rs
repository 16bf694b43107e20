//! The image of a disk, or of a file system: its tables, and all that ext4 has.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_images::fuzz::disk(bytes));
