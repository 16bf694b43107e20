//! The archive format the kernel unpacks into its first root: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written by hand because every byte counts: the same tree must give the same archive on every machine, so names are sorted,
//! inodes are counted from one, and time, owner and device are zero.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Context as _, Result, ensure};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Mode of directories that exist only because something lies in them.
const PARENT_MODE: u32 = 0o755;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node<'a> {
    Directory,
    File(Cow<'a, [u8]>),
    Symlink(String),
    CharDevice { major: u32, minor: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<'a> {
    permissions: u32,
    node: Node<'a>,
}

/// A tree of files on its way into an initramfs. Paths are relative to the root; a leading `/` is allowed and means nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive<'a> {
    entries: BTreeMap<String, Entry<'a>>,
}

impl<'a> Archive<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the mode of a directory that is already there as somebody's parent.
    pub fn directory(&mut self, path: &str, permissions: u32) -> Result<()> {
        let path = normalised(path)?;
        let implied = Entry { permissions: PARENT_MODE, node: Node::Directory };
        if self.entries.get(&path) == Some(&implied) {
            self.entries.remove(&path);
        }
        self.insert(path, permissions, Node::Directory)
    }

    pub fn file(&mut self, path: &str, content: impl Into<Cow<'a, [u8]>>, permissions: u32) -> Result<()> {
        let content = content.into();
        u32::try_from(content.len())
            .with_context(|| format!("putting {path} into the archive: cpio holds files below 4 GiB"))?;
        self.insert(normalised(path)?, permissions, Node::File(content))
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        ensure!(!target.is_empty() && !target.contains('\0'), "the symbolic link {path} has no usable target");
        self.insert(normalised(path)?, 0o777, Node::Symlink(target.to_owned()))
    }

    pub fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> Result<()> {
        self.insert(normalised(path)?, permissions, Node::CharDevice { major, minor })
    }

    /// Whether something lies at `path` already.
    pub fn contains(&self, path: &str) -> bool {
        normalised(path).is_ok_and(|path| self.entries.contains_key(&path))
    }

    /// Sum of the contents of all files, without names and padding.
    pub fn content_bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.body().len() as u64).sum()
    }

    /// Writes the archive with its trailer; the length is a multiple of four, so that another archive may follow.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        for (inode, (name, entry)) in (1u32..).zip(&self.entries) {
            write_entry(out, inode, name, entry)?;
        }
        let trailer = Entry { permissions: 0, node: Node::File(Cow::Borrowed(&[])) };
        write_record(out, 0, "TRAILER!!!", 0, 1, (0, 0), trailer.body())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes).expect("writing to memory cannot fail");
        bytes
    }

    fn insert(&mut self, path: String, permissions: u32, node: Node<'a>) -> Result<()> {
        ensure!(!path.is_empty(), "the root itself cannot be an entry of the archive");
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            let entry = self
                .entries
                .entry(parent.to_owned())
                .or_insert(Entry { permissions: PARENT_MODE, node: Node::Directory });
            ensure!(entry.node == Node::Directory, "{path} cannot lie in {parent}, which is not a directory");
        }
        ensure!(!self.entries.contains_key(&path), "{path} is in the archive twice");
        self.entries.insert(path, Entry { permissions: permissions & 0o7777, node });
        Ok(())
    }
}

/// An uncompressed archive of a few small files, `(path, content, permissions)`, to be appended to an initramfs.
///
/// The kernel unpacks archives one after the other into the same root, also a plain one behind a compressed one, as long as it
/// starts at a multiple of four bytes: [`crate::build`] pads its output to that, and a segment's length is one as well.
/// Parent directories are part of the segment (mode 0755), because the kernel makes none by itself.
///
/// # Panics
/// On a path that is empty, listed twice, below another file, or has a `..` or NUL in it: paths are the caller's constants.
pub fn segment(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut archive = Archive::new();
    for &(path, content, permissions) in files {
        if let Err(error) = archive.file(path, content, permissions) {
            panic!("building an initramfs segment: {error:#}");
        }
    }
    archive.to_bytes()
}

