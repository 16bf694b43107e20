//! A place for files that aren't images, each under a plain name: a directory, or an S3-compatible bucket.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::manifest::Pack;
use sha2::{Digest, Sha256};

use super::{Bucket, Place, S3Options, Trouble};

#[derive(Debug)]
pub enum Files {
    Directory(PathBuf),
    S3(Box<Bucket>),
}

impl Files {
    /// `s3://BUCKET/PREFIX`, or else a directory, which is made when it's needed.
    pub fn parse(text: &str, options: &S3Options) -> Result<Self> {
        match Place::parse(text, options)? {
            Place::Directory(dir) => Ok(Self::Directory(dir)),
            Place::S3(bucket) => Ok(Self::S3(bucket)),
            Place::Web(_) => bail!("{text} can't be written to: give a directory or s3://BUCKET/PREFIX"),
        }
    }

    /// Has a copy of the file by this name, all of it or none, readable by nobody else.
    pub fn put(&self, name: &str, from: &Path) -> Result<()> {
        ensure!(is_plain(name), "{name:?} is no name for a file");
        let mut file = File::open(from).with_context(|| format!("opening {}", from.display()))?;
        match self {
            Self::Directory(dir) => copy(&mut file, dir, name).with_context(|| format!("writing {}", self.at(name))),
            Self::S3(bucket) => {
                let mut hash = Sha256::new();
                let bytes = io::copy(&mut file, &mut hash).context("reading what is to be uploaded")?;
                file.rewind()?;
                let pack = Pack { sha256: hex::encode(hash.finalize()), bytes };
                bucket.upload(name, &file, &pack, &|_| {})
            }
        }
    }

    /// What is there, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = match self {
            Self::Directory(dir) => match fs::read_dir(dir) {
                Err(e) if e.kind() == ErrorKind::NotFound => vec![],
                entries => {
                    let names = entries.and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
                    let names: Vec<_> = names.with_context(|| format!("listing {}", dir.display()))?;
                    names.into_iter().filter_map(|name| name.into_string().ok()).collect()
                }
            },
            Self::S3(bucket) => bucket.names()?,
        };
        names.retain(|name| is_plain(name));
        names.sort();
        Ok(names)
    }

    pub fn open(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        let opened = match self {
            Self::Directory(dir) => match File::open(dir.join(name)) {
                Ok(file) => Ok(Some(Box::new(file) as Box<dyn Read + Send>)),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Trouble::Final(e.into())),
            },
            Self::S3(bucket) => bucket.open_object(name, 0, None),
        };
        let opened = opened.map_err(anyhow::Error::from).with_context(|| format!("opening {}", self.at(name)))?;
        opened.with_context(|| format!("there is no {}", self.at(name)))
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        ensure!(is_plain(name), "{name:?} is no name for a file");
        match self {
            Self::Directory(dir) => {
                fs::remove_file(dir.join(name)).with_context(|| format!("removing {}", self.at(name)))
            }
            Self::S3(bucket) => bucket.remove(name),
        }
    }

    /// Where a file of this name is.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.to_string().trim_end_matches('/'))
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => dir.display().fmt(f),
            Self::S3(bucket) => bucket.fmt(f),
        }
    }
}

/// Nothing hidden, nothing elsewhere.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

fn copy(from: &mut File, dir: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(dir)?;
    let (part, path) = (dir.join(format!(".{name}.part")), dir.join(name));
    let mut write = || -> io::Result<()> {
        let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        io::copy(from, &mut to)?;
        to.sync_all()?;
        fs::rename(&part, &path)?;
        File::open(dir)?.sync_all()
    };
    let done = write();
    if done.is_err() {
        // What is wrong is said; what stays is hidden, and goes with the next of its name.
        let _ = fs::remove_file(&part);
    }
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::{BUCKET, S3};

    #[test]
    fn what_is_put_is_there_until_it_is_removed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let server = S3::start();
        let directory = dir.path().join("new/files").display().to_string();
        for text in [directory, format!("s3://{BUCKET}/some/files")] {
            let files = Files::parse(&text, &server.options(server.address))?;
            assert!(files.names()?.is_empty(), "{text}");
            // In one piece, and in several.
            for (name, bytes) in [("b", 3_usize), ("a", 20 << 20)] {
                let from = dir.path().join(name);
                fs::write(&from, vec![7; bytes])?;
                files.put(name, &from)?;
                let mut content = Vec::new();
                files.open(name)?.read_to_end(&mut content)?;
                assert!(content == vec![7; bytes], "{text}: {name}");
            }
            assert_eq!(files.names()?, ["a", "b"], "{text}");
            files.remove("a")?;
            assert_eq!(files.names()?, ["b"], "{text}");
            let why = format!("{:#}", files.open("a").map(drop).expect_err("was removed"));
            assert!(why.contains(&format!("there is no {text}/a")), "{why}");
            for name in ["", "../b", ".b", "c/d"] {
                files.put(name, &dir.path().join("b")).expect_err(name);
                files.remove(name).expect_err(name);
            }
        }
        Files::parse("https://localhost/files", &S3Options::default()).expect_err("is only read");
        Ok(())
    }
}
