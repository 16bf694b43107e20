//! Descriptors of groups: where the inodes are.

use anyhow::{Result, ensure};
use crc::{CRC_16_MODBUS, Crc};

use super::super::blocks;
use super::super::checksum::Fields;
use super::Filesystem;
use super::superblock::{Checked, Copies};

const CHECKSUM: usize = 0x1e;
const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

impl Filesystem {
    /// The first block of a group's table of inodes.
    pub(super) fn inode_table(&self, group: u32) -> Result<u64> {
        let superblock = &self.superblock;
        let per_block = (superblock.block / superblock.descriptor_bytes) as u64;
        let (index, slot) = (u64::from(group) / per_block, u64::from(group) % per_block);
        let at = self.descriptor_block(index, per_block) * superblock.block as u64
            + slot * superblock.descriptor_bytes as u64;
        let mut descriptor = vec![0; superblock.descriptor_bytes];
        self.window.read(at, &mut descriptor)?;
        ensure!(
            self.is_descriptor_right(group, &descriptor),
            "the descriptor of group {group} is damaged: the checksum doesn't match"
        );
        Ok(if superblock.wide { descriptor.get_split(0x08, 0x28) } else { descriptor.get32(0x08).into() })
    }

    /// As libext2fs' `ext2fs_descriptor_block_loc2`.
    fn descriptor_block(&self, index: u64, per_block: u64) -> u64 {
        let superblock = &self.superblock;
        // With bigalloc there is no block before the superblock's, however small blocks are.
        let first = if superblock.block == 1024 { 1 } else { u64::from(superblock.first_block) };
        match superblock.first_in_groups {
            Some(from) if index >= from => {
                let group = index * per_block;
                let start = u64::from(superblock.first_block) + group * u64::from(superblock.blocks_per_group);
                let start = if group == 0 { first } else { start };
                start + u64::from(self.has_copy(group))
            }
            _ => first + 1 + index,
        }
    }

    fn has_copy(&self, group: u64) -> bool {
        match self.superblock.copies {
            Copies::All => true,
            Copies::Sparse => blocks::has_copy(group),
            Copies::Two(groups) => group == 0 || groups.iter().any(|with| u64::from(*with) == group),
        }
    }

    fn is_descriptor_right(&self, group: u32, descriptor: &[u8]) -> bool {
        let number = group.to_le_bytes();
        let (before, after) = (&descriptor[..CHECKSUM], &descriptor[CHECKSUM + 2..]);
        let sum = match self.superblock.checked {
            Checked::Nothing => return true,
            Checked::Everything => self.superblock.seed.over(&number).over(before).over(&[0; 2]).over(after).halves().0,
            Checked::Groups => {
                let mut digest = CRC16.digest();
                digest.update(self.superblock.uuid.as_bytes());
                digest.update(&number);
                digest.update(before);
                digest.update(after);
                digest.finalize()
            }
        };
        sum == descriptor.get16(CHECKSUM)
    }
}
