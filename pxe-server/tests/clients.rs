//! The whole server against clients that other people wrote: BusyBox's DHCP client and curl, on a pair of virtual Ethernet
//! cards in a network namespace of its own. Needs no root where user namespaces are allowed.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use drophammer_protocol::api::Page;
use drophammer_protocol::machine::Machine;
use drophammer_protocol::sign::Signed;
use drophammer_protocol::ticket::{BootDecision, BootTicket, ServerTime, TICKET_PATH};

use common::{configure, curl, in_a_network, output, run, script, start, try_curl};

#[test]
fn real_clients_are_served_across_a_restart_and_a_full_disk() {
    in_a_network("real_clients_are_served_across_a_restart_and_a_full_disk", || {}, inside());
}

async fn inside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    run("ip link add server0 type veth peer name client0");
    run("ip link set client0 address 52:54:00:77:01:01 up");
    run("ip link set server0 up");
    run("ip address add 10.77.0.1/24 dev server0");

    let loader: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    let files: [(&str, &[u8]); 5] = [
        ("vmlinuz", b"a kernel"),
        // Of a length that needs padding before the ticket.
        ("initramfs", b"an initramfs."),
        ("undionly.kpxe", b"for BIOS"),
        ("snponly.efi", &loader),
        ("agent.efi", b"a unified kernel image"),
    ];
    let mut config = configure(
        dir,
        &files,
        r#"
        [[network]]
        interface = "server0"
        address = "10.77.0.1"
        subnet = "10.77.0.0/24"
        pool = [{ first = "10.77.0.100", last = "10.77.0.101" }]
        dns = ["10.77.0.1"]
        lease_seconds = 600
        "#,
    );
    config.metrics = Some("127.0.0.1:9180".parse().expect("an address"));
    let state = config.state_dir.clone();
    fs::create_dir(&state).expect("made");
    run(&format!("mount -t tmpfs -o size=4m,mode=700 state {}", state.display()));

    let server = start(&config).await;
    let first = dhcp(dir).await;
    let as_agent = dhcp_as(dir, "drophammer-agent").await;
    assert_eq!(as_agent, Some((first.clone(), "http://10.77.0.1/boot/ticket".to_owned())));
    boot_paths(&state, &loader).await;
    server.stop().await;

    let server = start(&config).await;
    assert_eq!(dhcp(dir).await, first, "the same client, after a restart");
    run("ip link set client0 address 52:54:00:77:01:02");
    let second = dhcp(dir).await;
    assert_ne!(second, first, "another client");
    run("ip link set client0 address 52:54:00:77:01:03");
    assert_eq!(try_dhcp(dir).await, None, "a third client, with two addresses to give");
    run("ip link set client0 address 52:54:00:77:01:02");
    full_disk(dir, &state, &second).await;
    metrics().await;
    server.stop().await;
}

const SCRIPT: &str =
    "http://10.77.0.1/boot/script.ipxe?mac=52-54-00-77-01-01&uuid=12345678-9abc-4ef0-9234-56789abcdef0";

/// Nothing is promised that can't be stored, and nothing has to be restarted once there is room again.
async fn full_disk(dir: &Path, state: &Path, lease: &str) {
    let fill = state.join("fill");
    let full = fs::write(&fill, vec![1; 8 << 20]).expect_err("more than fits");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(try_dhcp(dir).await, None, "a lease");
    // The control API's file has a little room left in itself: so many strangers.
    let strangers = SCRIPT.replace("56789abcdef0", "[000000000000-000000000499]");
    let answers = String::from_utf8(curl(&[&strangers]).await).expect("text");
    assert!(answers.contains("echo drophammer: no decision on what to boot"), "{answers}");
    assert!(answers.contains("No space left on device"), "{answers}");
    assert_eq!(curl(&["http://10.77.0.1/boot/vmlinuz"]).await, b"a kernel", "what needs no disk");

    fs::remove_file(&fill).expect("removed");
    assert_eq!(dhcp(dir).await, lease);
    let script = String::from_utf8(curl(&[SCRIPT]).await).expect("text");
    assert!(script.contains("starting the agent"), "{script}");
}

async fn metrics() {
    let text = String::from_utf8(curl(&["http://127.0.0.1:9180/metrics"]).await).expect("text");
    for want in [
        "# TYPE drophammer_dhcp_requests counter",
        "drophammer_dhcp_requests_total{network=\"server0\",verdict=\"ack\"} ",
        "drophammer_boot_decisions_total{boots=\"undecided\"} ",
        "drophammer_transfers_total{protocol=\"http\",file=\"kernel\",end=\"complete\"} ",
        "drophammer_machines{state=\"discovered\"} ",
        "drophammer_strange_dhcp_servers 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|line| line.starts_with(want)), "{want}: {text}");
    }
    let elsewhere = ["--output", "/dev/null", "--write-out", "%{http_code}", "http://127.0.0.1:9180/v1/machines"];
    assert_eq!(curl(&elsewhere).await, b"404");
}

