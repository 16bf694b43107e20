//! Files over HTTP, to clients that other people wrote and to readers that do what those never would.

mod common;

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use drophammer_images::debian::Programs;
use drophammer_protocol::event::Recorded;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::common::{configure, curl, in_a_network, output, run, start};

const PACKAGES: [&str; 3] = ["apache2-utils", "aria2", "wget"];
const SCRIPT: &str =
    "http://10.77.0.1/boot/script.ipxe?mac=52-54-00-77-01-01&uuid=12345678-9abc-4ef0-9234-56789abcdef0";
const KERNEL: &str = "http://10.77.0.1/boot/vmlinuz";
const IMAGE: &str = "http://10.77.0.1/images/debian/1/root.frames";
/// More than sockets and pieces hold at once.
const LARGE: u64 = 64 << 20;

#[test]
fn files_reach_every_kind_of_reader() {
    let fetch = || drop(Programs::of(&PACKAGES).expect("Debian's packages"));
    in_a_network("files_reach_every_kind_of_reader", fetch, inside());
}

async fn inside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    let kernel: Vec<u8> = (0..800_001_u32).flat_map(u32::to_be_bytes).collect();
    let files: [(&str, &[u8]); 4] =
        [("vmlinuz", &kernel), ("initramfs", b"an initramfs."), ("undionly.kpxe", b"bios"), ("snponly.efi", b"uefi")];
    run("ip link add server0 type veth peer name client0");
    run("ip link set client0 up");
    run("ip link set server0 up");
    run("ip address add 10.77.0.1/24 dev server0");
    let config = configure(
        dir,
        &files,
        r#"
        [[network]]
        interface = "server0"
        address = "10.77.0.1"
        subnet = "10.77.0.0/24"
        pool = [{ first = "10.77.0.100", last = "10.77.0.101" }]
        "#,
    );
    let image = dir.join("state/images/debian/1/root.frames");
    fs::create_dir_all(image.parent().expect("a directory")).expect("made");
    renew(&image);
    // Until the second is over in which they were made, files have no date.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let common::Server { stop, server, .. } = start(&config).await;
    every_way_is_the_same(&kernel).await;
    one_connection_is_enough(&kernel).await;
    odd_requests().await;
    the_timeline_hears_of_it(&dir.join("state/control.sock"), &kernel).await;
    no_name_leads_elsewhere(dir).await;
    slow_readers_hold_nobody_up(&kernel).await;
    what_changes_on_the_way_is_not_taken_for_whole(&image).await;
    other_programs_get_it_right(dir, &kernel).await;

    // The server is told to stop while one connection is idle and one in the middle of an answer.
    let mut idle = connect().await;
    ask(&mut idle, "GET /boot/vmlinuz HTTP/1.1\r\n\r\n").await;
    assert!(body(&mut idle).await.1 == kernel);
    let mut busy = connect().await;
    ask(&mut busy, "GET /images/debian/1/root.frames HTTP/1.1\r\n\r\n").await;
    busy.read_exact(&mut [0; 1000]).await.expect("the beginning");
    stop.send(()).expect("is running");
    assert_eq!(within(idle.read(&mut [0; 1])).await.expect("an orderly end"), 0);
    let mut rest = Vec::new();
    within(busy.read_to_end(&mut rest)).await.expect("all of it");
    assert!(rest.len() as u64 > LARGE - 1000, "{} bytes", rest.len());
    server.await.expect("no panic").expect("an orderly end");
}

/// The first line of an answer's head, the others in order, and the body.
type Answer = (String, Vec<String>, Vec<u8>);

async fn fetch(arguments: &[&str]) -> Answer {
    let text = curl(&[&["--include"], arguments].concat()).await;
    split(&text)
}

fn split(text: &[u8]) -> Answer {
    let end = text.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&text[..end]);
    let (first, lines) = head.split_once("\r\n").expect("headers");
    let code = first.split(' ').nth(1).expect("a status").to_owned();
    let lines = lines.split("\r\n").map(|line| line.split_once(": ").expect("a header"));
    let lines = lines.map(|(name, value)| format!("{}: {value}", name.to_lowercase()));
    // What belongs to the moment or the connection.
    let mut lines: Vec<String> = lines.filter(|l| !l.starts_with("date:") && !l.starts_with("connection:")).collect();
    lines.sort();
    (code, lines, text[end + 4..].to_vec())
}

