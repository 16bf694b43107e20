//! The image's files, put in place as `tar -xp --numeric-owner --xattrs` run by root would: owners by number, all mode
//! bits, extended attributes (with them file capabilities and ACLs), times, holes, hard links, devices.
//!
//! A member's directory is resolved inside the root by the kernel and its last name is never followed, so no member,
//! whatever links earlier ones made, is written outside. `..` is refused rather than clamped: an honest image has none.

mod fill;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use anyhow::Context;
use drophammer_protocol::archive::{Archive, Kind, Member, Time, inside};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};
use xattr::FileExt as _;

use self::fill::{PartReader, PartWriter, copy_to, is_large, part_circle};
use super::root::{Root, kind_at, remove_at, split};
use crate::sys::block::Aligned;
use crate::sys::files;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) members: u64,
    pub(crate) file_bytes: u64,
}

/// A file that has its name and, unless it's a large one, its content.
struct Begun {
    file: File,
    member: Member,
    parts: Option<Receiver<Aligned>>,
}

/// Files that wait for the rest: as many descriptors are open at most.
const WAITING: usize = 64;

/// Unpacks the archive and reads `stream` to its very end. One thread reads, makes what has a name and fills small files;
/// another writes large ones and gives files the rest of what they have: either is half of the work.
pub(crate) fn unpack(stream: impl BufRead, root: &Root) -> anyhow::Result<Unpacked> {
    let (begun, files) = sync_channel(WAITING);
    let (reader, writer) = part_circle();
    thread::scope(|scope| {
        let finishing = scope.spawn(move || finish_files(&files, &writer));
        let placed = place_all(stream, root, begun, &reader);
        // When this one has failed, the other finds nobody to hand files to.
        finishing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        placed
    })
}

fn finish_files(files: &Receiver<Begun>, writer: &PartWriter) -> anyhow::Result<()> {
    for Begun { file, member, parts } in files {
        let finish = || -> anyhow::Result<()> {
            if let Some(parts) = parts {
                writer.write(&file, &parts)?;
            }
            // Writing to a file takes its capabilities away, so the attributes come after the data.
            set_owner_mode_xattrs(&file, &member)?;
            let time = time_spec(member.mtime);
            nix::sys::stat::futimens(&file, &TimeSpec::UTIME_OMIT, &time).context("setting its time")
        };
        finish().with_context(|| unpacking(&member))?;
        // The drive begins with each file now. The kernel by itself would wait for seconds, in which the drive does nothing,
        // and leave most of it to whoever flushes. What doesn't go well is told by `Root::flush`, which everything has to
        // pass.
        files::begin_writing(&file).ok();
    }
    Ok(())
}

fn place_all(
    stream: impl BufRead,
    root: &Root,
    begun: SyncSender<Begun>,
    reader: &PartReader,
) -> anyhow::Result<Unpacked> {
    let mut archive = Archive::new(stream);
    let mut tree = Tree { root, parent: None, directory_times: Vec::new() };
    let mut done = Unpacked::default();
    let hand = |file| begun.send(file).ok().context("the thread that finishes files has ended");
    while let Some(member) = archive.next_member()? {
        done.members += 1;
        let file = tree.place(&member).with_context(|| unpacking(&member))?;
        let (Some(file), Kind::File(content)) = (file, &member.kind) else { continue };
        done.file_bytes += content.bytes;
        if is_large(content) {
            let (bytes, name) = (content.bytes, unpacking(&member));
            let (sender, parts) = channel();
            hand(Begun { file, member, parts: Some(parts) })?;
            reader.read(bytes, &mut archive, &sender).context(name)?;
        } else {
            copy_to(&file, content, &mut archive).with_context(|| unpacking(&member))?;
            hand(Begun { file, member, parts: None })?;
        }
    }
    tree.set_directory_times()?;
    io::copy(&mut archive.into_rest(), &mut io::sink()).context("reading the rest of the tar stream")?;
    Ok(done)
}

fn unpacking(member: &Member) -> String {
    format!("unpacking {}", member.path.display())
}

struct Tree<'a> {
    root: &'a Root,
    /// Where the last member went: neighbours in the archive are mostly neighbours in the tree.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Set at the very end, because every file that is put into a directory changes its time.
    directory_times: Vec<(PathBuf, Time)>,
}

