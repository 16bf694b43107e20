use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use drophammer_protocol::archive::Archive;
use tempfile::NamedTempFile;

use super::*;

fn options() -> Options {
    Options {
        uuid: Uuid::from_u128(0x0102_0304_0506_4708_890a_0b0c_0d0e_0f10),
        label: "root".into(),
        created: 1_700_000_000,
    }
}

fn member(path: impl Into<OsString>, kind: Kind) -> Member {
    Member {
        path: path.into().into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time { seconds: 1_700_000_000, nanoseconds: 5 },
        xattrs: Vec::new(),
    }
}

fn file(path: impl Into<OsString>, bytes: u64) -> Member {
    member(path, Kind::File(archive::Content { bytes, segments: None }))
}

/// The file system of these members, each file full of sevens.
fn made(members: &[Member]) -> Result<(NamedTempFile, Image)> {
    let image = NamedTempFile::new()?;
    let mut writer = Writer::new(image.as_file(), options());
    for member in members {
        writer.place(member, &mut std::io::repeat(7))?;
    }
    let made = writer.finish()?;
    Ok((image, made))
}

fn run(program: &str, arguments: &[&str], image: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .arg(image)
        .output()
        .unwrap_or_else(|e| panic!("{program} runs; it is in the Debian package e2fsprogs: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn judge(name: &str, image: &NamedTempFile, made: &Image) {
    assert_eq!(image.as_file().metadata().expect("there").len(), made.bytes, "{name}");
    let said = run("e2fsck", &["-f", "-n"], image.path());
    assert!(!said.contains("Fix") && !said.contains("WARNING"), "{name}: {said}");
    // What needn't be written may hold anything.
    let mut at = 0;
    for used in made.used.iter().cloned().chain(std::iter::once(made.bytes..made.bytes)) {
        let noise = vec![0xa5; usize::try_from(used.start - at).expect("small")];
        image.as_file().write_all_at(&noise, at).expect("written");
        at = used.end;
    }
    let said = run("e2fsck", &["-f", "-n"], image.path());
    assert!(!said.contains("Fix") && !said.contains("WARNING"), "{name}, with noise in what is free: {said}");
}

#[test]
fn e2fsck_finds_nothing_wrong() {
    let many = |count: u32, length: usize| (0..count).map(move |n| file(format!("d/{n:0length$}"), 0)).collect();
    let holes = |count: u64| {
        let segments = (0..count).map(|n| archive::Segment { offset: n * 8192, length: 4096 }).collect();
        member("holes", Kind::File(archive::Content { bytes: count * 8192, segments: Some(segments) }))
    };
    let attribute = |name: &str, length: usize| (OsString::from(name), vec![9; length]);
    let with = |xattrs| vec![Member { xattrs, ..file("f", 1) }];
    let nodes: Vec<Member> = [
        Kind::Directory,
        Kind::Fifo,
        Kind::CharacterDevice { major: 1, minor: 3 },
        Kind::BlockDevice { major: 259, minor: 70_000 },
        Kind::SymbolicLink { target: "short".into() },
        Kind::SymbolicLink { target: "x".repeat(59).into() },
        Kind::SymbolicLink { target: "x".repeat(60).into() },
        Kind::SymbolicLink { target: "x".repeat(4095).into() },
    ]
    .into_iter()
    .enumerate()
    .map(|(n, kind)| member(format!("nodes/{n}"), kind))
    .collect();
    let cases: Vec<(&str, Vec<Member>)> = vec![
        ("nothing", vec![]),
        ("the root described", vec![Member { mode: 0o700, ..member("./", Kind::Directory) }]),
        ("a file of every size", [0, 1, 4095, 4096, 4097, 9 << 20].map(|n| file(format!("f{n}"), n)).to_vec()),
        ("one of every kind", nodes),
        ("a directory of one full block", many(168, 11)),
        ("of two blocks", many(400, 10)),
        ("of so many that the index needs a level", many(32_000, 60)),
        ("long names", many(3000, 255)),
        ("more files than one group numbers", (0..9000).map(|n| file(format!("{}/{n}", n % 7), 0)).collect()),
        ("more than a group of data", vec![file("a", 300 << 20), file("b", 1)]),
        ("four holes", vec![holes(4)]),
        ("more holes than an inode has room for", vec![holes(5), file("after", 1)]),
        ("than one block has", vec![holes(400)]),
        ("than four blocks have", vec![holes(1500)]),
        ("capability", with(vec![attribute("security.capability", 20)])),
        ("attributes outside of the inode", with(vec![attribute("user.a", 200), attribute("user.b", 0)])),
        ("in both places", with(vec![attribute("user.big", 3000), attribute("security.selinux", 30)])),
        ("as much as can be", with(vec![attribute("user.big", 4000)])),
        (
            "replaced",
            vec![file("a", 5000), file("a", 3), member("b", Kind::HardLink { target: "a".into() }), file("a", 1)],
        ),
        (
            "attributes of a directory that come later",
            vec![
                file("d/f", 1),
                Member { xattrs: vec![attribute("user.a", 300)], ..member("d", Kind::Directory) },
                Member { xattrs: vec![attribute("user.a", 200)], ..member("d", Kind::Directory) },
            ],
        ),
        ("names that aren't text", vec![file(OsString::from_vec(vec![0xff, 0xfe]), 1)]),
        ("one's own lost+found", vec![file("lost+found/here", 1)]),
    ];
    for (name, members) in cases {
        let (image, made) = made(&members).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        judge(name, &image, &made);
    }
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let xattr = |name: &str, length: usize| vec![(OsString::from(name), vec![0; length])];
    for (name, members, want) in [
        ("upwards", vec![file("../a", 0)], "leads out"),
        ("behind a file", vec![file("a", 0), file("a/b", 0)], "lies behind a, which isn't a directory"),
        ("a file over a directory", vec![file("a/b", 0), file("a", 0)], "a directory is there already"),
        ("a link to nothing there", vec![member("a", Kind::HardLink { target: "b".into() })], "isn't before it"),
        (
            "a hard link to a directory",
            vec![file("d/f", 0), member("a", Kind::HardLink { target: "d".into() })],
            "directory",
        ),
        ("a name too long", vec![file("x".repeat(256), 0)], "longer than 255"),
        ("a link too long", vec![member("a", Kind::SymbolicLink { target: "x".repeat(4096).into() })], "4095"),
        ("too much attribute", vec![Member { xattrs: xattr("user.a", 5000), ..file("a", 0) }], "more than the 4 KiB"),
        ("an unknown kind", vec![Member { xattrs: xattr("nfs4.acl", 1), ..file("a", 0) }], "of a kind"),
        ("no ACL", vec![Member { xattrs: xattr("system.posix_acl_access", 5), ..file("a", 0) }], "ACL"),
        ("the root as a file", vec![file("./", 0)], "root"),
    ] {
        let said = made(&members).map(|_| String::new()).unwrap_or_else(|e| format!("{e:#}"));
        assert!(said.contains(want), "{name}: {said}");
    }
    // A promise that isn't kept.
    let image = NamedTempFile::new().expect("a file");
    let mut writer = Writer::new(image.as_file(), options());
    let said = writer.place(&file("a", 10), &mut &b"short"[..]).expect_err("cut");
    assert!(format!("{said:#}").contains("ends in the middle"), "{said:#}");
}

#[test]
fn the_same_members_make_the_same_bytes() {
    let members = [file("a", 5000), file("d/b", 1), member("l", Kind::SymbolicLink { target: "a".into() })];
    let bytes = || std::fs::read(made(&members).expect("made").0.path()).expect("read");
    assert!(bytes() == bytes());
}

/// What `debugfs` of e2fsprogs, which shares nothing with this, reads out of it.
#[test]
fn everything_is_as_the_tar_has_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).expect("made");
    let text: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(tree.join("sub/file"), &text).expect("written");
    std::os::unix::fs::symlink("sub/file", tree.join("link")).expect("linked");
    let tar = Command::new("tar")
        .args(["--create", "--format=pax", "--owner=70000", "--group=70001", "--mode=4751", "--mtime=@1600000000.25"])
        .arg("--directory")
        .arg(&tree)
        .arg(".")
        .output()
        .expect("tar runs");
    let image = NamedTempFile::new().expect("a file");
    let mut writer = Writer::new(image.as_file(), options());
    let mut archive = Archive::new(&tar.stdout[..]);
    while let Some(member) = archive.next_member().expect("read") {
        writer.place(&member, &mut archive).expect("placed");
    }
    writer.finish().expect("finished");
    let debugfs = |request: &str| run("debugfs", &["-R", request], image.path());
    let stat = debugfs("stat /sub/file");
    for want in ["Mode:  04751", "User: 70000", "Group: 70001", "Size: 80000", "0x5f5e1000:3b9aca00"] {
        assert!(stat.contains(want), "{want} isn't in {stat}");
    }
    assert!(debugfs("stat /link").contains("Fast link dest: \"sub/file\""));
    let copy = dir.path().join("copy");
    debugfs(&format!("dump /sub/file {}", copy.display()));
    assert!(std::fs::read(copy).expect("dumped") == text);
}
