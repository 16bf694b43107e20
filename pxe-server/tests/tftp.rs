//! The TFTP server against clients that other people wrote, over networks that lose packets, and against what no ordinary
//! client does. In network namespaces of their own.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use drophammer_images::debian::Programs;
use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_pxe_server::Settings;
use drophammer_pxe_server::tftp::table::{MOST_PER_HOST, MOST_TRANSFERS};

use common::{configure, curl, in_a_network, run, start};

const PACKAGES: [&str; 3] = ["tftp-hpa", "atftp", "nftables"];

/// On the loopback card every address of a network is this host's own: a server has two of them, and the machines all that
/// they want.
const SERVERS: [&str; 2] = ["10.77.0.1", "10.78.0.1"];
const NETWORKS: &str = r#"
    [[network]]
    name = "near"
    interface = "lo"
    address = "10.77.0.1"
    subnet = "10.77.0.0/16"
    dhcp = "off"
    [[network]]
    name = "far"
    interface = "lo"
    address = "10.78.0.1"
    subnet = "10.78.0.0/16"
    dhcp = "off"
    relayed = true
"#;

/// Around a block of 512 bytes, a window of 16 blocks of 1428, and more blocks than there are numbers for them.
const FILES: [(&str, usize); 5] = [
    ("undionly.kpxe", 100_000),
    ("snponly-ia32.efi", 0),
    ("snponly.efi", 1428 * 16 * 3),
    ("snponly-arm32.efi", 512),
    (LARGE, (33 << 20) + 1),
];
const LARGE: &str = "snponly-arm64.efi";

fn content(size: usize) -> Vec<u8> {
    (0..=u32::MAX).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(size).collect()
}

fn fetch() {
    Programs::of(&PACKAGES).expect("Debian's packages");
}

fn prepare(dir: &Path) -> (Settings, Programs) {
    run("ip address add 10.77.0.1/16 dev lo");
    run("ip address add 10.78.0.1/16 dev lo");
    let contents = FILES.map(|(name, size)| (name, content(size)));
    let mut files: Vec<(&str, &[u8])> = contents.iter().map(|(name, content)| (*name, content.as_slice())).collect();
    files.extend([("vmlinuz", &b"a kernel"[..]), ("initramfs", b"an initramfs")]);
    (configure(dir, &files, NETWORKS), Programs::of(&PACKAGES).expect("in the cache"))
}

struct Client {
    /// `SERVER`, `FILE` and `TO` stand for what is to be fetched and where to.
    command: &'static str,
    /// Whether it gets by on a network that loses packets without waiting for seconds each time.
    patient: bool,
}

const CLIENTS: &[Client] = &[
    Client { command: "curl -sS --noproxy * -o TO tftp://SERVER/FILE", patient: false },
    Client { command: "curl -sS --noproxy * --tftp-blksize 1428 -o TO tftp://SERVER//FILE", patient: false },
    Client { command: "curl -sS --noproxy * --tftp-no-options -o TO tftp://SERVER/FILE", patient: true },
    Client { command: "tftp -m binary SERVER -c get /FILE TO", patient: true },
    Client { command: "busybox tftp -g -l TO -r FILE SERVER", patient: true },
    Client { command: "busybox tftp -b 1428 -g -l TO -r \\FILE SERVER", patient: true },
    Client { command: "atftp -g -l TO -r FILE --option=blksize%1428 SERVER", patient: true },
    Client { command: "atftp -g -l TO -r FILE --option=windowsize%16 SERVER", patient: true },
    Client {
        command: "atftp -g -l TO -r FILE --option=blksize%1428 --option=windowsize%16 --option=tsize%0 SERVER",
        patient: true,
    },
    Client { command: "atftp -g -l TO -r FILE --option=BLKSIZE%9000 --option=windowsize%64 SERVER", patient: true },
];

