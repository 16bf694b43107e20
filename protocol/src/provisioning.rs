//! The road of a machine in the words of metal-stack: its eleven provisioning events, and what they add up to.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ProvisioningEvent {
    Alive,
    Crashed,
    #[serde(rename = "PXE Booting")]
    PxeBooting,
    #[serde(rename = "Planned Reboot")]
    PlannedReboot,
    Preparing,
    Registering,
    Waiting,
    Installing,
    #[serde(rename = "Booting New Kernel")]
    BootingNewKernel,
    #[serde(rename = "Phoned Home")]
    PhonedHome,
    #[serde(rename = "Machine Reclaim")]
    MachineReclaim,
}

impl ProvisioningEvent {
    pub const ALL: [Self; 11] = [
        Self::Alive,
        Self::Crashed,
        Self::PxeBooting,
        Self::PlannedReboot,
        Self::Preparing,
        Self::Registering,
        Self::Waiting,
        Self::Installing,
        Self::BootingNewKernel,
        Self::PhonedHome,
        Self::MachineReclaim,
    ];

    /// As metal-stack writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "Alive",
            Self::Crashed => "Crashed",
            Self::PxeBooting => "PXE Booting",
            Self::PlannedReboot => "Planned Reboot",
            Self::Preparing => "Preparing",
            Self::Registering => "Registering",
            Self::Waiting => "Waiting",
            Self::Installing => "Installing",
            Self::BootingNewKernel => "Booting New Kernel",
            Self::PhonedHome => "Phoned Home",
            Self::MachineReclaim => "Machine Reclaim",
        }
    }
}

/// What a machine's provisioning events add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Provisioning {
    /// The last one that was expected where it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Told>,
    /// It boots again and again without getting on.
    pub crash_loop: bool,
    /// It was taken back, and its old system still calls.
    pub failed_reclaim: bool,
    /// The last one that wasn't expected where it came, or a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Told>,
    /// All of them, oldest first; the oldest go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<Told>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Told {
    pub event: ProvisioningEvent,
    pub at_ms: u64,
    pub message: String,
}

/// Whether anything is heard of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Liveliness {
    Alive,
    /// Its agent should have called for five minutes.
    Dead,
    /// Nobody has to call: it's a tenant's, or nobody ever was there.
    #[default]
    Unknown,
}
