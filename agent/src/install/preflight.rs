//! What is looked at before a kernel is trusted with a jump that nobody comes back from.
//!
//! Facts in, obstacles out, each a sentence. An obstacle to kexec isn't one to the installed system: the firmware starts
//! it.

use drophammer_protocol::words::bytes;

/// What of a kernel's file is looked at: the boot sector and the set-up header behind it.
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// The start of a kernel for x86 (Documentation/arch/x86/boot.rst).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Of the boot protocol, major and minor.
    pub(crate) protocol: (u8, u8),
    pub(crate) loaded_high: bool,
    pub(crate) relocatable: bool,
    pub(crate) flags: u16,
    /// As `uname -r` will say it.
    pub(crate) release: Option<String>,
}

const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const XLF_EFI_KEXEC: u16 = 1 << 4;

impl Header {
    /// `None` if this isn't a kernel that a boot loader for x86 would know.
    pub(crate) fn parse(head: &[u8]) -> Option<Self> {
        let array = |at: usize| head.get(at..)?.first_chunk::<2>().copied();
        let number = |at: usize| array(at).map(u16::from_le_bytes);
        if head.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        let [minor, major] = array(0x206)?;
        // These came with later versions; before, other things stand there.
        let since = |version: u8, at: usize| if (major, minor) >= (2, version) { number(at) } else { Some(0) };
        let text = number(0x20e).filter(|at| *at != 0).and_then(|at| head.get(usize::from(at) + 0x200..));
        let release = text.and_then(|text| text.split(|byte| !byte.is_ascii_graphic()).next());
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"._+~-".contains(b);
        let release = release.filter(|name| (1..=64).contains(&name.len()) && name.iter().all(plain));
        // What is a name and no way up.
        let release =
            release.map(|name| String::from_utf8_lossy(name).into_owned()).filter(|name| !name.starts_with('.'));
        Some(Self {
            protocol: (major, minor),
            loaded_high: head.get(0x211)? & 1 != 0,
            relocatable: since(5, 0x234)? & 0xff != 0,
            flags: since(12, 0x236)?,
            release,
        })
    }
}

/// What is known before the jump.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) header: Option<Header>,
    pub(crate) kernel_bytes: u64,
    pub(crate) initrd_bytes: u64,
    /// `None` if the running kernel doesn't say.
    pub(crate) available_bytes: Option<u64>,
    pub(crate) uefi: bool,
}

/// Why kexec isn't tried; nothing if it may be.
pub(crate) fn obstacle(facts: &Facts) -> Option<String> {
    let kernel = facts.kernel;
    let Some(header) = &facts.header else {
        return Some(format!("{kernel} isn't a kernel for x86 with a boot header"));
    };
    let (major, minor) = header.protocol;
    let missing = |what: &str| Some(format!("{kernel} {what}, which kexec needs"));
    if header.protocol < (2, 12) {
        return missing(&format!("has version {major}.{minor} of the boot protocol, not 2.12"));
    }
    if header.flags & XLF_KERNEL_64 == 0 {
        return missing("has no 64-bit entry point");
    }
    if !header.loaded_high || !header.relocatable || header.flags & XLF_CAN_BE_LOADED_ABOVE_4G == 0 {
        return missing("can't be put wherever there is room in memory");
    }
    if facts.uefi && header.flags & XLF_EFI_KEXEC == 0 {
        return Some(format!("{kernel} can't use the firmware's services after kexec on a machine with UEFI"));
    }
    // The files are in memory once as they are read, and once where the new kernel will find them.
    let needed = 2 * (facts.kernel_bytes + facts.initrd_bytes);
    match facts.available_bytes {
        Some(available) if available < needed => Some(format!(
            "kexec needs {} of memory for {kernel} and its initrd, and {} are free",
            bytes(needed),
            bytes(available)
        )),
        _ => None,
    }
}

/// What a lockdown of the running kernel means for kexec, if there is one.
pub(crate) fn locked_down(lockdown: Option<&str>) -> Option<String> {
    let (_, rest) = lockdown?.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    let on = matches!(mode, "integrity" | "confidentiality");
    on.then(|| {
        format!("the running kernel is locked down ({mode}) and starts only kernels whose signature it can check")
    })
}

