//! Files over HTTP, with something appended where a boot needs it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{Method, Response, header};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};

use super::conditions::{Facts, Plan, plan, said};
use super::parcel::{Edition, Parcel, Sent};

/// Whatever is there, opening it doesn't wait for somebody else.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// A file, followed by bytes that are made for one reader.
#[derive(Debug)]
pub(crate) struct Content {
    file: File,
    path: Arc<Path>,
    edition: Edition,
    tail: Bytes,
    facts: Facts,
}

impl Content {
    /// `None` if there's no such regular file.
    pub(crate) async fn open(path: &Path) -> Result<Option<Self>> {
        let path: Arc<Path> = path.into();
        // Another thread costs more than a short answer, and is of use only where a disk has to be waited for.
        let opened = match openat2(CWD, &*path, FLAGS, Mode::empty(), ResolveFlags::CACHED) {
            Ok(file) => Ok(file),
            // Not in memory, or it can't be opened at all: asked again, that's said.
            Err(_) => {
                let path = Arc::clone(&path);
                let opened = tokio::task::spawn_blocking(move || open(&*path, FLAGS, Mode::empty())).await;
                opened.context("opening a file stopped in the middle")?
            }
        };
        Self::look(path, opened.map(File::from).map_err(io::Error::from))
    }

    fn look(path: Arc<Path>, opened: io::Result<File>) -> Result<Option<Self>> {
        let with_metadata = |file: File| file.metadata().map(|metadata| (file, metadata));
        let (file, metadata) = match opened.and_then(with_metadata) {
            Ok(opened) => opened,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("opening {}", path.display())),
        };
        if !metadata.is_file() {
            return Ok(None);
        }
        let edition = Edition::of(&metadata);
        let modified = edition.modified.and_then(|modified| said(modified, SystemTime::now()));
        let facts = Facts { length: edition.length, tag: edition.tag(), modified };
        Ok(Some(Self { file, path, edition, tail: Bytes::new(), facts }))
    }

    pub(crate) fn file_length(&self) -> u64 {
        self.edition.length
    }

    pub(crate) fn with_tail(mut self, tail: Bytes, name: &str) -> Self {
        self.facts.tag = format!("{}-{name}\"", self.facts.tag.trim_end_matches('"'));
        self.facts.length = self.edition.length + tail.len() as u64;
        self.tail = tail;
        self
    }

    /// The answer to a GET or HEAD; what is to be sent goes along as a [`Parcel`].
    pub(crate) fn respond(self, asked: &Parts, ended: impl Fn(Sent) + Send + Sync + 'static) -> Result<Response<Body>> {
        let plan = plan(&asked.method, &asked.headers, &self.facts);
        let total = self.facts.length;
        let mut answer = Response::builder()
            .status(plan.status())
            .header(header::ETAG, &self.facts.tag)
            .header(header::ACCEPT_RANGES, "bytes");
        if let Some(modified) = self.facts.modified {
            answer = answer.header(header::LAST_MODIFIED, httpdate::fmt_http_date(modified));
        }
        let range = match plan {
            Plan::Whole => 0..total,
            Plan::Part(range) => {
                let said = format!("bytes {}-{}/{total}", range.start, range.end.saturating_sub(1));
                answer = answer.header(header::CONTENT_RANGE, said);
                range
            }
            Plan::OutOfRange => {
                let answer = answer.header(header::CONTENT_RANGE, format!("bytes */{total}"));
                return Ok(answer.body(Body::empty())?);
            }
            Plan::NotModified | Plan::Changed => return Ok(answer.body(Body::empty())?),
        };
        answer = answer
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, range.end - range.start);
        if asked.method == Method::GET {
            let Self { file, path, edition, tail, .. } = self;
            let (range, tail) = cut(range, edition.length, &tail);
            let (file, ended) = (Arc::new(file), Arc::new(ended));
            answer = answer.extension(Parcel { file, path, edition, range, tail, total, ended });
        }
        Ok(answer.body(Body::empty())?)
    }
}

