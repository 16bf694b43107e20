//! Superblocks of version 1 as bytes: linux/raid/md_p.h, `struct mdp_superblock_1`.

use uuid::Uuid;

use crate::signatures::{array, le16, le32, le64, text};

/// What every offset and length in here is counted in, whatever the drive's blocks are.
pub(crate) const SECTOR: u64 = 512;

/// A superblock takes this much, however few members there are.
pub(crate) const BYTES: usize = 4096;

/// There is an internal bitmap, at `bitmap_offset`.
pub(super) const BITMAP: u32 = 1;
/// `layout` says how a RAID 0 of members of different sizes is laid out. Kernels before 5.4 don't know this, and those
/// since then don't start such an array without it.
pub(super) const RAID0_LAYOUT: u32 = 1 << 12;

/// `resync_offset` of an array whose copies are all the same.
pub(super) const IN_SYNC: u64 = u64::MAX;

const MAGIC: u32 = 0xa92b_4efc;
const ROLES: usize = 256;
const MOST_DEVICES: usize = (BYTES - ROLES) / 2;

/// What one member says of itself and of its array. What isn't here belongs to arrays that change their shape, and to the
/// kernel alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) features: u32,
    pub(crate) array: Uuid,
    pub(crate) name: String,
    /// Seconds since 1970 in the lower 40 bits, microseconds in the others.
    pub(crate) created: u64,
    pub(crate) level: i32,
    pub(crate) layout: u32,
    /// Sectors of each member that are used; 0 in a RAID 0.
    pub(crate) size: u64,
    /// Sectors.
    pub(crate) chunk: u32,
    pub(crate) raid_disks: u32,
    /// Sectors from the superblock to the bitmap, if there is one.
    pub(crate) bitmap_offset: i32,
    pub(crate) data_offset: u64,
    pub(crate) data_size: u64,
    pub(crate) super_offset: u64,
    /// This member's place in `roles`.
    pub(crate) number: u32,
    pub(crate) member: Uuid,
    /// Sectors of the log of bad blocks, and from the superblock to it.
    pub(crate) bad_blocks: u16,
    pub(crate) bad_blocks_offset: i32,
    pub(crate) updated: u64,
    /// Counts changes; who has fewer than the others has missed some.
    pub(crate) events: u64,
    /// How far the copies of a mirror are known to be the same.
    pub(crate) resync_offset: u64,
    /// What each device of the array does, by its number.
    pub(crate) roles: Vec<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// One of the members that hold data, counted from 0.
    Active(u16),
    Journal,
    Faulty,
    /// A spare, or nobody.
    Spare,
}

/// Why a block isn't a superblock that can be believed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Damage {
    #[error("it doesn't begin with md's magic number")]
    Magic,
    #[error("it is of version {0}, only version 1 is known here")]
    Version(u32),
    #[error("it is shorter than it says")]
    Short,
    #[error("its checksum is {found:08x} and should be {right:08x}")]
    Checksum { found: u32, right: u32 },
    #[error("it lies at sector {at} of the device and says {says}: it was made for another device")]
    Elsewhere { at: u64, says: u64 },
    #[error("it is for device number {0} of an array with fewer")]
    Number(u32),
}

impl Role {
    fn from_number(number: u16) -> Self {
        match number {
            0xffff => Self::Spare,
            0xfffe => Self::Faulty,
            0xfffd => Self::Journal,
            place => Self::Active(place),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Spare => 0xffff,
            Self::Faulty => 0xfffe,
            Self::Journal => 0xfffd,
            Self::Active(place) => place,
        }
    }
}

impl Superblock {
    /// Reads what lies at a sector of a device.
    pub(crate) fn parse(block: &[u8], sector: u64) -> Result<Self, Damage> {
        Self::fields(block).unwrap_or(Err(Damage::Short)).and_then(|(superblock, found, right)| {
            if found != right {
                Err(Damage::Checksum { found, right })
            } else if superblock.super_offset != sector {
                Err(Damage::Elsewhere { at: sector, says: superblock.super_offset })
            } else if superblock.role().is_none() {
                Err(Damage::Number(superblock.number))
            } else {
                Ok(superblock)
            }
        })
    }

