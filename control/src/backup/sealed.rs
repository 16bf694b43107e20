//! A backup as it lies somewhere: encrypted, and in an order that can't be changed.
//!
//! ```text
//! one line of JSON            how the key is made: from a key file or a passphrase, and with which salt
//! pieces of 64 KiB            AES-256-GCM, each with its 16 bytes of tag; the first line is authenticated with each
//! a last, shorter piece       marked as the last in its nonce
//! ```
//!
//! The construction is STREAM (Hoang, Reyhanitabar, Rogaway and Vizár): a piece's number and whether it's the last are
//! part of its nonce, so pieces that are missing, swapped or cut off are found. The key is of this file alone, because the
//! salt is, so that a nonce never meets the same key twice.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};

use aes_gcm::aead::stream::{DecryptorBE32, EncryptorBE32};
use aes_gcm::{Aes256Gcm, Key as CipherKey, KeyInit};
use anyhow::{Context, Result, anyhow, bail, ensure};
use argon2::Argon2;
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::secret::{self, random};

const FORMAT: &str = "drophammer-backup";
const VERSION: u32 = 1;
const LONGEST_HEADER: u64 = 1024;
const PIECE: usize = 64 << 10;
const TAG: usize = 16;
/// Each file has a key of its own.
const NONCE: [u8; 7] = [0; 7];

/// What passphrases are made keys with: OWASP's advice, eightfold in memory, for nobody waits for it often.
const MEMORY_KIB: u32 = 152 << 10;
const PASSES: u32 = 2;
/// A file that asks for more is no backup of ours.
const MOST_MEMORY_KIB: u32 = 1 << 20;
const MOST_PASSES: u32 = 16;

/// What opens a backup.
pub enum Key {
    /// Of a file that `drophammer backup key` made.
    File([u8; 32]),
    Passphrase(String),
}

impl Key {
    /// What a key file holds.
    pub fn read(text: &str) -> Result<Self> {
        let mut bytes = [0; 32];
        ensure!(
            hex::decode_to_slice(text.trim(), &mut bytes).is_ok(),
            "it isn't a key of `drophammer backup key`: 64 hex digits"
        );
        Ok(Self::File(bytes))
    }

    /// A new one, as it's kept in a file.
    pub fn make() -> Result<String> {
        Ok(hex::encode(random::<32>()?))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "Key::File(…)",
            Self::Passphrase(_) => "Key::Passphrase(…)",
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    key: Derivation,
    #[serde(with = "hex::serde")]
    salt: [u8; 32],
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Derivation {
    File,
    Argon2id { memory_kib: u32, passes: u32 },
}

impl Header {
    fn parse(line: &[u8]) -> Result<Self> {
        let header: Self = serde_json::from_slice(line).context("it isn't a backup")?;
        ensure!(header.format == FORMAT, "it isn't a backup");
        let version = header.version;
        ensure!(version == VERSION, "it's a backup of format {version}; this program knows format {VERSION}");
        if let Derivation::Argon2id { memory_kib, passes } = header.key {
            ensure!(memory_kib <= MOST_MEMORY_KIB && passes <= MOST_PASSES, "what it asks of a passphrase is too much");
        }
        Ok(header)
    }

    /// The key of this file.
    fn cipher(&self, key: &Key) -> Result<Aes256Gcm> {
        let bytes = match (key, &self.key) {
            (Key::File(key), Derivation::File) => {
                let tag =
                    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &[FORMAT.as_bytes(), &self.salt].concat());
                let mut bytes = [0; 32];
                bytes.copy_from_slice(tag.as_ref());
                bytes
            }
            (Key::Passphrase(passphrase), Derivation::Argon2id { memory_kib, passes }) => {
                let params = argon2::Params::new(*memory_kib, *passes, 1, None).map_err(|e| anyhow!("argon2: {e}"))?;
                let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
                let mut bytes = [0; 32];
                argon2
                    .hash_password_into(passphrase.as_bytes(), &self.salt, &mut bytes)
                    .map_err(|e| anyhow!("making a key of the passphrase: {e}"))?;
                bytes
            }
            (Key::Passphrase(_), Derivation::File) => bail!("it opens with a key file, not with a passphrase"),
            (Key::File(_), Derivation::Argon2id { .. }) => bail!("it opens with a passphrase, not with a key file"),
        };
        Ok(Aes256Gcm::new(CipherKey::<Aes256Gcm>::from_slice(&bytes)))
    }
}

/// Encrypts what is written to it. Without [`Sealer::finish`] what it wrote is no backup.
pub(super) struct Sealer<W> {
    to: W,
    header: Vec<u8>,
    cipher: EncryptorBE32<Aes256Gcm>,
    piece: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    pub(super) fn new(mut to: W, key: &Key) -> Result<Self> {
        let derivation = match key {
            Key::File(_) => Derivation::File,
            Key::Passphrase(_) => Derivation::Argon2id { memory_kib: MEMORY_KIB, passes: PASSES },
        };
        let header = Header { format: FORMAT.into(), version: VERSION, key: derivation, salt: secret::random()? };
        let cipher = EncryptorBE32::from_aead(header.cipher(key)?, &NONCE.into());
        let mut header = serde_json::to_vec(&header)?;
        header.push(b'\n');
        to.write_all(&header)?;
        Ok(Self { to, header, cipher, piece: Vec::with_capacity(PIECE + TAG) })
    }

