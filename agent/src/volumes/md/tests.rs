//! Beside `mdadm`: what it writes and what it reads.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::existing::{Found, Part, arrays, part};
use super::superblock::BYTES;
use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ARRAY: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// A superblock or a bitmap that `mdadm` wrote.
struct Theirs {
    sectors: u64,
    sector: u64,
    bytes: Vec<u8>,
}

fn theirs(name: &str) -> Theirs {
    let lines = include_str!("mdadm-4.2.txt").lines();
    let line = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).next().expect(name);
    let [sectors, sector, hex]: [&str; 3] = line.split(' ').collect::<Vec<_>>().try_into().expect("three words");
    let mut bytes = hex::decode(hex).expect("hex");
    if bytes.len() > 256 {
        bytes.resize(512, 0xff);
    }
    bytes.resize(BYTES, 0);
    Theirs { sectors: sectors.parse().expect("a number"), sector: sector.parse().expect("a number"), bytes }
}

fn wanted(level: Level, metadata: Metadata, sizes: &[u64]) -> Wanted {
    let member = |(number, bytes): (u128, &u64)| Member {
        path: format!("/dev/sd{number}").into(),
        bytes: *bytes,
        uuid: Uuid::from_u128(number + 1),
    };
    Wanted {
        uuid: ARRAY,
        name: "root".to_owned(),
        level,
        metadata,
        created: 1_800_000_000,
        members: (0..).zip(sizes).map(member).collect(),
        spares: Vec::new(),
        contents: Contents::Same,
    }
}

/// The superblock among the pieces of a member, and the bitmap if there is one.
fn pieces(writes: &Writes) -> (&Piece, Option<&Piece>) {
    match writes.pieces.as_slice() {
        [superblock] => (superblock, None),
        [bitmap, superblock] => (superblock, Some(bitmap)),
        other => panic!("{} pieces", other.len()),
    }
}

#[test]
fn the_same_bytes_as_mdadm() {
    use Level::{Raid0, Raid1};
    use Metadata::{V1_0, V1_2};
    for (name, own_name, level, metadata, members, spares) in [
        ("mirror-with-spare", "0", Raid1, V1_2, "ab", "c"),
        ("stripes", "fast", Raid0, V1_2, "ab", ""),
        ("uneven-stripes", "fast", Raid0, V1_2, "ad", ""),
        ("esp", "esp", Raid1, V1_0, "ab", ""),
        ("uneven-mirror", "uneven", Raid1, V1_2, "bd", ""),
        ("uneven-at-the-end", "uneven-at-the-end", Raid1, V1_0, "bd", ""),
        ("middle", "0", Raid1, V1_2, "gh", ""),
        ("large", "0", Raid1, V1_2, "ef", ""),
        ("huge", "0", Raid1, V1_2, "ij", ""),
        ("long-name", "12345678901234567890123456789", Raid1, V1_2, "a", ""),
        ("longer-name", "123456789012345678901234567", Raid1, V1_2, "a", ""),
    ] {
        let all: Vec<Theirs> =
            members.chars().chain(spares.chars()).map(|member| theirs(&format!("{name}-{member}"))).collect();
        let said: Vec<Superblock> = all
            .iter()
            .map(|theirs| Superblock::parse(&theirs.bytes, theirs.sector).unwrap_or_else(|e| panic!("{name}: {e}")))
            .collect();
        let mut wanted = Wanted { name: own_name.to_owned(), ..wanted(level, metadata, &[]) };
        wanted.created = said[0].created;
        for (number, (theirs, said)) in all.iter().zip(&said).enumerate() {
            let path = format!("/dev/sd{number}").into();
            let member = Member { path, bytes: theirs.sectors * SECTOR, uuid: said.member };
            if number < members.len() { wanted.members.push(member) } else { wanted.spares.push(member) }
        }
        // Of some there is one here and another one like it.
        if wanted.members.len() == 1 {
            wanted.members.push(Member { path: "/dev/other".into(), ..wanted.members[0].clone() });
        }
        let plan = plan(&wanted).unwrap_or_else(|e| panic!("{name}: {e}"));
        for ((theirs, said), writes) in all.iter().zip(&said).zip(&plan.writes) {
            let (superblock, bitmap) = pieces(writes);
            let ours = Superblock::parse(&superblock.bytes, superblock.offset / SECTOR).expect(name);
            assert_eq!(&ours, said, "{name}");
            assert_eq!(superblock.offset, theirs.sector * SECTOR, "{name}");
            assert_eq!(superblock.bytes, theirs.bytes, "{name}");
            assert_eq!(bitmap.is_some(), said.bitmap_offset != 0, "{name}");
            if let Some(bitmap) = bitmap {
                assert_eq!(bitmap.bytes[..256], self::theirs(&format!("{name}-bitmap")).bytes[..256], "{name}");
            }
        }
    }
}

