//! What a store needn't keep: packs that no image there refers to, and what publishers left that were killed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, PACKS, is_hash};
use drophammer_protocol::sign::Signed;
use nix::fcntl::{Flock, FlockArg};

use crate::mirror::PARTIAL;
use crate::store::{self, FILE_DRAFT, PACK_DRAFT, directories, is_image};

/// Who publishes for longer than this has a lock all the same; who has neither is dead.
const DRAFT_AGE: Duration = Duration::from_secs(24 * 3600);

/// Something that nobody needs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Garbage {
    pub path: PathBuf,
    pub bytes: u64,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// That no manifest refers to.
    Pack,
    /// Of something that never became whole.
    Draft,
}

/// What is to go, as long as it isn't done: while this is held, nobody adds to the store.
#[derive(Debug)]
pub struct Sweep {
    pub garbage: Vec<Garbage>,
    packs: PathBuf,
    _alone: Flock<File>,
}

/// Finds what nobody needs, and removes nothing. Fails if there's any manifest that can't be read, because then nobody knows
/// what it refers to, and while anybody publishes.
pub fn gc(store: &Path, now: SystemTime) -> Result<Sweep> {
    let packs = store.join(PACKS);
    let alone = store::lock(&packs, FlockArg::LockExclusiveNonblock, "is being added to just now")?;
    let kept = referred(store)?;
    let mut garbage = Vec::new();
    for (name, path) in entries(&packs)? {
        let old = || is_old(&path, now);
        let kind = match name.as_str() {
            name if is_hash(name) && !kept.contains(name) => Kind::Pack,
            name if (name.starts_with(PACK_DRAFT) || name.starts_with(PARTIAL)) && old()? => Kind::Draft,
            _ => continue,
        };
        garbage.push(Garbage { bytes: size(&path)?, path, kind });
    }
    let images = directories(store)?;
    let versions = images.iter().filter(|(name, _)| name != PACKS).map(|(_, path)| path);
    for dir in versions.clone() {
        for (name, path) in entries(dir)? {
            if is_version_draft(&name) && path.is_dir() && is_old(&path, now)? {
                garbage.push(Garbage { bytes: size(&path)?, path, kind: Kind::Draft });
            }
        }
    }
    let mut with_files = vec![store.to_owned()];
    for dir in versions {
        with_files.extend(directories(dir)?.into_iter().map(|(_, path)| path));
    }
    for dir in &with_files {
        for (name, path) in entries(dir)? {
            if name.starts_with(FILE_DRAFT) && is_old(&path, now)? {
                garbage.push(Garbage { bytes: size(&path)?, path, kind: Kind::Draft });
            }
        }
    }
    Ok(Sweep { garbage, packs, _alone: alone })
}

impl Sweep {
    /// Removes what was found. What can't be removed doesn't keep the rest.
    pub fn remove(self) -> Result<()> {
        let mut failed = Vec::new();
        for garbage in &self.garbage {
            let path = &garbage.path;
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            if let Err(error) = removed {
                failed.push(format!("{}: {error}", path.display()));
            }
        }
        store::sync(&self.packs)?;
        ensure!(failed.is_empty(), "what couldn't be removed:\n  {}", failed.join("\n  "));
        Ok(())
    }
}

/// The packs of all images, whoever signed them.
fn referred(store: &Path) -> Result<HashSet<String>> {
    let mut kept = HashSet::new();
    let mut unread = Vec::new();
    for (name, version, dir) in store::versions(store)? {
        match manifest_in(&dir) {
            Ok(manifest) => kept.extend(manifest.packs.into_iter().map(|pack| pack.sha256)),
            Err(error) if is_image(&name, &version) => unread.push(format!("{}: {error:#}", dir.display())),
            Err(error) => unread.push(format!("{}, which is no image's name: {error:#}", dir.display())),
        }
    }
    ensure!(
        unread.is_empty(),
        "nothing is removed, because nobody knows what these refer to (remove them if they're of no use):\n  {}",
        unread.join("\n  ")
    );
    Ok(kept)
}

fn manifest_in(dir: &Path) -> Result<Manifest> {
    let text = store::read_if_there(&dir.join(MANIFEST_FILE), MAX_MANIFEST_BYTES)?;
    let text = text.with_context(|| format!("it has no {MANIFEST_FILE}"))?;
    let signed: Signed<Manifest> = serde_json::from_slice(&text).context("its manifest isn't a signed one")?;
    Ok(manifest::open_signed(&signed, &[signed.key])?.into_inner())
}

