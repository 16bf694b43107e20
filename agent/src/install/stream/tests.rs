use std::sync::mpsc::channel;

use drophammer_protocol::fixtures;
use drophammer_protocol::sign::{PublicKey, Signed};
use ed25519_dalek::SigningKey;

use super::super::fetch::tests::{Answer, HASTE, Server, client};
use super::*;

/// Three files that land in frames of 4096 bytes: `first` in the first, `middle` over several, `last` in the last.
fn tar_stream() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(nix::unistd::getuid().as_raw().into());
        header.set_gid(nix::unistd::getgid().as_raw().into());
        builder.append_data(&mut header, path, content).expect("in memory");
    };
    add("first", b"first");
    add("middle", &(0..5000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    add("last", b"last");
    builder.into_inner().expect("in memory")
}

struct Image {
    file: Vec<u8>,
    manifest: Manifest,
}

fn image_of(tar: &[u8]) -> Image {
    let mut file = Vec::new();
    let mut frames = Vec::new();
    for part in tar.chunks(4096) {
        let frame = zstd::bulk::compress(part, 3).expect("compressed");
        frames.push(Chunk {
            offset: file.len() as u64,
            length: u32::try_from(frame.len()).expect("small"),
            unpacked: u32::try_from(part.len()).expect("small"),
            sha256: hex::encode(Sha256::digest(&frame)),
        });
        file.extend(frame);
    }
    let mut manifest = fixtures::manifest("test", "1", frames, tar.len() as u64);
    manifest.chunks.tar_sha256 = hex::encode(Sha256::digest(tar));
    manifest.check().expect("a valid manifest");
    Image { file, manifest }
}

fn install(image: &Image, script: Vec<Answer>) -> (anyhow::Result<Streamed>, tempfile::TempDir, Vec<String>) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let verified = Signed::seal(&image.manifest, &key).open(&[PublicKey::of(&key)]).expect("signed by us");
    let server = Server::new(image.file.clone(), script);
    let base = tempfile::tempdir().expect("temporary directory");
    let root = Root::open(base.path()).expect("opened");
    let (sink, said) = channel();
    let result = super::image(&verified, &server.url, &client(), HASTE, &root, &Reporter::new(sink));
    let notes = said.into_iter().map(|said| said.message).filter(|message| !message.is_empty()).collect();
    (result, base, notes)
}

const WELL: Answer = Answer::Range { break_after: usize::MAX };

#[test]
fn an_image_arrives_over_bad_lines() {
    let tar = tar_stream();
    let image = image_of(&tar);
    let flipped: Vec<u8> = image.file.iter().map(|b| b ^ 1).collect();
    for (name, script, want_notes) in [
        ("well", vec![WELL], 0),
        ("in many pieces", vec![Answer::Range { break_after: 3000 }], image.file.len().div_ceil(3000) - 1),
        ("flipped on the way, once", vec![Answer::Other(flipped.clone()), WELL], 1),
    ] {
        let (result, base, notes) = install(&image, script);
        let streamed = result.unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(streamed.unpacked, Unpacked { members: 3, file_bytes: 20_009 }, "{name}");
        assert!(streamed.bytes_fetched >= image.file.len() as u64, "{name}");
        assert_eq!(notes.len(), want_notes, "{name}: {notes:?}");
        assert_eq!(std::fs::read(base.path().join("last")).expect("there"), b"last", "{name}");
    }
}

#[test]
fn what_is_not_as_signed_is_never_unpacked() {
    let tar = tar_stream();
    let changed = |change: &dyn Fn(&mut Image)| {
        let mut image = image_of(&tar);
        change(&mut image);
        image
    };
    let bad_frame = |at: usize| {
        changed(&|image: &mut Image| {
            let place = usize::try_from(image.manifest.chunks.frames[at].offset).expect("small");
            image.file[place + 9] ^= 1;
        })
    };
    let bomb = changed(&|image: &mut Image| {
        // Both lie about how large they get, and their sum is right.
        image.manifest.chunks.frames[1].unpacked -= 96;
        image.manifest.chunks.frames[2].unpacked += 96;
    });
    let misnamed = changed(&|image: &mut Image| image.manifest.chunks.tar_sha256 = "00".repeat(32));
    let short = changed(&|image: &mut Image| {
        image.file.truncate(3000);
    });
    for (name, image, want, first_arrives) in [
        ("the first frame", bad_frame(0), "chunk 0 came with SHA-256", false),
        ("a later frame", bad_frame(2), "chunk 2 came with SHA-256", true),
        ("a frame that unpacks to more", bomb, "decompressing chunk 1 into 4000 bytes", true),
        ("another tar hash", misnamed, "the image was packed wrongly", true),
        ("a file that is cut short", short, "the file there has 3000 bytes", false),
    ] {
        let (result, base, _) = install(&image, vec![WELL]);
        let error = format!("{:#}", result.expect_err(name));
        assert!(error.contains(want), "{name}: {error}");
        assert_eq!(base.path().join("first").exists(), first_arrives, "{name}");
        let all_arrived = base.path().join("last").exists();
        assert_eq!(all_arrived, name == "another tar hash", "{name}");
    }
}

#[test]
fn a_tar_that_can_not_be_unpacked_stops_the_fetching() {
    let mut tar = tar_stream();
    // The second member's header.
    tar[1024] ^= 0x20;
    let (result, _base, _) = install(&image_of(&tar), vec![WELL]);
    let error = format!("{:#}", result.expect_err("damaged"));
    assert!(error.contains("damaged header after \"first\""), "{error}");
}
