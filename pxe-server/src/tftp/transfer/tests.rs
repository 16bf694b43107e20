use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::super::packet::ErrorCode;
use super::super::packet::tests::{ack, read};
use super::*;

fn file(length: usize) -> Bytes {
    (0..length).map(|i| u8::try_from(i * 7 % 251).expect("a byte")).collect()
}

/// A transfer, its first packet sent at 0 ms, and the time in milliseconds.
struct Script {
    transfer: Transfer,
    start: Instant,
}

impl Script {
    fn new(length: usize, options: Options) -> Self {
        let start = Instant::now();
        let mut transfer = Transfer::new(file(length), &options, MOST_BLOCK_SIZE, start);
        assert_ne!(transfer.answer(start), Action::Nothing);
        Self { transfer, start }
    }

    /// With its options acknowledged at once.
    fn accepted(length: usize, options: Options) -> Self {
        let mut script = Self::new(length, options);
        assert_ne!(script.ack(0, 0), Action::Nothing);
        script
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn ack(&mut self, ms: u64, block: u16) -> Action {
        self.transfer.receive(&ack(block), self.at(ms))
    }

    fn wake(&mut self, ms: u64) -> Action {
        self.transfer.wake(self.at(ms))
    }

    fn due(&self) -> u128 {
        self.transfer.due().duration_since(self.start).as_millis()
    }
}

fn sends(first: u64, last: u64) -> Action {
    Action::Send(Outgoing::Blocks(first..last + 1))
}

const PLAIN: Options = Options { block_size: None, transfer_size: None, timeout: None, window: None };

fn window(window: u16) -> Options {
    Options { window: Some(window), ..PLAIN }
}

#[test]
fn options_are_agreed_on() {
    for (name, asked, path, want) in [
        ("none", PLAIN, 1468, ""),
        (
            "iPXE's",
            Options { block_size: Some(1432), transfer_size: Some(0), ..PLAIN },
            1468,
            "blksize 1432 tsize 3000 ",
        ),
        ("more than fits a frame", Options { block_size: Some(65464), ..PLAIN }, 65464, "blksize 1468 "),
        ("more than fits the path", Options { block_size: Some(1468), ..PLAIN }, 1400, "blksize 1400 "),
        ("a path that nothing fits", Options { block_size: Some(1468), ..PLAIN }, 0, "blksize 8 "),
        ("a huge window", window(65535), 1468, "windowsize 64 "),
        ("a timeout", Options { timeout: Some(255), ..PLAIN }, 1468, "timeout 255 "),
    ] {
        let transfer = Transfer::new(file(3000), &asked, path, Instant::now());
        let text = String::from_utf8_lossy(transfer.oack().get(2..).unwrap_or_default()).replace('\0', " ");
        assert_eq!(text, want, "{name}");
    }
}

#[test]
fn lock_step_sends_each_block_once_whatever_is_acknowledged_again() {
    let mut script = Script::new(1024, Options { transfer_size: Some(0), ..PLAIN });
    for (name, ms, block, want) in [
        ("not asked for", 1, 1, Action::Nothing),
        ("the options", 2, 0, sends(1, 1)),
        ("the options again", 2, 0, Action::Nothing),
        ("the first", 3, 1, sends(2, 2)),
        ("the first again", 3, 1, Action::Nothing),
        ("before the first", 4, 0, Action::Nothing),
        ("never sent", 4, 3, Action::Nothing),
        ("from far away", 4, 40_000, Action::Nothing),
        ("the second: full, so there is one more", 5, 2, sends(3, 3)),
        ("the last", 6, 3, Action::End(End::Complete)),
    ] {
        assert_eq!(script.ack(ms, block), want, "{name}");
    }
    assert_eq!(script.transfer.block(2).1.len(), 512);
    assert_eq!(script.transfer.block(3).1.len(), 0);
}

#[test]
fn what_is_not_acknowledged_is_sent_again_ever_more_rarely() {
    let mut script = Script::new(1000, PLAIN);
    assert_eq!(script.wake(999), Action::Nothing);
    for (ms, want) in [(1000, sends(1, 1)), (5000, sends(1, 1)), (13_000, sends(1, 1))] {
        assert_eq!(script.due(), u128::from(ms));
        assert_eq!(script.wake(ms), want, "after {ms} ms");
    }
    assert_eq!(script.wake(21_000), Action::End(End::Unanswered(First::Block)));
}

#[test]
fn the_timer_learns_from_answers() {
    for (name, options, answer_ms, want) in [
        ("a quick client", window(1), 1, 1 + 20),
        ("one that takes its time", window(1), 100, 100 + 300),
        ("a very slow one", window(1), 900, 900 + 1000),
        ("one that says what it wants", Options { timeout: Some(3), ..window(1) }, 1, 1 + 3000),
    ] {
        let mut script = Script::new(5000, options);
        script.ack(answer_ms, 0);
        assert_eq!(script.due(), want, "{name}");
    }
}

#[test]
fn a_client_with_a_timeout_of_its_own_is_given_some_of_them() {
    let mut script = Script::new(5000, Options { timeout: Some(30), ..PLAIN });
    for ms in [30_000, 60_000] {
        assert_eq!(script.wake(ms), Action::Send(Outgoing::Oack), "after {ms} ms");
    }
    assert_eq!(script.wake(90_000), Action::End(End::Unanswered(First::Oack)));
}

#[test]
fn a_repeated_request_gets_the_first_answer_again_and_only_that() {
    let mut script = Script::new(1000, window(4));
    assert_eq!(script.transfer.answer(script.at(500)), Action::Send(Outgoing::Oack));
    script.ack(600, 0);
    assert_eq!(script.transfer.answer(script.at(700)), Action::Nothing);
    let mut script = Script::new(1000, PLAIN);
    assert_eq!(script.transfer.answer(script.at(500)), sends(1, 1));
}

#[test]
fn windows_go_on_from_where_the_client_is() {
    let mut script = Script::accepted(512 * 100, window(8));
    for (name, ms, block, want) in [
        ("all of a window", 1, 8, sends(9, 16)),
        ("all of a window, once more", 1, 8, Action::Nothing),
        ("block 12 was lost", 2, 11, sends(12, 19)),
        ("each of 13 to 16 makes the client say so", 2, 11, Action::Nothing),
        ("12 came late: no reason to send 13 to 19 once more", 2, 12, sends(20, 20)),
        ("the rest of those and 20 came", 3, 20, sends(21, 28)),
        ("block 22 was lost: what was in flight before is acknowledged", 4, 21, sends(22, 29)),
    ] {
        assert_eq!(script.ack(ms, block), want, "{name}");
    }
    assert_eq!(script.wake(100), sends(22, 29), "the whole window, by the timer");
    assert_eq!(script.ack(101, 25), sends(30, 33), "an answer to the first copy");
}

#[test]
fn block_numbers_roll_over() {
    let blocks = 70_000;
    let mut script = Script::accepted(512 * blocks + 1, window(64));
    let mut acked = 0;
    while acked < blocks as u64 {
        acked = (acked + 64).min(blocks as u64 + 1);
        let action = script.ack(1, number(acked));
        assert!(matches!(action, Action::Send(_) | Action::End(End::Complete)), "block {acked}: {action:?}");
    }
    assert_eq!(script.ack(1, number(acked)), Action::Nothing);
    assert_eq!(script.transfer.block(65_536).0, [0, 3, 0, 0]);
    assert_eq!(script.transfer.block(65_537).0, [0, 3, 0, 1]);
}

#[test]
fn ends_are_told_apart() {
    let error = packet::error(ErrorCode::Declined, "no");
    let said = |code, message: &str| End::Aborted { code, message: message.into() };
    // 1100 bytes are three blocks.
    for (name, options, acks, silence, hung_up, error_) in [
        ("nothing acknowledged", PLAIN, 0..0, End::Unanswered(First::Block), End::Declined, said(8, "no")),
        ("options not acknowledged", window(1), 0..0, End::Unanswered(First::Oack), End::Declined, End::Declined),
        ("only options acknowledged", window(1), 0..1, End::Unanswered(First::Block), End::Declined, said(8, "no")),
        ("in the middle", window(1), 0..2, End::Silence, End::Silence, said(8, "no")),
        ("all but the last", window(1), 0..3, End::Unconfirmed, End::Unconfirmed, said(8, "no")),
    ] {
        let mut script = Script::new(1100, options);
        for block in acks {
            script.ack(1, block);
        }
        assert_eq!(script.transfer.hung_up(), hung_up, "{name}: its port is closed");
        let mut ms = 0;
        let end = loop {
            ms += 10;
            if let Action::End(end) = script.wake(ms) {
                break end;
            }
        };
        assert_eq!(end, silence, "{name}: silence");
        assert!((20_000..40_000).contains(&ms), "{name}: given up after {ms} ms");
        assert_eq!(script.transfer.receive(&error, script.at(ms)), Action::End(error_), "{name}: an error");
    }
}

/// What happens to one packet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Arrives,
    IsLost,
    ArrivesTwice,
    /// By so many milliseconds, and so after others that were sent later.
    IsLate(u64),
}

