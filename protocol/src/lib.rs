//! What agent, server and tools must agree on.
//!
//! Plain serde data and the checks that make it trustworthy; no sockets, files or clocks. The four arrows between a
//! machine and its server each have a file here:
//!
//! | arrow | file |
//! |---|---|
//! | server → machine, before any trust: CA, keys, one-time token | [`ticket`] |
//! | machine → server: what it is and what happens on it | [`inventory`], [`event`], [`sight`] |
//! | server → machine: what to do | [`order`], [`erase`], [`system`], [`layout`] |
//! | machine → server: proof of what was done | [`certificate`], [`chain`], [`order::Outcome`] |
//!
//! What machines do goes through a boot server; one that runs alone speaks for them as [`boot_server`] says.
//!
//! [`provisioning`] is the road in metal-stack's words. [`resource`] is what operators declare: sizes, partitions, projects and the like; [`hardware`] what sizes go by.
//!
//! [`manifest`] is what an image builder signs, [`revocation`] what takes it back, [`sign`] the one envelope that everything
//! signed travels in, and [`api`] the paths and bodies of both HTTP interfaces (agents and operators). The rest is what two rooms would otherwise each
//! have of their own: how much of a disk an install takes ([`space`]), what a system calls itself ([`os_release`]), how
//! a number reads ([`words`]), how what is wrong is listed ([`faults`]), what a pattern matches ([`glob`]), what part of a file
//! is sent ([`content_range`]), and how the tar of a root file system is read ([`archive`]).

pub mod api;
pub mod archive;
pub mod boot_server;
pub mod certificate;
pub mod chain;
pub mod content_range;
pub mod erase;
pub mod event;
pub mod faults;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod glob;
pub mod hardware;
pub mod id;
pub mod inventory;
pub mod layout;
pub mod machine;
pub mod manifest;
pub mod order;
pub mod os_release;
pub mod provisioning;
pub mod resource;
pub mod revocation;
#[cfg(feature = "schema")]
mod schema;
pub mod sight;
pub mod sign;
pub mod space;
pub mod system;
pub mod ticket;
pub mod words;
