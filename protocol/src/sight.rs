//! What a boot server saw of a boot, for programs that look for a cause. The event that it belongs to says it to people.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "saw", rename_all = "snake_case")]
pub enum Sight {
    /// It asked for an address and was offered this one.
    Offered { by: Asker, address: Ipv4Addr },
    /// It took the offer, or has an address, and was told where to go on.
    Led { by: Asker, to: Leads },
    /// It took the offer of another server.
    TookOther { by: Asker, server: Ipv4Addr },
    /// It can't be booted from here and got no answer; the message says why.
    Unbootable { by: Asker },
    /// There was no address for it.
    NoAddress { by: Asker },
    /// A file was asked for.
    Fetched { file: File, end: End },
    /// It asked what to boot.
    Told { own_disk: bool },
    /// It asked what to boot, and that couldn't be decided.
    Undecided,
}

impl Sight {
    /// Whose DHCP request it was, if it was one.
    pub fn asker(&self) -> Option<Asker> {
        match self {
            Self::Offered { by, .. }
            | Self::Led { by, .. }
            | Self::TookOther { by, .. }
            | Self::Unbootable { by }
            | Self::NoAddress { by } => Some(*by),
            Self::Fetched { .. } | Self::Told { .. } | Self::Undecided => None,
        }
    }
}

/// Whose DHCP request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    Bios,
    Uefi,
    /// UEFI that boots by HTTP.
    UefiHttp,
    Ipxe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Leads {
    Tftp,
    Http,
    Script,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum File {
    /// iPXE, by TFTP or HTTP.
    Loader,
    Uki,
    Kernel,
    Initramfs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum End {
    Complete,
    /// Not even the first packet was acknowledged.
    Unanswered,
    /// In the middle.
    Stopped,
    /// By the machine, with an error.
    GivenUp,
}
