//! The operators' paths.

use std::sync::Arc;
use std::time::Duration;

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with, put_with};
use aide::transform::TransformOperation;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use drophammer_protocol::api::{
    ALLOCATIONS, AUDIT, AuditEntry, BOOT_SERVERS, CAPACITY, CERTIFICATE_KEY, Capacity, Explanation, IMAGE_LIST,
    IMPORTS, ImageSummary, ImportStatus, InventoryTold, MACHINES, MadeToken, MakeToken, OPENAPI, PSIDS, Page,
    SizeVerdict, TOKENS, TokenInfo, WATCH,
};
use drophammer_protocol::boot_server::{BootServer, JoinToken};
use drophammer_protocol::chain::CertificateChain;
use drophammer_protocol::erase::{NotAPsid, Psid};
use drophammer_protocol::event::Recorded;
use drophammer_protocol::id::BootServerId;
use drophammer_protocol::machine::{Allocation, Machine, Reinstall, Remarks, Wanted};
use drophammer_protocol::resource::Right;
use drophammer_protocol::sign::PublicKey;
use tokio::time::sleep;
use uuid::Uuid;

use super::BODY;
use super::backup;
use super::bulk::{self, BULK};
use super::describe::{self, Done, finish};
use super::documents::{self, conditional, given};
use super::watch;
use super::{
    Answer, Body, Despite, Matching, Paging, Waiting, Which, bearer, not_this_way, nothing_here, off_thread, wait_for,
};
use crate::auth::{Auth, Caller};
use crate::denied::Denied;
use crate::operator::Whose;
use crate::{Control, unix_ms};

/// For news of somebody whom nobody knows.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

impl Control {
    /// What operators talk to. `auth` says how they are known: tokens over HTTPS, file permissions on a Unix socket.
    pub fn operator_router(&self, auth: Auth) -> Router {
        let (one_by_one, _) = finish(paths());
        let all = backup::download(paths()).api_route(
            BULK,
            post_with(bulk::bulk, |op| op.summary("Several requests in one, in order, each done by itself")),
        );
        let (router, described) = finish(all);
        let described = Arc::new(described);
        let router = router
            .route(OPENAPI, get(async move || Json(&*described).into_response()))
            .layer(Extension(bulk::Paths(one_by_one)))
            .layer(DefaultBodyLimit::max(BODY))
            .fallback(nothing_here)
            .method_not_allowed_fallback(not_this_way)
            .route_layer(middleware::from_fn_with_state(self.clone(), super::once::once));
        let router = match auth {
            Auth::Socket => router.layer(Extension(Caller::at_the_socket())),
            Auth::Token => router.route_layer(middleware::from_fn_with_state(self.clone(), authorise)),
        };
        router.with_state(self.clone())
    }
}

