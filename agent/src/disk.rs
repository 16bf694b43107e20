//! A drive, opened by the name that orders use.
//!
//! Kernel names move between boots and even between two looks, so a drive is found by serial and size and then asked
//! again through the opened handle. What answers to another name is refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use drophammer_protocol::inventory::{Disk, DiskId};

use crate::holders;
use crate::inventory::disks;
use crate::sys::block;

/// How reads and writes go to the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Past the kernel's cache (`O_DIRECT`): what is read comes from the drive.
    Direct,
    /// Through the kernel's cache.
    Buffered,
    /// The same, and never to be written to.
    ReadOnly,
}

/// A whole drive that nobody else holds, whose serial and size were read from this very handle.
#[derive(Debug)]
pub(crate) struct OpenDisk {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) facts: Disk,
    /// The same drive by its other paths, held as well.
    pub(crate) others: Vec<OpenDisk>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0} isn't in this machine")]
    Missing(DiskId),
    #[error("{id} isn't in this machine any more: the drive with this serial has {bytes} bytes")]
    Resized { id: DiskId, bytes: u64 },
    #[error("{0} is there more than once; drives that share serial and size can't be told apart")]
    Ambiguous(DiskId),
    #[error("{id} ({name}) is in use: {holders}; release it and order again")]
    Held { id: DiskId, name: String, holders: String },
    #[error("{id} was expected at {path}, but what was opened there says it is {found}", path = path.display())]
    Different { id: DiskId, path: PathBuf, found: String },
    #[error("opening {id} at {path}", path = path.display())]
    Open {
        id: DiskId,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Opens the drive, exclusively: a drive of which any part is mounted, or belongs to an array or
/// a volume group, is refused by the kernel.
pub(crate) fn open(id: &DiskId, access: Access) -> Result<OpenDisk, OpenError> {
    let root = Path::new("/");
    let disks = disks::disks(root);
    let disk = find(&disks, id)?;
    let mut opened = open_as(id, &disk.name, access)?;
    for name in &disk.paths {
        opened.others.push(open_as(id, name, access)?);
    }
    Ok(opened)
}

/// The one drive that an order can mean.
fn find<'a>(disks: &'a [Disk], id: &DiskId) -> Result<&'a Disk, OpenError> {
    let mut found = disks.iter().filter(|disk| disk.id().as_ref() == Some(id));
    match (found.next(), found.next()) {
        (Some(disk), None) => Ok(disk),
        (Some(_), Some(_)) => Err(OpenError::Ambiguous(id.clone())),
        (None, _) => {
            let sized =
                |disk: &&Disk| disk.id().is_some_and(|other| DiskId { size_bytes: id.size_bytes, ..other } == *id);
            Err(match disks.iter().find(sized) {
                Some(other) => OpenError::Resized { id: id.clone(), bytes: other.size_bytes },
                None => OpenError::Missing(id.clone()),
            })
        }
    }
}

fn open_as(id: &DiskId, name: &str, access: Access) -> Result<OpenDisk, OpenError> {
    let root = Path::new("/");
    let path = Path::new("/dev").join(name);
    let failed = |source| OpenError::Open { id: id.clone(), path: path.clone(), source };
    let direct = if access == Access::Direct { libc::O_DIRECT } else { 0 };
    let write = access != Access::ReadOnly;
    let file =
        File::options().read(true).write(write).custom_flags(libc::O_EXCL | direct).open(&path).map_err(|e| {
            if e.kind() == io::ErrorKind::ResourceBusy {
                let mut holders = holders::in_words(root, name);
                if holders.is_empty() {
                    holders.push("another program has opened it for itself".to_owned());
                }
                OpenError::Held { id: id.clone(), name: name.to_owned(), holders: holders.join(", ") }
            } else {
                failed(e)
            }
        })?;
    let facts = facts(root, &file).map_err(failed)?;
    if facts.id().as_ref() != Some(id) {
        let found = facts.id().map_or_else(|| format!("{} without a serial", facts.name), |id| id.to_string());
        return Err(OpenError::Different { id: id.clone(), path, found });
    }
    Ok(OpenDisk { file, path, facts, others: Vec::new() })
}

/// What the kernel knows of the drive behind an opened handle, with the size as the handle has it.
fn facts(root: &Path, file: &File) -> io::Result<Disk> {
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Err(io::Error::other("not a block device"));
    }
    let number = metadata.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let disk = disks::disk_by_number(root, major, minor)
        .ok_or_else(|| io::Error::other(format!("sysfs shows no whole drive with the number {major}:{minor}")))?;
    Ok(Disk { size_bytes: block::size_bytes(file)?, ..disk })
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::fixtures::disk;

    use super::*;

    #[test]
    fn a_drive_that_was_changed_since_is_another() {
        let id = DiskId::new("S1", 1 << 30);
        let disks = |sizes: &[(&str, u64)]| sizes.iter().map(|(serial, size)| disk(serial, *size)).collect::<Vec<_>>();
        for (name, there, want) in [
            ("as ordered", disks(&[("S0", 1 << 30), ("S1", 1 << 30)]), Ok(1)),
            ("no drive at all", vec![], Err("disk S1 (1073741824 bytes) isn't in this machine")),
            ("another in its place", disks(&[("S2", 1 << 30)]), Err("isn't in this machine")),
            ("a smaller one", disks(&[("S1", 1 << 20)]), Err("the drive with this serial has 1048576 bytes")),
            ("a larger one", disks(&[("S1", 1 << 40)]), Err("the drive with this serial has 1099511627776 bytes")),
            ("smaller by a sector", disks(&[("S1", (1 << 30) - 512)]), Err("with this serial has 1073741312 bytes")),
            ("twice", disks(&[("S1", 1 << 30), ("S1", 1 << 30)]), Err("can't be told apart")),
            ("without a serial", vec![Disk { serial: None, ..disk("S1", 1 << 30) }], Err("isn't in this machine")),
        ] {
            match (find(&there, &id), want) {
                (Ok(found), Ok(number)) => assert!(std::ptr::eq(found, &raw const there[number]), "{name}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{name}: {error}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_drive_that_is_not_there() {
        let id = DiskId::new("no drive has this serial", 1);
        assert!(matches!(open(&id, Access::Buffered), Err(OpenError::Missing(missing)) if missing == id));
    }
}
