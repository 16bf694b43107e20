//! The EFI system partition: a FAT32 file system with a few files, made and filled without mounting it.
//!
//! `fatfs` is built without its `alloc` feature: with it, every directory's `.` and `..` get a long name as well, which
//! fsck.vfat takes for damage. Without it names are 8.3, which is all that is needed: FAT doesn't tell cases apart.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Context;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

use crate::sys::block;

/// What goes where; directories are made as needed.
#[derive(Debug)]
pub(crate) struct EspFile<'a> {
    pub(crate) path: &'a str,
    pub(crate) content: &'a [u8],
}

/// Makes the whole partition, also without anything to put there: the installed system mounts it. What was on it is gone.
pub(crate) fn fill(
    node: &Path,
    bytes: u64,
    logical_block: u32,
    volume: u32,
    files: &[EspFile<'_>],
) -> anyhow::Result<()> {
    let fill = || -> anyhow::Result<()> {
        let mut partition = File::options().read(true).write(true).open(node)?;
        write(&mut partition, bytes, logical_block, volume, files)?;
        partition.sync_all()?;
        block::drop_cache(&partition)?;
        check(&mut partition, files)
    };
    fill().with_context(|| format!("writing the EFI system partition {}", node.display()))
}

/// Formats `device` and writes `files`.
fn write(
    device: &mut (impl Read + Write + Seek),
    bytes: u64,
    logical_block: u32,
    volume_id: u32,
    files: &[EspFile<'_>],
) -> anyhow::Result<()> {
    let block = u16::try_from(logical_block).context("a block size that FAT doesn't know")?;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_sector(block)
        .total_sectors(u32::try_from(bytes / u64::from(logical_block)).context("larger than FAT32 can be")?)
        // One block per cluster on the smallest partition keeps it above the 65525 clusters that FAT32 must have.
        .bytes_per_cluster(if bytes > 128 << 20 && block == 512 { 2048 } else { logical_block })
        .volume_id(volume_id)
        .volume_label(*b"EFI        ");
    let mut device = Staged::new(device);
    fatfs::format_volume(&mut device, options).context("making the FAT32 file system")?;
    device.rewind().context("rewinding the EFI system partition")?;
    let volume = FileSystem::new(&mut device, FsOptions::new()).context("opening the new FAT32 file system")?;
    for file in files {
        let put = || -> io::Result<()> {
            let (dirs, name) = file.path.rsplit_once('/').unwrap_or(("", file.path));
            let mut dir = volume.root_dir();
            for part in dirs.split('/').filter(|part| !part.is_empty()) {
                dir = dir.create_dir(part)?;
            }
            let mut target = dir.create_file(name)?;
            target.truncate()?;
            target.write_all(file.content)?;
            target.flush()
        };
        put().with_context(|| format!("writing {} of the EFI system partition", file.path))?;
    }
    volume.unmount().context("closing the FAT32 file system")?;
    clear_parents_of_top_level(&mut device).context("correcting the top level of the FAT32 file system")?;
    device.settle().context("writing the FAT32 file system")
}

/// A directory in the root has 0 as the cluster of its parent (Microsoft's FAT specification, section 6.5), where
/// `fatfs` writes the root's own. Firmware doesn't mind; fsck.vfat would repair it at every boot.
fn clear_parents_of_top_level(device: &mut (impl Read + Write + Seek)) -> anyhow::Result<()> {
    const ENTRY: usize = 32;
    const DIRECTORY: u8 = 0x10;
    let mut boot = [0; 512];
    read_at(device, 0, &mut boot)?;
    let number = |bytes: &[u8], at: usize, length: usize| -> u64 {
        bytes.iter().skip(at).take(length).rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let block = number(&boot, 11, 2);
    let cluster_bytes = block * number(&boot, 13, 1);
    let data = block * (number(&boot, 14, 2) + number(&boot, 16, 1) * number(&boot, 36, 4));
    let offset = |cluster: u64| cluster.checked_sub(2).map(|index| data + index * cluster_bytes);
    let root = offset(number(&boot, 44, 4)).context("the root has no cluster")?;
    // What is written here is less than a cluster of entries.
    let mut entries = vec![0; usize::try_from(cluster_bytes)?];
    read_at(device, root, &mut entries)?;
    for entry in entries.chunks_exact(ENTRY).filter(|entry| entry.get(11) == Some(&DIRECTORY)) {
        let cluster = number(entry, 20, 2) << 16 | number(entry, 26, 2);
        let parent = offset(cluster).context("a directory has no cluster")? + ENTRY as u64;
        let mut link = [0; ENTRY];
        read_at(device, parent, &mut link)?;
        anyhow::ensure!(
            link.starts_with(b"..         "),
            "a directory doesn't begin with links to itself and its parent"
        );
        for half in [20..22, 26..28] {
            link.get_mut(half).unwrap_or_default().fill(0);
        }
        device.seek(SeekFrom::Start(parent))?;
        device.write_all(&link)?;
    }
    Ok(device.flush()?)
}

fn read_at(device: &mut (impl Read + Seek), offset: u64, into: &mut [u8]) -> io::Result<()> {
    device.seek(SeekFrom::Start(offset))?;
    device.read_exact(into)
}

/// A device whose changes are collected and written once, in order. `fatfs` updates the table for every cluster of every
/// file: straight to the device that is a hundred thousand system calls.
struct Staged<'a, D> {
    device: &'a mut D,
    position: u64,
    /// By their index. As many as were touched: the tables and the files.
    blocks: BTreeMap<u64, Vec<u8>>,
}

const STAGED_BYTES: usize = 64 << 10;

impl<'a, D: Read + Write + Seek> Staged<'a, D> {
    fn new(device: &'a mut D) -> Self {
        Self { device, position: 0, blocks: BTreeMap::new() }
    }

    fn settle(self) -> io::Result<()> {
        for (index, block) in self.blocks {
            self.device.seek(SeekFrom::Start(index * STAGED_BYTES as u64))?;
            self.device.write_all(&block)?;
        }
        self.device.flush()
    }

    /// The rest of the block at the current position.
    fn here(&mut self) -> io::Result<&mut [u8]> {
        let index = self.position / STAGED_BYTES as u64;
        let within = usize::try_from(self.position % STAGED_BYTES as u64).map_err(io::Error::other)?;
        if !self.blocks.contains_key(&index) {
            // Shorter at the end of the device.
            let mut block = Vec::with_capacity(STAGED_BYTES);
            self.device.seek(SeekFrom::Start(index * STAGED_BYTES as u64))?;
            Read::take(&mut *self.device, STAGED_BYTES as u64).read_to_end(&mut block)?;
            self.blocks.insert(index, block);
        }
        Ok(self.blocks.get_mut(&index).and_then(|block| block.get_mut(within..)).unwrap_or_default())
    }
}

impl<D: Read + Write + Seek> Read for Staged<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut staged: &[u8] = self.here()?;
        let count = staged.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<D: Read + Write + Seek> Write for Staged<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut staged: &mut [u8] = self.here()?;
        let count = staged.write(bytes)?;
        self.position += count as u64;
        Ok(count)
    }

    /// What `fatfs` wants after every file; [`Staged::settle`] does it once.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Read + Write + Seek> Seek for Staged<'_, D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::Current(n) => self.position.checked_add_signed(n),
            SeekFrom::End(n) => self.device.seek(SeekFrom::End(0))?.checked_add_signed(n),
        };
        self.position = position.ok_or_else(|| io::Error::other("seek before the start of the partition"))?;
        Ok(self.position)
    }
}

