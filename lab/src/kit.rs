//! What a lab is made of besides QEMU: boot files with the agent of this source tree, images, and a key that signs them.
//!
//! Made once and kept in the cache; what is up to date isn't made again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use drophammer_images::{BuildOptions, PackOptions, Recipe, cache_dir};
use drophammer_initramfs::{Flavour, Options, Set, UkiOptions};
use drophammer_protocol::manifest::{self, MANIFEST_FILE};
use drophammer_protocol::sign::PublicKey;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::console;

pub use drophammer_initramfs::repository;

/// Operating systems that the lab can install.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// Busybox on Debian's kernel, a dozen megabytes.
    Tiny,
    /// A whole Debian with systemd and sshd.
    #[serde(rename = "debian-12")]
    Debian12,
}

impl Image {
    pub const ALL: [Self; 2] = [Self::Tiny, Self::Debian12];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Debian12 => "debian-12",
        }
    }
}

impl FromStr for Image {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|image| image.name() == s)
            .ok_or_else(|| anyhow!("the lab has no image {s:?}; it has {}", Self::ALL.map(Self::name).join(" and ")))
    }
}

/// Directories for a boot server, and whom it may believe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kit {
    pub boot_dir: PathBuf,
    pub images_dir: PathBuf,
    pub image_key: PublicKey,
    /// The secret half of `image_key`, for tests that sign images of their own.
    pub secret_key: PathBuf,
}

/// What the lab's machines boot.
pub(crate) const FLAVOUR: Flavour = Flavour::Cloud;

/// Where the places for running machines are.
pub fn slots_dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join("slots"))
}

fn dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join("lab-kit"))
}

/// Where a kit's boot files are.
pub(crate) fn boot_dir() -> Result<PathBuf> {
    Ok(dir()?.join("boot"))
}

/// Makes what is missing or out of date. Within one process this looks only once; several processes take turns.
pub fn prepare(images: &[Image], say: &mut dyn FnMut(&str)) -> Result<Kit> {
    static DONE: Mutex<(Option<Kit>, Vec<Image>)> = Mutex::new((None, Vec::new()));
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (ready, present) = &mut *done;
    if let Some(kit) = ready
        && images.iter().all(|image| present.contains(image))
    {
        return Ok(kit.clone());
    }
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let _turn = turn(&cache.join("kit.lock"))?;
    let kit = match ready {
        Some(kit) => kit.clone(),
        None => base(say)?,
    };
    for image in images {
        if !present.contains(image) {
            publish(*image, &kit, say).with_context(|| format!("preparing the image {}", image.name()))?;
            present.push(*image);
        }
    }
    *ready = Some(kit.clone());
    Ok(kit)
}

fn base(say: &mut dyn FnMut(&str)) -> Result<Kit> {
    let dir = dir()?;
    let images_dir = dir.join("images");
    fs::create_dir_all(&images_dir).with_context(|| format!("creating {}", images_dir.display()))?;
    let secret_key = dir.join("image-key");
    let image_key = if secret_key.exists() {
        PublicKey::of(&drophammer_images::load_key(&secret_key)?)
    } else {
        drophammer_images::keygen(&secret_key)?
    };
    let boot_dir = boot_dir()?;
    say("building the agent and its initramfs");
    let uki = UkiOptions { arguments: console::ARGUMENT.to_owned(), signing: None };
    let options = Options { flavour: FLAVOUR, set: Set::Vm, agent: None, uki: Some(uki), out: boot_dir.clone() };
    let built = drophammer_initramfs::build(&options).context("preparing the boot files")?;
    say(&format!(
        "kernel {}, initramfs of {:.1} MB{}",
        built.kernel_release,
        to_mb(built.sizes.initramfs),
        if built.fresh { ", up to date" } else { "" }
    ));
    Ok(Kit { boot_dir, images_dir, image_key, secret_key })
}

/// What was published from which recipe, and when that was last looked at.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Published(BTreeMap<String, Entry>);

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    recipe: String,
    version: String,
    looked: u64,
}

/// Asking for newer packages takes seconds, so it's done once in so long.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

fn publish(image: Image, kit: &Kit, say: &mut dyn FnMut(&str)) -> Result<()> {
    let recipe = Recipe::load(image.name())?;
    // An image of an older format isn't one any more.
    let text = serde_json::to_vec(&(manifest::FORMAT, &recipe)).context("naming the recipe")?;
    let recipe_hash = hex::encode(Sha256::digest(text));
    let record = kit.images_dir.join("published.json");
    let mut published: Published =
        fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let directory = kit.images_dir.join(image.name());
    if let Some(entry) = published.0.get(image.name())
        && entry.recipe == recipe_hash
        && now.saturating_sub(entry.looked) < FRESH.as_secs()
        && directory.join(&entry.version).join(MANIFEST_FILE).exists()
    {
        return Ok(());
    }

    say(&format!("building the image {} (the first time takes a minute or two)", image.name()));
    let work = tempfile::tempdir_in(&kit.images_dir).context("making a directory for the image")?;
    let tar = work.path().join("rootfs.tar");
    let built = drophammer_images::build(&recipe, &tar, &BuildOptions::default())?;
    // Named after what is in it: the same version is never two different images.
    let version = hash(&tar)?.get(..12).unwrap_or_default().to_owned();
    // Earlier builds are of no use to anybody but a lab that is installing this very moment.
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("removing the old {}", directory.display()))?;
    }
    let key = drophammer_images::load_key(&kit.secret_key)?;
    let options = PackOptions::new(image.name(), &version, &built.cmdline);
    drophammer_images::pack(&tar, &kit.images_dir, &options, &key, &|_| {})?;
    say(&format!("image {}/{version}", image.name()));
    published.0.insert(image.name().to_owned(), Entry { recipe: recipe_hash, version, looked: now });
    let text = serde_json::to_vec_pretty(&published).context("recording what was published")?;
    fs::write(&record, text).with_context(|| format!("writing {}", record.display()))
}

fn hash(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).with_context(|| format!("reading {}", path.display()))?;
    Ok(hex::encode(hash.finalize()))
}

fn turn(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| format!("locking {}", path.display()))
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn to_mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_by_the_names_of_their_recipes() {
        for image in Image::ALL {
            assert_eq!(image.name().parse::<Image>().expect("a name"), image);
            assert!(Recipe::names().contains(&image.name()), "{}", image.name());
            assert_eq!(serde_json::to_value(image).expect("JSON"), image.name());
        }
        assert!("windows".parse::<Image>().expect_err("not ours").to_string().contains("tiny and debian-12"));
    }
}
