//! Paths and bodies of the HTTP interfaces.
//!
//! Agents speak HTTPS with the pinned CA and `Authorization: Bearer <credential>`; operators the same with their token,
//! or HTTP on the server's own Unix socket, where the file's permissions are the authorisation. Every error is a
//! [`Problem`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::hardware::Hardware;
use crate::id::{BootId, Mac, MachineId};
use crate::inventory::Inventory;
use crate::manifest::{Manifest, Minimum, Source};
use crate::order::Outcome;
use crate::resource::{Classification, Right};
use crate::sign::{PublicKey, Signed, Verified};
use crate::ticket::ServerTime;

/// RFC 9457, `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    pub status: u16,
    pub title: String,
    /// A sentence: the object, the cause, and what to do.
    pub detail: String,
    /// What is wrong with the fields of what was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FieldError {
    /// Its path: `constraints[0].max`.
    pub field: String,
    pub detail: String,
}

// --- boot server, plain HTTP --------------------------------------------------------------------------------------

/// `GET /boot/script.ipxe?mac=…&uuid=…`: the iPXE script for this machine.
pub const BOOT_SCRIPT: &str = "/boot/script.ipxe";
/// `GET /boot/vmlinuz`
pub const BOOT_KERNEL: &str = "/boot/vmlinuz";
/// `GET /boot/initramfs/{boot id}`: the initramfs with this boot's ticket appended.
pub const BOOT_INITRAMFS: &str = "/boot/initramfs";
/// `GET /boot/agent.efi`: the unified kernel image, for UEFI firmware that boots by HTTP. 404 for a machine that is to boot
/// its own disk: firmware then goes on to its next boot entry.
pub const BOOT_UKI: &str = "/boot/agent.efi";
/// `GET /boot/ticket?mac=…&uuid=…` → [`BootDecision`](crate::ticket::BootDecision), for an agent that has no ticket.
pub const BOOT_TICKET: &str = "/boot/ticket";
/// `GET /boot/time?nonce=…`: [`Signed<ServerTime>`].
pub const BOOT_TIME: &str = "/boot/time";
/// `GET /images/{name}/{version}/{file}`, with ranges.
pub const IMAGES: &str = "/images";

pub type TimeAnswer = Signed<ServerTime>;

/// How the agent's DHCP client calls itself (option 60). The answer to it says in option 67 where [`BOOT_TICKET`] is.
pub const AGENT_VENDOR_CLASS: &str = "drophammer-agent";

// --- agents, HTTPS ------------------------------------------------------------------------------------------------

/// `POST` [`Enrol`] → [`Enrolled`]. The ticket's token is the bearer credential of this one call.
pub const AGENT_ENROL: &str = "/agent/v1/enrol";
/// `PUT` [`crate::inventory::Inventory`] → 204.
pub const AGENT_INVENTORY: &str = "/agent/v1/inventory";
/// `POST` [`Events`] → [`EventsStored`].
pub const AGENT_EVENTS: &str = "/agent/v1/events";
/// `GET ?wait=seconds` → 200 [`crate::order::Order`], or 204 when there is none yet. The same order is handed out again
/// until its outcome is in. 410 when this boot's time is over: the agent reboots.
pub const AGENT_ORDER: &str = "/agent/v1/order";
/// `POST /agent/v1/orders/{order}/outcome` [`Outcome`] → 204 once it's stored.
pub const AGENT_ORDERS: &str = "/agent/v1/orders";
/// `POST` [`PhonedHome`] → 204. The phone-home token is the bearer credential of this one call.
pub const AGENT_PHONE_HOME: &str = "/agent/v1/phone-home";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    pub machine: MachineId,
    /// Signs this boot's certificates.
    pub key: PublicKey,
    pub macs: Vec<Mac>,
    pub agent_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Bearer credential for the rest of this boot, good for this machine alone.
    pub credential: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// The agent's uptime when it sent this, so that the server can place the events on its own clock.
    pub uptime_ms: u64,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsStored {
    /// Highest `seq` that is safe on the server.
    pub seq: u64,
}

