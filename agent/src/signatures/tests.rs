//! Made by the documented layouts, each with the least that makes it what it is.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const ID: [u8; 16] = 0x0123_4567_89ab_4def_8123_4567_89ab_cdef_u128.to_be_bytes();
const ID_TEXT: &str = "01234567-89ab-4def-8123-456789abcdef";

/// A drive that is empty but for a few pieces.
#[derive(Clone, Debug)]
struct Image {
    size: u64,
    pieces: Vec<(u64, Vec<u8>)>,
    bad: Option<u64>,
}

impl Image {
    fn new(size: u64, pieces: Vec<(u64, Vec<u8>)>) -> Self {
        Self { size, pieces, bad: None }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        assert!(end <= self.size, "within the drive");
        if self.bad.is_some_and(|bad| (offset..end).contains(&bad)) {
            return Err(io::Error::other("a bad block"));
        }
        for (start, piece) in &self.pieces {
            let (from, to) = (offset.max(*start), end.min(start.saturating_add(piece.len() as u64)));
            if from < to {
                let within = |base: u64| {
                    usize::try_from(from - base).expect("small")..usize::try_from(to - base).expect("small")
                };
                buffer[within(offset)].copy_from_slice(&piece[within(*start)]);
            }
        }
        Ok(())
    }

    fn contents(&self, block: u32) -> Contents {
        let mut read = |offset: u64, buffer: &mut [u8]| {
            assert!(offset.is_multiple_of(block.into()) && buffer.len().is_multiple_of(block as usize), "whole blocks");
            self.read(offset, buffer)
        };
        find(&mut read, self.size, block)
    }

    fn words(&self, block: u32) -> Vec<String> {
        self.contents(block).signatures.iter().map(Signature::to_string).collect()
    }
}