/// `.<version>-` and what makes it unique.
fn is_version_draft(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|name| name.rsplit_once('-'));
    parts.is_some_and(|(version, unique)| {
        is_image("a", version) && unique.len() == 6 && unique.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

/// Everything, hidden or not.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listing = || format!("listing {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// By what was last changed of it.
fn is_old(path: &Path, now: SystemTime) -> Result<bool> {
    let looking = || format!("looking at {}", path.display());
    let changed = fs::symlink_metadata(path).and_then(|found| found.modified()).with_context(looking)?;
    // What was changed in the future isn't old.
    if now.duration_since(changed).is_ok_and(|age| age >= DRAFT_AGE) {
        if path.is_dir() {
            for (_, inner) in entries(path)? {
                if !is_old(&inner, now)? {
                    return Ok(false);
                }
            }
        }
        return Ok(true);
    }
    Ok(false)
}

/// What its removal brings.
fn size(path: &Path) -> Result<u64> {
    let found = fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    let own = found.blocks() * 512;
    if !found.is_dir() {
        return Ok(own);
    }
    entries(path)?.iter().try_fold(own, |sum, (_, inner)| Ok(sum + size(inner)?))
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::sign::PublicKey;

    use super::*;
    use crate::pack::PackOptions;
    use crate::pack::tests::{key, ours, pack_to, tar_with};
    use crate::verify;

    const DAY: Duration = Duration::from_secs(24 * 3600 + 60);

    /// Two versions, of which the newer refers to the packs of both, and what killed publishers left.
    fn stored() -> Result<(tempfile::TempDir, PathBuf)> {
        let dir = tempfile::tempdir()?;
        let store = dir.path().join("store");
        let tar = dir.path().join("tar");
        let noise = crate::chunks::tests::noise(9 << 20, 1);
        fs::write(&tar, tar_with(&[("usr/big".into(), noise.clone())])?)?;
        pack_to(&tar, &store, &PackOptions::new("test", "1", ""), &key(1))?;
        fs::write(&tar, tar_with(&[("usr/big".into(), noise), ("usr/new".into(), b"new".to_vec())])?)?;
        pack_to(&tar, &store, &PackOptions::new("test", "2", ""), &key(1))?;
        fs::create_dir(store.join("test/.3-aB3dE6"))?;
        for file in ["test/.3-aB3dE6/manifest.json", "packs/.pack-x", "packs/.mirror-x", "test/1/.file-x", ".file-x"] {
            fs::write(store.join(file), "half")?;
        }
        for other in ["packs/README", "packs/.nfs0001", "test/.hidden", ".git", "test/.snapshot-1"] {
            fs::write(store.join(other), "not ours")?;
        }
        Ok((dir, store))
    }

    fn found(sweep: &Sweep, store: &Path) -> Vec<String> {
        let name = |garbage: &Garbage| Some(garbage.path.strip_prefix(store).ok()?.display().to_string());
        sweep.garbage.iter().filter_map(name).collect()
    }

    #[test]
    fn only_what_nobody_needs_goes() -> Result<()> {
        let (_dir, store) = stored()?;
        let later = SystemTime::now() + DAY;
        assert_eq!(found(&gc(&store, SystemTime::now())?, &store), [] as [&str; 0], "drafts may still be of somebody");
        let drafts = ["packs/.mirror-x", "packs/.pack-x", "test/.3-aB3dE6", ".file-x", "test/1/.file-x"];
        assert_eq!(found(&gc(&store, later)?, &store), drafts);

        // The older goes; what the newer has of it stays.
        fs::remove_dir_all(store.join("test/1"))?;
        let sweep = gc(&store, later)?;
        assert!(sweep.garbage.iter().all(|garbage| garbage.kind == Kind::Draft), "{sweep:?}");
        sweep.remove()?;
        verify(&store.join("test/2"), &ours())?;

        fs::remove_dir_all(store.join("test/2"))?;
        let sweep = gc(&store, SystemTime::now())?;
        let packs = sweep.garbage.iter().filter(|garbage| garbage.kind == Kind::Pack && garbage.bytes > 0).count();
        assert_eq!((packs, sweep.garbage.len()), (2, 2));
        assert_eq!(fs::read_dir(store.join(PACKS))?.count(), 4, "it's said first");
        sweep.remove()?;
        let left: Vec<String> = entries(&store.join(PACKS))?.into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, [".nfs0001", "README"]);
        assert_eq!(entries(&store.join("test"))?.len(), 2, "what isn't ours stays");
        Ok(())
    }

    #[test]
    fn nothing_goes_that_anybody_may_need() -> Result<()> {
        let (_dir, store) = stored()?;
        let manifest = store.join("test/1/manifest.json");
        let right = fs::read(&manifest)?;
        let mut forged = right.clone();
        forged.iter_mut().skip(40).take(1).for_each(|byte| *byte ^= 1);
        for (name, text, want) in [
            ("as it was", Some(right.as_slice()), ""),
            ("cut short", Some(&right[..100]), "isn't a signed one"),
            ("altered", Some(forged.as_slice()), "isn't"),
            ("gone", None, "it has no manifest.json"),
        ] {
            match text {
                Some(text) => fs::write(&manifest, text)?,
                None => fs::remove_file(&manifest)?,
            }
            let said = gc(&store, SystemTime::now()).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{name}: {said}");
        }
        fs::write(&manifest, &right)?;
        crate::sign(&store.join("test/1"), &ours(), &key(2))?;
        gc(&store, SystemTime::now()).context("whoever signed it")?;
        assert!(verify(&store.join("test/1"), &[PublicKey::of(&key(2))]).is_ok());

        let publishing = store::hold(&store)?;
        let said = gc(&store, SystemTime::now()).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains("is being added to just now"), "{said}");
        drop(publishing);
        gc(&store, SystemTime::now())?;
        let said = gc(Path::new("/nonexistent"), SystemTime::now()).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains("opening /nonexistent/packs"), "{said}");
        Ok(())
    }
}
