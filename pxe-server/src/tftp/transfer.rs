//! One file on its way to one client: datagrams and the time in, what to send out. No socket, no clock.
//!
//! What keeps traffic bounded whatever the client and the network do (RFC 1123 §4.2.3.1, the sorcerer's apprentice):
//! an acknowledgement that says nothing new never causes a packet; one for the middle of a window (RFC 7440) makes us go
//! back once, and not again before all that was in flight then is acknowledged; everything else that is sent twice is
//! sent by the timer, which backs off.

use std::ops::Range;
use std::time::{Duration, Instant};

use axum::body::Bytes;

use super::packet::{self, LEAST_BLOCK_SIZE, Options, Packet};

/// What fits into an Ethernet frame; ROMs that ask for more can't all put fragments together.
pub const MOST_BLOCK_SIZE: u16 = 1468;
/// RFC 7440's annex: more gains nothing on a LAN. Also the most segments that every kernel takes at once.
pub const MOST_WINDOW: u16 = 64;
const PLAIN_BLOCK_SIZE: u16 = 512;

/// How long a client that has never acknowledged anything is asked again: others may need its place.
const PATIENCE_AT_FIRST: Duration = Duration::from_secs(20);
/// Afterwards: a switch that learns of a new port takes up to 30 s.
const PATIENCE: Duration = Duration::from_secs(35);
/// A client that chose its own timeout is given at least so many of them.
const LEAST_TRIES: u32 = 3;
/// Longer than what clients wait before they speak up themselves: atftp, once it has a window whose acknowledgement was
/// lost, ignores every repetition, and its 5 s begin anew with each.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Before options are offered again. It's the client's turn by then: it repeats its request or its acknowledgement, whichever
/// was lost. Longer than three of atftp's 5 s, for atftp dies of a second OACK.
const PAUSE_AFTER_OFFER: Duration = Duration::from_secs(16);
/// An answer that takes longer is worth sleeping for.
const QUICK: Duration = Duration::from_micros(250);
/// By how much pauses grow, steep for the same reason.
const BACK_OFF: u32 = 4;

#[derive(Debug)]
pub struct Transfer {
    file: Bytes,
    block_size: u16,
    window: u64,
    /// The timeout that the client asked for.
    timeout: Option<Duration>,
    /// What acknowledges the options, if there are any.
    oack: Option<Vec<u8>>,
    stage: Stage,
    /// Blocks count from 1, as if their numbers didn't roll over.
    acked: u64,
    sent: u64,
    /// An ACK below this was caused by what is in flight already.
    recovered_at: u64,
    round_trip: RoundTrip,
    tries: u32,
    /// When the newest of what was sent was sent for the first time.
    sent_at: Instant,
    heard_at: Instant,
    due: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The OACK isn't acknowledged yet.
    Offering,
    Sending,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Nothing,
    Send(Outgoing),
    End(End),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// [`Transfer::oack`].
    Oack,
    /// Each as [`Transfer::block`] has it.
    Blocks(Range<u64>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Complete,
    /// All of it was sent and only the last block, or window, was never acknowledged. Many ROMs start what they have
    /// without doing so.
    Unconfirmed,
    /// The client hung up before it took any of the file: it wanted to know the size, or asks again on other terms.
    Declined,
    /// Never acknowledged, and its place was needed.
    Displaced,
    /// The client never acknowledged any of the file.
    Unanswered(First),
    /// The client stopped answering in the middle.
    Silence,
    /// The client said so.
    Aborted {
        code: u16,
        message: String,
    },
}

/// What it was that such a client left unacknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Oack,
    Block,
}

