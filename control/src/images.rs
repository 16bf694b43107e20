//! The images that can be installed: a directory of published ones, each believed by its signature alone.

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::api::ImageSummary;
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, PACKS, is_plain_name};
use drophammer_protocol::sign::{PublicKey, Signed};
use sha2::{Digest, Sha256};

use crate::Imports;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) summary: ImageSummary,
    /// Of the signed payload.
    pub(crate) manifest_sha256: String,
}

impl Image {
    pub(crate) fn reference(&self) -> String {
        format!("{}/{}", self.summary.name, self.summary.version)
    }
}

/// The directory, and what was found in it. A manifest is read again only when its file changed.
#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
    trusted: RwLock<Trusted>,
    known: Mutex<HashMap<PathBuf, (Stamp, Option<Image>)>>,
}

#[derive(Clone, Debug)]
struct Trusted {
    keys: Vec<PublicKey>,
    imports: Option<Imports>,
}

impl Trusted {
    /// Who may have signed the image that belongs into `dir`.
    fn for_image(&self, dir: &Path) -> Vec<PublicKey> {
        let imported = |imports: &&Imports| imports.references.iter().any(|reference| dir.ends_with(reference));
        self.keys.iter().copied().chain(self.imports.iter().filter(imported).map(|imports| imports.key)).collect()
    }
}

/// What changes when one of the files of an image does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
    /// The directory's: its chunks come and go with it.
    directory: (i64, i64),
}

impl Images {
    pub(crate) fn new(dir: PathBuf, keys: Vec<PublicKey>, imports: Option<Imports>) -> Self {
        Self { dir, trusted: RwLock::new(Trusted { keys, imports }), known: Mutex::default() }
    }

    /// From here on these keys are believed and no others.
    pub(crate) fn trust(&self, keys: Vec<PublicKey>, imports: Option<Imports>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = Trusted { keys, imports };
        known.clear();
    }

    /// All images that can be installed, by name, newest first. What can't be is logged with the reason, once.
    pub(crate) fn all(&self) -> Result<Vec<Image>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut present = HashMap::new();
        for dir in versions(&self.dir)? {
            let stamp = match stamp(&dir) {
                Ok(stamp) => stamp,
                // No manifest: being published, or being deleted.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e).with_context(|| format!("looking at the image in {}", dir.display())),
            };
            let image = match known.remove(&dir) {
                Some((then, image)) if then == stamp => image,
                _ => match read(&dir, &trusted.for_image(&dir)) {
                    Ok(image) => Some(image),
                    Err(why) => {
                        tracing::error!(image = %dir.display(), "image can't be installed: {why:#}");
                        None
                    }
                },
            };
            present.insert(dir, (stamp, image));
        }
        let mut images: Vec<Image> = present.values().filter_map(|(_, image)| image.clone()).collect();
        *known = present;
        images.sort_by(|a, b| {
            (&a.summary.name, b.summary.created, &b.summary.version).cmp(&(
                &b.summary.name,
                a.summary.created,
                &a.summary.version,
            ))
        });
        Ok(images)
    }

    /// `name/version`, or `name` for its newest version, if that hasn't expired by `now` (in milliseconds since 1970).
    pub(crate) fn find(&self, reference: &str, now: u64) -> Result<Option<Image>> {
        let mut images = self.all()?;
        images.retain(|image| image.summary.expires.is_none_or(|expires| now / 1000 < expires));
        Ok(pick(&images, reference).cloned())
    }

    /// When an image of which [`Images::find`] knows nothing expired, if that is why; in seconds since 1970.
    pub(crate) fn expired(&self, reference: &str) -> Option<u64> {
        pick(&self.all().ok()?, reference)?.summary.expires
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn pick<'a>(newest_first: &'a [Image], reference: &str) -> Option<&'a Image> {
    // metal-stack joins the two with a dot.
    let is_its_id = |i: &Image| {
        reference.strip_prefix(&i.summary.name).and_then(|rest| rest.strip_prefix('.')) == Some(&i.summary.version)
    };
    newest_first.iter().find(|i| i.summary.name == reference || i.reference() == reference || is_its_id(i))
}

/// The directories that may hold an image: `<name>/<version>`.
fn versions(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in plain_directories(dir)? {
        found.extend(plain_directories(&name)?);
    }
    Ok(found)
}

