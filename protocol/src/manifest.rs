//! What an image builder signs: which bytes make up an image, in which forms, and what in it starts a machine.
//!
//! A store of published images is a directory that any HTTP server can hold:
//!
//! ```text
//! <name>/<version>/manifest.json   Signed<Manifest>
//! <name>/<version>/sbom.spdx.json  the packages in it
//! packs/<SHA-256 of the pack>      chunks, one after the other
//! revoked.json                     Signed<Revocations>, if any image was revoked
//! ```
//!
//! An image comes in up to two forms. The *block form* is a file system that was made once, by whoever published it, and
//! is written to a partition as it is; the *tar form* is unpacked into whatever file system the machine has made. Both are
//! cut into chunks of up to 4 MiB. A chunk is one zstd frame of its own, with a hash of it packed (so that it's checked
//! before it's decompressed or written) and one of it unpacked (so that a disk can be compared with it afterwards), and can
//! be fetched by range from any mirror. Chunks live in *packs*, files that never change: a new version of an image refers
//! to the packs of older ones for every chunk that they share, and brings one pack with the rest.
//!
//! The JSON has one form: fields in the order in which they are declared here, no white space, nothing unknown. What
//! differs from it by a byte isn't a manifest.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::sign::{PublicKey, SignError, Signable, Signed, Verified};

pub const MANIFEST_FILE: &str = "manifest.json";

/// Directory of the packs in a store. No image can be called so.
pub const PACKS: &str = "packs";

/// The version of all this. A manifest of another isn't understood.
pub const FORMAT: u32 = 2;

/// No chunk unpacks to more than this: what a machine has to hold in memory at once is known before it fetches.
pub const MAX_CHUNK_BYTES: u32 = 4 << 20;

/// zstd makes what it can't compress a little longer, by less than this.
const MAX_GROWTH: u32 = (MAX_CHUNK_BYTES >> 8) + 64;

/// A manifest larger than this isn't read.
pub const MAX_MANIFEST_BYTES: u64 = 32 << 20;

/// Pieces of the block form begin and end at multiples of this.
pub const BLOCK_BYTES: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub name: String,
    pub version: String,
    /// `PRETTY_NAME` of its os-release, or a description.
    pub description: String,
    pub arch: String,
    /// Seconds since 1970.
    pub created: u64,
    /// From then on it isn't installed any more; in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires: Option<u64>,
    /// Space that the unpacked files need, without the file system's own.
    pub installed_bytes: u64,
    pub packs: Vec<Pack>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub block: Option<BlockForm>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tar: Option<TarForm>,
    pub boot: BootFiles,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sbom: Option<Attachment>,
    /// Where its root file system came from, if whoever signed this hasn't made it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<Source>,
    /// What a machine must have for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub minimum: Option<Minimum>,
}

impl Signable for Manifest {
    const CONTEXT: &'static str = "drophammer image manifest 2";
}

/// A file of chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    pub sha256: String,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Which of [`Manifest::packs`] it's in, and where.
    pub pack: u32,
    pub offset: u64,
    pub length: u32,
    /// SHA-256 of the frame as it is fetched.
    pub sha256: String,
    /// Size and SHA-256 when unpacked.
    pub unpacked: u32,
    pub content_sha256: String,
}

/// The root file system as it lies on a disk, as small as it can be. Every checksum in it holds for any UUID
/// (`metadata_csum_seed`), so a machine gives it one of its own, and lets it grow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockForm {
    pub filesystem: Filesystem,
    pub bytes: u64,
    /// SHA-256 of all of it, with zeros where nothing has to be written.
    pub sha256: String,
    /// In order. What lies between them may hold anything.
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filesystem {
    Ext4,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Piece {
    Chunk {
        at: u64,
        chunk: Chunk,
    },
    /// Has to read as zeros.
    Zeros {
        at: u64,
        length: u64,
    },
}

impl Piece {
    pub fn at(&self) -> u64 {
        match self {
            Self::Chunk { at, .. } | Self::Zeros { at, .. } => *at,
        }
    }

    pub fn length(&self) -> u64 {
        match self {
            Self::Chunk { chunk, .. } => chunk.unpacked.into(),
            Self::Zeros { length, .. } => *length,
        }
    }
}

/// The root file system as a tar stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TarForm {
    pub bytes: u64,
    /// SHA-256 of the whole stream.
    pub sha256: String,
    pub chunks: Vec<Chunk>,
}

