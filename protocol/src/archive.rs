//! How the tar of a root file system is read: by who packs it and by the machine that unpacks it, to the same members.
//!
//! Member by member, in bounded memory, from any source of bytes. Header fields are the `tar` crate's. The walk is our own
//! because that crate splits PAX records at newlines, and a file capability is a binary value that may well contain one
//! (`cap_dac_override,cap_fowner` has a 0x0a); because it reads long names of any length into memory; and because it
//! doesn't know of holes that POSIX headers describe.

mod acl;
mod sparse;

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use tar::{EntryType, Header};

pub use self::sparse::Segment;
use self::sparse::SparseHeaders;

const BLOCK: u64 = 512;

/// Long names and PAX records of one member. Linux allows 64 KiB per extended attribute.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As the tar has it; see [`inside`].
    pub path: PathBuf,
    pub kind: Kind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// By their names in Linux, ACLs among them in the form that `setxattr` takes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Content),
    HardLink { target: PathBuf },
    SymbolicLink { target: PathBuf },
    Directory,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// What a file holds. Reading the [`Archive`] gives the bytes of its segments, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: u64,
    /// Where there is data, in ascending order; `None` is all of it. The rest are holes.
    pub segments: Option<Vec<Segment>>,
}

impl Content {
    /// Where there is data, also in a file without holes.
    pub fn segments(&self) -> Vec<Segment> {
        match &self.segments {
            Some(segments) => segments.clone(),
            None if self.bytes == 0 => Vec::new(),
            None => vec![Segment { offset: 0, length: self.bytes }],
        }
    }

    fn stored(&self) -> u64 {
        match &self.segments {
            Some(segments) => segments.iter().map(|segment| segment.length).sum(),
            None => self.bytes,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("reading the tar stream after {after:?}")]
    Read {
        after: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the tar stream ends in the middle of a member, after {after:?}")]
    Cut { after: PathBuf },
    #[error("the tar stream has a damaged header after {after:?}: {what}")]
    Damaged { after: PathBuf, what: &'static str },
    #[error("{path:?} of the image {what}")]
    Unsupported { path: PathBuf, what: &'static str },
}

/// A path with a component that leads upwards.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} leads out of the image", .0.display())]
pub struct Escape(PathBuf);

/// `path` as it's meant inside the root: without leading `/` and `.` components. Empty means the root itself.
pub fn inside(path: &Path) -> Result<PathBuf, Escape> {
    let mut inner = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) if !name.as_bytes().contains(&0) => inner.push(name),
            Component::Normal(_) | Component::ParentDir | Component::Prefix(_) => return Err(Escape(path.to_owned())),
        }
    }
    Ok(inner)
}

#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    /// Of the current member: data not yet read, then padding to the next block.
    data_left: u64,
    padding: u64,
    last: PathBuf,
    marked: bool,
}

impl<R: Read> Archive<R> {
    pub fn new(source: R) -> Self {
        Self { source, data_left: 0, padding: 0, last: PathBuf::new(), marked: false }
    }

    /// The next member; what is left of the current one's data is skipped. `None` at the end of the archive.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(until_nul(self.extension(&header)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(self.extension(&header)?)),
                EntryType::XHeader => {
                    let records = self.extension(&header)?;
                    extensions.pax(&records).ok_or_else(|| self.damaged("malformed PAX records"))?;
                }
                EntryType::XGlobalHeader => {
                    let records = self.extension(&header)?;
                    // git archive leaves a comment there. Anything else would change how members are read.
                    let harmless = pax_records(&records).is_some_and(|r| r.iter().all(|(key, _)| *key == b"comment"));
                    if !harmless {
                        return Err(self.damaged("global PAX headers other than a comment aren't supported"));
                    }
                }
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    /// Whether the end was marked as such, once there are no more members. Otherwise the tar may have been cut short.
    pub fn has_end_mark(&self) -> bool {
        self.marked
    }

