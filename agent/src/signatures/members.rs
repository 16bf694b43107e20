//! Members of arrays, volume groups, pools and caches.

use super::region::{Region, array, be32, has, le32, le64, text, uuid};
use super::{Found, Kind, Probe};

pub(super) const PROBES: &[Probe] = &[
    Probe { at: |_| vec![0, 512, 1024, 1536], parse: lvm },
    Probe { at: |size| ending(size, 64 << 10, 64 << 10), parse: md_0_90 },
    Probe { at: |size| ending(size, 4 << 10, 8 << 10), parse: |region, at| md_1(region, at, "1.0") },
    Probe { at: |_| vec![0], parse: |region, at| md_1(region, at, "1.1") },
    Probe { at: |_| vec![4096], parse: |region, at| md_1(region, at, "1.2") },
    Probe { at: |size| [ending(size, 1, 1024), ending(size, 1, 8192)].concat(), parse: intel },
    Probe { at: |size| ending(size, 1, 512), parse: ddf },
    Probe { at: |_| vec![4096], parse: bcache },
    Probe { at: zfs_labels, parse: zfs },
    Probe { at: |_| vec![0], parse: bluestore },
    Probe { at: |size| ending(size, 4096, 4096), parse: drbd },
];

/// `back` bytes in front of the end, which is rounded down to a multiple of `unit`.
fn ending(size: u64, unit: u64, back: u64) -> Vec<u64> {
    (size / unit * unit).checked_sub(back).into_iter().collect()
}

/// A label in one of the first four sectors, and the header of the physical volume behind it (lvm2, lib/label/label.h and
/// lib/format_text/layout.h).
fn lvm(region: &mut Region, at: u64) -> Option<Found> {
    let sector = region.bytes(at, 512)?;
    if !has(&sector, 0, b"LABELONE") || !has(&sector, 24, b"LVM2 001") {
        return None;
    }
    let header = usize::try_from(le32(&sector, 20)?).ok()?;
    let id = header.checked_add(32).and_then(|end| sector.get(header..end)).filter(|id| id.is_ascii());
    let uuid = id.map(|id| {
        let mut written = String::new();
        for (place, byte) in id.iter().enumerate() {
            if [6, 10, 14, 18, 22, 26].contains(&place) {
                written.push('-');
            }
            written.push(char::from(*byte));
        }
        written
    });
    let label = volume_group(region, &sector, header);
    Some(Found { kind: Kind::LvmPhysicalVolume, label, uuid })
}

/// Metadata are text that begins with the name of the volume group.
fn volume_group(region: &mut Region, sector: &[u8], header: usize) -> Option<String> {
    // UUID and size, then areas of data until an empty one, then areas of metadata.
    let mut areas = header.checked_add(40)?;
    while le64(sector, areas)? != 0 {
        areas = areas.checked_add(16)?;
    }
    let area = le64(sector, areas.checked_add(16)?)?;
    let metadata = region.bytes(area, 512)?;
    if !has(&metadata, 4, b" LVM2 x[5A%r0N*>") {
        return None;
    }
    // The text wraps around in its area, but never its first words: it starts at a sector.
    let words = region.bytes(area.checked_add(le64(&metadata, 40)?)?, 512)?;
    let end = words.iter().position(|b| b.is_ascii_whitespace() || *b == b'{')?;
    text(&words, 0, end)
}

/// linux/raid/md_p.h, `mdp_super_t`; in the byte order of whoever made it.
fn md_0_90(region: &mut Region, at: u64) -> Option<Found> {
    const MAGIC: u32 = 0xa92b_4efc;
    let block = region.bytes(at, 4096)?;
    let read: fn(&[u8], usize) -> Option<u32> = match (le32(&block, 0)?, be32(&block, 0)?) {
        (MAGIC, _) => le32,
        (_, MAGIC) => be32,
        _ => return None,
    };
    if read(&block, 4)? != 0 {
        return None;
    }
    let mut id = Vec::new();
    for word in [20, 52, 56, 60] {
        id.extend(read(&block, word)?.to_be_bytes());
    }
    let level = read(&block, 28)?.cast_signed();
    Some(Found { kind: Kind::Md { format: "0.90", level }, label: None, uuid: uuid(&id, 0) })
}

/// linux/raid/md_p.h, `struct mdp_superblock_1`.
fn md_1(region: &mut Region, at: u64, format: &'static str) -> Option<Found> {
    let block = region.bytes(at, 256)?;
    if le32(&block, 0)? != 0xa92b_4efc || le32(&block, 4)? != 1 {
        return None;
    }
    let level = le32(&block, 72)?.cast_signed();
    Some(Found { kind: Kind::Md { format, level }, label: text(&block, 32, 32), uuid: uuid(&block, 16) })
}

