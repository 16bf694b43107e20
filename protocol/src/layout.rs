//! How the drives of an installed system are divided: partitions, arrays, volume groups and file systems.
//!
//! Plain data that operators write (as TOML or JSON), after metal-stack's `FilesystemLayout`. Drives are asked for by what
//! they are, never by what the kernel happens to call them. Names join the parts: `first/root` is the partition `root` of
//! the drive `first`, `vg0/data` the volume `data` of the group `vg0`, and an array goes by its own name.
//!
//! From description to disk, each step a function of what the step before it gave:
//!
//! | step | what | who |
//! |---|---|---|
//! | [`Layout::check`] | is it sound by itself | whoever reads it |
//! | [`Layout::choose`] | which drive is which | the server, from the inventory; the order names them by serial and size |
//! | [`Layout::start`] | can this firmware start it | the server, and the agent again |
//! | [`place`] | where each partition lies | the server, so that hopeless orders are never written; the agent, from the drive itself |
//!
//! What arrays and volume groups take for themselves is the agent's to know: it plans all of it before it touches anything.

mod amount;
mod choose;
mod place;
mod start;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::amount::Amount;
pub use self::choose::{Needs, Unmatched};
pub use self::place::{Extent, Misplaced, place};
pub use self::start::Start;
use crate::faults::{Faults, Findings, shown};
use crate::inventory::Bus;
use crate::manifest::is_plain_name;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Layout {
    #[serde(rename = "drive")]
    pub drives: Vec<Drive>,
    #[serde(rename = "raid", default, skip_serializing_if = "Vec::is_empty")]
    pub raids: Vec<Raid>,
    #[serde(rename = "volume_group", default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<VolumeGroup>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encrypted: Vec<Encrypted>,
    #[serde(rename = "filesystem")]
    pub filesystems: Vec<Filesystem>,
}

/// One of the machine's drives. All of it is the layout's: what was on it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Drive {
    pub name: String,
    #[serde(default, skip_serializing_if = "Select::is_any")]
    pub select: Select,
    /// A reinstall for the same tenant leaves it as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// In their order on the drive; the first is number 1. One that is kept may have none: it's left to the tenant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<Partition>,
}

/// Which drive it may be: one of which all that is said here is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// A pattern, as in `SAMSUNG*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<Bus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_size: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Amount>,
    /// Of several: large ones are for data.
    #[serde(skip_serializing_if = "Preference::is_default")]
    pub prefer: Preference,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    #[default]
    Smallest,
    Largest,
}

impl Preference {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Select {
    fn is_any(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Partition {
    pub name: String,
    /// Of what every partition of the drive has together. Without one: what its kind needs, or the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Amount>,
    #[serde(default, skip_serializing_if = "Kind::is_default")]
    pub kind: Kind,
}

/// Who reads a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A BIOS: GRUB's core image lies there.
    Bios,
    /// UEFI firmware. All that a machine has hold the same; the first is mounted at `/boot/efi`.
    Esp,
    #[default]
    Linux,
}

impl Kind {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Raid {
    pub name: String,
    /// 0 or 1.
    pub level: u8,
    /// Partitions.
    pub devices: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spares: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeGroup {
    pub name: String,
    /// Partitions and arrays.
    pub devices: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    pub volumes: Vec<Volume>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Volume {
    pub name: String,
    pub size: Amount,
    #[serde(default, skip_serializing_if = "Spread::is_default")]
    pub spread: Spread,
}

/// How a volume uses the devices of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    #[default]
    Linear,
    Striped,
    Raid1,
}

impl Spread {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A LUKS2 volume whose key the server gives for this install. The installed system has it in a file of its root, so what
/// holds the root can't be encrypted; without the root nobody reads what is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Encrypted {
    pub name: String,
    /// A partition, an array or a volume.
    pub on: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Filesystem {
    /// A partition, an array, a volume or an encrypted one; nothing for a tmpfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    pub format: Format,
    /// Where it's mounted; nothing for swap, or for one that is only made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// For fstab.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// For the program that makes it, as metal-stack's layouts have them: `-m 1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create_options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Ext3,
    Ext4,
    Xfs,
    Vfat,
    Swap,
    Tmpfs,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Vfat => "vfat",
            Self::Swap => "swap",
            Self::Tmpfs => "tmpfs",
        }
    }
}

/// What a name in a layout stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device<'a> {
    Partition {
        drive: &'a Drive,
        /// From 1.
        number: u32,
        partition: &'a Partition,
    },
    Raid(&'a Raid),
    Volume {
        group: &'a VolumeGroup,
        volume: &'a Volume,
    },
    Encrypted(&'a Encrypted),
}

impl fmt::Display for Device<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition { drive, partition, .. } => write!(f, "{}/{}", drive.name, partition.name),
            Self::Raid(raid) => f.write_str(&raid.name),
            Self::Encrypted(encrypted) => f.write_str(&encrypted.name),
            Self::Volume { group, volume } => write!(f, "{}/{}", group.name, volume.name),
        }
    }
}

/// The name of the only drive of [`Layout::single`].
pub const SYSTEM: &str = "system";

impl Layout {
    /// What machines get if nobody says otherwise: everything on one drive, the given one or the smallest that fits, which
    /// every firmware can start.
    pub fn single(serial: Option<&str>) -> Self {
        let partition = |name: &str, kind| Partition { name: name.into(), size: None, kind };
        let root = Filesystem {
            on: Some(format!("{SYSTEM}/root")),
            format: Format::Ext4,
            mount: Some("/".into()),
            label: Some("root".into()),
            options: vec!["errors=remount-ro".into()],
            create_options: Vec::new(),
        };
        Self {
            drives: vec![Drive {
                name: SYSTEM.into(),
                keep: false,
                select: Select { serial: serial.map(|serial| serial.trim().to_owned()), ..Select::default() },
                partitions: vec![
                    partition("bios", Kind::Bios),
                    partition("esp", Kind::Esp),
                    partition("root", Kind::Linux),
                ],
            }],
            filesystems: vec![root],
            ..Self::default()
        }
    }

