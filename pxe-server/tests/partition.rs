//! The name and time servers of a partition, as a DHCP client hears of them.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use drophammer_pxe_server::{ControlAt, Settings};
use serde_json::json;

use common::{CONTROL, configure, in_a_network, operate, output, run, script, start, start_control};

#[test]
fn dhcp_names_the_servers_of_the_partition() {
    in_a_network("dhcp_names_the_servers_of_the_partition", || {}, with_a_control_api());
}

#[test]
fn dhcp_names_them_while_the_control_api_is_gone() {
    in_a_network("dhcp_names_them_while_the_control_api_is_gone", || {}, alone());
}

/// Longer than a boot server's heartbeat takes to bring news.
const NEWS: Duration = Duration::from_secs(60);

async fn with_a_control_api() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    wire();
    let settings = settings(dir, "");
    let state = settings.state_dir.clone();
    let server = start(&settings).await;
    assert_eq!(dhcp(dir).await, "dns ntp", "nobody says anything");

    declare(&state, &["10.0.0.53", "2001:db8::53", "10.0.0.54"], &["10.0.0.123", "time.example.org", "2001:db8::7b"])
        .await;
    hears(dir, "dns 10.0.0.53 10.0.0.54 ntp 10.0.0.123").await;
    declare(&state, &["10.0.1.53"], &["time.example.org"]).await;
    hears(dir, "dns 10.0.1.53 ntp").await;

    server.reload.send(self::settings(dir, "ntp = [\"10.77.0.3\"]")).await.expect("is taken");
    hears(dir, "dns 10.0.1.53 ntp 10.77.0.3").await;
    server.reload.send(self::settings(dir, "dns = [\"10.77.0.2\"]")).await.expect("is taken");
    hears(dir, "dns 10.77.0.2 ntp").await;
    server.stop().await;

    let server = start(&self::settings(dir, "")).await;
    assert_eq!(dhcp(dir).await, "dns 10.0.1.53 ntp", "from the first answer after a restart");
    operate(&state, |client| client.delete("partitions", "default").expect("nothing is in it")).await;
    hears(dir, "dns ntp").await;
    server.stop().await;
}

async fn alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    wire();
    let state = dir.join("control");
    let control = start_control(dir).await;
    declare(&state, &["10.0.0.53"], &["10.0.0.123"]).await;
    let token = operate(&state, |client| client.join_token().expect("a token").token).await;
    let settings =
        Settings { control: Some(ControlAt::new(CONTROL, Some(token)).expect("an address")), ..settings(dir, "") };
    let server = start(&settings).await;
    assert_eq!(dhcp(dir).await, "dns 10.0.0.53 ntp 10.0.0.123", "it was told when it registered");
    declare(&state, &["10.0.1.53"], &["10.0.1.123"]).await;
    hears(dir, "dns 10.0.1.53 ntp 10.0.1.123").await;

    control.stop().await;
    assert_eq!(dhcp(dir).await, "dns 10.0.1.53 ntp 10.0.1.123", "the control API is gone");
    server.stop().await;
    let server = start(&settings).await;
    assert_eq!(dhcp(dir).await, "dns 10.0.1.53 ntp 10.0.1.123", "it's gone, and the boot server was restarted");
    server.stop().await;
}

fn wire() {
    run("ip link add server0 type veth peer name client0");
    run("ip link set client0 address 52:54:00:77:01:01 up");
    run("ip link set server0 up");
    run("ip address add 10.77.0.1/24 dev server0");
}

/// A server whose network says also `more`.
fn settings(dir: &Path, more: &str) -> Settings {
    let files: [(&str, &[u8]); 3] = [("vmlinuz", b"kernel"), ("initramfs", b"initramfs"), ("undionly.kpxe", b"BIOS")];
    let network = format!(
        "[[network]]\ninterface = \"server0\"\naddress = \"10.77.0.1\"\nsubnet = \"10.77.0.0/24\"\n\
         pool = [{{ first = \"10.77.0.100\", last = \"10.77.0.199\" }}]\n{more}"
    );
    let settings = configure(dir, &files, &network);
    fs::create_dir_all(&settings.state_dir).expect("made");
    settings
}

async fn declare(state: &Path, dns: &[&str], ntp: &[&str]) {
    let partition = json!({"name": "default", "dns": dns, "ntp": ntp});
    let partition = partition.as_object().expect("fields").clone();
    operate(state, move |client| client.put("partitions", "default", &partition).map(drop).expect("declared")).await;
}

async fn hears(dir: &Path, want: &str) {
    let since = Instant::now();
    let mut heard = dhcp(dir).await;
    while heard != want {
        assert!(since.elapsed() < NEWS, "{want:?} is wanted, and still heard is {heard:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        heard = dhcp(dir).await;
    }
}

/// What options 6 and 42 of a lease say.
async fn dhcp(dir: &Path) -> String {
    let script = script(dir, "got", r#"[ "$1" != bound ] || echo "lease dns $dns ntp $ntpsrv""#);
    let arguments = ["udhcpc", "-i", "client0", "-n", "-q", "-f", "-t", "10", "-T", "1", "-O", "ntpsrv", "-s"];
    let output = output(Command::new("busybox").args(arguments).arg(script)).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lease = text.lines().find_map(|line| line.strip_prefix("lease "));
    lease.expect("a lease").split_whitespace().collect::<Vec<_>>().join(" ")
}
