//! What an operator asks of a system and its drives is what they are, by the judgement of those whose formats they have and
//! also after a cold boot; and what can't be is refused while nothing has been touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Rig, kit};
use drophammer_lab::kit::{self, Image};
use drophammer_lab::qemu::{BootFrom, DiskSpec, Firmware, MachineSpec};
use drophammer_protocol::event::Phase;
use drophammer_protocol::layout::Layout;
use drophammer_protocol::machine::{Allocation, Machine, State};
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
    let (key, public) = ssh_key(&rig);

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

    let shell = Shell::new(&rig, &key, &running, ADDRESS);
    let holds = |when: &str| {
        let rows = [
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
        ];
        shell.answers("root", when, rows.iter().filter(|(who, ..)| *who == "root").map(|(_, c, w)| (*c, *w)));
        shell.answers("ann", when, rows.iter().filter(|(who, ..)| *who == "ann").map(|(_, c, w)| (*c, *w)));
    };
    shell.run("root", "systemctl is-system-running --wait || true");
    holds("after the installation");
    machine.cold_boot(BootFrom::Disk).expect("on again");
    machine.wait_console("web1 login:", rig.limit(120)).expect("a login prompt from the disk alone");
    shell.run("root", "systemctl is-system-running --wait || true");
    holds("after a cold boot");
}

/// A mirrored root in a volume group on an array, /var and /boot apart, and a volume that nobody reads without the root.
const STACKED: &str = r#"
    drive = [
        { name = "one", select = { min_size = "8 GiB" }, partitions = [{ name = "esp", kind = "esp" }, { name = "pv", size = "3 GiB" }, { name = "boot", size = "512 MiB" }] },
        { name = "two", select = { model = "qemu*", max_size = "7 GiB" }, partitions = [{ name = "esp", kind = "esp" }, { name = "pv", size = "3 GiB" }, { name = "vault", size = "rest" }] },
    ]
    raid = [{ name = "all", level = 1, devices = ["one/pv", "two/pv"] }]
    volume_group = [{ name = "vg0", devices = ["all"], tags = ["lab"], volumes = [
        { name = "root", size = "60 %" },
        { name = "var-lib", size = "rest" },
    ] }]
    encrypted = [{ name = "vault", on = "two/vault" }]
    filesystem = [
        { on = "vg0/root", format = "ext4", mount = "/", label = "top" },
        { on = "one/boot", format = "ext4", mount = "/boot" },
        { on = "vg0/var-lib", format = "xfs", mount = "/var", options = ["defaults", "x-systemd.device-timeout=600"] },
        { on = "vault", format = "ext4", mount = "/vault", options = ["noexec", "x-systemd.device-timeout=600"] },
    ]
"#;

