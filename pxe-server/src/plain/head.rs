//! The heads of requests that the plain server answers, and of its answers. Pure: bytes in, values out.

use std::time::SystemTime;

use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};

/// The firmware, boot loaders and agents that come here say what they want in less than this.
pub(super) const USUAL: usize = 1 << 10;
const LONGEST: usize = 8 << 10;
const MOST_HEADERS: usize = 64;

#[derive(Debug)]
pub(super) enum Head {
    Plain(Box<Asked>),
    /// Anything that isn't plainly a GET or HEAD and no more. It may well be good HTTP; it's for a server that knows all of it.
    Other,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request<()>,
    /// Bytes of the head.
    pub(super) length: usize,
    /// Whether the client means to ask again on this connection.
    pub(super) keep: bool,
}

/// The head that these bytes begin with, unless they are too few to tell.
pub(super) fn read(bytes: &[u8]) -> Option<Head> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= LONGEST => {
            Some(plain(&request, length).map_or(Head::Other, Head::Plain))
        }
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => None,
        _ => Some(Head::Other),
    }
}

fn plain(parsed: &httparse::Request<'_, '_>, length: usize) -> Option<Box<Asked>> {
    let method = Method::from_bytes(parsed.method?.as_bytes()).ok();
    let method = method.filter(|method| [Method::GET, Method::HEAD].contains(method))?;
    let version = if parsed.version? == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let path = parsed.path.filter(|path| path.starts_with('/'))?;
    let uri: Uri = path.parse().ok()?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT, header::UPGRADE]
        .iter()
        .any(|name| headers.contains_key(name))
    {
        return None;
    }
    let keep = keep(version, &headers);
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) = (method, uri, version);
    *request.headers_mut() = headers;
    Some(Box::new(Asked { request, length, keep }))
}

/// RFC 9112 §9.3.
fn keep(version: Version, headers: &HeaderMap) -> bool {
    let says = |word: &str| {
        let lines = headers.get_all(header::CONNECTION).into_iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|said| said.trim().eq_ignore_ascii_case(word))
    };
    !says("close") && (version == Version::HTTP_11 || says("keep-alive"))
}

