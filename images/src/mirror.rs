//! A boot server's directory is filled from a store elsewhere, so that its machines need nothing else.
//!
//! Nothing of an image is fetched before its manifest is believed, no pack gets its name before its hash is right, and the
//! version is there when all of it is. What broke off goes on at the byte where it did, in this run or the next.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, PACKS, Pack};
use drophammer_protocol::revocation::{MAX_REVOKED_BYTES, REVOKED_FILE, Revocations};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use nix::fcntl::FlockArg;
use sha2::{Digest, Sha256};

use crate::pack::Progress;
use crate::place::{Place, Trouble};
use crate::publish::{AT_ONCE, missing_packs, refuse_revoked};
use crate::revoke::{carry, revocations};
use crate::several;
use crate::store::{self, Outcome, Version, is_image};
use crate::verify::{MAX_ATTACHMENT_BYTES, Problem};

/// What became of one image.
#[derive(Debug)]
pub struct Mirrored {
    /// `name/version`, or what was asked for if it came to no version.
    pub reference: String,
    pub result: Result<Copied>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    pub outcome: Outcome,
    /// Of packs that weren't there.
    pub fetched_bytes: u64,
}

/// Who hears of what.
#[derive(Clone, Copy)]
pub struct Listener<'a> {
    pub progress: Progress<'a>,
    /// Told of every interruption that is gone on after.
    pub interrupted: &'a (dyn Fn(&str) + Sync),
}

impl std::fmt::Debug for Listener<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

/// Tries in a row that bring nothing, and how long is waited after the first of them. Running it again is no loss.
const FRUITLESS_TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Brings `wanted` (`name/version`, or `name` for its newest; everything, if it's empty) into the directory `to`. One image
/// that fails doesn't keep the others away. `now` is in seconds since 1970: what has expired by then is nobody's newest.
pub fn mirror(
    from: &Place,
    to: &Path,
    wanted: &[String],
    trusted: &[PublicKey],
    now: u64,
    listener: Listener<'_>,
) -> Result<Vec<Mirrored>> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    // Two of them would write into the same files.
    let _alone = store::alone(to, FlockArg::LockExclusiveNonblock)?;
    let _held = store::hold(to)?;
    let mut source = Source { from, trusted, revoked: Revocations::default(), listener };
    let mut mirrored: Vec<Mirrored> = Vec::new();
    // One that can't be believed keeps no image away: it could as well have been removed. But it's a failure.
    match source.revocations(to) {
        Ok(revoked) => source.revoked = revoked,
        Err(error) => {
            let here = revocations(to, trusted).ok().flatten();
            source.revoked = here.map(Verified::into_inner).unwrap_or_default();
            mirrored.push(Mirrored { reference: REVOKED_FILE.to_owned(), result: Err(error) });
        }
    }
    for (asked, chosen) in source.choose(wanted, now)? {
        let reference = chosen.as_ref().unwrap_or(&asked).clone();
        if mirrored.iter().all(|other| other.reference != reference) {
            let result = chosen.and_then(|reference| source.bring(&reference, to));
            let is_revoked = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(Problem::Revoked(_)));
            match result {
                Err(error) if wanted.is_empty() && is_revoked(&error) => {
                    (listener.interrupted)(&format!("{error:#}; it is left out"));
                }
                result => mirrored.push(Mirrored { reference, result }),
            }
        }
    }
    Ok(mirrored)
}

struct Source<'a> {
    from: &'a Place,
    trusted: &'a [PublicKey],
    revoked: Revocations,
    listener: Listener<'a>,
}

