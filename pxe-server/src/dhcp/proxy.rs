//! ProxyDHCP: saying where to boot from, beside a server that gives out addresses (PXE 2.1 §2.2, UEFI 2.10 §24.7).
//!
//! Firmware broadcasts one DISCOVER and collects both servers' offers. BIOS and HTTP boot go by the offer; UEFI's PXE asks
//! again at port 4011 once it has its address.

use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;

use super::boot::{self, Role, Site};
use super::decide::{Answer, Decision, Destination, Verdict, blank, destination, silent, unanswered};
use super::request::{Kind, Request};
use crate::config::Network;

/// Which port a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 67, where everybody asks.
    Dhcp,
    /// 4011, where those ask that were sent there.
    ProxyDhcp,
}

/// Nothing here ever gives out an address or refuses one.
pub fn decide(request: &Request, port: Port, network: &Network, site: &Site) -> Decision {
    let kind = match (port, request.kind) {
        (Port::Dhcp, Kind::Discover) => MessageType::Offer,
        (Port::ProxyDhcp, Kind::Discover | Kind::Request | Kind::Inform) => MessageType::Ack,
        _ => return silent("it is for the server that gives out addresses"),
    };
    let next = match boot::next(request.loader, site) {
        Ok(Some(next)) => next,
        Ok(None) => return silent("it doesn't boot from the network"),
        Err(why) => return unanswered(Verdict::Unbootable(why)),
    };
    let mut message = blank(request, network, kind);
    if port == Port::ProxyDhcp {
        message.set_ciaddr(request.ciaddr);
    }
    boot::describe(&next, Role::Proxy, request, site, &mut message);
    let to = match port {
        Port::Dhcp => destination(request, Ipv4Addr::UNSPECIFIED),
        Port::ProxyDhcp => Destination::Sender,
    };
    Decision { answer: Some(Answer { message, to }), ..unanswered(Verdict::Guide) }
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, OptionCode};

    use super::super::boot::Unbootable;
    use super::super::boot::tests::site;
    use super::super::request::Firmware;
    use super::super::request::tests::packet;
    use super::*;
    use crate::config::Config;

    fn network() -> Network {
        let text = r#"
            [[network]]
            interface = "eth0"
            address = "10.77.0.1"
            subnet = "10.77.0.0/24"
            dhcp = "proxy"
        "#;
        let config: Config = toml::from_str(text).expect("TOML");
        config.check().expect("makes sense").networks.remove(0)
    }

    fn ask(kind: u8, options: &[(u8, &[u8])]) -> Request {
        let kind = [kind];
        let options = [&[(53, &kind[..])], options].concat();
        Request::parse(&packet([0x52, 0x54, 0, 0x77, 0, 1], &options)).expect("a request")
    }

    #[test]
    fn only_booting_clients_are_guided_and_nobody_gets_an_address() {
        const X64: [(u8, &[u8]); 2] = [(60, b"PXEClient"), (93, &[0, 7])];
        let arm: [(u8, &[u8]); 2] = [(60, b"PXEClient"), (93, &[0, 10])];
        let elsewhere = Verdict::Silent("it is for the server that gives out addresses");
        for (name, port, request, want) in [
            ("firmware", Port::Dhcp, ask(1, &X64), Verdict::Guide),
            ("firmware asks again", Port::ProxyDhcp, ask(3, &X64), Verdict::Guide),
            ("firmware discovers boot servers", Port::ProxyDhcp, ask(1, &X64), Verdict::Guide),
            ("an operating system", Port::Dhcp, ask(1, &[]), Verdict::Silent("it doesn't boot from the network")),
            ("firmware takes an address", Port::Dhcp, ask(3, &X64), elsewhere),
            ("a release", Port::ProxyDhcp, ask(7, &X64), elsewhere),
            (
                "firmware without a boot file",
                Port::Dhcp,
                ask(1, &arm),
                Verdict::Unbootable(Unbootable::NoLoader(Firmware::UefiArm32)),
            ),
        ] {
            let decision = decide(&request, port, &network(), &site());
            assert_eq!(decision.verdict, want, "{name}");
            assert_eq!((decision.change, decision.probe), (None, false), "{name}");
            if let Some(Answer { message, .. }) = decision.answer {
                assert_eq!(message.yiaddr(), Ipv4Addr::UNSPECIFIED, "{name}");
                assert_eq!(message.opts().get(OptionCode::AddressLeaseTime), None, "{name}");
            }
        }
    }

    #[test]
    fn each_kind_of_firmware_hears_what_it_understands() {
        let ipxe: (u8, &[u8]) = (77, b"iPXE");
        for (name, options, class, file, control) in [
            ("BIOS", vec![(60, &b"PXEClient"[..]), (93, &[0, 0])], "PXEClient", "undionly.kpxe", true),
            ("UEFI", vec![(60, &b"PXEClient"[..]), (93, &[0, 7])], "PXEClient", "snponly.efi", false),
            (
                "HTTP boot",
                vec![(60, &b"HTTPClient"[..]), (93, &[0, 16])],
                "HTTPClient",
                "http://10.77.0.1/boot/snponly.efi",
                false,
            ),
            (
                "iPXE",
                vec![(60, &b"PXEClient"[..]), (93, &[0, 0]), ipxe],
                "PXEClient",
                "http://10.77.0.1/boot/script.ipxe?mac=${netX/mac:hexhyp}&uuid=${uuid}",
                false,
            ),
        ] {
            let answer = decide(&ask(1, &options), Port::Dhcp, &network(), &site()).answer.expect(name);
            assert_eq!(answer.to, Destination::Broadcast, "{name}");
            let options = answer.message.opts();
            let text = |code| match options.get(code) {
                Some(DhcpOption::ClassIdentifier(data) | DhcpOption::BootfileName(data)) => {
                    String::from_utf8_lossy(data).into_owned()
                }
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(text(OptionCode::ClassIdentifier), class, "{name}");
            assert_eq!(text(OptionCode::BootfileName), file, "{name}");
            assert_eq!(options.get(OptionCode::VendorExtensions).is_some(), control, "{name}");
            assert_eq!(options.get(OptionCode::Unknown(175)), None, "{name}: iPXE has a proxy to listen to");
        }
    }
}
