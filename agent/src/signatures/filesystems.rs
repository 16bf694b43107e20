//! File systems, swap and encrypted volumes.

use super::region::{Region, array, be16, has, le16, le32, le64, text, uuid};
use super::{Found, Kind, Probe};

pub(super) const PROBES: &[Probe] = &[
    Probe { at: |_| vec![1024], parse: ext },
    Probe { at: |_| vec![0], parse: xfs },
    Probe { at: |_| BTRFS_COPIES.to_vec(), parse: btrfs },
    Probe { at: |_| vec![0], parse: microsoft },
    Probe { at: |_| vec![32768], parse: iso9660 },
    Probe { at: |_| PAGES.map(|page| page - 10).to_vec(), parse: swap },
    Probe { at: |_| vec![0], parse: luks },
    Probe { at: |_| LUKS2_SECOND.to_vec(), parse: luks2_second },
];

/// The superblock and its mirrors (btrfs on-disk format, "Superblock").
const BTRFS_COPIES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

/// Sizes of pages that swap may have been made for.
const PAGES: [u64; 4] = [4 << 10, 8 << 10, 16 << 10, 64 << 10];

/// Where the second header of LUKS2 may lie, as the first may have these sizes (LUKS2 on-disk format 1.1, 2.2).
const LUKS2_SECOND: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

/// Offsets and flags as in the kernel's Documentation/filesystems/ext4, "Super Block".
fn ext(region: &mut Region, at: u64) -> Option<Found> {
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    // What ext3 doesn't know: everything but file types, recovery and meta block groups, and everything but sparse
    // superblocks, large files and B-trees.
    const NOT_EXT3_INCOMPAT: u32 = !(0x2 | 0x4 | 0x10);
    const NOT_EXT3_RO_COMPAT: u32 = !(0x1 | 0x2 | 0x4);
    let block = region.bytes(at, 1024)?;
    if le16(&block, 0x38)? != 0xef53 {
        return None;
    }
    let (compat, incompat, ro_compat) = (le32(&block, 0x5c)?, le32(&block, 0x60)?, le32(&block, 0x64)?);
    let kind = if incompat & JOURNAL_DEVICE != 0 {
        Kind::ExtJournal
    } else if incompat & NOT_EXT3_INCOMPAT != 0 || ro_compat & NOT_EXT3_RO_COMPAT != 0 {
        Kind::Ext4
    } else if compat & HAS_JOURNAL != 0 {
        Kind::Ext3
    } else {
        Kind::Ext2
    };
    Some(Found { kind, label: text(&block, 0x78, 16), uuid: uuid(&block, 0x68) })
}

/// XFS Algorithms & Data Structures, "Superblocks".
fn xfs(region: &mut Region, at: u64) -> Option<Found> {
    let block = region.bytes(at, 512)?;
    has(&block, 0, b"XFSB").then(|| Found { kind: Kind::Xfs, label: text(&block, 108, 12), uuid: uuid(&block, 32) })
}

fn btrfs(region: &mut Region, at: u64) -> Option<Found> {
    let block = region.bytes(at, 4096)?;
    has(&block, 0x40, b"_BHRfS_M").then(|| Found {
        kind: Kind::Btrfs,
        label: text(&block, 0x12b, 256),
        uuid: uuid(&block, 0x20),
    })
}

/// Everything whose boot sector begins with a jump and the name of its maker, and FAT, which may have any.
fn microsoft(region: &mut Region, at: u64) -> Option<Found> {
    let block = region.bytes(at, 512)?;
    let serial64 = le64(&block, 0x48).map(|serial| format!("{serial:016X}"));
    match array(&block, 3)? {
        // NTFS has its volume's serial number there.
        b if &b == b"NTFS    " => Some(Found { uuid: serial64, ..Found::plain(Kind::Ntfs) }),
        b if &b == b"-FVE-FS-" => Some(Found::plain(Kind::BitLocker)),
        // exFAT file system specification, 3.1.
        b if &b == b"EXFAT   " => Some(Found { uuid: serial(&block, 100), ..Found::plain(Kind::ExFat) }),
        _ => fat(&block),
    }
}

/// Microsoft's FAT specification (fatgen103), "Boot Sector and BPB". Nothing in it is a signature, so all of it has to
/// make sense.
fn fat(block: &[u8]) -> Option<Found> {
    let byte = |offset: usize| block.get(offset).copied();
    let sense = matches!(byte(0)?, 0xe9 | 0xeb)
        && matches!(le16(block, 11)?, 512 | 1024 | 2048 | 4096)
        && byte(13)?.is_power_of_two()
        && le16(block, 14)? > 0
        && matches!(byte(16)?, 1 | 2)
        && matches!(byte(21)?, 0xf0 | 0xf8..)
        && (le16(block, 19)? > 0 || le32(block, 32)? > 0);
    if !sense {
        return None;
    }
    // FAT32 leaves the 16-bit size of the table zero, and has its names further back.
    let names = if le16(block, 22)? == 0 { 64 } else { 36 };
    let told = byte(names + 2)? == 0x29;
    Some(Found {
        kind: Kind::Fat,
        label: text(block, names + 7, 11).filter(|label| told && label != "NO NAME"),
        uuid: serial(block, names + 3).filter(|_| told),
    })
}

/// As Windows and blkid show it.
fn serial(block: &[u8], offset: usize) -> Option<String> {
    le32(block, offset).map(|serial| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff))
}

/// ECMA-119, 8.4: the first volume descriptor.
fn iso9660(region: &mut Region, at: u64) -> Option<Found> {
    let block = region.bytes(at, 2048)?;
    has(&block, 1, b"CD001").then(|| Found { label: text(&block, 40, 32), ..Found::plain(Kind::Iso9660) })
}

/// linux/swap.h: the signature ends the first page, the rest of the header is behind the first KiB.
fn swap(region: &mut Region, at: u64) -> Option<Found> {
    let signature = region.bytes(at, 10)?;
    let kind = match signature.as_slice() {
        b"SWAPSPACE2" | b"SWAP-SPACE" => Kind::Swap,
        b"S1SUSPEND\0" | b"S2SUSPEND\0" | b"LINHIB0001" => Kind::Hibernation,
        _ => return None,
    };
    let header = region.bytes(1024, 44)?;
    Some(Found { kind, label: text(&header, 28, 16), uuid: uuid(&header, 12) })
}

/// LUKS1 on-disk format 1.2.3, figure 1; LUKS2 on-disk format 1.1, 2.1. Both have the UUID at the same place, in letters.
fn luks(region: &mut Region, at: u64) -> Option<Found> {
    let block = region.bytes(at, 512)?;
    if !has(&block, 0, b"LUKS\xba\xbe") {
        return None;
    }
    let (kind, label) = match be16(&block, 6)? {
        1 => (Kind::Luks1, None),
        _ => (Kind::Luks2, text(&block, 24, 48)),
    };
    Some(Found { kind, label, uuid: text(&block, 168, 40) })
}

fn luks2_second(region: &mut Region, at: u64) -> Option<Found> {
    let block = region.bytes(at, 512)?;
    has(&block, 0, b"SKUL\xba\xbe").then(|| Found {
        kind: Kind::LuksSecondHeader,
        label: text(&block, 24, 48),
        uuid: text(&block, 168, 40),
    })
}