/// By sendfile, and through the server that knows all of HTTP: the same answers.
async fn every_way_is_the_same(kernel: &[u8]) {
    let (_, headers, _) = fetch(&["--head", KERNEL]).await;
    let value = |name: &str| {
        let line = headers.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {headers:?}")).to_owned()
    };
    let (tag, modified) = (value("etag"), value("last-modified"));
    assert_eq!(value("content-length"), kernel.len().to_string());
    let same = format!("if-none-match: {tag}");
    let other = "if-match: \"other\"";
    let since = format!("if-modified-since: {modified}");
    let (by_tag, by_date) = (format!("if-range: {tag}"), format!("if-range: {modified}"));
    let old = "if-range: \"other\"";
    let end = kernel.len();
    for (name, arguments, want, content) in [
        ("the whole", vec![], "200", 0..end),
        ("its beginning", vec!["--range", "0-9"], "206", 0..10),
        ("its end", vec!["--range", "-9"], "206", end - 9..end),
        ("the rest", vec!["--range", "2000001-"], "206", 2_000_001..end),
        ("beyond the end", vec!["--range", "4000000-"], "416", 0..0),
        ("two ranges", vec!["--range", "0-1,4-5"], "200", 0..end),
        ("known by its tag", vec!["--header", &same], "304", 0..0),
        ("known by its date", vec!["--header", &since], "304", 0..0),
        ("changed", vec!["--header", other], "412", 0..0),
        ("a range of the same", vec!["--header", &by_tag, "--range", "5-8"], "206", 5..9),
        ("a range of the same date", vec!["--header", &by_date, "--range", "5-8"], "206", 5..9),
        ("a range of another", vec!["--header", old, "--range", "5-8"], "200", 0..end),
        ("its head", vec!["--head"], "200", 0..0),
    ] {
        let plain = fetch(&[&arguments[..], &[KERNEL]].concat()).await;
        assert_eq!(plain.0, want, "{name}");
        assert!(plain.2 == kernel[content], "{name}: {} bytes", plain.2.len());
        for way in [&["--http1.0"][..], &["--http2-prior-knowledge"], &["--header", "expect: nothing"]] {
            let answer = fetch(&[way, &arguments, &[KERNEL]].concat()).await;
            assert!(answer == plain, "{name}, {way:?}: {:?} instead of {:?}", answer.1, plain.1);
        }
    }
    let script = fetch(&[SCRIPT]).await;
    assert!(script.2.starts_with(b"#!ipxe\n"));
    let initrd = String::from_utf8(script.2).expect("text");
    let initrd = initrd.split_whitespace().find(|word| word.contains("/boot/initramfs/")).expect("an initramfs");
    let plain = fetch(&[initrd]).await;
    assert!(plain.2.starts_with(b"an initramfs.\0\0\x00070701"), "the ticket's archive at a multiple of four");
    assert!(plain == fetch(&["--http2-prior-knowledge", initrd]).await);
}

