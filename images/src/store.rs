//! A directory of published images, as any HTTP server can hold it, laid out as [`drophammer_protocol::manifest`] says.
//!
//! What is in it never changes: packs are called by their hash, and a version is published once. Everything is written
//! beside its place and moved there when it is whole and durable, the manifest last: who reads sees an image that is
//! complete, or none.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, PACKS, Pack, is_plain_name};
use drophammer_protocol::sign::Signed;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tempfile::{NamedTempFile, TempDir};

/// Sorted; without what is hidden, such as images that are being published.
pub(crate) fn directories(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether these two directories may hold an image.
pub(crate) fn is_image(name: &str, version: &str) -> bool {
    is_plain_name(name) && name != PACKS && is_plain_name(version)
}

/// Every name and version in a store, with its directory, whatever is in that and whatever they are called.
pub(crate) fn versions(store: &Path) -> Result<Vec<(String, String, PathBuf)>> {
    let mut found = Vec::new();
    for (name, image) in directories(store)? {
        if name == PACKS {
            continue;
        }
        found.extend(directories(&image)?.into_iter().map(|(version, dir)| (name.clone(), version, dir)));
    }
    Ok(found)
}

/// Every `name/version` that may be an image's.
pub(crate) fn references(store: &Path) -> Result<Vec<String>> {
    let found = versions(store)?.into_iter().filter(|(name, version, _)| is_image(name, version));
    Ok(found.map(|(name, version, _)| format!("{name}/{version}")).collect())
}

/// The pack's place in a store.
pub(crate) fn pack_path(store: &Path, pack: &Pack) -> PathBuf {
    store.join(PACKS).join(&pack.sha256)
}

/// Held by whoever adds to a store: while anybody does, [`gc`](crate::gc()) removes nothing.
pub(crate) fn hold(store: &Path) -> Result<Flock<File>> {
    let packs = store.join(PACKS);
    fs::create_dir_all(&packs).with_context(|| format!("making {}", packs.display()))?;
    lock(&packs, FlockArg::LockShared, "is locked")
}

/// Held by whoever changes what more than one would change: the list of revoked images, packs that come in pieces.
pub(crate) fn alone(store: &Path, how: FlockArg) -> Result<Flock<File>> {
    lock(store, how, "is being filled or changed already")
}

/// `busy` is what is said of it if somebody else holds it, and `how` isn't to wait.
pub(crate) fn lock(dir: &Path, how: FlockArg, busy: &str) -> Result<Flock<File>> {
    let file = File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    Flock::lock(file, how).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => anyhow!("{} {busy}: wait for that to end", dir.display()),
        errno => anyhow!(errno).context(format!("locking {}", dir.display())),
    })
}

/// A pack that has no name yet.
pub(crate) fn new_pack(store: &Path) -> Result<NamedTempFile> {
    let packs = store.join(PACKS);
    tempfile::Builder::new()
        .prefix(PACK_DRAFT)
        .tempfile_in(&packs)
        .with_context(|| format!("making a file in {}", packs.display()))
}

pub(crate) const PACK_DRAFT: &str = ".pack-";

/// Gives a pack its name. What has this name already has the same bytes, unless it is damaged.
pub(crate) fn keep_pack(store: &Path, draft: NamedTempFile, pack: &Pack) -> Result<()> {
    let path = pack_path(store, pack);
    settle(draft.as_file()).with_context(|| format!("writing {} to disk", path.display()))?;
    draft.persist(&path).with_context(|| format!("putting {} in place", path.display()))?;
    sync(&store.join(PACKS))
}

/// For everybody to read, for servers often run as another user; and durable.
pub(crate) fn settle(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()
}

/// A version that is being made: its directory is beside its later place, and hidden from whoever lists the store.
#[derive(Debug)]
pub(crate) struct Draft {
    place: PathBuf,
    dir: TempDir,
}

impl Draft {
    pub(crate) fn new(store: &Path, name: &str, version: &str) -> Result<Self> {
        let parent = store.join(name);
        fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
        let dir = tempfile::Builder::new()
            .prefix(&format!(".{version}-"))
            .tempdir_in(&parent)
            .with_context(|| format!("making a directory in {}", parent.display()))?;
        Ok(Self { place: parent.join(version), dir })
    }

    /// For what is of no use later.
    pub(crate) fn scratch(&self) -> Result<File> {
        tempfile::tempfile_in(self.dir.path())
            .with_context(|| format!("making a file in {}", self.dir.path().display()))
    }

    /// A file beside the manifest.
    pub(crate) fn attach(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.path().join(name);
        write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    }

    /// Puts it in place, its packs being there.
    pub(crate) fn publish(self, manifest: &[u8]) -> Result<PathBuf> {
        let place = self.place.clone();
        self.publish_over_nothing(manifest)?.with_context(|| format!("publishing {}", place.display()))?;
        Ok(place)
    }

