//! The two copies of a LUKS2 header: a block of binary fields and an area of JSON each, under one checksum.
//!
//! Reading takes any bytes. A copy counts only if its checksum is right; of two that count, the one that was written last.
//! What isn't known here (keyslots, digests or segments of other types) doesn't keep the rest from being read.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Both of the data and of the keyslots. "plain64": sectors are told apart by their number.
pub(super) const CIPHER: &str = "aes-xts-plain64";

/// With its NUL.
pub(super) const LABEL_BYTES: usize = 48;

const BINARY_BYTES: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 448..512;
const FIRST: [u8; 6] = *b"LUKS\xba\xbe";
const SECOND: [u8; 6] = *b"SKUL\xba\xbe";

/// Sizes that a copy can have; the second lies behind the first (specification, section 2.2).
const COPY_SIZES: [u64; 9] = [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("there is no LUKS volume")]
    None,
    #[error(
        "the LUKS volume has version {0} of the format, this agent knows 2: `cryptsetup convert --type luks2` upgrades it"
    )]
    Version(u16),
    #[error("both copies of the LUKS header are damaged: first {first}, second {second}; put one back from a backup")]
    Damaged { first: String, second: String },
    #[error("reading the LUKS header")]
    Read(#[from] io::Error),
}

/// What a LUKS volume says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    pub(super) binary: Binary,
    pub(super) metadata: Metadata,
}

impl Header {
    pub(crate) fn uuid(&self) -> Uuid {
        self.binary.uuid
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "who looks for a volume goes by its UUID"))]
    pub(crate) fn label(&self) -> &str {
        &self.binary.label
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    pub(super) uuid: Uuid,
    pub(super) label: String,
    /// The copy with the greater one is newer.
    pub(super) sequence: u64,
    pub(super) copy_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Metadata {
    pub(super) keyslots: BTreeMap<String, Known<Keyslot>>,
    pub(super) tokens: serde_json::Map<String, Value>,
    pub(super) segments: BTreeMap<String, Known<Segment>>,
    pub(super) digests: BTreeMap<String, Known<Digest>>,
    pub(super) config: Config,
}

/// What has the fields that are known here, or anything else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Known<T> {
    Known(T),
    Other(Value),
}

