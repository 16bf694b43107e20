//! What comes out of file systems that e2fsprogs made, and out of our own, beside what went in.

mod damage;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use drophammer_protocol::archive::{self, Archive, Content, Member, Segment, Time};
use proptest::prelude::*;
use tempfile::{NamedTempFile, TempDir};
use uuid::Uuid;

use crate::chunks::tests::noise;
use crate::disk;
use crate::ext4::{Options, Writer};

/// A file, all of its bytes, and how many of them are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) member: Member,
    pub(crate) bytes: Vec<u8>,
}

/// All members of a tar, holes filled with zeros, with how many bytes are stored.
pub(crate) fn members(tar: impl Read) -> anyhow::Result<Vec<(Seen, u64)>> {
    let mut archive = Archive::new(tar);
    let mut seen = Vec::new();
    while let Some(mut member) = archive.next_member()? {
        member.path = archive::inside(&member.path)?;
        let (mut bytes, mut stored) = (Vec::new(), 0);
        if let archive::Kind::File(content) = &mut member.kind {
            bytes.resize(usize::try_from(content.bytes)?, 0);
            for Segment { offset, length } in content.segments() {
                let start = usize::try_from(offset)?;
                archive.read_exact(&mut bytes[start..start + usize::try_from(length)?])?;
                stored += length;
            }
            content.segments = None;
        }
        seen.push((Seen { member, bytes }, stored));
    }
    anyhow::ensure!(archive.has_end_mark(), "a tar with an end");
    Ok(seen)
}

pub(crate) fn read(disk: &Path) -> anyhow::Result<Vec<Seen>> {
    Ok(members(disk::open(File::open(disk)?)?)?.into_iter().map(|(seen, _)| seen).collect())
}

pub(crate) fn run(program: &str, arguments: &[&str], image: &Path, fine: &[i32]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).arg(image).output();
    let output = output.with_context(|| format!("{program} runs; it is in the Debian package e2fsprogs or gdisk"))?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    anyhow::ensure!(output.status.code().is_some_and(|code| fine.contains(&code)), "{program} {arguments:?}: {said}");
    Ok(said)
}

pub(crate) fn mke2fs(options: &[&str], image: &Path) -> anyhow::Result<()> {
    run("mke2fs", &[&["-q", "-F"], options].concat(), image, &[0]).map(drop)
}

/// Runs commands of debugfs, each of which succeeds if it says nothing.
pub(crate) fn debugfs(commands: &[String], image: &Path) -> anyhow::Result<()> {
    let script = NamedTempFile::new()?;
    fs::write(script.path(), commands.join("\n") + "\n")?;
    let said = run("debugfs", &["-w", "-f", &script.path().display().to_string()], image, &[0])?;
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with("debugfs") && !line.starts_with("Allocated inode") && !line.is_empty())
        .collect();
    anyhow::ensure!(complaints.is_empty(), "debugfs: {complaints:?}");
    Ok(())
}

pub(crate) fn member(path: &str, kind: archive::Kind) -> Member {
    // Each has its own owner, so that none is taken for another.
    let own = path.bytes().map(u32::from).sum::<u32>();
    Member {
        path: path.into(),
        kind,
        mode: 0o640,
        uid: 70_000 + own,
        gid: 80_000 + own,
        mtime: Time { seconds: 1_600_000_000 + i64::from(own), nanoseconds: 0 },
        xattrs: Vec::new(),
    }
}

pub(crate) fn file(path: &str, bytes: Vec<u8>) -> Seen {
    let content = Content { bytes: bytes.len() as u64, segments: None };
    Seen { member: member(path, archive::Kind::File(content)), bytes }
}

fn other(path: &str, kind: archive::Kind) -> Seen {
    Seen { member: member(path, kind), bytes: Vec::new() }
}

pub(crate) fn directory(path: &str) -> Seen {
    other(path, archive::Kind::Directory)
}

/// An ACL with a named user and a named group.
fn acl() -> Vec<u8> {
    let no_id = [0xff; 4];
    let entries: [(u8, u8, [u8; 4]); 6] = [
        (1, 6, no_id),
        (2, 4, 1000u32.to_le_bytes()),
        (4, 4, no_id),
        (8, 4, 70_000u32.to_le_bytes()),
        (16, 6, no_id),
        (32, 0, no_id),
    ];
    let mut bytes = vec![2, 0, 0, 0];
    entries.iter().for_each(|(tag, rights, id)| bytes.extend([&[*tag, 0, *rights, 0], &id[..]].concat()));
    bytes
}

