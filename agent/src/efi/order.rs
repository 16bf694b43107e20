//! The firmware's boot order once a system is installed: variables in, changes out, and then the changes.
//!
//! The installed system gets an entry of its own, in front of everything else that leads to a disk and behind the network
//! where the network was in front. The network keeps its place because the boot server decides what a machine boots each
//! time, and a machine that is taken back has to come to it: with the disk first, it never would. What starts the new
//! system when nobody is there to decide is [`next_boot`], once, and after that whatever the boot server says or, without
//! one, the firmware that gives up on the network.
//!
//! Entries of others are never changed. Those of earlier installs are ours: they go when their partition is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use uuid::Uuid;

use super::variables::Variables;
use super::{BOOT_CURRENT, BOOT_NEXT, BOOT_ORDER, Entry, LOAD_OPTION_ACTIVE, entry_name, numbers};

/// By this name, and by leading to a partition of a GPT, we know our own.
const OURS: &str = "drophammer";

/// What starts an installed system: a program on a partition that the firmware can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loader {
    pub(crate) partition: u32,
    pub(crate) guid: Uuid,
    pub(crate) first_block: u64,
    pub(crate) blocks: u64,
    /// From the root of that file system, with slashes and without one at the start.
    pub(crate) file: &'static str,
}

impl Loader {
    /// `EFI_LOAD_OPTION` (UEFI 2.10 §3.1.3), with a path that begins at the partition: the firmware finds it by its GUID,
    /// wherever the disk is plugged in.
    fn option(&self) -> Vec<u8> {
        let (gpt, by_guid) = (2, 2);
        let drive = [
            &self.partition.to_le_bytes()[..],
            &self.first_block.to_le_bytes(),
            &self.blocks.to_le_bytes(),
            &self.guid.to_bytes_le(),
            &[gpt, by_guid],
        ]
        .concat();
        let path = [
            node(4, 1, &drive),
            node(4, 4, &text(&format!("\\{}", self.file.replace('/', "\\")))),
            node(0x7f, 0xff, &[]),
        ]
        .concat();
        let length = u16::try_from(path.len()).unwrap_or(u16::MAX);
        [&LOAD_OPTION_ACTIVE.to_le_bytes()[..], &length.to_le_bytes(), &text(OURS), &path].concat()
    }
}

fn node(kind: u8, subkind: u8, data: &[u8]) -> Vec<u8> {
    let [low, high] = u16::try_from(data.len() + 4).unwrap_or(u16::MAX).to_le_bytes();
    [&[kind, subkind, low, high], data].concat()
}

fn text(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// What the firmware knows of booting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Remembered {
    order: Vec<u16>,
    /// The entry that this boot came from.
    current: Option<u16>,
    options: BTreeMap<u16, Vec<u8>>,
}

impl Remembered {
    /// Nothing is taken for empty that can't be read: what is written afterwards would take its place.
    fn read(variables: &Variables) -> anyhow::Result<Self> {
        let list = |name| -> anyhow::Result<Vec<u16>> {
            Ok(variables.read(name)?.map(|value| numbers(&value).collect()).unwrap_or_default())
        };
        let mut options = BTreeMap::new();
        for number in variables.names()?.iter().filter_map(|name| entry_number(name)) {
            options.extend(variables.read(&entry_name(number))?.map(|option| (number, option)));
        }
        Ok(Self { order: list(BOOT_ORDER)?, current: list(BOOT_CURRENT)?.first().copied(), options })
    }

    fn entry(&self, number: u16) -> Option<Entry> {
        Entry::parse(self.options.get(&number)?)
    }

    /// The partition that an entry of ours leads to.
    fn ours(&self, number: u16) -> Option<Uuid> {
        self.entry(number).filter(|entry| entry.name == OURS)?.partition
    }

    fn our_entry_of(&self, partition: Uuid) -> Option<u16> {
        self.options.keys().copied().find(|number| self.ours(*number) == Some(partition))
    }

