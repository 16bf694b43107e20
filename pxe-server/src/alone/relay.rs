//! What machines say to the control API goes through here, so that their network needs no route to it. So do images that
//! this boot server hasn't got; it keeps them then, for when the control API is gone.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::any;
use drophammer_protocol::api::{AGENT_ENROL, IMAGES};
use drophammer_protocol::manifest::{self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, PACKS};
use drophammer_protocol::sign::{PublicKey, Verified};
use futures_util::StreamExt;
use reqwest::Method;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::Alone;
use crate::http::refuse;

/// Agents wait this long for orders, and a little for the way.
const LONGEST: Duration = Duration::from_secs(90);
/// For the reports without which the control API doesn't know an agent's ticket.
const CATCH_UP: Duration = Duration::from_secs(5);
/// For one file of an image.
const IMAGE: Duration = Duration::from_secs(600);

/// What agents talk to, for HTTPS.
pub(crate) fn router(alone: Arc<Alone>) -> Router {
    Router::new()
        .route("/agent/{*rest}", any(carry))
        .fallback(async || {
            refuse(
                StatusCode::NOT_FOUND,
                "there is nothing at this path: this boot server is alone, operators talk to the control API",
            )
        })
        .with_state(alone)
}

async fn carry(State(alone): State<Arc<Alone>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or(parts.uri.path(), |both| both.as_str());
    if parts.uri.path() == AGENT_ENROL && !alone.caught_up(CATCH_UP).await {
        return unanswered(&alone, "it doesn't know of this boot yet");
    }
    let request = match alone.link.request(parts.method.clone(), "/agent", target) {
        Ok(request) => request.timeout(LONGEST).body(reqwest::Body::wrap_stream(body.into_data_stream())),
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format_args!("{error:#}")),
    };
    pass_on(&alone, with_headers(request, &parts.headers, &[header::AUTHORIZATION, header::CONTENT_TYPE])).await
}

