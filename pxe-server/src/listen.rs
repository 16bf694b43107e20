//! Connections: accepted at once, shaken hands with elsewhere, bounded in number and patience, and ended in order.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use drophammer_control::ClientCertificate;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::files;
use crate::http::parcel::Parcel;
use crate::http::{Answerer, Peer};
use crate::plain::{self, Patience};

/// Of agents and operators: each agent that waits for an order has one, all the time.
const MOST_TO_THE_API: usize = 32_768;
/// Of everybody else, who come, fetch something and go.
const MOST_PASSING: usize = 8192;
/// For a TLS handshake, and for a request's head once the connection is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// A machine that was switched off in the middle of a download is given up after this, and so is one that takes nothing.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// As much of an answer as waits in the kernel for one reader where BBR is in charge, doubled there. What the kernel chooses by
/// itself, up to 4 MB, costs BBR half as much processor time again, and twice as much for ranges of 4 MiB, as agents ask for
/// them; with CUBIC it's the other way round.
const ON_THE_WAY: usize = 256 << 10;
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
    let places = Arc::new(Semaphore::new(door.places(files::open_files()?)));
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
                let (answerer, stop) = (Answerer { app: app.clone(), peer, certificate: None }, stop.clone());
                open.spawn(async move {
                    // Machines reset connections all the time: OVMF asks twice, a reboot asks nobody.
                    if let Err(error) = converse(stream, answerer, stop).await {
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
    Plain(TcpStream),
    Local(UnixStream),
    Tls(TcpStream, Arc<rustls::ServerConfig>),
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Door {
    /// How many connections are open at once. Strangers leave files for machines that are enrolled, and all of them some for
    /// the state.
    fn places(&self, open_files: u64) -> usize {
        match self {
            Self::Https(..) => eighths(6, open_files).min(MOST_TO_THE_API),
            Self::Http(_) | Self::Socket(_) => eighths(1, open_files).min(MOST_PASSING),
        }
    }

    async fn accept(&self) -> io::Result<(Stream, Option<Peer>)> {
        match self {
            Self::Http(listener) => {
                let (stream, remote) = listener.accept().await?;
                let peer = Peer { remote, local: stream.local_addr()? };
                tune(&stream)?;
                let socket = SockRef::from(&stream);
                if socket.tcp_congestion().is_ok_and(|name| name.starts_with(b"bbr")) {
                    socket.set_send_buffer_size(ON_THE_WAY)?;
                }
                Ok((Stream::Plain(stream), Some(peer)))
            }
            Self::Https(listener, config) => {
                let (stream, remote) = listener.accept().await?;
                let peer = Peer { remote, local: stream.local_addr()? };
                tune(&stream)?;
                Ok((Stream::Tls(stream, Arc::clone(config)), Some(peer)))
            }
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Local(stream), None))
            }
        }
    }
}

fn eighths(many: u64, of: u64) -> usize {
    usize::try_from(of / 8 * many).unwrap_or(usize::MAX)
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(DEAD_AFTER).with_interval(DEAD_AFTER / 4))
}

async fn converse(stream: Stream, mut answerer: Answerer, mut stop: watch::Receiver<bool>) -> Result<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    let stream: Box<dyn Duplex> = match stream {
        Stream::Plain(stream) => {
            let patience = Patience { to_ask: PATIENCE, to_take: DEAD_AFTER };
            let Some(rest) = plain::converse(stream, &answerer, patience, &mut stop).await? else { return Ok(()) };
            if !rest.is_first {
                builder = builder.http1_only();
            }
            Box::new(rest.stream)
        }
        Stream::Local(stream) => Box::new(stream),
        Stream::Tls(stream, config) => {
            let shake = TlsAcceptor::from(config).accept(stream);
            let stream = tokio::time::timeout(PATIENCE, shake).await.context("waiting for a TLS handshake")??;
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            answerer.certificate = shown.map(|shown| ClientCertificate::of(shown));
            Box::new(stream)
        }
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let answerer = answerer.clone();
        async move { Ok::<_, Infallible>(Parcel::load(answerer.answer(request.map(Body::new)).await)) }
    });
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(DEAD_AFTER).keep_alive_timeout(PATIENCE);
    let mut stream = Box::pin(TimeoutStream::new(stream));
    stream.as_mut().set_write_timeout_pinned(Some(DEAD_AFTER));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        done = connection.as_mut() => return done.map_err(anyhow::Error::from_boxed),
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(anyhow::Error::from_boxed)
}

#[cfg(test)]
mod tests;
