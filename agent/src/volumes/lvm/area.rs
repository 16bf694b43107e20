//! The first MiB of a physical volume: a label that says whose it is, and an area with the volume group's metadata as text
//! (lvm2, lib/format_text/layout.h and lib/label/label.h).

use crc::{Algorithm, Crc};

use super::id::Id;
use crate::signatures::{array, le32, le64};

/// Where the label lies: in the second sector.
pub(super) const LABEL_AT: u64 = 512;
const SECTOR: usize = 512;

/// One area of metadata, from here to where the data begin.
const AREA_AT: u64 = 4096;
pub(super) const DATA_AT: u64 = 1 << 20;

/// Behind the header of an area its texts follow each other round and round; each starts at a sector.
const HEADER: u64 = 512;
pub(super) const HEADER_BYTES: usize = 512;

/// Metadata of a group with thousands of volumes have a few MiB.
const LONGEST_TEXT: u64 = 8 << 20;

/// The group has other copies of its metadata and doesn't write here.
const IGNORED: u32 = 1;

const LABEL_ID: &[u8; 8] = b"LABELONE";
const LABEL_TYPE: &[u8; 8] = b"LVM2 001";
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";

/// The polynomial of Ethernet's CRC, with a start of its own and nothing at the end.
const CHECKSUM: Crc<u32> = Crc::<u32>::new(&Algorithm {
    width: 32,
    poly: 0x04c1_1db7,
    init: 0xf597_a6cf_u32.reverse_bits(),
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
});

/// What a label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) id: Id,
    /// Offset and length of areas of metadata. Not all physical volumes have one.
    pub(super) areas: Vec<(u64, u64)>,
}

/// Where in its area a text lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Offsets on the device and lengths: one, or two if it goes on at the front.
    pub(super) parts: Vec<(u64, u64)>,
    checksum: u32,
}

/// Why something here can't be believed.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Damage {
    #[error("the label isn't one of LVM2")]
    Label,
    #[error("the label's checksum is wrong")]
    LabelChecksum,
    #[error("the label was made for another place")]
    LabelElsewhere,
    #[error("the header of a metadata area isn't one of LVM2")]
    Area,
    #[error("the checksum of a metadata area's header is wrong")]
    AreaChecksum,
    #[error("the metadata don't fit into their area")]
    Outside,
    #[error("the metadata are {0} bytes long, {LONGEST_TEXT} is the most that is read here")]
    Long(u64),
    #[error("the metadata's checksum is wrong")]
    TextChecksum,
    #[error("the metadata aren't UTF-8")]
    Text,
}

/// Why a text can't be written: `lvm2` refuses as well what it couldn't replace later.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("its metadata would take {bytes} bytes, and there is room for {room}")]
pub(crate) struct Long {
    bytes: u64,
    room: u64,
}

/// [`DATA_AT`] bytes, less what is empty at the end.
pub(super) fn to_bytes(id: Id, device_bytes: u64, text: &str) -> Result<Vec<u8>, Long> {
    let area_bytes = DATA_AT - AREA_AT;
    // With a NUL. The next text is written before this one is given up.
    let (bytes, room) = (text.len() as u64 + 1, (area_bytes - HEADER) / 2);
    if bytes > room {
        return Err(Long { bytes, room });
    }
    let mut head = vec![0; usize::try_from(AREA_AT).unwrap_or_default()];
    let label = label(id, device_bytes, area_bytes);
    for (to, from) in head.iter_mut().skip(SECTOR).zip(label) {
        *to = from;
    }
    let mut stored = text.as_bytes().to_vec();
    stored.push(0);
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(AREA_MAGIC);
    header.extend(1u32.to_le_bytes());
    header.extend(AREA_AT.to_le_bytes());
    header.extend(area_bytes.to_le_bytes());
    header.extend(HEADER.to_le_bytes());
    header.extend(bytes.to_le_bytes());
    header.extend(CHECKSUM.checksum(&stored).to_le_bytes());
    header.resize(HEADER_BYTES - 4, 0);
    head.extend(CHECKSUM.checksum(&header).to_le_bytes());
    head.extend(header);
    head.extend(stored);
    head.resize(head.len().next_multiple_of(4096), 0);
    Ok(head)
}

