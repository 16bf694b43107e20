use proptest::prelude::*;

use super::*;

#[test]
fn identify_controller_of_qemu_7_2() {
    let qemu = Controller::parse(&fixtures::controller("SN-1", 0x010a, 0)).expect("a whole page");
    assert_eq!((&*qemu.serial, &*qemu.model, &*qemu.firmware), ("SN-1", "QEMU NVMe Ctrl", "7.2.22"));
    assert!(qemu.can_format() && qemu.can_manage_namespaces());
    assert!(!qemu.can_crypto_erase() && !qemu.formats_all_namespaces() && !qemu.erases_all_namespaces());
    assert_eq!(qemu.sanitize(), Sanitize::default());
}

#[test]
fn pages_that_name_no_drive() {
    for (name, page) in [
        ("empty", vec![]),
        ("all zeros", vec![0; IDENTIFY_BYTES]),
        ("blank serial", fixtures::controller("", 0x010a, 0)),
        ("cut before FNA", fixtures::controller("SN-1", 0x010a, 0)[..524].to_vec()),
    ] {
        assert_eq!(Controller::parse(&page), None, "{name}");
    }
}

#[test]
fn namespaces() {
    let found = |size_bytes, block_bytes, flbas, dps| {
        let (format, deallocated) = (LbaFormat { flbas, dps }, Deallocated::Unsaid);
        Some(Namespace { size_bytes, block_bytes, format, deallocated })
    };
    for (name, page, want) in [
        ("512-byte blocks", fixtures::namespace(0x1000, 0, 0), found(0x20_0000, 512, 0, 0)),
        ("4096-byte blocks, protected", fixtures::namespace(0x1000, 4, 0b1001), found(0x100_0000, 4096, 4, 9)),
        ("inactive", vec![0; IDENTIFY_BYTES], None),
        ("a format that isn't there", fixtures::namespace(0x1000, 7, 0), None),
        ("more bytes than there are numbers", fixtures::namespace(u64::MAX, 0, 0), None),
        ("cut", fixtures::namespace(0x1000, 4, 0)[..140].to_vec(), None),
    ] {
        assert_eq!(Namespace::parse(&page), want, "{name}");
    }
}

#[test]
fn format_keeps_what_is_there() {
    for (name, flbas, dps, method, want) in [
        ("plain, crypto", 0, 0, SecureErase::Crypto, 0b010 << 9),
        ("plain, user data", 0, 0, SecureErase::UserData, 0b001 << 9),
        ("format 4", 0x04, 0, SecureErase::UserData, 0x204),
        ("extended metadata, type 1 protection first", 0x11, 0x09, SecureErase::UserData, 0x200 | 0x131),
        ("format 17, by the upper bits", 0x21, 0, SecureErase::Crypto, 0x400 | 0x1001),
    ] {
        let command = Command::format(1, LbaFormat { flbas, dps }, method, QUICK);
        assert_eq!((command.opcode, command.nsid, command.cdw10), (0x80, 1, want), "{name}");
    }
}

#[test]
fn what_deallocated_blocks_read_as() {
    for (dlfeat, want) in
        [(0, Deallocated::Unsaid), (0b1_1001, Deallocated::Zeroes), (2, Deallocated::Ones), (7, Deallocated::Unsaid)]
    {
        let mut page = fixtures::namespace(1, 0, 0);
        fixtures::put(&mut page, 33, &[dlfeat]);
        assert_eq!(Namespace::parse(&page).expect("a namespace").deallocated, want, "{dlfeat:#b}");
    }
}

#[test]
fn sanitize_asks_for_one_thing_and_leaves_a_way_out() {
    for (action, want) in [
        (SanitizeAction::ExitFailure, 0x001),
        (SanitizeAction::Block, 0x00a),
        (SanitizeAction::Overwrite, 0x21b),
        (SanitizeAction::Crypto, 0x00c),
    ] {
        let command = Command::sanitize(action);
        assert_eq!((command.opcode, command.nsid, command.cdw10, command.cdw11), (0x84, 0, want, 0), "{action:?}");
    }
}

