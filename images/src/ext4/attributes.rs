//! Extended attributes: what fits goes into the inode, the rest into a block of its own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::blocks::BLOCK;
use super::checksum::{Checksum, Fields};

pub(super) const MAGIC: u32 = 0xea02_0000;
/// What an inode of 256 bytes has left, without the magic number.
pub(super) const IN_INODE: usize = 92;
pub(super) const BLOCK_HEAD: usize = 32;
pub(super) const ENTRY_HEAD: usize = 16;

pub(super) const ACCESS_ACL: u8 = 2;
pub(super) const DEFAULT_ACL: u8 = 3;

/// Prefixes that are numbers on disk. An ACL's name is all prefix.
pub(super) const PREFIXES: [(u8, &str); 6] = [
    (ACCESS_ACL, "system.posix_acl_access"),
    (DEFAULT_ACL, "system.posix_acl_default"),
    (1, "user."),
    (4, "trusted."),
    (6, "security."),
    (7, "system."),
];

/// Why an attribute can't be kept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Unkeepable {
    #[error("has an attribute {0:?}, of a kind that ext4 doesn't have")]
    Kind(OsString),
    #[error("has attributes of {0} bytes in all, more than the 4 KiB that ext4 keeps of one file")]
    TooMuch(usize),
    #[error("has an ACL that isn't one")]
    Acl,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// For the inode, from behind its magic number on.
    pub(super) inline: Option<[u8; IN_INODE]>,
    /// For a block, to be [`sealed`] for its place.
    pub(super) block: Option<Vec<u8>>,
}

struct Entry {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Entry {
    fn head_bytes(&self) -> usize {
        ENTRY_HEAD + self.name.len().next_multiple_of(4)
    }

    fn bytes(&self) -> usize {
        self.head_bytes() + self.value.len().next_multiple_of(4)
    }
}

pub(super) fn encode(attributes: &[(OsString, Vec<u8>)]) -> Result<Attributes, Unkeepable> {
    let mut entries = attributes.iter().map(|(name, value)| entry(name, value)).collect::<Result<Vec<_>, _>>()?;
    entries.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    // The last of a name counts.
    entries.reverse();
    entries.dedup_by(|later, earlier| (later.index, &later.name) == (earlier.index, &earlier.name));
    entries.reverse();
    // The list ends with four zeros.
    let mut inline = Vec::new();
    let mut left = IN_INODE - 4;
    let mut outside = Vec::new();
    for entry in entries {
        match left.checked_sub(entry.bytes()) {
            Some(rest) => {
                left = rest;
                inline.push(entry);
            }
            None => outside.push(entry),
        }
    }
    let outside_bytes: usize = outside.iter().map(Entry::bytes).sum();
    if outside_bytes + 4 > BLOCK - BLOCK_HEAD || outside.iter().any(|entry| entry.name.len() > 255) {
        return Err(Unkeepable::TooMuch(outside_bytes));
    }
    let mut attributes = Attributes::default();
    if !inline.is_empty() {
        let mut bytes = [0; IN_INODE];
        lay_out(&mut bytes, 0, &inline, false);
        attributes.inline = Some(bytes);
    }
    if !outside.is_empty() {
        let mut block = vec![0; BLOCK];
        block.put32(0, MAGIC);
        block.put32(4, 1); // inodes that have it
        block.put32(8, 1); // blocks
        let hash = lay_out(&mut block, BLOCK_HEAD, &outside, true);
        block.put32(12, hash);
        attributes.block = Some(block);
    }
    Ok(attributes)
}

/// The magic number precedes what is in an inode.
pub(super) fn magic() -> [u8; 4] {
    MAGIC.to_le_bytes()
}

/// A block of attributes at its place.
pub(super) fn sealed(mut block: Vec<u8>, place: u64, seed: Checksum) -> Vec<u8> {
    let sum = seed.over(&place.to_le_bytes()).over(&block);
    block.put32(16, sum.value());
    block
}

/// Names from `from` on, values from the back. Returns the hash of all.
fn lay_out(bytes: &mut [u8], from: usize, entries: &[Entry], hashed: bool) -> u32 {
    let (mut front, mut back, mut all) = (from, bytes.len(), 0u32);
    for entry in entries {
        back -= entry.value.len().next_multiple_of(4);
        bytes.put(back, &entry.value);
        bytes[front] = u8::try_from(entry.name.len()).unwrap_or(u8::MAX);
        bytes[front + 1] = entry.index;
        let offset = if entry.value.is_empty() { 0 } else { back };
        bytes.put16(front + 2, u16::try_from(offset).unwrap_or(u16::MAX));
        bytes.put32(front + 8, u32::try_from(entry.value.len()).unwrap_or(u32::MAX));
        if hashed {
            let hash = hash(entry);
            bytes.put32(front + 12, hash);
            all = all.rotate_left(16) ^ hash;
        }
        bytes.put(front + ENTRY_HEAD, &entry.name);
        front += entry.head_bytes();
    }
    all
}

fn hash(entry: &Entry) -> u32 {
    let name = entry.name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    entry.value.chunks(4).fold(name, |hash, part| {
        let mut word = [0; 4];
        word[..part.len()].copy_from_slice(part);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

fn entry(name: &OsStr, value: &[u8]) -> Result<Entry, Unkeepable> {
    let bytes = name.as_bytes();
    let prefix = PREFIXES.iter().find_map(|(index, prefix)| Some((*index, bytes.strip_prefix(prefix.as_bytes())?)));
    match prefix {
        Some((index @ (ACCESS_ACL | DEFAULT_ACL), b"")) => {
            Ok(Entry { index, name: Vec::new(), value: acl(value).ok_or(Unkeepable::Acl)? })
        }
        Some((index, rest)) if !rest.is_empty() && !matches!(index, ACCESS_ACL | DEFAULT_ACL) => {
            Ok(Entry { index, name: rest.to_vec(), value: value.to_vec() })
        }
        _ => Err(Unkeepable::Kind(name.to_owned())),
    }
}

const XATTR_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;

/// From the form of `setxattr` to that on disk, where only named users and groups have a number.
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*version) == XATTR_VERSION).then_some(())?;
    let (entries, rest) = entries.as_chunks::<8>();
    rest.is_empty().then_some(())?;
    let mut bytes = DISK_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        bytes.extend(if is_named(entry) { &entry[..] } else { &entry[..4] });
    }
    Some(bytes)
}

