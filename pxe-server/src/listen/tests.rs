//! The same bytes to the plain door and to hyper alone, which is what answers at the operators' socket: the same answers.

use std::path::PathBuf;

use axum::body::to_bytes;
use axum::http::header;
use axum::http::request::Parts;
use axum::routing::get;
use futures_util::future::join_all;
use futures_util::stream;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use super::*;

struct Doors {
    runtime: Runtime,
    plain: SocketAddr,
    hyper: PathBuf,
    _stop: watch::Sender<bool>,
    _dir: TempDir,
}

impl Doors {
    fn open() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let _guard = runtime.enter();
        let dir = tempfile::tempdir().expect("temporary directory");
        let hyper = dir.path().join("socket");
        let unix = UnixListener::bind(&hyper).expect("bound");
        let tcp = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("bound");
        let plain = tcp.local_addr().expect("an address");
        let (stop, stopped) = watch::channel(false);
        runtime.spawn(serve(Door::Http(tcp), echo(), stopped.clone()));
        runtime.spawn(serve(Door::Socket(unix), echo(), stopped));
        Self { runtime, plain, hyper, _stop: stop, _dir: dir }
    }

    /// What the plain door answers to each of these, and what hyper does.
    fn ask(&self, conversations: &[Vec<u8>]) -> Vec<(String, String)> {
        let ask = async |bytes: &[u8]| {
            let plain = TcpStream::connect(self.plain).await.expect("connects");
            let hyper = UnixStream::connect(&self.hyper).await.expect("connects");
            tokio::join!(answers(plain, bytes), answers(hyper, bytes))
        };
        self.runtime.block_on(join_all(conversations.iter().map(|bytes| ask(bytes))))
    }
}

/// Says all that was understood of a request.
fn echo() -> Router {
    let app = Router::new().fallback(async |parts: Parts, body: Body| {
        let body = to_bytes(body, 1 << 20).await.map_err(|error| error.to_string());
        format!("{} {} {:?} {:?} {body:?}\n", parts.method, parts.uri, parts.version, parts.headers)
    });
    // What another server says, as it says it.
    let pieces = || Body::from_stream(stream::iter(["some, ", "", "more, ", "all\n"].map(Ok::<_, Infallible>)));
    app.route("/pieces", get(async move || pieces()))
        .route("/announced", get(async move || ([(header::CONTENT_LENGTH, "16")], pieces())))
}

async fn answers(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    // Whoever isn't waiting for more of something else answers this one and closes. Hyper gives up on who closes first.
    let bytes = [bytes, b"GET /last HTTP/1.1\r\nconnection: close\r\n\r\n"].concat();
    // Either end may be through with the other.
    drop(stream.write_all(&bytes).await);
    let mut answers = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(2), stream.read_buf(&mut answers)).await {}
    // The order of headers means nothing, a date may be a second later, and hyper refuses in the version that was spoken last.
    let heads = String::from_utf8_lossy(&answers).into_owned();
    let heads = heads.split("\r\n\r\n").map(|head| {
        let mut lines: Vec<&str> = head.split("\r\n").filter(|line| !line.starts_with("date: ")).collect();
        lines.sort_unstable();
        if head.contains(" 400 Bad Request") { "HTTP/1.1 400".to_owned() } else { lines.join("\n") }
    });
    heads.collect::<Vec<_>>().join("\n\n")
}

