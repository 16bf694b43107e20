use drophammer_protocol::manifest::{ImageFile, MANIFEST_FILE};
use drophammer_protocol::sign::PublicKey;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::verify::{Problem, verify};
use crate::{grub, list};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn ours() -> Vec<PublicKey> {
    vec![PublicKey::of(&key(1))]
}

/// A bootable tar with `files` in it besides.
fn tar_with(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let fixed: [(&str, Vec<u8>); 6] = [
        ("boot/vmlinuz-6.1", b"kernel".to_vec()),
        ("boot/initrd.img-6.1", b"initrd".to_vec()),
        (grub::BOOT_IMG, vec![0x55; 512]),
        (grub::CORE_IMG, b"core".to_vec()),
        (grub::GRUBX64, b"efi".to_vec()),
        ("etc/os-release", b"PRETTY_NAME=\"Test OS\"\n".to_vec()),
    ];
    let files = files.iter().map(|(name, content)| (name.as_str(), content));
    for (name, content) in fixed.iter().map(|(name, content)| (*name, content)).chain(files) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(tar.into_inner()?)
}

/// Bytes that don't compress away, so that an image has frames of some size.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

fn packed(tar: &[u8]) -> Result<(TempDir, Packed)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("rootfs.tar");
    fs::write(&path, tar)?;
    let packed = pack(&path, &dir.path().join("store"), &PackOptions::new("test", "1", "quiet"), &key(1))?;
    Ok((dir, packed))
}

#[test]
fn what_is_packed_verifies_and_is_described() -> Result<()> {
    let tar = tar_with(&[("usr/big".to_owned(), noise(9 << 20))])?;
    let (dir, packed) = packed(&tar)?;
    let manifest = verify(&packed.dir, &ours())?;
    assert_eq!(manifest, packed.manifest);
    assert_eq!(manifest.reference(), "test/1");
    assert_eq!(manifest.description, "Test OS");
    assert_eq!(manifest.created, 1_700_000_000);
    assert_eq!(manifest.chunks.frames.len(), 3);
    assert_eq!(manifest.boot.kernel.path, "/boot/vmlinuz-6.1");
    assert_eq!(manifest.boot.cmdline, "quiet");
    assert!(manifest.boot.initrd.is_some() && manifest.boot.bios.is_some() && manifest.boot.uefi.is_some());
    let frames = fs::read(packed.dir.join(&manifest.chunks.file))?;
    assert!(zstd::decode_all(frames.as_slice())? == tar, "plain zstd unpacks the same tar");

    let listed = list(&dir.path().join("store"), &ours())?;
    let references: Vec<_> = listed.iter().map(|i| (i.reference.as_str(), i.manifest.is_ok())).collect();
    assert_eq!(references, [("test/1", true)], "and no draft is left");
    let listed = list(&dir.path().join("store"), &[PublicKey::of(&key(2))])?;
    assert!(matches!(listed.first().map(|i| &i.manifest), Some(Err(Problem::Signature(_)))));
    Ok(())
}

#[test]
fn the_same_tar_gives_the_same_bytes_from_whatever_form() -> Result<()> {
    let tar = tar_with(&[("usr/big".to_owned(), noise(5 << 20))])?;
    let (_a, first) = packed(&tar)?;
    let (_b, second) = packed(&zstd::encode_all(tar.as_slice(), 1)?)?;
    for file in [MANIFEST_FILE, FRAMES_FILE] {
        assert!(fs::read(first.dir.join(file))? == fs::read(second.dir.join(file))?, "{file}");
    }
    Ok(())
}

