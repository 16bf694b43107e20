//! The paths of what is declared: the same for every kind.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use drophammer_protocol::api::Page;
use drophammer_protocol::faults::{Fault, Faults};
use drophammer_protocol::resource::{ImagePolicy, NamedLayout, Partition, Project, Reservation, Size, Stored, Tenant};
use serde_json::Value;

use super::{Body, Paging, Which, off_thread, understood};
use crate::auth::Who;
use crate::denied::Denied;
use crate::documents::{Agree, Given};
use crate::{Control, unix_ms};

pub(super) fn routes(router: Router<Control>) -> Router<Control> {
    let router = of::<Partition>(of::<Size>(of::<NamedLayout>(router)));
    of::<Tenant>(of::<Project>(of::<Reservation>(of::<ImagePolicy>(router))))
}

fn of<T: Agree>(router: Router<Control>) -> Router<Control> {
    let all = format!("/v1/{}", T::PLURAL);
    router
        .route(&format!("{all}/{{name}}"), get(read::<T>).put(put::<T>).delete(withdraw::<T>))
        .route(&all, get(list::<T>))
}

async fn list<T: Agree>(State(control): State<Control>, paging: Paging) -> Json<Page<Stored<T>>> {
    let documents = control.documents::<T>();
    Json(paging.page(documents.iter().map(|stored| (stored.value.name(), stored)), |stored| Stored::clone(stored)))
}

async fn read<T: Agree>(State(control): State<Control>, Which(name): Which<String>) -> Result<Response, Denied> {
    let stored = off_thread(&control, move |c| c.document::<T>(&name)).await?;
    Ok(tagged(StatusCode::OK, stored.meta.generation, &stored))
}

async fn put<T: Agree>(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Which(name): Which<String>,
    headers: HeaderMap,
    Body(mut body): Body<Value>,
) -> Result<Response, Denied> {
    let mut given = given(&headers)?;
    // What was read with GET can be sent as it is, and then only replaces what was read.
    if let Some(meta) = body.as_object_mut().and_then(|fields| fields.remove("meta"))
        && let (Given::Anything, Some(generation)) = (given, meta.get("generation").and_then(Value::as_u64))
    {
        given = Given::Generation(generation);
    }
    let value: T = understood(body)?;
    if value.name() != name {
        let why = format!("it's {:?}, and the path says {name:?}", value.name());
        return Err(Denied::faulty(&Faults(vec![Fault { at: "name".into(), why }])));
    }
    let stored = off_thread(&control, move |c| c.declare(&value, given, &who, unix_ms())).await?;
    let status = if stored.meta.generation == 1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok(tagged(status, stored.meta.generation, &stored))
}

async fn withdraw<T: Agree>(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Which(name): Which<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Denied> {
    let given = given(&headers)?;
    off_thread(&control, move |c| c.withdraw::<T>(&name, given, &who, unix_ms())).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An answer with its entity tag.
pub(super) fn tagged(status: StatusCode, generation: u64, body: &impl serde::Serialize) -> Response {
    let mut answer = (status, Json(body)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{generation}\"")) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// What `If-Match` and `If-None-Match` say.
pub(super) fn given(headers: &HeaderMap) -> Result<Given, Denied> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default().trim());
    let unclear = |name: &str, example: &str| {
        Denied::new(StatusCode::BAD_REQUEST, format!("{name} isn't understood: it looks like {example}"))
    };
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) | (Some("*"), None) => Ok(Given::Anything),
        (None, Some("*")) => Ok(Given::Absent),
        (Some(tag), None) => {
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
            number.map(Given::Generation).ok_or_else(|| unclear("If-Match", "\"7\", as ETag had it"))
        }
        _ => Err(unclear("If-None-Match", "*, and stands alone")),
    }
}
