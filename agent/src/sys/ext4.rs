//! A mounted ext4 that grows to its device's size and gets a name of its own, as a file system that came as an image needs.
//!
//! Everything here works on an open directory or file of the mounted file system; its root is as good as any. What the
//! kernel refuses comes back as a sentence, with its error number as the source.
//!
//! Naming: the UUID by `EXT4_IOC_SETFSUUID` (Linux 6.0), which wants a file system whose checksums don't hang on the UUID
//! (`metadata_csum_seed`); the label by `FS_IOC_SETFSLABEL` (Linux 5.17).

#![allow(unsafe_code)]

use std::ffi::c_char;
use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use uuid::Uuid;

/// The longest label that ext4 has room for, in bytes.
pub(crate) const LABEL_BYTES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Ext4Error {
    #[error("{doing}: {why}")]
    Kernel { doing: String, why: &'static str, source: Errno },
    #[error("{doing}")]
    Other { doing: String, source: Errno },
    #[error("an ext4 can't have the label {0:?}: at most {LABEL_BYTES} bytes, none of them NUL")]
    Label(String),
    #[error("the ext4 says that it has the UUID {found} after it was given {wanted}")]
    Unchanged { wanted: Uuid, found: Uuid },
}

/// The unit in which [`grow`] counts.
pub(crate) fn block_bytes(mounted: impl AsFd) -> Result<u64, Ext4Error> {
    let about = nix::sys::statfs::fstatfs(mounted)
        .map_err(|source| Ext4Error::Other { doing: "asking a file system for its block size".into(), source })?;
    if about.filesystem_type() != nix::sys::statfs::EXT4_SUPER_MAGIC {
        return Err(refusal("asking a file system for its block size".into(), Errno::ENOTTY));
    }
    let odd = || Ext4Error::Other { doing: "asking an ext4 for its block size".into(), source: Errno::EOVERFLOW };
    u64::try_from(about.block_size()).map_err(|_| odd())
}

/// Grows to `blocks` blocks, while mounted; as many as it has already is no error. Returns when the kernel has added the
/// last group; nothing needs to be synced for the file system to be whole after a crash, the journal sees to that.
pub(crate) fn grow(mounted: impl AsFd, blocks: u64) -> Result<(), Ext4Error> {
    // SAFETY: the kernel reads one u64 from the pointer, which is valid for the call.
    let grown = unsafe { ioctl::resize(mounted.as_fd().as_raw_fd(), &raw const blocks) };
    let doing = || format!("growing the ext4 to {blocks} blocks");
    grown.map(drop).map_err(|errno| match errno {
        Errno::EPERM => Ext4Error::Kernel {
            doing: doing(),
            why: "the kernel lets only who has CAP_SYS_RESOURCE do it, and only to a file system without recorded errors: \
                  check it with e2fsck",
            source: errno,
        },
        Errno::EINVAL => Ext4Error::Kernel {
            doing: doing(),
            why: "it has more already, and can't shrink while it is mounted",
            source: errno,
        },
        Errno::ENOSPC => {
            Ext4Error::Kernel { doing: doing(), why: "the device under it ends before that", source: errno }
        }
        Errno::EOPNOTSUPP => Ext4Error::Kernel {
            doing: doing(),
            why: "it is no ext4 that the running kernel can grow: sparse_super2, for one, excludes it",
            source: errno,
        },
        _ => refusal(doing(), errno),
    })
}

/// `EXT4_IOC_GETFSUUID`
pub(crate) fn uuid(mounted: impl AsFd) -> Result<Uuid, Ext4Error> {
    let mut answer = ioctl::FsUuid { length: 16, flags: 0, uuid: [0; 16] };
    // SAFETY: the kernel reads the two words and then writes the sixteen bytes that they announce; all of them are in
    // `answer`, which outlives the call.
    unsafe { ioctl::get_uuid(mounted.as_fd().as_raw_fd(), &raw mut answer) }
        .map_err(|errno| refusal("asking the ext4 for its UUID".into(), errno))?;
    Ok(Uuid::from_bytes(answer.uuid))
}

/// Gives it another UUID and asks whether it has it.
pub(crate) fn set_uuid(mounted: impl AsFd, wanted: Uuid) -> Result<(), Ext4Error> {
    let request = ioctl::FsUuid { length: 16, flags: 0, uuid: wanted.into_bytes() };
    // SAFETY: the kernel reads the two words and the sixteen bytes that they announce from `request`, which outlives the
    // call.
    let set = unsafe { ioctl::set_uuid(mounted.as_fd().as_raw_fd(), &raw const request) };
    let doing = || format!("giving the ext4 the UUID {wanted}");
    set.map_err(|errno| match errno {
        Errno::EOPNOTSUPP => Ext4Error::Kernel {
            doing: doing(),
            why: "its checksums depend on the UUID that it has: it needs the feature metadata_csum_seed, and must not have \
                  stable_inodes",
            source: errno,
        },
        _ => refusal(doing(), errno),
    })?;
    let found = uuid(mounted)?;
    if found == wanted { Ok(()) } else { Err(Ext4Error::Unchanged { wanted, found }) }
}

/// `FS_IOC_SETFSLABEL`; an empty label takes it away.
pub(crate) fn set_label(mounted: impl AsFd, label: &str) -> Result<(), Ext4Error> {
    if label.len() > LABEL_BYTES || label.contains('\0') {
        return Err(Ext4Error::Label(label.to_owned()));
    }
    let mut field = [0 as c_char; ioctl::FSLABEL_MAX];
    for (to, from) in field.iter_mut().zip(label.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // SAFETY: the kernel reads FSLABEL_MAX bytes from the pointer, which is valid for the call; the last one is NUL.
    let set = unsafe { ioctl::set_label(mounted.as_fd().as_raw_fd(), &raw const field) };
    set.map(drop).map_err(|errno| refusal(format!("giving the ext4 the label {label:?}"), errno))
}

/// What the same number means whatever was asked.
fn refusal(doing: String, source: Errno) -> Ext4Error {
    let why = match source {
        Errno::ENOTTY => "it is no ext4, or the running kernel is too old to do that to a mounted one (Linux 6.0 can)",
        Errno::EOPNOTSUPP => "it is no ext4 that the running kernel can do that to while it is mounted",
        Errno::EPERM => "only root may do that",
        Errno::EBUSY => "it is being resized or renamed by somebody else: try again when that is over",
        Errno::EROFS => "it is mounted read-only",
        _ => return Ext4Error::Other { doing, source },
    };
    Ext4Error::Kernel { doing, why, source }
}

/// linux/ext4.h (in the kernel's own tree fs/ext4/ext4.h until 6.5) and linux/fs.h
mod ioctl {
    use std::ffi::c_char;

    pub(super) const FSLABEL_MAX: usize = 256;

    /// `struct fsuuid`, whose array is as long as it says: here always that of a UUID.
    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct FsUuid {
        pub(super) length: u32,
        pub(super) flags: u32,
        pub(super) uuid: [u8; 16],
    }

    /// What the requests' numbers are made with: the array doesn't count.
    const HEADER_BYTES: usize = 8;
    const _: () = assert!(std::mem::offset_of!(FsUuid, uuid) == HEADER_BYTES);

    nix::ioctl_write_ptr!(
        /// `EXT4_IOC_RESIZE_FS`
        resize, b'f', 16, u64);
    nix::ioctl_read_bad!(get_uuid, nix::request_code_read!(b'f', 44, HEADER_BYTES), FsUuid);
    nix::ioctl_write_ptr_bad!(set_uuid, nix::request_code_write!(b'f', 44, HEADER_BYTES), FsUuid);
    nix::ioctl_write_ptr!(set_label, 0x94, 50, [c_char; FSLABEL_MAX]);
}

/// What the kernel does to an ext4 can't be tried in an ordinary test: it takes a mount and CAP_SYS_RESOURCE. The end-to-end
/// tests do it in a virtual machine.
#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::fs::File;

    use super::*;

    #[test]
    fn another_file_system_is_refused_in_words() {
        let other = File::open("/proc").expect("/proc is there");
        let id = Uuid::from_u128(0x0102_0304_0506_4708_890a_0b0c_0d0e_0f10);
        for (name, result, doing) in [
            ("grow", grow(&other, 1 << 20), "growing the ext4 to 1048576 blocks: it is no ext4"),
            ("read", uuid(&other).map(drop), "asking the ext4 for its UUID: it is no ext4"),
            ("rename", set_uuid(&other, id), "giving the ext4 the UUID 01020304-0506-4708-890a-0b0c0d0e0f10: it is no"),
            ("label", set_label(&other, "root"), "giving the ext4 the label \"root\": it is no ext4"),
            ("unit", block_bytes(&other).map(drop), "asking a file system for its block size: it is no ext4"),
        ] {
            let error = result.expect_err(name);
            assert!(error.to_string().starts_with(doing), "{name}: {error}");
            assert_eq!(error.source().map(ToString::to_string), Some(Errno::ENOTTY.to_string()), "{name}");
        }
    }

    #[test]
    fn a_label_that_would_be_cut_is_refused() {
        let other = File::open("/proc").expect("/proc is there");
        for (name, label, refused) in [
            ("longest", "sixteen bytes ok", false),
            ("too long", "seventeen bytes !", true),
            ("too long in bytes", "ääääääääa", true),
            ("cut by NUL", "a\0b", true),
            ("none", "", false),
        ] {
            let error = set_label(&other, label).expect_err(name);
            assert_eq!(matches!(error, Ext4Error::Label(_)), refused, "{name}: {error}");
        }
    }
}
