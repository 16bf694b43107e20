//! Drives that no emulator has: honest ones that know every erase command, and one for every way to lie about it.
//!
//! They behave as the standards say, take only what they claim (anything else is a bug of ours, and panics), and keep
//! their own time: it passes when somebody waits.

pub(crate) mod ata;
mod body;
pub(crate) mod medium;
pub(crate) mod nvme;
pub(crate) mod opal;
pub(crate) mod scsi;

pub(crate) use body::{Body, SIZE, State};
