use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ID: Uuid = Uuid::from_u128(0x0102_0304_0506_4708_890a_0b0c_0d0e_0f10);
const VOLUME: u32 = 0x1234_abcd;

fn new<'a>(format: Format, label: &'a str, bytes: u64, options: &'a [String]) -> New<'a> {
    New { format, label, bytes, logical_block: 512, options }
}

fn words(text: &str) -> Vec<String> {
    text.split('|').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn tools() -> Tools {
    let tools = Tools::find();
    assert!(tools.mke2fs.is_some(), "mke2fs is there; it is in the Debian package e2fsprogs");
    assert!(tools.mkfs_xfs.is_some(), "mkfs.xfs is there; it is in the Debian package xfsprogs");
    tools
}

/// On a file as large as a device would be.
fn make(new: &New) -> NamedTempFile {
    let file = NamedTempFile::new().expect("temporary file");
    file.as_file().set_len(new.bytes).expect("sparse file");
    let making = plan(new, &tools()).unwrap_or_else(|e| panic!("{new:?}: {e}"));
    making.carry_out(file.path()).unwrap_or_else(|e| panic!("{new:?}: {e:#}"));
    assert_eq!(file.as_file().metadata().expect("a file").len(), new.bytes, "it doesn't grow");
    file
}

fn judge(program: &str, arguments: &[&str], file: &NamedTempFile) -> String {
    let output = Command::new(program).args(arguments).arg(file.path()).output();
    let output = output.unwrap_or_else(|e| panic!("{program} ({e}); its Debian package is in lab/src/setup.rs"));
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{program} {arguments:?}: {} {said}", output.status);
    said
}

/// What udev would say of it.
fn blkid(file: &NamedTempFile, wanted: &[(&str, &str)]) {
    let said = judge("blkid", &["-p", "-o", "export"], file);
    for (name, value) in wanted {
        let line = format!("{name}={value}");
        assert!(said.lines().any(|found| found == line), "no {line} in {said}");
    }
}

#[test]
fn e2fsck_finds_nothing_wrong() {
    let id = ID.to_string();
    for (name, format, label, bytes, options, features) in [
        ("smallest", Format::Ext4(ID), "sixteen bytes ok", 16 * MIB, "", "metadata_csum_seed has_journal extent"),
        ("large", Format::Ext4(ID), "root", 3 << 40, "", "metadata_csum_seed 64bit resize_inode"),
        ("ext3", Format::Ext3(ID), "old", GIB, "", "has_journal dir_index resize_inode !extent !metadata_csum"),
        (
            "as wished",
            Format::Ext4(ID),
            "",
            GIB,
            "-O ^has_journal|-E|stride=32,stripe_width=64|-b1024 -m 5|-F|-i 65536",
            "metadata_csum_seed !has_journal",
        ),
        ("own journal", Format::Ext4(ID), "", GIB, "-J size=16|-T largefile", "has_journal"),
    ] {
        let file = make(&new(format, label, bytes, &words(options)));
        judge("e2fsck", &["-fn"], &file);
        let kind = format.to_string();
        blkid(&file, &[("UUID", &id), ("TYPE", &kind)]);
        if !label.is_empty() {
            blkid(&file, &[("LABEL", &label.replace(' ', "\\ "))]);
        }
        let show = judge("dumpe2fs", &["-h"], &file);
        let line = show.lines().find_map(|line| line.strip_prefix("Filesystem features:")).expect("a line");
        for feature in features.split(' ') {
            let (feature, wanted) = feature.strip_prefix('!').map_or((feature, true), |feature| (feature, false));
            assert_eq!(line.split_whitespace().any(|found| found == feature), wanted, "{name}: {feature} in {line}");
        }
        if name == "as wished" {
            for line in
                ["Block size:               1024", "RAID stride:              32", "RAID stripe width:        64"]
            {
                assert!(show.contains(line), "{name}: no {line} in {show}");
            }
        }
    }
}

#[test]
fn xfs_repair_finds_nothing_wrong() {
    let id = ID.to_string();
    for (name, label, bytes, options, geometry) in [
        ("smallest", "twelve bytes", 300 * MIB, "", "bigtime=0 inobtcount=0 nrext64=0 reflink=1 sparse=1 crc=1"),
        ("large", "data", 3 << 40, "", "bigtime=0 ftype=1 bsize=4096"),
        (
            "as wished",
            "",
            GIB,
            "-m bigtime=1,reflink=0|-d|su=64k,sw=2|-i|size=1024|-f",
            "bigtime=1 reflink=0 inobtcount=0 isize=1024 sunit=16 swidth=32",
        ),
    ] {
        let file = make(&new(Format::Xfs(ID), label, bytes, &words(options)));
        judge("xfs_repair", &["-n", "-f"], &file);
        blkid(&file, &[("UUID", &id), ("TYPE", "xfs")]);
        if !label.is_empty() {
            blkid(&file, &[("LABEL", &label.replace(' ', "\\ "))]);
        }
        let said = judge("xfs_db", &["-r", "-c", "info"], &file);
        let found: Vec<_> = said.split([' ', ',', '\n']).filter(|word| !word.is_empty()).collect();
        for word in geometry.split(' ') {
            assert!(found.contains(&word), "{name}: no {word} in {said}");
        }
    }
}

#[test]
fn fsck_vfat_finds_nothing_wrong() {
    for (name, label, mib, block, options, width) in [
        ("smallest", "", 8, 512, "", "FAT16"),
        ("last of FAT16", "EFI", 35, 512, "", "FAT16"),
        ("first of FAT32", "efi", 36, 512, "", "FAT32"),
        ("ordinary", "EFI SYSTEM", 512, 512, "-F 32", "FAT32"),
        ("FAT16 on purpose", "", 512, 512, "-F16", "FAT16"),
        ("largest of FAT16", "", 2047, 512, "-F|16", "FAT16"),
        ("large", "DATA", 100 << 10, 512, "", "FAT32"),
        ("4096-byte blocks, smallest", "", 64, 4096, "", "FAT16"),
        ("4096-byte blocks, last of FAT16", "", 281, 4096, "", "FAT16"),
        ("4096-byte blocks, first of FAT32", "EFI", 282, 4096, "", "FAT32"),
    ] {
        let options = words(options);
        let new = New { logical_block: block, ..new(Format::Vfat(VOLUME), label, mib * MIB, &options) };
        let file = make(&new);
        judge("fsck.vfat", &["-n"], &file);
        blkid(&file, &[("UUID", "1234-ABCD"), ("TYPE", "vfat"), ("VERSION", width)]);
        if !label.is_empty() {
            blkid(&file, &[("LABEL", &label.to_uppercase().replace(' ', "\\ "))]);
        }
        let volume = fatfs::FileSystem::new(file.as_file(), fatfs::FsOptions::new()).expect(name);
        assert_eq!(volume.root_dir().iter().count(), 0, "{name}: empty");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Between its limits there is no size for which FAT can't be made, and it has the width that was decided.
    #[test]
    fn any_size_that_is_not_refused_is_made(
        bytes in prop_oneof![0..600 * MIB, 0..4 * GIB],
        block in prop::sample::select(vec![512u32, 4096]),
        wish in prop::sample::select(vec!["", "-F16", "-F32"]),
    ) {
        let options = words(wish);
        let new = New { logical_block: block, ..new(Format::Vfat(VOLUME), "A", bytes, &options) };
        let Ok(making) = plan(&new, &Tools::default()) else { return Ok(()) };
        let file = NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(bytes).expect("sparse file");
        making.carry_out(file.path()).expect("made");
        let width = fatfs::FileSystem::new(file.as_file(), fatfs::FsOptions::new()).expect("FAT").fat_type();
        let wide = wish == "-F32" || wish.is_empty() && bytes >= 72_000 * u64::from(block);
        prop_assert_eq!(width, if wide { fatfs::FatType::Fat32 } else { fatfs::FatType::Fat16 });
    }
}

#[test]
fn blkid_and_swaplabel_know_the_swap_area() {
    let id = ID.to_string();
    for (name, label, bytes, pages) in [
        ("smallest", "", 40 << 10, 10),
        ("ordinary", "swap", GIB, GIB / 4096),
        ("with an odd end", "sixteen bytes ok", GIB + 2048, GIB / 4096),
        ("largest", "s", 16 << 40, 1 << 32),
    ] {
        let new = new(Format::Swap(ID), label, bytes, &[]);
        // ext4's file systems of 16 TiB are no files of ext4.
        let file = NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(bytes.min(GIB + 2048)).expect("sparse file");
        // Something that was there before: a superblock of btrfs.
        file.as_file().write_all_at(b"_BHRfS_M", 0x1_0040).ok();
        file.as_file().set_len(bytes.min(GIB + 2048)).expect("sparse file");
        plan(&new, &Tools::default()).expect(name).carry_out(file.path()).expect(name);
        blkid(&file, &[("UUID", &id), ("TYPE", "swap"), ("VERSION", "1")]);
        let said = judge("swaplabel", &[], &file);
        assert!(
            said.contains(&id) && (label.is_empty() || said.contains(&format!("LABEL: {label}"))),
            "{name}: {said}"
        );
        let said = judge("file", &["-b"], &file);
        let wanted =
            format!("Linux swap file, 4k page size, little endian, version 1, size {} pages, 0 bad", pages - 1);
        assert!(said.starts_with(&wanted), "{name}: {said}");
    }
}

#[test]
fn the_same_request_gives_the_same_file_system() {
    for format in [Format::Vfat(VOLUME), Format::Swap(ID)] {
        let made = || {
            let file = make(&new(format, "a", 64 * MIB, &[]));
            let mut front = vec![0; usize::try_from(MIB).expect("fits")];
            file.as_file().read_exact_at(&mut front, 0).expect("read");
            front
        };
        assert!(made() == made(), "{format}");
    }
}

#[test]
fn what_can_not_be_made_is_refused_before() {
    let ext4 = Format::Ext4(ID);
    let (xfs, vfat, swap) = (Format::Xfs(ID), Format::Vfat(VOLUME), Format::Swap(ID));
    for (name, format, label, bytes, options, want) in [
        ("ext4, small", ext4, "", MIB, "", "1.0 MiB are too small for ext4, which needs 16.0 MiB: make it larger"),
        ("ext3, large", Format::Ext3(ID), "", 17 << 40, "", "too large for ext3"),
        ("ext4, label", ext4, "seventeen bytes !", GIB, "", "ext4 can't have the label \"seventeen bytes !\""),
        ("control characters", ext4, "a\nb", GIB, "", "can't have the label \"a\\nb\""),
        ("another device", ext4, "", GIB, "/dev/sda", "\"/dev/sda\" isn't known here"),
        ("another size", ext4, "", GIB, "1000", "\"1000\" isn't known here"),
        ("dry run", ext4, "", GIB, "-n", "-n is refused: it makes nothing"),
        ("own UUID", ext4, "", GIB, "-U|clear", "-U is refused: that is said by the layout itself"),
        ("bad blocks", ext4, "", GIB, "-cc", "-c is refused"),
        ("a directory", ext4, "", GIB, "-d|/", "-d is refused"),
        ("another place", ext4, "", GIB, "-E|stride=2,offset=4096", "\"offset\" of the create option -E isn't known"),
        ("journal elsewhere", ext4, "", GIB, "-J device=/dev/sdb", "\"device\" of the create option -J isn't known"),
        ("a journal", ext4, "", GIB, "-O journal_dev", "not turn the file system into a journal"),
        ("no features", ext4, "", GIB, "-O|none", "not all of them"),
        ("xfs, small", xfs, "", 299 * MIB, "", "too small for xfs, which needs 300.0 MiB"),
        ("xfs, label", xfs, "thirteen byte", GIB, "", "room for 12 bytes"),
        ("xfs, log elsewhere", xfs, "", GIB, "-l logdev=/dev/sdb", "\"logdev\" of the create option -l isn't known"),
        ("xfs, itself elsewhere", xfs, "", GIB, "-d|name=/dev/sdb", "\"name\" of the create option -d isn't known"),
        ("xfs, own UUID", xfs, "", GIB, "-m|uuid=x", "\"uuid\" of the create option -m isn't known"),
        ("xfs, realtime", xfs, "", GIB, "-r rtdev=/dev/sdb", "-r is refused"),
        ("xfs, dry run", xfs, "", GIB, "-N", "-N is refused"),
        ("vfat, small", vfat, "", 7 * MIB, "", "too small for vfat, which needs 8.0 MiB"),
        ("vfat, small for FAT32", vfat, "", 30 * MIB, "-F 32", "too small for vfat"),
        ("vfat, large for FAT16", vfat, "", 3 * GIB, "-F 16", "too large for vfat, which can have"),
        ("vfat, large", vfat, "", 3 << 40, "", "too large for vfat"),
        ("vfat, FAT12", vfat, "", 64 * MIB, "-F 12", "-F is 16 or 32 here"),
        ("vfat, label", vfat, "a*b", 64 * MIB, "", "vfat can't have the label \"A*B\""),
        ("vfat, long label", vfat, "twelve bytes", 64 * MIB, "", "room for 11 bytes"),
        ("vfat, unknown", vfat, "", 64 * MIB, "-s|8", "-s isn't known here"),
        ("swap, small", swap, "", 36 << 10, "", "too small for swap, which needs"),
        ("swap, large", swap, "", (16 << 40) + 4096, "", "too large for swap"),
        ("swap, label", swap, "seventeen bytes !", GIB, "", "room for 16 bytes"),
        ("swap, page size", swap, "", GIB, "-p 65536", "-p is refused"),
    ] {
        let refused = plan(&new(format, label, bytes, &words(options)), &tools()).expect_err(name);
        assert!(refused.contains(want), "{name}: {refused}");
    }
    let odd = New { logical_block: 520, ..new(vfat, "", GIB, &[]) };
    assert_eq!(plan(&odd, &tools()), Err("FAT doesn't know blocks of 520 bytes".into()));
}

#[test]
fn a_missing_program_is_a_refusal() {
    for (format, want) in [
        (Format::Ext4(ID), "this boot environment has no mke2fs, so it can't make ext4:"),
        (Format::Xfs(ID), "this boot environment has no mkfs.xfs, so it can't make xfs:"),
    ] {
        let refused = plan(&new(format, "", GIB, &[]), &Tools::default()).expect_err("nothing there");
        assert!(refused.starts_with(want), "{refused}");
    }
}

#[test]
fn what_a_program_says_reaches_the_operator() {
    let nowhere = Path::new("/nonexistent/partition");
    for (format, want) in [
        (Format::Ext4(ID), "making ext4 on /nonexistent/partition: /"),
        (Format::Xfs(ID), "making xfs on /nonexistent/partition: /"),
        (Format::Vfat(VOLUME), "making vfat on /nonexistent/partition: opening it: No such file or directory"),
        (Format::Swap(ID), "making swap on /nonexistent/partition: No such file or directory"),
    ] {
        let making = plan(&new(format, "", GIB, &[]), &tools()).expect("a plan");
        let error = format!("{:#}", making.carry_out(nowhere).expect_err("no such file"));
        assert!(error.starts_with(want), "{error}");
        assert!(error.contains("No such file or directory") || error.contains("does not exist"), "{error}");
    }
    // What a layout wants and the program doesn't like.
    let file = NamedTempFile::new().expect("temporary file");
    File::set_len(file.as_file(), GIB).expect("sparse file");
    let wishes = words("-b|1000");
    let making = plan(&new(Format::Ext4(ID), "", GIB, &wishes), &tools()).expect("a plan");
    let error = format!("{:#}", making.carry_out(file.path()).expect_err("an odd block size"));
    assert!(error.contains("-b 1000") && error.contains("invalid block size"), "{error}");
}
