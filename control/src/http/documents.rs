//! The paths of what is declared: the same for every kind.

use std::marker::PhantomData;

use aide::OperationInput;
use aide::axum::ApiRouter;
use aide::axum::routing::get_with;
use aide::generate::GenContext;
use aide::openapi::Operation;
use aide::transform::TransformOperation;
use axum::extract::{FromRequest, Request, State};
use axum::http::{self, HeaderMap, HeaderValue, StatusCode};
use axum::{Extension, Json};
use drophammer_protocol::api::Page;
use drophammer_protocol::faults::{Fault, Faults};
use drophammer_protocol::resource::{
    ImagePolicy, ImageSource, NamedLayout, Partition, Project, Reservation, Right, Size, Stored, Tenant,
};
use schemars::JsonSchema;
use serde_json::Value;

use super::describe::{Done, header};
use super::{Answer, Body, Paging, Which, off_thread, understood};
use crate::auth::Caller;
use crate::denied::Denied;
use crate::documents::{Agree, Given, there_is_no};
use crate::pool::Tables;
use crate::{Control, unix_ms};

pub(super) fn routes(router: ApiRouter<Control>) -> ApiRouter<Control> {
    let router = of::<Partition>(of::<Size>(of::<NamedLayout>(of::<ImageSource>(router))));
    of::<Tenant>(of::<Project>(of::<Reservation>(of::<ImagePolicy>(router))))
}

fn of<T: Guarded>(router: ApiRouter<Control>) -> ApiRouter<Control> {
    let all = format!("/v1/{}", T::PLURAL);
    let (name, plural) = (T::NAME.replace('-', " "), T::PLURAL.replace('-', " "));
    let one = get_with(read::<T>, |op| op.summary(&format!("One of the {plural}")))
        .put_with(put::<T>, |op| conditional(op.summary(&format!("Declare a {name}, or change it"))))
        .delete_with(withdraw::<T>, |op| conditional(op.summary(&format!("Withdraw a {name}"))));
    router
        .api_route(&format!("{all}/{{name}}"), one)
        .api_route(&all, get_with(list::<T>, |op| op.summary(&format!("The {plural}"))))
}

/// It may be said what has to be true.
pub(super) fn conditional(mut operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let parameters = &mut operation.inner_mut().parameters;
    parameters.push(header("If-Match", "Only if it still has this entity tag."));
    parameters.push(header("If-None-Match", "`*`: only if there is none yet."));
    operation
}

/// Who may see and change documents of a kind.
trait Guarded: Agree + JsonSchema {
    /// What whoever only has some projects may see.
    fn is_visible(&self, _: &Caller, _: &Tables) -> bool {
        true
    }

    /// Whether somebody who isn't an admin may make this of what it was.
    fn may_change(&self, _before: Option<&Self>, caller: &Caller, _: &Tables) -> Result<(), Denied> {
        caller.must_be_admin()
    }
}

impl Guarded for Partition {}
impl Guarded for Size {}
impl Guarded for NamedLayout {}
impl Guarded for ImagePolicy {}

impl Guarded for ImageSource {
    /// An address may have in it what only operators need to know.
    fn is_visible(&self, caller: &Caller, _: &Tables) -> bool {
        caller.may_see_all()
    }
}

impl Guarded for Reservation {
    fn is_visible(&self, caller: &Caller, tables: &Tables) -> bool {
        caller.right_in(&self.project, tables).is_some()
    }
}

impl Guarded for Tenant {
    fn is_visible(&self, caller: &Caller, tables: &Tables) -> bool {
        caller.right_of_tenant(&self.name, tables).is_some()
    }

    fn may_change(&self, before: Option<&Self>, caller: &Caller, tables: &Tables) -> Result<(), Denied> {
        let is_owner = caller.right_of_tenant(&self.name, tables) == Some(Right::Owner);
        if is_owner && before.is_some() { Ok(()) } else { caller.must_be_admin() }
    }
}

impl Guarded for Project {
    fn is_visible(&self, caller: &Caller, tables: &Tables) -> bool {
        caller.right_in(&self.name, tables).is_some()
    }