/// A file beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
}

/// What an image was imported from. The signature says that this is what was fetched; whether it was what its publisher
/// meant is as sure as [`Checked`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Without user, password and query.
    pub url: String,
    pub checked: Checked,
    /// What was fetched, in hex: by the hash that it was checked with, or its SHA-256 if it wasn't.
    pub digest: String,
}

/// By what hash of its publisher an import was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Checked {
    Sha256,
    /// Finds what was damaged, not what was forged.
    Md5,
    Nothing,
}

impl Source {
    /// In words, so that nobody takes a weak check for a strong one.
    pub fn words(&self) -> String {
        let how = match self.checked {
            Checked::Sha256 => "checked by SHA-256",
            Checked::Md5 => "weakly checked: by MD5, which finds damage and not forgery",
            Checked::Nothing => "not checked by anything",
        };
        format!("{}, {how}", self.url)
    }

    fn is_sound(&self) -> bool {
        let digits = if self.checked == Checked::Md5 { 32 } else { 64 };
        !self.url.is_empty()
            && self.url.len() <= 2048
            && !self.url.chars().any(char::is_control)
            && self.digest.len() == digits
            && self.digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// Less than this, and the image doesn't run or doesn't do what it's for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Minimum {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_bytes: Option<u64>,
    /// Of the disk that it's installed on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disk_bytes: Option<u64>,
}

/// A file of the image, by absolute path in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    pub path: String,
    pub sha256: String,
}

/// What starts the installed system, found and hashed when the image was packed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootFiles {
    pub kernel: ImageFile,
    pub initrd: Option<ImageFile>,
    /// Kernel arguments that the image asks for, without `root=`.
    pub cmdline: String,
    /// GRUB for BIOS machines: `boot.img` and a `core.img` whose prefix is the third partition.
    pub bios: Option<BiosBoot>,
    /// An EFI program that reads `/EFI/debian/grub.cfg` of the partition it was started from.
    pub uefi: Option<ImageFile>,
    /// How its kernel wants to be started for the first time, if it isn't indifferent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<BootBy>,
}

/// How an installed system is started for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BootBy {
    /// By the agent's kernel, without a trip through the firmware.
    #[default]
    Kexec,
    /// By the firmware: for hardware that doesn't take kexec well.
    Reboot,
}

impl BootBy {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kexec => "kexec",
            Self::Reboot => "reboot",
        }
    }
}

impl FromStr for BootBy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = [Self::Kexec, Self::Reboot].into_iter().find(|by| by.name() == name);
        known.ok_or_else(|| format!("{name:?} is no way to start a system; there are kexec and reboot"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiosBoot {
    pub boot_img: ImageFile,
    pub core_img: ImageFile,
}

/// Why a manifest isn't used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    #[error("it is larger than any manifest may be ({MAX_MANIFEST_BYTES} bytes)")]
    Huge,
    #[error("it isn't a signed manifest: {0}")]
    NotAManifest(String),
    #[error("it isn't to be believed: {0}")]
    Signature(SignError),
    #[error("it isn't in the one form that a manifest has, though it was signed so")]
    Form,
    #[error("it is of format {0}, and this program knows format {FORMAT}: install the version that belongs to it")]
    Format(u32),
    #[error("{0:?} is not a plain name")]
    Name(String),
    #[error("{0:?} is not a SHA-256 in small letters")]
    Hash(String),
    #[error("it says that it came from {0:?}, in a way that makes no sense")]
    Source(String),
    #[error("it has neither a block form nor a tar form")]
    Formless,
    #[error("{0} is empty or unpacks to more than {MAX_CHUNK_BYTES} bytes")]
    ChunkSize(String),
    #[error("{0} lies outside of its pack")]
    Outside(String),
    #[error("{0} begins before the piece in front of it ends, ends behind the image, or in the middle of a block")]
    Misplaced(String),
    #[error("the chunks of the tar form unpack to {got} bytes, not to the {want} that the tar has")]
    Length { got: u64, want: u64 },
}

/// The manifest in `text`, if one of `trusted` signed it and it is sound.
pub fn open(text: &[u8], trusted: &[PublicKey]) -> Result<Verified<Manifest>, ManifestError> {
    if text.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(ManifestError::Huge);
    }
    let signed: Signed<Manifest> =
        serde_json::from_slice(text).map_err(|e| ManifestError::NotAManifest(e.to_string()))?;
    open_signed(&signed, trusted)
}

