use std::fs;

use drophammer_protocol::manifest::{ImageFile, MANIFEST_FILE};
use drophammer_protocol::sign::PublicKey;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

use super::*;
use crate::chunks::tests::noise;
use crate::verify::{Problem, verify};
use crate::{grub, list};

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn ours() -> Vec<PublicKey> {
    vec![PublicKey::of(&key(1))]
}

/// A bootable tar with `files` in it besides.
pub(crate) fn tar_with(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
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

pub(crate) fn packed(tar: &[u8]) -> Result<(TempDir, Packed)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("rootfs.tar");
    fs::write(&path, tar)?;
    let packed = pack_to(&path, &dir.path().join("store"), &PackOptions::new("test", "1", "quiet"), &key(1))?;
    Ok((dir, packed))
}

pub(crate) fn pack_to(tar: &Path, store: &Path, options: &PackOptions, key: &SigningKey) -> Result<Packed> {
    pack(tar, store, options, key, &|_| {})
}

/// The bytes of a form, put together from the store.
fn unpacked(packed: &Packed, chunks: &[Chunk]) -> Result<Vec<u8>> {
    let store = packed.dir.ancestors().nth(2).context("a store")?;
    let mut bytes = Vec::new();
    for chunk in chunks {
        let pack = fs::read(store::pack_path(store, &packed.manifest.packs[chunk.pack as usize]))?;
        let start = usize::try_from(chunk.offset)?;
        bytes.extend(zstd::decode_all(&pack[start..start + chunk.length as usize])?);
    }
    Ok(bytes)
}

fn own_pack(packed: &Packed) -> PathBuf {
    store::pack_path(packed.dir.ancestors().nth(2).unwrap_or(&packed.dir), &packed.manifest.packs[0])
}

#[test]
fn what_is_packed_verifies_and_is_described() -> Result<()> {
    let tar = tar_with(&[("usr/big".to_owned(), noise(9 << 20, 0))])?;
    let (dir, packed) = packed(&tar)?;
    let manifest = verify(&packed.dir, &ours())?;
    assert_eq!(manifest, packed.manifest);
    assert_eq!(manifest.reference(), "test/1");
    assert_eq!(manifest.description, "Test OS");
    assert_eq!(manifest.created, 1_700_000_000);
    assert_eq!(manifest.boot.kernel.path, "/boot/vmlinuz-6.1");
    assert_eq!(manifest.boot.cmdline, "quiet");
    assert!(manifest.boot.initrd.is_some() && manifest.boot.bios.is_some() && manifest.boot.uefi.is_some());
    let form = manifest.tar.as_ref().context("a tar form")?;
    assert!(unpacked(&packed, &form.chunks)? == tar, "the tar form is the tar");
    assert_eq!(form.sha256, hex::encode(Sha256::digest(&tar)));

    let listed = list(&dir.path().join("store"), &ours())?;
    let references: Vec<_> = listed.iter().map(|i| (i.reference.as_str(), i.manifest.is_ok())).collect();
    assert_eq!(references, [("test/1", true)], "and no draft is left");
    let listed = list(&dir.path().join("store"), &[PublicKey::of(&key(2))])?;
    assert!(matches!(listed.first().map(|i| &i.manifest), Some(Err(Problem::Manifest { .. }))));
    for place in ["test", PACKS] {
        let there = fs::read_dir(dir.path().join("store").join(place))?.count();
        assert_eq!(there, 1, "nothing is left over in {place}");
    }
    Ok(())
}

#[test]
fn the_block_form_is_a_file_system_with_the_tars_files() -> Result<()> {
    let big = [noise(5 << 20, 0), vec![0; 1 << 20], noise(100, 0)].concat();
    let tar = tar_with(&[("usr/big".to_owned(), big.clone())])?;
    let (dir, packed) = packed(&tar)?;
    let form = packed.manifest.block.as_ref().context("a block form")?;
    let image = dir.path().join("image");
    let file = File::create(&image)?;
    file.set_len(form.bytes)?;
    let mut zeros = 0;
    for piece in &form.pieces {
        match piece {
            Piece::Chunk { at, chunk } => file.write_all_at(&unpacked(&packed, std::slice::from_ref(chunk))?, *at)?,
            Piece::Zeros { length, .. } => zeros += length,
        }
    }
    assert!(zeros >= 1 << 20, "zeros are said, not sent");
    assert_eq!(hex::encode(Sha256::digest(fs::read(&image)?)), form.sha256);
    let e2fsck = std::process::Command::new("e2fsck").arg("-fn").arg(&image).output()?;
    assert!(e2fsck.status.success(), "{e2fsck:?}");
    let copy = dir.path().join("copy");
    let dump = format!("dump /usr/big {}", copy.display());
    std::process::Command::new("debugfs").args(["-R", &dump]).arg(&image).output()?;
    assert!(fs::read(copy)? == big);
    Ok(())
}

