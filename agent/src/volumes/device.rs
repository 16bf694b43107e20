//! Block devices as something to be written to: a plan's bytes, on the device that was planned for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use uuid::Uuid;

use crate::holders;
use crate::signatures;
use crate::sys::block;

/// No drive has logical blocks larger than this.
pub(crate) const UNIT: u32 = 4096;

/// A block device that becomes a part of an array or a volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) uuid: Uuid,
}

/// Bytes, and where they go: a multiple of [`UNIT`], and as many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// All that is written to one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writes {
    pub(crate) path: PathBuf,
    /// What it's planned for: a device of this size.
    pub(crate) bytes: u64,
    /// Offset and length of what becomes zeros before anything else is written.
    pub(crate) zeros: Vec<(u64, usize)>,
    pub(crate) pieces: Vec<Piece>,
}

impl Writes {
    /// Takes away every signature that anybody would find on a device. What was there before may lie elsewhere than what
    /// comes now, and then both would be found.
    pub(crate) fn clearing(path: &Path, bytes: u64) -> Self {
        let zeros = signatures::places(bytes, UNIT).into_iter().map(|place| (place, UNIT as usize)).collect();
        Self { path: path.to_owned(), bytes, zeros, pieces: Vec::new() }
    }

    /// Writes, and reads back from the medium. Refuses a device that anybody else holds, or that isn't as large as the one
    /// that was planned for.
    pub(crate) fn carry_out(&self) -> anyhow::Result<()> {
        let device = claim(&self.path)?;
        let write = || -> anyhow::Result<()> {
            let bytes = block::size_bytes(&device).context("asking for its size")?;
            anyhow::ensure!(
                bytes == self.bytes,
                "it has {bytes} bytes, but what is to be written was made for one with {}",
                self.bytes
            );
            for (offset, length) in &self.zeros {
                device.write_all_at(&vec![0; *length], *offset).with_context(|| format!("clearing byte {offset}"))?;
            }
            for piece in &self.pieces {
                device
                    .write_all_at(&piece.bytes, piece.offset)
                    .with_context(|| format!("writing byte {}", piece.offset))?;
            }
            device.sync_all().context("flushing it")?;
            block::drop_cache(&device).context("dropping its cache")?;
            for piece in &self.pieces {
                let read = block::read_direct(&device, piece.offset, piece.bytes.len())
                    .with_context(|| format!("reading byte {} back", piece.offset))?;
                anyhow::ensure!(
                    read == piece.bytes,
                    "byte {} and what follows read back different from what was written: the drive is not to be trusted",
                    piece.offset
                );
            }
            Ok(())
        };
        write().with_context(|| format!("preparing {}", self.path.display()))
    }
}

/// A device to read from, past the kernel's cache: md and the device mapper write past it, too.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    pub(super) bytes: u64,
    pub(super) logical_block: u32,
}

impl Source {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).context("opening it")?;
        let bytes = block::size_bytes(&file).context("asking for its size")?;
        let logical_block = block::logical_block(&file).context("asking for its blocks")?;
        Ok(Self { file, bytes, logical_block })
    }

    /// Whole blocks.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&block::read_direct(&self.file, offset, buffer.len())?);
        Ok(())
    }
}

fn claim(path: &Path) -> anyhow::Result<File> {
    let opened = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
    if opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut holders = holders::in_words(Path::new("/"), &name);
        if holders.is_empty() {
            holders.push("another program has it, or the whole drive, opened for itself".to_owned());
        }
        anyhow::bail!("{} is in use ({}); release it first", path.display(), holders.join(", "));
    }
    opened.with_context(|| format!("opening {}", path.display()))
}

/// Major and minor number of the device behind a path.
pub(super) fn number(path: &Path) -> anyhow::Result<(u64, u64)> {
    let metadata = fs::metadata(path).with_context(|| format!("examining {}", path.display()))?;
    anyhow::ensure!(metadata.file_type().is_block_device(), "{} is not a block device", path.display());
    Ok((nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev())))
}

/// Waits for a node that the kernel has announced: devtmpfs has it at once, udev on an ordinary host may take a moment.
pub(super) fn wait_for(node: &Path) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let since = Instant::now();
    while !fs::metadata(node).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        anyhow::ensure!(since.elapsed() < PATIENCE, "there is no {}; is devtmpfs mounted on /dev?", node.display());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
