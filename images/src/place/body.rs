//! Answers that come over a network, for code that waits: a few threads do the network's work, and everything that decides
//! is ordinary code.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::runtime::{Builder, Runtime};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The one that every place of this process shares, for as long as there is one.
pub(super) fn runtime() -> Result<Arc<Runtime>> {
    static SHARED: Mutex<Weak<Runtime>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = shared.upgrade() {
        return Ok(runtime);
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting threads")?;
    let runtime = Arc::new(runtime);
    *shared = Arc::downgrade(&runtime);
    Ok(runtime)
}

/// Speaks TLS with what the host trusts (`SSL_CERT_FILE` names another file), and gives up on whoever is silent for long.
pub(super) fn client(silence: Duration) -> Result<reqwest::Client> {
    // The one provider there is here; whoever installed it before installed the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("drophammer/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_WITHIN)
        .read_timeout(silence)
        .build()
        .context("making an HTTP client")
}

/// What is still to come of an answer.
pub(super) struct Body {
    runtime: Arc<Runtime>,
    stream: BoxStream<'static, Result<Bytes>>,
    rest: Bytes,
}

impl Body {
    pub(super) fn new(runtime: Arc<Runtime>, stream: BoxStream<'static, Result<Bytes>>) -> Self {
        Self { runtime, stream, rest: Bytes::new() }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(part) => self.rest = part.map_err(io::Error::other)?,
            }
        }
        let n = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