#[test]
fn the_same_tar_gives_the_same_bytes_from_whatever_form() -> Result<()> {
    let tar = tar_with(&[("usr/big".to_owned(), noise(5 << 20, 0))])?;
    let (_a, first) = packed(&tar)?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    for encoder in [&mut gzip as &mut dyn std::io::Write, &mut xz, &mut lz4] {
        encoder.write_all(&tar)?;
    }
    for (name, form) in [
        ("zstd", zstd::encode_all(tar.as_slice(), 1)?),
        ("gzip", gzip.finish()?),
        ("xz", xz.finish()?),
        ("lz4", lz4.finish()?),
    ] {
        let (_b, second) = packed(&form).with_context(|| name)?;
        assert!(fs::read(first.dir.join(MANIFEST_FILE))? == fs::read(second.dir.join(MANIFEST_FILE))?, "{name}");
        assert!(fs::read(own_pack(&first))? == fs::read(own_pack(&second))?, "{name}");
    }
    Ok(())
}

#[test]
fn a_new_version_brings_only_what_is_new() -> Result<()> {
    let common = ("usr/big".to_owned(), noise(30 << 20, 0));
    let (dir, first) = packed(&tar_with(std::slice::from_ref(&common))?)?;
    let path = dir.path().join("second.tar");
    fs::write(&path, tar_with(&[("etc/new".to_owned(), noise(10_000, 0)), common])?)?;
    let store = dir.path().join("store");
    let second = pack_to(&path, &store, &PackOptions::new("test", "2", "quiet"), &key(1))?;
    assert!(second.new_bytes < first.new_bytes / 3, "{} of {} bytes are new", second.new_bytes, first.new_bytes);
    verify(&second.dir, &ours())?;
    // What somebody else signed isn't built upon.
    let third = pack_to(&path, &store, &PackOptions::new("test", "3", "quiet"), &key(2))?;
    assert!(third.new_bytes > first.new_bytes / 2);
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
        ("better compressed", &path, PackOptions { level: 19, ..options.clone() }, key(1), Ok(true)),
        ("another version", &path, PackOptions::new("test", "2", "quiet"), key(1), Ok(false)),
        ("another tar", &other, options.clone(), key(1), Err("test/1 is published already")),
        ("another key", &path, options.clone(), key(2), Err("not by this key")),
        ("another command line", &path, PackOptions::new("test", "1", ""), key(1), Err("what starts it differs")),
        (
            "started another way",
            &path,
            PackOptions { boot: Some(BootBy::Reboot), ..options.clone() },
            key(1),
            Err("what starts it differs"),
        ),
        (
            "another expiry",
            &path,
            PackOptions { expires: Some(5), ..options.clone() },
            key(1),
            Err("its expiry differs"),
        ),
        (
            "another form",
            &path,
            PackOptions { forms: Forms::Tar, ..options.clone() },
            key(1),
            Err("its content differs"),
        ),
        ("a name upwards", &path, PackOptions::new("..", "1", ""), key(1), Err("can't be part of")),
        ("the name of the packs", &path, PackOptions::new("packs", "1", ""), key(1), Err("can't be part of")),
        ("a version with a slash", &path, PackOptions::new("test", "1/2", ""), key(1), Err("can't be part of")),
    ] {
        match (pack_to(tar, &store, &options, &key).map(|p| p.existed), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
            (Err(got), Err(want)) => assert!(format!("{got:#}").contains(want), "{name}: {got:#}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
        assert!(fs::read(first.dir.join(MANIFEST_FILE))? == before, "{name} left what was published");
    }
    // What isn't asked for isn't in a manifest: those of a time when it couldn't be are still in the one form.
    let options = PackOptions { boot: Some(BootBy::Reboot), ..PackOptions::new("test", "3", "quiet") };
    let rebooted = pack_to(&path, &store, &options, &key(1))?;
    assert_eq!(verify(&rebooted.dir, &ours())?.boot.by, Some(BootBy::Reboot));
    for (manifest, want) in [(before, false), (fs::read(rebooted.dir.join(MANIFEST_FILE))?, true)] {
        assert_eq!(String::from_utf8(manifest)?.contains(r#"\"by\":"#), want);
    }
    // Of damaged packs nothing is reused.
    fs::write(own_pack(&first), b"damaged")?;
    let again = pack_to(&path, &store, &PackOptions::new("test", "4", "quiet"), &key(1))?;
    verify(&again.dir, &ours())?;
    verify(&first.dir, &ours())?;
    Ok(())
}

#[test]
fn forms_are_told_by_their_first_bytes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("rootfs.tar");
    for (name, bytes, want) in [
        ("bzip2", b"BZh91AY".to_vec(), "compressed with bzip2"),
        ("nothing", vec![], "no end mark"),
        ("cut zstd", vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0], "reading the tar"),
        ("cut gzip", vec![0x1f, 0x8b, 8, 0], "reading the tar"),
        ("cut xz", vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0], "reading the tar"),
        ("cut lz4", vec![0x04, 0x22, 0x4d, 0x18, 0], "reading the tar"),
    ] {
        fs::write(&path, bytes)?;
        let error = pack_to(&path, &dir.path().join("store"), &PackOptions::new("x", "1", ""), &key(1)).map(|_| ());
        let said = error.map_err(|e| format!("{e:#}"));
        assert!(said.as_ref().is_err_and(|e| e.contains(want)), "{name}: {said:?}");
    }
    assert_eq!(list(&dir.path().join("store"), &[])?.len(), 0, "a failure publishes nothing");
    Ok(())
}