impl Transfer {
    /// `path` is the largest block that reaches this client in one piece.
    pub fn new(file: Bytes, asked: &Options, path: u16, now: Instant) -> Self {
        let most = path.clamp(LEAST_BLOCK_SIZE, MOST_BLOCK_SIZE);
        let agreed = Options {
            block_size: asked.block_size.map(|size| size.clamp(LEAST_BLOCK_SIZE, most)),
            // Curl takes a size of 0 for an error.
            transfer_size: asked.transfer_size.and(u64::try_from(file.len()).ok()).filter(|size| *size > 0),
            timeout: asked.timeout,
            window: asked.window.map(|window| window.min(MOST_WINDOW)),
        };
        let oack = packet::oack(&agreed);
        let mut transfer = Self {
            file,
            block_size: agreed.block_size.unwrap_or(PLAIN_BLOCK_SIZE),
            window: agreed.window.unwrap_or(1).into(),
            timeout: agreed.timeout.map(|seconds| Duration::from_secs(seconds.into())),
            stage: if oack.is_some() { Stage::Offering } else { Stage::Sending },
            oack,
            acked: 0,
            sent: 0,
            recovered_at: 0,
            round_trip: RoundTrip::default(),
            tries: 0,
            sent_at: now,
            heard_at: now,
            due: now,
        };
        transfer.due = now + transfer.pause();
        transfer
    }

    /// The answer to the request: the first one, or once more for a client that repeats itself.
    pub fn answer(&mut self, now: Instant) -> Action {
        if self.answered() {
            return Action::Nothing;
        }
        self.due = now + self.pause();
        Action::Send(self.outstanding())
    }

    /// Something came from the client.
    pub fn receive(&mut self, datagram: &[u8], now: Instant) -> Action {
        match packet::parse(datagram) {
            Some(Packet::Ack(block)) => self.acknowledged(block, now),
            Some(Packet::Error { code, message }) => Action::End(match self.stage {
                Stage::Offering => End::Declined,
                Stage::Sending => End::Aborted { code, message: message.into_owned() },
            }),
            _ => Action::Nothing,
        }
    }

    fn acknowledged(&mut self, block: u16, now: Instant) -> Action {
        if self.stage == Stage::Offering {
            if block != 0 {
                return Action::Nothing;
            }
            self.stage = Stage::Sending;
        } else {
            let ahead = u64::from(block.wrapping_sub(number(self.acked)));
            if ahead == 0 || ahead > self.sent - self.acked {
                return Action::Nothing;
            }
            self.acked += ahead;
        }
        self.round_trip.learn(now.saturating_duration_since(self.sent_at));
        self.tries = 0;
        self.heard_at = now;
        self.due = now + self.pause();
        if self.acked == self.last() {
            return Action::End(End::Complete);
        }
        let until = self.window_end();
        let from = match () {
            () if self.acked == self.sent => self.acked,
            () if self.acked < self.recovered_at => self.sent,
            () => {
                self.recovered_at = until;
                self.acked
            }
        };
        if from == until {
            return Action::Nothing;
        }
        self.sent = until;
        self.sent_at = now;
        Action::Send(Outgoing::Blocks(from + 1..until + 1))
    }

    /// When [`Transfer::wake`] has something to do, should nothing come until then.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// By when a client that has been quick so far answers again, if all is well.
    pub fn answer_by(&self) -> Option<Instant> {
        (self.round_trip.smooth?.mean < QUICK).then(|| self.sent_at + QUICK)
    }

    pub fn wake(&mut self, now: Instant) -> Action {
        if now < self.due {
            return Action::Nothing;
        }
        let patience = if self.answered() { PATIENCE } else { PATIENCE_AT_FIRST };
        let asked = self.timeout.unwrap_or_default() * LEAST_TRIES;
        if now.saturating_duration_since(self.heard_at) >= patience.max(asked) {
            return Action::End(self.fell_silent());
        }
        self.tries = self.tries.saturating_add(1);
        self.due = now + self.pause();
        self.recovered_at = self.window_end();
        Action::Send(self.outstanding())
    }

    /// How this ends if the client's port is closed or used for something else.
    pub fn hung_up(&self) -> End {
        if self.acked == 0 { End::Declined } else { self.fell_silent() }
    }

