//! Files of a published image over HTTP, from a server that needn't be good at it: one question, one answer. Who is asked,
//! and whether again, is [`super::sources`]' matter.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use drophammer_protocol::content_range;
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_RANGE, RANGE};

/// How long to go on without getting anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) fruitless_tries: u32,
    pub(crate) first_pause: Duration,
    pub(crate) longest_pause: Duration,
}

impl Patience {
    /// About 45 seconds against a server that refuses connections, and much longer against one that just doesn't
    /// answer: a boot server that restarts, or a switch that does, is waited for.
    pub(crate) const ORDINARY: Self =
        Self { fruitless_tries: 10, first_pause: Duration::from_millis(200), longest_pause: Duration::from_secs(10) };

    pub(super) fn pause(self, fruitless: u32) -> Duration {
        let factor = 1u32.checked_shl(fruitless.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_pause.saturating_mul(factor).min(self.longest_pause)
    }
}

/// A whole file that must not be larger than `limit`.
pub(super) fn whole(http: &Client, url: &str, limit: u64) -> Result<Vec<u8>, Trouble> {
    let response = http.get(url).send().map_err(|e| Trouble::Passing(e.into()))?;
    let response = check_status(response)?;
    let too_large = || Trouble::Final(anyhow::anyhow!("it is larger than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    response.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Trouble::Passing(e.into()))?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

#[derive(Debug)]
pub(super) enum Trouble {
    /// Worth another try.
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

/// Bytes of a file that has `total` of them, from `offset` on, as many as `buffer` holds. How many came over the network
/// is added to `fetched`, whether they were of use or not.
pub(super) fn range(
    http: &Client,
    url: &str,
    total: u64,
    offset: u64,
    buffer: &mut [u8],
    limit: Option<Duration>,
    fetched: &AtomicU64,
) -> Result<Ranged, Trouble> {
    let end = offset + buffer.len() as u64;
    let mut request = http.get(url).header(RANGE, format!("bytes={offset}-{}", end - 1));
    if let Some(limit) = limit {
        request = request.timeout(limit);
    }
    let mut response = check_status(request.send().map_err(|e| Trouble::Passing(e.into()))?)?;
    if response.status() != StatusCode::PARTIAL_CONTENT {
        // The server doesn't know ranges and sends everything from the start.
        return Ok(Ranged::Whole(Whole { response, next: 0 }));
    }
    let said = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("");
    match content_range::parse(said) {
        Some((start, size)) if start == offset && size.is_none_or(|size| size == total) => {}
        Some((start, Some(size))) if start == offset => {
            return Err(Trouble::Final(anyhow::anyhow!("the file there has {size} bytes, the manifest says {total}")));
        }
        _ => return Err(Trouble::Passing(anyhow::anyhow!("the server answered with another range ({said:?})"))),
    }
    read_exactly(&mut response, buffer, offset, fetched)?;
    Ok(Ranged::Part)
}

/// All of a file, from a server that is known to send nothing less.
pub(super) fn from_start(http: &Client, url: &str) -> Result<Whole, Trouble> {
    let response = check_status(http.get(url).send().map_err(|e| Trouble::Passing(e.into()))?)?;
    Ok(Whole { response, next: 0 })
}

/// How a server answered when it was asked for a part.
pub(super) enum Ranged {
    /// With it.
    Part,
    /// With everything.
    Whole(Whole),
}

/// A file that comes from its start to its end, whatever was asked for.
pub(super) struct Whole {
    response: Response,
    next: u64,
}

impl Whole {
    /// Whether the bytes from `offset` on are still to come.
    pub(super) fn reaches(&self, offset: u64) -> bool {
        self.next <= offset
    }

    pub(super) fn read(&mut self, offset: u64, buffer: &mut [u8], fetched: &AtomicU64) -> Result<(), Trouble> {
        let skip = offset.saturating_sub(self.next);
        let skipped = std::io::copy(&mut (&mut self.response).take(skip), &mut std::io::sink());
        let skipped = skipped.map_err(|e| Trouble::Passing(e.into()))?;
        fetched.fetch_add(skipped, Ordering::Relaxed);
        self.next += skipped;
        if skipped < skip {
            return Err(ended_at(self.next));
        }
        read_exactly(&mut self.response, buffer, offset, fetched)?;
        self.next += buffer.len() as u64;
        Ok(())
    }
}

fn read_exactly(from: &mut impl Read, buffer: &mut [u8], at: u64, fetched: &AtomicU64) -> Result<(), Trouble> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => return Err(ended_at(at + filled as u64)),
            Ok(count) => {
                filled += count;
                fetched.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Trouble::Passing(e.into())),
        }
    }
    Ok(())
}

fn ended_at(byte: u64) -> Trouble {
    Trouble::Passing(anyhow::anyhow!("the server's answer ended at byte {byte}"))
}

fn check_status(response: Response) -> Result<Response, Trouble> {
    let status = response.status();
    let said = || anyhow::anyhow!("the server answered {status}");
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Trouble::Passing(said())),
        _ if status.is_server_error() => Err(Trouble::Passing(said())),
        _ => Err(Trouble::Final(said())),
    }
}

/// What a server says of the range that it sends.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    if let Some((first, total)) = content_range::parse(text) {
        let total = total.map_or("*".to_owned(), |total| total.to_string());
        assert!(content_range::parse(&format!("bytes {first}-{first}/{total}")).is_some());
    }
}

#[cfg(test)]
pub(super) mod tests;
