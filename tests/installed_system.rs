//! What an operator asks of a system is what that system is, also after a cold boot.

mod common;

use std::fs;
use std::process::Command;

use common::{Rig, kit};
use drophammer_lab::kit::{self, Image};
use drophammer_lab::qemu::{BootFrom, DiskSpec, Firmware, MachineSpec};
use drophammer_protocol::event::Phase;
use drophammer_protocol::machine::{Allocation, State};
use drophammer_protocol::system::network::{Bond, BondMode, Ip, Network, Under, Vlan};
use drophammer_protocol::system::{Console, PasswordHash, System, User};

const ADDRESS: &str = "10.77.0.250";
const HASH: &str = "$5$saltsalt$KvGFuXKTHlFN2YNq7ErIXpsUT9E8Ai5b9m7i9TFRpR9";

/// For a BIOS, which takes each half of the mirror for a file system.
const MIRRORED: &str = r#"
    drive = [
        { name = "one", partitions = [{ name = "bios", kind = "bios" }, { name = "esp", kind = "esp" }, { name = "root", size = "4 GiB" }, { name = "swap" }] },
        { name = "two", partitions = [{ name = "bios", kind = "bios" }, { name = "esp", kind = "esp" }, { name = "root", size = "4 GiB" }, { name = "data" }] },
    ]
    raid = [{ name = "system", level = 1, devices = ["one/root", "two/root"] }]
    filesystem = [
        { on = "system", format = "ext4", mount = "/", label = "sys", options = ["errors=remount-ro"] },
        { on = "one/swap", format = "swap" },
        { on = "two/data", format = "xfs", mount = "/data" },
        { format = "tmpfs", mount = "/tmp", options = ["size=64M", "mode=1777"] },
    ]
"#;

