//! The images that can be installed: a directory of published ones, each believed by its signature alone, and none that was
//! ever seen to be revoked.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::api::ImageSummary;
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, PACKS, is_plain_name};
use drophammer_protocol::resource::{Classification, ImagePolicy};
use drophammer_protocol::revocation::{self, MAX_REVOKED_BYTES, REVOKED_FILE, Revocations, Revoked};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use sha2::{Digest, Sha256};

use crate::Imports;
use crate::store::Store;

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
    known: Mutex<HashMap<PathBuf, Seen>>,
    /// Where what was ever revoked is kept: a list that is removed, or an older one in its place, brings no image back.
    store: Store,
    /// Of the list that was read last: nothing if there was none.
    list: Mutex<Option<Option<ListStamp>>>,
}

/// In the store: everything that any believed list has revoked, and the highest number of all of them.
const REVOKED_KEY: &str = "revoked-images";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ListStamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

#[derive(Clone, Debug)]
struct Trusted {
    keys: Vec<PublicKey>,
    imports: Option<Imports>,
}

impl Trusted {
    /// Who may have signed the image that belongs into `dir`, given which are `declared` to be compiled here.
    fn for_image(&self, dir: &Path, declared: &BTreeSet<String>) -> Vec<PublicKey> {
        let imported =
            |imports: &&Imports| imports.references.iter().chain(declared).any(|reference| dir.ends_with(reference));
        self.keys.iter().copied().chain(self.imports.iter().filter(imported).map(|imports| imports.key)).collect()
    }
}

/// What a directory was found to be.
#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// Who might have signed it.
    keys: Vec<PublicKey>,
    image: Option<Image>,
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
    pub(crate) fn new(dir: PathBuf, keys: Vec<PublicKey>, imports: Option<Imports>, store: Store) -> Self {
        let trusted = RwLock::new(Trusted { keys, imports });
        Self { dir, trusted, known: Mutex::default(), store, list: Mutex::default() }
    }

    /// From here on these keys are believed and no others.
    pub(crate) fn trust(&self, keys: Vec<PublicKey>, imports: Option<Imports>) {
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = Trusted { keys, imports };
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// All images that can be installed, by name, newest first. What can't be is logged with the reason, once.
    pub(crate) fn all(&self, declared: &BTreeSet<String>) -> Result<Vec<Image>> {
        let revoked = self.revocations()?;
        let mut images = self.whole(declared)?;
        images.retain(|image| revoked.of(&image.manifest_sha256).is_none());
        Ok(images)
    }

    /// Why an image of which [`find`] knows nothing was revoked, if that is why.
    pub(crate) fn revoked(&self, reference: &str, declared: &BTreeSet<String>) -> Option<Revoked> {
        let image = pick(&self.whole(declared).ok()?, reference)?.manifest_sha256.clone();
        self.revocations().ok()?.of(&image).cloned()
    }

    /// Everything that was ever revoked. The list in the directory is read when it changes; what is wrong with it is logged.
    fn revocations(&self) -> Result<Revocations> {
        let path = self.dir.join(REVOKED_FILE);
        let mut last = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = || Ok(self.store.get::<Revocations>(REVOKED_KEY)?.unwrap_or_default());
        let stamp = match fs::metadata(&path) {
            Ok(file) => {
                let changed = (file.mtime(), file.mtime_nsec());
                Some(ListStamp { inode: file.ino(), bytes: file.len(), changed })
            }
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e).with_context(|| format!("looking at {}", path.display())),
        };
        if *last == Some(stamp) {
            // Many ask at once, and the store may be far away.
            drop(last);
            return kept();
        }
        let list = match stamp {
            Some(_) => read_list(&path, &self.trusted.read().unwrap_or_else(PoisonError::into_inner).keys),
            None => Ok(Revocations::default()),
        };
        let list = match list {
            Ok(list) => list,
            Err(why) => {
                tracing::error!(list = %path.display(), "what was revoked there isn't known, and nobody should have changed it: {why:#}");
                *last = Some(stamp);
                return kept();
            }
        };
        let (all, is_older) = self.store.transact(|txn| {
            let before: Revocations = txn.get(REVOKED_KEY)?.unwrap_or_default();
            let (after, is_older) = heed(&before, &list);
            if after != before {
                txn.put(REVOKED_KEY, &after)?;
            }
            anyhow::Ok((after, is_older))
        })?;
        if is_older {
            tracing::error!(
                list = %path.display(),
                "it is number {}, and number {} was seen before: somebody removed the list or put an older one back. What was \
                 revoked stays so",
                list.sequence,
                all.sequence
            );
        }
        *last = Some(stamp);
        Ok(all)
    }

    /// Those that were revoked among them.
    fn whole(&self, declared: &BTreeSet<String>) -> Result<Vec<Image>> {
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
            let keys = trusted.for_image(&dir, declared);
            let image = match known.remove(&dir) {
                Some(then) if then.stamp == stamp && then.keys == keys => then.image,
                _ => match read(&dir, &keys) {
                    Ok(image) => Some(image),
                    Err(why) => {
                        tracing::error!(image = %dir.display(), "image can't be installed: {why:#}");
                        None
                    }
                },
            };
            present.insert(dir, Seen { stamp, keys, image });
        }
        let mut images: Vec<Image> = present.values().filter_map(|seen| seen.image.clone()).collect();
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

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// With what policies say of it: the strictest of them.
pub(crate) fn judged(mut image: Image, policies: &[ImagePolicy]) -> Image {
    let summary = &mut image.summary;
    for policy in policies.iter().filter(|policy| policy.images.means(&summary.name, &summary.version)) {
        summary.classification = summary.classification.max(policy.classification);
        summary.expires = summary.expires.into_iter().chain(policy.expires).min();
    }
    image
}