    /// Hands over what follows the end of the archive, so that the whole stream is read.
    pub fn into_rest(self) -> R {
        self.source
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Member, ArchiveError> {
        let path = extensions.sparse.name.clone().or(extensions.path);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = PathBuf::from(OsString::from_vec(path));
        self.last.clone_from(&path);
        let unsupported = |what| ArchiveError::Unsupported { path: path.clone(), what };
        if let Some(what) = extensions.unsupported {
            return Err(unsupported(what));
        }
        let link = || {
            let link = extensions.link.clone().or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
            let link = link.filter(|link| !link.is_empty()).ok_or_else(|| unsupported("is a link to nothing"))?;
            Ok(PathBuf::from(OsString::from_vec(link)))
        };
        let device = || match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
            _ => Err(unsupported("is a device without numbers")),
        };
        // Only files have data, whatever a link's header says its target's size is. Before POSIX a directory was a file
        // whose name ends in a slash.
        let is_file = match header.entry_type() {
            EntryType::Regular => !path.as_os_str().as_encoded_bytes().ends_with(b"/"),
            EntryType::Continuous | EntryType::GNUSparse => true,
            _ => false,
        };
        let stored = match extensions.size {
            _ if !is_file => 0,
            Some(size) => size,
            None => header.entry_size().map_err(|_| unsupported("has an unreadable size"))?,
        };
        self.padding = padding(stored);
        let kind = match header.entry_type() {
            EntryType::GNUSparse => {
                let (bytes, segments) = self.gnu_sparse(header, stored)?;
                Kind::File(Content { bytes, segments: Some(segments) })
            }
            EntryType::Regular | EntryType::Continuous if is_file => {
                if extensions.sparse.are_there() {
                    let (bytes, segments, data) = self.pax_sparse(extensions.sparse, stored)?;
                    self.padding = padding(data);
                    Kind::File(Content { bytes, segments: Some(segments) })
                } else {
                    Kind::File(Content { bytes: stored, segments: None })
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => Kind::Directory,
            EntryType::Link => Kind::HardLink { target: link()? },
            EntryType::Symlink => Kind::SymbolicLink { target: link()? },
            EntryType::Char => device().map(|(major, minor)| Kind::CharacterDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            EntryType::Fifo => Kind::Fifo,
            _ => return Err(unsupported("is of a kind that can't be unpacked")),
        };
        self.data_left = if let Kind::File(content) = &kind { content.stored() } else { 0 };
        let number = |own: Option<u64>, field: io::Result<u64>| {
            let number = own.map_or(field, Ok).ok().and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| unsupported("has an owner that isn't a number of 32 bits"))
        };
        Ok(Member {
            mode: header.mode().map_err(|_| unsupported("has an unreadable mode"))? & 0o7777,
            uid: number(extensions.uid, header.uid())?,
            gid: number(extensions.gid, header.gid())?,
            mtime: match extensions.mtime {
                Some(time) => time,
                None => Time {
                    seconds: header
                        .mtime()
                        .ok()
                        .and_then(|seconds| i64::try_from(seconds).ok())
                        .ok_or_else(|| unsupported("has an unreadable time"))?,
                    nanoseconds: 0,
                },
            },
            xattrs: extensions.xattrs,
            kind,
            path,
        })
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        if !self.fill(header.as_mut_bytes())? {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            self.marked = true;
            return Ok(None);
        }
        // The checksum counts its own field (148..156) as spaces.
        let sum = bytes
            .iter()
            .enumerate()
            .map(|(at, b)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*b) })
            .sum::<u32>();
        match header.cksum() {
            Ok(stored) if stored == sum => Ok(Some(header)),
            _ => Err(self.damaged("its checksum doesn't match")),
        }
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = header.entry_size().map_err(|_| self.damaged("an extension header of unreadable size"))?;
        let length = usize::try_from(size).ok().filter(|_| size <= MAX_EXTENSION_BYTES);
        let Some(length) = length else { return Err(self.damaged("an extension header larger than 1 MiB")) };
        let mut bytes = vec![0; length];
        if !self.fill(&mut bytes)? && size > 0 {
            return Err(self.cut());
        }
        self.padding = padding(size);
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let left = self.data_left.saturating_add(self.padding);
        self.data_left = 0;
        self.padding = 0;
        if left == 0 {
            return Ok(());
        }
        match io::copy(&mut (&mut self.source).take(left), &mut io::sink()) {
            Ok(skipped) if skipped == left => Ok(()),
            Ok(_) => Err(self.cut()),
            Err(e) => Err(self.unread(e)),
        }
    }

