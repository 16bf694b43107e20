//! An image goes from the directory in which it was packed to where it's served from: another directory, or a bucket.
//!
//! Whoever reads there sees nothing of it before all of it is there: the packs come first, then what lies beside the
//! manifest, and the manifest last. A version that is there is never replaced with another. What is interrupted is taken
//! up by publishing again: only packs that aren't there yet are sent.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, PACKS, Pack};
use drophammer_protocol::revocation::{MAX_REVOKED_BYTES, REVOKED_FILE, Revocations};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use nix::fcntl::FlockArg;
use sha2::{Digest, Sha256};

use crate::pack::Progress;
use crate::place::{Bucket, Place, Put};
use crate::revoke;
use crate::several;
use crate::store::{self, Outcome, Version, decide};
use crate::verify::{self, Problem};

/// Packs that are sent or fetched at the same time.
pub(crate) const AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("not zero");

#[derive(Debug)]
pub struct Published {
    pub manifest: Verified<Manifest>,
    pub outcome: Outcome,
    /// Of packs that weren't there.
    pub sent_bytes: u64,
}

/// Publishes the image in `dir`, which is in a store, in another one. It has to be whole; signed by one of `trusted`, or,
/// if that's nobody, by whoever it says. `progress` is told of bytes that were sent.
pub fn publish(dir: &Path, to: &Place, trusted: &[PublicKey], progress: Progress<'_>) -> Result<Published> {
    if let Place::Web(web) = to {
        bail!("{web} can only be read: publish into the directory that the server serves, or into a bucket (s3://…)");
    }
    let image = Image::open(dir, trusted)?;
    let store = image.store.as_path();
    // Before anything is sent, for a damaged image is of no use anywhere.
    several::each(&image.manifest.packs, AT_ONCE, |pack| check_pack(store, pack))?;
    heed_revocations(&image, to, trusted)?;
    let version = image.version();
    let (outcome, sent_bytes) = match to {
        Place::Directory(target) => to_directory(store, target, &version, progress)?,
        Place::S3(bucket) => to_bucket(store, bucket, &version, progress)?,
        Place::Web(web) => bail!("{web} can only be read"),
    };
    Ok(Published { manifest: image.manifest, outcome, sent_bytes })
}

/// What is revoked here is revoked there from here on; and what is revoked isn't published.
fn heed_revocations(image: &Image, to: &Place, trusted: &[PublicKey]) -> Result<()> {
    let itself = [image.manifest.signed_by()];
    let trusted = if trusted.is_empty() { &itself } else { trusted };
    let path = image.store.join(REVOKED_FILE);
    let text = store::read_if_there(&path, MAX_REVOKED_BYTES).with_context(|| format!("reading {}", path.display()))?;
    let _alone = match to {
        Place::Directory(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            text.is_some().then(|| store::alone(dir, FlockArg::LockExclusive)).transpose()?
        }
        _ => None,
    };
    let list = revoke::carry(text.as_deref(), &path.display().to_string(), to, trusted)?;
    Ok(refuse_revoked(&list, &image.manifest)?)
}

pub(crate) fn refuse_revoked(list: &Revocations, manifest: &Verified<Manifest>) -> Result<(), Problem> {
    match list.of(&manifest::payload_sha256(manifest)) {
        Some(revoked) => Err(Problem::Revoked(revoked.clone())),
        None => Ok(()),
    }
}

/// An image in a directory, with everything of it that isn't large.
struct Image {
    store: PathBuf,
    manifest: Verified<Manifest>,
    text: Vec<u8>,
    payload: String,
    sbom: Option<Vec<u8>>,
}

impl Image {
    fn open(dir: &Path, trusted: &[PublicKey]) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let text =
            store::read_if_there(&path, MAX_MANIFEST_BYTES).with_context(|| format!("reading {}", path.display()))?;
        let text = text.with_context(|| format!("{} isn't an image: it has no {MANIFEST_FILE}", dir.display()))?;
        let signed: Signed<Manifest> =
            serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
        let itself = [signed.key];
        let manifest = verify::inspect(dir, if trusted.is_empty() { &itself } else { trusted })?;
        let again = manifest::open_signed(&signed, &[manifest.signed_by()]);
        ensure!(again.as_ref() == Ok(&manifest), "{} changed while it was read: run this again", path.display());
        let dir = std::fs::canonicalize(dir).with_context(|| format!("opening {}", dir.display()))?;
        let sbom = manifest.sbom.as_ref().map(|sbom| verify::attachment(&dir, sbom)).transpose()?;
        let store = dir.ancestors().nth(2).unwrap_or(&dir).to_owned();
        Ok(Self { store, manifest, text, payload: signed.payload, sbom })
    }

    fn version(&self) -> Version<'_> {
        let sbom = self.manifest.sbom.as_ref().zip(self.sbom.clone());
        let attachments = sbom.map(|(attachment, bytes)| (attachment.file.as_str(), bytes)).into_iter().collect();
        Version { manifest: &self.manifest, text: &self.text, payload: &self.payload, attachments }
    }
}

fn check_pack(store: &Path, pack: &Pack) -> Result<()> {
    let path = store::pack_path(store, pack);
    let copied = copy(&mut open_pack(store, pack)?, &mut std::io::sink(), &|_| {});
    let (_, sha256) = copied.map_err(|source| Problem::Read { path: path.clone(), source })?;
    ensure!(
        sha256 == pack.sha256,
        "{} was altered: its SHA-256 is {sha256}. Pack the image again, into a store without this file",
        path.display()
    );
    Ok(())
}

