//! Beside `lvm2`: what it writes and what it reads.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::existing::{Device, Existing, Found, device, groups};
use super::mapping::Unusable;
use super::*;

const GIB: u64 = 1 << 30;

/// What `lvcreate` of Debian 12 wrote: `varlib`, `str`, `mir` with --nosync, and `mir2` on what was left.
const THEIRS: &str = include_str!("lvm2-2.03.16.txt");

fn member(number: usize, bytes: u64) -> Member {
    let uuid = Uuid::from_u128(100 + number as u128);
    Member { path: format!("/dev/sd{number}").into(), bytes, uuid }
}

fn volume(name: &str, size: Size, layout: Layout) -> WantedVolume {
    let uuid = name.bytes().fold(1, |sum, byte| sum * 257 + u128::from(byte));
    WantedVolume { name: name.to_owned(), uuid: Uuid::from_u128(uuid), size, layout }
}

fn wanted(sizes: &[u64], volumes: Vec<WantedVolume>) -> Wanted {
    Wanted {
        uuid: Uuid::from_u128(7),
        name: "csi-lvm".to_owned(),
        tags: vec!["nvme".to_owned(), "a/b".to_owned()],
        host: "(none)".to_owned(),
        created: 1_800_000_000,
        members: sizes.iter().enumerate().map(|(number, bytes)| member(number, *bytes)).collect(),
        volumes,
        contents: Contents::Same,
    }
}

/// Of every layout one, on two devices.
fn every_layout() -> Wanted {
    wanted(
        &[GIB, GIB],
        vec![
            volume("varlib", Size::Bytes(20 * MIB), Layout::Linear),
            volume("str", Size::Bytes(21 * MIB), Layout::Striped),
            volume("all", Size::Rest, Layout::Linear),
            volume("mir", Size::Bytes(24 * MIB), Layout::Raid1),
        ],
    )
}

/// Without what is different each time.
fn settled(text: &str) -> Vec<String> {
    let changing = ["creation_", "description", "#"];
    let lines = text.lines().filter(|line| !changing.iter().any(|start| line.starts_with(start)));
    lines.map(|line| line.split_once('\t').map_or(line, |(line, _)| line).to_owned()).collect()
}

#[test]
fn metadata_of_lvm2_are_understood_and_written_as_it_does() {
    let group = VolumeGroup::parse(THEIRS).expect("a volume group");
    assert_eq!((group.name.as_str(), group.sequence, group.tags.len()), ("csi-lvm", 7, 2));
    let origin = Origin { host: "(none)".to_owned(), created: 1_795_325_440 };
    assert_eq!(settled(&group.to_text(&origin)), settled(THEIRS));
    for line in ["creation_time = 1795325440", "creation_host = \"(none)\""] {
        assert!(group.to_text(&origin).contains(line), "{line}");
    }
}

#[test]
fn the_same_label_and_header_as_lvm2() {
    // The first sector with anything in it, and the metadata area's, as far as there is anything.
    let label = "4c4142454c4f4e4501000000000000008b29a732200000004c564d32203030314f517243374c475349316f38354f4f4450374f334b714e\
        4243657349697952410000800c0000000000001000000000000000000000000000000000000000000000000000000000000010000000000000\
        00f00f0000000000000000000000000000000000000000000200000001000000";
    let header = "c4e9ba97204c564d3220785b35412572304e2a3e01000000001000000000000000f00f00000000000040000000000000a911000000000000\
        7698330c00000000";
    let bytes = |hex: &str| {
        let mut bytes = hex::decode(hex).expect("hex");
        bytes.resize(512, 0);
        bytes
    };
    let said = area::read_label(&bytes(label), 512).expect("a label");
    assert_eq!(said.id.to_string(), "OQrC7L-GSI1-o85O-ODP7-O3Kq-NBCe-sIiyRA");
    let ours = area::to_bytes(said.id, 200 * MIB, "text").expect("fits");
    assert_eq!(ours[512..1024], bytes(label));
    let place = area::read_area(&bytes(header), said.areas[0]).expect("an area").expect("a text");
    assert_eq!(place.parts, [(4096 + 16384, 4521)]);
    let stored = [THEIRS.as_bytes(), &[0]].concat();
    assert_eq!(area::read_text(&place, &stored).as_deref(), Ok(THEIRS), "its checksum");
}

