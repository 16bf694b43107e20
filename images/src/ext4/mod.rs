//! A tar's files as an ext4 file system, written without mounting anything and by anybody.
//!
//! What mke2fs makes of a directory needs the directory, and root to have made it. This takes members as they come: data
//! goes to the disk in the order of the tar and is never moved, what describes it follows when the last one is there. The
//! result is as small as it can be, has the same bytes whoever makes it, and is meant to be grown on the machine it is
//! for. What it's judged by is `e2fsck -fn`, and the kernel.
//!
//! ```text
//! | superblock, descriptors, room for more | files in the order of the tar … | directories | journal | bitmaps, inodes |
//! ```

mod attributes;
mod blocks;
mod checksum;
mod directory;
mod extents;
mod inode;
pub(crate) mod read;
mod superblock;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::archive::{self, Kind, Member, Time, inside};
use uuid::Uuid;

use self::blocks::{BLOCK, BLOCK_BYTES, Blocks, PER_GROUP, Run};
use self::checksum::{Checksum, Fields};
use self::directory::Entry;
use self::extents::Extent;
use self::inode::{Body, Content, INODE, Inode};
use self::superblock::{FIRST_INODE, Group, INODES_PER_GROUP, JOURNAL_INODE, RESIZE_INODE, Superblock, TABLE_BLOCKS};

pub(crate) const ROOT_INODE: u32 = 2;
/// Of every inode: none was used before.
const GENERATION: u32 = 0;
/// In [`Writer::inodes`].
const ROOT: usize = 0;
const LOST_AND_FOUND: usize = 1;
pub(crate) const LOST_AND_FOUND_NAME: &str = "lost+found";
/// As many blocks as mke2fs gives it: who has to put files there may not be able to add any.
const LOST_AND_FOUND_BLOCKS: usize = 4;
const MOST_LINKS: u32 = 65_000;
/// Linux takes no longer path, and so no longer link.
const LONGEST_LINK: usize = 4095;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Until an installed copy is given its own.
    pub(crate) uuid: Uuid,
    pub(crate) label: String,
    /// Seconds since 1970, for what isn't in the tar.
    pub(crate) created: u64,
}

impl Options {
    fn time(&self) -> Time {
        Time { seconds: i64::try_from(self.created).unwrap_or(i64::MAX), nanoseconds: 0 }
    }
}

/// A complete file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) bytes: u64,
    /// What of it has to be written, in bytes. The rest is free, and may hold anything.
    pub(crate) used: Vec<Run>,
}

