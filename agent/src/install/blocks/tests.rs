//! From an order and a store to a medium, with whatever may be wrong on the way: what is on the medium afterwards is what was
//! signed, or what was there before.

use std::io::Read;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use drophammer_protocol::fixtures;
use drophammer_protocol::manifest::{Filesystem, MANIFEST_FILE, Pack};
use drophammer_protocol::order::Install;
use drophammer_protocol::sign::{PublicKey, Signed};
use drophammer_protocol::system::System;
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::super::fetch::Patience;
use super::super::fetch::tests::{ALL, Answer, HASTE, Server, client};
use super::super::{InstallError, Trust};
use super::*;

const BLOCK: usize = 4096;
/// What the medium holds before.
const STALE: u8 = 0xaa;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// Bytes that don't compress away.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        Some(*state)
    };
    let mut state = 0x2545_f491_4f6c_dd1d ^ seed;
    std::iter::from_fn(|| next(&mut state)).flat_map(u64::to_le_bytes).take(length).collect()
}

/// A store with one image in it.
#[derive(Clone)]
struct Published {
    /// What is served as the manifest.
    text: Vec<u8>,
    pack: Vec<u8>,
    manifest: Manifest,
}

impl Published {
    /// Of these frames, each with what it's said to unpack to, one after the other with a block between.
    fn of(frames: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let (mut pack, mut pieces, mut at) = (Vec::new(), Vec::new(), 0);
        for (frame, content) in frames {
            let (offset, length) = (pack.len() as u64, u32::try_from(frame.len()).expect("small"));
            let chunk = Chunk {
                sha256: hex::encode(Sha256::digest(frame)),
                content_sha256: hex::encode(Sha256::digest(content)),
                ..fixtures::chunk(offset, length, u32::try_from(content.len()).expect("small"))
            };
            pack.extend_from_slice(frame);
            pieces.push(Piece::Chunk { at, chunk });
            at += (content.len() + BLOCK) as u64;
        }
        let mut manifest = fixtures::manifest("test", "2");
        manifest.packs = vec![Pack { sha256: hex::encode(Sha256::digest(&pack)), bytes: pack.len() as u64 }];
        manifest.tar = None;
        manifest.block = Some(BlockForm { filesystem: Filesystem::Ext4, bytes: at, sha256: "b".repeat(64), pieces });
        manifest.check().expect("a valid manifest");
        Self { text: seal(&manifest, &key(1)), pack, manifest }
    }

    fn good() -> Self {
        Self::of(&[1, 2, 3].map(|seed| {
            let content = noise(2 * BLOCK, seed);
            (zstd::bulk::compress(&content, 3).expect("compressed"), content)
        }))
    }

    fn form(&self) -> &BlockForm {
        self.manifest.block.as_ref().expect("a block form")
    }

    fn order(&self) -> Install {
        let payload = serde_json::to_string(&self.manifest).expect("JSON");
        Install {
            manifest_sha256: hex::encode(Sha256::digest(payload)),
            read_back: ReadBack::Full,
            ..fixtures::install("test/2", "", System::default())
        }
    }
}

fn seal(manifest: &Manifest, key: &SigningKey) -> Vec<u8> {
    serde_json::to_vec(&Signed::seal(manifest, key)).expect("JSON")
}

/// Whoever serves it can change it between two installs.
fn serve(published: &Published) -> (Server, Arc<Mutex<Published>>) {
    let shared = Arc::new(Mutex::new(published.clone()));
    let served = Arc::clone(&shared);
    let file = move |path: &str| {
        let served = served.lock().expect("no panics");
        if path.ends_with(MANIFEST_FILE) { served.text.clone() } else { served.pack.clone() }
    };
    (Server::of(file, vec![Answer::Range { break_after: ALL }]), shared)
}

/// A file to be written on, full of what was there before.
fn medium(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().write_all_at(&vec![STALE; usize::try_from(bytes).expect("small")], 0).expect("written");
    file
}