fn open_pack(store: &Path, pack: &Pack) -> Result<File, Problem> {
    let path = store::pack_path(store, pack);
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
    match opened {
        Err(source) => Err(Problem::Read { path, source }),
        Ok((got, _)) if got != pack.bytes => Err(Problem::Length { path, got, want: pack.bytes }),
        Ok((_, file)) => Ok(file),
    }
}

/// How many bytes there were, and their SHA-256.
fn copy(from: &mut impl Read, to: &mut impl Write, progress: &dyn Fn(u64)) -> std::io::Result<(u64, String)> {
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hex::encode(hash.finalize()))),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let part = buffer.get(..n).unwrap_or_default();
        hash.update(part);
        to.write_all(part)?;
        bytes += n as u64;
        progress(n as u64);
    }
}

fn to_directory(from: &Path, to: &Path, version: &Version<'_>, progress: Progress<'_>) -> Result<(Outcome, u64)> {
    let _held = store::hold(to)?;
    let place = to.join(&version.manifest.name).join(&version.manifest.version).join(MANIFEST_FILE);
    let there =
        store::read_if_there(&place, MAX_MANIFEST_BYTES).with_context(|| format!("reading {}", place.display()))?;
    decide(there.as_deref(), version, &to.display().to_string())?;
    let missing = missing_packs(version.manifest, to);
    several::each(&missing, AT_ONCE, |pack| {
        let mut draft = store::new_pack(to)?;
        let (_, sha256) = copy(&mut open_pack(from, pack)?, draft.as_file_mut(), progress)
            .with_context(|| format!("copying {} to {}", store::pack_path(from, pack).display(), to.display()))?;
        ensure!(sha256 == pack.sha256, "{} was altered meanwhile", store::pack_path(from, pack).display());
        store::keep_pack(to, draft, pack)
    })?;
    Ok((store::place_version(to, version)?, total(&missing)))
}

pub(crate) fn missing_packs(manifest: &Manifest, store: &Path) -> Vec<Pack> {
    let is_there =
        |pack: &&Pack| std::fs::metadata(store::pack_path(store, pack)).is_ok_and(|file| file.len() == pack.bytes);
    manifest.packs.iter().filter(|pack| !is_there(pack)).cloned().collect()
}

fn total(packs: &[Pack]) -> u64 {
    packs.iter().map(|pack| pack.bytes).sum()
}

fn to_bucket(from: &Path, bucket: &Bucket, version: &Version<'_>, progress: Progress<'_>) -> Result<(Outcome, u64)> {
    let reference = version.manifest.reference();
    let key = format!("{reference}/{MANIFEST_FILE}");
    let there = bucket.tagged(&key, MAX_MANIFEST_BYTES)?;
    decide(there.as_ref().map(|there| there.bytes.as_slice()), version, &bucket.to_string())?;

    let mut missing = Vec::new();
    for pack in &version.manifest.packs {
        if bucket.size(&format!("{PACKS}/{}", pack.sha256))? != Some(pack.bytes) {
            missing.push(pack.clone());
        }
    }
    several::each(&missing, AT_ONCE, |pack| {
        bucket.upload(&format!("{PACKS}/{}", pack.sha256), &open_pack(from, pack)?, pack, progress)
    })?;
    for (file, bytes) in &version.attachments {
        attach(bucket, &format!("{reference}/{file}"), bytes)?;
    }
    Ok((put_manifest(bucket, &key, version)?, total(&missing)))
}

/// What is there under this name is of somebody who was interrupted, or who isn't done yet, unless it is ours.
fn attach(bucket: &Bucket, key: &str, bytes: &[u8]) -> Result<()> {
    let is_ours = || -> Result<bool> {
        Ok(bucket.tagged(key, verify::MAX_ATTACHMENT_BYTES)?.is_some_and(|there| there.bytes == bytes))
    };
    if is_ours()? || bucket.put(key, bytes, Put::IfMissing)? || is_ours()? {
        return Ok(());
    }
    bail!(
        "{bucket}/{key} is there with another content: publishing another build of this version was interrupted, or goes on \
         now. Publish that one, choose another version, or remove this file if nobody is publishing"
    )
}

/// Puts the manifest where there is none, or where there's the same one with another signature; and looks at what readers
/// see then, because some services take conditions and don't know them.
fn put_manifest(bucket: &Bucket, key: &str, version: &Version<'_>) -> Result<Outcome> {
    // A second time if somebody else is faster.
    for _ in 0..2 {
        let there = bucket.tagged(key, MAX_MANIFEST_BYTES)?;
        let outcome = decide(there.as_ref().map(|there| there.bytes.as_slice()), version, &bucket.to_string())?;
        let when = match (outcome, there) {
            (Outcome::Existed, _) => return Ok(outcome),
            (Outcome::SignedAnew, Some(there)) => Put::InPlaceOf(there.tag),
            _ => Put::IfMissing,
        };
        if bucket.put(key, version.text, when)? {
            let seen = bucket.tagged(key, MAX_MANIFEST_BYTES)?.map(|seen| seen.bytes);
            ensure!(
                seen.as_deref() == Some(version.text),
                "{bucket}/{key} was written by somebody else at the same time, and this service lets that happen: publish \
                 again to see whose it is"
            );
            return Ok(outcome);
        }
    }
    bail!("{bucket}/{key} is being written by somebody else: run this again")
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
