//! Checking a published image without a network: all that a machine checks while it installs, and what it can only find
//! out afterwards.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use drophammer_protocol::manifest::{Chunk, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, ManifestError};
use drophammer_protocol::sign::{PublicKey, SignError, Signed, Verified};
use sha2::{Digest, Sha256};

use crate::scan::{Contents, Unfit};

/// Why an image isn't to be installed.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is larger than any manifest may be ({MAX_MANIFEST_BYTES} bytes)", .0.display())]
    Huge(PathBuf),
    #[error("{} isn't a signed manifest: {why}", path.display())]
    NotAManifest { path: PathBuf, why: String },
    #[error("the manifest isn't to be believed")]
    Signature(#[from] SignError),
    #[error("the manifest is signed but can't be used")]
    Manifest(#[from] ManifestError),
    #[error("the manifest is that of {signed}, not of {place}: images were mixed up or renamed")]
    Misplaced { signed: String, place: String },
    #[error("{file} has {got} bytes instead of {want}")]
    Length { file: String, got: u64, want: u64 },
    #[error("frame {index} of {count} (at byte {offset}) was altered: its SHA-256 isn't that of the manifest")]
    Frame { index: usize, count: usize, offset: u64 },
    #[error("frame {index} doesn't unpack to the {want} bytes that the manifest promises")]
    Unpacked { index: usize, want: u32 },
    #[error("the frames are right one by one, but the tar that they make isn't the one of the manifest")]
    Tar,
    #[error("the tar can't be unpacked as an image")]
    Unfit(#[from] Unfit),
    #[error("{path} in the image isn't the file of the manifest")]
    BootFile { path: String },
    #[error("the manifest names other files for starting a machine than the image has")]
    BootFiles,
}

/// Checks everything there is to check about the image in `dir`.
pub fn verify(dir: &Path, trusted: &[PublicKey]) -> Result<Verified<Manifest>, Problem> {
    let manifest = open_manifest(dir, trusted)?;
    let mut tar = TarOfFrames::open(dir, &manifest)?;
    let contents = Contents::read(&mut tar);
    // A bad frame shows as an unreadable tar; the frame is the cause.
    if let Some(problem) = tar.problem {
        return Err(problem);
    }
    let contents = contents?;
    if hex::encode(tar.hash.finalize()) != manifest.chunks.tar_sha256 {
        return Err(Problem::Tar);
    }
    let boot = &manifest.boot;
    let bios = boot.bios.iter().flat_map(|bios| [&bios.boot_img, &bios.core_img]);
    for file in [&boot.kernel].into_iter().chain(&boot.initrd).chain(bios).chain(&boot.uefi) {
        if contents.sha256(&file.path).as_ref() != Some(&file.sha256) {
            return Err(Problem::BootFile { path: file.path.clone() });
        }
    }
    if contents.boot_files(&boot.cmdline)? != *boot {
        return Err(Problem::BootFiles);
    }
    Ok(manifest)
}

/// The manifest in `dir`, if one of `trusted` signed it and it is sound and in its own place.
pub(crate) fn open_manifest(dir: &Path, trusted: &[PublicKey]) -> Result<Verified<Manifest>, Problem> {
    let path = dir.join(MANIFEST_FILE);
    let failed = |source| Problem::Read { path: path.clone(), source };
    let mut text = Vec::new();
    File::open(&path).map_err(failed)?.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(Problem::Huge(path));
    }
    let signed: Signed<Manifest> =
        serde_json::from_slice(&text).map_err(|e| Problem::NotAManifest { path: path.clone(), why: e.to_string() })?;
    let manifest = signed.open(trusted)?;
    manifest.check()?;
    // An old image under a new version's name is validly signed and still not what was asked for.
    let dir = std::fs::canonicalize(dir).map_err(failed)?;
    let mut parts = dir.iter().rev().map(|part| part.to_string_lossy().into_owned());
    let version = parts.next().unwrap_or_default();
    let place = format!("{}/{version}", parts.next().unwrap_or_default());
    if place != manifest.reference() {
        return Err(Problem::Misplaced { signed: manifest.reference(), place });
    }
    Ok(manifest)
}

/// The tar, frame by frame; no byte of a frame is unpacked before its hash is right.
struct TarOfFrames<'a> {
    file: BufReader<File>,
    path: PathBuf,
    frames: &'a [Chunk],
    next: usize,
    packed: Vec<u8>,
    unpacked: Vec<u8>,
    read: usize,
    hash: Sha256,
    problem: Option<Problem>,
}

impl<'a> TarOfFrames<'a> {
    fn open(dir: &Path, manifest: &'a Manifest) -> Result<Self, Problem> {
        let path = dir.join(&manifest.chunks.file);
        let failed = |source| Problem::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let got = file.metadata().map_err(failed)?.len();
        let want = manifest.chunks.frames.iter().map(|frame| u64::from(frame.length)).sum();
        if got != want {
            return Err(Problem::Length { file: manifest.chunks.file.clone(), got, want });
        }
        Ok(Self {
            file: BufReader::with_capacity(1 << 20, file),
            path,
            frames: &manifest.chunks.frames,
            next: 0,
            packed: Vec::new(),
            unpacked: Vec::new(),
            read: 0,
            hash: Sha256::new(),
            problem: None,
        })
    }

    fn unpack(&mut self, index: usize, frame: &Chunk) -> Result<(), Problem> {
        self.packed.clear();
        (&mut self.file)
            .take(u64::from(frame.length))
            .read_to_end(&mut self.packed)
            .map_err(|source| Problem::Read { path: self.path.clone(), source })?;
        if hex::encode(Sha256::digest(&self.packed)) != frame.sha256 {
            return Err(Problem::Frame { index, count: self.frames.len(), offset: frame.offset });
        }
        let want = frame.unpacked as usize;
        self.unpacked = zstd::bulk::decompress(&self.packed, want)
            .ok()
            .filter(|unpacked| unpacked.len() == want)
            .ok_or(Problem::Unpacked { index, want: frame.unpacked })?;
        self.hash.update(&self.unpacked);
        self.read = 0;
        Ok(())
    }
}

impl Read for TarOfFrames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.unpacked.len() {
            let Some(frame) = self.frames.get(self.next) else { return Ok(0) };
            if let Err(problem) = self.unpack(self.next, frame) {
                self.problem = Some(problem);
                return Err(io::Error::other("a frame is wrong"));
            }
            self.next += 1;
        }
        let rest = self.unpacked.get(self.read..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.read += n;
        Ok(n)
    }
}
