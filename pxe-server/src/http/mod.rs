//! Plain HTTP for firmware, iPXE and the agent's first step, and for images, which are signed and need no secrecy.
//!
//! Nothing here gives out a secret except one, the ticket of a boot: in the initramfs, under an id that cannot be guessed
//! and is told only to the machine that asked, or as the answer to an agent that was booted without one. Either way it goes
//! over plain HTTP to whoever says that they are the machine. So a boot network has to be one on which that is true, and
//! what a ticket can do is little: one enrolment, for a few minutes, of a machine that has no tenant.

mod conditions;
mod content;
pub(crate) mod parcel;
mod rest;

#[cfg(fuzzing)]
pub(crate) use self::conditions::fuzz;

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use drophammer_control::ClientCertificate;
use drophammer_protocol::api::{
    BOOT_INITRAMFS, BOOT_KERNEL, BOOT_SCRIPT, BOOT_TICKET, BOOT_TIME, BOOT_UKI, IMAGES, Problem, TimeAnswer,
};
use drophammer_protocol::event::{Phase, Progress, Step};
use drophammer_protocol::id::{BootId, Mac, MachineId};
use drophammer_protocol::manifest::{PACKS, is_plain_name};
use drophammer_protocol::revocation::REVOKED_FILE;
use drophammer_protocol::sight::{End, File, Sight};
use drophammer_protocol::sign::{PublicKey, Signed};
use drophammer_protocol::ticket::{BootDecision, BootTicket, Reach, ServerTime, TICKET_PATH};
use drophammer_protocol::words;
use ed25519_dalek::SigningKey;
use serde::Deserialize;
use tower::ServiceExt;
use tracing::{debug, error};

use self::content::Content;
use self::parcel::Sent;
use self::rest::Rest;
use crate::behind::Behind;
use crate::config::Ports;
use crate::dhcp::boot::http_url;
use crate::live::Live;
use crate::observe::{Observer, Told};
use crate::{identity, script};

/// What the boot paths need to answer.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) behind: Behind,
    pub(crate) observer: Observer,
    pub(crate) time_key: SigningKey,
    pub(crate) ports: Ports,
    pub(crate) boot_dir: PathBuf,
    pub(crate) images_dir: PathBuf,
    pub(crate) live: Live,
}

/// Both ends of a connection; [`Answerer`] adds them to every request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) remote: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl Peer {
    /// An IPv4 client is the same one on an IPv6 socket.
    fn address(self) -> IpAddr {
        self.remote.ip().to_canonical()
    }

    /// The addresses of the network that the client came from.
    fn reach(self, boot: &Boot) -> Reach {
        let (address, ports) = (self.local.ip().to_canonical(), boot.ports);
        Reach {
            server: format!("https://{address}:{}", ports.https),
            boot_server: http_url(address, ports.http),
            time_key: PublicKey::of(&boot.time_key),
        }
    }
}

/// What answers the requests of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Answerer {
    pub(crate) app: Router,
    pub(crate) peer: Option<Peer>,
    /// That the client showed.
    pub(crate) certificate: Option<ClientCertificate>,
}

impl Answerer {
    pub(crate) async fn answer(&self, mut request: Request<Body>) -> Response {
        if let Some(peer) = self.peer {
            request.extensions_mut().insert(peer);
        }
        if let Some(certificate) = self.certificate {
            request.extensions_mut().insert(certificate);
        }
        let rest = Rest::of(&mut request);
        let Ok(mut answer) = self.app.clone().oneshot(request).await;
        rest.take_in().await;
        // Axum announces what it has, but here it would be the length of what the client has already (RFC 9110 §8.6).
        if answer.status() == StatusCode::NOT_MODIFIED {
            answer.headers_mut().remove(header::CONTENT_LENGTH);
        }
        answer
    }
}

pub(crate) fn router(boot: Arc<Boot>) -> Router {
    Router::new()
        .route(BOOT_SCRIPT, get(boot_script))
        .route(BOOT_TICKET, get(ticket))
        .route(BOOT_UKI, get(uki))
        .route(BOOT_KERNEL, get(kernel))
        .route(&format!("{BOOT_INITRAMFS}/{{boot}}"), get(initramfs))
        .route("/boot/{loader}", get(loader))
        .route(BOOT_TIME, get(time))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is nothing at this path on a boot server"))
        .with_state(Arc::clone(&boot))
        .merge(images(boot))
}

