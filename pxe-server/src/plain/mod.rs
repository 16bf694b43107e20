//! The plain door: what nearly every request there is, answered with next to no work.
//!
//! A GET or HEAD over HTTP/1 is read here, decided by the same router as everywhere, and a file in the answer goes from the
//! page cache to the network card by sendfile. What is anything else, [`converse`] leaves to hyper, which knows all of HTTP,
//! with every byte that was read. Both read heads with the same parser, and the tests of `listen` hold both to the same
//! answers.

mod head;
mod send;

#[cfg(fuzzing)]
pub(crate) use self::head::fuzz;

use std::io::{self, Cursor, ErrorKind};
use std::time::{Duration, SystemTime};

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::response::Parts;
use axum::http::{HeaderValue, Version, header};
use axum::response::Response;
use futures_util::TryStreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use self::head::{Asked, Head};
use crate::http::Answerer;
use crate::http::parcel::Parcel;

/// How long a client may keep us waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For all of a request's head.
    pub(crate) to_ask: Duration,
    /// For any of the answer to be taken. The slowest reader there can be is the one that takes a third of what is on the
    /// way in this time.
    pub(crate) to_take: Duration,
}

/// What is left to a server that knows all of HTTP.
pub(crate) struct Rest<S> {
    pub(crate) stream: S,
    /// A connection that began with HTTP/1 goes on with it.
    pub(crate) is_first: bool,
}

/// Answers until the client goes or there's no patience left for it, or `stop` says so or is gone; or up to the first request
/// that isn't for here.
pub(crate) async fn converse(
    mut stream: TcpStream,
    answerer: &Answerer,
    patience: Patience,
    stop: &mut watch::Receiver<bool>,
) -> io::Result<Option<Rest<impl AsyncRead + AsyncWrite + Unpin + Send + use<>>>> {
    let mut unread = Vec::new();
    let mut is_first = true;
    loop {
        let head = tokio::select! {
            head = timeout(patience.to_ask, next(&mut stream, &mut unread)) => head??,
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
        };
        let Asked { request, length, keep } = match head {
            None => return Ok(None),
            Some(Head::Other) => {
                let (read, write) = stream.into_split();
                return Ok(Some(Rest { stream: tokio::io::join(Cursor::new(unread).chain(read), write), is_first }));
            }
            Some(Head::Plain(asked)) => *asked,
        };
        unread.drain(..length);
        is_first = false;
        let keep = keep && !*stop.borrow();
        let version = request.version();
        let answer = answerer.answer(request.map(|()| Body::empty())).await;
        if !send(&mut stream, version, answer, keep, patience.to_take).await? {
            stream.shutdown().await?;
            return Ok(None);
        }
    }
}

/// The head of the next request, or nothing if there's none to come.
async fn next(stream: &mut TcpStream, unread: &mut Vec<u8>) -> io::Result<Option<Head>> {
    loop {
        if let Some(head) = head::read(unread) {
            return Ok(Some(head));
        }
        unread.reserve(head::USUAL);
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}

/// Whether the connection goes on.
async fn send(
    stream: &mut TcpStream,
    version: Version,
    answer: Response,
    keep: bool,
    patience: Duration,
) -> io::Result<bool> {
    let (mut parts, body) = answer.into_parts();
    if let Some(parcel) = parts.extensions.remove::<Parcel>() {
        let head = head::write(&parts, version, keep, SystemTime::now());
        return Ok(send::send(stream, &head, &parcel, patience).await? && keep);
    }
    if body.size_hint().exact().is_none() {
        return pass_on(stream, version, parts, body, keep, patience).await;
    }
    let body = to_bytes(body, usize::MAX).await.map_err(io::Error::other)?;
    if !body.is_empty() {
        parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| body.len().into());
    }
    let mut text = head::write(&parts, version, keep, SystemTime::now());
    text.extend(body);
    write(stream, &text, patience).await?;
    Ok(keep)
}

/// What comes from elsewhere while it is sent, in pieces. Whoever is told no length gets chunks, to tell the end of all from
/// the end of us (RFC 9112 §7.1); HTTP/1.0 has none.
async fn pass_on(
    stream: &mut TcpStream,
    version: Version,
    mut parts: Parts,
    body: Body,
    keep: bool,
    patience: Duration,
) -> io::Result<bool> {
    let announced = parts.headers.get(header::CONTENT_LENGTH);
    let announced: Option<u64> = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    let chunked = announced.is_none() && version == Version::HTTP_11;
    if chunked {
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let keep = keep && (announced.is_some() || chunked);
    write(stream, &head::write(&parts, version, keep, SystemTime::now()), patience).await?;
    let mut left = announced;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.try_next().await.map_err(io::Error::other)? {
        if piece.is_empty() {
            continue;
        }
        if let Some(left) = &mut left {
            *left = left.checked_sub(piece.len() as u64).ok_or(ErrorKind::FileTooLarge)?;
        }
        if chunked {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
            write(stream, &chunk, patience).await?;
        } else {
            write(stream, &piece, patience).await?;
        }
    }
    if left.is_some_and(|left| left > 0) {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if chunked {
        write(stream, b"0\r\n\r\n", patience).await?;
    }
    Ok(keep)
}

async fn write(stream: &mut TcpStream, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        timeout(patience, stream.write_buf(&mut bytes)).await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
