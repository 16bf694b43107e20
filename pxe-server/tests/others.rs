//! Other servers on the boot network are found, by an answer to somebody else or to our own question, and named.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use drophammer_control::client::Client;
use drophammer_images::debian::Programs;

use common::{configure, in_a_network, run, start};

const PACKAGES: [&str; 1] = ["dnsmasq-base"];

#[test]
fn another_dhcp_server_is_found_and_named() {
    in_a_network(
        "another_dhcp_server_is_found_and_named",
        || drop(Programs::of(&PACKAGES).expect("unpacked")),
        inside(),
    );
}

async fn inside() {
    let programs = Programs::of(&PACKAGES).expect("unpacked");
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    run("mount -t tmpfs none /run");
    run("ip netns add stranger");
    run("ip link add server0 type veth peer name eth0 netns stranger");
    run("ip -n stranger link set eth0 address 52:54:00:66:66:66 up");
    run("ip -n stranger address add 10.77.0.66/24 dev eth0");
    run("ip link set server0 up");
    run("ip address add 10.77.0.1/24 dev server0");

    let pool = "pool = [{ first = \"10.77.0.100\", last = \"10.77.0.109\" }]";
    let address = "--dhcp-range=10.77.0.200,10.77.0.209";
    let proxy = ["--dhcp-range=10.77.0.0,proxy", "--pxe-service=X86-64_EFI,other,other.efi"];
    for (name, network, stranger, want) in [
        ("beside a server", pool, &[address][..], Some("gives out addresses")),
        ("a second proxy", "dhcp = \"proxy\"", &proxy[..], Some("says where to boot from as well")),
        ("the server beside a proxy", "dhcp = \"proxy\"", &[address][..], None),
        ("one that is meant to be there", &format!("{pool}\nothers = [\"10.77.0.66\"]"), &[address][..], None),
    ] {
        let files: [(&str, &[u8]); 3] = [("vmlinuz", b""), ("initramfs", b""), ("snponly.efi", b"")];
        let place = dir.join(name.replace(' ', "-"));
        fs::create_dir(&place).expect("made");
        let common = "[[network]]\ninterface = \"server0\"\naddress = \"10.77.0.1\"\nsubnet = \"10.77.0.0/24\"\n";
        let settings = configure(&place, &files, &format!("{common}{network}"));
        let socket = format!("unix:{}", settings.socket.display());
        let server = start(&settings).await;
        // Too late for the first question.
        let _stranger = dnsmasq(&programs, dir, stranger);
        let problems = problems(socket, want.is_some()).await;
        match want {
            Some(want) => {
                let [problem] = &problems[..] else { panic!("{name}: {problems:?}") };
                let who = "DHCP server 10.77.0.66 (52:54:00:66:66:66) on server0";
                assert!(problem.starts_with(who) && problem.contains(want), "{name}: {problem}");
            }
            None => assert_eq!(problems, [] as [&str; 0], "{name}"),
        }
        server.stop().await;
    }
}

/// What the boot server complains about, once it has had time to.
async fn problems(socket: String, are_expected: bool) -> Vec<String> {
    // It tells of itself every ten seconds.
    for _ in 0..if are_expected { 300 } else { 120 } {
        let socket = socket.clone();
        let ask = move || Client::connect(&socket, None, None).expect("a client").boot_servers().expect("a list");
        let servers = tokio::task::spawn_blocking(ask).await.expect("no panic");
        let problems = servers.into_iter().next().and_then(|server| server.health).map(|health| health.problems);
        if let Some(problems) = problems.filter(|problems| !problems.is_empty()) {
            return problems;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    vec![]
}

struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.kill().expect("runs");
        self.0.wait().expect("ended");
    }
}

fn dnsmasq(programs: &Programs, dir: &Path, arguments: &[&str]) -> Stranger {
    let program = programs.command("/usr/sbin/dnsmasq").expect("is in the package");
    let mut command = Command::new("ip");
    command.args(["netns", "exec", "stranger"]).arg(program.get_program()).args(program.get_args());
    command.args([
        "--no-daemon",
        "--conf-file=/dev/null",
        "--user=root",
        "--group=root",
        "--port=0",
        "--interface=eth0",
    ]);
    command.arg("--bind-dynamic").arg(format!("--dhcp-leasefile={}", dir.join("stranger.leases").display()));
    Stranger(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"))
}