fn paths() -> ApiRouter<Control> {
    let of = |what: &str| format!("{MACHINES}/{{ref}}{what}");
    let router = ApiRouter::new()
        .api_route(MACHINES, get_with(machines, |op| op.summary("The machines, without their inventories")))
        .api_route(
            &of(""),
            get_with(machine, |op| op.summary("A machine, by id, serial, MAC or hostname"))
                .patch_with(remark, |op| conditional(op.summary("Label it, lock it, or leave a note"))),
        )
        .api_route(&of("/events"), get_with(events, |op| op.summary("What happened to it; waits for more if asked to")))
        .api_route(&of("/explanation"), get_with(explanation, |op| op.summary("Why it's where it is")))
        .api_route(&of("/certificates"), get_with(certificates, |op| op.summary("The proofs of its erased drives")))
        .api_route(
            &of("/inventories"),
            get_with(inventories, |op| op.summary("What it told of itself, whenever that was different")),
        )
        .api_route(&of("/size"), get_with(size, |op| op.summary("Which size it's of, and why of no other")))
        .api_route(&of("/allocate"), post_with(allocate, |op| once(op.summary("Give it to somebody"))))
        .api_route(&of("/release"), post_with(release, |op| once(op.summary("Take it back, to be erased"))))
        .api_route(&of("/reprovision"), post_with(reprovision, |op| once(op.summary("Erase and install it again"))))
        .api_route(
            &of("/reinstall"),
            post_with(reinstall, |op| once(op.summary("Install it again beside kept drives"))),
        )
        .api_route(ALLOCATIONS, post_with(allot, |op| once(op.summary("Give somebody whichever machine fits"))))
        .api_route(CAPACITY, get_with(capacity, |op| op.summary("How many machines of which size are free")))
        .api_route(AUDIT, get_with(audit, |op| op.summary("Who changed what, in the order of time")))
        .api_route(
            TOKENS,
            get_with(tokens, |op| op.summary("The tokens that one may see"))
                .post_with(make_token, |op| op.summary("A token that may no more than its maker")),
        )
        .api_route(&format!("{TOKENS}/{{id}}"), delete_with(revoke_token, |op| op.summary("A token that was lost")))
        .api_route(WATCH, get_with(watch::watch, |op| op.summary("Everything that changes, as server-sent events")))
        .api_route(CERTIFICATE_KEY, get_with(certificate_key, |op| op.summary("What receipts are signed with")))
        .api_route(PSIDS, get_with(psids, |op| op.summary("Serials of the drives whose label is kept")))
        .api_route(
            &format!("{PSIDS}/{{serial}}"),
            put_with(keep_psid, |op| op.summary("Keep what a drive's label says"))
                .delete_with(forget_psid, |op| op.summary("Forget it")),
        )
        .api_route(IMAGE_LIST, get_with(images, |op| op.summary("The images that can be installed")))
        .api_route(IMPORTS, get_with(imports, |op| op.summary("How far others' images are on their way here")))
        .api_route(BOOT_SERVERS, get_with(boot_servers, |op| op.summary("The boot servers")))
        .api_route(
            &format!("{BOOT_SERVERS}/tokens"),
            post_with(join_token, |op| op.summary("A token for one more boot server")),
        )
        .api_route(
            &format!("{BOOT_SERVERS}/{{id}}"),
            delete_with(remove_boot_server, |op| op.summary("A boot server that is gone")),
        );
    documents::routes(backup::routes(router))
}

/// It may be sent again.
fn once(mut operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let key = describe::header("Idempotency-Key", "Sent again with the same key, it happens once.");
    operation.inner_mut().parameters.push(key);
    operation
}

async fn authorise(State(control): State<Control>, request: Request, next: Next) -> Response {
    match allowed(&control, request).await {
        Ok(request) => next.run(request).await,
        Err(denied) => denied.into_response(),
    }
}

async fn allowed(control: &Control, request: Request) -> Result<Request, Denied> {
    let (mut parts, body) = request.into_parts();
    let super::Bearer(token) = bearer(&parts)?;
    let caller = control.caller_of(token).await?;
    control.inner.limits.check(&caller.who)?;
    parts.extensions.insert(caller);
    Ok(Request::from_parts(parts, body))
}

async fn machines(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    paging: Paging,
    matching: Matching,
) -> Result<Json<Page<Machine>>, Denied> {
    let list = move |c: &Control| {
        let found = c.matching(&caller, &matching.into());
        Ok(paging.page(found.iter().map(|(key, known)| (key.as_str(), known)), |known| c.in_short(known)))
    };
    off_thread(&control, list).await.map(Json)
}

impl From<Matching> for crate::operator::Matching {
    fn from(asked: Matching) -> Self {
        let Matching { state, partition, rack, size, project, label, image } = asked;
        let labels = label.iter().flat_map(|labels| labels.split(','));
        let labels =
            labels.map(|label| label.split_once('=').unwrap_or((label, ""))).map(|(k, v)| (k.into(), v.into()));
        Self { state, partition, rack, size, project, labels: labels.collect(), image }
    }
}

async fn machine(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
) -> Result<Answer<Machine>, Denied> {
    let machine = off_thread(&control, move |c| c.machine(c.theirs(&caller, &name, Right::Viewer)?)).await?;
    Ok(Answer::of(machine.generation, machine))
}

