//! A datagram to port 69.
#![no_main]

use drophammer_pxe_server::tftp::packet::{ErrorCode, Packet, error, oack, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| match parse(datagram) {
    Some(Packet::Read(request)) => {
        assert!(!request.name.contains(&0));
        // What is acknowledged reads as what was asked.
        let agreed = oack(&request.options).unwrap_or_default();
        let again = [b"\0\x01x\0octet\0", agreed.get(2..).unwrap_or_default()].concat();
        let Some(Packet::Read(again)) = parse(&again) else { panic!("{again:?}") };
        assert_eq!(again.options, request.options);
    }
    Some(Packet::Error { message, .. }) => {
        let again = error(ErrorCode::Other, &message);
        assert_eq!(parse(&again), Some(Packet::Error { code: 0, message }));
    }
    _ => {}
});
