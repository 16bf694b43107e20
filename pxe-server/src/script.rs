//! What iPXE is told to do, as text. No secret is in a script or on a kernel command line: both are shown on screens.
//!
//! iPXE of 2019 (Debian 12) has to understand all of it.

use drophammer_initramfs::AGENT_ARGUMENTS;
use drophammer_protocol::api::{BOOT_INITRAMFS, BOOT_KERNEL};
use drophammer_protocol::id::BootId;

use crate::dhcp::boot::script_url;

/// Boots the agent. What can't be fetched is tried again from the start, with a new ticket.
pub fn agent(boot_url: &str, boot: BootId, cmdline: &str) -> String {
    // `initrd=` is for UEFI, where the kernel's own stub loads it by that name; in BIOS mode it is ignored.
    let arguments = ["initrd=initramfs", AGENT_ARGUMENTS, "drophammer.mac=${netX/mac}", cmdline].join(" ");
    format!(
        "#!ipxe\n\
         echo drophammer: starting the agent\n\
         kernel --name vmlinuz {boot_url}{BOOT_KERNEL} {} || goto again\n\
         initrd --name initramfs {boot_url}{BOOT_INITRAMFS}/{boot} || goto again\n\
         boot || goto again\n\
         {}",
        arguments.trim_end(),
        again(boot_url)
    )
}

/// Leaves the machine to its own disk.
pub fn local_disk() -> String {
    // BIOS: the first disk is started from here, as many BIOSes give up when a network ROM just returns.
    // UEFI: an error makes the firmware go on to the next entry of its boot order; after success it would show its menu.
    "#!ipxe\n\
     echo drophammer: starting from the local disk\n\
     iseq ${platform} pcbios && goto bios ||\n\
     exit 1\n\
     :bios\n\
     sanboot --no-describe --drive 0x80 || exit 1\n"
        .into()
}

/// Shows why there's no decision and asks again later.
pub fn trouble(boot_url: &str, why: &str) -> String {
    let mut text = String::from("#!ipxe\n");
    for line in why.lines() {
        // `${` would be expanded, and `||`, `&&` and `#` end a command only between blanks; a quote would join lines.
        let plain: String =
            line.chars().map(|c| if c.is_ascii_graphic() && !"$\"'\\#&|".contains(c) { c } else { ' ' }).collect();
        text.push_str(&format!("echo drophammer: {}\n", plain.trim()));
    }
    text + &again(boot_url)
}

fn again(boot_url: &str) -> String {
    format!(
        ":again\n\
         echo drophammer: trying again in 10 seconds\n\
         imgfree ||\n\
         sleep 10 ||\n\
         chain --replace --autofree {} || reboot\n",
        script_url(boot_url)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_script() {
        let boot = "0d3b6f0e-6f3c-4a37-9d4b-3f0f6ef9f2aa".parse().expect("an id");
        let text = agent("http://10.77.0.1:8080", boot, "console=ttyS0");
        assert_eq!(
            text,
            "#!ipxe\n\
             echo drophammer: starting the agent\n\
             kernel --name vmlinuz http://10.77.0.1:8080/boot/vmlinuz initrd=initramfs panic=30 \
             libata.ignore_hpa=1 libata.allow_tpm=1 drophammer.mac=${netX/mac} console=ttyS0 || goto again\n\
             initrd --name initramfs \
             http://10.77.0.1:8080/boot/initramfs/0d3b6f0e-6f3c-4a37-9d4b-3f0f6ef9f2aa || goto again\n\
             boot || goto again\n\
             :again\n\
             echo drophammer: trying again in 10 seconds\n\
             imgfree ||\n\
             sleep 10 ||\n\
             chain --replace --autofree \
             http://10.77.0.1:8080/boot/script.ipxe?mac=${netX/mac:hexhyp}&uuid=${uuid} || reboot\n"
        );
    }

    #[test]
    fn words_are_not_commands() {
        let text = trouble("http://10.77.0.1", "a \"b\" ${uuid} || reboot\n\u{e4}&& exit #");
        let words: Vec<_> = text.lines().skip(1).take(2).collect();
        assert_eq!(words, ["echo drophammer: a  b   {uuid}    reboot", "echo drophammer: exit"]);
    }
}
