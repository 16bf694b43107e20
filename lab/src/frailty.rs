//! A drive that fails when it's told to, and one that remembers what was written to it: both are how it's found out what a
//! machine makes of drives that die in the middle of things, and of power that goes at any moment.
//!
//! What a power cut leaves behind is everything up to the last flush that was answered, and of what came later any part, in
//! any order (as `dm-log-writes` has it). [`Recording::moments`] makes such disks up, for every stretch between two flushes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What happens to one place of a drive, for as long as that is its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// Writes to it fail.
    NoWrites,
    /// Writes to it seem to work, and reads fail.
    NoReads,
    /// Writes to it seem to work, and it keeps what it had.
    OldData,
}

/// What is wrong with one drive now, and what it has recorded.
#[derive(Debug, Default)]
pub struct Frailty(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    coming: Option<Coming>,
    /// What it has, and where.
    has: Option<(Ailment, Range<u64>)>,
    recording: Option<Recording>,
}

#[derive(Debug)]
struct Coming {
    ailment: Ailment,
    within: Range<u64>,
    /// How many large writes come before it.
    after: usize,
}

/// Writes of content are large, those of a file system's own are small.
pub const LARGE: usize = 64 << 10;

pub(crate) enum Written {
    Well,
    /// It's said to be, and isn't.
    Nowhere,
    Refused,
}

impl Frailty {
    /// The place of a large write that begins `within` has this from then on; `after` others are written well before.
    pub fn ail(&self, ailment: Ailment, within: Range<u64>, after: usize) {
        let mut state = self.state();
        state.coming = Some(Coming { ailment, within, after });
        state.has = None;
    }

    /// Makes it sound again. Where it was ill, if it had become so.
    pub fn heal(&self) -> Option<Range<u64>> {
        let mut state = self.state();
        state.coming = None;
        state.has.take().map(|(_, place)| place)
    }

    /// Remembers from now on.
    pub fn record(&self) {
        self.state().recording = Some(Recording::default());
    }

    /// How many bytes were written since it began to remember.
    pub fn written(&self) -> u64 {
        let state = self.state();
        let steps = state.recording.iter().flat_map(|recording| &recording.steps);
        steps.map(|step| if let Step::Write { data, .. } = step { data.len() as u64 } else { 0 }).sum()
    }

    /// What was remembered; it doesn't go on.
    pub fn recorded(&self) -> Recording {
        self.state().recording.take().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8], durable: bool) -> Written {
        let mut state = self.state();
        let place = offset..offset + data.len() as u64;
        let counts = |coming: &Coming| data.len() >= LARGE && coming.within.contains(&offset);
        match state.coming.take_if(|coming| counts(coming) && coming.after == 0) {
            Some(Coming { ailment, .. }) => state.has = Some((ailment, place.clone())),
            None => {
                if let Some(coming) = state.coming.as_mut().filter(|coming| counts(coming)) {
                    coming.after -= 1;
                }
            }
        }
        if let Some(recording) = &mut state.recording {
            recording.steps.push(Step::Write { offset, data: data.to_vec(), durable });
        }
        match state.ailment_at(&place) {
            Some(Ailment::NoWrites) => Written::Refused,
            Some(Ailment::OldData) => Written::Nowhere,
            Some(Ailment::NoReads) | None => Written::Well,
        }
    }

    pub(crate) fn read(&self, offset: u64, length: u32) -> io::Result<()> {
        match self.state().ailment_at(&(offset..offset + u64::from(length))) {
            Some(Ailment::NoReads) => Err(io::Error::other("a bad sector")),
            _ => Ok(()),
        }
    }

    pub(crate) fn zero(&self, offset: u64, length: u32) {
        if let Some(recording) = &mut self.state().recording {
            recording.steps.push(Step::Zero { offset, length: length.into() });
        }
    }

    pub(crate) fn flush(&self) {
        if let Some(recording) = &mut self.state().recording {
            recording.steps.push(Step::Flush);
        }
    }
}

impl State {
    fn ailment_at(&self, place: &Range<u64>) -> Option<Ailment> {
        let (ailment, ill) = self.has.as_ref()?;
        (place.start < ill.end && ill.start < place.end).then_some(*ailment)
    }
}

#[derive(Debug)]
enum Step {
    Write { offset: u64, data: Vec<u8>, durable: bool },
    Zero { offset: u64, length: u64 },
    Flush,
}

/// All that was written to a drive, in order.
#[derive(Debug, Default)]
pub struct Recording {
    steps: Vec<Step>,
}

const SECTOR: u64 = 512;

/// What a disk holds, as far as the recording knows: runs of sectors, by the number of their first, with the step that wrote
/// them last. An erase writes whole disks, so that nobody could count single sectors.
#[derive(Clone, Debug)]
pub struct Disk<'a> {
    recording: &'a Recording,
    runs: BTreeMap<u64, Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    end: u64,
    step: usize,
}

