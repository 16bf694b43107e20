//! What lies between partitions and file systems: arrays of the md driver, LVM, and encrypted volumes.
//!
//! All are made without the tools that usually do it. A description becomes a plan, which has every byte that will be
//! written to every member, or a sentence about why it doesn't fit. Carrying a plan out destroys what the members hold;
//! what was there before is found by [`md::find`] and [`lvm::find`], which write nothing.

mod device;
pub(crate) mod luks;
pub(crate) mod lvm;
pub(crate) mod md;

pub(crate) use device::Member;

/// What the members of a mirror hold when it's made.
///
/// A mirror must not say that its copies are the same if they aren't. `mdadm --assume-clean` and `lvcreate --nosync` do, and
/// it's harmless as long as everybody only reads what they wrote; but then every later check of the array finds mismatches,
/// and nobody can tell them from those of a drive that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Every block reads the same on all of them: whoever erased them has read back zeros. Nothing needs copying.
    Same,
    /// Anything. The kernel copies the first member to the others, which the installed system does in the background: while
    /// an image is written, the drives have better things to do. Until a region is copied it's read from the first member
    /// alone, so nobody ever sees a difference.
    Unknown,
}

/// Whatever lies on a device, and superblocks, labels and metadata by themselves.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    md::fuzz(bytes);
    lvm::fuzz(bytes);
}
