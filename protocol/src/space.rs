//! How much of a disk an install takes: the server refuses hopeless orders by it, the agent lays out with it.

pub const MIB: u64 = 1 << 20;

/// The primary table's MiB and the backup's, and what aligning the root's end to a whole MiB may cost.
const TABLES_BYTES: u64 = 3 * MIB;

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

/// ext4's inode tables take 1.6 %, its reserve 1 %, rounding of small files the most; the journal takes up to 64 MiB
/// on the disks where this bound matters.
fn root_bytes(installed_bytes: u64) -> u64 {
    installed_bytes.saturating_add(installed_bytes / 8).saturating_add(96 * MIB)
}

/// The smallest size that a disk of this kind must have for an image whose files take `installed_bytes`.
pub fn needed_bytes(installed_bytes: u64, disk_bytes: u64, logical_block: u32) -> u64 {
    root_bytes(installed_bytes).saturating_add(TABLES_BYTES + BIOS_BYTES + esp_bytes(disk_bytes, logical_block))
}
