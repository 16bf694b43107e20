//! What somebody published: believed by its signature, and brought here as it is.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use drophammer_control::unix_ms;
use drophammer_images::{Listener, Place, Problem, S3Options, Stage, inspect, mirror};
use tracing::{info, warn};

use crate::config::Settings;

/// Brings `image`, a `name/version` or a `name` for its newest, from a store. In words, what came of it.
pub(super) fn bring(store: &str, image: &str, settings: &Settings, say: &(dyn Fn(Stage) + Sync)) -> Result<String> {
    match fetch(store, image, settings, say) {
        Ok(words) => Ok(words),
        // A version never changes: one that is there needs nobody, as long as it isn't taken back.
        Err(error) if is_here(image, settings) && !is_revoked(&error) => {
            warn!(image, store, "it is here already, but the store couldn't be asked for news: {error:#}");
            Ok(format!("it is there; the store couldn't be asked for news: {error:#}"))
        }
        Err(error) => Err(error),
    }
}

fn fetch(store: &str, image: &str, settings: &Settings, say: &(dyn Fn(Stage) + Sync)) -> Result<String> {
    ensure!(
        !settings.image_keys.is_empty(),
        "this server trusts nobody's images: its configuration names no key in image_keys"
    );
    let place = Place::parse(store, &S3Options::default())?;
    let fetched = AtomicU64::new(0);
    let progress = |more| say(Stage::Fetching { bytes: fetched.fetch_add(more, Ordering::Relaxed) + more, of: None });
    let listener = Listener { progress: &progress, interrupted: &|said| warn!(image, "{said}") };
    let (to, now) = (&settings.images_dir, unix_ms() / 1000);
    let mirrored = mirror(&place, to, &[image.to_owned()], &settings.image_keys, now, listener)?;
    let mut brought = None;
    for one in mirrored {
        // The list of revoked images is one as well.
        let copied = one.result.with_context(|| format!("bringing {} from {place}", one.reference))?;
        if copied.fetched_bytes > 0 {
            info!(image = one.reference, bytes = copied.fetched_bytes, "brought from {place}");
        }
        brought = Some(one.reference);
    }
    match brought {
        Some(reference) if reference == image => Ok("it is there".into()),
        Some(reference) => Ok(format!("{reference} is there, the newest")),
        None => bail!("{place} has no {image}"),
    }
}

fn is_here(image: &str, settings: &Settings) -> bool {
    image.contains('/') && inspect(&settings.images_dir.join(image), &settings.image_keys).is_ok()
}

fn is_revoked(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Problem::Revoked(_))))
}
