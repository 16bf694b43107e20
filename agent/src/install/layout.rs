//! Where everything goes on the disk: a plan that can be printed, compared and refused before anything is written.
//!
//! Every name in it comes from a seed, so that a repeated install of the same order writes the same bytes.

use std::fmt;

use drophammer_protocol::space::{BIOS_BYTES, MIB, esp_bytes, needed_bytes};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// What a drive says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) bytes: u64,
    pub(crate) logical_block: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    BiosBoot,
    Esp,
    Root,
}

/// First and last block, both included, as the GPT has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) role: Role,
    pub(crate) number: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) guid: Uuid,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    pub(crate) disk_guid: Uuid,
    pub(crate) bios: Partition,
    pub(crate) esp: Partition,
    pub(crate) root: Partition,
    /// UUID of the root file system; the partition has its own.
    pub(crate) root_uuid: Uuid,
    /// FAT's volume id, which is what `UUID=` means for the EFI system partition.
    pub(crate) esp_volume: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Misfit {
    #[error("the disk has blocks of {0} bytes; only 512 and 4096 are known here")]
    Block(u32),
    #[error(
        "the disk has {have} bytes, the image needs at least {need}: choose a larger disk for this machine or a smaller image"
    )]
    TooSmall { have: u64, need: u64 },
}

/// What all names of one install are derived from.
#[derive(Clone, Debug)]
pub(crate) struct Seed([u8; 32]);

impl Seed {
    pub(crate) fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new_with_prefix("drophammer layout 1");
        for part in parts {
            // With its length, so that ("ab", "c") and ("a", "bc") differ.
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    pub(crate) fn uuid(&self, what: &str) -> Uuid {
        let hash: [u8; 32] = Sha256::new_with_prefix(self.0).chain_update(what).finalize().into();
        let (bytes, _) = hash.split_first_chunk::<16>().expect("32 is more than 16");
        uuid::Builder::from_random_bytes(*bytes).into_uuid()
    }

    fn u32(&self, what: &str) -> u32 {
        let (a, _, _, _) = self.uuid(what).as_fields();
        a
    }
}

/// `installed_bytes` is what the image's files need once unpacked.
pub(crate) fn plan(geometry: Geometry, installed_bytes: u64, seed: &Seed) -> Result<Layout, Misfit> {
    if !matches!(geometry.logical_block, 512 | 4096) {
        return Err(Misfit::Block(geometry.logical_block));
    }
    let need = needed_bytes(installed_bytes, geometry.bytes, geometry.logical_block);
    if geometry.bytes < need {
        return Err(Misfit::TooSmall { have: geometry.bytes, need });
    }
    let esp_bytes = esp_bytes(geometry.bytes, geometry.logical_block);
    let per_mib = MIB / u64::from(geometry.logical_block);
    // The first MiB belongs to the primary table and the last one to the backup, so the root ends where both a whole
    // MiB ends and at least one more follows.
    let whole_mib = geometry.bytes / MIB;
    let at = |mib: u64| mib * per_mib;
    let (bios, esp, root, end) = (1, 1 + BIOS_BYTES / MIB, 1 + (BIOS_BYTES + esp_bytes) / MIB, whole_mib - 1);
    let partition = |role, number, from, to, name| Partition {
        role,
        number,
        first: at(from),
        last: at(to) - 1,
        guid: seed.uuid(name),
    };
    Ok(Layout {
        geometry,
        disk_guid: seed.uuid("disk"),
        bios: partition(Role::BiosBoot, 1, bios, esp, "bios boot"),
        esp: partition(Role::Esp, 2, esp, root, "esp"),
        root: partition(Role::Root, 3, root, end, "root"),
        root_uuid: seed.uuid("root file system"),
        esp_volume: seed.u32("esp volume"),
    })
}

impl Layout {
    pub(crate) fn partitions(&self) -> [&Partition; 3] {
        [&self.bios, &self.esp, &self.root]
    }

    pub(crate) fn start_bytes(&self, partition: &Partition) -> u64 {
        partition.first * u64::from(self.geometry.logical_block)
    }

