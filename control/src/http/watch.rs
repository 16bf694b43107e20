//! `GET /v1/watch`: everything that changes, as server-sent events.
//!
//! An event's id is the store's revision. Whoever comes back with the last one it saw (`Last-Event-ID`) hears of everything
//! since; if that isn't known any more, it's told so and reads everything anew. Whoever is too slow is cut off and comes
//! back.

use std::collections::HashSet;
use std::time::Duration;

use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{self, Operation};
use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use drophammer_protocol::api::{Changed, News as Told};
use drophammer_protocol::id::MachineId;
use drophammer_protocol::resource::{Kind, Project, Reservation, Tenant};
use futures_util::stream::{self, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Seen, off_thread};
use crate::Control;
use crate::auth::Caller;
use crate::denied::Denied;
use crate::pool::Known;
use crate::records::Record;
use crate::store::{News, decode};

/// As many commits may wait for a slow reader.
const MOST_WAITING: usize = 4096;
/// Who hears nothing for longer thinks that nobody is there.
const BETWEEN_SIGNS: Duration = Duration::from_secs(15);

/// An endless answer.
pub(super) struct Stream(Response);

impl IntoResponse for Stream {
    fn into_response(self) -> Response {
        self.0
    }
}

impl OperationOutput for Stream {
    type Inner = Told;

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, openapi::Response)> {
        let content = [("text/event-stream".to_owned(), openapi::MediaType::default())];
        let description = "Events `ready`, `changed` and `lost`, each with a News as its data.".into();
        vec![(Some(200), openapi::Response { description, content: content.into_iter().collect(), ..<_>::default() })]
    }
}

pub(super) async fn watch(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    seen: Seen,
    headers: HeaderMap,
) -> Result<Stream, Denied> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse::<u64>().ok());
    let (sender, receiver) = mpsc::channel(MOST_WAITING);
    let begin = move |c: &Control| {
        let (_, now) = c.store().entries(NOTHING)?;
        let after = last.or(seen.after).unwrap_or(now);
        let tell = move |news| sender.try_send(news).is_ok();
        c.store().watch(after, Box::new(tell))?;
        Ok(after)
    };
    let after = off_thread(&control, begin).await?;
    let mut filter = Filter { control, caller, kinds: seen.kinds(), shown: HashSet::new() };
    let ready = event("ready", after, &Told { revision: after, changes: vec![] });
    let news = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let told = news.filter_map(move |news| {
        let event = match news {
            News::Lost => Some(event("lost", 0, &Told { revision: 0, changes: vec![] })),
            News::Changed { revision, changes } => {
                let changes: Vec<Changed> =
                    changes.iter().filter_map(|(key, value)| filter.show(key, value.as_deref())).collect();
                (!changes.is_empty()).then(|| event("changed", revision, &Told { revision, changes }))
            }
        };
        std::future::ready(event)
    });
    let all = stream::once(std::future::ready(ready)).chain(told);
    Ok(Stream(Sse::new(all).keep_alive(KeepAlive::new().interval(BETWEEN_SIGNS)).into_response()))
}

/// No key begins like this.
const NOTHING: &str = "\u{1}";

/// What can't be written ends the stream: whoever listens comes back, and misses nothing unknowingly.
fn event(name: &str, revision: u64, told: &Told) -> Result<Event, axum::Error> {
    Event::default().event(name).id(revision.to_string()).json_data(told)
}

/// What one caller may see of what was asked for.
struct Filter {
    control: Control,
    caller: Caller,
    /// All, if none is named.
    kinds: Vec<String>,
    /// Machines that the caller was told of.
    shown: HashSet<MachineId>,
}

impl Filter {
    fn show(&mut self, key: &[u8], value: Option<&[u8]>) -> Option<Changed> {
        let (kind, name) = std::str::from_utf8(key).ok()?.split_once('/')?;
        if !self.kinds.is_empty() && !self.kinds.iter().any(|wanted| wanted == kind) {
            return None;
        }
        let object = match kind {
            "machine" => return self.machine(name.parse().ok()?, key, value),
            "partition" | "size" | "layout" | "image-policy" => value,
            "image-source" if self.caller.may_see_all() => value,
            "tenant" | "project" | "reservation" if self.sees(kind, name, value) => value,
            _ => return None,
        };
        let object = object.map(|value| decode::<Value>(key, value)).transpose().ok()?;
        Some(Changed { kind: kind.to_owned(), name: name.to_owned(), object })
    }

    fn machine(&mut self, id: MachineId, key: &[u8], value: Option<&[u8]>) -> Option<Changed> {
        let record = value.map(|value| decode::<Record>(key, value)).transpose().ok()?;
        let visible = {
            let tables = self.control.inner.pool.read();
            record.filter(|record| self.caller.sees(record, &tables))
        };
        let object = match visible {
            Some(record) => {
                self.shown.insert(id);
                let known = self.control.inner.pool.machine(id);
                let (size, rack) = known.map(|Known { size, rack, .. }| (size, rack)).unwrap_or_default();
                let machine = self.control.record_in_short(record, size.as_deref(), rack.as_deref());
                Some(serde_json::to_value(machine).ok()?)
            }
            // It's gone, or somebody else's now.
            None if self.shown.remove(&id) || self.caller.may_see_all() => None,
            None => return None,
        };
        Some(Changed { kind: "machine".into(), name: id.to_string(), object })
    }

    fn sees(&self, kind: &str, name: &str, value: Option<&[u8]>) -> bool {
        let tables = self.control.inner.pool.read();
        match kind {
            Tenant::NAME => self.caller.right_of_tenant(name, &tables).is_some(),
            Project::NAME => self.caller.right_in(name, &tables).is_some(),
            Reservation::NAME => {
                let reservation = value.and_then(|value| decode::<Reservation>(b"", value).ok());
                let project = reservation.map(|reservation| reservation.project);
                project.map_or(self.caller.may_see_all(), |project| self.caller.right_in(&project, &tables).is_some())
            }
            _ => false,
        }
    }
}