/// The zero bytes that must follow `length` bytes before the next archive may start.
pub fn padding(length: u64) -> &'static [u8] {
    match length % 4 {
        0 => &[],
        1 => &[0; 3],
        2 => &[0; 2],
        _ => &[0; 1],
    }
}

fn normalised(path: &str) -> Result<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    ensure!(!parts.contains(&".."), "{path} climbs out of a directory; archive paths are plain");
    ensure!(!path.contains('\0'), "{path:?} has a NUL in it");
    Ok(parts.join("/"))
}

impl Entry<'_> {
    fn body(&self) -> &[u8] {
        match &self.node {
            Node::File(content) => content,
            Node::Symlink(target) => target.as_bytes(),
            Node::Directory | Node::CharDevice { .. } => &[],
        }
    }
}

fn write_entry(out: &mut impl Write, inode: u32, name: &str, entry: &Entry<'_>) -> io::Result<()> {
    let (file_type, links, device) = match entry.node {
        Node::Directory => (S_IFDIR, 2, (0, 0)),
        Node::File(_) => (S_IFREG, 1, (0, 0)),
        Node::Symlink(_) => (S_IFLNK, 1, (0, 0)),
        Node::CharDevice { major, minor } => (S_IFCHR, 1, (major, minor)),
    };
    write_record(out, inode, name, file_type | entry.permissions, links, device, entry.body())
}

