use drophammer_protocol::layout::{Raid, Select, Volume, VolumeGroup};
use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn found(name: &str, kernel_name: &str, bytes: u64) -> Found {
    Found { name: name.into(), kernel_name: kernel_name.into(), geometry: Geometry { bytes, logical_block: 512 } }
}

fn planned(layout: &Layout, found: &[Found], firmware: FirmwareKind) -> Result<Plan, String> {
    let (seed, tools) = (Seed::of(&["test"]), mkfs::Tools::find());
    plan(layout, found, &Circumstances { firmware, seed: &seed, hostname: "web1", now: 0, tools: &tools })
}

/// Two drives with a mirror for the system, and a volume group on what is left of the first.
fn mirrored() -> Layout {
    let partition = |name: &str, size: Option<Amount>, kind| layout::Partition { name: name.into(), size, kind };
    let drive = |name: &str, more: Option<&str>| layout::Drive {
        name: name.into(),
        select: Select::default(),
        keep: false,
        partitions: [
            partition("bios", None, Kind::Bios),
            partition("esp", None, Kind::Esp),
            partition("root", Some(Amount::Bytes(4 * GIB)), Kind::Linux),
        ]
        .into_iter()
        .chain(more.map(|name| partition(name, Some(Amount::Rest), Kind::Linux)))
        .collect(),
    };
    let filesystem = |on: &str, format, mount: &str| Filesystem {
        on: Some(on.into()),
        format,
        mount: Some(mount.into()),
        label: None,
        options: vec![],
        create_options: vec![],
    };
    let volume = |name: &str, size| Volume { name: name.into(), size, spread: Spread::Linear };
    Layout {
        drives: vec![drive("a", Some("pv")), drive("b", None)],
        raids: vec![Raid {
            name: "root".into(),
            level: 1,
            devices: vec!["a/root".into(), "b/root".into()],
            spares: vec![],
        }],
        groups: vec![VolumeGroup {
            name: "vg".into(),
            devices: vec!["a/pv".into()],
            tags: vec![],
            volumes: vec![volume("srv", Amount::Percent(50)), volume("more-data", Amount::Rest)],
        }],
        encrypted: vec![],
        filesystems: vec![
            filesystem("root", layout::Format::Ext4, "/"),
            filesystem("vg/srv", layout::Format::Ext4, "/srv"),
            filesystem("vg/more-data", layout::Format::Ext4, "/data"),
        ],
    }
}

fn drives() -> Vec<Found> {
    vec![found("a", "nvme0n1", 20 * GIB), found("b", "sdb", 10 * GIB)]
}

pub(in crate::install) fn mirrored_plan(firmware: FirmwareKind) -> Plan {
    planned(&mirrored(), &drives(), firmware).expect("fits")
}

#[test]
fn from_drives_to_file_systems() {
    let plan = planned(&mirrored(), &drives(), FirmwareKind::Uefi).expect("fits");
    let roles = |table: &Table| table.partitions.iter().map(|p| (p.number, p.role)).collect::<Vec<_>>();
    let (a, b) = (&plan.tables[0], &plan.tables[1]);
    assert!(matches!(roles(a)[..], [(1, Role::BiosBoot), (2, Role::Esp(_)), (3, Role::Raid), (4, Role::Lvm)]), "{a}");
    assert!(matches!(roles(b)[..], [(1, Role::BiosBoot), (2, Role::Esp(_)), (3, Role::Raid)]), "{b}");
    assert!(a.starts && b.starts, "each can start the machine when the other is gone");
    let paths: Vec<_> = plan.arrays[0].1.writes.iter().map(|writes| writes.path.to_str().expect("text")).collect();
    assert_eq!(paths, ["/dev/nvme0n1p3", "/dev/sdb3"]);
    assert_eq!(plan.arrays[0].1.metadata, md::Metadata::V1_2);
    assert_eq!(plan.root().on, "root");
    assert!(plan.root().bytes < 4 * GIB && plan.root().bytes > 3 * GIB, "{}", plan.root().bytes);
    assert_eq!(plan.root_argument(true), Ok(format!("root=UUID={}", plan.root().format.uuid())));
    assert!(plan.root_argument(false).is_err_and(|e| e.contains("on a partition only, not on root")));
    let sizes: Vec<u64> = plan.made.iter().map(|made| made.bytes / GIB).collect();
    assert_eq!(sizes, [3, 7, 7], "half of the group each");
    assert!(!plan.divides_image(), "nothing of the image belongs into /srv");

    // What a BIOS's GRUB reads has no superblock in front of it.
    let plan = planned(&mirrored(), &drives(), FirmwareKind::Bios).expect("fits");
    assert_eq!(plan.arrays[0].1.metadata, md::Metadata::V1_0);

    let mut on_a_volume = mirrored();
    on_a_volume.filesystems[0].mount = Some("/var".into());
    on_a_volume.filesystems[2].mount = Some("/".into());
    let plan = planned(&on_a_volume, &drives(), FirmwareKind::Uefi).expect("fits");
    assert_eq!(plan.root_argument(true), Ok("root=/dev/mapper/vg-more--data".into()));
    assert!(plan.divides_image(), "/var is full in every image");
}

