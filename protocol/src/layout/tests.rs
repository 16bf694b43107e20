use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::fixtures::disk;
use crate::inventory::{Disk, FirmwareKind};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn layout(text: &str) -> Layout {
    toml::from_str(text).expect("a layout")
}

const MIRRORED: &str = r#"
    drive = [
        { name = "a", partitions = [{ name = "bios", kind = "bios" }, { name = "esp", kind = "esp" }, { name = "root" }] },
        { name = "b", partitions = [{ name = "bios", kind = "bios" }, { name = "esp", kind = "esp" }, { name = "root" }] },
    ]
    raid = [{ name = "root", level = 1, devices = ["a/root", "b/root"] }]
    filesystem = [{ on = "root", format = "ext4", mount = "/" }]
"#;

const DATA: &str = r#"
    drive = [
        { name = "first", partitions = [{ name = "esp", kind = "esp" }, { name = "root", size = "20 GiB" }, { name = "swap" }] },
        { name = "data", select = { min_size = "100 GiB", prefer = "largest" }, partitions = [{ name = "pv" }] },
    ]
    volume_group = [{ name = "vg", devices = ["data/pv"], tags = ["x"], volumes = [
        { name = "var", size = "30 GiB" },
        { name = "srv", size = "rest", spread = "striped" },
    ] }]
    filesystem = [
        { on = "first/root", format = "ext4", mount = "/", options = ["errors=remount-ro"] },
        { on = "first/swap", format = "swap" },
        { on = "vg/srv", format = "xfs", mount = "/srv", label = "srv", create_options = ["-m bigtime=1"] },
        { on = "vg/var", format = "xfs", mount = "/var" },
        { format = "tmpfs", mount = "/tmp", options = ["size=1G"] },
    ]
"#;

const KEPT: &str = r#"
    drive = [
        { name = "first", partitions = [{ name = "esp", kind = "esp" }, { name = "root" }] },
        { name = "data", keep = true, partitions = [{ name = "pv", size = "50 %" }, { name = "own" }] },
        { name = "raw", keep = true, partitions = [] },
    ]
    volume_group = [{ name = "vg", devices = ["data/pv"], volumes = [{ name = "srv", size = "rest" }] }]
    encrypted = [{ name = "safe", on = "vg/srv" }]
    filesystem = [
        { on = "first/root", format = "ext4", mount = "/" },
        { on = "safe", format = "xfs", mount = "/srv" },
        { on = "data/own", format = "ext4", mount = "/own" },
    ]
"#;

