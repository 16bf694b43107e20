//! What a boot loader is sent on to: the part of an answer that isn't about addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, OptionCode, UnknownOption};
use drophammer_protocol::api::{BOOT_TICKET, BOOT_UKI};

use super::request::{Firmware, Loader, Request};

/// iPXE for each kind of firmware, best first, by the names that `boot_dir` has them under.
///
/// `undionly.kpxe` keeps using the network driver of the ROM that loaded it, and `snponly.efi` that of the firmware.
/// `ipxe.efi` brings drivers for all cards, but Debian 12's hangs instead of returning to the firmware, seen with OVMF: a
/// machine whose script says "boot your own disk" stays there.
pub const LOADERS: [(Firmware, [&str; 2]); 5] = [
    (Firmware::Bios, ["undionly.kpxe", "ipxe.pxe"]),
    (Firmware::UefiIa32, ["snponly-ia32.efi", "ipxe-ia32.efi"]),
    (Firmware::UefiX64, ["snponly.efi", "ipxe.efi"]),
    (Firmware::UefiArm32, ["snponly-arm32.efi", "ipxe-arm32.efi"]),
    (Firmware::UefiArm64, ["snponly-arm64.efi", "ipxe-arm64.efi"]),
];

/// The boot loaders that this server has.
pub type Loaders = BTreeMap<Firmware, &'static str>;

/// What this server has for boot loaders of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub address: Ipv4Addr,
    /// `http://address:port`
    pub url: String,
    pub loaders: Loaders,
    /// The agent as one program, for firmware that can fetch it by HTTP with nothing in between.
    pub uki: bool,
}

impl Site {
    pub fn new(address: Ipv4Addr, http_port: u16, loaders: Loaders, uki: bool) -> Self {
        Self { address, url: http_url(address, http_port), loaders, uki }
    }
}

/// Where firmware, iPXE and the agent's first step find a server.
pub fn http_url(address: impl fmt::Display, port: u16) -> String {
    match port {
        80 => format!("http://{address}"),
        port => format!("http://{address}:{port}"),
    }
}

/// Where the next step of a boot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A file on our TFTP server.
    Tftp { file: &'static str, firmware: Firmware },
    /// A program for firmware that boots by HTTP.
    Http { url: String },
    /// The script for iPXE. It is never given a file: that would load iPXE again, for ever.
    Script { url: String },
    /// Where our agent gets the ticket that it may have come without.
    Ticket { url: String },
}

/// Why a machine can't be booted from here. It gets no offer: another server may know better, and its own disk may start
/// sooner than a boot that can't work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbootable {
    /// `boot_dir` has no boot loader for it.
    NoLoader(Firmware),
    /// It runs iPXE, but there's no kernel for its processor.
    NoKernel(Firmware),
    /// BIOS doesn't boot by HTTP; if it says so, it isn't what it says.
    HttpOnBios,
}

impl fmt::Display for Unbootable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLoader(firmware) => {
                let name = firmware.name();
                match LOADERS.iter().find(|(kind, _)| kind == firmware) {
                    Some((_, [best, _])) => write!(f, "boot_dir has no boot loader for {name} firmware ({best})"),
                    None => write!(f, "nobody knows a boot loader for firmware of {name}"),
                }
            }
            Self::NoKernel(firmware) => write!(f, "there is no kernel for iPXE on {} to load", firmware.name()),
            Self::HttpOnBios => f.write_str("it says that it boots by HTTP and has a BIOS, which can't be"),
        }
    }
}

/// `None` for clients that don't boot from the network.
pub fn next(loader: Loader, site: &Site) -> Result<Option<Next>, Unbootable> {
    let file = |firmware| site.loaders.get(&firmware).copied().ok_or(Unbootable::NoLoader(firmware));
    Ok(Some(match loader {
        Loader::None => return Ok(None),
        Loader::Pxe(firmware) => Next::Tftp { file: file(firmware)?, firmware },
        Loader::UefiHttp(Firmware::Bios) => return Err(Unbootable::HttpOnBios),
        Loader::UefiHttp(Firmware::UefiX64) if site.uki => Next::Http { url: format!("{}{BOOT_UKI}", site.url) },
        Loader::UefiHttp(firmware) => Next::Http { url: format!("{}/boot/{}", site.url, file(firmware)?) },
        Loader::Ipxe(Firmware::Bios | Firmware::UefiX64) => Next::Script { url: script_url(&site.url) },
        Loader::Ipxe(firmware) => return Err(Unbootable::NoKernel(firmware)),
        Loader::Agent => Next::Ticket { url: format!("{}{BOOT_TICKET}", site.url) },
    }))
}

/// iPXE fills in `netX`, the card that it booted from, and the SMBIOS UUID.
pub fn script_url(boot_url: &str) -> String {
    format!("{boot_url}{}?mac=${{netX/mac:hexhyp}}&uuid=${{uuid}}", drophammer_protocol::api::BOOT_SCRIPT)
}

/// Whose answer it is that the next step is written into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    /// Beside a server that gives out addresses.
    Proxy,
}

