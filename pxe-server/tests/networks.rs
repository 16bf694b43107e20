//! DHCP as data centres have it: a client with every option, a relay in another network, an address that somebody took.
//! Debian's dhclient, BusyBox's udhcpc, and ISC's relay, in network namespaces of their own.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use drophammer_images::debian::Programs;

use common::{configure, in_a_network, output, run, script, start};

const PACKAGES: [&str; 2] = ["isc-dhcp-client", "isc-dhcp-relay"];

#[test]
fn networks_are_served_on_the_wire_and_behind_a_relay() {
    let fetch = || drop(Programs::of(&PACKAGES).expect("Debian's packages"));
    in_a_network("networks_are_served_on_the_wire_and_behind_a_relay", fetch, inside());
}

/// ```text
/// wire: client ─┐
/// squat: host ──┼─ br0: server 10.77.0.1
/// relay: 10.77.0.2 ─┘
///   └ 10.78.0.254 ── rack: client
/// ```
async fn inside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    // `ip netns` keeps its namespaces here.
    run("mount -t tmpfs none /run");
    run("ip link add br0 type bridge forward_delay 0");
    run("ip address add 10.77.0.1/24 dev br0");
    for name in ["wire", "squat", "relay", "rack"] {
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
    }
    for name in ["wire", "squat", "relay"] {
        run(&format!("ip link add {name}0 type veth peer name up0 netns {name}"));
        run(&format!("ip link set {name}0 master br0 up"));
        run(&format!("ip -n {name} link set up0 up"));
    }
    run("ip link set br0 up");
    run("ip -n squat address add 10.77.0.100/24 dev up0");
    run("ip -n relay address add 10.77.0.2/24 dev up0");
    run("ip -n relay link add down0 type veth peer name up0 netns rack");
    run("ip -n relay address add 10.78.0.254/24 dev down0");
    run("ip -n relay link set down0 up");
    run("ip -n rack link set up0 address 52:54:00:77:02:01 up");
    run("ip -n wire link set up0 address 52:54:00:77:01:01");
    run("ip route add 10.78.0.0/24 via 10.77.0.2");
    let forward = script(dir, "forward", "echo 1 > /proc/sys/net/ipv4/ip_forward");
    run(&format!("ip netns exec relay {}", forward.display()));

    let settings = configure(
        dir,
        &[("vmlinuz", b"a kernel"), ("initramfs", b"an initramfs"), ("undionly.kpxe", b"for BIOS")],
        r#"
        [[network]]
        name = "wire"
        interface = "br0"
        address = "10.77.0.1"
        subnet = "10.77.0.0/24"
        pool = [{ first = "10.77.0.100", last = "10.77.0.102" }]
        router = "10.77.0.254"
        dns = ["10.77.0.1"]
        ntp = ["10.77.0.3"]
        mtu = 1400
        search = ["rack1.example.org", "example.org"]
        routes = [{ to = "10.0.0.0/8", via = "10.77.0.253" }]
        reservations = [{ client_id = "machine-7", address = "10.77.0.50", hostname = "db1" }]
        [[network]]
        name = "rack"
        interface = "br0"
        address = "10.77.0.1"
        subnet = "10.78.0.0/24"
        relayed = true
        relay = { circuit_id = "down0" }
        pool = [{ first = "10.78.0.10", last = "10.78.0.10" }]
        router = "10.78.0.254"
        "#,
    );
    let programs = Programs::of(&PACKAGES).expect("in the cache");
    let server = start(&settings).await;
    every_option_reaches_dhclient(dir, &programs).await;
    the_address_of_somebody_else_is_not_offered(dir).await;
    clients_behind_a_relay_get_renew_and_release(dir, &programs).await;
    server.stop().await;
}

