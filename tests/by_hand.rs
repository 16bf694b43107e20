//! The agent at a command line, on a host whose drives are in use.

use std::sync::OnceLock;

use crate::common::{self, kit};
use drophammer_lab::qemu::{DiskSpec, Firmware, MachineSpec};
use drophammer_lab::rescue::Rescue;
use drophammer_lab::vm::Machine;

fn rescue() -> &'static Rescue {
    static RESCUE: OnceLock<Rescue> = OnceLock::new();
    RESCUE.get_or_init(|| {
        let packages = ["mdadm", "lvm2", "dmsetup", "cryptsetup-bin", "e2fsprogs", "bcache-tools", "util-linux"];
        let programs = [
            "sbin/mdadm",
            "sbin/lvm",
            "sbin/dmsetup",
            "sbin/cryptsetup",
            "sbin/mke2fs",
            "usr/sbin/make-bcache",
            "sbin/blkid",
        ];
        let modules = ["crypto/ecb", "crypto/xts", "drivers/md/dm-crypt", "drivers/md/bcache/bcache"];
        Rescue::prepare(kit(), &packages, &programs, &modules).expect("a rescue system")
    })
}

/// Four drives: two halves of an array with a file system and a swap file on it, one for LVM, one encrypted.
const IN_USE: &str = r#"
set -e
export LVM_SUPPRESS_FD_WARNINGS=1
mkdir -p /etc/lvm
cat > /etc/lvm/lvm.conf <<END
devices { obtain_device_list_from_udev = 0
external_device_info_source = "none" }
activation { udev_sync = 0
udev_rules = 0
monitoring = 0 }
END
mdadm --create /dev/md0 --level=1 --raid-devices=2 --metadata=1.2 --assume-clean --run /dev/nvme0n1 /dev/nvme1n1
/usr/sbin/mke2fs -q -t ext4 /dev/md0
echo secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/nvme3n1 -
mkdir -p /srv /data
mount -t ext4 /dev/md0 /srv
dd if=/dev/zero of=/srv/swap bs=1M count=8 2>/dev/null
mkswap /srv/swap
swapon /srv/swap
lvm pvcreate -q /dev/nvme2n1
lvm vgcreate -q vg /dev/nvme2n1
lvm lvcreate -q --zero n --wipesignatures n -n data -L 64M vg
/usr/sbin/mke2fs -q -t ext4 /dev/mapper/vg-data
mount -t ext4 /dev/mapper/vg-data /data
mount --bind /data /srv/data-too 2>/dev/null || { mkdir /srv/data-too; mount --bind /data /srv/data-too; }
set +e
"#;

fn run(machine: &Machine, rig: &common::Rig, script: &str) -> String {
    rescue().run(machine, script, rig.limit(120)).expect("the script ends well")
}

/// What a script said after `== name`.
fn part(said: &str, name: &str) -> String {
    let (_, rest) = said.split_once(&format!("== {name}")).unwrap_or_else(|| panic!("no {name} in {said}"));
    rest.split_once("== ").map_or(rest, |(part, _)| part).to_owned()
}

fn part_has(said: &str, name: &str, words: &[&str]) {
    let part = part(said, name);
    for words in words {
        assert!(part.contains(words), "{name} without {words:?}: {part}");
    }
}

/// At the ends of the machine's drives, where labels are.
fn nothing_is_left(machine: &Machine) {
    for disk in &machine.spec.disks {
        for place in [0, disk.size - (1 << 20)] {
            let bytes = machine.read_disk(&disk.serial, place, 1 << 20).expect("read");
            assert!(bytes.iter().all(|byte| *byte == 0), "{}: nothing is left at {place}", disk.serial);
        }
    }
}

#[test]
fn whatever_holds_a_drive_lets_go_before_it_is_erased() {
    let rig = common::rig(1);
    let disks = ["m1-a", "m1-b", "m1-c", "m1-d"].map(|serial| DiskSpec::new(serial, 256 << 20)).to_vec();
    let spec = MachineSpec { disks, memory_mb: 768, ..MachineSpec::numbered(1, Firmware::Bios) };
    let machine = rig.lab.add_machine(spec).expect("a machine");
    let said = run(
        &machine,
        &rig,
        &format!(
            "{IN_USE}
            echo '== half'; drophammer-agent erase --yes-destroy m1-a
            echo \"ended with $?\"
            echo '== still'; cat /proc/mounts /proc/swaps /proc/mdstat
            echo '== busy'; cd /srv/data-too; drophammer-agent erase --yes-destroy m1-a --yes-destroy m1-b --yes-destroy m1-c
            echo \"ended with $?\"; cd /
            mount -t ext4 /dev/mapper/vg-data /data; swapon /srv/swap
            echo '== dry'; drophammer-agent erase --dry-run --disk m1-a --disk m1-b --disk m1-c --disk m1-d
            echo '== all'; drophammer-agent erase --yes-destroy m1-a --yes-destroy m1-b --yes-destroy m1-c --yes-destroy m1-d
            echo \"ended with $?\"
            echo '== after'; cat /proc/mounts /proc/swaps /proc/mdstat; ls /sys/block
            echo '== end'; true"
        ),
    );
    let has = |name: &str, words: &[&str]| part_has(&said, name, words);
    has("half", &["md0 is on nvme0n1 and also on nvme1n1, not to be erased", "ended with 1"]);
    has("still", &["/dev/md0 /srv ext4", "/dev/mapper/vg-data /srv/data-too", "/srv/swap", "md0 : active raid1"]);
    has("busy", &["/srv/data-too", "sh (", "ended with 1"]);
    has(
        "dry",
        &[
            "holds Linux RAID member (raid1, metadata 1.2)",
            "holds LVM physical volume of the volume group \"vg\"",
            "holds LUKS2 volume",
            "first: stop swapping to /srv/swap",
            "first: unmount /srv/data-too",
            "first: remove the logical volume vg-data (dm-0)",
            "first: stop the array md0",
            "would be erased by NVMe Format, user data erase (SES=1) (Purge)",
            "nothing was touched",
        ],
    );
    has("all", &["4 drives erased and verified", "ended with 0"]);
    let after = part(&said, "after");
    assert!(!["/srv", "/data", "md0", "dm-0"].iter().any(|gone| after.contains(gone)), "{after}");
    nothing_is_left(&machine);
}

