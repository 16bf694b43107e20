//! From a secret to a volume key and back, in memory alone.
//!
//! How much work lies between the two depends on the secret. Stretching exists because people choose passphrases that can be
//! guessed; nobody guesses 256 random bits, so for them it would only be waiting, at every boot of the installed system.

use std::fmt;
use std::io;

use aes::cipher::{BlockCipher, BlockDecrypt, BlockEncrypt, Key, KeyInit, KeySizeUser};
use aes::{Aes128, Aes256};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use sha2::{Sha256, Sha512};
use xts_mode::{Xts128, get_tweak_default};
use zeroize::{Zeroize, Zeroizing};

use super::LuksError;
use super::header::{Af, Area, CIPHER, Digest, Kdf, Keyslot};

/// What random bytes come from: the kernel, or something else in tests.
pub(super) type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), LuksError>;

/// Two keys of AES-256.
pub(super) const VOLUME_KEY_BYTES: usize = 64;

/// The format knows no other number.
pub(super) const STRIPES: usize = 4000;

/// The least that cryptsetup takes. It's as good as millions where the input is random.
const PBKDF2_ITERATIONS: u32 = 1000;

/// RFC 9106, section 4, second choice: for where memory is scarce. cryptsetup would take up to 1 GiB, which neither the agent
/// nor the initramfs of a small virtual machine has; 64 MiB is what fits a machine of 256 MiB. There is one pass more
/// than in the RFC, since cryptsetup takes no fewer.
const ARGON2: Argon2Cost = Argon2Cost { passes: 4, memory_kib: 64 << 10, lanes: 4 };

struct Argon2Cost {
    passes: u32,
    memory_kib: u32,
    lanes: u32,
}

/// The format's own limit.
const MOST_LANES: u32 = 4;

/// Minutes of work, whoever made the header.
const MOST_ITERATIONS: u32 = 100_000_000;
const MOST_KIB_PASSES: u64 = 64 << 20;

/// What opens the volume, as the server gave it.
pub(crate) struct Secret(Origin);

enum Origin {
    Random(Zeroizing<[u8; 32]>),
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Origin::Random(_) => "Secret(random)",
            Origin::Passphrase(_) => "Secret(passphrase)",
        })
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SecretError {
    #[error("a passphrase for an encrypted volume can't be empty")]
    Empty,
    #[error("a passphrase for an encrypted volume can have 512 bytes at most, for that is all that can be typed in")]
    Long,
    #[error("a passphrase for an encrypted volume can't have line ends or NULs in it, for they can't be typed in")]
    Untypeable,
}

impl Secret {
    /// 256 bits that nobody chose: the content of a key file.
    pub(crate) fn random(key: Zeroizing<[u8; 32]>) -> Self {
        Self(Origin::Random(key))
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "how people open volumes; machines have keys that nobody chose"))]
    pub(crate) fn passphrase(text: Zeroizing<String>) -> Result<Self, SecretError> {
        match text.len() {
            0 => Err(SecretError::Empty),
            513.. => Err(SecretError::Long),
            _ if text.contains(['\n', '\r', '\0']) => Err(SecretError::Untypeable),
            _ => Ok(Self(Origin::Passphrase(text))),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Origin::Random(key) => key.as_slice(),
            Origin::Passphrase(text) => text.as_bytes(),
        }
    }
}

/// What the data are encrypted with. It never leaves the machine but in the table of the device mapper.
pub(super) struct VolumeKey(Zeroizing<Vec<u8>>);

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

impl VolumeKey {
    pub(super) fn random(random: Random<'_>) -> Result<Self, LuksError> {
        let mut key = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
        random(&mut key)?;
        Ok(Self(key))
    }

    pub(super) fn hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(&*self.0))
    }
}

/// How the secret is to be stretched, by what kind it is.
pub(super) fn kdf(secret: &Secret, random: Random<'_>) -> Result<Kdf, LuksError> {
    let mut salt = vec![0; 32];
    random(&mut salt)?;
    Ok(match secret.0 {
        Origin::Random(_) => Kdf::Pbkdf2 { hash: "sha256".into(), iterations: PBKDF2_ITERATIONS, salt },
        Origin::Passphrase(_) => {
            let Argon2Cost { passes, memory_kib, lanes } = ARGON2;
            Kdf::Argon2id { time: passes, memory: memory_kib, cpus: lanes, salt }
        }
    })
}

impl Keyslot {
    pub(super) fn new(area: Area, kdf: Kdf) -> Self {
        let stripes = u32::try_from(STRIPES).unwrap_or_default();
        let af = Af { kind: "luks1".into(), stripes, hash: "sha256".into() };
        Self { kind: "luks2".into(), key_size: VOLUME_KEY_BYTES, af, area, kdf, priority: None }
    }

