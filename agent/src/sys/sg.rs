//! SG_IO: the ioctl under every SCSI command, and under the ATA commands that travel as one.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_ushort, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::drive::Data;
use crate::drive::scsi::{Command, Completion};

/// `struct sg_io_hdr` of scsi/sg.h, version 3.
#[repr(C)]
#[derive(Debug)]
struct Header {
    interface_id: c_int,
    dxfer_direction: c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: c_ushort,
    dxfer_len: c_uint,
    dxferp: *mut c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: c_uint,
    flags: c_uint,
    pack_id: c_int,
    usr_ptr: *mut c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: c_ushort,
    driver_status: c_ushort,
    resid: c_int,
    duration: c_uint,
    info: c_uint,
}

const _: () = assert!(size_of::<Header>() == 88);

nix::ioctl_readwrite_bad!(sg_io, 0x2285, Header);

/// Sends `command` and waits for the drive's answer. An `Err` is the kernel's or the controller's: the command never
/// reached the drive, or its answer didn't come in time.
pub(crate) fn submit(drive: &File, command: &Command, data: Data<'_>) -> io::Result<Completion> {
    const NONE: c_int = -1;
    const TO_DRIVE: c_int = -2;
    const FROM_DRIVE: c_int = -3;
    let too_much = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (direction, memory, length) = match data {
        Data::None => (NONE, ptr::null_mut(), 0),
        Data::In(buffer) => (FROM_DRIVE, buffer.as_mut_ptr().cast::<c_void>(), buffer.len()),
        Data::Out(bytes) => (TO_DRIVE, bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len()),
    };
    let length = c_uint::try_from(length).map_err(too_much)?;
    let mut sense = [0u8; 64];
    let mut header = Header {
        interface_id: c_int::from(b'S'),
        dxfer_direction: direction,
        cmd_len: command.cdb.len().try_into().map_err(too_much)?,
        mx_sb_len: 64,
        iovec_count: 0,
        dxfer_len: length,
        dxferp: memory,
        cmdp: command.cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: c_uint::try_from(command.timeout.as_millis()).unwrap_or(c_uint::MAX).max(1),
        flags: 0,
        pack_id: 0,
        usr_ptr: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: `header` is the structure that this ioctl reads and writes. The command, the sense buffer and the caller's
    // memory are as long as it says and outlive the call; the drive writes to that memory only in the direction
    // FROM_DRIVE, for which it was borrowed mutably.
    unsafe { sg_io(drive.as_raw_fd(), &raw mut header) }?;
    match header.host_status {
        0 => {}
        // DID_TIME_OUT
        3 => return Err(io::ErrorKind::TimedOut.into()),
        other => {
            return Err(io::Error::other(format!("the controller gave up on the command (host status {other:#04x})")));
        }
    }
    let sense = sense.get(..usize::from(header.sb_len_wr)).unwrap_or(&sense).to_vec();
    let left = c_uint::try_from(header.resid).unwrap_or(0);
    let transferred = usize::try_from(length.saturating_sub(left)).unwrap_or(0);
    Ok(Completion { status: header.status, sense, transferred })
}