#[test]
fn what_does_not_fit_is_said_before_anything_is_touched() {
    let change = |change: &dyn Fn(&mut Layout)| {
        let mut layout = mirrored();
        change(&mut layout);
        layout
    };
    let small = || vec![found("a", "nvme0n1", 20 * GIB), found("b", "sdb", 3 * GIB)];
    let large_blocks = || {
        let mut drives = drives();
        drives.iter_mut().for_each(|drive| drive.geometry.logical_block = 4096);
        drives
    };
    for (name, layout, drives, firmware, want) in [
        ("too small a drive", mirrored(), small(), FirmwareKind::Uefi, "the drive \"b\" is too small for the layout"),
        (
            "a drive missing",
            mirrored(),
            vec![small().remove(0)],
            FirmwareKind::Uefi,
            "doesn't say which drive is \"b\"",
        ),
        (
            "a BIOS and 4096",
            mirrored(),
            large_blocks(),
            FirmwareKind::Bios,
            "can't start from a disk with blocks of 4096",
        ),
        (
            "too large a volume",
            change(&|l| l.groups[0].volumes[0].size = Amount::Bytes(100 * GIB)),
            drives(),
            FirmwareKind::Uefi,
            "the logical volume \"srv\" doesn't fit into the volume group \"vg\"",
        ),
        (
            "a name that LVM keeps to itself",
            change(&|l| {
                l.groups[0].volumes[0].name = "snapshot1".into();
                l.filesystems[1].on = Some("vg/snapshot1".into());
            }),
            drives(),
            FirmwareKind::Uefi,
            "\"snapshot1\" can't be the name of a logical volume",
        ),
        (
            "an unknown option",
            change(&|l| l.filesystems[1].create_options = vec!["--version".into()]),
            drives(),
            FirmwareKind::Uefi,
            "the file system on vg/srv: the create option \"--version\" isn't known here",
        ),
        ("nonsense", change(&|l| l.raids[0].level = 5), drives(), FirmwareKind::Uefi, "the layout can't be: raid.root"),
    ] {
        let got = planned(&layout, &drives, firmware).map(|plan| plan.to_string());
        assert!(got.as_ref().is_err_and(|got| got.contains(want)), "{name}: {got:?}");
    }
}

#[test]
fn names_come_from_the_seed_alone() {
    let tools = mkfs::Tools::find();
    let with = |parts: &[&str]| {
        let around = Circumstances {
            firmware: FirmwareKind::Uefi,
            seed: &Seed::of(parts),
            hostname: "web1",
            now: 0,
            tools: &tools,
        };
        plan(&mirrored(), &drives(), &around).expect("fits")
    };
    assert_eq!(with(&["a", "b"]), with(&["a", "b"]), "a rerun is identical");
    assert_ne!(with(&["a", "b"]).root().format, with(&["ab", ""]).root().format, "parts don't run together");
    let plan = with(&["a", "b"]);
    let mut names: Vec<String> = plan.made.iter().map(|made| made.format.uuid()).collect();
    names.extend(plan.tables.iter().flat_map(|table| &table.partitions).map(|partition| partition.guid.to_string()));
    names.extend(plan.tables.iter().map(|table| table.guid.to_string()));
    names.push(plan.arrays[0].1.uuid.to_string());
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "no name is used twice");
}

#[test]
fn the_ordinary_one() {
    for (name, bytes, logical_block, firmware, want) in [
        ("a small virtual disk", 256 * MIB, 512, FirmwareKind::Bios, Ok((2048, 4096, 135_168))),
        ("a real one", 1_920_383_410_176, 512, FirmwareKind::Uefi, Ok((2048, 4096, 528_384))),
        ("4096-byte blocks", GIB, 4096, FirmwareKind::Uefi, Ok((256, 512, 82_432))),
        ("which a BIOS can't start", GIB, 4096, FirmwareKind::Bios, Err("blocks of 4096 bytes")),
        ("other blocks", GIB, 520, FirmwareKind::Uefi, Err("blocks of 520 bytes")),
        ("an empty disk", 0, 512, FirmwareKind::Uefi, Err("it has 0 B for them")),
    ] {
        let first = |plan: Plan| {
            let starts: Vec<u64> = plan.tables[0].partitions.iter().map(|partition| partition.first).collect();
            (starts[0], starts[1], starts[2])
        };
        match (ordinary(bytes, logical_block, firmware).map(first), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tables_are_whole_blocks_inside_the_drive(bytes in 0u64..40_000_000_000_000, four_k in any::<bool>()) {
        let logical_block = if four_k { 4096 } else { 512 };
        if let Ok(plan) = ordinary(bytes, logical_block, FirmwareKind::Uefi) {
            let table = &plan.tables[0];
            let mut free_from = MIB;
            for partition in &table.partitions {
                let start = table.start_bytes(partition);
                prop_assert!(start.is_multiple_of(MIB) && start >= free_from && partition.last >= partition.first);
                free_from = (partition.last + 1) * u64::from(logical_block);
            }
            // Backup header and 128 entries of 128 bytes.
            prop_assert!(free_from + MIB <= bytes);
        }
    }
}
