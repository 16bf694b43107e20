//! LUKS2: an encrypted volume that any Linux opens with the key that the server gave for it.
//!
//! ```text
//! secret ─ kdf ─▶ key of the keyslot ─ AES-XTS ─▶ keyslot's area ─ anti-forensic merge ─▶ volume key ─ digest ─▶ is it that?
//!                                                                                            └─ dm-crypt ─▶ /dev/mapper/NAME
//! ```
//!
//! What is made here has two copies of the header, one keyslot, AES-XTS with 512 bits of key (AES-256), and sectors of 4096
//! bytes wherever the device's size is a multiple of them. What is opened may be cryptsetup's own, as long as it is ordinary:
//! anything half re-encrypted, with authentication or another cipher is refused in words. The format is the LUKS2 On-Disk
//! Format Specification 1.1.
//!
//! Secrets are wiped from memory when they are dropped (but for what hash functions have on the stack for a moment), and have
//! no text form.

mod header;
mod keys;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;

use uuid::Uuid;
use zeroize::Zeroizing;

use self::header::{Area, Binary, CIPHER, Config, Digest, Keyslot, Known, Metadata, Segment, SegmentSize, Volume};
pub(crate) use self::header::{Header, HeaderError};
pub(crate) use self::keys::Secret;
use self::keys::{Random, VolumeKey};
use crate::sys::block;
use crate::sys::dm::{self, Device, Mode, Target};

/// Where the encrypted data begin: what cryptsetup leaves for headers and keyslots too. There is room for 63 more keys.
pub(crate) const DATA_OFFSET: u64 = 16 << 20;

/// One of the two copies of the header.
const COPY_BYTES: u64 = 16 << 10;

/// An anti-forensic keyslot for a key of 64 bytes: 4000 stripes, in whole blocks of 4096.
const AREA_BYTES: u64 = (keys::STRIPES as u64 * keys::VOLUME_KEY_BYTES as u64).next_multiple_of(4096);

const SECTOR: u64 = 512;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LuksError {
    #[error("a LUKS volume can't have the label {0:?}: at most 47 bytes, none of them NUL")]
    Label(String),
    #[error("a LUKS volume needs more than {DATA_OFFSET} bytes in whole sectors of 512; here are {0}: make it larger")]
    Size(u64),
    #[error("no random bytes for the keys of a LUKS volume: {0}")]
    Random(getrandom::Error),
    #[error("making the keyslot of a LUKS volume: {0}")]
    Seal(String),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("the LUKS volume {uuid} can't be used: {why}")]
    Unusable { uuid: Uuid, why: String },
    /// The sentence names what was tried, slot by slot.
    #[error("none of the keys of LUKS volume {uuid} opens with the secret that was given: {tried}")]
    Locked { uuid: Uuid, tried: String },
    #[error("{doing}")]
    Device { doing: String, source: io::Error },
}

/// A volume to be made: everything about it that isn't secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct New {
    pub(crate) uuid: Uuid,
    pub(crate) label: String,
    /// Of the device that it is made on.
    pub(crate) bytes: u64,
}

/// A volume whose key is known: it can be mapped without asking for the secret again.
#[derive(Debug)]
pub(crate) struct Unlocked {
    uuid: Uuid,
    key: VolumeKey,
    /// In bytes.
    offset: u64,
    size: SegmentSize,
    iv_offset: u64,
    sector: u32,
}

impl New {
    /// What can be said before anything is touched.
    pub(crate) fn check(&self) -> Result<(), LuksError> {
        if self.label.len() >= header::LABEL_BYTES || self.label.contains('\0') {
            return Err(LuksError::Label(self.label.clone()));
        }
        if self.bytes <= DATA_OFFSET || !self.bytes.is_multiple_of(SECTOR) {
            return Err(LuksError::Size(self.bytes));
        }
        Ok(())
    }

    /// Of what is inside, once it's open.
    pub(crate) fn inner_bytes(&self) -> u64 {
        self.bytes.saturating_sub(DATA_OFFSET)
    }

    /// Larger sectors are one cipher call for eight, and ask for a device that ends with a whole one.
    pub(crate) fn sector(&self) -> u32 {
        if self.bytes.is_multiple_of(4096) { 4096 } else { 512 }
    }
}

