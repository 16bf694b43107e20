//! What the installed system mounts, and what it has to know to find it.

use std::path::Path;

use drophammer_protocol::layout::{Filesystem, Format, mounting_order};
use drophammer_protocol::order::DiskKey;

use super::super::kept::Kept;
use super::super::layout::{Encrypted, Plan};
use super::super::root::Root;
use crate::volumes::md;

pub(super) fn configure(root: &Root, plan: &Plan, kept: &Kept, key: Option<&DiskKey>) -> anyhow::Result<()> {
    let fstab = root.text("/etc/fstab")?.unwrap_or_default();
    root.put_text("/etc/fstab", 0o644, &fstab_text(&fstab, plan, kept))?;
    if plan.esp_uuid().is_some() {
        root.make_directory("/boot/efi", 0o700)?;
    }
    for place in kept.filesystems.iter().filter_map(|(_, filesystem)| filesystem.mount.as_deref()) {
        root.directories(Path::new(place.trim_start_matches('/')))?;
    }
    if !plan.arrays.is_empty() || !kept.arrays.is_empty() {
        needs(root, &["/usr/sbin/mdadm", "/sbin/mdadm"], "arrays", "mdadm")?;
        let path = if root.exists("/etc/mdadm")? { "/etc/mdadm/mdadm.conf" } else { "/etc/mdadm.conf" };
        let existing = root.text(path)?.unwrap_or_default();
        root.put_text(path, 0o644, &mdadm_conf(&existing, plan, kept))?;
    }
    if !plan.groups.is_empty() || kept.has_groups {
        needs(root, &["/usr/sbin/lvm", "/sbin/lvm"], "volume groups", "lvm2")?;
    }
    let others = kept.encrypted.iter().map(|(_, volume)| &volume.name);
    let encrypted: Vec<&String> = plan.encrypted.iter().map(|volume| &volume.name).chain(others).collect();
    if let Some(key) = key.filter(|_| !encrypted.is_empty()) {
        needs(root, &["/usr/sbin/cryptsetup", "/sbin/cryptsetup"], "encrypted volumes", "cryptsetup")?;
        root.make_directory(KEYS, 0o700)?;
        for volume in encrypted {
            root.put(&key_path(volume), 0o400, &key.of_volume(volume)[..])?;
        }
        let existing = root.text("/etc/crypttab")?.unwrap_or_default();
        root.put_text("/etc/crypttab", 0o644, &crypttab(&existing, plan, kept))?;
    }
    Ok(())
}

/// crypttab(5): where systemd looks for keys by itself.
const KEYS: &str = "/etc/cryptsetup-keys.d";

fn key_path(volume: &str) -> String {
    format!("{KEYS}/{volume}.key")
}

/// What was there of other machines' volumes goes.
fn crypttab(existing: &str, plan: &Plan, kept: &Kept) -> String {
    let mut lines: Vec<String> = existing.lines().filter(|line| line.starts_with('#')).map(str::to_owned).collect();
    let one = |name: &str, source: &str| format!("{name} {source} {} luks", key_path(name));
    let made = |volume: &Encrypted| one(&volume.name, &format!("UUID={}", volume.new.uuid));
    lines.extend(plan.encrypted.iter().map(made));
    lines.extend(kept.encrypted.iter().map(|(source, volume)| one(&volume.name, source)));
    lines.join("\n") + "\n"
}

fn needs(root: &Root, programs: &[&str], what: &str, package: &str) -> anyhow::Result<()> {
    for program in programs {
        if root.exists(program)? {
            return Ok(());
        }
    }
    anyhow::bail!("the layout has {what}, and the image has no {package} to find them with: put it into the image")
}

