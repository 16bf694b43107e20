use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::{PartRecord, ProtectiveMBR};
use tempfile::NamedTempFile;

use super::*;
use crate::chunks::tests::noise;
use crate::ext4::read::tests::{Seen, debugfs, directory, file, made, mke2fs, read, run};
use crate::pack::tests::{key, ours, pack_to, tar_with};
use crate::verify::verify;
use crate::{PackOptions, Packed, grub};

const MIB: usize = 1 << 20;

/// An ext4 file system of 2 MiB.
fn ext4(label: &str, files: &[Seen]) -> Vec<u8> {
    let image = made(&["-t", "ext4", "-b", "1024", "-O", "^has_journal,^metadata_csum", "-L", label], 2 << 20, files)
        .expect("made");
    fs::read(image.path()).expect("read")
}

/// One with nothing but a list of mounts and a directory for each.
fn root(label: &str, fstab: &str) -> Vec<u8> {
    let mut files =
        vec![directory("etc"), directory("usr"), directory("boot"), directory("srv"), directory("srv/data")];
    if !fstab.is_empty() {
        files.push(file("etc/fstab", fstab.as_bytes().to_vec()));
    }
    ext4(label, &files)
}

fn with(at: usize, what: &[u8]) -> Vec<u8> {
    let mut part = vec![0; 2 * MIB];
    part[at..at + what.len()].copy_from_slice(what);
    part
}

fn vfat() -> Vec<u8> {
    let mut part = with(82, b"FAT32   ");
    part[510..512].copy_from_slice(&[0x55, 0xaa]);
    part
}

/// Each partition has a place of its own, 4 MiB after the one before.
const STEP: usize = 4 * MIB;

fn laid_out(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut disk = vec![0; STEP * (parts.len() + 1)];
    for (index, part) in parts.iter().enumerate() {
        disk[STEP * index + MIB..][..part.len()].copy_from_slice(part);
    }
    disk
}

