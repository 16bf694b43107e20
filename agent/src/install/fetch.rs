//! Files of a published image over HTTP, from a server that needn't be good at it: one question, one answer. Who is asked,
//! and whether again, is [`super::sources`]' matter.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use drophammer_protocol::content_range;
use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, LOCATION, RANGE};

/// How long to go on without getting anything, or next to nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) fruitless_tries: u32,
    pub(crate) first_pause: Duration,
    pub(crate) longest_pause: Duration,
    /// Bytes a second, on the average of one answer and after a grace: a server that sends fewer would keep a machine for
    /// days without ever falling silent.
    pub(crate) slowest: u32,
    pub(crate) grace: Duration,
}

impl Patience {
    /// About 45 seconds against a server that refuses connections, and much longer against one that just doesn't
    /// answer: a boot server that restarts, or a switch that does, is waited for.
    pub(crate) const ORDINARY: Self = Self {
        fruitless_tries: 10,
        first_pause: Duration::from_millis(200),
        longest_pause: Duration::from_secs(10),
        slowest: 1000,
        grace: Duration::from_secs(30),
    };

    pub(super) fn pause(self, fruitless: u32) -> Duration {
        let factor = 1u32.checked_shl(fruitless.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_pause.saturating_mul(factor).min(self.longest_pause)
    }
}

/// A whole file that must not be larger than `limit`.
pub(super) fn whole(http: &Client, url: &str, limit: u64, patience: Patience) -> Result<Vec<u8>, Trouble> {
    let response = ask(http.get(url))?;
    let too_large = || Trouble::Final(anyhow::anyhow!("it is larger than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    Paced::new(response, patience).take(limit + 1).read_to_end(&mut bytes).map_err(|e| Trouble::Passing(e.into()))?;
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
#[expect(clippy::too_many_arguments, reason = "what is asked, how, and where the answer goes")]
pub(super) fn range(
    http: &Client,
    url: &str,
    total: u64,
    offset: u64,
    buffer: &mut [u8],
    limit: Option<Duration>,
    patience: Patience,
    fetched: &AtomicU64,
) -> Result<Ranged, Trouble> {
    let end = offset + buffer.len() as u64;
    let mut request = http.get(url).header(RANGE, format!("bytes={offset}-{}", end - 1));
    if let Some(limit) = limit {
        request = request.timeout(limit);
    }
    let response = ask(request)?;
    if response.status() != StatusCode::PARTIAL_CONTENT {
        // The server doesn't know ranges and sends everything from the start.
        return Ok(Ranged::Whole(Whole { response: Paced::new(response, patience), next: 0 }));
    }
    let said = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("");
    match content_range::parse(said) {
        Some((start, size)) if start == offset && size.is_none_or(|size| size == total) => {}
        Some((start, Some(size))) if start == offset => {
            return Err(Trouble::Final(anyhow::anyhow!("the file there has {size} bytes, the manifest says {total}")));
        }
        _ => return Err(Trouble::Passing(anyhow::anyhow!("the server answered with another range ({said:?})"))),
    }
    read_exactly(&mut Paced::new(response, patience), buffer, offset, fetched)?;
    Ok(Ranged::Part)
}

/// All of a file, from a server that is known to send nothing less.
pub(super) fn from_start(http: &Client, url: &str, patience: Patience) -> Result<Whole, Trouble> {
    Ok(Whole { response: Paced::new(ask(http.get(url))?, patience), next: 0 })
}

/// How a server answered when it was asked for a part.
#[expect(clippy::large_enum_variant, reason = "there's one at a time, and it's taken apart at once")]
pub(super) enum Ranged {
    /// With it.
    Part,
    /// With everything.
    Whole(Whole),
}

/// A file that comes from its start to its end, whatever was asked for.
pub(super) struct Whole {
    response: Paced<Response>,
    next: u64,
}

impl Whole {
    /// Whether the bytes from `offset` on are still to come.
    pub(super) fn reaches(&self, offset: u64) -> bool {
        self.next <= offset
    }

    pub(super) fn read(&mut self, offset: u64, buffer: &mut [u8], fetched: &AtomicU64) -> Result<(), Trouble> {
        let skip = offset.saturating_sub(self.next);
        let skipped = io::copy(&mut (&mut self.response).take(skip), &mut io::sink());
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
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Trouble::Passing(e.into())),
        }
    }
    Ok(())
}

fn ended_at(byte: u64) -> Trouble {
    Trouble::Passing(anyhow::anyhow!("the server's answer ended at byte {byte}"))
}

/// An answer that may be too slow. Only the time spent waiting for it counts.
struct Paced<R> {
    from: R,
    patience: Patience,
    waited: Duration,
    got: u64,
}

impl<R> Paced<R> {
    fn new(from: R, patience: Patience) -> Self {
        Self { from, patience, waited: Duration::ZERO, got: 0 }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        let count = self.from.read(buffer)?;
        self.waited += began.elapsed();
        self.got += count as u64;
        let Patience { slowest, grace, .. } = self.patience;
        // What is complete isn't late.
        if count > 0
            && self.waited > grace
            && u128::from(self.got) * 1000 < u128::from(slowest) * self.waited.as_millis()
        {
            let (got, waited) = (self.got, self.waited.as_secs_f32());
            return Err(io::Error::other(format!("the server sent no more than {got} bytes in {waited:.1} s")));
        }
        Ok(count)
    }
}

/// Sends a request for bytes as they lie there, and looks at what kind of answer comes.
fn ask(request: RequestBuilder) -> Result<Response, Trouble> {
    let request = request.header(ACCEPT_ENCODING, "identity");
    let response = check_status(request.send().map_err(|e| Trouble::Passing(e.into()))?)?;
    let encoding = response.headers().get(CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match encoding {
        // The latter says how the file once came to an object store, and nothing of how it leaves it.
        Some(encoding) if !encoding.is_empty() && encoding != "identity" && encoding != "aws-chunked" => {
            Err(Trouble::Final(anyhow::anyhow!(
                "the server sends it encoded as {encoding:?}, which nobody asked for: have it send files as they are"
            )))
        }
        _ => Ok(response),
    }
}

fn check_status(response: Response) -> Result<Response, Trouble> {
    let status = response.status();
    let said = || anyhow::anyhow!("the server answered {status}");
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
        // Nobody is asked whom the order doesn't name.
        _ if status.is_redirection() => Err(Trouble::Final(match response.headers().get(LOCATION) {
            Some(place) => anyhow::anyhow!(
                "the server answered {status} and points to {:?}, which isn't followed: name that server as the store",
                String::from_utf8_lossy(place.as_bytes())
            ),
            None => said(),
        })),
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