/// One sector.
fn label(id: Id, device_bytes: u64, area_bytes: u64) -> Vec<u8> {
    /// Of the pv_header, which is right behind the label's own.
    const HEADER_AT: u32 = 32;
    /// Version 2 of the extension has the flag that says whether a volume group uses this.
    const EXTENSION: u32 = 2;
    const USED: u32 = 1;
    let mut rest = Vec::new();
    rest.extend(HEADER_AT.to_le_bytes());
    rest.extend(LABEL_TYPE);
    rest.extend(id.bytes());
    rest.extend(device_bytes.to_le_bytes());
    // Areas of data and areas of metadata, each list with a zero behind it. Data to the end.
    for number in [DATA_AT, 0, 0, 0, AREA_AT, area_bytes, 0, 0] {
        rest.extend(number.to_le_bytes());
    }
    rest.extend(EXTENSION.to_le_bytes());
    rest.extend(USED.to_le_bytes());
    rest.resize(SECTOR - 20, 0);
    let mut label = LABEL_ID.to_vec();
    label.extend((LABEL_AT / 512).to_le_bytes());
    label.extend(CHECKSUM.checksum(&rest).to_le_bytes());
    label.extend(rest);
    label
}

/// The sector at an offset of a device.
pub(super) fn read_label(sector: &[u8], at: u64) -> Result<Label, Damage> {
    let fields = || {
        let rest = sector.get(20..SECTOR)?;
        let header = usize::try_from(le32(sector, 20)?).ok()?;
        Some((array(sector, 0)?, le64(sector, 8)?, le32(sector, 16)?, rest, header, array(sector, 24)?))
    };
    let (id, number, checksum, rest, header, kind) = fields().ok_or(Damage::Label)?;
    if &id != LABEL_ID || &kind != LABEL_TYPE {
        return Err(Damage::Label);
    }
    if CHECKSUM.checksum(rest) != checksum {
        return Err(Damage::LabelChecksum);
    }
    if number.checked_mul(512) != Some(at) {
        return Err(Damage::LabelElsewhere);
    }
    let sector = sector.get(..SECTOR).unwrap_or_default();
    let id = sector.get(header..).and_then(|header| array(header, 0)).and_then(Id::from_bytes).ok_or(Damage::Label)?;
    let mut lists = header.checked_add(40).and_then(|lists| sector.get(lists..)).unwrap_or_default();
    let mut list = || -> Option<Vec<(u64, u64)>> {
        let mut areas = Vec::new();
        loop {
            let area = (le64(lists, 0)?, le64(lists, 8)?);
            lists = lists.get(16..)?;
            if area.0 == 0 {
                return Some(areas);
            }
            areas.push(area);
        }
    };
    let areas = list().and_then(|_data| list()).ok_or(Damage::Label)?;
    Ok(Label { id, areas })
}

/// The first [`HEADER_BYTES`] of an area; `None` if it has no metadata that count.
pub(super) fn read_area(header: &[u8], (start, size): (u64, u64)) -> Result<Option<Place>, Damage> {
    let fields = || {
        let rest = header.get(4..HEADER_BYTES)?;
        let place = (le64(header, 40)?, le64(header, 48)?, le32(header, 56)?, le32(header, 60)?);
        Some((
            le32(header, 0)?,
            rest,
            array(header, 4)?,
            le32(header, 20)?,
            le64(header, 24)?,
            le64(header, 32)?,
            place,
        ))
    };
    let (checksum, rest, magic, version, said_start, said_size, place) = fields().ok_or(Damage::Area)?;
    if &magic != AREA_MAGIC || version != 1 {
        return Err(Damage::Area);
    }
    if CHECKSUM.checksum(rest) != checksum {
        return Err(Damage::AreaChecksum);
    }
    if (said_start, said_size) != (start, size) {
        return Err(Damage::Outside);
    }
    let (offset, length, checksum, flags) = place;
    if offset == 0 || length == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if length > LONGEST_TEXT {
        return Err(Damage::Long(length));
    }
    let place = || {
        let room = size.checked_sub(HEADER).filter(|room| length <= *room)?;
        let end = start.checked_add(size)?;
        let from =
            start.checked_add(offset.checked_sub(HEADER).filter(|offset| *offset < room)?)?.checked_add(HEADER)?;
        let first = length.min(end.checked_sub(from)?);
        let mut parts = vec![(from, first)];
        if first < length {
            parts.push((start.checked_add(HEADER)?, length - first));
        }
        Some(Place { parts, checksum })
    };
    place().map(Some).ok_or(Damage::Outside)
}

