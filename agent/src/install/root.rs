//! The file system being installed, seen as its own root.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT`: absolute symbolic links, `..` and links that were put
//! in place a moment ago end inside the installed system, never in the agent's own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use drophammer_protocol::archive::inside;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use xattr::FileExt;

/// A directory that no path leads out of.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
}

impl Root {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir =
            nix::fcntl::open(path, flags, Mode::empty()).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { dir })
    }

    /// For calls that are about the file system as a whole.
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns when everything that was written into this file system since [`Root::open`] is with the drive. The kernel
    /// writes files in the background, and this is the only one that it tells of a write that failed there: unmounting
    /// succeeds all the same.
    pub(crate) fn flush(&self) -> io::Result<()> {
        Ok(nix::unistd::syncfs(&self.dir)?)
    }

    /// The directory at `path`, through whatever links lead to it.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// The same, made with its parents where they're missing.
    pub(crate) fn directories(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.directory(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let (parent, name) = split(path).ok_or(Errno::ENOENT)?;
        let parent = self.directories(parent)?;
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.directory(path),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn exists(&self, path: &str) -> anyhow::Result<bool> {
        Ok(self.found(path, OFlag::O_PATH)?.is_some())
    }

    /// Where a symbolic link leads; `None` if there's nothing of that name or it isn't a link.
    pub(crate) fn link_target(&self, path: &str) -> anyhow::Result<Option<OsString>> {
        let target = || -> anyhow::Result<Option<OsString>> {
            let inner = inside(Path::new(path))?;
            let Some((parent, name)) = split(&inner) else { return Ok(None) };
            let parent = match self.directory(parent) {
                Err(e) if is_absent(&e) => return Ok(None),
                parent => parent?,
            };
            match nix::fcntl::readlinkat(&parent, name) {
                Ok(target) => Ok(Some(target)),
                // EINVAL: it is something else than a link.
                Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
                Err(e) => Err(e.into()),
            }
        };
        target().with_context(|| format!("examining {path} of the image"))
    }

    /// A regular file for reading, through links. `None` if there's nothing of that name.
    pub(crate) fn file(&self, path: &str) -> anyhow::Result<Option<File>> {
        // O_NONBLOCK: an image may have a FIFO in that place, and opening one waits for a writer.
        let Some(fd) = self.found(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else { return Ok(None) };
        let file = File::from(fd);
        let metadata = file.metadata().with_context(|| format!("examining {path} of the image"))?;
        anyhow::ensure!(metadata.is_file(), "{path} of the image isn't a regular file");
        Ok(Some(file))
    }

    /// A small text file. `None` if there's nothing of that name.
    pub(crate) fn text(&self, path: &str) -> anyhow::Result<Option<String>> {
        const MAX_TEXT_BYTES: u64 = 1 << 20;
        let Some(file) = self.file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_TEXT_BYTES + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("reading {path} of the image"))?;
        anyhow::ensure!(
            bytes.len() as u64 <= MAX_TEXT_BYTES,
            "{path} of the image is larger than a text file should be"
        );
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Puts a file in place at once, in place of whatever has the name, and never through a link of that name.
    pub(crate) fn put(&self, path: &str, mode: u32, mut content: impl Read) -> anyhow::Result<()> {
        let mut put = || -> anyhow::Result<()> {
            let (parent, name) = self.place(path)?;
            let mut fresh = OsString::from(".");
            fresh.push(&name);
            fresh.push(".drophammer");
            remove_at(&parent, &fresh)?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = nix::fcntl::openat(&parent, fresh.as_os_str(), flags, Mode::from_bits_truncate(0o600))?;
            let mut file = File::from(fd);
            io::copy(&mut content, &mut file)?;
            nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))?;
            nix::fcntl::renameat(&parent, fresh.as_os_str(), &parent, name.as_os_str())?;
            Ok(())
        };
        put().with_context(|| format!("writing {path} of the installed system"))
    }

    pub(crate) fn put_text(&self, path: &str, mode: u32, text: &str) -> anyhow::Result<()> {
        self.put(path, mode, text.as_bytes())
    }

    /// The same for a file that the image may have: owner, mode and extended attributes stay as they are.
    pub(crate) fn replace_text(&self, path: &str, mode_of_new: u32, text: &str) -> anyhow::Result<()> {
        let before = self.file(path)?;
        self.put_text(path, mode_of_new, text)?;
        let (Some(before), Some(after)) = (before, self.file(path)?) else { return Ok(()) };
        let keep = || -> anyhow::Result<()> {
            let was = before.metadata()?;
            let (uid, gid) = (Uid::from_raw(was.uid()), Gid::from_raw(was.gid()));
            nix::unistd::fchown(&after, Some(uid), Some(gid))?;
            nix::sys::stat::fchmod(&after, Mode::from_bits_truncate(was.mode() & 0o7777))?;
            for name in before.list_xattr()? {
                if let Some(value) = before.get_xattr(&name)? {
                    after.set_xattr(&name, &value)?;
                }
            }
            Ok(())
        };
        keep().with_context(|| format!("keeping owner and mode of {path} of the installed system"))
    }

    /// Gives a file or directory an owner; of a link, the link itself.
    pub(crate) fn chown(&self, path: &str, uid: u32, gid: u32) -> anyhow::Result<()> {
        let chown = || -> anyhow::Result<()> {
            let (parent, name) = self.place(path)?;
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            Ok(nix::unistd::fchownat(&parent, name.as_os_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
        };
        chown().with_context(|| format!("giving {path} of the installed system to {uid}:{gid}"))
    }

    /// A symbolic link in place of whatever has the name.
    pub(crate) fn link(&self, path: &str, target: &str) -> anyhow::Result<()> {
        let link = || -> anyhow::Result<()> {
            let (parent, name) = self.place(path)?;
            remove_at(&parent, &name)?;
            Ok(nix::unistd::symlinkat(target, &parent, name.as_os_str())?)
        };
        link().with_context(|| format!("linking {path} of the installed system to {target}"))
    }

    /// Makes a directory with its parents and gives it this mode.
    pub(crate) fn make_directory(&self, path: &str, mode: u32) -> anyhow::Result<()> {
        let make = || -> anyhow::Result<()> {
            let dir = self.directories(&inside(Path::new(path))?)?;
            Ok(nix::sys::stat::fchmod(&dir, Mode::from_bits_truncate(mode))?)
        };
        make().with_context(|| format!("making {path} in the installed system"))
    }

    /// Removes a file or link if it's there.
    pub(crate) fn remove(&self, path: &str) -> anyhow::Result<()> {
        let remove = || -> anyhow::Result<()> {
            let inner = inside(Path::new(path))?;
            let Some((parent, name)) = split(&inner) else { anyhow::bail!("that is the root itself") };
            match self.directory(parent) {
                Ok(parent) => Ok(remove_at(&parent, name)?),
                Err(e) if is_absent(&e) => Ok(()),
                Err(e) => Err(e.into()),
            }
        };
        remove().with_context(|| format!("removing {path} of the installed system"))
    }

    /// Names in a directory, sorted; none if there's no such directory.
    pub(crate) fn names(&self, path: &str) -> anyhow::Result<Vec<OsString>> {
        let names = || -> anyhow::Result<Vec<OsString>> {
            let dir = match self.directory(&inside(Path::new(path))?) {
                Err(e) if is_absent(&e) => return Ok(Vec::new()),
                dir => dir?,
            };
            let mut names = Vec::new();
            for entry in nix::dir::Dir::from_fd(dir)?.iter() {
                names.push(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned());
            }
            names.retain(|name| name != "." && name != "..");
            names.sort();
            Ok(names)
        };
        names().with_context(|| format!("listing {path} of the image"))
    }

    fn place(&self, path: &str) -> anyhow::Result<(OwnedFd, OsString)> {
        let inner = inside(Path::new(path))?;
        let Some((parent, name)) = split(&inner) else { anyhow::bail!("that is the root itself") };
        Ok((self.directories(parent)?, name.to_owned()))
    }

    fn found(&self, path: &str, flags: OFlag) -> anyhow::Result<Option<OwnedFd>> {
        let found =
            inside(Path::new(path)).map_err(anyhow::Error::from).and_then(|inner| match self.resolve(&inner, flags) {
                Ok(fd) => Ok(Some(fd)),
                Err(e) if is_absent(&e) => Ok(None),
                Err(e) => Err(e.into()),
            });
        found.with_context(|| format!("opening {path} of the image"))
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        loop {
            match nix::fcntl::openat2(&self.dir, path, how) {
                // openat2(2): a rename or mount elsewhere made the kernel unsure; it asks to be asked again.
                Err(Errno::EAGAIN) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// Directory and last name; `None` for the root itself.
pub(crate) fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    Some((path.parent()?, path.file_name()?))
}

/// Removes a name that isn't a directory, if it's there.
pub(crate) fn remove_at(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    match nix::unistd::unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What kind of thing has the name, without following it.
pub(crate) fn kind_at(parent: impl AsFd, name: &OsStr) -> io::Result<SFlag> {
    let stat = nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn nothing_is_written_through_links_that_lead_out() {
        let outer = tempfile::tempdir().expect("temporary directory");
        let victim = outer.path().join("victim");
        std::fs::create_dir(&victim).expect("made");
        let base = outer.path().join("root");
        std::fs::create_dir(&base).expect("made");
        symlink(&victim, base.join("absolute")).expect("linked");
        symlink("../victim", base.join("relative")).expect("linked");
        symlink(victim.join("file"), base.join("file")).expect("linked");
        let root = Root::open(&base).expect("opened");

        root.put_text("/relative-not/there", 0o640, "made with its parents").expect("written");
        root.put_text("/file", 0o600, "in place of the link").expect("written");
        // `../victim` ends at the root's own `victim`, which isn't there: a dangling link, as chroot would see it.
        root.put_text("/relative/file", 0o600, "x").expect_err("the link dangles inside the root");
        std::fs::create_dir(base.join("victim")).expect("made");
        root.put_text("/relative/file", 0o600, "inside").expect("written");
        root.put_text("/absolute/file", 0o600, "x").expect_err("the link dangles inside the root");
        root.put_text("/../outside", 0o600, "x").expect_err("leads out");

        assert_eq!(std::fs::read_dir(&victim).expect("listed").count(), 0, "nothing came out");
        let read = |path: &str| std::fs::read_to_string(base.join(path)).expect("readable");
        assert_eq!(read("relative-not/there"), "made with its parents");
        assert_eq!(read("file"), "in place of the link");
        assert_eq!(read("victim/file"), "inside");
        let mode = std::fs::metadata(base.join("relative-not/there")).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(root.text("/absolute").expect("nothing there").as_deref(), None);
        assert_eq!(root.text("/relative/file").expect("read").as_deref(), Some("inside"));
    }
}
