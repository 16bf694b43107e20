//! Whether guests may run under KVM here.
//!
//! That /dev/kvm opens proves nothing, nor does firmware that runs: on hosts with half-working nested virtualisation some
//! instructions of a guest are carried out and others never end. So Linux is run, once per boot of the host, and has to get
//! through all of its start.

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

    /// What machines are.
    pub fn words(self) -> &'static str {
        match self {
            Self::Kvm => "run under KVM",
            Self::Tcg => "emulated, some ten times slower than real ones",
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

/// `DROPHAMMER_ACCEL=kvm|tcg` decides; otherwise what a probe with this kernel found, remembered in `cache` until the host
/// reboots.
pub fn choose(cache: &Path, kernel: &Path) -> Result<Finding> {
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
    let file = cache.join("accelerator.json");
    let remembered: Option<Finding> = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let found = match remembered {
        Some(found) if found.host_boot == host_boot => found,
        _ => {
            let (accel, because) = probe(kernel)?;
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
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// Linux's last words where there is nothing for it to run.
const WORKED: &str = "VFS: Unable to mount root fs";

fn probe(kernel: &Path) -> Result<(Accel, String)> {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok((Accel::Tcg, format!("/dev/kvm can't be opened: {error}")));
    }
    Ok(match run_guest(Accel::Kvm, kernel)? {
        None => (Accel::Kvm, "a guest ran under KVM".into()),
        Some(why) => (Accel::Tcg, format!("/dev/kvm opens, but {why}")),
    })
}

/// `None` if the guest ran, otherwise what happened instead.
fn run_guest(accel: Accel, kernel: &Path) -> Result<Option<String>> {
    let dir = tempfile::tempdir().context("making a directory for the probe")?;
    let (console, log) = (dir.path().join("console"), dir.path().join("log"));
    let stderr = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut qemu = Process::start(
        net::outside(QEMU)
            .args(["-nodefaults", "-machine", "q35,graphics=off", "-accel", accel.argument(), "-cpu", "max"])
            .args(["-m", "256", "-display", "none", "-no-reboot", "-append", "console=ttyS0 panic=-1", "-kernel"])
            .arg(kernel)
            .args(["-serial", &format!("file:{}", console.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr),
    )
    .with_context(|| format!("starting {QEMU}"))?;
    let deadline = Instant::now() + accel.patience(PROBE_LIMIT);
    while Instant::now() < deadline {
        // Looked at before the console is, so that the last words of a guest that ended are heard.
        let ended = qemu.status();
        if said(&console)?.contains(WORKED) {
            return Ok(None);
        }
        if let Some(status) = ended {
            let text = said(&log)?;
            let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            return Ok(Some(format!("QEMU ended with {status}: {last}")));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(format!("Linux didn't get through its start in {} seconds", PROBE_LIMIT.as_secs())))
}

/// Nothing as long as QEMU hasn't made the file.
fn said(file: &Path) -> Result<String> {
    match fs::read(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => Ok(String::from_utf8_lossy(&read.with_context(|| format!("reading {}", file.display()))?).into_owned()),
    }
}

/// The version line of the installed QEMU.
pub fn qemu_version() -> Result<String> {
    let output = Command::new(QEMU).arg("--version").output().with_context(|| format!("starting {QEMU}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use drophammer_initramfs::KERNEL;

    use super::*;
    use crate::kit;

    #[test]
    fn the_probe_sees_whether_a_guest_runs() {
        let kit = kit::prepare(&[], &mut |_| {}).expect("a kernel");
        assert_eq!(run_guest(Accel::Tcg, &kit.boot_dir.join(KERNEL)).expect("QEMU starts"), None);
        let nothing = tempfile::NamedTempFile::new().expect("a file");
        let said = run_guest(Accel::Tcg, nothing.path()).expect("QEMU starts").expect("it doesn't run");
        assert!(said.starts_with("QEMU ended with exit status: 1"), "{said}");
    }
}
