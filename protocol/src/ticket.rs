//! What a machine is given before it can be asked who it is.

use serde::{Deserialize, Serialize};

use crate::id::{BootId, MachineId};
use crate::sign::{PublicKey, Signable};

/// Where the agent finds its ticket: the file that the server appends to the initramfs of each boot. An agent that was
/// booted without one (from a unified kernel image, which is the same for everybody) asks for it:
/// [`BOOT_TICKET`](crate::api::BOOT_TICKET).
pub const TICKET_PATH: &str = "/etc/drophammer/boot-ticket.json";

/// How a machine reaches its boot server, by the addresses of the network that it boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// `https://address:port`
    pub server: String,
    /// `http://address:port`, for what needs no secrecy: boot files, the signed time, images.
    pub boot_server: String,
    /// Signs the time at `boot_server`.
    pub time_key: PublicKey,
}

/// One machine's ticket for one boot. Everything that the agent trusts starts here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTicket {
    /// `https://address:port`
    pub server: String,
    /// `http://address:port`, for the signed time and nothing else.
    pub boot_server: String,
    /// PEM of the only certificate authority that this machine believes.
    pub ca: String,
    /// Signs the time.
    pub time_key: PublicKey,
    /// Keys whose image manifests may be installed.
    pub image_keys: Vec<PublicKey>,
    pub machine: MachineId,
    pub boot: BootId,
    /// Good for one enrolment of this machine, for a few minutes.
    pub token: String,
}

/// What a machine that boots from the network gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootDecision {
    Agent(BootTicket),
    /// It has a tenant, or is about to.
    LocalDisk,
}

/// The server's clock, in answer to a nonce. A machine whose own clock is wrong can't judge certificates before it has
/// this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerTime {
    pub nonce: String,
    pub unix_ms: u64,
}

impl Signable for ServerTime {
    const CONTEXT: &'static str = "drophammer server time 1";
}

/// What an installed system needs to report, once, that it runs. The agent leaves it at [`PHONE_HOME_PATH`] beside a
/// copy of itself; `drophammer-agent phone-home` uses it and deletes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhoneHome {
    pub server: String,
    pub boot_server: String,
    pub ca: String,
    pub time_key: PublicKey,
    pub machine: MachineId,
    pub token: String,
}

pub const PHONE_HOME_PATH: &str = "/etc/drophammer/phone-home.json";

/// Where the copy of the agent lies in an installed system.
pub const INSTALLED_AGENT_PATH: &str = "/usr/lib/drophammer/drophammer-agent";