    /// With the checksum that is there, and the one that should be.
    fn fields(block: &[u8]) -> Option<Result<(Self, u32, u32), Damage>> {
        if le32(block, 0)? != MAGIC {
            return Some(Err(Damage::Magic));
        }
        let version = le32(block, 4)?;
        if version != 1 {
            return Some(Err(Damage::Version(version)));
        }
        let devices = usize::try_from(le32(block, 220)?).ok().filter(|devices| *devices <= MOST_DEVICES)?;
        let roles = block.get(ROLES..ROLES + 2 * devices)?;
        let superblock = Self {
            features: le32(block, 8)?,
            array: Uuid::from_bytes(array(block, 16)?),
            name: text(block, 32, 32).unwrap_or_default(),
            created: le64(block, 64)?,
            level: le32(block, 72)?.cast_signed(),
            layout: le32(block, 76)?,
            size: le64(block, 80)?,
            chunk: le32(block, 88)?,
            raid_disks: le32(block, 92)?,
            bitmap_offset: le32(block, 96)?.cast_signed(),
            data_offset: le64(block, 128)?,
            data_size: le64(block, 136)?,
            super_offset: le64(block, 144)?,
            number: le32(block, 160)?,
            member: Uuid::from_bytes(array(block, 168)?),
            bad_blocks: le16(block, 186)?,
            bad_blocks_offset: le32(block, 188)?.cast_signed(),
            updated: le64(block, 192)?,
            events: le64(block, 200)?,
            resync_offset: le64(block, 208)?,
            roles: roles.as_chunks().0.iter().map(|role| Role::from_number(u16::from_le_bytes(*role))).collect(),
        };
        let right = checksum(block.get(..ROLES + 2 * devices)?);
        Some(Ok((superblock, le32(block, CHECKSUM)?, right)))
    }

    /// What this member does in its array.
    pub(crate) fn role(&self) -> Option<Role> {
        self.roles.get(usize::try_from(self.number).ok()?).copied()
    }

    /// [`BYTES`] of them.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut block = vec![0; BYTES];
        let mut put = |offset: usize, bytes: &[u8]| {
            for (to, from) in block.iter_mut().skip(offset).zip(bytes) {
                *to = *from;
            }
        };
        let devices = u32::try_from(self.roles.len()).unwrap_or(u32::MAX);
        put(0, &MAGIC.to_le_bytes());
        put(4, &1u32.to_le_bytes());
        put(8, &self.features.to_le_bytes());
        put(16, self.array.as_bytes());
        put(32, self.name.as_bytes().get(..32).unwrap_or(self.name.as_bytes()));
        put(64, &self.created.to_le_bytes());
        put(72, &self.level.to_le_bytes());
        put(76, &self.layout.to_le_bytes());
        put(80, &self.size.to_le_bytes());
        put(88, &self.chunk.to_le_bytes());
        put(92, &self.raid_disks.to_le_bytes());
        put(96, &self.bitmap_offset.to_le_bytes());
        put(128, &self.data_offset.to_le_bytes());
        put(136, &self.data_size.to_le_bytes());
        put(144, &self.super_offset.to_le_bytes());
        put(160, &self.number.to_le_bytes());
        put(168, self.member.as_bytes());
        put(186, &self.bad_blocks.to_le_bytes());
        put(188, &self.bad_blocks_offset.to_le_bytes());
        put(192, &self.updated.to_le_bytes());
        put(200, &self.events.to_le_bytes());
        put(208, &self.resync_offset.to_le_bytes());
        put(220, &devices.to_le_bytes());
        for (place, role) in self.roles.iter().enumerate() {
            put(ROLES + 2 * place, &role.number().to_le_bytes());
        }
        let sum = checksum(block.get(..ROLES + 2 * self.roles.len()).unwrap_or_default());
        for (to, from) in block.iter_mut().skip(CHECKSUM).zip(sum.to_le_bytes()) {
            *to = from;
        }
        block
    }
}

const CHECKSUM: usize = 216;

