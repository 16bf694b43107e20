use proptest::prelude::*;

use super::*;
use crate::holders::stack::{Elsewhere, Swap};

fn names(on: &[&str]) -> BTreeSet<String> {
    on.iter().map(|name| (*name).to_owned()).collect()
}

/// Stacks as text, a line each: `sda1 part sda`, `dm-0 dm vg-root LVM-x sda2`, `mount 2 1 /srv ext4 sda1`.
fn stack(text: &str) -> Stack {
    let mut stack = Stack::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let (kind, name, on) = match words.as_slice() {
            ["mount", id, parent, place, kind, on @ ..] => {
                let number = |text: &str| text.parse().expect("a number");
                let (id, parent, kind) = (number(id), number(parent), (*kind).to_owned());
                stack.mounts.push(Mount { id, parent, place: place.into(), kind, on: names(on) });
                continue;
            }
            ["elsewhere", id, place, on @ ..] => {
                let process = Process { id: id.parse().expect("a number"), name: "containerd".into() };
                stack.elsewhere.push(Elsewhere { place: place.into(), on: names(on), process });
                continue;
            }
            ["swap", path, on @ ..] => {
                stack.swaps.push(Swap { path: path.into(), on: names(on) });
                continue;
            }
            ["claim", name, who @ ..] => {
                let claimant = match who {
                    [] => Claimant::Unknown,
                    ["drbd"] => Claimant::Drbd,
                    pool => Claimant::Pool(pool.concat()),
                };
                stack.claims.insert((*name).to_owned(), claimant);
                continue;
            }
            ["program", path] => {
                stack.program = Some(path.into());
                continue;
            }
            [name, "part", on @ ..] => (Kind::Partition, name, on),
            [name, "dm", mapping, uuid, on @ ..] => {
                (Kind::Mapping { name: (*mapping).to_owned(), uuid: (*uuid).to_owned() }, name, on)
            }
            [name, "md", on @ ..] => (Kind::Array, name, on),
            [name, "loop", file, on @ ..] => (Kind::Loop { file: file.into() }, name, on),
            [name, "bcache", stop, on @ ..] => (Kind::Bcache { stop: (*stop).to_owned() }, name, on),
            [name, "set", on @ ..] => (Kind::CacheSet, name, on),
            [name, "drbd", on @ ..] => (Kind::Drbd { resource: Some("r0".into()) }, name, on),
            [name, "stranger", on @ ..] => (Kind::Stranger, name, on),
            [name] => (Kind::Drive, name, &[][..]),
            _ => panic!("what is {line}"),
        };
        stack.devices.insert((*name).to_owned(), Device { kind, on: names(on) });
    }
    stack
}

fn said(text: &str, drives: &[&str]) -> String {
    match plan(&stack(text), drives) {
        Ok(steps) => steps.iter().map(Step::to_string).collect::<Vec<_>>().join("\n"),
        Err(held) => format!("refused: {held}"),
    }
}