/// `name/version`, or `name` for its newest version that is for everybody; none that has expired by `now` (in milliseconds
/// since 1970).
pub(crate) fn find(mut newest_first: Vec<Image>, reference: &str, now: u64) -> Option<Image> {
    newest_first.retain(|image| image.summary.expires.is_none_or(|expires| now / 1000 < expires));
    // Who names an image alone gets no preview, nor what is on its way out.
    newest_first
        .retain(|image| image.summary.name != reference || image.summary.classification == Classification::Supported);
    pick(&newest_first, reference).cloned()
}

/// What is revoked from here on, and whether the list is older than one that was seen.
fn heed(kept: &Revocations, list: &Revocations) -> (Revocations, bool) {
    let mut all = kept.clone();
    all.revoked.extend(list.revoked.iter().filter(|revoked| kept.of(&revoked.manifest_sha256).is_none()).cloned());
    all.sequence = all.sequence.max(list.sequence);
    (all, list.sequence < kept.sequence)
}

fn read_list(path: &Path, keys: &[PublicKey]) -> Result<Revocations> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_REVOKED_BYTES + 1).read_to_end(&mut text)?;
    Ok(revocation::open(&text, keys).map(Verified::into_inner)?)
}

pub(crate) fn pick<'a>(newest_first: &'a [Image], reference: &str) -> Option<&'a Image> {
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

    /// With none that is declared to be compiled here.
    fn all(images: &Images) -> Result<Vec<Image>> {
        images.all(&BTreeSet::new())
    }

    fn store(dir: &Path) -> Store {
        Store::open(&dir.join("state")).expect("opens")
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
        let images = Images::new(path.to_owned(), vec![PublicKey::of(&ours)], None, store(path));
        let list = || all(&images).expect("lists").iter().map(Image::reference).collect::<Vec<_>>();
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
            let got = find(all(&images).expect("lists"), reference, 1_000_000).map(|i| i.reference());
            assert_eq!(got.as_deref(), want, "{name}");
        }
        let before = find(all(&images).expect("lists"), "debian", 999_999).map(|i| i.reference());
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
        let images = Images::new(
            dir.path().to_owned(),
            vec![PublicKey::of(&ours)],
            imports(&["debian/1", "debian/3"]),
            store(dir.path()),
        );
        let list = || all(&images).expect("lists").iter().map(Image::reference).collect::<Vec<_>>();
        assert_eq!(list(), ["debian/1"]);
        images.trust(vec![PublicKey::of(&ours)], imports(&["debian/2"]));
        assert_eq!(list(), ["debian/2"]);
        let declared = |reference: &str| {
            let all = images.all(&BTreeSet::from([reference.to_owned()])).expect("lists");
            all.iter().map(Image::reference).collect::<BTreeSet<_>>()
        };
        let set = |references: &[&str]| references.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(declared("debian/11"), set(&["debian/11", "debian/2"]));
        assert_eq!(declared("xdebian/1"), set(&["debian/2", "xdebian/1"]), "at once, and the other one no more");
        images.trust(vec![PublicKey::of(&ours)], None);
        assert!(list().is_empty());
        assert!(declared("debian/11").is_empty(), "without a key of its own it compiles nothing");
    }

    #[test]
    fn no_directory_is_no_images() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let images = Images::new("/nonexistent/images".into(), vec![], None, store(dir.path()));
        assert_eq!(all(&images).expect("lists"), []);
    }

    fn list(sequence: u64, hashes: &[&str]) -> Revocations {
        let one = |hash: &&str| Revoked {
            manifest_sha256: if hash.len() == 1 { hash.repeat(64) } else { (*hash).to_owned() },
            image: "debian/12".into(),
            reason: "it has a back door".into(),
            at: 0,
        };
        Revocations { sequence, revoked: hashes.iter().map(one).collect() }
    }

    #[test]
    fn what_was_revoked_stays_so() {
        for (name, kept, list, want) in [
            ("the first", list(0, &[]), list(1, &["a"]), (list(1, &["a"]), false)),
            ("a newer one", list(1, &["a"]), list(2, &["a", "b"]), (list(2, &["a", "b"]), false)),
            ("the same", list(2, &["a", "b"]), list(2, &["a", "b"]), (list(2, &["a", "b"]), false)),
            ("an older one", list(2, &["a", "b"]), list(1, &["a"]), (list(2, &["a", "b"]), true)),
            ("none any more", list(2, &["a", "b"]), list(0, &[]), (list(2, &["a", "b"]), true)),
            ("a newer one that forgot", list(2, &["a", "b"]), list(3, &["c"]), (list(3, &["a", "b", "c"]), false)),
            ("an older one that has more", list(2, &["a"]), list(1, &["b"]), (list(2, &["a", "b"]), true)),
        ] {
            assert_eq!(heed(&kept, &list), want, "{name}");
        }
    }

    #[test]
    fn revoked_images_are_not_offered() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path();
        let (ours, theirs) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        publish(path, "debian/12.1", &manifest("debian", "12.1", 100), &ours);
        publish(path, "debian/12.2", &manifest("debian", "12.2", 200), &ours);
        let keys = vec![PublicKey::of(&ours)];
        let images = Images::new(path.to_owned(), keys.clone(), None, store(path));
        let newest = || find(all(&images).expect("lists"), "debian", 0).map(|i| i.reference());
        let sha256 = |version: &str| {
            let found = images.whole(&BTreeSet::new()).expect("lists");
            pick(&found, version).expect("there").manifest_sha256.clone()
        };
        let (first, second) = (sha256("debian/12.1"), sha256("debian/12.2"));
        let seal = |list: &Revocations, key: &SigningKey| serde_json::to_vec(&Signed::seal(list, key)).expect("JSON");
        let one = seal(&list(1, &[&second]), &ours);
        let two = seal(&list(2, &[&second, &first]), &ours);
        for (name, text, want) in [
            ("no list", None, Some("debian/12.2")),
            ("one that nobody trusts", Some(seal(&list(1, &[&second]), &theirs)), Some("debian/12.2")),
            ("one is revoked", Some(one.clone()), Some("debian/12.1")),
            ("both are", Some(two), None),
            ("the older list again", Some(one), None),
            ("rubbish", Some(b"{}".to_vec()), None),
            ("no list any more", None, None),
        ] {
            let file = path.join(REVOKED_FILE);
            match text {
                Some(text) => {
                    // As a publisher replaces it: another file.
                    fs::write(path.join(".list"), text).expect("writes");
                    fs::rename(path.join(".list"), &file).expect("replaces");
                }
                None => drop(fs::remove_file(&file)),
            }
            assert_eq!(newest().as_deref(), want, "{name}");
        }
        let why = images.revoked("debian/12.2", &BTreeSet::new()).map(|revoked| revoked.reason);
        assert_eq!(why.as_deref(), Some("it has a back door"));
        assert!(all(&images).expect("lists").is_empty());
        drop(images);
        // And after a restart, whoever is trusted then.
        let again = Images::new(path.to_owned(), keys, None, store(path));
        assert!(all(&again).expect("lists").is_empty());
        again.trust(vec![PublicKey::of(&ours), PublicKey::of(&theirs)], None);
        assert!(all(&again).expect("lists").is_empty());
    }
}
