//! Files over HTTP: ranges, conditions, and something appended where a boot needs it (RFC 9110 §13, §14).

use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use futures_util::stream::{self, Stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// Read and handed on at once. Small pieces cost a thread switch each.
const PIECE: u64 = 512 << 10;

/// A file, followed by bytes that are made for one reader.
#[derive(Debug)]
pub(crate) struct Content {
    file: File,
    file_length: u64,
    tail: Bytes,
    /// Changes whenever the content does.
    tag: String,
}

impl Content {
    /// `None` if there's no such regular file.
    pub(crate) async fn open(path: &Path) -> Result<Option<Self>> {
        let open = async {
            let file = File::open(path).await?;
            let metadata = file.metadata().await?;
            io::Result::Ok((file, metadata))
        };
        let (file, metadata) = match open.await {
            Ok(opened) => opened,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("opening {}", path.display())),
        };
        if !metadata.is_file() {
            return Ok(None);
        }
        let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let tag = format!("\"{:x}-{:x}\"", metadata.len(), modified.as_nanos());
        Ok(Some(Self { file, file_length: metadata.len(), tail: Bytes::new(), tag }))
    }

    pub(crate) fn file_length(&self) -> u64 {
        self.file_length
    }

    pub(crate) fn with_tail(mut self, tail: Bytes, name: &str) -> Self {
        self.tag = format!("{}-{name}\"", self.tag.trim_end_matches('"'));
        self.tail = tail;
        self
    }

    /// The answer to a GET or HEAD. `ended` hears how many bytes were handed over of how many, and how long it took.
    pub(crate) fn respond(
        self,
        headers: &HeaderMap,
        ended: impl FnOnce(Sent) + Send + 'static,
    ) -> Result<Response<Body>> {
        let total = self.file_length + self.tail.len() as u64;
        let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        let tag = HeaderValue::from_str(&self.tag)?;
        let fixed = Response::builder().header(header::ETAG, tag).header(header::ACCEPT_RANGES, "bytes");
        if text(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|t| t.trim() == self.tag)) {
            return Ok(fixed.status(StatusCode::NOT_MODIFIED).body(Body::empty())?);
        }
        // A range of what has changed since would be glued to something else.
        let current = text(header::IF_RANGE).is_none_or(|tag| tag == self.tag);
        let wanted = text(header::RANGE).filter(|_| current).map_or(Wanted::Whole, |range| wanted(range, total));
        let (status, range) = match wanted {
            Wanted::Whole => (StatusCode::OK, 0..total),
            Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            Wanted::Impossible => {
                let range = format!("bytes */{total}");
                let answer = fixed.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, range);
                return Ok(answer.body(Body::empty())?);
            }
        };
        let mut answer = fixed
            .status(status)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, range.end - range.start);
        if status == StatusCode::PARTIAL_CONTENT {
            let said = format!("bytes {}-{}/{total}", range.start, range.end.saturating_sub(1));
            answer = answer.header(header::CONTENT_RANGE, said);
        }
        let sending =
            Sending { sent: 0, whole: range.end - range.start, of: total, since: Instant::now(), ended: Some(ended) };
        Ok(answer.body(Body::from_stream(pieces(self.file, self.file_length, self.tail, range, sending)))?)
    }
}

/// What became of an answer's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    /// As many as were asked for.
    pub(crate) wanted: u64,
    /// As many as there are.
    pub(crate) total: u64,
    pub(crate) took: Duration,
}

/// Tells its end when it's dropped, which is when the body was sent or the reader went away.
struct Sending<F: FnOnce(Sent)> {
    sent: u64,
    whole: u64,
    of: u64,
    since: Instant,
    ended: Option<F>,
}

impl<F: FnOnce(Sent)> Drop for Sending<F> {
    fn drop(&mut self) {
        // A body that was never asked for (HEAD) isn't a transfer.
        if let Some(ended) = self.ended.take().filter(|_| self.sent > 0) {
            ended(Sent { bytes: self.sent, wanted: self.whole, total: self.of, took: self.since.elapsed() });
        }
    }
}

fn pieces<F: FnOnce(Sent) + Send>(
    file: File,
    file_length: u64,
    tail: Bytes,
    range: Range<u64>,
    sending: Sending<F>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((file, range, sending, false), move |(mut file, range, mut sending, placed)| {
        let tail = tail.clone();
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let piece = if range.start < file_length {
                if !placed {
                    file.seek(SeekFrom::Start(range.start)).await?;
                }
                let length = PIECE.min(file_length.min(range.end) - range.start);
                let mut buffer = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
                (&mut file).take(length).read_to_end(&mut buffer).await?;
                if buffer.is_empty() {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the file became shorter while it was sent",
                    ));
                }
                Bytes::from(buffer)
            } else {
                let within = |at: u64| usize::try_from(at - file_length).unwrap_or(usize::MAX).min(tail.len());
                tail.slice(within(range.start)..within(range.end))
            };
            let length = piece.len() as u64;
            sending.sent += length;
            Ok(Some((piece, (file, range.start + length..range.end, sending, true))))
        }
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    Impossible,
}

