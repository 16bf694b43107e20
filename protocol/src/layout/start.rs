//! Whether a machine's firmware finds the system on what a layout makes.

use super::{Device, Drive, Format, Kind, Layout};
use crate::inventory::FirmwareKind;

/// How the machine gets from its firmware to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start<'a> {
    /// Drives that the firmware can start from; each has all that is needed for it.
    pub from: Vec<&'a Drive>,
    /// The array, if any, that a BIOS's GRUB takes for a plain file system: its superblock must lie at the end of its members.
    pub plain_to_grub: Option<&'a str>,
}

/// Where the core image of a BIOS's GRUB looks: it was made with the image, which knew no machine.
const GRUBS_PARTITION: u32 = 3;

impl Layout {
    /// As a sentence, if it doesn't.
    pub fn start(&self, firmware: FirmwareKind) -> Result<Start<'_>, String> {
        let with = |kind| self.drives.iter().filter(move |d| d.partitions.iter().any(|p| p.kind == kind));
        match firmware {
            FirmwareKind::Uefi => {
                let from: Vec<&Drive> = with(Kind::Esp).collect();
                if from.is_empty() {
                    return Err(
                        "this machine has UEFI firmware, and no drive of the layout has a partition with kind = \
                                \"esp\" for it to start from"
                            .into(),
                    );
                }
                Ok(Start { from, plain_to_grub: None })
            }
            FirmwareKind::Bios => self.start_by_bios(),
        }
    }

    fn start_by_bios(&self) -> Result<Start<'_>, String> {
        let boot = self.boot_filesystem().ok_or("the layout mounts nothing at /")?;
        let place = boot.mount.as_deref().unwrap_or_default();
        if !matches!(boot.format, Format::Ext3 | Format::Ext4) {
            return Err(format!(
                "this machine has a BIOS, and what it starts reads no {}: give /boot an ext4 of its own",
                boot.format.name()
            ));
        }
        let elsewhere = || {
            format!(
                "this machine has a BIOS, which starts from the third partition of a drive that also has one with kind = \
                 \"bios\": put {place} there, or on a RAID 1 of such partitions, or give /boot a file system there"
            )
        };
        let members: Vec<&str> = match boot.on.as_deref().and_then(|on| self.device(on)) {
            Some(Device::Partition { .. }) => boot.on.as_deref().into_iter().collect(),
            Some(Device::Raid(raid)) if raid.level == 1 => raid.devices.iter().map(String::as_str).collect(),
            _ => return Err(elsewhere()),
        };
        let mut from = Vec::new();
        for name in members {
            match self.device(name) {
                Some(Device::Partition { drive, number: GRUBS_PARTITION, .. })
                    if drive.partitions.iter().any(|partition| partition.kind == Kind::Bios) =>
                {
                    from.push(drive);
                }
                _ => return Err(elsewhere()),
            }
        }
        let plain_to_grub = boot.on.as_deref().filter(|on| matches!(self.device(on), Some(Device::Raid(_))));
        Ok(Start { from, plain_to_grub })
    }
}
