//! How we know that an erase erased: blocks of random content planted beforehand, and samples of what was there, both
//! looked for afterwards.
//!
//! Contents are kept as hashes of 512-byte pieces. One piece that reads as before is one too many: a drive may erase
//! most of a block.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

#[cfg(doc)]
use drophammer_protocol::certificate::Verification;
use sha2::{Digest, Sha256};

/// The unit of planting and sampling; more only where the drive's own blocks are bigger.
pub(super) const BLOCK_BYTES: u32 = 4096;

const PIECE_BYTES: usize = 512;
/// One at each of these parts of the drive, and one at random within it.
const CANARY_PARTS: u64 = 64;
/// Samples come in rounds, each spread over the whole drive. The first is enough to say that no more than 1 % is left
/// ([`Verification::LEAST_SAMPLES`], and some more for those that meet a canary), all together that no more than 0.1 % is,
/// with 99.9 % confidence.
const SAMPLES_PER_ROUND: u64 = 720;
const ROUNDS: usize = 10;

/// Where to plant and where to sample, as byte offsets. No two blocks overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) block_bytes: u32,
    pub(super) canaries: Vec<u64>,
    /// Each round ascends.
    pub(super) samples: Vec<Vec<u64>>,
}

impl Places {
    /// Canaries: head, tail, every 64th, 64 at random, and the `marked` bytes, where something of interest may be.
    /// Samples: at random, one in each of as many parts as there are. `None` if the drive is too small to have a head and a
    /// tail.
    pub(super) fn choose(size_bytes: u64, logical_block: u32, marked: &[u64], seed: [u8; 32]) -> Option<Self> {
        let block_bytes = BLOCK_BYTES.max(logical_block);
        let unit = u64::from(block_bytes);
        let blocks = size_bytes / unit;
        if blocks < 2 {
            return None;
        }
        // The last whole block in front of the tail: the tail lies at the very end, also of a drive that isn't a
        // multiple of our block.
        let tail = size_bytes - unit;
        let inner = blocks - 1;
        let mut random = numbers(seed);
        let mut within = |parts: u64| -> Vec<u64> {
            let parts = parts.min(inner);
            (0..parts)
                .map(|part| {
                    let (from, to) = (at(inner, part, parts), at(inner, part + 1, parts));
                    from + random() % (to - from).max(1)
                })
                .collect()
        };
        let mut taken: BTreeSet<u64> = (0..CANARY_PARTS).map(|part| at(inner, part, CANARY_PARTS)).collect();
        taken.extend(within(CANARY_PARTS));
        taken.extend(marked.iter().map(|byte| byte / unit).filter(|block| *block < inner));
        let canaries = taken.iter().map(|block| block * unit).chain([tail]).collect();
        let mut samples = Vec::with_capacity(ROUNDS);
        // A drive with hardly more blocks than that is looked at as a whole.
        let parts = if inner <= SAMPLES_PER_ROUND * ROUNDS as u64 { inner } else { SAMPLES_PER_ROUND };
        for _ in 0..ROUNDS {
            let round: Vec<u64> = within(parts).into_iter().filter(|block| taken.insert(*block)).collect();
            samples.push(round.into_iter().map(|block| block * unit).collect());
        }
        Some(Self { block_bytes, canaries, samples })
    }
}

/// Where the `part`-th of `parts` equal parts of `whole` begins, without overflow.
fn at(whole: u64, part: u64, parts: u64) -> u64 {
    let begin = u128::from(whole) * u128::from(part) / u128::from(parts);
    u64::try_from(begin).unwrap_or(u64::MAX)
}