impl Recording {
    /// Only what came before the first flush behind the first write for which `is_last` holds.
    pub fn until(mut self, is_last: impl Fn(u64, &[u8]) -> bool) -> Option<Self> {
        let last = |step: &Step| matches!(step, Step::Write { offset, data, .. } if is_last(*offset, data));
        let written = self.steps.iter().position(last)?;
        let flushed = self.steps.iter().skip(written).position(|step| matches!(step, Step::Flush))?;
        self.steps.truncate(written + flushed + 1);
        Some(self)
    }

    /// The disk as it is in the end.
    pub fn disk(&self) -> Disk<'_> {
        let mut disk = Disk { recording: self, runs: BTreeMap::new() };
        (0..self.steps.len()).for_each(|step| disk.apply(step));
        disk
    }

    /// Disks that a power cut may leave, `each` for every stretch between two flushes: with none of what was written in it,
    /// with all, and with parts that `random` chooses (it's given a number, and returns a smaller one). How many there were.
    pub fn moments(
        &self,
        each: usize,
        mut random: impl FnMut(usize) -> usize,
        mut look: impl FnMut(usize, &Disk<'_>),
    ) -> usize {
        let mut durable = Disk { recording: self, runs: BTreeMap::new() };
        let (mut begin, mut number) = (0, 0);
        while begin < self.steps.len() {
            let length = self.steps[begin..].iter().position(|step| matches!(step, Step::Flush));
            let end = length.map_or(self.steps.len(), |length| begin + length);
            for trial in 0..each {
                // How many of four of them get through.
                let share = match trial {
                    0 => 0,
                    1 => 4,
                    _ => 1 + random(3),
                };
                // Up to where it was sent when the power went; what has to be durable by then is.
                let sent = if trial < 2 { end } else { begin + random(end - begin + 1) };
                let mut disk = durable.clone();
                for step in begin..sent {
                    let must = matches!(self.steps[step], Step::Write { durable: true, .. }) && trial > 1;
                    if must || random(4) < share {
                        disk.apply(step);
                    }
                }
                look(end, &disk);
                number += 1;
            }
            (begin..end).for_each(|step| durable.apply(step));
            begin = end + 1;
        }
        number
    }
}