/// A range of file and tail together, as a range of the file and a part of the tail.
fn cut(range: Range<u64>, file_length: u64, tail: &Bytes) -> (Range<u64>, Bytes) {
    let within = |at: u64| usize::try_from(at.saturating_sub(file_length)).unwrap_or(usize::MAX).min(tail.len());
    let rest = tail.slice(within(range.start)..within(range.end));
    (range.start.min(file_length)..range.end.min(file_length), rest)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::body::to_bytes;
    use axum::http::{Request, StatusCode};

    use super::*;

    fn asked(method: Method, headers: &[(header::HeaderName, &str)]) -> Parts {
        let mut request = Request::new(()).into_parts().0;
        request.method = method;
        request.headers = headers.iter().map(|(k, v)| (k.clone(), v.parse().expect("a header"))).collect();
        request
    }

    #[tokio::test]
    async fn file_and_tail_are_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        // More than is read at once.
        let head: Vec<u8> = (0..600_000).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        std::fs::write(&path, &head).expect("written");
        let whole = [&head[..], b"tail"].concat();
        let length = whole.len();
        for (range, want) in [
            ("bytes=0-".to_owned(), 0..length),
            ("bytes=0-3".to_owned(), 0..4),
            (format!("bytes={}-", head.len() - 2), head.len() - 2..length),
            (format!("bytes={}-", head.len()), head.len()..length),
            (format!("bytes={}-{}", head.len() + 1, head.len() + 2), head.len() + 1..head.len() + 3),
            (format!("bytes={}-{}", head.len() - 2, head.len() - 1), head.len() - 2..head.len()),
            ("bytes=-3".to_owned(), length - 3..length),
            (format!("bytes={}-{}", (512 << 10) - 1, 512 << 10), (512 << 10) - 1..(512 << 10) + 1),
        ] {
            let content = Content::open(&path).await.expect("opens").expect("is there");
            let (told, ended) = mpsc::channel();
            let content = content.with_tail(Bytes::from_static(b"tail"), "boot");
            let asked = asked(Method::GET, &[(header::RANGE, &range)]);
            let answer = content.respond(&asked, move |sent| told.send(sent).expect("heard")).expect("an answer");
            assert_eq!(answer.headers()[header::CONTENT_LENGTH], want.len().to_string(), "{range}");
            let body = to_bytes(Parcel::load(answer).into_body(), usize::MAX).await.expect("a body");
            assert_eq!(body, whole[want.clone()], "{range}");
            let sent = ended.recv().expect("its end is told");
            assert_eq!((sent.bytes, sent.wanted, sent.total), (body.len() as u64, want.len() as u64, length as u64));
        }
    }

    #[tokio::test]
    async fn answers_say_what_they_carry() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        std::fs::write(&path, b"content").expect("written");
        File::options().write(true).open(&path).expect("opens").set_modified(SystemTime::UNIX_EPOCH).expect("set");
        let open = async || Content::open(&path).await.expect("opens").expect("is there");
        let tag = open().await.facts.tag;
        for (name, method, headers, want, length, carries) in [
            ("the whole", Method::GET, vec![], StatusCode::OK, Some("7"), true),
            ("its head", Method::HEAD, vec![], StatusCode::OK, Some("7"), false),
            ("a part", Method::GET, vec![(header::RANGE, "bytes=1-2")], StatusCode::PARTIAL_CONTENT, Some("2"), true),
            ("known", Method::GET, vec![(header::IF_NONE_MATCH, &tag)], StatusCode::NOT_MODIFIED, None, false),
            ("past it", Method::GET, vec![(header::RANGE, "bytes=7-")], StatusCode::RANGE_NOT_SATISFIABLE, None, false),
        ] {
            let answer = open().await.respond(&asked(method, &headers), drop).expect("an answer");
            assert_eq!(answer.status(), want, "{name}");
            let said = answer.headers().get(header::CONTENT_LENGTH).map(|v| v.to_str().expect("text"));
            assert_eq!(said, length, "{name}");
            assert!(answer.headers().contains_key(header::LAST_MODIFIED), "{name}");
            assert_eq!(answer.extensions().get::<Parcel>().is_some(), carries, "{name}");
        }
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("made");
        let missing = dir.path().join("missing");
        for (name, path) in
            [("a directory", dir.path()), ("a pipe that nobody writes to", &pipe), ("nothing", &missing)]
        {
            assert!(Content::open(path).await.expect("looked at").is_none(), "{name} is no file");
        }
    }
}
