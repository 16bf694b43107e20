//! `POST /v1/bulk`: several requests in one, each done by itself and in order.

use axum::body::{Body as HttpBody, to_bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::{Extension, Json, Router};
use drophammer_protocol::api::{Bulk, BulkAnswer, BulkRequest};
use serde_json::Value;
use tower::ServiceExt;

use super::Body;
use crate::Control;
use crate::auth::Caller;
use crate::denied::Denied;

pub(super) const BULK: &str = "/v1/bulk";
const MOST: usize = 200;
const LARGEST_ANSWER: usize = 4 << 20;

/// All paths but this one.
#[derive(Clone, Debug)]
pub(super) struct Paths(pub(super) Router<Control>);

pub(super) async fn bulk(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Extension(Paths(paths)): Extension<Paths>,
    Body(bulk): Body<Bulk>,
) -> Result<Json<Vec<BulkAnswer>>, Denied> {
    if bulk.requests.len() > MOST {
        let detail = format!("{} requests are more than the {MOST} that are done at once", bulk.requests.len());
        return Err(Denied::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let paths = paths.with_state(control);
    let mut answers = Vec::with_capacity(bulk.requests.len());
    for request in bulk.requests {
        let answer = one(paths.clone(), &caller, request).await?;
        let failed = answer.status >= 400;
        answers.push(answer);
        if failed && bulk.stop_at_failure {
            break;
        }
    }
    Ok(Json(answers))
}

async fn one(paths: Router, caller: &Caller, asked: BulkRequest) -> Result<BulkAnswer, Denied> {
    let unclear = |why: String| Denied::new(StatusCode::BAD_REQUEST, why);
    let method: Method = asked.method.parse().map_err(|_| unclear(format!("{:?} is no method", asked.method)))?;
    let body = asked.body.filter(|body| !body.is_null()).map(|body| body.to_string()).unwrap_or_default();
    let mut request = Request::builder()
        .method(method)
        .uri(&asked.path)
        .body(HttpBody::from(body))
        .map_err(|_| unclear(format!("{:?} is no path", asked.path)))?;
    if let Some(tag) = asked.if_match {
        let tag = HeaderValue::from_str(&tag).map_err(|_| unclear("if_match isn't understood".into()))?;
        request.headers_mut().insert(header::IF_MATCH, tag);
    }
    request.extensions_mut().insert(caller.clone());
    let Ok(answer) = paths.oneshot(request).await;
    let status = answer.status().as_u16();
    let bytes = to_bytes(answer.into_body(), LARGEST_ANSWER).await;
    let bytes = bytes.map_err(|e| anyhow::Error::new(e).context("reading an answer"))?;
    Ok(BulkAnswer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
}
