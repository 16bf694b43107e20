//! The JSON of an image: index, manifest and config, reduced to what is needed of them. What isn't known is ignored, as the
//! specification has it.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::Digest;

/// The specification asks for at least as much to be understood, and nobody writes more.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// No container has more: overlayfs, which they are made with, takes 500.
const MAX_LAYERS: usize = 4096;

const NAME: &str = "org.opencontainers.image.ref.name";
/// BuildKit and containerd put the whole name there.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Index {
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
    #[serde(default)]
    artifact_type: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    platform: Platform,
    pub(super) rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub(super) diff_ids: Vec<Digest>,
}

/// What a descriptor in an index is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Documents {
    Index,
    Manifest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Index {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        parse(json)
    }

    /// What images are called in it.
    pub(super) fn tags(&self) -> Vec<String> {
        self.manifests.iter().filter_map(|descriptor| descriptor.names().next().map(str::to_owned)).collect()
    }
}

impl Manifest {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let manifest: Self = parse(json)?;
        ensure!(manifest.layers.len() <= MAX_LAYERS, "it has {} layers, more than {MAX_LAYERS}", manifest.layers.len());
        Ok(manifest)
    }

    /// A signature, an SBOM or the like, which is kept in the place of an image.
    pub(super) fn is_artifact(&self) -> bool {
        let config = self.config.media_type.as_str();
        self.artifact_type.is_some()
            || !matches!(
                config,
                "" | "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
            )
    }
}

impl Config {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let config: Self = parse(json)?;
        let layers = config.rootfs.diff_ids.len();
        ensure!(layers <= MAX_LAYERS, "it has {layers} layers, more than {MAX_LAYERS}");
        Ok(config)
    }

    pub(super) fn platform(&self) -> &Platform {
        &self.platform
    }
}

impl Descriptor {
    /// `1.0`, or `registry.example/os:1.0` with the same end.
    pub(super) fn is_called(&self, tag: &str) -> bool {
        self.names().any(|name| name == tag || name.rsplit_once(':').is_some_and(|(_, end)| end == tag))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let annotations = self.annotations.as_ref();
        [NAME, CONTAINERD_NAME].into_iter().filter_map(move |key| annotations?.get(key).map(String::as_str))
    }

    pub(super) fn document(&self) -> Result<Documents> {
        Ok(match self.media_type.as_str() {
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                Documents::Index
            }
            "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
                Documents::Manifest
            }
            other => bail!("{} is of the media type {other:?}, which is neither an image nor an index", self.digest),
        })
    }

    pub(super) fn compression(&self) -> Result<Compression> {
        // Layers that were not to be passed on are so called; they are like any other once they are there.
        let kind = self.media_type.replace(".nondistributable.v1.", ".v1.");
        Ok(match kind.as_str() {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Compression::None
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Compression::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Compression::Zstd
            }
            _ => bail!(
                "the layer {} is of the media type {:?}; tars are understood, also with gzip or zstd",
                self.digest,
                self.media_type
            ),
        })
    }
}

impl Platform {
    /// The machines that images are for here.
    pub(super) fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    ensure!(json.len() as u64 <= MAX_BYTES, "it has more than {MAX_BYTES} bytes");
    serde_json::from_slice(json).context("understanding its JSON")
}

/// Whatever is in them, blobs are looked for among blobs.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let descriptors = [
        Index::parse(bytes).map(|index| index.manifests).unwrap_or_default(),
        Manifest::parse(bytes).map(|m| [vec![m.config], m.layers].concat()).unwrap_or_default(),
    ];
    let ids = Config::parse(bytes).map(|config| config.rootfs.diff_ids).unwrap_or_default();
    for descriptor in descriptors.iter().flatten() {
        let _ = (descriptor.document(), descriptor.compression(), descriptor.is_called("1"));
    }
    for digest in descriptors.iter().flatten().map(|d| &d.digest).chain(&ids) {
        let path = digest.path();
        let (dir, name) = path.rsplit_once('/').expect("a path in a directory");
        assert!(matches!(dir, "blobs/sha256" | "blobs/sha512"), "{path}");
        assert!(name.len() >= 64 && name.bytes().all(|b| b.is_ascii_hexdigit()), "{path}");
        assert_eq!(Digest::parse(&digest.to_string()).as_ref(), Some(digest));
    }
}