async fn boot_paths(state: &Path, loader: &[u8]) {
    assert_eq!(curl(&["--tftp-blksize", "1024", "tftp://10.77.0.1/snponly.efi"]).await, loader);
    assert!(!try_curl(&["tftp://10.77.0.1/../state/ca.key"]).await.status.success(), "outside the list");

    let script = String::from_utf8(curl(&[SCRIPT]).await).expect("text");
    let initrd = script.split_whitespace().find(|word| word.contains("/boot/initramfs/")).expect("an initramfs");
    let initramfs = curl(&[initrd]).await;
    assert_eq!(curl(&["--range", "10-40", initrd]).await, initramfs[10..41]);
    let segment = initramfs.strip_prefix(b"an initramfs.\0\0\0").expect("padded to four bytes");
    let (ticket, token) = ticket(segment);
    assert_eq!(ticket.machine.to_string(), "12345678-9abc-4ef0-9234-56789abcdef0");
    assert!(!script.contains(&token), "a secret in the script");
    assert!(initrd.ends_with(&ticket.boot.to_string()));

    without_ipxe(&ticket).await;

    let time = curl(&["http://10.77.0.1/boot/time?nonce=n0nce"]).await;
    let time: Signed<ServerTime> = serde_json::from_slice(&time).expect("a signed time");
    assert_eq!(time.open(&[ticket.time_key]).expect("by the key of the ticket").nonce, "n0nce");

    let ca = state.join("ca.pem");
    assert_eq!(fs::read_to_string(&ca).expect("is there"), ticket.ca);
    let pinned = ["--cacert", ca.to_str().expect("text"), "--output", "/dev/null", "--write-out", "%{http_code}"];
    let status = curl(&[&pinned[..], &["https://10.77.0.1/v1/machines"]].concat()).await;
    assert_eq!(status, b"401", "operators need a token");
    let socket = state.join("control.sock");
    assert_eq!(fs::metadata(&socket).expect("is there").permissions().mode() & 0o777, 0o600);
    let machines = curl(&["--unix-socket", socket.to_str().expect("text"), "http://localhost/v1/machines"]).await;
    let machines: Page<Machine> = serde_json::from_slice(&machines).expect("machines");
    assert_eq!(machines.items.iter().map(|m| m.id).collect::<Vec<_>>(), [ticket.machine]);
}

/// Firmware that boots the unified kernel image by HTTP, and the agent in it, which asks for what an initramfs would have
/// brought.
async fn without_ipxe(before: &BootTicket) {
    let uki = "http://10.77.0.1/boot/agent.efi";
    assert_eq!(curl(&[uki]).await, b"a unified kernel image");
    let head = String::from_utf8(curl(&["--head", uki]).await).expect("text").to_lowercase();
    assert!(head.contains("content-length: 22\r\n") && head.contains("content-type: application/efi\r\n"), "{head}");

    let url = SCRIPT.replace("script.ipxe", "ticket");
    let decision = serde_json::from_slice(&curl(&[&url]).await).expect("a decision");
    let BootDecision::Agent(ticket) = decision else { panic!("{decision:?}") };
    assert_eq!(ticket.machine, before.machine);
    assert!(ticket.boot != before.boot && ticket.token != before.token, "a boot of its own");
    let refused = ["--output", "/dev/null", "--write-out", "%{http_code}", "http://10.77.0.1/boot/ticket?mac=x"];
    assert_eq!(curl(&refused).await, b"400");
}

/// The ticket in a cpio archive, found by the only `{` and the last `}` of it.
fn ticket(segment: &[u8]) -> (BootTicket, String) {
    let name = TICKET_PATH.trim_start_matches('/').as_bytes();
    assert!(segment.windows(name.len()).any(|window| window == name), "the ticket's path");
    let first = segment.iter().position(|b| *b == b'{').expect("JSON");
    let last = segment.iter().rposition(|b| *b == b'}').expect("JSON");
    let ticket: BootTicket = serde_json::from_slice(&segment[first..=last]).expect("a ticket");
    let token = ticket.token.clone();
    (ticket, token)
}

async fn dhcp(dir: &Path) -> String {
    try_dhcp(dir).await.expect("a lease")
}

/// Runs a DHCP client to its first lease.
async fn try_dhcp(dir: &Path) -> Option<String> {
    let (lease, boot_file) = dhcp_as(dir, "udhcp").await?;
    assert_eq!(boot_file, "", "an operating system has booted");
    Some(lease)
}

/// The same, as a client of this vendor class. The boot file is the second of the two.
async fn dhcp_as(dir: &Path, class: &str) -> Option<(String, String)> {
    let script = script(dir, "got", r#"[ "$1" != bound ] || echo "lease $ip $mask $dns $lease $bootfile""#);
    let arguments =
        ["udhcpc", "-i", "client0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-V", class, "-O", "bootfile", "-s"];
    let output = output(Command::new("busybox").args(arguments).arg(script)).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.lines().find_map(|l| l.strip_prefix("lease "))?.split(' ').collect();
    assert_eq!(words[1..4], ["24", "10.77.0.1", "600"], "{text}");
    Some((words[0].to_owned(), words[4].to_owned()))
}