/// As far as an image is concerned, all that an install does with its order: the manifest, then the medium. Also what was
/// said on the way.
fn install(order: &Install, stores: &[&Server], partition: &Path) -> (Result<(), String>, Vec<String>) {
    let (sink, said) = channel();
    let reporter = Reporter::new(sink);
    let trust = Trust { image_keys: vec![PublicKey::of(&key(1))], http: client() };
    let stores: Vec<String> = stores.iter().map(|server| server.url.clone()).collect();
    let interrupted = |what: String| reporter.note(Phase::Image, what);
    // Several threads may meet the same liar at once; that isn't what ends it.
    let patience = Patience { fruitless_tries: 10, ..HASTE };
    let sources = Sources::new(&trust.http, &stores, patience, &interrupted);
    let done = match super::super::manifest(order, &trust, &sources) {
        Ok(manifest) => {
            let form = manifest.block.as_ref().expect("a block form");
            super::image(&manifest, form, &sources, partition, order.read_back, &reporter).map_err(|e| format!("{e:#}"))
        }
        Err(InstallError::Refused(why)) => Err(format!("refused: {why}")),
        Err(InstallError::Failed(e)) => Err(format!("{e:#}")),
    };
    drop(sources);
    drop(reporter);
    (done, said.into_iter().map(|said| said.message).filter(|message| !message.is_empty()).collect())
}

/// The block that each part of a medium is of: as it was, or as it was signed, and nothing else.
fn as_signed(medium: &[u8], form: &BlockForm) -> Result<Vec<bool>, String> {
    let (mut end, mut written) = (0, Vec::new());
    let stale = |bytes: &[u8]| bytes.iter().all(|byte| *byte == STALE);
    for piece in &form.pieces {
        let (at, length) = (piece.at(), piece.length());
        let [gap, there] = [end..at, at..at + length].map(|range| {
            &medium[usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small")]
        });
        if !stale(gap) {
            return Err(format!("something was written to byte {end}, where nothing belongs"));
        }
        let signed = match piece {
            Piece::Chunk { chunk, .. } => hex::encode(Sha256::digest(there)) == chunk.content_sha256,
            Piece::Zeros { .. } => there.iter().all(|byte| *byte == 0),
        };
        if !signed && !stale(there) {
            return Err(format!("at byte {at} lies what nobody signed"));
        }
        written.push(signed);
        end = at + length;
    }
    Ok(written)
}

fn content(path: &Path, bytes: u64) -> Vec<u8> {
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(bytes).read_to_end(&mut content)).expect("read");
    content
}

