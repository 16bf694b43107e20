//! Container images as the root of a machine: an OCI image layout (image-spec 1.1), a directory or a tar of one, becomes one
//! tar that is packed like any other.
//!
//! Nothing is believed that isn't hashed: every blob against its descriptor before it is unpacked, every layer again against
//! the config's `diff_ids` each time it is read. Layers are read twice, a member at a time: first their headers, from which
//! [`merge`] decides what is left of each once all are applied, then whatever is left is handed on. So what is held in memory
//! are names, never layers.

mod digest;
mod documents;
mod layout;
mod merge;
mod stream;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use self::digest::Hashed;
use self::documents::{Config, Descriptor, Documents, Index, Manifest};
pub(crate) use self::layout::{Layout, is_layout};
use self::stream::{Layer, Merged};

/// Indexes may hold indexes; nobody nests them deeper.
const MAX_DEPTH: usize = 4;

/// The root file system of the one image for this kind of machine that is called `tag`, or is alone, as a tar.
pub(crate) fn open(layout: Layout, tag: Option<&str>) -> Result<Merged> {
    let (manifest, config) = choose(&layout, tag)?;
    ensure!(
        manifest.layers.len() == config.rootfs.diff_ids.len(),
        "its manifest has {} layers and its config {}: they aren't of the same image",
        manifest.layers.len(),
        config.rootfs.diff_ids.len()
    );
    let mut layers = Vec::new();
    for (descriptor, diff_id) in manifest.layers.into_iter().zip(config.rootfs.diff_ids) {
        let compression = descriptor.compression()?;
        let blob = layout.blob(&descriptor)?;
        blob.check(&descriptor).with_context(|| format!("checking the layer {}", descriptor.digest))?;
        layers.push(Layer { blob, compression, digest: descriptor.digest, diff_id });
    }
    Merged::of(layers)
}

/// The manifest that is meant, and its config.
fn choose(layout: &Layout, tag: Option<&str>) -> Result<(Manifest, Config)> {
    let index = Index::parse(&layout.index()?).context("reading index.json")?;
    let all = index.tags();
    let named: Vec<Descriptor> =
        index.manifests.into_iter().filter(|d| tag.is_none_or(|tag| d.is_called(tag))).collect();
    if let (Some(tag), true) = (tag, named.is_empty()) {
        bail!("no image in it is called {tag:?}; there {}", are(&all));
    }
    let mut found: Vec<(Descriptor, Manifest, Config)> = Vec::new();
    let mut others = Vec::new();
    let mut todo: Vec<(usize, Descriptor)> = named.into_iter().rev().map(|descriptor| (0, descriptor)).collect();
    while let Some((depth, descriptor)) = todo.pop() {
        if descriptor.platform.as_ref().is_some_and(|platform| !platform.is_ours()) {
            others.extend(descriptor.platform.map(|platform| platform.to_string()));
            continue;
        }
        match descriptor.document()? {
            Documents::Index => {
                ensure!(depth < MAX_DEPTH, "its indexes are nested deeper than {MAX_DEPTH}");
                let nested = Index::parse(&layout.document(&descriptor)?)
                    .with_context(|| format!("reading the index {}", descriptor.digest))?;
                todo.extend(nested.manifests.into_iter().rev().map(|descriptor| (depth + 1, descriptor)));
            }
            Documents::Manifest if found.iter().any(|(known, ..)| known.digest == descriptor.digest) => {}
            Documents::Manifest => {
                let reading = || format!("reading the manifest {}", descriptor.digest);
                let manifest = Manifest::parse(&layout.document(&descriptor)?).with_context(reading)?;
                if manifest.is_artifact() {
                    continue;
                }
                let config = Config::parse(&layout.document(&manifest.config)?)
                    .with_context(|| format!("reading the config {}", manifest.config.digest))?;
                if config.platform().is_ours() {
                    found.push((descriptor, manifest, config));
                } else {
                    others.push(config.platform().to_string());
                }
            }
        }
    }
    match found.len() {
        0 if others.is_empty() => bail!("there is no image in it"),
        0 => bail!("it has no image for linux/amd64, but {}", others.join(", ")),
        1 => found.pop().map(|(_, manifest, config)| (manifest, config)).context("there is no image in it"),
        several => bail!(
            "it has {several} images for linux/amd64, and which is meant isn't known: say it with --tag; there {}",
            are(&all)
        ),
    }
}

fn are(tags: &[String]) -> String {
    match tags {
        [] => "are no names".to_owned(),
        [one] => format!("is {one}"),
        several => format!("are {}", several.join(", ")),
    }
}

/// Documents and names as strangers write them; and two halves of `bytes` as layers, of which comes a tar that can be packed
/// if they can be applied.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    documents::fuzz(bytes);
    merge::fuzz(bytes);
    let (lower, upper) = bytes.split_at(bytes.len() / 1024 * 512);
    if let Ok(mut merged) = merged(vec![lower.to_vec(), upper.to_vec()]) {
        let mut tar = Vec::new();
        // A hole is said and not sent, so what comes is about as much as what there was.
        std::io::Read::read_to_end(&mut merged, &mut tar).expect("what was applied can be read");
        crate::scan::Contents::read(&tar[..], |_, _| Ok(())).expect("what was applied can be packed");
    }
}

/// What the layers in `tars` make together, of which nobody has said what they hash to.
#[cfg(any(test, fuzzing))]
pub(crate) fn merged(tars: Vec<Vec<u8>>) -> Result<Merged> {
    let layer = |tar: Vec<u8>| {
        let diff_id = digest::Digest::sha256(&tar);
        Ok(Layer {
            blob: layout::Blob::holding(&tar)?,
            compression: documents::Compression::None,
            digest: diff_id.clone(),
            diff_id,
        })
    };
    Merged::of(tars.into_iter().map(layer).collect::<Result<_>>()?)
}

/// A directory that isn't a layout can't be packed as anything else.
pub(crate) fn open_directory(dir: &Path) -> Result<Layout> {
    ensure!(
        dir.join(layout::MARK).is_file(),
        "{} is a directory without a file {}, so it isn't an OCI image layout: pack a root file system as a tar",
        dir.display(),
        layout::MARK
    );
    Layout::directory(dir)
}

#[cfg(test)]
mod tests;
