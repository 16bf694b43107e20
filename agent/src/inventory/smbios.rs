//! What the board's maker wrote into SMBIOS. The tables are parsed by `smbios-lib`; here is which fields count and which
//! of the fillers that firmware is full of mean "nobody filled this in".

use drophammer_protocol::id::MachineId;
use drophammer_protocol::inventory::{Bmc, Dimm, System};
use smbioslib::{
    MemoryDeviceType, MemorySize, MemorySizeExtended, MemorySpeed, SMBiosBaseboardInformation, SMBiosData,
    SMBiosInformation, SMBiosIpmiDeviceInformation, SMBiosMemoryDevice, SMBiosString, SMBiosSystemChassisInformation,
    SMBiosSystemInformation, SystemUuidData,
};
use uuid::Uuid;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Smbios {
    pub(super) id: Option<MachineId>,
    pub(super) system: System,
    pub(super) vendor: Option<String>,
    pub(super) version: Option<String>,
    pub(super) date: Option<String>,
    pub(super) dimms: Vec<Dimm>,
    pub(super) bmc: Option<Bmc>,
}

/// Reads the structure table; `entry_point` tells its version. Any bytes give an answer, if only an empty one.
pub(super) fn parse(table: Vec<u8>, entry_point: &[u8]) -> Smbios {
    let data = SMBiosData::from_vec_and_version(table, None);
    let bios = data.first::<SMBiosInformation<'_>>();
    let system = data.first::<SMBiosSystemInformation<'_>>();
    let board = data.first::<SMBiosBaseboardInformation<'_>>();
    let chassis = data.first::<SMBiosSystemChassisInformation<'_>>();
    let field = |s: Option<SMBiosString>| s.and_then(said);
    Smbios {
        id: system.as_ref().and_then(SMBiosSystemInformation::uuid).and_then(|uuid| machine_id(&uuid, entry_point)),
        system: System {
            manufacturer: field(system.as_ref().map(SMBiosSystemInformation::manufacturer)),
            product: field(system.as_ref().map(SMBiosSystemInformation::product_name)),
            serial: field(system.as_ref().map(SMBiosSystemInformation::serial_number)),
            board_manufacturer: field(board.as_ref().map(SMBiosBaseboardInformation::manufacturer)),
            board_product: field(board.as_ref().map(SMBiosBaseboardInformation::product)),
            board_serial: field(board.as_ref().map(SMBiosBaseboardInformation::serial_number)),
            chassis_serial: field(chassis.as_ref().map(SMBiosSystemChassisInformation::serial_number)),
            asset_tag: field(chassis.as_ref().map(SMBiosSystemChassisInformation::asset_tag_number)),
        },
        vendor: field(bios.as_ref().map(SMBiosInformation::vendor)),
        version: field(bios.as_ref().map(SMBiosInformation::version)),
        date: field(bios.as_ref().map(SMBiosInformation::release_date)),
        dimms: data.collect::<SMBiosMemoryDevice<'_>>().iter().filter_map(dimm).collect(),
        bmc: data.first::<SMBiosIpmiDeviceInformation<'_>>().map(|device| bmc(&device)),
    }
}

/// Since SMBIOS 2.6 the first three fields of the UUID are little-endian; before, nobody said, and kernel and firmware
/// read them as they stand.
fn machine_id(uuid: &SystemUuidData, entry_point: &[u8]) -> Option<MachineId> {
    let SystemUuidData::Uuid(uuid) = uuid else { return None };
    let version = match entry_point {
        [b'_', b'S', b'M', b'3', b'_', _, _, major, minor, ..] => (*major, *minor),
        [b'_', b'S', b'M', b'_', _, _, major, minor, ..] => (*major, *minor),
        _ => (2, 6),
    };
    let uuid = if version < (2, 6) { Uuid::from_bytes(uuid.raw) } else { Uuid::from_bytes_le(uuid.raw) };
    Some(MachineId(uuid))
}

