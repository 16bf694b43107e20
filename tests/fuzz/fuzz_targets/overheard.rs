//! Packets off the wire that nobody sent to us: other servers' answers, ARP, answers to pings, IPv6 hosts that look for a router.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| drophammer_pxe_server::fuzz::overheard(packet));
