//! From Debian packages to an image that a server may run.
//!
//! ```text
//! recipe ── build ──▶ rootfs.tar ─┬─ pack ──▶ <store>/<name>/<version>/manifest.json, <store>/packs/…
//!               an OCI layout ─────┤                                     └── verify, list
//! somebody's image ── import ──────┘
//! ```
//!
//! [`build`] makes a root file system from packages that apt has checked against Debian's keys, without root where the
//! host allows it. [`pack`] compiles any tar of a root file system, once, into what machines install: a file system to be
//! written as it is, the tar itself, both in chunks that can be checked one by one, and one signature over what they are. [`verify`] repeats every check that a machine makes, and
//! those it can't make before it has written the disk. Where Debian's packages come from is [`debian`]'s matter.

mod bake;
mod cache;
mod chunks;
mod command;
pub mod debian;
mod ext4;
mod from_packages;
#[cfg(fuzzing)]
pub mod fuzz;
mod grub;
mod import;
mod input;
mod keys;
mod mmdebstrap;
mod modules;
mod oci;
mod pack;
mod recipe;
mod rootfs;
mod sbom;
mod scan;
mod store;
mod verify;
mod zeros;

pub use bake::{BuildOptions, Built, build};
pub use cache::cache_dir;
pub use import::{Hash, Import, Origin, Stage, import};
pub use keys::{keygen, load_key, load_public};
pub use pack::{Forms, PackOptions, Packed, Progress, pack};
pub use recipe::Recipe;
pub use store::{Stored, list};
pub use verify::{Problem, inspect, verify};
