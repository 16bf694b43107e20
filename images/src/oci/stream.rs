//! Layers as one tar: directories first, then each layer's files as far as they are left, in their order, so that what two
//! images have in common is at the same place in both tars.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::vec;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::archive::{Archive, Kind, Member};

use super::digest::{Digest, Hashed};
use super::documents::Compression;
use super::layout::{Blob, Part};
use super::merge::{Id, Left, Tree};
use crate::tar_header;

const BUFFER: usize = 256 << 10;
/// Two blocks of zeros.
const END: usize = 1024;

/// A layer that was checked as it is stored, and is checked as it is unpacked whenever it's read.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) blob: Blob,
    pub(super) compression: Compression,
    pub(super) digest: Digest,
    pub(super) diff_id: Digest,
}

type Unpacked = Hashed<Box<dyn Read>>;

impl Layer {
    fn read(&self) -> Result<Archive<Unpacked>> {
        let stored: BufReader<Part> = BufReader::with_capacity(BUFFER, self.blob.read());
        let unpacked: Box<dyn Read> = match self.compression {
            Compression::None => Box::new(stored),
            Compression::Gzip => {
                Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(stored)))
            }
            Compression::Zstd => Box::new(BufReader::with_capacity(
                BUFFER,
                zstd::Decoder::with_buffer(stored).with_context(|| format!("unpacking the layer {}", self.digest))?,
            )),
        };
        Ok(Archive::new(Hashed::new(unpacked, &self.diff_id, "the layer, unpacked,")))
    }

    /// Shows every member, and fails if the layer wasn't the right one.
    fn members(&self, mut each: impl FnMut(u64, &Member) -> Result<()>) -> Result<()> {
        let mut archive = self.read()?;
        let mut ordinal = 0;
        while let Some(member) = archive.next_member()? {
            each(ordinal, &member)?;
            ordinal += 1;
        }
        io::copy(&mut archive.into_rest(), &mut io::sink())?;
        Ok(())
    }
}

/// The tar, to be read once.
pub(crate) struct Merged {
    layers: Vec<Layer>,
    directories: vec::IntoIter<Member>,
    /// What is left of each layer's members, by the names that they have in the end.
    names: HashMap<Id, Vec<PathBuf>>,
    /// The layer that is being read, with how many of its members were.
    now: Option<(Archive<Unpacked>, u64)>,
    next: usize,
    ended: bool,
    /// To be handed on before anything else.
    ready: Vec<u8>,
    handed: usize,
    /// Of the current file; then its padding and other names, which are handed on after its data.
    data_left: u64,
    after: Vec<u8>,
}

impl std::fmt::Debug for Merged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merged").field("layers", &self.layers).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Merged {
    pub(super) fn of(layers: Vec<Layer>) -> Result<Self> {
        ensure!(!layers.is_empty(), "it has no layers");
        let mut tree = Tree::default();
        for (index, layer) in layers.iter().enumerate() {
            let each = |ordinal, member: &Member| Ok(tree.apply((index, ordinal), member)?);
            layer.members(each).with_context(|| format!("applying the layer {}", layer.digest))?;
        }
        let Left { directories, names } = tree.left();
        let directories = directories.into_iter();
        Ok(Self {
            layers,
            directories,
            names,
            now: None,
            next: 0,
            ended: false,
            ready: Vec::new(),
            handed: 0,
            data_left: 0,
            after: Vec::new(),
        })
    }

    /// Puts what comes next into `ready`; nothing at the end.
    fn advance(&mut self) -> Result<()> {
        self.ready.clear();
        self.handed = 0;
        if !self.after.is_empty() {
            std::mem::swap(&mut self.ready, &mut self.after);
            return Ok(());
        }
        if let Some(member) = self.directories.next() {
            self.ready = tar_header::of(&member, &member.path);
            return Ok(());
        }
        loop {
            let Some((mut archive, ordinal)) = self.now.take() else {
                match self.layers.get(self.next) {
                    Some(layer) => self.now = Some((layer.read()?, 0)),
                    None if self.ended => return Ok(()),
                    None => {
                        // Whatever was decided to be left has been handed on, or the layers aren't what they were.
                        ensure!(self.names.is_empty(), "the layers changed while they were read");
                        self.ended = true;
                        self.ready = vec![0; END];
                        return Ok(());
                    }
                }
                continue;
            };
            match archive.next_member()? {
                Some(member) => {
                    let names = self.names.remove(&(self.next, ordinal));
                    self.now = Some((archive, ordinal + 1));
                    if let Some(names) = names {
                        self.take(&member, names);
                        return Ok(());
                    }
                }
                None => {
                    io::copy(&mut archive.into_rest(), &mut io::sink())?;
                    self.next += 1;
                }
            }
        }
    }

    /// A member that is left: once as what it is, and as a hard link for each of its other names.
    fn take(&mut self, member: &Member, names: Vec<PathBuf>) {
        let mut names = names.into_iter();
        let Some(first) = names.next() else { return };
        self.ready = tar_header::of(member, &first);
        if let Kind::File(content) = &member.kind {
            self.data_left = content.segments().iter().map(|segment| segment.length).sum();
            self.after = vec![0; tar_header::padding(self.data_left)];
        }
        for name in names {
            let kind = Kind::HardLink { target: first.clone() };
            self.after.extend(tar_header::of(&Member { kind, xattrs: Vec::new(), ..member.clone() }, &name));
        }
    }
}

impl Read for Merged {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.handed == self.ready.len() && self.data_left == 0 {
            self.advance().map_err(io::Error::other)?;
        }
        let ready = self.ready.get(self.handed..).unwrap_or_default();
        if !ready.is_empty() {
            let n = ready.len().min(buffer.len());
            buffer[..n].copy_from_slice(&ready[..n]);
            self.handed += n;
            return Ok(n);
        }
        let Some((archive, _)) = self.now.as_mut().filter(|_| self.data_left > 0) else { return Ok(0) };
        let most = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        let n = archive.read(&mut buffer[..most])?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a layer ends in the middle of a file"));
        }
        self.data_left -= n as u64;
        Ok(n)
    }
}
