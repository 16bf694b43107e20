use proptest::prelude::*;

use super::fixtures::Words;
use super::*;
use crate::drive::Sanitize;

#[test]
fn an_ssd() {
    let identity = Identity::parse(&fixtures::ssd().signed()).expect("a whole page");
    let want = Identity {
        serial: "Z1F0A1B2".to_owned(),
        model: "ST240HM000-1G5142".to_owned(),
        firmware: "B660".to_owned(),
        size_bytes: 240_057_409_536,
        block_bytes: 512,
        rotations_per_minute: None,
        sanitize: Sanitize { block: true, ..Sanitize::default() },
        security: Some(Security { enhanced: true, ..Security::default() }),
        trusted: false,
        logs: true,
        erase_takes: Some(Duration::from_secs(120)),
        enhanced_erase_takes: Some(Duration::from_secs(120)),
        long_addresses: true,
        protected_area: true,
        accessible_max: false,
        configuration_overlay: true,
    };
    assert_eq!(identity, want);
}

#[test]
fn a_hard_disk() {
    let identity = Identity::parse(&fixtures::hard_disk().signed()).expect("a whole page");
    let want = Identity {
        serial: "ZA20ABCD".to_owned(),
        model: "ST10000DM0004-1ZC101".to_owned(),
        firmware: "CC93".to_owned(),
        size_bytes: 10_000_831_348_736,
        block_bytes: 512,
        rotations_per_minute: Some(7200),
        sanitize: Sanitize { overwrite: true, ..Sanitize::default() },
        security: Some(Security { enhanced: true, frozen: true, ..Security::default() }),
        trusted: false,
        logs: true,
        erase_takes: Some(Duration::from_secs(996 * 60)),
        enhanced_erase_takes: Some(Duration::from_secs(996 * 60)),
        long_addresses: true,
        protected_area: false,
        accessible_max: true,
        configuration_overlay: false,
    };
    assert_eq!(identity, want);
}

#[test]
fn pages_that_name_no_disk() {
    let with = |change: fn(&mut Words)| {
        let mut page = fixtures::ssd();
        change(&mut page);
        page.signed()
    };
    let mut damaged = fixtures::ssd().signed();
    damaged[20] ^= 1;
    for (name, page) in [
        ("empty", vec![]),
        ("all zeros", vec![0; 512]),
        ("all ones", vec![0xff; 512]),
        ("cut", fixtures::ssd().signed()[..511].to_vec()),
        ("damaged", damaged),
        ("a CD drive", with(|page| _ = page.set(0, 0x85c0))),
        ("no serial", with(|page| _ = page.text(10, &" ".repeat(20)))),
        ("no sectors", with(|page| _ = page.number(60, 2, 0).number(100, 4, 0))),
        ("sectors of 520 bytes", with(|page| _ = page.set(106, 0x5000).set(117, 260))),
        ("more bytes than there are numbers", with(|page| _ = page.number(100, 4, u64::MAX))),
    ] {
        assert_eq!(Identity::parse(&page), None, "{name}");
    }
}

#[test]
fn what_a_page_says() {
    let of = |change: &dyn Fn(&mut Words)| {
        let mut page = fixtures::ssd();
        change(&mut page);
        Identity::parse(&page.bytes()).expect("no checksum is fine")
    };
    let native = of(&|page| _ = page.set(106, 0x5000).set(117, 2048).number(100, 4, 1000));
    assert_eq!((native.block_bytes, native.size_bytes), (4096, 4_096_000));
    let old = of(&|page| _ = page.set(83, 1 << 14).number(60, 2, 1000));
    assert_eq!((old.long_addresses, old.size_bytes, old.configuration_overlay), (false, 512_000, false));
    let huge = of(&|page| _ = page.set(69, 1 << 3).number(230, 4, 1 << 40));
    assert_eq!(huge.size_bytes, 1 << 49);
    let unsaid = of(&|page| _ = page.set(83, 0x3d09));
    assert_eq!((unsaid.security, unsaid.protected_area), (None, false), "words 82 and 83 aren't valid");
    let without = of(&|page| _ = page.set(59, 0xe000));
    assert_eq!(without.sanitize, Sanitize::default(), "bit 12 isn't set");
    for (name, word, want) in [
        ("not said", 0, None),
        ("4 minutes", 2, Some(240)),
        ("508 minutes", 254, Some(508 * 60)),
        ("longer", 255, None),
        ("extended", 0x8000 | 300, Some(600 * 60)),
        ("extended, longer", 0xffff, None),
    ] {
        assert_eq!(of(&|page| _ = page.set(89, word)).erase_takes, want.map(Duration::from_secs), "{name}");
    }
    for (code, want) in
        [(0, None), (1, None), (0x400, None), (0x401, Some(0x401)), (15000, Some(15000)), (0xffff, None)]
    {
        assert_eq!(of(&|page| _ = page.set(217, code)).rotations_per_minute, want, "{code:#x}");
    }
    let security = of(&|page| _ = page.set(128, 0x001f)).security.expect("supported");
    assert_eq!(
        security,
        Security { enhanced: false, frozen: true, enabled: true, locked: true, expired: true },
        "bits 1 to 4"
    );
}