/// Makes the volume. Whatever was in the place of headers and keyslots is gone, and the new headers are written last.
pub(crate) fn make(device: &File, new: &New, secret: &Secret) -> Result<Unlocked, LuksError> {
    let Made { headers, area, unlocked } =
        compose(new, secret, &mut |buffer| getrandom::fill(buffer).map_err(LuksError::Random))?;
    let put = || -> io::Result<()> {
        const CHUNK: usize = 1 << 20;
        let zeros = vec![0; CHUNK];
        for at in (0..DATA_OFFSET).step_by(CHUNK) {
            device.write_all_at(&zeros, at)?;
        }
        device.write_all_at(&area, 2 * COPY_BYTES)?;
        device.sync_all()?;
        for (at, copy) in headers.iter().rev() {
            device.write_all_at(copy, *at)?;
        }
        device.sync_all()?;
        if device.metadata()?.file_type().is_block_device() {
            block::drop_cache(device)?;
        }
        for (at, want) in headers.iter().map(|(at, copy)| (*at, copy)).chain([(2 * COPY_BYTES, &area)]) {
            let mut found = vec![0; want.len()];
            device.read_exact_at(&mut found, at)?;
            if found != *want {
                return Err(io::Error::other(format!("what was written at byte {at} reads back different")));
            }
        }
        Ok(())
    };
    let doing = || format!("writing the headers of LUKS volume {}", new.uuid);
    put().map_err(|source| LuksError::Device { doing: doing(), source })?;
    Ok(unlocked)
}

/// What LUKS says of itself on `device`; no secret is needed.
pub(crate) fn read(device: &File) -> Result<Header, LuksError> {
    Ok(header::read(&mut |at, length| {
        let mut bytes = vec![0; length];
        device.read_exact_at(&mut bytes, at).map(|()| bytes)
    })?)
}

/// Finds the volume key with `secret`. Keyslots that want more than `memory` bytes are not tried, and named.
pub(crate) fn unlock(device: &File, header: &Header, secret: &Secret, memory: u64) -> Result<Unlocked, LuksError> {
    let uuid = header.uuid();
    let unusable = |why: String| LuksError::Unusable { uuid, why };
    let Volume { segment, digest, slots } = header.metadata.volume().map_err(unusable)?;
    digest.check().map_err(unusable)?;
    let mut tried = Vec::new();
    for (name, slot) in slots {
        let candidate = slot.key(secret, memory, |at, length| {
            let mut bytes = vec![0; length];
            device.read_exact_at(&mut bytes, at).map(|()| bytes)
        });
        match candidate {
            Ok(key) if digest.is_of(&key) => {
                let Segment { offset, size, iv_tweak: iv_offset, sector_size: sector, .. } = *segment;
                return Ok(Unlocked { uuid, key, offset, size, iv_offset, sector });
            }
            Ok(_) => tried.push(format!("keyslot {name:?} belongs to another secret")),
            Err(why) => tried.push(format!("keyslot {name:?}: {why}")),
        }
    }
    if tried.is_empty() {
        tried.push("it has no keyslot".to_owned());
    }
    Err(LuksError::Locked { uuid, tried: tried.join("; ") })
}

/// How much memory a keyslot may take here and now: half of what is left.
pub(crate) fn spare_memory() -> u64 {
    spare(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn spare(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024) / 2
}

impl Unlocked {
    /// Has the kernel decrypt `device` as /dev/mapper/`name`. `bytes` is the device's size.
    pub(crate) fn map(&self, device: &File, bytes: u64, name: &str) -> Result<Opened, LuksError> {
        let doing = || format!("opening LUKS volume {} as {name}", self.uuid);
        let map = || -> io::Result<Opened> {
            let number = device.metadata()?.rdev();
            let sectors = self.sectors(bytes).map_err(io::Error::other)?;
            let parameters = self.parameters(nix::sys::stat::major(number), nix::sys::stat::minor(number));
            let target = Target { start: 0, length: sectors, kind: "crypt", parameters };
            let uuid = self.mapping_uuid(name);
            let node = Device::create(name, &uuid, &[target], Mode::ReadWrite)?.path();
            Ok(Opened { name: name.to_owned(), uuid, node })
        };
        map().map_err(|source| LuksError::Device { doing: doing(), source })
    }

    /// As cryptsetup and systemd write it, by which they know the mapping as theirs to close.
    fn mapping_uuid(&self, name: &str) -> String {
        format!("CRYPT-LUKS2-{}-{name}", self.uuid.simple())
    }

    /// The length of the mapping, in units of 512.
    fn sectors(&self, device_bytes: u64) -> Result<u64, String> {
        let bytes = match self.size {
            SegmentSize::Dynamic => device_bytes.checked_sub(self.offset),
            SegmentSize::Bytes(bytes) => {
                self.offset.checked_add(bytes).is_some_and(|end| end <= device_bytes).then_some(bytes)
            }
        };
        let whole = bytes.filter(|bytes| *bytes > 0 && bytes.is_multiple_of(u64::from(self.sector)));
        whole.map(|bytes| bytes / SECTOR).ok_or_else(|| {
            format!(
                "its data begin at byte {} in sectors of {}, which doesn't fit a device of {device_bytes} bytes",
                self.offset, self.sector
            )
        })
    }

    /// Documentation/admin-guide/device-mapper/dm-crypt.rst
    fn parameters(&self, major: u64, minor: u64) -> Zeroizing<String> {
        let key = self.key.hex();
        let (iv, start) = (self.iv_offset, self.offset / SECTOR);
        // Room for everything from the start: a string that moves leaves a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(key.len() + 256));
        for part in [CIPHER, " ", &key, &format!(" {iv} {major}:{minor} {start}")] {
            text.push_str(part);
        }
        if u64::from(self.sector) != SECTOR {
            text.push_str(&format!(" 1 sector_size:{}", self.sector));
        }
        text
    }
}

/// A volume that the kernel decrypts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    name: String,
    uuid: String,
    /// `/dev/mapper/NAME`
    pub(crate) node: PathBuf,
}