/// A client that acknowledges what it doesn't expect, as UEFI's does, or waits quietly.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Eager,
    Quiet,
}

#[derive(Debug)]
struct Client {
    manner: Manner,
    block_size: usize,
    window: u64,
    got: Vec<u8>,
    blocks: u64,
    acknowledged: u64,
    done: bool,
    /// What it says again when nothing comes.
    last: Vec<u8>,
}

impl Client {
    fn receive(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let (head, body) = packet.split_first_chunk::<4>().expect("a whole packet");
        if head[1] == 6 {
            return (self.blocks == 0).then(|| self.say(0));
        }
        let expected = number(self.blocks + 1).to_be_bytes();
        if self.done || head[2..] != expected {
            return (self.manner == Manner::Eager || self.done).then(|| self.say(self.blocks));
        }
        self.got.extend(body);
        self.blocks += 1;
        self.done = body.len() < self.block_size;
        (self.done || self.blocks - self.acknowledged >= self.window).then(|| self.say(self.blocks))
    }

    fn say(&mut self, block: u64) -> Vec<u8> {
        self.acknowledged = block;
        self.last = ack(number(block));
        self.last.clone()
    }
}

struct Outcome {
    got: Vec<u8>,
    end: End,
    data_packets: u64,
    requests: u64,
    timeouts: u64,
}