#[test]
fn what_lies_on_drives_that_are_kept() {
    let layout = layout(KEPT);
    for (device, drives, kept) in [
        ("first/root", &["first"][..], false),
        ("data/own", &["data"], true),
        ("vg/srv", &["data"], true),
        ("safe", &["data"], true),
    ] {
        let under: Vec<&str> = layout.drives_under(device).into_iter().collect();
        assert_eq!((under.as_slice(), layout.keeps(device)), (drives, kept), "{device}");
    }
    let (made, kept) = layout.apart(&BTreeSet::from(["data", "raw"]));
    assert_eq!(made.check(), Ok(()), "what is left is a layout by itself");
    assert_eq!((made.drives.len(), made.groups.len(), made.encrypted.len(), made.filesystems.len()), (1, 0, 0, 1));
    assert_eq!((kept.drives.len(), kept.groups.len(), kept.encrypted.len(), kept.filesystems.len()), (2, 1, 1, 2));
    let (all, none) = layout.apart(&BTreeSet::new());
    assert_eq!((all, none), (layout, Layout::default()), "the first time");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for text in [MIRRORED, DATA, KEPT] {
        assert_eq!(layout(text).check(), Ok(()));
        let again = serde_json::to_string(&layout(text)).expect("JSON");
        assert_eq!(serde_json::from_str::<Layout>(&again).expect("the same"), layout(text), "as JSON");
    }
    assert_eq!(Layout::single(None).check(), Ok(()));
    for (name, text, from, to, want) in [
        ("no root", MIRRORED, "mount = \"/\"", "mount = \"/x\"", "filesystem: none is mounted at /"),
        ("an unknown device", MIRRORED, "on = \"root\"", "on = \"rot\"", "\"rot\" is no partition, array or volume"),
        ("RAID 5", MIRRORED, "level = 1", "level = 5", "raid.root.level: RAID 5 isn't made here"),
        ("alone", MIRRORED, ", \"b/root\"]", "]", "raid.root.devices: an array has two or more"),
        ("twice", MIRRORED, "\"b/root\"]", "\"a/root\"]", "use: what uses \"a/root\" is there twice"),
        ("on a member", MIRRORED, "on = \"root\"", "on = \"a/root\"", "use: what uses \"a/root\" is there twice"),
        ("on the firmware's", MIRRORED, "on = \"root\"", "on = \"a/esp\"", "a/esp is for the firmware"),
        ("an array of the firmware's", MIRRORED, "\"a/root\"", "\"a/esp\"", "\"a/esp\" is for the firmware"),
        ("a name twice", MIRRORED, "name = \"b\"", "name = \"root\"", "name: \"root\" is there twice"),
        ("a name with a slash", MIRRORED, "name = \"b\"", "name = \"b/c\"", "name: \"b/c\" can't be one"),
        ("a root on swap", MIRRORED, "ext4", "swap", "swap isn't mounted anywhere"),
        ("a root on vfat", MIRRORED, "ext4", "vfat", "filesystem./: vfat can't hold a root file system"),
        ("two rests", DATA, "size = \"20 GiB\"", "size = \"rest\"", "drive.first: only one of its partitions"),
        ("no size", DATA, "\"30 GiB\"", "\"0 GiB\"", "volume_group.vg.var.size: 0 KiB is no size"),
        ("a mount twice", DATA, "/srv", "/var", "filesystem: what is mounted at /var is there twice"),
        ("a mount upwards", DATA, "/srv", "/srv/../etc", "\"/srv/../etc\" is no place to mount at"),
        ("in place of /usr", DATA, "/srv", "/usr", "filesystem./usr: nothing can be mounted there"),
        ("a long label", DATA, "label = \"srv\"", "label = \"abcdefghijklm\"", "12 at most"),
        ("an option with a space", DATA, "size=1G", "size= 1G", "\"size= 1G\" can't be an option"),
        (
            "a root that nobody opens",
            MIRRORED,
            "filesystem = [{ on = \"root\"",
            "encrypted = [{ name = \"e\", on = \"root\" }]\nfilesystem = [{ on = \"e\"",
            "the key to it would lie in it",
        ),
        (
            "encrypted nothing",
            DATA,
            "filesystem = [",
            "encrypted = [{ name = \"e\", on = \"x\" }]\nfilesystem = [",
            "encrypted.e: \"x\" is no partition",
        ),
        (
            "encrypted and not",
            DATA,
            "filesystem = [",
            "encrypted = [{ name = \"e\", on = \"vg/srv\" }]\nfilesystem = [",
            "what uses \"vg/srv\" is there twice",
        ),
        ("a tmpfs on something", DATA, "format = \"tmpfs\"", "on = \"vg/srv\", format = \"tmpfs\"", "on nothing"),
        (
            "an array of itself",
            MIRRORED,
            "\"a/root\", \"b/root\"",
            "\"root\", \"root\"",
            "\"root\" is no partition of a drive",
        ),
        (
            "a group on its own volume",
            DATA,
            "\"data/pv\"",
            "\"vg/srv\"",
            "\"vg/srv\" is neither a partition nor an array",
        ),
        (
            "encrypted twice over",
            KEPT,
            "on = \"vg/srv\"",
            "on = \"safe\"",
            "encrypted.safe: \"safe\" is no partition, array or volume",
        ),
        ("too many percent", DATA, "size = \"20 GiB\"", "size = \"101 %\"", "101 %"),
        (
            "kept to start from",
            MIRRORED,
            "name = \"a\",",
            "name = \"a\", keep = true,",
            "what the firmware starts from is made anew",
        ),
        (
            "a mirror half kept",
            MIRRORED,
            "name = \"a\",",
            "name = \"a\", keep = true,",
            "raid.root: it lies on drives that are kept and on",
        ),
        (
            "a root that is kept",
            KEPT,
            "mount = \"/srv\"",
            "mount = \"/boot\"",
            "filesystem./boot: it can't lie on a drive",
        ),
        (
            "nothing on a drive",
            KEPT,
            "keep = true, partitions = []",
            "partitions = []",
            "drive.raw: it has no partitions",
        ),
        ("a drive of half a drive", DATA, "\"100 GiB\"", "\"50 %\"", "drive.data.select.min_size: a drive has a size"),
    ] {
        let said = layout(&text.replace(from, to)).check().map_err(|faults| faults.to_string());
        assert!(said.as_ref().is_err_and(|said| said.contains(want)), "{name}: {said:?}");
    }
    assert!(toml::from_str::<Layout>("drive = []\nfilesystem = []\nraids = []").is_err(), "a misspelt field");
}

