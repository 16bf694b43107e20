use std::fs;
use std::sync::Mutex;

use tempfile::TempDir;

use super::*;
use crate::chunks::tests::noise;
use crate::pack::tests::{key, ours, pack_to, packed, tar_with};
use crate::pack::{PackOptions, Packed};
use crate::place::S3Options;
use crate::publish::publish;
use crate::servers::{BUCKET, Fault, FileServer, S3};
use crate::verify;

const BIG: usize = 3 << 20;

fn image() -> Result<(TempDir, Packed)> {
    packed(&tar_with(&[
        ("usr/big".to_owned(), noise(BIG, 7)),
        ("var/lib/dpkg/status".to_owned(), b"Package: a\nStatus: install ok installed\nVersion: 1\n\n".to_vec()),
    ])?)
}

/// What became of each, and what was said of interruptions.
fn go(from: &Place, to: &Path, wanted: &[&str]) -> (Result<Vec<Mirrored>>, Vec<String>) {
    let told = Mutex::new(Vec::new());
    let interrupted = |said: &str| told.lock().expect("no panic").push(said.to_owned());
    let listener = Listener { progress: &|_| {}, interrupted: &interrupted };
    let wanted: Vec<String> = wanted.iter().map(|&text| text.to_owned()).collect();
    let mirrored = mirror(from, to, &wanted, &ours(), 1_800_000_000, listener);
    (mirrored, told.into_inner().expect("no panic"))
}

fn one(from: &Place, to: &Path) -> (Result<Copied>, Vec<String>) {
    let (mirrored, told) = go(from, to, &["test/1"]);
    (mirrored.and_then(|mut all| all.pop().context("an image")?.result), told)
}

fn said<T>(result: &Result<T>) -> String {
    result.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default()
}

#[test]
fn from_a_directory_a_plain_server_and_a_bucket() -> Result<()> {
    let (dir, packed) = image()?;
    let store = dir.path().join("store");
    let (s3, web) = (S3::start(), FileServer::start(&store, Fault::None));
    let bucket = format!("s3://{BUCKET}/p");
    publish(&packed.dir, &s3.place(&bucket), &ours(), &|_| {})?;
    for from in [Place::Directory(store.clone()), web.place(), s3.place(&bucket)] {
        let there = tempfile::tempdir()?;
        let copied = one(&from, there.path()).0?;
        assert_eq!(copied.outcome, Outcome::Published, "{from}");
        verify(&there.path().join("test/1"), &ours())?;
        let again = one(&from, there.path()).0?;
        assert_eq!(again, Copied { outcome: Outcome::Existed, fetched_bytes: 0 }, "{from}");
        assert_eq!(fs::read_dir(there.path().join(PACKS))?.count(), 1, "{from}: nothing is left over");
    }
    Ok(())
}