    /// The last piece.
    pub(super) fn finish(self) -> Result<W> {
        let Self { mut to, header, cipher, mut piece } = self;
        cipher.encrypt_last_in_place(&header, &mut piece).map_err(|_| anyhow!("encrypting failed"))?;
        to.write_all(&piece)?;
        to.flush()?;
        Ok(to)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The last piece is never a whole one, so a whole one is never the last.
        if self.piece.len() == PIECE {
            let encrypted = self.cipher.encrypt_next_in_place(&self.header, &mut self.piece);
            encrypted.map_err(|_| io::Error::other("encrypting failed"))?;
            self.to.write_all(&self.piece)?;
            self.piece.clear();
        }
        let some = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend(bytes.iter().take(some));
        Ok(some)
    }

    /// What doesn't fill a piece waits for more.
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Decrypts a backup. Nothing that it gives was altered, and its end is the end that was written.
pub(super) struct Opened<R> {
    from: BufReader<R>,
    header: Vec<u8>,
    /// `None` after the last piece.
    cipher: Option<DecryptorBE32<Aes256Gcm>>,
    piece: Vec<u8>,
    given: usize,
    pieces: u64,
}

impl<R: Read> Opened<R> {
    pub(super) fn new(from: R, key: &Key) -> Result<Self> {
        let mut from = BufReader::with_capacity(PIECE, from);
        let mut header = Vec::new();
        from.by_ref().take(LONGEST_HEADER).read_until(b'\n', &mut header)?;
        ensure!(header.ends_with(b"\n"), "it isn't a backup");
        let cipher = Header::parse(&header)?.cipher(key)?;
        let cipher = Some(DecryptorBE32::from_aead(cipher, &NONCE.into()));
        Ok(Self { from, header, cipher, piece: Vec::new(), given: 0, pieces: 0 })
    }

    fn next_piece(&mut self) -> io::Result<()> {
        let Some(mut cipher) = self.cipher.take() else { return Ok(()) };
        self.given = 0;
        self.piece.clear();
        let whole = PIECE + TAG;
        self.from.by_ref().take(whole as u64).read_to_end(&mut self.piece)?;
        let is_last = self.piece.len() < whole || self.from.fill_buf()?.is_empty();
        let opened = if is_last {
            cipher.decrypt_last_in_place(&self.header, &mut self.piece)
        } else {
            let opened = cipher.decrypt_next_in_place(&self.header, &mut self.piece);
            self.cipher = Some(cipher);
            opened
        };
        let why = if self.pieces == 0 {
            "it was made with another key or passphrase, or altered"
        } else {
            "it was altered, or cut short"
        };
        self.pieces += 1;
        opened.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.piece.len() && self.cipher.is_some() {
            if let Err(error) = self.next_piece() {
                // Whoever asks again hears it again.
                (self.cipher, self.piece, self.given) = (None, Vec::new(), 0);
                return Err(error);
            }
        }
        let left = self.piece.get(self.given..).unwrap_or_default();
        let some = left.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(left) {
            *to = *from;
        }
        self.given += some;
        Ok(some)
    }
}

impl<W> fmt::Debug for Sealer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl<R> fmt::Debug for Opened<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

/// Nobody makes a backup without its key.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let key = Key::File([7; 32]);
    assert!(Opened::new(bytes, &key).and_then(|mut opened| Ok(opened.read_to_end(&mut Vec::new())?)).is_err());
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::backup) fn key() -> Key {
        Key::File([7; 32])
    }