/// Arrival, order of sending, whether to the client, packet.
type InFlight = Reverse<(u64, u64, bool, Vec<u8>)>;

/// A whole transfer over a network that does to packets what `fates` say, one after the other, and then behaves.
fn simulate(file: Bytes, options: Options, manner: Manner, fates: &[Fate]) -> Outcome {
    const LATENCY: u64 = 2;
    const CLIENT_TIMEOUT: u64 = 5000;
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut transfer = Transfer::new(file, &options, MOST_BLOCK_SIZE, start);
    let request = read("x", "octet", &[]);
    let mut client = Client {
        manner,
        block_size: transfer.block_size.into(),
        window: transfer.window,
        got: vec![],
        blocks: 0,
        acknowledged: 0,
        done: false,
        last: request.clone(),
    };
    let mut fates = fates.iter().copied();
    let mut network = BinaryHeap::<InFlight>::new();
    let (mut order, mut data_packets, mut requests, mut timeouts) = (0, 0, 1, 0);
    let (mut now, mut client_due) = (0, CLIENT_TIMEOUT);
    let mut post = |network: &mut BinaryHeap<_>, now: u64, to_client: bool, packet: Vec<u8>| {
        let arrivals = match fates.next().unwrap_or(Fate::Arrives) {
            Fate::Arrives => vec![LATENCY],
            Fate::IsLost => vec![],
            Fate::ArrivesTwice => vec![LATENCY, LATENCY],
            Fate::IsLate(ms) => vec![LATENCY + ms],
        };
        for delay in arrivals {
            order += 1;
            network.push(Reverse((now + delay, order, to_client, packet.clone())));
        }
    };
    let mut action = transfer.answer(start);
    loop {
        match action {
            Action::Nothing => {}
            Action::Send(Outgoing::Oack) => post(&mut network, now, true, transfer.oack().to_vec()),
            Action::Send(Outgoing::Blocks(ref blocks)) => {
                for block in blocks.clone() {
                    data_packets += 1;
                    let (head, body) = transfer.block(block);
                    post(&mut network, now, true, [&head, body].concat());
                }
            }
            Action::End(end) => return Outcome { got: client.got, end, data_packets, requests, timeouts },
        }
        let next = network.peek().map_or(u64::MAX, |Reverse((at, ..))| *at);
        let due = transfer.due().duration_since(start).as_nanos().div_ceil(1_000_000);
        let due = u64::try_from(due).expect("soon");
        let client_next = if client.done { u64::MAX } else { client_due };
        now = next.min(due).min(client_next);
        action = match () {
            () if now == next => {
                let Some(Reverse((.., to_client, packet))) = network.pop() else { continue };
                if to_client {
                    client_due = now + CLIENT_TIMEOUT;
                    if let Some(answer) = client.receive(&packet) {
                        post(&mut network, now, false, answer);
                    }
                    Action::Nothing
                } else if packet == request {
                    requests += 1;
                    transfer.answer(at(now))
                } else {
                    transfer.receive(&packet, at(now))
                }
            }
            () if now == due => {
                timeouts += 1;
                transfer.wake(at(now))
            }
            () => {
                client_due = now + CLIENT_TIMEOUT;
                post(&mut network, now, false, client.last.clone());
                Action::Nothing
            }
        };
    }
}