#[test]
fn only_the_manifest_that_was_ordered_is_believed() {
    let good = Published::good();
    let reseal = |change: &dyn Fn(&mut Manifest), by: u8| {
        let mut manifest = good.manifest.clone();
        change(&mut manifest);
        seal(&manifest, &key(by))
    };
    let edit = |what: &str, with: &str| {
        let text = String::from_utf8(good.text.clone()).expect("text");
        assert!(text.contains(what), "{what} in {text}");
        text.replacen(what, with, 1).into_bytes()
    };
    let (ours, strangers) = (PublicKey::of(&key(1)).to_string(), PublicKey::of(&key(2)).to_string());
    let signature = serde_json::from_slice::<Signed<Manifest>>(&good.text).expect("signed").signature;
    let other = |at: usize| if &signature[at..=at] == "0" { "1" } else { "0" };
    let flipped = format!("{}{}", other(0), &signature[1..]);
    let in_its_middle = format!("{}{}{}", &signature[..70], other(70), &signature[71..]);
    for (name, text, want) in [
        ("nothing", vec![], "isn't a signed manifest"),
        ("cut in the middle", good.text[..good.text.len() / 2].to_vec(), "isn't a signed manifest"),
        ("without its last byte", good.text[..good.text.len() - 1].to_vec(), "isn't a signed manifest"),
        ("with one more byte", [&good.text[..], b"}"].concat(), "isn't a signed manifest"),
        ("another letter in its payload", edit("test 2", "tesu 2"), "the order says"),
        ("another field", edit("{\"payload\"", "{\"what\":1,\"payload\""), "isn't a signed manifest"),
        ("a digit of the signature", edit(&signature, &flipped), "the signature doesn't match"),
        ("a digit of the signature's other half", edit(&signature, &in_its_middle), "the signature doesn't match"),
        ("another's key", edit(&ours, &strangers), "none of the trusted keys"),
        ("not a key", edit(&ours, &"0".repeat(63)), "isn't a signed manifest"),
        ("signed by somebody else", reseal(&|_| {}, 2), "none of the trusted keys"),
        ("an older version", reseal(&|m| m.version = "1".into(), 1), "the order says"),
        ("the same version, signed again with another chunk", reseal(&|m| m.packs[0].bytes += 1, 1), "the order says"),
        ("another image", reseal(&|m| m.name = "toast".into(), 1), "the order says"),
    ] {
        let (server, shared) = serve(&good);
        shared.lock().expect("no panics").text = text;
        let medium = medium(good.form().bytes);
        let (done, notes) = install(&good.order(), &[&server], medium.path());
        let error = done.expect_err(name);
        for part in [want, "refused: image test/2", &server.url] {
            assert!(error.contains(part), "{name}: {error}");
        }
        assert_eq!(notes.len(), 2, "{name}: a second look, not a third: {notes:?}");
        assert_eq!(as_signed(&content(medium.path(), good.form().bytes), good.form()), Ok(vec![false; 3]), "{name}");

        // Another server has the right one.
        let (better, _) = serve(&good);
        let (done, notes) = install(&good.order(), &[&server, &better], medium.path());
        done.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(as_signed(&content(medium.path(), good.form().bytes), good.form()), Ok(vec![true; 3]), "{name}");
        let (about, _): (Vec<&String>, Vec<&String>) = notes.iter().partition(|note| note.contains("the manifest of"));
        assert!(about.iter().all(|note| note.contains(&server.url)) && !about.is_empty(), "{name}: {notes:?}");

        // And mended, it does by itself.
        shared.lock().expect("no panics").text.clone_from(&good.text);
        install(&good.order(), &[&server], medium.path()).0.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// What was ordered, signed by whom it should be, and still not for this machine and time.
#[test]
fn an_image_that_is_not_to_be_installed_is_refused_before_anything_is_touched() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change, &str); 6] = [
        ("expired", |m| m.expires = Some(1_000_000_000), "it has expired"),
        ("expired with the epoch", |m| m.expires = Some(0), "it has expired"),
        ("of another architecture", |m| m.arch = "s390x".into(), "it is for s390x"),
        ("of another format", |m| m.format += 1, "knows format"),
        ("a chunk outside of its pack", |m| m.packs[0].bytes -= 1, "lies outside of its pack"),
        ("a chunk of a pack that it hasn't", |m| m.packs.clear(), "lies outside of its pack"),
    ];
    for (name, change, want) in changes {
        let mut published = Published::good();
        change(&mut published.manifest);
        published.text = seal(&published.manifest, &key(1));
        let (server, _) = serve(&published);
        let medium = medium(published.form().bytes);
        let (done, _) = install(&published.order(), &[&server], medium.path());
        let error = done.expect_err(name);
        assert!(error.contains(want) && error.contains("refused: image test/2"), "{name}: {error}");
        let there = content(medium.path(), published.form().bytes);
        assert!(there.iter().all(|byte| *byte == STALE), "{name}");
    }
}

