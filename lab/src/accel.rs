//! Whether guests may run under KVM here.
//!
//! That /dev/kvm opens proves nothing: on hosts with half-working nested virtualisation the guest then never executes
//! an instruction. So a guest is run, once per boot of the host, and it has to say something.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::QEMU;
use crate::net::{self, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    Kvm,
    /// Emulation: works everywhere, some ten times slower.
    Tcg,
}

impl Accel {
    pub fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }

    /// How much longer things take than on a real machine, for timeouts.
    pub fn patience(self, real: Duration) -> Duration {
        match self {
            Self::Kvm => real,
            Self::Tcg => real * 5,
        }
    }
}

/// What was found, and from what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub accel: Accel,
    pub because: String,
    host_boot: String,
}

/// `DROPHAMMER_ACCEL=kvm|tcg` decides; otherwise what a probe found, remembered in `cache` until the host reboots.
pub fn choose(cache: &Path) -> Result<Finding> {
    static FOUND: Mutex<Option<Finding>> = Mutex::new(None);
    let wish = std::env::var("DROPHAMMER_ACCEL").ok();
    let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let asked = |accel| Finding { accel, because: "DROPHAMMER_ACCEL says so".into(), host_boot: host_boot.clone() };
    match wish.as_deref() {
        Some("kvm") => return Ok(asked(Accel::Kvm)),
        Some("tcg") => return Ok(asked(Accel::Tcg)),
        Some(other) => bail!("DROPHAMMER_ACCEL is {other:?}; it can be kvm or tcg"),
        None => {}
    }
    // Held while probing: labs that start together wait for one probe.
    let mut known = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = &*known {
        return Ok(found.clone());
    }
    let file = cache.join("accel.json");
    let remembered: Option<Finding> = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let found = match remembered {
        Some(found) if found.host_boot == host_boot => found,
        _ => {
            let (accel, because) = probe()?;
            let found = Finding { accel, because, host_boot };
            fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
            let text = serde_json::to_vec(&found).context("writing the finding as JSON")?;
            // Another process may be reading: it sees the old file or the whole new one.
            let remember = || -> std::io::Result<()> {
                let mut new = tempfile::NamedTempFile::new_in(cache)?;
                new.write_all(&text)?;
                new.persist(&file)?;
                Ok(())
            };
            remember().with_context(|| format!("remembering in {} whether KVM works", file.display()))?;
            found
        }
    };
    Ok(known.insert(found).clone())
}

/// Long enough for a slow host, short enough to be waited for once.
const PROBE_LIMIT: Duration = Duration::from_secs(8);
/// QEMU's exit status is twice the value plus one (isa-debug-exit).
const ALIVE: u8 = 0x2a;

fn probe() -> Result<(Accel, String)> {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok((Accel::Tcg, format!("/dev/kvm can't be opened: {error}")));
    }
    Ok(match run_guest(Accel::Kvm)? {
        None => (Accel::Kvm, "a guest ran under KVM".into()),
        Some(why) => (Accel::Tcg, format!("/dev/kvm opens, but {why}")),
    })
}

/// `None` if the guest ran, otherwise what happened instead.
fn run_guest(accel: Accel) -> Result<Option<String>> {
    let dir = tempfile::tempdir().context("making a directory for the probe")?;
    let disk = dir.path().join("probe.raw");
    fs::write(&disk, boot_sector()).with_context(|| format!("writing {}", disk.display()))?;
    let log = dir.path().join("log");
    let stderr = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut qemu = Process::start(
        net::outside(QEMU)
            .args([
                "-nodefaults",
                "-machine",
                "q35,graphics=off",
                "-accel",
                accel.argument(),
                "-cpu",
                "max",
                "-m",
                "64",
            ])
            .args(["-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-no-reboot"])
            .args(["-drive", &format!("if=ide,format=raw,file={}", disk.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr),
    )
    .with_context(|| format!("starting {QEMU}"))?;
    let deadline = Instant::now() + accel.patience(PROBE_LIMIT);
    while Instant::now() < deadline {
        if let Some(status) = qemu.status() {
            if status.code() == Some(i32::from(ALIVE) * 2 + 1) {
                return Ok(None);
            }
            let text = fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            return Ok(Some(format!("QEMU ended with {status}: {last}")));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(format!("the guest did nothing for {} seconds", PROBE_LIMIT.as_secs())))
}

/// A boot sector that tells isa-debug-exit that it ran: `mov al, ALIVE; out 0xf4, al; hlt`.
fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0xb0, ALIVE, 0xe6, 0xf4, 0xf4];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // A drive that BIOSes accept has more than one sector.
    sector.resize(1 << 20, 0);
    sector
}

/// The version line of the installed QEMU.
pub fn qemu_version() -> Result<String> {
    let output = Command::new(QEMU).arg("--version").output().with_context(|| format!("starting {QEMU}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_sees_a_guest_that_runs() {
        assert_eq!(run_guest(Accel::Tcg).expect("QEMU starts"), None);
    }
}
