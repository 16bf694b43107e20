//! With Debian's real packages. They are fetched if the cache doesn't have them, so this runs when it is asked for:
//! `cargo test -p drophammer-initramfs -- --ignored`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use drophammer_initramfs::{Flavour, Options, Set, UkiOptions, build};

/// The smallest file that passes for a static program: an ELF header and nothing else.
fn agent(directory: &Path) -> std::path::PathBuf {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(64, 0);
    header[16] = 2;
    header[18] = 62;
    header[20] = 1;
    header[52] = 64;
    let path = directory.join("agent");
    fs::write(&path, header).expect("writing the agent");
    path
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"));
        }
    }
    files
}

#[test]
fn a_boot_directory_is_complete_reproducible_and_made_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = agent(directory.path());
    let options = |out: &str| Options {
        flavour: Flavour::Cloud,
        set: Set::Vm,
        agent: Some(agent.clone()),
        uki: Some(UkiOptions::default()),
        out: directory.path().join(out),
    };
    let first = build(&options("one")).expect("a boot directory");
    build(&options("two")).expect("a boot directory");
    let (one, two) = (files(&directory.path().join("one")), files(&directory.path().join("two")));
    assert_eq!(
        one.keys().collect::<Vec<_>>(),
        ["NOTICE", "agent.efi", "boot.json", "initramfs", "snponly.efi", "undionly.kpxe", "vmlinuz"]
    );
    assert!(one == two, "two directories, the same bytes");
    assert_eq!(one["initramfs"].len() % 4, 0, "a segment can follow");
    assert!(first.sizes.initramfs <= 4 << 20, "{} bytes without an agent", first.sizes.initramfs);
    let parts = one["vmlinuz"].len() + one["initramfs"].len();
    assert!((parts..parts + (256 << 10)).contains(&one["agent.efi"].len()), "kernel, initramfs and a small stub");
    assert!(!first.fresh && build(&options("one")).expect("a boot directory").fresh);
}

#[test]
fn every_name_in_the_list_is_a_module_of_the_generic_kernel() {
    let directory = tempfile::tempdir().expect("a directory");
    let built = build(&Options {
        flavour: Flavour::Generic,
        set: Set::Metal,
        agent: Some(agent(directory.path())),
        uki: None,
        out: directory.path().join("out"),
    })
    .expect("a boot directory");
    assert_eq!(built.absent, [""; 0]);
    assert!(built.sizes.initramfs <= 12 << 20, "{} bytes without an agent", built.sizes.initramfs);
}
