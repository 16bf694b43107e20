//! The drives of an order, as one erases them: each with all its volumes, asked what it can do, with a plan or the
//! reason why there is none.

use std::path::Path;

use drophammer_protocol::certificate;
use drophammer_protocol::erase::Medium;
use drophammer_protocol::inventory::{Bus, Disk, DiskId};
use drophammer_protocol::order::Erase;

use super::plan::{self, Blocks, Plan};
use super::probe::{self, Probed};
use crate::disk::OpenDisk;
use crate::drive::kernel::KernelDrive;
use crate::drive::{Buffer, Drive};
use crate::inventory::sysfs;
use crate::signatures;

/// One drive.
pub(super) struct Subject {
    pub(super) drive: certificate::Drive,
    pub(super) capabilities: Vec<String>,
    /// What lies on it, in words.
    pub(super) found: Vec<String>,
    pub(super) ready: Result<Ready, String>,
}

/// A drive that was understood.
pub(super) struct Ready {
    pub(super) drive: KernelDrive,
    pub(super) probed: Probed,
    pub(super) plan: Plan,
}

impl Subject {
    /// What is to be done with the drive that has these volumes. `opened` is the same volumes, opened, or why they can't be.
    pub(super) fn of(
        root: &Path,
        volumes: &[Volume<'_>],
        opened: Result<Vec<OpenDisk>, String>,
        order: &Erase,
    ) -> Self {
        let mut subject = Self {
            drive: identity(volumes),
            capabilities: Vec::new(),
            found: Vec::new(),
            ready: Err("the drive has no volumes".to_owned()),
        };
        subject.ready = opened.and_then(|opened| subject.understand(root, opened, order));
        subject
    }

    fn understand(&mut self, root: &Path, opened: Vec<OpenDisk>, order: &Erase) -> Result<Ready, String> {
        let disks: Vec<Disk> = opened.iter().map(|disk| disk.facts.clone()).collect();
        let blocks = disks.iter().map(|disk| blocks(root, &disk.name)).reduce(Blocks::and).unwrap_or_default();
        let mut drive = KernelDrive::of(opened);
        let psid = order.psids.get(&self.drive.serial);
        let mut probed = probe::probe(&mut drive, &disks, blocks, psid).map_err(|e| format!("{e:#}"))?;
        for (index, volume) in probed.volumes.iter_mut().enumerate() {
            self.found.extend(look_at(&mut drive, index, volume));
        }
        self.capabilities = [probed.capabilities.words(), probed.remarks.clone()].concat();
        self.drive.medium = probed.capabilities.medium;
        for (told, known) in [(&probed.model, &mut self.drive.model), (&probed.firmware, &mut self.drive.firmware)] {
            if told.is_some() {
                known.clone_from(told);
            }
        }
        let plan =
            plan::plan(&probed.capabilities, order.policy, psid.is_some()).map_err(|unable| unable.to_string())?;
        Ok(Ready { drive, probed, plan })
    }
}

/// What lies on a volume, in words; and marks the places for the proof.
fn look_at(drive: &mut dyn Drive, index: usize, volume: &mut probe::Volume) -> Vec<String> {
    let mut read = |offset: u64, bytes: &mut [u8]| {
        let mut buffer = Buffer::new(bytes.len());
        drive.read(index, buffer.bytes(), offset)?;
        bytes.copy_from_slice(buffer.bytes());
        Ok(())
    };
    let contents = signatures::find(&mut read, volume.id.size_bytes, volume.block_bytes);
    volume.marks = contents.signatures.iter().map(|signature| signature.offset).collect();
    contents.signatures.iter().map(ToString::to_string).collect()
}

/// One volume of a drive: what the kernel knows of it, and how orders name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Volume<'a> {
    pub(super) disk: &'a Disk,
    pub(super) id: &'a DiskId,
}

/// Everything that the kernel calls a drive.
pub(super) fn names(disk: &Disk) -> impl Iterator<Item = &str> {
    std::iter::once(&disk.name).chain(&disk.paths).map(String::as_str)
}

/// Volumes by the drives that they are on, in the order in which they were named.
pub(super) fn drives<'a>(order: &'a [DiskId], named: Vec<&'a Disk>) -> Vec<Vec<Volume<'a>>> {
    let mut drives: Vec<Vec<Volume<'a>>> = Vec::new();
    for (id, disk) in order.iter().zip(named) {
        let volume = Volume { disk, id };
        let same = |drive: &&mut Vec<Volume<'a>>| {
            drive.iter().any(|v| v.disk.bus == Bus::Nvme && disk.bus == Bus::Nvme && v.id.serial == id.serial)
        };
        match drives.iter_mut().find(same) {
            Some(drive) => drive.push(volume),
            None => drives.push(vec![volume]),
        }
    }
    drives
}

fn identity(volumes: &[Volume<'_>]) -> certificate::Drive {
    let first = volumes.first().map(|volume| volume.disk);
    certificate::Drive {
        serial: volumes.first().map(|volume| volume.id.serial.clone()).unwrap_or_default(),
        model: first.and_then(|disk| disk.model.clone()),
        firmware: first.and_then(|disk| disk.firmware.clone()),
        wwn: first.and_then(|disk| disk.wwn.clone()),
        bus: first.map_or(Bus::Other, |disk| disk.bus),
        medium: Medium::Flash,
        disks: volumes.iter().map(|volume| volume.id.clone()).collect(),
    }
}

/// What the kernel says that it can have the drive do.
fn blocks(root: &Path, name: &str) -> Blocks {
    let queue = root.join("sys/block").join(name).join("queue");
    let can = |file: &str| sysfs::number::<u64>(&queue.join(file)).is_some_and(|bytes| bytes > 0);
    Blocks { write_zeroes: can("write_zeroes_max_bytes"), discard: can("discard_max_bytes") }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::fixtures;

    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn namespaces_belong_to_their_drive() {
        let disk = |bus, serial: &str, namespace| Disk { bus, namespace, ..fixtures::disk(serial, 1 << 30) };
        let here = [disk(Bus::Nvme, "A", 1), disk(Bus::Ata, "A", 1), disk(Bus::Nvme, "B", 1), disk(Bus::Nvme, "A", 2)];
        let order: Vec<DiskId> = here.iter().filter_map(Disk::id).collect();
        let found: Vec<Vec<(Bus, u32)>> = drives(&order, here.iter().collect())
            .iter()
            .map(|volumes| volumes.iter().map(|v| (v.disk.bus, v.id.namespace)).collect())
            .collect();
        let (nvme, ata) = (Bus::Nvme, Bus::Ata);
        assert_eq!(found, [vec![(nvme, 1), (nvme, 2)], vec![(ata, 1)], vec![(nvme, 1)]]);
    }

    #[test]
    fn what_the_kernel_can_have_it_do() {
        let tree = Tree::new();
        tree.file("sys/block/vda/queue/write_zeroes_max_bytes", "1073741824\n");
        tree.file("sys/block/vda/queue/discard_max_bytes", "0\n");
        assert_eq!(blocks(tree.root(), "vda"), Blocks { write_zeroes: true, discard: false });
        assert_eq!(blocks(tree.root(), "vdb"), Blocks::default());
    }
}
