//! What the firmware starts: GRUB, from the files that the image was signed with.
//!
//! Nothing of the image is run to install it ([`metal`](super::metal) is about the one kind that wants to). The signed manifest says which files they are; each is read back from the
//! disk and compared before it is used. On BIOS machines the boot sector loads a core image from its own partition, on
//! UEFI machines the firmware loads a program from the EFI system partition; both end at `/boot/grub/grub.cfg`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::Context;
use drophammer_protocol::inventory::FirmwareKind;
use drophammer_protocol::manifest::{BootFiles, ImageFile};
use nix::fcntl::PosixFadviseAdvice;
use sha2::{Digest, Sha256};

use super::layout::Plan;
use super::root::Root;

pub(crate) const GRUB_CFG: &str = "/boot/grub/grub.cfg";
const GRUB_DEFAULTS: &str = "/etc/default/grub";

/// GRUB programs are a few MiB at most.
const MAX_PROGRAM_BYTES: u64 = 64 << 20;

/// Whether what the image brings can start a machine of this kind after a power cut, when nobody is there to kexec.
/// Called before anything is touched.
pub(crate) fn check(boot: &BootFiles, firmware: FirmwareKind) -> Result<(), String> {
    match firmware {
        FirmwareKind::Uefi if boot.uefi.is_none() => {
            return Err("this machine has UEFI firmware, and the image brings no EFI program to start it".into());
        }
        FirmwareKind::Bios if boot.bios.is_none() => {
            return Err("this machine has a BIOS, and the image brings no GRUB for it".into());
        }
        FirmwareKind::Bios | FirmwareKind::Uefi => {}
    }
    let bios = boot.bios.iter().flat_map(|bios| [&bios.boot_img, &bios.core_img]);
    for file in [&boot.kernel].into_iter().chain(&boot.initrd).chain(&boot.uefi).chain(bios) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'+' | b'~');
        let inside = file.path.starts_with('/') && !file.path.split('/').any(|part| part == "..");
        if !inside || !file.path.bytes().all(plain) {
            return Err(format!("the image's manifest names {:?}, which is not a plain absolute path", file.path));
        }
    }
    Ok(())
}

/// A file of the installed system whose content, read from the disk, is what the manifest says; at its start.
pub(crate) fn verified(root: &Root, file: &ImageFile) -> anyhow::Result<File> {
    let path = &file.path;
    let mut open = root.file(path)?.with_context(|| format!("the image has no {path}, which its manifest names"))?;
    let got = sha256(&open).with_context(|| format!("reading {path} of the installed system back"))?;
    anyhow::ensure!(
        got.eq_ignore_ascii_case(&file.sha256),
        "{path} of the installed system has SHA-256 {got}, the manifest says {}",
        file.sha256
    );
    open.seek(SeekFrom::Start(0)).with_context(|| format!("rewinding {path}"))?;
    Ok(open)
}

/// A file that the image's own installer made, as it lies there now.
pub(crate) fn made(root: &Root, path: &str) -> anyhow::Result<ImageFile> {
    let open = root.file(path)?.with_context(|| format!("there is no {path} in the installed system"))?;
    let sha256 = sha256(&open).with_context(|| format!("reading {path} of the installed system"))?;
    Ok(ImageFile { path: path.to_owned(), sha256 })
}

