//! What the firmware remembers (UEFI 2.10 §3.1, §3.3 and §10.3): which entry this boot came from, which one starts a disk,
//! and whether it lets everything boot.
//!
//! Total: variables are whatever firmware and former systems left there.

mod order;
mod variables;

use std::path::Path;

use drophammer_protocol::id::Mac;
use uuid::Uuid;

pub(crate) use self::order::{Loader, forget_next_boot, next_boot, remember};
use self::variables::Variables;

const LOAD_OPTION_ACTIVE: u32 = 0x1;
const BOOT_CURRENT: &str = "BootCurrent";
const BOOT_NEXT: &str = "BootNext";
const BOOT_ORDER: &str = "BootOrder";

/// The network card that firmware booted from, if it did so from one.
pub(crate) fn booted_from(root: &Path) -> Option<Mac> {
    Entry::read(root, current(root)?)?.card
}

/// `None` where there is no such thing, as on a BIOS.
pub(crate) fn secure_boot(root: &Path) -> Option<bool> {
    match variable(root, "SecureBoot")?.as_slice() {
        [value] => Some(*value == 1),
        _ => None,
    }
}

/// Has the next boot start from the first disk in the firmware's order, but not from what this boot came from: that would
/// bring us here again. Its name, or `None` if there is no such disk.
pub(crate) fn next_boot_from_disk(root: &Path) -> anyhow::Result<Option<String>> {
    let order = variable(root, BOOT_ORDER).unwrap_or_default();
    let current = current(root);
    let others = numbers(&order).filter(|number| Some(*number) != current);
    let mut entries = others.filter_map(|number| Some((number, Entry::read(root, number)?)));
    let Some((number, entry)) = entries.find(|(_, entry)| entry.active && entry.disk) else { return Ok(None) };
    Variables::of(root).write(BOOT_NEXT, &number.to_le_bytes())?;
    Ok(Some(entry.name))
}

fn current(root: &Path) -> Option<u16> {
    numbers(&variable(root, BOOT_CURRENT)?).next()
}

/// For where it makes no difference whether it isn't there or can't be read.
fn variable(root: &Path, name: &str) -> Option<Vec<u8>> {
    Variables::of(root).read(name).ok()?
}

/// The variable of a boot entry.
fn entry_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

fn numbers(value: &[u8]) -> impl Iterator<Item = u16> {
    value.as_chunks::<2>().0.iter().copied().map(u16::from_le_bytes)
}

/// What a `Boot####` variable says (`EFI_LOAD_OPTION`).
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    active: bool,
    name: String,
    /// It goes through this network card.
    card: Option<Mac>,
    /// It goes to a disk or a partition of one.
    disk: bool,
    /// It goes over a network, whatever lies at the end of that.
    network: bool,
    /// The partition that it goes to, if that is one of a GPT.
    partition: Option<Uuid>,
}

impl Entry {
    fn read(root: &Path, number: u16) -> Option<Self> {
        Self::parse(&variable(root, &entry_name(number))?)
    }

    fn parse(option: &[u8]) -> Option<Self> {
        let (attributes, rest) = option.split_first_chunk::<4>()?;
        let (path_length, rest) = rest.split_first_chunk::<2>()?;
        let (units, _) = rest.as_chunks::<2>();
        let end = units.iter().position(|unit| *unit == [0, 0])?;
        let name: Vec<u16> = units.iter().take(end).copied().map(u16::from_le_bytes).collect();
        let path = rest.get((end + 1) * 2..)?.get(..usize::from(u16::from_le_bytes(*path_length)))?;
        let mut entry = Self {
            active: u32::from_le_bytes(*attributes) & LOAD_OPTION_ACTIVE != 0,
            name: String::from_utf16_lossy(&name).chars().filter(|c| !c.is_control()).collect(),
            ..Self::default()
        };
        for (kind, subkind, data) in nodes(path) {
            match (kind, subkind) {
                // Messaging: MAC address, in a field for the longest there are, followed by the type of network.
                (3, 11) => {
                    entry.card = entry.card.or(data.first_chunk().copied().map(Mac));
                    entry.network = true;
                }
                // Messaging: InfiniBand, IPv4, IPv6, URI.
                (3, 9 | 12 | 13 | 24) => entry.network = true,
                // BIOS boot specification: the type of device for a network.
                (5, 1) => entry.network |= data.starts_with(&[0x80, 0]),
                // Messaging: ATAPI, SCSI, SATA, NVMe.
                (3, 1 | 2 | 18 | 23) => entry.disk = true,
                // Media: hard drive, which is a partition.
                (4, 1) => {
                    entry.disk = true;
                    entry.partition = entry.partition.or_else(|| gpt_partition(data));
                }
                _ => {}
            }
        }
        Some(entry)
    }
}

