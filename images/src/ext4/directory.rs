//! Directories: one block of names, or a tree by the names' hashes as the kernel makes it (`dir_index`).

use super::blocks::BLOCK;
use super::checksum::{Checksum, Fields};

/// Every block ends in a name-less entry that holds its checksum.
const TAIL: usize = 12;
const ROOM: usize = BLOCK - TAIL;

/// What a name leads to, as entries say it.
#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    pub(super) kind: u8,
}

impl Entry<'_> {
    fn bytes(&self) -> usize {
        8 + self.name.len().next_multiple_of(4)
    }
}

/// What kinds of things are called in entries.
pub(super) const FILE: u8 = 1;
pub(super) const DIRECTORY: u8 = 2;
pub(super) const CHARACTERS: u8 = 3;
pub(super) const BLOCKS: u8 = 4;
pub(super) const FIFO: u8 = 5;
pub(super) const LINK: u8 = 7;

/// A directory's blocks in order, and whether they are a tree.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) blocks: Vec<Vec<u8>>,
    pub(super) indexed: bool,
}

/// `seed` is the file system's for hashes, `checksum` that of the directory's inode.
pub(super) fn encode(own: u32, parent: u32, entries: &[Entry<'_>], seed: [u32; 4], checksum: Checksum) -> Encoded {
    let dots =
        [Entry { name: b".", inode: own, kind: DIRECTORY }, Entry { name: b"..", inode: parent, kind: DIRECTORY }];
    let all: usize = dots.iter().chain(entries).map(Entry::bytes).sum();
    if all <= ROOM {
        let list: Vec<&Entry<'_>> = dots.iter().chain(entries).collect();
        return Encoded { blocks: vec![leaf(&list, checksum)], indexed: false };
    }
    let mut hashed: Vec<(u32, &Entry<'_>)> = entries.iter().map(|entry| (hash(entry.name, seed), entry)).collect();
    hashed.sort_by_key(|(hash, entry)| (*hash, entry.name));
    // Leaves, each by the least hash in it. The lowest bit says that the leaf before ends with the same.
    let mut leaves: Vec<(u32, Vec<&Entry<'_>>)> = Vec::new();
    let (mut room, mut last) = (0, 0);
    for (hash, entry) in hashed {
        match leaves.last_mut().filter(|_| entry.bytes() <= room) {
            Some((_, leaf)) => leaf.push(entry),
            None => {
                let goes_on = !leaves.is_empty() && hash == last;
                leaves.push((hash | u32::from(goes_on), vec![entry]));
                room = ROOM;
            }
        }
        room -= entry.bytes();
        last = hash;
    }
    // The root is block 0; nodes between it and the leaves come next, if there are too many leaves for it.
    let in_nodes = leaves.len() > IN_ROOT;
    let nodes = if in_nodes { leaves.len().div_ceil(IN_NODE) } else { 0 };
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let places: Vec<(u32, u32)> =
        leaves.iter().enumerate().map(|(index, (hash, _))| (*hash, number(1 + nodes + index))).collect();
    let mut blocks = Vec::new();
    if in_nodes {
        let parts: Vec<&[(u32, u32)]> = places.chunks(IN_NODE).collect();
        let above: Vec<(u32, u32)> = parts
            .iter()
            .enumerate()
            .map(|(index, part)| (part.first().map_or(0, |(hash, _)| *hash), number(1 + index)))
            .collect();
        blocks.push(root(own, parent, &above, 1, checksum));
        blocks.extend(parts.iter().map(|part| node(part, checksum)));
    } else {
        blocks.push(root(own, parent, &places, 0, checksum));
    }
    blocks.extend(leaves.iter().map(|(_, entries)| leaf(entries, checksum)));
    Encoded { blocks, indexed: true }
}

/// How many blocks of names a directory may have: a tree with one level between root and leaves.
pub(super) const MOST_BLOCKS: usize = IN_ROOT * IN_NODE;

/// A block without names.
pub(super) fn empty(checksum: Checksum) -> Vec<u8> {
    leaf(&[&Entry { name: b"", inode: 0, kind: 0 }], checksum)
}

fn leaf(entries: &[&Entry<'_>], checksum: Checksum) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    for (index, entry) in entries.iter().enumerate() {
        // The last one reaches to the end.
        let length = if index + 1 == entries.len() { ROOM - at } else { entry.bytes() };
        put(&mut block, at, entry, length);
        at += length;
    }
    block.put16(ROOM + 4, u16::try_from(TAIL).unwrap_or(0));
    block[ROOM + 7] = 0xde;
    let sum = checksum.over(&block[..ROOM]);
    block.put32(ROOM + 8, sum.value());
    block
}

fn put(block: &mut [u8], at: usize, entry: &Entry<'_>, length: usize) {
    block.put32(at, entry.inode);
    block.put16(at + 4, u16::try_from(length).unwrap_or(u16::MAX));
    block[at + 6] = u8::try_from(entry.name.len()).unwrap_or(u8::MAX);
    block[at + 7] = entry.kind;
    block.put(at + 8, entry.name);
}

/// Where the lists of hashes begin in the root and in the nodes below, and how many fit before their checksums.
const ROOT_LIST: usize = 32;
const NODE_LIST: usize = 8;
const IN_ROOT: usize = (BLOCK - ROOT_LIST - 8) / 8;
const IN_NODE: usize = (BLOCK - NODE_LIST - 8) / 8;
/// Half of MD4. That letters count without a sign is said in the superblock.
pub(super) const HASH_VERSION: u8 = 1;

fn root(own: u32, parent: u32, list: &[(u32, u32)], levels: u8, checksum: Checksum) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    put(&mut block, 0, &Entry { name: b".", inode: own, kind: DIRECTORY }, 12);
    put(&mut block, 12, &Entry { name: b"..", inode: parent, kind: DIRECTORY }, BLOCK - 12);
    block[28] = HASH_VERSION;
    block[29] = 8; // length of this description
    block[30] = levels;
    index(&mut block, ROOT_LIST, IN_ROOT, list, checksum);
    block
}

fn node(list: &[(u32, u32)], checksum: Checksum) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    // To whoever doesn't know of trees it's an unused entry.
    block.put16(4, u16::try_from(BLOCK).unwrap_or(0));
    index(&mut block, NODE_LIST, IN_NODE, list, checksum);
    block
}

fn index(block: &mut [u8], at: usize, most: usize, list: &[(u32, u32)], checksum: Checksum) {
    for (number, (hash, place)) in list.iter().enumerate() {
        block.put32(at + 8 * number, *hash);
        block.put32(at + 8 * number + 4, *place);
    }
    // The first has no hash: in its place stands how many there are.
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    block.put16(at, count(most));
    block.put16(at + 2, count(list.len()));
    let tail = at + 8 * most;
    let sum = checksum.over(&block[..at + 8 * list.len()]).over(&[0; 8]);
    block.put32(tail + 4, sum.value());
}

/// As the kernel's `ext4fs_dirhash` (half MD4, unsigned).
fn hash(name: &[u8], seed: [u32; 4]) -> u32 {
    const NO_SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    const END_OF_DIRECTORY: u32 = 0x7fff_ffff << 1;
    let mut state = if seed == [0; 4] { NO_SEED } else { seed };
    let mut rest = name;
    while !rest.is_empty() {
        half_md4(&mut state, words(rest));
        rest = rest.get(32..).unwrap_or_default();
    }
    let hash = state[1] & !1;
    if hash == END_OF_DIRECTORY { END_OF_DIRECTORY - 2 } else { hash }
}

/// Eight words of a name, the rest filled up with its length.
fn words(rest: &[u8]) -> [u32; 8] {
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX) & 0xff;
    let pad = length | length << 8 | length << 16 | length << 24;
    let mut words = [pad; 8];
    for (word, part) in words.iter_mut().zip(rest.get(..rest.len().min(32)).unwrap_or_default().chunks(4)) {
        *word = part.iter().fold(pad, |word, byte| word << 8 | u32::from(*byte));
    }
    words
}

/// RFC 1320's rounds, each over half as many words.
fn half_md4(state: &mut [u32; 4], words: [u32; 8]) {
    const SECOND: u32 = 0x5a82_7999;
    const THIRD: u32 = 0x6ed9_eba1;
    type Mix = fn(u32, u32, u32) -> u32;
    let choose: Mix = |x, y, z| z ^ (x & (y ^ z));
    let majority: Mix = |x, y, z| (x & y).wrapping_add((x ^ y) & z);
    let parity: Mix = |x, y, z| x ^ y ^ z;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (majority, SECOND, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (parity, THIRD, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, turns) in rounds {
        for (index, turn) in order.into_iter().zip(turns.into_iter().cycle()) {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(words[index]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(turn), b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}
