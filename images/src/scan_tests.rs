use proptest::prelude::*;

use super::*;

enum Item {
    Dir(&'static str),
    File(&'static str, &'static [u8]),
    Link(&'static str, &'static str),
    Hard(&'static str, &'static str),
    Kind(&'static str, u8),
    /// Extended header of what follows.
    Pax(&'static [u8]),
}
use Item::{Dir, File, Hard, Kind, Link, Pax};

/// Names go in as they are: the tar crate's own writer refuses the bad ones.
fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        let (name, kind, link, content): (&str, u8, &str, &[u8]) = match item {
            Dir(name) => (name, b'5', "", &[]),
            File(name, content) => (name, b'0', "", content),
            Link(name, target) => (name, b'2', target, &[]),
            Hard(name, target) => (name, b'1', target, &[]),
            Kind(name, kind) => (name, *kind, "", &[]),
            Pax(records) => ("pax", b'x', "", records),
        };
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        old.linkflag = [kind];
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.set_real_size(0);
        }
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_device_major(1).expect("a GNU header has it");
        header.set_device_minor(3).expect("a GNU header has it");
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<Contents, Unfit> {
    Contents::read(bytes, |_, _| Ok(()))
}

fn said<T>(result: Result<T, Unfit>) -> String {
    result.err().map(|e| format!("{:#}", anyhow::Error::from(e))).unwrap_or_default()
}

const KERNEL: Item = File("boot/vmlinuz-6.1", b"kernel");

#[test]
fn a_tar_that_machines_could_unpack_differently_is_refused() {
    let whole = tar_of(&[Dir("./"), Dir("./boot/"), KERNEL]);
    let with = |f: fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        f(&mut bytes);
        bytes
    };
    // A header that says something else, and whose checksum is right all the same.
    let saying = |bytes: &[u8], header: usize, at: usize, value: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[header + at..][..value.len()].copy_from_slice(value);
        let mut whole = tar::Header::new_old();
        whole.as_mut_bytes().copy_from_slice(&bytes[header..header + 512]);
        whole.set_cksum();
        bytes[header..header + 512].copy_from_slice(whole.as_bytes());
        bytes
    };
    let kernel = |at: usize, value: &[u8]| saying(&whole, 1024, at, value);
    let global = |records: &'static [u8]| saying(&tar_of(&[Pax(records), KERNEL]), 0, 156, b"g");
    for (name, bytes, want) in [
        ("as it should be", whole.clone(), ""),
        ("a mode that is none", kernel(100, b"0001288"), "has an unreadable mode"),
        ("an owner that is none", kernel(108, b"root"), "has an owner that isn't a number of 32 bits"),
        ("a group that is none", kernel(116, b"root"), "has an owner that isn't a number of 32 bits"),
        ("an owner of 33 bits", tar_of(&[Pax(b"18 uid=4294967296\n"), KERNEL]), "has an owner that isn't"),
        ("a time that is none", tar_of(&[Pax(b"11 mtime=x\n"), KERNEL]), "malformed PAX records"),
        ("a time before 1970", tar_of(&[Pax(b"14 mtime=-1.5\n"), KERNEL]), ""),
        ("a directory with data", kernel(156, b"5"), "has a damaged header"),
        ("a file named as a directory", tar_of(&[File("boot/", b"x")]), "has a damaged header"),
        ("a device without numbers", saying(&tar_of(&[Kind("a", b'3')]), 0, 329, b"x"), "is a device without numbers"),
        ("a link to nothing", tar_of(&[Link("boot/vmlinuz-6.2", "")]), "is a link to nothing"),
        ("a root that is a link", tar_of(&[Link("./", "boot")]), "the root of the tar isn't a directory"),
        ("a comment on all of it", global(b"13 comment=x\n"), ""),
        ("a size for all of it", global(b"9 size=1\n"), "global PAX headers other than a comment"),
        ("padded to a record", with(|b| b.resize(10_240, 0)), ""),
        ("upwards", tar_of(&[File("../etc/passwd", b"x")]), "leads out of the image"),
        ("upwards later on", tar_of(&[File("boot/../../etc/passwd", b"x")]), "leads out of the image"),
        ("absolute", tar_of(&[File("/etc/passwd", b"x")]), ""),
        (
            "a file over a directory",
            tar_of(&[Dir("etc"), File("etc", b"x")]),
            "\"etc\" in the tar would replace a directory",
        ),
        (
            "through a symbolic link",
            tar_of(&[Link("etc", "/tmp"), File("etc/passwd", b"x")]),
            "lies behind \"etc\", which isn't a directory",
        ),
        ("below a file", tar_of(&[File("etc", b"x"), File("etc/passwd", b"x")]), "lies behind \"etc\""),
        ("hard link outwards", tar_of(&[Hard("a", "../../etc/shadow")]), "is a hard link to \"../../etc/shadow\""),
        ("hard link to what comes later", tar_of(&[Hard("a", "b"), File("b", b"x")]), "is a hard link to \"b\""),
        ("hard link to a directory", tar_of(&[Dir("b"), Hard("a", "b")]), "is a hard link to \"b\""),
        ("a kind nobody knows", tar_of(&[Kind("a", b'Q')]), "is of a kind"),
        ("sparse in GNU's form", tar_of(&[Kind("a", b'S')]), ""),
        (
            "sparse in pax's form",
            tar_of(&[Pax(b"22 GNU.sparse.major=1\n"), File("a", b"x")]),
            "a file with holes and without a size",
        ),
        (
            "an ACL that isn't one",
            tar_of(&[Pax(b"33 SCHILY.acl.access=user::rw-,g\n"), File("a", b"x")]),
            "has an ACL that isn't understood",
        ),
        ("cut in the middle of a file", whole[..1540].to_vec(), "ends in the middle of a file"),
        ("cut between files", whole[..2048].to_vec(), "no end mark"),
        ("half an end mark", with(|b| b.truncate(b.len() - 512)), "no end mark"),
        ("no tar at all", Vec::new(), "no end mark"),
        ("another tar behind it", [whole.clone(), whole.clone()].concat(), "goes on after its end mark"),
        ("a byte behind it", with(|b| b.push(1)), "goes on after its end mark"),
    ] {
        let got = said(read(&bytes));
        assert!(got.contains(want) && got.is_empty() == want.is_empty(), "{name}: {got}");
    }
}

