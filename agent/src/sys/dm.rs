//! The device mapper: block devices that the kernel puts together from others by a table.
//!
//! There is no udev in the initramfs: devtmpfs makes /dev/dm-N, and the name in /dev/mapper is made here. Requests may hold
//! keys: they are wiped afterwards, and the kernel is told to wipe its copies.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

const DIRECTORY: &str = "/dev/mapper";

/// A run of the new device, in units of 512 bytes, and what is behind it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) start: u64,
    pub(crate) length: u64,
    /// As the kernel names it: `linear`, `striped`, `raid`, `crypt`.
    pub(crate) kind: &'static str,
    /// What that kind takes, as in `dmsetup table`. It may hold a key, so it's never shown.
    pub(crate) parameters: Zeroizing<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    ReadWrite,
    ReadOnly,
}

/// A mapped device that this process made. It stays until [`remove`], whatever becomes of this value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    name: String,
    /// Major and minor.
    pub(crate) number: (u64, u64),
}

impl Device {
    /// Makes the device, loads its table and starts it. When this returns, its path can be opened; if it fails, there is no
    /// such device.
    pub(crate) fn create(name: &str, uuid: &str, table: &[Target], mode: Mode) -> io::Result<Self> {
        // It becomes a file's name.
        if name.is_empty() || name.contains('/') || name == "." || name == ".." || name == "control" {
            return Err(io::Error::other(format!("{name:?} can't be the name of a mapping")));
        }
        let control = Control::open()?;
        control.submit(ioctl::CREATE, &mut request(name, uuid, &[])?).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => explained("there is a mapping with that name or UUID already", &e),
            _ => e,
        })?;
        let start = || -> io::Result<Self> {
            let mut load = request(name, "", table)?;
            if mode == Mode::ReadOnly {
                put(&mut load, ioctl::FLAGS, &(ioctl::SECURE_DATA | ioctl::READ_ONLY).to_ne_bytes());
            }
            control.submit(ioctl::TABLE_LOAD, &mut load).map_err(|e| match e.raw_os_error() {
                Some(libc::EINVAL | libc::ENOENT) => explained(
                    "the kernel doesn't take the table: the module for it isn't loaded, or doesn't do what is asked for (its \
                     log says more)",
                    &e,
                ),
                Some(libc::EBUSY) => explained("a device under it is in use by somebody else", &e),
                _ => e,
            })?;
            let mut resume = request(name, "", &[])?;
            control.submit(ioctl::SUSPEND, &mut resume)?;
            let number = number(&resume);
            link(name, number.1)?;
            Ok(Self { name: name.to_owned(), number })
        };
        start().map_err(|error| match remove(name, "") {
            Ok(()) => error,
            Err(also) => io::Error::other(format!("{error}; and what there is of it can't be taken away: {also}")),
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }
}

/// `EBUSY` while anybody has the mapping open. It goes by its UUID if it has one: that can't change, a name can, and the kernel
/// takes one of them only.
pub(crate) fn remove(name: &str, uuid: &str) -> io::Result<()> {
    let mut request = if uuid.is_empty() { request(name, "", &[])? } else { request("", uuid, &[])? };
    Control::open()?.submit(ioctl::REMOVE, &mut request)?;
    let link = Path::new(DIRECTORY).join(name);
    // udev may have been faster, where there is one.
    if name.contains('/') || !dangles(&link) {
        return Ok(());
    }
    fs::remove_file(&link).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// The kinds of targets that the kernel knows.
pub(crate) fn kinds() -> io::Result<Vec<String>> {
    const ROOM: usize = 64 << 10;
    let mut request = header(ioctl::HEADER_BYTES + ROOM)?;
    Control::open()?.submit(ioctl::LIST_VERSIONS, &mut request)?;
    let flags = number_at::<4>(&request, ioctl::FLAGS).map_or(0, u32::from_ne_bytes);
    if flags & ioctl::BUFFER_FULL != 0 {
        return Err(io::Error::other("the device mapper's answer is longer than there is room for"));
    }
    let mut kinds = Vec::new();
    // The offset of the next one or 0, a version of three numbers, a name that ends with NUL.
    let mut rest = request.get(ioctl::HEADER_BYTES..).unwrap_or_default();
    while let (Some(next), Some(name)) = (rest.first_chunk::<4>(), rest.get(16..)) {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        kinds.push(String::from_utf8_lossy(name).into_owned());
        match usize::try_from(u32::from_ne_bytes(*next)).ok().filter(|next| *next > 0) {
            Some(next) => rest = rest.get(next..).unwrap_or_default(),
            None => break,
        }
    }
    Ok(kinds)
}

fn dangles(link: &Path) -> bool {
    fs::symlink_metadata(link).is_ok_and(|m| m.is_symlink()) && fs::metadata(link).is_err()
}

/// The name that udev would give: /dev/mapper/NAME, a link to ../dm-N.
fn link(name: &str, minor: u64) -> io::Result<()> {
    let (link, target) = (Path::new(DIRECTORY).join(name), PathBuf::from(format!("../dm-{minor}")));
    match symlink(&target, &link) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // udev was faster, or a mapping of that name is long gone.
            if fs::read_link(&link).is_ok_and(|found| found == target) {
                return Ok(());
            }
            fs::remove_file(&link)?;
            symlink(&target, &link)
        }
        done => done,
    }
}

