//! A blocking client of the operators' paths. Errors are the server's own sentences.

mod watch;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use axum::body::Bytes;
use drophammer_protocol::api::{
    ALLOCATIONS, AUDIT, AuditEntry, BACKUP, BACKUP_SETTLE, BACKUP_STATUS, BOOT_SERVERS, BackupStatus, CAPACITY,
    CERTIFICATE_KEY, Capacity, Explanation, IMAGE_LIST, IMPORTS, ImageSummary, ImportStatus, MACHINES, MadeToken,
    MakeToken, PSIDS, Page, Problem, SizeVerdict, TOKENS, TokenInfo,
};
use drophammer_protocol::boot_server::{BootServer, JoinToken};
use drophammer_protocol::chain::CertificateChain;
use drophammer_protocol::erase::Psid;
use drophammer_protocol::event::Recorded;
use drophammer_protocol::id::BootServerId;
use drophammer_protocol::machine::{Allocation, Machine, Reinstall, Remarks, TakeBack, Wanted};
use drophammer_protocol::sign::PublicKey;
use reqwest::blocking::{Client as Http, ClientBuilder, RequestBuilder, Response};
use reqwest::{StatusCode, Url};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

pub use self::watch::Watch;

#[derive(Clone, Debug)]
pub struct Client {
    http: Http,
    base: Url,
    /// As the user wrote it, for error messages.
    server: String,
    token: Option<String>,
}

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(60);
/// A large state over a slow line.
const BACKUP_PATIENCE: Duration = Duration::from_secs(4 * 3600);

impl Client {
    /// `server` is `unix:/path/to/api.sock`, or `https://host:port` with the operator's token and the server's CA.
    pub fn connect(server: &str, token_file: Option<&Path>, ca_file: Option<&Path>) -> Result<Self> {
        let builder = Http::builder().connect_timeout(CONNECT).timeout(ANSWER).no_proxy();
        let (builder, base, token) = if let Some(path) = server.strip_prefix("unix:") {
            // No TLS on a socket, but without a configuration of it the HTTP client wants a process-wide one.
            let nobody = trusting(builder, RootCertStore::empty())?;
            (nobody.unix_socket(Path::new(path)), "http://localhost/".to_owned(), None)
        } else if server.starts_with("https://") {
            let (Some(token_file), Some(ca_file)) = (token_file, ca_file) else {
                bail!(
                    "{server} needs an operator token (--token-file) and the server's certificate authority (--ca); both \
                     are files in the server's state directory"
                );
            };
            (trusting(builder, read_ca(ca_file)?)?, server.to_owned(), Some(read_token(token_file)?))
        } else {
            bail!("{server:?} is no server: give unix:/path/to/api.sock or https://host:port");
        };
        Ok(Self {
            http: builder.build().context("setting up the HTTP client")?,
            base: base.parse().with_context(|| format!("reading the server's address {server:?}"))?,
            server: server.to_owned(),
            token,
        })
    }

    /// All of them, without their inventories.
    pub fn machines(&self) -> Result<Vec<Machine>> {
        self.machines_like(&[])
    }

    /// Those that fit all of it, such as `("state", "waiting")`.
    pub fn machines_like(&self, query: &[(&str, &str)]) -> Result<Vec<Machine>> {
        self.all(&self.url(MACHINES, &[])?, query)
    }

