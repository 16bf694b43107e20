//! What the host needs before a lab can be built, and getting it.
//!
//! As root on Debian or Ubuntu it is installed; anybody else is told the one command that does it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use drophammer_images::debian;
use drophammer_protocol::words;
use nix::sys::statvfs::statvfs;
use nix::unistd::getuid;

use crate::qemu;

/// One package of Debian or Ubuntu, and how to see whether it's there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub package: &'static str,
    pub proof: Proof,
    pub why: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Program(&'static str),
    File(&'static str),
}

/// What the host is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Lab,
    /// A lab, and the clients and judges that the tests put beside our own programs.
    Tests,
}

pub const NEEDS: &[Need] = &[
    need("qemu-system-x86", Proof::Program("qemu-system-x86_64"), "the virtual servers"),
    need("qemu-system-data", Proof::File("/usr/share/qemu"), "their devices' ROMs"),
    need("seabios", Proof::File("/usr/share/seabios/bios-256k.bin"), "their BIOS"),
    need("ovmf", Proof::File(qemu::SNAKEOIL_KEY), "their UEFI"),
    need("ipxe-qemu", Proof::File("/usr/lib/ipxe/qemu/pxe-virtio.rom"), "their network boot"),
    need("iproute2", Proof::Program("ip"), "their private network"),
    need("openssh-client", Proof::Program("ssh-keygen"), "logging in to them"),
    need("musl-tools", Proof::Program("musl-gcc"), "building the agent as a static program"),
    need("debian-archive-keyring", Proof::File(debian::KEYRING), "knowing Debian's packages from forged ones"),
    need("mmdebstrap", Proof::Program("mmdebstrap"), "building operating system images"),
];

/// Debian's libfaketime, for programs with threads.
pub(crate) const FAKE_TIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

pub const TEST_NEEDS: &[Need] = &[
    need("busybox-static", Proof::Program("busybox"), "another DHCP client"),
    need("cpio", Proof::Program("cpio"), "another reader of initramfs archives"),
    need("cryptsetup-bin", Proof::Program("cryptsetup"), "judging LUKS"),
    need("curl", Proof::Program("curl"), "another HTTP client"),
    need("dosfstools", Proof::Program("fsck.vfat"), "judging FAT"),
    need("dpkg-dev", Proof::Program("dpkg-shlibdeps"), "packages that say what they depend on"),
    need("e2fsprogs", Proof::Program("e2fsck"), "judging ext4"),
    need("etcd-client", Proof::Program("etcdctl"), "asking etcd who leads"),
    need("etcd-server", Proof::Program("etcd"), "the state of several servers"),
    need("file", Proof::Program("file"), "judging swap areas"),
    need("g++", Proof::Program("g++"), "building libFuzzer"),
    need("gdisk", Proof::Program("sgdisk"), "judging partition tables"),
    need("libfaketime", Proof::File(FAKE_TIME), "a server's clock that jumps"),
    need("lz4", Proof::Program("lz4"), "images as metal-stack has them"),
    need("lvm2", Proof::Program("lvm"), "judging volume groups"),
    need("mdadm", Proof::Program("mdadm"), "judging arrays"),
    need("passwd", Proof::Program("pwck"), "judging accounts"),
    need("openssl", Proof::Program("openssl"), "keys and certificates of another make"),
    need("python3-venv", Proof::File("/usr/share/doc/python3-venv"), "a fuzzer of the control API"),
    need("systemd", Proof::Program("systemd-analyze"), "judging units"),
    need("sudo", Proof::Program("visudo"), "judging who may become root"),
    need("sbsigntool", Proof::Program("sbverify"), "judging signatures for Secure Boot"),
    need("xfsprogs", Proof::Program("mkfs.xfs"), "making xfs, and judging it"),
];

/// Only for those who aren't root: a whole system's user ids take a range of them.
const UIDMAP: Need = need("uidmap", Proof::Program("newuidmap"), "building operating system images without root");

const fn need(package: &'static str, proof: Proof, why: &'static str) -> Need {
    Need { package, proof, why }
}

/// The agent runs before there is a libc to link to.
pub const AGENT_TARGET: &str = "x86_64-unknown-linux-musl";

/// Makes sure that everything is there; says what it does.
pub fn ensure_host(purpose: Purpose, say: &mut dyn FnMut(&str)) -> Result<()> {
    let tests = if purpose == Purpose::Tests { TEST_NEEDS } else { &[] };
    let extra = (!getuid().is_root()).then_some(&UIDMAP);
    let missing: Vec<_> = NEEDS.iter().chain(tests).chain(extra).filter(|need| !is_there(need.proof)).collect();
    if !missing.is_empty() {
        install(&missing, say)?;
    }
    if !target_is_there()? {
        add_target(say)?;
    }
    Ok(())
}