impl Client {
    fn get(&self, programs: &Programs, server: &str, (file, size): (&str, usize)) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let to = dir.path().join("got");
        let replace = |word: &str| {
            let word = word.replace("SERVER", server).replace("FILE", file).replace('%', " ");
            word.replace("TO", to.to_str().expect("text"))
        };
        let words: Vec<_> = self.command.split(' ').map(replace).collect();
        let output = output(programs, &words);
        let words = words.join(" ");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        // Curl makes no file for nothing.
        let got = fs::read(&to).unwrap_or_default();
        assert!(got == content(size), "{words}: {} of {size} bytes", got.len());
    }
}

/// Runs a program of the packages or of this host.
fn output(programs: &Programs, words: &[String]) -> Output {
    let (program, arguments) = words.split_first().expect("a program");
    let mut command = match program.as_str() {
        name @ ("tftp" | "atftp") => programs.command(&format!("/usr/bin/{name}")).expect("is in a package"),
        name => Command::new(name),
    };
    command.args(arguments).output().expect("runs")
}

fn nft(programs: &Programs, command: &str) {
    let nft = programs.command("/usr/sbin/nft").expect("is in a package").args(command.split(' ')).output();
    let nft = nft.expect("runs");
    assert!(nft.status.success(), "nft {command}: {}", String::from_utf8_lossy(&nft.stderr));
}

/// Where rules meet every packet between the server and its clients.
fn filter(programs: &Programs) {
    nft(programs, "add table netdev way");
    nft(programs, "add chain netdev way in { type filter hook ingress device lo priority 0; }");
}

#[test]
fn every_client_gets_every_byte() {
    in_a_network("every_client_gets_every_byte", fetch, async {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (settings, programs) = prepare(dir.path());
        let server = start(&settings).await;
        for client in CLIENTS {
            for (n, file) in FILES.into_iter().enumerate() {
                client.get(&programs, SERVERS[n % 2], file);
            }
        }
        server.stop().await;
    });
}

#[test]
fn lost_packets_cost_time_and_no_bytes() {
    in_a_network("lost_packets_cost_time_and_no_bytes", fetch, async {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (settings, programs) = prepare(dir.path());
        let server = start(&settings).await;
        // Windows are handed over in one piece up to here; from here on every packet can be lost alone.
        run("ip link set lo gso_max_segs 1");
        filter(&programs);
        for percent in [1, 5] {
            nft(&programs, "flush chain netdev way in");
            nft(&programs, &format!("add rule netdev way in numgen random mod 100 < {percent} drop"));
            for file in FILES.into_iter().filter(|(name, _)| *name != LARGE) {
                thread::scope(|scope| {
                    for (n, client) in CLIENTS.iter().filter(|client| client.patient).enumerate() {
                        let programs = &programs;
                        scope.spawn(move || client.get(programs, SERVERS[n % 2], file));
                    }
                });
            }
        }
        server.stop().await;
    });
}

#[test]
fn nobody_harms_the_server_or_others() {
    in_a_network("nobody_harms_the_server_or_others", fetch, async {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path();
        let (settings, programs) = prepare(dir);
        let server = start(&settings).await;
        introduce(HANGS_UP).await;
        introduce(MUTE).await;
        let mute = somebody_goes_mute();
        refusals(&programs, dir);
        ports_of_transfers();
        requests_that_repeat_themselves();
        too_many_transfers();
        forged_requests(&programs);
        somebody_hangs_up();
        for (machine, want) in [
            (HANGS_UP, "the machine stopped answering while undionly.kpxe was sent: 512 B of 97.6 KiB acknowledged"),
            (MUTE, "the machine stopped answering while snponly.efi was sent: 1.0 KiB of 66.9 KiB acknowledged"),
        ] {
            assert_eq!(failure(&settings, machine).await, want);
        }
        drop(mute);
        server.stop().await;
    });
}

const HANGS_UP: u8 = 201;
const MUTE: u8 = 202;

/// Where a machine with this number is.
fn machine(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 1, number)
}

fn id(number: u8) -> String {
    format!("12345678-9abc-4ef0-9234-56789abcd{number:03}")
}

