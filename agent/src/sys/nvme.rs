//! The one ioctl under every NVMe admin command, and the one that tells which namespace a block device is.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::nvme_id::{AdminCommand, Status};

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

mod ioctl {
    use super::PassthruCommand;

    nix::ioctl_readwrite!(nvme_admin_cmd, b'N', 0x41, PassthruCommand);
    nix::ioctl_none!(nvme_id, b'N', 0x40);
}

/// Sends `command` and waits for the drive's answer; what the drive says lands in `data`. An `Err` is the kernel's: the
/// command never reached the drive, or its answer didn't come in time.
pub(crate) fn submit(drive: &File, command: &AdminCommand, data: &mut [u8]) -> io::Result<Status> {
    let too_much = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut raw = PassthruCommand {
        opcode: command.opcode,
        nsid: command.nsid,
        addr: if data.is_empty() { 0 } else { data.as_mut_ptr().expose_provenance() as u64 },
        data_len: data.len().try_into().map_err(too_much)?,
        cdw10: command.cdw10,
        // Zero would mean the kernel's default of a minute.
        timeout_ms: u32::try_from(command.timeout.as_millis()).unwrap_or(u32::MAX).max(1),
        ..PassthruCommand::default()
    };
    // SAFETY: `raw` is the structure that this ioctl reads and writes, and `addr` and `data_len` describe `data`, which
    // is borrowed mutably until the call returns.
    let answer = unsafe { ioctl::nvme_admin_cmd(drive.as_raw_fd(), &raw mut raw) }?;
    Ok(Status(u16::try_from(answer).map_err(|_| io::Error::other(format!("impossible NVMe status {answer}")))?))
}

/// The namespace behind an opened block device.
pub(crate) fn namespace_id(drive: &File) -> io::Result<u32> {
    // SAFETY: takes no argument and touches no memory of ours.
    let id = unsafe { ioctl::nvme_id(drive.as_raw_fd()) }?;
    u32::try_from(id).map_err(|_| io::Error::other(format!("impossible namespace id {id}")))
}
