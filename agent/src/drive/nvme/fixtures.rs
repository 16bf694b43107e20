//! Pages built by the specification's layout, for the tests of whoever talks to drives.

use super::IDENTIFY_BYTES;

pub(crate) fn controller(serial: &str, oacs: u16, fna: u8) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_BYTES];
    put(&mut page, 4, format!("{serial:<20}").as_bytes());
    put(&mut page, 24, format!("{:<40}", "QEMU NVMe Ctrl").as_bytes());
    put(&mut page, 64, b"7.2.22  ");
    put(&mut page, 256, &oacs.to_le_bytes());
    put(&mut page, 524, &[fna]);
    page
}

/// A namespace with QEMU's two plain formats, 512 (index 0) and 4096 (index 4).
pub(crate) fn namespace(blocks: u64, flbas: u8, dps: u8) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_BYTES];
    put(&mut page, 0, &blocks.to_le_bytes());
    put(&mut page, 25, &[7]);
    put(&mut page, 26, &[flbas]);
    put(&mut page, 29, &[dps]);
    put(&mut page, 128, &[0, 0, 9, 0]);
    put(&mut page, 128 + 16, &[0, 0, 12, 0]);
    page
}

/// With no estimate for an overwrite, two minutes for a block erase and two seconds for a new key.
pub(crate) fn sanitize_log(progress: u16, status: u16, cdw10: u32) -> Vec<u8> {
    let mut page = vec![0; super::SANITIZE_LOG_BYTES];
    put(&mut page, 0, &progress.to_le_bytes());
    put(&mut page, 2, &status.to_le_bytes());
    put(&mut page, 4, &cdw10.to_le_bytes());
    put(&mut page, 8, &u32::MAX.to_le_bytes());
    put(&mut page, 12, &120u32.to_le_bytes());
    put(&mut page, 16, &2u32.to_le_bytes());
    page
}

pub(crate) fn list(ids: &[u32]) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_BYTES];
    for (at, id) in ids.iter().enumerate() {
        put(&mut page, at * 4, &id.to_le_bytes());
    }
    page
}

pub(crate) fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}
