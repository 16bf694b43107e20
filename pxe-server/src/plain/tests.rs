//! Clients that keep a server waiting, and answers that break off.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::future::join_all;
use futures_util::stream;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::*;
use crate::http::parcel::Edition;

const PATIENCE: Patience = Patience { to_ask: Duration::from_secs(1), to_take: Duration::from_secs(1) };
const LARGE: u64 = 8 << 20;
/// As little as fits between the two, so that a client that waits is felt by the server.
const BETWEEN: usize = 128 << 10;

/// What became of a connection.
type Outcome = Result<&'static str, ErrorKind>;

struct Door {
    address: SocketAddr,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    stop: watch::Sender<bool>,
}

impl Door {
    async fn open(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let (tell, outcomes) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let answerer = Answerer { app, peer: None, certificate: None };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                SockRef::from(&stream).set_send_buffer_size(BETWEEN).expect("set");
                let (answerer, tell, mut stop) = (answerer.clone(), tell.clone(), stopped.clone());
                tokio::spawn(async move {
                    let outcome = match converse(stream, &answerer, PATIENCE, &mut stop).await {
                        Ok(None) => Ok("over"),
                        Ok(Some(_)) => Ok("for others"),
                        Err(error) => Err(error.kind()),
                    };
                    tell.send(outcome).expect("is waited for");
                });
            }
        });
        Self { address, outcomes, stop }
    }

    async fn outcome(&mut self) -> Outcome {
        tokio::time::timeout(Duration::from_secs(30), self.outcomes.recv()).await.expect("an end").expect("an outcome")
    }
}

fn large() -> Router {
    let file = Arc::new(tempfile::tempfile().expect("a file"));
    file.set_len(LARGE).expect("grown");
    Router::new().fallback(async move || {
        let edition = Edition::of(&file.metadata().expect("facts"));
        let (file, path, ended) = (Arc::clone(&file), std::path::Path::new("large").into(), Arc::new(drop));
        let parcel = Parcel { file, path, edition, range: 0..LARGE, tail: b"tail"[..].into(), total: LARGE + 4, ended };
        ([(header::CONTENT_LENGTH, LARGE + 4)], Extension(parcel), "").into_response()
    })
}

enum Then {
    Wait,
    /// Sends a byte now and then.
    Drip,
    /// Reads a piece now and then, to the end.
    Sip,
    Leave,
    Stop,
}

#[tokio::test]
async fn nobody_is_waited_for_without_end() {
    const ASK: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    let late: Outcome = Err(ErrorKind::TimedOut);
    let small = Router::new().fallback(async || "x".repeat(100_000));
    let many = ASK.repeat(1000);
    let cases = [
        ("never asks", large(), &b""[..], Then::Wait, late),
        ("stops asking", large(), b"GET / HTT", Then::Wait, late),
        ("asks for ever", large(), b"GET / HTTP/1.1\r\nx: ", Then::Drip, late),
        ("takes nothing", large(), ASK, Then::Wait, late),
        ("takes nothing of many", small, &many, Then::Wait, late),
        ("takes it for longer than patience lasts", large(), ASK, Then::Sip, Ok("over")),
        ("goes in the middle", large(), ASK, Then::Leave, Err(ErrorKind::ConnectionReset)),
        ("is there when the server stops", large(), b"", Then::Stop, Ok("over")),
        ("wants something else", large(), b"POST / HTTP/1.1\r\n\r\n", Then::Wait, Ok("for others")),
    ];
    join_all(cases.map(async |(name, app, asked, then, outcome)| {
        let mut door = Door::open(app).await;
        let mut stream = Some(TcpStream::connect(door.address).await.expect("connects"));
        let client = stream.as_mut().expect("is open");
        SockRef::from(&*client).set_recv_buffer_size(BETWEEN).expect("set");
        client.write_all(asked).await.expect("sent");
        match then {
            Then::Wait => {}
            Then::Drip => {
                while client.write_all(b"a").await.is_ok() {
                    sleep(Duration::from_millis(20)).await;
                }
            }
            Then::Sip => {
                let mut left = LARGE;
                let mut piece = vec![0; 1 << 20];
                while left > 0 {
                    let read = client.read(&mut piece).await.expect("is still served");
                    left = left.saturating_sub(read as u64);
                    sleep(Duration::from_millis(100)).await;
                }
                stream = None;
            }
            Then::Leave => {
                client.read_exact(&mut [0; 1000]).await.expect("the beginning");
                stream = None;
            }
            Then::Stop => door.stop.send(true).expect("is heard"),
        }
        assert_eq!(door.outcome().await, outcome, "{name}");
        drop(stream);
    }))
    .await;
}

#[tokio::test]
async fn what_breaks_off_is_not_taken_for_whole() {
    let pieces = |last: io::Result<&'static str>| Body::from_stream(stream::iter([Ok("some, "), last]));
    let broken = || Err(ErrorKind::TimedOut.into());
    let announced = || [(header::CONTENT_LENGTH, "10")];
    let app = Router::new()
        .route("/short", get(async move || (announced(), pieces(Ok("few")))))
        .route("/long", get(async move || (announced(), pieces(Ok("too many")))))
        .route("/broken", get(async move || (announced(), pieces(broken()))))
        .route("/broken-chunks", get(async move || pieces(broken())));
    for (path, content, outcome) in [
        ("/short", "some, few", ErrorKind::UnexpectedEof),
        ("/long", "some, ", ErrorKind::FileTooLarge),
        ("/broken", "some, ", ErrorKind::Other),
        ("/broken-chunks", "6\r\nsome, \r\n", ErrorKind::Other),
    ] {
        let mut door = Door::open(app.clone()).await;
        let mut stream = TcpStream::connect(door.address).await.expect("connects");
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an end");
        let (_, got) = answer.split_once("\r\n\r\n").expect("a head");
        assert_eq!((got, door.outcome().await), (content, Err(outcome)), "{path}");
    }
}