#[test]
fn chunks_that_are_not_in_their_place_are_never_written() {
    type Damage = fn(&mut Vec<u8>, &[Chunk]);
    let place = |chunk: &Chunk| usize::try_from(chunk.offset).expect("small");
    let good = Published::good();
    let chunks: Vec<Chunk> = good.form().chunks().cloned().collect();
    let older = Published::of(&[11, 12, 13].map(|seed| {
        let content = noise(2 * BLOCK, seed);
        (zstd::bulk::compress(&content, 3).expect("compressed"), content)
    }));
    let damages: [(&str, Damage, usize); 6] = [
        ("the first bit", |pack, _| pack[0] ^= 0x80, 0),
        ("the last bit", |pack, _| *pack.last_mut().expect("a byte") ^= 1, 2),
        ("the last byte of the first", |pack, chunks| pack[chunks[0].length as usize - 1] ^= 1, 0),
        ("the first byte of the second", |pack, chunks| pack[chunks[0].length as usize] ^= 1, 1),
        ("two in each other's place", |pack, chunks| pack.rotate_left(chunks[0].length as usize), 0),
        ("moved by a byte", |pack, _| pack.rotate_left(1), 0),
    ];
    let mut packs: Vec<(&str, Vec<u8>, usize)> = Vec::new();
    for (name, damage, first) in damages {
        let mut pack = good.pack.clone();
        damage(&mut pack, &chunks);
        packs.push((name, pack, first));
    }
    // Random bytes are stored as they are, so that both versions have chunks of the same lengths.
    assert_eq!(older.pack.len(), good.pack.len());
    packs.push(("all of an older version", older.pack.clone(), 0));
    let mut mixed = good.pack.clone();
    mixed[place(&chunks[1])..place(&chunks[2])].copy_from_slice(&older.pack[place(&chunks[1])..place(&chunks[2])]);
    packs.push(("one of an older version", mixed, 1));
    for (name, pack, first) in packs {
        let (server, shared) = serve(&good);
        shared.lock().expect("no panics").pack = pack;
        let medium = medium(good.form().bytes);
        let (done, _) = install(&good.order(), &[&server], medium.path());
        let error = done.expect_err(name);
        let want = [&server.url, "a damaged copy of the image", " of 3 came with SHA-256"];
        assert!(want.iter().all(|part| error.contains(part)), "{name}: {error}");
        let written = as_signed(&content(medium.path(), good.form().bytes), good.form());
        assert_eq!(written.map(|written| written[first]), Ok(false), "{name}");

        shared.lock().expect("no panics").pack.clone_from(&good.pack);
        install(&good.order(), &[&server], medium.path()).0.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(as_signed(&content(medium.path(), good.form().bytes), good.form()), Ok(vec![true; 3]), "{name}");
    }
}

/// Frames that a builder who may sign made by mistake or in anger: hash and length are right.
#[test]
fn a_frame_gives_what_was_signed_or_nothing() {
    let content = noise(2 * BLOCK, 1);
    let frame = zstd::bulk::compress(&content, 3).expect("compressed");
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compressed");
    // Its number is written into the frame, behind the descriptor of one that has no window (RFC 8878, 3.1.1.1).
    let dictionary = [&frame[..4], &[frame[4] | 1], &[7], &frame[5..]].concat();
    let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), b"skip"].concat();
    let halves = [&content[..BLOCK], &content[BLOCK..]].map(|half| zstd::bulk::compress(half, 3).expect("compressed"));
    // Magic, a descriptor with nothing in it, and a window of 2^41 bytes; then what it's good for.
    let window = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0, 0xf8], &frame[frame.len().min(6)..]].concat();
    for (name, frame, want) in [
        ("as it should be", frame.clone(), Ok(())),
        ("a bomb", bomb, Err("decompressing chunk 0 of 1 into 8192 bytes")),
        ("trailing bytes", [&frame[..], b"more"].concat(), Err("decompressing chunk 0")),
        ("a frame that is cut", frame[..frame.len() - 1].to_vec(), Err("decompressing chunk 0")),
        ("a dictionary that nobody has", dictionary, Err("decompressing chunk 0")),
        ("a window beyond all memory", window, Err("decompressing chunk 0")),
        ("not a frame", content.clone(), Err("decompressing chunk 0")),
        ("nothing but a skippable frame", skippable.clone(), Err("decompresses to 0 bytes, the manifest says 8192")),
        ("half of it", halves[0].clone(), Err("decompresses to 4096 bytes, the manifest says 8192")),
        ("the same twice", [&frame[..], &frame].concat(), Err("decompressing chunk 0")),
        ("something to skip in front", [&skippable[..], &frame].concat(), Ok(())),
        ("two frames that make up the chunk", halves.concat(), Ok(())),
    ] {
        let published = Published::of(&[(frame, content.clone())]);
        let (server, _) = serve(&published);
        let medium = medium(published.form().bytes);
        let (done, _) = install(&published.order(), &[&server], medium.path());
        let written = as_signed(&content_of(&medium, &published), published.form());
        match want {
            Ok(()) => {
                done.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(written, Ok(vec![true]), "{name}");
            }
            Err(want) => {
                let error = done.expect_err(name);
                assert!(error.contains(want), "{name}: {error}");
                assert_eq!(written, Ok(vec![false]), "{name}");
            }
        }
    }
}

