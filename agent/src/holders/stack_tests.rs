use super::*;
use crate::inventory::tests::Tree as Files;

/// One machine with most of what can stand on a drive.
fn machine() -> Files {
    let tree = Files::new();
    let disk = |name: &str, number: &str, partitions: &[(&str, &str)]| {
        tree.file(&format!("sys/block/{name}/dev"), format!("{number}\n"));
        for (part, number) in partitions {
            tree.file(&format!("sys/block/{name}/{part}/dev"), format!("{number}\n"));
            tree.file(&format!("sys/block/{name}/{part}/partition"), "1\n");
        }
    };
    let stands_on = |name: &str, below: &[&str]| {
        for below in below {
            tree.file(&format!("sys/block/{name}/slaves/{below}/dev"), "");
        }
    };
    disk("sda", "8:0", &[("sda1", "8:1"), ("sda2", "8:2"), ("sda3", "8:3"), ("sda4", "8:4")]);
    disk("sdb", "8:16", &[("sdb1", "8:17")]);
    disk("sdc", "8:32", &[]);
    disk("cciss!c0d0", "104:0", &[("cciss!c0d0p1", "104:1")]);

    disk("md127", "9:127", &[]);
    tree.file("sys/block/md127/md/metadata_version", "external:imsm\n");
    stands_on("md127", &["sda"]);
    disk("md126", "9:126", &[("md126p1", "259:0")]);
    tree.file("sys/block/md126/md/metadata_version", "external:-md127/0\n");
    stands_on("md126", &["sda"]);

    disk("dm-0", "253:0", &[]);
    tree.file("sys/block/dm-0/dm/name", "vg-swap\n");
    tree.file("sys/block/dm-0/dm/uuid", "LVM-abc\n");
    stands_on("dm-0", &["sda2"]);

    disk("loop0", "7:0", &[]);
    tree.file("sys/block/loop0/loop/backing_file", "/srv/a b.img (deleted)\n");
    disk("loop1", "7:1", &[]);
    tree.file("sys/block/loop1/loop/backing_file", "/dev/sdc\n");
    disk("loop2", "7:2", &[]);

    disk("bcache0", "252:0", &[]);
    stands_on("bcache0", &["sda3", "sdb1"]);
    tree.link("sys/block/sda/sda3/bcache/dev", "sys/block/bcache0");
    tree.link("sys/block/sdb/sdb1/bcache/set", "sys/fs/bcache/1-2-3");
    tree.link("sys/fs/bcache/1-2-3/cache0", "sys/block/sdb/sdb1/bcache");
    tree.link("sys/fs/bcache/1-2-3/bdev0", "sys/block/sda/sda3/bcache");
    tree.file("sys/fs/bcache/1-2-3/bucket_size", "512k\n");
    tree.file("sys/fs/bcache/register", "");
    tree.file("sys/block/sda/sda4/bcache/stop", "");

    disk("zram0", "251:0", &[]);
    tree.file("sys/block/zram0/backing_dev", "/dev/sdc\n");
    disk("drbd1", "147:1", &[]);
    tree.link("dev/drbd/by-res/r7/0", "dev/drbd1");
    tree.file("sys/block/sdc/holders/drbd1/dev", "");

    tree.file("sys/fs/btrfs/0123/devices/sda1/dev", "");
    tree.file("sys/fs/btrfs/0123/devices/cciss!c0d0p1/dev", "");
    tree.file("sys/fs/btrfs/features/raid56", "");
    let mounts = [
        "20 1 0:1 / / rw - rootfs rootfs rw",
        "21 20 0:40 /@ /srv rw - btrfs /dev/cciss/c0d0p1 rw,subvol=/@",
        "22 20 252:0 / /log rw - xfs /dev/root rw,logdev=/dev/mapper/vg-swap",
        "23 20 0:50 / /merged rw - overlay overlay rw,lowerdir=/srv/l,upperdir=/up/u,workdir=/up/w",
        "24 20 0:51 / /up rw - tmpfs tmpfs rw",
        "25 20 0:60 / /cachefs rw - bcachefs /dev/sdb:/dev/sdc rw",
    ];
    tree.file("proc/self/mountinfo", mounts.join("\n") + "\n");
    let swaps =
        "Filename\t\t\t\tType\t\tSize\n/dev/dm-0   partition 1 0 -2\n/srv/my\\040swap file 1 0 -3\n/x file 1 0 -4\n";
    tree.file("proc/swaps", swaps);
    tree
}

