use std::sync::mpsc;

use drophammer_protocol::fixtures;

use super::super::fetch::tests::{ALL, Answer, Body, End, HASTE, Server, client};
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

/// What comes of a server that does one thing whatever it's asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// The chunks come whole all the same.
    Harmless,
    /// It may be better next time, and is given up when it isn't.
    Passing(&'static str),
    /// It said that it won't be, or told the same lie twice.
    Hopeless(&'static str),
    Lying(&'static str),
}
use Verdict::{Harmless, Hopeless, Lying, Passing};

/// Head and body of a good answer, in which one thing is wrong; no server at all is as bad as some of these.
fn misbehaviours() -> Vec<(&'static str, Answer, Verdict)> {
    let raw = |head, body| Answer::Raw { head, body, end: End::Close };
    let range = |head| raw(head, Body::Range);
    let cut = |break_after| Answer::Range { break_after };
    let (nothing, ended) = (Passing("error sending request"), Passing("error"));
    vec![
        // The body breaks off.
        ("cut before the first byte", cut(0), ended),
        ("cut behind the first byte", cut(1), ended),
        ("cut in front of the last byte", cut(2999), ended),
        ("everything, cut in front of the chunk", Answer::Everything { break_after: 9 }, ended),
        ("everything, cut at the chunk's edge", Answer::Everything { break_after: 10 }, ended),
        ("everything, cut behind the chunk's first byte", Answer::Everything { break_after: 11 }, ended),
        ("everything, cut in front of the last byte", Answer::Everything { break_after: 3009 }, ended),
        ("everything, as much as is needed", Answer::Everything { break_after: 8000 }, Harmless),
        // The length is wrong.
        (
            "a length too small",
            range("HTTP/1.1 206 x\r\nContent-Length: 10\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n"),
            Passing("ended at byte 20"),
        ),
        (
            "a length of nothing",
            range("HTTP/1.1 206 x\r\nContent-Length: 0\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n"),
            Passing("ended at byte 10"),
        ),
        (
            "a length too large",
            range("HTTP/1.1 206 x\r\nContent-Length: 5000\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n"),
            Harmless,
        ),
        ("no length", range("HTTP/1.1 206 x\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n"), Harmless),
        (
            "a negative length",
            range("HTTP/1.1 206 x\r\nContent-Length: -3000\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n"),
            nothing,
        ),
        (
            "a length that's almost too large for a number",
            range(
                "HTTP/1.1 206 x\r\nContent-Length: 9223372036854775807\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
            ),
            Harmless,
        ),
        (
            "a length that's no number",
            range(
                "HTTP/1.1 206 x\r\nContent-Length: 99999999999999999999\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
            ),
            nothing,
        ),
        (
            "two lengths",
            range(
                "HTTP/1.1 206 x\r\nContent-Length: 3000\r\nContent-Length: 7\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
            ),
            nothing,
        ),
        // The range is another than it says, or than was asked for.
        ("another start", Answer::Claim("bytes 11-7999/8000"), Passing("answered with another range")),
        ("a start in front of it", Answer::Claim("bytes 0-7999/8000"), Passing("answered with another range")),
        ("another total", Answer::Claim("bytes 10-3009/8001"), Hopeless("has 8001 bytes, the manifest says 8000")),
        ("an end in front of the start", Answer::Claim("bytes 10-9/8000"), Passing("answered with another range")),
        ("no numbers", Answer::Claim("bytes */8000"), Passing("answered with another range")),
        ("another unit", Answer::Claim("lines 10-3009/8000"), Passing("answered with another range")),
        (
            "another end",
            range("HTTP/1.1 206 x\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{first}/{total}\r\n\r\n"),
            Harmless,
        ),
        (
            "an unknown total",
            range("HTTP/1.1 206 x\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{last}/*\r\n\r\n"),
            Harmless,
        ),
        (
            "no range",
            range("HTTP/1.1 206 x\r\nContent-Length: {length}\r\n\r\n"),
            Passing("answered with another range"),
        ),
        (
            "several ranges",
            range("HTTP/1.1 206 x\r\nContent-Type: multipart/byteranges; boundary=x\r\n\r\n--x\r\n"),
            Passing("answered with another range"),
        ),
        (
            "the whole file as if it were the range",
            raw(
                "HTTP/1.1 206 x\r\nContent-Length: {total}\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
                Body::File,
            ),
            Lying("came with SHA-256"),
        ),
        // Answers of other kinds.
        ("404", Answer::Status("404 Not Found"), Hopeless("answered 404")),
        ("401", Answer::Status("401 Unauthorized"), Hopeless("answered 401")),
        ("410", Answer::Status("410 Gone"), Hopeless("answered 410")),
        (
            "416",
            range("HTTP/1.1 416 x\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n\r\n"),
            Hopeless("answered 416"),
        ),
        ("204", Answer::Status("204 No Content"), Hopeless("answered 204")),
        ("304", Answer::Status("304 Not Modified"), Hopeless("answered 304")),
        ("599", Answer::Status("599 What"), Passing("answered 599")),
        (
            "503 with an hour's rest",
            raw("HTTP/1.1 503 x\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n", Body::Nothing),
            Passing("answered 503"),
        ),
        (
            "429 with no sense",
            raw("HTTP/1.1 429 x\r\nRetry-After: -99999999999999999999\r\nContent-Length: 0\r\n\r\n", Body::Nothing),
            Passing("answered 429"),
        ),
        ("a server error for ever", raw("HTTP/1.1 500 x\r\n\r\n", Body::Endless("sorry ")), Passing("answered 500")),
        // To be followed by nobody: the order names the servers that are asked.
        (
            "sent elsewhere",
            raw("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x\r\nContent-Length: 0\r\n\r\n", Body::Nothing),
            Hopeless("points to \"http://127.0.0.1:9/x\", which isn't followed"),
        ),
        (
            "sent in a circle",
            raw("HTTP/1.1 308 x\r\nLocation: /packs/\r\nContent-Length: 0\r\n\r\n", Body::Nothing),
            Hopeless("points to \"/packs/\", which isn't followed"),
        ),
        ("sent nowhere", Answer::Status("301 Moved Permanently"), Hopeless("answered 301")),
        // HTTP that isn't any, or an unusual one.
        ("not a word", Answer::Nothing, nothing),
        ("another language", raw("SSH-2.0-OpenSSH_9.2\r\n", Body::Nothing), nothing),
        ("zeros", raw("\0\0\0\0", Body::File), nothing),
        ("half a head", raw("HTTP/1.1 206 Partial Content\r\nContent-Len", Body::Nothing), nothing),
        ("HTTP/1.0", range("HTTP/1.0 206 x\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n"), Harmless),
        ("HTTP/1.0 that knows no ranges", raw("HTTP/1.0 200 OK\r\n\r\n", Body::File), Harmless),
        (
            "chunks of HTTP's own kind",
            raw(
                "HTTP/1.1 206 x\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
                Body::Chunked,
            ),
            Harmless,
        ),
        (
            "a chunk of no size",
            raw(
                "HTTP/1.1 206 x\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\nzz\r\n",
                Body::Chunked,
            ),
            ended,
        ),
        (
            "a chunk of a size beyond all numbers",
            raw(
                "HTTP/1.1 206 x\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\nfffffffffffffffff\r\n",
                Body::Range,
            ),
            ended,
        ),
        (
            "compressed unasked",
            range(
                "HTTP/1.1 206 x\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
            ),
            Hopeless("encoded as \"gzip\", which nobody asked for"),
        ),
        (
            "as an object store keeps it",
            range(
                "HTTP/1.1 206 x\r\nContent-Encoding: aws-chunked\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
            ),
            Harmless,
        ),
        // Without an end.
        ("an endless body", Answer::Endless, Harmless),
        ("endless headers", raw("HTTP/1.1 206 x\r\n", Body::Endless("X-More: and more\r\n")), nothing),
        ("an endless header", raw("HTTP/1.1 206 x\r\nX-More: ", Body::Endless("and more ")), nothing),
        ("an endless first line", raw("", Body::Endless("HTTP/1.1 ")), nothing),
        // Without haste.
        ("silent at once", Answer::Raw { head: "", body: Body::Nothing, end: End::Silence }, nothing),
        (
            "silent behind the head",
            Answer::Raw {
                head: "HTTP/1.1 206 x\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
                body: Body::Nothing,
                end: End::Silence,
            },
            Passing("timed out"),
        ),
        (
            "a byte at a time",
            Answer::Raw {
                head: "HTTP/1.1 206 x\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n",
                body: Body::Range,
                end: End::Trickle,
            },
            Passing("the server sent no more than"),
        ),
        (
            "everything, a byte at a time",
            Answer::Raw {
                head: "HTTP/1.1 200 x\r\nContent-Length: {total}\r\n\r\n",
                body: Body::File,
                end: End::Trickle,
            },
            Passing("the server sent no more than"),
        ),
    ]
}

/// Each misbehaviour three times: alone, where it ends in words that name what, whose, and why; beside a good server, which
/// makes up for it; and only once, after which the same server serves.
#[test]
fn whatever_a_server_does_is_survived_or_named() {
    let file = numbers(2000);
    let want = [&file[10..3010], &file[4000..8000]].concat();
    let cells = misbehaviours();
    // Some take seconds of waiting, which they may do beside each other.
    std::thread::scope(|scope| {
        for (name, answer, verdict) in &cells {
            let (file, want) = (&file, &want);
            scope.spawn(move || {
                let server = |script: Vec<Answer>| Server::new(file.clone(), script);
                let came = |got: anyhow::Result<Vec<u8>>, how: &str| {
                    assert!(
                        got.unwrap_or_else(|e| panic!("{name}, {how}: {e:#}")) == *want,
                        "{name}, {how}: other bytes"
                    );
                };
                let (alone, tries, words) = (
                    server(vec![answer.clone()]),
                    asked,
                    match verdict {
                        Harmless => "",
                        Passing(words) | Hopeless(words) | Lying(words) => words,
                    },
                );
                let (got, notes) = fetch(file, &[&alone], HASTE);
                if *verdict == Harmless {
                    assert_eq!(notes, [""; 0], "{name}");
                    return came(got, "alone");
                }
                let error = format!("{:#}", got.expect_err(name));
                for part in [words, "chunk 0", alone.url.as_str()] {
                    assert!(error.contains(part), "{name}: {error}");
                }
                let limit = match verdict {
                    Harmless => 0,
                    Hopeless(_) => 1,
                    Lying(_) => 2,
                    Passing(_) => 3,
                };
                assert_eq!(tries(&alone), limit, "{name}: {notes:?}");

                let (bad, good) = (server(vec![answer.clone()]), server(vec![WELL]));
                let (got, notes) = fetch(file, &[&bad, &good], HASTE);
                came(got, "beside a good one");
                assert!(!notes.is_empty() && notes.iter().all(|note| note.contains(&bad.url)), "{name}: {notes:?}");
                assert!(tries(&bad) <= limit, "{name}: {notes:?}");

                let (got, notes) = fetch(file, &[&server(vec![answer.clone(), WELL])], HASTE);
                match verdict {
                    Hopeless(_) => assert!(got.is_err(), "{name}: it said so"),
                    _ => {
                        came(got, "only once");
                        assert_eq!(notes.len(), 1, "{name}: {notes:?}");
                    }
                }
            });
        }
    });
}

#[test]
fn nobody_is_asked_whom_the_order_does_not_name() {
    let file = numbers(2000);
    let elsewhere = Server::new(file.clone(), vec![WELL]);
    let to: &'static str = Box::leak(
        format!("HTTP/1.1 307 x\r\nLocation: {}/packs/x\r\nContent-Length: 0\r\n\r\n", elsewhere.url).into_boxed_str(),
    );
    let server = Server::new(file.clone(), vec![Answer::Raw { head: to, body: Body::Nothing, end: End::Close }]);
    let (got, _) = fetch(&file, &[&server], HASTE);
    let error = format!("{:#}", got.expect_err("sent away"));
    assert!(error.contains(&elsewhere.url) && error.contains("name that server as the store"), "{error}");
    assert_eq!(asked(&elsewhere), 0);
}

#[test]
fn where_everybody_lies_everybody_is_named() {
    let file = numbers(2000);
    let liar = || Server::new(file.clone(), vec![Answer::Other(vec![7; 3000])]);
    let servers = [liar(), liar(), liar()];
    let (got, notes) = fetch(&file, &servers.each_ref(), HASTE);
    let error = format!("{:#}", got.expect_err("all of them lie"));
    for server in &servers {
        assert_eq!(asked(server), 2, "{notes:?}");
        assert!(error.contains(&format!("{}: it has a damaged copy", server.url)), "{error}");
    }
    // A retry is a new order, and one of them has been mended by then.
    let mended = Server::new(file.clone(), vec![WELL]);
    let (got, _) = fetch(&file, &[&servers[0], &mended], HASTE);
    assert_eq!(got.expect("one is enough").len(), 7000);
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
        (
            "one that sends a range as if it were everything",
            vec![Answer::Raw { head: "HTTP/1.1 200 OK\r\n\r\n", body: Body::Range, end: End::Close }],
            2,
            1,
        ),
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
    let meant = |bytes: &[u8]| if bytes.len() == 400 { Ok(bytes.to_vec()) } else { Err("another one".to_owned()) };
    for (name, script, want) in [
        ("good", vec![whole.clone()], Ok(())),
        ("cut once", vec![Answer::Everything { break_after: 7 }, whole], Ok(())),
        ("endless", vec![Answer::Endless], Err("larger than")),
        ("gone", vec![Answer::Status("404 Not Found")], Err("404")),
        ("always cut", vec![Answer::Everything { break_after: 7 }], Err("3 tries")),
        ("another", vec![Answer::Other(vec![1; 5])], Err("another one")),
        ("another once", vec![Answer::Other(vec![1; 5]), Answer::Everything { break_after: ALL }], Ok(())),
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
