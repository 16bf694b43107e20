//! Paths and bodies. Handlers here read a request, ask [`Control`] and write the answer; every error is a [`Problem`].

mod agents;
mod boot_servers;
mod operators;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use drophammer_protocol::api::Problem;
use drophammer_protocol::id::MachineId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::Control;
use crate::denied::Denied;

/// Who waits longer asks again; that keeps connections from outliving both ends' patience.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Self::Refused { status, detail } => (status, detail),
            Self::Broken(error) => {
                tracing::error!("answering a request: {error:#}");
                (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
            }
        };
        let title = status.canonical_reason().unwrap_or("refused").to_owned();
        let mut answer = (status, axum::Json(Problem { status: status.as_u16(), title, detail })).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }
}

/// Does what waits for the disk where waiting holds nobody up.
async fn off_thread<R: Send + 'static>(
    control: &Control,
    work: impl FnOnce(&Control) -> Result<R, Denied> + Send + 'static,
) -> Result<R, Denied> {
    let control = control.clone();
    match tokio::task::spawn_blocking(move || work(&control)).await {
        Ok(result) => result,
        Err(e) => Err(Denied::Broken(anyhow::Error::new(e).context("working on a request"))),
    }
}

/// Asks until there is something, for as long as the caller wants to wait. Looks again whenever there is news of the
/// machine.
async fn wait_for<R: Send + 'static>(
    control: &Control,
    machine: MachineId,
    wait: u64,
    ask: impl Fn(&Control) -> Result<Option<R>, Denied> + Clone + Send + 'static,
) -> Result<Option<R>, Denied> {
    let deadline = Instant::now() + Duration::from_secs(wait).min(MAX_WAIT);
    loop {
        let news = control.inner.wakes.of(machine);
        let mut news = std::pin::pin!(news.notified());
        news.as_mut().enable();
        let ask = ask.clone();
        if let Some(found) = off_thread(control, move |c| ask(c)).await? {
            return Ok(Some(found));
        }
        if timeout_at(deadline, news).await.is_err() {
            return Ok(None);
        }
    }
}

async fn nothing_here() -> Denied {
    Denied::new(StatusCode::NOT_FOUND, "there is nothing at this path")
}

async fn not_this_way() -> Denied {
    Denied::new(StatusCode::METHOD_NOT_ALLOWED, "this path doesn't take this method")
}

/// `Authorization: Bearer …`
#[derive(Clone)]
struct Bearer(String);

fn bearer(parts: &Parts) -> Result<Bearer, Denied> {
    let value = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let split = value.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match split {
        Some((_, token)) => Ok(Bearer(token.trim().to_owned())),
        None => Err(Denied::stranger("this path needs a bearer token in the Authorization header")),
    }
}

impl<S: Sync> FromRequestParts<S> for Bearer {
    type Rejection = Denied;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Denied> {
        bearer(parts)
    }
}

/// A JSON body; how large it may be is said where the route is.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Denied;
    async fn from_request(request: Request, state: &S) -> Result<Self, Denied> {
        let bytes = Bytes::from_request(request, state).await.map_err(|e| Denied::new(e.status(), e.body_text()))?;
        match serde_json::from_slice(&bytes) {
            Ok(body) => Ok(Self(body)),
            Err(e) => Err(Denied::new(StatusCode::BAD_REQUEST, format!("the request's body isn't understood: {e}"))),
        }
    }
}

/// `?after=&wait=`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Waiting {
    #[serde(default)]
    after: u64,
    /// Seconds.
    #[serde(default)]
    wait: u64,
}

impl<S: Sync> FromRequestParts<S> for Waiting {
    type Rejection = Denied;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Denied> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(waiting)) => Ok(waiting),
            Err(e) => Err(unclear_query(&e)),
        }
    }
}

fn unclear_query(why: &QueryRejection) -> Denied {
    Denied::new(StatusCode::BAD_REQUEST, format!("the query isn't understood: {}", why.body_text()))
}

/// The part of the path that says which one.
struct Which<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Which<T> {
    type Rejection = Denied;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Denied> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        match path {
            Ok(Path(which)) => Ok(Self(which)),
            Err(e) => {
                Err(Denied::new(StatusCode::BAD_REQUEST, format!("the path isn't understood: {}", e.body_text())))
            }
        }
    }
}
