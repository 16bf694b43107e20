//! What the tests publish to and mirror from: an S3-compatible server of another make, a file server, and a network that
//! can be cut and held up. All of them on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use drophammer_protocol::manifest::PACKS;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;

use crate::place::{Place, S3Options};

/// A service with one bucket that is called so.
pub(crate) const BUCKET: &str = "images";

pub(crate) struct S3 {
    pub(crate) address: SocketAddr,
    root: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl S3 {
    pub(crate) fn start() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join(BUCKET)).expect("a bucket");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).expect("a file system"));
        service.set_auth(SimpleAuth::from_single("AKID", "SECRET"));
        let service = service.build();
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { address, root, _runtime: runtime }
    }

    pub(crate) fn place(&self, url: &str) -> Place {
        self.place_by(url, self.address)
    }

    /// By way of another address.
    pub(crate) fn place_by(&self, url: &str, address: SocketAddr) -> Place {
        Place::parse(url, &self.options(address)).expect("a place")
    }

    pub(crate) fn options(&self, address: SocketAddr) -> S3Options {
        let credentials = self.root.path().join("credentials");
        let keys = "[default]\naws_access_key_id = AKID\naws_secret_access_key = SECRET\n";
        std::fs::write(&credentials, keys).expect("written");
        S3Options {
            endpoint: Some(format!("http://{address}")),
            region: Some("us-east-1".into()),
            credentials: Some(credentials),
        }
    }

    /// Where a file of the bucket is kept.
    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(key)
    }
}

/// Everything between a client and a server.
pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    state: Arc<Traffic>,
}

#[derive(Default)]
struct Traffic {
    /// Bytes towards the server that are still let through, if not all.
    left: Mutex<Option<u64>>,
    /// A request that begins so waits until it's let go.
    held: Mutex<Option<Vec<u8>>>,
    change: Condvar,
    waiting: AtomicBool,
    sent: AtomicU64,
}

impl Network {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Traffic::default());
        let traffic = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if *traffic.left.lock().expect("no panic") == Some(0) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                let (back, there) = (server.try_clone().expect("cloned"), client.try_clone().expect("cloned"));
                thread::spawn(move || pass_back(back, there));
                let traffic = Arc::clone(&traffic);
                thread::spawn(move || traffic.pass(client, server));
            }
        });
        Self { address, state }
    }

    /// After so many bytes more to the server, nobody reaches it any longer.
    pub(crate) fn cut_after(&self, bytes: u64) {
        *self.state.left.lock().expect("no panic") = Some(bytes);
    }

    /// Requests that begin so wait.
    pub(crate) fn hold(&self, beginning: String) {
        *self.state.held.lock().expect("no panic") = Some(beginning.into_bytes());
    }

    /// Until a request is held up.
    pub(crate) fn await_held(&self) {
        while !self.state.waiting.load(Ordering::SeqCst) {
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub(crate) fn let_go(&self) {
        *self.state.held.lock().expect("no panic") = None;
        self.state.change.notify_all();
    }

    /// Bytes that have come to the server.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }
}

impl Traffic {
    fn pass(&self, mut client: TcpStream, mut server: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = client.read(&mut buffer) {
            let mut held = self.held.lock().expect("no panic");
            while held.as_ref().is_some_and(|beginning| buffer[..n].starts_with(beginning)) {
                self.waiting.store(true, Ordering::SeqCst);
                held = self.change.wait(held).expect("no panic");
            }
            drop(held);
            let mut left = self.left.lock().expect("no panic");
            let through = left.map_or(n as u64, |left| left.min(n as u64));
            *left = left.map(|left| left - through);
            drop(left);
            let through = usize::try_from(through).expect("small");
            self.sent.fetch_add(through as u64, Ordering::SeqCst);
            if server.write_all(&buffer[..through]).is_err() || through < n {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }
}

fn pass_back(mut server: TcpStream, mut client: TcpStream) {
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
}

/// How a file server is bad at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Every answer ends after so many bytes, whatever was said.
    CutsAt(usize),
    /// Every file is sent from its start.
    KnowsNoRanges,
    /// One bit of every file that is longer than this is another.
    FlipsBitAt(usize),
    /// Every pack is told to have a byte less.
    Shortens,
    /// Answers so.
    Status(u16),
}

/// A server of files over HTTP. Dropping it leaves its thread to the process, which is a test's.
pub(crate) struct FileServer {
    pub(crate) address: SocketAddr,
    pub(crate) fault: Arc<Mutex<Fault>>,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
}

impl FileServer {
    pub(crate) fn start(root: &Path, fault: Fault) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Self { address, fault: Arc::new(Mutex::new(fault)), requests: Arc::default() };
        let (root, fault, requests) = (root.to_owned(), Arc::clone(&server.fault), Arc::clone(&server.requests));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let fault = *fault.lock().expect("no panic");
                let (root, requests) = (root.clone(), Arc::clone(&requests));
                thread::spawn(move || answer(client, &root, fault, &requests));
            }
        });
        server
    }

    pub(crate) fn place(&self) -> Place {
        Place::parse(&format!("http://{}", self.address), &S3Options::default()).expect("a place")
    }
}

fn answer(mut client: TcpStream, root: &Path, fault: Fault, requests: &Mutex<Vec<String>>) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.replace("%2B", "+");
    let mut from = 0;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().ok()?;
        }
    }
    requests.lock().expect("no panic").push(format!("{path} {from}"));
    let Ok(mut file) = std::fs::read(root.join(path.trim_start_matches('/'))) else {
        return client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
    };
    match fault {
        Fault::Status(status) => {
            return write!(client, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
        }
        Fault::FlipsBitAt(at) => file.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1),
        Fault::Shortens if path.contains(PACKS) => file.truncate(file.len() - 1),
        Fault::KnowsNoRanges => from = 0,
        Fault::None | Fault::CutsAt(_) | Fault::Shortens => {}
    }
    let (all, rest) = (file.len(), file.get(from..)?);
    let head = match from {
        0 => "HTTP/1.1 200 OK\r\n".to_owned(),
        from => format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{all}\r\n", all - 1),
    };
    write!(client, "{head}Content-Length: {}\r\nConnection: close\r\n\r\n", rest.len()).ok()?;
    let sent = if let Fault::CutsAt(at) = fault { &rest[..rest.len().min(at)] } else { rest };
    client.write_all(sent).ok()
}
