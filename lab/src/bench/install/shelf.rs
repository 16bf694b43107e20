//! What is fetched: one root file system in the forms in which people publish one. Made once and kept in the cache, so that
//! runs on one machine are about the same bytes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use drophammer_images::{BuildOptions, PackOptions, Recipe, cache_dir};
use drophammer_protocol::manifest::{self, Piece};
use drophammer_protocol::sign::PublicKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::device::{self, say};
use super::tools::{Tools, quoted};

const RECIPE: &str = include_str!("image.toml");
/// To be raised when other files are put there.
const SHELF: u32 = 1;
const LEAST_BYTES: u64 = 1_000_000_000;
const TAR: &str = "root.tar";
const KEY: &str = "key";
const RECORD: &str = "shelf.json";
const NAME: &str = "bench";
const VERSION: &str = "1";

#[derive(Clone, Debug)]
pub(super) struct Shelf {
    /// The files of others (`root.tar.zst`, `root.tar.lz4`, `dense.img.zst`), and a store.
    pub(super) dir: PathBuf,
    pub(super) image: String,
    pub(super) key: PublicKey,
    pub(super) key_file: PathBuf,
    /// Its name, with the block form at its start.
    pub(super) pack: String,
    pub(super) block_packed: u64,
    pub(super) block_unpacked: u64,
    pub(super) tar_packed: u64,
    pub(super) tar_unpacked: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    of: String,
}

impl Shelf {
    pub(super) fn prepare(tools: &Tools) -> Result<Self> {
        static DONE: Mutex<Option<Shelf>> = Mutex::new(None);
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shelf) = &*done {
            return Ok(shelf.clone());
        }
        let dir = cache_dir()?.join("bench/shelf");
        let recipe = Recipe::parse(RECIPE).context("reading the recipe of the benchmark's image")?;
        let text = serde_json::to_vec(&(SHELF, manifest::FORMAT, &recipe)).context("naming the recipe")?;
        let of = hex::encode(Sha256::digest(text));
        let record: Option<Record> =
            fs::read(dir.join(RECORD)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if record.is_none_or(|record| record.of != of) {
            fill(&dir, &recipe, tools).context("preparing what is to be installed")?;
            let text = serde_json::to_vec(&Record { of }).context("recording what was prepared")?;
            fs::write(dir.join(RECORD), text).with_context(|| format!("writing to {}", dir.display()))?;
        }
        let shelf = Self::open(dir)?;
        *done = Some(shelf.clone());
        Ok(shelf)
    }

    pub(super) fn tar(&self) -> PathBuf {
        self.dir.join(TAR)
    }

    fn open(dir: PathBuf) -> Result<Self> {
        let key_file = dir.join(KEY);
        let key = PublicKey::of(&drophammer_images::load_key(&key_file)?);
        let image = format!("{NAME}/{VERSION}");
        let manifest = drophammer_images::inspect(&dir.join(&image), &[key])?;
        let block = manifest.block.as_ref().context("the image has no block form")?;
        let tar = manifest.tar.as_ref().context("the image has no tar form")?;
        let [pack] = &manifest.packs[..] else { anyhow::bail!("the image has {} packs", manifest.packs.len()) };
        let chunks = || {
            block.pieces.iter().filter_map(|piece| match piece {
                Piece::Chunk { chunk, .. } => Some(chunk),
                Piece::Zeros { .. } => None,
            })
        };
        Ok(Self {
            key,
            key_file,
            image,
            pack: pack.sha256.clone(),
            block_packed: chunks().map(|chunk| u64::from(chunk.length)).sum(),
            block_unpacked: chunks().map(|chunk| u64::from(chunk.unpacked)).sum(),
            tar_packed: tar.chunks.iter().map(|chunk| u64::from(chunk.length)).sum(),
            tar_unpacked: tar.bytes,
            dir,
        })
    }
}

fn fill(dir: &Path, recipe: &Recipe, tools: &Tools) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing the old {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let tar = dir.join(TAR);
    let built = drophammer_images::build(recipe, &tar, &BuildOptions::default())?;
    let bytes = fs::metadata(&tar).with_context(|| format!("examining {}", tar.display()))?.len();
    ensure!(bytes >= LEAST_BYTES, "the image has only {bytes} bytes: put more into its recipe");
    drophammer_images::keygen(&dir.join(KEY))?;
    let key = drophammer_images::load_key(&dir.join(KEY))?;
    drophammer_images::pack(&tar, dir, &PackOptions::new(NAME, VERSION, &built.cmdline), &key, &|_| {})?;

    let dense = dir.join("dense.img");
    let file = File::create(&dense).with_context(|| format!("making {}", dense.display()))?;
    file.set_len(device::BYTES).with_context(|| format!("making {}", dense.display()))?;
    // As metal-images and others publish them: lz4 at its best, zstd as it comes; and a disk's image with a map of what in it
    // was ever written.
    say(
        tools,
        &format!(
            "cd {}\n\
             zstd -q -3 -T0 -k root.tar\n\
             lz4 -q -9 -k root.tar root.tar.lz4\n\
             md5sum root.tar.lz4 >root.tar.lz4.md5\n\
             mke2fs -q -F -t ext4 -E nodiscard,lazy_itable_init=1 dense.img\n\
             mkdir mounted\n\
             mount -o loop,noinit_itable dense.img mounted\n\
             tar -xp --numeric-owner --xattrs --xattrs-include='*' -f root.tar -C mounted\n\
             umount mounted\n\
             rmdir mounted\n\
             bmaptool --quiet create -o dense.bmap dense.img\n\
             zstd -q -3 -T0 --rm dense.img\n",
            quoted(dir)
        ),
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_is_sound() {
        let recipe = Recipe::parse(RECIPE).expect("a recipe");
        assert_eq!(recipe.name, NAME);
        // Nobody is to install it by mistake.
        assert!(!Recipe::names().contains(&NAME));
    }
}
