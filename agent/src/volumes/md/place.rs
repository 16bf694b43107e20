//! Where things lie on a member, in sectors: superblock, bitmap, list of bad blocks, data.

use super::{CHUNK_SECTORS, Level, Metadata};

/// What the list of bad blocks takes: 4 KiB, room for 512 of them.
pub(super) const BAD_BLOCKS: u16 = 8;

/// What a superblock takes.
const SUPERBLOCK: u64 = 8;
const MIB: u64 = 2048;

/// Offsets of bitmap and list are those from the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) superblock: u64,
    pub(super) bitmap: i32,
    pub(super) bad_blocks: i32,
    pub(super) data: u64,
}

/// The same on all members of an array, the smallest of which has so many sectors.
///
/// In front of the data `mdadm` leaves a 1024th of the member, at most 128 MiB, so that an array can be given another shape
/// later without a backup of what is moved; then a MiB for what is its own. A member that is added later by `mdadm` gets the
/// same offset.
pub(super) fn data_offset(metadata: Metadata, level: Level, sectors: u64) -> u64 {
    const MOST: u64 = 128 * MIB;
    if metadata == Metadata::V1_0 {
        return 0;
    }
    let least = if level == Level::Raid0 { 2 * CHUNK_SECTORS } else { 1 };
    let share = (sectors / 1024).checked_ilog2().map_or(1, |log| 1 << log);
    share.clamp(least, MOST) / MIB * MIB + MIB
}

impl Place {
    /// On a member of so many sectors; `None` if nothing is left for data. The kernel looks for the bitmap at the same offset
    /// on every member, so that `bitmap` sectors are kept free for it on all of them.
    pub(super) fn of(sectors: u64, metadata: Metadata, data_offset: u64, bitmap: u64) -> Option<Self> {
        let near = |sectors: u64| i32::try_from(sectors).ok();
        match metadata {
            Metadata::V1_2 => Some(Self {
                superblock: SUPERBLOCK,
                bitmap: near(SUPERBLOCK)?,
                bad_blocks: near(SUPERBLOCK + bitmap)?,
                data: sectors.checked_sub(data_offset).filter(|data| *data > 0)?,
            }),
            Metadata::V1_0 => {
                // At the last multiple of 4 KiB that has 8 KiB behind it.
                let superblock = sectors.checked_sub(2 * SUPERBLOCK)? / SUPERBLOCK * SUPERBLOCK;
                let own = u64::from(BAD_BLOCKS) + bitmap;
                Some(Self {
                    superblock,
                    bitmap: -near(own)?,
                    bad_blocks: -i32::from(BAD_BLOCKS),
                    data: superblock.checked_sub(own).filter(|data| *data > 0)?,
                })
            }
        }
    }
}
