//! From firmware straight into the agent, by HTTP and with nothing in between; under Secure Boot only if it's signed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::common::{self, Rig, kit};
use drophammer_initramfs::{Signer, UKI};
use drophammer_lab::qemu::{self, Firmware, MachineSpec, Rom};
use drophammer_lab::server::ServerSpec;
use drophammer_lab::vm::Machine;
use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::machine::{Allocation, State};
use drophammer_protocol::manifest::BootBy;

#[test]
fn http_boot_needs_no_ipxe_and_gives_way_to_a_tenant() {
    let rig = common::rig(1);
    let machine = http_machine(&rig, Firmware::Uefi);
    machine.power_on().expect("switched on");
    rig.wait_state(&machine, State::Waiting);
    let events = rig.events(&machine);
    assert!(events.iter().any(fetched), "{}", rig.story(&machine));
    assert!(events.iter().all(|e| e.phase != Phase::Tftp && e.step != Step::Failed), "{}", rig.story(&machine));

    // Rebooted into what is installed: the firmware goes to the disk, and the network doesn't get another turn.
    let before = rig.position(&machine);
    let wanted = Allocation { boot: Some(BootBy::Reboot), ..common::allocation("tiny", "m1-host") };
    rig.client.allocate("m1", &wanted).expect("allocated");
    rig.wait_state(&machine, State::Running);
    let since: Vec<_> = rig.events(&machine).into_iter().filter(|e| e.position > before).collect();
    let rebooting = "rebooting into the installed system: the order asks for it";
    assert!(since.iter().any(|e| e.message == rebooting), "{}", rig.story(&machine));
    assert!(!since.iter().any(|e| e.message.starts_with("asked what to boot")), "{}", rig.story(&machine));
    assert!(!since.iter().any(|e| e.step == Step::Failed), "{}", rig.story(&machine));

    let before = rig.position(&machine);
    machine.power_cycle().expect("off and on, network first");
    machine.wait_console("tiny: up m1-host", rig.limit(60)).expect("the tenant's system");
    let since: Vec<_> = rig.events(&machine).into_iter().filter(|e| e.position > before).collect();
    assert!(since.iter().any(|e| e.message == "asked what to boot: its own disk"), "{}", rig.story(&machine));
    assert!(!since.iter().any(fetched), "{}", rig.story(&machine));
}

#[test]
fn secure_boot_starts_what_is_signed_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let unsigned = fs::read(kit().boot_dir.join(UKI)).expect("a unified kernel image");
    let signed = snakeoil(dir.path()).sign(&unsigned).expect("signed");
    let boot_dir = boot_dir_with(dir.path(), UKI, &signed);
    let uki = boot_dir.join(UKI);

    let rig = Rig::of(1, ServerSpec { boot_dir, ..common::server() });
    let machine = http_machine(&rig, Firmware::SecureBoot);
    machine.power_on().expect("switched on");
    let waiting = rig.wait_state(&machine, State::Waiting);
    assert_eq!(waiting.inventory.expect("an inventory").firmware.secure_boot, Some(true));

    let before = rig.position(&machine);
    fs::write(&uki, unsigned).expect("written");
    machine.power_cycle().expect("off and on");
    let said = machine.wait_console("Access Denied", rig.limit(60)).expect("the firmware's refusal");
    assert!(said.contains("failed to load") && !said.contains("drophammer-agent"), "{said}");
    let since: Vec<_> = rig.events(&machine).into_iter().filter(|e| e.position > before).collect();
    assert!(since.iter().any(fetched), "{}", rig.story(&machine));
    assert!(since.iter().all(|e| e.phase != Phase::Enrol && e.phase != Phase::Agent), "{}", rig.story(&machine));
}

/// Firmware that starts the agent without having been told to, as from a USB stick: here by PXE, which can't be told "your
/// own disk".
#[test]
fn an_agent_without_a_ticket_leaves_a_tenants_machine_to_its_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let uki = fs::read(kit().boot_dir.join(UKI)).expect("a unified kernel image");
    let boot_dir = boot_dir_with(dir.path(), "snponly.efi", &uki);
    let rig = Rig::of(1, ServerSpec { boot_dir, ..common::server() });
    let machine = rig.running(1, Firmware::Uefi);

    machine.power_cycle().expect("off and on, network first");
    let said = machine.wait_console("tiny: up m1-host", rig.limit(90)).expect("the tenant's system");
    assert!(said.contains("this machine boots its own disk; rebooting, the firmware starts"), "{said}");
    assert_eq!(said.matches("Start PXE over IPv4").count(), 1, "the network doesn't get another turn: {said}");
}

/// The lab's boot files, one of them replaced.
fn boot_dir_with(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let boot_dir = dir.join("boot");
    fs::create_dir(&boot_dir).expect("made");
    for entry in fs::read_dir(&kit().boot_dir).expect("boot files") {
        let file = entry.expect("a boot file");
        if file.file_name() != name {
            symlink(file.path(), boot_dir.join(file.file_name())).expect("linked");
        }
    }
    fs::write(boot_dir.join(name), content).expect("written");
    boot_dir
}

fn http_machine(rig: &Rig, firmware: Firmware) -> Arc<Machine> {
    rig.lab.add_machine(MachineSpec { rom: Rom::Http, ..MachineSpec::numbered(1, firmware) }).expect("a machine")
}

fn fetched(event: &Recorded) -> bool {
    event.phase == Phase::Http && event.message.starts_with("fetched the unified kernel image")
}

/// Whom the lab's firmware believes.
fn snakeoil(dir: &Path) -> Signer {
    let key = dir.join("snakeoil.key");
    let decrypted = Command::new("openssl")
        .args(["pkey", "-in", qemu::SNAKEOIL_KEY, "-passin", &format!("pass:{}", qemu::SNAKEOIL_PASSPHRASE), "-out"])
        .arg(&key)
        .status();
    assert!(decrypted.expect("openssl runs").success(), "decrypting {}", qemu::SNAKEOIL_KEY);
    Signer::read(&key, Path::new(qemu::SNAKEOIL_CERTIFICATE)).expect("a signer")
}