#[test]
fn what_stands_on_what() {
    let stack = read(machine().root(), &["sda"]);
    let on = |on: &BTreeSet<String>| on.iter().cloned().collect::<Vec<_>>().join(" ");
    let devices = stack.devices.iter().filter(|(_, device)| !device.on.is_empty());
    let devices: Vec<String> =
        devices.map(|(name, device)| format!("{name} {:?}: {}", device.kind, on(&device.on))).collect();
    assert_eq!(
        devices,
        [
            "1-2-3 CacheSet: sdb1",
            "bcache on sda4 Bcache { stop: \"sda4\" }: sda4",
            "bcache0 Bcache { stop: \"bcache0\" }: 1-2-3 sda3 sdb1",
            "cciss!c0d0p1 Partition: cciss!c0d0",
            "dm-0 Mapping { name: \"vg-swap\", uuid: \"LVM-abc\" }: sda2",
            "drbd1 Drbd { resource: Some(\"r7\") }: sdc",
            "loop0 Loop { file: \"/srv/a b.img\" }: cciss!c0d0p1 sda1",
            "loop1 Loop { file: \"/dev/sdc\" }: sdc",
            "md126 Array: md127 sda",
            "md126p1 Partition: md126",
            "md127 Array: sda",
            "sda1 Partition: sda",
            "sda2 Partition: sda",
            "sda3 Partition: sda",
            "sda4 Partition: sda",
            "sdb1 Partition: sdb",
            "zram0 Stranger: sdc",
        ]
    );
    let mounts: Vec<String> = stack.mounts.iter().map(|m| format!("{}: {}", m.place.display(), on(&m.on))).collect();
    assert_eq!(
        mounts,
        [
            "/: ",
            "/srv: cciss!c0d0p1 sda1",
            "/log: bcache0 dm-0",
            "/merged: cciss!c0d0p1 sda1",
            "/up: ",
            "/cachefs: sdb sdc",
        ]
    );
    let swaps: Vec<String> = stack.swaps.iter().map(|s| format!("{}: {}", s.path.display(), on(&s.on))).collect();
    assert_eq!(swaps, ["/dev/dm-0: dm-0", "/srv/my swap: cciss!c0d0p1 sda1", "/x: "]);
    assert_eq!(stack.parts("sda").collect::<Vec<_>>(), ["sda", "sda1", "sda2", "sda3", "sda4"]);
    assert_eq!(stack.drives_below("bcache0").into_iter().collect::<Vec<_>>(), ["sda", "sdb"]);
}

#[test]
fn other_namespaces() {
    let tree = machine();
    let namespace = |id: &str, inode: &str, mounts: &str| {
        tree.file(&format!("proc/{id}/comm"), "runc\n");
        tree.link(&format!("proc/{id}/ns/mnt"), &format!("ns/mnt:[{inode}]"));
        tree.file(&format!("proc/{id}/mountinfo"), mounts);
    };
    tree.link("proc/self/ns/mnt", "ns/mnt:[1]");
    namespace("7", "1", "20 1 8:1 / /ours rw - ext4 /dev/sda1 rw\n");
    namespace("8", "2", "20 1 8:1 / /a rw - ext4 /dev/sda1 rw\n21 20 0:5 / /proc rw - proc proc rw\n");
    namespace("9", "2", "20 1 8:1 / /a rw - ext4 /dev/sda1 rw\n");
    let said = read(tree.root(), &[]).elsewhere;
    let said: Vec<String> = said.iter().map(|e| format!("{} {} {:?}", e.process, e.place.display(), e.on)).collect();
    assert_eq!(said, ["runc (process 8) /a {\"sda1\"}"]);
}

#[test]
fn an_empty_tree_has_nothing() {
    assert_eq!(read(Files::new().root(), &["sda"]), Stack::default());
}
