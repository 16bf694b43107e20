//! What is different between two images: for whoever has to say what an update brings.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use drophammer_protocol::manifest::{BootFiles, Chunk, Manifest};
use drophammer_protocol::sign::PublicKey;
use serde::Serialize;

use crate::sbom;
use crate::verify::{attachment, inspect};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    pub from: String,
    pub to: String,
    pub chunks: Chunks,
    /// Absent where one of the images has no list of its packages.
    pub packages: Option<Packages>,
    /// Of what starts a machine and what is said of the image; only what differs.
    pub changed: Vec<Change>,
}

/// Of the second image, each counted once, however often it occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Chunks {
    pub shared: u64,
    pub shared_bytes: u64,
    pub new: u64,
    /// As they're fetched: what a machine that has the first image's chunks lacks.
    pub new_bytes: u64,
    /// Of packs that the first image doesn't refer to: what a store that has the first image lacks.
    pub new_pack_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Packages {
    pub added: Vec<Package>,
    pub removed: Vec<Package>,
    pub changed: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Package {
    pub name: String,
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub what: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

/// Compares the images in two directories, each signed by one of `trusted`. Chunks aren't looked at.
pub fn diff(from: &Path, to: &Path, trusted: &[PublicKey]) -> Result<Diff> {
    let (a, b) = (inspect(from, trusted)?, inspect(to, trusted)?);
    let packages = match (packages(from, &a)?, packages(to, &b)?) {
        (Some(a), Some(b)) => Some(compare_packages(&a, &b)),
        _ => None,
    };
    Ok(Diff {
        from: a.reference(),
        to: b.reference(),
        chunks: compare_chunks(&a, &b),
        packages,
        changed: compare_facts(&a, &b),
    })
}

fn packages(dir: &Path, manifest: &Manifest) -> Result<Option<Versions>> {
    let Some(sbom) = &manifest.sbom else { return Ok(None) };
    let text = attachment(dir, sbom)?;
    let listed = sbom::packages(&text).with_context(|| format!("reading {}", dir.join(&sbom.file).display()))?;
    let mut versions = Versions::new();
    for (name, version) in listed {
        versions.entry(name).or_default().insert(version);
    }
    Ok(Some(versions))
}

/// More than one of a name may be installed: of two architectures, or kernels.
type Versions = BTreeMap<String, BTreeSet<String>>;

fn compare_packages(a: &Versions, b: &Versions) -> Packages {
    let mut found = Packages::default();
    let none = BTreeSet::new();
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for name in names {
        let (before, after) = (a.get(name).unwrap_or(&none), b.get(name).unwrap_or(&none));
        let mut gone: Vec<String> = before.difference(after).cloned().collect();
        let mut come: Vec<String> = after.difference(before).cloned().collect();
        // One that was replaced by one is the same package still.
        if let ([from], [to]) = (gone.as_slice(), come.as_slice()) {
            found.changed.push(Change { what: name.clone(), from: Some(from.clone()), to: Some(to.clone()) });
            continue;
        }
        let package = |version| Package { name: name.clone(), version };
        found.removed.extend(gone.drain(..).map(package));
        found.added.extend(come.drain(..).map(package));
    }
    found
}

fn compare_chunks(a: &Manifest, b: &Manifest) -> Chunks {
    fn distinct(manifest: &Manifest) -> HashMap<&str, &Chunk> {
        manifest.chunks().map(|chunk| (chunk.content_sha256.as_str(), chunk)).collect()
    }
    let (before, after) = (distinct(a), distinct(b));
    let packs = b.packs.iter().filter(|pack| !a.packs.contains(pack));
    let mut found =
        Chunks { shared: 0, shared_bytes: 0, new: 0, new_bytes: 0, new_pack_bytes: packs.map(|pack| pack.bytes).sum() };
    for (content, chunk) in after {
        let (number, bytes) = match before.contains_key(content) {
            true => (&mut found.shared, &mut found.shared_bytes),
            false => (&mut found.new, &mut found.new_bytes),
        };
        *number += 1;
        *bytes += u64::from(chunk.length);
    }
    found
}

fn compare_facts(a: &Manifest, b: &Manifest) -> Vec<Change> {
    let (before, after) = (facts(a), facts(b));
    let differ = before.into_iter().zip(after).filter(|((_, from), (_, to))| from != to);
    differ.map(|((what, from), (_, to))| Change { what: what.to_owned(), from, to }).collect()
}

/// Always the same ones in the same order.
fn facts(manifest: &Manifest) -> Vec<(&'static str, Option<String>)> {
    let BootFiles { kernel, initrd, cmdline, bios, uefi, by } = &manifest.boot;
    let file = |file: &drophammer_protocol::manifest::ImageFile| format!("{} ({})", file.path, file.sha256);
    vec![
        ("kernel", Some(file(kernel))),
        ("initrd", initrd.as_ref().map(file)),
        ("arguments", Some(cmdline.clone())),
        ("BIOS boot.img", bios.as_ref().map(|bios| file(&bios.boot_img))),
        ("BIOS core.img", bios.as_ref().map(|bios| file(&bios.core_img))),
        ("UEFI program", uefi.as_ref().map(file)),
        ("first start", by.map(|by| by.name().to_owned())),
        ("description", Some(manifest.description.clone())),
        ("architecture", Some(manifest.arch.clone())),
        ("last day", manifest.expires.map(last_day)),
        ("source", manifest.source.as_ref().map(drophammer_protocol::manifest::Source::words)),
        ("block form", manifest.block.as_ref().map(|form| form.sha256.clone())),
        ("tar form", manifest.tar.as_ref().map(|form| form.sha256.clone())),
    ]
}

fn last_day(expires: u64) -> String {
    let last = i64::try_from(expires.saturating_sub(1)).ok();
    let last = last.and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    last.map_or_else(|| "never".to_owned(), |time| time.date().to_string())
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::fixtures::{chunk, manifest};
    use drophammer_protocol::manifest::{ImageFile, Pack, TarForm};

    use super::*;

    #[test]
    fn packages_that_came_went_and_changed() {
        let versions = |list: &[(&str, &str)]| {
            let mut versions = Versions::new();
            for (name, version) in list {
                versions.entry((*name).into()).or_default().insert((*version).into());
            }
            versions
        };
        let texts = |found: &Packages| {
            let package = |sign: &str, p: &Package| format!("{sign}{} {}", p.name, p.version);
            let change = |c: &Change| {
                format!("~{} {} {}", c.what, c.from.as_deref().unwrap_or("-"), c.to.as_deref().unwrap_or("-"))
            };
            let added = found.added.iter().map(|p| package("+", p));
            let removed = found.removed.iter().map(|p| package("-", p));
            added.chain(removed).chain(found.changed.iter().map(change)).collect::<Vec<_>>()
        };
        for (name, a, b, want) in [
            ("the same", vec![("a", "1")], vec![("a", "1")], vec![]),
            ("newer", vec![("a", "1")], vec![("a", "2")], vec!["~a 1 2"]),
            ("come", vec![], vec![("a", "2")], vec!["+a 2"]),
            ("gone", vec![("a", "1")], vec![], vec!["-a 1"]),
            ("one of two newer", vec![("k", "1"), ("k", "2")], vec![("k", "2"), ("k", "3")], vec!["~k 1 3"]),
            ("one more", vec![("k", "1")], vec![("k", "1"), ("k", "2")], vec!["+k 2"]),
            ("all other", vec![("k", "1"), ("k", "2")], vec![("k", "3")], vec!["+k 3", "-k 1", "-k 2"]),
        ] {
            assert_eq!(texts(&compare_packages(&versions(&a), &versions(&b))), want, "{name}");
        }
    }

    #[test]
    fn what_is_shared_and_what_starts_it() {
        let with = |contents: &[(&str, u32)], pack: &str| {
            let chunks = contents
                .iter()
                .map(|(content, length)| Chunk { content_sha256: content.repeat(64), ..chunk(0, *length, 100) });
            let tar = TarForm { bytes: 0, sha256: "a".repeat(64), chunks: chunks.collect() };
            let packs = vec![Pack { sha256: pack.repeat(64), bytes: 7 }];
            Manifest { tar: Some(tar), packs, ..manifest("a", "1") }
        };
        let a = with(&[("1", 10), ("2", 20)], "a");
        let mut b = with(&[("2", 20), ("2", 20), ("3", 30)], "b");
        let want = Chunks { shared: 1, shared_bytes: 20, new: 1, new_bytes: 30, new_pack_bytes: 7 };
        assert_eq!(compare_chunks(&a, &b), want);
        assert_eq!(compare_facts(&a, &a), []);
        b.boot.cmdline = "quiet".into();
        b.boot.initrd = Some(ImageFile { path: "/initrd".into(), sha256: "f".into() });
        b.expires = Some(1_700_006_400);
        let changed = compare_facts(&a, &b);
        let names: Vec<&str> = changed.iter().map(|change| change.what.as_str()).collect();
        assert_eq!(names, ["initrd", "arguments", "last day"]);
        assert_eq!(changed[2].to.as_deref(), Some("2023-11-14"));
    }
}
