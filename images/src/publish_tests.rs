use std::fs;

use tempfile::TempDir;

use super::*;
use crate::chunks::tests::noise;
use crate::pack::tests::{key, ours, packed, tar_with};
use crate::pack::{PackOptions, Packed, pack};
use crate::place::S3Options;
use crate::servers::{BUCKET, Network, S3};
use crate::{list, sign, verify};

fn image(bytes: usize) -> Result<(TempDir, Packed)> {
    packed(&tar_with(&[
        ("usr/big".to_owned(), noise(bytes, 7)),
        ("var/lib/dpkg/status".to_owned(), b"Package: a\nStatus: install ok installed\nVersion: 1\n\n".to_vec()),
    ])?)
}

fn go(packed: &Packed, to: &Place) -> Result<Published> {
    publish(&packed.dir, to, &ours(), &|_| {})
}

/// The error, with its causes.
fn said<T>(result: Result<T>) -> String {
    result.err().map(|e| format!("{e:#}")).unwrap_or_default()
}

#[test]
fn what_is_done_with_a_version_by_what_is_there() -> Result<()> {
    let (_dir, packed) = image(1000)?;
    let image = Image::open(&packed.dir, &ours())?;
    let version = image.version();
    let resealed = |manifest: &Manifest, seed| serde_json::to_vec(&Signed::seal(manifest, &key(seed)));
    let cmdline = {
        let mut other = (*image.manifest).clone();
        other.boot.cmdline = "other".into();
        other
    };
    let description = Manifest { description: "other".into(), ..(*image.manifest).clone() };
    let packs = Manifest {
        packs: [image.manifest.packs.clone(), image.manifest.packs.clone()].concat(),
        ..(*image.manifest).clone()
    };
    for (name, there, want) in [
        ("nothing", None, Ok(Outcome::Published)),
        ("the same", Some(image.text.clone()), Ok(Outcome::Existed)),
        ("with another key's signature", Some(resealed(&image.manifest, 2)?), Ok(Outcome::SignedAnew)),
        ("what starts another way", Some(resealed(&cmdline, 1)?), Err("what starts it differs")),
        ("what says something else", Some(resealed(&description, 1)?), Err("what it says of itself differs")),
        ("the same files in other packs", Some(resealed(&packs, 1)?), Err("isn't the same to the byte")),
        ("rubbish", Some(b"{}".to_vec()), Err("isn't a signed manifest")),
    ] {
        match (decide(there.as_deref(), &version, "there"), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
            (Err(got), Err(want)) => assert!(format!("{got:#}").contains(want), "{name}: {got:#}"),
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_directory_has_all_of_it_or_nothing() -> Result<()> {
    let (dir, packed) = image(3 << 20)?;
    let there = dir.path().join("served");
    let to = Place::Directory(there.clone());
    let published = go(&packed, &to)?;
    assert_eq!((published.outcome, published.sent_bytes), (Outcome::Published, packed.manifest.packs[0].bytes));
    verify(&there.join("test/1"), &ours())?;
    assert_eq!((go(&packed, &to)?.outcome, go(&packed, &to)?.sent_bytes), (Outcome::Existed, 0));

    // What got lost there comes back; what was altered beside the manifest, too.
    fs::remove_file(store::pack_path(&there, &packed.manifest.packs[0]))?;
    fs::write(there.join("test/1/sbom.spdx.json"), "{}")?;
    assert!(go(&packed, &to)?.sent_bytes > 0);
    verify(&there.join("test/1"), &ours())?;

    // Another content under the same name.
    let (_other, other) = image(2 << 20)?;
    assert!(said(go(&other, &to)).contains("its content differs: published versions never change"));
    verify(&there.join("test/1"), &ours())?;

    // Another key's signature over the same.
    sign(&packed.dir, &ours(), &key(2))?;
    assert!(
        said(go(&packed, &to)).contains("none of the trusted keys"),
        "by whoever it says, but only if nobody is named"
    );
    assert_eq!(publish(&packed.dir, &to, &[], &|_| {})?.outcome, Outcome::SignedAnew);
    verify(&there.join("test/1"), &[PublicKey::of(&key(2))])?;
    for place in ["test", "test/1", PACKS] {
        let hidden = fs::read_dir(there.join(place))?
            .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().as_encoded_bytes()[0] == b'.'));
        assert_eq!(hidden.count(), 0, "nothing is left over in {place}");
    }
    Ok(())
}

#[test]
fn nothing_damaged_is_published() -> Result<()> {
    let flip = |path: &Path| -> Result<()> {
        let mut bytes = fs::read(path)?;
        bytes.iter_mut().skip(100).take(1).for_each(|byte| *byte ^= 1);
        Ok(fs::write(path, bytes)?)
    };
    for (name, damage, want) in [
        ("a pack", PACKS, "was altered: its SHA-256 is"),
        ("its list of packages", "test/1/sbom.spdx.json", "sbom.spdx.json was altered"),
        ("its manifest", "test/1/manifest.json", "manifest.json"),
    ] {
        let (dir, packed) = image(1 << 20)?;
        let mut path = dir.path().join("store").join(damage);
        if path.is_dir() {
            path = store::pack_path(&dir.path().join("store"), &packed.manifest.packs[0]);
        }
        flip(&path)?;
        let there = dir.path().join("served");
        let got = said(go(&packed, &Place::Directory(there.clone())));
        assert!(got.contains(want), "{name}: {got}");
        assert!(!there.join("test").exists(), "{name}");
    }
    Ok(())
}

#[test]
fn what_cant_be_written_leaves_nothing_that_is_seen() -> Result<()> {
    let (dir, packed) = image(1 << 20)?;
    let there = dir.path().join("served");
    fs::create_dir_all(store::pack_path(&there, &packed.manifest.packs[0]))?;
    let got = said(go(&packed, &Place::Directory(there.clone())));
    assert!(got.contains("putting") && got.contains("in place"), "{got}");
    assert!(!there.join("test").exists());
    assert_eq!(fs::read_dir(there.join(PACKS))?.count(), 1, "no draft is left");
    Ok(())
}

#[test]
fn a_bucket_has_all_of_it_or_nothing() -> Result<()> {
    let s3 = S3::start();
    let to = s3.place(&format!("s3://{BUCKET}/some/prefix"));
    let (_dir, packed) = image(10 << 20)?;
    let pack = &packed.manifest.packs[0];
    assert!(pack.bytes > 8 << 20, "more parts than one");
    let meter = std::sync::atomic::AtomicU64::new(0);
    let published = publish(&packed.dir, &to, &ours(), &|n| {
        meter.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
    })?;
    assert_eq!((published.outcome, published.sent_bytes), (Outcome::Published, pack.bytes));
    assert_eq!(meter.into_inner(), pack.bytes, "progress");
    let file = |key: &str| s3.file(&format!("some/prefix/{key}"));
    // What the service keeps is a store as it is.
    verify(&file("test/1"), &ours())?;
    let again = go(&packed, &to)?;
    assert_eq!((again.outcome, again.sent_bytes), (Outcome::Existed, 0));

    let (_other, other) = image(1 << 20)?;
    assert!(said(go(&other, &to)).contains("its content differs: published versions never change"));

    sign(&packed.dir, &ours(), &key(2))?;
    assert_eq!(publish(&packed.dir, &to, &[], &|_| {})?.outcome, Outcome::SignedAnew);
    verify(&file("test/1"), &[PublicKey::of(&key(2))])?;
    assert_eq!(to.references()?, ["test/1"]);

    // Somebody else's beginnings.
    let (_third, third) = image(500)?;
    let unfinished = s3.place(&format!("s3://{BUCKET}/third"));
    fs::create_dir_all(s3.file("third/test/1"))?;
    fs::write(s3.file("third/test/1/sbom.spdx.json"), "{}")?;
    assert!(said(go(&third, &unfinished)).contains("publishing another build of this version was interrupted"));
    assert!(!s3.file("third/test/1/manifest.json").exists());
    Ok(())
}

#[test]
fn an_upload_that_was_cut_goes_on_when_published_again() -> Result<()> {
    let s3 = S3::start();
    let url = format!("s3://{BUCKET}");
    let (_dir, packed) = image(10 << 20)?;
    let network = Network::to(s3.address);
    network.cut_after(6 << 20);
    let got = said(go(&packed, &s3.place_by(&url, network.address)));
    assert!(got.contains("uploading s3://images/packs/"), "{got}");
    assert!(network.sent() == 6 << 20, "it was in the middle of it");
    let its_pack = s3.file(&format!("{PACKS}/{}", packed.manifest.packs[0].sha256));
    assert!(!its_pack.exists() && !s3.file("test").exists(), "nobody sees anything");
    assert_eq!(go(&packed, &s3.place(&url))?.outcome, Outcome::Published);
    verify(&s3.file("test/1"), &ours())?;

    // The next version sends what is new, and nothing else.
    let (dir, next) = (tempfile::tempdir()?, PackOptions::new("test", "2", "quiet"));
    let tar = dir.path().join("tar");
    fs::write(
        &tar,
        tar_with(&[("usr/big".to_owned(), noise(10 << 20, 7)), ("usr/new".to_owned(), noise(1 << 20, 8))])?,
    )?;
    let store = packed.dir.ancestors().nth(2).context("a store")?;
    let next = pack(&tar, store, &next, &key(1), &|_| {})?;
    let network = Network::to(s3.address);
    let sent = go(&next, &s3.place_by(&url, network.address))?.sent_bytes;
    assert_eq!(sent, next.new_bytes);
    assert!(network.sent() < 6 << 20, "{} bytes", network.sent());
    verify(&s3.file("test/2"), &ours())?;
    Ok(())
}

#[test]
fn two_publishers_at_once() -> Result<()> {
    let s3 = S3::start();
    let (_a, ours_) = image(1 << 20)?;
    let (_b, theirs) = packed(&tar_with(&[("usr/other".to_owned(), noise(1 << 20, 9))])?)?;
    for (name, second, want) in [("the same", &ours_, ""), ("another", &theirs, "its content differs")] {
        let url = format!("s3://{BUCKET}/{}", name.replace(' ', "-"));
        let network = Network::to(s3.address);
        network.hold(format!("PUT /{BUCKET}/{}/test/1/manifest.json", name.replace(' ', "-")));
        // The first has everything there but its manifest when the second comes.
        let first = std::thread::scope(|scope| -> Result<_> {
            let first = scope.spawn(|| go(second, &s3.place_by(&url, network.address)));
            network.await_held();
            let done = go(&ours_, &s3.place(&url));
            network.let_go();
            assert_eq!(done?.outcome, Outcome::Published, "{name}");
            Ok(first.join().expect("no panic"))
        })?;
        match (&first, want) {
            (Ok(first), "") => assert_eq!(first.outcome, Outcome::Existed, "{name}"),
            _ => assert!(said(first).contains(want) && !want.is_empty(), "{name}"),
        }
        verify(&s3.file(&format!("{}/test/1", name.replace(' ', "-"))), &ours())?;
    }
    // And in a directory, where the kernel decides.
    let there = tempfile::tempdir()?;
    let to = Place::Directory(there.path().to_owned());
    let outcomes = std::thread::scope(|scope| {
        let both = [&ours_, &theirs].map(|image| scope.spawn(|| go(image, &to)));
        both.map(|one| one.join().expect("no panic"))
    });
    assert_eq!(outcomes.iter().filter(|one| one.is_ok()).count(), 1, "{outcomes:?}");
    verify(&there.path().join("test/1"), &ours())?;
    assert_eq!(list(there.path(), &ours())?.len(), 1, "and no draft is left");
    Ok(())
}

#[test]
fn who_may_not_write_and_what_cant_be_written_to() -> Result<()> {
    let s3 = S3::start();
    let (dir, packed) = image(1000)?;
    let keys = dir.path().join("credentials");
    fs::write(&keys, "[default]\naws_access_key_id=AKID\naws_secret_access_key=guessed\n")?;
    let endpoint = Some(format!("http://{}", s3.address));
    let options = S3Options { endpoint, credentials: Some(keys), ..S3Options::default() };
    for (name, to, want) in [
        ("a wrong key", Place::parse(&format!("s3://{BUCKET}"), &options)?, "reading s3://images/revoked.json: "),
        ("a plain server", Place::parse("http://127.0.0.1:1/x", &options)?, "can only be read: publish into"),
    ] {
        let got = said(go(&packed, &to));
        assert!(got.contains(want), "{name}: {got}");
    }
    Ok(())
}
