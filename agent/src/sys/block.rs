//! Block device ioctls: geometry, partitions that only the kernel knows of, and reads that really reach the drive.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_longlong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// A run of bytes of a disk that the kernel shall know as a partition, whatever the disk itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelPartition {
    pub(crate) number: u32,
    pub(crate) start_bytes: u64,
    pub(crate) length_bytes: u64,
}

/// `BLKGETSIZE64`
pub(crate) fn size_bytes(disk: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the kernel writes one u64 to the pointer, which is valid for the call.
    unsafe { ioctl::blkgetsize64(disk.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// `BLKSSZGET`: the unit of the drive's addresses, 512 or 4096.
pub(crate) fn logical_block(disk: impl AsFd) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int to the pointer, which is valid for the call.
    unsafe { ioctl::blksszget(disk.as_fd().as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(io::Error::other)
}

/// `BLKFLSBUF`: writes back and forgets what the kernel has cached of this device.
pub(crate) fn drop_cache(device: impl AsFd) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    unsafe { ioctl::blkflsbuf(device.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// `BLKROSET`: until the next boot the kernel opens the device for nobody who wants to write.
pub(crate) fn set_read_only(disk: impl AsFd) -> io::Result<()> {
    let yes: c_int = 1;
    // SAFETY: the kernel reads one int from the pointer, which is valid for the call.
    unsafe { ioctl::blkroset(disk.as_fd().as_raw_fd(), &raw const yes) }?;
    Ok(())
}

/// `BLKZEROOUT`: has the drive write zeros, or the kernel where the drive can't by itself.
pub(crate) fn zero_out(disk: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the kernel reads two u64 from the pointer, which is valid for the call.
    unsafe { ioctl::blkzeroout(disk.as_fd().as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// `BLKDISCARD`
pub(crate) fn discard(disk: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the kernel reads two u64 from the pointer, which is valid for the call.
    unsafe { ioctl::blkdiscard(disk.as_fd().as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// `BLKPG_ADD_PARTITION`: the device node exists when this returns (devtmpfs makes it within the call).
pub(crate) fn add_partition(disk: impl AsFd, partition: KernelPartition) -> io::Result<()> {
    blkpg(disk, BLKPG_ADD_PARTITION, partition)
}

/// `BLKPG_DEL_PARTITION`; `EBUSY` while somebody has it open.
pub(crate) fn delete_partition(disk: impl AsFd, number: u32) -> io::Result<()> {
    blkpg(disk, BLKPG_DEL_PARTITION, KernelPartition { number, start_bytes: 0, length_bytes: 0 })
}

/// Enough for every controller in the field; O_DIRECT asks for the logical block at least.
const ALIGNMENT: usize = 4096;

/// Memory that a drive can be read to and written from without a copy in between.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    room: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub(crate) fn new(length: usize) -> Self {
        let mut aligned = Self::default();
        aligned.resize(length);
        aligned
    }

    /// What is in it is of no meaning afterwards.
    pub(crate) fn resize(&mut self, length: usize) {
        if self.room.len() < length + ALIGNMENT {
            self.room = vec![0; length + ALIGNMENT];
            self.start = self.room.as_ptr().align_offset(ALIGNMENT);
        }
        self.length = length;
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.room.get(self.start..self.start + self.length).unwrap_or_default()
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.room.get_mut(self.start..self.start + self.length).unwrap_or_default()
    }
}

/// The same device once more, past every cache.
pub(crate) fn direct(device: &File, write: bool) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", device.as_raw_fd());
    File::options().read(true).write(write).custom_flags(libc::O_DIRECT).open(path)
}

/// Reads past every cache, from the medium itself. `offset` and `length` are multiples of the logical block.
pub(crate) fn read_direct(device: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut room = Aligned::new(length);
    direct(device, false)?.read_exact_at(&mut room, offset)?;
    Ok(room.to_vec())
}

fn blkpg(disk: impl AsFd, op: c_int, partition: KernelPartition) -> io::Result<()> {
    let signed = |n: u64| c_longlong::try_from(n).map_err(io::Error::other);
    let mut data = ioctl::BlkpgPartition {
        start: signed(partition.start_bytes)?,
        length: signed(partition.length_bytes)?,
        pno: c_int::try_from(partition.number).map_err(io::Error::other)?,
        devname: [0 as c_char; 64],
        volname: [0 as c_char; 64],
    };
    let argument = ioctl::BlkpgArgument {
        op,
        flags: 0,
        datalen: c_int::try_from(size_of_val(&data)).map_err(io::Error::other)?,
        data: (&raw mut data).cast::<c_void>(),
    };
    // SAFETY: `argument` and the `data` it points to have the layout of linux/blkpg.h and outlive the call.
    unsafe { ioctl::blkpg(disk.as_fd().as_raw_fd(), &raw const argument) }?;
    Ok(())
}

const BLKPG_ADD_PARTITION: c_int = 1;
const BLKPG_DEL_PARTITION: c_int = 2;

/// linux/fs.h and linux/blkpg.h
mod ioctl {
    use std::ffi::{c_char, c_int, c_longlong, c_void};

    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct BlkpgPartition {
        pub(super) start: c_longlong,
        pub(super) length: c_longlong,
        pub(super) pno: c_int,
        pub(super) devname: [c_char; 64],
        pub(super) volname: [c_char; 64],
    }

    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct BlkpgArgument {
        pub(super) op: c_int,
        pub(super) flags: c_int,
        pub(super) datalen: c_int,
        pub(super) data: *mut c_void,
    }

    nix::ioctl_read!(
        /// The header declares it with `size_t`; the kernel writes 64 bits.
        blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkroset, nix::request_code_none!(0x12, 93), c_int);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), BlkpgArgument);
}
