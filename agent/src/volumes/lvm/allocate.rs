//! Which extents a logical volume gets. Physical volumes are filled from their start, so what is free is always one run.

use std::borrow::{Borrow, BorrowMut};
use std::cmp::Reverse;

use super::metadata::{Kind, Physical, Segment};

/// `lvm2`'s default: 64 KiB from each physical volume in turn.
const STRIPE_SECTORS: u64 = 128;

/// What is free, in extents, in the order of the group's physical volumes.
#[derive(Clone, Debug)]
pub(super) struct Space(Vec<Free>);

#[derive(Clone, Debug)]
struct Free {
    name: String,
    next: u64,
    left: u64,
}

/// There isn't room for this many extents more, on each of the `sides` that have to have as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) need: u64,
    pub(super) have: u64,
    pub(super) sides: usize,
}

/// One copy of a mirror: what the kernel notes of it, and the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) meta: Vec<Segment>,
    pub(super) image: Vec<Segment>,
}

/// A mirror's notes take this.
const META: u64 = 1;

impl Space {
    pub(super) fn of(physical: &[Physical]) -> Self {
        Self(physical.iter().map(|pv| Free { name: pv.name.clone(), next: 0, left: pv.extents }).collect())
    }

    /// From one physical volume after the other; with `None`, whatever is left.
    pub(super) fn linear(&mut self, extents: Option<u64>) -> Result<Vec<Segment>, Full> {
        let have = total(&self.0);
        let need = extents.unwrap_or(have.max(1));
        if need > have {
            return Err(Full { need, have, sides: 1 });
        }
        Ok(run(&mut self.0, need))
    }

    /// As much from each physical volume, rounded up.
    pub(super) fn striped(&mut self, extents: Option<u64>) -> Result<Vec<Segment>, Full> {
        let sides = self.0.len();
        let width = sides as u64;
        let have = self.0.iter().map(|free| free.left).min().unwrap_or_default();
        let need = extents.map_or(have.max(1), |extents| extents.div_ceil(width.max(1)));
        if need > have {
            return Err(Full { need, have, sides });
        }
        let stripes = self.0.iter_mut().map(|free| (free.name.clone(), free.take(need))).collect();
        let kind = Kind::Striped { stripe_sectors: STRIPE_SECTORS, stripes };
        Ok(vec![Segment { first: 0, extents: need * width, kind }])
    }

    /// Two copies that have no physical volume in common. The physical volumes are dealt out to them, the largest first,
    /// each to the one that has less.
    pub(super) fn mirrored(&mut self, extents: Option<u64>) -> Result<[Side; 2], Full> {
        let mut largest_first: Vec<&mut Free> = self.0.iter_mut().collect();
        largest_first.sort_by_key(|free| Reverse(free.left));
        let (mut a, mut b): (Vec<&mut Free>, Vec<&mut Free>) = Default::default();
        for free in largest_first {
            if total(&a) <= total(&b) { a.push(free) } else { b.push(free) }
        }
        let have = total(&a).min(total(&b));
        let need = extents.map_or(have.max(META + 1), |extents| extents.saturating_add(META));
        if need > have {
            return Err(Full { need, have, sides: 2 });
        }
        Ok([a, b].map(|mut side| Side { meta: run(&mut side, META), image: run(&mut side, need - META) }))
    }
}

impl Free {
    fn take(&mut self, extents: u64) -> u64 {
        let first = self.next;
        self.next += extents;
        self.left -= extents;
        first
    }
}

/// As many as there are.
fn run(free: &mut [impl BorrowMut<Free>], extents: u64) -> Vec<Segment> {
    let (mut segments, mut first) = (Vec::new(), 0);
    for free in free.iter_mut().map(BorrowMut::borrow_mut) {
        let here = free.left.min(extents - first);
        if here > 0 {
            let stripes = vec![(free.name.clone(), free.take(here))];
            segments.push(Segment { first, extents: here, kind: Kind::Striped { stripe_sectors: 0, stripes } });
            first += here;
        }
    }
    segments
}

fn total(free: &[impl Borrow<Free>]) -> u64 {
    free.iter().map(|free| free.borrow().left).sum()
}
