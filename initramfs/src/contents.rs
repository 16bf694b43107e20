//! What lies in the initramfs: the agent as `/init`, modules with their indexes, what makes ext4 and xfs with its libraries, and
//! nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use drophammer_images::debian::{Package, Unpacked};

use crate::closure;
use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::modules::{self, Selection, Set};

/// Programs, by where Debian's packages have them, apart from `usr`, and where the agent looks for them.
const PROGRAMS: [(&str, &str); 2] = [("sbin/mke2fs", "usr/sbin/mke2fs"), ("sbin/mkfs.xfs", "usr/sbin/mkfs.xfs")];

/// mke2fs goes by it.
const CONFIGURATION: &str = "etc/mke2fs.conf";

/// Directories that something is mounted on or written to.
const DIRECTORIES: [(&str, u32); 8] = [
    ("dev", 0o755),
    ("etc/drophammer", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// Everything that goes in, and what is to be said about it.
pub(crate) struct Contents {
    pub(crate) archive: Archive<'static>,
    pub(crate) selection: Selection,
    pub(crate) module_bytes: u64,
    pub(crate) tool_bytes: u64,
    /// Licence texts of the packages that files were taken from, by package name.
    pub(crate) licences: BTreeMap<String, Vec<u8>>,
    pub(crate) notice: String,
}

pub(crate) fn gather(agent: Vec<u8>, set: Set, kernel: &Kernel, packages: &[Unpacked]) -> Result<Contents> {
    let mut archive = Archive::new();
    for (path, permissions) in DIRECTORIES {
        archive.directory(path, permissions)?;
    }
    // The kernel opens it for PID 1 before anything is mounted.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", agent, 0o755)?;

    let wanted = modules::parse_list(modules::LIST, set)?;
    let selection = modules::select(&wanted, &kernel.builtin_aliases, |name| kernel.find(name))?;
    let module_bytes = add_modules(&mut archive, kernel, &selection)?;

    let tool_bytes = add_tools(&mut archive, packages)?;
    let licences = licences(packages)?;
    let notice = notice(packages);
    archive.file("usr/share/doc/drophammer/NOTICE", notice.clone().into_bytes(), 0o644)?;
    Ok(Contents { archive, selection, module_bytes, tool_bytes, licences, notice })
}

fn add_modules(archive: &mut Archive<'static>, kernel: &Kernel, selection: &Selection) -> Result<u64> {
    let root = format!("lib/modules/{}", kernel.release);
    let mut bytes = 0;
    for (name, module) in &selection.modules {
        let content = kernel.content(name)?;
        bytes += content.len() as u64;
        archive.file(&format!("{root}/{}", module.path), content, 0o644)?;
    }
    for (name, text) in [
        ("modules.dep", selection.modules_dep()?),
        ("modules.alias", selection.modules_alias()?),
        ("modules.builtin", kernel.builtin_list.clone()),
    ] {
        archive.file(&format!("{root}/{name}"), text.into_bytes(), 0o644)?;
    }
    Ok(bytes)
}

fn add_tools(archive: &mut Archive<'static>, packages: &[Unpacked]) -> Result<u64> {
    // By path, for the programs share most of their libraries.
    let mut files = BTreeMap::new();
    for (packaged, path) in PROGRAMS {
        let mut parts = closure::close(packaged, |path| closure::read(packages, path))?;
        files.extend(parts.remove(packaged).map(|program| (path.to_owned(), program)));
        files.extend(parts);
    }
    let mut bytes = 0;
    for (path, content) in files {
        bytes += content.len() as u64;
        archive.file(&path, content, 0o755)?;
    }
    let configuration = closure::read(packages, CONFIGURATION)?;
    let configuration =
        configuration.with_context(|| format!("no package has {CONFIGURATION}, which mke2fs goes by"))?;
    bytes += configuration.len() as u64;
    archive.file(CONFIGURATION, configuration, 0o644)?;
    Ok(bytes)
}

fn licences(packages: &[Unpacked]) -> Result<BTreeMap<String, Vec<u8>>> {
    let text = |package: &Package| {
        let path = format!("usr/share/doc/{}/copyright", package.name);
        // Some packages link their documentation to that of another, so all are searched.
        let text = closure::read(packages, &path)?;
        text.with_context(|| format!("the package {} has no copyright file", package.name))
    };
    packages.iter().map(|unpacked| Ok((unpacked.package.name.clone(), text(&unpacked.package)?))).collect()
}

/// What the licences of shipped programs ask to be said along with them.
fn notice(packages: &[Unpacked]) -> String {
    let mut text = String::from(
        "This boot directory holds programs of others, unmodified, as Debian distributes them, each under its own licence.\n\
         The Linux kernel, its modules, e2fsprogs, xfsprogs and iPXE are free software under the GNU General Public\n\
         License, version 2 (iPXE: 2 or later; parts of it and of e2fsprogs under compatible licences); the GNU C library\n\
         and liburcu are under the GNU Lesser General Public License, and so is systemd's stub where there is one; libinih\n\
         is under a BSD licence. They come without any warranty.\n\
         \n\
         The licence of each package is in licences/PACKAGE beside the kernel, and the full source code of each is what\n\
         `apt-get source PACKAGE=VERSION` fetches from Debian's archive or its snapshots:\n\
         \n",
    );
    for Unpacked { package, .. } in packages {
        let _ = writeln!(text, "  {} {}", package.name, package.version);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::cpio::tests::parse;
    use crate::elf::tests::module_file;

    fn put(tree: &Path, path: &str, content: &[u8]) {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        fs::write(path, content).expect("a file");
    }

    /// A kernel with two modules that our list has, one that it needs, and one that nobody asked for.
    fn packages(root: &Path) -> Vec<Unpacked> {
        let modules = "kernel/lib/modules/6.1-test";
        for (path, content) in [
            ("kernel/boot/vmlinuz-6.1-test", b"image".to_vec()),
            ("kernel/usr/share/doc/kernel/copyright", b"GPL-2".to_vec()),
            (&format!("{modules}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\n".to_vec()),
            (&format!("{modules}/modules.builtin.modinfo"), b"ext4.alias=fs-ext4\0".to_vec()),
            (&format!("{modules}/kernel/virtio-rng.ko"), module_file(b"alias=virtio:d00000004v*\0depends=virtio\0")),
            (&format!("{modules}/kernel/virtio.ko"), module_file(b"depends=\0")),
            (&format!("{modules}/kernel/igc.ko"), module_file(b"alias=pci:v00008086d000015F2*\0depends=\0")),
            (&format!("{modules}/kernel/joydev.ko"), module_file(b"depends=\0")),
            ("tools/sbin/mke2fs", module_file(b"")),
            ("tools/usr/sbin/mkfs.xfs", module_file(b"")),
            ("tools/etc/mke2fs.conf", b"[defaults]".to_vec()),
            ("tools/usr/share/doc/tools/copyright", b"GPL-2 too".to_vec()),
        ] {
            put(root, path, &content);
        }
        ["kernel", "tools"]
            .map(|name| Unpacked {
                package: Package { name: name.into(), version: "1".into(), sha256: String::new(), file: String::new() },
                tree: root.join(name),
            })
            .into()
    }

    #[test]
    fn the_same_parts_give_the_same_bytes_wherever_they_lie() {
        let archive = |set| {
            let root = tempfile::tempdir().expect("a directory");
            let packages = packages(root.path());
            let kernel = Kernel::in_tree(&packages[0].tree).expect("a kernel");
            gather(b"agent".to_vec(), set, &kernel, &packages).expect("contents").archive.to_bytes()
        };
        assert!(archive(Set::Metal) == archive(Set::Metal));
        assert!(archive(Set::Metal) != archive(Set::Vm), "igc is for metal");
    }

    #[test]
    fn the_initramfs_holds_what_a_boot_needs() {
        let root = tempfile::tempdir().expect("a directory");
        let packages = packages(root.path());
        let kernel = Kernel::in_tree(&packages[0].tree).expect("a kernel");
        let contents = gather(b"agent".to_vec(), Set::Vm, &kernel, &packages).expect("contents");
        let records = parse(&contents.archive.to_bytes());
        let modules = "lib/modules/6.1-test";
        for (path, mode, expected) in [
            ("init", 0o100_755, Some("agent")),
            ("dev/console", 0o020_600, None),
            ("tmp", 0o041_777, None),
            ("proc", 0o040_555, None),
            ("etc/drophammer", 0o040_755, None),
            ("etc/mke2fs.conf", 0o100_644, Some("[defaults]")),
            ("usr/sbin/mke2fs", 0o100_755, None),
            ("usr/sbin/mkfs.xfs", 0o100_755, None),
            ("usr/share/doc/drophammer/NOTICE", 0o100_644, Some(contents.notice.as_str())),
            (&format!("{modules}/kernel/virtio-rng.ko"), 0o100_644, None),
            (&format!("{modules}/kernel/virtio.ko"), 0o100_644, None),
            (
                &format!("{modules}/modules.dep"),
                0o100_644,
                Some("kernel/virtio.ko:\nkernel/virtio-rng.ko: kernel/virtio.ko\n"),
            ),
            (&format!("{modules}/modules.alias"), 0o100_644, Some("alias virtio:d00000004v* virtio_rng\n")),
            (&format!("{modules}/modules.builtin"), 0o100_644, Some("kernel/fs/ext4/ext4.ko\n")),
        ] {
            let record = records.iter().find(|record| record.name == path).expect(path);
            assert_eq!(record.mode, mode, "{path}");
            if let Some(expected) = expected {
                assert_eq!(String::from_utf8_lossy(&record.body), expected, "{path}");
            }
        }
        assert!(!records.iter().any(|record| record.name.contains("joydev") || record.name.contains("igc")));
        assert_eq!(contents.selection.builtin, ["ext4"]);
        assert!(contents.selection.absent.contains(&"virtio_net".to_owned()));
        assert_eq!(contents.licences.keys().collect::<Vec<_>>(), ["kernel", "tools"]);
        assert!(contents.notice.contains("  tools 1\n"), "{}", contents.notice);
    }
}
