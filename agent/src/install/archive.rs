//! A tar stream, member by member, in bounded memory.
//!
//! Header fields are the `tar` crate's. The walk is our own because that crate splits PAX records at newlines, and a
//! file capability is a binary value that may well contain one (`cap_dac_override,cap_fowner` has a 0x0a); and because
//! it reads long names of any length into memory.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tar::{EntryType, Header};

const BLOCK: u64 = 512;

/// Long names and PAX records of one member. Linux allows 64 KiB per extended attribute.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    /// Permission bits with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File { bytes: u64 },
    HardLink { target: PathBuf },
    SymbolicLink { target: PathBuf },
    Directory,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("reading the tar stream")]
    Read(#[from] io::Error),
    #[error("the tar stream ends in the middle of a member")]
    Cut,
    #[error("the tar stream has a damaged header after {after:?}: {what}")]
    Damaged { after: PathBuf, what: &'static str },
    #[error("{path:?} of the image {what}")]
    Unsupported { path: PathBuf, what: &'static str },
}

#[derive(Debug)]
pub(crate) struct Archive<R> {
    source: R,
    /// Of the current member: data not yet read, then padding to the next block.
    data_left: u64,
    padding: u64,
    last: PathBuf,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, data_left: 0, padding: 0, last: PathBuf::new() }
    }

    /// The next member; what is left of the current one's data is skipped. `None` at the end of the archive.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            match kind {
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

    /// Hands over what follows the end of the archive, so that the whole stream is read.
    pub(crate) fn into_rest(self) -> R {
        self.source
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Member, ArchiveError> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = PathBuf::from(OsString::from_vec(path));
        self.last.clone_from(&path);
        let unsupported = |what| ArchiveError::Unsupported { path: path.clone(), what };
        if let Some(what) = extensions.unsupported {
            return Err(unsupported(what));
        }
        let link = || {
            let link = extensions.link.clone().or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
            link.map(|l| PathBuf::from(OsString::from_vec(l))).ok_or_else(|| unsupported("is a link to nothing"))
        };
        let device = || match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
            _ => Err(unsupported("is a device without numbers")),
        };
        let size = || match extensions.size {
            Some(size) => Ok(size),
            None => header.entry_size().map_err(|_| unsupported("has an unreadable size")),
        };
        let kind = match header.entry_type() {
            // Before POSIX a directory was a file whose name ends in a slash.
            EntryType::Regular if path.as_os_str().as_encoded_bytes().ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File { bytes: size()? },
            EntryType::Link => Kind::HardLink { target: link()? },
            EntryType::Symlink => Kind::SymbolicLink { target: link()? },
            EntryType::Directory => Kind::Directory,
            EntryType::Char => device().map(|(major, minor)| Kind::CharacterDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            EntryType::Fifo => Kind::Fifo,
            EntryType::GNUSparse => return Err(unsupported("is stored sparse; pack the image without --sparse")),
            _ => return Err(unsupported("is of a kind that isn't supported")),
        };
        // As GNU tar does: only files have data, whatever a link's header says its target's size is.
        let data = if let Kind::File { bytes } = kind { bytes } else { 0 };
        self.data_left = data;
        self.padding = padding(data);
        let number = |own: Option<u64>, field: io::Result<u64>| {
            let number = own.map_or(field, Ok).ok().and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| unsupported("has an owner that isn't a number of 32 bits"))
        };
        Ok(Member {
            mode: header.mode().map_err(|_| unsupported("has an unreadable mode"))? & 0o7777,
            uid: number(extensions.uid, header.uid())?,
            gid: number(extensions.gid, header.gid())?,
            mtime: extensions.mtime.unwrap_or_else(|| Time {
                seconds: header.mtime().ok().and_then(|s| i64::try_from(s).ok()).unwrap_or(0),
                nanoseconds: 0,
            }),
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
        if size > MAX_EXTENSION_BYTES {
            return Err(self.damaged("an extension header larger than 1 MiB"));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| ArchiveError::Cut)?];
        if !self.fill(&mut bytes)? && size > 0 {
            return Err(ArchiveError::Cut);
        }
        self.padding = padding(size);
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let left = self.data_left.saturating_add(self.padding);
        self.data_left = 0;
        self.padding = 0;
        if left > 0 && io::copy(&mut (&mut self.source).take(left), &mut io::sink())? != left {
            return Err(ArchiveError::Cut);
        }
        Ok(())
    }

    /// Fills all of `buffer`; `false` if the stream was at its end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(ArchiveError::Cut),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn damaged(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Damaged { after: self.last.clone(), what }
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
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((OsString::from_vec(name.to_vec()), value.to_vec()));
                    } else if key.starts_with(b"SCHILY.acl.") {
                        self.unsupported =
                            Some("carries an ACL as text; pack it as an attribute (--xattrs-include='*', not --acls)");
                    } else if key.starts_with(b"GNU.sparse.") {
                        self.unsupported = Some("is stored sparse; pack the image without --sparse");
                    }
                }
            }
        }
        Some(())
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

/// Any bytes as a tar stream. What can be unpacked of it, by where it goes in the root; or why none of it can be.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) -> Result<Vec<PathBuf>, String> {
    use super::root::inside;
    let mut archive = Archive::new(bytes);
    let mut paths = vec![];
    while let Some(member) = archive.next_member().map_err(|error| error.to_string())? {
        assert!(member.mode <= 0o7777 && member.mtime.nanoseconds < 1_000_000_000, "{member:?}");
        let path = inside(&member.path).map_err(|error| error.to_string())?;
        assert!(
            !path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir),
            "{path:?}"
        );
        match member.kind {
            Kind::File { bytes } => {
                let copied = io::copy(&mut archive, &mut io::sink()).map_err(|error| error.to_string())?;
                assert!(copied <= bytes);
            }
            Kind::HardLink { target } => drop(inside(&target).map_err(|error| error.to_string())?),
            _ => {}
        }
        paths.push(path);
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
                if let Kind::File { bytes } = member.kind {
                    let copied = io::copy(&mut archive, &mut io::sink()).expect("from memory");
                    prop_assert!(copied <= bytes);
                }
            }
        }

        #[test]
        fn any_pax_records_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extensions::default().pax(&bytes);
        }
    }
}
