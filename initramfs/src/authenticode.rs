//! Signatures that UEFI Secure Boot takes: PKCS #7 around the digest of a program (Microsoft's "Windows Authenticode
//! Portable Executable Signature Format"), RSA with SHA-256.
//!
//! There is no time in them, so the same program and key give the same bytes, and a signature doesn't run out.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use cms::cert::{CertificateChoices, IssuerAndSerialNumber};
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{
    CertificateSet, EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos,
};
use der::asn1::{Any, Null, ObjectIdentifier, OctetString, SetOfVec};
use der::{Decode as _, Encode as _, Sequence};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::attr::Attribute;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::pe;

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SPC_INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");

/// `SpcAttributeTypeAndOptionalValue` of every signed program: 1.3.6.1.4.1.311.2.1.15 (a PE image), no flags, an empty name.
const SPC_PE_IMAGE: [u8; 25] = [
    0x30, 0x17, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f, 0x30, 0x09, 0x03, 0x01, 0x00,
    0xa0, 0x04, 0xa2, 0x02, 0x80, 0x00,
];

#[derive(Debug, Sequence)]
struct SpcIndirectData {
    data: Any,
    digest: DigestInfo,
}

#[derive(Debug, Sequence)]
struct DigestInfo {
    algorithm: AlgorithmIdentifierOwned,
    digest: OctetString,
}

/// A key, and the certificate by which firmware knows it.
#[derive(Debug)]
pub struct Signer {
    key: KeyPair,
    certificate: Certificate,
    certificate_der: Vec<u8>,
}

impl Signer {
    /// Both are PEM files. The key may be PKCS #8 or PKCS #1; one that is encrypted is refused.
    pub fn read(key: &Path, certificate: &Path) -> Result<Self> {
        let (key_path, certificate_path) = (key.display(), certificate.display());
        let pem = fs::read(key).with_context(|| format!("reading the signing key {key_path}"))?;
        ensure!(
            !pem.windows(9).any(|word| word == b"ENCRYPTED"),
            "the signing key {key_path} is encrypted: give the build a decrypted copy that nobody else can read (`openssl \
             pkey -in {key_path} -out COPY`)"
        );
        let parsed = PrivateKeyDer::from_pem_slice(&pem)
            .with_context(|| format!("reading the signing key {key_path}: it has to be PEM"))?;
        let read = match &parsed {
            PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            _ => bail!("the signing key {key_path} is no RSA key, and most firmware takes no other"),
        };
        let key = read.map_err(|why| {
            anyhow::anyhow!("the signing key {key_path} is of no use ({why}): it has to be RSA with 2048 to 4096 bits")
        })?;

        let pem = fs::read(certificate).with_context(|| format!("reading the certificate {certificate_path}"))?;
        let certificate_der = CertificateDer::from_pem_slice(&pem)
            .with_context(|| format!("reading the certificate {certificate_path}: it has to be PEM"))?
            .to_vec();
        let certificate = Certificate::from_der(&certificate_der)
            .with_context(|| format!("understanding the certificate {certificate_path}"))?;
        // It goes into the signature as it is written here, and firmware compares it byte by byte.
        ensure!(certificate.to_der()? == certificate_der, "the certificate {certificate_path} is not in DER proper");
        let certified = certificate.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes();
        ensure!(
            certified == key.public().as_ref(),
            "the certificate {certificate_path} is for another key than {key_path}"
        );
        Ok(Self { key, certificate, certificate_der })
    }

    /// Whom the certificate names.
    pub fn subject(&self) -> String {
        self.certificate.tbs_certificate.subject.to_string()
    }

    /// Stands for everything that a signature depends on besides what is signed.
    pub(crate) fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// The program, signed.
    pub fn sign(&self, program: &[u8]) -> Result<Vec<u8>> {
        pe::sign(program, |digest| self.signature(digest).context("making the signature"))
    }

