use std::sync::mpsc::channel;

use drophammer_protocol::fixtures;
use drophammer_protocol::manifest::Pack;
use sha2::{Digest, Sha256};

use super::super::fetch::tests::{ALL, Answer, HASTE, Server, client};
use super::*;

/// Three files that land in chunks of 4096 bytes: `first` in the first, `middle` over several, `last` in the last.
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
    pack: Vec<u8>,
    manifest: Manifest,
}

impl Image {
    fn form(&mut self) -> &mut TarForm {
        self.manifest.tar.as_mut().expect("a tar form")
    }
}

fn image_of(tar: &[u8]) -> Image {
    let mut pack = Vec::new();
    let mut chunks = Vec::new();
    for part in tar.chunks(4096) {
        let frame = zstd::bulk::compress(part, 3).expect("compressed");
        let (offset, length) = (pack.len() as u64, u32::try_from(frame.len()).expect("small"));
        let chunk = fixtures::chunk(offset, length, u32::try_from(part.len()).expect("small"));
        chunks.push(Chunk { sha256: hex::encode(Sha256::digest(&frame)), ..chunk });
        pack.extend(frame);
    }
    let mut manifest = fixtures::manifest("test", "1");
    manifest.packs = vec![Pack { sha256: hex::encode(Sha256::digest(&pack)), bytes: pack.len() as u64 }];
    manifest.tar = Some(TarForm { bytes: tar.len() as u64, sha256: hex::encode(Sha256::digest(tar)), chunks });
    manifest.check().expect("a valid manifest");
    Image { pack, manifest }
}

fn install(image: &Image, script: Vec<Answer>) -> (anyhow::Result<Unpacked>, tempfile::TempDir, Vec<String>) {
    let server = Server::new(image.pack.clone(), script);
    let base = tempfile::tempdir().expect("temporary directory");
    let root = Root::open(base.path()).expect("opened");
    let (sink, said) = channel();
    let reporter = Reporter::new(sink);
    let (http, stores) = (client(), [server.url.clone()]);
    let interrupted = |what: String| reporter.note(drophammer_protocol::event::Phase::Image, what);
    let sources = Sources::new(&http, &stores, HASTE, &interrupted);
    let form = image.manifest.tar.as_ref().expect("a tar form");
    let result = super::image(&image.manifest, form, &sources, &root, &reporter);
    drop(sources);
    drop(reporter);
    let notes = said.into_iter().map(|said| said.message).filter(|message| !message.is_empty()).collect();
    (result, base, notes)
}

const WELL: Answer = Answer::Range { break_after: ALL };

#[test]
fn an_image_arrives_over_bad_lines() {
    let tar = tar_stream();
    let image = image_of(&tar);
    let flipped: Vec<u8> = image.pack.iter().map(|b| b ^ 1).collect();
    for (name, script, want_notes) in [
        ("well", vec![WELL], 0),
        ("dropped in the middle of a chunk", vec![WELL, Answer::Range { break_after: 30 }, WELL], 1),
        ("flipped on the way, once", vec![Answer::Other(flipped.clone()), WELL], 1),
        ("from the start, whatever is asked for", vec![Answer::Everything { break_after: ALL }], 0),
    ] {
        let (result, base, notes) = install(&image, script);
        let unpacked = result.unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(unpacked, Unpacked { members: 3, file_bytes: 20_009 }, "{name}");
        assert_eq!(notes.len(), want_notes, "{name}: {notes:?}");
        assert_eq!(std::fs::read(base.path().join("last")).expect("there"), b"last", "{name}");
        let middle: Vec<u8> = (0..5000u32).flat_map(u32::to_le_bytes).collect();
        assert!(std::fs::read(base.path().join("middle")).expect("there") == middle, "{name}");
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
    let bad_chunk = |at: usize| {
        changed(&|image: &mut Image| {
            let place = usize::try_from(image.form().chunks[at].offset).expect("small");
            image.pack[place + 9] ^= 1;
        })
    };
    let bomb = changed(&|image: &mut Image| {
        // Both lie about how large they get, and their sum is right.
        image.form().chunks[1].unpacked -= 96;
        image.form().chunks[2].unpacked += 96;
    });
    let short = changed(&|image: &mut Image| {
        image.pack.truncate(3000);
    });
    for (name, image, want) in [
        ("the first chunk", bad_chunk(0), "chunk 0 of 6 came with SHA-256"),
        ("a later chunk", bad_chunk(5), "chunk 5 of 6 came with SHA-256"),
        ("a chunk that unpacks to more", bomb, "decompress"),
        ("a pack that is cut short", short, "the file there has 3000 bytes"),
    ] {
        let (result, base, _) = install(&image, vec![WELL]);
        let error = format!("{:#}", result.expect_err(name));
        assert!(error.contains(want), "{name}: {error}");
        assert!(!base.path().join("last").exists(), "{name}");
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
