//! Which time it is: time servers and the time zone.

use drophammer_protocol::system::System;

use super::super::root::Root;
use super::super::systemd;

const TIMESYNCD: &str = "systemd-timesyncd.service";
const TIMESYNCD_DROP_IN: &str = "/etc/systemd/timesyncd.conf.d/50-drophammer.conf";

/// Daemons that are told in lines `server NAME` and `pool NAME`: where their file is, and their units' names. An image
/// has one of these rather than systemd's because somebody wanted it.
const DAEMONS: [(&str, [&str; 2]); 4] = [
    ("/etc/chrony/chrony.conf", ["chrony.service", "chronyd.service"]),
    ("/etc/chrony.conf", ["chronyd.service", "chrony.service"]),
    ("/etc/ntpsec/ntp.conf", ["ntpsec.service", "ntp.service"]),
    ("/etc/ntp.conf", ["ntp.service", "ntpd.service"]),
];

pub(super) fn configure(root: &Root, system: &System, systemd: bool) -> anyhow::Result<()> {
    if let Some(zone) = &system.timezone {
        time_zone(root, zone)?;
    }
    if system.ntp.is_empty() {
        return Ok(());
    }
    for (path, units) in DAEMONS {
        let Some(text) = root.text(path)? else { continue };
        root.replace_text(path, 0o644, &with_servers(&text, &system.ntp))?;
        for unit in units.into_iter().filter(|_| systemd) {
            systemd::enable(root, unit)?;
        }
        return Ok(());
    }
    anyhow::ensure!(
        systemd && systemd::has(root, TIMESYNCD)?,
        "the image has nothing that asks time servers (looked for: chrony, ntpsec, ntpd, systemd-timesyncd); use another \
         image, or leave `ntp` out"
    );
    root.put_text(TIMESYNCD_DROP_IN, 0o644, &timesyncd(&system.ntp))?;
    systemd::enable(root, TIMESYNCD)
}

fn time_zone(root: &Root, zone: &str) -> anyhow::Result<()> {
    let file = format!("/usr/share/zoneinfo/{zone}");
    anyhow::ensure!(
        root.file(&file)?.is_some(),
        "the image knows no time zone {zone} (it has no {file}); use an image with tzdata, or leave `timezone` out"
    );
    root.link("/etc/localtime", &format!("..{file}"))?;
    // Debian's, which its tzdata takes as the truth.
    if root.exists("/etc/timezone")? {
        root.put_text("/etc/timezone", 0o644, &format!("{zone}\n"))?;
    }
    Ok(())
}

/// timesyncd.conf(5). An empty assignment forgets the image's own.
fn timesyncd(servers: &[String]) -> String {
    format!("# Written when this system was installed.\n[Time]\nNTP=\nNTP={}\nFallbackNTP=\n", servers.join(" "))
}

/// chrony.conf(5) and ntp.conf(5): ours instead of all others, wherever those come from.
fn with_servers(existing: &str, servers: &[String]) -> String {
    const MARK: &str = "# Written when this system was installed:";
    let before = existing.split(MARK).next().unwrap_or_default();
    let mut text = String::new();
    for line in before.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        let theirs = matches!(first, "server" | "pool" | "peer" | "sourcedir");
        text.push_str(if theirs { "# " } else { "" });
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(MARK);
    text.push('\n');
    servers.iter().for_each(|server| text.push_str(&format!("server {server} iburst\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_ours_and_of_nobody_else() {
        let ours = ["ntp.example.org".to_owned(), "2001:db8::1".to_owned()];
        let chrony = "# Debian\npool 2.debian.pool.ntp.org iburst\nsourcedir /run/chrony-dhcp\ndriftfile /var/lib/chrony/drift\n";
        let want = "# Debian\n# pool 2.debian.pool.ntp.org iburst\n# sourcedir /run/chrony-dhcp\n\
                    driftfile /var/lib/chrony/drift\n# Written when this system was installed:\n\
                    server ntp.example.org iburst\nserver 2001:db8::1 iburst\n";
        assert_eq!(with_servers(chrony, &ours), want);
        assert_eq!(with_servers(want, &ours), want, "twice is once");
        assert!(timesyncd(&ours).ends_with("NTP=\nNTP=ntp.example.org 2001:db8::1\nFallbackNTP=\n"));
    }

    #[test]
    fn what_the_image_has_is_told() {
        let unit = "[Install]\nWantedBy=multi-user.target\n";
        let asked = System { ntp: vec!["a".into()], timezone: Some("UTC".into()), ..System::default() };
        let zone = ("/usr/share/zoneinfo/UTC", "TZif");
        let timesyncd = ("/usr/lib/systemd/system/systemd-timesyncd.service", unit);
        for (name, files, want) in [
            ("systemd's own", vec![zone, timesyncd], Ok(TIMESYNCD_DROP_IN)),
            ("chrony before it", vec![zone, timesyncd, ("/etc/chrony/chrony.conf", "")], Ok("/etc/chrony/chrony.conf")),
            ("chrony of others", vec![zone, ("/etc/chrony.conf", "")], Ok("/etc/chrony.conf")),
            ("nothing", vec![zone], Err("nothing that asks time servers")),
            ("no zones", vec![timesyncd], Err("knows no time zone UTC")),
        ] {
            let base = tempfile::tempdir().expect("temporary directory");
            let at = |path: &str| base.path().join(path.trim_start_matches('/'));
            for (path, text) in files {
                std::fs::create_dir_all(at(path).parent().expect("below")).expect("made");
                std::fs::write(at(path), text).expect("written");
            }
            let root = Root::open(base.path()).expect("opened");
            match (configure(&root, &asked, true), want) {
                (Ok(()), Ok(path)) => {
                    let text = std::fs::read_to_string(at(path)).expect(name);
                    assert!(text.contains("server a iburst") || text.contains("NTP=a"), "{name}: {text}");
                    let zone = std::fs::read_link(at("/etc/localtime")).expect("linked");
                    assert_eq!(zone, std::path::Path::new("../usr/share/zoneinfo/UTC"), "{name}");
                }
                (Err(e), Err(want)) => assert!(e.to_string().contains(want), "{name}: {e}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }
}
