//! The whole road: a server with nothing on it is switched on and ends up running what it got from us.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{self, Rig, kit};
use drophammer_lab::kit::{self, Image};
use drophammer_lab::qemu::{BootFrom, Firmware};
use drophammer_lab::vm::Machine;
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::machine::{Allocation, State, TakeBack};
use drophammer_protocol::system::System;

#[test]
fn bios_from_power_on_to_a_running_os_and_a_cold_boot() {
    the_road(Firmware::Bios, &[Phase::Dhcp, Phase::Http]);
}

#[test]
fn uefi_from_power_on_to_a_running_os_and_a_cold_boot() {
    the_road(Firmware::Uefi, &[Phase::Dhcp, Phase::Tftp, Phase::Http]);
}

fn the_road(firmware: Firmware, firmware_phases: &[Phase]) {
    let rig = common::rig(1);
    let machine = rig.running(1, firmware);

    let seen = rig.show(&machine).expect("known");
    let inventory = seen.inventory.expect("an inventory");
    assert_eq!(inventory.system.serial.as_deref(), Some("m1"));
    assert_eq!(inventory.disks.len(), 1, "{:?}", inventory.disks);
    assert_eq!(inventory.disks[0].id().expect("a serial").serial, "m1-nvme0");
    assert_eq!(seen.mac, Some(machine.spec.mac));

    // Every stretch of the road was seen, in its order.
    let events = rig.events(&machine);
    let agent_phases = [
        Phase::Agent,
        Phase::Enrol,
        Phase::Inventory,
        Phase::Erase,
        Phase::Waiting,
        Phase::Allocated,
        Phase::Layout,
        Phase::Image,
        Phase::Configure,
        Phase::Kexec,
        Phase::PhonedHome,
    ];
    let mut last = 0;
    for phase in firmware_phases.iter().chain(&agent_phases) {
        let first = events.iter().filter(|e| e.phase == *phase).map(|e| e.at_ms).min();
        let first = first.unwrap_or_else(|| panic!("nothing about {phase:?}\n{}", rig.story(&machine)));
        assert!(first >= last, "{phase:?} came before what comes before it\n{}", rig.story(&machine));
        last = first;
    }
    assert!(events.iter().all(|e| e.step != Step::Failed), "{}", rig.story(&machine));

    assert_eq!(rig.fetch(&machine, "boots").lines().count(), 1, "the first boot of this system");

    // Switched off in an orderly way, so that the judges find what the installer left and not a journal in mid-flight.
    machine.type_in("\r").expect("typed");
    machine.wait_console("/ # ", rig.limit(20)).expect("a shell");
    machine.type_in("poweroff\r").expect("typed");
    machine.wait_off(rig.limit(60)).expect("off");
    judge(&machine);

    // The disk alone is enough: no network, no server.
    machine.cold_boot(BootFrom::Disk).expect("on again");
    machine.wait_console("tiny: up m1-host", rig.limit(60)).expect("the installed system");
    if firmware == Firmware::Uefi {
        the_firmware_knows_it(&rig, &machine);
    }
}

/// The agent gave the system an entry of its own, behind the network and in front of the disks; the firmware has read it
/// since, and started the system by it. The first start, which was by kexec, has taken its safety net away.
fn the_firmware_knows_it(rig: &Rig, machine: &Machine) {
    let events = rig.events(machine);
    let order = events.iter().find_map(|e| e.message.strip_prefix("the firmware's boot order, read back: "));
    let order: Vec<_> = order.unwrap_or_else(|| panic!("{}", rig.story(machine))).split(", ").collect();
    let ours = order.iter().position(|name| *name == "drophammer").expect("an entry");
    let network = |name: &str| name.contains("PXEv") || name.contains("HTTPv");
    assert!(order[..ours].iter().all(|name| network(name)) && order[ours + 1].contains("NVMe"), "{order:?}");
    assert!(order[0].contains("PXEv4"), "{order:?}");

    machine.type_in("\r").expect("typed");
    machine.wait_console("/ # ", rig.limit(20)).expect("a shell");
    // The sums are for telling what is said from what is typed.
    machine
        .type_in(
            "cd /sys/firmware/efi/efivars; n=$(od -An -tx2 BootCurrent-8be4* | tr -d ' ' | tr a-f A-F | tail -c 5); \
             cat Boot$n-8be4* | tr -d '\\000' | grep -q drophammer && echo ours $((40 + 2)); \
             ls BootNext-8be4* || echo no next $((50 + 5))\r",
        )
        .expect("typed");
    machine.wait_console("ours 42", rig.limit(20)).expect("the firmware started our entry");
    machine.wait_console("no next 55", rig.limit(20)).expect("nothing is left of the first start");
}

/// What others think of the disk.
fn judge(machine: &Machine) {
    let disk = machine.disk_path("m1-nvme0").expect("its image");
    let table = passes(Command::new("sgdisk").arg("-v").arg(&disk));
    assert!(table.contains("No problems found"), "{table}");
    let scratch = tempfile::tempdir().expect("a directory");
    for (partition, judge, args) in [(2, "fsck.vfat", ["-n"].as_slice()), (3, "e2fsck", &["-f", "-n"])] {
        let copy = scratch.path().join(format!("p{partition}"));
        extract(&disk, partition, &copy);
        passes(Command::new(judge).args(args).arg(&copy));
    }
}