/// A label of a pool called `tank`, four times as ZFS On-Disk Specification, 1.2.1 to 1.3.3 has it: values in XDR, and behind
/// them the array of uberblocks.
fn import_pool(machine: &Machine, serial: &str, size: u64) {
    const LABEL: u64 = 256 << 10;
    let text = |text: &str| {
        let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let number = |number: u64| number.to_be_bytes().to_vec();
    let mut list = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for (name, kind, value) in [
        ("version", 8_u32, number(5000)),
        ("name", 9, text("tank")),
        ("pool_guid", 8, number(42)),
        ("guid", 8, number(43)),
    ] {
        let body = [text(name), kind.to_be_bytes().to_vec(), vec![0, 0, 0, 1], value].concat();
        let length = u32::try_from(body.len() + 8).expect("short").to_be_bytes();
        list.extend([&length[..], &length, &body].concat());
    }
    let uberblock = [0x00ba_b10c_u64, 5000, 7, 43, 1_700_000_000].map(u64::to_le_bytes).concat();
    for label in [0, LABEL, size - 2 * LABEL, size - LABEL] {
        machine.write_disk(serial, label + (16 << 10), &list).expect("written");
        for number in 0..128 {
            machine.write_disk(serial, label + (128 << 10) + number * 1024, &uberblock).expect("written");
        }
    }
}

#[test]
fn encrypted_and_cached_drives_let_go_and_pools_are_known() {
    let rig = common::rig(1);
    let disks = ["m1-crypt", "m1-slow", "m1-fast", "m1-pool"].map(|serial| DiskSpec::new(serial, 128 << 20)).to_vec();
    let spec = MachineSpec { disks, memory_mb: 768, ..MachineSpec::numbered(1, Firmware::Bios) };
    let machine = rig.lab.add_machine(spec).expect("a machine");
    import_pool(&machine, "m1-pool", 128 << 20);
    let said = run(
        &machine,
        &rig,
        r#"
            set -e
            mkdir -p /secrets /cached
            echo secret > /run/key
            cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/nvme0n1 /run/key
            DM_DISABLE_UDEV=1 cryptsetup open --key-file /run/key /dev/nvme0n1 secrets
            /usr/sbin/mke2fs -q -t ext4 /dev/mapper/secrets
            mount -t ext4 /dev/mapper/secrets /secrets
            make-bcache --bucket 64k -B /dev/nvme1n1 -C /dev/nvme2n1 >/dev/null
            for device in /dev/nvme1n1 /dev/nvme2n1; do echo $device > /sys/fs/bcache/register; done
            sleep 1
            /usr/sbin/mke2fs -q -t ext4 /dev/bcache0
            mount -t ext4 /dev/bcache0 /cached
            set +e
            echo '== blkid'; /sbin/blkid -p /dev/nvme*n1
            echo '== half'; drophammer-agent erase --yes-destroy m1-slow; echo "ended with $?"
            echo '== dry'; drophammer-agent erase --dry-run --disk m1-crypt --disk m1-slow --disk m1-fast --disk m1-pool
            echo '== all'
            drophammer-agent erase --yes-destroy m1-crypt --yes-destroy m1-slow --yes-destroy m1-fast --yes-destroy m1-pool
            echo "ended with $?"
            echo '== after'; cat /proc/mounts; ls /sys/block /sys/fs/bcache; /sbin/blkid -p /dev/nvme*n1
            echo '== end'; true
        "#,
    );
    let has = |name: &str, words: &[&str]| part_has(&said, name, words);
    has("blkid", &["crypto_LUKS", "TYPE=\"bcache\"", "LABEL=\"tank\"", "TYPE=\"zfs_member\""]);
    has("half", &["nvme2n1, not to be erased", "ended with 1"]);
    has(
        "dry",
        &[
            "first: unmount /secrets",
            "first: remove the encrypted volume secrets (dm-0)",
            "first: stop bcache on bcache0",
            "holds member of a ZFS pool \"tank\"",
        ],
    );
    let dry = part(&said, "dry");
    let (_, pool) = dry.split_once("m1-pool").expect("its plan");
    assert!(!pool.contains("first:"), "nobody holds this one: {pool}");
    has("all", &["4 drives erased and verified", "ended with 0"]);
    let after = part(&said, "after");
    assert!(!["/secrets", "/cached", "dm-0", "bcache0", "TYPE"].iter().any(|gone| after.contains(gone)), "{after}");
    nothing_is_left(&machine);
}
