//! Virtual servers with real firmware on a private network: for the demo, for the tests, and to play with.
//!
//! ```text
//!            network namespace, ours alone (net)
//!   ┌────────────────────────────────────────────────┐
//!   │  drophammer serve ── br0 ── tap0 ── QEMU  m1   │   SeaBIOS or OVMF, NVMe drives, serial console (qemu, vm)
//!   │     (server)          └──── tap1 ── QEMU  m2   │
//!   └────────────────────────────────────────────────┘
//!      ▲ api.sock: operators    ▲ lab.sock: power hook, `drophammer lab …` (socket)
//! ```
//!
//! [`lab::Lab`] is all of it as one value, which tests hold and drop; [`up`] the same in the background. [`kit`] makes
//! what it boots, [`setup`] gets what it needs from the host. Faults are methods: power cuts, a pulled cable, lost
//! packets, bytes changed on a drive, a killed server; and drives that can't or won't erase, or that lose writes
//! ([`qemu::DiskKind`]). [`bench`] runs the boot server beside other people's, and says how fast each is; [`fuzz`] looks for
//! bytes that no parser expects. [`simulate`] has thousands of agents in one process talk to a real server.

pub mod accel;
pub mod bench;
pub mod console;
pub mod demo;
pub mod etcd;
pub mod frailty;
pub mod fuzz;
pub mod kit;
pub mod lab;
mod live;
pub mod nbd;
pub mod net;
pub mod package;
mod process;
pub mod qemu;
mod qmp;
pub mod rescue;
pub mod server;
pub mod setup;
pub mod simulate;
pub mod slots;
pub mod socket;
pub mod timeline;
pub mod tools;
pub mod up;
pub mod verify;
pub mod vm;

pub(crate) const QEMU: &str = "qemu-system-x86_64";
