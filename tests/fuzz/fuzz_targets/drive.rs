//! The pages in which drives say who they are, how big, and how well, and what lies on them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|page: &[u8]| drophammer_agent::fuzz::drive(page));
