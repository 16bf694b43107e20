use std::fs;

use drophammer_protocol::id::Mac;
use drophammer_protocol::system::network::{Bond, BondMode, HashPolicy, LacpRate, Route, Under, Vlan};

use super::*;

fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0x77, 0, n])
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a network")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn fixed(addresses: &[&str], gateways: &[&str]) -> Ip {
    Ip {
        addresses: addresses.iter().map(|a| net(a)).collect(),
        gateways: gateways.iter().map(|g| ip(g)).collect(),
        ..Ip::default()
    }
}

/// A port with both versions of IP, a bond of two with a VLAN on it, and a port that carries a VLAN alone.
fn everything() -> Network {
    let routes = vec![
        Route { to: net("10.0.0.0/8"), via: ip("192.0.2.2"), metric: Some(10), on_link: false },
        Route { to: net("198.51.100.0/24"), via: ip("203.0.113.1"), metric: None, on_link: true },
    ];
    Network {
        ports: vec![Port {
            mac: mac(1),
            mtu: Some(9000),
            ip: Ip { routes, ..fixed(&["192.0.2.5/24", "2001:db8::5/64"], &["192.0.2.1", "fe80::1"]) },
        }],
        bonds: vec![Bond {
            name: "bond0".into(),
            members: vec![mac(2), mac(3)],
            mode: BondMode::Lacp,
            lacp_rate: Some(LacpRate::Fast),
            hash_policy: Some(HashPolicy::Layer34),
            min_links: Some(1),
            primary: None,
            mtu: None,
            ip: Ip { dhcp4: true, dhcp6: true, ..Ip::default() },
        }],
        vlans: vec![
            Vlan { id: 100, on: Under::Bond("bond0".into()), name: None, mtu: None, ip: fixed(&["10.1.0.5/24"], &[]) },
            Vlan { id: 7, on: Under::Port(mac(4)), name: Some("storage".into()), mtu: None, ip: Ip::default() },
        ],
    }
}

const DNS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 53)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53)),
];

fn wanted(network: Network, search: &[String]) -> Wanted<'_> {
    Wanted { network, dns: &DNS, search, own_ntp: true }
}

#[test]
fn what_the_image_has_is_what_is_used() {
    use Presence::{Absent, Enabled, Idle};
    let nothing = Found::default();
    for (name, found, names, want) in [
        ("nothing", nothing, false, None),
        ("Debian of ours", Found { networkd: Enabled, ..nothing }, false, Some(Configurer::Networkd)),
        ("Debian of others", Found { networkd: Idle, ifupdown: Enabled, ..nothing }, false, Some(Configurer::Ifupdown)),
        ("for a bond", Found { networkd: Idle, ifupdown: Enabled, ..nothing }, true, Some(Configurer::Networkd)),
        ("ifupdown that nobody starts", Found { ifupdown: Idle, ..nothing }, false, Some(Configurer::Ifupdown)),
        ("ifupdown alone, for a bond", Found { ifupdown: Enabled, ..nothing }, true, None),
        ("systemd alone", Found { networkd: Idle, ..nothing }, false, Some(Configurer::Networkd)),
        (
            "Ubuntu",
            Found { netplan: true, networkd: Enabled, cloud_init: true, ..nothing },
            true,
            Some(Configurer::Netplan),
        ),
        ("a desktop", Found { netplan: true, network_manager: Enabled, ..nothing }, false, Some(Configurer::Netplan)),
        ("netplan without any", Found { netplan: true, ..nothing }, false, None),
        (
            "Alma",
            Found { network_manager: Enabled, cloud_init: true, ..nothing },
            true,
            Some(Configurer::NetworkManager),
        ),
        (
            "networkd beside NetworkManager",
            Found { network_manager: Enabled, networkd: Idle, ..nothing },
            false,
            Some(Configurer::NetworkManager),
        ),
        ("something that cloud-init knows", Found { cloud_init: true, ..nothing }, true, Some(Configurer::CloudInit)),
        ("absent is absent", Found { networkd: Absent, ..nothing }, true, None),
    ] {
        assert_eq!(choose(found, names), want, "{name}");
    }
}

