//! Which published images aren't to be installed any more, though they were signed rightly.
//!
//! The list lies at the root of a store, as `revoked.json`, and is signed as a whole by a key that may sign images there. It
//! names manifests by the SHA-256 of what was signed, so that it holds wherever the image has gone and whoever signs it
//! again. Its number grows with every change: an older list that somebody puts back is known for one. What was revoked
//! once stays revoked; another build is another version.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::manifest::{is_hash, is_plain_name};
use crate::sign::{PublicKey, SignError, Signable, Signed, Verified};

pub const REVOKED_FILE: &str = "revoked.json";

/// A list larger than this isn't read.
pub const MAX_REVOKED_BYTES: u64 = 4 << 20;

/// Room for a sentence or two.
pub const MAX_REASON_CHARS: usize = 500;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocations {
    /// 1 for the first list of a store.
    pub sequence: u64,
    /// In the order in which they were revoked, each once.
    pub revoked: Vec<Revoked>,
}

impl Signable for Revocations {
    const CONTEXT: &'static str = "drophammer revocations 1";
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Of the payload of the signed manifest.
    pub manifest_sha256: String,
    /// `name/version` that it had: for people.
    pub image: String,
    pub reason: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// Why a list isn't believed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RevocationError {
    #[error("it is larger than any list of revoked images may be ({MAX_REVOKED_BYTES} bytes)")]
    Huge,
    #[error("it isn't a signed list of revoked images: {0}")]
    NotAList(String),
    #[error("it isn't to be believed: {0}")]
    Signature(SignError),
    #[error("{0:?} is not a SHA-256 in small letters")]
    Hash(String),
    #[error("{0:?} is no image's name and version")]
    Image(String),
    #[error(
        "the reason why {0} is revoked is empty, longer than {MAX_REASON_CHARS} characters, or has control characters in it"
    )]
    Reason(String),
    #[error("{0} is in it twice")]
    Twice(String),
}

/// The list in `text`, if one of `trusted` signed it and it is sound.
pub fn open(text: &[u8], trusted: &[PublicKey]) -> Result<Verified<Revocations>, RevocationError> {
    if text.len() as u64 > MAX_REVOKED_BYTES {
        return Err(RevocationError::Huge);
    }
    let signed: Signed<Revocations> =
        serde_json::from_slice(text).map_err(|e| RevocationError::NotAList(e.to_string()))?;
    let list = signed.open(trusted).map_err(RevocationError::Signature)?;
    list.check()?;
    Ok(list)
}

impl Revocations {
    pub fn of(&self, manifest_sha256: &str) -> Option<&Revoked> {
        self.revoked.iter().find(|revoked| revoked.manifest_sha256 == manifest_sha256)
    }

    /// This list with one more. Nothing if that is in it already, or if the numbers have run out.
    #[must_use]
    pub fn with(&self, revoked: Revoked) -> Option<Self> {
        if self.of(&revoked.manifest_sha256).is_some() {
            return None;
        }
        let mut next = Self { sequence: self.sequence.checked_add(1)?, revoked: self.revoked.clone() };
        next.revoked.push(revoked);
        Some(next)
    }

    /// Whether everything that `other` revokes is revoked here too.
    pub fn covers(&self, other: &Self) -> bool {
        let ours: BTreeSet<&str> = self.revoked.iter().map(|revoked| revoked.manifest_sha256.as_str()).collect();
        other.revoked.iter().all(|revoked| ours.contains(revoked.manifest_sha256.as_str()))
    }

    pub fn check(&self) -> Result<(), RevocationError> {
        let mut seen = BTreeSet::new();
        for revoked in &self.revoked {
            revoked.check()?;
            if !seen.insert(&revoked.manifest_sha256) {
                return Err(RevocationError::Twice(revoked.manifest_sha256.clone()));
            }
        }
        Ok(())
    }
}