    fn fell_silent(&self) -> End {
        match () {
            () if self.stage == Stage::Offering => End::Unanswered(First::Oack),
            () if self.acked == 0 => End::Unanswered(First::Block),
            () if self.sent == self.last() => End::Unconfirmed,
            () => End::Silence,
        }
    }

    /// Whether the client has acknowledged anything.
    pub fn answered(&self) -> bool {
        match self.stage {
            Stage::Offering => false,
            Stage::Sending => self.acked > 0 || self.oack.is_some(),
        }
    }

    pub fn heard_at(&self) -> Instant {
        self.heard_at
    }

    pub fn acknowledged_bytes(&self) -> u64 {
        (self.acked * u64::from(self.block_size)).min(self.total_bytes())
    }

    pub fn total_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// The size of a whole DATA packet, and how many follow each other at most.
    pub fn burst(&self) -> (u16, u64) {
        (self.block_size.saturating_add(4), self.window)
    }

    pub fn oack(&self) -> &[u8] {
        self.oack.as_deref().unwrap_or_default()
    }

    /// A DATA packet's head and body.
    pub fn block(&self, block: u64) -> ([u8; 4], &[u8]) {
        let at = |block: u64| {
            let offset = block.saturating_mul(self.block_size.into());
            usize::try_from(offset).unwrap_or(usize::MAX).min(self.file.len())
        };
        let body = self.file.get(at(block.saturating_sub(1))..at(block)).unwrap_or_default();
        (packet::data_head(number(block)), body)
    }

    /// A file always ends with a block that isn't full.
    fn last(&self) -> u64 {
        self.total_bytes() / u64::from(self.block_size) + 1
    }

    fn window_end(&self) -> u64 {
        (self.acked + self.window).min(self.last())
    }

    fn outstanding(&mut self) -> Outgoing {
        match self.stage {
            Stage::Offering => Outgoing::Oack,
            Stage::Sending => {
                self.sent = self.window_end();
                Outgoing::Blocks(self.acked + 1..self.sent + 1)
            }
        }
    }

    fn pause(&self) -> Duration {
        match self.timeout {
            Some(asked) => asked,
            None if self.stage == Stage::Offering => PAUSE_AFTER_OFFER,
            None => {
                let factor = BACK_OFF.saturating_pow(self.tries);
                self.round_trip.timeout().saturating_mul(factor).min(LONGEST_PAUSE)
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "block numbers roll over from 65535 to 0")]
fn number(block: u64) -> u16 {
    block as u16
}

/// RFC 6298's estimate of when an answer is overdue.
///
/// Time counts from when a block was sent first, not last: after a loss that is too long rather than too short, so a
/// client that became slow isn't sent everything twice for ever.
#[derive(Clone, Copy, Debug, Default)]
struct RoundTrip {
    smooth: Option<Smooth>,
}

#[derive(Clone, Copy, Debug)]
struct Smooth {
    mean: Duration,
    deviation: Duration,
}

impl RoundTrip {
    const BEFORE_ANY: Duration = Duration::from_secs(1);
    /// Firmware that polls its network card is late by a tick now and then.
    const LEAST: Duration = Duration::from_millis(20);

    fn learn(&mut self, sample: Duration) {
        self.smooth = Some(match self.smooth {
            None => Smooth { mean: sample, deviation: sample / 2 },
            Some(Smooth { mean, deviation }) => {
                Smooth { mean: (mean * 7 + sample) / 8, deviation: (deviation * 3 + mean.abs_diff(sample)) / 4 }
            }
        });
    }

    fn timeout(&self) -> Duration {
        self.smooth.map_or(Self::BEFORE_ANY, |s| (s.mean + s.deviation * 4).clamp(Self::LEAST, Self::BEFORE_ANY))
    }
}

#[cfg(test)]
mod tests;
