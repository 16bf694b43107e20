//! TFTP for the one thing that needs it: firmware that fetches iPXE. Writing is refused.
//!
//! | step | file | |
//! |---|---|---|
//! | bytes → [`packet::Packet`] | [`packet`] | pure |
//! | what can be asked for | [`files`] | pure, once loaded |
//! | who may have a transfer, and whose time has come | [`table`] | pure |
//! | one transfer: datagram or time → what to send, or its end | [`transfer`] | pure |
//! | its end → words | [`report`] | pure |
//! | sockets | [`serve`], [`wire`] | |
//!
//! RFC 1350 with the options of RFC 2347, 2348 (blksize), 2349 (tsize, timeout) and 7440 (windowsize).

pub mod files;
mod pace;
pub mod packet;
pub mod report;
pub mod serve;
pub mod table;
pub mod transfer;
mod wire;

pub use self::files::Files;