/// Writes the next step into an answer.
pub fn describe(next: &Next, role: Role, request: &Request, site: &Site, answer: &mut Message) {
    match next {
        Next::Tftp { file, firmware } => {
            // Old ROMs read the fixed fields, others the options: say it in both.
            answer.set_siaddr(site.address).set_fname_str(file);
            let options = answer.opts_mut();
            options.insert(DhcpOption::TFTPServerName(site.address.to_string().into_bytes()));
            options.insert(DhcpOption::BootfileName(file.as_bytes().to_vec()));
            let bios = *firmware == Firmware::Bios;
            // PXE 2.1 §2.2.2: without this class an offer without an address is for nobody. With an address, EDK2 takes it
            // for one that wants a boot server asked first, and without it simply fetches the file.
            if bios || role == Role::Proxy {
                options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
            }
            if bios {
                // PXE 2.1 §2.2.3: 6 is PXE_DISCOVERY_CONTROL, bit 3 "fetch the boot file without asking any boot
                // server".
                options.insert(DhcpOption::VendorExtensions(vec![6, 1, 8, 255]));
            }
        }
        Next::Http { url } => {
            let options = answer.opts_mut();
            // UEFI 2.10 §24.7.2: an offer without this class isn't one for HTTP boot.
            options.insert(DhcpOption::ClassIdentifier(b"HTTPClient".to_vec()));
            options.insert(DhcpOption::BootfileName(url.as_bytes().to_vec()));
        }
        Next::Ticket { url } => {
            answer.opts_mut().insert(DhcpOption::BootfileName(url.as_bytes().to_vec()));
        }
        Next::Script { url } => {
            let options = answer.opts_mut();
            options.insert(DhcpOption::BootfileName(url.as_bytes().to_vec()));
            match role {
                // Suboption 176 is "no-pxedhcp": don't wait for a ProxyDHCP server, there is none.
                Role::Server => {
                    options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::Unknown(175), vec![176, 1, 1])))
                }
                Role::Proxy => options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec())),
            };
            if role == Role::Proxy {
                // iPXE takes a boot file from a proxy only with a server beside it, even if that is in the URL.
                answer.set_siaddr(site.address);
            }
        }
    }
    if let Some(data) = &request.machine_option {
        answer.opts_mut().insert(DhcpOption::ClientMachineIdentifier(data.clone()));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A server with everything but ARM32's loader.
    pub(crate) fn site() -> Site {
        let without = |(kind, _): &(Firmware, _)| *kind != Firmware::UefiArm32;
        let loaders = LOADERS.into_iter().filter(without).map(|(kind, [best, _])| (kind, best)).collect();
        Site::new(Ipv4Addr::new(10, 77, 0, 1), 80, loaders, false)
    }

    #[test]
    fn every_loader_has_its_next_step() {
        use Firmware::{Bios, Other, UefiArm32, UefiArm64, UefiIa32, UefiX64};
        use Loader::{Agent, Ipxe, Pxe, UefiHttp};
        let script = "http://10.77.0.1/boot/script.ipxe?mac=${netX/mac:hexhyp}&uuid=${uuid}";
        let script = Ok(Some(Next::Script { url: script.into() }));
        let tftp = |file, firmware| Ok(Some(Next::Tftp { file, firmware }));
        let http = |file| Ok(Some(Next::Http { url: format!("http://10.77.0.1/boot/{file}") }));
        for (loader, want) in [
            (Loader::None, Ok(None)),
            (Pxe(Bios), tftp("undionly.kpxe", Bios)),
            (Pxe(UefiIa32), tftp("snponly-ia32.efi", UefiIa32)),
            (Pxe(UefiX64), tftp("snponly.efi", UefiX64)),
            (Pxe(UefiArm32), Err(Unbootable::NoLoader(UefiArm32))),
            (Pxe(UefiArm64), tftp("snponly-arm64.efi", UefiArm64)),
            (Pxe(Other(27)), Err(Unbootable::NoLoader(Other(27)))),
            (UefiHttp(Bios), Err(Unbootable::HttpOnBios)),
            (UefiHttp(UefiIa32), http("snponly-ia32.efi")),
            (UefiHttp(UefiX64), http("snponly.efi")),
            (UefiHttp(UefiArm32), Err(Unbootable::NoLoader(UefiArm32))),
            (UefiHttp(UefiArm64), http("snponly-arm64.efi")),
            (Ipxe(Bios), script.clone()),
            (Ipxe(UefiX64), script),
            (Ipxe(UefiArm64), Err(Unbootable::NoKernel(UefiArm64))),
            (Agent, Ok(Some(Next::Ticket { url: "http://10.77.0.1/boot/ticket".into() }))),
        ] {
            let uki = Site { uki: true, ..site() };
            assert_eq!(next(loader, &site()), want, "{loader:?}");
            let want = if loader == UefiHttp(UefiX64) { http("agent.efi") } else { want };
            assert_eq!(next(loader, &uki), want, "{loader:?}, with a unified kernel image");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (why, want) in [
            (
                Unbootable::NoLoader(Firmware::UefiArm64),
                "boot_dir has no boot loader for UEFI ARM64 firmware (snponly-arm64.efi)",
            ),
            (Unbootable::NoLoader(Firmware::Other(27)), "nobody knows a boot loader for firmware of architecture 27"),
        ] {
            assert_eq!(why.to_string(), want);
        }
    }
}
