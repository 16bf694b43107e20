//! One HTTP/1.1 connection, as an agent has it: over TCP from the machine's own address, with TLS that believes one
//! authority, and gone with all that is on its way when it's dropped.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waiter, Poll};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use drophammer_protocol::api::Problem;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// As an agent has them.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Lists of machines are the largest.
const LARGEST_ANSWER: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Wire {
    requests: SendRequest<Whole>,
    host: HeaderValue,
    driver: AbortHandle,
}

#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) bearer: Option<String>,
    pub(super) body: Bytes,
    pub(super) within: Duration,
    /// The connection is lost when half of the body is sent.
    pub(super) cut: bool,
}

impl Asked {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            bearer: None,
            body: Bytes::new(),
            within: ANSWER_WITHIN,
            cut: false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// None came, or one that says "not now": worth another try.
    Passing(String),
    /// The server understood and said no.
    Refused { status: StatusCode, detail: String },
}

impl NoAnswer {
    /// Without what is different for each machine, for counting.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Passing(why) => why.clone(),
            Self::Refused { status, .. } => format!("refused: {status}"),
        }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing(why) => f.write_str(why),
            Self::Refused { status, detail } => write!(f, "the server refuses: {detail} ({status})"),
        }
    }
}

impl Wire {
    pub(super) async fn plain(from: Ipv4Addr, to: SocketAddrV4) -> Result<Self, NoAnswer> {
        let stream = connect(from, to).await?;
        Self::over(stream, to).await
    }

    pub(super) async fn tls(from: Ipv4Addr, to: SocketAddrV4, config: &Arc<ClientConfig>) -> Result<Self, NoAnswer> {
        let stream = connect(from, to).await?;
        let name = ServerName::IpAddress((*to.ip()).into());
        let shaken = timeout(CONNECT_WITHIN, TlsConnector::from(Arc::clone(config)).connect(name, stream)).await;
        let stream = shaken.map_err(|_| passing("no TLS handshake within 10 s"))?;
        Self::over(stream.map_err(|e| passing(&format!("TLS handshake: {}", io_kind(&e))))?, to).await
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        to: SocketAddrV4,
    ) -> Result<Self, NoAnswer> {
        let (requests, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|e| passing(&format!("beginning HTTP: {e}")))?;
        // How it ended is told to whoever waits for an answer.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        let host = HeaderValue::from_str(&to.to_string()).map_err(|e| passing(&e.to_string()))?;
        Ok(Self { requests, host, driver })
    }

    pub(super) async fn ask(&mut self, asked: Asked) -> Result<Answer, NoAnswer> {
        let Asked { method, path, bearer, body, within, cut } = asked;
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        if let Some(bearer) = bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {bearer}"));
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Whole { left: Some(body), cut }).map_err(|e| passing(&format!("asking: {e}")))?;
        let answered = async {
            self.requests.ready().await.map_err(|e| lost(&e))?;
            let answer = self.requests.send_request(request).await.map_err(|e| lost(&e))?;
            let (status, body) = (answer.status(), whole(answer.into_body()).await?);
            judged(status, body)
        };
        timeout(within, answered)
            .await
            .unwrap_or_else(|_| Err(passing(&format!("no answer within {} s", within.as_secs()))))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn connect(from: Ipv4Addr, to: SocketAddrV4) -> Result<TcpStream, NoAnswer> {
    let open = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddrV4::new(from, 0).into())?;
        let stream = socket.connect(to.into()).await?;
        stream.set_nodelay(true)?;
        io::Result::Ok(stream)
    };
    let stream = timeout(CONNECT_WITHIN, open).await.map_err(|_| passing("no connection within 10 s"))?;
    stream.map_err(|e| passing(&format!("connecting: {}", io_kind(&e))))
}

fn passing(why: &str) -> NoAnswer {
    NoAnswer::Passing(why.to_owned())
}

fn lost(error: &hyper::Error) -> NoAnswer {
    passing(if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "the server closed the connection"
    } else {
        "the connection was lost"
    })
}

/// Its text may name ports.
fn io_kind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData => error.to_string(),
        kind => kind.to_string(),
    }
}

fn judged(status: StatusCode, body: Bytes) -> Result<Answer, NoAnswer> {
    if status.is_success() {
        return Ok(Answer { status, body });
    }
    let detail = serde_json::from_slice(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).chars().take(200).collect(), |p: Problem| p.detail);
    match status {
        // "Not now" rather than "no".
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(passing(&format!("the server answers {status}")))
        }
        status if status.is_client_error() => Err(NoAnswer::Refused { status, detail }),
        status => Err(passing(&format!("the server answers {status}: {detail}"))),
    }
}

async fn whole(mut body: Incoming) -> Result<Bytes, NoAnswer> {
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|waiter| Pin::new(&mut body).poll_frame(waiter)).await {
        let frame = frame.map_err(|e| lost(&e))?;
        if let Ok(data) = frame.into_data() {
            if all.len() + data.len() > LARGEST_ANSWER {
                return Err(passing("an answer that is too large"));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all.into())
}

/// A body that is there already.
#[derive(Debug)]
struct Whole {
    left: Option<Bytes>,
    cut: bool,
}

impl Body for Whole {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Waiter<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(mut left) = self.left.take().filter(|left| !left.is_empty()) else {
            return Poll::Ready(self.cut.then(|| Err(io::ErrorKind::ConnectionAborted.into())));
        };
        if self.cut {
            left.truncate(left.len() / 2);
        }
        Poll::Ready(Some(Ok(Frame::data(left))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.as_ref().map_or(0, |left| left.len() as u64))
    }

    fn is_end_stream(&self) -> bool {
        !self.cut && self.left.as_ref().is_none_or(Bytes::is_empty)
    }
}

/// Believes the certificates that `ca` (PEM) issued and nothing else. Every machine is new to the server: no handshake is
/// shortened by an earlier one.
pub(super) fn believing(ca: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.context("reading the server's CA")?).context("using the server's CA")?;
    }
    ensure!(!roots.is_empty(), "the server's CA has no certificate in it");
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