    /// What has this name, if anything has.
    pub fn device(&self, name: &str) -> Option<Device<'_>> {
        let Some((of, part)) = name.split_once('/') else {
            let raid = self.raids.iter().find(|raid| raid.name == name).map(Device::Raid);
            return raid.or_else(|| self.encrypted.iter().find(|e| e.name == name).map(Device::Encrypted));
        };
        if let Some(drive) = self.drives.iter().find(|drive| drive.name == of) {
            let found = (1..).zip(&drive.partitions).find(|(_, partition)| partition.name == part);
            return found.map(|(number, partition)| Device::Partition { drive, number, partition });
        }
        let group = self.groups.iter().find(|group| group.name == of)?;
        let volume = group.volumes.iter().find(|volume| volume.name == part)?;
        Some(Device::Volume { group, volume })
    }

    /// Names of the drives that a device lies on. Also of a layout that nobody has checked, where things may lie on themselves:
    /// each step leads to what lies lower, or nowhere.
    pub fn drives_under<'a>(&'a self, device: &'a str) -> BTreeSet<&'a str> {
        match self.device(device) {
            Some(Device::Encrypted(encrypted)) => match self.device(&encrypted.on) {
                Some(Device::Encrypted(_)) => BTreeSet::new(),
                _ => self.drives_under(&encrypted.on),
            },
            Some(Device::Volume { group, .. }) => {
                group.devices.iter().flat_map(|name| self.drives_of_raid_or_partition(name)).collect()
            }
            Some(Device::Raid(_) | Device::Partition { .. }) => self.drives_of_raid_or_partition(device),
            None => BTreeSet::new(),
        }
    }

