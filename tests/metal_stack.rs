//! Images of metal-stack's are taken as they are: compiled once by the server, finished by their own installer on the machine,
//! and started as that says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use drophammer_images::{BuildOptions, Recipe};
use drophammer_lab::qemu::{BootFrom, Firmware};
use drophammer_lab::server::ServerSpec;
use drophammer_protocol::event::Phase;
use drophammer_protocol::machine::State;
use drophammer_pxe_server::config::ImportConfig;

use crate::common::{self, Rig};

/// What an installer does, as far as it can be done without a distribution: reads what it's told, finds an EFI system partition
/// to put its loader on, and says what to boot.
const INSTALLER: &str = r#"#!/bin/sh
set -e
PATH=/bin:/sbin
name=$(sed -n 's/^hostname: *"*\([^"]*\)"*$/\1/p' /etc/metal/install.yaml)
echo "this is $name"
echo "$name" >/etc/hostname
grep ' /boot/efi vfat ' /proc/mounts
mkdir -p /boot/efi/EFI/metal-tiny
echo loader >/boot/efi/EFI/metal-tiny/grubx64.efi
echo 'cp /proc/cmdline /data/cmdline' >>/etc/init.d/rcS
cat >/etc/metal/boot-info.yaml <<END
kernel: $(ls /boot/vmlinuz-*)
cmdline: console=ttyS0,115200n8 net.ifnames=0 metal.installer=yes root=UUID=elsewhere
bootloader_id: metal-tiny
END
"#;

#[test]
fn an_image_is_taken_as_it_is_and_finished_by_its_own_installer() {
    let dir = tempfile::tempdir().expect("a directory");
    let published = dir.path().join("metal-os/20261124/tiny/1.0");
    fs::create_dir_all(&published).expect("made");
    publish(dir.path(), &published.join("img.tar.lz4"));
    let import = ImportConfig {
        url: published.join("img.tar.lz4").display().to_string(),
        name: None,
        version: None,
        sha256: None,
        unchecked: false,
        cmdline: String::new(),
    };
    let images_dir = dir.path().join("images");
    fs::create_dir(&images_dir).expect("made");
    let rig = Rig::of(1, ServerSpec { images_dir, imports: vec![import], ..common::server() });
    let machine = rig.waiting(1, Firmware::Uefi);
    common::until(rig.limit(120), "the image is compiled", || {
        let images = rig.client.images().expect("images");
        images.iter().any(|image| (image.name.as_str(), image.version.as_str()) == ("tiny-1", "0.20261124"))
    });
    rig.client.allocate("m1", &common::allocation("tiny-1", "metal1")).expect("allocated");
    let before_disk = rig.wait_state(&machine, State::Running);
    assert_eq!(before_disk.allocation.map(|a| a.system.hostname).as_deref(), Some("metal1"));
    let told = rig.events(&machine);
    for line in ["/install.sh: this is metal1", "/install.sh wants /boot/vmlinuz-"] {
        let heard = told.iter().any(|e| e.phase == Phase::Configure && e.message.starts_with(line));
        assert!(heard, "{line}\n{}", rig.story(&machine));
    }
    let holds = |how: &str| {
        let arguments = rig.fetch(&machine, "cmdline");
        assert!(arguments.contains("metal.installer=yes") && !arguments.contains("elsewhere"), "{how}: {arguments}");
    };
    holds("kexec");
    let mark = machine.console_mark();
    machine.cold_boot(BootFrom::Disk).expect("on again");
    machine.wait_console_since(mark, "tiny: up metal1", rig.limit(120)).expect("its own system");
    holds("a cold boot");
}

/// As metal-stack's pipeline does it.
fn publish(work: &Path, archive: &Path) {
    let (tar, installer) = (work.join("rootfs.tar"), work.join("install.sh"));
    let recipe = Recipe::load("tiny").expect("a recipe");
    drophammer_images::build(&recipe, &tar, &BuildOptions::default()).expect("built");
    fs::write(&installer, INSTALLER).expect("written");
    fs::set_permissions(&installer, PermissionsExt::from_mode(0o755)).expect("mode");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(work).output().expect(program);
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    run("tar", &["--append", "--file", "rootfs.tar", "--owner=0", "--group=0", "install.sh"]);
    let archive = archive.to_str().expect("text");
    run("lz4", &["-q", "-9", "rootfs.tar", archive]);
    fs::write(format!("{archive}.md5"), run("md5sum", &[archive])).expect("written");
}
