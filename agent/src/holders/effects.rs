//! Carrying out one step, by system calls alone.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::plan::Step;
use super::processes::{self, Users};
use crate::inventory::sysfs::node;
use crate::sys::{dm, holders, md};

pub(super) fn carry_out(step: &Step) -> io::Result<()> {
    match step {
        // Never a lazy unmount: that only hides who still works on the drive.
        Step::Unmount { place } => Ok(umount2(place, MntFlags::UMOUNT_NOFOLLOW)?),
        Step::SwapOff { path } => holders::swap_off(&CString::new(path.as_os_str().as_bytes())?),
        Step::DetachLoop { device, .. } => holders::detach_loop(File::open(node(device))?),
        Step::StopArray { device } => md::stop(File::open(node(device))?),
        Step::RemoveMapping { name, uuid, .. } => dm::remove(name, uuid),
        Step::StopBcache { device } => fs::write(Path::new("/sys/class/block").join(device).join("bcache/stop"), "1"),
        Step::StopCacheSet { uuid } => fs::write(Path::new("/sys/fs/bcache").join(uuid).join("stop"), "1"),
    }
}

/// Who is in the way of a step.
pub(super) fn users(root: &Path, step: &Step) -> Users {
    let (nodes, place): (Vec<PathBuf>, Option<&Path>) = match step {
        Step::Unmount { place } => (Vec::new(), Some(place)),
        Step::DetachLoop { device, .. } | Step::StopArray { device } | Step::StopBcache { device } => {
            (vec![node(device)], None)
        }
        Step::RemoveMapping { device, name, .. } => (vec![node(device), Path::new("/dev/mapper").join(name)], None),
        // Nobody has these open.
        Step::SwapOff { .. } | Step::StopCacheSet { .. } => return Users::default(),
    };
    processes::using(root, &nodes, place)
}