/// Keeps what the image mounts from nowhere (tmpfs and the like); the devices of the machine it was built on aren't here.
fn fstab_text(existing: &str, plan: &Plan, kept: &Kept) -> String {
    let mut text = String::from("# <file system> <mount point> <type> <options> <dump> <pass>\n");
    let mut all: Vec<(String, &Filesystem)> =
        plan.made.iter().map(|made| (format!("UUID={}", made.format.uuid()), &made.wanted)).collect();
    all.extend(kept.filesystems.iter().map(|(source, filesystem)| (source.clone(), filesystem)));
    all.extend(plan.tmpfs.iter().map(|tmpfs| ("tmpfs".to_owned(), tmpfs)));
    all.sort_by_key(|(_, filesystem)| (filesystem.mount.is_none(), filesystem.mount.as_deref().map(mounting_order)));
    let mut places = vec!["/boot/efi"];
    for (source, filesystem) in &all {
        let (place, options) = match (&filesystem.mount, filesystem.format) {
            (Some(place), _) => (place.as_str(), "defaults"),
            (None, Format::Swap) => ("none", "sw"),
            // Only made.
            (None, _) => continue,
        };
        let pass = match (place, filesystem.format) {
            ("/", Format::Ext3 | Format::Ext4) => 1,
            (_, Format::Ext3 | Format::Ext4 | Format::Vfat) => 2,
            // xfs repairs itself when it's mounted.
            (_, Format::Xfs | Format::Tmpfs | Format::Swap) => 0,
        };
        let options = if filesystem.options.is_empty() { options.to_owned() } else { filesystem.options.join(",") };
        text.push_str(&format!("{source} {place} {} {options} 0 {pass}\n", filesystem.format.name()));
        places.extend(filesystem.mount.as_deref());
    }
    if let Some(uuid) = plan.esp_uuid() {
        // nofail: a damaged boot partition is no reason for a server to stop in its emergency shell.
        text.push_str(&format!("UUID={uuid} /boot/efi vfat umask=0077,nofail 0 2\n"));
    }
    for line in existing.lines() {
        let mut fields = line.split_whitespace();
        let (Some(source), Some(place)) = (fields.next(), fields.next()) else { continue };
        let comment = source.starts_with('#');
        let device = source.starts_with('/') || source.contains('=');
        if !comment && !device && !places.contains(&place) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// mdadm.conf(5): what was there of other machines' arrays goes.
fn mdadm_conf(existing: &str, plan: &Plan, kept: &Kept) -> String {
    let others = existing.lines().filter(|line| !line.trim_start().to_ascii_lowercase().starts_with("array"));
    let mut lines: Vec<String> = others.map(str::to_owned).collect();
    let made = plan.arrays.iter().map(|(name, array)| (name, array.metadata.minor(), array.uuid, &array.name));
    let there = kept.arrays.iter().map(|(name, array)| (name, array.minor_version, array.uuid, &array.name));
    for (name, minor, uuid, whole_name) in made.chain(there) {
        lines.push(format!("ARRAY /dev/md/{name} metadata=1.{minor} UUID={} name={whole_name}", md::written(uuid)));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::inventory::FirmwareKind;

    use super::super::super::layout::ordinary;
    use super::*;

    #[test]
    fn arrays_of_other_machines_are_dropped() {
        let existing = "HOMEHOST <system>\nMAILADDR root\nARRAY /dev/md/0 UUID=1:2:3:4\n";
        let plan = super::super::super::layout::tests::mirrored_plan(FirmwareKind::Bios);
        let uuid = md::written(plan.arrays[0].1.uuid);
        let name = &plan.arrays[0].1.name;
        let want = format!("ARRAY /dev/md/root metadata=1.0 UUID={uuid} name={name}");
        assert_eq!(
            mdadm_conf(existing, &plan, &Kept::default()).lines().collect::<Vec<_>>(),
            ["HOMEHOST <system>", "MAILADDR root", &want]
        );
    }

    #[test]
    fn what_was_kept_is_found_by_what_does_not_change() {
        let plan = ordinary(1 << 30, 512, FirmwareKind::Uefi).expect("fits");
        let filesystem = |format, mount: Option<&str>, options: &[&str]| Filesystem {
            on: Some("data/own".into()),
            format,
            mount: mount.map(str::to_owned),
            label: None,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            create_options: vec![],
        };
        let array = md::Existing {
            uuid: uuid::Uuid::from_u128(1),
            name: "any:r".into(),
            level: 1,
            minor_version: 2,
            raid_disks: 2,
            members: vec![],
            stale: vec![],
        };
        let encrypted = drophammer_protocol::layout::Encrypted { name: "safe".into(), on: "vg/safe".into() };
        let kept = Kept {
            arrays: vec![("r".into(), array)],
            encrypted: vec![("/dev/mapper/vg-safe".into(), encrypted)],
            filesystems: vec![
                ("PARTUUID=1-2".into(), filesystem(Format::Xfs, Some("/srv"), &["noauto"])),
                ("/dev/mapper/safe".into(), filesystem(Format::Swap, None, &[])),
            ],
            ..Kept::default()
        };
        let fstab = fstab_text("", &plan, &kept);
        for line in ["PARTUUID=1-2 /srv xfs noauto 0 0", "/dev/mapper/safe none swap sw 0 0"] {
            assert!(fstab.lines().any(|found| found == line), "{line}: {fstab}");
        }
        let key = "/etc/cryptsetup-keys.d/safe.key";
        assert_eq!(crypttab("", &plan, &kept), format!("safe /dev/mapper/vg-safe {key} luks\n"));
        let array = "ARRAY /dev/md/r metadata=1.2 UUID=00000000:00000000:00000000:00000001 name=any:r\n";
        assert_eq!(mdadm_conf("", &plan, &kept), array);
    }

    #[test]
    fn mounts_of_other_machines_are_dropped() {
        let plan = ordinary(1 << 30, 512, FirmwareKind::Uefi).expect("fits");
        let existing = "# UNCONFIGURED FSTAB FOR BASE SYSTEM\n/dev/sda1 / ext4 defaults 0 1\nUUID=1-2 /srv ext4 defaults 0 2\n\
                        tmpfs /tmp tmpfs mode=1777 0 0\nproc /proc proc defaults 0 0\nLABEL=x none swap sw 0 0\n\n";
        let text = fstab_text(existing, &plan, &Kept::default());
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                format!("UUID={} / ext4 errors=remount-ro 0 1", plan.root().format.uuid()).as_str(),
                format!("UUID={} /boot/efi vfat umask=0077,nofail 0 2", plan.esp_uuid().expect("one")).as_str(),
                "tmpfs /tmp tmpfs mode=1777 0 0",
                "proc /proc proc defaults 0 0",
            ]
        );
    }
}
