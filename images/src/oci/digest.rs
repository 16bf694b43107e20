//! Digests as the image specification writes them, and readers that don't end before theirs was right.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256, Sha512};

/// The two registered algorithms of the specification ("Descriptor", Registered Algorithms).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// What a blob hashes to, and so where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, hex) = text.split_once(':')?;
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)?;
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (digits && hex.len() == algorithm.digits()).then(|| Self { algorithm, hex: hex.to_owned() })
    }

    /// Its path in a layout.
    pub(super) fn path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn sha256(bytes: &[u8]) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: hex::encode(Sha256::digest(bytes)) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no digest that is known here")))
    }
}

/// Fails at the end of what it reads if that wasn't what the digest is of: whoever has read to the end knows.
#[derive(Debug)]
pub(super) struct Hashed<R> {
    source: R,
    want: Digest,
    hash: Hash,
    what: &'static str,
}

#[derive(Debug)]
enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl<R> Hashed<R> {
    pub(super) fn new(source: R, want: &Digest, what: &'static str) -> Self {
        let hash = match want.algorithm {
            Algorithm::Sha256 => Hash::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hash::Sha512(Sha512::new()),
        };
        Self { source, want: want.clone(), hash, what }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(&buffer[..n]),
            Hash::Sha512(hash) => hash.update(&buffer[..n]),
        }
        if n == 0 && !buffer.is_empty() {
            let got = match &self.hash {
                Hash::Sha256(hash) => hex::encode(hash.clone().finalize()),
                Hash::Sha512(hash) => hex::encode(hash.clone().finalize()),
            };
            if got != self.want.hex {
                let why = format!("{} is damaged: it hashes to {got} instead of {}", self.what, self.want.hex);
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        Ok(n)
    }
}
