//! What exactly is to be installed: an allocation, an image and an inventory in, a plan or a sentence out.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use drophammer_protocol::inventory::{Disk, DiskId, Inventory};
use drophammer_protocol::machine::Allocation;
use drophammer_protocol::space::needed_bytes;
use serde::{Deserialize, Serialize};

use crate::images::Image;

/// All decisions of an install order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) disk: DiskId,
    /// `name/version`.
    pub(crate) image: String,
    pub(crate) manifest_sha256: String,
    pub(crate) hostname: String,
    pub(crate) ssh_keys: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("{0:?} is not a hostname: labels of letters, digits and hyphens, joined by dots (RFC 1123)")]
    Hostname(String),
    #[error("SSH key {number} is not a public key as ssh-keygen writes it (`ssh-ed25519 AAAA… comment`)")]
    SshKey { number: usize },
    #[error("{given} SSH keys are more than the {MAX_SSH_KEYS} that fit in an order")]
    TooManySshKeys { given: usize },
    #[error("the machine has no disk with serial {wanted:?} that can be installed on; it has {}", list(.have))]
    NoSuchDisk { wanted: String, have: Vec<DiskId> },
    #[error("{disk} is too small for {image}, which needs {needed} bytes with its file system and boot partitions")]
    TooSmall { disk: DiskId, image: String, needed: u64 },
    #[error("no disk is large enough for {image}, which needs {needed} bytes; the machine has {}", list(.have))]
    NoneFits { image: String, needed: u64, have: Vec<DiskId> },
}

const MAX_SSH_KEYS: usize = 100;

pub(crate) fn plan(allocation: &Allocation, image: &Image, inventory: &Inventory) -> Result<Plan, Unfit> {
    if !is_hostname(&allocation.hostname) {
        return Err(Unfit::Hostname(allocation.hostname.clone()));
    }
    if allocation.ssh_keys.len() > MAX_SSH_KEYS {
        return Err(Unfit::TooManySshKeys { given: allocation.ssh_keys.len() });
    }
    if let Some(index) = allocation.ssh_keys.iter().position(|key| !is_ssh_key(key)) {
        return Err(Unfit::SshKey { number: index + 1 });
    }
    Ok(Plan {
        disk: choose_disk(allocation.disk.as_deref(), image, inventory)?,
        image: image.reference(),
        manifest_sha256: image.manifest_sha256.clone(),
        hostname: allocation.hostname.clone(),
        ssh_keys: allocation.ssh_keys.iter().map(|key| key.trim().to_owned()).collect(),
    })
}

/// The named drive, or the smallest that fits: large ones are for data.
fn choose_disk(serial: Option<&str>, image: &Image, inventory: &Inventory) -> Result<DiskId, Unfit> {
    // The agent has the last word; here is seen to it that hopeless orders are never written.
    let needed = |disk: &Disk| needed_bytes(image.summary.installed_bytes, disk.size_bytes, disk.logical_block);
    let usable = inventory.disks.iter().filter(|d| d.holds_data()).filter_map(|d| Some((d.id()?, needed(d))));
    let mut have: Vec<(DiskId, u64)> = usable.collect();
    have.sort_by(|(a, _), (b, _)| (a.size_bytes, &a.serial).cmp(&(b.size_bytes, &b.serial)));
    let all = || have.iter().map(|(id, _)| id.clone()).collect();
    match serial.map(str::trim) {
        Some(wanted) => match have.iter().find(|(id, _)| id.serial == wanted) {
            Some((disk, needed)) if disk.size_bytes >= *needed => Ok(disk.clone()),
            Some((disk, needed)) => {
                Err(Unfit::TooSmall { disk: disk.clone(), image: image.reference(), needed: *needed })
            }
            None => Err(Unfit::NoSuchDisk { wanted: wanted.to_owned(), have: all() }),
        },
        None => match have.iter().find(|(disk, needed)| disk.size_bytes >= *needed) {
            Some((disk, _)) => Ok(disk.clone()),
            None => {
                let needed = have.last().map_or(image.summary.installed_bytes, |(_, needed)| *needed);
                Err(Unfit::NoneFits { image: image.reference(), needed, have: all() })
            }
        },
    }
}

/// RFC 1123 §2.1.
fn is_hostname(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    // Linux takes no more than 64 (HOST_NAME_MAX).
    name.len() <= 64 && name.split('.').all(label)
}

/// One line `type base64 [comment]` whose blob begins with the same type (RFC 4253 §6.6), and that can't smuggle
/// another line or options into `authorized_keys`.
fn is_ssh_key(line: &str) -> bool {
    const TYPES: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let line = line.trim();
    let mut words = line.split(' ');
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else { return false };
    let Ok(blob) = BASE64_STANDARD.decode(blob) else { return false };
    let Some((length, rest)) = blob.split_first_chunk::<4>() else { return false };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    line.len() <= 16 << 10
        && !line.contains(char::is_control)
        && TYPES.contains(&kind)
        && rest.get(..length) == Some(kind.as_bytes())
        && rest.len() > length
}

