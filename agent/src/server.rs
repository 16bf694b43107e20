//! Talking to the server: the ticket, if the boot brought none, and the signed time over plain HTTP, everything else over
//! HTTPS with the ticket's CA alone.
//!
//! A ticket that is asked for is worth as much as one that came with the initramfs: both come over plain HTTP from where
//! DHCP says, so both are as good as the boot network is. What the ticket says is what this boot trusts.
//!
//! All retrying is in [`Server::persist`] and [`persist`]: an answer that didn't come is asked for again with growing
//! pauses until a stated limit, so a server may be killed and restarted at any moment. A refusal is an answer.

use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::api;
use drophammer_protocol::event::{Event, Phase};
use drophammer_protocol::id::{Mac, MachineId, OrderId};
use drophammer_protocol::inventory::Inventory;
use drophammer_protocol::order::{Order, Outcome};
use drophammer_protocol::sign::PublicKey;
use drophammer_protocol::ticket::{BootDecision, BootTicket};
use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder, Response};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::reporter::Reporter;

/// The ticket's token doesn't last longer; after that a new boot brings a new ticket.
pub(crate) const UNTIL_ENROLLED: Duration = Duration::from_secs(10 * 60);
/// An enrolled machine waits for its server over a weekend.
const ONCE_ENROLLED: Duration = Duration::from_secs(72 * 3600);

/// How long the server may hold an order request open.
const ORDER_WAIT: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// While the server is away, the console hears about it this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Answers are small; whoever sends more isn't our server.
const LARGEST_ANSWER: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The server understood and said no. Asking again wouldn't help.
    #[error("the server refuses: {detail} ({status})")]
    Refused { status: StatusCode, detail: String },
    /// 410: this boot's time is over.
    #[error("the server says that this boot is over: {0}")]
    Over(String),
    /// No answer, or none that makes sense. The one case that is worth another try.
    #[error("no usable answer from {url}")]
    Unanswered {
        url: String,
        #[source]
        cause: anyhow::Error,
    },
}

// --- clients ------------------------------------------------------------------------------------------------------

/// Trusts the certificates that `ca` (PEM) issued and nothing else.
pub(crate) fn https(ca: &str, clock: Arc<dyn TimeProvider>) -> anyhow::Result<Client> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.context("reading the ticket's CA")?).context("using the ticket's CA")?;
    }
    anyhow::ensure!(!roots.is_empty(), "the ticket has no CA certificate in it");
    let mut tls = rustls::ClientConfig::builder_with_details(ring(), clock)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // One connection per transfer: parallel fetches shouldn't wait for each other's packets.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    client(tls, ANSWER_WITHIN)
}

/// For the ticket and the signed time, before any certificate can be judged.
pub(crate) fn plain_http() -> anyhow::Result<Client> {
    plain_http_within(ANSWER_WITHIN)
}

/// The same for somebody who doesn't wait as long for a server that is silent.
pub(crate) fn plain_http_within(limit: Duration) -> anyhow::Result<Client> {
    let tls = rustls::ClientConfig::builder_with_details(ring(), Arc::new(DefaultTimeProvider))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    client(tls, limit)
}

fn client(tls: rustls::ClientConfig, answer_within: Duration) -> anyhow::Result<Client> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("drophammer-agent/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_WITHIN)
        .timeout(answer_within)
        .tcp_keepalive(Duration::from_secs(15))
        // A credential goes to the server that it's for, wherever that server points.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .context("making an HTTP client")
}

fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

// --- ticket -------------------------------------------------------------------------------------------------------

/// Asks once what this machine is to boot.
pub(crate) fn ask_ticket(http: &Client, url: &str, mac: Mac, id: Option<MachineId>) -> Result<BootDecision, CallError> {
    let id = id.map(|id| format!("&uuid={id}")).unwrap_or_default();
    json(url, send(url, http.get(format!("{url}?mac={mac}{id}")))?)
}

// --- time ---------------------------------------------------------------------------------------------------------

/// The server's clock, taken together with our own monotonic one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignedTime {
    unix: Duration,
    taken: Instant,
}

impl SignedTime {
    /// Milliseconds matter to nobody; half the round trip is closer than none.
    pub(crate) fn now(&self) -> Duration {
        self.unix + self.taken.elapsed()
    }
}

impl TimeProvider for SignedTime {
    fn current_time(&self) -> Option<rustls_pki_types::UnixTime> {
        Some(rustls_pki_types::UnixTime::since_unix_epoch(self.now()))
    }
}

