//! What drives of ATA and SCSI have in common: one medium, a sanitize with its states, and time.

use std::io;
use std::time::Duration;

use super::medium::{Leaves, Lie, Medium};
use super::opal::Tper;
use crate::drive::{Data, SanitizeKind};

pub(crate) const SIZE: usize = 2 << 20;

pub(crate) struct Body {
    pub(crate) serial: &'static str,
    pub(crate) medium: Medium,
    pub(crate) lie: Lie,
    pub(crate) state: State,
    /// A sanitize ends as failed when it's so far.
    pub(crate) fails_at: Option<f64>,
    /// A sanitize never gets further than this.
    pub(crate) stuck_at: Option<f64>,
    /// A sanitize is accepted and not begun.
    pub(crate) forgets: bool,
    /// A failed sanitize can't be left.
    pub(crate) no_way_out: bool,
    pub(crate) unreadable_after: bool,
    pub(crate) serial_after: Option<&'static str>,
    pub(crate) unreadable: bool,
    /// No read can be told to reach the medium.
    pub(crate) only_plain_reads: bool,
    /// Its security subsystem, if it has one.
    pub(crate) tper: Option<Tper>,
    pub(crate) clock: Duration,
}

/// The states that SBC-3 and ACS-3 know, by another name each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Never,
    /// How far, from 0 to 1, and whether a failure may be left.
    Running {
        kind: SanitizeKind,
        done: f64,
        exit: bool,
    },
    Succeeded,
    Failed {
        exit: bool,
    },
}

impl Default for Body {
    fn default() -> Self {
        Self {
            serial: "SN-1",
            medium: Medium::full(SIZE, 1),
            lie: Lie::None,
            state: State::Never,
            fails_at: None,
            stuck_at: None,
            forgets: false,
            no_way_out: false,
            unreadable_after: false,
            serial_after: None,
            unreadable: false,
            only_plain_reads: false,
            tper: None,
            clock: Duration::ZERO,
        }
    }
}

impl Body {
    pub(crate) fn begin(&mut self, kind: SanitizeKind, exit: bool) {
        if !self.forgets {
            self.state = State::Running { kind, done: 0.0, exit };
        }
    }

    /// Whether it could be left.
    pub(crate) fn leave_failure(&mut self) -> bool {
        let may = self.state == State::Failed { exit: true } && !self.no_way_out;
        if may {
            self.state = State::Never;
        }
        may
    }

    /// A sanitize goes on by itself, whether there was power or not.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.clock += time;
        if let Some(tper) = &mut self.tper {
            tper.waited += time;
        }
        let State::Running { kind, done, exit } = &mut self.state else { return };
        let (takes, leaves) = match kind {
            SanitizeKind::Crypto => (2.0, Leaves::Noise),
            SanitizeKind::Block => (120.0, Leaves::Fill(0xff)),
            SanitizeKind::Overwrite => (500.0, Leaves::Fill(0)),
        };
        *done += time.as_secs_f64() / takes;
        if let Some(stuck) = self.stuck_at {
            *done = done.min(stuck);
        }
        match self.fails_at {
            Some(failed) if *done >= failed => {
                self.state = State::Failed { exit: *exit };
                self.medium.erase(leaves, Lie::None, failed);
            }
            _ if *done >= 1.0 => {
                self.state = State::Succeeded;
                self.erase(leaves, 1.0);
            }
            _ => {}
        }
    }

    /// Whether it takes nothing else.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Failed { .. })
    }

    /// What every way to erase ends in, as far as it really happens.
    pub(crate) fn erase(&mut self, leaves: Leaves, part: f64) {
        self.medium.erase(leaves, self.lie, part);
        self.unreadable = self.unreadable_after;
        self.serial = self.serial_after.unwrap_or(self.serial);
    }

    pub(crate) fn power_cycle(&mut self) {
        self.medium.power_cycle();
        self.unreadable = false;
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.answers()?;
        self.medium.read(buffer, offset)
    }

    pub(crate) fn read_medium(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.only_plain_reads {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.answers()?;
        self.medium.read_medium(buffer, offset)
    }

    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.answers()?;
        self.medium.write(bytes, offset);
        Ok(())
    }

    /// A security command, and what becomes of the medium if its key is another one after it. False if it fails.
    pub(crate) fn secure(&mut self, protocol: u8, specific: u16, data: &mut Data<'_>) -> bool {
        let Some(tper) = &mut self.tper else { return false };
        let key = tper.key_generation();
        let taken = match data {
            Data::Out(bytes) => tper.send(protocol, specific, bytes),
            Data::In(bytes) => tper.receive(protocol, specific, bytes),
            Data::None => panic!("a security command has data"),
        };
        if tper.key_generation() != key {
            self.erase(Leaves::Noise, 1.0);
        }
        taken
    }

    fn answers(&self) -> io::Result<()> {
        let locked = self.tper.as_ref().is_some_and(|tper| tper.locked);
        if self.unreadable || locked || self.is_busy() { Err(io::Error::other("I/O error")) } else { Ok(()) }
    }
}