fn dimm(device: &SMBiosMemoryDevice<'_>) -> Option<Dimm> {
    let bytes = match device.size()? {
        MemorySize::NotInstalled | MemorySize::Unknown => return None,
        MemorySize::Kilobytes(n) => u64::from(n) << 10,
        MemorySize::Megabytes(n) => u64::from(n) << 20,
        MemorySize::SeeExtendedSize => match device.extended_size()? {
            MemorySizeExtended::Megabytes(n) => u64::from(n) << 20,
            MemorySizeExtended::SeeSize => return None,
        },
    };
    let speed = |speed: Option<MemorySpeed>| match speed {
        Some(MemorySpeed::MTs(n)) => Some(u32::from(n)),
        _ => None,
    };
    Some(Dimm {
        locator: said(device.device_locator()).or_else(|| said(device.bank_locator())).unwrap_or_default(),
        bytes,
        kind: device.memory_type().map(|kind| kind.value).and_then(|kind| match kind {
            MemoryDeviceType::Other | MemoryDeviceType::Unknown | MemoryDeviceType::None => None,
            known => Some(format!("{known:?}").to_uppercase()),
        }),
        // What it runs at counts; what it could do is the next best.
        speed_mts: speed(device.configured_memory_speed()).or_else(|| speed(device.speed())),
        manufacturer: said(device.manufacturer()),
        part_number: said(device.part_number()),
        serial: said(device.serial_number()),
    })
}

fn bmc(device: &SMBiosIpmiDeviceInformation<'_>) -> Bmc {
    // SMBIOS 3.4, table 108.
    let interface = match device.interface_type().map(|kind| kind.raw) {
        Some(1) => "KCS",
        Some(2) => "SMIC",
        Some(3) => "BT",
        Some(4) => "SSIF",
        _ => "IPMI",
    };
    Bmc { interface: interface.to_owned(), address: None, firmware: None }
}

/// The string, unless it is one of the fillers that boards ship with.
fn said(string: SMBiosString) -> Option<String> {
    let string = string.to_utf8_lossy()?;
    let text = string.trim();
    let bare = text.trim_end_matches('.').to_ascii_lowercase();
    let filler = bare.is_empty()
        || bare.bytes().all(|b| matches!(b, b'0' | b' ' | b'-' | b'.' | b'x'))
        || bare.starts_with("to be filled")
        || matches!(
            bare.as_str(),
            "not specified"
                | "not available"
                | "not applicable"
                | "n/a"
                | "none"
                | "unknown"
                | "default string"
                | "system serial number"
                | "system manufacturer"
                | "system product name"
                | "chassis serial number"
                | "base board serial number"
                | "asset tag"
                | "no asset tag"
                | "no asset information"
                | "0123456789"
                | "123456789"
        );
    (!filler).then(|| text.to_owned())
}

