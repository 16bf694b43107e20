//! What happens on the way from power-on to a running OS, as one timeline across firmware, server and agent.

use serde::{Deserialize, Serialize};

use crate::sight::{Asker, Sight};

/// The road, in order. The server sees the first ones from outside; the agent reports the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Progress {
    pub done_bytes: u64,
    /// `None` while the end isn't known.
    pub total_bytes: Option<u64>,
}

/// One event as the agent sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// What a boot server saw, if it's that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sight: Option<Sight>,
}

/// A machine's history, boot by boot: each begins when its firmware asks for an address.
pub fn boots(history: &[Recorded]) -> impl Iterator<Item = &[Recorded]> {
    history.chunk_by(|before, event| {
        let firmware = event.sight.as_ref().and_then(Sight::asker).is_some_and(|by| by != Asker::Ipxe);
        // It asks several times, and several servers.
        let again = before.sight.as_ref().and_then(Sight::asker).is_some_and(|by| by != Asker::Ipxe);
        !firmware || again
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::sight::Leads;

    #[test]
    fn a_boot_begins_when_the_firmware_asks() {
        use Asker::{Ipxe, Uefi};
        let offered = |by| Some(Sight::Offered { by, address: Ipv4Addr::LOCALHOST });
        let led = |by| Some(Sight::Led { by, to: Leads::Tftp });
        let told = Some(Sight::Told { own_disk: true });
        for (name, sights, want) in [
            ("nothing", vec![], vec![]),
            ("a boot through iPXE", vec![offered(Uefi), led(Uefi), None, offered(Ipxe), led(Ipxe), None], vec![6]),
            ("firmware that asks again", vec![offered(Uefi), offered(Uefi), led(Uefi)], vec![3]),
            ("two boots", vec![offered(Uefi), led(Uefi), told.clone(), offered(Uefi), led(Uefi)], vec![3, 2]),
            ("what was before the first", vec![None, offered(Uefi)], vec![1, 1]),
        ] {
            let event = |sight: &Option<Sight>| Recorded {
                position: 1,
                at_ms: 0,
                boot: None,
                phase: Phase::Dhcp,
                step: Step::Note,
                message: String::new(),
                progress: None,
                sight: sight.clone(),
            };
            let history: Vec<_> = sights.iter().map(event).collect();
            assert_eq!(boots(&history).map(<[_]>::len).collect::<Vec<_>>(), want, "{name}");
        }
    }
}