#[test]
fn partitions_are_whole_mebibytes_that_follow_each_other() {
    let drive =
        |text: &str| -> Drive { toml::from_str(&format!("name = \"d\"\npartitions = [{text}]")).expect("a drive") };
    let three = "{ name = \"bios\", kind = \"bios\" }, { name = \"esp\", kind = \"esp\" }, { name = \"root\" }";
    let mib = |extents: &[Extent]| extents.iter().map(|e| (e.start / MIB, e.bytes / MIB)).collect::<Vec<_>>();
    for (name, text, bytes, block, want) in [
        ("a small drive's", three, 800 * MIB, 512, Ok(vec![(1, 1), (2, 64), (66, 733)])),
        ("a large one's", three, 100 * GIB, 512, Ok(vec![(1, 1), (2, 256), (258, 102_141)])),
        ("of 4096 bytes", three, 100 * GIB, 4096, Ok(vec![(1, 1), (2, 320), (322, 102_077)])),
        ("half a MiB more", three, 800 * MIB + MIB / 2, 512, Ok(vec![(1, 1), (2, 64), (66, 733)])),
        (
            "parts of it",
            "{ name = \"a\", size = \"25 %\" }, { name = \"b\", size = \"10 MiB\" }, { name = \"c\", size = \"rest\" }",
            102 * MIB,
            512,
            Ok(vec![(1, 25), (26, 10), (36, 65)]),
        ),
        ("all of it", "{ name = \"a\", size = \"100 %\" }", 102 * MIB, 512, Ok(vec![(1, 100)])),
        (
            "rounded up",
            "{ name = \"a\", size = \"1025 KiB\" }, { name = \"b\" }",
            10 * MIB,
            512,
            Ok(vec![(1, 2), (3, 6)]),
        ),
        ("nothing left", "{ name = \"a\", size = \"8 MiB\" }, { name = \"b\" }", 10 * MIB, 512, Err("need 9.0 MiB")),
        ("too much", "{ name = \"a\", size = \"16777215 TiB\" }", 10 * MIB, 512, Err("is too small for the layout")),
        ("no drive at all", "{ name = \"a\" }", 0, 512, Err("has 0 B for them")),
        ("strange blocks", "{ name = \"a\" }", GIB, 520, Err("blocks of 520 bytes")),
        ("an ESP", "{ name = \"a\", kind = \"esp\", size = \"33 MiB\" }", GIB, 512, Err("has 34.0 MiB at least")),
        ("of 4096", "{ name = \"a\", kind = \"esp\", size = \"128 MiB\" }", GIB, 4096, Err("has 260.0 MiB at least")),
    ] {
        let got = place(&drive(text), bytes, block).map(|extents| mib(&extents)).map_err(|e| e.to_string());
        match (&got, want) {
            (Ok(got), Ok(want)) => assert_eq!(*got, want, "{name}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
    }
}

proptest! {
    #[test]
    fn partitions_never_overlap_and_stay_inside(
        sizes in proptest::collection::vec(prop_oneof![
            (1u64..1 << 40).prop_map(Amount::Bytes),
            (1u8..=100).prop_map(Amount::Percent),
            Just(Amount::Rest),
        ], 1..12),
        bytes in 0u64..4 << 40,
        block in prop_oneof![Just(512u32), Just(4096)],
    ) {
        let partitions = sizes.iter().enumerate().map(|(n, size)| {
            Partition { name: n.to_string(), size: Some(*size), kind: Kind::Linux }
        });
        let drive = Drive { name: "d".into(), select: Select::default(), keep: false, partitions: partitions.collect() };
        let mut found = Findings::default();
        drive.check(&mut found);
        prop_assume!(found.verdict().is_ok());
        if let Ok(extents) = place(&drive, bytes, block) {
            let mut end = MIB;
            for extent in extents {
                prop_assert!(extent.start == end && extent.bytes > 0 && extent.bytes.is_multiple_of(MIB));
                end += extent.bytes;
            }
            prop_assert!(end + MIB <= bytes);
        }
    }

    /// What nobody would write is a sentence like everything else.
    #[test]
    fn any_text_is_a_layout_or_a_sentence(text in ".{0,200}") {
        if let Ok(layout) = toml::from_str::<Layout>(&text) {
            let _ = layout.check();
        }
    }
}

fn needs(root_bytes: u64) -> Needs {
    Needs { root_bytes, disk_bytes: 0 }
}

#[test]
fn each_drive_of_the_layout_is_one_of_the_machine() {
    let two = "drive = [{ name = \"a\", partitions = [{ name = \"x\" }] }, { name = \"b\", SELECT partitions = [{ name = \"y\" }] }]
               filesystem = [{ on = \"a/x\", format = \"ext4\", mount = \"/\" }]";
    let select = |select: &str| layout(&two.replace("SELECT", select));
    let fast = |serial: &str, size| disk(serial, size);
    let slow = |serial: &str, size| Disk {
        bus: Bus::Ata,
        rotational: true,
        model: Some("WDC WD40".into()),
        ..disk(serial, size)
    };
    let disks = || vec![slow("S1", 4000 * GIB), fast("F2", 20 * GIB), fast("F1", 10 * GIB), slow("S2", 8000 * GIB)];
    for (name, layout, disks, root, want) in [
        ("the smallest first", select(""), disks(), GIB, Ok([("a", "F1"), ("b", "F2")])),
        ("the largest", select("select.prefer = \"largest\","), disks(), GIB, Ok([("a", "F1"), ("b", "S2")])),
        ("by kind", select("select.rotational = true,"), disks(), GIB, Ok([("a", "F1"), ("b", "S1")])),
        ("by bus", select("select.bus = \"ata\","), disks(), GIB, Ok([("a", "F1"), ("b", "S1")])),
        ("by model", select("select.model = \"wdc*\","), disks(), GIB, Ok([("a", "F1"), ("b", "S1")])),
        (
            "by serial, which another took",
            select("select.serial = \"F1\","),
            disks(),
            GIB,
            Ok([("a", "F2"), ("b", "F1")]),
        ),
        ("by size", select("select.min_size = \"5 TiB\","), disks(), GIB, Ok([("a", "F1"), ("b", "S2")])),
        ("at most", select("select.max_size = \"15 GiB\","), disks(), GIB, Ok([("a", "F2"), ("b", "F1")])),
        ("a large image", select(""), disks(), 15 * GIB, Ok([("a", "F2"), ("b", "F1")])),
        (
            "too large an image",
            select(""),
            vec![fast("F1", 10 * GIB), fast("F2", 9 * GIB)],
            15 * GIB,
            Err("the image needs 15.0 GiB"),
        ),
        ("too few", select(""), vec![fast("F1", 10 * GIB)], GIB, Err("disk F1 (10737418240 bytes) is needed as \"a\"")),
        ("none", select(""), vec![], GIB, Err("to be the layout's \"a\": it has none that can be installed on")),
        (
            "no such serial",
            select("select.serial = \"X\","),
            disks(),
            GIB,
            Err("disk S1 (4294967296000 bytes) has another serial"),
        ),
        (
            "no such kind",
            select("select.rotational = true,"),
            vec![fast("F1", GIB * 9), fast("F2", GIB * 9)],
            GIB,
            Err("doesn't rotate"),
        ),
        (
            "on USB",
            select(""),
            vec![Disk { bus: Bus::Usb, ..fast("U", GIB * 9) }, fast("F", GIB * 9)],
            GIB,
            Err("is needed as \"a\""),
        ),
        (
            "read-only",
            select(""),
            vec![Disk { read_only: true, ..fast("R", GIB * 9) }, fast("F", GIB * 9)],
            GIB,
            Err("is read-only"),
        ),
    ] {
        let got = layout.choose(&disks, needs(root));
        match (got, want) {
            (Ok(got), Ok(want)) => {
                let got: BTreeMap<&str, &str> =
                    got.iter().map(|(name, id)| (name.as_str(), id.serial.as_str())).collect();
                assert_eq!(got, BTreeMap::from(want), "{name}");
            }
            (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{name}: {got}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
    }
    let large = Needs { disk_bytes: 15 * GIB, ..needs(GIB) };
    let chosen = Layout::single(None).choose(&disks(), large).map(|chosen| chosen[SYSTEM].serial.clone());
    assert_eq!(chosen, Ok("F2".to_owned()), "an image for large disks");
    // The one that is named, with spaces as labels have them, and no other.
    let single = Layout::single(Some(" F2 "));
    assert_eq!(single.choose(&disks(), needs(GIB)).map(|chosen| chosen[SYSTEM].serial.clone()), Ok("F2".to_owned()));
}

#[test]
fn firmware_finds_what_it_starts() {
    use FirmwareKind::{Bios, Uefi};
    let boot = DATA
        .replace("{ name = \"esp\", kind = \"esp\" }, { name = \"root\", size = \"20 GiB\" }", "BOOT")
        .replace("BOOT", "{ name = \"bios\", kind = \"bios\" }, { name = \"x\", size = \"1 MiB\" }, { name = \"boot\", size = \"1 GiB\" }, { name = \"root\", size = \"20 GiB\" }")
        .replace("filesystem = [", "filesystem = [ { on = \"first/boot\", format = \"ext4\", mount = \"/boot\" },");
    for (name, layout, firmware, want) in [
        ("the ordinary one", Layout::single(None), Bios, Ok((vec![SYSTEM], None))),
        ("the same by UEFI", Layout::single(None), Uefi, Ok((vec![SYSTEM], None))),
        ("a mirror", layout(MIRRORED), Bios, Ok((vec!["a", "b"], Some("root")))),
        ("a mirror by UEFI", layout(MIRRORED), Uefi, Ok((vec!["a", "b"], None))),
        ("stripes", layout(&MIRRORED.replace("level = 1", "level = 0")), Bios, Err("third partition")),
        ("stripes by UEFI", layout(&MIRRORED.replace("level = 1", "level = 0")), Uefi, Ok((vec!["a", "b"], None))),
        ("the second partition", layout(DATA), Bios, Err("third partition")),
        ("the same by UEFI", layout(DATA), Uefi, Ok((vec!["first"], None))),
        ("/boot apart", layout(&boot), Bios, Ok((vec!["first"], None))),
        ("without an ESP", layout(&boot), Uefi, Err("no drive of the layout has a partition with kind = \"esp\"")),
        ("an xfs", layout(&MIRRORED.replace("ext4", "xfs")), Bios, Err("give /boot an ext4 of its own")),
    ] {
        assert_eq!(layout.check(), Ok(()), "{name}");
        let got = layout
            .start(firmware)
            .map(|start| (start.from.iter().map(|drive| drive.name.as_str()).collect::<Vec<_>>(), start.plain_to_grub));
        match (&got, want) {
            (Ok(got), Ok(want)) => assert_eq!(*got, want, "{name}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
    }
}

#[test]
fn mounts_come_behind_what_they_lie_in() {
    let mut places = ["/var/lib", "/srv", "/var", "/", "/a/b/c"];
    places.sort_by_key(|place| mounting_order(place));
    assert_eq!(places, ["/", "/srv", "/var", "/var/lib", "/a/b/c"]);
}