    /// Names in their order, for people.
    fn in_words(&self) -> String {
        let name = |number: &u16| match self.entry(*number) {
            Some(entry) if entry.active => entry.name,
            Some(entry) => format!("{} (switched off)", entry.name),
            None => format!("{} (nothing)", entry_name(*number)),
        };
        self.order.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

fn entry_number(variable: &str) -> Option<u16> {
    let digits = variable.strip_prefix("Boot")?;
    let number = u16::from_str_radix(digits, 16).ok()?;
    (entry_name(number) == variable).then_some(number)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Changes {
    delete: BTreeSet<u16>,
    /// The entry of the new system, and what it's to say if it doesn't already.
    ours: u16,
    put: Option<Vec<u8>>,
    /// `None` if it's right as it is.
    order: Option<Vec<u16>>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the firmware has 65536 boot entries, as many as there can be")]
struct Full;

/// `partitions` are those that this machine has; `None` if that isn't known, so that none can be said to be gone.
fn plan(known: &Remembered, loader: &Loader, partitions: Option<&BTreeSet<Uuid>>) -> Result<Changes, Full> {
    let mut delete = BTreeSet::new();
    let mut ours = None;
    let is_gone = |partition| partitions.is_some_and(|there| !there.contains(&partition));
    for number in known.options.keys().copied() {
        match known.ours(number) {
            Some(partition) if partition == loader.guid && ours.is_none() => ours = Some(number),
            Some(partition) if partition == loader.guid || is_gone(partition) => {
                delete.insert(number);
            }
            _ => {}
        }
    }
    let free = |number: &u16| !known.options.contains_key(number) || delete.contains(number);
    let ours = ours.or_else(|| (0..=u16::MAX).find(free)).ok_or(Full)?;
    // A number that is used again needn't be deleted before.
    delete.remove(&ours);
    let option = loader.option();
    let put = (known.options.get(&ours) != Some(&option)).then_some(option);

    let mut order: Vec<u16> =
        known.order.iter().copied().filter(|number| *number != ours && !delete.contains(number)).collect();
    order.insert(place(known, &order), ours);
    let order = (order != known.order).then_some(order);
    Ok(Changes { delete, ours, put, order })
}

/// In front of the first disk. Where there is none, behind all that may lead to a network: what isn't understood may, too.
fn place(known: &Remembered, order: &[u16]) -> usize {
    let is_disk = |number: &u16| known.entry(*number).is_some_and(|entry| entry.active && entry.disk && !entry.network);
    let is_network =
        |number: &u16| known.entry(*number).is_some_and(|entry| entry.network) || known.current == Some(*number);
    let disk = order.iter().position(is_disk);
    let behind_network = || order.iter().rposition(is_network).map(|at| at + 1);
    disk.or_else(behind_network).unwrap_or(order.len())
}

/// Has the firmware know how the installed system is started. Says how it will boot from now on; `None` on a BIOS, which
/// starts from disks by itself.
///
/// Whatever is done is read back. Where the power goes in between, there are numbers in the order that lead nowhere, which
/// firmware passes over.
pub(crate) fn remember(
    root: &Path,
    loader: &Loader,
    partitions: Option<&BTreeSet<Uuid>>,
) -> anyhow::Result<Option<String>> {
    if !root.join("sys/firmware/efi").exists() {
        return Ok(None);
    }
    let variables = Variables::of(root);
    let known = Remembered::read(&variables)?;
    let Changes { delete, ours, put, order } = plan(&known, loader, partitions)?;
    // First what makes room.
    for number in &delete {
        variables.delete(&entry_name(*number))?;
    }
    if let Some(option) = &put {
        variables.write(&entry_name(ours), option)?;
    }
    if let Some(order) = &order {
        let value: Vec<u8> = order.iter().flat_map(|number| number.to_le_bytes()).collect();
        variables.write(BOOT_ORDER, &value)?;
    }
    let now = Remembered::read(&variables)?;
    let right = now.order == order.unwrap_or(known.order) && now.options.get(&ours) == Some(&loader.option());
    anyhow::ensure!(right, "the firmware has changed its boot order by itself, to {}", now.in_words());
    let removed = match delete.len() {
        0 => String::new(),
        n => format!("; {} of earlier installs removed", drophammer_protocol::words::count(n, "entry")),
    };
    Ok(Some(format!("{}{removed}", now.in_words())))
}

/// Has the next boot, and that one alone, start the installed system, which the firmware [remembers](remember).
pub(crate) fn next_boot(root: &Path, loader: &Loader) -> anyhow::Result<()> {
    let variables = Variables::of(root);
    let ours = Remembered::read(&variables)?.our_entry_of(loader.guid).context("the firmware has no entry for it")?;
    variables.write(BOOT_NEXT, &ours.to_le_bytes())
}

/// Takes [`next_boot`] back, if it's still to come. Whether it was.
pub(crate) fn forget_next_boot(root: &Path) -> anyhow::Result<bool> {
    let variables = Variables::of(root);
    let Some(next) = variables.read(BOOT_NEXT)? else { return Ok(false) };
    let option = numbers(&next).next().map(|number| variables.read(&entry_name(number))).transpose()?.flatten();
    let entry = option.and_then(|option| Entry::parse(&option));
    let ours = entry.is_some_and(|entry| entry.name == OURS && entry.partition.is_some());
    if ours {
        variables.delete(BOOT_NEXT)?;
    }
    Ok(ours)
}

/// Entries, an order and what was booted, cut from any bytes: a plan touches nobody else's entry, keeps the others in their
/// order, and has nothing left to do once it's carried out.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    let mut known = Remembered::default();
    let mut take = |length: usize| {
        let (head, tail) = rest.split_at(length.min(rest.len()));
        rest = tail;
        head
    };
    known.current = numbers(take(2)).next();
    known.order = numbers(take(16)).collect();
    while let [number, length] = take(2) {
        known.options.insert((*number).into(), take((*length).into()).to_vec());
    }
    check(&known, &tests_loader());
}

#[cfg(any(test, fuzzing))]
fn tests_loader() -> Loader {
    Loader { partition: 2, guid: Uuid::from_u128(7), first_block: 2048, blocks: 1_048_576, file: "EFI/x/y.efi" }
}

/// What holds of every plan.
#[cfg(any(test, fuzzing))]
fn check(known: &Remembered, loader: &Loader) {
    let partitions = BTreeSet::from([loader.guid]);
    let Ok(changes) = plan(known, loader, Some(&partitions)) else { return };
    for number in changes.delete.iter().chain(&changes.put.as_ref().map(|_| changes.ours)) {
        assert!(known.ours(*number).is_some() || !known.options.contains_key(number), "{number} isn't ours");
    }
    let mut after = known.clone();
    after.options.retain(|number, _| !changes.delete.contains(number));
    after.options.extend(changes.put.clone().map(|option| (changes.ours, option)));
    if let Some(order) = &changes.order {
        after.order.clone_from(order);
    }
    let others = |order: &[u16]| -> Vec<u16> {
        order.iter().copied().filter(|n| *n != changes.ours && !changes.delete.contains(n)).collect()
    };
    assert_eq!(others(&after.order), others(&known.order));
    assert_eq!(after.order.iter().filter(|number| **number == changes.ours).count(), 1);
    assert_eq!(after.our_entry_of(loader.guid), Some(changes.ours));
    let again = plan(&after, loader, Some(&partitions)).expect("it has an entry");
    assert_eq!(again, Changes { delete: BTreeSet::new(), ours: changes.ours, put: None, order: None });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::tests::{END, by_disk, by_network, option};
    use super::super::variables::{GLOBAL, VARIABLES};
    use super::*;

    /// What OVMF had remembered once Debian's installer had been there (`efibootmgr -v` shows it as `debian
    /// HD(1,GPT,33221100-5544-7766-8899-aabbccddeeff,0x800,0x100000)/File(\EFI\debian\shimx64.efi)`).
    const DEBIAN: &str = "01000000620064006500620069006100\
        6e000000040 12a00 01000000 0008000000000000 0000100000000000 00112233445566778899aabbccddeeff 0202 \
        04043400 5c004500460049005c00640065006200690061006e005c007300680069006d007800360034002e00650066006900 0000 \
        7fff0400";

    /// What OVMF (Debian 12) remembered after it had started a machine by an entry of ours, with a network card in front of
    /// an NVMe drive: its own menu, the drive, PXE over IPv4, HTTP over IPv4 and IPv6, ours, its shell.
    const OVMF: [(u16, &str); 7] = [
        (
            0,
            "090100002c0055006900410070007000000004071400c9bdb87cebf8344faaea3ee4af6516a10406140021aa2c461476 \
         0345836e8ab6f46623317fff0400",
        ),
        (
            1,
            "01000000260055004500460049002000510045004d00550020004e0056004d00650020004300740072006c0020005300 \
         20003100000002010c00d041030a00000000010106000003031710000100000000000000000000007fff04004eac0881 \
         119f594d850ee21a522c59b2",
        ),
        (
            2,
            "0100000056005500450046004900200050005800450076003400200028004d00410043003a0035003200350034003000 \
         30003700370030003000300031002900000002010c00d041030a00000000010106000002030b25005254007700010000 \
         00000000000000000000000000000000000000000000000001030c1b0000000000000000000000000000000000000000 \
         000000007fff04004eac0881119f594d850ee21a522c59b2",
        ),
        (
            3,
            "010000005a0055004500460049002000480054005400500076003400200028004d00410043003a003500320035003400 \
         300030003700370030003000300031002900000002010c00d041030a00000000010106000002030b2500525400770001 \
         000000000000000000000000000000000000000000000000000001030c1b000000000000000000000000000000000000 \
         000000000000031804007fff04004eac0881119f594d850ee21a522c59b2",
        ),
        (
            4,
            "010000007b0055004500460049002000480054005400500076003600200028004d00410043003a003500320035003400 \
         300030003700370030003000300031002900000002010c00d041030a00000000010106000002030b2500525400770001 \
         000000000000000000000000000000000000000000000000000001030d3c000000000000000000000000000000000000 \
         000000000000000000000000000000000000000000004000000000000000000000000000000000031804007fff04004e \
         ac0881119f594d850ee21a522c59b2",
        ),
        (
            5,
            "010000006200640072006f007000680061006d006d0065007200000004012a0002000000000800000000000000200300 \
         0000000000112233445566778899aabbccddeeff0202040434005c004500460049005c00640065006200690061006e00 \
         5c0067007200750062007800360034002e0065006600690000007fff0400",
        ),
        (
            6,
            "010000002c00450046004900200049006e007400650072006e0061006c0020005300680065006c006c00000004071400 \
         c9bdb87cebf8344faaea3ee4af6516a10406140083a5047c3e9e1c4fad65e05268d0b4d17fff0400",
        ),
    ];
    const OVMF_ORDER: [u16; 7] = [2, 3, 4, 5, 1, 0, 6];

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        hex::decode(hexadecimal.replace(' ', "")).expect("hex")
    }

    #[test]
    fn what_ovmf_made_of_it() {
        let loader = Loader {
            partition: 2,
            guid: "33221100-5544-7766-8899-aabbccddeeff".parse().expect("a GUID"),
            first_block: 2048,
            blocks: 204_800,
            file: "EFI/debian/grubx64.efi",
        };
        let there = BTreeSet::from([loader.guid]);
        let options = OVMF.map(|(number, option)| (number, bytes(option))).into_iter().collect();
        let after = Remembered { order: OVMF_ORDER.to_vec(), current: Some(5), options };
        let nothing = Changes { delete: BTreeSet::new(), ours: 5, put: None, order: None };
        assert_eq!(plan(&after, &loader, Some(&there)), Ok(nothing), "it was kept to the byte, in its place");

        let mut before = Remembered { current: Some(2), ..after.clone() };
        before.options.remove(&5);
        before.order.retain(|number| *number != 5);
        let made =
            Changes { delete: BTreeSet::new(), ours: 5, put: Some(loader.option()), order: Some(OVMF_ORDER.to_vec()) };
        assert_eq!(plan(&before, &loader, Some(&there)), Ok(made));
        assert_eq!(
            after.in_words(),
            "UEFI PXEv4 (MAC:525400770001), UEFI HTTPv4 (MAC:525400770001), UEFI HTTPv6 (MAC:525400770001), drophammer, \
             UEFI QEMU NVMe Ctrl S 1, UiApp, EFI Internal Shell"
        );
    }

    fn debian() -> Vec<u8> {
        bytes(DEBIAN)
    }

    fn firmware_program() -> Vec<u8> {
        option(1, "EFI Internal Shell", &[(4, 7, &[0; 16]), (4, 6, &[0; 16]), END])
    }

    fn ours(guid: u128) -> Vec<u8> {
        Loader { guid: Uuid::from_u128(guid), ..tests_loader() }.option()
    }

    #[test]
    fn an_entry_is_what_others_make_of_it() {
        let loader = Loader {
            partition: 1,
            guid: "33221100-5544-7766-8899-aabbccddeeff".parse().expect("a GUID"),
            first_block: 0x800,
            blocks: 0x10_0000,
            file: "EFI/debian/shimx64.efi",
        };
        // The same but for the name.
        let (before, after) = (text(OURS), text("debian"));
        let made = loader.option();
        let renamed = [&made[..6], &after, &made[6 + before.len()..]].concat();
        assert_eq!(hex::encode(renamed), hex::encode(debian()));
    }

    #[test]
    fn the_disk_comes_behind_the_network_and_before_other_disks() {
        let mine = tests_loader().option();
        let keep = BTreeSet::from([Uuid::from_u128(7), Uuid::from_u128(8)]);
        let none = vec![];
        for (name, order, options, want) in [
            (
                "as from the factory",
                vec![1, 2, 3],
                vec![(1, by_network()), (2, by_disk(1)), (3, firmware_program())],
                (none.clone(), 0, true, Some(vec![1, 0, 2, 3])),
            ),
            (
                "disks first",
                vec![2, 1],
                vec![(0, firmware_program()), (1, by_network()), (2, by_disk(1))],
                (none.clone(), 3, true, Some(vec![3, 2, 1])),
            ),
            (
                "a disk that is switched off",
                vec![2, 1, 3],
                vec![(1, by_network()), (2, by_disk(0)), (3, by_disk(1))],
                (none.clone(), 0, true, Some(vec![2, 1, 0, 3])),
            ),
            (
                "no disk",
                vec![1, 3],
                vec![(1, by_network()), (3, firmware_program())],
                (none.clone(), 0, true, Some(vec![1, 0, 3])),
            ),
            (
                "what this boot came from leads to the network, whatever it looks like",
                vec![3, 9],
                vec![(3, firmware_program()), (9, firmware_program())],
                (none.clone(), 0, true, Some(vec![3, 9, 0])),
            ),
            ("nothing", vec![], vec![], (none.clone(), 0, true, Some(vec![0]))),
            ("numbers that lead nowhere", vec![5, 6], vec![], (none.clone(), 0, true, Some(vec![5, 6, 0]))),
            (
                "installed before, the same",
                vec![1, 4, 2],
                vec![(1, by_network()), (2, by_disk(1)), (4, mine.clone())],
                (none.clone(), 4, false, None),
            ),
            (
                "moved meanwhile",
                vec![4, 1, 2],
                vec![(1, by_network()), (2, by_disk(1)), (4, mine.clone())],
                (none.clone(), 4, false, Some(vec![1, 4, 2])),
            ),
            (
                "switched off meanwhile",
                vec![1, 4],
                vec![(1, by_network()), (4, [&[0], &mine[1..]].concat())],
                (none.clone(), 4, true, None),
            ),
            (
                "there twice",
                vec![1, 4, 5],
                vec![(1, by_network()), (4, mine.clone()), (5, mine.clone())],
                (vec![5], 4, false, Some(vec![1, 4])),
            ),
            (
                "of an earlier install",
                vec![1, 0, 4],
                vec![(0, ours(99)), (1, by_network()), (4, ours(98))],
                (vec![4], 0, true, Some(vec![1, 0])),
            ),
            (
                "of a system on another disk that is still there",
                vec![1, 4],
                vec![(1, by_network()), (4, ours(8))],
                (none.clone(), 0, true, Some(vec![1, 0, 4])),
            ),
            (
                "somebody else's, to a partition that is gone",
                vec![1, 4],
                vec![(1, by_network()), (4, debian())],
                (none.clone(), 0, true, Some(vec![1, 0, 4])),
            ),
            (
                "our name on something else",
                vec![1, 4],
                vec![(1, by_network()), (4, option(1, OURS, &[(3, 11, &[0; 33]), END]))],
                (none, 0, true, Some(vec![1, 4, 0])),
            ),
        ] {
            let known = Remembered { order, current: Some(9), options: options.into_iter().collect() };
            let changes = plan(&known, &tests_loader(), Some(&keep)).expect("room");
            let (delete, ours, put, order) = want;
            let put = put.then(|| mine.clone());
            assert_eq!(changes, Changes { delete: delete.into_iter().collect(), ours, put, order }, "{name}");
            check(&known, &tests_loader());
        }
    }

    #[test]
    fn nothing_goes_while_a_drive_cant_be_read() {
        let known = Remembered { order: vec![4], current: None, options: BTreeMap::from([(4, ours(99))]) };
        let changes = plan(&known, &tests_loader(), None).expect("room");
        assert_eq!((changes.delete, changes.order), (BTreeSet::new(), Some(vec![0, 4])));
    }

    #[test]
    fn carried_out_and_taken_back() {
        let root = tempfile::tempdir().expect("a directory");
        let (here, loader) = (root.path(), tests_loader());
        let partitions = BTreeSet::from([loader.guid]);
        assert_eq!(remember(here, &loader, Some(&partitions)).expect("a BIOS"), None);
        next_boot(here, &loader).expect_err("a BIOS");
        assert!(!forget_next_boot(here).expect("a BIOS"));
        let folder = here.join(VARIABLES);
        fs::create_dir_all(&folder).expect("directories");
        let put = |name: &str, value: &[u8]| {
            fs::write(folder.join(format!("{name}-{GLOBAL}")), [&[7, 0, 0, 0], value].concat()).expect("written");
        };
        put("BootCurrent", &[0x1a, 0]);
        put("BootOrder", &[0x1a, 0, 2, 0]);
        put("Boot001A", &by_network());
        put("Boot0002", &by_disk(1));
        put("Boot0005", &ours(99));
        next_boot(here, &loader).expect_err("it isn't there yet");
        let said = remember(here, &loader, Some(&partitions)).expect("done").expect("UEFI");
        let by_network = "UEFI HTTPv4 (MAC:525400770001)";
        assert_eq!(said, format!("{by_network}, drophammer, UEFI QEMU NVMe Ctrl; 1 entry of earlier installs removed"));
        let variables = Variables::of(here);
        assert_eq!(variables.read("BootOrder").expect("read"), Some(vec![0x1a, 0, 0, 0, 2, 0]));
        assert_eq!(variables.read("Boot0005").expect("read"), None);
        let said = remember(here, &loader, Some(&partitions)).expect("nothing left to do").expect("UEFI");
        assert_eq!(said, format!("{by_network}, drophammer, UEFI QEMU NVMe Ctrl"));

        next_boot(here, &loader).expect("written");
        assert_eq!(variables.read("BootNext").expect("read"), Some(vec![0, 0]));
        assert!(forget_next_boot(here).expect("taken back"));
        assert_eq!(variables.read("BootNext").expect("read"), None);
        put("BootNext", &[2, 0]);
        assert!(!forget_next_boot(here).expect("somebody else's"));
        assert_eq!(variables.read("BootNext").expect("read"), Some(vec![2, 0]));
    }

    #[test]
    fn variables_of_entries() {
        for (name, want) in [
            ("Boot0000", Some(0)),
            ("Boot00FF", Some(0xff)),
            ("Boot00ff", None),
            ("BootFF", None),
            ("BootOrder", None),
            ("Boot+001", None),
            ("Driver0001", None),
        ] {
            assert_eq!(entry_number(name), want, "{name}");
        }
    }

    fn options() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(by_network()),
            Just(by_disk(1)),
            Just(debian()),
            Just(firmware_program()),
            (5u128..9).prop_map(ours),
            prop::collection::vec(any::<u8>(), 0..80),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_plan(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&bytes);
        }

        #[test]
        fn whatever_the_firmware_remembers(
            order in prop::collection::vec(0u16..8, 0..10),
            current in prop::option::of(0u16..8),
            options in prop::collection::btree_map(0u16..8, options(), 0..8),
        ) {
            check(&Remembered { order, current, options }, &tests_loader());
        }
    }
}
