//! Whole drives, from a sysfs tree.

use std::path::Path;

use drophammer_protocol::inventory::{Bus, Disk};

use super::sysfs;

/// Every real drive: what is made of other drives or of memory isn't one, and neither is a single path to a drive that
/// the kernel shows as a whole.
pub(crate) fn disks(root: &Path) -> Vec<Disk> {
    let blocks = root.join("sys/block");
    let mut drives: Vec<Disk> = Vec::new();
    for disk in sysfs::names(&blocks).into_iter().filter_map(|name| disk(&blocks.join(&name), &name)) {
        match drives.iter_mut().find(|known| is_path_to(&disk, known)) {
            Some(known) => known.paths.push(disk.name),
            None => drives.push(disk),
        }
    }
    drives
}

/// Whether `disk` is another path to a drive. It says so by its world-wide name; who erases it has to see for himself
/// whether that's true.
fn is_path_to(disk: &Disk, known: &Disk) -> bool {
    let shared = matches!(disk.bus, Bus::Scsi | Bus::Nvme) && disk.bus == known.bus;
    shared && disk.wwn.is_some() && disk.wwn == known.wwn && disk.id().is_some() && disk.id() == known.id()
}

/// The drive behind a block device number, such as the one of an opened handle.
pub(crate) fn disk_by_number(root: &Path, major: u64, minor: u64) -> Option<Disk> {
    let link = root.join(format!("sys/dev/block/{major}:{minor}"));
    let name = sysfs::link_name(&link)?;
    disk(&link, &name)
}

/// The numbers of the partitions that the kernel shows on a drive.
pub(crate) fn partitions(root: &Path, name: &str) -> Vec<u32> {
    let dir = root.join("sys/block").join(name);
    sysfs::names(&dir).into_iter().filter_map(|part| sysfs::number(&dir.join(part).join("partition"))).collect()
}

fn disk(dir: &Path, name: &str) -> Option<Disk> {
    let device = dir.join("device");
    let real = device.exists() && !sysfs::flag(&dir.join("hidden")) && !is_nvme_path(name);
    // `sr` is a CD, `fd` a floppy, `md` has no device but did once; `mtdblock` is the firmware's own flash.
    let skipped = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtdblock"];
    if !real || skipped.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(starts_with_digit_or_nothing)) {
        return None;
    }
    // The kernel counts in 512-byte sectors whatever the drive does.
    let size_bytes = sysfs::number::<u64>(&dir.join("size"))?.saturating_mul(512);
    let path = sysfs::device_path(&device);
    Some(Disk {
        name: name.to_owned(),
        paths: Vec::new(),
        model: model(&device),
        serial: serial(dir, &device),
        firmware: ["firmware_rev", "rev", "fwrev"].iter().find_map(|file| sysfs::text(&device.join(file))),
        wwn: sysfs::text(&dir.join("wwid")).or_else(|| sysfs::text(&device.join("wwid"))),
        namespace: sysfs::number(&dir.join("nsid")).unwrap_or(1),
        size_bytes,
        logical_block: sysfs::number(&dir.join("queue/logical_block_size")).unwrap_or(512),
        physical_block: sysfs::number(&dir.join("queue/physical_block_size")).unwrap_or(512),
        bus: bus(name, &path, sysfs::text(&device.join("vendor")).as_deref()),
        rotational: sysfs::flag(&dir.join("queue/rotational")),
        removable: sysfs::flag(&dir.join("removable")),
        read_only: sysfs::flag(&dir.join("ro")),
        health: None,
    })
}

fn starts_with_digit_or_nothing(rest: &str) -> bool {
    rest.bytes().next().is_none_or(|b| b.is_ascii_digit())
}

/// `nvme1c1n1`: one path to the namespace `nvme1n1`, shown when the drive has a subsystem with several controllers.
fn is_nvme_path(name: &str) -> bool {
    name.strip_prefix("nvme").is_some_and(|rest| rest.contains('c'))
}

fn model(device: &Path) -> Option<String> {
    let model = sysfs::text(&device.join("model")).or_else(|| sysfs::text(&device.join("name")))?;
    match sysfs::text(&device.join("vendor")) {
        // libata and virtio put something there that names no maker.
        Some(vendor) if vendor != "ATA" && !vendor.starts_with("0x") => Some(format!("{vendor} {model}")),
        _ => Some(model),
    }
}

/// NVMe and MMC tell it in `device/serial`, virtio in `serial`, SCSI and SATA in the vital product data page 80h.
fn serial(dir: &Path, device: &Path) -> Option<String> {
    sysfs::text(&device.join("serial"))
        .or_else(|| sysfs::text(&dir.join("serial")))
        .or_else(|| vpd_serial(&sysfs::bytes(&device.join("vpd_pg80"))?))
}

/// SPC-4 §7.8.16: a header of four bytes, whose last two count the serial's.
fn vpd_serial(page: &[u8]) -> Option<String> {
    let &[_, 0x80, high, low, ref rest @ ..] = page else { return None };
    let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    let serial: String = rest.iter().take(length).filter(|b| b.is_ascii_graphic()).map(|&b| char::from(b)).collect();
    Some(serial).filter(|s| !s.is_empty())
}

fn bus(name: &str, path: &[String], vendor: Option<&str>) -> Bus {
    let on = |prefix: &str| {
        path.iter().any(|part| part.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit())))
    };
    if on("usb") {
        Bus::Usb
    } else if name.starts_with("nvme") {
        Bus::Nvme
    } else if name.starts_with("vd") {
        Bus::Virtio
    } else if on("ata") || vendor == Some("ATA") {
        Bus::Ata
    } else if name.starts_with("sd") {
        Bus::Scsi
    } else {
        Bus::Other
    }
}