impl Revoked {
    pub fn check(&self) -> Result<(), RevocationError> {
        if !is_hash(&self.manifest_sha256) {
            return Err(RevocationError::Hash(self.manifest_sha256.clone()));
        }
        if !self.image.split_once('/').is_some_and(|(name, version)| is_plain_name(name) && is_plain_name(version)) {
            return Err(RevocationError::Image(self.image.clone()));
        }
        // It's shown on terminals and written to logs.
        let plain = !self.reason.trim().is_empty() && !self.reason.chars().any(char::is_control);
        if !plain || self.reason.chars().count() > MAX_REASON_CHARS {
            return Err(RevocationError::Reason(self.image.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use proptest::prelude::*;

    use super::*;

    fn revoked(hash: &str) -> Revoked {
        let (image, reason) = ("debian/12".to_owned(), "it has a back door".to_owned());
        Revoked { manifest_sha256: hash.repeat(64), image, reason, at: 1_700_000_000 }
    }

    fn text(list: &Revocations, seed: u8) -> Vec<u8> {
        serde_json::to_vec(&Signed::seal(list, &SigningKey::from_bytes(&[seed; 32]))).expect("JSON")
    }

    fn ours() -> [PublicKey; 1] {
        [PublicKey::of(&SigningKey::from_bytes(&[1; 32]))]
    }

    #[test]
    fn what_is_believed() {
        let list = |revoked: Vec<Revoked>| Revocations { sequence: 1, revoked };
        let reason = Err(RevocationError::Reason("debian/12".into()));
        for (name, list, want) in [
            ("nothing", list(vec![]), Ok(())),
            ("two", list(vec![revoked("a"), revoked("b")]), Ok(())),
            ("one twice", list(vec![revoked("a"), revoked("a")]), Err(RevocationError::Twice("a".repeat(64)))),
            ("no hash", list(vec![revoked("A")]), Err(RevocationError::Hash("A".repeat(64)))),
            (
                "a name that leads elsewhere",
                list(vec![Revoked { image: "../x".into(), ..revoked("a") }]),
                Err(RevocationError::Image("../x".into())),
            ),
            ("no reason", list(vec![Revoked { reason: " ".into(), ..revoked("a") }]), reason.clone()),
            ("what moves a cursor", list(vec![Revoked { reason: "\u{1b}[2J".into(), ..revoked("a") }]), reason.clone()),
            ("a book", list(vec![Revoked { reason: "x".repeat(501), ..revoked("a") }]), reason),
        ] {
            let got = open(&text(&list, 1), &ours());
            assert_eq!(got.map(Verified::into_inner), want.map(|()| list), "{name}");
        }
        assert!(matches!(open(&text(&list(vec![]), 2), &ours()), Err(RevocationError::Signature(_))));
        assert!(matches!(open(b"{}", &ours()), Err(RevocationError::NotAList(_))));
        assert_eq!(open(&vec![b' '; 5 << 20], &ours()), Err(RevocationError::Huge));
        let other = crate::fixtures::manifest("debian", "12");
        let other = serde_json::to_vec(&Signed::seal(&other, &SigningKey::from_bytes(&[1; 32]))).expect("JSON");
        assert_eq!(open(&other, &ours()), Err(RevocationError::Signature(SignError::Forged)), "of another kind");
    }

    #[test]
    fn lists_grow() {
        let first = Revocations::default().with(revoked("a")).expect("grows");
        let second = first.with(revoked("b")).expect("grows");
        assert_eq!((first.sequence, second.sequence), (1, 2));
        assert_eq!(second.with(revoked("a")), None);
        assert!(second.covers(&first) && !first.covers(&second) && first.covers(&Revocations::default()));
        assert_eq!(Revocations { sequence: u64::MAX, revoked: vec![] }.with(revoked("a")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(open(&bytes, &ours()).is_err());
        }

        #[test]
        fn any_payload_is_read_or_refused(payload in "\\PC{0,200}") {
            let signed = Signed::<Revocations>::seal_text(payload, &SigningKey::from_bytes(&[1; 32]));
            let read = open(&serde_json::to_vec(&signed).expect("JSON"), &ours());
            prop_assert!(read.is_err() || read.is_ok_and(|list| list.check().is_ok()));
        }

        #[test]
        fn what_is_written_is_read(sequence: u64, hashes in proptest::collection::btree_set("[0-9a-f]{64}", 0..20),
                                   reason in "[a-zA-Zäöü][ -~äöü]{0,99}", at: u64) {
            let revoked = hashes.into_iter()
                .map(|manifest_sha256| Revoked { manifest_sha256, image: "a/1".into(), reason: reason.clone(), at })
                .collect();
            let list = Revocations { sequence, revoked };
            prop_assert_eq!(open(&text(&list, 1), &ours()).map(Verified::into_inner), Ok(list));
        }
    }
}
