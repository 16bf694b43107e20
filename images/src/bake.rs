//! Building a recipe: nothing is built twice while neither the recipe nor the archive changed, and a tar that exists is
//! complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::debian::{Apt, Package, Sources};
use crate::recipe::{Make, Recipe};
use crate::{cache, from_packages, mmdebstrap};

/// Part of every cache key: to be raised when the same recipe is to give another image.
const BUILDER: u32 = 2;

#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// A mirror of Debian, and after a space that of its security archive, instead of `$DROPHAMMER_MIRROR` or the host's.
    pub mirror: Option<String>,
    /// The date of every file, in seconds since 1970, instead of `$SOURCE_DATE_EPOCH` or the archive's.
    pub date: Option<u64>,
    /// Asks the archive for newer packages even if it was asked within a day.
    pub refresh: bool,
}

/// A root file system as a tar, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    pub tar: PathBuf,
    /// Kernel arguments of the recipe.
    pub cmdline: String,
    /// The date that every file of it has, in seconds since 1970.
    pub epoch: u64,
    pub packages: Vec<Package>,
    /// Whether it had been built before.
    pub cached: bool,
}

/// Makes `out` from `recipe`.
pub fn build(recipe: &Recipe, out: &Path, options: &BuildOptions) -> Result<Built> {
    let cached = bake(recipe, options).with_context(|| format!("building the image {}", recipe.name))?;
    let temporary = out.with_extension("part");
    fs::copy(&cached.tar, &temporary).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, out).with_context(|| format!("renaming {} to {}", temporary.display(), out.display()))?;
    Ok(Built { tar: out.to_owned(), ..cached })
}

/// Finds or makes it in the cache.
fn bake(recipe: &Recipe, options: &BuildOptions) -> Result<Built> {
    let started = Instant::now();
    let sources = match &options.mirror {
        Some(mirror) => Sources::at(Some(mirror), &recipe.suite)?,
        None => Sources::for_suite(&recipe.suite)?,
    };
    if sources.security.is_none() {
        tracing::warn!("no security archive is known here, so {} gets no updates newer than the release", recipe.name);
    }
    let images = cache::cache_dir()?.join("images");
    let _lock = cache::lock(&images.join(format!("{}.lock", recipe.name)))?;

    let apt = Apt::open(&sources)?;
    if options.refresh {
        apt.refresh()?;
    }
    let mut plan = Plan::new(recipe, &sources, &apt, options.date)?;
    let mut record = images.join(plan.file_name("json"));
    if let Some(built) = read_record(&record)? {
        tracing::info!("{} is built already: {}", recipe.name, built.tar.display());
        return Ok(built);
    }
    if !options.refresh {
        // It has to be built anyway, so let it be from what the archive has now.
        apt.refresh()?;
        plan = Plan::new(recipe, &sources, &apt, options.date)?;
        record = images.join(plan.file_name("json"));
        if let Some(built) = read_record(&record)? {
            return Ok(built);
        }
    }

    let work = tempfile::Builder::new().prefix("drophammer-build-").tempdir().context("making a work directory")?;
    let tar = images.join(plan.file_name("tar"));
    let part = images.join(plan.file_name("part"));
    tracing::info!("building {} from {} packages", recipe.name, plan.packages.len());
    match &recipe.make {
        Make::Packages { modules, busybox, take, .. } => {
            let contents = from_packages::Contents { kernel: &plan.kernel, modules, busybox: busybox.as_deref(), take };
            from_packages::make(recipe, &contents, &apt, plan.epoch, work.path(), &part)?;
        }
        Make::Mmdebstrap { packages, dpkg, run } => {
            // mmdebstrap brings its own apt; others may use ours meanwhile.
            drop(apt);
            let contents = mmdebstrap::Contents { packages, dpkg, run };
            mmdebstrap::make(recipe, &contents, &sources, plan.epoch, work.path(), &part)?;
        }
    }
    fs::rename(&part, &tar).with_context(|| format!("renaming {}", part.display()))?;
    forget(&images, &recipe.name, &tar)?;
    let built =
        Built { tar, cmdline: recipe.cmdline.clone(), epoch: plan.epoch, packages: plan.packages, cached: false };
    write_record(&record, &built)?;
    tracing::info!("built {} in {:.1} s", recipe.name, started.elapsed().as_secs_f64());
    Ok(built)
}

/// Everything that decides what the image will be.
struct Plan {
    key: String,
    name: String,
    epoch: u64,
    /// Only for images from single packages.
    kernel: String,
    packages: Vec<Package>,
}

