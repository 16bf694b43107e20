//! Unmounting for real, in a mount namespace of our own, where nobody else can be hurt. The file systems are in memory and
//! say that they're on drives, which are made up.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};

use super::mounts;
use super::rounds::{self, Machine};
use crate::inventory::tests::Tree;

const INSIDE: &str = "DROPHAMMER_TEST_IN_A_NAMESPACE";

#[test]
fn mounts_are_let_go() {
    if env::var_os(INSIDE).is_some() {
        return inside();
    }
    let this = concat!(module_path!(), "::mounts_are_let_go");
    let this = this.split_once("::").expect("a crate").1;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", this, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs; it is in the Debian package util-linux");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

struct Places {
    tree: Tree,
    base: PathBuf,
}

impl Places {
    fn mount(&self, device: &str, place: &str) {
        let place = self.base.join(place);
        fs::create_dir_all(&place).expect("a directory");
        mount(Some(device), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounting in our namespace");
    }

    /// What is mounted below our directory, with its source.
    fn mounted(&self) -> Vec<String> {
        let all = mounts::parse(&fs::read("/proc/self/mountinfo").expect("mountinfo"));
        let ours = all.iter().filter_map(|line| Some((line.place.strip_prefix(&self.base).ok()?, &line.source)));
        ours.map(|(place, source)| format!("{} {}", source.display(), place.display())).collect()
    }

    fn let_go(&self) -> (String, Vec<String>) {
        let drives = ["sda"];
        let mut said = Vec::new();
        let mut machine = Machine { root: self.tree.root(), drives: &drives, pause: Duration::from_millis(5) };
        let result = rounds::let_go(&mut machine, &drives, &mut |step| said.push(step.to_owned()));
        let base = format!("{}/", self.base.display());
        let said = said.iter().map(|step| step.replace(&base, "")).collect();
        (result.err().map(|e| e.to_string().replace(&base, "")).unwrap_or_default(), said)
    }

    fn worker(&self, place: &str) -> Child {
        Command::new("sleep").arg("60").current_dir(self.base.join(place)).spawn().expect("sleep runs")
    }
}

fn inside() {
    let directory = tempfile::tempdir().expect("a directory");
    let base = fs::canonicalize(directory.path()).expect("a path without links");
    let tree = Tree::new();
    for (path, number) in [("sda", "8:0"), ("sda/sda1", "8:1"), ("sda/sda2", "8:2"), ("sdb", "8:16")] {
        tree.file(&format!("sys/block/{path}/dev"), format!("{number}\n"));
    }
    for part in ["sda1", "sda2"] {
        tree.file(&format!("sys/block/sda/{part}/partition"), "1\n");
    }
    symlink("/proc", tree.root().join("proc")).expect("linking");
    let places = Places { tree, base };
    places.mount("/dev/sdb", "other");
    places.mount("/dev/sda1", "a");
    places.mount("/dev/sda2", "a/b c");
    places.mount("/dev/sda1", "a/b c");
    places.mount("none", "a/b c/tmp");
    let (a, bound) = (places.base.join("a"), places.base.join("other/bound"));
    fs::create_dir_all(&bound).expect("a directory");
    mount(Some(&a), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("binding");

    let mut worker = places.worker("a/b c/tmp");
    let (refused, said) = places.let_go();
    let words =
        format!("trying to unmount a/b c/tmp: Device or resource busy (os error 16); sleep (process {})", worker.id());
    assert!(refused.starts_with(&words), "{refused}");
    assert_eq!(said, ["unmount other/bound", "unmount a/b c/tmp"]);
    worker.kill().expect("our own child");
    worker.wait().expect("our own child");

    let (refused, said) = places.let_go();
    assert_eq!(refused, "");
    assert_eq!(said, ["unmount a/b c/tmp", "unmount a/b c", "unmount a"], "the second of b c is the same step");
    assert_eq!(places.mounted(), ["/dev/sdb other"]);
    umount(&places.base.join("other")).expect("unmounting, so that the directory can go");
}