#[test]
fn images_are_recognised() {
    const UNIT: &str = "[Install]\nWantedBy=multi-user.target\n";
    let unit = |name: &str| (format!("/usr/lib/systemd/system/{name}"), UNIT);
    let enabled = |name: &str| (format!("/etc/systemd/system/multi-user.target.wants/{name}"), "->");
    let file = |path: &str| (path.to_owned(), "");
    for (name, files, want) in [
        ("an empty one", vec![], Found::default()),
        (
            "networkd, enabled",
            vec![unit("systemd-networkd.service"), enabled("systemd-networkd.service")],
            Found { networkd: Presence::Enabled, ..Found::default() },
        ),
        (
            "ifupdown, and networkd as Debian always has it",
            vec![
                unit("systemd-networkd.service"),
                unit("networking.service"),
                enabled("networking.service"),
                file("/usr/sbin/ifup"),
                file("/etc/network/interfaces"),
            ],
            Found { networkd: Presence::Idle, ifupdown: Presence::Enabled, ..Found::default() },
        ),
        (
            "netplan and cloud-init",
            vec![file("/usr/sbin/netplan"), file("/usr/bin/cloud-init"), file("/etc/cloud/cloud.cfg")],
            Found { netplan: true, cloud_init: true, ..Found::default() },
        ),
        (
            "NetworkManager that is masked",
            vec![unit("NetworkManager.service"), ("/etc/systemd/system/NetworkManager.service".into(), "-> /dev/null")],
            Found::default(),
        ),
    ] {
        let base = tempfile::tempdir().expect("temporary directory");
        for (path, text) in files {
            let path = base.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("below")).expect("made");
            match text.strip_prefix("->") {
                Some(target) => {
                    std::os::unix::fs::symlink(format!("{}x", target.trim()).replace("/dev/nullx", "/dev/null"), path)
                        .expect("linked")
                }
                None => fs::write(path, text).expect("written"),
            }
        }
        assert_eq!(found(&Root::open(base.path()).expect("opened"), true).expect("looked"), want, "{name}");
    }
}

/// Each text was accepted by the programs that read it (netplan generate, cloud-init schema, libnm, ifup --no-act).
#[test]
fn the_same_network_for_everybody() {
    let search = ["example.org".to_owned()];
    let wanted = wanted(everything(), &search);
    let mut all = String::new();
    let mut add = |name: &str, text: &str| all.push_str(&format!("=== {name}\n{text}"));
    for (name, text) in networkd::files(&wanted) {
        add(&name, &text);
    }
    add("netplan", &netplan::text(&wanted, Some("networkd")));
    add("cloud-init", &netplan::text(&wanted, None));
    for (name, text) in keyfile::files(&wanted).expect("no primary") {
        add(&name, &text);
    }
    let mut plain = wanted.clone();
    plain.network.bonds.clear();
    plain.network.vlans.clear();
    plain.network.ports.push(Port { mac: mac(2), mtu: None, ip: Ip { dhcp4: true, ..Ip::default() } });
    add("interfaces", &ifupdown::text(&plain));
    add("dhclient.conf", &ifupdown::dhclient("timeout 60;\n", &plain).expect("servers"));
    add("resolved.conf", &resolved(wanted.dns, wanted.search).expect("servers"));
    add("resolv.conf", &resolv_conf(wanted.dns, wanted.search));
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/install/configure/network/everything.txt");
    if std::env::var_os("DROPHAMMER_WRITE_GOLDEN").is_some() {
        fs::write(golden, &all).expect("written");
    }
    assert_eq!(all, fs::read_to_string(golden).expect("there"), "DROPHAMMER_WRITE_GOLDEN=1 writes it anew");
}

