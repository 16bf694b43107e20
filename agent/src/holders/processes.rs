//! Which processes use a device or work below a mount, so that a refusal can say whom to stop. Nobody is ever killed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::mounts::{self, Line};
use crate::inventory::sysfs;

/// Enough to know what to stop; more would only fill the sentence.
const NAMED: usize = 5;
/// A process may have a million files open.
const FILES: usize = 4096;
/// Containers; each of them has its own list of mounts.
const NAMESPACES: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.id)
    }
}

/// Processes that use something, as the end of a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Users(pub(crate) Vec<Process>);

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().take(NAMED).map(Process::to_string).collect();
        match names.as_slice() {
            [] => Ok(()),
            [one] => write!(f, "; {one} uses it"),
            many => {
                let more = if self.0.len() > many.len() { " and others" } else { "" };
                write!(f, "; {}{more} use it", many.join(", "))
            }
        }
    }
}

/// Processes that have one of the device `nodes` open, or that work in or below `place`. Only links are read: a file
/// system that hangs can't stop us.
pub(super) fn using(root: &Path, nodes: &[PathBuf], place: Option<&Path>) -> Users {
    let uses =
        |path: &Path| nodes.iter().any(|node| node == path) || place.is_some_and(|place| path.starts_with(place));
    let mut users = Vec::new();
    for (id, dir) in all(root) {
        let own = ["cwd", "root", "exe"].into_iter().map(|link| dir.join(link));
        let open = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path()).take(FILES);
        if own.chain(open).any(|link| fs::read_link(link).is_ok_and(|path| uses(&path))) {
            users.push(process(id, &dir));
            // One more than are named tells that there are others.
            if users.len() > NAMED {
                break;
            }
        }
    }
    Users(users)
}

/// Mounts of every mount namespace but ours, each with one of the processes that live in it.
pub(super) fn other_mounts(root: &Path) -> Vec<(Process, Line)> {
    let namespace = |dir: &Path| fs::read_link(dir.join("ns/mnt")).ok();
    let mut seen: BTreeSet<PathBuf> = namespace(&root.join("proc/self")).into_iter().collect();
    let mut found = Vec::new();
    for (id, dir) in all(root) {
        if seen.len() > NAMESPACES {
            break;
        }
        if namespace(&dir).is_some_and(|namespace| seen.insert(namespace)) {
            let lines = mounts::parse(&sysfs::bytes(&dir.join("mountinfo")).unwrap_or_default());
            found.extend(lines.into_iter().map(|line| (process(id, &dir), line)));
        }
    }
    found
}

fn all(root: &Path) -> impl Iterator<Item = (u32, PathBuf)> {
    let proc = root.join("proc");
    sysfs::names(&proc).into_iter().filter_map(move |name| Some((name.parse().ok()?, proc.join(name))))
}

fn process(id: u32, dir: &Path) -> Process {
    Process { id, name: sysfs::text(&dir.join("comm")).unwrap_or_else(|| "a program".to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn users_are_found_and_named() {
        let tree = Tree::new();
        let link = |path: &str, target: &str| {
            tree.file(&format!("{path}.dir"), "");
            symlink(target, tree.root().join(path)).expect("linking");
        };
        for (id, comm, links) in [
            (1, "init", vec![("cwd", "/"), ("exe", "/sbin/init")]),
            (20, "bash", vec![("cwd", "/srv/data")]),
            (21, "nginx", vec![("cwd", "/"), ("fd/3", "/srv/log")]),
            (22, "cat", vec![("fd/0", "/dev/dm-3"), ("fd/1", "/srvx")]),
            (23, "chrooted", vec![("root", "/srv")]),
        ] {
            tree.file(&format!("proc/{id}/comm"), format!("{comm}\n"));
            for (name, target) in links {
                link(&format!("proc/{id}/{name}"), target);
            }
        }
        let node = [PathBuf::from("/dev/dm-3")];
        for (name, nodes, place, want) in [
            ("nobody", &[][..], None, ""),
            ("a device", &node[..], None, "; cat (process 22) uses it"),
            ("a mount", &[], Some("/srv"), "; bash (process 20), nginx (process 21), chrooted (process 23) use it"),
        ] {
            assert_eq!(using(tree.root(), nodes, place.map(Path::new)).to_string(), want, "{name}");
        }
        for id in 30..40 {
            link(&format!("proc/{id}/cwd"), "/srv");
        }
        let many = using(tree.root(), &[], Some(Path::new("/srv"))).to_string();
        assert!(many.ends_with("a program (process 30), a program (process 31) and others use it"), "{many}");
    }
}