    /// Fills all of `buffer`; `false` if the stream was at its end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.cut()),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.unread(e)),
            }
        }
        Ok(true)
    }

    fn damaged(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Damaged { after: self.last.clone(), what }
    }

    fn cut(&self) -> ArchiveError {
        ArchiveError::Cut { after: self.last.clone() }
    }

    fn unread(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Read { after: self.last.clone(), source }
    }
}

/// The current member's data.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.source).take(self.data_left).read(buffer)?;
        self.data_left -= count as u64;
        Ok(count)
    }
}

/// The same where it lies.
impl<R: BufRead> BufRead for Archive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.data_left == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill_buf()?;
        let left = usize::try_from(self.data_left).unwrap_or(usize::MAX);
        Ok(bytes.get(..left).unwrap_or(bytes))
    }

    fn consume(&mut self, count: usize) {
        self.data_left = self.data_left.saturating_sub(count as u64);
        self.source.consume(count);
    }
}

/// What precedes a member and overrides its header.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(OsString, Vec<u8>)>,
    sparse: SparseHeaders,
    unsupported: Option<&'static str>,
}

impl Extensions {
    fn pax(&mut self, records: &[u8]) -> Option<()> {
        for (key, value) in pax_records(records)? {
            let text = || std::str::from_utf8(value).ok();
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(text()?.parse().ok()?),
                b"uid" => self.uid = Some(text()?.parse().ok()?),
                b"gid" => self.gid = Some(text()?.parse().ok()?),
                b"mtime" => self.mtime = Some(time(text()?)?),
                b"SCHILY.acl.access" => self.acl(acl::ACCESS, value),
                b"SCHILY.acl.default" => self.acl(acl::DEFAULT, value),
                // A C string, also in the attribute.
                b"RHT.security.selinux" => {
                    self.xattrs.push(("security.selinux".into(), [value.trim_ascii_end(), b"\0"].concat()));
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((OsString::from_vec(name.to_vec()), value.to_vec()));
                    } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.take(key, value)?;
                    }
                }
            }
        }
        Some(())
    }

    fn acl(&mut self, name: &str, text: &[u8]) {
        match acl::attribute(text) {
            Ok(value) => self.xattrs.push((name.into(), value)),
            Err(what) => self.unsupported = Some(what),
        }
    }
}

/// POSIX.1-2001 pax, "pax Extended Header": `"%d %s=%s\n", length, keyword, value`, where the length counts all of it.
fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    // Some writers pad with NULs.
    while bytes.first().is_some_and(|b| *b != 0) {
        let space = bytes.iter().take(20).position(|b| *b == b' ')?;
        let length: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        records.push((record.get(..equals)?, record.get(equals + 1..)?));
        bytes = bytes.get(length..)?;
    }
    Some(records)
}

