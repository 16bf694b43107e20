//! What the agent's DHCP client is sent, and when. What it sends, our server understands.
#![no_main]

use drophammer_pxe_server::dhcp::request::{Loader, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drophammer_agent::fuzz::dhcp(bytes, |sent| {
    let request = Request::parse(sent).expect("a request");
    assert_eq!(request.loader, Loader::Agent);
    assert!((300..=576).contains(&sent.len()));
}));