#[test]
fn sanitize_log() {
    use SanitizeState::{Done, Failed, Never, Running};
    let page = |progress, status, cdw10| fixtures::sanitize_log(progress, status, cdw10);
    for (name, page, want) in [
        ("new", page(0xffff, 0, 0), Some((Never, None, false))),
        ("done, untouched since", page(0xffff, 0x101, 4), Some((Done, Some(SanitizeAction::Crypto), true))),
        ("done, deallocated", page(0xffff, 4, 0x20a), Some((Done, Some(SanitizeAction::Block), false))),
        (
            "half-way, second pass",
            page(0x8000, 0x0a, 3),
            Some((Running(0x8000), Some(SanitizeAction::Overwrite), false)),
        ),
        ("failed", page(0x4000, 3, 2), Some((Failed, Some(SanitizeAction::Block), false))),
        ("of a later revision", page(0, 5, 2), None),
        ("cut", page(0, 1, 2)[..19].to_vec(), None),
    ] {
        let got = SanitizeLog::parse(&page);
        assert_eq!(got.map(|log| (log.state, log.action, log.untouched_since)), want, "{name}");
    }
    let log = SanitizeLog::parse(&page(0, 0, 0)).expect("whole");
    assert_eq!((log.overwrite, log.block), (None, Some(Duration::from_secs(120))));
    assert_eq!(log.crypto, Some(Duration::from_secs(2)));
}

#[test]
fn smart_log() {
    let mut page = vec![0; SMART_BYTES];
    fixtures::put(&mut page, 0, &[0x04, 0x3f, 0x01, 97, 10, 3]);
    fixtures::put(&mut page, 128, &1234u128.to_le_bytes());
    fixtures::put(&mut page, 160, &[0xff; 16]);
    let want = Health {
        percentage_used: 3,
        available_spare: 97,
        critical_warning: 4,
        media_errors: u64::MAX,
        power_on_hours: 1234,
        temperature_celsius: 46,
    };
    assert_eq!(health(&page), Some(want));
    assert_eq!(health(&page[..170]), None);
    fixtures::put(&mut page, 48, &7u128.to_le_bytes());
    fixtures::put(&mut page, 80, &99u128.to_le_bytes());
    assert_eq!(written(&page), Some(Written { data_units: 7, commands: 99 }));
}

#[test]
fn status_in_words() {
    for (status, success, words) in [
        (0x0000, true, "success (NVMe status type 0h, code 00h)"),
        // DNR ("do not retry") and More say nothing about success.
        (0x4001, false, "the drive doesn't know this command (NVMe status type 0h, code 01h)"),
        (0x410a, false, "the drive doesn't offer this format (NVMe status type 1h, code 0ah)"),
        (0x0286, false, "access denied (NVMe status type 2h, code 86h)"),
        (0x07c0, false, "a status of the vendor's own (NVMe status type 7h, code c0h)"),
    ] {
        assert_eq!((Status(status).is_success(), Status(status).to_string().as_str()), (success, words));
    }
}

proptest! {
    #[test]
    fn any_bytes(page in proptest::collection::vec(any::<u8>(), 0..5000), status: u16) {
        let _ = Controller::parse(&page);
        let _ = (health(&page), written(&page), SanitizeLog::parse(&page));
        let _ = Status(status).to_string();
        prop_assert!(namespace_list(&page).len() <= IDENTIFY_BYTES / 4);
        if let Some(namespace) = Namespace::parse(&page) {
            prop_assert!(namespace.size_bytes > 0 && namespace.block_bytes.is_power_of_two());
            // Nothing but the fields that are kept and SES: bits 31:14 are reserved.
            let command = Command::format(1, namespace.format, SecureErase::Crypto, QUICK);
            prop_assert_eq!(command.cdw10 >> 14, 0);
            prop_assert_eq!(command.cdw10 >> 9 & 0b111, 2);
        }
    }
}
