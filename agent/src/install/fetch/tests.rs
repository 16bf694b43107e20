use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;

/// What the server does with one request.
#[derive(Clone, Debug)]
pub(in crate::install) enum Answer {
    /// Ranges as they should be, but the connection breaks after so many bytes of body.
    Range {
        break_after: usize,
    },
    /// 200 with everything, whatever range was asked for.
    Everything {
        break_after: usize,
    },
    /// These bytes in place of the file's, as a correct range.
    Other(Vec<u8>),
    /// 206 with this `Content-Range`.
    Claim(&'static str),
    /// A correct range of a file that never ends.
    Endless,
    Status(&'static str),
    /// Closes without a word.
    Nothing,
}

/// A real HTTP server on the loopback with a file and a script: the n-th request gets the n-th answer, later ones the
/// last.
pub(in crate::install) struct Server {
    pub(in crate::install) url: String,
    /// First byte of each range that was asked for.
    pub(in crate::install) asked: Arc<Mutex<Vec<u64>>>,
}

impl Server {
    pub(in crate::install) fn new(file: Vec<u8>, script: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let mut start = None;
                for line in BufReader::new(&connection).lines().map_while(Result::ok).take_while(|l| !l.is_empty()) {
                    if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                        start = range.strip_suffix('-').and_then(|s| s.parse::<u64>().ok());
                    }
                }
                let start = start.unwrap_or(0);
                let number = {
                    let mut log = log.lock().expect("no panics");
                    log.push(start);
                    log.len() - 1
                };
                let answer = script.get(number).or(script.last()).cloned().expect("a script");
                // A client that has what it wanted may be gone by now.
                let _ = respond(&connection, &file, start, &answer);
            }
        });
        Self { url, asked }
    }
}

fn respond(mut to: impl Write, file: &[u8], start: u64, answer: &Answer) -> std::io::Result<()> {
    let total = file.len();
    let rest = usize::try_from(start).ok().and_then(|s| file.get(s..)).unwrap_or_default();
    let head = |status: &str, length: usize, more: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
    };
    let range = format!("Content-Range: bytes {start}-{}/{total}\r\n", total.saturating_sub(1));
    let (head, body) = match answer {
        Answer::Range { break_after } => {
            (head("206 Partial Content", rest.len(), &range), rest.get(..*break_after).unwrap_or(rest))
        }
        Answer::Everything { break_after } => (head("200 OK", total, ""), file.get(..*break_after).unwrap_or(file)),
        Answer::Other(bytes) => (head("206 Partial Content", bytes.len(), &range), &bytes[..]),
        Answer::Claim(range) => (head("206 Partial Content", total, &format!("Content-Range: {range}\r\n")), file),
        Answer::Endless => {
            let claim = format!("HTTP/1.1 206 Partial Content\r\n{range}Connection: close\r\n\r\n");
            to.write_all(claim.as_bytes())?;
            to.write_all(rest)?;
            loop {
                to.write_all(&[0; 65536])?;
            }
        }
        Answer::Status(status) => (head(status, 0, ""), &[][..]),
        Answer::Nothing => return Ok(()),
    };
    to.write_all(head.as_bytes())?;
    to.write_all(body)
}

pub(in crate::install) const HASTE: Patience =
    Patience { fruitless_tries: 3, first_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(2) };

pub(in crate::install) fn client() -> Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().tls_danger_accept_invalid_certs(true).build().expect("a client")
}

fn numbers(count: u32) -> Vec<u8> {
    (0..count).flat_map(u32::to_le_bytes).collect()
}

const ALL: usize = usize::MAX;

#[test]
fn pieces_come_whole_from_servers_of_all_kinds() {
    let file = numbers(2000);
    for (name, script, want_requests) in [
        ("a good one", vec![Answer::Range { break_after: ALL }], 1),
        ("one that drops every 3000 bytes", vec![Answer::Range { break_after: 3000 }], 3),
        ("one that knows no ranges", vec![Answer::Everything { break_after: ALL }], 1),
        (
            "one that knows no ranges and drops once",
            vec![Answer::Everything { break_after: 5000 }, Answer::Everything { break_after: ALL }],
            2,
        ),
        ("one that never ends", vec![Answer::Endless], 1),
        (
            "one that is restarted",
            vec![
                Answer::Range { break_after: 100 },
                Answer::Nothing,
                Answer::Status("503 Service Unavailable"),
                Answer::Range { break_after: ALL },
            ],
            4,
        ),
        (
            "one that answers with another range at first",
            vec![Answer::Claim("bytes 7-7999/8000"), Answer::Range { break_after: ALL }],
            2,
        ),
        ("one that doesn't tell the size", vec![Answer::Claim("bytes 0-7999/*")], 1),
    ] {
        let server = Server::new(file.clone(), script);
        let notes = Mutex::new(Vec::new());
        let note = |what: String| notes.lock().expect("no panics").push(what);
        let http = client();
        let mut download = Download::new(&http, format!("{}/file", server.url), file.len() as u64, HASTE, &note);
        let mut got = vec![0; file.len()];
        let (first, second) = got.split_at_mut(4321);
        download.fill(0, first).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        download.fill(4321, second).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert!(got == file, "{name}: other bytes");
        assert_eq!(server.asked.lock().expect("no panics").len(), want_requests, "{name}: requests");
        assert_eq!(notes.lock().expect("no panics").len(), want_requests - 1, "{name}: every interruption is told");
        assert!(download.fetched() >= file.len() as u64, "{name}: counted");
    }
}

