//! DHCPv4: as a network's own server (RFC 2131), behind relays (RFC 3046), or beside another server (ProxyDHCP).
//!
//! | step | file | |
//! |---|---|---|
//! | bytes → [`request::Request`] | [`request`], [`relay`] | pure |
//! | which network it is of | [`network`] | pure |
//! | request, network, leases, time → [`decide::Decision`] | [`decide`], [`proxy`], [`leases`], [`boot`] | pure |
//! | whether a new address is in use | `probe` | |
//! | lease changes to disk, before any answer that promises them | `saving`, [`store`] | |
//! | sockets | [`serve`], `wire` | |
//! | other servers on our wires | `others` | |
//! | what people hear of it | `report` | |
//!
//! A client is its Ethernet address. RFC 2131 would have the client identifier (option 61) come first, but firmware,
//! iPXE and the system that is booted each send another one, and a machine that changes its address at every step of its
//! boot helps nobody. Reservations may go by any of the three, and by a switch's port.

pub mod boot;
pub mod decide;
pub mod leases;
pub mod network;
pub(crate) mod others;
mod probe;
pub mod proxy;
pub mod relay;
mod report;
pub mod request;
mod saving;
pub mod serve;
pub mod store;
mod wire;

#[cfg(fuzzing)]
pub(crate) use self::{others::fuzz as fuzz_others, probe::fuzz as fuzz_probe};
