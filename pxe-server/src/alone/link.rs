//! The calls to the control API.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_protocol::api::Problem;
use drophammer_protocol::boot_server::{
    Briefing, CERTIFICATE, Certifiable, Certified, HEALTH, Health, JOIN, Join, Joined, OWN_DISKS, OwnDisks,
    REGISTRATION, REPORTS, Registration, Reports, ReportsStored,
};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;

use crate::tls::{self, Identity};

const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(20);
/// How long the control API is asked to wait for news.
pub(super) const WAIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct Link {
    http: Client,
    base: Url,
}

/// Why a call got no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It may work later.
    #[error("the control API at {base} doesn't answer")]
    Unanswered { base: Url, source: anyhow::Error },
    #[error("{detail}")]
    Refused { status: StatusCode, detail: String },
}

impl CallError {
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }
}

impl Link {
    pub(super) fn new(base: &Url, ca: &str, identity: Arc<Identity>) -> Result<Self> {
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(tls::roots(ca)?)
            .with_client_cert_resolver(identity);
        Self::with(base, config)
    }

    /// Over TLS as `config` has it.
    pub(super) fn with(base: &Url, mut config: ClientConfig) -> Result<Self> {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let builder = ClientBuilder::new().connect_timeout(CONNECT).no_proxy().tls_backend_preconfigured(config);
        Ok(Self { http: builder.build().context("setting up the HTTP client")?, base: base.clone() })
    }

    pub(super) async fn join(&self, token: &str, join: &Join) -> Result<Joined, CallError> {
        self.call(self.http.post(self.url(JOIN)).bearer_auth(token).json(join)).await
    }

    pub(super) async fn renew(&self, wish: &Certifiable) -> Result<Certified, CallError> {
        self.call(self.http.post(self.url(CERTIFICATE)).json(wish)).await
    }

    pub(super) async fn register(&self, registration: &Registration) -> Result<Briefing, CallError> {
        self.call(self.http.put(self.url(REGISTRATION)).json(registration)).await
    }

    pub(super) async fn health(&self, health: &Health) -> Result<Briefing, CallError> {
        self.call(self.http.post(self.url(HEALTH)).json(health)).await
    }

    pub(super) async fn report(&self, reports: &Reports) -> Result<ReportsStored, CallError> {
        self.call(self.http.post(self.url(REPORTS)).json(reports)).await
    }

    /// The machines that boot their own disk, as soon as they are others than those of `version`.
    pub(super) async fn own_disks(&self, version: u64) -> Result<Option<OwnDisks>, CallError> {
        let mut url = self.url(OWN_DISKS);
        url.query_pairs_mut()
            .append_pair("after", &version.to_string())
            .append_pair("wait", &WAIT.as_secs().to_string());
        let answer = self.send(self.http.get(url).timeout(WAIT + ANSWER)).await?;
        if answer.status() == StatusCode::NO_CONTENT { Ok(None) } else { self.json(answer).await.map(Some) }
    }

    /// A request to somewhere below `within`, which somebody else may have put together: it speaks as this boot server, so
    /// it mustn't get anywhere else.
    pub(super) fn request(&self, method: Method, within: &str, path_and_query: &str) -> Result<RequestBuilder> {
        let url =
            below(&self.base, within, path_and_query).with_context(|| format!("{path_and_query:?} is no path here"))?;
        Ok(self.http.request(method, url))
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CallError> {
        let answer = self.send(request.timeout(ANSWER)).await?;
        self.json(answer).await
    }

    async fn json<T: DeserializeOwned>(&self, answer: Response) -> Result<T, CallError> {
        answer.json().await.map_err(|e| self.unanswered(e))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CallError> {
        let answer = request.send().await.map_err(|e| self.unanswered(e))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.bytes().await.map_err(|e| self.unanswered(e))?;
        let detail = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.detail,
            Err(_) => format!("{} answers {status} without saying why; is it a drophammer server?", self.base),
        };
        Err(if status.is_client_error() {
            CallError::Refused { status, detail }
        } else {
            CallError::Unanswered { base: self.base.clone(), source: anyhow::Error::msg(detail) }
        })
    }

    /// The address is in our own sentence; reqwest's would have it a second time.
    fn unanswered(&self, error: reqwest::Error) -> CallError {
        CallError::Unanswered { base: self.base.clone(), source: error.without_url().into() }
    }
}

/// A URL is what it is after its dots are gone, written in whatever way.
fn below(base: &Url, within: &str, path_and_query: &str) -> Option<Url> {
    let url = base.join(path_and_query).ok()?;
    let same_place = url.origin() == base.origin();
    (same_place && url.path().strip_prefix(within).is_some_and(|rest| rest.starts_with('/'))).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carried_request_stays_where_it_may_be() {
        let base: Url = "https://10.0.0.1:443".parse().expect("a URL");
        for (name, path, want) in [
            ("plain", "/agent/v1/order?wait=60", Some("https://10.0.0.1/agent/v1/order?wait=60")),
            ("dots", "/agent/../boot-server/v1/reports", None),
            ("dots in disguise", "/agent/%2e%2E/boot-server/v1/reports", None),
            ("backslashes", "/agent\\..\\boot-server", None),
            ("another server", "//10.0.0.2/agent/v1/order", None),
            ("a whole address", "https://10.0.0.2/agent/v1/order", None),
            ("a longer name", "/agents/v1", None),
            ("the place itself", "/agent", None),
        ] {
            assert_eq!(below(&base, "/agent", path).as_ref().map(Url::as_str), want, "{name}");
        }
    }
}