/// Intel's metadata end with their first sector, one before the drive's last.
fn intel(region: &mut Region, at: u64) -> Option<Found> {
    has(&region.bytes(at, 32)?, 0, b"Intel Raid ISM Cfg Sig. ").then(|| Found::plain(Kind::IntelRaid))
}

/// SNIA Common RAID Disk Data Format 2.0, 5.4: the anchor is the drive's last sector.
fn ddf(region: &mut Region, at: u64) -> Option<Found> {
    (be32(&region.bytes(at, 512)?, 0)? == 0xde11_de11).then(|| Found::plain(Kind::Ddf))
}

/// linux/bcache.h, `struct cache_sb`; bcachefs has taken over the layout with a magic of its own.
fn bcache(region: &mut Region, at: u64) -> Option<Found> {
    const BCACHE: [u8; 16] = 0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81_u128.to_be_bytes();
    const BCACHEFS: [u8; 16] = 0xc685_73f6_66ce_90a9_d96a_60cf_803d_f7ef_u128.to_be_bytes();
    let block = region.bytes(at, 512)?;
    let kind = match array(&block, 24)? {
        BCACHEFS => Kind::Bcachefs,
        // Odd until there were versions with more; backing devices are 1, 4 and 6.
        BCACHE if matches!(le64(&block, 16)?, 1 | 4 | 6) => Kind::BcacheBacking,
        BCACHE => Kind::BcacheCache,
        _ => return None,
    };
    let id = if kind == Kind::Bcachefs { 56 } else { 40 };
    Some(Found { kind, label: text(&block, 72, 32), uuid: uuid(&block, id) })
}

/// ZFS On-Disk Specification, 1.2.1: four labels of 256 KiB, two at each end of a device that is rounded down to that. The
/// list of names and values is behind 16 KiB of each.
fn zfs_labels(size: u64) -> Vec<u64> {
    const LABEL: u64 = 256 << 10;
    let end = size / LABEL * LABEL;
    let labels = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    let mut at: Vec<u64> = labels.into_iter().flatten().map(|label| label + (16 << 10)).collect();
    at.sort_unstable();
    at.dedup();
    at
}

/// ZFS On-Disk Specification, 1.3.3: values in XDR (RFC 4506), with a header that says so.
fn zfs(region: &mut Region, at: u64) -> Option<Found> {
    const STRING: u32 = 9;
    const UINT64: u32 = 8;
    const MOST: usize = 64;
    let list = region.bytes(at, 4096)?;
    // Encoding 1 is XDR; then the version of the list and a flag for unique names.
    if array(&list, 0) != Some([1]) || be32(&list, 4)? != 0 || be32(&list, 8)? != 1 {
        return None;
    }
    let (mut pair, mut version) = (12_usize, false);
    let mut found = Found::plain(Kind::Zfs);
    for _ in 0..MOST {
        let Some(length) = be32(&list, pair).and_then(|length| usize::try_from(length).ok()).filter(|n| *n > 0) else {
            break;
        };
        let Some((name, value)) = named(&list, pair.saturating_add(8)) else { break };
        match (name.as_str(), be32(&list, value)) {
            ("version", Some(UINT64)) => version = true,
            ("name", Some(STRING)) => found.label = named(&list, value.saturating_add(8)).map(|(name, _)| name),
            ("pool_guid", Some(UINT64)) => {
                let guid = array(&list, value.saturating_add(8)).map(u64::from_be_bytes);
                found.uuid = guid.map(|guid| guid.to_string());
            }
            _ => {}
        }
        pair = pair.saturating_add(length);
    }
    version.then_some(found)
}

/// A string with its length in front, and where the next value begins.
fn named(list: &[u8], at: usize) -> Option<(String, usize)> {
    let length = usize::try_from(be32(list, at)?).ok()?;
    let name = text(list, at.checked_add(4)?, length)?;
    Some((name, at.checked_add(4)?.checked_add(length.checked_next_multiple_of(4)?)?))
}

/// ceph, src/os/bluestore/bluestore_types: a line, and the UUID of the OSD in letters.
fn bluestore(region: &mut Region, at: u64) -> Option<Found> {
    const LINE: &[u8] = b"bluestore block device\n";
    let block = region.bytes(at, 512)?;
    has(&block, 0, LINE).then(|| Found { uuid: text(&block, LINE.len(), 36), ..Found::plain(Kind::BlueStore) })
}

/// drbd, `struct meta_data_on_disk`: the last 4 KiB of a device with internal metadata, in versions 8.0 to 9.
fn drbd(region: &mut Region, at: u64) -> Option<Found> {
    let block = region.bytes(at, 512)?;
    matches!(be32(&block, 60)?, 0x8374_026b..=0x8374_026d).then(|| Found::plain(Kind::Drbd))
}
