//! The list of images that aren't to be installed any more, at the root of a store; and how it comes from one to another.
//!
//! A list only grows. Where two have grown apart, neither is put in the other's place, because that would have something
//! installed again that was revoked.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use drophammer_protocol::revocation::{self, MAX_REVOKED_BYTES, REVOKED_FILE, Revocations, Revoked};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use ed25519_dalek::SigningKey;
use nix::fcntl::FlockArg;

use crate::place::{Place, Put};
use crate::store;

/// Adds an image of `place` to the list there: `reference` is `name/version`, `now` in seconds since 1970. The key that signs
/// the list is trusted, as `trusted` are. Fails if it's revoked already, with the reason.
pub fn revoke(
    place: &Place,
    reference: &str,
    trusted: &[PublicKey],
    key: &SigningKey,
    reason: &str,
    now: u64,
) -> Result<Revoked> {
    let trusted: Vec<PublicKey> = trusted.iter().copied().chain([PublicKey::of(key)]).collect();
    let name = format!("{place}/{reference}/{MANIFEST_FILE}");
    let text = place.small(&format!("{reference}/{MANIFEST_FILE}"), MAX_MANIFEST_BYTES);
    let text = text.map_err(anyhow::Error::from).with_context(|| format!("reading {name}"))?;
    let text = text.with_context(|| format!("{name} isn't there: an image is revoked where it's published"))?;
    let manifest = manifest::open(&text, &trusted).with_context(|| format!("the manifest in {name}"))?;
    ensure!(manifest.reference() == reference, "{name} is that of {}", manifest.reference());
    let revoked = Revoked {
        manifest_sha256: manifest::payload_sha256(&manifest),
        image: reference.to_owned(),
        reason: reason.to_owned(),
        at: now,
    };
    revoked.check()?;
    let _alone = match place {
        Place::Directory(dir) => Some(store::alone(dir, FlockArg::LockExclusive)?),
        _ => None,
    };
    // Again if somebody else is faster, which only a bucket lets happen.
    for _ in 0..5 {
        let there = List::read(place, &trusted)?;
        let before = there.as_ref().map(|there| (*there.list).clone()).unwrap_or_default();
        if let Some(before) = before.of(&revoked.manifest_sha256) {
            bail!("{reference} is revoked already: {}", before.reason);
        }
        let next = before.with(revoked.clone()).context("the list of revoked images can't be numbered any further")?;
        let text = serde_json::to_vec(&Signed::seal(&next, key)).context("writing the list")?;
        ensure!(
            text.len() as u64 <= MAX_REVOKED_BYTES,
            "with {reference} the list would be longer than {MAX_REVOKED_BYTES} bytes, and nobody reads it then: remove what is \
             revoked, and begin a store anew"
        );
        if write(place, &text, there.as_ref())? {
            return Ok(revoked);
        }
    }
    bail!("{place}/{REVOKED_FILE} is being changed by others: run this again")
}

/// What is revoked in a store, if anything is and the list is signed by one of `trusted`.
pub fn revocations(store: &Path, trusted: &[PublicKey]) -> Result<Option<Verified<Revocations>>> {
    Ok(List::read(&Place::Directory(store.to_owned()), trusted)?.map(|list| list.list))
}

/// Whether the image in `dir`, which is in a store, is revoked there.
pub fn revoked(dir: &Path, manifest: &Verified<Manifest>, trusted: &[PublicKey]) -> Result<Option<Revoked>> {
    let dir = std::fs::canonicalize(dir).with_context(|| format!("opening {}", dir.display()))?;
    let list = revocations(dir.ancestors().nth(2).unwrap_or(&dir), trusted)?;
    Ok(list.and_then(|list| list.of(&manifest::payload_sha256(manifest)).cloned()))
}