/// `MemAvailable` of /proc/meminfo.
pub(crate) fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Any bytes are a kernel's start or they aren't; the name that a kernel gives itself leads nowhere else.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Some(Header { release: Some(release), .. }) = Header::parse(bytes) {
        assert!(!release.contains('/') && !release.starts_with('.') && !release.is_empty());
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = (available(&text), locked_down(Some(&text)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The header of Debian's `vmlinuz-6.1.0-57-cloud-amd64`, from 0x1f0 to 0x270, and its name where it says that it is.
    fn debian() -> Vec<u8> {
        const HEADER: &str = "ff27010020830d000000ffff000055aaeb6a486472530f02000000000010c0420001008000001000\
            000000000000000000000000e05b000000000000ffffff7f0000200001157f00ff0700000000000000000000000000\
            00cc020000779dd6000000000000000000000000010000000000803703c035d700";
        let header = hex::decode(HEADER).expect("hex");
        let name = b"6.1.0-57-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC\0";
        [vec![0; 0x1f0], header, vec![0; 0x44c0 - 0x1f0 - HEADER.len() / 2], name.to_vec()].concat()
    }

    fn header() -> Header {
        Header {
            protocol: (2, 15),
            loaded_high: true,
            relocatable: true,
            flags: 0x7f,
            release: Some("6.1.0-57-cloud-amd64".into()),
        }
    }

    #[test]
    fn a_kernels_own_words() {
        assert_eq!(Header::parse(&debian()), Some(header()));
        let with = |at: usize, bytes: &[u8]| {
            let mut head = debian();
            head[at..at + bytes.len()].copy_from_slice(bytes);
            Header::parse(&head)
        };
        for (name, head, want) in [
            ("no header", with(0x202, b"hdrs"), None),
            ("nothing", Header::parse(&[]), None),
            ("cut short", Header::parse(&debian()[..0x230]), None),
            (
                "old, with other things where the flags came later",
                with(0x206, &[4, 2]),
                Some(Header { protocol: (2, 4), relocatable: false, flags: 0, ..header() }),
            ),
            ("no name", with(0x20e, &[0, 0]), Some(Header { release: None, ..header() })),
            ("a name beyond the end", with(0x20e, &[0xff, 0xff]), Some(Header { release: None, ..header() })),
            ("a name that leads elsewhere", with(0x44c0, b"../../x"), Some(Header { release: None, ..header() })),
            ("the same without a slash", with(0x44c0, b".. "), Some(Header { release: None, ..header() })),
        ] {
            assert_eq!(head, want, "{name}");
        }
    }

    #[test]
    fn what_stands_in_the_way() {
        let mib = 1 << 20;
        let good = Facts {
            kernel: "/boot/vmlinuz",
            header: Some(header()),
            kernel_bytes: 8 * mib,
            initrd_bytes: 30 * mib,
            available_bytes: Some(80 * mib),
            uefi: true,
        };
        let with = |change: &dyn Fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            Facts { header: Some(header), ..good.clone() }
        };
        let bios = Facts { uefi: false, ..with(&|h| h.flags &= !XLF_EFI_KEXEC) };
        for (name, facts, want) in [
            ("nothing", good.clone(), None),
            ("memory unknown", Facts { available_bytes: None, ..good.clone() }, None),
            ("no kernel", Facts { header: None, ..good.clone() }, Some("isn't a kernel for x86")),
            ("old", with(&|h| h.protocol = (2, 11)), Some("has version 2.11 of the boot protocol")),
            ("32 bits", with(&|h| h.flags &= !XLF_KERNEL_64), Some("has no 64-bit entry point")),
            ("fixed", with(&|h| h.relocatable = false), Some("can't be put wherever there is room")),
            ("low", with(&|h| h.loaded_high = false), Some("can't be put wherever there is room")),
            ("below 4 GiB", with(&|h| h.flags &= !XLF_CAN_BE_LOADED_ABOVE_4G), Some("can't be put wherever")),
            ("without the firmware", with(&|h| h.flags &= !XLF_EFI_KEXEC), Some("can't use the firmware's services")),
            ("without a firmware of that kind", bios, None),
            (
                "too little memory",
                Facts { available_bytes: Some(70 * mib), ..good.clone() },
                Some("kexec needs 76.0 MiB of memory for /boot/vmlinuz and its initrd, and 70.0 MiB are free"),
            ),
        ] {
            let said = obstacle(&facts);
            assert_eq!(said.is_some(), want.is_some(), "{name}: {said:?}");
            let (said, want) = (said.unwrap_or_default(), want.unwrap_or_default());
            assert!(said.contains(want), "{name}: {said}");
        }
    }

    #[test]
    fn lockdown_and_memory_as_the_kernel_says_them() {
        for (text, want) in [
            (Some("[none] integrity confidentiality\n"), None),
            (Some("none [integrity] confidentiality\n"), Some("(integrity)")),
            (Some("none integrity [confidentiality]\n"), Some("(confidentiality)")),
            (Some("?"), None),
            (None, None),
        ] {
            let said = locked_down(text);
            assert_eq!(said.is_some(), want.is_some(), "{text:?}");
            assert!(said.unwrap_or_default().contains(want.unwrap_or_default()), "{text:?}");
        }
        assert_eq!(available("MemTotal:  1 kB\nMemAvailable:     2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemAvailable: many kB\n"), None);
        assert_eq!(available(""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_no_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..0x300), header: bool) {
            if header && bytes.len() > 0x206 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
            }
            fuzz(&bytes);
        }
    }
}
