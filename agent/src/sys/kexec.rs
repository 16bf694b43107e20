//! `kexec_file_load(2)`: the kernel reads, checks and places the next kernel itself.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes what the files hold now; they can be closed and unmounted afterwards. An empty initrd is `EINVAL`.
pub(crate) fn file_load(kernel: BorrowedFd, initrd: BorrowedFd, cmdline: &CStr) -> io::Result<()> {
    const NO_FLAGS: libc::c_ulong = 0;
    let cmdline = cmdline.to_bytes_with_nul();
    // SAFETY: both descriptors are open for the call and the command line is a NUL-terminated string of the length
    // given; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            cmdline.len(),
            cmdline.as_ptr(),
            NO_FLAGS,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