#[test]
fn boot_files_are_found_or_named() {
    let found = |kernel: &str, initrd: Option<&str>| Ok((kernel.to_owned(), initrd.map(str::to_owned)));
    const INITRD: Item = File("boot/initrd.img-6.1", b"initrd");
    for (name, items, want) in [
        ("a kernel alone", vec![KERNEL], found("/boot/vmlinuz-6.1", None)),
        ("with its initrd", vec![KERNEL, INITRD], found("/boot/vmlinuz-6.1", Some("/boot/initrd.img-6.1"))),
        (
            "as on Fedora",
            vec![KERNEL, File("boot/initramfs-6.1.img", b"i")],
            found("/boot/vmlinuz-6.1", Some("/boot/initramfs-6.1.img")),
        ),
        (
            "by a link from the same directory",
            vec![KERNEL, INITRD, Link("boot/vmlinuz", "vmlinuz-6.1"), Link("boot/initrd.img", "initrd.img-6.1")],
            found("/boot/vmlinuz-6.1", Some("/boot/initrd.img-6.1")),
        ),
        (
            "kept elsewhere",
            vec![File("usr/lib/kernel/vmlinuz", b"k"), Link("boot/vmlinuz-6.1", "../usr/lib/./kernel/vmlinuz")],
            found("/usr/lib/kernel/vmlinuz", None),
        ),
        (
            "/boot is a link",
            vec![File("efi/vmlinuz-6.1", b"k"), Link("boot", "/efi/")],
            found("/efi/vmlinuz-6.1", None),
        ),
        ("a dangling link beside it", vec![KERNEL, Link("boot/vmlinuz.old", "gone")], found("/boot/vmlinuz-6.1", None)),
        ("a hard link", vec![File("a", b"k"), Hard("boot/vmlinuz", "a")], found("/boot/vmlinuz", None)),
        ("none", vec![Dir("boot")], Err("there is no kernel")),
        ("a circle of links", vec![Link("boot/vmlinuz", "vmlinuz")], Err("there is no kernel")),
        ("only deeper down", vec![File("boot/old/vmlinuz-6.1", b"k")], Err("there is no kernel")),
        ("two", vec![KERNEL, File("boot/vmlinuz-6.2", b"k")], Err("isn't known: /boot/vmlinuz-6.1, /boot/vmlinuz-6.2")),
        (
            "another kernel's initrd",
            vec![KERNEL, File("boot/initrd.img-6.2", b"i")],
            Err("the kernel is /boot/vmlinuz-6.1, but the initrds are /boot/initrd.img-6.2"),
        ),
        ("core.img alone", vec![KERNEL, File(grub::CORE_IMG, b"c")], Err("GRUB for BIOS is incomplete")),
        (
            "boot.img of the wrong size",
            vec![KERNEL, File(grub::BOOT_IMG, b"b"), File(grub::CORE_IMG, b"c")],
            Err("isn't a boot sector of 512 bytes"),
        ),
    ] {
        let got = read(&tar_of(&items)).and_then(|contents| contents.boot_files("quiet", None));
        match (got, want) {
            (Ok(boot), Ok(want)) => assert_eq!((boot.kernel.path, boot.initrd.map(|i| i.path)), want, "{name}"),
            (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{name}: {got}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
    }
}

#[test]
fn the_hash_is_that_of_the_file_that_wins() {
    let contents = read(&tar_of(&[File("a", b"first"), File("a", b"second"), Link("b", "a"), Hard("c", "a")]));
    let hash = Some(hex::encode(Sha256::digest(b"second")));
    for path in ["a", "/a", "b", "c"] {
        assert_eq!(contents.as_ref().ok().and_then(|c| c.sha256(path)), hash, "{path}");
    }
    assert_eq!(contents.as_ref().ok().and_then(|c| c.sha256("../d")), None);
}

#[test]
fn an_image_is_described_by_its_os_release() {
    for (name, items, want) in [
        ("quoted", vec![File("etc/os-release", b"ID=x\nPRETTY_NAME=\"X 1\"\n")], Some("X 1")),
        ("bare", vec![File("usr/lib/os-release", b"PRETTY_NAME=X\n")], Some("X")),
        (
            "by Debian's link",
            vec![File("usr/lib/os-release", b"PRETTY_NAME='X 2'"), Link("etc/os-release", "../usr/lib/os-release")],
            Some("X 2"),
        ),
        ("empty", vec![File("etc/os-release", b"PRETTY_NAME=\"\"\n")], None),
        ("none", vec![], None),
    ] {
        assert_eq!(read(&tar_of(&items)).ok().and_then(|c| c.description()).as_deref(), want, "{name}");
    }
}

#[test]
fn space_is_counted_in_blocks() {
    let contents = read(&tar_of(&[Dir("./"), Dir("d"), File("d/a", b"x"), Hard("d/b", "d/a"), Link("l", "d")]));
    assert_eq!(contents.map(|c| (c.installed_bytes, c.newest)).ok(), Some((3 * BLOCK, 1_700_000_000)));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        at in 0usize..512,
        value in any::<u8>(),
    ) {
        let _ = read(&bytes);
        // A header that is nearly right gets further than noise does.
        let mut nearly = tar_of(&[KERNEL, Link("boot/vmlinuz", "vmlinuz-6.1")]);
        nearly[at] = value;
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&nearly[..512]);
        header.set_cksum();
        nearly[..512].copy_from_slice(header.as_bytes());
        if let Ok(contents) = read(&nearly) {
            let _ = contents.boot_files("", None);
        }
    }
}