/// UEFI 2.10 §10.3.5.1: number, start, length, signature; then what table that is and what signature.
fn gpt_partition(node: &[u8]) -> Option<Uuid> {
    const GPT_AND_GUID: [u8; 2] = [2, 2];
    let (signature, kinds) = node.get(20..)?.split_first_chunk::<16>()?;
    kinds.starts_with(&GPT_AND_GUID).then(|| Uuid::from_bytes_le(*signature))
}

/// The nodes of a device path, up to its end or to the first that makes no sense.
fn nodes(mut path: &[u8]) -> impl Iterator<Item = (u8, u8, &[u8])> {
    const END: u8 = 0x7f;
    std::iter::from_fn(move || {
        let ([kind, subkind, low, high], _) = path.split_first_chunk::<4>()?;
        let (node, rest) = path.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
        path = rest;
        // A node that is shorter than its own header would be read for ever.
        let data = node.get(4..)?;
        (*kind != END).then_some((*kind, *subkind, data))
    })
}

/// A variable: its name can be shown, and its device path ends.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Some(entry) = Entry::parse(bytes) {
        assert!(!entry.name.contains(char::is_control));
    }
    assert!(nodes(bytes).count() <= bytes.len() / 4);
    assert_eq!(numbers(bytes).count(), bytes.len() / 2);
    order::fuzz(bytes);
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::variables::{GLOBAL, VARIABLES};
    use super::*;

    const CARD: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
    pub(in crate::efi) const END: (u8, u8, &[u8]) = (0x7f, 0xff, &[]);

    pub(in crate::efi) fn option(attributes: u32, name: &str, path: &[(u8, u8, &[u8])]) -> Vec<u8> {
        let node = |(kind, subkind, data): &(u8, u8, &[u8])| {
            let length = u16::try_from(data.len() + 4).expect("short").to_le_bytes();
            [&[*kind, *subkind, length[0], length[1]][..], data].concat()
        };
        let path: Vec<u8> = path.iter().flat_map(node).collect();
        let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let length = u16::try_from(path.len()).expect("short").to_le_bytes();
        [&attributes.to_le_bytes()[..], &length, &name, &path, b"optional data"].concat()
    }

    pub(in crate::efi) fn by_network() -> Vec<u8> {
        let mac = [&CARD.0[..], &[0; 26], &[1]].concat();
        option(
            1,
            "UEFI HTTPv4 (MAC:525400770001)",
            &[(2, 1, &[0; 8]), (1, 1, &[0; 2]), (3, 11, &mac), (3, 24, &[]), END],
        )
    }

    pub(in crate::efi) fn by_disk(attributes: u32) -> Vec<u8> {
        option(attributes, "UEFI QEMU NVMe Ctrl", &[(2, 1, &[0; 8]), (3, 23, &[0; 12]), END])
    }

    #[test]
    fn entries_say_where_they_lead() {
        let entry = |active, name: &str, card: Option<Mac>, disk| {
            let network = card.is_some();
            Some(Entry { active, name: name.into(), card, disk, network, partition: None })
        };
        let guid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let on = |kinds: [u8; 2]| [&[0; 20][..], &guid.to_bytes_le(), &kinds].concat();
        for (name, bytes, want) in [
            ("network", by_network(), entry(true, "UEFI HTTPv4 (MAC:525400770001)", Some(CARD), false)),
            ("disk", by_disk(1), entry(true, "UEFI QEMU NVMe Ctrl", None, true)),
            (
                "partition",
                option(1, "debian", &[(4, 1, &[0; 38]), (4, 4, b"x"), END]),
                entry(true, "debian", None, true),
            ),
            (
                "partition of a GPT",
                option(1, "debian", &[(4, 1, &on([2, 2])), END]),
                entry(true, "debian", None, true).map(|e| Entry { partition: Some(guid), ..e }),
            ),
            ("partition of an MBR", option(1, "old", &[(4, 1, &on([1, 1])), END]), entry(true, "old", None, true)),
            (
                "a BIOS's network",
                option(1, "PXE", &[(5, 1, &[0x80, 0, 0, 0, 0]), END]),
                entry(true, "PXE", None, false).map(|e| Entry { network: true, ..e }),
            ),
            ("switched off", by_disk(0), entry(false, "UEFI QEMU NVMe Ctrl", None, true)),
            (
                "a program in the firmware",
                option(1, "Shell", &[(4, 7, &[0; 16]), END]),
                entry(true, "Shell", None, false),
            ),
            ("behind the end", option(1, "x", &[END, (4, 1, &[])]), entry(true, "x", None, false)),
            (
                "a short MAC",
                option(1, "x", &[(3, 11, &[1, 2, 3]), END]),
                entry(true, "x", None, false).map(|e| Entry { network: true, ..e }),
            ),
            ("a path longer than the variable", by_disk(1)[..60].to_vec(), None),
            ("a name without an end", b"\x01\0\0\0\x04\0a\0b\0".to_vec(), None),
            ("nothing", vec![], None),
        ] {
            assert_eq!(Entry::parse(&bytes), want, "{name}");
        }
    }

    #[test]
    fn the_card_is_known_and_the_disk_is_next() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = root.path().join(VARIABLES);
        fs::create_dir_all(&folder).expect("directories");
        let put = |name: &str, value: &[u8]| {
            fs::write(folder.join(format!("{name}-{GLOBAL}")), [&[7, 0, 0, 0], value].concat()).expect("written");
        };
        assert_eq!(booted_from(root.path()), None, "a BIOS");
        assert_eq!(next_boot_from_disk(root.path()).expect("read"), None, "a BIOS");
        put("BootCurrent", &[0x1a, 0]);
        put("Boot001A", &by_network());
        put("BootOrder", &[0x1a, 0, 9, 0, 2, 0, 3, 0, 4, 0]);
        assert_eq!(booted_from(root.path()), Some(CARD));
        assert_eq!(next_boot_from_disk(root.path()).expect("read"), None, "no disk");
        put("Boot0002", &by_disk(0));
        put("Boot0003", &by_disk(1));
        put("Boot0004", &by_disk(1));
        assert_eq!(next_boot_from_disk(root.path()).expect("written").as_deref(), Some("UEFI QEMU NVMe Ctrl"));
        let next = fs::read(folder.join(format!("BootNext-{GLOBAL}"))).expect("is there");
        assert_eq!(next, [7, 0, 0, 0, 3, 0]);

        put("BootCurrent", &[3, 0]);
        assert_eq!(booted_from(root.path()), None, "from a disk");
        next_boot_from_disk(root.path()).expect("written");
        let next = fs::read(folder.join(format!("BootNext-{GLOBAL}"))).expect("is there");
        assert_eq!(next, [7, 0, 0, 0, 4, 0], "not what this boot came from");
    }

    proptest! {
        #[test]
        fn any_bytes_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Entry::parse(&bytes);
        }

        #[test]
        fn any_path_no_panic(path in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(nodes(&path).count() <= path.len() / 4);
        }
    }
}
