//! DHCPv4 as the boot network's own server (RFC 2131).
//!
//! | step | file | |
//! |---|---|---|
//! | bytes → [`request::Request`] | [`request`] | pure |
//! | request, policy, leases, time → [`decide::Decision`] | [`decide`], [`leases`], [`boot`] | pure |
//! | lease changes to disk, before any answer that promises them | [`store`] | |
//! | sockets | [`serve`], [`wire`] | |
//!
//! A client is its Ethernet address. RFC 2131 would have the client identifier (option 61) come first, but firmware,
//! iPXE and the system that is booted each send another one, and a machine that changes its address at every step of its
//! boot helps nobody.

pub mod boot;
pub mod decide;
pub mod leases;
pub mod request;
pub mod serve;
pub mod store;
mod wire;
