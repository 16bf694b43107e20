//! `Idempotency-Key`: a `POST` that is sent again because its answer didn't come happens once.
//!
//! The key is taken before the work begins and has the answer when it's done. A server that dies in between leaves a key
//! without an answer, and says so to whoever sends it again, instead of doing it twice.

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::off_thread;
use crate::auth::Caller;
use crate::denied::Denied;
use crate::{Control, unix_ms};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LONGEST_KEY: usize = 256;
/// Of an answer that is kept.
const LARGEST_ANSWER: usize = 1 << 20;
pub(crate) const KEPT: &str = "idempotency/";
/// Who sends something again does so within a day.
pub(crate) const LIFE_MS: u64 = 24 * 60 * 60 * 1000;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) at_ms: u64,
    pub(crate) request_sha256: String,
    /// None while it's being worked on.
    pub(crate) answer: Option<(u16, String)>,
}

pub(super) async fn once(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    match done_once(&control, &caller, request, next).await {
        Ok(answer) => answer,
        Err(denied) => denied.into_response(),
    }
}

async fn done_once(control: &Control, caller: &Caller, request: Request, next: Next) -> Result<Response, Denied> {
    let Some(key) = request.headers().get(KEY).filter(|_| request.method() == Method::POST) else {
        return Ok(next.run(request).await);
    };
    let key = key.as_bytes().to_vec();
    if key.is_empty() || key.len() > LONGEST_KEY {
        let detail = format!("an Idempotency-Key has 1 to {LONGEST_KEY} bytes");
        return Err(Denied::new(StatusCode::BAD_REQUEST, detail));
    }
    let who = caller.who.to_string();
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, super::BODY).await.map_err(|_| {
        let detail = format!("the request's body has more than {} bytes", super::BODY);
        Denied::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    })?;
    let path = parts.uri.to_string();
    let request_sha256 = hex::encode(Sha256::digest([path.as_bytes(), b"\0", &body].concat()));
    let kept_key = format!("{KEPT}{}", hex::encode(Sha256::digest([who.as_bytes(), b"\0", &key].concat())));
    let kept = {
        let (kept_key, request_sha256) = (kept_key.clone(), request_sha256.clone());
        off_thread(control, move |c| take(c, &kept_key, request_sha256)).await?
    };
    if let Some(kept) = kept {
        return again(kept, &request_sha256);
    }
    let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = answer.into_parts();
    let body = to_bytes(body, LARGEST_ANSWER).await.map_err(|e| anyhow::Error::new(e).context("keeping an answer"))?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let status = parts.status;
    let keep = Kept { at_ms: unix_ms(), request_sha256, answer: Some((status.as_u16(), text)) };
    // What failed on our side may be tried again.
    let is_final = !status.is_server_error();
    let done = move |c: &Control| -> Result<(), Denied> {
        Ok(c.store().transact(|txn| {
            if is_final {
                return txn.put(&kept_key, &keep);
            }
            txn.delete(&kept_key);
            Ok(())
        })?)
    };
    off_thread(control, done).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// What is kept under a key; none if it was free and is taken now.
fn take(control: &Control, key: &str, request_sha256: String) -> Result<Option<Kept>, Denied> {
    control.store().transact(|txn| {
        if let Some(kept) = txn.get::<Kept>(key)? {
            return Ok(Some(kept));
        }
        txn.put(key, &Kept { at_ms: unix_ms(), request_sha256: request_sha256.clone(), answer: None })?;
        Ok(None)
    })
}

fn again(kept: Kept, request_sha256: &str) -> Result<Response, Denied> {
    if kept.request_sha256 != request_sha256 {
        let detail = "this Idempotency-Key was used for another request; each request has its own";
        return Err(Denied::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let Some((status, text)) = kept.answer else {
        return Err(Denied::conflict(
            "a request with this Idempotency-Key is being worked on, or its server died meanwhile; look at what became of \
             it before you send it with another key",
        ));
    };
    let status = StatusCode::from_u16(status).map_err(anyhow::Error::new)?;
    let kind = if status.is_success() { "application/json" } else { "application/problem+json" };
    let mut answer = (status, text).into_response();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(answer)
}
