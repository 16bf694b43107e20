//! The operators' paths.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Json, Router};
use drophammer_protocol::api::{
    ALLOCATIONS, AUDIT, AuditEntry, BOOT_SERVERS, CAPACITY, CERTIFICATE_KEY, Capacity, Explanation, IMAGE_LIST,
    IMPORTS, ImageSummary, ImportStatus, MACHINES, PSIDS, Page, SizeVerdict,
};
use drophammer_protocol::boot_server::{BootServer, JoinToken};
use drophammer_protocol::chain::CertificateChain;
use drophammer_protocol::erase::{NotAPsid, Psid};
use drophammer_protocol::event::Recorded;
use drophammer_protocol::id::BootServerId;
use drophammer_protocol::machine::{Allocation, Machine, Reinstall, Remarks, TakeBack, Wanted};
use drophammer_protocol::sign::PublicKey;
use tokio::time::sleep;

use super::documents::{self, given, tagged};
use super::{
    Bearer, Body, Paging, Waiting, Which, bearer, not_this_way, nothing_here, off_thread, unclear_query, wait_for,
};
use crate::auth::{Auth, Role, Who, caller};
use crate::denied::Denied;
use crate::operator::Whose;
use crate::{Control, unix_ms};

/// For news of somebody whom nobody knows.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// An allocation with its SSH keys and user-data.
const BODY: usize = 512 << 10;

impl Control {
    /// What operators talk to. `auth` says how they are known: tokens over HTTPS, file permissions on a Unix socket.
    pub fn operator_router(&self, auth: Auth) -> Router {
        let of = |what: &str| format!("{MACHINES}/{{ref}}{what}");
        let router = Router::new()
            .route(MACHINES, get(machines))
            .route(&of(""), get(machine).patch(remark))
            .route(&of("/events"), get(events))
            .route(&of("/explanation"), get(explanation))
            .route(&of("/certificates"), get(certificates))
            .route(&of("/allocate"), post(allocate))
            .route(&of("/release"), post(release))
            .route(&of("/reprovision"), post(reprovision))
            .route(&of("/reinstall"), post(reinstall))
            .route(&of("/size"), get(size))
            .route(ALLOCATIONS, post(allot))
            .route(CAPACITY, get(capacity))
            .route(AUDIT, get(audit))
            .route(CERTIFICATE_KEY, get(certificate_key))
            .route(PSIDS, get(psids))
            .route(&format!("{PSIDS}/{{serial}}"), put(keep_psid).delete(forget_psid))
            .route(IMAGE_LIST, get(images))
            .route(IMPORTS, get(imports))
            .route(BOOT_SERVERS, get(boot_servers))
            .route(&format!("{BOOT_SERVERS}/tokens"), post(join_token))
            .route(&format!("{BOOT_SERVERS}/{{id}}"), delete(remove_boot_server));
        let router = documents::routes(router)
            .layer(DefaultBodyLimit::max(BODY))
            .fallback(nothing_here)
            .method_not_allowed_fallback(not_this_way);
        let router = match auth {
            Auth::Socket => router.layer(Extension(Who::at_the_socket())),
            Auth::Token => router.route_layer(middleware::from_fn_with_state(self.clone(), authorise)),
        };
        router.with_state(self.clone())
    }
}

async fn authorise(State(control): State<Control>, request: Request, next: Next) -> Response {
    match allowed(&control, request).await {
        Ok(request) => next.run(request).await,
        Err(denied) => denied.into_response(),
    }
}

async fn allowed(control: &Control, request: Request) -> Result<Request, Denied> {
    let (mut parts, body) = request.into_parts();
    let Bearer(token) = bearer(&parts)?;
    let (who, role) = off_thread(control, move |c| caller(c.store(), &token)).await?;
    match role {
        Role::Admin => {}
        Role::Viewer if matches!(parts.method, Method::GET | Method::HEAD) => {}
        Role::Viewer => {
            let detail = "this token may look at everything and change nothing; use an admin's";
            return Err(Denied::new(StatusCode::FORBIDDEN, detail));
        }
    }
    parts.extensions.insert(who);
    Ok(Request::from_parts(parts, body))
}

async fn machines(State(control): State<Control>) -> Result<Json<Vec<Machine>>, Denied> {
    off_thread(&control, |c| c.machines()).await.map(Json)
}

async fn machine(State(control): State<Control>, Which(name): Which<String>) -> Result<Response, Denied> {
    let machine = off_thread(&control, move |c| c.machine(c.resolve(&name)?)).await?;
    Ok(tagged(StatusCode::OK, machine.generation, &machine))
}

async fn remark(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Which(name): Which<String>,
    headers: HeaderMap,
    Body(remarks): Body<Remarks>,
) -> Result<Response, Denied> {
    let given = given(&headers)?;
    let work = move |c: &Control| c.remark(c.resolve(&name)?, &remarks, given, &who, unix_ms());
    let machine = off_thread(&control, work).await?;
    Ok(tagged(StatusCode::OK, machine.generation, &machine))
}

async fn size(State(control): State<Control>, Which(name): Which<String>) -> Result<Json<SizeVerdict>, Denied> {
    off_thread(&control, move |c| c.size_verdict(c.resolve(&name)?)).await.map(Json)
}

