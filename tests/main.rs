//! End to end: each file holds the product to one promise, with real firmware, disks and clients in the lab. They are one
//! program, so that a machine that waits doesn't keep the next one waiting.

mod common;

mod by_hand;
mod command_line;
mod crash_only;
mod drills;
mod erase_cannot_lie;
mod failures_in_words;
mod firmware;
mod installed_system;
mod kept_drives;
mod machines_boot_alone;
mod metal_stack;
mod nothing_secret;
mod nothing_unverified;
mod road;
mod secure_boot;
mod simulation;
mod tenant_keeps_its_data;
