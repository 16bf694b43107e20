//! From Debian packages to an image that a server may run, and back out of its reach.
//!
//! ```text
//! recipe ── build ──▶ rootfs.tar ─┬─ pack ──▶ <store>/<name>/<version>/manifest.json, <store>/packs/…
//!  an OCI layout, a raw disk ──────┤                  └── verify, list, diff, sign, gc
//! somebody's image ── import ──────┘
//!            store ── publish ──▶ directory or bucket ── mirror ──▶ a boot server's directory
//!                                     └── revoke
//! ```
//!
//! [`build`] makes a root file system from packages that apt has checked against Debian's keys, without root where the
//! host allows it. [`pack`] compiles any tar of a root file system, once, into what machines install: a file system to be
//! written as it is, the tar itself, both in chunks that can be checked one by one, and one signature over what they are.
//! Container images and images of disks are read as the tars that they stand for.
//! [`verify`] repeats every check that a machine makes, and those it can't make before it has written the disk.
//! [`publish()`] and [`mirror()`] bring an image from one [`Place`] to another, so that whoever reads sees all of it or
//! nothing; [`revoke()`] takes it back. Where Debian's packages come from is [`debian`]'s matter.

mod bake;
mod cache;
mod chunks;
mod command;
pub mod debian;
mod diff;
mod disk;
mod ext4;
mod from_packages;
#[cfg(fuzzing)]
pub mod fuzz;
mod gc;
mod grub;
mod import;
mod input;
mod keys;
mod list;
mod mirror;
mod mmdebstrap;
mod modules;
mod oci;
mod pack;
mod place;
mod publish;
mod recipe;
mod resign;
mod revoke;
mod rootfs;
mod sbom;
mod scan;
#[cfg(test)]
mod servers;
mod several;
mod store;
mod tar_header;
mod verify;
mod window;
mod zeros;

pub use bake::{BuildOptions, Built, build};
pub use cache::cache_dir;
pub use diff::{Change, Chunks, Diff, Package, Packages, diff};
pub use gc::{Garbage, Kind, Sweep, gc};
pub use import::{Hash, Import, Origin, Stage, import};
pub use keys::{keygen, load_key, load_public};
pub use list::{Stored, list};
pub use mirror::{Copied, Listener, Mirrored, mirror};
pub use pack::{Forms, PackOptions, Packed, Progress, pack};
pub use place::{Files, Place, S3Options, split_image};
pub use publish::{Published, publish};
pub use recipe::Recipe;
pub use resign::sign;
pub use revoke::{revocations, revoke, revoked};
pub use store::Outcome;
pub use verify::{Problem, inspect, verify};
