//! The ioctls under NVMe: one for every admin command, and one that reads past the drive's cache.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::drive::Data;
use crate::drive::nvme::{Command, Completion, Status};

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Debug, Default)]
struct PassthruCommand {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<PassthruCommand>() == 72);

/// `struct nvme_user_io`
#[repr(C)]
#[derive(Debug, Default)]
struct UserIo {
    opcode: u8,
    flags: u8,
    control: u16,
    nblocks: u16,
    rsvd: u16,
    metadata: u64,
    addr: u64,
    slba: u64,
    dsmgmt: u32,
    reftag: u32,
    apptag: u16,
    appmask: u16,
}

const _: () = assert!(size_of::<UserIo>() == 48);

mod ioctl {
    use super::{PassthruCommand, UserIo};

    nix::ioctl_readwrite!(nvme_admin_cmd, b'N', 0x41, PassthruCommand);
    nix::ioctl_write_ptr!(nvme_submit_io, b'N', 0x42, UserIo);
}

/// Sends `command` and waits for the drive's answer. An `Err` is the kernel's: the command never reached the drive, or its
/// answer didn't come in time.
pub(crate) fn submit(drive: &File, command: &Command, data: Data<'_>) -> io::Result<Completion> {
    let too_much = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (address, length) = match data {
        Data::None => (0, 0),
        Data::In(buffer) => (buffer.as_mut_ptr().expose_provenance(), buffer.len()),
        Data::Out(bytes) => (bytes.as_ptr().expose_provenance(), bytes.len()),
    };
    let mut raw = PassthruCommand {
        opcode: command.opcode,
        nsid: command.nsid,
        addr: address as u64,
        data_len: length.try_into().map_err(too_much)?,
        cdw10: command.cdw10,
        cdw11: command.cdw11,
        // Zero would mean the kernel's default of a minute.
        timeout_ms: u32::try_from(command.timeout.as_millis()).unwrap_or(u32::MAX).max(1),
        ..PassthruCommand::default()
    };
    // SAFETY: `raw` is the structure that this ioctl reads and writes; `addr` and `data_len` describe the caller's memory,
    // which is borrowed until the call returns, and mutably if the opcode lets the drive write to it: the direction is in
    // the opcode's lowest bits, and whoever makes a command gives it the data that its opcode asks for.
    let answer = unsafe { ioctl::nvme_admin_cmd(drive.as_raw_fd(), &raw mut raw) }?;
    Ok(Completion { status: status(answer)?, result: raw.result })
}

/// Reads with Force Unit Access: the drive answers from its medium and not from its cache.
pub(crate) fn read_medium(namespace: &File, block_bytes: u32, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    const READ: u8 = 0x02;
    /// Bit 30 of the command's dword 12.
    const FORCE_UNIT_ACCESS: u16 = 1 << 14;
    let odd = || io::Error::from(io::ErrorKind::InvalidInput);
    let blocks =
        u64::try_from(buffer.len()).map_err(io::Error::other)?.checked_div(block_bytes.into()).ok_or_else(odd)?;
    let raw = UserIo {
        opcode: READ,
        control: FORCE_UNIT_ACCESS,
        // Counted from zero.
        nblocks: blocks.checked_sub(1).and_then(|n| u16::try_from(n).ok()).ok_or_else(odd)?,
        addr: buffer.as_mut_ptr().expose_provenance() as u64,
        slba: offset / u64::from(block_bytes),
        ..UserIo::default()
    };
    // SAFETY: `raw` is the structure that this ioctl reads. The kernel writes `nblocks` + 1 blocks of the namespace to `addr`:
    // no more than `buffer` holds if `block_bytes` is the namespace's, which the caller has from the kernel.
    let answer = unsafe { ioctl::nvme_submit_io(namespace.as_raw_fd(), &raw const raw) }?;
    let status = status(answer)?;
    if status.is_success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

fn status(answer: i32) -> io::Result<Status> {
    Ok(Status(u16::try_from(answer).map_err(|_| io::Error::other(format!("impossible NVMe status {answer}")))?))
}
