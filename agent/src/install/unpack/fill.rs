//! What files hold, on its way from the stream into them.

use std::fs::File;
use std::io::{self, BufRead};
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};

use anyhow::Context;
use drophammer_protocol::archive::{Content, Segment};

use crate::sys::block::{self, Aligned};

/// A file of this size and more goes past the kernel's cache: copying it there takes longer than the drive does, and the
/// installed system starts with an empty cache.
const LARGE: u64 = 1 << 20;
/// What is written at once past the cache.
const PART: usize = 1 << 20;
/// So many are read ahead of the drive.
const PARTS: usize = 4;
/// No drive has larger blocks, and no file system that is made here.
const BLOCK: usize = 4096;

/// Whether the content goes by way of [`PartReader`] and [`PartWriter`], rather than [`copy_to`].
pub(super) fn is_large(content: &Content) -> bool {
    content.segments.is_none() && content.bytes >= LARGE
}

pub(super) fn copy_to(file: &File, content: &Content, data: &mut impl BufRead) -> anyhow::Result<()> {
    content.segments().iter().try_for_each(|segment| copy(data, file, *segment))?;
    if content.segments.is_some() {
        // It may end in a hole.
        file.set_len(content.bytes).context("setting its size")?;
    }
    Ok(())
}

/// Large files are read on one thread while they are written on another. The memory goes round, so there is no more of it
/// than here, and neither waits for the other when that is gone.
pub(super) fn part_circle() -> (PartReader, PartWriter) {
    let (back, spare) = sync_channel(PARTS);
    for _ in 0..PARTS {
        // There is room for all of them.
        back.try_send(Aligned::default()).ok();
    }
    (PartReader { spare }, PartWriter { back })
}

#[derive(Debug)]
pub(super) struct PartReader {
    spare: Receiver<Aligned>,
}

#[derive(Debug)]
pub(super) struct PartWriter {
    back: SyncSender<Aligned>,
}

impl PartReader {
    pub(super) fn read(&self, bytes: u64, data: &mut impl BufRead, parts: &Sender<Aligned>) -> anyhow::Result<()> {
        const ENDED: &str = "the thread that writes it has ended";
        let mut left = bytes;
        while left > 0 {
            let mut part = self.spare.recv().context(ENDED)?;
            part.resize(usize::try_from(left).unwrap_or(usize::MAX).min(PART));
            data.read_exact(&mut part).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => cut(),
                _ => anyhow::Error::from(e).context(READING),
            })?;
            left -= part.len() as u64;
            parts.send(part).context(ENDED)?;
        }
        Ok(())
    }
}

impl PartWriter {
    /// Until there is no more; who reads knows whether that was all.
    pub(super) fn write(&self, file: &File, parts: &Receiver<Aligned>) -> anyhow::Result<()> {
        // Not every file system opens files so. Through the cache it takes longer, and that is all.
        let direct = block::direct(file, true).ok();
        let mut at = 0;
        for part in parts {
            let (blocks, end) = part.split_at(part.len() / BLOCK * BLOCK);
            let past_cache = direct.as_ref().map(|direct| direct.write_all_at(blocks, at));
            match past_cache {
                // Nor does every one that does write so.
                Some(Err(e)) if e.kind() != io::ErrorKind::InvalidInput => Err(e),
                Some(Ok(())) => Ok(()),
                _ => file.write_all_at(blocks, at),
            }
            .and_then(|()| file.write_all_at(end, at + blocks.len() as u64))
            .context("writing it")?;
            at += part.len() as u64;
            // Nobody needs it when whoever reads is gone.
            self.back.send(part).ok();
        }
        Ok(())
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
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::{fs, thread};

    use super::*;

    fn bytes(count: u64) -> Vec<u8> {
        (0..count).map(|n| u8::try_from(n * 31 % 251).expect("small")).collect()
    }

    /// As the unpacker does it.
    fn fill(file: &File, bytes: u64, data: &mut (impl BufRead + Send)) -> anyhow::Result<()> {
        let content = Content { bytes, segments: None };
        if !is_large(&content) {
            return copy_to(file, &content, data);
        }
        let (reader, writer) = part_circle();
        let (sender, parts) = channel();
        thread::scope(|scope| {
            // Owned there: nothing more is sent when it ends.
            let reading = scope.spawn(move || reader.read(bytes, data, &sender));
            writer.write(file, &parts)?;
            reading.join().expect("reads")
        })
    }

    #[test]
    fn files_of_any_size_are_what_they_were() {
        let memory = Path::new("/dev/shm");
        let places = [Some(std::env::temp_dir()), memory.is_dir().then(|| memory.to_owned())];
        for place in places.into_iter().flatten() {
            for size in [0, 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 4095, LARGE + 4096, 3 * LARGE, 7 * LARGE + 77_777] {
                let wanted = bytes(size);
                let file = tempfile::NamedTempFile::new_in(&place).expect("a file");
                // It comes in pieces whose ends are nowhere in particular, and something else follows.
                let stream = [&wanted[..], b"of the next"].concat();
                let (first, second) = stream.split_at(stream.len() / 3);
                let mut data = io::BufReader::with_capacity(70_001, io::Read::chain(first, second));
                fill(file.as_file(), size, &mut data).expect("filled");
                let name = format!("{size} bytes in {}", place.display());
                assert!(fs::read(file.path()).expect("read") == wanted, "{name}");
                assert_eq!(data.fill_buf().expect("the rest").first(), Some(&b'o'), "{name}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_is_an_error() {
        for (has, wants) in [(0, 1), (LARGE - 1, LARGE), (LARGE + 5, LARGE + 6), (LARGE, 7 * LARGE)] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let error = fill(file.as_file(), wants, &mut &bytes(has)[..]).expect_err("cut");
            assert!(format!("{error:#}").contains("ends in the middle of it"), "{has} of {wants}: {error:#}");
        }
    }

    #[test]
    fn who_reads_doesnt_wait_for_a_writer_that_is_gone() {
        let (reader, writer) = part_circle();
        let (sender, parts) = channel();
        drop((writer, parts));
        let error = reader.read(7 * LARGE, &mut &bytes(7 * LARGE)[..], &sender).expect_err("nobody writes");
        assert!(format!("{error:#}").contains("the thread that writes it has ended"), "{error:#}");
    }
}