#[test]
fn tables_are_those_of_lvm2() {
    let group = VolumeGroup::parse(THEIRS).expect("a volume group");
    // As `dmsetup table` had them; the physical volumes were 254:32 and 254:48, and mappings were numbered as they were made.
    for (name, first, want) in [
        ("varlib", 0, vec!["csi--lvm-varlib: 0 40960 linear 254:32 2048"]),
        ("str", 1, vec!["csi--lvm-str: 0 49152 striped 2 128 254:32 43008 254:48 2048"]),
        (
            "mir",
            2,
            vec![
                "csi--lvm-mir_rmeta_0: 0 8192 linear 254:32 67584",
                "csi--lvm-mir_rimage_0: 0 49152 linear 254:32 75776",
                "csi--lvm-mir_rmeta_1: 0 8192 linear 254:48 26624",
                "csi--lvm-mir_rimage_1: 0 49152 linear 254:48 34816",
                "csi--lvm-mir: 0 49152 raid raid1 4 0 nosync region_size 4096 2 253:2 253:3 253:4 253:5",
            ],
        ),
        (
            "mir2",
            7,
            vec![
                "csi--lvm-mir2_rmeta_0: 0 8192 linear 254:48 83968",
                "csi--lvm-mir2_rimage_0: 0 270336 linear 254:48 92160",
                "csi--lvm-mir2_rmeta_1: 0 8192 linear 254:32 124928",
                "csi--lvm-mir2_rimage_1: 0 270336 linear 254:32 133120",
                "csi--lvm-mir2: 0 270336 raid raid1 3 0 region_size 4096 2 253:7 253:8 253:9 253:10",
            ],
        ),
    ] {
        let volume = group.logical.iter().find(|logical| logical.name == name).expect(name);
        let mappings = mappings(&group, volume).expect(name);
        let number = |below: Below| match below {
            Below::Mapping(place) => Some((253, first + place as u64)),
            Below::Physical(id) if id == group.physical[0].id => Some((254, 32)),
            Below::Physical(_) => Some((254, 48)),
        };
        let lines: Vec<String> = mappings
            .iter()
            .flat_map(|mapping| {
                let table = mapping.table(false, number).expect("all there");
                table.into_iter().map(|row| {
                    format!("{}: {} {} {} {}", mapping.name, row.start, row.length, row.kind, *row.parameters)
                })
            })
            .collect();
        assert_eq!(lines, want, "{name}");
    }
    let mirror = group.logical.iter().find(|logical| logical.name == "mir2").expect("there");
    let mappings = mappings(&group, mirror).expect("fine");
    let last = mappings.last().expect("the mirror");
    assert_eq!(last.uuid, "LVM-JHLu0HhMv03duCjiOKMVDdLFaGmabSQ7V7fn27XmMbLcN52cxSRO1VXBPM4wgWB1");
    let slowly = last.table(true, |_| Some((8, 1))).expect("a table");
    let parameters = "raid1 7 0 region_size 4096 min_recovery_rate 1 max_recovery_rate 1 2 8:1 8:1 8:1 8:1";
    assert_eq!(*slowly[0].parameters, parameters);
    assert!(last.table(true, |_| None).is_none());
}

/// A file with everything that is written to a physical volume.
fn file(writes: &Writes) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(writes.bytes).expect("sparse");
    for (offset, length) in &writes.zeros {
        file.as_file().write_all_at(&vec![0; *length], *offset).expect("zeros");
    }
    for piece in &writes.pieces {
        file.as_file().write_all_at(&piece.bytes, piece.offset).expect("written");
    }
    file
}

/// Runs a program of lvm2, which has no kernel to ask, and returns what it said on both channels.
fn lvm(arguments: &[&str], last: &Path) -> (bool, String) {
    let mut command = Command::new("lvm");
    let output = command.args(arguments).arg(last).env("LVM_SUPPRESS_FD_WARNINGS", "1").output();
    let output = output.expect("lvm runs; it is in the Debian package lvm2");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), said)
}

#[test]
fn pvck_reads_it() {
    for contents in [Contents::Same, Contents::Unknown] {
        let plan = plan(&Wanted { contents, ..every_layout() }).expect("fits");
        for (writes, physical) in plan.writes.iter().zip(&plan.group.physical) {
            let file = file(writes);
            let (fine, said) = lvm(&["pvck", "--driverloaded", "n", "--dump", "headers"], file.path());
            assert!(fine, "{said}");
            let id = physical.id.to_string().replace('-', "");
            for want in [
                "label_header at 512".to_owned(),
                format!("pv_header.pv_uuid {id}\n"),
                format!("pv_header.device_size {GIB}\n"),
                "disk_locn[0].offset 1048576\n".to_owned(),
                "disk_locn[2].size 1044480\n".to_owned(),
                "pv_header_extension.flags 1\n".to_owned(),
                "mda_header_1.raw_locn[0].offset 512\n".to_owned(),
                "# vgname csi-lvm seqno 1".to_owned(),
            ] {
                assert!(said.contains(&want), "{want:?} in {said}");
            }
            for wrong in ["CHECK:", "WARNING: invalid", "bad", "mismatch"] {
                assert!(!said.contains(wrong), "{wrong:?} in {said}");
            }
            let (fine, said) = lvm(&["pvck", "--driverloaded", "n", "--dump", "metadata"], file.path());
            let origin = Origin { host: "(none)".to_owned(), created: 1_800_000_000 };
            assert!(fine && said.contains(plan.group.to_text(&origin).trim_end()), "{said}");
        }
    }
}

