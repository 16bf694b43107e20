//! The bytes that make a disk bootable, made in memory: they are written last, and in an order that `target` decides.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use anyhow::Context;
use drophammer_protocol::space::MIB;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::{PartRecord, ProtectiveMBR};
use gpt::{GptConfig, partition_types};
use uuid::Uuid;

use super::layout::{Role, Table};

/// A piece of a disk and where it goes. All of it lies in the first or the last MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) what: &'static str,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Whether a legacy BIOS is to find an active partition in the protective MBR. Some refuse to start a disk without
/// one; the UEFI specification (5.2.3) wants none, and some UEFI firmware then takes the disk for a legacy one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActiveFlag {
    Set,
    Clear,
}

/// In the order in which they must become durable: nothing finds the disk before the last one is down, apart from
/// firmware that repairs a missing primary table from the backup, by when everything else is complete anyway.
pub(crate) fn tables(table: &Table, boot_code: &[u8; 440], active: ActiveFlag) -> anyhow::Result<[Piece; 3]> {
    let block = u64::from(table.geometry.logical_block);
    let block_size = block_size(table.geometry.logical_block)?;
    let edges = Edges::new(table.geometry.bytes / block * block);
    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(block_size)
        .create_from_device(edges, Some(table.guid))
        .context("laying out the GPT")?;
    let mut entries = BTreeMap::new();
    for partition in &table.partitions {
        let kind = match partition.role {
            Role::BiosBoot => partition_types::BIOS,
            Role::Esp(_) => partition_types::EFI,
            Role::Root => partition_types::LINUX_ROOT_X64,
            Role::Data => partition_types::LINUX_FS,
            Role::Swap => partition_types::LINUX_SWAP,
            Role::Raid => partition_types::LINUX_RAID,
            Role::Lvm => partition_types::LINUX_LVM,
        };
        let entry = gpt::partition::Partition {
            part_type_guid: kind,
            part_guid: partition.guid,
            first_lba: partition.first,
            last_lba: partition.last,
            flags: 0,
            name: partition.name.clone(),
        };
        entries.insert(partition.number, entry);
    }
    disk.update_partitions(entries).context("laying out the GPT")?;
    let edges = disk.write().context("laying out the GPT")?;
    let mbr = protective_mbr(table, boot_code, active);
    edges.into_pieces(block, mbr).context("laying out the GPT")
}

/// The partitions of a drive's primary table, by their numbers: their names and GUIDs. Nothing is written.
pub(crate) fn read(
    drive: &mut (impl Read + Seek),
    logical_block: u32,
) -> anyhow::Result<BTreeMap<u32, (String, Uuid)>> {
    const MOST_ENTRIES: u32 = 1024;
    let block_size = block_size(logical_block)?;
    let header = gpt::header::read_header_from_arbitrary_device(drive, block_size)?;
    // The crate believes whatever the header says of these.
    anyhow::ensure!(
        header.part_size == 128 && header.num_parts <= MOST_ENTRIES,
        "it has {} entries of {} bytes; up to {MOST_ENTRIES} of 128 are known here",
        header.num_parts,
        header.part_size
    );
    let partitions = gpt::partition::file_read_partitions(drive, &header, block_size)?;
    Ok(partitions.into_iter().map(|(number, partition)| (number, (partition.name, partition.part_guid))).collect())
}

#[cfg(any(fuzzing, test))]
pub(crate) fn fuzz(bytes: &[u8]) {
    for logical_block in [512, 4096] {
        if let Ok(partitions) = read(&mut io::Cursor::new(bytes), logical_block) {
            assert!(partitions.len() <= bytes.len() / 128);
        }
    }
}

fn block_size(logical_block: u32) -> anyhow::Result<LogicalBlockSize> {
    match logical_block {
        512 => Ok(LogicalBlockSize::Lb512),
        4096 => Ok(LogicalBlockSize::Lb4096),
        other => anyhow::bail!("a GPT with blocks of {other} bytes isn't known here"),
    }
}