    fn drives_of_raid_or_partition<'a>(&'a self, device: &'a str) -> BTreeSet<&'a str> {
        let drive = |name: &'a str| match self.device(name) {
            Some(Device::Partition { drive, .. }) => Some(drive.name.as_str()),
            _ => None,
        };
        match self.device(device) {
            Some(Device::Raid(raid)) => {
                raid.devices.iter().chain(&raid.spares).filter_map(|name| drive(name)).collect()
            }
            _ => drive(device).into_iter().collect(),
        }
    }

    /// Whether a device lies on drives that are kept, all of it.
    pub fn keeps(&self, device: &str) -> bool {
        let under = self.drives_under(device);
        let kept = |name: &&str| self.drives.iter().any(|drive| drive.name == *name && drive.keep);
        !under.is_empty() && under.iter().all(kept)
    }

    /// Two layouts: of what is made, and of what lies on the drives in `kept`.
    pub fn apart(&self, kept: &BTreeSet<&str>) -> (Self, Self) {
        let stays = |device: &String| {
            let under = self.drives_under(device);
            !under.is_empty() && under.is_subset(kept)
        };
        let (kept_drives, drives) = self.drives.iter().cloned().partition(|drive| kept.contains(drive.name.as_str()));
        let (kept_raids, raids) = self.raids.iter().cloned().partition(|raid| raid.devices.iter().all(stays));
        let (kept_groups, groups) = self.groups.iter().cloned().partition(|group| group.devices.iter().all(stays));
        let (kept_encrypted, encrypted) = self.encrypted.iter().cloned().partition(|encrypted| stays(&encrypted.on));
        let (kept_filesystems, filesystems) =
            self.filesystems.iter().cloned().partition(|filesystem| filesystem.on.as_ref().is_some_and(stays));
        let made = Self { drives, raids, groups, encrypted, filesystems };
        let kept = Self {
            drives: kept_drives,
            raids: kept_raids,
            groups: kept_groups,
            encrypted: kept_encrypted,
            filesystems: kept_filesystems,
        };
        (made, kept)
    }

    /// What is mounted there.
    pub fn mounted_at(&self, place: &str) -> Option<&Filesystem> {
        self.filesystems.iter().find(|filesystem| filesystem.mount.as_deref() == Some(place))
    }

    /// The file system that has the files with which the system starts.
    pub fn boot_filesystem(&self) -> Option<&Filesystem> {
        self.mounted_at("/boot").or_else(|| self.mounted_at("/"))
    }

    /// Everything in it means something, and nothing contradicts itself. What it asks of hardware only the machine knows.
    pub fn check(&self) -> Result<(), Faults> {
        let mut found = Findings::default();
        self.check_names(&mut found);
        for drive in &self.drives {
            drive.check(&mut found);
        }
        for raid in &self.raids {
            let at = format!("raid.{}", raid.name);
            found.unless(raid.level <= 1, &format!("{at}.level"), || {
                format!("RAID {} isn't made here; 0 and 1 are", raid.level)
            });
            found.unless(raid.devices.len() >= 2, &format!("{at}.devices"), || "an array has two or more".into());
            found.unless(raid.level == 1 || raid.spares.is_empty(), &format!("{at}.spares"), || {
                "a RAID 0 has no use for spares: make them devices of it".into()
            });
            for name in raid.devices.iter().chain(&raid.spares) {
                let partition = matches!(self.device(name), Some(Device::Partition { .. }));
                found.unless(partition, &format!("{at}.devices"), || {
                    format!("{} is no partition of a drive in this layout", shown(name))
                });
            }
        }
        for group in &self.groups {
            self.check_group(group, &mut found);
        }
        for encrypted in &self.encrypted {
            let inside = matches!(self.device(&encrypted.on), None | Some(Device::Encrypted(_)));
            found.unless(!inside, &format!("encrypted.{}", encrypted.name), || {
                format!("{} is no partition, array or volume of this layout", shown(&encrypted.on))
            });
        }
        for filesystem in &self.filesystems {
            self.check_filesystem(filesystem, &mut found);
        }
        self.check_uses(&mut found);
        self.check_mounts(&mut found);
        self.check_kept(&mut found);
        found.verdict()
    }

    fn check_names(&self, found: &mut Findings) {
        found.unless(!self.drives.is_empty(), "drive", || "a layout has at least one".into());
        found.at_most(MAX_PARTS, self.drives.len(), "drive");
        found.at_most(MAX_PARTS, self.raids.len(), "raid");
        found.at_most(MAX_PARTS, self.groups.len(), "volume_group");
        found.at_most(MAX_PARTS, self.encrypted.len(), "encrypted");
        found.at_most(MAX_PARTS, self.filesystems.len(), "filesystem");
        let drives = self.drives.iter().map(|drive| &drive.name);
        let raids = self.raids.iter().map(|raid| &raid.name);
        let groups = self.groups.iter().map(|group| &group.name);
        let encrypted = self.encrypted.iter().map(|encrypted| &encrypted.name);
        let parts = self.drives.iter().flat_map(|drive| drive.partitions.iter().map(|partition| &partition.name));
        let volumes = self.groups.iter().flat_map(|group| group.volumes.iter().map(|volume| &volume.name));
        let tops = drives.chain(raids).chain(groups).chain(encrypted);
        for name in tops.clone().chain(parts).chain(volumes) {
            // 36 characters are what a GPT has for the name of a partition, 32 what an array has.
            found.unless(is_plain_name(name) && name.len() <= MAX_NAME, "name", || {
                format!("{} can't be one: letters, digits and . - _ + only, {MAX_NAME} at most", shown(name))
            });
        }
        found.once(tops, "name", |name| shown(name));
        for drive in &self.drives {
            found.once(drive.partitions.iter().map(|p| &p.name), &format!("drive.{}", drive.name), |name| shown(name));
        }
        for group in &self.groups {
            let at = format!("volume_group.{}", group.name);
            found.once(group.volumes.iter().map(|volume| &volume.name), &at, |name| shown(name));
        }
    }

    fn check_group(&self, group: &VolumeGroup, found: &mut Findings) {
        let at = format!("volume_group.{}", group.name);
        found.unless(!group.devices.is_empty(), &format!("{at}.devices"), || "it has none".into());
        found.at_most(MAX_PARTS, group.volumes.len(), &at);
        for name in &group.devices {
            let fits = matches!(self.device(name), Some(Device::Partition { .. } | Device::Raid(_)));
            found.unless(fits, &format!("{at}.devices"), || {
                format!("{} is neither a partition nor an array of this layout", shown(name))
            });
        }
        let rests = group.volumes.iter().filter(|volume| volume.size == Amount::Rest).count();
        found.unless(rests <= 1, &at, || "only one volume can have the rest".into());
        for volume in &group.volumes {
            volume.size.check(&format!("{at}.{}.size", volume.name), found);
        }
    }

    fn check_filesystem(&self, filesystem: &Filesystem, found: &mut Findings) {
        let name = filesystem.mount.as_deref().or(filesystem.on.as_deref()).unwrap_or(filesystem.format.name());
        let at = format!("filesystem.{name}");
        match &filesystem.on {
            None => found.unless(filesystem.format == Format::Tmpfs, &at, || "it says not what it's on".into()),
            Some(on) => {
                found.unless(filesystem.format != Format::Tmpfs, &at, || "a tmpfs is on nothing".into());
                let device = self.device(on);
                found.unless(device.is_some(), &at, || {
                    format!("{} is no partition, array or volume of this layout", shown(on))
                });
                let early = matches!(filesystem.mount.as_deref(), Some("/" | "/boot"));
                found.unless(!early || !matches!(device, Some(Device::Encrypted(_))), &at, || {
                    "it can't be encrypted: the key to it would lie in it".into()
                });
                if let Some(Device::Partition { partition, .. }) = device {
                    found.unless(partition.kind == Kind::Linux, &at, || {
                        format!("{on} is for the firmware: what is on it is made without being asked for")
                    });
                }
            }
        }
        match (&filesystem.mount, filesystem.format) {
            (Some(_), Format::Swap) => found.unless(false, &at, || "swap isn't mounted anywhere".into()),
            (None, Format::Tmpfs) => found.unless(false, &at, || "it isn't mounted anywhere".into()),
            (Some(place), _) => found.unless(is_mount_point(place), &at, || {
                format!("{} is no place to mount at: an absolute path without spaces, . and ..", shown(place))
            }),
            (None, _) => {}
        }
        // `/boot/efi` is the first ESP's.
        let reserved = ["/boot/efi", "/proc", "/sys", "/dev", "/run", "/etc", "/usr"];
        found.unless(!filesystem.mount.as_deref().is_some_and(|place| reserved.contains(&place)), &at, || {
            "nothing can be mounted there: the system needs it before it mounts anything, or mounts it itself".into()
        });
        for option in &filesystem.options {
            let plain = !option.is_empty() && option.bytes().all(|b| b.is_ascii_graphic() && !b"#\"'\\".contains(&b));
            found.unless(plain, &at, || format!("{} can't be an option in fstab", shown(option)));
        }
        if let Some(label) = &filesystem.label {
            let plain = is_plain_name(label) && label.len() <= filesystem.format.longest_label();
            found.unless(plain, &at, || {
                let longest = filesystem.format.longest_label();
                format!("{} can't be its label: letters, digits and . - _ + only, {longest} at most", shown(label))
            });
        }
    }

    /// Nothing holds two things.
    fn check_uses(&self, found: &mut Findings) {
        let in_raids = self.raids.iter().flat_map(|raid| raid.devices.iter().chain(&raid.spares));
        let in_groups = self.groups.iter().flat_map(|group| &group.devices);
        let in_encrypted = self.encrypted.iter().map(|encrypted| &encrypted.on);
        let in_use =
            in_raids.chain(in_groups).chain(in_encrypted).chain(self.filesystems.iter().filter_map(|f| f.on.as_ref()));
        found.once(in_use.clone(), "use", |name| format!("what uses {}", shown(name)));
        for name in in_use {
            if let Some(Device::Partition { partition, .. }) = self.device(name) {
                found.unless(partition.kind == Kind::Linux, "use", || {
                    format!("{} is for the firmware, so nothing else can use it", shown(name))
                });
            }
        }
    }

    /// What is kept must make sense beside what is made anew.
    fn check_kept(&self, found: &mut Findings) {
        for drive in self.drives.iter().filter(|drive| drive.keep) {
            let firmware = drive.partitions.iter().find(|partition| partition.kind != Kind::Linux);
            found.unless(firmware.is_none(), &format!("drive.{}", drive.name), || {
                "it can't be kept: what the firmware starts from is made anew by every install".into()
            });
        }
        let raids =
            self.raids.iter().map(|raid| (format!("raid.{}", raid.name), raid.devices.iter().chain(&raid.spares)));
        let none: &[String] = &[];
        let groups =
            self.groups.iter().map(|group| (format!("volume_group.{}", group.name), group.devices.iter().chain(none)));
        for (at, mut devices) in raids.chain(groups) {
            let first = devices.next().is_some_and(|device| self.keeps(device));
            found.unless(devices.all(|device| self.keeps(device) == first), &at, || {
                "it lies on drives that are kept and on others: it can't be half there".into()
            });
        }
        for place in ["/", "/boot"] {
            let kept = self.mounted_at(place).and_then(|f| f.on.as_deref()).is_some_and(|on| self.keeps(on));
            found.unless(!kept, &format!("filesystem.{place}"), || {
                "it can't lie on a drive that is kept: it's what a reinstall replaces".into()
            });
        }
    }

    fn check_mounts(&self, found: &mut Findings) {
        let places = self.filesystems.iter().filter_map(|filesystem| filesystem.mount.as_ref());
        found.once(places, "filesystem", |place| format!("what is mounted at {place}"));
        match self.mounted_at("/") {
            None => found.unless(false, "filesystem", || "none is mounted at /".into()),
            Some(root) => {
                found.unless(matches!(root.format, Format::Ext3 | Format::Ext4 | Format::Xfs), "filesystem./", || {
                    format!("{} can't hold a root file system", root.format.name())
                })
            }
        }
        if let Some(boot) = self.mounted_at("/boot") {
            found.unless(matches!(boot.format, Format::Ext3 | Format::Ext4 | Format::Xfs), "filesystem./boot", || {
                format!("{} can't hold what images have there", boot.format.name())
            });
        }
    }
}

