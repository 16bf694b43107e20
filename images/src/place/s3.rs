//! A store in a bucket that speaks S3: Amazon's, or whatever runs in one's own racks.
//!
//! Nothing here replaces what it hasn't seen: a small file is made only if there is none, or in place of the very one that
//! was read. A large one is uploaded in parts, which nobody sees before the last of them is there and the hash of all of
//! them is right.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use drophammer_protocol::manifest::Pack;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::client::{HttpClient, HttpConnector};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, RetryConfig,
    StaticCredentialProvider, UpdateVersion,
};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::Trouble;
use super::body::{Body, client, runtime};
use crate::store::is_image;

/// Of an upload. A server that doesn't answer within this after a part was sent, or needs longer to take it, is tried again.
const SILENCE: Duration = Duration::from_secs(120);
/// The least that S3 takes is 5 MiB; the most is ten thousand parts.
const PART_BYTES: u64 = 8 << 20;
const MAX_PARTS: u64 = 10_000;
/// Parts that are in memory at once, of all uploads together.
const PARTS_AT_ONCE: usize = 8;
/// About six seconds against a server that refuses connections. Running the command again is no loss.
const RETRIES: usize = 6;

/// How a bucket is reached, beyond what the `AWS_*` variables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    /// URL of the service; Amazon's by default.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// A file of access keys as the tools of AWS read it.
    pub credentials: Option<PathBuf>,
}

#[derive(Debug)]
pub struct Bucket {
    store: AmazonS3,
    prefix: Path,
    url: String,
    runtime: Arc<Runtime>,
    parts: Arc<Semaphore>,
}

/// When a file is to be written.
#[derive(Clone, Debug)]
pub(crate) enum Put {
    IfMissing,
    /// In place of the one with this tag.
    InPlaceOf(String),
}

/// A small file with its tag.
#[derive(Clone, Debug)]
pub(crate) struct Tagged {
    pub(crate) bytes: Vec<u8>,
    pub(crate) tag: String,
}

