//! The device mapper: block devices made of pieces of others.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use ioctl::{DATA, Request};

/// How the device mapper is told which mapping is meant. A UUID can't change, a name can; it takes one of them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping<'a> {
    Uuid(&'a str),
    Name(&'a str),
}

/// A part of a mapping's table, in sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) start: u64,
    pub(crate) length: u64,
    /// `linear`, `striped`, `raid`
    pub(crate) kind: &'static str,
    /// What that kind wants to know, as in `dmsetup table`.
    pub(crate) parameters: String,
}

/// /dev/mapper/control
#[derive(Debug)]
pub(crate) struct Control(File);

impl Control {
    pub(crate) fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open("/dev/mapper/control").map(Self)
    }

    /// `DM_DEV_CREATE`: a mapping without a table. Returns the numbers of its device, `/dev/dm-MINOR`.
    pub(crate) fn create(&self, name: &str, uuid: &str) -> io::Result<(u64, u64)> {
        let mut request = request(Mapping::Name(name))?;
        write(&mut request.header.uuid, uuid)?;
        self.ask(&mut request, ioctl::dm_dev_create)?;
        let number = request.header.dev;
        Ok((nix::sys::stat::major(number), nix::sys::stat::minor(number)))
    }

    /// `DM_TABLE_LOAD`. The table is in force from the next [`Control::resume`].
    pub(crate) fn load(&self, mapping: Mapping, targets: &[Target], read_only: bool) -> io::Result<()> {
        let mut request = request(mapping)?;
        let data = table(targets)?;
        let room =
            request.data.get_mut(..data.len()).ok_or_else(|| io::Error::other("the table has too many parts"))?;
        room.copy_from_slice(&data);
        request.header.target_count = u32::try_from(targets.len()).map_err(io::Error::other)?;
        request.header.flags = if read_only { ioctl::READONLY } else { 0 };
        self.ask(&mut request, ioctl::dm_table_load)
    }

    /// `DM_DEV_SUSPEND` without its flag, which is the opposite.
    pub(crate) fn resume(&self, mapping: Mapping) -> io::Result<()> {
        self.ask(&mut *request(mapping)?, ioctl::dm_dev_suspend)
    }

    /// `DM_DEV_REMOVE`. `EBUSY` while anybody has the mapping open.
    pub(crate) fn remove(&self, mapping: Mapping) -> io::Result<()> {
        self.ask(&mut *request(mapping)?, ioctl::dm_dev_remove)
    }

    /// `DM_LIST_VERSIONS`: the kinds of targets that the kernel knows.
    pub(crate) fn kinds(&self) -> io::Result<Vec<String>> {
        let mut request = empty_request()?;
        self.ask(&mut request, ioctl::dm_list_versions)?;
        let mut kinds = Vec::new();
        // The offset of the next one or 0, a version of three numbers, a name that ends with NUL.
        let mut rest = request.data.as_slice();
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

    fn ask(
        &self,
        request: &mut Request,
        ioctl: unsafe fn(c_int, *mut ioctl::DmIoctl) -> nix::Result<c_int>,
    ) -> io::Result<()> {
        let whole = (&raw mut *request).cast();
        // SAFETY: a `Request` begins with the structure that these ioctls read and write, which says how much there is behind
        // it, and outlives the call.
        let asked = unsafe { ioctl(self.0.as_raw_fd(), whole) };
        // The kernel fills in its version even if it refuses ours.
        let [major, minor, _] = request.header.version;
        if asked.is_err() && major != ioctl::MAJOR {
            let words =
                format!("the kernel's device mapper has version {major}.{minor}, this agent knows {}", ioctl::MAJOR);
            return Err(io::Error::other(words));
        }
        asked?;
        if request.header.flags & ioctl::BUFFER_FULL != 0 {
            return Err(io::Error::other("the device mapper's answer is longer than there is room for"));
        }
        Ok(())
    }
}

/// `struct dm_target_spec` for each, with its parameters behind it.
fn table(targets: &[Target]) -> io::Result<Vec<u8>> {
    const NAME: usize = 16;
    let mut table = Vec::new();
    for Target { start, length, kind, parameters } in targets {
        if kind.len() >= NAME || parameters.contains('\0') {
            return Err(io::Error::other(format!("{kind} with {parameters:?} is no target")));
        }
        let mut name = [0; NAME];
        for (to, from) in name.iter_mut().zip(kind.bytes()) {
            *to = from;
        }
        let length_of_all = (40 + parameters.len() + 1).next_multiple_of(8);
        let end = table.len() + length_of_all;
        table.extend(start.to_ne_bytes());
        table.extend(length.to_ne_bytes());
        // A status, which is only for answers.
        table.extend(0i32.to_ne_bytes());
        table.extend(u32::try_from(length_of_all).map_err(io::Error::other)?.to_ne_bytes());
        table.extend(name);
        table.extend(parameters.as_bytes());
        table.resize(end, 0);
    }
    Ok(table)
}

