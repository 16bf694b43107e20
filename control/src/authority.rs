//! The certificate authority that machines, boot servers and operators pin.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

use crate::keep;

const CA_YEARS: i64 = 30;
/// The clocks of two machines that agree on the time differ by less.
const CLOCK_SKEW: Duration = Duration::days(1);

#[derive(Debug)]
pub(crate) struct Authority {
    key: KeyPair,
    pub(crate) ca_pem: String,
}

/// A public key on P-256, uncompressed, as SEC 1 writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point(Vec<u8>);

impl Point {
    pub fn of(key: &KeyPair) -> Self {
        Self(key.public_key_raw().to_vec())
    }

    pub fn from_hex(text: &str) -> Result<Self> {
        let bytes = hex::decode(text).context("reading a public key as hexadecimal")?;
        ensure!(bytes.len() == 65 && bytes.first() == Some(&4), "a public key is an uncompressed point of P-256");
        Ok(Self(bytes))
    }

    pub fn to_hex(&self) -> String {
        hex::encode(&self.0)
    }
}

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// What a certificate says about its holder.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_names: Vec<String>,
    /// It may also speak to the control API as itself.
    pub(crate) client: bool,
    pub(crate) life: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) pem: String,
    pub(crate) der: Vec<u8>,
}

impl Authority {
    /// Reads the authority from `state_dir`, or makes it.
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let key_path = state_dir.join("ca.key");
        let pem = keep::made_once(&key_path, || Ok(KeyPair::generate()?.serialize_pem()))?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("reading {}", key_path.display()))?;
        let path = state_dir.join("ca.pem");
        let ca_pem = match keep::read(&path)? {
            Some(pem) => pem,
            // Any certificate of the same key and name is the same authority.
            None => {
                let mut params = itself();
                let now = OffsetDateTime::now_utc();
                (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + Duration::days(365 * CA_YEARS));
                let pem = params.self_signed(&key).context("making the certificate authority")?.pem();
                keep::write(&path, &pem, keep::PUBLIC)?;
                pem
            }
        };
        Ok(Self { key, ca_pem })
    }

    pub(crate) fn certify(&self, key: &Point, holder: Holder) -> Result<Issued> {
        let mut params = CertificateParams::new(holder.host_names)?;
        params.subject_alt_names.extend(holder.addresses.into_iter().map(SanType::IpAddress));
        params.distinguished_name.push(DnType::CommonName, holder.name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if holder.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + holder.life);
        let signed = params.signed_by(key, &Issuer::new(itself(), &self.key)).context("signing a certificate")?;
        Ok(Issued { pem: signed.pem(), der: signed.der().to_vec() })
    }
}

fn itself() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "drophammer boot authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_authority_is_made_once_and_its_key_kept_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Authority::open(dir.path()).expect("made");
        let again = Authority::open(dir.path()).expect("read");
        assert_eq!(first.ca_pem, again.ca_pem);
        assert_eq!(first.key.serialize_der(), again.key.serialize_der());
        let mode = fs::metadata(dir.path().join("ca.key")).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn only_points_are_public_keys() {
        let point = Point::of(&KeyPair::generate().expect("a key"));
        assert_eq!(Point::from_hex(&point.to_hex()).expect("reads back"), point);
        for (name, text) in [("no hex", "04zz".to_owned()), ("short", "04".repeat(64)), ("compressed", "02".repeat(65))]
        {
            assert!(Point::from_hex(&text).is_err(), "{name}");
        }
    }
}
