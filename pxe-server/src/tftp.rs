//! TFTP for the one thing that needs it: firmware that fetches iPXE.
//!
//! Files are named in a list and held in memory, so there is no path to escape from and nothing that could vanish while
//! the server runs. Writing is refused.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_tftp::packet;
use async_tftp::server::{Handler, TftpServer, TftpServerBuilder};
use axum::body::Bytes;
use drophammer_protocol::event::{Phase, Progress, Step};
use futures_util::io::{AsyncRead, Sink};

use crate::dhcp::boot::{LOADERS, Loaders};
use crate::observe::Observer;

/// What fits into an Ethernet frame; ROMs that ask for more can't all put fragments together.
const BLOCK_LIMIT: u16 = 1468;
/// RFC 7440's annex: more than 16 gains nothing on a LAN.
const WINDOW_LIMIT: u16 = 16;
const TIMEOUT: Duration = Duration::from_secs(1);
/// A client that hangs up isn't noticed before these are used up, and can't ask again from the same port until then.
const RETRIES: u32 = 5;

/// The boot loaders, by the name that DHCP gives out.
#[derive(Clone, Debug)]
pub struct Files {
    pub loaders: Loaders,
    all: Arc<BTreeMap<&'static str, Bytes>>,
}

impl Files {
    pub fn none() -> Self {
        Self { loaders: Loaders::new(), all: Arc::default() }
    }

    pub fn get(&self, name: &str) -> Option<(&'static str, Bytes)> {
        self.all.get_key_value(name).map(|(name, bytes)| (*name, bytes.clone()))
    }
}

/// Reads what there is of them in `boot_dir`.
pub fn load(boot_dir: &Path) -> Result<Files> {
    let mut files = Files { loaders: Loaders::new(), all: Arc::default() };
    let mut all = BTreeMap::new();
    for (firmware, names) in LOADERS {
        let Some(name) = names.into_iter().find(|name| boot_dir.join(name).exists()) else { continue };
        let path = boot_dir.join(name);
        let bytes = std::fs::read(&path).with_context(|| format!("reading the boot loader {}", path.display()))?;
        all.insert(name, Bytes::from(bytes));
        files.loaders.insert(firmware, name);
    }
    ensure!(
        !all.is_empty(),
        "{} has no boot loader, such as {} (`drophammer initramfs build` puts them there)",
        boot_dir.display(),
        LOADERS.map(|(_, [best, _])| best).join(", ")
    );
    files.all = Arc::new(all);
    Ok(files)
}

#[allow(missing_debug_implementations)] // The server inside has none.
pub struct Tftp(TftpServer<Shelf>);

/// Binds the port, or says what to look at.
pub fn bind(address: SocketAddr, interface: &str) -> Result<UdpSocket> {
    UdpSocket::bind(address).with_context(|| {
        let port = address.port();
        format!(
            "binding UDP {address} for TFTP (ports.tftp) (is another TFTP server running? `lsof -i :{port}`; has \
             {interface} that address? `ip address show {interface}`; below port 1024 it needs root)"
        )
    })
}

impl Tftp {
    pub async fn new(socket: UdpSocket, files: Files, observer: Observer) -> Result<Self> {
        let server = TftpServerBuilder::with_handler(Shelf { files, observer })
            .std_socket(socket)?
            .block_size_limit(BLOCK_LIMIT)
            .window_size_limit(WINDOW_LIMIT)
            .timeout(TIMEOUT)
            // A fixed timeout is what tells a transfer that was given up from one that was acknowledged.
            .ignore_client_timeout()
            .max_send_retries(RETRIES)
            .build()
            .await?;
        Ok(Self(server))
    }

    pub async fn run(self) -> Result<()> {
        self.0.serve().await.context("serving TFTP")
    }
}

struct Shelf {
    files: Files,
    observer: Observer,
}

impl Handler for Shelf {
    type Reader = Transfer;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Transfer, Option<u64>), packet::Error> {
        let asked = path.to_string_lossy();
        // Firmware puts its own idea of a root in front.
        let Some((name, bytes)) = self.files.get(asked.trim_start_matches(['/', '\\'])) else {
            let message = format!("{asked:?} was asked for by TFTP; there is no such file");
            self.observer.observe_at(client.ip(), Phase::Tftp, Step::Note, message, None);
            return Err(packet::Error::FileNotFound);
        };
        let size = u64::try_from(bytes.len()).ok();
        let transfer = Transfer {
            name,
            bytes,
            position: 0,
            reads: 0,
            opened: Instant::now(),
            last_read: Instant::now(),
            client: client.ip(),
            observer: self.observer.clone(),
        };
        Ok((transfer, size))
    }

    async fn write_req_open(&mut self, _: &SocketAddr, _: &Path, _: Option<u64>) -> Result<Sink, packet::Error> {
        Err(packet::Error::PermissionDenied)
    }
}

/// One file on its way to one client. The server reads the next block when the one before was acknowledged and drops this
/// at the end, so both ends of a transfer are seen from here.
#[derive(Debug)]
pub struct Transfer {
    name: &'static str,
    bytes: Bytes,
    position: usize,
    reads: u32,
    opened: Instant,
    last_read: Instant,
    client: IpAddr,
    observer: Observer,
}

impl AsyncRead for Transfer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut task::Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.reads = self.reads.saturating_add(1);
        // Firmware asks for the size first and hangs up; only a second block is a transfer.
        if self.reads == 2 {
            let message = format!("sending {}", self.name);
            self.observer.observe_at(self.client, Phase::Tftp, Step::Started, message, None);
        }
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = rest.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.position += length;
        self.last_read = Instant::now();
        Poll::Ready(Ok(length))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let (sent, total) = (self.position, self.bytes.len());
        let after = self.last_read.elapsed();
        let (step, message) = match end(self.reads, sent == total, after) {
            End::Asked => return,
            End::Complete => {
                (Step::Done, format!("sent {}: {total} bytes in {} ms", self.name, self.opened.elapsed().as_millis()))
            }
            End::GivenUp => (
                Step::Failed,
                format!("the machine stopped answering while {} was sent: {sent} of {total} bytes", self.name),
            ),
        };
        let progress = Progress { done_bytes: sent as u64, total_bytes: Some(total as u64) };
        self.observer.observe_at(self.client, Phase::Tftp, step, message, Some(progress));
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The size was asked for, or nothing that we sent was ever acknowledged.
    Asked,
    Complete,
    GivenUp,
}

/// How a transfer ended, from how much was read and how long the end came after the last read: the server gives up on an
/// acknowledgement exactly when all repetitions have timed out.
fn end(reads: u32, everything_read: bool, after_last_read: Duration) -> End {
    match () {
        () if reads < 2 => End::Asked,
        () if everything_read && after_last_read < TIMEOUT * (RETRIES + 1) => End::Complete,
        () => End::GivenUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let (quick, never) = (Duration::from_millis(900), TIMEOUT * (RETRIES + 1));
        for (name, reads, everything, after, want) in [
            ("asked for the size", 1, false, quick, End::Asked),
            ("everything acknowledged", 700, true, quick, End::Complete),
            ("acknowledged after repetitions", 700, true, TIMEOUT * RETRIES, End::Complete),
            ("the last block never acknowledged", 700, true, never, End::GivenUp),
            ("gone in the middle", 300, false, never, End::GivenUp),
        ] {
            assert_eq!(end(reads, everything, after), want, "{name}");
        }
    }
}
