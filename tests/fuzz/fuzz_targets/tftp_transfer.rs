//! A whole transfer: the request, then datagrams that come after some time each, then silence.
#![no_main]

use std::time::{Duration, Instant};

use drophammer_pxe_server::tftp::packet::{Options, Packet, data_head, parse};
use drophammer_pxe_server::tftp::transfer::{Action, MOST_WINDOW, Outgoing, Transfer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [blocks, path, length, rest @ ..] = bytes else { return };
    let (request, mut rest) = rest.split_at(usize::from(*length).min(rest.len()));
    let options = match parse(request) {
        Some(Packet::Read(request)) => request.options,
        _ => Options::default(),
    };
    let file: Vec<u8> = (0..usize::from(*blocks) * 100).map(|at| (at % 251) as u8).collect();
    let mut now = Instant::now();
    let mut transfer = Transfer::new(file.clone().into(), &options, u16::from(*path) * 8, now);
    let first = transfer.answer(now);
    check(&transfer, &first, &file);
    // How long nothing comes, how much comes then, and that.
    while let [wait, length, more @ ..] = rest {
        let (datagram, after) = more.split_at(usize::from(*length % 16).min(more.len()));
        rest = after;
        now += Duration::from_millis(1 << (wait % 16));
        let woken = transfer.wake(now);
        if check(&transfer, &woken, &file) {
            return;
        }
        let before = (transfer.answered(), transfer.acknowledged_bytes());
        let action = transfer.receive(datagram, now);
        if check(&transfer, &action, &file) {
            return;
        }
        // The sorcerer's apprentice: what says nothing new is not answered.
        let news = before != (transfer.answered(), transfer.acknowledged_bytes());
        assert!(news || action == Action::Nothing, "{action:?} for {datagram:?}");
        assert!(before.1 <= transfer.acknowledged_bytes() && transfer.acknowledged_bytes() <= transfer.total_bytes());
    }
    for _ in 0..100 {
        now = now.max(transfer.due());
        let action = transfer.wake(now);
        assert_ne!(action, Action::Nothing, "woken for nothing");
        if check(&transfer, &action, &file) {
            return;
        }
        assert!(transfer.due() > now, "it would spin");
    }
    panic!("a silent client is sent to for ever");
});

/// That what is to be sent is a bounded part of the file as it is. Whether it's the end.
fn check(transfer: &Transfer, action: &Action, file: &[u8]) -> bool {
    let (packet, window) = transfer.burst();
    let size = usize::from(packet - 4);
    if let Action::Send(Outgoing::Blocks(blocks)) = action {
        assert!(
            !blocks.is_empty() && blocks.end - blocks.start <= window && window <= MOST_WINDOW.into(),
            "{blocks:?}"
        );
        for block in blocks.clone() {
            let from = (block as usize - 1) * size;
            let want = &file[from..(from + size).min(file.len())];
            assert_eq!(transfer.block(block), (data_head(block as u16), want));
        }
    }
    matches!(action, Action::End(_))
}