#[test]
fn taken_apart_from_the_top_down() {
    for (name, text, want) in [
        ("nothing on it", "sda", ""),
        ("another drive's", "sda\nsdb\nsdb1 part sdb\nmount 2 1 /srv ext4 sdb1", ""),
        (
            "partitions, mounted and swap",
            "sda
             sda1 part sda
             sda2 part sda
             sda3 part sda
             mount 1 0 / rootfs
             mount 2 1 /srv ext4 sda1
             mount 3 2 /srv/db xfs sda2
             mount 4 3 /srv/db/tmp tmpfs
             mount 5 1 /opt ext4 sda1
             swap /dev/sda3 sda3
             swap /srv/swap sda1",
            "stop swapping to /dev/sda3
             stop swapping to /srv/swap
             unmount /opt
             unmount /srv/db/tmp
             unmount /srv/db
             unmount /srv",
        ),
        (
            "stacked on one place",
            "sda
             sda1 part sda
             sda2 part sda
             mount 2 1 /srv ext4 sda1
             mount 3 2 /srv ext4 sda2
             mount 4 3 /srv ext4 sda1",
            "unmount /srv
             unmount /srv
             unmount /srv",
        ),
        (
            "ext4 on LVM on LUKS on md",
            "sda
             sda1 part sda
             md0 md sda1
             dm-0 dm crypt CRYPT-LUKS2-1 md0
             dm-1 dm vg-home LVM-1 dm-0
             dm-2 dm vg-swap LVM-2 dm-0
             mount 2 1 /home ext4 dm-1
             swap /dev/dm-2 dm-2",
            "stop swapping to /dev/dm-2
             unmount /home
             remove the logical volume vg-home (dm-1)
             remove the logical volume vg-swap (dm-2)
             remove the encrypted volume crypt (dm-0)
             stop the array md0",
        ),
        (
            "a file system in a file, and one in that",
            "sda
             loop0 loop /srv/a.img sda
             loop1 loop /mnt/b.img loop0
             mount 2 1 /srv ext4 sda
             mount 3 2 /srv/mnt ext4 loop0
             mount 4 1 /b ext4 loop1",
            "unmount /b
             detach loop1 from /mnt/b.img
             unmount /srv/mnt
             detach loop0 from /srv/a.img
             unmount /srv",
        ),
        (
            "a loop whose file is on what is mounted below",
            "sda
             sda1 part sda
             sda2 part sda
             zloop loop /srv/c/a.img sda2
             mount 2 1 /srv ext4 sda1
             mount 3 2 /srv/c ext4 sda2",
            "detach zloop from /srv/c/a.img
             unmount /srv/c
             unmount /srv",
        ),
        (
            "a container's root",
            "sda
             mount 2 1 /docker ext4 sda
             mount 3 2 /docker/merged overlay sda
             mount 4 1 /run/shm tmpfs",
            "unmount /docker/merged
             unmount /docker",
        ),
        (
            "bcache with its cache, and one without",
            "sda
             sda1 part sda
             sda2 part sda
             sda3 part sda
             set-1 set sda2
             bcache0 bcache bcache0 sda1 sda2 set-1
             waiting bcache sda3 sda3
             mount 2 1 /fast ext4 bcache0",
            "unmount /fast
             stop bcache on bcache0
             stop the cache set set-1
             stop bcache on sda3",
        ),
        (
            "one of two paths, and a partition",
            "sda
             sdb
             dm-0 dm mpatha mpath-36001 sda sdb
             dm-1 dm mpatha-part1 part1-mpath-36001 dm-0
             mount 2 1 /srv xfs dm-1",
            "unmount /srv
             remove the partition mpatha-part1 (dm-1)
             remove the multipath device mpatha (dm-0)",
        ),
        (
            "an array in a container",
            "sda
             md127 md sda
             md126 md sda md127",
            "stop the array md126
             stop the array md127",
        ),
        (
            "other drives' file systems below, mounted elsewhere too",
            "sda
             sdb
             mount 1 0 / ext4 sdb
             mount 2 1 /chroot ext4 sda
             mount 3 2 /chroot/host ext4 sdb",
            "unmount /chroot/host
             unmount /chroot",
        ),
        ("shared with a container", "sda\nmount 2 1 /srv ext4 sda\nelsewhere 9 /srv sda", "unmount /srv"),
        (
            "claimed by those who are known",
            "sda
             sda1 part sda
             sda2 part sda
             mount 2 1 /srv ext4 sda1
             claim sda
             claim sda1",
            "unmount /srv",
        ),
    ] {
        let want: Vec<&str> = want.lines().map(str::trim).collect();
        assert_eq!(said(text, &["sda"]), want.join("\n"), "{name}");
    }
}