/// A file as a block device, for as long as this lives.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let output = output.expect("losetup runs; it is in the Debian package mount");
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays attached", self.0);
    }
}

/// Only root gets block devices; for everybody else there is `pvck`, which reads files.
#[test]
fn lvs_finds_nothing_wrong() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let plan = plan(&every_layout()).expect("fits");
    let files: Vec<NamedTempFile> = plan.writes.iter().map(file).collect();
    let loops: Vec<Loop> = files.iter().map(|file| Loop::new(file.path())).collect();
    let filter: Vec<String> = loops.iter().map(|device| format!("\"a|^{}$|\"", device.0)).collect();
    let config = format!(
        "devices {{ use_devicesfile=0 filter=[{}, \"r|.*|\"] }} backup {{ backup=0 archive=0 }}",
        filter.join(",")
    );
    let ask = |command: &str, columns: &str| {
        let mut arguments = vec![command, "--driverloaded", "n", "--config", &config];
        if command != "vgck" {
            arguments.extend(["--noheadings", "--separator", "|", "--units", "m", "-o", columns]);
        }
        if command == "lvs" {
            arguments.push("-a");
        }
        let mut lvm = Command::new("lvm");
        let output = lvm.args(&arguments).env("LVM_SUPPRESS_FD_WARNINGS", "1").output().expect("lvm runs");
        assert!(output.status.success(), "{output:?}");
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        let activation = |line: &&str| !line.contains("Activation disabled");
        assert_eq!(complaints.lines().find(activation), None, "{command}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.lines().map(|line| line.trim().replace(&loops[0].0, "A").replace(&loops[1].0, "B")).collect::<Vec<_>>()
    };
    assert_eq!(ask("vgck", ""), Vec::<String>::new());
    let group = &plan.group;
    assert_eq!(
        ask("vgs", "vg_name,vg_uuid,vg_tags,vg_seqno,vg_free_count,pv_count"),
        [format!("csi-lvm|{}|a/b,nvme|1|0|2", group.id)]
    );
    let physical = ask("pvs", "pv_name,pv_uuid,pv_pe_count,pv_pe_alloc_count");
    assert_eq!(
        physical,
        [format!("A|{}|255|255", group.physical[0].id), format!("B|{}|255|255", group.physical[1].id)]
    );
    let mut volumes = ask("lvs", "lv_name,lv_uuid,lv_size,segtype,devices");
    volumes.sort();
    let id = |name: &str| group.logical.iter().find(|logical| logical.name == name).expect(name).id;
    let mut want = Vec::new();
    for (name, rest) in [
        ("varlib", "20.00m|linear|A(0)"),
        ("str", "24.00m|striped|A(5),B(0)"),
        ("mir", "24.00m|raid1|mir_rimage_0(0),mir_rimage_1(0)"),
        ("all", "1940.00m|linear|A(15)"),
        ("all", "1940.00m|linear|B(10)"),
    ] {
        want.push(format!("{name}|{}|{rest}", id(name)));
    }
    for (name, rest) in [
        ("mir_rimage_0", "24.00m|linear|B(4)"),
        ("mir_rmeta_0", "4.00m|linear|B(3)"),
        ("mir_rimage_1", "24.00m|linear|A(9)"),
        ("mir_rmeta_1", "4.00m|linear|A(8)"),
    ] {
        want.push(format!("[{name}]|{}|{rest}", id(name)));
    }
    want.sort();
    assert_eq!(volumes, want);
}

/// Each segment of a volume as `name: first + extents on pv from, …`.
fn segments(group: &VolumeGroup) -> Vec<String> {
    let mut lines = Vec::new();
    for logical in &group.logical {
        for segment in &logical.segments {
            let on = match &segment.kind {
                Kind::Striped { stripes, .. } => {
                    let stripes: Vec<String> = stripes.iter().map(|(name, first)| format!("{name} {first}")).collect();
                    stripes.join(", ")
                }
                Kind::Raid1 { copies, .. } => format!("{} copies", copies.len()),
                Kind::Other(kind) => kind.clone(),
            };
            lines.push(format!("{}: {}+{} on {on}", logical.name, segment.first, segment.extents));
        }
    }
    lines
}