fn plain_directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("listing {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(doing)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(doing)?.path();
        let plain = path.file_name().and_then(|n| n.to_str()).is_some_and(is_plain_name);
        if plain && path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

fn stamp(dir: &Path) -> std::io::Result<Stamp> {
    let (manifest, directory) = (fs::metadata(dir.join(MANIFEST_FILE))?, fs::metadata(dir)?);
    Ok(Stamp {
        inode: manifest.ino(),
        bytes: manifest.len(),
        changed: (manifest.mtime(), manifest.mtime_nsec()),
        directory: (directory.mtime(), directory.mtime_nsec()),
    })
}

/// Everything that a machine would check too, so that an operator hears of it before a machine does.
fn read(dir: &Path, keys: &[PublicKey]) -> Result<Image> {
    let path = dir.join(MANIFEST_FILE);
    let mut text = String::new();
    let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let read = file.take(MAX_MANIFEST_BYTES + 1).read_to_string(&mut text);
    read.with_context(|| format!("reading {}", path.display()))?;
    ensure!(text.len() as u64 <= MAX_MANIFEST_BYTES, "its manifest is larger than {MAX_MANIFEST_BYTES} bytes");
    let signed: Signed<Manifest> = serde_json::from_str(&text).context("reading its manifest")?;
    let manifest = manifest::open_signed(&signed, keys).context("checking its manifest")?;
    let place = dir.parent().map(|name| (name.file_name(), dir.file_name()));
    if place != Some((Some(manifest.name.as_ref()), Some(manifest.version.as_ref()))) {
        bail!("its manifest is of {}, which belongs in another directory", manifest.reference());
    }
    let packs = dir.ancestors().nth(2).unwrap_or(dir).join(PACKS);
    for pack in &manifest.packs {
        let path = packs.join(&pack.sha256);
        let there = fs::metadata(&path).with_context(|| format!("looking for {}", path.display()))?.len();
        ensure!(
            there == pack.bytes,
            "{} has {there} bytes and should have {}: publish the image again",
            path.display(),
            pack.bytes
        );
    }
    Ok(Image {
        manifest_sha256: hex::encode(Sha256::digest(signed.payload.as_bytes())),
        summary: ImageSummary::of(&manifest),
    })
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::fixtures;
    use ed25519_dalek::SigningKey;

    use super::*;

    fn manifest(name: &str, version: &str, created: u64) -> Manifest {
        Manifest { created, ..fixtures::manifest(name, version) }
    }

    fn publish(images: &Path, place: &str, manifest: &Manifest, key: &SigningKey) {
        let (dir, packs) = (images.join(place), images.join(PACKS));
        for dir in [&dir, &packs] {
            fs::create_dir_all(dir).expect("creates");
        }
        for pack in &manifest.packs {
            let file = fs::File::create(packs.join(&pack.sha256)).expect("creates");
            file.set_len(pack.bytes).expect("as long as it should be");
        }
        let signed = serde_json::to_string(&Signed::seal(manifest, key)).expect("serializes");
        fs::write(dir.join(MANIFEST_FILE), signed).expect("writes");
    }

    #[test]
    fn only_whole_images_in_their_place_signed_by_a_known_key_are_listed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (ours, theirs) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let path = dir.path();
        publish(path, "debian/12.9", &manifest("debian", "12.9", 100), &ours);
        publish(path, "debian/12.10", &manifest("debian", "12.10", 200), &ours);
        publish(path, "alpine/3", &manifest("alpine", "3", 50), &ours);
        publish(path, "evil/1", &manifest("evil", "1", 900), &theirs);
        publish(path, "debian/99", &manifest("debian", "12.9", 100), &ours);
        let mut cut = manifest("cut", "1", 100);
        cut.packs[0].sha256 = "f".repeat(64);
        publish(path, "cut/1", &cut, &ours);
        fs::write(path.join(PACKS).join(&cut.packs[0].sha256), b"z").expect("writes");
        fs::create_dir_all(path.join("empty/1")).expect("creates");
        publish(path, ".staging/1", &manifest("staging", "1", 100), &ours);
        let images = Images::new(path.to_owned(), vec![PublicKey::of(&ours)], None);
        let list = || images.all().expect("lists").iter().map(Image::reference).collect::<Vec<_>>();
        assert_eq!(list(), ["alpine/3", "debian/12.10", "debian/12.9"]);
        let old = Manifest { expires: Some(1000), ..manifest("debian", "12.11", 250) };
        publish(path, "debian/12.11", &old, &ours);
        for (name, reference, want) in [
            ("newest that isn't too old", "debian", Some("debian/12.10")),
            ("too old", "debian/12.11", None),
            ("a version", "debian/12.9", Some("debian/12.9")),
            ("as metal-stack calls it", "debian.12.9", Some("debian/12.9")),
            ("no such version", "debian/13", None),
            ("of an unknown key", "evil/1", None),
            ("no path tricks", "../images/debian", None),
        ] {
            let got = images.find(reference, 1_000_000).expect("finds").map(|i| i.reference());
            assert_eq!(got.as_deref(), want, "{name}");
        }
        assert_eq!(images.expired("debian/12.11"), Some(1000));
        let before = images.find("debian", 999_999).expect("finds").map(|i| i.reference());
        assert_eq!(before.as_deref(), Some("debian/12.11"), "not yet too old");
        fs::remove_dir_all(path.join("debian/12.11")).expect("removes");
        publish(path, "debian/13", &manifest("debian", "13", 300), &ours);
        fs::remove_dir_all(path.join("alpine")).expect("removes");
        assert_eq!(list(), ["debian/13", "debian/12.10", "debian/12.9"], "what changed is seen");
    }

    #[test]
    fn the_key_of_imports_is_believed_for_those_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (ours, own) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        for version in ["1", "11", "2"] {
            publish(dir.path(), &format!("debian/{version}"), &manifest("debian", version, 100), &own);
        }
        publish(dir.path(), "xdebian/1", &manifest("xdebian", "1", 100), &own);
        let imports = |references: &[&str]| {
            let references = references.iter().map(ToString::to_string).collect();
            Some(Imports { key: PublicKey::of(&own), references })
        };
        let images = Images::new(dir.path().to_owned(), vec![PublicKey::of(&ours)], imports(&["debian/1", "debian/3"]));
        let list = || images.all().expect("lists").iter().map(Image::reference).collect::<Vec<_>>();
        assert_eq!(list(), ["debian/1"]);
        images.trust(vec![PublicKey::of(&ours)], imports(&["debian/2"]));
        assert_eq!(list(), ["debian/2"]);
        images.trust(vec![PublicKey::of(&ours)], None);
        assert!(list().is_empty());
    }

    #[test]
    fn no_directory_is_no_images() {
        let images = Images::new("/nonexistent/images".into(), vec![], None);
        assert_eq!(images.all().expect("lists"), []);
    }
}