impl Bucket {
    /// `text` is what follows `s3://`.
    pub(super) fn open(text: &str, options: &S3Options) -> Result<Self> {
        let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
        ensure!(!bucket.is_empty(), "s3://{text} names no bucket: give s3://BUCKET or s3://BUCKET/PREFIX");
        let prefix = Path::parse(prefix.trim_end_matches('/'))
            .map_err(|_| anyhow!("{prefix:?} isn't a prefix: names with one / between them"))?;
        let mut builder = AmazonS3Builder::from_env();
        if let Some(keys) = access_keys(options)? {
            // All three, or a token of the environment's would go with a key of the file's.
            let keys = AwsCredential { key_id: keys.id, secret_key: keys.secret, token: keys.token };
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(keys)));
        }
        if let Some(endpoint) = &options.endpoint {
            // The variable for S3 alone would go before the one for everything.
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        }
        builder = options.region.iter().fold(builder, AmazonS3Builder::with_region);
        let retry = RetryConfig { max_retries: RETRIES, ..RetryConfig::default() };
        let store = builder
            .with_bucket_name(bucket)
            .with_retry(retry)
            .with_http_connector(Connector)
            .build()
            .map_err(plain)
            .with_context(|| format!("setting up the way to s3://{text}"))?;
        let url = if prefix.is_root() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        Ok(Self { store, prefix, url, runtime: runtime()?, parts: Arc::new(Semaphore::new(PARTS_AT_ONCE)) })
    }

    fn key(&self, key: &str) -> Path {
        key.split('/').fold(self.prefix.clone(), Path::join)
    }

    pub(super) fn open_object(
        &self,
        key: &str,
        offset: u64,
        total: Option<u64>,
    ) -> Result<Option<Box<dyn Read + Send>>, Trouble> {
        let range = (offset > 0).then_some(GetRange::Offset(offset));
        let options = GetOptions { range, ..GetOptions::default() };
        // The library asks again by itself, and goes on where an answer broke off: whatever it reports is final.
        let found = match self.runtime.block_on(self.store.get_opts(&self.key(key), options)) {
            Err(Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(|e| Trouble::Final(plain(e)))?,
        };
        if let Some(total) = total.filter(|total| *total != found.meta.size) {
            let has = found.meta.size;
            return Err(Trouble::Final(anyhow!("the object there has {has} bytes, the manifest says {total}")));
        }
        let stream = found.into_stream().map(|part| part.map_err(plain)).boxed();
        Ok(Some(Box::new(Body::new(Arc::clone(&self.runtime), stream))))
    }

    /// A file of at most `limit` bytes, with what [`Put::InPlaceOf`] needs.
    pub(crate) fn tagged(&self, key: &str, limit: u64) -> Result<Option<Tagged>> {
        let failed = || format!("reading {}/{key}", self.url);
        self.runtime.block_on(async {
            let found = match self.store.get(&self.key(key)).await {
                Err(Error::NotFound { .. }) => return Ok(None),
                found => found.map_err(plain).with_context(failed)?,
            };
            ensure!(found.meta.size <= limit, "{}/{key} is larger than {limit} bytes", self.url);
            let tag = found.meta.e_tag.clone().unwrap_or_default();
            let bytes = found.bytes().await.map_err(plain).with_context(failed)?.to_vec();
            Ok(Some(Tagged { bytes, tag }))
        })
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<u64>> {
        match self.runtime.block_on(self.store.head(&self.key(key))) {
            Err(Error::NotFound { .. }) => Ok(None),
            found => Ok(Some(found.map_err(plain).with_context(|| format!("asking for {}/{key}", self.url))?.size)),
        }
    }

    /// Whether it was written: not if something was there already, or another than was said.
    pub(crate) fn put(&self, key: &str, bytes: &[u8], when: Put) -> Result<bool> {
        let mode = match when {
            Put::IfMissing => PutMode::Create,
            Put::InPlaceOf(tag) => PutMode::Update(UpdateVersion { e_tag: Some(tag), version: None }),
        };
        let payload = Bytes::copy_from_slice(bytes).into();
        match self.runtime.block_on(self.store.put_opts(&self.key(key), payload, mode.into())) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(plain(error)).with_context(|| format!("writing {}/{key}", self.url)),
        }
    }

    /// Uploads a pack from a file, which has to be what its hash says until the end. `progress` is told of each part that
    /// has arrived. May run several times at once.
    pub(crate) fn upload(&self, key: &str, file: &File, pack: &Pack, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
        self.runtime
            .block_on(self.upload_parts(&self.key(key), file, pack, progress))
            .with_context(|| format!("uploading {}/{key}", self.url))
    }

    async fn upload_parts(
        &self,
        key: &Path,
        mut file: &File,
        pack: &Pack,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let part_bytes = PART_BYTES.max(pack.bytes.div_ceil(MAX_PARTS));
        let mut hash = Sha256::new();
        let mut left = pack.bytes;
        let mut next = move || -> Result<Option<Bytes>> {
            let length = left.min(part_bytes);
            let mut part = vec![0; usize::try_from(length)?];
            file.read_exact(&mut part).context("reading the pack")?;
            hash.update(&part);
            left -= length;
            if left == 0 {
                let got = hex::encode(hash.clone().finalize());
                ensure!(got == pack.sha256, "the pack was altered meanwhile: its SHA-256 is {got} now");
            }
            Ok((length > 0).then(|| part.into()))
        };
        if pack.bytes <= part_bytes {
            let _room = self.parts.acquire().await;
            let all = next()?.unwrap_or_default();
            self.store.put(key, all.into()).await.map_err(plain)?;
            progress(pack.bytes);
            return Ok(());
        }
        let mut upload = self.store.put_multipart(key).await.map_err(plain)?;
        let mut sent = FuturesUnordered::new();
        let done = async {
            loop {
                let room = Arc::clone(&self.parts).acquire_owned();
                let room = tokio::select! {
                    room = room => room.context("waiting for room")?,
                    Some(part) = sent.next() => { arrived(part, progress)?; continue }
                };
                let Some(part) = next()? else { break };
                let (length, part) = (part.len() as u64, upload.put_part(part.into()));
                sent.push(tokio::spawn(async move {
                    let done = part.await;
                    drop(room);
                    done.map(|()| length)
                }));
            }
            while let Some(part) = sent.next().await {
                arrived(part, progress)?;
            }
            upload.complete().await.map_err(plain)
        }
        .await;
        let Err(error) = done else { return Ok(()) };
        sent.iter().for_each(tokio::task::JoinHandle::abort);
        // Nobody sees the parts, but they are paid for until the bucket's own rule removes them.
        match upload.abort().await {
            Ok(()) => Err(error),
            Err(_) => Err(error
                .context("its parts couldn't be taken back and stay, seen by nobody, until the bucket expires them")),
        }
    }

    /// What lies there itself, without what is below.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let found = self.runtime.block_on(self.store.list_with_delimiter(Some(&self.prefix)));
        let found = found.map_err(plain).with_context(|| format!("listing {}", self.url))?;
        Ok(found.objects.into_iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect())
    }

    pub(super) fn remove(&self, key: &str) -> Result<()> {
        let removed = self.runtime.block_on(self.store.delete(&self.key(key)));
        removed.map_err(plain).with_context(|| format!("removing {}/{key}", self.url))
    }

    pub(super) fn references(&self) -> Result<Vec<String>> {
        let directories = |prefix: Path| -> Result<Vec<(String, Path)>> {
            let found = self.runtime.block_on(self.store.list_with_delimiter(Some(&prefix)));
            let found = found.map_err(plain).with_context(|| format!("listing {}", self.url))?;
            let named = |path: Path| Some((path.filename()?.to_owned(), path.clone()));
            Ok(found.common_prefixes.into_iter().filter_map(named).collect())
        };
        let mut found = Vec::new();
        for (name, image) in directories(self.prefix.clone())? {
            if is_image(&name, "1") {
                let versions = directories(image)?.into_iter().filter(|(version, _)| is_image(&name, version));
                found.extend(versions.map(|(version, _)| format!("{name}/{version}")));
            }
        }
        Ok(found)
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

fn arrived(
    part: Result<object_store::Result<u64>, tokio::task::JoinError>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    progress(part.context("sending a part")?.map_err(plain)?);
    Ok(())
}

/// Its sources are in its text already.
fn plain(error: Error) -> anyhow::Error {
    anyhow!("{error}")
}

#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = client(SILENCE).map_err(|e| Error::Generic { store: "S3", source: e.into() })?;
        Ok(HttpClient::new(client))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

/// From a file, where one is named: by the option, or by the variable if there is no key in another one.
fn access_keys(options: &S3Options) -> Result<Option<Keys>> {
    let named =
        || std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").filter(|_| std::env::var_os("AWS_ACCESS_KEY_ID").is_none());
    let Some(path) = options.credentials.clone().or_else(|| named().map(PathBuf::from)) else { return Ok(None) };
    let profile = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".into());
    keys_of(&path, &profile).with_context(|| format!("reading {}", path.display())).map(Some)
}

fn keys_of(path: &FilePath, profile: &str) -> Result<Keys> {
    let text = fs::read_to_string(path)?;
    let mut inside = false;
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = section.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let value = Some(value.trim().to_owned());
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(Keys { id, secret, token }),
        _ => bail!("it has no aws_access_key_id with its aws_secret_access_key below [{profile}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_as_the_tools_of_aws_read_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("credentials");
        let keys = |id: &str, token: Option<&str>| {
            Some(Keys { id: id.into(), secret: "s".into(), token: token.map(str::to_owned) })
        };
        let two = "# c\n[default]\naws_access_key_id = A\naws_secret_access_key=s\n\n[other]\naws_access_key_id=B\n\
                   aws_secret_access_key=s\naws_session_token=t=\nregion=x\n";
        for (name, text, profile, want) in [
            ("the default", two, "default", keys("A", None)),
            ("another, with a token", two, "other", keys("B", Some("t="))),
            ("no such profile", two, "third", None),
            ("half a pair", "[default]\naws_access_key_id=A\n", "default", None),
            ("outside of every profile", "aws_access_key_id=A\naws_secret_access_key=s\n", "default", None),
            ("nothing", "", "default", None),
        ] {
            fs::write(&path, text).expect("written");
            assert_eq!(keys_of(&path, profile).ok(), want, "{name}");
        }
    }
}
