//! The paths of backups.

use std::io::{self, Write};
use std::time::Duration;

use aide::OperationOutput;
use aide::axum::ApiRouter;
use aide::axum::routing::{get_with, post_with};
use aide::generate::GenContext;
use aide::openapi::{self, Operation};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use drophammer_protocol::api::{BACKUP, BACKUP_SETTLE, BACKUP_STATUS, BackupStatus};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::describe::Done;
use super::off_thread;
use crate::auth::Caller;
use crate::denied::Denied;
use crate::{Control, unix_ms};

const PACKED: &str = "application/zstd";
const PIECE: usize = 64 << 10;
const PIECES_WAITING: usize = 8;
/// Whoever takes nothing for as long has gone; what was being read is held for them all the while.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn routes(router: ApiRouter<Control>) -> ApiRouter<Control> {
    router
        .api_route(BACKUP_STATUS, get_with(status, |op| op.summary("The server's own backups, and if it was restored")))
        .api_route(BACKUP_SETTLE, post_with(settle, |op| op.summary("What was restored is as the machines are")))
}

/// Apart from the others, for it's too much to be one of several answers in one.
pub(super) fn download(router: ApiRouter<Control>) -> ApiRouter<Control> {
    router
        .api_route(BACKUP, get_with(backup, |op| op.summary("All of the state and its keys: the content of a backup")))
}

/// Packed lines of JSON, as they come.
struct Packed(ReceiverStream<io::Result<Bytes>>);

impl IntoResponse for Packed {
    fn into_response(self) -> Response {
        let mut answer = Body::from_stream(self.0).into_response();
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PACKED));
        answer
    }
}

impl OperationOutput for Packed {
    type Inner = ();

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, openapi::Response)> {
        let content = [(PACKED.to_owned(), openapi::MediaType::default())].into_iter().collect();
        let description = "Lines of JSON, packed by zstd. It's whole if the last one says so.".into();
        vec![(Some(200), openapi::Response { description, content, ..openapi::Response::default() })]
    }
}

async fn status(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<BackupStatus>, Denied> {
    let read = move |c: &Control| {
        caller.must_see_all()?;
        Ok(c.backup_status()?)
    };
    off_thread(&control, read).await.map(Json)
}

async fn settle(State(control): State<Control>, Extension(caller): Extension<Caller>) -> Result<Done, Denied> {
    let work = move |c: &Control| {
        caller.must_be_admin()?;
        c.settle(&caller.who, unix_ms())
    };
    off_thread(&control, work).await.map(|()| Done)
}

/// An answer that breaks off: whoever reads it sees that its end is missing.
async fn backup(State(control): State<Control>, Extension(caller): Extension<Caller>) -> Result<Packed, Denied> {
    caller.must_be_admin()?;
    let (pieces, taken) = mpsc::channel(PIECES_WAITING);
    tokio::task::spawn_blocking(move || {
        let mut stream =
            Stream { pieces, piece: Vec::with_capacity(PIECE), runtime: tokio::runtime::Handle::current() };
        let done = control.back_up(&caller.who, &mut stream);
        if let Err(error) = done.and_then(|_| Ok(stream.send()?)) {
            tracing::error!("sending a backup: {error:#}");
            stream.break_off();
        }
    });
    Ok(Packed(ReceiverStream::new(taken)))
}

/// From a thread that writes to a connection that takes it when it can.
struct Stream {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
    runtime: tokio::runtime::Handle,
}

impl Stream {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.runtime
            .block_on(self.pieces.send_timeout(Ok(piece.into()), PATIENCE))
            .map_err(|_| io::Error::other("whoever wanted the backup doesn't take it"))
    }

    fn break_off(&mut self) {
        // Whoever doesn't take that has gone.
        let _ = self.pieces.try_send(Err(io::Error::other("the backup can't be read")));
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        let some = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend(bytes.iter().take(some));
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
