//! What lies between partitions and file systems.

pub(crate) mod luks;