/// An answer's head, up to its empty line.
pub(super) fn write(answer: &Parts, version: Version, keep: bool, now: SystemTime) -> Vec<u8> {
    let status = answer.status;
    let mut text = format!("{version:?} {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    text.push_str(&format!("date: {}\r\n", httpdate::fmt_http_date(now)));
    // Each says only what its version of HTTP doesn't take for granted.
    match (version, keep) {
        (Version::HTTP_10, true) => text.push_str("connection: keep-alive\r\n"),
        (Version::HTTP_11, false) => text.push_str("connection: close\r\n"),
        _ => {}
    }
    let mut bytes = text.into_bytes();
    for (name, value) in &answer.headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    bytes
}

/// However a head is split over packets it's the same one, and what follows it isn't part of it.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) -> Option<Request<()>> {
    let Head::Plain(whole) = read(bytes)? else { return None };
    let (head, _) = bytes.split_at(whole.length);
    assert!(
        [1, 2, whole.length / 2].into_iter().all(|less| read(&head[..whole.length.saturating_sub(less)]).is_none())
    );
    let Some(Head::Plain(alone)) = read(head) else { panic!("the head alone is another one") };
    assert_eq!((alone.length, alone.keep, alone.request.uri()), (whole.length, whole.keep, whole.request.uri()));
    Some(whole.request)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use axum::http::Response;
    use proptest::prelude::*;

    use super::*;

    /// As a table shows it best.
    fn seen(bytes: &[u8]) -> String {
        match read(bytes) {
            None => "more".into(),
            Some(Head::Other) => "other".into(),
            Some(Head::Plain(asked)) => {
                let Asked { request, length, keep } = *asked;
                let rest = bytes.len() - length;
                format!("{} {} keep={keep} rest={rest}", request.method(), request.uri().path())
            }
        }
    }

    #[test]
    fn heads() {
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(LONGEST));
        let endless = "GET / HTTP/1.1\r\nx: ".to_owned() + &"y".repeat(LONGEST);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(MOST_HEADERS + 1));
        for (name, bytes, want) in [
            ("the shortest", "GET / HTTP/1.1\r\n\r\n", "GET / keep=true rest=0"),
            ("head", "HEAD /a?b HTTP/1.1\r\nhost: x\r\n\r\n", "HEAD /a keep=true rest=0"),
            ("two at once", "GET /a HTTP/1.1\r\n\r\nGET /b HT", "GET /a keep=true rest=9"),
            ("bare line feeds", "GET /a HTTP/1.1\nhost: x\n\n", "GET /a keep=true rest=0"),
            ("empty lines before", "\r\n\r\nGET / HTTP/1.1\r\n\r\n", "GET / keep=true rest=0"),
            ("two slashes", "GET //h/a HTTP/1.1\r\n\r\n", "GET //h/a keep=true rest=0"),
            ("the last", "GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", "GET / keep=false rest=0"),
            ("the last of a list", "GET / HTTP/1.1\r\nconnection: te, close\r\n\r\n", "GET / keep=false rest=0"),
            (
                "both",
                "GET / HTTP/1.1\r\nconnection: keep-alive\r\nconnection: close\r\n\r\n",
                "GET / keep=false rest=0",
            ),
            ("1.0", "GET / HTTP/1.0\r\n\r\n", "GET / keep=false rest=0"),
            ("1.0 that stays", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET / keep=true rest=0"),
            ("nothing yet", "", "more"),
            ("half a head", "GET / HTTP/1.1\r\nhost: x\r\n", "more"),
            ("the beginning of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "other"),
            ("HTTP/0.9", "GET /\r\n", "other"),
            ("another method", "POST / HTTP/1.1\r\n\r\n", "other"),
            ("a body", "GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx", "other"),
            ("a body in chunks", "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", "other"),
            ("a question before the body", "GET / HTTP/1.1\r\nexpect: 100-continue\r\n\r\n", "other"),
            ("another protocol", "GET / HTTP/1.1\r\nupgrade: h2c\r\n\r\n", "other"),
            ("a host before the path", "GET http://h:80/a HTTP/1.1\r\n\r\n", "other"),
            ("no path", "GET * HTTP/1.1\r\n\r\n", "other"),
            ("only a host", "GET h:80 HTTP/1.1\r\n\r\n", "other"),
            ("TLS", "\u{16}\u{3}\u{1}", "other"),
            ("a folded header", "GET / HTTP/1.1\r\na: b\r\n c: d\r\n\r\n", "other"),
            ("a blank in a name", "GET / HTTP/1.1\r\nhost : x\r\n\r\n", "other"),
            ("too long", &long, "other"),
            ("too long already", &endless, "other"),
            ("too many headers", &many, "other"),
        ] {
            assert_eq!(seen(bytes.as_bytes()), want, "{name}");
        }
    }

    #[test]
    fn answers() {
        for (version, keep, want) in [
            (
                Version::HTTP_11,
                true,
                "HTTP/1.1 206 Partial Content\r\ndate: Thu, 01 Jan 1970 00:00:01 GMT\r\netag: \"a\"\r\n\r\n",
            ),
            (
                Version::HTTP_11,
                false,
                "HTTP/1.1 206 Partial Content\r\ndate: Thu, 01 Jan 1970 00:00:01 GMT\r\nconnection: close\r\netag: \"a\"\r\n\r\n",
            ),
            (
                Version::HTTP_10,
                true,
                "HTTP/1.0 206 Partial Content\r\ndate: Thu, 01 Jan 1970 00:00:01 GMT\r\nconnection: keep-alive\r\netag: \"a\"\r\n\r\n",
            ),
            (
                Version::HTTP_10,
                false,
                "HTTP/1.0 206 Partial Content\r\ndate: Thu, 01 Jan 1970 00:00:01 GMT\r\netag: \"a\"\r\n\r\n",
            ),
        ] {
            let answer = Response::builder().status(206).header("etag", "\"a\"").body(()).expect("an answer");
            let text = write(&answer.into_parts().0, version, keep, UNIX_EPOCH + Duration::from_secs(1));
            assert_eq!(String::from_utf8(text).expect("text"), want);
        }
    }

    /// Bytes that look enough like requests to get past the first line.
    fn likely() -> impl Strategy<Value = Vec<u8>> {
        let words = prop::sample::select(vec![
            "GET ",
            "HEAD ",
            "POST ",
            "/a",
            "http://h",
            "*",
            " HTTP/1.1",
            " HTTP/1.0",
            "\r\n",
            "\n",
            "\r\n\r\n",
            "host: x",
            "connection: ",
            "close",
            "keep-alive",
            "content-length: 1",
            "\0",
            "\u{e4}",
            ": ",
            ",",
        ]);
        prop::collection::vec(words, 0..20).prop_map(|words| words.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            if let Some(Head::Plain(asked)) = read(&bytes) {
                prop_assert!(asked.length <= bytes.len());
            }
        }

        /// However a head is split over packets, it's the same head, and what follows it isn't part of it.
        #[test]
        fn splits_change_nothing(bytes in likely(), more: Vec<u8>) {
            if let Some(Head::Plain(whole)) = read(&bytes) {
                for split in 0..whole.length {
                    prop_assert!(read(&bytes[..split]).is_none(), "{split}");
                }
                let followed = [&bytes[..whole.length], &more].concat();
                let Some(Head::Plain(again)) = read(&followed) else { return Err(TestCaseError::fail("lost")) };
                prop_assert_eq!(again.length, whole.length);
                prop_assert_eq!(again.request.uri(), whole.request.uri());
            }
        }
    }
}
