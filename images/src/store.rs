//! A directory of published images, as any HTTP server can hold it: `<name>/<version>/`.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drophammer_protocol::manifest::{MANIFEST_FILE, Manifest};
use drophammer_protocol::sign::{PublicKey, Verified};

use crate::verify::{Problem, open_manifest};

/// One image of a store, with its manifest if that is to be believed. Its frames aren't looked at.
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
        for (version, dir) in directories(&image)? {
            let manifest = open_manifest(&dir, trusted);
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

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Now,
    Before,
    /// Which file of the published one is another.
    Differs(String),
}

/// Completes the image in `draft` with its manifest and moves it to `dir`, unless something is there.
pub(crate) fn publish(draft: &Path, manifest: &[u8], frames: &str, dir: &Path) -> Result<Published> {
    let place = || -> io::Result<()> {
        let mut file = File::create(draft.join(MANIFEST_FILE))?;
        file.write_all(manifest)?;
        file.sync_all()?;
        // Made for this user alone; servers often run as another.
        fs::set_permissions(draft.join(MANIFEST_FILE), fs::Permissions::from_mode(0o644))?;
        fs::set_permissions(draft.join(frames), fs::Permissions::from_mode(0o644))?;
        fs::set_permissions(draft, fs::Permissions::from_mode(0o755))?;
        File::open(draft)?.sync_all()
    };
    place().with_context(|| format!("completing {}", draft.display()))?;
    // Onto an empty directory it succeeds, onto anything else it fails: nothing published is ever lost.
    match fs::rename(draft, dir) {
        Ok(()) => {}
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
            ) =>
        {
            for file in [MANIFEST_FILE, frames] {
                let same = same(&draft.join(file), &dir.join(file));
                if !same.with_context(|| format!("comparing {file} with what is published in {}", dir.display()))? {
                    return Ok(Published::Differs(file.to_owned()));
                }
            }
            return Ok(Published::Before);
        }
        Err(e) => return Err(e).with_context(|| format!("renaming {} to {}", draft.display(), dir.display())),
    }
    // The name itself is data of the directory above, and of the one above that when the image is the first of its name.
    for above in dir.ancestors().skip(1).take(2) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        File::open(above)
            .and_then(|above| above.sync_all())
            .with_context(|| format!("writing {} to disk", above.display()))?;
    }
    Ok(Published::Now)
}

fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let b = match File::open(b) {
        Ok(b) => b,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(false),
        Err(e) => return Err(e),
    };
    let a = File::open(a)?;
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (BufReader::with_capacity(1 << 20, a), BufReader::with_capacity(1 << 20, b));
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(true);
        }
        b.read_exact(&mut right[..n])?;
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
}