#[test]
fn a_mirror_says_that_it_is_to_be_copied() {
    let theirs = theirs("mirror-to-be-copied-a");
    let said = Superblock::parse(&theirs.bytes, 8).expect("a superblock");
    assert!(said.resync_offset < said.size, "the kernel had begun");
    let wanted = Wanted { contents: Contents::Unknown, ..wanted(Level::Raid1, Metadata::V1_2, &[300 * MIB; 2]) };
    let mirror = plan(&wanted).expect("fits");
    let ours = Superblock::parse(&pieces(&mirror.writes[0]).0.bytes, 8).expect("ours");
    assert!(mirror.resync && ours.resync_offset == 0);
    assert_eq!(
        Superblock { resync_offset: said.resync_offset, events: said.events, updated: said.updated, ..ours.clone() },
        Superblock { array: ours.array, name: ours.name, created: ours.created, member: ours.member, ..said }
    );
    let large =
        plan(&Wanted { contents: Contents::Unknown, ..self::wanted(Level::Raid1, Metadata::V1_2, &[GIB << 8; 2]) });
    let large = large.expect("fits");
    let bitmap = pieces(&large.writes[1]).1.expect("a bitmap");
    let marked: u32 = bitmap.bytes[256..].iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(u64::from(marked), large.bytes.div_ceil(64 * MIB), "every region is marked");
    let stripes = plan(&Wanted { level: Level::Raid0, ..wanted }).expect("fits");
    assert!(!stripes.resync, "stripes are no copies of each other");
}

/// What `mdadm` says of a file, line by line, without blanks at either end.
fn mdadm(option: &str, file: &Path) -> String {
    let output = Command::new("mdadm").arg(option).arg(file).output();
    let output = output.expect("mdadm runs; it is in the Debian package mdadm");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| format!("{}\n", line.trim())).collect()
}

/// A file with everything that is written to a member, on top of what was there before.
fn file(writes: &Writes, before: &[(u64, &[u8])]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(writes.bytes).expect("sparse");
    for (offset, bytes) in before {
        file.as_file().write_all_at(bytes, *offset).expect("written");
    }
    for (offset, length) in &writes.zeros {
        file.as_file().write_all_at(&vec![0; *length], *offset).expect("zeros");
    }
    for piece in &writes.pieces {
        file.as_file().write_all_at(&piece.bytes, piece.offset).expect("written");
    }
    file
}

