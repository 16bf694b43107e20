//! The server's own certificate authority and its other key.
//!
//! | | lives | |
//! |---|---|---|
//! | CA key and certificate | `state_dir`, for as long as machines pin it | made on first start |
//! | time-signing key | `state_dir`, likewise | made on first start |
//! | server certificate | in memory | made anew at every start, for the addresses of now; never near its end |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ed25519_dalek::SigningKey;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

const CA_YEARS: i64 = 30;
/// No server runs as long without a restart.
const SERVER_YEARS: i64 = 5;
/// The clocks of two machines that agree on the time differ by less.
const CLOCK_SKEW: Duration = Duration::days(1);

#[derive(Debug)]
pub struct Authority {
    key: KeyPair,
    /// What machines and operators pin.
    pub ca_pem: String,
}

impl Authority {
    /// Reads the authority from `state_dir`, or makes it.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let key_path = state_dir.join("ca.key");
        let pem = keep(&key_path, || Ok(KeyPair::generate()?.serialize_pem()))?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("reading {}", key_path.display()))?;
        let path = state_dir.join("ca.pem");
        let ca_pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            // Any certificate of the same key and name is the same authority.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut params = authority();
                let now = OffsetDateTime::now_utc();
                (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + Duration::days(365 * CA_YEARS));
                let pem = params.self_signed(&key).context("making the certificate authority")?.pem();
                write(&path, &pem, 0o644)?;
                pem
            }
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Self { key, ca_pem })
    }

    /// A server's side of TLS, good for these addresses and for this host's own.
    pub fn server(&self, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Result<Arc<ServerConfig>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        let addresses = addresses.into_iter().chain([Ipv4Addr::LOCALHOST]).map(IpAddr::V4);
        params.subject_alt_names.extend(addresses.map(SanType::IpAddress));
        params.distinguished_name.push(DnType::CommonName, "drophammer");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + Duration::days(365 * SERVER_YEARS));
        let certificate = params.signed_by(&key, &Issuer::new(authority(), &self.key)).context("signing the server")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "drophammer boot authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The key that signs this server's clock.
pub fn time_key(state_dir: &Path) -> Result<SigningKey> {
    let path = state_dir.join("time.key");
    let text = keep(&path, || {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).context("getting randomness")?;
        Ok(hex::encode(seed))
    })?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed)
        .with_context(|| format!("reading {}: it should hold 64 hex digits", path.display()))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// What the file holds; if there is none it is made, readable by nobody else.
fn keep(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let text = make()?;
            write(path, &text, 0o600)?;
            Ok(text)
        }
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

/// The whole file or none of it, whenever the power goes.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (first, time) = (Authority::open(dir.path()).expect("made"), time_key(dir.path()).expect("made"));
        let again = Authority::open(dir.path()).expect("read");
        assert_eq!(first.ca_pem, again.ca_pem);
        assert_eq!(first.key.serialize_der(), again.key.serialize_der());
        assert_eq!(time, time_key(dir.path()).expect("read"));
        for name in ["ca.key", "time.key"] {
            let mode = fs::metadata(dir.path().join(name)).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}