    /// Page after page.
    fn all<T: DeserializeOwned>(&self, url: &Url, query: &[(&str, &str)]) -> Result<Vec<T>> {
        let (mut items, mut after) = (Vec::new(), None::<String>);
        loop {
            let mut url = url.clone();
            if !query.is_empty() || after.is_some() {
                url.query_pairs_mut().extend_pairs(query).extend_pairs(after.iter().map(|after| ("after", after)));
            }
            let page: Page<T> = self.send(self.http.get(url))?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(items),
            }
        }
    }

    pub fn machine(&self, machine: &str) -> Result<Machine> {
        self.send(self.http.get(self.url(MACHINES, &[machine])?))
    }

    /// Events after position `after`; waits up to `wait` seconds for the first one.
    pub fn events(&self, machine: &str, after: u64, wait: u64) -> Result<Vec<Recorded>> {
        let mut url = self.url(MACHINES, &[machine, "events"])?;
        url.query_pairs_mut().append_pair("after", &after.to_string()).append_pair("wait", &wait.to_string());
        self.send(self.http.get(url).timeout(ANSWER + Duration::from_secs(wait)))
    }

    pub fn explanation(&self, machine: &str) -> Result<Explanation> {
        self.send(self.http.get(self.url(MACHINES, &[machine, "explanation"])?))
    }

    pub fn certificates(&self, machine: &str) -> Result<CertificateChain> {
        self.send(self.http.get(self.url(MACHINES, &[machine, "certificates"])?))
    }

    /// Gives out whichever machine fits.
    pub fn allot(&self, wanted: &Wanted) -> Result<Machine> {
        self.send(self.http.post(self.url(ALLOCATIONS, &[])?).json(wanted))
    }

    /// Only if it still has this generation, if one is given.
    pub fn remark(&self, machine: &str, remarks: &Remarks, generation: Option<u64>) -> Result<Machine> {
        let request = self.http.patch(self.url(MACHINES, &[machine])?).json(remarks);
        self.send(match generation {
            Some(generation) => request.header("If-Match", format!("\"{generation}\"")),
            None => request,
        })
    }

    pub fn size(&self, machine: &str) -> Result<SizeVerdict> {
        self.send(self.http.get(self.url(MACHINES, &[machine, "size"])?))
    }

    pub fn capacity(&self) -> Result<Vec<Capacity>> {
        self.send(self.http.get(self.url(CAPACITY, &[])?))
    }

    pub fn audit(&self) -> Result<Vec<AuditEntry>> {
        self.all(&self.url(AUDIT, &[])?, &[])
    }

    pub fn tokens(&self) -> Result<Vec<TokenInfo>> {
        self.send(self.http.get(self.url(TOKENS, &[])?))
    }

    pub fn make_token(&self, wish: &MakeToken) -> Result<MadeToken> {
        self.send(self.http.post(self.url(TOKENS, &[])?).json(wish))
    }

    pub fn revoke_token(&self, id: Uuid) -> Result<()> {
        self.send(self.http.delete(self.url(TOKENS, &[&id.to_string()])?))
    }

    /// All documents of a kind, by its plural.
    pub fn documents(&self, plural: &str) -> Result<Vec<Value>> {
        self.all(&self.url("/v1", &[plural])?, &[])
    }

    /// One document, if it's there.
    pub fn document(&self, plural: &str, name: &str) -> Result<Option<Map<String, Value>>> {
        let (status, body) = self.exchange(self.http.get(self.url("/v1", &[plural, name])?))?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.understand(status, &body).map(Some)
    }

    pub fn put(&self, plural: &str, name: &str, document: &Map<String, Value>) -> Result<Put> {
        let before = self.document(plural, name)?;
        let after: Map<String, Value> = self.send(self.http.put(self.url("/v1", &[plural, name])?).json(document))?;
        Ok(match before {
            None => Put::Made,
            Some(before) if before == after => Put::AsItWas,
            Some(_) => Put::Changed,
        })
    }

    pub fn delete(&self, plural: &str, name: &str) -> Result<()> {
        self.send(self.http.delete(self.url("/v1", &[plural, name])?))
    }

    /// Everything that changes from now on, of one kind. It goes on where it was when the connection is lost.
    pub fn watch(&self, kind: &str) -> Result<Watch<'_>> {
        Watch::begin(self, kind)
    }

    pub fn allocate(&self, machine: &str, allocation: &Allocation) -> Result<Machine> {
        self.send(self.http.post(self.url(MACHINES, &[machine, "allocate"])?).json(allocation))
    }

    pub fn release(&self, machine: &str, how: TakeBack) -> Result<Machine> {
        self.take_back(machine, "release", how)
    }

    pub fn reprovision(&self, machine: &str, how: TakeBack) -> Result<Machine> {
        self.take_back(machine, "reprovision", how)
    }

    pub fn reinstall(&self, machine: &str, how: &Reinstall) -> Result<Machine> {
        self.send(self.http.post(self.url(MACHINES, &[machine, "reinstall"])?).json(how))
    }

    fn take_back(&self, machine: &str, verb: &str, how: TakeBack) -> Result<Machine> {
        let mut url = self.url(MACHINES, &[machine, verb])?;
        url.query_pairs_mut().append_pair("despite_quarantine", &how.despite_quarantine.to_string());
        self.send(self.http.post(url))
    }

    /// What the server signs receipts of certificates with.
    pub fn certificate_key(&self) -> Result<PublicKey> {
        self.send(self.http.get(self.url(CERTIFICATE_KEY, &[])?))
    }

    /// Serials of the drives whose PSID the server keeps.
    pub fn psids(&self) -> Result<Vec<String>> {
        self.send(self.http.get(self.url(PSIDS, &[])?))
    }

    pub fn keep_psid(&self, serial: &str, psid: &Psid) -> Result<()> {
        self.send(self.http.put(self.url(PSIDS, &[serial])?).json(psid))
    }

    pub fn forget_psid(&self, serial: &str) -> Result<()> {
        self.send(self.http.delete(self.url(PSIDS, &[serial])?))
    }

    pub fn boot_servers(&self) -> Result<Vec<BootServer>> {
        self.send(self.http.get(self.url(BOOT_SERVERS, &[])?))
    }

    pub fn join_token(&self) -> Result<JoinToken> {
        self.send(self.http.post(self.url(BOOT_SERVERS, &["tokens"])?))
    }

    pub fn remove_boot_server(&self, id: BootServerId) -> Result<()> {
        self.send(self.http.delete(self.url(BOOT_SERVERS, &[&id.to_string()])?))
    }

    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        self.send(self.http.get(self.url(IMAGE_LIST, &[])?))
    }

    pub fn imports(&self) -> Result<Vec<ImportStatus>> {
        self.send(self.http.get(self.url(IMPORTS, &[])?))
    }

    pub fn backup_status(&self) -> Result<BackupStatus> {
        self.send(self.http.get(self.url(BACKUP_STATUS, &[])?))
    }

    pub fn settle(&self) -> Result<()> {
        self.send(self.http.post(self.url(BACKUP_SETTLE, &[])?))
    }

    /// Writes the content of a backup. Whether it's whole, whoever reads it finds out.
    pub fn backup(&self, to: &mut dyn Write) -> Result<()> {
        let mut answer = self.ask(self.http.get(self.url(BACKUP, &[])?).timeout(BACKUP_PATIENCE))?;
        if !answer.status().is_success() {
            let (status, body) = (answer.status(), answer.bytes().map_err(reqwest::Error::without_url)?);
            return self.understand(status, &body);
        }
        io::copy(&mut answer, to).with_context(|| format!("taking the backup from {}", self.server))?;
        Ok(())
    }

    /// Names come from people, so they are quoted part by part.
    fn url(&self, path: &str, parts: &[&str]) -> Result<Url> {
        if parts.iter().any(|p| p.is_empty() || *p == "." || *p == "..") {
            bail!("nothing can be called {:?}", parts.first().unwrap_or(&""));
        }
        let mut url = self.base.clone();
        url.set_path(path);
        url.path_segments_mut().map_err(|()| anyhow!("{} is no server address", self.server))?.extend(parts);
        Ok(url)
    }

    fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let (status, body) = self.exchange(request)?;
        self.understand(status, &body)
    }

    fn ask(&self, request: RequestBuilder) -> Result<Response> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        // The address is in our own sentence; reqwest's would have it a second time.
        let asking = || format!("asking the server at {}", self.server);
        request.send().map_err(reqwest::Error::without_url).with_context(asking)
    }

    fn exchange(&self, request: RequestBuilder) -> Result<(StatusCode, Bytes)> {
        let answer = self.ask(request)?;
        let status = answer.status();
        let asking = || format!("asking the server at {}", self.server);
        Ok((status, answer.bytes().map_err(reqwest::Error::without_url).with_context(asking)?))
    }

    fn understand<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T> {
        if status.is_success() {
            // 204 says all there is to say.
            let body = if body.is_empty() { b"null".as_slice() } else { body };
            return serde_json::from_slice(body).with_context(|| format!("reading the answer of {}", self.server));
        }
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => bail!("{}", problem.detail),
            Err(_) => bail!("{} answered {status} without saying why; is it a drophammer server?", self.server),
        }
    }
}

