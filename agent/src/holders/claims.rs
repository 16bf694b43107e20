//! Drives that somebody has claimed for himself without any trace in sysfs: ZFS and DRBD do, and so does any program that
//! opens a drive with `O_EXCL`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::inventory::sysfs;
use crate::signatures::{self, Kind};

/// Who it is, as far as it can be told from what lies on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claimant {
    /// A pool that is imported here.
    Pool(String),
    Drbd,
    Unknown,
}

/// Tries to open each of these devices exclusively. Reading it so and closing it changes nothing and wakes nobody.
pub(super) fn read<'a>(root: &Path, names: impl Iterator<Item = &'a str>) -> BTreeMap<String, Claimant> {
    let mut claims = BTreeMap::new();
    for name in names {
        let node = sysfs::node(name);
        let path = root.join(node.strip_prefix("/").unwrap_or(&node));
        let exclusive = File::options().read(true).custom_flags(libc::O_EXCL).open(&path);
        if exclusive.is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy) {
            claims.insert(name.to_owned(), claimant(root, name, &path));
        }
    }
    claims
}

fn claimant(root: &Path, name: &str, path: &Path) -> Claimant {
    let size = sysfs::names(&root.join("sys/block"))
        .into_iter()
        .map(|whole| root.join("sys/block").join(whole))
        .flat_map(|dir| [dir.clone(), dir.join(name)])
        .filter(|dir| dir.file_name().is_some_and(|last| last == name))
        .find_map(|dir| sysfs::number::<u64>(&dir.join("size")));
    let Some(size) = size else { return Claimant::Unknown };
    let Ok(device) = File::open(path) else { return Claimant::Unknown };
    let mut read = |offset: u64, buffer: &mut [u8]| device.read_exact_at(buffer, offset);
    let found = signatures::in_one(&mut read, size.saturating_mul(512), 512).signatures;
    // The kernel knows its pools by name only, and a label may tell none.
    let imported = sysfs::names(&root.join("proc/spl/kstat/zfs"));
    let pool = found
        .iter()
        .filter(|found| found.kind == Kind::Zfs)
        .find_map(|found| found.label.clone().filter(|pool| imported.contains(pool)));
    match pool {
        Some(pool) => Claimant::Pool(pool),
        None if found.iter().any(|found| found.kind == Kind::Drbd) => Claimant::Drbd,
        None => Claimant::Unknown,
    }
}

/// udev links `/dev/drbd/by-res/RESOURCE/VOLUME` to the device.
pub(super) fn drbd_resource(root: &Path, device: &str) -> Option<String> {
    let dir = root.join("dev/drbd/by-res");
    sysfs::names(&dir).into_iter().find(|resource| {
        let of = dir.join(resource);
        sysfs::names(&of).iter().any(|volume| sysfs::link_name(&of.join(volume)).as_deref() == Some(device))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn claimants_are_told_by_what_they_left_there() {
        let tree = Tree::new();
        tree.file("sys/block/sda/size", "2048\n");
        tree.file("sys/block/sda/sda1/partition", "1\n");
        tree.file("sys/block/sda/sda1/size", "2048\n");
        let at = |offset: usize, bytes: &[u8]| {
            let mut device = vec![0; 1 << 20];
            device[offset..offset + bytes.len()].copy_from_slice(bytes);
            device
        };
        let zfs = at(16 << 10, &signatures::tests::zfs());
        let drbd = at((1 << 20) - 4096 + 60, &0x8374_026d_u32.to_be_bytes());
        for (name, pool, device, want) in [
            ("nothing", "tank", at(0, &[]), Claimant::Unknown),
            ("a pool that isn't imported", "other", zfs.clone(), Claimant::Unknown),
            ("a pool", "tank", zfs, Claimant::Pool("tank".into())),
            ("DRBD", "tank", drbd, Claimant::Drbd),
        ] {
            tree.file("dev/sda1", device);
            let pools = tree.root().join("proc/spl/kstat/zfs");
            let _ = std::fs::remove_dir_all(&pools);
            tree.file(&format!("proc/spl/kstat/zfs/{pool}/state"), "ONLINE\n");
            assert_eq!(claimant(tree.root(), "sda1", &tree.root().join("dev/sda1")), want, "{name}");
        }
        assert_eq!(claimant(tree.root(), "sdb", &tree.root().join("dev/sdb")), Claimant::Unknown);
        assert_eq!(read(tree.root(), ["sda1", "sdb"].into_iter()), BTreeMap::new(), "nobody claims a file");
    }
}