impl<T> Known<T> {
    fn known(&self) -> Option<&T> {
        match self {
            Self::Known(it) => Some(it),
            Self::Other(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyslot {
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Of the volume key.
    pub(super) key_size: usize,
    pub(super) af: Af,
    pub(super) area: Area,
    pub(super) kdf: Kdf,
    /// 0: only when asked for by number; 2: first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Af {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) stripes: u32,
    pub(super) hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Area {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(with = "decimal")]
    pub(super) offset: u64,
    #[serde(with = "decimal")]
    pub(super) size: u64,
    pub(super) encryption: String,
    pub(super) key_size: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Kdf {
    Argon2id {
        time: u32,
        /// In KiB.
        memory: u32,
        cpus: u32,
        #[serde(with = "base64")]
        salt: Vec<u8>,
    },
    Argon2i {
        time: u32,
        memory: u32,
        cpus: u32,
        #[serde(with = "base64")]
        salt: Vec<u8>,
    },
    Pbkdf2 {
        hash: String,
        iterations: u32,
        #[serde(with = "base64")]
        salt: Vec<u8>,
    },
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(with = "decimal")]
    pub(super) offset: u64,
    pub(super) size: SegmentSize,
    #[serde(with = "decimal")]
    pub(super) iv_tweak: u64,
    pub(super) encryption: String,
    pub(super) sector_size: u32,
    /// Authentication, which dm-crypt does with another target below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) integrity: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum SegmentSize {
    /// To the end of the device.
    Dynamic,
    Bytes(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digest {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) keyslots: Vec<String>,
    pub(super) segments: Vec<String>,
    pub(super) hash: String,
    pub(super) iterations: u32,
    #[serde(with = "base64")]
    pub(super) salt: Vec<u8>,
    #[serde(with = "base64")]
    pub(super) digest: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Config {
    #[serde(with = "decimal")]
    json_size: u64,
    #[serde(with = "decimal")]
    keyslots_size: u64,
    /// What a program must know in order to use the volume at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requirements: Option<Value>,
}

impl Segment {
    pub(super) fn new(offset: u64, sector_size: u32) -> Self {
        Self {
            kind: "crypt".into(),
            offset,
            size: SegmentSize::Dynamic,
            iv_tweak: 0,
            encryption: CIPHER.into(),
            sector_size,
            integrity: None,
        }
    }
}

impl Config {
    pub(super) fn new(copy_bytes: u64, data_offset: u64) -> Self {
        Self {
            json_size: copy_bytes - BINARY_BYTES as u64,
            keyslots_size: data_offset - 2 * copy_bytes,
            requirements: None,
        }
    }
}

/// The one volume that a header describes, and the keys to it in the order in which they are to be tried.
pub(super) struct Volume<'a> {
    pub(super) segment: &'a Segment,
    pub(super) digest: &'a Digest,
    pub(super) slots: Vec<(&'a str, &'a Keyslot)>,
}

impl Metadata {
    /// The volume, or why this agent can't use it.
    pub(super) fn volume(&self) -> Result<Volume<'_>, String> {
        if let Some(requirements) = self.config.requirements.as_ref().filter(|value| !is_empty(value)) {
            return Err(format!("it asks for what this agent doesn't know: {requirements}"));
        }
        let mut segments = self.segments.iter();
        let (Some((name, segment)), None) = (segments.next(), segments.next()) else {
            return Err(format!("it has {} segments instead of one", self.segments.len()));
        };
        let segment = segment.known().filter(|s| s.kind == "crypt" && s.integrity.is_none());
        let segment = segment.ok_or("its data are something else than encrypted without authentication")?;
        if segment.encryption != CIPHER {
            return Err(format!("its cipher is {:?}, where this agent knows {CIPHER}", segment.encryption));
        }
        let sector = u64::from(segment.sector_size);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || !segment.offset.is_multiple_of(512) {
            return Err(format!("its data begin at byte {} in sectors of {sector}", segment.offset));
        }
        let mut digests = self.digests.values().filter_map(Known::known);
        let digest = digests.find(|digest| digest.kind == "pbkdf2" && digest.segments.contains(name));
        let digest = digest.ok_or("it has no digest by which its key could be told")?;
        let mut slots: Vec<_> = digest
            .keyslots
            .iter()
            .filter_map(|name| Some((name.as_str(), self.keyslots.get(name)?.known()?)))
            .filter(|(_, slot)| slot.priority != Some(0))
            .collect();
        slots.sort_by_key(|(_, slot)| std::cmp::Reverse(slot.priority.unwrap_or(1)));
        // As many as the format allows; a digest could name one of them many times.
        slots.truncate(32);
        Ok(Volume { segment, digest, slots })
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// One copy, to be written at byte `at`.
pub(super) fn emit(binary: &Binary, metadata: &Metadata, at: u64, salt: [u8; 64]) -> Vec<u8> {
    let json = serde_json::to_vec(metadata).unwrap_or_default();
    let length = usize::try_from(binary.copy_bytes).unwrap_or_default();
    let mut copy = vec![0; length];
    let mut put = |offset: usize, bytes: &[u8]| {
        copy.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(0, if at == 0 { &FIRST } else { &SECOND });
    put(6, &2u16.to_be_bytes());
    put(8, &binary.copy_bytes.to_be_bytes());
    put(16, &binary.sequence.to_be_bytes());
    put(24, binary.label.as_bytes());
    put(72, b"sha256");
    put(104, &salt);
    put(168, binary.uuid.hyphenated().to_string().as_bytes());
    put(256, &at.to_be_bytes());
    put(BINARY_BYTES, &json);
    let checksum = Sha256::digest(&copy);
    copy.iter_mut().skip(CHECKSUM.start).zip(&checksum).for_each(|(to, from)| *to = *from);
    copy
}

/// The newer of the two copies that count. `at` gives so many bytes from a place of the device.
pub(super) fn read(at: &mut dyn FnMut(u64, usize) -> io::Result<Vec<u8>>) -> Result<Header, HeaderError> {
    let first = copy(at, 0, FIRST);
    let places = match &first {
        Ok(header) => vec![header.binary.copy_bytes],
        Err(_) => COPY_SIZES.to_vec(),
    };
    let mut second = Err(Bad::Absent);
    for place in places {
        let found = copy(at, place, SECOND);
        if !matches!(found, Err(Bad::Absent)) {
            second = found;
        }
        if second.is_ok() {
            break;
        }
    }
    match (first, second) {
        (Ok(first), Ok(second)) if second.binary.sequence > first.binary.sequence => Ok(second),
        (Ok(header), _) | (Err(_), Ok(header)) => Ok(header),
        (Err(Bad::Version(version)), Err(_)) => Err(HeaderError::Version(version)),
        (Err(Bad::Read(error)), Err(_)) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(HeaderError::Read(error))
        }
        (Err(Bad::Absent | Bad::Read(_)), Err(Bad::Absent | Bad::Read(_))) => Err(HeaderError::None),
        (Err(first), Err(second)) => Err(HeaderError::Damaged { first: first.to_string(), second: second.to_string() }),
    }
}

#[derive(Debug, thiserror::Error)]
enum Bad {
    #[error("it isn't there")]
    Absent,
    #[error("it has version {0}")]
    Version(u16),
    #[error("{0}")]
    Damaged(String),
    #[error("it can't be read: {0}")]
    Read(#[from] io::Error),
}

fn copy(read: &mut dyn FnMut(u64, usize) -> io::Result<Vec<u8>>, place: u64, magic: [u8; 6]) -> Result<Header, Bad> {
    let binary = read(place, BINARY_BYTES)?;
    if !binary.starts_with(&magic) {
        return Err(Bad::Absent);
    }
    let version = u16::from_be_bytes(array(&binary, 6));
    if version != 2 {
        return Err(Bad::Version(version));
    }
    let damaged = |why: &str| Bad::Damaged(why.to_owned());
    let copy_bytes = u64::from_be_bytes(array(&binary, 8));
    if !COPY_SIZES.contains(&copy_bytes) || u64::from_be_bytes(array(&binary, 256)) != place {
        return Err(damaged("its size or place isn't one that a copy can have"));
    }
    let algorithm = text(&binary, 72, 32);
    if algorithm != "sha256" {
        return Err(Bad::Damaged(format!("its checksum is made with {algorithm:?}, only sha256 is known here")));
    }
    let mut whole = read(place, usize::try_from(copy_bytes).map_err(|_| damaged("it is too large"))?)?;
    let (stored, checked) = {
        let field = whole.get_mut(CHECKSUM).ok_or_else(|| damaged("it is too short"))?;
        let stored = field.to_vec();
        field.fill(0);
        (stored, Sha256::digest(&whole))
    };
    if !stored.starts_with(&checked) {
        return Err(damaged("its checksum is wrong"));
    }
    let area = whole.get(BINARY_BYTES..).unwrap_or_default();
    let json = area.split(|byte| *byte == 0).next().unwrap_or_default();
    let metadata = serde_json::from_slice(json).map_err(|e| Bad::Damaged(format!("its JSON isn't LUKS2's: {e}")))?;
    let binary = Binary {
        uuid: text(&whole, 168, 40).parse().map_err(|_| damaged("its UUID is none"))?,
        label: text(&whole, 24, LABEL_BYTES),
        sequence: u64::from_be_bytes(array(&whole, 16)),
        copy_bytes,
    };
    Ok(Header { binary, metadata })
}

/// Zeros where there are no bytes.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    bytes.iter().skip(at).zip(&mut found).for_each(|(from, to)| *to = *from);
    found
}

fn text(bytes: &[u8], at: usize, length: usize) -> String {
    let field = bytes.iter().skip(at).take(length).copied().take_while(|byte| *byte != 0).collect::<Vec<_>>();
    String::from_utf8_lossy(&field).into_owned()
}

impl TryFrom<String> for SegmentSize {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "dynamic" { Ok(Self::Dynamic) } else { text.parse().map(Self::Bytes) }
    }
}

impl From<SegmentSize> for String {
    fn from(size: SegmentSize) -> Self {
        match size {
            SegmentSize::Dynamic => "dynamic".into(),
            SegmentSize::Bytes(bytes) => bytes.to_string(),
        }
    }
}

/// Numbers of 64 bits are texts, for JSON's own have 53.
mod decimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

mod base64 {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}
