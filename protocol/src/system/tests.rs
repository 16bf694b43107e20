use super::network::{Bond, BondMode, HashPolicy, Ip, LacpRate, Port, Route, Under, Vlan};
use super::*;
use crate::id::Mac;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFzqkcqBdRpHnJkZ4s2Qf0Q0J1m8Xc0Yw5mS7m2JvH3b";
const HASH: &str = "$5$saltsalt$KvGFuXKTHlFN2YNq7ErIXpsUT9E8Ai5b9m7i9TFRpR9";

fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, n])
}

fn plain() -> System {
    System { hostname: "web1".into(), ..System::default() }
}

fn faults(system: &System) -> String {
    system.check().err().map(|faults| faults.to_string()).unwrap_or_default()
}

/// Nothing is wrong, or exactly what `want` begins with.
fn judge(name: &str, system: &System, want: &str) {
    let got = faults(system);
    assert!(if want.is_empty() { got.is_empty() } else { got.starts_with(want) }, "{name}: {got:?}, want {want:?}");
}

#[test]
fn hostnames_by_rfc_1123() {
    for (name, valid) in [
        ("web-1", true),
        ("3com", true),
        ("a.b.example", true),
        ("", false),
        ("-a", false),
        ("a-", false),
        ("a..b", false),
        ("a_b", false),
        ("a/b", false),
        ("a b", false),
        ("ä", false),
        ("a\nb", false),
        (&"a".repeat(63), true),
        (&"a".repeat(64), false),
        (&format!("{}.{}", "a".repeat(40), "b".repeat(40)), false),
    ] {
        assert_eq!(is_hostname(name), valid, "{name:?}");
    }
}

#[test]
fn ssh_keys_look_like_keys() {
    for (name, key, valid) in [
        ("with a comment", format!("{KEY} me@desk"), true),
        ("without", KEY.into(), true),
        ("with a line end", format!("{KEY}\n"), true),
        ("two lines", format!("{KEY}\n{KEY}"), false),
        ("options before it", format!("command=\"sh\" {KEY}"), false),
        ("type and blob differ", KEY.replacen("ssh-ed25519", "ssh-rsa", 1), false),
        ("a private key", "-----BEGIN OPENSSH PRIVATE KEY-----".into(), false),
        ("no base64", "ssh-ed25519 ???".into(), false),
        ("a blob of nothing", "ssh-ed25519 AAAA".into(), false),
        ("empty", String::new(), false),
    ] {
        assert_eq!(is_ssh_key(&key), valid, "{name}");
    }
}

#[test]
fn password_hashes_as_crypt_makes_them() {
    let sha512 =
        "$6$vLmZBvUCeyLPQxIX$oCPZ4mSSYOLpbSkIBPHKZmCAiNGNZEAVEh9fkjYzvP6bPqd8AbVOpmBcVNcbBqiv62SbjcjbjmsVL2TMb8OZi/";
    for (name, hash, valid) in [
        ("SHA-512", sha512, true),
        ("SHA-256", HASH, true),
        ("with rounds", "$5$rounds=10000$saltsalt$KvGFuXKTHlFN2YNq7ErIXpsUT9E8Ai5b9m7i9TFRpR9", true),
        ("yescrypt", "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7", true),
        ("bcrypt", "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW", true),
        ("a password", "hunter2", false),
        ("locked", "!", false),
        ("nothing", "", false),
        ("MD5", "$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/", false),
        ("DES", "rl0uE0wi72ppQ", false),
        ("cut", &sha512[..80], false),
        ("another field", "$5$salt:salt$KvGFuXKTHlFN2YNq7ErIXpsUT9E8Ai5b9m7i9TFRpR9", false),
        ("another line", "$5$saltsalt$KvGFuXKTHlFN2YNq7ErIXpsUT9E8Ai5b9m7i9TFRpR\n", false),
    ] {
        assert_eq!(is_crypt(hash), valid, "{name}");
    }
}