    fn signature(&self, image_digest: [u8; 32]) -> Result<Vec<u8>> {
        let sha_256 = AlgorithmIdentifierOwned { oid: SHA_256, parameters: Some(Null.into()) };
        let indirect = SpcIndirectData {
            data: Any::from_der(&SPC_PE_IMAGE)?,
            digest: DigestInfo { algorithm: sha_256.clone(), digest: OctetString::new(image_digest)? },
        };
        let content = Any::encode_from(&indirect)?;
        // PKCS #7 digests a content without its tag and length.
        let content_digest = OctetString::new(Sha256::digest(content.value()).as_slice())?;
        let attribute =
            |oid, value| -> Result<Attribute> { Ok(Attribute { oid, values: SetOfVec::try_from([value])? }) };
        let signed_attributes = SetOfVec::try_from([
            attribute(CONTENT_TYPE, Any::encode_from(&SPC_INDIRECT_DATA)?)?,
            attribute(MESSAGE_DIGEST, Any::encode_from(&content_digest)?)?,
        ])?;
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &signed_attributes.to_der()?, &mut signature)
            .map_err(|_| anyhow::anyhow!("the RSA key doesn't work"))?;
        let tbs = &self.certificate.tbs_certificate;
        let signer = SignerInfo {
            version: CmsVersion::V1,
            sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
                issuer: tbs.issuer.clone(),
                serial_number: tbs.serial_number.clone(),
            }),
            digest_alg: sha_256.clone(),
            signed_attrs: Some(signed_attributes),
            signature_algorithm: AlgorithmIdentifierOwned { oid: RSA, parameters: Some(Null.into()) },
            signature: OctetString::new(signature)?,
            unsigned_attrs: None,
        };
        let signed = SignedData {
            version: CmsVersion::V1,
            digest_algorithms: SetOfVec::try_from([sha_256])?,
            encap_content_info: EncapsulatedContentInfo { econtent_type: SPC_INDIRECT_DATA, econtent: Some(content) },
            certificates: Some(CertificateSet(SetOfVec::try_from([CertificateChoices::Certificate(
                self.certificate.clone(),
            )])?)),
            crls: None,
            signer_infos: SignerInfos(SetOfVec::try_from([signer])?),
        };
        let info = ContentInfo { content_type: SIGNED_DATA, content: Any::encode_from(&signed)? };
        Ok(info.to_der()?)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;
    use crate::pe::tests::program;
    use crate::pe::{Section, add_sections};

    fn runs(directory: &Path, line: &str, package: &str) -> bool {
        let mut words = line.split(' ');
        let program = words.next().expect("a program");
        let output = Command::new(program).args(words).current_dir(directory).output();
        let output = output.unwrap_or_else(|e| panic!("{program}, of the Debian package {package}: {e}"));
        eprintln!("{line}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        output.status.success()
    }

    fn openssl(directory: &Path, line: &str) {
        assert!(runs(directory, &format!("openssl {line}"), "openssl"), "{line}");
    }

    /// `NAME.key` and `NAME.pem`.
    fn key(directory: &Path, name: &str) {
        openssl(
            directory,
            &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"),
        );
    }

    fn keys() -> TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        key(directory.path(), "ours");
        key(directory.path(), "theirs");
        directory
    }

    fn signer(directory: &TempDir, key: &str, certificate: &str) -> Result<Signer> {
        Signer::read(&directory.path().join(key), &directory.path().join(certificate))
    }

    #[test]
    fn others_take_the_signature_for_ours_alone() {
        let directory = keys();
        let signer = signer(&directory, "ours.key", "ours.pem").expect("a signer");
        assert_eq!(signer.subject(), "CN=ours");
        let section = [Section { name: ".linux", content: b"kernel" }];
        let image = add_sections(&program(), &section).expect("an image");
        let signed = signer.sign(&image).expect("signed");
        assert!(signed == signer.sign(&image).expect("signed"), "the same bytes again");
        let mut changed = signed.clone();
        changed[image.len() - 300] ^= 1;
        for (name, bytes) in [("signed", &signed), ("unsigned", &image), ("changed", &changed)] {
            fs::write(directory.path().join(name), bytes).expect("written");
        }
        for (file, certificate, want) in [
            ("signed", "ours", true),
            ("signed", "theirs", false),
            ("unsigned", "ours", false),
            ("changed", "ours", false),
        ] {
            let line = format!("sbverify --cert {certificate}.pem {file}");
            assert_eq!(runs(directory.path(), &line, "sbsigntool"), want, "{line}");
        }
    }

    #[test]
    fn keys_are_taken_in_the_forms_that_openssl_writes() {
        let directory = keys();
        openssl(directory.path(), "rsa -in ours.key -traditional -out pkcs1.key");
        openssl(directory.path(), "pkey -in ours.key -aes256 -passout pass:secret -out encrypted.key");
        openssl(directory.path(), "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out short.key");
        openssl(directory.path(), "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out curve.key");
        assert!(signer(&directory, "pkcs1.key", "ours.pem").is_ok());
        for (key, certificate, want) in [
            ("encrypted.key", "ours.pem", "is encrypted"),
            ("short.key", "ours.pem", "2048 to 4096 bits"),
            ("curve.key", "ours.pem", "has to be RSA"),
            ("ours.pem", "ours.pem", "reading the signing key"),
            ("ours.key", "ours.key", "reading the certificate"),
            ("ours.key", "theirs.pem", "is for another key"),
            ("absent.key", "ours.pem", "reading the signing key"),
        ] {
            let error = signer(&directory, key, certificate).expect_err(key);
            assert!(format!("{error:#}").contains(want), "{key}, {certificate}: {error:#}");
        }
    }
}
