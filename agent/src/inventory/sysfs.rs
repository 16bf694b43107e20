//! Reading attribute files of a sysfs or procfs tree. A file that isn't there says nothing, and that's an answer.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// The longest attribute we read: cpuinfo of a machine with a thousand threads has about 1.5 MiB.
const MAX_BYTES: u64 = 8 << 20;

pub(crate) fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The file's text without blanks at either end; `None` if nothing is left.
pub(crate) fn text(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&bytes(path)?).replace('\0', " ");
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

pub(crate) fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// The node of a block device. What the kernel calls `cciss!c0d0` is `cciss/c0d0` there.
pub(crate) fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// Numbers that sysfs writes as `0x8086`.
pub(crate) fn hex(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.trim_start_matches("0x"), 16).ok()
}

/// Whether a flag file says 1.
pub(crate) fn flag(path: &Path) -> bool {
    number::<u32>(path) == Some(1)
}

/// The last component of where a symbolic link leads: the name of a driver, a bus, a device.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// Names in a directory, sorted so that `nvme2` comes before `nvme10`.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_by_key(|name| natural(name));
    names
}

/// The device directory behind a link such as `/sys/class/net/eth0/device`, as components: buses, bridges and ports that
/// lead to it.
pub(crate) fn device_path(link: &Path) -> Vec<String> {
    let Ok(path) = fs::canonicalize(link) else { return Vec::new() };
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect()
}

/// The PCI function that a device hangs on: the last one on its path.
pub(crate) fn pci_address(device: &[String]) -> Option<String> {
    device.iter().rev().find(|name| is_pci_address(name)).cloned()
}

/// `0000:00:1f.2`; domains behind VMD have more digits.
fn is_pci_address(name: &str) -> bool {
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let mut parts = name.split([':', '.']);
    let four = [parts.next(), parts.next(), parts.next(), parts.next()];
    parts.next().is_none()
        && four.iter().all(|part| part.is_some_and(hex))
        && name.matches(':').count() == 2
        && name.contains('.')
}

fn natural(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(letters);
        let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (number, after) = tail.split_at(digits);
        key.push((head.to_owned(), number.parse().unwrap_or(0)));
        rest = after;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses() {
        for (name, is) in [
            ("0000:00:1f.2", true),
            ("10000:e1:00.0", true),
            ("pci0000:00", false),
            ("0000:00:1f", false),
            ("virtio0", false),
            ("2:0:0:0", false),
            ("", false),
        ] {
            assert_eq!(is_pci_address(name), is, "{name}");
        }
    }

    #[test]
    fn ten_comes_after_two() {
        let mut names = ["nvme10n1", "nvme2n1", "sda", "nvme2n2", "eth"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["eth", "nvme2n1", "nvme2n2", "nvme10n1", "sda"]);
    }
}