    pub(crate) fn length_bytes(&self, partition: &Partition) -> u64 {
        (partition.last - partition.first + 1) * u64::from(self.geometry.logical_block)
    }

    /// As in `UUID=1234-ABCD`.
    pub(crate) fn esp_uuid(&self) -> String {
        format!("{:04X}-{:04X}", self.esp_volume >> 16, self.esp_volume & 0xffff)
    }

    /// BIOS calls and GRUB's boot.img count in sectors of 512 bytes and fail on anything else.
    pub(crate) fn bios_can_boot(&self) -> bool {
        self.geometry.logical_block == 512
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "GPT {} on {} bytes in blocks of {}",
            self.disk_guid, self.geometry.bytes, self.geometry.logical_block
        )?;
        for partition in self.partitions() {
            let what = match partition.role {
                Role::BiosBoot => "BIOS boot".to_owned(),
                Role::Esp => format!("EFI system, FAT32 {}", self.esp_uuid()),
                Role::Root => format!("root, ext4 {}", self.root_uuid),
            };
            let mib = self.length_bytes(partition) / MIB;
            write!(f, "; {}: {what}, {mib} MiB at block {}", partition.number, partition.first)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn seed() -> Seed {
        Seed::of(&["machine", "order"])
    }

    #[test]
    fn what_fits_and_what_does_not() {
        for (name, bytes, logical_block, installed, want) in [
            ("a small virtual disk", 256 * MIB, 512, 20 * MIB, Ok((2048, 4096, 135_168))),
            ("a real one", 1_920_383_410_176, 512, 2 * GIB, Ok((2048, 4096, 528_384))),
            ("4096-byte blocks", GIB, 4096, 20 * MIB, Ok((256, 512, 82_432))),
            ("other blocks", GIB, 520, MIB, Err(Misfit::Block(520))),
            ("an empty disk", 0, 512, 0, Err(Misfit::TooSmall { have: 0, need: 164 * MIB })),
            ("an image that can't be", GIB, 512, u64::MAX - GIB, Err(Misfit::TooSmall { have: GIB, need: u64::MAX })),
        ] {
            let got = plan(Geometry { bytes, logical_block }, installed, &seed());
            assert_eq!(got.map(|l| (l.bios.first, l.esp.first, l.root.first)), want, "{name}");
        }
    }

    #[test]
    fn names_come_from_the_seed_alone() {
        let geometry = Geometry { bytes: GIB, logical_block: 512 };
        let with = |parts: &[&str]| plan(geometry, MIB, &Seed::of(parts)).expect("fits");
        assert_eq!(with(&["a", "b"]), with(&["a", "b"]), "a rerun is identical");
        assert_ne!(with(&["a", "b"]).root_uuid, with(&["ab", ""]).root_uuid, "parts don't run together");
        let layout = with(&["a", "b"]);
        let mut guids = vec![layout.disk_guid, layout.root_uuid];
        guids.extend(layout.partitions().map(|p| p.guid));
        guids.sort();
        guids.dedup();
        assert_eq!(guids.len(), 5, "no name is used twice");
    }

    proptest! {
        #[test]
        fn partitions_are_aligned_apart_and_inside(
            bytes in 0u64..40_000_000_000_000,
            four_k in any::<bool>(),
            installed in 0u64..10_000_000_000,
        ) {
            let logical_block = if four_k { 4096 } else { 512 };
            if let Ok(layout) = plan(Geometry { bytes, logical_block }, installed, &seed()) {
                let block = u64::from(logical_block);
                let mut free_from = MIB;
                for partition in layout.partitions() {
                    let start = layout.start_bytes(partition);
                    prop_assert!(start.is_multiple_of(MIB));
                    prop_assert!(start >= free_from);
                    prop_assert!(partition.last >= partition.first);
                    free_from = (partition.last + 1) * block;
                }
                // Backup header and 128 entries of 128 bytes.
                prop_assert!(free_from + MIB <= bytes);
                prop_assert!(layout.length_bytes(&layout.root) >= installed);
            }
        }
    }
}
