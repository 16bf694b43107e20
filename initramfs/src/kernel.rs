//! Debian's signed kernel, unpacked: its image, and its modules as plain files under the names the kernel knows them by.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

use crate::elf;
use crate::modules::{Found, Module, canonical, describe};

/// No module is a fraction of this; a compressed file that claims more is damaged.
const MAX_MODULE: u64 = 256 << 20;

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: quick to unpack, without drivers for hardware that they don't have.
    Cloud,
    /// For real servers.
    Generic,
}

impl Flavour {
    /// What Debian calls it, in `linux-image-…`.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Cloud => "cloud-amd64",
            Self::Generic => "amd64",
        }
    }
}

impl FromStr for Flavour {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cloud" => Ok(Self::Cloud),
            "generic" => Ok(Self::Generic),
            _ => bail!("{name:?} is no kernel flavour; there are \"cloud\" and \"generic\""),
        }
    }
}

/// A kernel in an unpacked package.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` will say.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// `/lib/modules/RELEASE` of the package.
    modules: PathBuf,
    files: BTreeMap<String, PathBuf>,
    /// `modules.builtin` as the package has it.
    pub(crate) builtin_list: String,
    builtin: BTreeSet<String>,
    pub(crate) builtin_aliases: BTreeSet<String>,
}

impl Kernel {
    pub(crate) fn in_tree(tree: &Path) -> Result<Self> {
        let (release, image) = find_image(&tree.join("boot"))?;
        let places = [tree.join("lib/modules").join(&release), tree.join("usr/lib/modules").join(&release)];
        let modules = places
            .into_iter()
            .find(|place| place.is_dir())
            .with_context(|| format!("the kernel package in {} has no modules for {release}", tree.display()))?;
        let mut files = BTreeMap::new();
        collect(&modules, &modules.join("kernel"), &mut files)?;
        let builtin_list = fs::read_to_string(modules.join("modules.builtin"))
            .with_context(|| format!("reading modules.builtin of {release}"))?;
        let builtin = builtin_list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        let modinfo = fs::read(modules.join("modules.builtin.modinfo"))
            .with_context(|| format!("reading modules.builtin.modinfo of {release}"))?;
        // Here each key carries its module's name: "crc32c_generic.alias=crypto-crc32c".
        let builtin_aliases = elf::pairs(&modinfo)
            .into_iter()
            .filter(|(key, _)| key.ends_with(".alias"))
            .map(|(_, alias)| canonical(&alias))
            .collect();
        Ok(Self { release, image, modules, files, builtin_list, builtin, builtin_aliases })
    }

    pub(crate) fn find(&self, name: &str) -> Result<Found> {
        let Some(path) = self.files.get(name) else {
            return Ok(if self.builtin.contains(name) { Found::Builtin } else { Found::Absent });
        };
        let pairs = elf::modinfo(&self.read(path)?).with_context(|| format!("reading the module {name}"))?;
        Ok(Found::Module(self.described(path, &pairs)))
    }

    /// The module's bytes as the kernel loads them: not compressed, the signature still on them.
    pub(crate) fn content(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.files.get(name).with_context(|| format!("the kernel {} has no module {name}", self.release))?;
        self.read(path)
    }

    fn described(&self, path: &Path, pairs: &[(String, String)]) -> Module {
        let plain = path.with_extension("");
        let plain = if path.extension().is_some_and(|extension| extension == "ko") { path } else { &plain };
        describe(&plain.to_string_lossy(), pairs)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let path = self.modules.join(path);
        let open = || File::open(&path).with_context(|| format!("opening {}", path.display()));
        let mut bytes = Vec::new();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => liblzma::read::XzDecoder::new(open()?).take(MAX_MODULE).read_to_end(&mut bytes),
            Some("zst") => zstd::Decoder::new(open()?)
                .with_context(|| format!("decompressing {}", path.display()))?
                .take(MAX_MODULE)
                .read_to_end(&mut bytes),
            _ => open()?.take(MAX_MODULE).read_to_end(&mut bytes),
        }
        .with_context(|| format!("reading {}", path.display()))?;
        ensure!((bytes.len() as u64) < MAX_MODULE, "{} is too big for a kernel module", path.display());
        Ok(bytes)
    }
}