/// An entry point and a table: no more comes out than was in it.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (entry_point, table) = bytes.split_at(bytes.len().min(24));
    let found = parse(table.to_vec(), entry_point);
    assert!(found.dimms.len() * 4 <= table.len());
    let texts = [&found.system.serial, &found.system.product, &found.vendor, &found.version];
    // A byte that isn't UTF-8 becomes three.
    assert!(texts.into_iter().flatten().all(|text| !text.trim().is_empty() && text.len() <= 3 * table.len()));
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One structure: header, fields, strings.
    fn structure(kind: u8, fields: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, u8::try_from(fields.len() + 4).expect("short"), kind, 0];
        bytes.extend(fields);
        for string in strings {
            bytes.extend(string.as_bytes());
            bytes.push(0);
        }
        if strings.is_empty() {
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    pub(in crate::inventory) fn machine() -> Vec<u8> {
        let mut system = vec![1, 2, 0, 3];
        system.extend([0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        system.extend([6, 0, 0]);
        let dimm = |size: u16, extended: u32| {
            let mut fields = vec![0; 0x22 - 4];
            fields[8..10].copy_from_slice(&size.to_le_bytes());
            fields[0x10 - 4] = 1;
            fields[0x12 - 4] = 0x1a;
            fields[0x15 - 4..0x17 - 4].copy_from_slice(&3200u16.to_le_bytes());
            fields[0x17 - 4..0x19 - 4].copy_from_slice(&[2, 3]);
            fields[0x1a - 4] = 4;
            fields[0x1c - 4..0x20 - 4].copy_from_slice(&extended.to_le_bytes());
            fields[0x20 - 4..].copy_from_slice(&2933u16.to_le_bytes());
            structure(17, &fields, &["DIMM_A1", "Samsung", "12345678", "M393A4K40DB3-CWE"])
        };
        [
            structure(0, &[1, 2, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0], &["EDK II", "1.2.3", "04/01/2026"]),
            structure(1, &system, &["Supermicro", "SYS-1", "S-42"]),
            structure(2, &[1, 2, 0, 3], &["Supermicro", "X12", "To be filled by O.E.M."]),
            structure(3, &[1, 1, 0, 2, 3], &["Supermicro", "C-1", "Default string"]),
            dimm(16384, 0),
            dimm(0x7fff, 65536),
            dimm(0, 0),
            structure(38, &[1, 0x20, 0x20, 0xff, 0xa3, 0x0c, 0, 0, 0, 0, 0, 0], &[]),
            structure(127, &[], &[]),
        ]
        .concat()
    }

    #[test]
    fn a_machine() {
        let got = parse(machine(), b"_SM3_\0\x18\x03\x02");
        assert_eq!(got.id.map(|id| id.to_string()).as_deref(), Some("00112233-4455-6677-8899-aabbccddeeff"));
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(
            got.system,
            System {
                manufacturer: text("Supermicro"),
                product: text("SYS-1"),
                serial: text("S-42"),
                board_manufacturer: text("Supermicro"),
                board_product: text("X12"),
                board_serial: None,
                chassis_serial: text("C-1"),
                asset_tag: None,
            }
        );
        assert_eq!((got.vendor, got.version, got.date), (text("EDK II"), text("1.2.3"), text("04/01/2026")));
        assert_eq!(got.bmc, Some(Bmc { interface: "KCS".into(), address: None, firmware: None }));
        let dimms: Vec<_> = got.dimms.iter().map(|d| (d.locator.as_str(), d.bytes >> 30, d.speed_mts)).collect();
        assert_eq!(dimms, [("DIMM_A1", 16, Some(2933)), ("DIMM_A1", 64, Some(2933))]);
        assert_eq!(got.dimms[0].kind.as_deref(), Some("DDR4"));
    }

    #[test]
    fn byte_order_of_the_uuid() {
        let new = "00112233-4455-6677-8899-aabbccddeeff";
        let old = "33221100-5544-7766-8899-aabbccddeeff";
        for (name, entry_point, want) in [
            ("3.2", &b"_SM3_\0\x18\x03\x02"[..], new),
            ("2.8", b"_SM_\0\x1f\x02\x08", new),
            ("2.5", b"_SM_\0\x1f\x02\x05", old),
            ("no entry point", b"", new),
        ] {
            assert_eq!(parse(machine(), entry_point).id.map(|id| id.to_string()).as_deref(), Some(want), "{name}");
        }
    }

    #[test]
    fn fillers_say_nothing() {
        for (text, kept) in [
            ("S-42", true),
            (" 0 ", false),
            ("00000000", false),
            ("Default string", false),
            ("To Be Filled By O.E.M.", false),
            ("N/A", false),
            ("0x1234", true),
        ] {
            assert_eq!(said(SMBiosString::from(Ok(text.to_owned()))).is_some(), kept, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(mut table in proptest::collection::vec(any::<u8>(), 0..600), entry_point: [u8; 12], cut in 0usize..700) {
            let _ = parse(table.clone(), &entry_point);
            let mut machine = machine();
            machine.truncate(cut);
            table.extend(machine.iter());
            let _ = parse(machine, &entry_point);
            let _ = parse(table, &entry_point);
        }
    }
}