/// A serial is words that can be typed, or none.
#[cfg(fuzzing)]
pub(crate) fn fuzz(page: &[u8]) {
    if let Some(serial) = vpd_serial(page) {
        assert!(!serial.is_empty() && serial.len() <= page.len() && serial.bytes().all(|b| b.is_ascii_graphic()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn what_counts_as_a_drive() {
        let tree = Tree::new();
        for name in ["nvme0n1", "nvme0c0n1", "sda", "sdb", "vda", "sr0", "loop0", "zram0", "dm-0", "md127", "mmcblk0"] {
            tree.file(&format!("sys/block/{name}/size"), "2048\n");
        }
        // Loop, zram, dm and md have no device; the rest hang somewhere.
        let nvme = "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0";
        tree.file(&format!("{nvme}/serial"), "SN-1                \n");
        tree.file(&format!("{nvme}/model"), "QEMU NVMe Ctrl      \n");
        tree.file(&format!("{nvme}/firmware_rev"), "7.2.22  \n");
        tree.link("sys/block/nvme0n1/device", nvme);
        tree.file("sys/block/nvme0n1/wwid", "nvme.1b36-534e2d31\n");
        tree.file("sys/block/nvme0n1/queue/logical_block_size", "4096\n");
        tree.link("sys/block/nvme0c0n1/device", nvme);
        tree.file("sys/block/nvme0c0n1/hidden", "1\n");

        let sata = "sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0";
        tree.file(&format!("{sata}/vendor"), "ATA     \n");
        tree.file(&format!("{sata}/model"), "QEMU HARDDISK   \n");
        tree.file(&format!("{sata}/rev"), "2.5+\n");
        tree.file(&format!("{sata}/vpd_pg80"), "\0\u{0}\0\u{8}    QM01");
        tree.link("sys/block/sda/device", sata);
        tree.file("sys/block/sda/queue/rotational", "1\n");

        let usb = "sys/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/host3/target3:0:0/3:0:0:0";
        tree.file(&format!("{usb}/vendor"), "SanDisk \n");
        tree.file(&format!("{usb}/model"), "Ultra\n");
        tree.link("sys/block/sdb/device", usb);
        tree.file("sys/block/sdb/removable", "1\n");

        let virtio = "sys/devices/pci0000:00/0000:00:05.0/virtio1";
        tree.file(&format!("{virtio}/vendor"), "0x1af4\n");
        tree.link("sys/block/vda/device", virtio);
        tree.file("sys/block/vda/serial", "VIRTIO-7");
        tree.link("sys/block/sr0/device", sata);
        tree.file("sys/devices/platform/mmc0:0001/name", "SD16G\n");
        tree.file("sys/devices/platform/mmc0:0001/serial", "0xdeadbeef\n");
        tree.link("sys/block/mmcblk0/device", "sys/devices/platform/mmc0:0001");

        let found: Vec<String> = disks(tree.root())
            .iter()
            .map(|d| {
                let (model, serial) = (d.model.as_deref().unwrap_or("-"), d.serial.as_deref().unwrap_or("-"));
                format!("{} {:?} [{model}] [{serial}] {} holds={}", d.name, d.bus, d.logical_block, d.holds_data())
            })
            .collect();
        assert_eq!(
            found,
            [
                "mmcblk0 Other [SD16G] [0xdeadbeef] 512 holds=true",
                "nvme0n1 Nvme [QEMU NVMe Ctrl] [SN-1] 4096 holds=true",
                "sda Ata [QEMU HARDDISK] [-] 512 holds=true",
                "sdb Usb [SanDisk Ultra] [-] 512 holds=false",
                "vda Virtio [-] [VIRTIO-7] 512 holds=true",
            ]
        );
    }

    #[test]
    fn several_paths_are_one_drive() {
        let tree = Tree::new();
        for (name, place, wwn, serial) in [
            ("sda", "host1", "naa.5000c500a1b2c3d4", "SAS-1"),
            ("sdb", "host2", "naa.5000c500a1b2c3d4", "SAS-1"),
            ("sdc", "host2", "naa.5000c500a1b2c3d4", "SAS-2"),
            ("sdd", "host2", "", "SAS-3"),
            ("sde", "host2", "", "SAS-3"),
        ] {
            let device = format!("sys/devices/pci0000:00/{place}/{name}");
            tree.file(&format!("{device}/vendor"), "SEAGATE\n");
            tree.file(&format!("{device}/serial"), serial);
            tree.file(&format!("{device}/wwid"), wwn);
            tree.file(&format!("sys/block/{name}/size"), "2048\n");
            tree.link(&format!("sys/block/{name}/device"), &device);
        }
        let found: Vec<(String, Vec<String>)> = disks(tree.root()).into_iter().map(|d| (d.name, d.paths)).collect();
        let one = |name: &str, paths: &[&str]| (name.to_owned(), paths.iter().map(|p| (*p).to_owned()).collect());
        assert_eq!(found, [one("sda", &["sdb"]), one("sdc", &[]), one("sdd", &[]), one("sde", &[])]);
    }

    #[test]
    fn serial_in_vital_product_data() {
        for (name, page, want) in [
            ("padded", &b"\x00\x80\x00\x08    QM01"[..], Some("QM01")),
            ("claims more than it has", b"\x00\x80\xff\xffQM01", Some("QM01")),
            ("another page", b"\x00\x83\x00\x04QM01", None),
            ("blank", b"\x00\x80\x00\x04    ", None),
            ("cut", b"\x00\x80\x00", None),
        ] {
            assert_eq!(vpd_serial(page).as_deref(), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_vital_product_data(page in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_ne!(vpd_serial(&page), Some(String::new()));
        }
    }
}