/// What is signed and can be had by everybody.
pub(crate) fn images(boot: Arc<Boot>) -> Router {
    Router::new()
        .route(&format!("{IMAGES}/{{name}}/{{version}}/{{file}}"), get(image))
        .route(&format!("{IMAGES}/{PACKS}/{{pack}}"), get(pack))
        .route(&format!("{IMAGES}/{REVOKED_FILE}"), get(revoked))
        .with_state(boot)
}

#[derive(Deserialize)]
struct Asking {
    mac: String,
    #[serde(default)]
    uuid: String,
}

/// Who asks what to boot.
struct Who {
    mac: Mac,
    machine: MachineId,
}

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let asking = Query::<Asking>::from_request_parts(parts, state).await;
        let Query(Asking { mac, uuid }) = asking.map_err(IntoResponse::into_response)?;
        let Ok(mac) = mac.parse::<Mac>() else {
            return Err(refuse(StatusCode::BAD_REQUEST, format_args!("mac={mac:?} is not an Ethernet address")));
        };
        let machine = uuid.parse().ok().and_then(identity::of_uuid).unwrap_or_else(|| identity::of_mac(mac));
        Ok(Self { mac, machine })
    }
}

async fn boot_script(
    State(boot): State<Arc<Boot>>,
    Extension(peer): Extension<Peer>,
    Who { mac, machine }: Who,
) -> Response {
    let text = match decide(&boot, mac, machine, peer).await {
        Ok(BootDecision::Agent(ticket)) => {
            script::agent(&ticket.boot_server, ticket.boot, &boot.live.borrow().settings.agent_cmdline)
        }
        Ok(BootDecision::LocalDisk) => script::local_disk(),
        // The machine's screen is where somebody looks first.
        Err(said) => script::trouble(&peer.reach(&boot).boot_server, &said),
    };
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], text).into_response()
}

/// For an agent that was booted from the unified kernel image.
async fn ticket(
    State(boot): State<Arc<Boot>>,
    Extension(peer): Extension<Peer>,
    Who { mac, machine }: Who,
) -> Response {
    match decide(&boot, mac, machine, peer).await {
        Ok(decision) => ([(header::CACHE_CONTROL, "no-store")], Json(decision)).into_response(),
        Err(said) => refuse(StatusCode::INTERNAL_SERVER_ERROR, said),
    }
}

/// What a machine boots, told to its timeline; or why that can't be said.
async fn decide(boot: &Boot, mac: Mac, machine: MachineId, peer: Peer) -> Result<BootDecision, String> {
    let (address, reach) = (peer.address(), peer.reach(boot));
    boot.observer.saw(address, mac, Some(machine));
    let behind = boot.behind.clone();
    let decision = off_thread(move || behind.boot_asked(mac, machine, address, &reach)).await.map_err(|error| {
        error!(%mac, %machine, "deciding what a machine boots: {error:#}");
        format!("no decision on what to boot: {error:#}")
    });
    let own_disk = decision == Ok(BootDecision::LocalDisk);
    let (step, message, sight) = match &decision {
        Ok(_) => {
            let what = if own_disk { "its own disk" } else { "the agent" };
            (Step::Note, format!("asked what to boot: {what}"), Sight::Told { own_disk })
        }
        Err(said) => (Step::Failed, said.clone(), Sight::Undecided),
    };
    let told = Told { phase: Phase::Http, step, message, progress: None, sight: Some(sight) };
    boot.observer.observe(mac, Some(machine), told);
    decision
}