fn extract(disk: &Path, partition: u32, to: &Path) {
    let info = passes(Command::new("sgdisk").arg(format!("-i{partition}")).arg(disk));
    let sector = |label: &str| -> u64 {
        let line = info.lines().find(|l| l.starts_with(label)).unwrap_or_else(|| panic!("no {label} in {info}"));
        line.split_whitespace().nth(2).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no number in {line}"))
    };
    let (first, last) = (sector("First sector"), sector("Last sector"));
    passes(
        Command::new("dd")
            .arg(format!("if={}", disk.display()))
            .arg(format!("of={}", to.display()))
            .args(["bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse"])
            .args([format!("skip={}", first * 512), format!("count={}", (last - first + 1) * 512)]),
    );
}

fn passes(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[test]
fn a_real_debian_with_systemd_and_ssh() {
    kit::prepare(&[Image::Debian12], &mut |line| eprintln!("{line}")).expect("the Debian image");
    let rig = Rig::start(1, 3, &kit().images_dir);
    let machine = rig.waiting(1, Firmware::Bios);
    let key = rig.dir.path().join("key");
    passes(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let public = fs::read_to_string(key.with_extension("pub")).expect("a public key");
    rig.client
        .allocate(
            "m1",
            &Allocation {
                image: "debian-12".into(),
                system: System { hostname: "web1".into(), ssh_keys: vec![public.trim().into()], ..System::default() },
                ..Allocation::default()
            },
        )
        .expect("allocated");
    let running = rig.wait_state(&machine, State::Running);

    // The host keys that it phoned home with are the ones it has: ssh checks them strictly.
    let address = running.address.expect("an address").to_string();
    let known = rig.dir.path().join("known_hosts");
    let lines: Vec<_> = running.ssh_host_keys.iter().map(|k| format!("{address} {k}\n")).collect();
    assert!(!lines.is_empty(), "no host keys were reported");
    fs::write(&known, lines.concat()).expect("written");
    let ssh = |command: &str| {
        let options = [
            "-o".to_owned(),
            "BatchMode=yes".into(),
            "-o".into(),
            "StrictHostKeyChecking=yes".into(),
            "-o".into(),
            format!("UserKnownHostsFile={}", known.display()),
            "-o".into(),
            "ConnectTimeout=60".into(),
            "-i".into(),
            key.display().to_string(),
            format!("root@{address}"),
            command.into(),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        rig.run("ssh", &options)
    };
    assert_eq!(ssh("hostname").trim(), "web1");
    assert!(ssh("cat /etc/os-release").contains("Debian GNU/Linux 12"));
    let agent =
        "test ! -e /etc/drophammer/phone-home.json && test ! -e /usr/lib/drophammer/drophammer-agent && echo gone";
    assert_eq!(ssh(agent).trim(), "gone", "no secret and no agent stay behind");
    let failed =
        ssh("systemctl is-system-running --wait >/dev/null; systemctl list-units --failed --plain --no-legend");
    assert_eq!(failed.trim(), "", "units that failed");
    assert_eq!(ssh("findmnt -n -o FSTYPE /").trim(), "ext4");
    // Nobody waits for it at boot (nofail).
    let esp = ssh("systemctl start boot-efi.mount && findmnt -n -o SOURCE /boot/efi");
    assert!(esp.contains("nvme0n1p2"), "{esp}");
    assert_eq!(ssh("stat -c %a /tmp /root /etc/shadow").split_whitespace().collect::<Vec<_>>(), ["1777", "700", "640"]);

    // And again without us.
    machine.cold_boot(BootFrom::Disk).expect("on again");
    machine.wait_console("web1 login:", rig.limit(120)).expect("a login prompt from the disk alone");
}

#[test]
fn reprovision_takes_a_running_machine_back() {
    let rig = common::rig(1);
    let machine = rig.running(1, Firmware::Bios);
    let before = rig.position(&machine);
    let certificates = rig.client.certificates("m1").expect("certificates").certificates.len();
    rig.client.reprovision("m1", TakeBack::default()).expect("accepted");
    rig.wait_event(&machine, before, Phase::Erase, Step::Done);
    rig.wait_event(&machine, before, Phase::PhonedHome, Step::Done);
    rig.wait_state(&machine, State::Running);
    assert_eq!(rig.client.certificates("m1").expect("certificates").certificates.len(), certificates + 1);
    assert_eq!(rig.fetch(&machine, "boots").lines().count(), 1, "nothing is left of the boot before");

    let before = rig.position(&machine);
    rig.client.release("m1", TakeBack::default()).expect("accepted");
    rig.wait_event(&machine, before, Phase::Erase, Step::Done);
    let waiting = rig.wait_state(&machine, State::Waiting);
    assert_eq!(waiting.allocation, None);
    assert!(!common::is_bootable(&machine), "a released machine has nothing left to boot");
}
