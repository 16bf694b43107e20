//! The firmware's variables as efivarfs shows them. What is written is read back: there is firmware that says yes and
//! keeps nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::sys::linux;

pub(super) const VARIABLES: &str = "sys/firmware/efi/efivars";
/// `EFI_GLOBAL_VARIABLE`.
pub(super) const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// efivarfs puts this much before a value.
const ATTRIBUTES: usize = 4;
/// Kept over a restart, and visible to firmware and to systems.
const KEPT: [u8; ATTRIBUTES] = 0x7_u32.to_le_bytes();

#[derive(Debug)]
pub(super) struct Variables {
    folder: PathBuf,
}

impl Variables {
    pub(super) fn of(root: &Path) -> Self {
        Self { folder: root.join(VARIABLES) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{GLOBAL}"))
    }

    /// Names of all that belong to the specification itself. None where no variable can be reached, as on a BIOS.
    pub(super) fn names(&self) -> anyhow::Result<Vec<String>> {
        let list = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                names.extend(name.strip_suffix(GLOBAL).and_then(|name| name.strip_suffix('-')).map(str::to_owned));
            }
            Ok(names)
        };
        match list() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.with_context(|| format!("listing {}", self.folder.display())),
        }
    }

    /// A variable's value, without its attributes. `None` if there is none.
    pub(super) fn read(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        Ok(self.content(name)?.and_then(|bytes| bytes.get(ATTRIBUTES..).map(<[u8]>::to_vec)))
    }

    fn content(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match fs::read(self.path(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => Ok(Some(read.with_context(|| format!("reading the firmware's variable {name}"))?)),
        }
    }

    pub(super) fn write(&self, name: &str, value: &[u8]) -> anyhow::Result<()> {
        let (path, bytes) = (self.path(name), [&KEPT, value].concat());
        let write = || -> io::Result<()> {
            let mut file = unlocked(&path, || File::options().write(true).create(true).truncate(false).open(&path))?;
            // efivarfs takes attributes and value in one write, and makes one call to the firmware of each.
            match file.write(&bytes)? {
                all if all == bytes.len() => Ok(()),
                part => Err(io::Error::other(format!("only {part} of {} bytes were taken", bytes.len()))),
            }
        };
        write().map_err(explained).with_context(|| format!("writing the firmware's variable {name}"))?;
        let back = self.content(name)?;
        anyhow::ensure!(
            back.as_ref() == Some(&bytes),
            "the firmware took the variable {name}, and then {}",
            if back.is_some() { "shows another value" } else { "doesn't have it" }
        );
        Ok(())
    }

    pub(super) fn delete(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        match unlocked(&path, || fs::remove_file(&path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => done.map_err(explained).with_context(|| format!("deleting the firmware's variable {name}"))?,
        }
        anyhow::ensure!(self.content(name)?.is_none(), "the firmware deleted the variable {name}, and still has it");
        Ok(())
    }
}

/// efivarfs protects variables that it doesn't know from being changed by mistake (`chattr +i`), for there is firmware that
/// doesn't start without them.
fn unlocked<T>(path: &Path, attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match attempt() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && linux::clear_immutable(path).is_ok() => attempt(),
        done => done,
    }
}

/// What the bare error number means for the person who reads it.
fn explained(error: io::Error) -> anyhow::Error {
    let meaning = match error.raw_os_error() {
        Some(libc::ENOSPC) => {
            "the firmware's memory for variables is full: delete entries that nobody needs in its set-up"
        }
        Some(libc::EROFS | libc::EPERM | libc::EACCES) => {
            "this firmware's variables can't be changed by a running system"
        }
        Some(libc::EINVAL | libc::EIO) => "the firmware refuses it",
        _ => return error.into(),
    };
    anyhow::Error::new(error).context(meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_read_and_deleted() {
        let root = tempfile::tempdir().expect("a directory");
        let variables = Variables::of(root.path());
        assert_eq!(variables.names().expect("a BIOS"), Vec::<String>::new());
        variables.write("BootNext", &[1, 0]).expect_err("a BIOS has no variables");
        fs::create_dir_all(root.path().join(VARIABLES)).expect("a folder");
        fs::write(root.path().join(VARIABLES).join("Other-12345678-93ca-11d2-aa0d-00e098032b8c"), b"x").expect("put");
        assert_eq!(variables.read("BootNext").expect("read"), None);
        variables.write("BootNext", &[1, 0]).expect("written");
        assert_eq!(variables.read("BootNext").expect("read"), Some(vec![1, 0]));
        assert_eq!(variables.names().expect("listed"), ["BootNext"]);
        variables.delete("BootNext").expect("deleted");
        variables.delete("BootNext").expect("deleted before");
        assert_eq!(variables.read("BootNext").expect("read"), None);
    }

    #[test]
    fn what_reads_back_different_is_an_error() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = root.path().join(VARIABLES);
        fs::create_dir_all(&folder).expect("a folder");
        // An ordinary file keeps its old end, as firmware might.
        fs::write(folder.join(format!("BootOrder-{GLOBAL}")), [7, 0, 0, 0, 1, 0, 2, 0]).expect("put");
        let error = Variables::of(root.path()).write("BootOrder", &[1, 0]).expect_err("different");
        assert_eq!(error.to_string(), "the firmware took the variable BootOrder, and then shows another value");
    }

    #[test]
    fn refusals_say_what_they_mean() {
        for (errno, want) in [
            (libc::ENOSPC, "the firmware's memory for variables is full"),
            (libc::EROFS, "can't be changed by a running system"),
            (libc::EINVAL, "the firmware refuses it"),
            (libc::ENOENT, "No such file"),
        ] {
            let said = format!("{:#}", explained(io::Error::from_raw_os_error(errno)));
            assert!(said.contains(want), "{said}");
        }
    }
}