async fn allot(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Body(wanted): Body<Wanted>,
) -> Result<Json<Machine>, Denied> {
    off_thread(&control, move |c| c.allot(&wanted, &who, unix_ms())).await.map(Json)
}

async fn capacity(State(control): State<Control>) -> Result<Json<Vec<Capacity>>, Denied> {
    off_thread(&control, |c| Ok(c.capacity(unix_ms()))).await.map(Json)
}

async fn audit(State(control): State<Control>, paging: Paging) -> Result<Json<Page<AuditEntry>>, Denied> {
    let limit = paging.limit();
    let items = off_thread(&control, move |c| c.audit(paging.after.as_deref(), limit)).await?;
    let next = items.last().filter(|_| items.len() == limit).map(|entry| entry.id.clone());
    Ok(Json(Page { items, next }))
}

async fn events(
    State(control): State<Control>,
    Which(name): Which<String>,
    waiting: Waiting,
) -> Result<Json<Vec<Recorded>>, Denied> {
    let whose = off_thread(&control, move |c| c.whose(&name)).await?;
    let news = move |c: &Control| c.events(whose, waiting.after).map(|e| Some(e).filter(|e| !e.is_empty()));
    let news = match whose {
        Whose::Machine(machine) => wait_for(&control, machine, waiting.wait, news).await?,
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

async fn explanation(State(control): State<Control>, Which(name): Which<String>) -> Result<Json<Explanation>, Denied> {
    off_thread(&control, move |c| c.explanation(&name, unix_ms())).await.map(Json)
}

async fn certificates(
    State(control): State<Control>,
    Which(name): Which<String>,
) -> Result<Json<CertificateChain>, Denied> {
    off_thread(&control, move |c| c.certificates(c.resolve(&name)?, unix_ms())).await.map(Json)
}

async fn certificate_key(State(control): State<Control>) -> Json<PublicKey> {
    Json(control.certificate_key())
}

async fn allocate(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Which(name): Which<String>,
    Body(wanted): Body<Allocation>,
) -> Result<Json<Machine>, Denied> {
    off_thread(&control, move |c| c.allocate(c.resolve(&name)?, &wanted, &who, unix_ms())).await.map(Json)
}

async fn release(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Which(name): Which<String>,
    uri: Uri,
) -> Result<Json<Machine>, Denied> {
    let how = take_back(&uri)?;
    off_thread(&control, move |c| c.release(c.resolve(&name)?, how, &who, unix_ms())).await.map(Json)
}

async fn reprovision(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Which(name): Which<String>,
    uri: Uri,
) -> Result<Json<Machine>, Denied> {
    let how = take_back(&uri)?;
    off_thread(&control, move |c| c.reprovision(c.resolve(&name)?, how, &who, unix_ms())).await.map(Json)
}

async fn reinstall(
    State(control): State<Control>,
    Extension(who): Extension<Who>,
    Which(name): Which<String>,
    Body(how): Body<Reinstall>,
) -> Result<Json<Machine>, Denied> {
    off_thread(&control, move |c| c.reinstall(c.resolve(&name)?, &how, &who, unix_ms())).await.map(Json)
}

fn take_back(uri: &Uri) -> Result<TakeBack, Denied> {
    let Query(how) = Query::try_from_uri(uri).map_err(|e| unclear_query(&e))?;
    Ok(how)
}

async fn psids(State(control): State<Control>) -> Result<Json<Vec<String>>, Denied> {
    off_thread(&control, |c| c.psid_serials()).await.map(Json)
}

async fn keep_psid(
    State(control): State<Control>,
    Which(serial): Which<String>,
    body: Bytes,
) -> Result<StatusCode, Denied> {
    // What was sent may be the secret with a mistake in it, so that no answer says anything of it.
    let psid: Psid =
        serde_json::from_slice(&body).map_err(|_| Denied::new(StatusCode::BAD_REQUEST, NotAPsid.to_string()))?;
    off_thread(&control, move |c| c.keep_psid(&serial, &psid)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn forget_psid(State(control): State<Control>, Which(serial): Which<String>) -> Result<StatusCode, Denied> {
    off_thread(&control, move |c| c.forget_psid(&serial)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn images(State(control): State<Control>) -> Result<Json<Vec<ImageSummary>>, Denied> {
    off_thread(&control, |c| c.images()).await.map(Json)
}

async fn imports(State(control): State<Control>) -> Json<Vec<ImportStatus>> {
    Json(control.imports())
}

async fn boot_servers(State(control): State<Control>) -> Result<Json<Vec<BootServer>>, Denied> {
    off_thread(&control, |c| c.boot_servers(unix_ms())).await.map(Json)
}

async fn join_token(State(control): State<Control>) -> Result<Json<JoinToken>, Denied> {
    off_thread(&control, |c| c.join_token(unix_ms())).await.map(Json)
}

async fn remove_boot_server(
    State(control): State<Control>,
    Which(id): Which<BootServerId>,
) -> Result<StatusCode, Denied> {
    off_thread(&control, move |c| c.remove_boot_server(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