/// All words added up, as if the checksum's own were 0, and what doesn't fit into one added to that. An odd role at the end
/// is half a word.
fn checksum(superblock: &[u8]) -> u32 {
    let (words, rest) = superblock.as_chunks::<4>();
    let words = words.iter().enumerate().filter(|(place, _)| *place != CHECKSUM / 4);
    let sum: u64 = words.map(|(_, word)| u64::from(u32::from_le_bytes(*word))).sum();
    let sum = sum + le16(rest, 0).map_or(0, u64::from);
    let [low, high] = [sum & 0xffff_ffff, sum >> 32];
    u32::try_from((low + high) & 0xffff_ffff).unwrap_or_default()
}

#[cfg(fuzzing)]
pub(super) fn fuzz(block: &[u8]) {
    let Some(Ok((mut superblock, _, _))) = Superblock::fields(block) else { return };
    // Names are made readable, which may make them longer.
    superblock.name.clear();
    let again = Superblock::parse(&superblock.to_bytes(), superblock.super_offset);
    assert_eq!(again.is_ok(), superblock.role().is_some());
    assert!(again.is_err() || again == Ok(superblock));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_superblock() -> impl Strategy<Value = Superblock> {
        let ids = (any::<u128>(), any::<u128>(), "[a-z:]{0,32}");
        let places = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<i32>(), any::<i32>());
        let shape = (any::<i32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u16>());
        let times = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        let roles = prop::collection::vec(any::<u16>().prop_map(Role::from_number), 1..=MOST_DEVICES);
        (ids, places, shape, times, roles, any::<prop::sample::Index>()).prop_map(
            |(ids, places, shape, times, roles, number)| Superblock {
                features: shape.4,
                array: Uuid::from_u128(ids.0),
                name: ids.2,
                created: times.0,
                level: shape.0,
                layout: shape.1,
                size: places.0,
                chunk: shape.2,
                raid_disks: shape.3,
                bitmap_offset: places.4,
                data_offset: places.1,
                data_size: places.2,
                super_offset: places.3,
                number: u32::try_from(number.index(roles.len())).expect("few"),
                member: Uuid::from_u128(ids.1),
                bad_blocks: shape.5,
                bad_blocks_offset: places.5,
                updated: times.1,
                events: times.2,
                resync_offset: times.3,
                roles,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(superblock in any_superblock(), at in 0usize..BYTES, flip in 1u8..) {
            let mut block = superblock.to_bytes();
            prop_assert_eq!(block.len(), BYTES);
            prop_assert_eq!(Superblock::parse(&block, superblock.super_offset), Ok(superblock.clone()));
            let elsewhere = superblock.super_offset ^ 8;
            let moved = Damage::Elsewhere { at: elsewhere, says: superblock.super_offset };
            prop_assert_eq!(Superblock::parse(&block, elsewhere), Err(moved));
            block[at] ^= flip;
            let end = ROLES + 2 * superblock.roles.len();
            prop_assert_eq!(Superblock::parse(&block, superblock.super_offset).is_ok(), at >= end);
        }

        #[test]
        fn any_bytes(mut block in prop::collection::vec(any::<u8>(), 0..BYTES + 1), sector in any::<u64>()) {
            for (to, from) in block.iter_mut().zip(MAGIC.to_le_bytes().into_iter().chain([1, 0, 0, 0])) {
                *to = from;
            }
            prop_assert!(Superblock::parse(&block, sector).is_err());
        }
    }

    #[test]
    fn damage_has_a_name() {
        let block = |changes: &[(usize, u32)]| {
            let mut block = vec![0; BYTES];
            for (offset, word) in [(0, MAGIC), (4, 1)].iter().chain(changes) {
                block[*offset..offset + 4].copy_from_slice(&word.to_le_bytes());
            }
            block
        };
        for (name, block, want) in [
            ("nothing", vec![0; BYTES], Damage::Magic),
            ("cut", block(&[])[..255].to_vec(), Damage::Short),
            ("no bytes", vec![], Damage::Short),
            ("version", block(&[(4, 2)]), Damage::Version(2)),
            ("more devices than there is room for", block(&[(220, 1921)]), Damage::Short),
            ("nobody's", block(&[(CHECKSUM, MAGIC + 1)]), Damage::Number(0)),
            ("checksum", block(&[]), Damage::Checksum { found: 0, right: MAGIC + 1 }),
        ] {
            assert_eq!(Superblock::parse(&block, 0), Err(want), "{name}");
        }
    }
}
