//! Letting go of swap and loop devices.

#![allow(unsafe_code)]

use std::ffi::CStr;
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

/// linux/loop.h
mod ioctl {
    nix::ioctl_none_bad!(loop_clr_fd, 0x4c01);
}
