//! What is in a store, and what is to be thought of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use drophammer_protocol::manifest::{self, Manifest, Pack};
use drophammer_protocol::revocation::Revoked;
use drophammer_protocol::sign::{PublicKey, Verified};

use crate::chunks::Known;
use crate::revoke::revocations;
use crate::store::{pack_path, references, versions};
use crate::verify::{Problem, inspect};

/// One image of a store, with its manifest if that is to be believed. Its chunks aren't looked at.
#[derive(Debug)]
pub struct Stored {
    pub dir: PathBuf,
    /// `name/version`, as its directories are called.
    pub reference: String,
    pub manifest: Result<Verified<Manifest>, Problem>,
    /// Why it isn't to be installed all the same.
    pub revoked: Option<Revoked>,
}

/// Every image in `store` by name and version. One that can't be trusted is listed with the reason.
pub fn list(store: &Path, trusted: &[PublicKey]) -> Result<Vec<Stored>> {
    let mut found = Vec::new();
    let list = revocations(store, trusted)?;
    for (name, version, dir) in versions(store)? {
        let manifest = inspect(&dir, trusted);
        let sha256 = manifest.as_ref().ok().map(manifest::payload_sha256);
        let revoked = list.as_ref().zip(sha256).and_then(|(list, sha256)| list.of(&sha256).cloned());
        found.push(Stored { dir, reference: format!("{name}/{version}"), manifest, revoked });
    }
    Ok(found)
}

/// Chunks that needn't be published again: of images that `key` has signed and whose packs are there.
pub(crate) fn known(store: &Path, key: PublicKey) -> Result<Known> {
    let mut known = Known::default();
    let there = |pack: &Pack| fs::metadata(pack_path(store, pack)).is_ok_and(|file| file.len() == pack.bytes);
    for reference in references(store)? {
        if let Ok(manifest) = inspect(&store.join(reference), &[key])
            && manifest.packs.iter().all(there)
        {
            known.add(&manifest);
        }
    }
    Ok(known)
}
