//! Putting arrays together and taking them apart: the md driver's ioctls.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// `SET_ARRAY_INFO` for an array whose members say everything else themselves: only that they have superblocks of version
/// 1, and where.
pub(crate) fn expect_superblocks(array: impl AsFd, minor_version: u8) -> io::Result<()> {
    let info = ioctl::ArrayInfo { major_version: 1, minor_version: minor_version.into(), rest: [0; 16] };
    // SAFETY: the kernel reads one structure from the pointer, which is valid for the call.
    unsafe { ioctl::set_array_info(array.as_fd().as_raw_fd(), &raw const info) }?;
    Ok(())
}

/// `ADD_NEW_DISK`: the kernel reads the superblock of the device with this number. `EBUSY` while anybody else holds it.
pub(crate) fn add_member(array: impl AsFd, major: u64, minor: u64) -> io::Result<()> {
    let number = |n: u64| c_int::try_from(n).map_err(io::Error::other);
    let disk = ioctl::DiskInfo { number: 0, major: number(major)?, minor: number(minor)?, raid_disk: 0, state: 0 };
    // SAFETY: the kernel reads one structure from the pointer, which is valid for the call.
    unsafe { ioctl::add_new_disk(array.as_fd().as_raw_fd(), &raw const disk) }?;
    Ok(())
}

/// `RUN_ARRAY`
pub(crate) fn run(array: impl AsFd) -> io::Result<()> {
    let none = [0; 3];
    // SAFETY: the kernel reads at most three ints from the pointer, which is valid for the call.
    unsafe { ioctl::run_array(array.as_fd().as_raw_fd(), &raw const none) }?;
    Ok(())
}

/// `STOP_ARRAY`. `EBUSY` while anybody else has the array open.
pub(crate) fn stop(array: impl AsFd) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    unsafe { ioctl::stop_array(array.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// linux/raid/md_u.h
mod ioctl {
    use std::ffi::c_int;

    /// linux/major.h
    const MD_MAJOR: u8 = 9;

    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct ArrayInfo {
        pub(super) major_version: c_int,
        pub(super) minor_version: c_int,
        /// Not looked at as long as the number of members, which is among these, is 0.
        pub(super) rest: [c_int; 16],
    }

    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct DiskInfo {
        pub(super) number: c_int,
        pub(super) major: c_int,
        pub(super) minor: c_int,
        pub(super) raid_disk: c_int,
        pub(super) state: c_int,
    }

    const _: () = assert!(size_of::<ArrayInfo>() == 72);
    const _: () = assert!(size_of::<DiskInfo>() == 20);

    nix::ioctl_write_ptr!(add_new_disk, MD_MAJOR, 0x21, DiskInfo);
    nix::ioctl_write_ptr!(set_array_info, MD_MAJOR, 0x23, ArrayInfo);
    nix::ioctl_write_ptr!(run_array, MD_MAJOR, 0x30, [c_int; 3]);
    nix::ioctl_none!(stop_array, MD_MAJOR, 0x32);
}
