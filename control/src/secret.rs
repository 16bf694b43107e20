//! Tokens and credentials: who they are for, and a part that nobody can guess.
//!
//! The store keeps hashes, and what has to be told again only sealed. What a machine must be handed again after a restart of the server (the ticket of a boot
//! that is between its script and its initramfs, the credential of an agent that didn't hear it, the phone-home token of
//! an install order) is derived from the server's key, a file of its own: the store alone gives nothing away, and
//! nothing has to be kept in memory.

use std::fmt;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use drophammer_protocol::id::{BootId, BootServerId, OrderId};
use drophammer_protocol::order::DiskKey;
use ring::{aead, hmac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::keep;

/// A bearer secret, written `<whose>.<64 hex digits>`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The boot, order or operator that it speaks for. No secret, and not believed without the rest.
    pub(crate) holder: Uuid,
    secret: [u8; 32],
}

impl Token {
    pub(crate) fn random(holder: Uuid) -> Result<Self> {
        Ok(Self { holder, secret: random()? })
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (holder, secret) = text.split_once('.')?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret, &mut bytes).ok()?;
        Some(Self { holder: Uuid::try_parse(holder).ok()?, secret: bytes })
    }

    pub(crate) fn hash(&self) -> Hash {
        Hash(hex::encode(Sha256::digest([self.holder.as_bytes().as_slice(), &self.secret].concat())))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.holder.simple(), hex::encode(self.secret))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, …)", self.holder)
    }
}

/// SHA-256 of a token: enough for 256 random bits, which no dictionary holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hash(String);

impl Hash {
    pub(crate) fn is_of(&self, token: &Token) -> bool {
        self.0.as_bytes().ct_eq(token.hash().0.as_bytes()).into()
    }
}

/// What a derived token is for. One key, several kinds of token, none of which can stand for another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Boot,
    /// A key of its own for a boot server.
    BootKey,
    Agent,
    PhoneHome,
    /// What an install makes the keys of encrypted volumes from.
    DiskKey,
}

/// The server's own key.
#[derive(Debug)]
pub(crate) struct ServerKey(hmac::Key);

impl ServerKey {
    /// Reads the key, or makes one on the first start.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let lost = "boots under way are then lost, installed systems that haven't phoned home yet can't, and PSIDs have \
                    to be put in again";
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &kept(path, lost)?)))
    }

    /// By which it's seen whether two have the same; the key can't be told from it.
    pub(crate) fn fingerprint(&self) -> String {
        hex::encode(hmac::sign(&self.0, b"fingerprint\0"))
    }

    /// What this boot server makes boot tokens from. It tells nothing about anybody else's.
    pub(crate) fn boot_key(&self, server: BootServerId) -> BootKey {
        BootKey(self.derive(Purpose::BootKey, server.0).secret)
    }

    pub(crate) fn disk_key(&self, order: OrderId) -> DiskKey {
        DiskKey::new(&self.derive(Purpose::DiskKey, order.0).secret)
    }

    pub(crate) fn derive(&self, purpose: Purpose, holder: Uuid) -> Token {
        let purpose: &[u8] = match purpose {
            Purpose::Boot => b"boot token\0",
            Purpose::BootKey => b"boot server's key\0",
            Purpose::Agent => b"agent credential\0",
            Purpose::PhoneHome => b"phone-home token\0",
            Purpose::DiskKey => b"disk key\0",
        };
        let tag = hmac::sign(&self.0, &[purpose, holder.as_bytes()].concat());
        let mut secret = [0; 32];
        secret.copy_from_slice(tag.as_ref());
        Token { holder, secret }
    }

    /// For secrets that have to be told again and so can't be kept as a hash. What belongs to one thing opens for no
    /// other.
    pub(crate) fn seal(&self, about: &str, secret: &[u8]) -> Result<String> {
        let nonce: [u8; aead::NONCE_LEN] = random()?;
        let mut sealed = secret.to_vec();
        self.sealer()
            .seal_in_place_append_tag(aead::Nonce::assume_unique_for_key(nonce), aead::Aad::from(about), &mut sealed)
            .map_err(|_| anyhow!("encrypting a secret failed"))?;
        Ok(hex::encode([nonce.as_slice(), &sealed].concat()))
    }

    pub(crate) fn unseal(&self, about: &str, sealed: &str) -> Option<Vec<u8>> {
        let mut bytes = hex::decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(aead::NONCE_LEN)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        self.sealer().open_in_place(nonce, aead::Aad::from(about), sealed).ok().map(|secret| secret.to_vec())
    }

    fn sealer(&self) -> aead::LessSafeKey {
        let tag = hmac::sign(&self.0, b"what is sealed\0");
        let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, tag.as_ref());
        aead::LessSafeKey::new(key.expect("a tag of HMAC-SHA-256 is as long as this key"))
    }
}

