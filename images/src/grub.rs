//! What an image carries so that the machine's firmware can start it: GRUB for BIOS and for UEFI, made when the image is
//! built, so that installing it runs nothing.

/// Where they lie in an image.
pub(crate) const BOOT_IMG: &str = "boot/grub/i386-pc/boot.img";
pub(crate) const CORE_IMG: &str = "boot/grub/i386-pc/core.img";
pub(crate) const GRUBX64: &str = "boot/grub/x86_64-efi/grubx64.efi";

/// Where Debian's packages have them.
pub(crate) const BIOS_MODULES: &str = "usr/lib/grub/i386-pc";
/// All modules in one program, signed or signable as it is; it reads `/EFI/debian/grub.cfg` of its own partition.
/// Images that others have made don't copy it, and may start from it all the same.
pub(crate) const MONOLITHIC_EFI: &str = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi";

/// The disk that the BIOS started from isn't named, for only the machine knows it; its third partition is the root.
const PREFIX: &str = "(,gpt3)/boot/grub";

/// Built into the core image. With a few modules more than the boot needs, a person at the GRUB prompt can find out why
/// it failed.
const MODULES: [&str; 24] = [
    "biosdisk",
    "part_gpt",
    "part_msdos",
    "ext2",
    "fat",
    "normal",
    "configfile",
    "linux",
    "search",
    "search_fs_uuid",
    "search_fs_file",
    "search_label",
    "echo",
    "test",
    "true",
    "serial",
    "terminal",
    "minicmd",
    "ls",
    "cat",
    "reboot",
    "halt",
    "boot",
    "sleep",
];

/// Arguments of grub-mkimage.
pub(crate) fn mkimage(modules: &str, output: &str) -> Vec<String> {
    ["--format=i386-pc", "--compression=xz"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("--directory={modules}"), format!("--prefix={PREFIX}"), format!("--output={output}")])
        .chain(MODULES.map(str::to_owned))
        .collect()
}