impl Source<'_> {
    /// What is revoked there or here; from here on, here.
    fn revocations(&self, to: &Path) -> Result<Revocations> {
        let there = || self.from.small(REVOKED_FILE, MAX_REVOKED_BYTES).map(Some);
        let text = self.persist(REVOKED_FILE, there)?;
        carry(text.as_deref(), &self.name(REVOKED_FILE), &Place::Directory(to.to_owned()), self.trusted)
    }

    /// Each of `wanted` with the version that it comes to.
    fn choose(&self, wanted: &[String], now: u64) -> Result<Vec<(String, Result<String>)>> {
        let named = |text: &String| match text.split_once('/') {
            Some((name, version)) => is_image(name, version),
            None => is_image(text, "1"),
        };
        if let Some(bad) = wanted.iter().find(|text| !named(text)) {
            bail!("{bad:?} is no image's name: give NAME/VERSION, or NAME for its newest");
        }
        let bare = wanted.iter().find(|text| !text.contains('/'));
        if let (Place::Web(_), Some(name)) = (self.from, bare) {
            bail!(
                "{name} names no version, and a plain HTTP server can't say which is its newest: give {name}/VERSION"
            );
        }
        let all = if wanted.is_empty() || bare.is_some() { self.from.references()? } else { Vec::new() };
        if wanted.is_empty() {
            ensure!(!all.is_empty(), "{} has no images", self.from);
            return Ok(all.into_iter().map(|reference| (reference.clone(), Ok(reference))).collect());
        }
        let version = |text: &String| if text.contains('/') { Ok(text.clone()) } else { self.newest(text, &all, now) };
        Ok(wanted.iter().map(|text| (text.clone(), version(text))).collect())
    }

    fn newest(&self, name: &str, all: &[String], now: u64) -> Result<String> {
        let mut best: Option<(u64, String)> = None;
        let mut refused = Vec::new();
        for reference in all.iter().filter(|reference| reference.split_once('/').is_some_and(|(n, _)| n == name)) {
            match self.manifest(reference) {
                Ok(read) if read.manifest.has_expired(now) => refused.push(format!("{reference} has expired")),
                Ok(read) if refuse_revoked(&self.revoked, &read.manifest).is_err() => {
                    let why = refuse_revoked(&self.revoked, &read.manifest);
                    refused.extend(why.err().map(|why| why.to_string()));
                }
                Ok(read) => best = best.max(Some((read.manifest.created, reference.clone()))),
                Err(error) => refused.push(format!("{error:#}")),
            }
        }
        match (best, refused.as_slice()) {
            (Some((_, reference)), _) => Ok(reference),
            (None, []) => Err(anyhow!("{} has no image of that name", self.from)),
            (None, refused) => Err(anyhow!("{} has none that can be used: {}", self.from, refused.join("; "))),
        }
    }

    fn bring(&self, reference: &str, to: &Path) -> Result<Copied> {
        let Found { manifest, text, payload } = self.manifest(reference)?;
        refuse_revoked(&self.revoked, &manifest)?;
        // Before much is fetched for nothing.
        let mut version = Version { manifest: &manifest, text: &text, payload: &payload, attachments: Vec::new() };
        let place = to.join(reference).join(MANIFEST_FILE);
        let there =
            store::read_if_there(&place, MAX_MANIFEST_BYTES).with_context(|| format!("reading {}", place.display()))?;
        store::decide(there.as_deref(), &version, &to.display().to_string())?;

        let missing = missing_packs(&manifest, to);
        several::each(&missing, AT_ONCE, |pack| self.pack(pack, to))?;
        if let Some(sbom) = &manifest.sbom {
            let key = format!("{reference}/{}", sbom.file);
            let limit = sbom.bytes.min(MAX_ATTACHMENT_BYTES);
            let bytes = self.persist(&key, || self.from.small(&key, limit))?;
            let sha256 = hex::encode(Sha256::digest(&bytes));
            ensure!(sha256 == sbom.sha256, "{} was altered: its SHA-256 is {sha256}", self.name(&key));
            version.attachments.push((&sbom.file, bytes));
        }
        let outcome = store::place_version(to, &version)?;
        Ok(Copied { outcome, fetched_bytes: missing.iter().map(|pack| pack.bytes).sum() })
    }

    /// The manifest, if it's signed by whom we trust, and that of what was asked for.
    fn manifest(&self, reference: &str) -> Result<Found> {
        let key = format!("{reference}/{MANIFEST_FILE}");
        let text = self.persist(&key, || self.from.small(&key, MAX_MANIFEST_BYTES))?;
        let signed: Signed<Manifest> =
            serde_json::from_slice(&text).with_context(|| format!("{} isn't a signed manifest", self.name(&key)))?;
        let manifest = manifest::open_signed(&signed, self.trusted).with_context(|| self.name(&key))?;
        ensure!(
            manifest.reference() == reference,
            "{} is that of {}: images were mixed up or renamed",
            self.name(&key),
            manifest.reference()
        );
        Ok(Found { manifest, text, payload: signed.payload })
    }

    fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.from)
    }

    /// Asks until there's an answer, or none for too long.
    fn persist<T>(&self, key: &str, mut ask: impl FnMut() -> Result<Option<T>, Trouble>) -> Result<T> {
        let mut fruitless = 0;
        loop {
            match ask() {
                Ok(Some(got)) => return Ok(got),
                Ok(None) => bail!("{} isn't there", self.name(key)),
                Err(Trouble::Final(cause)) => return Err(cause.context(format!("fetching {}", self.name(key)))),
                Err(Trouble::Passing(cause)) => self.pause(key, cause, &mut fruitless)?,
            }
        }
    }

    fn pause(&self, key: &str, cause: anyhow::Error, fruitless: &mut u32) -> Result<()> {
        *fruitless += 1;
        if *fruitless == FRUITLESS_TRIES {
            let doing = format!("fetching {}: {FRUITLESS_TRIES} tries in a row brought nothing", self.name(key));
            return Err(cause.context(doing));
        }
        (self.listener.interrupted)(&format!("{}: {cause:#}; going on", self.name(key)));
        std::thread::sleep(FIRST_PAUSE * (1 << (*fruitless - 1)));
        Ok(())
    }

    fn pack(&self, pack: &Pack, to: &Path) -> Result<()> {
        let key = format!("{PACKS}/{}", pack.sha256);
        let path = to.join(PACKS).join(format!("{PARTIAL}{}", pack.sha256));
        let local = || format!("writing {}", path.display());
        let mut partial = Partial::open(&path, pack.bytes).with_context(local)?;
        let mut resumed = partial.have > 0;
        loop {
            self.fill(&key, pack, &mut partial, &local)?;
            let sha256 = hex::encode(partial.hash.clone().finalize());
            if sha256 == pack.sha256 {
                break;
            }
            partial.empty().with_context(local)?;
            if !resumed {
                fs::remove_file(&path).with_context(local)?;
                bail!(
                    "{} came with SHA-256 {sha256}: that store has a damaged copy, so publish the image there again",
                    self.name(&key)
                );
            }
            // What was there from before may have been what was wrong.
            (self.listener.interrupted)(&format!("{} came to another SHA-256; starting over", self.name(&key)));
            resumed = false;
        }
        store::settle(&partial.file).with_context(local)?;
        let place = store::pack_path(to, pack);
        fs::rename(&path, &place).with_context(|| format!("putting {} in place", place.display()))?;
        store::sync(&to.join(PACKS))
    }

    /// Until it's as long as it should be.
    fn fill(&self, key: &str, pack: &Pack, partial: &mut Partial, local: &dyn Fn() -> String) -> Result<()> {
        let mut fruitless = 0;
        let mut buffer = vec![0; 1 << 20];
        while partial.have < pack.bytes {
            let before = partial.have;
            let mut body = match self.from.open(key, partial.have, Some(pack.bytes)) {
                Ok(Some(body)) => body.take(pack.bytes - partial.have),
                Ok(None) => bail!("{} isn't there: the image isn't whole in that store", self.name(key)),
                Err(Trouble::Final(cause)) => return Err(cause.context(format!("fetching {}", self.name(key)))),
                Err(Trouble::Passing(cause)) => {
                    self.pause(key, cause, &mut fruitless)?;
                    continue;
                }
            };
            let broke_off = loop {
                match body.read(&mut buffer) {
                    Ok(0) => break anyhow!("the answer ended at byte {}", partial.have),
                    Ok(n) => {
                        partial.add(buffer.get(..n).unwrap_or_default()).with_context(local)?;
                        (self.listener.progress)(n as u64);
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => break e.into(),
                }
            };
            if partial.have < pack.bytes {
                if partial.have > before {
                    fruitless = 0;
                }
                self.pause(key, broke_off, &mut fruitless)?;
            }
        }
        Ok(())
    }
}

struct Found {
    manifest: Verified<Manifest>,
    text: Vec<u8>,
    payload: String,
}

pub(crate) const PARTIAL: &str = ".mirror-";

/// A pack of which some may be there.
struct Partial {
    file: File,
    have: u64,
    hash: Sha256,
}

impl Partial {
    fn open(path: &Path, at_most: u64) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let (mut hash, mut have, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hash.update(buffer.get(..n).unwrap_or_default());
            have += n as u64;
        }
        let mut partial = Self { file, have, hash };
        if have > at_most {
            partial.empty()?;
        }
        Ok(partial)
    }

    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn empty(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.have, self.hash) = (0, Sha256::new());
        Ok(())
    }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
