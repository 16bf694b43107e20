//! A part of a file, read at any place without moving the file's own position.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

#[derive(Clone, Debug)]
pub(crate) struct Window {
    file: Rc<File>,
    start: u64,
    bytes: u64,
}

impl Window {
    /// All of it.
    pub(crate) fn of(file: File) -> Result<Self> {
        // A block device has no other size than where its end is.
        let bytes = (&file).seek(SeekFrom::End(0)).context("finding its end")?;
        Ok(Self { file: Rc::new(file), start: 0, bytes })
    }

    /// `None` if it isn't all inside of this one.
    pub(crate) fn part(&self, start: u64, bytes: u64) -> Option<Self> {
        let end = start.checked_add(bytes)?;
        let start = self.start.checked_add(start)?;
        (end <= self.bytes).then(|| Self { file: self.file.clone(), start, bytes })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `buffer` from byte `at` on.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let inside = at.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.bytes);
        ensure!(inside, "it ends at byte {}, and what is at byte {at} reaches beyond", self.bytes);
        self.file.read_exact_at(buffer, self.start + at).with_context(|| format!("reading it at byte {at}"))
    }

    /// The first `most` bytes, or as many as there are.
    pub(crate) fn head(&self, most: usize) -> Result<Vec<u8>> {
        let mut head = vec![0; usize::try_from(self.bytes).unwrap_or(usize::MAX).min(most)];
        self.read(0, &mut head)?;
        Ok(head)
    }
}

/// From byte `at` on.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    window: &'a Window,
    at: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(window: &'a Window) -> Self {
        Self { window, at: 0 }
    }
}

impl io::Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.window.bytes.saturating_sub(self.at);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.window.file.read_at(&mut buffer[..most], self.window.start + self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.window.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
