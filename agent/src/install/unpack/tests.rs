use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use tar::{EntryType, Header};

use super::*;

/// A member whose names are written as they are, without the care that a tar writer takes.
fn member(kind: EntryType, path: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    for (field, text) in [(0, path), (157, link)] {
        for (place, byte) in header.as_mut_bytes().iter_mut().skip(field).zip(text.as_bytes()) {
            *place = *byte;
        }
    }
    header.set_size(content.len() as u64);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(nix::unistd::getuid().as_raw().into());
    header.set_gid(nix::unistd::getgid().as_raw().into());
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str, content: &str) -> Vec<u8> {
    member(EntryType::Regular, path, "", content.as_bytes())
}

fn link(path: &str, target: &str) -> Vec<u8> {
    member(EntryType::Symlink, path, target, b"")
}

fn hard(path: &str, target: &str) -> Vec<u8> {
    member(EntryType::Link, path, target, b"")
}

fn dir(path: &str) -> Vec<u8> {
    member(EntryType::Directory, path, "", b"")
}

#[test]
fn nothing_escapes() {
    for (name, members, want) in [
        ("upwards", vec![file("../victim/new", "x")], Err("leads out of the image")),
        ("upwards in the middle", vec![dir("a"), file("a/../../victim/new", "x")], Err("leads out of the image")),
        ("absolute", vec![file("/victim/new", "x")], Ok(Some(("victim/new", "x")))),
        ("through a link upwards", vec![link("a", "../victim"), file("a/new", "x")], Err("opening directory a")),
        (
            "through a link upwards to something of ours",
            vec![dir("victim"), link("a", "../victim"), file("a/new", "x")],
            Ok(Some(("victim/new", "x"))),
        ),
        ("through an absolute link", vec![link("a", "@/victim"), file("a/new", "x")], Err("opening directory a")),
        ("over a link to a file", vec![link("a", "@/victim/old"), file("a", "x")], Ok(Some(("a", "x")))),
        (
            "a directory over a link",
            vec![link("a", "@/victim"), dir("a"), file("a/new", "x")],
            Ok(Some(("a/new", "x"))),
        ),
        (
            "a link that changes after it was used",
            vec![dir("b"), link("a", "b"), file("a/new", "x"), link("a", "@/victim"), file("a/newer", "x")],
            Err("opening directory a"),
        ),
        ("a hard link to the outside", vec![hard("a", "../victim/old")], Err("leads out of the image")),
        ("a hard link to an absolute path", vec![hard("a", "/victim/old")], Err("opening the directory of its target")),
        (
            "a hard link to a link, written through",
            vec![link("a", "@/victim/old"), hard("b", "a"), file("b", "x")],
            Ok(Some(("b", "x"))),
        ),
        ("a file over a directory", vec![dir("a"), file("a", "x")], Err("unpacking a")),
        ("the root itself", vec![dir("./")], Ok(None)),
        ("the root as a link", vec![link("./", "@/victim")], Err("isn't a directory")),
        ("an unknown kind", vec![member(EntryType::new(b'Z'), "a", "", b"")], Err("kind that can't be unpacked")),
    ] {
        let outer = tempfile::tempdir().expect("temporary directory");
        let victim = outer.path().join("victim");
        fs::create_dir(&victim).expect("made");
        fs::write(victim.join("old"), "old").expect("written");
        let base = outer.path().join("root");
        fs::create_dir(&base).expect("made");
        // `@` stands for where the victim really is.
        let mut stream = members.concat();
        let here = outer.path().as_os_str().as_bytes().to_vec();
        for at in (0..stream.len()).step_by(512) {
            if stream.get(at + 157) == Some(&b'@') {
                let header = &mut stream[at..at + 512];
                let target = [&here[..], &header[158..257 - here.len()]].concat();
                header[157..157 + target.len()].copy_from_slice(&target);
                let mut fixed = Header::new_gnu();
                fixed.as_mut_bytes().copy_from_slice(header);
                fixed.set_cksum();
                header.copy_from_slice(fixed.as_bytes());
            }
        }
        stream.extend([0; 1024]);
        let root = Root::open(&base).expect("opened");
        let got = unpack(&stream[..], &root).map_err(|e| format!("{e:#}"));
        match (&got, want) {
            (Ok(_), Ok(Some((path, content)))) => {
                assert_eq!(fs::read_to_string(base.join(path)).expect(name), content, "{name}");
            }
            (Ok(_), Ok(None)) => {}
            (Err(error), Err(part)) => assert!(error.contains(part), "{name}: {error}"),
            _ => panic!("{name}: {got:?}"),
        }
        let left: Vec<_> = fs::read_dir(&victim).expect("listed").map(|e| e.expect("listed").file_name()).collect();
        assert_eq!(left, ["old"], "{name}: nothing new outside");
        assert_eq!(fs::read_to_string(victim.join("old")).expect("there"), "old", "{name}: nothing changed outside");
    }
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    let whole = [file("a", "some content"), file("b", &"x".repeat(2000))].concat();
    for cut in [1, 511, 513, 1023, 1100, 1536, 1537, 3000] {
        let base = tempfile::tempdir().expect("temporary directory");
        let got = unpack(&whole[..cut], &Root::open(base.path()).expect("opened"));
        got.expect_err("cut");
    }
}

#[derive(Debug, PartialEq)]
struct Found {
    kind: u32,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    time: (i64, i64),
    content: Vec<u8>,
    xattrs: Vec<(std::ffi::OsString, Vec<u8>)>,
}

