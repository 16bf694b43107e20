//! The agents' paths.

use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use axum::{Json, Router};
use drophammer_protocol::api::{
    AGENT_ENROL, AGENT_EVENTS, AGENT_INVENTORY, AGENT_ORDER, AGENT_ORDERS, AGENT_PHONE_HOME, Enrol, Enrolled, Events,
    EventsStored, PhonedHome,
};
use drophammer_protocol::id::{MachineId, OrderId};
use drophammer_protocol::inventory::Inventory;
use drophammer_protocol::order::Outcome;

use super::{Bearer, Body, Waiting, Which, bearer, not_this_way, nothing_here, off_thread, wait_for};
use crate::denied::Denied;
use crate::{Control, unix_ms};

const SMALL: usize = 64 << 10;
/// Thousands of PCI functions and hundreds of drives.
const INVENTORY: usize = 8 << 20;
const EVENTS: usize = 2 << 20;
/// A certificate for each of hundreds of drives.
const OUTCOME: usize = 8 << 20;

impl Control {
    /// What agents talk to, for HTTPS.
    pub fn agent_router(&self) -> Router {
        let limit = |bytes| DefaultBodyLimit::max(bytes);
        Router::new()
            .route(AGENT_ENROL, post(enrol).layer(limit(SMALL)))
            .route(AGENT_INVENTORY, put(inventory).layer(limit(INVENTORY)))
            .route(AGENT_EVENTS, post(events).layer(limit(EVENTS)))
            .route(AGENT_ORDER, get(order))
            .route(&format!("{AGENT_ORDERS}/{{order}}/outcome"), post(outcome).layer(limit(OUTCOME)))
            .route(AGENT_PHONE_HOME, post(phone_home).layer(limit(SMALL)))
            // No fallback: this router is merged with the operators', and only one may have it.
            .route("/agent/{*rest}", any(nothing_here))
            .method_not_allowed_fallback(not_this_way)
            .with_state(self.clone())
    }
}

/// An agent's credential, seen to be good before its body is taken in. What it then does judges it again, in one
/// transaction with what changes.
struct Agent {
    token: String,
    machine: MachineId,
}

impl FromRequestParts<Control> for Agent {
    type Rejection = Denied;
    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self, Denied> {
        let Bearer(token) = bearer(parts)?;
        let claimed = token.clone();
        let machine = match control.known_caller(&token, unix_ms()) {
            Some(machine) => machine,
            None => off_thread(control, move |c| c.caller(&claimed, unix_ms())).await?,
        };
        Ok(Self { token, machine })
    }
}

async fn enrol(
    State(control): State<Control>,
    Bearer(token): Bearer,
    Body(body): Body<Enrol>,
) -> Result<Json<Enrolled>, Denied> {
    off_thread(&control, move |c| c.enrol(&token, &body, unix_ms())).await.map(Json)
}

async fn inventory(
    State(control): State<Control>,
    Agent { token, .. }: Agent,
    Body(body): Body<Inventory>,
) -> Result<StatusCode, Denied> {
    off_thread(&control, move |c| c.take_inventory(&token, &body, unix_ms())).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn events(
    State(control): State<Control>,
    Agent { token, .. }: Agent,
    Body(body): Body<Events>,
) -> Result<Json<EventsStored>, Denied> {
    off_thread(&control, move |c| c.add_events(&token, &body, unix_ms())).await.map(Json)
}

async fn order(
    State(control): State<Control>,
    Agent { token, machine }: Agent,
    waiting: Waiting,
) -> Result<Response, Denied> {
    let could_be = move |c: &Control| c.could_have_order(machine);
    let order = wait_for(&control, machine, waiting.wait, could_be, move |c| c.take_order(&token, unix_ms())).await?;
    Ok(match order {
        Some(order) => Json(order).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

async fn outcome(
    State(control): State<Control>,
    Agent { token, .. }: Agent,
    Which(order): Which<OrderId>,
    Body(body): Body<Outcome>,
) -> Result<StatusCode, Denied> {
    off_thread(&control, move |c| c.take_outcome(&token, order, &body, unix_ms())).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn phone_home(
    State(control): State<Control>,
    Bearer(token): Bearer,
    Body(body): Body<PhonedHome>,
) -> Result<StatusCode, Denied> {
    off_thread(&control, move |c| c.phone_home(&token, &body, unix_ms())).await?;
    Ok(StatusCode::NO_CONTENT)
}