/// The same of what has been parsed already.
pub fn open_signed(signed: &Signed<Manifest>, trusted: &[PublicKey]) -> Result<Verified<Manifest>, ManifestError> {
    let manifest = signed.open(trusted).map_err(ManifestError::Signature)?;
    let again = serde_json::to_string(&*manifest).map_err(|e| ManifestError::NotAManifest(e.to_string()))?;
    if again != signed.payload {
        return Err(ManifestError::Form);
    }
    manifest.check()?;
    Ok(manifest)
}

/// By what orders and revocations name it: the SHA-256 of what was signed, which has one form.
pub fn payload_sha256(manifest: &Verified<Manifest>) -> String {
    let payload = serde_json::to_string(manifest.get()).expect("it was written so when it was opened");
    hex::encode(Sha256::digest(payload.as_bytes()))
}

impl Manifest {
    /// `name/version`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }

    /// Every chunk of every form.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        let pieces = self.block.iter().flat_map(|block| &block.pieces);
        let blocks = pieces.filter_map(|piece| match piece {
            Piece::Chunk { chunk, .. } => Some(chunk),
            Piece::Zeros { .. } => None,
        });
        blocks.chain(self.tar.iter().flat_map(|tar| &tar.chunks))
    }

    /// Whether it may still be installed, as far as its age goes.
    pub fn has_expired(&self, unix_seconds: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= unix_seconds)
    }

    /// What a machine fetches at most, by the form that it prefers.
    pub fn download_bytes(&self) -> u64 {
        let of = |chunks: &mut dyn Iterator<Item = &Chunk>| chunks.map(|chunk| u64::from(chunk.length)).sum();
        match (&self.block, &self.tar) {
            (Some(block), _) => of(&mut block.chunks()),
            (None, Some(tar)) => of(&mut tar.chunks.iter()),
            (None, None) => 0,
        }
    }

    /// Everything that a machine relies on while it fetches. Cheap; called before the first chunk is fetched.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.format != FORMAT {
            return Err(ManifestError::Format(self.format));
        }
        let named = [&self.name, &self.version].into_iter().chain(self.sbom.iter().map(|sbom| &sbom.file));
        if let Some(name) = named.into_iter().find(|name| !is_plain_name(name)) {
            return Err(ManifestError::Name(name.clone()));
        }
        if self.name == PACKS {
            return Err(ManifestError::Name(self.name.clone()));
        }
        if self.block.is_none() && self.tar.is_none() {
            return Err(ManifestError::Formless);
        }
        let forms = self.block.iter().map(|block| &block.sha256).chain(self.tar.iter().map(|tar| &tar.sha256));
        let hashes = self.packs.iter().map(|pack| &pack.sha256).chain(forms);
        if let Some(hash) = hashes.chain(self.sbom.iter().map(|sbom| &sbom.sha256)).find(|hash| !is_hash(hash)) {
            return Err(ManifestError::Hash(hash.clone()));
        }
        if let Some(source) = self.source.as_ref().filter(|source| !source.is_sound()) {
            return Err(ManifestError::Source(source.url.clone()));
        }
        if let Some(block) = &self.block {
            block.check(&self.packs)?;
        }
        if let Some(tar) = &self.tar {
            tar.check(&self.packs)?;
        }
        Ok(())
    }
}

