//! A drive being installed on. Holding a [`Target`] is the only way to write to it.
//!
//! Its partitions exist in the kernel alone (`BLKPG`) until [`Target::finish`] writes the tables, last of all: before
//! that, neither firmware nor another system finds anything to start, whenever the power goes.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::space::MIB;

use super::gpt::Piece;
use super::layout::{Partition, Table};
use crate::disk::OpenDisk;
use crate::sys::block::{self, KernelPartition};

#[derive(Debug)]
pub(crate) struct Target {
    /// Not exclusive: the kernel refuses to mount a partition of a disk that somebody holds as a whole. The mount takes
    /// over as the proof that nobody else has it.
    disk: File,
    path: PathBuf,
    sysfs: PathBuf,
    table: Table,
    sectors_written_before: u64,
}

impl Target {
    /// Destroys what tables the disk has and announces the partitions of the new one to the kernel.
    pub(crate) fn take(disk: OpenDisk, table: Table) -> anyhow::Result<Self> {
        let OpenDisk { file, path, .. } = disk;
        let number = file.metadata().with_context(|| format!("examining {}", path.display()))?.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let shared = reopen(&file, 0).with_context(|| format!("opening {} again", path.display()))?;
        let sectors_written_before = sectors_written(&sysfs);
        let target = Self { disk: shared, path, sysfs, table, sectors_written_before };
        target.forget_partitions()?;
        target.erase_edges()?;
        drop(file);
        match target.announce() {
            Ok(()) => Ok(target),
            Err(e) => Err(target
                .abandon()
                .into_iter()
                .fold(e, |e, left| e.context(format!("cleaning up after a failed install also failed ({left:#})")))),
        }
    }

    /// The device node of a partition.
    pub(crate) fn node(&self, partition: &Partition) -> anyhow::Result<PathBuf> {
        // devtmpfs makes the node within the ioctl that added the partition; udev on an ordinary host may take a moment.
        const PATIENCE: Duration = Duration::from_secs(5);
        let since = Instant::now();
        loop {
            if let Some(name) = self.kernel_partitions()?.into_iter().find(|(n, _)| *n == partition.number) {
                let node = Path::new("/dev").join(name.1);
                if fs::metadata(&node).is_ok_and(|m| m.file_type().is_block_device()) {
                    return Ok(node);
                }
            }
            anyhow::ensure!(
                since.elapsed() < PATIENCE,
                "partition {} of {} has no device node; is devtmpfs mounted on /dev?",
                partition.number,
                self.path.display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes the disk bootable: `pieces` in their order, each durable before the next, then read back from the medium.
    /// Nobody uses its partitions by now.
    pub(crate) fn finish(&self, pieces: &[Piece]) -> anyhow::Result<()> {
        let finish = || -> anyhow::Result<()> {
            // Everything that was written so far leaves the drive's own cache.
            self.disk.sync_all().context("flushing the disk")?;
            self.forget_partitions()?;
            // Nobody else has it open while the tables appear.
            let disk = reopen(&self.disk, libc::O_EXCL).context("opening the disk for its tables")?;
            for piece in pieces {
                disk.write_all_at(&piece.bytes, piece.offset).with_context(|| format!("writing the {}", piece.what))?;
                disk.sync_all().with_context(|| format!("flushing the {}", piece.what))?;
            }
            block::drop_cache(&disk).context("dropping the cache")?;
            for piece in pieces {
                let read = block::read_direct(&disk, piece.offset, piece.bytes.len())
                    .with_context(|| format!("reading the {} back", piece.what))?;
                anyhow::ensure!(
                    read == piece.bytes,
                    "the {} reads back different from what was written: the drive is not to be trusted",
                    piece.what
                );
            }
            Ok(())
        };
        finish().with_context(|| format!("making {} bootable", self.path.display()))
    }

    /// Leaves the disk unbootable and free for another attempt; with whatever of that didn't work.
    pub(crate) fn abandon(&self) -> Vec<anyhow::Error> {
        [self.forget_partitions(), self.erase_edges()].into_iter().filter_map(Result::err).collect()
    }

    fn announce(&self) -> anyhow::Result<()> {
        for partition in &self.table.partitions {
            let announced = KernelPartition {
                number: partition.number,
                start_bytes: self.table.start_bytes(partition),
                length_bytes: self.table.length_bytes(partition),
            };
            block::add_partition(&self.disk, announced).with_context(|| {
                format!("telling the kernel of partition {} of {}", partition.number, self.path.display())
            })?;
        }
        Ok(())
    }

    fn forget_partitions(&self) -> anyhow::Result<()> {
        for (number, name) in self.kernel_partitions()? {
            block::delete_partition(&self.disk, number)
                .with_context(|| format!("making the kernel forget {name}, a partition of {}", self.path.display()))?;
        }
        Ok(())
    }

    /// Number and name of each partition that the kernel knows of, wherever it does from.
    fn kernel_partitions(&self) -> anyhow::Result<Vec<(u32, String)>> {
        let mut known = Vec::new();
        let list = || format!("listing the partitions of {}", self.path.display());
        for entry in fs::read_dir(&self.sysfs).with_context(list)? {
            let entry = entry.with_context(list)?;
            let Ok(number) = fs::read_to_string(entry.path().join("partition")) else { continue };
            let number = number.trim().parse().with_context(list)?;
            known.push((number, entry.file_name().to_string_lossy().into_owned()));
        }
        Ok(known)
    }

    /// The first and the last MiB: boot sector, both GPTs, and where md, LVM, ZFS and the like keep their labels.
    fn erase_edges(&self) -> anyhow::Result<()> {
        let zeros = vec![0; usize::try_from(MIB)?];
        let erase = || -> std::io::Result<()> {
            self.disk.write_all_at(&zeros, 0)?;
            self.disk.write_all_at(&zeros, self.table.geometry.bytes.saturating_sub(MIB))?;
            self.disk.sync_all()
        };
        erase().with_context(|| format!("erasing the partition tables of {}", self.path.display()))
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        // The kernel counts in sectors of 512 bytes whatever the drive's blocks are.
        sectors_written(&self.sysfs).saturating_sub(self.sectors_written_before) * 512
    }
}

/// The same device through the same handle, whatever has the name by now.
fn reopen(file: &File, flags: i32) -> std::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

/// Documentation/block/stat.rst, field 7. It is a figure for the report, so a kernel without it costs nothing else.
fn sectors_written(sysfs: &Path) -> u64 {
    let stat = fs::read_to_string(sysfs.join("stat")).unwrap_or_default();
    stat.split_whitespace().nth(6).and_then(|n| n.parse().ok()).unwrap_or(0)
}
