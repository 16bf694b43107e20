//! File systems that can't be believed: each is refused with a sentence, and nothing panics.

use super::*;
use crate::ext4::checksum::{Checksum, Fields};
use crate::scan::Contents;

const SUPERBLOCK: usize = 1024;

fn bytes_of(options: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut sparse = vec![0; 2 << 20];
    (0..150).for_each(|n| sparse[n * 8192] = 1);
    let many = (0..400).map(|n| file(&format!("many/needle-{n:040}"), vec![]));
    let mut files =
        vec![file("sparse", sparse), directory("many"), directory("etc"), file("etc/text", b"text".to_vec())];
    files.extend(many);
    files[0].member.xattrs = vec![("user.block".into(), noise(300, 1))];
    files[3].member.xattrs = vec![("user.inode".into(), b"here".to_vec())];
    let image = made(&[&["-b", "1024", "-N", "512"], options].concat(), 4 << 20, &files)?;
    run("e2fsck", &["-f", "-y", "-D"], image.path(), &[0, 1])?;
    Ok(fs::read(image.path())?)
}

fn said(disk: &[u8]) -> String {
    let image = NamedTempFile::new().expect("a file");
    fs::write(image.path(), disk).expect("written");
    read(image.path()).map_or_else(|e| format!("{e:#}"), |_| String::new())
}

/// Where the table of the first group's inodes is.
fn inode(disk: &[u8], number: usize) -> usize {
    disk.get32(2048 + 8) as usize * 1024 + (number - 1) * 256
}

/// The first block that begins so.
fn block(disk: &[u8], begins: &[u8]) -> usize {
    disk.chunks(1024).position(|block| block.starts_with(begins)).expect("there is one") * 1024
}

fn find(disk: &[u8], what: &[u8]) -> usize {
    disk.windows(what.len()).position(|window| window == what).expect("it is there")
}

fn sealed(mut disk: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let superblock = &mut disk[SUPERBLOCK..SUPERBLOCK + 1024];
    change(superblock);
    let sum = Checksum::START.over(&superblock[..0x3fc]).value();
    superblock.put32(0x3fc, sum);
    disk
}