#[test]
fn extents_are_dealt_out() {
    use Layout::{Linear, Raid1, Striped};
    let extents = |n: u64| MIB + n * EXTENT;
    let size = |n: u64| Size::Bytes(n * EXTENT);
    for (name, sizes, volumes, want) in [
        (
            "a partly used extent at the end is lost",
            vec![extents(3) - 1],
            vec![volume("a", Size::Rest, Linear)],
            vec!["a: 0+2 on pv0 0"],
        ),
        (
            "a part of an extent is a whole one",
            vec![extents(9)],
            vec![volume("a", Size::Bytes(1), Linear)],
            vec!["a: 0+1 on pv0 0"],
        ),
        (
            "over several",
            vec![extents(2), extents(3)],
            vec![volume("a", size(4), Linear), volume("b", Size::Rest, Linear)],
            vec!["a: 0+2 on pv0 0", "a: 2+2 on pv1 0", "b: 0+1 on pv1 2"],
        ),
        (
            "the rest comes last, wherever it stands",
            vec![extents(5)],
            vec![volume("a", Size::Rest, Linear), volume("b", size(2), Linear)],
            vec!["a: 0+3 on pv0 2", "b: 0+2 on pv0 0"],
        ),
        (
            "stripes are even",
            vec![extents(10), extents(4), extents(10)],
            vec![volume("a", size(4), Striped), volume("b", Size::Rest, Striped), volume("c", size(3), Linear)],
            vec!["a: 0+6 on pv0 0, pv1 0, pv2 0", "b: 0+6 on pv0 5, pv1 2, pv2 2", "c: 0+3 on pv0 2"],
        ),
        (
            "with one device everything is linear",
            vec![extents(5)],
            vec![volume("a", size(2), Striped), volume("b", Size::Rest, Raid1)],
            vec!["a: 0+2 on pv0 0", "b: 0+3 on pv0 2"],
        ),
        (
            "the two largest make a mirror, the smaller gives its size",
            vec![extents(2), extents(5), extents(6)],
            vec![volume("a", Size::Rest, Raid1)],
            vec![
                "a: 0+5 on 2 copies",
                "a_rmeta_0: 0+1 on pv2 0",
                "a_rimage_0: 0+5 on pv2 1",
                "a_rmeta_1: 0+1 on pv1 0",
                "a_rimage_1: 0+4 on pv1 1",
                "a_rimage_1: 4+1 on pv0 0",
            ],
        ),
        (
            "a mirror of four",
            vec![extents(3); 4],
            vec![volume("a", size(4), Raid1)],
            vec![
                "a: 0+4 on 2 copies",
                "a_rmeta_0: 0+1 on pv0 0",
                "a_rimage_0: 0+2 on pv0 1",
                "a_rimage_0: 2+2 on pv2 0",
                "a_rmeta_1: 0+1 on pv1 0",
                "a_rimage_1: 0+2 on pv1 1",
                "a_rimage_1: 2+2 on pv3 0",
            ],
        ),
    ] {
        let plan = plan(&wanted(&sizes, volumes)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(segments(&plan.group), want, "{name}");
    }
}

#[test]
fn what_does_not_fit_is_said() {
    use Layout::{Linear, Raid1, Striped};
    let with = |volumes| wanted(&[GIB, GIB / 2], volumes);
    let named = |name: &str| Wanted { name: name.to_owned(), ..with(vec![]) };
    let gib = |name: &str, gib, layout| volume(name, Size::Bytes(gib * GIB), layout);
    for (name, wanted, want) in [
        (
            "linear",
            with(vec![gib("a", 1, Linear), gib("b", 1, Linear)]),
            "the logical volume \"b\" doesn't fit into the volume group \"csi-lvm\": it needs 1.0 GiB, and 504.0 MiB are free",
        ),
        (
            "striped",
            with(vec![gib("a", 2, Striped)]),
            "the logical volume \"a\" doesn't fit into the volume group \"csi-lvm\": it needs 1.0 GiB on each of 2 sets of \
             devices, and 508.0 MiB are free",
        ),
        (
            "mirrored",
            with(vec![gib("a", 1, Raid1)]),
            "the logical volume \"a\" doesn't fit into the volume group \"csi-lvm\": it needs 1.0 GiB on each of 2 sets of \
             devices, and 508.0 MiB are free",
        ),
        (
            "no rest",
            with(vec![volume("a", Size::Bytes(1528 * MIB - 2 * EXTENT), Linear), volume("b", Size::Rest, Raid1)]),
            "the logical volume \"b\" doesn't fit into the volume group \"csi-lvm\": it needs 8.0 MiB on each of 2 sets of \
             devices, and nothing is free",
        ),
        (
            "more than there can be",
            with(vec![volume("a", Size::Bytes(u64::MAX), Raid1)]),
            "the logical volume \"a\" doesn't fit into the volume group \"csi-lvm\": it needs 16777215.9 TiB on each of 2 sets \
             of devices, and 508.0 MiB are free",
        ),
        (
            "two rests",
            with(vec![volume("a", Size::Rest, Linear), volume("b", Size::Rest, Linear)]),
            "the logical volumes \"a\" and \"b\" are both to have the rest of the volume group \"csi-lvm\"",
        ),
        ("no size", with(vec![volume("a", Size::Bytes(0), Linear)]), "the logical volume \"a\" has no size"),
        (
            "twice the same name",
            with(vec![gib("a", 1, Linear), gib("a", 1, Linear)]),
            "the volume group \"csi-lvm\" has two logical volumes \"a\"",
        ),
        ("no devices", wanted(&[], vec![]), "the volume group \"csi-lvm\" has no devices"),
        (
            "small",
            wanted(&[GIB, 5 * MIB - 1], vec![]),
            "/dev/sd1 has 4.9 MiB, too few for the volume group \"csi-lvm\": 1 MiB is for LVM's own use, and the rest is used in \
             pieces of 4 MiB",
        ),
        ("large", wanted(&[u64::MAX], vec![]), "/dev/sd0 is larger than LVM can count"),
        (
            "twice the same device",
            Wanted { members: vec![member(0, GIB), member(0, GIB)], ..with(vec![]) },
            "/dev/sd0 is in the volume group \"csi-lvm\" twice",
        ),
        (
            "tag",
            Wanted { tags: vec!["a b".to_owned()], ..with(vec![]) },
            "\"a b\" can't be a tag of the volume group \"csi-lvm\": it takes letters, digits and the characters _+.-/=!:#&",
        ),
    ] {
        assert_eq!(plan(&wanted).expect_err(name).to_string(), want, "{name}");
    }
    for name in ["", "-a", ".", "..", "a/b", "a b", "ä", &"a".repeat(56), &"-a".repeat(20)] {
        assert!(matches!(plan(&named(name)), Err(Misfit::Name { what: "volume group", .. })), "{name}");
    }
    for name in ["-a", "snapshot1", "pvmove0", "a_rmeta_0", "a_tdata", "x_vdata"] {
        let wanted = with(vec![volume(name, Size::Rest, Linear)]);
        assert!(matches!(plan(&wanted), Err(Misfit::Name { what: "logical volume", .. })), "{name}");
    }
    let many = (0..4000).map(|n| volume(&format!("volume{n}"), Size::Bytes(1), Linear)).collect();
    let error = plan(&wanted(&[GIB << 10], many)).expect_err("too long a text");
    assert_eq!(error.to_string(), "the volume group \"csi-lvm\" has too many logical volumes");
}

#[test]
fn a_plan_is_said_in_words() {
    let wanted = Wanted { contents: Contents::Unknown, ..every_layout() };
    let plan = plan(&wanted).expect("fits");
    assert_eq!(
        plan.to_string(),
        format!(
            "volume group csi-lvm, UUID {}, on /dev/sd0, /dev/sd1, tagged nvme, a/b: varlib of 20.0 MiB (linear), str of 24.0 MiB \
             (striped), all of 1.8 GiB (linear), mir of 24.0 MiB (mirrored); the installed system will copy the first half of \
             each mirror to the second",
            plan.group.id
        )
    );
    let linear = super::plan(&Wanted { volumes: wanted.volumes[..1].to_vec(), ..wanted }).expect("fits");
    assert!(!linear.resync, "there is no mirror");
}

#[test]
fn mirrors_begin_without_notes() {
    let plan = plan(&every_layout()).expect("fits");
    let notes: Vec<_> =
        plan.writes.iter().map(|writes| writes.zeros.iter().find(|(_, length)| *length == 4 << 20)).collect();
    assert_eq!(notes, [Some(&(MIB + 8 * EXTENT, 4 << 20)), Some(&(MIB + 3 * EXTENT, 4 << 20))]);
    for (tib, want) in [(1, 4096), (4, 4096), (5, 8192), (16, 16384), (17, 32768)] {
        assert_eq!(region_sectors(tib << 18), want, "{tib} TiB");
    }
}

#[test]
fn volumes_that_can_not_be_used() {
    let with = |from: &str, to: &str| {
        let text = THEIRS.replacen(from, to, 1);
        assert_ne!(text, THEIRS, "{from}");
        VolumeGroup::parse(&text)
    };
    for (name, volume, from, to, want) in [
        ("fine", "mir", "seqno = 7", "seqno = 8", None),
        ("thin", "varlib", "type = \"striped\"", "type = \"thin\"", Some(Unusable::Kind("thin".to_owned()))),
        ("on another volume", "varlib", "\"pv0\", 0", "\"pvmove0\", 0", Some(Unusable::On("pvmove0".to_owned()))),
        ("outside", "varlib", "\"pv0\", 0", "\"pv0\", 45", Some(Unusable::Outside("pv0".to_owned()))),
        (
            "far outside",
            "varlib",
            "\"pv0\", 0",
            "\"pv0\", 9223372036854775807",
            Some(Unusable::Outside("pv0".to_owned())),
        ),
        ("a gap", "varlib", "start_extent = 0", "start_extent = 1", Some(Unusable::Gap)),
        (
            "more than can be counted",
            "varlib",
            "extent_size = 8192",
            "extent_size = 9223372036854775807",
            Some(Unusable::Gap),
        ),
        ("uneven stripes", "str", "extent_count = 6", "extent_count = 7", Some(Unusable::Gap)),
        (
            "a mirror without a half",
            "mir",
            "\"mir_rmeta_1\", \"mir_rimage_1\"",
            "\"mir_rmeta_1\", \"mir_rimage_9\"",
            Some(Unusable::Part("mir_rimage_9".to_owned())),
        ),
        (
            "a mirror that is made of itself",
            "mir",
            "\"mir_rmeta_1\", \"mir_rimage_1\"",
            "\"mir_rmeta_1\", \"mir\"",
            Some(Unusable::Part("mir".to_owned())),
        ),
        (
            "a mirror with too short a half",
            "mir",
            "\"mir_rmeta_1\", \"mir_rimage_1\"",
            "\"mir_rmeta_1\", \"mir_rmeta_0\"",
            Some(Unusable::Part("mir_rmeta_0".to_owned())),
        ),
    ] {
        let group = with(from, to).unwrap_or_else(|e| panic!("{name}: {e}"));
        let volume = group.logical.iter().find(|logical| logical.name == volume).expect(name);
        assert_eq!(mappings(&group, volume).err(), want, "{name}");
    }
    for (name, from, to, want) in [
        ("not of its language", "seqno = 7", "seqno = ", "the metadata can't be read"),
        (
            "lvm1",
            "format = \"lvm2\"",
            "format = \"lvm1\"",
            "the metadata are of format \"lvm1\", which isn't known here",
        ),
        (
            "no seqno",
            "seqno = 7",
            "serial = 7",
            "the metadata say nothing good of the seqno of the volume group csi-lvm",
        ),
        (
            "no size of extents",
            "extent_size = 8192",
            "extent_size = 0",
            "the metadata say nothing good of the extent_size of the volume group csi-lvm",
        ),
        (
            "no id",
            "pe_count = 49",
            "pe_count = -1",
            "the metadata say nothing good of the pe_count of the physical volume pv0",
        ),
        (
            "stripes without a size",
            "stripe_size = 128",
            "stripe_size = 0",
            "the metadata say nothing good of a segment of the logical volume str (segment1)",
        ),
        (
            "half a stripe",
            "\"pv0\", 0\n",
            "\"pv0\"\n",
            "the metadata say nothing good of a segment of the logical volume varlib (segment1)",
        ),
        (
            "two groups",
            "contents = ",
            "another { }\ncontents = ",
            "the metadata describe 2 volume groups, and one was expected",
        ),
    ] {
        assert_eq!(with(from, to).expect_err(name).to_string(), want, "{name}");
    }
    for (name, to, want) in [
        ("exported", "status = [\"EXPORTED\", \"READ\"]", Some("exported")),
        ("shared", "lock_type = \"sanlock\"", Some("shared (sanlock)")),
        ("not shared", "lock_type = \"none\"", None),
    ] {
        let group = with("status = [\"RESIZEABLE\", \"READ\", \"WRITE\"]", to).expect(name);
        assert_eq!(group.elsewhere.as_deref(), want, "{name}");
    }
}

/// What is read from the devices that a plan was written to.
fn read_back(plan: &Plan) -> Vec<Device> {
    let devices = plan.writes.iter().map(|writes| {
        let file = file(writes);
        let opened = File::open(file.path()).expect("opened");
        let mut read = |offset: u64, buffer: &mut [u8]| opened.read_exact_at(buffer, offset);
        device(&writes.path, &mut read, writes.bytes, 4096).expect("no trouble").expect("a physical volume")
    });
    devices.collect()
}

#[test]
fn what_was_made_is_found() {
    let plan = plan(&every_layout()).expect("fits");
    let mut devices = read_back(&plan);
    devices.reverse();
    let found = groups(devices);
    let paths = plan.group.physical.iter().map(|physical| (physical.id, PathBuf::from(&physical.hint))).collect();
    assert_eq!(found, Found { groups: vec![Existing { group: plan.group.clone(), paths }], unusable: vec![] });
    assert_eq!(found.groups[0].missing(), Vec::<&metadata::Physical>::new());
    let names: Vec<&str> = found.groups[0].volumes().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["varlib", "str", "all", "mir"]);
}

