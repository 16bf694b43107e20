use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use drophammer_protocol::inventory::FirmwareKind;
use drophammer_protocol::system::network::{Ip, Network, Port};

use super::super::layout::{Plan, ordinary};
use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFzqkcqBdRpHnJkZ4s2Qf0Q0J1m8Xc0Yw5mS7m2JvH3b";

fn order() -> Install {
    let system = System { hostname: "web1".into(), ssh_keys: vec![format!("{KEY} me@home")], ..System::default() };
    drophammer_protocol::fixtures::install("debian/12", "", system)
}

fn layout() -> Plan {
    ordinary(1 << 30, 512, FirmwareKind::Uefi).expect("fits")
}

#[test]
fn orders_that_can_not_be_carried_out() {
    let port = |n| Mac([2, 0, 0, 0, 0, n]);
    let on = |n| Network { ports: vec![Port { mac: port(n), mtu: None, ip: Ip::default() }], ..Network::default() };
    let with = |change: &dyn Fn(&mut System)| {
        let mut order = order();
        change(&mut order.system);
        order
    };
    for (name, order, want) in [
        ("as usual", order(), ""),
        ("its own port", with(&|s| s.network = on(1)), ""),
        ("a port of another machine", with(&|s| s.network = on(3)), "has a port 02:00:00:00:00:03, which this machine"),
        ("what can't be written", with(&|s| s.hostname = "a/b".into()), "hostname: \"a/b\" is not a hostname"),
    ] {
        let got = check(&order, &[port(1), port(2)]).err().unwrap_or_default();
        assert!(got.contains(want) && got.is_empty() == want.is_empty(), "{name}: {got:?}");
    }
}

