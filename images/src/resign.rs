//! One key takes over from another: what the old one had signed is signed again, to the byte, by the new one.

use std::path::Path;

use anyhow::{Context, Result};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use ed25519_dalek::SigningKey;

use crate::store;
use crate::verify::inspect;

/// Puts the signature of `key` in place of that of one of `trusted`, of the image in `dir`. Whoever reads meanwhile sees the
/// one or the other. To have it elsewhere, publish the image there again.
pub fn sign(dir: &Path, trusted: &[PublicKey], key: &SigningKey) -> Result<Verified<Manifest>> {
    let path = dir.join(MANIFEST_FILE);
    inspect(dir, trusted)?;
    let text =
        store::read_if_there(&path, MAX_MANIFEST_BYTES).with_context(|| format!("reading {}", path.display()))?;
    let signed: Signed<Manifest> =
        serde_json::from_slice(&text.unwrap_or_default()).with_context(|| format!("reading {}", path.display()))?;
    // Of what is read now, not of what was there a moment ago.
    manifest::open_signed(&signed, trusted).with_context(|| format!("the manifest in {}", path.display()))?;
    let again =
        signed.sign_again(trusted, key).with_context(|| format!("signing the manifest in {}", path.display()))?;
    let manifest = manifest::open_signed(&again, &[again.key]).context("reading back what was just signed")?;
    store::replace(&path, &serde_json::to_vec(&again).context("writing the manifest")?)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::pack::tests::{key, ours, packed, tar_with};
    use crate::verify;

    #[test]
    fn only_the_signature_is_another() -> Result<()> {
        let (_dir, packed) = packed(&tar_with(&[])?)?;
        let path = packed.dir.join(MANIFEST_FILE);
        let before = fs::read(&path)?;
        let theirs = [PublicKey::of(&key(2))];
        let said = sign(&packed.dir, &theirs, &key(2)).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains("none of the trusted keys"), "{said}");
        assert_eq!(fs::read(&path)?, before);

        let signed = sign(&packed.dir, &ours(), &key(2))?;
        assert_eq!((signed.signed_by(), &*signed), (theirs[0], &*packed.manifest));
        verify(&packed.dir, &theirs)?;
        assert!(verify(&packed.dir, &ours()).is_err(), "the old key is out");
        sign(&packed.dir, &theirs, &key(1))?;
        assert_eq!(fs::read(&path)?, before, "to the byte, and back");
        Ok(())
    }
}