impl BlockForm {
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Chunk { chunk, .. } => Some(chunk),
            Piece::Zeros { .. } => None,
        })
    }

    fn check(&self, packs: &[Pack]) -> Result<(), ManifestError> {
        let mut end = 0;
        for (index, piece) in self.pieces.iter().enumerate() {
            let name = || format!("piece {index} of the block form");
            if let Piece::Chunk { chunk, .. } = piece {
                chunk.check(packs, name)?;
            }
            let next = piece.at().checked_add(piece.length()).filter(|next| *next <= self.bytes);
            let whole = piece.at().is_multiple_of(BLOCK_BYTES) && piece.length().is_multiple_of(BLOCK_BYTES);
            match next {
                Some(next) if whole && piece.at() >= end && next > piece.at() => end = next,
                _ => return Err(ManifestError::Misplaced(name())),
            }
        }
        Ok(())
    }
}

impl TarForm {
    fn check(&self, packs: &[Pack]) -> Result<(), ManifestError> {
        let mut unpacked = 0;
        for (index, chunk) in self.chunks.iter().enumerate() {
            chunk.check(packs, || format!("chunk {index} of the tar form"))?;
            unpacked += u64::from(chunk.unpacked);
        }
        if unpacked != self.bytes {
            return Err(ManifestError::Length { got: unpacked, want: self.bytes });
        }
        Ok(())
    }
}

impl Chunk {
    fn check(&self, packs: &[Pack], name: impl Fn() -> String) -> Result<(), ManifestError> {
        if self.length == 0
            || self.unpacked == 0
            || self.unpacked > MAX_CHUNK_BYTES
            || self.length > MAX_CHUNK_BYTES + MAX_GROWTH
        {
            return Err(ManifestError::ChunkSize(name()));
        }
        let pack = usize::try_from(self.pack).ok().and_then(|index| packs.get(index));
        let end = self.offset.checked_add(self.length.into());
        if pack.zip(end).is_none_or(|(pack, end)| end > pack.bytes) {
            return Err(ManifestError::Outside(name()));
        }
        match [&self.sha256, &self.content_sha256].into_iter().find(|hash| !is_hash(hash)) {
            Some(hash) => Err(ManifestError::Hash(hash.clone())),
            None => Ok(()),
        }
    }
}

/// Whether this can be one component of a path or URL: no separators, nothing hidden, nothing that needs quoting.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+'))
}