#[test]
fn what_the_superblock_says_is_checked() -> anyhow::Result<()> {
    let good = bytes_of(&["-t", "ext4"])?;
    assert_eq!(said(&good), "");
    type Change = fn(&mut [u8]);
    let cases: [(&str, Change, &str); 22] = [
        ("a journal with something in it", |s| s.put32(0x60, s.get32(0x60) | 0x4), "was not unmounted cleanly"),
        ("mounted", |s| s.put16(0x3a, 0), "run `e2fsck -fy` on a copy"),
        ("with errors", |s| s.put16(0x3a, 3), "marked as having errors"),
        ("compression", |s| s.put32(0x60, s.get32(0x60) | 0x1), "the feature compression"),
        ("a journal alone", |s| s.put32(0x60, s.get32(0x60) | 0x8), "the feature journal_dev"),
        ("dirdata", |s| s.put32(0x60, s.get32(0x60) | 0x1000), "the feature dirdata"),
        ("encryption", |s| s.put32(0x60, s.get32(0x60) | 0x1_0000), "the feature encrypt"),
        ("no upper case", |s| s.put32(0x60, s.get32(0x60) | 0x2_0000), "the feature casefold"),
        ("blocks of several files", |s| s.put32(0x64, s.get32(0x64) | 0x4000), "the feature shared_blocks"),
        ("something new", |s| s.put32(0x60, s.get32(0x60) | 0x4000_0000), "isn't known here (FEATURE_I30)"),
        ("another checksum", |s| s[0x175] = 2, "its checksums are of kind 2"),
        ("no blocks", |s| s.put32(0x04, 0), "its sizes can't be"),
        ("more blocks than bytes", |s| s.put32(0x04, 5000), "the disk was cut short"),
        ("more than can be counted", |s| s.put32(0x150, u32::MAX), "its sizes can't be"),
        ("enormous blocks", |s| s.put32(0x18, 7), "its sizes can't be"),
        ("blocks of nothing", |s| s.put32(0x18, 60), "its sizes can't be"),
        ("groups of nothing", |s| s.put32(0x20, 0), "its sizes can't be"),
        ("no inodes in a group", |s| s.put32(0x28, 0), "its sizes can't be"),
        ("more inodes than groups hold", |s| s.put32(0x00, 1 << 30), "its sizes can't be"),
        ("inodes of 100 bytes", |s| s.put16(0x58, 100), "its sizes can't be"),
        ("inodes larger than blocks", |s| s.put16(0x58, 2048), "its sizes can't be"),
        ("descriptors of 3 bytes", |s| s.put16(0xfe, 3), "its sizes can't be"),
    ];
    for (name, change, want) in cases {
        let said = said(&sealed(good.clone(), change));
        assert!(said.contains(want), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn what_has_a_checksum_is_believed_only_with_the_right_one() -> anyhow::Result<()> {
    let good = bytes_of(&["-t", "ext4"])?;
    for (name, at, want) in [
        ("the superblock's name", SUPERBLOCK + 0x78, "its superblock is damaged"),
        ("a group", 2048 + 0x10, "the descriptor of group 0 is damaged"),
        ("an inode's date", inode(&good, 2) + 0x10, "inode 2: it is damaged: the checksum doesn't match"),
        ("extents", block(&good, &[0x0a, 0xf3]) + 13, "its extents in block"),
        ("attributes", block(&good, &[0, 0, 2, 0xea]) + 50, "the checksum doesn't match"),
        ("a name", find(&good, b"needle-"), "of the directory is damaged"),
        ("a hash of names", index(&good) + 40, "of the directory is damaged"),
    ] {
        let mut disk = good.clone();
        disk[at] ^= 1;
        let said = said(&disk);
        assert!(said.contains(want), "{name}: {said}");
    }
    let groups = bytes_of(&["-t", "ext4", "-O", "^metadata_csum,uninit_bg"])?;
    let mut disk = groups.clone();
    disk[2048 + 0x10] ^= 1;
    assert_eq!((said(&groups), said(&disk).contains("group 0 is damaged")), (String::new(), true));
    Ok(())
}

/// The root of the tree of a directory: its two dots reach to the end of the block.
fn index(disk: &[u8]) -> usize {
    let is_root = |block: &[u8]| block.get16(4) == 12 && block.get16(16) == 1012;
    disk.chunks(1024).position(is_root).expect("an index") * 1024
}

#[test]
fn what_cannot_be_is_refused_without_checksums() -> anyhow::Result<()> {
    let good = bytes_of(&["-t", "ext4", "-O", "^metadata_csum"])?;
    assert_eq!(said(&good), "");
    let root = inode(&good, 2);
    let names = good.get32(root + 0x28 + 20) as usize * 1024;
    // The disk, where its root's inode is, and where the names there are.
    type Change = fn(&mut [u8], usize, usize);
    let cases: [(&str, Change, &str); 15] = [
        ("no root", |d, i, _| d[i..i + 2].fill(0), "it is no file of any kind"),
        ("a root that is a file", |d, i, _| d[i + 1] = 0x81, "it is no directory"),
        ("encrypted", |d, i, _| d[i + 0x21] |= 0x8, "it is encrypted"),
        ("case doesn't matter", |d, i, _| d[i + 0x23] |= 0x40, "upper from lower case"),
        ("an attribute's value", |d, i, _| d[i + 0x22] |= 0x20, "is an attribute's value"),
        ("fields longer than the inode", |d, i, _| d.put16(i + 0x80, 200), "longer than itself"),
        ("a directory in half a block", |d, i, _| d.put32(i + 4, 1000), "aren't whole blocks"),
        ("a directory with a hole", |d, i, _| d.put32(i + 4, 65536), "it has a hole"),
        ("no extents", |d, i, _| d.put16(i + 0x28, 0), "its extents are damaged"),
        ("extents 9 deep", |d, i, _| d.put16(i + 0x2e, 9), "nested 9 deep"),
        ("extents outside", |d, i, _| d.put32(i + 0x3c, 1 << 30), "outside of the file system"),
        ("no such inode", |d, _, b| d.put32(b + 24, 1 << 30), "there are 512 inodes"),
        ("an entry beyond its block", |d, _, b| d.put16(b + 4, 2000), "an entry of 2000 bytes"),
        ("a name longer than its entry", |d, _, b| d[b + 6] = 200, "with a name of 200"),
        (
            "a slash in a name",
            |d, _, _| {
                let at = find(d, b"sparse");
                d[at] = b'/'
            },
            "can't be a name",
        ),
    ];
    for (name, change, want) in cases {
        let mut disk = good.clone();
        change(&mut disk, root, names);
        let image = NamedTempFile::new()?;
        fs::write(image.path(), &disk)?;
        let said = disk::open(File::open(image.path())?)
            .and_then(|tar| Ok(Contents::read(tar, |_, _| Ok(()))?))
            .map_or_else(|e| format!("{e:#}"), |_| String::new());
        assert!(said.contains(want), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn directories_that_lead_to_themselves_are_read_once() -> anyhow::Result<()> {
    let image = NamedTempFile::new()?;
    fs::write(image.path(), bytes_of(&["-t", "ext4"])?)?;
    debugfs(&["ln /etc /etc/again".into()], image.path())?;
    let said = read(image.path()).map_or_else(|e| format!("{e:#}"), |_| String::new());
    assert!(said.contains("/etc/again") && said.contains("two names lead to this directory"), "{said}");
    Ok(())
}

/// Two files that have the same blocks would let a small disk unpack to anything.
#[test]
fn no_more_is_read_than_there_is() -> anyhow::Result<()> {
    let big = noise(2 << 20, 1);
    let files: Vec<Seen> = (0..2).map(|n| file(&format!("{n}"), if n == 0 { big.clone() } else { vec![] })).collect();
    let image = made(&["-t", "ext4", "-O", "^metadata_csum", "-b", "1024", "-N", "64"], 4 << 20, &files)?;
    let mut disk = fs::read(image.path())?;
    let of = |disk: &[u8], uid: u32| {
        let low = uid.to_le_bytes();
        (1..=64).map(|number| inode(disk, number)).find(|at| disk[at + 2..at + 4] == low[..2]).expect("there")
    };
    let (from, to) = (of(&disk, files[0].member.uid), of(&disk, files[1].member.uid));
    disk.copy_within(from + 0x20..from + 0x70, to + 0x20);
    disk.copy_within(from + 4..from + 8, to + 4);
    let said = said(&disk);
    assert!(said.contains("claim more blocks than the file system has"), "{said}");
    Ok(())
}

#[test]
fn no_damage_is_too_much() -> anyhow::Result<()> {
    let variants = [
        &["-t", "ext4", "-O", "^metadata_csum"][..],
        &["-t", "ext4", "-O", "^metadata_csum,inline_data"],
        &["-t", "ext4", "-O", "^metadata_csum,^extent,^64bit,ea_inode"],
        &["-t", "ext4"],
    ];
    let disks = variants.iter().map(|options| bytes_of(options)).collect::<anyhow::Result<Vec<_>>>()?;
    // Where there is something to be damaged.
    let in_use = |disk: &Vec<u8>| -> Vec<usize> {
        let parts = disk.chunks(16).enumerate().filter(|(_, part)| **part != [0; 16][..part.len()]);
        parts.flat_map(|(number, _)| number * 16..number * 16 + 16).collect()
    };
    let in_use: Vec<Vec<usize>> = disks.iter().map(in_use).collect();
    let image = NamedTempFile::new()?;
    let flips = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12);
    let cut = proptest::option::weighted(0.1, any::<prop::sample::Index>());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(600));
    runner.run(&(0..disks.len(), flips, cut), |(which, flips, cut)| {
        let mut disk = disks[which].clone();
        for (at, to) in flips {
            disk[in_use[which][at.index(in_use[which].len())]] = to;
        }
        disk.truncate(cut.map_or(disk.len(), |cut| cut.index(disk.len())));
        write_sparse(image.path(), &disk).expect("written");
        let _ = disk::sight(&disk);
        let Ok(mut tar) = File::open(image.path()).map_err(anyhow::Error::from).and_then(disk::open) else {
            return Ok(());
        };
        let mut read = Vec::new();
        if tar.read_to_end(&mut read).is_ok() {
            prop_assert!(read.len() < 16 << 20);
            prop_assert!(Contents::read(&read[..], |_, _| Ok(())).is_ok());
        }
        Ok(())
    })?;
    Ok(())
}