#[test]
fn what_the_factory_set() {
    assert_eq!(highest_factory_sector(&fixtures::factory_configuration(0x037e_3e3f)), Some(0x037e_3e3f));
    assert_eq!(highest_factory_sector(&fixtures::factory_configuration(0)), None);
    assert_eq!(highest_factory_sector(&[0xa5; 100]), None);
}

#[test]
fn commands_travel_as_cdbs() {
    use SanitizeKind::{Block, Crypto, Overwrite};
    for (name, command, want) in [
        ("IDENTIFY DEVICE", Command::identify(), "8508 0e00 0000 0100 0000 0000 0040 ec00"),
        ("READ NATIVE MAX ADDRESS EXT", Command::native_max(true), "8507 2000 0000 0000 0000 0000 0040 2700"),
        ("READ NATIVE MAX ADDRESS", Command::native_max(false), "8506 2000 0000 0000 0000 0000 0040 f800"),
        ("GET NATIVE MAX ADDRESS EXT", Command::accessible_native_max(), "8507 2000 0000 0000 0000 0000 0040 7800"),
        ("DEVICE CONFIGURATION IDENTIFY", Command::factory_configuration(), "8508 0e00 c200 0100 0000 0000 0040 b100"),
        ("SANITIZE STATUS EXT", Command::sanitize_status(), "8507 2000 0000 0000 0000 0000 0040 b400"),
        ("… and forget", Command::leave_failed_sanitize(), "8507 2000 0000 0100 0000 0000 0040 b400"),
        ("CRYPTO SCRAMBLE EXT", Command::sanitize(Crypto), "8507 2000 1100 1043 7000 7900 7240 b400"),
        ("BLOCK ERASE EXT", Command::sanitize(Block), "8507 2000 1200 1042 7200 4500 6b40 b400"),
        ("OVERWRITE EXT", Command::sanitize(Overwrite), "8507 2000 1400 1100 0057 004f 0040 b400"),
        ("SECURITY SET PASSWORD", Command::set_password(), "850a 0600 0000 0100 0000 0000 0040 f100"),
        ("SECURITY UNLOCK", Command::unlock(), "850a 0600 0000 0100 0000 0000 0040 f200"),
        ("SECURITY ERASE PREPARE", Command::erase_prepare(), "8506 2000 0000 0000 0000 0000 0040 f300"),
        ("SECURITY ERASE UNIT", Command::erase_unit(QUICK), "850a 0600 0000 0100 0000 0000 0040 f400"),
        ("SECURITY DISABLE PASSWORD", Command::disable_password(), "850a 0600 0000 0100 0000 0000 0040 f600"),
        ("TRUSTED RECEIVE", Command::trusted_receive(1, 0x0780, 0x0104), "8508 0e00 0100 0400 0100 8000 0740 5c00"),
        ("TRUSTED SEND", Command::trusted_send(1, 0x0780, 1), "850a 0600 0100 0100 0000 8000 0740 5e00"),
    ] {
        let want = hex::decode(want.replace(' ', "")).expect("hex");
        assert_eq!(command.clothed(), scsi::Command { cdb: want, timeout: QUICK }, "{name}");
    }
}

#[test]
fn passwords_are_where_the_standard_has_them() {
    let tell = Password::tell();
    assert_eq!((tell[0], tell[1], &tell[2..34], tell[34..].iter().all(|b| *b == 0)), (0, 0, &Password::OURS[..], true));
    assert_eq!((Password::erase(false), Password::erase(true)[0]), (tell, 2));
}

/// SAT-3, table 155.
fn returned(error: u8, count: u16, lba: u64, status: u8) -> Vec<u8> {
    let [count_high, count] = count.to_be_bytes();
    let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
    let mut sense = vec![0x72, if error == 0 { 1 } else { 0xb }, 0x00, 0x1d, 0, 0, 0, 14];
    sense.extend([0x09, 12, 1, error, count_high, count, d, a, e, b, f, c, 0x40, status]);
    sense
}