    /// The content of the keyslot's area that gives `key` to who has `secret`.
    pub(super) fn seal(&self, key: &VolumeKey, secret: &Secret, random: Random<'_>) -> Result<Vec<u8>, LuksError> {
        let area_key = self.area_key(secret, u64::MAX).map_err(LuksError::Seal)?;
        // At its full size from the start: nothing moves while it's secret.
        let mut material = Zeroizing::new(vec![0; usize::try_from(self.area.size).unwrap_or_default()]);
        let (stripes, _) = material.split_at_mut_checked(self.material_bytes()).unwrap_or_default();
        split::<Sha256>(&key.0, stripes, random)?;
        crypt(Way::Encrypt, &area_key, &mut material).map_err(LuksError::Seal)?;
        Ok(std::mem::take(&mut material))
    }

    /// What this keyslot gives to who has `secret`: the volume key, or noise if it's another secret.
    pub(super) fn key(
        &self,
        secret: &Secret,
        memory: u64,
        mut read: impl FnMut(u64, usize) -> io::Result<Vec<u8>>,
    ) -> Result<VolumeKey, String> {
        if self.kind != "luks2" || self.af.kind != "luks1" || self.area.encryption != CIPHER {
            return Err(format!(
                "it's of type {:?}/{:?} with cipher {:?}, where this agent knows luks2/luks1 with {CIPHER}",
                self.kind, self.af.kind, self.area.encryption
            ));
        }
        if !matches!(self.key_size, 32 | 64) || self.af.stripes as usize != STRIPES {
            return Err(format!("a key of {} bytes in {} stripes isn't known here", self.key_size, self.af.stripes));
        }
        let length = self.material_bytes().next_multiple_of(SECTOR);
        if self.area.size < length as u64 {
            return Err(format!("its area is too small for {length} bytes"));
        }
        let hash = Hash::named(&self.af.hash)?;
        let area_key = self.area_key(secret, memory)?;
        let mut material =
            Zeroizing::new(read(self.area.offset, length).map_err(|e| format!("its area can't be read: {e}"))?);
        crypt(Way::Decrypt, &area_key, &mut material)?;
        let (stripes, _) = material.split_at_checked(self.material_bytes()).ok_or("its area is too short")?;
        Ok(VolumeKey(match hash {
            Hash::Sha256 => merge::<Sha256>(stripes, self.key_size),
            Hash::Sha512 => merge::<Sha512>(stripes, self.key_size),
        }))
    }

    fn material_bytes(&self) -> usize {
        self.key_size * STRIPES
    }

    /// What the area is encrypted with.
    fn area_key(&self, secret: &Secret, memory: u64) -> Result<Zeroizing<Vec<u8>>, String> {
        if !matches!(self.area.key_size, 32 | 64) {
            return Err(format!("its area has a key of {} bytes, which {CIPHER} can't have", self.area.key_size));
        }
        let mut key = Zeroizing::new(vec![0; self.area.key_size]);
        self.kdf.stretch(secret.bytes(), memory, &mut key)?;
        Ok(key)
    }
}

impl Kdf {
    fn stretch(&self, secret: &[u8], memory: u64, key: &mut [u8]) -> Result<(), String> {
        match self {
            Self::Pbkdf2 { hash, iterations, salt } => pbkdf2(hash, secret, salt, *iterations, key),
            Self::Argon2id { time, memory: kib, cpus, salt } => {
                argon2(Algorithm::Argon2id, [*time, *kib, *cpus], secret, salt, memory, key)
            }
            Self::Argon2i { time, memory: kib, cpus, salt } => {
                argon2(Algorithm::Argon2i, [*time, *kib, *cpus], secret, salt, memory, key)
            }
            Self::Other => Err("its key derivation isn't known here".to_owned()),
        }
    }
}

fn argon2(
    algorithm: Algorithm,
    [passes, kib, lanes]: [u32; 3],
    secret: &[u8],
    salt: &[u8],
    memory: u64,
    key: &mut [u8],
) -> Result<(), String> {
    if u64::from(passes) * u64::from(kib) > MOST_KIB_PASSES {
        return Err(format!("{passes} passes over {kib} KiB would take too long"));
    }
    if lanes > MOST_LANES {
        return Err(format!("its costs are odd: {lanes} lanes, where {MOST_LANES} are the most"));
    }
    let params = Params::new(kib, passes, lanes, Some(key.len())).map_err(|e| format!("its costs are odd: {e}"))?;
    let count = params.block_count();
    let bytes = count as u64 * Block::SIZE as u64;
    if bytes > memory {
        let mib = |bytes: u64| bytes >> 20;
        return Err(format!("it takes {} MiB of memory, here are {} to spare", mib(bytes), mib(memory)));
    }
    let mut blocks = Vec::new();
    blocks.try_reserve_exact(count).map_err(|e| format!("no memory: {e}"))?;
    blocks.resize(count, Block::new());
    let done = Argon2::new(algorithm, Version::V0x13, params)
        .hash_password_into_with_memory(secret, salt, key, &mut blocks)
        .map_err(|e| format!("argon2: {e}"));
    blocks.iter_mut().for_each(Zeroize::zeroize);
    done
}

fn pbkdf2(hash: &str, secret: &[u8], salt: &[u8], count: u32, key: &mut [u8]) -> Result<(), String> {
    iterations(count)?;
    match Hash::named(hash)? {
        Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(secret, salt, count, key),
        Hash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(secret, salt, count, key),
    }
    Ok(())
}

