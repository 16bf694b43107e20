//! The write-intent bitmap: which regions of a mirror were being written to when the power went, so that only those are
//! copied again (linux drivers/md/md-bitmap.h, `struct bitmap_super_s`).
//!
//! `mdadm` makes one where copying everything would take long, for more than 100 GiB; so it's done here. On a smaller mirror
//! it would only cost writes.

use std::ops::Range;

use uuid::Uuid;

/// A mirror of more than 100 GiB gets a bitmap. Beyond 2 PiB the header has no number for what one bit would stand for.
pub(super) const WORTH_SECTORS: Range<u64> = (100 << 21) + 1..1 << 42;

const HEADER: usize = 256;
/// What `mdadm` has one bit stand for, unless there would be too many.
const CHUNK_BYTES: u64 = 64 << 20;
const UNIT: u64 = 4096;

/// What there is for a bitmap on a member of so many sectors, in bytes.
pub(super) fn room(sectors: u64) -> u64 {
    const GIB: u64 = 1 << 21;
    const KIB: u64 = 1 << 10;
    if sectors > 200 * GIB {
        128 * KIB
    } else if sectors > 8 * GIB {
        64 * KIB
    } else {
        4 * KIB
    }
}

/// What it takes, in whole 4 KiB.
pub(super) fn sectors(data_sectors: u64, room: u64) -> u64 {
    let (_, bits) = chunks(data_sectors, room);
    (HEADER as u64 + bits.div_ceil(8)).next_multiple_of(UNIT) / super::SECTOR
}

/// The bytes that one bit stands for, and how many bits there are.
fn chunks(data_sectors: u64, room: u64) -> (u64, u64) {
    let mut chunk = CHUNK_BYTES;
    let bits = |chunk: u64| data_sectors.div_ceil(chunk / super::SECTOR);
    while HEADER as u64 + bits(chunk).div_ceil(8) > room {
        chunk *= 2;
    }
    (chunk, bits(chunk))
}

/// With every region marked if all of them are to be copied, and none if none is.
pub(super) fn to_bytes(array: Uuid, data_sectors: u64, room: u64, dirty: bool) -> Vec<u8> {
    /// Seconds after which a region that nobody writes to any more is unmarked.
    const DAEMON_SLEEP: u32 = 5;
    let (chunk, bits) = chunks(data_sectors, room);
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(b"bitm");
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(array.as_bytes());
    // Events, and those at which the last bit was cleared.
    bytes.extend([0; 16]);
    bytes.extend(data_sectors.to_le_bytes());
    // State.
    bytes.extend([0; 4]);
    bytes.extend(u32::try_from(chunk).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(DAEMON_SLEEP.to_le_bytes());
    bytes.resize(HEADER, 0);
    for byte in 0..bits.div_ceil(8) {
        let used = (bits - 8 * byte).min(8);
        let all = u8::MAX >> (8 - used);
        bytes.push(if dirty { all } else { 0 });
    }
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes
}
