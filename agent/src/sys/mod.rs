//! Every system call that needs `unsafe`, one file per part of the kernel. Nothing here decides anything.

pub(crate) mod block;
pub(crate) mod confine;
pub(crate) mod ethtool;
pub(crate) mod holders;
pub(crate) mod kexec;
pub(crate) mod linux;
pub(crate) mod nvme;
pub(crate) mod sg;