/// The unified kernel image, for firmware that boots by HTTP. Such firmware takes no instructions: a machine that is to
/// boot its own disk is told that there is nothing here, and goes on to its next boot entry.
async fn uki(State(boot): State<Arc<Boot>>, Extension(peer): Extension<Peer>, asked: Parts) -> Response {
    let address = peer.address();
    if let Some((mac, machine)) = boot.observer.client_at(address) {
        let machine = machine.unwrap_or_else(|| identity::of_mac(mac));
        let behind = boot.behind.clone();
        match off_thread(move || behind.boots_own_disk(machine)).await {
            Ok(true) => {
                // Firmware asks with HEAD and then with GET; it counts once.
                let counts = asked.method == Method::GET;
                let decision =
                    if counts { decide(&boot, mac, machine, peer).await } else { Ok(BootDecision::LocalDisk) };
                if decision == Ok(BootDecision::LocalDisk) {
                    return refuse(StatusCode::NOT_FOUND, format_args!("machine {machine} boots its own disk"));
                }
            }
            Ok(false) => {}
            // The agent asks again, and goes on asking.
            Err(error) => error!(%mac, %machine, "deciding what a machine boots: {error:#}"),
        }
    }
    let mut response = match Content::open(&boot.boot_dir.join(drophammer_initramfs::UKI)).await {
        Ok(Some(content)) => send(content, &asked, &boot, peer, File::Uki),
        Ok(None) => return refuse(StatusCode::NOT_FOUND, "this boot server has no unified kernel image"),
        Err(error) => return broken(format_args!("{error:#}")),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/efi"));
    response
}

async fn kernel(State(boot): State<Arc<Boot>>, Extension(peer): Extension<Peer>, asked: Parts) -> Response {
    match Content::open(&boot.boot_dir.join("vmlinuz")).await {
        Ok(Some(content)) => send(content, &asked, &boot, peer, File::Kernel),
        Ok(None) => broken(format_args!("{} has no vmlinuz", boot.boot_dir.display())),
        Err(error) => broken(format_args!("{error:#}")),
    }
}

async fn initramfs(
    State(boot): State<Arc<Boot>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<BootId>,
    asked: Parts,
) -> Response {
    let behind = boot.behind.clone();
    let ticket = match off_thread(move || behind.ticket(id)).await {
        Ok(Some(ticket)) => ticket,
        Ok(None) => return refuse(StatusCode::NOT_FOUND, format_args!("there is no boot {id}, or its time is over")),
        Err(error) => return broken(format_args!("looking for boot {id}: {error:#}")),
    };
    let base = match Content::open(&boot.boot_dir.join("initramfs")).await {
        Ok(Some(base)) => base,
        Ok(None) => return broken(format_args!("{} has no initramfs", boot.boot_dir.display())),
        Err(error) => return broken(format_args!("{error:#}")),
    };
    match ticket_segment(&ticket, base.file_length()) {
        Ok(tail) => send(base.with_tail(tail, &id.to_string()), &asked, &boot, peer, File::Initramfs),
        Err(error) => broken(format_args!("{error:#}")),
    }
}

/// iPXE for UEFI firmware that boots by HTTP.
async fn loader(State(boot): State<Arc<Boot>>, Path(name): Path<String>) -> Response {
    let file = boot.live.borrow().files.get(&name);
    match file {
        Some((_, bytes)) => ([(header::CONTENT_TYPE, "application/efi")], bytes).into_response(),
        None => refuse(StatusCode::NOT_FOUND, format_args!("there is no boot loader {name:?} here")),
    }
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

async fn time(State(boot): State<Arc<Boot>>, Query(Nonce { nonce }): Query<Nonce>) -> Response {
    // Enough for any nonce; the rest would be letting strangers have texts of theirs signed.
    if nonce.is_empty() || nonce.len() > 128 || !nonce.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return refuse(StatusCode::BAD_REQUEST, "nonce has to be 1 to 128 letters and digits");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|t| u64::try_from(t.as_millis()).ok());
    let Some(unix_ms) = now else {
        return broken("this server's clock is before 1970");
    };
    let answer: TimeAnswer = Signed::seal(&ServerTime { nonce, unix_ms }, &boot.time_key);
    ([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}

/// Manifests and what lies beside them, by name and version.
async fn image(
    boot: State<Arc<Boot>>,
    peer: Extension<Peer>,
    Path((name, version, file)): Path<(String, String, String)>,
    asked: Parts,
) -> Response {
    image_file(boot, peer, &[&name, &version, &file], asked).await
}

async fn pack(boot: State<Arc<Boot>>, peer: Extension<Peer>, Path(pack): Path<String>, asked: Parts) -> Response {
    image_file(boot, peer, &[PACKS, &pack], asked).await
}

/// For whoever mirrors from here. A boot server that runs alone has what its control API decided, and no list to keep.
async fn revoked(State(boot): State<Arc<Boot>>, asked: Parts) -> Response {
    match Content::open(&boot.images_dir.join(REVOKED_FILE)).await {
        Ok(Some(content)) => content.respond(&asked, |_| ()).unwrap_or_else(|error| broken(format_args!("{error:#}"))),
        Ok(None) => refuse(StatusCode::NOT_FOUND, "no image here is revoked"),
        Err(error) => broken(format_args!("{error:#}")),
    }
}

async fn image_file(
    State(boot): State<Arc<Boot>>,
    Extension(peer): Extension<Peer>,
    parts: &[&str],
    asked: Parts,
) -> Response {
    // Plain names can't leave the directory: no separator, no `..`, nothing hidden.
    if !parts.iter().all(|part| is_plain_name(part)) {
        return refuse(
            StatusCode::NOT_FOUND,
            "images are at /images/NAME/VERSION/FILE, and what they're made of at /images/packs/SHA256",
        );
    }
    let path = parts.join("/");
    match Content::open(&boot.images_dir.join(&path)).await {
        // Chunks come by the hundred, and the agent reports their progress itself: they stay out of the timeline.
        Ok(Some(content)) => content
            .respond(&asked, move |sent| debug!(peer = %peer.remote, path, ?sent, "image"))
            .unwrap_or_else(|error| broken(format_args!("{error:#}"))),
        Ok(None) => match &boot.behind {
            Behind::Alone(alone) => alone.image(&boot.images_dir, &path, &asked.headers).await,
            Behind::Here(_) => refuse(StatusCode::NOT_FOUND, format_args!("there is no {path} among the images here")),
        },
        Err(error) => broken(format_args!("{error:#}")),
    }
}

fn send(content: Content, asked: &Parts, boot: &Boot, peer: Peer, file: File) -> Response {
    let what = match file {
        File::Loader => "the boot loader",
        File::Uki => "the unified kernel image",
        File::Kernel => "the kernel",
        File::Initramfs => "the initramfs",
    };
    let (observer, address) = (boot.observer.clone(), peer.address());
    let ended = move |sent: Sent| {
        let Sent { bytes, wanted, total, took } = sent;
        let (step, end, message) = if bytes == wanted {
            let of = if bytes == total { String::new() } else { format!(" of {}", words::grouped(total)) };
            let (size, rate) = (words::grouped(bytes), words::rate(bytes, took));
            let message = format!("fetched {what}: {size}{of} bytes in {} ms ({rate})", took.as_millis());
            (Step::Done, End::Complete, message)
        } else {
            let (size, wanted) = (words::grouped(bytes), words::grouped(wanted));
            (Step::Failed, End::Stopped, format!("stopped fetching {what} after {size} of {wanted} bytes"))
        };
        let progress = Some(Progress { done_bytes: bytes, total_bytes: Some(total) });
        let sight = Some(Sight::Fetched { file, end });
        observer.observe_at(address, Told { phase: Phase::Http, step, message, progress, sight });
    };
    content.respond(asked, ended).unwrap_or_else(|error| broken(format_args!("{error:#}")))
}

/// The ticket as a second archive behind the initramfs. The kernel unpacks one after the other, if each starts at a
/// multiple of four bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
fn ticket_segment(ticket: &BootTicket, behind: u64) -> Result<Bytes> {
    let text = serde_json::to_vec(ticket).context("writing a boot ticket")?;
    let padding = usize::try_from(behind.next_multiple_of(4) - behind)?;
    let mut bytes = vec![0; padding];
    bytes.extend(archive(FilePath::new(TICKET_PATH), &text)?);
    Ok(bytes.into())
}

fn archive(path: &FilePath, content: &[u8]) -> Result<Vec<u8>> {
    let name = path.strip_prefix("/").unwrap_or(path).to_str().context("the ticket's path is not text")?;
    Ok(drophammer_initramfs::cpio::segment(&[(name, content, 0o600)]))
}

/// The control API waits for its disk, which must not hold up other connections.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the control API stopped in the middle")?
}

/// Something is wrong here, and the operator has to know.
fn broken(detail: impl Display) -> Response {
    let detail = detail.to_string();
    error!("answering a boot request: {detail}");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

pub(crate) fn refuse(status: StatusCode, detail: impl Display) -> Response {
    let title = status.canonical_reason().unwrap_or("error").to_owned();
    let problem = Problem { status: status.as_u16(), title, detail: detail.to_string(), errors: vec![] };
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
}
