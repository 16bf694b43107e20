//! What is installed on: a block device over a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use drophammer_images::cache_dir;

use super::Place;
use super::tools::{Tools, quoted};
use crate::net::spawn;

pub(super) const BYTES: u64 = 4 << 30;
/// A file system in memory, on any Linux.
const MEMORY: &str = "/dev/shm";

#[derive(Debug)]
pub(super) struct Device {
    path: PathBuf,
    /// It's gone, and what it's made of with it, when nobody has it open any more.
    _open: File,
}

impl Device {
    pub(super) fn new(place: Place, tools: &Tools) -> Result<Self> {
        let (dir, direct) = match place {
            Place::Memory => (PathBuf::from(MEMORY), "off"),
            Place::Disk => (cache_dir()?.join("bench"), "on"),
        };
        let file = tempfile::Builder::new()
            .prefix("drophammer-bench-")
            .tempfile_in(&dir)
            .with_context(|| format!("making a file in {}", dir.display()))?;
        let backing = quoted(file.path());
        say(tools, &format!("dd if=/dev/zero of={backing} bs=4M count={} conv=fsync status=none", BYTES >> 22))
            .with_context(|| format!("filling {backing}"))?;
        let path = say(tools, &format!("losetup --find --show --direct-io={direct} {backing}"))
            .context("making a loop device")?;
        let path = PathBuf::from(path.trim());
        let open = File::open(&path).with_context(|| format!("opening {}", path.display()));
        // The kernel waits with it until the device is closed, by whoever does it.
        say(tools, &format!("losetup --detach {}", quoted(&path)))?;
        Ok(Self { _open: open?, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn forget_cache(&self, tools: &Tools) -> Result<()> {
        say(tools, &format!("blockdev --flushbufs {}", quoted(&self.path))).map(drop)
    }
}

/// Runs a script outside of any network, and returns what it says.
pub(super) fn say(tools: &Tools, script: &str) -> Result<String> {
    let mut command = tools.bash(script)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(&mut command).context("starting unshare, from the package util-linux")?;
    let output = child.wait_with_output().context("waiting for it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script:?} ended with {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