/// Something of everything.
fn specimen() -> Vec<Seen> {
    let name = |text: &str| OsString::from(text);
    let target = |target: &str| archive::Kind::SymbolicLink { target: target.into() };
    let mut sparse = vec![0; 499 * 8192 + 4096];
    for at in (0..500).map(|n| n * 8192) {
        sparse[at..at + 4096].copy_from_slice(&noise(4096, at as u64));
    }
    let mut all = vec![
        directory(""),
        directory("etc"),
        file("etc/empty", vec![]),
        file("etc/short", b"short".to_vec()),
        file("etc/fits into the inode", noise(110, 1)),
        file("etc/a block less one", noise(4095, 2)),
        file("etc/some blocks", noise(70_000, 3)),
        file("big", noise(2 << 20, 4)),
        file("sparse", sparse),
        file("only a hole", vec![0; 3 << 20]),
        file("a hole at its end", [noise(8192, 5), vec![0; 1 << 20]].concat()),
        other("short link", target("etc/short")),
        other("link of 59", target(&"x".repeat(59))),
        other("link of 60", target(&"x".repeat(60))),
        other("link of 900", target(&"y".repeat(900))),
        directory("nodes"),
        other("nodes/null", archive::Kind::CharacterDevice { major: 1, minor: 3 }),
        other("nodes/large", archive::Kind::CharacterDevice { major: 300, minor: 70_000 }),
        other("nodes/disk", archive::Kind::BlockDevice { major: 8, minor: 17 }),
        other("nodes/fifo", archive::Kind::Fifo),
        directory("many"),
        directory("few"),
        file("few/one", vec![1]),
        file("few/two", vec![2]),
        directory("lost+found of another name"),
    ];
    let many = |n: u32| format!("many/{n:04}-{}", "n".repeat(200));
    all.push(file(&many(0), b"of many names".to_vec()));
    for (path, mode) in [("etc/short", 0o4755), ("many", 0o2775), ("few", 0o1777), ("", 0o751), ("etc/empty", 0)] {
        all.iter_mut().filter(|seen| seen.member.path == Path::new(path)).for_each(|seen| seen.member.mode = mode);
    }
    for (path, xattrs) in [
        (
            "etc/short",
            vec![(name("security.capability"), vec![1, 0, 0, 2, 0, 4, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
        ),
        (
            "etc/some blocks",
            vec![
                (name("security.selinux"), b"system_u:object_r:etc_t:s0\0".to_vec()),
                (name("system.posix_acl_access"), acl()),
                (name("trusted.t"), vec![7; 300]),
                (name("user.a"), vec![]),
                (name("user.b"), noise(200, 6)),
            ],
        ),
        ("few", vec![(name("system.posix_acl_access"), acl()), (name("system.posix_acl_default"), acl())]),
        ("nodes/null", vec![(name("trusted.node"), b"x".to_vec())]),
    ] {
        all.iter_mut().filter(|seen| seen.member.path == Path::new(path)).for_each(|seen| {
            seen.member.xattrs.clone_from(&xattrs);
        });
    }
    // The first of a file's names, in the order of all, is the one that has what it holds.
    let links = [("etc/some other name".to_owned(), "etc/some blocks".to_owned()), ("zz".into(), "big".into())];
    for (path, first) in links.into_iter().chain((1..700).map(|n| (many(n), many(0)))) {
        let kind = archive::Kind::HardLink { target: first.clone().into() };
        let of = all.iter().find(|seen| seen.member.path == Path::new(&first)).cloned().expect("there");
        let member = Member { path: path.into(), kind, xattrs: Vec::new(), ..of.member };
        all.push(Seen { member, bytes: Vec::new() });
    }
    all.sort_by(|a, b| a.member.path.cmp(&b.member.path));
    all
}

/// Puts files into a directory, as far as anybody may, and what only root may into the file system afterwards.
pub(crate) fn made(options: &[&str], size: u64, files: &[Seen]) -> anyhow::Result<NamedTempFile> {
    let work = tempfile::tempdir()?;
    let tree = work.path().join("tree");
    fs::create_dir(&tree)?;
    for Seen { member, bytes } in files {
        let path = tree.join(&member.path);
        match &member.kind {
            archive::Kind::Directory => fs::create_dir_all(path)?,
            archive::Kind::File(_) => write_sparse(&path, bytes)?,
            archive::Kind::HardLink { target } => fs::hard_link(tree.join(target), path)?,
            archive::Kind::SymbolicLink { target } => std::os::unix::fs::symlink(target, path)?,
            _ => {}
        }
    }
    let image = NamedTempFile::new()?;
    image.as_file().set_len(size)?;
    mke2fs(&[options, &["-d", &tree.display().to_string()]].concat(), image.path())?;
    debugfs(&said_of(files, &work)?, image.path())?;
    Ok(image)
}

fn write_sparse(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = File::create(path)?;
    for (number, block) in bytes.chunks(4096).enumerate().filter(|(_, block)| **block != [0; 4096][..block.len()]) {
        file.write_all_at(block, number as u64 * 4096)?;
    }
    Ok(file.set_len(bytes.len() as u64)?)
}

/// What debugfs has to do for each of them.
fn said_of(files: &[Seen], work: &TempDir) -> anyhow::Result<Vec<String>> {
    let mut commands = Vec::new();
    for (number, Seen { member, .. }) in files.iter().enumerate() {
        let path = format!("/{}", member.path.display());
        let kind = match &member.kind {
            archive::Kind::File(_) => 0o100_000,
            archive::Kind::HardLink { .. } => continue,
            archive::Kind::SymbolicLink { .. } => 0o120_000,
            archive::Kind::Directory => 0o040_000,
            archive::Kind::CharacterDevice { major, minor } => {
                commands.extend(node(&path, 'c', *major, *minor));
                0o020_000
            }
            archive::Kind::BlockDevice { major, minor } => {
                commands.extend(node(&path, 'b', *major, *minor));
                0o060_000
            }
            archive::Kind::Fifo => {
                commands.extend(["cd /nodes".to_owned(), format!("mknod {} p", &path["/nodes/".len()..])]);
                0o010_000
            }
        };
        commands.push(format!("sif \"{path}\" mode 0{:o}", kind | member.mode));
        commands.push(format!("sif \"{path}\" uid {}", member.uid));
        commands.push(format!("sif \"{path}\" gid {}", member.gid));
        commands.push(format!("sif \"{path}\" mtime @{}", member.mtime.seconds));
        if member.mtime.nanoseconds > 0 {
            commands.push(format!("sif \"{path}\" mtime_extra {}", member.mtime.nanoseconds << 2));
        }
        for (index, (name, value)) in member.xattrs.iter().enumerate() {
            let name = name.display();
            // From a file it takes no more than a block, and as an argument no more than text.
            if value.len() > 1024 {
                commands.push(format!("ea_set \"{path}\" {name} {}", str::from_utf8(value)?));
                continue;
            }
            let file = work.path().join(format!("{number}-{index}"));
            fs::write(&file, value)?;
            commands.push(format!("ea_set -f {} \"{path}\" {name}", file.display()));
        }
    }
    Ok(commands)
}

/// Of large numbers debugfs knows nothing, so their second form is put there by hand.
fn node(path: &str, kind: char, major: u32, minor: u32) -> Vec<String> {
    let name = &path["/nodes/".len()..];
    let at_home = "cd /nodes".to_owned();
    if major < 256 && minor < 256 {
        return vec![at_home, format!("mknod {name} {kind} {major} {minor}")];
    }
    let number = (minor & 0xff) | major << 8 | (minor & !0xff) << 12;
    let put = |slot: u32, value: u32| format!("sif {path} block[{slot}] {value}");
    vec![at_home, format!("mknod {name} {kind} 1 1"), put(0, 0), put(1, number)]
}

fn compare(name: &str, got: &[Seen], want: &[Seen]) {
    let paths = |all: &[Seen]| all.iter().map(|seen| seen.member.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(got), paths(want), "{name}");
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.member, want.member, "{name}");
        assert!(got.bytes == want.bytes, "{name}: the bytes of {}", want.member.path.display());
    }
}

#[test]
fn everything_comes_out_as_it_went_in() -> anyhow::Result<()> {
    let nanoseconds = |all: Vec<Seen>| {
        let mut all = all;
        all.iter_mut().for_each(|seen| seen.member.mtime.nanoseconds = 123_456_789);
        all
    };
    let plain = specimen();
    let exact = nanoseconds(specimen());
    let mut large = exact.clone();
    for seen in large.iter_mut().filter(|seen| seen.member.path == Path::new("etc/short")) {
        seen.member.xattrs.push(("user.large".into(), hex::encode(noise(3000, 9)).into_bytes()));
    }
    let mut bare = plain.clone();
    bare.iter_mut().for_each(|seen| seen.member.xattrs.clear());
    // This mke2fs cuts off.
    let mut inline = exact.clone();
    inline.retain(|seen| seen.member.path != Path::new("a hole at its end"));
    for (name, options, files) in [
        ("as mke2fs makes it", &["-t", "ext4"][..], &exact),
        ("ext3", &["-t", "ext3"], &exact),
        ("ext2", &["-t", "ext2"], &exact),
        ("of the first revision", &["-t", "ext2", "-r", "0"], &bare),
        ("small blocks", &["-t", "ext4", "-b", "1024"], &exact),
        ("large blocks", &["-t", "ext4", "-b", "65536"], &exact),
        ("no extents", &["-t", "ext4", "-O", "^extent,^64bit"], &exact),
        ("no extents, small blocks", &["-t", "ext4", "-b", "1024", "-O", "^extent,^64bit"], &exact),
        ("32 bits", &["-t", "ext4", "-O", "^64bit"], &exact),
        ("no checksums", &["-t", "ext4", "-O", "^metadata_csum"], &exact),
        ("of groups only", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"], &exact),
        ("of groups only, 32 bits", &["-t", "ext4", "-O", "^metadata_csum,^64bit,uninit_bg"], &exact),
        ("a seed of its own", &["-t", "ext4", "-O", "metadata_csum_seed"], &exact),
        ("data in inodes", &["-t", "ext4", "-O", "inline_data"], &inline),
        ("in larger inodes", &["-t", "ext4", "-O", "inline_data", "-I", "1024"], &inline),
        ("small inodes", &["-t", "ext4", "-I", "128"], &plain),
        ("attributes in inodes", &["-t", "ext4", "-O", "ea_inode"], &large),
        ("descriptors in groups", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"], &exact),
        ("the same without sparse copies", &["-b", "1024", "-O", "meta_bg,^resize_inode,^sparse_super"], &exact),
        ("with two copies", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,sparse_super2"], &exact),
        ("clusters", &["-t", "ext4", "-O", "bigalloc"], &exact),
        ("clusters of small blocks", &["-t", "ext4", "-b", "1024", "-C", "16384", "-O", "bigalloc"], &exact),
        ("no kinds in directories", &["-t", "ext4", "-O", "^filetype"], &exact),
        ("no index", &["-t", "ext4", "-O", "^dir_index"], &exact),
        ("large directories", &["-t", "ext4", "-O", "large_dir"], &exact),
        ("protected from a second mount", &["-t", "ext4", "-O", "mmp"], &exact),
        ("groups on their own", &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"], &exact),
        ("for anything else", &["-t", "ext4", "-O", "verity,project,quota,orphan_file"], &exact),
    ] {
        let image = made(options, 40 << 20, files).with_context(|| name)?;
        compare(name, &read(image.path()).with_context(|| name)?, files);
        // That makes a tree of large directories; it finds nothing wrong, so what was read is what is there.
        run("e2fsck", &["-f", "-y", "-D"], image.path(), &[0, 1]).with_context(|| name)?;
        compare(&format!("{name}, indexed"), &read(image.path()).with_context(|| name)?, files);
    }
    Ok(())
}

#[test]
fn holes_and_what_was_never_written_stay_holes() -> anyhow::Result<()> {
    // With blocks of 1 KiB, so far out that three levels of pointers lead there.
    let far = file("far", [vec![0; 68 << 20], vec![1; 4096]].concat());
    let files: Vec<Seen> = specimen().into_iter().chain([far]).collect();
    for (name, options) in [("extents", &["-t", "ext4", "-b", "1024"][..]), ("pointers", &["-t", "ext2", "-b", "1024"])]
    {
        let image = made(options, 40 << 20, &files)?;
        if name == "extents" {
            debugfs(&["fallocate \"/only a hole\" 3 500".into(), "fallocate /etc/empty 0 9".into()], image.path())?;
        }
        let seen = members(disk::open(File::open(image.path())?)?)?;
        let stored: BTreeMap<PathBuf, u64> = seen.into_iter().map(|(seen, n)| (seen.member.path, n)).collect();
        for (path, want) in [
            ("only a hole", 0),
            ("sparse", 500 * 4096),
            ("a hole at its end", 8192),
            ("far", 4096),
            ("etc/some blocks", 70_000),
            ("etc/empty", 0),
        ] {
            assert_eq!(stored.get(Path::new(path)), Some(&want), "{name}: {path}");
        }
    }
    Ok(())
}

#[test]
fn sockets_and_an_empty_lost_and_found_stay_behind() -> anyhow::Result<()> {
    let files = [file("a", vec![1]), file("socket", vec![]), directory("d"), directory("d/lost+found")];
    let image = made(&["-t", "ext4"], 16 << 20, &files)?;
    debugfs(&["sif /socket mode 0140644".into()], image.path())?;
    let paths = |image: &NamedTempFile| -> anyhow::Result<Vec<String>> {
        Ok(read(image.path())?.into_iter().map(|seen| seen.member.path.display().to_string()).collect())
    };
    assert_eq!(paths(&image)?, ["", "a", "d", "d/lost+found"]);
    debugfs(&["ln /a /lost+found/here".into(), "sif /a links_count 2".into()], image.path())?;
    assert_eq!(paths(&image)?, ["", "a", "d", "d/lost+found", "lost+found", "lost+found/here"]);
    Ok(())
}

fn kinds() -> impl Strategy<Value = (archive::Kind, Vec<u8>)> {
    let plain = |kind| (kind, Vec::new());
    prop_oneof![
        4 => (0usize..20_000, any::<u64>()).prop_map(|(length, seed)| {
            (archive::Kind::File(Content { bytes: length as u64, segments: None }), noise(length, seed))
        }),
        1 => (1u64..400).prop_map(|count| {
            let segments = (0..count).map(|n| Segment { offset: n * 8192, length: 4096 }).collect();
            let bytes = (0..count).flat_map(|n| [noise(4096, n), vec![0; 4096]].concat()).collect();
            (archive::Kind::File(Content { bytes: count * 8192, segments: Some(segments) }), bytes)
        }),
        1 => "[a-z/]{1,100}".prop_map(move |target| plain(archive::Kind::SymbolicLink { target: target.into() })),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(move |(major, minor)| {
            plain(archive::Kind::CharacterDevice { major, minor })
        }),
        1 => Just(plain(archive::Kind::Fifo)),
    ]
}

fn described() -> impl Strategy<Value = Member> {
    let xattrs = proptest::collection::btree_map("[a-z]{1,9}", proptest::collection::vec(any::<u8>(), 0..300), 0..4);
    let time = (i64::from(i32::MIN)..1 << 33, 0u32..1_000_000_000);
    (0u32..0o10000, any::<u32>(), any::<u32>(), time, xattrs).prop_map(|(mode, uid, gid, time, xattrs)| Member {
        path: PathBuf::new(),
        kind: archive::Kind::Directory,
        mode,
        uid,
        gid,
        mtime: Time { seconds: time.0, nanoseconds: time.1 },
        xattrs: xattrs.into_iter().map(|(name, value)| (format!("user.{name}").into(), value)).collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// What our own writer makes of a tar is read as the same tar.
    #[test]
    fn there_and_back(
        root in described(),
        files in proptest::collection::btree_map("[a-c]{1,2}", (described(), kinds()), 0..60),
        (directories, linked) in (0usize..20, any::<bool>()),
    ) {
        let mut files: Vec<Seen> = files
            .into_iter()
            .enumerate()
            .map(|(n, (name, (member, (kind, bytes))))| {
                let path = if n % 2 == 0 { format!("d{}/{name}", n % (directories + 1)) } else { name };
                Seen { member: Member { path: path.into(), kind, ..member }, bytes }
            })
            .collect();
        if let Some(first) = files.first().filter(|_| linked).cloned() {
            let kind = archive::Kind::HardLink { target: first.member.path.clone() };
            let member = Member { path: "zz".into(), kind, xattrs: Vec::new(), ..first.member };
            files.push(Seen { member, bytes: Vec::new() });
        }
        let above = |n| Member { path: format!("d{n}").into(), ..root.clone() };
        files.extend((0..=directories).map(above).map(|member| Seen { member, bytes: Vec::new() }));
        files.push(Seen { member: root.clone(), bytes: Vec::new() });
        files.sort_by(|a, b| a.member.path.cmp(&b.member.path));

        let image = NamedTempFile::new().expect("a file");
        let options = Options { uuid: Uuid::from_u128(7), label: "root".into(), created: 1 };
        let mut writer = Writer::new(image.as_file(), options);
        for Seen { member, bytes } in &mut files {
            let of = |Segment { offset, length }: Segment| {
                let start = usize::try_from(offset).expect("small");
                bytes[start..start + usize::try_from(length).expect("small")].to_vec()
            };
            let stored: Vec<u8> = match &member.kind {
                archive::Kind::File(content) => content.segments().into_iter().flat_map(of).collect(),
                _ => Vec::new(),
            };
            writer.place(member, &mut &stored[..]).expect("placed");
            if let archive::Kind::File(content) = &mut member.kind {
                content.segments = None;
            }
        }
        writer.finish().expect("finished");
        compare("there and back", &read(image.path()).expect("read"), &files);
    }
}
