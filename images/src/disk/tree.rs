//! The files of a root and of what is mounted in it, one after the other: a directory before what is in it, names in the
//! order of their bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::vec;

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::archive::{self, Member};

use super::root::Chosen;
use crate::ext4::read::{Claims, Entry, Filesystem, Inode, Kind, Stored};
use crate::ext4::{LOST_AND_FOUND_NAME, ROOT_INODE};
use crate::grub;

/// Names are held in memory, a directory's while it is read, and those of files with several to the end.
const MAX_HELD_BYTES: usize = 1 << 30;
/// What an entry takes besides its name.
const ENTRY_BYTES: usize = 256;
/// Linux opens no path of more than 4096 bytes; a tar's reader has room for some more.
const MAX_PATH_BYTES: usize = 64 << 10;

/// The root comes first.
const ROOT: usize = 0;

#[derive(Debug)]
pub(super) struct Tree {
    mounted: Vec<Mounted>,
    /// Places of those that haven't been come by.
    places: BTreeMap<PathBuf, usize>,
    levels: Vec<Level>,
    directories: HashSet<Id>,
    /// The first name of each file that has several.
    names: HashMap<Id, PathBuf>,
    held: usize,
}

#[derive(Debug)]
struct Mounted {
    filesystem: Filesystem,
    claims: Claims,
}

/// A file system, and the number of an inode there.
type Id = (usize, u32);

/// A directory that is being read.
#[derive(Debug)]
struct Level {
    path: PathBuf,
    of: Id,
    entries: vec::IntoIter<Entry>,
    held: usize,
}

/// With what it holds and how many bytes that are, if it's a file.
pub(super) type Step = (Member, Option<(Stored, u64)>);

impl Tree {
    pub(super) fn new(chosen: Chosen) -> Self {
        let mut mounted = Vec::new();
        let mut places = BTreeMap::new();
        for (place, filesystem) in std::iter::once((PathBuf::new(), chosen.root)).chain(chosen.mounts) {
            places.insert(place, mounted.len());
            mounted.push(Mounted { claims: filesystem.claims(), filesystem });
        }
        let above = Entry { name: OsString::new(), inode: ROOT_INODE };
        Self {
            mounted,
            places,
            levels: vec![Level { path: PathBuf::new(), of: (ROOT, 0), entries: vec![above].into_iter(), held: 0 }],
            directories: HashSet::new(),
            names: HashMap::new(),
            held: 0,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Step>> {
        while let Some(level) = self.levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                self.held -= level.held;
                self.levels.pop();
                continue;
            };
            let (path, above) = (level.path.join(&entry.name), level.of);
            let step = self.visit(&path, above, entry.inode);
            if let Some(step) = step.with_context(|| format!("reading /{} of the disk", path.display()))? {
                return Ok(Some(step));
            }
        }
        match self.places.keys().next() {
            None => Ok(None),
            Some(place) => bail!("its fstab mounts something at /{}, which isn't there", place.display()),
        }
    }

    /// `None` for what has no place in a tar.
    fn visit(&mut self, path: &Path, above: Id, number: u32) -> Result<Option<Step>> {
        ensure!(path.as_os_str().len() <= MAX_PATH_BYTES, "its path is longer than {MAX_PATH_BYTES} bytes");
        let mut id = (above.0, number);
        let mut inode = self.mounted[id.0].filesystem.inode(number)?;
        if let Some(index) = self.places.remove(path) {
            ensure!(inode.kind == Kind::Directory, "a file system belongs there, and it is no directory");
            id = (index, ROOT_INODE);
            inode = self.mounted[index].filesystem.inode(ROOT_INODE)?;
        }
        match inode.kind {
            Kind::Socket => Ok(None),
            // GRUB for a BIOS was made for the partitions of this very disk; on those of another it hangs.
            _ if [grub::BOOT_IMG, grub::CORE_IMG].iter().any(|program| path == Path::new(program)) => Ok(None),
            Kind::Directory => self.directory(path, above, id, &inode),
            _ => match self.names.get(&id) {
                Some(first) => Ok(Some((link(path, first, &inode), None))),
                None => self.file(path, id, &inode).map(Some),
            },
        }
    }

    fn directory(&mut self, path: &Path, above: Id, id: Id, inode: &Inode) -> Result<Option<Step>> {
        ensure!(self.directories.insert(id), "the file system is damaged: two names lead to this directory");
        let Mounted { filesystem, claims } = &mut self.mounted[id.0];
        let entries = filesystem.entries(inode, claims)?;
        // It belongs to the file system, not to what is in it, unless e2fsck has put something there.
        if above.1 == ROOT_INODE && entries.is_empty() && path.file_name() == Some(LOST_AND_FOUND_NAME.as_ref()) {
            return Ok(None);
        }
        let member = member(path, inode, archive::Kind::Directory, filesystem)?;
        let held = entries.iter().map(|entry| entry.name.len() + ENTRY_BYTES).sum();
        self.hold(held)?;
        self.levels.push(Level { path: path.to_owned(), of: id, entries: entries.into_iter(), held });
        Ok(Some((member, None)))
    }

    fn file(&mut self, path: &Path, id: Id, inode: &Inode) -> Result<Step> {
        if inode.links > 1 {
            self.hold(path.as_os_str().len() + ENTRY_BYTES)?;
            self.names.insert(id, path.to_owned());
        }
        let Mounted { filesystem, claims } = &mut self.mounted[id.0];
        let (major, minor) = inode.device();
        let mut stored = None;
        let kind = match inode.kind {
            Kind::File => {
                let data = filesystem.data(inode, claims)?;
                let content = data.content(inode.bytes);
                let bytes = content.segments().iter().map(|segment| segment.length).sum();
                stored = Some((data.stored(filesystem), bytes));
                archive::Kind::File(content)
            }
            Kind::Link => archive::Kind::SymbolicLink { target: OsString::from_vec(filesystem.target(inode)?).into() },
            Kind::Characters => archive::Kind::CharacterDevice { major, minor },
            Kind::Blocks => archive::Kind::BlockDevice { major, minor },
            Kind::Fifo => archive::Kind::Fifo,
            Kind::Directory | Kind::Socket => bail!("it is no file"),
        };
        Ok((member(path, inode, kind, filesystem)?, stored))
    }

    fn hold(&mut self, bytes: usize) -> Result<()> {
        self.held += bytes;
        ensure!(self.held <= MAX_HELD_BYTES, "the disk has more names than can be held in memory");
        Ok(())
    }
}

fn member(path: &Path, inode: &Inode, kind: archive::Kind, filesystem: &Filesystem) -> Result<Member> {
    Ok(Member { xattrs: filesystem.attributes(inode)?, ..bare(path, inode, kind) })
}

/// Another name of a file that has been there, with all that it has.
fn link(path: &Path, first: &Path, inode: &Inode) -> Member {
    bare(path, inode, archive::Kind::HardLink { target: first.to_owned() })
}

fn bare(path: &Path, inode: &Inode, kind: archive::Kind) -> Member {
    Member {
        path: path.to_owned(),
        kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        xattrs: Vec::new(),
    }
}
