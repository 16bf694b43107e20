//! CRC32C as ext4 uses it: not inverted at either end, and chained from what a block belongs to.

#[derive(Clone, Copy, Debug)]
pub(super) struct Checksum(u32);

impl Checksum {
    pub(super) const START: Self = Self(!0);

    pub(super) fn over(self, bytes: &[u8]) -> Self {
        // The crate inverts before and after, as most users of CRC32C want it.
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// One that a superblock says.
    pub(super) fn stored(value: u32) -> Self {
        Self(value)
    }

    /// What everything of one inode starts from.
    pub(super) fn of_inode(self, inode: u32, generation: u32) -> Self {
        self.over(&inode.to_le_bytes()).over(&generation.to_le_bytes())
    }

    pub(super) fn value(self) -> u32 {
        self.0
    }

    /// Lower and upper half, which many structures keep apart.
    pub(super) fn halves(self) -> (u16, u16) {
        let [a, b, c, d] = self.0.to_le_bytes();
        (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    }
}

/// Numbers of a structure at their offsets. What lies beyond its end reads as zero, as in what older versions wrote.
pub(super) trait Fields {
    fn get16(&self, at: usize) -> u16;

    fn get32(&self, at: usize) -> u32;

    /// A number whose lower and upper half are apart.
    fn get_split(&self, low: usize, high: usize) -> u64 {
        u64::from(self.get32(high)) << 32 | u64::from(self.get32(low))
    }

    fn put(&mut self, at: usize, bytes: &[u8]);

    fn put16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn put_split(&mut self, low: usize, high: usize, value: u64) {
        let bytes = value.to_le_bytes();
        self.put(low, &bytes[..4]);
        self.put(high, &bytes[4..]);
    }
}

impl Fields for [u8] {
    fn get16(&self, at: usize) -> u16 {
        self.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    fn get32(&self, at: usize) -> u32 {
        self.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_kernel_counts() {
        // RFC 3720, B.4: 32 bytes of zeros are 0x8a9136aa when inverted at both ends.
        assert_eq!(!Checksum::START.over(&[0; 32]).value(), 0x8a91_36aa);
        let halves = Checksum::START.over(&[0; 16]).over(&[0; 16]);
        assert_eq!(halves.value(), Checksum::START.over(&[0; 32]).value(), "chained");
    }
}