impl Tree<'_> {
    /// What is returned is a file that waits for its content and the rest.
    fn place(&mut self, member: &Member) -> anyhow::Result<Option<File>> {
        let path = inside(&member.path)?;
        let Some((parent, name)) = split(&path) else {
            anyhow::ensure!(member.kind == Kind::Directory, "the root of the image isn't a directory");
            let root = self.root.directory(&path)?;
            self.finish_directory(path, &root, member)?;
            return Ok(None);
        };
        let parent = self.parent(parent)?;
        match &member.kind {
            Kind::File(_) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mode = Mode::from_bits_truncate(0o600);
                let file = self.fresh(&parent, name, || nix::fcntl::openat(&parent, name, flags, mode))?;
                return Ok(Some(file.into()));
            }
            Kind::HardLink { target } => {
                let target = inside(target)?;
                let (from, old) = split(&target).context("it is a hard link to the root of the image")?;
                // Not through the cache: the two ends are rarely in one directory.
                let from = self.root.directory(from).context("opening the directory of its target")?;
                self.fresh(&parent, name, || nix::unistd::linkat(&from, old, &parent, name, AtFlags::empty()))
                    .with_context(|| format!("linking it to {}", target.display()))?;
            }
            Kind::Directory => {
                let dir = self.directory_at(&parent, name)?;
                self.finish_directory(path, &dir, member)?;
            }
            Kind::SymbolicLink { target } => {
                self.fresh(&parent, name, || nix::unistd::symlinkat(target, &parent, name))?;
                finish_node(&parent, name, member)?;
            }
            Kind::Fifo => self.node(&parent, name, member, SFlag::S_IFIFO, 0)?,
            Kind::CharacterDevice { major, minor } => {
                self.node(&parent, name, member, SFlag::S_IFCHR, makedev((*major).into(), (*minor).into()))?;
            }
            Kind::BlockDevice { major, minor } => {
                self.node(&parent, name, member, SFlag::S_IFBLK, makedev((*major).into(), (*minor).into()))?;
            }
        }
        Ok(None)
    }

    fn node(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        member: &Member,
        kind: SFlag,
        device: u64,
    ) -> anyhow::Result<()> {
        let mode = Mode::from_bits_truncate(0o600);
        self.fresh(parent, name, || mknodat(parent, name, kind, mode, device))?;
        finish_node(parent, name, member)
    }

    /// Makes a name; what already has it goes first, as GNU tar does it.
    fn fresh<T>(&mut self, parent: &OwnedFd, name: &OsStr, make: impl Fn() -> nix::Result<T>) -> io::Result<T> {
        match make() {
            Err(Errno::EEXIST) => {
                remove_at(parent, name)?;
                // What was removed may have been a link that the remembered directory was reached through.
                self.parent = None;
                Ok(make()?)
            }
            made => Ok(made?),
        }
    }

    fn parent(&mut self, path: &Path) -> anyhow::Result<Rc<OwnedFd>> {
        if let Some((known, dir)) = &self.parent
            && known == path
        {
            return Ok(Rc::clone(dir));
        }
        let dir = self.root.directories(path).with_context(|| format!("opening directory {}", path.display()))?;
        let dir = Rc::new(dir);
        self.parent = Some((path.to_owned(), Rc::clone(&dir)));
        Ok(dir)
    }

    fn directory_at(&mut self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<OwnedFd> {
        match mkdirat(parent, name, Mode::from_bits_truncate(0o700)) {
            Err(Errno::EEXIST) if kind_at(parent, name)? == SFlag::S_IFDIR => {}
            Err(Errno::EEXIST) => {
                self.fresh(parent, name, || mkdirat(parent, name, Mode::from_bits_truncate(0o700)))?;
            }
            made => made?,
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::openat(parent, name, flags, Mode::empty())?)
    }

    fn finish_directory(&mut self, path: PathBuf, dir: &OwnedFd, member: &Member) -> anyhow::Result<()> {
        let file = File::from(dir.try_clone()?);
        set_owner_mode_xattrs(&file, member)?;
        self.directory_times.push((path, member.mtime));
        Ok(())
    }

    fn set_directory_times(&mut self) -> anyhow::Result<()> {
        for (path, time) in self.directory_times.drain(..) {
            let set = || -> anyhow::Result<()> {
                let dir = match self.root.directory(&path) {
                    // A later member replaced it.
                    Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => {
                        return Ok(());
                    }
                    dir => dir?,
                };
                Ok(nix::sys::stat::futimens(&dir, &TimeSpec::UTIME_OMIT, &time_spec(time))?)
            };
            set().with_context(|| format!("setting the time of directory {}", path.display()))?;
        }
        Ok(())
    }
}

/// In this order: a change of owner clears set-id bits and capabilities.
fn set_owner_mode_xattrs(file: &File, member: &Member) -> anyhow::Result<()> {
    nix::unistd::fchown(file, Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)))
        .context("setting its owner")?;
    nix::sys::stat::fchmod(file, Mode::from_bits_truncate(member.mode)).context("setting its mode")?;
    for (name, value) in &member.xattrs {
        file.set_xattr(name, value).with_context(|| format!("setting its attribute {}", name.display()))?;
    }
    Ok(())
}

/// For what can't be opened without side effects: links, devices, FIFOs.
fn finish_node(parent: &OwnedFd, name: &OsStr, member: &Member) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    nix::unistd::fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .context("setting its owner")?;
    if !matches!(member.kind, Kind::SymbolicLink { .. }) {
        // Follows, but what has the name was made as a node a moment ago, and nobody else works in this tree.
        let mode = Mode::from_bits_truncate(member.mode);
        nix::sys::stat::fchmodat(parent, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .context("setting its mode")?;
    }
    for (attribute, value) in &member.xattrs {
        // There is no call for attributes relative to a directory; the last name isn't followed by this one.
        let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        xattr::set(path, attribute, value).with_context(|| format!("setting its attribute {}", attribute.display()))?;
    }
    let time = time_spec(member.mtime);
    utimensat(parent, name, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink).context("setting its time")
}

fn time_spec(time: Time) -> TimeSpec {
    TimeSpec::new(time.seconds, time.nanoseconds.into())
}

/// Any bytes as a tar stream. What can be unpacked of it, by where it goes in the root; or why none of it can be.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) -> Result<Vec<PathBuf>, String> {
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
            Kind::File(content) => {
                let stored: u64 = content.segments().iter().map(|segment| segment.length).sum();
                let copied = io::copy(&mut archive, &mut io::sink()).map_err(|error| error.to_string())?;
                assert!(copied <= stored && stored <= content.bytes);
            }
            Kind::HardLink { target } => drop(inside(&target).map_err(|error| error.to_string())?),
            _ => {}
        }
        paths.push(path);
    }
    Ok(paths)
}

#[cfg(test)]
mod tests;