impl Opened {
    /// The kernel forgets the key. Refused while anybody uses the volume.
    pub(crate) fn close(self) -> io::Result<()> {
        dm::remove(&self.name, &self.uuid)
    }
}

/// A volume as it will lie on the device.
struct Made {
    /// With the byte at which each lies, the first copy first.
    headers: [(u64, Vec<u8>); 2],
    area: Vec<u8>,
    unlocked: Unlocked,
}

fn compose(new: &New, secret: &Secret, random: Random<'_>) -> Result<Made, LuksError> {
    new.check()?;
    let key = VolumeKey::random(random)?;
    let kdf = keys::kdf(secret, random)?;
    let area =
        Area { kind: "raw".into(), offset: 2 * COPY_BYTES, size: AREA_BYTES, encryption: CIPHER.into(), key_size: 64 };
    let slot = Keyslot::new(area, kdf);
    let sealed = slot.seal(&key, secret, random)?;
    let segment = Segment::new(DATA_OFFSET, new.sector());
    let Segment { offset, size, iv_tweak, sector_size, .. } = segment;
    let metadata = Metadata {
        keyslots: [("0".to_owned(), Known::Known(slot))].into(),
        tokens: serde_json::Map::new(),
        segments: [("0".to_owned(), Known::Known(segment))].into(),
        digests: [("0".to_owned(), Known::Known(Digest::of(&key, random)?))].into(),
        config: Config::new(COPY_BYTES, DATA_OFFSET),
    };
    let mut headers = Vec::new();
    for at in [0, COPY_BYTES] {
        let mut salt = [0; 64];
        random(&mut salt)?;
        let binary = Binary { uuid: new.uuid, label: new.label.clone(), sequence: 1, copy_bytes: COPY_BYTES };
        headers.push((at, header::emit(&binary, &metadata, at, salt)));
    }
    let headers = <[_; 2]>::try_from(headers).unwrap_or_default();
    let unlocked = Unlocked { uuid: new.uuid, key, offset, size, iv_offset: iv_tweak, sector: sector_size };
    Ok(Made { headers, area: sealed, unlocked })
}

/// What has to hold for any bytes as a device and for any text as what its header says.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let look = |device: &[u8]| {
        let Ok(header) = header::read(&mut |at, length| slice(device, at, length)) else { return };
        if let Ok(volume) = header.metadata.volume() {
            assert!(volume.slots.len() <= 32);
        }
    };
    look(bytes);
    let Ok(metadata) = serde_json::from_slice::<Metadata>(bytes) else { return };
    let binary = Binary { uuid: Uuid::nil(), label: String::new(), sequence: 1, copy_bytes: COPY_BYTES };
    look(&header::emit(&binary, &metadata, 0, [0; 64]));
}

#[cfg(any(test, fuzzing))]
fn slice(device: &[u8], at: u64, length: usize) -> io::Result<Vec<u8>> {
    let from = usize::try_from(at).ok().and_then(|at| device.get(at..)?.get(..length));
    from.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests;
