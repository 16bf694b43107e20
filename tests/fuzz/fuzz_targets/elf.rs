//! Programs and kernel modules, out of packages.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    drophammer_initramfs::fuzz::elf(bytes);
    drophammer_images::fuzz::module(bytes);
});
