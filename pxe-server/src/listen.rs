//! Connections: accepted at once, shaken hands with elsewhere, bounded in number and patience, and ended in order.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

use drophammer_control::ClientCertificate;

use crate::http::Peer;

const MOST_CONNECTIONS: usize = 8192;
/// For a TLS handshake, and for a request's head once the connection is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// A machine that was switched off in the middle of a download is given up after this.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// What is being answered when the server is told to stop may take as long to end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Door {
    Http(TcpListener),
    Https(TcpListener, Arc<rustls::ServerConfig>),
    /// For operators on this host.
    Socket(UnixListener),
}

/// Binds a TCP port, or says what to look at.
pub(crate) async fn tcp(address: SocketAddr, what: &str, interface: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        let port = address.port();
        format!(
            "binding TCP {address} for {what} (is another server running? `lsof -i :{port}`; has {interface} that address? \
             `ip address show {interface}`; below port 1024 it needs root)"
        )
    })
}

/// Serves `app` until `stop` says so or is gone.
pub(crate) async fn serve(door: Door, app: Router, mut stop: watch::Receiver<bool>) -> Result<()> {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.context("counting connections")?,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            Some(_) = open.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (app, stop) = (app.clone(), stop.clone());
                open.spawn(async move {
                    // Machines reset connections all the time: OVMF asks twice, a reboot asks nobody.
                    if let Err(error) = converse(stream, peer, app, stop).await {
                        debug!(?peer, "a connection ended early: {error:#}");
                    }
                    drop(place);
                });
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            // Out of files or memory: it passes when connections end.
            Err(e) => {
                warn!("accepting a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let ended = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, ended).await.is_err() {
        warn!(connections = open.len(), "stopping in the middle of what is still being sent");
        open.shutdown().await;
    }
    Ok(())
}

enum Stream {
    Plain(Box<dyn Duplex>),
    Tls(TcpStream, Arc<rustls::ServerConfig>),
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Door {
    async fn accept(&self) -> io::Result<(Stream, Option<Peer>)> {
        match self {
            Self::Http(listener) => {
                let (stream, remote) = listener.accept().await?;
                let peer = Peer { remote, local: stream.local_addr()? };
                tune(&stream)?;
                Ok((Stream::Plain(Box::new(stream)), Some(peer)))
            }
            Self::Https(listener, config) => {
                let (stream, remote) = listener.accept().await?;
                let peer = Peer { remote, local: stream.local_addr()? };
                tune(&stream)?;
                Ok((Stream::Tls(stream, Arc::clone(config)), Some(peer)))
            }
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Plain(Box::new(stream)), None))
            }
        }
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(DEAD_AFTER).with_interval(DEAD_AFTER / 4))
}

async fn converse(stream: Stream, peer: Option<Peer>, app: Router, mut stop: watch::Receiver<bool>) -> Result<()> {
    let mut certificate = None;
    let stream: Box<dyn Duplex> = match stream {
        Stream::Plain(stream) => stream,
        Stream::Tls(stream, config) => {
            let shake = TlsAcceptor::from(config).accept(stream);
            let stream = tokio::time::timeout(PATIENCE, shake).await.context("waiting for a TLS handshake")??;
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            certificate = shown.map(|shown| ClientCertificate::of(shown));
            Box::new(stream)
        }
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        if let Some(certificate) = certificate {
            request.extensions_mut().insert(certificate);
        }
        app.clone().oneshot(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(DEAD_AFTER).keep_alive_timeout(PATIENCE);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        done = connection.as_mut() => return done.map_err(anyhow::Error::from_boxed),
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(anyhow::Error::from_boxed)
}