async fn one_connection_is_enough(kernel: &[u8]) {
    let count = ["--write-out", "%{num_connects}", "--output", "/dev/null"];
    let mut arguments = Vec::new();
    for (i, url) in [KERNEL, IMAGE, SCRIPT, "http://10.77.0.1/nothing", KERNEL].into_iter().enumerate() {
        if i > 0 {
            arguments.push("--next");
            arguments.push("--silent");
        }
        arguments.extend(count);
        arguments.push(url);
    }
    assert_eq!(curl(&arguments).await, b"10000");

    // All at once, and the last one is for the server that knows all of HTTP.
    let mut stream = connect().await;
    ask(
        &mut stream,
        "GET /boot/vmlinuz HTTP/1.1\r\n\r\nHEAD /boot/vmlinuz HTTP/1.1\r\n\r\n\
         GET /boot/vmlinuz HTTP/1.1\r\nrange: bytes=1-2\r\n\r\n\
         POST /boot/vmlinuz HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc\
         GET /boot/vmlinuz HTTP/1.1\r\nrange: bytes=3-4\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(body(&mut stream).await.1 == kernel);
    let head = head(&mut stream).await;
    assert!(head.contains(&format!("content-length: {}\r\n", kernel.len())), "{head}");
    assert_eq!(body(&mut stream).await.1, kernel[1..3]);
    assert!(body(&mut stream).await.0.starts_with("http/1.1 405"));
    assert_eq!(body(&mut stream).await.1, kernel[3..5]);
    assert_eq!(within(stream.read(&mut [0; 1])).await.expect("an orderly end"), 0);

    // A head in the smallest packets there are.
    let mut stream = connect().await;
    for byte in "GET /boot/vmlinuz HTTP/1.1\r\nhost: x\r\nrange: bytes=0-3\r\n\r\n".chars() {
        ask(&mut stream, &byte.to_string()).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(body(&mut stream).await.1, kernel[..4]);
}

async fn odd_requests() {
    let endless = format!("GET /boot/vmlinuz HTTP/1.1\r\nx: {}", "y".repeat(1 << 20));
    for (name, request, want, stays) in [
        ("HTTP/1.0", "GET /boot/time?nonce=a HTTP/1.0\r\n\r\n", "http/1.0 200", false),
        ("HTTP/1.0 that stays", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "http/1.0 404", true),
        ("to be closed", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "http/1.1 404", false),
        ("bare line feeds", "HEAD /boot/vmlinuz HTTP/1.1\n\n", "http/1.1 200", true),
        ("with a host", "HEAD http://10.77.0.1/boot/vmlinuz HTTP/1.1\r\n\r\n", "http/1.1 200", true),
        ("an empty line before", "\r\nHEAD /boot/vmlinuz HTTP/1.1\r\n\r\n", "http/1.1 200", true),
        ("expecting", "GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", "http/1.1 404", true),
        ("a body", "GET / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", "http/1.1 404", true),
        ("no HTTP", "hello\r\n\r\n", "http/1.1 400", false),
        ("a blank in a name", "GET / HTTP/1.1\r\na b: c\r\n\r\n", "http/1.1 400", false),
        ("an endless head", &endless, "http/1.1 431", false),
    ] {
        let mut stream = connect().await;
        // The server needn't read all of what it refuses.
        drop(stream.write_all(request.as_bytes()).await);
        let head = if request.contains("HEAD") { head(&mut stream).await } else { body(&mut stream).await.0 };
        assert!(head.starts_with(want), "{name}: {head}");
        if stays {
            ask(&mut stream, "GET /boot/vmlinuz HTTP/1.1\r\nrange: bytes=-4\r\nconnection: close\r\n\r\n").await;
            assert_eq!(body(&mut stream).await.1.len(), 4, "{name}");
        }
        // Or a reset, where it didn't.
        assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap_or(0), 0, "{name}");
    }
}

async fn the_timeline_hears_of_it(socket: &Path, kernel: &[u8]) {
    curl(&[SCRIPT]).await;
    curl(&[KERNEL]).await;
    curl(&["--head", KERNEL]).await;
    let mut stream = connect().await;
    SockRef::from(&stream).set_recv_buffer_size(4096).expect("set");
    ask(&mut stream, "GET /boot/vmlinuz HTTP/1.1\r\n\r\n").await;
    stream.read_exact(&mut [0; 1000]).await.expect("the beginning");
    reset(stream);

    let events = "http://localhost/v1/machines/12345678-9abc-4ef0-9234-56789abcdef0/events";
    let mut said = Vec::new();
    for _ in 0..200 {
        let events = curl(&["--unix-socket", socket.to_str().expect("text"), events]).await;
        let events: Vec<Recorded> = serde_json::from_slice(&events).expect("events");
        said = events.into_iter().map(|e| e.message).skip_while(|m| !m.starts_with("asked")).collect();
        said.retain(|message| message.contains("fetch"));
        if said.last().is_some_and(|last| last.starts_with("stopped")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let [.., fetched, stopped] = &said[..] else { panic!("{said:?}") };
    assert!(fetched.starts_with("fetched the kernel: 3,200,004 bytes in ") && fetched.ends_with("B/s)"), "{fetched}");
    assert!(stopped.starts_with("stopped fetching the kernel after "), "{stopped}");
    assert!(stopped.ends_with(" of 3,200,004 bytes"), "{stopped}");
    assert_eq!(kernel.len(), 3_200_004);
}

/// Whatever a name says, and however it says it.
async fn no_name_leads_elsewhere(dir: &Path) {
    fs::write(dir.join("state/secret"), "a secret").expect("written");
    fs::write(dir.join("state/images/debian/1/.hidden"), "a secret").expect("written");
    for path in [
        "/secret",
        "/images/../secret",
        "/images/debian/1/../../../secret",
        "/images/debian/1/..%2f..%2f..%2fsecret",
        "/images/%2e%2e/%2e%2e/state%2fsecret",
        "/images/debian/%2e%2e/secret",
        "/images/../../state/secret",
        "/images/debian/1/.hidden",
        "/images/secret",
        "/images/revoked.json",
        "/images/debian/1/",
        "/images/debian/1/root.frames/",
        "/images/debian/1/root.frames%00",
        "/images/debian/1/%ff",
        "/images//debian/1/root.frames",
        "//images/debian/1/root.frames",
        "/boot/../secret",
        "/boot/..%2fsecret",
        "/boot/%2fetc%2fpasswd",
        "/boot/initramfs/..%2f..%2fsecret",
    ] {
        for way in ["--http1.1", "--http2-prior-knowledge"] {
            let url = format!("http://10.77.0.1{path}");
            let answer = fetch(&[way, "--path-as-is", &url]).await;
            assert!(["400", "404"].contains(&answer.0.as_str()), "{path}, {way}: {}", answer.0);
            assert!(!answer.2.starts_with(b"a secret"), "{path}, {way}");
        }
    }
    // What mirrors ask for, where there is one.
    fs::write(dir.join("state/images/revoked.json"), "a list").expect("written");
    let answer = fetch(&["http://10.77.0.1/images/revoked.json"]).await;
    assert_eq!((answer.0.as_str(), answer.2.as_slice()), ("200", b"a list".as_slice()));
}

async fn slow_readers_hold_nobody_up(kernel: &[u8]) {
    const ASK: &str = "GET /images/debian/1/root.frames HTTP/1.1\r\n\r\n";
    let (mut still, mut crawling, mut dripping) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        let mut stream = connect().await;
        ask(&mut stream, ASK).await;
        stream.read_exact(&mut [0; 1000]).await.expect("the beginning");
        still.push(stream);
        let mut stream = connect().await;
        ask(&mut stream, ASK).await;
        crawling.push(tokio::spawn(async move {
            while stream.read(&mut [0; 1000]).await.expect("is still served") > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
        let mut stream = connect().await;
        dripping.push(tokio::spawn(async move {
            for byte in ASK.chars().cycle().filter(|byte| !"\r\n".contains(*byte)) {
                ask(&mut stream, &byte.to_string()).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    assert!(curl(&[KERNEL]).await == kernel, "beside 200 readers that don't read, 200 that crawl, 200 half heads");
    assert_eq!(curl(&[IMAGE]).await.len() as u64, LARGE);
    let mut last = still.pop().expect("200");
    let mut rest = vec![1; 10 << 20];
    within(last.read_exact(&mut rest)).await.expect("more, when it's wanted");
    assert!(rest.iter().all(|byte| *byte == 0));
    still.into_iter().for_each(reset);
    for task in crawling.into_iter().chain(dripping) {
        assert!(!task.is_finished(), "nobody was cut off");
        task.abort();
    }
    assert!(curl(&[KERNEL]).await == kernel, "after 199 resets");
}

/// The image as it was at first.
fn renew(image: &Path) -> fs::File {
    let next = image.with_extension("next");
    let file = fs::File::create(&next).expect("made");
    file.set_len(LARGE).expect("grown");
    fs::rename(next, image).expect("renamed");
    file
}

async fn what_changes_on_the_way_is_not_taken_for_whole(image: &Path) {
    type Change = fn(&fs::File, &Path);
    let cases: [(&str, Change, bool); 7] = [
        ("nothing", |_, _| {}, true),
        ("another in its place", |_, image| drop(renew(image)), true),
        ("removed", |_, image| fs::remove_file(image).expect("removed"), true),
        ("cut", |file, _| file.set_len(1 << 20).expect("cut"), false),
        (
            "cut and grown",
            |file, _| {
                file.set_len(1 << 20).expect("cut");
                file.set_len(LARGE).expect("grown");
            },
            false,
        ),
        ("written to", |file, _| file.write_all_at(b"x", LARGE - 9).expect("written"), false),
        ("written to what was sent", |file, _| file.write_all_at(b"x", 9).expect("written"), false),
    ];
    for (name, change, whole) in cases {
        for way in ["", "expect: nothing\r\n"] {
            let file = renew(image);
            let mut stream = connect().await;
            ask(&mut stream, &format!("GET /images/debian/1/root.frames HTTP/1.1\r\n{way}connection: close\r\n\r\n"))
                .await;
            let head = head(&mut stream).await;
            assert!(head.contains(&format!("content-length: {LARGE}\r\n")), "{head}");
            // The clock of file systems ticks every few milliseconds.
            tokio::time::sleep(Duration::from_millis(20)).await;
            change(&file, image);
            let mut rest = Vec::new();
            // Through hyper the end may be a reset.
            drop(within(stream.read_to_end(&mut rest)).await);
            assert_eq!(rest.len() as u64 == LARGE, whole, "{name}, {way}{} bytes", rest.len());
            assert!(!whole || rest.iter().all(|byte| *byte == 0), "{name}, {way}");
        }
    }
    renew(image);
}

async fn other_programs_get_it_right(dir: &Path, kernel: &[u8]) {
    let programs = Programs::of(&PACKAGES).expect("in the cache");
    let program = |path: &str| programs.command(path).expect("is in the package");
    let got = dir.join("got");
    let to = got.to_str().expect("text");
    // The beginning is there from an earlier attempt.
    for (name, mut command, arguments, begun) in [
        ("wget", program("/usr/bin/wget"), &["--no-proxy", "--quiet", "--output-document", to, KERNEL][..], 0),
        ("wget, the rest", program("/usr/bin/wget"), &["--no-proxy", "-c", "--quiet", "-O", to, KERNEL], 1_000_000),
        ("BusyBox", Command::new("busybox"), &["wget", "-Y", "off", "-q", "-O", to, KERNEL], 0),
        ("BusyBox, the rest", Command::new("busybox"), &["wget", "-Y", "off", "-q", "-c", "-O", to, KERNEL], 1_000_000),
        ("curl, the rest", Command::new("curl"), &["--noproxy", "*", "-sS", "-C", "-", "-o", to, KERNEL], 1_000_000),
        (
            "aria2, in parts",
            program("/usr/bin/aria2c"),
            &[
                "--no-conf",
                "-q",
                "-x",
                "8",
                "-s",
                "8",
                "-k",
                "1M",
                "--allow-overwrite",
                "-d",
                "/",
                "-o",
                &to[1..],
                KERNEL,
            ],
            0,
        ),
    ] {
        drop(fs::remove_file(&got));
        if begun > 0 {
            fs::write(&got, &kernel[..begun]).expect("written");
        }
        let done = output(command.args(arguments)).await;
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&[done.stdout, done.stderr].concat()));
        assert!(fs::read(&got).expect("written") == kernel, "{name}");
    }
    for keep in [&["-k"][..], &[]] {
        let range = ["-q", "-n", "2000", "-c", "64", "-H", "Range: bytes=1000-200999", KERNEL];
        let done = output(program("/usr/bin/ab").args(keep).args(range)).await;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        for want in ["Failed requests:        0\n", "HTML transferred:       400000000 bytes\n"] {
            assert!(done.status.success() && said.contains(want), "{said}{}", String::from_utf8_lossy(&done.stderr));
        }
    }
}

async fn connect() -> TcpStream {
    TcpStream::connect("10.77.0.1:80").await.expect("connects")
}

async fn ask(stream: &mut TcpStream, request: &str) {
    stream.write_all(request.as_bytes()).await.expect("sent");
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
}

/// In lower case, to its empty line and no further.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = within(stream.read_u8()).await;
        head.push(byte.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head))));
    }
    String::from_utf8(head).expect("text").to_lowercase()
}

async fn body(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let head = head(stream).await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    within(stream.read_exact(&mut body)).await.expect("the body");
    (head, body)
}

/// A test that hangs tells nobody why.
async fn within<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("an answer within a minute")
}
