//! The control API: which machines there are, where each stands, what it's told and what it proved.
//!
//! | file | what it is about |
//! |---|---|
//! | [`lifecycle`] | the rules: which state follows from what. Pure |
//! | [`erasure`] | what has to be erased and what proves it. Pure |
//! | [`explain`] | why a machine isn't where it should be. Pure |
//! | `provisioning` | the same road in metal-stack's words. Pure |
//! | `install`, `images` | what exactly is installed where |
//! | `boot` | for the boot server: who boots what, tickets, what is seen from outside |
//! | `boot_servers`, `own_disks` | for boot servers that run alone: joining, what they serve, what they know and report |
//! | `authority`, [`keep`] | by what all of them know each other |
//! | `agent`, `outcome` | what agents ask and tell, and how their orders ended |
//! | `differences`, `gpu` | what is new about what a machine is made of, and what its graphics processors are called. Pure |
//! | `notary` | what the server signs about erase certificates |
//! | `operator`, `auth`, `oidc`, `limits` | what people ask and order, and who may |
//! | `desk`, `allot`, `rack`, `names` | who gets which machine, and what machines answer to; the last three pure |
//! | `documents`, `audit` | what is declared, and who changed it |
//! | [`backup`] | all of it elsewhere, and back |
//! | `drives` | the secrets on drives' labels |
//! | `pool`, `size` | all machines in memory, and which size each is of |
//! | `timeline`, `observed` | one history per machine |
//! | `line` | how many who come at once are served in one go |
//! | `duty`, `every`, `presence`, `janitor` | what several servers on one store have to agree on |
//! | `records`, `store`, [`StateFile`], `secret` | what is kept, how, and how secrets aren't |
//! | `http` | paths and bodies, as [`drophammer_protocol::api`] has them |
//! | [`client`] | the other end, for operators |
//!
//! Every answer is given after the change it speaks of is on disk, and nothing that matters is in memory alone: the
//! server can be killed anywhere and goes on. Sockets and TLS are the boot server's; here are routers.

mod agent;
mod allot;
mod audit;
mod auth;
mod authority;
pub mod backup;
mod boot;
mod boot_servers;
pub mod client;
mod denied;
mod desk;
mod differences;
mod documents;
mod drives;
mod duty;
pub mod erasure;
mod every;
pub mod explain;
#[cfg(fuzzing)]
pub mod fuzz;
mod gpu;
mod http;
mod images;
mod install;
mod janitor;
pub mod keep;
pub mod lifecycle;
mod limits;
mod line;
mod names;
mod notary;
mod observed;
mod oidc;
mod operator;
mod outcome;
mod own_disks;
mod pool;
mod power;
mod presence;
mod provisioning;
mod rack;
mod records;
mod rested;
mod secret;
mod size;
mod state_file;
mod store;
mod timeline;
mod wake;

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use drophammer_protocol::api::ImportStatus;
use drophammer_protocol::erase;
use drophammer_protocol::id::{BootServerId, MachineId, OrderId};
use drophammer_protocol::machine::State;
use drophammer_protocol::provisioning::ProvisioningEvent;
use drophammer_protocol::resource::{ImageSource, Partition};
use drophammer_protocol::sign::PublicKey;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

pub use crate::auth::{Auth, Role};
pub use crate::authority::Point;
use crate::authority::{Authority, Holder};
use crate::boot_servers::EMBEDDED;
pub use crate::boot_servers::{ClientCertificate, HEARTBEAT, fingerprint};
use crate::denied::Denied;
use crate::desk::Desk;
use crate::duty::Duty;
use crate::every::Every;
use crate::images::Images;
use crate::lifecycle::Input;
use crate::limits::Limits;
use crate::notary::Notary;
use crate::observed::Observed;
pub use crate::oidc::Oidc;
use crate::oidc::Provider;
use crate::own_disks::Watched;
use crate::pool::Pool;
use crate::power::Power;
use crate::presence::Presence;
use crate::records::{DEFAULT_PARTITION, Record, Rules};
pub use crate::secret::BootKey;
use crate::secret::ServerKey;
pub use crate::state_file::StateFile;
pub use crate::store::etcd::{At as EtcdAt, Login as EtcdLogin, Tls as EtcdTls};
use crate::store::{Store, Txn};
use crate::wake::Wakes;

