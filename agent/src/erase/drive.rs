//! One NVMe drive as the erase sees it: commands go in, blocks come out. The trait is the seam that tests use to put in
//! drives that lie.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, bail, ensure};
use drophammer_protocol::inventory::DiskId;

use super::plan::Nvme;
use crate::sys::nvme_id::{AdminCommand, Controller, IDENTIFY_BYTES, IdentifyPage, Namespace, Status, namespace_list};
use crate::sys::{block, nvme};

pub(super) trait Drive {
    /// `Err` if the command didn't reach the drive or its answer didn't come in time.
    fn submit(&mut self, command: &AdminCommand, data: &mut [u8]) -> io::Result<Status>;
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written is on the medium and nothing that was read is remembered.
    fn flush(&mut self) -> io::Result<()>;
}

/// The whole block device, opened with `O_DIRECT` by whoever reads or writes.
impl Drive for File {
    fn submit(&mut self, command: &AdminCommand, data: &mut [u8]) -> io::Result<Status> {
        nvme::submit(self, command, data)
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(buffer, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_all()?;
        block::drop_cache(&*self)
    }
}

/// What a drive said of itself, checked against the name that it was ordered by.
#[derive(Clone, Debug)]
pub(super) struct Probed {
    pub(super) model: String,
    pub(super) firmware: String,
    pub(super) nsid: u32,
    pub(super) namespace: Namespace,
    pub(super) capabilities: Nvme,
}

/// Asks the drive who it is and what it can do; touches nothing. `visible` are the namespaces of this drive that have
/// block devices here.
pub(super) fn probe(drive: &mut impl Drive, id: &DiskId, nsid: u32, visible: &[u32]) -> anyhow::Result<Probed> {
    let page = identify(drive, IdentifyPage::Controller)?;
    let controller = Controller::parse(&page).context("Identify Controller tells no serial")?;
    ensure!(controller.serial == id.serial.trim(), "the drive that answers has the serial {}", controller.serial);
    let page = identify(drive, IdentifyPage::Namespace(nsid))?;
    let namespace =
        Namespace::parse(&page).with_context(|| format!("Identify Namespace {nsid} describes no usable namespace"))?;
    ensure!(namespace.size_bytes == id.size_bytes, "the drive that answers has {} bytes", namespace.size_bytes);

    let mut existing = namespace_list(&identify(drive, IdentifyPage::ActiveNamespaces)?);
    if controller.can_manage_namespaces() {
        existing.extend(namespace_list(&identify(drive, IdentifyPage::AllocatedNamespaces)?));
    }
    existing.retain(|existing| *existing != nsid && !visible.contains(existing));
    existing.sort_unstable();
    existing.dedup();
    Ok(Probed {
        model: controller.model.clone(),
        firmware: controller.firmware.clone(),
        nsid,
        namespace,
        capabilities: Nvme::of(&controller, existing),
    })
}

fn identify(drive: &mut impl Drive, page: IdentifyPage) -> anyhow::Result<Vec<u8>> {
    let mut data = vec![0; IDENTIFY_BYTES];
    let status =
        drive.submit(&AdminCommand::identify(page), &mut data).with_context(|| format!("asking for {page:?}"))?;
    if !status.is_success() {
        bail!("asking for {page:?}: {status}");
    }
    Ok(data)
}

/// Memory for one block, where `O_DIRECT` wants it.
#[derive(Debug)]
pub(super) struct Block {
    room: Vec<u8>,
    skip: usize,
    length: usize,
}

impl Block {
    const ALIGNMENT: usize = 4096;

    pub(super) fn new(block_bytes: u32) -> Self {
        let length = block_bytes as usize;
        let room = vec![0; length + Self::ALIGNMENT];
        let skip = room.as_ptr().align_offset(Self::ALIGNMENT).min(Self::ALIGNMENT);
        Self { room, skip, length }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.skip..self.skip + self.length]
    }
}