fn request(mapping: Mapping) -> io::Result<Box<Request>> {
    let mut request = empty_request()?;
    match mapping {
        Mapping::Uuid(uuid) => write(&mut request.header.uuid, uuid)?,
        Mapping::Name(name) => write(&mut request.header.name, name)?,
    }
    Ok(request)
}

fn empty_request() -> io::Result<Box<Request>> {
    let header = ioctl::DmIoctl {
        // Any minor version of the kernel's is as good as this one or better.
        version: [ioctl::MAJOR, 0, 0],
        data_size: u32::try_from(size_of::<Request>()).map_err(io::Error::other)?,
        data_start: u32::try_from(std::mem::offset_of!(Request, data)).map_err(io::Error::other)?,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    Ok(Box::new(Request { header, data: [0; DATA] }))
}

fn write(field: &mut [c_char], text: &str) -> io::Result<()> {
    // The last byte stays NUL, and an empty text would mean that nothing is looked up.
    if text.is_empty() || text.len() >= field.len() || text.contains('\0') {
        return Err(io::Error::other(format!("{text:?} names no mapping")));
    }
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    Ok(())
}

/// linux/dm-ioctl.h
mod ioctl {
    use std::ffi::c_char;

    pub(super) const MAJOR: u32 = 4;
    pub(super) const READONLY: u32 = 1;
    pub(super) const BUFFER_FULL: u32 = 1 << 8;

    /// Enough for a table of several hundred parts.
    pub(super) const DATA: usize = 64 << 10;

    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct DmIoctl {
        pub(super) version: [u32; 3],
        pub(super) data_size: u32,
        pub(super) data_start: u32,
        pub(super) target_count: u32,
        pub(super) open_count: i32,
        pub(super) flags: u32,
        pub(super) event_nr: u32,
        pub(super) padding: u32,
        pub(super) dev: u64,
        pub(super) name: [c_char; 128],
        pub(super) uuid: [c_char; 129],
        pub(super) data: [c_char; 7],
    }

    const _: () = assert!(size_of::<DmIoctl>() == 312);
    const _: () = assert!(std::mem::offset_of!(DmIoctl, dev) == 40);
    const _: () = assert!(std::mem::offset_of!(DmIoctl, name) == 48);
    const _: () = assert!(std::mem::offset_of!(DmIoctl, uuid) == 176);

    /// The header, and room behind it for what goes there and comes back.
    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct Request {
        pub(super) header: DmIoctl,
        pub(super) data: [u8; DATA],
    }

    nix::ioctl_readwrite!(dm_dev_create, 0xfd, 3, DmIoctl);
    nix::ioctl_readwrite!(dm_dev_remove, 0xfd, 4, DmIoctl);
    nix::ioctl_readwrite!(dm_dev_suspend, 0xfd, 6, DmIoctl);
    nix::ioctl_readwrite!(dm_table_load, 0xfd, 9, DmIoctl);
    nix::ioctl_readwrite!(dm_list_versions, 0xfd, 13, DmIoctl);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_named_one_way() {
        let text = |field: &[c_char]| -> String {
            field.iter().take_while(|c| **c != 0).map(|c| char::from(c.to_ne_bytes()[0])).collect()
        };
        for (name, mapping, want) in [
            ("by UUID", Mapping::Uuid("LVM-abc"), Some(("", "LVM-abc"))),
            ("by name", Mapping::Name("vg-root"), Some(("vg-root", ""))),
            ("nothing", Mapping::Uuid(""), None),
            ("cut by NUL", Mapping::Name("a\0b"), None),
            ("longest", Mapping::Name(&"n".repeat(127)), Some((&*"n".repeat(127), ""))),
            ("too long", Mapping::Name(&"n".repeat(128)), None),
        ] {
            let found = request(mapping).ok();
            let found = found.map(|request| (text(&request.header.name), text(&request.header.uuid)));
            assert_eq!(found, want.map(|(name, uuid)| (name.to_owned(), uuid.to_owned())), "{name}");
        }
    }

    #[test]
    fn a_table_is_laid_out() {
        let target =
            |start, length, kind, parameters: &str| Target { start, length, kind, parameters: parameters.into() };
        let two = [target(0, 8192, "linear", "8:1 2048"), target(8192, 1, "striped", "1234567")];
        let bytes = table(&two).expect("a table");
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
        // With its NUL the first one's parameters don't fit into 8 bytes, the second one's do.
        assert_eq!((word(20), word(56 + 20), bytes.len()), (56, 48, 104));
        assert_eq!([long(0), long(8), long(56), long(64)], [0, 8192, 8192, 1]);
        assert_eq!(&bytes[24..49], b"linear\0\0\0\0\0\0\0\0\0\x008:1 2048\0");
        assert_eq!(&bytes[96..104], b"1234567\0");
        table(&[target(0, 1, "a-name-that-is-long", "")]).expect_err("no such kind");
        table(&[target(0, 1, "linear", "8:1\0")]).expect_err("a NUL");
    }
}
