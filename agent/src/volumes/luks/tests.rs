use std::io::Write as _;
use std::process::{Command, Output};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::*;

const MIB: u64 = 1 << 20;
const UUID: Uuid = Uuid::from_u128(0x0102_0304_0506_4708_890a_0b0c_0d0e_0f10);
const PLENTY: u64 = 1 << 30;

fn new(bytes: u64) -> New {
    New { uuid: UUID, label: "data".into(), bytes }
}

fn phrase(text: &str) -> Secret {
    Secret::passphrase(Zeroizing::new(text.into())).expect("a good passphrase")
}

fn random() -> Secret {
    // As key files may: it begins like a text with a line end.
    let mut key = [0x9c; 32];
    key[..4].copy_from_slice(b"ab\n\0");
    Secret::random(Zeroizing::new(key))
}

fn device(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().expect("temporary file");
    file.as_file().set_len(bytes).expect("sparse file");
    file
}

fn key_file(secret: &Secret) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("temporary file");
    file.write_all(secret.bytes()).expect("written");
    file
}

fn cryptsetup(device: &NamedTempFile, key: Option<&NamedTempFile>, arguments: &[&str]) -> Output {
    let mut command = Command::new("cryptsetup");
    command.args(arguments).arg("--batch-mode");
    if let Some(key) = key {
        command.arg("--key-file").arg(key.path());
    }
    command.arg(device.path()).output().expect("cryptsetup runs; it is in the Debian package cryptsetup-bin")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Where all random bytes are sevens.
fn composed(secret: &Secret) -> Made {
    let mut sevens = |buffer: &mut [u8]| {
        buffer.fill(7);
        Ok(())
    };
    compose(&new(20 * MIB), secret, &mut sevens).expect("made")
}

/// The volume key as cryptsetup finds it.
fn dumped_key(device: &NamedTempFile, key: &NamedTempFile) -> String {
    let dump = cryptsetup(device, Some(key), &["luksDump", "--dump-volume-key"]);
    let text = said(&dump);
    assert!(dump.status.success(), "{text}");
    let (_, hex) = text.split_once("MK dump:").expect("a dump of the key");
    hex.chars().filter(char::is_ascii_hexdigit).collect()
}

#[test]
fn cryptsetup_takes_what_is_made_here() {
    let words = || phrase("correct horse battery stäple");
    for (name, bytes, secret, other, kdf, sector) in [
        ("passphrase", 20 * MIB, words(), phrase("correct horse"), "argon2id", 4096),
        ("random key", 20 * MIB, random(), words(), "pbkdf2", 4096),
        ("large, with an odd end", (3 << 40) + 512, random(), words(), "pbkdf2", 512),
    ] {
        let device = device(bytes);
        // A keyslot of a former volume must not survive.
        device.as_file().write_all_at(&[0xaa; 4096], 8 * MIB).expect("written");
        let made = make(device.as_file(), &new(bytes), &secret).expect(name);
        let (right, wrong) = (key_file(&secret), key_file(&other));

        let id = cryptsetup(&device, None, &["luksUUID"]);
        assert_eq!(said(&id).trim(), UUID.to_string(), "{name}");
        let dump = said(&cryptsetup(&device, None, &["luksDump"]));
        for line in [
            "Version:       \t2",
            "Epoch:         \t1",
            "Metadata area: \t16384 [bytes]",
            "Keyslots area: \t16744448 [bytes]",
            "Label:         \tdata",
            "offset: 16777216 [bytes]",
            "length: (whole device)",
            "cipher: aes-xts-plain64",
            &format!("sector: {sector} [bytes]"),
            "Cipher key: 512 bits",
            &format!("PBKDF:      {kdf}"),
            "Area offset:32768 [bytes]",
            "Area length:258048 [bytes]",
        ] {
            assert!(dump.contains(line), "{name}: no {line:?} in {dump}");
        }
        let open = |key| cryptsetup(&device, Some(key), &["open", "--test-passphrase", "--debug"]);
        let opened = open(&right);
        assert!(opened.status.success(), "{name}: {}", said(&opened));
        // Either copy that is damaged would be repaired, and that be said.
        assert!(!said(&opened).contains("ecover"), "{name}: {}", said(&opened));
        assert_eq!(open(&wrong).status.code(), Some(2), "{name}: another secret");
        assert_eq!(dumped_key(&device, &right), *made.key.hex(), "{name}");
        let mut old = [0; 4096];
        device.as_file().read_exact_at(&mut old, 8 * MIB).expect("read");
        assert_eq!(old, [0; 4096], "{name}");

        let header = read(device.as_file()).expect(name);
        assert_eq!((header.uuid(), header.label()), (UUID, "data"), "{name}");
        let unlocked = unlock(device.as_file(), &header, &secret, PLENTY).expect(name);
        assert_eq!(unlocked.key.hex(), made.key.hex(), "{name}");
        let error = unlock(device.as_file(), &header, &other, PLENTY).expect_err(name).to_string();
        assert!(error.ends_with("keyslot \"0\" belongs to another secret"), "{name}: {error}");
    }
}

#[test]
fn what_cryptsetup_makes_is_opened_here() {
    const PBKDF2: &[&str] = &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    const ARGON2: &[&str] =
        &["--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768", "--pbkdf-parallel", "3", "--pbkdf"];
    let secret = phrase("a passphrase");
    let key = key_file(&secret);
    for (name, arguments, want) in [
        ("argon2id", [ARGON2, &["argon2id"]].concat(), (4096, 16 * MIB)),
        ("argon2i", [ARGON2, &["argon2i", "--sector-size", "512"]].concat(), (512, 16 * MIB)),
        ("pbkdf2", PBKDF2.to_vec(), (4096, 16 * MIB)),
        ("sha512", [PBKDF2, &["--hash", "sha512"]].concat(), (4096, 16 * MIB)),
        ("AES-128", [PBKDF2, &["--key-size", "256"]].concat(), (4096, 16 * MIB)),
        (
            "large headers",
            [PBKDF2, &["--luks2-metadata-size", "64k", "--luks2-keyslots-size", "512k", "--offset", "8192"]].concat(),
            (4096, 4 * MIB),
        ),
    ] {
        let device = device(24 * MIB);
        let format = ["luksFormat", "--type", "luks2", "--label", "theirs"];
        let made = cryptsetup(&device, Some(&key), &[&format, &arguments[..]].concat());
        assert!(made.status.success(), "{name}: {}", said(&made));
        let header = read(device.as_file()).expect(name);
        assert_eq!(header.label(), "theirs", "{name}");
        let unlocked = unlock(device.as_file(), &header, &secret, 32 * MIB).expect(name);
        assert_eq!(*unlocked.key.hex(), dumped_key(&device, &key), "{name}");
        assert_eq!((unlocked.sector, unlocked.offset, unlocked.size), (want.0, want.1, SegmentSize::Dynamic), "{name}");
    }
}

#[test]
fn a_second_key_and_a_second_copy_do() {
    let device = device(24 * MIB);
    let (first, second) = (random(), phrase("another"));
    make(device.as_file(), &new(24 * MIB), &first).expect("made");
    let added = Command::new("cryptsetup")
        .args(["luksAddKey", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"])
        .arg(key_file(&first).path())
        .arg(device.path())
        .arg(key_file(&second).path())
        .output()
        .expect("cryptsetup runs; it is in the Debian package cryptsetup-bin");
    assert!(added.status.success(), "{}", said(&added));
    let header = read(device.as_file()).expect("a header");
    for secret in [&first, &second] {
        unlock(device.as_file(), &header, secret, PLENTY).expect("either");
    }
    // The first copy is what a careless partitioning tool writes over.
    device.as_file().write_all_at(&[0; 8192], 0).expect("written");
    let again = read(device.as_file()).expect("the second copy");
    assert_eq!(again, header);
    unlock(device.as_file(), &again, &second, PLENTY).expect("either");
}

#[test]
fn what_is_not_known_is_refused_in_words() {
    let secret = phrase("a passphrase");
    let key = key_file(&secret);
    let made = |arguments: &[&str]| {
        let device = device(24 * MIB);
        let quick = ["luksFormat", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let made = cryptsetup(&device, Some(&key), &[&quick, arguments].concat());
        assert!(made.status.success(), "{}", said(&made));
        device
    };
    let ours = |bytes: u64| {
        let device = device(bytes);
        make(device.as_file(), &new(bytes), &secret).expect("made");
        device
    };
    let damaged = ours(20 * MIB);
    for at in [4096, (16 << 10) + 4096] {
        damaged.as_file().write_all_at(b"x", at).expect("written");
    }
    for (name, device, memory, want) in [
        ("nothing", device(MIB), PLENTY, "there is no LUKS volume"),
        ("too small for anything", device(100), PLENTY, "there is no LUKS volume"),
        ("LUKS1", made(&["--type", "luks1"]), PLENTY, "has version 1 of the format, this agent knows 2"),
        ("damaged", damaged, PLENTY, "first its checksum is wrong, second its checksum is wrong; put one back"),
        (
            "another cipher",
            made(&["--type", "luks2", "--cipher", "aes-cbc-essiv:sha256"]),
            PLENTY,
            "its cipher is \"aes-cbc-essiv:sha256\", where this agent knows aes-xts-plain64",
        ),
        (
            "another hash",
            made(&["--type", "luks2", "--hash", "ripemd160"]),
            PLENTY,
            "no digest|\"ripemd160\" isn't known",
        ),
        (
            "too little memory",
            ours(20 * MIB),
            60 * MIB,
            "keyslot \"0\": it takes 64 MiB of memory, here are 60 to spare",
        ),
    ] {
        let opened = read(device.as_file()).and_then(|header| unlock(device.as_file(), &header, &secret, memory));
        let error = opened.expect_err(name).to_string();
        assert!(want.split('|').any(|want| error.contains(want)), "{name}: {error}");
    }
}

#[test]
fn what_can_not_be_made_is_refused_before() {
    for (name, label, bytes, want) in [
        ("smallest", "", 16 * MIB + 512, ""),
        ("nothing but headers", "", 16 * MIB, "more than 16777216 bytes in whole sectors of 512; here are 16777216"),
        ("half a sector", "", 20 * MIB + 100, "here are 20971620"),
        ("longest label", &*"l".repeat(47), 20 * MIB, ""),
        ("too long a label", &*"l".repeat(48), 20 * MIB, "at most 47 bytes"),
        ("NUL", "a\0", 20 * MIB, "none of them NUL"),
    ] {
        let found = New { uuid: UUID, label: label.into(), bytes }.check().map_err(|e| e.to_string()).err();
        let found = found.unwrap_or_default();
        assert!(found.contains(want) && found.is_empty() == want.is_empty(), "{name}: {found}");
    }
    for (name, text, good) in [
        ("ordinary", "a b c ä", true),
        ("none", "", false),
        ("longest", &*"p".repeat(512), true),
        ("too long", &*"p".repeat(513), false),
        ("with a line end", "a\nb", false),
        ("with a NUL", "a\0b", false),
    ] {
        assert_eq!(Secret::passphrase(Zeroizing::new(text.into())).is_ok(), good, "{name}");
    }
}

#[test]
fn the_same_random_bytes_make_the_same_volume() {
    let compose = |seed: u8| {
        let mut next = seed;
        let mut counter = |buffer: &mut [u8]| {
            buffer.iter_mut().for_each(|byte| {
                next = next.wrapping_mul(5).wrapping_add(3);
                *byte = next;
            });
            Ok(())
        };
        let made = super::compose(&new(20 * MIB), &random(), &mut counter).expect("made");
        (made.headers, made.area)
    };
    assert!(compose(1) == compose(1));
    assert!(compose(1) != compose(2));
}

#[test]
fn the_newer_copy_counts() {
    let made = composed(&random());
    let header = header::read(&mut |at, length| slice(&made.headers[0].1, at, length)).expect("the first alone");
    let copy = |label: &str, sequence, at| {
        let binary = Binary { label: label.into(), sequence, ..header.binary.clone() };
        header::emit(&binary, &header.metadata, at, [1; 64])
    };
    let broken = |mut copy: Vec<u8>| {
        copy[5000] ^= 1;
        copy
    };
    for (name, first, second, want) in [
        ("both", copy("a", 3, 0), copy("b", 3, COPY_BYTES), "a"),
        ("second is newer", copy("a", 3, 0), copy("b", 4, COPY_BYTES), "b"),
        ("second is newer and broken", copy("a", 3, 0), broken(copy("b", 4, COPY_BYTES)), "a"),
        ("first is broken", broken(copy("a", 5, 0)), copy("b", 4, COPY_BYTES), "b"),
        ("second was made for another place", copy("a", 3, 0), copy("b", 4, 2 * COPY_BYTES), "a"),
    ] {
        let device = [first, second].concat();
        let found = header::read(&mut |at, length| slice(&device, at, length)).expect(name);
        assert_eq!(found.label(), want, "{name}");
    }
}

/// What the JSON says decides what is done, so each of its fields is turned once.
#[test]
fn metadata_are_judged_field_by_field() {
    let made = composed(&random());
    let device = [&made.headers[0].1[..], &made.headers[1].1, &made.area].concat();
    let header = header::read(&mut |at, length| slice(&device, at, length)).expect("a header");
    let good = serde_json::to_value(&header.metadata).expect("JSON");
    let file = NamedTempFile::new().expect("temporary file");
    file.as_file().write_all_at(&device, 0).expect("written");
    for (name, path, value, want) in [
        ("as it is", "/tokens", json!({}), ""),
        ("a token", "/tokens", json!({"0": {"type": "systemd-tpm2", "keyslots": ["0"]}}), ""),
        ("nothing required", "/config/requirements", json!({"mandatory": []}), ""),
        (
            "half re-encrypted",
            "/config/requirements",
            json!({"mandatory": ["online-reencrypt-v2"]}),
            "what this agent doesn't know: {\"mandatory\":[\"online-reencrypt-v2\"]}",
        ),
        ("two segments", "/segments/1", good["segments"]["0"].clone(), "2 segments instead of one"),
        ("with authentication", "/segments/0/integrity", json!({"type": "hmac(sha256)"}), "without authentication"),
        ("not encrypted", "/segments/0/type", json!("linear"), "something else than encrypted"),
        ("no offset", "/segments/0/offset", json!(16_777_216), "something else than encrypted"),
        ("odd sectors", "/segments/0/sector_size", json!(0), "in sectors of 0"),
        ("odd offset", "/segments/0/offset", json!("100"), "begin at byte 100"),
        ("no digest", "/digests", json!({}), "no digest"),
        ("a digest of something else", "/digests/0/segments", json!([]), "no digest"),
        (
            "an empty digest",
            "/digests/0/digest",
            json!(""),
            "the digest of its key has 0 bytes, which sha256 never has",
        ),
        ("a digest cut short", "/digests/0/digest", json!("AAAA"), "the digest of its key has 3 bytes"),
        ("endless digest", "/digests/0/iterations", json!(u32::MAX), "the digest of its key: 4294967295 iterations"),
        ("unknown digest", "/digests/0/hash", json!("sha1"), "the hash \"sha1\" isn't known here"),
        ("another salt", "/digests/0/salt", json!("AAAA"), "belongs to another secret"),
        ("no keyslot", "/digests/0/keyslots", json!([]), "it has no keyslot"),
        ("keyslot of another type", "/keyslots/0/type", json!("reencrypt"), "it's of type \"reencrypt\"/\"luks1\""),
        ("not to be tried", "/keyslots/0/priority", json!(0), "it has no keyslot"),
        ("first to be tried", "/keyslots/0/priority", json!(2), ""),
        ("unknown derivation", "/keyslots/0/kdf/type", json!("scrypt"), "its key derivation isn't known here"),
        ("endless derivation", "/keyslots/0/kdf/iterations", json!(u32::MAX), "iterations aren't between"),
        ("no derivation", "/keyslots/0/kdf/iterations", json!(0), "iterations aren't between"),
        (
            "passes without end",
            "/keyslots/0/kdf",
            json!({"type": "argon2id", "time": u32::MAX, "memory": 65536, "cpus": 1, "salt": ""}),
            "would take too long",
        ),
        (
            "memory without end",
            "/keyslots/0/kdf",
            json!({"type": "argon2id", "time": 1, "memory": 64 << 20, "cpus": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}),
            "it takes 65536 MiB of memory, here are 1024 to spare",
        ),
        (
            "lanes without end",
            "/keyslots/0/kdf",
            json!({"type": "argon2id", "time": 1, "memory": 1024, "cpus": u32::MAX, "salt": ""}),
            "its costs are odd",
        ),
        ("another volume key", "/keyslots/0/key_size", json!(u64::MAX), "isn't known here"),
        ("stripes without end", "/keyslots/0/af/stripes", json!(u32::MAX), "isn't known here"),
        ("another area key", "/keyslots/0/area/key_size", json!(16), "a key of 16 bytes"),
        ("area behind the end", "/keyslots/0/area/offset", json!("18446744073709551615"), "its area can't be read"),
        ("area too small", "/keyslots/0/area/size", json!("4096"), "its area is too small"),
    ] {
        let mut turned = good.clone();
        let (parent, field) = path.rsplit_once('/').expect("a path");
        turned.pointer_mut(parent).and_then(Value::as_object_mut).expect(name).insert(field.into(), value);
        let metadata: Metadata = serde_json::from_value(turned).expect(name);
        let header = Header { binary: header.binary.clone(), metadata };
        let found = unlock(file.as_file(), &header, &random(), PLENTY).map_err(|e| e.to_string()).err();
        let found = found.unwrap_or_default();
        assert!(found.contains(want) && found.is_empty() == want.is_empty(), "{name}: {found}");
    }
}

#[test]
fn the_kernel_is_told_what_to_map() {
    let unlocked = |size, sector| {
        let made = composed(&random());
        Unlocked { size, sector, ..made.unlocked }
    };
    let key = "07".repeat(64);
    for (name, size, sector, device, params, sectors) in [
        ("all of it", SegmentSize::Dynamic, 4096, 20 * MIB, " 1 sector_size:4096", Some(8192)),
        ("small sectors", SegmentSize::Dynamic, 512, 20 * MIB + 512, "", Some(8193)),
        ("half a sector", SegmentSize::Dynamic, 4096, 20 * MIB + 512, " 1 sector_size:4096", None),
        ("smaller than said", SegmentSize::Dynamic, 512, 16 * MIB, "", None),
        ("smaller than its headers", SegmentSize::Dynamic, 512, MIB, "", None),
        ("a part", SegmentSize::Bytes(MIB), 512, 20 * MIB, "", Some(2048)),
        ("more than there is", SegmentSize::Bytes(8 * MIB), 512, 20 * MIB, "", None),
        ("more than can be", SegmentSize::Bytes(u64::MAX), 512, 20 * MIB, "", None),
    ] {
        let unlocked = unlocked(size, sector);
        let want = format!("aes-xts-plain64 {key} 0 259:3 32768{params}");
        assert_eq!(*unlocked.parameters(259, 3), want, "{name}");
        assert_eq!(unlocked.sectors(device).ok(), sectors, "{name}");
        assert_eq!(unlocked.mapping_uuid("root"), "CRYPT-LUKS2-0102030405064708890a0b0c0d0e0f10-root");
    }
}

#[test]
fn secrets_have_no_text_form() {
    let unlocked = composed(&phrase("abracadabra")).unlocked;
    let shown = format!("{:?} {:?} {unlocked:?}", phrase("abracadabra"), random());
    assert!(!shown.contains("abracad") && !shown.contains("7, 7") && !shown.contains("0707"), "{shown}");
}

#[test]
fn spare_memory_is_half_of_what_is_left() {
    for (name, text, want) in [
        ("a machine", "MemTotal:       24000 kB\nMemAvailable:   10240 kB\n", 5 * MIB),
        ("nothing said", "", 0),
        ("nonsense", "MemAvailable: many kB\n", 0),
    ] {
        assert_eq!(spare(text), want, "{name}");
    }
    assert!(spare_memory() > 0, "this machine says");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With a checksum that is right, so that the JSON is looked at.
    #[test]
    fn any_header_is_read_or_refused(
        changes in prop::collection::vec((0usize..2 * 16384, any::<u8>()), 0..40),
        seal in any::<bool>(),
        length in 0usize..=2 * 16384,
    ) {
        let made = composed(&random());
        let mut device = [&made.headers[0].1[..], &made.headers[1].1].concat();
        for (at, value) in changes {
            // Most of a copy is zeros: the fields and the JSON's text are what to turn.
            let at = if at % 4 == 0 { at } else { at / 16384 * 16384 + 4096 + at % 900 };
            device[at] = value;
        }
        device.truncate(length);
        if seal && length >= 16384 {
            device[448..512].fill(0);
            let sum = <sha2::Sha256 as sha2::Digest>::digest(&device[..16384]);
            device[448..480].copy_from_slice(&sum);
        }
        fuzz(&device);
        fuzz(device.get(4096..5000).unwrap_or_default());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        fuzz(&bytes);
    }
}