async fn remark(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    headers: axum::http::HeaderMap,
    Body(remarks): Body<Remarks>,
) -> Result<Answer<Machine>, Denied> {
    let given = given(&headers)?;
    let work = move |c: &Control| {
        caller.must_be_admin()?;
        c.remark(c.resolve(&name)?, &remarks, given, &caller.who, unix_ms())
    };
    let machine = off_thread(&control, work).await?;
    Ok(Answer::of(machine.generation, machine))
}

async fn size(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
) -> Result<Json<SizeVerdict>, Denied> {
    off_thread(&control, move |c| c.size_verdict(c.theirs(&caller, &name, Right::Viewer)?)).await.map(Json)
}

async fn events(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    waiting: Waiting,
) -> Result<Json<Vec<Recorded>>, Denied> {
    let whose = off_thread(&control, move |c| c.whose(&caller, &name)).await?;
    let news = move |c: &Control| c.events(whose, waiting.after).map(|e| Some(e).filter(|e| !e.is_empty()));
    let news = match whose {
        Whose::Machine(machine) => wait_for(&control, machine, waiting.wait, |_| true, news).await?,
        Whose::Stranger(_) => {
            // Nothing tells of strangers, and one may have become a machine meanwhile: the caller asks again.
            let found = off_thread(&control, news).await?;
            if found.is_none() && waiting.wait > 0 {
                sleep(BETWEEN_LOOKS).await;
            }
            found
        }
    };
    Ok(Json(news.unwrap_or_default()))
}

async fn explanation(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
) -> Result<Json<Explanation>, Denied> {
    off_thread(&control, move |c| c.explanation(c.whose(&caller, &name)?, unix_ms())).await.map(Json)
}

async fn certificates(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
) -> Result<Json<CertificateChain>, Denied> {
    let read = move |c: &Control| c.certificates(c.theirs(&caller, &name, Right::Viewer)?, unix_ms());
    off_thread(&control, read).await.map(Json)
}

async fn inventories(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
) -> Result<Json<Vec<InventoryTold>>, Denied> {
    off_thread(&control, move |c| c.inventories(c.theirs(&caller, &name, Right::Viewer)?)).await.map(Json)
}

async fn certificate_key(State(control): State<Control>) -> Json<PublicKey> {
    Json(control.certificate_key())
}

async fn allocate(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    Body(wanted): Body<Allocation>,
) -> Result<Json<Machine>, Denied> {
    let work = move |c: &Control| {
        c.may_allocate(&caller, &wanted)?;
        c.allocate(c.resolve(&name)?, &wanted, &caller.who, unix_ms())
    };
    off_thread(&control, work).await.map(Json)
}

async fn allot(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Body(wanted): Body<Wanted>,
) -> Result<Json<Machine>, Denied> {
    let work = move |c: &Control| {
        c.may_allocate(&caller, &wanted.allocation)?;
        c.allot(&wanted, &caller.who, unix_ms())
    };
    off_thread(&control, work).await.map(Json)
}

async fn release(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    how: Despite,
) -> Result<Json<Machine>, Denied> {
    let work = move |c: &Control| {
        let machine = c.to_take_back(&caller, &name, how.0.despite_quarantine)?;
        c.release(machine, how.0, &caller.who, unix_ms())
    };
    off_thread(&control, work).await.map(Json)
}

async fn reprovision(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    how: Despite,
) -> Result<Json<Machine>, Denied> {
    let work = move |c: &Control| {
        let machine = c.to_take_back(&caller, &name, how.0.despite_quarantine)?;
        c.reprovision(machine, how.0, &caller.who, unix_ms())
    };
    off_thread(&control, work).await.map(Json)
}

async fn reinstall(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(name): Which<String>,
    Body(how): Body<Reinstall>,
) -> Result<Json<Machine>, Denied> {
    let work = move |c: &Control| {
        let machine = c.to_take_back(&caller, &name, how.despite_quarantine)?;
        c.reinstall(machine, &how, &caller.who, unix_ms())
    };
    off_thread(&control, work).await.map(Json)
}

