use std::sync::mpsc;

use drophammer_protocol::fixtures;

use super::super::fetch::tests::{ALL, Answer, HASTE, Server, client};
use super::*;

fn numbers(count: u32) -> Vec<u8> {
    (0..count).flat_map(u32::to_le_bytes).collect()
}

fn pack_of(file: &[u8]) -> Pack {
    Pack { sha256: "c".repeat(64), bytes: file.len() as u64 }
}

fn chunk_of(file: &[u8], offset: usize, length: usize) -> Chunk {
    let sha256 = hex::encode(Sha256::digest(&file[offset..offset + length]));
    Chunk { sha256, ..fixtures::chunk(offset as u64, u32::try_from(length).expect("small"), 1) }
}

/// Fetches two chunks of `file` from these servers. What was said on the way, and how often each server was asked.
fn fetch(file: &[u8], servers: &[&Server], patience: Patience) -> (anyhow::Result<Vec<u8>>, Vec<String>) {
    let (tell, told) = mpsc::channel();
    let told_of = move |what: String| tell.send(what).expect("heard");
    let tell = Mutex::new(told_of);
    let note = move |what: String| (tell.lock().expect("no panics"))(what);
    let http = client();
    let urls: Vec<String> = servers.iter().map(|server| server.url.clone()).collect();
    let sources = Sources::new(&http, &urls, patience, &note);
    let pack = pack_of(file);
    let mut got = Vec::new();
    let mut all = || -> anyhow::Result<()> {
        let mut frame = Vec::new();
        for (number, (offset, length)) in [(10, 3000), (4000, 4000)].into_iter().enumerate() {
            sources.chunk(&pack, &chunk_of(file, offset, length), &format!("chunk {number}"), &mut frame)?;
            got.extend_from_slice(&frame);
        }
        Ok(())
    };
    let done = all();
    drop(sources);
    drop(note);
    (done.map(|()| got), told.into_iter().collect())
}

fn asked(server: &Server) -> usize {
    server.asked.lock().expect("no panics").len()
}

const WELL: Answer = Answer::Range { break_after: ALL };

#[test]
fn chunks_come_whole_from_servers_of_all_kinds() {
    let file = numbers(2000);
    let want = [&file[10..3010], &file[4000..8000]].concat();
    let flipped: Vec<u8> = file[10..3010].iter().map(|b| b ^ 1).collect();
    for (name, script, want_requests, want_notes) in [
        ("a good one", vec![WELL], 2, 0),
        ("one that drops once", vec![Answer::Range { break_after: 100 }, WELL], 3, 1),
        ("one that knows no ranges", vec![Answer::Everything { break_after: ALL }], 1, 0),
        (
            "one that knows no ranges and drops once",
            vec![Answer::Everything { break_after: 5000 }, Answer::Everything { break_after: ALL }],
            2,
            1,
        ),
        ("one that never ends", vec![Answer::Endless], 2, 0),
        (
            "one that is restarted",
            vec![Answer::Range { break_after: 100 }, Answer::Nothing, Answer::Status("503 Service Unavailable"), WELL],
            5,
            3,
        ),
        ("one that answers with another range at first", vec![Answer::Claim("bytes 7-7999/8000"), WELL], 3, 1),
        ("one that flips a bit once", vec![Answer::Other(flipped), WELL], 3, 1),
    ] {
        // Patience is for failures in a row; none of these has more than three.
        let server = Server::new(file.clone(), script);
        let (got, notes) = fetch(&file, &[&server], Patience { fruitless_tries: 4, ..HASTE });
        assert!(got.unwrap_or_else(|e| panic!("{name}: {e:#}")) == want, "{name}: other bytes");
        assert_eq!(asked(&server), want_requests, "{name}: requests");
        assert_eq!(notes.len(), want_notes, "{name}: every interruption is told: {notes:?}");
    }
}

