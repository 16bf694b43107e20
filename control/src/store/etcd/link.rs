//! Talking to the members of a cluster: who doesn't answer is left for the next one.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::wire::{AuthenticateRequest, AuthenticateResponse};

/// For one attempt at one member. Etcd itself gives up a commit after seven.
const ATTEMPT: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
/// A member that says nothing for as long is dead.
const SILENCE: Duration = Duration::from_secs(5);
/// Pages of a thousand entries.
const LARGEST_ANSWER: usize = 512 << 20;

/// Where a cluster is and how it's talked to.
#[derive(Clone, PartialEq, Eq)]
pub struct At {
    /// `http://host:port` or `https://host:port` of its members.
    pub endpoints: Vec<String>,
    /// What all of our keys begin with.
    pub prefix: String,
    pub tls: Option<Tls>,
    pub login: Option<Login>,
}

impl fmt::Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "At({} below {})", self.endpoints.join(", "), self.prefix)
    }
}

/// All in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who signed the members' certificates.
    pub ca: String,
    /// Certificate and key that this server is known by.
    pub identity: Option<(String, String)>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(not shown)")
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

pub(super) struct Link {
    members: Vec<(String, Channel)>,
    /// Who answered last.
    current: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<&str> = self.members.iter().map(|(endpoint, _)| endpoint.as_str()).collect();
        f.write_str(&members.join(", "))
    }
}

/// The answers of a conversation that began with one question.
pub(super) struct Answers<R>(Streaming<R>, String);

impl<R> Answers<R> {
    pub(super) async fn next(&mut self) -> Result<R> {
        let said = self.0.message().await.map_err(|status| failed(&self.1, &status))?;
        said.with_context(|| format!("{} ended the conversation", self.1))
    }
}

impl Link {
    /// Inside of a runtime.
    pub(super) fn new(at: &At) -> Result<Self> {
        let members = at.endpoints.iter().map(|endpoint| {
            let doing = || format!("reading {endpoint:?} as the address of an etcd member (http://host:port)");
            let mut channel = Endpoint::from_shared(endpoint.clone())
                .with_context(doing)?
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(SILENCE)
                .keep_alive_timeout(SILENCE)
                .keep_alive_while_idle(true);
            if let Some(tls) = &at.tls {
                let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
                if let Some((certificate, key)) = &tls.identity {
                    config = config.identity(Identity::from_pem(certificate, key));
                }
                channel = channel.tls_config(config).context("reading the certificates for etcd")?;
            }
            Ok((endpoint.clone(), channel.connect_lazy()))
        });
        let members = members.collect::<Result<Vec<_>>>()?;
        if members.is_empty() {
            return Err(anyhow!("etcd needs at least one endpoint"));
        }
        Ok(Self { members, current: AtomicUsize::new(0), login: at.login.clone(), token: Mutex::default() })
    }