/// No server runs as long without a restart.
const OWN_CERTIFICATE: time::Duration = time::Duration::days(5 * 365);

#[derive(Clone, Debug)]
pub struct Config {
    /// Holds the state file, the server's keys and the first operator tokens.
    pub state_dir: PathBuf,
    pub state: StateAt,
    /// Published images, laid out as [`drophammer_protocol::manifest`] says.
    pub images_dir: PathBuf,
    /// What this server is called by, by whoever connects to it over HTTPS.
    pub addresses: Vec<IpAddr>,
    pub host_names: Vec<String>,
    /// Run as `HOOK cycle MACHINE_ID MACHINE_NAME`.
    pub power_hook: Option<PathBuf>,
    /// People who are known elsewhere.
    pub oidc: Option<Oidc>,
    /// That one caller may make; more at once than in a second aren't answered.
    pub requests_per_second: NonZeroU32,
    pub policy: Policy,
}

/// Where everything is kept that isn't a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateAt {
    /// One file in the state directory.
    File,
    /// An etcd cluster, which several servers can share.
    Etcd(EtcdAt),
}

/// What may change while it runs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whose images may be installed.
    pub image_keys: Vec<PublicKey>,
    pub imports: Option<Imports>,
    /// Extra kernel arguments of installed systems, such as the console.
    pub install_cmdline: String,
    /// Patterns of the models that are rebooted into their installed system, because kexec doesn't go well there.
    pub reboot_models: Vec<String>,
    /// Boots in a row that may end without getting on before the machine is quarantined.
    pub max_failures: u32,
    /// Which erasures are good enough before a machine is given to anybody.
    pub erase: erase::Policy,
    /// How old the proof of an erased drive may become before it's erased again, though nobody had it.
    pub erase_again_after: Duration,
    /// Projects that machines are allocated for, each with the erasures that are good enough after it.
    pub projects: BTreeMap<String, erase::Policy>,
}

/// Images that this server signs itself, for they were others' before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imports {
    /// Believed for these images, and for those that are declared to be compiled, alone.
    pub key: PublicKey,
    /// `name/version` of each that the configuration has.
    pub references: Vec<String>,
}

/// How far imports are, by whoever makes them. It isn't a [`Control`], which would hold the state file.
#[derive(Clone, Debug, Default)]
pub struct ImportBoard(Arc<Mutex<Vec<ImportStatus>>>);

impl ImportBoard {
    pub fn put(&self, imports: Vec<ImportStatus>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = imports;
    }

    pub fn read(&self) -> Vec<ImportStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Policy {
    /// Who may have signed what a machine is ordered to install. An order says which image that is, down to the byte.
    fn all_image_keys(&self) -> Vec<PublicKey> {
        self.image_keys.iter().copied().chain(self.imports.iter().map(|imports| imports.key)).collect()
    }
}

/// The control API's state and rules. Cheap to clone; the state file is released with the last clone. Its functions
/// wait for the disk, so async callers call them from a thread that may block.
#[derive(Clone, Debug)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    policy: RwLock<Arc<Policy>>,
    store: Store,
    key: ServerKey,
    notary: Notary,
    authority: Authority,
    /// Of the boot server in this process.
    id: BootServerId,
    presence: Arc<Presence>,
    own_disks: Arc<Watched>,
    pool: Arc<Pool>,
    images: Images,
    imports: ImportBoard,
    wakes: Arc<Wakes>,
    observed: Observed,
    desk: Desk,
    /// Of the boot server in this process.
    partition: Mutex<String>,
    oidc: Option<Provider>,
    limits: Limits,
    started_ms: u64,
    backups: Duty,
    _janitor: Every,
    /// Only where there are others to tell.
    _reporter: Option<Every>,
    power: Option<Power>,
}