#[test]
fn registers_come_back() {
    let sense = returned(0, 0x8001, 0x1234_5678_9abc, 0x50);
    let registers = Registers::parse(&sense).expect("a descriptor");
    let want = Registers { error: 0, status: 0x50, count: 0x8001, lba: 0x1234_5678_9abc, device: 0x40 };
    assert_eq!(registers, want);

    let mut short = sense.clone();
    // EXTEND is 0: the upper halves aren't said. LBA bits 27:24 are in the device register.
    (short[10], short[20]) = (0, 0x4f);
    let registers = Registers::parse(&short).expect("a descriptor");
    assert_eq!((registers.count, registers.lba, registers.lba_28()), (1, 0x78_9abc, 0xf78_9abc));

    let behind =
        [&[0x72, 1, 0, 0x1d, 0, 0, 0, 26][..], &[0x00, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &sense[8..]].concat();
    assert_eq!(Registers::parse(&behind), Some(want), "behind another descriptor");
    for (name, sense) in [
        ("nothing", vec![]),
        ("fixed format", vec![0x70, 0, 1, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0]),
        ("cut", sense[..20].to_vec()),
        ("says that it's shorter", [&sense[..7], &[4], &sense[8..]].concat()),
    ] {
        assert_eq!(Registers::parse(&sense), None, "{name}");
    }
}

#[test]
fn what_became_of_a_command() {
    let completion = |status, sense: &[u8]| scsi::Completion { status, sense: sense.to_vec(), transferred: 0 };
    for (name, completion, want) in [
        ("good", completion(0, &[]), Ok(false)),
        ("good, with registers", completion(2, &returned(0, 0, 0, 0x50)), Ok(true)),
        (
            "good, and no registers",
            completion(2, &[0x70, 0, 1, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0]),
            Ok(false),
        ),
        (
            "aborted",
            completion(2, &returned(4, 0, 0, 0x51)),
            Err("the drive aborted the command (ATA status 51h, error 04h)"),
        ),
        (
            "broken",
            completion(2, &returned(4, 0, 0, 0x71)),
            Err("device fault: the drive is broken (ATA status 71h, error 04h)"),
        ),
        (
            "unknown to the translator",
            completion(2, &[0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]),
            Err("the drive doesn't know this command (SCSI sense key 5h, code 20h/00h)"),
        ),
        ("busy", completion(8, &[]), Err("the drive is busy (SCSI status 08h)")),
    ] {
        let got = outcome(&completion).map(|registers| registers.is_some()).map_err(|failure| failure.to_string());
        assert_eq!(got, want.map_err(str::to_owned), "{name}");
    }
}

#[test]
fn how_a_sanitize_is_going() {
    use SanitizeState::{Failed, Frozen, Idle, Running};
    let state = |error, count, lba| {
        let status = if error == 0 { 0x50 } else { 0x51 };
        let completion = scsi::Completion { status: 2, sense: returned(error, count, lba, status), transferred: 0 };
        SanitizeState::of(outcome(&completion)).map_err(|unknown| unknown.to_string())
    };
    for (name, state, want) in [
        ("never", state(0, 0, 0xffff), Ok(Idle { succeeded: false })),
        ("succeeded", state(0, 0x8000, 0xffff), Ok(Idle { succeeded: true })),
        ("half-way", state(0, 0x4000, 0x8000), Ok(Running(0x8000))),
        ("frozen", state(0, 0xa000, 0xffff), Ok(Frozen)),
        ("antifreeze", state(0, 0x1000, 0xffff), Ok(Idle { succeeded: false })),
        ("failed", state(4, 0, 1), Ok(Failed)),
        ("failed, without a reason", state(4, 0, 0), Ok(Failed)),
        ("not supported", state(4, 0, 2), Err("the drive aborted the command (ATA status 51h, error 04h)".to_owned())),
    ] {
        assert_eq!(state, want, "{name}");
    }
    assert_eq!(SanitizeState::of(Ok(None)), Err(SanitizeUnknown::NoRegisters));
}

proptest! {
    #[test]
    fn any_bytes(page in proptest::collection::vec(any::<u8>(), 0..600), valid: bool) {
        let mut page = page;
        if valid && page.len() > 167 {
            // Words 0 and 83, so that more is looked at.
            (page[1], page[167]) = (page[1] & 0x7f, page[167] & 0x3f | 0x40);
        }
        if let Some(identity) = Identity::parse(&page) {
            prop_assert!(!identity.serial.is_empty() && identity.serial.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert!(identity.size_bytes > 0 && identity.size_bytes % u64::from(identity.block_bytes) == 0);
        }
        prop_assert_ne!(highest_factory_sector(&page), Some(0));
    }

    #[test]
    fn any_sense(sense in proptest::collection::vec(any::<u8>(), 0..80), described: bool) {
        let head = if described { vec![0x72, 1, 0, 0x1d, 0, 0, 0, 60] } else { vec![] };
        let completion = scsi::Completion { status: 2, sense: [head, sense].concat(), transferred: 0 };
        let outcome = outcome(&completion);
        match &outcome {
            Ok(registers) => prop_assert!(registers.is_none_or(|r| !r.failed() && r.lba >> 48 == 0)),
            Err(failure) => prop_assert!(!failure.to_string().is_empty()),
        }
        let _ = SanitizeState::of(outcome);
    }
}