#[test]
fn refusals_name_the_holder() {
    for (name, text, want) in [
        ("not here", "sdb", "there is no drive sda"),
        (
            "the root",
            "sda\nsda1 part sda\nmount 1 0 / ext4 sda1",
            "sda holds /, which the running system lives on; boot this machine from the network to erase it",
        ),
        (
            "a live system's root, deep down",
            "sda
             loop0 loop /run/live/root.squashfs sda
             mount 1 0 / overlay loop0
             mount 2 1 /run/live vfat sda",
            "sda holds /, which the running system lives on; boot this machine from the network to erase it",
        ),
        (
            "where this program lies",
            "sda\nmount 1 0 / rootfs\nmount 2 1 /opt ext4 sda\nprogram /opt/bin/agent",
            "sda holds /opt, which the running system lives on; boot this machine from the network to erase it",
        ),
        (
            "the root, seen from a container",
            "sda\nelsewhere 1 / sda",
            "sda holds /, which the running system lives on; boot this machine from the network to erase it",
        ),
        (
            "an array over two drives",
            "sda\nsdb\nsdb1 part sdb\nmd0 md sda sdb1",
            "md0 is on sda and also on sdb, not to be erased; erase them together or take md0 apart",
        ),
        (
            "a volume over two drives",
            "sda\nsdb\ndm-0 dm vg-a LVM-1 sda\ndm-1 dm vg-b LVM-2 sda sdb",
            "logical volume vg-b (dm-1) is on sda and also on sdb, not to be erased; erase them together or take logical \
             volume vg-b (dm-1) apart",
        ),
        (
            "a btrfs over two drives",
            "sda\nsdb\nmount 2 1 /srv btrfs sda sdb",
            "the btrfs at /srv is on sda and also on sdb, not to be erased; erase them together or take the btrfs at /srv \
             apart",
        ),
        (
            "a cache for another drive",
            "sda\nsdb\nset-1 set sda\nbcache0 bcache bcache0 sdb sda set-1",
            "bcache0 is on sda and also on sdb, not to be erased; erase them together or take bcache0 apart",
        ),
        (
            "another drive mounted below",
            "sda\nsdb\nmount 2 1 /srv ext4 sda\nmount 3 2 /srv/db ext4 sdb",
            "/srv/db has to be unmounted before /srv, but it's the only place where sdb is mounted, not to be erased; \
             unmount it",
        ),
        (
            "hidden",
            "sda\nsdb\nmount 2 1 /srv/a ext4 sda\nmount 3 1 /srv ext4 sdb",
            "sda is mounted at /srv/a, hidden beneath what is mounted at /srv; unmount that first",
        ),
        (
            "a container's mount",
            "sda\nelsewhere 812 /data sda",
            "sda is mounted at /data in the mount namespace of containerd (process 812); stop it",
        ),
        ("DRBD", "sda\ndrbd0 drbd sda", "sda is used by DRBD; type `drbdadm down r0`"),
        ("DRBD without a trace", "sda\nclaim sda drbd", "sda is used by DRBD; type `drbdadm down RESOURCE`"),
        (
            "ZFS",
            "sda\nsda1 part sda\nsda9 part sda\nclaim sda\nclaim sda1 tank",
            "sda belongs to the ZFS pool tank; type `zpool export tank`",
        ),
        (
            "ZFS beside something known",
            "sda\nsda1 part sda\nsda2 part sda\nmount 2 1 /srv ext4 sda2\nclaim sda\nclaim sda1 tank\nclaim sda2",
            "sda belongs to the ZFS pool tank; type `zpool export tank`",
        ),
        ("unknown", "sda\nclaim sda", "another program has claimed sda for itself; stop it"),
        (
            "strange",
            "sda\nzram0 stranger sda",
            "zram0 is on sda, and how to take it apart isn't known here; do it by hand",
        ),
        (
            "a circle",
            "sda\nmd0 md sda md1\nmd1 md md0",
            "md0 is on sda, and how to take it apart isn't known here; do it by hand",
        ),
    ] {
        assert_eq!(said(text, &["sda"]), format!("refused: {want}"), "{name}");
    }
    let both = "sda\nsdb\nmd0 md sda sdb\nmount 2 1 /srv ext4 md0";
    assert_eq!(said(both, &["sda", "sdb"]), "unmount /srv\nstop the array md0");
}

#[test]
fn a_drive_is_told_its_own_steps() {
    let stack = stack(
        "sda\nsdb\nsdc
         sda1 part sda
         md0 md sda1 sdb
         dm-0 dm secrets CRYPT-1 sdc
         swap /swap sdb
         mount 2 1 /srv ext4 md0
         mount 3 2 /srv/deep ext4 dm-0",
    );
    let drives = ["sda", "sdb", "sdc"];
    let all = plan(&stack, &drives).expect("a plan");
    for (drive, want) in [
        ("sda", "unmount /srv/deep\nunmount /srv\nstop the array md0"),
        ("sdb", "stop swapping to /swap\nunmount /srv/deep\nunmount /srv\nstop the array md0"),
        ("sdc", "unmount /srv/deep\nremove the encrypted volume secrets (dm-0)"),
    ] {
        let own: Vec<_> = concerning(&stack, &[drive], all.clone()).iter().map(ToString::to_string).collect();
        assert_eq!(own.join("\n"), want, "{drive}");
    }
}

