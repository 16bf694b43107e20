//! Files of a mounted file system.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

/// Has the kernel begin to write what it holds of a file, without waiting for it (`sync_file_range(2)`).
pub(crate) fn begin_writing(file: &File) -> io::Result<()> {
    // SAFETY: no memory is involved, and the descriptor is open for the call.
    let begun = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    Ok(Errno::result(begun).map(drop)?)
}