/// Bytes at offsets in a block of zeros.
fn block(length: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut block = vec![0; length];
    for (offset, bytes) in fields {
        block[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    block
}

fn le(n: u32) -> [u8; 4] {
    n.to_le_bytes()
}

fn ext(compat: u32, incompat: u32, ro_compat: u32) -> Vec<u8> {
    block(
        1024,
        &[
            (0x38, &[0x53, 0xef]),
            (0x5c, &le(compat)),
            (0x60, &le(incompat)),
            (0x64, &le(ro_compat)),
            (0x68, &ID),
            (0x78, b"root"),
        ],
    )
}

fn fat(names: usize, table: u16) -> Vec<u8> {
    block(
        512,
        &[
            (0, &[0xeb, 0x3c, 0x90]),
            (11, &[0, 2, 4, 1, 0, 2]),
            (21, &[0xf8]),
            (22, &table.to_le_bytes()),
            (32, &le(8192)),
            (names + 2, &[0x29, 0x78, 0x56, 0x34, 0x12]),
            (names + 7, b"EFI        "),
            (510, &[0x55, 0xaa]),
        ],
    )
}

fn md(name: &[u8], level: i32) -> Vec<u8> {
    block(256, &[(0, &le(0xa92b_4efc)), (4, &le(1)), (16, &ID), (32, name), (72, &le(level.cast_unsigned()))])
}

fn md_old(order: fn(u32) -> [u8; 4]) -> Vec<u8> {
    let mut fields = vec![(0, order(0xa92b_4efc)), (8, order(90)), (28, order(1))];
    fields.extend(
        [20, 52, 56, 60].into_iter().zip(ID.as_chunks::<4>().0).map(|(at, id)| (at, order(u32::from_be_bytes(*id)))),
    );
    block(4096, &fields.iter().map(|(at, bytes)| (*at, &bytes[..])).collect::<Vec<_>>())
}

fn lvm() -> Vec<(u64, Vec<u8>)> {
    let label = block(
        512,
        &[
            (0, b"LABELONE"),
            (20, &le(32)),
            (24, b"LVM2 001"),
            (32, b"abcdefGHIJklmnOPQRstuvWXYZ012345"),
            (64, &(64 * MIB).to_le_bytes()),
            (72, &MIB.to_le_bytes()),
            (104, &4096_u64.to_le_bytes()),
            (112, &(MIB - 4096).to_le_bytes()),
        ],
    );
    let header = block(512, &[(4, b" LVM2 x[5A%r0N*>"), (40, &1536_u64.to_le_bytes())]);
    vec![(512, label), (4096, header), (4096 + 1536, b"data {\nid = \"x\"\n".to_vec())]
}

fn bcache(magic: u128, version: u8) -> Vec<u8> {
    block(512, &[(16, &[version]), (24, &magic.to_be_bytes()), (40, &ID), (56, &ID), (72, b"fast")])
}

/// RFC 4506 pairs, each with its length in front, counted twice.
pub(crate) fn zfs() -> Vec<u8> {
    fn text(text: &str) -> Vec<u8> {
        let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
    let mut list = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for (name, kind, value) in [
        ("version", 8_u32, 5000_u64.to_be_bytes().to_vec()),
        ("name", 9, text("tank")),
        ("pool_guid", 8, 42_u64.to_be_bytes().to_vec()),
    ] {
        let body = [text(name), kind.to_be_bytes().to_vec(), vec![0, 0, 0, 1], value].concat();
        let length = u32::try_from(body.len() + 8).expect("short").to_be_bytes();
        list.extend([&length[..], &length, &body].concat());
    }
    list
}

fn luks(magic: &[u8], version: u8, label: &[u8]) -> Vec<u8> {
    block(512, &[(0, magic), (6, &[0, version]), (24, label), (168, ID_TEXT.as_bytes())])
}

/// What it is, where it lies, what it's called.
type Known = (&'static str, Vec<(u64, Vec<u8>)>, Vec<String>);

/// Everything that is known, on a device of 64 MiB.
fn all() -> Vec<Known> {
    let one = |name, at: u64, piece, words: &str| (name, vec![(at, piece)], vec![format!("{words}, at byte {at}")]);
    let end = 64 * MIB;
    let swap = |signature: &[u8]| block(4096, &[(1036, &ID), (1052, b"swap0"), (4086, signature)]);
    let mut all = vec![
        one("ext2", 1024, ext(0, 2, 1), &format!("ext2 file system \"root\", UUID {ID_TEXT}")),
        one("ext3", 1024, ext(4, 6, 3), &format!("ext3 file system \"root\", UUID {ID_TEXT}")),
        one("ext4 by extents", 1024, ext(4, 0x42, 0), &format!("ext4 file system \"root\", UUID {ID_TEXT}")),
        one("ext4 by checksums", 1024, ext(4, 2, 0x400), &format!("ext4 file system \"root\", UUID {ID_TEXT}")),
        one("journal", 1024, ext(0, 8, 0), &format!("journal of an ext4 file system \"root\", UUID {ID_TEXT}")),
        one(
            "xfs",
            0,
            block(512, &[(0, b"XFSB"), (32, &ID), (108, b"scratch")]),
            &format!("XFS file system \"scratch\", UUID {ID_TEXT}"),
        ),
        one(
            "btrfs",
            65536,
            block(4096, &[(0x20, &ID), (0x40, b"_BHRfS_M"), (0x12b, b"pool")]),
            &format!("btrfs file system \"pool\", UUID {ID_TEXT}"),
        ),
        one("FAT16", 0, fat(36, 32), "FAT file system \"EFI\", UUID 1234-5678"),
        one("FAT32", 0, fat(64, 0), "FAT file system \"EFI\", UUID 1234-5678"),
        one(
            "exFAT",
            0,
            block(512, &[(3, b"EXFAT   "), (100, &[0x78, 0x56, 0x34, 0x12])]),
            "exFAT file system, UUID 1234-5678",
        ),
        one(
            "NTFS",
            0,
            block(512, &[(3, b"NTFS    "), (0x48, &7_u64.to_le_bytes())]),
            "NTFS file system, UUID 0000000000000007",
        ),
        one("BitLocker", 0, block(512, &[(3, b"-FVE-FS-")]), "BitLocker volume"),
        one("ISO 9660", 32768, block(2048, &[(1, b"CD001"), (40, b"Debian 12   ")]), "ISO 9660 file system \"Debian 12\""),
        ("swap", vec![(0, swap(b"SWAPSPACE2"))], vec![format!("swap space \"swap0\", UUID {ID_TEXT}, at byte 4086")]),
        (
            "hibernated",
            vec![(0, swap(b"S1SUSPEND\0"))],
            vec![format!("image of a hibernated system \"swap0\", UUID {ID_TEXT}, at byte 4086")],
        ),
        one("LUKS1", 0, luks(b"LUKS\xba\xbe", 1, b""), &format!("LUKS1 volume, UUID {ID_TEXT}")),
        one("LUKS2", 0, luks(b"LUKS\xba\xbe", 2, b"secret"), &format!("LUKS2 volume \"secret\", UUID {ID_TEXT}")),
        one(
            "LUKS2 whose first header is gone",
            4 * MIB,
            luks(b"SKUL\xba\xbe", 2, b""),
            &format!("second header of a LUKS2 volume, UUID {ID_TEXT}"),
        ),
        (
            "LVM",
            lvm(),
            vec!["LVM physical volume of the volume group \"data\", UUID abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345, at byte 512".into()],
        ),
        one(
            "md 0.90",
            end - 65536,
            md_old(u32::to_le_bytes),
            &format!("Linux RAID member (raid1, metadata 0.90), UUID {ID_TEXT}"),
        ),
        one(
            "md 0.90 of a big machine",
            end - 65536,
            md_old(u32::to_be_bytes),
            &format!("Linux RAID member (raid1, metadata 0.90), UUID {ID_TEXT}"),
        ),
    ];
    for (at, format) in [(end - 8192, "1.0"), (0, "1.1"), (4096, "1.2")] {
        let words = format!("Linux RAID member (raid6, metadata {format}) of the array \"host:0\", UUID {ID_TEXT}");
        all.push(one("md 1", at, md(b"host:0", 6), &words));
    }
    all.extend([
        one("linear", 4096, md(b"", -1), &format!("Linux RAID member (linear, metadata 1.2), UUID {ID_TEXT}")),
        one("Intel", end - 1024, block(512, &[(0, b"Intel Raid ISM Cfg Sig. 1.3.00")]), "member of an Intel RAID"),
        one("DDF", end - 512, block(512, &[(0, &[0xde, 0x11, 0xde, 0x11])]), "member of a DDF RAID"),
        one(
            "bcache, backing",
            4096,
            bcache(0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81, 1),
            &format!("bcache backing device \"fast\", UUID {ID_TEXT}"),
        ),
        one(
            "bcache, cache",
            4096,
            bcache(0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81, 3),
            &format!("bcache cache \"fast\", UUID {ID_TEXT}"),
        ),
        one(
            "bcachefs",
            4096,
            bcache(0xc685_73f6_66ce_90a9_d96a_60cf_803d_f7ef, 1),
            &format!("bcachefs file system \"fast\", UUID {ID_TEXT}"),
        ),
        one(
            "BlueStore",
            0,
            format!("bluestore block device\n{ID_TEXT}\n").into_bytes(),
            &format!("Ceph OSD (BlueStore), UUID {ID_TEXT}"),
        ),
        one("DRBD 8", end - 4096, block(512, &[(60, &[0x83, 0x74, 0x02, 0x6b])]), "DRBD device"),
        one("DRBD 9", end - 4096, block(512, &[(60, &[0x83, 0x74, 0x02, 0x6d])]), "DRBD device"),
    ]);
    for label in [0, 256 << 10, end - (512 << 10), end - (256 << 10)] {
        all.push(one("ZFS", label + (16 << 10), zfs(), "member of a ZFS pool \"tank\", UUID 42"));
    }
    all
}

#[test]
fn each_is_recognised() {
    for (name, pieces, want) in all() {
        for block in [512, 4096] {
            let words = Image::new(64 * MIB, pieces.clone()).words(block);
            assert_eq!(words, want, "{name}, in blocks of {block}");
        }
    }
    assert_eq!(Image::new(64 * MIB, vec![]).words(512), Vec::<String>::new());
}

#[test]
fn what_only_looks_like_something() {
    let mut no_jump = fat(36, 32);
    no_jump[0] = 0;
    let mut odd_cluster = fat(36, 32);
    odd_cluster[13] = 3;
    for (name, at, piece) in [
        ("FAT without a jump", 0, no_jump),
        ("FAT with odd clusters", 0, odd_cluster),
        ("md of another major version", 4096, block(256, &[(0, &le(0xa92b_4efc)), (4, &le(2))])),
        ("md 1 where 0.90 lies", 64 * MIB - 65536, md(b"x", 1)),
        ("an LVM label of version 1", 512, block(512, &[(0, b"LABELONE"), (24, b"LVM1 001")])),
        ("a list without a version", 16 << 10, zfs()[..12].to_vec()),
        ("a signature one byte off", 1, b"LUKS\xba\xbe".to_vec()),
    ] {
        assert_eq!(Image::new(64 * MIB, vec![(at, piece)]).words(512), Vec::<String>::new(), "{name}");
    }
}

/// Header and entries as they lie on a drive, for partitions from block to block.
fn gpt(at: u64, entries_at: u64, block_bytes: u64, partitions: &[(u64, u64)]) -> Vec<(u64, Vec<u8>)> {
    let header = block(
        92,
        &[
            (0, b"EFI PART"),
            (24, &(at / block_bytes).to_le_bytes()),
            (56, &ID),
            (72, &(entries_at / block_bytes).to_le_bytes()),
            (80, &le(128)),
            (84, &le(128)),
        ],
    );
    let entries = partitions
        .iter()
        .flat_map(|(first, last)| block(128, &[(0, &ID), (32, &first.to_le_bytes()), (40, &last.to_le_bytes())]));
    vec![(at, header), (entries_at, entries.collect())]
}

fn mbr(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut sector = block(512, &[(510, &[0x55, 0xaa])]);
    for (slot, (kind, first, count)) in entries.iter().enumerate() {
        let entry = block(16, &[(4, &[*kind]), (8, &le(*first)), (12, &le(*count))]);
        sector[446 + 16 * slot..][..16].copy_from_slice(&entry);
    }
    sector
}

#[test]
fn partitions_are_looked_into() {
    const GUID: &str = "67452301-ab89-ef4d-8123-456789abcdef";
    let end = 64 * MIB;
    let ext4 = |at: u64| (at + 1024, ext(4, 0x42, 0));
    let found = |number: u32, at: u64| {
        format!("ext4 file system \"root\", UUID {ID_TEXT}, in partition {number} at byte {}", at + 1024)
    };
    let primary = gpt(512, 1024, 512, &[(2048, 4095), (4096, 8191)]);
    let backup = gpt(end - 512, end - 33 * 512, 512, &[(2048, 4095), (4096, 8191)]);
    let backup_words = format!("backup of a GPT partition table, UUID {GUID}, at byte {}", end - 512);
    for (name, pieces, block, want) in [
        (
            "GPT",
            [vec![(0, mbr(&[(0xee, 1, u32::MAX)]))], primary.clone(), backup.clone(), vec![ext4(MIB), ext4(2 * MIB)]]
                .concat(),
            512,
            vec![
                "protective MBR, at byte 0".to_owned(),
                format!("GPT partition table, UUID {GUID}, at byte 512"),
                backup_words.clone(),
                found(1, MIB),
                found(2, 2 * MIB),
            ],
        ),
        ("only the backup is left", [backup, vec![ext4(2 * MIB)]].concat(), 512, vec![backup_words, found(2, 2 * MIB)]),
        (
            "GPT in blocks of 4096 on a drive that has them",
            [gpt(4096, 8192, 4096, &[(256, 511)]), vec![ext4(MIB)]].concat(),
            4096,
            vec![format!("GPT partition table, UUID {GUID}, at byte 4096"), found(1, MIB)],
        ),
        (
            "a header that was moved here",
            gpt(4608, 8192, 512, &[(2048, 4095)]).into_iter().map(|(at, piece)| (at - 4096, piece)).collect(),
            512,
            vec![],
        ),
        (
            "MBR with logical partitions",
            vec![
                (0, mbr(&[(0x83, 2048, 2048), (0x05, 8192, 16384)])),
                (8192 * 512, mbr(&[(0x83, 2048, 2048), (0x05, 8192, 4096)])),
                (16384 * 512, mbr(&[(0x83, 2048, 2048)])),
                ext4(MIB),
                ext4(10240 * 512),
                ext4(18432 * 512),
            ],
            512,
            vec![
                "MBR partition table, at byte 0".to_owned(),
                found(1, MIB),
                found(5, 10240 * 512),
                found(6, 18432 * 512),
            ],
        ),
        (
            "a chain that leads to itself",
            vec![(0, mbr(&[(0x05, 8192, 16384)])), (8192 * 512, mbr(&[(0x83, 63, 63), (0x05, 0, 1)]))],
            512,
            vec!["MBR partition table, at byte 0".to_owned()],
        ),
        ("a boot sector with code for a table", vec![(0, mbr(&[(0x83, 0, 2048)]))], 512, vec![]),
    ] {
        assert_eq!(Image::new(end, pieces).words(block), want, "{name}");
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    let mut image = Image::new(64 * MIB, vec![(1024, ext(4, 0x42, 0)), (64 * MIB - 4096, md(b"a", 1))]);
    image.bad = Some(8192);
    let contents = image.contents(512);
    assert_eq!(contents.signatures.len(), 1, "{contents:?}");
    assert!(contents.unreadable.contains(&0), "the head at once, {:?}", contents.unreadable);
    image.bad = Some(1024);
    assert_eq!(image.contents(512).signatures, []);
}

#[test]
fn places_are_those_that_are_looked_at() {
    for (size, unit) in
        [(64 * MIB, 4096), (3 << 40, 4096), ((1 << 40) + 7 * 512, 4096), (64 * MIB, 512), (64 * MIB, 65536)]
    {
        let places = places(size, unit);
        for (name, pieces, _) in all().into_iter().filter(|_| size == 64 * MIB) {
            let mut image = Image::new(size, pieces);
            for place in &places {
                image.pieces.push((*place, vec![0xa5; unit as usize]));
            }
            assert_eq!(image.words(512), Vec::<String>::new(), "{name}, blocks of {unit}");
        }
        assert_eq!((places.first(), places.last()), (Some(&0), Some(&(size - u64::from(unit)))));
        assert!(places.len() < 60, "{}", places.len());
    }
}

proptest! {
    #[test]
    fn places_fit(sectors in 0u64..1 << 50, shift in 9u32..=16) {
        let (unit, size) = (1u64 << shift, sectors * 512);
        let places = places(size, 1 << shift);
        for pair in places.windows(2) {
            prop_assert!(pair[0] + unit <= pair[1], "{pair:?}");
        }
        prop_assert!(places.last().is_none_or(|last| last + unit <= size));
        prop_assert_eq!(places.is_empty(), size < unit);
        prop_assert!(places.iter().all(|place| place % 512 == 0), "O_DIRECT needs whole blocks");
    }

    #[test]
    fn any_bytes(
        size in prop::sample::select(vec![0, 511, 512, 4096, 70_000, 1 << 20, (64 << 20) + 512, 1 << 40, u64::MAX]),
        pieces in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..600)), 0..6),
        known in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        shift in 9u32..=12,
    ) {
        let mut image = Image::new(size, known.get(&all()).1.clone());
        for (_, piece) in &mut image.pieces {
            let length = cut.index(piece.len() + 1);
            piece.truncate(length);
        }
        let at = places(size, 512);
        for (place, piece) in pieces.into_iter().filter(|_| !at.is_empty()) {
            image.pieces.push((*place.get(&at), piece));
        }
        let contents = image.contents(1 << shift);
        prop_assert!(contents.signatures.iter().all(|found| found.offset < size));
        prop_assert!(contents.signatures.len() < 60 * (MAX_PARTITIONS + 1));
    }
}