/// Body of `POST /agent/v1/orders/{order}/outcome`.
pub type OrderOutcome = Outcome;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhonedHome {
    pub machine: MachineId,
    pub hostname: String,
    pub os: String,
    pub kernel: String,
    pub ssh_host_keys: Vec<String>,
    pub uptime_ms: u64,
}

// --- operators ----------------------------------------------------------------------------------------------------
//
// GET    /v1/machines                              [Machine]
// GET    /v1/machines/{ref}                        Machine
// GET    /v1/machines/{ref}/events?after=&wait=    [Recorded]; waits up to `wait` seconds for the first one
// GET    /v1/machines/{ref}/explanation            Explanation
// GET    /v1/machines/{ref}/certificates           CertificateChain
// POST   /v1/machines/{ref}/allocate               Allocation → Machine
// POST   /v1/machines/{ref}/release?despite_quarantine=      → Machine
// POST   /v1/machines/{ref}/reprovision?despite_quarantine=  → Machine
// GET    /v1/certificate-key                       PublicKey that receipts are signed with
// GET    /v1/psids                                 [serial], of the drives whose PSID is kept; the PSID is never told
// PUT    /v1/psids/{serial}                        Psid → 204
// DELETE /v1/psids/{serial}                        204
// GET    /v1/images                                [ImageSummary]
// GET    /v1/imports                               [ImportStatus]
// GET    /v1/backup                                all of the state and its keys, packed; only for admins
// GET    /v1/backup/status                         BackupStatus
// POST   /v1/backup/settle                         204: what was restored is as the machines are
// GET    /v1/boot-servers                          [BootServer]
// POST   /v1/boot-servers/tokens                   → JoinToken
// DELETE /v1/boot-servers/{id}                     204
//
// `{ref}` is an id, an unambiguous beginning of one (8 characters or more), a name, a serial, a MAC or a hostname.

pub const MACHINES: &str = "/v1/machines";
pub const ALLOCATIONS: &str = "/v1/allocations";
pub const CAPACITY: &str = "/v1/capacity";
pub const AUDIT: &str = "/v1/audit";
pub const TOKENS: &str = "/v1/tokens";
pub const WATCH: &str = "/v1/watch";
pub const OPENAPI: &str = "/v1/openapi.json";
pub const IMAGE_LIST: &str = "/v1/images";
pub const IMPORTS: &str = "/v1/imports";
pub const BOOT_SERVERS: &str = "/v1/boot-servers";
pub const CERTIFICATE_KEY: &str = "/v1/certificate-key";
pub const BACKUP: &str = "/v1/backup";
pub const BACKUP_STATUS: &str = "/v1/backup/status";
pub const BACKUP_SETTLE: &str = "/v1/backup/settle";

/// How far the server's own backups are, and whether its state is one that was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BackupStatus {
    /// The last one that was made by itself, and read again from where it lies.
    pub last: Option<BackupMade>,
    /// Why the last attempt after it failed.
    pub failed: Option<BackupFailed>,
    /// Machines that the state doesn't know are quarantined until this is settled.
    pub restored: Option<Restored>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BackupMade {
    pub at_ms: u64,
    /// Where it lies.
    pub at: String,
    pub bytes: u64,
    pub machines: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BackupFailed {
    pub at_ms: u64,
    /// A sentence.
    pub why: String,
}

/// The state is one of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Restored {
    pub at_ms: u64,
    /// When the backup was taken.
    pub taken_ms: u64,
}

pub const PSIDS: &str = "/v1/psids";

