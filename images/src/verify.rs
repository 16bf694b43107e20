//! Checking a published image without a network: all that a machine checks while it installs, and what it can only find
//! out afterwards.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use drophammer_protocol::manifest::{
    self, Attachment, BlockForm, Chunk, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, ManifestError, Piece, TarForm,
};
use drophammer_protocol::revocation::Revoked;
use drophammer_protocol::sign::{PublicKey, Verified};
use sha2::{Digest, Sha256};

use crate::revoke::revoked;
use crate::scan::{Contents, Unfit};
use crate::store;
use crate::zeros::hash_zeros;

/// Why an image isn't to be installed.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the manifest in {}", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("the manifest is that of {signed}, not of {place}: images were mixed up or renamed")]
    Misplaced { signed: String, place: String },
    #[error("{} has {got} bytes instead of {want}", path.display())]
    Length { path: PathBuf, got: u64, want: u64 },
    #[error("{what} was altered: its SHA-256 isn't that of the manifest")]
    Altered { what: String },
    #[error("{what} doesn't unpack to what the manifest promises")]
    Unpacked { what: String },
    #[error("the chunks of the {form} form are right one by one, but together they aren't what the manifest says")]
    Whole { form: &'static str },
    #[error("the tar can't be unpacked as an image")]
    Unfit(#[from] Unfit),
    #[error("{path} in the image isn't the file of the manifest")]
    BootFile { path: String },
    #[error("{} is revoked: {}", .0.image, .0.reason)]
    Revoked(Revoked),
    #[error("the list of what is revoked can't be believed: {0}")]
    Revocations(String),
    #[error("the manifest names other files for starting a machine than the image has")]
    BootFiles,
}

/// Checks everything there is to check about the image in `dir`, which is in a store.
pub fn verify(dir: &Path, trusted: &[PublicKey]) -> Result<Verified<Manifest>, Problem> {
    let manifest = inspect(dir, trusted)?;
    match revoked(dir, &manifest, trusted) {
        Ok(None) => {}
        Ok(Some(revoked)) => return Err(Problem::Revoked(revoked)),
        Err(error) => return Err(Problem::Revocations(format!("{error:#}"))),
    }
    let dir = absolute(dir)?;
    let store = dir.ancestors().nth(2).unwrap_or(&dir);
    let packs = Packs::open(store, &manifest)?;
    if let Some(sbom) = &manifest.sbom {
        attachment(&dir, sbom)?;
    }
    if let Some(form) = &manifest.block {
        packs.check_block(form)?;
    }
    if let Some(form) = &manifest.tar {
        packs.check_tar(form, &manifest)?;
    }
    Ok(manifest)
}

/// The manifest in `dir`, if one of `trusted` signed it and it is sound and in its own place. Chunks aren't looked at.
pub fn inspect(dir: &Path, trusted: &[PublicKey]) -> Result<Verified<Manifest>, Problem> {
    let path = dir.join(MANIFEST_FILE);
    let failed = |source| Problem::Read { path: path.clone(), source };
    let mut text = Vec::new();
    File::open(&path).map_err(failed)?.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    let manifest = manifest::open(&text, trusted).map_err(|source| Problem::Manifest { path: path.clone(), source })?;
    // An old image under a new version's name is validly signed and still not what was asked for.
    let dir = absolute(dir)?;
    let mut parts = dir.iter().rev().map(|part| part.to_string_lossy().into_owned());
    let version = parts.next().unwrap_or_default();
    let place = format!("{}/{version}", parts.next().unwrap_or_default());
    if place != manifest.reference() {
        return Err(Problem::Misplaced { signed: manifest.reference(), place });
    }
    Ok(manifest)
}

fn absolute(dir: &Path) -> Result<PathBuf, Problem> {
    fs::canonicalize(dir).map_err(|source| Problem::Read { path: dir.to_owned(), source })
}

/// What lies beside the manifest, as it was signed.
pub(crate) fn attachment(dir: &Path, attachment: &Attachment) -> Result<Vec<u8>, Problem> {
    let path = dir.join(&attachment.file);
    let failed = |source| Problem::Read { path: path.clone(), source };
    let bytes = store::read_if_there(&path, MAX_ATTACHMENT_BYTES).map_err(failed)?;
    let bytes = bytes.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    if hex::encode(Sha256::digest(&bytes)) != attachment.sha256 {
        return Err(Problem::Altered { what: path.display().to_string() });
    }
    Ok(bytes)
}

/// A larger one isn't read.
pub(crate) const MAX_ATTACHMENT_BYTES: u64 = 256 << 20;

/// The packs of an image, open and of the right length.
struct Packs(Vec<(File, PathBuf)>);

impl Packs {
    fn open(store: &Path, manifest: &Manifest) -> Result<Self, Problem> {
        let mut packs = Vec::new();
        for pack in &manifest.packs {
            let path = store::pack_path(store, pack);
            let failed = |source| Problem::Read { path: path.clone(), source };
            let file = File::open(&path).map_err(failed)?;
            let got = file.metadata().map_err(failed)?.len();
            if got != pack.bytes {
                return Err(Problem::Length { path, got, want: pack.bytes });
            }
            packs.push((file, path));
        }
        Ok(Self(packs))
    }

    /// What a chunk unpacks to. Nothing is unpacked before its hash is right.
    fn content(&self, chunk: &Chunk, what: impl Fn() -> String) -> Result<Vec<u8>, Problem> {
        let mut frame = vec![0; chunk.length as usize];
        if let Some((file, path)) = self.0.get(chunk.pack as usize) {
            let read = file.read_exact_at(&mut frame, chunk.offset);
            read.map_err(|source| Problem::Read { path: path.clone(), source })?;
        }
        if hex::encode(Sha256::digest(&frame)) != chunk.sha256 {
            return Err(Problem::Altered { what: what() });
        }
        let want = chunk.unpacked as usize;
        zstd::bulk::decompress(&frame, want)
            .ok()
            .filter(|content| content.len() == want && hex::encode(Sha256::digest(content)) == chunk.content_sha256)
            .ok_or_else(|| Problem::Unpacked { what: what() })
    }

    fn check_block(&self, form: &BlockForm) -> Result<(), Problem> {
        let mut hash = Sha256::new();
        let mut at = 0;
        for (index, piece) in form.pieces.iter().enumerate() {
            hash_zeros(&mut hash, piece.at() - at);
            match piece {
                Piece::Chunk { chunk, at } => {
                    let what = || {
                        format!("piece {index} of {} of the block form, at byte {at} of the disk", form.pieces.len())
                    };
                    hash.update(self.content(chunk, what)?);
                }
                Piece::Zeros { length, .. } => hash_zeros(&mut hash, *length),
            }
            at = piece.at() + piece.length();
        }
        hash_zeros(&mut hash, form.bytes - at);
        if hex::encode(hash.finalize()) == form.sha256 { Ok(()) } else { Err(Problem::Whole { form: "block" }) }
    }

    fn check_tar(&self, form: &TarForm, manifest: &Manifest) -> Result<(), Problem> {
        let mut tar = TarOfChunks {
            packs: self,
            chunks: &form.chunks,
            next: 0,
            content: Vec::new(),
            read: 0,
            hash: Sha256::new(),
            problem: None,
        };
        let contents = Contents::read(&mut tar, |_, _| Ok(()));
        // A bad chunk shows as an unreadable tar; the chunk is the cause.
        if let Some(problem) = tar.problem {
            return Err(problem);
        }
        let contents = contents?;
        if hex::encode(tar.hash.finalize()) != form.sha256 {
            return Err(Problem::Whole { form: "tar" });
        }
        let boot = &manifest.boot;
        let bios = boot.bios.iter().flat_map(|bios| [&bios.boot_img, &bios.core_img]);
        for file in [&boot.kernel].into_iter().chain(&boot.initrd).chain(bios).chain(&boot.uefi) {
            if contents.sha256(&file.path).as_ref() != Some(&file.sha256) {
                return Err(Problem::BootFile { path: file.path.clone() });
            }
        }
        if contents.boot_files(&boot.cmdline, boot.by)? != *boot {
            return Err(Problem::BootFiles);
        }
        Ok(())
    }
}

/// The tar, chunk by chunk.
struct TarOfChunks<'a> {
    packs: &'a Packs,
    chunks: &'a [Chunk],
    next: usize,
    content: Vec<u8>,
    read: usize,
    hash: Sha256,
    problem: Option<Problem>,
}

impl Read for TarOfChunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.content.len() {
            let Some(chunk) = self.chunks.get(self.next) else { return Ok(0) };
            let what = || format!("chunk {} of {} of the tar form", self.next, self.chunks.len());
            match self.packs.content(chunk, what) {
                Ok(content) => self.content = content,
                Err(problem) => {
                    self.problem = Some(problem);
                    return Err(io::Error::other("a chunk is wrong"));
                }
            }
            self.hash.update(&self.content);
            (self.read, self.next) = (0, self.next + 1);
        }
        let rest = self.content.get(self.read..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.read += n;
        Ok(n)
    }
}