/// What there is to say of a disk that may be full before the work is done.
pub(crate) fn scarce_room(place: &Path, wanted: u64) -> Result<Option<String>> {
    // It may not be made yet.
    let there = place.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let room = statvfs(there).with_context(|| format!("asking how much room there is in {}", there.display()))?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    Ok((free < wanted).then(|| {
        let (free, wanted) = (words::bytes(free), words::bytes(wanted));
        format!(
            "the disk that {} is on has {free} left, and a first run takes {wanted}: if it gets full, make room (`cargo \
             clean` removes what was built)",
            place.display()
        )
    }))
}

fn is_there(proof: Proof) -> bool {
    match proof {
        Proof::File(path) => Path::new(path).exists(),
        Proof::Program(name) => programs().any(|dir| dir.join(name).is_file()),
    }
}

/// Where programs are looked for: some of Debian's are outside the path of ordinary users.
pub(crate) fn programs() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named: Vec<_> = std::env::split_paths(&path).collect();
    named.into_iter().chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
}

fn install(missing: &[&Need], say: &mut dyn FnMut(&str)) -> Result<()> {
    let packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    let Some(command) = how_to_install(&packages, getuid().is_root(), is_there(Proof::Program("apt-get"))) else {
        say(&format!("installing {}", packages.join(" ")));
        return apt(&packages, missing);
    };
    let list: Vec<_> = missing.iter().map(|n| format!("  {:<20} {}", n.package, n.why)).collect();
    bail!("this host lacks:\n{}\n{command}", list.join("\n"))
}

/// What a person has to do, or `None` if we can do it.
fn how_to_install(packages: &[&str], root: bool, apt: bool) -> Option<String> {
    let packages = packages.join(" ");
    match (root, apt) {
        (true, true) => None,
        (false, true) => {
            Some(format!("run: sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}"))
        }
        (_, false) => Some(
            "there is no apt-get here: install them by these or similar names, or use Debian 12 or newer, or Ubuntu"
                .into(),
        ),
    }
}

fn apt(packages: &[&str], needs: &[&Need]) -> Result<()> {
    for arguments in [&["update"][..], &["install", "-y", "--no-install-recommends"]] {
        let wanted = if arguments == ["update"] { &[] } else { packages };
        let output = Command::new("apt-get")
            .args(["-q", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .args(wanted)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .context("starting apt-get")?;
        // `update` complains about single sources; whether they matter is seen by what can be installed.
        ensure!(
            output.status.success() || arguments == ["update"],
            "installing {}: apt-get: {}",
            packages.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    match needs.iter().find(|need| !is_there(need.proof)) {
        None => Ok(()),
        Some(need) => {
            bail!("{} is installed, but what the lab needs of it isn't there: {:?}", need.package, need.proof)
        }
    }
}

fn target_is_there() -> Result<bool> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", AGENT_TARGET])
        .output()
        .context("starting rustc; install Rust with rustup")?;
    let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    Ok(output.status.success() && fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()))
}

fn add_target(say: &mut dyn FnMut(&str)) -> Result<()> {
    say(&format!("adding the Rust target {AGENT_TARGET}"));
    match Command::new("rustup").args(["target", "add", AGENT_TARGET]).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!(
            "adding the Rust target {AGENT_TARGET}: {}. It is fetched once; connect this host to the internet and run \
             `rustup target add {AGENT_TARGET}`",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
            "the agent is built for {AGENT_TARGET}, which this Rust doesn't have, and rustup isn't here to add it: \
             install Rust with rustup, or the target's standard library with your distribution's packages"
        ),
        Err(e) => Err(e).context("starting rustup"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_nearly_full_is_told_of() {
        let place = std::env::temp_dir().join("nothing/there/yet");
        for (name, wanted, want) in [("enough", 1, false), ("not enough", u64::MAX, true)] {
            let said = scarce_room(&place, wanted).expect("asks");
            assert_eq!(said.is_some(), want, "{name}: {said:?}");
            assert!(said.is_none_or(|said| said.contains("nothing/there/yet")), "{name}");
        }
    }

    #[test]
    fn people_are_told_the_one_command() {
        for (name, root, apt, want) in [
            ("root on Debian", true, true, None),
            ("a user on Debian", false, true, Some("sudo apt-get install -y --no-install-recommends a b")),
            ("root elsewhere", true, false, Some("no apt-get")),
            ("a user elsewhere", false, false, Some("no apt-get")),
        ] {
            let got = how_to_install(&["a", "b"], root, apt);
            match (&got, want) {
                (None, None) => {}
                (Some(got), Some(want)) => assert!(got.contains(want), "{name}: {got}"),
                _ => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn every_need_is_named_once() {
        let all = [NEEDS, TEST_NEEDS].concat();
        for (n, need) in all.iter().enumerate() {
            assert!(all.iter().skip(n + 1).all(|other| other.package != need.package), "{}", need.package);
            assert!(!need.why.is_empty(), "{}", need.package);
        }
        assert!(is_there(Proof::Program("sh")) && !is_there(Proof::Program("no-such-program")));
    }
}
