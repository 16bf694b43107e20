//! Boot servers that run alone: who may join, who may give out what, and what is carried for whom.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use drophammer_protocol::boot_server::BootServer;
use drophammer_pxe_server::{ControlAt, Settings, serve};

use common::{CONTROL, configure, in_a_network, operate, run, start, start_control, try_curl};

#[test]
fn boot_servers_join_once_and_share_a_segment() {
    in_a_network("boot_servers_join_once_and_share_a_segment", || {}, inside());
}

async fn inside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    for (n, address) in [(1, "10.77.0.1"), (2, "10.77.0.2")] {
        run(&format!("ip link add server{n} type veth peer name client{n}"));
        run(&format!("ip link set client{n} up"));
        run(&format!("ip link set server{n} up"));
        run(&format!("ip address add {address}/24 dev server{n}"));
    }
    let _control = start_control(dir).await;

    let token = operate(&dir.join("control"), |client| client.join_token().expect("a token").token).await;
    let mut tampered = token.clone();
    tampered.pop();
    tampered.push(if token.ends_with('0') { '1' } else { '0' });
    let unknown = token.replacen(&token[..8], "00000000", 1);
    for (name, join, want) in [
        ("no token", None, "hasn't joined https://127.0.0.1:8443/ yet: run `drophammer bootserver token` there"),
        ("half a token", Some("abc.def"), "isn't whole"),
        ("another authority's token", Some(tampered.as_str()), "the join token is for another control API"),
        ("a token that nobody made", Some(unknown.as_str()), "this join token isn't known"),
    ] {
        let failed = format!("{:#}", serve(alone(dir, 1, "", join), async {}).await.expect_err(name));
        assert!(failed.contains(want), "{name}: {failed}");
    }

    let first = alone(dir, 1, "share = { part = 1, of = 2 }", Some(&token));
    let server = start(&first).await;
    assert_eq!(names(&list(dir).await), ["boot1"]);
    carried().await;

    let failed = format!("{:#}", serve(alone(dir, 2, "", Some(&token)), async {}).await.expect_err("used"));
    assert!(failed.contains("this join token isn't known: it's used"), "{failed}");
    let another = operate(&dir.join("control"), |client| client.join_token().expect("a token").token).await;
    let failed = format!("{:#}", serve(alone(dir, 2, "", Some(&another)), async {}).await.expect_err("overlaps"));
    let want = "network server2 would give out 10.77.0.100 to 10.77.0.199 in partition default, 10.77.0.0/24, as boot \
                server boot1";
    assert!(failed.contains(want), "{failed}");
    // It has joined, and only has to be told what is its own.
    let second = start(&alone(dir, 2, "share = { part = 2, of = 2 }", None)).await;
    let servers = list(dir).await;
    assert_eq!(names(&servers), ["boot1", "boot2"]);
    assert!(servers.iter().all(|server| server.up && !server.embedded), "{servers:?}");

    second.stop().await;
    operate(&dir.join("control"), move |client| client.remove_boot_server(servers[1].id).expect("removed")).await;
    assert_eq!(names(&list(dir).await), ["boot1"]);
    let failed = serve(alone(dir, 2, "share = { part = 2, of = 2 }", None), async {}).await.expect_err("removed");
    assert!(format!("{failed:#}").contains("this boot server isn't known: it was removed"), "{failed:#}");

    server.stop().await;
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(dir.join("boot1").join(name)).expect("is there").permissions().mode() & 0o777
    };
    assert_eq!(mode("boot-server.json"), 0o600);

    moved(dir).await;
}

/// At another address it's known by its own certificate there.
async fn moved(dir: &Path) {
    run("ip address replace 10.77.0.11/24 dev server1");
    let mut settings = alone(dir, 1, "share = { part = 1, of = 2 }", None);
    let kept = fs::read_to_string(settings.state_dir.join("boot-server.json")).expect("is there");
    let kept: serde_json::Value = serde_json::from_str(&kept).expect("JSON");
    let ca = dir.join("ca.pem");
    fs::write(&ca, kept["ca"].as_str().expect("PEM")).expect("written");
    settings.networks[0].address = Ipv4Addr::new(10, 77, 0, 11);
    let server = start(&settings).await;
    let url = "https://10.77.0.11/agent/v1/order";
    let ask = ["--cacert", ca.to_str().expect("UTF-8"), "--output", "/dev/null", "--write-out", "%{http_code}", url];
    let mut said = String::new();
    for _ in 0..100 {
        let answer = try_curl(&ask).await;
        said = String::from_utf8_lossy(&answer.stdout).into_owned();
        if answer.status.success() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(said, "401");
    server.stop().await;
}

/// What machines say goes on to the control API, and nothing else does in the boot server's name.
async fn carried() {
    for (name, url, want) in [
        ("an agent without a credential", "https://10.77.0.1/agent/v1/order", "401"),
        ("what agents don't ask", "https://10.77.0.1/agent/v2/order", "404"),
        ("operators", "https://10.77.0.1/v1/machines", "404"),
        ("boot servers", "https://10.77.0.1/boot-server/v1/own-disks", "404"),
        ("boot servers, through the back", "https://10.77.0.1/agent/../boot-server/v1/own-disks", "400"),
        ("the same in disguise", "https://10.77.0.1/agent/%2e%2e/boot-server/v1/own-disks", "400"),
        ("without a certificate", "https://127.0.0.1:8443/boot-server/v1/own-disks", "401"),
        ("an image that isn't anywhere", "http://10.77.0.1/images/none/1/manifest.json", "404"),
    ] {
        let answer = ["--insecure", "--path-as-is", "--output", "/dev/null", "--write-out", "%{http_code}", url];
        let answer = try_curl(&answer).await;
        assert_eq!(String::from_utf8_lossy(&answer.stdout), want, "{name}");
    }
}

/// Boot server `n`, with a pool that is the same for all.
fn alone(dir: &Path, n: u8, more: &str, join: Option<&str>) -> Settings {
    let dir = dir.join(format!("boot{n}"));
    fs::create_dir_all(&dir).expect("made");
    let files: [(&str, &[u8]); 3] = [("vmlinuz", b"kernel"), ("initramfs", b"initramfs"), ("undionly.kpxe", b"BIOS")];
    let network = format!(
        "[[network]]\ninterface = \"server{n}\"\naddress = \"10.77.0.{n}\"\nsubnet = \"10.77.0.0/24\"\n\
         pool = [{{ first = \"10.77.0.100\", last = \"10.77.0.199\" }}]\n{more}"
    );
    let mut settings = configure(&dir, &files, &network);
    settings.name = format!("boot{n}");
    settings.state_dir = dir;
    settings.control = Some(ControlAt::new(CONTROL, join.map(str::to_owned)).expect("an address"));
    settings
}

async fn list(dir: &Path) -> Vec<BootServer> {
    operate(&dir.join("control"), |client| client.boot_servers().expect("a list")).await
}

fn names(servers: &[BootServer]) -> Vec<&str> {
    servers.iter().map(|server| server.registration.name.as_str()).collect()
}