/// What became of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Made,
    Changed,
    AsItWas,
}

fn read_ca(ca_file: &Path) -> Result<RootCertStore> {
    let pem = fs::read(ca_file).with_context(|| format!("reading the certificate authority {}", ca_file.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.with_context(|| format!("reading {} as PEM", ca_file.display()))?;
        roots.add(certificate).with_context(|| format!("trusting the certificate in {}", ca_file.display()))?;
    }
    if roots.is_empty() {
        bail!("{} holds no certificate (PEM)", ca_file.display());
    }
    Ok(roots)
}

fn trusting(builder: ClientBuilder, roots: RootCertStore) -> Result<ClientBuilder> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("setting up TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(builder.tls_backend_preconfigured(tls))
}

fn read_token(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("reading the operator token {}", file.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    /// A CA and a server certificate for 127.0.0.1 of its.
    fn authority() -> (String, rustls::ServerConfig) {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect("signs").pem();
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::new(ca, ca_key);
        let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).expect("parameters");
        let leaf = leaf.signed_by(&key, &issuer).expect("signs");
        let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a private key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .expect("a certificate");
        (ca_pem, config)
    }

    #[test]
    fn only_a_server_of_the_given_authority_sees_the_token() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| dir.path().join(name);
        let (ca, config) = authority();
        fs::write(path("ca"), ca).expect("writes");
        fs::write(path("other"), authority().0).expect("writes");
        fs::write(path("token"), "secret\n").expect("writes");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let server = format!("https://{}", listener.local_addr().expect("bound"));
        let serving = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for tcp in listener.incoming().take(2) {
                let session = rustls::ServerConnection::new(Arc::new(config.clone())).expect("a session");
                let mut stream = BufReader::new(rustls::StreamOwned::new(session, tcp.expect("connects")));
                let mut lines = String::new();
                // A client that doesn't trust us hangs up before it says anything.
                while stream.read_line(&mut lines).is_ok_and(|n| n > 2) {}
                let body = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{\"items\":[]}";
                let _ = stream.get_mut().write_all(body.as_bytes());
                heard.push(lines.to_ascii_lowercase());
            }
            heard
        });
        let ask =
            |ca: &str| Client::connect(&server, Some(&path("token")), Some(&path(ca))).expect("is set up").machines();
        let refused = format!("{:#}", ask("other").expect_err("another authority's server"));
        assert!(refused.contains("certificate"), "{refused}");
        assert_eq!(ask("ca").expect("answers"), []);
        let heard = serving.join().expect("serves");
        let told = heard.iter().map(|lines| lines.contains("authorization: bearer secret\r\n")).collect::<Vec<_>>();
        assert_eq!(told, [false, true]);
    }
}