fn protective_mbr(table: &Table, boot_code: &[u8; 440], active: ActiveFlag) -> Vec<u8> {
    let blocks = table.geometry.bytes / u64::from(table.geometry.logical_block);
    // UEFI 5.2.3: the size of the disk minus one, or all ones if that doesn't fit.
    let mut record = PartRecord::new_protective(Some(u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX)));
    if active == ActiveFlag::Set {
        record.boot_indicator = 0x80;
    }
    let mut mbr = ProtectiveMBR::new();
    mbr.set_bootcode(*boot_code);
    mbr.set_partition(0, record);
    let mut sector = mbr.to_bytes().to_vec();
    sector.resize(table.geometry.logical_block as usize, 0);
    sector
}

/// A disk of which only both ends exist. The `gpt` crate writes primary and backup in its own order; here both land in
/// memory.
#[derive(Debug)]
struct Edges {
    bytes: u64,
    position: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Edges {
    fn new(bytes: u64) -> Self {
        /// [`MIB`], as memory is counted.
        const EDGE: usize = 1 << 20;
        let edge = vec![0; EDGE];
        Self { bytes, position: 0, head: edge.clone(), tail: edge }
    }

    /// What of the disk is held at the current position.
    fn here(&mut self) -> io::Result<&mut [u8]> {
        let outside = || io::Error::other("outside of the first and last MiB of the disk");
        let tail_start = self.bytes.checked_sub(MIB).ok_or_else(outside)?;
        let (edge, offset) = match self.position.checked_sub(tail_start) {
            Some(offset) => (&mut self.tail, offset),
            None => (&mut self.head, self.position),
        };
        edge.get_mut(usize::try_from(offset).map_err(io::Error::other)?..).ok_or_else(outside)
    }

    fn into_pieces(self, block: u64, mbr: Vec<u8>) -> Option<[Piece; 3]> {
        // The primary header and its 128 entries of 128 bytes follow the MBR; the backup's entries precede its header,
        // which is the disk's last block.
        let table = block + 128 * 128;
        let primary = self.head.get(usize::try_from(block).ok()?..usize::try_from(block + table).ok()?)?.to_vec();
        let backup = self.tail.get(usize::try_from(MIB - table).ok()?..)?.to_vec();
        Some([
            Piece { what: "backup GPT", offset: self.bytes - table, bytes: backup },
            Piece { what: "primary GPT", offset: block, bytes: primary },
            Piece { what: "boot sector", offset: 0, bytes: mbr },
        ])
    }
}

impl Read for Edges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut held: &[u8] = self.here()?;
        let count = held.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Edges {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut held: &mut [u8] = self.here()?;
        let count = held.write(bytes)?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Edges {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.bytes.checked_add_signed(n),
            SeekFrom::Current(n) => self.position.checked_add_signed(n),
        };
        self.position = position.ok_or_else(|| io::Error::other("seek before the start of the disk"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    use drophammer_protocol::inventory::FirmwareKind;

    use super::super::layout::ordinary;
    use super::*;

    fn table(bytes: u64, logical_block: u32) -> Table {
        ordinary(bytes, logical_block, FirmwareKind::Uefi).expect("fits").tables.remove(0)
    }

    #[test]
    fn sgdisk_finds_nothing_wrong() {
        // An odd number of sectors: real drives aren't multiples of a MiB.
        let table = table((3 << 30) + 7 * 512, 512);
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(table.geometry.bytes).expect("sparse file");
        for piece in tables(&table, &[0x90; 440], ActiveFlag::Clear).expect("tables") {
            file.as_file().write_all_at(&piece.bytes, piece.offset).expect("written");
        }
        let run = |arguments: &[&str]| {
            let output = Command::new("sgdisk")
                .args(arguments)
                .arg(file.path())
                .output()
                .expect("sgdisk runs; it is in the Debian package gdisk");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let verdict = run(&["-v"]);
        assert!(verdict.contains("No problems found"), "{verdict}");
        let (bios, esp, root) = (run(&["-i", "1"]), run(&["-i", "2"]), run(&["-i", "3"]));
        assert!(bios.contains("21686148-6449-6E6F-744E-656564454649"), "{bios}");
        assert!(esp.contains("C12A7328-F81F-11D2-BA4B-00A0C93EC93B"), "{esp}");
        assert!(root.contains("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"), "{root}");
        assert!(root.contains(&table.partitions[2].guid.to_string().to_uppercase()), "{root}");
    }

    #[test]
    fn what_was_written_is_read() {
        for logical_block in [512, 4096] {
            let table = table(1 << 30, logical_block);
            let mut file = tempfile::tempfile().expect("temporary file");
            file.set_len(table.geometry.bytes).expect("sparse file");
            for piece in tables(&table, &[0; 440], ActiveFlag::Clear).expect("tables") {
                file.write_all_at(&piece.bytes, piece.offset).expect("written");
            }
            let want: BTreeMap<_, _> = table.partitions.iter().map(|p| (p.number, (p.name.clone(), p.guid))).collect();
            assert_eq!(read(&mut file, logical_block).expect("a table"), want);
            let other = if logical_block == 512 { 4096 } else { 512 };
            read(&mut file, other).expect_err("in other blocks there is none");
        }
    }

    #[test]
    fn tables_that_lie_are_refused() {
        let table = table(1 << 30, 512);
        let [_, primary, mbr] = tables(&table, &[0; 440], ActiveFlag::Clear).expect("tables");
        let sound: Vec<u8> = [mbr.bytes, primary.bytes].concat();
        let header = 512;
        // Of the header, whose sum is made right again, and of the entries.
        for (name, at, value, want) in [
            ("as many entries as there are numbers", header + 80, u32::MAX, "it has 4294967295 entries of 128 bytes"),
            ("entries of another size", header + 84, 129, "it has 128 entries of 129 bytes"),
            ("entries behind the end", header + 72, u32::MAX, "failed to fill"),
            ("another entry", 2 * header + 8, 1, "CRC mismatch"),
        ] {
            let mut bytes = sound.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            bytes[header + 16..header + 20].fill(0);
            let sum = crc32(&bytes[header..header + 92]);
            bytes[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
            let said = read(&mut io::Cursor::new(&bytes), 512).expect_err(name).to_string();
            assert!(said.contains(want), "{name}: {said}");
        }
        read(&mut io::Cursor::new(&sound), 512).expect("sound as it was");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
        })
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_table_or_none(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048)) {
            fuzz(&bytes);
        }
    }

    #[test]
    fn what_lies_where() {
        for (name, bytes, logical_block, backup_at) in
            [("512", 1u64 << 30, 512u32, (1u64 << 30) - 33 * 512), ("4096", 1 << 30, 4096, (1 << 30) - 5 * 4096)]
        {
            let table = table(bytes, logical_block);
            let [backup, primary, mbr] = tables(&table, &[7; 440], ActiveFlag::Set).expect("tables");
            assert_eq!((backup.offset, primary.offset, mbr.offset), (backup_at, logical_block.into(), 0), "{name}");
            assert!(primary.bytes.starts_with(b"EFI PART"), "{name}");
            assert!(backup.bytes.ends_with(&vec![0; logical_block as usize - 92]), "{name}");
            assert_eq!(mbr.bytes.get(..440), Some(&[7u8; 440][..]), "{name}: boot code");
            assert_eq!(mbr.bytes.get(446..451), Some(&[0x80, 0, 2, 0, 0xee][..]), "{name}: protective entry");
            assert_eq!(mbr.bytes.get(510..512), Some(&[0x55, 0xaa][..]), "{name}: signature");
            assert_eq!(tables(&table, &[7; 440], ActiveFlag::Set).expect("tables")[0], backup, "{name}: repeatable");
        }
    }

    #[test]
    fn a_disk_too_large_for_the_mbr_says_so() {
        let [.., mbr] = tables(&table(8 << 40, 512), &[0; 440], ActiveFlag::Clear).expect("tables");
        assert_eq!(mbr.bytes.get(446), Some(&0));
        assert_eq!(mbr.bytes.get(458..462), Some(&[0xff; 4][..]));
    }
}