/// Numbers that nobody without the seed can foresee, a drive's firmware least of all.
fn numbers(seed: [u8; 32]) -> impl FnMut() -> u64 {
    let mut count = 0u64;
    move || {
        count += 1;
        let hash: [u8; 32] = Sha256::new().chain_update(seed).chain_update(count.to_le_bytes()).finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = hash;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Recognises what it has seen, by hashes that nobody outside of this process could have prepared for.
#[derive(Clone, Debug, Default)]
pub(super) struct Eye(RandomState);

impl Eye {
    pub(super) fn trace(&self, offset: u64, block: &[u8]) -> Trace {
        Trace { offset, pieces: self.fingerprints(block).collect() }
    }

    /// One for each piece of a block; `None` for those that say nothing. Erased drives read as zeros, ones or a pattern of
    /// their maker's, so content that repeats one word proves nothing.
    pub(super) fn fingerprints(&self, block: &[u8]) -> impl Iterator<Item = Option<u64>> {
        block.chunks(PIECE_BYTES).map(|piece| {
            let (words, _) = piece.as_chunks::<8>();
            let first = words.first()?;
            words.iter().any(|word| word != first).then(|| self.0.hash_one(piece))
        })
    }

    pub(super) fn sees(&self, trace: &Trace, block: &[u8]) -> bool {
        trace.pieces.iter().zip(self.fingerprints(block)).any(|(then, now)| then.is_some() && *then == now)
    }
}

/// What stood in one block, remembered well enough to recognise any part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) offset: u64,
    pieces: Box<[Option<u64>]>,
}

impl Trace {
    /// A block that couldn't be read: nothing of it would be recognised.
    pub(super) fn unread(offset: u64) -> Self {
        Self { offset, pieces: Box::default() }
    }

    /// Whether there was anything that could be recognised.
    pub(super) fn tells(&self) -> bool {
        self.pieces.iter().any(Option::is_some)
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = u64> {
        self.pieces.iter().copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::certificate::Verification;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_piece_is_enough() {
        let old: Vec<u8> = (0..4096u32).map(|n| n.to_le_bytes()[usize::from(n % 7 == 0)]).collect();
        let keeping = |from: usize, to: usize| {
            let mut block = vec![0; 4096];
            block[from..to].copy_from_slice(&old[from..to]);
            block
        };
        let eye = Eye::default();
        let trace = eye.trace(0, &old);
        assert!(trace.tells());
        for (name, block, survives) in [
            ("all of it", old.clone(), true),
            ("zeros", vec![0; 4096], false),
            ("ones", vec![0xff; 4096], false),
            ("the first piece", keeping(0, 512), true),
            ("the last piece", keeping(3584, 4096), true),
            ("less than a piece", keeping(0, 511), false),
            ("nothing readable", vec![], false),
        ] {
            assert_eq!(eye.sees(&trace, &block), survives, "{name}");
        }
        assert!(!eye.sees(&Trace::unread(0), &old));
    }

    #[test]
    fn what_says_nothing() {
        let eye = Eye::default();
        for (name, block, tells) in [
            ("zeros", vec![0; 4096], false),
            ("a maker's pattern", b"\xde\xad\xbe\xef".repeat(1024), false),
            ("zeros with one byte", [vec![0; 4095], vec![1]].concat(), true),
        ] {
            let trace = eye.trace(0, &block);
            assert_eq!(trace.tells(), tells, "{name}");
            assert_eq!(eye.sees(&trace, &block), tells, "{name}");
        }
    }

    #[test]
    fn drives_too_small_to_judge() {
        for (size, logical, enough) in [(0, 512, false), (4096, 512, false), (8192, 512, true), (65536, 65536, false)] {
            assert_eq!(Places::choose(size, logical, &[], [0; 32]).is_some(), enough, "{size}");
        }
    }

    #[test]
    fn small_drives_are_seen_as_a_whole() {
        for blocks in [2u64, 3, 100, 7201] {
            let places = Places::choose(blocks * 4096, 512, &[], [5; 32]).expect("big enough");
            let seen = places.canaries.len() + places.samples.concat().len();
            assert_eq!(seen as u64, blocks);
        }
    }

    #[test]
    fn marked_places_get_canaries() {
        let places = Places::choose(1 << 30, 512, &[65536 + 64, 1 << 29, u64::MAX], [5; 32]).expect("big enough");
        assert!(places.canaries.contains(&65536) && places.canaries.contains(&(1 << 29)));
    }

    proptest! {
        #[test]
        fn places_cover_and_never_overlap(sectors in 16u64..1 << 50, shift in 9u32..=16, seed: [u8; 32]) {
            let logical = 1u32 << shift;
            let size = (sectors * 512).next_multiple_of(u64::from(logical)).max(2 << 16);
            let places = Places::choose(size, logical, &[0, 65536], seed).expect("big enough");
            let unit = u64::from(places.block_bytes);
            let mut all = [places.canaries.clone(), places.samples.concat()].concat();
            all.sort_unstable();
            prop_assert_eq!(all.first(), Some(&0));
            prop_assert_eq!(all.last(), Some(&(size - unit)));
            for pair in all.windows(2) {
                prop_assert!(pair[1] - pair[0] >= unit, "{pair:?}");
            }
            for offset in all {
                prop_assert_eq!(offset % u64::from(logical), 0, "O_DIRECT needs whole blocks");
            }
            let mut canaries = places.canaries;
            canaries.sort_unstable();
            // No stretch longer than a part (and a block for rounding) goes without a canary.
            for pair in canaries.windows(2) {
                prop_assert!(pair[1] - pair[0] <= size / CANARY_PARTS + 2 * unit);
            }
            for round in &places.samples {
                prop_assert!(round.is_sorted());
            }
            let seen = places.samples.first().map_or(0, Vec::len) as u64;
            prop_assert!(seen >= Verification::LEAST_SAMPLES || size <= SAMPLES_PER_ROUND * 10 * unit + 2 * unit, "{seen}");
        }
    }
}
