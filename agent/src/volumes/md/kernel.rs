//! Arrays in the running kernel.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::super::device::{number, wait_for};
use crate::sys::{block, md};

const DRIVER: &str = "/sys/module/md_mod/parameters/new_array";

/// An array that runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Array {
    /// `/dev/md127`
    pub(crate) node: PathBuf,
    pub(crate) bytes: u64,
}

/// Asked before anything is destroyed. Nobody loads modules for the kernel here.
pub(super) fn check_driver(level: i32) -> anyhow::Result<()> {
    anyhow::ensure!(
        Path::new(DRIVER).exists(),
        "this kernel has no md driver, or the module md_mod isn't loaded: no array can be made or started"
    );
    // md(4): a line `Personalities : [raid0] [raid1]`.
    let known = fs::read_to_string("/proc/mdstat").context("asking the md driver which levels it knows")?;
    let (name, module) = match level {
        -1 => ("linear", "linear"),
        0 => ("raid0", "raid0"),
        1 => ("raid1", "raid1"),
        4 => ("raid4", "raid456"),
        5 => ("raid5", "raid456"),
        6 => ("raid6", "raid456"),
        10 => ("raid10", "raid10"),
        _ => anyhow::bail!("level {level} isn't known here"),
    };
    anyhow::ensure!(
        known.lines().next().unwrap_or_default().contains(&format!("[{name}]")),
        "the kernel's md driver doesn't know {name}: the module {module} isn't loaded"
    );
    Ok(())
}

/// Whether the kernel brings members up to date, if that's needed, while we have the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copying {
    Now,
    /// When the array is started the next time.
    Later,
}

/// Starts an array that has its superblocks, with those of its members that are given. If that fails none is left.
pub(super) fn start(name: &str, minor_version: u8, members: &[&Path], copying: Copying) -> anyhow::Result<Array> {
    let number = new_array(name)?;
    let node = PathBuf::from(format!("/dev/md{number}"));
    let mut array = Array { node, bytes: 0 };
    match array.run(minor_version, members, copying) {
        Ok(()) => Ok(array),
        Err(e) => Err(array.abandon(e)),
    }
}

/// Has the kernel make an empty array, with a number that no other has. One whose name is a number gets that if it's free,
/// the others count down from 127, as with `mdadm`.
fn new_array(name: &str) -> anyhow::Result<u32> {
    const HIGHEST: u32 = 127;
    let own_name = name.rsplit_once(':').map_or(name, |(_, name)| name);
    let preferred = own_name.parse::<u32>().ok().filter(|number| *number <= HIGHEST);
    for number in preferred.into_iter().chain((0..=HIGHEST).rev()) {
        if Path::new(&format!("/sys/block/md{number}")).exists() {
            continue;
        }
        match fs::write(DRIVER, format!("md{number}")) {
            Ok(()) => return Ok(number),
            // It turned up in between.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("having the kernel make md{number}")),
        }
    }
    anyhow::bail!("there are arrays with every number up to {HIGHEST} already")
}

impl Array {
    fn run(&mut self, minor_version: u8, members: &[&Path], copying: Copying) -> anyhow::Result<()> {
        wait_for(&self.node)?;
        let array = self.open()?;
        md::expect_superblocks(&array, minor_version).context("preparing the array")?;
        for path in members {
            let (major, minor) = number(path)?;
            let added = md::add_member(&array, major, minor);
            added.with_context(|| format!("giving {} to {}", path.display(), self.node.display()))?;
        }
        match copying {
            Copying::Now => md::run(&array).with_context(|| format!("starting {}", self.node.display()))?,
            // An array that nobody can write to has nothing copied; once it has begun, a thread of the kernel's may miss that
            // it is to stop.
            Copying::Later => {
                self.tell("array_state", "readonly")?;
                self.tell("sync_action", "frozen")?;
                self.tell("array_state", "active")?;
            }
        }
        self.bytes = block::size_bytes(&array).context("asking for the array's size")?;
        Ok(())
    }

    /// The members are free again when this returns. Refused while anybody uses the array.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.stop_again()
    }

    /// After a failure: returns `cause`, with whatever came on top of it.
    pub(super) fn abandon(self, cause: anyhow::Error) -> anyhow::Error {
        match self.stop_again() {
            Ok(()) => cause,
            Err(e) => cause.context(format!("cleaning up also failed ({e:#})")),
        }
    }

    fn stop_again(&self) -> anyhow::Result<()> {
        self.open().and_then(|array| {
            let stopped = md::stop(&array);
            stopped.with_context(|| format!("stopping {}", self.node.display()))
        })
    }

    fn open(&self) -> anyhow::Result<File> {
        let opened = File::options().read(true).write(true).open(&self.node);
        opened.with_context(|| format!("opening {}", self.node.display()))
    }

    /// Documentation/admin-guide/md.rst
    fn tell(&self, attribute: &str, word: &str) -> anyhow::Result<()> {
        let name = self.node.file_name().unwrap_or_default();
        let path = Path::new("/sys/block").join(name).join("md").join(attribute);
        fs::write(&path, word).with_context(|| format!("writing {word} to {}", path.display()))
    }
}
