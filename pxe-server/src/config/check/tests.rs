use std::path::Path;

use drophammer_protocol::erase::Policy;

use super::*;

const SMALL: &str = r#"
    [[network]]
    interface = "br0"
    address = "10.77.0.1"
    subnet = "10.77.0.0/24"
    pool = [{ first = "10.77.0.100", last = "10.77.0.199" }]
"#;

#[test]
fn the_smallest_file_is_enough() {
    let config: Config = toml::from_str(SMALL).expect("the smallest configuration");
    let settings = config.check().expect("makes sense");
    assert_eq!(settings.images_dir, Path::new("/var/lib/drophammer/images"));
    assert_eq!(settings.ports, Ports { dhcp: 67, proxy_dhcp: 4011, tftp: 69, http: 80, https: 443 });
    let [network] = &settings.networks[..] else { panic!("one network") };
    assert_eq!((network.name.as_str(), network.relayed), ("br0", false));
    let Dhcp::Server(leasing) = &network.dhcp else { panic!("a DHCP server") };
    assert!(leasing.pool.taken.contains(&Ipv4Addr::new(10, 77, 0, 1)));
    assert_eq!(leasing.probe, Some(Duration::from_millis(100)));
}

/// The keys of all complaints about a file with `more` in its network and `top` before it.
fn complaints(top: &str, more: &str) -> String {
    let network: String = SMALL
        .lines()
        .filter(|line| {
            let key = line.split('=').next().unwrap_or_default().trim();
            key.is_empty() || !more.lines().any(|l| l.split('=').next().unwrap_or_default().trim() == key)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let text = format!("{top}\n{network}\n{more}\n");
    let config: Config = toml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
    config.check().expect_err(&text).located(&text).to_string()
}

#[test]
fn complaints_name_their_key() {
    let reserve = |text: &str| format!("reservations = [{text}]");
    let mac = r#"mac = "52:54:00:00:00:01""#;
    let key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&key, "ab".repeat(32)).expect("written");
    for (want, top, more) in [
        ("network.interface", "", r#"interface = "an-interface-too-long""#.to_owned()),
        ("network.subnet", "", r#"subnet = "10.77.0.0/31""#.into()),
        ("network.subnet", "", r#"subnet = "10.77.0.1/24""#.into()),
        ("network.address", "", r#"address = "10.77.0.255""#.into()),
        ("network.relay", "", r#"relay = { circuit_id = "x" }"#.into()),
        ("network.pool", "", "pool = []".into()),
        ("network.pool.last", "", r#"pool = [{ first = "10.77.0.9", last = "10.78.0.9" }]"#.into()),
        ("network.pool.last", "", r#"pool = [{ first = "10.77.0.9", last = "10.77.0.255" }]"#.into()),
        ("network.pool", "", r#"pool = [{ first = "10.77.0.9", last = "10.77.0.8" }]"#.into()),
        ("network.pool", "", "dhcp = \"proxy\"\npool = [{ first = \"10.77.0.9\", last = \"10.77.0.9\" }]".into()),
        ("network.share", "", "share = { part = 3, of = 2 }".into()),
        ("network.router", "", r#"router = "192.168.0.1""#.into()),
        ("network.dns", "", format!("dns = [{}]", r#""10.0.0.1","#.repeat(9))),
        ("network.search", "", r#"search = ["a b"]"#.into()),
        ("network.search", "", format!("search = [{}]", r#""some.long.example.org","#.repeat(5))),
        ("network.mtu", "", "mtu = 68".into()),
        ("network.routes.via", "", r#"routes = [{ to = "10.0.0.0/8", via = "10.78.0.1" }]"#.into()),
        ("network.lease_seconds", "", "lease_seconds = 5".into()),
        ("network.probe_ms", "", "probe_ms = 5000".into()),
        ("network.reservations", "", reserve(r#"{ address = "10.77.0.9" }"#)),
        ("network.reservations.address", "", reserve(&format!(r#"{{ {mac}, address = "10.78.0.9" }}"#))),
        ("network.reservations.address", "", reserve(&format!(r#"{{ {mac}, address = "10.77.0.1" }}"#))),
        (
            "network.reservations",
            "",
            reserve(&[9, 8].map(|n| format!(r#"{{ {mac}, address = "10.77.0.{n}" }}"#)).join(",")),
        ),
        ("ports.http", "ports = { http = 0 }", String::new()),
        ("ports.https", "ports = { https = 80 }", String::new()),
        ("ports.tftp", "ports = { tftp = 67 }", String::new()),
        ("agent_cmdline", "agent_cmdline = \"quiet\\nreboot\"", String::new()),
        ("install_cmdline", "install_cmdline = \"${net0/mac}\"", String::new()),
        ("reboot_models", "reboot_models = [\"PowerEdge*\", \"\"]", String::new()),
        ("power_hook", "power_hook = \"/nonexistent/hook\"", String::new()),
        ("image_keys", "image_keys = [\"/nonexistent/key\"]", String::new()),
        ("import", "[[import]]\nurl = \"http://a.example/debian.tar.zst\"", String::new()),
        ("import", "[[import]]\nurl = \"ftp://a.example/20250101/debian/12/img.tar.lz4\"", String::new()),
        ("import.url", "[[import]]\nurl = \"img.tar.lz4\"", String::new()),
        (
            "import.unchecked",
            "[[import]]\nurl = \"/a\"\nname = \"a\"\nversion = \"1\"\nunchecked = true\nsha256 = \"00\"",
            String::new(),
        ),
        ("backup.to", "[backup]\nto = \"backups\"\nkey_file = \"KEY\"", String::new()),
        ("backup.key_file", "[backup]\nto = \"/backups\"\nkey_file = \"/nonexistent\"", String::new()),
        ("backup.key_file", "[backup]\nto = \"/backups\"\nkey_file = \"/etc/hostname\"", String::new()),
        ("projects.a b", "[projects.\"a b\"]", String::new()),
    ] {
        let said = complaints(&top.replace("KEY", &key.path().display().to_string()), &more);
        let (line, rest) = said.split_once(": ").expect("a line");
        assert!(line.starts_with("line ") && rest.starts_with(&format!("{want}: ")), "{want}, {more}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn projects_are_promised_what_they_or_the_server_want() {
    use Policy::{Clear, Purge, RekeyOnly};
    for (name, server, project, want) in [
        ("neither says anything", "", "", Purge),
        ("the server's", "erase_policy = \"rekey-only\"", "", RekeyOnly),
        ("its own", "erase_policy = \"clear\"", "erase_policy = \"purge\"", Purge),
        ("its own, which is less than everybody's", "", "erase_policy = \"clear\"", Clear),
    ] {
        let text = format!("{server}\n{SMALL}\n[projects.web]\n{project}\n");
        let config: Config = toml::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(config.check().expect(name).projects["web"], want, "{name}");
    }
}

#[test]
fn networks_have_to_be_told_apart() {
    let other = |interface: &str, address: &str, subnet: &str, more: &str| {
        let [a, b, c, _] = address.parse::<Ipv4Addr>().expect("an address").octets();
        format!(
            "{SMALL}\n[[network]]\nname = \"b\"\ninterface = \"{interface}\"\naddress = \"{address}\"\n\
             subnet = \"{subnet}\"\npool = [{{ first = \"{a}.{b}.{c}.20\", last = \"{a}.{b}.{c}.29\" }}]\n{more}\n"
        )
    };
    for (name, text, want) in [
        ("two wires", other("br1", "10.78.0.1", "10.78.0.0/24", ""), None),
        ("one wire", other("br0", "10.78.0.1", "10.78.0.0/24", ""), Some("network.interface")),
        ("a relayed one beside", other("br0", "10.78.0.1", "10.78.0.0/24", "relayed = true"), None),
        ("one inside the other", other("br1", "10.77.0.1", "10.77.0.0/16", ""), Some("network.subnet")),
        ("one name", other("br1", "10.78.0.1", "10.78.0.0/24", "").replace("\"b\"", "\"br0\""), Some("network.name")),
    ] {
        let config: Config = toml::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let said = config.check().map_err(|c| c.to_string()).err();
        assert_eq!(said.as_deref().and_then(|s| s.split(": ").next()), want, "{name}: {said:?}");
    }
}

#[test]
fn a_file_without_networks_and_one_with_unknown_keys() {
    let empty: Config = toml::from_str("").expect("an empty file");
    assert!(empty.check().expect_err("no network").to_string().contains("there is no [[network]]"));
    assert!(toml::from_str::<Config>(&SMALL.replace("subnet", "netmask")).is_err());
}
