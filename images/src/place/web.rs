//! A store behind any HTTP server, which need know nothing but files: one question, one answer.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use drophammer_protocol::content_range;
use futures_util::StreamExt;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{StatusCode, Url};
use tokio::runtime::Runtime;

use super::Trouble;
use super::body::{Body, client, runtime};

/// A server that says nothing for so long is asked again.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Web {
    url: String,
    http: reqwest::Client,
    runtime: Arc<Runtime>,
}

impl Web {
    pub(super) fn new(url: &str) -> Result<Self> {
        let parsed = Url::parse(url).map_err(|e| anyhow!("{url} isn't a URL: {e}"))?;
        ensure!(
            parsed.username().is_empty() && parsed.password().is_none(),
            "credentials in a URL are seen by everybody who lists processes: this store has to be readable without"
        );
        ensure!(parsed.query().is_none() && parsed.fragment().is_none(), "{url} has more to it than a path");
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http: client(SILENCE)?, runtime: runtime()? })
    }

    pub(super) fn open(
        &self,
        key: &str,
        offset: u64,
        total: Option<u64>,
    ) -> Result<Option<Box<dyn Read + Send>>, Trouble> {
        // `+` is a space to some servers, in a path of all places.
        let mut request = self.http.get(format!("{}/{}", self.url, key.replace('+', "%2B")));
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let response = self.runtime.block_on(async { request.send().await }).map_err(|e| Trouble::Passing(plain(e)))?;
        let status = response.status();
        let said = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let length = response.content_length();
        let stream = response.bytes_stream().map(|part| part.map_err(plain)).boxed();
        let mut body = Body::new(Arc::clone(&self.runtime), stream);
        match judge(status, &said, length, offset, total)? {
            Answer::Missing => return Ok(None),
            Answer::Part => {}
            Answer::Whole => {
                let skipped = io::copy(&mut (&mut body).take(offset), &mut io::sink());
                let skipped = skipped.map_err(|e| Trouble::Passing(e.into()))?;
                if skipped < offset {
                    return Err(Trouble::Passing(anyhow!("the server's answer ended at byte {skipped}")));
                }
            }
        }
        Ok(Some(Box::new(body)))
    }
}

impl std::fmt::Display for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

/// Its causes, once each; the URL is said by whoever asked.
fn plain(error: reqwest::Error) -> anyhow::Error {
    error.without_url().into()
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Missing,
    /// From the byte that was asked for.
    Part,
    /// From the start, whatever was asked for.
    Whole,
}

/// What an answer is good for.
fn judge(
    status: StatusCode,
    said: &str,
    length: Option<u64>,
    offset: u64,
    total: Option<u64>,
) -> Result<Answer, Trouble> {
    let mismatch =
        |has: u64, want: u64| Trouble::Final(anyhow!("the file there has {has} bytes, the manifest says {want}"));
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Answer::Missing),
        StatusCode::OK => match (length, total) {
            (Some(has), Some(want)) if has != want => Err(mismatch(has, want)),
            _ => Ok(Answer::Whole),
        },
        StatusCode::PARTIAL_CONTENT => match (content_range::parse(said), total) {
            (Some((_, Some(has))), Some(want)) if has != want => Err(mismatch(has, want)),
            (Some((first, _)), _) if first == offset => Ok(Answer::Part),
            _ => Err(Trouble::Passing(anyhow!("the server answered with another range ({said:?})"))),
        },
        StatusCode::RANGE_NOT_SATISFIABLE => {
            Err(Trouble::Final(anyhow!("the file there ends before byte {offset}, the manifest says that it goes on")))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(Trouble::Passing(anyhow!("the server answered {status}")))
        }
        _ if status.is_server_error() => Err(Trouble::Passing(anyhow!("the server answered {status}"))),
        _ => Err(Trouble::Final(anyhow!("the server answered {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_is_good_for() {
        for (name, status, range, length, offset, want) in [
            ("the whole", 200, "", Some(100), 0, "Whole"),
            ("the whole, unasked", 200, "", None, 40, "Whole"),
            ("another length", 200, "", Some(99), 0, "final: the file there has 99 bytes, the manifest says 100"),
            ("the part", 206, "bytes 40-99/100", Some(60), 40, "Part"),
            ("the part of who knows how much", 206, "bytes 40-99/*", Some(60), 40, "Part"),
            ("another part", 206, "bytes 0-99/100", Some(100), 40, "passing: the server answered with another range"),
            ("the part of another", 206, "bytes 40-98/99", Some(59), 40, "final: the file there has 99 bytes"),
            ("a part of nothing said", 206, "", None, 40, "passing: the server answered with another range"),
            ("too short a file", 416, "bytes */30", None, 40, "final: the file there ends before byte 40"),
            ("not there", 404, "", None, 0, "Missing"),
            ("forbidden", 403, "", None, 0, "final: the server answered 403"),
            ("broken", 502, "", None, 0, "passing: the server answered 502"),
            ("busy", 429, "", None, 0, "passing: the server answered 429"),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let got = match judge(status, range, length, offset, Some(100)) {
                Ok(answer) => format!("{answer:?}"),
                Err(Trouble::Passing(why)) => format!("passing: {why:#}"),
                Err(Trouble::Final(why)) => format!("final: {why:#}"),
            };
            assert!(got.starts_with(want), "{name}: {got}");
        }
    }
}
