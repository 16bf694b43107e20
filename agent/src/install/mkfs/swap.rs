//! A swap area: one page that says how many others there are (include/linux/swap.h, `union swap_header`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use uuid::Uuid;

use super::options::{self, Known, Then, Value};
use super::{New, at_least, at_most, label};

/// Of the kernel that will swap: x86-64 has no other.
const PAGE: usize = 4096;
const PAGE_BYTES: u64 = PAGE as u64;

/// What mkswap asks for; the kernel would take fewer.
const LEAST_PAGES: u64 = 10;

const LABEL_BYTES: usize = 16;

/// Whatever else was recognised in front of the device before would still be, beside the swap area. Everything that can be
/// is gone with this.
const FRONT: usize = 128 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Area {
    uuid: Uuid,
    label: String,
    last_page: u32,
}

const KNOWN: &[Known] = &[
    Known { letter: 'f', value: Value::None, then: Then::Drop },
    Known { letter: 'c', value: Value::None, then: Then::Refuse("searching a drive for bad blocks takes hours") },
    Known { letter: 'p', value: Value::One, then: Then::Refuse("the page size is the machine's") },
    Known { letter: 'L', value: Value::One, then: Then::Refuse("that is said by the layout itself") },
    Known { letter: 'U', value: Value::One, then: Then::Refuse("that is said by the layout itself") },
];

pub(super) fn plan(new: &New, uuid: Uuid) -> Result<Area, String> {
    let label = label(new, LABEL_BYTES)?.to_owned();
    options::read(new.options, KNOWN)?;
    at_least(new, LEAST_PAGES * PAGE_BYTES)?;
    // Pages are numbered from 0.
    at_most(new, (u64::from(u32::MAX) + 1) * PAGE_BYTES)?;
    let last_page = u32::try_from(new.bytes / PAGE_BYTES - 1).map_err(|e| e.to_string())?;
    Ok(Area { uuid, label, last_page })
}

impl Area {
    fn page(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| page.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        // The first 1024 bytes are for boot loaders. No page is bad, so the list of those stays empty.
        put(1024, &1u32.to_le_bytes());
        put(1028, &self.last_page.to_le_bytes());
        put(1036, self.uuid.as_bytes());
        put(1052, self.label.as_bytes());
        put(PAGE - 10, b"SWAPSPACE2");
        page
    }

    pub(super) fn write(&self, device: &Path) -> io::Result<()> {
        let device = File::options().write(true).open(device)?;
        let room = (u64::from(self.last_page) + 1) * PAGE_BYTES;
        let mut front = self.page();
        front.resize(FRONT.min(usize::try_from(room).unwrap_or(FRONT)), 0);
        device.write_all_at(&front, 0)?;
        device.sync_all()
    }
}