impl Drive {
    fn check(&self, found: &mut Findings) {
        let at = format!("drive.{}", self.name);
        found.unless(self.keep || !self.partitions.is_empty(), &at, || "it has no partitions".into());
        found.at_most(MAX_PARTITIONS, self.partitions.len(), &at);
        let rests = self.partitions.iter().filter(|p| p.wants_rest()).count();
        found.unless(rests <= 1, &at, || "only one of its partitions can have the rest".into());
        let percent: u32 = self.partitions.iter().filter_map(|p| p.size?.percent()).map(u32::from).sum();
        found.unless(percent <= 100, &at, || format!("its partitions are to have {percent} % of it"));
        for partition in &self.partitions {
            if let Some(size) = &partition.size {
                size.check(&format!("{at}.{}.size", partition.name), found);
            }
        }
        for kind in [Kind::Bios, Kind::Esp] {
            let number = self.partitions.iter().filter(|partition| partition.kind == kind).count();
            found.unless(number <= 1, &at, || "firmware reads one partition of a kind from each drive".into());
        }
        for (what, size) in [("min_size", self.select.min_size), ("max_size", self.select.max_size)] {
            found.unless(
                size.is_none_or(|size| matches!(size, Amount::Bytes(_))),
                &format!("{at}.select.{what}"),
                || "a drive has a size such as \"500 GiB\"".into(),
            );
        }
    }
}

impl Partition {
    /// Without a size, what isn't for the firmware has the rest.
    fn wants_rest(&self) -> bool {
        match self.size {
            Some(size) => size == Amount::Rest,
            None => self.kind == Kind::Linux,
        }
    }
}

impl Format {
    /// As the programs that make them know it.
    fn longest_label(self) -> usize {
        match self {
            Self::Ext3 | Self::Ext4 => 16,
            Self::Xfs => 12,
            Self::Vfat => 11,
            Self::Swap => 15,
            Self::Tmpfs => 0,
        }
    }
}

fn is_mount_point(place: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !matches!(part, "." | "..") && part.bytes().all(is_path_byte);
    place == "/" || place.strip_prefix('/').is_some_and(|rest| rest.len() < 1024 && rest.split('/').all(plain))
}

/// fstab(5) has an escape for the others; nobody needs them.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-+@:".contains(&byte)
}

/// To sort mounts by: what lies within another comes behind it.
pub fn mounting_order(place: &str) -> (usize, &str) {
    (place.split('/').filter(|part| !part.is_empty()).count(), place)
}

const MAX_PARTS: usize = 64;
/// A GPT has room for 128.
const MAX_PARTITIONS: usize = 32;
const MAX_NAME: usize = 32;