#[test]
fn members_of_a_mirror_are_not_physical_volumes() {
    use crate::volumes::md;
    let mirror = md::Wanted {
        uuid: Uuid::from_u128(1),
        name: "lvm".to_owned(),
        level: md::Level::Raid1,
        metadata: md::Metadata::V1_0,
        created: 0,
        members: vec![member(0, GIB), member(1, GIB)],
        spares: vec![],
        contents: Contents::Same,
    };
    let below = md::plan(&mirror).expect("fits");
    let above = plan(&wanted(&[below.bytes], vec![])).expect("fits");
    for (name, pieces, found) in [
        ("alone", above.writes[0].pieces.clone(), true),
        ("on a mirror", [above.writes[0].pieces.clone(), below.writes[0].pieces.clone()].concat(), false),
    ] {
        let writes = Writes { pieces, ..below.writes[0].clone() };
        let file = file(&writes);
        let opened = File::open(file.path()).expect("opened");
        let mut read = |offset: u64, buffer: &mut [u8]| opened.read_exact_at(buffer, offset);
        let device = device(&writes.path, &mut read, writes.bytes, 512).expect("no trouble");
        assert_eq!(device.is_some(), found, "{name}");
    }
}

#[test]
fn physical_volumes_that_do_not_fit_together() {
    let plan = plan(&every_layout()).expect("fits");
    let devices = read_back(&plan);
    let mut newer = plan.group.clone();
    newer.sequence = 2;
    newer.logical.clear();
    let mut other = plan.group.clone();
    (other.id, other.name) = (Id::of(Uuid::nil(), "other"), "other".to_owned());
    let with = |change: &dyn Fn(&mut Vec<Device>)| {
        let mut devices = devices.clone();
        change(&mut devices);
        groups(devices)
    };
    let said = |found: &Found| -> Vec<(String, u64, usize)> {
        found.groups.iter().map(|it| (it.group.name.clone(), it.group.sequence, it.missing().len())).collect()
    };
    for (name, found, want) in [
        ("nothing", with(&Vec::clear), vec![]),
        ("one is missing", with(&|devices| drop(devices.remove(0))), vec![("csi-lvm", 1, 1)]),
        ("one without metadata", with(&|devices| devices[1].copies.clear()), vec![("csi-lvm", 1, 0)]),
        (
            "only one without metadata",
            with(&|devices| {
                devices.remove(0);
                devices[0].copies.clear()
            }),
            vec![],
        ),
        ("one that missed a change", with(&|devices| devices[1].copies = vec![newer.clone()]), vec![("csi-lvm", 2, 0)]),
        (
            "one that went to another group",
            with(&|devices| devices[1].copies = vec![other.clone()]),
            vec![("csi-lvm", 1, 1), ("other", 1, 1)],
        ),
    ] {
        let mut got = said(&found);
        got.sort();
        let want: Vec<_> =
            want.into_iter().map(|(group, sequence, missing)| (group.to_owned(), sequence, missing)).collect();
        assert_eq!((got, found.unusable), (want, vec![]), "{name}");
    }
    let found = with(&|devices| devices.push(Device { path: "/dev/copy".into(), ..devices[0].clone() }));
    let want = format!(
        "/dev/sd0 and /dev/copy both say that they are the physical volume {} of the volume group csi-lvm: one is a copy of the \
         other, and which one counts isn't known",
        plan.group.physical[0].id
    );
    assert_eq!((said(&found), found.unusable), (vec![], vec![want]));
}