/// A machine without DHCP is known by the script that it asked for.
async fn introduce(number: u8) {
    let url = format!("http://10.77.0.1/boot/script.ipxe?mac=52-54-00-77-01-{number:02x}&uuid={}", id(number));
    curl(&["--interface", &machine(number).to_string(), &url]).await;
}

/// How the timeline says that a machine's TFTP failed, sooner or later.
async fn failure(settings: &Settings, number: u8) -> String {
    let socket = settings.socket.to_str().expect("text");
    let url = format!("http://localhost/v1/machines/{}/events", id(number));
    for _ in 0..600 {
        let events = curl(&["--unix-socket", socket, &url]).await;
        let events: Vec<Recorded> = serde_json::from_slice(&events).expect("events");
        if let Some(event) = events.into_iter().find(|e| e.phase == Phase::Tftp && e.step == Step::Failed) {
            return event.message;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the timeline of machine {number} has no TFTP that failed");
}

/// A machine that loses power: its host is there no more, or says nothing.
fn somebody_goes_mute() -> UdpSocket {
    let client = socket(machine(MUTE));
    client.send_to(b"\0\x01snponly.efi\0octet\0", server()).expect("sent");
    for block in 1..=2 {
        let (data, transfer) = receive(&client);
        assert_eq!(data[..4], [0, 3, 0, block]);
        client.send_to(&[0, 4, 0, block], transfer).expect("sent");
    }
    client
}

/// One that was reset: its host is there, and nobody at the port.
fn somebody_hangs_up() {
    let client = socket(machine(HANGS_UP));
    client.send_to(PLAIN, server()).expect("sent");
    let (_, transfer) = receive(&client);
    client.send_to(&[0, 4, 0, 1], transfer).expect("sent");
}

fn refusals(programs: &Programs, dir: &Path) {
    let got = dir.join("got");
    let got = got.to_str().expect("text");
    fs::write(got, "x").expect("written");
    let outside = "there is no such file";
    for (name, mode, action, want) in [
        ("an unknown file", "binary", format!("get unknown.efi {got}"), outside),
        ("outside of the directory", "binary", format!("get ../state/ca.key {got}"), outside),
        ("outside, by an absolute path", "binary", format!("get {}/state/ca.key {got}", dir.display()), outside),
        ("outside, through a known file", "binary", format!("get undionly.kpxe/../../state/ca.key {got}"), outside),
        ("outside, as Windows has it", "binary", format!("get ..\\..\\state\\ca.key {got}"), outside),
        ("a file beside the boot loaders", "binary", format!("get initramfs {got}"), outside),
        ("writing", "binary", format!("put {got} undionly.kpxe"), "nothing can be written here"),
        ("as text", "ascii", format!("get undionly.kpxe {got}"), "ask for them in mode octet"),
    ] {
        let command = format!("tftp -m {mode} 10.77.0.1 -c {action}");
        let output = output(programs, &command.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(want), "{name}: {said}");
    }
}

const WITH_SIZE: &[u8] = b"\0\x01undionly.kpxe\0octet\0tsize\x000\0";
const PLAIN: &[u8] = b"\0\x01undionly.kpxe\0octet\0";
const OACK: &[u8] = b"\0\x06tsize\x00100000\0";

fn ports_of_transfers() {
    let (client, stranger) = (socket(machine(1)), socket(machine(2)));
    client.send_to(PLAIN, server()).expect("sent");
    let (first, transfer) = receive(&client);
    assert_eq!(first[..4], [0, 3, 0, 1]);
    assert_ne!(transfer.port(), server().port());
    stranger.connect(transfer).expect("a way");
    for packet in [[0, 4, 0, 1], [0, 5, 0, 0]] {
        stranger.send(&packet).expect("sent");
        let answer = stranger.recv(&mut [0; 2048]).map_err(|e| e.kind());
        assert_eq!(answer, Err(ErrorKind::ConnectionRefused), "the port is somebody else's");
    }
    client.send_to(&[0, 4, 0, 1], transfer).expect("sent");
    let (second, from) = receive(&client);
    assert_eq!((&second[..4], from), (&[0, 3, 0, 2][..], transfer));
}

fn requests_that_repeat_themselves() {
    let client = socket(machine(3));
    client.send_to(WITH_SIZE, server()).expect("sent");
    let (first, transfer) = receive(&client);
    assert_eq!(first, OACK);
    client.send_to(WITH_SIZE, server()).expect("sent");
    assert_eq!(receive(&client), (first, transfer), "the same answer by the same transfer");
    // UEFI has the size now, hangs up, and asks for the file; some from the same port.
    client.send_to(b"\0\x05\0\x08\0", transfer).expect("sent");
    client.send_to(PLAIN, server()).expect("sent");
    let (first, second_transfer) = receive(&client);
    assert_eq!(first[..4], [0, 3, 0, 1]);
    assert_ne!(second_transfer, transfer);
    // And without hanging up.
    client.send_to(WITH_SIZE, server()).expect("sent");
    let (first, third_transfer) = receive(&client);
    assert_eq!(first, OACK);
    assert_ne!(third_transfer, second_transfer);
}

fn too_many_transfers() {
    let clients: Vec<_> = (0..MOST_PER_HOST).map(|_| socket(machine(4))).collect();
    let transfers: Vec<_> = clients
        .iter()
        .map(|client| {
            client.send_to(WITH_SIZE, server()).expect("sent");
            receive(client).1
        })
        .collect();
    // All but the first are really under way.
    for (client, transfer) in clients.iter().zip(&transfers).skip(1) {
        client.send_to(&[0, 4, 0, 0], transfer).expect("sent");
        assert_eq!(receive(client).0[..4], [0, 3, 0, 1]);
    }
    let late = [socket(machine(4)), socket(machine(4))];
    late[0].send_to(WITH_SIZE, server()).expect("sent");
    let (answer, transfer) = receive(&late[0]);
    assert_eq!(answer[..2], [0, 6], "instead of the one that never went on");
    late[0].send_to(&[0, 4, 0, 0], transfer).expect("sent");
    assert_eq!(receive(&late[0]).0[..4], [0, 3, 0, 1]);
    late[1].send_to(WITH_SIZE, server()).expect("sent");
    assert_eq!(receive(&late[1]).0[..4], [0, 5, 0, 0], "one more than there is room for");
    for (client, transfer) in clients.iter().zip(&transfers).skip(1) {
        client.send_to(&[0, 4, 0, 1], transfer).expect("sent");
        assert_eq!(receive(client).0[..4], [0, 3, 0, 2], "undisturbed");
    }
}

/// More than there is room for, from hosts that never answer. Meanwhile and afterwards, clients are served.
fn forged_requests(programs: &Programs) {
    const HOSTS: u32 = 300;
    const PORTS: u32 = 20;
    let hosts = Ipv4Addr::new(10, 77, 2, 0);
    filter(programs);
    nft(programs, &format!("add rule netdev way in ip daddr {hosts}/23 drop"));
    let before = open_files();
    let [small, .., large] = FILES;
    thread::scope(|scope| {
        let busy = scope.spawn(|| CLIENTS[1].get(programs, SERVERS[0], large));
        // In the middle of which all of this happens.
        for _ in 0..PORTS {
            for host in 0..HOSTS {
                let nobody = socket(Ipv4Addr::from_bits(hosts.to_bits() + host));
                nobody.send_to(WITH_SIZE, server()).expect("sent");
            }
        }
        for client in CLIENTS {
            client.get(programs, SERVERS[0], small);
        }
        busy.join().expect("no harm");
    });
    let opened = open_files().saturating_sub(before);
    assert!(opened <= MOST_TRANSFERS + 16, "{opened} files for transfers");
    assert!(opened > MOST_TRANSFERS / 2, "{opened} files for transfers: that was no flood");
}

/// The server runs in this process.
fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").expect("readable").count()
}

fn server() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 69)
}

fn socket(address: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    socket
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
    (buffer[..length].to_vec(), from)
}