#[test]
fn a_mirror_a_bond_with_a_vlan_users_and_time() {
    kit::prepare(&[Image::Debian12], &mut |line| eprintln!("{line}")).expect("the Debian image");
    let rig = Rig::start(1, 3, &kit().images_dir);
    let mut spec = MachineSpec::numbered(1, Firmware::Bios);
    spec.disks.push(DiskSpec::new("m1-nvme1", 6 << 30));
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    let key = rig.dir.path().join("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.expect("ssh-keygen runs").success());
    let public = fs::read_to_string(key.with_extension("pub")).expect("a public key").trim().to_owned();

    let fixed = |address: &str| Ip { addresses: vec![address.parse().expect("an address")], ..Ip::default() };
    let bond = Bond {
        name: "bond0".into(),
        members: vec![machine.spec.mac],
        mode: BondMode::ActiveBackup,
        lacp_rate: None,
        hash_policy: None,
        min_links: None,
        primary: Some(machine.spec.mac),
        mtu: Some(1400),
        ip: Ip { gateways: vec!["10.77.0.1".parse().expect("a gateway")], ..fixed(&format!("{ADDRESS}/24")) },
    };
    let on = Under::Bond("bond0".into());
    let vlan = Vlan { id: 100, on, name: Some("storage".into()), mtu: None, ip: fixed("10.99.0.5/24") };
    let ann = User {
        name: "ann".into(),
        password: Some(PasswordHash::new(HASH)),
        ssh_keys: vec![public.clone()],
        groups: vec!["adm".into(), "makers".into()],
        sudo: None,
    };
    let system = System {
        hostname: "web1.example.org".into(),
        ssh_keys: vec![public],
        users: vec![ann],
        dns: vec!["10.77.0.1".parse().expect("an address")],
        search: vec!["example.org".into()],
        ntp: vec!["10.77.0.1".into()],
        network: Network { bonds: vec![bond], vlans: vec![vlan], ..Network::default() },
        timezone: Some("Europe/Berlin".into()),
        consoles: vec![Console { port: "ttyS0".into(), speed: None }],
        ..System::default()
    };
    let layout = Some(toml::from_str(MIRRORED).expect("a layout"));
    let wanted = Allocation { image: "debian-12".into(), system, layout, ..Allocation::default() };
    rig.client.allocate("m1", &wanted).expect("allocated");
    let running = rig.wait_state(&machine, State::Running);
    let told = rig.events(&machine);
    let note =
        "systemd-networkd configures the network: bond0 of 1 port (active-backup) 10.77.0.250/24, storage 10.99.0.5/24";
    assert!(told.iter().any(|e| e.phase == Phase::Configure && e.message == note), "{}", rig.story(&machine));
    assert!(told.iter().all(|e| !e.message.contains(HASH)), "a password hash is in the timeline");

    let known = rig.dir.path().join("known_hosts");
    let lines: Vec<_> = running.ssh_host_keys.iter().map(|k| format!("{ADDRESS} {k}\n")).collect();
    fs::write(&known, lines.concat()).expect("written");
    let (known, key) = (format!("UserKnownHostsFile={}", known.display()), key.display().to_string());
    let ssh = |who: &str, command: &str| {
        let strict =
            ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", &known, "-o", "ConnectTimeout=60"];
        let at = format!("{who}@{ADDRESS}");
        rig.run("ssh", &[strict.as_slice(), &["-i", &key, &at, command]].concat()).trim().to_owned()
    };
    let holds = |when: &str| {
        for (who, command, want) in [
            ("root", "hostname --fqdn", "web1.example.org"),
            ("root", "cat /sys/class/net/bond0/bonding/mode", "active-backup 1"),
            ("root", "cat /sys/class/net/bond0/mtu", "1400"),
            ("root", "cat /sys/class/net/bond0/address", &machine.spec.mac.to_string()),
            ("root", "ip -4 -o addr show dev storage | grep -o '10[.][0-9./]*' | head -n1", "10.99.0.5/24"),
            (
                "root",
                "ip -d link show storage | grep -o 'vlan protocol 802.1Q id [0-9]*'",
                "vlan protocol 802.1Q id 100",
            ),
            ("root", "ip -4 route show default | cut -d' ' -f3-5", "10.77.0.1 dev bond0"),
            ("root", "resolvectl dns | sed -n 's/^Global: //p'", "10.77.0.1"),
            ("root", "resolvectl domain | sed -n 's/^Global: //p'", "example.org"),
            ("root", "timedatectl show -p Timezone --value", "Europe/Berlin"),
            ("root", "timedatectl show-timesync -p SystemNTPServers --value", "10.77.0.1"),
            ("root", "getent shadow ann | cut -d: -f2", HASH),
            ("root", "systemctl is-active serial-getty@ttyS0", "active"),
            ("root", "systemctl list-units --failed --plain --no-legend", ""),
            ("root", "networkctl list --no-legend --no-pager | grep -c -w -e configured -e enslaved", "3"),
            ("root", "mdadm --detail /dev/md/system | grep -c 'active sync'", "2"),
            ("root", "mdadm --detail /dev/md/system | grep -o 'Version : .*'", "Version : 1.0"),
            ("root", "findmnt -n -o FSTYPE,LABEL / | tr -s ' '", "ext4 sys"),
            ("root", "findmnt -n -o FSTYPE /data", "xfs"),
            ("root", "findmnt -n -o SIZE /tmp", "64M"),
            ("root", "swapon --show=TYPE,PRIO --noheadings | cut -d' ' -f1", "partition"),
            ("ann", "id -un", "ann"),
            ("ann", "id -Gn | tr ' ' '\\n' | sort | tr '\\n' ' '", "adm ann makers"),
            ("ann", "stat -c '%a %U' ~ ~/.ssh ~/.ssh/authorized_keys | tr '\\n' ' '", "700 ann 700 ann 600 ann"),
            (
                "root",
                "ls /etc/drophammer /usr/lib/drophammer /etc/systemd/system/drophammer-phone-home.service 2>/dev/null | wc -l",
                "0",
            ),
        ] {
            assert_eq!(ssh(who, command), want, "{when}: {command}");
        }
    };
    ssh("root", "systemctl is-system-running --wait || true");
    holds("after the installation");
    machine.cold_boot(BootFrom::Disk).expect("on again");
    machine.wait_console("web1 login:", rig.limit(120)).expect("a login prompt from the disk alone");
    ssh("root", "systemctl is-system-running --wait || true");
    holds("after a cold boot");
}
