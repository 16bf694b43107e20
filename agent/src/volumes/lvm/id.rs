//! LVM's own kind of UUIDs: 32 letters and digits.

use std::fmt;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id([u8; 32]);

const LETTERS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Where a dash is written.
const DASHES: [usize; 6] = [6, 10, 14, 18, 22, 26];

impl Id {
    /// The same for the same UUID, and another for everything else that has no UUID of its own.
    pub(crate) fn of(uuid: Uuid, what: &str) -> Self {
        let hash: [u8; 32] = Sha256::new_with_prefix(uuid.as_bytes()).chain_update(what).finalize().into();
        Self(hash.map(|byte| LETTERS.get(usize::from(byte) % LETTERS.len()).copied().unwrap_or(b'0')))
    }

    /// As it lies in the header of a physical volume.
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        // lvm2 once had two more letters.
        bytes.iter().all(|byte| LETTERS.contains(byte) || b"!#".contains(byte)).then_some(Self(bytes))
    }

    /// As it's written in metadata and by `lvs`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let letters: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        Self::from_bytes(letters.try_into().ok()?).filter(|id| id.to_string() == text)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// As it's part of the UUID of a mapping.
    pub(super) fn without_dashes(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            if DASHES.contains(&place) {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(*byte))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read() {
        let id = Id::of(Uuid::from_u128(7), "pv0");
        assert_eq!(id, Id::of(Uuid::from_u128(7), "pv0"));
        assert_ne!(id, Id::of(Uuid::from_u128(7), "pv1"));
        assert_eq!(Id::parse(&id.to_string()), Some(id));
        assert_eq!(id.to_string().len(), 38);
        let text = "OQrC7L-GSI1-o85O-ODP7-O3Kq-NBCe-sIiyRA";
        for (name, text, fine) in [
            ("of lvm2", text, true),
            ("without dashes", &text.replace('-', ""), false),
            ("dashes elsewhere", &text.replacen("L-G", "LG-", 1), false),
            ("too short", &text[1..], false),
            ("a stranger", &text.replacen('Q', "_", 1), false),
            ("nothing", "", false),
        ] {
            assert_eq!(Id::parse(text).is_some(), fine, "{name}");
        }
    }
}