async fn pass_on(alone: &Alone, request: reqwest::RequestBuilder) -> Response {
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => return unanswered(alone, &format!("{:#}", anyhow::Error::new(error.without_url()))),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    for name in [
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::ACCEPT_RANGES,
        header::ETAG,
        header::LAST_MODIFIED,
    ] {
        if let Some(value) = answer.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    response
}

fn with_headers(
    mut request: reqwest::RequestBuilder,
    from: &HeaderMap,
    names: &[header::HeaderName],
) -> reqwest::RequestBuilder {
    for name in names {
        if let Some(value) = from.get(name) {
            request = request.header(name, value);
        }
    }
    request
}

fn unanswered(alone: &Alone, why: &str) -> Response {
    let at = alone.link.base();
    refuse(
        StatusCode::SERVICE_UNAVAILABLE,
        format_args!(
            "this boot server carries calls to the control API at {at}, which doesn't answer: {why}; ask again"
        ),
    )
}

impl Alone {
    /// A file of an image that isn't here. The whole image is got behind its manifest, for the next machine.
    pub(crate) async fn image(self: &Arc<Self>, images_dir: &Path, path: &str, headers: &HeaderMap) -> Response {
        let request = match self.link.request(Method::GET, IMAGES, &format!("{IMAGES}/{path}")) {
            Ok(request) => request.timeout(IMAGE),
            Err(error) => return refuse(StatusCode::BAD_REQUEST, format_args!("{error:#}")),
        };
        let wanted = [header::RANGE, header::IF_RANGE, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
        let answer = pass_on(self, with_headers(request, headers, &wanted)).await;
        let reference = path.strip_suffix(MANIFEST_FILE).and_then(|path| path.strip_suffix('/')).map(str::to_owned);
        if answer.status().is_success()
            && let Some(reference) = reference
        {
            let (alone, images_dir) = (Arc::clone(self), images_dir.to_owned());
            tokio::spawn(async move {
                if !alone.fetching().insert(reference.clone()) {
                    return;
                }
                match alone.keep_image(&images_dir, &reference).await {
                    Ok(()) => tracing::info!(image = reference, "an image is here now"),
                    Err(error) => tracing::warn!(image = reference, "an image couldn't be kept here: {error:#}"),
                }
                alone.fetching().remove(&reference);
            });
        }
        answer
    }

    fn fetching(&self) -> MutexGuard<'_, HashSet<String>> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_keys(&self) -> Vec<PublicKey> {
        self.membership().briefing.as_ref().map(|briefing| briefing.image_keys.clone()).unwrap_or_default()
    }

    async fn keep_image(&self, images_dir: &Path, reference: &str) -> Result<()> {
        let place = images_dir.join(reference);
        if place.exists() {
            return Ok(());
        }
        // A store of its own, hidden from everybody until the image in it is whole. Packs that are here already needn't
        // come again.
        let staging = images_dir.join(".fetching").join(reference.replace('/', "@"));
        let clear = || match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", staging.display()))
            }
            _ => Ok(()),
        };
        clear()?;
        let done = async {
            let manifest = self.fetch_image(images_dir, reference, &staging).await?;
            let (staging, images_dir, reference) = (staging.clone(), images_dir.to_owned(), reference.to_owned());
            let keys = self.image_keys();
            tokio::task::spawn_blocking(move || publish(&staging, &images_dir, &reference, &manifest, &keys)).await?
        };
        done.await.and(clear())
    }

    async fn fetch_image(&self, images_dir: &Path, reference: &str, staging: &Path) -> Result<Verified<Manifest>> {
        let (dir, packs) = (staging.join(reference), staging.join(PACKS));
        for dir in [&dir, &packs] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let path = dir.join(MANIFEST_FILE);
        self.fetch(&format!("{IMAGES}/{reference}/{MANIFEST_FILE}"), &path, MAX_MANIFEST_BYTES).await?;
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let manifest = manifest::open(&text, &self.image_keys()).context("believing the image's manifest")?;
        if let Some(sbom) = &manifest.sbom {
            self.fetch(&format!("{IMAGES}/{reference}/{}", sbom.file), &dir.join(&sbom.file), sbom.bytes).await?;
        }
        for pack in &manifest.packs {
            let (here, coming) = (images_dir.join(PACKS).join(&pack.sha256), packs.join(&pack.sha256));
            if here.exists() {
                // Another name for the same file, so that the image can be checked as a whole.
                fs::hard_link(&here, &coming).with_context(|| format!("linking {}", coming.display()))?;
            } else {
                self.fetch(&format!("{IMAGES}/{PACKS}/{}", pack.sha256), &coming, pack.bytes).await?;
            }
        }
        Ok(manifest)
    }

    async fn fetch(&self, path: &str, to: &Path, most: u64) -> Result<()> {
        let answer = self.link.request(Method::GET, IMAGES, path)?.timeout(IMAGE).send().await?.error_for_status()?;
        let mut file = File::create(to).await.with_context(|| format!("making {}", to.display()))?;
        let mut bytes = 0;
        let mut stream = answer.bytes_stream();
        while let Some(part) = stream.next().await {
            let part = part.with_context(|| format!("fetching {path}"))?;
            bytes += part.len() as u64;
            ensure!(bytes <= most, "{path} has more than the {most} bytes that it should have");
            file.write_all(&part).await.with_context(|| format!("writing {}", to.display()))?;
        }
        file.sync_all().await.with_context(|| format!("writing {}", to.display()))
    }
}

fn publish(staging: &Path, images_dir: &Path, reference: &str, manifest: &Manifest, keys: &[PublicKey]) -> Result<()> {
    drophammer_images::verify(&staging.join(reference), keys).context("checking the image")?;
    let place = images_dir.join(reference);
    let parent = place.parent().context("an image has a directory of its own")?;
    let packs = images_dir.join(PACKS);
    for dir in [parent, &packs] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let moved = |from: &Path, to: &Path| {
        fs::rename(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))
    };
    for pack in &manifest.packs {
        moved(&staging.join(PACKS).join(&pack.sha256), &packs.join(&pack.sha256))?;
    }
    moved(&staging.join(reference), &place)?;
    for dir in [parent, &packs] {
        fs::File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", dir.display()))?;
    }
    Ok(())
}