fn find_image(boot: &Path) -> Result<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(boot).with_context(|| format!("reading {}", boot.display()))? {
        let entry = entry.with_context(|| format!("reading {}", boot.display()))?;
        if let Some(release) = entry.file_name().to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
            found.push((release.to_owned(), entry.path()));
        }
    }
    ensure!(found.len() == 1, "{} holds {} kernels where one was expected", boot.display(), found.len());
    Ok(found.remove(0))
}

/// All modules below `directory`, by canonical name, with their paths relative to `root`.
fn collect(root: &Path, directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
        let path = entry.path();
        if entry.file_type().with_context(|| format!("looking at {}", path.display()))?.is_dir() {
            collect(root, &path, files)?;
        } else if let Some(name) = module_name(&path) {
            let relative = path.strip_prefix(root).with_context(|| format!("naming {}", path.display()))?;
            files.insert(name, relative.to_owned());
        }
    }
    Ok(())
}

/// `crc32c_intel` for `arch/x86/crypto/crc32c-intel.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(canonical(stem))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn module_names_are_what_the_kernel_says() {
        for (path, expected) in [
            ("kernel/drivers/net/e1000e.ko", Some("e1000e")),
            ("kernel/arch/x86/crypto/crc32c-intel.ko", Some("crc32c_intel")),
            ("a/b.ko.xz", Some("b")),
            ("a/b.ko.zst", Some("b")),
            ("a/b.ko.gz", None),
            ("modules.order", None),
        ] {
            assert_eq!(module_name(Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_package_is_read_whether_its_modules_are_compressed_or_not() {
        for (case, modules, suffix) in [
            ("Debian 12", "lib/modules", ""),
            ("Debian 13", "usr/lib/modules", ".xz"),
            ("Ubuntu", "lib/modules", ".zst"),
        ] {
            let tree = tempfile::tempdir().expect(case);
            let modules = tree.path().join(modules).join("6.1.0-1");
            fs::create_dir_all(tree.path().join("boot")).expect(case);
            fs::create_dir_all(modules.join("kernel/fs")).expect(case);
            fs::write(tree.path().join("boot/vmlinuz-6.1.0-1"), "image").expect(case);
            fs::write(modules.join("modules.builtin"), "kernel/drivers/nvme/host/nvme-core.ko\n").expect(case);
            fs::write(modules.join("modules.builtin.modinfo"), b"crc.alias=crypto-crc\0crc.license=GPL\0").expect(case);
            let file = File::create(modules.join(format!("kernel/fs/my-fs.ko{suffix}"))).expect(case);
            match suffix {
                ".xz" => liblzma::write::XzEncoder::new(file, 1).write_all(b"module").expect(case),
                ".zst" => {
                    let mut encoder = zstd::Encoder::new(file, 1).expect(case).auto_finish();
                    encoder.write_all(b"module").expect(case);
                }
                _ => (&file).write_all(b"module").expect(case),
            }
            let kernel = Kernel::in_tree(tree.path()).expect(case);
            assert_eq!(kernel.release, "6.1.0-1", "{case}");
            assert_eq!(kernel.content("my_fs").expect(case), b"module", "{case}");
            assert_eq!(kernel.described(&kernel.files["my_fs"], &[]).path, "kernel/fs/my-fs.ko", "{case}");
            assert_eq!(kernel.find("nvme_core").expect(case), Found::Builtin, "{case}");
            assert_eq!(kernel.find("floppy").expect(case), Found::Absent, "{case}");
            assert!(kernel.builtin_aliases.contains("crypto_crc"), "{case}");
        }
    }
}
