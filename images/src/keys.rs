//! The builder's signing key: a file that only its owner can read, and its public half beside it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::sign::PublicKey;
use ed25519_dalek::SigningKey;

/// Marks the secret half, so that neither file can be taken for the other: both are 32 bytes in hex.
const SECRET: &str = "drophammer-secret-key ";

/// Makes a key pair: the secret half at `path` (mode 0600), the public half at `path` + `.pub`. Replaces neither.
pub fn keygen(path: &Path) -> Result<PublicKey> {
    let public_path = public_path(path);
    for taken in [path, &public_path] {
        ensure!(
            fs::symlink_metadata(taken).is_err(),
            "{} exists and a key is never overwritten: choose another path or move it away",
            taken.display()
        );
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("asking the kernel for randomness: {e}"))?;
    let key = SigningKey::from_bytes(&seed);
    let public = PublicKey::of(&key);
    write_new(path, 0o600, &format!("{SECRET}{}\n", hex::encode(seed)))?;
    write_new(&public_path, 0o644, &format!("{public}\n"))?;
    Ok(public)
}

/// The secret half. Refuses a file that others on this host can read.
pub fn load_key(path: &Path) -> Result<SigningKey> {
    let mode = fs::metadata(path).with_context(|| format!("opening {}", path.display()))?.mode();
    ensure!(
        mode & 0o077 == 0,
        "{} can be read by others (mode {:o}), so it may not be secret any more: chmod 600 it if you know that it is",
        path.display(),
        mode & 0o777
    );
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let Some(digits) = text.trim().strip_prefix(SECRET) else {
        bail!("{} is not a secret key made by keygen", path.display());
    };
    let mut seed = [0; 32];
    hex::decode_to_slice(digits, &mut seed)
        .ok()
        .with_context(|| format!("{} is damaged: a secret key has 64 hex digits", path.display()))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// The public half, as keygen wrote it.
pub fn load_public(path: &Path) -> Result<PublicKey> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        !text.starts_with(SECRET),
        "{} is a secret key; the public one is {}",
        path.display(),
        public_path(path).display()
    );
    text.parse().with_context(|| format!("reading {}", path.display()))
}

fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pair_is_made_once_and_read_back() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("key");
        let public = keygen(&path)?;
        assert_eq!(PublicKey::of(&load_key(&path)?), public);
        assert_eq!(load_public(&public_path(&path))?, public);
        assert_eq!(fs::metadata(&path)?.mode() & 0o777, 0o600);

        let before = fs::read(&path)?;
        assert!(keygen(&path).is_err(), "an existing key is kept");
        fs::remove_file(public_path(&path))?;
        assert!(keygen(&path).is_err(), "also without its public half");
        assert_eq!(fs::read(&path)?, before);
        Ok(())
    }

    #[test]
    fn what_is_no_key_is_refused() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("key");
        keygen(&path)?;
        let secret = fs::read_to_string(&path)?;
        let public = fs::read_to_string(public_path(&path))?;
        for (name, mode, text, want) in [
            ("as made", 0o600, secret.clone(), ""),
            ("readable by the group", 0o640, secret.clone(), "can be read by others (mode 640)"),
            ("cut short", 0o600, secret[..40].to_owned(), "is damaged"),
            ("the public half", 0o600, public, "is not a secret key"),
            ("empty", 0o600, String::new(), "is not a secret key"),
        ] {
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            let said = load_key(&path).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{name}: {said}");
        }
        fs::write(&path, &secret)?;
        let said = load_public(&path).map_err(|e| format!("{e:#}"));
        assert!(said.as_ref().is_err_and(|e| e.contains("is a secret key")), "secret taken as public: {said:?}");
        Ok(())
    }
}