#[test]
fn which_images_are_meant() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (tar, store) = (dir.path().join("tar"), dir.path().join("store"));
    fs::write(&tar, tar_with(&[])?)?;
    let of = |name, version, expires| PackOptions { expires, ..PackOptions::new(name, version, "") };
    for (options, seed) in [
        (of("a", "1+b", None), 1),
        (of("a", "2", None), 1),
        (of("a", "3", Some(1_790_000_000)), 1),
        (of("b", "1", None), 1),
        (of("c", "1", None), 2),
    ] {
        pack_to(&tar, &store, &options, &key(seed))?;
    }
    let s3 = S3::start();
    let bucket = s3.place(&format!("s3://{BUCKET}"));
    for image in ["a/1+b", "a/2", "a/3", "b/1", "c/1"] {
        publish(&store.join(image), &bucket, &[], &|_| {})?;
    }
    let web = FileServer::start(&store, Fault::None).place();
    let listed = Place::Directory(store);
    for (name, from, wanted, want) in [
        ("everything", &listed, vec![], Ok(vec!["a/1+b", "a/2", "a/3", "b/1", "! c/1"])),
        ("everything in a bucket", &bucket, vec![], Ok(vec!["a/1+b", "a/2", "a/3", "b/1", "! c/1"])),
        ("newest that hasn't expired", &listed, vec!["a"], Ok(vec!["a/2"])),
        ("of a bucket", &bucket, vec!["a", "a/1+b"], Ok(vec!["a/2", "a/1+b"])),
        ("none of a key that counts", &listed, vec!["c", "b"], Ok(vec!["! c", "b/1"])),
        ("twice", &listed, vec!["b", "b/1"], Ok(vec!["b/1"])),
        ("nobody's", &listed, vec!["d"], Ok(vec!["! d"])),
        ("no name", &listed, vec!["../x"], Err("is no image's name")),
        ("the packs", &listed, vec!["packs"], Err("is no image's name")),
        ("from who can list", &web, vec!["a/1+b"], Ok(vec!["a/1+b"])),
        ("from who can't", &web, vec!["a"], Err("give a/VERSION")),
        ("all from who can't", &web, vec![], Err("name the images to mirror, each as NAME/VERSION")),
    ] {
        let there = tempfile::tempdir()?;
        match (go(from, there.path(), &wanted).0, want) {
            (Ok(got), Ok(want)) => {
                let text = |one: &Mirrored| format!("{}{}", if one.result.is_ok() { "" } else { "! " }, one.reference);
                assert_eq!(got.iter().map(text).collect::<Vec<_>>(), want, "{name}");
                for image in want.iter().filter(|image| !image.starts_with('!')) {
                    verify(&there.path().join(image), &ours()).context(name)?;
                }
            }
            (Err(got), Err(want)) => assert!(format!("{got:#}").contains(want), "{name}: {got:#}"),
            (got, want) => panic!("{name}: {got:?}, not {want:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_server_that_breaks_off_is_asked_for_the_rest() -> Result<()> {
    let (dir, packed) = image()?;
    let pack = &packed.manifest.packs[0];
    let store = dir.path().join("store");
    let web = FileServer::start(&store, Fault::CutsAt(1 << 20));
    let there = tempfile::tempdir()?;
    let (copied, told) = one(&web.place(), there.path());
    assert_eq!(copied?.outcome, Outcome::Published);
    verify(&there.path().join("test/1"), &ours())?;
    assert!(told.iter().any(|said| said.contains("going on")), "{told:?}");
    let asked = web.requests.lock().expect("no panic").clone();
    let ranges: Vec<&String> = asked.iter().filter(|request| request.contains(&pack.sha256)).collect();
    assert!(ranges.len() as u64 == pack.bytes.div_ceil(1 << 20) && ranges[1].ends_with(" 1048576"), "{ranges:?}");

    // And by the next run.
    let there = tempfile::tempdir()?;
    fs::create_dir(there.path().join(PACKS))?;
    let begun = fs::read(store::pack_path(&store, pack))?;
    fs::write(there.path().join(PACKS).join(format!("{PARTIAL}{}", pack.sha256)), &begun[..2_000_000])?;
    *web.fault.lock().expect("no panic") = Fault::None;
    one(&web.place(), there.path()).0?;
    let asked = web.requests.lock().expect("no panic").clone();
    assert!(asked.iter().any(|request| request.ends_with(&format!("{} 2000000", pack.sha256))), "{asked:?}");
    verify(&there.path().join("test/1"), &ours())?;
    Ok(())
}

#[test]
fn what_lies_or_gives_nothing_leaves_nothing() -> Result<()> {
    let (dir, packed) = image()?;
    let pack = &packed.manifest.packs[0];
    let store = dir.path().join("store");
    for (name, fault, begun, want) in [
        ("no ranges", Fault::KnowsNoRanges, Some(true), ""),
        ("a beginning that was wrong", Fault::None, Some(false), ""),
        ("a flipped bit", Fault::FlipsBitAt(2 << 20), None, "has a damaged copy"),
        ("a flipped bit in what is resumed", Fault::FlipsBitAt(2 << 20), Some(true), "has a damaged copy"),
        ("a byte less", Fault::Shortens, Some(true), "bytes, the manifest says"),
        ("a manifest that isn't one any more", Fault::FlipsBitAt(60), None, "manifest.json"),
        ("forbidden", Fault::Status(403), None, "the server answered 403"),
        ("out of order", Fault::Status(503), None, "5 tries in a row brought nothing: the server answered 503"),
        ("answers that end at once", Fault::CutsAt(0), None, "5 tries in a row brought nothing"),
    ] {
        let web = FileServer::start(&store, fault);
        let there = tempfile::tempdir()?;
        fs::create_dir(there.path().join(PACKS))?;
        if let Some(right) = begun {
            let mut bytes = fs::read(store::pack_path(&store, pack))?;
            bytes.truncate(1_000_000);
            bytes[0] ^= u8::from(!right);
            fs::write(there.path().join(PACKS).join(format!("{PARTIAL}{}", pack.sha256)), bytes)?;
        }
        let (copied, _) = one(&web.place(), there.path());
        let got = said(&copied);
        assert!(got.contains(want) && got.is_empty() == want.is_empty(), "{name}: {got}");
        if want.is_empty() {
            verify(&there.path().join("test/1"), &ours()).context(name)?;
        } else {
            assert!(!there.path().join("test").exists(), "{name}");
            assert!(!store::pack_path(there.path(), pack).exists(), "{name}");
        }
    }
    Ok(())
}

#[test]
fn nothing_is_fetched_of_what_isnt_believed() -> Result<()> {
    let (dir, packed) = image()?;
    let store = dir.path().join("store");
    crate::sign(&packed.dir, &ours(), &key(2))?;
    let web = FileServer::start(&store, Fault::None);
    let there = tempfile::tempdir()?;
    let got = said(&one(&web.place(), there.path()).0);
    assert!(got.contains("none of the trusted keys"), "{got}");
    // The right signature on what is called otherwise.
    crate::sign(&packed.dir, &[PublicKey::of(&key(2))], &key(1))?;
    fs::rename(&packed.dir, store.join("test/9"))?;
    let (mirrored, _) = go(&web.place(), there.path(), &["test/9"]);
    let got = said(&mirrored?.remove(0).result);
    assert!(got.contains("is that of test/1: images were mixed up or renamed"), "{got}");
    let asked = web.requests.lock().expect("no panic").clone();
    assert!(asked.iter().all(|request| request.contains(MANIFEST_FILE) || request.contains(REVOKED_FILE)), "{asked:?}");
    Ok(())
}

#[test]
fn one_at_a_time_and_nobody_at_all() -> Result<()> {
    let (dir, _packed) = image()?;
    let there = tempfile::tempdir()?;
    let busy = store::alone(there.path(), FlockArg::LockExclusive)?;
    let got = said(&one(&Place::Directory(dir.path().join("store")), there.path()).0);
    assert!(got.contains("is being filled or changed already"), "{got}");
    drop(busy);
    let nobody = Place::parse("http://127.0.0.1:1", &S3Options::default())?;
    let (copied, told) = one(&nobody, there.path());
    assert!(said(&copied).contains("5 tries in a row brought nothing"), "{copied:?}");
    assert_eq!(told.len(), 2 * 4, "of the list of what is revoked, and of the image");
    Ok(())
}