/// Asks `boot_server` for the time, once. Only an answer to this very question, signed by `time_key`, counts: a
/// recorded one would bring back an expired certificate.
pub(crate) fn ask_time(http: &Client, boot_server: &str, time_key: PublicKey) -> Result<SignedTime, CallError> {
    let mut random = [0; 16];
    let url = format!("{}{}", boot_server.trim_end_matches('/'), api::BOOT_TIME);
    let unanswered = |cause: anyhow::Error| CallError::Unanswered { url: url.clone(), cause };
    getrandom::fill(&mut random).context("getting random bytes").map_err(unanswered)?;
    let nonce = hex::encode(random);
    let asked = Instant::now();
    let answer: api::TimeAnswer = json(&url, send(&url, http.get(format!("{url}?nonce={nonce}")))?)?;
    let round_trip = asked.elapsed();
    let time = answer.open(&[time_key]).context("checking the signed time").map_err(unanswered)?;
    if time.nonce != nonce {
        return Err(unanswered(anyhow::anyhow!("the signed time answers another question than ours")));
    }
    Ok(SignedTime { unix: Duration::from_millis(time.unix_ms) + round_trip / 2, taken: Instant::now() })
}

// --- the server, once we know it ----------------------------------------------------------------------------------

#[derive(Clone, Debug)]
pub(crate) struct Server {
    http: Client,
    base: String,
    credential: String,
    outage: Outage,
}

impl Server {
    /// Turns the ticket's one-time token into this boot's credential.
    pub(crate) fn enrol(
        http: Client,
        ticket: &BootTicket,
        enrol: &api::Enrol,
        reporter: &Reporter,
    ) -> Result<Self, CallError> {
        let base = ticket.server.trim_end_matches('/').to_owned();
        let url = format!("{base}{}", api::AGENT_ENROL);
        let outage = Outage::new(reporter.clone(), Phase::Enrol);
        let enrolled: api::Enrolled = persist(UNTIL_ENROLLED, &outage, || {
            json(&url, send(&url, http.post(&url).bearer_auth(&ticket.token).json(enrol))?)
        })?;
        Ok(Self { http, base, credential: enrolled.credential, outage: Outage::new(reporter.clone(), Phase::Agent) })
    }

    /// For images: the same trust, without the credential.
    pub(crate) fn http(&self) -> &Client {
        &self.http
    }

    pub(crate) fn store_inventory(&self, inventory: &Inventory) -> Result<(), CallError> {
        let url = self.url(api::AGENT_INVENTORY);
        self.persist(&url, || self.http.put(&url).json(inventory)).map(drop)
    }

    /// Returns the highest sequence number that the server has.
    pub(crate) fn store_events(&self, uptime: Duration, events: &[Event]) -> Result<u64, CallError> {
        let url = self.url(api::AGENT_EVENTS);
        let uptime_ms = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
        let body = api::Events { uptime_ms, events: events.to_vec() };
        self.persist_json::<api::EventsStored>(&url, || self.http.post(&url).json(&body)).map(|stored| stored.seq)
    }

    /// The order that is open for this boot, or `None` after a while without one.
    pub(crate) fn order(&self) -> Result<Option<Order>, CallError> {
        let url = self.url(api::AGENT_ORDER);
        let wait = ORDER_WAIT.as_secs();
        persist(ONCE_ENROLLED, &self.outage, || {
            let request = self.http.get(format!("{url}?wait={wait}")).timeout(ORDER_WAIT + ANSWER_WITHIN);
            let response = send(&url, request.bearer_auth(&self.credential))?;
            if response.status() == StatusCode::NO_CONTENT { Ok(None) } else { json(&url, response).map(Some) }
        })
    }