    /// The same; what is told apart is that something was there already.
    fn publish_over_nothing(self, manifest: &[u8]) -> Result<io::Result<()>> {
        let Self { place, dir } = self;
        write(&dir.path().join(MANIFEST_FILE), manifest)
            .and_then(|()| fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)))
            .and_then(|()| File::open(dir.path())?.sync_all())
            .with_context(|| format!("completing {}", dir.path().display()))?;
        // Onto an empty directory it succeeds, onto anything else it fails: nothing published is ever lost.
        if let Err(error) = fs::rename(dir.path(), &place) {
            return Ok(Err(error));
        }
        // It has moved, so there is nothing to be removed.
        let _ = dir.keep();
        // The name itself is data of the directory above, and of the one above that when the image is the first of its
        // name.
        for above in place.ancestors().skip(1).take(2) {
            sync(if above.as_os_str().is_empty() { Path::new(".") } else { above })?;
        }
        Ok(Ok(()))
    }
}

/// What became of a version that was to be in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Published,
    /// It was there, and has another key's signature now.
    SignedAnew,
    /// It was there, to the byte.
    Existed,
}

/// A version from elsewhere, all of it checked: what its files are and what they hold.
#[derive(Debug)]
pub(crate) struct Version<'a> {
    pub(crate) manifest: &'a Manifest,
    /// `manifest.json`.
    pub(crate) text: &'a [u8],
    pub(crate) payload: &'a str,
    pub(crate) attachments: Vec<(&'a str, Vec<u8>)>,
}

/// What is to be done with a version, by the manifest that is there.
pub(crate) fn decide(there: Option<&[u8]>, ours: &Version<'_>, place: &str) -> Result<Outcome> {
    let Some(there) = there else { return Ok(Outcome::Published) };
    if there == ours.text {
        return Ok(Outcome::Existed);
    }
    let reference = ours.manifest.reference();
    let signed: Signed<Manifest> = serde_json::from_slice(there).ok().with_context(|| {
        format!("{place} has something under the name of {reference} that isn't a signed manifest: remove it first")
    })?;
    if signed.payload == ours.payload {
        return Ok(Outcome::SignedAnew);
    }
    if let Ok(there) = manifest::open_signed(&signed, &[signed.key]) {
        ensure_same(&there, ours.manifest, Path::new(place))?;
    }
    bail!(
        "{reference} is published already in {place} and isn't the same to the byte, though it may have the same files: \
         published versions never change, so choose another version"
    )
}

/// Puts a version into a directory, its packs being there. Whatever is missing beside a manifest that is there, is added.
pub(crate) fn place_version(store: &Path, version: &Version<'_>) -> Result<Outcome> {
    let (name, number) = (&version.manifest.name, &version.manifest.version);
    let dir = store.join(name).join(number);
    let path = dir.join(MANIFEST_FILE);
    // A second time if somebody else is faster.
    for _ in 0..2 {
        let there = read_if_there(&path, MAX_MANIFEST_BYTES).with_context(|| format!("reading {}", path.display()))?;
        let outcome = decide(there.as_deref(), version, &store.display().to_string())?;
        if outcome == Outcome::Published {
            let draft = Draft::new(store, name, number)?;
            for (file, bytes) in &version.attachments {
                draft.attach(file, bytes)?;
            }
            match draft.publish_over_nothing(version.text)? {
                Ok(()) => return Ok(outcome),
                Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => continue,
                Err(e) => return Err(e).with_context(|| format!("publishing {}", dir.display())),
            }
        }
        for (file, bytes) in &version.attachments {
            let path = dir.join(file);
            if fs::read(&path).ok().as_ref() != Some(bytes) {
                replace(&path, bytes)?;
            }
        }
        if outcome == Outcome::SignedAnew {
            replace(&path, version.text)?;
        }
        return Ok(outcome);
    }
    bail!("{} is there and has no {MANIFEST_FILE}: it's no image, so remove it first", dir.display())
}

pub(crate) fn read_if_there(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?.take(limit + 1).read_to_end(&mut bytes)?,
    };
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Who reads sees the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    let write = || -> Result<()> {
        let mut draft = tempfile::Builder::new().prefix(FILE_DRAFT).tempfile_in(dir)?;
        draft.write_all(bytes)?;
        settle(draft.as_file())?;
        draft.persist(path)?;
        sync(dir)
    };
    write().with_context(|| format!("replacing {}", path.display()))
}

pub(crate) const FILE_DRAFT: &str = ".file-";

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    settle(&file)
}

pub(crate) fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("writing {} to disk", dir.display()))
}

/// Whether a version that exists may stay: it's the same image, whatever packs its chunks are in.
pub(crate) fn ensure_same(there: &Manifest, made: &Manifest, store: &Path) -> Result<()> {
    let forms = |manifest: &Manifest| {
        (manifest.block.as_ref().map(|form| form.sha256.clone()), manifest.tar.as_ref().map(|form| form.sha256.clone()))
    };
    let differs = match () {
        () if forms(there) != forms(made) => "its content",
        () if there.boot != made.boot => "what starts it",
        () if there.expires != made.expires => "its expiry",
        () if there.sbom != made.sbom => "the list of its packages",
        () if there.source != made.source => "where it came from",
        () if there.minimum != made.minimum => "what it needs of a machine",
        () if (&there.arch, &there.description, there.created) != (&made.arch, &made.description, made.created) => {
            "what it says of itself"
        }
        () => return Ok(()),
    };
    ensure!(
        false,
        "{} is published already in {} and {differs} differs: published versions never change, so choose another version",
        made.reference(),
        store.display()
    );
    Ok(())
}
