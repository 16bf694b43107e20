//! Big files over HTTP: resumed where they broke off, also by the next process, and never put together from two versions of
//! a file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::Flock;
use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{StatusCode, Url};

use crate::cache;

const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// Between two reads; how long all of it takes depends on its size.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// In a row that brought nothing.
const FRUITLESS_TRIES: u32 = 5;
const FIRST_PAUSE: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };
/// No root file system is larger; a server that never stops sending isn't to fill the disk.
const MAX_BYTES: u64 = 256 << 30;
const BUFFER: usize = 1 << 20;

pub(super) struct Http(Client);

/// Why something didn't come.
#[derive(Debug)]
pub(super) enum Trouble {
    NotThere,
    /// Worth another try.
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

impl Trouble {
    pub(super) fn into_error(self) -> anyhow::Error {
        match self {
            Self::NotThere => anyhow!("the server has no such file"),
            Self::Passing(error) | Self::Final(error) => error,
        }
    }
}

/// A whole file, which nobody else fetches or removes meanwhile.
#[derive(Debug)]
pub(super) struct Downloaded {
    pub(super) path: PathBuf,
    _lock: Flock<File>,
}

impl Http {
    /// For addresses like this one.
    pub(super) fn like(url: &Url) -> Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("drophammer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN);
        let client = if url.scheme() == "https" {
            // By the host's own authorities. Whoever was first has set the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
            client
        } else {
            // A host without any can still fetch by HTTP.
            let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .context("setting up TLS")?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            client.tls_backend_preconfigured(tls)
        };
        client.build().map(Self).context("making an HTTP client (for https the package ca-certificates is needed)")
    }

    /// A file that has to be small.
    pub(super) fn small(&self, url: &Url, most: u64) -> Result<Vec<u8>, Trouble> {
        persist(|| {
            let response = self.ask(url, HeaderMap::new()).map_err(|trouble| (trouble, Got::Nothing))?;
            let mut bytes = Vec::new();
            let read = response.take(most + 1).read_to_end(&mut bytes);
            read.map_err(|e| (Trouble::Passing(e.into()), Got::Nothing))?;
            if bytes.len() as u64 > most {
                return Err((Trouble::Final(anyhow!("it is larger than {most} bytes")), Got::Nothing));
            }
            Ok(bytes)
        })
    }

    /// Fetches it to a file beside `place`, or what is left of it.
    pub(super) fn download(&self, url: &Url, place: &Path, say: &dyn Fn(u64, Option<u64>)) -> Result<Downloaded> {
        let lock = cache::lock(&place.with_extension("lock"))?;
        let whole = place.with_extension("whole");
        if !whole.exists() {
            let part = place.with_extension("part");
            let version = place.with_extension("version");
            persist(|| {
                let mut got = Got::Nothing;
                self.rest(url, &part, &version, &mut got, say).map_err(|trouble| (trouble, got))
            })
            .map_err(Trouble::into_error)?;
            fs::rename(&part, &whole).with_context(|| format!("renaming {}", part.display()))?;
        }
        Ok(Downloaded { path: whole, _lock: lock })
    }

    /// Adds to `part` what it lacks. `version` is what the server called the file that it's a part of.
    fn rest(
        &self,
        url: &Url,
        part: &Path,
        version: &Path,
        got: &mut Got,
        say: &dyn Fn(u64, Option<u64>),
    ) -> Result<(), Trouble> {
        let here = |e: std::io::Error| Trouble::Final(anyhow!(e).context(format!("writing {}", part.display())));
        let mut file = File::options().create(true).append(true).open(part).map_err(here)?;
        let known = fs::read_to_string(version).unwrap_or_default();
        let mut at = file.metadata().map_err(here)?.len();
        if known.is_empty() {
            // Nobody could say whether the rest is of the same file.
            at = 0;
        }
        let mut headers = HeaderMap::new();
        if let (true, Ok(known)) = (at > 0, known.parse()) {
            headers.insert(IF_RANGE, known);
            headers.insert(RANGE, format!("bytes={at}-").parse().map_err(|e| Trouble::Final(anyhow!("{e}")))?);
        }
        let mut response = self.ask(url, headers)?;
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && text(&response, CONTENT_RANGE).is_some_and(|range| range.starts_with(&format!("bytes {at}-")));
        if response.status() == StatusCode::PARTIAL_CONTENT && !goes_on {
            forget(version)?;
            return Err(Trouble::Passing(anyhow!("the server answered with another range than it was asked for")));
        }
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // All that there is was there already, or more: who knows of what.
            forget(version)?;
            return Err(Trouble::Passing(anyhow!("the server has less of it than was fetched before")));
        }
        if !goes_on {
            at = 0;
            file.set_len(0).map_err(here)?;
            // RFC 9110 §13.1.5: a weak entity tag can't be asked for.
            let strong = text(&response, ETAG).filter(|tag| tag.starts_with('"'));
            match strong.or_else(|| text(&response, LAST_MODIFIED)) {
                Some(name) => fs::write(version, name).map_err(here)?,
                None => forget(version)?,
            }
        }
        let all = response.content_length().map(|rest| at + rest);
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = response.read(&mut buffer).map_err(|e| Trouble::Passing(e.into()))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).map_err(here)?;
            at += n as u64;
            *got = Got::Something;
            if at > MAX_BYTES {
                return Err(Trouble::Final(anyhow!("it is larger than {MAX_BYTES} bytes")));
            }
            say(at, all);
        }
        if all.is_some_and(|all| at != all) {
            return Err(Trouble::Passing(anyhow!("the server stopped after {at} bytes")));
        }
        file.sync_all().map_err(here)
    }

    fn ask(&self, url: &Url, headers: HeaderMap) -> Result<Response, Trouble> {
        let sent = self.0.get(url.clone()).headers(headers).send();
        // The address is in our own sentence, and its query may be a secret.
        let response = sent.map_err(|e| Trouble::Passing(e.without_url().into()))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Trouble::NotThere),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(Trouble::Passing(anyhow!("the server answered {status}")))
            }
            status => Err(Trouble::Final(anyhow!("the server answered {status}"))),
        }
    }
}

/// Whether a try that failed got on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Something,
    Nothing,
}

/// Tries again what may pass, with longer and longer pauses, until nothing comes of it any more.
fn persist<T>(mut once: impl FnMut() -> Result<T, (Trouble, Got)>) -> Result<T, Trouble> {
    let mut fruitless = 0;
    loop {
        match once() {
            Err((Trouble::Passing(error), got)) => {
                fruitless = if got == Got::Something { 1 } else { fruitless + 1 };
                if fruitless >= FRUITLESS_TRIES {
                    return Err(Trouble::Passing(error));
                }
                tracing::debug!("trying again: {error:#}");
                thread::sleep(FIRST_PAUSE * (1 << (fruitless - 1)));
            }
            done => return done.map_err(|(trouble, _)| trouble),
        }
    }
}

fn text(response: &Response, header: HeaderName) -> Option<String> {
    response.headers().get(header)?.to_str().ok().map(str::to_owned)
}

fn forget(version: &Path) -> Result<(), Trouble> {
    match fs::remove_file(version) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Trouble::Final(anyhow!(e).context(format!("removing {}", version.display()))))
        }
        _ => Ok(()),
    }
}
