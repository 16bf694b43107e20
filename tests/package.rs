//! The Debian package: what is in it, that its unit makes sense, and that the server needs no more than the unit allows.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use drophammer_lab::package::{Profile, package};

#[test]
fn the_package_installs_a_server_that_needs_no_root() {
    let dir = tempfile::tempdir().expect("a directory");
    let deb = package(Profile::Dev, dir.path(), &mut |line| eprintln!("{line}")).expect("a package");
    let deb = deb.to_str().expect("text");

    let field = |name: &str| run("dpkg-deb", &["--field", deb, name]);
    assert_eq!(field("Package").trim(), "drophammer");
    assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
    assert_eq!(field("Architecture").trim(), "amd64");
    let root = dir.path().join("root");
    run("dpkg-deb", &["--extract", deb, root.to_str().expect("text")]);
    run("dpkg-deb", &["--control", deb, root.join("control").to_str().expect("text")]);
    let conf_files = fs::read_to_string(root.join("control/conffiles")).expect("conffiles");
    assert_eq!(conf_files.trim(), "/etc/drophammer/server.toml");
    let scripts = ["postinst", "prerm", "postrm"];
    for script in scripts.map(|name| root.join("control").join(name)).iter().filter(|path| path.exists()) {
        run("sh", &["-n", script.to_str().expect("text")]);
    }
    for (path, what) in [
        ("usr/bin/drophammer", "ELF"),
        ("usr/lib/drophammer/drophammer-agent", "ELF"),
        ("usr/lib/sysusers.d/drophammer.conf", "u drophammer"),
    ] {
        let content = fs::read(root.join(path)).expect(path);
        let beginning = String::from_utf8_lossy(&content[..32]).into_owned();
        assert!(beginning.contains(what), "{path}: {beginning:?}");
    }

    let unit = fs::read_to_string(find_unit(&root)).expect("the unit");
    // The program is where the package puts it, not where it's been unpacked.
    let here = root.join("usr/bin/drophammer");
    let unit_here = dir.path().join("drophammer.service");
    fs::write(&unit_here, unit.replace("/usr/bin/drophammer", here.to_str().expect("text"))).expect("written");
    let verified = output("systemd-analyze", &["verify", "--man=no", unit_here.to_str().expect("text")]);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<_> = said.lines().filter(|line| line.contains("drophammer.service")).collect();
    assert!(ours.is_empty(), "{said}");

    let config = root.join("etc/drophammer/server.toml");
    let refused =
        output(here.to_str().expect("text"), &["serve", "--check", "--config", config.to_str().expect("text")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("there is no [[network]]"), "{said}");

    let allowed = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("capabilities");
    serves_with(dir.path(), &here, allowed);
}

/// A client gets an address, a boot file and a script from a server that has these capabilities and no others.
fn serves_with(dir: &Path, server: &Path, capabilities: &str) {
    let boot = dir.join("boot");
    fs::create_dir(&boot).expect("made");
    for name in ["vmlinuz", "initramfs", "undionly.kpxe"] {
        fs::write(boot.join(name), name).expect("written");
    }
    let state = dir.join("state");
    let config = dir.join("server.toml");
    let text = format!(
        "state_dir = {state:?}\nboot_dir = {boot:?}\n[[network]]\ninterface = \"server0\"\naddress = \"10.77.0.1\"\n\
         subnet = \"10.77.0.0/24\"\npool = [{{ first = \"10.77.0.100\", last = \"10.77.0.101\" }}]\n"
    );
    fs::write(&config, text).expect("written");
    let wanted: Vec<_> =
        capabilities.split_whitespace().map(|name| name.to_lowercase().replacen("cap_", "+", 1)).collect();
    let only = format!("-all,{}", wanted.join(","));
    let script = format!(
        r#"set -e
        ip link set lo up
        ip link add server0 type veth peer name client0
        ip address add 10.77.0.1/24 dev server0
        ip link set server0 up
        ip link set client0 up
        setpriv --bounding-set={only} --inh-caps={only} {server:?} serve --config {config:?} &
        server=$!
        for try in $(seq 100); do
            curl --silent --noproxy '*' http://10.77.0.1/boot/vmlinuz && break
            sleep 0.1
        done
        grep CapEff /proc/$server/status
        busybox udhcpc -i client0 -n -q -f -t 5 -T 1 -s /bin/true
        curl --silent --show-error --noproxy '*' tftp://10.77.0.1/undionly.kpxe
        kill $server
        wait $server
        "#
    );
    let said = run("unshare", &["--user", "--map-root-user", "--net", "--mount", "sh", "-c", &script]);
    for part in ["vmlinuz", "undionly.kpxe", "CapEff:\t0000000000002400"] {
        assert!(said.contains(part), "{said}");
    }
}

fn find_unit(root: &Path) -> std::path::PathBuf {
    let places = ["lib/systemd/system", "usr/lib/systemd/system"];
    let units = places.map(|place| root.join(place).join("drophammer.service"));
    units.into_iter().find(|path| path.exists()).expect("the unit")
}

fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}