impl Control {
    pub fn open(config: Config) -> Result<Self> {
        let dir = &config.state_dir;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("creating the state directory {}", dir.display()))?;
        let store = open_store(dir, &config.state)?;
        backup::refuse_half_restored(&store)?;
        backup::warn_of_the_past(&store)?;
        let key = ServerKey::open(&dir.join("server.key"))?;
        let notary = Notary::open(&dir.join("certificate.key"))?;
        let authority = Authority::open(dir)?;
        auth::first_tokens(&store, dir, unix_ms())?;
        let id = match &config.state {
            StateAt::File => EMBEDDED,
            StateAt::Etcd(_) => one_of_several(&store, dir, &key, &notary, &authority)?,
        };
        let (wakes, own_disks) = (Arc::new(Wakes::default()), Arc::new(Watched::default()));
        let presence = Arc::new(Presence::default());
        let pool = Pool::start(store.clone(), Arc::clone(&wakes), Arc::clone(&own_disks), Arc::clone(&presence))?;
        let pool = Arc::new(pool);
        let observed = Observed::start(store.clone(), Arc::clone(&pool))?;
        let power = match &config.power_hook {
            Some(hook) => {
                let duty = Duty::new(store.clone(), "power", id.to_string());
                Some(Power::start(hook.clone(), store.clone(), Arc::clone(&pool), duty)?)
            }
            None => None,
        };
        let reporter = match &config.state {
            StateAt::File => None,
            StateAt::Etcd(_) => Some(presence::tell(store.clone(), Arc::clone(&presence), id)?),
        };
        let janitor = janitor::start(store.clone(), Duty::new(store.clone(), "janitor", id.to_string()))?;
        let backups = Duty::new(store.clone(), "backup", id.to_string());
        let oidc = config.oidc.clone().map(Provider::new).transpose().context("setting up OpenID Connect")?;
        let limits = Limits::new(config.requests_per_second);
        let policy = &config.policy;
        let (keys, imports) = (policy.image_keys.clone(), policy.imports.clone());
        let images = Images::new(config.images_dir.clone(), keys, imports, store.clone());
        let policy = RwLock::new(Arc::new(config.policy.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                policy,
                store,
                key,
                notary,
                authority,
                id,
                presence,
                own_disks,
                pool,
                images,
                imports: ImportBoard::default(),
                wakes,
                observed,
                desk: Desk::default(),
                partition: Mutex::new(DEFAULT_PARTITION.into()),
                oidc,
                limits,
                started_ms: unix_ms(),
                backups,
                _janitor: janitor,
                _reporter: reporter,
                power,
            }),
        })
    }

    /// The certificate authority that machines, boot servers and operators pin.
    pub fn ca_pem(&self) -> &str {
        &self.inner.authority.ca_pem
    }

    /// A certificate for this server itself, in PEM: good for its addresses and names and for this host.
    pub fn certificate(&self, key: &Point) -> Result<String> {
        let config = self.config();
        let holder = Holder {
            name: "drophammer".into(),
            addresses: config.addresses.iter().copied().chain([Ipv4Addr::LOCALHOST.into()]).collect(),
            host_names: config.host_names.iter().cloned().chain(["localhost".into()]).collect(),
            client: false,
            life: OWN_CERTIFICATE,
        };
        Ok(self.inner.authority.certify(key, holder)?.pem)
    }

    fn config(&self) -> &Config {
        &self.inner.config
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.inner.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on this is what counts.
    pub fn follow(&self, policy: Policy) {
        self.inner.images.trust(policy.image_keys.clone(), policy.imports.clone());
        *self.inner.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// What is declared about a partition.
    pub fn partition(&self, name: &str) -> Option<Partition> {
        self.inner.pool.read().partitions.get(name).map(|stored| stored.value.clone())
    }

    /// Where images are declared to come from.
    pub fn image_sources(&self) -> Vec<ImageSource> {
        self.inner.pool.read().image_sources.values().map(|stored| stored.value.clone()).collect()
    }

    /// Changes with what boot servers do by what is declared.
    pub fn declared(&self) -> watch::Receiver<()> {
        self.inner.pool.declared()
    }

    /// For whoever imports images for this server.
    pub fn import_board(&self) -> ImportBoard {
        self.inner.imports.clone()
    }

    fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Runs one transaction on one machine: what `body` changes in the record is saved. Nothing changed is no news: else
    /// those who wait for some would wake themselves.
    fn change<R>(
        &self,
        machine: MachineId,
        mut body: impl FnMut(&mut Txn<'_>, &mut Record) -> Result<R, Denied>,
    ) -> Result<R, Denied> {
        self.store().transact(|txn| {
            let Some(mut record) = Record::load(txn, machine)? else {
                return Err(Denied::no_machine(machine));
            };
            let before = record.clone();
            let result = body(txn, &mut record)?;
            if record != before {
                record.save(txn)?;
            }
            Ok(result)
        })
    }

    /// Takes a machine one step further by the rules and tells its timeline.
    fn advance(&self, txn: &mut Txn<'_>, record: &mut Record, input: Input, now: u64) -> Result<(), Denied> {
        let before = record.state;
        let road = on_the_road(&input);
        let policy = self.policy();
        let rules = Rules { max_failures: policy.max_failures, erase: policy.erase };
        record.step(input, rules, OrderId(Uuid::new_v4()), now)?;
        if let Some((event, message)) = road
            && (event != ProvisioningEvent::Waiting || record.state == State::Waiting)
        {
            record.tell(event, now, &timeline::shortened(message));
        }
        record.last_seen_ms = record.last_seen_ms.max(self.seen(record.id));
        if record.state == State::Booting {
            record.void_tickets(txn);
        }
        timeline::append(txn, record.id, timeline::told(before, record, now))?;
        Ok(())
    }

    fn saw(&self, machine: MachineId, now: u64) {
        self.inner.presence.saw_machine(machine, now);
    }

    fn seen(&self, machine: MachineId) -> u64 {
        self.inner.presence.machine(machine)
    }
}

fn open_store(state_dir: &Path, state: &StateAt) -> Result<Store> {
    match state {
        StateAt::File => Store::open(&state_dir.join("control.redb")),
        StateAt::Etcd(at) => Store::connect(at),
    }
}

/// The provisioning event that an input is.
fn on_the_road(input: &Input) -> Option<(ProvisioningEvent, String)> {
    use ProvisioningEvent as E;
    let (event, message) = match input {
        Input::Enrol { .. } => (E::Preparing, "an agent enrolled".to_owned()),
        Input::Inventory(Ok(_)) => (E::Registering, "its inventory is here".to_owned()),
        Input::Erased(_) => (E::Waiting, "its drives are proven erased".to_owned()),
        Input::Inventory(Err(why)) => (E::Crashed, why.to_string()),
        Input::NotErased(why) | Input::InstallFailed(why) => (E::Crashed, why.clone()),
        Input::InstallOrdered => (E::Installing, "it has its install order".to_owned()),
        Input::Installed => (E::BootingNewKernel, "its system is installed".to_owned()),
        Input::PhonedHome => (E::PhonedHome, "its system is up".to_owned()),
        Input::Release(_) | Input::Reprovision(_) | Input::Reinstall(_) => {
            (E::MachineReclaim, "it was taken back".to_owned())
        }
        Input::Allocate | Input::OwnDisk => return None,
    };
    Some((event, message))
}

/// What all servers on one store have to have in common, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CommonKeys {
    server: String,
    receipts: PublicKey,
    authority: String,
}

const COMMON_KEYS: &str = "common-keys";

/// The id of a server that shares its store, if it has the keys that the others have. The first one says which.
fn one_of_several(
    store: &Store,
    dir: &Path,
    key: &ServerKey,
    notary: &Notary,
    authority: &Authority,
) -> Result<BootServerId> {
    let ours = CommonKeys {
        server: key.fingerprint(),
        receipts: notary.public_key(),
        authority: fingerprint(&authority.ca_pem)?,
    };
    let theirs = store.transact(|txn| -> Result<_> {
        if let Some(theirs) = txn.get::<CommonKeys>(COMMON_KEYS)? {
            return Ok(theirs);
        }
        txn.put(COMMON_KEYS, &ours)?;
        Ok(ours.clone())
    })?;
    ensure!(
        ours == theirs,
        "the servers on this etcd have other keys than this one: copy ca.key, ca.pem, certificate.key and server.key from \
         one of their state directories into {}",
        dir.display()
    );
    let text = keep::made_once(&dir.join("server.id"), || Ok(Uuid::new_v4().to_string()))?;
    Ok(BootServerId(text.trim().parse().with_context(|| format!("reading server.id in {}", dir.display()))?))
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