/// A SHA-256 as it's written everywhere here.
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::fixtures::{chunk, manifest};

    fn tar(bytes: u64, chunks: Vec<Chunk>) -> TarForm {
        TarForm { bytes, sha256: "a".repeat(64), chunks }
    }

    #[test]
    fn what_a_machine_relies_on() {
        let good = manifest("debian", "12.1");
        let with_tar = |form| Manifest { tar: Some(form), ..good.clone() };
        let with_pieces = |pieces: Vec<Piece>| {
            let block = BlockForm { filesystem: Filesystem::Ext4, bytes: 1 << 20, sha256: "b".repeat(64), pieces };
            Manifest { block: Some(block), ..good.clone() }
        };
        let zeros = |at, length| Piece::Zeros { at, length };
        let outside = |what: &str| Err(ManifestError::Outside(what.into()));
        let misplaced = |index: usize| Err(ManifestError::Misplaced(format!("piece {index} of the block form")));
        let size = Err(ManifestError::ChunkSize("chunk 0 of the tar form".into()));
        let first = "chunk 0 of the tar form";
        for (name, manifest, want) in [
            ("as it is", good.clone(), Ok(())),
            ("another format", Manifest { format: 3, ..good.clone() }, Err(ManifestError::Format(3))),
            (
                "a name that leads elsewhere",
                Manifest { name: "..".into(), ..good.clone() },
                Err(ManifestError::Name("..".into())),
            ),
            (
                "the name of the packs",
                Manifest { name: PACKS.into(), ..good.clone() },
                Err(ManifestError::Name(PACKS.into())),
            ),
            (
                "a source of whose hash there is only a part",
                Manifest {
                    source: Some(Source { url: "u".into(), checked: Checked::Sha256, digest: "a".repeat(32) }),
                    ..good.clone()
                },
                Err(ManifestError::Source("u".into())),
            ),
            (
                "one checked by MD5",
                Manifest {
                    source: Some(Source { url: "u".into(), checked: Checked::Md5, digest: "a".repeat(32) }),
                    ..good.clone()
                },
                Ok(()),
            ),
            ("no form", Manifest { block: None, tar: None, ..good.clone() }, Err(ManifestError::Formless)),
            ("two that make up the tar", with_tar(tar(150, vec![chunk(0, 10, 100), chunk(10, 5, 50)])), Ok(())),
            ("the same twice", with_tar(tar(200, vec![chunk(0, 10, 100), chunk(0, 10, 100)])), Ok(())),
            (
                "one missing",
                with_tar(tar(150, vec![chunk(0, 10, 100)])),
                Err(ManifestError::Length { got: 100, want: 150 }),
            ),
            ("a bomb", with_tar(tar(0, vec![chunk(0, 10, MAX_CHUNK_BYTES + 1)])), size.clone()),
            ("a huge frame", with_tar(tar(0, vec![chunk(0, 5 << 20, 100)])), size.clone()),
            ("an empty one", with_tar(tar(0, vec![chunk(0, 0, 100)])), size),
            ("behind its pack", with_tar(tar(100, vec![chunk(1 << 20, 1, 100)])), outside(first)),
            ("over the end of its pack", with_tar(tar(100, vec![chunk((1 << 20) - 1, 2, 100)])), outside(first)),
            ("beyond all numbers", with_tar(tar(100, vec![chunk(u64::MAX, 2, 100)])), outside(first)),
            ("of no pack", with_tar(tar(100, vec![Chunk { pack: 1, ..chunk(0, 1, 100) }])), outside(first)),
            (
                "a hash that isn't one",
                with_tar(tar(100, vec![Chunk { sha256: "X".into(), ..chunk(0, 1, 100) }])),
                Err(ManifestError::Hash("X".into())),
            ),
            ("pieces with room between", with_pieces(vec![zeros(0, 4096), zeros(8192, 4096)]), Ok(())),
            ("pieces that overlap", with_pieces(vec![zeros(0, 8192), zeros(4096, 4096)]), misplaced(1)),
            ("out of order", with_pieces(vec![zeros(8192, 4096), zeros(0, 4096)]), misplaced(1)),
            ("half a block", with_pieces(vec![zeros(0, 512)]), misplaced(0)),
            ("at half a block", with_pieces(vec![zeros(512, 4096)]), misplaced(0)),
            ("nothing", with_pieces(vec![zeros(0, 0)]), misplaced(0)),
            ("behind the image", with_pieces(vec![zeros(1 << 20, 4096)]), misplaced(0)),
            ("beyond all numbers", with_pieces(vec![zeros(u64::MAX - 4095, 4096)]), misplaced(0)),
        ] {
            assert_eq!(manifest.check(), want, "{name}");
        }
    }

    #[test]
    fn it_has_one_form() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let trusted = [PublicKey::of(&key)];
        let manifest = manifest("debian", "12.1");
        let text = |signed: &Signed<Manifest>| serde_json::to_vec(signed).expect("JSON");
        let signed = Signed::seal(&manifest, &key);
        assert_eq!(open(&text(&signed), &trusted).map(Verified::into_inner), Ok(manifest.clone()));
        let sha256 = hex::encode(Sha256::digest(signed.payload.as_bytes()));
        assert_eq!(open(&text(&signed), &trusted).map(|opened| payload_sha256(&opened)), Ok(sha256));
        let refused = open(&text(&signed), &[]).expect_err("nobody is trusted");
        assert_eq!(refused, ManifestError::Signature(SignError::Untrusted(trusted[0])));
        assert!(std::error::Error::source(&refused).is_none(), "its words say why, and a chain would say it again");
        assert!(matches!(open(b"{}", &trusted), Err(ManifestError::NotAManifest(_))));
        // Signed by whoever may, and still not as everybody else would write it.
        let canonical = signed.payload.clone();
        for (name, payload, want) in [
            ("a space", canonical.replacen(':', ": ", 1), "one form"),
            ("a field more", canonical.replacen('{', "{\"extra\":1,", 1), "isn't understood"),
            (
                "a field that says nothing",
                canonical.replacen(",\"installed", ",\"expires\":null,\"installed", 1),
                "one form",
            ),
        ] {
            let signed = Signed::<Manifest>::seal_text(payload, &key);
            let said = open(&text(&signed), &trusted).expect_err(name).to_string();
            assert!(said.contains(want), "{name}: {said}");
        }
    }

    /// Wherever in what is served one byte is another, it isn't believed any more.
    #[test]
    fn no_byte_of_it_is_without_meaning() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let trusted = [PublicKey::of(&key)];
        let text = serde_json::to_vec(&Signed::seal(&manifest("debian", "12.1"), &key)).expect("JSON");
        open(&text, &trusted).expect("the untouched one");
        for place in 0..text.len() {
            // A bit, the bit between small and capital letters, the one that leaves ASCII, and a space.
            for byte in [text[place] ^ 1, text[place] ^ 0x20, text[place] ^ 0x80, b' '] {
                let mut changed = text.clone();
                changed[place] = byte;
                let believed = open(&changed, &trusted);
                assert!(
                    believed.is_err() || changed == text,
                    "byte {place} as {:?} in {}",
                    char::from(byte),
                    String::from_utf8_lossy(&text)
                );
            }
        }
    }

    /// What a chunk's entry says is held against the pack and the form, number by number.
    #[test]
    fn no_number_of_an_entry_leads_astray() {
        let good = manifest("debian", "12.1");
        let form = good.tar.clone().expect("a tar form");
        let pack = good.packs[0].bytes;
        let big = [u64::MAX, u64::MAX / 2, 1 << 63, pack + 1, u64::from(u32::MAX)];
        for number in big.into_iter().chain((0..64).map(|bit| 1 << bit)) {
            let small = u32::try_from(number).unwrap_or(u32::MAX);
            for (name, change) in [
                ("pack", Chunk { pack: small, ..form.chunks[0].clone() }),
                ("offset", Chunk { offset: number, ..form.chunks[0].clone() }),
                ("length", Chunk { length: small, ..form.chunks[0].clone() }),
                ("unpacked", Chunk { unpacked: small, ..form.chunks[0].clone() }),
            ] {
                let form = TarForm { bytes: change.unpacked.into(), chunks: vec![change.clone()], ..form.clone() };
                let manifest = Manifest { tar: Some(form), ..good.clone() };
                let inside = change.pack == 0
                    && change.offset.checked_add(change.length.into()).is_some_and(|end| end <= pack)
                    && change.unpacked <= MAX_CHUNK_BYTES;
                assert_eq!(manifest.check().is_ok(), inside, "{name} {number}");
            }
        }
    }

    #[test]
    fn names_stay_inside_their_directory() {
        for (name, plain) in [
            ("rootfs.tar.zst", true),
            ("12.11+deb12u1", true),
            ("..", false),
            (".hidden", false),
            ("a/b", false),
            ("", false),
            ("a b", false),
            ("a\0", false),
            ("a%2fb", false),
        ] {
            assert_eq!(is_plain_name(name), plain, "{name:?}");
        }
    }
}