#[test]
fn raid_lvm_and_luks_from_uefi_to_login() {
    kit::prepare(&[Image::Debian12], &mut |line| eprintln!("{line}")).expect("the Debian image");
    let rig = Rig::start(1, 3, &kit().images_dir);
    let mut spec = MachineSpec::numbered(1, Firmware::Uefi);
    spec.disks.push(DiskSpec::new("m1-nvme1", 7 << 30));
    spec.memory_mb = 512;
    let machine = rig.lab.add_machine(spec).expect("a machine");
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);

    let layout: Layout = toml::from_str(STACKED).expect("a layout");
    let (key, public) = ssh_key(&rig);
    let system = System { hostname: "stacked".into(), ssh_keys: vec![public], ..System::default() };
    let wanted = Allocation { image: "debian-12".into(), system, layout: Some(layout), ..Allocation::default() };

    // What the machine hasn't, and what can't be: a sentence, and nothing is touched.
    for (name, from, to, want) in [
        ("a drive that it hasn't", "model = \"qemu*\"", "rotational = true", "no drive to be the layout's \"two\""),
        ("too large", "\"3 GiB\"", "\"50 GiB\"", "is too small for the layout"),
        ("nonsense", "level = 1", "level = 6", "RAID 6 isn't made here"),
    ] {
        let layout = toml::from_str(&STACKED.replace(from, to)).expect("a layout");
        let why = rig.client.allocate("m1", &Allocation { layout: Some(layout), ..wanted.clone() }).expect_err(name);
        assert!(format!("{why:#}").contains(want), "{name}: {why:#}");
        assert_eq!(rig.show(&machine).expect("known").state, State::Waiting, "{name}");
    }

    rig.client.allocate("m1", &wanted).expect("allocated");
    let running = rig.wait_state(&machine, State::Running);
    let address = running.address.expect("an address").to_string();
    let shell = Shell::new(&rig, &key, &running, &address);
    let holds = |when: &str| {
        let rows = [
            ("findmnt -n -o SOURCE,FSTYPE,LABEL / | tr -s ' '", "/dev/mapper/vg0-root ext4 top"),
            ("findmnt -n -o SOURCE,FSTYPE /var | tr -s ' '", "/dev/mapper/vg0-var--lib xfs"),
            ("findmnt -n -o FSTYPE /boot", "ext4"),
            ("findmnt -n -o SOURCE,FSTYPE /vault | tr -s ' '", "/dev/mapper/vault ext4"),
            ("findmnt -n -o OPTIONS /vault | grep -o noexec", "noexec"),
            ("systemctl start boot-efi.mount && findmnt -n -o FSTYPE /boot/efi", "vfat"),
            ("mdadm --detail /dev/md/all | grep -c 'active sync'", "2"),
            ("mdadm --detail /dev/md/all | grep -o 'Version : .*'", "Version : 1.2"),
            ("vgs --noheadings -o vg_name,lv_count,vg_tags vg0 | tr -s ' '", "vg0 2 lab"),
            ("vgck vg0 && echo sound", "sound"),
            ("cryptsetup status vault | grep -o 'type: .*' | tr -s ' '", "type: LUKS2"),
            ("stat -c '%a %U' /etc/cryptsetup-keys.d/vault.key", "400 root"),
            ("systemctl list-units --failed --plain --no-legend", ""),
        ];
        shell.answers("root", when, rows.into_iter());
    };
    for disk in &machine.spec.disks {
        let path = machine.disk_path(&disk.serial).expect("its image");
        let verdict = rig.run("sgdisk", &["-v", path.to_str().expect("text")]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    }
    shell.run("root", "systemctl is-system-running --wait || true");
    holds("after the installation");
    shell.run("root", "echo secret >/vault/file; sync");
    machine.cold_boot(BootFrom::Disk).expect("on again");
    machine.wait_console("stacked login:", rig.limit(120)).expect("a login prompt from the disks alone");
    shell.run("root", "systemctl is-system-running --wait || true");
    holds("after a cold boot");
    assert_eq!(shell.run("root", "cat /vault/file"), "secret");
}

/// A private key in a file, and the public one.
fn ssh_key(rig: &Rig) -> (PathBuf, String) {
    let key = rig.dir.path().join("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.expect("ssh-keygen runs").success());
    let public = fs::read_to_string(key.with_extension("pub")).expect("a public key");
    (key, public.trim().to_owned())
}

/// A way into an installed system, by the host keys that it told when it phoned home.
struct Shell<'a> {
    rig: &'a Rig,
    options: Vec<String>,
    address: String,
}

impl<'a> Shell<'a> {
    fn new(rig: &'a Rig, key: &Path, running: &Machine, address: &str) -> Self {
        let known = rig.dir.path().join("known_hosts");
        let lines: Vec<_> = running.ssh_host_keys.iter().map(|k| format!("{address} {k}\n")).collect();
        fs::write(&known, lines.concat()).expect("written");
        let set = ["BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=60"].map(str::to_owned);
        let set = set.into_iter().chain([format!("UserKnownHostsFile={}", known.display())]);
        let mut options: Vec<String> = set.flat_map(|option| ["-o".to_owned(), option]).collect();
        options.extend(["-i".to_owned(), key.display().to_string()]);
        Self { rig, options, address: address.to_owned() }
    }

    fn run(&self, who: &str, command: &str) -> String {
        let at = format!("{who}@{}", self.address);
        let words: Vec<&str> = self.options.iter().map(String::as_str).chain([at.as_str(), command]).collect();
        self.rig.run("ssh", &words).trim().to_owned()
    }

    /// Each command prints what is wanted. All go in one session: an emulated machine takes seconds for each.
    fn answers<'r>(&self, who: &str, when: &str, rows: impl Iterator<Item = (&'r str, &'r str)>) {
        const END: &str = "----end----";
        let rows: Vec<(&str, &str)> = rows.collect();
        let script: Vec<String> = rows.iter().map(|(command, _)| format!("{command}\necho; echo {END}\n")).collect();
        let said = self.run(who, &script.concat());
        let said: Vec<&str> = said.split(END).collect();
        assert_eq!(said.len(), rows.len() + 1, "{when}: {said:?}");
        for ((command, want), got) in rows.iter().zip(said) {
            assert_eq!(got.trim(), *want, "{when}: {command}");
        }
    }
}
