//! Images that others publish, as they are: fetched or found as a file, checked by the hash beside it, compiled once.
//!
//! What was checked by what is in the manifest that comes of it, because a hash from the server that the image is from says
//! less than a signature would, and MD5 less than SHA-256. Importing what is there already fetches nothing but the hash.

mod download;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::manifest::{Checked, Source, is_plain_name};
use drophammer_protocol::sign::PublicKey;
use ed25519_dalek::SigningKey;
use md5::Md5;
use reqwest::Url;
use sha2::{Digest, Sha256};

use self::download::{Http, Trouble};
use crate::verify::inspect;
use crate::{PackOptions, Packed, pack};

/// A file with a hash has a line for each of a directory's files at most.
const MAX_HASHES: u64 = 1 << 20;

/// What is to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub from: Origin,
    pub name: String,
    pub version: String,
    pub hash: Hash,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Url(Url),
    File(PathBuf),
}

/// By what it's checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// What whoever imports it knows.
    Sha256(String),
    /// What lies beside it: `.sha256`, or else `.md5`.
    Beside,
    /// Nothing.
    None,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Fetching {
        bytes: u64,
        /// If the server says it.
        of: Option<u64>,
    },
    Checking,
    /// In unpacked bytes of both forms.
    Packing {
        bytes: u64,
    },
}

impl Import {
    /// `from` as people write it. Where metal-stack publishes its images, the address says what they're called:
    /// `…/20250101/debian/12.1/img.tar.lz4` is debian-12, version 1.20250101, which metal-stack calls
    /// debian-12.1.20250101.
    pub fn new(from: &str, name: Option<&str>, version: Option<&str>, hash: Hash) -> Result<Self> {
        let from = Origin::parse(from)?;
        if let Hash::Sha256(hash) = &hash {
            ensure!(is_hex(hash, 64), "{hash:?} is not a SHA-256 in small hexadecimal digits");
        }
        let (its_name, its_version) = from.called();
        let missing = |what| {
            format!(
                "{from} doesn't say which {what} it is as metal-stack's images do (DATE/OS/VERSION/img.tar.lz4): say it"
            )
        };
        let name = name.map(str::to_owned).or(its_name).with_context(|| missing("image"))?;
        let version = version.map(str::to_owned).or(its_version).with_context(|| missing("version"))?;
        for part in [&name, &version] {
            ensure!(is_plain_name(part), "{part:?} can't be part of an image's reference");
        }
        Ok(Self { from, name, version, hash })
    }

    pub fn reference(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }
}

impl Origin {
    fn parse(text: &str) -> Result<Self> {
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let url: Url = text.parse().with_context(|| format!("understanding the address {text:?}"))?;
        if url.scheme() == "file" {
            let path = url.to_file_path().ok().with_context(|| format!("{url} is no file of this host"))?;
            return Ok(Self::File(path));
        }
        ensure!(matches!(url.scheme(), "http" | "https"), "{url} is neither http nor https");
        Ok(Self::Url(url))
    }

    /// Whatever may be shown to everybody: what is asked for beside the path may be a secret.
    fn shown(&self) -> String {
        match self {
            Self::File(path) => fs::canonicalize(path).unwrap_or_else(|_| path.clone()).display().to_string(),
            Self::Url(url) => {
                let mut url = url.clone();
                // They fail only where there can't be any.
                let _ = (url.set_username(""), url.set_password(None));
                url.set_query(None);
                url.set_fragment(None);
                url.to_string()
            }
        }
    }

    /// Name and version, as far as its place among metal-stack's images says them.
    fn called(&self) -> (Option<String>, Option<String>) {
        let path = match self {
            Self::Url(url) => url.path().to_owned(),
            Self::File(path) => path.to_string_lossy().into_owned(),
        };
        called(&path)
    }