const DRIVES: [&str; 3] = ["a", "b", "c"];

/// Any pile of arrays and loops on three drives, and any mounts of it.
fn any_stack() -> impl Strategy<Value = Stack> {
    let devices = prop::collection::vec((any::<bool>(), prop::collection::vec(0usize..100, 1..3)), 0..8);
    let mounts = prop::collection::vec((0u32..6, "(/[xy]){1,3}", prop::option::of(0usize..100)), 0..6);
    (devices, mounts).prop_map(|(devices, mounts)| {
        let mut known: Vec<String> = DRIVES.map(str::to_owned).to_vec();
        let mut stack = stack("a\nb\nc\nmount 1 0 / rootfs");
        for (number, (is_loop, on)) in devices.into_iter().enumerate() {
            let kind = if is_loop { Kind::Loop { file: "/f".into() } } else { Kind::Array };
            let on: BTreeSet<String> = on.into_iter().map(|n| known[n % known.len()].clone()).collect();
            let name = format!("{}{number}", ["z", "d"][number % 2]);
            stack.devices.insert(name.clone(), Device { kind, on });
            known.push(name);
        }
        for (id, (parent, place, on)) in (2..).zip(mounts) {
            let on = on.map(|n| known[n % known.len()].clone()).into_iter().collect();
            let parent = 1 + parent % (id - 1);
            stack.mounts.push(Mount { id, parent, place: place.into(), kind: "ext4".into(), on });
        }
        stack
    })
}

/// A file system below a mount of what is made of itself: only `mount --move` can make that, and only the kernel knows
/// whether it can be taken apart.
fn is_knotted(stack: &Stack) -> bool {
    let tree = Tree::new(&stack.mounts);
    stack.mounts.iter().any(|top| {
        tree.subtree(top).into_iter().filter(|mount| mount.id != top.id).any(|mount| {
            let below = doomed(stack, &mount.on.iter().map(String::as_str).collect::<Vec<_>>());
            top.on.iter().any(|name| below.contains(name.as_str()) && !mount.on.contains(name))
        })
    })
}

proptest! {
    /// Steps are in an order that the kernel accepts, and none reaches a drive that wasn't named.
    #[test]
    fn plans_are_safe_and_complete(stack in any_stack(), named in 1usize..8) {
        let drives: Vec<&str> = (0..3).filter(|bit| named >> bit & 1 == 1).map(|bit| DRIVES[bit]).collect();
        prop_assume!(!is_knotted(&stack));
        let Ok(steps) = plan(&stack, &drives) else { return Ok(()) };
        let mut left = stack.clone();
        for step in steps {
            match &step {
                Step::Unmount { place } => {
                    let tree = Tree::new(&left.mounts);
                    let mount = tree.at(place, |_| true).expect("something is mounted").clone();
                    prop_assert_eq!(&mount.place, place, "the path leads to a mount");
                    prop_assert!(left.mounts.iter().all(|other| other.parent != mount.id), "busy: {step}");
                    let on_it = |device: &Device| matches!(device.kind, Kind::Loop { .. }) && !device.on.is_disjoint(&mount.on);
                    prop_assert!(!left.devices.values().any(on_it), "busy: {step}");
                    left.mounts.retain(|other| other.id != mount.id);
                }
                Step::StopArray { device } | Step::DetachLoop { device, .. } => {
                    prop_assert!(left.above(device).next().is_none(), "busy: {step}");
                    prop_assert!(left.mounts.iter().all(|mount| !mount.on.contains(device)), "busy: {step}");
                    prop_assert!(stack.drives_below(device).iter().all(|drive| drives.contains(drive)), "{step}");
                    left.devices.remove(device);
                }
                other => prop_assert!(false, "{other}"),
            }
        }
        prop_assert!(doomed(&left, &drives).iter().all(|name| drives.contains(name)));
        prop_assert!(left.mounts.iter().all(|mount| !touches(&mount.on, &drives.iter().copied().collect())));
        for mount in &stack.mounts {
            let foreign = mount.on.iter().any(|on| stack.drives_below(on).iter().any(|drive| !drives.contains(drive)));
            let still = left.mounts.iter().any(|other| other.on == mount.on);
            prop_assert!(!foreign || still, "{} was taken from a drive that wasn't named", mount.place.display());
        }
    }
}
