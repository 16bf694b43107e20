//! Letting go of swap, loop devices and mappings.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// `swapoff(2)`: brings back into memory what lies there, or says that there is no room.
pub(crate) fn swap_off(path: &CStr) -> io::Result<()> {
    // SAFETY: the kernel reads a string that ends with NUL and outlives the call.
    if unsafe { libc::swapoff(path.as_ptr()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `LOOP_CLR_FD`. While others have the device open, the kernel says that it worked and does it when they close it.
pub(crate) fn detach_loop(device: impl AsFd) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    unsafe { ioctl::loop_clr_fd(device.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// How the device mapper is told which mapping is meant. A UUID can't change, a name can; it takes one of them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping<'a> {
    Uuid(&'a str),
    Name(&'a str),
}

/// `DM_DEV_REMOVE`; `control` is /dev/mapper/control. `EBUSY` while anybody has the mapping open.
pub(crate) fn remove_mapping(control: &File, mapping: Mapping) -> io::Result<()> {
    let mut request = request(mapping)?;
    // SAFETY: `request` is the structure that this ioctl reads and writes, it says its own size, and outlives the call.
    let removed = unsafe { ioctl::dm_dev_remove(control.as_raw_fd(), &raw mut request) };
    // The kernel fills in its version even if it refuses ours.
    let [major, minor, _] = request.version;
    if removed.is_err() && major != ioctl::DM_MAJOR {
        let words =
            format!("the kernel's device mapper has version {major}.{minor}, this agent knows {}", ioctl::DM_MAJOR);
        return Err(io::Error::other(words));
    }
    removed?;
    Ok(())
}

fn request(mapping: Mapping) -> io::Result<ioctl::DmIoctl> {
    let mut request = ioctl::DmIoctl {
        // Any minor version of the kernel's is as good as this one or better.
        version: [ioctl::DM_MAJOR, 0, 0],
        data_size: u32::try_from(size_of::<ioctl::DmIoctl>()).map_err(io::Error::other)?,
        data_start: 0,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    match mapping {
        Mapping::Uuid(uuid) => write(&mut request.uuid, uuid)?,
        Mapping::Name(name) => write(&mut request.name, name)?,
    }
    Ok(request)
}

fn write(field: &mut [c_char], text: &str) -> io::Result<()> {
    // The last byte stays NUL, and an empty text would mean that nothing is looked up.
    if text.is_empty() || text.len() >= field.len() || text.contains('\0') {
        return Err(io::Error::other(format!("{text:?} names no mapping")));
    }
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    Ok(())
}

/// linux/loop.h and linux/dm-ioctl.h
mod ioctl {
    use std::ffi::c_char;

    pub(super) const DM_MAJOR: u32 = 4;

    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct DmIoctl {
        pub(super) version: [u32; 3],
        pub(super) data_size: u32,
        pub(super) data_start: u32,
        pub(super) target_count: u32,
        pub(super) open_count: i32,
        pub(super) flags: u32,
        pub(super) event_nr: u32,
        pub(super) padding: u32,
        pub(super) dev: u64,
        pub(super) name: [c_char; 128],
        pub(super) uuid: [c_char; 129],
        pub(super) data: [c_char; 7],
    }

    const _: () = assert!(size_of::<DmIoctl>() == 312);
    const _: () = assert!(std::mem::offset_of!(DmIoctl, dev) == 40);
    const _: () = assert!(std::mem::offset_of!(DmIoctl, name) == 48);
    const _: () = assert!(std::mem::offset_of!(DmIoctl, uuid) == 176);

    nix::ioctl_none_bad!(loop_clr_fd, 0x4c01);
    nix::ioctl_readwrite!(dm_dev_remove, 0xfd, 4, DmIoctl);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_named_one_way() {
        let text = |field: &[c_char]| -> String {
            field.iter().take_while(|c| **c != 0).map(|c| char::from(c.to_ne_bytes()[0])).collect()
        };
        for (name, mapping, want) in [
            ("by UUID", Mapping::Uuid("LVM-abc"), Some(("", "LVM-abc"))),
            ("by name", Mapping::Name("vg-root"), Some(("vg-root", ""))),
            ("nothing", Mapping::Uuid(""), None),
            ("cut by NUL", Mapping::Name("a\0b"), None),
            ("longest", Mapping::Name(&"n".repeat(127)), Some((&*"n".repeat(127), ""))),
            ("too long", Mapping::Name(&"n".repeat(128)), None),
        ] {
            let found = request(mapping).ok();
            let found = found.map(|request| (text(&request.name), text(&request.uuid)));
            assert_eq!(found, want.map(|(name, uuid)| (name.to_owned(), uuid.to_owned())), "{name}");
        }
    }
}
