//! Which block goes where: one after the other, around the places that ext4 keeps for itself.

use std::ops::Range;

pub(super) const BLOCK: usize = 4096;
pub(super) const BLOCK_BYTES: u64 = BLOCK as u64;
pub(super) const PER_GROUP: u64 = 8 * BLOCK_BYTES;
/// Descriptors of groups, of 64 bytes each, with those that come when the file system grows: room for 8 TiB. Beyond, the
/// kernel finds other places for them.
pub(super) const DESCRIPTOR_BLOCKS: u64 = 1 + 1024;
/// What precedes everything else in a group that has a copy of them: superblock and descriptors.
const HEAD: u64 = 1 + DESCRIPTOR_BLOCKS;
/// The least that is made of a last group, so that there's something in it besides its head.
const SMALLEST_GROUP: u64 = 64;

/// Blocks that follow each other.
pub(super) type Run = Range<u64>;

/// Whether a group has a copy of superblock and descriptors (`sparse_super`).
pub(super) fn has_copy(group: u64) -> bool {
    let is_power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power_of)
}

#[derive(Clone, Debug)]
pub(super) struct Blocks {
    next: u64,
    /// One bit for each block before `next`.
    used: Vec<u8>,
}

impl Blocks {
    pub(super) fn new() -> Self {
        let mut blocks = Self { next: 0, used: Vec::new() };
        blocks.pass_head();
        blocks
    }

    /// The first block after all that are in use.
    pub(super) fn end(&self) -> u64 {
        self.next
    }

    /// As few runs as can be.
    pub(super) fn take(&mut self, mut count: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        while count > 0 {
            self.pass_head();
            let length = count.min(self.until_next_head());
            runs.push(self.take_here(length));
            count -= length;
        }
        runs
    }

    /// One run, leaving blocks free before it if need be.
    pub(super) fn take_together(&mut self, count: u64) -> Run {
        self.pass_head();
        while self.until_next_head() < count {
            self.next += self.until_next_head();
            self.pass_head();
        }
        self.take_here(count)
    }

    pub(super) fn one(&mut self) -> u64 {
        self.take_together(1).start
    }

    pub(super) fn free(&mut self, run: Run) {
        for block in run {
            let (byte, bit) = place(block);
            if let Some(byte) = self.used.get_mut(byte) {
                *byte &= !bit;
            }
        }
    }

    /// Closes a file system of at least `groups` groups: the heads of its last ones are in use, too. Returns its size in
    /// blocks, which is a multiple of 1 MiB.
    pub(super) fn close(&mut self, groups: u64) -> u64 {
        const MIB: u64 = (1 << 20) / BLOCK_BYTES;
        let mut total = self.next.next_multiple_of(MIB);
        loop {
            let last = groups.max(total.div_ceil(PER_GROUP)) - 1;
            let least = last * PER_GROUP + SMALLEST_GROUP + if has_copy(last) { HEAD } else { 0 };
            if total >= least {
                break;
            }
            total = least.next_multiple_of(MIB);
        }
        for group in 0..total.div_ceil(PER_GROUP) {
            if has_copy(group) {
                self.mark(group * PER_GROUP..group * PER_GROUP + HEAD);
            }
        }
        total
    }

    /// The bits of one group, those of blocks beyond `total` set.
    pub(super) fn bitmap(&self, group: u64, total: u64) -> Vec<u8> {
        let first = usize::try_from(group).unwrap_or(usize::MAX).saturating_mul(BLOCK);
        let mut bits = vec![0; BLOCK];
        for (bit, used) in bits.iter_mut().zip(self.used.iter().skip(first)) {
            *bit = *used;
        }
        let there = total.saturating_sub(group * PER_GROUP).min(PER_GROUP);
        for beyond in there..PER_GROUP {
            let (byte, bit) = place(beyond);
            bits[byte] |= bit;
        }
        bits
    }

    /// All that are in use, in order.
    pub(super) fn in_use(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, byte) in self.used.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
                let block = index as u64 * 8 + bit;
                match runs.last_mut() {
                    Some(run) if run.end == block => run.end += 1,
                    _ => runs.push(block..block + 1),
                }
            }
        }
        runs
    }

    fn pass_head(&mut self) {
        let group = self.next / PER_GROUP;
        let start = group * PER_GROUP;
        if has_copy(group) && self.next < start + HEAD {
            self.mark(start..start + HEAD);
            self.next = start + HEAD;
        }
    }

    fn until_next_head(&self) -> u64 {
        let mut group = self.next / PER_GROUP + 1;
        while !has_copy(group) {
            group += 1;
        }
        group * PER_GROUP - self.next
    }

    fn take_here(&mut self, length: u64) -> Run {
        let run = self.next..self.next + length;
        self.mark(run.clone());
        self.next = run.end;
        run
    }

    fn mark(&mut self, run: Run) {
        let (last, _) = place(run.end.saturating_sub(1));
        if self.used.len() <= last {
            self.used.resize(last + 1, 0);
        }
        for block in run {
            let (byte, bit) = place(block);
            self.used[byte] |= bit;
        }
    }
}

fn place(block: u64) -> (usize, u8) {
    (usize::try_from(block / 8).unwrap_or(usize::MAX), 1 << (block % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_where_sparse_super_has_them() {
        let groups: Vec<u64> = (0..400).filter(|group| has_copy(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    }

    #[test]
    fn runs_go_around_the_heads() {
        let mut blocks = Blocks::new();
        assert_eq!(blocks.take_together(10), 1026..1036);
        let second = PER_GROUP + 1026;
        assert_eq!(blocks.take(PER_GROUP), [1036..PER_GROUP, second..second + 1036]);
        // Group 2 has no head, group 3 has.
        let rest = 2 * PER_GROUP - 1026 - 1036;
        assert_eq!(blocks.take(rest + 1), [second + 1036..3 * PER_GROUP, 3 * PER_GROUP + 1026..3 * PER_GROUP + 1027]);
        assert_eq!(blocks.take_together(2 * PER_GROUP).start, 9 * PER_GROUP + 1026, "there is no room before 9");
    }

    #[test]
    fn the_last_group_has_more_than_its_head() {
        for (name, taken, groups, want) in [
            ("nothing", 0, 1, 1280),
            ("a little", 1000, 1, 2048),
            ("more groups than blocks are needed for", 0, 3, 2 * PER_GROUP + 256),
            ("into a group with a head", PER_GROUP - 1026, 1, PER_GROUP),
            ("just into one", PER_GROUP - 1025, 1, PER_GROUP + 1280),
        ] {
            let mut blocks = Blocks::new();
            blocks.take(taken);
            assert_eq!(blocks.close(groups), want, "{name}");
        }
    }
}
