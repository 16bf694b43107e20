//! The one envelope for everything signed: manifests, certificates, the server's clock.
//!
//! The payload travels as the exact text that was signed, so nobody has to agree on a canonical JSON form. Each kind of
//! payload has its own [`Signable::CONTEXT`], mixed into the signature: a signed time can't be passed off as a signed
//! manifest.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

/// Something that is only believed when signed.
pub trait Signable: Serialize + DeserializeOwned {
    /// What kind of statement this is, with its version. Never reuse one for another meaning.
    const CONTEXT: &'static str;
}

/// An Ed25519 public key, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key().to_bytes())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = SignError;
    fn from_str(s: &str) -> Result<Self, SignError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(s.trim(), &mut bytes).map_err(|_| SignError::NotAKey)?;
        VerifyingKey::from_bytes(&bytes).map_err(|_| SignError::NotAKey)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = SignError;
    fn try_from(s: String) -> Result<Self, SignError> {
        s.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// Why a signed statement isn't believed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignError {
    #[error("not an Ed25519 public key (64 hex digits)")]
    NotAKey,
    #[error("signed by {0}, which is none of the trusted keys")]
    Untrusted(PublicKey),
    #[error("the signature doesn't match: the content was altered or cut short")]
    Forged,
    #[error("the signature is right but the content isn't understood: {0}")]
    Content(String),
}

/// A statement with its signature, not yet believed. [`Signed::open`] is the only way to what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Signed<T> {
    pub payload: String,
    /// 64 hex digits, in small letters.
    #[serde(deserialize_with = "in_small_letters")]
    pub key: PublicKey,
    /// 128 hex digits, in small letters.
    pub signature: String,
    #[serde(skip)]
    kind: PhantomData<fn() -> T>,
}

/// People may write a key as they like; a statement has one form.
fn in_small_letters<'de, D: Deserializer<'de>>(from: D) -> Result<PublicKey, D::Error> {
    let text = String::deserialize(from)?;
    let key: PublicKey = text.parse().map_err(D::Error::custom)?;
    if key.to_string() == text {
        Ok(key)
    } else {
        Err(D::Error::custom("the key isn't written in small letters alone"))
    }
}

impl<T: Signable> Signed<T> {
    pub fn seal(statement: &T, key: &SigningKey) -> Self {
        Self::seal_text(
            serde_json::to_string(statement).expect("protocol types have string keys and no failing Serialize"),
            key,
        )
    }

    pub(crate) fn seal_text(payload: String, key: &SigningKey) -> Self {
        let signature = hex::encode(key.sign(&message::<T>(&payload)).to_bytes());
        Self { payload, key: PublicKey::of(key), signature, kind: PhantomData }
    }

    /// The very same statement with the signature of `key`, if one of `trusted` signed it before.
    pub fn sign_again(&self, trusted: &[PublicKey], key: &SigningKey) -> Result<Self, SignError> {
        self.open(trusted)?;
        Ok(Self::seal_text(self.payload.clone(), key))
    }

    /// What was signed, if one of `trusted` signed it.
    pub fn open(&self, trusted: &[PublicKey]) -> Result<Verified<T>, SignError> {
        if !trusted.contains(&self.key) {
            return Err(SignError::Untrusted(self.key));
        }
        let key = VerifyingKey::from_bytes(&self.key.0).map_err(|_| SignError::NotAKey)?;
        let mut signature = [0; 64];
        hex::decode_to_slice(&self.signature, &mut signature).map_err(|_| SignError::Forged)?;
        // One statement has one form: certificates are chained by the hash of all of it.
        if hex::encode(signature) != self.signature {
            return Err(SignError::Forged);
        }
        key.verify_strict(&message::<T>(&self.payload), &Signature::from_bytes(&signature))
            .map_err(|_| SignError::Forged)?;
        let statement = serde_json::from_str(&self.payload).map_err(|e| SignError::Content(e.to_string()))?;
        Ok(Verified { statement, key: self.key })
    }
}

