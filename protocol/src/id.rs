//! Names of things. Each kind has its own type, so that an order can't be passed where a boot is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map(Self)
            }
        }
    };
}

id! {
    /// A machine: the SMBIOS system UUID, which firmware sends as DHCP option 97 and the kernel shows in sysfs.
    MachineId
}
id! {
    /// One boot of the agent on one machine. Orders, credentials and certificates belong to a boot: what an earlier
    /// boot was told or proved doesn't count for a later one.
    BootId
}
id! {
    /// One order to one boot.
    OrderId
}
id! {
    /// A boot server, from when it joined.
    BootServerId
}

/// An Ethernet address, written `52:54:00:77:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an Ethernet address like 52:54:00:77:00:01")]
pub struct NotAMac(String);

impl FromStr for Mac {
    type Err = NotAMac;

    /// Accepts `:` and `-` between the bytes: iPXE writes either, depending on the setting used.
    fn from_str(s: &str) -> Result<Self, NotAMac> {
        let bad = || NotAMac(s.to_owned());
        let mut bytes = [0; 6];
        let mut parts = s.split([':', '-']);
        for byte in &mut bytes {
            let part =
                parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = NotAMac;
    fn try_from(s: String) -> Result<Self, NotAMac> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_reads_what_firmware_writes() {
        for (name, text, want) in [
            ("colons", "52:54:00:77:00:0a", Some([0x52, 0x54, 0, 0x77, 0, 0x0a])),
            ("dashes", "52-54-00-77-00-0A", Some([0x52, 0x54, 0, 0x77, 0, 0x0a])),
            ("short", "52:54:00:77:00", None),
            ("long", "52:54:00:77:00:0a:0b", None),
            ("sign is not a digit", "52:54:00:77:00:+a", None),
            ("empty", "", None),
        ] {
            let got = text.parse::<Mac>().ok().map(|m| m.0);
            // `from_str_radix` would take "+a"; the table pins that we don't.
            assert_eq!(got, want, "{name}");
        }
    }
}