    /// Its owners say who else has a part in it, and neither whose it is nor how much it may have.
    fn may_change(&self, before: Option<&Self>, caller: &Caller, tables: &Tables) -> Result<(), Denied> {
        let limits = |project: &Self| (project.tenant.clone(), project.most_machines, project.erase_policy);
        let is_owner = caller.right_in(&self.name, tables) == Some(Right::Owner);
        let is_within = before.is_some_and(|before| limits(before) == limits(self));
        if is_owner && is_within { Ok(()) } else { caller.must_be_admin() }
    }
}

async fn list<T: Guarded>(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    paging: Paging,
) -> Json<Page<Stored<T>>> {
    let documents = control.documents::<T>();
    let tables = control.inner.pool.read();
    let visible = documents.iter().filter(|stored| stored.value.is_visible(&caller, &tables));
    Json(paging.page(visible.map(|stored| (stored.value.name(), stored)), |stored| Stored::clone(stored)))
}

async fn read<T: Guarded>(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
) -> Result<Answer<Stored<T>>, Denied> {
    let read = move |c: &Control| {
        let stored = c.document::<T>(&name)?;
        let is_visible = stored.value.is_visible(&caller, &c.inner.pool.read());
        if is_visible { Ok(stored) } else { Err(there_is_no::<T>(&name)) }
    };
    let stored = off_thread(&control, read).await?;
    Ok(Answer::of(stored.meta.generation, stored))
}

async fn put<T: Guarded>(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    headers: HeaderMap,
    Document(mut body, ..): Document<T>,
) -> Result<Answer<Stored<T>>, Denied> {
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
    let declare = move |c: &Control| {
        let before = T::table(&c.inner.pool.read()).get(&name).cloned();
        value.may_change(before.as_ref().map(|before| &before.value), &caller, &c.inner.pool.read())?;
        // Who was allowed to make this of that makes it of nothing else.
        let given = match (given, &before) {
            (Given::Anything, Some(before)) if caller.must_be_admin().is_err() => {
                Given::Generation(before.meta.generation)
            }
            (given, _) => given,
        };
        c.declare(&value, given, &caller.who, unix_ms())
    };
    let stored = off_thread(&control, declare).await?;
    Ok(Answer { is_new: stored.meta.generation == 1, ..Answer::of(stored.meta.generation, stored) })
}

async fn withdraw<T: Guarded>(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    headers: HeaderMap,
) -> Result<Done, Denied> {
    let given = given(&headers)?;
    let withdraw = move |c: &Control| {
        caller.must_be_admin()?;
        c.withdraw::<T>(&name, given, &caller.who, unix_ms())
    };
    off_thread(&control, withdraw).await?;
    Ok(Done)
}

/// A document as it was sent, perhaps with what the server says of it.
struct Document<T>(Value, PhantomData<T>);

impl<S: Send + Sync, T> FromRequest<S> for Document<T> {
    type Rejection = Denied;
    async fn from_request(request: Request, state: &S) -> Result<Self, Denied> {
        let Body(value) = Body::<Value>::from_request(request, state).await?;
        Ok(Self(value, PhantomData))
    }
}

impl<T: JsonSchema> OperationInput for Document<T> {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        Body::<T>::operation_input(ctx, operation);
    }
}

/// What `If-Match` and `If-None-Match` say.
pub(super) fn given(headers: &HeaderMap) -> Result<Given, Denied> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default().trim());
    let unclear = |name: &str, example: &str| {
        Denied::new(StatusCode::BAD_REQUEST, format!("{name} isn't understood: it looks like {example}"))
    };
    match (text(http::header::IF_MATCH), text(http::header::IF_NONE_MATCH)) {
        (None, None) | (Some("*"), None) => Ok(Given::Anything),
        (None, Some("*")) => Ok(Given::Absent),
        (Some(tag), None) => {
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
            number.map(Given::Generation).ok_or_else(|| unclear("If-Match", "\"7\", as ETag had it"))
        }
        _ => Err(unclear("If-None-Match", "*, and stands alone")),
    }
}