impl Disk<'_> {
    fn apply(&mut self, step: usize) {
        let (offset, length) = match &self.recording.steps[step] {
            Step::Write { offset, data, .. } => (*offset, data.len() as u64),
            Step::Zero { offset, length } => (*offset, *length),
            Step::Flush => return,
        };
        let (start, end) = (offset / SECTOR, (offset + length) / SECTOR);
        if start == end {
            return;
        }
        self.cut(start);
        self.cut(end);
        self.runs.retain(|first, _| !(start..end).contains(first));
        self.runs.insert(start, Run { end, step });
    }

    /// Has no run go across `sector`.
    fn cut(&mut self, sector: u64) {
        if let Some((_, run)) = self.runs.range_mut(..sector).next_back()
            && run.end > sector
        {
            let rest = *run;
            run.end = sector;
            self.runs.insert(sector, rest);
        }
    }

    /// The step that wrote a sector last.
    fn step(&self, sector: u64) -> Option<usize> {
        let (_, run) = self.runs.range(..=sector).next_back()?;
        (sector < run.end).then_some(run.step)
    }

    /// A sector, if it was written since the recording began.
    pub fn sector(&self, number: u64) -> Option<&[u8]> {
        const ZEROS: &[u8] = &[0; 512];
        match &self.recording.steps[self.step(number)?] {
            Step::Write { offset, data, .. } => {
                let at = usize::try_from(number * SECTOR - offset).ok()?;
                data.get(at..at + ZEROS.len())
            }
            Step::Zero { .. } => Some(ZEROS),
            Step::Flush => None,
        }
    }

    /// The first of `sectors` that another disk of the same recording has otherwise.
    pub fn differs_from(&self, other: &Disk<'_>, sectors: Range<u64>) -> Option<u64> {
        let runs = self.runs.iter().chain(&other.runs).flat_map(|(start, run)| [*start, run.end]);
        let mut edges: Vec<u64> = runs.chain([sectors.start, sectors.end]).collect();
        edges.retain(|edge| (sectors.start..=sectors.end).contains(edge));
        edges.sort_unstable();
        edges.dedup();
        // Between two edges each of the disks has one run, or none.
        edges.iter().zip(edges.iter().skip(1)).find_map(|(start, end)| {
            let zeros =
                |step: Option<usize>| step.is_some_and(|s| matches!(self.recording.steps[s], Step::Zero { .. }));
            let (mine, theirs) = (self.step(*start), other.step(*start));
            if mine == theirs || (zeros(mine) && zeros(theirs)) {
                return None;
            }
            (*start..*end).find(|sector| self.sector(*sector) != other.sector(*sector))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const TWO: [u8; 1024] = [2; 1024];

    #[test]
    fn one_place_is_ill_and_the_rest_is_not() {
        let large = vec![1; LARGE];
        let at = |n: u64| n * LARGE as u64;
        for (ailment, write, read) in [
            (Ailment::NoWrites, "refused", true),
            (Ailment::NoReads, "well", false),
            (Ailment::OldData, "nowhere", true),
        ] {
            let frailty = Frailty::default();
            let said = |offset: u64, data: &[u8]| match frailty.write(offset, data, false) {
                Written::Well => "well",
                Written::Nowhere => "nowhere",
                Written::Refused => "refused",
            };
            assert_eq!(said(at(0), &large), "well");
            frailty.ail(ailment, at(1)..at(10), 1);
            assert_eq!(said(at(10), &large), "well", "{ailment:?}: elsewhere");
            assert_eq!(said(at(7), &TWO), "well", "{ailment:?}: too small to count");
            assert_eq!(said(at(1), &large), "well", "{ailment:?}: one more");
            assert_eq!(said(at(2), &large), write, "{ailment:?}");
            assert_eq!(said(at(3) - 1024, &TWO), write, "{ailment:?}: over its edge");
            assert_eq!(said(at(3), &large), "well", "{ailment:?}");
            assert_eq!(frailty.read(at(2) + 512, 512).is_ok(), read, "{ailment:?}");
            assert!(frailty.read(at(3), 512).is_ok(), "{ailment:?}");
            assert_eq!(frailty.heal(), Some(at(2)..at(3)), "{ailment:?}");
            assert_eq!((said(at(2), &large), frailty.read(at(2), 512).is_ok()), ("well", true), "{ailment:?}");
        }
    }

    #[test]
    fn a_whole_disk_is_one_run() {
        const MANY: u64 = 1 << 40;
        let frailty = Frailty::default();
        frailty.record();
        frailty.zero(0, u32::MAX - 511);
        frailty.write(1024, &TWO, false);
        frailty.write(1536, &[3; 512], false);
        frailty.zero(512, 1024);
        let recording = frailty.recorded();
        let disk = recording.disk();
        let first = |n: u64| disk.sector(n).map(|sector| sector[0]);
        assert_eq!([first(0), first(1), first(2), first(3), first(4)], [Some(0), Some(0), Some(0), Some(3), Some(0)]);
        assert_eq!((first(MANY), disk.runs.len()), (None, 4));
        let mut other = Disk { recording: &recording, runs: BTreeMap::new() };
        assert_eq!(disk.differs_from(&other, 0..MANY), Some(0), "nothing is known of it");
        other.apply(0);
        assert_eq!(disk.differs_from(&other, 0..MANY), Some(3), "zeros are zeros, whoever wrote them");
        assert_eq!(disk.differs_from(&other, 4..MANY), None);
    }

    #[test]
    fn a_power_cut_leaves_what_was_flushed_and_any_of_the_rest() {
        let frailty = Frailty::default();
        frailty.write(0, &[9; 512], false);
        frailty.record();
        frailty.write(0, &[1; 512], false);
        frailty.flush();
        frailty.write(512, &TWO, false);
        frailty.zero(0, 512);
        frailty.write(4096, &[4; 512], true);
        frailty.flush();
        frailty.write(512, &[5; 512], false);
        frailty.flush();
        let recording = frailty.recorded().until(|_, data| data[0] == 4).expect("it was written");
        let whole = recording.disk();
        assert_eq!(whole.sector(1), Some(&[2; 512][..]), "what came later isn't there");
        let (mut state, mut seen) = (1_usize, HashMap::new());
        let random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let moments = recording.moments(200, random, |end, disk| {
            let first = |n| disk.sector(n).map(|sector| sector[0]);
            if end > 1 {
                assert!(first(0).is_some(), "what was flushed is there");
                assert_eq!(first(1), first(2), "one write is whole");
            }
            *seen.entry([first(0), first(1), first(8)]).or_insert(0) += 1;
            let same = disk.differs_from(&whole, 0..100).is_none();
            assert_eq!(same, [first(0), first(1), first(8)] == [Some(0), Some(2), Some(4)]);
        });
        assert_eq!(moments, 400);
        for wanted in [
            [None, None, None],
            [Some(1), None, None],
            [Some(0), None, None],
            [Some(1), Some(2), None],
            [Some(1), Some(2), Some(4)],
            [Some(0), Some(2), Some(4)],
        ] {
            assert!(seen.contains_key(&wanted), "{wanted:?} in {seen:?}");
        }
    }
}
