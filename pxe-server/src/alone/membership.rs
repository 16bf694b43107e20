//! Joining a control API, and what is kept of it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use drophammer_control::{Point, fingerprint, keep, unix_ms};
use drophammer_protocol::boot_server::{Briefing, Certifiable, Certified, Join, Registration};
use drophammer_protocol::id::BootServerId;
use rcgen::KeyPair;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Alone;
use super::link::{CallError, Link};
use crate::config::{ControlAt, Settings};
use crate::tls;

const KEEPING: &str = "keeping what the control API said";

/// Everything by which a boot server and its control API know each other.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Membership {
    pub(super) id: BootServerId,
    pub(super) ca: String,
    /// PEM of the certificate's key.
    key: String,
    pub(super) certified: Certified,
    /// Where that certificate is good for.
    #[serde(default)]
    addresses: Vec<IpAddr>,
    /// What it was told last.
    pub(super) briefing: Option<Briefing>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Membership({}, …)", self.id)
    }
}

impl Membership {
    /// The key in PKCS #8.
    pub(super) fn key(&self) -> Result<Vec<u8>> {
        Ok(KeyPair::from_pem(&self.key).context("reading this boot server's key")?.serialize_der())
    }

    fn save(&self, state_dir: &Path) -> Result<()> {
        let text = serde_json::to_string(self).context("writing down what the boot server is known by")?;
        keep::write(&file(state_dir), &text, keep::PRIVATE)
    }
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("boot-server.json")
}

/// The membership of before, or a new one by the join token.
pub(super) async fn open(settings: &Settings, at: &ControlAt, name: &str) -> Result<Membership> {
    let path = file(&settings.state_dir);
    if let Some(text) = keep::read(&path)? {
        let membership: Membership = serde_json::from_str(&text).with_context(|| {
            format!("reading {} (delete it and join again with a new token if it's damaged)", path.display())
        })?;
        if at.join.is_some() {
            tracing::info!(id = %membership.id, "this boot server has joined already; the join token isn't needed");
        }
        return Ok(membership);
    }
    let Some(token) = &at.join else {
        bail!(
            "this boot server hasn't joined {} yet: run `drophammer bootserver token` there and start this one with \
             `--join TOKEN` once",
            at.url
        );
    };
    let joined = join(settings, at, token, name).await.with_context(|| format!("joining {}", at.url))?;
    joined.save(&settings.state_dir)?;
    tracing::info!(id = %joined.id, "joined {}", at.url);
    Ok(joined)
}

async fn join(settings: &Settings, at: &ControlAt, token: &str, name: &str) -> Result<Membership> {
    let whole = token.trim().rsplit_once('.').filter(|(token, _)| token.contains('.'));
    let Some((bearer, ca_sha256)) = whole else {
        bail!("the join token isn't whole: it has three parts with dots between them");
    };
    let key = KeyPair::generate().context("making a key")?;
    let recognised = Arc::new(Recognised { ca_sha256: ca_sha256.to_owned(), strange: AtomicBool::new(false) });
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recognised) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let wish = Join { name: name.to_owned(), certifiable: certifiable(&key, addresses(settings)) };
    let joined = match Link::with(&at.url, config)?.join(bearer, &wish).await {
        Err(_) if recognised.strange.load(Ordering::Relaxed) => {
            bail!("the join token is for another control API, or wasn't copied whole");
        }
        joined => joined?,
    };
    if fingerprint(&joined.ca)? != ca_sha256 {
        bail!("the authority that it names isn't the one of the join token");
    }
    let (key, addresses) = (key.serialize_pem(), wish.certifiable.addresses);
    Ok(Membership { id: joined.id, ca: joined.ca, key, certified: joined.certified, addresses, briefing: None })
}

/// Where machines find it.
fn addresses(settings: &Settings) -> Vec<IpAddr> {
    settings.addresses().into_iter().map(|(address, _)| address.into()).collect()
}

fn certifiable(key: &KeyPair, addresses: Vec<IpAddr>) -> Certifiable {
    Certifiable { key: Point::of(key).to_hex(), addresses }
}

impl Alone {
    /// Registers with what it serves from now on. If the control API can't be reached it's told later; if it refuses,
    /// everything stays as it was.
    pub(crate) async fn register_as(&self, registration: Registration, state_dir: &Path) -> Result<()> {
        let before = self.registration.send_replace(registration);
        match self.register(state_dir).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_passing() => {
                self.registered.send_replace(false);
                Ok(())
            }
            Err(error) => {
                self.registration.send_replace(before);
                Err(error).context("registering this boot server")
            }
        }
    }

    pub(super) async fn register(&self, state_dir: &Path) -> Result<(), CallError> {
        let registration = self.registration.borrow().clone();
        let briefing = self.link.register(&registration).await?;
        self.take_briefing(briefing, state_dir);
        self.registered.send_replace(true);
        Ok(())
    }

    pub(super) fn take_briefing(&self, briefing: Briefing, state_dir: &Path) {
        let mut membership = self.membership();
        // What couldn't be kept is tried again with the next heartbeat.
        if membership.briefing.as_ref() == Some(&briefing) && !self.has_trouble(KEEPING) {
            return;
        }
        membership.briefing = Some(briefing);
        let failed = membership.save(state_dir).err().map(|error| format!("{error:#}"));
        drop(membership);
        self.trouble(KEEPING, failed);
        self.briefed.send_replace(());
    }

    /// A new certificate, if it's time or machines find this boot server at other addresses than before.
    pub(super) async fn renew(&self, settings: &Settings) -> Result<()> {
        let addresses = addresses(settings);
        {
            let membership = self.membership();
            if unix_ms() < membership.certified.renew_ms && membership.addresses == addresses {
                return Ok(());
            }
        }
        let key = KeyPair::generate().context("making a key")?;
        let wish = certifiable(&key, addresses);
        let certified = self.link.renew(&wish).await?;
        let mut membership = self.membership();
        let mut new = membership.clone();
        (new.key, new.certified, new.addresses) = (key.serialize_pem(), certified, wish.addresses);
        new.save(&settings.state_dir)?;
        self.identity.replace(&new.key()?, &new.certified.certificate, &new.ca)?;
        *membership = new;
        tracing::info!("this boot server has a new certificate");
        Ok(())
    }
}

/// Believes a server whose chain goes back to the authority with this hash, which is in the chain. Only for the first
/// contact; from then on the authority itself is known.
#[derive(Debug)]
struct Recognised {
    ca_sha256: String,
    /// A server was met that is somebody else.
    strange: AtomicBool,
}

impl ServerCertVerifier for Recognised {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ours = |certificate: &&CertificateDer<'_>| hex::encode(Sha256::digest(certificate)) == self.ca_sha256;
        let Some(ca) = intermediates.iter().find(ours) else {
            self.strange.store(true, Ordering::Relaxed);
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &tls::provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &tls::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