fn content_of(medium: &tempfile::NamedTempFile, published: &Published) -> Vec<u8> {
    content(medium.path(), published.form().bytes)
}

/// A file as a block device, for as long as this lives.
struct Loop(String);

impl Loop {
    /// Nothing where this host gives none; then a real machine's drives are left to the tests of virtual ones.
    fn new(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays attached", self.0);
    }
}

/// What a drive kept from before is in the way of nothing: zeros are written where they were signed.
#[test]
fn zeros_are_zeros_on_a_medium_that_was_not_empty() {
    let mut published = Published::good();
    let form = published.manifest.block.as_mut().expect("a block form");
    let end = form.bytes;
    for (at, length) in [(end, BLOCK), (end + 3 * BLOCK as u64, 9 << 20)] {
        form.pieces.push(Piece::Zeros { at, length: length as u64 });
        form.bytes = at + (length + BLOCK) as u64;
    }
    published.text = seal(&published.manifest, &key(1));
    let (server, _) = serve(&published);
    let bytes = published.form().bytes;
    let file = medium(bytes);
    let Some(device) = Loop::new(file.path()) else {
        println!("skipped: no loop device is to be had");
        return;
    };
    for read_back in [ReadBack::Full, ReadBack::Sampled] {
        let order = Install { read_back, ..published.order() };
        let (done, notes) = install(&order, &[&server], Path::new(&device.0));
        done.expect("installed");
        assert!(notes.iter().any(|note| note.contains("5 pieces read back, all, and as signed")), "{notes:?}");
        let there = content(Path::new(&device.0), bytes);
        assert_eq!(as_signed(&there, published.form()), Ok(vec![true; 5]));
    }
    // A drive that is smaller than the image says so, wherever that is found out.
    file.as_file().set_len(5 << 20).expect("cut");
    drop(device);
    let small = Loop::new(file.path()).expect("as before");
    let error = install(&published.order(), &[&server], Path::new(&small.0)).0.expect_err("too small");
    assert!(error.contains("zeros to byte") && error.contains("of the root partition"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 16, ..ProptestConfig::default() })]
    /// Wherever one byte is another, it ends in words, and nothing is written but what was signed.
    #[test]
    fn one_changed_byte_is_enough(place in any::<prop::sample::Index>(), by in 1..=u8::MAX, of_the_pack in any::<bool>()) {
        let good = Published::good();
        let mut bad = good.clone();
        let bytes = if of_the_pack { &mut bad.pack } else { &mut bad.text };
        let place = place.index(bytes.len());
        bytes[place] ^= by;
        let (server, _) = serve(&bad);
        let medium = medium(good.form().bytes);
        let (done, _) = install(&good.order(), &[&server], medium.path());
        prop_assert!(done.is_err_and(|e| e.contains(&server.url)));
        let written = as_signed(&content_of(&medium, &good), good.form()).map_err(TestCaseError::fail)?;
        prop_assert!(written.contains(&false));
    }
}
