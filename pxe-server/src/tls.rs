//! The keys that a boot server is believed by.
//!
//! | | lives | |
//! |---|---|---|
//! | [`Identity`]: its certificate, signed by the control API's authority | embedded: made anew at every start; alone: in `state_dir`, renewed in time | for TLS |
//! | time-signing key | `state_dir`, for as long as machines pin it | made on first start |

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use drophammer_control::keep;
use ed25519_dalek::SigningKey;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SignatureScheme};

/// Who this server is to whoever connects to it, and to whom it connects. Connections that are open keep the certificate
/// that they began with.
#[derive(Debug)]
pub struct Identity(RwLock<Arc<CertifiedKey>>);

impl Identity {
    /// `key` in PKCS #8, `certificate` in PEM.
    pub fn new(key: &[u8], certificate: &str, ca: &str) -> Result<Arc<Self>> {
        Ok(Arc::new(Self(RwLock::new(certified(key, certificate, ca)?))))
    }

    pub fn replace(&self, key: &[u8], certificate: &str, ca: &str) -> Result<()> {
        let new = certified(key, certificate, ca)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn present(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// With the authority's own certificate in the chain: whoever knows it by its hash alone finds it there.
fn certified(key: &[u8], certificate: &str, ca: &str) -> Result<Arc<CertifiedKey>> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let chain = [certificate, ca].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
    let chain = chain.into_iter().collect::<Result<Vec<_>, _>>().context("reading a certificate")?;
    let signer = ring::sign::any_supported_type(&key).context("reading the key of a certificate")?;
    let certified = CertifiedKey::new(chain, signer);
    certified.keys_match().context("putting a certificate and its key together")?;
    Ok(Arc::new(certified))
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub fn roots(ca: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).context("reading the certificate authority")?)?;
    Ok(roots)
}

/// A server's side of TLS. Clients may have a certificate of the same authority; most have none.
pub fn server(identity: Arc<Identity>, ca: &str) -> Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The key that signs this server's clock.
pub fn time_key(state_dir: &Path) -> Result<SigningKey> {
    let path = state_dir.join("time.key");
    let text = keep::made_once(&path, || {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).context("getting randomness")?;
        Ok(hex::encode(seed))
    })?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed)
        .with_context(|| format!("reading {}: it should hold 64 hex digits", path.display()))?;
    Ok(SigningKey::from_bytes(&seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_key_is_made_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(time_key(dir.path()).expect("made"), time_key(dir.path()).expect("read"));
    }
}