fn message<T: Signable>(payload: &str) -> Vec<u8> {
    [T::CONTEXT.as_bytes(), b"\0", payload.as_bytes()].concat()
}

/// A statement whose signature matched a trusted key. There is no other way to make one, so holding it is the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    statement: T,
    key: PublicKey,
}

impl<T> Verified<T> {
    pub fn get(&self) -> &T {
        &self.statement
    }

    pub fn into_inner(self) -> T {
        self.statement
    }

    pub fn signed_by(&self) -> PublicKey {
        self.key
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note(String);
    impl Signable for Note {
        const CONTEXT: &'static str = "test note 1";
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Other(String);
    impl Signable for Other {
        const CONTEXT: &'static str = "test other 1";
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    #[test]
    fn only_the_untouched_statement_of_a_trusted_key_opens() {
        let ours = PublicKey::of(&key(1));
        let good = Signed::seal(&Note("hello".into()), &key(1));
        let with = |f: fn(&mut Signed<Note>)| {
            let mut s = good.clone();
            f(&mut s);
            s
        };
        for (name, signed, trusted, want) in [
            ("as sealed", good.clone(), vec![ours], Ok(Note("hello".into()))),
            ("nobody trusted", good.clone(), vec![], Err(SignError::Untrusted(ours))),
            ("another key trusted", good.clone(), vec![PublicKey::of(&key(2))], Err(SignError::Untrusted(ours))),
            ("payload changed", with(|s| s.payload = "\"hellp\"".into()), vec![ours], Err(SignError::Forged)),
            ("payload cut", with(|s| s.payload.truncate(3)), vec![ours], Err(SignError::Forged)),
            ("signature cut", with(|s| s.signature.truncate(126)), vec![ours], Err(SignError::Forged)),
            (
                "signature in capitals",
                with(|s| s.signature = s.signature.to_uppercase()),
                vec![ours],
                Err(SignError::Forged),
            ),
            (
                "signer swapped for a trusted one",
                with(|s| s.key = PublicKey::of(&key(2))),
                vec![PublicKey::of(&key(2))],
                Err(SignError::Forged),
            ),
        ] {
            assert_eq!(signed.open(&trusted).map(Verified::into_inner), want, "{name}");
        }
    }

    #[test]
    fn a_key_takes_over_what_another_signed() {
        let (old, new) = (PublicKey::of(&key(1)), PublicKey::of(&key(2)));
        let signed = Signed::seal(&Note("hello".into()), &key(1));
        let again = signed.sign_again(&[old], &key(2)).expect("signs");
        assert_eq!((&again.payload, again.key), (&signed.payload, new));
        assert_eq!(again.open(&[new]).map(Verified::into_inner), Ok(Note("hello".into())));
        assert_eq!(signed.sign_again(&[new], &key(2)), Err(SignError::Untrusted(old)), "not whatever it's given");
    }

    #[test]
    fn a_statement_has_one_form_and_a_key_that_is_typed_has_not() {
        let signed = serde_json::to_string(&Signed::seal(&Note("hello".into()), &key(1))).expect("JSON");
        let small = PublicKey::of(&key(1)).to_string();
        let capitals = small.to_uppercase();
        assert_eq!(capitals.parse(), Ok(PublicKey::of(&key(1))));
        assert!(serde_json::from_str::<Signed<Note>>(&signed).is_ok());
        let error = serde_json::from_str::<Signed<Note>>(&signed.replace(&small, &capitals)).expect_err("capitals");
        assert!(error.to_string().contains("small letters"), "{error}");
    }

    #[test]
    fn a_statement_of_one_kind_is_not_one_of_another() {
        let note = Signed::seal(&Note("hello".into()), &key(1));
        let text = serde_json::to_string(&note).expect("serializes");
        let other: Signed<Other> = serde_json::from_str(&text).expect("same shape");
        assert_eq!(other.open(&[PublicKey::of(&key(1))]).expect_err("another context"), SignError::Forged);
    }
}
