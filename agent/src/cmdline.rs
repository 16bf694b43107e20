//! What we are told through the kernel command line, by the boot script or by who built the unified kernel image.

use drophammer_protocol::id::Mac;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// The port that the firmware booted from.
    pub(crate) boot_mac: Option<Mac>,
    /// `http://address:port` of the boot server, for networks whose DHCP server doesn't say where it is.
    pub(crate) boot_server: Option<String>,
}

impl Cmdline {
    /// Total: what isn't understood is left to others, since the kernel and the firmware put words here too.
    pub(crate) fn parse(text: &str) -> Self {
        let mac = |key: &str, shorten: fn(&str) -> &str| {
            text.split_whitespace().filter_map(|w| w.strip_prefix(key)).find_map(|v| shorten(v).parse().ok())
        };
        let server = text.split_whitespace().find_map(|w| w.strip_prefix("drophammer.server="));
        Self {
            boot_mac: mac("drophammer.mac=", |v| v).or_else(|| mac("BOOTIF=", bootif)),
            boot_server: server.filter(|url| url.starts_with("http://")).map(str::to_owned),
        }
    }
}

/// pxelinux puts the ARP hardware type in front (`01-52-54-…`); boot scripts often leave it out.
fn bootif(value: &str) -> &str {
    match value.strip_prefix("01-").or_else(|| value.strip_prefix("01:")) {
        Some(mac) if value.len() > "52:54:00:77:00:01".len() => mac,
        _ => value,
    }
}

/// A server that a boot may go on with is one that is asked by HTTP.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let server = Cmdline::parse(text).boot_server;
    assert!(server.is_none_or(|url| url.starts_with("http://") && !url.contains(char::is_whitespace)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_port_is_found() {
        let mac = Some(Mac([0x52, 0x54, 0, 0x77, 0, 1]));
        for (name, text, want) in [
            ("nothing", "quiet console=ttyS0", None),
            ("ours", "quiet drophammer.mac=52:54:00:77:00:01", mac),
            ("pxelinux", "BOOTIF=01-52-54-00-77-00-01 quiet", mac),
            ("without the type", "BOOTIF=52:54:00:77:00:01", mac),
            ("a MAC that begins with 01", "BOOTIF=01-54-00-77-00-01", Some(Mac([1, 0x54, 0, 0x77, 0, 1]))),
            ("ours wins", "BOOTIF=01-52-54-00-77-00-02 drophammer.mac=52-54-00-77-00-01", mac),
            ("broken, then good", "BOOTIF=${net0/mac} BOOTIF=52:54:00:77:00:01", mac),
            ("broken", "BOOTIF=", None),
        ] {
            assert_eq!(Cmdline::parse(text).boot_mac, want, "{name}");
        }
    }

    #[test]
    fn the_boot_server_is_found() {
        for (name, text, want) in [
            ("nothing", "quiet", None),
            ("ours", "quiet drophammer.server=http://10.0.0.1:8080", Some("http://10.0.0.1:8080")),
            ("something else", "drophammer.server=tftp://10.0.0.1", None),
        ] {
            assert_eq!(Cmdline::parse(text).boot_server.as_deref(), want, "{name}");
        }
    }
}
