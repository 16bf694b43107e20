//! Small texts that the agent reads: kernel command line, unit files and boot settings of images, headers of answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| drophammer_agent::fuzz::words(text));