/// As sgdisk does it; partition N is named `part-N`, and its GUID ends in N.
fn gpt(parts: &[Vec<u8>]) -> Vec<u8> {
    let image = NamedTempFile::new().expect("a file");
    fs::write(image.path(), laid_out(parts)).expect("written");
    let mut arguments = Vec::new();
    for (number, part) in (1..).zip(parts) {
        let first = (STEP * (number - 1) + MIB) / 512;
        arguments.extend([
            format!("--new={number}:{first}:{}", first + part.len() / 512 - 1),
            format!("--change-name={number}:part-{number}"),
            format!("--partition-guid={number}:00000000-0000-4000-8000-00000000AB{number:02}"),
        ]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("sgdisk", &[&["--clear", "--set-alignment=1"], &arguments[..]].concat(), image.path(), &[0]).expect("a table");
    fs::read(image.path()).expect("read")
}

fn gpt_4096(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut disk = std::io::Cursor::new(laid_out(parts));
    let size = LogicalBlockSize::Lb4096;
    let config = gpt::GptConfig::new().writable(true).logical_block_size(size);
    let mut table = config.create_from_device(&mut disk, None).expect("created");
    let entry = |(index, part): (usize, &Vec<u8>)| {
        let first = (STEP * index + MIB) as u64 / 4096;
        let entry = gpt::partition::Partition {
            part_type_guid: gpt::partition_types::LINUX_FS,
            part_guid: uuid::Uuid::from_u128(index as u128 + 1),
            first_lba: first,
            last_lba: first + part.len() as u64 / 4096 - 1,
            flags: 0,
            name: String::new(),
        };
        (u32::try_from(index).expect("few") + 1, entry)
    };
    table.update_partitions(parts.iter().enumerate().map(entry).collect()).expect("updated");
    table.write().expect("written");
    disk.into_inner()
}

fn record(kind: u8, start: usize, bytes: usize) -> PartRecord {
    let sectors = |bytes: usize| u32::try_from(bytes / 512).expect("small");
    PartRecord { os_type: kind, lb_start: sectors(start), lb_size: sectors(bytes), ..PartRecord::zero() }
}

fn put_table(disk: &mut [u8], at: usize, records: &[PartRecord]) {
    let mut table = ProtectiveMBR::new();
    table.set_disk_signature(0x1234_abcd_u32.to_le_bytes());
    for index in 0..4 {
        table.set_partition(index, records.get(index).copied().unwrap_or_else(PartRecord::zero));
    }
    disk[at..at + 512].copy_from_slice(&table.to_bytes());
}

/// The first part is partition 1; the others are in an extended partition, from number 5 on.
fn mbr(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut disk = laid_out(parts);
    let end = disk.len();
    let mut first = vec![record(0x83, MIB, parts[0].len())];
    if parts.len() > 1 {
        first.push(record(0x0f, STEP, end - STEP));
    }
    put_table(&mut disk, 0, &first);
    for (index, part) in parts.iter().enumerate().skip(1) {
        let mut records = vec![record(0x83, MIB, part.len())];
        if index + 1 < parts.len() {
            // Counted from where the extended partition begins.
            records.push(record(0x05, STEP * index, STEP));
        }
        put_table(&mut disk, STEP * index, &records);
    }
    disk
}

fn paths(disk: &[u8]) -> anyhow::Result<String> {
    let image = NamedTempFile::new()?;
    fs::write(image.path(), disk)?;
    let paths: Vec<_> = read(image.path())?.into_iter().map(|seen| seen.member.path.display().to_string()).collect();
    assert!(fs::read(image.path())? == disk, "it is as it was");
    Ok(paths[1..].join(" "))
}

#[test]
fn the_root_is_found_and_what_belongs_to_it() {
    const ALONE: &str = "boot etc etc/fstab srv srv/data usr";
    const WITH_BOOT: &str = "boot boot/vmlinuz etc etc/fstab srv srv/data usr";
    let boot = || ext4("BOOT", &[file("vmlinuz", b"kernel".to_vec())]);
    let data = || ext4("DATA", &[file("of data", vec![])]);
    let own = "LABEL=ROOT / ext4 defaults 0 1\n";
    let line = |text: &str| format!("{own}{text}\n");
    for (name, disk, want) in [
        ("a file system and no table", root("ROOT", own), ALONE),
        ("a GPT", gpt(&[root("ROOT", own)]), ALONE),
        ("with sectors of 4096 bytes", gpt_4096(&[vfat(), root("ROOT", own)]), ALONE),
        ("an MBR", mbr(&[root("ROOT", own)]), ALONE),
        ("beside an ESP", gpt(&[vfat(), root("ROOT", &line("LABEL=UEFI /boot/efi vfat umask=0077 0 1"))]), ALONE),
        ("without fstab", gpt(&[boot(), root("ROOT", "")]), "boot etc srv srv/data usr"),
        ("a boot partition by its label", gpt(&[root("ROOT", &line("LABEL=BOOT /boot ext4")), boot()]), WITH_BOOT),
        ("by its name", gpt(&[root("ROOT", &line("PARTLABEL=part-2 /boot ext4")), boot()]), WITH_BOOT),
        ("by its number", gpt(&[root("ROOT", &line("/dev/vda2 /boot ext4")), boot()]), WITH_BOOT),
        (
            "by the GUID of the partition",
            gpt(&[root("ROOT", &line("PARTUUID=00000000-0000-4000-8000-00000000ab02 /boot ext4")), boot()]),
            WITH_BOOT,
        ),
        ("in an MBR by its number", mbr(&[root("ROOT", &line("/dev/sda5 /boot ext4")), boot()]), WITH_BOOT),
        (
            "the third there by the disk's signature",
            mbr(&[root("ROOT", &line("PARTUUID=1234abcd-06 /boot ext4")), data(), boot()]),
            WITH_BOOT,
        ),
        (
            "two of them, one behind a directory",
            gpt(&[data(), root("ROOT", &line("LABEL=BOOT /boot ext4\nLABEL=DATA /srv/data auto")), boot()]),
            "boot boot/vmlinuz etc etc/fstab srv srv/data srv/data/of data usr",
        ),
        (
            "one in another",
            gpt(&[
                root("ROOT", &line("LABEL=SRV /srv ext4\nLABEL=DATA /srv/data ext4")),
                data(),
                ext4("SRV", &[directory("data"), file("of srv", vec![])]),
            ]),
            "boot etc etc/fstab srv srv/data srv/data/of data srv/of srv usr",
        ),
        ("what isn't on this disk", gpt(&[root("ROOT", &line("UUID=77 /srv ext4\n/dev/sdb1 /boot ext4"))]), ALONE),
        (
            "of two with an fstab, the one that says so",
            gpt(&[ext4("OLD", &[directory("etc"), file("etc/fstab", own.into())]), root("ROOT", own)]),
            ALONE,
        ),
        ("swap and an unknown partition", gpt(&[root("ROOT", own), with(4086, b"SWAPSPACE2"), vec![0; MIB]]), ALONE),
    ] {
        match paths(&disk) {
            Ok(got) => assert_eq!(got, want, "{name}"),
            Err(e) => panic!("{name}: {e:#}"),
        }
    }
}

#[test]
fn the_uuid_of_a_file_system_names_it() -> anyhow::Result<()> {
    let uuid = "0b0b0b0b-1111-4222-8333-444444444444";
    let image = NamedTempFile::new()?;
    image.as_file().set_len(2 << 20)?;
    mke2fs(&["-t", "ext4", "-U", uuid], image.path())?;
    let fstab = format!("UUID={} /boot ext4", uuid.to_ascii_uppercase());
    let disk = gpt(&[root("ROOT", &fstab), fs::read(image.path())?]);
    // Its lost+found is its own.
    assert_eq!(paths(&disk)?, "boot etc etc/fstab srv srv/data usr");
    Ok(())
}

fn change(mut disk: Vec<u8>, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut disk);
    disk
}

/// With the checksum that belongs to what was changed in the GPT's header.
fn change_header(disk: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    change(disk, |disk| {
        let header = &mut disk[512..604];
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        header[16..20].fill(0);
        let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
    })
}

#[test]
fn what_cannot_be_read_is_said_in_a_sentence() {
    let own = "LABEL=ROOT / ext4 defaults 0 1\n";
    let alone = || gpt(&[root("ROOT", own)]);
    let line = |text: &str| root("ROOT", &format!("{own}{text}\n"));
    let xfs = || with(0, b"XFSB");
    let unclean = |at: usize| move |disk: &mut Vec<u8>| disk[at + 1024 + 0x3a] = 0;
    for (name, disk, want) in [
        ("qcow2", b"QFI\xfb".to_vec(), "is a disk in the form qcow2: convert it first: qemu-img convert -O raw"),
        ("vhdx", b"vhdxfile".to_vec(), "in the form vhdx"),
        ("xfs", xfs(), "is xfs, and of disks only a root in ext4, ext3 or ext2 can be read: pack a tar"),
        ("LUKS", with(0, b"LUKS\xba\xbe"), "is LUKS, and"),
        ("noise", noise(9000, 1), "is neither a tar, nor an OCI image layout, nor a raw disk"),
        ("an empty GPT", gpt(&[]), "its partition table has no partitions"),
        ("a root in xfs", gpt(&[vfat(), xfs()]), "there is partition 1 (vfat, 2.0 MiB), partition 2 (xfs, 2.0 MiB)"),
        ("a root in LVM", gpt(&[with(512, b"LABELONE")]), "partition 1 (LVM, 2.0 MiB); pack a tar of the root instead"),
        (
            "no root",
            gpt(&[ext4("DATA", &[])]),
            "none has /etc/fstab, or /etc and /usr: there is partition 1 (ext4 \"DATA\"",
        ),
        ("two roots", gpt(&[root("A", ""), root("B", "")]), "it may be partition 1 (ext4 \"A\", 2.0 MiB), partition 2"),
        ("two that say so", gpt(&[root("ROOT", own), root("ROOT", own)]), "it may be partition 1"),
        ("a mount of xfs", gpt(&[line("/dev/vda2 /boot xfs"), xfs()]), "mounts /dev/vda2 at /boot, which is xfs"),
        ("one by what can't be read", gpt(&[line("UUID=1 /boot xfs"), xfs()]), "mounts UUID=1 at /boot, which is xfs"),
        ("a mount twice", gpt(&[line("LABEL=B /boot ext4\nLABEL=B /srv ext4"), ext4("B", &[])]), "twice"),
        ("the root in itself", gpt(&[line("LABEL=ROOT /srv ext4")]), "mounts the root in itself"),
        ("a mount at nothing", gpt(&[line("LABEL=B /data ext4"), ext4("B", &[])]), "at /data, which isn't there"),
        ("at a file", gpt(&[line("LABEL=B /etc/fstab ext4"), ext4("B", &[])]), "it is no directory"),
        ("not unmounted", change(alone(), unclean(MIB)), "partition 1: the file system was not unmounted cleanly"),
        ("not unmounted, and no table", change(root("ROOT", own), unclean(0)), "was not unmounted cleanly"),
        ("cut short", change(alone(), |disk| disk.truncate(2 * MIB)), "partition 1 reaches beyond the end of the disk"),
        ("a damaged header", change(alone(), |disk| disk[512 + 24] ^= 1), "reading its GPT: it is damaged"),
        ("damaged entries", change(alone(), |disk| disk[1024 + 40] ^= 1), "reading its GPT: it is damaged"),
        ("entries of 256 bytes", change_header(alone(), 84, 256), "128 entries of 256 bytes"),
        ("more entries than memory", change_header(alone(), 80, u32::MAX), "it has 4294967295 entries"),
        (
            "no GPT where one should be",
            change(alone(), |disk| disk[512..20_000].fill(0)),
            "has a GPT, and there is none",
        ),
        (
            "an extended partition in itself",
            change(mbr(&[root("ROOT", own), vec![0; MIB]]), |disk| {
                put_table(disk, STEP, &[record(0x83, MIB, MIB), record(0x05, 0, STEP)])
            }),
            "more than 128 partitions",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.raw");
        fs::write(&path, disk).expect("written");
        let scratch = || Ok(tempfile::tempfile()?);
        let said = crate::input::open(&path, None, scratch)
            .and_then(|mut tar| Ok(io::copy(&mut tar, &mut io::sink())?))
            .map_or_else(|e| format!("{e:#}"), |bytes| format!("{bytes} bytes"));
        assert!(said.contains(want), "{name}: {said}");
    }
}

/// A tree as a directory, with one date.
fn tree(dir: &Path) -> anyhow::Result<()> {
    let tar = tar_with(&[("usr/big".to_owned(), noise(5 << 20, 0)), ("etc/fstab".to_owned(), b"#\n".to_vec())])?;
    tar::Archive::new(&tar[..]).unpack(dir)?;
    std::os::unix::fs::symlink("boot/vmlinuz-6.1", dir.join("vmlinuz"))?;
    fs::hard_link(dir.join("usr/big"), dir.join("usr/same"))?;
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for path in ["etc", "usr", "boot", "boot/grub", "boot/grub/i386-pc", "boot/grub/x86_64-efi"] {
        File::open(dir.join(path))?.set_modified(date)?;
    }
    run("touch", &["--no-dereference", "--date=@1700000000"], &dir.join("vmlinuz"), &[0])?;
    Ok(File::open(dir)?.set_modified(date)?)
}

#[test]
fn a_disk_is_packed_as_the_tar_of_its_root_is() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (root, store) = (dir.path().join("root"), dir.path().join("store"));
    fs::create_dir(&root)?;
    tree(&root)?;
    let tar = Command::new("tar")
        .args(["--create", "--sort=name", "--format=posix", "--numeric-owner"])
        .args([grub::BOOT_IMG, grub::CORE_IMG].map(|program| format!("--exclude=./{program}")))
        .arg("--directory")
        .args([&root, Path::new(".")])
        .output()?
        .stdout;
    let part = NamedTempFile::new()?;
    part.as_file().set_len(24 << 20)?;
    mke2fs(&["-t", "ext4", "-d", &root.display().to_string()], part.path())?;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&root)?);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&root)?);
    let of_root =
        ["mtime @1700000000".into(), format!("mode 0{mode:o}"), format!("uid {owner}"), format!("gid {owner}")];
    debugfs(&of_root.map(|field: String| format!("sif / {field}")), part.path())?;
    let mut disk = vec![0; 32 << 20];
    part.as_file().read_exact_at(&mut disk[MIB..][..24 << 20], 0)?;
    put_table(&mut disk, 0, &[record(0x83, MIB, 24 << 20)]);

    let packed = |name: &str, bytes: &[u8], version: &str| -> anyhow::Result<Packed> {
        let path = dir.path().join(name);
        fs::write(&path, bytes)?;
        let packed =
            pack_to(&path, &store, &PackOptions::new("test", version, "quiet"), &key(1)).context(name.to_owned())?;
        verify(&packed.dir, &ours())?;
        Ok(packed)
    };
    let from_tar = packed("root.tar", &tar, "1")?.manifest.into_inner();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    gzip.write_all(&disk)?;
    xz.write_all(&disk)?;
    let mut tars = Vec::new();
    for (name, bytes, version) in [
        ("disk.raw", disk.clone(), "2"),
        ("disk.raw.zst", zstd::encode_all(&disk[..], 1)?, "3"),
        ("disk.raw.gz", gzip.finish()?, "4"),
        ("disk.img.of another name", xz.finish()?, "5"),
    ] {
        let made = packed(name, &bytes, version)?.manifest.into_inner();
        let hash = |manifest: &drophammer_protocol::manifest::Manifest| {
            manifest.block.as_ref().map(|form| form.sha256.clone())
        };
        assert_eq!(hash(&made), hash(&from_tar), "{name}");
        assert_eq!((&made.boot, made.created), (&from_tar.boot, from_tar.created), "{name}");
        assert_eq!(
            (&made.description, made.installed_bytes),
            (&from_tar.description, from_tar.installed_bytes),
            "{name}"
        );
        assert_eq!((&made.source, &made.boot.bios), (&None, &None));
        tars.extend(made.tar.map(|form| form.sha256));
    }
    tars.dedup();
    assert_eq!(tars.len(), 1, "the same disk gives the same tar");
    Ok(())
}