fn explained(why: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{why}: {error}"))
}

struct Control(File);

impl Control {
    fn open() -> io::Result<Self> {
        let open = File::options().read(true).write(true).open(Path::new(DIRECTORY).join("control"));
        open.map(Self).map_err(|e| explained("the kernel's device mapper can't be reached: is dm_mod loaded?", &e))
    }

    fn submit(&self, number: u8, request: &mut [u8]) -> io::Result<()> {
        let code = nix::request_code_readwrite!(ioctl::MAGIC, number, ioctl::HEADER_BYTES);
        // SAFETY: `request` made these bytes: a `struct dm_ioctl` that says in `data_size` how many there are, so the kernel
        // reads and writes within them, and they outlive the call.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), code as _, request.as_mut_ptr()) };
        let done = nix::errno::Errno::result(done);
        // The kernel fills in its version even if it refuses ours. Nothing is left of a request that was to be wiped.
        let major = number_at::<4>(request, ioctl::VERSION).map_or(0, u32::from_ne_bytes);
        if done.is_err() && !matches!(major, 0 | ioctl::MAJOR) {
            return Err(io::Error::other(format!(
                "the kernel's device mapper has version {major}, this agent knows {}",
                ioctl::MAJOR
            )));
        }
        done?;
        Ok(())
    }
}

/// A `struct dm_ioctl` with the table behind it. One of the names may be empty, and both are when a device is made.
fn request(name: &str, uuid: &str, table: &[Target]) -> io::Result<Zeroizing<Vec<u8>>> {
    if name.is_empty() && uuid.is_empty() {
        return Err(io::Error::other("nothing names the mapping"));
    }
    let text = |what: &str, text: &str, room: usize| {
        // The last byte stays NUL.
        let fits = text.len() < room && !text.contains('\0');
        if fits {
            Ok(())
        } else {
            Err(io::Error::other(format!("{what} is too long for the device mapper, or cut by a NUL")))
        }
    };
    text("a mapping's name", name, ioctl::NAME_BYTES)?;
    text("a mapping's UUID", uuid, ioctl::UUID_BYTES)?;
    let spec_bytes = |target: &Target| (ioctl::SPEC_BYTES + target.parameters.len() + 1).next_multiple_of(8);
    let size = ioctl::HEADER_BYTES + table.iter().map(spec_bytes).sum::<usize>();
    let mut bytes = header(size)?;
    let mut put = |at: usize, what: &[u8]| put(&mut bytes, at, what);
    put(ioctl::TARGET_COUNT, &narrow(table.len())?);
    // The kernel wipes what it was given, our copy included.
    put(ioctl::FLAGS, &if table.is_empty() { 0 } else { ioctl::SECURE_DATA }.to_ne_bytes());
    put(ioctl::NAME, name.as_bytes());
    put(ioctl::UUID, uuid.as_bytes());
    let mut at = ioctl::HEADER_BYTES;
    for target in table {
        text("a target's kind", target.kind, ioctl::KIND_BYTES)?;
        text("a target's parameter", &target.parameters, 1 << 20)?;
        let next = spec_bytes(target);
        put(at, &target.start.to_ne_bytes());
        put(at + 8, &target.length.to_ne_bytes());
        put(at + ioctl::SPEC_NEXT, &narrow(next)?);
        put(at + ioctl::SPEC_KIND, target.kind.as_bytes());
        put(at + ioctl::SPEC_BYTES, target.parameters.as_bytes());
        at += next;
    }
    Ok(bytes)
}

/// A `struct dm_ioctl` of as many bytes, what is behind it included.
fn header(size: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; size]);
    // Any minor version of the kernel's is as good as this one or better.
    put(&mut bytes, ioctl::VERSION, &ioctl::MAJOR.to_ne_bytes());
    put(&mut bytes, ioctl::DATA_SIZE, &narrow(size)?);
    put(&mut bytes, ioctl::DATA_START, &narrow(ioctl::HEADER_BYTES)?);
    Ok(bytes)
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes.iter_mut().skip(at).zip(what).for_each(|(to, from)| *to = *from);
}

fn narrow(n: usize) -> io::Result<[u8; 4]> {
    u32::try_from(n).map(u32::to_ne_bytes).map_err(io::Error::other)
}