#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: Output<'a>,
    options: Options,
    seed: Checksum,
    blocks: Blocks,
    inodes: Vec<Inode>,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// `file` is empty.
    pub(crate) fn new(file: &'a File, options: Options) -> Self {
        let directory = |mode| {
            let body = Body::Directory { parent: ROOT_INODE, entries: BTreeMap::new() };
            Inode::new(body, mode, options.time())
        };
        let mut root = directory(0o755);
        if let Body::Directory { entries, .. } = &mut root.body {
            entries.insert(LOST_AND_FOUND_NAME.into(), index(LOST_AND_FOUND));
        }
        Self {
            out: Output::new(file),
            seed: superblock::checksum_seed(options.uuid),
            blocks: Blocks::new(),
            inodes: vec![root, directory(0o700)],
            options,
            buffer: vec![0; 1 << 20],
        }
    }

    /// Puts a member where tar would, `data` being its content.
    pub(crate) fn place(&mut self, member: &Member, data: &mut dyn Read) -> Result<()> {
        self.put(member, data).with_context(|| format!("putting {} into the file system", member.path.display()))
    }

    fn put(&mut self, member: &Member, data: &mut dyn Read) -> Result<()> {
        let path = inside(&member.path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            ensure!(member.kind == Kind::Directory, "the root of the image isn't a directory");
            return self.describe(ROOT, member);
        };
        ensure!(name.len() <= 255, "its name is longer than 255 bytes");
        let parent = self.directory(parent)?;
        let there = self.entries(parent)?.get(name).copied();
        if let Some(there) = there {
            let is_directory = matches!(self.inodes[position(there)].body, Body::Directory { .. });
            match (is_directory, &member.kind) {
                (true, Kind::Directory) => return self.describe(position(there), member),
                (true, _) => bail!("a directory is there already"),
                (false, _) => {}
            }
        }
        if let Kind::HardLink { target } = &member.kind {
            let target = self.find(&inside(target)?).with_context(|| {
                format!("it is a hard link to {}, which isn't before it in the tar", target.display())
            })?;
            let inode = &mut self.inodes[target];
            ensure!(!matches!(inode.body, Body::Directory { .. }), "it is a hard link to a directory");
            ensure!(inode.names < MOST_LINKS, "the file has {MOST_LINKS} names already, the most that ext4 knows of");
            inode.names += 1;
            return self.enter(parent, name, target);
        }
        let body = self.body(parent, member, data)?;
        self.inodes.push(Inode::new(body, member.mode, member.mtime));
        let new = self.inodes.len() - 1;
        self.describe(new, member)?;
        self.enter(parent, name, new)
    }

    fn body(&mut self, parent: usize, member: &Member, data: &mut dyn Read) -> Result<Body> {
        Ok(match &member.kind {
            Kind::File(content) => Body::File { bytes: content.bytes, extents: self.fill(content, data)? },
            Kind::SymbolicLink { target } => {
                let target = target.as_os_str().as_bytes().to_vec();
                ensure!(target.len() <= LONGEST_LINK, "it is a link of more than {LONGEST_LINK} bytes");
                // With the NUL that the kernel ends it with.
                let mut extents = Vec::new();
                if target.len() >= 60 {
                    let run = self.blocks.take_together(1);
                    self.out.write(run.start * BLOCK_BYTES, &target)?;
                    extents = extents::of_runs(0, &[run]);
                }
                Body::Link { target, extents }
            }
            Kind::Directory => Body::Directory { parent: index(parent), entries: BTreeMap::new() },
            Kind::CharacterDevice { major, minor } => Body::Characters { major: *major, minor: *minor },
            Kind::BlockDevice { major, minor } => Body::Blocks { major: *major, minor: *minor },
            Kind::Fifo => Body::Fifo,
            Kind::HardLink { .. } => bail!("it is a name and no file"),
        })
    }

    /// Takes blocks for a file and writes what is in it.
    fn fill(&mut self, content: &archive::Content, data: &mut dyn Read) -> Result<Vec<Extent>> {
        // Blocks are numbered with 32 bits within a file.
        ensure!(content.bytes.div_ceil(BLOCK_BYTES) < 1 << 32, "it is larger than 16 TiB");
        let mut extents: Vec<Extent> = Vec::new();
        let mut taken = 0; // up to which block of the file
        for segment in content.segments() {
            let first = (segment.offset / BLOCK_BYTES).max(taken);
            let end = (segment.offset + segment.length).div_ceil(BLOCK_BYTES);
            if end > first {
                let logical = u32::try_from(first).context("it is larger than 16 TiB")?;
                extents.extend(extents::of_runs(logical, &self.blocks.take(end - first)));
                taken = end;
            }
            self.copy(segment, &extents, data)?;
        }
        Ok(extents)
    }

    fn copy(&mut self, segment: archive::Segment, extents: &[Extent], data: &mut dyn Read) -> Result<()> {
        let (mut at, mut left) = (segment.offset, segment.length);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = match data.read(&mut self.buffer[..most]) {
                Ok(0) => bail!("the tar ends in the middle of it"),
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).context("reading the tar"),
            };
            let mut part = 0..count;
            while part.start < part.end {
                let block = at / BLOCK_BYTES;
                let of =
                    |e: &&Extent| (u64::from(e.logical)..u64::from(e.logical) + u64::from(e.length)).contains(&block);
                let extent = extents.iter().rev().find(of).context("a block has no place")?;
                let within = at - u64::from(extent.logical) * BLOCK_BYTES;
                let room = u64::from(extent.length) * BLOCK_BYTES - within;
                let length = usize::try_from(room).unwrap_or(usize::MAX).min(part.len());
                let bytes = &self.buffer[part.start..part.start + length];
                self.out.write(extent.physical * BLOCK_BYTES + within, bytes)?;
                part.start += length;
                at += length as u64;
            }
            left -= count as u64;
        }
        Ok(())
    }

    /// Gives an inode what the member says of it.
    fn describe(&mut self, at: usize, member: &Member) -> Result<()> {
        let attributes = attributes::encode(&member.xattrs).map_err(|why| anyhow::anyhow!("it {why}"))?;
        if let Some(block) = self.inodes[at].attribute_block.take() {
            self.blocks.free(block..block + 1);
        }
        let mut place = None;
        if let Some(block) = attributes.block {
            let at = self.blocks.one();
            self.out.write(at * BLOCK_BYTES, &attributes::sealed(block, at, self.seed))?;
            place = Some(at);
        }
        let inode = &mut self.inodes[at];
        (inode.mode, inode.uid, inode.gid, inode.mtime) = (member.mode, member.uid, member.gid, member.mtime);
        (inode.inline_attributes, inode.attribute_block) = (attributes.inline, place);
        Ok(())
    }

    /// The directory at `path`; what is missing of it is made, as tar does.
    fn directory(&mut self, path: &Path) -> Result<usize> {
        let mut at = ROOT;
        for name in path.iter() {
            at = match self.entries(at)?.get(name) {
                Some(there) => position(*there),
                None => {
                    let body = Body::Directory { parent: index(at), entries: BTreeMap::new() };
                    self.inodes.push(Inode::new(body, 0o755, self.inodes[ROOT].mtime));
                    let new = self.inodes.len() - 1;
                    self.enter(at, name, new)?;
                    new
                }
            };
            ensure!(
                matches!(self.inodes[at].body, Body::Directory { .. }),
                "it lies behind {}, which isn't a directory",
                Path::new(name).display()
            );
        }
        Ok(at)
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.iter().try_fold(ROOT, |at, name| match &self.inodes[at].body {
            Body::Directory { entries, .. } => entries.get(name).map(|there| position(*there)),
            _ => None,
        })
    }

    fn entries(&mut self, at: usize) -> Result<&mut BTreeMap<OsString, u32>> {
        match &mut self.inodes[at].body {
            Body::Directory { entries, .. } => Ok(entries),
            _ => bail!("it lies behind something that isn't a directory"),
        }
    }

    /// Enters a name, in place of what had it.
    fn enter(&mut self, parent: usize, name: &OsStr, new: usize) -> Result<()> {
        let Some(before) = self.entries(parent)?.insert(name.to_owned(), index(new)) else { return Ok(()) };
        let inode = &mut self.inodes[position(before)];
        inode.names -= 1;
        if inode.names == 0 {
            for extent in inode.body.extents() {
                self.blocks.free(extent.physical..extent.physical + u64::from(extent.length));
            }
            if let Some(block) = inode.attribute_block.take() {
                self.blocks.free(block..block + 1);
            }
            inode.body = Body::Gone;
        }
        Ok(())
    }

    /// Writes all that describes the files.
    pub(crate) fn finish(mut self) -> Result<Image> {
        ensure!(
            u32::try_from(self.inodes.len()).is_ok_and(|count| count < u32::MAX - 2 * INODES_PER_GROUP),
            "the image has more files than ext4 can number"
        );
        let hash_seed = self.hash_seed();
        let mut encoded = Vec::with_capacity(self.inodes.len());
        for at in 0..self.inodes.len() {
            encoded.push(self.content(at, hash_seed)?);
        }
        let journal_blocks = journal_blocks(self.blocks.end());
        let journal = self.journal(journal_blocks)?;
        let indirect = self.blocks.one();

        let used_inodes = FIRST_INODE - 1 + u32::try_from(self.inodes.len() - 1)?;
        let (groups, tables, total) = self.close(u64::from(used_inodes.div_ceil(INODES_PER_GROUP)));
        let resize = self.resize_inode(indirect, groups)?;

        let (mut descriptors, mut free_blocks, mut free_inodes, mut untouched) = (Vec::new(), 0, 0, Vec::new());
        for (group, places) in (0..groups).zip(&tables) {
            let first = u32::try_from(group)? * INODES_PER_GROUP; // the number of its first inode is one more
            let mut table = Vec::new();
            let mut inode_bits = vec![0u8; BLOCK];
            let mut directories = 0;
            let touched = used_inodes.saturating_sub(first).min(INODES_PER_GROUP);
            for offset in 0..touched {
                let number = first + offset + 1;
                let bytes = match number {
                    RESIZE_INODE => Some(resize),
                    JOURNAL_INODE => Some(journal.0),
                    ROOT_INODE => encoded.first().copied().flatten(),
                    n if n >= FIRST_INODE => encoded.get(position(n)).copied().flatten(),
                    _ => None,
                };
                // Those below the first ordinary one are in use even if they hold nothing.
                if bytes.is_some() || number < FIRST_INODE {
                    inode_bits[offset as usize / 8] |= 1 << (offset % 8);
                }
                let is_directory = (number == ROOT_INODE || number >= FIRST_INODE)
                    && matches!(self.inodes[position(number)].body, Body::Directory { .. });
                directories += u32::from(is_directory);
                table.extend(bytes.unwrap_or([0; INODE]));
            }
            let taken: u32 = inode_bits.iter().map(|byte| byte.count_ones()).sum();
            // What a bitmap has beyond the group's inodes counts as taken.
            inode_bits[INODES_PER_GROUP as usize / 8..].fill(0xff);
            self.out.write(places.table.start * BLOCK_BYTES, &table)?;
            let written = (table.len() as u64).div_ceil(BLOCK_BYTES);
            untouched.push(places.table.start + written..places.table.end);

            let block_bits = self.blocks.bitmap(group, total);
            let free = block_bits.iter().map(|byte| byte.count_zeros()).sum();
            let descriptor = Group {
                number: group,
                block_bitmap: (places.block_bitmap, block_bits),
                inode_bitmap: (places.inode_bitmap, inode_bits),
                table: places.table.start,
                free_blocks: free,
                free_inodes: INODES_PER_GROUP - taken,
                directories,
                untouched_inodes: INODES_PER_GROUP - touched,
            };
            self.out.write(descriptor.block_bitmap.0 * BLOCK_BYTES, &descriptor.block_bitmap.1)?;
            self.out.write(descriptor.inode_bitmap.0 * BLOCK_BYTES, &descriptor.inode_bitmap.1)?;
            descriptors.extend(descriptor.encode(self.seed));
            free_blocks += u64::from(free);
            free_inodes += descriptor.free_inodes;
        }
        let superblock = Superblock {
            uuid: self.options.uuid,
            label: self.options.label.clone(),
            created: self.options.created,
            hash_seed,
            blocks: total,
            groups,
            free_blocks,
            // For root to log in and clean up, however large the file system becomes.
            reserved_blocks: (total / 20).min((64 << 20) / BLOCK_BYTES),
            free_inodes,
            journal_map: journal.1,
            journal_bytes: journal_blocks * BLOCK_BYTES,
        };
        for group in (0..groups).filter(|group| blocks::has_copy(*group)) {
            let start = group * PER_GROUP * BLOCK_BYTES;
            // The first KiB of the disk is the boot loader's.
            let place = if group == 0 { 1024 } else { start };
            self.out.write(place, &superblock.encode(group))?;
            self.out.write(start + BLOCK_BYTES, &descriptors)?;
        }
        self.out.flush()?;
        self.out.file.set_len(total * BLOCK_BYTES).context("setting the size of the image")?;
        Ok(Image { bytes: total * BLOCK_BYTES, used: self.used(&untouched) })
    }

    /// From the UUID, so that the same tar gives the same bytes.
    fn hash_seed(&self) -> [u32; 4] {
        let (words, _) = self.options.uuid.as_bytes().as_chunks::<4>();
        let mut seed = [0; 4];
        for (word, bytes) in seed.iter_mut().zip(words) {
            *word = u32::from_le_bytes(*bytes);
        }
        seed
    }

    /// Writes what an inode leads to, if it isn't there yet, and gives its bytes. `None` for what was replaced.
    fn content(&mut self, at: usize, hash_seed: [u32; 4]) -> Result<Option<[u8; INODE]>> {
        let number = index(at);
        let checksum = self.seed.of_inode(number, GENERATION);
        let inode = self.inodes[at].clone();
        let links = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let plain =
            Content { bytes: 0, map: [0; 60], mapped: false, indexed: false, links: links(inode.names), blocks: 0 };
        let content = match &inode.body {
            Body::Gone => return Ok(None),
            Body::Fifo => plain,
            Body::Characters { major, minor } | Body::Blocks { major, minor } => {
                Content { map: inode::device(*major, *minor), ..plain }
            }
            Body::Link { target, extents } if extents.is_empty() => {
                let mut map = [0; 60];
                map.put(0, target);
                Content { bytes: target.len() as u64, map, ..plain }
            }
            Body::Link { target, extents } => {
                let mapped = self.map(extents, checksum)?;
                Content { bytes: target.len() as u64, links: plain.links, ..mapped }
            }
            Body::File { bytes, extents } => {
                let mapped = self.map(extents, checksum)?;
                Content { bytes: *bytes, links: plain.links, ..mapped }
            }
            Body::Directory { parent, entries } => {
                let list: Vec<Entry<'_>> = entries
                    .iter()
                    .map(|(name, inode)| Entry {
                        name: name.as_bytes(),
                        inode: *inode,
                        kind: self.inodes[position(*inode)].body.entry_kind(),
                    })
                    .collect();
                let below = list.iter().filter(|entry| entry.kind == directory::DIRECTORY).count();
                let mut encoded = directory::encode(number, *parent, &list, hash_seed, checksum);
                ensure!(
                    encoded.blocks.len() <= directory::MOST_BLOCKS,
                    "a directory of the image has {} names, more than ext4 can index",
                    list.len()
                );
                if at == LOST_AND_FOUND {
                    let missing = LOST_AND_FOUND_BLOCKS.saturating_sub(encoded.blocks.len());
                    encoded.blocks.extend((0..missing).map(|_| directory::empty(checksum)));
                }
                let runs = self.blocks.take(encoded.blocks.len() as u64);
                for (block, bytes) in runs.iter().cloned().flatten().zip(&encoded.blocks) {
                    self.out.write(block * BLOCK_BYTES, bytes)?;
                }
                let mapped = self.map(&extents::of_runs(0, &runs), checksum)?;
                Content {
                    bytes: encoded.blocks.len() as u64 * BLOCK_BYTES,
                    indexed: encoded.indexed,
                    // Its own dot, its name above, and the dots below. 1 is for more than can be counted (`dir_nlink`).
                    links: u16::try_from(below + 2).ok().filter(|n| u32::from(*n) < MOST_LINKS).unwrap_or(1),
                    ..mapped
                }
            }
        };
        Ok(Some(inode.encode(content, checksum)))
    }

    fn map(&mut self, extents: &[Extent], checksum: Checksum) -> Result<Content> {
        let tree = extents::tree(extents, &mut self.blocks, checksum);
        for (block, bytes) in &tree.blocks {
            self.out.write(block * BLOCK_BYTES, bytes)?;
        }
        let data: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        let blocks = data + tree.blocks.len() as u64;
        Ok(Content { bytes: 0, map: tree.root, mapped: true, indexed: false, links: 1, blocks })
    }

    /// A file of the file system's own.
    fn own_inode(&self, number: u32, content: Content) -> [u8; INODE] {
        let body = Body::File { bytes: 0, extents: Vec::new() };
        Inode::new(body, 0o600, self.options.time()).encode(content, self.seed.of_inode(number, GENERATION))
    }

    fn journal(&mut self, blocks: u64) -> Result<([u8; INODE], [u8; 60])> {
        let runs = self.blocks.take(blocks);
        let first = runs.first().map_or(0, |run| run.start);
        self.out.write(first * BLOCK_BYTES, &superblock::journal(blocks, self.options.uuid))?;
        let mapped = self.map(&extents::of_runs(0, &runs), self.seed.of_inode(JOURNAL_INODE, GENERATION))?;
        let content = Content { bytes: blocks * BLOCK_BYTES, ..mapped };
        Ok((self.own_inode(JOURNAL_INODE, content), content.map))
    }

    /// Finds places for bitmaps and inode tables, of as many groups as these need themselves.
    fn close(&mut self, least: u64) -> (u64, Vec<Places>, u64) {
        let before = self.blocks.clone();
        let mut groups = least.max(1);
        loop {
            self.blocks = before.clone();
            let block_bitmaps: Vec<u64> = (0..groups).map(|_| self.blocks.one()).collect();
            let inode_bitmaps: Vec<u64> = (0..groups).map(|_| self.blocks.one()).collect();
            let tables: Vec<Run> = (0..groups).map(|_| self.blocks.take_together(TABLE_BLOCKS)).collect();
            let total = self.blocks.close(groups);
            if total.div_ceil(PER_GROUP) <= groups {
                let places = block_bitmaps.into_iter().zip(inode_bitmaps).zip(tables);
                let places = places
                    .map(|((block_bitmap, inode_bitmap), table)| Places { block_bitmap, inode_bitmap, table })
                    .collect();
                return (groups, places, total);
            }
            groups = total.div_ceil(PER_GROUP);
        }
    }

    /// The inode that keeps the room for more descriptors: an indirect block that lists the reserved blocks behind the
    /// descriptors, each of which lists its copies in other groups.
    fn resize_inode(&mut self, indirect: u64, groups: u64) -> Result<[u8; INODE]> {
        const POINTERS: u64 = BLOCK_BYTES / 4;
        let descriptors = superblock::descriptor_blocks(groups);
        let reserved = superblock::reserved_descriptor_blocks(groups);
        // In the order in which the kernel counts them: powers of 3, 5 and 7 merged.
        let copies: Vec<u64> = (1..groups).filter(|group| blocks::has_copy(*group)).collect();
        let mut list = vec![0; BLOCK];
        for offset in descriptors..descriptors + reserved {
            let place = 1 + offset;
            let slot = usize::try_from(offset % POINTERS)?;
            list.put32(4 * slot, u32::try_from(place)?);
            let mut block = vec![0; BLOCK];
            for (number, group) in copies.iter().enumerate() {
                let copy = u32::try_from(place + group * PER_GROUP);
                block.put32(4 * number, copy.context("the image is larger than 16 TiB")?);
            }
            self.out.write(place * BLOCK_BYTES, &block)?;
        }
        self.out.write(indirect * BLOCK_BYTES, &list)?;
        let mut map = [0; 60];
        map.put32(4 * 13, u32::try_from(indirect).context("the image is larger than 16 TiB")?);
        let content = Content {
            // As if all that a double indirect block can lead to were there.
            bytes: (POINTERS * POINTERS + POINTERS + 12) * BLOCK_BYTES,
            map,
            mapped: false,
            indexed: false,
            links: 1,
            blocks: 1 + reserved * (1 + copies.len() as u64),
        };
        Ok(self.own_inode(RESIZE_INODE, content))
    }

    /// In bytes, without the inodes that nobody has touched.
    fn used(&self, untouched: &[Run]) -> Vec<Run> {
        let mut used = Vec::new();
        for run in self.blocks.in_use() {
            let mut rest = run;
            for hole in untouched.iter().filter(|hole| !hole.is_empty()) {
                if hole.start >= rest.start && hole.end <= rest.end {
                    used.push(rest.start..hole.start);
                    rest.start = hole.end;
                }
            }
            used.push(rest);
        }
        used.retain(|run| !run.is_empty());
        used.into_iter().map(|run| run.start * BLOCK_BYTES..run.end * BLOCK_BYTES).collect()
    }
}

