//! Extended attributes, from the inode, from a block, and from inodes that hold large values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result, bail, ensure};

use super::super::attributes::{self, BLOCK_HEAD, ENTRY_HEAD, MAGIC, PREFIXES};
use super::super::checksum::Fields;
use super::inode::HOLDS_ATTRIBUTE;
use super::superblock::Checked;
use super::{Filesystem, Inode, Kind};

/// Linux takes no larger value.
const MAX_VALUE_BYTES: u32 = 64 << 10;
/// Of one file: tars have room for twice as much.
const MAX_BYTES: usize = 512 << 10;
/// What is called `system.data` is the file's own content.
const SYSTEM: u8 = 7;
const DATA: &[u8] = b"data";

struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Value<'a>,
}

enum Value<'a> {
    Here(&'a [u8]),
    InInode { number: u32, bytes: u32 },
}

impl Filesystem {
    /// By their names in Linux and in their order, ACLs in the form that `setxattr` takes.
    pub(crate) fn attributes(&self, inode: &Inode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let block = self.attribute_block(inode).context("reading its attributes")?;
        // Those in the inode count if both have one.
        let mut entries = list(in_inode(inode), 0)?;
        if let Some(block) = &block {
            entries.extend(list(block, BLOCK_HEAD)?);
        }
        let (mut attributes, mut bytes) = (BTreeMap::new(), 0);
        for entry in entries.iter().filter(|entry| (entry.index, entry.name) != (SYSTEM, DATA)) {
            let name = name(entry)?;
            let value = self.value(entry).with_context(|| format!("reading its attribute {name:?}"))?;
            bytes += name.len() + value.len();
            ensure!(bytes <= MAX_BYTES, "its attributes have more than {MAX_BYTES} bytes");
            attributes.entry(name).or_insert(value);
        }
        Ok(attributes.into_iter().collect())
    }

    fn attribute_block(&self, inode: &Inode) -> Result<Option<Vec<u8>>> {
        let place = inode.attribute_block;
        if place == 0 {
            return Ok(None);
        }
        let mut block = self.block(place)?;
        const BLOCKS: u32 = 1;
        ensure!(
            block.get32(0) == MAGIC && block.get32(8) == BLOCKS,
            "block {place} is damaged: it doesn't hold attributes"
        );
        if self.superblock.checked == Checked::Everything {
            let sum = block.get32(16);
            block.put32(16, 0);
            let right = self.superblock.seed.over(&place.to_le_bytes()).over(&block).value() == sum;
            ensure!(right, "block {place} is damaged: the checksum doesn't match");
        }
        Ok(Some(block))
    }

    fn value(&self, entry: &Entry<'_>) -> Result<Vec<u8>> {
        let value = match entry.value {
            Value::Here(value) => value.to_vec(),
            Value::InInode { number, bytes } => {
                let inode = self.any_inode(number)?;
                ensure!(
                    inode.is(HOLDS_ATTRIBUTE) && inode.kind == Kind::File && inode.bytes == u64::from(bytes),
                    "inode {number} isn't its value"
                );
                ensure!(bytes <= MAX_VALUE_BYTES, "it has {bytes} bytes, more than Linux takes");
                self.whole(&inode)?
            }
        };
        if matches!(entry.index, attributes::ACCESS_ACL | attributes::DEFAULT_ACL) {
            return attributes::acl_from_disk(&value).context("it isn't an ACL");
        }
        Ok(value)
    }
}

/// What of a file's content didn't fit in place of its map.
pub(super) fn inline_data(inode: &Inode) -> Result<Vec<u8>> {
    let entries = list(in_inode(inode), 0)?;
    let data = entries.iter().find(|entry| (entry.index, entry.name) == (SYSTEM, DATA));
    match data.map(|entry| &entry.value) {
        None => Ok(Vec::new()),
        Some(Value::Here(value)) => Ok(value.to_vec()),
        Some(Value::InInode { .. }) => bail!("its content is said to be in the inode, and is in another one"),
    }
}

/// From behind the magic number on.
fn in_inode(inode: &Inode) -> &[u8] {
    match inode.rest.split_first_chunk::<4>() {
        Some((magic, rest)) if u32::from_le_bytes(*magic) == MAGIC => rest,
        _ => &[],
    }
}

/// Entries from `first` on, the places of their values counted from the start of `area`.
fn list(area: &[u8], first: usize) -> Result<Vec<Entry<'_>>> {
    const DAMAGED: &str = "its attributes are damaged";
    let (mut entries, mut at) = (Vec::new(), first);
    while !area.is_empty() {
        ensure!(at + 4 <= area.len(), DAMAGED);
        if area.get32(at) == 0 {
            break;
        }
        let head = area.get(at..at + ENTRY_HEAD).context(DAMAGED)?;
        let (length, index) = (usize::from(head[0]), head[1]);
        let name = area.get(at + ENTRY_HEAD..at + ENTRY_HEAD + length).context(DAMAGED)?;
        let (start, number, bytes) = (usize::from(head.get16(2)), head.get32(4), head.get32(8));
        let value = if number != 0 {
            Value::InInode { number, bytes }
        } else if bytes == 0 {
            Value::Here(&[])
        } else {
            let end = usize::try_from(bytes).ok().and_then(|bytes| start.checked_add(bytes)).context(DAMAGED)?;
            Value::Here(area.get(start..end).context(DAMAGED)?)
        };
        entries.push(Entry { index, name, value });
        at += ENTRY_HEAD + length.next_multiple_of(4);
    }
    Ok(entries)
}

fn name(entry: &Entry<'_>) -> Result<OsString> {
    let prefix = PREFIXES.iter().find(|(index, _)| *index == entry.index);
    let (index, prefix) = prefix.with_context(|| {
        format!("it has an attribute {:?} of kind {}", String::from_utf8_lossy(entry.name), entry.index)
    })?;
    let is_acl = matches!(*index, attributes::ACCESS_ACL | attributes::DEFAULT_ACL);
    let name = OsString::from_vec([prefix.as_bytes(), entry.name].concat());
    // A tar ends an attribute's name with the equals sign.
    let keepable = !entry.name.iter().any(|byte| matches!(byte, 0 | b'='));
    ensure!(keepable && entry.name.is_empty() == is_acl, "it has an attribute {name:?}, which a tar can't keep");
    Ok(name)
}
