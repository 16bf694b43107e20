//! The agent at a command line, on a host whose drives are in use.

mod common;

use std::sync::OnceLock;

use common::kit;
use drophammer_lab::qemu::{DiskSpec, Firmware, MachineSpec};
use drophammer_lab::rescue::Rescue;
use drophammer_lab::vm::Machine;

fn rescue() -> &'static Rescue {
    static RESCUE: OnceLock<Rescue> = OnceLock::new();
    RESCUE.get_or_init(|| {
        let packages = ["mdadm", "lvm2", "dmsetup", "cryptsetup-bin", "e2fsprogs"];
        let programs = ["sbin/mdadm", "sbin/lvm", "sbin/dmsetup", "sbin/cryptsetup", "sbin/mke2fs"];
        Rescue::prepare(kit(), &packages, &programs).expect("a rescue system")
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
    let part = |name: &str| {
        let (_, rest) = said.split_once(&format!("== {name}")).unwrap_or_else(|| panic!("no {name} in {said}"));
        rest.split_once("== ").map_or(rest, |(part, _)| part).to_owned()
    };
    let has = |name: &str, words: &[&str]| {
        let part = part(name);
        for words in words {
            assert!(part.contains(words), "{name} without {words:?}: {part}");
        }
    };
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
    let after = part("after");
    assert!(!["/srv", "/data", "md0", "dm-0"].iter().any(|gone| after.contains(gone)), "{after}");
    for serial in ["m1-a", "m1-b", "m1-c", "m1-d"] {
        let head = machine.read_disk(serial, 0, 1 << 20).expect("read");
        assert!(head.iter().all(|byte| *byte == 0), "{serial}: nothing is left of what was there");
    }
}
