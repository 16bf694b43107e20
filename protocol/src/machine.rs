//! A machine as operators see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hardware::Hardware;
use crate::id::{BootId, Mac, MachineId};
use crate::inventory::{DiskId, Inventory};
use crate::layout::Layout;
use crate::manifest::BootBy;
use crate::order::ReadBack;
use crate::provisioning::{Liveliness, Provisioning};
use crate::resource::Labels;
use crate::system::System;

/// Where a machine stands. `control` holds the rules of how it gets from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Seen on the network; its agent hasn't enrolled yet.
    Discovered,
    /// An agent with a valid ticket is talking to us; nothing is known about the drives.
    Enrolled,
    /// Under an erase order.
    Erasing,
    /// Every drive has a certificate from this boot; ready to be allocated.
    Waiting,
    /// Given to somebody; the install order is out.
    Allocated,
    Installing,
    /// The installed system was started and hasn't called yet.
    Booting,
    /// The installed system said that it's up.
    Running,
    /// Taken back: it has to boot into the agent to be erased.
    Releasing,
    /// Not to be used. A person has to look at the reason and decide.
    Quarantined,
}

impl State {
    pub const ALL: [Self; 10] = [
        Self::Discovered,
        Self::Enrolled,
        Self::Erasing,
        Self::Waiting,
        Self::Allocated,
        Self::Installing,
        Self::Booting,
        Self::Running,
        Self::Releasing,
        Self::Quarantined,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Enrolled => "enrolled",
            Self::Erasing => "erasing",
            Self::Waiting => "waiting",
            Self::Allocated => "allocated",
            Self::Installing => "installing",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Releasing => "releasing",
            Self::Quarantined => "quarantined",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What somebody wants on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// `name/version`, or `name` for the newest version.
    pub image: String,
    pub system: System,
    /// Serial of the drive to install on, all of it; `None` takes the smallest that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// How the drives are divided, instead of everything on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// How the installed system is started; `None` leaves that to the server's configuration and the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootBy>,
    /// How much of what was written is read back and compared.
    #[serde(default, skip_serializing_if = "ReadBack::is_default")]
    pub read_back: ReadBack,
    /// On whose behalf. A project of the server's configuration: it may want drives erased better than others do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

impl Allocation {
    pub fn layout(&self) -> Layout {
        self.layout.clone().unwrap_or_else(|| Layout::single(self.disk.as_deref()))
    }

    /// As it's listed and shown.
    #[must_use]
    pub fn without_secrets(self) -> Self {
        Self { system: self.system.without_secrets(), ..self }
    }
}

/// Which machine somebody wants: every one that fits all of it will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// A certain one: an id, a name, a serial or a MAC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// That it has.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// By which the project's machines are spread: those that are alike go to different racks.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub placement: Labels,
    /// Of the project, to be used up by this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<String>,
}

/// An allocation of whichever machine fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default)]
    pub select: Select,
    pub allocation: Allocation,
}

/// Why a machine isn't to be given to anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Lock {
    pub reason: String,
    pub by: String,
    pub at_ms: u64,
}

/// What people say about a machine; what isn't mentioned stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Remarks {
    /// Instead of those that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// A reason locks it, an empty text unlocks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
}

/// How a machine is taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TakeBack {
    /// Even if it's quarantined: somebody read the reason and decided that it may try again.
    pub despite_quarantine: bool,
}

/// How a machine's system is replaced while its tenant and the drives that its layout keeps stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Reinstall {
    /// As in an [`Allocation`]; the one that is on it, if nobody says.
    pub image: Option<String>,
    pub despite_quarantine: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Machine {
    pub id: MachineId,
    /// The system serial if there is one, else the MAC: what a label on the machine would say.
    pub name: String,
    pub state: State,
    /// Why it's quarantined, or what it is waiting for.
    pub reason: Option<String>,
    pub mac: Option<Mac>,
    pub address: Option<std::net::IpAddr>,
    pub boot: Option<BootId>,
    /// [Without its secrets](Allocation::without_secrets).
    pub allocation: Option<Allocation>,
    /// The drives that a reinstall leaves as they are, by their names in the layout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keeps: BTreeMap<String, DiskId>,
    pub inventory: Option<Inventory>,
    pub partition: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Lock>,
    /// How it was chosen, as long as it's allocated.
    #[serde(default)]
    pub select: Select,
    #[serde(default)]
    pub liveliness: Liveliness,
    /// In lists without its log.
    #[serde(default)]
    pub provisioning: Provisioning,
    /// Counts its changes. Also its entity tag.
    pub generation: u64,
    /// Boots in a row that didn't get past the phase they were in.
    pub failures: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    pub changed_ms: u64,
    pub last_seen_ms: u64,
    /// What the installed system said of itself when it phoned home.
    pub ssh_host_keys: Vec<String>,
}