/// What lies at a place.
pub(super) fn read_text(place: &Place, bytes: &[u8]) -> Result<String, Damage> {
    if CHECKSUM.checksum(bytes) != place.checksum {
        return Err(Damage::TextChecksum);
    }
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(text.to_vec()).map_err(|_| Damage::Text)
}

#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let Some(mut sector) = array::<SECTOR>(bytes, 0) else { return };
    let mut put = |at: usize, field: &[u8]| {
        sector.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
        sector
    };
    put(0, LABEL_ID);
    put(24, LABEL_TYPE);
    let label = put(8, &1u64.to_le_bytes());
    let label = put(16, &CHECKSUM.checksum(label.get(20..).unwrap_or_default()).to_le_bytes());
    if let Ok(label) = read_label(&label, LABEL_AT) {
        assert!(label.areas.len() < SECTOR / 16);
    }
    put(4, AREA_MAGIC);
    let header = put(20, &1u32.to_le_bytes());
    let header = put(0, &CHECKSUM.checksum(header.get(4..).unwrap_or_default()).to_le_bytes());
    let area = (le64(&header, 24).unwrap_or_default(), le64(&header, 32).unwrap_or_default());
    if let Ok(Some(place)) = read_area(&header, area) {
        let end = area.0 + area.1;
        assert!(place.parts.iter().all(|(from, length)| *from >= area.0 + HEADER && from + length <= end));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn head(text: &str) -> Vec<u8> {
        to_bytes(Id::of(Uuid::nil(), "x"), 1 << 30, text).expect("fits")
    }

    #[test]
    fn what_is_written_is_read() {
        let id = Id::of(Uuid::nil(), "x");
        let head = head("vg {\n}\n");
        assert_eq!(head.len(), 8192);
        let label = read_label(&head[512..], 512).expect("a label");
        assert_eq!(label, Label { id, areas: vec![(4096, (1 << 20) - 4096)] });
        let place = read_area(&head[4096..], label.areas[0]).expect("an area").expect("a text");
        assert_eq!(place.parts, [(4608, 8)]);
        assert_eq!(read_text(&place, &head[4608..4616]), Ok("vg {\n}\n".to_owned()));
        assert_eq!(read_text(&place, &head[4609..4617]), Err(Damage::TextChecksum));
    }

    #[test]
    fn a_text_must_leave_room_for_the_next() {
        let room = (1_044_480 - 512) / 2;
        let whole = |bytes: usize| to_bytes(Id::of(Uuid::nil(), "x"), 1 << 30, &"#".repeat(bytes - 1));
        assert!(whole(room).is_ok());
        assert_eq!(whole(room + 1), Err(Long { bytes: room as u64 + 1, room: room as u64 }));
    }

    /// The header of an area with its first place changed, and a good checksum.
    fn area(offset: u64, length: u64) -> Vec<u8> {
        let mut header = head("vg {\n}\n")[4096..4096 + HEADER_BYTES].to_vec();
        header[40..48].copy_from_slice(&offset.to_le_bytes());
        header[48..56].copy_from_slice(&length.to_le_bytes());
        let checksum = CHECKSUM.checksum(&header[4..]);
        header[..4].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    #[test]
    fn places_are_within_their_area() {
        const SIZE: u64 = (1 << 20) - 4096;
        for (name, offset, length, want) in [
            ("in the middle", 8192, 100, Ok(Some(vec![(4096 + 8192, 100)]))),
            ("to the end", SIZE - 100, 100, Ok(Some(vec![((1 << 20) - 100, 100)]))),
            ("around", SIZE - 100, 101, Ok(Some(vec![((1 << 20) - 100, 100), (4608, 1)]))),
            ("all of it", 512, SIZE - 512, Ok(Some(vec![(4608, SIZE - 512)]))),
            ("no group", 0, 0, Ok(None)),
            ("more than all", 512, SIZE - 511, Err(Damage::Outside)),
            ("in the header", 511, 1, Err(Damage::Outside)),
            ("behind the end", SIZE, 1, Err(Damage::Outside)),
            ("far behind the end", u64::MAX, 1, Err(Damage::Outside)),
            ("long", 512, u64::MAX, Err(Damage::Long(u64::MAX))),
        ] {
            let got = read_area(&area(offset, length), (4096, SIZE)).map(|place| place.map(|place| place.parts));
            assert_eq!(got, want, "{name}");
        }
        let header = area(512, 8);
        for (name, header, area, want) in [
            ("another place", header.clone(), (8192, SIZE), Damage::Outside),
            ("another size", header.clone(), (4096, SIZE + 512), Damage::Outside),
            ("cut", header[..511].to_vec(), (4096, SIZE), Damage::Area),
            ("nothing", vec![0; 512], (4096, SIZE), Damage::Area),
            ("flipped", [&header[..500], &[1; 12]].concat(), (4096, SIZE), Damage::AreaChecksum),
        ] {
            assert_eq!(read_area(&header, area), Err(want), "{name}");
        }
    }

    #[test]
    fn labels_that_are_not_believed() {
        let head = head("");
        let good = &head[512..1024];
        let label = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut label = good.to_vec();
            change(&mut label);
            let checksum = CHECKSUM.checksum(&label[20..]);
            label[16..20].copy_from_slice(&checksum.to_le_bytes());
            label
        };
        for (name, label, at, want) in [
            ("elsewhere", good.to_vec(), 1024, Damage::LabelElsewhere),
            ("cut", good[..511].to_vec(), 512, Damage::Label),
            ("another kind", label(&|label| label[31] = b'2'), 512, Damage::Label),
            ("flipped", [&good[..511], &[1]].concat(), 512, Damage::LabelChecksum),
            ("a header far away", label(&|label| label[20..24].fill(0xff)), 512, Damage::Label),
            ("no end of the list", label(&|label| label[72..].fill(1)), 512, Damage::Label),
            ("no id", label(&|label| label[40] = b'-'), 512, Damage::Label),
        ] {
            assert_eq!(read_label(&label, at), Err(want), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(
            mut bytes in prop::collection::vec(any::<u8>(), 512),
            area in (any::<u64>(), any::<u64>()),
            place in (any::<u64>(), 0u64..=LONGEST_TEXT),
        ) {
            let checksum = CHECKSUM.checksum(&bytes[20..]);
            for (at, field) in [(0, &LABEL_ID[..]), (8, &1u64.to_le_bytes()), (16, &checksum.to_le_bytes())] {
                bytes[at..at + field.len()].copy_from_slice(field);
            }
            prop_assert!(read_label(&bytes, 512).is_err(), "the kind is within the checksum");
            for (at, field) in [
                (4, &AREA_MAGIC[..]),
                (20, &1u32.to_le_bytes()),
                (24, &area.0.to_le_bytes()),
                (32, &area.1.to_le_bytes()),
                (40, &place.0.to_le_bytes()),
                (48, &place.1.to_le_bytes()),
            ] {
                bytes[at..at + field.len()].copy_from_slice(field);
            }
            let checksum = CHECKSUM.checksum(&bytes[4..]).to_le_bytes();
            bytes[..4].copy_from_slice(&checksum);
            if let Ok(Some(found)) = read_area(&bytes, area) {
                prop_assert_eq!(found.parts.iter().map(|(_, length)| length).sum::<u64>(), place.1);
                for (from, length) in found.parts {
                    prop_assert!(from >= area.0 + HEADER && from + length <= area.0 + area.1);
                }
            }
        }
    }
}
