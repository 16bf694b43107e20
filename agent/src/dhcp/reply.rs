//! What a server answers, taken from the bytes of its packet once.

use std::net::Ipv4Addr;

use dhcproto::v4::{HType, MessageType, Opcode, OptionCode, borrowed};
use drophammer_protocol::id::Mac;

use super::Route;

/// An answer to some Ethernet client. Options that don't have the length they must have count as not sent.
///
/// dhcproto's owned decoder isn't used: it asserts the length of options that nobody here asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) kind: MessageType,
    pub(super) xid: u32,
    pub(super) mac: Mac,
    /// Unspecified in an answer that gives none.
    pub(super) address: Ipv4Addr,
    pub(super) options: Options,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Option 54.
    pub(super) server: Option<Ipv4Addr>,
    pub(super) mask: Option<Ipv4Addr>,
    pub(super) routers: Vec<Ipv4Addr>,
    /// Option 121; `Some` even if it holds no route, since it replaces `routers`.
    pub(super) routes: Option<Vec<Route>>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) domain: Option<String>,
    pub(super) mtu: Option<u16>,
    pub(super) lease_seconds: Option<u32>,
    pub(super) renew_seconds: Option<u32>,
    pub(super) rebind_seconds: Option<u32>,
    /// Option 67.
    pub(super) boot_file: Option<String>,
}

impl Reply {
    /// `None` is for everything that isn't a DHCP server's answer to an Ethernet card.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let message = borrowed::Message::new(packet).ok()?;
        // The length comes first: `chaddr` slices by it without a look at what there is.
        if message.hlen() != 6 || message.htype() != HType::Eth || message.opcode() != Opcode::BootReply {
            return None;
        }
        let mac = Mac(message.chaddr().try_into().ok()?);
        let mut kind = None;
        let mut options = Options::default();
        for option in message.opts() {
            let data = option.data();
            match option.code() {
                OptionCode::MessageType => kind = number(data).map(|[n]| MessageType::from(n)),
                OptionCode::ServerIdentifier => options.server = number(data).map(Ipv4Addr::from),
                OptionCode::SubnetMask => options.mask = number(data).map(Ipv4Addr::from),
                OptionCode::Router => options.routers = addresses(data),
                OptionCode::ClasslessStaticRoute => options.routes = routes(data),
                OptionCode::DomainNameServer => options.dns = addresses(data),
                OptionCode::DomainName => options.domain = domain(data),
                OptionCode::InterfaceMtu => options.mtu = number(data).map(u16::from_be_bytes),
                OptionCode::AddressLeaseTime => options.lease_seconds = number(data).map(u32::from_be_bytes),
                OptionCode::Renewal => options.renew_seconds = number(data).map(u32::from_be_bytes),
                OptionCode::BootfileName => options.boot_file = boot_file(data),
                OptionCode::Rebinding => options.rebind_seconds = number(data).map(u32::from_be_bytes),
                _ => {}
            }
        }
        Some(Self { kind: kind?, xid: message.xid(), mac, address: message.yiaddr(), options })
    }
}

/// Exactly `N` bytes.
fn number<const N: usize>(data: &[u8]) -> Option<[u8; N]> {
    data.try_into().ok()
}

fn addresses(data: &[u8]) -> Vec<Ipv4Addr> {
    let (addresses, rest) = data.as_chunks::<4>();
    if rest.is_empty() { addresses.iter().copied().map(Ipv4Addr::from).collect() } else { vec![] }
}