fn sha256(open: &File) -> anyhow::Result<String> {
    // Out of the cache, so that it's the disk that is asked.
    open.sync_all()?;
    nix::fcntl::posix_fadvise(open, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut &*open, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

/// The whole of a small verified file.
pub(crate) fn verified_bytes(root: &Root, file: &ImageFile) -> anyhow::Result<Vec<u8>> {
    let open = verified(root, file)?;
    let mut bytes = Vec::new();
    open.take(MAX_PROGRAM_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("reading {}", file.path))?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_PROGRAM_BYTES, "{} is larger than a boot program can be", file.path);
    Ok(bytes)
}

/// Kernel arguments of the installed system.
pub(crate) fn command_line(plan: &Plan, boot: &BootFiles, extra: &str) -> Result<String, String> {
    let mut words = vec![plan.root_argument(boot.initrd.is_some())?, "ro".into()];
    words.extend(kernel_arguments(boot, extra)?);
    let line = words.join(" ");
    // COMMAND_LINE_SIZE of x86, with its NUL.
    if line.len() >= 2048 {
        return Err(format!("the kernel's arguments have {} bytes, it takes 2047 at most", line.len()));
    }
    Ok(line)
}

/// The image's arguments and the order's; one that both have is there once.
fn kernel_arguments(boot: &BootFiles, extra: &str) -> Result<Vec<String>, String> {
    let mut words: Vec<String> = Vec::new();
    for word in boot.cmdline.split_whitespace().chain(extra.split_whitespace()) {
        // GRUB changes some of these on their way to the kernel, its scripts and the shell the others.
        let special = |b: u8| !b.is_ascii_graphic() || b"'\"\\$`;&|<>#".contains(&b);
        if word.bytes().any(special) {
            return Err(format!(
                "the kernel argument {word:?} has a character that boot loaders don't pass on unchanged"
            ));
        }
        if !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    }
    Ok(words)
}

/// `grub.cfg`, and `/etc/default/grub` in step with it, so that a later `update-grub` keeps the arguments.
pub(crate) fn configure(root: &Root, plan: &Plan, boot: &BootFiles, title: &str, extra: &str) -> anyhow::Result<()> {
    let line = command_line(plan, boot, extra).map_err(anyhow::Error::msg)?;
    if plan.boot_is_apart() {
        // What lies below /boot lies below / there; so it's found either way.
        root.link("/boot/boot", ".")?;
    }
    root.put_text(GRUB_CFG, 0o644, &grub_cfg(&plan.boot().format.uuid(), boot, title, &line))?;
    if let Some(defaults) = root.text(GRUB_DEFAULTS)? {
        let arguments = kernel_arguments(boot, extra).map_err(anyhow::Error::msg)?.join(" ");
        root.put_text(GRUB_DEFAULTS, 0o644, &grub_defaults(&defaults, &arguments))?;
    }
    Ok(())
}

fn grub_cfg(uuid: &str, boot: &BootFiles, title: &str, command_line: &str) -> String {
    let mut text = String::from(
        "# Written when this system was installed; update-grub replaces it.\nset default=0\nset timeout=1\n",
    );
    if let Some((unit, speed)) = serial_console(command_line) {
        // UEFI firmware has its own idea of a console, with the serial port already in it.
        text.push_str(&format!(
            "if [ \"$grub_platform\" = pc ]; then\n    serial --unit={unit} --speed={speed}\n    \
             terminal_input console serial\n    terminal_output console serial\nfi\n"
        ));
    }
    let title: String = title.chars().filter(|c| !c.is_control() && !matches!(c, '\'' | '\\')).collect();
    text.push_str(&format!("search --no-floppy --fs-uuid --set=root {uuid}\nmenuentry '{title}' {{\n"));
    let words: Vec<String> = command_line.split(' ').map(quoted).collect();
    text.push_str(&format!("    linux {} {}\n", boot.kernel.path, words.join(" ")));
    if let Some(initrd) = &boot.initrd {
        text.push_str(&format!("    initrd {}\n", initrd.path));
    }
    text.push_str("}\n");
    text
}

/// Kernel arguments have braces, commas and brackets now and then; in single quotes GRUB takes them as they are.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"=-_./:,@+%".contains(&b);
    if word.bytes().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

/// Unit and speed of the serial port that the kernel is told to talk to: `console=ttyS1,57600n8`.
fn serial_console(command_line: &str) -> Option<(u8, u32)> {
    let last = command_line.split(' ').filter_map(|word| word.strip_prefix("console=ttyS")).next_back()?;
    let (unit, mode) = last.split_once(',').unwrap_or((last, ""));
    let digits: String = mode.chars().take_while(char::is_ascii_digit).collect();
    let speed = if digits.is_empty() { 9600 } else { digits.parse().ok()? };
    Some((unit.parse().ok()?, speed))
}

/// Replaces the arguments, keeps the rest.
fn grub_defaults(existing: &str, arguments: &str) -> String {
    let setting = format!("GRUB_CMDLINE_LINUX=\"{arguments}\"");
    let ours = |line: &str| line.trim_start().starts_with("GRUB_CMDLINE_LINUX=");
    let mut lines: Vec<&str> = existing.lines().filter(|line| !ours(line)).collect();
    let place = existing.lines().position(ours).unwrap_or(lines.len()).min(lines.len());
    lines.insert(place, &setting);
    lines.join("\n") + "\n"
}

/// What the EFI program reads first, from the partition it was started from.
pub(crate) fn esp_grub_cfg(uuid: &str) -> String {
    format!("search.fs_uuid {uuid} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n")
}

/// Offsets in boot.img (GRUB, include/grub/i386/pc/boot.h) that grub-bios-setup patches.
const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
/// What of a boot sector is code; the disk signature and the MBR's partition table follow.
const BOOT_CODE_BYTES: usize = 440;

/// Code for the boot sector that loads the core image from `core_sector`.
pub(crate) fn boot_code(boot_img: &[u8], core_sector: u64) -> anyhow::Result<[u8; BOOT_CODE_BYTES]> {
    anyhow::ensure!(boot_img.len() == 512 && boot_img.ends_with(&[0x55, 0xaa]), "boot.img isn't a boot sector");
    let mut code = [0; BOOT_CODE_BYTES];
    code.copy_from_slice(boot_img.get(..BOOT_CODE_BYTES).unwrap_or_default());
    patch(&mut code, KERNEL_SECTOR, &core_sector.to_le_bytes())?;
    // On a hard disk the jump over the check of DL makes way for two NOPs: some BIOSes pass a drive number that isn't.
    patch(&mut code, DRIVE_CHECK, &[0x90, 0x90])?;
    Ok(code)
}

/// The core image with the list of blocks in which it finds the rest of itself.
///
/// The last twelve bytes of its first sector (diskboot.img) are the first entry of a list that grows downwards: start
/// (u64), length (u16), segment (u16). The rest follows in one run, so one entry and the zero entry after it do.
pub(crate) fn core_image(core: &[u8], sector: u64, room: u64) -> anyhow::Result<Vec<u8>> {
    const SECTOR: usize = 512;
    const ENTRY: usize = 12;
    /// Where diskboot.img loads the rest: 0x8200, in paragraphs.
    const SEGMENT: u16 = 0x820;
    anyhow::ensure!(core.len() > SECTOR, "core.img is too short to be one");
    anyhow::ensure!(core.len() as u64 <= room, "core.img has {} bytes, its partition {room}", core.len());
    let mut image = core.to_vec();
    image.resize(core.len().next_multiple_of(SECTOR), 0);
    let rest = u16::try_from(image.len() / SECTOR - 1).context("core.img is too large to be loaded")?;
    let segment = image.get(SECTOR - 2..SECTOR).map(|s| s == SEGMENT.to_le_bytes());
    anyhow::ensure!(segment == Some(true), "core.img doesn't begin with GRUB's diskboot.img");
    patch(&mut image, SECTOR - ENTRY, &(sector + 1).to_le_bytes())?;
    patch(&mut image, SECTOR - ENTRY + 8, &rest.to_le_bytes())?;
    patch(&mut image, SECTOR - 2 * ENTRY, &[0; ENTRY])?;
    Ok(image)
}

fn patch(bytes: &mut [u8], at: usize, with: &[u8]) -> anyhow::Result<()> {
    bytes.get_mut(at..at + with.len()).context("a boot image is too short")?.copy_from_slice(with);
    Ok(())
}

/// What the image has in /etc/default/grub, and kernel arguments: the setting is there once, however often it is made.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let _ = serial_console(text);
    let once = grub_defaults(text, "quiet");
    let settings = |text: &str| text.lines().filter(|line| line.contains("GRUB_CMDLINE_LINUX=")).count();
    let others = text.lines().filter(|line| !line.trim_start().starts_with("GRUB_CMDLINE_LINUX="));
    assert!(others.clone().all(|line| once.contains(line)), "{once:?}");
    assert_eq!(once.lines().count(), others.count() + 1, "{once:?}");
    assert_eq!(settings(&grub_defaults(&once, "quiet")), settings(&once), "{once:?}");
}

#[cfg(test)]
mod tests;