/// Where a group's own things are.
#[derive(Debug)]
struct Places {
    block_bitmap: u64,
    inode_bitmap: u64,
    table: Run,
}

/// As mke2fs chooses it by size, but never more than what a root file system is busy with, for it can't grow later; and
/// never less than what growing needs: the kernel wants room for all reserved descriptor blocks in a quarter of it.
fn journal_blocks(used: u64) -> u64 {
    const MIB: u64 = (1 << 20) / BLOCK_BYTES;
    if used / MIB < 1024 { 32 * MIB } else { 128 * MIB }
}

/// Inode numbers below 11 are ext4's own, but the root's.
fn index(at: usize) -> u32 {
    match at {
        ROOT => ROOT_INODE,
        _ => FIRST_INODE - 1 + u32::try_from(at).unwrap_or(u32::MAX - FIRST_INODE),
    }
}

fn position(inode: u32) -> usize {
    match inode {
        ROOT_INODE => ROOT,
        _ => (inode + 1).saturating_sub(FIRST_INODE) as usize,
    }
}

/// Gathers what is written one after the other.
#[derive(Debug)]
struct Output<'a> {
    file: &'a File,
    start: u64,
    gathered: Vec<u8>,
}

impl<'a> Output<'a> {
    const MOST: usize = 1 << 20;

    fn new(file: &'a File) -> Self {
        Self { file, start: 0, gathered: Vec::with_capacity(Self::MOST) }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        // The end of a file's last block stays zero.
        let gap = at.checked_sub(self.start + self.gathered.len() as u64).filter(|gap| *gap < BLOCK_BYTES);
        match gap.and_then(|gap| usize::try_from(gap).ok()) {
            Some(gap) if self.gathered.len() + gap + bytes.len() <= Self::MOST => {
                self.gathered.resize(self.gathered.len() + gap, 0);
            }
            _ => {
                self.flush()?;
                self.start = at;
            }
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(&self.gathered, self.start).context("writing the image")?;
        self.start += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
