//! What a boot server that runs alone and its control API say to each other.
//!
//! A boot server joins once, with a one-time token, and is from then on known by its certificate: HTTPS with a client
//! certificate of the control API's own authority, by which the machines know the boot server too. It decides by itself
//! and tells what it did, in order ([`Reports`]); what machines say to the control API it carries there.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::event::{Phase, Progress, Step};
use crate::id::{BootId, BootServerId, Mac, MachineId};
use crate::sight::Sight;
use crate::sign::PublicKey;
use crate::ticket::Reach;

/// `POST` [`Join`] → [`Joined`]. The join token is the bearer credential of this one call.
pub const JOIN: &str = "/boot-server/v1/join";
/// `POST` [`Certifiable`] → [`Certified`]
pub const CERTIFICATE: &str = "/boot-server/v1/certificate";
/// `PUT` [`Registration`] → [`Briefing`]. 409 if another boot server gives out the same addresses.
pub const REGISTRATION: &str = "/boot-server/v1/registration";
/// `POST` [`Health`] → [`Briefing`], as it is now. Sent all the time: it's the heartbeat.
pub const HEALTH: &str = "/boot-server/v1/health";
/// `GET ?after=version&wait=seconds` → 200 [`OwnDisks`], or 204 if there is no news of it.
pub const OWN_DISKS: &str = "/boot-server/v1/own-disks";
/// `POST` [`Reports`] → [`ReportsStored`]
pub const REPORTS: &str = "/boot-server/v1/reports";

/// The most reports that are sent at once.
pub const MAX_REPORTS: usize = 256;

/// What a certificate is made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certifiable {
    /// The public key, a point of P-256 as SEC 1 writes it, in hexadecimal.
    pub key: String,
    /// What machines call the boot server by.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub name: String,
    pub certifiable: Certifiable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub id: BootServerId,
    /// PEM of the authority that signed it, and everything else.
    pub ca: String,
    pub certified: Certified,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// PEM
    pub certificate: String,
    /// From then on a new one is to be asked for.
    pub renew_ms: u64,
    pub expires_ms: u64,
}

/// Who a boot server is and what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Registration {
    pub name: String,
    /// Boot servers of one partition with the same subnet are on one segment.
    pub partition: String,
    pub version: String,
    pub networks: Vec<NetworkSummary>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetworkSummary {
    pub name: String,
    pub address: Ipv4Addr,
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub subnet: Ipv4Net,
    /// `server`, `proxy` or `off`.
    pub dhcp: String,
    pub relayed: bool,
    /// The addresses that it gives out, from first to last.
    pub pool: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// `(part, of)`: of these addresses only its part.
    pub share: Option<(u32, u32)>,
}

/// What a boot server has to know to do its work alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Briefing {
    pub id: BootServerId,
    pub ca: String,
    /// Keys whose image manifests may be installed.
    pub image_keys: Vec<PublicKey>,
    /// What the boot server makes its machines' boot tokens from: 64 hex digits, its own and secret.
    pub boot_key: String,
    /// Name and time servers of its partition, for clients in networks that are configured with none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
}

/// How a boot server is. What can't be found out is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    pub uptime_s: u64,
    /// Of the host, over one minute.
    pub load: f64,
    pub processors: u32,
    pub memory_bytes: u64,
    pub memory_available_bytes: u64,
    /// Of the boot server itself.
    pub resident_bytes: u64,
    /// Where its state is kept.
    pub disk_free_bytes: u64,
    /// Reports that the control API hasn't got yet.
    pub reports_waiting: u64,
    /// Reports that had to be given up because too many were waiting.
    pub reports_lost: u64,
    /// Sentences, each about something that somebody has to put right.
    pub problems: Vec<String>,
}

/// The machines that boot their own disk. All others get the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnDisks {
    /// To be compared with nothing but itself.
    pub version: u64,
    pub machines: Vec<MachineId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reports {
    /// In the order in which they happened.
    pub reports: Vec<Numbered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// From 1, never used again.
    pub number: u64,
    pub report: Report,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportsStored {
    /// All up to this one are safe.
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Asked(Asked),
    Seen(Seen),
}

/// A machine asked what to boot, and was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub at_ms: u64,
    pub mac: Mac,
    pub machine: MachineId,
    pub address: IpAddr,
    /// The boot that it got a ticket for; none if it was sent to its own disk.
    pub boot: Option<BootId>,
    pub reach: Reach,
}

/// Something of a machine's boot, seen by DHCP, TFTP or HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub at_ms: u64,
    pub mac: Mac,
    /// If it was said.
    pub machine: Option<MachineId>,
    pub phase: Phase,
    pub step: Step,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sight: Option<Sight>,
}

/// A boot server, as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BootServer {
    pub id: BootServerId,
    pub registration: Registration,
    /// It's in the same process as the control API.
    pub embedded: bool,
    pub up: bool,
    pub joined_ms: u64,
    pub seen_ms: u64,
    /// None for the embedded one, whose certificate is made anew at every start.
    pub certificate_expires_ms: Option<u64>,
    pub health: Option<Health>,
}

/// What an operator hands to a new boot server: good for one join, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JoinToken {
    pub token: String,
    pub expires_ms: u64,
}
