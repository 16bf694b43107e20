//! Drives are divided as the operator said, by the judgement of those whose formats these are; and what can't be is refused
//! while nothing has been touched.

mod common;

use std::fs;
use std::process::Command;

use common::{Rig, kit};
use drophammer_lab::kit::{self, Image};
use drophammer_lab::qemu::{BootFrom, DiskSpec, Firmware, MachineSpec};
use drophammer_protocol::layout::Layout;
use drophammer_protocol::machine::{Allocation, State};
use drophammer_protocol::system::System;

/// A mirrored root in a volume group on an array, /var and /boot apart, and a volume that nobody reads without the root.
const STACKED: &str = r#"
    drive = [
        { name = "one", select = { min_size = "8 GiB" }, partitions = [{ name = "esp", kind = "esp" }, { name = "pv", size = "5 GiB" }, { name = "boot", size = "512 MiB" }] },
        { name = "two", select = { model = "qemu*", max_size = "7 GiB" }, partitions = [{ name = "esp", kind = "esp" }, { name = "pv", size = "5 GiB" }, { name = "vault", size = "rest" }] },
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
        { on = "vg0/var-lib", format = "xfs", mount = "/var" },
        { on = "vault", format = "ext4", mount = "/vault", options = ["noexec"] },
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
    let key = rig.dir.path().join("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.expect("ssh-keygen runs").success());
    let public = fs::read_to_string(key.with_extension("pub")).expect("a public key").trim().to_owned();
    let system = System { hostname: "stacked".into(), ssh_keys: vec![public], ..System::default() };
    let wanted = Allocation { image: "debian-12".into(), system, layout: Some(layout), ..Allocation::default() };

    // What the machine hasn't, and what can't be: a sentence, and nothing is touched.
    for (name, from, to, want) in [
        ("a drive that it hasn't", "model = \"qemu*\"", "rotational = true", "no drive to be the layout's \"two\""),
        ("too large", "\"5 GiB\"", "\"50 GiB\"", "is too small for the layout"),
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
    let (key, options) = (key.display().to_string(), ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    let ssh = |command: &str| {
        let quiet = ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60"];
        let at = format!("root@{address}");
        let words = [options.as_slice(), &quiet, &["-i", &key, &at, command]].concat();
        rig.run("ssh", &words).trim().to_owned()
    };
    let holds = |when: &str| {
        for (command, want) in [
            ("findmnt -n -o SOURCE,FSTYPE,LABEL / | tr -s ' '", "/dev/mapper/vg0-root ext4 top"),
            ("findmnt -n -o SOURCE,FSTYPE /var | tr -s ' '", "/dev/mapper/vg0-var--lib xfs"),
            ("findmnt -n -o FSTYPE /boot", "ext4"),
            ("findmnt -n -o SOURCE,FSTYPE /vault | tr -s ' '", "/dev/mapper/vault ext4"),
            ("findmnt -n -o OPTIONS /vault | grep -o noexec", "noexec"),
            ("findmnt -n -o FSTYPE /boot/efi", "vfat"),
            ("mdadm --detail /dev/md/all | grep -c 'active sync'", "2"),
            ("mdadm --detail /dev/md/all | grep -o 'Version : .*'", "Version : 1.2"),
            ("vgs --noheadings -o vg_name,lv_count,vg_tags vg0 | tr -s ' '", "vg0 2 lab"),
            ("vgck vg0 && echo sound", "sound"),
            ("cryptsetup status vault | grep -o 'type: .*' | tr -s ' '", "type: LUKS2"),
            ("stat -c '%a %U' /etc/cryptsetup-keys.d/vault.key", "400 root"),
            ("systemctl list-units --failed --plain --no-legend", ""),
        ] {
            assert_eq!(ssh(command), want, "{when}: {command}");
        }
    };
    for disk in &machine.spec.disks {
        let path = machine.disk_path(&disk.serial).expect("its image");
        let verdict = rig.run("sgdisk", &["-v", path.to_str().expect("text")]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    }
    ssh("systemctl is-system-running --wait || true");
    holds("after the installation");
    ssh("echo secret >/vault/file; sync");
    machine.cold_boot(BootFrom::Disk).expect("on again");
    machine.wait_console("stacked login:", rig.limit(120)).expect("a login prompt from the disks alone");
    ssh("systemctl is-system-running --wait || true");
    holds("after a cold boot");
    assert_eq!(ssh("cat /vault/file"), "secret");
}
