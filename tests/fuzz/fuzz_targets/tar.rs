//! An image's tar, read by who packs it and by the machine that unpacks it: what the one accepts, the other can place.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    for header in tar.as_chunks_mut::<512>().0.iter_mut().filter(|header| header[257..262] == *b"ustar") {
        correct(header);
    }
    let unpacked = drophammer_agent::fuzz::archive(&tar);
    if drophammer_images::fuzz::tar(&tar) {
        unpacked.expect("what can be packed can be unpacked");
    }
});

/// Nothing finds a checksum by trying: without this, headers would be refused before anybody looks at them.
fn correct(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