async fn every_option_reaches_dhclient(dir: &Path, programs: &Programs) {
    let said = dir.join("dhclient.said");
    let asks = "subnet-mask, routers, domain-name-servers, ntp-servers, interface-mtu, domain-search, domain-name, \
                host-name, rfc3442-classless-static-routes";
    let conf = dir.join("dhclient.conf");
    let text = format!(
        "option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;\n\
         send dhcp-client-identifier \"machine-7\";\nrequest {asks};\ntimeout 20;\n"
    );
    fs::write(&conf, text).expect("written");
    let hook = script(dir, "hook", &format!("env | grep -E '^(reason|new_)' | sort >> {}", said.display()));
    let dhclient = |arguments: &[&str]| {
        let program = programs.command("/sbin/dhclient").expect("is in the package");
        let mut command = inside_of("wire", &program);
        command.args(["-4", "-v", "-sf"]).arg(&hook).arg("-cf").arg(&conf);
        command.arg("-lf").arg(dir.join("dhclient.leases")).arg("-pf").arg(dir.join("dhclient.pid"));
        command.args(arguments).arg("up0");
        command
    };
    let done = output(&mut dhclient(&["-1"])).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let heard = fs::read_to_string(&said).expect("was called");
    for want in [
        "reason=BOUND",
        "new_ip_address=10.77.0.50",
        "new_subnet_mask=255.255.255.0",
        "new_routers=10.77.0.254",
        "new_domain_name_servers=10.77.0.1",
        "new_ntp_servers=10.77.0.3",
        "new_interface_mtu=1400",
        "new_domain_name=rack1.example.org",
        "new_domain_search=rack1.example.org. example.org.",
        "new_host_name=db1",
        "new_rfc3442_classless_static_routes=8 10 10 77 0 253 0 10 77 0 254",
    ] {
        assert!(heard.lines().any(|line| line == want), "{want}: {heard}");
    }
    let released = output(&mut dhclient(&["-r"])).await;
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
}

/// .100 answers ARP, so there is room for two.
async fn the_address_of_somebody_else_is_not_offered(dir: &Path) {
    let hook = script(dir, "udhcpc-hook", r#"[ "$1" != bound ] || echo "lease $ip""#);
    let mut leases = vec![];
    for client in 1..=3 {
        run(&format!("ip -n wire link set up0 address 52:54:00:77:01:1{client}"));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "wire", "busybox", "udhcpc", "-i", "up0", "-n", "-q", "-f"]);
        let got = output(command.args(["-t", "3", "-T", "2", "-s"]).arg(&hook)).await;
        let text = String::from_utf8_lossy(&got.stdout).into_owned();
        leases.extend(text.lines().filter_map(|line| line.strip_prefix("lease ").map(str::to_owned)));
    }
    leases.sort_unstable();
    assert_eq!(leases, ["10.77.0.101", "10.77.0.102"]);
}

async fn clients_behind_a_relay_get_renew_and_release(dir: &Path, programs: &Programs) {
    let relay = programs.command("/usr/sbin/dhcrelay").expect("is in the package");
    let arguments = ["-4", "-d", "-a", "-iu", "up0", "-id", "down0", "10.77.0.1"];
    let _relay = Running::start(inside_of("relay", &relay).args(arguments).stderr(Stdio::null()));

    let said = dir.join("udhcpc.said");
    let hook = format!(
        "case $1 in\n\
         deconfig) ip address flush dev $interface ;;\n\
         bound) ip address add $ip/$mask dev $interface; ip route add default via $router ;;\n\
         esac\n\
         echo \"$1 $ip $serverid\" >> {}",
        said.display()
    );
    let hook = script(dir, "rack-hook", &hook);
    let mut client = Command::new("ip");
    client.args(["netns", "exec", "rack", "busybox", "udhcpc", "-i", "up0", "-f", "-R", "-T", "1", "-s"]).arg(hook);
    let client = Running::start(client.stdout(Stdio::null()).stderr(Stdio::null()));
    let heard = async |want: &str| {
        for _ in 0..300 {
            let heard = fs::read_to_string(&said).unwrap_or_default();
            if heard.lines().any(|line| line == want) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{want}: {}", fs::read_to_string(&said).unwrap_or_default());
    };
    heard("bound 10.78.0.10 10.77.0.1").await;
    // Renewing goes past the relay, from the client's address to the server's.
    client.signal("USR1");
    heard("renew 10.78.0.10 10.77.0.1").await;
    client.signal("TERM");
    heard("deconfig  ").await;
}

/// The same program in a network namespace.
fn inside_of(namespace: &str, program: &Command) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program.get_program()).args(program.get_args());
    command
}

/// A program that runs until this is dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("starts"))
    }

    /// `ip netns exec` becomes the program that it starts.
    fn signal(&self, name: &str) {
        run(&format!("kill -{name} {}", self.0.id()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