#[test]
fn a_version_never_changes() -> Result<()> {
    let tar = tar_with(&[])?;
    let (dir, first) = packed(&tar)?;
    let (store, path) = (dir.path().join("store"), dir.path().join("rootfs.tar"));
    let options = PackOptions::new("test", "1", "quiet");
    let other = dir.path().join("other.tar");
    fs::write(&other, tar_with(&[("new".to_owned(), vec![1])])?)?;
    let before = fs::read(first.dir.join(MANIFEST_FILE))?;
    for (name, tar, options, key, want) in [
        ("the same again", &path, options.clone(), key(1), Ok(true)),
        ("another version", &path, PackOptions::new("test", "2", "quiet"), key(1), Ok(false)),
        ("another tar", &other, options.clone(), key(1), Err("test/1 is published already")),
        ("another key", &path, options.clone(), key(2), Err("manifest.json differs")),
        ("another command line", &path, PackOptions::new("test", "1", ""), key(1), Err("manifest.json differs")),
        ("a name upwards", &path, PackOptions::new("..", "1", ""), key(1), Err("can't be part of")),
        ("a version with a slash", &path, PackOptions::new("test", "1/2", ""), key(1), Err("can't be part of")),
    ] {
        match (pack(tar, &store, &options, &key).map(|p| p.existed), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
            (Err(got), Err(want)) => assert!(format!("{got:#}").contains(want), "{name}: {got:#}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
        assert!(fs::read(first.dir.join(MANIFEST_FILE))? == before, "{name} left what was published");
    }
    // Damage to what is published isn't taken for the same image.
    fs::write(first.dir.join(FRAMES_FILE), b"damaged")?;
    let again = pack(&path, &store, &options, &key(1)).map_err(|e| format!("{e:#}"));
    assert!(again.as_ref().is_err_and(|e| e.contains("rootfs.tar.zst differs")), "{again:?}");
    Ok(())
}

#[test]
fn forms_are_told_by_their_first_bytes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("rootfs.tar");
    for (name, bytes, want) in [
        ("gzip", vec![0x1f, 0x8b, 8, 0], "compressed with gzip"),
        ("xz", vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0], "compressed with xz"),
        ("lz4", vec![0x04, 0x22, 0x4d, 0x18, 0], "compressed with lz4"),
        ("nothing", vec![], "no end mark"),
        ("cut zstd", vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0], "reading the tar"),
    ] {
        fs::write(&path, bytes)?;
        let error = pack(&path, &dir.path().join("store"), &PackOptions::new("x", "1", ""), &key(1)).map(|_| ());
        let said = error.map_err(|e| format!("{e:#}"));
        assert!(said.as_ref().is_err_and(|e| e.contains(want)), "{name}: {said:?}");
    }
    assert_eq!(list(&dir.path().join("store"), &[])?.len(), 0, "a failure publishes nothing");
    Ok(())
}

/// What is done to a published image: its directory, and its manifest to be signed again if changed.
type Damage = fn(&Path, &mut Manifest) -> Result<()>;

fn change(path: &Path, f: impl Fn(&mut Vec<u8>)) -> Result<()> {
    let mut bytes = fs::read(path)?;
    f(&mut bytes);
    Ok(fs::write(path, bytes)?)
}

