use std::fs;

use drophammer_protocol::manifest::BiosBoot;

use super::super::layout::ordinary;
use super::*;

fn file(path: &str) -> ImageFile {
    ImageFile { path: path.into(), sha256: String::new() }
}

fn boot() -> BootFiles {
    BootFiles {
        kernel: file("/boot/vmlinuz-6.1"),
        initrd: Some(file("/boot/initrd.img-6.1")),
        cmdline: "console=tty0 console=ttyS0,115200n8".into(),
        bios: Some(BiosBoot { boot_img: file("/boot/boot.img"), core_img: file("/boot/core.img") }),
        uefi: Some(file("/boot/grubx64.efi")),
        by: None,
    }
}

#[test]
fn images_that_can_not_start_this_machine() {
    let with = |change: &dyn Fn(&mut BootFiles)| {
        let mut boot = boot();
        change(&mut boot);
        boot
    };
    use FirmwareKind::{Bios, Uefi};
    for (name, boot, firmware, want) in [
        ("BIOS", boot(), Bios, true),
        ("UEFI", boot(), Uefi, true),
        ("no EFI program", with(&|b| b.uefi = None), Uefi, false),
        ("no EFI program where none is needed", with(&|b| b.uefi = None), Bios, true),
        ("no boot sector", with(&|b| b.bios = None), Bios, false),
        ("a relative path", with(&|b| b.kernel.path = "boot/vmlinuz".into()), Uefi, false),
        ("a path upwards", with(&|b| b.kernel.path = "/boot/../../vmlinuz".into()), Uefi, false),
        ("a path with a space", with(&|b| b.initrd = Some(file("/boot/a b"))), Uefi, false),
        ("a path with a newline", with(&|b| b.uefi = Some(file("/boot/a\nb"))), Uefi, false),
    ] {
        assert_eq!(check(&boot, firmware).is_ok(), want, "{name}");
    }
}