/// RFC 9110 §14.1.2. What isn't understood, and lists of ranges, get the whole, as §14.2 allows.
fn wanted(header: &str, total: u64) -> Wanted {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|spec| spec.trim().split_once('-')) else {
        return Wanted::Whole;
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let range = match (number(first), number(last)) {
        (Some(first), _) if last.is_empty() => first..total,
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(total),
        (None, Some(length)) if first.is_empty() => total.saturating_sub(length)..total,
        _ => return Wanted::Whole,
    };
    if range.is_empty() { Wanted::Impossible } else { Wanted::Part(range) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::body::to_bytes;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        use Wanted::*;
        for (header, want) in [
            ("bytes=0-9", Part(0..10)),
            ("bytes=10-", Part(10..100)),
            ("bytes=-10", Part(90..100)),
            ("bytes=-1000", Part(0..100)),
            ("bytes=90-1000", Part(90..100)),
            ("bytes=0-18446744073709551615", Part(0..100)),
            ("bytes=100-", Impossible),
            ("bytes=-0", Impossible),
            ("bytes=9-5", Whole),
            ("bytes=+1-5", Whole),
            ("bytes=0-1,5-6", Whole),
            ("bytes=-", Whole),
            ("lines=0-1", Whole),
            ("", Whole),
        ] {
            assert_eq!(wanted(header, 100), want, "{header}");
        }
        assert_eq!(wanted("bytes=0-", 0), Impossible);
    }

    proptest! {
        #[test]
        fn any_range_stays_inside(header in "(bytes=)?[-0-9, +]{0,30}", total: u64) {
            if let Wanted::Part(range) = wanted(&header, total) {
                prop_assert!(range.start < range.end && range.end <= total);
            }
        }
    }

    #[tokio::test]
    async fn file_and_tail_are_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        let head: Vec<u8> = (0..PIECE + 1000).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        std::fs::write(&path, &head).expect("written");
        let whole = [&head[..], b"tail"].concat();
        let length = whole.len();
        for (range, want) in [
            (None, 0..length),
            (Some("bytes=0-3".to_owned()), 0..4),
            (Some(format!("bytes={}-", head.len() - 2)), head.len() - 2..length),
            (Some("bytes=-3".to_owned()), length - 3..length),
            (Some(format!("bytes={}-{}", PIECE - 1, PIECE)), (length - 1005)..(length - 1003)),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(range) = &range {
                headers.insert(header::RANGE, range.parse().expect("a header"));
            }
            let content = Content::open(&path).await.expect("opens").expect("is there");
            let (told, ended) = mpsc::channel();
            let content = content.with_tail(Bytes::from_static(b"tail"), "boot");
            let answer = content.respond(&headers, move |sent| told.send(sent).expect("heard")).expect("an answer");
            assert_eq!(answer.headers()[header::CONTENT_LENGTH], want.len().to_string(), "{range:?}");
            let body = to_bytes(answer.into_body(), usize::MAX).await.expect("a body");
            assert_eq!(body, whole[want.clone()], "{range:?}");
            let sent = ended.recv().expect("its end is told");
            assert_eq!((sent.bytes, sent.wanted, sent.total), (body.len() as u64, want.len() as u64, length as u64));
        }
    }

    #[tokio::test]
    async fn conditions_hold() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        std::fs::write(&path, b"content").expect("written");
        let open = async || Content::open(&path).await.expect("opens").expect("is there");
        let tag = open().await.tag;
        for (name, asked, want) in [
            ("same", vec![(header::IF_NONE_MATCH, tag.clone())], StatusCode::NOT_MODIFIED),
            ("other", vec![(header::IF_NONE_MATCH, "\"x\"".into())], StatusCode::OK),
            (
                "range of the same",
                vec![(header::RANGE, "bytes=1-".into()), (header::IF_RANGE, tag)],
                StatusCode::PARTIAL_CONTENT,
            ),
            (
                "range of another",
                vec![(header::RANGE, "bytes=1-".into()), (header::IF_RANGE, "\"x\"".into())],
                StatusCode::OK,
            ),
            ("range past the end", vec![(header::RANGE, "bytes=7-".into())], StatusCode::RANGE_NOT_SATISFIABLE),
        ] {
            let headers = asked.into_iter().map(|(k, v)| (k, v.parse().expect("a header"))).collect();
            assert_eq!(open().await.respond(&headers, drop).expect("an answer").status(), want, "{name}");
        }
        assert!(Content::open(dir.path()).await.expect("looked at").is_none(), "a directory is no file");
    }
}
