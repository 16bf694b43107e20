//! A member as a tar has it: one header, with PAX records before it for what doesn't fit. The `tar` crate's writer takes no
//! extended attributes that aren't text, and no holes.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use drophammer_protocol::archive::{Content, Kind, Member};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Of names and link targets in a header.
const ROOM: usize = 100;

/// All that precedes the member's data. Written for [`Archive`](drophammer_protocol::archive::Archive), which reads it back
/// as the same member.
pub(crate) fn of(member: &Member, path: &Path) -> Vec<u8> {
    let mut records = Vec::new();
    let mut name = if path.as_os_str().is_empty() { b".".to_vec() } else { path.as_os_str().as_bytes().to_vec() };
    let mut header = Header::new_ustar();
    header.set_mode(member.mode);
    header.set_uid(member.uid.into());
    header.set_gid(member.gid.into());
    if let (Ok(seconds), 0) = (u64::try_from(member.mtime.seconds), member.mtime.nanoseconds) {
        header.set_mtime(seconds);
    } else {
        header.set_mtime(0);
        record(&mut records, b"mtime", decimal(member).as_bytes());
    }
    header.set_size(0);
    let mut map = Vec::new();
    let mut target: Option<&Path> = None;
    let kind = match &member.kind {
        Kind::File(content) => {
            map = holes(content);
            let stored: u64 = content.segments().iter().map(|segment| segment.length).sum();
            header.set_size(stored + map.len() as u64);
            if content.segments.is_some() {
                record(&mut records, b"GNU.sparse.major", b"1");
                record(&mut records, b"GNU.sparse.minor", b"0");
                record(&mut records, b"GNU.sparse.name", &name);
                record(&mut records, b"GNU.sparse.realsize", content.bytes.to_string().as_bytes());
            }
            EntryType::Regular
        }
        Kind::HardLink { target: to } => {
            target = Some(to);
            EntryType::Link
        }
        Kind::SymbolicLink { target: to } => {
            target = Some(to);
            EntryType::Symlink
        }
        Kind::Directory => {
            name.push(b'/');
            EntryType::Directory
        }
        Kind::CharacterDevice { major, minor } => device(&mut header, *major, *minor, EntryType::Char),
        Kind::BlockDevice { major, minor } => device(&mut header, *major, *minor, EntryType::Block),
        Kind::Fifo => EntryType::Fifo,
    };
    header.set_entry_type(kind);
    let target = target.map(|target| target.as_os_str().as_bytes()).unwrap_or_default();
    put(&mut header.as_old_mut().name, &name, b"path", &mut records);
    put(&mut header.as_old_mut().linkname, target, b"linkpath", &mut records);
    for (name, value) in &member.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_bytes()].concat(), value);
    }
    header.set_cksum();
    let mut bytes = Vec::new();
    if !records.is_empty() {
        let mut before = Header::new_ustar();
        before.set_entry_type(EntryType::XHeader);
        before.as_old_mut().name[..3].copy_from_slice(b"pax");
        before.set_size(records.len() as u64);
        before.set_cksum();
        bytes.extend_from_slice(before.as_bytes());
        bytes.extend(records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(map);
    bytes
}

/// What follows data of this length, up to the next block.
pub(crate) fn padding(bytes: u64) -> usize {
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}

/// How GNU tar's version 1.0 lists segments, before the data and as part of it.
fn holes(content: &Content) -> Vec<u8> {
    let Some(segments) = &content.segments else { return Vec::new() };
    let mut map = format!("{}\n", segments.len());
    for segment in segments {
        map.push_str(&format!("{}\n{}\n", segment.offset, segment.length));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn device(header: &mut Header, major: u32, minor: u32, kind: EntryType) -> EntryType {
    if let Some(header) = header.as_ustar_mut() {
        header.set_device_major(major);
        header.set_device_minor(minor);
    }
    kind
}

/// In the header if there is room for it.
fn put(field: &mut [u8; ROOM], value: &[u8], key: &[u8], records: &mut Vec<u8>) {
    if value.len() > ROOM {
        record(records, key, value);
    }
    let length = value.len().min(ROOM);
    field[..length].copy_from_slice(&value[..length]);
}

/// `length keyword=value\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    // Into memory nothing fails.
    let _ = write!(records, "{length} ");
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Nanoseconds count forward, the digits of a negative number backward.
fn decimal(member: &Member) -> String {
    let (seconds, nanoseconds) = (member.mtime.seconds, member.mtime.nanoseconds);
    if seconds < 0 && nanoseconds > 0 {
        format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
    } else {
        format!("{seconds}.{nanoseconds:09}")
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use drophammer_protocol::archive::{Archive, Segment, Time};
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        let target = || prop_oneof!["[a-z]{1,9}", "[a-z]{99,130}"].prop_map(Into::into);
        prop_oneof![
            (0u64..5000).prop_map(|bytes| Kind::File(Content { bytes, segments: None })),
            Just(Kind::File(Content { bytes: 1 << 40, segments: Some(vec![]) })),
            Just(Kind::File(Content {
                bytes: 1 << 33,
                segments: Some(vec![Segment { offset: 0, length: 700 }, Segment { offset: 1 << 32, length: 1 }]),
            })),
            target().prop_map(|target| Kind::HardLink { target }),
            target().prop_map(|target| Kind::SymbolicLink { target }),
            Just(Kind::Directory),
            (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::CharacterDevice { major, minor }),
            Just(Kind::Fifo),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            path in prop_oneof!["[a-z/]{0,5}x", "[a-z]{95,130}"],
            kind in kinds(),
            (mode, uid, gid) in (0u32..0o10000, any::<u32>(), any::<u32>()),
            (seconds, nanoseconds) in (-3i64..1 << 35, prop_oneof![Just(0), 0u32..1_000_000_000]),
            xattrs in proptest::collection::vec(("[a-z]{1,9}", proptest::collection::vec(any::<u8>(), 0..99)), 0..3),
        ) {
            let xattrs = xattrs.into_iter().map(|(name, value)| (OsString::from(format!("user.{name}")), value)).collect();
            let mtime = Time { seconds, nanoseconds };
            let path = Path::new(path.trim_start_matches('/')).to_owned();
            let member = Member { path: path.clone(), kind, mode, uid, gid, mtime, xattrs };
            let mut bytes = of(&member, &path);
            let stored = match &member.kind {
                Kind::File(content) => content.segments().iter().map(|segment| segment.length).sum(),
                _ => 0,
            };
            bytes.resize(bytes.len() + usize::try_from(stored).expect("small") + padding(stored), 7);
            bytes.resize(bytes.len() + 1024, 0);
            let mut archive = Archive::new(&bytes[..]);
            let read = archive.next_member().expect("a tar").expect("a member");
            let slash = if member.kind == Kind::Directory { "/" } else { "" };
            prop_assert_eq!(read.path.as_os_str().to_owned(), OsString::from(format!("{}{slash}", path.display())));
            prop_assert_eq!(Member { path, ..read }, member);
            prop_assert_eq!(archive.next_member().expect("a tar"), None);
            prop_assert!(archive.has_end_mark());
        }
    }
}