#[test]
fn a_device_that_can_not_be_read_is_not_believed() {
    let plan = plan(&every_layout()).expect("fits");
    let writes = &plan.writes[0];
    for (name, change, bad, want) in [
        ("fine", None, None, None),
        ("label", Some(520), None, Some("the label was made for another place")),
        ("size", Some(512 + 70), None, Some("the label's checksum is wrong")),
        ("area", Some(4096 + 100), None, Some("the checksum of a metadata area's header is wrong")),
        ("text", Some(4096 + 512 + 100), None, Some("the metadata's checksum is wrong")),
        (
            "unreadable",
            None,
            Some(4096),
            Some("byte 0 can't be read, so it isn't known whether this belongs to a volume group"),
        ),
    ] {
        let file = file(writes);
        if let Some(at) = change {
            file.as_file().write_all_at(b"\xa5", at).expect("written");
        }
        let opened = File::open(file.path()).expect("opened");
        let mut read = |offset: u64, buffer: &mut [u8]| match bad {
            Some(bad) if (offset..offset + buffer.len() as u64).contains(&bad) => Err(std::io::Error::other("bad")),
            _ => opened.read_exact_at(buffer, offset),
        };
        let said = device(&writes.path, &mut read, writes.bytes, 512).map_err(|e| format!("{e:#}"));
        assert_eq!(said.err().as_deref(), want, "{name}");
    }
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let layout = prop::sample::select(vec![Layout::Linear, Layout::Striped, Layout::Raid1]);
    let size = prop_oneof![Just(Size::Rest), (1u64..40 * EXTENT).prop_map(Size::Bytes)];
    let sizes = prop::collection::vec(prop_oneof![0u64..64 * EXTENT, 0..1u64 << 50], 0..5);
    (sizes, prop::collection::vec((size, layout), 0..6), any::<bool>()).prop_map(|(sizes, volumes, same)| {
        let volumes = volumes.into_iter().enumerate();
        let volumes = volumes.map(|(n, (size, layout))| volume(&format!("v-{n}"), size, layout)).collect();
        Wanted { contents: if same { Contents::Same } else { Contents::Unknown }, ..wanted(&sizes, volumes) }
    })
}

