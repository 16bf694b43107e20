//! Where a store is: a directory, an S3-compatible bucket, or behind any HTTP server. All three are laid out alike, as
//! [`drophammer_protocol::manifest`] says, and none is trusted: what is read here is checked by whoever reads it.

mod body;
mod files;
mod s3;
mod web;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

pub use self::files::Files;
pub use self::s3::S3Options;
pub(crate) use self::s3::{Bucket, Put};
pub(crate) use self::web::Web;
use crate::store::{is_image, references};

#[derive(Debug)]
pub enum Place {
    Directory(PathBuf),
    S3(Box<Bucket>),
    Web(Web),
}

/// Why something couldn't be read.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Worth another try.
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

impl From<Trouble> for anyhow::Error {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Passing(cause) | Trouble::Final(cause) => cause,
        }
    }
}

impl Place {
    /// `s3://BUCKET/PREFIX`, `http://…`, `https://…`, or else a directory.
    pub fn parse(text: &str, options: &S3Options) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return Ok(Self::S3(Box::new(Bucket::open(rest, options)?)));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Web(Web::new(text)?));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            bail!("{text} can't be a store: {scheme} isn't among s3, http and https; a directory is given as a path");
        }
        Ok(Self::Directory(text.into()))
    }

    /// A file of at most `limit` bytes, or nothing if there is none of this name.
    pub(crate) fn small(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, Trouble> {
        let Some(body) = self.open(key, 0, None)? else { return Ok(None) };
        let mut bytes = Vec::new();
        body.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Trouble::Passing(e.into()))?;
        if bytes.len() as u64 > limit {
            return Err(Trouble::Final(anyhow::anyhow!("it is larger than {limit} bytes")));
        }
        Ok(Some(bytes))
    }

    /// A file from byte `offset` on, of which `total` is known to be the length if anything is.
    pub(crate) fn open(
        &self,
        key: &str,
        offset: u64,
        total: Option<u64>,
    ) -> Result<Option<Box<dyn Read + Send>>, Trouble> {
        match self {
            Self::Directory(dir) => match from_disk(&dir.join(key), offset, total) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                opened => opened.map(Some).map_err(|e| Trouble::Final(e.into())),
            },
            Self::S3(bucket) => bucket.open_object(key, offset, total),
            Self::Web(web) => web.open(key, offset, total),
        }
    }

    /// `name/version` of whatever may be an image, sorted.
    pub(crate) fn references(&self) -> Result<Vec<String>> {
        let mut found = match self {
            Self::Directory(dir) => references(dir)?,
            Self::S3(bucket) => bucket.references()?,
            Self::Web(_) => bail!(
                "{self} is behind a plain HTTP server, which can't list what it has: name the images to mirror, each as \
                 NAME/VERSION"
            ),
        };
        found.sort();
        Ok(found)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(dir) => dir.display().fmt(f),
            Self::S3(bucket) => bucket.fmt(f),
            Self::Web(web) => web.fmt(f),
        }
    }
}

/// `STORE/NAME/VERSION`, in a directory or a bucket, taken apart: what the store is called, and the image in it.
pub fn split_image(text: &str) -> Result<(String, String)> {
    let scheme = text.starts_with("s3://");
    // A directory may be given as `.` or by way of a link.
    let absolute = if scheme {
        text.trim_end_matches('/').to_owned()
    } else {
        let path = fs::canonicalize(text).with_context(|| format!("opening {text}"))?;
        path.into_os_string().into_string().ok().with_context(|| format!("{text} isn't a name in UTF-8"))?
    };
    let mut parts = absolute.rsplitn(3, '/');
    let (version, name, store) = (parts.next(), parts.next(), parts.next());
    let (Some(version), Some(name), Some(store)) = (version, name, store) else {
        bail!("{text} isn't an image in a store: give STORE/NAME/VERSION");
    };
    ensure!(
        is_image(name, version) && !(scheme && store.len() <= "s3://".len()),
        "{text} isn't an image in a store: give STORE/NAME/VERSION"
    );
    Ok((if store.is_empty() { "/".to_owned() } else { store.to_owned() }, format!("{name}/{version}")))
}

fn from_disk(path: &Path, offset: u64, total: Option<u64>) -> io::Result<Box<dyn Read + Send>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if let Some(total) = total.filter(|total| *total != length) {
        return Err(io::Error::other(format!("it has {length} bytes, the manifest says {total}")));
    }
    file.seek(SeekFrom::Start(offset))?;
    Ok(Box::new(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_place_is_called() {
        for (text, want) in [
            ("images", "images"),
            ("/srv/images", "/srv/images"),
            ("http://images.example/store/", "http://images.example/store"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("s3://", "names no bucket"),
            ("s3:///a", "names no bucket"),
            ("s3://bucket/a//b", "isn't a prefix"),
            ("ftp://host/x", "isn't among s3, http and https"),
        ] {
            let options = S3Options { region: Some("r".into()), ..S3Options::default() };
            let said = Place::parse(text, &options).map_or_else(|e| format!("{e:#}"), |place| place.to_string());
            assert!(said == want || said.contains(want) && want.contains(' '), "{text}: {said}");
        }
    }

    #[test]
    fn an_image_in_its_store() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = fs::canonicalize(dir.path()).expect("there").to_string_lossy().into_owned();
        fs::create_dir_all(dir.path().join("a/1")).expect("made");
        fs::create_dir_all(dir.path().join("packs/1")).expect("made");
        let ok = |store: &str, image: &str| Ok((store.to_owned(), image.to_owned()));
        for (text, want) in [
            (format!("{store}/a/1"), ok(&store, "a/1")),
            (format!("{store}/a/../a/1/"), ok(&store, "a/1")),
            ("s3://bucket/p/a/1".into(), ok("s3://bucket/p", "a/1")),
            ("s3://bucket/a/1/".into(), ok("s3://bucket", "a/1")),
            ("s3://a/1".into(), Err("give STORE/NAME/VERSION")),
            ("s3://bucket/packs/1".into(), Err("give STORE/NAME/VERSION")),
            (format!("{store}/packs/1"), Err("give STORE/NAME/VERSION")),
            (format!("{store}/a/2"), Err("opening")),
        ] {
            match (split_image(&text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(got), Err(want)) => assert!(format!("{got:#}").contains(want), "{text}: {got:#}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
    }
}