#[test]
fn kernel_command_lines() {
    let plan = ordinary(1 << 30, 512, FirmwareKind::Bios).expect("fits");
    let root = format!("root=UUID={} ro", plan.root().format.uuid());
    let partition = plan.tables[0].partitions[2].guid;
    let bare = BootFiles { initrd: None, cmdline: String::new(), ..boot() };
    for (name, boot, extra, want) in [
        ("as usual", boot(), "", Ok(format!("{root} console=tty0 console=ttyS0,115200n8"))),
        ("more", boot(), "  quiet\tconsole=tty0 ", Ok(format!("{root} console=tty0 console=ttyS0,115200n8 quiet"))),
        ("no initrd", bare, "a=b", Ok(format!("root=PARTUUID={partition} rootwait ro a=b"))),
        ("a quote", boot(), "dyndbg=\"file x +p\"", Err("kernel argument \"dyndbg=\\\"file\"")),
        ("a variable", boot(), "memmap=1M$2M", Err("kernel argument")),
        ("a command", boot(), "a;reboot", Err("kernel argument")),
        ("a control character", boot(), "a\u{1b}[2J", Err("kernel argument")),
        ("a novel", boot(), &"a".repeat(2000), Err("2047 at most")),
    ] {
        match (command_line(&plan, &boot, extra), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
            (Err(got), Err(part)) => assert!(got.contains(part), "{name}: {got}"),
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
}

#[test]
fn grub_menus() {
    let uuid = "1234-ABCD";
    let text = grub_cfg(uuid, &boot(), "Debian's 12\n", "root=UUID=x ro console=ttyS1,57600n8 mem={1}");
    assert_eq!(
        text,
        "# Written when this system was installed; update-grub replaces it.\n\
         set default=0\n\
         set timeout=1\n\
         if [ \"$grub_platform\" = pc ]; then\n    \
             serial --unit=1 --speed=57600\n    \
             terminal_input console serial\n    \
             terminal_output console serial\n\
         fi\n\
         search --no-floppy --fs-uuid --set=root 1234-ABCD\n\
         menuentry 'Debians 12' {\n    \
             linux /boot/vmlinuz-6.1 root=UUID=x ro console=ttyS1,57600n8 'mem={1}'\n    \
             initrd /boot/initrd.img-6.1\n\
         }\n"
    );
    let bare = BootFiles { initrd: None, ..boot() };
    let text = grub_cfg(uuid, &bare, "x", "root=PARTUUID=x");
    assert!(!text.contains("initrd") && !text.contains("serial"), "{text}");
}

#[test]
fn serial_consoles() {
    for (line, want) in [
        ("quiet", None),
        ("console=tty0", None),
        ("console=ttyS0", Some((0, 9600))),
        ("console=ttyS0,115200n8 console=tty0", Some((0, 115_200))),
        ("console=ttyS0,9600 console=ttyS1,57600", Some((1, 57_600))),
        ("console=ttySLP,1", None),
        ("console=ttyS0,99999999999", None),
    ] {
        assert_eq!(serial_console(line), want, "{line}");
    }
}

#[test]
fn grub_defaults_keep_the_rest() {
    for (name, existing, want) in [
        (
            "replaced in place",
            "A=1\nGRUB_CMDLINE_LINUX=\"old\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n",
            "A=1\nGRUB_CMDLINE_LINUX=\"new x\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n",
        ),
        ("added", "A=1\n", "A=1\nGRUB_CMDLINE_LINUX=\"new x\"\n"),
        ("twice", "GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX=b\n", "GRUB_CMDLINE_LINUX=\"new x\"\n"),
    ] {
        assert_eq!(grub_defaults(existing, "new x"), want, "{name}");
    }
}

#[test]
fn boot_images_are_patched_as_grub_bios_setup_does() {
    // The shapes that matter: a boot sector, and a core image whose first sector ends with its own list entry.
    let mut boot_img = vec![0xcc; 512];
    boot_img[510..].copy_from_slice(&[0x55, 0xaa]);
    let code = boot_code(&boot_img, 0x0102_0304_0506).expect("patched");
    assert_eq!(code[0x5c..0x64], [6, 5, 4, 3, 2, 1, 0, 0]);
    assert_eq!(code[0x66..0x68], [0x90, 0x90]);
    assert_eq!(code[0x68..], [0xcc; 440 - 0x68]);

    let mut core = vec![0x11; 1500];
    core[510..512].copy_from_slice(&[0x20, 0x08]);
    let image = core_image(&core, 2048, 1 << 20).expect("patched");
    assert_eq!(image.len(), 1536);
    assert_eq!(image[500..512], [1, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 0x08]);
    assert_eq!(image[488..500], [0; 12], "the end of the list");
    assert_eq!(image[512..1500], core[512..]);

    let too_large = [&core[..512], &vec![0; 0xffff * 512 + 1]].concat();
    for (name, error) in [
        ("a short boot.img", boot_code(&boot_img[..511], 1).err()),
        ("no boot sector", boot_code(&[0; 512], 1).err()),
        ("a short core.img", core_image(&core[..512], 1, 1 << 20).err()),
        ("no diskboot", core_image(&[0; 1500], 1, 1 << 20).err()),
        ("no room", core_image(&core, 1, 1499).err()),
        ("more than a list entry can say", core_image(&too_large, 1, 1 << 30).err()),
    ] {
        assert!(error.is_some(), "{name}");
    }
}

#[test]
fn files_are_compared_with_the_manifest() {
    let base = tempfile::tempdir().expect("temporary directory");
    fs::write(base.path().join("kernel"), "kernel").expect("written");
    let root = Root::open(base.path()).expect("opened");
    let named =
        |path: &str, content: &str| ImageFile { path: path.into(), sha256: hex::encode(Sha256::digest(content)) };
    let bytes = verified_bytes(&root, &named("/kernel", "kernel")).expect("as signed");
    assert_eq!(bytes, b"kernel");
    let error = verified_bytes(&root, &named("/kernel", "other")).expect_err("another hash");
    assert!(error.to_string().contains("the manifest says"), "{error:#}");
    let error = verified_bytes(&root, &named("/missing", "x")).expect_err("not there");
    assert!(error.to_string().contains("the image has no /missing"), "{error:#}");
}
