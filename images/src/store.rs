//! A directory of published images, as any HTTP server can hold it, laid out as [`drophammer_protocol::manifest`] says.
//!
//! What is in it never changes: packs are called by their hash, and a version is published once. Everything is written
//! beside its place and moved there when it is whole and durable, the manifest last: who reads sees an image that is
//! complete, or none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use drophammer_protocol::manifest::{MANIFEST_FILE, Manifest, PACKS, Pack};
use drophammer_protocol::sign::{PublicKey, Verified};
use tempfile::{NamedTempFile, TempDir};

use crate::chunks::Known;
use crate::verify::{Problem, inspect};

/// One image of a store, with its manifest if that is to be believed. Its chunks aren't looked at.
#[derive(Debug)]
pub struct Stored {
    pub dir: PathBuf,
    /// `name/version`, as its directories are called.
    pub reference: String,
    pub manifest: Result<Verified<Manifest>, Problem>,
}

/// Every image in `store` by name and version. One that can't be trusted is listed with the reason.
pub fn list(store: &Path, trusted: &[PublicKey]) -> Result<Vec<Stored>> {
    let mut found = Vec::new();
    for (name, image) in directories(store)? {
        if name == PACKS {
            continue;
        }
        for (version, dir) in directories(&image)? {
            let manifest = inspect(&dir, trusted);
            found.push(Stored { dir, reference: format!("{name}/{version}"), manifest });
        }
    }
    Ok(found)
}

/// Sorted; without what is hidden, such as images that are being published.
fn directories(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
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

/// The pack's place in a store.
pub(crate) fn pack_path(store: &Path, pack: &Pack) -> PathBuf {
    store.join(PACKS).join(&pack.sha256)
}

/// Chunks that needn't be published again: of images that `key` has signed and whose packs are there.
pub(crate) fn known(store: &Path, key: PublicKey) -> Result<Known> {
    let mut known = Known::default();
    let there = |pack: &Pack| fs::metadata(pack_path(store, pack)).is_ok_and(|file| file.len() == pack.bytes);
    for image in list(store, &[key])? {
        if let Ok(manifest) = image.manifest
            && manifest.packs.iter().all(there)
        {
            known.add(&manifest);
        }
    }
    Ok(known)
}

/// A version that is being made: its directory is beside its later place, and hidden from whoever lists the store.
#[derive(Debug)]
pub(crate) struct Draft {
    store: PathBuf,
    place: PathBuf,
    dir: TempDir,
    pub(crate) pack: NamedTempFile,
}

impl Draft {
    pub(crate) fn new(store: &Path, name: &str, version: &str) -> Result<Self> {
        let (parent, packs) = (store.join(name), store.join(PACKS));
        for dir in [&parent, &packs] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let in_dir = |dir: &Path| format!("making a file in {}", dir.display());
        let dir = tempfile::Builder::new()
            .prefix(&format!(".{version}-"))
            .tempdir_in(&parent)
            .with_context(|| in_dir(&parent))?;
        let pack = tempfile::Builder::new().prefix(".pack-").tempfile_in(&packs).with_context(|| in_dir(&packs))?;
        Ok(Self { store: store.to_owned(), place: parent.join(version), dir, pack })
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

    /// Puts everything in place, the manifest's directory last.
    pub(crate) fn publish(self, manifest: &[u8], own: Option<&Pack>) -> Result<PathBuf> {
        let Self { store, place, dir, pack } = self;
        if let Some(own) = own {
            let path = pack_path(&store, own);
            let settle = || -> io::Result<()> {
                fs::set_permissions(pack.path(), fs::Permissions::from_mode(0o644))?;
                pack.as_file().sync_all()
            };
            settle().with_context(|| format!("writing {} to disk", path.display()))?;
            // What has this name already has the same bytes, unless it is damaged.
            pack.persist(&path).with_context(|| format!("putting {} in place", path.display()))?;
            sync(&store.join(PACKS))?;
        }
        write(&dir.path().join(MANIFEST_FILE), manifest)
            .and_then(|()| fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)))
            .and_then(|()| File::open(dir.path())?.sync_all())
            .with_context(|| format!("completing {}", dir.path().display()))?;
        // Onto an empty directory it succeeds, onto anything else it fails: nothing published is ever lost.
        fs::rename(dir.path(), &place).with_context(|| format!("publishing {}", place.display()))?;
        // It has moved, so there is nothing to be removed.
        let _ = dir.keep();
        // The name itself is data of the directory above, and of the one above that when the image is the first of its
        // name.
        for above in place.ancestors().skip(1).take(2) {
            sync(if above.as_os_str().is_empty() { Path::new(".") } else { above })?;
        }
        Ok(place)
    }
}

/// Whole and durable; for everybody to read, for servers often run as another user.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    file.sync_all()
}

fn sync(dir: &Path) -> Result<()> {
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
