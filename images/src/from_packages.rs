//! Images made of single files of packages: nothing is installed, and nothing of them runs but two tools that only read
//! their arguments. Takes a second and no rights at all.

use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::Apt;
use crate::recipe::{Recipe, Take};
use crate::rootfs::Rootfs;
use crate::{command, grub, modules};

/// grub-mkimage runs with its own libraries, so that neither the host's version of GRUB nor that of its libc matters.
const GRUB_TOOL: [&str; 7] =
    ["grub-common", "libc6", "libdevmapper1.02.1", "liblzma5", "libselinux1", "libudev1", "libpcre2-8-0"];
const GRUB_FILES: [&str; 2] = ["grub-pc-bin", "grub-efi-amd64-bin"];

/// What a recipe of this kind asks for, with the kernel's package already known by its version.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) modules: &'a [String],
    pub(crate) busybox: Option<&'a str>,
    pub(crate) take: &'a [Take],
}

/// Every package that goes into it, sorted.
pub(crate) fn packages<'a>(contents: &Contents<'a>) -> Vec<&'a str> {
    let taken = contents.take.iter().map(|take| take.package.as_str());
    let mut all: Vec<&str> =
        taken.chain([contents.kernel]).chain(GRUB_TOOL.iter().chain(&GRUB_FILES).copied()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Writes the tar to `out`, using `work`, an empty directory.
pub(crate) fn make(
    recipe: &Recipe,
    contents: &Contents<'_>,
    apt: &Apt,
    epoch: u64,
    work: &Path,
    out: &Path,
) -> Result<()> {
    let names = packages(contents);
    let debs = apt.download(&names, &work.join("debs"))?;
    let unpacked = |package: &str| work.join("unpacked").join(package);
    for (name, deb) in names.iter().zip(&debs) {
        // The tools share one root, in which they find their libraries.
        unpack(deb, &unpacked(if GRUB_TOOL.contains(name) { "tools" } else { name }))?;
    }

    let mut rootfs = Rootfs::of(recipe);
    for Take { package, path } in contents.take {
        let file = unpacked(package).join(path.trim_start_matches('/'));
        rootfs.file(path, if is_executable(&file)? { 0o755 } else { 0o644 }, read(&file)?);
    }
    if let Some(path) = contents.busybox {
        let take = contents.take.iter().find(|take| take.path == path);
        let take = take.with_context(|| format!("{path} is to be the busybox but isn't taken from any package"))?;
        link_commands(&mut rootfs, path, &unpacked(&take.package).join(path.trim_start_matches('/')))?;
    }
    add_kernel(&mut rootfs, contents, &unpacked(contents.kernel))?;
    add_grub(&mut rootfs, &unpacked("tools"), &unpacked("grub-pc-bin"), &unpacked("grub-efi-amd64-bin"), work)?;

    let file = fs::File::create(out).with_context(|| format!("creating {}", out.display()))?;
    rootfs.write(BufWriter::new(file), epoch).with_context(|| format!("writing {}", out.display()))
}

fn add_kernel(rootfs: &mut Rootfs, contents: &Contents<'_>, package: &Path) -> Result<()> {
    let version = contents.kernel.trim_start_matches("linux-image-");
    let kernel = format!("boot/vmlinuz-{version}");
    rootfs.file(&kernel, 0o644, read(&package.join(&kernel))?);

    let dir = format!("lib/modules/{version}");
    let (all, builtin) = modules::read(&package.join(&dir))?;
    let order = modules::closure(contents.modules, &all, &builtin)
        .with_context(|| format!("choosing modules of {}", contents.kernel))?;
    for module in &order {
        rootfs.file(&format!("{dir}/{}", module.path), 0o644, read(&package.join(&dir).join(&module.path))?);
    }
    rootfs.file(&format!("{dir}/modules.dep"), 0o644, modules::dep_table(&order, &all, &builtin)?.into_bytes());
    rootfs.file(&format!("{dir}/modules.alias"), 0o644, modules::alias_table(&order).into_bytes());
    let file = "modules.builtin";
    rootfs.file(&format!("{dir}/{file}"), 0o644, read(&package.join(&dir).join(file))?);
    Ok(())
}

fn add_grub(rootfs: &mut Rootfs, tools: &Path, bios: &Path, efi: &Path, work: &Path) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "making GRUB's core image runs a program for x86-64, and this host is of another kind: build the image on x86-64"
    );
    let modules = bios.join(grub::BIOS_MODULES);
    let core = work.join("core.img");
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the work directory's name isn't UTF-8");
    let libraries = format!("{0}/lib/x86_64-linux-gnu:{0}/usr/lib/x86_64-linux-gnu", text(tools)?);
    let mut mkimage = Command::new(tools.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    mkimage
        .args(["--library-path", &libraries])
        .arg(tools.join("usr/bin/grub-mkimage"))
        .args(grub::mkimage(&text(&modules)?, &text(&core)?));
    command::output(&mut mkimage, "grub-common").context("making GRUB's core image")?;
    rootfs.file(grub::BOOT_IMG, 0o644, read(&modules.join("boot.img"))?);
    rootfs.file(grub::CORE_IMG, 0o644, read(&core)?);
    rootfs.file(grub::GRUBX64, 0o644, read(&efi.join(grub::MONOLITHIC_EFI))?);
    Ok(())
}

fn link_commands(rootfs: &mut Rootfs, path: &str, binary: &Path) -> Result<()> {
    let list = command::output(Command::new(binary).arg("--list"), "busybox-static").context("listing its commands")?;
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    for name in list.lines().filter(|name| !name.is_empty() && !name.contains('/')) {
        let link = format!("{dir}/{name}");
        if !rootfs.has(&link) {
            rootfs.link(&link, file);
        }
    }
    Ok(())
}

fn unpack(deb: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let deb_and_dir: [&PathBuf; 2] = [&deb.to_owned(), &to.to_owned()];
    command::output(Command::new("dpkg-deb").arg("--extract").args(deb_and_dir), "dpkg")
        .with_context(|| format!("unpacking {}", deb.display()))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn is_executable(path: &Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::Sources;
    use crate::recipe::Make;

    #[test]
    fn the_same_packages_at_the_same_date_give_the_same_tar_anywhere() -> Result<()> {
        let recipe = Recipe::load("tiny")?;
        let Make::Packages { kernel, modules, busybox, take } = &recipe.make else { panic!("made of packages") };
        let apt = Apt::open(&Sources::for_suite(&recipe.suite)?)?;
        let kernel = apt.resolve_kernel(kernel)?;
        let contents = Contents { kernel: &kernel, modules, busybox: busybox.as_deref(), take };
        let tar = || -> Result<Vec<u8>> {
            let work = tempfile::tempdir()?;
            let out = work.path().join("out.tar");
            make(&recipe, &contents, &apt, 1_700_000_000, work.path(), &out)?;
            Ok(fs::read(out)?)
        };
        assert!(tar()? == tar()?);
        Ok(())
    }
}
