//! fstab(5): what is mounted where.

use std::path::{Path, PathBuf};

use drophammer_protocol::archive::inside;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// As the file says it.
    pub(super) source: String,
    pub(super) device: Device,
    /// Without the leading slash; the root is empty.
    pub(super) place: PathBuf,
    /// Such as `ext4`.
    pub(super) kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Label(String),
    Uuid(String),
    PartitionLabel(String),
    PartitionUuid(String),
    /// Of the first disk.
    Number(u32),
    Other,
}

/// Whatever has a place in the tree.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mount = |line: &str| {
        let mut fields = line.split_whitespace();
        let (source, place, kind) = (unescaped(fields.next()?), unescaped(fields.next()?), fields.next()?.to_owned());
        let place = inside(Path::new(&place)).ok().filter(|_| place.starts_with('/'))?;
        Some(Mount { device: device(&source), source, place, kind })
    };
    lines.filter_map(mount).collect()
}

fn device(source: &str) -> Device {
    let small = |text: &str| text.to_ascii_lowercase();
    if let Some((key, value)) = source.split_once('=') {
        let value = value.trim_matches('"');
        return match key {
            "LABEL" => Device::Label(value.to_owned()),
            "UUID" => Device::Uuid(small(value)),
            "PARTLABEL" => Device::PartitionLabel(value.to_owned()),
            "PARTUUID" => Device::PartitionUuid(small(value)),
            _ => Device::Other,
        };
    }
    let Some(path) = source.strip_prefix("/dev/") else { return Device::Other };
    if let Some((by, value)) = path.strip_prefix("disk/by-").and_then(|path| path.split_once('/')) {
        return match by {
            "label" => Device::Label(value.to_owned()),
            "uuid" => Device::Uuid(small(value)),
            "partlabel" => Device::PartitionLabel(value.to_owned()),
            "partuuid" => Device::PartitionUuid(small(value)),
            _ => Device::Other,
        };
    }
    // Where it was made it was the first disk, or what it has isn't on this one.
    const FIRST_DISKS: [&str; 6] = ["sda", "vda", "xvda", "hda", "nvme0n1p", "mmcblk0p"];
    let number = FIRST_DISKS.iter().find_map(|disk| path.strip_prefix(disk)?.parse().ok());
    number.map_or(Device::Other, Device::Number)
}

/// Blanks are written as `\040`, and so on.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match digits {
            Some(byte) if byte.is_ascii() => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            _ => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_people_and_installers_write_them() {
        use Device::*;
        for (line, want) in [
            (
                "LABEL=cloudimg-rootfs\t/\text4\tdiscard,errors=remount-ro 0 1",
                Some((Label("cloudimg-rootfs".into()), "")),
            ),
            ("LABEL=\"my root\"  / ext4", None),
            ("LABEL=my\\040root / ext4", Some((Label("my root".into()), ""))),
            ("LABEL=\"BOOT\" /boot ext4 defaults 0 2", Some((Label("BOOT".into()), "boot"))),
            ("UUID=0A-Bc /boot/ ext4", Some((Uuid("0a-bc".into()), "boot"))),
            ("PARTUUID=ABC /var/log ext4", Some((PartitionUuid("abc".into()), "var/log"))),
            ("PARTLABEL=Data /srv ext4", Some((PartitionLabel("Data".into()), "srv"))),
            ("/dev/vda16 /boot ext4", Some((Number(16), "boot"))),
            ("/dev/nvme0n1p2 /boot ext4", Some((Number(2), "boot"))),
            ("/dev/sdb1 /srv ext4", Some((Other, "srv"))),
            ("/dev/sda /srv ext4", Some((Other, "srv"))),
            ("/dev/disk/by-uuid/AB /srv ext4", Some((Uuid("ab".into()), "srv"))),
            ("/dev/mapper/vg-root / ext4", Some((Other, ""))),
            ("tmpfs /tmp tmpfs", Some((Other, "tmp"))),
            ("# LABEL=x / ext4", None),
            ("  # LABEL=x / ext4", None),
            ("UUID=1 none swap sw 0 0", None),
            ("UUID=1 /a/../.. ext4", None),
            ("UUID=1 /a", None),
            ("", None),
        ] {
            let got = parse(line).pop().map(|mount| (mount.device, mount.place));
            assert_eq!(got, want.map(|(device, place)| (device, PathBuf::from(place))), "{line:?}");
        }
        assert_eq!(unescaped("a\\134b\\x\\9"), "a\\b\\x\\9");
    }
}