/// `1700000000`, `1700000000.25` or `-1.5`.
fn time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    // Nanoseconds count forward from the second before.
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Time { seconds, nanoseconds })
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// GNU tar ends long names with a NUL that isn't part of them.
fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_taken_as_inside() {
        for (name, path, want) in [
            ("as tar writes them", "./usr/bin/env", Some("usr/bin/env")),
            ("absolute", "/etc/passwd", Some("etc/passwd")),
            ("the root", "./", Some("")),
            ("dots in between", "a/./b//c", Some("a/b/c")),
            ("upwards", "../etc/passwd", None),
            ("upwards in the middle", "a/../../etc", None),
            ("a NUL", "a\0b", None),
        ] {
            assert_eq!(inside(Path::new(path)).ok(), want.map(PathBuf::from), "{name}");
        }
    }

    #[test]
    fn pax_values_are_binary() {
        for (name, bytes, want) in [
            ("one", &b"11 path=ab\n"[..], Some(vec![(&b"path"[..], &b"ab"[..])])),
            ("a newline inside", b"11 path=\n\n\n", Some(vec![(b"path", b"\n\n")])),
            ("an equals sign inside", b"11 path=a=\n", Some(vec![(b"path", b"a=")])),
            ("two", b"6 a=b\n6 c=d\n", Some(vec![(b"a", b"b"), (b"c", b"d")])),
            ("padded", b"6 a=b\n\0\0", Some(vec![(b"a", b"b")])),
            ("too long", b"60 a=b\n", None),
            ("too short", b"3 a=b\n", None),
            ("shorter than itself", b"1 a=b\n", None),
            ("no length", b" a=b\n", None),
            ("negative", b"-6 a=b\n", None),
            ("no equals", b"6 abc\n", None),
            ("huge", b"99999999999999999999 a=b\n", None),
        ] {
            assert_eq!(pax_records(bytes), want, "{name}");
        }
    }

    #[test]
    fn times_with_fractions() {
        for (text, want) in [
            ("1700000000", Some((1_700_000_000, 0))),
            ("1700000000.25", Some((1_700_000_000, 250_000_000))),
            ("0.1234567891", Some((0, 123_456_789))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("1.5x", None),
            ("", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(time(text).map(|t| (t.seconds, t.nanoseconds)), want, "{text:?}");
        }
    }

    #[test]
    fn files_with_holes_as_gnu_tar_writes_them() {
        use std::fs::File;
        use std::os::unix::fs::FileExt;
        use std::process::Command;

        let dir = tempfile::tempdir().expect("a directory");
        let file = File::create(dir.path().join("sparse")).expect("made");
        // More segments than one header holds, data at neither end.
        for at in (1..40u64).map(|n| n << 20) {
            file.write_all_at(&at.to_le_bytes(), at).expect("written");
        }
        file.set_len(50 << 20).expect("extended");
        for format in [
            &["--format=gnu"][..],
            &["--format=pax", "--sparse-version=0.0"],
            &["--format=pax", "--sparse-version=0.1"],
            &["--format=pax", "--sparse-version=1.0"],
        ] {
            let arguments = ["--sparse", "--create", "--directory", dir.path().to_str().expect("UTF-8")];
            let made = Command::new("tar").args(arguments).args(format).arg("sparse").output().expect("tar runs");
            assert!(made.status.success(), "{format:?}: {made:?}");
            assert!(made.stdout.len() < 1 << 20, "{format:?}: tar wrote holes");
            let mut archive = Archive::new(&made.stdout[..]);
            let member = archive.next_member().expect("read").expect("a member");
            assert_eq!(member.path, Path::new("sparse"), "{format:?}");
            let Kind::File(content) = member.kind else { panic!("{format:?}: not a file") };
            assert_eq!(content.bytes, 50 << 20, "{format:?}");
            let mut whole = vec![0; 50 << 20];
            for Segment { offset, length } in content.segments() {
                let offset = usize::try_from(offset).expect("small");
                let place = &mut whole[offset..offset + usize::try_from(length).expect("small")];
                archive.read_exact(place).expect("its data");
            }
            assert!(whole == std::fs::read(dir.path().join("sparse")).expect("read"), "{format:?}");
            assert_eq!(archive.next_member().expect("read"), None, "{format:?}");
            assert!(archive.has_end_mark(), "{format:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next_member() {}
        }

        #[test]
        fn any_field_of_a_header_is_read_without_panic(
            (at, noise) in (0usize..500, proptest::collection::vec(any::<u8>(), 0..32)),
            kind in any::<u8>(),
        ) {
            let mut header = Header::new_gnu();
            header.set_path("a/b").expect("short");
            header.set_size(600);
            header.set_entry_type(EntryType::new(kind));
            for (place, byte) in header.as_mut_bytes().iter_mut().skip(at).zip(&noise) {
                *place = *byte;
            }
            header.set_cksum();
            let mut stream = header.as_bytes().to_vec();
            stream.extend([0x31; 2048]);
            let mut archive = Archive::new(&stream[..]);
            while let Ok(Some(member)) = archive.next_member() {
                if let Kind::File(content) = member.kind {
                    let copied = io::copy(&mut archive, &mut io::sink()).expect("from memory");
                    prop_assert!(copied <= content.bytes);
                }
            }
        }

        #[test]
        fn any_pax_records_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extensions::default().pax(&bytes);
        }
    }
}
