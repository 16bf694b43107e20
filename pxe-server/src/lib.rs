//! The boot server: everything between a machine's power-on and its agent.
//!
//! | | |
//! |---|---|
//! | [`dhcp`] | addresses, and where each boot loader goes next |
//! | [`ra`] | an IPv6 "nobody here", without which some loaders wait |
//! | [`tftp`] | iPXE, for firmware that can't do better |
//! | [`http`](serve) | boot script, kernel, initramfs with the boot's ticket; unified kernel image; signed time; images |
//! | [`plain`](serve) | how most of that goes out: files by sendfile |
//! | [`listen`](serve) | the control API for agents and operators, over TLS and a local socket |
//! | [`observe`], `metrics` | what all of these see of a boot: as one timeline, as counts |
//! | `imports` | images that come from elsewhere: mirrored, or compiled here |
//! | `behind` | who decides: the control API in the same process, or |
//! | `alone` | what stands in for one that is elsewhere |
//!
//! [`serve`] binds all of it before it serves any of it: a server that says "ready" is one.

mod alone;
mod backups;
mod behind;
pub mod config;
mod declared;
pub mod dhcp;
mod files;
#[cfg(fuzzing)]
pub mod fuzz;
mod health;
mod http;
pub mod identity;
mod imports;
mod listen;
mod live;
mod metrics;
pub mod observe;
mod plain;
pub mod ra;
pub mod script;
pub mod tftp;
pub mod tls;

use std::fs::{self, DirBuilder};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use drophammer_control::{Auth, Control, HEARTBEAT, Point, Policy, StateAt};
use drophammer_protocol::boot_server::Health;
use nix::sys::stat::{Mode, umask};
use rcgen::KeyPair;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::alone::Alone;
use crate::behind::Behind;
pub use crate::config::{Config, ControlAt, Settings};
use crate::dhcp::boot::http_url;
use crate::dhcp::others::{Others, Watch};
use crate::dhcp::serve::Dhcp;
use crate::listen::Door;
use crate::live::Loaded;
use crate::metrics::{Exporter, Metrics};
use crate::observe::Observer;
use crate::tftp::serve::Tftp;
use crate::tls::Identity;

/// Serves until `shutdown` is ready or a part of the server dies, which ends all of it with that part's error.
pub async fn serve(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<()> {
    let (_nobody, reloads) = mpsc::channel(1);
    serve_reloading(settings, reloads, shutdown).await
}

/// The same, with configurations to take up while it runs.
pub async fn serve_reloading(
    settings: Settings,
    reloads: mpsc::Receiver<Settings>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let started = Instant::now();
    let server = Server::bind(&settings).await?;
    for network in &settings.networks {
        let (name, boot) = (&network.name, http_url(network.address, settings.ports.http));
        info!(name, interface = network.interface, subnet = %network.subnet, boot, dhcp = network.dhcp.word(), "network");
    }
    info!(socket = %settings.socket.display(), took_ms = started.elapsed().as_millis(), "ready");
    // Nobody listens but systemd, where it started us.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!("telling the service manager that the server is ready: {error}");
    }
    server.run(reloads, shutdown).await
}