/// Brings a list to `to`, unless that has it already or a newer one; says what is revoked there then. `name` is where it's
/// from. In a directory the caller is [alone](store::alone).
pub(crate) fn carry(text: Option<&[u8]>, name: &str, to: &Place, trusted: &[PublicKey]) -> Result<Revocations> {
    let list =
        text.map(|text| revocation::open(text, trusted)).transpose().with_context(|| format!("the list in {name}"))?;
    for _ in 0..5 {
        let there = List::read(to, trusted)?;
        let before = there.as_ref().map(|there| there.list.get());
        let Some((text, list)) = text.zip(list.as_ref()) else { return Ok(before.cloned().unwrap_or_default()) };
        match decide(before, list) {
            Carry::Keep => return Ok(before.cloned().unwrap_or_default()),
            Carry::Apart => bail!(
                "{name} and {to}/{REVOKED_FILE} have grown apart: each revokes what the other doesn't. Revoke what is missing \
                 in one of them there, and run this again"
            ),
            Carry::Take => {}
        }
        if write(to, text, there.as_ref())? {
            return Ok((**list).clone());
        }
    }
    bail!("{to}/{REVOKED_FILE} is being changed by others: run this again")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carry {
    Take,
    Keep,
    Apart,
}

fn decide(there: Option<&Revocations>, list: &Revocations) -> Carry {
    match there {
        None => Carry::Take,
        Some(there) if there.covers(list) => Carry::Keep,
        Some(there) if list.covers(there) && list.sequence > there.sequence => Carry::Take,
        Some(_) => Carry::Apart,
    }
}

struct List {
    list: Verified<Revocations>,
    /// Of the file in a bucket.
    tag: Option<String>,
}

impl List {
    fn read(place: &Place, trusted: &[PublicKey]) -> Result<Option<Self>> {
        let (text, tag) = match place {
            Place::S3(bucket) => match bucket.tagged(REVOKED_FILE, MAX_REVOKED_BYTES)? {
                Some(found) => (Some(found.bytes), Some(found.tag)),
                None => (None, None),
            },
            _ => (place.small(REVOKED_FILE, MAX_REVOKED_BYTES).map_err(anyhow::Error::from)?, None),
        };
        let Some(text) = text else { return Ok(None) };
        let list = revocation::open(&text, trusted).with_context(|| format!("the list in {place}/{REVOKED_FILE}"))?;
        Ok(Some(Self { list, tag }))
    }
}

/// Whether it was written: not if somebody else has changed it meanwhile.
fn write(place: &Place, text: &[u8], there: Option<&List>) -> Result<bool> {
    match place {
        Place::Directory(dir) => store::replace(&dir.join(REVOKED_FILE), text).map(|()| true),
        Place::S3(bucket) => {
            let tag = there.and_then(|there| there.tag.clone());
            bucket.put(REVOKED_FILE, text, tag.map_or(Put::IfMissing, Put::InPlaceOf))
        }
        Place::Web(_) => bail!("{place} can only be read: revoke the image in the directory that the server serves"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::pack::tests::{key, ours, packed, tar_with};
    use crate::servers::{BUCKET, S3};
    use crate::{Problem, inspect, list, mirror, publish, verify};

    fn said<T>(result: Result<T>) -> String {
        result.err().map(|e| format!("{e:#}")).unwrap_or_default()
    }

    #[test]
    fn which_list_stays() {
        let list = |sequence, hashes: &str| {
            let one = |hash: char| Revoked {
                manifest_sha256: hash.to_string().repeat(64),
                image: "a/1".into(),
                reason: "r".into(),
                at: 0,
            };
            Revocations { sequence, revoked: hashes.chars().map(one).collect() }
        };
        for (name, there, brought, want) in [
            ("none", None, list(1, "a"), Carry::Take),
            ("the same", Some(list(1, "a")), list(1, "a"), Carry::Keep),
            ("an older one", Some(list(1, "a")), list(2, "ab"), Carry::Take),
            ("a newer one", Some(list(2, "ab")), list(1, "a"), Carry::Keep),
            ("one that has other", Some(list(2, "ab")), list(2, "ac"), Carry::Apart),
            ("a longer one with a lower number", Some(list(9, "a")), list(2, "ab"), Carry::Apart),
            ("a shorter one with a higher number", Some(list(2, "ab")), list(9, "a"), Carry::Keep),
        ] {
            assert_eq!(decide(there.as_ref(), &brought), want, "{name}");
        }
    }

    #[test]
    fn what_is_revoked_is_said_and_goes_nowhere() -> Result<()> {
        let (dir, packed) = packed(&tar_with(&[])?)?;
        let store = dir.path().join("store");
        let place = Place::Directory(store.clone());
        let by = |key_: u8, reason: &str| revoke(&place, "test/1", &ours(), &key(key_), reason, 1_700_000_000);
        let theirs = dir.path().join("theirs");
        publish(&packed.dir, &Place::Directory(theirs.clone()), &ours(), &|_| {})?;

        assert!(said(by(1, "")).contains("the reason why test/1 is revoked is empty"));
        assert!(said(revoke(&place, "test/2", &ours(), &key(1), "r", 0)).contains("isn't there"));
        let stranger = revoke(&place, "test/1", &[], &key(2), "r", 0);
        assert!(said(stranger).contains("none of the trusted keys"), "not by who doesn't know who signed it");
        assert!(!store.join(REVOKED_FILE).exists());

        by(1, "it has a back door")?;
        assert!(said(by(1, "again")).contains("is revoked already: it has a back door"));
        let manifest = inspect(&packed.dir, &ours())?;
        assert_eq!(revoked(&packed.dir, &manifest, &ours())?.map(|r| r.reason).as_deref(), Some("it has a back door"));
        let problem = verify(&packed.dir, &ours()).expect_err("revoked");
        assert!(matches!(&problem, Problem::Revoked(it) if it.reason == "it has a back door"), "{problem:?}");
        assert!(list(&store, &ours())?[0].revoked.is_some());

        // Another store gets the list, and not the image; one that has it already hears of it.
        for there in [dir.path().join("new"), theirs.clone()] {
            let to = Place::Directory(there.clone());
            let got = said(publish(&packed.dir, &to, &ours(), &|_| {}));
            assert!(got.contains("test/1 is revoked: it has a back door"), "{got}");
            assert_eq!(revocations(&there, &ours())?.map(|list| list.sequence), Some(1));
        }
        assert!(!dir.path().join("new/test").exists());

        // What nobody trusts says nothing, and is said to.
        fs::write(theirs.join(REVOKED_FILE), serde_json::to_vec(&Signed::seal(&Revocations::default(), &key(3)))?)?;
        assert!(said(verify(&theirs.join("test/1"), &ours()).map_err(Into::into)).contains("none of the trusted keys"));
        Ok(())
    }

    #[test]
    fn by_way_of_a_bucket() -> Result<()> {
        let (dir, packed) = packed(&tar_with(&[])?)?;
        let s3 = S3::start();
        let bucket = s3.place(&format!("s3://{BUCKET}/p"));
        publish(&packed.dir, &bucket, &ours(), &|_| {})?;
        let there = dir.path().join("served");
        let go = |wanted: &[String]| {
            let listener = crate::Listener { progress: &|_| {}, interrupted: &|_| {} };
            mirror(&bucket, &there, wanted, &ours(), 1_700_000_000, listener)
        };
        assert!(go(&[])?.iter().all(|image| image.result.is_ok()));
        revoke(&bucket, "test/1", &ours(), &key(1), "it has a back door", 1_700_000_000)?;
        assert!(said(revoke(&bucket, "test/1", &ours(), &key(1), "r", 0)).contains("is revoked already"));
        assert!(go(&[])?.is_empty(), "left out, and no failure");
        assert_eq!(revocations(&there, &ours())?.map(|list| list.revoked.len()), Some(1));
        for wanted in ["test/1", "test"] {
            let got = go(&[wanted.to_owned()])?.remove(0).result;
            assert!(said(got).contains("is revoked: it has a back door"), "{wanted}");
        }
        // A list that was made away with comes back to whoever had it.
        fs::remove_file(s3.file("p/revoked.json"))?;
        let got = go(&["test/1".to_owned()])?.remove(0).result;
        assert!(said(got).contains("is revoked: it has a back door"));
        Ok(())
    }
}
