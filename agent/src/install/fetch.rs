//! Files of a published image over HTTP, from a server that needn't be good at it.
//!
//! One open-ended ranged request carries as many bytes as it can; when it breaks off, the next one starts at the byte
//! that is missing. All retrying of an install is in [`Download::fill`], and it ends: a number of attempts in a row
//! that brought nothing is the limit, however long the image.

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
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

    fn pause(self, fruitless: u32) -> Duration {
        let factor = 1u32.checked_shl(fruitless.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_pause.saturating_mul(factor).min(self.longest_pause)
    }
}

/// A whole file that must not be larger than `limit`.
pub(crate) fn whole(http: &Client, url: &str, limit: u64, patience: Patience) -> anyhow::Result<Vec<u8>> {
    let once = || -> Result<Vec<u8>, Trouble> {
        let response = http.get(url).send().map_err(|e| Trouble::Passing(e.into()))?;
        let response = check_status(response)?;
        let expected = response.content_length();
        if expected.is_some_and(|length| length > limit) {
            return Err(Trouble::Final(anyhow::anyhow!("it is larger than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        response.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Trouble::Passing(e.into()))?;
        if bytes.len() as u64 > limit {
            return Err(Trouble::Final(anyhow::anyhow!("it is larger than {limit} bytes")));
        }
        Ok(bytes)
    };
    let mut tries = 0;
    loop {
        tries += 1;
        match once() {
            Ok(bytes) => return Ok(bytes),
            Err(Trouble::Passing(_)) if tries < patience.fruitless_tries => std::thread::sleep(patience.pause(tries)),
            Err(Trouble::Passing(e)) => return Err(e.context(format!("fetching {url} ({tries} tries)"))),
            Err(Trouble::Final(e)) => return Err(e.context(format!("fetching {url}"))),
        }
    }
}

/// One file of known size, read in pieces that mostly follow each other.
pub(crate) struct Download<'a> {
    http: &'a Client,
    url: String,
    size: u64,
    patience: Patience,
    /// Told of every interruption.
    interrupted: &'a (dyn Fn(String) + Sync),
    /// The request under way and the offset of its next byte.
    body: Option<(Response, u64)>,
    fetched: u64,
}

impl std::fmt::Debug for Download<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download").field("url", &self.url).field("fetched", &self.fetched).finish_non_exhaustive()
    }
}

enum Trouble {
    /// Worth another try.
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

impl<'a> Download<'a> {
    pub(crate) fn new(
        http: &'a Client,
        url: String,
        size: u64,
        patience: Patience,
        interrupted: &'a (dyn Fn(String) + Sync),
    ) -> Self {
        Self { http, url, size, patience, interrupted, body: None, fetched: 0 }
    }

    /// Bytes that came over the network, whether they were of use or not.
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched
    }

    /// Fills `buffer` with the file's bytes from `offset` on.
    pub(crate) fn fill(&mut self, offset: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        let mut filled = 0;
        let (mut fruitless, mut brought) = (0, false);
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = offset + filled as u64;
            match self.read_some(at, rest) {
                Ok(count) => {
                    filled += count;
                    brought = true;
                }
                Err(trouble) => {
                    self.body = None;
                    // An answer that broke off after some bytes was of use.
                    fruitless = if brought { 0 } else { fruitless + 1 };
                    brought = false;
                    let what = || format!("fetching {} from byte {at} on", self.url);
                    let cause = match trouble {
                        Trouble::Final(e) => return Err(e.context(what())),
                        Trouble::Passing(e) if fruitless >= self.patience.fruitless_tries => {
                            return Err(e.context(format!("{}: {fruitless} tries in a row brought nothing", what())));
                        }
                        Trouble::Passing(e) => e,
                    };
                    (self.interrupted)(format!("{} broke off, going on: {cause:#}", what()));
                    std::thread::sleep(self.patience.pause(fruitless));
                }
            }
        }
        Ok(())
    }

    fn read_some(&mut self, at: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        if self.body.as_ref().is_none_or(|(_, next)| *next != at) {
            // Closed before the next one is asked for, so that a server sees one request of ours at a time.
            self.body = None;
            self.body = Some((self.open(at)?, at));
        }
        let Some((body, next)) = &mut self.body else { return Ok(0) };
        let count = body.read(buffer).map_err(|e| Trouble::Passing(e.into()))?;
        if count == 0 {
            return Err(Trouble::Passing(anyhow::anyhow!("the server's answer ended at byte {at} of {}", self.size)));
        }
        *next += count as u64;
        self.fetched += count as u64;
        Ok(count)
    }

    fn open(&mut self, at: u64) -> Result<Response, Trouble> {
        let request = self.http.get(&self.url).header(RANGE, format!("bytes={at}-"));
        let mut response = check_status(request.send().map_err(|e| Trouble::Passing(e.into()))?)?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("");
            return match content_range(range) {
                Some((start, total)) if start == at && total.is_none_or(|total| total == self.size) => Ok(response),
                Some((start, Some(total))) if start == at => Err(Trouble::Final(anyhow::anyhow!(
                    "the file there has {total} bytes, the manifest says {}",
                    self.size
                ))),
                _ => Err(Trouble::Passing(anyhow::anyhow!("the server answered with another range ({range:?})"))),
            };
        }
        // The server doesn't know ranges and sends everything from the start.
        let skipped = std::io::copy(&mut (&mut response).take(at), &mut std::io::sink())
            .map_err(|e| Trouble::Passing(e.into()))?;
        self.fetched += skipped;
        if skipped < at {
            return Err(Trouble::Passing(anyhow::anyhow!(
                "the server's answer ended at byte {skipped} of {}",
                self.size
            )));
        }
        Ok(response)
    }
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

/// RFC 9110 §14.4: first byte and, if told, the file's size.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    if last < first {
        return None;
    }
    match total.trim() {
        "*" => Some((first, None)),
        total => Some((first, Some(total.parse().ok()?))),
    }
}

/// `what` the manifest is, for people: shown where fetching it fails.
pub(crate) fn manifest(http: &Client, image_url: &str) -> anyhow::Result<Vec<u8>> {
    use drophammer_protocol::manifest::{MANIFEST_FILE, MAX_MANIFEST_BYTES};
    whole(http, &file_url(image_url, MANIFEST_FILE), MAX_MANIFEST_BYTES, Patience::ORDINARY)
        .context("the image's manifest can't be had")
}

pub(crate) fn file_url(image_url: &str, file: &str) -> String {
    format!("{}/{file}", image_url.trim_end_matches('/'))
}

/// What a server says of the range that it sends.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    if let Some((first, total)) = content_range(text) {
        let total = total.map_or("*".to_owned(), |total| total.to_string());
        assert!(content_range(&format!("bytes {first}-{first}/{total}")).is_some());
    }
}

#[cfg(test)]
pub(super) mod tests;