#[test]
fn what_is_wrong_and_where() {
    let with = |change: &dyn Fn(&mut System)| {
        let mut system = plain();
        change(&mut system);
        system
    };
    let user = |change: &dyn Fn(&mut User)| {
        let mut user = User { name: "ann".into(), ..User::default() };
        change(&mut user);
        with(&|s| s.users = vec![user.clone()])
    };
    let console = |port: &str, speed| with(&|s| s.consoles = vec![Console { port: port.into(), speed }]);
    let cloud = |text: &str| with(&|s| s.user_data = Some(UserData::CloudInit(text.into())));
    let ignition = |text: &str| with(&|s| s.user_data = Some(UserData::Ignition(text.into())));
    for (name, system, want) in [
        ("a name alone", plain(), ""),
        ("a host name", with(&|s| s.hostname = "a_b".into()), "hostname: \"a_b\" is not a hostname"),
        ("a key", with(&|s| s.ssh_keys = vec![KEY.into(), "x".into()]), "ssh_keys: SSH key 2 is not a public key"),
        ("keys without end", with(&|s| s.ssh_keys = vec![KEY.into(); 101]), "ssh_keys: 101 are more than the 100"),
        ("a user", user(&|_| {}), ""),
        ("a user's name", user(&|u| u.name = "Ann".into()), "users: \"Ann\" is not a name for an account"),
        ("a path as a name", user(&|u| u.name = "../x".into()), "users: \"../x\" is not a name"),
        ("a password", user(&|u| u.password = Some(PasswordHash::new("hunter2"))), "users.ann.password: it is not a"),
        ("a good one", user(&|u| u.password = Some(PasswordHash::new(HASH))), ""),
        ("sudo with no password to ask for", user(&|u| u.sudo = Some(Sudo::Password)), "users.ann.sudo: it would be"),
        ("sudo without", user(&|u| u.sudo = Some(Sudo::NoPassword)), ""),
        ("a group", user(&|u| u.groups = vec!["a:b".into()]), "users.ann.groups: \"a:b\" is not a name"),
        (
            "two of a name",
            with(&|s| s.users = vec![User { name: "ann".into(), ..User::default() }; 2]),
            "users: \"ann\"",
        ),
        ("a resolver", with(&|s| s.dns = vec!["0.0.0.0".parse().expect("ip")]), "dns: 0.0.0.0 is no server's"),
        ("a domain", with(&|s| s.search = vec!["a b".into()]), "search: \"a b\" is not a domain"),
        ("time servers", with(&|s| s.ntp = vec!["ntp.example.org".into(), "2001:db8::1".into()]), ""),
        ("a time server", with(&|s| s.ntp = vec!["ntp\nx".into()]), "ntp: \"ntp\\nx\" is neither"),
        ("a zone", with(&|s| s.timezone = Some("America/Argentina/Buenos_Aires".into())), ""),
        ("a path as a zone", with(&|s| s.timezone = Some("../../etc/shadow".into())), "timezone: "),
        ("a console", console("ttyS1", Some(57600)), ""),
        ("a console that is none", console("tty0", None), "consoles: \"tty0\" is not a serial port"),
        ("one with arguments", console("ttyS0 init=/bin/sh", None), "consoles: "),
        ("a speed", console("ttyS0", Some(1234)), "consoles: 1234 bit/s isn't one of 9600"),
        ("cloud-config", cloud("#cloud-config\npackages: []\n"), ""),
        ("a script", cloud("#!/bin/sh\necho\n"), ""),
        ("YAML that cloud-init would skip", cloud("packages: []\n"), "user_data: it doesn't begin as cloud-init's"),
        ("too much", cloud(&format!("#!{}", "x".repeat(UserData::MAX_BYTES))), "user_data: it has 32770 bytes"),
        ("ignition", ignition(r#"{"ignition":{"version":"3.4.0"}}"#), ""),
        ("ignition without a version", ignition(r#"{"ignition":{}}"#), "user_data: it is not an Ignition"),
        ("butane", ignition("variant: flatcar\n"), "user_data: it is not an Ignition"),
    ] {
        judge(name, &system, want);
    }
}

#[test]
fn networks_that_can_be_and_that_can_not() {
    let net = |text: &str| text.parse().expect("a network");
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let port = |n| Port { mac: mac(n), mtu: None, ip: Ip::default() };
    let fixed = |addresses: &[&str], gateways: &[&str]| Ip {
        addresses: addresses.iter().map(|a| net(a)).collect(),
        gateways: gateways.iter().map(|g| ip(g)).collect(),
        ..Ip::default()
    };
    let with_ip =
        |ip: Ip| System { network: Network { ports: vec![Port { ip, ..port(1) }], ..Network::default() }, ..plain() };
    let bond = |change: &dyn Fn(&mut Bond)| {
        let mut bond = Bond {
            name: "bond0".into(),
            members: vec![mac(1), mac(2)],
            mode: BondMode::Lacp,
            lacp_rate: Some(LacpRate::Fast),
            hash_policy: Some(HashPolicy::Layer34),
            min_links: Some(1),
            primary: None,
            mtu: Some(9000),
            ip: Ip { dhcp4: true, ..Ip::default() },
        };
        change(&mut bond);
        System { network: Network { bonds: vec![bond], ..Network::default() }, ..plain() }
    };
    let vlan = |id, on: Under, mtu| {
        let mut system = bond(&|_| {});
        system.network.ports.push(port(3));
        system.network.vlans.push(Vlan { id, on, name: None, mtu, ip: fixed(&["10.1.0.5/24"], &["10.1.0.1"]) });
        system
    };
    let route = |to: &str, via: &str, on_link| Route { to: net(to), via: ip(via), metric: None, on_link };
    let routed = |route: Route| with_ip(Ip { routes: vec![route], ..fixed(&["192.0.2.5/24"], &[]) });
    let at = "network.ports.52:54:00:00:00:01";
    let two_ports = System { network: Network { ports: vec![port(1), port(1)], ..Network::default() }, ..plain() };
    let tiny = System {
        network: Network {
            ports: vec![Port { mtu: Some(1000), ip: fixed(&["fd00::5/64"], &[]), ..port(1) }],
            ..Network::default()
        },
        ..plain()
    };
    for (name, system, want) in [
        ("DHCP", with_ip(Ip { dhcp4: true, dhcp6: true, ..Ip::default() }), String::new()),
        ("fixed", with_ip(fixed(&["192.0.2.5/24", "fd00::5/64"], &["192.0.2.1", "fe80::1"])), String::new()),
        ("a link alone", with_ip(Ip::default()), String::new()),
        (
            "the network's own address",
            with_ip(fixed(&["192.0.2.0/24"], &[])),
            format!("{at}.ip.addresses: 192.0.2.0/24 is"),
        ),
        ("its broadcast", with_ip(fixed(&["192.0.2.255/24"], &[])), format!("{at}.ip.addresses: 192.0.2.255/24 is")),
        ("a pair", with_ip(fixed(&["192.0.2.0/31"], &["192.0.2.1"])), String::new()),
        ("loopback", with_ip(fixed(&["127.0.0.2/8"], &[])), format!("{at}.ip.addresses: 127.0.0.2/8 is")),
        (
            "a far gateway",
            with_ip(fixed(&["192.0.2.5/24"], &["10.0.0.1"])),
            format!("{at}.ip.gateways: the gateway 10.0.0.1 is in no"),
        ),
        (
            "itself as a gateway",
            with_ip(fixed(&["192.0.2.5/24"], &["192.0.2.5"])),
            format!("{at}.ip.gateways: 192.0.2.5 is no"),
        ),
        (
            "two gateways",
            with_ip(fixed(&["192.0.2.5/24"], &["192.0.2.1", "192.0.2.2"])),
            format!("{at}.ip.gateways: there is more"),
        ),
        (
            "an address twice",
            with_ip(fixed(&["192.0.2.5/24", "192.0.2.5/25"], &[])),
            "network: the address 192.0.2.5 is there".into(),
        ),
        ("a port twice", two_ports, "network: the port 52:54:00:00:00:01 is there twice".into()),
        ("an MTU too small for IPv6", tiny, format!("{at}: an MTU of 1000: 1280 to")),
        ("a route", routed(route("10.0.0.0/8", "192.0.2.1", false)), String::new()),
        ("a far gateway that is on the link", routed(route("0.0.0.0/0", "172.31.1.1", true)), String::new()),
        (
            "a far gateway that isn't",
            routed(route("0.0.0.0/0", "172.31.1.1", false)),
            format!("{at}.ip.routes: the gateway 172"),
        ),
        ("mixed versions", routed(route("fd00::/8", "192.0.2.1", false)), format!("{at}.ip.routes: fd00::/8 and its")),
        (
            "bits behind",
            routed(route("10.0.0.1/8", "192.0.2.1", false)),
            format!("{at}.ip.routes: 10.0.0.1/8 has bits"),
        ),
        ("LACP", bond(&|_| {}), String::new()),
        ("nobody in it", bond(&|b| b.members.clear()), "network.bonds.bond0: it has no members".into()),
        ("more links than members", bond(&|b| b.min_links = Some(3)), "network.bonds.bond0: it would need 3".into()),
        ("LACP without LACP", bond(&|b| b.mode = BondMode::BalanceXor), "network.bonds.bond0: lacp_rate means".into()),
        ("a name too long", bond(&|b| b.name = "b".repeat(16)), "network.bonds: \"bbbb".into()),
        ("a name of another thing", bond(&|b| b.name = "lo".into()), "network.bonds: \"lo\" means".into()),
        ("a member twice", bond(&|b| b.members = vec![mac(1), mac(1)]), "network: the port".into()),
        (
            "a primary",
            bond(&|b| {
                (b.mode, b.primary, b.lacp_rate, b.min_links, b.hash_policy) =
                    (BondMode::ActiveBackup, Some(mac(9)), None, None, None);
            }),
            "network.bonds.bond0: its primary 52:54:00:00:00:09 isn't a member".into(),
        ),
        ("a VLAN on a bond", vlan(100, Under::Bond("bond0".into()), Some(9000)), String::new()),
        ("a VLAN on a port", vlan(100, Under::Port(mac(3)), None), String::new()),
        ("a VLAN on a port that isn't listed", vlan(100, Under::Port(mac(7)), None), String::new()),
        (
            "a VLAN on a member",
            vlan(100, Under::Port(mac(1)), None),
            "network.vlans.vlan100: 52:54:00:00:00:01 is a".into(),
        ),
        (
            "a VLAN on nothing",
            vlan(100, Under::Bond("bond1".into()), None),
            "network.vlans.vlan100: \"bond1\" is".into(),
        ),
        ("VLAN 0", vlan(0, Under::Port(mac(3)), None), "network.vlans.vlan0: 0 isn't a VLAN's".into()),
        (
            "a VLAN larger than what it's on",
            vlan(1, Under::Bond("bond0".into()), Some(9001)),
            "network.vlans.vlan1: an MTU".into(),
        ),
    ] {
        judge(name, &system, &want);
    }
    let carried = vlan(100, Under::Port(mac(7)), None).network;
    assert_eq!(carried.macs(), [mac(1), mac(2), mac(3), mac(7)]);
    assert_eq!(carried.all_ports().iter().map(|port| port.mac).collect::<Vec<_>>(), [mac(3), mac(7)]);
}

#[test]
fn secrets_are_not_shown_and_what_is_shown_is_not_taken() {
    let system = System {
        users: vec![User { name: "ann".into(), password: Some(PasswordHash::new(HASH)), ..User::default() }],
        user_data: Some(UserData::CloudInit("#cloud-config\npassword: hunter2\n".into())),
        ..plain()
    };
    assert_eq!(system.check(), Ok(()));
    let shown = system.clone().without_secrets();
    for text in [format!("{system:?}"), format!("{shown:?}"), serde_json::to_string(&shown).expect("JSON")] {
        assert!(!text.contains("hunter2") && !text.contains("saltsalt"), "{text}");
    }
    assert_eq!(shown.check().expect_err("two faults").0.len(), 2);
    // A mistake is said without the secret that was mistaken.
    let mistaken = User { name: "ann".into(), password: Some(PasswordHash::new("hunter2")), ..User::default() };
    assert!(!faults(&System { users: vec![mistaken], ..plain() }).contains("hunter2"));
}

#[test]
fn user_data_says_what_it_is() {
    for (name, text, want) in [
        ("ignition", r#"{"ignition":{"version":"2.3.0"}}"#, "Ignition"),
        ("cloud-config", "#cloud-config\n{}", "CloudInit"),
        ("other JSON", "{}", "CloudInit"),
    ] {
        let got = format!("{:?}", UserData::recognise(text.into()));
        assert!(got.starts_with(want), "{name}: {got}");
    }
}

#[test]
fn only_the_host_name_is_needed() {
    let system: System = serde_json::from_str(r#"{"hostname":"web1"}"#).expect("reads");
    assert_eq!(system, plain());
    assert_eq!(serde_json::to_string(&system).expect("writes"), r#"{"hostname":"web1"}"#);
    let typo = serde_json::from_str::<System>(r#"{"hostname":"web1","shh_keys":[]}"#).expect_err("a typing mistake");
    assert!(typo.to_string().contains("shh_keys"), "{typo}");
}