/// What is done to a published image: its directory, its pack, and its manifest, to be signed again if changed.
type Damage = fn(&Path, &Path, &mut Manifest) -> Result<()>;

fn tar_form(manifest: &mut Manifest) -> Result<&mut TarForm> {
    manifest.tar.as_mut().context("a tar form")
}

/// The first chunk of the block form that is of some size, and its place in the pack.
fn big(manifest: &Manifest) -> Result<(Chunk, usize)> {
    let form = manifest.block.as_ref().context("a block form")?;
    let chunk = form.chunks().find(|chunk| chunk.length > 1 << 20).context("a big chunk")?;
    Ok((chunk.clone(), usize::try_from(chunk.offset)?))
}

fn change(path: &Path, f: impl Fn(&mut Vec<u8>)) -> Result<()> {
    let mut bytes = fs::read(path)?;
    f(&mut bytes);
    Ok(fs::write(path, bytes)?)
}

#[test]
fn every_damage_is_found_and_named() -> Result<()> {
    let tar = tar_with(&[("usr/big".to_owned(), noise(9 << 20, 0))])?;
    let cases: [(&str, Damage, &str); 21] = [
        ("none", |_, _, _| Ok(()), ""),
        (
            "a bit of a chunk",
            |_, pack, m| {
                let (_, at) = big(m)?;
                change(pack, |b| b[at + 500] ^= 1)
            },
            "of the block form, at byte",
        ),
        ("a bit of the first chunk", |_, pack, _| change(pack, |b| b[100] ^= 1), "chunk 0 of"),
        (
            "another chunk in its place",
            |_, pack, m| {
                let chunks = &tar_form(m)?.chunks;
                let (first, second) = (chunks[0].length as usize, chunks[1].length as usize);
                change(pack, |bytes| bytes[..first + second].rotate_left(first))
            },
            "chunk 0 of",
        ),
        ("a pack cut short", |_, pack, _| change(pack, |b| b.truncate(b.len() - 1)), "bytes instead of"),
        ("a pack made longer", |_, pack, _| change(pack, |b| b.push(0)), "bytes instead of"),
        ("a pack gone", |_, pack, _| Ok(fs::remove_file(pack)?), "reading "),
        ("manifest gone", |dir, _, _| Ok(fs::remove_file(dir.join(MANIFEST_FILE))?), "reading "),
        (
            "manifest cut short",
            |dir, _, _| change(&dir.join(MANIFEST_FILE), |b| b.truncate(200)),
            "isn't a signed manifest",
        ),
        (
            "manifest with more behind it",
            |dir, _, _| change(&dir.join(MANIFEST_FILE), |b| b.push(b'x')),
            "isn't a signed",
        ),
        (
            "a bit of the manifest",
            |dir, _, _| {
                change(&dir.join(MANIFEST_FILE), |b| {
                    let at = b.windows(5).position(|w| w == b"quiet").unwrap_or(0);
                    b[at] ^= 1;
                })
            },
            "the signature doesn't match",
        ),
        (
            "a digit of the signature",
            |dir, _, _| {
                change(&dir.join(MANIFEST_FILE), |b| {
                    let at = b.len() - 10;
                    b[at] = if b[at] == b'0' { b'1' } else { b'0' };
                })
            },
            "the signature doesn't match",
        ),
        (
            "signed by somebody else",
            |dir, _, m| Ok(fs::write(dir.join(MANIFEST_FILE), serde_json::to_vec(&Signed::seal(m, &key(2)))?)?),
            "none of the trusted keys",
        ),
        (
            "another version's",
            |_, _, m| {
                m.version = "2".to_owned();
                Ok(())
            },
            "that of test/2, not of test/1",
        ),
        (
            "a pack upwards",
            |_, _, m| {
                m.packs[0].sha256 = "../../../etc/passwd".to_owned();
                Ok(())
            },
            "is not a SHA-256",
        ),
        (
            "chunks in another order",
            |_, _, m| {
                tar_form(m)?.chunks.swap(0, 1);
                Ok(())
            },
            "the tar",
        ),
        (
            "a chunk that unpacks to less",
            |_, _, m| {
                let form = tar_form(m)?;
                form.chunks[0].unpacked -= 1;
                form.bytes -= 1;
                Ok(())
            },
            "doesn't unpack to",
        ),
        (
            "another tar's hash",
            |_, _, m| {
                tar_form(m)?.sha256 = "00".repeat(32);
                Ok(())
            },
            "together they aren't what the manifest says",
        ),
        (
            "a piece that was left out",
            |_, _, m| {
                m.block.as_mut().context("a block form")?.pieces.remove(2);
                Ok(())
            },
            "together they aren't what the manifest says",
        ),
        (
            "another kernel's hash",
            |_, _, m| {
                m.boot.kernel.sha256 = "00".repeat(32);
                Ok(())
            },
            "/boot/vmlinuz-6.1 in the image isn't the file",
        ),
        (
            "another file as initrd",
            |_, _, m| {
                m.boot.initrd = Some(ImageFile { path: "/boot/vmlinuz-6.1".into(), ..m.boot.kernel.clone() });
                Ok(())
            },
            "names other files for starting",
        ),
    ];
    let (_dir, packed) = packed(&tar)?;
    let (pack, manifest_file) = (own_pack(&packed), packed.dir.join(MANIFEST_FILE));
    let sound = [(&pack, fs::read(&pack)?), (&manifest_file, fs::read(&manifest_file)?)];
    let original = packed.manifest.into_inner();
    for (name, damage, want) in cases {
        sound.iter().try_for_each(|(path, bytes)| fs::write(path, bytes))?;
        let mut manifest = original.clone();
        damage(&packed.dir, &pack, &mut manifest)?;
        if manifest != original {
            // The builder's own mistake, or a stolen key: the signature alone doesn't make an image whole.
            fs::write(&manifest_file, serde_json::to_vec(&Signed::seal(&manifest, &key(1)))?)?;
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
        let chunks = manifest.tar.as_ref().map(|form| form.chunks.clone()).unwrap_or_default();
        let got = unpacked(&packed, &chunks).map_err(|e| TestCaseError::fail(format!("{e:#}")))?;
        prop_assert_eq!(got, tar);
    }
}

/// Wherever one byte of what was published is another, it's found.
#[test]
fn one_changed_byte_is_enough() -> Result<()> {
    let (_dir, packed) = packed(&tar_with(&[("usr/noise".to_owned(), noise(5000, 0))])?)?;
    let files = [packed.dir.join(MANIFEST_FILE), own_pack(&packed)];
    let mut runner = TestRunner::new(ProptestConfig { cases: 256, max_shrink_iters: 16, ..ProptestConfig::default() });
    runner.run(&(any::<prop::sample::Index>(), 1..=u8::MAX, 0..files.len()), |(place, by, file)| {
        let path = &files[file];
        let good = fs::read(path)?;
        let mut bad = good.clone();
        let place = place.index(bad.len());
        bad[place] ^= by;
        fs::write(path, bad)?;
        let said = verify(&packed.dir, &ours());
        fs::write(path, good)?;
        prop_assert!(said.is_err(), "byte {place} of {}", path.display());
        Ok(())
    })?;
    verify(&packed.dir, &ours())?;
    Ok(())
}
