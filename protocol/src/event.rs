//! What happens on the way from power-on to a running OS, as one timeline across firmware, server and agent.

use serde::{Deserialize, Serialize};

/// The road, in order. The server sees the first ones from outside; the agent reports the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Firmware,
    Dhcp,
    Tftp,
    Http,
    Kernel,
    Agent,
    Enrol,
    Inventory,
    Erase,
    Waiting,
    Allocated,
    Layout,
    Image,
    Configure,
    Kexec,
    Os,
    PhonedHome,
    /// Not a stretch of the road: something a person did (allocate, release, …) or that befell the machine.
    Lifecycle,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Http => "http",
            Self::Kernel => "kernel",
            Self::Agent => "agent",
            Self::Enrol => "enrol",
            Self::Inventory => "inventory",
            Self::Erase => "erase",
            Self::Waiting => "waiting",
            Self::Allocated => "allocated",
            Self::Layout => "layout",
            Self::Image => "image",
            Self::Configure => "configure",
            Self::Kexec => "kexec",
            Self::Os => "os",
            Self::PhonedHome => "phoned home",
            Self::Lifecycle => "lifecycle",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Started,
    /// Still going; `progress` says how far.
    Progress,
    Done,
    Failed,
    /// A fact worth keeping that neither starts nor ends a phase.
    Note,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done_bytes: u64,
    /// `None` while the end isn't known.
    pub total_bytes: Option<u64>,
}

/// One event as the agent sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up from 1 within a boot. The server drops what it has already stored, so resending is safe.
    pub seq: u64,
    /// Milliseconds since the agent's kernel started, from a clock that no time-setting moves.
    pub uptime_ms: u64,
    pub phase: Phase,
    pub step: Step,
    /// A sentence for people. For `Failed` it is the whole chain of causes.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// One event as the server keeps and shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Position in this machine's history; never reused.
    pub position: u64,
    /// Milliseconds since 1970, by the server's clock. For the agent's events this is computed from `uptime_ms` and the
    /// server's own sight of the boot, so that a wrong clock in the machine doesn't bend the timeline.
    pub at_ms: u64,
    /// `None` for what was seen before the machine's agent enrolled.
    pub boot: Option<crate::id::BootId>,
    pub phase: Phase,
    pub step: Step,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}
