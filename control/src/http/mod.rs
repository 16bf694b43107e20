//! Paths and bodies. Handlers here read a request, ask [`Control`] and write the answer; every error is a [`Problem`].

mod agents;
mod backup;
mod boot_servers;
mod bulk;
mod describe;
mod documents;
pub(crate) mod once;
mod operators;
mod watch;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use drophammer_protocol::api::{FieldError, Page, Problem};
use drophammer_protocol::faults::Fault;
use drophammer_protocol::id::MachineId;
use drophammer_protocol::machine::{State, TakeBack};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::Control;
use crate::denied::Denied;
use crate::store::etcd::Unanswered;

/// Of operators: an allocation with its SSH keys and user-data.
const BODY: usize = 512 << 10;
/// Who waits longer asks again; that keeps connections from outliving both ends' patience.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let (status, detail, faults) = match self {
            Self::Refused { status, detail, faults } => (status, detail, faults),
            // It passes, and nothing here is to be put right.
            Self::Broken(error) if error.downcast_ref::<Unanswered>().is_some() => {
                tracing::warn!("answering a request: {error:#}");
                (StatusCode::SERVICE_UNAVAILABLE, format!("the state can't be had at the moment: {error:#}"), vec![])
            }
            Self::Broken(error) => {
                tracing::error!("answering a request: {error:#}");
                (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"), vec![])
            }
        };
        let title = status.canonical_reason().unwrap_or("refused").to_owned();
        let errors = faults.into_iter().map(|fault| FieldError { field: fault.at, detail: fault.why }).collect();
        let mut answer =
            (status, axum::Json(Problem { status: status.as_u16(), title, detail, errors })).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }
}

/// Does what waits for the disk where waiting holds nobody up.
pub(crate) async fn off_thread<R: Send + 'static>(
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
/// machine, if there could be something by what is known in memory.
async fn wait_for<R: Send + 'static>(
    control: &Control,
    machine: MachineId,
    wait: u64,
    could_be: impl Fn(&Control) -> bool,
    ask: impl Fn(&Control) -> Result<Option<R>, Denied> + Clone + Send + 'static,
) -> Result<Option<R>, Denied> {
    let deadline = Instant::now() + Duration::from_secs(wait).min(MAX_WAIT);
    loop {
        let news = control.inner.wakes.of(machine);
        let mut news = std::pin::pin!(news.notified());
        news.as_mut().enable();
        if could_be(control) {
            let ask = ask.clone();
            if let Some(found) = off_thread(control, move |c| ask(c)).await? {
                return Ok(Some(found));
            }
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
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let body = serde_path_to_error::deserialize(&mut json).map_err(unclear_body)?;
        json.end().map_err(|e| Denied::new(StatusCode::BAD_REQUEST, format!("the body isn't understood: {e}")))?;
        Ok(Self(body))
    }
}

/// What a part of a body means that was read before.
fn understood<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Denied> {
    serde_path_to_error::deserialize(value).map_err(unclear_body)
}

fn unclear_body(error: serde_path_to_error::Error<serde_json::Error>) -> Denied {
    let at = error.path().to_string();
    let why = error.into_inner().to_string();
    if at == "." {
        return Denied::new(StatusCode::BAD_REQUEST, format!("the request's body isn't understood: {why}"));
    }
    let detail = format!("the request's body isn't understood: {at}: {why}");
    Denied::Refused { status: StatusCode::BAD_REQUEST, detail, faults: vec![Fault { at, why }] }
}

/// `?limit=&after=`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
struct Paging {
    /// At most so many.
    limit: Option<usize>,
    /// The last page's `next`.
    after: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
struct Despite(TakeBack);

/// Which machines are listed: those that fit all of it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
struct Matching {
    state: Option<State>,
    partition: Option<String>,
    rack: Option<String>,
    size: Option<String>,
    project: Option<String>,
    /// `key=value`, several of them separated by commas.
    label: Option<String>,
    /// What it runs: `debian-12` or `debian-12/20250101`.
    image: Option<String>,
}

/// Of what a watcher wants to hear.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
struct Seen {
    /// `machine`, `size` and so on, separated by commas; all, if nothing is said.
    kinds: Option<String>,
    /// The last revision that is known, for those who can't send `Last-Event-ID`.
    after: Option<u64>,
}

impl Seen {
    fn kinds(&self) -> Vec<String> {
        self.kinds.iter().flat_map(|kinds| kinds.split(',')).map(|kind| kind.trim().to_owned()).collect()
    }
}

/// An answer with an entity tag.
#[derive(Clone, Debug)]
struct Answer<T> {
    generation: u64,
    is_new: bool,
    body: T,
}

impl<T> Answer<T> {
    fn of(generation: u64, body: T) -> Self {
        Self { generation, is_new: false, body }
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let status = if self.is_new { StatusCode::CREATED } else { StatusCode::OK };
        let mut answer = (status, axum::Json(self.body)).into_response();
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", self.generation)) {
            answer.headers_mut().insert(header::ETAG, tag);
        }
        answer
    }
}

const MOST_ON_A_PAGE: usize = 1000;

impl Paging {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(MOST_ON_A_PAGE).clamp(1, MOST_ON_A_PAGE)
    }

    /// Of items in the order of what they are called by.
    fn page<'a, T: 'a, R>(&self, items: impl Iterator<Item = (&'a str, T)>, show: impl Fn(T) -> R) -> Page<R> {
        let mut left = items.skip_while(|(key, _)| self.after.as_deref().is_some_and(|after| *key <= after)).peekable();
        let mut page = Page { items: vec![], next: None };
        while page.items.len() < self.limit() {
            let Some((key, item)) = left.next() else { return page };
            page.items.push(show(item));
            page.next = Some(key.to_owned());
        }
        if left.peek().is_none() {
            page.next = None;
        }
        page
    }
}

/// `?after=&wait=`
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
struct Waiting {
    #[serde(default)]
    after: u64,
    /// Seconds.
    #[serde(default)]
    wait: u64,
}

macro_rules! from_query {
    ($($kind:ty),*) => {
        $(impl<S: Sync> FromRequestParts<S> for $kind {
            type Rejection = Denied;
            async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Denied> {
                Query::try_from_uri(&parts.uri).map(|Query(query)| query).map_err(|e| unclear_query(&e))
            }
        })*
    };
}

from_query!(Waiting, Paging, Matching, Seen, Despite);

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
