//! Option 82: what a DHCP relay says about where a client is (RFC 3046), and how it wants to be answered.

use std::net::Ipv4Addr;

use crate::config::{Octets, RelayMatch};

/// The option as it came, because relays want to see it again (RFC 3046 §2.2), and what we understand of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayInfo {
    pub raw: Vec<u8>,
    /// The switch's port.
    pub circuit_id: Option<Vec<u8>>,
    /// The switch.
    pub remote_id: Option<Vec<u8>>,
    /// The client's subnet, if it isn't giaddr's (RFC 3527).
    pub link: Option<Ipv4Addr>,
    /// What the client shall take for the server, so that it renews through the relay (RFC 5107).
    pub server: Option<Ipv4Addr>,
}

impl RelayInfo {
    /// Suboptions after one that is cut short are left out.
    pub fn read(raw: &[u8]) -> Self {
        let mut info = Self { raw: raw.to_vec(), ..Self::default() };
        let mut rest = raw;
        while let [code, length, more @ ..] = rest {
            let Some((data, after)) = more.split_at_checked(usize::from(*length)) else { break };
            let address = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            match code {
                1 => info.circuit_id = Some(data.to_vec()),
                2 => info.remote_id = Some(data.to_vec()),
                5 => info.link = address(),
                11 => info.server = address(),
                _ => {}
            }
            rest = after;
        }
        info
    }
}

impl RelayMatch {
    pub fn fits(&self, relay: Option<&RelayInfo>) -> bool {
        let same = |wanted: &Option<Octets>, said: Option<&Vec<u8>>| {
            wanted.as_ref().is_none_or(|wanted| said == Some(&wanted.0))
        };
        same(&self.circuit_id, relay.and_then(|r| r.circuit_id.as_ref()))
            && same(&self.remote_id, relay.and_then(|r| r.remote_id.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn suboptions_are_read_as_far_as_they_go() {
        let port = Some(b"Ethernet7".to_vec());
        for (name, raw, circuit, link) in [
            ("nothing", &b""[..], None, None),
            ("a port", b"\x01\x09Ethernet7", port.clone(), None),
            ("a port and a subnet", b"\x01\x09Ethernet7\x05\x04\x0a\x4e\x00\x01", port.clone(), Some([10, 78, 0, 1])),
            ("an unknown one before", b"\x97\x01x\x01\x09Ethernet7", port.clone(), None),
            ("a subnet of five bytes", b"\x05\x05\x0a\x4e\x00\x01\x00", None, None),
            ("the second cut short", b"\x01\x09Ethernet7\x05\x04\x0a", port, None),
            ("a code alone", b"\x01", None, None),
        ] {
            let info = RelayInfo::read(raw);
            assert_eq!((info.circuit_id, info.link), (circuit, link.map(Ipv4Addr::from)), "{name}");
            assert_eq!(info.raw, raw, "{name}");
        }
    }

    #[test]
    fn all_that_is_asked_for_has_to_fit() {
        let octets = |text: &str| Some(Octets(text.into()));
        let info = RelayInfo::read(b"\x01\x01a\x02\x01b");
        for (name, circuit_id, remote_id, relay, want) in [
            ("nothing asked, no relay", None, None, None, true),
            ("nothing asked", None, None, Some(&info), true),
            ("the port", octets("a"), None, Some(&info), true),
            ("both", octets("a"), octets("b"), Some(&info), true),
            ("another switch", octets("a"), octets("c"), Some(&info), false),
            ("a port, no relay", octets("a"), None, None, false),
        ] {
            assert_eq!(RelayMatch { circuit_id, remote_id }.fits(relay), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_no_panic(raw in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = RelayInfo::read(&raw);
        }
    }
}