#[test]
fn mdadm_reads_it() {
    use Level::{Raid0, Raid1};
    use Metadata::{V1_0, V1_2};
    let same = Contents::Same;
    for (name, level, metadata, sizes, spares, contents, want) in [
        (
            "mirror",
            Raid1,
            V1_2,
            vec![GIB, GIB],
            1,
            same,
            ["Version : 1.2", "Raid Level : raid1", "State : clean", "Data Offset : 4096 sectors", "Raid Devices : 2"],
        ),
        (
            "mirror that isn't in sync",
            Raid1,
            V1_2,
            vec![GIB; 3],
            0,
            Contents::Unknown,
            ["Version : 1.2", "Raid Level : raid1", "State : active", "Array Size : 1046528 KiB", "Raid Devices : 3"],
        ),
        (
            "mirror for firmware",
            Raid1,
            V1_0,
            vec![512 * MIB + 512, 512 * MIB],
            0,
            same,
            [
                "Version : 1.0",
                "Raid Level : raid1",
                "State : clean",
                "Used Dev Size : 1048448 sectors",
                "Raid Devices : 2",
            ],
        ),
        (
            "mirror with a bitmap",
            Raid1,
            V1_2,
            vec![300 * GIB; 2],
            0,
            same,
            [
                "Version : 1.2",
                "Feature Map : 0x1",
                "State : clean",
                "Internal Bitmap : 8 sectors from superblock",
                "Raid Devices : 2",
            ],
        ),
        (
            "mirror for firmware with a bitmap",
            Raid1,
            V1_0,
            vec![300 * GIB; 2],
            0,
            Contents::Unknown,
            [
                "Version : 1.0",
                "Feature Map : 0x1",
                "State : active",
                "Internal Bitmap : -16 sectors from superblock",
                "Raid Devices : 2",
            ],
        ),
        (
            "stripes",
            Raid0,
            V1_2,
            vec![GIB, 3 * GIB, GIB],
            0,
            same,
            ["Version : 1.2", "Raid Level : raid0", "State : clean", "Chunk Size : 512K", "Layout : original"],
        ),
    ] {
        let mut wanted = Wanted { contents, ..wanted(level, metadata, &sizes) };
        wanted.spares =
            (0..spares).map(|_| Member { path: "/dev/spare".into(), ..wanted.members[0].clone() }).collect();
        let plan = plan(&wanted).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (number, writes) in plan.writes.iter().enumerate() {
            // A superblock of each other kind.
            let before = theirs("esp-a").bytes;
            let file = file(writes, &[(4096, &before), (0, &before), ((writes.bytes / 4096 - 2) * 4096, &before)]);
            let said = mdadm("--examine", file.path());
            let role = if number < sizes.len() {
                format!("Device Role : Active device {number}\n")
            } else {
                "Device Role : spare\n".into()
            };
            let uuid = format!("Array UUID : {}\n", written(ARRAY));
            for want in want.into_iter().chain(["- correct\n", "Name : any:root\n", &role, &uuid]) {
                assert!(said.contains(want), "{name}: {want:?} in {said}");
            }
            if let (_, Some(bitmap)) = pieces(writes) {
                // From a file it reads bitmaps alone.
                let alone = tempfile::NamedTempFile::new().expect("a file");
                alone.as_file().write_all_at(&bitmap.bytes, 0).expect("written");
                let said = mdadm("--examine-bitmap", alone.path());
                let bits = plan.bytes.div_ceil(64 * MIB);
                let dirty = if plan.resync { bits } else { 0 };
                for want in [
                    format!("Bitmap : {bits} bits (chunks), {dirty} dirty"),
                    "Chunksize : 64 MB\n".to_owned(),
                    uuid.replace("Array UUID", "UUID"),
                ] {
                    assert!(said.contains(&want), "{name}: {want:?} in {said}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_said() {
    use Level::{Raid0, Raid1};
    let good = wanted(Raid1, Metadata::V1_2, &[GIB; 2]);
    let spare = Member { path: "/dev/spare".into(), ..good.members[0].clone() };
    for (name, wanted, want) in [
        (
            "alone",
            Wanted { members: good.members[..1].to_vec(), ..good.clone() },
            "the array \"root\" has one member or none: a RAID 1 has two or more",
        ),
        (
            "spares of stripes",
            Wanted { level: Raid0, spares: vec![spare.clone()], ..good.clone() },
            "the array \"root\" has spares, but a RAID 0 has no use for them: make them members, or the array a RAID 1",
        ),
        (
            "twice",
            Wanted { spares: vec![good.members[1].clone()], ..good.clone() },
            "/dev/sd1 is in the array \"root\" twice",
        ),
        (
            "too small",
            wanted(Raid1, Metadata::V1_2, &[GIB, MIB]),
            "/dev/sd1 is too small for the array \"root\": it has 1.0 MiB, of which 1.0 MiB are for the array's own use",
        ),
        (
            "too small for a chunk",
            wanted(Raid0, Metadata::V1_2, &[GIB, 2 * MIB]),
            "/dev/sd1 is too small for the array \"root\": it has 2.0 MiB, of which 2.5 MiB are for the array's own use",
        ),
        (
            "nothing",
            wanted(Raid1, Metadata::V1_0, &[0, 0]),
            "/dev/sd0 is too small for the array \"root\": it has 0 B, of which 64.0 KiB are for the array's own use",
        ),
        (
            "many",
            wanted(Raid1, Metadata::V1_2, &[GIB; 129]),
            "the array \"root\" has 129 members and spares, 128 is the most that is possible",
        ),
        (
            "no name",
            Wanted { name: String::new(), ..good.clone() },
            "\"\" can't be the name of an array: it takes 1 to 32 bytes without blanks, slashes and colons",
        ),
        (
            "a path",
            Wanted { name: "/dev/md0".into(), ..good.clone() },
            "\"/dev/md0\" can't be the name of an array: it takes 1 to 32 bytes without blanks, slashes and colons",
        ),
    ] {
        assert_eq!(plan(&wanted).expect_err(name).to_string(), want, "{name}");
    }
}

#[test]
fn a_plan_is_said_in_words() {
    let mut wanted = Wanted { contents: Contents::Unknown, ..wanted(Level::Raid1, Metadata::V1_2, &[10 * GIB; 3]) };
    wanted.spares.extend(wanted.members.pop());
    assert_eq!(
        plan(&wanted).expect("fits").to_string(),
        "RAID 1 any:root, UUID 01234567:89abcdef:01234567:89abcdef, metadata 1.2: 9.9 GiB on /dev/sd0, /dev/sd1, and \
         /dev/sd2 as spare; the installed system will copy the first to the others"
    );
}

/// The members of an array, as they're read from its devices.
fn read_back(plan: &Plan) -> Vec<Part> {
    plan.writes
        .iter()
        .map(|writes| {
            let file = file(writes, &[]);
            let opened = File::open(file.path()).expect("opened");
            let mut read = |offset: u64, buffer: &mut [u8]| opened.read_exact_at(buffer, offset);
            part(&writes.path, &mut read, writes.bytes, 512).expect("no trouble").expect("a member")
        })
        .collect()
}

#[test]
fn what_was_made_is_found() {
    for metadata in [Metadata::V1_0, Metadata::V1_2] {
        let mut wanted = wanted(Level::Raid1, metadata, &[GIB, GIB, GIB + 512]);
        wanted.spares.extend(wanted.members.pop());
        let plan = plan(&wanted).expect("fits");
        let mut parts = read_back(&plan);
        parts.reverse();
        let found = arrays(parts);
        let path = |n: u32| PathBuf::from(format!("/dev/sd{n}"));
        let want = Existing {
            uuid: ARRAY,
            name: "any:root".to_owned(),
            level: 1,
            minor_version: metadata.minor(),
            raid_disks: 2,
            members: vec![(Role::Active(0), path(0)), (Role::Active(1), path(1)), (Role::Spare, path(2))],
            stale: vec![],
        };
        assert_eq!(found, Found { arrays: vec![want.clone()], unusable: vec![] });
        assert_eq!((want.own_name(), want.missing()), ("root", vec![]));
    }
}

#[test]
fn members_that_do_not_fit_together() {
    let plan = plan(&wanted(Level::Raid1, Metadata::V1_2, &[GIB; 3])).expect("fits");
    let parts = read_back(&plan);
    let with = |change: &dyn Fn(&mut Vec<Part>)| {
        let mut parts = parts.clone();
        change(&mut parts);
        let found = arrays(parts);
        let arrays = found.arrays.iter().map(|array| (array.members.len(), array.stale.len(), array.missing()));
        (arrays.collect::<Vec<_>>(), found.unusable)
    };
    for (name, (arrays, unusable), want) in [
        ("all there", with(&|_| {}), vec![(3, 0, vec![])]),
        ("one is missing", with(&|parts| drop(parts.remove(1))), vec![(2, 0, vec![1])]),
        ("one event behind", with(&|parts| parts[0].superblock.events = 1), vec![(3, 0, vec![])]),
        ("two events behind", with(&|parts| parts[2].superblock.events = 2), vec![(1, 2, vec![0, 1])]),
        (
            "another array's",
            with(&|parts| parts[0].superblock.array = Uuid::from_u128(9)),
            vec![(1, 0, vec![1, 2]), (2, 0, vec![0])],
        ),
        ("nothing", with(&Vec::clear), vec![]),
    ] {
        assert_eq!(arrays, want, "{name}");
        assert_eq!(unusable, Vec::<String>::new(), "{name}");
    }
    let (arrays, unusable) = with(&|parts| parts.push(Part { path: "/dev/copy".into(), ..parts[1].clone() }));
    assert_eq!(arrays, vec![]);
    assert_eq!(
        unusable,
        [
            "/dev/copy and /dev/sd1 both say that they are device 1 of the array any:root: one is a copy of the other, and \
             which one counts isn't known"
        ]
    );
}

#[test]
fn a_device_that_says_two_things_is_not_believed() {
    let plan = |metadata| plan(&wanted(Level::Raid1, metadata, &[GIB; 2])).expect("fits").writes.remove(0);
    let (start, end) = (plan(Metadata::V1_2), plan(Metadata::V1_0));
    let both = Writes { pieces: [start.pieces.clone(), end.pieces].concat(), ..start.clone() };
    let mut flipped = start.clone();
    flipped.pieces[0].bytes[100] ^= 1;
    let said = |writes: &Writes, bad: Option<u64>| {
        let file = file(writes, &[]);
        let opened = File::open(file.path()).expect("opened");
        let mut read = |offset: u64, buffer: &mut [u8]| match bad {
            Some(bad) if (offset..offset + buffer.len() as u64).contains(&bad) => Err(std::io::Error::other("bad")),
            _ => opened.read_exact_at(buffer, offset),
        };
        part(Path::new("/dev/sda"), &mut read, writes.bytes, 512).map_err(|e| format!("{e:#}"))
    };
    assert!(matches!(said(&start, None), Ok(Some(_))));
    for (name, writes, bad, want) in [
        ("two", &both, None, "there are superblocks of two arrays, metadata 1.0 and 1.2: which one counts isn't known"),
        ("damaged", &flipped, None, "the superblock at byte 4096 can't be used: its checksum is"),
        ("unreadable", &start, Some(4096), "byte 0 can't be read, so it isn't known whether this belongs to an array"),
    ] {
        let error = said(writes, bad).expect_err(name);
        assert!(error.starts_with(want), "{name}: {error}");
    }
    let magic = Piece { offset: 0, bytes: start.pieces[0].bytes[..512].to_vec() };
    let short = Writes { bytes: 513, zeros: vec![], pieces: vec![magic], ..start.clone() };
    let error = said(&short, None).expect_err("shorter than a superblock");
    assert_eq!(error, "the superblock at byte 0 can't be read");
    let empty = Writes { pieces: vec![], ..start };
    assert_eq!(said(&empty, None), Ok(None));
}

proptest! {
    #[test]
    fn nothing_overlaps(
        sectors in prop::collection::vec(prop_oneof![0u64..1 << 14, 0u64..1 << 36, 0..1u64 << 55], 2..5),
        raid0 in any::<bool>(),
        at_the_end in any::<bool>(),
        unknown in any::<bool>(),
    ) {
        let sizes: Vec<u64> = sectors.iter().map(|sectors| sectors * SECTOR).collect();
        let level = if raid0 { Level::Raid0 } else { Level::Raid1 };
        let metadata = if at_the_end { Metadata::V1_0 } else { Metadata::V1_2 };
        let contents = if unknown { Contents::Unknown } else { Contents::Same };
        let plan = match plan(&Wanted { contents, ..wanted(level, metadata, &sizes) }) {
            Ok(plan) => plan,
            Err(Misfit::Small { bytes, own, .. }) => {
                prop_assert!(bytes < own + 32768);
                return Ok(());
            }
            Err(e) => {
                prop_assert_eq!(e, Misfit::Large { name: "root".to_owned() });
                prop_assert!(raid0 && sectors.iter().sum::<u64>() > 1 << 53);
                return Ok(());
            }
        };
        let mut total = 0u128;
        for (writes, bytes) in plan.writes.iter().zip(&sizes) {
            let (piece, bitmap) = pieces(writes);
            let superblock = Superblock::parse(&piece.bytes, piece.offset / SECTOR).expect("ours");
            let data = superblock.data_offset * SECTOR..(superblock.data_offset + superblock.data_size) * SECTOR;
            prop_assert!(superblock.size <= superblock.data_size);
            total += u128::from(superblock.data_size / CHUNK_SECTORS * CHUNK_SECTORS * SECTOR);
            let list = superblock.super_offset.checked_add_signed(superblock.bad_blocks_offset.into()).expect("there");
            let mut taken = vec![
                data,
                piece.offset..piece.offset + piece.bytes.len() as u64,
                list * SECTOR..(list + u64::from(superblock.bad_blocks)) * SECTOR,
            ];
            taken.extend(bitmap.map(|bitmap| bitmap.offset..bitmap.offset + bitmap.bytes.len() as u64));
            taken.sort_by_key(|range| range.start);
            for pair in taken.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start, "{taken:?}");
            }
            prop_assert!(taken.last().is_some_and(|last| last.end <= *bytes), "{taken:?}");
            for (offset, length) in &writes.zeros {
                prop_assert!(offset + *length as u64 <= *bytes);
            }
            for piece in &writes.pieces {
                prop_assert!(piece.offset.is_multiple_of(4096) && piece.bytes.len().is_multiple_of(4096));
            }
            if level == Level::Raid1 {
                prop_assert_eq!(superblock.size * SECTOR, plan.bytes);
            }
        }
        if level == Level::Raid0 {
            prop_assert_eq!(u128::from(plan.bytes), total);
        }
    }
}
