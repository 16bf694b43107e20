//! What a boot loader is sent on to: the part of an answer that isn't about addresses.

use std::net::Ipv4Addr;
use std::path::Path;

use dhcproto::v4::{DhcpOption, Message, OptionCode, UnknownOption};
use drophammer_protocol::api::{BOOT_TICKET, BOOT_UKI};

use super::request::{Firmware, Loader, Request};

/// iPXE as a file that a BIOS PXE ROM starts; it keeps using the ROM's network driver.
pub const BIOS_FILE: &str = "undionly.kpxe";
/// iPXE as a file that UEFI firmware starts, best first. `snponly.efi` uses the firmware's own driver for the card that the
/// firmware booted from. `ipxe.efi` brings drivers for all cards, but Debian 12's hangs instead of returning to the firmware,
/// seen with OVMF: a machine whose script says "boot your own disk" stays there.
pub const UEFI_FILES: [&str; 2] = ["snponly.efi", "ipxe.efi"];

/// What this server has for boot loaders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// `http://address:port`
    pub url: String,
    /// One of [`UEFI_FILES`].
    pub uefi_file: &'static str,
    /// For UEFI firmware that boots by HTTP.
    pub http_file: HttpFile,
}

/// What UEFI firmware that boots by HTTP is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpFile {
    /// The agent itself, with nothing in between.
    Uki,
    /// iPXE, as by TFTP.
    Ipxe,
}

impl HttpFile {
    /// The best that the boot directory has.
    pub fn in_dir(boot_dir: &Path) -> Self {
        if boot_dir.join(drophammer_initramfs::UKI).exists() { Self::Uki } else { Self::Ipxe }
    }
}

/// Where the next step of a boot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A file on our TFTP server.
    Tftp { file: &'static str, discovery_control: bool },
    /// A program for firmware that boots by HTTP.
    Http { url: String },
    /// The script for iPXE. It is never given a file: that would load iPXE again, for ever.
    Script { url: String },
    /// Where our agent gets the ticket that it may have come without.
    Ticket { url: String },
}

/// `None` for clients that don't boot from the network and for firmware that there's no boot file for.
pub fn next(loader: Loader, site: &Site) -> Option<Next> {
    match loader {
        Loader::None => None,
        Loader::Pxe(Firmware::Bios) => Some(Next::Tftp { file: BIOS_FILE, discovery_control: true }),
        // EDK2 takes an offer with PXE vendor options for one that wants a boot server asked first; without them it
        // simply fetches the file.
        Loader::Pxe(Firmware::UefiX64) => Some(Next::Tftp { file: site.uefi_file, discovery_control: false }),
        Loader::UefiHttp(Firmware::UefiX64) => Some(Next::Http {
            url: match site.http_file {
                HttpFile::Uki => format!("{}{BOOT_UKI}", site.url),
                HttpFile::Ipxe => format!("{}/boot/{}", site.url, site.uefi_file),
            },
        }),
        // BIOS doesn't boot by HTTP; if it says so, it isn't what it says.
        Loader::UefiHttp(Firmware::Bios) | Loader::Pxe(Firmware::Other(_)) | Loader::UefiHttp(Firmware::Other(_)) => {
            None
        }
        Loader::Ipxe(Firmware::Bios | Firmware::UefiX64) => Some(Next::Script { url: script_url(&site.url) }),
        Loader::Ipxe(Firmware::Other(_)) => None,
        Loader::Agent => Some(Next::Ticket { url: format!("{}{BOOT_TICKET}", site.url) }),
    }
}

/// iPXE fills in `netX`, the card that it booted from, and the SMBIOS UUID.
pub fn script_url(boot_url: &str) -> String {
    format!("{boot_url}{}?mac=${{netX/mac:hexhyp}}&uuid=${{uuid}}", drophammer_protocol::api::BOOT_SCRIPT)
}

/// Writes the next step into an answer.
pub fn describe(next: &Next, request: &Request, server: Ipv4Addr, answer: &mut Message) {
    match next {
        Next::Tftp { file, discovery_control } => {
            // Old ROMs read the fixed fields, others the options: say it in both.
            answer.set_siaddr(server).set_fname_str(file);
            let options = answer.opts_mut();
            options.insert(DhcpOption::TFTPServerName(server.to_string().into_bytes()));
            options.insert(DhcpOption::BootfileName(file.as_bytes().to_vec()));
            if *discovery_control {
                // PXE 2.1 §2.2.3: 6 is PXE_DISCOVERY_CONTROL, bit 3 "fetch the boot file without asking any boot
                // server".
                options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
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
            // Suboption 176 is "no-pxedhcp": don't wait for a ProxyDHCP server, there is none.
            options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::Unknown(175), vec![176, 1, 1])));
        }
    }
    if let Some(data) = &request.machine_option {
        answer.opts_mut().insert(DhcpOption::ClientMachineIdentifier(data.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loader_has_its_next_step() {
        let ipxe = Site { url: "http://10.77.0.1".into(), uefi_file: "snponly.efi", http_file: HttpFile::Ipxe };
        let uki = Site { http_file: HttpFile::Uki, ..ipxe.clone() };
        let script =
            Some(Next::Script { url: "http://10.77.0.1/boot/script.ipxe?mac=${netX/mac:hexhyp}&uuid=${uuid}".into() });
        for (loader, want) in [
            (Loader::None, None),
            (Loader::Pxe(Firmware::Bios), Some(Next::Tftp { file: "undionly.kpxe", discovery_control: true })),
            (Loader::Pxe(Firmware::UefiX64), Some(Next::Tftp { file: "snponly.efi", discovery_control: false })),
            (Loader::Pxe(Firmware::Other(11)), None),
            (Loader::UefiHttp(Firmware::UefiX64), Some(Next::Http { url: "http://10.77.0.1/boot/snponly.efi".into() })),
            (Loader::UefiHttp(Firmware::Other(19)), None),
            (Loader::Ipxe(Firmware::Bios), script.clone()),
            (Loader::Ipxe(Firmware::UefiX64), script),
            (Loader::Agent, Some(Next::Ticket { url: "http://10.77.0.1/boot/ticket".into() })),
        ] {
            assert_eq!(next(loader, &ipxe), want, "{loader:?}");
            let by_http = matches!(want, Some(Next::Http { .. }));
            let want = if by_http { Some(Next::Http { url: "http://10.77.0.1/boot/agent.efi".into() }) } else { want };
            assert_eq!(next(loader, &uki), want, "{loader:?}, with a unified kernel image");
        }
    }
}