fn iterations(count: u32) -> Result<(), String> {
    let fine = (1..=MOST_ITERATIONS).contains(&count);
    if fine { Ok(()) } else { Err(format!("{count} iterations aren't between 1 and {MOST_ITERATIONS}")) }
}

enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn named(name: &str) -> Result<Self, String> {
        match name {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(format!("the hash {name:?} isn't known here")),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl Digest {
    /// For one keyslot and one segment, "0" each. The volume key is random, so the least of iterations will do.
    pub(super) fn of(key: &VolumeKey, random: Random<'_>) -> Result<Self, LuksError> {
        let mut salt = vec![0; 32];
        random(&mut salt)?;
        let mut digest = vec![0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(&key.0, &salt, PBKDF2_ITERATIONS, &mut digest);
        let zero = || vec!["0".to_owned()];
        Ok(Self {
            kind: "pbkdf2".into(),
            keyslots: zero(),
            segments: zero(),
            hash: "sha256".into(),
            iterations: PBKDF2_ITERATIONS,
            salt,
            digest,
        })
    }

    /// Whether a key can be told by it. A short one would be that of many keys, an empty one of all.
    pub(super) fn check(&self) -> Result<(), String> {
        if Hash::named(&self.hash)?.bytes() != self.digest.len() {
            return Err(format!(
                "the digest of its key has {} bytes, which {} never has",
                self.digest.len(),
                self.hash
            ));
        }
        iterations(self.iterations).map_err(|why| format!("the digest of its key: {why}"))
    }

    /// Whether this is the volume key, which nothing is if the digest is none.
    pub(super) fn is_of(&self, key: &VolumeKey) -> bool {
        let mut found = vec![0; self.digest.len()];
        self.check().is_ok()
            && pbkdf2(&self.hash, &key.0, &self.salt, self.iterations, &mut found).is_ok()
            && found == self.digest
    }
}

const SECTOR: usize = 512;

#[derive(Clone, Copy)]
enum Way {
    Encrypt,
    Decrypt,
}

/// A keyslot's area: sectors of 512 bytes, counted from the area's start.
fn crypt(way: Way, key: &[u8], area: &mut [u8]) -> Result<(), String> {
    let done = match key.len() {
        32 => xts::<Aes128>(way, key, area),
        64 => xts::<Aes256>(way, key, area),
        _ => None,
    };
    done.ok_or_else(|| format!("{CIPHER} can't have a key of {} bytes", key.len()))
}

/// The first half of the key is for the data, the second for the tweaks.
fn xts<C>(way: Way, key: &[u8], area: &mut [u8]) -> Option<()>
where
    C: KeyInit + KeySizeUser + BlockCipher + BlockEncrypt + BlockDecrypt,
{
    let (data, tweak) = key.split_at_checked(C::key_size()).filter(|(_, tweak)| tweak.len() == C::key_size())?;
    let cipher = Xts128::new(C::new(Key::<C>::from_slice(data)), C::new(Key::<C>::from_slice(tweak)));
    match way {
        Way::Encrypt => cipher.encrypt_area(area, SECTOR, 0, get_tweak_default),
        Way::Decrypt => cipher.decrypt_area(area, SECTOR, 0, get_tweak_default),
    }
    Some(())
}

/// The anti-forensic splitter: a key spread over so much that a drive which keeps a few of its blocks somewhere doesn't keep
/// the key (specification, section 2.5). `into` is as many stripes as it has room for.
fn split<H: sha2::digest::Digest>(key: &[u8], into: &mut [u8], random: Random<'_>) -> Result<(), LuksError> {
    let stripes = into.len().checked_div(key.len()).unwrap_or_default();
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    for (index, stripe) in into.chunks_exact_mut(key.len()).enumerate() {
        if index + 1 == stripes {
            stripe.copy_from_slice(key);
            xor(stripe, &sum);
        } else {
            random(stripe)?;
            xor(&mut sum, stripe);
            diffuse::<H>(&mut sum);
        }
    }
    Ok(())
}

fn merge<H: sha2::digest::Digest>(stripes: &[u8], key_bytes: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; key_bytes]);
    let mut stripes = stripes.chunks_exact(key_bytes).peekable();
    while let Some(stripe) = stripes.next() {
        xor(&mut sum, stripe);
        if stripes.peek().is_some() {
            diffuse::<H>(&mut sum);
        }
    }
    sum
}

fn xor(into: &mut [u8], other: &[u8]) {
    into.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

fn diffuse<H: sha2::digest::Digest>(sum: &mut [u8]) {
    for (index, part) in (0u32..).zip(sum.chunks_mut(<H as sha2::digest::Digest>::output_size())) {
        let mut hash = H::new().chain_update(index.to_be_bytes()).chain_update(&*part).finalize();
        part.iter_mut().zip(&hash).for_each(|(to, from)| *to = *from);
        hash.as_mut_slice().zeroize();
    }
}