#[test]
fn hosts() {
    for (name, existing, hostname, want) in [
        ("nothing", "", "web1", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 web1\n"),
        (
            "the build host's",
            "127.0.0.1\tlocalhost\n127.0.1.1 builder\n::1 localhost\n192.0.2.9 db\n",
            "web1.example.org",
            "127.0.0.1\tlocalhost\n::1 localhost\n192.0.2.9 db\n127.0.1.1 web1.example.org web1\n",
        ),
    ] {
        assert_eq!(hosts_text(existing, hostname), want, "{name}");
    }
}

#[test]
fn an_image_becomes_a_machine() {
    let base = tempfile::tempdir().expect("temporary directory");
    let at = |path: &str| base.path().join(path.trim_start_matches('/'));
    let write = |path: &str, text: &str| {
        fs::create_dir_all(at(path).parent().expect("below")).expect("made");
        fs::write(at(path), text).expect("written");
    };
    for (path, text) in [
        ("/usr/lib/systemd/systemd", ""),
        ("/usr/lib/systemd/system/systemd-networkd.service", "[Install]\nWantedBy=multi-user.target\n"),
        ("/usr/lib/systemd/system/systemd-resolved.service", "[Install]\nWantedBy=sysinit.target\n"),
        ("/usr/bin/ssh-keygen", ""),
        ("/etc/ssh/ssh_host_ed25519_key", "everybody's"),
        ("/etc/ssh/sshd_config", "kept"),
        ("/etc/machine-id", "everybody's"),
        ("/etc/resolv.conf", "nameserver 10.9.9.9"),
        ("/var/lib/dbus/machine-id", "everybody's"),
        ("/root/.ssh/authorized_keys", "the builder's"),
    ] {
        write(path, text);
    }
    // As an image could have it: a link out of the image in the place of a file that is written.
    let outside = tempfile::NamedTempFile::new().expect("temporary file");
    symlink(outside.path(), at("/etc/hostname")).expect("linked");
    let mut agent = tempfile::tempfile().expect("temporary file");
    agent.write_all(b"the agent").expect("written");
    std::io::Seek::rewind(&mut agent).expect("rewound");
    let uplink = Uplink { mac: "52:54:00:77:00:01".parse().ok(), nameservers: vec!["192.0.2.53".parse().expect("ip")] };
    let root = Root::open(base.path()).expect("opened");
    let notes =
        configure(&root, &order(), &layout(), &Kept::default(), &uplink, &mut agent, By::Us).expect("configured");
    assert_eq!(notes, ["systemd-networkd configures the network: 52:54:00:77:00:01 by DHCP"]);

    let read = |path: &str| fs::read_to_string(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mode = |path: &str| fs::metadata(at(path)).expect("there").permissions().mode() & 0o7777;
    let target = |path: &str| fs::read_link(at(path)).ok();
    assert_eq!(read("/etc/hostname"), "web1\n");
    assert_eq!(fs::read(outside.path()).expect("read"), b"", "the link wasn't followed");
    assert_eq!(read("/etc/machine-id"), "");
    assert_eq!(target("/var/lib/dbus/machine-id").as_deref(), Some(Path::new("/etc/machine-id")));
    assert_eq!(read("/root/.ssh/authorized_keys"), format!("{KEY} me@home\n"));
    assert_eq!((mode("/root/.ssh"), mode("/root/.ssh/authorized_keys")), (0o700, 0o600));
    assert!(!at("/etc/ssh/ssh_host_ed25519_key").exists() && at("/etc/ssh/sshd_config").exists());
    assert!(read("/etc/systemd/system/drophammer-ssh-host-keys.service").contains("ssh-keygen -A"));
    assert!(target("/etc/systemd/system/ssh.service.requires/drophammer-ssh-host-keys.service").is_some());
    assert!(read("/etc/systemd/network/10-drophammer-525400770001.network").contains("MACAddress=52:54:00:77:00:01\n"));
    assert!(target("/etc/systemd/system/multi-user.target.wants/systemd-networkd.service").is_some());
    assert!(target("/etc/systemd/system/sysinit.target.wants/systemd-resolved.service").is_some());
    assert_eq!(target("/etc/resolv.conf").as_deref(), Some(Path::new("../run/systemd/resolve/stub-resolv.conf")));
    assert_eq!((read(INSTALLED_AGENT_PATH).as_str(), mode(INSTALLED_AGENT_PATH)), ("the agent", 0o755));
    assert_eq!(mode(PHONE_HOME_PATH), 0o600);
    let ticket: drophammer_protocol::ticket::PhoneHome =
        serde_json::from_str(&read(PHONE_HOME_PATH)).expect("the ticket");
    assert_eq!(ticket, order().phone_home);
    let unit = read("/etc/systemd/system/drophammer-phone-home.service");
    assert!(unit.contains("ExecStart=/usr/lib/drophammer/drophammer-agent phone-home\n"), "{unit}");
    assert!(target("/etc/systemd/system/multi-user.target.wants/drophammer-phone-home.service").is_some());
}

#[test]
fn an_image_without_systemd_gets_what_applies() {
    let base = tempfile::tempdir().expect("temporary directory");
    let at = |path: &str| base.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(at("/etc/ssh")).expect("made");
    fs::write(at("/etc/ssh/ssh_host_rsa_key"), "everybody's").expect("written");
    let uplink = Uplink { mac: None, nameservers: vec!["192.0.2.53".parse().expect("ip")] };
    let root = Root::open(base.path()).expect("opened");
    let mut agent = tempfile::tempfile().expect("temporary file");
    let notes =
        configure(&root, &order(), &layout(), &Kept::default(), &uplink, &mut agent, By::Us).expect("configured");
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("SSH host keys"), "{notes:?}");
    assert_eq!(fs::read_to_string(at("/etc/resolv.conf")).expect("there"), "nameserver 192.0.2.53\n");
    assert!(at(PHONE_HOME_PATH).exists() && !at("/etc/systemd").exists() && !at("/etc/machine-id").exists());
}

#[test]
fn consoles_get_a_login() {
    let base = tempfile::tempdir().expect("temporary directory");
    let unit = base.path().join("usr/lib/systemd/system/serial-getty@.service");
    let root = Root::open(base.path()).expect("opened");
    let both = [Console { port: "ttyS0".into(), speed: None }, Console { port: "ttyS1".into(), speed: Some(57600) }];
    let note = consoles(&root, &both, false).expect("told").expect("a note");
    assert!(note.contains("ttyS0 and ttyS1"), "{note}");
    fs::create_dir_all(unit.parent().expect("below")).expect("made");
    fs::write(&unit, "[Install]\nWantedBy=getty.target\n").expect("written");
    assert_eq!(consoles(&root, &both, true).expect("enabled"), None);
    for port in ["ttyS0", "ttyS1"] {
        let link = base.path().join(format!("etc/systemd/system/getty.target.wants/serial-getty@{port}.service"));
        assert_eq!(
            fs::read_link(link).ok().as_deref(),
            Some(Path::new("/usr/lib/systemd/system/serial-getty@.service"))
        );
    }
}

#[test]
fn systems_that_enforce_labels() {
    for (name, text, want) in [
        ("Alma", "# SELINUX=disabled\nSELINUX=enforcing\nSELINUXTYPE=targeted\n", true),
        ("permissive", "SELINUX=permissive\n", false),
        ("none", "", false),
    ] {
        assert_eq!(labels_are_enforced(text), want, "{name}");
    }
}