    /// One question, one answer. What changes something is asked so that it may be asked twice.
    pub(super) async fn ask<Q, R>(&self, method: &str, question: Q, patience: Duration) -> Result<R>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let deadline = Instant::now() + patience;
        loop {
            let (member, endpoint, channel) = self.member();
            let attempt = async {
                let request = self.request(channel, question.clone()).await?;
                let mut grpc = grpc(channel).await?;
                grpc.unary(request, path(method)?, ProstCodec::<Q, R>::default()).await
            };
            let status = match timeout(ATTEMPT, attempt).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("it doesn't answer"),
            };
            let is_stale = status.code() == Code::Unauthenticated && self.login.is_some();
            if is_stale {
                *self.token() = None;
            }
            if !(is_stale || may_pass(&status)) || Instant::now() + PAUSE > deadline {
                return Err(failed(endpoint, &status));
            }
            self.leave(member);
            sleep(PAUSE).await;
        }
    }

    /// One question and any number of answers, from one member. Asked again it's another conversation.
    pub(super) async fn converse<Q, R>(&self, method: &str, question: Q) -> Result<Answers<R>>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let (member, endpoint, channel) = self.member();
        let begin = async {
            // It ends when we go, not when everything is said.
            let questions = tokio_stream::StreamExt::chain(tokio_stream::once(question), tokio_stream::pending());
            let request = self.request(channel, questions).await?;
            let mut grpc = grpc(channel).await?;
            grpc.streaming(request, path(method)?, ProstCodec::<Q, R>::default()).await
        };
        let status = match timeout(ATTEMPT, begin).await {
            Ok(Ok(answers)) => return Ok(Answers(answers.into_inner(), endpoint.to_owned())),
            Ok(Err(status)) => status,
            Err(_) => Status::unavailable("it doesn't answer"),
        };
        if status.code() == Code::Unauthenticated {
            *self.token() = None;
        }
        self.leave(member);
        Err(failed(endpoint, &status))
    }

    fn member(&self) -> (usize, &str, &Channel) {
        let at = self.current.load(Ordering::Relaxed) % self.members.len();
        let (endpoint, channel) = &self.members[at];
        (at, endpoint, channel)
    }

    /// Whoever comes next asks another one, unless somebody saw to that already.
    fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        // Another's doing is as good.
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn request<T>(&self, channel: &Channel, body: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(body);
        // A member that has lost the others says so, instead of letting us wait.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let Some(login) = &self.login else { return Ok(request) };
        let known = self.token().clone();
        let token = match known {
            Some(token) => token,
            None => {
                let Login { user, password } = login.clone();
                let asked = Request::new(AuthenticateRequest { name: user, password });
                let codec = ProstCodec::<AuthenticateRequest, AuthenticateResponse>::default();
                let answer = grpc(channel).await?.unary(asked, path("Auth/Authenticate")?, codec).await?;
                let token = answer.into_inner().token.parse().map_err(|_| Status::internal("etcd gave no token"))?;
                self.token().insert(token).clone()
            }
        };
        request.metadata_mut().insert("token", token);
        Ok(request)
    }

    fn token(&self) -> std::sync::MutexGuard<'_, Option<MetadataValue<Ascii>>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn grpc(channel: &Channel) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
    grpc.ready().await.map_err(|e| Status::unavailable(format!("{:#}", Error::new(e))))?;
    Ok(grpc)
}

fn path(method: &str) -> Result<PathAndQuery, Status> {
    format!("/etcdserverpb.{method}").parse().map_err(|_| Status::internal("no method"))
}

/// Whether another member, or the same one a moment later, may say something else.
fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => true,
        // What became of a connection.
        Code::Unknown | Code::Internal => !status.message().starts_with("etcdserver: "),
        _ => false,
    }
}

/// What a member answered instead of what was asked for, or why it didn't answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("etcd at {endpoint}: {said}")]
pub(crate) struct Unanswered {
    endpoint: String,
    said: String,
    code: Code,
}

fn failed(endpoint: &str, status: &Status) -> Error {
    // What a connection ended with is behind all that its layers say of it.
    let mut cause = std::error::Error::source(status);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    let said = match cause {
        Some(cause) => cause.to_string(),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    };
    Error::new(Unanswered { endpoint: endpoint.to_owned(), said, code: status.code() })
}

/// Whether what was asked for is older than etcd's history.
pub(super) fn is_compacted(error: &Error) -> bool {
    let said = |it: &Unanswered| it.code == Code::OutOfRange && it.said.contains("compacted");
    error.downcast_ref::<Unanswered>().is_some_and(said)
}

/// What can be done about a commit of as many changes that etcd didn't take.
pub(super) fn explain(error: Error, changes: usize) -> Error {
    let Some(it) = error.downcast_ref::<Unanswered>() else { return error };
    let advice = match (it.code, it.said.as_str()) {
        (Code::InvalidArgument, said) if said.contains("too many operations") => {
            format!(
                "this takes {changes} changes at once: start etcd with --max-txn-ops {}",
                changes.next_power_of_two()
            )
        }
        (Code::InvalidArgument, said) if said.contains("too large") => {
            "start etcd with a larger --max-request-bytes".to_owned()
        }
        (Code::ResourceExhausted, said) if said.contains("space") => {
            "etcd is full: compact and defragment it, then `etcdctl alarm disarm`".to_owned()
        }
        (Code::PermissionDenied, _) => "its user may not write there: grant it readwrite on the prefix".to_owned(),
        _ => return error,
    };
    error.context(advice)
}
