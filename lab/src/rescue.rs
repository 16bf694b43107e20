//! A machine booted into a small userland with the agent in it: what somebody has who tries the agent by hand, and where
//! other people's tools run beside it on the same drives.
//!
//! It's the kit's own kernel and initramfs, with busybox and programs of Debian's packages appended, and a script in place
//! of the agent as the first program.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drophammer_images::debian::{Archive, Unpacked};
use drophammer_initramfs::closure;
use drophammer_initramfs::cpio::{self, Archive as Cpio};

use crate::kit::{self, Kit};
use crate::qemu::{self, BootFrom};
use crate::vm::Machine;

/// What the agent is called there.
pub const AGENT: &str = "drophammer-agent";

const BUSYBOX: &str = "bin/busybox";
const SCRIPT: &str = "rescue/script";

/// Devices bring their drivers by alias: first that of a bus, then those of what sits on it. What has none is named: stacked
/// devices and file systems.
const INIT_SCRIPT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir -p /usr/bin
ln -s /init /usr/bin/drophammer-agent
for depth in 1 2 3; do
    find /sys/devices -name modalias -exec cat {} + | sort -u | while read -r alias; do modprobe -q "$alias"; done
done
for module in dm_mod md_mod raid0 raid1 ext4 crc32c_generic sd_mod loop; do modprobe -q "$module"; done
for module in /rescue/modules/*; do [ -e "$module" ] && insmod "$module"; done
sleep 1
echo "rescue: begins"
sh -u /rescue/script
echo "rescue: ends with $?"
sync
poweroff -f
"#;

/// Kernel and initramfs for it.
#[derive(Debug)]
pub struct Rescue {
    kernel: PathBuf,
    initramfs: Vec<u8>,
}

impl Rescue {
    /// With these programs (`sbin/mdadm`, as their packages have them), each with the libraries that it needs, and with
    /// these modules of the kernel besides the kit's (`drivers/md/dm-crypt`), in the order in which they are loaded.
    pub fn prepare(kit: &Kit, packages: &[&str], programs: &[&str], modules: &[&str]) -> Result<Self> {
        let names: Vec<&str> = packages.iter().copied().chain(["busybox-static"]).collect();
        let archive = Archive::open()?;
        let unpacked = archive.unpack(&archive.closure(&names)?)?;
        let mut cpio = Cpio::new();
        cpio.file(qemu::RESCUE_INIT, INIT_SCRIPT.as_bytes(), 0o755)?;
        for program in [&BUSYBOX].into_iter().chain(programs) {
            add(&mut cpio, &unpacked, program).with_context(|| format!("putting {program} into the rescue system"))?;
        }
        if !modules.is_empty() {
            let kernel = archive.unpack(&archive.kernel_and(kit::FLAVOUR.debian(), &[])?)?;
            add_modules(&mut cpio, &kernel, modules)?;
        }
        let kernel = kit.boot_dir.join(drophammer_initramfs::KERNEL);
        let path = kit.boot_dir.join(drophammer_initramfs::INITRAMFS);
        let mut initramfs = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        cpio.write_to(&mut initramfs).context("putting together the rescue system")?;
        initramfs.extend_from_slice(cpio::padding(initramfs.len() as u64));
        Ok(Self { kernel, initramfs })
    }

    /// Boots `machine` into it, runs a script, and returns what that said. An error if it doesn't end well, or not in time.
    pub fn run(&self, machine: &Machine, script: &str, limit: Duration) -> Result<String> {
        let mut initramfs = self.initramfs.clone();
        initramfs.extend_from_slice(&cpio::segment(&[(SCRIPT, script.as_bytes(), 0o644)]));
        machine.power_cut();
        let put = |name: &str, content: &[u8]| {
            let path = machine.dir().join(name);
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
        };
        let kernel = fs::read(&self.kernel).with_context(|| format!("reading {}", self.kernel.display()))?;
        put(qemu::RESCUE_KERNEL, &kernel)?;
        put(qemu::RESCUE_INITRAMFS, &initramfs)?;
        machine.cold_boot(BootFrom::Rescue)?;
        let said = machine.wait_console("rescue: ends with", limit)?;
        machine.wait_off(limit)?;
        let (_, said) = said.split_once("rescue: begins").context("the rescue system said nothing")?;
        let (said, end) = said.rsplit_once("rescue: ends with ").context("the rescue system didn't end")?;
        ensure!(end.trim_start().starts_with('0'), "the script ended with {}:\n{said}", end.trim());
        Ok(said.to_owned())
    }

    /// How many seconds commands take by the machine's own clock, and what others say after them. All have to succeed.
    pub fn timed(&self, machine: &Machine, commands: &str, then: &str, limit: Duration) -> Result<(f64, String)> {
        // In a shell of its own `-e` is also about a list that ends in the middle.
        let script = format!(
            "set -e\n\
             read -r begun rest < /proc/uptime\n\
             ( {commands}\n)\n\
             read -r ended rest < /proc/uptime\n\
             dmesg -n 1\n\
             echo \"timed: $begun $ended\"\n\
             {then}\n"
        );
        let said = self.run(machine, &script, limit)?;
        let (_, timed) = said.split_once("timed: ").context("nothing was timed")?;
        let (times, said) = timed.split_once('\n').context("a line")?;
        let (begun, ended) = times.split_once(' ').context("two times")?;
        let seconds = |text: &str| text.trim().parse::<f64>().with_context(|| format!("{text:?} is no time"));
        let took = seconds(ended)? - seconds(begun)?;
        ensure!(took > 0.0, "it took no time at all");
        Ok((took, said.to_owned()))
    }
}

fn add_modules(cpio: &mut Cpio<'static>, kernel: &[Unpacked], modules: &[&str]) -> Result<()> {
    let package = kernel.first().context("there is no kernel package")?;
    let release = package.package.name.trim_start_matches("linux-image-");
    for (number, module) in modules.iter().enumerate() {
        let path = format!("lib/modules/{release}/kernel/{module}.ko");
        let content = closure::read(kernel, &path)?.with_context(|| format!("the kernel's package has no {path}"))?;
        cpio.file(&format!("rescue/modules/{number:02}.ko"), content, 0o644)?;
    }
    Ok(())
}

fn add(cpio: &mut Cpio<'static>, packages: &[Unpacked], program: &str) -> Result<()> {
    for (path, content) in closure::close(program, |path| closure::read(packages, path))? {
        // Several programs share libraries, and the kit's initramfs has some of them already.
        if !cpio.contains(&path) {
            cpio.file(&path, content, 0o755)?;
        }
    }
    Ok(())
}
