//! What is left of a request's body when its answer is there.
//!
//! Whoever is refused at the door is answered before their body is here. HTTP/2 then resets the stream (RFC 9113 §8.1), and
//! there are clients that take that for the end of everything and throw the answer away, curl 7.88 among them. So what is
//! little and on its way already is taken in first, and forgotten.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use futures_util::StreamExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::timeout;

/// As much as HTTP/2 clients send before they hear anything, by its default window.
const LITTLE: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes a request's body out of what its handler may drop.
#[derive(Debug)]
pub(super) struct Rest(Option<Lent>);

impl Rest {
    pub(super) fn of(request: &mut Request<Body>) -> Self {
        // Who asks whether to send it at all has sent nothing.
        if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
            return Self(None);
        }
        let lent = Lent(Arc::new(Mutex::new(std::mem::take(request.body_mut()))));
        *request.body_mut() = Body::new(lent.clone());
        Self(Some(lent))
    }

    pub(super) async fn take_in(self) {
        let Some(lent) = self.0 else { return };
        if lent.is_end_stream() || lent.size_hint().lower() > LITTLE {
            return;
        }
        let mut pieces = Body::new(lent).into_data_stream();
        let mut left = LITTLE;
        let taking = async {
            while let Some(Ok(piece)) = pieces.next().await {
                left = left.saturating_sub(piece.len() as u64);
                if left == 0 {
                    break;
                }
            }
        };
        // Who hasn't sent it by now gets the answer as it is.
        let _ = timeout(PATIENCE, taking).await;
    }
}

#[derive(Clone, Debug)]
struct Lent(Arc<Mutex<Body>>);

impl Lent {
    fn with<R>(&self, look: impl FnOnce(&mut Body) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use futures_util::stream;

    use super::*;
    use crate::http::Answerer;

    #[tokio::test]
    async fn what_is_refused_is_taken_in_as_far_as_it_is_little() {
        for (name, pieces, expect, want) in
            [("a little", 3, false, 3), ("without end", usize::MAX, false, 64), ("asked first", 3, true, 0)]
        {
            let taken = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&taken);
            let body = stream::iter((0..pieces).map(move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(Bytes::from_static(&[0; 1 << 10]))
            }));
            let mut request = Request::new(Body::from_stream(body));
            if expect {
                request.headers_mut().insert(header::EXPECT, "100-continue".parse().expect("a value"));
            }
            let app = Router::new().fallback(async || StatusCode::UNAUTHORIZED);
            let answer = Answerer { app, peer: None, certificate: None }.answer(request).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{name}");
            assert_eq!(taken.load(Ordering::Relaxed), want, "{name}");
        }
    }

    #[tokio::test]
    async fn who_sends_nothing_is_answered_all_the_same() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let app = Router::new().fallback(async || StatusCode::UNAUTHORIZED);
        let answer = Answerer { app, peer: None, certificate: None }.answer(Request::new(body)).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
}
