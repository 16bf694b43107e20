use proptest::prelude::*;

use super::*;
use crate::drive::Sanitize;

#[test]
fn commands() {
    use SanitizeKind::{Block, Crypto, Overwrite};
    for (name, command, want) in [
        ("TEST UNIT READY", Command::test_unit_ready(), "000000000000"),
        ("REQUEST SENSE", Command::request_sense(), "03000000fc00"),
        ("INQUIRY, supported pages", Command::inquiry(Page::Supported), "12010000fc00"),
        ("INQUIRY, serial number", Command::inquiry(Page::Serial), "12018000fc00"),
        ("READ CAPACITY (10)", Command::capacity_10(), "25000000000000000000"),
        ("READ CAPACITY (16)", Command::capacity_16(), "9e100000000000000000000000200000"),
        ("REPORT SUPPORTED OPERATION CODES", Command::reports_sanitize(Crypto), "a30c0248000300000 0fc0000"),
        ("SANITIZE, overwrite", Command::sanitize(Overwrite), "48a10000000000000800"),
        ("SANITIZE, block erase", Command::sanitize(Block), "48a20000000000000000"),
        ("SANITIZE, cryptographic erase", Command::sanitize(Crypto), "48a30000000000000000"),
        ("SANITIZE, exit failure mode", Command::leave_failed_sanitize(), "481f0000000000000000"),
        ("READ (16), FUA", Command::read_medium(0x1_0000_0001, 8), "88080000000100000001000000080000"),
        ("SECURITY PROTOCOL IN", Command::security_in(1, 0x07fe, 2048), "a20107fe0000000008000000"),
        ("SECURITY PROTOCOL OUT", Command::security_out(1, 0x07fe, 512), "b50107fe0000000002000000"),
    ] {
        let want = hex::decode(want.replace(' ', "")).expect("hex");
        assert_eq!(command, Command { cdb: want, timeout: QUICK }, "{name}");
    }
    let zeros = zeros();
    let pattern = usize::from(u16::from_be_bytes([zeros[2], zeros[3]]));
    assert_eq!((zeros[0] & 0x1f, 4 + pattern, &zeros[4..]), (1, zeros.len(), &[0; 4][..]), "one pass of zeros");
}

#[test]
fn pages() {
    // QEMU's scsi-hd, of 7.2.
    let list = b"\x00\x00\x00\x06\x00\x80\x83\xb0\xb1\xb2";
    assert!(has_page(list, Page::Characteristics) && !has_page(list, Page::AtaInformation));
    assert!(!has_page(b"\x00\x80\x00\x01\x89", Page::AtaInformation), "another page");
    assert!(!has_page(b"\x00\x00\x00\x01\x00\x89", Page::AtaInformation), "behind the end");
    for (name, page, want) in [
        ("padded", &b"\x00\x80\x00\x08    QM01"[..], Some("QM01")),
        ("as libata has it", b"\x00\x80\x00\x14QM00001             ", Some("QM00001")),
        ("claims more than it has", b"\x00\x80\xff\xffQM01", Some("QM01")),
        ("another page", b"\x00\x83\x00\x04QM01", None),
        ("blank", b"\x00\x80\x00\x04    ", None),
        ("cut", b"\x00\x80\x00", None),
    ] {
        assert_eq!(serial(page).as_deref(), want, "{name}");
    }
    for (name, page, want) in [
        ("doesn't say", &b"\x00\xb1\x00\x3c\x00\x00"[..], None),
        ("flash", b"\x00\xb1\x00\x3c\x00\x01", None),
        ("reserved", b"\x00\xb1\x00\x3c\x04\x00", None),
        ("7200", b"\x00\xb1\x00\x3c\x1c\x20", Some(7200)),
        ("cut", b"\x00\xb1\x00\x3c\x1c", None),
        ("another page", b"\x00\xb0\x00\x3c\x1c\x20", None),
    ] {
        assert_eq!(rotations_per_minute(page), want, "{name}");
    }
}

