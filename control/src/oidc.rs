//! People whom an OpenID Connect provider knows: who shows one of its tokens is that user here.
//!
//! The provider's own documents say where its keys are (`/.well-known/openid-configuration`). Keys change: a token of one
//! that isn't known has them fetched again, not more often than every few seconds. What a user may do is said by the groups
//! that the token names, and by memberships in tenants and projects.

mod ring;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::http::StatusCode;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{AlgorithmFamily, DecodingKey, Validation, decode, decode_header};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::auth::{Caller, Role};
use crate::denied::Denied;
use crate::http::off_thread;
use crate::{Control, unix_ms};

/// Two clocks that agree on the time differ by less.
const SKEW_S: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(10);
/// Whoever makes up key ids doesn't have us ask the provider all the time.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);
/// Keys that were withdrawn are forgotten after this.
const KEYS_LIFE: Duration = Duration::from_secs(60 * 60);
const LARGEST_DOCUMENT: usize = 1 << 20;
const LONGEST_TOKEN: usize = 16 << 10;

/// Whom to believe about people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oidc {
    /// As its tokens say it.
    pub issuer: String,
    /// What this server is called in tokens that are meant for it.
    pub audience: String,
    /// Who signed the provider's own certificate, in PEM.
    pub ca: String,
    /// The claim that says who it is: `email`, `preferred_username`, `sub`.
    pub user_claim: String,
    pub groups_claim: String,
    /// Groups whose members may do everything.
    pub admins: Vec<String>,
    /// Groups whose members may see everything.
    pub viewers: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Provider {
    config: Oidc,
    http: reqwest::Client,
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    set: Option<JwkSet>,
    fetched: Option<Instant>,
    asked: Option<Instant>,
}

impl Keys {
    fn find(&self, kid: Option<&str>) -> Option<DecodingKey> {
        let keys = &self.set.as_ref()?.keys;
        let key = match (kid, keys.as_slice()) {
            (Some(kid), keys) => keys.iter().find(|key| key.common.key_id.as_deref() == Some(kid))?,
            (None, [only]) => only,
            (None, _) => return None,
        };
        DecodingKey::from_jwk(key).ok().filter(|key| key.family() != AlgorithmFamily::Hmac)
    }
}

impl Provider {
    pub(crate) fn new(config: Oidc) -> Result<Self> {
        static INSTALLED: OnceLock<()> = OnceLock::new();
        // It fails if there is one already, and there is none but ours.
        INSTALLED.get_or_init(|| {
            let _ = ring::PROVIDER.install_default();
        });
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(config.ca.as_bytes()) {
            roots.add(certificate.context("reading the provider's authority")?)?;
        }
        ensure!(!roots.is_empty(), "there is no certificate in the provider's authority");
        let provider = rustls::crypto::ring::default_provider();
        let tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(PATIENCE);
        let http = http.redirect(reqwest::redirect::Policy::none()).build().context("setting up the HTTP client")?;
        Ok(Self { config, http, keys: Mutex::default() })
    }

    /// Who shows this token.
    pub(crate) async fn caller(&self, token: &str) -> Result<Caller, Denied> {
        let stranger =
            |why: String| Denied::stranger(format!("this token of {} isn't believed: {why}", self.config.issuer));
        if token.len() > LONGEST_TOKEN {
            return Err(stranger("it's too long".into()));
        }
        let header = decode_header(token).map_err(|e| stranger(e.to_string()))?;
        let key = self.key(header.kid.as_deref()).await?;
        let key = key.ok_or_else(|| stranger("the provider has no such key".into()))?;
        let mut validation = Validation::new_for_family(key.family());
        validation.leeway = SKEW_S;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.config.audience]);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims: Value = decode(token, &key, &validation).map_err(|e| stranger(e.to_string()))?.claims;
        let Oidc { user_claim, groups_claim, admins, viewers, .. } = &self.config;
        let user = claims.get(user_claim).and_then(Value::as_str).filter(|user| !user.trim().is_empty());
        let user = user.ok_or_else(|| stranger(format!("it doesn't say who it is ({user_claim})")))?;
        // Anybody can have an address that nobody has checked.
        if user_claim == "email" && claims.get("email_verified") == Some(&Value::Bool(false)) {
            return Err(stranger("its e-mail address isn't verified".into()));
        }
        let groups: Vec<&str> = match claims.get(groups_claim) {
            Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(group)) => vec![group],
            _ => vec![],
        };
        let is_in = |of: &[String]| groups.iter().any(|group| of.iter().any(|one| one == group));
        let role = if is_in(admins) { Some(Role::Admin) } else { is_in(viewers).then_some(Role::Viewer) };
        Ok(Caller::user(user, role))
    }

    async fn key(&self, kid: Option<&str>) -> Result<Option<DecodingKey>, Denied> {
        let mut keys = self.keys.lock().await;
        let is_fresh = keys.fetched.is_some_and(|at| at.elapsed() < KEYS_LIFE);
        let known = keys.find(kid);
        if known.is_some() && is_fresh {
            return Ok(known);
        }
        if keys.asked.is_some_and(|at| at.elapsed() < BETWEEN_LOOKS) {
            return Ok(known);
        }
        keys.asked = Some(Instant::now());
        match self.fetch().await {
            Ok(set) => {
                keys.set = Some(set);
                keys.fetched = Some(Instant::now());
                Ok(keys.find(kid))
            }
            // Those that were good an hour ago are better than locking everybody out.
            Err(error) if known.is_some() => {
                tracing::warn!("the provider's keys can't be looked at, so that those known are believed: {error:#}");
                Ok(known)
            }
            Err(error) => {
                tracing::error!("the provider's keys can't be had: {error:#}");
                let detail = format!("the provider {} can't be asked for its keys: {error:#}", self.config.issuer);
                Err(Denied::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
        }
    }

    async fn fetch(&self) -> Result<JwkSet> {
        #[derive(Deserialize)]
        struct Discovered {
            issuer: String,
            jwks_uri: String,
        }
        let at = format!("{}/.well-known/openid-configuration", self.config.issuer.trim_end_matches('/'));
        let Discovered { issuer, jwks_uri } = self.document(&at).await?;
        ensure!(issuer == self.config.issuer, "{at} is of {issuer}, and not of {}", self.config.issuer);
        ensure!(jwks_uri.starts_with("https://"), "{at} says that the keys are at {jwks_uri}, which isn't https");
        self.document(&jwks_uri).await
    }

    async fn document<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T> {
        let asking = || format!("asking for {url}");
        let mut answer = self.http.get(url).send().await.and_then(|a| a.error_for_status()).with_context(asking)?;
        let mut text = Vec::new();
        while let Some(piece) = answer.chunk().await.with_context(asking)? {
            if text.len() + piece.len() > LARGEST_DOCUMENT {
                bail!("{url} has more than {LARGEST_DOCUMENT} bytes");
            }
            text.extend_from_slice(&piece);
        }
        serde_json::from_slice(&text).with_context(|| format!("reading {url}"))
    }
}

impl Control {
    /// Who is behind a bearer token.
    pub(crate) async fn caller_of(&self, bearer: String) -> Result<Caller, Denied> {
        // Ours have one dot, theirs two.
        if let Some(provider) = self.inner.oidc.as_ref().filter(|_| bearer.matches('.').count() == 2) {
            return provider.caller(&bearer).await;
        }
        off_thread(self, move |c| c.token_caller(&bearer, unix_ms())).await
    }
}
