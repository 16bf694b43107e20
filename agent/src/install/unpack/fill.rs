//! What files hold, on its way from the stream into them.

use std::fs::File;
use std::io::{self, BufRead};
use std::os::unix::fs::FileExt as _;

use anyhow::Context;
use drophammer_protocol::archive::{Content, Segment};

use crate::sys::block::{self, Aligned};

/// A file of this size and more goes past the kernel's cache: copying it there takes longer than the drive does, and the
/// installed system starts with an empty cache.
const LARGE: u64 = 1 << 20;
/// What is written at once past the cache.
const PART: usize = 1 << 20;
/// No drive has larger blocks, and no file system that is made here.
const BLOCK: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Filler {
    part: Aligned,
}

impl Filler {
    pub(super) fn fill(&mut self, file: &File, content: &Content, data: &mut impl BufRead) -> anyhow::Result<()> {
        if let Some(segments) = &content.segments {
            segments.iter().try_for_each(|segment| copy(data, file, *segment))?;
            // What ends in a hole.
            return file.set_len(content.bytes).context("setting its size");
        }
        let cached = if content.bytes >= LARGE { self.past_cache(file, content.bytes, data)? } else { 0 };
        copy(data, file, Segment { offset: cached, length: content.bytes - cached })
    }

    /// Returns how many bytes were written so: all but the end that is no whole block. A file system that can't do it is
    /// written to as usual.
    fn past_cache(&mut self, file: &File, bytes: u64, data: &mut impl BufRead) -> anyhow::Result<u64> {
        // Not every file system opens files so.
        let Ok(direct) = block::direct(file, true) else { return Ok(0) };
        let mut at = 0;
        loop {
            let whole = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(PART) / BLOCK * BLOCK;
            if whole == 0 {
                return Ok(at);
            }
            self.part.resize(whole);
            data.read_exact(&mut self.part).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => cut(),
                _ => anyhow::Error::from(e).context(READING),
            })?;
            match direct.write_all_at(&self.part, at) {
                // Nor does every one that does write so.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => file.write_all_at(&self.part, at),
                written => written,
            }
            .context("writing it")?;
            at += whole as u64;
        }
    }
}

const READING: &str = "reading the tar stream";

fn cut() -> anyhow::Error {
    anyhow::anyhow!("the tar stream ends in the middle of it")
}

fn copy(from: &mut impl BufRead, to: &File, segment: Segment) -> anyhow::Result<()> {
    let (mut at, mut left) = (segment.offset, segment.length);
    while left > 0 {
        let bytes = match from.fill_buf() {
            Ok([]) => return Err(cut()),
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).context(READING),
        };
        let bytes = bytes.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(bytes);
        to.write_all_at(bytes, at).context("writing it")?;
        let count = bytes.len();
        from.consume(count);
        at += count as u64;
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn bytes(count: u64) -> Vec<u8> {
        (0..count).map(|n| u8::try_from(n * 31 % 251).expect("small")).collect()
    }

    #[test]
    fn files_of_any_size_are_what_they_were() {
        let memory = Path::new("/dev/shm");
        let places = [Some(std::env::temp_dir()), memory.is_dir().then(|| memory.to_owned())];
        let mut filler = Filler::default();
        for place in places.into_iter().flatten() {
            for size in [0, 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 4095, LARGE + 4096, 3 * LARGE, 4 * LARGE + 77_777] {
                let wanted = bytes(size);
                let file = tempfile::NamedTempFile::new_in(&place).expect("a file");
                // It comes in pieces whose ends are nowhere in particular, and something else follows.
                let stream = [&wanted[..], b"of the next"].concat();
                let (first, second) = stream.split_at(stream.len() / 3);
                let mut data = io::BufReader::with_capacity(70_001, io::Read::chain(first, second));
                let content = Content { bytes: size, segments: None };
                filler.fill(file.as_file(), &content, &mut data).expect("filled");
                let name = format!("{size} bytes in {}", place.display());
                assert!(fs::read(file.path()).expect("read") == wanted, "{name}");
                assert_eq!(data.fill_buf().expect("the rest").first(), Some(&b'o'), "{name}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_is_an_error() {
        for (has, wants) in [(0, 1), (LARGE - 1, LARGE), (LARGE + 5, LARGE + 6), (LARGE, 3 * LARGE)] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let content = Content { bytes: wants, segments: None };
            let error = Filler::default().fill(file.as_file(), &content, &mut &bytes(has)[..]).expect_err("cut");
            assert!(format!("{error:#}").contains("ends in the middle of it"), "{has} of {wants}: {error:#}");
        }
    }
}
