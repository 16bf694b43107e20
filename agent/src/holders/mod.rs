//! Who holds a drive, and how to make them let go: file systems, swap, loop devices, LVM, LUKS, arrays, caches.
//!
//! [`stack`] reads what stands on what, [`plan`] decides in which order it's taken apart or why it mustn't be, and
//! [`rounds`] does it and looks again until nothing is left. Nothing of a drive that wasn't named is touched, and no
//! process is ever killed.

mod claims;
mod effects;
mod mounts;
mod plan;
mod processes;
mod rounds;
mod stack;

use std::collections::BTreeSet;
use std::path::Path;

pub(crate) use plan::{Held, Step};
pub(crate) use rounds::NotLetGo;
use stack::Kind;

/// What would be done to make everybody let go of `some` of these drives (kernel names, `sda`), below `root`, which is `/`
/// on a machine. Touches nothing.
pub(crate) fn plan_for(root: &Path, drives: &[&str], some: &[&str]) -> Result<Vec<Step>, Held> {
    let stack = stack::read(root, drives);
    let steps = plan::plan(&stack, drives)?;
    Ok(plan::concerning(&stack, some, steps))
}

/// Takes apart whatever is on these drives, and returns when nothing holds them. `say` hears of each step before it's
/// done.
pub(crate) fn let_go(drives: &[&str], say: &mut dyn FnMut(&str)) -> Result<(), NotLetGo> {
    let mut machine = rounds::Machine { root: Path::new("/"), drives, pause: rounds::PAUSE };
    rounds::let_go(&mut machine, drives, say)
}

/// Who holds a drive or a part of it, for people: `mounted at /srv`, `part of md0`.
pub(crate) fn in_words(root: &Path, drive: &str) -> Vec<String> {
    let stack = stack::read(root, &[]);
    let parts: BTreeSet<&str> = stack.parts(drive).collect();
    let mut found = BTreeSet::new();
    for (name, device) in &stack.devices {
        if device.kind != Kind::Partition && device.on.iter().any(|on| parts.contains(on.as_str())) {
            found.insert(format!("part of {}", plan::title(name, device)));
        }
    }
    let on_parts = |on: &BTreeSet<String>| on.iter().any(|on| parts.contains(on.as_str()));
    found.extend(
        stack.mounts.iter().filter(|m| on_parts(&m.on)).map(|mount| format!("mounted at {}", mount.place.display())),
    );
    found.extend(stack.elsewhere.iter().filter(|elsewhere| on_parts(&elsewhere.on)).map(|elsewhere| {
        format!("mounted at {} in the mount namespace of {}", elsewhere.place.display(), elsewhere.process)
    }));
    if stack.swaps.iter().any(|swap| on_parts(&swap.on)) {
        found.insert("used as swap".to_owned());
    }
    found.into_iter().collect()
}

/// Lists of mounts: every path in them is one that the kernel could have.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let lines = mounts::parse(text.as_bytes());
    assert!(lines.len() <= text.lines().count());
    let mounts: Vec<mounts::Mount> = lines
        .into_iter()
        .map(|line| mounts::Mount {
            id: line.id,
            parent: line.parent,
            place: line.place,
            kind: line.kind,
            on: mounts::side_devices(&line.options).iter().map(|path| path.display().to_string()).collect(),
        })
        .collect();
    let tree = mounts::Tree::new(&mounts);
    for mount in &mounts {
        assert!(tree.subtree(mount).len() <= mounts.len());
        tree.at(&mount.place, |_| true);
    }
}

#[cfg(test)]
mod real;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn holders_are_named() {
        let tree = Tree::new();
        for (dir, number) in [("nvme0n1", "259:0"), ("nvme0n1/nvme0n1p1", "259:1"), ("nvme0n1/nvme0n1p2", "259:2")] {
            tree.file(&format!("sys/block/{dir}/dev"), format!("{number}\n"));
        }
        tree.file("sys/block/nvme0n1/nvme0n1p1/partition", "1\n");
        tree.file("sys/block/nvme0n1/nvme0n1p2/partition", "2\n");
        tree.file("sys/block/nvme0n1/queue/dev", "no partition\n");
        for (name, file, content, want) in [
            ("nobody known", "proc/swaps", "", ""),
            ("another drive's mount", "proc/self/mountinfo", "9 1 8:1 / / rw - ext4 /dev/sda1 rw\n", ""),
            (
                "by number",
                "proc/self/mountinfo",
                "9 1 259:2 / /srv rw shared:1 - ext4 /dev/root rw\n",
                "mounted at /srv",
            ),
            ("by source", "proc/self/mountinfo", "9 1 0:40 / /b rw - btrfs /dev/nvme0n1p1 rw\n", "mounted at /b"),
            (
                "swap as well",
                "proc/swaps",
                "Filename Type\n/dev/nvme0n1p2 partition 1 0 -2\n",
                "mounted at /b, used as swap",
            ),
            ("array", "sys/block/nvme0n1/nvme0n1p2/holders/md0", "", "mounted at /b, part of md0, used as swap"),
        ] {
            tree.file(file, content);
            assert_eq!(in_words(tree.root(), "nvme0n1").join(", "), want, "{name}");
        }
    }
}