#[test]
fn hopeless_servers_are_given_up_and_named() {
    let file = numbers(2000);
    let flipped: Vec<u8> = file[10..3010].iter().map(|b| b ^ 1).collect();
    for (name, script, want, want_requests) in [
        ("gone", vec![Answer::Status("404 Not Found")], "the server answered 404", 1),
        ("not for us", vec![Answer::Status("403 Forbidden")], "the server answered 403", 1),
        ("broken", vec![Answer::Status("500 Internal Server Error")], "3 tries in a row brought nothing", 3),
        ("silent", vec![Answer::Nothing], "3 tries in a row brought nothing", 3),
        ("another range", vec![Answer::Claim("bytes 9-99/8000")], "answered with another range", 3),
        ("no range", vec![Answer::Claim("what")], "answered with another range", 3),
        ("another file", vec![Answer::Claim("bytes 10-99/100")], "has 100 bytes, the manifest says 8000", 1),
        ("a short file as a whole", vec![Answer::Everything { break_after: 0 }], "3 tries in a row", 3),
        ("altered", vec![Answer::Other(flipped)], "a damaged copy of the image", 2),
    ] {
        let server = Server::new(file.clone(), script);
        let (got, notes) = fetch(&file, &[&server], HASTE);
        let error = format!("{:#}", got.expect_err(name));
        assert!(error.contains(want) && error.contains(&server.url) && error.contains("chunk 0"), "{name}: {error}");
        assert_eq!(asked(&server), want_requests, "{name}");
        assert!(notes.last().is_some_and(|said| said.contains("isn't asked any more")), "{name}: {notes:?}");

        // And a good one beside it makes up for it.
        let (bad, good) =
            (Server::new(file.clone(), vec![Answer::Status("404 Not Found")]), Server::new(file.clone(), vec![WELL]));
        let (got, notes) = fetch(&file, &[&bad, &good], HASTE);
        assert_eq!(got.unwrap_or_else(|e| panic!("{name}: {e:#}")).len(), 7000, "{name}");
        assert!(notes.iter().all(|said| said.contains(&bad.url)), "{name}: {notes:?}");
    }
}

#[test]
fn the_fastest_is_asked_and_who_is_slow_is_left() {
    let file = numbers(2000);
    let http = client();
    let urls: Vec<String> = ["http://slow", "http://fast", "http://new"].map(str::to_owned).to_vec();
    let sources = Sources::new(&http, &urls, HASTE, &|_| {});
    let url = |sources: &Sources<'_>| sources.choose().map(|store| store.url.clone());
    assert_eq!(url(&sources).as_deref(), Some("http://slow"), "nobody is known yet");
    sources.stores[0].succeeded(1000, Duration::from_secs(1));
    assert_eq!(url(&sources).as_deref(), Some("http://fast"), "the next unknown one");
    sources.stores[1].succeeded(1_000_000, Duration::from_secs(1));
    sources.stores[2].succeeded(10, Duration::from_secs(1));
    assert_eq!(url(&sources).as_deref(), Some("http://fast"));
    // Waiting for the slow one ends some time after the fast one would have been done.
    let limit = sources.limit(&sources.stores[0], 2_000_000).expect("there are others");
    assert_eq!(limit, SLACK + Duration::from_secs(10));
    let said = sources.stores[1].failed(Trouble::Final(anyhow::anyhow!("gone")), HASTE);
    assert!(said.contains("isn't asked any more"));
    assert_eq!(url(&sources).as_deref(), Some("http://slow"));
    for store in &sources.stores {
        store.failed(Trouble::Final(anyhow::anyhow!("gone")), HASTE);
    }
    assert_eq!(url(&sources), None);
    let alone = Sources::new(&http, &urls[..1], HASTE, &|_| {});
    assert_eq!(alone.limit(&alone.stores[0], 1), None, "without another it's waited for");
    let mut frame = Vec::new();
    let error = sources.chunk(&pack_of(&file), &chunk_of(&file, 0, 1), "chunk 7", &mut frame).expect_err("nobody left");
    for want in ["chunk 7", "http://slow: gone", "http://fast: gone", "http://new: gone"] {
        assert!(format!("{error:#}").contains(want), "{error:#}");
    }
}

#[test]
fn manifests_are_bounded_and_the_one_that_is_meant() {
    let file = numbers(100);
    let whole = Answer::Everything { break_after: ALL };
    let meant = |bytes: &[u8]| if bytes.len() == 400 { Ok(()) } else { Err("another one".to_owned()) };
    for (name, script, want) in [
        ("good", vec![whole.clone()], Ok(())),
        ("cut once", vec![Answer::Everything { break_after: 7 }, whole], Ok(())),
        ("endless", vec![Answer::Endless], Err("larger than")),
        ("gone", vec![Answer::Status("404 Not Found")], Err("404")),
        ("always cut", vec![Answer::Everything { break_after: 7 }], Err("3 tries")),
        ("another", vec![Answer::Other(vec![1; 5])], Err("another one")),
    ] {
        let server = Server::new(file.clone(), script);
        let http = client();
        let urls = [server.url.clone()];
        let sources = Sources::new(&http, &urls, HASTE, &|_| {});
        match (sources.manifest("debian/12", meant), want) {
            (Ok(got), Ok(())) => assert_eq!(got, file, "{name}"),
            (Err(got), Err(part)) => {
                let error = format!("{got:#}");
                assert!(error.contains(part) && error.contains("debian/12"), "{name}: {error}");
            }
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
}