/// The likely cause of where a machine stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// A name that stays the same, for programs.
    pub rule: String,
    /// A sentence.
    pub verdict: String,
    /// What it follows from.
    pub because: Vec<Evidence>,
    /// What to look at, the likeliest first.
    pub advice: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Evidence {
    pub at_ms: u64,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageSummary {
    pub name: String,
    pub version: String,
    pub description: String,
    pub created: u64,
    /// From then on it isn't installed any more; in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires: Option<u64>,
    #[serde(default)]
    pub classification: Classification,
    pub download_bytes: u64,
    pub installed_bytes: u64,
    pub signed_by: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub minimum: Option<Minimum>,
}

/// An image that a server brings here or makes from somebody else's, as its configuration or an image source says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImportStatus {
    /// `name/version` of the image that comes of it, or `name` for the newest of a store.
    pub reference: String,
    /// Where it's from.
    pub url: String,
    pub state: ImportState,
    /// How far it is, or why it failed.
    pub words: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ImportState {
    Waiting,
    Working,
    /// Tried again later.
    Failed,
    There,
}

/// Machines of one size in one partition, and how many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Capacity {
    pub partition: String,
    /// Nothing for machines that are of no size.
    pub size: Option<String>,
    pub total: usize,
    /// Could be given to somebody at once, reserved or not.
    pub free: usize,
    pub allocated: usize,
    pub reserved: usize,
    /// Of the reserved ones, those that are allocated.
    pub used_reservations: usize,
    pub quarantined: usize,
    /// Locked, or silent for too long.
    pub faulty: usize,
    /// On their way: being discovered, erased or taken back.
    pub unavailable: usize,
}

/// What a machine told of itself, and what was different from before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InventoryTold {
    pub at_ms: u64,
    pub boot: BootId,
    /// Sentences; none if it's the first that is known.
    pub changes: Vec<String>,
    pub inventory: Inventory,
}

/// Why a machine is of the size that it's of, or of none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SizeVerdict {
    pub size: Option<String>,
    pub hardware: Option<Hardware>,
    /// What each of the others wants that the machine hasn't, the nearest first.
    pub others: Vec<SizeMiss>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SizeMiss {
    pub size: String,
    pub why: Vec<String>,
}

/// What somebody may do, all over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Admin,
    /// May look at everything and change nothing.
    Viewer,
}

/// A token that is wanted. It may do what its role says, what its user's memberships say, and what is said of projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MakeToken {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Whose memberships in tenants and projects count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub projects: BTreeMap<String, Right>,
    /// For ever, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u64>,
}

/// Told once: the server keeps a hash of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MadeToken {
    pub token: String,
    #[serde(flatten)]
    pub info: TokenInfo,
}

impl std::fmt::Debug for MadeToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MadeToken({:?})", self.info)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenInfo {
    pub id: uuid::Uuid,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub projects: BTreeMap<String, Right>,
    pub created_ms: u64,
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// An event of `/v1/watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct News {
    pub revision: u64,
    pub changes: Vec<Changed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Changed {
    /// `machine`, `size`, …
    pub kind: String,
    pub name: String,
    /// As it is now; nothing if it's gone, or can't be seen any more.
    pub object: Option<serde_json::Value>,
}

/// Several requests, each done by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Bulk {
    pub requests: Vec<BulkRequest>,
    /// Leave out all that come after one that failed.
    #[serde(default)]
    pub stop_at_failure: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BulkRequest {
    pub method: String,
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BulkAnswer {
    pub status: u16,
    pub body: serde_json::Value,
}

/// Some of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page<T> {
    pub items: Vec<T>,
    /// As `after` it leads to the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A change that somebody made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// In the order of time.
    pub id: String,
    pub at_ms: u64,
    pub who: String,
    pub action: String,
    /// `size/c1-large`, `machine/3f2a…`
    pub object: String,
    pub before: serde_json::Value,
    pub after: serde_json::Value,
}

impl ImageSummary {
    pub fn of(manifest: &Verified<Manifest>) -> Self {
        Self {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            description: manifest.description.clone(),
            created: manifest.created,
            expires: manifest.expires,
            classification: Classification::default(),
            download_bytes: manifest.download_bytes(),
            installed_bytes: manifest.installed_bytes,
            signed_by: manifest.signed_by(),
            source: manifest.source.clone(),
            minimum: manifest.minimum,
        }
    }
}