#[test]
fn nothing_asked_is_dhcp_on_the_port_of_the_install() {
    let uplink = Uplink { mac: Some(mac(1)), nameservers: vec![] };
    let wanted = Wanted { network: by_default(&uplink), dns: &[], search: &[], own_ntp: false };
    let files = networkd::files(&wanted);
    let want = "# Written when this system was installed.\n[Match]\nMACAddress=52:54:00:77:00:01\nType=ether\nKind=!*\n\n\
                [Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n";
    assert_eq!(files, [("10-drophammer-525400770001.network".to_owned(), want.to_owned())]);
    assert_eq!(in_words(&wanted.network), "52:54:00:77:00:01 by DHCP");
    assert_eq!(
        in_words(&everything()),
        "52:54:00:77:00:01 192.0.2.5/24 and 2001:db8::5/64, 52:54:00:77:00:04 without an address, bond0 of 2 ports \
         (802.3ad) by DHCP, vlan100 10.1.0.5/24, storage without an address"
    );
}

#[test]
fn who_writes_what() {
    let enabled = "[Install]\nWantedBy=multi-user.target\n";
    let networkd = ("/usr/lib/systemd/system/systemd-networkd.service", enabled);
    let nm = ("/usr/lib/systemd/system/NetworkManager.service", enabled);
    let ifup = [
        ("/usr/sbin/ifup", ""),
        ("/etc/network/interfaces", "iface eth0 inet dhcp\n"),
        ("/usr/lib/systemd/system/networking.service", enabled),
    ];
    let uplink = || Uplink { mac: Some(mac(1)), nameservers: vec![ip("192.0.2.53")] };
    let static_port = || Network {
        ports: vec![Port { mac: mac(1), mtu: None, ip: fixed(&["192.0.2.5/24"], &[]) }],
        ..Network::default()
    };
    for (name, files, network, want) in [
        (
            "networkd",
            vec![networkd],
            everything(),
            Ok(("/etc/systemd/network/10-drophammer-bond0.netdev", "Kind=bond")),
        ),
        (
            "netplan, whose other files go",
            vec![networkd, ("/usr/sbin/netplan", ""), ("/etc/netplan/50-cloud-init.yaml", "network: {}\n")],
            everything(),
            Ok(("/etc/netplan/10-drophammer.yaml", "renderer: \"networkd\"")),
        ),
        (
            "NetworkManager",
            vec![nm],
            everything(),
            Ok(("/etc/NetworkManager/system-connections/drophammer-bond0.nmconnection", "mode=802.3ad")),
        ),
        ("ifupdown", ifup.to_vec(), static_port(), Ok(("/etc/network/interfaces", "auto mac/52:54:00:77:00:01=port0"))),
        ("ifupdown, of more than it can", ifup.to_vec(), everything(), Err("configures bonds and VLANs")),
        ("nothing", vec![], static_port(), Err("nothing that configures a network")),
        ("cloud-init", vec![("/usr/bin/cloud-init", ""), ("/etc/cloud/cloud.cfg", "")], static_port(), Ok(("", ""))),
    ] {
        let base = tempfile::tempdir().expect("temporary directory");
        let at = |path: &str| base.path().join(path.trim_start_matches('/'));
        for (path, text) in files {
            fs::create_dir_all(at(path).parent().expect("below")).expect("made");
            fs::write(at(path), text).expect("written");
        }
        let root = Root::open(base.path()).expect("opened");
        let system = System { network, ..System::default() };
        match (configure(&root, &system, &uplink(), true), want) {
            (Ok(written), Ok((path, part))) => {
                assert!(
                    written.notes[0].contains(" configures the network: 52:54:00:77:00:01"),
                    "{name}: {:?}",
                    written.notes
                );
                assert_eq!(written.cloud_init.is_some(), path.is_empty(), "{name}");
                if !path.is_empty() {
                    let text = fs::read_to_string(at(path)).unwrap_or_else(|e| panic!("{name}: {path}: {e}"));
                    assert!(text.contains(part), "{name}: {text}");
                }
                assert!(!at("/etc/netplan/50-cloud-init.yaml").exists(), "{name}");
            }
            (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{name}: {e}"),
            (got, want) => panic!("{name}: {got:?}, want {want:?}"),
        }
    }
}
