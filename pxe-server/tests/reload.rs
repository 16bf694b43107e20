//! A configuration that changes under a running server.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use drophammer_pxe_server::Settings;

use common::{configure, curl, in_a_network, output, run, script, start, try_curl};

#[test]
fn a_changed_configuration_is_taken_up_and_nobody_loses_an_address() {
    in_a_network("a_changed_configuration_is_taken_up_and_nobody_loses_an_address", || {}, inside());
}

const SCRIPT: &str = "http://10.77.0.1/boot/script.ipxe?mac=52-54-00-77-01-01";

async fn inside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    run("ip link add server0 type veth peer name client0");
    run("ip link set client0 address 52:54:00:77:01:01 up");
    run("ip link set server0 up");
    run("ip address add 10.77.0.1/24 dev server0");

    let server = start(&settings(dir, 100, 101, "10.77.0.1", "first")).await;
    let first = dhcp(dir, 1).await.expect("an address");
    let last = first.strip_suffix(" 10.77.0.1").and_then(|address| address.strip_prefix("10.77.0."));
    let last: u8 = last.and_then(|last| last.parse().ok()).expect("the DNS server of now");
    assert!(script_text().await.contains("first"));

    let loader = b"a newer loader";
    let changed = settings(dir, 150, 151, "10.77.0.9", "second");
    fs::write(changed.boot_dir.join("undionly.kpxe"), loader).expect("written");
    server.reload.send(changed).await.expect("is taken");
    until("the new kernel arguments", async || script_text().await.contains("second")).await;
    assert_eq!(curl(&["tftp://10.77.0.1/undionly.kpxe"]).await, loader);
    let second = dhcp(dir, 2).await.expect("an address");
    assert!(second == "10.77.0.150 10.77.0.9" || second == "10.77.0.151 10.77.0.9", "{second}");

    // Back again: the first client's lease still runs, and nobody else was given its address meanwhile.
    server.reload.send(settings(dir, last, last, "10.77.0.1", "third")).await.expect("is taken");
    until("the third", async || script_text().await.contains("third")).await;
    assert_eq!(dhcp(dir, 3).await, None, "the only address is taken");
    assert_eq!(dhcp(dir, 1).await, Some(first));

    let mut bound = settings(dir, 100, 101, "10.77.0.1", "fourth");
    bound.ports.http = 8080;
    server.reload.send(bound).await.expect("is heard");
    let mut broken = settings(dir, 100, 101, "10.77.0.1", "fifth");
    broken.ports.tftp = 1069;
    server.reload.send(broken).await.expect("is heard");
    assert!(script_text().await.contains("third"), "everything is as it was");
    assert!(try_curl(&["http://10.77.0.1:8080/boot/vmlinuz"]).await.stdout.is_empty());
    server.stop().await;
}

fn settings(dir: &Path, first: u8, last: u8, dns: &str, cmdline: &str) -> Settings {
    let files: [(&str, &[u8]); 3] = [("vmlinuz", b"kernel"), ("initramfs", b"initramfs"), ("undionly.kpxe", b"BIOS")];
    let network = format!(
        "[[network]]\ninterface = \"server0\"\naddress = \"10.77.0.1\"\nsubnet = \"10.77.0.0/24\"\ndns = [\"{dns}\"]\n\
         pool = [{{ first = \"10.77.0.{first}\", last = \"10.77.0.{last}\" }}]\nlease_seconds = 600"
    );
    let mut settings = configure(dir, &files, &network);
    cmdline.clone_into(&mut settings.agent_cmdline);
    settings
}

async fn script_text() -> String {
    String::from_utf8(curl(&[SCRIPT]).await).expect("text")
}

/// Address and DNS server that client `n` gets.
async fn dhcp(dir: &Path, n: u8) -> Option<String> {
    run(&format!("ip link set client0 address 52:54:00:77:01:0{n}"));
    let script = script(dir, "got", r#"[ "$1" != bound ] || echo "lease $ip $dns""#);
    let arguments = ["udhcpc", "-i", "client0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-s"];
    let output = output(Command::new("busybox").args(arguments).arg(script)).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("lease ").map(str::to_owned))
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..100 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not in time: {what}");
}
