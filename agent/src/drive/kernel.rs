//! A drive of this machine, through the kernel.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use drophammer_protocol::inventory::Bus;

use super::{Data, Drive, nvme, scsi};
use crate::disk::OpenDisk;
use crate::inventory::sysfs;
use crate::sys;

/// All volumes of one drive, each opened with `O_DIRECT` and for us alone.
#[derive(Debug)]
pub(crate) struct KernelDrive {
    volumes: Vec<OpenDisk>,
    begun: Instant,
}

impl KernelDrive {
    pub(crate) fn of(volumes: Vec<OpenDisk>) -> Self {
        Self { volumes, begun: Instant::now() }
    }

    pub(crate) fn volumes(&self) -> &[OpenDisk] {
        &self.volumes
    }

    fn volume(&self, volume: usize) -> io::Result<&OpenDisk> {
        self.volumes.get(volume).ok_or_else(|| io::Error::other(format!("the drive has no volume {volume}")))
    }

    /// Where commands go that are for the drive as a whole: any volume passes them on.
    fn any(&self) -> io::Result<&File> {
        Ok(&self.volume(0)?.file)
    }
}

impl Drive for KernelDrive {
    fn nvme(&mut self, command: &nvme::Command, data: Data<'_>) -> io::Result<nvme::Completion> {
        sys::nvme::submit(self.any()?, command, data)
    }

    fn scsi(&mut self, command: &scsi::Command, data: Data<'_>) -> io::Result<scsi::Completion> {
        sys::sg::submit(self.any()?, command, data)
    }

    fn read(&mut self, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.volume(volume)?.file.read_exact_at(buffer, offset)
    }

    fn read_medium(&mut self, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.volume(volume)?;
        let block_bytes = disk.facts.logical_block;
        match disk.facts.bus {
            Bus::Nvme => sys::nvme::read_medium(&disk.file, block_bytes, buffer, offset),
            Bus::Ata | Bus::Scsi => read_scsi_medium(&disk.file, block_bytes, buffer, offset),
            Bus::Virtio | Bus::Usb | Bus::Other => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn other_paths(&self, volume: usize) -> usize {
        self.volumes.get(volume).map_or(0, |disk| disk.others.len())
    }

    fn read_by(&mut self, path: usize, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let other = self.volume(volume)?.others.get(path);
        other.ok_or_else(|| io::Error::other("no such path"))?.file.read_exact_at(buffer, offset)
    }

    fn write(&mut self, volume: usize, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.volume(volume)?.file.write_all_at(buffer, offset)
    }

    fn write_zeroes(&mut self, volume: usize, offset: u64, length: u64) -> io::Result<()> {
        sys::block::zero_out(&self.volume(volume)?.file, offset, length)
    }

    fn discard(&mut self, volume: usize, offset: u64, length: u64) -> io::Result<()> {
        sys::block::discard(&self.volume(volume)?.file, offset, length)
    }

    fn flush(&mut self) -> io::Result<()> {
        for disk in &self.volumes {
            disk.file.sync_all()?;
            sys::block::drop_cache(&disk.file)?;
        }
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        for disk in &self.volumes {
            for file in reset_files(Path::new("/"), &disk.facts.name) {
                fs::write(file, "1")?;
            }
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn wait(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

/// READ (16) with FUA. For an ATA drive libata makes it READ FPDMA QUEUED with the same bit; a drive without queues has no
/// read that could say so, and libata refuses the command before it gets there.
fn read_scsi_medium(drive: &File, block_bytes: u32, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let unit = u64::from(block_bytes.max(1));
    let length = buffer.len();
    let blocks = u32::try_from(length as u64 / unit).map_err(io::Error::other)?;
    let command = scsi::Command::read_medium(offset / unit, blocks);
    let mut read = sys::sg::submit(drive, &command, Data::In(buffer))?;
    if read.check().is_err_and(|failure| failure.is_attention()) {
        read = sys::sg::submit(drive, &command, Data::In(buffer))?;
    }
    match read.check() {
        Ok(()) if read.transferred == length => Ok(()),
        Ok(()) => Err(io::Error::other(format!("the drive returned {} of {length} bytes", read.transferred))),
        Err(failure) if failure.is_refusal() => Err(io::ErrorKind::Unsupported.into()),
        Err(failure) => Err(io::Error::other(failure)),
    }
}

/// What to write to, so that a drive's controllers start anew and the kernel looks at the drive again. A namespace of a
/// subsystem with several controllers hangs below that, and they beside it.
fn reset_files(root: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let device = root.join("sys/block").join(name).join("device");
    let below = sysfs::names(&device).into_iter().map(|name| device.join(name));
    let controllers = std::iter::once(device.clone()).chain(below);
    let files = controllers.flat_map(|c| [c.join("reset_controller"), c.join("rescan_controller")]);
    files.chain([device.join("rescan")]).filter(|file| file.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn what_starts_a_controller_anew() {
        for (name, device, files, want) in [
            (
                "one controller",
                "sys/devices/nvme0",
                &["sys/devices/nvme0/reset_controller", "sys/devices/nvme0/rescan_controller"][..],
                &["reset_controller", "rescan_controller"][..],
            ),
            (
                "two paths",
                "sys/devices/nvme-subsys0",
                &["sys/devices/nvme-subsys0/nvme0/reset_controller", "sys/devices/nvme-subsys0/nvme1/reset_controller"],
                &["nvme0/reset_controller", "nvme1/reset_controller"],
            ),
            ("SCSI", "sys/devices/0:0:0:0", &["sys/devices/0:0:0:0/rescan"], &["rescan"]),
            ("virtio", "sys/devices/virtio1", &["sys/devices/virtio1/status"], &[]),
        ] {
            let tree = Tree::new();
            files.iter().for_each(|file| tree.file(file, ""));
            tree.link("sys/block/x/device", device);
            let found = reset_files(tree.root(), "x");
            let want: Vec<_> = want.iter().map(|file| tree.root().join("sys/block/x/device").join(file)).collect();
            assert_eq!(found, want, "{name}");
        }
    }
}
