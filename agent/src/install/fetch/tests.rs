use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;
use crate::server;

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
    /// This head, word for word but for `{first}`, `{last}`, `{length}` and `{total}`, which stand for what they are of the
    /// range that was asked for; then a body, and an end.
    Raw {
        head: &'static str,
        body: Body,
        end: End,
    },
    Status(&'static str),
    /// Closes without a word.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::install) enum Body {
    Nothing,
    /// The range.
    Range,
    /// All of the file.
    File,
    /// The range in chunks of HTTP's own kind.
    Chunked,
    /// The same word for ever.
    Endless(&'static str),
}

/// What follows a body.
#[derive(Clone, Copy, Debug)]
pub(in crate::install) enum End {
    Close,
    /// Neither a word nor an end.
    Silence,
    /// The body came in a byte at a time.
    Trickle,
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
        Self::of(move |_| file.clone(), script)
    }

    /// With the file for each path.
    pub(in crate::install) fn of(file: impl Fn(&str) -> Vec<u8> + Send + 'static, script: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (mut asked, mut path) = (None, String::new());
                for line in BufReader::new(&connection).lines().map_while(Result::ok).take_while(|l| !l.is_empty()) {
                    if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                        let (first, last) = range.split_once('-').expect("a range");
                        asked = first.parse::<u64>().ok().zip(last.parse::<u64>().ok());
                    }
                    if let Some(rest) = line.strip_prefix("GET ") {
                        path = rest.split(' ').next().unwrap_or_default().to_owned();
                    }
                }
                let (start, end) = asked.map_or((0, u64::MAX), |(first, last)| (first, last + 1));
                let number = {
                    let mut log = log.lock().expect("no panics");
                    log.push(start);
                    log.len() - 1
                };
                let answer = script.get(number).or(script.last()).cloned().expect("a script");
                let file = file(&path);
                // One that is slow doesn't keep others waiting. A client that has what it wanted may be gone by now.
                thread::spawn(move || respond(&connection, &file, start..end, &answer));
            }
        });
        Self { url, asked }
    }
}

fn respond(mut to: impl Write, file: &[u8], asked: Range<u64>, answer: &Answer) -> std::io::Result<()> {
    let total = file.len();
    let start = asked.start;
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(total);
    let rest = &file[place(start)..place(asked.end)];
    let head = |status: &str, length: usize, more: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
    };
    let range = format!("Content-Range: bytes {start}-{}/{total}\r\n", place(asked.end).saturating_sub(1));
    let chunked;
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
        Answer::Raw { head, body, end } => {
            let last = place(asked.end).saturating_sub(1);
            let values = [("first", place(start)), ("last", last), ("length", rest.len()), ("total", total)];
            let head = values
                .iter()
                .fold((*head).to_owned(), |h, (name, v)| h.replace(&format!("{{{name}}}"), &v.to_string()))
                // Or a client asks again on a connection that is about to be closed.
                .replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
            to.write_all(head.as_bytes())?;
            let body = match body {
                Body::Nothing => &[][..],
                Body::Range => rest,
                Body::File => file,
                Body::Chunked => {
                    let size = format!("{:x}\r\n", rest.len());
                    chunked = [size.as_bytes(), rest, b"\r\n0\r\n\r\n"].concat();
                    &chunked
                }
                Body::Endless(word) => loop {
                    to.write_all(word.as_bytes())?;
                },
            };
            match end {
                End::Trickle => {
                    for byte in body {
                        to.write_all(&[*byte])?;
                        thread::sleep(Duration::from_millis(10));
                    }
                }
                End::Close => to.write_all(body)?,
                End::Silence => {
                    to.write_all(body)?;
                    thread::sleep(Duration::from_secs(60));
                }
            }
            return Ok(());
        }
    };
    to.write_all(head.as_bytes())?;
    to.write_all(body)
}

pub(in crate::install) const HASTE: Patience = Patience {
    fruitless_tries: 3,
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(2),
    slowest: 1000,
    grace: Duration::from_millis(300),
};

/// The agent's own, but for how long it waits for a server that is silent.
pub(in crate::install) fn client() -> Client {
    server::plain_http_within(Duration::from_secs(2)).expect("a client")
}

pub(in crate::install) const ALL: usize = usize::MAX;

#[test]
fn pauses_grow_and_end() {
    let patience = Patience::ORDINARY;
    let pauses: Vec<u128> = [1, 2, 3, 7, 40].map(|n| patience.pause(n).as_millis()).to_vec();
    assert_eq!(pauses, [200, 400, 800, 10_000, 10_000]);
}