    pub(crate) fn store_outcome(&self, order: OrderId, outcome: &Outcome) -> Result<(), CallError> {
        let url = format!("{}/{order}/outcome", self.url(api::AGENT_ORDERS));
        self.persist(&url, || self.http.post(&url).json(outcome)).map(drop)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn persist(&self, url: &str, request: impl Fn() -> RequestBuilder) -> Result<Response, CallError> {
        persist(ONCE_ENROLLED, &self.outage, || send(url, request().bearer_auth(&self.credential)))
    }

    fn persist_json<T: DeserializeOwned>(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, CallError> {
        persist(ONCE_ENROLLED, &self.outage, || json(url, send(url, request().bearer_auth(&self.credential))?))
    }
}

/// Sends a request to be answered once: the installed system's call home.
pub(crate) fn post_once<T: Serialize>(http: &Client, url: &str, token: &str, body: &T) -> Result<(), CallError> {
    send(url, http.post(url).bearer_auth(token).json(body)).map(drop)
}

// --- one try ------------------------------------------------------------------------------------------------------

fn send(url: &str, request: RequestBuilder) -> Result<Response, CallError> {
    // The URL is in our own message; reqwest's would repeat it.
    let response =
        request.send().map_err(|e| CallError::Unanswered { url: url.to_owned(), cause: e.without_url().into() })?;
    let status = response.status();
    match verdict(status) {
        Verdict::Fine => Ok(response),
        Verdict::Over => Err(CallError::Over(detail(response))),
        Verdict::Refused => Err(CallError::Refused { status, detail: detail(response) }),
        Verdict::Passing => {
            let cause = anyhow::anyhow!("the server answers {status}: {}", detail(response));
            Err(CallError::Unanswered { url: url.to_owned(), cause })
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Over,
    Refused,
    Passing,
}

fn verdict(status: StatusCode) -> Verdict {
    match status {
        StatusCode::GONE => Verdict::Over,
        // "Not now" rather than "no".
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => Verdict::Passing,
        s if s.is_success() => Verdict::Fine,
        s if s.is_client_error() => Verdict::Refused,
        _ => Verdict::Passing,
    }
}

fn json<T: DeserializeOwned>(url: &str, response: Response) -> Result<T, CallError> {
    let unanswered = |cause: anyhow::Error| CallError::Unanswered { url: url.to_owned(), cause };
    let bytes = body(response).context("reading the answer").map_err(unanswered)?;
    serde_json::from_slice(&bytes).context("understanding the answer").map_err(unanswered)
}

fn body(response: Response) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    response.take(LARGEST_ANSWER + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() as u64 <= LARGEST_ANSWER, "it is larger than {LARGEST_ANSWER} bytes");
    Ok(bytes)
}

/// What a server says about an error, in its own words if they are ours (RFC 9457).
fn detail(response: Response) -> String {
    const LONGEST: usize = 500;
    let bytes = match body(response) {
        Ok(bytes) => bytes,
        Err(error) => return format!("its reason couldn't be read: {error:#}"),
    };
    match serde_json::from_slice::<api::Problem>(&bytes) {
        Ok(problem) => problem.detail,
        Err(_) if bytes.is_empty() => "no reason given".into(),
        Err(_) => String::from_utf8_lossy(&bytes).chars().take(LONGEST).collect(),
    }
}

// --- trying again -------------------------------------------------------------------------------------------------

/// Asks until there is an answer, a refusal, or `limit` has passed.
pub(crate) fn persist<T>(
    limit: Duration,
    outage: &Outage,
    mut once: impl FnMut() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let began = Instant::now();
    let mut tries = 0;
    loop {
        let error = match once() {
            Err(error @ CallError::Unanswered { .. }) => error,
            answer => {
                outage.over();
                return answer;
            }
        };
        tries += 1;
        match pause(tries, began.elapsed(), limit) {
            Some(pause) => {
                outage.seen(&error);
                thread::sleep(pause);
            }
            None => return Err(error),
        }
    }
}

/// How long to wait after the `tries`th failure; `None` when that would be past the limit.
fn pause(tries: u32, elapsed: Duration, limit: Duration) -> Option<Duration> {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(5);
    let factor = 1u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    let pause = FIRST.saturating_mul(factor).min(LONGEST);
    (elapsed + pause < limit).then_some(pause)
}

/// Tells people that the server is away, and since when, without saying it at every try. Shared by all who call it.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    reporter: Reporter,
    phase: Phase,
    state: Arc<Mutex<Option<Away>>>,
}

#[derive(Clone, Copy, Debug)]
struct Away {
    since: Instant,
    said: Instant,
}

impl Outage {
    pub(crate) fn new(reporter: Reporter, phase: Phase) -> Self {
        Self { reporter, phase, state: Arc::default() }
    }

    fn seen(&self, error: &CallError) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let away = state.get_or_insert(Away { since: now, said: now });
        if away.said != now && now < away.said + SAY_EVERY {
            return;
        }
        away.said = now;
        let since = now.duration_since(away.since).as_secs();
        let words = match since {
            0 => format!("{}; trying again", chain(error)),
            _ => format!("{}; trying again for {since} s now", chain(error)),
        };
        self.reporter.note(self.phase, words);
    }

    fn over(&self) {
        if let Some(away) = self.state.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let seconds = away.since.elapsed().as_secs();
            self.reporter.note(self.phase, format!("the server answers again, after {seconds} s"));
        }
    }
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_mean_what_to_do() {
        for (status, want) in [
            (200, Verdict::Fine),
            (204, Verdict::Fine),
            (301, Verdict::Passing),
            (400, Verdict::Refused),
            (401, Verdict::Refused),
            (404, Verdict::Refused),
            (408, Verdict::Passing),
            (409, Verdict::Refused),
            (410, Verdict::Over),
            (429, Verdict::Passing),
            (500, Verdict::Passing),
            (503, Verdict::Passing),
        ] {
            assert_eq!(verdict(StatusCode::from_u16(status).expect("a status")), want, "{status}");
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let ms = Duration::from_millis;
        let limit = ms(60_000);
        for (name, tries, elapsed, want) in [
            ("the first", 1, ms(0), Some(ms(500))),
            ("the second", 2, ms(500), Some(ms(1000))),
            ("the fourth", 4, ms(3500), Some(ms(4000))),
            ("no longer than this", 5, ms(20_000), Some(ms(5000))),
            ("however many", u32::MAX, ms(20_000), Some(ms(5000))),
            ("not past the limit", 5, ms(55_000), None),
        ] {
            assert_eq!(pause(tries, elapsed, limit), want, "{name}");
        }
    }
}