fn write_record(
    out: &mut impl Write,
    inode: u32,
    name: &str,
    mode: u32,
    links: u32,
    (major, minor): (u32, u32),
    body: &[u8],
) -> io::Result<()> {
    let (uid, gid, mtime, device_major, device_minor, checksum) = (0, 0, 0, 0, 0, 0);
    let name_size = name.len() + 1;
    let body_size = body.len();
    let header = format!(
        "070701{inode:08x}{mode:08x}{uid:08x}{gid:08x}{links:08x}{mtime:08x}{body_size:08x}\
         {device_major:08x}{device_minor:08x}{major:08x}{minor:08x}{name_size:08x}{checksum:08x}"
    );
    out.write_all(header.as_bytes())?;
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    out.write_all(padding((header.len() + name_size) as u64))?;
    out.write_all(body)?;
    out.write_all(padding(body_size as u64))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Record {
        pub(crate) name: String,
        pub(crate) mode: u32,
        pub(crate) inode: u32,
        pub(crate) device: (u32, u32),
        pub(crate) body: Vec<u8>,
    }

    /// Reads what the kernel would: strict about magic, alignment and the trailer.
    pub(crate) fn parse(bytes: &[u8]) -> Vec<Record> {
        let aligned = |at: usize| at.next_multiple_of(4);
        let mut records = Vec::new();
        let mut at = 0;
        loop {
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let digits = std::str::from_utf8(&bytes[start..start + 8]).expect("hex digits");
                u32::from_str_radix(digits, 16).expect("hex digits")
            };
            assert_eq!(&bytes[at..at + 6], b"070701", "magic at {at}");
            assert_eq!((field(2), field(3), field(5)), (0, 0, 0), "owner and time at {at}");
            let (body_size, name_size) = (field(6) as usize, field(11) as usize);
            let body_at = aligned(at + 110 + name_size);
            let name = std::str::from_utf8(&bytes[at + 110..at + 110 + name_size - 1]).expect("a name").to_owned();
            assert_eq!(bytes[at + 110 + name_size - 1], 0, "NUL behind {name}");
            let record = Record {
                name,
                mode: field(1),
                inode: field(0),
                device: (field(9), field(10)),
                body: bytes[body_at..body_at + body_size].to_vec(),
            };
            at = aligned(body_at + body_size);
            if record.name == "TRAILER!!!" {
                assert_eq!(at, bytes.len(), "the trailer is last and padded");
                return records;
            }
            records.push(record);
        }
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        parse(bytes).into_iter().map(|record| record.name).collect()
    }

    #[test]
    fn a_segment_brings_its_parent_directories() {
        let bytes =
            segment(&[("etc/drophammer/boot-ticket.json", b"{}", 0o600), ("/etc/drophammer/ca.pem", b"pem", 0o644)]);
        let records = parse(&bytes);
        let seen: Vec<_> = records.iter().map(|r| (r.name.as_str(), r.mode, r.body.as_slice())).collect();
        assert_eq!(
            seen,
            [
                ("etc", 0o040_755, &b""[..]),
                ("etc/drophammer", 0o040_755, b""),
                ("etc/drophammer/boot-ticket.json", 0o100_600, b"{}"),
                ("etc/drophammer/ca.pem", 0o100_644, b"pem"),
            ]
        );
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn every_kind_of_node_is_written() {
        let mut archive = Archive::new();
        archive.file("init", &b"elf"[..], 0o755).expect("init");
        archive.char_device("dev/console", 0o600, 5, 1).expect("console");
        archive.symlink("lib64", "usr/lib64").expect("link");
        archive.directory("dev", 0o700).expect("mode of a parent");
        archive.directory("tmp", 0o1777).expect("tmp");
        let records = parse(&archive.to_bytes());
        let seen: Vec<_> =
            records.iter().map(|r| (r.name.as_str(), r.mode, r.inode, r.device, r.body.as_slice())).collect();
        assert_eq!(
            seen,
            [
                ("dev", 0o040_700, 1, (0, 0), &b""[..]),
                ("dev/console", 0o020_600, 2, (5, 1), b""),
                ("init", 0o100_755, 3, (0, 0), b"elf"),
                ("lib64", 0o120_777, 4, (0, 0), b"usr/lib64"),
                ("tmp", 0o041_777, 5, (0, 0), b""),
            ]
        );
    }

    #[test]
    fn impossible_paths_are_refused() {
        for (case, first, second) in [
            ("twice", "a", "/a"),
            ("below a file", "a", "a/b"),
            ("climbing", "x", "a/../b"),
            ("the root", "x", "/"),
            ("NUL", "x", "a\0b"),
        ] {
            let mut archive = Archive::new();
            archive.file(first, &b""[..], 0o644).expect(case);
            assert!(archive.file(second, &b""[..], 0o644).is_err(), "{case}");
        }
    }

    #[test]
    fn cpio_itself_reads_the_archive() {
        let bytes = segment(&[("etc/a", b"1", 0o644), ("etc/b/c", b"12345", 0o644), ("init", b"", 0o755)]);
        let mut folder = tempfile::tempfile().expect("a temporary file");
        folder.write_all(&bytes).expect("writing the archive");
        io::Seek::rewind(&mut folder).expect("rewinding");
        let mut cpio = Command::new("cpio");
        let output = cpio.args(["-t", "--quiet"]).stdin(Stdio::from(folder)).output();
        let output = output.expect("cpio runs; it is in the Debian package cpio");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed: Vec<&str> = std::str::from_utf8(&output.stdout).expect("names").lines().collect();
        assert_eq!(listed, names(&bytes));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(files in proptest::collection::btree_map(
            "[a-z]{1,9}(/[a-z]{1,9}x){0,3}", (proptest::collection::vec(any::<u8>(), 0..70), 0u32..0o10000), 0..12))
        {
            let mut archive = Archive::new();
            let mut kept = Vec::new();
            for (path, (content, permissions)) in &files {
                if archive.file(path, content.as_slice(), *permissions).is_ok() {
                    kept.push((path.clone(), S_IFREG | *permissions, content.clone()));
                }
            }
            let records = parse(&archive.to_bytes());
            let read: Vec<_> = records
                .iter()
                .filter(|r| r.mode & 0o170_000 == S_IFREG)
                .map(|r| (r.name.clone(), r.mode, r.body.clone()))
                .collect();
            kept.sort();
            prop_assert_eq!(read, kept);
            for pair in records.windows(2) {
                prop_assert!(pair[0].name < pair[1].name && pair[0].inode < pair[1].inode);
            }
            for record in &records {
                if let Some((parent, _)) = record.name.rsplit_once('/') {
                    prop_assert!(records.iter().any(|r| r.name == parent && r.mode & 0o170_000 == S_IFDIR));
                }
            }
        }
    }
}
