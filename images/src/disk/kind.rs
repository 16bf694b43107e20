//! What a disk or a partition holds, by what only that has where it has it.

use drophammer_protocol::archive::{Archive, ArchiveError};

use crate::ext4::read::{MAGIC, MAGIC_AT};

/// As many bytes of its start have to be known.
pub(crate) const HEAD_BYTES: usize = 72 << 10;

/// What somebody hands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// A tar, or too little to tell.
    Tar,
    /// A disk, or an ext4 file system.
    Disk,
    /// A disk in another form than as it is.
    Wrapped(&'static str),
    /// A file system, or what file systems are in, that can't be read.
    Unreadable(&'static str),
    /// Zeros for longer than an empty tar has them.
    Blank,
    Unknown,
}

pub(crate) fn sight(head: &[u8]) -> Sight {
    if let Some(wrapped) = wrapped(head) {
        return Sight::Wrapped(wrapped);
    }
    let Some(first) = head.first_chunk::<512>() else { return Sight::Tar };
    let is_header = !matches!(Archive::new(&first[..]).next_member(), Err(ArchiveError::Damaged { .. }));
    let is_empty = first.iter().all(|byte| *byte == 0);
    if is_header && !is_empty {
        return Sight::Tar;
    }
    match Holds::by(head) {
        _ if has_gpt(head) => Sight::Disk,
        // The boot sector of FAT ends as that of a disk does.
        Holds::Fat => Sight::Unreadable(Holds::Fat.words()),
        _ if has_mbr(head) => Sight::Disk,
        Holds::Ext => Sight::Disk,
        Holds::Unknown if is_empty && head.iter().all(|byte| *byte == 0) => {
            if head.len() < HEAD_BYTES {
                Sight::Tar
            } else {
                Sight::Blank
            }
        }
        Holds::Unknown => Sight::Unknown,
        other => Sight::Unreadable(other.words()),
    }
}

/// Whether a GPT begins where it does with sectors of 512 or of 4096 bytes.
pub(super) fn has_gpt(head: &[u8]) -> bool {
    [512, 4096].iter().any(|sector| has(head, *sector, b"EFI PART"))
}

pub(super) fn has_mbr(head: &[u8]) -> bool {
    has(head, 510, &[0x55, 0xaa])
}

fn has(head: &[u8], at: usize, what: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(what))
}

/// What virtual machines' disks are often kept as.
fn wrapped(head: &[u8]) -> Option<&'static str> {
    let known: [(usize, &[u8], &str); 6] = [
        (0, b"QFI\xfb", "qcow2"),
        (0, b"KDMV", "vmdk"),
        (0, b"# Disk DescriptorFile", "vmdk"),
        (0, b"vhdxfile", "vhdx"),
        (0, b"conectix", "vpc"),
        (0x40, &[0x7f, 0x10, 0xda, 0xbe], "vdi"),
    ];
    known.iter().find(|(at, magic, _)| has(head, *at, magic)).map(|(.., name)| *name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// ext4, ext3 or ext2.
    Ext,
    Fat,
    Swap,
    Xfs,
    Btrfs,
    F2fs,
    Squashfs,
    Iso9660,
    Luks,
    Lvm,
    Raid,
    Unknown,
}

impl Holds {
    pub(super) fn by(head: &[u8]) -> Self {
        let known: [(usize, &[u8], Self); 18] = [
            (0, b"LUKS\xba\xbe", Self::Luks),
            (0, b"LABELONE", Self::Lvm),
            (512, b"LABELONE", Self::Lvm),
            (1024, b"LABELONE", Self::Lvm),
            (1536, b"LABELONE", Self::Lvm),
            (0, &RAID, Self::Raid),
            (4096, &RAID, Self::Raid),
            (0, b"XFSB", Self::Xfs),
            (0x1_0040, b"_BHRfS_M", Self::Btrfs),
            (1024, &[0x10, 0x20, 0xf5, 0xf2], Self::F2fs),
            (0, b"hsqs", Self::Squashfs),
            (0x8001, b"CD001", Self::Iso9660),
            (4086, b"SWAPSPACE2", Self::Swap),
            (MAGIC_AT, &MAGIC, Self::Ext),
            (82, b"FAT32", Self::Fat),
            (54, b"FAT16", Self::Fat),
            (54, b"FAT12", Self::Fat),
            (3, b"EXFAT", Self::Fat),
        ];
        known.iter().find(|(at, magic, _)| has(head, *at, magic)).map_or(Self::Unknown, |(.., kind)| *kind)
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Ext => "ext4",
            Self::Fat => "vfat",
            Self::Swap => "swap",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::F2fs => "f2fs",
            Self::Squashfs => "squashfs",
            Self::Iso9660 => "ISO 9660",
            Self::Luks => "LUKS",
            Self::Lvm => "LVM",
            Self::Raid => "RAID",
            Self::Unknown => "nothing that is known",
        }
    }
}

const RAID: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_by_their_first_bytes() {
        let with = |places: &[(usize, &[u8])]| {
            let mut head = vec![0; HEAD_BYTES];
            for (at, bytes) in places {
                head[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            head
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_cksum();
        for (name, head, want) in [
            ("nothing", vec![], Sight::Tar),
            ("a short text", b"hello".to_vec(), Sight::Tar),
            ("a tar", header.as_bytes().to_vec(), Sight::Tar),
            ("a tar of a disk", with(&[(0, header.as_bytes()), (512, b"EFI PART")]), Sight::Tar),
            ("an empty tar", vec![0; 10240], Sight::Tar),
            ("an empty disk", with(&[]), Sight::Blank),
            ("noise", with(&[(0, b"noise")]), Sight::Unknown),
            ("a GPT", with(&[(510, &[0x55, 0xaa]), (512, b"EFI PART")]), Sight::Disk),
            ("a GPT with large sectors", with(&[(510, &[0x55, 0xaa]), (4096, b"EFI PART")]), Sight::Disk),
            ("an MBR", with(&[(510, &[0x55, 0xaa])]), Sight::Disk),
            ("ext4 without a table", with(&[(MAGIC_AT, &MAGIC)]), Sight::Disk),
            ("ext4 with a boot sector", with(&[(0, &[0xeb]), (510, &[0x55, 0xaa]), (MAGIC_AT, &MAGIC)]), Sight::Disk),
            ("FAT", with(&[(510, &[0x55, 0xaa]), (82, b"FAT32")]), Sight::Unreadable("vfat")),
            ("xfs", with(&[(0, b"XFSB")]), Sight::Unreadable("xfs")),
            ("btrfs", with(&[(0x1_0040, b"_BHRfS_M")]), Sight::Unreadable("btrfs")),
            ("LUKS", with(&[(0, b"LUKS\xba\xbe")]), Sight::Unreadable("LUKS")),
            ("LVM", with(&[(512, b"LABELONE")]), Sight::Unreadable("LVM")),
            ("qcow2", b"QFI\xfb\0\0\0\x03".to_vec(), Sight::Wrapped("qcow2")),
            ("vmdk", b"KDMV".to_vec(), Sight::Wrapped("vmdk")),
            ("vhdx", b"vhdxfile".to_vec(), Sight::Wrapped("vhdx")),
            ("vhd", b"conectix".to_vec(), Sight::Wrapped("vpc")),
            ("vdi", with(&[(0, b"<<<"), (0x40, &[0x7f, 0x10, 0xda, 0xbe])]), Sight::Wrapped("vdi")),
        ] {
            assert_eq!(sight(&head), want, "{name}");
        }
    }
}
