//! A container image: its documents, the names in its layers, and layers themselves.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    for header in tar.as_chunks_mut::<512>().0.iter_mut().filter(|header| header[257..262] == *b"ustar") {
        correct(header);
    }
    drophammer_images::fuzz::oci(&tar);
});

/// Nothing finds a checksum by trying: without this, headers would be refused before anybody looks at them.
fn correct(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
