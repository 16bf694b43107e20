//! How much of a disk an install takes: the server refuses hopeless orders by it, the agent lays out with it.

pub const MIB: u64 = 1 << 20;

/// GRUB's core image has a place of its own: on a GPT disk there is no gap behind the MBR.
pub const BIOS_BYTES: u64 = MIB;

/// FAT32 has at least 65525 clusters, and a cluster is at least one block: 33 MiB with blocks of 512 bytes, 256 MiB
/// with 4096. Firmware reads FAT16 on an ESP as well, but the specification promises only FAT32.
pub fn esp_bytes(disk_bytes: u64, logical_block: u32) -> u64 {
    match logical_block {
        4096 => 320 * MIB,
        _ if disk_bytes < 8 << 30 => 64 * MIB,
        _ => 256 * MIB,
    }
}

/// What a file system needs for files of so many bytes: ext4's inode tables take 1.6 %, its reserve 1 %, rounding of small
/// files the most; the journal takes up to 64 MiB on the disks where this bound matters.
pub fn root_bytes(installed_bytes: u64) -> u64 {
    installed_bytes.saturating_add(installed_bytes / 8).saturating_add(96 * MIB)
}