    pub(in crate::backup) fn sealed(content: &[u8], key: &Key) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), key).expect("begins");
        sealer.write_all(content).expect("writes");
        sealer.finish().expect("ends")
    }

    fn opened(sealed: &[u8], key: &Key) -> Result<Vec<u8>, String> {
        let mut opened = Opened::new(sealed, key).map_err(|e| format!("{e:#}"))?;
        let mut content = Vec::new();
        match opened.read_to_end(&mut content) {
            Ok(_) => Ok(content),
            Err(error) => {
                assert!(opened.read(&mut [0; 10]).is_ok_and(|read| read == 0), "nothing comes after an error");
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn what_was_sealed_opens_whatever_its_size() {
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 100] {
            let content: Vec<u8> = (0..=250).cycle().take(size).collect();
            let file = sealed(&content, &key());
            assert_eq!(opened(&file, &key()).as_deref(), Ok(content.as_slice()), "{size} bytes");
        }
    }

    #[test]
    fn what_was_altered_or_cut_is_refused() {
        let content: Vec<u8> = (0..=250).cycle().take(3 * PIECE + 100).collect();
        let file = sealed(&content, &key());
        let start = file.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        let piece = PIECE + TAG;
        let flipped = |at: usize| {
            let mut file = file.clone();
            file[at] ^= 1;
            file
        };
        let salted = |digit: u8| {
            let mut file = file.clone();
            file[start - 4] = digit;
            file
        };
        let other_digit = if file[start - 4] == b'0' { b'1' } else { b'0' };
        let (first, rest) = file[start..].split_at(piece);
        let (second, third) = rest.split_at(piece);
        let swapped = [&file[..start], second, first, third].concat();
        let without = [&file[..start], first, third].concat();
        let twice = [file.as_slice(), &file[start..]].concat();
        let another = sealed(&content, &key());
        let mixed = [&file[..start + piece], &another[start + piece..]].concat();
        for (name, file, want) in [
            ("its first piece", flipped(start + 5), "another key or passphrase, or altered"),
            ("its salt", salted(other_digit), "another key or passphrase, or altered"),
            ("a salt that is none", salted(b'x'), "isn't a backup"),
            ("its second piece", flipped(start + piece), "altered, or cut short"),
            ("its last byte", flipped(file.len() - 1), "altered, or cut short"),
            ("pieces swapped", swapped, "altered"),
            ("a piece left out", without, "altered, or cut short"),
            ("more behind it", twice, "altered, or cut short"),
            ("pieces of two", mixed, "altered, or cut short"),
            ("nothing", vec![], "isn't a backup"),
            ("something else", b"{\"format\":\"x\"}\n".to_vec(), "isn't a backup"),
            ("no line", vec![b'{'; 5000], "isn't a backup"),
        ] {
            let why = opened(&file, &key()).expect_err(name);
            assert!(why.contains(want), "{name}: {why}");
        }
        for cut in [start - 1, start, start + 1, start + piece, start + piece + 1, start + 2 * piece, file.len() - 1] {
            let why = opened(&file[..cut], &key()).expect_err("cut short");
            assert!(why.contains("backup") || why.contains("altered"), "cut at {cut}: {why}");
        }
    }

    #[test]
    fn only_its_own_key_opens_it() {
        let passphrase = |text: &str| Key::Passphrase(text.into());
        for (name, with, key, want) in [
            ("its passphrase", passphrase("correct horse"), passphrase("correct horse"), Ok(())),
            ("another", passphrase("correct horse"), passphrase("correct house"), Err("another key or passphrase")),
            ("another key", key(), Key::File([8; 32]), Err("another key or passphrase")),
            ("a key for a passphrase", passphrase("a"), key(), Err("opens with a passphrase")),
            ("a passphrase for a key", key(), passphrase("a"), Err("opens with a key file")),
        ] {
            match (opened(&sealed(b"content", &with), &key), want) {
                (Ok(content), Ok(())) => assert_eq!(content, b"content", "{name}"),
                (Err(why), Err(want)) => assert!(why.contains(want), "{name}: {why}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_header_that_asks_for_all_memory_gets_none() {
        let salt = "00".repeat(32);
        let line = format!(
            "{{\"format\":\"{FORMAT}\",\"version\":1,\"key\":{{\"argon2id\":{{\"memory_kib\":4000000000,\"passes\":1}}}},\
             \"salt\":\"{salt}\"}}\n"
        );
        let why = opened(line.as_bytes(), &Key::Passphrase("a".into())).expect_err("too much");
        assert!(why.contains("too much"), "{why}");
    }
}
