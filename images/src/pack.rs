//! A tar becomes an image: frames, manifest, signature; published whole or not at all.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::manifest::{Chunks, MAX_MANIFEST_BYTES, Manifest, is_plain_name};
use drophammer_protocol::sign::{Signed, Verified};
use ed25519_dalek::SigningKey;

use crate::scan::Contents;
use crate::{frames, store};

/// Name of the frames' file in an image.
const FRAMES_FILE: &str = "rootfs.tar.zst";

#[derive(Clone, Debug)]
pub struct PackOptions {
    pub name: String,
    pub version: String,
    /// Kernel arguments, without `root=`.
    pub cmdline: String,
    /// Of zstd; 3 is fast and close to the best.
    pub level: i32,
    /// As `uname -m` says it.
    pub arch: String,
}

impl PackOptions {
    pub fn new(name: &str, version: &str, cmdline: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            cmdline: cmdline.to_owned(),
            level: 3,
            arch: "x86_64".to_owned(),
        }
    }
}

/// An image in a store.
#[derive(Clone, Debug)]
pub struct Packed {
    pub dir: PathBuf,
    pub manifest: Verified<Manifest>,
    /// Whether the very same image had been published before.
    pub existed: bool,
}

/// Compiles `tar` (plain or zstd) to `<store>/<name>/<version>`, signed with `key`. The same tar and options give the
/// same bytes. A version that exists is never replaced: publishing it again succeeds only if it would be the same.
pub fn pack(tar: &Path, store: &Path, options: &PackOptions, key: &SigningKey) -> Result<Packed> {
    for name in [&options.name, &options.version] {
        ensure!(
            is_plain_name(name),
            "{name:?} can't be part of an image's reference: letters, digits and . - _ + only, and no . at its start"
        );
    }
    let reference = format!("{}/{}", options.name, options.version);
    let parent = store.join(&options.name);
    fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
    // Beside its later place, so that renaming is one step; hidden from whoever lists the store.
    let draft = tempfile::Builder::new()
        .prefix(&format!(".{}-", options.version))
        .tempdir_in(&parent)
        .with_context(|| format!("making a directory in {}", parent.display()))?;

    let path = draft.path().join(FRAMES_FILE);
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let input = open(tar)?;
    let (cut, contents) =
        frames::cut(input, BufWriter::new(&file), options.level, |mut tar| Ok(Contents::read(&mut tar)?))
            .with_context(|| format!("packing {}", tar.display()))?;
    file.sync_all().with_context(|| format!("writing {} to disk", path.display()))?;

    let manifest = Manifest {
        name: options.name.clone(),
        version: options.version.clone(),
        description: contents.description().unwrap_or_else(|| reference.clone()),
        arch: options.arch.clone(),
        created: contents.newest,
        installed_bytes: contents.installed_bytes,
        chunks: Chunks {
            file: FRAMES_FILE.to_owned(),
            tar_bytes: cut.tar_bytes,
            tar_sha256: cut.tar_sha256,
            frames: cut.frames,
        },
        boot: contents.boot_files(&options.cmdline).with_context(|| format!("packing {}", tar.display()))?,
    };
    manifest.check().with_context(|| format!("checking the manifest of {reference}"))?;
    let signed = Signed::seal(&manifest, key);
    let text = serde_json::to_vec(&signed).context("writing the manifest")?;
    ensure!(
        text.len() as u64 <= MAX_MANIFEST_BYTES,
        "the manifest of {reference} has {} bytes, and machines read {MAX_MANIFEST_BYTES} at most: the image is too large",
        text.len()
    );
    let manifest = signed.open(&[signed.key]).context("reading back what was just signed")?;
    let dir = parent.join(&options.version);
    let existed = match store::publish(draft.path(), &text, FRAMES_FILE, &dir)? {
        store::Published::Now => false,
        store::Published::Before => true,
        store::Published::Differs(what) => bail!(
            "{reference} is published already in {} and {what} differs: published versions never change, so choose \
             another version",
            store.display()
        ),
    };
    Ok(Packed { dir, manifest, existed })
}

/// Tells what it is by its first bytes, for names lie.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut magic = Vec::new();
    file.by_ref().take(6).read_to_end(&mut magic).with_context(context)?;
    file.rewind().with_context(context)?;
    let form = match magic.as_slice() {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            return Ok(Box::new(zstd::Decoder::new(file).with_context(context)?));
        }
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', 0] => "xz",
        [0x04, 0x22, 0x4d, 0x18, ..] => "lz4",
        [b'B', b'Z', b'h', ..] => "bzip2",
        _ => return Ok(Box::new(BufReader::with_capacity(1 << 20, file))),
    };
    bail!("{} is compressed with {form}: unpack it first, or compress it with zstd", path.display())
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