#[test]
fn every_damage_is_found_and_named() -> Result<()> {
    let tar = tar_with(&[("usr/big".to_owned(), noise(9 << 20))])?;
    let cases: [(&str, Damage, &str); 19] = [
        ("none", |_, _| Ok(()), ""),
        ("a bit of a frame", |dir, _| change(&dir.join(FRAMES_FILE), |b| b[5_000_000] ^= 1), "frame 1 of 3 (at byte"),
        (
            "two frames swapped",
            |dir, m| {
                let (a, b) = (m.chunks.frames[0].clone(), m.chunks.frames[1].clone());
                change(&dir.join(FRAMES_FILE), |bytes| {
                    let (first, second) = (a.length as usize, b.length as usize);
                    bytes[..first + second].rotate_left(first);
                })
            },
            "frame 0 of 3 (at byte 0) was altered",
        ),
        ("frames cut short", |dir, _| change(&dir.join(FRAMES_FILE), |b| b.truncate(b.len() - 1)), "bytes instead of"),
        ("frames made longer", |dir, _| change(&dir.join(FRAMES_FILE), |b| b.push(0)), "bytes instead of"),
        ("frames gone", |dir, _| Ok(fs::remove_file(dir.join(FRAMES_FILE))?), "reading "),
        ("manifest gone", |dir, _| Ok(fs::remove_file(dir.join(MANIFEST_FILE))?), "reading "),
        (
            "manifest cut short",
            |dir, _| change(&dir.join(MANIFEST_FILE), |b| b.truncate(200)),
            "isn't a signed manifest",
        ),
        ("manifest with more behind it", |dir, _| change(&dir.join(MANIFEST_FILE), |b| b.push(b'x')), "isn't a signed"),
        (
            "a bit of the manifest",
            |dir, _| {
                change(&dir.join(MANIFEST_FILE), |b| {
                    let at = b.windows(5).position(|w| w == b"quiet").unwrap_or(0);
                    b[at] ^= 1;
                })
            },
            "the signature doesn't match",
        ),
        (
            "a digit of the signature",
            |dir, _| {
                change(&dir.join(MANIFEST_FILE), |b| {
                    let at = b.len() - 10;
                    b[at] = if b[at] == b'0' { b'1' } else { b'0' };
                })
            },
            "the signature doesn't match",
        ),
        (
            "signed by somebody else",
            |dir, m| Ok(fs::write(dir.join(MANIFEST_FILE), serde_json::to_vec(&Signed::seal(m, &key(2)))?)?),
            "none of the trusted keys",
        ),
        (
            "another version's",
            |_, m| {
                m.version = "2".to_owned();
                Ok(())
            },
            "that of test/2, not of test/1",
        ),
        (
            "a file upwards",
            |_, m| {
                m.chunks.file = "../rootfs.tar.zst".to_owned();
                Ok(())
            },
            "is not a plain file name",
        ),
        (
            "a hole between frames",
            |_, m| {
                m.chunks.frames[1].offset += 1;
                Ok(())
            },
            "doesn't start where the one before it ends",
        ),
        (
            "a frame that unpacks to less",
            |_, m| {
                m.chunks.frames[0].unpacked -= 1;
                m.chunks.tar_bytes -= 1;
                Ok(())
            },
            "frame 0 doesn't unpack to",
        ),
        (
            "another tar's hash",
            |_, m| {
                m.chunks.tar_sha256 = "00".repeat(32);
                Ok(())
            },
            "isn't the one of the manifest",
        ),
        (
            "another kernel's hash",
            |_, m| {
                m.boot.kernel.sha256 = "00".repeat(32);
                Ok(())
            },
            "/boot/vmlinuz-6.1 in the image isn't the file",
        ),
        (
            "another file as initrd",
            |_, m| {
                m.boot.initrd = Some(ImageFile { path: "/boot/vmlinuz-6.1".into(), ..m.boot.kernel.clone() });
                Ok(())
            },
            "names other files for starting",
        ),
    ];
    for (name, damage, want) in cases {
        let (_dir, packed) = packed(&tar)?;
        let original = packed.manifest.into_inner();
        let mut manifest = original.clone();
        damage(&packed.dir, &mut manifest)?;
        if manifest != original {
            // The builder's own mistake, or a stolen key: the signature alone doesn't make an image whole.
            fs::write(packed.dir.join(MANIFEST_FILE), serde_json::to_vec(&Signed::seal(&manifest, &key(1)))?)?;
        }
        let said = match verify(&packed.dir, &ours()) {
            Ok(_) => String::new(),
            Err(e) => format!("{:#}", anyhow::Error::from(e)),
        };
        assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{name}: {said}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_files_come_out_as_they_went_in(
        files in proptest::collection::btree_map("[a-z]{1,8}", proptest::collection::vec(any::<u8>(), 0..5000), 0..8)
    ) {
        let files: Vec<_> = files.into_iter().map(|(name, content)| (format!("data-{name}"), content)).collect();
        let tar = tar_with(&files).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let (_dir, packed) = packed(&tar).map_err(|e| TestCaseError::fail(format!("{e:#}")))?;
        let manifest = verify(&packed.dir, &ours()).map_err(|e| TestCaseError::fail(format!("{e}")))?;
        let frames = fs::read(packed.dir.join(&manifest.chunks.file))?;
        prop_assert_eq!(zstd::decode_all(frames.as_slice())?, tar);
    }
}