async fn capacity(State(control): State<Control>) -> Result<Json<Vec<Capacity>>, Denied> {
    off_thread(&control, |c| Ok(c.capacity(unix_ms()))).await.map(Json)
}

async fn audit(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    paging: Paging,
) -> Result<Json<Page<AuditEntry>>, Denied> {
    caller.must_see_all()?;
    let limit = paging.limit();
    let items = off_thread(&control, move |c| c.audit(paging.after.as_deref(), limit)).await?;
    let next = items.last().filter(|_| items.len() == limit).map(|entry| entry.id.clone());
    Ok(Json(Page { items, next }))
}

async fn tokens(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<TokenInfo>>, Denied> {
    off_thread(&control, move |c| c.tokens(&caller)).await.map(Json)
}

async fn make_token(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Body(wish): Body<MakeToken>,
) -> Result<Json<MadeToken>, Denied> {
    off_thread(&control, move |c| c.make_token(&caller, &wish, unix_ms())).await.map(Json)
}

async fn revoke_token(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(id): Which<Uuid>,
) -> Result<Done, Denied> {
    off_thread(&control, move |c| c.revoke_token(&caller, id, unix_ms())).await?;
    Ok(Done)
}

async fn psids(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<String>>, Denied> {
    caller.must_see_all()?;
    off_thread(&control, |c| c.psid_serials()).await.map(Json)
}

async fn keep_psid(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(serial): Which<String>,
    Secret(body): Secret,
) -> Result<Done, Denied> {
    caller.must_be_admin()?;
    // What was sent may be the secret with a mistake in it, so that no answer says anything of it.
    let psid: Psid =
        serde_json::from_slice(&body).map_err(|_| Denied::new(StatusCode::BAD_REQUEST, NotAPsid.to_string()))?;
    off_thread(&control, move |c| c.keep_psid(&serial, &psid, &caller.who, unix_ms())).await?;
    Ok(Done)
}

/// A body of which nothing may be said.
struct Secret(Bytes);

impl<S: Send + Sync> axum::extract::FromRequest<S> for Secret {
    type Rejection = Denied;
    async fn from_request(request: Request, state: &S) -> Result<Self, Denied> {
        let bytes = Bytes::from_request(request, state).await.map_err(|e| Denied::new(e.status(), e.body_text()))?;
        Ok(Self(bytes))
    }
}

impl aide::OperationInput for Secret {
    fn operation_input(ctx: &mut aide::generate::GenContext, operation: &mut aide::openapi::Operation) {
        Body::<Psid>::operation_input(ctx, operation);
    }
}

async fn forget_psid(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(serial): Which<String>,
) -> Result<Done, Denied> {
    caller.must_be_admin()?;
    off_thread(&control, move |c| c.forget_psid(&serial, &caller.who, unix_ms())).await?;
    Ok(Done)
}

async fn images(State(control): State<Control>) -> Result<Json<Vec<ImageSummary>>, Denied> {
    off_thread(&control, |c| c.images()).await.map(Json)
}

async fn imports(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<ImportStatus>>, Denied> {
    caller.must_see_all()?;
    Ok(Json(control.imports()))
}

async fn boot_servers(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<BootServer>>, Denied> {
    caller.must_see_all()?;
    off_thread(&control, |c| c.boot_servers(unix_ms())).await.map(Json)
}

async fn join_token(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<JoinToken>, Denied> {
    caller.must_be_admin()?;
    off_thread(&control, move |c| c.join_token(&caller.who, unix_ms())).await.map(Json)
}

async fn remove_boot_server(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Which(id): Which<BootServerId>,
) -> Result<Done, Denied> {
    caller.must_be_admin()?;
    off_thread(&control, move |c| c.remove_boot_server(id, &caller.who, unix_ms())).await?;
    Ok(Done)
}