/// A boot server's key for the tokens of its machines' boots: it gives them out alone, and the control API knows them.
#[derive(Clone)]
pub struct BootKey([u8; 32]);

impl BootKey {
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    pub(crate) fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The token of a boot, as it is in the machine's ticket.
    pub fn token(&self, boot: BootId) -> String {
        self.boot_token(boot).to_string()
    }

    pub(crate) fn boot_token(&self, boot: BootId) -> Token {
        ServerKey(hmac::Key::new(hmac::HMAC_SHA256, &self.0)).derive(Purpose::Boot, boot.0)
    }
}

impl fmt::Debug for BootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootKey(…)")
    }
}

/// The key that a file holds; a new one on the first start. `lost` is what comes of a file that has to be deleted.
pub(crate) fn kept(path: &Path, lost: &str) -> Result<[u8; 32]> {
    let text = keep::made_once(path, || Ok(hex::encode(random::<32>()?)))?;
    let mut bytes = [0; 32];
    if hex::decode_to_slice(text.trim(), &mut bytes).is_err() {
        bail!("{} doesn't hold a key (64 hex digits). Restore it, or delete it: {lost}", path.display());
    }
    Ok(bytes)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| anyhow!("the kernel gives no random bytes: {e}"))?;
    Ok(bytes)
}

/// What a caller shows: a token reads back as it's written, and hides its secret from logs.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    if let Some(token) = Token::parse(text) {
        assert!(Token::parse(&token.to_string()) == Some(token.clone()) && token.hash().is_of(&token));
        assert!(!format!("{token:?}").contains(&hex::encode(token.secret)));
    }
    if let Some(key) = BootKey::from_hex(text) {
        assert_eq!(key.to_hex(), text.to_ascii_lowercase());
    }
    if let Ok(point) = crate::Point::from_hex(text) {
        assert_eq!(point.to_hex(), text.to_ascii_lowercase());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_whole_tokens_parse() {
        let secret = "ab".repeat(32);
        let holder = "00112233-4455-6677-8899-aabbccddeeff";
        for (name, text, parses) in [
            ("whole", format!("{holder}.{secret}"), true),
            ("no dot", format!("{holder}{secret}"), false),
            ("short secret", format!("{holder}.{}", &secret[2..]), false),
            ("long secret", format!("{holder}.{secret}ab"), false),
            ("no holder", format!(".{secret}"), false),
            ("empty", String::new(), false),
        ] {
            assert_eq!(Token::parse(&text).is_some(), parses, "{name}");
        }
        let token = Token::parse(&format!("{holder}.{secret}")).expect("whole");
        assert_eq!(Token::parse(&token.to_string()), Some(token.clone()));
        assert!(!format!("{token:?}").contains(&secret), "secrets stay out of logs");
    }

    #[test]
    fn a_derived_token_is_of_one_holder_and_purpose() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("key");
        let key = ServerKey::open(&path).expect("first start");
        let token = key.derive(Purpose::Boot, Uuid::from_u128(1));
        let again = ServerKey::open(&path).expect("second start");
        for (name, other, same) in [
            ("after a restart", again.derive(Purpose::Boot, Uuid::from_u128(1)), true),
            ("another holder", key.derive(Purpose::Boot, Uuid::from_u128(2)), false),
            ("another purpose", key.derive(Purpose::PhoneHome, Uuid::from_u128(1)), false),
        ] {
            assert_eq!(token.hash().is_of(&other), same, "{name}");
        }
        assert_eq!(fs::metadata(&path).expect("key file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_sealed_opens_for_one_thing_and_one_key() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = |name: &str| ServerKey::open(&dir.path().join(name)).expect("a key");
        let (key, other) = (open("key"), open("other"));
        let sealed = key.seal("A", b"secret").expect("seals");
        assert_ne!(key.seal("A", b"secret").expect("seals"), sealed, "the same secret doesn't look the same");
        assert!(!sealed.contains(&hex::encode("secret")));
        let mut changed = sealed.clone().into_bytes();
        let last = changed.last_mut().expect("a digit");
        *last = if *last == b'0' { b'1' } else { b'0' };
        let changed = String::from_utf8(changed).expect("text");
        for (name, key, about, sealed, want) in [
            ("as it was", &open("key"), "A", sealed.as_str(), Some(b"secret".to_vec())),
            ("another thing's", &key, "B", &sealed, None),
            ("another key's", &other, "A", &sealed, None),
            ("changed", &key, "A", &changed, None),
            ("cut", &key, "A", &sealed[..20], None),
            ("nothing", &key, "A", "", None),
        ] {
            assert_eq!(key.unseal(about, sealed), want, "{name}");
        }
    }

    #[test]
    fn a_damaged_key_is_said_so() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("key");
        fs::write(&path, "abc").expect("writes");
        let error = ServerKey::open(&path).expect_err("no key").to_string();
        assert!(error.contains("64 hex digits"), "{error}");
    }
}