/// Everything bound, nothing served.
struct Server {
    live: watch::Sender<Arc<Loaded>>,
    behind: Behind,
    dhcp: Option<Dhcp>,
    watch: Option<Watch>,
    others: Others,
    ra: Vec<ra::RouterAdvertisements>,
    tftp: Option<Tftp>,
    doors: Vec<(&'static str, Door, axum::Router)>,
    observer: Observer,
}

impl Server {
    async fn bind(settings: &Settings) -> Result<Self> {
        let loaded = Arc::new(Loaded::new(settings.clone())?);
        let live = watch::Sender::new(Arc::clone(&loaded));
        for (dir, mode) in [(&settings.state_dir, 0o700), (&settings.images_dir, 0o755)] {
            let made = DirBuilder::new().recursive(true).mode(mode).create(dir);
            made.with_context(|| format!("making {}", dir.display()))?;
        }
        let ports = settings.ports;
        let dhcp = Dhcp::bind(&loaded, live.subscribe())?;
        let others = Others::default();
        let watch = Watch::bind(settings, live.subscribe(), others.clone())?;
        let mut ra = vec![];
        for network in settings.networks.iter().filter(|n| settings.router_advertisements && !n.relayed) {
            ra.push(ra::RouterAdvertisements::bind(&network.interface)?);
        }
        let tftp = Tftp::bind(&settings.addresses(), ports.tftp, live.subscribe())?;
        let (mut http, mut https) = (vec![], vec![]);
        for (address, interface) in settings.addresses() {
            let at = |port| SocketAddr::new(IpAddr::V4(address), port);
            http.push(listen::tcp(at(ports.http), "HTTP (ports.http)", interface).await?);
            https.push(listen::tcp(at(ports.https), "HTTPS (ports.https)", interface).await?);
        }
        let metrics_door = metrics::listen(settings.metrics).await?;
        for address in &settings.listen {
            https.push(listen::tcp(*address, "the control API (listen)", "this host").await?);
        }

        let time_key = tls::time_key(&settings.state_dir)?;
        let (behind, ca_pem, identity) = match &settings.control {
            Some(at) => {
                let alone = Alone::start(settings, at).await?;
                (Behind::Alone(Arc::clone(&alone)), alone.ca_pem(), alone.identity())
            }
            None => {
                let control = open_control(settings)?;
                let key = KeyPair::generate()?;
                let certificate = control.certificate(&Point::of(&key))?;
                let identity = Identity::new(key.serialized_der(), &certificate, control.ca_pem())?;
                let ca_pem = control.ca_pem().to_owned();
                (Behind::Here(control), ca_pem, identity)
            }
        };
        follow(&live, &behind);
        let tls = tls::server(identity, &ca_pem)?;
        let metrics = Metrics::default();
        let observer = Observer::new(behind.clone(), metrics.clone());
        let boot = http::Boot {
            behind: behind.clone(),
            observer: observer.clone(),
            time_key,
            ports,
            boot_dir: settings.boot_dir.clone(),
            images_dir: settings.images_dir.clone(),
            live: live.subscribe(),
        };
        let boot = Arc::new(boot);
        let (api, operators) = match &behind {
            Behind::Here(control) => {
                let agents = control.agent_router().merge(control.boot_server_router());
                let api = agents.merge(control.operator_router(Auth::Token)).merge(http::images(Arc::clone(&boot)));
                (api, Some(control.operator_router(Auth::Socket)))
            }
            Behind::Alone(alone) => (alone::relay::router(Arc::clone(alone)), None),
        };
        let boot = http::router(boot);
        let http = http.into_iter().map(|listener| ("HTTP", Door::Http(listener), boot.clone()));
        let https = https.into_iter().map(|l| ("HTTPS", Door::Https(l, Arc::clone(&tls)), api.clone()));
        let operators = match operators {
            Some(app) => Some(("the operators' socket", Door::Socket(socket(&settings.socket)?), app)),
            None => None,
        };
        let exporter = Exporter { metrics, behind: behind.clone(), others: others.clone() };
        let exporter = metrics_door.map(|listener| ("metrics", Door::Http(listener), metrics::router(exporter)));
        let doors = http.chain(https).chain(operators).chain(exporter).collect();
        Ok(Self { live, dhcp, watch, others, ra, tftp, doors, observer, behind })
    }