proptest! {
    #[test]
    fn nothing_overlaps(wanted in any_wanted()) {
        let Ok(plan) = plan(&wanted) else { return Ok(()) };
        let Plan { group, writes, .. } = &plan;
        let origin = Origin { host: "a \"host\"".to_owned(), created: 1 };
        prop_assert_eq!(VolumeGroup::parse(&group.to_text(&origin)), Ok(group.clone()));
        let mut taken: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
        for segment in group.logical.iter().flat_map(|logical| &logical.segments) {
            if let Kind::Striped { stripes, .. } = &segment.kind {
                let each = segment.extents / stripes.len() as u64;
                for (name, first) in stripes {
                    taken.entry(name).or_default().push((*first, first + each));
                }
            }
        }
        for physical in &group.physical {
            let mut runs = taken.remove(physical.name.as_str()).unwrap_or_default();
            runs.sort_unstable();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{runs:?}");
            prop_assert!(runs.last().is_none_or(|run| run.1 <= physical.extents));
            prop_assert!(area::DATA_AT + physical.extents * EXTENT <= physical.device_sectors * SECTOR);
        }
        for (volume, wanted) in group.logical.iter().filter(|logical| logical.visible).zip(&wanted.volumes) {
            prop_assert_eq!(&volume.name, &wanted.name);
            let mappings = mappings(group, volume).expect("ours");
            let bytes = mappings.last().expect("the volume").sectors() * SECTOR;
            let least = if let Size::Bytes(bytes) = wanted.size { bytes } else { EXTENT };
            prop_assert!(bytes >= least, "{bytes} {least}");
            let [one, other] = [1, 3].map(|place| mappings.get(place));
            if let (Some(one), Some(other)) = (one, other) {
                let on = |mapping: &mapping::Mapping| {
                    let devices = RefCell::new(BTreeSet::new());
                    mapping.table(false, |below| {
                        devices.borrow_mut().extend(if let Below::Physical(id) = below { Some(id) } else { None });
                        Some((8, 0))
                    });
                    devices.into_inner()
                };
                prop_assert!(on(one).is_disjoint(&on(other)), "copies on the same device");
            }
        }
        for writes in writes {
            prop_assert!(writes.pieces.iter().all(|piece| piece.bytes.len() as u64 <= area::DATA_AT && piece.offset == 0));
            prop_assert!(writes.pieces.iter().all(|piece| piece.bytes.len().is_multiple_of(4096)));
            prop_assert!(writes.zeros.iter().all(|(offset, length)| offset + *length as u64 <= writes.bytes));
        }
    }

    #[test]
    fn any_group(text in prop::sample::select(THEIRS.lines().collect::<Vec<_>>()), with in "[a-z0-9={}\\[\\]\", -]{0,40}") {
        // One line of it is another one.
        if let Ok(group) = VolumeGroup::parse(&THEIRS.replacen(text, &with, 1)) {
            for volume in &group.logical {
                if let Ok(mappings) = mappings(&group, volume) {
                    prop_assert!(mappings.iter().all(|mapping| mapping.table(true, |_| Some((8, 1))).is_some()));
                }
            }
        }
    }
}