/// RFC 3442: prefix length, as many bytes of the destination as that needs, gateway; again and again.
fn routes(mut data: &[u8]) -> Option<Vec<Route>> {
    let mut routes = vec![];
    while let Some((&prefix, rest)) = data.split_first() {
        if prefix > 32 {
            return None;
        }
        let (significant, rest) = rest.split_at_checked(usize::from(prefix).div_ceil(8))?;
        let (gateway, rest) = rest.split_first_chunk::<4>()?;
        let mut destination = [0; 4];
        for (to, from) in destination.iter_mut().zip(significant) {
            *to = *from;
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        routes.push(Route {
            // RFC 3442: bits outside the mask are to be cleared.
            destination: Ipv4Addr::from_bits(u32::from_be_bytes(destination) & mask),
            mask: Ipv4Addr::from_bits(mask),
            gateway: Ipv4Addr::from(*gateway),
        });
        data = rest;
    }
    Some(routes)
}

/// Some servers put a NUL behind it.
fn boot_file(data: &[u8]) -> Option<String> {
    let name = data.strip_suffix(&[0]).unwrap_or(data);
    (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then(|| String::from_utf8_lossy(name).into_owned())
}

/// It ends up in a configuration file of our own. RFC 2132 §2: a NUL behind a text is to be taken off.
fn domain(data: &[u8]) -> Option<String> {
    let name = data.strip_suffix(&[0]).unwrap_or(data);
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (!name.is_empty() && name.iter().all(plain)).then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..4].copy_from_slice(&[2, 1, 6, 0]);
        bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0x77, 0, 1]);
        bytes.extend([99, 130, 83, 99, 53, 1, 5]);
        bytes.extend_from_slice(options);
        bytes
    }

    fn read(options: &[u8]) -> Options {
        Reply::parse(&packet(options)).expect("an answer").options
    }

    #[test]
    fn options_of_a_wrong_length_count_as_not_sent() {
        for (name, options) in [
            ("mask of three bytes", &[1, 3, 255, 255, 255][..]),
            ("mask of five bytes", &[1, 5, 255, 255, 255, 0, 0]),
            ("routers, one and a half", &[3, 6, 10, 0, 0, 1, 10, 0]),
            ("MTU of a byte", &[26, 1, 9]),
            ("lease of two bytes", &[51, 2, 0, 60]),
            ("a prefix of 33", &[121, 5, 33, 10, 0, 0, 1]),
            ("a route without its gateway", &[121, 3, 8, 10, 1]),
            ("an option that goes on past the end", &[1, 200, 255]),
            ("a code without a length", &[1]),
            ("lengths that dhcproto asserts", &[152, 1, 0, 153, 0, 80, 1, 0, 94, 0, 81, 1, 0, 151, 0]),
        ] {
            assert_eq!(read(options), Options::default(), "{name}");
        }
    }

    #[test]
    fn domains_are_plain_names() {
        for (name, data, want) in [
            ("as it is", &b"lab.test"[..], Some("lab.test")),
            ("with the NUL behind it", b"lab.test\0", Some("lab.test")),
            ("a NUL in the middle", b"lab\0test", None),
            ("a line break", b"lab\nnameserver 6.6.6.6", None),
            ("a NUL alone", b"\0", None),
            ("nothing", b"", None),
        ] {
            assert_eq!(domain(data).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn boot_files_are_plain_names() {
        for (name, data, want) in [
            ("as it is", &b"http://10.0.0.1/boot/ticket"[..], Some("http://10.0.0.1/boot/ticket")),
            ("with a NUL behind it", b"a.efi\0", Some("a.efi")),
            ("a line break", b"a\nb", None),
            ("nothing", b"", None),
        ] {
            assert_eq!(boot_file(data).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn routes_are_read_as_rfc_3442_writes_them() {
        let route = |destination: [u8; 4], mask: [u8; 4]| Route {
            destination: destination.into(),
            mask: mask.into(),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
        };
        for (name, data, want) in [
            ("none", &[][..], vec![]),
            ("default", &[0, 10, 0, 0, 1], vec![route([0; 4], [0; 4])]),
            ("a host", &[32, 1, 2, 3, 4, 10, 0, 0, 1], vec![route([1, 2, 3, 4], [255; 4])]),
            ("bits outside the mask", &[9, 10, 255, 10, 0, 0, 1], vec![route([10, 128, 0, 0], [255, 128, 0, 0])]),
            (
                "two",
                &[8, 10, 10, 0, 0, 1, 16, 172, 16, 10, 0, 0, 1],
                vec![route([10, 0, 0, 0], [255, 0, 0, 0]), route([172, 16, 0, 0], [255, 255, 0, 0])],
            ),
        ] {
            assert_eq!(routes(data), Some(want), "{name}");
        }
    }

    #[test]
    fn what_is_no_answer_is_not_taken_for_one() {
        let good = packet(&[]);
        let with = |at: usize, byte| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert!(Reply::parse(&good).is_some());
        for (name, bytes) in [
            ("a request", with(0, 1)),
            ("not Ethernet", with(1, 32)),
            ("more address than fits", with(2, 255)),
            ("no cookie", with(236, 0)),
            ("no message type", good[..240].to_vec()),
            ("cut short", good[..239].to_vec()),
        ] {
            assert_eq!(Reply::parse(&bytes), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = Reply::parse(&bytes);
        }

        #[test]
        fn any_options_no_panic(options in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Reply::parse(&packet(&options));
        }

        /// Short options, so that every code gets its turn with every length. None but the message type costs the answer.
        #[test]
        fn every_option_of_any_length(code: u8, data in prop::collection::vec(any::<u8>(), 0..40)) {
            let length = u8::try_from(data.len()).expect("short");
            let reply = Reply::parse(&packet(&[&[code, length], &data[..]].concat()));
            prop_assert!(reply.is_some() || code == 53);
        }
    }
}
