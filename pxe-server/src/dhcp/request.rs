//! What a client asks, taken from the bytes of its packet once.

use std::net::Ipv4Addr;

use dhcproto::v4::{HType, MessageType, Opcode, OptionCode, borrowed};
use drophammer_protocol::api::AGENT_VENDOR_CLASS;
use drophammer_protocol::id::Mac;
use uuid::{Uuid, Variant};

use super::relay::RelayInfo;

/// A request that this server could answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub kind: Kind,
    pub xid: u32,
    pub secs: u16,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub mac: Mac,
    /// Option 50.
    pub wanted: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 51.
    pub lease_seconds: Option<u32>,
    /// Option 61.
    pub client_id: Option<Vec<u8>>,
    /// Option 55: what it wants to know; `None` if it doesn't say.
    pub asks_for: Option<Vec<u8>>,
    /// Option 118: the subnet that it wants an address in (RFC 3011).
    pub subnet: Option<Ipv4Addr>,
    pub loader: Loader,
    /// Option 97 as it came: PXE clients want to see it again (RFC 4578 §2.3).
    pub machine_option: Option<Vec<u8>>,
    pub relay: Option<RelayInfo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

/// Who is asking, as far as booting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// An operating system: it has booted already.
    None,
    /// Firmware that fetches a file by TFTP.
    Pxe(Firmware),
    /// Firmware that fetches a file by HTTP (UEFI 2.5 and later).
    UefiHttp(Firmware),
    /// iPXE, from a network card's ROM or sent by us.
    Ipxe(Firmware),
    /// Our agent, which has booted and may have come without a ticket.
    Agent,
}

/// DHCP option 93 (RFC 4578 §2.1 and IANA's list), reduced to what needs a boot file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Firmware {
    Bios,
    UefiIa32,
    UefiX64,
    UefiArm32,
    UefiArm64,
    /// Never seen by any of us; the number is for the operator.
    Other(u16),
}

impl Firmware {
    pub fn from_option_93(arch: u16) -> Self {
        match arch {
            0 => Self::Bios,
            6 | 15 => Self::UefiIa32,
            // 9 is "EFI BC": firmware in the field sends it for plain x64. From 15 on: those that boot by HTTP.
            7 | 9 | 16 => Self::UefiX64,
            10 | 18 => Self::UefiArm32,
            11 | 19 => Self::UefiArm64,
            other => Self::Other(other),
        }
    }

    pub fn name(self) -> String {
        match self {
            Self::Bios => "BIOS".into(),
            Self::UefiIa32 => "UEFI IA32".into(),
            Self::UefiX64 => "UEFI x64".into(),
            Self::UefiArm32 => "UEFI ARM32".into(),
            Self::UefiArm64 => "UEFI ARM64".into(),
            Self::Other(arch) => format!("architecture {arch}"),
        }
    }
}

impl Request {
    /// `None` is for everything that isn't a DHCP client's request from an Ethernet card.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let message = borrowed::Message::new(packet).ok()?;
        if message.opcode() != Opcode::BootRequest || message.htype() != HType::Eth || message.hlen() != 6 {
            return None;
        }
        let options = Options::read(&message);
        let loader = options.loader();
        // A group address is nobody's.
        let mac = Mac(message.chaddr().try_into().ok()?);
        if mac.0.first().is_some_and(|byte| byte & 1 == 1) || mac.0 == [0; 6] {
            return None;
        }
        let kind = match options.kind? {
            MessageType::Discover => Kind::Discover,
            MessageType::Request => Kind::Request,
            MessageType::Decline => Kind::Decline,
            MessageType::Release => Kind::Release,
            MessageType::Inform => Kind::Inform,
            _ => return None,
        };
        Some(Self {
            kind,
            xid: message.xid(),
            secs: message.secs(),
            flags: message.flags().into(),
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            mac,
            wanted: options.wanted.filter(|a| !a.is_unspecified()),
            server: options.server,
            lease_seconds: options.lease_seconds,
            client_id: options.client_id,
            asks_for: options.asks_for,
            subnet: options.subnet,
            loader,
            machine_option: options.machine,
            relay: options.relay,
        })
    }

    pub fn wants_broadcast(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    /// Whether the client wants to be told this option; one that doesn't say wants everything.
    pub fn wants(&self, option: OptionCode) -> bool {
        self.asks_for.as_ref().is_none_or(|codes| codes.contains(&option.into()))
    }

    /// The SMBIOS UUID that firmware sent, as Linux shows it in `product_uuid`. Option 97 is a type byte (0) and the 16
    /// bytes as SMBIOS has them, the first three fields little-endian; some firmware sends them in the order of the text.
    pub fn uuid(&self) -> Option<Uuid> {
        let [smbios, as_text] = self.uuids()?;
        // The version and variant of RFC 9562 are in places that tell the orders apart, when the maker kept to them.
        let sane = |uuid: Uuid| (1..=8).contains(&uuid.get_version_num()) && uuid.get_variant() == Variant::RFC4122;
        Some(if sane(as_text) && !sane(smbios) { as_text } else { smbios })
    }

    /// The UUID as it would be in either byte order: SMBIOS's, and the text's.
    pub fn uuids(&self) -> Option<[Uuid; 2]> {
        let [0, bytes @ ..] = self.machine_option.as_deref()? else { return None };
        Some([Uuid::from_slice_le(bytes).ok()?, Uuid::from_slice(bytes).ok()?])
    }
}

