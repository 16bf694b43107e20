//! A drive, opened by the name that orders use.
//!
//! Kernel names move between boots and even between two looks, so a drive is found by serial and size and then asked
//! again through the opened handle. What answers to another name is refused.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use drophammer_protocol::inventory::{Disk, DiskId};

use crate::inventory::disks;
use crate::sys::block;

/// How reads and writes go to the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Past the kernel's cache (`O_DIRECT`): what is read comes from the drive.
    Direct,
    /// Through the kernel's cache.
    Buffered,
}

/// A whole drive that nobody else holds, whose serial and size were read from this very handle.
#[derive(Debug)]
pub(crate) struct OpenDisk {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) facts: Disk,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0} isn't in this machine")]
    Missing(DiskId),
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

/// Opens the drive for reading and writing, exclusively: a drive of which any part is mounted, or belongs to an array or
/// a volume group, is refused by the kernel.
pub(crate) fn open(id: &DiskId, access: Access) -> Result<OpenDisk, OpenError> {
    let root = Path::new("/");
    let found: Vec<Disk> = disks::disks(root).into_iter().filter(|disk| disk.id().as_ref() == Some(id)).collect();
    let disk = match found.as_slice() {
        [] => return Err(OpenError::Missing(id.clone())),
        [disk] => disk,
        _ => return Err(OpenError::Ambiguous(id.clone())),
    };
    let path = Path::new("/dev").join(&disk.name);
    let failed = |source| OpenError::Open { id: id.clone(), path: path.clone(), source };
    let direct = if access == Access::Direct { libc::O_DIRECT } else { 0 };
    let file = File::options().read(true).write(true).custom_flags(libc::O_EXCL | direct).open(&path).map_err(|e| {
        if e.kind() == io::ErrorKind::ResourceBusy {
            let mut holders = holders(root, &disk.name);
            if holders.is_empty() {
                holders.push("another program has opened it for itself".to_owned());
            }
            OpenError::Held { id: id.clone(), name: disk.name.clone(), holders: holders.join(", ") }
        } else {
            failed(e)
        }
    })?;
    let facts = facts(root, &file).map_err(failed)?;
    if facts.id().as_ref() != Some(id) {
        let found = facts.id().map_or_else(|| format!("{} without a serial", facts.name), |id| id.to_string());
        return Err(OpenError::Different { id: id.clone(), path, found });
    }
    Ok(OpenDisk { file, path, facts })
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

/// Who holds a drive or a part of it, for people: `mounted at /srv`, `part of md0`.
pub(crate) fn holders(root: &Path, name: &str) -> Vec<String> {
    let parts = disks::parts(root, name);
    let numbers: BTreeSet<&str> = parts.iter().map(|(_, number)| number.as_str()).collect();
    let nodes: BTreeSet<String> =
        parts.iter().filter_map(|(dir, _)| Some(format!("/dev/{}", dir.file_name()?.to_str()?))).collect();
    let mut found = BTreeSet::new();
    for (dir, _) in &parts {
        for holder in fs::read_dir(dir.join("holders")).into_iter().flatten().flatten() {
            found.insert(format!("part of {}", holder.file_name().to_string_lossy()));
        }
    }
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    for (place, number, source) in mounts.lines().filter_map(mount) {
        // btrfs and its like show a number of their own, so the source counts as well.
        if numbers.contains(number) || nodes.contains(source) {
            found.insert(format!("mounted at {place}"));
        }
    }
    let swaps = fs::read_to_string(root.join("proc/swaps")).unwrap_or_default();
    if swaps.lines().filter_map(|line| line.split_whitespace().next()).any(|node| nodes.contains(node)) {
        found.insert("used as swap".to_owned());
    }
    found.into_iter().collect()
}

/// Mount point, device number and source of a line of mountinfo (proc(5)).
fn mount(line: &str) -> Option<(&str, &str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let number = fields.nth(2)?;
    let place = fields.nth(1)?;
    Some((place, number, after.split(' ').nth(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn holders_are_named() {
        let tree = Tree::new();
        for (dir, number) in [("nvme0n1", "259:0"), ("nvme0n1/nvme0n1p1", "259:1"), ("nvme0n1/nvme0n1p2", "259:2")] {
            tree.file(&format!("sys/block/{dir}/dev"), format!("{number}\n"));
        }
        tree.file("sys/block/nvme0n1/nvme0n1p1/partition", "1\n");
        tree.file("sys/block/nvme0n1/nvme0n1p2/partition", "2\n");
        tree.file("sys/block/nvme0n1/queue/dev", "no partition\n");
        for (name, file, content, want) in [
            ("nobody known", "proc/swaps", "", ""),
            ("another drive's mount", "proc/self/mountinfo", "9 1 8:1 / / rw - ext4 /dev/sda1 rw\n", ""),
            (
                "by number",
                "proc/self/mountinfo",
                "9 1 259:2 / /srv rw shared:1 - ext4 /dev/root rw\n",
                "mounted at /srv",
            ),
            ("by source", "proc/self/mountinfo", "9 1 0:40 / /b rw - btrfs /dev/nvme0n1p1 rw\n", "mounted at /b"),
            (
                "swap as well",
                "proc/swaps",
                "Filename Type\n/dev/nvme0n1p2 partition 1 0 -2\n",
                "mounted at /b, used as swap",
            ),
            ("array", "sys/block/nvme0n1/nvme0n1p2/holders/md0", "", "mounted at /b, part of md0, used as swap"),
        ] {
            tree.file(file, content);
            assert_eq!(holders(tree.root(), "nvme0n1").join(", "), want, "{name}");
        }
    }

    #[test]
    fn a_drive_that_is_not_there() {
        let id = DiskId { serial: "no drive has this serial".into(), size_bytes: 1 };
        assert!(matches!(open(&id, Access::Buffered), Err(OpenError::Missing(missing)) if missing == id));
    }
}