/// Major and minor of the device that the kernel has answered about.
fn number(answer: &[u8]) -> (u64, u64) {
    let device = number_at::<8>(answer, ioctl::DEVICE).map_or(0, u64::from_ne_bytes);
    (nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

fn number_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// linux/dm-ioctl.h
mod ioctl {
    pub(super) const MAGIC: u8 = 0xfd;
    pub(super) const MAJOR: u32 = 4;

    pub(super) const CREATE: u8 = 3;
    pub(super) const REMOVE: u8 = 4;
    /// Without `DM_SUSPEND_FLAG` it resumes: the table that was loaded becomes the one in use.
    pub(super) const SUSPEND: u8 = 6;
    pub(super) const TABLE_LOAD: u8 = 9;
    pub(super) const LIST_VERSIONS: u8 = 13;

    /// `DM_READONLY_FLAG`
    pub(super) const READ_ONLY: u32 = 1;
    /// `DM_BUFFER_FULL_FLAG`
    pub(super) const BUFFER_FULL: u32 = 1 << 8;

    /// `DM_SECURE_DATA_FLAG`
    pub(super) const SECURE_DATA: u32 = 1 << 15;

    /// `struct dm_ioctl`
    pub(super) const HEADER_BYTES: usize = 312;
    pub(super) const VERSION: usize = 0;
    pub(super) const DATA_SIZE: usize = 12;
    pub(super) const DATA_START: usize = 16;
    pub(super) const TARGET_COUNT: usize = 20;
    pub(super) const FLAGS: usize = 28;
    pub(super) const DEVICE: usize = 40;
    pub(super) const NAME: usize = 48;
    pub(super) const NAME_BYTES: usize = 128;
    pub(super) const UUID: usize = 176;
    pub(super) const UUID_BYTES: usize = 129;

    /// `struct dm_target_spec`; its parameters follow it, and the next one begins at a multiple of 8.
    pub(super) const SPEC_BYTES: usize = 40;
    pub(super) const SPEC_NEXT: usize = 20;
    pub(super) const SPEC_KIND: usize = 24;
    pub(super) const KIND_BYTES: usize = 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8], at: usize) -> String {
        let field = bytes.iter().skip(at).copied().take_while(|b| *b != 0).collect();
        String::from_utf8(field).expect("what was put in")
    }

    #[test]
    fn a_mapping_has_names_that_fit() {
        let longest = "n".repeat(127);
        for (name, mapping, uuid, fits) in [
            ("by UUID", "", "LVM-abc", true),
            ("by name", "vg-root", "", true),
            ("new", "root", "CRYPT-LUKS2-0-root", true),
            ("nothing", "", "", false),
            ("cut by NUL", "a\0b", "", false),
            ("longest", &longest, "", true),
            ("too long", &format!("{longest}n"), "", false),
        ] {
            let made = request(mapping, uuid, &[]).ok();
            let found = made.map(|bytes| (text(&bytes, 48), text(&bytes, 176)));
            assert_eq!(found, fits.then(|| (mapping.to_owned(), uuid.to_owned())), "{name}");
        }
        for name in ["", "a/b", ".", "..", "control"] {
            Device::create(name, "", &[], Mode::ReadWrite).expect_err(name);
        }
    }

    /// As the kernel walks it: each target says where the next one begins.
    #[test]
    fn a_table_follows_the_header() {
        let target = |start, length, kind, parameters: &str| Target {
            start,
            length,
            kind,
            parameters: Zeroizing::new(parameters.into()),
        };
        // With its NUL the first one's parameters don't fit into 8 bytes, the second one's do.
        let table = [target(0, 8, "linear", "8:0 2048"), target(8, 16, "crypt", "seven b")];
        let bytes = request("root", "", &table).expect("fits");
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!((word(0), word(12), word(16), word(20), word(28)), (4, bytes.len(), 312, 2, 1 << 15));
        let mut at = word(16);
        for target in table {
            assert!(at.is_multiple_of(8));
            assert_eq!((long(at), long(at + 8)), (target.start, target.length));
            assert_eq!(
                (text(&bytes, at + 24), text(&bytes, at + 40)),
                (target.kind.into(), target.parameters.to_string())
            );
            at += word(at + 20);
        }
        assert_eq!(at, bytes.len());
        for (name, kind, parameters) in [("no such kind", "a-name-that-is-long", ""), ("a NUL", "linear", "8:1\0")] {
            assert!(request("root", "", &[target(0, 1, kind, parameters)]).is_err(), "{name}");
        }
    }

    #[test]
    fn the_kernel_tells_the_number() {
        for (name, device, minor) in [("first", 0xfe00u64, 0), ("others", 0xfe07, 7), ("many", 0x10_fe2c, 300)] {
            let mut answer = vec![0; 312];
            answer[40..48].copy_from_slice(&device.to_ne_bytes());
            assert_eq!(number(&answer), (0xfe, minor), "{name}");
        }
    }
}