fn terms() -> impl Strategy<Value = Options> {
    let window = prop_oneof![Just(None), prop::option::of(1_u16..=64)];
    (prop::option::of(8_u16..100), window).prop_map(|(block_size, window)| Options { block_size, window, ..PLAIN })
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![Just(Manner::Eager), Just(Manner::Quiet)]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        30 => Just(Fate::Arrives),
        1 => Just(Fate::IsLost),
        1 => Just(Fate::ArrivesTwice),
        1 => (1_u64..30).prop_map(Fate::IsLate),
    ]
}

proptest! {
    #[test]
    fn every_file_arrives_with_bounded_traffic(
        length in 0_usize..6000,
        options in terms(),
        manner in manner(),
        fates in prop::collection::vec(fate(), 0..300),
    ) {
        let file = file(length);
        let outcome = simulate(file.clone(), options, manner, &fates);
        let faults = fates.iter().filter(|fate| **fate != Fate::Arrives).count() as u64;
        // Each attempt needs a fault to fail, so patience outlasts a few of them wherever they hit.
        if outcome.end == End::Complete || faults < 4 {
            prop_assert!(outcome.got == file, "{:?}: {} of {length} bytes", outcome.end, outcome.got.len());
        }
        let blocks = length as u64 / u64::from(options.block_size.unwrap_or(512)) + 1;
        let window = u64::from(options.window.unwrap_or(1));
        let most = blocks + window * (outcome.timeouts + faults + outcome.requests - 1);
        prop_assert!(outcome.data_packets <= most, "{} packets for {blocks} blocks, at most {most}", outcome.data_packets);
    }

    #[test]
    fn in_lock_step_only_the_timer_and_repeated_requests_repeat_a_block(
        length in 0_usize..6000,
        manner in manner(),
        fates in prop::collection::vec(fate(), 0..300),
    ) {
        let outcome = simulate(file(length), PLAIN, manner, &fates);
        let blocks = length as u64 / 512 + 1;
        let most = blocks - 1 + outcome.requests + outcome.timeouts;
        prop_assert!(outcome.data_packets <= most, "{} packets for {blocks} blocks", outcome.data_packets);
    }

    #[test]
    fn a_good_network_carries_each_block_once(length in 0_usize..6000, options in terms(), manner in manner()) {
        let outcome = simulate(file(length), options, manner, &[]);
        prop_assert_eq!(outcome.end, End::Complete);
        prop_assert_eq!(outcome.data_packets, length as u64 / u64::from(options.block_size.unwrap_or(512)) + 1);
    }

    /// What a fuzzer does as well: any bytes, at any time.
    #[test]
    fn no_datagram_does_harm(
        options in terms(),
        datagrams in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..8), 0_u64..5000), 0..100),
        acks in prop::collection::vec((0_u16..80, 0_u64..50), 0..100),
    ) {
        let mut script = Script::new(3000, options);
        let mut now = 0;
        let acks = acks.into_iter().map(|(block, ms)| (ack(block), ms));
        for (datagram, ms) in acks.chain(datagrams) {
            now += ms;
            for wake in [false, true] {
                match if wake { script.wake(now) } else { script.transfer.receive(&datagram, script.at(now)) } {
                    Action::Send(Outgoing::Blocks(blocks)) => {
                        prop_assert!(!blocks.is_empty() && blocks.end - blocks.start <= 64, "{blocks:?}");
                        prop_assert!(blocks.end <= script.transfer.last() + 1, "{blocks:?}");
                    }
                    Action::Send(Outgoing::Oack) | Action::Nothing => {}
                    Action::End(_) => return Ok(()),
                }
            }
            prop_assert!(script.transfer.due() > script.at(now));
        }
    }
}