#[test]
fn what_is_asked_for_again_is_fetched_again() {
    let file = numbers(100);
    let server = Server::new(file.clone(), vec![Answer::Range { break_after: ALL }]);
    let http = client();
    let mut download = Download::new(&http, server.url.clone(), 400, HASTE, &|_| {});
    let mut got = [0; 40];
    download.fill(0, &mut got).expect("fetched");
    download.fill(0, &mut got).expect("fetched again");
    assert_eq!(got, file[..40]);
    assert_eq!(*server.asked.lock().expect("no panics"), [0, 0]);
}

#[test]
fn hopeless_servers_are_given_up() {
    for (name, script, want, want_requests) in [
        ("gone", vec![Answer::Status("404 Not Found")], "the server answered 404", 1),
        ("not for us", vec![Answer::Status("403 Forbidden")], "the server answered 403", 1),
        ("broken", vec![Answer::Status("500 Internal Server Error")], "3 tries in a row brought nothing", 3),
        ("silent", vec![Answer::Nothing], "3 tries in a row brought nothing", 3),
        ("another range", vec![Answer::Claim("bytes 9-99/400")], "answered with another range", 3),
        ("no range", vec![Answer::Claim("what")], "answered with another range", 3),
        ("another file", vec![Answer::Claim("bytes 0-99/100")], "has 100 bytes, the manifest says 400", 1),
        ("a short file as a whole", vec![Answer::Everything { break_after: 0 }], "3 tries in a row", 3),
    ] {
        let server = Server::new(numbers(100), script);
        let http = client();
        let mut download = Download::new(&http, server.url.clone(), 400, HASTE, &|_| {});
        let error = format!("{:#}", download.fill(0, &mut [0; 400]).expect_err(name));
        assert!(error.contains(want), "{name}: {error}");
        assert_eq!(server.asked.lock().expect("no panics").len(), want_requests, "{name}");
    }
}

#[test]
fn whole_files_are_bounded() {
    let file = numbers(100);
    for (name, script, limit, want) in [
        ("good", vec![Answer::Everything { break_after: ALL }], 400, Ok(())),
        ("cut once", vec![Answer::Everything { break_after: 7 }, Answer::Everything { break_after: ALL }], 400, Ok(())),
        ("larger than allowed", vec![Answer::Everything { break_after: ALL }], 399, Err("larger than 399")),
        ("endless", vec![Answer::Endless], 4000, Err("larger than 4000")),
        ("gone", vec![Answer::Status("404 Not Found")], 400, Err("404")),
        ("always cut", vec![Answer::Everything { break_after: 7 }], 400, Err("3 tries")),
    ] {
        let server = Server::new(file.clone(), script);
        let got = whole(&client(), &server.url, limit, HASTE);
        match want {
            Ok(()) => assert_eq!(got.unwrap_or_else(|e| panic!("{name}: {e:#}")), file, "{name}"),
            Err(part) => {
                let error = format!("{:#}", got.expect_err(name));
                assert!(error.contains(part), "{name}: {error}");
            }
        }
    }
}

#[test]
fn pauses_grow_and_end() {
    let patience = Patience::ORDINARY;
    let pauses: Vec<u128> = [1, 2, 3, 7, 40].map(|n| patience.pause(n).as_millis()).to_vec();
    assert_eq!(pauses, [200, 400, 800, 10_000, 10_000]);
}

#[test]
fn content_ranges() {
    for (text, want) in [
        ("bytes 0-99/100", Some((0, Some(100)))),
        ("bytes 5-9/*", Some((5, None))),
        ("bytes */100", None),
        ("bytes 9-5/100", None),
        ("0-99/100", None),
        ("bytes -1-99/100", None),
        ("bytes 0-99/99999999999999999999", None),
        ("", None),
    ] {
        assert_eq!(content_range(text), want, "{text:?}");
    }
}