#[derive(Default)]
struct Options {
    kind: Option<MessageType>,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    lease_seconds: Option<u32>,
    client_id: Option<Vec<u8>>,
    asks_for: Option<Vec<u8>>,
    subnet: Option<Ipv4Addr>,
    vendor_class: Vec<u8>,
    arch: Option<u16>,
    ipxe: bool,
    machine: Option<Vec<u8>>,
    relay: Option<RelayInfo>,
}

impl Options {
    fn read(message: &borrowed::Message<'_>) -> Self {
        let mut options = Self::default();
        for option in message.opts() {
            let data = option.data();
            let address = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            match option.code() {
                OptionCode::MessageType => {
                    options.kind = data.first().filter(|_| data.len() == 1).map(|&n| MessageType::from(n));
                }
                OptionCode::RequestedIpAddress => options.wanted = address(),
                OptionCode::ServerIdentifier => options.server = address(),
                OptionCode::AddressLeaseTime => {
                    options.lease_seconds = <[u8; 4]>::try_from(data).ok().map(u32::from_be_bytes);
                }
                OptionCode::ClientIdentifier => options.client_id = Some(data.to_vec()),
                OptionCode::ParameterRequestList => options.asks_for = Some(data.to_vec()),
                OptionCode::SubnetSelection => options.subnet = address(),
                OptionCode::ClassIdentifier => options.vendor_class = data.to_vec(),
                // A list (RFC 4578 §2.1); the first is what the client is.
                OptionCode::ClientSystemArchitecture => {
                    options.arch = data.first_chunk().copied().map(u16::from_be_bytes);
                }
                // iPXE sends its bare name, not RFC 3004's list of counted strings; newer firmware may count.
                OptionCode::UserClass => options.ipxe |= data == b"iPXE" || data == b"\x04iPXE",
                // iPXE's own encapsulated options (features, bus id).
                OptionCode::Unknown(175) => options.ipxe = true,
                OptionCode::ClientMachineIdentifier => options.machine = Some(data.to_vec()),
                // More than one option's worth couldn't be echoed as one.
                OptionCode::RelayAgentInformation if data.len() <= 255 => options.relay = Some(RelayInfo::read(data)),
                _ => {}
            }
        }
        options.machine = options.machine.filter(|data| data.len() == 17);
        options
    }