#[test]
fn sizes() {
    let long =
        |last: u64, block: u32| [last.to_be_bytes().to_vec(), block.to_be_bytes().to_vec(), vec![0; 20]].concat();
    let short = |last: u32, block: u32| [last.to_be_bytes(), block.to_be_bytes()].concat();
    let found = |size_bytes, block_bytes| Some(Capacity { size_bytes, block_bytes });
    for (name, got, want) in [
        ("4 TB", Capacity::parse(&long(7_814_037_167, 512)), found(4_000_787_030_016, 512)),
        ("4 KiB blocks", Capacity::parse(&long(976_754_645, 4096)), found(4_000_787_030_016, 4096)),
        ("520-byte blocks", Capacity::parse(&long(1000, 520)), None),
        ("no blocks", Capacity::parse(&long(u64::MAX, 512)), None),
        ("more bytes than there are numbers", Capacity::parse(&long(u64::MAX - 1, 512)), None),
        ("cut", Capacity::parse(&long(1000, 512)[..11]), None),
        ("short", Capacity::parse_10(&short(2047, 512)), found(1 << 20, 512)),
        ("too large for the short one", Capacity::parse_10(&short(u32::MAX, 512)), None),
        ("short, cut", Capacity::parse_10(&short(2047, 512)[..7]), None),
    ] {
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn only_what_conforms_is_supported() {
    for (support, want) in [(0b000, false), (0b001, false), (0b011, true), (0b101, false), (0x83, true)] {
        assert_eq!(is_supported(&[0, support, 0, 10]), want, "{support:#b}");
    }
    assert!(!is_supported(&[0]));
    let claimed = Sanitize::of(|kind| kind == SanitizeKind::Block);
    assert_eq!((claimed.any(), claimed.only()), (true, Some(SanitizeKind::Block)));
    assert_eq!(Sanitize::of(|_| true).only(), None);
}

#[test]
fn sense_data() {
    let sense = |key, asc, ascq, progress| Some(Sense { key, asc, ascq, progress });
    for (name, bytes, want) in [
        ("fixed", "70 00 05 00 00 00 00 0a 00 00 00 00 20 00 00 00 00 00", sense(5, 0x20, 0, None)),
        ("fixed, deferred", "71 00 03 00 00 00 00 0a 00 00 00 00 31 03 00 00 00 00", sense(3, 0x31, 3, None)),
        ("fixed, half-way", "70 00 02 00 00 00 00 0a 00 00 00 00 04 1b 00 80 80 00", sense(2, 4, 0x1b, Some(0x8000))),
        ("fixed, progress not valid", "70 00 02 00 00 00 00 0a 00 00 00 00 04 1b 00 00 80 00", sense(2, 4, 0x1b, None)),
        (
            "fixed, with an information field",
            "f0 00 03 00 00 00 2a 0a 00 00 00 00 11 00 00 00 00 00",
            sense(3, 0x11, 0, None),
        ),
        ("fixed, only a key", "70 00 06", sense(6, 0, 0, None)),
        ("descriptors, none", "72 06 29 00 00 00 00 00", sense(6, 0x29, 0, None)),
        ("descriptors, half-way", "72 02 04 1b 00 00 00 08 02 06 00 00 80 80 00 00", sense(2, 4, 0x1b, Some(0x8000))),
        (
            "descriptors, behind another",
            "72 02 04 1b 00 00 00 14 00 0a 80 00 00 00 00 00 00 00 00 00 02 06 00 00 80 40 00 00",
            sense(2, 4, 0x1b, Some(0x4000)),
        ),
        ("descriptors, one that is cut", "72 02 04 1b 00 00 00 08 02 06 00 00", sense(2, 4, 0x1b, None)),
        ("vendor's own", "7f 02 04 1b", None),
        ("empty", "", None),
        ("cut", "72 02", None),
    ] {
        let bytes = hex::decode(bytes.replace(' ', "")).expect("hex");
        assert_eq!(Sense::parse(&bytes), want, "{name}");
    }
}

#[test]
fn failures_in_words() {
    let check =
        |key, asc, ascq| Completion { status: 2, sense: vec![0x72, key, asc, ascq, 0, 0, 0, 0], transferred: 0 };
    let status = |status| Completion { status, sense: vec![], transferred: 0 };
    for (completion, want) in [
        (status(0), None),
        (check(1, 0x17, 0x01), None),
        (check(2, 0x04, 0x1b), Some("the drive is busy sanitizing (SCSI sense key 2h, code 04h/1bh)")),
        (check(2, 0x04, 0x01), Some("the drive is becoming ready (SCSI sense key 2h, code 04h/01h)")),
        (check(2, 0x3a, 0x00), Some("no medium (SCSI sense key 2h, code 3ah/00h)")),
        (check(3, 0x31, 0x03), Some("the last sanitize failed (SCSI sense key 3h, code 31h/03h)")),
        (check(3, 0x11, 0x00), Some("unrecovered read error (SCSI sense key 3h, code 11h/00h)")),
        (check(4, 0x44, 0x00), Some("internal error of the drive (SCSI sense key 4h, code 44h/00h)")),
        (check(4, 0x15, 0x01), Some("hardware error (SCSI sense key 4h, code 15h/01h)")),
        (
            check(5, 0x24, 0x00),
            Some("the drive doesn't accept a field of this command (SCSI sense key 5h, code 24h/00h)"),
        ),
        (check(7, 0x27, 0x00), Some("the drive is write-protected (SCSI sense key 7h, code 27h/00h)")),
        (check(0xe, 0, 0), Some("sense data that this agent has no words for (SCSI sense key eh, code 00h/00h)")),
        (status(0x02), Some("it didn't work, and the drive doesn't say why (SCSI status 02h)")),
        (status(0x18), Some("another host holds a reservation (SCSI status 18h)")),
        (status(0x99), Some("a status that this agent has no words for (SCSI status 99h)")),
    ] {
        let got = completion.check().err().map(|failure| failure.to_string());
        assert_eq!(got.as_deref(), want);
    }
    let failure = |completion: Completion| completion.check().expect_err("a failure");
    assert!(failure(check(6, 0x29, 0)).is_attention() && failure(check(2, 4, 1)).is_start());
    assert!(failure(check(5, 0x24, 0)).is_refusal() && !failure(check(3, 0x11, 0)).is_refusal());
    assert!(!failure(status(0x18)).is_refusal() && !failure(status(8)).is_attention());
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), status: u8) {
        prop_assert_ne!(serial(&bytes), Some(String::new()));
        let _ = (rotations_per_minute(&bytes), is_supported(&bytes), has_page(&bytes, Page::Serial));
        for capacity in [Capacity::parse(&bytes), Capacity::parse_10(&bytes)].into_iter().flatten() {
            prop_assert!(capacity.size_bytes > 0 && capacity.size_bytes % u64::from(capacity.block_bytes) == 0);
        }
        let completion = Completion { status, sense: bytes, transferred: 0 };
        if let Err(failure) = completion.check() {
            prop_assert!(!failure.to_string().is_empty());
        }
    }

    #[test]
    fn any_descriptors(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind: u8) {
        let sense = [vec![0x72, 2, 4, 0x1b, 0, 0, 0, 80], bytes].concat();
        prop_assert!(Sense::parse(&sense).is_some());
        if let Some(found) = descriptor(&sense, kind) {
            prop_assert!(found.len() >= 2 && found[0] == kind);
        }
    }
}
