//! Where the blobs of a layout are: files of a directory, or members of a tar of it.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::archive::{Archive, Kind, inside};

use super::Hashed;
use super::documents::{Descriptor, MAX_BYTES};

/// What says that a directory is one.
pub(super) const MARK: &str = "oci-layout";
const INDEX: &str = "index.json";

/// What a tar of a layout has at its top; the last two are Docker's, beside the rest.
const TOP: [&str; 5] = [MARK, INDEX, "blobs", "manifest.json", "repositories"];

/// A layout has one file for each layer and document.
const MAX_FILES: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct Layout(Place);

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Tar { file: Rc<File>, members: HashMap<PathBuf, Extent> },
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    at: u64,
    bytes: u64,
}

/// Whether a tar is that of a layout rather than of a root file system. It's read as far as it takes to know.
pub(crate) fn is_layout(tar: impl Read) -> bool {
    let mut archive = Archive::new(tar);
    let mut marked = false;
    // One that can't be read is for whoever reads it in earnest to complain about.
    while let Ok(Some(member)) = archive.next_member() {
        let Ok(path) = inside(&member.path) else { return false };
        let Some(top) = path.iter().next() else { continue };
        if !TOP.iter().any(|known| top == *known) {
            return false;
        }
        marked |= path == Path::new(MARK);
    }
    marked
}

impl Layout {
    pub(super) fn directory(dir: &Path) -> Result<Self> {
        let layout = Self(Place::Directory(dir.to_owned()));
        layout.check_mark()?;
        Ok(layout)
    }

    /// `file` is a tar without compression.
    pub(crate) fn tar(file: File) -> Result<Self> {
        let at = Rc::new(Cell::new(0));
        let file = Rc::new(file);
        let mut archive =
            Archive::new(Counted { part: Part { file: file.clone(), at: 0, left: u64::MAX }, at: at.clone() });
        let mut members = HashMap::new();
        while let Some(member) = archive.next_member().context("reading the tar of the layout")? {
            if let Kind::File(content) = &member.kind {
                let path = inside(&member.path).context("reading the tar of the layout")?;
                ensure!(content.segments.is_none(), "{} in the layout is a file with holes", path.display());
                ensure!(members.len() < MAX_FILES, "the layout has more than {MAX_FILES} files");
                members.insert(path, Extent { at: at.get(), bytes: content.bytes });
            }
        }
        let layout = Self(Place::Tar { file, members });
        layout.check_mark()?;
        Ok(layout)
    }

    fn check_mark(&self) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Mark {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let mark: Mark = serde_json::from_slice(&self.file(Path::new(MARK))?.bytes()?)
            .with_context(|| format!("understanding {MARK}"))?;
        ensure!(mark.version.starts_with("1."), "it is an image layout of version {}; 1 is understood", mark.version);
        Ok(())
    }

    pub(super) fn index(&self) -> Result<Vec<u8>> {
        self.file(Path::new(INDEX))?.bytes()
    }

    /// What the digest of `descriptor` is of, not read yet.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Blob> {
        let blob = self.file(Path::new(&descriptor.digest.path()))?;
        ensure!(
            blob.extent.bytes == descriptor.size,
            "{} has {} bytes instead of {}",
            descriptor.digest.path(),
            blob.extent.bytes,
            descriptor.size
        );
        Ok(blob)
    }

    /// A small blob, checked.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let blob = self.blob(descriptor)?;
        blob.check(descriptor)?;
        blob.bytes()
    }

    fn file(&self, path: &Path) -> Result<Blob> {
        match &self.0 {
            Place::Directory(dir) => {
                let path = dir.join(path);
                let opening = || format!("opening {}", path.display());
                let file = File::open(&path).with_context(opening)?;
                let facts = file.metadata().with_context(opening)?;
                ensure!(facts.is_file(), "{} isn't a file", path.display());
                Ok(Blob { file: Rc::new(file), extent: Extent { at: 0, bytes: facts.len() }, name: path })
            }
            Place::Tar { file, members } => {
                let extent = members.get(path).copied();
                let extent = extent.with_context(|| format!("the layout has no {}", path.display()))?;
                Ok(Blob { file: file.clone(), extent, name: path.to_owned() })
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Blob {
    file: Rc<File>,
    extent: Extent,
    name: PathBuf,
}

impl Blob {
    pub(super) fn read(&self) -> Part {
        Part { file: self.file.clone(), at: self.extent.at, left: self.extent.bytes }
    }

    /// Whether it's what its descriptor promises.
    pub(super) fn check(&self, descriptor: &Descriptor) -> Result<()> {
        let mut hashed = Hashed::new(self.read(), &descriptor.digest, "the blob");
        io::copy(&mut hashed, &mut io::sink()).with_context(|| format!("reading {}", self.name.display()))?;
        Ok(())
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let name = self.name.display();
        ensure!(
            self.extent.bytes <= MAX_BYTES,
            "{name} has {} bytes, more than such a file can have",
            self.extent.bytes
        );
        let mut bytes = Vec::new();
        self.read().read_to_end(&mut bytes).with_context(|| format!("reading {name}"))?;
        Ok(bytes)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn holding(bytes: &[u8]) -> Result<Self> {
        let file = tempfile::tempfile()?;
        file.write_all_at(bytes, 0)?;
        let extent = Extent { at: 0, bytes: bytes.len() as u64 };
        Ok(Self { file: Rc::new(file), extent, name: "a layer".into() })
    }
}

/// A part of a file, read without moving the file's own position.
#[derive(Debug)]
pub(super) struct Part {
    file: Rc<File>,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Says how far it has been read.
struct Counted {
    part: Part,
    at: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.part.read(buffer)?;
        self.at.set(self.part.at);
        Ok(n)
    }
}