/// The way back.
pub(super) fn acl_from_disk(value: &[u8]) -> Option<Vec<u8>> {
    const NO_ID: [u8; 4] = [0xff; 4];
    let (version, mut entries) = value.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*version) == DISK_VERSION).then_some(())?;
    let mut bytes = XATTR_VERSION.to_le_bytes().to_vec();
    while !entries.is_empty() {
        let named = is_named(entries);
        let (entry, rest) = entries.split_at_checked(if named { 8 } else { 4 })?;
        bytes.extend(entry);
        if !named {
            bytes.extend(NO_ID);
        }
        entries = rest;
    }
    Some(bytes)
}

/// Whether it is of a user or a group with a number, rather than of the owner, the mask or others.
fn is_named(entry: &[u8]) -> bool {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    matches!(entry.get16(0), USER | GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_go_both_ways() {
        let of = |entries: &[[u8; 8]]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
        let all = of(&[
            [1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
            [2, 0, 4, 0, 0xe8, 3, 0, 0],
            [4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
            [8, 0, 4, 0, 0, 0, 1, 0],
            [16, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
            [32, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ]);
        for (name, value) in [("one of each kind", all), ("nothing", of(&[]))] {
            let on_disk = acl(&value);
            assert_eq!(on_disk.as_deref().and_then(acl_from_disk), Some(value), "{name}");
        }
        for (name, value) in [
            ("empty", &[][..]),
            ("another version", &[2, 0, 0, 0]),
            ("half an entry", &[1, 0, 0, 0, 1, 0]),
            ("a user without a number", &[1, 0, 0, 0, 2, 0, 4, 0]),
        ] {
            assert_eq!(acl_from_disk(value), None, "{name}");
        }
    }
}
