//! File systems, made: ext3, ext4 and xfs by the programs that belong to them, FAT and swap by the agent itself.
//!
//! `mke2fs` and `mkfs.xfs` are the only programs that the agent runs as children. Writing the structures of ext4 or xfs is not
//! a thing to do a second time; FAT is what a crate does, and swap is one page.
//!
//! [`plan`] decides everything and touches nothing: what it refuses is refused before a disk is touched. The same request gives
//! the same plan; FAT and swap have the same bytes then, where the programs add the time of day and numbers of their own.

mod ext;
mod options;
mod swap;
mod vfat;
mod xfs;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use drophammer_protocol::words::bytes;
use uuid::Uuid;

/// A file system to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct New<'a> {
    pub(crate) format: Format,
    /// May be empty.
    pub(crate) label: &'a str,
    /// Of the device that it's made on.
    pub(crate) bytes: u64,
    pub(crate) logical_block: u32,
    /// What a layout wants of the program beyond that, as it would be typed behind its name: one word each, or an option
    /// and its value in one text, as metal-stack's layouts have it (`-F 32`). No shell ever sees them.
    pub(crate) options: &'a [String],
}

/// With the name that makes it findable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Ext3(Uuid),
    Ext4(Uuid),
    Xfs(Uuid),
    /// FAT's volume id: `UUID=1234-ABCD`.
    Vfat(u32),
    Swap(Uuid),
}

impl Format {
    /// As fstab and the kernel have it behind `UUID=`.
    pub(crate) fn uuid(self) -> String {
        match self {
            Self::Ext3(uuid) | Self::Ext4(uuid) | Self::Xfs(uuid) | Self::Swap(uuid) => uuid.to_string(),
            Self::Vfat(id) => fat_uuid(id),
        }
    }
}

/// As in `UUID=1234-ABCD`.
pub(crate) fn fat_uuid(volume_id: u32) -> String {
    format!("{:04X}-{:04X}", volume_id >> 16, volume_id & 0xffff)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext3(_) => "ext3",
            Self::Ext4(_) => "ext4",
            Self::Xfs(_) => "xfs",
            Self::Vfat(_) => "vfat",
            Self::Swap(_) => "swap",
        })
    }
}

/// The programs that are there, and what of them matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tools {
    mke2fs: Option<PathBuf>,
    mkfs_xfs: Option<xfs::Program>,
}

impl Tools {
    /// Where their packages put them, or in `$PATH` on an ordinary host.
    pub(crate) fn find() -> Self {
        Self { mke2fs: program("mke2fs"), mkfs_xfs: program("mkfs.xfs").and_then(xfs::Program::asked) }
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// All that is to be done, once there is a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Making {
    format: Format,
    how: How,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    /// The device comes behind the arguments.
    Run {
        program: PathBuf,
        arguments: Vec<String>,
    },
    Vfat(vfat::Volume),
    Swap(swap::Area),
}

/// What it takes to make this, or why it can't be: as a sentence, for whoever wrote the layout.
pub(crate) fn plan(new: &New, tools: &Tools) -> Result<Making, String> {
    let missing = |name: &str| {
        format!(
            "this boot environment has no {name}, so it can't make {}: build it anew, or choose another",
            new.format
        )
    };
    let how = match new.format {
        Format::Ext3(uuid) | Format::Ext4(uuid) => {
            let arguments = ext::arguments(new, uuid)?;
            How::Run { program: tools.mke2fs.clone().ok_or_else(|| missing("mke2fs"))?, arguments }
        }
        Format::Xfs(uuid) => {
            let program = tools.mkfs_xfs.as_ref().ok_or_else(|| missing("mkfs.xfs"))?;
            How::Run { program: program.path.clone(), arguments: xfs::arguments(new, uuid, program)? }
        }
        Format::Vfat(id) => How::Vfat(vfat::plan(new, id)?),
        Format::Swap(uuid) => How::Swap(swap::plan(new, uuid)?),
    };
    Ok(Making { format: new.format, how })
}

impl Making {
    pub(crate) fn carry_out(&self, device: &Path) -> anyhow::Result<()> {
        match &self.how {
            How::Run { program, arguments } => run(program, arguments, device),
            How::Vfat(volume) => volume.write(device),
            How::Swap(area) => area.write(device).map_err(Into::into),
        }
        .with_context(|| format!("making {} on {}", self.format, device.display()))
    }
}

fn run(program: &Path, arguments: &[String], device: &Path) -> anyhow::Result<()> {
    let name = program.display();
    let output = Command::new(program)
        .args(arguments)
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {name}"))?;
    let said = [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text).trim().to_owned());
    let said = said.iter().find(|text| !text.is_empty()).map_or("it said nothing", String::as_str);
    anyhow::ensure!(output.status.success(), "{name} {} ({}): {said}", arguments.join(" "), output.status);
    Ok(())
}

/// What every format has to say about a label: how long it can be, in bytes.
fn label<'a>(new: &New<'a>, most: usize) -> Result<&'a str, String> {
    let label = new.label;
    if label.len() > most || label.chars().any(char::is_control) {
        return Err(format!("{} can't have the label {label:?}: it has room for {most} bytes of text", new.format));
    }
    Ok(label)
}

fn at_least(new: &New, least: u64) -> Result<(), String> {
    if new.bytes < least {
        let (format, have, least) = (new.format, bytes(new.bytes), bytes(least));
        return Err(format!("{have} are too small for {format}, which needs {least}: make it larger"));
    }
    Ok(())
}

fn at_most(new: &New, most: u64) -> Result<(), String> {
    if new.bytes > most {
        let (format, have, most) = (new.format, bytes(new.bytes), bytes(most));
        return Err(format!("{have} are too large for {format}, which can have {most}: make it smaller"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
