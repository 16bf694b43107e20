//! What images look like to people.

use anyhow::{Result, bail, ensure};
use drophammer_images::{Change, Diff, Garbage, Kind, Stored};
use drophammer_protocol::api::ImageSummary;
use drophammer_protocol::manifest::{Checked, Chunk, Manifest};
use drophammer_protocol::revocation::Revoked;
use drophammer_protocol::sign::Verified;
use drophammer_protocol::words;
use serde::Serialize;

use crate::output;

#[derive(Debug, Serialize)]
pub(super) struct Inspected<'a> {
    #[serde(flatten)]
    pub(super) manifest: &'a Manifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revoked: Option<&'a Revoked>,
}

pub(super) fn describe(manifest: &Verified<Manifest>, revoked: Option<&Revoked>) -> String {
    let mut lines = vec![
        format!("{}: {}", manifest.reference(), manifest.description),
        format!("  for        {}, {} installed", manifest.arch, words::bytes(manifest.installed_bytes)),
        format!("  signed by  {}", manifest.signed_by()),
        format!("  made       {}", output::date(manifest.created * 1000)),
    ];
    if let Some(source) = &manifest.source {
        lines.push(format!("  from       {}", source.words()));
    }
    if let Some(minimum) = manifest.minimum {
        let parts = [(minimum.memory_bytes, "of memory"), (minimum.disk_bytes, "of disk")];
        let parts = parts.into_iter().filter_map(|(bytes, of)| Some(format!("{} {of}", words::bytes(bytes?))));
        lines.push(format!("  needs      {}", parts.collect::<Vec<_>>().join(" and ")));
    }
    if let Some(revoked) = revoked {
        lines.push(format!("  REVOKED    on {}: {}", output::date(revoked.at.saturating_mul(1000)), revoked.reason));
    }
    if let Some(expires) = manifest.expires {
        lines.push(format!("  until      {}", output::date(expires.saturating_sub(1) * 1000)));
    }
    let fetched = |chunks: &mut dyn Iterator<Item = &Chunk>| {
        let (number, bytes) = chunks.fold((0, 0), |(n, sum), chunk| (n + 1, sum + u64::from(chunk.length)));
        format!("{} in {}", words::bytes(bytes), words::count(number, "chunk"))
    };
    if let Some(form) = &manifest.block {
        let size = words::bytes(form.bytes);
        lines.push(format!("  as blocks  an ext4 of {size}, fetched as {}", fetched(&mut form.chunks())));
    }
    if let Some(form) = &manifest.tar {
        let size = words::bytes(form.bytes);
        lines.push(format!("  as a tar   of {size}, fetched as {}", fetched(&mut form.chunks.iter())));
    }
    for pack in &manifest.packs {
        lines.push(format!("  pack       {} ({})", pack.sha256, words::bytes(pack.bytes)));
    }
    let boot = &manifest.boot;
    lines.push(format!("  kernel     {}", boot.kernel.path));
    if let Some(initrd) = &boot.initrd {
        lines.push(format!("  initrd     {}", initrd.path));
    }
    lines.push(format!("  arguments  {}", boot.cmdline));
    if let Some(by) = boot.by {
        lines.push(format!("  started    by {}", by.name()));
    }
    let starts: Vec<&str> =
        [boot.bios.as_ref().map(|_| "BIOS"), boot.uefi.as_ref().map(|_| "UEFI")].into_iter().flatten().collect();
    lines.push(format!(
        "  starts on  {}",
        if starts.is_empty() { "nothing but kexec".to_owned() } else { starts.join(" and ") }
    ));
    if let Some(sbom) = &manifest.sbom {
        lines.push(format!("  packages   {} (SPDX)", sbom.file));
    }
    lines.join("\n")
}

pub(super) fn list_store(stored: &[Stored], json: bool) -> Result<()> {
    let mut trusted = Vec::new();
    let mut refused = Vec::new();
    for image in stored {
        match (&image.manifest, &image.revoked) {
            (Ok(_), Some(revoked)) => refused.push(format!("{}: revoked: {}", image.reference, revoked.reason)),
            (Ok(manifest), None) => trusted.push(ImageSummary::of(manifest)),
            (Err(problem), _) => refused.push(format!("{}: {problem}", image.reference)),
        }
    }
    list(&trusted, json)?;
    ensure!(refused.is_empty(), "images that aren't to be installed:\n  {}", refused.join("\n  "));
    if stored.is_empty() {
        bail!("the store has no images; `drophammer image pack` publishes one");
    }
    Ok(())
}

pub(super) fn list(images: &[ImageSummary], json: bool) -> Result<()> {
    if json {
        return output::json(images);
    }
    let row = |i: &ImageSummary| {
        let (download, installed) = (words::bytes(i.download_bytes), words::bytes(i.installed_bytes));
        let source = match i.source.as_ref().map(|source| source.checked) {
            None => "its builder",
            Some(Checked::Sha256) => "import, SHA-256",
            Some(Checked::Md5) => "import, weak (MD5)",
            Some(Checked::Nothing) => "import, unchecked",
        };
        let expires = i.expires.map(|seconds| output::date(seconds.saturating_mul(1000))).unwrap_or_default();
        let (image, class) = (format!("{}/{}", i.name, i.version), i.classification.name().to_owned());
        [image, download, installed, source.to_owned(), class, expires, i.description.clone()]
    };
    output::table(
        ["IMAGE", "DOWNLOAD", "INSTALLED", "SOURCE", "CLASS", "EXPIRES", "DESCRIPTION"],
        &images.iter().map(row).collect::<Vec<_>>(),
    )
}

pub(super) fn difference(diff: &Diff) -> String {
    let bytes = words::bytes;
    let chunks = &diff.chunks;
    let mut lines = vec![
        format!("{} → {}", diff.from, diff.to),
        format!(
            "  chunks     {} shared ({}), {} new ({})",
            chunks.shared,
            bytes(chunks.shared_bytes),
            chunks.new,
            bytes(chunks.new_bytes)
        ),
        format!("  packs      {} that a store with the first doesn't have", bytes(chunks.new_pack_bytes)),
    ];
    let value = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".into());
    let change = |c: &Change| format!("  {}: {} → {}", c.what, value(&c.from), value(&c.to));
    lines.extend(diff.changed.iter().map(change));
    match &diff.packages {
        None => lines.push("  packages   unknown: one of them has no list".into()),
        Some(packages) => {
            lines.extend(packages.added.iter().map(|package| format!("  + {} {}", package.name, package.version)));
            lines.extend(packages.removed.iter().map(|package| format!("  - {} {}", package.name, package.version)));
            lines.extend(packages.changed.iter().map(change));
        }
    }
    lines.join("\n")
}

pub(super) fn garbage(garbage: &[Garbage], dry_run: bool) -> String {
    let one = |g: &Garbage| {
        let why = match g.kind {
            Kind::Pack => "no image refers to it",
            Kind::Draft => "left by a publisher that was killed",
        };
        format!("{} ({}): {why}", g.path.display(), words::bytes(g.bytes))
    };
    let total = words::bytes(garbage.iter().map(|g| g.bytes).sum());
    let will = if dry_run { "would be removed" } else { "to be removed" };
    let mut lines: Vec<String> = garbage.iter().map(one).collect();
    lines.push(format!("{} with {total} {will}", words::count(garbage.len(), "file")));
    lines.join("\n")
}