fn tree(base: &Path) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![base.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).expect("examined");
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("listed").map(|e| e.expect("listed").path()));
        }
        let content = if metadata.is_file() {
            fs::read(&path).expect("read")
        } else if metadata.is_symlink() {
            fs::read_link(&path).expect("read").into_os_string().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let mut xattrs: Vec<_> = xattr::list(&path)
            .expect("listed")
            .map(|name| (name.clone(), xattr::get(&path, &name).expect("read").unwrap_or_default()))
            .collect();
        xattrs.sort();
        let facts = Found {
            kind: metadata.mode() & libc::S_IFMT,
            mode: metadata.permissions().mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            links: metadata.nlink(),
            device: metadata.rdev(),
            time: (metadata.mtime(), metadata.mtime_nsec()),
            content,
            xattrs,
        };
        found.insert(path.strip_prefix(base).expect("below").to_owned(), facts);
    }
    found
}

#[test]
fn as_gnu_tar_does_it() {
    let probe = tempfile::NamedTempFile::new().expect("temporary file");
    // Root of a user namespace isn't enough: most numbers mean nobody there.
    if std::os::unix::fs::chown(probe.path(), Some(4_000_000), None).is_err() {
        println!("skipped: files can only be given to any owner by root");
        return;
    }
    let outer = tempfile::tempdir().expect("temporary directory");
    let base = outer.path().join("from");
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(200));
    for dir in ["bin", "tmp", "dev", "home/user", &format!("long/{}", "d".repeat(120))] {
        fs::create_dir_all(base.join(dir)).expect("made");
    }
    let set = |path: &str, owner: u32, mode: u32| {
        std::os::unix::fs::chown(base.join(path), Some(owner), Some(owner + 1)).expect("owner");
        fs::set_permissions(base.join(path), fs::Permissions::from_mode(mode)).expect("mode");
    };
    fs::write(base.join("bin/su"), "su").expect("written");
    set("bin/su", 0, 0o4755);
    fs::write(base.join("bin/wall"), vec![0x77; 3_000_000]).expect("written");
    set("bin/wall", 5, 0o2755);
    set("tmp", 0, 0o1777);
    set("home/user", 4_000_000, 0o2700);
    fs::write(base.join(&long), "far").expect("written");
    set(&long, 1000, 0o600);
    fs::write(base.join("bin/ping"), "ping").expect("written");
    set("bin/ping", 0, 0o755);
    // cap_dac_override,cap_fowner=ep: version 2 (linux/capability.h), whose permitted set is a newline.
    let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(base.join("bin/ping"), "security.capability", &capability).expect("set");
    xattr::set(base.join("home/user"), "user.note", b"a\nb=c\0").expect("set");
    fs::hard_link(base.join("bin/su"), base.join("bin/sudo")).expect("linked");
    symlink("su", base.join("bin/runuser")).expect("linked");
    symlink("x".repeat(150), base.join("bin/long-link")).expect("linked");
    symlink("/nowhere", base.join("dangling")).expect("linked");
    fs::write(base.join("empty"), "").expect("written");
    let mode = Mode::from_bits_truncate(0o640);
    nix::sys::stat::mknod(&base.join("dev/fifo"), SFlag::S_IFIFO, mode, 0).expect("made");
    // Containers often don't let even root make these.
    if nix::sys::stat::mknod(&base.join("dev/null"), SFlag::S_IFCHR, mode, makedev(1, 3)).is_ok() {
        nix::sys::stat::mknod(&base.join("dev/disk"), SFlag::S_IFBLK, mode, makedev(259, 1_000_000)).expect("made");
        set("dev/disk", 6, 0o660);
    }
    for (at, path) in ["bin/su", "bin/runuser", "dev/fifo", "empty", "bin", "tmp", "."].iter().enumerate() {
        let time = TimeSpec::new(1_000_000_000 + i64::try_from(at).expect("small"), 123_456_789);
        let how = UtimensatFlags::NoFollowSymlink;
        utimensat(nix::fcntl::AT_FDCWD, &base.join(path), &time, &time, how).expect("set");
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("GNU tar runs");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let attributes = ["--xattrs", "--xattrs-include=*", "--numeric-owner"];
    for (name, format) in [("pax", "--format=pax"), ("gnu", "--format=gnu")] {
        // Only pax has attributes; GNU tar turns to it by itself when it's told to keep them.
        let keep: &[&str] = if name == "pax" { &attributes } else { &["--numeric-owner"] };
        let archive = run(Command::new("tar").args(["-c", format]).args(keep).arg("-C").arg(&base).arg("."));
        let file = outer.path().join("archive");
        fs::write(&file, &archive).expect("written");
        let (theirs, ours) = (outer.path().join(format!("theirs-{name}")), outer.path().join(format!("ours-{name}")));
        fs::create_dir(&theirs).expect("made");
        fs::create_dir(&ours).expect("made");
        run(Command::new("tar").args(["-x", "-p"]).args(attributes).arg("-C").arg(&theirs).arg("-f").arg(&file));
        let done = unpack(&archive[..], &Root::open(&ours).expect("opened")).expect("unpacked");
        assert_eq!(usize::try_from(done.members).expect("few"), tree(&base).len(), "{name}");
        let (theirs, ours) = (tree(&theirs), tree(&ours));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (path, facts) in &ours {
            assert_eq!(Some(facts), theirs.get(path), "{name}: {}", path.display());
        }
    }
    assert_eq!(tree(&outer.path().join("ours-pax")), tree(&base), "and as it was");
}