    fn loader(&self) -> Loader {
        let http = self.vendor_class.starts_with(b"HTTPClient");
        let pxe = self.vendor_class.starts_with(b"PXEClient");
        // PXE 2.1 has option 93 in every request; a client without it is a BIOS of before.
        let firmware = Firmware::from_option_93(self.arch.unwrap_or(0));
        match () {
            () if self.ipxe => Loader::Ipxe(firmware),
            () if http => Loader::UefiHttp(firmware),
            () if pxe => Loader::Pxe(firmware),
            () if self.vendor_class == AGENT_VENDOR_CLASS.as_bytes() => Loader::Agent,
            () => Loader::None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet as a client would send it: fixed fields, then the given options.
    pub(crate) fn packet(mac: [u8; 6], options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
        bytes[28..34].copy_from_slice(&mac);
        bytes.extend([99, 130, 83, 99]);
        for (code, data) in options {
            bytes.extend([*code, u8::try_from(data.len()).expect("short")]);
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        bytes
    }

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];

    #[test]
    fn loaders_are_told_apart() {
        let discover: (u8, &[u8]) = (53, &[1]);
        let pxe: (u8, &[u8]) = (60, b"PXEClient:Arch:00007:UNDI:003000");
        for (name, options, want) in [
            ("an operating system", vec![discover, (60, b"udhcp 1.35.0")], Loader::None),
            ("our agent", vec![discover, (60, b"drophammer-agent")], Loader::Agent),
            (
                "BIOS",
                vec![discover, (60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])],
                Loader::Pxe(Firmware::Bios),
            ),
            ("BIOS that says no architecture", vec![discover, (60, b"PXEClient")], Loader::Pxe(Firmware::Bios)),
            ("x64", vec![discover, pxe, (93, &[0, 7])], Loader::Pxe(Firmware::UefiX64)),
            ("EFI BC is x64", vec![discover, pxe, (93, &[0, 9])], Loader::Pxe(Firmware::UefiX64)),
            ("a list of architectures", vec![discover, pxe, (93, &[0, 7, 0, 6])], Loader::Pxe(Firmware::UefiX64)),
            ("IA32", vec![discover, pxe, (93, &[0, 6])], Loader::Pxe(Firmware::UefiIa32)),
            ("ARM32", vec![discover, pxe, (93, &[0, 10])], Loader::Pxe(Firmware::UefiArm32)),
            ("ARM64", vec![discover, pxe, (93, &[0, 11])], Loader::Pxe(Firmware::UefiArm64)),
            ("RISC-V", vec![discover, pxe, (93, &[0, 27])], Loader::Pxe(Firmware::Other(27))),
            (
                "HTTP boot, IA32",
                vec![discover, (60, b"HTTPClient"), (93, &[0, 15])],
                Loader::UefiHttp(Firmware::UefiIa32),
            ),
            (
                "HTTP boot, ARM32",
                vec![discover, (60, b"HTTPClient"), (93, &[0, 18])],
                Loader::UefiHttp(Firmware::UefiArm32),
            ),
            (
                "HTTP boot, ARM64",
                vec![discover, (60, b"HTTPClient"), (93, &[0, 19])],
                Loader::UefiHttp(Firmware::UefiArm64),
            ),
            (
                "HTTP boot",
                vec![discover, (60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, &[0, 16])],
                Loader::UefiHttp(Firmware::UefiX64),
            ),
            ("iPXE", vec![discover, pxe, (93, &[0, 7]), (77, b"iPXE")], Loader::Ipxe(Firmware::UefiX64)),
            (
                "iPXE with counted class",
                vec![discover, pxe, (93, &[0, 0]), (77, b"\x04iPXE")],
                Loader::Ipxe(Firmware::Bios),
            ),
            ("iPXE by its options", vec![discover, (175, &[19, 1, 1]), (93, &[0, 0])], Loader::Ipxe(Firmware::Bios)),
        ] {
            let request = Request::parse(&packet(MAC, &options)).expect(name);
            assert_eq!(request.loader, want, "{name}");
        }
    }

    #[test]
    fn what_is_no_request_is_not_taken_for_one() {
        let good = packet(MAC, &[(53, &[1])]);
        let with = |at: usize, byte| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert!(Request::parse(&good).is_some());
        for (name, bytes) in [
            ("an answer", with(0, 2)),
            ("not Ethernet", with(1, 32)),
            ("a long address", with(2, 16)),
            ("more address than fits", with(2, 255)),
            ("no cookie", with(236, 0)),
            ("a group address", with(28, 1)),
            ("BOOTP", packet(MAC, &[])),
            ("an offer", packet(MAC, &[(53, &[2])])),
            ("cut short", good[..239].to_vec()),
        ] {
            assert_eq!(Request::parse(&bytes), None, "{name}");
        }
    }

    #[test]
    fn uuid_is_the_one_that_linux_shows() {
        let text = "12345678-9abc-4ef0-9234-56789abcdef0";
        let uuid: Uuid = text.parse().expect("a UUID");
        let option = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
        let anything: Vec<u8> = (1..=16).collect();
        for (name, data, want) in [
            ("SMBIOS's order", option(0, &uuid.to_bytes_le()), Some(text)),
            ("the text's order", option(0, uuid.as_bytes()), Some(text)),
            ("of no version", option(0, &anything), Some("04030201-0605-0807-090a-0b0c0d0e0f10")),
            ("short", option(0, &uuid.as_bytes()[1..]), None),
            ("of another type", option(1, uuid.as_bytes()), None),
        ] {
            let request = Request::parse(&packet(MAC, &[(53, &[1]), (97, &data)])).expect(name);
            assert_eq!(request.uuid().map(|u| u.to_string()).as_deref(), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn any_options_no_panic(options in prop::collection::vec(any::<u8>(), 0..400), hlen: u8) {
            let mut bytes = packet(MAC, &[]);
            bytes.pop();
            bytes[2] = hlen;
            bytes.extend(options);
            let _ = Request::parse(&bytes).map(|r| r.uuid());
        }
    }
}