    fn beside(&self, suffix: &str) -> Self {
        match self {
            Self::Url(url) => {
                let mut beside = url.clone();
                beside.set_path(&format!("{}{suffix}", url.path()));
                Self::Url(beside)
            }
            Self::File(path) => {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                Self::File(name.into())
            }
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

fn called(path: &str) -> (Option<String>, Option<String>) {
    let mut parts = path.rsplit('/');
    let (Some("img.tar.lz4"), Some(release), Some(os)) = (parts.next(), parts.next(), parts.next()) else {
        return (None, None);
    };
    let (major, minor) = match release.split_once('.') {
        Some((major, minor)) => (major, Some(minor)),
        None => (release, None),
    };
    let name = Some(format!("{os}-{major}")).filter(|name| !os.is_empty() && is_plain_name(name));
    // `stable` and pull requests change under the same address.
    let date = parts.next().filter(|date| date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit()));
    let version = date.map(|date| minor.map_or_else(|| date.to_owned(), |minor| format!("{minor}.{date}")));
    (name, version.filter(|version| is_plain_name(version)))
}

/// Fetches to a file in `downloads`, checks, compiles and publishes it in `store`, signed with `key`, unless it's there.
pub fn import(
    import: &Import,
    store: &Path,
    options: &PackOptions,
    key: &SigningKey,
    downloads: &Path,
    say: &(dyn Fn(Stage) + Sync),
) -> Result<Packed> {
    run(import, store, options, key, downloads, say)
        .with_context(|| format!("importing {} from {}", import.reference(), import.from))
}

fn run(
    import: &Import,
    store: &Path,
    options: &PackOptions,
    key: &SigningKey,
    downloads: &Path,
    say: &(dyn Fn(Stage) + Sync),
) -> Result<Packed> {
    let wanted = wanted(&import.from, &import.hash)?;
    let dir = store.join(&import.name).join(&import.version);
    if let Some(packed) = there(&dir, wanted.as_ref(), import, options, key)? {
        return Ok(packed);
    }
    let fetched;
    let path = match &import.from {
        Origin::File(path) => path,
        Origin::Url(url) => {
            let place = downloads.join(hex::encode(Sha256::digest(url.as_str())));
            fetched = Http::like(url)?.download(url, &place, &|bytes, of| say(Stage::Fetching { bytes, of }))?;
            &fetched.path
        }
    };
    say(Stage::Checking);
    let digest = hash_of(path, wanted.as_ref().map_or(Checked::Sha256, |wanted| wanted.checked))?;
    if let Some(wanted) = wanted.as_ref().filter(|wanted| wanted.digest != digest) {
        if let Origin::Url(_) = import.from {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        }
        bail!("it isn't what its publisher says: it hashes to {digest} instead of {}", wanted.digest);
    }
    let source = Source {
        url: import.from.shown(),
        checked: wanted.as_ref().map_or(Checked::Nothing, |wanted| wanted.checked),
        digest,
    };
    let options = PackOptions {
        name: import.name.clone(),
        version: import.version.clone(),
        source: Some(source),
        ..options.clone()
    };
    let so_far = AtomicU64::new(0);
    let progress = |bytes| say(Stage::Packing { bytes: so_far.fetch_add(bytes, Ordering::Relaxed) + bytes });
    let packed = pack(path, store, &options, key, &progress)?;
    if let Origin::Url(_) = import.from {
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(packed)
}

/// Whether it was imported before. Another image in its place is an error, and one that is found before anything is fetched.
fn there(
    dir: &Path,
    wanted: Option<&Wanted>,
    import: &Import,
    options: &PackOptions,
    key: &SigningKey,
) -> Result<Option<Packed>> {
    if !dir.exists() {
        return Ok(None);
    }
    let manifest = inspect(dir, &[PublicKey::of(key)])?;
    // Unless somebody says what it should be, only fetching it can tell.
    let Some(wanted) = wanted else { return Ok(None) };
    ensure!(
        (&manifest.boot.cmdline, manifest.expires, manifest.minimum)
            == (&options.cmdline, options.expires, options.minimum),
        "{} is published already, with other kernel arguments, another expiry or other needs: published versions never \
         change, so choose another version",
        manifest.reference()
    );
    match &manifest.source {
        Some(source) if (source.checked, &source.digest) == (wanted.checked, &wanted.digest) => {
            Ok(Some(Packed { dir: dir.to_owned(), manifest, existed: true, new_bytes: 0 }))
        }
        _ => bail!(
            "{} is published already and isn't what is at {} now: published versions never change, so choose another version",
            manifest.reference(),
            import.from
        ),
    }
}

struct Wanted {
    checked: Checked,
    digest: String,
}

/// What it has to hash to.
fn wanted(from: &Origin, hash: &Hash) -> Result<Option<Wanted>> {
    match hash {
        Hash::None => return Ok(None),
        Hash::Sha256(digest) => return Ok(Some(Wanted { checked: Checked::Sha256, digest: digest.clone() })),
        Hash::Beside => {}
    }
    for (suffix, checked, digits) in [(".sha256", Checked::Sha256, 64), (".md5", Checked::Md5, 32)] {
        let beside = from.beside(suffix);
        let text = match &beside {
            Origin::Url(url) => match Http::like(url)?.small(url, MAX_HASHES) {
                Ok(text) => text,
                Err(Trouble::NotThere) => continue,
                Err(trouble) => return Err(trouble.into_error()).with_context(|| format!("fetching {beside}")),
            },
            Origin::File(path) => match File::open(path) {
                Ok(file) => {
                    let mut text = Vec::new();
                    let read = file.take(MAX_HASHES).read_to_end(&mut text);
                    read.with_context(|| format!("reading {}", path.display()))?;
                    text
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).with_context(|| format!("opening {}", path.display())),
            },
        };
        let name = match from {
            Origin::Url(url) => url.path().rsplit('/').next().unwrap_or_default().to_owned(),
            Origin::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let digest = hash_in(&String::from_utf8_lossy(&text), &name, digits);
        let digest = digest.with_context(|| format!("{beside} has no hash of {name} with {digits} digits"))?;
        return Ok(Some(Wanted { checked, digest }));
    }
    bail!(
        "nothing says what it should hash to: neither {} nor {} is there; give its SHA-256 (--sha256), or have it taken as \
         it comes (--unchecked)",
        from.beside(".sha256"),
        from.beside(".md5")
    )
}

/// As md5sum and sha256sum write them, `hash  name`, or the hash alone.
fn hash_in(text: &str, name: &str, digits: usize) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let hash = words.next().map(str::to_ascii_lowercase).filter(|hash| is_hex(hash, digits))?;
        Some((hash, words.next().map(|name| name.trim_start_matches('*').trim_start_matches("./").to_owned())))
    });
    let first = lines.next()?;
    let mut all = std::iter::once(first.clone()).chain(lines);
    let named = all.find(|(_, of)| of.as_deref().and_then(|of| of.rsplit('/').next()) == Some(name));
    // A single one is of what it's beside, whatever that was called where it was made.
    let alone = text.lines().filter(|line| !line.trim().is_empty()).count() == 1;
    named.or_else(|| alone.then_some(first)).map(|(hash, _)| hash)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hash_of(path: &Path, checked: Checked) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let hashed = match checked {
        Checked::Md5 => {
            let mut hash = Md5::new();
            io::copy(&mut file, &mut hash).map(|_| hex::encode(hash.finalize()))
        }
        Checked::Sha256 | Checked::Nothing => {
            let mut hash = Sha256::new();
            io::copy(&mut file, &mut hash).map(|_| hex::encode(hash.finalize()))
        }
    };
    hashed.with_context(|| format!("reading {}", path.display()))
}

/// A name that somebody made up for an address, and the file with its hash.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let (name, version) = called(text);
    assert!(name.iter().chain(&version).all(|part| is_plain_name(part)), "{name:?} {version:?}");
    for digits in [32, 64] {
        assert!(hash_in(text, "img.tar.lz4", digits).is_none_or(|hash| is_hex(&hash, digits)));
    }
}

#[cfg(test)]
mod tests;