    async fn run(self, mut reloads: mpsc::Receiver<Settings>, shutdown: impl Future<Output = ()>) -> Result<()> {
        let (stop, stopping) = watch::channel(false);
        let quit = Arc::new(AtomicBool::new(false));
        let mut parts: JoinSet<Result<()>> = JoinSet::new();
        let mut background: JoinSet<Result<()>> = JoinSet::new();

        if let Some(dhcp) = self.dhcp {
            let (quit, observer) = (Arc::clone(&quit), self.observer.clone());
            let ended = spawn("dhcp", move || dhcp.run(&quit, &observer))?;
            parts.spawn(async move { ended.await.context("the DHCP server panicked")? });
        }
        if let Some(watch) = self.watch {
            let quit = Arc::clone(&quit);
            let ended = spawn("dhcp watch", move || watch.run(&quit))?;
            parts.spawn(async move { ended.await.context("the watch for other DHCP servers panicked")? });
        }
        if let Some(tftp) = self.tftp {
            let (quit, observer) = (Arc::clone(&quit), self.observer);
            let ended = spawn("tftp", move || tftp.run(&quit, &observer))?;
            parts.spawn(async move { ended.await.context("the TFTP server panicked")? });
        }
        for ra in self.ra {
            background.spawn(ra.run());
        }
        if let Behind::Here(control) = &self.behind {
            imports::start(control.import_board(), self.live.subscribe())?;
            background.spawn(backups::run(control.clone(), self.live.subscribe()));
        }
        let settings = self.live.borrow().settings.clone();
        match self.behind.clone() {
            Behind::Here(control) => background.spawn(stay_known(control, settings.state_dir, self.others)),
            Behind::Alone(alone) => background.spawn(alone.run(settings, self.others)),
        };
        for (name, door, app) in self.doors {
            let stopping = stopping.clone();
            parts.spawn(
                async move { listen::serve(door, app, stopping).await.with_context(|| format!("serving {name}")) },
            );
        }

        let mut declarations = self.behind.declarations();
        // There may have been some since everything was bound.
        declarations.mark_changed();
        let mut shutdown = pin!(shutdown);
        let early = loop {
            tokio::select! {
                () = shutdown.as_mut() => break None,
                Some(ended) = parts.join_next() => break Some(ended),
                Some(ended) = background.join_next() => break Some(ended),
                Ok(()) = declarations.changed() => follow(&self.live, &self.behind),
                Some(settings) = reloads.recv() => match reload(&self.live, &self.behind, settings).await {
                    Ok(()) => info!("the configuration was taken up"),
                    Err(error) => error!("the configuration was not taken up: {error:#}"),
                },
            }
        };
        let failed = early.map(|ended| match ended.context("a part of the server panicked") {
            Ok(Ok(())) => anyhow::anyhow!("a part of the server ended by itself"),
            Ok(Err(error)) | Err(error) => error,
        });
        info!("stopping");
        quit.store(true, Ordering::Relaxed);
        stop.send_replace(true);
        background.shutdown().await;
        let mut first = failed;
        while let Some(ended) = parts.join_next().await {
            if let Err(error) = ended.context("a part of the server panicked").and_then(|done| done) {
                first.get_or_insert(error);
            }
        }
        if let Behind::Alone(alone) = self.behind
            && let Err(error) = alone.finish()
        {
            first.get_or_insert(error);
        }
        first.map_or(Ok(()), Err)
    }
}

/// Takes up what is declared by now, if it's anything else than before.
fn follow(live: &watch::Sender<Arc<Loaded>>, behind: &Behind) {
    live.send_if_modified(|present| {
        let declared = behind.declared(&present.settings.partition);
        let changed = present.declared != declared;
        if changed {
            *present = Arc::new(Loaded { declared, ..Loaded::clone(present) });
        }
        changed
    });
}

/// All of it or nothing.
async fn reload(live: &watch::Sender<Arc<Loaded>>, behind: &Behind, settings: Settings) -> Result<()> {
    let present = Arc::clone(&live.borrow());
    let loaded = tokio::task::spawn_blocking(move || present.replaced_by(settings)).await??;
    let registration = loaded.settings.registration();
    match behind.clone() {
        Behind::Here(control) => {
            let policy = policy(&loaded.settings)?;
            let embedded = !loaded.settings.networks.is_empty();
            let done = tokio::task::spawn_blocking(move || {
                if embedded {
                    control.register_embedded(&registration).context("registering this boot server")?;
                }
                control.follow(policy);
                anyhow::Ok(())
            });
            done.await??;
        }
        Behind::Alone(alone) => alone.register_as(registration, &loaded.settings.state_dir).await?,
    }
    live.send_replace(Arc::new(loaded));
    Ok(())
}

fn policy(settings: &Settings) -> Result<Policy> {
    Ok(Policy {
        image_keys: settings.image_keys.clone(),
        imports: Some(imports::trusted(settings)?),
        install_cmdline: settings.install_cmdline.clone(),
        reboot_models: settings.reboot_models.clone(),
        max_failures: settings.max_failures,
        erase: settings.erase_policy,
        erase_again_after: settings.erase_again_after,
        projects: settings.projects.clone(),
    })
}

fn open_control(settings: &Settings) -> Result<Control> {
    let networks = settings.addresses().into_iter().map(|(address, _)| IpAddr::V4(address));
    let listen = settings.listen.iter().map(SocketAddr::ip).filter(|address| !address.is_unspecified());
    let (named, host_names): (Vec<_>, Vec<_>) =
        settings.host_names.iter().cloned().partition(|name| name.parse::<IpAddr>().is_ok());
    let named = named.iter().filter_map(|address| address.parse().ok());
    let control = Control::open(drophammer_control::Config {
        state_dir: settings.state_dir.clone(),
        state: match &settings.etcd {
            Some(at) => StateAt::Etcd(at.clone()),
            None => StateAt::File,
        },
        images_dir: settings.images_dir.clone(),
        addresses: networks.chain(listen).chain(named).collect(),
        host_names,
        power_hook: settings.power_hook.clone(),
        oidc: settings.oidc.clone(),
        requests_per_second: settings.requests_per_second,
        policy: policy(settings)?,
    })?;
    if settings.networks.is_empty() {
        control.no_embedded()?;
    } else {
        control.register_embedded(&settings.registration()).context("registering this boot server")?;
    }
    Ok(control)
}

/// The boot server in the control API's own process tells of itself like any other.
async fn stay_known(control: Control, state_dir: PathBuf, others: Others) -> Result<()> {
    loop {
        let state_dir = state_dir.clone();
        let health = tokio::task::spawn_blocking(move || health::of_this_host(&state_dir)).await?;
        control.embedded_health(Health { problems: others.problems(), ..health });
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// A thread of its own for work that blocks for as long as the server runs.
fn spawn(name: &str, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<oneshot::Receiver<Result<()>>> {
    let (done, ended) = oneshot::channel();
    thread::Builder::new()
        .name(name.into())
        // Nobody waits for the result any more if the server is gone.
        .spawn(move || drop(done.send(work())))
        .with_context(|| format!("starting the {name} thread"))?;
    Ok(ended)
}

/// A socket that only this user can connect to.
fn socket(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        bail!("{} is in use: another server is running with this configuration", path.display());
    }
    let bind = || {
        // Left behind by a server that was killed.
        if path.exists() {
            fs::remove_file(path)?;
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        // A mode set after binding would leave the socket open to all for a moment.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        bound
    };
    bind().with_context(|| format!("binding the operators' socket {}", path.display()))
}