/// Reads the files again, as a firmware would find them.
fn check(device: &mut File, files: &[EspFile<'_>]) -> anyhow::Result<()> {
    let mut device = Staged::new(device);
    let volume = FileSystem::new(&mut device, FsOptions::new()).context("reading the FAT32 file system back")?;
    for file in files {
        let read = || -> io::Result<bool> {
            let mut found = volume.root_dir().open_file(file.path)?;
            let mut buffer = [0; 4096];
            for want in file.content.chunks(buffer.len()) {
                let part = buffer.get_mut(..want.len()).unwrap_or_default();
                found.read_exact(part)?;
                if part != want {
                    return Ok(false);
                }
            }
            Ok(found.read(&mut buffer)? == 0)
        };
        let same = read().with_context(|| format!("reading {} of the EFI system partition back", file.path))?;
        anyhow::ensure!(same, "{} of the EFI system partition reads back different from what was written", file.path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn fsck_finds_nothing_wrong() {
        let program = vec![0x4d; 4_200_000];
        for (name, mib, block) in [("smallest", 64, 512), ("ordinary", 256, 512), ("4096-byte blocks", 320, 4096)] {
            let mut file = tempfile::NamedTempFile::new().expect("temporary file");
            file.as_file().set_len(mib << 20).expect("sparse file");
            let files = [
                EspFile { path: "EFI/BOOT/BOOTX64.EFI", content: &program },
                EspFile { path: "EFI/debian/grub.cfg", content: b"text" },
                EspFile { path: "EFI/debian/grubx64.efi", content: &program },
            ];
            write(file.as_file_mut(), mib << 20, block, 0x1234_abcd, &files).expect(name);
            check(file.as_file_mut(), &files).expect(name);
            let other = [EspFile { path: "EFI/debian/grub.cfg", content: b"test" }];
            check(file.as_file_mut(), &other).expect_err("another content");
            let run = |program: &str, arguments: &[&str]| {
                Command::new(program)
                    .args(arguments)
                    .arg(file.path())
                    .output()
                    .unwrap_or_else(|e| panic!("{program} ({e}); it is in the Debian package dosfstools"))
            };
            let output = run("fsck.vfat", &["-n", "-v"]);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{name}: {output:?}");
            assert!(said.contains("32 bits per entry") || said.contains("FATs, 32 bit entries"), "{name}: {said}");
        }
    }
}