#[test]
fn the_plain_door_is_not_another_http() {
    let doors = Doors::open();
    let long = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "a".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(90));
    let too_many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
    let cases = [
        ("the usual", "GET /a?b=c HTTP/1.1\r\nhost: h\r\n\r\n", "200 200"),
        ("nothing", "", "200"),
        ("half a head", "GET / HTTP/1.1\r\nx: ", "200"),
        ("no host", "GET / HTTP/1.1\r\n\r\n", "200 200"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "200 200"),
        ("a host before the path", "GET http://h/a HTTP/1.1\r\nhost: other\r\n\r\n", "200 200"),
        ("another scheme", "GET ftp://h/a HTTP/1.1\r\n\r\n", "200 200"),
        ("a name for a path", "GET a HTTP/1.1\r\n\r\n", "200 200"),
        ("a fragment", "GET /a#b HTTP/1.1\r\n\r\n", "200 200"),
        ("beyond ASCII", "GET /\u{e4} HTTP/1.1\r\n\r\n", "200 200"),
        ("dots", "GET /../../etc/passwd HTTP/1.1\r\n\r\n", "200 200"),
        ("escapes", "GET /%2e%2e%2f%00 HTTP/1.1\r\n\r\n", "200 200"),
        ("a body", "GET / HTTP/1.1\r\ncontent-length: 5\r\n\r\nGET /", "200 200"),
        (
            "a body that hides a request",
            "GET / HTTP/1.1\r\ncontent-length: 18\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            "200 200",
        ),
        ("no body, at length", "GET /a HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET /b HTTP/1.1\r\n\r\n", "200 200 200"),
        (
            "two lengths",
            "GET / HTTP/1.1\r\ncontent-length: 0\r\ncontent-length: 18\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            "400",
        ),
        ("a list of lengths", "GET / HTTP/1.1\r\ncontent-length: 0, 0\r\n\r\nGET /b HTTP/1.1\r\n\r\n", "400"),
        ("a signed length", "GET / HTTP/1.1\r\ncontent-length: +5\r\n\r\nGET /", "400"),
        (
            "length and chunks",
            "GET / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            "200",
        ),
        (
            "chunks",
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            "200 200 200",
        ),
        ("chunks by another name", "GET / HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", "400"),
        ("chunks in HTTP/1.0", "GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("a length with a blank", "GET / HTTP/1.1\r\ncontent-length : 5\r\n\r\nGET /", "400"),
        ("a folded length", "GET / HTTP/1.1\r\nx: y\r\n content-length: 5\r\n\r\nGET /", "400"),
        ("a bare carriage return", "GET / HTTP/1.1\r\nx: y\rcontent-length: 5\r\n\r\nGET /", "400"),
        ("bare line feeds", "GET /a HTTP/1.1\nhost: h\n\nGET /b HTTP/1.1\n\n", "200 200 200"),
        ("a zero byte", "GET / HTTP/1.1\r\nx: \0\r\n\r\n", "400"),
        ("a blank too many", "GET  / HTTP/1.1\r\n\r\n", "400"),
        ("a small method", "get / HTTP/1.1\r\n\r\n", "200 200"),
        ("expecting", "GET / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx", "100 200 200"),
        ("an upgrade", "GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", "200 200"),
        ("CONNECT", "CONNECT h:1 HTTP/1.1\r\n\r\n", "200"),
        ("HTTP/1.2", "GET / HTTP/1.2\r\n\r\n", "400"),
        ("HTTP/0.9", "GET /\r\n\r\n", "400"),
        ("HTTP/2 in the middle", "GET / HTTP/1.1\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "200"),
        ("after the last", "GET /a HTTP/1.1\r\nconnection: close\r\n\r\nGET /b HTTP/1.1\r\n\r\n", "200"),
        ("after the last of HTTP/1.0", "GET /a HTTP/1.0\r\n\r\nGET /b HTTP/1.0\r\n\r\n", "200"),
        ("pieces", "GET /pieces HTTP/1.1\r\n\r\n", "200 200"),
        ("pieces for HTTP/1.0", "GET /pieces HTTP/1.0\r\n\r\n", "200"),
        ("the head of pieces", "HEAD /pieces HTTP/1.1\r\n\r\n", "200 200"),
        ("pieces of a whole", "GET /announced HTTP/1.1\r\n\r\n", "200 200"),
        ("the head of a whole", "HEAD /announced HTTP/1.1\r\n\r\n", "200 200"),
        ("a long path", &long, "200 200"),
        ("many headers", &many, "200 200"),
        ("too many headers", &too_many, "431"),
    ];
    let bytes: Vec<Vec<u8>> = cases.iter().map(|(_, bytes, _)| bytes.as_bytes().to_vec()).collect();
    for ((name, _, want), (plain, hyper)) in cases.into_iter().zip(doors.ask(&bytes)) {
        assert_eq!(plain, hyper, "{name}");
        let codes = plain.lines().filter_map(|line| line.strip_prefix("HTTP/1.")).filter_map(|line| line.get(2..5));
        assert_eq!(codes.collect::<Vec<_>>().join(" "), want, "{name}: {plain}");
    }
}

#[test]
fn whatever_is_asked_hyper_would_have_answered_the_same() {
    let doors = Doors::open();
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let check = |conversations: Vec<Vec<u8>>| {
        for (bytes, (plain, hyper)) in conversations.iter().zip(doors.ask(&conversations)) {
            prop_assert_eq!(plain, hyper, "{:?}", String::from_utf8_lossy(bytes));
        }
        Ok(())
    };
    let many = prop::collection::vec(conversation(), 64);
    runner.run(&many, check).unwrap_or_else(|error| panic!("{error}"));
}

/// A few requests at once, good and bad, and sometimes one byte that isn't what it should be.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let flaw = prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>()));
    (prop::collection::vec(request(), 1..4), flaw).prop_map(|(requests, flaw)| {
        let mut bytes = requests.concat().into_bytes();
        if let Some((index, byte)) = flaw {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes
    })
}

fn request() -> impl Strategy<Value = String> {
    let any_of = |words: &'static [&'static str]| prop::sample::select(words);
    let lines = any_of(&[
        "host: h",
        "Range: bytes=0-1",
        "connection: close",
        "Connection: Keep-Alive",
        "connection: te, close",
        "connection: upgrade",
        "upgrade: websocket",
        "expect: 100-continue",
        "content-length: 0",
        "content-length: 3",
        "Content-Length : 3",
        "transfer-encoding: chunked",
        "transfer-encoding: gzip",
        " folded",
        "x:",
        "x: \u{e4}",
        ": y",
        "x y: z",
    ]);
    (
        any_of(&["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PRI"]),
        any_of(&["/", "/a?b", "//h/a", "*", "http://h/a", "h:80", "/%2e%2e", "/a b", "/announced"]),
        any_of(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0"]),
        prop::collection::vec(lines, 0..4),
        any_of(&["\r\n", "\r\n", "\n"]),
        any_of(&["", "", "abc", "3\r\nabc\r\n0\r\n\r\n", "0\r\n\r\n", "\r\n"]),
    )
        .prop_map(|(method, target, version, lines, end, body)| {
            let lines: String = lines.iter().map(|line| format!("{line}{end}")).collect();
            format!("{method} {target} {version}{end}{lines}{end}{body}")
        })
}

#[tokio::test]
async fn a_door_has_room_for_its_part_of_the_open_files() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let unix = UnixListener::bind(dir.path().join("socket")).expect("bound");
    let tcp = async || TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec![]).and_then(|p| p.self_signed(&key)).expect("a certificate");
    let identity = crate::tls::Identity::new(key.serialized_der(), &certificate.pem(), &certificate.pem());
    let tls = crate::tls::server(identity.expect("an identity"), &certificate.pem()).expect("TLS");
    let (http, https, socket) = (Door::Http(tcp().await), Door::Https(tcp().await, tls), Door::Socket(unix));
    for (open_files, for_agents, for_others) in
        [(1024, 768, 128), (20_000, 15_000, 2500), (65_536, 32_768, 8192), (1 << 20, 32_768, 8192), (0, 0, 0)]
    {
        assert_eq!(https.places(open_files), for_agents, "{open_files}");
        assert_eq!([http.places(open_files), socket.places(open_files)], [for_others; 2], "{open_files}");
    }
}
