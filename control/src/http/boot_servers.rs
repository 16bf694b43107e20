//! The paths of boot servers that run alone.

use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use axum::{Json, Router};
use drophammer_protocol::boot_server::{
    Briefing, CERTIFICATE, Certifiable, Certified, HEALTH, Health, JOIN, Join, Joined, MAX_REPORTS, OWN_DISKS,
    REGISTRATION, REPORTS, Registration, Reports, ReportsStored,
};
use drophammer_protocol::id::BootServerId;
use tokio::time::{Instant, timeout_at};

use super::{Bearer, Body, MAX_WAIT, Waiting, not_this_way, nothing_here, off_thread};
use crate::boot_servers::ClientCertificate;
use crate::denied::Denied;
use crate::{Control, unix_ms};

const SMALL: usize = 64 << 10;
/// A boot server's networks with their pools.
const REGISTRATION_BYTES: usize = 1 << 20;
/// Each with a message of some kilobytes at most.
const REPORTS_BYTES: usize = MAX_REPORTS * (8 << 10);

impl Control {
    /// What boot servers that run alone talk to, for HTTPS. Whoever accepts the connections says by a
    /// [`ClientCertificate`] in the request's extensions who is calling.
    pub fn boot_server_router(&self) -> Router {
        let limit = |bytes| DefaultBodyLimit::max(bytes);
        Router::new()
            .route(JOIN, post(join).layer(limit(SMALL)))
            .route(CERTIFICATE, post(certificate).layer(limit(SMALL)))
            .route(REGISTRATION, put(registration).layer(limit(REGISTRATION_BYTES)))
            .route(HEALTH, post(health).layer(limit(SMALL)))
            .route(OWN_DISKS, get(own_disks))
            .route(REPORTS, post(reports).layer(limit(REPORTS_BYTES)))
            .route("/boot-server/{*rest}", any(nothing_here))
            .method_not_allowed_fallback(not_this_way)
            .with_state(self.clone())
    }
}

/// A boot server that joined.
struct Caller(BootServerId);

impl FromRequestParts<Control> for Caller {
    type Rejection = Denied;
    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self, Denied> {
        let Some(certificate) = parts.extensions.get::<ClientCertificate>().copied() else {
            return Err(Denied::stranger("this path is for boot servers, which are known by a client certificate"));
        };
        off_thread(control, move |c| c.boot_server_of(&certificate, unix_ms())).await.map(Self)
    }
}

async fn join(
    State(control): State<Control>,
    Bearer(token): Bearer,
    Body(body): Body<Join>,
) -> Result<Json<Joined>, Denied> {
    off_thread(&control, move |c| c.join(&token, &body, unix_ms())).await.map(Json)
}

async fn certificate(
    State(control): State<Control>,
    Caller(id): Caller,
    Body(body): Body<Certifiable>,
) -> Result<Json<Certified>, Denied> {
    off_thread(&control, move |c| c.renew(id, &body, unix_ms())).await.map(Json)
}

async fn registration(
    State(control): State<Control>,
    Caller(id): Caller,
    Body(body): Body<Registration>,
) -> Result<Json<Briefing>, Denied> {
    off_thread(&control, move |c| c.register(id, &body, unix_ms())).await.map(Json)
}

async fn health(
    State(control): State<Control>,
    Caller(id): Caller,
    Body(body): Body<Health>,
) -> Result<Json<Briefing>, Denied> {
    off_thread(&control, move |c| c.take_health(id, body, unix_ms())).await.map(Json)
}

async fn own_disks(State(control): State<Control>, _: Caller, waiting: Waiting) -> Response {
    let deadline = Instant::now() + std::time::Duration::from_secs(waiting.wait).min(MAX_WAIT);
    let watched = &control.inner.own_disks;
    loop {
        let mut news = std::pin::pin!(watched.news().notified());
        news.as_mut().enable();
        if let Some(now) = watched.after(waiting.after) {
            return Json(now).into_response();
        }
        if timeout_at(deadline, news).await.is_err() {
            return StatusCode::NO_CONTENT.into_response();
        }
    }
}

async fn reports(
    State(control): State<Control>,
    Caller(id): Caller,
    Body(body): Body<Reports>,
) -> Result<Json<ReportsStored>, Denied> {
    let stored = off_thread(&control, move |c| c.take_reports(id, &body.reports, unix_ms())).await?;
    Ok(Json(ReportsStored { number: stored }))
}
