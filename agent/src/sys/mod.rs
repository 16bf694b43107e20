//! Every system call that needs `unsafe`, one file per part of the kernel. Nothing here decides anything.

pub(crate) mod block;
pub(crate) mod confine;
pub(crate) mod dm;
pub(crate) mod ethtool;
pub(crate) mod ext4;
pub(crate) mod files;
pub(crate) mod holders;
pub(crate) mod kexec;
pub(crate) mod linux;
pub(crate) mod md;
pub(crate) mod nvme;
pub(crate) mod sg;