impl Plan {
    fn new(recipe: &Recipe, sources: &Sources, apt: &Apt, date: Option<u64>) -> Result<Self> {
        let (kernel, packages) = match &recipe.make {
            Make::Packages { kernel, modules, busybox, take } => {
                let kernel = apt.resolve_kernel(kernel)?;
                let contents = from_packages::Contents { kernel: &kernel, modules, busybox: busybox.as_deref(), take };
                let packages = apt.candidates(&from_packages::packages(&contents))?;
                (kernel, packages)
            }
            Make::Mmdebstrap { packages, .. } => {
                // apt(8) patterns: what mmdebstrap's smallest variant starts from.
                let names: Vec<&str> =
                    ["?essential", "apt"].into_iter().chain(packages.iter().map(String::as_str)).collect();
                (String::new(), apt.closure(&names)?)
            }
        };
        // https://reproducible-builds.org/specs/source-date-epoch/
        let given = match std::env::var("SOURCE_DATE_EPOCH") {
            _ if date.is_some() => date,
            Ok(text) => {
                let seconds = text.parse::<u64>();
                Some(seconds.with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}, not a number of seconds"))?)
            }
            Err(_) => None,
        };
        let key = key(recipe, sources, given, &packages)?;
        let epoch = given.map_or_else(|| apt.date(), Ok)?;
        Ok(Self { key, name: recipe.name.clone(), epoch, kernel, packages })
    }

    fn file_name(&self, extension: &str) -> String {
        format!("{}-{}.{extension}", self.name, self.key)
    }
}

/// The archive's date isn't part of it: it changes several times a day, mostly for packages that aren't in the image.
fn key(recipe: &Recipe, sources: &Sources, epoch: Option<u64>, packages: &[Package]) -> Result<String> {
    let all = serde_json::to_vec(&(BUILDER, recipe, sources.lines(), epoch, packages)).context("naming the image")?;
    Ok(hex::encode(Sha256::digest(all))[..16].to_owned())
}

/// The record is written after the tar is complete; without a record there is no image.
fn read_record(path: &Path) -> Result<Option<Built>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
    };
    let built: Built = serde_json::from_slice(&text)
        .with_context(|| format!("reading {}: remove it to build the image again", path.display()))?;
    Ok(built.tar.exists().then_some(Built { cached: true, ..built }))
}

fn write_record(path: &Path, built: &Built) -> Result<()> {
    let part = path.with_extension("json-part");
    let text = serde_json::to_vec_pretty(built).context("describing the image")?;
    fs::write(&part, text).with_context(|| format!("writing {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("renaming {}", part.display()))
}

/// Earlier builds of the same recipe, finished or not: each is hundreds of megabytes that nobody asks for again.
fn forget(images: &Path, recipe: &str, kept: &Path) -> Result<()> {
    for entry in fs::read_dir(images).with_context(|| format!("reading {}", images.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if is_build_of(recipe, name) && path != kept {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn is_build_of(recipe: &str, file: &str) -> bool {
    let key = file.strip_prefix(recipe).and_then(|rest| rest.strip_prefix('-')).and_then(|rest| rest.split_once('.'));
    key.is_some_and(|(key, kind)| {
        key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit()) && matches!(kind, "tar" | "json" | "part")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_changes_with_what_the_image_is_made_of() -> Result<()> {
        let recipe = Recipe::load("tiny")?;
        let sources = Sources { suite: "bookworm".into(), archive: "http://a.example".into(), security: None };
        let package = |version: &str| Package {
            name: "busybox-static".into(),
            version: version.into(),
            sha256: "00".into(),
            file: "b.deb".into(),
        };
        let base = key(&recipe, &sources, None, &[package("1")])?;
        assert_eq!(key(&recipe, &sources, None, &[package("1")])?, base, "the same again");
        let other = Recipe { cmdline: "quiet".into(), ..recipe.clone() };
        let elsewhere = Sources { archive: "http://b.example".into(), ..sources.clone() };
        for (name, changed) in [
            ("recipe", key(&other, &sources, None, &[package("1")])?),
            ("archive", key(&recipe, &elsewhere, None, &[package("1")])?),
            ("date asked for", key(&recipe, &sources, Some(1), &[package("1")])?),
            ("package version", key(&recipe, &sources, None, &[package("2")])?),
        ] {
            assert_ne!(changed, base, "{name}");
        }
        Ok(())
    }

    #[test]
    fn only_builds_of_the_recipe_are_forgotten() {
        for (file, forgotten) in [
            ("debian-12-0123456789abcdef.tar", true),
            ("debian-12-0123456789abcdef.json", true),
            ("debian-12-0123456789abcdef.part", true),
            ("debian-12-gpu-0123456789abcdef.tar", false),
            ("debian-12.lock", false),
            ("tiny-0123456789abcdef.tar", false),
        ] {
            assert_eq!(is_build_of("debian-12", file), forgotten, "{file}");
        }
    }
}
