//! What an image builder signs: which bytes make up an image, and what in it starts a machine.
//!
//! A published image is a directory that any HTTP server can hold:
//!
//! ```text
//! <name>/<version>/manifest.json   Signed<Manifest>
//! <name>/<version>/<chunks.file>   independent zstd frames, one after the other
//! ```
//!
//! Every frame has its own hash, so a machine can check it before it is decompressed or written, fetch any of them by
//! range, and go on where it was cut off.

use serde::{Deserialize, Serialize};

use crate::sign::Signable;

pub const MANIFEST_FILE: &str = "manifest.json";

/// No frame unpacks to more than this: what a machine has to hold in memory at once is known before it fetches.
pub const MAX_CHUNK_BYTES: u32 = 4 << 20;

/// A manifest larger than this isn't read.
pub const MAX_MANIFEST_BYTES: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    /// `PRETTY_NAME` of its os-release, or a description.
    pub description: String,
    pub arch: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Space that the unpacked files need, without the file system's own.
    pub installed_bytes: u64,
    pub chunks: Chunks,
    pub boot: BootFiles,
}

impl Signable for Manifest {
    const CONTEXT: &'static str = "drophammer image manifest 1";
}

/// The root file system as a tar stream, cut into independent zstd frames.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunks {
    /// File name beside the manifest.
    pub file: String,
    pub tar_bytes: u64,
    /// SHA-256 of the whole tar stream.
    pub tar_sha256: String,
    pub frames: Vec<Chunk>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    pub offset: u64,
    pub length: u32,
    /// Size when unpacked.
    pub unpacked: u32,
    /// SHA-256 of the frame as it is fetched.
    pub sha256: String,
}

/// A file of the image, by absolute path in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    pub path: String,
    pub sha256: String,
}

/// What starts the installed system, found and hashed when the image was packed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootFiles {
    pub kernel: ImageFile,
    pub initrd: Option<ImageFile>,
    /// Kernel arguments that the image asks for, without `root=`.
    pub cmdline: String,
    /// GRUB for BIOS machines: `boot.img` and a `core.img` whose prefix is the third partition.
    pub bios: Option<BiosBoot>,
    /// An EFI program that reads `/EFI/debian/grub.cfg` of the partition it was started from.
    pub uefi: Option<ImageFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BiosBoot {
    pub boot_img: ImageFile,
    pub core_img: ImageFile,
}

/// Why a validly signed manifest is refused all the same.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    #[error("chunk {0} is empty or unpacks to more than {MAX_CHUNK_BYTES} bytes")]
    ChunkSize(usize),
    #[error("chunk {0} doesn't start where the one before it ends")]
    Gap(usize),
    #[error("the chunks unpack to {got} bytes, not to the {want} that the tar has")]
    Length { got: u64, want: u64 },
    #[error("{0:?} is not a plain file name")]
    FileName(String),
}

impl Manifest {
    /// `name/version`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }

    /// Everything that a machine relies on while it streams. Cheap; called before the first chunk is fetched.
    pub fn check(&self) -> Result<(), ManifestError> {
        for name in [&self.name, &self.version, &self.chunks.file] {
            if !is_plain_name(name) {
                return Err(ManifestError::FileName(name.clone()));
            }
        }
        let (mut end, mut unpacked) = (0u64, 0u64);
        for (index, chunk) in self.chunks.frames.iter().enumerate() {
            if chunk.length == 0
                || chunk.unpacked == 0
                || chunk.unpacked > MAX_CHUNK_BYTES
                || chunk.length > 2 * MAX_CHUNK_BYTES
            {
                return Err(ManifestError::ChunkSize(index));
            }
            if chunk.offset != end {
                return Err(ManifestError::Gap(index));
            }
            end += u64::from(chunk.length);
            unpacked += u64::from(chunk.unpacked);
        }
        if unpacked != self.chunks.tar_bytes {
            return Err(ManifestError::Length { got: unpacked, want: self.chunks.tar_bytes });
        }
        Ok(())
    }
}

/// Whether this can be one component of a path or URL: no separators, nothing hidden, nothing that needs quoting.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::manifest;

    fn chunk(offset: u64, length: u32, unpacked: u32) -> Chunk {
        Chunk { offset, length, unpacked, sha256: String::new() }
    }

    #[test]
    fn frames_must_tile_the_file() {
        for (name, frames, tar, want) in [
            ("two that touch", vec![chunk(0, 10, 100), chunk(10, 5, 50)], 150, Ok(())),
            ("a hole", vec![chunk(0, 10, 100), chunk(11, 5, 50)], 150, Err(ManifestError::Gap(1))),
            ("an overlap", vec![chunk(0, 10, 100), chunk(9, 5, 50)], 150, Err(ManifestError::Gap(1))),
            ("late start", vec![chunk(1, 10, 100)], 100, Err(ManifestError::Gap(0))),
            ("a bomb", vec![chunk(0, 10, MAX_CHUNK_BYTES + 1)], 0, Err(ManifestError::ChunkSize(0))),
            ("an empty one", vec![chunk(0, 0, 100)], 100, Err(ManifestError::ChunkSize(0))),
            ("one missing", vec![chunk(0, 10, 100)], 150, Err(ManifestError::Length { got: 100, want: 150 })),
        ] {
            assert_eq!(manifest("debian", "12.1", frames, tar).check(), want, "{name}");
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