fn list(disks: &[DiskId]) -> String {
    if disks.is_empty() {
        return "none".into();
    }
    disks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::api::ImageSummary;
    use drophammer_protocol::fixtures::{disk, inventory};
    use drophammer_protocol::inventory::Bus;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn image(installed_bytes: u64) -> Image {
        let key = drophammer_protocol::sign::PublicKey::of(&ed25519_dalek::SigningKey::from_bytes(&[1; 32]));
        let summary = ImageSummary {
            name: "debian".into(),
            version: "12".into(),
            description: String::new(),
            created: 0,
            expires: None,
            download_bytes: 0,
            installed_bytes,
            signed_by: key,
        };
        Image { summary, manifest_sha256: "00".into() }
    }

    fn allocation() -> Allocation {
        Allocation { image: "debian".into(), hostname: "web-1".into(), ssh_keys: vec![], disk: None, project: None }
    }

    #[test]
    fn the_smallest_disk_that_fits() {
        let usb = Disk { bus: Bus::Usb, ..disk("usb", 8 * GIB) };
        let nameless = Disk { serial: None, ..disk("", 8 * GIB) };
        let two = || vec![disk("big", 100 * GIB), disk("small", 10 * GIB)];
        let id = |serial: &str, size_bytes| DiskId::new(serial, size_bytes);
        let needed = |installed: u64| needed_bytes(installed, 10 * GIB, 512);
        for (name, wanted, installed, disks, want) in [
            ("smallest", None, GIB, two(), Ok("small")),
            ("small one too small", None, 20 * GIB, two(), Ok("big")),
            ("a small disk has a small ESP", None, GIB / 2, vec![disk("tiny", 800 << 20)], Ok("tiny")),
            ("named", Some("big"), GIB, two(), Ok("big")),
            ("named with spaces, as labels have them", Some(" big "), GIB, two(), Ok("big")),
            (
                "named but too small",
                Some("small"),
                20 * GIB,
                two(),
                Err(Unfit::TooSmall {
                    disk: id("small", 10 * GIB),
                    image: "debian/12".into(),
                    needed: needed(20 * GIB),
                }),
            ),
            (
                "named but not there",
                Some("other"),
                GIB,
                vec![disk("small", 10 * GIB)],
                Err(Unfit::NoSuchDisk { wanted: "other".into(), have: vec![id("small", 10 * GIB)] }),
            ),
            (
                "removable and nameless ones don't count",
                None,
                GIB,
                vec![usb, nameless],
                Err(Unfit::NoneFits { image: "debian/12".into(), needed: GIB, have: vec![] }),
            ),
        ] {
            let allocation = Allocation { disk: wanted.map(Into::into), ..allocation() };
            let got = plan(&allocation, &image(installed), &inventory(disks)).map(|p| p.disk.serial);
            assert_eq!(got, want.map(String::from), "{name}");
        }
    }

    #[test]
    fn hostnames_by_rfc_1123() {
        for (name, valid) in [
            ("web-1", true),
            ("3com", true),
            ("a.b.example", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("a..b", false),
            ("a_b", false),
            ("a b", false),
            ("ä", false),
            ("a\nb", false),
            (&"a".repeat(63), true),
            (&"a".repeat(64), false),
            (&format!("{}.{}", "a".repeat(40), "b".repeat(40)), false),
        ] {
            assert_eq!(is_hostname(name), valid, "{name:?}");
        }
    }

    #[test]
    fn ssh_keys_look_like_keys() {
        const GOOD: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFzqkcqBdRpHnJkZ4s2Qf0Q0J1m8Xc0Yw5mS7m2JvH3b";
        for (name, key, valid) in [
            ("with a comment", format!("{GOOD} me@desk"), true),
            ("without", GOOD.into(), true),
            ("with a line end", format!("{GOOD}\n"), true),
            ("two lines", format!("{GOOD}\n{GOOD}"), false),
            ("options before it", format!("command=\"sh\" {GOOD}"), false),
            ("type and blob differ", GOOD.replacen("ssh-ed25519", "ssh-rsa", 1), false),
            ("a private key", "-----BEGIN OPENSSH PRIVATE KEY-----".into(), false),
            ("no base64", "ssh-ed25519 ???".into(), false),
            ("a blob of nothing", "ssh-ed25519 AAAA".into(), false),
            ("empty", String::new(), false),
        ] {
            assert_eq!(is_ssh_key(&key), valid, "{name}");
        }
    }
}
